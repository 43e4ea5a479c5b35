# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""`internimage predict`: labels, boxes or label maps of many images."""

import functools
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from transformers import Pipeline

from ..label_maps import class_colours, label_map_image
from .errors import CommandError, complaints, import_extra
from .image_sources import ImageSource, places_below
from .inference import printable, progress, report_failure, run_into_journal, run_pipeline
from .models import find_task, load_config, load_pipeline
from .result_files import (
    Journal,
    file_errors,
    is_marked,
    publish_results,
    write_coco,
    write_csv,
    write_json,
    write_marked_png,
    write_parquet,
)


# What a row of a result has, beside the name of the image.
COLUMNS: dict[str, dict[str, type]] = {
    "image-classification": {"label": str, "score": float},
    "object-detection": {"label": str, "label_id": int, "score": float}
    | dict.fromkeys(("xmin", "ymin", "xmax", "ymax"), float),
    "image-segmentation": {"label": str, "label_id": int, "pixels": int, "share": float},
}
HEADINGS = {
    "image-classification": "score  label",
    "object-detection": "score    left     top   right  bottom  label",
    "image-segmentation": "share  label",
}
ENDINGS = (".coco.json", ".csv", ".json", ".parquet")
FOLDER = "folder"
TABLE = "predictions.csv"
LABEL_MAPS = "label_maps"


def predict(
    sources: list[ImageSource],
    arguments: list[str],
    model: str,
    output: str | None,
    annotations: str | None,
    threshold: float,
    top_k: int,
    batch_size: int | None,
    num_readers: int,
    command: dict,
    **loading,
) -> int:
    """
    Args:
        sources, arguments: The images, and the arguments that they were found by; none of a dataset.
        output: A file with one of `ENDINGS`, a folder, or `None` to print a table.
        command: For the journal.
        loading: Arguments of [`load_pipeline`].

    Returns:
        `int`: the exit status: 1 if images have no result, else 0.
    """
    kind = output_kind(output)
    task, auto_class = find_task(load_config(model), model)
    check_task(task, kind, output, annotations)
    maps, journal = {}, None
    if kind == FOLDER:
        maps = label_map_paths(Path(output), arguments, sources)
        journal = Journal(Path(output, TABLE), command)
    elif output is not None:
        journal = Journal(Path(output), command)
    pipe: Any = load_pipeline(task, auto_class, model, **loading)
    coco_ids = (None, None)
    if kind == ".coco.json":
        pipe.with_masks = getattr(pipe.model.config, "use_mask_head", False)
        if pipe.with_masks:
            import_extra("pycocotools.mask", "Masks in a .coco.json file")
        if annotations is not None:
            coco_ids = read_annotations(Path(annotations), sources, pipe.model.config.id2label.values())
    arguments_of: dict[str, dict[str, Any]] = {
        "image-classification": {"top_k": top_k},
        "object-detection": {"threshold": threshold},
    }
    kwargs = arguments_of.get(task, {})
    if journal is None:
        return print_predictions(pipe, sources, batch_size, num_readers, **kwargs)
    return write_predictions(pipe, sources, journal, kind, maps, coco_ids, batch_size, num_readers, **kwargs)


def write_predictions(
    pipe: Pipeline,
    sources: list[ImageSource],
    journal: Journal,
    kind: str,
    maps: dict[str, Path],
    coco_ids: tuple[dict[str, int] | None, dict[str, int] | None],
    batch_size: int | None,
    num_readers: int,
    **kwargs,
) -> int:
    """
    Args:
        journal: Says where the output goes.
        kind: One of `ENDINGS`, or `FOLDER`.
        maps: As [`label_map_paths`] returns them, if label maps are to be written.
        coco_ids: As [`read_annotations`] returns them.
        batch_size, num_readers, kwargs: Of [`run_pipeline`].

    Returns:
        `int`: the exit status.
    """
    columns = COLUMNS[pipe.task] | ({"label_map": str} if maps else {})
    write = {
        ".csv": functools.partial(write_csv, columns=columns),
        ".json": functools.partial(write_json, columns=columns),
        ".parquet": functools.partial(write_parquet, columns=columns),
        ".coco.json": functools.partial(write_coco, image_ids=coco_ids[0], category_ids=coco_ids[1]),
        FOLDER: functools.partial(write_csv, columns=columns),
    }[kind]
    with journal:
        run_into_journal(pipe, sources, journal, row_encoder(pipe, maps), batch_size, num_readers, **kwargs)
        return publish_results(journal, {journal.output: lambda path: write(path, records=journal.records())})


def print_predictions(pipe: Pipeline, sources: list[ImageSource], *args, **kwargs) -> int:
    """Print rows as they come. The other arguments are those of [`run_pipeline`]. Returns the exit status."""
    encode = row_encoder(pipe, maps={})
    width = min(max(len("image"), *(len(source.name) for source in sources)), 60)
    print(f"{'image':<{width}}  {HEADINGS[pipe.task]}", flush=True)
    num_failed = 0
    for name, result in progress(run_pipeline(pipe, sources, *args, **kwargs), len(sources)):
        if isinstance(result, Exception):
            num_failed += 1
            report_failure(name, result)
            continue
        for row in encode(name, result) or [{}]:
            print(f"{printable(name):<{width}}  {format_row(row)}", flush=True)
    if num_failed:
        print(f"{num_failed} of {len(sources)} images have no result.", file=sys.stderr)
    return 1 if num_failed else 0


def format_row(row: dict) -> str:
    if not row:
        return "nothing found"
    numbers = [f"{row.get('score', row.get('share')):5.3f}"]
    numbers += [f"{row[side]:7.1f}" for side in ("xmin", "ymin", "xmax", "ymax") if side in row]
    return " ".join(numbers) + f"  {row['label']}"


def output_kind(output: str | None) -> str | None:
    """One of `ENDINGS`, or `FOLDER`. Raises a `CommandError` for the name of a file of another kind."""
    if output is None:
        return None
    kind = next((ending for ending in ENDINGS if output.lower().endswith(ending)), None)
    if kind is None:
        if Path(output).suffix and not output.endswith(os.sep) and not os.path.isdir(output):
            raise CommandError(f"--output {output} must end in {', '.join(ENDINGS)}, or be a folder.")
        return FOLDER
    if kind == ".parquet":
        import_extra("pyarrow", "--output with the ending .parquet")
    return kind


def check_task(task: str, kind: str | None, output: str | None, annotations: str | None):
    """Raise a `CommandError` if the output does not fit the task."""
    if kind == FOLDER and task != "image-segmentation":
        raise CommandError(
            f"--output {output} is a folder, which is for label maps of segmentation models: name a file that ends in "
            f"{', '.join(ENDINGS)}."
        )
    if kind == ".coco.json" and task != "object-detection":
        raise CommandError(f"--output {output}: COCO's format is for detectors, and the model is for {task}.")
    if annotations is not None and kind != ".coco.json":
        raise CommandError("--annotations gives ids for an --output that ends in .coco.json.")


def row_encoder(pipe: Pipeline, maps: dict[str, Path]) -> Callable[[str, Any], list[dict]]:
    """A function of an image's name and the pipeline's result, which returns rows with the fields in `COLUMNS`."""
    if pipe.task != "image-segmentation":
        return lambda name, result: result
    names, colours = pipe.model.config.id2label, class_colours(pipe.model.config)

    def encode(name: str, labels: np.ndarray) -> list[dict]:
        classes, counts = np.unique(labels, return_counts=True)
        rows = [
            {"label": names[label], "label_id": label, "pixels": count, "share": count / labels.size}
            for label, count in zip(classes.tolist(), counts.tolist())
        ]
        rows.sort(key=lambda row: -row["pixels"])
        if maps:
            with file_errors(maps[name]):
                write_marked_png(maps[name], label_map_image(labels, colours))
            rows = [row | {"label_map": str(maps[name])} for row in rows]
        return rows

    return encode


def label_map_paths(folder: Path, arguments: list[str], sources: list[ImageSource]) -> dict[str, Path]:
    """
    Where the label map of each image goes. Raises a `CommandError` for a folder inside those with the images, where
    they would be taken for images, for a file that is in the way, or for two images with the same place.
    """
    for argument in arguments:
        if os.path.isdir(argument) and Path(folder).resolve().is_relative_to(Path(argument).resolve()):
            raise CommandError(f"--output {folder} lies in {argument}, with the images: name another place.")
    places = places_below(arguments, sources)
    paths = {name: folder / LABEL_MAPS / f"{place}.png" for name, place in places.items()}
    images_at: dict[str, str] = {}
    for name, path in paths.items():
        other = images_at.setdefault(str(path).casefold(), name)
        if other != name:
            raise CommandError(f"{name} and {other} would have the same label map, {path}: rename one of them.")
        if os.path.lexists(path) and not is_marked(path):
            raise CommandError(f"{path} exists and is not overwritten: name another --output, or remove it.")
    return paths


def read_annotations(file: Path, sources: list[ImageSource], labels) -> tuple[dict[str, int], dict[str, int]]:
    """
    Ids of images and of categories from a file of annotations in COCO's format. Images are found by `file_name`, also
    below other folders; categories by the names of the model's classes.
    """
    with complaints(OSError, ValueError, KeyError, TypeError, prefix=f"--annotations {file} cannot be read: "):
        content = json.loads(file.read_bytes())
        ids = {image["file_name"]: image["id"] for image in content["images"]}
        categories = {category["name"]: category["id"] for category in content["categories"]}
    image_ids = {}
    for source in sources:
        parts = Path(source.name).parts
        endings = (os.path.join(*parts[start:]) for start in range(len(parts)))
        name = next((ending for ending in endings if ending in ids), None)
        if name is None:
            raise CommandError(f"--annotations {file} has no image {source.name}.")
        image_ids[source.name] = ids[name]
    missing = [label for label in labels if label not in categories]
    if missing:
        raise CommandError(f"--annotations {file} has no category '{missing[0]}', which the model finds.")
    return image_ids, categories
