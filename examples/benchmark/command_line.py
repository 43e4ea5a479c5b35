# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""
`internimage predict` beside the bare pipeline of transformers: the same model, files and batch size, in one process
and in turn. The command also looks for the files, reads them ahead, shows progress, and can continue after a kill.

    OMP_NUM_THREADS=1 python -m examples.benchmark.command_line --output outputs/command_line.json
    OMP_NUM_THREADS=1 python -m examples.benchmark.command_line --model outputs/digits --cases 32x2000 \\
        --output outputs/command_line_digits.json

Ratios are medians of those of neighbouring runs, of elapsed time and of the processor's time. Both sides use one
model, which is in memory already: a classifier of your own, or an InternImage with random weights.
"""

import argparse
import contextlib
import io
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image
from transformers import pipeline

from examples.benchmark.inference import both_clocks
from examples.benchmark.measuring import machine_description, time_in_turn, where_and_when
from examples.benchmark.models import ARCHITECTURES
from examples.image_datasets import published_name
from examples.output_files import check_outputs, mark_of, write_json
from modeling_internimage import InternImageConfig, InternImageForImageClassification, create_image_processor
from modeling_internimage.cli.image_sources import find_images
from modeling_internimage.cli.predict import write_predictions
from modeling_internimage.cli.result_files import Journal


MARK = mark_of(__file__)


def write_images(folder: Path, number: int, size: int):
    """JPEG files of random low frequencies, like photographs in their size in bytes."""
    folder.mkdir(parents=True)
    generator = np.random.default_rng(0)
    for idx in range(number):
        coarse = Image.fromarray(generator.integers(0, 256, (size // 8, size // 8, 3), np.uint8))
        coarse.resize((size, size), Image.Resampling.BICUBIC).save(folder / f"{idx:05}.jpg")


def build_classifier(architecture: str, size: int):
    """A pipeline of InternImage-T or another `architecture`, with random weights."""
    model = InternImageForImageClassification(InternImageConfig(**ARCHITECTURES[architecture], num_labels=1000)).eval()
    return pipeline("image-classification", model=model, image_processor=create_image_processor(size), device="cpu")


def measure(classifier, size: int, number: int, batch_size: int, num_readers: int, min_runs: int) -> dict:
    """Seconds of both ways for `number` images of `size` pixels, and how many times as long the command takes."""
    with tempfile.TemporaryDirectory() as folder:
        images, table = Path(folder, "images"), Path(folder, "predictions.csv")
        write_images(images, number, size)
        files = sorted(map(str, images.iterdir()))

        def command():
            table.unlink(missing_ok=True)
            with contextlib.redirect_stderr(io.StringIO()):
                status = write_predictions(
                    classifier, find_images([str(images)]), Journal(table, {}), ".csv", {}, (None, None),
                    batch_size=batch_size, num_readers=num_readers, top_k=1,
                )  # fmt: skip
            if status != 0 or len(table.read_text().splitlines()) != number + 1:
                raise RuntimeError("The command did not classify all images.")

        functions = {"pipeline": lambda: classifier(files, batch_size=batch_size, top_k=1), "command": command}
        seconds = time_in_turn(functions, "cpu", min_runs, max_seconds=0, clock=both_clocks)
    ratios = np.median(np.divide(seconds["command"], seconds["pipeline"]), axis=0)
    medians = {name: np.median(times, axis=0).round(3).tolist() for name, times in seconds.items()}
    return {
        "size": size,
        "images": number,
        "batch_size": batch_size,
        "readers": num_readers,
        "runs": len(seconds["command"]),
        "seconds": {name: median[0] for name, median in medians.items()},
        "processor_seconds": {name: median[1] for name, median in medians.items()},
        "ratio": round(ratios[0], 3),
        "processor_ratio": round(ratios[1], 3),
    }


def main(argv: list[str] | None = None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--architecture", choices=list(ARCHITECTURES), default="T")
    parser.add_argument("--model", help="a classifier's folder or repository, instead of --architecture")
    parser.add_argument("--cases", nargs="+", default=["32x2000", "224x64"], metavar="SIZExNUMBER", help="of images")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--readers", type=int, default=1, help="threads that read images, as --workers")
    parser.add_argument("--min-runs", type=int, default=5, help="of both ways for each case, after one to warm up")
    parser.add_argument("--output", type=Path, required=True, help="JSON file for the results")
    args = parser.parse_args(argv)
    check_outputs([args.output], MARK)
    machine = machine_description("cpu")
    cases = []
    for case in args.cases:
        size, number = map(int, case.split("x"))
        if args.model:
            classifier = pipeline("image-classification", model=args.model, device="cpu")
        else:
            classifier = build_classifier(args.architecture, size)
        result = measure(classifier, size, number, args.batch_size, args.readers, args.min_runs)
        cases.append(result)
        print(
            f"{number} images of {size}x{size}, batch size {args.batch_size}: {result['ratio']:.3f} times the time of "
            f"the pipeline, {result['processor_ratio']:.3f} times that of the processor",
            flush=True,
        )
    name = published_name(args.model) if args.model else f"InternImage-{args.architecture}"
    write_json(args.output, {"machine": machine, "model": name, "cases": cases}, MARK)
    print(f"{name}, {where_and_when(machine)}")


if __name__ == "__main__":
    main()
