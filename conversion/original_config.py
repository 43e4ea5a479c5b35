# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""Records of users' own checkpoints, from a configuration of the original code or an official checkpoint's record."""

import ast
import contextlib
import dataclasses
import json
import math
import re
from pathlib import Path

import torch
import yaml
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoModelForImageClassification, AutoModelForObjectDetection

from conversion.backbone import complete_architecture, read_backbone
from conversion.checkpoints import CHECKPOINTS, HEAD_DEFAULTS, OWN_DATASET, Checkpoint
from conversion.errors import ConversionError, printable
from conversion.heads import BACKBONE, HEADS
from conversion.original_checkpoint import count_parameters, read_classes, read_original_checkpoint
from conversion.python_config import read_python_config
from conversion.toolbox_models import (
    HEAD_CONFIGS,
    Settings,
    backbone_arguments,
    find_backbone,
    head_of,
    image_settings,
    two_stage_head,
)
from modeling_internimage import InternImageBackbone, InternImageConfig, MaskRCNNConfig
from modeling_internimage.configuration_internimage import ORIGINAL_ATTRIBUTE_NAMES


# Fields of `InternImageConfig` that make an architecture.
ARCHITECTURE_FIELDS = (
    "core_op", "embed_dim", "depths", "num_groups", "mlp_ratio", "hidden_act", "layer_scale_init_value",
    "offset_scale", "dcn_output_bias", "mlp_fc2_bias", "post_norm", "res_post_norm", "depthwise_kernel_size",
    "center_feature_scale", "remove_center", "level2_post_norm_block_ids", "use_clip_projector", "cls_scale",
)  # fmt: skip
# Sections of the trainer's configurations -> their operator, if they do not name it.
CORE_OPS_OF_SECTIONS = {"INTERN_IMAGE": "DCNv3", "FLASH_INTERN_IMAGE": "DCNv4"}
# Fields of other configurations that belong to the backbone, the classes or the file, not to the head.
NO_HEAD_FIELDS = {
    "backbone_config", "id2label", "label2id", "num_labels", "palette", "model_type", "architectures", "dtype",
    "torch_dtype", "transformers_version", "auto_map", "_name_or_path",
}  # fmt: skip
MAX_CLASSES = 100_000  # several times those of ImageNet-22k: their names take memory
_MAX_CONFIG_BYTES, _MAX_CONFIG_DEPTH = 100_000, 50


def checkpoint_from_config(config_file: Path, source: Path, ema: bool = False) -> Checkpoint:
    """
    A record for a checkpoint that is not in the registry. The number of classes is that of its classifier, their names
    are those in the checkpoint.

    Args:
        config_file: Of a classifier a `.yaml` of the original's trainer or the `config.json` of one of its Hub
            repositories; of a detector or a segmentation model a `.py` of mmdetection or mmsegmentation; of both a
            `config.json` of the converted model.
        source: The checkpoint.
        ema: As in `read_original_checkpoint`.

    Raises:
        `ConversionError`: if the file is none of these, or describes no InternImage.
    """
    if config_file.suffix == ".py":
        return own_checkpoint(_record_from_toolbox(config_file, source, ema), source, ema)
    arguments = _read_config(config_file)
    if arguments.get("model_type") in {head.config_class.model_type for head in HEADS.values()} - {"internimage"}:
        return own_checkpoint(_record_from_json(config_file, arguments, source, ema), source, ema)
    weights = read_original_checkpoint(source, ema)
    bias = weights.get("head.bias")
    if bias is None:
        raise ConversionError(
            f"{source} has no classifier (`head.bias`), but {config_file} is the configuration of an image "
            "classifier. A detector or segmentation model needs the `.py` that it was trained with, or the "
            "`config.json` of such a model."
        )
    arguments |= {"num_labels": _num_rows(source, "head.bias", bias)}
    with _readable(config_file):
        backbone = _backbone(config_file, arguments, source, weights)
    return _own_record(
        source,
        "linear classifier",
        backbone | {"architecture": backbone["architecture"] | _metadata_head(weights)},
        num_labels=arguments["num_labels"],
    )


def backbone_checkpoint(prefix: str, source: Path, config_file: Path | None = None, ema: bool = False) -> Checkpoint:
    """
    A record for the InternImage under `prefix` in a checkpoint of a larger model.

    Args:
        prefix: Of its keys, such as `"img_backbone."`.
        source: The checkpoint.
        config_file: A `.py` of the mm family with the backbone somewhere in its setting `model`, a `.yaml` of the
            original's trainer, or a `.json` with fields of `InternImageConfig`, all or some. It is needed where the
            shapes do not say the architecture.
        ema: As in `read_original_checkpoint`.

    Raises:
        `ConversionError`: if there is no InternImage under `prefix`, or its architecture is not known, naming the
            fields.
    """
    weights = read_backbone(source, prefix, ema)
    given = _fields_of_backbone(config_file) if config_file else {}
    with _readable(config_file or source):
        arguments = complete_architecture(source, weights, given)
        record = _own_record(
            source, BACKBONE, _backbone(config_file or source, arguments, source, weights), num_labels=0
        )
        record.config()
    return record


def _fields_of_backbone(config_file: Path) -> dict:
    """Fields of `InternImageConfig` for the backbone that a configuration describes, all or some."""
    if config_file.suffix == ".py":
        if not config_file.is_file():
            raise ConversionError(f"There is no file {config_file}.")
        arguments = find_backbone(Settings(config_file, read_python_config(config_file)).section("model"))
    else:
        arguments = _read_config(config_file)
    arguments = {ORIGINAL_ATTRIBUTE_NAMES.get(name, name): value for name, value in arguments.items()}
    return {name: arguments[name] for name in (*ARCHITECTURE_FIELDS, "image_size") if name in arguments}


def _record_from_toolbox(config_file: Path, source: Path, ema: bool) -> Checkpoint:
    """The record of a detector or segmentation model from its Python configuration."""
    if not config_file.is_file():
        raise ConversionError(f"There is no file {config_file}.")
    settings = Settings(config_file, read_python_config(config_file))
    weights = read_original_checkpoint(source, ema)
    with _readable(config_file):
        model = settings.section("model")
        head = head_of(model)
        record = _own_record(
            source,
            head,
            _backbone(config_file, backbone_arguments(model), source, weights) | image_settings(settings, _task(head)),
            num_labels=_classifier_rows(head, source, weights),
            head_config=HEAD_DEFAULTS.get(head, {}) | HEAD_CONFIGS[head](model),
        )
        record.config()
    return record


def _record_from_json(config_file: Path, arguments: dict, source: Path, ema: bool) -> Checkpoint:
    """The record of a detector or segmentation model from the `config.json` of a converted one."""
    weights = read_original_checkpoint(source, ema)
    with _readable(config_file):
        config_classes = {head.config_class.model_type: head.config_class for head in HEADS.values()}
        config = config_classes[arguments["model_type"]].from_dict(dict(arguments))
        kind = type(config), type(config.backbone_config)
        heads = [name for name, head in HEADS.items() if (head.config_class, head.backbone_config_class) == kind]
        if not heads:
            raise ValueError(f"`backbone_config` has `model_type={config.backbone_config.model_type!r}`")
        head = heads[0]
        if isinstance(config, MaskRCNNConfig):
            head = two_stage_head(len(config.bbox_reg_stds) > 1, config.use_mask_head)
        num_labels = _classifier_rows(head, source, weights)
        fields = (*ARCHITECTURE_FIELDS, "image_size")
        has_names = config.num_labels == num_labels and config.id2label[0] != "LABEL_0"
        record = _own_record(
            source,
            head,
            _backbone(config_file, {name: getattr(config.backbone_config, name) for name in fields}, source, weights),
            num_labels=num_labels,
            labels=[printable(config.id2label[idx]) for idx in range(num_labels)] if has_names else None,
            head_config={name: value for name, value in arguments.items() if name not in NO_HEAD_FIELDS},
        )
        record.config()
    return record


def _own_record(source: Path, head: str, arguments: dict, **kwargs) -> Checkpoint:
    """The record of a user's weights, with `arguments` and keyword arguments of `Checkpoint`."""
    return Checkpoint(
        name=_title(source),
        task=_task(head),
        head=head,
        num_parameters=None,
        dataset=OWN_DATASET,
        pretraining=None,
        reported={},
        file=None,
        hub_name=None,
        title=_title(source),
        license="unknown",
        **({"labels": None} | arguments | kwargs),
    )


def _task(head: str) -> str:
    tasks = {
        AutoModelForImageClassification: "image-classification",
        AutoModelForObjectDetection: "object-detection",
        InternImageBackbone: "image-feature-extraction",
    }
    return tasks.get(HEADS[head].auto_class, "image-segmentation")


def _backbone(config_file: Path, arguments: dict, source: Path, weights: dict[str, torch.Tensor]) -> dict:
    """Arguments of `Checkpoint` for the backbone that the arguments of `InternImageConfig` describe."""
    depths = arguments.get("depths")
    if isinstance(depths, list) and sum(d for d in depths if isinstance(d, (int, float))) > len(weights):
        raise ConversionError(f"{config_file} has `depths` {depths}, more layers than {source} has tensors.")
    if not all(math.isfinite(value) for value in arguments.values() if isinstance(value, (int, float))):
        raise ValueError("a number is Inf or NaN")
    config = InternImageConfig.from_dict(arguments)
    return {
        "backbone": f"with {config.embed_dim} channels",
        "architecture": {name: getattr(config, name) for name in ARCHITECTURE_FIELDS},
        "image_size": tuple([config.image_size] * 2 if isinstance(config.image_size, int) else config.image_size),
    }


@contextlib.contextmanager
def _readable(config_file: Path):
    """Turns the errors of configurations that describe no model into a `ConversionError`."""
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError, StrictDataclassError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[-1].strip()
        raise ConversionError(f"{config_file} does not describe an InternImage: {reason}") from error


def own_checkpoint(record: Checkpoint, source: Path, ema: bool = False) -> Checkpoint:
    """
    The record of a user's weights with the architecture of an official checkpoint: named after the file, with as many
    classes as its classifier has, without the authors' results and licence.

    Args:
        record: Of the official checkpoint.
        source: The user's file.
        ema: As in `read_original_checkpoint`.

    Raises:
        `ConversionError`: if the names in the file do not fit its classifier.
    """
    own = dataclasses.replace(
        record, title=_title(source), pretraining=None, reported={}, hub_name=None, license="unknown"
    )
    head = HEADS[record.head]
    weights = read_original_checkpoint(source, ema)
    if record.task == "image-classification":
        own = dataclasses.replace(own, architecture=record.architecture | _metadata_head(weights))
    key = next((key for key in head.classifier_keys if key in weights), None)
    if key is None:
        return own  # the plan will say what is missing
    num_rows = _num_rows(source, key, weights[key], head.num_rows_without_class)
    names, palette = read_classes(source)
    is_as_official = num_rows == (record.num_original_labels or record.num_labels)
    if names is None:
        num_parameters = count_parameters(weights)
        # The weights of another official checkpoint: the plan will name it.
        if is_as_official or any(num_parameters == other.num_parameters for other in CHECKPOINTS.values()):
            return own
    elif is_as_official and names == record.labels:
        return own
    num_labels = num_rows if names is None else len(names)
    # (A classifier of semantic segmentation may have rows that stand for no class, as some official ones do.)
    has_more_rows = num_labels < num_rows and record.head in ("UperNet", "SegFormer head")
    if num_labels != num_rows and not has_more_rows or not all(isinstance(name, str) for name in names or ()):
        raise ConversionError(
            f"{source} has {num_labels} class names in `meta` ({', '.join(map(printable, names[:5]))}), which do not "
            f"fit its classifier `{key}`, for {num_rows} classes. Correct the names there."
        )
    has_palette = palette and len(palette) == num_labels and all(map(_is_colour, palette))
    return dataclasses.replace(
        own,
        dataset=OWN_DATASET,
        num_labels=num_labels,
        labels=names and [printable(name) for name in names],
        num_parameters=None,
        palette=[list(colour) for colour in palette] if has_palette and own.task == "image-segmentation" else None,
        reduce_labels=record.title is not None and record.reduce_labels,  # as its own configuration says
        num_original_labels=num_rows if has_more_rows else None,
    )


def _metadata_head(weights: dict[str, torch.Tensor]) -> dict[str, bool]:
    """The field of `InternImageConfig` for a classifier with the branch for date and place, or without it."""
    return {"use_metadata_head": any(key.startswith("meta_head.") for key in weights)}


def _classifier_rows(head: str, source: Path, weights: dict[str, torch.Tensor]) -> int:
    """The number of classes of a model with this head; 1 without a classifier, of which the plan will say more."""
    key = next((key for key in HEADS[head].classifier_keys if key in weights), None)
    return 1 if key is None else _num_rows(source, key, weights[key], HEADS[head].num_rows_without_class)


def _num_rows(source: Path, key: str, bias: torch.Tensor, num_without_class: int = 0) -> int:
    """Rows of a classifier that stand for a class."""
    if bias.dim() != 1 or not num_without_class < len(bias) <= MAX_CLASSES:
        raise ConversionError(
            f"{source} has no usable classifier: `{key}` is of shape {tuple(bias.shape)}, not of 1 to "
            f"{MAX_CLASSES:,} classes."
        )
    return len(bias) - num_without_class


def _is_colour(value) -> bool:
    return (
        isinstance(value, (list, tuple))
        and len(value) == 3
        and all(type(number) is int and 0 <= number <= 255 for number in value)
    )


def _title(source: Path) -> str:
    """The name of a file, with only the characters that are safe in code, in Markdown and on the Hub."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", source.stem).strip("-.") or "internimage"


def _read_config(file: Path) -> dict:
    """Arguments of `InternImageConfig`, or of the configuration of another model, from a file of the user."""
    if file.suffix != ".json":
        return _read_yaml(file)
    try:
        arguments = json.loads(_read_text(file))
    except (ValueError, RecursionError) as error:
        raise ConversionError(f"{file} cannot be read: {error}.") from error
    if not isinstance(arguments, dict):
        raise ConversionError(f"{file} holds a {type(arguments).__name__}, not a `config.json`.")
    return arguments


def _read_text(file: Path) -> str:
    if not file.is_file():
        raise ConversionError(f"There is no file {file}.")
    if file.stat().st_size > _MAX_CONFIG_BYTES:
        raise ConversionError(f"{file} has {file.stat().st_size:,} bytes: that is not a configuration.")
    return file.read_text(encoding="utf-8")


def _read_yaml(file: Path, already_read: list[Path] | None = None) -> dict:
    """
    Arguments of `InternImageConfig` from a configuration of the original's trainer (yacs, with `BASE` files beside or
    below the first one).
    """
    already_read, path = [] if already_read is None else already_read, file.resolve()
    if path in already_read or already_read and not path.is_relative_to(already_read[0].parent):
        raise ConversionError(
            f"{already_read[-1]} has the `BASE` {file}: name files beside or below {already_read[0]}, each in "
            "one place."
        )
    already_read.append(path)
    try:
        text = _read_text(file)
        depth = 0
        for token in yaml.scan(text, yaml.SafeLoader):  # aliases and nesting can take unlimited time and memory
            if isinstance(token, yaml.AliasToken):
                raise ValueError("it has aliases (`*name`), which the trainer's files do not need")
            depth += isinstance(token, (yaml.FlowSequenceStartToken, yaml.FlowMappingStartToken))
            depth -= isinstance(token, (yaml.FlowSequenceEndToken, yaml.FlowMappingEndToken))
            if depth > _MAX_CONFIG_DEPTH:
                raise ValueError(f"it is nested more than {_MAX_CONFIG_DEPTH} deep")
        settings = yaml.safe_load(text)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError, yaml.YAMLError) as error:
        raise ConversionError(f"{file} cannot be read: {error}.") from error
    settings = _mapping(settings)
    sections = {name: _mapping(_mapping(settings.get("MODEL")).get(name)) for name in CORE_OPS_OF_SECTIONS}
    filled = [name for name, section in sections.items() if section]
    if len(filled) != 1:
        raise ConversionError(
            f"{file} has {'both' if filled else 'neither'} `MODEL.INTERN_IMAGE` {'and' if filled else 'nor'} "
            "`MODEL.FLASH_INTERN_IMAGE`: a configuration of the original's trainer has one of them."
        )
    bases = settings.get("BASE") or []
    if not isinstance(bases, list) or not all(isinstance(base, str) for base in bases):
        raise ConversionError(f"{file} has a `BASE` that is not a list of file names: {bases}.")
    arguments = {}
    for base in filter(None, bases):
        arguments |= _read_yaml(file.parent / base, already_read)
    arguments |= {str(name).lower(): _literal(value) for name, value in sections[filled[0]].items()}
    arguments.setdefault("core_op", CORE_OPS_OF_SECTIONS[filled[0]])
    if "IMG_SIZE" in _mapping(settings.get("DATA")):
        arguments["image_size"] = settings["DATA"]["IMG_SIZE"]
    return arguments


def _mapping(value) -> dict:
    return value if isinstance(value, dict) else {}


def _literal(value):
    """yacs reads strings as Python literals where it can: `None` and `1e-5` are not strings."""
    try:
        return ast.literal_eval(value) if isinstance(value, str) and len(value) < 200 else value
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return value
