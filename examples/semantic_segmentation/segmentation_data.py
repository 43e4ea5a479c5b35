# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""Images with label maps: folders, files, and what is wrong with them."""

import json
import logging
import os
from pathlib import Path

import datasets
import numpy as np
from PIL import Image

from examples.image_datasets import decode_image, image_endings, open_image
from examples.semantic_segmentation.segmentation_metrics import listing


logger = logging.getLogger(__name__)

MAPS_TO_CHECK = 1000
MODES_OF_INDICES = ("1", "L", "P", "I", "I;16", "I;16B", "I;16L")


def list_folder(folder: str, argument: str, image_column: str = "image", label_column: str = "label"):
    """
    The images of `folder / "images"` with the label maps (PNG files of the same stems) of `folder / "maps"`, in the
    order of their names, as a `datasets.Dataset` of undecoded images.
    """
    folders = {name: Path(folder) / name for name in ("images", "maps")}
    for name, path in folders.items():
        if not path.is_dir():
            raise ValueError(
                f"`{argument} {folder}` has no folder '{name}': it must have the images in 'images' and their label "
                "maps, PNG files of the same names, in 'maps'."
            )
    endings = image_endings()
    images = sorted(file for file in folders["images"].iterdir() if file.suffix.lower() in endings)
    if not images:
        raise ValueError(f"There are no images in {folders['images']}.")
    maps = {file.stem: str(file) for file in folders["maps"].iterdir() if file.suffix.lower() == ".png"}
    for file in images:
        if file.stem not in maps:
            raise ValueError(
                f"The image {file} has no label map {folders['maps'] / file.stem}.png: add it, or remove the image."
            )
    columns = {image_column: [str(file) for file in images], label_column: [maps[file.stem] for file in images]}
    features = datasets.Features(dict.fromkeys(columns, datasets.Image(decode=False)))
    return datasets.Dataset.from_dict(columns, features=features)


def read_label_map(row: dict, num_labels: int, ignore_index: int, do_reduce_labels: bool) -> np.ndarray:
    """
    Class index of every pixel, int64 (height, width), in `[0, num_labels)` or `ignore_index`. In the file it is the
    grey value, or the index into the palette, whose colours do not matter.

    Args:
        row: {"bytes", "path"} of the file.
        do_reduce_labels: The file has 0 for unlabelled pixels, and all classes one higher.
    """
    image = open_image(row)
    name = row["path"] or "embedded in the dataset"
    if image.mode not in MODES_OF_INDICES:
        raise ValueError(
            f"The label map {name} is an image of mode {image.mode}, it must have one class index for each pixel: "
            "save it as a grey image or with a palette."
        )
    labels = np.asarray(image).astype(np.int64)
    lowest = 1 if do_reduce_labels else 0
    unlabelled = labels == ignore_index
    if do_reduce_labels:
        unlabelled |= labels == 0
    wrong = labels[~unlabelled & ((labels < lowest) | (labels >= num_labels + lowest))]
    if len(wrong):
        values = np.unique(wrong).tolist()
        listed = f"value {values[0]}, which is" if len(values) == 1 else f"values {listing(values)}, which are"
        raise ValueError(
            f"The label map {name} has the {listed} neither a class, {lowest} to {num_labels + lowest - 1}, nor "
            f"{ignore_index}, which is ignored: correct the map, the number of classes or `--ignore_index`."
        )
    return np.where(unlabelled, ignore_index, labels - lowest)


def read_pair(image_row: dict | None, map_row: dict | None, **kwargs) -> tuple[Image.Image, np.ndarray]:
    """An RGB image and its label map, see [`read_label_map`]."""
    if image_row is None or map_row is None:
        raise ValueError("A row of the dataset has no image or no label map: remove it.")
    image, labels = decode_image(image_row), read_label_map(map_row, **kwargs)
    if labels.shape != (image.height, image.width):
        raise ValueError(
            f"The image {image_row['path'] or 'embedded in the dataset'} has {image.width}x{image.height} pixels and "
            f"its label map {map_row['path'] or ''} {labels.shape[1]}x{labels.shape[0]}: they must have the same size."
        )
    return image, labels


def check_ignored_pixels(rows: datasets.Dataset, column: str, id2label: dict[int, str], **kwargs):
    """
    Raise a `ValueError` if label maps have a single class and pixels that are ignored, such as masks of 0 and 255: the
    object would be ignored. Maps are read until two classes are found. If there are more than `MAPS_TO_CHECK`, it only
    warns. `kwargs` as for [`read_label_map`].
    """
    seen, ignore_index = set(), kwargs["ignore_index"]
    maps = rows.select_columns([column]).select(range(min(len(rows), MAPS_TO_CHECK)))
    for row in maps:
        seen.update(np.unique(read_label_map(row[column], **kwargs)).tolist())
        if len(seen - {ignore_index}) > 1:
            return
    if ignore_index not in seen:
        return
    only = ", ".join(f"{idx}, '{id2label[idx]}'," for idx in seen - {ignore_index}) or "no class"
    message = (
        f"{len(maps)} of {len(rows)} label maps for training were looked at, and have only {only} and {ignore_index}, "
        f"which is ignored (`--ignore_index`). If {ignore_index} stands for a class, write its index into the maps."
    )
    if len(maps) == len(rows):
        raise ValueError(message)
    logger.warning(message)


def check_ignore_index(ignore_index: int, num_labels: int, do_reduce_labels: bool):
    """Raise a `ValueError` for the index of a class, in the files (where classes may start at 1) or after reading."""
    end = num_labels + do_reduce_labels
    if 0 <= ignore_index < end:
        raise ValueError(f"`--ignore_index {ignore_index}` is the index of a class: it must be outside of [0, {end}).")


def read_classes(file: str) -> tuple[list[str], list[list[int]] | None]:
    """Names of the classes in a JSON file, in the order of their indices, and their colours if it has any."""
    if not os.path.isfile(file):
        raise ValueError(f"`--classes_file {file}` is not a file.")
    content = json.loads(Path(file).read_text(encoding="utf-8"))
    names = list(content)
    palette = list(content.values()) if isinstance(content, dict) else None
    is_colours = palette is None or all(
        isinstance(colour, list) and len(colour) == 3 and all(value in range(256) for value in colour)
        for colour in palette
    )
    if len(names) < 2 or not all(isinstance(name, str) for name in names) or not is_colours:
        raise ValueError(
            f"`--classes_file {file}` must have two or more classes: a list of names, or an object of names with "
            'colours, {"sky": [70, 130, 180], ...}.'
        )
    return names, palette
