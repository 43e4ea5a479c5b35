# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""DINO, the detector (DETR with improved denoising anchor boxes), on any backbone."""

from transformers.utils import is_torchvision_available

from .image_processing_pil_dino_detr import DinoDetrImageProcessorPil


DINO_DETR_IMAGE_PROCESSOR_CLASSES: dict[str, type] = {"pil": DinoDetrImageProcessorPil}
if is_torchvision_available():
    from .image_processing_dino_detr import DinoDetrImageProcessor

    DINO_DETR_IMAGE_PROCESSOR_CLASSES["torchvision"] = DinoDetrImageProcessor
