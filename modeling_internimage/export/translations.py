# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""What operators of PyTorch become in a file: nodes of ONNX's standard. (This module needs onnxscript.)"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from onnx import helper
from onnxscript import BOOL, FLOAT
from onnxscript import opset18 as op


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
    [`DCNv3`] with `GridSample`, in float32. Offsets are added to the regular grid as they are, pairs of (x, y). Points
    come before pixels in the samples, so that runtimes add long rows of pixels instead of a few points at a time.
    """
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
    half, one, root = (
        op.Constant(value=helper.make_tensor("", hidden_states.dtype, [], [number])) for number in (0.5, 1.0, 2**0.5)
    )
    return op.Mul(op.Mul(hidden_states, half), op.Add(op.Erf(op.Div(hidden_states, root)), one))


def onnx_non_maximum_suppression(boxes: FLOAT, scores: FLOAT, score_threshold: float, iou_threshold: float) -> BOOL:
    """[`~modeling_internimage.mask_rcnn.non_maximum_suppression.non_maximum_suppression`] as `NonMaxSuppression`."""
    scores = op.Transpose(scores, perm=[0, 2, 1])  # (batch_size, num_classes, n)
    shape, number = op.Shape(scores), op.Shape(boxes, start=1, end=2)
    if boxes.shape[2] == 1:
        boxes = op.Squeeze(boxes, [2])  # (batch_size, n, 4)
    else:  # the node has the same boxes for all classes of an image: each class becomes an image of its own
        rest, one, four = (op.Constant(value_ints=[size]) for size in (-1, 1, 4))
        boxes = op.Reshape(op.Transpose(boxes, perm=[0, 2, 1, 3]), op.Concat(rest, number, four, axis=0))
        scores = op.Reshape(scores, op.Concat(rest, one, number, axis=0))
    indices = op.NonMaxSuppression(boxes, scores, number, iou_threshold, score_threshold)  # image, class, box
    kept = op.ScatterND(op.Expand(0.0, op.Shape(scores)), indices, op.Expand(1.0, op.Shape(indices, end=1)))
    return op.Greater(op.Transpose(op.Reshape(kept, shape), perm=[0, 2, 1]), 0.5)


# For `custom_translation_table` of `torch.onnx.export`.
TRANSLATIONS: dict[Callable[..., Any], Callable[..., Any]] = {
    torch.ops.modeling_internimage.dcnv3.default: onnx_dcnv3,
    torch.ops.modeling_internimage.non_maximum_suppression.default: onnx_non_maximum_suppression,
    torch.ops.aten.gelu.default: onnx_gelu,
}
