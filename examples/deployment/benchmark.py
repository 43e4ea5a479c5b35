# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""
Time of InternImage-T as ONNX in ONNX Runtime and OpenVINO on the CPU, against PyTorch without and with the compiled
kernel, and against ConvNeXt-T, a network of about as many operations without deformable convolutions, in the same
runtimes. Weights are random.

    LOCAL_KERNELS=kernels-community/dcnv3=hub_kernels/dcnv3 python -m examples.deployment.benchmark \\
        --kernel --output examples/results/deployment_cpu.json

All run in one process and in turn on the same images, after a check that they agree with PyTorch. A ratio is the
median of the ratios of neighbouring runs. Where a machine is busy with something else, `--clock cpu` and
`OMP_NUM_THREADS=1` measure the time that the processor spends on the computation.
"""

import argparse
import json
import statistics
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import onnxruntime
import openvino
import torch
from transformers import ConvNextConfig, ConvNextForImageClassification

from examples.benchmark.measuring import machine_description, time_in_turn
from examples.benchmark.models import build_models
from examples.output_files import check_outputs, mark_of, write_json
from modeling_internimage.export import export_onnx


MARK = mark_of(__file__)
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
SIZE = 224
# ONNX Runtime is faster with the first, and OpenVINO knows only the second.
OPERATORS = ("deform_conv", "grid_sample")
TOLERANCES = {"float32": 1e-4, "bfloat16": 0.1}


def export_convnext(model: ConvNextForImageClassification, file: Path):
    """With any batch size, as `export_onnx` does it for ours."""

    class Logits(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, pixel_values):
            return {"logits": self.model(pixel_values).logits}

    program = torch.onnx.export(
        Logits().eval(),
        (torch.randn(2, 3, SIZE, SIZE),),
        output_names=["logits"],
        opset_version=18,
        dynamic_shapes={"pixel_values": {0: "batch_size"}},
        dynamo=True,
        verbose=False,
    )
    file.parent.mkdir(parents=True, exist_ok=True)
    program.save(file)


def export_all(internimage, convnext, folder: Path) -> dict[str, Path]:
    """A file for each model and operator. One that is in `folder` from an earlier run stays as it is."""
    files = {f"internimage-{operator}": folder / operator / "model.onnx" for operator in OPERATORS}
    files["convnext"] = folder / "convnext" / "model.onnx"
    for operator in OPERATORS:
        if not files[f"internimage-{operator}"].exists():
            export_onnx(internimage, folder / operator, operator=operator)
    if not files["convnext"].exists():
        export_convnext(convnext, files["convnext"])
    return files


def onnxruntime_function(file: Path, images: torch.Tensor):
    """Runs a file on `images`, with as many threads as PyTorch; returns logits."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    inputs = {"pixel_values": images.numpy()}
    return lambda: torch.from_numpy(session.run(["logits"], inputs)[0])


def openvino_function(file: Path, images: torch.Tensor, precision: str):
    """The same in OpenVINO, for this batch size. `precision` is that of the computation: "f32" or "bf16"."""
    core = openvino.Core()
    model = core.read_model(file)
    model.reshape(list(images.shape))
    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "INFERENCE_PRECISION_HINT": precision,
    }
    request = core.compile_model(model, "CPU", settings).create_infer_request()
    inputs = {"pixel_values": images.numpy()}
    return lambda: torch.from_numpy(request.infer(inputs)["logits"])


def build_functions(models: dict, files: dict[str, Path], images: torch.Tensor, precisions: list[str]) -> dict:
    """What is measured, by name of runtime and model. Each takes nothing and returns logits."""
    functions = {}
    for name, model in models.items():
        functions[name] = lambda model=model: model(images).logits
    for name, file in files.items():
        functions[f"onnxruntime {name}"] = onnxruntime_function(file, images)
        if name != "internimage-deform_conv":
            for precision in precisions:
                suffix = "" if precision == "f32" else "-bfloat16"
                functions[f"openvino{suffix} {name}"] = openvino_function(file, images, precision)
    return functions


@torch.inference_mode()
def measure(functions: dict, min_runs: int, seconds: float, clock) -> dict:
    """For each function, its time, its speed over PyTorch and over ConvNeXt in the same runtime, and its deviation."""
    references = {name.split()[1]: function() for name, function in functions.items() if name.startswith("torch ")}
    results = {}
    for name, function in functions.items():
        reference = references[name.split()[1].split("-")[0]]
        difference = ((function() - reference).norm() / reference.norm()).item()
        if difference > TOLERANCES["bfloat16" if "bfloat16" in name else "float32"]:
            raise SystemExit(f"'{name}' and PyTorch disagree: their logits differ by {difference:.2%}.")
        results[name] = {"relative_difference": difference}
    runs = time_in_turn(functions, "cpu", min_runs, seconds, clock=clock)
    for name, times in runs.items():
        runtime, model = name.split()
        results[name] |= {"ms": round(1000 * statistics.median(times), 2), "runs": len(times)}
        others = {"speed_over_torch": f"torch {model.split('-')[0]}", "speed_over_convnext": f"{runtime} convnext"}
        for key, other in others.items():
            if other in runs:
                ratio = statistics.median(theirs / ours for ours, theirs in zip(times, runs[other]))
                results[name][key] = round(ratio, 2)
    return results


def markdown_table(result: dict) -> str:
    """The results as the README shows them."""
    sizes = [case["batch_size"] for case in result["cases"]]
    header = " | ".join(f"batch {size} | over PyTorch | over ConvNeXt-T" for size in sizes)
    lines = [f"| runtime | model | {header} |", "|---" * (2 + 3 * len(sizes)) + "|"]
    for name in result["cases"][0]["results"]:
        cells = name.split()
        for case in result["cases"]:
            entry = case["results"][name]
            cells.append(f"{entry['ms']:.0f} ms")
            for key in ("speed_over_torch", "speed_over_convnext"):
                cells.append(f"{entry[key]:.2f}x" if key in entry else "")
        lines.append("| " + " | ".join(cells) + " |")
    lines += ["", *result["skipped"]]
    for name, file in result["files"].items():
        lines.append(f"- `{name}`: {file['megabytes']} MB, {file['over_weights']:.3f} times its weights.")
    machine, versions = result["machine"], result["versions"]
    lines.append(
        f"\nInternImage-T and ConvNeXt-T, {SIZE}x{SIZE}, float32 unless named, on {machine['device']}, "
        f"{machine['threads']} threads, {result['clock']} time, torch {machine['torch']}, "
        + ", ".join(f"{package} {number}" for package, number in versions.items())
        + f", {machine['date']}."
    )
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--kernel", action="store_true", help="also PyTorch with the compiled kernel")
    parser.add_argument("--folder", type=Path, help="keep the ONNX files here, and use those that are here")
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    parser.add_argument("--min-runs", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=60.0, help="at least this long per batch size")
    parser.add_argument("--output", type=Path, help="JSON file for the results")
    parser.add_argument("--table", type=Path, help="print an earlier JSON file as Markdown, measure nothing")
    args = parser.parse_args()
    if args.table:
        print(markdown_table(json.loads(args.table.read_text())))
        return
    if args.output:
        check_outputs([args.output], MARK)
    if args.clock == "cpu" and torch.get_num_threads() != 1:
        parser.error("`--clock cpu` adds up the time of all threads: set OMP_NUM_THREADS=1.")

    internimage = build_models("T", ["reference"] + ["kernel"] * args.kernel, "cpu")
    models = {"torch internimage": internimage["reference"]}
    if args.kernel:
        models["torch-kernel internimage"] = internimage["kernel"]
    models["torch convnext"] = ConvNextForImageClassification(ConvNextConfig()).eval()

    precisions, skipped = ["f32"], []
    if "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        precisions.append("bf16")
    else:
        skipped.append("OpenVINO in bfloat16 was not measured: this processor has no bfloat16 instructions.")
        print(skipped[0])

    with tempfile.TemporaryDirectory() as temporary:
        files = export_all(models["torch internimage"], models["torch convnext"], args.folder or Path(temporary))
        sizes = {}
        for name, file in files.items():
            weights = models["torch " + name.split("-")[0]].state_dict().values()
            megabytes = file.stat().st_size / 1e6
            over_weights = megabytes * 1e6 / sum(tensor.nbytes for tensor in weights)
            sizes[name] = {"megabytes": round(megabytes, 1), "over_weights": round(over_weights, 4)}
        cases = []
        for batch_size in args.batch_sizes:
            images = torch.randn(batch_size, 3, SIZE, SIZE)
            functions = build_functions(models, files, images, precisions)
            results = measure(functions, args.min_runs, args.seconds, CLOCKS[args.clock])
            cases.append({"batch_size": batch_size, "results": results})
            print(json.dumps(cases[-1]), flush=True)

    result = {"machine": machine_description("cpu"), "clock": args.clock}
    result["versions"] = {package: version(package) for package in ("onnx", "onnxruntime", "openvino")}
    result |= {"skipped": skipped, "files": sizes, "cases": cases}
    print(markdown_table(result))
    if args.output:
        write_json(args.output, result, MARK)


if __name__ == "__main__":
    main()
