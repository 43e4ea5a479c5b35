# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""Runtimes compute an exported file, and their outputs are compared with PyTorch's."""

import copy
import importlib
from pathlib import Path

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

from .tensorrt_rtx import build_engine


# Runtime -> package that has to be installed, and the module that it brings.
PACKAGES = {"ort": "onnxruntime", "openvino": "openvino", "tensorrt-rtx": "tensorrt-rtx-cu13"}
MODULES = {"ort": "onnxruntime", "openvino": "openvino", "tensorrt-rtx": "tensorrt_rtx"}
# Largest difference in float32, relative to the largest value of an output.
TOLERANCE = 1e-5
# How much farther from the exact outputs a runtime may be than PyTorch is: in half precision, and of detectors in
# float32, where masks are sampled at boxes that are rounded themselves.
HALF_PRECISION_FACTOR = 2
DETECTION_FACTOR = 4
# Largest difference of the two-stage detectors in float32.
DETECTION_TOLERANCE = 1e-4


def check_runtimes(checks: tuple[str, ...], operator: str):
    """Raise a `ValueError` or an `ImportError` if one of the `checks` cannot run."""
    for name in ("onnx", "onnxscript"):
        if importlib.util.find_spec(name) is None:
            raise ImportError(f'The export needs the package {name}: pip install "modeling-internimage[export]".')
    for check in checks:
        if check not in PACKAGES:
            raise ValueError(f"`checks` may have {', '.join(map(repr, PACKAGES))}, got {check!r}.")
        if operator == "deform_conv" and check != "ort":
            raise ValueError(
                f"`checks` has {check!r}, which does not know `DeformConv`. Use `operator='grid_sample'`."
            )
        if importlib.util.find_spec(MODULES[check]) is None:
            raise ImportError(f"`checks` has {check!r}: pip install {PACKAGES[check]}, or leave it out.")


def check_file(path: Path):
    """Raise a `RuntimeError` if the file is not valid ONNX or needs an operator that is not of the standard."""
    import onnx

    try:
        onnx.checker.check_model(str(path), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise RuntimeError(f"The exported file is not valid ONNX: {error}") from error
    domains = {opset.domain for opset in onnx.load(str(path), load_external_data=False).opset_import} - {"", "ai.onnx"}
    if domains:
        raise RuntimeError(f"The exported file needs operators of {', '.join(domains)}, which ONNX does not have.")


def model_inputs(
    names: list[str], model: PreTrainedModel, batch_size: int, height: int, width: int, seed: int
) -> dict[str, torch.Tensor]:
    """Random images; with `pixel_mask`, all but the first have padding at the right and at the bottom."""
    generator = torch.Generator().manual_seed(seed)
    config = getattr(model.config, "backbone_config", None) or model.config
    shape = (batch_size, getattr(config, "num_channels", 3), height, width)
    inputs = {"pixel_values": torch.randn(shape, generator=generator, dtype=torch.float32)}
    if "pixel_mask" in names:
        inputs["pixel_mask"] = torch.ones((batch_size, height, width), dtype=torch.int64)
        inputs["pixel_mask"][1:, height - height // 4 :] = 0
        inputs["pixel_mask"][1:, :, width - width // 3 :] = 0
        inputs["pixel_values"] = inputs["pixel_values"] * inputs["pixel_mask"][:, None]
    return inputs


def rounding_limits(
    model: nn.Module, batches: list[dict], outputs: list[dict], dtype: torch.dtype, factor: float
) -> tuple[dict[str, float], list[dict]]:
    """
    How far each output may be from that of the same weights in `dtype`, and those outputs: `factor` times as far as
    PyTorch's own `outputs`, in less precision, are.
    """
    model = copy.deepcopy(model).to(dtype)
    exact = [model(**batch) for batch in batches]
    limits = {
        name: factor * max(_difference(own[name], other[name]) for own, other in zip(outputs, exact))
        for name in exact[0]
    }
    return limits, exact


def compare_with_runtime(
    runtime: str, path: Path, batches: list[dict], expected: list[dict], limits: dict[str, float]
) -> dict[str, float] | str:
    """
    The largest difference of each output of a runtime from `expected`, relative to its largest value; or `"built"` for
    a runtime that only builds the file.

    Raises:
        `RuntimeError`: if a difference is above its limit, or the runtime does not take the file.
    """
    try:
        computed = RUNTIMES[runtime](path, batches)
    except Exception as error:  # runtimes raise classes of their own
        raise RuntimeError(f"{PACKAGES[runtime]} cannot compute the exported file: {error}") from error
    if computed is None:
        return "built"
    differences = {
        name: max(_difference(output[name], reference[name]) for output, reference in zip(computed, expected))
        for name in limits
    }
    for name, difference in differences.items():
        if not difference <= limits[name]:  # also NaN
            raise RuntimeError(
                f"{PACKAGES[runtime]} computes `{name}` {difference:.1e} of its largest value away from "
                f"PyTorch, above the limit of {limits[name]:.1e}. Nothing was written."
            )
    return differences


def _difference(output: torch.Tensor, expected: torch.Tensor) -> float:
    if output.shape != expected.shape:
        return float("inf")
    if expected.is_floating_point():  # rows of detectors without a detection hold this number
        is_filled = expected == torch.finfo(expected.dtype).min
        if not torch.equal(output == torch.finfo(output.dtype).min, is_filled):
            return float("inf")
        output, expected = output[~is_filled], expected[~is_filled]
    if expected.numel() == 0:
        return 0.0
    output, expected = output.double(), expected.double()
    return float((output - expected).abs().max() / expected.abs().max().clamp(min=torch.finfo(torch.float32).tiny))


def run_onnxruntime(path: Path, batches: list[dict]) -> list[dict[str, torch.Tensor]]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    results = []
    for batch in batches:
        outputs = session.run(names, {name: tensor.numpy() for name, tensor in batch.items()})
        results.append(dict(zip(names, map(torch.from_numpy, outputs))))
    return results


def run_openvino(path: Path, batches: list[dict]) -> list[dict[str, torch.Tensor]]:
    import openvino

    # The default is the fastest type of the processor, which may be bfloat16.
    compiled = openvino.Core().compile_model(str(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    results = []
    for batch in batches:
        outputs = compiled({name: tensor.numpy() for name, tensor in batch.items()})
        results.append(
            {name: torch.from_numpy(np.array(array)) for output, array in outputs.items() for name in output.names}
        )
    return results


def build_tensorrt_rtx(path: Path, batches: list[dict]):
    sizes = [{name: tuple(tensor.shape) for name, tensor in batch.items()} for batch in batches]
    smallest, largest = (
        {name: tuple(map(limit, *(shapes[name] for shapes in sizes))) for name in sizes[0]} for limit in (min, max)
    )
    build_engine(path, [smallest, largest, largest], compute_capabilities=[])


RUNTIMES = {"ort": run_onnxruntime, "openvino": run_openvino, "tensorrt-rtx": build_tensorrt_rtx}
