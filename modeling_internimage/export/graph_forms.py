# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""The same models from operators that runtimes compute fast, for `torch.onnx.export`."""

import copy
import itertools
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import nn

from ..kernel_integration import use_dcnv3_kernel
from ..modeling_internimage import DCNv3, InternImageDCNv3, InternImageDCNv4, InternImageMLP
from .adaptive_pooling import ExportableAdaptiveAvgPool2d
from .deform_conv import DeformConvDCNv3, DeformConvDCNv4, pointwise_convolution
from .grid_sample import GridSampleDCNv3


Model = TypeVar("Model", bound=nn.Module)


class PointwiseConvolutionMLP(nn.Module):
    """[`InternImageMLP`] with 1x1 convolutions, which ONNX Runtime computes faster than matrix products."""

    def __init__(self, mlp: InternImageMLP):
        super().__init__()
        self.fc1, self.fc2 = pointwise_convolution(mlp.fc1), pointwise_convolution(mlp.fc2)
        self.activation = mlp.activation

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """(batch_size, height, width, channels) -> the same"""
        hidden_states = self.activation(self.fc1(hidden_states.permute(0, 3, 1, 2)))  # NCHW
        return self.fc2(hidden_states).permute(0, 2, 3, 1)  # NHWC


# What takes the place of a module, by the name of its class (the code beside a checkpoint has classes of its own).
_WITH_ANY_OPERATOR = {
    nn.AdaptiveAvgPool2d.__name__: lambda pool: ExportableAdaptiveAvgPool2d(pool.output_size),
}
REPLACEMENTS: dict[str, dict[str, Callable[[Any], nn.Module]]] = {
    "grid_sample": {DCNv3.__name__: lambda dcnv3: GridSampleDCNv3(), **_WITH_ANY_OPERATOR},
    "deform_conv": {
        InternImageDCNv3.__name__: DeformConvDCNv3,
        InternImageDCNv4.__name__: DeformConvDCNv4,
        InternImageMLP.__name__: PointwiseConvolutionMLP,
        **_WITH_ANY_OPERATOR,
    },
}


def prepare_for_export(model: Model, operator: str) -> Model:
    """
    A copy of a model for `torch.onnx.export`, which computes the same. The model itself stays as it is.

    Args:
        model (`torch.nn.Module`):
            A model with an InternImage in it, in evaluation mode.
        operator (`str`):
            `"grid_sample"`: DCNv3 and DCNv4 with `GridSample`, which ONNX has since opset 16 and every runtime knows.
            `"deform_conv"`: with `DeformConv`, since opset 19, and 1x1 convolutions around it.

    Returns:
        `torch.nn.Module`: the copy. It shares the memory of all weights, except those of the offset and mask
        projections with `"deform_conv"`, a few percent of a model. It does not run the compiled kernel; with
        `"deform_conv"` it runs only inside of `torch.onnx.export`.

    Raises:
        `ValueError`: for another `operator`.
    """
    if operator not in REPLACEMENTS:
        raise ValueError(f"`operator` must be one of {', '.join(map(repr, REPLACEMENTS))}, got {operator!r}.")
    # What `deepcopy` finds here, by its identity, counts as copied already.
    shared = {id(tensor): tensor for tensor in itertools.chain(model.parameters(), model.buffers())}
    model = copy.deepcopy(model, shared)
    use_dcnv3_kernel(model, enabled=False)
    _replace_children(model, REPLACEMENTS[operator])
    return model.eval()  # also the new modules


def _replace_children(module: nn.Module, replacements: dict[str, Callable[[Any], nn.Module]]):
    for name, child in module.named_children():
        for ancestor in type(child).__mro__:
            if ancestor.__name__ in replacements:
                replacement = replacements[ancestor.__name__](child)
                setattr(module, name, replacement)
                for value in vars(module).values():  # transformers' UperNet calls its layers from a list beside them
                    if isinstance(value, list):
                        value[:] = [replacement if entry is child else entry for entry in value]
                child = replacement
                break
        _replace_children(child, replacements)
