# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""
Fine-tune a classifier whose weights are int8 (torchao) with LoRA (PEFT), on the digits of scikit-learn.

    python -m examples.deployment.finetune_int8_lora --model_name_or_path outputs/photographs_model \\
        --output_dir outputs/digits_lora

The int8 weights stay as they are: adapters of a few per cent of the parameters and a new classifier learn. The output
folder holds only these, for `PeftModel.from_pretrained`.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from torchao.quantization import Int8WeightOnlyConfig
from transformers import (
    AutoImageProcessor,
    AutoModelForImageClassification,
    TorchAoConfig,
    Trainer,
    TrainingArguments,
    set_seed,
)

import modeling_internimage  # noqa: F401  (registers InternImage)
from examples.image_classification.digits import load_digits_dataset


# Offsets, masks and gates say where and how much to sample; they are small and stay as they are. A classifier that is
# trained cannot be int8.
FLOAT_MODULES = [r".*\.(offset|mask|center_feature_scale)_proj", "classifier"]
LORA_MODULES = ["input_proj", "value_proj", "output_proj", "fc1", "fc2"]  # the second is FlashInternImage's first


def load_int8_model(model_name_or_path: str, dtype: torch.dtype = torch.float32):
    """The classifier with int8 weights in its linear layers, apart from `FLOAT_MODULES`; it computes in `dtype`."""
    quantization_config = TorchAoConfig(Int8WeightOnlyConfig(), modules_to_not_convert=FLOAT_MODULES)
    return AutoModelForImageClassification.from_pretrained(
        model_name_or_path, quantization_config=quantization_config, dtype=dtype
    )


def main(argv: list[str] | None = None) -> dict:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model_name_or_path", required=True, help="checkpoint in float: a folder or a Hub id")
    parser.add_argument("--output_dir", default="outputs/digits_lora", help="folder for the adapter")
    parser.add_argument("--num_train_epochs", type=float, default=5, help="times through the 1,437 training digits")
    parser.add_argument("--rank", type=int, default=8, help="rank of the adapters")
    args = parser.parse_args(argv)
    set_seed(0)

    digits = load_digits_dataset()
    names = digits["train"].features["label"].names
    base = load_int8_model(args.model_name_or_path)
    # By hand: transformers 5.22 ignores `ignore_mismatched_sizes` for quantized models.
    base.classifier = torch.nn.Linear(base.classifier.in_features, len(names))
    base.num_labels = len(names)
    base.config.id2label = dict(enumerate(names))
    base.config.label2id = {name: label for label, name in enumerate(names)}
    lora_config = LoraConfig(
        r=args.rank, lora_alpha=2 * args.rank, target_modules=LORA_MODULES, modules_to_save=["classifier"]
    )
    model = get_peft_model(base, lora_config)
    model.print_trainable_parameters()

    image_processor = AutoImageProcessor.from_pretrained(args.model_name_or_path)

    def preprocess(batch: dict) -> dict:
        images = [image.convert("RGB") for image in batch["image"]]
        batch["pixel_values"] = image_processor(images, return_tensors="pt")["pixel_values"]
        return batch

    def collate(examples: list[dict]) -> dict[str, torch.Tensor]:
        return {
            "pixel_values": torch.stack([example["pixel_values"] for example in examples]),
            "labels": torch.tensor([example["label"] for example in examples]),
        }

    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            output_dir=args.output_dir,
            num_train_epochs=args.num_train_epochs,
            per_device_train_batch_size=64,
            per_device_eval_batch_size=64,
            learning_rate=5e-3,
            lr_scheduler_type="cosine",
            logging_steps=20,
            save_strategy="no",
            remove_unused_columns=False,
            dataloader_pin_memory=False,
            report_to="none",
            label_names=["labels"],
        ),
        train_dataset=digits["train"].with_transform(preprocess),
        eval_dataset=digits["test"].with_transform(preprocess),
        data_collator=collate,
        compute_metrics=lambda result: {
            "accuracy": float(np.mean(np.argmax(result.predictions, axis=1) == result.label_ids))
        },
    )
    before = trainer.evaluate()["eval_accuracy"]
    trainer.train()
    after = trainer.evaluate()["eval_accuracy"]
    model.save_pretrained(args.output_dir)
    image_processor.save_pretrained(args.output_dir)
    print(f"Accuracy {before:.4f} before, {after:.4f} after. Adapter: {Path(args.output_dir).resolve()}")
    return {"accuracy_before": before, "accuracy_after": after}


if __name__ == "__main__":
    main()
