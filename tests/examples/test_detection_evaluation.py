# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""Evaluation of detectors: DINO, the rules of LVIS, several scales and mirrored images."""

import json

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from testing_utils import REPOSITORY, randomize

from examples.object_detection import detect
from examples.object_detection import detection_metrics as metrics
from examples.object_detection import evaluate_detection as evaluate
from modeling_internimage import (
    DinoDetrConfig,
    DinoDetrForObjectDetection,
    DinoDetrImageProcessorPil,
    InternImageConfig,
    MaskRCNNConfig,
    MaskRCNNForObjectDetection,
    MaskRCNNImageProcessorPil,
    detect_objects,
)


LVIS = json.loads((REPOSITORY / "tests" / "fixtures" / "lvis.json").read_text())
BACKBONE = {"embed_dim": 16, "depths": [1, 1, 1, 1], "num_groups": [1, 2, 4, 8]}
LABELS = {"id2label": {0: "left", 1: "right"}, "label2id": {"left": 0, "right": 1}}
SIZE = {"shortest_edge": 64, "longest_edge": 106}


def lvis_evaluator(folder, annotations: dict, with_masks: bool = False) -> metrics.LvisEvaluator:
    (folder / "lvis.json").write_text(json.dumps(annotations))
    entries = {image["id"]: [] for image in annotations["images"]}
    for annotation in annotations["annotations"]:
        entries[annotation["image_id"]].append(annotation)
    objects = [json.dumps(own) for own in entries.values()]
    rows = datasets.Dataset.from_dict({"image_id": list(entries), "objects": objects})
    categories = {category["id"]: category["name"] for category in annotations["categories"]}
    image_processor = DinoDetrImageProcessorPil(category_ids=list(categories))
    return metrics.LvisEvaluator(rows, "objects", categories, image_processor, with_masks, folder / "lvis.json")


def add(evaluator: metrics.LvisEvaluator, image: dict, detections: list[dict]):
    boxes = torch.tensor([detection["bbox"] for detection in detections], dtype=torch.float64).reshape(-1, 4)
    category_ids = evaluator.image_processor.category_ids
    masks = torch.zeros(len(boxes), image["height"], image["width"], dtype=torch.bool)
    for mask, (left, top, width, height) in zip(masks, boxes.int().tolist()):
        mask[top : top + height, left : left + width] = True
    result = {
        "boxes": torch.cat((boxes[:, :2], boxes[:, :2] + boxes[:, 2:]), dim=1),
        "labels": torch.tensor([category_ids.index(detection["category_id"]) for detection in detections]),
        "scores": torch.tensor([detection["score"] for detection in detections], dtype=torch.float64),
        "masks": masks,
    }
    size = torch.tensor([image["height"], image["width"]])
    evaluator.add_detections([result], [{"image_id": torch.tensor([image["id"]]), "orig_size": size}])


def test_lvis_metrics(tmp_path):
    """What the packages lvis and faster-coco-eval say; objects are rectangles, so masks give the same numbers."""
    evaluator = lvis_evaluator(tmp_path, LVIS["annotations"], with_masks=True)
    for image in LVIS["annotations"]["images"]:
        add(evaluator, image, [own for own in LVIS["detections"] if own["image_id"] == image["id"]])
    result, per_category = evaluator.compute()
    for kind in ("bbox", "segm"):
        assert {name: result[f"{kind}_{name}"] for name in LVIS["expected"]} == pytest.approx(LVIS["expected"])
        assert np.mean(list(per_category[kind].values())) == pytest.approx(result[f"{kind}_map"])
    assert len(result) == 2 * len(LVIS["expected"])


def test_lvis_counts_the_best_300_of_an_image(tmp_path):
    """Before detections of categories that were not annotated are left out."""
    image = {"id": 7, "width": 20, "height": 10, "file_name": "7.jpg"}
    image |= {"neg_category_ids": [], "not_exhaustive_category_ids": []}
    categories = [{"id": idx, "name": str(idx), "frequency": "r"} for idx in (1, 2)]
    entry = {"id": 1, "image_id": 7, "category_id": 1, "bbox": [2, 2, 8, 8], "area": 64}
    annotations = {"images": [image], "annotations": [entry], "categories": categories}
    others = [{"category_id": 2, "bbox": [0, 0, 5, 5], "score": 0.9}]
    right = {"category_id": 1, "bbox": [2, 2, 8, 8], "score": 0.5}
    for number, expected in ((299, 1.0), (300, 0.0)):
        evaluator = lvis_evaluator(tmp_path, annotations)
        add(evaluator, image, [right, *others * number])
        result, per_category = evaluator.compute()
        assert result["bbox_map"] == result["bbox_map_rare"] == pytest.approx(expected)
        assert result["bbox_map_frequent"] == -1 and list(per_category["bbox"]) == ["1"]
    nothing_annotated = lvis_evaluator(tmp_path, annotations | {"annotations": []})
    add(nothing_annotated, image, [right])
    assert set(nothing_annotated.compute()[0].values()) == {-1.0}


@pytest.mark.parametrize(
    "part, change, message",
    [
        ("images", {"neg_category_ids": None}, "image 0 has the `neg_category_ids` None"),
        (
            "images",
            {"not_exhaustive_category_ids": [1, 99]},
            r"image 0 has the `not_exhaustive_category_ids` \[1, 99\]",
        ),
        ("categories", {"frequency": "x"}, "category 1 has the `frequency` 'x'"),
    ],
)
def test_bad_lvis_files(part, change, message, tmp_path):
    entries = LVIS["annotations"][part]
    annotations = LVIS["annotations"] | {part: [entries[0] | change, *entries[1:]]}
    with pytest.raises(ValueError, match=f"lvis.json are not in the format of LVIS: {message}.*`--metric lvis`"):
        lvis_evaluator(tmp_path, annotations)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Small detectors with random weights, and images in which the first finds everything, in both formats."""
    folder = tmp_path_factory.mktemp("evaluation")
    layers = {"d_model": 64, "encoder_layers": 1, "decoder_layers": 1, "num_queries": 20}
    backbone = InternImageConfig(**BACKBONE, out_features=["stage2", "stage3", "stage4"])
    dino = randomize(DinoDetrForObjectDetection(DinoDetrConfig(backbone_config=backbone, **layers, **LABELS))).eval()
    image_processor = DinoDetrImageProcessorPil(size=SIZE, max_detections=30)
    heads = {"hidden_size": 8, "box_head_hidden_size": 16, "mask_head_num_layers": 1, "score_threshold": 0.0}
    backbone = InternImageConfig(**BACKBONE, out_features=["stage1", "stage2", "stage3", "stage4"])
    mask_rcnn = randomize(MaskRCNNForObjectDetection(MaskRCNNConfig(backbone_config=backbone, **heads, **LABELS)))
    for name, model, processor in (
        ("dino", dino, image_processor),
        ("mask_rcnn", mask_rcnn, MaskRCNNImageProcessorPil(size=SIZE)),
    ):
        model.save_pretrained(folder / name)
        processor.save_pretrained(folder / name)

    random = np.random.default_rng(0)
    (folder / "val2017").mkdir()
    images, annotations = [], []
    for idx in range(3):
        image = random.integers(0, 256, (50 + 10 * idx, 70, 3), np.uint8)
        Image.fromarray(image).save(folder / "val2017" / f"{idx}.png")
        images.append({"id": idx, "width": 70, "height": 50 + 10 * idx, "file_name": f"{idx}.png"})
        found = detect_objects(dino, image_processor, image, max_detections=4)
        for label, (left, top, right, bottom) in zip(found["labels"].tolist(), found["boxes"].tolist()):
            entry = {"image_id": idx, "category_id": [4, 9][label], "bbox": [left, top, right - left, bottom - top]}
            annotations.append(entry | {"id": len(annotations) + 1})
    categories = [{"id": 4, "name": "left"}, {"id": 9, "name": "right"}]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "coco.json").write_text(json.dumps(content))
    for image in images:
        image["coco_url"] = f"http://images.cocodataset.org/val2017/{image.pop('file_name')}"
        image |= {"neg_category_ids": [4, 9], "not_exhaustive_category_ids": []}
    content["categories"] = [category | {"frequency": "f"} for category in categories]
    (folder / "lvis.json").write_text(json.dumps(content))
    return folder


def run(folder, output, *options: str, model: str = "dino", annotations: str = "coco.json") -> dict:
    images = folder if annotations == "lvis.json" else folder / "val2017"
    arguments = ["--model_name_or_path", str(folder / model), "--data_dir", str(images), "--num_workers", "0"]
    evaluate.main([*arguments, "--annotations", str(folder / annotations), "--output", str(output), *options])
    return json.loads(output.read_text())


def test_dino(folder, tmp_path):
    """By the same command as Mask R-CNN, one by one and in batches (of images that are padded alike); its pictures."""
    one = run(folder, tmp_path / "one.json")
    assert (one["num_images"], one["metric"], one["test_time"]) == (3, "coco", {})
    assert one["preprocessing"]["image_processor"] == "DinoDetrImageProcessor" and "segm_map" not in one
    assert one["bbox_map"] > 80
    assert run(folder, tmp_path / "two.json", "--batch_size", "2")["bbox_map"] == one["bbox_map"]
    assert run(folder, tmp_path / "mirrored.json", "--flip")["bbox_map"] < one["bbox_map"]
    options = ["--model_name_or_path", str(folder / "dino"), "--output_dir", str(tmp_path), "--threshold", "0"]
    detect.main([str(folder / "val2017" / "0.png"), *options])
    assert (tmp_path / "0_detections.png").is_file()


@pytest.mark.parametrize("model", ["dino", "mask_rcnn"])
def test_several_scales(model, folder, tmp_path):
    """The file and the model card say so."""
    result = run(folder, tmp_path / "ap.json", "--boxes_only", "--scales", "1", "1.5", "--flip", model=model)
    expected = {"scales": [1.0, 1.5], "flip": True, "merging": "weighted boxes fusion"}
    assert result["test_time"] == result["model_index"][0]["results"][0]["dataset"]["args"] == expected
    assert result["bbox_map"] is not None and "segm_map" not in result


def test_lvis_of_a_model(folder, tmp_path):
    """Images are found by their addresses. Here everything is annotated, and the numbers are COCO's."""
    result = run(folder, tmp_path / "lvis.json", "--metric", "lvis", annotations="lvis.json")
    coco = run(folder, tmp_path / "coco.json")
    assert result["metric"] == "lvis" and result["bbox_map"] == result["bbox_map_frequent"]
    for ours, name in (("map", "map"), ("map_75", "map_75"), ("map_small", "map_small"), ("mar_300", "mar_100")):
        assert result[f"bbox_{ours}"] == pytest.approx(coco[f"bbox_{name}"])
    assert result["bbox_map_rare"] is None
    assert result["model_index"][0]["results"][0]["dataset"]["args"] == {"metric": "lvis"}


@pytest.mark.parametrize(
    "options, model, message",
    [
        (["--flip"], "mask_rcnn", "merge boxes only: add `--boxes_only`"),
        (["--flip", "--batch_size", "2"], "dino", "one image at a time: leave out `--batch_size 2`"),
        (["--flip", "--scales", "0"], "dino", "`scales` must be one or more factors above 0"),
        (["--metric", "lvis"], "dino", "category 4 has the `frequency` None.*Leave out `--metric lvis`"),
    ],
)
def test_bad_arguments(options, model, message, folder, tmp_path):
    with pytest.raises(ValueError, match=message):
        run(folder, tmp_path / "ap.json", *options, model=model)
