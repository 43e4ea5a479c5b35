# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""Models of mmdetection and mmsegmentation configurations as records of checkpoints."""

import reprlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from conversion.errors import ConversionError
from conversion.python_config import MERGED, Unread


_REQUIRED = object()
_BACKBONES = ("InternImage", "FlashInternImage")
# Number of convolutions and linear layers in mmdetection's box heads with a fixed number of them.
_BOX_HEAD_LAYERS = {"Shared2FCBBoxHead": (0, 2), "Shared4Conv1FCBBoxHead": (4, 1)}
# Normalisation in the pyramids of the DCNv4 repository, which mmdetection does not have.
_FPN_NORMS = {"FPN_vitdet": "layer_norm"}
_BOX_LOSSES = {"L1Loss": "l1", "SmoothL1Loss": "smooth_l1", "GIoULoss": "giou"}
# Mean and standard deviation of red, green and blue.
IMAGENET_NORMALISATION = ([123.675, 116.28, 103.53], [58.395, 57.12, 57.375])
_ZEROS, _ONES = [0.0] * 4, [1.0] * 4


class Settings:
    """Nested settings of a configuration. Errors name the file and the setting."""

    def __init__(self, file: Path, entries: dict[str, Any], name: str = ""):
        self.file = file
        self.entries = entries
        self.name = name

    def get(self, path: str, default=_REQUIRED):
        """The setting at `path`, names joined by dots, or `default`. Raises `ConversionError` without either."""
        value: Any = self.entries
        for part in path.split("."):
            value = value.get(part, default) if isinstance(value, dict) else default
            if value is default:
                break
        if value is _REQUIRED:
            raise ConversionError(f"{self.file} has no `{self.name}{path}`. {MERGED}")
        if value is Unread or isinstance(value, list) and Unread in value:
            raise ConversionError(
                f"{self.file} computes `{self.name}{path}`, but it is not run: write the value there."
            )
        return value

    def section(self, path: str, default=_REQUIRED) -> "Settings":
        (section,) = self.sections(path, default)
        return section

    def sections(self, path: str, default=_REQUIRED) -> list["Settings"]:
        """The dictionary at `path`, or each of a list of them."""
        found = self.get(path, default)
        entries = found if isinstance(found, list) else [found]
        if not entries or not all(isinstance(entry, dict) for entry in entries):
            raise ConversionError(f"{self.file} has `{self.name}{path}={reprlib.repr(found)}`, not a dictionary.")
        return [Settings(self.file, entry, f"{self.name}{path}.") for entry in entries]

    def expect(self, path: str, expected, default=_REQUIRED):
        """Raise `ConversionError` for a setting that no model here has."""
        value = self.get(path, default)
        if value != expected:
            raise ConversionError(
                f"{self.file} has `{self.name}{path}={reprlib.repr(value)}`; only {expected!r} can be converted."
            )

    def numbers(self, path: str, count: int, default=_REQUIRED) -> list[int]:
        """`count` whole numbers; one number stands for all."""
        value = self.get(path, default)
        values = value if isinstance(value, list) else [value] * count
        if len(values) != count or not all(type(number) is int and number > 0 for number in values):
            raise ConversionError(
                f"{self.file} has `{self.name}{path}={reprlib.repr(value)}`, not {count} positive whole numbers."
            )
        return values


def backbone_arguments(model: Settings) -> dict[str, Any]:
    """
    Arguments of `InternImageConfig` for the setting `backbone`. Raises `ConversionError` for a FlashInternImage that
    the original cannot build.
    """
    backbone = model.section("backbone")
    left_out = ("type", "init_cfg", "out_indices", "with_cp")
    arguments = {name: backbone.get(name) for name in backbone.entries if name not in left_out}
    if backbone.get("type") != "FlashInternImage":
        if arguments.get("core_op") == "DCNv4":
            raise ConversionError(
                f"{model.file} has `{backbone.name}core_op='DCNv4'` with the type {backbone.get('type')!r}. DCNv4 is "
                "the operator of the type 'FlashInternImage': write that, or `core_op='DCNv3'`."
            )
        return arguments
    backbone.expect("core_op", "DCNv4", default="DCNv4")
    if arguments.get("layer_scale") is None:
        raise ConversionError(
            f"{model.file} has no `{backbone.name}layer_scale`, without which the original cannot build a "
            "FlashInternImage for detection or segmentation. Write the value that it was trained with; the authors' "
            "is 1.0."
        )
    return {"core_op": "DCNv4", "offset_scale": 0.5} | arguments  # what the original's class has by default


def find_backbone(model: Settings) -> dict[str, Any]:
    """
    As `backbone_arguments`, for the only InternImage in the setting `model`, however deep it lies there. Raises
    `ConversionError` if there is none or more than one.
    """

    def search(value) -> list[dict]:
        if isinstance(value, dict) and value.get("type") in _BACKBONES:
            return [value]
        values = value.values() if isinstance(value, dict) else value if isinstance(value, list) else []
        return [backbone for part in values for backbone in search(part)]

    found = search(model.entries)
    if len(found) != 1:
        raise ConversionError(
            f"{model.file} has {len(found)} settings with a type {' or '.join(map(repr, _BACKBONES))} in `model`, not "
            "one. Write the fields of the backbone into a `.json`, and name that."
        )
    return backbone_arguments(Settings(model.file, {"backbone": found[0]}, model.name))


def _check_backbone(model: Settings, kinds: tuple[str, ...], out_indices: list):
    kind = model.get("backbone.type")
    if kind not in kinds:
        raise ConversionError(
            f"{model.file} has `model.backbone.type={kind!r}`; only {' and '.join(map(repr, kinds))} can be converted."
        )
    model.expect("backbone.out_indices", out_indices, default=out_indices)


def upernet_config(model: Settings) -> dict[str, Any]:
    _check_backbone(model, _BACKBONES, [0, 1, 2, 3])
    head = model.section("decode_head")
    head.expect("align_corners", False, default=False)
    config = {"hidden_size": head.get("channels"), "pool_scales": head.get("pool_scales", [1, 2, 3, 6])}
    if model.get("auxiliary_head", None) is None:
        return config | {"use_auxiliary_head": False}
    auxiliary = model.section("auxiliary_head")
    auxiliary.expect("in_index", 2)
    return config | {
        "auxiliary_channels": auxiliary.get("channels"),
        "auxiliary_in_channels": auxiliary.get("in_channels"),
        "auxiliary_num_convs": auxiliary.get("num_convs", 2),
        "auxiliary_concat_input": auxiliary.get("concat_input", True),
    }


def segformer_head_config(model: Settings) -> dict[str, Any]:
    _check_backbone(model, _BACKBONES, [0, 1, 2, 3])
    head = model.section("decode_head")
    head.expect("align_corners", False, default=False)
    return {"hidden_size": head.get("channels")}


def mask2former_config(model: Settings) -> dict[str, Any]:
    _check_backbone(model, _BACKBONES, [0, 1, 2, 3])
    head = model.section("decode_head")
    encoder, decoder = head.section("pixel_decoder.encoder"), head.section("transformer_decoder")
    head.expect("enforce_decoder_input_project", False, default=False)
    num_heads = decoder.get("transformerlayers.attn_cfgs.num_heads")
    encoder.expect("transformerlayers.attn_cfgs.num_heads", num_heads, default=8)
    encoder.expect("transformerlayers.attn_cfgs.use_softmax", True, default=True)
    return {
        "feature_size": head.get("feat_channels"),
        "mask_feature_size": head.get("out_channels"),
        "hidden_dim": decoder.get("transformerlayers.attn_cfgs.embed_dims"),
        "num_attention_heads": num_heads,
        "num_queries": head.get("num_queries"),
        "encoder_layers": encoder.get("num_layers"),
        "encoder_feedforward_dim": encoder.get("transformerlayers.ffn_cfgs.feedforward_channels"),
        "decoder_layers": decoder.get("num_layers") + 1,
        "dim_feedforward": decoder.get("transformerlayers.ffn_cfgs.feedforward_channels"),
    }


def two_stage_config(model: Settings) -> dict[str, Any]:
    _check_backbone(model, _BACKBONES, [0, 1, 2, 3])
    neck, anchors, test = model.section("neck"), model.section("rpn_head.anchor_generator"), model.section("test_cfg")
    fpn_norm = _FPN_NORMS.get(neck.get("type"))
    if fpn_norm:
        neck.expect("norm_cfg.type", "LN")
        neck.expect("no_norm_on_lateral", False, default=False)
        neck.expect("use_residual", True, default=True)
        neck.expect("act_cfg", None, default=None)
    else:
        neck.expect("type", "FPN")
    neck.expect("start_level", 0, default=0)
    strides = anchors.get("strides")
    neck.expect("num_outs", len(strides))
    if strides[-1] != 2 * strides[-2]:
        raise ConversionError(
            f"{model.file} has anchors at the strides {strides}: the last must be twice the one before."
        )
    anchors.expect("scales", anchors.get("scales")[:1])
    coder = model.section("rpn_head.bbox_coder")
    coder.expect("target_means", _ZEROS, default=_ZEROS)
    coder.expect("target_stds", _ONES, default=_ONES)
    for part in ("rpn.nms", "rcnn.nms"):
        test.expect(f"{part}.type", "nms", default="nms")
    config = {
        "hidden_size": neck.get("out_channels"),
        "fpn_norm": fpn_norm,
        "feature_strides": strides[:-1],
        "anchor_scale": anchors.get("scales")[0],
        "anchor_ratios": anchors.get("ratios"),
        "num_proposals": test.get("rpn.max_per_img"),
        "num_proposals_per_level": test.get("rpn.nms_pre"),
        "proposal_nms_threshold": test.get("rpn.nms.iou_threshold"),
        "score_threshold": test.get("rcnn.score_thr"),
        "nms_threshold": test.get("rcnn.nms.iou_threshold"),
        "max_detections": test.get("rcnn.max_per_img"),
    }

    box_heads = model.sections("roi_head.bbox_head")
    for head in box_heads:
        head.expect("bbox_coder.target_means", _ZEROS, default=_ZEROS)
        if head.get("type") == "DCNv4FCBBoxHead":
            head.expect("with_dcn", False, default=True)
    head = box_heads[0]
    layers = _BOX_HEAD_LAYERS.get(head.get("type"))
    num_conv_layers, num_fc_layers = layers or (head.get("num_shared_convs"), head.get("num_shared_fcs"))
    config |= {
        "box_head_num_conv_layers": num_conv_layers,
        "box_head_num_fc_layers": num_fc_layers,
        "box_head_hidden_size": head.get("fc_out_channels"),
        "box_roi_size": head.get("roi_feat_size"),
        "class_agnostic_boxes": head.get("reg_class_agnostic", False),
        "bbox_reg_stds": [head.get("bbox_coder.target_stds") for head in box_heads],
        "use_mask_head": _has_masks(model),
    }
    if config["use_mask_head"]:
        mask_head = model.sections("roi_head.mask_head")[0]
        mask_roi_size = model.get("roi_head.mask_roi_extractor.roi_layer.output_size")
        config |= {"mask_head_num_layers": mask_head.get("num_convs", 4), "mask_roi_size": mask_roi_size}
    if head.get("loss_bbox", None) is not None:
        loss = head.get("loss_bbox.type")
        if loss not in _BOX_LOSSES:
            raise ConversionError(f"{model.file} has the box loss {loss!r}; only {list(_BOX_LOSSES)} are known here.")
        config |= {"box_loss": _BOX_LOSSES[loss], "box_loss_weight": head.get("loss_bbox.loss_weight", 1.0)}
    return config


def dino_config(model: Settings) -> dict[str, Any]:
    if model.get("backbone.type") == "CBInternImage":
        _check_backbone(model, ("CBInternImage",), [[0, 1, 2, 3], [1, 2, 3]])
    else:
        _check_backbone(model, _BACKBONES, [1, 2, 3])
    neck, head = model.section("neck"), model.section("bbox_head")
    neck.expect("kernel_size", 1)
    neck.expect("act_cfg", None)
    neck.expect("norm_cfg", {"type": "GN", "num_groups": 32})
    for name in ("as_two_stage", "with_box_refine"):
        head.expect(name, True)
    width = neck.get("out_channels")
    head.expect("positional_encoding.num_feats", width // 2)
    head.expect("positional_encoding.temperature", 20)
    head.expect("positional_encoding.normalize", True)
    config = {
        "d_model": width,
        "num_feature_levels": neck.get("num_outs"),
        "num_queries": head.get("num_query"),
        "max_detections": model.get("test_cfg.max_per_img"),
        "num_denoising": head.get("dn_cfg.group_cfg.num_dn_queries", 100),
        "label_noise_ratio": head.get("dn_cfg.noise_scale.label", 0.5),
        "box_noise_scale": head.get("dn_cfg.noise_scale.box", 1.0),
    }
    for part in ("encoder", "decoder"):
        layers = head.section(f"transformer.{part}")
        attentions = layers.sections("transformerlayers.attn_cfgs")  # the decoder's first is the self-attention
        config |= {
            f"{part}_layers": layers.get("num_layers"),
            f"{part}_ffn_dim": layers.get("transformerlayers.feedforward_channels"),
            f"{part}_attention_heads": attentions[0].get("num_heads", 8),
            f"{part}_n_points": attentions[-1].get("num_points", 4),
        }
        attentions[-1].expect("num_heads", config[f"{part}_attention_heads"], default=8)
    return config


def _has_masks(model: Settings) -> bool:
    return model.get("roi_head.mask_head", None) is not None


# Head, as in `HEADS` -> function from the setting `model` to arguments of the head's configuration. Together with the
# head's other settings in `conversion.checkpoints`, they describe the model.
HEAD_CONFIGS: dict[str, Callable[[Settings], dict[str, Any]]] = {
    "UperNet": upernet_config,
    "SegFormer head": segformer_head_config,
    "Mask2Former": mask2former_config,
    "Mask R-CNN": two_stage_config,
    "Faster R-CNN": two_stage_config,
    "Cascade Mask R-CNN": two_stage_config,
    "Cascade R-CNN": two_stage_config,
    "DINO": dino_config,
    "CB-DINO": dino_config,
}
# Type of `decode_head` or `bbox_head` -> head.
_HEAD_TYPES = {
    "UPerHead": "UperNet",
    "SegformerHead": "SegFormer head",
    "Mask2FormerHead": "Mask2Former",
    "DINOHead": "DINO",
    "CBDINOHead": "CB-DINO",
}


def two_stage_head(is_cascade: bool, has_masks: bool) -> str:
    if is_cascade:
        return "Cascade Mask R-CNN" if has_masks else "Cascade R-CNN"
    return "Mask R-CNN" if has_masks else "Faster R-CNN"


def head_of(model: Settings) -> str:
    """The key of `HEADS` for the setting `model`. Raises `ConversionError` if there is none."""
    roi_head = model.get("roi_head.type", None)
    if roi_head in ("StandardRoIHead", "CascadeRoIHead"):
        return two_stage_head(roi_head == "CascadeRoIHead", _has_masks(model))
    name = roi_head or model.get("decode_head.type", None) or model.get("bbox_head.type", None)
    head = _HEAD_TYPES.get(name)
    if head is None:
        raise ConversionError(
            f"{model.file} describes a model with the head {name!r}, which cannot be converted. These can: "
            f"{', '.join(HEAD_CONFIGS)}."
        )
    return head


def image_settings(settings: Settings, task: str) -> dict[str, Any]:
    """How images are resized and normalised, as arguments of `Checkpoint`."""
    test = _steps(settings, settings.get("data.test.pipeline", None) or settings.get("test_pipeline"))
    train = _steps(settings, settings.get("data.train.pipeline", None) or settings.get("train_pipeline", []))
    resize = test.get("Resize") or Settings(settings.file, {}, "Resize.")
    resize.expect("keep_ratio", True)
    flip = test.get("MultiScaleFlipAug")
    scale = flip.numbers("img_scale", 2) if flip else resize.numbers("scale", 2)
    longer, shorter = max(scale), min(scale)
    arguments: dict[str, Any] = {"test_scale": (longer, shorter), "image_size": (shorter, longer)}
    if normalize := test.get("Normalize"):
        normalize.expect("to_rgb", True)
        mean_and_std = normalize.get("mean"), normalize.get("std")
        if mean_and_std != IMAGENET_NORMALISATION:
            arguments["normalisation"] = mean_and_std
    if task == "object-detection":
        if pad := test.get("Pad"):
            pad.expect("size_divisor", 32)
        return arguments
    if "ResizeToMultiple" in test:
        arguments["size_divisor"] = test["ResizeToMultiple"].get("size_divisor", 32)
    if "RandomCrop" in train:
        arguments["image_size"] = tuple(train["RandomCrop"].numbers("crop_size", 2))
    if "LoadAnnotations" in train:
        arguments["reduce_labels"] = train["LoadAnnotations"].get("reduce_zero_label", False)
    test_cfg = settings.section("model.test_cfg", default={"mode": "whole"})
    if test_cfg.get("mode") == "slide":
        side, stride = test_cfg.numbers("crop_size", 2), test_cfg.numbers("stride", 2)
        test_cfg.expect("crop_size", side[:1] * 2)
        test_cfg.expect("stride", stride[:1] * 2)
        arguments["window"] = (side[0], stride[0])
    return arguments


def _steps(settings: Settings, pipeline) -> dict[str, Settings]:
    """The steps of a preprocessing pipeline by their type, the first of each."""
    found: dict[str, Settings] = {}
    steps = Settings(settings.file, {"pipeline": pipeline}).sections("pipeline") if pipeline else []
    for step in steps:
        kind = step.get("type")
        step.name = f"{kind}."
        found.setdefault(kind, step)
        if step.get("transforms", None):
            steps += step.sections("transforms")
    return found
