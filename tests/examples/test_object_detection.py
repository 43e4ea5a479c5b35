# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""The scripts for detection, end to end on small real images, COCO's metrics, and what the scripts refuse."""

import gzip
import json
import pickle
import re
from types import SimpleNamespace

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from processes import run_in_two_processes
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from safetensors.torch import load_file
from testing_utils import GOLDEN, REPOSITORY, randomize, run_short_training
from torchvision import tv_tensors
from torchvision.transforms import v2
from transformers import AutoModelForObjectDetection, pipeline
from transformers.image_transforms import center_to_corners_format

from conversion.checkpoints import CHECKPOINTS, find_checkpoint
from examples import evaluation
from examples.object_detection import detect, show_sampling_points
from examples.object_detection import detection_augmentation as augmentation
from examples.object_detection import detection_data as data
from examples.object_detection import detection_metrics as metrics
from examples.object_detection import evaluate_detection as evaluate
from examples.object_detection import photographs_with_objects as photographs_script
from examples.object_detection import run_object_detection as script
from modeling_internimage import (
    CBInternImageBackbone,
    CBInternImageConfig,
    DinoDetrConfig,
    DinoDetrImageProcessor,
    InternImageForImageClassification,
    MaskRCNNConfig,
    MaskRCNNImageProcessor,
)


FOLDER = REPOSITORY / "examples" / "object_detection"


ARCHITECTURE = {"embed_dim": 16, "depths": [1, 1, 1, 1], "num_groups": [1, 2, 4, 8]}
HEADS = {"hidden_size": 8, "box_head_hidden_size": 16, "mask_head_num_layers": 1, "num_train_proposals": 50}
HEADS |= {"num_train_proposals_per_level": 50, "num_proposals_per_level": 50, "score_threshold": 0.0}
CATEGORIES = [{"id": 3, "name": "left"}, {"id": 70, "name": "right"}]  # with a gap


def rle(mask: np.ndarray, compressed: bool) -> dict:
    encoded = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    if compressed:
        return {"size": list(mask.shape), "counts": encoded["counts"].decode()}
    column = mask.T.ravel()
    changes = np.flatnonzero(np.diff(np.concatenate(([0], column)))).tolist()
    return {"size": list(mask.shape), "counts": np.diff([0, *changes, column.size]).tolist()}


def annotation(image_id: int, box, category: int = 3, **kwargs) -> dict:
    left, top, width, height = box
    corners = [left, top, left + width, top, left + width, top + height, left, top + height]
    own = {"image_id": image_id, "category_id": category, "bbox": list(box), "segmentation": [corners], "iscrowd": 0}
    return own | {"area": width * height} | kwargs


def write_scenes(folder, photographs):
    """Crops of a photograph, of different sizes, with every kind of annotation there is."""
    random = np.random.default_rng(0)
    (folder / "images" / "deeper").mkdir(parents=True)
    images, annotations = [], []
    for idx in range(5):
        (top, left), (height, width) = random.integers(0, 300, size=2), random.integers(60, 90, size=2).tolist()
        name = f"deeper/{idx}.jpg" if idx else "0.jpg"
        Image.fromarray(photographs[0][top : top + height, left : left + width]).save(folder / "images" / name)
        images.append({"id": 10 * idx, "file_name": name, "height": height, "width": width})
        mask = np.zeros((height, width), dtype=np.uint8)
        mask[20:50, 30:55] = 1
        if idx != 2:  # an image without objects
            annotations += [
                annotation(10 * idx, [4, 5, 20, 30]),
                annotation(10 * idx, [30, 20, 25, 30], 70, segmentation=rle(mask, compressed=idx % 2 == 0)),
            ]
    annotations += [
        annotation(0, [10, 10, 0, 30]),  # empty
        annotation(0, [40, -10, 200, 40]),  # beyond the image
        annotation(0, [500, 500, 10, 10]),  # outside
        annotation(0, [5, 5, 40, 40], ignore=1),
        annotation(10, [0, 0, 50, 50], 70, iscrowd=1, segmentation=rle(np.ones((images[1]["height"],
                   images[1]["width"])), compressed=False)),
        annotation(20, [0, 0, 40, 40], iscrowd=1, segmentation=rle(np.ones((images[2]["height"],
                   images[2]["width"])), compressed=False)),
    ]  # fmt: skip
    annotations = [entry | {"id": idx + 1} for idx, entry in enumerate(annotations)]
    content = {"images": images, "annotations": annotations, "categories": CATEGORIES}
    (folder / "annotations.json").write_text(json.dumps(content))


@pytest.fixture
def scenes(photographs, tmp_path):
    write_scenes(tmp_path / "scenes", photographs)
    return tmp_path / "scenes"


@pytest.fixture(scope="module")
def detector(tmp_path_factory, photographs):
    """A small Mask R-CNN with random weights, and images for it."""
    folder = tmp_path_factory.mktemp("detector")
    write_scenes(folder / "scenes", photographs)
    model_args = script.ModelArguments(config_overrides=ARCHITECTURE, head_overrides=HEADS | {"max_detections": 8})
    data_args = script.DataArguments(train_dir="x", train_annotations="y", shortest_edge=64)
    model, image_processor = script.load_model(model_args, data_args, {3: "left", 70: "right"})
    randomize(model).save_pretrained(folder / "model")
    image_processor.save_pretrained(folder / "model")
    return folder


def run(folder, output_dir, **kwargs):
    arguments = {
        "config_overrides": ARCHITECTURE,
        "head_overrides": HEADS,
        "train_dir": str(folder / "images"),
        "train_annotations": str(folder / "annotations.json"),
        "validation_dir": str(folder / "images"),
        "validation_annotations": str(folder / "annotations.json"),
        "shortest_edge": 64,
        "output_dir": str(output_dir),
        "per_device_eval_batch_size": 2,
    }
    run_short_training(script, output_dir.with_suffix(".json"), **(arguments | kwargs))
    return json.loads((output_dir / "all_results.json").read_text())


def test_train_save_resume_and_use(scenes, tmp_path):
    output = tmp_path / "output"
    options = {
        "min_shortest_edge": 48,
        "random_crop": True,
        "lr_milestones": [0.7],
        "metric_for_best_model": "bbox_map",
    }
    run(scenes, output, **options)
    for name in ("model.safetensors", "preprocessor_config.json", "training_curves.png", "README.md"):
        assert (output / name).is_file(), name
    results = run(scenes, output, **options, num_train_epochs=2)
    log = json.loads((output / "trainer_state.json").read_text())["log_history"]
    rates = {entry["step"]: entry["learning_rate"] for entry in log if "loss" in entry}
    assert list(rates) == [1, 2, 3, 4, 5, 6] and rates[6] == pytest.approx(1e-4)
    for kind in ("bbox", "segm"):
        for name in metrics.METRICS:
            assert -1 <= results[f"eval_{kind}_{name}"] <= 1
        assert results[f"eval_{kind}_map"] >= 0

    config = json.loads((output / "config.json").read_text())
    assert config["id2label"] == {"0": "left", "1": "right"} and config["use_mask_head"]
    image_processor = MaskRCNNImageProcessor.from_pretrained(output)
    assert image_processor.category_ids == [3, 70]
    assert dict(image_processor.size) == {"shortest_edge": 64, "longest_edge": 106}
    detections = pipeline("object-detection", model=str(output))(str(scenes / "images" / "0.jpg"), threshold=0.0)
    assert detections and {detection["label"] for detection in detections} <= {"left", "right"}


DINO = {"d_model": 64, "encoder_layers": 1, "encoder_ffn_dim": 32, "decoder_layers": 2, "decoder_ffn_dim": 32}
DINO |= {"num_queries": 20, "num_denoising": 4, "max_detections": 30}


def classifier_checkpoint(folder, config) -> InternImageForImageClassification:
    classifier = randomize(InternImageForImageClassification(config))
    classifier.save_pretrained(folder)
    return classifier


def test_dino(scenes, tmp_path, tiny_config):
    """A new head on a classifier, resumed; then other classes, for which only what depends on their number is new."""
    classifier_checkpoint(tmp_path / "classifier", tiny_config())
    options = {"config_overrides": None, "head_overrides": None, "gradient_checkpointing": True}
    dino = options | {"head": "dino_detr", "head_overrides": DINO, "backbone": str(tmp_path / "classifier")}
    first = tmp_path / "first"
    run(scenes, first, **dino, max_steps=2, save_strategy="steps", save_steps=2, eval_strategy="no", do_eval=False)
    results = run(scenes, first, **dino, metric_for_best_model="bbox_map", load_best_model_at_end=True)
    log = json.loads((first / "trainer_state.json").read_text())["log_history"]
    assert [entry["step"] for entry in log if "loss" in entry] == [1, 2, 3]
    assert 0 <= results["eval_bbox_map"] <= 1 and "eval_segm_map" not in results
    image_processor = DinoDetrImageProcessor.from_pretrained(first)
    assert (image_processor.category_ids, image_processor.max_detections) == ([3, 70], 30)
    detections = pipeline("object-detection", model=str(first))(str(scenes / "images" / "0.jpg"), threshold=0.0)
    assert len(detections) == 30 and {detection["label"] for detection in detections} == {"left", "right"}

    content = json.loads((scenes / "annotations.json").read_text())
    content["categories"] = [{"id": 5, "name": "new"}, *CATEGORIES]
    (scenes / "annotations.json").write_text(json.dumps(content))
    run(scenes, tmp_path / "second", **options, model_name_or_path=str(first), max_steps=1, do_eval=False,
        eval_strategy="no", learning_rate=0.0, weight_decay=0.0)  # fmt: skip
    kept, actual = (load_file(folder / "model.safetensors") for folder in (first, tmp_path / "second"))
    assert kept.keys() == actual.keys()
    new = {name for name, tensor in actual.items() if not torch.equal(tensor, kept[name])}
    expected = {f"class_embed.{idx}.{part}" for idx in range(3) for part in ("weight", "bias")}
    assert new == expected | {"denoising_class_embed.weight"}
    assert {len(actual[name]) for name in new} == {3}


@pytest.mark.parametrize("head", ["mask_rcnn", "dino_detr"])
@pytest.mark.parametrize("kind", ["classifier", "composite", "new"])
def test_composite_backbones(head, kind, tmp_path, tiny_config):
    """Two copies of a classifier's backbone, a composite backbone of its own, a new one; both networks are frozen."""
    arguments = {"head": head, "head_overrides": DINO if head == "dino_detr" else HEADS, "composite_backbone": True}
    if kind == "classifier":
        expected = classifier_checkpoint(tmp_path / kind, tiny_config()).internimage.encoder.state_dict()
    elif kind == "composite":
        composite = randomize(CBInternImageBackbone(CBInternImageConfig(**ARCHITECTURE)))
        composite.save_pretrained(tmp_path / kind)
        arguments["composite_backbone"] = False
        expected = composite.lead_encoder.state_dict()
    arguments |= {"config_overrides": ARCHITECTURE} if kind == "new" else {"backbone": str(tmp_path / kind)}
    model_args = script.ModelArguments(**arguments)
    data_args = script.DataArguments(train_dir="x", train_annotations="y", shortest_edge=64)
    model, _ = script.load_model(model_args, data_args, {3: "left"})
    assert isinstance(model.backbone, CBInternImageBackbone)
    assert len(model.backbone.out_features) == (3 if head == "dino_detr" else 4)
    if kind != "new":
        actual = model.backbone.lead_encoder.state_dict()
        assert all(torch.equal(tensor, expected[name]) for name, tensor in actual.items())
    if kind == "classifier":
        actual = model.backbone.assisting_encoder.state_dict()
        assert all(torch.equal(tensor, expected[name]) for name, tensor in actual.items())
    script.freeze_stages(model, 1)
    frozen = {re.match(r"backbone\.(\w+(\.stages\.\d)?)", name)[1] for name, parameter in model.named_parameters()
              if not parameter.requires_grad}  # fmt: skip
    assert frozen == {"embeddings", "assisting_encoder.stages.0", "lead_encoder.stages.0"}


def test_other_levels(tmp_path):
    """A checkpoint whose configuration was changed is refused; masks are for Mask R-CNN."""
    model_args = script.ModelArguments(config_overrides=ARCHITECTURE, head="dino_detr", head_overrides=DINO)
    data_args = script.DataArguments(train_dir="x", train_annotations="y", shortest_edge=64)
    model, image_processor = script.load_model(model_args, data_args, {3: "left"})
    model.config.num_feature_levels = 5
    model.save_pretrained(tmp_path)
    image_processor.save_pretrained(tmp_path)
    model_args = script.ModelArguments(model_name_or_path=str(tmp_path))
    with pytest.raises(ValueError, match="lacks 'decoder.*', or has it in another shape .* number of feature levels"):
        script.load_model(model_args, data_args, {3: "left"})
    model_args.use_mask_head = True
    with pytest.raises(ValueError, match="`--use_mask_head true` is for Mask R-CNN, dino_detr has no masks"):
        script.load_model(model_args, data_args, {3: "left"})


@torch.no_grad()
def test_sampling_points_of_a_detection(scenes, tmp_path):
    """Relative to the image without padding; the box is that of the detection; a picture of all layers."""
    head = DINO | {"decoder_layers": 3}
    model_args = script.ModelArguments(config_overrides=ARCHITECTURE, head="dino_detr", head_overrides=head)
    data_args = script.DataArguments(train_dir="x", train_annotations="y", shortest_edge=200, longest_edge=320)
    model, image_processor = script.load_model(model_args, data_args, {3: "left", 70: "right"})
    randomize(model).save_pretrained(tmp_path)
    image_processor.save_pretrained(tmp_path)
    inputs = image_processor(Image.new("RGB", (250, 200), "red"), return_tensors="pt")
    assert inputs["pixel_values"].shape[2:] == (224, 256)
    detection = show_sampling_points.detection_with_points(model, inputs, number=2)
    expected = image_processor.post_process_object_detection(model(**inputs), target_sizes=[(1, 1)])[0]
    assert (detection["score"], detection["label"]) == (expected["scores"][2], expected["labels"][2])
    corners = center_to_corners_format(detection["boxes"][-1]).clamp(0, 1)
    torch.testing.assert_close(corners, expected["boxes"][2])

    locations = {}
    for idx, layer in enumerate(model.decoder.layers):
        layer.encoder_attn.attn.register_forward_pre_hook(
            lambda module, arguments, idx=idx: locations.update({idx: arguments[4]})
        )
    outputs = model(**inputs)
    query = outputs.logits[0].sigmoid().flatten().argsort(descending=True)[2].item() // 2
    # Positions of each level in the image: 25 of 28 rows and 32 of 32 columns of the finest, 4 of 4 of the coarsest.
    ratios = torch.tensor([[1, 25 / 28], [1, 13 / 14], [1, 1], [1, 1]])[:, None]
    for idx, points in enumerate(detection["points"]):
        torch.testing.assert_close(points * ratios, locations[idx][0, query], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(detection["weights"].sum(dim=(2, 3)), torch.ones(3, 8))

    options = ["--model_name_or_path", str(tmp_path), "--image", str(scenes / "images" / "0.jpg")]
    show_sampling_points.main([*options, "--output", str(tmp_path / "points.png")])
    with Image.open(tmp_path / "points.png") as picture:
        assert picture.width > 1000 and np.asarray(picture.convert("RGB")).std() > 20
    with pytest.raises(ValueError, match=r"\(`--detection`\) must be from 0 to 39"):
        show_sampling_points.main([*options, "--output", str(tmp_path / "points.png"), "--detection", "40"])


def hub_dataset(folder, scenes, category_name: str = "category"):
    """As `cppe-5`: files inside a table, objects as lists."""
    import datasets

    content = json.loads((scenes / "annotations.json").read_text())
    rows = []
    for image in content["images"]:
        own = [entry for entry in content["annotations"] if entry["image_id"] == image["id"] and not entry["iscrowd"]]
        objects = {
            "bbox": [entry["bbox"] for entry in own],
            category_name: [int(entry["category_id"] == 70) for entry in own],
        }
        rows.append(
            {
                "image": {"bytes": (scenes / "images" / image["file_name"]).read_bytes(), "path": None},
                "objects": objects,
            }
        )
    classes = datasets.List(datasets.ClassLabel(names=["left", "right"]))
    features = {"bbox": datasets.List(datasets.List(datasets.Value("float32"))), category_name: classes}
    features = datasets.Features({"image": datasets.Image(), "objects": features})
    folder.mkdir()
    columns = {name: [row[name] for row in rows] for name in ("image", "objects")}
    datasets.Dataset.from_dict(columns, features=features).to_parquet(folder / "validation.parquet")
    datasets.Dataset.from_dict(columns, features=features).to_parquet(folder / "train.parquet")


FILES = dict.fromkeys(("train_dir", "train_annotations", "validation_dir", "validation_annotations"))


def test_a_hub_dataset_without_masks(scenes, tmp_path, tiny_config):
    """New heads on a classifier's backbone, which is kept; then other classes, in the order of the data."""
    hub_dataset(tmp_path / "hub", scenes)
    classifier = classifier_checkpoint(tmp_path / "classifier", tiny_config())
    options = {"config_overrides": None, "learning_rate": 0.0, "weight_decay": 0.0, "gradient_checkpointing": True}
    results = run(scenes, tmp_path / "first", **options, **FILES, dataset_name=str(tmp_path / "hub"),
                  backbone=str(tmp_path / "classifier"), use_mask_head=False, freeze_stages=2)  # fmt: skip
    assert "eval_bbox_map" in results and "eval_segm_map" not in results
    content = json.loads((scenes / "annotations.json").read_text())
    content["categories"] = [{"id": 5, "name": "new"}, *CATEGORIES]
    (scenes / "annotations.json").write_text(json.dumps(content))
    run(scenes, tmp_path / "second", **options, head_overrides=None, model_name_or_path=str(tmp_path / "first"),
        do_eval=False, eval_strategy="no", max_steps=1)  # fmt: skip
    model = AutoModelForObjectDetection.from_pretrained(tmp_path / "second")
    assert model.config.id2label == {0: "new", 1: "left", 2: "right"} and not model.config.use_mask_head
    expected = classifier.internimage.state_dict()
    for name, tensor in model.backbone.state_dict().items():
        assert torch.equal(tensor, expected[name]), name


def test_images_without_annotations(scenes, tmp_path):
    """Left out on request: not one with a crowd, as in mmdetection."""
    content = json.loads((scenes / "annotations.json").read_text())
    content["annotations"] = [entry for entry in content["annotations"] if entry["image_id"] in (0, 20)]
    (scenes / "annotations.json").write_text(json.dumps(content))
    options = {"do_eval": False, "eval_strategy": "no", "per_device_train_batch_size": 1}
    for skip, steps in ((False, 5), (True, 2)):
        run(scenes, tmp_path / str(skip), **options, skip_images_without_annotations=skip)
        assert json.loads((tmp_path / str(skip) / "trainer_state.json").read_text())["global_step"] == steps


def test_use_kernels(detector, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(evaluation, "use_dcnv3_kernel", lambda model: asked.append(type(model).__name__) or model)
    options = ["--model_name_or_path", str(detector / "model"), "--use_kernels"]
    data_options = ["--data_dir", str(detector / "scenes" / "images"), "--max_samples", "1", "--num_workers", "0"]
    evaluate.main([*options, *data_options, "--annotations", str(detector / "scenes" / "annotations.json")])
    detect.main([str(detector / "scenes" / "images" / "0.jpg"), *options, "--output_dir", str(tmp_path)])
    assert asked == ["MaskRCNNForObjectDetection"] * 2


def test_data_without_masks(detector, tmp_path):
    """A model with mask heads is evaluated on boxes only if asked to, and says so before it has seen an image."""
    hub_dataset(tmp_path / "hub", detector / "scenes")
    options = ["--model_name_or_path", str(detector / "model"), "--dataset_name", str(tmp_path / "hub")]
    options += ["--num_workers", "0", "--output", str(tmp_path / "ap.json")]
    with pytest.raises(ValueError, match="image 0 has an object without `segmentation`.*`--boxes_only`"):
        evaluate.main(options)
    evaluate.main([*options, "--boxes_only", "--max_samples", "3"])
    result = json.loads((tmp_path / "ap.json").read_text())
    assert result["num_images"] == 3 and "bbox_map" in result and "segm_map" not in result


def test_classes_keep_the_order_of_a_checkpoint(detector):
    model_args = script.ModelArguments(model_name_or_path=str(detector / "model"))
    data_args = script.DataArguments(train_dir="x", train_annotations="y")
    model, image_processor = script.load_model(model_args, data_args, {8: "right", 9: "left"})
    assert model.config.id2label == {0: "left", 1: "right"} and image_processor.category_ids == [9, 8]


def coco_api(scenes, results: list[dict], kind: str) -> np.ndarray:
    truth = COCO(scenes / "annotations.json")
    evaluation = COCOeval(truth, truth.loadRes(results), kind)
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return evaluation.stats


def test_metrics_are_those_of_the_file(scenes):
    """Objects found exactly, shifted, twice, not at all, inside of crowds: as COCO's API says of files."""
    rows, categories = data.read_coco(str(scenes / "images"), str(scenes / "annotations.json"), "--annotations")
    image_processor = MaskRCNNImageProcessor(category_ids=[3, 70])
    evaluator = metrics.CocoEvaluator(rows, "objects", categories, image_processor, with_masks=True)
    content = json.loads((scenes / "annotations.json").read_text())
    random = np.random.default_rng(0)
    expected = {"bbox": [], "segm": []}
    for image in content["images"]:
        height, width = image["height"], image["width"]
        boxes, labels, scores = [], [], []
        for entry in content["annotations"]:
            if entry["image_id"] == image["id"]:
                for _ in range(random.integers(0, 3)):
                    left, top, box_width, box_height = np.array(entry["bbox"]) + random.integers(-2, 3, size=4)
                    boxes.append([left / width, top / height, (left + box_width) / width, (top + box_height) / height])
                    labels.append(int(entry["category_id"] == 70))
                    scores.append(random.random())
        boxes = torch.tensor(boxes, dtype=torch.float64).reshape(-1, 4)
        sizes = boxes[:, 2:] - boxes[:, :2]
        outputs = SimpleNamespace(
            pred_boxes=torch.cat((boxes[:, :2] + sizes / 2, sizes), dim=1)[None],
            pred_scores=torch.tensor(scores, dtype=torch.float64)[None],
            pred_labels=torch.tensor(labels, dtype=torch.int64)[None],
            pred_masks=torch.ones(1, len(labels), 4, 4, dtype=torch.float64),
        )
        evaluator.add(outputs, [{"image_id": torch.tensor([image["id"]]), "orig_size": torch.tensor([height, width])}])
        result = image_processor.post_process_instance_segmentation(outputs, 0.0, target_sizes=[(height, width)])[0]
        for box, mask, label, score in zip(result["boxes"].tolist(), result["masks"].numpy(), labels, scores):
            box = [box[0], box[1], box[2] - box[0], box[3] - box[1]]
            own = {"image_id": image["id"], "category_id": [3, 70][label], "score": score}
            expected["bbox"].append(own | {"bbox": box})
            expected["segm"].append(own | {"segmentation": rle(mask, compressed=True)})
    actual, per_category = evaluator.compute()
    for kind in ("bbox", "segm"):
        stats = coco_api(scenes, expected[kind], kind)
        assert [actual[f"{kind}_{name}"] for name in metrics.METRICS] == pytest.approx(stats.tolist())
        assert 0.1 < actual[f"{kind}_map"] < 0.9
        assert np.mean(list(per_category[kind].values())) == pytest.approx(actual[f"{kind}_map"])


NOTHING = {"pred_boxes": (1, 3, 4), "pred_scores": (1, 3), "pred_labels": (1, 3), "pred_masks": (1, 3, 4, 4)}
NOTHING = SimpleNamespace(**{name: torch.zeros(shape) for name, shape in NOTHING.items()})


def test_no_detections(scenes):
    rows, categories = data.read_coco(str(scenes / "images"), str(scenes / "annotations.json"), "--annotations")
    evaluator = metrics.CocoEvaluator(rows, "objects", categories, MaskRCNNImageProcessor(), False)
    evaluator.add(NOTHING, [{"image_id": torch.tensor([0]), "orig_size": torch.tensor([70, 70])}])
    result, _ = evaluator.compute()
    assert result["bbox_map"] == 0.0 and result["bbox_map_large"] == -1


CODE = """
from examples.object_detection import evaluate_detection, run_object_detection

evaluate_detection.main(arguments[0])
run_object_detection.main(arguments[1])
"""


@pytest.mark.slow
def test_two_processes_count_every_image_once(detector, tmp_path):
    """Five images for two processes, in the evaluation script and in the Trainer: the metrics of one process."""
    scenes, checkpoint = detector / "scenes", str(detector / "model")
    evaluation = ["--model_name_or_path", checkpoint, "--data_dir", str(scenes / "images"), "--annotations",
                  str(scenes / "annotations.json"), "--num_workers", "0", "--output"]  # fmt: skip
    training = ["--model_name_or_path", checkpoint, "--validation_dir", str(scenes / "images"), "--do_eval"]
    training += ["--validation_annotations", str(scenes / "annotations.json"), "--per_device_eval_batch_size", "1"]
    training += ["--report_to", "none", "--disable_tqdm", "true", "--output_dir"]
    options = [[*evaluation, str(tmp_path / "two.json")], [*training, str(tmp_path / "two")]]
    printed = run_in_two_processes(tmp_path, CODE, *options)
    evaluate.main([*evaluation, str(tmp_path / "one.json")])
    script.main([*training, str(tmp_path / "one")])
    one, two = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("one", "two"))
    assert (two["processes"], two["num_images"], printed.count("of 5 images")) == (2, 5, 1)
    trainer = [json.loads((tmp_path / name / "all_results.json").read_text()) for name in ("one", "two")]
    for kind in ("bbox", "segm"):
        for name in (f"{kind}_{metric}" for metric in metrics.METRICS):
            expected = -1 if one[name] is None else one[name] / 100
            assert (-1 if two[name] is None else two[name] / 100) == pytest.approx(expected)
            assert [result[f"eval_{name}"] for result in trainer] == pytest.approx([expected] * 2, abs=1e-6)
        assert one[f"{kind}_map"] == pytest.approx(np.mean(list(one["categories"][kind].values())), abs=1e-3)
    assert one["model_index"][0]["results"][0]["metrics"][0]["name"] == "box AP"


@pytest.mark.slow
def test_dino_in_two_processes(scenes, tmp_path):
    """
    One image each, one of them without objects: losses are divided by the mean number of objects, and every parameter
    has a gradient, as processes require with gradient checkpointing.
    """
    head = DINO | {"label_noise_ratio": 0.0, "box_noise_scale": 0.0}
    architecture = ARCHITECTURE | {"drop_path_rate": 0.0}
    model_args = script.ModelArguments(config_overrides=architecture, head="dino_detr", head_overrides=head)
    data_args = script.DataArguments(train_dir="x", train_annotations="y", shortest_edge=64, horizontal_flip=False)
    categories = {entry["id"]: entry["name"] for entry in CATEGORIES}
    model, image_processor = script.load_model(model_args, data_args, categories)
    randomize(model).save_pretrained(tmp_path / "start")
    image_processor.save_pretrained(tmp_path / "start")
    content = json.loads((scenes / "annotations.json").read_text())
    content["images"] = content["images"][1:3]  # with two objects and none
    content["annotations"] = [entry for entry in content["annotations"] if entry["image_id"] in (10, 20)]
    (scenes / "annotations.json").write_text(json.dumps(content))

    rows, _ = data.read_coco(str(scenes / "images"), str(scenes / "annotations.json"), "--annotations")
    augmentation = script.training_augmentation(image_processor, data_args)
    images = data.DetectionImages(rows, ("image", "objects"), image_processor, False, augmentation)
    expected = 0
    model.train()
    for example, (own, own_denoising) in zip((images[0], images[1]), ((2, 4), (0, 0))):
        for name, loss in model(**data.Collate(image_processor)([example])).loss_dict.items():
            count, mean = (own_denoising, 2) if "_dn" in name else (own, 1)
            expected += loss.item() * max(count, 1) / mean / 2

    options = {f"{split}_dir": str(scenes / "images") for split in ("train", "validation")}
    options |= {f"{split}_annotations": str(scenes / "annotations.json") for split in ("train", "validation")}
    options |= {"model_name_or_path": str(tmp_path / "start"), "horizontal_flip": False, "output_dir": str(tmp_path),
                "do_train": True, "max_steps": 2, "per_device_train_batch_size": 1, "gradient_checkpointing": True,
                "learning_rate": 0.0, "logging_steps": 1, "report_to": "none", "disable_tqdm": True}  # fmt: skip
    (tmp_path / "run.json").write_text(json.dumps(options))
    code = "from examples.object_detection import run_object_detection\nrun_object_detection.main(arguments[0])"
    run_in_two_processes(tmp_path, code, [str(tmp_path / "run.json")])
    log = json.loads((tmp_path / "trainer_state.json").read_text())["log_history"]
    assert [entry["loss"] for entry in log if "loss" in entry] == pytest.approx([expected] * 2, rel=1e-4)


@pytest.mark.parametrize("random_crop", [False, True])
def test_augmentation_keeps_image_and_objects_together(random_crop):
    """Where the image is bright there is the mask, and the box around it."""
    image = torch.zeros(3, 700, 900, dtype=torch.uint8)
    image[:, 300:420, 350:610] = 255
    boxes = tv_tensors.BoundingBoxes([[350.0, 300, 610, 420], [0, 0, 9, 9]], format="XYXY", canvas_size=(700, 900))
    masks = torch.zeros(2, 700, 900, dtype=torch.bool)
    masks[0], masks[1, :9, :9] = image[0] > 0, True
    data_args = script.DataArguments(
        train_dir="x", train_annotations="y", min_shortest_edge=200, random_crop=random_crop
    )
    augment = script.training_augmentation(
        MaskRCNNImageProcessor(size={"shortest_edge": 400, "longest_edge": 600}), data_args
    )
    sizes, numbers = set(), set()
    for seed in range(12):
        torch.manual_seed(seed)
        target = {"boxes": boxes, "labels": torch.tensor([7, 8]), "masks": tv_tensors.Mask(masks)}
        pixels, target = augment(tv_tensors.Image(image), target)
        sizes.add(tuple(pixels.shape[1:]))
        numbers.add(len(target["labels"]))
        assert len(target["labels"]) == len(target["boxes"]) == len(target["masks"])
        assert min(pixels.shape[1:]) <= 400 and max(pixels.shape[1:]) <= 600
        for box, label, mask in zip(target["boxes"], target["labels"], target["masks"]):
            if label == 7:
                rows, columns = (pixels[0] > 127).nonzero().unbind(dim=1)
                bright = torch.stack((columns.min(), rows.min(), columns.max() + 1, rows.max() + 1))
                torch.testing.assert_close(box.as_subclass(torch.Tensor), bright.float(), atol=2.0, rtol=0)
                assert ((pixels[0] > 127) == mask).float().mean() > 0.98
    assert len(sizes) > 3 and (numbers == {2} if not random_crop else len(numbers) > 1)


def augmented_sizes(image_size: tuple[int, int], number: int = 60, **arguments) -> list[tuple[int, int]]:
    """Sizes of an image with an object everywhere after random augmentations of the training script."""
    image_processor = MaskRCNNImageProcessor(size={"shortest_edge": 100, "longest_edge": 200})
    augment = script.training_augmentation(
        image_processor, script.DataArguments(train_dir="x", train_annotations="y", **arguments)
    )
    height, width = image_size
    boxes = tv_tensors.BoundingBoxes([[0.0, 0, width, height]], format="XYXY", canvas_size=image_size)
    image = tv_tensors.Image(torch.zeros(3, height, width, dtype=torch.uint8))
    torch.manual_seed(0)
    return [tuple(augment(image, {"boxes": boxes, "labels": torch.tensor([0])})[0].shape[1:]) for _ in range(number)]


def test_scales_of_the_training_alone():
    """Beyond those of the image processor, in steps of a pixel, with both ends; a fixed one."""
    ends = augmented_sizes(
        (60, 90), min_shortest_edge=60, max_shortest_edge=64, step_of_scales=1, train_longest_edge=96
    )
    assert {min(size) for size in ends} == {60, 61, 62, 63, 64}
    assert {size for size in ends if min(size) == 64} == {(64, 96)}
    fixed = augmented_sizes((60, 90), number=3, min_shortest_edge=30, max_shortest_edge=30, train_longest_edge=40)
    assert set(fixed) == {(26, 40)}


def test_long_images_are_cut_at_full_size():
    """The longer side has no limit before the authors' crops for DINO, so that a panorama keeps its 400 pixels."""
    recipe = {"random_crop": True, "min_shortest_edge": 64, "max_shortest_edge": 64, "train_longest_edge": 500}
    both = [augmented_sizes((64, 640), crop_with_objects=flag, **recipe) for flag in (False, True)]
    # Limited to 500 pixels, the image has a shorter side of 50, and so has what is cut from it.
    assert [max(size[1] / size[0] for size in sizes if size != (50, 500)) > 2 for sizes in both] == [True, False]


def test_a_crop_without_objects_is_replaced(scenes, monkeypatch):
    """By another image; data where no crop has an object end with a sentence."""
    rows, _ = data.read_coco(str(scenes / "images"), str(scenes / "annotations.json"), "--annotations")
    image_processor = MaskRCNNImageProcessor(category_ids=[3, 70], size={"shortest_edge": 64, "longest_edge": 106})
    crop = augmentation.RandomSizedCrop(with_objects=True)
    images = data.DetectionImages(rows, ("image", "objects"), image_processor, False, crop)
    empty = rows.map(lambda row: {"objects": "[]"})
    none = data.DetectionImages(empty, ("image", "objects"), image_processor, False, crop)
    first_empty = datasets.concatenate_datasets([empty.select([0]), rows.select([0])])
    replaced = data.DetectionImages(first_empty, ("image", "objects"), image_processor, False, crop)[0]
    assert torch.equal(replaced["labels"]["image_id"], images[0]["labels"]["image_id"])
    assert len(replaced["labels"]["boxes"]) > 0
    monkeypatch.setattr(data, "MAX_DRAWS", 5)
    with pytest.raises(ValueError, match="crops of 5 images had no object: leave out `--crop_with_objects`"):
        none[0]


def test_labels_after_augmentation(scenes):
    """Mirrored and nothing else: relative boxes and masks are mirrored, and the image processor normalises."""
    rows, _ = data.read_coco(str(scenes / "images"), str(scenes / "annotations.json"), "--annotations")
    image_processor = MaskRCNNImageProcessor(category_ids=[3, 70], size={"shortest_edge": 64, "longest_edge": 106})
    mirror = v2.RandomHorizontalFlip(1.0)
    plain = data.DetectionImages(rows, ("image", "objects"), image_processor, True, v2.Identity())[0]
    mirrored = data.DetectionImages(rows, ("image", "objects"), image_processor, True, mirror)[0]
    assert len(plain["labels"]["boxes"]) == 3  # of six
    expected = plain["labels"]["boxes"].clone()
    expected[:, 0] = 1 - expected[:, 0]
    torch.testing.assert_close(mirrored["labels"]["boxes"], expected)
    assert torch.equal(mirrored["labels"]["masks"], plain["labels"]["masks"].flip(-1))
    batch = data.Collate(image_processor)([plain, mirrored])
    height, width = plain["image"].shape[1:]
    direct = image_processor(plain["image"], do_resize=False, return_tensors="pt")["pixel_values"]
    assert torch.equal(batch["pixel_values"][0], direct[0]) and batch["pixel_mask"][0].sum() == height * width


def test_data_are_sent_to_spawned_workers(scenes):
    """Where processes are spawned (macOS, Windows) or forked from a server, the data set is pickled for them."""
    data_args = script.DataArguments(train_dir="x", train_annotations="y", min_shortest_edge=48, random_crop=True)
    image_processor = MaskRCNNImageProcessor(category_ids=[3, 70], size={"shortest_edge": 64, "longest_edge": 106})
    augmentation = script.training_augmentation(image_processor, data_args)
    rows, _ = data.read_coco(str(scenes / "images"), str(scenes / "annotations.json"), "--annotations")
    images = data.DetectionImages(rows, ("image", "objects"), image_processor, True, augmentation)
    images, collate = pickle.loads(pickle.dumps((images, data.Collate(image_processor))))
    assert len(collate([images[0], images[1]])["labels"]) == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda file: file["images"][1].update(file_name="gone.jpg"), "1 of 5 images do not exist, .*gone"),
        (lambda file: file["images"][1].update(file_name=3), "'images' has the entry .* 'file_name' text"),
        (lambda file: file["annotations"][0].update(image_id=99), "annotation of the image 99, which is not among"),
        (lambda file: file["annotations"][0].update(category_id=4), r"category 4 on the image 0.*\[3, 70\]"),
        (lambda file: file["annotations"][0].update(category_id="3"), "1 of image 0 has the category '3'.* no text"),
        (lambda file: file["annotations"][0].update(bbox=[1, 2, 3]), "Annotation 1 of image 0 has the `bbox`"),
        (lambda file: file["annotations"][0].update(bbox=[1, 2, 3, float("nan")]), r"`bbox` \[1, 2, 3, nan\]"),
        (lambda file: file["images"][1].update(id=0), "'images' has the id 0 twice"),
        (lambda file: file["images"][1].update(id="1"), "'id' must be an integer"),
        (lambda file: file["images"][1].update(width="70"), "image 10 has the width '70'"),
        (
            lambda file: (
                file["categories"].append({"id": 4, "name": "left"}),
                file["annotations"][1].update(category_id=4),
            ),
            "categories 3 and 4 have the same name 'left'",
        ),
        (lambda file: file.pop("categories"), "no list 'categories' .* must be in COCO's format"),
        (lambda file: file.update(annotations=[3]), "no list 'annotations' of dictionaries"),
        (lambda file: file.update(images=[]), "0 images and 2 categories"),
        (lambda file: file["annotations"][0].pop("segmentation"), "image 0 has an object without `segmentation`"),
        (
            lambda file: (file.update(annotations=file["annotations"][:1]), file["images"][1].update(width=7)),
            "pixels, but its annotations say 7x",
        ),
        (lambda file: file["annotations"][0].update(segmentation=[[1, 2]]), "no polygon with three corners"),
        (
            lambda file: file["annotations"][0]["segmentation"][0].__setitem__(0, 1e9),
            "Annotation 1 of image 0 has the",
        ),
        (lambda file: file["annotations"][1]["segmentation"].update(size=[5, 5]), "Annotation 2 .* 5x5 pixels"),
        (
            lambda file: [entry.update(iscrowd=1) for entry in file["annotations"]],
            "All .* objects are marked `iscrowd`",
        ),
    ],
)
def test_bad_annotations(change, message, scenes, tmp_path):
    content = json.loads((scenes / "annotations.json").read_text())
    change(content)
    (scenes / "annotations.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message):
        run(scenes, tmp_path / "output")
    assert not (tmp_path / "output" / "model.safetensors").exists()


def read(scenes, change=None):
    """Rows and categories of the scenes with changed annotations, checked as the scripts do."""
    if change is not None:
        content = json.loads((scenes / "annotations.json").read_text())
        change(content)
        (scenes / "annotations.json").write_text(json.dumps(content))
    rows, categories = data.read_coco(str(scenes / "images"), str(scenes / "annotations.json"), "--annotations")
    data.check_objects(rows, "objects", with_masks=True)
    return rows, categories


def test_unusual_annotations(scenes, caplog):
    """As annotation tools write them: the labels are those of the usual form, and a count says what is left out."""
    image_processor = MaskRCNNImageProcessor(category_ids=[3, 70])
    expected = data.DetectionImages(read(scenes)[0], ("image", "objects"), image_processor, True)[0]["labels"]
    assert not caplog.messages

    def change(file):
        file["annotations"][0].update(area=None, iscrowd=None)
        file["annotations"][0]["segmentation"] = file["annotations"][0]["segmentation"][0]
        file["annotations"][2]["segmentation"] += [[1, 2, 3, 4], []]
        file["categories"] = [{"id": 0, "name": "right"}, *file["categories"]]  # an unused root
        file["images"][0].update(width=None)

    rows, categories = read(scenes, change)
    assert caplog.messages == ["2 polygons with fewer than three corners are left out of the masks."]
    assert categories == {3: "left", 70: "right"}
    actual = data.DetectionImages(rows, ("image", "objects"), image_processor, True)[0]["labels"]
    assert all(torch.equal(actual[name], expected[name]) for name in expected)


@pytest.mark.parametrize("name", ["../secret.jpg", "link.jpg", "folder/secret.jpg", "loop/0.jpg", "\0", None])
def test_images_stay_inside_their_folder(name, scenes):
    image = (scenes / "images" / "0.jpg").read_bytes()
    (scenes / "secret.jpg").write_bytes(image)
    (scenes / "images" / "link.jpg").symlink_to(scenes / "secret.jpg")
    (scenes / "images" / "folder").symlink_to(scenes)
    (scenes / "images" / "loop").symlink_to(scenes / "images" / "loop")
    name = name or str(scenes / "secret.jpg")
    with pytest.raises(ValueError, match="--annotations .*(is outside of the folder|1 of 5 images do not exist)"):
        read(scenes, lambda file: file["images"][0].update(file_name=name))


def test_links_inside_the_folder(scenes):
    (scenes / "images" / "link.jpg").symlink_to("deeper/1.jpg")
    (scenes / "link").symlink_to(scenes / "images")
    change = {"file_name": "link.jpg"}
    read(scenes, lambda file: file["images"][1].update(change))
    rows, _ = data.read_coco(str(scenes / "link"), str(scenes / "annotations.json"), "--annotations")
    assert len(rows) == 5


VALUES = [None, True, -1, 0, 0.5, 1e9, -1e308, 10**30, float("nan"), float("inf"), "", "3", "\ud800", [], {}, [[]]]
VALUES += [[1, 2], [[1, 2, 3, 4]], {"size": [9, 9], "counts": "0"}, {"size": [2**31] * 2, "counts": [2**62]}, [[[1]]]]


def mutate(value, random: np.random.Generator):
    """`value` with something inside of it, found at random, replaced, left out, doubled or wrapped."""
    if isinstance(value, dict | list) and value and random.random() < 0.97:
        value = value.copy()
        keys = list(value) if isinstance(value, dict) else range(len(value))
        key = keys[random.integers(len(keys))]
        if random.random() < 0.05:
            del value[key]
        elif isinstance(value, list) and random.random() < 0.05:
            value.append(value[key])
        else:
            value[key] = mutate(value[key], random)
        return value
    return [value] if random.random() < 0.1 else VALUES[random.integers(len(VALUES))]


@pytest.mark.slow
def test_mutated_files(scenes, first=0, number=200):
    """Labels and metrics are right, or a `ValueError` names the file or the annotation."""
    good = json.loads((scenes / "annotations.json").read_text())
    image_processor = MaskRCNNImageProcessor(category_ids=[3, 70], do_resize=False)
    accepted = 0
    for seed in range(first, first + number):
        random = np.random.default_rng(seed)
        content = good
        for _ in range(random.integers(1, 3)):
            content = mutate(content, random)
        (scenes / "annotations.json").write_text(json.dumps(content))
        try:
            rows, categories = read(scenes)
            examples = data.DetectionImages(rows, ("image", "objects"), image_processor, True)
            evaluator = metrics.CocoEvaluator(rows, "objects", categories, image_processor, with_masks=True)
            for example in (examples[idx] for idx in range(len(rows))):
                labels = example["labels"]
                height, width = example["image"].shape[1:]
                assert labels["masks"].shape == (len(labels["class_labels"]), height, width)
                assert ((labels["boxes"] >= 0) & (labels["boxes"] <= 1)).all()
                evaluator.add(NOTHING, [labels])
            evaluator.compute()
        except ValueError as error:
            assert re.search(r"annotations\.json|annotation|image \w+", str(error), re.IGNORECASE), error
            continue
        accepted += 1
    assert number > accepted > number // 30


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"train_annotations": None}, "`--train_dir` and `--train_annotations` go together"),
        (FILES, "No images: give `--dataset_name`"),
        ({"train_annotations": "gone.json"}, "`--train_annotations gone.json` is not a file"),
        ({"mixup": 0.8}, "`--mixup` and `--cutmix` are for classification"),
        ({"model_name_or_path": "somewhere"}, "describe a new model: leave out `--model_name_or_path`"),
        ({"label_smoothing_factor": 0.1}, "`--label_smoothing_factor` is for classification"),
        ({"freeze_stages": 9}, "must be between 0 and 4"),
        ({"crop_with_objects": True}, "`--crop_with_objects` belongs to `--random_crop`"),
        ({"step_of_scales": 0}, "`--step_of_scales 0` must be at least 1"),
        ({"min_shortest_edge": 65}, "`--min_shortest_edge 65` must be above 0 and at most .* 64"),
    ],
)
def test_bad_arguments(arguments, message, scenes, tmp_path):
    with pytest.raises(ValueError, match=message):
        run(scenes, tmp_path / "output", **arguments)


def test_several_gpus_in_one_process(scenes, tmp_path, monkeypatch):
    monkeypatch.setattr("transformers.TrainingArguments.n_gpu", 2)
    with pytest.raises(
        ValueError, match="2 GPUs are seen by one process: start one for each with `accelerate launch`"
    ):
        run(scenes, tmp_path / "output")


def test_image_ids_are_unique():
    rows = datasets.Dataset.from_dict({"image_id": [3, 3], "objects": [{"bbox": [], "category": []}] * 2})
    with pytest.raises(ValueError, match="Two images have the `image_id` 3"):
        data.check_objects(rows, "objects", with_masks=False)


def test_other_bad_input(scenes, detector, tmp_path, tiny_config):
    with pytest.raises(ValueError, match="is not a complete JSON file"):
        (tmp_path / "half.json").write_text((scenes / "annotations.json").read_text()[:200])
        data.read_coco(str(scenes / "images"), str(tmp_path / "half.json"), "--annotations")
    content = json.loads((scenes / "annotations.json").read_text())
    (tmp_path / "other.json").write_text(json.dumps(content | {"categories": [*CATEGORIES, {"id": 1, "name": "new"}]}))
    with pytest.raises(ValueError, match="and `--validation_annotations` .*'new'.*: they must be the same"):
        run(scenes, tmp_path / "output", validation_annotations=str(tmp_path / "other.json"))
    evaluation = ["--model_name_or_path", str(detector / "model"), "--data_dir", str(scenes / "images")]
    with pytest.raises(ValueError, match="has categories that the model does not know, such as 'new'"):
        evaluate.main([*evaluation, "--annotations", str(tmp_path / "other.json"), "--num_workers", "0"])
    with pytest.raises(ValueError, match="`--data_dir` and `--annotations` go together"):
        evaluate.main(evaluation)
    InternImageForImageClassification(tiny_config()).save_pretrained(tmp_path / "classifier")
    with pytest.raises(ValueError, match="is a model of type internimage, it must be mask_rcnn or dino_detr"):
        detect.main(["x.jpg", "--model_name_or_path", str(tmp_path / "classifier")])
    hub_dataset(tmp_path / "hub", scenes, category_name="kind")
    with pytest.raises(ValueError, match="It must have objects with `bbox` and `category`"):
        run(scenes, tmp_path / "output", **FILES, dataset_name=str(tmp_path / "hub"))


def test_pictures(detector, tmp_path, capsys):
    """Boxes and masks are in the colours of the classes, where they belong; nothing to draw is no error."""
    file = detector / "scenes" / "images" / "0.jpg"
    options = ["--model_name_or_path", str(detector / "model"), "--output_dir", str(tmp_path)]
    detect.main([str(file), *options, "--threshold", "0.0"])
    assert "8 objects (" in capsys.readouterr().out
    image = Image.open(file)
    with Image.open(tmp_path / "0_detections.png") as picture:
        assert picture.size == image.size and not np.array_equal(np.asarray(picture), np.asarray(image))
    detect.main([str(file), *options, "--threshold", "1.0"])
    with Image.open(tmp_path / "0_detections.png") as picture:
        assert np.array_equal(np.asarray(picture), np.asarray(image))

    config = AutoModelForObjectDetection.from_pretrained(detector / "model").config
    black = Image.new("RGB", (200, 100))
    masks = torch.zeros(1, 100, 200, dtype=torch.bool)
    masks[0, 50:70, 40:60] = True
    result = {"boxes": torch.tensor([[30.0, 40, 90, 80]]), "labels": torch.tensor([1]), "scores": torch.tensor([0.75])}
    picture = detect.draw_detections(black, result | {"masks": masks}, config)
    colour = detect.class_colours(config)[1]
    assert picture[80, 60].tolist() == colour.tolist()
    assert np.abs(picture[65, 50].astype(int) - colour * detect.OPACITY).max() <= 1
    assert picture[65, 75].tolist() == [0, 0, 0]
    with pytest.raises(ValueError, match="Two results would be written to .*0_detections.png"):
        detect.main([str(file), "elsewhere/0.jpg", *options])


def test_photographs(tmp_path):
    """The outlines lie inside the photographs."""
    photographs_script.main(["--output_dir", str(tmp_path / "objects")])
    content = json.loads((tmp_path / "objects" / "annotations.json").read_text())
    assert (len(content["images"]), len(content["annotations"])) == (8, 36)
    sizes = {image["id"]: (image["width"], image["height"]) for image in content["images"]}
    for entry in content["annotations"]:
        left, top, width, height = entry["bbox"]
        image_width, image_height = sizes[entry["image_id"]]
        assert left >= 0 and top >= 0 and left + width <= image_width and top + height <= image_height
        assert 0.15 < entry["area"] / (width * height) < 1


# Schedule, learning rate, layer decay, stochastic depth, images per step, decay of averaged weights, factor on the
# learning rate of what steers the sampling.
AUTHORS = {
    "mask_rcnn_internimage_t_fpn_1x_coco": (12, 1e-4, 1.0, 0.2, 16, None, 1.0),
    "mask_rcnn_internimage_t_fpn_3x_coco": (36, 1e-4, 1.0, 0.2, 16, None, 1.0),
    "mask_rcnn_internimage_s_fpn_1x_coco": (12, 1e-4, 1.0, 0.3, 16, None, 1.0),
    "mask_rcnn_internimage_s_fpn_3x_coco": (36, 1e-4, 1.0, 0.3, 16, None, 1.0),
    "mask_rcnn_internimage_b_fpn_1x_coco": (12, 1e-4, 1.0, 0.4, 16, None, 1.0),
    "mask_rcnn_internimage_b_fpn_3x_coco": (36, 1e-4, 1.0, 0.4, 16, None, 1.0),
    "cascade_internimage_l_fpn_1x_coco": (12, 1e-4, 0.94, 0.4, 16, None, 1.0),
    "cascade_internimage_l_fpn_3x_coco": (36, 2e-4, 0.90, 0.4, 64, None, 1.0),
    "cascade_internimage_xl_fpn_1x_coco": (12, 1e-4, 0.94, 0.4, 16, None, 1.0),
    "cascade_internimage_xl_fpn_3x_coco": (36, 2e-4, 0.90, 0.6, 64, 0.9999, 1.0),
    "mask_rcnn_flash_internimage_t_fpn_1x_coco": (12, 1e-4, 1.0, 0.2, 16, None, 1.0),
    "mask_rcnn_flash_internimage_t_fpn_3x_coco": (36, 1e-4, 1.0, 0.2, 16, None, 1.0),
    "mask_rcnn_flash_internimage_s_fpn_1x_coco": (12, 1e-4, 1.0, 0.3, 16, None, 1.0),
    "mask_rcnn_flash_internimage_s_fpn_3x_coco": (36, 2e-4, 1.0, 0.4, 64, None, 1.0),
    "mask_rcnn_flash_internimage_b_fpn_1x_coco": (12, 1e-4, 1.0, 0.3, 16, None, 1.0),
    "mask_rcnn_flash_internimage_b_fpn_3x_coco": (36, 2e-4, 0.90, 0.4, 64, None, 0.01),
    "cascade_flash_internimage_l_fpn_1x_coco": (12, 1e-4, 0.94, 0.4, 16, None, 1.0),
    "cascade_flash_internimage_l_fpn_3x_coco": (36, 2e-4, 0.90, 0.4, 64, 0.9999, 0.01),
}


@pytest.mark.parametrize("name", AUTHORS)
def test_recipes_are_the_authors(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe = json.loads((FOLDER / "recipes" / f"{name}.json").read_text()) | {"bf16": False, "use_cpu": True}
    (tmp_path / "recipe.json").write_text(json.dumps(recipe))
    model_args, data_args, recipe, training = script.parse_head_arguments(
        script.ModelArguments, script.DataArguments, [str(tmp_path / "recipe.json")]
    )
    images = 8 * training.per_device_train_batch_size * training.gradient_accumulation_steps
    actual = (training.num_train_epochs, training.learning_rate, recipe.layer_decay, model_args.drop_path_rate, images,
              recipe.ema_decay, recipe.deformable_multiplier)  # fmt: skip
    assert actual == AUTHORS[name]
    epochs = [round(milestone * training.num_train_epochs, 3) for milestone in recipe.lr_milestones]
    assert epochs == ([8, 11] if "1x" in name else [27, 33])
    assert (data_args.min_shortest_edge, data_args.random_crop) == ((None, False) if "1x" in name else (480, True))
    assert (training.weight_decay, training.warmup_steps, training.max_grad_norm) == (0.05, 500, 0.0)
    assert recipe.layer_counting == "downstream" and data_args.skip_images_without_annotations
    assert model_args.backbone.split("/")[1] in CHECKPOINTS
    official = find_checkpoint(name).config().to_dict()
    ours = MaskRCNNConfig(**script.read_overrides(model_args.head_overrides)).to_dict()
    for field in official.keys() - {"backbone_config", "id2label", "label2id", "palette", "architectures", "dtype"}:
        assert ours[field] == official[field], field


DINO_RECIPES = json.loads(gzip.decompress((GOLDEN / "detection" / "dino_recipes.json.gz").read_bytes()))["configs"]


@pytest.mark.parametrize("name", DINO_RECIPES)
def test_recipes_of_dino_are_the_authors(name, tmp_path):
    """Everything that the eleven configurations set, except where a setting only saves memory or has no effect."""
    official = DINO_RECIPES[name]
    name = name.removesuffix("_ss").replace("t_1x_coco_layer_wise_lr", "t_1x_coco")
    record = find_checkpoint(name)
    recipe = json.loads((FOLDER / "recipes" / f"{name}.json").read_text()) | {"use_cpu": True}
    head = recipe.pop("head", None)
    (tmp_path / "recipe.json").write_text(json.dumps(recipe | {"output_dir": str(tmp_path)}))
    model_args, data_args, recipe, training = script.parse_head_arguments(
        script.ModelArguments, script.DataArguments, [str(tmp_path / "recipe.json")]
    )
    # The model: a published start, or a new head with the settings of the converted detector.
    assert model_args.drop_path_rate == official["backbone_training"]["drop_path_rate"]
    if official["load_from"]:
        assert model_args.model_name_or_path == f"converted/{official['load_from'].removesuffix('.pth')}" and not head
        assert record.config().max_detections == official["test"]["max_per_img"]
    else:
        assert head == "dino_detr" and model_args.backbone.split("/")[1] in CHECKPOINTS
        fields = DinoDetrConfig(**script.read_overrides(model_args.head_overrides))
        assert fields.num_denoising == official["head"]["denoising"]["group_cfg"]["num_dn_queries"]
        assert fields.max_detections == official["test"]["max_per_img"]
        size = (data_args.longest_edge or 1333, data_args.shortest_edge or 800)
        assert list(size) == official["test"]["pipeline"][1]["img_scale"]
    # The optimiser. (`test_every_parameter_of_dino` has the rate and the decay of every parameter.)
    optimizer = official["optimizer"]
    constructor = optimizer["paramwise_cfg"]
    multiplier = constructor.get("custom_keys", {"backbone": {"lr_mult": 1.0}})["backbone"]["lr_mult"]
    assert (training.learning_rate, training.weight_decay) == (optimizer["learning_rate"], optimizer["weight_decay"])
    assert [training.adam_beta1, training.adam_beta2, training.adam_epsilon] == [*optimizer["betas"], optimizer["eps"]]
    assert (recipe.layer_counting, recipe.ema_decay, training.fp16, training.bf16) == (
        "downstream",
        None,
        False,
        False,
    )
    assert recipe.layer_decay == constructor.get("layer_decay_rate", 1.0)
    assert recipe.sampling_offset_multiplier == constructor.get("offset_lr_scale", 1.0)
    assert (recipe.backbone_multiplier, recipe.decay_all) == (multiplier, multiplier != 1)
    assert training.max_grad_norm == official["gradient_clipping"]["max_norm"]
    # The schedule.
    epochs, steps = (official["runner"].get(key) for key in ("max_epochs", "max_iters"))
    assert training.num_train_epochs == epochs or training.max_steps == steps
    assert training.warmup_steps == official["lr_config"]["warmup_iters"]
    milestones = [round(milestone * training.num_train_epochs, 3) for milestone in recipe.lr_milestones]
    assert milestones == official["lr_config"]["step"]
    assert training.per_device_train_batch_size == official["images_per_process"]
    # The images.
    assert data_args.skip_images_without_annotations == official["train_dataset"]["filter_empty_gt"]
    assert recipe_scales(data_args, record.image_processor()) == official_scales(official["train_pipeline"])


# Learning rate, weight decay, whether on all parameters, layer decay, factor on the backbone, stochastic depth, images
# per step.
AUTHORS_OF_FLASH_DINO = {
    "t": (2e-4, 1e-4, False, 0.9, 1.0, 0.2, 32),
    "s": (2e-4, 1e-4, False, 0.9, 1.0, 0.3, 32),
    "b": (2e-4, 1e-4, False, 0.9, 1.0, 0.3, 32),
    "l": (1e-4, 0.05, True, 1.0, 0.1, 0.4, 16),
}


@pytest.mark.parametrize("size", AUTHORS_OF_FLASH_DINO)
def test_recipes_of_flash_dino_are_the_authors(size, tmp_path):
    """What differs between them; all else is as for DINO on InternImage-T."""
    recipe, base = (
        json.loads((FOLDER / "recipes" / f"dino_4scale_{name}_1x_coco.json").read_text())
        for name in (f"flash_internimage_{size}", "internimage_t")
    )
    own = {"backbone", "head_overrides", "drop_path_rate", "output_dir"}
    own |= {"learning_rate", "weight_decay", "decay_all", "layer_decay", "backbone_multiplier"}
    own |= {"per_device_train_batch_size"}
    assert {name: recipe[name] for name in recipe.keys() - own} == {name: base[name] for name in base.keys() - own}
    (tmp_path / "recipe.json").write_text(json.dumps(recipe | {"use_cpu": True, "output_dir": str(tmp_path)}))
    model_args, _, recipe, training = script.parse_head_arguments(
        script.ModelArguments, script.DataArguments, [str(tmp_path / "recipe.json")]
    )
    actual = (
        training.learning_rate, training.weight_decay, recipe.decay_all, recipe.layer_decay,
        recipe.backbone_multiplier, model_args.drop_path_rate, 8 * training.per_device_train_batch_size,
    )  # fmt: skip
    assert actual == AUTHORS_OF_FLASH_DINO[size]
    official = find_checkpoint(f"dino_4scale_flash_internimage_{size}_1x_coco").config()
    fields = DinoDetrConfig(**script.read_overrides(model_args.head_overrides))
    assert fields.max_detections == official.max_detections == 300
    assert model_args.backbone.split("/")[1] in CHECKPOINTS


def official_scales(pipeline: list[dict]) -> dict:
    """Shorter sides, longer side and crop of a training pipeline of the original."""
    steps = {step["type"]: step for step in pipeline}
    assert steps["RandomFlip"]["flip_ratio"] == 0.5
    if "Resize" in steps:
        scales = steps["Resize"]["img_scale"]
        scales = scales if isinstance(scales[0], list) else [scales]
        assert steps["Resize"].get("multiscale_mode", "range") == "range"
        return {"shorter": list(range(scales[0][1], scales[-1][1] + 1)), "longer": scales[0][0], "crop": None}
    (whole,), (smaller, crop, resize) = steps["AutoAugment"]["policies"]
    assert resize["img_scale"] == whole["img_scale"] and not crop["allow_negative_crop"]
    shorter, longer = zip(*whole["img_scale"])
    before, unlimited = zip(*smaller["img_scale"])
    assert set(unlimited) == {4200}  # more than any image has at these sides
    return {"shorter": list(shorter), "longer": longer[0], "crop": (list(before), tuple(crop["crop_size"]))}


def recipe_scales(data_args, image_processor) -> dict:
    """The same of our arguments."""
    largest = data_args.max_shortest_edge or image_processor.size["shortest_edge"]
    assert data_args.horizontal_flip and data_args.random_crop == data_args.crop_with_objects
    return {
        "shorter": [*range(data_args.min_shortest_edge, largest, data_args.step_of_scales), largest],
        "longer": data_args.train_longest_edge or image_processor.size["longest_edge"],
        "crop": (augmentation.SIDES_BEFORE_CROP, augmentation.CROP_SIDES) if data_args.random_crop else None,
    }
