# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""
Fine-tune InternImage, or any model of `AutoModelForImageClassification`, with the Trainer.

    python run_image_classification.py --dataset_name digits --output_dir outputs/digits --do_train --do_eval ...
    python run_image_classification.py arguments.json

The shape is that of transformers' own example of this name. README.md beside this file has complete commands.
"""

import logging
import os
import sys
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import datasets
import evaluate
import numpy as np
import torch
import transformers
from accelerate import PartialState
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForImageClassification,
    TrainingArguments,
    set_seed,
)
from transformers.utils import is_timm_available, is_torchvision_available

from examples.image_classification.digits import load_digits_dataset
from examples.image_datasets import DatasetArguments, decode_image, select_samples, train_and_validation
from examples.training import CheckpointArguments, freeze_stages, parse_dataclasses, read_overrides, train_and_evaluate
from modeling_internimage import InternImageConfig, InternImageForImageClassification, create_image_processor
from modeling_internimage.training import InternImageTrainer, Recipe


logger = logging.getLogger(__name__)

ACCURACY_METRIC = Path(__file__).parent / "metrics" / "accuracy"
RECIPES = Path(__file__).parent / "recipes"


@dataclass
class DataArguments(DatasetArguments):
    dataset_name: str | None = field(
        default=None, metadata={"help": "A dataset of the Hub or a local folder of one; 'digits' is built in."}
    )
    train_dir: str | None = field(default=None, metadata={"help": "Folder with one folder of images per class."})
    image_size: int | None = field(
        default=None, metadata={"help": "Side in pixels, if not that of the image processor or the configuration."}
    )
    min_crop_scale: float = field(
        default=0.08, metadata={"help": "Smallest part of an image that a random training crop takes; 1: no crops."}
    )
    horizontal_flip: bool = field(default=True, metadata={"help": "Mirror half of the training images."})
    auto_augment: str | None = field(
        default=None, metadata={"help": "Augmentation policy of timm, 'rand-m9-mstd0.5-inc1' for the authors."}
    )
    color_jitter: float | None = field(
        default=None, metadata={"help": "Strength of colour jitter, 0.4 for the authors; `auto_augment` replaces it."}
    )
    random_erasing: float = field(
        default=0.0, metadata={"help": "Probability of erasing a part of an image, 0.25 for the authors."}
    )
    skip_corrupt: bool = field(
        default=False, metadata={"help": "Leave out images that cannot be read, and say how many (reads all first)."}
    )

    def __post_init__(self):
        if self.dataset_name is None and self.train_dir is None and self.validation_dir is None:
            raise ValueError(
                "No images: give `--dataset_name` (a Hub dataset, or 'digits', which needs no download), or "
                "`--train_dir` and/or `--validation_dir` (one folder of images per class)."
            )


@dataclass
class RecipeArguments(Recipe):
    base_learning_rate: float | None = field(
        default=None, metadata={"help": "Learning rate for 512 images per step: sets `learning_rate` in proportion."}
    )


def parse_arguments(argv: list[str]) -> tuple[CheckpointArguments, DataArguments, RecipeArguments, TrainingArguments]:
    """Command line arguments, or one JSON file with all of them."""
    return parse_dataclasses((CheckpointArguments, DataArguments, RecipeArguments, TrainingArguments), argv)


def load_images(data_args: DataArguments, model_args: CheckpointArguments, seed: int) -> datasets.DatasetDict:
    """
    The splits `train` and `validation`, as far as there are images for them, with undecoded images: what cannot be
    decoded is reported later, by name.
    """
    if data_args.dataset_name == "digits":
        splits = load_digits_dataset()
    elif data_args.dataset_name is not None:
        splits = datasets.load_dataset(
            data_args.dataset_name,
            data_args.dataset_config_name,
            cache_dir=model_args.cache_dir,
            token=model_args.token,
        )
    else:
        folders = {"train": data_args.train_dir, "validation": data_args.validation_dir}
        for argument, folder in (("--train_dir", data_args.train_dir), ("--validation_dir", data_args.validation_dir)):
            if folder is not None and not os.path.isdir(folder):
                raise ValueError(f"`{argument} {folder}` is not a folder.")
            for class_folder in sorted(Path(folder).iterdir()) if folder is not None else []:
                if class_folder.is_dir() and not any(class_folder.iterdir()):
                    raise ValueError(f"The class folder {class_folder} is empty. Add images, or remove it.")
        files = {name: os.path.join(folder, "**") for name, folder in folders.items() if folder is not None}
        splits = datasets.load_dataset("imagefolder", data_files=files, cache_dir=model_args.cache_dir)
    needed = "; a folder of images needs one folder per class"
    splits = train_and_validation(splits, data_args, seed, needed)
    splits = splits.cast_column(data_args.image_column_name, datasets.Image(decode=False))
    if data_args.skip_corrupt:
        splits = leave_out_corrupt_images(splits, data_args.image_column_name)
    return encode_labels(splits, data_args.label_column_name)


def leave_out_corrupt_images(splits: datasets.DatasetDict, column: str) -> datasets.DatasetDict:
    """The images that can be read; the others are named and counted in the log."""

    def is_readable(row):
        try:
            decode_image(row[column])
            return True
        except ValueError as error:
            logger.warning(str(error))
            return False

    readable = splits.filter(is_readable, desc="Reading all images")
    for name, split in splits.items():
        if skipped := len(split) - len(readable[name]):
            logger.warning(f"{skipped} of {len(split)} {name} images were left out: they cannot be read.")
    return readable


def encode_labels(splits: datasets.DatasetDict, column: str) -> datasets.DatasetDict:
    """Make the labels a `ClassLabel`, the same for all splits, whatever they were."""
    first = next(iter(splits.values()))
    if isinstance(first.features[column], datasets.ClassLabel):
        names = first.features[column].names
        for name, split in splits.items():
            if split.features[column].names != names:
                raise ValueError(
                    f"The {name} images have the classes {split.features[column].names}, the others {names}. Training "
                    "and evaluation need the same classes (folders) in the same order."
                )
            for label in split.unique(column):
                if label is None or not 0 <= label < len(names):
                    raise ValueError(f"The {name} images have the label {label}, outside of [0, {len(names)}).")
        check_classes_are_trained(splits, column, names)
        return splits
    values = [value for split in splits.values() for value in split.unique(column)]
    if any(value is None or value != value for value in values):
        raise ValueError(f"Column '{column}' has missing labels (NaN or null). Remove those images.")
    classes = datasets.ClassLabel(names=[str(value) for value in sorted(set(values))])
    splits = splits.map(lambda row: {column: str(row[column])}).cast_column(column, classes)
    check_classes_are_trained(splits, column, classes.names)
    return splits


def check_classes_are_trained(splits: datasets.DatasetDict, column: str, names: list[str]):
    """Raise a `ValueError` for classes that only the validation images have: folders of another name, usually."""
    if len(splits) == 2:
        unknown = sorted(set(splits["validation"].unique(column)) - set(splits["train"].unique(column)))
        if unknown:
            raise ValueError(
                f"The validation images have classes without a training image: {[names[label] for label in unknown]}. "
                "Training and evaluation need the same classes (folders)."
            )


class TrainTransform:
    """timm's augmentation, as the authors use it; without timm the image processor's own preprocessing."""

    def __init__(self, image_processor, data_args: DataArguments):
        self.image_processor = image_processor
        self.image_column = data_args.image_column_name
        self.augmentation = None
        if is_timm_available() and is_torchvision_available():
            from timm.data import create_transform

            crop = image_processor.crop_size or image_processor.size
            self.augmentation = create_transform(
                (crop["height"], crop["width"]),
                is_training=True,
                scale=(data_args.min_crop_scale, 1.0),
                hflip=0.5 if data_args.horizontal_flip else 0.0,
                color_jitter=data_args.color_jitter,
                auto_augment=data_args.auto_augment,
                interpolation="bicubic",
                mean=tuple(image_processor.image_mean),
                std=tuple(image_processor.image_std),
                re_prob=data_args.random_erasing,
                re_mode="pixel",
            )
        elif data_args.auto_augment or data_args.color_jitter or data_args.random_erasing:
            raise ImportError('Augmentation needs timm and torchvision: pip install ".[train,vision]".')
        else:
            logger.warning("timm or torchvision is not installed: training without random crops and flips.")

    def __call__(self, batch: dict) -> dict:
        size = None if self.augmentation is not None else self.image_processor.size
        images = [decode_image(row, size) for row in batch[self.image_column]]
        if self.augmentation is not None:
            batch["pixel_values"] = [self.augmentation(image) for image in images]
        else:
            batch["pixel_values"] = self.image_processor(images, return_tensors="pt")["pixel_values"]
        return batch


class EvalTransform:
    """The image processor's preprocessing: what `pipeline` does too."""

    def __init__(self, image_processor, data_args: DataArguments):
        self.image_processor = image_processor
        self.image_column = data_args.image_column_name

    def __call__(self, batch: dict) -> dict:
        images = [decode_image(row, self.image_processor.size) for row in batch[self.image_column]]
        batch["pixel_values"] = self.image_processor(images, return_tensors="pt")["pixel_values"]
        return batch


def load_model(model_args: CheckpointArguments, data_args: DataArguments, labels: list[str]):
    """The model and its image processor: of a checkpoint, or new ones of the architecture asked for."""
    names = {
        "id2label": dict(enumerate(labels)),
        "label2id": {label: idx for idx, label in enumerate(labels)},
    }
    hub = model_args.hub_arguments()
    if model_args.model_name_or_path is None:
        overrides = read_overrides(model_args.config_overrides)
        if data_args.image_size is not None:
            overrides["image_size"] = data_args.image_size
        config = InternImageConfig(**overrides, **names)
        # Not `from_config`, which with DeepSpeed ZeRO-3 leaves the weights as PyTorch's modules start, not as ours.
        return InternImageForImageClassification(config), create_image_processor(config.image_size)
    if model_args.config_overrides is not None:
        raise ValueError("`--config_overrides` describes a new model: leave out `--model_name_or_path`.")
    if model_args.drop_path_rate is not None:
        names["drop_path_rate"] = model_args.drop_path_rate
    config = AutoConfig.from_pretrained(model_args.model_name_or_path, **names, **hub)
    model = AutoModelForImageClassification.from_pretrained(
        model_args.model_name_or_path,
        config=config,
        ignore_mismatched_sizes=model_args.ignore_mismatched_sizes,
        **hub,
    )
    image_processor = AutoImageProcessor.from_pretrained(
        model_args.image_processor_name or model_args.model_name_or_path, **hub
    )
    if data_args.image_size is not None:
        size = data_args.image_size
        image_processor.size = {"shortest_edge": size}
        image_processor.crop_size = {"height": size, "width": size}
    return model, image_processor


def collate(examples: list[dict], label_column: str) -> dict[str, torch.Tensor]:
    return {
        "pixel_values": torch.stack([example["pixel_values"] for example in examples]),
        "labels": torch.tensor([example[label_column] for example in examples]),
    }


def main(argv: list[str] | None = None):
    model_args, data_args, recipe, training_args = parse_arguments(sys.argv[1:] if argv is None else argv)
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s", level=logging.WARNING)
    transformers.utils.logging.set_verbosity(training_args.get_process_log_level())
    set_seed(training_args.seed)

    splits = load_images(data_args, model_args, training_args.seed)
    splits = select_samples(splits, data_args, training_args)
    labels = next(iter(splits.values())).features[data_args.label_column_name].names

    model, image_processor = load_model(model_args, data_args, labels)
    freeze_stages(model, model_args.freeze_stages)
    if recipe.base_learning_rate is not None:
        images_per_step = training_args.train_batch_size * training_args.gradient_accumulation_steps
        training_args.learning_rate = recipe.base_learning_rate * images_per_step * training_args.world_size / 512
    transforms = {"train": TrainTransform, "validation": EvalTransform}
    for name, split in splits.items():
        split.set_transform(transforms[name](image_processor, data_args))

    metric = evaluate.load(str(ACCURACY_METRIC))
    training_args.remove_unused_columns = False  # the transforms need the image column
    trainer = InternImageTrainer(
        model=model,
        args=training_args,
        recipe=recipe,
        train_dataset=splits["train"] if training_args.do_train else None,
        eval_dataset=splits["validation"] if training_args.do_eval else None,
        compute_metrics=lambda result: metric.compute(
            predictions=np.argmax(result.predictions, axis=1), references=result.label_ids
        ),
        processing_class=image_processor,
        data_collator=partial(collate, label_column=data_args.label_column_name),  # which workers can be sent
    )

    source = model_args.model_name_or_path
    train_and_evaluate(trainer, data_args, source, "image-classification", ("accuracy", "Accuracy"))


if __name__ == "__main__":
    main()
    PartialState().destroy_process_group()
