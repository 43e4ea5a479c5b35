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

import tensorrt_rtx as trt


OPTIONS = ["minShapes", "optShapes", "maxShapes"]


def build_engine(model: Path, shapes: list[dict[str, list[int]]], compute_capabilities: list[str]) -> bytes:
    """
    The serialized engine of an ONNX file.

    Args:
        model (`Path`):
            The ONNX file.
        shapes (`list[dict[str, list[int]]]`):
            Smallest, usual and largest shape of each input that has dynamic dimensions, by name.
        compute_capabilities (`list[str]`):
            GPUs to build for, such as "8.9". Empty: TensorRT-RTX's own choice, 8.0 and later.

    Raises:
        `ValueError`: if the shape of a dynamic input is missing, for an unknown compute capability, or if TensorRT-RTX
            cannot read or build the model.
    """
    logger = trt.Logger(trt.Logger.WARNING)
    builder = trt.Builder(logger)
    network = builder.create_network()
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(model)):
        reasons = "; ".join(parser.get_error(idx).desc() for idx in range(parser.num_errors))
        raise ValueError(
            f"TensorRT-RTX cannot read {model}: {reasons}. Was it exported with `--operator grid_sample`?"
        )
    config = builder.create_builder_config()
    config.num_compute_capabilities = len(compute_capabilities)
    for idx, capability in enumerate(compute_capabilities):
        name = "SM" + capability.replace(".", "")
        if name not in trt.ComputeCapability.__members__:
            known = ", ".join(trt.ComputeCapability.__members__)
            raise ValueError(f"TensorRT-RTX does not know the compute capability {capability}. It knows {known}.")
        config.set_compute_capability(trt.ComputeCapability.__members__[name], idx)
    profile = builder.create_optimization_profile()
    for tensor in (network.get_input(idx) for idx in range(network.num_inputs)):
        if -1 not in tensor.shape:
            continue
        missing = [f"--{option}" for option, given in zip(OPTIONS, shapes) if tensor.name not in given]
        if missing:
            raise ValueError(f"{tensor.name} has the dynamic shape {tuple(tensor.shape)}: add {', '.join(missing)}.")
        profile.set_shape(tensor.name, *(given[tensor.name] for given in shapes))
    config.add_optimization_profile(profile)
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        raise ValueError(f"TensorRT-RTX cannot build an engine from {model}; its messages above say why.")
    return bytes(engine)


def parse_shapes(text: str) -> dict[str, list[int]]:
    """`pixel_values:1x3x224x224,pixel_mask:1x224x224` as a dictionary."""
    pairs = [part.split(":") for part in text.split(",")]
    return {name: [int(side) for side in shape.split("x")] for name, shape in pairs}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="ONNX file")
    parser.add_argument("engine", type=Path, help="file to write")
    for option in OPTIONS:
        parser.add_argument(
            f"--{option}", type=parse_shapes, default={}, metavar="NAME:1x3x224x224", help="of an input"
        )
    parser.add_argument("--compute_capabilities", nargs="+", default=[], metavar="8.9", help="default: 8.0 and later")
    args = parser.parse_args()
    shapes = [getattr(args, option) for option in OPTIONS]
    engine = build_engine(args.model, shapes, args.compute_capabilities)
    args.engine.write_bytes(engine)
    print(f"{args.engine}: {len(engine) / 2**20:.1f} MiB")


if __name__ == "__main__":
    main()
