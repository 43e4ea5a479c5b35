# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""
Memory of training: parameters, gradients and optimiser of a model, and the activations of an image.

    LOCAL_KERNELS=kernels-community/dcnv3=hub_kernels/dcnv3 \\
        python -m examples.training_memory --output examples/results/training_memory.json
    python -m examples.training_memory --table examples/results/training_memory.json

Activations are the tensors that autograd keeps between the forward and the backward pass, each storage once, counted
in a real forward pass of one small image on the CPU; they grow with the number of pixels and are as large on a GPU.
Workspaces and the allocator's reserve come on top.
"""

import argparse
import datetime
import json
import platform
from pathlib import Path

import torch
import transformers

from conversion.checkpoints import ARCHITECTURES
from examples.output_files import check_outputs, mark_of, write_json
from modeling_internimage import InternImageConfig, InternImageForImageClassification, use_dcnv3_kernel


MARK = mark_of(__file__)
# Of the authors' recipes.
IMAGE_SIZES = {"T": 224, "S": 224, "B": 224, "L": 384, "XL": 384, "H": 640, "G": 512}
IMAGE_SIZES |= {"Flash-T": 224, "Flash-S": 224, "Flash-B": 224, "Flash-L": 384}
MEASURED_SIZE = 128
SETTINGS = {  # how DCNv3 is computed, gradient checkpointing
    "reference": (False, False),
    "reference, checkpointing": (False, True),
    "kernel": (True, False),
    "kernel, checkpointing": (True, True),
}


def saved_bytes(module: torch.nn.Module, inputs: torch.Tensor) -> int:
    """Bytes that autograd keeps for the backward pass of `module`, without its parameters."""
    parameters = {parameter.untyped_storage().data_ptr() for parameter in module.parameters()}
    storages = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            storages[storage.data_ptr()] = (storage.nbytes(), tensor)  # held, or another could get its address
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        outputs = module(inputs)
    del outputs
    return sum(size for size, _ in storages.values())


def measure(backbone: str, with_kernel: bool, checkpointing: bool) -> int:
    """Bytes of activations for one image of the recipe's size, in float32."""
    with torch.device("meta"):
        model = InternImageForImageClassification(InternImageConfig(**ARCHITECTURES[backbone]))
    model = model.to_empty(device="cpu").train()  # sizes do not depend on values
    if with_kernel:
        use_dcnv3_kernel(model, strict=True)
    if checkpointing:
        model.gradient_checkpointing_enable()
    size = saved_bytes(model, torch.zeros(1, 3, MEASURED_SIZE, MEASURED_SIZE))
    if checkpointing:  # the backward pass computes one layer at a time again: the largest comes on top
        model.gradient_checkpointing_disable()
        config, side = model.config, MEASURED_SIZE // 4
        shapes = ((1, side >> idx, side >> idx, width) for idx, width in enumerate(config.hidden_sizes))
        inputs = (torch.zeros(shape, requires_grad=True) for shape in shapes)
        size += max(saved_bytes(stage.layers[0], x) for stage, x in zip(model.base_model.encoder.stages, inputs))
    return round(size * (IMAGE_SIZES[backbone] / MEASURED_SIZE) ** 2)


def markdown_table(result: dict) -> str:
    settings = list(SETTINGS)
    lines = ["| model | pixels | weights, gradients, AdamW | " + " | ".join(settings) + " |"]
    lines.append("|---" * (3 + len(settings)) + "|")
    for backbone, row in result["models"].items():
        cells = [f"{row['activations'][setting] / 1e9:.2f} GB" for setting in settings]
        state = f"{16 * row['num_parameters'] / 1e9:.1f} GB"
        lines.append(f"| {backbone} | {row['image_size']} | {state} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=ARCHITECTURES, default=list(ARCHITECTURES))
    parser.add_argument("--output", type=Path, help="JSON file for the results")
    parser.add_argument("--table", type=Path, help="print an earlier JSON file as Markdown, measure nothing")
    args = parser.parse_args()
    if args.table:
        print(markdown_table(json.loads(args.table.read_text())))
        return
    if args.output:
        check_outputs([args.output], MARK)
    models = {}
    for backbone in args.models:
        with torch.device("meta"):
            model = InternImageForImageClassification(InternImageConfig(**ARCHITECTURES[backbone], num_labels=1000))
        models[backbone] = {
            "image_size": IMAGE_SIZES[backbone],
            "num_parameters": model.num_parameters(),
            "activations": {setting: measure(backbone, *options) for setting, options in SETTINGS.items()},
        }
        print(json.dumps({backbone: models[backbone]}), flush=True)
    versions = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    result = versions | {"date": datetime.date.today().isoformat(), "models": models}
    if args.output:
        write_json(args.output, result, MARK)


if __name__ == "__main__":
    main()
