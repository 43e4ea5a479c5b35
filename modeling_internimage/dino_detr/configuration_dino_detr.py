# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""Configuration of the DINO detector (DETR with improved denoising anchor boxes)."""

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig
from transformers.activations import ACT2FN
from transformers.configuration_utils import PreTrainedConfig, SubConfigSpec

from ..configuration_internimage import InternImageConfig, check_num_labels, check_numbers


# See `check_numbers`.
LAYERS, POINTS, FRACTION, WEIGHT, WIDTH, NUMBER = (1, 100), (1, 64), (0, 1), (0, 1e6), (1, 65536), (1, 10**6)
RANGES = {
    "d_model": WIDTH, "encoder_layers": LAYERS, "encoder_ffn_dim": WIDTH, "encoder_attention_heads": WIDTH,
    "encoder_n_points": POINTS, "decoder_layers": LAYERS, "decoder_ffn_dim": WIDTH, "decoder_attention_heads": WIDTH,
    "decoder_n_points": POINTS, "num_feature_levels": (1, 16), "num_queries": NUMBER, "dropout": FRACTION,
    "attention_dropout": FRACTION, "activation_dropout": FRACTION, "max_detections": NUMBER,
    "num_denoising": NUMBER, "label_noise_ratio": FRACTION, "box_noise_scale": WEIGHT, "class_cost": WEIGHT,
    "bbox_cost": WEIGHT, "giou_cost": WEIGHT, "class_loss_coefficient": WEIGHT, "bbox_loss_coefficient": WEIGHT,
    "giou_loss_coefficient": WEIGHT, "focal_alpha": FRACTION, "assisting_loss_coefficient": WEIGHT,
}  # fmt: skip
# Group normalisation of the neck, a constant of the original.
NUM_NORM_GROUPS = 32


@strict
class DinoDetrConfig(PreTrainedConfig):
    r"""
    Configuration of [`DinoDetrForObjectDetection`]. The defaults are the official DINO on InternImage-T. Field names
    are those of [`~transformers.DeformableDetrConfig`] and [`~transformers.RTDetrConfig`].

    Args:
        backbone_config (`PreTrainedConfig` or `dict`, *optional*):
            Configuration of any backbone of `AutoBackbone`, whose `out_features` are the finer levels, the finest
            first. Defaults to the last three stages of InternImage-T.
        d_model (`int`, *optional*, defaults to 256):
            Width of the transformer: at least 64, a multiple of 32 and of the numbers of heads.
        encoder_layers (`int`, *optional*, defaults to 6), decoder_layers (`int`, *optional*, defaults to 6):
            Number of layers.
        encoder_ffn_dim (`int`, *optional*, defaults to 2048), decoder_ffn_dim (`int`, *optional*, defaults to 2048):
            Width of the feed-forward networks.
        encoder_attention_heads (`int`, *optional*, defaults to 8), decoder_attention_heads (`int`, *optional*,
            defaults to 8): Attention heads.
        encoder_n_points (`int`, *optional*, defaults to 4), decoder_n_points (`int`, *optional*, defaults to 4):
            Sampling points for each head and level of the deformable attention.
        num_feature_levels (`int`, *optional*, defaults to 4):
            Levels that the transformer sees: the maps of the backbone, then convolutions of stride 2 on the last.
        num_queries (`int`, *optional*, defaults to 900):
            Object queries. An image with fewer positions than that on all levels has as many queries as positions.
        activation_function (`str`, *optional*, defaults to `"relu"`):
            Activation of the feed-forward networks.
        dropout (`float`, *optional*, defaults to 0.0), attention_dropout (`float`, *optional*, defaults to 0.0),
            activation_dropout (`float`, *optional*, defaults to 0.0): Dropout in the transformer.
        max_detections (`int`, *optional*, defaults to 100):
            Most detections for an image. This is a setting of the image processor, which is made with this number by
            conversion and training; the official models return 300, those on T 100.
        auxiliary_loss (`bool`, *optional*, defaults to `True`):
            Whether the earlier decoder layers are trained directly too.
        num_denoising (`int`, *optional*, defaults to 100):
            Denoising queries of each kind, positive and negative, in training: the number of groups is this over the
            largest number of objects in an image, at least 1. The official value is 1000 for H and G.
        label_noise_ratio (`float`, *optional*, defaults to 0.5):
            Half of this part of the denoising queries gets a random class.
        box_noise_scale (`float`, *optional*, defaults to 1.0):
            Largest shift of a corner of a positive denoising box, in halves of the size of the box; up to twice that
            for a negative one.
        class_cost (`float`, *optional*, defaults to 2.0), bbox_cost (`float`, *optional*, defaults to 5.0),
            giou_cost (`float`, *optional*, defaults to 2.0): Weights of the matching costs.
        class_loss_coefficient (`float`, *optional*, defaults to 1.0), bbox_loss_coefficient (`float`, *optional*,
            defaults to 5.0), giou_loss_coefficient (`float`, *optional*, defaults to 2.0): Weights of the losses.
        focal_alpha (`float`, *optional*, defaults to 0.25):
            Weight of the positive examples in the focal loss.
        assisting_loss_coefficient (`float`, *optional*, defaults to 0.5):
            With [`CBInternImageBackbone`], weight of the losses on the maps of its assisting network.

    Example:

    ```python
    >>> from modeling_internimage import DinoDetrConfig, DinoDetrForObjectDetection, InternImageConfig

    >>> backbone_config = InternImageConfig(out_features=["stage2", "stage3", "stage4"])
    >>> model = DinoDetrForObjectDetection(DinoDetrConfig(backbone_config=backbone_config, num_labels=80))
    ```"""

    model_type = "dino_detr"
    attribute_map = {"hidden_size": "d_model", "num_attention_heads": "encoder_attention_heads"}
    # A Trainer keeps the other outputs of all evaluated images in memory.
    keys_to_ignore_at_inference = [
        "auxiliary_outputs",
        "last_hidden_state",
        "init_reference_points",
        "intermediate_reference_points",
        "encoder_last_hidden_state",
        "enc_outputs_class",
        "enc_outputs_coord_logits",
        "hidden_states",
    ]
    sub_configs_defaults = {
        "backbone_config": SubConfigSpec(
            config_class=AutoConfig,
            model_type=InternImageConfig.model_type,
            init_kwargs={"out_features": ["stage2", "stage3", "stage4"]},
        ),
    }

    backbone_config: dict | PreTrainedConfig | None = None
    d_model: int = 256
    encoder_layers: int = 6
    encoder_ffn_dim: int = 2048
    encoder_attention_heads: int = 8
    encoder_n_points: int = 4
    decoder_layers: int = 6
    decoder_ffn_dim: int = 2048
    decoder_attention_heads: int = 8
    decoder_n_points: int = 4
    num_feature_levels: int = 4
    num_queries: int = 900
    activation_function: str = "relu"
    dropout: float | int = 0.0
    attention_dropout: float | int = 0.0
    activation_dropout: float | int = 0.0
    max_detections: int = 100
    auxiliary_loss: bool = True
    num_denoising: int = 100
    label_noise_ratio: float | int = 0.5
    box_noise_scale: float | int = 1.0
    class_cost: float | int = 2.0
    bbox_cost: float | int = 5.0
    giou_cost: float | int = 2.0
    class_loss_coefficient: float | int = 1.0
    bbox_loss_coefficient: float | int = 5.0
    giou_loss_coefficient: float | int = 2.0
    focal_alpha: float | int = 0.25
    assisting_loss_coefficient: float | int = 0.5
    # A field of Deformable DETR, whose layers this model uses.
    disable_custom_kernels: bool = False

    def __post_init__(self, **kwargs):
        check_num_labels(kwargs.get("num_labels", 2))
        super().__post_init__(**kwargs)

    def validate_architecture(self):
        """Raise a `ValueError` for combinations that make no model."""
        super().validate_architecture()
        check_numbers(vars(self), RANGES)
        for name in ("encoder_attention_heads", "decoder_attention_heads"):
            if self.d_model % getattr(self, name):
                raise ValueError(f"`{name}={getattr(self, name)}` must divide `d_model={self.d_model}`.")
        if self.d_model % NUM_NORM_GROUPS or self.d_model == NUM_NORM_GROUPS:
            raise ValueError(
                f"`d_model={self.d_model}` must be a multiple of {NUM_NORM_GROUPS}, the number of groups of the "
                "neck's norms, and more than that."
            )
        if self.activation_function not in ACT2FN:
            raise ValueError(
                f"Unknown `activation_function={self.activation_function!r}`. Choose one of {sorted(ACT2FN)}."
            )


__all__ = ["DinoDetrConfig"]
