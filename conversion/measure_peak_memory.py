# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""
Time and peak memory of a conversion, on a file with the original's names and random weights.

    python -m conversion.measure_peak_memory --checkpoint internimage_h_22kto1k_640 --folder /scratch
    python -m conversion.measure_peak_memory --checkpoint dino_4scale_internimage_g_objects365_coco --width 0.5

The file and what it is converted to need twice the checkpoint's size on disk; both are deleted afterwards. With a
smaller `--width` of the backbone, the peak of the full size is computed from the one measured: what the imports take,
and the rest in proportion to the file. FlashInternImage, whose backbone has a projection that is split, is measured at
full width.
"""

import argparse
import dataclasses
import datetime
import gzip
import json
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
import transformers

from conversion.checkpoints import Checkpoint, find_checkpoint
from conversion.convert_checkpoint import ConversionOptions, convert_checkpoint, empty_model, plan_conversion
from conversion.heads import HEADS


RESULTS = Path(__file__).parent / "results" / "peak_memory.json"
FIXTURES = Path(__file__).parents[1] / "tests" / "fixtures" / "golden"


def peak_command(module: str, function: str, arguments: list) -> list[str]:
    """
    A command that calls `function` of `module` with a list of arguments, and prints the peak of resident memory in KiB
    with what is imported and with all. (`ru_maxrss` has the parent's in it.)
    """
    code = (
        f"import re, sys; from {module} import {function}; "
        "peak = lambda: int(re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1]); "
        f"before = peak(); status = {function}(sys.argv[1:]); print(before, peak()); sys.exit(status)"
    )
    return [sys.executable, "-c", code, *map(str, arguments)]


def narrow(name: str, width: float) -> Checkpoint:
    """The record of a checkpoint whose backbone has `width` times its channels."""
    checkpoint = find_checkpoint(name)
    channels, groups = (checkpoint.architecture[field] for field in ("embed_dim", "num_groups"))
    narrower = {"embed_dim": int(width * channels), "num_groups": [int(width * number) for number in groups]}
    return dataclasses.replace(checkpoint, architecture=checkpoint.architecture | narrower)


def convert(arguments: list[str]):
    """
    Convert the file of a narrow model. The shards are in proportion to it as those of 1 GB to the full size, so that
    the memory is too.
    """
    name, width, source, folder = arguments
    checkpoint = narrow(name, float(width))
    shard_size = 1e9 * Path(source).stat().st_size / (4 * checkpoint.num_parameters)
    options = ConversionOptions(max_shard_size=f"{round(shard_size / 1e6)}MB")
    convert_checkpoint(plan_conversion(checkpoint, Path(source), options), Path(folder), "measured")


def original_shapes(checkpoint: Checkpoint) -> dict[str, list[int]]:
    """Keys of the original file of a checkpoint and their shapes, at its full width."""
    task = checkpoint.task.removeprefix("image-").removeprefix("object-")
    files = {"DCNv3": f"{task}/manifests.json.gz", "DCNv4": f"dcnv4/{task}_manifests.json.gz"}
    manifests = FIXTURES / files[checkpoint.family.operator]
    return json.loads(gzip.decompress(manifests.read_bytes()))[checkpoint.name]["keys"]


def write_source(checkpoint: Checkpoint, width: float, file: Path):
    """Random weights. What is split or joined belongs to a head, whose sizes do not depend on the backbone's width."""
    config, head = checkpoint.config(), HEADS[checkpoint.head]
    config.dtype = torch.float32
    expected = empty_model(head.model_class, config).state_dict()
    generator = torch.Generator().manual_seed(0)
    state_dict = {}
    for key, shape in original_shapes(checkpoint).items():
        name, *others = head.rename_key(key.removeprefix("backbone."))
        if width != 1 and not others and name in expected:
            shape = expected[name].shape
        tensor = torch.zeros(shape, dtype=expected[name].dtype if name in expected else torch.float32)
        state_dict[key] = tensor.normal_(std=0.02, generator=generator) if tensor.is_floating_point() else tensor
    torch.save({"state_dict": state_dict}, file)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", default="internimage_h_22kto1k_640")
    parser.add_argument("--folder", help="where there is room (default: the system's temporary folder)")
    parser.add_argument("--width", type=float, default=1.0, help="of the backbone, as a part of the full one")
    args = parser.parse_args()
    checkpoint = narrow(args.checkpoint, args.width)
    folder = Path(tempfile.mkdtemp(dir=args.folder))
    try:
        source = folder / "source.pth"
        write_source(checkpoint, args.width, source)
        arguments = [checkpoint.name, args.width, source, folder / "converted"]
        command = peak_command("conversion.measure_peak_memory", "convert", arguments)
        started = time.perf_counter()
        process = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        seconds = time.perf_counter() - started
        before, peak = (1024 * int(number) for number in process.stdout.split()[-2:])
        size = source.stat().st_size
    finally:
        shutil.rmtree(folder)
    result = {
        "checkpoint_gb": round(size / 1e9, 3),
        "peak_gb": round(peak / 1e9, 3),
        "imports_gb": round(before / 1e9, 3),
        "peak_over_checkpoint": round(peak / size, 3),
        "seconds": round(seconds, 1),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "date": datetime.date.today().isoformat(),
    }
    if args.width != 1:
        full = 4 * checkpoint.num_parameters
        computed = before + (peak - before) * full / size
        result |= {
            "width": args.width,
            "computed_checkpoint_gb": round(full / 1e9, 3),
            "computed_peak_gb": round(computed / 1e9, 3),
            "computed_peak_over_checkpoint": round(computed / full, 3),
        }
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(results | {checkpoint.name: result}, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
