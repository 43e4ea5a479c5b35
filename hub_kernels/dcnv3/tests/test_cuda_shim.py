# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""Runs the CUDA kernels on the CPU, compiled as ordinary C++ (see cuda_shim/cuda_shim.h). Needs g++, no GPU."""

import ctypes
import json
import math
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from dcnv3_cases import pytorch_definition


SHIM = Path(__file__).parent / "cuda_shim"
GOLDEN = Path(__file__).parents[3] / "tests" / "fixtures" / "golden" / "dcnv3"
CASES = json.loads((GOLDEN / "op.json").read_text())
FLAGS = ["-std=c++20", "-Wall", "-Wextra", "-Wno-unknown-pragmas", "-Werror"]
DTYPES = [torch.float32, torch.float16, torch.bfloat16]

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")


@pytest.fixture(scope="module", params=[800, 900], ids="sm_{}".format)
def shim(request, tmp_path_factory):
    library = tmp_path_factory.mktemp("cuda_shim") / "shim.so"
    flags = [*FLAGS, f"-DDCNV3_SHIM_ARCHITECTURE={request.param}", "-O1", "-shared", "-fPIC"]
    subprocess.run(["g++", *flags, str(SHIM / "shim_ops.cpp"), "-o", str(library)], check=True)
    return ctypes.CDLL(str(library))


class Case:
    """The arguments of one call: four tensors, of which the last may be None, and numbers."""

    def __init__(
        self, value, offset, mask, center_scale=None, *, kernel_size=3, stride=1, padding=1, dilation=1, num_groups=1,
        offset_scale=1.0, remove_center=False, softmax=True,
    ):  # fmt: skip
        self.inputs = [value, offset, mask, center_scale]
        self.numbers = {
            "kernel_size": kernel_size, "stride": stride, "padding": padding, "dilation": dilation,
            "num_groups": num_groups, "offset_scale": offset_scale, "remove_center": remove_center, "softmax": softmax,
        }  # fmt: skip

    @classmethod
    def random(
        cls, seed, shape, num_groups, gated=False, dtype=torch.float32, offset_std=1.5, kernel_size=3, stride=1,
        padding=1, dilation=1, remove_center=False, **kwargs,
    ):  # fmt: skip
        generator = torch.Generator().manual_seed(seed)
        batch_size, height, width, _ = shape
        extent = dilation * (kernel_size - 1) + 1
        pixels = (
            batch_size,
            (height + 2 * padding - extent) // stride + 1,
            (width + 2 * padding - extent) // stride + 1,
        )
        num_points = kernel_size**2 - remove_center

        def normal(*shape):
            return torch.randn(shape, generator=generator)

        return cls(
            normal(*shape).to(dtype),
            (normal(*pixels, num_groups * num_points * 2) * offset_std).to(dtype),
            normal(*pixels, num_groups * num_points).to(dtype),
            normal(*pixels, num_groups).to(dtype) if gated else None,
            num_groups=num_groups, kernel_size=kernel_size, stride=stride, padding=padding, dilation=dilation,
            remove_center=remove_center, **kwargs,
        )  # fmt: skip

    def cotangent(self):
        value, offset = self.inputs[:2]
        generator = torch.Generator().manual_seed(1)
        return torch.randn((*offset.shape[:3], value.shape[3]), generator=generator).to(value.dtype)

    def expected(self):
        """Output and gradients of the PyTorch definition in float64; of its branch that divides no positions, so that
        those at integers, of which there are many in half precision, stay there."""
        inputs = [None if x is None else x.detach().double().requires_grad_() for x in self.inputs]
        output = pytorch_definition()(*inputs, **self.numbers)
        output.backward(self.cotangent().double())
        return output.detach(), *(None if x is None else x.grad for x in inputs)

    def _arguments(self, inputs):
        value, offset, mask, center_scale = inputs
        n = self.numbers
        num_points = n["kernel_size"] ** 2 - n["remove_center"]
        numbers = [
            *value.shape[:3], *offset.shape[1:3], n["num_groups"], value.shape[3] // n["num_groups"], n["kernel_size"],
            num_points, n["stride"], n["padding"], n["dilation"], n["remove_center"], n["softmax"],
        ]  # fmt: skip
        strides = [s for x in inputs for s in (x.stride()[:3] if x is not None else (0, 0, 0))]
        return (
            _pointers(inputs),
            (ctypes.c_int64 * 12)(*strides),
            (ctypes.c_int64 * 14)(*numbers),
            ctypes.c_double(n["offset_scale"]),
        )

    def forward(self, shim, num_multiprocessors=1):
        output = torch.full_like(self.cotangent(), math.nan)
        shim.dcnv3_shim_forward(
            DTYPES.index(output.dtype), *self._arguments(self.inputs), num_multiprocessors,
            ctypes.c_void_p(output.data_ptr()),
        )  # fmt: skip
        return output

    def run(self, shim, num_multiprocessors=1):
        """Output and gradients of the kernels."""
        value = self.inputs[0]
        dtype = DTYPES.index(value.dtype)
        grad_output = self.cotangent()
        output = self.forward(shim, num_multiprocessors)
        inputs = [value.contiguous(), *self.inputs[1:]]
        grad_value = torch.zeros(value.shape)
        gradients = [None if x is None else torch.full(x.shape, math.nan, dtype=x.dtype) for x in inputs[1:]]
        shim.dcnv3_shim_backward(
            dtype, ctypes.c_void_p(grad_output.data_ptr()), *self._arguments(inputs), num_multiprocessors,
            ctypes.c_void_p(grad_value.data_ptr()), _pointers(gradients),
        )  # fmt: skip
        return output, grad_value, *gradients

    def check(self, shim, **kwargs):
        dtype = self.inputs[0].dtype
        rtol = {torch.float32: 1e-4, torch.float16: 2**-10, torch.bfloat16: 2**-7}[dtype]
        names = "output", "grad_value", "grad_offset", "grad_mask", "grad_center_scale"
        for name, actual, expected in zip(names, self.run(shim, **kwargs), self.expected()):
            if expected is not None:
                scale = max(1.0, expected.abs().max().item())
                torch.testing.assert_close(
                    actual.double(),
                    expected,
                    rtol=rtol,
                    atol=2e-4 * scale,
                    msg=lambda text, name=name: f"{name}: {text}",
                )


def _pointers(tensors):
    return (ctypes.c_void_p * len(tensors))(*(None if x is None else x.data_ptr() for x in tensors))


@pytest.mark.parametrize("name", sorted(CASES))
def test_golden(shim, name):
    spec = CASES[name]
    with np.load(GOLDEN / "op.npz") as arrays:
        golden = {key: torch.from_numpy(arrays[f"{name}.{key}"]) for key in (
            "input", "offset", "mask", "cotangent", "output", "grad_input", "grad_offset", "grad_mask"
        )}  # fmt: skip
    case = Case(
        golden["input"], golden["offset"], golden["mask"], kernel_size=spec["kernel"], stride=spec["stride"],
        padding=spec["pad"], dilation=spec["dilation"], num_groups=spec["group"], offset_scale=spec["offset_scale"],
        remove_center=bool(spec["remove_center"]), softmax=False,
    )  # fmt: skip
    case.cotangent = lambda: golden["cotangent"]
    actual = case.run(shim)
    for key, tensor in zip(("output", "grad_input", "grad_offset", "grad_mask"), actual):
        torch.testing.assert_close(tensor, golden[key], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("group_channels", [1, 3, 5, 8, 16, 24, 32, 40, 64])
def test_group_channels(shim, group_channels, dtype):
    Case.random(group_channels, (2, 5, 6, 3 * group_channels), 3, gated=True, dtype=dtype).check(shim)


@pytest.mark.parametrize("group_channels", [129, 256])
def test_more_channels_than_a_warp_holds(shim, group_channels):
    Case.random(0, (1, 3, 2, group_channels), 1, gated=True).check(shim)


@pytest.mark.parametrize("kernel_size", [1, 2, 3, 4, 5, 7])
@pytest.mark.parametrize("group_channels", [1, 8])
def test_kernel_size(shim, kernel_size, group_channels):
    shape = (1, 7, 8, 2 * group_channels)
    Case.random(kernel_size, shape, 2, kernel_size=kernel_size, padding=kernel_size // 2).check(shim)
    if kernel_size % 2 and kernel_size > 1:
        padding = kernel_size // 2
        Case.random(9, shape, 2, gated=True, kernel_size=kernel_size, padding=padding, remove_center=True).check(shim)


@pytest.mark.parametrize("kwargs", [
    {"stride": 2}, {"stride": 3, "padding": 0}, {"dilation": 2, "padding": 2},
    {"stride": 2, "dilation": 2, "padding": 3},
    {"offset_scale": 2.0}, {"offset_scale": 0.5, "remove_center": True}, {"softmax": False}, {"gated": True},
    {"gated": True, "softmax": False}, {"offset_std": 20.0},
], ids=str)  # fmt: skip
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_options(shim, kwargs, dtype):
    Case.random(3, (2, 9, 7, 32), 2, dtype=dtype, **kwargs).check(shim)


@pytest.mark.parametrize("shape", [(1, 1, 1, 16), (3, 1, 5, 16), (2, 6, 1, 16), (1, 2, 2, 16)], ids=str)
def test_small_images(shim, shape):
    Case.random(5, shape, 2, gated=True).check(shim)
    Case.random(5, shape, 1, gated=True, offset_std=0.3).check(shim)


@pytest.mark.parametrize("num_groups", [1, 2, 5, 7, 11, 13, 20])
@pytest.mark.parametrize("num_multiprocessors", [1, 1000], ids=["large blocks", "small blocks"])
def test_tiles(shim, num_groups, num_multiprocessors):
    """Groups and pixels that do not fill the last blocks."""
    case = Case.random(num_groups, (2, 11, 13 if num_groups < 8 else 3, 8 * num_groups), num_groups)
    case.check(shim, num_multiprocessors=num_multiprocessors)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_strided_inputs(shim, dtype):
    """`offset` and `mask` from one projection, at odd addresses; `value` within wider and longer rows; a crop."""
    case = Case.random(7, (2, 5, 6, 32), 2, gated=True, dtype=dtype)
    value, offset, mask, center_scale = case.inputs
    for before in (0, 1, 8):
        joint = torch.cat((torch.ones_like(offset[..., :before]), offset, mask, center_scale), dim=-1)
        _, offset, mask, center_scale = joint.split([before, 36, 18, 2], dim=-1)
        wide = torch.zeros(3, 7, 8, before + 48, dtype=dtype)
        wide[:2, 1:6, 1:7, before : before + 32] = value
        case.inputs = [wide[:2, 1:6, 1:7, before : before + 32], offset, mask, center_scale]
        case.check(shim)
    # One mask for the whole batch, columns before rows.
    case.inputs[2] = mask[:1].expand(2, -1, -1, -1)
    case.inputs[0] = value.transpose(1, 2).contiguous().transpose(1, 2)
    case.check(shim)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("group_channels", [5, 16])
def test_images_as_large_as_32_bits_count(shim, group_channels, dtype):
    """With padding, 2**31 - 1 pixels on a side, all of them the same memory. Outputs at 0 and 2**30."""
    for height, width in ((2**31 - 3, 2**27), (2**27, 2**31 - 3)):
        case = Case.random(0, (1, 2, 2, group_channels), 1, dtype=dtype)
        out = (1, 2, 1) if height > width else (1, 1, 2)
        value = torch.ones(group_channels, dtype=dtype).expand(1, height, width, group_channels)
        case.inputs = [value, *(torch.zeros(*out, size, dtype=dtype) for size in (18, 9)), None]
        case.numbers["stride"] = 2**30
        output = case.forward(shim, num_multiprocessors=100)
        expected = torch.tensor([4 / 9, 6 / 9], dtype=dtype)
        torch.testing.assert_close(output, expected.view(*out, 1).expand(*out, group_channels))


@pytest.mark.parametrize("group_channels", [5, 16])
@pytest.mark.parametrize("offset", [1e6, -1e6, 1e30, -1e30, math.inf, -math.inf])
def test_far_offsets(shim, group_channels, offset):
    case = Case.random(11, (1, 4, 5, 2 * group_channels), 2)
    case.inputs[1][0, 1, 2, ::3] = offset
    case.check(shim)


def test_integer_positions(shim):
    """Samples at integer positions, also exactly one pixel outside. The gradient of `offset` is one-sided there."""
    case = Case.random(13, (1, 6, 5, 16), 1)
    case.inputs[1].round_()
    case.check(shim)


@pytest.mark.parametrize("group_channels", [5, 16])
@pytest.mark.parametrize("name", ["offset", "mask"])
def test_nan_stays_in_its_item(shim, name, group_channels):
    case = Case.random(17, (1, 4, 5, 2 * group_channels), 2)
    clean, clean_grad_value, *_ = case.run(shim)
    case.inputs[1 if name == "offset" else 2][0, 1, 2, 0] = math.nan
    output, grad_value, grad_offset, grad_mask, _ = case.run(shim)
    assert output[0, 1, 2, :group_channels].isnan().all()
    clean[0, 1, 2, :group_channels] = output[0, 1, 2, :group_channels] = 0
    torch.testing.assert_close(output, clean)
    torch.testing.assert_close(grad_value[..., group_channels:], clean_grad_value[..., group_channels:])
    assert grad_mask[0, 1, 2, :9].isnan().all() and not grad_mask[0, 1, 2, 9:].isnan().any()


def test_extreme_logits(shim):
    case = Case.random(19, (1, 4, 5, 32), 2, gated=True)
    case.inputs[2] *= 1e4
    case.inputs[3] *= 1e4
    case.check(shim)


def test_sanitizers(tmp_path):
    """The same kernels over awkward shapes and offsets under the address and undefined-behaviour sanitizers."""
    program = tmp_path / "sanitize"
    sanitizers = "-fsanitize=address,undefined,float-cast-overflow"
    command = ["g++", "-std=c++20", "-w", "-g1", sanitizers, "-fno-sanitize-recover=all", str(SHIM / "sanitize.cpp")]
    subprocess.run([*command, "-o", str(program)], check=True)
    result = subprocess.run([str(program)], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
