# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""Images with annotated objects: files in the format of COCO, datasets of the Hub, and what is wrong with them."""

import json
import math
from pathlib import Path

import datasets
import torch
from example_helpers import decode_image
from torchvision import tv_tensors
from transformers.image_transforms import center_to_corners_format, corners_to_center_format


FIELDS_OF_ANNOTATIONS = ("bbox", "category_id", "area", "iscrowd", "ignore", "segmentation")
FEATURES = {
    "image_id": datasets.Value("int64"),
    "width": datasets.Value("int64"),
    "height": datasets.Value("int64"),
}


def read_coco(
    folder: str, file: str, argument: str, image_column: str = "image", label_column: str = "objects"
) -> tuple[datasets.Dataset, dict[int, str]]:
    """
    The images of `folder` that a JSON file in the format of COCO names, in its order, and the categories.

    Returns:
        `tuple[datasets.Dataset, dict[int, str]]`: rows of `image_id`, `width`, `height`, the undecoded image and, as
        JSON (annotations differ in their types), its objects; names of categories by id.
    """
    content = _read_json(file, argument)
    categories = {entry["id"]: entry["name"] for entry in content["categories"]}
    objects = {entry["id"]: [] for entry in content["images"]}
    for name, values, entries in (
        ("image id", objects, "images"),
        ("category id", categories, "categories"),
        ("category name", set(categories.values()), "categories"),
    ):
        if len(values) != len(content[entries]):
            raise ValueError(f"`{argument} {file}` has the same {name} twice: correct the file.")
    for annotation in content["annotations"]:
        image_id = annotation.get("image_id")
        if image_id not in objects:
            raise ValueError(
                f"`{argument} {file}` has an annotation of the image {image_id}, which is not among its 'images': add "
                "the image or remove the annotation."
            )
        if annotation.get("category_id") not in categories:
            raise ValueError(
                f"`{argument} {file}` has an annotation of category {annotation.get('category_id')} on the image "
                f"{image_id}, which is not among its 'categories' {list(categories)}: add it or remove the annotation."
            )
        check_box(annotation.get("bbox"), image_id)
        objects[image_id].append({key: annotation[key] for key in FIELDS_OF_ANNOTATIONS if key in annotation})
    columns = {name: [entry.get(name) for entry in content["images"]] for name in ("width", "height")}
    columns["image_id"] = list(objects)
    columns[image_column] = [str(Path(folder) / entry["file_name"]) for entry in content["images"]]
    columns[label_column] = [json.dumps(entries) for entries in objects.values()]
    missing = [path for path in columns[image_column] if not Path(path).is_file()]
    if missing:
        raise ValueError(
            f"{len(missing)} of {len(objects)} images in `{argument} {file}` do not exist, such as {missing[0]}: name "
            "the right folder, or remove them from the file."
        )
    features = {image_column: datasets.Image(decode=False), label_column: datasets.Value("large_string")} | FEATURES
    return datasets.Dataset.from_dict(columns, features=datasets.Features(features)), categories


def _read_json(file: str, argument: str) -> dict:
    if not Path(file).is_file():
        raise ValueError(f"`{argument} {file}` is not a file.")
    try:
        content = json.loads(Path(file).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"`{argument} {file}` is no complete JSON file ({error}).") from error
    for name in ("images", "annotations", "categories"):
        if not isinstance(content, dict) or not isinstance(content.get(name), list):
            raise ValueError(
                f"`{argument} {file}` has no list '{name}': it must be in COCO's format, with 'images', 'annotations' "
                "and 'categories'."
            )
    if not content["images"] or not content["categories"]:
        raise ValueError(
            f"`{argument} {file}` has {len(content['images'])} images and {len(content['categories'])} categories: "
            "there must be some of both."
        )
    if not all(isinstance(entry.get("id"), int) for name in ("images", "categories") for entry in content[name]):
        raise ValueError(f"`{argument} {file}` has an image or a category whose 'id' is not an integer.")
    return content


def check_box(box, image_id):
    """Raise a `ValueError` if `box` is not four finite numbers. (A box without an area is left out of training.)"""
    is_box = isinstance(box, list) and len(box) == 4
    if not is_box or not all(isinstance(value, int | float) and math.isfinite(value) for value in box):
        raise ValueError(
            f"The image {image_id} has an object with the `bbox` {box}: it must be left, top, width and height in "
            "pixels."
        )


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
    """The column of objects, and `image_id` if there is one: quick to go through."""
    return rows.select_columns([name for name in (label_column, "image_id") if name in rows.column_names])


def check_objects(rows: datasets.Dataset, label_column: str, with_masks: bool):
    """
    Raise a `ValueError` now, not after hours, for boxes that are none, ids of images that are not unique and, if masks
    are needed, missing ones.
    """
    image_ids = set()
    for idx, row in enumerate(without_images(rows, label_column)):
        image_id = row.get("image_id", idx)
        if image_id in image_ids:
            raise ValueError(f"Two images have the `image_id` {image_id}: number them, or leave the column out.")
        image_ids.add(image_id)
        for annotation in annotations_of(row[label_column]):
            check_box(annotation["bbox"], image_id)
            if with_masks and not annotation.get("segmentation"):
                raise ValueError(
                    f"The image {image_id} has an object without `segmentation`, which masks are trained and "
                    "evaluated with. Add it, or use boxes only: `--use_mask_head false` in training, `--boxes_only` "
                    "in evaluation."
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
