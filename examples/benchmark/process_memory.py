# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""
Memory of the whole process while it runs a model on image after image, with several settings of the allocator. Blocks
that are freed may stay in the process: in the heap of the C library, where the next image may or may not find one that
fits.

Each setting is a process of its own, because the C library reads its settings when a process starts. Linux only.
"""

import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch

from examples.benchmark.inference import both_clocks
from examples.benchmark.measuring import peak_memory_mib, where_and_when
from examples.benchmark.models import build_model, implement


# Environment variables, see `man mallopt` and the "Memory Allocation Tunables" of glibc's manual.
MAP_FROM_1_MIB = {"MALLOC_MMAP_THRESHOLD_": str(2**20)}  # larger blocks go back to the system when they are freed
HUGE_PAGES = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}  # glibc 2.35: fewer page faults for blocks that are new
SETTINGS = {
    "default": {},
    "one arena": {"MALLOC_ARENA_MAX": "1"},
    "trim from 128 KiB": {"MALLOC_TRIM_THRESHOLD_": str(2**17)},
    "map from 8 MiB": {"MALLOC_MMAP_THRESHOLD_": str(2**23)},
    "map from 1 MiB": MAP_FROM_1_MIB,
    "map from 1 MiB, huge pages": MAP_FROM_1_MIB | HUGE_PAGES,
    "map from 1 MiB, huge pages by PyTorch": MAP_FROM_1_MIB | {"THP_MEM_ALLOC_ENABLE": "1"},
    "huge pages": HUGE_PAGES,
    "keep all": {"MALLOC_MMAP_THRESHOLD_": str(2**25), "MALLOC_TRIM_THRESHOLD_": str(2**32)},
}


def resident_mib(field: str) -> float:
    """Of this process: "VmRSS" is the memory that it occupies, "VmHWM" the highest so far."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{field}:"))


def run_images(architecture: str, implementation: str, shapes: list[tuple[int, int, int]], num_runs: int) -> dict:
    """
    Memory and time of forward passes in this process: one for every (batch_size, height, width) in `shapes`, all of
    them `num_runs` times.
    """
    model = implement(build_model(architecture), implementation)
    dtype = next(model.parameters()).dtype
    batches = [torch.randn(batch_size, 3, height, width, dtype=dtype) for batch_size, height, width in shapes]
    loaded = resident_mib("VmRSS")
    rounds = []
    with torch.inference_mode():
        for _ in range(num_runs):
            started = both_clocks()
            for batch in batches:
                model(batch)
            rounds.append(both_clocks() - started)
    # The first round is slower: the process gets its memory.
    seconds, processor_seconds = np.median(rounds[1:] or rounds, axis=0)
    result = {
        "loaded_mib": round(loaded, 1),
        "peak_mib": round(resident_mib("VmHWM") - loaded, 1),
        "afterwards_mib": round(resident_mib("VmRSS") - loaded, 1),
        "ms": round(1000 * seconds, 1),
        "processor_ms": round(1000 * processor_seconds, 1),
    }
    with torch.inference_mode():
        tensors = max(peak_memory_mib(functools.partial(model, batch), "cpu") for batch in batches)
    return result | {"tensors_mib": round(tensors, 1)}


def measure_process_memory(
    architecture: str,
    implementations: list[str],
    shapes: list[tuple[int, int, int]],
    num_runs: int,
    preload: list[Path],
) -> dict:
    """
    [`run_images`] for each implementation and setting, in a process of its own. Each library in `preload`, such as
    jemalloc or tcmalloc, is one more setting.
    """
    settings = SETTINGS | {library.name: {"LD_PRELOAD": str(library)} for library in preload}
    results = {}
    for implementation in implementations:
        arguments = json.dumps([architecture, implementation, shapes, num_runs])
        for name, variables in settings.items():
            command = [sys.executable, "-m", "examples.benchmark.process_memory", arguments]
            process = subprocess.run(
                command, env=os.environ | variables, stdout=subprocess.PIPE, text=True, check=True
            )
            results.setdefault(implementation, {})[name] = json.loads(process.stdout.splitlines()[-1])
    return results


def process_memory_table(result: dict) -> str:
    lines = []
    for case in result["cases"]:
        for implementation, entries in case["results"].items():
            tensors = next(iter(entries.values()))["tensors_mib"]
            lines += [
                f"| {implementation}, tensors take {tensors:.0f} MiB | peak | afterwards | time | processor time |"
            ]
            lines += ["|---" * 5 + "|"]
            for name, entry in entries.items():
                cells = [f"{entry[key]:.0f} MiB" for key in ("peak_mib", "afterwards_mib")]
                cells += [f"{entry[key]:.0f} ms" for key in ("ms", "processor_ms")]
                lines.append(f"| {name} | " + " | ".join(cells) + " |")
            lines.append("")
    images = ", ".join(f"{batch}x3x{height}x{width}" for batch, height, width in result["cases"][0]["shapes"])
    lines.append(
        f"InternImage-{result['architecture']}, batches of {images} in turn, {result['libc']}, "
        f"{where_and_when(result['machine'])} Memory is that of the process above the loaded model."
    )
    return "\n".join(lines)


if __name__ == "__main__":
    print(json.dumps(run_images(*json.loads(sys.argv[1]))))
