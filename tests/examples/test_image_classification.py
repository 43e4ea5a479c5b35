# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""The training script, end to end on small real images."""

import json
import multiprocessing
import os
import pickle
import shutil
import signal
import time
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from testing_utils import run_short_training
from transformers import ResNetConfig, ResNetForImageClassification, TrainerState, TrainingArguments
from transformers.image_utils import load_image

from conversion.checkpoints import CHECKPOINTS
from examples import image_datasets, training
from examples.image_classification import digits, photographs
from examples.image_classification import run_image_classification as script
from modeling_internimage import InternImageConfig
from modeling_internimage.modeling_internimage import CORE_OPS
from modeling_internimage.training.checkpoints import last_complete_checkpoint
from modeling_internimage.training.folder_lock import FolderLock


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


def run(folder, output_dir, **kwargs):
    arguments = {
        "config_overrides": ARCHITECTURE,
        "train_dir": str(folder / "train"),
        "validation_dir": str(folder / "validation"),
        "output_dir": str(output_dir),
        "num_train_epochs": 2,
        "per_device_train_batch_size": 4,
    }
    run_short_training(script, folder / "arguments.json", **(arguments | kwargs))


@pytest.mark.parametrize(
    "entries, panels", [([], 0), ([{"loss": 2.0}], 1), ([{"loss": 2.0}, {"eval_accuracy": 0.5}], 2)]
)
def test_curves_show_what_was_logged(entries, panels, tmp_path):
    path = tmp_path / "curves.png"
    assert training.save_curves([entry | {"epoch": 1.0} for entry in entries], path, "accuracy", "Accuracy") == (
        panels > 0
    )
    assert path.exists() == (panels > 0)
    if panels:
        with Image.open(path) as picture:
            assert picture.width == 600 * panels


def test_default_of_the_logging(tmp_path):
    """Often enough for a short run, unless told otherwise, on the command line and in a file."""
    for given, expected in (({}, 10), ({"logging_steps": 3}, 3)):
        arguments = {"output_dir": str(tmp_path / "output")} | given
        (tmp_path / "arguments.json").write_text(json.dumps(arguments))
        options = [word for name, value in arguments.items() for word in (f"--{name}", str(value))]
        for argv in ([str(tmp_path / "arguments.json")], options):
            assert training.parse_dataclasses((TrainingArguments,), argv)[0].logging_steps == expected


def test_train_save_resume(image_folder, tmp_path, caplog):
    """A run leaves model, processor, metrics, card and curves; running again resumes, also after a killed save."""
    output = tmp_path / "output"
    run(image_folder, output, max_train_samples=8, report_to="tensorboard")
    assert any((output / "runs").rglob("events.out.tfevents.*"))
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
    run(image_folder, output, max_train_samples=8, num_train_epochs=3, resume_from_checkpoint=True)
    assert "is incomplete" in caplog.text
    state = json.loads((output / "trainer_state.json").read_text())
    assert state["global_step"] == 6
    steps = [entry["step"] for entry in state["log_history"] if "loss" in entry]
    assert steps == [1, 2, 3, 4, 5, 6]  # one history: the first two steps are those of the first run


def test_images_are_turned_as_by_pipelines(tmp_path):
    """A photograph that a camera has stored lying on its side."""
    image = Image.effect_noise((20, 40), 50).convert("RGB")
    image.getexif()[0x0112] = 6
    image.save(tmp_path / "photo.png", exif=image.getexif())
    decoded = script.decode_image({"bytes": None, "path": str(tmp_path / "photo.png")})
    assert decoded.size == (40, 20) and decoded == load_image(str(tmp_path / "photo.png"))


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


@pytest.mark.slow
@pytest.mark.parametrize("core_op", CORE_OPS)
def test_digits_learn(core_op, tmp_path):
    """A few steps on the digits lower the loss well below that of guessing, 2.3."""
    output = tmp_path / "digits"
    architecture = json.dumps(json.loads(ARCHITECTURE) | {"core_op": core_op})
    script.main(
        ["--dataset_name", "digits", "--config_overrides", architecture, "--output_dir", str(output), "--do_train"]
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


def test_workers_can_be_spawned(image_folder, tmp_path, monkeypatch):
    """What they are sent can be pickled."""
    trainers = []
    monkeypatch.setattr(script, "train_and_evaluate", lambda trainer, *args: trainers.append(trainer))
    run(image_folder, tmp_path / "output")
    (trainer,) = trainers
    sent = pickle.loads(pickle.dumps((trainer.train_dataset, trainer.eval_dataset, trainer.data_collator)))
    for dataset in sent[:2]:
        assert sent[2]([dataset[0], dataset[1]])["pixel_values"].shape[0] == 2


def test_skip_corrupt(image_folder, tmp_path, caplog):
    file = image_folder / "train" / "coffee" / "3.png"
    Image.new("RGB", (8, 8)).save(file, "DDS")
    content = bytearray(file.read_bytes())
    content[80:88] = b"\4\0\0\0NONE"  # a pixel format for which Pillow raises a NotImplementedError
    file.write_bytes(content)
    run(image_folder, tmp_path / "output", skip_corrupt=True, num_train_epochs=1)
    assert "coffee/3.png is corrupt" in caplog.text and "1 of 12 train images were left out" in caplog.text
    assert (tmp_path / "output" / "model.safetensors").is_file()


def test_output_of_another_architecture_is_kept(image_folder, tmp_path):
    output = tmp_path / "output"
    run(image_folder, output, num_train_epochs=1)
    before = (output / "model.safetensors").read_bytes()
    wider = json.dumps(json.loads(ARCHITECTURE) | {"embed_dim": 32})
    with pytest.raises(ValueError, match=r"checkpoint-3 is of another model: .* Name another `--output_dir`"):
        run(image_folder, output, config_overrides=wider)
    assert (output / "model.safetensors").read_bytes() == before


def test_disk_full_while_saving(image_folder, tmp_path, monkeypatch):
    """The checkpoint before stays whole, and the next run goes on from it."""
    output = tmp_path / "output"
    save = TrainerState.save_to_json

    def full_at_the_second(self, path):
        if "checkpoint-6" in path:
            Path(path).write_text("{")
            raise OSError(28, "No space left on device")
        save(self, path)

    with monkeypatch.context() as patch:
        patch.setattr(TrainerState, "save_to_json", full_at_the_second)
        with pytest.raises(OSError, match="checkpoint-6 could not be written .*No space left.* is .*checkpoint-3"):
            run(image_folder, output)
    assert last_complete_checkpoint(output) == str(output / "checkpoint-3")
    run(image_folder, output)
    assert json.loads((output / "trainer_state.json").read_text())["global_step"] == 6


def test_sigterm_and_start_again(image_folder, tmp_path, monkeypatch):
    """A stopped run makes no model and no results; the same command ends as a run that was not stopped."""
    step = script.InternImageTrainer.training_step

    def stopped_in_the_second(self, *args, **kwargs):
        if self.state.global_step == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(script.InternImageTrainer, "training_step", stopped_in_the_second)
        with pytest.raises(SystemExit, match="143"):
            run(image_folder, tmp_path / "stopped", num_train_epochs=1)
    left = sorted(path.name for path in (tmp_path / "stopped").iterdir())
    assert left == ["_lock", "checkpoint-2"]
    for name in ("stopped", "whole"):
        run(image_folder, tmp_path / name, num_train_epochs=1)
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("stopped", "whole"))
    assert all(torch.equal(second[key], tensor) for key, tensor in first.items())


def test_files_hold_neither_token_nor_path(image_folder, tmp_path):
    token = "hf_" + "secret" * 5
    output = tmp_path / "output"
    options = {"num_train_epochs": 1, "token": token, "hub_token": token}
    run(image_folder, output, **options)
    run(image_folder, tmp_path / "tuned", **options, config_overrides=None, model_name_or_path=str(output))
    for folder in (output, tmp_path / "tuned"):
        for file in folder.rglob("*"):
            content = b"" if file.is_dir() else file.read_bytes()
            assert token.encode() not in content and str(tmp_path).encode() not in content, file
    assert "the train dataset" in (output / "README.md").read_text()


def test_output_that_is_in_use_or_cannot_be_written(image_folder, tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    for output in (file, file / "output"):
        with pytest.raises(ValueError, match="`--output_dir .*file is not a folder that can be written"):
            run(image_folder, output)
    process = multiprocessing.get_context("fork").Process(target=hold, args=(tmp_path / "output",), daemon=True)
    process.start()
    while not (tmp_path / "output" / "_lock").exists() or not (tmp_path / "output" / "_lock").read_text():
        time.sleep(0.01)
    with pytest.raises(RuntimeError, match="Another run is writing to .*output"):
        run(image_folder, tmp_path / "output")
    process.kill()


def hold(folder: Path):
    with FolderLock(folder):
        time.sleep(600)


def test_frozen_stages_stay(image_folder, tmp_path):
    run(image_folder, tmp_path / "first", num_train_epochs=1)
    base = {"config_overrides": None, "model_name_or_path": str(tmp_path / "first"), "num_train_epochs": 1}
    run(image_folder, tmp_path / "second", **base, freeze_stages=2, layer_decay=0.9, drop_path_rate=0.1)
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("first", "second"))
    frozen = ("internimage.embeddings.", "internimage.encoder.stages.0.", "internimage.encoder.stages.1.")
    for name, tensor in first.items():
        if name.endswith("weight") and tensor.ndim > 1:
            assert torch.equal(second[name], tensor) == name.startswith(frozen), name
    assert json.loads((tmp_path / "second" / "config.json").read_text())["drop_path_rate"] == 0.1
    with pytest.raises(ValueError, match="`--freeze_stages 5` must be between 0 and 4"):
        run(image_folder, tmp_path / "third", **base, freeze_stages=5)


def test_nothing_to_freeze():
    resnet = ResNetForImageClassification(ResNetConfig(depths=[1, 1], hidden_sizes=[8, 8], embedding_size=8))
    training.freeze_stages(resnet, 0)
    with pytest.raises(ValueError, match="`--freeze_stages 2` is for models with an InternImage, which ResNetFor"):
        training.freeze_stages(resnet, 2)


@pytest.mark.parametrize(
    "names, expected",
    [
        (["full", "validation"], {"validation": "validation"}),
        (["full", "test"], {"validation": "test"}),
        (["train", "valid", "full"], {"train": "train", "validation": "valid"}),
        (["train", "validation", "test"], {"train": "train", "validation": "validation"}),
    ],
    ids=str,
)
def test_splits_by_their_names(names, expected):
    """Of a dataset with splits of other names, those that are needed are found; without any, all are named."""
    splits = datasets.DatasetDict(
        {name: datasets.Dataset.from_dict({"image": [name], "label": [0]}) for name in names}
    )
    data_args = script.DataArguments(dataset_name="x")
    found = image_datasets.train_and_validation(splits, data_args, 0, "")
    assert {name: split["image"][0] for name, split in found.items()} == expected
    for fraction in (0.15, 0.0):
        data_args = script.DataArguments(dataset_name="x", train_val_split=fraction)
        with pytest.raises(ValueError, match=r"The dataset has the splits \['full'\]: one must be called 'train', "):
            others = datasets.DatasetDict({"full": splits[names[0]]})
            image_datasets.train_and_validation(others, data_args, 0, "")


# The table of the authors' configurations: epochs, warm-up epochs, pixels, rate, lowest and first rate, smoothing,
# mixup, cutmix, erasing, stochastic depth, decay of the average, checkpointing, layer decay, factor on offsets.
AUTHORS = {
    "internimage_t_1k_224": (300, 20, 224, 5e-4, 5e-6, 5e-7, 0.1, 0.8, 1.0, 0.25, 0.1, 0.9999, False, 1.0, 1.0),
    "internimage_s_1k_224": (300, 20, 224, 5e-4, 5e-6, 5e-7, 0.1, 0.8, 1.0, 0.25, 0.4, 0.9999, False, 1.0, 1.0),
    "internimage_b_1k_224": (300, 20, 224, 5e-4, 5e-6, 5e-7, 0.1, 0.8, 1.0, 0.25, 0.5, 0.9999, False, 1.0, 1.0),
    "internimage_l_22kto1k_384": (20, 2, 384, 2e-5, 0, 0, 0.3, 0, 0, 0, 0.1, 0.9999, True, 1.0, 1.0),
    "internimage_xl_22kto1k_384": (20, 2, 384, 2e-5, 0, 0, 0.3, 0, 0, 0, 0.2, 0.9999, True, 1.0, 1.0),
    "internimage_h_22kto1k_640": (20, 2, 640, 2e-5, 0, 0, 0.3, 0, 0, 0, 0.2, 0.9999, True, 1.0, 1.0),
    "internimage_g_22kto1k_512": (20, 2, 512, 2e-5, 0, 0, 0.3, 0, 0, 0, 0.4, 0.9999, True, 1.0, 1.0),
    "internimage_h_22ktoinat18_384": (100, 0, 384, 2e-5, 0, 0, 0.3, 0, 0, 0, 0.6, None, True, 1.0, 1.0),
    "flash_intern_image_t_1k_224": (300, 20, 224, 5e-4, 5e-6, 5e-7, 0.1, 0.8, 1.0, 0.25, 0.1, 0.9999, False, 1.0, 1.0),
    "flash_intern_image_s_1k_224": (300, 20, 224, 5e-4, 5e-6, 5e-7, 0.1, 0.8, 1.0, 0.25, 0.4, 0.9999, False, 1.0, 1.0),
    "flash_intern_image_b_1k_224": (300, 20, 224, 5e-4, 5e-6, 5e-7, 0.1, 0.8, 1.0, 0.25, 0.5, 0.9999, False, 1.0, 1.0),
    "flash_internimage_l_22kto1k_384": (20, 2, 384, 2e-5, 0, 0, 0.3, 0, 0, 0, 0.1, 0.9999, True, 0.9, 0.1),
}


@pytest.mark.parametrize("name", AUTHORS)
def test_recipes_are_the_authors(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe = json.loads((script.RECIPES / f"{name}.json").read_text()) | {"bf16": False, "use_cpu": True}
    (tmp_path / "recipe.json").write_text(json.dumps(recipe))
    model_args, data_args, recipe, training = script.parse_arguments([str(tmp_path / "recipe.json")])
    architecture = script.read_overrides(model_args.config_overrides)
    warmup_lr, min_lr = recipe.lr_cosine
    actual = (
        training.num_train_epochs,
        pytest.approx(training.warmup_steps * training.num_train_epochs),
        architecture.get("image_size", data_args.image_size),
        recipe.base_learning_rate,
        pytest.approx(min_lr * recipe.base_learning_rate),
        pytest.approx(warmup_lr * recipe.base_learning_rate),
        training.label_smoothing_factor,
        recipe.mixup,
        recipe.cutmix,
        data_args.random_erasing,
        architecture.get("drop_path_rate", model_args.drop_path_rate),
        recipe.ema_decay,
        training.gradient_checkpointing,
        recipe.layer_decay,
        recipe.deformable_multiplier,
    )
    assert actual == AUTHORS[name]
    assert (training.adam_beta1, training.adam_beta2, training.adam_epsilon) == (0.9, 0.999, 1e-8)
    assert (training.weight_decay, training.max_grad_norm, recipe.layer_counting) == (0.05, 5.0, "classification")
    assert data_args.auto_augment == "rand-m9-mstd0.5-inc1" and data_args.color_jitter == 0.4
    if architecture:
        built, registered = InternImageConfig(**architecture), CHECKPOINTS[name].config()
        for field in (
            "core_op", "hidden_sizes", "depths", "num_groups", "post_norm", "layer_scale_init_value", "offset_scale",
            "depthwise_kernel_size", "dcn_output_bias", "mlp_fc2_bias",
        ):  # fmt: skip
            assert getattr(built, field) == getattr(registered, field), field


def test_learning_rate_follows_the_batch_size(image_folder, tmp_path):
    """5e-4 for 512 images per step, so 5e-4 * 8 / 512 for 4 images in 2 accumulated steps."""
    run(image_folder, tmp_path / "output", base_learning_rate=5e-4, gradient_accumulation_steps=2, warmup_steps=0,
        lr_scheduler_type="constant", num_train_epochs=1)  # fmt: skip
    log = json.loads((tmp_path / "output" / "trainer_state.json").read_text())["log_history"]
    assert log[0]["learning_rate"] == pytest.approx(5e-4 * 8 / 512)


def test_photographs_do_not_overlap(tmp_path):
    photographs.write_image_folder(tmp_path)
    train, validation = ({path.relative_to(tmp_path / split) for path in (tmp_path / split).glob("*/*.png")}
                         for split in ("train", "validation"))  # fmt: skip
    assert (len(train), len(validation)) == (291, 99) and not train & validation
    assert {path.parent for path in train} == {path.parent for path in validation} and len(
        {p.parent for p in train}
    ) == 9
    arguments = script.parse_arguments([str(script.RECIPES.parent / "photographs.json")])
    assert (arguments[2].mixup > 0, arguments[2].ema_decay is not None, arguments[2].layer_decay < 1) == (True,) * 3


@pytest.mark.parametrize(
    "change, message",
    [
        ({"train_dir": None, "validation_dir": None}, "No images: give `--dataset_name`"),
        ({"train_dir": "/does/not/exist"}, "`--train_dir /does/not/exist` is not a folder"),
        ({"image_column_name": "picture"}, "have no column 'picture'"),
        ({"train_dir": "EMPTY_CLASS"}, "The class folder .*zebra is empty"),
        ({"validation_dir": None, "train_val_split": 0.0}, "There are no validation images, which `--do_eval` needs"),
        ({"model_name_or_path": "somewhere"}, "`--config_overrides` describes a new model"),
    ],
    ids=str,
)
def test_bad_arguments(change, message, image_folder, tmp_path):
    if change.get("train_dir") == "EMPTY_CLASS":
        (image_folder / "train" / "zebra").mkdir()
        change = {}
    with pytest.raises(ValueError, match=message):
        run(image_folder, tmp_path / "output", **change)


def test_classes_differ_between_splits(image_folder, tmp_path):
    shutil.move(image_folder / "validation" / "coffee", image_folder / "validation" / "cofee")
    with pytest.raises(ValueError, match=r"classes without a training image: \['cofee'\]"):
        run(image_folder, tmp_path / "output")
    assert not (tmp_path / "output").exists()


def test_missing_labels():
    from datasets import Dataset, DatasetDict

    splits = DatasetDict({"train": Dataset.from_dict({"label": [0.0, 1.0, float("nan")]})})
    with pytest.raises(ValueError, match="missing labels"):
        script.encode_labels(splits, "label")
    splits = DatasetDict({"train": Dataset.from_dict({"label": ["b", "a"]})})
    encoded = script.encode_labels(splits, "label")["train"]
    assert encoded.features["label"].names == ["a", "b"] and encoded["label"] == [1, 0]
