# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""What the training scripts share: their arguments, the backbone of a new model, and the run itself."""

import json
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path

from transformers import AutoConfig, HfArgumentParser, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from examples.image_datasets import DatasetArguments, published_name
from examples.pictures import plt
from modeling_internimage import CBInternImageBackbone, CBInternImageConfig, InternImageBackbone, InternImageConfig
from modeling_internimage.training import InternImageTrainer, Recipe


logger = logging.getLogger(__name__)


@dataclass
class CheckpointArguments:
    """Where a model to train comes from."""

    model_name_or_path: str | None = field(
        default=None,
        metadata={"help": "Checkpoint to fine-tune: a folder or a Hub id. Without it: train from scratch."},
    )
    config_overrides: dict | str | None = field(
        default=None,
        metadata={"help": 'Architecture to train from scratch, a JSON object: \'{"embed_dim": 80, "depths": ...}\'.'},
    )
    image_processor_name: str | None = field(
        default=None, metadata={"help": "Image processor, if not that of the checkpoint."}
    )
    ignore_mismatched_sizes: bool = field(
        default=True, metadata={"help": "Replace the classifier of the checkpoint if it has other classes."}
    )
    cache_dir: str | None = field(default=None, metadata={"help": "Where downloaded checkpoints are kept."})
    model_revision: str = field(default="main", metadata={"help": "Branch, tag or commit of the checkpoint."})
    token: str | None = field(default=None, metadata={"help": "Hub token, if the checkpoint needs one."})
    trust_remote_code: bool = field(default=False, metadata={"help": "Run code that comes with the checkpoint."})
    drop_path_rate: float | None = field(
        default=None, metadata={"help": "Stochastic depth rate, if not that of the checkpoint."}
    )
    freeze_stages: int = field(
        default=0, metadata={"help": "Keep the stem and this many stages as they are: faster, for small data sets."}
    )

    def hub_arguments(self) -> dict:
        """Arguments of every `from_pretrained`."""
        return {
            "cache_dir": self.cache_dir,
            "revision": self.model_revision,
            "token": self.token,
            "trust_remote_code": self.trust_remote_code,
        }


@dataclass
class HeadArguments(CheckpointArguments):
    """Where a segmentation or detection model to train comes from: a checkpoint, or a new head on a backbone."""

    backbone: str | None = field(
        default=None, metadata={"help": "InternImage checkpoint, for example a classifier, that gets a new head."}
    )
    composite_backbone: bool = field(
        default=False,
        metadata={"help": "Two of the backbone in one, CB-InternImage; at the start both are the same."},
    )
    head_overrides: dict | str | None = field(
        default=None,
        metadata={"help": "Fields of the new head's configuration, a JSON object: '{\"hidden_size\": 256}'."},
    )

    def __post_init__(self):
        new = (self.backbone, self.config_overrides, self.composite_backbone, self.head_overrides)
        if self.model_name_or_path is not None and any(new):
            raise ValueError(
                "`--backbone`, `--config_overrides`, `--composite_backbone` and `--head_overrides` describe a new "
                "model: leave out `--model_name_or_path`."
            )
        if self.backbone is not None and self.config_overrides is not None:
            raise ValueError("`--config_overrides` describes a new backbone: leave out `--backbone`.")


@dataclass
class HeadRecipe(Recipe):
    """The recipe for segmentation and detection, where labels cannot be mixed."""

    layer_counting: str = field(
        default="downstream", metadata=next(own.metadata for own in fields(Recipe) if own.name == "layer_counting")
    )

    def __post_init__(self):
        super().__post_init__()
        if self.mixup or self.cutmix:
            raise ValueError("`--mixup` and `--cutmix` are for classification: leave them out.")


# Where they are not given. (The Trainer logs every 500 steps: never, in many a fine-tuning.)
DEFAULTS = {"logging_steps": 10}


def parse_dataclasses(types: tuple[type, ...], argv: list[str]) -> tuple:
    """
    Command line arguments, or one JSON file with all of them, and `DEFAULTS`. The last of `types` is
    `TrainingArguments`.
    """
    parser = HfArgumentParser(types)
    parser.set_defaults(**DEFAULTS)
    if len(argv) == 1 and argv[0].endswith(".json"):
        arguments = parser.parse_dict(DEFAULTS | json.loads(Path(argv[0]).read_text(encoding="utf-8")))
    else:
        arguments = parser.parse_args_into_dataclasses(argv)
    output_dir = Path(arguments[-1].output_dir)
    for folder in (output_dir, *output_dir.resolve().parents):  # check it now, before images are read
        if folder.exists():
            if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
                raise ValueError(f"`--output_dir {output_dir}`: {folder} is not a folder that can be written.")
            break
    return arguments


def read_overrides(overrides: dict | str | None) -> dict:
    """Fields of a configuration: an object in a JSON file of arguments, a string on the command line."""
    return overrides if isinstance(overrides, dict) else json.loads(overrides or "{}")


def parse_head_arguments(model_type: type, data_type: type, argv: list[str]) -> tuple:
    """Arguments of model, data, recipe and training, for models with a new head."""
    arguments = parse_dataclasses((model_type, data_type, HeadRecipe, TrainingArguments), argv)
    if arguments[-1].label_smoothing_factor:
        raise ValueError("`--label_smoothing_factor` is for classification: leave it out.")
    if arguments[-1].n_gpu > 1:  # `DataParallel` splits lists of labels wrongly and does not synchronise batch norm
        raise ValueError(
            f"{arguments[-1].n_gpu} GPUs are seen by one process: start one for each with `accelerate launch` in the "
            "place of `python`, or choose one, CUDA_VISIBLE_DEVICES=0."
        )
    return arguments


def create_backbone(
    model_args: HeadArguments, hub: dict, out_features: Sequence[str] = ("stage1", "stage2", "stage3", "stage4")
) -> tuple[InternImageBackbone | CBInternImageBackbone | None, InternImageConfig]:
    """
    The backbone that `model_args.backbone` names, with these feature maps, and its configuration. Without that
    argument, `None` and the configuration of a new one.
    """
    arguments = {"out_features": list(out_features)}
    if model_args.drop_path_rate is not None:
        arguments["drop_path_rate"] = model_args.drop_path_rate
    if model_args.backbone is None:
        config_class = CBInternImageConfig if model_args.composite_backbone else InternImageConfig
        return None, config_class(**read_overrides(model_args.config_overrides) | arguments)
    config = AutoConfig.from_pretrained(model_args.backbone, **hub)
    if not isinstance(config, InternImageConfig):
        raise ValueError(
            f"`--backbone {model_args.backbone}` is a model of type {config.model_type}, it must be InternImage. "
            "(A checkpoint with heads is `--model_name_or_path`.)"
        )
    # (`AutoBackbone` does not load folders in transformers 5.22.)
    is_composite = isinstance(config, CBInternImageConfig)
    backbone_class = CBInternImageBackbone if is_composite else InternImageBackbone
    backbone = backbone_class.from_pretrained(model_args.backbone, **arguments, **hub)
    if model_args.composite_backbone and not is_composite:
        backbone = couple_two(backbone)
    return backbone, backbone.config


def couple_two(backbone: InternImageBackbone) -> CBInternImageBackbone:
    """Two copies of `backbone` in one, not coupled yet, as the gammas are 0."""
    fields = backbone.config.to_dict()
    composite = CBInternImageBackbone(CBInternImageConfig(**{**fields, "model_type": CBInternImageConfig.model_type}))
    composite.embeddings.load_state_dict(backbone.embeddings.state_dict())
    for encoder in (composite.assisting_encoder, composite.lead_encoder):
        encoder.load_state_dict(backbone.encoder.state_dict())
    return composite


def freeze_stages(model, num_stages: int):
    """Freeze the stem and the first `num_stages` stages of the InternImage, or of both in one, in `model`."""
    if num_stages == 0:
        return
    internimages = [
        module
        for module in model.modules()
        if hasattr(module, "embeddings") and isinstance(getattr(module, "config", None), InternImageConfig)
    ]
    if not internimages:
        raise ValueError(
            f"`--freeze_stages {num_stages}` is for models with an InternImage, which {type(model).__name__} of this "
            "checkpoint has not: leave it out."
        )
    internimage = internimages[0]
    if isinstance(internimage, CBInternImageBackbone):
        encoders = [internimage.assisting_encoder, internimage.lead_encoder]
    else:
        encoders = [internimage.encoder]
    if not 0 <= num_stages <= len(encoders[0].stages):
        raise ValueError(
            f"`--freeze_stages {num_stages}` must be between 0 and {len(encoders[0].stages)}, the number of stages."
        )
    for module in (internimage.embeddings, *(stage for encoder in encoders for stage in encoder.stages[:num_stages])):
        module.requires_grad_(False)


def train_and_evaluate(
    trainer: InternImageTrainer,
    data_args: DatasetArguments,
    model_name_or_path: str | None,
    task: str,
    metric: tuple[str, str],
):
    """
    Train, or resume from the last complete checkpoint, and evaluate. Save the model, metrics, a picture of the curves
    and the model card. `metric` is its name in the log and its title in the picture.
    """
    args = trainer.args
    with trainer.locked_output():
        if args.do_train:
            checkpoint = args.resume_from_checkpoint
            if checkpoint in (None, True, "True", "true"):
                checkpoint = get_last_checkpoint(args.output_dir) is not None
            result = trainer.train(resume_from_checkpoint=checkpoint)
            trainer.save_model()
            trainer.log_metrics("train", result.metrics)
            trainer.save_metrics("train", result.metrics)
            trainer.save_state()
        if args.do_eval:
            metrics = trainer.evaluate()
            trainer.log_metrics("eval", metrics)
            trainer.save_metrics("eval", metrics)
        if args.do_train and trainer.is_world_process_zero():
            path = Path(args.output_dir) / "training_curves.png"
            if not save_curves(trainer.state.log_history, path, *metric):
                logger.warning(
                    f"No {path.name}: nothing was logged in {trainer.state.global_step} steps. `--logging_steps 1` "
                    "logs every loss, `--eval_strategy epoch` evaluates after every epoch."
                )

        if model_name_or_path is None:  # else the card would say that the model was fine-tuned from one without a name
            trainer.model.config.name_or_path = args.output_dir
        is_local = model_name_or_path is None or os.path.isdir(model_name_or_path)
        card = {
            "finetuned_from": None if is_local else model_name_or_path,
            "tasks": task,
            "dataset": published_name(data_args.dataset_name or data_args.train_dir or data_args.validation_dir),
            "tags": [task, "vision"],
        }
        if args.push_to_hub:
            trainer.push_to_hub(**card)
        elif trainer.is_world_process_zero():
            trainer.create_model_card(**card)


def save_curves(log_history: list[dict], path: Path, metric: str, title: str) -> bool:
    """
    Plot the losses and `metric`, whose best value is 1, over the epochs: what was logged of them. Return `False`,
    without a picture, if nothing was.
    """

    def curves(keys: dict[str, str]) -> dict[str, list[tuple[float, float]]]:
        points = {
            label: [(entry["epoch"], entry[key]) for entry in log_history if key in entry]
            for key, label in keys.items()
        }
        return {label: own for label, own in points.items() if own}

    panels = {
        "Loss": curves({"loss": "training", "eval_loss": "evaluation"}),
        title: curves({f"eval_{metric}": "evaluation"}),
    }
    panels = {name: own for name, own in panels.items() if own}
    if not panels:
        return False
    figure, all_axes = plt.subplots(1, len(panels), figsize=(5 * len(panels), 4), layout="constrained", squeeze=False)
    for axes, (name, own) in zip(all_axes[0], panels.items()):
        for label, points in own.items():
            axes.plot(*zip(*points), label=label, marker="." if label == "evaluation" or len(points) == 1 else None)
        axes.set(xlabel="epoch", ylabel=name.lower() if name == "Loss" else name, title=name)
        if name == title:
            axes.set_ylim(None, 1.0)
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)
    return True
