# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""
The time of DCNv3 in each dtype and of DCNv4 (`softmax=False`) on this CPU, at the four stages of InternImage-T and
FlashInternImage-T, as ratios to DCNv3 in float32. Needs the build of local_build.py.

    python benchmarks/operator_cpu.py                              # 8 images of 224x224, one thread, a minute
    DCNV3_CPU_ARCH=avx2 python benchmarks/operator_cpu.py          # without the AVX-512 of this CPU; also: portable

What is compared is called in turn, in random order, in one process. Times are CPU times, which other processes on the
machine change less than they change the clock's: medians, and the median of the ratios within a turn. Offsets have a
standard deviation of one pixel.
"""

import argparse
import datetime
import os
import platform
import random
import statistics
import sys
import time
from pathlib import Path

import torch
from gpu.cases import STAGES, detached, make_tensors, stage_case
from gpu.machine import find_variant, load_module


# Name -> (dtype, softmax). The first is what the others are compared with.
VARIANTS = {
    "DCNv3 float32": (torch.float32, True),
    "DCNv3 bfloat16": (torch.bfloat16, True),
    "DCNv3 float16": (torch.float16, True),
    "DCNv4 float32": (torch.float32, False),
    "DCNv4 bfloat16": (torch.bfloat16, False),
}
PASSES = ("forward", "backward")


def processor():
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def make_calls(kernel, case):
    """The forward pass and the backward pass of every variant, by (pass, variant)."""
    backward = sys.modules[f"{kernel.__name__}._ops"].ops.dcnv3_backward
    calls = {}
    for name, (dtype, softmax) in VARIANTS.items():
        tensors, cotangent = make_tensors(case, dtype, "cpu")
        tensors, keywords = detached(tensors), case.keywords() | {"softmax": softmax}
        calls["forward", name] = lambda t=tensors, k=keywords: kernel.dcnv3(*t, **k)
        calls["backward", name] = lambda t=tensors, k=keywords, c=cotangent: backward(c, *t, *k.values())
    return calls


def cpu_time(call):
    start = time.process_time()
    call()
    return time.process_time() - start


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--turns", type=int, default=100)
    options = parser.parse_args()
    folder = find_variant("cpu")
    if folder is None:
        sys.exit("There is no build of the kernel. Run local_build.py first.")
    torch.set_num_threads(options.threads)
    kernel = load_module("dcnv3_build", folder / "__init__.py", submodule_search_locations=[str(folder)])
    limit = os.environ.get("DCNV3_CPU_ARCH")
    print(
        f"{processor()}{f' (DCNV3_CPU_ARCH={limit})' if limit else ''}, threads: {options.threads}, torch "
        f"{torch.__version__}, batch size {options.batch_size}, {datetime.date.today()}\n"
    )
    first, *others = VARIANTS
    print(f"| stage | pass | {first}, ms | {' | '.join(others)} |\n|:--|:--|--:|{'--:|' * len(others)}")
    for shape in STAGES:
        calls = make_calls(kernel, stage_case(shape, options.batch_size))
        times = {key: [] for key in calls}
        for _ in range(options.turns):
            for key in random.sample(list(calls), len(calls)):
                times[key].append(cpu_time(calls[key]))
        for step in PASSES:
            base = times[step, first]
            ratios = (statistics.median(map(float.__truediv__, times[step, name], base)) for name in others)
            columns = [f"{1000 * statistics.median(base):.2f}", *(f"{ratio:.2f}" for ratio in ratios)]
            print(f"| {shape} | {step} | {' | '.join(columns)} |", flush=True)


if __name__ == "__main__":
    main()
