# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""DCNv3 and DCNv4 as `DeformConv`, a standard operator of ONNX since opset 19."""

from typing import Any

import torch
from torch import nn

from ..modeling_internimage import InternImageDCNv3, InternImageDCNv4


class DeformConvLayer(nn.Module):
    """
    `DeformConv` between 1x1 convolutions, because it wants channels first. The part that [`DeformConvDCNv3`] and
    [`DeformConvDCNv4`] share.

    `DeformConv` samples each channel at the points of a kernel, multiplies the samples by a mask and convolves them.
    Here each channel is its own convolution group with weights of 1, so that only the sum over the points is left.
    The other differences are folded into the projections of offsets and mask, whose rows change places.
    """

    def __init__(self, layer: InternImageDCNv3 | InternImageDCNv4):
        super().__init__()
        self.num_groups, self.kernel_size = layer.num_groups, layer.kernel_size
        self.depthwise_convolution = layer.depthwise_convolution
        self.offset_proj = pointwise_convolution(deform_conv_offset_proj(layer))
        self.center_feature_scale_proj = None
        if layer.center_feature_scale_proj is not None:
            self.center_feature_scale_proj = pointwise_convolution(layer.center_feature_scale_proj)
        self.output_proj = pointwise_convolution(layer.output_proj)

    def sample(self, value: torch.Tensor, offset: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """The operator, (batch_size, channels, height, width) from projections of this layout."""
        value, offset, mask = (
            states.unflatten(1, (self.num_groups, -1)).flatten(0, 1) for states in (value, offset, mask)
        )
        output = deform_conv(value, offset, mask, self.kernel_size)
        return output.unflatten(0, (-1, self.num_groups)).flatten(1, 2)

    def blend(self, output: torch.Tensor, value: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
        """`output` with `value`, through the gates that `features` give; all (batch_size, channels, height, width)."""
        if self.center_feature_scale_proj is None:
            return output
        gate = self.center_feature_scale_proj(features).sigmoid()[:, :, None]
        output, value = (states.unflatten(1, (self.num_groups, -1)) for states in (output, value))
        return (output + gate * (value - output)).flatten(1, 2)


class DeformConvDCNv3(DeformConvLayer):
    """[`InternImageDCNv3`] for an ONNX graph."""

    def __init__(self, layer: InternImageDCNv3):
        super().__init__(layer)
        self.depthwise_layernorm = layer.depthwise_layernorm
        self.activation = layer.activation
        self.input_proj = pointwise_convolution(layer.input_proj)
        self.mask_proj = deform_conv_mask_proj(layer)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """(batch_size, height, width, channels) -> the same"""
        hidden_states = hidden_states.permute(0, 3, 1, 2)  # NCHW
        features = self.depthwise_convolution(hidden_states).permute(0, 2, 3, 1)  # NHWC
        features = self.activation(self.depthwise_layernorm(features))
        # `Softmax` over the last dimension is much faster than over another one.
        mask = self.mask_proj(features).unflatten(-1, (self.num_groups, -1)).softmax(dim=-1)
        mask = mask.flatten(-2).permute(0, 3, 1, 2)
        features = features.permute(0, 3, 1, 2)  # NCHW
        value = self.input_proj(hidden_states)
        output = self.blend(self.sample(value, self.offset_proj(features), mask), value, features)
        return self.output_proj(output).permute(0, 2, 3, 1)  # NHWC


class DeformConvDCNv4(DeformConvLayer):
    """[`InternImageDCNv4`] for an ONNX graph."""

    def __init__(self, layer: InternImageDCNv4):
        super().__init__(layer)
        self.value_proj = pointwise_convolution(layer.value_proj)
        self.mask_proj = pointwise_convolution(deform_conv_mask_proj(layer))

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """(batch_size, height, width, channels) -> the same"""
        hidden_states = hidden_states.permute(0, 3, 1, 2)  # NCHW
        value = self.value_proj(hidden_states)
        if self.depthwise_convolution is not None:
            hidden_states = self.depthwise_convolution(hidden_states)
        output = self.sample(value, self.offset_proj(hidden_states), self.mask_proj(hidden_states))
        output = self.blend(output, value, output)
        return self.output_proj(output).permute(0, 2, 3, 1)  # NHWC


def deform_conv(value: torch.Tensor, offset: torch.Tensor, mask: torch.Tensor, kernel_size: int) -> torch.Tensor:
    """
    A node `DeformConv` of the graph: weighted sums of bilinear samples, in float32 also for half precision. (PyTorch
    has no such operator: outside of `torch.onnx.export`, only the shape of the result is right.)

    Groups are images of the batch here. One at a time, they stay in the processor's caches.

    Args:
        value (`torch.Tensor` of shape `(batch_size * num_groups, group_channels, height, width)`):
            The projected input. Outside of it everything is zero.
        offset (`torch.Tensor` of shape `(batch_size * num_groups, kernel_size**2 * 2, height, width)`):
            Displacement (y, x) of each sampling point from the regular grid, in pixels. Points are ordered row by row.
        mask (`torch.Tensor` of shape `(batch_size * num_groups, kernel_size**2, height, width)`):
            Weight of each sampling point.
        kernel_size (`int`):
            Odd.

    Returns:
        `torch.Tensor` of shape `(batch_size * num_groups, group_channels, height, width)`.
    """
    channels, dtype = value.shape[1], torch.promote_types(value.dtype, torch.float32)
    weight = torch.ones(channels, 1, kernel_size, kernel_size, dtype=dtype, device=value.device)
    attributes: dict[str, Any] = {"kernel_shape": [kernel_size] * 2, "pads": [kernel_size // 2] * 4, "group": channels}
    inputs = (value.to(dtype), weight, offset.to(dtype), None, mask.to(dtype))
    output = torch.onnx.ops.symbolic("DeformConv", inputs, attributes, dtype=dtype, shape=value.shape, version=19)
    return output.to(value.dtype)


def deform_conv_offset_proj(layer: InternImageDCNv3 | InternImageDCNv4) -> nn.Linear:
    """
    `offset_proj` of a layer for `DeformConv`: rows as it orders them, (y, x) instead of (x, y), `offset_scale`
    included. Where that also stretches the regular grid, the bias holds the difference.
    """
    projection, kernel_size = layer.offset_proj, layer.kernel_size
    weight, bias = (
        _row_by_row(layer, parameter.unflatten(0, (layer.num_groups, -1, 2)).flip(2) * layer.offset_scale)
        for parameter in (projection.weight, projection.bias)
    )
    steps = torch.arange(kernel_size, device=bias.device, dtype=bias.dtype) - kernel_size // 2
    grid = torch.stack(torch.meshgrid(steps, steps, indexing="ij"), dim=-1).flatten(0, 1)  # (points, 2), as (y, x)
    return _linear(weight.flatten(0, 2), (bias + grid * (layer.offset_scale - 1)).flatten())


def deform_conv_mask_proj(layer: InternImageDCNv3 | InternImageDCNv4) -> nn.Linear:
    """`mask_proj` of a layer for `DeformConv`. A central point that the layer leaves out gets a weight of 0."""
    weight, bias = (
        _row_by_row(layer, parameter.unflatten(0, (layer.num_groups, -1)))
        for parameter in (layer.mask_proj.weight, layer.mask_proj.bias)
    )
    if layer.remove_center and layer.softmax:
        bias[:, layer.kernel_size**2 // 2] = -1e4  # 0 after the softmax, in every dtype
    return _linear(weight.flatten(0, 1), bias.flatten())


def _row_by_row(layer: InternImageDCNv3 | InternImageDCNv4, parameter: torch.Tensor) -> torch.Tensor:
    """(groups, points, ...), column by column -> row by row, with zeros for a centre that was left out."""
    if layer.remove_center:
        center = layer.kernel_size**2 // 2
        zeros = torch.zeros_like(parameter[:, :1])
        parameter = torch.cat((parameter[:, :center], zeros, parameter[:, center:]), dim=1)
    return parameter.unflatten(1, (layer.kernel_size, layer.kernel_size)).transpose(1, 2).flatten(1, 2)


def _linear(weight: torch.Tensor, bias: torch.Tensor) -> nn.Linear:
    linear = nn.Linear(weight.shape[1], weight.shape[0], device="meta")
    linear.weight, linear.bias = nn.Parameter(weight.detach()), nn.Parameter(bias.detach())
    return linear


def pointwise_convolution(linear: nn.Linear | nn.Identity) -> nn.Conv2d | nn.Identity:
    """`linear` for maps with channels first: a 1x1 convolution that shares its memory. Without weights: unchanged."""
    if isinstance(linear, nn.Identity):
        return linear
    convolution = nn.Conv2d(linear.in_features, linear.out_features, kernel_size=1, device="meta")
    convolution.weight = nn.Parameter(linear.weight.detach()[:, :, None, None])
    convolution.bias = None if linear.bias is None else nn.Parameter(linear.bias.detach())
    return convolution
