# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""Arguments for the operator, numbers of the original code, and the comparison with the reference."""

import json
from pathlib import Path

import numpy as np
import torch
from reference_dcnv3 import reference_dcnv3


NAMES = ("value", "offset", "mask", "center_scale")
GOLDEN = Path(__file__).parent / "golden"
GOLDEN_CASES = json.loads((GOLDEN / "op.json").read_text())

GEOMETRIES = {
    "basic": {},
    "gate": {"gate": True},
    "raw_mask": {"softmax": False},
    "raw_mask_gate": {"softmax": False, "gate": True},
    "stride2": {"stride": 2, "height": 9, "width": 7},
    "stride3_dilation2": {"stride": 3, "dilation": 2, "height": 11, "width": 8},
    "remove_center": {"remove_center": True, "gate": True},
    "remove_center_k5": {"kernel_size": 5, "padding": 2, "remove_center": True, "stride": 2, "dilation": 2},
    "pad0": {"padding": 0},
    "pad3": {"padding": 3},
    "one_row": {"height": 1, "width": 9, "gate": True},
    "one_column": {"height": 9, "width": 1},
    "one_pixel": {"height": 1, "width": 1, "gate": True},
    "far": {"spread": 8.0, "gate": True},
    "scale": {"offset_scale": 0.25},
    "zero_offsets": {"spread": 0.0, "offset_scale": 1.0},
    **{
        f"k{kernel_size}": {"kernel_size": kernel_size, "padding": kernel_size // 2, "height": 8, "width": 7}
        for kernel_size in range(1, 8)
    },
    **{
        f"d{group_channels}": {"group_channels": group_channels, "num_groups": num_groups, "gate": True}
        for group_channels, num_groups in
        ((1, 4), (3, 3), (5, 2), (8, 4), (16, 4), (17, 1), (32, 2), (64, 2), (256, 1))
    },
    "stage4": {"batch_size": 1, "height": 7, "width": 7, "num_groups": 32, "group_channels": 16, "offset_scale": 1.0},
}  # fmt: skip


def random_arguments(
    dtype=torch.float32, device="cpu", seed=0, batch_size=2, height=5, width=6, num_groups=2, group_channels=3,
    kernel_size=3, stride=1, padding=1, dilation=1, remove_center=False, gate=False, softmax=True, offset_scale=1.5,
    spread=1.0,
):  # fmt: skip
    """Arguments of `dcnv3`, in order, the tensors with gradients."""
    generator = torch.Generator().manual_seed(seed)
    out_height, out_width = (
        (size + 2 * padding - dilation * (kernel_size - 1) - 1) // stride + 1 for size in (height, width)
    )
    points = kernel_size**2 - remove_center
    shapes = [(height, width, num_groups * group_channels), (out_height, out_width, num_groups * points * 2)]
    shapes += [(out_height, out_width, num_groups * points), (out_height, out_width, num_groups)]
    tensors = [torch.randn(batch_size, *shape, dtype=torch.float64, generator=generator) for shape in shapes]
    tensors[1] *= spread
    tensors = [tensor.to(device, dtype).requires_grad_() for tensor in tensors]
    if not gate:
        tensors[3] = None
    return (
        *tensors, kernel_size, stride, padding, dilation, num_groups, offset_scale, remove_center, softmax,
    )  # fmt: skip


def converted(arguments, dtype, device=None):
    """The same numbers in another dtype, as new leaves."""
    return tuple(
        argument.detach().to(device, dtype).requires_grad_() if isinstance(argument, torch.Tensor) else argument
        for argument in arguments
    )


def cotangent_of(output):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(output.shape, dtype=torch.float64, generator=generator).to(output.device, output.dtype)


def results(function, arguments):
    """The output and the gradients of the tensors, by name."""
    output = function(*arguments)
    output.backward(cotangent_of(output))
    named = {"output": output.detach()}
    for name, argument in zip(NAMES, arguments):
        if argument is not None:
            named[name] = argument.grad
    return named


def error(result, exact):
    """The largest deviation."""
    return (result.double().cpu() - exact).abs().max().item() if exact.numel() else 0.0


def check_against_reference(function, arguments):
    """
    Compares `function` with the reference in float64. The allowed error is twice that of the reference in the dtype of
    the arguments, three times for gradients; where that happens to be exact, it is one rounding of the largest number,
    a few in float32, and a few dozen in float64, which is compared with itself.
    """
    dtype = arguments[0].dtype
    actual = results(function, arguments)
    exact = results(reference_dcnv3, converted(arguments, torch.float64, "cpu"))
    plain = results(reference_dcnv3, converted(arguments, dtype))
    for name, result in actual.items():
        assert result.dtype == dtype and result.shape == exact[name].shape, name
        factor = 2 if name == "output" else 3
        # What is added up are products of normal numbers: in the gradients of offset, mask and gate one per channel of
        # a group, in the output one per point if weights are raw. That is the scale where everything cancels.
        channels, points = arguments[0].shape[-1] // arguments[8], arguments[4] ** 2
        largest = channels**0.5 if name in NAMES[1:] else 1.0 if arguments[11] else points**0.5
        largest = max(largest, exact[name].abs().max().item()) if exact[name].numel() else 0.0
        rounding = {torch.float64: 64, torch.float32: 4}.get(dtype, 1) * torch.finfo(dtype).eps
        allowed = factor * error(plain[name], exact[name]) + rounding * largest
        assert error(result, exact[name]) <= allowed, (name, error(result, exact[name]), allowed, largest)


def check_golden(function, name, device="cpu"):
    """Output and gradients of one case are those of the original code."""
    case = GOLDEN_CASES[name]
    with np.load(GOLDEN / "op.npz") as arrays:
        golden = {
            key.split(".")[1]: torch.from_numpy(arrays[key]).to(device) for key in arrays if key.startswith(name + ".")
        }
    value, offset, mask = (golden[key].requires_grad_() for key in ("input", "offset", "mask"))
    output = function(
        value, offset, mask, None, case["kernel"], case["stride"], case["pad"], case["dilation"], case["group"],
        case["offset_scale"], bool(case["remove_center"]), False,
    )  # fmt: skip
    output.backward(golden["cotangent"])
    actual = {"output": output, "grad_input": value.grad, "grad_offset": offset.grad, "grad_mask": mask.grad}
    for key, tensor in actual.items():
        torch.testing.assert_close(
            tensor, golden[key], rtol=1e-4, atol=1e-4, msg=lambda text, key=key: f"{key}: {text}"
        )
