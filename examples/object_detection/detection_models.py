# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""The detectors of this library: which there are, and loading one for inference."""

import torch
from transformers import AutoConfig, AutoImageProcessor, AutoModelForObjectDetection

from examples.evaluation import load_trained_model
from modeling_internimage import DinoDetrConfig, DinoDetrImageProcessor, MaskRCNNConfig, MaskRCNNImageProcessor


DETECTORS = {config.model_type: config for config in (MaskRCNNConfig, DinoDetrConfig)}


def load_detection_model(model_name_or_path: str, dtype: str, device: torch.device, use_kernels: bool):
    """The model, in eval mode, and the image processor of its checkpoint."""
    config = AutoConfig.from_pretrained(model_name_or_path)
    check_detector(config, f"--model_name_or_path {model_name_or_path}")
    model = load_trained_model(
        AutoModelForObjectDetection, model_name_or_path, dtype, device, use_kernels, "heads", config
    )
    return model, AutoImageProcessor.from_pretrained(model_name_or_path)


def check_detector(config, argument: str):
    """Raise a `ValueError` if `config`, of the checkpoint that `argument` names, is not of a detector."""
    if config.model_type not in DETECTORS:
        raise ValueError(
            f"`{argument}` is a model of type {config.model_type}, it must be {' or '.join(DETECTORS)}: a detector of "
            "this library. (An InternImage becomes one as `--backbone` of run_object_detection.py.)"
        )


def has_masks(config) -> bool:
    """Whether the model finds masks, too."""
    return getattr(config, "use_mask_head", False)


def create_image_processor(config) -> MaskRCNNImageProcessor | DinoDetrImageProcessor:
    """The image processor of a new detector."""
    if isinstance(config, DinoDetrConfig):
        return DinoDetrImageProcessor(max_detections=config.max_detections)
    return MaskRCNNImageProcessor()
