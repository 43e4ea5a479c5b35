# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""
Arithmetic on boxes of the two-stage detectors. Boxes are (left, top, right, bottom) in pixels of the model's input,
without rounding; an area is width times height.
"""

import math
from collections.abc import Sequence

import torch


# Widths and heights change by at most this factor (`wh_ratio_clip` of the original).
MAX_LOG_SCALE = abs(math.log(16 / 1000))


def anchor_boxes(
    height: int, width: int, stride: int, scale: float, ratios: Sequence[float], device=None, dtype=torch.float32
) -> torch.Tensor:
    """
    Anchors of one feature map (`AnchorGenerator` of mmdetection): at each position one for each of `ratios` (height
    over width), of area `(scale * stride) ** 2`, centred on the position times `stride`.

    Returns:
        `torch.Tensor` of shape `(height * width * len(ratios), 4)`, ordered by row, column, ratio.
    """
    roots = torch.tensor(ratios, device=device, dtype=dtype).sqrt()
    half_sides = torch.stack((scale * stride / roots, scale * stride * roots), dim=1) / 2  # (ratios, 2)
    x = torch.arange(width, device=device, dtype=dtype) * stride
    y = torch.arange(height, device=device, dtype=dtype) * stride
    centers = torch.stack((x.expand(height, width), y[:, None].expand(height, width)), dim=-1)[:, :, None]
    return torch.cat((centers - half_sides, centers + half_sides), dim=-1).reshape(-1, 4)


def encode_boxes(boxes: torch.Tensor, targets: torch.Tensor, stds: Sequence[float]) -> torch.Tensor:
    """Deltas (dx, dy, log width, log height, divided by `stds`) that turn `boxes` into `targets`, both (n, 4)."""
    sizes, target_sizes = boxes[:, 2:] - boxes[:, :2], targets[:, 2:] - targets[:, :2]
    shifts = (targets[:, :2] + targets[:, 2:] - boxes[:, :2] - boxes[:, 2:]) / 2
    deltas = torch.cat((shifts / sizes, (target_sizes / sizes).log()), dim=1)
    if set(stds) == {1.0}:  # no need to wait for a copy to the device
        return deltas
    return deltas / deltas.new_tensor(stds)


def decode_boxes(boxes: torch.Tensor, deltas: torch.Tensor, stds: Sequence[float] | None = None) -> torch.Tensor:
    """
    The inverse of [`encode_boxes`] (`DeltaXYWHBBoxCoder` of mmdetection), for `boxes` (..., 4) and `deltas` (..., 4)
    that broadcast. Without `stds` they are 1.
    """
    if stds is not None:
        deltas = deltas * deltas.new_tensor(stds)
    sizes = boxes[..., 2:] - boxes[..., :2]
    centers = (boxes[..., :2] + boxes[..., 2:]) / 2 + deltas[..., :2] * sizes
    half_sizes = sizes * deltas[..., 2:].clamp(-MAX_LOG_SCALE, MAX_LOG_SCALE).exp() / 2
    return torch.cat((centers - half_sizes, centers + half_sizes), dim=-1)


def clip_boxes(boxes: torch.Tensor, sizes: torch.Tensor) -> torch.Tensor:
    """`boxes` (..., 4) clipped to images of `sizes` (..., 2), height and width, which broadcast."""
    limits = sizes.flip(-1).to(boxes.dtype)
    return torch.minimum(boxes.clamp(min=0), torch.cat((limits, limits), dim=-1))


def paste_masks(masks: torch.Tensor, boxes: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """
    Masks of boxes as masks of the whole image (`_do_paste_mask` of mmdetection): bilinear sampling at the centres of
    the image's pixels, 0 outside. A box without width or height gets the middle of its mask everywhere along it.

    Args:
        masks (`torch.Tensor` of shape `(n, mask_height, mask_width)`):
            Floating point.
        boxes (`torch.Tensor` of shape `(n, 4)`):
            In pixels of the image.
        height, width (`int`):
            Size of the image.

    Returns:
        `torch.Tensor` of shape `(n, height, width)`.
    """
    weights = []
    for start, end, size, mask_size in (
        (boxes[:, 1], boxes[:, 3], height, masks.shape[1]),
        (boxes[:, 0], boxes[:, 2], width, masks.shape[2]),
    ):
        centers = torch.arange(size, device=boxes.device, dtype=boxes.dtype) + 0.5
        fraction = (centers - start[:, None]) / (end - start)[:, None]  # of the box, (n, size)
        fraction = fraction.masked_fill(fraction.isinf(), 0.5)
        positions = fraction * mask_size - 0.5
        # Bilinear sampling of a box that is parallel to the axes is a product of one matrix for each axis.
        distances = positions[..., None] - torch.arange(mask_size, device=boxes.device, dtype=boxes.dtype)
        weights.append((1 - distances.abs()).clamp(min=0).nan_to_num(0).to(masks.dtype))
    return weights[0] @ masks @ weights[1].transpose(1, 2)
