# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""For each head on top of the backbone: the classes of the converted model and the new names of its parameters."""

import dataclasses
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import (
    AutoModelForImageClassification,
    AutoModelForObjectDetection,
    AutoModelForSemanticSegmentation,
    AutoModelForUniversalSegmentation,
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    PreTrainedConfig,
    PreTrainedModel,
    UperNetConfig,
    UperNetForSemanticSegmentation,
)

from conversion.offset_mask import PACKED, PARTS
from modeling_internimage import (
    CBInternImageConfig,
    DinoDetrConfig,
    DinoDetrForObjectDetection,
    InternImageBackbone,
    InternImageConfig,
    InternImageForImageClassification,
    MaskRCNNConfig,
    MaskRCNNForObjectDetection,
    SegformerHeadConfig,
    SegformerHeadForSemanticSegmentation,
    encode_metadata,
    semantic_scores,
)
from modeling_internimage.dino_detr.modeling_dino_detr import DinoDetrLevels
from modeling_internimage.modeling_internimage import ORIGINAL_TO_CONVERTED_KEY_MAPPING


BACKBONE = "no head"
ALL_STAGES = ("stage1", "stage2", "stage3", "stage4")

UPERNET_KEY_MAPPING = {
    r"\.bn\.": ".batch_norm.",
    r"\.conv_seg\.": ".classifier.",
}
SEGFORMER_HEAD_KEY_MAPPING = {
    r"\.convs\.(\d)\.": r".projections.\1.",
    r"\.fusion_conv\.": ".fusion.",
    r"\.conv\.": ".convolution.",
    r"\.bn\.": ".batch_norm.",
    r"\.conv_seg\.": ".classifier.",
}
MASK2FORMER_KEY_MAPPING = {
    r"^decode_head\.pixel_decoder\.": "model.pixel_level_module.decoder.",
    r"\.input_convs\.(\d)\.conv\.": r".input_projections.\1.0.",
    r"\.input_convs\.(\d)\.gn\.": r".input_projections.\1.1.",
    r"\.lateral_convs\.0\.conv\.": ".adapter_1.0.",
    r"\.lateral_convs\.0\.gn\.": ".adapter_1.1.",
    r"\.output_convs\.0\.conv\.": ".layer_1.0.",
    r"\.output_convs\.0\.gn\.": ".layer_1.1.",
    r"\.mask_feature\.": ".mask_projection.",
    r"\.level_encoding\.weight$": ".level_embed",
    r"(decoder\.encoder\.layers\.\d\.)attentions\.0\.": r"\1self_attn.",
    r"(decoder\.encoder\.layers\.\d\.)norms\.0\.": r"\1self_attn_layer_norm.",
    r"(decoder\.encoder\.layers\.\d\.)norms\.1\.": r"\1final_layer_norm.",
    r"^decode_head\.transformer_decoder\.": "model.transformer_module.decoder.",
    r"\.attentions\.0\.attn\.": ".cross_attn.",
    r"\.attentions\.1\.attn\.": ".self_attn.",
    r"\.norms\.0\.": ".cross_attn_layer_norm.",
    r"\.norms\.1\.": ".self_attn_layer_norm.",
    r"\.norms\.2\.": ".final_layer_norm.",
    r"\.ffns\.0\.layers\.0\.0\.": ".fc1.",
    r"\.ffns\.0\.layers\.1\.": ".fc2.",
    r"\.decoder\.post_norm\.": ".decoder.layernorm.",
    r"^decode_head\.query_embed\.": "model.transformer_module.queries_embedder.",
    r"^decode_head\.query_feat\.": "model.transformer_module.queries_features.",
    r"^decode_head\.level_embed\.": "model.transformer_module.level_embed.",
    r"^decode_head\.cls_embed\.": "class_predictor.",
    r"^decode_head\.mask_embed\.0\.": "model.transformer_module.decoder.mask_predictor.mask_embedder.0.0.",
    r"^decode_head\.mask_embed\.2\.": "model.transformer_module.decoder.mask_predictor.mask_embedder.1.0.",
    r"^decode_head\.mask_embed\.4\.": "model.transformer_module.decoder.mask_predictor.mask_embedder.2.0.",
}
MASK_RCNN_KEY_MAPPING = {
    r"^neck\.lateral_convs\.(\d)\.conv\.": r"neck.lateral_convolutions.\1.",
    r"^neck\.fpn_convs\.(\d)\.conv\.": r"neck.output_convolutions.\1.",
    r"^neck\.lateral_convs\.(\d)\.ln\.": r"neck.lateral_norms.\1.",
    r"^neck\.fpn_convs\.(\d)\.ln\.": r"neck.output_norms.\1.",
    r"^rpn_head\.rpn_conv\.": "rpn.head.convolution.",
    r"^rpn_head\.rpn_cls\.": "rpn.head.classifier.",
    r"^rpn_head\.rpn_reg\.": "rpn.head.box_regressor.",
    r"^roi_head\.(bbox|mask)_head\.(?!\d)": r"roi_head.\1_head.0.",  # one stage has no number
    r"^roi_head\.bbox_head\.": "roi_heads.box_heads.",
    r"^roi_head\.mask_head\.": "roi_heads.mask_heads.",
    r"\.shared_convs\.(\d)\.conv\.": r".conv_layers.\1.convolution.",
    r"\.shared_convs\.(\d)\.bn\.": r".conv_layers.\1.batch_norm.",
    r"\.shared_fcs\.(\d)\.": r".fc_layers.\1.",
    r"\.fc_cls\.": ".classifier.",
    r"\.fc_reg\.": ".box_regressor.",
    r"\.convs\.(\d)\.conv\.": r".convolutions.\1.",
    r"\.conv_logits\.": ".classifier.",
}

DINO_KEY_MAPPING = {
    r"^cb_modules\.1\.gamma(\d)$": r"backbone.gammas.\1",
    r"^cb_linears\.(\d)\.1\.": r"backbone.composite_connections.\1.0.",
    r"^cb_linears\.(\d)\.2\.": r"backbone.composite_connections.\1.1.",
    r"^cb_linears\.(\d)\.3\.": r"backbone.composite_connections.\1.2.",
    r"^neck\.(?:0\.)?convs\.": "neck.projections.",
    r"^neck\.(?:0\.)?extra_convs\.": "neck.extra_projections.",
    r"^(neck\.\w+\.\d\.)conv\.": r"\1convolution.",
    r"^(neck\.\w+\.\d\.)gn\.": r"\1norm.",
    r"^bbox_head\.transformer\.level_embeds$": "encoder.level_embed.weight",
    r"^bbox_head\.transformer\.": "",
    r"^(encoder\.layers\.\d\.)attentions\.0\.": r"\1self_attn.",
    r"^(encoder\.layers\.\d\.)norms\.0\.": r"\1self_attn_layer_norm.",
    r"^(encoder\.layers\.\d\.)norms\.1\.": r"\1final_layer_norm.",
    r"\.attentions\.0\.attn\.": ".self_attn.",
    r"\.attentions\.1\.": ".encoder_attn.",
    r"\.norms\.0\.": ".self_attn_layer_norm.",
    r"\.norms\.1\.": ".encoder_attn_layer_norm.",
    r"\.norms\.2\.": ".final_layer_norm.",
    r"\.self_attn\.out_proj\.": ".self_attn.o_proj.",
    r"\.ffns\.0\.layers\.0\.0\.": ".mlp.fc1.",
    r"\.ffns\.0\.layers\.1\.": ".mlp.fc2.",
    r"\.ffns\.0\.fc2_bias$": ".mlp.fc2.bias",
    r"\.ffns\.0\.": ".mlp.",  # in G: fc1_0, ... fc1_3, fc2_0, ..., see `joined`
    r"\.ref_point_head\.0\.": ".ref_point_head.layers.0.",
    r"\.ref_point_head\.2\.": ".ref_point_head.layers.1.",
    r"^bbox_head\.cls_branches\.": "class_embed.",
    r"^bbox_head\.reg_branches\.(\d)\.0\.": r"bbox_embed.\1.layers.0.",
    r"^bbox_head\.reg_branches\.(\d)\.2\.": r"bbox_embed.\1.layers.1.",
    r"^bbox_head\.reg_branches\.(\d)\.4\.": r"bbox_embed.\1.layers.2.",
    r"^bbox_head\.label_embedding\.": "denoising_class_embed.",
}


def logits_of(model: PreTrainedModel, pixel_values: torch.Tensor) -> torch.Tensor:
    """The logits of semantic segmentation; for Mask2Former the scores of the classes."""
    return semantic_scores(model(pixel_values))


def classifier_outputs(model: InternImageForImageClassification, pixel_values: torch.Tensor) -> torch.Tensor:
    """The logits, with a date and a place if the model takes them."""
    metadata = encode_metadata(["2018-02-15"], [48.1], [11.6]) if model.config.use_metadata_head else {}
    return model(pixel_values, **metadata).logits


def feature_maps_of(backbone: InternImageBackbone, pixel_values: torch.Tensor) -> torch.Tensor:
    """The feature maps of all stages as (1, n)."""
    return torch.cat([feature_map.flatten() for feature_map in backbone(pixel_values).feature_maps])[None]


def detection_outputs(model: MaskRCNNForObjectDetection, pixel_values: torch.Tensor) -> torch.Tensor:
    """
    Outputs of the RPN, and of the box and mask heads for four fixed regions, one of each size, as (1, n). (Detections
    cannot be compared: random weights give few or none, and rounding changes which.)
    """
    feature_maps = model.neck(model.backbone(pixel_values).feature_maps)
    regions = torch.tensor([[0.0, 8.0, 4.0, 8.0 + side, 4.0 + side] for side in (20, 60, 120, 200)])
    outputs = [level for levels in model.rpn.head(feature_maps) for level in levels]
    heads = model.roi_heads
    for box_head in heads.box_heads:
        outputs += box_head(heads.box_roi_align(feature_maps, regions))
    if model.config.use_mask_head:
        outputs += [mask_head(heads.mask_roi_align(feature_maps, regions)) for mask_head in heads.mask_heads]
    return torch.cat([output.flatten() for output in outputs])[None]


def dino_outputs(model: DinoDetrForObjectDetection, pixel_values: torch.Tensor) -> torch.Tensor:
    """
    Class and box logits of every position of the encoder and of every decoder layer, for queries that start from four
    fixed boxes, as (1, n). (Whole outputs cannot be compared: where scores are nearly equal, rounding changes which
    positions become queries.)
    """
    feature_maps = model.neck(model.backbone(pixel_values).feature_maps)
    levels = DinoDetrLevels.create(feature_maps, None)
    encoded = model.encoder(feature_maps, levels)
    hidden_states = model.enc_output_norm(model.enc_output(encoded))
    outputs = [model.class_embed[-1](hidden_states), model.bbox_embed[-1](hidden_states)]
    boxes = torch.tensor([[[0.5, 0.5, size, size] for size in (0.1, 0.2, 0.4, 0.8)]], dtype=levels.valid_ratios.dtype)
    queries = model.query_embed.weight[: boxes.shape[1]][None]
    queries = torch.cat((queries, model.denoising_class_embed.weight[: boxes.shape[1]][None]), dim=1)
    decoded, _ = model.decoder(queries, boxes.repeat(1, 2, 1), encoded, levels, model.bbox_embed)
    for idx, hidden_states in enumerate(decoded):
        outputs += [model.class_embed[idx](hidden_states), model.bbox_embed[idx](hidden_states)]
    return torch.cat([output.flatten() for output in outputs])[None]


@dataclass(frozen=True)
class Head:
    """
    Args:
        model_class: Class of the converted model.
        auto_class: Auto class that loads it.
        config_class: Class of its configuration.
        backbone_prefix: Prefix of the backbone's parameters in `model_class`.
        classifier_keys: Original keys of the classifier's bias, whose length is the number of classes; the first one
            found counts.
        num_rows_without_class: 1 if the classifier has a row for the background or for no object, else 0.
        prefixes: Prefixes of the head's original keys. All other keys are the backbone's.
        unused: Prefixes of renamed parameters that `model_class` has no use for.
        key_mapping: Regular expressions from the head's original keys to those of `model_class`, applied in order.
        split: Regular expression for a renamed parameter -> names of the equal parts that its rows are split into.
        joined: Regular expression for renamed parts of a parameter, with three groups: before the number of the part,
            the number, after it -> dimension along which the parts are joined.
        backbone_config_class: Class of the backbone's configuration.
        out_features: Stages of the backbone that the head uses.
        networks: For a composite backbone, prefixes of the original keys of its networks -> what comes before
            `encoder.` in the new ones.
        computed: Buffers of `model_class` that the original does not have -> function of the configuration.
        outputs: Function of a model and normalised images that returns what is compared after the conversion,
            (batch_size, ...).
    """

    model_class: type[PreTrainedModel]
    auto_class: type
    config_class: type[PreTrainedConfig]
    backbone_prefix: str
    classifier_keys: tuple[str, ...]
    num_rows_without_class: int = 0
    prefixes: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()
    key_mapping: dict[str, str] = field(default_factory=dict)
    split: dict[str, list[str]] = field(default_factory=dict)
    joined: dict[str, int] = field(default_factory=dict)
    backbone_config_class: type[InternImageConfig] = InternImageConfig
    out_features: tuple[str, ...] = ALL_STAGES
    networks: dict[str, str] = field(default_factory=dict)
    computed: dict[str, Callable[[Any], torch.Tensor]] = field(default_factory=dict)
    outputs: Callable[[PreTrainedModel, torch.Tensor], torch.Tensor] = logits_of

    def rename_key(self, key: str) -> list[str]:
        """
        New names for an original key without the prefix `backbone.`: one, or several where the rows of the tensor are
        split: into equal parts, or as `split_offset_mask` says.
        """
        if not key.startswith(self.prefixes):
            network = next((prefix for prefix in self.networks if key.startswith(prefix)), "")
            key = key.removeprefix(network)
            for pattern, replacement in ORIGINAL_TO_CONVERTED_KEY_MAPPING.items():
                key = re.sub(pattern, replacement, key)
            if network:
                key = re.sub("^encoder", f"{self.networks[network]}encoder", key)
            key = key if key.startswith(("classifier.", "metadata_head.")) else self.backbone_prefix + key
            return [key.replace(PACKED, part) for part in PARTS] if PACKED in key else [key]
        for pattern, replacement in self.key_mapping.items():
            key = re.sub(pattern, replacement, key)
        for pattern, parts in self.split.items():
            if re.search(pattern, key):
                return [re.sub(pattern, part, key) for part in parts]
        return [key]

    def whole(self, name: str) -> tuple[str, int, int] | None:
        """For a renamed part: name of the whole parameter, number of the part, dimension along which it is joined."""
        for pattern, dim in self.joined.items():
            if match := re.search(pattern, name):
                return re.sub(pattern, r"\1\3", name), int(match[2]), dim
        return None


def _no_object_weights(config: Mask2FormerConfig) -> torch.Tensor:
    weights = torch.ones(config.num_labels + 1)
    weights[-1] = config.no_object_weight
    return weights


# The query, key and value projections that `nn.MultiheadAttention` keeps in one tensor.
_SPLIT_ATTENTION = {
    r"(decoder\.layers\.\d\.self_attn\.)in_proj_(weight|bias)$": [rf"\1{projection}_proj.\2" for projection in "qkv"]
}
_MASK_RCNN = Head(
    model_class=MaskRCNNForObjectDetection,
    auto_class=AutoModelForObjectDetection,
    config_class=MaskRCNNConfig,
    backbone_prefix="backbone.",
    classifier_keys=("roi_head.bbox_head.fc_cls.bias", "roi_head.bbox_head.0.fc_cls.bias"),
    num_rows_without_class=1,
    prefixes=("neck.", "rpn_head.", "roi_head."),
    key_mapping=MASK_RCNN_KEY_MAPPING,
    outputs=detection_outputs,
)
_DINO = Head(
    model_class=DinoDetrForObjectDetection,
    auto_class=AutoModelForObjectDetection,
    config_class=DinoDetrConfig,
    backbone_prefix="backbone.",
    classifier_keys=("bbox_head.cls_branches.0.bias",),
    prefixes=("neck.", "bbox_head.", "cb_linears.", "cb_modules.1.gamma"),
    key_mapping=DINO_KEY_MAPPING,
    split=_SPLIT_ATTENTION,
    joined={r"(\.mlp\.fc1)_(\d)(\.weight|\.bias)$": 0, r"(\.mlp\.fc2)_(\d)(\.weight)$": 1},
    out_features=ALL_STAGES[1:],
    outputs=dino_outputs,
)

HEADS: dict[str, Head] = {
    "linear classifier": Head(
        model_class=InternImageForImageClassification,
        auto_class=AutoModelForImageClassification,
        config_class=InternImageConfig,
        backbone_prefix="internimage.",
        classifier_keys=("head.bias",),
        outputs=classifier_outputs,
    ),
    BACKBONE: Head(
        model_class=InternImageBackbone,
        auto_class=InternImageBackbone,  # `AutoBackbone.from_pretrained` does not load folders
        config_class=InternImageConfig,
        backbone_prefix="",
        classifier_keys=(),
        unused=("pooler.", "classifier.", "metadata_head."),
        outputs=feature_maps_of,
    ),
    "UperNet": Head(
        model_class=UperNetForSemanticSegmentation,
        auto_class=AutoModelForSemanticSegmentation,
        config_class=UperNetConfig,
        backbone_prefix="backbone.",
        classifier_keys=("decode_head.conv_seg.bias",),
        prefixes=("decode_head.", "auxiliary_head."),
        key_mapping=UPERNET_KEY_MAPPING,
    ),
    "SegFormer head": Head(
        model_class=SegformerHeadForSemanticSegmentation,
        auto_class=AutoModelForSemanticSegmentation,
        config_class=SegformerHeadConfig,
        backbone_prefix="backbone.",
        classifier_keys=("decode_head.conv_seg.bias",),
        prefixes=("decode_head.",),
        key_mapping=SEGFORMER_HEAD_KEY_MAPPING,
    ),
    "Mask2Former": Head(
        model_class=Mask2FormerForUniversalSegmentation,
        auto_class=AutoModelForUniversalSegmentation,
        config_class=Mask2FormerConfig,
        backbone_prefix="model.pixel_level_module.encoder.",
        classifier_keys=("decode_head.cls_embed.bias",),
        num_rows_without_class=1,
        prefixes=("decode_head.",),
        key_mapping=MASK2FORMER_KEY_MAPPING,
        split=_SPLIT_ATTENTION,
        computed={"criterion.empty_weight": _no_object_weights},
    ),
    "Mask R-CNN": _MASK_RCNN,
    "Faster R-CNN": _MASK_RCNN,
    "Cascade Mask R-CNN": _MASK_RCNN,
    "Cascade R-CNN": _MASK_RCNN,
    "DINO": _DINO,
    "CB-DINO": dataclasses.replace(
        _DINO,
        backbone_config_class=CBInternImageConfig,
        networks={"cb_modules.0.": "assisting_", "cb_modules.1.": "lead_"},
    ),
}
