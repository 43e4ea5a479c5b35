# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""A training step of InternImage beside that of ConvNeXt: time, memory, DCNv3's share, the price of checkpointing."""

import contextlib
import time

import numpy as np
import torch
from torch import nn

from examples.benchmark.inference import both_clocks
from examples.benchmark.measuring import peak_memory_mib, time_in_turn, where_and_when
from examples.benchmark.models import build_model, implement
from modeling_internimage import DCNv3


DTYPES = {"float32": None, "bfloat16": torch.bfloat16}  # of autocast; weights are float32


class ModuleClock:
    """
    The seconds that forward and backward passes of these modules take, as hooks see them, in `seconds`. The modules
    must not overlap in time.
    """

    def __init__(self, modules):
        self.seconds = 0.0
        for module in modules:
            module.register_forward_pre_hook(self._start)
            module.register_forward_hook(self._stop)
            module.register_full_backward_pre_hook(self._start)
            module.register_full_backward_hook(self._stop)

    def _start(self, *args):
        self._started = time.perf_counter()

    def _stop(self, *args):
        self.seconds += time.perf_counter() - self._started


def training_step(model: nn.Module, images: torch.Tensor, dtype: torch.dtype | None):
    """A function that does a step of AdamW on a batch of images: forward pass, loss, backward pass, update."""
    labels = torch.zeros(len(images), dtype=torch.long)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6)

    def step():
        with torch.autocast("cpu", dtype=dtype) if dtype else contextlib.nullcontext():
            loss = model(images, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def dcnv3_share(model: nn.Module, step, num_runs: int) -> float:
    """Of the time of training steps, forward and backward. The model keeps the hooks that measure it."""
    clock = ModuleClock(module for module in model.modules() if isinstance(module, DCNv3))
    started = time.perf_counter()
    for _ in range(num_runs):
        step()
    return round(clock.seconds / (time.perf_counter() - started), 3)


def measure_training(
    architecture: str,
    other: str,
    implementations: list[str],
    dtypes: list[str],
    images: torch.Tensor,
    min_runs: int,
    seconds: float,
) -> dict:
    """
    Training steps of `other`, and of `architecture` with DCNv3 as in `implementations` ("reference", "kernel"), with
    and without gradient checkpointing, all in turn. Times are medians, "speedup" is that over `other`, "peak_mib" the
    memory of tensors above the weights and the state of the optimiser, "dcnv3_share" the part of the step that DCNv3
    takes.
    """
    results = {}
    for dtype_name in dtypes:
        models = {other: build_model(other)}
        for name in implementations:
            models[name] = implement(build_model(architecture), name)
            models[f"{name}, checkpointing"] = implement(build_model(architecture), name)
            models[f"{name}, checkpointing"].gradient_checkpointing_enable()
        steps = {name: training_step(model.train(), images, DTYPES[dtype_name]) for name, model in models.items()}
        runs = time_in_turn(steps, "cpu", min_runs, seconds, clock=both_clocks)
        entries = {}
        for name, times in runs.items():
            medians, speedups = np.median(times, axis=0), np.median(np.divide(runs[other], times), axis=0)
            entries[name] = {
                "ms": round(1000 * medians[0], 1),
                "speedup": round(speedups[0], 2),
                "processor_ms": round(1000 * medians[1], 1),
                "processor_speedup": round(speedups[1], 2),
                "runs": len(times),
                "peak_mib": round(peak_memory_mib(steps[name], "cpu"), 1),
            }
            if name in implementations:
                entries[name]["dcnv3_share"] = dcnv3_share(models[name], steps[name], min_runs)
        results[dtype_name] = entries
    return results


def training_table(result: dict) -> str:
    lines = ["| | | step | processor time | memory | DCNv3 |", "|---" * 6 + "|"]
    for case in result["cases"]:
        for dtype_name, entries in case["results"].items():
            for name, entry in entries.items():
                cells = [dtype_name, name]
                for kind in ("", "processor_"):
                    cells.append(f"{entry[f'{kind}ms']:.0f} ms ({entry[f'{kind}speedup']:.2f}x)")
                share = entry.get("dcnv3_share")
                cells += [f"{entry['peak_mib']:.0f} MiB", "" if share is None else f"{share:.0%}"]
                lines.append("| " + " | ".join(cells) + " |")
    case = result["cases"][0]
    lines.append(
        f"\nInternImage-{result['architecture']} and {result['training_with']}, {case['batch_size']} images of "
        f"{case['height']}x{case['width']}, {where_and_when(result['machine'])} bfloat16 is that of "
        f"autocast. Speed-ups are over {result['training_with']} in the same dtype; memory is that of tensors."
    )
    return "\n".join(lines)
