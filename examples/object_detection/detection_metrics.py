# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""COCO's average precision and recall of boxes and masks, computed by pycocotools."""

import contextlib
import io
from functools import partial

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
        """Detections of a batch, of images whose `labels` come from the image processor."""
        sizes = torch.stack([label["orig_size"] for label in labels])
        process = self.image_processor.post_process_object_detection
        if self.with_masks:
            process = partial(self.image_processor.post_process_instance_segmentation, return_binary_maps=True)
        for label, result in zip(labels, process(outputs, threshold=0.0, target_sizes=sizes)):
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
        with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints tables
            truth = self._ground_truth({image_id: size for image_id, (size, _) in results.items()})
            metrics, per_category = {}, {}
            for kind in ("bbox", "segm") if self.with_masks else ("bbox",):
                evaluation = COCOeval(truth, self._load(truth, detections, kind), kind)
                evaluation.evaluate()
                evaluation.accumulate()
                evaluation.summarize()
                metrics |= {f"{kind}_{name}": float(value) for name, value in zip(METRICS, evaluation.stats)}
                # (overlaps, recalls, categories, areas, numbers of detections): all areas, the largest number
                precision = evaluation.eval["precision"][:, :, :, 0, -1]
                per_category[kind] = {
                    self.categories[category]: float(own[own > -1].mean()) if (own > -1).any() else -1.0
                    for category, own in zip(evaluation.params.catIds, np.moveaxis(precision, 2, 0))
                }
        return metrics, per_category

    def _ground_truth(self, sizes: dict[int, list[int]]) -> COCO:
        images, annotations = [], []
        for idx, row in enumerate(self.rows):
            image_id = row.get("image_id", idx)
            if image_id not in sizes:
                continue
            height, width = sizes[image_id]
            images.append({"id": image_id, "width": width, "height": height})
            for entry in annotations_of(row[self.label_column]):
                entry = check_annotation(entry, image_id)
                if self.with_masks:
                    runs = encode_mask(check_segmentation(entry, image_id, height, width), height, width)
                    entry["segmentation"] = runs
                area = entry["bbox"][2] * entry["bbox"][3]
                own = {"id": len(annotations) + 1, "image_id": image_id}
                annotations.append({"area": area} | entry | own)
        categories = [{"id": idx, "name": name} for idx, name in self.categories.items()]
        return _index({"info": {}, "images": images, "annotations": annotations, "categories": categories})

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
