# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""Image processors of the two-stage detectors."""

import numpy as np
import torch
from transformers.image_processing_backends import PilBackend

from ..detection.image_processing_detection import DetectionProcessing, boxes_in_pixels
from .boxes import paste_masks


class MaskRCNNProcessing(DetectionProcessing):
    """The code of both backends."""

    def post_process_object_detection(
        self, outputs, threshold: float = 0.05, target_sizes: torch.Tensor | list | None = None
    ) -> list[dict[str, torch.Tensor]]:
        """
        Detections of each image, the best first. The model has already applied `config.score_threshold` and, for each
        class, non-maximum suppression with `config.nms_threshold`.

        Args:
            outputs ([`MaskRCNNObjectDetectionOutput`]):
                The output of the model, or only `logits` and `pred_boxes`, as in `compute_metrics` of a `Trainer`.
            threshold (`float`, *optional*, defaults to 0.05):
                Smallest score, exclusive. Values below `config.score_threshold` have no effect.
            target_sizes (`torch.Tensor` of shape `(batch_size, 2)` or a list of tuples or tensors, *optional*):
                Height and width of each original image. Without it boxes are relative to the size of the image.

        Returns:
            `list[dict[str, torch.Tensor]]`: `scores` (n,), `labels` (n,) and `boxes` (n, 4), left, top, right, bottom
            in pixels.
        """
        boxes = boxes_in_pixels(outputs.pred_boxes, target_sizes)
        scores, labels = _scores_and_labels(outputs)
        return [
            {"scores": own_scores[kept], "labels": own_labels[kept], "boxes": own_boxes[kept]}
            for own_scores, own_labels, own_boxes, kept in zip(scores, labels, boxes, scores > max(threshold, 0))
        ]

    def post_process_instance_segmentation(
        self,
        outputs,
        threshold: float = 0.05,
        mask_threshold: float = 0.5,
        overlap_mask_area_threshold: float = 0.0,
        target_sizes: torch.Tensor | list | None = None,
        return_coco_annotation: bool = False,
        return_binary_maps: bool = False,
    ) -> list[dict]:
        """
        Detections with masks. Each image has what [`post_process_object_detection`] returns, `masks` in the format of
        SAM 3, and `segmentation` and `segments_info` in that of Mask2Former. Masks may overlap; in `segmentation` the
        best detection is on top.

        Args:
            outputs, threshold, target_sizes:
                As in [`post_process_object_detection`]; `target_sizes` are required.
            mask_threshold (`float`, *optional*, defaults to 0.5):
                Probability from which a pixel belongs to the mask.
            overlap_mask_area_threshold (`float`, *optional*, defaults to 0.0):
                Detections of whose mask a smaller fraction is visible under better detections, or no pixel, are left
                out of the map and of `segments_info`. 0 keeps all, also hidden ones; `pipeline` sets 0.5.
            return_coco_annotation (`bool`, *optional*, defaults to `False`):
                Whether `segmentation` has, for each detection, the run lengths of its whole mask: start (from 1) and
                length of each run, row by row.
            return_binary_maps (`bool`, *optional*, defaults to `False`):
                Whether `segmentation` has, for each detection, its whole mask: bool, (n, height, width).

        Returns:
            `list[dict]`: `scores` (n,), `labels` (n,), `boxes` (n, 4), `masks` (n, height, width) of bool, in the
            original image; `segmentation` (height, width), int32, the `id` of the segment of each pixel, or -1; and
            `segments_info`, a list of dictionaries with `id` (its place in `scores` and the others), `label_id`,
            `score` and `was_fused` (`False`).
        """
        if target_sizes is None:
            raise ValueError("Masks need `target_sizes`, the height and width of each original image.")
        if return_coco_annotation and return_binary_maps:
            raise ValueError("`return_coco_annotation` and `return_binary_maps` exclude each other. Leave one out.")
        if getattr(outputs, "pred_masks", None) is None:
            raise ValueError("The model has no mask heads (`use_mask_head=False`): there are no masks.")
        results: list[dict] = self.post_process_object_detection(outputs, threshold, target_sizes)
        all_scores, _ = _scores_and_labels(outputs)
        for result, masks, scores, size in zip(results, outputs.pred_masks, all_scores, target_sizes):
            masks = masks[scores > max(threshold, 0)].to(result["boxes"].dtype).sigmoid()
            height, width = map(int, size)
            # One by one: all masks together would take gigabytes in floating point.
            pasted = masks.new_zeros((len(masks), height, width), dtype=torch.bool)
            for idx in range(len(masks)):
                own = slice(idx, idx + 1)
                pasted[own] = paste_masks(masks[own], result["boxes"][own], height, width) >= mask_threshold
            result["masks"] = pasted
            shown = range(len(pasted))
            if return_binary_maps:
                result["segmentation"] = pasted
            elif return_coco_annotation:
                result["segmentation"] = [_run_lengths(mask) for mask in pasted]
            else:
                result["segmentation"], shown = _overlay(pasted, overlap_mask_area_threshold)
            labels, scores = result["labels"].tolist(), result["scores"].tolist()
            result["segments_info"] = [
                {"id": idx, "label_id": labels[idx], "was_fused": False, "score": round(scores[idx], 6)}
                for idx in shown
            ]
        return results


def _scores_and_labels(outputs) -> tuple[torch.Tensor, torch.Tensor]:
    """Both (batch_size, max_detections), computed from `logits` if the outputs do not hold them."""
    if getattr(outputs, "pred_scores", None) is not None:
        return outputs.pred_scores, outputs.pred_labels
    return tuple(outputs.logits.softmax(dim=-1)[..., :-1].max(dim=-1))


def _overlay(masks: torch.Tensor, smallest_share: float) -> tuple[torch.Tensor, list[int]]:
    """
    Map (height, width) with the index of the first of `masks` (n, height, width) at each pixel, or -1; and the indices
    of the masks in it. A mask of which less than `smallest_share` is visible is left out.
    """
    segmentation = torch.full(masks.shape[1:], -1, dtype=torch.int32, device=masks.device)
    for idx in reversed(range(len(masks))):
        segmentation.masked_fill_(masks[idx], idx)
    indices = list(range(len(masks)))
    if smallest_share > 0:
        for idx, mask in enumerate(masks):
            seen = segmentation == idx
            if seen.sum() < smallest_share * mask.sum() or not seen.any():
                segmentation.masked_fill_(seen, -1)
                indices.remove(idx)
    return segmentation, indices


def _run_lengths(mask: torch.Tensor) -> list[int]:
    """Start, from 1, and length of each run of a mask (height, width), row by row."""
    edges = np.flatnonzero(np.diff(mask.flatten().cpu().numpy(), prepend=False, append=False))
    edges[1::2] -= edges[::2]
    edges[::2] += 1
    return edges.tolist()


class MaskRCNNImageProcessorPil(MaskRCNNProcessing, PilBackend):
    """As [`MaskRCNNImageProcessor`], without torchvision."""
