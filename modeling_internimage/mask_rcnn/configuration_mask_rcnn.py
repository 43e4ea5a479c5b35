# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""Configuration of the two-stage detectors: Mask R-CNN and its cascades, with or without masks."""

from dataclasses import field

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig
from transformers.configuration_utils import PreTrainedConfig, SubConfigSpec

from ..configuration_internimage import InternImageConfig, check_num_labels, check_numbers


BOX_LOSSES = ("l1", "smooth_l1", "giou")
FPN_NORMS = (None, "layer_norm")
Numbers = list[float | int] | tuple[float | int, ...]

# See `check_numbers`.
FRACTION, WEIGHT, WIDTH, SIZE, LAYERS, NUMBER = (0, 1), (0, 1e6), (1, 65536), (1, 256), (0, 1000), (1, 10**6)
RANGES = {
    "feature_strides": (1, 65536), "hidden_size": WIDTH, "anchor_scale": (1e-3, 1e5), "anchor_ratios": (1e-3, 1e3),
    "num_proposals": NUMBER, "num_proposals_per_level": NUMBER, "num_train_proposals": NUMBER,
    "num_train_proposals_per_level": NUMBER, "proposal_nms_threshold": FRACTION, "box_head_num_conv_layers": LAYERS,
    "box_head_num_fc_layers": LAYERS, "box_head_hidden_size": WIDTH, "box_roi_size": SIZE,
    "bbox_reg_stds": (1e-6, 1e3), "mask_head_num_layers": LAYERS, "mask_roi_size": SIZE, "score_threshold": FRACTION,
    "nms_threshold": FRACTION, "max_detections": NUMBER, "rpn_positive_iou": FRACTION, "rpn_negative_iou": FRACTION,
    "rpn_num_samples": NUMBER, "rpn_smooth_l1_beta": WEIGHT, "stage_positive_ious": FRACTION,
    "roi_num_samples": NUMBER, "smooth_l1_beta": WEIGHT, "box_loss_weight": WEIGHT, "stage_loss_weights": WEIGHT,
}  # fmt: skip


@strict
class MaskRCNNConfig(PreTrainedConfig):
    r"""
    Configuration of [`MaskRCNNForObjectDetection`]. The defaults are the official Mask R-CNN models; a cascade has
    several entries in `bbox_reg_stds`, `stage_positive_ious` and `stage_loss_weights`, one per stage of refinement.

    Args:
        backbone_config (`PreTrainedConfig` or `dict`, *optional*):
            Configuration of any backbone of `AutoBackbone`, whose `out_features` are the feature maps that the
            pyramid is built on, the finest first. Defaults to all four stages of InternImage-T.
        feature_strides (`list[int]`, *optional*, defaults to `[4, 8, 16, 32]`):
            Pixels per position of these feature maps. The pyramid has one more level, at twice the last stride, that
            serves proposals only.
        hidden_size (`int`, *optional*, defaults to 256):
            Channels of the pyramid and of every convolution on it.
        fpn_norm (`str`, *optional*):
            Normalisation after every convolution of the pyramid. `"layer_norm"`: over the channels of each position,
            and the convolutions have no bias (FlashInternImage). `None`: no normalisation, and a bias.
        anchor_scale (`float`, *optional*, defaults to 8):
            Square root of the area of the anchors, in strides of their level.
        anchor_ratios (`list[float]`, *optional*, defaults to `[0.5, 1.0, 2.0]`):
            Height over width of the anchors at each position.
        num_proposals (`int`, *optional*, defaults to 1000):
            Most proposals for an image.
        num_proposals_per_level (`int`, *optional*, defaults to 1000):
            Best anchors of each level that enter non-maximum suppression.
        num_train_proposals (`int`, *optional*, defaults to 1000):
            `num_proposals` for the loss.
        num_train_proposals_per_level (`int`, *optional*, defaults to 2000):
            `num_proposals_per_level` for the loss.
        proposal_nms_threshold (`float`, *optional*, defaults to 0.7):
            Intersection over union above which the proposal with the lower score is dropped.
        box_head_num_conv_layers (`int`, *optional*, defaults to 0):
            Convolutions with batch normalisation in each box head.
        box_head_num_fc_layers (`int`, *optional*, defaults to 2):
            Linear layers that follow them.
        box_head_hidden_size (`int`, *optional*, defaults to 1024):
            Width of the linear layers.
        box_roi_size (`int`, *optional*, defaults to 7):
            Height and width of the features cut out for a box head.
        class_agnostic_boxes (`bool`, *optional*, defaults to `False`):
            Whether a box head predicts one box for all classes, not one for each.
        bbox_reg_stds (`list[list[float]]`, *optional*, defaults to `[[0.1, 0.1, 0.2, 0.2]]`):
            For each stage, the standard deviations of the deltas (dx, dy, log width, log height): the predictions are
            multiplied by them.
        use_mask_head (`bool`, *optional*, defaults to `True`):
            Whether masks are predicted, with a mask head for each stage.
        mask_head_num_layers (`int`, *optional*, defaults to 4):
            Convolutions in a mask head.
        mask_roi_size (`int`, *optional*, defaults to 14):
            Height and width of the features cut out for a mask head; masks have twice that.
        score_threshold (`float`, *optional*, defaults to 0.05):
            Smallest score of a detection, exclusive.
        nms_threshold (`float`, *optional*, defaults to 0.5):
            Intersection over union above which, of two detections of a class, the one with the lower score is dropped.
        max_detections (`int`, *optional*, defaults to 100):
            Most detections for an image.
        rpn_positive_iou (`float`, *optional*, defaults to 0.7):
            Intersection over union with an object from which an anchor is trained as that object.
        rpn_negative_iou (`float`, *optional*, defaults to 0.3):
            Intersection over union with every object below which an anchor is trained as background.
        rpn_num_samples (`int`, *optional*, defaults to 256):
            Anchors sampled for the loss in each image, at most half of them objects.
        rpn_outside_anchors (`bool`, *optional*, defaults to `True`):
            Whether anchors that reach beyond the image are trained.
        rpn_box_loss (`str`, *optional*, defaults to `"l1"`):
            `"l1"` or `"smooth_l1"`, on deltas.
        rpn_smooth_l1_beta (`float`, *optional*, defaults to 1/9):
            Difference below which that loss is quadratic.
        stage_positive_ious (`list[float]`, *optional*, defaults to `[0.5]`):
            For each stage, intersection over union from which a proposal is trained as the object it overlaps most,
            and below which it is background.
        allow_low_quality_matches (`bool`, *optional*, defaults to `True`):
            Whether the best proposal for an object is trained as that object even if it overlaps another object more.
            The region proposal network always does this with anchors.
        roi_num_samples (`int`, *optional*, defaults to 512):
            Proposals sampled for the loss in each image, at most a quarter of them objects.
        box_loss (`str`, *optional*, defaults to `"l1"`):
            `"l1"` or `"smooth_l1"`, on deltas, or `"giou"`, on boxes.
        smooth_l1_beta (`float`, *optional*, defaults to 1.0):
            Difference below which that loss is quadratic.
        box_loss_weight (`float`, *optional*, defaults to 1.0):
            Weight of the box loss of every stage.
        stage_loss_weights (`list[float]`, *optional*, defaults to `[1.0]`):
            Weight of all losses of each stage.

    Example:

    ```python
    >>> from modeling_internimage import InternImageConfig, MaskRCNNConfig, MaskRCNNForObjectDetection

    >>> backbone_config = InternImageConfig(out_features=["stage1", "stage2", "stage3", "stage4"])
    >>> config = MaskRCNNConfig(backbone_config=backbone_config, num_labels=80)
    >>> model = MaskRCNNForObjectDetection(config)
    ```"""

    model_type = "mask_rcnn"
    # Names in configurations that were saved by earlier versions.
    attribute_map = {"box_stds": "bbox_reg_stds", "match_low_quality": "allow_low_quality_matches"}
    sub_configs_defaults = {
        "backbone_config": SubConfigSpec(
            config_class=AutoConfig,
            model_type=InternImageConfig.model_type,
            init_kwargs={"out_features": ["stage1", "stage2", "stage3", "stage4"]},
        ),
    }

    backbone_config: dict | PreTrainedConfig | None = None
    feature_strides: list[int] | tuple[int, ...] = field(default_factory=lambda: [4, 8, 16, 32])
    hidden_size: int = 256
    fpn_norm: str | None = None
    anchor_scale: float | int = 8
    anchor_ratios: Numbers = field(default_factory=lambda: [0.5, 1.0, 2.0])
    num_proposals: int = 1000
    num_proposals_per_level: int = 1000
    num_train_proposals: int = 1000
    num_train_proposals_per_level: int = 2000
    proposal_nms_threshold: float | int = 0.7
    box_head_num_conv_layers: int = 0
    box_head_num_fc_layers: int = 2
    box_head_hidden_size: int = 1024
    box_roi_size: int = 7
    class_agnostic_boxes: bool = False
    bbox_reg_stds: list[Numbers] | tuple[Numbers, ...] = field(default_factory=lambda: [[0.1, 0.1, 0.2, 0.2]])
    use_mask_head: bool = True
    mask_head_num_layers: int = 4
    mask_roi_size: int = 14
    score_threshold: float | int = 0.05
    nms_threshold: float | int = 0.5
    max_detections: int = 100
    rpn_positive_iou: float | int = 0.7
    rpn_negative_iou: float | int = 0.3
    rpn_num_samples: int = 256
    rpn_outside_anchors: bool = True
    rpn_box_loss: str = "l1"
    rpn_smooth_l1_beta: float | int = 1 / 9
    stage_positive_ious: Numbers = field(default_factory=lambda: [0.5])
    allow_low_quality_matches: bool = True
    roi_num_samples: int = 512
    box_loss: str = "l1"
    smooth_l1_beta: float | int = 1.0
    box_loss_weight: float | int = 1.0
    stage_loss_weights: Numbers = field(default_factory=lambda: [1.0])

    def __post_init__(self, **kwargs):
        for name in ("feature_strides", "anchor_ratios", "stage_positive_ious", "stage_loss_weights"):
            setattr(self, name, list(getattr(self, name)))
        self.bbox_reg_stds = list(map(list, self.bbox_reg_stds))
        check_num_labels(kwargs.get("num_labels", 2))
        super().__post_init__(**kwargs)

    def validate_architecture(self):
        """Raise a `ValueError` for combinations that make no model."""
        super().validate_architecture()
        check_numbers(vars(self), RANGES)
        if not len(self.bbox_reg_stds) == len(self.stage_positive_ious) == len(self.stage_loss_weights) > 0:
            raise ValueError(
                "`bbox_reg_stds`, `stage_positive_ious` and `stage_loss_weights` must have one entry per stage of "
                f"refinement, got {self.bbox_reg_stds}, {self.stage_positive_ious} and {self.stage_loss_weights}."
            )
        if any(len(stds) != 4 for stds in self.bbox_reg_stds):
            raise ValueError(f"`bbox_reg_stds` must have four numbers for each stage, got {self.bbox_reg_stds}.")
        if self.rpn_negative_iou > self.rpn_positive_iou:
            raise ValueError(
                "An anchor cannot be background and an object: `rpn_negative_iou` must be at most `rpn_positive_iou`, "
                f"got {self.rpn_negative_iou} and {self.rpn_positive_iou}."
            )
        if self.fpn_norm not in FPN_NORMS:
            raise ValueError(f"Unknown `fpn_norm={self.fpn_norm!r}`. Choose one of {FPN_NORMS}.")
        if self.rpn_box_loss not in BOX_LOSSES[:2]:
            raise ValueError(f"Unknown `rpn_box_loss={self.rpn_box_loss!r}`. Choose one of {BOX_LOSSES[:2]}.")
        if self.box_loss not in BOX_LOSSES:
            raise ValueError(f"Unknown `box_loss={self.box_loss!r}`. Choose one of {BOX_LOSSES}.")


__all__ = ["MaskRCNNConfig"]
