# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""Loading any segmentation model for inference."""

import torch
from example_helpers import load_trained_model
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForSemanticSegmentation,
    AutoModelForUniversalSegmentation,
)

from modeling_internimage import InternImageSegmentationImageProcessorPil


def load_segmentation_model(model_name_or_path: str, dtype: str, device: torch.device, use_kernels: bool):
    """The model, in eval mode (UperNet, SegFormer head, Mask2Former), and the image processor of its checkpoint."""
    config = AutoConfig.from_pretrained(model_name_or_path)
    auto_classes = (AutoModelForSemanticSegmentation, AutoModelForUniversalSegmentation)
    auto_class = next((auto for auto in auto_classes if type(config) in auto._model_mapping), None)
    if auto_class is None:
        raise ValueError(
            f"`--model_name_or_path {model_name_or_path}` is a model of type {config.model_type}, "
            "which is not for segmentation."
        )
    model = load_trained_model(auto_class, model_name_or_path, dtype, device, use_kernels, "head", config)
    image_processor = AutoImageProcessor.from_pretrained(model_name_or_path)
    if not hasattr(image_processor, "window_size"):
        raise ValueError(
            f"`--model_name_or_path {model_name_or_path}` has the image processor {type(image_processor).__name__}, "
            f"it must have one of the kind of {InternImageSegmentationImageProcessorPil.__name__}."
        )
    return model, image_processor
