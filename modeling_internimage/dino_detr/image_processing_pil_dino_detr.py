# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""Image processors of DINO."""

import torch
from transformers.image_processing_backends import PilBackend

from ..detection.image_processing_detection import DetectionImageProcessorKwargs, DetectionProcessing, boxes_in_pixels


class DinoDetrImageProcessorKwargs(DetectionImageProcessorKwargs, total=False):
    r"""
    max_detections (`int`, *optional*, defaults to 100):
        Detections in an image. Most of the official models have 300.
    """

    max_detections: int


class DinoDetrProcessing(DetectionProcessing):
    """The code of both backends."""

    valid_kwargs = DinoDetrImageProcessorKwargs
    max_detections = 100

    def post_process_object_detection(
        self,
        outputs,
        threshold: float = 0.0,
        target_sizes: torch.Tensor | list | None = None,
        top_k: int | None = None,
    ) -> list[dict[str, torch.Tensor]]:
        """
        Detections of each image, the best first: the pairs of a query and a class with the highest scores. There is no
        non-maximum suppression, and a query may be detected as several classes.

        Args:
            outputs ([`DinoDetrObjectDetectionOutput`]):
                The output of the model, or only `logits` and `pred_boxes`.
            threshold (`float`, *optional*, defaults to 0.0):
                Smallest score, exclusive. The official models have no threshold.
            target_sizes (`torch.Tensor` of shape `(batch_size, 2)` or a list of tuples or tensors, *optional*):
                Height and width of each original image. Without it boxes are relative to the size of the image.
            top_k (`int`, *optional*):
                Most detections of an image. Defaults to `max_detections`.

        Returns:
            `list[dict[str, torch.Tensor]]`: `scores` (n,), `labels` (n,) and `boxes` (n, 4), left, top, right, bottom
            in pixels, clipped to the image. In float32, or float64 if the outputs are.

        Raises:
            `FloatingPointError`: For outputs that are not finite, which the threshold would drop.
        """
        top_k = self.max_detections if top_k is None else top_k
        if top_k < 1:
            raise ValueError(f"`top_k` (or `max_detections`) must be at least 1, got {top_k}.")
        dtype = torch.promote_types(outputs.logits.dtype, torch.float32)
        logits, pred_boxes = outputs.logits.to(dtype), outputs.pred_boxes.to(dtype)
        if not (logits.isfinite().all() and pred_boxes.isfinite().all()):
            raise FloatingPointError(
                f"The detections are not finite; the model's outputs are {outputs.logits.dtype}. In float16 large "
                "activations overflow: load the model in bfloat16 or float32. Else `pixel_values` or weights are not "
                "finite."
            )
        num_labels = logits.shape[-1]
        scores = logits.sigmoid().flatten(1)
        scores, indices = scores.topk(min(top_k, scores.shape[1]), dim=1)
        queries, labels = indices // num_labels, indices % num_labels
        boxes = pred_boxes.gather(1, queries[..., None].expand(-1, -1, 4))
        boxes = boxes_in_pixels(boxes, target_sizes)
        return [
            {"scores": own_scores[kept], "labels": own_labels[kept], "boxes": own_boxes[kept]}
            for own_scores, own_labels, own_boxes, kept in zip(scores, labels, boxes, scores > threshold)
        ]


class DinoDetrImageProcessorPil(DinoDetrProcessing, PilBackend):
    """As [`DinoDetrImageProcessor`], without torchvision."""
