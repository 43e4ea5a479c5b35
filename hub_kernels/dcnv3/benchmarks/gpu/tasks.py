# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""The list of everything that is checked and measured, in order."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from .cases import BENCHMARKS, DTYPES, LARGE_STAGES, STAGES, parity_cases
from .checks import (
    bad_arguments,
    compile_feature,
    determinism,
    golden,
    graph_feature,
    images_alone,
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
from .model import MODELS, model_benchmark
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
    if not quick:
        features["images of a batch alone"] = images_alone
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
    tasks += [Task("ours", f"{shape} {dtype}", partial(benchmark_ours, shape, dtype, True)) for shape, dtype in pairs]
    if cuda:
        tasks += [Task("naive", f"{shape} {dtype}", partial(benchmark_naive, shape, dtype)) for shape, dtype in pairs]
    for dtype in dtypes:
        tasks += [Task("latency", f"{shape} {dtype}", partial(latency, shape, dtype)) for shape in STAGES]
    # DCNv4 at the larger shapes in float16: the backward pass of its own operator does not take bfloat16.
    large_pairs = [(shape, "float16") for shape in LARGE_STAGES] if not quick else []
    dcnv4_pairs = [pair for pair in pairs if pair[0] in STAGES] + large_pairs if not quick else []
    for shape, dtype in dcnv4_pairs:
        tasks.append(Task("ours, DCNv4", f"{shape} {dtype}", partial(benchmark_ours, shape, dtype, False)))

    def add_models(dtypes, names, compiled=False):
        for dtype, name, kernel in itertools.product(dtypes, names, (True, False)) if not quick else []:
            key = f"{name}, {dtype}, {'torch.compile' if compiled else 'eager'}, {'kernel' if kernel else 'reference'}"
            function = partial(model_benchmark, name, dtype, compiled, kernel)
            tasks.append(Task("model", key, function, 180 if compiled else 90))

    models = MODELS if cuda else [name for name in MODELS if "800x1216" not in name]  # a CPU gets small images
    add_models(("bfloat16", "float32"), models)
    if cuda:
        for shape, dtype in pairs + large_pairs:
            for name, make in (("deformops", Deformops), ("DCNv4", DCNv4)):
                function = partial(peer_benchmark, name, make, shape, dtype)
                tasks.append(Task(name, f"{shape} {dtype}", function, 120))
        add_models(("bfloat16",), ("InternImage-T",), compiled=True)
    return tasks
