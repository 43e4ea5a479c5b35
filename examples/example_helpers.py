# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""What the training and evaluation scripts of the tasks share."""

import argparse
import colorsys
import datetime
import io
import json
import logging
import os
import platform
from dataclasses import dataclass, field, fields
from pathlib import Path

import matplotlib


matplotlib.use("Agg")
import datasets
import numpy as np
import torch
import transformers
from accelerate import Accelerator
from huggingface_hub import EvalResult
from huggingface_hub.repocard_data import eval_results_to_model_index
from matplotlib import pyplot as plt
from PIL import Image
from transformers import AutoConfig, HfArgumentParser, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from examples.output_files import check_outputs
from modeling_internimage import (
    InternImageBackbone,
    InternImageConfig,
    dcnv3_implementations,
    images,
    use_dcnv3_kernel,
)
from modeling_internimage.resizing import check_num_pixels
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
        """Of every `from_pretrained`."""
        return {
            "cache_dir": self.cache_dir,
            "revision": self.model_revision,
            "token": self.token,
            "trust_remote_code": self.trust_remote_code,
        }


@dataclass
class HeadArguments(CheckpointArguments):
    """The same for models with a head of their own on InternImage."""

    backbone: str | None = field(
        default=None, metadata={"help": "InternImage checkpoint, for example a classifier, that gets a new head."}
    )
    head_overrides: dict | str | None = field(
        default=None,
        metadata={"help": "Fields of the new head's configuration, a JSON object: '{\"hidden_size\": 256}'."},
    )

    def __post_init__(self):
        if self.model_name_or_path is not None and (self.backbone or self.config_overrides or self.head_overrides):
            raise ValueError(
                "`--backbone`, `--config_overrides` and `--head_overrides` describe a new model: leave out "
                "`--model_name_or_path`."
            )
        if self.backbone is not None and self.config_overrides is not None:
            raise ValueError("`--config_overrides` describes a new backbone: leave out `--backbone`.")


@dataclass
class HeadRecipe(Recipe):
    """The recipe of such models, whose labels cannot be mixed."""

    layer_counting: str = field(
        default="downstream", metadata=next(own.metadata for own in fields(Recipe) if own.name == "layer_counting")
    )

    def __post_init__(self):
        super().__post_init__()
        if self.mixup or self.cutmix:
            raise ValueError("`--mixup` and `--cutmix` are for classification: leave them out.")


@dataclass
class DatasetArguments:
    """Which images to train and evaluate on."""

    dataset_name: str | None = field(default=None, metadata={"help": "A dataset of the Hub or a local folder of one."})
    dataset_config_name: str | None = field(default=None, metadata={"help": "Configuration of the dataset."})
    train_dir: str | None = field(default=None, metadata={"help": "Folder of images to train on."})
    validation_dir: str | None = field(default=None, metadata={"help": "The same, for evaluation."})
    train_val_split: float = field(
        default=0.15, metadata={"help": "Fraction of the training images to evaluate on if there are no others."}
    )
    max_train_samples: int | None = field(default=None, metadata={"help": "Train on this many images, to try out."})
    max_eval_samples: int | None = field(default=None, metadata={"help": "Evaluate on this many images."})
    image_column_name: str = field(default="image", metadata={"help": "Column with the images."})
    label_column_name: str = field(default="label", metadata={"help": "Column with the labels."})


def parse_dataclasses(types: tuple[type, ...], argv: list[str]) -> tuple:
    """Command line arguments, or one JSON file with all of them. The last of `types` is `TrainingArguments`."""
    parser = HfArgumentParser(types)
    if len(argv) == 1 and argv[0].endswith(".json"):
        arguments = parser.parse_json_file(json_file=os.path.abspath(argv[0]))
    else:
        arguments = parser.parse_args_into_dataclasses(argv)
    output_dir = Path(arguments[-1].output_dir)
    for folder in (output_dir, *output_dir.resolve().parents):  # said now, not after the images have been read
        if folder.exists():
            if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
                raise ValueError(f"`--output_dir {output_dir}`: {folder} is not a folder that can be written.")
            break
    return arguments


def read_overrides(overrides: dict | str | None) -> dict:
    """An object in a JSON file of arguments, or on the command line a string of one."""
    return overrides if isinstance(overrides, dict) else json.loads(overrides or "{}")


def parse_head_arguments(model_type: type, data_type: type, argv: list[str]) -> tuple:
    """Arguments of model, data, recipe and training."""
    arguments = parse_dataclasses((model_type, data_type, HeadRecipe, TrainingArguments), argv)
    if arguments[-1].label_smoothing_factor:
        raise ValueError("`--label_smoothing_factor` is for classification: leave it out.")
    if arguments[-1].n_gpu > 1:  # `DataParallel` splits lists of labels wrongly and does not synchronise batch norm
        raise ValueError(
            f"{arguments[-1].n_gpu} GPUs are seen by one process: start one for each with `accelerate launch` in the "
            "place of `python`, or choose one, CUDA_VISIBLE_DEVICES=0."
        )
    return arguments


def train_and_validation(
    splits: datasets.DatasetDict, data_args: DatasetArguments, seed: int, columns_needed: str
) -> datasets.DatasetDict:
    """
    The splits `train` and `validation`, as far as there are images for them, with the columns that the arguments name
    or a `ValueError` that ends with `columns_needed`.
    """
    evaluation = next((name for name in ("validation", "test", "valid") if name in splits), None)
    if evaluation is None and "train" not in splits:
        raise ValueError(
            f"The dataset has the splits {list(splits)}: one must be called 'train', 'validation', 'test' or 'valid'."
        )
    for column in (data_args.image_column_name, data_args.label_column_name):
        for name, split in splits.items():
            if column not in split.column_names:
                raise ValueError(
                    f"The {name} images have no column '{column}', only {split.column_names}. Name the right one with "
                    f"`--image_column_name` or `--label_column_name`{columns_needed}."
                )
    if evaluation is None and data_args.train_val_split > 0:
        splits = splits["train"].train_test_split(data_args.train_val_split, seed=seed)
        evaluation = "test"
    names = {"train": "train", "validation": evaluation}
    return datasets.DatasetDict({name: splits[source] for name, source in names.items() if source in splits})


def select_samples(splits: datasets.DatasetDict, data_args: DatasetArguments, training_args) -> datasets.DatasetDict:
    """At most as many images of each split as the arguments say; a `ValueError` if there are none where needed."""
    for name, do, limit in (
        ("train", training_args.do_train, data_args.max_train_samples),
        ("validation", training_args.do_eval, data_args.max_eval_samples),
    ):
        if do and name not in splits:
            raise ValueError(
                f"There are no {name} images, which `--do_{'train' if name == 'train' else 'eval'}` needs."
            )
        if name in splits and limit is not None:
            shuffled = splits[name].shuffle(seed=training_args.seed)
            splits[name] = shuffled.select(range(min(limit, len(shuffled))))
    return splits


def undecoded(rows, *columns: str):
    """A dataset or splits with image files, {"bytes", "path"}, in `columns`; a `ValueError` if there are none."""
    first = rows if isinstance(rows, datasets.Dataset) else next(iter(rows.values()))
    for column in columns:
        if not isinstance(first.features[column], datasets.Image):
            raise ValueError(f"Column '{column}' has values of type {first.features[column]}, it must have images.")
        rows = rows.cast_column(column, datasets.Image(decode=False))
    return rows


def image_endings() -> set[str]:
    """Of image files, in small letters. (HEIC is among them, so that an error says how to read it.)"""
    endings = {ending for ending, name in Image.registered_extensions().items() if name in Image.OPEN}
    return endings | {".heic", ".heif"}


def open_image(row: dict | None) -> Image.Image:
    """A row of an undecoded image column, {"bytes", "path"}, in the mode it is stored in. Errors name the file."""
    return images.open_image(*_source_and_subject(row))


def decode_image(row: dict | None, size=None) -> Image.Image:
    """
    The same as an RGB image of 8 bits, turned as its EXIF data says, as `pipeline` does. `size` is that of an image
    processor that has no limit of its own: images are refused that it would resize to too many pixels.
    """
    source, subject = _source_and_subject(row)
    image = images.decode_image(source, subject)
    size = dict(size or {})
    if size.get("shortest_edge") and not size.get("longest_edge"):
        factor = size["shortest_edge"] / min(image.size)
        check_num_pixels(int(image.height * factor), int(image.width * factor), f"{subject}, resized,")
    return image


def _source_and_subject(row: dict | None) -> tuple[str | io.BytesIO, str]:
    if row is None or (row["bytes"] is None and row["path"] is None):
        raise ValueError("A row of the dataset has no image: remove it.")
    source = row["path"] if row["bytes"] is None else io.BytesIO(row["bytes"])
    return source, f"The image file {row['path'] or 'embedded in the dataset'}"


def published_name(name: str) -> str:
    """Of a local folder or file only its last part: cards and reports do not tell where a user keeps them."""
    return Path(name).resolve().name if os.path.exists(name) else name


def create_backbone(model_args: HeadArguments, hub: dict) -> tuple[InternImageBackbone | None, InternImageConfig]:
    """
    The backbone that `model_args.backbone` names, with four feature maps, and its configuration; for a new one only
    the configuration.
    """
    stages = [f"stage{idx}" for idx in range(1, 5)]
    drop_path = {} if model_args.drop_path_rate is None else {"drop_path_rate": model_args.drop_path_rate}
    if model_args.backbone is None:
        overrides = read_overrides(model_args.config_overrides) | drop_path
        return None, InternImageConfig(**overrides, out_features=stages)
    config = AutoConfig.from_pretrained(model_args.backbone, **hub)
    if not isinstance(config, InternImageConfig):
        raise ValueError(
            f"`--backbone {model_args.backbone}` is a model of type {config.model_type}, it must be InternImage. "
            "(A checkpoint with heads is `--model_name_or_path`.)"
        )
    # (`AutoBackbone` does not load folders in transformers 5.22.)
    backbone = InternImageBackbone.from_pretrained(model_args.backbone, out_features=stages, **drop_path, **hub)
    return backbone, backbone.config


def freeze_stages(model, num_stages: int):
    """Exclude the stem and the first stages of the InternImage in `model` from training."""
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
    stages = internimage.encoder.stages
    if not 0 <= num_stages <= len(stages):
        raise ValueError(f"`--freeze_stages {num_stages}` must be between 0 and {len(stages)}, the number of stages.")
    for module in (internimage.embeddings, *stages[:num_stages]):
        module.requires_grad_(False)


def save_curves(log_history: list[dict], path: Path, metric: str, title: str):
    """A picture of the training loss and, by epoch, of evaluation loss and `metric`, of which 1 is the best."""

    def curve(key):
        return zip(*((entry["epoch"], entry[key]) for entry in log_history if key in entry))

    figure, (loss_axes, metric_axes) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for axes, key, label in (
        (loss_axes, "loss", "training"),
        (loss_axes, "eval_loss", "evaluation"),
        (metric_axes, f"eval_{metric}", "evaluation"),
    ):
        points = list(curve(key))
        if points:
            axes.plot(*points, label=label, marker="." if key.startswith("eval") else None)
    loss_axes.set(xlabel="epoch", ylabel="loss", title="Loss")
    metric_axes.set(xlabel="epoch", ylabel=metric.replace("_", " "), title=title, ylim=(None, 1.0))
    for axes in (loss_axes, metric_axes):
        axes.grid(alpha=0.3)
        if axes.has_data():
            axes.legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def train_and_evaluate(
    trainer: InternImageTrainer,
    data_args: DatasetArguments,
    model_name_or_path: str | None,
    task: str,
    metric: tuple[str, str],
):
    """
    Train from the last complete checkpoint on, evaluate, and write everything that a run leaves: model, metrics, a
    picture of the curves, the model card. `metric` is a name in the log and a title.
    """
    with trainer.locked_output():
        _train_and_evaluate(trainer, data_args, model_name_or_path, task, metric)


def _train_and_evaluate(trainer, data_args, model_name_or_path, task, metric):
    args = trainer.args
    if args.do_train:
        checkpoint = args.resume_from_checkpoint
        if checkpoint in (None, True, "True", "true"):
            checkpoint = get_last_checkpoint(args.output_dir) is not None
        result = trainer.train(resume_from_checkpoint=checkpoint)
        trainer.save_model()
        trainer.log_metrics("train", result.metrics)
        trainer.save_metrics("train", result.metrics)
        trainer.save_state()
        if trainer.is_world_process_zero():
            save_curves(trainer.state.log_history, Path(args.output_dir) / "training_curves.png", *metric)
    if args.do_eval:
        metrics = trainer.evaluate()
        trainer.log_metrics("eval", metrics)
        trainer.save_metrics("eval", metrics)

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


def class_colours(config) -> np.ndarray:
    """uint8 (num_labels, 3): the model's palette, or hues that are far apart for neighbouring classes."""
    palette = getattr(config, "palette", None)
    if palette is None:
        golden_ratio = 0.618034
        hues = [
            (idx * golden_ratio % 1.0, 0.9 - 0.3 * (idx % 2), 0.95 - 0.3 * (idx // 2 % 2))
            for idx in range(config.num_labels)
        ]
        palette = [[round(255 * value) for value in colorsys.hsv_to_rgb(*hue)] for hue in hues]
    return np.array(palette, dtype=np.uint8)


def evaluation_parser(description: str, data_dir: str, label_column_name: str, labels: str) -> argparse.ArgumentParser:
    """What the evaluation scripts have in common. `data_dir` and `labels` say what these are."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model_name_or_path", required=True, help="checkpoint: a folder or a Hub id")
    data = parser.add_mutually_exclusive_group(required=True)
    data.add_argument("--data_dir", help=data_dir)
    data.add_argument("--dataset_name", help="a dataset of the Hub or a local folder of one")
    parser.add_argument("--dataset_config_name", help="configuration of the dataset")
    parser.add_argument("--split", default="validation", help="split of the dataset")
    parser.add_argument("--image_column_name", default="image", help="column with the images")
    parser.add_argument("--label_column_name", default=label_column_name, help=f"column with {labels}")
    parser.add_argument("--max_samples", type=int, help="evaluate this many images, chosen at random")
    parser.add_argument("--seed", type=int, default=0, help="of the choice of --max_samples")
    parser.add_argument("--num_workers", type=int, default=min(4, os.cpu_count() or 1), help="that read images")
    parser.add_argument("--dtype", choices=["float32", "float16", "bfloat16"], default="float32", help="of the model")
    parser.add_argument("--use_kernels", action="store_true", help="run DCNv3 as a compiled kernel")
    parser.add_argument("--output", type=Path, help="JSON file for the results")
    return parser


def start_evaluation() -> Accelerator:
    """One process or several, of which the first reports."""
    accelerator = Accelerator()
    level = logging.WARNING if accelerator.is_main_process else logging.ERROR
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s", level=level)
    if not accelerator.is_main_process:  # the others have nothing else to say
        transformers.utils.logging.set_verbosity_error()
        transformers.utils.logging.disable_progress_bar()
    return accelerator


def choose_images(number: int, args) -> list[int]:
    """Indices of all `number` images, or of `--max_samples` of them."""
    if args.max_samples is None:
        return list(range(number))
    return np.random.default_rng(args.seed).permutation(number)[: args.max_samples].tolist()


def check_numbers_and_output(args, minima: dict[str, int], mark: str):
    """Raise a `ValueError` for an argument below its minimum or an `--output` that must not be written over."""
    for name, minimum in minima.items():
        value = getattr(args, name)
        if value is not None and value < minimum:
            raise ValueError(f"`--{name} {value}` must be at least {minimum}.")
    if args.output is not None:  # said now, not after hours
        check_outputs([args.output], mark)
        args.output.parent.mkdir(parents=True, exist_ok=True)


def load_split(args) -> datasets.Dataset:
    """`--split` of `--dataset_name`, which has the columns that the arguments name."""
    splits = datasets.load_dataset(args.dataset_name, args.dataset_config_name)
    return named_split(splits, args)


def named_split(splits: datasets.DatasetDict, args) -> datasets.Dataset:
    if args.split not in splits:
        raise ValueError(f"`--split {args.split}` is not in {args.dataset_name}, which has {list(splits)}.")
    rows = splits[args.split]
    for column in (args.image_column_name, args.label_column_name):
        if column not in rows.column_names:
            raise ValueError(
                f"{args.dataset_name} has no column '{column}', only {rows.column_names}. Name the right one with "
                "`--image_column_name` or `--label_column_name`."
            )
    return rows


def load_trained_model(
    model_class, model_name_or_path: str, dtype: str, device: torch.device, use_kernels: bool, part: str, config=None
):
    """A model of `model_class`, Auto class or not, in eval mode; a `ValueError` if its `part` is not trained."""
    model, info = model_class.from_pretrained(
        model_name_or_path, config=config, dtype=getattr(torch, dtype), output_loading_info=True
    )
    if info["missing_keys"]:
        raise ValueError(
            f"`--model_name_or_path {model_name_or_path}` lacks trained weights of the {part}, such as "
            f"'{sorted(info['missing_keys'])[0]}': fine-tune it first."
        )
    model = model.to(device).eval()
    return use_dcnv3_kernel(model) if use_kernels else model  # which needs to know the device


def describe_run(args, accelerator: Accelerator, model, num_images: int, seconds: float) -> dict:
    """How an evaluation ran, for its JSON file."""
    return {
        "dtype": args.dtype,
        "dcnv3": sorted(set(dcnv3_implementations(model).values())),
        "device": torch.cuda.get_device_name() if accelerator.device.type == "cuda" else accelerator.device.type,
        "processes": accelerator.num_processes,
        "seconds": round(seconds, 3),
        "images_per_second": round(num_images / seconds, 2),
        "versions": {
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "python": platform.python_version(),
        },
        "date": datetime.date.today().isoformat(),
    }


def describe_preprocessing(image_processor, names: tuple[str, ...] = ()) -> dict:
    """Settings of an image processor, and those called `names`, for a JSON file."""
    settings = image_processor.to_dict()
    resample = settings.get("resample")
    return {
        "image_processor": type(image_processor).__name__,
        "size": settings.get("size"),
        "crop_size": settings.get("crop_size") if settings.get("do_center_crop") else None,
        "resample": None if resample is None else Image.Resampling(resample).name.lower(),
        "mean": settings.get("image_mean"),
        "std": settings.get("image_std"),
    } | {name: settings.get(name) for name in names}


def create_model_index(
    args, task: str, metrics: list[tuple[str, str, float]], dataset_args: dict[str, object]
) -> list[dict]:
    """
    The `model-index` of a model card, from `metrics`: type, name and value. What is unusual about the data or the
    procedure is in `dataset_args`.
    """
    sample = {} if args.max_samples is None else {"max_samples": args.max_samples, "seed": args.seed}
    dataset = published_name(args.dataset_name or args.data_dir)
    results = [
        EvalResult(
            task_type=task,
            task_name=task.replace("-", " ").capitalize(),
            dataset_type="imagefolder" if args.dataset_name is None else dataset,
            dataset_name=dataset,
            dataset_config=args.dataset_config_name,
            dataset_split=args.split if args.data_dir is None else None,
            dataset_args=sample | dataset_args or None,
            metric_type=metric_type,
            metric_name=name,
            metric_value=value,
        )
        for metric_type, name, value in metrics
    ]
    return eval_results_to_model_index(published_name(args.model_name_or_path), results)


def describe_data(args) -> dict:
    return {
        "name": published_name(args.data_dir or args.dataset_name),
        "config": args.dataset_config_name,
        "split": args.split if args.data_dir is None else None,
        "max_samples": args.max_samples,
        "seed": args.seed if args.max_samples is not None else None,
    }
