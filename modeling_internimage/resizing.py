# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""The resizing of the original segmentation and detection pipelines (OpenCV's, through mmcv)."""

import math

import torch
from PIL import Image


# Weights of the bilinear interpolation are integers, in units of 2**-11.
WEIGHT_BITS = 11


def keep_ratio_size(height: int, width: int, shortest_edge: float, longest_edge: float) -> tuple[int, int]:
    """
    Height and width of the largest image of the same proportions whose shorter side is at most `shortest_edge` and
    longer side at most `longest_edge` pixels (`mmcv.rescale_size`). Never below 1.
    """
    factor = min(longest_edge / max(height, width), shortest_edge / min(height, width))
    return max(int(height * factor + 0.5), 1), max(int(width * factor + 0.5), 1)


def target_size(height: int, width: int, size) -> tuple[int, int]:
    """
    Height and width of an image at the `size` of an image processor, a `SizeDict`.

    An edge that is not given has no limit.

    Raises:
        `ValueError`: if `size` has neither an edge nor height and width, or one below 1, or for more pixels than
            `PIL.Image.MAX_IMAGE_PIXELS`.
    """
    sides = {name: side for name, side in dict(size).items() if side is not None}
    is_positive = all(side > 0 for side in sides.values())
    if is_positive and (size.shortest_edge or size.longest_edge):
        resized = keep_ratio_size(height, width, size.shortest_edge or math.inf, size.longest_edge or math.inf)
    elif is_positive and size.height and size.width:
        resized = size.height, size.width
    else:
        raise ValueError(
            f"`size` must have `shortest_edge`, `longest_edge` or both, or `height` and `width`, above 0, got {sides}."
        )
    check_num_pixels(resized[0], resized[1], f"An image of {width}x{height} pixels, resized,")
    return resized


def check_num_pixels(height: int, width: int, subject: str):
    """
    Raise a `ValueError` if `subject`, as the message calls it, has more pixels than `PIL.Image.MAX_IMAGE_PIXELS`, if
    there is such a limit. (Pillow itself only warns up to twice as many.)
    """
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and height * width > limit:
        raise ValueError(
            f"{subject} has {width}x{height} pixels, more than the {limit} of `PIL.Image.MAX_IMAGE_PIXELS`: cut the "
            "image into parts or make it smaller. Or raise the limit in Python, if memory suffices."
        )


def resize_bilinear(image: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """
    Bilinear resizing without antialiasing. Bytes are computed in the integer arithmetic of OpenCV's `INTER_LINEAR`, to
    the last bit: rows first, in units of 2**-11, then columns with rounding.

    Args:
        image (`torch.Tensor` of shape `(..., height, width)`):
            uint8 or floating point.
        height, width (`int`):
            Of the result, in pixels.
    """
    if image.shape[-2:] == (height, width):
        return image
    if image.is_floating_point():
        batch = image.reshape(-1, 1, *image.shape[-2:])
        batch = torch.nn.functional.interpolate(batch, size=(height, width), mode="bilinear", align_corners=False)
        return batch.reshape(*image.shape[:-2], height, width)
    if image.dtype != torch.uint8:
        raise ValueError(
            f"`image` must be uint8 or floating point, got {image.dtype}. Convert images of more bits to one of these."
        )
    left, right, right_weight = _neighbours(image.shape[-1], width, image.device)
    above, below, below_weight = _neighbours(image.shape[-2], height, image.device)
    one = 1 << WEIGHT_BITS
    rows = image[..., left].int() * (one - right_weight) + image[..., right].int() * right_weight
    rows = rows >> 4
    below_weight = below_weight[:, None]
    upper = (rows[..., above, :] * (one - below_weight)) >> 16
    lower = (rows[..., below, :] * below_weight) >> 16
    return ((upper + lower + 2) >> 2).to(torch.uint8)


def _neighbours(size: int, new_size: int, device) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """For each new pixel, the two old ones it lies between and the integer weight of the second."""
    # float32 of float64 positions, as OpenCV has them.
    position = ((torch.arange(new_size, dtype=torch.float64) + 0.5) * (1 / (new_size / size)) - 0.5).float()
    first = position.floor()
    weight = ((position - first) * (1 << WEIGHT_BITS)).round().int()  # to even, as `cvRound`
    first = first.long()
    # Outside, both are the same pixel. (Their weights still matter: each product is rounded down.)
    return first.clamp(0, size - 1).to(device), (first + 1).clamp(0, size - 1).to(device), weight.to(device)
