# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""A short training run for test_training.py, in as many processes as it is started in."""

import argparse
import json
import os
import signal
import sys
import time
from pathlib import Path

import torch
from accelerate import DistributedType, PartialState


sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parent))
from test_training import Images, without_batch_statistics  # noqa: E402
from torch.distributed.tensor import DTensor  # noqa: E402
from transformers import TrainingArguments, set_seed  # noqa: E402
from transformers.trainer_utils import get_last_checkpoint  # noqa: E402

from modeling_internimage import InternImageConfig, InternImageForImageClassification  # noqa: E402
from modeling_internimage.training import InternImageTrainer, Recipe  # noqa: E402


class NoisyImages(Images):
    """Random augmentation, which has to be the same in any number of processes and after resuming."""

    def __getitem__(self, idx):
        item = super().__getitem__(idx)
        return item | {"pixel_values": item["pixel_values"] + 0.1 * torch.randn(3, 32, 32)}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("output", type=Path)
    parser.add_argument("--batch_size", type=int)
    parser.add_argument("--steps", type=int, default=6)  # 32 images: more than an epoch
    parser.add_argument("--save_steps", type=int, default=0)
    parser.add_argument("--fsdp", action="store_true")
    parser.add_argument("--slow", action="store_true", help="time to be killed in, drop path")
    parser.add_argument("--nan_rank", type=int, help="the loss of this process is not a number in the second step")
    parser.add_argument("--sigterm_rank", type=int, help="this process gets SIGTERM in the second step")
    args = parser.parse_args()

    set_seed(0)
    config = InternImageConfig(
        embed_dim=16, depths=[1, 1, 2, 1], num_groups=[1, 2, 4, 8], num_labels=3, drop_path_rate=0.2 * args.slow
    )
    model = InternImageForImageClassification(config)
    if not args.slow:
        model = without_batch_statistics(model)
    fsdp = {"fsdp": True, "fsdp_config": {"fsdp_version": 2, "transformer_layer_cls_to_wrap": ["InternImageLayer"]}}
    arguments = TrainingArguments(
        str(args.output),
        max_steps=args.steps,
        per_device_train_batch_size=args.batch_size,
        learning_rate=1e-3,
        logging_steps=1,
        save_strategy="steps" if args.save_steps else "no",
        save_steps=args.save_steps or 500,
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        seed=0,
        **(fsdp if args.fsdp else {}),
    )
    if args.fsdp:  # which accelerate leaves out on a CPU, without a word; torch has it
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
    recipe = Recipe(ema_decay=0.5, layer_decay=0.9, deformable_multiplier=0.1)
    trainer = InternImageTrainer(model, arguments, train_dataset=NoisyImages(), eval_dataset=Images(8), recipe=recipe)
    if args.slow:
        step = trainer.training_step
        trainer.training_step = lambda *a, **k: (time.sleep(0.1), step(*a, **k))[1]
    if args.nan_rank == arguments.process_index:
        compute_loss = trainer.compute_loss
        factors = iter([1.0, float("nan")])
        trainer.compute_loss = lambda *a, **k: compute_loss(*a, **k) * next(factors)
    if args.sigterm_rank == arguments.process_index:
        prepare = trainer.training_step
        steps = iter(range(args.steps))
        trainer.training_step = lambda *a, **k: (
            os.kill(os.getpid(), signal.SIGTERM) if next(steps) == 1 else None, prepare(*a, **k)
        )[1]  # fmt: skip
    last = get_last_checkpoint(args.output) if args.output.is_dir() else None
    try:
        trainer.train(resume_from_checkpoint=last)
    except FloatingPointError as error:
        (args.output / f"error_{arguments.process_index}").write_text(str(error))
        return
    except SystemExit as stopped:
        (args.output / f"status_{arguments.process_index}").write_text(str(stopped.code))
        return
    assert args.fsdp == all(isinstance(parameter, DTensor) for parameter in trainer.model.parameters())
    evaluated = trainer.evaluate()
    trainer.save_model(str(args.output / "final"))
    if trainer.is_world_process_zero():
        losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        losses.append(evaluated["eval_loss"])
        (args.output / "losses.json").write_text(json.dumps([float(loss) for loss in losses]))


if __name__ == "__main__":
    main()
    PartialState().destroy_process_group()
