# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""DCNv3 as `DeformConv`, a standard operator of ONNX since opset 19."""

import torch
from torch import nn

from ..modeling_internimage import InternImageDCNv3


class DeformConvDCNv3(nn.Module):
    """
    [`InternImageDCNv3`] for an ONNX graph: `DeformConv` between 1x1 convolutions, because it wants channels first.

    `DeformConv` samples each channel at the points of a kernel, multiplies the samples by a mask and convolves them.
    Here each channel is its own convolution group with weights of 1, so that only the sum over the points is left.
    The other differences are folded into the projections of offsets and mask: see [`deform_conv_offsets`].
    """

    def __init__(self, layer: InternImageDCNv3):
        super().__init__()
        self.num_groups, self.kernel_size = layer.num_groups, layer.kernel_size
        self.depthwise_convolution = layer.depthwise_convolution
        self.depthwise_layernorm = layer.depthwise_layernorm
        self.activation = layer.activation
        self.input_proj = pointwise_convolution(layer.input_proj)
        geometry = (layer.num_groups, layer.kernel_size, layer.remove_center)
        self.offset_proj = pointwise_convolution(deform_conv_offsets(layer.offset_proj, *geometry, layer.offset_scale))
        self.mask_proj = pointwise_convolution(deform_conv_mask(layer.mask_proj, *geometry))
        self.center_feature_scale_proj = None
        if layer.center_feature_scale_proj is not None:
            self.center_feature_scale_proj = pointwise_convolution(layer.center_feature_scale_proj)
        self.output_proj = pointwise_convolution(layer.output_proj)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """(batch_size, height, width, channels) -> the same"""
        hidden_states = hidden_states.permute(0, 3, 1, 2)  # NCHW
        features = self.depthwise_convolution(hidden_states).permute(0, 2, 3, 1)  # NHWC
        features = self.activation(self.depthwise_layernorm(features)).permute(0, 3, 1, 2)  # NCHW
        value = self.input_proj(hidden_states)
        mask = self.mask_proj(features).unflatten(1, (self.num_groups, -1)).softmax(dim=2).flatten(1, 2)
        output = deform_conv(value, self.offset_proj(features), mask, self.num_groups, self.kernel_size)
        if self.center_feature_scale_proj is not None:
            gate = self.center_feature_scale_proj(features).sigmoid().unsqueeze(2)
            value, output = (states.unflatten(1, (self.num_groups, -1)) for states in (value, output))
            output = torch.lerp(output, value, gate).flatten(1, 2)
        return self.output_proj(output).permute(0, 2, 3, 1)  # NHWC


def deform_conv(value, offset, mask, num_groups: int, kernel_size: int) -> torch.Tensor:
    """
    The weighted sum of bilinear samples of `value`, as a node `DeformConv` of the graph. (PyTorch has no such
    operator: outside of `torch.onnx.export` only shapes are right.)

    Args:
        value (`torch.Tensor` of shape `(batch_size, channels, height, width)`):
            The projected input. Outside of it everything is zero.
        offset (`torch.Tensor` of shape `(batch_size, num_groups * kernel_size**2 * 2, height, width)`):
            Displacement (y, x) of each sampling point from the regular grid, in pixels. Points are ordered row by row.
        mask (`torch.Tensor` of shape `(batch_size, num_groups * kernel_size**2, height, width)`):
            Weight of each sampling point.
        num_groups (`int`), kernel_size (`int`):
            As in [`DCNv3`]. `kernel_size` is odd.

    Returns:
        `torch.Tensor` of shape `(batch_size, channels, height, width)`.
    """
    channels, padding = value.shape[1], kernel_size // 2
    weight = value.new_ones(channels, 1, kernel_size, kernel_size)
    attributes = {
        "kernel_shape": [kernel_size, kernel_size],
        "pads": [padding] * 4,
        "group": channels,
        "offset_group": num_groups,
    }
    return torch.onnx.ops.symbolic(
        "DeformConv", (value, weight, offset, None, mask), attributes, dtype=value.dtype, shape=value.shape, version=19
    )


def deform_conv_offsets(
    projection: nn.Linear, num_groups: int, kernel_size: int, remove_center: bool, offset_scale: float
) -> nn.Linear:
    """
    `offset_proj` with outputs as `DeformConv` wants them: points row by row instead of column by column, (y, x)
    instead of (x, y), multiplied by `offset_scale`; and where that also stretches the regular grid, the difference is
    in the bias. A central point that the layer leaves out gets offsets of 0.
    """
    weight, bias = (
        _row_by_row(parameter.unflatten(0, (num_groups, -1, 2)).flip(2) * offset_scale, kernel_size, remove_center)
        for parameter in (projection.weight, projection.bias)
    )
    steps = torch.arange(kernel_size, device=bias.device, dtype=bias.dtype) - kernel_size // 2
    grid = torch.stack(torch.meshgrid(steps, steps, indexing="ij"), dim=-1).flatten(0, 1)  # (points, 2), (y, x)
    return _linear(weight.flatten(0, 2), (bias + (offset_scale - 1) * grid).flatten())


def deform_conv_mask(projection: nn.Linear, num_groups: int, kernel_size: int, remove_center: bool) -> nn.Linear:
    """`mask_proj` with outputs row by row. A central point that the layer leaves out gets a weight of 0."""
    weight, bias = (
        _row_by_row(parameter.unflatten(0, (num_groups, -1)), kernel_size, remove_center)
        for parameter in (projection.weight, projection.bias)
    )
    if remove_center:
        bias[:, kernel_size**2 // 2] = -1e4  # the softmax makes it 0 in every floating dtype
    return _linear(weight.flatten(0, 1), bias.flatten())


def _row_by_row(parameter: torch.Tensor, kernel_size: int, remove_center: bool) -> torch.Tensor:
    """(groups, points, ...), column by column -> row by row, with zeros for a centre that was left out."""
    if remove_center:
        center = kernel_size**2 // 2
        parameter = torch.cat(
            (parameter[:, :center], torch.zeros_like(parameter[:, :1]), parameter[:, center:]), dim=1
        )
    return parameter.unflatten(1, (kernel_size, kernel_size)).transpose(1, 2).flatten(1, 2)


def _linear(weight: torch.Tensor, bias: torch.Tensor) -> nn.Linear:
    linear = nn.Linear(weight.shape[1], weight.shape[0], device="meta")
    linear.weight, linear.bias = nn.Parameter(weight.detach()), nn.Parameter(bias.detach())
    return linear


def pointwise_convolution(linear: nn.Linear) -> nn.Conv2d:
    """`linear` for maps with channels first, as a 1x1 convolution that shares its memory."""
    convolution = nn.Conv2d(linear.in_features, linear.out_features, 1, device="meta")
    convolution.weight = nn.Parameter(linear.weight.detach()[:, :, None, None])
    convolution.bias = nn.Parameter(linear.bias.detach()) if linear.bias is not None else None
    return convolution
