# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""
Images per second of `predict.py` with two workers, and of one process with transformers' pipeline, in turn.

    python -m examples.large_scale.measure_throughput --output examples/results/large_scale.json

The model is a small classifier with random weights, the images are noise. A run of Ray includes the start of its
workers, which load the model; "after start" counts from the first result on.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import ray
import torch
from PIL import Image
from transformers import pipeline

from examples.benchmark.measuring import machine_description
from examples.image_files import list_files
from examples.large_scale.predict import parse_arguments, predict, start_ray
from examples.output_files import check_outputs, mark_of, write_json
from modeling_internimage import InternImageConfig, InternImageForImageClassification, create_image_processor
from modeling_internimage.images import decode_image


MARK = mark_of(__file__)
WORKERS = 2
BATCH_SIZE = 32


def write_inputs(folder: Path, num_images: int, side: int) -> tuple[Path, Path]:
    """A model, and a folder of images with `side` pixels."""
    config = InternImageConfig(embed_dim=32, depths=[1, 1, 3, 1], num_groups=[2, 4, 8, 16], image_size=side)
    torch.manual_seed(0)
    InternImageForImageClassification(config).save_pretrained(folder / "model")
    create_image_processor(side).save_pretrained(folder / "model")
    rng = np.random.default_rng(0)
    (folder / "images").mkdir()
    for idx in range(num_images):
        pixels = rng.integers(0, 256, (side, side, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "images" / f"{idx:06d}.jpg")
    return folder / "model", folder / "images"


def run_pipeline(classifier, files: list[str], num_threads: int) -> float:
    """Images per second of one process."""
    threads_before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    start = time.perf_counter()
    images = (decode_image(file, file) for file in files)
    results = sum(1 for _ in classifier(images, batch_size=BATCH_SIZE))
    seconds = time.perf_counter() - start
    torch.set_num_threads(threads_before)
    assert results == len(files)
    return len(files) / seconds


def main(argv: list[str] | None = None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=2000, help="number of images")
    parser.add_argument("--side", type=int, default=64, help="their height and width in pixels")
    parser.add_argument("--runs", type=int, default=3, help="runs of each")
    parser.add_argument("--output", type=Path, help="JSON file for the results")
    args = parser.parse_args(argv)
    if args.output is not None:
        check_outputs([args.output], MARK)
    speeds: dict[str, list[float]] = {
        name: [] for name in ("one process, 1 thread", "one process, 2 threads", "ray", "ray after start")
    }
    with tempfile.TemporaryDirectory() as folder:
        model, images = write_inputs(Path(folder), args.images, args.side)
        files = list_files([str(images)])
        classifier = pipeline("image-classification", model=str(model), device="cpu")
        for run in range(args.runs):
            for threads, name in enumerate(list(speeds)[:2], start=1):
                speeds[name].append(run_pipeline(classifier, files, threads))
            options = ["--concurrency", WORKERS, "--batch-size", BATCH_SIZE, "--object-store-mb", 300]
            own = parse_arguments(
                [str(images), "--model", str(model), "--output", f"{folder}/{run}", *map(str, options)]
            )
            if run == 0:
                start_ray(own)
            result = predict(own)
            speeds["ray"].append(result["images"] / result["seconds"])
            speeds["ray after start"].append(
                (result["images"] - result["images_in_first_result"])
                / (result["seconds"] - result["seconds_to_first_result"])
            )
        ray.shutdown()
    medians = {name: round(statistics.median(values), 1) for name, values in speeds.items()}
    result = {
        "images": args.images,
        "side": args.side,
        "batch_size": BATCH_SIZE,
        "workers": WORKERS,
        "images_per_second": medians,
        "ratio_after_start": {name: round(medians["ray after start"] / medians[name], 2) for name in list(speeds)[:2]},
        "runs": {name: [round(value, 1) for value in values] for name, values in speeds.items()},
        "machine": machine_description("cpu") | {"ray": ray.__version__},
    }
    print(result)
    if args.output is not None:
        write_json(args.output, result, MARK)
        print(f"Written: {args.output}")


if __name__ == "__main__":
    main()
