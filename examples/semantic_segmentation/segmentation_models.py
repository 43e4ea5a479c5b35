# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""Loading any segmentation model for inference."""

import torch
from transformers import (
    MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING,
    MODEL_FOR_UNIVERSAL_SEGMENTATION_MAPPING,
    AutoConfig,
    AutoImageProcessor,
    AutoModelForSemanticSegmentation,
    AutoModelForUniversalSegmentation,
)

import modeling_internimage  # noqa: F401  (registers InternImage)
from examples.evaluation import load_trained_model


AUTO_CLASSES = {
    AutoModelForSemanticSegmentation: MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING,
    AutoModelForUniversalSegmentation: MODEL_FOR_UNIVERSAL_SEGMENTATION_MAPPING,
}


def load_segmentation_model(model_name_or_path: str, dtype: str, device: torch.device, use_kernels: bool):
    """The model, in eval mode (UperNet, SegFormer head, Mask2Former), and the image processor of its checkpoint."""
    config = AutoConfig.from_pretrained(model_name_or_path)
    auto_class = next((auto for auto, mapping in AUTO_CLASSES.items() if type(config) in mapping), None)
    if auto_class is None:
        raise ValueError(
            f"`--model_name_or_path {model_name_or_path}` is a model of type {config.model_type}, "
            "which is not for segmentation."
        )
    model = load_trained_model(auto_class, model_name_or_path, dtype, device, use_kernels, "head", config)
    check_classes(model.config.num_labels, f"--model_name_or_path {model_name_or_path}")
    return model, AutoImageProcessor.from_pretrained(model_name_or_path)


def check_classes(num_labels: int, argument: str):
    """Raise a `ValueError` for a model with a single class, from the checkpoint that `argument` names."""
    if num_labels < 2:
        raise ValueError(
            f"`{argument}` has a single class, to which every pixel would belong: fine-tune it with two or more in a "
            "`--classes_file`, such as the background and that class."
        )
