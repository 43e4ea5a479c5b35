# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""What every detector does with its inputs before it computes detections and losses."""

from collections.abc import Sequence

import torch
from transformers.image_transforms import center_to_corners_format


# Boxes may reach this fraction of the image beyond it, because of rounding in half precision.
BOX_TOLERANCE = 0.01


def check_not_traced(model: torch.nn.Module):
    """Raise a `RuntimeError` in `torch.jit.trace`, which would keep the sizes and numbers of regions of one input."""
    if torch.jit.is_tracing():
        raise RuntimeError(
            f"`torch.jit.trace` does not support `{type(model).__name__}`. Use `torch.export.export`, or "
            "`modeling_internimage.export.export_onnx` for ONNX."
        )


def get_image_sizes(pixel_values: torch.Tensor, pixel_mask: torch.Tensor | None) -> torch.Tensor:
    """
    Height and width of each image without padding, (batch_size, 2), from `pixel_mask` (batch_size, height, width).

    Raises:
        `ValueError`: if `pixel_mask` has another shape.
    """
    if pixel_mask is None:
        return torch.tensor(pixel_values.shape[2:], device=pixel_values.device).expand(pixel_values.shape[0], 2)
    shape = pixel_values.shape[:1] + pixel_values.shape[2:]
    if not isinstance(pixel_mask, torch.Tensor) or pixel_mask.shape != shape:
        raise ValueError(
            f"`pixel_mask` must have the size of `pixel_values` without channels: a `torch.Tensor` of shape "
            f"{tuple(shape)}, got a `{type(pixel_mask).__name__}` of {getattr(pixel_mask, 'shape', 'no shape')}."
        )
    is_image = pixel_mask > 0
    return torch.stack((is_image.any(dim=2).sum(dim=1), is_image.any(dim=1).sum(dim=1)), dim=1)


def prepare_targets(
    labels: list[dict[str, torch.Tensor]],
    num_labels: int,
    image_sizes: torch.Tensor,
    padded_size: Sequence[int],
    with_masks: bool = False,
) -> list[dict[str, torch.Tensor]]:
    """
    Labels with boxes (left, top, right, bottom) in pixels, without empty boxes.

    Args:
        labels (`list[dict[str, torch.Tensor]]`):
            As in the `forward` of the detectors.
        num_labels (`int`):
            Number of classes.
        image_sizes (`torch.Tensor` of shape `(batch_size, 2)`):
            Height and width of each image without padding.
        padded_size (`Sequence[int]`):
            Height and width of the batch.
        with_masks (`bool`, *optional*, defaults to `False`):
            Whether `masks` are needed.

    Raises:
        `ValueError`: if labels do not fit each other, the images or the model.
    """
    _check_labels(labels, num_labels, image_sizes, padded_size, with_masks)
    targets = []
    for label, size in zip(labels, image_sizes):
        boxes = label["boxes"].reshape(-1, 4)
        boxes = center_to_corners_format(boxes.to(torch.promote_types(boxes.dtype, torch.float32)))
        limits = size.flip(0).repeat(2)
        boxes = torch.minimum((boxes * limits).clamp(min=0), limits.to(boxes.dtype))
        kept = (boxes[:, 2:] > boxes[:, :2]).all(dim=1)
        target = {"class_labels": label["class_labels"][kept], "boxes": boxes[kept]}
        if with_masks:
            target["masks"] = label["masks"][kept]
        targets.append(target)
    return targets


def _check_labels(labels, num_labels: int, image_sizes: torch.Tensor, padded_size: Sequence[int], with_masks: bool):
    if len(labels) != len(image_sizes):
        raise ValueError(f"`labels` must have an entry for each of the {len(image_sizes)} images: {len(labels)}.")
    if len(labels) == 0:
        raise ValueError("There is no loss of a batch without images. Leave out `labels`, or the batch.")
    for idx, (label, size) in enumerate(zip(labels, image_sizes.tolist())):
        num_classes, num_objects = len(label["class_labels"]), len(label["boxes"].reshape(-1, 4))
        if num_classes != num_objects:
            raise ValueError(f"`labels` have {num_classes} `class_labels` and {num_objects} `boxes` for an image.")
        if not with_masks:
            continue
        if "masks" not in label:
            raise ValueError(
                "`labels` have no `masks`, which the mask heads are trained with. Call the image processor "
                "with `return_segmentation_masks=True`, or load the model with `use_mask_head=False`."
            )
        shapes = [(num_objects, *padded_size), (num_objects, *size)]
        if tuple(label["masks"].shape) not in shapes:
            raise ValueError(
                f"`masks` of image {idx} must have the shape {shapes[0]}, one for each box in pixels of "
                f"`pixel_values`, or {shapes[1]} without padding, got {tuple(label['masks'].shape)}. The image "
                "processor makes such masks of `annotations`, and `pixel_mask`, which says what is padding."
            )
    # One look at the values of all images: each look makes the CPU wait for an accelerator.
    classes = torch.cat([label["class_labels"] for label in labels])
    boxes = torch.cat([label["boxes"].reshape(-1, 4) for label in labels]).float()
    corners = center_to_corners_format(boxes)
    is_class = (classes >= 0) & (classes < num_labels)
    is_box = ((corners >= -BOX_TOLERANCE) & (corners <= 1 + BOX_TOLERANCE)).all(dim=1) & (boxes[:, 2:] >= 0).all(dim=1)
    if (is_class & is_box).all():
        return
    if not is_class.all():
        raise ValueError(
            f"`class_labels` must be at least 0 and below `num_labels={num_labels}`, got "
            f"{classes.min().item()} to {classes.max().item()}. Ids of categories with gaps become class "
            "indices in the image processor, with `category_ids`."
        )
    raise ValueError(
        "`boxes` must be centre x, centre y, width and height relative to the size of the image, inside it, got "
        f"{boxes[~is_box][0].tolist()}. The image processor makes such boxes of `annotations` in pixels, and cuts "
        "those that reach beyond the image."
    )
