# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""The Trainer with the authors' recipe: averaged weights, mixed images, resuming, gradient accumulation, processes."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import REPOSITORY
from safetensors.torch import load_file
from torch import nn
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.utils import is_torchvision_available

from modeling_internimage import InternImageForImageClassification
from modeling_internimage.training import InternImageTrainer, MixupCutmix, Recipe, WeightAverage


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
    def train(recipe=None, resume=None, model=None, **kwargs):
        torch.manual_seed(0)
        if model is None:
            model = InternImageForImageClassification(tiny_config(num_labels=3, drop_path_rate=0.1))
        defaults = {"max_steps": 4, "per_device_train_batch_size": 8, "learning_rate": 1e-3, "logging_steps": 1}
        defaults |= {"save_strategy": "no", "report_to": "none", "disable_tqdm": True, "use_cpu": True, "seed": 0}
        arguments = TrainingArguments(str(tmp_path / "output"), **(defaults | kwargs))
        trainer = InternImageTrainer(model, arguments, train_dataset=Images(), eval_dataset=Images(9), recipe=recipe)
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
    """Layers with different rates start and end at the same, also after resuming."""
    arguments = {"warmup_steps": 1, "max_steps": 3, "save_strategy": "steps", "save_steps": 2}
    for resume in (None, str(tmp_path / "output" / "checkpoint-2")):
        trainer = train(Recipe(layer_decay=0.5, lr_cosine=[0.2, 0.1]), resume, **arguments)
        logged = [entry["learning_rate"] for entry in trainer.state.log_history if "learning_rate" in entry]
        groups = trainer.optimizer.param_groups
        assert len({group["initial_lr"] for group in groups}) > 3
        assert [group["lr"] for group in groups] == pytest.approx([1e-4] * len(groups))
        difference = groups[0]["initial_lr"] - 1e-4
        assert logged == pytest.approx([2e-4, 1e-4 + 0.75 * difference, 1e-4 + 0.25 * difference])


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


def test_best_checkpoint_s_average_is_saved(train, tmp_path):
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
    trainer.push_to_hub = lambda **kwargs: trainer.save_model(_internal_call=True)  # what it does before it uploads
    trainer.args.push_to_hub = True
    for push in (trainer.save_model, trainer.push_to_hub):
        (tmp_path / "output" / "model.safetensors").unlink(missing_ok=True)
        push()
        saved = load_file(tmp_path / "output" / "model.safetensors")
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


SCRIPT = Path(__file__).parent / "train_in_processes.py"


def run_processes(count: int, output: Path, *options: str) -> dict:
    """Losses and the folder of the final model of a short run in `count` processes (gloo, on the CPU)."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(count)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    command += [SCRIPT, output, *options]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr[-3000:]
    return json.loads((output / "losses.json").read_text())


@pytest.fixture(scope="module")
def ddp(tmp_path_factory):
    """The folder and the losses of a run in two processes."""
    folder = tmp_path_factory.mktemp("ddp")
    return folder, run_processes(2, folder, "--batch_size", "4")


def assert_same_model(folders, **tolerance):
    weights = [load_file(folder / "final" / "model.safetensors") for folder in folders]
    for key, tensor in weights[0].items():
        torch.testing.assert_close(weights[1][key], tensor, **tolerance)


def test_two_processes_equal_one_with_twice_the_batch(ddp, tmp_path):
    one = run_processes(1, tmp_path, "--batch_size", "8")
    assert len(one) == 7 and one == pytest.approx(ddp[1], rel=1e-4)
    assert_same_model([tmp_path, ddp[0]], rtol=1e-3, atol=1e-4)


def test_loss_that_is_not_finite_stops_all_processes(tmp_path):
    with pytest.raises(FileNotFoundError, match="losses.json"):
        run_processes(2, tmp_path, "--batch_size", "4", "--save_steps", "1", "--nan_rank", "1")
    errors = [(tmp_path / f"error_{rank}").read_text() for rank in range(2)]
    assert errors[0] == errors[1] and "The loss at step 2 is nan; the last good checkpoint is" in errors[0]
    assert str(tmp_path / "checkpoint-1") in errors[0] and not (tmp_path / "checkpoint-2").exists()


def test_fsdp_saves_a_whole_checkpoint(ddp, tmp_path):
    """FSDP2 in two processes: sharded parameters and averages; what is saved loads without it and resumes with it."""
    options = ["--batch_size", "4", "--fsdp", "--save_steps", "2"]
    losses = run_processes(2, tmp_path, *options)
    assert losses == pytest.approx(ddp[1], rel=1e-3)
    model, info = InternImageForImageClassification.from_pretrained(tmp_path / "final", output_loading_info=True)
    assert not any(info.values()) and model.dtype == torch.float32
    assert_same_model([ddp[0], tmp_path], rtol=1e-3, atol=1e-4)
    shutil.rmtree(tmp_path / "checkpoint-6")
    (tmp_path / "whole").mkdir()
    shutil.move(tmp_path / "final", tmp_path / "whole" / "final")
    assert run_processes(2, tmp_path, *options) == losses
    assert_same_model([tmp_path / "whole", tmp_path], rtol=0, atol=0)


def test_killed_run_continues_to_the_same_result(tmp_path):
    """kill -9 between checkpoints; the same command again ends with the weights of a run that was not interrupted."""
    options = ["--batch_size", "4", "--steps", "14", "--save_steps", "5", "--slow"]  # 8 steps are an epoch
    whole = run_processes(1, tmp_path / "whole", *options)
    command = [sys.executable, SCRIPT, tmp_path / "killed", *options]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not (tmp_path / "killed" / "checkpoint-10" / "trainer_state.json").exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "killed" / "final").exists()
    assert run_processes(1, tmp_path / "killed", *options) == whole
    assert_same_model([tmp_path / "whole", tmp_path / "killed"], rtol=0, atol=0)
