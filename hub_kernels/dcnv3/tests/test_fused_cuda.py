# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""The fused operators for inference as torch sees them: fake tensors, errors, and results on a GPU. Their CUDA source
runs on the CPU in test_cuda_shim.py."""

import pytest
import torch
from fused_cases import (
    check_fused,
    depthwise_arguments,
    reference_depthwise_norm_gelu,
    reference_norm_residual,
    residual_arguments,
)


def depthwise(dtype=torch.float32, device="meta"):
    return depthwise_arguments((2, 7, 6, 16), 3, dtype, device)


def residual(dtype=torch.float32, device="meta"):
    return residual_arguments((2, 7, 6, 16), dtype, True, True, True, device)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_fake_tensors(kernel, dtype):
    for operator, arguments in ((kernel.ops.depthwise_norm_gelu, depthwise), (kernel.ops.norm_residual, residual)):
        tensors = arguments(dtype)
        output = operator(*tensors, 1e-6)
        assert (output.shape, output.dtype, output.device.type) == (tensors[0].shape, dtype, "meta")
        assert output.is_contiguous()


def bad_arguments():
    meta = torch.empty
    return {
        "hidden_states, rank": ("depthwise_norm_gelu", 0, meta(7, 6, 16), "hidden_states"),
        "hidden_states, dtype": ("depthwise_norm_gelu", 0, meta(2, 7, 6, 16, dtype=torch.float64), "hidden_states"),
        "hidden_states, channels": ("depthwise_norm_gelu", 0, meta(2, 7, 6, 4097), "hidden_states"),
        "weight, even": ("depthwise_norm_gelu", 1, meta(16, 1, 2, 2), "weight"),
        "weight, not depthwise": ("depthwise_norm_gelu", 1, meta(16, 16, 3, 3), "weight"),
        "bias, shape": ("depthwise_norm_gelu", 2, meta(15), "bias"),
        "norm_bias, dtype": ("depthwise_norm_gelu", 4, meta(16, dtype=torch.float16), "norm_bias"),
        "branch, shape": ("norm_residual", 1, meta(2, 7, 5, 16), "branch"),
        "norm_bias, missing": ("norm_residual", 4, None, "norm_bias"),
        "scale, shape": ("norm_residual", 5, meta(1), "scale"),
    }


@pytest.mark.parametrize("name", bad_arguments())
def test_bad_arguments(kernel, device, name):
    """The sentence names the argument, also where nothing runs."""
    operator, position, bad, argument = bad_arguments()[name]
    for place in ["meta"] + ["cuda"] * (device == "cuda"):
        tensors = (depthwise if operator == "depthwise_norm_gelu" else residual)(device=place)
        tensors[position] = bad if bad is None else bad.to(place)
        with pytest.raises(RuntimeError, match=f"`{argument}`"):
            getattr(kernel.ops, operator)(*tensors, 1e-6)


def test_no_gradients(kernel):
    tensors = residual()
    output = kernel.ops.norm_residual(tensors[0].requires_grad_(), *tensors[1:], 1e-6)
    with pytest.raises(NotImplementedError, match="inference only"):
        output.sum().backward()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("channels", [5, 64, 112, 512, 1024, 4096])
def test_results_on_a_gpu(build, channels, dtype):
    from kernels import get_kernel

    build("cuda")
    ops = get_kernel("kernels-community/dcnv3", version=1, backend="cuda").ops
    for kernel_size in (3, 5):
        check_fused(
            lambda *tensors: ops.depthwise_norm_gelu(*tensors, 1e-6),
            reference_depthwise_norm_gelu,
            depthwise_arguments((2, 7, 9, channels), kernel_size, dtype, "cuda"),
        )
    for present in ((1, 1, 1), (0, 1, 0), (1, 0, 1)):
        check_fused(
            lambda *tensors: ops.norm_residual(*tensors, 1e-6),
            reference_norm_residual,
            residual_arguments((2, 7, 9, channels), dtype, *present, "cuda"),
        )
