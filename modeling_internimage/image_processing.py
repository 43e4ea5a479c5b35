# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""The official preprocessing, as an image processor that transformers already has."""

from transformers import CLIPImageProcessorPil
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from transformers.utils import is_torchvision_available


IMAGE_PROCESSOR_CLASSES = {"pil": CLIPImageProcessorPil}
if is_torchvision_available():  # else importing the class warns
    from transformers import CLIPImageProcessor

    IMAGE_PROCESSOR_CLASSES["torchvision"] = CLIPImageProcessor


def create_image_processor(image_size: int = 224, backend: str | None = None):
    """
    The image processor of the official checkpoints, for models that are trained from scratch: shorter side to
    `image_size` (bicubic), centre crop, scale to [0, 1], ImageNet mean and standard deviation. A saved model brings
    its own: use `AutoImageProcessor.from_pretrained`.

    Args:
        image_size (`int`, *optional*, defaults to 224):
            Side of the square output in pixels, usually `config.image_size`.
        backend (`str`, *optional*):
            `"torchvision"` or `"pil"`. Defaults to torchvision where it is installed.
    """
    if backend is None:
        backend = "torchvision" if is_torchvision_available() else "pil"
    if backend not in IMAGE_PROCESSOR_CLASSES:
        raise ValueError(f"Unknown `backend={backend!r}`. Choose one of {list(IMAGE_PROCESSOR_CLASSES)}.")
    return IMAGE_PROCESSOR_CLASSES[backend](
        size={"shortest_edge": image_size},
        crop_size={"height": image_size, "width": image_size},
        image_mean=IMAGENET_DEFAULT_MEAN,
        image_std=IMAGENET_DEFAULT_STD,
    )
