# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""DINO, a detection transformer (https://arxiv.org/abs/2203.03605), on any backbone."""

from transformers.utils import is_torchvision_available

from .configuration_dino_detr import DinoDetrConfig
from .image_processing_pil_dino_detr import DinoDetrImageProcessorPil
from .modeling_dino_detr import DinoDetrForObjectDetection, DinoDetrObjectDetectionOutput


DINO_DETR_IMAGE_PROCESSOR_CLASSES: dict[str, type] = {"pil": DinoDetrImageProcessorPil}
if is_torchvision_available():
    from .image_processing_dino_detr import DinoDetrImageProcessor

    DINO_DETR_IMAGE_PROCESSOR_CLASSES["torchvision"] = DinoDetrImageProcessor
