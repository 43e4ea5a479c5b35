# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""Time and memory of forward passes: of the implementations of one model, and of two models in turn."""

import functools
import json
import statistics
import time

import numpy as np
import torch
from torch import nn

from examples.benchmark.measuring import peak_memory_mib, time_in_turn, where_and_when
from examples.benchmark.models import (
    IMPLEMENTATIONS,
    LiteralDCNv3,
    compiled,
    relative_differences,
    to_bfloat16,
    with_kernel,
)
from modeling_internimage import DCNv3


# Side of the feature map, channels and groups in the stages of InternImage-T at 224 pixels.
OPERATOR_SHAPES = [(56, 64, 4), (28, 128, 8), (14, 256, 16), (7, 512, 32)]


@torch.inference_mode()
def measure(models: dict[str, nn.Module], images: torch.Tensor, min_runs: int, seconds: float) -> dict:
    """Times, speed-ups over the literal transcription, memory and deviations of the models on a batch of images."""
    device = images.device.type
    inputs = {name: images.to(next(model.parameters()).dtype) for name, model in models.items()}
    functions = {name: (lambda model=model, name=name: model(inputs[name])) for name, model in models.items()}
    differences = relative_differences(models, images)
    results = {name: {"relative_difference": difference} for name, difference in differences.items()}
    for name, function in functions.items():
        memory = peak_memory_mib(function, device)
        results[name]["peak_mib"] = round(memory, 1)
    runs = time_in_turn(functions, device, min_runs, seconds)
    for name, times in runs.items():
        speedup = statistics.median(literal / ours for ours, literal in zip(times, runs["literal"]))
        results[name] |= {"ms": round(1000 * statistics.median(times), 2), "speedup": round(speedup, 2)}
        results[name]["runs"] = len(times)
    return results


def both_clocks() -> np.ndarray:
    """Seconds of two clocks: time that passes, and the processor's time of all threads."""
    return np.array([time.perf_counter(), time.process_time()])


@torch.inference_mode()
def compare(models: dict[str, dict[str, nn.Module]], images: torch.Tensor, min_runs: int, seconds: float) -> dict:
    """
    Times and memory of two architectures on a batch of images. Of each implementation, the first architecture, the
    second and the literal transcription of the first run in turn. A speed-up is that over the other architecture,
    "over_literal" that of the first over its literal transcription in float32. Beside the time that passes there is
    the processor's time of all threads. With a single thread, other processes on the machine hardly change it; with
    several, it includes their waiting for each other.
    """
    device = images.device.type
    first, second = models
    results = {}
    for architecture in models:
        relative_differences(models[architecture], images)
    for name in models[first]:
        if name == "literal":
            continue
        in_turn = {architecture: models[architecture][name] for architecture in models}
        in_turn["literal"] = models[first]["literal"]
        functions = {
            key: functools.partial(model, images.to(next(model.parameters()).dtype)) for key, model in in_turn.items()
        }
        runs = time_in_turn(functions, device, min_runs, seconds, clock=both_clocks)
        entries = {}
        for architecture, other in ((first, second), (second, first)):
            milliseconds = 1000 * np.median(runs[architecture], axis=0)
            speedups = np.median(np.divide(runs[other], runs[architecture]), axis=0)
            entries[architecture] = {
                "peak_mib": round(peak_memory_mib(functions[architecture], device), 1),
                "ms": round(milliseconds[0], 2),
                "speedup": round(speedups[0], 2),
                "processor_ms": round(milliseconds[1], 2),
                "processor_speedup": round(speedups[1], 2),
                "runs": len(runs[architecture]),
            }
        over_literal = np.median(np.divide(runs["literal"], runs[first]), axis=0)
        entries[first] |= {"over_literal": round(over_literal[0], 2)}
        results[name] = entries
    return results


def measure_operator(implementations: list[str], device: str, min_runs: int, seconds: float) -> list[dict]:
    """
    DCNv3 alone, with batches of 8: forward pass with the softmax, and backward pass, each warm (inputs in the caches
    as far as they fit) and cold. Speed-ups are over the literal transcription in float32. `torch.compile` is measured
    on whole models only.
    """
    implementations = [name for name in implementations if compiled not in IMPLEMENTATIONS[name]]
    cases = []
    for size, channels, num_groups in OPERATOR_SHAPES:
        torch.manual_seed(0)
        sizes = (channels, num_groups * 18, num_groups * 9)
        tensors = [torch.randn(8, size, size, last, device=device, requires_grad=True) for last in sizes]
        cotangent = torch.randn(8, size, size, channels, device=device)
        cotangents = {dtype: cotangent.to(dtype) for dtype in (torch.float32, torch.bfloat16)}
        geometry = (None, 3, 1, 1, 1, num_groups, 1.0, False, True)
        operators = {"literal": (LiteralDCNv3(), torch.float32)}
        for name in implementations:
            operator = nn.ModuleList([DCNv3()])
            if with_kernel in IMPLEMENTATIONS[name]:
                with_kernel(operator)
            operators[name] = operator[0], torch.bfloat16 if to_bfloat16 in IMPLEMENTATIONS[name] else torch.float32
        forwards, backwards = {}, {}
        for name, (operator, dtype) in operators.items():
            inputs = [tensor.detach().to(dtype).requires_grad_() for tensor in tensors]

            def forward(operator=operator, inputs=inputs, geometry=geometry):
                with torch.inference_mode():
                    return operator.eval()(*inputs, *geometry)

            # Only the backward pass is timed: the graph is kept from one run to the next.
            output = operator.train()(*inputs, *geometry)

            def backward(output=output, inputs=inputs, incoming=cotangents[dtype]):
                torch.autograd.grad(output, inputs, incoming, retain_graph=True)

            difference = (
                (output.float() - operators["literal"][0](*tensors, *geometry)).norm() / output.norm()
            ).item()
            if difference > (0.02 if dtype == torch.bfloat16 else 1e-5):
                raise SystemExit(f"'{name}' and 'literal' disagree at {size}x{size}x{channels}: {difference:.2%}.")
            forwards[name], backwards[name] = forward, backward
        case = {"size": size, "channels": channels, "num_groups": num_groups, "batch_size": 8, "results": {}}
        passes = {"forward": (forwards, 10), "forward, cold": (forwards, 1)}
        passes |= {"backward": (backwards, 5), "backward, cold": (backwards, 1)}
        for direction, (functions, burst) in passes.items():
            runs = time_in_turn(functions, device, min_runs, seconds, burst)
            for name, times in runs.items():
                speedup = statistics.median(literal / ours for ours, literal in zip(times, runs["literal"]))
                entry = {"ms": round(1000 * statistics.median(times), 3), "speedup": round(speedup, 1)}
                case["results"].setdefault(name, {})[direction] = entry
        cases.append(case)
        print(json.dumps(case), flush=True)
    return cases


def markdown_table(result: dict) -> str:
    names = [name for name in result["cases"][0]["results"] if name != "literal"]
    lines = ["| image | batch | literal | " + " | ".join(names) + " |", "|---" * (3 + len(names)) + "|"]

    def cell(entry, speedup):
        text = f"{entry['ms']:.0f} ms" + (f" ({entry['speedup']:.2f}x)" if speedup else "")
        return f"{text}, {entry['peak_mib']:.0f} MiB"

    for case in result["cases"]:
        cells = [cell(case["results"][name], name != "literal") for name in ["literal", *names]]
        lines.append(f"| {case['height']}x{case['width']} | {case['batch_size']} | " + " | ".join(cells) + " |")
    lines += operator_table(result.get("operator"))
    lines.append(
        f"\nInternImage-{result['architecture']} {where_and_when(result['machine'])} Memory is the peak of "
        f"{result['memory']} above the loaded model."
    )
    return "\n".join(lines)


def comparison_table(result: dict) -> str:
    first, second = result["architecture"], result["compared_with"]
    lines = [f"| image | batch | | {first} | {second} | processor time: {first} | {second} |", "|---" * 7 + "|"]
    for case in result["cases"]:
        for name, entries in case["results"].items():
            cells = [f"{case['height']}x{case['width']}", str(case["batch_size"]), name]
            for kind in ("", "processor_"):
                for entry in (entries[first], entries[second]):
                    speedup = entry.get(f"{kind}speedup")
                    cells.append(f"{entry[f'{kind}ms']:.0f} ms" + (f" ({speedup:.2f}x)" if speedup else ""))
            if over_literal := entries[first].get("over_literal"):
                cells[3] = cells[3].replace(")", f", {over_literal:.2f}x literal)")
            lines.append("| " + " | ".join(cells) + " |")
    place = where_and_when(result["machine"])
    lines.append(f"\n{place[0].upper()}{place[1:]} The processor's time is that of all threads.")
    return "\n".join(lines)


def operator_table(cases: list[dict] | None) -> list[str]:
    if not cases:
        return []
    names = [name for name in cases[0]["results"] if name != "literal"]
    lines = ["", "| DCNv3, batch 8 | pass | literal | " + " | ".join(names) + " |", "|---" * (3 + len(names)) + "|"]
    for case in cases:
        for direction in case["results"]["literal"]:
            entries = [case["results"][name][direction] for name in ["literal", *names]]
            cells = [f"{entries[0]['ms']:.1f} ms"] + [f"{e['ms']:.2f} ms ({e['speedup']:.1f}x)" for e in entries[1:]]
            shape = f"{case['size']}x{case['size']}x{case['channels']}"
            lines.append(f"| {shape} | {direction} | " + " | ".join(cells) + " |")
    return lines
