# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""The fused operators in plain PyTorch, arguments for them, and the comparison in float64."""

import torch
from torch.nn import functional


def reference_depthwise_norm_gelu(hidden_states, weight, bias, norm_weight, norm_bias, eps=1e-6):
    channels, kernel_size = hidden_states.shape[3], weight.shape[2]
    convolved = functional.conv2d(
        hidden_states.permute(0, 3, 1, 2), weight, bias, padding=kernel_size // 2, groups=channels
    ).permute(0, 2, 3, 1)
    return functional.gelu(functional.layer_norm(convolved, (channels,), norm_weight, norm_bias, eps))


def reference_norm_residual(residual, branch, bias, norm_weight, norm_bias, scale, eps=1e-6):
    if bias is not None:
        branch = branch + bias
    if norm_weight is not None:
        branch = functional.layer_norm(branch, branch.shape[-1:], norm_weight, norm_bias, eps)
    return residual + (branch if scale is None else branch * scale)


def _vectors(generator, channels, count):
    return [torch.randn(channels, generator=generator) + index % 2 for index in range(count)]


def depthwise_arguments(shape, kernel_size, dtype, device="cpu"):
    """Of `depthwise_norm_gelu`. The weight has contiguous channels, so that no copy is made of it."""
    generator = torch.Generator().manual_seed(0)
    channels = shape[-1]
    hidden_states = torch.randn(shape, generator=generator)
    weight = torch.randn(kernel_size, kernel_size, 1, channels, generator=generator).permute(3, 2, 0, 1)
    return [tensor.to(device, dtype) for tensor in (hidden_states, weight, *_vectors(generator, channels, 3))]


def residual_arguments(shape, dtype, with_bias, with_norm, with_scale, device="cpu"):
    """Of `norm_residual`."""
    generator = torch.Generator().manual_seed(0)
    tensors = [torch.randn(shape, generator=generator) for _ in range(2)] + _vectors(generator, shape[-1], 4)
    present = (True, True, with_bias, with_norm, with_norm, with_scale)
    return [tensor.to(device, dtype) if here else None for tensor, here in zip(tensors, present)]


def check_fused(function, reference, arguments):
    """The error is at most twice that of PyTorch with tensors of this dtype, or one rounding of the largest number."""
    dtype = arguments[0].dtype
    exact = reference(*(None if tensor is None else tensor.double() for tensor in arguments))
    plain, actual = reference(*arguments), function(*arguments)
    assert actual.shape == exact.shape and actual.dtype == dtype and actual.is_contiguous()
    plain_error, error = ((tensor.double() - exact).abs().max() for tensor in (plain, actual))
    rounding = torch.finfo(dtype).eps / 2 * exact.abs().max()
    assert error <= max(2 * plain_error, rounding), (error, plain_error, rounding)
