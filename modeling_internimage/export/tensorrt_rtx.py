# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""TensorRT-RTX engines of exported models, which its Python package builds without a GPU."""

from pathlib import Path


SHAPES = ("minShapes", "optShapes", "maxShapes")  # as `trtexec` calls them


def build_engine(model: Path, shapes: list[dict], compute_capabilities: list[str]) -> bytes:
    """
    The serialized engine of an ONNX file.

    Args:
        model (`Path`):
            The ONNX file.
        shapes (`list[dict[str, Sequence[int]]]`):
            Smallest, usual and largest shape of each input that has dynamic dimensions, by name.
        compute_capabilities (`list[str]`):
            GPUs to build for, such as "8.9". Empty: TensorRT-RTX's own choice, 8.0 and later.

    Raises:
        `ValueError`: if the shape of a dynamic input is missing, for an unknown compute capability, or if TensorRT-RTX
            cannot read or build the model.
    """
    import tensorrt_rtx as trt

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
        missing = [name for name, given in zip(SHAPES, shapes) if tensor.name not in given]
        if missing:
            raise ValueError(
                f"{tensor.name} has the dynamic shape {tuple(tensor.shape)}: name its {', '.join(missing)}."
            )
        profile.set_shape(tensor.name, *(given[tensor.name] for given in shapes))
    config.add_optimization_profile(profile)
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        raise ValueError(f"TensorRT-RTX cannot build an engine from {model}; its messages above say why.")
    return bytes(engine)
