# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""
Time and peak memory of a conversion, on a file of the full size with random weights.

    python -m conversion.measure_peak_memory --checkpoint internimage_h_22kto1k_640 --folder /scratch

The file and what it is converted to need twice the checkpoint's size on disk; both are deleted afterwards.
"""

import argparse
import datetime
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

from conversion.checkpoints import find_checkpoint
from conversion.convert_checkpoint import empty_model
from modeling_internimage import InternImageForImageClassification


RESULTS = Path(__file__).parent / "results" / "peak_memory.json"
# Prints the peak of resident memory in KiB, with what is imported and with all. (`ru_maxrss` has the parent's in it.)
COMMAND = (
    "import re, sys; from conversion.convert_internimage_to_hf import main; "
    "peak = lambda: int(re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1]); "
    "before = peak(); status = main(sys.argv[1:]); print(before, peak()); sys.exit(status)"
)


def write_source(config, file: Path):
    """Random weights. (Under names that need no translation: it makes no difference to memory.)"""
    generator = torch.Generator().manual_seed(0)
    state_dict = {}
    for name, parameter in empty_model(InternImageForImageClassification, config).state_dict().items():
        tensor = torch.zeros(parameter.shape, dtype=parameter.dtype)
        if tensor.is_floating_point():
            tensor.normal_(std=0.02, generator=generator)
        state_dict[name.removeprefix("internimage.")] = tensor
    torch.save({"model": state_dict}, file)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", default="internimage_h_22kto1k_640")
    parser.add_argument("--folder", help="where there is room (default: the system's temporary folder)")
    args = parser.parse_args()
    checkpoint = find_checkpoint(args.checkpoint)
    folder = Path(tempfile.mkdtemp(dir=args.folder))
    try:
        source = folder / "source.pth"
        config = checkpoint.config()
        config.dtype = torch.float32
        write_source(config, source)
        arguments = ["--checkpoint", checkpoint.name, "--source", source, "--output-dir", folder / "converted"]
        started = time.perf_counter()
        process = subprocess.run(
            [sys.executable, "-c", COMMAND, *arguments], stdout=subprocess.PIPE, text=True, check=True
        )
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
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(results | {checkpoint.name: result}, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
