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
    Mask2FormerForUniversalSegmentation,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_INSTANCE_SEGMENTATION_MAPPING_NAMES,
    MODEL_FOR_OBJECT_DETECTION_MAPPING_NAMES,
    MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES,
)

from .cb_internimage import CBInternImageBackbone, CBInternImageConfig
from .configuration_internimage import InternImageConfig
from .dino_detr import DINO_DETR_IMAGE_PROCESSOR_CLASSES, DinoDetrConfig, DinoDetrForObjectDetection
from .image_processing_internimage import IMAGE_PROCESSOR_CLASSES
from .mask_rcnn import MASK_RCNN_IMAGE_PROCESSOR_CLASSES, MaskRCNNConfig, MaskRCNNForObjectDetection
from .modeling_internimage import InternImageBackbone, InternImageForImageClassification, InternImageModel
from .segformer_head import SegformerHeadConfig, SegformerHeadForSemanticSegmentation
from .segmentation import MASK2FORMER_IMAGE_PROCESSOR_CLASSES, SEGMENTATION_IMAGE_PROCESSOR_CLASSES


def register_auto_classes():
    """
    Register every model of this package, and its image processor, with the Auto classes that load it. Importing the
    package calls this; calling it again is harmless.
    """
    AutoConfig.register(InternImageConfig.model_type, InternImageConfig, exist_ok=True)
    AutoModel.register(InternImageConfig, InternImageModel, exist_ok=True)
    AutoModelForImageClassification.register(InternImageConfig, InternImageForImageClassification, exist_ok=True)
    AutoBackbone.register(InternImageConfig, InternImageBackbone, exist_ok=True)
    AutoImageProcessor.register(InternImageConfig, image_processor_classes=IMAGE_PROCESSOR_CLASSES, exist_ok=True)

    AutoConfig.register(SegformerHeadConfig.model_type, SegformerHeadConfig, exist_ok=True)
    AutoModelForSemanticSegmentation.register(SegformerHeadConfig, SegformerHeadForSemanticSegmentation, exist_ok=True)
    # UperNet and Mask2Former find these image processors by the name in their preprocessor_config.json. (Mask2Former's
    # checkpoints in transformers name transformers' image processor and find that one.)
    AutoImageProcessor.register(
        SegformerHeadConfig, image_processor_classes=SEGMENTATION_IMAGE_PROCESSOR_CLASSES, exist_ok=True
    )
    AutoImageProcessor.register(
        Mask2FormerConfig, image_processor_classes=MASK2FORMER_IMAGE_PROCESSOR_CLASSES, exist_ok=True
    )

    AutoConfig.register(CBInternImageConfig.model_type, CBInternImageConfig, exist_ok=True)
    AutoBackbone.register(CBInternImageConfig, CBInternImageBackbone, exist_ok=True)

    AutoConfig.register(DinoDetrConfig.model_type, DinoDetrConfig, exist_ok=True)
    AutoModelForObjectDetection.register(DinoDetrConfig, DinoDetrForObjectDetection, exist_ok=True)
    AutoImageProcessor.register(
        DinoDetrConfig, image_processor_classes=DINO_DETR_IMAGE_PROCESSOR_CLASSES, exist_ok=True
    )

    AutoConfig.register(MaskRCNNConfig.model_type, MaskRCNNConfig, exist_ok=True)
    for auto_class in (AutoModelForObjectDetection, AutoModelForInstanceSegmentation, AutoModelForImageSegmentation):
        auto_class.register(MaskRCNNConfig, MaskRCNNForObjectDetection, exist_ok=True)
    AutoImageProcessor.register(
        MaskRCNNConfig, image_processor_classes=MASK_RCNN_IMAGE_PROCESSOR_CLASSES, exist_ok=True
    )

    # transformers 5.22 loads Mask2Former by the Auto classes for universal segmentation, but not by `pipeline`.
    AutoModelForImageSegmentation.register(Mask2FormerConfig, Mask2FormerForUniversalSegmentation, exist_ok=True)
    _tell_pipelines()


def _tell_pipelines():
    """
    Add our model types to the names of supported models. The pipelines for detection and segmentation compare class
    names with these dictionaries, not with what `register` adds, and log an error for every other class. There is no
    public way to extend them (`Pipeline.check_model_type`, transformers 5.20 to 5.24).
    """
    MODEL_FOR_OBJECT_DETECTION_MAPPING_NAMES[DinoDetrConfig.model_type] = DinoDetrForObjectDetection.__name__
    detector, segmenter = MaskRCNNForObjectDetection.__name__, SegformerHeadForSemanticSegmentation.__name__
    MODEL_FOR_OBJECT_DETECTION_MAPPING_NAMES[MaskRCNNConfig.model_type] = detector
    MODEL_FOR_INSTANCE_SEGMENTATION_MAPPING_NAMES[MaskRCNNConfig.model_type] = detector
    MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES[SegformerHeadConfig.model_type] = segmenter
