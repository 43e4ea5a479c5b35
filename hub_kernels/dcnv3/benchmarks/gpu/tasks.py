# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""The list of everything that is checked and measured, in order."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from .cases import BENCHMARKS, DTYPES, STAGES, parity_cases
from .checks import (
    bad_arguments,
    compile_feature,
    determinism,
    golden,
    graph_feature,
    large_image,
    load,
    many_elements,
    opcheck_feature,
    parity,
    second_device,
    stream_feature,
    wild_offsets,
)
from .machine import environment
from .model import model_benchmark
from .peers import DCNv4, Deformops, benchmark_naive, peer_benchmark
from .timing import benchmark_ours, copy_bandwidth, latency


@dataclass(frozen=True)
class Task:
    section: str
    name: str
    function: Callable
    limit: float = 60.0  # seconds

    @property
    def key(self):
        return f"{self.section}: {self.name}"


def make_tasks(arguments):
    cuda, quick = arguments.device == "cuda", arguments.quick
    tasks = [Task("environment", "this machine", environment, 120), Task("load", "built variant", load, 120)]
    cases = parity_cases(arguments)
    for name, case in cases.items():
        for dtype in DTYPES if not quick else ("bfloat16", "float32"):
            tasks.append(Task("parity", f"{name}, {dtype}", partial(parity, case, dtype)))
    tasks += [Task("parity", f"wild offsets, {dtype}", partial(wild_offsets, dtype)) for dtype in DTYPES]
    tasks.append(Task("golden", "operator cases", golden))
    features = {"determinism": determinism, "bad arguments": bad_arguments, "opcheck": opcheck_feature}
    if cuda:
        features |= {"stream": stream_feature, "second device": second_device, "CUDA graph": graph_feature}
        if not quick:
            features["more than 2^31 elements"] = partial(many_elements, False)
            features["more than 2^31 elements, backward"] = partial(many_elements, True)
            features["large image"] = large_image
    tasks += [Task("feature", name, function, 90) for name, function in features.items()]
    if not quick:
        tasks.append(Task("feature", "torch.compile", compile_feature, 120))
    tasks.append(Task("bandwidth", "copy", copy_bandwidth))

    dtypes = DTYPES if not quick else ("bfloat16",)
    if not cuda:
        dtypes = ("bfloat16", "float32")
    pairs = [(shape, dtype) for dtype in dtypes for shape in BENCHMARKS]
    tasks += [Task("ours", f"{shape} {dtype}", partial(benchmark_ours, shape, dtype)) for shape, dtype in pairs]
    if cuda:
        tasks += [Task("naive", f"{shape} {dtype}", partial(benchmark_naive, shape, dtype)) for shape, dtype in pairs]
    for dtype in dtypes:
        tasks += [Task("latency", f"{shape} {dtype}", partial(latency, shape, dtype)) for shape in STAGES]
    modes = [(dtype, False, kernel) for dtype in ("bfloat16", "float32") for kernel in (True, False)]
    compiled_modes = [("bfloat16", True, True), ("bfloat16", True, False)] if cuda else []

    def add_models(modes):
        for dtype, compiled, kernel in modes if not quick else []:
            name = f"{dtype}, {'torch.compile' if compiled else 'eager'}, {'kernel' if kernel else 'reference'}"
            tasks.append(
                Task("model", name, partial(model_benchmark, dtype, compiled, kernel), 180 if compiled else 90)
            )

    add_models(modes)
    if cuda:
        for dtype in dtypes:
            for name, make in (("deformops", Deformops), ("DCNv4", DCNv4)):
                for shape in BENCHMARKS:
                    tasks.append(
                        Task(name, f"{shape} {dtype}", partial(peer_benchmark, name, make, shape, dtype), 120)
                    )
    add_models(compiled_modes)
    return tasks
