# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""Mask R-CNN and Cascade Mask R-CNN on any backbone."""

from transformers.utils import is_torchvision_available

from .configuration_mask_rcnn import MaskRCNNConfig
from .image_processing_pil_mask_rcnn import MaskRCNNImageProcessorPil
from .modeling_mask_rcnn import MaskRCNNForObjectDetection, MaskRCNNObjectDetectionOutput


MASK_RCNN_IMAGE_PROCESSOR_CLASSES: dict[str, type] = {"pil": MaskRCNNImageProcessorPil}
if is_torchvision_available():
    from .image_processing_mask_rcnn import MaskRCNNImageProcessor

    MASK_RCNN_IMAGE_PROCESSOR_CLASSES["torchvision"] = MaskRCNNImageProcessor
