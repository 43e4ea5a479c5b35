# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""The training script, end to end on small real images."""

import importlib
import json
import shutil
import sys

import numpy as np
import pytest
from conftest import REPOSITORY
from PIL import Image


sys.path.insert(0, str(REPOSITORY / "examples" / "image_classification"))
script = importlib.import_module("run_image_classification")
digits = importlib.import_module("digits")

ARCHITECTURE = '{"embed_dim": 16, "depths": [1, 1, 1, 1], "num_groups": [1, 2, 4, 8], "image_size": 32}'


@pytest.fixture
def image_folder(photographs, tmp_path):
    """Crops of two photographs, one folder per photograph."""
    random = np.random.default_rng(0)
    for name, photograph in zip(("astronaut", "coffee"), photographs):
        for split, count in (("train", 6), ("validation", 4)):
            (tmp_path / split / name).mkdir(parents=True)
            for idx in range(count):
                top, left = random.integers(0, 300, size=2)
                crop = photograph[top : top + 96, left : left + 96]
                Image.fromarray(crop).save(tmp_path / split / name / f"{idx}.png")
    return tmp_path


def arguments(folder, output_dir, **kwargs):
    """All arguments of a short run, as the JSON file takes them."""
    return {
        "config_overrides": ARCHITECTURE,
        "train_dir": str(folder / "train"),
        "validation_dir": str(folder / "validation"),
        "output_dir": str(output_dir),
        "do_train": True,
        "do_eval": True,
        "num_train_epochs": 2,
        "per_device_train_batch_size": 4,
        "eval_strategy": "epoch",
        "save_strategy": "epoch",
        "logging_steps": 1,
        "learning_rate": 1e-3,
        "dataloader_pin_memory": False,
        "report_to": "none",
        "disable_tqdm": True,
    } | kwargs


def run(folder, output_dir, **kwargs):
    path = folder / "arguments.json"
    path.write_text(json.dumps(arguments(folder, output_dir, **kwargs)))
    script.main([str(path)])


def test_train_save_resume(image_folder, tmp_path, caplog):
    """A run leaves model, processor, metrics, card and curves; running again resumes, also after a killed save."""
    output = tmp_path / "output"
    run(image_folder, output, max_train_samples=8)
    for name in ("model.safetensors", "preprocessor_config.json", "all_results.json", "trainer_state.json"):
        assert (output / name).is_file(), name
    with Image.open(output / "training_curves.png") as picture:
        assert picture.width > 600 and np.asarray(picture.convert("L")).std() > 10
    card = (output / "README.md").read_text()
    assert "license" in card or "library_name: transformers" in card
    assert "trained from scratch" in card and "[](" not in card
    config = json.loads((output / "config.json").read_text())
    assert config["id2label"] == {"0": "astronaut", "1": "coffee"} and config["label2id"]["coffee"] == 1
    results = json.loads((output / "all_results.json").read_text())
    assert results["epoch"] == 2.0 and 0 <= results["eval_accuracy"] <= 1

    # Killed while writing the second checkpoint: the weights are there, the state is not.
    (output / "checkpoint-4" / "trainer_state.json").unlink()
    run(image_folder, output, max_train_samples=8, num_train_epochs=3)
    assert "is incomplete" in caplog.text
    state = json.loads((output / "trainer_state.json").read_text())
    assert state["global_step"] == 6
    steps = [entry["step"] for entry in state["log_history"] if "loss" in entry]
    assert steps == [1, 2, 3, 4, 5, 6]  # one history: the first two steps are those of the first run


def test_fine_tune_a_checkpoint(image_folder, tmp_path):
    """Other classes, a new head, the checkpoint's own image processor."""
    run(image_folder, tmp_path / "first", num_train_epochs=1)
    shutil.move(image_folder / "train" / "coffee", image_folder / "train" / "mug")
    shutil.move(image_folder / "validation" / "coffee", image_folder / "validation" / "mug")
    shutil.copytree(image_folder / "train" / "mug", image_folder / "train" / "zebra")
    shutil.copytree(image_folder / "validation" / "mug", image_folder / "validation" / "zebra")
    arguments = {"config_overrides": None, "model_name_or_path": str(tmp_path / "first"), "num_train_epochs": 1}
    run(image_folder, tmp_path / "second", **arguments)
    config = json.loads((tmp_path / "second" / "config.json").read_text())
    assert list(config["id2label"].values()) == ["astronaut", "mug", "zebra"] and config["embed_dim"] == 16
    processor = json.loads((tmp_path / "second" / "preprocessor_config.json").read_text())
    assert processor["crop_size"] == {"height": 32, "width": 32}


def test_embedded_digits():
    splits = digits.load_digits_dataset()
    assert {name: len(split) for name, split in splits.items()} == {"train": 1437, "test": 360}
    assert np.bincount(splits["test"]["label"]).tolist() == pytest.approx([36] * 10, abs=1)
    image = np.asarray(splits["train"][0]["image"])
    assert image.shape == (8, 8) and image.dtype == np.uint8 and image.max() > 200
    seen = {np.asarray(image).tobytes() for image in splits["train"]["image"]}
    held_out = [np.asarray(image).tobytes() in seen for image in splits["test"]["image"]]
    assert sum(held_out) <= 1  # no test image is a training image


def test_digits_learn(tmp_path):
    """A few steps on the digits lower the loss well below that of guessing, 2.3."""
    output = tmp_path / "digits"
    script.main(
        ["--dataset_name", "digits", "--config_overrides", ARCHITECTURE, "--output_dir", str(output), "--do_train"]
        + ["--max_steps", "40", "--per_device_train_batch_size", "32", "--learning_rate", "3e-3"]
        + ["--warmup_steps", "5", "--horizontal_flip", "false", "--min_crop_scale", "0.8", "--logging_steps", "10"]
        + ["--report_to", "none", "--save_strategy", "no", "--dataloader_pin_memory", "false"]
        + ["--disable_tqdm", "true"]
    )
    log = json.loads((output / "trainer_state.json").read_text())["log_history"]
    losses = [entry["loss"] for entry in log if "loss" in entry]
    assert losses[-1] < 1.6 < losses[0]


@pytest.mark.parametrize("damage", ["truncated", "not an image"])
def test_corrupt_image_names_its_file(damage, image_folder, tmp_path):
    file = image_folder / "train" / "coffee" / "3.png"
    data = file.read_bytes()
    file.write_bytes(data[: len(data) // 2] if damage == "truncated" else b"no image at all")
    with pytest.raises(ValueError, match=r"coffee/3.png is corrupt or truncated"):
        run(image_folder, tmp_path / "output")
    assert not (tmp_path / "output" / "model.safetensors").exists()


@pytest.mark.parametrize(
    "change, message",
    [
        ({"train_dir": None, "validation_dir": None}, "No images: give `--dataset_name`"),
        ({"train_dir": "/does/not/exist"}, "`--train_dir /does/not/exist` is not a folder"),
        ({"image_column_name": "picture"}, "have no column 'picture'"),
        ({"validation_dir": None, "train_val_split": 0.0}, "There are no validation images, which `--do_eval` needs"),
        ({"model_name_or_path": "somewhere"}, "`--config_overrides` describes a new model"),
    ],
    ids=str,
)
def test_bad_arguments(change, message, image_folder, tmp_path):
    with pytest.raises(ValueError, match=message):
        run(image_folder, tmp_path / "output", **change)


def test_missing_labels():
    from datasets import Dataset, DatasetDict

    splits = DatasetDict({"train": Dataset.from_dict({"label": [0.0, 1.0, float("nan")]})})
    with pytest.raises(ValueError, match="missing labels"):
        script.encode_labels(splits, "label")
    splits = DatasetDict({"train": Dataset.from_dict({"label": ["b", "a"]})})
    encoded = script.encode_labels(splits, "label")["train"]
    assert encoded.features["label"].names == ["a", "b"] and encoded["label"] == [1, 0]
