# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""The forms in which an exported graph computes a model: the same function, with operators that runtimes run fast."""

import copy
import itertools

import torch
from torch import nn

from ..modeling_internimage import DCNv3, InternImageDCNv3, InternImageMLP
from .adaptive_pooling import ExportableAdaptiveAvgPool2d
from .deform_conv import DeformConvDCNv3, pointwise_convolution


OPERATORS = ("grid_sample", "deform_conv")


class ChannelsFirstMLP(nn.Module):
    """[`InternImageMLP`] with 1x1 convolutions, which runtimes optimise best in the neighbourhood of others."""

    def __init__(self, mlp: InternImageMLP):
        super().__init__()
        self.fc1, self.fc2 = pointwise_convolution(mlp.fc1), pointwise_convolution(mlp.fc2)
        self.activation = mlp.activation

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """(batch_size, height, width, channels) -> the same"""
        hidden_states = self.activation(self.fc1(hidden_states.permute(0, 3, 1, 2)))  # NCHW
        return self.fc2(hidden_states).permute(0, 2, 3, 1)  # NHWC


def prepare_for_export(model: nn.Module, operator: str) -> nn.Module:
    """
    A copy of `model` for `torch.onnx.export`. Nothing of `model` itself changes.

    Args:
        model (`torch.nn.Module`):
            Any model with an InternImage in it, in evaluation mode. The copy shares its weights, apart from the
            projections of offsets and masks, a small part of the model.
        operator (`str`):
            `"grid_sample"`: DCNv3 with `GridSample`, which ONNX has since opset 16 and every runtime knows.
            `"deform_conv"`: with `DeformConv`, since opset 19. Faster where the runtime has it.

    Returns:
        `torch.nn.Module`: the copy. It runs its DCNv3 layers neither as a compiled kernel nor, with `"deform_conv"`,
        outside of `torch.onnx.export`.

    Raises:
        `ValueError`: for another `operator`.
    """
    if operator not in OPERATORS:
        raise ValueError(f"`operator` must be one of {', '.join(map(repr, OPERATORS))}, got {operator!r}.")
    shared = {id(tensor): tensor for tensor in itertools.chain(model.parameters(), model.buffers())}
    model = copy.deepcopy(model, shared)
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, InternImageDCNv3) and operator == "deform_conv":
                setattr(module, name, DeformConvDCNv3(child))
            elif isinstance(child, InternImageMLP) and operator == "deform_conv":
                setattr(module, name, ChannelsFirstMLP(child))
            elif isinstance(child, DCNv3):
                setattr(module, name, DCNv3())
            elif isinstance(child, nn.AdaptiveAvgPool2d):
                setattr(module, name, ExportableAdaptiveAvgPool2d(child.output_size))
    return model
