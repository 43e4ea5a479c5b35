# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""The authors' parameter groups, `set_weight_decay_and_lr` and `lr_decay_keywards` of the original, and schedule."""

import math
import re
from collections.abc import Callable

import torch
from torch import nn
from transformers import Mask2FormerConfig

from ..cb_internimage import CBInternImageConfig
from ..configuration_internimage import InternImageConfig
from ..dino_detr import DinoDetrConfig


# What `deformable_multiplier` slows down, by `core_op`: our names of what the original's rule matches. For DCNv3 these
# are `offset` and `center_feature_scale_proj`, for DCNv4 `offset_mask`, and in classification also `offset_mask_dw`.
DEFORMABLE_PARAMETERS = {
    "DCNv3": (".dcn.offset_proj.", ".dcn.center_feature_scale_proj."),
    "DCNv4": (".dcn.offset_proj.", ".dcn.mask_proj."),
}
OFFSET_MASK_DW = ".dcn.depthwise_convolution."
SAMPLING_OFFSETS = ".sampling_offsets."  # of deformable attention
# Parts of the heads with deformable attention that the original counts as layer 0, like the stem.
FIRST_LAYER_OF_HEADS: dict[type, tuple[str, ...]] = {
    DinoDetrConfig: (".level_embed.",),
    Mask2FormerConfig: (
        "class_predictor.",
        "mask_embedder.",
        "queries_embedder.",
        "queries_features.",
        "transformer_module.level_embed.",
    ),
}


def create_parameter_groups(
    model: nn.Module,
    learning_rate: float,
    weight_decay: float = 0.05,
    layer_decay: float = 1.0,
    deformable_multiplier: float = 1.0,
    layer_counting: str = "classification",
    backbone_multiplier: float = 1.0,
    sampling_offset_multiplier: float = 1.0,
    decay_all: bool = False,
) -> list[dict]:
    """
    Parameter groups for an optimizer, with the rates and decays of the authors' recipes.

    With `layer_decay`, layer k, counted from 0 at the last layer of the last stage back to the first of the first,
    trains at `layer_decay**k` of the full rate. The stem goes with the first layer; the downsampling before a stage
    and the norm that closes the stage before it go with that stage's first layer. At the full rate train the last
    stage's norm, pooler and heads, and also, as in the original, whose list does not name them, the norms between
    layers of the third stage (`post_norms`, in H and G only).

    The published classifiers of InternImage do not use `layer_decay`. In the original `deformable_multiplier` (0.1 in
    the configurations of L to G) has no effect without it, so they do not use that either; here each works alone. The
    configuration of FlashInternImage-L uses both.

    In DINO detectors (`DinoDetrForObjectDetection`) and Mask2Former (`Mask2FormerForUniversalSegmentation`) the
    original does three more things, which this function repeats:

    - Parts of the head count as layer 0, like the stem: `level_embed` of DINO; of Mask2Former the embeddings of levels
      and queries, and the predictors of classes and masks.
    - The weights of `sampling_offsets` have no weight decay. Other matrices have it, whatever their names:
      `query_embed`, `level_embed`, `denoising_class_embed` and the weights that make DCNv3's gates.
    - CB-InternImage has no layer decay, as no rule of the original matches its names: both of its backbones train at
      the full rate, and `level_embed` still does not.

    Args:
        model (`nn.Module`):
            A model that is or contains an InternImage; other modules train at the full rate.
        learning_rate (`float`):
            The full rate.
        weight_decay (`float`, *optional*, defaults to 0.05):
            Of all parameters but one-dimensional ones and biases, which have none.
        layer_decay (`float`, *optional*, defaults to 1.0):
            Ratio of the rates of neighbouring layers, 0.9 in the authors' second set of configurations; 1: all equal.
        deformable_multiplier (`float`, *optional*, defaults to 1.0):
            Further factor on the rate of what steers the sampling. DCNv3: the projections to offsets and gates, not to
            masks. DCNv4: those to offsets and masks; in classification also the depthwise convolutions before them.
        layer_counting (`str`, *optional*, defaults to `"classification"`):
            `"downstream"`, as in the authors' segmentation and detection code (whose published results do use
            `layer_decay`), counts the heads as a layer after the last and the stem as one before the first: k is one
            greater, for the stem two. There the last stage's norm goes with that stage's first layer, and the norms
            between layers of the third stage, the n-th, with its n-th layer.
        backbone_multiplier (`float`, *optional*, defaults to 1.0):
            Further factor on the rate of the whole InternImage, 0.1 in one of the DINO recipes of L.
        sampling_offset_multiplier (`float`, *optional*, defaults to 1.0):
            Further factor on the rate of the sampling offsets of deformable attention, which DINO and Mask2Former
            have. 0.001 in the DINO recipes of H, G and CB-InternImage-H. It leaves DCNv3's offsets alone.
        decay_all (`bool`, *optional*, defaults to `False`):
            Whether biases and one-dimensional parameters decay too, as in the recipe with the `backbone_multiplier`.

    Returns:
        `list[dict]`: groups with `params`, `lr` and `weight_decay`, for example for `torch.optim.AdamW`. Frozen
        parameters are left out.

    Raises:
        `ValueError`: if a factor is not in (0, 1], or is not 1 and there is no InternImage in `model`, or for another
        `layer_counting`.

    Example:

    ```python
    >>> import torch
    >>> from modeling_internimage import InternImageConfig, InternImageForImageClassification, create_parameter_groups

    >>> model = InternImageForImageClassification(InternImageConfig())
    >>> groups = create_parameter_groups(model, learning_rate=5e-4, layer_decay=0.9, deformable_multiplier=0.1)
    >>> optimizer = torch.optim.AdamW(groups)
    ```"""
    factors = {
        "layer_decay": layer_decay,
        "deformable_multiplier": deformable_multiplier,
        "backbone_multiplier": backbone_multiplier,
        "sampling_offset_multiplier": sampling_offset_multiplier,
    }
    for name, factor in factors.items():
        if not 0 < factor <= 1:
            raise ValueError(f"`{name}` must be above 0 and at most 1, got {factor}.")
    if layer_counting not in LAYER_COUNTINGS:
        raise ValueError(f"`layer_counting` must be one of {list(LAYER_COUNTINGS)}, got {layer_counting!r}.")
    backbones = _backbones(model)
    if not backbones and (layer_decay, deformable_multiplier, backbone_multiplier) != (1, 1, 1):
        raise ValueError(
            f"`model` is a `{type(model).__name__}` without an InternImage in it: it has no layers for "
            "`layer_decay`, `deformable_multiplier` and `backbone_multiplier`."
        )
    first_layer = _first_layer_of_head(model)
    groups: dict[tuple[float, float], dict] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        scale = layer_decay ** _num_layers_after(name, backbones, LAYER_COUNTINGS[layer_counting], first_layer)
        config = next((config for prefix, config in backbones.items() if name.startswith(prefix)), None)
        if config is not None:
            scale *= backbone_multiplier
            if _is_deformable(name, config, layer_counting):
                scale *= deformable_multiplier
        if SAMPLING_OFFSETS in name:
            scale *= sampling_offset_multiplier
        shape = getattr(parameter, "ds_shape", parameter.shape)  # DeepSpeed ZeRO-3 leaves them empty, (0,)
        is_exempt = len(shape) == 1 or name.endswith(".bias") or (first_layer and SAMPLING_OFFSETS in name)
        decay = 0.0 if is_exempt and not decay_all else weight_decay
        lr = learning_rate * scale
        group = groups.setdefault((lr, decay), {"params": [], "lr": lr, "weight_decay": decay})
        group["params"].append(parameter)
    return list(groups.values())


def create_cosine_schedule(
    optimizer: torch.optim.Optimizer, num_warmup_steps: int, num_training_steps: int, min_lr: float, warmup_lr: float
) -> torch.optim.lr_scheduler.LambdaLR:
    """
    The authors' schedule (timm's `CosineLRScheduler`): every group rises from `warmup_lr` to its own rate, then
    follows the cosine that began at step 0 down to `min_lr`. Both are rates, the same for all groups, not factors. A
    rate of 0 stays 0.
    """

    def factor(step: int, lr: float) -> float:
        if lr == 0:
            return 0.0
        if step < num_warmup_steps:
            return (warmup_lr + (lr - warmup_lr) * step / num_warmup_steps) / lr
        progress = min(step / num_training_steps, 1)
        return (min_lr + (lr - min_lr) * (1 + math.cos(math.pi * progress)) / 2) / lr

    rates = [group.get("initial_lr", group["lr"]) for group in optimizer.param_groups]  # of an earlier schedule
    return torch.optim.lr_scheduler.LambdaLR(optimizer, [lambda step, lr=lr: factor(step, lr) for lr in rates])


def create_step_schedule(
    optimizer: torch.optim.Optimizer, num_warmup_steps: int, milestones: list[int]
) -> torch.optim.lr_scheduler.LambdaLR:
    """
    The authors' schedule in detection (`step` of mmcv): a linear warm-up from a thousandth of each rate; from each of
    `milestones`, in steps, on a tenth of what it was.
    """

    def factor(step: int) -> float:
        warmup = min(1e-3 + (1 - 1e-3) * step / num_warmup_steps, 1) if num_warmup_steps else 1
        return warmup * 0.1 ** sum(step >= milestone for milestone in milestones)

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


def _backbones(model: nn.Module) -> dict[str, InternImageConfig]:
    """Configuration of every InternImage or CB-InternImage in `model`, by the prefix of its parameters."""
    backbones: dict[str, InternImageConfig] = {}
    for name, module in model.named_modules():  # the outer modules come first
        prefix, config = f"{name}." if name else "", getattr(module, "config", None)
        is_internimage = hasattr(module, "embeddings") and isinstance(config, InternImageConfig)
        if is_internimage and not prefix.startswith(tuple(backbones)):
            backbones[prefix] = config
    return backbones


def _first_layer_of_head(model: nn.Module) -> tuple[str, ...]:
    """Parts of the names of what counts as layer 0 in the head of `model`. Empty: it has no deformable attention."""
    for module in model.modules():
        for config_class, parts in FIRST_LAYER_OF_HEADS.items():
            if isinstance(getattr(module, "config", None), config_class):
                return parts
    return ()


def _is_deformable(name: str, config: InternImageConfig, layer_counting: str) -> bool:
    """Whether `deformable_multiplier` concerns the parameter `name` of an InternImage."""
    parts = DEFORMABLE_PARAMETERS[config.core_op]
    if config.core_op == "DCNv4" and layer_counting == "classification":
        parts = (*parts, OFFSET_MASK_DW)
    return any(part in name for part in parts)


def _num_layers_after(
    name: str,
    backbones: dict[str, InternImageConfig],
    exponent: Callable[[str, list[int]], int],
    first_layer: tuple[str, ...],
) -> int:
    """Number of layers after the one that the parameter `name` of a model goes with; 0: full rate."""
    for prefix, config in backbones.items():
        if name.startswith(prefix):
            is_composite = isinstance(config, CBInternImageConfig)
            return 0 if is_composite else exponent(name.removeprefix(prefix), list(config.depths))
    if any(part in name for part in first_layer):
        return max((sum(config.depths) + 1 for config in backbones.values()), default=0)
    return 0


def _classification_exponent(name: str, depths: list[int]) -> int:
    """Number of layers after the one that the parameter `name` of an InternImage goes with; 0: full rate."""
    if name.startswith("embeddings."):
        return sum(depths) - 1
    if (match := _PART_OF_STAGE.match(name)) is None:
        return 0
    stage, part, idx = int(match[1]), match[2], match[3]
    if part == "post_norms" or (part == "norm" and stage == len(depths) - 1):
        return 0
    layer = sum(depths[:stage]) if part == "downsampling" else sum(depths[: stage + 1])
    if part == "layers":
        layer = sum(depths[:stage]) + int(idx)
    return sum(depths) - 1 - layer


def _downstream_exponent(name: str, depths: list[int]) -> int:
    """As `_classification_exponent`, as the authors' segmentation and detection code counts."""
    if name.startswith("embeddings."):
        return sum(depths) + 1
    if (match := _PART_OF_STAGE.match(name)) is None:
        return 0
    stage, part, idx = int(match[1]), match[2], match[3]
    if part in ("layers", "post_norms"):
        return sum(depths[stage:]) - int(idx)
    first_stage = stage if part == "downsampling" else min(stage + 1, len(depths) - 1)
    return sum(depths[first_stage:])


_PART_OF_STAGE = re.compile(r"encoder\.stages\.(\d+)\.(layers|post_norms|downsampling|norm)\.(\d+)?")
LAYER_COUNTINGS = {"classification": _classification_exponent, "downstream": _downstream_exponent}
