# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""The fused operators for inference against the same in PyTorch, eager and compiled."""

import math
import sys

import torch
from torch.nn import functional

from .cases import BENCHMARKS, largest_error
from .model import tf32


EPS = 1e-6


def depthwise_norm_gelu(hidden_states, weight, bias, norm_weight, norm_bias):
    channels = hidden_states.shape[3]
    convolved = functional.conv2d(hidden_states.permute(0, 3, 1, 2), weight, bias, padding=1, groups=channels)
    normalized = functional.layer_norm(convolved.permute(0, 2, 3, 1), (channels,), norm_weight, norm_bias, EPS)
    return functional.gelu(normalized)


def norm_residual(residual, branch, bias, norm_weight, norm_bias, scale):
    normalized = functional.layer_norm(branch + bias, branch.shape[-1:], norm_weight, norm_bias, EPS)
    return residual + scale * normalized


def make_operands(operator, shape, dtype, worker, seed):
    generator = torch.Generator(worker.device).manual_seed(seed)

    def random(*sizes):
        return torch.randn(sizes, device=worker.device, generator=generator)

    height, width, groups = BENCHMARKS[shape]
    channels = 16 * groups
    image = (2 if worker.device == "cpu" else 64, height, width, channels)
    if operator is depthwise_norm_gelu:
        # With contiguous channels in memory: the kernel then makes no copy.
        tensors = [random(*image), random(3, 3, 1, channels).permute(3, 2, 0, 1)]
        tensors += [random(channels) for _ in range(3)]
    else:
        tensors = [random(*image), random(*image), *(random(channels) for _ in range(4))]
    return [tensor.to(dtype) for tensor in tensors]


def check(function, operator, operands):
    """On the first two images: at most twice the error of PyTorch with this dtype, or one rounding of the largest."""
    images = 1 if operator is depthwise_norm_gelu else 2
    operands = [tensor[:2] if index < images else tensor for index, tensor in enumerate(operands)]
    exact = operator(*(tensor.double() for tensor in operands))
    rounding = torch.finfo(operands[0].dtype).eps / 2 * exact.abs().max().item()
    error, plain = (largest_error(f(*operands), exact) for f in (function, operator))
    allowed = max(2 * plain, rounding)
    return {"ok": error <= allowed, "error": error, "allowed": allowed, "plain": plain}


@torch.no_grad()
@tf32(False)
def benchmark_fused(operator, shape, dtype_name, worker):
    """Batches of 64 images (on a CPU two, and only PyTorch's: the operators are those of CUDA)."""
    ops = sys.modules[worker.kernel.__name__ + "._ops"].ops
    first = make_operands(operator, shape, getattr(torch, dtype_name), worker, 0)
    count = 1
    if worker.device == "cuda":
        size = sum(tensor.nbytes for tensor in first)
        count = max(4, math.ceil(4 * torch.cuda.get_device_properties(0).L2_cache_size / size))
    sets = [first] + [make_operands(operator, shape, first[0].dtype, worker, seed) for seed in range(1, count)]
    torch.compiler.reset()
    functions = {"PyTorch": operator, "torch.compile": torch.compile(operator, dynamic=False)}
    report = {"ok": True, "bytes": (2 if operator is depthwise_norm_gelu else 3) * first[0].nbytes}
    if worker.device == "cuda":
        functions["ours"] = lambda *tensors: getattr(ops, operator.__name__)(*tensors, EPS)
        report |= {"parity": {"output": check(functions["ours"], operator, first)}}
        report["ok"] = report["parity"]["output"]["ok"]
    for name, function in functions.items() if report["ok"] else ():
        timing = worker.timer.cold(lambda index, function=function: lambda: function(*sets[index]), len(sets))
        report[name] = timing["cold"]
    return report
