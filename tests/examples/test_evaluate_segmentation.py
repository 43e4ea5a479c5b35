# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""The metrics against numbers computed by hand, and the evaluation script."""

import json
import pickle
import shutil
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from huggingface_hub.repocard_data import model_index_to_eval_results
from PIL import Image
from processes import run_in_two_processes
from testing_utils import randomize
from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation, SegformerImageProcessorPil

from examples import evaluation
from examples.semantic_segmentation import evaluate_segmentation as script
from examples.semantic_segmentation import run_semantic_segmentation
from examples.semantic_segmentation import segmentation_metrics as metrics
from modeling_internimage import (
    InternImageConfig,
    InternImageForImageClassification,
    InternImageSegmentationImageProcessorPil,
    SegformerHeadConfig,
    SegformerHeadForSemanticSegmentation,
)


STAGES = ["stage1", "stage2", "stage3", "stage4"]
BACKBONE = {"embed_dim": 16, "depths": [1, 1, 1, 1], "num_groups": [1, 2, 4, 8], "out_features": STAGES}
SIZES = [(40, 60), (51, 37), (64, 64), (33, 90), (70, 41)]
NUM_LABELS = 4


def test_metrics_by_hand():
    """
    Five pixels count, as (label, prediction): (0, 0), (0, 1), (1, 1), (1, 1), (2, 0). The unions of classes 0, 1, 2
    have 3, 3 and 1 pixels; class 3 does not appear.
    """
    labels = torch.tensor([[0, 0, 1], [1, 2, 255]])
    predictions = torch.tensor([[0, 1, 1], [1, 0, 2]])
    matrix = metrics.confusion_matrix(predictions, labels, 4)
    assert matrix.tolist() == [[1, 1, 0, 0], [0, 2, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]]
    result = metrics.segmentation_metrics(matrix)
    assert result["per_category_iou"].tolist() == pytest.approx([1 / 3, 2 / 3, 0, float("nan")], nan_ok=True)
    assert result["per_category_accuracy"].tolist() == pytest.approx([1 / 2, 1, 0, float("nan")], nan_ok=True)
    assert result["mean_iou"] == pytest.approx(1 / 3)
    assert result["mean_accuracy"] == pytest.approx(1 / 2)
    assert result["overall_accuracy"] == pytest.approx(3 / 5)


def test_absent_classes():
    """Class 3 is predicted only: its IoU 0 counts, its accuracy is not defined. Class 1 and 2 do not appear."""
    matrix = metrics.confusion_matrix(torch.tensor([0, 3]), torch.tensor([0, 0]), 4)
    result = metrics.segmentation_metrics(matrix)
    assert (result["mean_iou"], result["mean_accuracy"], result["overall_accuracy"]) == (0.25, 0.5, 0.5)
    nothing = metrics.confusion_matrix(torch.tensor([0, 3]), torch.tensor([9, 9]), 4, ignore_index=9)
    assert nothing.sum() == 0 and np.isnan(metrics.segmentation_metrics(nothing)["mean_iou"])


def test_streamed_metrics_start_anew(caplog):
    """A sum over batches of matrices; the second evaluation knows nothing of the first. Absent classes are named."""
    streamed = metrics.StreamedMetrics(dict(enumerate("abc")))
    result = type("Result", (), {})()
    for expected in (3 / 4, 3 / 4):
        result.predictions = torch.tensor([[[1, 0], [0, 0]], [[0, 0], [1, 0]]])
        assert streamed(result, compute_result=False) == {}
        result.predictions = torch.tensor([[[0, 0], [0, 2]]])
        assert streamed(result, compute_result=True)["overall_accuracy"] == expected
    assert "labelled" not in caplog.text
    result.predictions = torch.tensor([[[1, 0], [0, 0]]])
    streamed(result)
    assert "1 of 2 classes have no labelled pixel in the evaluation: b." in caplog.text


def save_model(folder: Path, **kwargs) -> str:
    labels = {idx: f"class_{idx}" for idx in range(NUM_LABELS)}
    config = SegformerHeadConfig(
        backbone_config=InternImageConfig(**BACKBONE), hidden_size=8, id2label=labels,
        label2id={name: idx for idx, name in labels.items()},
    )  # fmt: skip
    randomize(SegformerHeadForSemanticSegmentation(config)).save_pretrained(folder)
    size = {"shortest_edge": 48, "longest_edge": 192}
    InternImageSegmentationImageProcessorPil(size=size, **kwargs).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def scenes(photographs, tmp_path_factory):
    """Five images of different sizes with label maps of classes 0 to 2 and pixels that do not count."""
    folder = tmp_path_factory.mktemp("scenes")
    for name in ("images", "maps"):
        (folder / name).mkdir()
    random = np.random.default_rng(0)
    for idx, (height, width) in enumerate(SIZES):
        crop = photographs[0][idx * 40 : idx * 40 + height, idx * 60 : idx * 60 + width]
        Image.fromarray(crop).save(folder / "images" / f"{idx}.png")
        labels = np.kron(random.integers(0, 3, size=(9, 10)), np.ones((10, 10), dtype=int))[:height, :width]
        labels[:, :3] = 255
        Image.fromarray(labels.astype(np.uint8)).save(folder / "maps" / f"{idx}.png")
    return folder


def arguments(checkpoint, output, *others, **data):
    data = [word for name, value in data.items() for word in (f"--{name}", str(value))]
    return ["--model_name_or_path", checkpoint, "--output", str(output), "--num_workers", "0", *data, *others]


def run(checkpoint, tmp_path, *others, **data) -> dict:
    output = tmp_path / "results" / "miou.json"
    script.main(arguments(checkpoint, output, *others, **data))
    return json.loads(output.read_text())


def expected_areas(checkpoint, folder: Path, scales=(1.0,), flip=False, reduce=False) -> np.ndarray:
    """Intersection, predicted and labelled area of each class, as mmsegmentation counts them: from histograms."""
    model, image_processor = script.load_segmentation_model(checkpoint, "float32", torch.device("cpu"), False)
    areas = np.zeros((3, NUM_LABELS))
    for file in sorted((folder / "images").iterdir()):
        image = Image.open(file)
        predictions = script.segment_image(model, image_processor, image, scales, flip).argmax(dim=0).numpy()
        labels = np.asarray(Image.open(folder / "maps" / file.name)).astype(int)
        assert predictions.shape == labels.shape == image.size[::-1]
        if reduce:
            labels[labels == 0] = 256
            labels -= 1
            labels[labels == 254] = 255
        predictions, labels = predictions[labels != 255], labels[labels != 255]
        for row, values in enumerate((predictions[predictions == labels], predictions, labels)):
            areas[row] += np.histogram(values, bins=NUM_LABELS, range=(0, NUM_LABELS))[0]
    return areas


def check(result, areas):
    hits, predicted, labelled = areas
    with np.errstate(invalid="ignore"):
        iou, accuracy = hits / (predicted + labelled - hits), hits / labelled
    assert result["mIoU"] == pytest.approx(100 * np.nanmean(iou), abs=1e-4)
    assert result["mAcc"] == pytest.approx(100 * np.nanmean(accuracy), abs=1e-4)
    assert result["aAcc"] == pytest.approx(100 * hits.sum() / labelled.sum(), abs=1e-4)
    for entry, one, other in zip(result["classes"], iou, accuracy):
        for value, expected in ((entry["IoU"], one), (entry["Acc"], other)):
            assert (value is None and np.isnan(expected)) or value == pytest.approx(100 * expected, abs=1e-4)


def test_evaluation(checkpoint, scenes, tmp_path, capsys):
    """At the original sizes, against histograms, and everything else that the file says."""
    result = run(checkpoint, tmp_path, data_dir=scenes)
    check(result, expected_areas(checkpoint, scenes))
    assert (result["num_images"], result["processes"], result["dtype"]) == (5, 1, "float32")
    assert result["num_pixels"] == sum(height * (width - 3) for height, width in SIZES)
    assert [entry["name"] for entry in result["classes"]] == [f"class_{idx}" for idx in range(NUM_LABELS)]
    assert result["classes"][3]["Acc"] is None  # no pixel has this label
    assert result["preprocessing"]["size"] == {"shortest_edge": 48, "longest_edge": 192}
    assert f"mIoU {result['mIoU']:.2f}, mAcc" in capsys.readouterr().out
    name, index = model_index_to_eval_results(result["model_index"])
    assert name == "tiny" and index[0].task_type == "image-segmentation" and index[0].dataset_args is None
    assert [(entry.metric_type, entry.metric_name) for entry in index] == [
        ("mean_iou", "mIoU"), ("mean_accuracy", "mAcc"), ("overall_accuracy", "aAcc"),
    ]  # fmt: skip


def test_scales_and_mirror_image(checkpoint, scenes, tmp_path):
    result = run(checkpoint, tmp_path, "--scales", "1", "1.5", "--flip", data_dir=scenes)
    check(result, expected_areas(checkpoint, scenes, scales=(1.0, 1.5), flip=True))
    _, index = model_index_to_eval_results(result["model_index"])
    assert index[0].dataset_args == {"scales": [1.0, 1.5], "flip": True}


def test_reduced_labels(scenes, tmp_path):
    """0 is unlabelled, output k means k + 1 in the file."""
    reducing = save_model(tmp_path / "model", do_reduce_labels=True)
    result = run(reducing, tmp_path, data_dir=scenes)
    check(result, expected_areas(reducing, scenes, reduce=True))
    assert result["preprocessing"]["do_reduce_labels"] is True


CODE = """
from examples.semantic_segmentation import evaluate_segmentation, run_semantic_segmentation

evaluate_segmentation.main(arguments[0])
run_semantic_segmentation.main(arguments[1])
"""


@pytest.mark.slow
def test_two_processes_count_every_image_once(checkpoint, scenes, tmp_path):
    """Five images for two processes, of different sizes: in the evaluation script and in the Trainer."""
    evaluation = ["--model_name_or_path", checkpoint, "--validation_dir", str(scenes), "--do_eval"]
    evaluation += ["--per_device_eval_batch_size", "1", "--report_to", "none", "--disable_tqdm", "true"]
    options = [arguments(checkpoint, tmp_path / "miou.json", data_dir=scenes)]
    options += [[*evaluation, "--output_dir", str(tmp_path / "two")]]
    printed = run_in_two_processes(tmp_path, CODE, *options)
    result = json.loads((tmp_path / "miou.json").read_text())
    assert (result["processes"], result["num_images"]) == (2, 5)
    assert printed.count("of 5 images") == 1
    check(result, expected_areas(checkpoint, scenes))
    run_semantic_segmentation.main([*evaluation, "--output_dir", str(tmp_path / "one")])
    one, two = (json.loads((tmp_path / name / "all_results.json").read_text()) for name in ("one", "two"))
    for name in ("eval_mean_iou", "eval_mean_accuracy", "eval_overall_accuracy"):
        assert two[name] == pytest.approx(one[name])


def test_a_dataset(checkpoint, scenes, tmp_path):
    """Files inside a table; two of the five, chosen at random; the error names the row."""
    rows = [{"image": (scenes / "images" / f"{idx}.png").read_bytes(),
             "annotation": (scenes / "maps" / f"{idx}.png").read_bytes()} for idx in range(5)]  # fmt: skip
    columns = {name: [{"bytes": row[name], "path": None} for row in rows] for name in ("image", "annotation")}
    features = datasets.Features(dict.fromkeys(columns, datasets.Image()))
    (tmp_path / "data").mkdir()
    table = datasets.Dataset.from_dict(columns, features=features)
    table.to_parquet(tmp_path / "data" / "validation.parquet")
    options = {"dataset_name": tmp_path / "data", "label_column_name": "annotation"}
    result = run(checkpoint, tmp_path, **options)
    check(result, expected_areas(checkpoint, scenes))
    assert run(checkpoint, tmp_path, **options, max_samples=2)["num_images"] == 2
    with pytest.raises(ValueError, match="has no column 'label', only"):
        run(checkpoint, tmp_path, dataset_name=tmp_path / "data")
    with pytest.raises(ValueError, match="The label map of row 0 is an image of mode RGB"):
        run(checkpoint, tmp_path, **options | {"label_column_name": "image"})


def test_mask2former(scenes, tmp_path):
    config = Mask2FormerConfig(
        backbone_config=InternImageConfig(**BACKBONE), feature_size=32, mask_feature_size=32, hidden_dim=32,
        encoder_feedforward_dim=16, dim_feedforward=16, num_attention_heads=2, encoder_layers=1, decoder_layers=2,
        num_queries=5, num_labels=NUM_LABELS,
    )  # fmt: skip
    randomize(Mask2FormerForUniversalSegmentation(config)).save_pretrained(tmp_path / "model")
    size = {"shortest_edge": 64, "longest_edge": 256}
    InternImageSegmentationImageProcessorPil(size=size, size_divisor=32).save_pretrained(tmp_path / "model")
    result = run(str(tmp_path / "model"), tmp_path, data_dir=scenes)
    check(result, expected_areas(str(tmp_path / "model"), scenes))


def test_use_kernels(checkpoint, scenes, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(evaluation, "use_dcnv3_kernel", lambda model: asked.append(type(model).__name__) or model)
    run(checkpoint, tmp_path, data_dir=scenes, max_samples=1)
    assert asked == []
    run(checkpoint, tmp_path, "--use_kernels", data_dir=scenes, max_samples=1)
    assert asked == ["SegformerHeadForSemanticSegmentation"]


@pytest.mark.parametrize(
    "change, message",
    [
        ({"data_dir": "/does/not/exist"}, "`--data_dir /does/not/exist` has no folder 'images'"),
        ({"max_samples": 0}, "`--max_samples 0` must be at least 1"),
        ({"ignore_index": 1}, r"`--ignore_index 1` is the index of a class: it must be outside of \[0, 4\)"),
        ({"ignore_index": 254}, "maps/0.png has the value 255, which is neither a class, 0 to 3, nor 254, which is"),
        ({"output": "{scenes}"}, "is a folder, where a file would be written"),
    ],
    ids=str,
)
def test_bad_arguments(change, message, checkpoint, scenes, tmp_path):
    change = {name: str(value).format(scenes=scenes) for name, value in change.items()}
    options = {"data_dir": scenes, "output": tmp_path / "miou.json"} | change
    with pytest.raises(ValueError, match=message):
        script.main(arguments(checkpoint, **options))


def test_another_image_processor_and_spawned_workers(checkpoint, scenes, tmp_path, caplog, monkeypatch):
    """Of transformers; what workers are sent can be pickled. Of four classes, the maps have three."""
    shutil.copytree(checkpoint, tmp_path / "model")
    SegformerImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(tmp_path / "model")
    pickled = []
    loader = torch.utils.data.DataLoader
    monkeypatch.setattr(
        torch.utils.data,
        "DataLoader",
        lambda pairs, **kw: pickled.append(pickle.dumps((pairs, kw))) or loader(pairs, **kw),
    )
    result = run(str(tmp_path / "model"), tmp_path, data_dir=scenes)
    assert len(pickled) == 1 and result["preprocessing"]["image_processor"].startswith("SegformerImageProcessor")
    assert 0 <= result["mIoU"] <= 100 and result["preprocessing"]["window_size"] is None
    assert "1 of 4 classes have no labelled pixel in the evaluation: class_3." in caplog.text


def test_nothing_to_evaluate(checkpoint, tmp_path):
    for name, mode, colour in (("images", "RGB", (1, 2, 3)), ("maps", "L", 255)):
        (tmp_path / "val" / name).mkdir(parents=True)
        Image.new(mode, (1, 1), colour).save(tmp_path / "val" / name / "pixel.png")
    with pytest.raises(ValueError, match="All pixels of the label maps are 255, which is ignored"):
        run(checkpoint, tmp_path, data_dir=tmp_path / "val")


def test_models_that_cannot_be_evaluated(checkpoint, scenes, tmp_path):
    """A head without trained weights; outputs that are not finite; a model for another task."""
    InternImageForImageClassification(InternImageConfig(**BACKBONE, num_labels=3)).save_pretrained(tmp_path / "model")
    with pytest.raises(
        ValueError, match="`--model_name_or_path .*model` is a model of type internimage, which is not for"
    ):
        run(str(tmp_path / "model"), tmp_path, data_dir=scenes)
    model = SegformerHeadForSemanticSegmentation.from_pretrained(checkpoint)
    model.decode_head.classifier.bias.data[0] = float("nan")
    model.save_pretrained(tmp_path / "nan")
    SegformerImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(tmp_path / "nan")
    with pytest.raises(ValueError, match="not numbers in torch.float16: choose another `--dtype`"):
        run(str(tmp_path / "nan"), tmp_path, data_dir=scenes, dtype="float16")
