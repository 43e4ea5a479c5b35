# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""
Time of detectors for one image, in turn in one process, relative to the first.

    python -m examples.object_detection.compare_speed --output examples/results/detection_speed.json
    export LOCAL_KERNELS=kernels-community/dcnv3=hub_kernels/dcnv3
    python -m examples.object_detection.compare_speed --kernel --output examples/results/detection_speed_kernel.json

The weights are random, and every detector returns as many objects as it may, which is the most work. Written are
medians of seconds by the clock and of the seconds that the processor worked, which other programs disturb less.
"""

import argparse
import statistics
import time
from pathlib import Path

import torch

from conversion.checkpoints import find_checkpoint
from conversion.heads import HEADS
from examples.benchmark.measuring import machine_description, time_in_turn
from examples.output_files import check_outputs, mark_of, write_json
from modeling_internimage import use_dcnv3_kernel


MARK = mark_of(__file__)
MODELS = ["mask_rcnn_internimage_t_fpn_1x_coco", "dino_4scale_internimage_t_1x_coco"]


def build(name: str, with_kernel: bool) -> torch.nn.Module:
    """An official detector with random weights."""
    checkpoint = find_checkpoint(name)
    config = checkpoint.config()
    if hasattr(config, "score_threshold"):
        config.score_threshold = 0.0
    torch.manual_seed(0)
    model = HEADS[checkpoint.head].model_class(config).eval()
    if with_kernel:
        use_dcnv3_kernel(model, strict=True)
    return model


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--models", nargs="+", default=MODELS, metavar="NAME", help="official detectors, first the base"
    )
    parser.add_argument("--size", nargs=2, type=int, default=[800, 1216], metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--kernel", action="store_true", help="with the compiled DCNv3")
    parser.add_argument("--runs", type=int, default=5, help="runs of each detector")
    parser.add_argument("--output", type=Path, help="JSON file for the results")
    args = parser.parse_args()
    if args.output:
        check_outputs([args.output], MARK)
    pixel_values = torch.randn(1, 3, *args.size)
    models = {name: build(name, args.kernel) for name in args.models}
    processor_seconds: dict[str, list[float]] = {name: [] for name in models}

    def detect(name: str):
        start = time.process_time()
        models[name](pixel_values)
        processor_seconds[name].append(time.process_time() - start)

    with torch.inference_mode():
        functions = {name: lambda name=name: detect(name) for name in models}
        seconds = time_in_turn(functions, "cpu", args.runs, max_seconds=0)
    medians = {
        name: {
            "seconds": round(statistics.median(seconds[name]), 2),
            "processor_seconds": round(statistics.median(processor_seconds[name][1:]), 2),  # the first is not timed,
        }
        for name in models
    }
    base = dict(medians[args.models[0]])
    for row in medians.values():
        row |= {f"{kind}_ratio": round(row[kind] / base[kind], 2) for kind in base}
    result = {
        "machine": machine_description("cpu"),
        "size": args.size,
        "runs": args.runs,
        "kernel": args.kernel,
        "models": medians,
    }
    print(result)
    if args.output:
        write_json(args.output, result, MARK)


if __name__ == "__main__":
    main()
