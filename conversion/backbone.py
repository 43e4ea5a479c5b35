# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""
An InternImage inside a larger model of the mm family, such as the camera backbone of a 3D detector: what the shapes of
its weights say of its architecture, and what only a configuration can say.
"""

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from conversion.checkpoints import ARCHITECTURES
from conversion.errors import ConversionError
from conversion.original_checkpoint import read_original_checkpoint
from modeling_internimage import InternImageConfig


FIRST_LAYER = "patch_embed.conv1.weight"


def normalize_prefix(prefix: str) -> str:
    """`"module.img_backbone"` and `"img_backbone."` -> `"img_backbone."`; `""`, for the whole file, stays."""
    prefix = re.sub(r"^(?:module(?:\.|$))+", "", prefix)
    return prefix if not prefix or prefix.endswith(".") else f"{prefix}."


def read_backbone(source: Path, prefix: str, ema: bool = False) -> dict[str, torch.Tensor]:
    """
    The weights under `prefix`, without it. Raises `ConversionError` if no InternImage is there, naming the prefixes
    that have one, and as [`read_original_checkpoint`].
    """
    weights = read_original_checkpoint(source, ema, prefix=prefix)
    if FIRST_LAYER in weights:
        return weights
    keys = read_original_checkpoint(source, ema, prefix="")
    found = [key.removesuffix(FIRST_LAYER) for key in keys if key.endswith(FIRST_LAYER)]
    hint = f"It has one under {' and '.join(map(repr, found))}." if found else "It has none anywhere."
    raise ConversionError(f"{source} has no InternImage under {prefix!r} (no key `{prefix}{FIRST_LAYER}`). {hint}")


def complete_architecture(source: Path, weights: dict[str, torch.Tensor], given: dict[str, Any]) -> dict[str, Any]:
    """
    Arguments of `InternImageConfig` for the backbone with these `weights`: what their shapes say; for what they do not
    say, the official model with the same shapes; over both, what is `given`.

    Raises:
        `ConversionError`: if a field is neither in the shapes nor `given`, naming it.
    """
    try:
        found, unknown = _from_shapes(weights)
    except (ArithmeticError, LookupError, TypeError, ValueError) as error:
        raise ConversionError(
            f"The weights in {source} do not have the shapes of an InternImage: {error or type(error).__name__}."
        ) from error
    official = next((fields for fields in ARCHITECTURES.values() if _is_like(fields, found)), None)
    if official is not None:
        return found | official | {"layer_scale_init_value": found["layer_scale_init_value"]} | given
    if missing := [field for field in unknown if field not in given]:
        fields = ", ".join(f'"{field}": ...' for field in missing)
        raise ConversionError(
            f"The shapes in {source} are those of no official InternImage (embed_dim {found['embed_dim']}, depths "
            f"{found['depths']}, num_groups {found['num_groups']}) and do not say all of the architecture. Name with "
            f"`--config` the `.py` of the training, or a `.json` with {{{fields}}}."
        )
    return found | given


def _is_like(official: dict[str, Any], found: dict[str, Any]) -> bool:
    """Whether an official architecture has all that the shapes say. (Layer scale differs between tasks.)"""
    config = InternImageConfig(**official)
    fields = found.keys() - {"layer_scale_init_value", "level2_post_norm_block_ids"}
    num_post_norms = len(config.level2_post_norm_block_ids or [])
    return num_post_norms == len(found["level2_post_norm_block_ids"] or []) and all(
        getattr(config, field) == found[field] for field in fields
    )


def _from_shapes(weights: dict[str, torch.Tensor]) -> tuple[dict[str, Any], list[str]]:
    """Arguments of `InternImageConfig` that follow from the shapes, and the names of fields that do not."""
    core_op = "DCNv4" if any(".dcn.offset_mask." in key for key in weights) else "DCNv3"
    embed_dim = len(weights["patch_embed.conv2.weight"])
    num_stages = _count(weights, r"levels\.(\d+)\.")
    layer = "levels.0.blocks.0."
    depthwise = weights.get(f"{layer}dcn.dw_conv.0.weight", weights.get(f"{layer}dcn.offset_mask_dw.weight"))
    num_post_norms = _count(weights, r"levels\.2\.post_norms\.(\d+)\.")
    candidates = list(_groups(weights, core_op, embed_dim, num_stages))
    if not candidates:
        raise ValueError("no number of groups fits the projections of its offsets")
    found: dict[str, Any] = candidates[0] | {
        "core_op": core_op,
        "embed_dim": embed_dim,
        "depths": [_count(weights, rf"levels\.{stage}\.blocks\.(\d+)\.") for stage in range(num_stages)],
        "mlp_ratio": len(weights[f"{layer}mlp.fc1.weight"]) / embed_dim,
        # The weights say which scale each channel has: any number does.
        "layer_scale_init_value": 1.0 if f"{layer}gamma1" in weights else None,
        "dcn_output_bias": f"{layer}dcn.output_proj.bias" in weights,
        "mlp_fc2_bias": f"{layer}mlp.fc2.bias" in weights,
        "res_post_norm": f"{layer}res_post_norm1.0.weight" in weights,
        "depthwise_kernel_size": None if depthwise is None else depthwise.shape[-1],
        "center_feature_scale": f"{layer}dcn.center_feature_scale_proj_weight" in weights,
        "level2_post_norm_block_ids": list(range(num_post_norms)) or None,  # so many; where they are is unknown
    }
    unknown = ["offset_scale"]
    if num_post_norms:
        unknown.append("level2_post_norm_block_ids")
    if len(candidates) > 1:
        unknown += ["num_groups", "remove_center"]
    if "levels.0.norm.0.weight" not in weights:
        found["post_norm"] = True
    elif found["res_post_norm"] or core_op == "DCNv3" and not found["center_feature_scale"]:
        found["post_norm"] = False
    else:
        unknown.append("post_norm")  # `center_feature_scale` adds the norm after each stage too
    return found, unknown


def _groups(weights: dict[str, torch.Tensor], core_op: str, embed_dim: int, num_stages: int) -> Iterator[dict]:
    """Every `num_groups` with which the projections have as many rows, with the central point and without it."""
    for remove_center, num_points in ((False, 9), (True, 8)):
        num_groups = []
        for stage in range(num_stages):
            dcn = f"levels.{stage}.blocks.0.dcn"
            if core_op == "DCNv3":
                rows = len(weights[f"{dcn}.mask.weight"])
                groups = rows // num_points
                fits = groups * num_points == rows
            else:  # x, y and weight of each point, padded to a multiple of 8 rows
                rows = len(weights[f"{dcn}.offset_mask.weight"])
                groups = rows // (3 * num_points)
                fits = math.ceil(groups * 3 * num_points / 8) * 8 == rows
            if groups and fits and embed_dim * 2**stage % groups == 0:
                num_groups.append(groups)
        if len(num_groups) == num_stages:
            yield {"num_groups": num_groups, "remove_center": remove_center}


def _count(weights: dict[str, torch.Tensor], pattern: str) -> int:
    """How many different numbers `pattern` finds in the keys."""
    return len({match[1] for key in weights if (match := re.match(pattern, key))})
