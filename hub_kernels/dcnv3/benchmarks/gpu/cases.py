# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""What is computed: shapes and arguments, tensors, and the comparison with the reference in float64."""

import math
from dataclasses import dataclass, replace

import torch
from reference_dcnv3 import reference_dcnv3


DTYPES = ("bfloat16", "float16", "float32")
TENSORS = ("value", "offset", "mask", "center_scale")
# Height, width and groups of 16 channels of the four stages of InternImage-T and FlashInternImage-T, at 224x224 and at
# 800x1216.
STAGES = {"56x56x64": (56, 56, 4), "28x28x128": (28, 28, 8), "14x14x256": (14, 14, 16), "7x7x512": (7, 7, 32)}
LARGE_STAGES = {
    "200x304x64": (200, 304, 4), "100x152x128": (100, 152, 8), "50x76x256": (50, 76, 16), "25x38x512": (25, 38, 32),
}  # fmt: skip
BENCHMARKS = STAGES | {"56x56x112": (56, 56, 7)}


@dataclass(frozen=True)
class Case:
    height: int = 9
    width: int = 11
    groups: int = 2
    group_channels: int = 16
    batch: int = 2
    kernel: int = 3
    stride: int = 1
    padding: int | None = None  # None: keeps the size at stride 1
    dilation: int = 1
    offset_scale: float = 1.0
    remove_center: bool = False
    gate: bool = False
    softmax: bool = True
    layout: str = "contiguous"
    offsets: str = "off pixels"  # white noise; "large", "any" and "trained-like": see `make_tensors`

    @property
    def pad(self):
        return self.dilation * (self.kernel - 1) // 2 if self.padding is None else self.padding

    @property
    def points(self):
        return self.kernel**2 - self.remove_center

    @property
    def channels(self):
        return self.groups * self.group_channels

    def out(self, size):
        return (size + 2 * self.pad - self.dilation * (self.kernel - 1) - 1) // self.stride + 1

    def shapes(self):
        """Of value, offset, mask, centre gate and output."""
        value = (self.batch, self.height, self.width)
        out = (self.batch, self.out(self.height), self.out(self.width))
        last = (self.groups * self.points * 2, self.groups * self.points, self.groups, self.channels)
        return [(*value, self.channels), *((*out, size) for size in last)]

    def keywords(self):
        return {
            "kernel_size": self.kernel, "stride": self.stride, "padding": self.pad, "dilation": self.dilation,
            "num_groups": self.groups, "offset_scale": self.offset_scale, "remove_center": self.remove_center,
            "softmax": self.softmax,
        }  # fmt: skip


def stage_case(name, batch, softmax=True):
    height, width, groups = (BENCHMARKS | LARGE_STAGES)[name]
    return Case(height, width, groups, 16, batch, softmax=softmax)


def parity_cases(arguments):
    """name -> case. Kernels of different shapes are compiled for 8, 16, 32 and 64 channels; the rest is general."""
    cases = {}
    if arguments.device == "cpu":
        cases |= {f"stage {name}": replace(stage_case(name, 1), height=7, width=7) for name in STAGES}
    else:
        for name in BENCHMARKS:
            cases[f"stage {name}"] = stage_case(name, 3)
            if not arguments.quick:
                cases[f"stage {name}, batch 1"] = stage_case(name, 1)
                cases[f"stage {name}, softmax off"] = stage_case(name, 3, softmax=False)
    for channels in (1, 3, 5, 8, 16, 32, 64):
        cases[f"{channels} channels per group"] = Case(group_channels=channels, groups=3)
        if channels % 2 and not arguments.quick:
            cases[f"{channels} channels per group, softmax off"] = Case(
                group_channels=channels, groups=3, softmax=False
            )
        if channels in (3, 16, 64):
            cases[f"{channels} channels per group, gate"] = Case(group_channels=channels, groups=3, gate=True)
    if not arguments.quick:
        for channels in (24, 48, 128, 256):
            cases[f"{channels} channels per group"] = Case(group_channels=channels)
        cases["groups that fill no block"] = Case(groups=13, group_channels=8)
    for kernel in (1, 2, 4, 5, 7) if not arguments.quick else (1, 5, 7):
        cases[f"kernel {kernel}x{kernel}"] = Case(kernel=kernel)
        cases[f"kernel {kernel}x{kernel}, 3 channels"] = Case(kernel=kernel, group_channels=3, softmax=False)
    cases |= {
        "odd size": Case(13, 37, 5),
        "one row": Case(1, 17),
        "one column": Case(17, 1),
        "one pixel": Case(1, 1, batch=5),
        "two rows": Case(2, 33),
        "stride 2": Case(14, 15, stride=2),
        "stride 3, no padding": Case(14, 15, stride=3, padding=0),
        "dilation 2": Case(dilation=2),
        "stride 2, dilation 2, kernel 5": Case(14, 15, stride=2, dilation=2, kernel=5),
        "padding 3": Case(padding=3),
        "remove_center": Case(remove_center=True),
        "remove_center, kernel 5, gate": Case(remove_center=True, kernel=5, gate=True, group_channels=8),
        "gate": Case(gate=True),
        "gate, softmax off": Case(gate=True, softmax=False),
        "softmax off": Case(softmax=False),
        "offset_scale 1.5": Case(offset_scale=1.5),
        "offset_scale 2": Case(offset_scale=2.0),
        "large offsets": Case(offsets="large"),
        "offsets of any value": Case(21, 23, offsets="any"),
        "one projection": Case(layout="one projection"),
        "one projection, 64 channels, gate": Case(layout="one projection", group_channels=64, gate=True),
        "unaligned": Case(layout="unaligned"),
        "unaligned, 8 channels": Case(layout="unaligned", group_channels=8),
        "channels first": Case(layout="channels first"),
        "rows of a larger image": Case(layout="crop"),
        "empty batch": Case(batch=0),
        "batch 129": Case(5, 5, batch=129),
    }
    return cases


def trained_like_offsets(shape, generator):
    """
    Offsets of `shape` (batch_size, height, width, coordinates) in pixels, with a standard deviation of 1.5 as after
    training. Three parts: each coordinate of each sampling point has a constant (standard deviation 1), as a learned
    bias gives it; a smooth field follows the image and changes over 8 pixels (1), so that neighbours sample close to
    each other; the rest is white noise (0.5).
    """
    batch_size, height, width, coordinates = shape
    options = {"device": generator.device, "generator": generator}
    coarse = torch.randn(batch_size, coordinates, height // 8 + 2, width // 8 + 2, **options)
    smooth = torch.nn.functional.interpolate(coarse, size=(height, width), mode="bicubic", align_corners=True)
    smooth = (smooth / smooth.std()).permute(0, 2, 3, 1)
    return torch.randn(coordinates, **options) + smooth + 0.5 * torch.randn(shape, **options)


def make_tensors(case, dtype, device, seed=0):
    """Leaves with gradients (None for an absent gate), and the gradient of the output."""
    generator = torch.Generator(device).manual_seed(seed)
    tensors = []
    for name, shape in zip((*TENSORS, "output"), case.shapes()):
        if name == "center_scale" and not case.gate:
            tensors.append(None)
            continue
        if name == "offset" and case.offsets == "trained-like":
            tensor = trained_like_offsets(shape, generator)
        else:
            tensor = torch.randn(shape, device=device, generator=generator)
        if name == "offset" and case.offsets != "any":
            # Odd multiples of 1/32, exact in bfloat16: no sample lies on a pixel, where the gradient jumps.
            tensor = ((tensor * 16).floor().clamp(-63, 63) * 2 + 1) / 32
            if case.offsets == "large":
                tensor = tensor * 8 + 0.03125
        tensors.append(tensor.to(dtype))
    *tensors, cotangent = tensors
    if case.layout == "one projection":  # offset and mask are views of one tensor
        split = tensors[1].shape[-1]
        packed = torch.cat((tensors[1], tensors[2]), dim=-1)
        tensors[1:3] = packed[..., :split], packed[..., split:]
    elif case.layout == "unaligned":
        for index, tensor in enumerate(tensors):
            if tensor is not None:
                storage = tensor.new_empty(tensor.numel() + 1)
                storage[1:] = tensor.flatten()
                tensors[index] = storage[1:].view(tensor.shape)
    elif case.layout == "channels first":
        tensors = [None if t is None else t.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1) for t in tensors]
    elif case.layout == "crop":
        larger = tensors[0].new_zeros(case.batch + 1, case.height + 3, case.width + 5, case.channels + 7)
        crop = larger[1:, 1:-2, 2:-3, : case.channels]
        crop.copy_(tensors[0])
        tensors[0] = crop
    return [None if t is None else t.detach().requires_grad_() for t in tensors], cotangent


def detached(tensors):
    return [None if tensor is None else tensor.detach() for tensor in tensors]


def results(function, tensors, cotangent):
    """The output and the gradients of the tensors, by name."""
    leaves = [tensor for tensor in tensors if tensor is not None]
    output = function(*tensors)
    gradients = iter(torch.autograd.grad(output, leaves, cotangent))
    named = {name: next(gradients) for name, tensor in zip(TENSORS, tensors) if tensor is not None}
    return {"output": output.detach()} | named


def reference_results(case, tensors, cotangent, dtype):
    """`results` of the reference with tensors of this dtype, a few images at a time: it needs much memory."""
    per_image = max(1, math.prod(case.shapes()[4][1:]) * case.points * 4)
    chunk = max(1, 2**27 // per_image)
    keywords = case.keywords()
    parts = []
    for start in range(0, max(1, case.batch), chunk):
        part = [None if t is None else t.detach()[start : start + chunk].to(dtype).requires_grad_() for t in tensors]
        gradient = cotangent[start : start + chunk].to(dtype)
        parts.append(results(lambda *t: reference_dcnv3(*t, **keywords), part, gradient))
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def largest_error(actual, exact):
    if not exact.numel():
        return 0.0
    return (actual.double() - exact).abs().max().item()


def compare(case, tensors, cotangent, actual):
    """
    Compares `actual` with the reference in float64. The allowed error is twice that of the reference with tensors of
    this dtype, which computes in float32 inside, three times for gradients; where that happens to be exact, it is one
    rounding of the largest number, a few in float32.
    """
    dtype = tensors[0].dtype
    exact = reference_results(case, tensors, cotangent, torch.float64)
    plain = reference_results(case, tensors, cotangent, dtype)
    report, ok = {}, True
    for name, expected in exact.items():
        result = actual[name]
        if case.offsets == "any" and name == "offset":
            continue  # a sample within a rounding of a pixel may lie on either side, where this gradient jumps
        if result.shape != expected.shape or result.dtype != dtype:
            report[name] = {"ok": False, "got": f"{tuple(result.shape)} {result.dtype}"}
            ok = False
            continue
        scale = 1.0 if name in ("output", "value") else case.group_channels**0.5
        scale = max(scale, expected.abs().max().item()) if expected.numel() else 0.0
        plain_error, error = largest_error(plain[name], expected), largest_error(result, expected)
        rounding = (4 if dtype == torch.float32 else 1) * torch.finfo(dtype).eps * scale
        allowed = (2 if name == "output" else 3) * plain_error + rounding
        report[name] = {"ok": error <= allowed, "error": error, "allowed": allowed, "plain": plain_error}
        ok = ok and report[name]["ok"]
    return {"ok": ok, "tensors": report}
