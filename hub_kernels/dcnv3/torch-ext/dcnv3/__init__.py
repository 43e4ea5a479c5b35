# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""
DCNv3, the deformable convolution of InternImage (https://arxiv.org/abs/2211.05778), and DCNv4, which is that of
FlashInternImage (https://arxiv.org/abs/2401.06197), for CPU and CUDA.
"""

import functools
import warnings
from typing import Optional

import torch
from torch.autograd import forward_ad

from ._ops import add_op_namespace_prefix, ops


__all__ = ["dcnv3", "layers"]

_NAMES = ("value", "offset", "mask", "center_scale")
_MAX_INT = 2**31 - 1  # what kernels count with 32 bits
_MAX_FUSED_CHANNELS = 4096


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
    `value` around it. Differentiable once, in all tensors, by reverse mode: `torch.autograd`, `torch.func.grad`, `vjp`
    and `jacrev`, also under `vmap`. `num_points` is `kernel_size**2`, one less with `remove_center`.

    Tensors are float32, float16, bfloat16 or, on a CPU, float64, and may have any strides; no copy is made of those
    whose last dimension is contiguous. Sums are taken in float32 (float64 for float64). Tensors of different dtypes,
    as they occur under autocast, are converted to the dtype that holds them all; autocast itself changes nothing.
    Positions have the dtype of the sums: float32 rounds those beyond a million pixels to sixteenths, and so on. A
    batch may be empty, and an image without pixels but with padding has an output of zeros.

    Args:
        value (`torch.Tensor` of shape `(batch_size, height, width, channels)`):
            The projected input. Outside of it everything is zero. With padding, at most 2**31 - 1 pixels a side.
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
            Factor on the regular grid, about the kernel centre, and on the offsets; less than 2**31 in magnitude.
        remove_center (`bool`, *optional*, defaults to `False`):
            Leave the central point out. Needs an odd `kernel_size`.
        softmax (`bool`, *optional*, defaults to `True`):
            Whether to normalise `mask` over the points of each group. DCNv4 is `False`.

    Returns:
        `torch.Tensor` of shape `(batch_size, out_height, out_width, channels)` in `value`'s dtype, contiguous.

    Raises:
        `RuntimeError`: if the arguments do not describe a DCNv3, or shapes, dtypes or devices do not fit; the message
            names the argument. In the backward pass on CUDA, if `value` needs a gradient and
            `torch.use_deterministic_algorithms(True)` is set: that gradient is added up in any order.
        `TypeError`: if something else takes the place of a tensor, or tensors of different dtypes are not all floating
            point.
        `NotImplementedError`: if a forward-mode derivative (`torch.func.jvp`, `jacfwd`, `hessian`) or a second
            derivative is wanted.
    """
    tensors = [value, offset, mask] if center_scale is None else [value, offset, mask, center_scale]
    for name, tensor in zip(_NAMES, tensors):
        if not isinstance(tensor, torch.Tensor):
            raise TypeError(f"`{name}` must be a tensor, got {type(tensor).__name__}.")
    dtypes = {tensor.dtype for tensor in tensors}
    if len(dtypes) > 1:
        for name, tensor in zip(_NAMES, tensors):
            if not tensor.is_floating_point():
                raise TypeError(f"`{name}` must have a floating point dtype, got {tensor.dtype}.")
        dtype = functools.reduce(torch.promote_types, dtypes)
        tensors = [tensor.to(dtype) for tensor in tensors]
    output = _call(
        _Forward, tensors[0], tensors[1], tensors[2], None if center_scale is None else tensors[3], kernel_size,
        stride, padding, dilation, num_groups, offset_scale, remove_center, softmax,
    )  # fmt: skip
    return output if output.dtype == value.dtype else output.to(value.dtype)


def _require(condition, message):
    """Raises an error for what is wrong for certain: a guard on an unknown size could restrict an export."""
    from torch.fx.experimental.symbolic_shapes import statically_known_true

    if statically_known_true(torch.sym_not(condition)):
        raise RuntimeError(message)


def _check_fake(
    value, offset, mask, center_scale, kernel_size, stride, padding, dilation, num_groups, offset_scale, remove_center,
    softmax, grad_output=None,
):  # fmt: skip
    """
    The checks of the kernels (dcnv3_common/dcnv3_checks.h), as far as they hold without running: without them,
    compiling would accept what a call refuses, and a tensor on the meta device next to one with data would be taken
    for a fake call. Returns the height and width of the output.
    """
    for name, tensor in zip(("value", "offset", "mask"), (value, offset, mask)):
        _require(tensor is not None, f"`{name}` must be a tensor, got None.")
    dtypes = (torch.float32, torch.float16, torch.bfloat16, *((torch.float64,) if value.device.type != "cuda" else ()))
    _require(value.dtype in dtypes, "`value` must have dtype float32, float16 or bfloat16, or on a CPU float64.")
    shape = tuple(value.shape)
    _require(len(shape) == 4, f"`value` must have shape (batch_size, height, width, channels), got {shape}.")
    batch_size, height, width, channels = shape
    numbers = {"kernel_size": kernel_size, "stride": stride, "padding": padding, "dilation": dilation}
    for (name, number), (low, high) in zip(numbers.items(), ((1, 7), (1, _MAX_INT), (0, _MAX_INT), (1, _MAX_INT))):
        _require(low <= number <= high, f"`{name}` must be between {low} and {high}, got {number}.")
    _require(
        -_MAX_INT <= offset_scale <= _MAX_INT,
        f"`offset_scale` must be between {-_MAX_INT} and {_MAX_INT}, got {offset_scale}.",
    )
    _require(channels <= _MAX_INT, f"`value` must have at most {_MAX_INT} channels, got {channels}.")
    message = f"`value` has {channels} channels, which `num_groups={num_groups}` does not divide."
    _require(num_groups >= 1, message)
    _require(channels % num_groups == 0, message)
    for condition in (channels >= num_groups, channels <= 256 * num_groups):
        _require(
            condition,
            f"A group must have between 1 and 256 channels, `value` has {channels} in `num_groups={num_groups}`.",
        )
    _require(
        not remove_center or kernel_size % 2 == 1,
        f"`remove_center` needs a kernel with a centre: `kernel_size` must be odd, got {kernel_size}.",
    )
    _require(not remove_center or kernel_size > 1, "`remove_center` with `kernel_size=1` leaves no point to sample.")
    extent = dilation * (kernel_size - 1) + 1
    image = f"`value` of {height}x{width} pixels with `padding={padding}` is"
    for size in (height, width):
        _require(
            size + 2 * padding <= _MAX_INT, f"{image} too large: a padded side may have at most {_MAX_INT} pixels."
        )
        _require(
            size + 2 * padding >= extent,
            f"{image} smaller than the kernel, which spans {extent} pixels (`kernel_size={kernel_size}`, "
            f"`dilation={dilation}`).",
        )
    out_height, out_width = ((size + 2 * padding - extent) // stride + 1 for size in (height, width))
    num_points = kernel_size**2 - remove_center
    last_sizes = {
        "offset": (offset, num_groups * num_points * 2),
        "mask": (mask, num_groups * num_points),
        "center_scale": (center_scale, num_groups),
        "grad_output": (grad_output, channels),
    }
    for name, (tensor, last_size) in last_sizes.items():
        if tensor is None:
            continue
        if name == "center_scale":
            for condition in (stride == 1, out_height == height, out_width == width):
                _require(
                    condition,
                    "`center_scale` blends the output with `value` pixel by pixel, so `stride` must be 1 and "
                    f"`padding` must keep the size; got stride={stride} and an output of {out_height}x{out_width} for "
                    f"{height}x{width}.",
                )
        _require(tensor.device == value.device, f"`{name}` and `value` must be on the same device.")
        _require(tensor.dtype == value.dtype, f"`{name}` and `value` must have the same dtype.")
        expected = (batch_size, out_height, out_width, last_size)
        for condition in (tensor.dim() == 4, *(a == b for a, b in zip(tensor.shape, expected))):
            _require(condition, f"`{name}` must have shape {expected}, got {tuple(tensor.shape)}.")
    return out_height, out_width


def _forward_fake(value, *arguments):
    out_height, out_width = _check_fake(value, *arguments)
    return value.new_empty((value.shape[0], out_height, out_width, value.shape[3]))


def _backward_fake(grad_output, value, offset, mask, center_scale, *arguments):
    if grad_output is None:
        raise RuntimeError("`grad_output` must be a tensor, got None.")
    _check_fake(value, offset, mask, center_scale, *arguments, grad_output=grad_output)
    # Contiguous, whatever the inputs are.
    return (
        value.new_empty(value.shape),
        offset.new_empty(offset.shape),
        mask.new_empty(mask.shape),
        value.new_empty((0,)) if center_scale is None else center_scale.new_empty(center_scale.shape),
    )


def _require_like(name, tensor, like_name, like, shape):
    _require(tensor is not None, f"`{name}` must be a tensor, got None.")
    _require(tensor.device == like.device, f"`{name}` and `{like_name}` must be on the same device.")
    _require(tensor.dtype == like.dtype, f"`{name}` and `{like_name}` must have the same dtype.")
    for condition in (tensor.dim() == len(shape), *(a == b for a, b in zip(tensor.shape, shape))):
        _require(condition, f"`{name}` must have shape {tuple(shape)}, got {tuple(tensor.shape)}.")


def _require_fused_input(name, tensor):
    _require(
        tensor.dtype in (torch.float32, torch.float16, torch.bfloat16),
        f"`{name}` must have dtype float32, float16 or bfloat16.",
    )
    message = f"`{name}` must have between 1 and {_MAX_FUSED_CHANNELS} channels, got {tensor.shape[-1]}."
    _require(tensor.shape[-1] >= 1, message)
    _require(tensor.shape[-1] <= _MAX_FUSED_CHANNELS, message)


def _depthwise_norm_gelu_fake(hidden_states, weight, bias, norm_weight, norm_bias, eps):
    """Repeats the checks of dcnv3_common/fused_checks.h, as does the next function."""
    shape = tuple(hidden_states.shape)
    _require(len(shape) == 4, f"`hidden_states` must have shape (batch_size, height, width, channels), got {shape}.")
    _require_fused_input("hidden_states", hidden_states)
    message = (
        "`weight` must have shape (channels, 1, kernel_size, kernel_size) with an odd `kernel_size` below 128, got "
        f"{tuple(weight.shape)}."
    )
    _require(weight.dim() == 4, message)
    kernel_size = weight.shape[2]
    _require(kernel_size % 2 == 1, message)
    _require(kernel_size < 128, message)
    _require_like("weight", weight, "hidden_states", hidden_states, (shape[3], 1, kernel_size, kernel_size))
    for name, vector in (("bias", bias), ("norm_weight", norm_weight), ("norm_bias", norm_bias)):
        _require_like(name, vector, "hidden_states", hidden_states, shape[3:])
    return hidden_states.new_empty(shape)


def _norm_residual_fake(residual, branch, bias, norm_weight, norm_bias, scale, eps):
    _require(residual.dim() >= 1, "`residual` must have shape (..., channels), got ().")
    _require_fused_input("residual", residual)
    _require_like("branch", branch, "residual", residual, residual.shape)
    _require(
        (norm_weight is None) == (norm_bias is None),
        "`norm_weight` and `norm_bias` must both be tensors or both be None.",
    )
    vectors = {"bias": bias, "norm_weight": norm_weight, "norm_bias": norm_bias, "scale": scale}
    for name, vector in vectors.items():
        if vector is not None:
            _require_like(name, vector, "residual", residual, residual.shape[-1:])
    return residual.new_empty(residual.shape)


def _inference_only(ctx, grad_output):
    raise NotImplementedError(
        "depthwise_norm_gelu and norm_residual are for inference only: call them under `torch.no_grad()`, and the "
        "PyTorch operators for training."
    )


def _setup_context(ctx, inputs, output):
    ctx.save_for_backward(*inputs[:4])
    ctx.arguments = inputs[4:]


def _backward(ctx, grad_output):
    value, offset, mask, center_scale = ctx.saved_tensors
    if ctx.needs_input_grad[0] and value.device.type == "cuda" and torch.are_deterministic_algorithms_enabled():
        _alert_not_deterministic()
    gradients = _call(_Backward, grad_output, value, offset, mask, center_scale, *ctx.arguments)
    gradients = [
        gradient if needed else None for gradient, needed in zip(gradients, ctx.needs_input_grad[: len(gradients)])
    ]
    return (*gradients, *(None for _ in ctx.arguments))


def _alert_not_deterministic():
    """As the operators of torch do."""
    message = (
        "The gradient of `value` of dcnv3 on CUDA does not have a deterministic implementation, but you set "
        "`torch.use_deterministic_algorithms(True)`. Turn determinism off for this operation, or use the PyTorch "
        "reference instead of the kernel."
    )
    if not torch.is_deterministic_algorithms_warn_only_enabled():
        raise RuntimeError(message)
    warnings.warn(message, stacklevel=3)


def _no_second_derivative(ctx, *gradients):
    raise NotImplementedError("dcnv3 can be differentiated only once.")


def _no_forward_mode(ctx=None, *tangents):
    raise NotImplementedError(
        "dcnv3 has no forward-mode derivative (torch.func.jvp, jacfwd, hessian, torch.autograd.forward_ad). Use "
        "reverse mode (torch.func.vjp, grad, jacrev), or the PyTorch reference instead of the kernel."
    )


def _fold(info, in_dims, arguments):
    """Makes the mapped dimension of `vmap` a part of the batch: every image is computed for itself."""
    for argument, dim in zip(arguments, in_dims):
        if isinstance(argument, torch.Tensor):
            if dim is None:
                argument = argument.expand(info.batch_size, *argument.shape)
            else:
                argument = argument.movedim(dim, 0)
            if argument.dim() > 1:  # else the kernel refuses it
                argument = argument.flatten(0, 1)
        yield argument


def _unfold(info, result):
    return result.unflatten(0, (info.batch_size, result.shape[0] // info.batch_size))


def _forward_vmap(info, in_dims, *arguments):
    return _unfold(info, _call(_Forward, *_fold(info, in_dims, arguments))), 0


def _backward_vmap(info, in_dims, *arguments):
    *gradients, grad_center_scale = _call(_Backward, *_fold(info, in_dims, arguments))
    gradients = [_unfold(info, gradient) for gradient in gradients]
    if arguments[4] is None:
        return (*gradients, grad_center_scale), (0, 0, 0, None)
    return (*gradients, _unfold(info, grad_center_scale)), (0, 0, 0, 0)


class _Forward(torch.autograd.Function):
    """The operator for `torch.func`, which does not take what `torch.library.register_autograd` makes."""

    @staticmethod
    def forward(*arguments):
        return ops.dcnv3_forward(*arguments)

    setup_context = staticmethod(_setup_context)
    backward = staticmethod(_backward)
    jvp = staticmethod(_no_forward_mode)
    vmap = staticmethod(_forward_vmap)


class _Backward(torch.autograd.Function):
    @staticmethod
    def forward(*arguments):
        return ops.dcnv3_backward(*arguments)

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    backward = staticmethod(_no_second_derivative)
    jvp = staticmethod(_no_forward_mode)
    vmap = staticmethod(_backward_vmap)


def _call(function, *arguments):
    """
    Applies one of the two above, or calls its operator: where nothing is differentiated, which takes less time, and
    for compilers and tracers, which see operators only.
    """
    tracked = torch.is_grad_enabled() and not torch.compiler.is_compiling() and not torch.jit.is_tracing()
    is_differentiated = False
    for tensor in arguments[:5]:
        if isinstance(tensor, torch.Tensor):
            # An operator does not see tangents: they would silently be zero.
            if forward_ad.unpack_dual(tensor).tangent is not None:
                _no_forward_mode()
            # `torch.func` wraps tensors: `vmap` also around those that need a gradient, and its wrapper denies it.
            if tracked and not is_differentiated:
                is_differentiated = (
                    tensor.requires_grad or torch.func.debug_unwrap(tensor, recurse=False) is not tensor
                )
    return function.apply(*arguments) if is_differentiated else function.forward(*arguments)


# Once in a process, which may import one build under several paths.
if "is_registered" not in vars(ops):
    forward, backward = add_op_namespace_prefix("dcnv3_forward"), add_op_namespace_prefix("dcnv3_backward")
    torch.library.register_fake(forward, _forward_fake)
    torch.library.register_fake(backward, _backward_fake)
    torch.library.register_autograd(forward, _backward, setup_context=_setup_context)
    # Without this, a second derivative would silently be zero.
    torch.library.register_autograd(backward, _no_second_derivative)
    torch.library.register_vmap(forward, _forward_vmap)
    torch.library.register_vmap(backward, _backward_vmap)
    for name, fake in (("depthwise_norm_gelu", _depthwise_norm_gelu_fake), ("norm_residual", _norm_residual_fake)):
        torch.library.register_fake(add_op_namespace_prefix(name), fake)
        torch.library.register_autograd(add_op_namespace_prefix(name), _inference_only)
    ops.is_registered = True

from . import layers  # noqa: E402 (it imports `dcnv3` from here)
