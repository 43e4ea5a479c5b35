# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""Test-time procedure of the official segmentation models: sliding windows, several scales, mirrored images."""

from collections.abc import Sequence

import torch
from torch import nn
from transformers.image_utils import ImageInput, get_image_size, is_pil_image, load_image, to_numpy_array

from .image_processing_segmentation import semantic_scores


@torch.inference_mode()
def segment_image(
    model: nn.Module, image_processor, image: ImageInput | str, scales: Sequence[float] = (1.0,), flip: bool = False
) -> torch.Tensor:
    """
    Class probabilities of every pixel of one image, as the original's evaluation computes them (`inference` of
    mmsegmentation): for each scale the scores at the size of the model's input, resized to the size of the image, then
    softmax, averaged over the scales and mirror images. Nothing of one scale is kept while the next is computed.

    Args:
        model (`nn.Module`):
            A model for semantic segmentation, or Mask2Former (whose scores the original takes for logits).
        image_processor ([`InternImageSegmentationImageProcessor`]):
            That of the model. If it has a `window_size`, windows of that size are moved over the input.
        image (`PIL.Image.Image`, `np.ndarray`, `torch.Tensor` or `str`):
            Of any size; a string is a file or a URL.
        scales (`Sequence[float]`, *optional*, defaults to `(1.0,)`):
            Factors on the `size` of the image processor.
        flip (`bool`, *optional*, defaults to `False`):
            Also take the mirror image, for each scale.

    Returns:
        `torch.Tensor` of shape `(num_labels, height, width)`, float32, on the model's device. `argmax(0)` is the map.

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
    if len(scales) == 0 or min(scales) <= 0:
        raise ValueError(f"`scales` must be one or more factors above 0, got {scales}.")
    if isinstance(image, str):
        image = load_image(image)
    if is_pil_image(image):
        # Channels first, or images of 1 or 3 pixels in height would be taken for that.
        image = to_numpy_array(image.convert("RGB")).transpose(2, 0, 1)
    image = to_numpy_array(image)
    size = get_image_size(image) if image.ndim == 3 else image.shape
    parameter = next(model.parameters())
    total = 0.0
    for scale in scales:
        scaled = {name: int(side * scale) for name, side in dict(image_processor.size).items() if side}
        pixel_values = image_processor(image, size=scaled, return_tensors="pt")["pixel_values"]
        pixel_values = pixel_values.to(parameter.device, parameter.dtype)
        for mirrored in (False, True) if flip else (False,):
            scores = window_scores(
                model,
                pixel_values.flip(-1) if mirrored else pixel_values,
                image_processor.window_size,
                image_processor.window_stride,
            )
            scores = nn.functional.interpolate(scores, size=size, mode="bilinear", align_corners=False)[0]
            scores = scores.softmax(dim=0)
            total = (scores.flip(-1) if mirrored else scores).add_(total)
            del scores
    return total / (len(scales) * (1 + flip))


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
