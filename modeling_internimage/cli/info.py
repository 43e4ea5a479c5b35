# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""`internimage info`: what a checkpoint is. Its configuration is read, no weights."""

from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoImageProcessor, Mask2FormerForUniversalSegmentation, PreTrainedConfig, PreTrainedModel

from ..cb_internimage import CBInternImageConfig
from ..configuration_internimage import InternImageConfig
from ..kernel_integration import KernelNotAvailableError, dcnv3_implementations, use_dcnv3_kernel
from ..modeling_internimage import InternImageDeformableConvolution
from .errors import complaints, first_line
from .models import find_task, load_config


# For a sampling point and channel, as in the authors' `get_flops.py`: four corners, and the weight of the point.
MACS_PER_SAMPLE = 5


def describe(name: str, size: tuple[int, int] | None = None) -> dict[str, str]:
    """
    What `internimage info` prints, a text for each property of the checkpoint `name`.

    Args:
        name: A folder, or a repository of the Hub.
        size: Height and width for the count of operations. Defaults to those of the image processor.
    """
    config = load_config(name)
    with complaints(Exception, prefix=f"The model {name} cannot be built: "):
        task, auto_class = find_task(config, name)
        with torch.device("meta"):
            model = auto_class.from_config(config).eval()
    backbone = getattr(config, "backbone_config", None) or config
    parameters = sum(parameter.numel() for parameter in model.parameters())
    facts = {
        "model": f"{type(model).__name__} ({config.model_type})",
        "backbone": architecture(backbone),
        "task": task,
        "labels": f"{config.num_labels}: {shortened(list(config.id2label.values()))}",
        "parameters": f"{parameters / 1e6:.1f} million",
        "operations": operations(model, task, size or image_processor_size(name)),
    }
    if isinstance(backbone, InternImageConfig):
        facts |= {"images": accepted_sizes(backbone), "DCNv3 layers": dcnv3_state(model)}
    return facts


def architecture(config: PreTrainedConfig) -> str:
    if not isinstance(config, InternImageConfig):
        return config.model_type
    family = {"DCNv3": "InternImage", "DCNv4": "FlashInternImage"}[config.core_op]
    if isinstance(config, CBInternImageConfig):
        family = f"CB-{family} (two of them)"
    return f"{family}, {config.embed_dim} channels, depths {list(config.depths)}, groups {list(config.num_groups)}"


def shortened(names: list[str], num_names: int = 4) -> str:
    return ", ".join(names[:num_names]) + (", ..." if len(names) > num_names else "")


def image_processor_size(name: str) -> tuple[int, int] | None:
    """Height and width of the images that the model gets, or `None` without an image processor that says so."""
    try:
        image_processor = AutoImageProcessor.from_pretrained(name)
    except (OSError, ValueError):
        return None
    size, crop = dict(image_processor.size or {}), dict(getattr(image_processor, "crop_size", None) or {})
    if getattr(image_processor, "do_center_crop", None) and crop.get("height"):
        return crop["height"], crop["width"]
    if size.get("height"):
        return size["height"], size["width"]
    shortest = size.get("shortest_edge") or size.get("longest_edge")
    return (shortest, size.get("longest_edge") or shortest) if shortest else None


def operations(model: PreTrainedModel, task: str, size: tuple[int, int] | None) -> str:
    if size is None:
        return "unknown, as the checkpoint has no image processor: name a size with --size"
    part: Any = model
    name = ""
    if task == "object-detection":  # what the heads compute depends on what is found
        part, name = model.backbone, " in the backbone"
    elif isinstance(model, Mask2FormerForUniversalSegmentation):  # its heads do not run on the device "meta"
        part, name = model.model.pixel_level_module.encoder, " in the backbone"
    with complaints(ValueError, RuntimeError, prefix=f"--size {size[0]} {size[1]}: "):
        return f"{multiply_accumulates(part, size) / 1e9:.3g} GMACs at {size[0]}x{size[1]}{name}"


@torch.no_grad()
def multiply_accumulates(model: nn.Module, size: tuple[int, int]) -> int:
    """
    Multiplications with addition for one image: those of matrix products, convolutions and attention, as PyTorch's
    `FlopCounterMode` counts them, and five for every sampling point and channel of DCNv3.

    Args:
        model (`nn.Module`):
            On the device "meta": nothing is computed.
        size (`tuple[int, int]`):
            Height and width of the image.
    """
    sampled = 0

    def count(module, args, output):
        nonlocal sampled
        sampled += MACS_PER_SAMPLE * module.num_points * output.numel()

    operators = [module for module in model.modules() if isinstance(module, InternImageDeformableConvolution)]
    hooks = [operator.register_forward_hook(count) for operator in operators]
    try:
        with FlopCounterMode(display=False) as counter:
            model(torch.empty(1, 3, *size, device="meta"))
    finally:
        for hook in hooks:
            hook.remove()
    return counter.get_total_flops() // 2 + sampled


def accepted_sizes(config: InternImageConfig) -> str:
    stride = 2 ** (len(config.depths) + 1)
    if config.use_clip_projector:
        return f"sides of {stride} pixels or more, best multiples of {stride} (the pooler takes few others)"
    return f"any sides of {stride} pixels or more"


def dcnv3_state(model: PreTrainedModel) -> str:
    """What the layers run on a CPU or GPU, with and without `--kernel`."""
    num_layers = len(dcnv3_implementations(model))
    try:
        use_dcnv3_kernel(model, strict=True)
    except KernelNotAvailableError as error:
        return f"{num_layers}, as the PyTorch reference. {first_line(error)}"
    kernel = next(iter(dcnv3_implementations(model).values()))
    return f"{num_layers}, as the PyTorch reference; with --kernel as {kernel}"
