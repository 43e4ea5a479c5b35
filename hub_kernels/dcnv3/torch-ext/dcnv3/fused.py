# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""
The layers of InternImage and FlashInternImage in inference on a CPU: linear layers with all that surrounds them, in
float32, float64, float16 and bfloat16, with sums and everything between them in float32 (float64 for float64). Where
the processor multiplies numbers of 16 bits faster than that, PyTorch computes the products of 16-bit layers, and the
operators all that is between products.

The operators have no derivatives. `layers.InternImageLayer` is what uses them.
"""

from typing import NamedTuple, Optional

import torch
from torch import nn
from torch.autograd import forward_ad
from torch.nn.modules import module as torch_module

from ._ops import add_op_namespace_prefix, ops


_PIXELS_PER_THREAD = 16  # with fewer, reading the weights takes longer than the products
NO_LINEAR = (None, None)
NO_NORM = (None, None, 0.0)

Linear = tuple[Optional[torch.Tensor], Optional[torch.Tensor]]  # weight and bias; the same of a convolution
Norm = tuple[Optional[torch.Tensor], Optional[torch.Tensor], float]  # weight, bias and eps


class Parts(NamedTuple):
    """The parameters of an `InternImageLayer`. What it does without is `None`."""

    norm_in1: Norm
    value: Linear
    convolution: Linear
    norm: Norm
    offset: Linear
    mask: Linear
    gate: Linear
    output: Linear
    norm_out1: Norm
    scale1: Optional[torch.Tensor]
    norm_in2: Norm
    fc1: Linear
    fc2: Linear
    norm_out2: Norm
    scale2: Optional[torch.Tensor]


def parts_to_fuse(layer: nn.Module, hidden_states: torch.Tensor) -> Optional[Parts]:
    """
    The parts of an `InternImageLayer` if the operators do what its forward method does, and faster: in inference
    (`model.eval()`, and `torch.no_grad()` or `torch.inference_mode()`), on a CPU, where all parts of the layer are as
    the model made them. Otherwise `None`: hooks, LoRA, quantised weights, autocast, `torch.func`, `torch.jit.trace`
    and `torch.export` (and with it ONNX) see the model's own modules.
    """
    if (
        layer.training
        or torch.is_grad_enabled()
        or not is_ordinary_input(hidden_states)
        or torch_module._has_any_global_hook()
    ):
        return None
    if not torch.compiler.is_compiling():  # which cannot ask for what follows
        batch_size, height, width, _ = hidden_states.shape
        if batch_size * height * width < _PIXELS_PER_THREAD * torch.get_num_threads():
            return None
    dcn, mlp = layer.dcn, layer.mlp
    is_dcnv4 = not dcn.softmax
    norm, gate = None if is_dcnv4 else dcn.depthwise_layernorm, dcn.center_feature_scale_proj
    if gate is not None and is_dcnv4:  # DCNv4's gate comes after its operator
        return None
    for activation in (mlp.activation,) if norm is None else (mlp.activation, dcn.activation):
        if not is_ordinary_gelu(activation):
            return None
    for container in (dcn, mlp, mlp.dropout, layer.drop_path):
        if is_observed(container):
            return None
    norms1, norms2 = (layer.norm1, layer.res_post_norm1), (layer.norm2, layer.res_post_norm2)
    if layer.post_norm:
        norms1, norms2 = (None, layer.norm1), (None, layer.norm2)
    modules = (
        norms1[0],
        dcn.value_proj if is_dcnv4 else dcn.input_proj,
        dcn.depthwise_convolution,
        norm,
        dcn.offset_proj,
        dcn.mask_proj,
        gate,
        dcn.output_proj,
        norms1[1],
        layer.layer_scale1,
        norms2[0],
        mlp.fc1,
        mlp.fc2,
        norms2[1],
        layer.layer_scale2,
    )
    parts = []
    for module, (kind, may_lack_bias) in zip(modules, _KINDS):
        part = module if kind is None else parameters_of(module, kind, hidden_states.dtype, may_lack_bias)
        if part is None and kind is not None:
            return None
        parts.append(part)
    return Parts(*parts)


_KINDS = (  # of the parts of a layer, and whether they may lack a bias; no kind for parameters of the layer itself
    (nn.LayerNorm, False), (nn.Linear, True), (nn.Conv2d, True), (nn.LayerNorm, False), (nn.Linear, False),
    (nn.Linear, False), (nn.Linear, False), (nn.Linear, True), (nn.LayerNorm, False), (None, False),
    (nn.LayerNorm, False), (nn.Linear, False), (nn.Linear, True), (nn.LayerNorm, False), (None, False),
)  # fmt: skip


def parameters_of(module: Optional[nn.Module], kind: type, dtype: torch.dtype, may_lack_bias: bool) -> Optional[tuple]:
    """
    The parameters of a PyTorch module (and `eps` of a LayerNorm) if it is as the model made it, with parameters of
    this dtype, otherwise `None`. Without a module the parameters are `None`.
    """
    if module is None:
        return NO_NORM if kind is nn.LayerNorm else NO_LINEAR
    if type(module) is not kind or is_observed(module):
        return None
    weight, bias = module.weight, module.bias
    if type(weight) is not nn.Parameter or weight.dtype != dtype:
        return None
    if bias is None:
        if not may_lack_bias:
            return None
    elif type(bias) is not nn.Parameter or bias.dtype != dtype:
        return None
    return (weight, bias, module.eps) if kind is nn.LayerNorm else (weight, bias)


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


def sampling(parts: Parts, hidden_states: torch.Tensor) -> tuple[Optional[torch.Tensor], ...]:
    """
    What the layer passes to its operator DCNv3 or DCNv4: the projection of `norm_in1(hidden_states)` `(batch_size,
    height, width, channels)`, and offsets, masks and gates (or `None`) from GELU(LayerNorm(depthwise convolution of
    the same)), or without any of these three.
    """
    if _has_fast_products(hidden_states.dtype):
        hidden_states = _layer_norm(hidden_states, parts.norm_in1)
        features = hidden_states
        if parts.convolution[0] is not None:
            features = ops.internimage_features(hidden_states, *parts.convolution, *parts.norm)
        heads = [head for head in (parts.offset, parts.mask, parts.gate) if head[0] is not None]
        weight, bias = (torch.cat(parameters) for parameters in zip(*heads))
        outputs = nn.functional.linear(features, weight, bias).split([len(head[0]) for head in heads], dim=-1)
        value = nn.functional.linear(hidden_states, *parts.value)
        return (value, *outputs) if parts.gate[0] is not None else (value, *outputs, None)
    value, offset, mask, center_scale = ops.internimage_sampling(
        hidden_states, *parts.norm_in1, *parts.convolution, *parts.norm, *parts.value, *parts.offset, *parts.mask,
        *parts.gate,
    )  # fmt: skip
    return value, offset, mask, None if parts.gate[0] is None else center_scale


def branch(
    hidden_states: torch.Tensor,
    residual: torch.Tensor,
    norm_in: Norm,
    hidden: Linear,
    output: Linear,
    norm_out: Norm,
    scale: Optional[torch.Tensor],
) -> torch.Tensor:
    """`residual + scale * norm_out(output(GELU(hidden(norm_in(hidden_states)))))`, or without what is `None`."""
    if _has_fast_products(hidden_states.dtype):
        hidden_states = _layer_norm(hidden_states, norm_in)
        if hidden[0] is not None:
            product = nn.functional.linear(hidden_states, hidden[0])
            hidden_states = ops.internimage_branch(
                product, None, *NO_NORM, None, hidden[1], *NO_LINEAR, *NO_NORM, None
            )
        product = nn.functional.linear(hidden_states, output[0])
        return ops.internimage_branch(product, residual, *NO_NORM, *NO_LINEAR, None, output[1], *norm_out, scale)
    return ops.internimage_branch(hidden_states, residual, *norm_in, *hidden, *output, *norm_out, scale)


def _layer_norm(hidden_states: torch.Tensor, norm: Norm) -> torch.Tensor:
    return hidden_states if norm[0] is None else nn.functional.layer_norm(hidden_states, norm[0].shape, *norm)


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
    attributes = vars(module)
    return bool(
        attributes["_forward_hooks"]
        or attributes["_forward_pre_hooks"]
        or attributes["_backward_hooks"]
        or attributes["_backward_pre_hooks"]
        or "forward" in attributes
    )


def _branch_fake(hidden_states, residual, *parameters):
    hidden_weight, output_weight = parameters[3], parameters[5]
    last = next((weight for weight in (output_weight, hidden_weight) if weight is not None), None)
    size = hidden_states.shape[3] if last is None else last.shape[0]
    return hidden_states.new_empty((*hidden_states.shape[:3], size))


def _features_fake(hidden_states, *parameters):
    return hidden_states.new_empty(hidden_states.shape)


def _sampling_fake(hidden_states, *parameters):
    weights = parameters[8::2]  # of the linear layers
    sizes = [0 if weight is None else weight.shape[0] for weight in weights]
    return tuple(hidden_states.new_empty((*hidden_states.shape[:3], size)) for size in sizes)


if "are_fused_registered" not in vars(ops):  # once in a process, which may import one build under several paths
    torch.library.register_fake(add_op_namespace_prefix("internimage_branch"), _branch_fake)
    torch.library.register_fake(add_op_namespace_prefix("internimage_features"), _features_fake)
    torch.library.register_fake(add_op_namespace_prefix("internimage_sampling"), _sampling_fake)
    ops.are_fused_registered = True
