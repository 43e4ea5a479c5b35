# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""Segmentation models: loading any of them for inference, and what differs between their classes."""

import torch
from transformers import (
    MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING,
    MODEL_FOR_UNIVERSAL_SEGMENTATION_MAPPING,
    AutoConfig,
    AutoImageProcessor,
    AutoModelForSemanticSegmentation,
    AutoModelForUniversalSegmentation,
    Mask2FormerConfig,
)

from examples.evaluation import load_trained_model
from examples.training import HeadArguments, create_backbone
from modeling_internimage import InternImageBackbone, InternImageConfig


AUTO_CLASSES = {
    AutoModelForSemanticSegmentation: MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING,
    AutoModelForUniversalSegmentation: MODEL_FOR_UNIVERSAL_SEGMENTATION_MAPPING,
}
# Fields of configurations with the value of pixels that do not count: UperNet and the SegFormer head, SegFormer of
# transformers, Mask2Former.
IGNORE_INDEX_FIELDS = ("loss_ignore_index", "semantic_loss_ignore_index", "ignore_value")
# Where models with a head have their backbone.
BACKBONE_PREFIX = r"^(backbone|model\.pixel_level_module\.encoder)\."


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


def backbone_of(model):
    """The backbone in a model with a head."""
    return model.model.pixel_level_module.encoder if isinstance(model.config, Mask2FormerConfig) else model.backbone


def load_backbone(model_args: HeadArguments, hub: dict) -> tuple[InternImageBackbone | None, InternImageConfig]:
    """As [`create_backbone`]; `model_args.backbone` may also be a model with a head, which is left out."""
    config = None if model_args.backbone is None else AutoConfig.from_pretrained(model_args.backbone, **hub)
    backbone_config = getattr(config, "backbone_config", None)
    if type(backbone_config) is not InternImageConfig:
        return create_backbone(model_args, hub)
    backbone_config.out_features = [f"stage{idx}" for idx in range(1, 5)]
    if model_args.drop_path_rate is not None:
        backbone_config.drop_path_rate = model_args.drop_path_rate
    backbone = InternImageBackbone.from_pretrained(
        model_args.backbone, config=backbone_config, key_mapping={BACKBONE_PREFIX: ""}, **hub
    )
    return backbone, backbone_config
