# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""One image in several scales and mirrored, as inputs of a model: test-time augmentation."""

import io
import math
from collections.abc import Iterator, Sequence

import numpy as np
from huggingface_hub import get_session
from PIL.Image import Image
from torch import nn
from transformers.image_processing_base import BatchFeature
from transformers.image_utils import ImageInput, to_numpy_array

from .images import decode_image, eight_bit_image


def load_array(image: ImageInput | str) -> np.ndarray:
    """An image as an array for image processors; a string is a file or a URL. Images of Pillow get channels first."""
    if isinstance(image, str):
        is_url = image.startswith(("http://", "https://"))
        source = io.BytesIO(get_session().get(image).raise_for_status().content) if is_url else image
        image = decode_image(source, f"The image file {image}")
    if isinstance(image, Image):
        # Channels first, or images of 1 or 3 pixels in height would be taken for that.
        image = to_numpy_array(eight_bit_image(image).convert("RGB")).transpose(2, 0, 1)
    return to_numpy_array(image)


def scaled_inputs(
    model: nn.Module, image_processor, image: np.ndarray, scales: Sequence[float], flip: bool
) -> Iterator[tuple[BatchFeature, tuple[int, int], bool]]:
    """
    Inputs of `model` for each scale and, with `flip`, its mirror image.

    Args:
        model (`nn.Module`):
            Its device and dtype are those of the inputs.
        image_processor:
            That of the model, which makes one input of the whole image.
        image (`np.ndarray`):
            As [`load_array`] returns it.
        scales (`Sequence[float]`):
            Factors on the `size` of the image processor.
        flip (`bool`):
            Also take the mirror image, for each scale.

    Yields:
        `tuple`: inputs; height and width of the image in them, without padding; whether it is mirrored. The inputs
        are changed in place afterwards.

    Raises:
        `ValueError`: for no scale, a scale that is not above 0, and an image processor that crops or splits images.
    """
    if len(scales) == 0 or not all(0 < scale < math.inf for scale in scales):
        raise ValueError(f"`scales` must be one or more factors above 0, got {scales}.")
    parameter = next(model.parameters())
    for scale in scales:
        scaled = {name: int(side * scale) for name, side in dict(image_processor.size).items() if side}
        inputs = image_processor(image, size=scaled, return_tensors="pt").to(parameter.device, parameter.dtype)
        pixel_values = inputs["pixel_values"]
        if getattr(image_processor, "do_center_crop", False) or len(pixel_values) != 1:
            raise ValueError(
                f"`image_processor` ({type(image_processor).__name__}) must make one input of the whole image, not "
                f"{len(pixel_values)} crops: choose another one, or set its `do_center_crop=False`."
            )
        height, width = pixel_values.shape[-2:]
        if "pixel_mask" in inputs:  # the padding is at the right and at the bottom
            height, width = (int(inputs["pixel_mask"][0].any(dim=dim).sum()) for dim in (1, 0))
        yield inputs, (height, width), False
        if flip:
            pixel_values[..., :width] = pixel_values[..., :width].flip(-1)
            yield inputs, (height, width), True
