# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""What the evaluation scripts share: their arguments, the trained model, and what their JSON files say."""

import argparse
import datetime
import logging
import os
import platform
from pathlib import Path

import numpy as np
import torch
import transformers
from accelerate import Accelerator
from huggingface_hub import EvalResult
from huggingface_hub.repocard_data import eval_results_to_model_index
from PIL import Image

from examples.image_datasets import published_name
from examples.output_files import check_outputs
from modeling_internimage import dcnv3_implementations, use_dcnv3_kernel


def evaluation_parser(description: str, data_dir: str, label_column_name: str, labels: str) -> argparse.ArgumentParser:
    """A parser with the shared arguments. `data_dir` and `labels` describe those of the task."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model_name_or_path", required=True, help="checkpoint: a folder or a Hub id")
    data = parser.add_mutually_exclusive_group(required=True)
    data.add_argument("--data_dir", help=data_dir)
    data.add_argument("--dataset_name", help="a dataset of the Hub or a local folder of one")
    parser.add_argument("--dataset_config_name", help="configuration of the dataset")
    parser.add_argument("--split", default="validation", help="split of the dataset")
    parser.add_argument("--image_column_name", default="image", help="column with the images")
    parser.add_argument("--label_column_name", default=label_column_name, help=f"column with {labels}")
    parser.add_argument("--max_samples", type=int, help="evaluate this many images, chosen at random")
    parser.add_argument("--seed", type=int, default=0, help="seed of the choice of --max_samples")
    parser.add_argument(
        "--num_workers", type=int, default=min(4, os.cpu_count() or 1), help="processes that read images"
    )
    parser.add_argument("--dtype", choices=["float32", "float16", "bfloat16"], default="float32", help="of the model")
    parser.add_argument("--use_kernels", action="store_true", help="run DCNv3 as a compiled kernel")
    parser.add_argument("--output", type=Path, help="JSON file for the results")
    return parser


def check_numbers_and_output(args, minima: dict[str, int], mark: str):
    """Raise a `ValueError` for an argument below its minimum, or for an `--output` that must not be overwritten."""
    for name, minimum in minima.items():
        value = getattr(args, name)
        if value is not None and value < minimum:
            raise ValueError(f"`--{name} {value}` must be at least {minimum}.")
    if args.output is not None:  # check it now, not after hours
        check_outputs([args.output], mark)
        args.output.parent.mkdir(parents=True, exist_ok=True)


def start_evaluation() -> Accelerator:
    """Set up one process or several. Only the first one logs warnings and shows progress."""
    accelerator = Accelerator()
    level = logging.WARNING if accelerator.is_main_process else logging.ERROR
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s", level=level)
    if not accelerator.is_main_process:
        transformers.utils.logging.set_verbosity_error()
        transformers.utils.logging.disable_progress_bar()
    return accelerator


def choose_images(number: int, args) -> list[int]:
    """Indices of all `number` images, or of `--max_samples` of them."""
    if args.max_samples is None:
        return list(range(number))
    return np.random.default_rng(args.seed).permutation(number)[: args.max_samples].tolist()


def load_trained_model(
    model_class, model_name_or_path: str, dtype: str, device: torch.device, use_kernels: bool, part: str, config=None
):
    """A model of a class or Auto class, in eval mode. Raises a `ValueError` if weights of its `part` are missing."""
    model, info = model_class.from_pretrained(
        model_name_or_path, config=config, dtype=getattr(torch, dtype), output_loading_info=True
    )
    if info["missing_keys"]:
        raise ValueError(
            f"`--model_name_or_path {model_name_or_path}` lacks trained weights of the {part}, such as "
            f"'{sorted(info['missing_keys'])[0]}': fine-tune it first."
        )
    model = model.to(device).eval()
    return use_dcnv3_kernel(model) if use_kernels else model  # (after `to`: the kernel depends on the device)


def describe_data(args) -> dict:
    """The data of an evaluation, for its JSON file."""
    return {
        "name": published_name(args.data_dir or args.dataset_name),
        "config": args.dataset_config_name,
        "split": args.split if args.data_dir is None else None,
        "max_samples": args.max_samples,
        "seed": args.seed if args.max_samples is not None else None,
    }


def describe_preprocessing(image_processor, names: tuple[str, ...] = ()) -> dict:
    """The usual settings of an image processor, and those called `names`, for the JSON file."""
    settings = image_processor.to_dict()
    resample = settings.get("resample")
    return {
        "image_processor": type(image_processor).__name__,
        "size": settings.get("size"),
        "crop_size": settings.get("crop_size") if settings.get("do_center_crop") else None,
        "resample": None if resample is None else Image.Resampling(resample).name.lower(),
        "mean": settings.get("image_mean"),
        "std": settings.get("image_std"),
    } | {name: settings.get(name) for name in names}


def describe_run(args, accelerator: Accelerator, model, num_images: int, seconds: float) -> dict:
    """Device, implementation, speed and versions of an evaluation, for its JSON file."""
    return {
        "dtype": args.dtype,
        "dcnv3": sorted(set(dcnv3_implementations(model).values())),
        "device": torch.cuda.get_device_name() if accelerator.device.type == "cuda" else accelerator.device.type,
        "processes": accelerator.num_processes,
        "seconds": round(seconds, 3),
        "images_per_second": round(num_images / seconds, 2),
        "versions": {
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "python": platform.python_version(),
        },
        "date": datetime.date.today().isoformat(),
    }


def create_model_index(
    args, task: str, metrics: list[tuple[str, str, float]], dataset_args: dict[str, object]
) -> list[dict]:
    """
    The `model-index` of a model card. `metrics` are types, names and values; `dataset_args` says how the data or the
    procedure differ from the usual ones.
    """
    sample = {} if args.max_samples is None else {"max_samples": args.max_samples, "seed": args.seed}
    dataset = published_name(args.dataset_name or args.data_dir)
    results = [
        EvalResult(
            task_type=task,
            task_name=task.replace("-", " ").capitalize(),
            dataset_type="imagefolder" if args.dataset_name is None else dataset,
            dataset_name=dataset,
            dataset_config=args.dataset_config_name,
            dataset_split=args.split if args.data_dir is None else None,
            dataset_args=sample | dataset_args or None,
            metric_type=metric_type,
            metric_name=name,
            metric_value=value,
        )
        for metric_type, name, value in metrics
    ]
    return eval_results_to_model_index(published_name(args.model_name_or_path), results)
