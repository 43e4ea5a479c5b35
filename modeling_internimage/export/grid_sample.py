# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""DCNv3 as `GridSample`, a standard operator of ONNX since opset 16."""

import numpy as np
import torch

from ..modeling_internimage import DCNv3


@torch.library.custom_op("modeling_internimage::dcnv3", mutates_args=())
def dcnv3(
    value: torch.Tensor,
    offset: torch.Tensor,
    mask: torch.Tensor,
    center_scale: torch.Tensor | None,
    kernel_size: int,
    stride: int,
    padding: int,
    dilation: int,
    num_groups: int,
    offset_scale: float,
    remove_center: bool,
    softmax: bool,
) -> torch.Tensor:
    """[`DCNv3`] as one operator: tracing its fifty steps for every layer would take most of the time of an export."""
    geometry = (kernel_size, stride, padding, dilation, num_groups, offset_scale, remove_center, softmax)
    return DCNv3()(value, offset, mask, center_scale, *geometry)


@dcnv3.register_fake
def _(value, offset, *arguments):
    return value.new_empty((*offset.shape[:3], value.shape[3]))


class GridSampleDCNv3(DCNv3):
    """[`DCNv3`] for `torch.onnx.export` with [`onnx_dcnv3`] in its table of translations."""

    def forward(self, *args, **kwargs):
        return dcnv3(*args, **kwargs)


def onnx_dcnv3(
    value,
    offset,
    mask,
    center_scale,
    kernel_size: int,
    stride: int,
    padding: int,
    dilation: int,
    num_groups: int,
    offset_scale: float,
    remove_center: bool,
    softmax: bool,
):
    """
    [`DCNv3`] as nodes of ONNX, in float32. Offsets are added to the regular grid as they are, pairs of (x, y). Points
    come before pixels in the samples, so that runtimes add long rows of pixels instead of a few points at a time.
    """
    from onnxscript import FLOAT
    from onnxscript import opset18 as op

    num_points, dtype = kernel_size**2 - remove_center, value.dtype
    channels = value.shape[3]
    if dtype != FLOAT.dtype:
        value, offset, mask = (op.Cast(tensor, to=FLOAT.dtype) for tensor in (value, offset, mask))
        center_scale = None if center_scale is None else op.Cast(center_scale, to=FLOAT.dtype)
    batch_size, height, width = (op.Shape(value, start=axis, end=axis + 1) for axis in range(3))
    out_height, out_width = (op.Shape(offset, start=axis, end=axis + 1) for axis in (1, 2))
    num_pixels = op.Mul(out_height, out_width)

    def size(*sides):
        return op.Concat(
            *(op.Constant(value_ints=[side]) if isinstance(side, int) else side for side in sides), axis=0
        )

    # Where each point samples, (N * G, P, Ho * Wo, 2). Pixels become [-1, 1] on the way: `2 / size` per pixel.
    point = np.arange(num_points)
    if remove_center:
        point = point + (point >= num_points // 2)
    center = dilation * (kernel_size - 1) // 2
    grids, scales = [], []
    for axis, in_size, out_size, step in (
        (0, width, out_width, point // kernel_size),
        (1, height, out_height, point % kernel_size),
    ):
        per_pixel = op.Div(2.0, op.Cast(in_size, to=FLOAT.dtype))
        origin = op.Cast(op.Range(0, op.Squeeze(out_size), 1), to=FLOAT.dtype)
        origin = op.Add(op.Mul(origin, float(stride)), center - padding + 0.5)
        steps = op.Constant(value_floats=((step * dilation - center) * offset_scale).tolist())
        position = op.Add(op.Unsqueeze(origin, [1]), steps)  # (Wo or Ho, P)
        position = op.Unsqueeze(op.Sub(op.Mul(position, per_pixel), 1.0), [axis])
        grids.append(op.Unsqueeze(op.Expand(position, size(out_height, out_width, num_points)), [3]))
        scales.append(op.Mul(per_pixel, offset_scale))
    grid = op.Reshape(op.Concat(*grids, axis=3), size(-1, 1, num_points, 2))
    offset = op.Reshape(offset, size(batch_size, -1, num_groups, num_points, 2))
    grid = op.Add(op.Mul(offset, op.Concat(*scales, axis=0)), grid)
    grid = op.Reshape(op.Transpose(grid, perm=[0, 2, 3, 1, 4]), size(-1, num_points, num_pixels, 2))

    weight = op.Reshape(mask, size(batch_size, -1, num_groups, num_points))
    if softmax:
        weight = op.Softmax(weight, axis=-1)
    weight = op.Reshape(op.Transpose(weight, perm=[0, 2, 3, 1]), size(-1, 1, num_points, num_pixels))
    images = op.Reshape(op.Transpose(value, perm=[0, 3, 1, 2]), size(-1, channels // num_groups, height, width))
    samples = op.GridSample(images, grid, align_corners=0, mode="bilinear", padding_mode="zeros")
    output = op.ReduceSum(op.Mul(samples, weight), [2], keepdims=0)
    output = op.Transpose(op.Reshape(output, size(-1, channels, out_height, out_width)), perm=[0, 2, 3, 1])
    if center_scale is not None:
        groups = size(batch_size, height, width, num_groups, -1)
        output, value = op.Reshape(output, groups), op.Reshape(value, groups)
        gate = op.Unsqueeze(op.Sigmoid(center_scale), [4])
        output = op.Add(output, op.Mul(gate, op.Sub(value, output)))
        output = op.Reshape(output, size(batch_size, height, width, channels))
    return output if dtype == FLOAT.dtype else op.Cast(output, to=dtype)


def onnx_gelu(hidden_states, approximate: str = "none"):
    """Exact GELU in the order of operations that ONNX Runtime replaces by a single kernel when it loads a file."""
    from onnxscript import opset18 as op

    return op.Mul(op.Mul(hidden_states, 0.5), op.Add(op.Erf(op.Div(hidden_states, float(np.sqrt(2)))), 1.0))
