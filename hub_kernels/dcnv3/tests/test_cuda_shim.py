# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""Runs the CUDA kernels on the CPU, compiled as ordinary C++ (see cuda_shim/cuda_shim.h). Needs g++, no GPU."""

import ctypes
import math
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from dcnv3_cases import (
    BATCHES,
    GEOMETRIES,
    GOLDEN_CASES,
    LAYER_CASES,
    check_against_reference,
    check_golden,
    check_images_alone,
    check_layer,
    random_arguments,
    results,
)
from fused_cases import (
    check_fused,
    depthwise_arguments,
    reference_depthwise_norm_gelu,
    reference_norm_residual,
    residual_arguments,
)


SHIM = Path(__file__).parent / "cuda_shim"
FLAGS = ["-std=c++20", "-Wall", "-Wextra", "-Wno-unknown-pragmas", "-Werror"]
DTYPES = [torch.float32, torch.float16, torch.bfloat16]

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")


class ShimFunction(torch.autograd.Function):
    """The kernels as a differentiable function: `dcnv3` after the library and the number of multiprocessors, which
    decides how large blocks are."""

    @staticmethod
    def forward(ctx, library, multiprocessors, value, offset, mask, center_scale, *numbers):
        ctx.save_for_backward(value, offset, mask, center_scale)
        ctx.library, ctx.multiprocessors, ctx.numbers = library, multiprocessors, numbers
        output = torch.full((*offset.shape[:3], value.shape[3]), math.nan, dtype=value.dtype)
        library.dcnv3_shim_forward(
            DTYPES.index(value.dtype), *pack((value, offset, mask, center_scale), numbers), multiprocessors,
            ctypes.c_void_p(output.data_ptr()),
        )  # fmt: skip
        return output

    @staticmethod
    def backward(ctx, grad_output):
        value, *others = ctx.saved_tensors
        inputs = [value.contiguous(), *others]
        grad_output = grad_output.contiguous()
        grad_value = torch.zeros(value.shape)
        gradients = [None if x is None else torch.full(x.shape, math.nan, dtype=x.dtype) for x in others]
        ctx.library.dcnv3_shim_backward(
            DTYPES.index(value.dtype), ctypes.c_void_p(grad_output.data_ptr()), *pack(inputs, ctx.numbers),
            ctx.multiprocessors, ctypes.c_void_p(grad_value.data_ptr()), pointers(gradients),
        )  # fmt: skip
        return None, None, grad_value.to(value.dtype), *gradients, *(None for _ in ctx.numbers)


def pack(inputs, numbers):
    value, offset = inputs[:2]
    kernel_size, stride, padding, dilation, num_groups, offset_scale, remove_center, softmax = numbers
    integers = [
        *value.shape[:3], *offset.shape[1:3], num_groups, value.shape[3] // num_groups, kernel_size,
        kernel_size**2 - remove_center, stride, padding, dilation, remove_center, softmax,
    ]  # fmt: skip
    strides = [size for x in inputs for size in (x.stride()[:3] if x is not None else (0, 0, 0))]
    return (
        pointers(inputs), (ctypes.c_int64 * 12)(*strides), (ctypes.c_int64 * 14)(*integers),
        ctypes.c_double(offset_scale),
    )  # fmt: skip


def pointers(tensors):
    return (ctypes.c_void_p * len(tensors))(*(None if x is None else x.data_ptr() for x in tensors))


def compile_shim(architecture, folder):
    """The kernels as compiled for a compute capability, 800 for 8.0."""
    path = folder / "shim.so"
    flags = [*FLAGS, f"-DDCNV3_SHIM_ARCHITECTURE={architecture}", "-O0", "-shared", "-fPIC"]
    subprocess.run(["g++", *flags, str(SHIM / "shim_ops.cpp"), "-o", str(path)], check=True)
    return ctypes.CDLL(str(path))


def make_dcnv3(library):
    return lambda *arguments, multiprocessors=1: ShimFunction.apply(library, multiprocessors, *arguments)


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    return compile_shim(900, tmp_path_factory.mktemp("sm_900"))


@pytest.fixture(scope="module")
def shim(library):
    return make_dcnv3(library)


@pytest.fixture(scope="module")
def old_shim(tmp_path_factory):
    """Before compute capability 9.0, gradients of `value` are added one number at a time."""
    return make_dcnv3(compile_shim(800, tmp_path_factory.mktemp("sm_800")))


@pytest.mark.parametrize("name", GOLDEN_CASES)
def test_golden(shim, name):
    check_golden(shim, name)


@pytest.mark.parametrize("name", LAYER_CASES)
def test_golden_layer(shim, name):
    check_layer(shim, name)


@pytest.mark.parametrize("geometry", BATCHES)
def test_images_alone(shim, geometry):
    """With two groups, which is quicker: the number of groups does not change which image a block belongs to."""

    def function(*arguments):
        return shim(*arguments, multiprocessors=132)

    check_images_alone(function, random_arguments(**BATCHES[geometry] | {"num_groups": 2}), exact_sums=False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_parity(shim, geometry, dtype):
    check_against_reference(shim, random_arguments(dtype, **GEOMETRIES[geometry]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("group_channels", [5, 8, 16, 32, 64, 129])
def test_parity_before_sm_90(old_shim, group_channels, dtype):
    geometry = {"num_groups": 1, "gate": True, "group_channels": group_channels}
    check_against_reference(old_shim, random_arguments(dtype, **geometry))


@pytest.mark.parametrize("group_channels", [5, 16, 129])
def test_half_precision(shim, group_channels):
    geometry = {"num_groups": 1, "gate": True, "group_channels": group_channels}
    check_against_reference(shim, random_arguments(torch.float16, **geometry))


@pytest.mark.parametrize("num_groups", [1, 2, 5, 7, 11, 13, 20])
@pytest.mark.parametrize("multiprocessors", [1, 1000], ids=["large blocks", "small blocks"])
def test_tiles(shim, num_groups, multiprocessors):
    """Groups and pixels that do not fill the last blocks."""
    arguments = random_arguments(height=11, width=13 if num_groups < 8 else 3, num_groups=num_groups, group_channels=8)
    check_against_reference(lambda *a: shim(*a, multiprocessors=multiprocessors), arguments)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_strided_inputs(shim, dtype):
    """`offset` and `mask` from one projection, at odd addresses; `value` within wider and longer rows; a crop."""
    arguments = random_arguments(dtype, gate=True, group_channels=16)
    value, offset, mask, center_scale = (tensor.detach() for tensor in arguments[:4])

    def check(*tensors):
        contiguous = [tensor.contiguous() for tensor in tensors]
        actual, expected = (
            results(shim, [*(tensor.detach().requires_grad_() for tensor in some), *arguments[4:]])
            for some in (tensors, contiguous)
        )
        torch.testing.assert_close(actual, expected)

    for before in (0, 1, 8):
        joint = torch.cat((torch.ones_like(offset[..., :before]), offset, mask, center_scale), dim=-1)
        wide = torch.zeros(3, 7, 8, before + 48, dtype=dtype)
        crop = wide[:2, 1:6, 1:7, before : before + 32]
        crop.copy_(value)
        check(crop, *joint.split([before, 36, 18, 2], dim=-1)[1:])
    # One mask for the whole batch, columns before rows.
    value = value.transpose(1, 2).contiguous().transpose(1, 2)
    check(value, offset, mask[:1].expand(2, -1, -1, -1), center_scale)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("group_channels", [5, 16])
def test_images_as_large_as_32_bits_count(shim, group_channels, dtype):
    """With padding, 2**31 - 1 pixels on a side, all of them the same memory. Outputs at 0 and 2**30."""
    for height, width in ((2**31 - 3, 2**27), (2**27, 2**31 - 3)):
        out = (1, 2, 1) if height > width else (1, 1, 2)
        value = torch.ones(group_channels, dtype=dtype).expand(1, height, width, group_channels)
        offset, mask = (torch.zeros(*out, size, dtype=dtype) for size in (18, 9))
        output = shim(value, offset, mask, None, 3, 2**30, 1, 1, 1, 1.0, False, True, multiprocessors=100)
        expected = torch.tensor([4 / 9, 6 / 9], dtype=dtype)
        torch.testing.assert_close(output, expected.view(*out, 1).expand(*out, group_channels))


@pytest.mark.parametrize("group_channels", [5, 16])
@pytest.mark.parametrize("offset", [1e6, -1e30, math.inf, -math.inf])
def test_far_offsets(shim, group_channels, offset):
    arguments = random_arguments(group_channels=group_channels)
    with torch.no_grad():
        arguments[1][0, 1, 2, ::3] = offset
    check_against_reference(shim, arguments)


def test_integer_positions(shim):
    """Samples at integer positions, also exactly one pixel outside. The gradient of `offset` is one-sided there."""
    arguments = random_arguments(num_groups=1, group_channels=16, offset_scale=1.0, spread=1.5)
    with torch.no_grad():
        arguments[1].round_()
    check_against_reference(shim, arguments)


@pytest.mark.parametrize("group_channels", [5, 16])
@pytest.mark.parametrize("name", ["offset", "mask"])
def test_nan_stays_in_its_item(shim, name, group_channels):
    arguments = random_arguments(group_channels=group_channels)
    clean = results(shim, arguments)
    with torch.no_grad():
        arguments[1 if name == "offset" else 2][0, 1, 2, 0] = math.nan
    for tensor in arguments[:3]:
        tensor.grad = None
    actual = results(shim, arguments)
    assert actual["output"][0, 1, 2, :group_channels].isnan().all()
    clean["output"][0, 1, 2, :group_channels] = actual["output"][0, 1, 2, :group_channels] = 0
    torch.testing.assert_close(actual["output"], clean["output"])
    torch.testing.assert_close(actual["value"][..., group_channels:], clean["value"][..., group_channels:])
    assert actual["mask"][0, 1, 2, :9].isnan().all() and not actual["mask"][0, 1, 2, 9:].isnan().any()


def test_extreme_logits(shim):
    arguments = random_arguments(group_channels=16, gate=True)
    with torch.no_grad():
        arguments[2].mul_(1e4)
        arguments[3].mul_(1e4)
    check_against_reference(shim, arguments)


def depthwise_norm_gelu(library, hidden_states, weight, bias, norm_weight, norm_bias, eps=1e-6):
    output = torch.full(hidden_states.shape, math.nan, dtype=hidden_states.dtype)
    tensors = (hidden_states, weight, bias, norm_weight, norm_bias, output)
    numbers = (*hidden_states.shape, weight.shape[2], *hidden_states.stride()[:3], *weight.stride()[2:])
    library.dcnv3_shim_depthwise_norm_gelu(
        DTYPES.index(output.dtype), pointers(tensors), (ctypes.c_int64 * 10)(*numbers), ctypes.c_double(eps)
    )
    return output


def norm_residual(library, residual, branch, bias, norm_weight, norm_bias, scale, eps=1e-6):
    output = torch.full(residual.shape, math.nan, dtype=residual.dtype)
    tensors = (residual, branch, bias, norm_weight, norm_bias, scale, output)
    rows, channels = residual.flatten(0, -2).shape
    library.dcnv3_shim_norm_residual(
        DTYPES.index(output.dtype), pointers(tensors), ctypes.c_int64(rows), ctypes.c_int64(channels),
        ctypes.c_double(eps),
    )  # fmt: skip
    return output


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("shape", "kernel_size"),
    # Every kernel that is compiled; numbers that vectors do not divide; rows that groups do not fill.
    [((2, 3, 5, 64), 3), ((1, 4, 9, 112), 3), ((1, 3, 3, 264), 3), ((1, 2, 3, 520), 3), ((1, 1, 2, 1032), 3),
     ((2, 4, 5, 24), 5), ((1, 1, 1, 4096), 7), ((1, 5, 6, 3), 3), ((1, 2, 3, 67), 5), ((1, 1, 1, 8), 1)],
)  # fmt: skip
def test_depthwise_norm_gelu(library, shape, kernel_size, dtype):
    arguments = depthwise_arguments(shape, kernel_size, dtype)
    check_fused(lambda *tensors: depthwise_norm_gelu(library, *tensors), reference_depthwise_norm_gelu, arguments)


@pytest.mark.parametrize("columns", [8, 7], ids=["aligned", "unaligned"])
def test_depthwise_norm_gelu_of_strided_tensors(library, columns):
    """A crop of a larger image, and a weight in the order in which torch keeps it and in that of the kernel."""
    hidden_states, *others = depthwise_arguments((2, 5, 6, 16), 3, torch.float32)
    wide = torch.randn(3, 7, 9, columns + 16)
    crop = wide[1:, 1:6, 2:8, columns:]
    crop.copy_(hidden_states)
    expected = depthwise_norm_gelu(library, hidden_states, *others)
    torch.testing.assert_close(depthwise_norm_gelu(library, crop, *others), expected)
    one_by_one = [torch.empty(tensor.numel() + 1)[1:].view(tensor.shape).copy_(tensor) for tensor in others[1:]]
    torch.testing.assert_close(depthwise_norm_gelu(library, crop, others[0], *one_by_one), expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("channels", [5, 64, 112, 264, 1032, 4096])
def test_norm_residual(library, channels, dtype):
    for present in ((1, 1, 1), (0, 1, 0), (1, 0, 1), (0, 0, 1), (1, 0, 0), (0, 1, 1)):
        arguments = residual_arguments((2, 3, channels), dtype, *present)
        check_fused(lambda *tensors: norm_residual(library, *tensors), reference_norm_residual, arguments)


def test_sanitizers(tmp_path):
    """The same kernels over awkward shapes and offsets under the address and undefined-behaviour sanitizers."""
    program = tmp_path / "sanitize"
    sanitizers = "-fsanitize=address,undefined,float-cast-overflow"
    command = ["g++", "-std=c++20", "-w", "-g1", sanitizers, "-fno-sanitize-recover=all", str(SHIM / "sanitize.cpp")]
    subprocess.run([*command, "-o", str(program)], check=True)
    result = subprocess.run([str(program)], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
