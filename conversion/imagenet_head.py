# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""From an ImageNet-22k classifier to an ImageNet-1k one, as the original starts fine-tuning."""

from pathlib import Path

import torch
from torch import nn

import modeling_internimage
from conversion.errors import ConversionError
from modeling_internimage import InternImageForImageClassification
from modeling_internimage.configuration_internimage import imagenet_labels


NUM_IMAGENET_22K_CLASSES = 21841
_INDEX_FILE = Path(modeling_internimage.__file__).parent / "labels" / "imagenet-22k-to-1k.txt"
# For each ImageNet-1k class the index of its ImageNet-22k class (`meta_data/map22kto1k.txt` of the original).
# ImageNet-22k has no "teddy, teddy bear": class 850 has the row of "teapot", as in the original.
IMAGENET_22K_TO_1K = [int(line) for line in _INDEX_FILE.read_text().split()]


def imagenet_1k_rows(tensor: torch.Tensor) -> torch.Tensor:
    """
    The rows of the 1000 ImageNet-1k classes.

    Args:
        tensor: Weight or bias of an ImageNet-22k classifier, of shape (21841, ...).

    Returns:
        Of shape (1000, ...).
    """
    if tensor.shape[0] != NUM_IMAGENET_22K_CLASSES:
        raise ConversionError(
            f"The classifier has {tensor.shape[0]} rows; an ImageNet-22k one has {NUM_IMAGENET_22K_CLASSES}."
        )
    return tensor[IMAGENET_22K_TO_1K]


def use_imagenet_1k_head(model: InternImageForImageClassification) -> InternImageForImageClassification:
    """Give an ImageNet-22k classifier the ImageNet-1k head it implies, in place: a start for fine-tuning."""
    old = model.classifier
    with torch.no_grad():
        head = nn.Linear(old.in_features, len(IMAGENET_22K_TO_1K), device=old.weight.device, dtype=old.weight.dtype)
        head.weight.copy_(imagenet_1k_rows(old.weight))
        head.bias.copy_(imagenet_1k_rows(old.bias))
    model.classifier = head
    model.num_labels = len(IMAGENET_22K_TO_1K)
    model.config.id2label = imagenet_labels(model.num_labels)
    model.config.label2id = {label: idx for idx, label in model.config.id2label.items()}
    return model
