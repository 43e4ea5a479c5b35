# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""
Top-1 and top-5 accuracy of InternImage, or any model of `AutoModelForImageClassification`, on labelled images.

    python -m examples.image_classification.evaluate_accuracy --model_name_or_path OpenGVLab/internimage_t_1k_224 \\
        --data_dir imagenet/val --batch_size 64 --dtype bfloat16 --output results.json
    accelerate launch -m examples.image_classification.evaluate_accuracy ...

The second form uses every GPU (`torchrun --nproc_per_node 2` in place of `accelerate launch`: any number of processes,
also on a CPU). Preprocessing is that of the checkpoint's image processor. `--dataset_name digits`
is built in. With `--metadata_columns date latitude longitude`, a model with `use_metadata_head` (iNaturalist) is also
given the date and the place of each image.
"""

import argparse
import glob
import logging
import os
import re
import time
from collections import Counter
from pathlib import Path

import datasets
import torch
import transformers
from accelerate import Accelerator, PartialState
from accelerate.utils import gather_object
from tqdm import tqdm
from transformers import AutoImageProcessor, AutoModelForImageClassification

from examples.evaluation import (
    check_numbers_and_output,
    choose_images,
    create_model_index,
    describe_data,
    describe_preprocessing,
    describe_run,
    evaluation_parser,
    load_trained_model,
    start_evaluation,
)
from examples.image_classification.digits import load_digits_dataset
from examples.image_datasets import decode_image, image_endings, load_split, named_split, published_name
from examples.output_files import mark_of, write_json
from modeling_internimage import encode_metadata


logger = logging.getLogger(__name__)

MARK = mark_of(__file__)
CORRUPT = -1  # in place of the label of an image that cannot be decoded


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = evaluation_parser(__doc__, "folder with one folder of images per class", "label", "the labels")
    parser.add_argument("--skip_corrupt", action="store_true", help="leave corrupt images out and count them")
    parser.add_argument("--batch_size", type=int, default=32, help="images at once, in each process")
    parser.add_argument(
        "--metadata_columns",
        nargs=3,
        metavar=("DATE", "LATITUDE", "LONGITUDE"),
        help="columns for a model that takes date and place: ISO dates, degrees; empty where unknown",
    )
    args = parser.parse_args(argv)
    if args.metadata_columns and args.data_dir is not None:
        raise ValueError(
            "`--metadata_columns` needs `--dataset_name`: a folder of classes has no such columns. A folder with the "
            "images and a `metadata.csv` (file_name, label, date, latitude, longitude) is a dataset that has them."
        )
    check_numbers_and_output(args, {"batch_size": 1, "num_workers": 0, "max_samples": 1}, MARK)
    return args


def list_image_folder(folder: str, image_column: str, label_column: str) -> datasets.Dataset:
    """
    The images below each class folder, in the order of their names. (The `imagefolder` of `datasets` knows no class
    without images and no data with a single class.)
    """
    if not os.path.isdir(folder):
        raise ValueError(f"`--data_dir {folder}` is not a folder.")
    classes = sorted(path.name for path in Path(folder).iterdir() if path.is_dir() and path.name[0] != ".")
    if not classes:
        raise ValueError(f"`--data_dir {folder}` has no folders in it, it must have one folder of images per class.")
    endings = image_endings()
    images, labels = [], []
    for label, name in enumerate(classes):
        files = glob.glob(os.path.join(glob.escape(os.path.join(folder, name)), "**"), recursive=True)
        files = sorted(file for file in files if os.path.splitext(file)[1].lower() in endings)
        images += files
        labels += [label] * len(files)
    features = {image_column: datasets.Image(decode=False), label_column: datasets.ClassLabel(names=classes)}
    return datasets.Dataset.from_dict(
        {image_column: images, label_column: labels}, features=datasets.Features(features)
    )


def load_rows(args: argparse.Namespace) -> datasets.Dataset:
    """Undecoded images, {"bytes", "path"}, and labels: a `ClassLabel`, class names or class indices."""
    if args.data_dir is not None:
        rows = list_image_folder(args.data_dir, args.image_column_name, args.label_column_name)
    else:
        is_digits = args.dataset_name == "digits"
        rows = named_split(load_digits_dataset(), args) if is_digits else load_split(args)
        rows = rows.cast_column(args.image_column_name, datasets.Image(decode=False))
    if len(rows) == 0:
        raise ValueError(f"There are no images in {args.data_dir or f'{args.dataset_name}, split {args.split}'}.")
    return rows


def class_indices(names: list[str], config: transformers.PreTrainedConfig) -> list[int]:
    """
    The model's index of each class of the data: by name if the model knows them all, else by position.

    Raises:
        `ValueError`: if neither the names nor the number of classes fit, or if some names do and are elsewhere.
    """
    meanings = Counter((config.id2label or {}).values())  # two of ImageNet's classes are called "crane"
    known = {name: int(idx) for name, idx in (config.label2id or {}).items() if meanings[name] < 2}
    unknown = [name for name in names if name not in known]
    if not unknown:
        return [known[name] for name in names]
    if len(names) != config.num_labels:
        raise ValueError(
            f"The data has {len(names)} classes and the model {config.num_labels}, and '{unknown[0]}' is not the name "
            "of one class in the model's `label2id`: evaluate on the model's classes, or give these their names there."
        )
    positions = list(range(len(names)))
    if len(names) == 1000 and all(re.fullmatch(r"n\d{8}", name) for name in names) and names == sorted(names):
        return positions  # ImageNet-1k: every model has its classes in the order of the synsets
    for idx, name in enumerate(names):
        if known.get(name, idx) != idx:
            raise ValueError(
                f"The data's class {idx}, '{name}', is the model's class {known[name]}, but '{unknown[0]}' is not in "
                "its `label2id`: give all classes the names that they have there."
            )
    logger.warning(
        f"{len(unknown)} of the data's {len(names)} class names, such as '{unknown[0]}', are not in the model's "
        f"`label2id`: the classes are taken to be in the model's order, '{names[0]}' as '{config.id2label[0]}', "
        f"'{names[-1]}' as '{config.id2label[len(names) - 1]}'."
    )
    return positions


def model_labels(rows: datasets.Dataset, column: str, config: transformers.PreTrainedConfig) -> list[int]:
    """The label of each row as an index of the model's classes, in [0, num_labels), or a `ValueError`."""
    feature = rows.features[column]
    if not isinstance(feature, (datasets.ClassLabel, datasets.Value)):
        raise ValueError(
            f"`--label_column_name {column}` has values of type {feature}, it must have one class for each image."
        )
    values = rows[column][:]
    indices = {}  # of other numbers: they are indices themselves
    if isinstance(feature, datasets.ClassLabel):
        indices = dict(enumerate(class_indices(feature.names, config)))
    elif any(isinstance(value, str) for value in values):
        names = sorted({value for value in values if value is not None})
        indices = dict(zip(names, class_indices(names, config)))
    labels = [indices.get(value, value) for value in values]
    for row, label in enumerate(labels):
        if not isinstance(label, int) or not 0 <= label < config.num_labels:
            raise ValueError(
                f"The image of row {row} has the label {label}, which is not in the model's [0, {config.num_labels}): "
                "choose a split with labels, or a model with these classes."
            )
    return labels


def read_metadata(rows: datasets.Dataset, columns: list[str] | None, config) -> dict[str, torch.Tensor]:
    """
    The inputs `temporal` (num_images, 4) and `spatial` (num_images, 3) of the model from the `columns` for date,
    latitude and longitude; nothing if there are no `columns`. Missing values count as unknown.

    Raises:
        `ValueError`: for a model that takes none, for a column that is missing, and for a malformed value, naming its
        row.
    """
    takes_metadata = getattr(config, "use_metadata_head", False)
    if not columns:
        if takes_metadata:
            logger.warning(
                "The model takes date and place too, but goes by the images alone here: `--metadata_columns` names "
                "the columns with them."
            )
        return {}
    if not takes_metadata:
        raise ValueError(
            "`--metadata_columns` needs a model that takes date and place (`use_metadata_head` in its configuration)."
        )
    if missing := [column for column in columns if column not in rows.column_names]:
        raise ValueError(f"`--metadata_columns`: the dataset has no column '{missing[0]}', only {rows.column_names}.")
    try:
        return encode_metadata(*(rows[column][:] for column in columns))
    except ValueError as error:
        raise ValueError(
            f"`--metadata_columns {' '.join(columns)}`, where an entry is a row of the dataset: {error} Correct it "
            "there, or make it empty."
        ) from error


class Images(torch.utils.data.Dataset):
    """
    Preprocessed images: `inputs` of the model, which are `pixel_values` (channels, height, width) and the row of each
    tensor in `metadata`, and `label`, an index of the model's classes; of corrupt images the label `CORRUPT`, no
    `inputs` and an `error`.
    """

    def __init__(
        self,
        rows: datasets.Dataset,
        image_column: str,
        labels: list[int],
        metadata: dict[str, torch.Tensor],
        image_processor,
    ):
        self.rows = rows.select_columns([image_column])
        self.image_column = image_column
        self.labels = labels
        self.metadata = metadata
        self.image_processor = image_processor

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, idx: int) -> dict:
        row = self.rows[idx][self.image_column] or {"bytes": b"", "path": None}
        try:
            image = decode_image(row | {"path": row["path"] or f"of row {idx}"}, self.image_processor.size)
        except ValueError as error:
            return {"index": idx, "label": CORRUPT, "error": str(error)}
        inputs = {"pixel_values": self.image_processor(image, return_tensors="pt")["pixel_values"][0]}
        inputs |= {name: tensor[idx] for name, tensor in self.metadata.items()}
        return {"index": idx, "label": self.labels[idx], "inputs": inputs}


def collate(examples: list[dict]) -> dict:
    """`labels` (batch_size,), `inputs` of those that are not `CORRUPT`, if any, `errors` of the others by index."""
    inputs = [example["inputs"] for example in examples if "inputs" in example]
    return {
        "labels": torch.tensor([example["label"] for example in examples]),
        "inputs": torch.utils.data.default_collate(inputs) if inputs else {},
        "errors": {example["index"]: example["error"] for example in examples if "error" in example},
    }


def places_of_labels(logits: torch.Tensor, labels: torch.Tensor, k: int) -> torch.Tensor:
    """
    Rank of the label among the best `k` logits, from 0, or `k` if it is not among them, (batch_size,), for logits
    (batch_size, num_labels) and labels (batch_size,).
    """
    hits = logits.topk(k).indices == labels[:, None]
    return torch.where(hits.any(dim=1), hits.int().argmax(dim=1), k)


@torch.inference_mode()
def evaluate_model(model, loader, accelerator: Accelerator, skip_corrupt: bool) -> tuple[torch.Tensor, dict[int, str]]:
    """
    Run the model on this process's part of the images.

    Returns:
        In every process, for every image once: the place of its label among the best 5 classes (or all, if there are
        fewer), as of `places_of_labels`, or `CORRUPT`, int64 (num_images,); and the error of each corrupt image, by
        index.

    Raises:
        `ValueError`: in every process alike, for a corrupt image without `skip_corrupt`.
    """
    k = min(5, model.config.num_labels)
    places, errors = [], {}
    for batch in tqdm(loader, desc="Evaluating", unit="batch", disable=not accelerator.is_main_process):
        errors |= batch["errors"]
        batch_places = batch["labels"].clone()
        intact = batch_places != CORRUPT
        if batch["inputs"]:
            inputs = {name: tensor.to(model.dtype) for name, tensor in batch["inputs"].items()}
            logits = model(**inputs).logits.float()
            if logits.isnan().any():
                raise ValueError(
                    f"The model computes values that are not numbers in {model.dtype}: choose another `--dtype`."
                )
            batch_places[intact] = places_of_labels(logits, batch["labels"][intact], k)
        # Every process has a batch of the same size, filled up with images of the beginning, which are dropped here.
        places.append(accelerator.gather_for_metrics(batch_places).cpu())
        if not skip_corrupt and (places[-1] == CORRUPT).any():
            break
    errors = dict(sorted(item for part in gather_object([errors]) for item in part.items()))
    if errors and not skip_corrupt:
        raise ValueError(f"{next(iter(errors.values()))} `--skip_corrupt` leaves such images out.")
    return torch.cat(places), errors


def load_model(args: argparse.Namespace, device: torch.device):
    """The model, in eval mode, and the image processor of its checkpoint."""
    model = load_trained_model(
        AutoModelForImageClassification, args.model_name_or_path, args.dtype, device, args.use_kernels, "classifier"
    )
    return model, AutoImageProcessor.from_pretrained(args.model_name_or_path)


def describe_results(
    args: argparse.Namespace,
    accelerator: Accelerator,
    model,
    image_processor,
    places: torch.Tensor,
    errors: dict[int, str],
    metadata: dict[str, torch.Tensor],
    seconds: float,
) -> dict:
    """
    All that is known about a run, for the JSON file. `places` (num_images,) of the images that are not corrupt,
    `metadata` (num_images, ...) of the same, nothing if the model was given none.
    """
    k = min(5, model.config.num_labels)
    num_images = len(places)
    counts = {f"top-{best}": int((places < best).sum()) for best in (1, k)}
    accuracies = {name: round(100 * count / num_images, 4) for name, count in counts.items()}
    metrics = [("accuracy", name, value) for name, value in accuracies.items()]
    dataset_args = {"skipped_images": len(errors)} if errors else {}
    described_metadata = None
    if metadata:
        known = {name: int(tensor.any(dim=1).sum()) for name, tensor in metadata.items()}
        dataset_args["metadata_columns"] = args.metadata_columns
        described_metadata = {
            "columns": args.metadata_columns,
            "images_with_date": known["temporal"],
            "images_with_place": known["spatial"],
        }
    return {
        "model": published_name(args.model_name_or_path),
        "dataset": describe_data(args),
        "num_images": num_images,
        "num_skipped": len(errors),
        "skipped": list(errors.values()),
        "top_1": {"percent": accuracies["top-1"], "count": counts["top-1"]},
        "top_5": {"percent": accuracies[f"top-{k}"], "count": counts[f"top-{k}"], "k": k},
        "metadata": described_metadata,
        "batch_size": args.batch_size,
        "preprocessing": describe_preprocessing(image_processor),
        **describe_run(args, accelerator, model, num_images, seconds),
        "model_index": create_model_index(args, "image-classification", metrics, dataset_args),
    }


def main(argv: list[str] | None = None):
    args = parse_arguments(argv)
    accelerator = start_evaluation()
    with accelerator.main_process_first():  # the others find the data in the cache
        rows = load_rows(args)
    model, image_processor = load_model(args, accelerator.device)
    labels = model_labels(rows, args.label_column_name, model.config)
    metadata = read_metadata(rows, args.metadata_columns, model.config)
    images = Images(rows, args.image_column_name, labels, metadata, image_processor)
    chosen = choose_images(len(images), args)
    images = torch.utils.data.Subset(images, chosen)
    loader = torch.utils.data.DataLoader(
        images,
        batch_size=args.batch_size,
        num_workers=args.num_workers,
        collate_fn=collate,
        pin_memory=accelerator.device.type == "cuda",
    )

    start = time.perf_counter()
    places, errors = evaluate_model(model, accelerator.prepare(loader), accelerator, args.skip_corrupt)
    seconds = time.perf_counter() - start
    intact = places != CORRUPT
    places, metadata = places[intact], {name: tensor[chosen][intact] for name, tensor in metadata.items()}
    if len(places) == 0:
        raise ValueError(f"All {len(errors)} images are corrupt. The first: {next(iter(errors.values()))}")
    if not accelerator.is_main_process:
        return
    for error in errors.values():
        print(f"Skipped: {error}")
    result = describe_results(args, accelerator, model, image_processor, places, errors, metadata, seconds)
    print(
        f"top-1 {result['top_1']['percent']:.2f}%, top-{result['top_5']['k']} {result['top_5']['percent']:.2f}% of "
        f"{len(places)} images ({len(errors)} skipped) in {seconds:.1f} s"
    )
    if args.output is not None:
        write_json(args.output, result, MARK)
        print(f"Written: {args.output}")


if __name__ == "__main__":
    main()
    PartialState().destroy_process_group()
