# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""Configuration of a segmentation model with the convolutional SegFormer head."""

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig
from transformers.configuration_utils import PreTrainedConfig, SubConfigSpec

from ..configuration_internimage import InternImageConfig, check_num_labels, check_numbers


# See `check_numbers`.
RANGES = {
    "hidden_size": (1, 65536), "classifier_dropout_prob": (0, 1), "initializer_range": (0, 1000),
    "loss_ignore_index": (-(2**31), 2**31 - 1),
}  # fmt: skip


@strict
class SegformerHeadConfig(PreTrainedConfig):
    r"""
    Configuration of [`SegformerHeadForSemanticSegmentation`]. The defaults have the head of the official InternImage-L
    and -XL models.

    Args:
        backbone_config (`PreTrainedConfig` or `dict`, *optional*):
            Configuration of any backbone of `AutoBackbone`, whose `out_features` are the feature maps that the head
            fuses, the finest first. Defaults to all four stages of InternImage-T.
        hidden_size (`int`, *optional*, defaults to 256):
            Channels of the head.
        classifier_dropout_prob (`float`, *optional*, defaults to 0.1):
            Probability that a channel is dropped before the classifier in training.
        initializer_range (`float`, *optional*, defaults to 0.02):
            Standard deviation of the initial weights of the head.
        loss_ignore_index (`int`, *optional*, defaults to 255):
            Label of pixels that the loss leaves out.

    Example:

    ```python
    >>> from modeling_internimage import InternImageConfig, SegformerHeadConfig, SegformerHeadForSemanticSegmentation

    >>> backbone_config = InternImageConfig(out_features=["stage1", "stage2", "stage3", "stage4"])
    >>> config = SegformerHeadConfig(backbone_config=backbone_config, num_labels=19)
    >>> model = SegformerHeadForSemanticSegmentation(config)
    ```"""

    model_type = "segformer_head"
    sub_configs_defaults = {
        "backbone_config": SubConfigSpec(
            config_class=AutoConfig,
            model_type=InternImageConfig.model_type,
            init_kwargs={"out_features": ["stage1", "stage2", "stage3", "stage4"]},
        ),
    }

    backbone_config: dict | PreTrainedConfig | None = None
    hidden_size: int = 256
    classifier_dropout_prob: float | int = 0.1
    initializer_range: float = 0.02
    loss_ignore_index: int = 255

    def __post_init__(self, **kwargs):
        check_num_labels(kwargs.get("num_labels", 2))
        super().__post_init__(**kwargs)

    def validate_architecture(self):
        """Raise a `ValueError` for numbers that make no model."""
        super().validate_architecture()
        check_numbers(vars(self), RANGES)


__all__ = ["SegformerHeadConfig"]
