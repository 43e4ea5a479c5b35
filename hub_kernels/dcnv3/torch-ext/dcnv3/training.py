# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""
The feed-forward network of a layer with gradients, on a CPU in float32 and float64.

Forward and backward pass take some pixels at a time, so that what the products exchange stays in the cache. The first
product is kept for the backward pass, GELU of it is not: it is computed again, together with its derivative.
"""

from typing import Optional

import torch
from torch import nn
from torch.nn.modules import module as torch_module

from . import fused
from ._ops import add_op_namespace_prefix, ops


_PIXELS_PER_THREAD = 1024  # with fewer, the weights would be read too often
_MIN_PIXELS = 2048


def can_fuse(mlp: nn.Module, hidden_states: torch.Tensor) -> bool:
    """
    Whether `mlp` below does what the forward method of an `InternImageMLP` does: with gradients, on a CPU, where all
    parts are as the model made them. Hooks, LoRA, quantised weights, active dropout, 16-bit numbers (whose sums over
    pixels would be rounded several times), autocast, `torch.func` and compilers see the model's own modules.
    """
    dtype = hidden_states.dtype
    return (
        torch.is_grad_enabled()
        and dtype in (torch.float32, torch.float64)
        and not torch.compiler.is_compiling()
        and fused.is_ordinary_input(hidden_states)
        and not torch_module._has_any_global_hook()
        and not fused.is_observed(mlp)
        and not fused.is_observed(mlp.dropout)
        and not (mlp.dropout.training and mlp.dropout.p > 0)
        and fused.is_ordinary_gelu(mlp.activation)
        and fused.parameters_of(mlp.fc1, nn.Linear, dtype, may_lack_bias=True) is not None
        and fused.parameters_of(mlp.fc2, nn.Linear, dtype, may_lack_bias=True) is not None
    )


def mlp(module: nn.Module, hidden_states: torch.Tensor) -> torch.Tensor:
    """The output of an `InternImageMLP` for (batch_size, height, width, channels). It can be differentiated once."""
    fc1, fc2 = module.fc1, module.fc2
    return _MLP.apply(hidden_states, fc1.weight, fc1.bias, fc2.weight, fc2.bias)


def _in_parts(*tensors: torch.Tensor):
    """Some rows of each of these tensors at a time."""
    num_rows = max(_MIN_PIXELS, _PIXELS_PER_THREAD * torch.get_num_threads())
    return zip(*(tensor.split(num_rows) for tensor in tensors))


def _linear(rows: torch.Tensor, weight: torch.Tensor, bias: Optional[torch.Tensor], out: torch.Tensor):
    if bias is None:
        torch.mm(rows, weight.t(), out=out)
    else:
        torch.addmm(bias, rows, weight.t(), out=out)


class _MLP(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden_states, weight1, bias1, weight2, bias2):
        pixels = hidden_states.reshape(-1, hidden_states.shape[-1])
        products = pixels.new_empty(len(pixels), len(weight1))  # without bias1, which GELU adds
        outputs = pixels.new_empty(len(pixels), len(weight2))
        for pixel, product, output in _in_parts(pixels, products, outputs):
            torch.mm(pixel, weight1.t(), out=product)
            _linear(ops.internimage_gelu(product, bias1, None)[0], weight2, bias2, output)
        ctx.save_for_backward(hidden_states, products, weight1, bias1, weight2)
        return outputs.view(*hidden_states.shape[:-1], len(weight2))

    @staticmethod
    def backward(ctx, grad_output):
        return _MLPBackward.apply(ctx.needs_input_grad, grad_output, *ctx.saved_tensors)


class _MLPBackward(torch.autograd.Function):
    """A function of its own, as a second derivative would silently be zero otherwise."""

    @staticmethod
    def forward(ctx, needed, grad_output, hidden_states, products, weight1, bias1, weight2):
        needs_pixels, needs_weight1, needs_bias1, needs_weight2, needs_bias2 = needed
        needs_products = needs_pixels or needs_weight1 or needs_bias1
        pixels = hidden_states.reshape(-1, hidden_states.shape[-1])
        grad_outputs = grad_output.reshape(-1, grad_output.shape[-1])
        grad_pixels = torch.empty_like(pixels)
        grad_weight1, grad_weight2 = torch.empty_like(weight1), torch.empty_like(weight2)
        beta = 0  # of the sums that the first part begins
        grad_bias1 = weight1.new_zeros(len(weight1), dtype=torch.float64)
        for pixel, product, grad_out, grad_pixel in _in_parts(pixels, products, grad_outputs, grad_pixels):
            grad_activated = grad_out @ weight2 if needs_products else None
            activated, grad_product = ops.internimage_gelu(product, bias1, grad_activated)
            if needs_weight2:
                grad_weight2.addmm_(grad_out.t(), activated, beta=beta)
            if needs_weight1:
                grad_weight1.addmm_(grad_product.t(), pixel, beta=beta)
            if needs_bias1:
                grad_bias1 += grad_product.sum(0)
            if needs_pixels:
                torch.mm(grad_product, weight1, out=grad_pixel)
            beta = 1
        gradients = (
            grad_pixels.view(hidden_states.shape),
            grad_weight1,
            grad_bias1.to(weight1.dtype),
            grad_weight2,
            grad_outputs.sum(0) if needs_bias2 else None,
        )
        return tuple(gradient if each else None for gradient, each in zip(gradients, needed))

    @staticmethod
    def backward(ctx, *gradients):
        raise NotImplementedError("The layers of the DCNv3 kernel can be differentiated only once.")


def _gelu_fake(hidden_states, bias, grad_output):
    return torch.empty_like(hidden_states), hidden_states.new_empty(
        0 if grad_output is None else hidden_states.shape[0], hidden_states.shape[1]
    )


if "are_training_registered" not in vars(ops):  # once in a process, which may import one build under several paths
    torch.library.register_fake(add_op_namespace_prefix("internimage_gelu"), _gelu_fake)
    ops.are_training_registered = True
