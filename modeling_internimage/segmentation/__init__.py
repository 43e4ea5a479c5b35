# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""Semantic segmentation as the original evaluates it: image processing, windows and scales."""

from transformers.utils import is_torchvision_available

from .image_processing_pil_segmentation import (
    InternImageMask2FormerImageProcessorPil,
    InternImageSegmentationImageProcessorPil,
    semantic_scores,
)
from .inference import segment_image, window_scores


SEGMENTATION_IMAGE_PROCESSOR_CLASSES: dict[str, type] = {"pil": InternImageSegmentationImageProcessorPil}
MASK2FORMER_IMAGE_PROCESSOR_CLASSES: dict[str, type] = {"pil": InternImageMask2FormerImageProcessorPil}
if is_torchvision_available():
    from .image_processing_segmentation import (
        InternImageMask2FormerImageProcessor,
        InternImageSegmentationImageProcessor,
    )

    MASK2FORMER_IMAGE_PROCESSOR_CLASSES["torchvision"] = InternImageMask2FormerImageProcessor
    SEGMENTATION_IMAGE_PROCESSOR_CLASSES["torchvision"] = InternImageSegmentationImageProcessor
