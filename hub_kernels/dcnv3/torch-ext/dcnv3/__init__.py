# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""DCNv3, the deformable convolution of InternImage (https://arxiv.org/abs/2211.05778), for CPU and CUDA."""

import functools
import warnings
from typing import Optional

import torch

from ._ops import add_op_namespace_prefix, ops


__all__ = ["dcnv3", "layers"]


def dcnv3(
    value: torch.Tensor,
    offset: torch.Tensor,
    mask: torch.Tensor,
    center_scale: Optional[torch.Tensor] = None,
    kernel_size: int = 3,
    stride: int = 1,
    padding: int = 1,
    dilation: int = 1,
    num_groups: int = 1,
    offset_scale: float = 1.0,
    remove_center: bool = False,
    softmax: bool = True,
) -> torch.Tensor:
    """
    Deformable convolution v3: per group of channels, every output pixel is a weighted sum of bilinear samples of
    `value` around it. Differentiable once, in all tensors. `num_points` is `kernel_size**2`, one less with
    `remove_center`.

    Tensors are float32, float16, bfloat16 or, on a CPU, float64, and may have any strides; no copy is made of those
    whose last dimension is contiguous. Sums are taken in float32 (float64 for float64). Tensors of different dtypes,
    as they occur under autocast, are converted to the dtype that holds them all; autocast itself changes nothing.

    Args:
        value (`torch.Tensor` of shape `(batch_size, height, width, channels)`):
            The projected input. Outside of it everything is zero.
        offset (`torch.Tensor` of shape `(batch_size, out_height, out_width, num_groups * num_points * 2)`):
            Displacement (x, y) of each sampling point in input pixels. Points are ordered column by column.
        mask (`torch.Tensor` of shape `(batch_size, out_height, out_width, num_groups * num_points)`):
            Weight of each sampling point: logits if `softmax`, else used as they are.
        center_scale (`torch.Tensor` of shape `(batch_size, out_height, out_width, num_groups)`, *optional*):
            Logits of the gate that blends each group's output with `value`. Stride 1 only.
        kernel_size (`int`, *optional*, defaults to 3):
            As in a convolution, at most 7.
        stride (`int`, *optional*, defaults to 1):
            As in a convolution.
        padding (`int`, *optional*, defaults to 1):
            As in a convolution.
        dilation (`int`, *optional*, defaults to 1):
            As in a convolution.
        num_groups (`int`, *optional*, defaults to 1):
            Number of channel groups, each with its own offsets and mask and with at most 256 channels.
        offset_scale (`float`, *optional*, defaults to 1.0):
            Factor on the regular grid, about the kernel centre, and on the offsets.
        remove_center (`bool`, *optional*, defaults to `False`):
            Leave the central point out. Needs an odd `kernel_size`.
        softmax (`bool`, *optional*, defaults to `True`):
            Whether to normalise `mask` over the points of each group.

    Returns:
        `torch.Tensor` of shape `(batch_size, out_height, out_width, channels)` in `value`'s dtype, contiguous.

    Raises:
        `RuntimeError`: if the arguments do not describe a DCNv3, or shapes, dtypes or devices do not fit; the message
            names the argument. In the backward pass on CUDA, if `value` needs a gradient and
            `torch.use_deterministic_algorithms(True)` is set: that gradient is added up in any order.
        `TypeError`: if tensors of different dtypes are not all floating point.
    """
    tensors = [value, offset, mask] if center_scale is None else [value, offset, mask, center_scale]
    dtypes = {tensor.dtype for tensor in tensors}
    if len(dtypes) > 1:
        for name, tensor in zip(("value", "offset", "mask", "center_scale"), tensors):
            if not tensor.is_floating_point():
                raise TypeError(f"`{name}` must have a floating point dtype, got {tensor.dtype}.")
        dtype = functools.reduce(torch.promote_types, dtypes)
        tensors = [tensor.to(dtype) for tensor in tensors]
    output = ops.dcnv3_forward(
        tensors[0], tensors[1], tensors[2], None if center_scale is None else tensors[3], kernel_size, stride,
        padding, dilation, num_groups, offset_scale, remove_center, softmax,
    )  # fmt: skip
    return output if output.dtype == value.dtype else output.to(value.dtype)


def _check_fake(value, offset, mask, center_scale, out_height, out_width, num_groups, num_points):
    """
    The checks of the kernels, as far as they hold without running: without them, compiling would accept what a call
    refuses, and a tensor on the meta device next to one with data would be taken for a fake call.
    """
    from torch.fx.experimental.symbolic_shapes import statically_known_true

    torch._check(value.dim() == 4, lambda: "`value` must have shape (batch_size, height, width, channels).")
    last_sizes = {
        "offset": (offset, num_groups * num_points * 2),
        "mask": (mask, num_groups * num_points),
        "center_scale": (center_scale, num_groups),
    }
    for name, (tensor, last_size) in last_sizes.items():
        if tensor is None:
            continue
        if tensor.device != value.device:
            raise RuntimeError(f"`{name}` and `value` must be on the same device.")
        if tensor.dtype != value.dtype:
            raise RuntimeError(f"`{name}` and `value` must have the same dtype.")
        expected = (value.shape[0], out_height, out_width, last_size)
        # Only what differs for certain: a guard on an unknown size could restrict an export.
        if tensor.dim() != 4 or any(statically_known_true(a != b) for a, b in zip(tensor.shape, expected)):
            raise RuntimeError(f"`{name}` must have shape {tuple(expected)}, got {tuple(tensor.shape)}.")


def _forward_fake(
    value, offset, mask, center_scale, kernel_size, stride, padding, dilation, num_groups, offset_scale, remove_center,
    softmax,
):  # fmt: skip
    out_height, out_width = (
        (size + 2 * padding - dilation * (kernel_size - 1) - 1) // stride + 1 for size in value.shape[1:3]
    )
    num_points = kernel_size**2 - remove_center
    _check_fake(value, offset, mask, center_scale, out_height, out_width, num_groups, num_points)
    return value.new_empty((value.shape[0], out_height, out_width, value.shape[3]))


def _backward_fake(
    grad_output, value, offset, mask, center_scale, kernel_size, stride, padding, dilation, num_groups, offset_scale,
    remove_center, softmax,
):  # fmt: skip
    # Contiguous, whatever the inputs are.
    return (
        value.new_empty(value.shape),
        offset.new_empty(offset.shape),
        mask.new_empty(mask.shape),
        value.new_empty((0,)) if center_scale is None else center_scale.new_empty(center_scale.shape),
    )


def _setup_context(ctx, inputs, output):
    ctx.save_for_backward(*inputs[:4])
    ctx.arguments = inputs[4:]


def _backward(ctx, grad_output):
    value, offset, mask, center_scale = ctx.saved_tensors
    if ctx.needs_input_grad[0] and value.device.type == "cuda" and torch.are_deterministic_algorithms_enabled():
        _alert_not_deterministic()
    gradients = ops.dcnv3_backward(grad_output, value, offset, mask, center_scale, *ctx.arguments)
    gradients = [
        gradient if needed else None for gradient, needed in zip(gradients, ctx.needs_input_grad[: len(gradients)])
    ]
    return (*gradients, *(None for _ in ctx.arguments))


def _alert_not_deterministic():
    """As the operators of torch do."""
    message = (
        "The gradient of `value` of dcnv3 on CUDA does not have a deterministic implementation, but you set "
        "`torch.use_deterministic_algorithms(True)`. Turn determinism off for this operation, or use the PyTorch "
        "definition instead of the kernel."
    )
    if not torch.is_deterministic_algorithms_warn_only_enabled():
        raise RuntimeError(message)
    warnings.warn(message, stacklevel=3)


def _no_second_derivative(ctx, *gradients):
    raise NotImplementedError("dcnv3 can be differentiated only once.")


# Once in a process, which may import one build under several paths.
if "is_registered" not in vars(ops):
    forward, backward = add_op_namespace_prefix("dcnv3_forward"), add_op_namespace_prefix("dcnv3_backward")
    torch.library.register_fake(forward, _forward_fake)
    torch.library.register_fake(backward, _backward_fake)
    torch.library.register_autograd(forward, _backward, setup_context=_setup_context)
    # Without this, a second derivative would silently be zero.
    torch.library.register_autograd(backward, _no_second_derivative)
    ops.is_registered = True

from . import layers  # noqa: E402 (it imports `dcnv3` from here)
