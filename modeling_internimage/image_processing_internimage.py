# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""The official preprocessing, as an image processor that transformers already has."""

from collections.abc import Sequence
from numbers import Integral

from transformers import CLIPImageProcessorPil
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from transformers.utils import is_torchvision_available


IMAGE_PROCESSOR_CLASSES: dict[str, type] = {"pil": CLIPImageProcessorPil}
if is_torchvision_available():  # else importing the class warns
    from transformers import CLIPImageProcessor

    IMAGE_PROCESSOR_CLASSES["torchvision"] = CLIPImageProcessor


def create_image_processor(image_size: int | Sequence[int] = 224, backend: str | None = None):
    """
    The image processor of the official checkpoints, for models that are trained from scratch: shorter side to
    `image_size` (bicubic), centre crop, scale to [0, 1], ImageNet mean and standard deviation. A saved model brings
    its own: use `AutoImageProcessor.from_pretrained`.

    Args:
        image_size (`int` or `Sequence[int]`, *optional*, defaults to 224):
            Side of the square output in pixels, usually `config.image_size`. Or height and width: where these differ,
            images are resized to them whole, without keeping their proportions.
        backend (`str`, *optional*):
            `"torchvision"` or `"pil"`. Defaults to torchvision where it is installed.
    """
    sides = list(image_size) if isinstance(image_size, Sequence) else [image_size] * 2
    if len(sides) != 2 or not all(isinstance(side, Integral) and side > 0 for side in sides):
        raise ValueError(f"`image_size` must be one number of pixels, or a height and a width, got {image_size!r}.")
    output_size = dict(zip(("height", "width"), sides))
    if backend is None:
        backend = "torchvision" if is_torchvision_available() else "pil"
    if backend not in IMAGE_PROCESSOR_CLASSES:
        raise ValueError(f"Unknown `backend={backend!r}`. Choose one of {list(IMAGE_PROCESSOR_CLASSES)}.")
    return IMAGE_PROCESSOR_CLASSES[backend](
        size={"shortest_edge": sides[0]} if sides[0] == sides[1] else output_size,
        crop_size=output_size,
        image_mean=IMAGENET_DEFAULT_MEAN,
        image_std=IMAGENET_DEFAULT_STD,
    )
