# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""Datasets of images: their splits and columns, and image files that are decoded where they are needed."""

import io
import os
from dataclasses import dataclass, field
from pathlib import Path

import datasets
from PIL import Image

from modeling_internimage import images
from modeling_internimage.images import image_endings  # noqa: F401  (imported from here)


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


def train_and_validation(
    splits: datasets.DatasetDict, data_args: DatasetArguments, seed: int, columns_needed: str
) -> datasets.DatasetDict:
    """
    The splits `train` and `validation`, where there are images for them. Raises a `ValueError`, which ends with
    `columns_needed`, if a column that the arguments name is missing.
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
    """Limit each split to the number of images in the arguments. Raises a `ValueError` for a split that is missing."""
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


def load_split(args) -> datasets.Dataset:
    """The split `--split` of the dataset `--dataset_name`. Raises a `ValueError` if a column is missing."""
    return named_split(datasets.load_dataset(args.dataset_name, args.dataset_config_name), args)


def named_split(splits: datasets.DatasetDict, args) -> datasets.Dataset:
    """As [`load_split`], of a dataset that is loaded already."""
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


def undecoded(rows, *columns: str):
    """
    A dataset or splits whose image columns give files, {"bytes", "path"}, instead of decoded images. Raises a
    `ValueError` for a column without images.
    """
    first = rows if isinstance(rows, datasets.Dataset) else next(iter(rows.values()))
    for column in columns:
        if not isinstance(first.features[column], datasets.Image):
            raise ValueError(f"Column '{column}' has values of type {first.features[column]}, it must have images.")
        rows = rows.cast_column(column, datasets.Image(decode=False))
    return rows


def open_image(row: dict | None) -> Image.Image:
    """Open a value of an undecoded image column, {"bytes", "path"}, in the mode of the file. Errors name the file."""
    return images.open_image(*_source_and_subject(row))


def decode_image(row: dict | None, size=None) -> Image.Image:
    """
    Decode a value of an undecoded image column to an RGB image of 8 bits and turn it as its EXIF data says, like
    `pipeline`. With the `size` of an image processor, refuse an image that would be resized to too many pixels.
    """
    return images.decode_image(*_source_and_subject(row), size)


def _source_and_subject(row: dict | None) -> tuple[str | io.BytesIO, str]:
    if row is None or (row["bytes"] is None and row["path"] is None):
        raise ValueError("A row of the dataset has no image: remove it.")
    source = row["path"] if row["bytes"] is None else io.BytesIO(row["bytes"])
    return source, f"The image file {row['path'] or 'embedded in the dataset'}"


def published_name(name: str) -> str:
    """The name of a local folder or file without its path, which is private; the name of a Hub repository as it is."""
    return Path(name).resolve().name if os.path.exists(name) else name
