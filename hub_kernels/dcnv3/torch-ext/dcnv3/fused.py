# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""
The layers of InternImage and FlashInternImage in inference on a CPU: linear layers with all that surrounds them, in
float32, float64, float16 and bfloat16, with sums and everything between them in float32 (float64 for float64). Where
the processor multiplies numbers of 16 bits faster than that, PyTorch computes the products of 16-bit layers, and the
operators all that is between products.

The operators have no derivatives. `layers.InternImageLayer` is what uses them.
"""

from typing import Optional

import torch
from torch import nn
from torch.autograd import forward_ad
from torch.nn.modules import module as torch_module

from ._ops import add_op_namespace_prefix, ops


_PIXELS_PER_THREAD = 16  # with fewer, reading the weights takes longer than the products


def can_fuse(layer: nn.Module, hidden_states: torch.Tensor) -> bool:
    """
    Whether the operators do what the forward method of an `InternImageLayer` does, and faster: in inference
    (`model.eval()`, and `torch.no_grad()` or `torch.inference_mode()`), on a CPU, where all parts of the layer are as
    the model made them. Hooks, LoRA, quantised weights, autocast, `torch.func`, `torch.jit.trace` and `torch.export`
    (and with it ONNX) see the model's own modules.
    """
    if (
        layer.training
        or torch.is_grad_enabled()
        or not is_ordinary_input(hidden_states)
        or torch_module._has_any_global_hook()
    ):
        return False
    if not torch.compiler.is_compiling():  # which cannot ask for what follows
        batch_size, height, width, _ = hidden_states.shape
        if batch_size * height * width < _PIXELS_PER_THREAD * torch.get_num_threads():
            return False
    dcn, mlp = layer.dcn, layer.mlp
    norm, gate = getattr(dcn, "depthwise_layernorm", None), dcn.center_feature_scale_proj
    if gate is not None and hasattr(dcn, "value_proj"):  # DCNv4's gate comes after its operator
        return False
    for activation in (mlp.activation,) if norm is None else (mlp.activation, dcn.activation):
        if not is_ordinary_gelu(activation):
            return False
    for container in (dcn, mlp, mlp.dropout, layer.drop_path):
        if is_observed(container):
            return False
    dtype = hidden_states.dtype
    may_lack_bias = (_value_projection(dcn), dcn.output_proj, mlp.fc2, dcn.depthwise_convolution)
    for kind, modules in (
        (nn.Linear, (_value_projection(dcn), dcn.offset_proj, dcn.mask_proj, gate, dcn.output_proj, mlp.fc1, mlp.fc2)),
        (nn.LayerNorm, (layer.norm1, layer.norm2, layer.res_post_norm1, layer.res_post_norm2, norm)),
        (nn.Conv2d, (dcn.depthwise_convolution,)),
    ):
        for module in modules:
            if module is not None and not is_ordinary_module(module, kind, dtype, module in may_lack_bias):
                return False
    return True


def is_ordinary_input(hidden_states: torch.Tensor) -> bool:
    """Whether these are pixels (batch_size, height, width, channels) on a CPU that nothing traces or transforms."""
    if (
        hidden_states.device.type != "cpu"
        or hidden_states.dim() != 4
        or torch.is_autocast_enabled("cpu")
        or torch.jit.is_tracing()
        or torch.compiler.is_exporting()
    ):
        return False
    if torch.compiler.is_compiling():  # which cannot ask for what follows
        return True
    is_wrapped = torch.func.debug_unwrap(hidden_states, recurse=False) is not hidden_states
    return not is_wrapped and forward_ad.unpack_dual(hidden_states).tangent is None


def is_ordinary_gelu(activation: nn.Module) -> bool:
    return getattr(activation, "act", None) is nn.functional.gelu and not is_observed(activation)


def is_ordinary_module(module: nn.Module, kind: type, dtype: torch.dtype, may_lack_bias: bool) -> bool:
    """Whether this is a PyTorch module as the model made it, with parameters of this dtype."""
    if type(module) is not kind or is_observed(module):
        return False
    for parameter in (module.weight, module.bias):
        if parameter is None and may_lack_bias:
            continue
        if type(parameter) is not nn.Parameter or parameter.dtype != dtype:
            return False
    return True


def sampling(dcn: nn.Module, hidden_states: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """
    What an `InternImageDCNv3` or `InternImageDCNv4` passes to its operator: the projection of `hidden_states`
    `(batch_size, height, width, channels)`, and offsets, masks and gates (or `None`) from GELU(LayerNorm(depthwise
    convolution(hidden_states))), or without any of these three.
    """
    convolution, norm = dcn.depthwise_convolution, getattr(dcn, "depthwise_layernorm", None)
    projection, gate = _value_projection(dcn), dcn.center_feature_scale_proj
    if _has_fast_products(hidden_states.dtype):
        features = hidden_states
        if convolution is not None:
            features = ops.internimage_features(
                hidden_states, *_parameters(convolution), *_parameters(norm), 0.0 if norm is None else norm.eps
            )
        heads = [head for head in (dcn.offset_proj, dcn.mask_proj, gate) if head is not None]
        weight, bias = (torch.cat(parameters) for parameters in zip(*map(_parameters, heads)))
        outputs = nn.functional.linear(features, weight, bias).split([head.out_features for head in heads], dim=-1)
        value = nn.functional.linear(hidden_states, projection.weight, projection.bias)
        return (value, *outputs) if gate is not None else (value, *outputs, None)
    value, offset, mask, center_scale = ops.internimage_sampling(
        hidden_states, *_parameters(convolution), *_parameters(norm), 0.0 if norm is None else norm.eps,
        *_parameters(projection), *_parameters(dcn.offset_proj), *_parameters(dcn.mask_proj),
        *_parameters(gate),
    )  # fmt: skip
    return value, offset, mask, None if gate is None else center_scale


def branch(
    hidden_states: torch.Tensor,
    residual: Optional[torch.Tensor],
    *,
    output: nn.Linear,
    norm_in: Optional[nn.LayerNorm] = None,
    hidden: Optional[nn.Linear] = None,
    norm_out: Optional[nn.LayerNorm] = None,
    scale: Optional[torch.Tensor] = None,
) -> torch.Tensor:
    """`residual + scale * norm_out(output(GELU(hidden(norm_in(hidden_states)))))`, or without any of the optional."""
    norm_in_arguments = (*_parameters(norm_in), 0.0 if norm_in is None else norm_in.eps)
    norm_out_arguments = (*_parameters(norm_out), 0.0 if norm_out is None else norm_out.eps)
    if _has_fast_products(hidden_states.dtype):
        if norm_in is not None:
            hidden_states = nn.functional.layer_norm(hidden_states, norm_in.normalized_shape, *norm_in_arguments)
        if hidden is not None:
            product = nn.functional.linear(hidden_states, hidden.weight)
            hidden_states = ops.internimage_branch(
                product, None, None, None, 0.0, None, hidden.bias, None, None, None, None, 0.0, None
            )
        product = nn.functional.linear(hidden_states, output.weight)
        return ops.internimage_branch(
            product, residual, None, None, 0.0, None, None, None, output.bias, *norm_out_arguments, scale
        )
    return ops.internimage_branch(
        hidden_states, residual, *norm_in_arguments, *_parameters(hidden), *_parameters(output), *norm_out_arguments,
        scale,
    )  # fmt: skip


def _value_projection(dcn: nn.Module) -> nn.Module:
    return dcn.input_proj if hasattr(dcn, "input_proj") else dcn.value_proj


def _parameters(module: Optional[nn.Module]) -> tuple[Optional[torch.Tensor], Optional[torch.Tensor]]:
    return (None, None) if module is None else (module.weight, module.bias)


def _has_fast_products(dtype: torch.dtype) -> bool:
    """Whether this processor multiplies numbers of 16 bits faster than float32, as torch's linear layers then do."""
    if dtype in (torch.float32, torch.float64):
        return False
    if not hasattr(torch.cpu, "get_capabilities"):  # an older torch does not say; its own products are a safe choice
        return True
    instructions = ("amx_bf16",) if dtype == torch.bfloat16 else ("amx_fp16", "avx512_fp16")
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(instruction, False) for instruction in instructions)


def is_observed(module: nn.Module) -> bool:
    """
    Whether something sees what this module takes and returns, or their gradients: hooks, or another forward method, as
    accelerate gives it. PyTorch has no public way to ask, nor for hooks of all modules (`_has_any_global_hook`).
    """
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or "forward" in vars(module)
    )


def _branch_fake(hidden_states, residual, *parameters):
    hidden_weight, output_weight = parameters[3], parameters[5]
    last = next((weight for weight in (output_weight, hidden_weight) if weight is not None), None)
    size = hidden_states.shape[3] if last is None else last.shape[0]
    return hidden_states.new_empty((*hidden_states.shape[:3], size))


def _features_fake(hidden_states, *parameters):
    return hidden_states.new_empty(hidden_states.shape)


def _sampling_fake(hidden_states, *parameters):
    weights = parameters[5::2]  # of the linear layers
    sizes = [0 if weight is None else weight.shape[0] for weight in weights]
    return tuple(hidden_states.new_empty((*hidden_states.shape[:3], size)) for size in sizes)


if "are_fused_registered" not in vars(ops):  # once in a process, which may import one build under several paths
    torch.library.register_fake(add_op_namespace_prefix("internimage_branch"), _branch_fake)
    torch.library.register_fake(add_op_namespace_prefix("internimage_features"), _features_fake)
    torch.library.register_fake(add_op_namespace_prefix("internimage_sampling"), _sampling_fake)
    ops.are_fused_registered = True
