# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""
The layers of InternImage and FlashInternImage in inference on a CPU: linear layers with all that surrounds them, in
float32, float64, float16 and bfloat16, with sums and everything between them in float32 (float64 for float64).

Their operators have no derivatives. `layers.InternImageLayer` is what uses them.
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
        or hidden_states.device.type != "cpu"
        or hidden_states.dim() != 4
        or torch.is_autocast_enabled("cpu")
        or torch.jit.is_tracing()
        or torch.compiler.is_exporting()
        or _has_fast_products(hidden_states.dtype)
    ):
        return False
    if not torch.compiler.is_compiling():  # which cannot ask for what follows
        batch_size, height, width, _ = hidden_states.shape
        if batch_size * height * width < _PIXELS_PER_THREAD * torch.get_num_threads():
            return False
        is_wrapped = torch.func.debug_unwrap(hidden_states, recurse=False) is not hidden_states
        if is_wrapped or forward_ad.unpack_dual(hidden_states).tangent is not None:
            return False
    dcn, mlp = layer.dcn, layer.mlp
    projections = [_value_projection(dcn), dcn.offset_proj, dcn.mask_proj, dcn.output_proj, mlp.fc1, mlp.fc2]
    norms = [layer.norm1, layer.norm2, layer.res_post_norm1, layer.res_post_norm2]
    activations = [mlp.activation]
    if dcn.center_feature_scale_proj is not None:
        if _value_projection(dcn) is not dcn.input_proj:  # the gate of DCNv4 comes after the operator
            return False
        projections.append(dcn.center_feature_scale_proj)
    norm = getattr(dcn, "depthwise_layernorm", None)
    if norm is not None:
        norms.append(norm)
        activations.append(dcn.activation)
    modules = [(module, nn.Linear) for module in projections]
    modules += [(module, nn.LayerNorm) for module in norms if module is not None]
    if dcn.depthwise_convolution is not None:
        modules.append((dcn.depthwise_convolution, nn.Conv2d))
    return (
        all(type(module) is kind for module, kind in modules)
        and all(getattr(activation, "act", None) is nn.functional.gelu for activation in activations)
        and all(
            type(parameter) is nn.Parameter and parameter.dtype == hidden_states.dtype
            for module, _ in modules
            for parameter in (module.weight, module.bias)
            if parameter is not None
        )
        and not _are_hooked([dcn, mlp, layer.drop_path, mlp.dropout, *activations, *(module for module, _ in modules)])
    )


def sampling(dcn: nn.Module, hidden_states: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """
    What an `InternImageDCNv3` or `InternImageDCNv4` passes to its operator: the projection of `hidden_states`
    `(batch_size, height, width, channels)`, and offsets, masks and gates (or `None`) from GELU(LayerNorm(depthwise
    convolution(hidden_states))), or without any of these three.
    """
    convolution, norm = dcn.depthwise_convolution, getattr(dcn, "depthwise_layernorm", None)
    gate = dcn.center_feature_scale_proj
    value, offset, mask, center_scale = ops.internimage_sampling(
        hidden_states, *_parameters(convolution), *_parameters(norm), 0.0 if norm is None else norm.eps,
        *_parameters(_value_projection(dcn)), *_parameters(dcn.offset_proj), *_parameters(dcn.mask_proj),
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
    return ops.internimage_branch(
        hidden_states, residual, *_parameters(norm_in), 0.0 if norm_in is None else norm_in.eps,
        *_parameters(hidden), *_parameters(output), *_parameters(norm_out),
        0.0 if norm_out is None else norm_out.eps, scale,
    )  # fmt: skip


def _value_projection(dcn: nn.Module) -> nn.Module:
    return dcn.input_proj if hasattr(dcn, "input_proj") else dcn.value_proj


def _parameters(module: Optional[nn.Module]) -> tuple[Optional[torch.Tensor], Optional[torch.Tensor]]:
    return (None, None) if module is None else (module.weight, module.bias)


def _has_fast_products(dtype: torch.dtype) -> bool:
    """Whether this processor multiplies numbers of 16 bits faster than float32, as torch's linear layers then do."""
    if dtype in (torch.float32, torch.float64):
        return False
    instructions = ("amx_bf16", "avx512_bf16") if dtype == torch.bfloat16 else ("amx_fp16", "avx512_fp16")
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(instruction, False) for instruction in instructions)


def _are_hooked(modules: list[nn.Module]) -> bool:
    """
    Whether something observes these modules: hooks, of theirs or of all modules, or another forward method, as
    accelerate gives them. PyTorch has no public way to ask.
    """
    return torch_module._has_any_global_hook() or any(
        module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module) for module in modules
    )


def _branch_fake(hidden_states, residual, *parameters):
    output_weight = parameters[5]
    return hidden_states.new_empty((*hidden_states.shape[:3], output_weight.shape[0]))


def _sampling_fake(hidden_states, *parameters):
    weights = parameters[5::2]  # of the linear layers
    sizes = [0 if weight is None else weight.shape[0] for weight in weights]
    return tuple(hidden_states.new_empty((*hidden_states.shape[:3], size)) for size in sizes)


if "are_fused_registered" not in vars(ops):  # once in a process, which may import one build under several paths
    torch.library.register_fake(add_op_namespace_prefix("internimage_branch"), _branch_fake)
    torch.library.register_fake(add_op_namespace_prefix("internimage_sampling"), _sampling_fake)
    ops.are_fused_registered = True
