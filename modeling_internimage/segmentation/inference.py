# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""Test-time procedure of the official segmentation models: sliding windows, several scales, mirrored images."""

from collections.abc import Sequence

import torch
from torch import nn
from transformers.image_utils import ImageInput, get_image_size

from ..multi_scale import load_array, scaled_inputs
from .image_processing_pil_segmentation import semantic_scores


# Probabilities are computed in this many bands of rows, or in fewer bands of at least this many numbers.
NUM_BANDS = 32
MIN_BAND = 2**16


@torch.inference_mode()
def segment_image(
    model: nn.Module, image_processor, image: ImageInput | str, scales: Sequence[float] = (1.0,), flip: bool = False
) -> torch.Tensor:
    """
    Class probabilities of every pixel of one image, as the original's evaluation computes them (`inference` of
    mmsegmentation): for each scale the scores at the size of the model's input, resized to the size of the image, then
    softmax, averaged over the scales and mirror images. Beside the model it needs the memory of the result and of one
    map of scores at the size of the model's input.

    Args:
        model (`nn.Module`):
            A model for semantic segmentation, or Mask2Former (whose scores the original takes for logits).
        image_processor ([`InternImageSegmentationImageProcessor`]):
            That of the model, also one of transformers if it resizes the whole image (and pads it, with a
            `pixel_mask`). If it has a `window_size`, windows of that size are moved over the input.
        image (`PIL.Image.Image`, `np.ndarray`, `torch.Tensor` or `str`):
            Of any size up to `PIL.Image.MAX_IMAGE_PIXELS`; a string is a file or a URL. Grey values of 16 bits are
            divided by 256.
        scales (`Sequence[float]`, *optional*, defaults to `(1.0,)`):
            Factors on the `size` of the image processor.
        flip (`bool`, *optional*, defaults to `False`):
            Also take the mirror image, for each scale.

    Returns:
        `torch.Tensor` of shape `(num_labels, height, width)`, float32, on the model's device. `argmax(0)` is the map.

    Raises:
        `ValueError`: for an image that cannot be decoded, an image processor that crops or splits images, and a model
            with a single class, which would have the probability 1 everywhere.

    Example:

    ```python
    >>> import torch
    >>> from modeling_internimage import InternImageSegmentationImageProcessorPil, segment_image
    >>> from modeling_internimage import SegformerHeadConfig, SegformerHeadForSemanticSegmentation

    >>> model = SegformerHeadForSemanticSegmentation(SegformerHeadConfig(num_labels=19)).eval()
    >>> image_processor = InternImageSegmentationImageProcessorPil(size={"shortest_edge": 64, "longest_edge": 128})
    >>> image = torch.randint(0, 256, (3, 50, 70), dtype=torch.uint8)
    >>> list(segment_image(model, image_processor, image, scales=(1.0, 1.5), flip=True).shape)
    [19, 50, 70]
    ```"""
    image = load_array(image)
    size = get_image_size(image) if image.ndim == 3 else image.shape
    total = None
    for inputs, (height, width), mirrored in scaled_inputs(model, image_processor, image, scales, flip):
        scores = window_scores(
            model,
            inputs["pixel_values"],
            getattr(image_processor, "window_size", None),
            getattr(image_processor, "window_stride", None),
        )
        total = _add_probabilities(total, scores[0, :, :height, :width], size, mirrored)
        del scores
    return total.div_(len(scales) * (1 + flip))


def _add_probabilities(
    total: torch.Tensor | None, scores: torch.Tensor, size: tuple[int, int], mirrored: bool
) -> torch.Tensor:
    """`total` (num_labels, height, width) plus the softmax of `scores`, resized. In place, also that of `scores`."""
    if len(scores) == 1:
        raise ValueError(
            "The model has a single class, to which every pixel would belong: it must have two or more, such as the "
            "class and the background."
        )
    is_first = total is None
    if is_first:
        total = scores if scores.shape[-2:] == size else scores.new_empty((len(scores), *size))
    step = max(-(-size[0] // NUM_BANDS), MIN_BAND // (len(scores) * size[1]))
    for top in range(0, size[0], step):
        band = total[:, top : top + step]
        probabilities = _resize_rows(scores, size, top, top + band.shape[1]).softmax(dim=0)
        probabilities = probabilities.flip(-1) if mirrored else probabilities
        band.copy_(probabilities) if is_first else band.add_(probabilities)
    return total


def _resize_rows(scores: torch.Tensor, size: tuple[int, int], top: int, bottom: int) -> torch.Tensor:
    """
    The rows from `top` to `bottom` of `scores` (num_labels, height, width) after bilinear resizing to `size`, as
    `interpolate` computes them: columns, then rows.
    """
    height = scores.shape[1]
    if scores.shape[-2:] == size:
        return scores[:, top:bottom]
    # Rounded where its kernels round: the scale, and the position after a fused multiplication and addition.
    scale = torch.tensor(height, dtype=torch.float32) / size[0]
    position = ((torch.arange(top, bottom) + 0.5).double() * scale.double() - 0.5).float().clamp(min=0)
    above = position.long()
    below = (above + 1).clamp(max=height - 1)
    weight = (position - above)[:, None].to(scores.device)
    first, last = int(above[0]), int(below[-1]) + 1
    rows = nn.functional.interpolate(
        scores[None, :, first:last], size=(last - first, size[1]), mode="bilinear", align_corners=False
    )[0]
    band = rows[:, (above - first).to(scores.device)].mul_(1 - weight)
    return band.addcmul_(rows[:, (below - first).to(scores.device)], weight)


def window_scores(
    model: nn.Module,
    pixel_values: torch.Tensor,
    window_size: dict[str, int] | None,
    window_stride: dict[str, int] | None,
) -> torch.Tensor:
    """
    Scores of `model` at the size of its input, averaged where windows overlap (`slide_inference` of mmsegmentation).
    Holds one window at a time. The last window of each row and column is moved back inside the image.

    Args:
        model (`nn.Module`):
            As for [`segment_image`].
        pixel_values (`torch.Tensor` of shape `(batch_size, num_channels, height, width)`):
            Normalised images.
        window_size, window_stride (`dict[str, int]`, *optional*):
            `height` and `width` in pixels. Without a size the whole images are one window; without a stride windows
            lie side by side.

    Returns:
        `torch.Tensor` of shape `(batch_size, num_labels, height, width)`, float32.

    Raises:
        `ValueError`: if windows leave pixels out.
    """
    if window_size is None:
        return semantic_scores(model(pixel_values), pixel_values.shape[-2:]).float()
    window_stride = window_stride or window_size
    height, width = pixel_values.shape[-2:]
    total, count = None, pixel_values.new_zeros((height, width), dtype=torch.float32)
    for top, bottom in _windows(height, window_size["height"], window_stride["height"]):
        for left, right in _windows(width, window_size["width"], window_stride["width"]):
            window = pixel_values[..., top:bottom, left:right]
            scores = semantic_scores(model(window), window.shape[-2:]).float()
            if total is None:
                total = scores.new_zeros((*scores.shape[:2], height, width))
            total[..., top:bottom, left:right] += scores
            count[top:bottom, left:right] += 1
    return total.div_(count)


def _windows(size: int, window: int, stride: int) -> list[tuple[int, int]]:
    """Start and end of each window along one side."""
    if not 0 < stride <= window:
        raise ValueError(
            f"`window_stride` must be above 0 and at most `window_size`, got {stride} and {window}: every pixel has "
            "to be in a window."
        )
    number = max(size - window + stride - 1, 0) // stride + 1
    ends = [min(idx * stride + window, size) for idx in range(number)]
    return [(max(end - window, 0), end) for end in ends]
