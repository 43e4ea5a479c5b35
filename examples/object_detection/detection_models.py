# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""Loading a detector for inference."""

import torch
from transformers import AutoConfig, AutoImageProcessor

from examples.evaluation import load_trained_model
from modeling_internimage import MaskRCNNConfig, MaskRCNNForObjectDetection


def load_detection_model(model_name_or_path: str, dtype: str, device: torch.device, use_kernels: bool):
    """The model, in eval mode, and the image processor of its checkpoint."""
    config = AutoConfig.from_pretrained(model_name_or_path)
    check_detector(config, f"--model_name_or_path {model_name_or_path}")
    model = load_trained_model(
        MaskRCNNForObjectDetection, model_name_or_path, dtype, device, use_kernels, "heads", config
    )
    return model, AutoImageProcessor.from_pretrained(model_name_or_path)


def check_detector(config, argument: str):
    """Raise a `ValueError` if `config`, of the checkpoint that `argument` names, is not of a two-stage detector."""
    if not isinstance(config, MaskRCNNConfig):
        raise ValueError(
            f"`{argument}` is a model of type {config.model_type}, it must be {MaskRCNNConfig.model_type}: a "
            "detector of this library. (An InternImage becomes one as `--backbone` of run_object_detection.py.)"
        )
