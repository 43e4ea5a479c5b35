# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""Images with annotated objects: files in the format of COCO, datasets of the Hub, and what is wrong with them."""

import functools
import json
import logging
import os
import reprlib
from pathlib import Path

import datasets
import torch
from torchvision import tv_tensors
from transformers.image_transforms import center_to_corners_format, corners_to_center_format

from examples.image_datasets import decode_image
from examples.object_detection.detection_augmentation import NoObjectLeftError
from modeling_internimage.coco_annotations import MAX_COORDINATE, MAX_ID, check_annotation, check_segmentation


logger = logging.getLogger(__name__)
FIELDS_OF_ANNOTATIONS = ("id", "bbox", "category_id", "area", "iscrowd", "ignore", "segmentation")
# Images that are drawn in place of one whose crop has no object, before the training gives up.
MAX_DRAWS = 1000
FEATURES = {
    "image_id": datasets.Value("int64"),
    "width": datasets.Value("int64"),
    "height": datasets.Value("int64"),
}


def read_coco(
    folder: str, file: str, argument: str, image_column: str = "image", label_column: str = "objects"
) -> tuple[datasets.Dataset, dict[int, str]]:
    """
    The images of `folder` that a JSON file in the format of COCO names, in its order, and the categories. Masks are
    checked by [`check_objects`], as boxes can be used without them.

    Returns:
        `tuple[datasets.Dataset, dict[int, str]]`: rows of `image_id`, `width`, `height`, the undecoded image and, as
        JSON (annotations differ in their types), its objects; names of categories by id.

    Raises:
        `ValueError`: if the file has something else, or images that are not in `folder`.
    """
    if not Path(file).is_file():
        raise ValueError(f"`{argument} {file}` is not a file.")
    try:
        content = _read_json(file)
        categories = _read_categories(content)
        objects = _read_annotations(content, categories)
        columns = {name: [_side(entry, name) for entry in content["images"]] for name in ("width", "height")}
        columns[image_column] = _image_files(folder, content["images"])
    except ValueError as error:
        raise ValueError(f"`{argument} {file}`: {error}") from error
    columns["image_id"] = list(objects)
    columns[label_column] = [json.dumps(entries) for entries in objects.values()]
    features = {image_column: datasets.Image(decode=False), label_column: datasets.Value("large_string")} | FEATURES
    return datasets.Dataset.from_dict(columns, features=datasets.Features(features)), categories


def _read_json(file: str) -> dict:
    try:
        content = json.loads(Path(file).read_text(encoding="utf-8-sig"))  # (Windows marks UTF-8.)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"This is not a complete JSON file ({error}).") from error
    for name in ("images", "annotations", "categories"):
        entries = content.get(name) if isinstance(content, dict) else None
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise ValueError(
                f"There is no list '{name}' of dictionaries: the file must be in COCO's format, with 'images', "
                "'annotations' and 'categories'."
            )
    if not content["images"] or not content["categories"]:
        raise ValueError(
            f"There are {len(content['images'])} images and {len(content['categories'])} categories: there must be "
            "some of both."
        )
    for image in content["images"]:  # LVIS has only the address of an image of COCO, .../train2017/000000000009.jpg
        if "file_name" not in image and isinstance(image.get("coco_url"), str):
            image["file_name"] = "/".join(image["coco_url"].split("/")[-2:])
    for name, text in (("images", "file_name"), ("categories", "name")):
        ids = set()
        for entry in content[name]:
            own = entry.get("id")
            if not isinstance(own, int) or abs(own) > MAX_ID or not isinstance(entry.get(text), str):
                raise ValueError(
                    f"'{name}' has the entry {reprlib.repr(entry)}: its 'id' must be an integer and its '{text}' text."
                )
            if own in ids:
                raise ValueError(f"'{name}' has the id {own} twice: correct the file.")
            ids.add(own)
    return content


def _read_categories(content: dict) -> dict[int, str]:
    """Names by id. If several categories share a name, the one with annotations counts, else the last one."""
    used = {
        entry["category_id"] for entry in content["annotations"] if isinstance(entry.get("category_id"), int | float)
    }
    ids = {}
    for entry in content["categories"]:
        name, other = entry["name"], ids.get(entry["name"])
        if other in used and entry["id"] in used:
            raise ValueError(f"The categories {other} and {entry['id']} have the same name '{name}': rename one.")
        # Roboflow names an unused root category, which comes first, after the project.
        ids[name] = other if other in used else entry["id"]
    return {entry["id"]: entry["name"] for entry in content["categories"] if ids[entry["name"]] == entry["id"]}


def _read_annotations(content: dict, categories: dict[int, str]) -> dict[int, list[dict]]:
    """Annotations by the id of their image."""
    objects = {entry["id"]: [] for entry in content["images"]}
    for annotation in content["annotations"]:
        image_id = annotation.get("image_id")
        if not isinstance(image_id, int | float) or image_id not in objects:
            raise ValueError(
                f"There is an annotation of the image {reprlib.repr(image_id)}, which is not among the 'images': add "
                "the image or remove the annotation."
            )
        checked = check_annotation(annotation, image_id)
        if checked["category_id"] not in categories:
            raise ValueError(
                f"There is an annotation of category {checked['category_id']} on the image {image_id}, which is not "
                f"among the 'categories' {list(categories)}: add it or remove the annotation."
            )
        objects[image_id].append({key: checked[key] for key in FIELDS_OF_ANNOTATIONS if key in checked})
    return objects


def _side(image: dict, name: str) -> int | None:
    """Width or height of an image in pixels, if the file has it."""
    side = image.get(name) or None
    if side is not None and not (isinstance(side, int | float) and 1 <= side <= MAX_COORDINATE and side % 1 == 0):
        raise ValueError(f"The image {image['id']} has the {name} {reprlib.repr(side)}: it must be in pixels.")
    return side and int(side)


def _image_files(folder: str, images: list[dict]) -> list[str]:
    """Paths of the images, all inside of `folder`, wherever links lead."""
    root = os.path.realpath(folder)

    @functools.cache
    def is_inside(path: str) -> bool:
        return Path(os.path.realpath(path)).is_relative_to(root)

    paths = [os.path.join(folder, image["file_name"]) for image in images]
    missing = [path for path in paths if not os.path.isfile(path)]
    if missing:
        raise ValueError(
            f"{len(missing)} of {len(paths)} images do not exist, such as {missing[0]!r}: name the right folder, or "
            "remove them from the file."
        )
    for path in paths:
        if not is_inside(path if os.path.islink(path) else os.path.dirname(path)):  # quick: few folders, no links
            raise ValueError(f"The image {path!r} is outside of the folder {folder}: move it there.")
    return paths


def hub_categories(features: datasets.Features, label_column: str) -> dict[int, str]:
    """Names of the classes of a dataset with a column of objects, as `cppe-5` has it."""
    objects = getattr(features[label_column], "feature", features[label_column])
    category = objects.get("category") if isinstance(objects, dict) else None
    category = getattr(category, "feature", category)
    if not isinstance(category, datasets.ClassLabel) or "bbox" not in objects:
        raise ValueError(
            f"Column '{label_column}' has values of type {features[label_column]}. It must have objects with `bbox` "
            "and `category`, a `ClassLabel`."
        )
    return dict(enumerate(category.names))


def annotations_of(objects: str | dict | list) -> list[dict]:
    """Annotations as COCO has them, of a row of [`read_coco`] or of a dataset of the Hub."""
    if isinstance(objects, str):
        return json.loads(objects)
    if isinstance(objects, dict):  # of lists
        objects = [dict(zip(objects, values)) for values in zip(*objects.values())]
    return [entry | {"category_id": entry["category"]} for entry in objects]


def without_images(rows: datasets.Dataset, label_column: str) -> datasets.Dataset:
    """The columns of objects, image ids and sizes. (Without the images, they are quick to go through.)"""
    return rows.select_columns([name for name in (label_column, *FEATURES) if name in rows.column_names])


def check_objects(rows: datasets.Dataset, label_column: str, with_masks: bool):
    """
    Raise a `ValueError` for invalid annotations, repeated ids of images and, if masks are needed, missing or invalid
    masks: before the training, not hours later.
    """
    image_ids = set()
    number = crowds = fragments = 0
    for idx, row in enumerate(without_images(rows, label_column)):
        image_id = row.get("image_id", idx)
        if image_id in image_ids:
            raise ValueError(f"Two images have the `image_id` {image_id}: number them, or leave the column out.")
        image_ids.add(image_id)
        for annotation in annotations_of(row[label_column]):
            checked = check_annotation(annotation, image_id)
            number += 1
            crowds += checked["iscrowd"]
            if with_masks:
                segmentation = annotation.get("segmentation")
                if not segmentation:
                    raise ValueError(
                        f"The image {image_id} has an object without `segmentation` (annotation "
                        f"{annotation.get('id')}), which masks are trained and evaluated with. Add it, or use boxes "
                        "only: `--use_mask_head false` in training, `--boxes_only` in evaluation."
                    )
                used = check_segmentation(annotation, image_id, row.get("height"), row.get("width"))
                if isinstance(segmentation, list) and isinstance(segmentation[0], list):
                    fragments += len(segmentation) - len(used)
    if fragments:
        logger.warning(f"{fragments} polygons with fewer than three corners are left out of the masks.")
    if number and crowds == number:
        raise ValueError(
            f"All {number} objects are marked `iscrowd`, as masks of CVAT's brush are: none would be trained or "
            "evaluated. Set `iscrowd` to 0."
        )


def order_categories(categories: dict[int, str], id2label: dict[int, str]) -> list[int | None]:
    """The id of each class of a model in the data, found by its name; `None` for classes that are not in the data."""
    ids = {name: category for category, name in categories.items()}
    unknown = sorted(set(ids) - set(id2label.values()))
    if unknown:
        raise ValueError(
            f"The data has categories that the model does not know, such as '{unknown[0]}'; the model has "
            f"{list(id2label.values())[:10]} ... Rename them, or fine-tune the model."
        )
    return [ids.get(id2label[idx]) for idx in range(len(id2label))]


class DetectionImages(torch.utils.data.Dataset):
    """
    Resized or augmented images with labels of the model, as the image processor makes them: `image`, uint8
    (3, height, width), and `labels`. [`Collate`] does the rest.

    Args:
        rows: Undecoded images with objects.
        columns: Names of the columns of images and objects.
        image_processor: Of the model, with `category_ids` of the data.
        with_masks: Whether labels have masks.
        augmentation: Transform (torchvision v2) of an image and a dictionary of `boxes`, `labels` and `masks`, in
            place of the resizing of the image processor.
    """

    def __init__(
        self, rows: datasets.Dataset, columns: tuple[str, str], image_processor, with_masks, augmentation=None
    ):
        self.rows = rows
        self.columns = columns
        self.image_processor = image_processor
        self.with_masks = with_masks
        self.augmentation = augmentation

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, idx: int) -> dict:
        for _ in range(MAX_DRAWS):
            try:
                return self._example(idx)
            except NoObjectLeftError:
                idx = torch.randint(len(self), ()).item()
        raise ValueError(
            f"The crops of {MAX_DRAWS} images had no object: leave out `--crop_with_objects`, or images without "
            "objects (`--skip_images_without_annotations`)."
        )

    def _example(self, idx: int) -> dict:
        row = self.rows[idx]
        image_column, label_column = self.columns
        if row[image_column] is None:
            raise ValueError(f"Row {idx} of the dataset has no image: remove it.")
        image = decode_image(row[image_column])
        image_id = row.get("image_id", idx)
        size = (row.get("width") or image.width, row.get("height") or image.height)
        if size != image.size:
            raise ValueError(
                f"The image {row[image_column]['path'] or image_id} has {image.width}x{image.height} pixels, but its "
                f"annotations say {size[0]}x{size[1]}. Correct them, or the file (is it rotated by EXIF?)."
            )
        inputs = self.image_processor(
            image,
            {"image_id": image_id, "annotations": annotations_of(row[label_column])},
            return_segmentation_masks=self.with_masks,
            do_resize=self.augmentation is None,
            do_rescale=False,
            do_normalize=False,
            do_pad=False,
            return_tensors="pt",
        )
        image, labels = inputs["pixel_values"][0], dict(inputs["labels"][0])
        if self.augmentation is not None:
            image, labels = self._augment(image, labels)
        return {"image": image, "labels": labels}

    def _augment(self, image: torch.Tensor, labels: dict) -> tuple[torch.Tensor, dict]:
        boxes = center_to_corners_format(labels["boxes"]) * _scale(image)
        objects = {
            "boxes": tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=tuple(image.shape[-2:])),
            "labels": labels["class_labels"],
        }
        if self.with_masks:
            objects["masks"] = tv_tensors.Mask(labels["masks"])
        image, objects = self.augmentation(tv_tensors.Image(image), objects)
        image = image.as_subclass(torch.Tensor)
        labels["boxes"] = corners_to_center_format(objects["boxes"].as_subclass(torch.Tensor) / _scale(image))
        labels["class_labels"] = objects["labels"]
        labels["size"] = torch.tensor(image.shape[-2:])
        if self.with_masks:
            labels["masks"] = objects["masks"].as_subclass(torch.Tensor)
        return image, labels


def _scale(image: torch.Tensor) -> torch.Tensor:
    height, width = image.shape[-2:]
    return torch.tensor([width, height, width, height])


class Collate:
    """Normalises the images of a batch and pads them to the same size: `pixel_values`, `pixel_mask`, `labels`."""

    def __init__(self, image_processor):
        self.image_processor = image_processor

    def __call__(self, examples: list[dict]) -> dict:
        images = [example["image"] for example in examples]
        inputs = self.image_processor(images, do_resize=False, return_tensors="pt")
        return {**inputs, "labels": [example["labels"] for example in examples]}
