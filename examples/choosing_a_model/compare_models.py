# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""
Size, arithmetic, reported accuracy, memory and time of the official classifiers, one row for each.

    python -m examples.choosing_a_model.compare_models --output examples/results/models.json
    python -m examples.choosing_a_model.compare_models --table examples/results/models.json

Parameters and multiply-accumulates are counted on models without weights, at the image size of the checkpoint; memory
and time are those of other files in `examples/results`.
"""

import argparse
import json
from pathlib import Path

from conversion.checkpoints import find_checkpoint
from conversion.convert_checkpoint import empty_model
from examples.output_files import check_outputs, mark_of, write_json
from modeling_internimage import InternImageForImageClassification
from modeling_internimage.cli.info import multiply_accumulates


MARK = mark_of(__file__)
RESULTS = Path(__file__).parents[1] / "results"
CLASSIFIERS = (
    "internimage_t_1k_224", "internimage_s_1k_224", "internimage_b_1k_224", "internimage_l_22kto1k_384",
    "internimage_xl_22kto1k_384", "internimage_h_22kto1k_640", "internimage_g_22kto1k_512",
    "flash_intern_image_t_1k_224", "flash_intern_image_s_1k_224", "flash_intern_image_b_1k_224",
    "flash_internimage_l_22kto1k_384",
)  # fmt: skip
# Where a forward pass of one image, with the kernel, was measured.
CPU_TIMES = {"T": "convnext_t_cpu.json", "B": "convnext_b_cpu.json", "Flash-T": "benchmark_cpu_flash.json"}


def read(name: str) -> dict:
    return json.loads((RESULTS / name).read_text())


def count(name: str) -> dict:
    checkpoint = find_checkpoint(name)
    model = empty_model(InternImageForImageClassification, checkpoint.config()).eval()
    return {
        "backbone": checkpoint.backbone,
        "image_size": checkpoint.image_size[0],
        "num_parameters": model.num_parameters(),
        "gmacs": round(multiply_accumulates(model, checkpoint.image_size) / 1e9, 1),
        "reported_top1": checkpoint.reported["accuracy"],
    }


def cpu_time(backbone: str) -> str:
    if backbone not in CPU_TIMES:
        return "not measured"
    case = next(case for case in read(CPU_TIMES[backbone])["cases"] if case["batch_size"] == 1)
    return f"{case['results']['kernel'][backbone]['ms']:.0f} ms"


def markdown_table(result: dict) -> str:
    training = read("training_memory.json")["models"]
    header = "model, pixels | parameters | GMACs | top-1, reported | weights: float32, bfloat16"
    header += " | training: state | an image | with checkpointing | CPU, an image"
    lines = [f"| {header} |", "|---" * (header.count("|") + 1) + "|"]
    for row in result["models"].values():
        activations = training[row["backbone"]]["activations"]
        cells = [
            f"{row['backbone']}, {row['image_size']}",
            f"{row['num_parameters'] / 1e6:.0f} M",
            f"{row['gmacs']:.1f}" if row["gmacs"] < 100 else f"{row['gmacs']:.0f}",
            f"{row['reported_top1']:.1f}",
            f"{4 * row['num_parameters'] / 1e9:.2f} GB, {2 * row['num_parameters'] / 1e9:.2f} GB",
            f"{16 * row['num_parameters'] / 1e9:.1f} GB",
            f"{activations['kernel'] / 1e9:.2f} GB",
            f"{activations['kernel, checkpointing'] / 1e9:.2f} GB",
            cpu_time(row["backbone"]),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main(argv: list[str] | None = None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, help="JSON file for the results")
    parser.add_argument("--table", type=Path, help="print an earlier JSON file as Markdown, count nothing")
    args = parser.parse_args(argv)
    if args.table:
        print(markdown_table(json.loads(args.table.read_text())))
        return
    if args.output:
        check_outputs([args.output], MARK)
    models = {}
    for name in CLASSIFIERS:
        models[name] = count(name)
        print(json.dumps({name: models[name]}), flush=True)
    if args.output:
        write_json(args.output, {"models": models}, MARK)


if __name__ == "__main__":
    main()
