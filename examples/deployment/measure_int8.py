# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""
Accuracy, time and size of int8 against float32, in ONNX Runtime and OpenVINO, of exported classifiers.

    python -m examples.deployment.measure_int8 --model outputs/digits_onnx --calibration_dir pictures/train \\
        --validation_dir pictures/validation --output examples/results/int8_digits.json
    python -m examples.deployment.measure_int8 --table examples/results/int8_*.json

`--validation_dir` has one folder of pictures for each class; without it, only time and size are measured. All run in
one process and in turn, on one image and one thread. Times are the smallest processor time of the runs.
"""

import argparse
import json
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
from transformers import AutoConfig, AutoImageProcessor

import modeling_internimage  # noqa: F401  (registers InternImage)
from examples.benchmark.measuring import machine_description
from examples.deployment.quantize import DEFAULT_PICTURES, RUNTIMES, CalibrationInputs, find_pictures, quantize_export
from examples.output_files import check_outputs, mark_of, write_json


MARK = mark_of(__file__)


def load_onnxruntime(folder: Path):
    """A function from `pixel_values` to logits, both float32 arrays, with one thread."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(folder / "model.onnx", options, providers=["CPUExecutionProvider"])
    return lambda pixel_values: session.run(["logits"], {"pixel_values": pixel_values})[0]


def load_openvino(folder: Path):
    """As `load_onnxruntime`."""
    import openvino

    file = folder / "model.xml" if (folder / "model.xml").exists() else folder / "model.onnx"
    settings = {"INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
    compiled = openvino.Core().compile_model(file, "CPU", settings)
    return lambda pixel_values: compiled([pixel_values])["logits"]


LOADERS = {"onnxruntime": load_onnxruntime, "openvino": load_openvino}


def smallest_times(functions: dict, pixel_values: np.ndarray, num_runs: int) -> dict[str, float]:
    """Milliseconds of processor time; the functions take turns."""
    times = {name: [] for name in functions}
    for run in range(num_runs + 1):
        for name, function in functions.items():
            start = time.process_time()
            function(pixel_values)
            if run > 0:  # the first one warms up
                times[name].append(1000 * (time.process_time() - start))
    return {name: round(min(values), 2) for name, values in times.items()}


def measure(args, folder: Path) -> dict:
    results = {}
    for runtime in args.runtimes:
        quantize_export(args.model, folder / runtime, runtime, args.calibration_dir, args.num_pictures)
    image_processor = AutoImageProcessor.from_pretrained(args.model)
    config = AutoConfig.from_pretrained(args.model)
    pictures = find_pictures(args.validation_dir or args.calibration_dir, 10**9 if args.validation_dir else 8)
    shapes = {"pixel_values": [None] * 4}
    inputs = [batch["pixel_values"] for batch in CalibrationInputs(pictures, image_processor, shapes)]
    functions, logits = {}, {}
    for runtime in args.runtimes:
        for kind, path in (("float32", args.model), ("int8", folder / runtime)):
            name = f"{runtime} {kind}"
            functions[name] = LOADERS[runtime](path)
            logits[name] = np.concatenate([functions[name](pixel_values) for pixel_values in inputs])
            size = sum(file.stat().st_size for file in path.iterdir() if file.name.startswith("model."))
            difference = np.linalg.norm(logits[name] - logits[f"{runtime} float32"])
            results[name] = {
                "size_mib": round(size / 2**20, 2),
                "relative_difference": float(difference / np.linalg.norm(logits[f"{runtime} float32"])),
            }
            if args.validation_dir:
                labels = np.array([config.label2id[picture.parent.name] for picture in pictures])
                results[name]["accuracy"] = float((logits[name].argmax(axis=1) == labels).mean())
    for name, milliseconds in smallest_times(functions, inputs[0], args.num_runs).items():
        results[name]["ms"] = milliseconds
    return {"num_pictures": len(pictures), "image_shape": list(inputs[0].shape), "results": results}


def markdown_table(results: list[dict]) -> str:
    lines = ["| model | runtime | size | accuracy | processor time of an image |", "|---" * 5 + "|"]
    for result in results:
        for name, row in result["results"].items():
            accuracy = f"{100 * row['accuracy']:.2f}%" if "accuracy" in row else "not measured"
            cells = [result["model"], name, f"{row['size_mib']:.1f} MiB", accuracy, f"{row['ms']:.1f} ms"]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="folder of the exported classifier, in float32")
    parser.add_argument("--name", help="name of the model in the results; by default that of the folder")
    parser.add_argument("--calibration_dir", type=Path, help="folder with pictures for calibration")
    parser.add_argument("--validation_dir", type=Path, help="folder with one folder of pictures for each class")
    parser.add_argument("--runtimes", nargs="+", choices=RUNTIMES, default=list(RUNTIMES), help="both by default")
    parser.add_argument("--num_pictures", type=int, default=DEFAULT_PICTURES, help="pictures for calibration, at most")
    parser.add_argument("--num_runs", type=int, default=20, help="timed runs of each model")
    parser.add_argument("--output", type=Path, help="JSON file for the results")
    parser.add_argument("--table", type=Path, nargs="+", help="print earlier JSON files as Markdown, measure nothing")
    args = parser.parse_args()
    if args.table:
        print(markdown_table([json.loads(file.read_text()) for file in args.table]))
        return
    if args.model is None or args.calibration_dir is None:
        parser.error("`--model` and `--calibration_dir` are needed.")
    if args.output:
        check_outputs([args.output], MARK)
    with tempfile.TemporaryDirectory() as folder:
        result = {"model": args.name or args.model.name} | measure(args, Path(folder))
    packages = [package for runtime in args.runtimes for package in RUNTIMES[runtime].packages]
    result["machine"] = machine_description("cpu") | {package: version(package) for package in packages}
    print(markdown_table([result]))
    if args.output:
        write_json(args.output, result, MARK)


if __name__ == "__main__":
    main()
