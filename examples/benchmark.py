# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""
Time and peak memory of InternImage forward passes, against the same model in float32 with DCNv3 transcribed literally
from the original's PyTorch code.

    python -m examples.benchmark --output examples/results/benchmark_cpu.json
    LOCAL_KERNELS=kernels-community/dcnv3=hub_kernels/dcnv3 python -m examples.benchmark \\
        --implementations kernel kernel-bfloat16 --output examples/results/benchmark_cpu_kernel.json

All run in one process and in turn, on the same weights and images, after a check that they agree. A speed-up is the
median of the ratios of neighbouring runs, which the drift of a busy machine hardly touches.

`--compare-with` times a second architecture beside the first instead, each implementation of the two in turn:

    LOCAL_KERNELS=kernels-community/dcnv3=hub_kernels/dcnv3 python -m examples.benchmark --compare-with Flash-T \\
        --implementations reference kernel --sizes 224x224 --output examples/results/benchmark_cpu_flash.json
"""

import argparse
import copy
import datetime
import itertools
import json
import platform
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

import torch
import transformers
from torch import nn

from examples.output_files import check_outputs, mark_of, write_json
from modeling_internimage import DCNv3, InternImageConfig, InternImageForImageClassification, use_dcnv3_kernel
from modeling_internimage.modeling_internimage import InternImageDeformableConvolution


MARK = mark_of(__file__)
ARCHITECTURES = {
    "T": {},
    "S": {"embed_dim": 80, "depths": [4, 4, 21, 4], "num_groups": [5, 10, 20, 40]},
    "B": {"embed_dim": 112, "depths": [4, 4, 21, 4], "num_groups": [7, 14, 28, 56]},
}
for _name in ("S", "B"):
    ARCHITECTURES[_name].update(layer_scale_init_value=1e-5, post_norm=True)
ARCHITECTURES["Flash-T"] = {"core_op": "DCNv4"}
# Side of the feature map, channels and groups in the stages of InternImage-T at 224 pixels.
OPERATOR_SHAPES = [(56, 64, 4), (28, 128, 8), (14, 256, 16), (7, 512, 32)]


class LiteralDCNv3(nn.Module):
    """
    The algorithm of the original's `dcnv3_core_pytorch`, step by step: pad the input, divide sampling positions by the
    padded size, repeat the grid for every image, map to [-1, 1], `grid_sample` each group, multiply, sum. Takes the
    arguments of `modeling_internimage.DCNv3`.
    """

    def forward(
        self, value, offset, mask, center_scale, kernel_size, stride, padding, dilation, num_groups, offset_scale,
        remove_center, softmax,
    ):  # fmt: skip
        num_points = kernel_size**2 - remove_center
        batch_size, out_height, out_width = offset.shape[:3]
        if softmax:
            mask = mask.view(batch_size, out_height, out_width, num_groups, num_points).softmax(-1)
        padded = nn.functional.pad(value, (0, 0, padding, padding, padding, padding))
        _, height, width, channels = padded.shape
        options = {"dtype": value.dtype, "device": value.device}
        center = dilation * (kernel_size - 1) // 2

        rows = torch.arange(out_height, **options) * stride + center + 0.5
        columns = torch.arange(out_width, **options) * stride + center + 0.5
        reference_y, reference_x = torch.meshgrid(rows / height, columns / width, indexing="ij")
        reference = torch.stack((reference_x, reference_y), -1).view(1, out_height, out_width, 1, 2)

        steps = torch.arange(kernel_size, **options) * dilation - center
        grid_x, grid_y = torch.meshgrid(steps / width, steps / height, indexing="ij")
        grid = torch.stack((grid_x, grid_y), -1).view(-1, 2)
        if remove_center:
            grid = torch.cat((grid[: num_points // 2], grid[num_points // 2 + 1 :]))
        grid = grid.repeat(num_groups, 1).view(1, 1, 1, num_groups * num_points, 2)

        size = torch.tensor([width, height], **options)
        offset = offset.view(batch_size, out_height, out_width, num_groups * num_points, 2)
        locations = (reference + grid * offset_scale).repeat(batch_size, 1, 1, 1, 1) + offset * offset_scale / size
        locations = 2 * locations - 1
        locations = locations.view(batch_size, out_height * out_width, num_groups, num_points, 2)
        locations = locations.transpose(1, 2).flatten(0, 1)
        images = padded.view(batch_size, height * width, channels).transpose(1, 2)
        images = images.reshape(batch_size * num_groups, channels // num_groups, height, width)
        samples = nn.functional.grid_sample(images, locations, padding_mode="zeros", align_corners=False)
        mask = mask.reshape(batch_size, out_height * out_width, num_groups, num_points).transpose(1, 2)
        mask = mask.reshape(batch_size * num_groups, 1, out_height * out_width, num_points)
        output = (samples * mask).sum(-1).view(batch_size, channels, out_height * out_width)
        output = output.transpose(1, 2).reshape(batch_size, out_height, out_width, channels).contiguous()
        if center_scale is not None:
            gate = center_scale.sigmoid().repeat_interleave(channels // num_groups, dim=-1)
            output = output * (1 - gate) + value * gate
        return output


def use_literal_dcnv3(model):
    """Replace the DCNv3 operator of every layer of `model` by [`LiteralDCNv3`]."""
    for module in model.modules():
        if isinstance(module, InternImageDeformableConvolution):
            module.dcnv3 = LiteralDCNv3()
    return model


def to_bfloat16(model):
    return model.to(torch.bfloat16)


def compiled(model):
    return torch.compile(model, fullgraph=True)


def with_kernel(model):
    return use_dcnv3_kernel(model, strict=True)


# What can be compared with the literal transcription: steps that turn a fresh float32 model into it.
IMPLEMENTATIONS = {
    "reference": [],
    "reference-bfloat16": [to_bfloat16],
    "reference-compiled": [compiled],
    "kernel": [with_kernel],
    "kernel-bfloat16": [to_bfloat16, with_kernel],
    "kernel-compiled": [with_kernel, compiled],
    "kernel-bfloat16-compiled": [to_bfloat16, with_kernel, compiled],
}


def processor_name() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []:
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def machine_description(device: str) -> dict:
    """What a reader needs to judge the numbers: hardware, versions, date and commit."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    return {
        "device": torch.cuda.get_device_name() if device == "cuda" else processor_name(),
        "threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "date": datetime.date.today().isoformat(),
        "commit": commit or None,
    }


def synchronize(device: str):
    if device == "cuda":
        torch.cuda.synchronize()


def time_in_turn(
    functions: dict, device: str, min_runs: int, max_seconds: float, burst: int = 1, clock=time.perf_counter
) -> dict[str, list[float]]:
    """
    Run the functions alternately, each `burst` times at its turn; return the seconds of a run, for every turn. Single
    runs find the caches and the allocator as the other functions left them. A burst is warm: a run that is not timed
    precedes it. `clock` returns seconds; `time.process_time` leaves out what other processes take.
    """
    seconds = {name: [] for name in functions}
    for function in functions.values():
        function()
    started = time.perf_counter()
    while len(next(iter(seconds.values()))) < min_runs or time.perf_counter() - started < max_seconds:
        for name, function in functions.items():
            if burst > 1:
                function()
            synchronize(device)
            start = clock()
            for _ in range(burst):
                function()
            synchronize(device)
            seconds[name].append((clock() - start) / burst)
    return seconds


def peak_memory_mib(function, device: str) -> float:
    """
    Highest memory of tensors, above those at the start, while `function` runs. (The process may take more: what the
    C library keeps back of freed memory depends on its settings and on what ran before.)
    """
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        function()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        function()
    with tempfile.TemporaryDirectory() as folder:
        profiler.export_chrome_trace(f"{folder}/trace.json")
        events = json.loads(Path(folder, "trace.json").read_text())["traceEvents"]
    events = sorted((event for event in events if event["name"] == "[memory]"), key=lambda event: event["ts"])
    return max(itertools.accumulate(event["args"]["Bytes"] for event in events), default=0) / 2**20


def build_models(architecture: str, implementations: list[str], device: str) -> dict[str, nn.Module]:
    """The literal transcription (float32) and the implementations, with the same weights."""
    torch.manual_seed(0)
    config = InternImageConfig(**ARCHITECTURES[architecture])
    model = InternImageForImageClassification(config).eval()
    with torch.no_grad():  # a fresh model samples on the regular grid only: give it offsets and masks as in use
        for name, parameter in model.named_parameters():
            if "offset_proj" in name or "mask_proj" in name:
                parameter.normal_(std=0.02)
            if "mask_proj" in name and config.core_op == "DCNv4":
                parameter.mul_(0.25)  # there is no softmax: at random, larger weights amplify rounding in every layer
    models = {"literal": use_literal_dcnv3(copy.deepcopy(model).to(device))}
    for name in implementations:
        models[name] = copy.deepcopy(model).to(device)
        for step in IMPLEMENTATIONS[name]:
            models[name] = step(models[name])
    return models


def relative_differences(models: dict[str, nn.Module], images: torch.Tensor) -> dict[str, float]:
    """Of the logits of the models to those of the literal transcription; the end of the program if they disagree."""
    logits = {name: model(images.to(next(model.parameters()).dtype)).logits.float() for name, model in models.items()}
    differences = {}
    for name in models:
        differences[name] = ((logits[name] - logits["literal"]).norm() / logits["literal"].norm()).item()
        if differences[name] > (0.05 if "bfloat16" in name else 1e-4):
            raise SystemExit(f"'{name}' and 'literal' disagree: their logits differ by {differences[name]:.2%}.")
    return differences


def measure(models: dict[str, nn.Module], images: torch.Tensor, min_runs: int, seconds: float) -> dict:
    """Times, speed-ups over the literal transcription, memory and deviations of the models on a batch of images."""
    device = images.device.type
    inputs = {name: images.to(next(model.parameters()).dtype) for name, model in models.items()}
    functions = {name: (lambda model=model, name=name: model(inputs[name])) for name, model in models.items()}
    differences = relative_differences(models, images)
    results = {name: {"relative_difference": difference} for name, difference in differences.items()}
    for name, function in functions.items():
        memory = peak_memory_mib(function, device)
        results[name]["peak_mib"] = round(memory, 1)
    runs = time_in_turn(functions, device, min_runs, seconds)
    for name, times in runs.items():
        speedup = statistics.median(literal / ours for ours, literal in zip(times, runs["literal"]))
        results[name] |= {"ms": round(1000 * statistics.median(times), 2), "speedup": round(speedup, 2)}
        results[name]["runs"] = len(times)
    return results


def compare(models: dict[str, dict[str, nn.Module]], images: torch.Tensor, min_runs: int, seconds: float) -> dict:
    """
    Times and memory of two architectures on a batch of images, each implementation of the first and of the second in
    turn. A speed-up is that of the second over the first. Beside the time that passes there is the processor's time,
    of all threads, in runs of their own. With a single thread, other processes on the machine hardly change it; with
    several, it includes their waiting for each other.
    """
    device = images.device.type
    first, second = models
    results = {}
    for architecture in models:
        relative_differences(models[architecture], images)
    for name in models[first]:
        if name == "literal":
            continue
        pair = {architecture: models[architecture][name] for architecture in models}
        batch = images.to(next(pair[first].parameters()).dtype)
        functions = {
            architecture: (lambda model=model, batch=batch: model(batch)) for architecture, model in pair.items()
        }
        entries = {
            architecture: {"peak_mib": round(peak_memory_mib(function, device), 1)}
            for architecture, function in functions.items()
        }
        for kind, clock in (("", time.perf_counter), ("processor_", time.process_time)):
            runs = time_in_turn(functions, device, min_runs, seconds, clock=clock)
            for architecture, times in runs.items():
                entries[architecture] |= {f"{kind}ms": round(1000 * statistics.median(times), 2)}
            ratios = [slow / fast for slow, fast in zip(runs[first], runs[second])]
            entries[second][f"{kind}speedup"] = round(statistics.median(ratios), 2)
            entries[second]["runs"] = len(ratios)
        results[name] = entries
    return results


def measure_operator(implementations: list[str], device: str, min_runs: int, seconds: float) -> list[dict]:
    """
    DCNv3 alone, with batches of 8: forward pass with the softmax, and backward pass, each warm (inputs in the caches
    as far as they fit) and cold. Speed-ups are over the literal transcription in float32. `torch.compile` is measured
    on whole models only.
    """
    implementations = [name for name in implementations if compiled not in IMPLEMENTATIONS[name]]
    cases = []
    for size, channels, num_groups in OPERATOR_SHAPES:
        torch.manual_seed(0)
        sizes = (channels, num_groups * 18, num_groups * 9)
        tensors = [torch.randn(8, size, size, last, device=device, requires_grad=True) for last in sizes]
        cotangent = torch.randn(8, size, size, channels, device=device)
        cotangents = {dtype: cotangent.to(dtype) for dtype in (torch.float32, torch.bfloat16)}
        geometry = (None, 3, 1, 1, 1, num_groups, 1.0, False, True)
        operators = {"literal": (LiteralDCNv3(), torch.float32)}
        for name in implementations:
            operator = nn.ModuleList([DCNv3()])
            if with_kernel in IMPLEMENTATIONS[name]:
                with_kernel(operator)
            operators[name] = operator[0], torch.bfloat16 if to_bfloat16 in IMPLEMENTATIONS[name] else torch.float32
        forwards, backwards = {}, {}
        for name, (operator, dtype) in operators.items():
            inputs = [tensor.detach().to(dtype).requires_grad_() for tensor in tensors]

            def forward(operator=operator, inputs=inputs, geometry=geometry):
                with torch.inference_mode():
                    return operator.eval()(*inputs, *geometry)

            # Only the backward pass is timed: the graph is kept from one run to the next.
            output = operator.train()(*inputs, *geometry)

            def backward(output=output, inputs=inputs, incoming=cotangents[dtype]):
                torch.autograd.grad(output, inputs, incoming, retain_graph=True)

            difference = (
                (output.float() - operators["literal"][0](*tensors, *geometry)).norm() / output.norm()
            ).item()
            if difference > (0.02 if dtype == torch.bfloat16 else 1e-5):
                raise SystemExit(f"'{name}' and 'literal' disagree at {size}x{size}x{channels}: {difference:.2%}.")
            forwards[name], backwards[name] = forward, backward
        case = {"size": size, "channels": channels, "num_groups": num_groups, "batch_size": 8, "results": {}}
        passes = {"forward": (forwards, 10), "forward, cold": (forwards, 1)}
        passes |= {"backward": (backwards, 5), "backward, cold": (backwards, 1)}
        for direction, (functions, burst) in passes.items():
            runs = time_in_turn(functions, device, min_runs, seconds, burst)
            for name, times in runs.items():
                speedup = statistics.median(literal / ours for ours, literal in zip(times, runs["literal"]))
                entry = {"ms": round(1000 * statistics.median(times), 3), "speedup": round(speedup, 1)}
                case["results"].setdefault(name, {})[direction] = entry
        cases.append(case)
        print(json.dumps(case), flush=True)
    return cases


def markdown_table(result: dict) -> str:
    """The results as the README shows them."""
    if "compared_with" in result:
        return comparison_table(result)
    names = [name for name in result["cases"][0]["results"] if name != "literal"]
    lines = ["| image | batch | literal | " + " | ".join(names) + " |", "|---" * (3 + len(names)) + "|"]

    def cell(entry, speedup):
        text = f"{entry['ms']:.0f} ms" + (f" ({entry['speedup']:.2f}x)" if speedup else "")
        return f"{text}, {entry['peak_mib']:.0f} MiB"

    for case in result["cases"]:
        cells = [cell(case["results"][name], name != "literal") for name in ["literal", *names]]
        lines.append(f"| {case['height']}x{case['width']} | {case['batch_size']} | " + " | ".join(cells) + " |")
    machine = result["machine"]
    lines += operator_table(result.get("operator"))
    lines.append(
        f"\nInternImage-{result['architecture']} on {machine['device']}, {machine['threads']} threads, torch "
        f"{machine['torch']}, {machine['date']}. Memory is the peak of {result['memory']} above the loaded model."
    )
    return "\n".join(lines)


def comparison_table(result: dict) -> str:
    first, second = result["architecture"], result["compared_with"]
    lines = [f"| image | batch | | {first} | {second} | processor time: {first} | {second} |", "|---" * 7 + "|"]
    for case in result["cases"]:
        for name, entries in case["results"].items():
            cells = [f"{case['height']}x{case['width']}", str(case["batch_size"]), name]
            for kind in ("", "processor_"):
                speedup = f"({entries[second][f'{kind}speedup']:.2f}x)"
                cells += [f"{entries[first][f'{kind}ms']:.0f} ms", f"{entries[second][f'{kind}ms']:.0f} ms {speedup}"]
            lines.append("| " + " | ".join(cells) + " |")
    machine = result["machine"]
    lines.append(
        f"\nOn {machine['device']}, {machine['threads']} threads, torch {machine['torch']}, {machine['date']}. The "
        "processor's time is that of all threads."
    )
    return "\n".join(lines)


def operator_table(cases: list[dict] | None) -> list[str]:
    if not cases:
        return []
    names = [name for name in cases[0]["results"] if name != "literal"]
    lines = ["", "| DCNv3, batch 8 | pass | literal | " + " | ".join(names) + " |", "|---" * (3 + len(names)) + "|"]
    for case in cases:
        for direction in case["results"]["literal"]:
            entries = [case["results"][name][direction] for name in ["literal", *names]]
            cells = [f"{entries[0]['ms']:.1f} ms"] + [f"{e['ms']:.2f} ms ({e['speedup']:.1f}x)" for e in entries[1:]]
            shape = f"{case['size']}x{case['size']}x{case['channels']}"
            lines.append(f"| {shape} | {direction} | " + " | ".join(cells) + " |")
    return lines


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--architecture", choices=ARCHITECTURES, default="T")
    parser.add_argument(
        "--compare-with", choices=ARCHITECTURES, help="time another architecture in turn with this one"
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
        print(markdown_table(json.loads(args.table.read_text())))
        return
    if args.output:
        check_outputs([args.output], MARK)

    result = {"architecture": args.architecture, "machine": machine_description(args.device)}
    if args.compare_with:
        result |= {"compared_with": args.compare_with}
        architectures = {
            architecture: build_models(architecture, args.implementations, args.device)
            for architecture in (args.architecture, args.compare_with)
        }
    else:
        operator = measure_operator(args.implementations, args.device, args.min_runs, args.seconds / 5)
        result |= {"memory": "tensors", "operator": operator}
        models = build_models(args.architecture, args.implementations, args.device)
    cases = []
    for size in args.sizes:
        height, width = map(int, size.split("x"))
        for batch_size in args.batch_sizes:
            images = torch.randn(batch_size, 3, height, width, device=args.device)
            with torch.inference_mode():
                if args.compare_with:
                    results = compare(architectures, images, args.min_runs, args.seconds)
                else:
                    results = measure(models, images, args.min_runs, args.seconds)
            cases.append({"height": height, "width": width, "batch_size": batch_size, "results": results})
            print(json.dumps(cases[-1]), flush=True)

    if args.output:
        write_json(args.output, result | {"cases": cases}, MARK)


if __name__ == "__main__":
    main()
