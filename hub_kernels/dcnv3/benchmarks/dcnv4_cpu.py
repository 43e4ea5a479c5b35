# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""
The time of DCNv4 (`softmax=False`) against that of DCNv3 on this CPU, at the four stages of InternImage-T and
FlashInternImage-T. Needs the build of local_build.py.

    python benchmarks/dcnv4_cpu.py                              # 8 images of 224x224, one thread, half a minute

What is compared is called in turn, in random order, in one process. Times are CPU times, which other processes on the
machine change less than they change the clock's: medians, and the median of the ratios within a turn.
"""

import argparse
import datetime
import platform
import random
import statistics
import sys
import time
from pathlib import Path

import torch
from gpu.cases import DTYPES, STAGES, make_tensors, stage_case
from gpu.machine import find_variant, load_module


def processor():
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def make_calls(kernel, case, dtype):
    """The forward pass and the backward pass with and without softmax, by (pass, operator)."""
    tensors, cotangent = make_tensors(case, dtype, "cpu")
    tensors = [None if tensor is None else tensor.detach() for tensor in tensors]
    backward = sys.modules[f"{kernel.__name__}._ops"].ops.dcnv3_backward
    calls = {}
    for operator, softmax in (("DCNv3", True), ("DCNv4", False)):
        keywords = case.keywords() | {"softmax": softmax}
        calls["forward", operator] = lambda keywords=keywords: kernel.dcnv3(*tensors, **keywords)
        calls["backward", operator] = lambda keywords=keywords: backward(cotangent, *tensors, *keywords.values())
    return calls


def cpu_time(call):
    start = time.process_time()
    call()
    return time.process_time() - start


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--turns", type=int, default=100)
    options = parser.parse_args()
    folder = find_variant("cpu")
    if folder is None:
        sys.exit("There is no build of the kernel. Run local_build.py first.")
    torch.set_num_threads(options.threads)
    kernel = load_module("dcnv3_build", folder / "__init__.py", submodule_search_locations=[str(folder)])
    print(
        f"{processor()}, threads: {options.threads}, torch {torch.__version__}, {options.dtype}, batch size "
        f"{options.batch_size}, {datetime.date.today()}\n"
    )
    print("| stage | pass | DCNv3, ms | DCNv4, ms | DCNv4 / DCNv3 |\n|:--|:--|--:|--:|--:|")
    for shape in STAGES:
        calls = make_calls(kernel, stage_case(shape, options.batch_size), getattr(torch, options.dtype))
        times = {key: [] for key in calls}
        for _ in range(options.turns):
            for key in random.sample(list(calls), len(calls)):
                times[key].append(cpu_time(calls[key]))
        for step in ("forward", "backward"):
            both = [times[step, operator] for operator in ("DCNv3", "DCNv4")]
            medians = [f"{1000 * statistics.median(part):.2f}" for part in both]
            ratio = statistics.median(new / old for old, new in zip(*both))
            print(f"| {shape} | {step} | {' | '.join(medians)} | {ratio:.2f} |", flush=True)


if __name__ == "__main__":
    main()
