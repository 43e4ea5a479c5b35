# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""InternImage for Hugging Face transformers. Importing this package registers it with the Auto classes."""

from transformers.utils import is_torchvision_available

from .auto_registration import register_auto_classes
from .cb_internimage import CBInternImageBackbone, CBInternImageBackboneOutput, CBInternImageConfig
from .configuration_internimage import InternImageConfig
from .detection import detect_objects, fuse_boxes
from .dino_detr import (
    DinoDetrConfig,
    DinoDetrForObjectDetection,
    DinoDetrImageProcessorPil,
    DinoDetrObjectDetectionOutput,
)
from .image_processing_internimage import create_image_processor
from .kernel_integration import (
    KernelNotAvailableError,
    dcnv3_implementations,
    register_dcnv3_kernel,
    use_dcnv3_kernel,
)
from .mask_rcnn import (
    MaskRCNNConfig,
    MaskRCNNForObjectDetection,
    MaskRCNNImageProcessorPil,
    MaskRCNNObjectDetectionOutput,
)
from .metadata import encode_metadata
from .modeling_internimage import (
    DCNv3,
    InternImageBackbone,
    InternImageForImageClassification,
    InternImageModel,
    InternImagePreTrainedModel,
)
from .segformer_head import SegformerHeadConfig, SegformerHeadForSemanticSegmentation
from .segmentation import (
    InternImageMask2FormerImageProcessorPil,
    InternImageSegmentationImageProcessorPil,
    segment_image,
    semantic_scores,
    window_scores,
)
from .training import create_parameter_groups


__version__ = "0.1.0"

__all__ = [
    "CBInternImageBackbone",
    "CBInternImageBackboneOutput",
    "CBInternImageConfig",
    "DCNv3",
    "DinoDetrConfig",
    "DinoDetrForObjectDetection",
    "DinoDetrImageProcessorPil",
    "DinoDetrObjectDetectionOutput",
    "InternImageBackbone",
    "InternImageConfig",
    "InternImageForImageClassification",
    "InternImageMask2FormerImageProcessorPil",
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
    "detect_objects",
    "encode_metadata",
    "fuse_boxes",
    "register_auto_classes",
    "register_dcnv3_kernel",
    "segment_image",
    "semantic_scores",
    "use_dcnv3_kernel",
    "window_scores",
]

TORCHVISION_CLASSES = [
    "DinoDetrImageProcessor",
    "InternImageMask2FormerImageProcessor",
    "InternImageSegmentationImageProcessor",
    "MaskRCNNImageProcessor",
]

if is_torchvision_available():
    from .dino_detr import DinoDetrImageProcessor  # noqa: F401
    from .mask_rcnn import MaskRCNNImageProcessor  # noqa: F401
    from .segmentation import (  # noqa: F401
        InternImageMask2FormerImageProcessor,
        InternImageSegmentationImageProcessor,
    )

    __all__ += TORCHVISION_CLASSES


def __getattr__(name: str):
    """Called for names that the package does not have: without torchvision, those of its image processors."""
    if name in TORCHVISION_CLASSES:
        raise ImportError(
            f"`{name}` needs torchvision, which is not installed: `pip install torchvision`. `{name}Pil` gives the "
            "same results without it."
        )
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


register_auto_classes()
register_dcnv3_kernel()
