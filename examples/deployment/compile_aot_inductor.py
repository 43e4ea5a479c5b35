# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""
Compile a classifier ahead of time, for any batch size: into one file that PyTorch runs from Python or C++, without
this package and without transformers.

    python -m examples.deployment.compile_aot_inductor my_model compiled

The folder gets `model.pt2`, `config.json` and `preprocessor_config.json`. The script measures the compilation, and
then the package against the model, in turn, in one process: by the clock, and by the seconds that the processor
worked, which other programs disturb less. A `model.pt2` that exists is measured, not compiled again.
"""

import argparse
import statistics
import time
from pathlib import Path

import torch
from transformers import AutoImageProcessor, AutoModelForImageClassification

import modeling_internimage  # noqa: F401  (registers InternImage)
from examples.benchmark.measuring import machine_description, time_in_turn
from examples.output_files import check_outputs, mark_of, write_json


MARK = mark_of(__file__)


class Logits(torch.nn.Module):
    """A classifier with one tensor as output, which needs no class of transformers to be unpacked."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, pixel_values):
        return self.model(pixel_values).logits


def compile_package(model: torch.nn.Module, path: Path, size: tuple[int, int]):
    """
    Write `model`, from one tensor (batch_size, 3, *size) to one tensor, as an AOTInductor package.

    AOTInductor's documented entry points are still in `torch._inductor`; this function and [`load_package`] are the
    only places that know it.
    """
    # Two images: torch.export takes a dimension of 1 for constant.
    batch_size = torch.export.Dim("batch_size", max=1024)
    program = torch.export.export(model, (torch.randn(2, 3, *size),), dynamic_shapes=({0: batch_size},))
    torch._inductor.aoti_compile_and_package(program, package_path=str(path))


def load_package(path: Path):
    return torch._inductor.aoti_load_package(str(path))


def compare(functions: dict, pixel_values: torch.Tensor, runs: int) -> dict:
    """Median seconds of eager model and package, and how far their logits differ, relative to the largest."""
    processor_seconds: dict[str, list[float]] = {name: [] for name in functions}

    def call(name: str):
        start = time.process_time()
        functions[name](pixel_values)
        processor_seconds[name].append(time.process_time() - start)

    with torch.inference_mode():
        expected, output = functions["eager"](pixel_values), functions["package"](pixel_values)
        difference = ((output - expected).abs().max() / expected.abs().max()).item()
        if difference > 1e-4:
            raise SystemExit(
                f"The package and the model differ by {difference:.1e}: remove the package of another model."
            )
        calls = {name: lambda name=name: call(name) for name in functions}
        seconds = time_in_turn(calls, "cpu", runs, max_seconds=0)
    result = {"relative_difference": difference}
    for kind, values in (("seconds", seconds), ("processor_seconds", processor_seconds)):
        medians = {name: statistics.median(times[-runs:]) for name, times in values.items()}
        result[kind] = {name: round(median, 4) for name, median in medians.items()}
        result[kind]["speed_up"] = round(medians["eager"] / medians["package"], 2)
    return result


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="folder or name of a classifier")
    parser.add_argument("folder", type=Path, help="folder to write")
    parser.add_argument("--size", nargs=2, type=int, metavar=("HEIGHT", "WIDTH"), help="default: the configuration's")
    parser.add_argument("--batch_sizes", nargs="+", type=int, default=[1, 8], help="to measure")
    parser.add_argument("--runs", type=int, default=5, help="runs of each at a batch size")
    parser.add_argument("--output", type=Path, help="JSON file for the measurements")
    args = parser.parse_args()
    if args.output:
        check_outputs([args.output], MARK)
    model = AutoModelForImageClassification.from_pretrained(args.model).eval()
    size = tuple(args.size or 2 * [model.config.image_size])
    package = args.folder / "model.pt2"
    args.folder.mkdir(parents=True, exist_ok=True)
    model.config.save_pretrained(args.folder)
    AutoImageProcessor.from_pretrained(args.model).save_pretrained(args.folder)
    model = Logits(model)
    compilation = None
    if not package.exists():
        start = time.perf_counter()
        with torch.no_grad():
            compile_package(model, package, size)
        compilation = round(time.perf_counter() - start)
    functions = {"eager": model, "package": load_package(package)}
    rows = {
        batch_size: compare(functions, torch.randn(batch_size, 3, *size), args.runs) for batch_size in args.batch_sizes
    }
    result = {
        "machine": machine_description("cpu"),
        "size": size,
        "compilation_seconds": compilation,
        "package_mib": round(package.stat().st_size / 2**20, 1),
        "batch_sizes": rows,
    }
    print(result)
    if args.output:
        write_json(args.output, result, MARK)


if __name__ == "__main__":
    main()
