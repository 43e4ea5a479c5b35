# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""From a model to a folder with `model.onnx`, its configuration, and a report of how exactly it computes."""

import datetime
import json
import shutil
from importlib.metadata import version
from pathlib import Path

import torch
from torch import nn
from transformers import Mask2FormerForUniversalSegmentation, PreTrainedModel
from transformers.utils import logging

from ..dino_detr import DinoDetrForObjectDetection
from ..kernel_integration import PYTORCH_REFERENCE, dcnv3_implementations
from ..mask_rcnn import MaskRCNNForObjectDetection
from .graph_forms import prepare_for_export
from .verification import (
    DETECTION_FACTOR,
    DETECTION_TOLERANCE,
    HALF_PRECISION_FACTOR,
    PACKAGES,
    TOLERANCE,
    check_file,
    check_runtimes,
    compare_with_runtime,
    model_inputs,
    rounding_limits,
)


logger = logging.get_logger(__name__)

MODEL_FILE, REPORT_FILE = "model.onnx", "export.json"
# The oldest opset with each operator. Below 18, torch would have to convert the graph.
OLDEST_OPSETS = {"grid_sample": 18, "deform_conv": 19}
DYNAMIC = ("none", "batch", "all")
DTYPES = (torch.float32, torch.float16)
# A file of the Protocol Buffers format holds at most 2 GB; above, weights go to a second file. The rest is margin for
# the graph.
LARGEST_FILE = 2**31 - 2**26
# Kinds of models by their first output; the others of a kind follow if the model has them.
OUTPUTS = (
    ("class_queries_logits", "masks_queries_logits"),
    ("logits", "pred_boxes", "pred_scores", "pred_labels", "pred_masks"),
    ("feature_maps",),
    ("last_hidden_state", "pooler_output"),
)
MODELS_WITH_PIXEL_MASK = (MaskRCNNForObjectDetection, DinoDetrForObjectDetection)


class ModelWithNamedOutputs(nn.Module):
    """
    A model of transformers that takes and returns tensors only: those that an exported graph has. In half precision,
    too, they are float32, which every array library has.
    """

    def __init__(self, model: PreTrainedModel):
        super().__init__()
        self.model = model

    def forward(self, pixel_values: torch.Tensor, pixel_mask: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        inputs = {"pixel_values": pixel_values.to(self.model.dtype)} | (
            {} if pixel_mask is None else {"pixel_mask": pixel_mask}
        )
        outputs = self.model(**inputs, return_dict=True)
        names = next(names for names in OUTPUTS if outputs.get(names[0]) is not None)
        flat: dict[str, torch.Tensor] = {}
        for name in names:
            value = outputs.get(name)
            if isinstance(value, tuple):
                flat |= {f"{name}.{idx}": tensor for idx, tensor in enumerate(value)}
            elif value is not None:
                flat[name] = value
        return {name: tensor.float() if tensor.dtype == torch.float16 else tensor for name, tensor in flat.items()}


@torch.no_grad()
def export_onnx(
    model: PreTrainedModel,
    folder: str | Path,
    *,
    image_processor=None,
    operator: str = "grid_sample",
    opset: int | None = None,
    size: tuple[int, int] | None = None,
    dynamic: str = "batch",
    checks: tuple[str, ...] = ("ort",),
) -> dict:
    """
    Write a model as plain ONNX and compare what runtimes compute with PyTorch.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            A model with an InternImage in it, on the CPU and in evaluation mode: classifier, base model, backbone,
            semantic segmentation, Mask2Former, Mask R-CNN and its cascade, DINO. The file gets the dtype of the model;
            in half precision, sampling coordinates, inputs and outputs stay in float32.
        folder (`str` or `Path`):
            The new folder. It gets `model.onnx` (and `model.onnx.data`, the weights, if they are above 2 GB),
            `config.json`, `preprocessor_config.json` and `export.json`, the report. It appears when all checks have
            passed; an error leaves nothing behind.
        image_processor (*optional*):
            The image processor of the model, which is saved beside it.
        operator (`str`, *optional*, defaults to `"grid_sample"`):
            What DCNv3 or DCNv4 becomes. `"grid_sample"`: `GridSample`, which every runtime knows. `"deform_conv"`:
            `DeformConv`, which ONNX Runtime (1.32) and TensorRT (10.1) know, and which is faster there.
        opset (`int`, *optional*):
            Version of ONNX's operators. Defaults to 18, or 19 with `DeformConv`. TensorRT up to 10.1 misreads the
            `GridSample` of 20 and later.
        size (`tuple[int, int]`, *optional*):
            Height and width of images. Defaults to what the image processor makes, else to 224x224. With
            `dynamic="all"` it only is an example.
        dynamic (`str`, *optional*, defaults to `"batch"`):
            Sizes that the file leaves open: `"none"`, `"batch"` or `"all"`, which is batch, height and width.
        checks (`tuple[str, ...]`, *optional*, defaults to `("ort",)`):
            Runtimes that compute the model, on two batches: `"ort"` (ONNX Runtime), `"openvino"`; or that build it:
            `"tensorrt-rtx"`. In float32 the difference from PyTorch may be 1e-5 of the largest value of an output. In
            half precision it may be twice that of PyTorch from PyTorch in float32; of detectors in float32, four times
            that from PyTorch in float64, because sampled masks (at most 1e-4) and DINO's choice among
            nearly equal queries depend on rounding.

    Returns:
        `dict`: the content of `export.json`: versions, options, inputs, outputs, and the differences measured.

    Raises:
        `ValueError`: if an argument does not fit the model, the opset or the other arguments.
        `ImportError`: if a package or runtime is not installed.
        `FileExistsError`: if `folder` has files in it.
        `OSError`: if the disk is full.
        `RuntimeError`: if a check fails.
    """
    folder = Path(folder).resolve()
    opset = OLDEST_OPSETS.get(operator) if opset is None else opset
    size = _default_size(image_processor) if size is None else size
    _check_arguments(model, operator, opset, size, dynamic)
    check_runtimes(checks, operator)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"`folder` {folder} exists and is not empty. Name another one, or remove it.")
    num_bytes = sum(tensor.nbytes for tensor in model.state_dict().values())
    folder.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder.parent).free
    if free < 1.05 * num_bytes:
        raise OSError(
            f"{folder} needs {1.05 * num_bytes / 1e9:.2f} GB, but only {free / 1e9:.2f} GB are free there. Make room, "
            "or name a folder on another disk."
        )
    if any(implementation != PYTORCH_REFERENCE for implementation in dcnv3_implementations(model).values()):
        logger.warning(f"The compiled DCNv3 kernel of the model stays out of the file, which gets `{operator}`.")

    unfinished = folder.parent / f".{folder.name}.unfinished"
    if unfinished.exists():
        raise FileExistsError(f"Another process is writing {unfinished}, or was killed. Wait for it, or remove it.")
    unfinished.mkdir()
    try:
        names = ["pixel_values"] + ["pixel_mask"] * isinstance(model, MODELS_WITH_PIXEL_MASK)
        shapes = _checked_shapes(model, size, dynamic)
        batches = [model_inputs(names, model, *shape, seed=seed) for seed, shape in enumerate(shapes)]
        expected = [ModelWithNamedOutputs(model)(**batch) for batch in batches]
        outputs = list(expected[0])
        program = _export(prepare_for_export(model, operator), names, outputs, opset, size, dynamic)
        program.save(unfinished / MODEL_FILE, external_data=num_bytes > LARGEST_FILE)
        del program
        check_file(unfinished / MODEL_FILE)
        limits = dict.fromkeys(outputs, TOLERANCE)
        if model.dtype != torch.float32:
            limits, expected = rounding_limits(
                ModelWithNamedOutputs(model), batches, expected, torch.float32, HALF_PRECISION_FACTOR
            )
        elif isinstance(model, MODELS_WITH_PIXEL_MASK):
            largest = DETECTION_TOLERANCE if isinstance(model, MaskRCNNForObjectDetection) else float("inf")
            limits, expected = rounding_limits(
                ModelWithNamedOutputs(model), batches, expected, torch.float64, DETECTION_FACTOR
            )
            limits = {name: min(max(TOLERANCE, limit), largest) for name, limit in limits.items()}
        differences = {
            check: compare_with_runtime(check, unfinished / MODEL_FILE, batches, expected, limits) for check in checks
        }
        model.config.save_pretrained(unfinished)
        if image_processor is not None:
            image_processor.save_pretrained(unfinished)
        report = {
            "model": type(model).__name__,
            "operator": operator,
            "opset": opset,
            "dtype": str(model.dtype).removeprefix("torch."),
            "size": list(size),
            "dynamic": dynamic,
            "inputs": names,
            "outputs": outputs,
            "checked_shapes": [list(batch["pixel_values"].shape) for batch in batches],
            "limits": limits,
            "differences": differences,
            "versions": _versions(checks),
            "date": datetime.date.today().isoformat(),
        }
        (unfinished / REPORT_FILE).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
        unfinished.replace(folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)  # after success it has its final name
    return report


def _check_arguments(model: PreTrainedModel, operator: str, opset: int, size: tuple[int, int], dynamic: str):
    if operator not in OLDEST_OPSETS:
        raise ValueError(f"`operator` must be one of {', '.join(map(repr, OLDEST_OPSETS))}, got {operator!r}.")
    if opset < OLDEST_OPSETS[operator]:
        raise ValueError(
            f"`opset={opset}` is too old: `operator={operator!r}` needs {OLDEST_OPSETS[operator]} or later."
        )
    if dynamic not in DYNAMIC:
        raise ValueError(f"`dynamic` must be one of {', '.join(map(repr, DYNAMIC))}, got {dynamic!r}.")
    if dynamic == "all" and isinstance(model, Mask2FormerForUniversalSegmentation):
        raise ValueError(
            "`dynamic='all'` is not for Mask2Former: transformers' pixel decoder keeps the sizes of the feature maps "
            "as constants. Use `dynamic='batch'`, and one file for each `size`."
        )
    if model.training:
        raise ValueError("`model` is in training mode: call `model.eval()` before the export.")
    if model.device.type != "cpu":
        raise ValueError(
            f"`model` is on {model.device}: call `model.cpu()` before the export. The file fits any device."
        )
    if model.dtype == torch.bfloat16:
        raise ValueError(
            "`model` is in bfloat16, in which runtimes do not compute ONNX's convolutions: load it with "
            "`dtype=torch.float32`, and ask the runtime for bfloat16."
        )
    if model.dtype not in DTYPES:
        raise ValueError(f"`model` is in {model.dtype}: load it with `dtype=torch.float32` or `torch.float16`.")
    if len(size) != 2 or min(size) < 32:
        raise ValueError(f"`size` must be height and width, of at least 32 pixels each, got {size}.")


def _default_size(image_processor) -> tuple[int, int]:
    settings = {} if image_processor is None else image_processor.to_dict()
    size = (settings.get("do_center_crop") and settings.get("crop_size")) or settings.get("size") or {}
    return (size["height"], size["width"]) if "height" in size and "width" in size else (224, 224)


def _dynamic_dimensions(names: list[str], model: PreTrainedModel, dynamic: str) -> dict[str, dict]:
    """For each input, its open dimensions, as `torch.onnx.export` wants them."""
    dimensions = {} if dynamic == "none" else {0: "batch_size"}
    sides = {}
    if dynamic == "all":
        stride = _size_divisor(model)
        sides = {
            name: stride * torch.export.Dim(f"{name}_over_{stride}") if stride > 1 else name
            for name in ("height", "width")
        }
    first_side = {"pixel_values": 2, "pixel_mask": 1}
    return {
        name: dimensions | {first_side[name] + idx: side for idx, side in enumerate(sides.values())} for name in names
    }


def _size_divisor(model: PreTrainedModel) -> int:
    """What height and width must be multiples of. (With an attention pooler, other sizes work only by chance.)"""
    has_attention_pooler = getattr(model.config, "use_clip_projector", False) and not hasattr(model, "out_features")
    return 32 if has_attention_pooler else 1


def _checked_shapes(model: PreTrainedModel, size: tuple[int, int], dynamic: str) -> list[tuple[int, int, int]]:
    """Batch size, height and width of two batches, both unlike the one that is traced as far as the file is open."""
    if dynamic == "none":
        return [(1, *size), (1, *size)]
    if dynamic == "batch":
        return [(1, *size), (3, *size)]
    divisor = _size_divisor(model)
    height, width = (max(side // 2 // 32 * 32, 64) for side in size)
    return [(1, *size), (3, height, width) if divisor > 1 else (3, height + 1, width + 34)]


def _export(model: PreTrainedModel, names: list[str], outputs: list[str], opset: int, size, dynamic: str):
    from .translations import TRANSLATIONS  # needs onnxscript

    batch_size = 1 if dynamic == "none" else 2  # torch takes a size of 1 for a constant
    program = torch.onnx.export(
        ModelWithNamedOutputs(model).eval(),
        kwargs=model_inputs(names, model, batch_size, *size, seed=0),
        output_names=outputs,
        opset_version=opset,
        dynamic_shapes=_dynamic_dimensions(names, model, dynamic),
        custom_translation_table=TRANSLATIONS,
        dynamo=True,
        verbose=False,
    )
    for node in program.model.graph:  # stack traces, with paths of this machine: several percent of the file
        node.metadata_props.clear()
    return program


def _versions(checks: tuple[str, ...]) -> dict[str, str]:
    packages = ["modeling-internimage", "torch", "transformers", "onnx", "onnxscript"]
    return {package: version(package) for package in [*packages, *(PACKAGES[check] for check in checks)]}
