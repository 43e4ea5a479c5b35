# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""The Trainer with the authors' recipe: averaged weights, mixed images, resuming, gradient accumulation, processes."""

import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch
from huggingface_hub import HfApi
from processes import join, start_processes
from safetensors.torch import load_file, save_file
from testing_utils import first_quick
from torch import nn
from transformers import Trainer, TrainerCallback, TrainerState, TrainingArguments
from transformers.utils import SAFE_WEIGHTS_NAME, is_torchvision_available

from modeling_internimage import InternImageConfig, InternImageForImageClassification
from modeling_internimage.training import InternImageTrainer, Recipe
from modeling_internimage.training.augmentation import MixupCutmix
from modeling_internimage.training.checkpoints import (
    check_same_architecture,
    find_checkpoint,
    last_complete_checkpoint,
)
from modeling_internimage.training.ema import WeightAverage
from modeling_internimage.training.folder_lock import FolderLock


class Images(torch.utils.data.Dataset):
    """Random images whose mean brightness tells the class."""

    def __init__(self, count=32, num_labels=3):
        generator = torch.Generator().manual_seed(0)
        self.labels = torch.arange(count) % num_labels
        self.images = torch.randn(count, 3, 32, 32, generator=generator) + self.labels.view(-1, 1, 1, 1) - 1

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, idx):
        return {"pixel_values": self.images[idx], "labels": self.labels[idx].item()}


@pytest.fixture
def train(tiny_config, tmp_path):
    def train(recipe=None, resume=None, model=None, callback=None, **kwargs):
        torch.manual_seed(0)
        if model is None:
            model = InternImageForImageClassification(tiny_config(num_labels=3, drop_path_rate=0.1))
        defaults = {"max_steps": 4, "per_device_train_batch_size": 8, "learning_rate": 1e-3, "logging_steps": 1}
        defaults |= {"save_strategy": "no", "report_to": "none", "disable_tqdm": True, "use_cpu": True, "seed": 0}
        arguments = TrainingArguments(str(tmp_path / "output"), **(defaults | kwargs))
        trainer = InternImageTrainer(model, arguments, train_dataset=Images(), eval_dataset=Images(9), recipe=recipe)
        if callback is not None:
            trainer.add_callback(callback)
        trainer.train(resume_from_checkpoint=resume)
        return trainer

    return train


def losses(trainer) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def test_weight_average_follows_its_formula(tiny_config):
    model = InternImageForImageClassification(tiny_config())
    average = WeightAverage(model, decay=0.9)
    expected = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for step in range(3):
        with torch.no_grad():
            for tensor in model.state_dict().values():
                tensor += 1 + step
        average.update()
        for name, tensor in model.state_dict().items():
            mixed = 0.9 * expected[name] + 0.1 * tensor if tensor.is_floating_point() else tensor.clone()
            expected[name] = mixed
    last = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with average.applied():
        for name, tensor in model.state_dict().items():
            torch.testing.assert_close(tensor, expected[name])
    assert all(torch.equal(tensor, last[name]) for name, tensor in model.state_dict().items())


def test_recipes_schedule_is_the_trainer_s(train, tmp_path):
    """Layers with different rates start and end at the same, also after resuming and in a second `train`."""
    arguments = {"warmup_steps": 1, "max_steps": 3, "save_strategy": "steps", "save_steps": 2}
    recipe = Recipe(layer_decay=0.5, lr_cosine=[0.2, 0.1])

    def check(trainer):
        logged = [entry["learning_rate"] for entry in trainer.state.log_history if "learning_rate" in entry]
        groups = trainer.optimizer.param_groups
        assert len({group["initial_lr"] for group in groups}) > 3
        assert [group["lr"] for group in groups] == pytest.approx([1e-4] * len(groups))
        difference = groups[0]["initial_lr"] - 1e-4
        assert logged == pytest.approx([2e-4, 1e-4 + 0.75 * difference, 1e-4 + 0.25 * difference])

    trainer = train(recipe, **arguments)
    check(trainer)
    check(train(recipe, str(tmp_path / "output" / "checkpoint-2"), **arguments))
    trainer.train()
    check(trainer)


def test_rates_of_the_recipe_reach_the_optimizer(train):
    """As in DINO's recipe of L with a tenth for the backbone; without milestones the rates stay."""
    recipe = Recipe(backbone_multiplier=0.1, decay_all=True, lr_milestones=[])
    trainer = train(recipe, max_steps=2, weight_decay=0.05, warmup_steps=0)
    backbone, classifier = sorted(trainer.optimizer.param_groups, key=lambda group: group["lr"])
    assert (backbone["lr"], classifier["lr"]) == (pytest.approx(1e-4), 1e-3) and len(classifier["params"]) == 2
    assert backbone["weight_decay"] == classifier["weight_decay"] == 0.05


def test_average_of_a_bfloat16_model_moves():
    """Steps that bfloat16, DeepSpeed's type of the weights, cannot hold."""
    model = nn.Linear(1, 1, dtype=torch.bfloat16)
    nn.init.ones_(model.weight)
    average = WeightAverage(model, decay=0.9999)
    nn.init.constant_(model.weight, 2.0)
    for _ in range(100):
        average.update()
    assert average.average["weight"].item() == pytest.approx(2 - 0.9999**100, rel=1e-5)
    with average.applied():
        assert model.weight.item() == pytest.approx(2 - 0.9999**100, rel=2**-8)
    assert model.weight.item() == 2 and average.average["weight"].item() == pytest.approx(2 - 0.9999**100, rel=1e-5)


def test_average_is_evaluated_saved_and_resumed(train, tmp_path):
    recipe = Recipe(ema_decay=0.5)
    whole = train(recipe, max_steps=6, save_strategy="steps", save_steps=3)
    whole.save_model(tmp_path / "final")
    checkpoint = tmp_path / "output" / "checkpoint-6"
    raw, averaged = (load_file(folder / "model.safetensors") for folder in (checkpoint, checkpoint / "ema"))
    final = load_file(tmp_path / "final" / "model.safetensors")
    name = "classifier.weight"
    assert torch.equal(final[name], averaged[name]) and not torch.equal(final[name], raw[name])
    assert torch.equal(whole.model.state_dict()[name], raw[name])  # training would go on with these
    model = InternImageForImageClassification.from_pretrained(tmp_path / "final").eval()
    logits = model(torch.stack([Images(9)[idx]["pixel_values"] for idx in range(9)])).logits
    loss = nn.functional.cross_entropy(logits, Images(9).labels).item()
    assert whole.evaluate()["eval_loss"] == pytest.approx(loss, rel=1e-5)

    shutil.rmtree(checkpoint)
    for resume in (str(tmp_path / "output" / "checkpoint-3"), tmp_path / "output" / "checkpoint-3", True):
        resumed = train(recipe, max_steps=6, resume=resume)
        resumed.save_model(tmp_path / "resumed")
        again = load_file(tmp_path / "resumed" / "model.safetensors")
        assert all(torch.equal(again[key], tensor) for key, tensor in final.items())
        assert losses(resumed) == losses(whole)


@pytest.mark.parametrize("persistent", [False, True])
def test_augmentation_changes_between_epochs(persistent, train, monkeypatch):
    """Also in worker processes that live on from one epoch to the next."""
    plain, seen = Images.__getitem__, []
    monkeypatch.setattr(
        Images, "__getitem__", lambda self, idx: plain(self, idx) | {"pixel_values": torch.randn(3, 32, 32)}
    )
    monkeypatch.setattr(
        InternImageTrainer, "compute_loss",
        lambda self, model, inputs, **kwargs: (seen.append(inputs["pixel_values"]), model(**inputs).loss)[1],
    )  # fmt: skip
    workers = {"dataloader_num_workers": 1, "dataloader_persistent_workers": persistent}
    train(max_steps=3, per_device_train_batch_size=32, **workers)  # of all images, in any order
    sums = [images.double().sum().item() for images in seen]
    assert len(sums) == 3 and min(abs(a - b) for a, b in ((sums[0], sums[1]), (sums[1], sums[2]))) > 1


def test_best_checkpoint_s_average_is_saved(train, tmp_path, monkeypatch):
    """`load_best_model_at_end`: evaluated, saved and pushed is the average in that checkpoint, here not the last."""
    trainer = train(
        Recipe(ema_decay=0.5), max_steps=6, save_strategy="steps", save_steps=2, eval_strategy="steps", eval_steps=2,
        load_best_model_at_end=True, metric_for_best_model="loss", greater_is_better=True,
    )  # fmt: skip
    best = tmp_path / "output" / "checkpoint-2"
    evaluated = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
    assert trainer.state.best_model_checkpoint == str(best) and evaluated[0] == max(evaluated) > min(evaluated)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(evaluated[0], rel=1e-6)

    raw, averaged = (load_file(folder / "model.safetensors") for folder in (best, best / "ema"))
    assert not torch.equal(raw["classifier.weight"], averaged["classifier.weight"])
    uploaded = []

    def upload_folder(self, folder_path, **kwargs):
        uploaded.append(load_file(Path(folder_path) / SAFE_WEIGHTS_NAME))

    monkeypatch.setattr(HfApi, "upload_folder", upload_folder)
    trainer.args.push_to_hub, trainer.hub_model_id, trainer.push_in_progress = True, "me/model", None
    for push in (trainer.save_model, trainer.push_to_hub):
        (tmp_path / "output" / SAFE_WEIGHTS_NAME).unlink(missing_ok=True)
        push()
        saved = uploaded.pop()
        assert saved.keys() == averaged.keys() and all(torch.equal(saved[key], averaged[key]) for key in saved)
    assert all(torch.equal(tensor, raw[key]) for key, tensor in trainer.model.state_dict().items())


@pytest.mark.skipif(not is_torchvision_available(), reason="mixup and cutmix are torchvision's")
@pytest.mark.parametrize("mixup, cutmix", [(0.8, 0.0), (0.0, 1.0), (0.8, 1.0)])
def test_mixed_batches(mixup, cutmix):
    """Image k is k everywhere, so its mean tells the classes in a mixed image, and by which parts."""

    def collate(examples):
        return {"pixel_values": torch.stack([e["pixel_values"] for e in examples]), "labels": torch.arange(4)}

    collator = MixupCutmix(collate, 4, mixup, cutmix)
    images = torch.arange(4.0).view(4, 1, 1, 1).expand(4, 3, 16, 16)
    mixed = 0
    for idx in range(20):
        batch = collator([{"pixel_values": image + 1e-6 * idx} for image in images])
        expected = batch["labels"] @ torch.arange(4.0)
        torch.testing.assert_close(batch["pixel_values"].mean(dim=(1, 2, 3)), expected, rtol=0, atol=1e-4)
        torch.testing.assert_close(batch["labels"].sum(dim=1), torch.ones(4))
        mixed += bool((batch["labels"].amax(dim=1) < 0.99).any())
    assert mixed > 10


@pytest.mark.skipif(not is_torchvision_available(), reason="mixup and cutmix are torchvision's")
def test_mixing_differs_between_batches_and_leaves_gpus_alone(monkeypatch):
    """Images with the same borders are mixed by different factors; random numbers of GPUs are for the model."""
    collator = MixupCutmix(torch.utils.data.default_collate, 4, mixup=0.8, cutmix=0.0)
    monkeypatch.setattr(torch.cuda, "manual_seed_all", lambda seed: pytest.fail("a GPU was seeded"))
    factors = set()
    for _ in range(5):
        images = torch.nn.functional.pad(torch.randn(4, 3, 28, 28), (2, 2, 2, 2))
        batch = collator([{"pixel_values": image, "labels": label} for label, image in enumerate(images)])
        factors.add(batch["labels"].max().item())
    assert len(factors) == 5


@pytest.mark.skipif(not is_torchvision_available(), reason="mixup and cutmix are torchvision's")
def test_loss_is_the_original_s(train):
    """Smoothed cross-entropy with probabilities in training, plain cross-entropy in evaluation."""
    trainer = train(Recipe(mixup=0.8, cutmix=1.0), label_smoothing_factor=0.3)
    images, target = torch.randn(2, 3, 32, 32), torch.tensor([[0.2, 0.8, 0.0], [0.0, 0.0, 1.0]])
    trainer.model.train()
    loss, outputs = trainer.compute_loss(trainer.model, {"pixel_values": images, "labels": target}, True)
    smoothed = 0.7 * target + 0.3 / 3
    torch.testing.assert_close(loss, -(smoothed * outputs.logits.log_softmax(-1)).sum(-1).mean())
    trainer.model.eval()
    labels = torch.tensor([1, 2])
    loss, outputs = trainer.compute_loss(trainer.model, {"pixel_values": images, "labels": labels}, True)
    torch.testing.assert_close(loss, -outputs.logits.log_softmax(-1)[[0, 1], [1, 2]].mean())
    assert all(loss > 0 for loss in losses(trainer))


class TrainerLog(TrainerCallback):
    """Losses and learning rates of a run by either class of trainer."""

    def __init__(self):
        self.entries = []

    def on_log(self, args, state, control, logs, **kwargs):
        self.entries += [(logs["loss"], logs["learning_rate"])] if "loss" in logs else []


def half(outputs, labels, num_items_in_batch):
    return 0.5 * nn.functional.cross_entropy(outputs.logits, labels, reduction="sum") / num_items_in_batch


def with_labels(labels: torch.Tensor) -> list[dict]:
    return [{"pixel_values": Images()[idx]["pixel_values"], "labels": label} for idx, label in enumerate(labels)]


class Streamed(torch.utils.data.IterableDataset):
    def __iter__(self):
        return (Images()[idx] for idx in range(32))


@pytest.mark.parametrize(
    "problem_type, changes, arguments",
    first_quick(
        [
            ("single_label_classification", {}, {}),
            (
                "multi_label_classification",
                {"train_dataset": with_labels((torch.arange(96) % 7 > 3).view(32, 3).float())},
                {},
            ),
            ("regression", {"train_dataset": with_labels(torch.linspace(-1, 1, 96).view(32, 3))}, {}),
            (None, {"train_dataset": Streamed()}, {}),
            (None, {"compute_loss_func": half}, {"gradient_accumulation_steps": 2}),
            (None, {"optimizer_cls_and_kwargs": (torch.optim.SGD, {"lr": 0.02, "momentum": 0.9})}, {}),
            (
                None,
                {},
                {
                    "lr_scheduler_type": "cosine_warmup_with_min_lr",
                    "lr_scheduler_kwargs": {"min_lr_rate": 0.1, "warmup_lr_rate": 0.2},
                    "warmup_steps": 2,
                },
            ),
        ],
        kind=lambda value: value[0],
    ),
    ids=["classes", "multi-label", "regression", "streamed", "loss", "optimizer", "schedule"],
)
def test_without_a_recipe_it_is_the_trainer(problem_type, changes, arguments, tiny_config, tmp_path):
    """The same losses and learning rates, training and evaluation, for all that a recipe does not name."""
    seen = {}
    for trainer_class in (Trainer, InternImageTrainer):
        log, options = TrainerLog(), {"train_dataset": Images()} | changes
        torch.manual_seed(0)
        model = InternImageForImageClassification(tiny_config(num_labels=3, problem_type=problem_type))
        training = TrainingArguments(
            str(tmp_path), max_steps=3, per_device_train_batch_size=4, learning_rate=1e-3, logging_steps=1, seed=0,
            save_strategy="no", report_to="none", disable_tqdm=True, use_cpu=True, **arguments,
        )  # fmt: skip
        trainer = trainer_class(model, training, callbacks=[log], **options)
        trainer.train()
        loss = trainer.evaluate(options["train_dataset"])["eval_loss"]
        seen[trainer_class] = [*log.entries, (loss, 0.0)]
    assert len(seen[Trainer]) == 4
    torch.testing.assert_close(torch.tensor(seen[InternImageTrainer]), torch.tensor(seen[Trainer]))


@pytest.mark.parametrize(
    "problem_type, recipe, smoothing",
    [("multi_label_classification", Recipe(mixup=0.8), 0.0), ("regression", None, 0.1)],
)
def test_only_single_classes_are_mixed_and_smoothed(problem_type, recipe, smoothing, tiny_config, tmp_path):
    model = InternImageForImageClassification(tiny_config(problem_type=problem_type))
    arguments = TrainingArguments(str(tmp_path), report_to="none", use_cpu=True, label_smoothing_factor=smoothing)
    with pytest.raises(ValueError, match=f"problem_type='{problem_type}'"):
        InternImageTrainer(model, arguments, train_dataset=Images(), recipe=recipe)


def without_batch_statistics(model):
    """Batch norm makes a small batch another function than a large one: use its running statistics."""
    model.eval()
    model.train = lambda mode=True: model
    return model


def test_gradient_accumulation_equals_the_large_batch(train, tiny_config):
    def run(**kwargs):
        torch.manual_seed(0)
        model = without_batch_statistics(InternImageForImageClassification(tiny_config(num_labels=3)))
        return train(model=model, **kwargs)

    large = run(per_device_train_batch_size=8)
    small = run(per_device_train_batch_size=2, gradient_accumulation_steps=4)
    torch.testing.assert_close(torch.tensor(losses(small)), torch.tensor(losses(large)), rtol=1e-4, atol=1e-5)
    for key, tensor in large.model.state_dict().items():
        torch.testing.assert_close(small.model.state_dict()[key], tensor, rtol=1e-3, atol=1e-5)


def test_bfloat16_trains(train):
    trainer = train(Recipe(ema_decay=0.9), bf16=True, max_steps=6)
    assert trainer.model.dtype == torch.float32 and losses(trainer)[-1] < losses(trainer)[0]


def test_loss_that_is_not_finite_stops(train, tiny_config, tmp_path):
    train(max_steps=2, save_strategy="steps", save_steps=2)
    model = InternImageForImageClassification(tiny_config(num_labels=3))
    with torch.no_grad():
        model.classifier.bias[0] = float("nan")
    before = (tmp_path / "output" / "checkpoint-2" / "model.safetensors").read_bytes()
    with pytest.raises(FloatingPointError, match=r"loss at step 1 is nan; the last good checkpoint is .*checkpoint-2"):
        train(model=model)
    assert (tmp_path / "output" / "checkpoint-2" / "model.safetensors").read_bytes() == before


EVERY_STEP = {"save_strategy": "steps", "save_steps": 1}


class At(TrainerCallback):
    """Calls `action` once, at an event when `step` steps are done."""

    def __init__(self, event: str, step: int, action):
        actions = [action]

        def call(args, state, control, **kwargs):
            if state.global_step == step and actions:
                actions.pop()(**kwargs)

        setattr(self, event, call)


def not_finite(value: float):
    """An action that gives the gradients a value, while the loss is a finite one."""

    def act(model, **kwargs):
        model.classifier.bias.grad.fill_(value)

    return act


def set_state(optimizer, **kwargs):
    next(iter(optimizer.state.values()))["exp_avg_sq"].view(-1)[0] = float("inf")


@pytest.mark.parametrize(
    "event, action, named",
    [
        ("on_pre_optimizer_step", not_finite(float("nan")), "classifier.bias"),
        ("on_pre_optimizer_step", not_finite(float("inf")), "classifier.bias"),
        ("on_step_end", set_state, "the optimizer's state.*exp_avg_sq"),
    ],
    ids=["nan", "inf", "optimizer"],
)
def test_weights_that_are_not_finite_are_not_saved(event, action, named, train, tmp_path, caplog):
    """The checkpoint before stays the last one and is resumed."""
    step = 3 if event == "on_step_end" else 2  # the third
    with pytest.raises(FloatingPointError, match=rf"After step 3, {named} has NaN or Inf.*good .*checkpoint-2\."):
        train(callback=At(event, step, action), **EVERY_STEP)
    assert not (tmp_path / "output" / "checkpoint-3").exists()
    assert train(resume=True).state.global_step == 4 and "incomplete" not in caplog.text


@pytest.mark.parametrize("recipe", [None, Recipe(ema_decay=0.5)], ids=["weights", "average"])
def test_model_that_is_not_finite_is_not_saved(recipe, train, tmp_path):
    trainer = train(recipe, max_steps=1)
    tensors = dict(trainer.model.named_parameters()) if recipe is None else trainer.average.average
    tensors["classifier.weight"].data[0, 0] = float("-inf")
    with pytest.raises(FloatingPointError, match=r"classifier.weight has NaN or Inf, .* checkpoint is None"):
        trainer.save_model(tmp_path / "final")
    assert not (tmp_path / "final").exists()


@pytest.fixture(scope="module")
def three_checkpoints(tmp_path_factory):
    """Of a run of three steps."""
    folder = tmp_path_factory.mktemp("run")
    torch.manual_seed(0)
    config = InternImageConfig(embed_dim=16, depths=[1, 1, 1, 1], num_groups=[1, 2, 4, 8], num_labels=3)
    arguments = TrainingArguments(
        str(folder), max_steps=3, per_device_train_batch_size=2, report_to="none", disable_tqdm=True, use_cpu=True,
        **EVERY_STEP,
    )  # fmt: skip
    model = InternImageForImageClassification(config)
    InternImageTrainer(model, arguments, train_dataset=Images(), recipe=Recipe(ema_decay=0.5)).train()
    return folder


def truncate(file: Path):
    os.truncate(file, file.stat().st_size // 2)


def empty(file: Path):
    file.write_bytes(b"")


def overwrite(file: Path):
    file.write_bytes(b"\x80\x02garbage" * 99)


def with_nan(file: Path):
    tensors = load_file(file)
    tensors["classifier.bias"][0] = float("nan")
    save_file(tensors, file)


DAMAGES = [
    *(("trainer_state.json", damage) for damage in (empty, truncate, os.remove)),
    *(("model.safetensors", damage) for damage in (empty, truncate, os.remove, overwrite, with_nan)),
    *(("ema/model.safetensors", damage) for damage in (truncate, with_nan)),
    *(("optimizer.pt", damage) for damage in (empty, truncate, os.remove, overwrite)),
    *(("scheduler.pt", damage) for damage in (truncate, os.remove)),
    *(("rng_state.pth", damage) for damage in (truncate, os.remove)),
]


@pytest.mark.parametrize("name, damage", DAMAGES, ids=lambda value: getattr(value, "__name__", value))
def test_damaged_checkpoint_is_passed_over(name, damage, three_checkpoints, tmp_path, caplog):
    output = shutil.copytree(three_checkpoints, tmp_path / "output")
    (output / "checkpoint-abc").mkdir()
    (output / "checkpoint-9").write_text("a file")
    assert find_checkpoint(output).path == output / "checkpoint-3" and not caplog.text
    damage(output / "checkpoint-3" / name)
    assert find_checkpoint(output).path == output / "checkpoint-2"
    assert f"resuming from the one before, {output / 'checkpoint-2'}" in caplog.text and len(caplog.records) == 1

    # The only one: what is left of it is used, or nothing.
    for step in (1, 2):
        shutil.rmtree(output / f"checkpoint-{step}")
    caplog.clear()
    checkpoint = find_checkpoint(output)
    assert (checkpoint is None) == (name in ("trainer_state.json", "model.safetensors"))
    assert ("there is none before it" in caplog.text) == (checkpoint is None)
    assert "resuming from" not in caplog.text


@pytest.mark.parametrize(
    "name, damage, anew",
    first_quick(
        [
            ("optimizer.pt", truncate, "the optimizer, the learning rate's schedule start anew"),
            ("scheduler.pt", os.remove, "the optimizer, the learning rate's schedule start anew"),
            ("rng_state.pth", truncate, "the random numbers start anew"),
            ("ema/model.safetensors", truncate, "has no averaged weights: the average starts anew"),
            ("trainer_state.json", empty, "there is none before it to resume from"),
            (None, None, "the optimizer, the learning rate's schedule, the random numbers start anew"),
        ]
    ),
    ids=lambda value: getattr(value, "__name__", value),
)
def test_what_starts_anew_is_said(name, damage, anew, train, tmp_path, caplog):
    """Resuming from the only checkpoint, of which something is damaged or was not saved (`save_only_model`)."""
    train(Recipe(ema_decay=0.5), max_steps=1, save_only_model=name is None, **EVERY_STEP)
    if name is not None:
        damage(tmp_path / "output" / "checkpoint-1" / name)
    trainer = train(Recipe(ema_decay=0.5), max_steps=2, resume=True)
    assert anew in caplog.text and trainer.state.global_step == 2
    assert len(losses(trainer)) == 2  # the first is in the history, or was made again


def test_checkpoint_that_cannot_be_used_is_refused(train, tiny_config, tmp_path):
    for resume, message in ((True, "No valid checkpoint"), (str(tmp_path / "none"), "none: there is no such folder")):
        with pytest.raises(ValueError, match=message):
            train(resume=resume)
    train(max_steps=1, **EVERY_STEP)
    checkpoint = tmp_path / "output" / "checkpoint-1"
    other = InternImageForImageClassification(tiny_config(num_labels=4))
    with pytest.raises(ValueError, match=r"of another model: classifier.weight has the shape \[3, .* there and \[4, "):
        train(model=other, resume=True)
    truncate(checkpoint / "model.safetensors")
    with pytest.raises(ValueError, match="model.safetensors cannot be read"):
        check_same_architecture(other, checkpoint)
    with pytest.raises(ValueError, match="cannot go on from .*checkpoint-1: model.safetensors cannot be read"):
        train(resume=str(checkpoint))


FULL = OSError(28, "No space left on device")


@pytest.mark.parametrize(
    "name",
    first_quick(
        ["ema", "model", "training_args.bin", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"]
    ),
)
def test_full_disk_leaves_the_checkpoint_before(name, train, tmp_path, monkeypatch):
    """At any file of a checkpoint, also with a limit of one checkpoint. The reason and the way on are said."""
    second = tmp_path / "output" / "checkpoint-2"

    def full(function, path_of):
        def write(*args, **kwargs):
            path = Path(path_of(*args, **kwargs))
            if second in path.parents or path == second:
                if path.name == name or (name, path) in (("model", second), ("ema", second / "ema")):
                    path.mkdir(exist_ok=True) if path.name == "ema" else (second / name).write_bytes(b"half")
                    raise FULL
            return function(*args, **kwargs)

        return write

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", full(torch.save, lambda value, path, **_: path))
        patch.setattr(TrainerState, "save_to_json", full(TrainerState.save_to_json, lambda state, path: path))
        save = InternImageForImageClassification.save_pretrained
        patch.setattr(InternImageForImageClassification, "save_pretrained", full(save, lambda self, path, **_: path))
        with pytest.raises(
            OSError, match="checkpoint-2 could not be written .*No space left.*checkpoint-1. Make space"
        ):
            train(Recipe(ema_decay=0.5), max_steps=3, save_total_limit=1, **EVERY_STEP)
    assert not second.exists() and last_complete_checkpoint(tmp_path / "output").endswith("checkpoint-1")
    assert len(losses(train(Recipe(ema_decay=0.5), max_steps=3, resume=True))) == 3


def test_second_run_in_a_folder_is_refused(train, tmp_path):
    """While the first lives, and not a moment longer; a worker process does not keep its lock."""
    processes = multiprocessing.get_context("fork")
    ready, output = processes.Event(), tmp_path / "output"

    def hold():
        with FolderLock(output), FolderLock(output):
            ready.set()
            time.sleep(600)

    other = processes.Process(target=hold, daemon=True)
    other.start()
    assert ready.wait(60)
    with pytest.raises(RuntimeError, match=rf"Another run is writing to .*output \(process {other.pid} on .*\)"):
        train(max_steps=1)
    other.kill()
    other.join()
    with FolderLock(output):
        worker = processes.Process(target=time.sleep, args=(600,), daemon=True)
        worker.start()
    try_again = processes.Process(target=FolderLock(output).__enter__)
    try_again.start()
    try_again.join()
    worker.kill()
    assert try_again.exitcode == 0
    train(max_steps=1)


def test_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="The output folder .*file cannot be written"), FolderLock(tmp_path / "file"):
        pass


def terminate(**kwargs):
    os.kill(os.getpid(), signal.SIGTERM)


def terminate_all(**kwargs):
    """As Slurm does; the sender is no process of the run."""
    for process in (*multiprocessing.active_children(), multiprocessing.current_process()):
        subprocess.run(["kill", "-TERM", str(process.pid)], check=True)


@pytest.mark.parametrize(
    "event, step, options",
    first_quick([
        ("on_step_begin", 1, {}),
        ("on_step_begin", 0, {"gradient_accumulation_steps": 2}),
        ("on_step_begin", 3, {"eval_strategy": "epoch"}),  # the last step of the epoch
        ("on_prediction_step", 2, {"eval_strategy": "steps", "eval_steps": 1}),
        ("on_save", 2, {"save_strategy": "steps", "save_steps": 2}),
        ("on_step_begin", 1, {"dataloader_num_workers": 2, "action": terminate_all}),
        ("on_step_begin", 1, {"max_steps": 3, "save_total_limit": 1, "load_best_model_at_end": True,
                              "save_strategy": "steps", "save_steps": 1, "eval_strategy": "steps", "eval_steps": 1}),
    ]),
    ids=["step", "first", "epoch", "evaluation", "saved", "workers", "best"],
)  # fmt: skip
def test_sigterm_ends_with_a_checkpoint(event, step, options, train, tmp_path, caplog):
    """From which the same command continues exactly."""
    recipe = Recipe(ema_decay=0.5)
    options = {"max_steps": 5} | options
    action = options.pop("action", terminate)
    whole = train(recipe, **options)
    shutil.rmtree(tmp_path / "output")
    with pytest.raises(SystemExit) as stopped:
        train(recipe, callback=At(event, step, action), **options)
    assert stopped.value.code == 143 and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    done = step + (event != "on_prediction_step")
    assert f"SIGTERM: the checkpoint of step {done} in {tmp_path / 'output'} is complete" in caplog.text
    assert last_complete_checkpoint(tmp_path / "output") == str(tmp_path / "output" / f"checkpoint-{done}")
    resumed = train(recipe, resume=True, **options)
    for key in ("loss", "eval_loss"):
        assert [entry[key] for entry in resumed.state.log_history if key in entry] == [
            entry[key] for entry in whole.state.log_history if key in entry
        ]
    for key, tensor in whole.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[key], tensor)
    assert all(torch.equal(resumed.average.average[key], tensor) for key, tensor in whole.average.average.items())


def test_finished_run_stays_as_it_is(train):
    """Also if it ends inside an epoch: the same command again, after a signal during the last evaluation."""
    first = train(max_steps=3, **EVERY_STEP)
    again = train(max_steps=3, resume=True, **EVERY_STEP)
    assert again.state.global_step == 3 and losses(again) == losses(first)
    assert all(torch.equal(again.model.state_dict()[key], tensor) for key, tensor in first.model.state_dict().items())


def test_sigterm_while_the_model_is_saved(train, tmp_path, monkeypatch):
    trainer = train(max_steps=1)
    save = trainer.model.save_pretrained
    monkeypatch.setattr(trainer.model, "save_pretrained", lambda *a, **k: (terminate(), save(*a, **k)))
    with pytest.raises(SystemExit):
        trainer.save_model(tmp_path / "final")
    InternImageForImageClassification.from_pretrained(tmp_path / "final")


def test_files_of_a_run_hold_neither_token_nor_path(train, tmp_path):
    token = "hf_" + "secret" * 5
    trainer = train(Recipe(ema_decay=0.5), hub_token=token, max_steps=1, **EVERY_STEP)
    trainer.save_model()
    trainer.save_state()
    trainer.create_model_card()
    assert trainer.args.hub_token == token and trainer.args.output_dir == str(tmp_path / "output")
    files = [file for file in (tmp_path / "output").rglob("*") if file.is_file()]
    assert sum(file.name == "training_args.bin" for file in files) == 3
    for file in files:
        assert token.encode() not in file.read_bytes() and str(tmp_path).encode() not in file.read_bytes(), file
    arguments = torch.load(tmp_path / "output" / "training_args.bin", weights_only=False)
    assert arguments.hub_token is None and arguments.output_dir == "output"


def test_model_card_of_a_resumed_run(train, tmp_path):
    """A column holds the same before and after the interruption, although a saved state has sorted keys."""
    trainer = train(max_steps=1)
    rows = [(0.5, 0.25), (0.4, 0.75)]
    first, second = (
        {"eval_loss": loss, "eval_accuracy": accuracy, "epoch": 1.0, "step": 1} for loss, accuracy in rows
    )
    TrainerState(log_history=[first]).save_to_json(tmp_path / "state.json")
    resumed = TrainerState.load_from_json(tmp_path / "state.json").log_history
    trainer.state.log_history = [*resumed, second, trainer.state.log_history[-1]]
    trainer.create_model_card()
    card = (tmp_path / "output" / "README.md").read_text()
    header, _, *lines = (line.strip("| ").split("|") for line in card.splitlines() if line.startswith("|"))
    columns = [[name.strip() for name in header].index(name) for name in ("Validation Loss", "Accuracy")]
    assert [tuple(float(line[column]) for column in columns) for line in lines] == rows


def train_main(*args, **kwargs):
    """A run of `train_in_processes.py`."""
    import train_in_processes  # which imports this file

    train_in_processes.main(*args, **kwargs)


def run_processes(count: int, output: Path, **options) -> list[float]:
    """The losses of a run. The final model is in the folder `final` of `output`."""
    join(start_processes(count, train_main, output, **options))
    return json.loads((output / "losses.json").read_text())


@pytest.fixture(scope="module")
def ddp(tmp_path_factory):
    """The folder and the losses of a run in two processes."""
    folder = tmp_path_factory.mktemp("ddp")
    return folder, run_processes(2, folder, batch_size=4)


def assert_same_model(folders, **tolerance):
    weights = [load_file(folder / "final" / "model.safetensors") for folder in folders]
    for key, tensor in weights[0].items():
        torch.testing.assert_close(weights[1][key], tensor, **tolerance)


@pytest.mark.slow
def test_two_processes_equal_one_with_twice_the_batch(ddp, tmp_path):
    one = run_processes(1, tmp_path, batch_size=8)
    assert len(one) == 7 and one == pytest.approx(ddp[1], rel=1e-4)
    assert_same_model([tmp_path, ddp[0]], rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_loss_that_is_not_finite_stops_all_processes(tmp_path):
    with pytest.raises(FileNotFoundError, match="losses.json"):
        run_processes(2, tmp_path, batch_size=4, save_steps=1, nan_rank=1)
    errors = [(tmp_path / f"error_{rank}").read_text() for rank in range(2)]
    assert errors[0] == errors[1] and "The loss at step 2 is nan; the last good checkpoint is" in errors[0]
    assert str(tmp_path / "checkpoint-1") in errors[0] and not (tmp_path / "checkpoint-2").exists()


@pytest.mark.slow
def test_sigterm_to_one_process_stops_all(ddp, tmp_path):
    """At the same step, from which the run continues to the same result. Both processes are one run to the lock."""
    with pytest.raises(FileNotFoundError, match="losses.json"):
        run_processes(2, tmp_path, batch_size=4, sigterm_rank=1)
    assert [int((tmp_path / f"status_{rank}").read_text()) for rank in range(2)] == [143, 143]
    assert last_complete_checkpoint(tmp_path) == str(tmp_path / "checkpoint-2")
    assert run_processes(2, tmp_path, batch_size=4) == pytest.approx(ddp[1], rel=1e-6)
    assert_same_model([ddp[0], tmp_path], rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("pause", [0, 1.2])
def test_second_sigterm_ends_at_once(pause, tmp_path):
    """Not one that comes with the first, as `timeout` and torchrun send them."""
    (process,) = start_processes(
        1, train_main, tmp_path, batch_size=4, save_steps=1, sigterm_rank=0, second_sigterm_after=pause
    )
    process.join(120)
    assert process.exitcode == (-signal.SIGTERM if pause else 0)
    statuses = [file.read_text() for file in tmp_path.glob("status_*")]
    assert statuses == ([] if pause else ["143"])
    assert last_complete_checkpoint(tmp_path) == str(tmp_path / f"checkpoint-{1 if pause else 2}")


@pytest.mark.slow
def test_fsdp_saves_a_whole_checkpoint(ddp, tmp_path):
    """FSDP2 in two processes: sharded parameters and averages; what is saved loads without it and resumes with it."""
    options = {"batch_size": 4, "fsdp": True, "save_steps": 2}
    losses = run_processes(2, tmp_path, **options)
    assert losses == pytest.approx(ddp[1], rel=1e-3)
    model, info = InternImageForImageClassification.from_pretrained(tmp_path / "final", output_loading_info=True)
    assert not any(info.values()) and model.dtype == torch.float32
    assert_same_model([ddp[0], tmp_path], rtol=1e-3, atol=1e-4)
    shutil.rmtree(tmp_path / "checkpoint-6")
    (tmp_path / "whole").mkdir()
    shutil.move(tmp_path / "final", tmp_path / "whole" / "final")
    assert run_processes(2, tmp_path, **options) == losses
    assert_same_model([tmp_path / "whole", tmp_path], rtol=0, atol=0)


@pytest.mark.slow
def test_killed_run_continues_to_the_same_result(tmp_path):
    """kill -9 between checkpoints; the same command again ends with the weights of a run that was not interrupted."""
    options = {"batch_size": 4, "steps": 14, "save_steps": 5, "slow": True}  # 8 steps are an epoch
    whole = run_processes(1, tmp_path / "whole", **options)
    (process,) = start_processes(1, train_main, tmp_path / "killed", **options)
    deadline = time.monotonic() + 120
    while not (tmp_path / "killed" / "checkpoint-10" / "trainer_state.json").exists():
        assert process.is_alive() and time.monotonic() < deadline
        time.sleep(0.01)
    process.kill()
    process.join()
    assert not (tmp_path / "killed" / "final").exists()
    assert run_processes(1, tmp_path / "killed", **options) == whole
    assert_same_model([tmp_path / "whole", tmp_path / "killed"], rtol=0, atol=0)
