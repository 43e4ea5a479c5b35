# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""Image processors of the two-stage detectors."""

import math
import operator
import reprlib

import numpy as np
import torch
from transformers.image_processing_backends import PilBackend
from transformers.image_processing_base import BatchFeature
from transformers.image_transforms import center_to_corners_format, corners_to_center_format
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, PILImageResampling, SizeDict
from transformers.processing_utils import ImagesKwargs

from ..coco_annotations import check_annotation, check_segmentation, decode_mask
from ..images import EightBitImages
from ..resizing import resize_bilinear, target_size
from .boxes import paste_masks


class MaskRCNNImageProcessorKwargs(ImagesKwargs, total=False):
    r"""
    size_divisor (`int`, *optional*, defaults to 32):
        Pad height and width of a batch to multiples of this number.
    category_ids (`list[int]`, *optional*):
        Ids of the categories in annotations, in the order of the classes of the model. Without it an id is a class
        index.
    """

    size_divisor: int
    category_ids: list[int] | None


class MaskRCNNProcessing(EightBitImages):
    """The code of both backends."""

    valid_kwargs = MaskRCNNImageProcessorKwargs
    model_input_names = ["pixel_values", "pixel_mask"]
    resample = PILImageResampling.BILINEAR
    image_mean = IMAGENET_DEFAULT_MEAN
    image_std = IMAGENET_DEFAULT_STD
    size = {"shortest_edge": 800, "longest_edge": 1333}
    default_to_square = False
    do_convert_rgb = True
    do_resize = True
    do_rescale = True
    do_normalize = True
    do_pad = True
    size_divisor = 32
    category_ids = None

    def preprocess(self, images, annotations=None, return_segmentation_masks: bool = False, **kwargs) -> BatchFeature:
        """
        Args:
            images:
                One or more, of any sizes.
            annotations (`dict` or `list[dict]`, *optional*):
                For each image, as in files of COCO, `image_id` (a number) and `annotations`: dictionaries with `bbox`
                (left, top, width, height in pixels), `category_id` and, for masks, `segmentation` (polygons or run
                lengths). Boxes are cut at the border of the image. Crowds, boxes of less than a pixel and what has
                `ignore` are left out, as in the original: where they are, background is learned.
            return_segmentation_masks (`bool`, *optional*, defaults to `False`):
                Whether labels get the masks of the annotations.

        Returns:
            [`BatchFeature`]: `pixel_values`, `pixel_mask` and, with annotations, `labels` as
            [`MaskRCNNForObjectDetection`] takes them, with `image_id`, `orig_size` and `size` (height, width).
        """
        return super().preprocess(images, annotations, return_segmentation_masks, **kwargs)

    def _preprocess(
        self,
        images,
        annotations,
        return_segmentation_masks,
        do_resize,
        size,
        do_pad,
        pad_size,
        size_divisor,
        category_ids,
        return_tensors,
        **kwargs,
    ):
        annotations = [annotations] if isinstance(annotations, dict) else annotations
        if annotations is not None and len(annotations) != len(images):
            raise ValueError(
                f"`annotations` must have an entry for each of the {len(images)} images: {len(annotations)}."
            )
        original_sizes = [image.shape[-2:] for image in images]
        if do_resize:
            images = [_resize(image, size) for image in images]
        sizes = [image.shape[-2:] for image in images]
        if do_pad and pad_size is None:
            pad_size = SizeDict(
                **{
                    name: math.ceil(max(sides) / size_divisor) * size_divisor
                    for name, sides in zip(("height", "width"), zip(*sizes))
                }
            )
        kwargs |= {"size": size, "do_pad": do_pad, "pad_size": pad_size, "return_tensors": return_tensors}
        batch = super()._preprocess(images, do_resize=False, **kwargs)
        if do_pad:
            masks = np.zeros((len(sizes), pad_size.height, pad_size.width), dtype=np.int64)
            for mask, (height, width) in zip(masks, sizes):
                mask[:height, :width] = 1
            batch.update(BatchFeature({"pixel_mask": list(masks)}, tensor_type=return_tensors))
        if annotations is not None:
            batch["labels"] = [
                BatchFeature(
                    _labels(annotation, original_size, size, category_ids, return_segmentation_masks),
                    tensor_type=return_tensors,
                )
                for annotation, original_size, size in zip(annotations, original_sizes, sizes)
            ]
        return batch

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
        boxes = center_to_corners_format(outputs.pred_boxes)
        if target_sizes is not None:
            sizes = [torch.as_tensor(size, device=boxes.device, dtype=boxes.dtype) for size in target_sizes]
            sizes = torch.stack(sizes) if sizes else boxes.new_zeros(0, 2)
            if sizes.shape != (len(boxes), 2):
                raise ValueError(
                    f"`target_sizes` must have a height and a width for each of the {len(boxes)} images, got shape "
                    f"{tuple(sizes.shape)}."
                )
            boxes = boxes * sizes.flip(1).repeat(1, 2)[:, None]
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


def _resize(image, size: SizeDict):
    """A tensor or array (channels, height, width) at the processor's size."""
    height, width = target_size(image.shape[-2], image.shape[-1], size)
    if isinstance(image, np.ndarray):
        return resize_bilinear(torch.from_numpy(np.ascontiguousarray(image)), height, width).numpy()
    return resize_bilinear(image, height, width)


def _labels(
    annotation: dict, original_size: tuple[int, int], size: tuple[int, int], category_ids, with_masks: bool
) -> dict[str, torch.Tensor]:
    """Annotations of an image in the format of COCO -> labels of the model."""
    if "image_id" not in annotation or not isinstance(annotation.get("annotations"), list | tuple):
        raise ValueError(
            "`annotations` must be dictionaries with `image_id` and `annotations`, a list, as in files of COCO, got "
            f"{reprlib.repr(annotation)}."
        )
    try:
        image_id = operator.index(annotation["image_id"])
    except TypeError as error:
        raise ValueError(
            f"`image_id` must be a whole number, got {annotation['image_id']!r}. Give the images numbers, such as "
            "their positions in a list of the names."
        ) from error
    height, width = original_size
    class_of = None if category_ids is None else {category: idx for idx, category in enumerate(category_ids)}
    boxes, classes, masks = [], [], []
    for entry in annotation["annotations"]:
        entry = check_annotation(entry, image_id)
        left, top, box_width, box_height = entry["bbox"]
        corners = (max(left, 0), max(top, 0), min(left + box_width, width), min(top + box_height, height))
        inside = corners[2] > corners[0] and corners[3] > corners[1]
        is_object = not (entry["iscrowd"] or entry["ignore"])
        if not is_object or not inside or box_width < 1 or box_height < 1 or entry.get("area", 1) <= 0:
            continue
        category = entry["category_id"]
        if class_of is not None and category not in class_of:
            raise ValueError(
                f"Image {image_id} has an annotation of category {category!r}, which is not in "
                "`category_ids`. Add it there, or leave the annotation out."
            )
        boxes.append(corners)
        classes.append(category if class_of is None else class_of[category])
        if with_masks:
            masks.append(decode_mask(check_segmentation(entry, image_id, height, width), height, width))
    boxes = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    labels = {
        "image_id": torch.tensor([image_id]),
        "class_labels": torch.tensor(classes, dtype=torch.int64),
        "boxes": corners_to_center_format(boxes / torch.tensor([width, height, width, height])),
        "orig_size": torch.tensor(tuple(original_size)),
        "size": torch.tensor(tuple(size)),
    }
    if with_masks:
        masks = torch.from_numpy(np.array(masks, dtype=np.uint8).reshape(-1, 1, height, width))
        if len(masks):  # the nearest pixels
            masks = torch.nn.functional.interpolate(masks, size=tuple(size))
        else:
            masks = masks.new_zeros((0, 1, *size))
        labels["masks"] = masks[:, 0] > 0
    return labels


class MaskRCNNImageProcessorPil(MaskRCNNProcessing, PilBackend):
    """As [`MaskRCNNImageProcessor`], without torchvision."""
