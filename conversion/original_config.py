# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""Configurations of the original code, for checkpoints that are not in the registry: users' own."""

import ast
import json
from pathlib import Path

import yaml
from huggingface_hub.errors import StrictDataclassError

from conversion.checkpoints import Checkpoint
from conversion.errors import ConversionError
from conversion.original_checkpoint import read_original_checkpoint
from modeling_internimage import InternImageConfig


# Fields of `InternImageConfig` that make an architecture.
ARCHITECTURE_FIELDS = (
    "embed_dim", "depths", "num_groups", "mlp_ratio", "hidden_act", "layer_scale_init_value", "offset_scale",
    "post_norm", "res_post_norm", "depthwise_kernel_size", "center_feature_scale", "remove_center",
    "level2_post_norm_block_ids", "use_clip_projector", "cls_scale",
)  # fmt: skip


def checkpoint_from_config(config_file: Path, source: Path, ema: bool = False) -> Checkpoint:
    """
    A record for a checkpoint that is not in the registry.

    Args:
        config_file: A `.yaml` of the original's trainer or the `config.json` of one of its Hub repositories.
        source: The checkpoint, whose classifier tells the number of classes (the trainer takes it from the data set).
        ema: As in `read_original_checkpoint`.

    Raises:
        `ConversionError`: if the file is neither, or describes no InternImage.
    """
    try:
        text = config_file.read_text(encoding="utf-8")
        arguments = json.loads(text) if config_file.suffix == ".json" else _read_yaml(config_file)
    except FileNotFoundError as error:
        raise ConversionError(f"There is no file {config_file}.") from error
    except (UnicodeDecodeError, json.JSONDecodeError, yaml.YAMLError) as error:
        raise ConversionError(f"{config_file} cannot be read: {error}") from error
    head = read_original_checkpoint(source, ema).get("head.bias")
    if head is None:
        raise ConversionError(f"{source} has no classifier (`head.bias`): only image classifiers can be converted.")
    arguments |= {"num_labels": head.shape[0]}
    try:
        config = InternImageConfig.from_dict(arguments)
    except (TypeError, ValueError, StrictDataclassError) as error:
        reason = str(error).splitlines()[-1].strip()
        raise ConversionError(f"{config_file} does not describe an InternImage: {reason}") from error
    return Checkpoint(
        name=source.stem,
        task="image-classification",
        method="linear classifier",
        backbone=f"with {config.embed_dim} channels",
        architecture={name: getattr(config, name) for name in ARCHITECTURE_FIELDS},
        image_size=(config.image_size, config.image_size),
        num_parameters=None,
        dataset="a data set of its own",
        num_labels=config.num_labels,
        pretraining=None,
        reported={},
        file=None,
        hub_name=None,
        labels=None,
        dropped={},
    )


def _read_yaml(file: Path) -> dict:
    """Arguments of `InternImageConfig` from a configuration of the original's trainer (yacs, with `BASE` files)."""
    settings = yaml.safe_load(file.read_text(encoding="utf-8"))
    model = settings.get("MODEL") if isinstance(settings, dict) else None
    if not isinstance(model, dict) or not isinstance(model.get("INTERN_IMAGE"), dict):
        raise ConversionError(
            f"{file} has no `MODEL.INTERN_IMAGE`: it is not a configuration of the original's trainer."
        )
    arguments = {}
    for base in filter(None, settings.get("BASE", [])):
        arguments |= _read_yaml(file.parent / base)
    arguments |= {name.lower(): _literal(value) for name, value in model["INTERN_IMAGE"].items()}
    if "IMG_SIZE" in settings.get("DATA", {}):
        arguments["image_size"] = settings["DATA"]["IMG_SIZE"]
    return arguments


def _literal(value):
    """yacs reads strings as Python literals where it can: `None` and `1e-5` are no strings."""
    try:
        return ast.literal_eval(value) if isinstance(value, str) else value
    except (ValueError, SyntaxError):
        return value
