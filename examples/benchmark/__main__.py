# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""
Time and peak memory of InternImage forward passes, against the same model in float32 with DCNv3 transcribed literally
from the original's PyTorch code.

    python -m examples.benchmark --output examples/results/benchmark_cpu.json
    export LOCAL_KERNELS=kernels-community/dcnv3=hub_kernels/dcnv3
    python -m examples.benchmark --implementations kernel kernel-bfloat16 --output outputs/benchmark.json
    python -m examples.benchmark --table outputs/benchmark.json

All run in one process and in turn, on the same weights and images, after a check that they agree. A speed-up is the
median of the ratios of neighbouring runs, which the drift of a busy machine hardly touches. One of these options
measures something else:

    # a second architecture in turn with the first, each implementation of both
    python -m examples.benchmark --compare-with ConvNeXt-T --implementations kernel kernel-bfloat16 \\
        --sizes 224x224 --min-runs 15 --seconds 0 --output outputs/convnext.json
    # the time of each kind of operator, and what the processor needs at least (see profiling.py)
    python -m examples.benchmark --profile --implementations kernel --sizes 224x224 --output outputs/profile.json
    # a training step, with ConvNeXt-T in turn (see training_step.py)
    python -m examples.benchmark --training --implementations reference kernel --sizes 224x224 --batch-sizes 8 \\
        --output outputs/training.json
    # memory of the process with several settings of the allocator (see process_memory.py)
    python -m examples.benchmark --process-memory --implementations kernel --sizes 800x1216 --batch-sizes 1 \\
        --output outputs/process_memory.json
"""

import argparse
import functools
import json
import platform
from collections.abc import Callable
from pathlib import Path

import torch

from examples.benchmark.inference import compare, comparison_table, markdown_table, measure, measure_operator
from examples.benchmark.measuring import machine_description
from examples.benchmark.models import ARCHITECTURES, CONVNEXT_ARCHITECTURES, IMPLEMENTATIONS, build_models
from examples.benchmark.process_memory import measure_process_memory, process_memory_table
from examples.benchmark.profiling import profile, profile_table
from examples.benchmark.training_step import DTYPES, measure_training, training_table
from examples.output_files import check_outputs, mark_of, write_json


MARK = mark_of("benchmark.py")  # of earlier results too


TABLES = {"profile": profile_table, "training": training_table, "process memory": process_memory_table}


def table(result: dict) -> str:
    """The results as the README shows them, in Markdown."""
    if "mode" in result:
        return TABLES[result["mode"]](result)
    return comparison_table(result) if "compared_with" in result else markdown_table(result)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--architecture", choices=ARCHITECTURES, default="T")
    parser.add_argument(
        "--compare-with",
        choices=[*ARCHITECTURES, *CONVNEXT_ARCHITECTURES],
        help="time another architecture in turn with this one (with --training, ConvNeXt-T if not given)",
    )
    modes = parser.add_mutually_exclusive_group()
    modes.add_argument("--profile", action="store_true", help="the time of each kind of operator, and its floor")
    modes.add_argument("--training", action="store_true", help="time and memory of a training step")
    modes.add_argument("--process-memory", action="store_true", help="with several settings of the allocator")
    parser.add_argument(
        "--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES), help="of --training: all by default"
    )
    parser.add_argument(
        "--preload", nargs="+", type=Path, default=[], help="allocators (.so files) to try with --process-memory"
    )
    parser.add_argument("--implementations", nargs="+", choices=IMPLEMENTATIONS, default=["reference"])
    parser.add_argument("--sizes", nargs="+", default=["224x224", "384x384", "512x512", "800x1216"], metavar="HxW")
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--min-runs", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=10.0, help="at least this long per case")
    parser.add_argument("--output", type=Path, help="JSON file for the results")
    parser.add_argument("--table", type=Path, help="print an earlier JSON file as Markdown, measure nothing")
    args = parser.parse_args()
    if args.table:
        print(table(json.loads(args.table.read_text())))
        return
    if args.output:
        check_outputs([args.output], MARK)

    if args.device != "cpu" and (args.profile or args.training or args.process_memory):
        parser.error("--profile, --training and --process-memory measure the CPU: leave --device out.")
    if args.training and not {"reference", "kernel"}.issuperset(args.implementations):
        parser.error("--training takes the --implementations 'reference' and 'kernel': for bfloat16 it has --dtypes.")

    result = {"architecture": args.architecture, "machine": machine_description(args.device)}
    sizes = [tuple(map(int, size.split("x"))) for size in args.sizes]
    shapes = [(batch_size, height, width) for height, width in sizes for batch_size in args.batch_sizes]
    if args.process_memory:
        result |= {"mode": "process memory", "libc": " ".join(platform.libc_ver())}
        results = measure_process_memory(args.architecture, args.implementations, shapes, args.min_runs, args.preload)
        cases = [{"shapes": shapes, "results": results}]
        print(json.dumps(cases[0]))
    else:
        settings, measure_case = prepare(args)
        result |= settings
        cases = []
        for batch_size, height, width in shapes:
            images = torch.randn(batch_size, 3, height, width, device=args.device)
            results = measure_case(images, min_runs=args.min_runs, seconds=args.seconds)
            cases.append({"height": height, "width": width, "batch_size": batch_size, "results": results})
            print(json.dumps(cases[-1]), flush=True)
    if args.output:
        write_json(args.output, result | {"cases": cases}, MARK)


def prepare(args) -> tuple[dict, Callable]:
    """What the results begin with, and the function that measures a batch of images."""
    if args.training:
        other = args.compare_with or "ConvNeXt-T"
        names = (args.architecture, other, args.implementations, args.dtypes)
        return {"mode": "training", "training_with": other}, functools.partial(measure_training, *names)
    models = build_models(args.architecture, args.implementations, args.device)
    if args.profile:
        return {"mode": "profile"}, functools.partial(profile, models, args.architecture)
    if args.compare_with:
        others = build_models(args.compare_with, args.implementations, args.device)
        pair = {args.architecture: models, args.compare_with: others}
        return {"compared_with": args.compare_with}, functools.partial(compare, pair)
    operator = measure_operator(args.implementations, args.device, args.min_runs, args.seconds / 5)
    return {"memory": "tensors", "operator": operator}, functools.partial(measure, models)


if __name__ == "__main__":
    main()
