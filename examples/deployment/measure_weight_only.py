# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""
Memory of InternImage-H and -G in float32, bfloat16 and with int8 weights (torchao): parameters, and the peak of the
process that loads a checkpoint and classifies one image.

    python -m examples.deployment.measure_weight_only --output examples/results/int8_weight_only.json
    python -m examples.deployment.measure_weight_only --table examples/results/int8_weight_only.json

Weights are random. The checkpoint is in bfloat16, in shards, and is loaded by a process of its own for each dtype. The
peak contains PyTorch and other libraries. Models of `--parameters_only` stay on the meta device: their parameters are
counted, nothing is loaded.
"""

import argparse
import json
import multiprocessing
import resource
import tempfile
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import version
from pathlib import Path

import torch
from torchao.quantization import Int8WeightOnlyConfig, quantize_
from transformers import AutoModelForImageClassification
from transformers.quantizers.quantizers_utils import should_convert_module

from conversion.checkpoints import find_checkpoint
from conversion.convert_checkpoint import empty_model
from examples.benchmark.measuring import machine_description
from examples.deployment.finetune_int8_lora import FLOAT_MODULES, load_int8_model
from examples.output_files import check_outputs, mark_of, write_json
from modeling_internimage import InternImageForImageClassification


MARK = mark_of(__file__)
MODELS = ["internimage_h_22kto1k_640", "internimage_g_22kto1k_512"]
DTYPES = ["float32", "bfloat16", "int8"]
GIB = 2**30


def num_bytes(model: torch.nn.Module) -> int:
    """Bytes of parameters and buffers. An int8 weight of torchao holds its values and a scale for each row."""
    total = 0
    for tensor in model.state_dict().values():
        parts = [tensor.qdata, tensor.scale] if hasattr(tensor, "qdata") else [tensor]
        total += sum(part.nbytes for part in parts)
    return total


def write_checkpoint(name: str, folder: str):
    config = find_checkpoint(name).config()
    config.dtype = torch.bfloat16
    model = empty_model(InternImageForImageClassification, config).to_empty(device="cpu")
    torch.manual_seed(0)
    for tensor in [*model.parameters(), *model.buffers()]:
        tensor.data.normal_(std=tensor[0].numel() ** -0.5) if tensor.ndim > 1 else tensor.data.fill_(0.5)
    model.save_pretrained(folder, max_shard_size="1GB")


def load(folder: str, dtype: str, size: int) -> dict:
    """Measure loading and a forward pass in this process."""
    start = _peak()
    if dtype == "int8":
        model = load_int8_model(folder, dtype=torch.bfloat16)
    else:
        model = AutoModelForImageClassification.from_pretrained(folder, dtype=getattr(torch, dtype))
    loaded = _peak()
    with torch.inference_mode():
        logits = model(torch.randn(1, 3, size, size, dtype=model.dtype)).logits
    if not logits.isfinite().all():
        raise SystemExit(f"The logits in {dtype} are not finite.")
    peaks = {"libraries": start, "loading": loaded, "loading_and_forward": _peak()}
    return {"parameters_gib": round(num_bytes(model) / GIB, 3), "peak_rss_gib": peaks}


def _peak() -> float:
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 3)  # KiB on Linux


def count(name: str, dtype: str) -> dict:
    """The parameters of a model on the meta device."""
    config = find_checkpoint(name).config()
    config.dtype = torch.float32 if dtype == "float32" else torch.bfloat16
    model = empty_model(InternImageForImageClassification, config)
    if dtype == "int8":
        quantize_(
            model,
            Int8WeightOnlyConfig(),
            lambda module, name: isinstance(module, torch.nn.Linear) and should_convert_module(name, FLOAT_MODULES),
        )
    return {"parameters_gib": round(num_bytes(model) / GIB, 3), "peak_rss_gib": None}


def in_process(function, *arguments):
    with ProcessPoolExecutor(max_workers=1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def markdown_table(result: dict) -> str:
    lines = ["| checkpoint | weights | parameters | peak: loading | peak: loading and one image |", "|---" * 5 + "|"]
    for name, row in result["models"].items():
        for dtype, numbers in row.items():
            peaks = numbers["peak_rss_gib"]
            cells = ["not measured"] * 2
            if peaks:
                cells = [f"{peaks[key]:.2f} GiB" for key in ("loading", "loading_and_forward")]
            lines.append(f"| {name} | {dtype} | {numbers['parameters_gib']:.2f} GiB | {' | '.join(cells)} |")
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=MODELS, help="official classifiers")
    parser.add_argument("--parameters_only", nargs="*", default=MODELS[1:], help="models that are not loaded")
    parser.add_argument("--size", type=int, default=128, help="height and width of the image, a multiple of 32")
    parser.add_argument("--output", type=Path, help="JSON file for the results")
    parser.add_argument("--table", type=Path, help="print an earlier JSON file as Markdown, measure nothing")
    args = parser.parse_args()
    if args.table:
        print(markdown_table(json.loads(args.table.read_text())))
        return
    if args.output:
        check_outputs([args.output], MARK)
    models = {}
    for name in args.models:
        if name in args.parameters_only:
            models[name] = {dtype: count(name, dtype) for dtype in DTYPES}
        else:
            with tempfile.TemporaryDirectory() as folder:
                in_process(write_checkpoint, name, folder)
                models[name] = {dtype: in_process(load, folder, dtype, args.size) for dtype in DTYPES}
        print(json.dumps({name: models[name]}), flush=True)
    result = {"machine": machine_description("cpu") | {"torchao": version("torchao")}, "image_size": args.size}
    if args.output:
        write_json(args.output, result | {"models": models}, MARK)


if __name__ == "__main__":
    main()
