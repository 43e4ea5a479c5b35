# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""
Time and accuracy of fine-tuning a small classifier on little data: new head only, LoRA, all weights; and from scratch.

    OMP_NUM_THREADS=1 python -m examples.choosing_a_model.compare_fine_tuning \\
        --output examples/results/fine_tuning.json
    python -m examples.choosing_a_model.compare_fine_tuning --table examples/results/fine_tuning.json

A small InternImage learns one of two tasks from scratch, the digits of scikit-learn or the pieces of photographs of
`examples/image_classification`, and is then fine-tuned on the other one, for the same number of epochs in every
setting. Seconds are processor time, so that other processes on the machine do not count.
"""

import argparse
import json
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np
from peft import LoraConfig, get_peft_model
from transformers import Trainer, set_seed

from examples.benchmark.measuring import machine_description, where_and_when
from examples.image_classification.photographs import write_image_folder
from examples.image_classification.run_image_classification import (
    EvalTransform,
    TrainTransform,
    collate,
    load_images,
    load_model,
    parse_arguments,
)
from examples.output_files import check_outputs, mark_of, write_json
from examples.training import freeze_stages


MARK = mark_of(__file__)
ARCHITECTURE = {"embed_dim": 32, "depths": [1, 1, 2, 1], "num_groups": [2, 4, 8, 16], "image_size": 32}
DATA = {
    "digits": {"dataset_name": "digits", "min_crop_scale": 0.6, "horizontal_flip": False},
    "photographs": {"train_dir": "train", "validation_dir": "validation", "min_crop_scale": 0.3},
}
# Epochs from scratch, before the other task, and of fine-tuning: about as many images in both tasks.
EPOCHS = {"digits": (12, 4), "photographs": (60, 20)}
LEARNING_RATES = {"from scratch": 2e-3, "head": 5e-3, "LoRA": 5e-3, "all weights": 2e-3}
LORA_MODULES = ["input_proj", "output_proj", "fc1", "fc2"]


def train(
    task: str, setting: str, epochs: float, folder: Path, pretrained: Path | None = None, save_to: Path | None = None
) -> dict:
    """Train a model on `task`, from the weights in `pretrained` if given; return time, accuracy and sizes."""
    arguments = DATA[task] | {
        "output_dir": str(folder / "run"),
        "num_train_epochs": epochs,
        "per_device_train_batch_size": 32,
        "per_device_eval_batch_size": 64,
        "learning_rate": LEARNING_RATES[setting],
        "weight_decay": 0.05,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 0.1,
        "save_strategy": "no",
        "remove_unused_columns": False,
        "label_names": ["labels"],
        "dataloader_pin_memory": False,
        "disable_tqdm": True,
        "report_to": "none",
    }
    for name in {"train_dir", "validation_dir"} & set(arguments):
        arguments[name] = str(folder / arguments[name])
    arguments |= {"config_overrides": ARCHITECTURE} if pretrained is None else {"model_name_or_path": str(pretrained)}
    file = folder / "arguments.json"
    file.write_text(json.dumps(arguments))
    model_args, data_args, _, training_args = parse_arguments([str(file)])
    set_seed(training_args.seed)
    splits = load_images(data_args, model_args, training_args.seed)
    model, image_processor = load_model(model_args, data_args, splits["train"].features["label"].names)
    if setting == "head":
        freeze_stages(model, len(model.config.depths))
    elif setting == "LoRA":
        lora_config = LoraConfig(
            r=8, lora_alpha=16, target_modules=LORA_MODULES, modules_to_save=["pooler", "classifier"]
        )
        model = get_peft_model(model, lora_config)
    splits["train"].set_transform(TrainTransform(image_processor, data_args))
    splits["validation"].set_transform(EvalTransform(image_processor, data_args))
    trainer = Trainer(
        model=model,
        args=training_args,
        train_dataset=splits["train"],
        eval_dataset=splits["validation"],
        data_collator=partial(collate, label_column="label"),
        compute_metrics=lambda result: {
            "accuracy": float(np.mean(result.predictions.argmax(axis=1) == result.label_ids))
        },
    )
    start = time.process_time()
    trainer.train()
    seconds = time.process_time() - start
    if save_to is not None:
        model.save_pretrained(save_to)
        image_processor.save_pretrained(save_to)
    return {
        "epochs": epochs,
        "num_train_images": len(splits["train"]),
        "num_validation_images": len(splits["validation"]),
        "num_parameters": model.num_parameters(),
        "num_trained_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "learning_rate": LEARNING_RATES[setting],
        "processor_seconds": round(seconds, 1),
        "accuracy": round(trainer.evaluate()["eval_accuracy"], 4),
    }


def measure(epochs: dict[str, tuple[float, float]]) -> dict:
    results = {"pretraining": {}, "fine_tuning": {}}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_image_folder(folder)
        for task, (long, _) in epochs.items():
            results["pretraining"][task] = train(task, "from scratch", long, folder, save_to=folder / task)
            print(json.dumps({f"{task}, from scratch": results["pretraining"][task]}), flush=True)
        for task, other in zip(epochs, reversed(epochs)):
            results["fine_tuning"][task] = {"pretrained_on": other, "settings": {}}
            for setting in LEARNING_RATES:
                pretrained = None if setting == "from scratch" else folder / other
                row = train(task, setting, epochs[task][1], folder, pretrained)
                results["fine_tuning"][task]["settings"][setting] = row
                print(json.dumps({f"{task}, {setting}": row}), flush=True)
    return results


def markdown_table(result: dict) -> str:
    lines = ["| task | pre-trained on | trained | parameters trained | learning rate | processor time | accuracy |"]
    lines.append("|---" * 7 + "|")
    for task, entry in result["fine_tuning"].items():
        for setting, row in entry["settings"].items():
            share = row["num_trained_parameters"] / row["num_parameters"]
            cells = [
                f"{task}, {row['epochs']} epochs",
                "-" if setting == "from scratch" else entry["pretrained_on"],
                "all weights, from scratch" if setting == "from scratch" else setting,
                f"{row['num_trained_parameters'] / 1e3:.0f} thousand ({share:.0%})",
                f"{row['learning_rate']:g}",
                f"{row['processor_seconds']:.0f} s",
                f"{row['accuracy']:.1%}",
            ]
            lines.append("| " + " | ".join(cells) + " |")
    for task, row in result["pretraining"].items():
        cells = [f"{row['processor_seconds']:.0f} s", f"{row['accuracy']:.1%}"]
        first = [f"{task}, {row['epochs']} epochs", "-", "all weights, from scratch"]
        first += [f"{row['num_trained_parameters'] / 1e3:.0f} thousand (100%)", f"{row['learning_rate']:g}"]
        lines.append("| " + " | ".join(first + cells) + " |")
    return "\n".join(lines) + f"\n\nImages of {ARCHITECTURE['image_size']} pixels, {where_and_when(result['machine'])}"


def main(argv: list[str] | None = None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, help="JSON file for the results")
    parser.add_argument("--table", type=Path, help="print an earlier JSON file as Markdown, measure nothing")
    args = parser.parse_args(argv)
    if args.table:
        print(markdown_table(json.loads(args.table.read_text())))
        return
    if args.output:
        check_outputs([args.output], MARK)
    result = {"machine": machine_description("cpu")} | measure(EPOCHS)
    if args.output:
        write_json(args.output, result, MARK)


if __name__ == "__main__":
    main()
