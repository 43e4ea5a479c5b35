# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""Makes the Auto classes of transformers know InternImage."""

from transformers import (
    AutoBackbone,
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForImageSegmentation,
    AutoModelForInstanceSegmentation,
    AutoModelForObjectDetection,
    AutoModelForSemanticSegmentation,
    Mask2FormerConfig,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_IMAGE_SEGMENTATION_MAPPING_NAMES,
    MODEL_FOR_INSTANCE_SEGMENTATION_MAPPING_NAMES,
    MODEL_FOR_OBJECT_DETECTION_MAPPING_NAMES,
    MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES,
)

from .configuration_internimage import InternImageConfig
from .image_processing_internimage import IMAGE_PROCESSOR_CLASSES
from .mask_rcnn import MASK_RCNN_IMAGE_PROCESSOR_CLASSES, MaskRCNNConfig, MaskRCNNForObjectDetection
from .modeling_internimage import InternImageBackbone, InternImageForImageClassification, InternImageModel
from .segformer_head import SegformerHeadConfig, SegformerHeadForSemanticSegmentation
from .segmentation import SEGMENTATION_IMAGE_PROCESSOR_CLASSES


def register_auto_classes():
    """
    Register InternImage with `AutoConfig`, `AutoModel`, `AutoModelForImageClassification`, `AutoBackbone` and
    `AutoImageProcessor`, the SegFormer head with `AutoConfig`, `AutoModelForSemanticSegmentation` and
    `AutoImageProcessor`, Mask R-CNN with `AutoConfig`, `AutoModelForObjectDetection`,
    `AutoModelForInstanceSegmentation`, `AutoModelForImageSegmentation` (which `pipeline` uses) and
    `AutoImageProcessor`.
    Importing the package does it; doing it again is harmless.
    """
    AutoConfig.register(InternImageConfig.model_type, InternImageConfig, exist_ok=True)
    AutoModel.register(InternImageConfig, InternImageModel, exist_ok=True)
    AutoModelForImageClassification.register(InternImageConfig, InternImageForImageClassification, exist_ok=True)
    AutoBackbone.register(InternImageConfig, InternImageBackbone, exist_ok=True)
    AutoImageProcessor.register(InternImageConfig, image_processor_classes=IMAGE_PROCESSOR_CLASSES, exist_ok=True)

    AutoConfig.register(SegformerHeadConfig.model_type, SegformerHeadConfig, exist_ok=True)
    AutoModelForSemanticSegmentation.register(SegformerHeadConfig, SegformerHeadForSemanticSegmentation, exist_ok=True)
    # (Models of transformers with an InternImage in them, as UperNet, find this image processor by its name.)
    AutoImageProcessor.register(
        SegformerHeadConfig, image_processor_classes=SEGMENTATION_IMAGE_PROCESSOR_CLASSES, exist_ok=True
    )

    AutoConfig.register(MaskRCNNConfig.model_type, MaskRCNNConfig, exist_ok=True)
    for auto_class in (AutoModelForObjectDetection, AutoModelForInstanceSegmentation, AutoModelForImageSegmentation):
        auto_class.register(MaskRCNNConfig, MaskRCNNForObjectDetection, exist_ok=True)
    AutoImageProcessor.register(
        MaskRCNNConfig, image_processor_classes=MASK_RCNN_IMAGE_PROCESSOR_CLASSES, exist_ok=True
    )

    # The pipelines for detection and segmentation log an error for classes whose names are not in these dictionaries:
    # they copy them, and the copies do not have what `register` has added.
    MODEL_FOR_OBJECT_DETECTION_MAPPING_NAMES[MaskRCNNConfig.model_type] = MaskRCNNForObjectDetection.__name__
    MODEL_FOR_INSTANCE_SEGMENTATION_MAPPING_NAMES[MaskRCNNConfig.model_type] = MaskRCNNForObjectDetection.__name__
    MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES[SegformerHeadConfig.model_type] = (
        SegformerHeadForSemanticSegmentation.__name__
    )
    # Models that `pipeline` finds only through the architecture in their configuration fail in transformers 5.22. (By
    # name, not by `register`, which would import the model.)
    MODEL_FOR_IMAGE_SEGMENTATION_MAPPING_NAMES.setdefault("mask2former", "Mask2FormerForUniversalSegmentation")
    if InternImageConfig.model_type not in Mask2FormerConfig.backbones_supported:  # else it warns
        Mask2FormerConfig.backbones_supported = [*Mask2FormerConfig.backbones_supported, InternImageConfig.model_type]
