# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""The list of everything that is checked and measured, the most valuable first, with the expected seconds."""

import importlib.util
import itertools
from collections import Counter
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
from .fused import benchmark_fused, depthwise_norm_gelu, norm_residual
from .machine import environment
from .model import ModelRun, model_benchmark
from .peers import DCNv4, Deformops, benchmark_naive, peer_benchmark
from .timing import benchmark_ours, copy_bandwidth, latency


@dataclass(frozen=True)
class Task:
    section: str
    name: str
    function: Callable
    seconds: float = 0.3  # expected on an H100; the first tasks correct it, see `Pace`

    @property
    def key(self):
        return f"{self.section}: {self.name}"

    @property
    def limit(self):
        """Seconds after which it is stopped."""
        return 60 + 3 * self.seconds


class Pace:
    """How long tasks take: as planned, times what those of the section took until now in proportion to their plan."""

    def __init__(self):
        self.planned, self.taken = Counter(), Counter()

    def add(self, task, seconds):
        self.planned[task.section] += task.seconds
        self.taken[task.section] += seconds

    def expect(self, task):
        planned = self.planned[task.section]
        return task.seconds * self.taken[task.section] / planned if planned else task.seconds


def print_plan(tasks, seconds):
    print(f"Plan: {sum(task.seconds for task in tasks):.0f} s of work for {seconds:.0f} s, in this order:")
    for section, group in itertools.groupby(tasks, lambda task: task.section):
        group = list(group)
        print(f"  {sum(task.seconds for task in group):6.1f} s  {section} ({len(group)})")


def model_runs(cuda):
    """The rows of whole models: the most valuable, and the others. On a CPU, small ones, to try the code."""
    ours, pair = "InternImage-T", ("InternImage-T", "ConvNeXt-T")
    others = ("InternImage-B", "FlashInternImage-T", "ConvNeXt-T, channels last")
    first, rest = [], []

    def add(runs, models, batches, dtypes, modes, step="inference", **options):
        for batch, dtype, mode, name in itertools.product(batches, dtypes, modes, models):
            runs.append(ModelRun(name, batch, dtype, step, mode, **options))

    if not cuda:
        for runs, models in ((first, pair), (rest, others)):
            for step in ("inference", "training"):
                add(runs, models, (2,), ("float32", "bfloat16"), ("eager",), step, size=(64, 64))
        add(first, (ours,), (2,), ("float32",), ("eager",), kernel=False, size=(64, 64))
        add(rest, (ours,), (2,), ("float32",), ("torch.compile",), size=(64, 64))
        return first, rest

    add(first, pair, (1, 64), ("bfloat16",), ("CUDA graph", "eager"))
    add(first, pair, (64,), ("bfloat16",), ("CUDA graph", "eager"), "training")
    add(first, pair, (64,), ("float32", "TF32", "float16"), ("CUDA graph",))
    add(first, others, (64,), ("bfloat16",), ("CUDA graph",))
    add(first, pair, (64,), ("bfloat16",), ("torch.compile",))
    add(first, pair, (1,), ("bfloat16",), ("reduce-overhead",))

    add(rest, pair, (1,), ("float32", "TF32", "float16"), ("CUDA graph",))
    add(rest, pair, (64,), ("float32", "TF32", "float16"), ("CUDA graph",), "training")
    add(rest, others, (1,), ("bfloat16",), ("CUDA graph",))
    add(rest, others, (64,), ("bfloat16",), ("CUDA graph",), "training")
    add(rest, (ours,), (64,), ("bfloat16", "float32"), ("eager",), kernel=False)
    add(rest, (ours,), (64,), ("bfloat16",), ("eager",), "training", kernel=False)
    add(rest, pair, (1, 64), ("float32", "TF32", "float16"), ("eager",))
    add(rest, others, (1, 64), ("bfloat16",), ("eager",))
    for kernel in (True, False):
        add(rest, others[1:2], (2,), ("bfloat16", "float32"), ("eager",), size=(800, 1216), kernel=kernel)
    add(rest, pair, (64,), ("bfloat16",), ("torch.compile",), "training")
    add(rest, pair, (64,), ("TF32",), ("torch.compile",))
    return first, rest


def model_tasks(runs, compile_seconds):
    """Those that compile, and those that do not."""
    compiled, others = [], []
    for run in runs:
        compiles = run.mode in ("torch.compile", "reduce-overhead")
        passes = 1 if run.step == "inference" else 2
        seconds = 1 + 2 * passes + compiles * compile_seconds * passes
        section = "model, compiled" if compiles else "model"
        task = Task(section, run.name, partial(model_benchmark, run), seconds)
        (compiled if compiles else others).append(task)
    return compiled, others


def parity_tasks(arguments):
    """Of the shapes that are measured, and of the rest."""
    dtypes = DTYPES if not arguments.quick else ("bfloat16", "float32")
    first, rest = [], []
    for name, case in parity_cases(arguments).items():
        for dtype in dtypes:
            of_stage = name.startswith("stage")
            task = Task("parity", f"{name}, {dtype}", partial(parity, case, dtype), 0.6 if of_stage else 0.15)
            (first if of_stage else rest).append(task)
    rest += [Task("parity", f"wild offsets, {dtype}", partial(wild_offsets, dtype), 1) for dtype in DTYPES]
    return first, rest


def feature_tasks(cuda, quick):
    features = {
        "determinism": (determinism, 1),
        "bad arguments": (bad_arguments, 0.2),
        "opcheck": (opcheck_feature, 3),
    }
    if not quick:
        features["images of a batch alone"] = images_alone, 0.5
    if cuda:
        features |= {
            "stream": (stream_feature, 0.5), "second device": (second_device, 0.3), "CUDA graph": (graph_feature, 0.5),
        }  # fmt: skip
    if not quick:
        if cuda:
            features |= {
                "more than 2^31 elements": (partial(many_elements, False), 8),
                "more than 2^31 elements, backward": (partial(many_elements, True), 12),
                "large image": (large_image, 8),
            }
        features["torch.compile"] = compile_feature, 25
    return [Task("feature", name, function, seconds) for name, (function, seconds) in features.items()]


def operator_tasks(pairs, large_pairs, quick):
    seconds = 2 if quick else 3
    ours = [Task("ours", f"{shape} {dtype}", partial(benchmark_ours, shape, dtype, True), seconds)
            for shape, dtype in pairs]  # fmt: skip
    latencies = [Task("latency", f"{shape} {dtype}", partial(latency, shape, dtype), 0.5)
                 for shape, dtype in pairs if shape in STAGES]  # fmt: skip
    # DCNv4 at the larger shapes in float16: the backward pass of its own operator does not take bfloat16.
    dcnv4_pairs = [pair for pair in pairs if pair[0] in STAGES] + large_pairs
    ours_dcnv4 = [Task("ours, DCNv4", f"{shape} {dtype}", partial(benchmark_ours, shape, dtype, False), seconds)
                  for shape, dtype in dcnv4_pairs]  # fmt: skip
    return ours, latencies, ours_dcnv4


def fused_tasks(cuda, quick):
    pairs = [("56x56x64", "bfloat16"), ("14x14x256", "bfloat16")]
    if not quick:
        pairs += [
            ("28x28x128", "bfloat16"),
            ("7x7x512", "bfloat16"),
            ("56x56x64", "float32"),
            ("14x14x256", "float32"),
        ]
    if not cuda:
        pairs = [("7x7x512", "float32")]
    return [
        Task("fused", f"{operator.__name__} {shape} {dtype}", partial(benchmark_fused, operator, shape, dtype), 6)
        for shape, dtype in pairs
        for operator in (depthwise_norm_gelu, norm_residual)
    ]


def peer_tasks(pairs):
    tasks = []
    for name, make, seconds in (("deformops", Deformops, 8), ("DCNv4", DCNv4, 4)):
        seconds = seconds if importlib.util.find_spec(name) is not None else 0.01
        tasks += [Task(name, f"{shape} {dtype}", partial(peer_benchmark, name, make, shape, dtype), seconds)
                  for shape, dtype in pairs]  # fmt: skip
    return tasks


def make_tasks(arguments):
    cuda, quick = arguments.device == "cuda", arguments.quick
    # The dtypes of operators, the most important one first.
    dtypes = DTYPES if cuda and not quick else ("bfloat16",) if cuda else ("bfloat16", "float32")
    pairs = [(shape, dtype) for dtype in dtypes for shape in BENCHMARKS]
    count = len(BENCHMARKS)  # of pairs with the first dtype
    large_pairs = [(shape, "float16") for shape in LARGE_STAGES] if not quick else []
    parity_first, parity_rest = parity_tasks(arguments)
    ours, latencies, ours_dcnv4 = operator_tasks(pairs, large_pairs, quick)
    (compiled, models), (compiled_rest, models_rest) = (
        model_tasks(runs, 40 if cuda else 120) for runs in model_runs(cuda)
    )

    tasks = [Task("environment", "this machine", environment, 4), Task("load", "built variant", load, 1)]
    tasks += [*parity_first, Task("golden", "operator cases", golden, 1), Task("bandwidth", "copy", copy_bandwidth)]
    tasks += ours[:count] + latencies[: len(STAGES)] + models
    tasks += fused_tasks(cuda, quick) + parity_rest + feature_tasks(cuda, quick)
    tasks += (peer_tasks(pairs[:count]) if cuda else []) + ours[count:] + latencies[len(STAGES) :] + compiled
    if not quick:
        tasks += ours_dcnv4 + models_rest + (peer_tasks(pairs[count:] + large_pairs) if cuda else []) + compiled_rest
    if cuda:  # the first one compiles it
        tasks += [Task("naive", f"{shape} {dtype}", partial(benchmark_naive, shape, dtype), 15 if index == 0 else 2)
                  for index, (shape, dtype) in enumerate(pairs)]  # fmt: skip
    wanted = {"environment", "load", *(arguments.sections or [task.section for task in tasks])}
    return [task for task in tasks if task.section in wanted]
