# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""A short training run for test_training.py, in as many processes as it is started in."""

import json
import os
import signal
import time
from pathlib import Path

import torch
from accelerate import DistributedType, PartialState
from test_training import Images, without_batch_statistics
from torch.distributed.tensor import DTensor
from transformers import TrainingArguments, set_seed
from transformers.trainer_utils import get_last_checkpoint

from modeling_internimage import InternImageConfig, InternImageForImageClassification
from modeling_internimage.training import InternImageTrainer, Recipe


class NoisyImages(Images):
    """Random augmentation, which has to be the same in any number of processes and after resuming."""

    def __getitem__(self, idx):
        item = super().__getitem__(idx)
        return item | {"pixel_values": item["pixel_values"] + 0.1 * torch.randn(3, 32, 32)}


def main(
    output: Path,
    batch_size: int,
    steps: int = 6,  # 32 images: more than an epoch
    save_steps: int = 0,
    fsdp: bool = False,
    slow: bool = False,
    nan_rank: int | None = None,
    sigterm_rank: int | None = None,
    second_sigterm_after: float | None = None,
):
    """
    Train in one of the processes, and write `losses.json` and the folder `final`.

    Args:
        slow: Drop path, and steps long enough to be killed in.
        nan_rank: The process whose loss is NaN in the second step.
        sigterm_rank: The process that gets SIGTERM in the second step.
        second_sigterm_after: Seconds until it gets it again, in the same step.
    """
    set_seed(0)
    config = InternImageConfig(
        embed_dim=16, depths=[1, 1, 2, 1], num_groups=[1, 2, 4, 8], num_labels=3, drop_path_rate=0.2 * slow
    )
    model = InternImageForImageClassification(config)
    if not slow:
        model = without_batch_statistics(model)
    fsdp_config = {"fsdp_version": 2, "transformer_layer_cls_to_wrap": ["InternImageLayer"]}
    arguments = TrainingArguments(
        str(output),
        max_steps=steps,
        per_device_train_batch_size=batch_size,
        learning_rate=1e-3,
        logging_steps=1,
        save_strategy="steps" if save_steps else "no",
        save_steps=save_steps or 500,
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        seed=0,
        **({"fsdp": True, "fsdp_config": fsdp_config} if fsdp else {}),
    )
    if fsdp:  # accelerate silently ignores it on a CPU, where torch supports it
        PartialState().distributed_type = DistributedType.MULTI_GPU
    recipe = Recipe(ema_decay=0.5, layer_decay=0.9, deformable_multiplier=0.1)
    trainer = InternImageTrainer(model, arguments, train_dataset=NoisyImages(), eval_dataset=Images(8), recipe=recipe)
    training_step, compute_loss = trainer.training_step, trainer.compute_loss
    if slow:
        trainer.training_step = lambda *a, **k: (time.sleep(0.1), training_step(*a, **k))[1]
    if nan_rank == arguments.process_index:
        factors = iter([1.0, float("nan")])
        trainer.compute_loss = lambda *a, **k: compute_loss(*a, **k) * next(factors)
    if sigterm_rank == arguments.process_index:
        numbers = iter(range(steps))

        def interrupted_step(*args, **kwargs):
            if next(numbers) == 1:
                os.kill(os.getpid(), signal.SIGTERM)
                if second_sigterm_after is not None:
                    time.sleep(second_sigterm_after)
                    os.kill(os.getpid(), signal.SIGTERM)
            return training_step(*args, **kwargs)

        trainer.training_step = interrupted_step
    interrupted = output.is_dir() and get_last_checkpoint(output) is not None
    try:
        trainer.train(resume_from_checkpoint=interrupted)
    except FloatingPointError as error:
        (output / f"error_{arguments.process_index}").write_text(str(error))
        return
    except SystemExit as stopped:
        (output / f"status_{arguments.process_index}").write_text(str(stopped.code))
        return
    assert fsdp == all(isinstance(parameter, DTensor) for parameter in trainer.model.parameters())
    evaluated = trainer.evaluate()
    trainer.save_model(str(output / "final"))
    if trainer.is_world_process_zero():
        losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        losses.append(evaluated["eval_loss"])
        (output / "losses.json").write_text(json.dumps([float(loss) for loss in losses]))
