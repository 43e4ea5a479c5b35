# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""InternImage for Hugging Face transformers. Importing this package registers it with the Auto classes."""

from .auto_registration import register_auto_classes
from .configuration_internimage import InternImageConfig
from .configuration_mask_rcnn import MaskRCNNConfig
from .configuration_segformer_head import SegformerHeadConfig
from .image_processing import create_image_processor
from .image_processing_mask_rcnn import MASK_RCNN_IMAGE_PROCESSOR_CLASSES, MaskRCNNImageProcessorPil
from .image_processing_segmentation import (
    SEGMENTATION_IMAGE_PROCESSOR_CLASSES,
    InternImageSegmentationImageProcessorPil,
    semantic_scores,
)
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
from .modeling_mask_rcnn import MaskRCNNForObjectDetection, MaskRCNNObjectDetectionOutput
from .modeling_segformer_head import SegformerHeadForSemanticSegmentation
from .optimization import create_parameter_groups
from .semantic_segmentation import segment_image, window_scores


__version__ = "0.1.0"

__all__ = [
    "DCNv3",
    "InternImageBackbone",
    "InternImageConfig",
    "InternImageForImageClassification",
    "InternImageModel",
    "InternImagePreTrainedModel",
    "InternImageSegmentationImageProcessorPil",
    "KernelNotAvailableError",
    "MaskRCNNConfig",
    "MaskRCNNForObjectDetection",
    "MaskRCNNImageProcessorPil",
    "MaskRCNNObjectDetectionOutput",
    "SegformerHeadConfig",
    "SegformerHeadForSemanticSegmentation",
    "create_image_processor",
    "create_parameter_groups",
    "dcnv3_implementations",
    "register_auto_classes",
    "register_dcnv3_kernel",
    "segment_image",
    "semantic_scores",
    "use_dcnv3_kernel",
    "window_scores",
]

if "torchvision" in SEGMENTATION_IMAGE_PROCESSOR_CLASSES:
    InternImageSegmentationImageProcessor = SEGMENTATION_IMAGE_PROCESSOR_CLASSES["torchvision"]
    MaskRCNNImageProcessor = MASK_RCNN_IMAGE_PROCESSOR_CLASSES["torchvision"]
    __all__ += ["InternImageSegmentationImageProcessor", "MaskRCNNImageProcessor"]

register_auto_classes()
register_dcnv3_kernel()
