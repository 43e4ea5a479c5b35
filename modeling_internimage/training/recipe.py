# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""The authors' training recipe, as far as `TrainingArguments` does not describe it."""

from dataclasses import dataclass, field

from .optimization import LAYER_COUNTINGS


# Fields that change the learning rate or the weight decay of some parameters: arguments of `create_parameter_groups`.
GROUP_FIELDS = (
    "layer_decay", "deformable_multiplier", "backbone_multiplier", "sampling_offset_multiplier", "decay_all"
)  # fmt: skip


@dataclass
class Recipe:
    """What distinguishes a training run of the authors from the Trainer's defaults."""

    layer_decay: float = field(
        default=1.0, metadata={"help": "Ratio of the learning rates of neighbouring layers; 1: all equal."}
    )
    deformable_multiplier: float = field(
        default=1.0,
        metadata={"help": "Factor on the learning rate of DCNv3's offsets and gates, of DCNv4's offsets and masks."},
    )
    backbone_multiplier: float = field(
        default=1.0, metadata={"help": "Factor on the learning rate of the backbone, 0.1 in a recipe of DINO-L."}
    )
    sampling_offset_multiplier: float = field(
        default=1.0,
        metadata={
            "help": "Factor on the learning rate of the sampling offsets of deformable attention, 0.001 in the "
            "recipes of DINO-H and G."
        },
    )
    decay_all: bool = field(default=False, metadata={"help": "Weight decay on biases and norms too."})
    layer_counting: str = field(
        default="classification",
        metadata={
            "help": "How `layer_decay` counts layers: as the authors do in classification, or in segmentation and "
            "detection ('downstream').",
            "choices": list(LAYER_COUNTINGS),
        },
    )
    ema_decay: float | None = field(
        default=None, metadata={"help": "Average the weights with this decay per step, 0.9999 for the authors."}
    )
    mixup: float = field(default=0.0, metadata={"help": "Parameter of mixup, 0.8 for the authors; 0: none."})
    cutmix: float = field(
        default=0.0, metadata={"help": "Parameter of cutmix, 1.0 for the authors; 0: none. With both, each at random."}
    )
    lr_milestones: list[float] | None = field(
        default=None,
        metadata={
            "help": "Parts of the training from which on the learning rate is a tenth of what it was: 8/12 and 11/12 "
            "for the authors' detectors, 0.66667 0.91667. An empty list in a JSON file: constant after the warm-up. "
            "In place of `lr_scheduler_type`."
        },
    )
    lr_cosine: list[float] | None = field(
        default=None,
        metadata={
            "help": "The authors' cosine schedule of classifiers: its first and its lowest learning rate, the same "
            "for all parameters, as parts of `learning_rate`, 0.001 0.01. In place of `lr_scheduler_type`."
        },
    )

    def __post_init__(self):
        if self.lr_cosine is not None and (self.lr_milestones is not None or len(self.lr_cosine) != 2):
            raise ValueError(
                "`lr_cosine` must be two numbers, the first and the lowest rate, and excludes `lr_milestones`; got "
                f"{self.lr_cosine} and lr_milestones={self.lr_milestones}."
            )
