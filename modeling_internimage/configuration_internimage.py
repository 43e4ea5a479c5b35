# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""InternImage model configuration."""

import reprlib
from numbers import Integral
from pathlib import Path

from huggingface_hub.dataclasses import strict
from transformers.activations import ACT2FN
from transformers.backbone_utils import BackboneConfigMixin
from transformers.configuration_utils import PreTrainedConfig
from transformers.utils import logging


logger = logging.get_logger(__name__)

# Names used by the original code and the official Hub repositories, all readable and writable as attributes too.
ORIGINAL_ATTRIBUTE_NAMES = {
    "channels": "embed_dim",
    "groups": "num_groups",
    "num_classes": "num_labels",
    "act_layer": "hidden_act",
    "drop_rate": "hidden_dropout_prob",
    "layer_scale": "layer_scale_init_value",
    "dw_kernel_size": "depthwise_kernel_size",
}

# Class names, one "synset name" per line in the order of the official classifiers, by number of classes. They lie in
# the installed package; a checkpoint published with this file as remote code has its own `id2label`.
IMAGENET_LABEL_FILES = {1000: "imagenet-1k.txt", 21841: "imagenet-22k.txt"}


# Smallest and largest value of each field, also of the numbers in a list.
RANGES = {
    "num_channels": (1, 4096), "embed_dim": (2, 65536), "depths": (1, 1000), "num_groups": (1, 65536),
    "mlp_ratio": (1e-3, 1000), "hidden_dropout_prob": (0, 0.99), "drop_path_rate": (0, 0.99),
    "layer_norm_eps": (0, 1), "layer_scale_init_value": (0, 1000), "offset_scale": (0, 1000),
    "depthwise_kernel_size": (1, 255), "level2_post_norm_block_ids": (0, 999), "cls_scale": (1e-3, 1000),
    "image_size": (1, 1000000), "initializer_range": (0, 1000),
}  # fmt: skip
MAX_CHANNELS, MAX_LABELS = 65536, 1000000

# Fields that are `None` by default -> what the original's classes have for each `core_op`.
OPERATOR_DEFAULTS = {
    "DCNv3": {"depthwise_kernel_size": 3, "dcn_output_bias": True, "mlp_fc2_bias": True},
    "DCNv4": {"depthwise_kernel_size": None, "dcn_output_bias": False, "mlp_fc2_bias": False},
}

# Output size of the pooler of InternImage-H and -G, a constant of the original.
ATTENTION_POOLER_OUTPUT_SIZE = 768


def check_numbers(values: dict, ranges: dict[str, tuple[float, float]]):
    """
    Raise a `ValueError` for fields that are NaN, infinite, boolean, empty or outside `ranges`. Their types have been
    checked before; `None` is left alone.
    """
    for name, (smallest, largest) in ranges.items():
        if values[name] is None:
            continue
        numbers = values[name] if isinstance(values[name], (list, tuple)) else [values[name]]
        if numbers and isinstance(numbers[0], (list, tuple)):
            numbers = [number for own in numbers for number in own]
        are_good = all(not isinstance(number, bool) and smallest <= number <= largest for number in numbers)
        if not numbers or not are_good:
            raise ValueError(f"`{name}` must be from {smallest} to {largest}, got {reprlib.repr(values[name])}.")


def check_num_labels(num_labels: int, smallest: int = 1):
    """Raise a `ValueError` before each label gets a name."""
    is_whole = isinstance(num_labels, Integral) and not isinstance(num_labels, bool)
    if not (is_whole and smallest <= num_labels <= MAX_LABELS):
        raise ValueError(
            f"`num_labels` must be a whole number from {smallest} to {MAX_LABELS}, got {reprlib.repr(num_labels)}."
        )


def imagenet_labels(num_labels: int) -> dict[int, str] | None:
    """`id2label` of the official classifiers with that many classes, or `None` if there is none."""
    file = Path(__file__).parent / "labels" / IMAGENET_LABEL_FILES.get(num_labels, "")
    if not file.is_file():
        return None
    return {idx: line.split(" ", 1)[1] for idx, line in enumerate(file.read_text(encoding="utf-8").splitlines())}


@strict
class InternImageConfig(BackboneConfigMixin, PreTrainedConfig):
    r"""
    Configuration of [`InternImageModel`] and its variants. The defaults give InternImage-T; with `core_op="DCNv4"`
    they give FlashInternImage-T.

    The names of the original code (`channels`, `groups`, `num_classes`, `act_layer`, `drop_rate`, `layer_scale`,
    `dw_kernel_size`, `level2_post_norm`) are accepted as arguments, so that the `config.json` of the official Hub
    repositories loads as it is. What is saved always uses the names below.

    Args:
        num_channels (`int`, *optional*, defaults to 3):
            Number of input channels.
        embed_dim (`int`, *optional*, defaults to 64):
            Channels of the first stage; each later stage doubles them.
        depths (`list[int]`, *optional*, defaults to `[4, 4, 18, 4]`):
            Number of layers of each stage.
        num_groups (`list[int]`, *optional*, defaults to `[4, 8, 16, 32]`):
            Number of DCNv3 groups of each stage. A stage's channels must be divisible by its groups.
        core_op (`str`, *optional*, defaults to `"DCNv3"`):
            The operator and the projections around it: `"DCNv3"` (InternImage) or `"DCNv4"` (FlashInternImage,
            https://arxiv.org/abs/2401.06197), whose sampling weights are not normalised.
        mlp_ratio (`float`, *optional*, defaults to 4.0):
            Width of the hidden layer of each feed-forward network, relative to its input.
        hidden_act (`str`, *optional*, defaults to `"gelu"`):
            Activation function, a key of `transformers.activations.ACT2FN`.
        hidden_dropout_prob (`float`, *optional*, defaults to 0.0):
            Dropout probability after the stem and in the feed-forward networks.
        drop_path_rate (`float`, *optional*, defaults to 0.0):
            Stochastic depth rate.
        drop_path_type (`str`, *optional*, defaults to `"linear"`):
            `"linear"`: the rate grows from 0 at the first layer to `drop_path_rate` at the last; `"uniform"`: the same
            rate everywhere.
        layer_norm_eps (`float`, *optional*, defaults to 1e-6):
            Epsilon of the layer normalisations.
        layer_scale_init_value (`float`, *optional*):
            Initial value of the per-channel scale of each residual branch. `None`: no layer scale.
        offset_scale (`float`, *optional*, defaults to 1.0):
            Factor on both the regular sampling grid of DCNv3 and the learned offsets.
        dcn_output_bias (`bool`, *optional*):
            Whether the output projection around the operator has a bias. Defaults to `True` for DCNv3, `False` for
            DCNv4.
        mlp_fc2_bias (`bool`, *optional*):
            Whether the second linear layer of the feed-forward networks has a bias. Defaults as `dcn_output_bias`.
        post_norm (`bool`, *optional*, defaults to `False`):
            Normalise the output of each residual branch instead of its input.
        res_post_norm (`bool`, *optional*, defaults to `False`):
            Normalise both the input and the output of each residual branch. Without effect, as in the original, when
            `post_norm` or `layer_scale_init_value` is set.
        depthwise_kernel_size (`int`, *optional*):
            Kernel size of the depthwise convolution that feeds the offset and mask projections. Odd. Defaults to 3 for
            DCNv3; for DCNv4 to no convolution.
        center_feature_scale (`bool`, *optional*, defaults to `False`):
            Blend the DCNv3 output with its input through a learned gate per group, and normalise the output of each
            stage also with `post_norm`. With DCNv4 only the latter, as in the original.
        remove_center (`bool`, *optional*, defaults to `False`):
            Leave the central sampling point out of DCNv3.
        level2_post_norm_block_ids (`list[int]`, *optional*):
            Layers of the third stage (level 2, 0-based) after which the residual stream itself is normalised.
        use_clip_projector (`bool`, *optional*, defaults to `False`):
            Pool with CLIP-style attention over the last two stages (InternImage-H and -G) instead of convolution,
            batch normalisation and average (T to XL).
        cls_scale (`float`, *optional*, defaults to 1.5):
            Channels of the convolutional pooler relative to the last stage.
        use_metadata_head (`bool`, *optional*, defaults to `False`):
            Build the branch of the image classifier that takes the date and the place of each image (the official
            iNaturalist model). It has no effect on images that come without them.
        image_size (`int` or `list[int]`, *optional*, defaults to 224):
            Side in pixels of the images the model was trained on, or their height and width; informative, any size
            works.
        initializer_range (`float`, *optional*, defaults to 0.02):
            Standard deviation of the initial weights of linear layers.
        out_features (`list[str]`, *optional*):
            For backbones, which of `"stem"`, `"stage1"`, ... to return. Defaults to the last stage.
        out_indices (`list[int]`, *optional*):
            The same by index. Both may be given if they agree.

    Example:

    ```python
    >>> from modeling_internimage import InternImageConfig, InternImageModel

    >>> config = InternImageConfig()  # InternImage-T
    >>> config.hidden_sizes
    [64, 128, 256, 512]
    >>> model = InternImageModel(config)
    ```"""

    model_type = "internimage"
    attribute_map = ORIGINAL_ATTRIBUTE_NAMES

    num_channels: int = 3
    embed_dim: int = 64
    depths: list[int] | tuple[int, ...] = (4, 4, 18, 4)
    num_groups: list[int] | tuple[int, ...] = (4, 8, 16, 32)
    core_op: str = "DCNv3"
    mlp_ratio: float | int = 4.0
    hidden_act: str = "gelu"
    hidden_dropout_prob: float | int = 0.0
    drop_path_rate: float | int = 0.0
    drop_path_type: str = "linear"
    layer_norm_eps: float = 1e-6
    layer_scale_init_value: float | int | None = None
    offset_scale: float | int = 1.0
    dcn_output_bias: bool | None = None
    mlp_fc2_bias: bool | None = None
    post_norm: bool = False
    res_post_norm: bool = False
    depthwise_kernel_size: int | None = None
    center_feature_scale: bool = False
    remove_center: bool = False
    level2_post_norm_block_ids: list[int] | tuple[int, ...] | None = None
    use_clip_projector: bool = False
    cls_scale: float | int = 1.5
    use_metadata_head: bool = False
    image_size: int | list[int] | tuple[int, ...] = 224
    initializer_range: float = 0.02
    _out_features: list[str] | None = None
    _out_indices: list[int] | None = None

    def __post_init__(self, **kwargs):
        kwargs = self._translate_original_arguments(kwargs)
        self.depths = list(self.depths)
        self.num_groups = list(self.num_groups)
        if self.level2_post_norm_block_ids is not None:
            self.level2_post_norm_block_ids = list(self.level2_post_norm_block_ids)
        if not isinstance(self.image_size, int):
            self.image_size = list(self.image_size)
        for name, value in OPERATOR_DEFAULTS.get(self.core_op, {}).items():
            if getattr(self, name) is None:
                setattr(self, name, value)
        self.stage_names = ["stem"] + [f"stage{idx}" for idx in range(1, len(self.depths) + 1)]
        self.set_output_features_output_indices(
            out_indices=kwargs.pop("out_indices", None), out_features=kwargs.pop("out_features", None)
        )
        super().__post_init__(**kwargs)

    def _translate_original_arguments(self, kwargs: dict) -> dict:
        """Set the fields whose original names are in `kwargs`; return the arguments that are left."""
        for original_name, name in ORIGINAL_ATTRIBUTE_NAMES.items():
            if original_name in kwargs:
                value = kwargs.pop(original_name)
                if name == "num_labels":
                    kwargs.setdefault(name, value)
                else:
                    setattr(self, name, value.lower() if name == "hidden_act" else value)
        level2_post_norm = kwargs.pop("level2_post_norm", None)
        if level2_post_norm is False and self.level2_post_norm_block_ids is not None:
            logger.warning(
                f"`level2_post_norm_block_ids={self.level2_post_norm_block_ids}` is ignored, as in the original code, "
                "because `level2_post_norm=False`. Leave one of the two out."
            )
            self.level2_post_norm_block_ids = None
        elif level2_post_norm and self.level2_post_norm_block_ids is None:
            raise ValueError("`level2_post_norm=True` needs `level2_post_norm_block_ids`, a list of layer indices.")
        is_official = "norm_layer" in kwargs  # as in the `config.json` of the official repositories
        norm_layer = kwargs.pop("norm_layer", "LN")
        if norm_layer != "LN":
            raise ValueError(f"`norm_layer={norm_layer!r}` is not supported: every released InternImage uses 'LN'.")
        if is_official:
            kwargs.pop("auto_map", None)  # its remote code is not saved with the model
            if self.id2label is None and (id2label := imagenet_labels(kwargs.get("num_labels"))):
                self.id2label = id2label
                self.label2id = {label: idx for idx, label in id2label.items()}
        if self.core_op == "DCNv3_pytorch":  # the original's name for the same operator without its extension
            self.core_op = "DCNv3"
        if kwargs.pop("with_cp", False):
            logger.warning("`with_cp=True` is not a property of the model: call `gradient_checkpointing_enable()`.")
        check_num_labels(kwargs.get("num_labels", 2), smallest=0)
        return kwargs

    @classmethod
    def from_dict(cls, config_dict, **kwargs):
        model_type = config_dict.get("model_type", cls.model_type)
        if model_type != cls.model_type:
            raise ValueError(
                f"This configuration has `model_type={model_type!r}`, not {cls.model_type!r}: it does not describe an "
                "InternImage. Load it with `AutoConfig` / `AutoModel`, which choose the class by model type."
            )
        return super().from_dict(config_dict, **kwargs)

    def validate_architecture(self):
        """Raise a `ValueError` for combinations that cannot be built, warn about flags that override each other."""
        super().validate_architecture()
        if self.core_op not in OPERATOR_DEFAULTS:
            raise ValueError(
                f"`core_op={self.core_op!r}` is not supported. Choose 'DCNv3' (InternImage) or 'DCNv4' "
                "(FlashInternImage)."
            )
        check_numbers(vars(self), RANGES)
        if len(self.depths) != len(self.num_groups) or not self.depths:
            raise ValueError(
                f"`depths` and `num_groups` must have one entry per stage, got depths={self.depths} and "
                f"num_groups={self.num_groups}."
            )
        if self.embed_dim % 2:
            raise ValueError(f"`embed_dim` must be even (the stem starts with half of it), got {self.embed_dim}.")
        last_channels = self.embed_dim * 2 ** (len(self.depths) - 1)
        if last_channels > MAX_CHANNELS:
            raise ValueError(
                f"`embed_dim={self.embed_dim}` doubles at each of the {len(self.depths)} entries of `depths`: the "
                f"last stage would have more than {MAX_CHANNELS} channels."
            )
        for name, channels in (("mlp_ratio", self.embed_dim), ("cls_scale", last_channels)):
            if int(channels * getattr(self, name)) < 1:
                raise ValueError(f"`{name}={getattr(self, name)}` leaves none of {channels} channels.")
        if isinstance(self.image_size, list) and len(self.image_size) != 2:
            raise ValueError(f"`image_size` must be one number, or a height and a width, got {self.image_size}.")
        for stage, (hidden_size, groups) in enumerate(zip(self.hidden_sizes, self.num_groups), start=1):
            if hidden_size % groups:
                raise ValueError(
                    f"Stage {stage} has {hidden_size} channels, which `num_groups[{stage - 1}]={groups}` does not "
                    "divide. Change `embed_dim` or `num_groups`."
                )
        if self.hidden_act not in ACT2FN:
            raise ValueError(f"Unknown `hidden_act={self.hidden_act!r}`. Choose one of {sorted(ACT2FN)}.")
        if self.drop_path_type not in ("linear", "uniform"):
            raise ValueError(f"Unknown `drop_path_type={self.drop_path_type!r}`. Choose 'linear' or 'uniform'.")
        if self.depthwise_kernel_size is not None and self.depthwise_kernel_size % 2 == 0:
            raise ValueError(f"`depthwise_kernel_size` must be odd, got {self.depthwise_kernel_size}.")
        if self.level2_post_norm_block_ids is not None:
            third_stage_depth = self.depths[2] if len(self.depths) > 2 else 0
            if any(not 0 <= block_id < third_stage_depth for block_id in self.level2_post_norm_block_ids):
                raise ValueError(
                    f"`level2_post_norm_block_ids={self.level2_post_norm_block_ids}` must name layers of the third "
                    f"stage (level 2), which has {third_stage_depth}."
                )
        if self.use_clip_projector and len(self.depths) < 2:
            raise ValueError("`use_clip_projector=True` pools the last two stages, but `depths` has only one.")
        if self.use_clip_projector and self.core_op == "DCNv4":
            raise ValueError(
                "`use_clip_projector=True` with `core_op='DCNv4'` is not supported: the attention pooler of the "
                "original's FlashInternImage does not run, and no model has it. Leave one of the two out."
            )
        if self.res_post_norm and (self.post_norm or self.layer_scale_init_value is not None):
            winner = "layer_scale_init_value" if self.layer_scale_init_value is not None else "post_norm"
            logger.warning(f"`res_post_norm=True` has no effect, as in the original code, because `{winner}` is set.")

    @property
    def hidden_sizes(self) -> list[int]:
        """Channels of each stage."""
        return [self.embed_dim * 2**stage_idx for stage_idx in range(len(self.depths))]

    @property
    def hidden_size(self) -> int:
        """Size of `pooler_output`, which composite models as `VisionTextDualEncoderModel` project."""
        return ATTENTION_POOLER_OUTPUT_SIZE if self.use_clip_projector else int(self.hidden_sizes[-1] * self.cls_scale)

    @property
    def num_hidden_layers(self) -> int:
        """Number of stages: `hidden_states` has one entry per stage, after that of the stem."""
        return len(self.depths)


__all__ = ["InternImageConfig"]
