# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""InternImage for Hugging Face transformers. Importing this package registers it with the Auto classes."""

from .auto_registration import register_auto_classes
from .configuration_internimage import InternImageConfig
from .image_processing import create_image_processor
from .kernel_integration import (
    KernelNotAvailableError,
    dcnv3_implementations,
    register_dcnv3_kernel,
    use_dcnv3_kernel,
)
from .modeling_internimage import (
    DCNv3,
    InternImageBackbone,
    InternImageForImageClassification,
    InternImageModel,
    InternImagePreTrainedModel,
)
from .optimization import create_parameter_groups


__version__ = "0.1.0"

__all__ = [
    "DCNv3",
    "InternImageBackbone",
    "InternImageConfig",
    "InternImageForImageClassification",
    "InternImageModel",
    "InternImagePreTrainedModel",
    "KernelNotAvailableError",
    "create_image_processor",
    "create_parameter_groups",
    "dcnv3_implementations",
    "register_auto_classes",
    "register_dcnv3_kernel",
    "use_dcnv3_kernel",
]

register_auto_classes()
register_dcnv3_kernel()
