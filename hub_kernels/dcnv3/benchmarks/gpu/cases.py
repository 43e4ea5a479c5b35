# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""What is computed: shapes and arguments, tensors, a float64 reference and the comparison with it."""

import math
from dataclasses import dataclass, replace

import torch


DTYPES = ("bfloat16", "float16", "float32")


TENSORS = ("value", "offset", "mask", "center_scale")


STAGES = {"56x56x64": (56, 4), "28x28x128": (28, 8), "14x14x256": (14, 16), "7x7x512": (7, 32)}


BENCHMARKS = STAGES | {"56x56x112": (56, 7)}


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
    offsets: str = "off pixels"

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


def stage_case(name, batch):
    size, groups = BENCHMARKS[name]
    return Case(size, size, groups, 16, batch)


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
    for channels in (1, 3, 5, 8, 16, 32, 64):
        cases[f"{channels} channels per group"] = Case(group_channels=channels, groups=3)
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


def make_tensors(case, dtype, device, seed=0):
    """Leaves with gradients (None for an absent gate), and the gradient of the output."""
    generator = torch.Generator(device).manual_seed(seed)
    tensors = []
    for name, shape in zip((*TENSORS, "output"), case.shapes()):
        if name == "center_scale" and not case.gate:
            tensors.append(None)
            continue
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


def reference(value, offset, mask, center_scale, case, compute_dtype):
    """
    The definition, literally: per point, four pixels with bilinear weights; outside of the image everything is zero.
    Computed in `compute_dtype`, returned in the dtype of `value`.
    """
    batch, height, width, _ = value.shape
    out_height, out_width = offset.shape[1:3]
    shape = (batch, out_height, out_width, case.groups)
    dtype, device = value.dtype, value.device
    images = value.to(compute_dtype).reshape(batch, height * width, case.groups, case.group_channels)
    offset = offset.to(compute_dtype).reshape(*shape, case.points, 2)
    weight = mask.to(compute_dtype).reshape(*shape, case.points)
    if case.softmax:
        weight = weight.softmax(dim=-1)
    center = case.dilation * (case.kernel - 1) // 2
    image_index = torch.arange(batch, device=device).view(-1, 1, 1, 1)
    group_index = torch.arange(case.groups, device=device)
    column = torch.arange(out_width, device=device, dtype=compute_dtype) * case.stride - case.pad + center
    row = torch.arange(out_height, device=device, dtype=compute_dtype) * case.stride - case.pad + center
    column, row = column.view(1, 1, -1, 1), row.view(1, -1, 1, 1)
    output = torch.zeros(*shape, case.group_channels, device=device, dtype=compute_dtype)
    point = 0
    for i in range(case.kernel):
        for j in range(case.kernel):
            if case.remove_center and i == j == case.kernel // 2:
                continue
            x = column + case.offset_scale * (i * case.dilation - center + offset[..., point, 0])
            y = row + case.offset_scale * (j * case.dilation - center + offset[..., point, 1])
            x, y = x.clamp(-2, width + 1), y.clamp(-2, height + 1)  # there, farther makes no difference
            left, top = x.detach().floor(), y.detach().floor()
            a, b = x - left, y - top
            sample = 0
            for down, weight_y in ((0, 1 - b), (1, b)):
                for right, weight_x in ((0, 1 - a), (1, a)):
                    pixel_x, pixel_y = (left + right).long(), (top + down).long()
                    inside = (pixel_x >= 0) & (pixel_x < width) & (pixel_y >= 0) & (pixel_y < height)
                    index = pixel_y.clamp(0, height - 1) * width + pixel_x.clamp(0, width - 1)
                    pixel = images[image_index, index, group_index]
                    sample = sample + (weight_y * weight_x * inside).unsqueeze(-1) * pixel
            output = output + weight[..., point : point + 1] * sample
            point += 1
    if center_scale is not None:
        gate = center_scale.to(compute_dtype).sigmoid().unsqueeze(-1)
        output = output * (1 - gate) + images.view(output.shape) * gate
    return output.flatten(3).to(dtype)


def results(function, tensors, cotangent):
    """The output and the gradients of the tensors, by name."""
    leaves = [tensor for tensor in tensors if tensor is not None]
    output = function(*tensors)
    gradients = iter(torch.autograd.grad(output, leaves, cotangent))
    named = {name: next(gradients) for name, tensor in zip(TENSORS, tensors) if tensor is not None}
    return {"output": output.detach()} | named


def reference_results(case, tensors, cotangent, storage_dtype, compute_dtype):
    """`results` of the reference, a few images at a time: it needs much memory."""
    per_image = max(1, math.prod(case.shapes()[4][1:]) * case.points * 4)
    chunk = max(1, 2**28 // per_image)
    parts = []
    for start in range(0, max(1, case.batch), chunk):
        part = [
            None if t is None else t.detach()[start : start + chunk].to(storage_dtype).requires_grad_()
            for t in tensors
        ]
        gradient = cotangent[start : start + chunk].to(storage_dtype)
        parts.append(results(lambda *t: reference(*t, case, compute_dtype), part, gradient))
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def largest_error(actual, exact):
    if not exact.numel():
        return 0.0
    return (actual.double() - exact).abs().max().item()


def compare(case, tensors, cotangent, actual):
    """
    `actual` against float64: at most twice the error of the same arithmetic in plain PyTorch, with tensors of this
    dtype and float32 inside; three times for gradients; and one rounding of the largest number (a few in float32)
    where plain PyTorch happens to be exact.
    """
    dtype = tensors[0].dtype
    exact = reference_results(case, tensors, cotangent, torch.float64, torch.float64)
    plain = reference_results(case, tensors, cotangent, dtype, torch.float32)
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
