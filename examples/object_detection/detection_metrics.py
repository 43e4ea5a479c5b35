# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""Average precision and recall of boxes and masks, as COCO and LVIS define them, computed by pycocotools."""

import contextlib
import io
import json
import reprlib
from functools import partial
from pathlib import Path

import datasets
import numpy as np
import torch
from accelerate.utils import gather_object
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from examples.object_detection.detection_data import annotations_of, without_images
from modeling_internimage.coco_annotations import check_annotation, check_segmentation, encode_mask


# Names, as in torchmetrics, of the values in `COCOeval.stats`.
METRICS = ["map", "map_50", "map_75", "map_small", "map_medium", "map_large"]
METRICS += ["mar_1", "mar_10", "mar_100", "mar_small", "mar_medium", "mar_large"]
# LVIS: detections of an image, and categories by the number of training images that have them.
LVIS_MAX_DETECTIONS = 300
LVIS_FREQUENCIES = {"r": "rare", "c": "common", "f": "frequent"}


class CocoEvaluator:
    """
    Collects the detections of a model, in one process or several, and compares them with the annotations at the
    original size of every image.

    Args:
        rows: Images with objects.
        label_column: Name of the column of objects.
        categories: Names by id.
        image_processor: Of the model, with `category_ids` of the data.
        with_masks: Whether masks are compared, too.
    """

    def __init__(
        self,
        rows: datasets.Dataset,
        label_column: str,
        categories: dict[int, str],
        image_processor,
        with_masks: bool,
    ):
        self.rows, self.label_column = without_images(rows, label_column), label_column
        self.categories = categories
        self.image_processor = image_processor
        self.with_masks = with_masks
        self.results = {}  # by the id of the image: height and width, detections

    def add(self, outputs, labels: list[dict[str, torch.Tensor]]):
        """Outputs of the model for a batch, of images whose `labels` come from the image processor."""
        sizes = torch.stack([label["orig_size"] for label in labels])
        process = self.image_processor.post_process_object_detection
        if self.with_masks:
            process = partial(self.image_processor.post_process_instance_segmentation, return_binary_maps=True)
        self.add_detections(process(outputs, threshold=0.0, target_sizes=sizes), labels)

    def add_detections(self, detections: list[dict[str, torch.Tensor]], labels: list[dict[str, torch.Tensor]]):
        """Detections of each image, as the image processor's post-processing returns them."""
        for label, result in zip(labels, detections):
            image_id = label["image_id"].item()
            self.results[image_id] = label["orig_size"].tolist(), self._as_coco(image_id, result)

    def _as_coco(self, image_id: int, result: dict[str, torch.Tensor]) -> list[dict]:
        left, top, right, bottom = result["boxes"].double().cpu().unbind(dim=1)
        boxes = torch.stack((left, top, right - left, bottom - top), dim=1).tolist()
        detections = []
        for idx, (box, label, score) in enumerate(zip(boxes, result["labels"].tolist(), result["scores"].tolist())):
            category = label if self.image_processor.category_ids is None else self.image_processor.category_ids[label]
            if category is None:  # a class that the data does not have
                continue
            detections.append({"image_id": image_id, "category_id": category, "score": score, "bbox": box})
            if self.with_masks:
                mask = np.asfortranarray(result["masks"][idx].cpu().numpy().astype(np.uint8))
                detections[-1]["segmentation"] = coco_mask.encode(mask)
        return detections

    def compute(self) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
        """
        The metrics of all images that were added in any process, which are then forgotten.

        Returns:
            `tuple`: `bbox_map`, `bbox_map_50`, ... and, with masks, `segm_map`, ...; and the mean average precision of
            each category by its name, under `"bbox"` and `"segm"`. Fractions, or -1 where there is no object.
        """
        results = dict(gather_object(list(self.results.items())))  # in several processes some images come twice
        self.results = {}
        detections = [detection for _, of_image in results.values() for detection in of_image]
        metrics, per_category = {}, {}
        with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints tables
            truth = self._ground_truth({image_id: size for image_id, (size, _) in results.items()})
            for kind in ("bbox", "segm") if self.with_masks else ("bbox",):
                values, precision = self._evaluate(truth, self._load(truth, detections, kind), kind)
                metrics |= {f"{kind}_{name}": value for name, value in values.items()}
                per_category[kind] = {self.categories[category]: _mean(own) for category, own in precision.items()}
        return metrics, per_category

    def _evaluate(self, truth: COCO, found: COCO, kind: str) -> tuple[dict[str, float], dict[int, np.ndarray]]:
        """Metrics by name, and the precision of each category (overlaps, recalls)."""
        evaluation = COCOeval(truth, found, kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
        # (overlaps, recalls, categories, areas, numbers of detections): all areas, the largest number
        precision = np.moveaxis(evaluation.eval["precision"][:, :, :, 0, -1], 2, 0)
        values = {name: float(value) for name, value in zip(METRICS, evaluation.stats)}
        return values, dict(zip(evaluation.params.catIds, precision))

    def _ground_truth(self, sizes: dict[int, list[int]]) -> COCO:
        images = [{"id": image_id, "width": width, "height": height} for image_id, (height, width) in sizes.items()]
        annotations = []
        for idx, row in enumerate(self.rows):
            image_id = row.get("image_id", idx)
            if image_id in sizes:
                annotations += self._annotations(image_id, annotations_of(row[self.label_column]), *sizes[image_id])
        for idx, annotation in enumerate(annotations):
            annotation["id"] = idx + 1
        categories = [{"id": idx, "name": name} for idx, name in self.categories.items()]
        return _index({"info": {}, "images": images, "annotations": annotations, "categories": categories})

    def _annotations(self, image_id: int, entries: list[dict], height: int, width: int) -> list[dict]:
        annotations = []
        for entry in entries:
            entry = check_annotation(entry, image_id)
            if self.with_masks:
                runs = encode_mask(check_segmentation(entry, image_id, height, width), height, width)
                entry["segmentation"] = runs
            area = entry["bbox"][2] * entry["bbox"][3]
            annotations.append({"area": area} | entry | {"image_id": image_id})
        return annotations

    def _load(self, truth: COCO, detections: list[dict], kind: str) -> COCO:
        # Without boxes the areas of masks are those of their pixels, as in mmdetection.
        unused = "bbox" if kind == "segm" else "segmentation"
        own = [{name: value for name, value in detection.items() if name != unused} for detection in detections]
        if not own:  # which `loadRes` does not understand
            return _index(truth.dataset | {"annotations": []})
        return truth.loadRes(own)


def _index(content: dict) -> COCO:
    coco = COCO()
    coco.dataset = content
    coco.createIndex()
    return coco


class LvisEvaluator(CocoEvaluator):
    """
    As [`CocoEvaluator`], by the rules of LVIS. Of each image the 300 best detections count. It was annotated with some
    categories only: detections of others are left out. Where a category may have more objects than are annotated, a
    detection that matches none of them counts neither as right nor as wrong. The numbers are those of the packages
    lvis (which needs a NumPy before 1.24) and faster-coco-eval (which needs memory for every category of every image).

    Args:
        rows, label_column, categories, image_processor, with_masks: As for [`CocoEvaluator`].
        file: The annotations of `rows` in the format of LVIS.
    """

    def __init__(self, rows, label_column, categories, image_processor, with_masks, file: str):
        super().__init__(rows, label_column, categories, image_processor, with_masks)
        absent, self.not_exhaustive, self.frequencies = read_lvis_fields(file)
        self.annotated = {}  # by the id of the image: ids of categories
        for row in self.rows:
            present = {entry["category_id"] for entry in annotations_of(row[label_column])}
            self.annotated[row["image_id"]] = present | absent[row["image_id"]]

    def _as_coco(self, image_id: int, result: dict[str, torch.Tensor]) -> list[dict]:
        detections = sorted(super()._as_coco(image_id, result), key=lambda detection: -detection["score"])
        annotated = self.annotated[image_id]  # the others are not evaluated either: less to keep
        return [own for own in detections[:LVIS_MAX_DETECTIONS] if own["category_id"] in annotated]

    def _annotations(self, image_id: int, entries: list[dict], height: int, width: int) -> list[dict]:
        annotations = super()._annotations(image_id, entries, height, width)
        for category in self.not_exhaustive[image_id]:
            # A crowd over the whole image: what matches nothing else matches this, and is ignored.
            own = {"image_id": image_id, "category_id": category, "iscrowd": 1, "area": height * width}
            own["bbox"] = [0, 0, width, height]
            if self.with_masks:
                own["segmentation"] = coco_mask.encode(np.ones((height, width), dtype=np.uint8, order="F"))
            annotations.append(own)
        return annotations

    def _evaluate(self, truth: COCO, found: COCO, kind: str) -> tuple[dict[str, float], dict[int, np.ndarray]]:
        images_of = {category: [] for category in self.categories}
        for image_id in truth.imgs:
            for category in self.annotated[image_id]:
                images_of[category].append(image_id)
        precision, recall = {}, {}
        for category, images in images_of.items():  # all together, categories times images would fill the memory
            if not images:
                continue
            evaluation = COCOeval(truth, found, kind)
            evaluation.params.catIds, evaluation.params.imgIds = [category], images
            evaluation.params.maxDets = [LVIS_MAX_DETECTIONS]
            evaluation.evaluate()
            evaluation.accumulate()
            precision[category] = evaluation.eval["precision"][:, :, 0, :, 0]  # (overlaps, recalls, areas)
            recall[category] = evaluation.eval["recall"][:, 0, :, 0]  # (overlaps, areas)
        # (categories, overlaps, recalls, areas) and (categories, overlaps, areas)
        all_precision = np.array(list(precision.values())).reshape(-1, 10, 101, 4)
        all_recall = np.array(list(recall.values())).reshape(-1, 10, 4)
        frequencies = np.array([self.frequencies[category] for category in precision])
        values = {"map": all_precision[..., 0], "map_50": all_precision[:, 0, :, 0]}
        values |= {"map_75": all_precision[:, 5, :, 0], f"mar_{LVIS_MAX_DETECTIONS}": all_recall[..., 0]}
        for idx, area in enumerate(("small", "medium", "large"), start=1):
            values |= {f"map_{area}": all_precision[..., idx], f"mar_{area}": all_recall[..., idx]}
        for letter, name in LVIS_FREQUENCIES.items():
            values[f"map_{name}"] = all_precision[frequencies == letter][..., 0]
        metrics = {name: _mean(numbers) for name, numbers in values.items()}
        return metrics, {category: own[..., 0] for category, own in precision.items()}


def read_lvis_fields(file: str) -> tuple[dict[int, set[int]], dict[int, set[int]], dict[int, str]]:
    """
    What a file in the format of LVIS has beyond COCO's.

    Returns:
        `tuple`: categories of which an image has no object, and those of which it may have more than are annotated,
        both by the id of the image; frequency ("r", "c" or "f") of each category.

    Raises:
        `ValueError`: if a field is missing or something else.
    """
    content = json.loads(Path(file).read_text(encoding="utf-8-sig"))
    frequencies = {entry["id"]: entry.get("frequency") for entry in content["categories"]}
    for category, frequency in frequencies.items():
        if frequency not in LVIS_FREQUENCIES:
            raise _not_lvis(file, f"category {category} has the `frequency` {reprlib.repr(frequency)}")
    fields = []
    for name in ("neg_category_ids", "not_exhaustive_category_ids"):
        fields.append({})
        for image in content["images"]:
            categories = image.get(name)
            if not isinstance(categories, list) or not all(category in frequencies for category in categories):
                raise _not_lvis(file, f"image {image['id']} has the `{name}` {reprlib.repr(categories)}")
            fields[-1][image["id"]] = set(categories)
    return *fields, frequencies


def _not_lvis(file: str, text: str) -> ValueError:
    return ValueError(
        f"The annotations {file} are not in the format of LVIS: {text}. Leave out `--metric lvis` for annotations of "
        "every object."
    )


def _mean(values: np.ndarray) -> float:
    """Of the values that are defined; -1 if there are none."""
    defined = values[values > -1]
    return float(defined.mean()) if defined.size else -1.0
