# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""
Where the time of a forward pass goes, and how much of it the processor needs.

**Parts.** The time of each operator without the operators that it calls (`torch.profiler`), summed over operators of
one kind. "Everything else" is what remains of the time measured without the profiler: other operators, PyTorch's
dispatcher, Python. The profiler makes small operators slower, so that it comes out somewhat too small. Code that
`torch.compile` generates has no parts. These times include waiting for the processor: the machine must be quiet.

**Floor.** What the model's modules need at least, one after the other, whatever implementation runs them. Only their
input shapes count:

- matrix products (`nn.Linear`, 1x1 convolutions) and convolutions: the fastest of several ways to compute that shape
  in that dtype with PyTorch, without the bias;
- LayerNorm, GELU, residual connections, DCNv3 and depthwise convolutions: the time to copy as many bytes as they read
  and write, each tensor once, between tensors of that size, which may fit into a cache; for DCNv3 and depthwise
  convolutions the time of their multiplications and additions at the peak, if that is longer;
- nothing for copies of biases and everything else.

Each floor is the fastest of its runs. An implementation can be below the floor of a memory-bound module: it fuses the
module with a product, and the tensors between them never leave the cache. No implementation can be below "arithmetic":
all multiplications and additions of products, convolutions and DCNv3 at the rate of a large square matrix product.

**Overhead.** The time of the smallest image that the model takes, which is almost no arithmetic, and how many
operators a forward pass of the batch dispatches. (In the last stages of the smallest image, the kernel does without
fused operators.)
"""

import collections
import contextlib
import functools
import math

import numpy as np
import torch
from torch import nn
from transformers.activations import GELUActivation

from examples.benchmark.inference import both_clocks
from examples.benchmark.measuring import time_in_turn, where_and_when
from examples.benchmark.models import ARCHITECTURES, IMPLEMENTATIONS, compiled, relative_differences
from modeling_internimage import DCNv3, InternImageConfig, InternImageForImageClassification, dcnv3_implementations
from modeling_internimage.kernel_integration import PYTORCH_REFERENCE
from modeling_internimage.modeling_internimage import InternImageLayer


PRODUCTS, CONVOLUTIONS, LAYER_NORM, GELU = "matrix products", "convolutions", "LayerNorm", "GELU"
DCNV3, BIAS_COPIES, ADDITIONS, REST = "DCNv3", "bias copies", "additions", "everything else"
PARTS = {  # operators by the end of their name
    PRODUCTS: ("addmm", "mm", "bmm", "_addmm_activation", "mkldnn_linear", "_linear_pointwise"),
    CONVOLUTIONS: ("mkldnn_convolution", "_slow_conv2d_forward", "_conv_depthwise2d", "_convolution_pointwise"),
    LAYER_NORM: ("native_layer_norm",),
    GELU: ("gelu", "gelu_"),
    DCNV3: ("dcnv3_forward",),
    ADDITIONS: ("add", "add_"),
}
SQUARE = 1024  # rows and columns of the matrix product that shows the peak
_part_of = {operator: part for part, operators in PARTS.items() for operator in operators}


def part_of(event) -> str | None:
    """
    The part that an event of the profiler belongs to; `None` for everything else. Fused operators of the kernel are
    parts of their own.
    """
    parent = event
    while parent is not None:
        if parent.name == DCNV3:
            return DCNV3
        parent = parent.cpu_parent
    operator = event.name.split("::")[-1]
    if operator == "copy_" and event.cpu_parent is not None and event.cpu_parent.name == "aten::addmm":
        return BIAS_COPIES
    return operator if "internimage" in operator else _part_of.get(operator)


def profile_parts(function, num_runs: int) -> tuple[dict[str, float], dict[str, int]]:
    """Seconds of each part in one run of `function`, and how often each operator is dispatched in it."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        for _ in range(num_runs):
            function()
    seconds, counts = collections.Counter(), collections.Counter()
    for event in profiler.events():
        if part := part_of(event):
            seconds[part] += event.self_cpu_time_total / 1e6 / num_runs
        if "::" in event.name:
            counts[event.name] += 1
    return dict(seconds), {name: count // num_runs for name, count in counts.most_common()}


@contextlib.contextmanager
def named_reference_dcnv3(model: nn.Module):
    """The profiler shows the PyTorch reference of DCNv3 as one part. (The kernel is an operator with a name.)"""
    modules = dict(model.named_modules())
    layers = [modules[name] for name, kind in dcnv3_implementations(model).items() if kind == PYTORCH_REFERENCE]
    for layer in layers:
        layer.forward = torch.profiler.record_function(DCNV3)(layer.forward)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def module_calls(architecture: str, shape: tuple[int, ...]) -> collections.Counter:
    """
    How often the model calls what on images of this `shape` (batch_size, num_channels, height, width). The keys are
    `(part, kind, *arguments)`; kind and arguments are those of [`floor_seconds`]. Nothing is computed: the model is on
    the meta device.
    """
    calls = collections.Counter()

    def record(module, args, kwargs, output):
        inputs = args[0] if args else None
        if isinstance(module, nn.Linear):
            rows = inputs.shape[:-1].numel()
            calls[PRODUCTS, "product", rows, module.in_features, module.out_features] += 1
        elif isinstance(module, nn.Conv2d):
            elements = inputs.numel() + output.numel()
            if module.groups > 1:
                operations = 2 * output.numel() * module.weight[0].numel()
                calls[CONVOLUTIONS, "memory", elements, operations] += 1
            elif module.kernel_size == (1, 1):
                rows = output.numel() // module.out_channels
                calls[PRODUCTS, "product", rows, module.in_channels, module.out_channels] += 1
            else:
                geometry = (*module.weight.shape, *module.stride, *module.padding)
                calls[CONVOLUTIONS, "convolution", *inputs.shape, *geometry] += 1
        elif isinstance(module, nn.LayerNorm):
            calls[LAYER_NORM, "memory", 2 * inputs.numel(), 0] += 1
        elif isinstance(module, DCNv3):
            value, mask = args[0], args[2]
            # Each sampling point multiplies and adds four neighbours of every channel in its group.
            operations = 2 * 4 * mask.numel() * (value.shape[-1] // kwargs["num_groups"])
            elements = sum(tensor.numel() for tensor in (*args[:4], output) if tensor is not None)
            calls[DCNV3, "memory", elements, operations] += 1
        elif isinstance(module, InternImageLayer):  # two residual connections: two tensors to one
            calls[ADDITIONS, "memory", 3 * inputs.numel(), 0] += 2
        elif isinstance(module, GELUActivation):
            calls[GELU, "memory", 2 * inputs.numel(), 0] += 1

    with torch.device("meta"):
        model = InternImageForImageClassification(InternImageConfig(**ARCHITECTURES[architecture])).eval()
        for module in model.modules():
            module.register_forward_hook(record, with_kwargs=True)
        with torch.no_grad():
            model(torch.empty(shape))
    return calls


def fastest(*functions, min_runs: int = 10) -> float:
    """Seconds of the fastest run of the fastest of these functions, of which slow ones run only once or twice."""
    first = time_in_turn(dict(enumerate(functions)), "cpu", 1, 0)
    limit = 2 * min(times[0] for times in first.values())
    candidates = {key: functions[key] for key, times in first.items() if times[0] <= limit}
    return min(min(times) for times in time_in_turn(candidates, "cpu", min_runs, 0).values())


@functools.cache
def product_seconds(rows: int, in_features: int, out_features: int, dtype: torch.dtype) -> float:
    """The fastest of several ways to compute a matrix product with PyTorch. Weights are prepared in advance."""
    inputs = torch.randn(rows, in_features, dtype=dtype)
    weight = torch.randn(out_features, in_features, dtype=dtype) * in_features**-0.5
    transposed, output = weight.t().contiguous(), torch.empty(rows, out_features, dtype=dtype)
    pixels = inputs.t().view(1, in_features, rows, 1).contiguous(memory_format=torch.channels_last)
    kernel = weight.view(out_features, in_features, 1, 1).contiguous(memory_format=torch.channels_last)
    ways = [
        lambda: nn.functional.linear(inputs, weight),
        lambda: torch.mm(inputs, transposed, out=output),
        lambda: nn.functional.conv2d(pixels, kernel),
    ]
    if dtype != torch.float32:  # many processors multiply in float32 only
        weight_float32, transposed_float32 = weight.float(), transposed.float()
        ways = [
            lambda: nn.functional.linear(inputs.float(), weight_float32).to(dtype),
            lambda: torch.mm(inputs.float(), transposed_float32).to(dtype),
            *ways,
        ]
    return fastest(*ways)


@functools.cache
def convolution_seconds(*sizes: int, dtype: torch.dtype) -> float:
    """
    The faster of two memory formats. `sizes` are those of the input (4 numbers) and of the weight (4), the stride (2)
    and the padding (2).
    """
    inputs, weight = torch.randn(sizes[:4], dtype=dtype), torch.randn(sizes[4:8], dtype=dtype)
    convolve = functools.partial(nn.functional.conv2d, stride=sizes[8:10], padding=sizes[10:])
    ways = []
    for memory_format in (torch.contiguous_format, torch.channels_last):
        tensors = [tensor.contiguous(memory_format=memory_format) for tensor in (inputs, weight)]
        ways.append(functools.partial(convolve, *tensors))
        if dtype != torch.float32:
            pair = [tensor.float() for tensor in tensors]
            ways.append(lambda pair=pair, x=tensors[0]: convolve(x.float(), pair[1]).to(dtype))
    return fastest(*ways)


@functools.cache
def copy_seconds(num_bytes: int) -> float:
    """Reading half of the bytes and writing the other half."""
    source = torch.zeros(max(num_bytes // 2, 1), dtype=torch.uint8)
    target = torch.zeros_like(source)
    return fastest(lambda: target.copy_(source), min_runs=20)


def peak_flops(dtype: torch.dtype) -> float:
    """Floating point operations a second in a large square matrix product."""
    return 2 * SQUARE**3 / product_seconds(SQUARE, SQUARE, SQUARE, dtype)


def floor_seconds(kind: str, *sizes: int, dtype: torch.dtype) -> float:
    """
    Of a "product" (rows, input and output features), a "convolution" (`sizes` of [`convolution_seconds`]) or "memory"
    (elements read and written, floating point operations).
    """
    if kind == "product":
        return product_seconds(*sizes, dtype)
    if kind == "convolution":
        return convolution_seconds(*sizes, dtype=dtype)
    elements, operations = sizes
    arithmetic = operations / peak_flops(dtype) if operations else 0.0
    return max(copy_seconds(elements * dtype.itemsize), arithmetic)


def floor_of_parts(architecture: str, shape: tuple[int, ...], dtype: torch.dtype) -> dict[str, float]:
    """Seconds of each part at least, see the text above."""
    floors = collections.Counter()
    for (part, kind, *sizes), count in module_calls(architecture, shape).items():
        floors[part] += count * floor_seconds(kind, *sizes, dtype=dtype)
    return dict(floors)


@torch.inference_mode()
def profile(
    models: dict[str, nn.Module], architecture: str, images: torch.Tensor, min_runs: int, seconds: float
) -> dict:
    """
    Parts, floors and overhead of a forward pass of each implementation, after a check that they agree with the literal
    transcription. Times are in milliseconds: medians where passes are timed, means of `min_runs` passes in the
    profiler.
    """
    relative_differences(models, images)
    results = {}
    for name, model in models.items():
        if name == "literal":
            continue
        batch = images.to(next(model.parameters()).dtype)
        side = 2 ** (len(model.config.depths) + 1)
        smallest = batch.new_zeros(1, batch.shape[1], side, side)
        functions = {"batch": functools.partial(model, batch), "smallest": functools.partial(model, smallest)}
        runs = time_in_turn(functions, "cpu", min_runs, seconds, clock=both_clocks)
        whole, processor = np.median(runs["batch"], axis=0)
        with contextlib.nullcontext() if compiled in IMPLEMENTATIONS[name] else named_reference_dcnv3(model):
            parts, operators = profile_parts(functions["batch"], min_runs)
        parts[REST] = max(whole - sum(parts.values()), 0)
        floors = floor_of_parts(architecture, batch.shape, batch.dtype)
        floor = sum(floors.values())
        results[name] = {
            "dtype": str(batch.dtype).removeprefix("torch."),
            "ms": _milliseconds(whole),
            "processor_ms": _milliseconds(processor),
            "runs": len(runs["batch"]),
            "parts": {part: _milliseconds(parts[part]) for part in sorted(parts, key=parts.get, reverse=True)},
            "floor_ms": _milliseconds(floor),
            "floors": {part: _milliseconds(floors[part]) for part in sorted(floors, key=floors.get, reverse=True)},
            "share_above_floor": round(1 - floor / whole, 3),
            "arithmetic_ms": _milliseconds(arithmetic_seconds(architecture, batch.shape, batch.dtype)),
            "peak_gflops": round(peak_flops(batch.dtype) / 1e9, 1),
            "products": product_rates(architecture, batch.shape, batch.dtype),
            "smallest_image_ms": _milliseconds(np.median(runs["smallest"], axis=0)[0]),
            "operators": sum(operators.values()),
            "operator_counts": operators,
        }
    return results


def operations(kind: str, *sizes: int) -> int:
    """Multiplications and additions; the arguments are those of [`floor_seconds`]."""
    if kind == "product":
        return 2 * math.prod(sizes)
    if kind == "memory":
        return sizes[1]
    batch_size, _, height, width, out_channels, in_channels, kernel_height, kernel_width, *geometry = sizes
    (stride_y, stride_x), (padding_y, padding_x) = geometry[:2], geometry[2:]
    out_height = (height + 2 * padding_y - kernel_height) // stride_y + 1
    out_width = (width + 2 * padding_x - kernel_width) // stride_x + 1
    return 2 * batch_size * out_channels * out_height * out_width * in_channels * kernel_height * kernel_width


def arithmetic_seconds(architecture: str, shape: tuple[int, ...], dtype: torch.dtype) -> float:
    """All operations of a forward pass at the peak."""
    calls = module_calls(architecture, shape).items()
    return sum(count * operations(kind, *sizes) for (_, kind, *sizes), count in calls) / peak_flops(dtype)


def product_rates(architecture: str, shape: tuple[int, ...], dtype: torch.dtype) -> list[dict]:
    """The fastest way found for each matrix product of the model, in floating point operations a second."""
    rates = []
    for (_, kind, *sizes), count in module_calls(architecture, shape).items():
        if kind == "product":
            gflops = 2e-9 * math.prod(sizes) / product_seconds(*sizes, dtype)
            rates.append({"shape": "x".join(map(str, sizes)), "count": count, "gflops": round(gflops, 1)})
    return rates


def _milliseconds(seconds: float) -> float:
    return round(1000 * float(seconds), 3)


def profile_table(result: dict) -> str:
    """One table for each size and batch, two columns for each implementation."""
    lines = []
    for case in result["cases"]:
        entries = case["results"]
        # What each row shows of an implementation: its time, and the floor.
        rows = {part: [] for entry in entries.values() for part in (*entry["parts"], *entry["floors"]) if part != REST}
        rows |= {title: [] for title in (REST, "all", "arithmetic", "above the floor", "smallest image", "operators")}
        for entry in entries.values():
            values = {part: [f"{ms:.1f} ms", ""] for part, ms in entry["parts"].items()}
            for part, ms in entry["floors"].items():
                values.setdefault(part, ["", ""])[1] = f"{ms:.1f} ms"
            values["all"] = [f"{entry['ms']:.1f} ms", f"{entry['floor_ms']:.1f} ms"]
            values["arithmetic"] = ["", f"{entry['arithmetic_ms']:.1f} ms"]
            values["above the floor"] = [f"{entry['share_above_floor']:.0%}", ""]
            values["smallest image"] = [f"{entry['smallest_image_ms']:.1f} ms", ""]
            values["operators"] = [str(entry["operators"]), ""]
            for title, cells in rows.items():
                cells += values.get(title, ["", ""])
        lines.append(f"| {case['height']}x{case['width']}, batch {case['batch_size']} |")
        lines[-1] += "".join(f" {name} | floor |" for name in entries)
        lines.append("|---" * (1 + 2 * len(entries)) + "|")
        lines += [f"| {title} | " + " | ".join(cells) + " |" for title, cells in rows.items()]
        lines.append("")
    peaks = {entry["dtype"]: entry["peak_gflops"] for case in result["cases"] for entry in case["results"].values()}
    lines.append(
        f"InternImage-{result['architecture']} {where_and_when(result['machine'])} A product of matrices of "
        f"{SQUARE}x{SQUARE}: {', '.join(f'{peak:.0f} GFLOP/s ({dtype})' for dtype, peak in peaks.items())}."
    )
    return "\n".join(lines)
