# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""Makes the Auto classes of transformers know InternImage."""

from transformers import (
    AutoBackbone,
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
)

from .configuration_internimage import InternImageConfig
from .image_processing import IMAGE_PROCESSOR_CLASSES
from .modeling_internimage import InternImageBackbone, InternImageForImageClassification, InternImageModel


def register_auto_classes():
    """
    Register InternImage with `AutoConfig`, `AutoModel`, `AutoModelForImageClassification`, `AutoBackbone` and
    `AutoImageProcessor`. Importing the package does it; doing it again is harmless.
    """
    AutoConfig.register(InternImageConfig.model_type, InternImageConfig, exist_ok=True)
    AutoModel.register(InternImageConfig, InternImageModel, exist_ok=True)
    AutoModelForImageClassification.register(InternImageConfig, InternImageForImageClassification, exist_ok=True)
    AutoBackbone.register(InternImageConfig, InternImageBackbone, exist_ok=True)
    AutoImageProcessor.register(InternImageConfig, image_processor_classes=IMAGE_PROCESSOR_CLASSES, exist_ok=True)
