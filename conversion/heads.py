# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""For each head on top of the backbone: the classes of the converted model and the new names of its parameters."""

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

from modeling_internimage import (
    InternImageConfig,
    InternImageForImageClassification,
    MaskRCNNConfig,
    MaskRCNNForObjectDetection,
    SegformerHeadConfig,
    SegformerHeadForSemanticSegmentation,
    encode_metadata,
    semantic_scores,
)
from modeling_internimage.modeling_internimage import ORIGINAL_TO_CONVERTED_KEY_MAPPING


ALL_STAGES = ["stage1", "stage2", "stage3", "stage4"]

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


def logits_of(model: PreTrainedModel, pixel_values: torch.Tensor) -> torch.Tensor:
    """The logits of semantic segmentation; for Mask2Former the scores of the classes."""
    return semantic_scores(model(pixel_values))


def classifier_outputs(model: InternImageForImageClassification, pixel_values: torch.Tensor) -> torch.Tensor:
    """The logits, with a date and a place if the model takes them."""
    metadata = encode_metadata(["2018-02-15"], [48.1], [11.6]) if model.config.use_metadata_head else {}
    return model(pixel_values, **metadata).logits


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
        key_mapping: Regular expressions from the head's original keys to those of `model_class`, applied in order.
        split: Regular expression for a renamed parameter -> names of the equal parts that its rows are split into.
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
    key_mapping: dict[str, str] = field(default_factory=dict)
    split: dict[str, list[str]] = field(default_factory=dict)
    computed: dict[str, Callable[[Any], torch.Tensor]] = field(default_factory=dict)
    outputs: Callable[[PreTrainedModel, torch.Tensor], torch.Tensor] = logits_of

    def rename_key(self, key: str) -> list[str]:
        """
        New names for an original key without the prefix `backbone.`: one, or several where the rows of the tensor are
        split into equal parts.
        """
        if not key.startswith(self.prefixes):
            for pattern, replacement in ORIGINAL_TO_CONVERTED_KEY_MAPPING.items():
                key = re.sub(pattern, replacement, key)
            return [key if key.startswith(("classifier.", "metadata_head.")) else self.backbone_prefix + key]
        for pattern, replacement in self.key_mapping.items():
            key = re.sub(pattern, replacement, key)
        for pattern, parts in self.split.items():
            if re.search(pattern, key):
                return [re.sub(pattern, part, key) for part in parts]
        return [key]


def _no_object_weights(config: Mask2FormerConfig) -> torch.Tensor:
    weights = torch.ones(config.num_labels + 1)
    weights[-1] = config.no_object_weight
    return weights


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

HEADS: dict[str, Head] = {
    "linear classifier": Head(
        model_class=InternImageForImageClassification,
        auto_class=AutoModelForImageClassification,
        config_class=InternImageConfig,
        backbone_prefix="internimage.",
        classifier_keys=("head.bias",),
        outputs=classifier_outputs,
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
        split={
            r"(decoder\.layers\.\d\.self_attn\.)in_proj_(weight|bias)$": [
                rf"\1{projection}_proj.\2" for projection in "qkv"
            ]
        },
        computed={"criterion.empty_weight": _no_object_weights},
    ),
    "Mask R-CNN": _MASK_RCNN,
    "Faster R-CNN": _MASK_RCNN,
    "Cascade Mask R-CNN": _MASK_RCNN,
    "Cascade R-CNN": _MASK_RCNN,
}
