# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""
Build a TensorRT-RTX engine from an exported model, without a GPU. It needs only the Python package, which has no
command like `tensorrt_rtx` of the SDK, and takes shapes as this command and `trtexec` do:

    pip install tensorrt-rtx-cu13
    python -m examples.deployment.build_tensorrt_engine exported/model.onnx exported/model.engine \\
        --minShapes pixel_values:1x3x224x224 --optShapes pixel_values:4x3x224x224 --maxShapes pixel_values:8x3x224x224
"""

import argparse
from pathlib import Path

from modeling_internimage.export.tensorrt_rtx import SHAPES, build_engine


def parse_shapes(text: str) -> dict[str, list[int]]:
    """`pixel_values:1x3x224x224,pixel_mask:1x224x224` as a dictionary."""
    pairs = [part.split(":") for part in text.split(",")]
    return {name: [int(side) for side in shape.split("x")] for name, shape in pairs}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="ONNX file")
    parser.add_argument("engine", type=Path, help="file to write")
    for option in SHAPES:
        parser.add_argument(
            f"--{option}", type=parse_shapes, default={}, metavar="NAME:1x3x224x224", help="of an input"
        )
    parser.add_argument("--compute_capabilities", nargs="+", default=[], metavar="8.9", help="default: 8.0 and later")
    args = parser.parse_args()
    if args.engine.exists():
        parser.error(f"{args.engine} exists: name another file, or remove it.")
    shapes = [getattr(args, option) for option in SHAPES]
    try:
        engine = build_engine(args.model, shapes, args.compute_capabilities)
    except ValueError as error:
        parser.error(str(error))
    args.engine.write_bytes(engine)
    print(f"{args.engine}: {len(engine) / 2**20:.1f} MiB")


if __name__ == "__main__":
    main()
