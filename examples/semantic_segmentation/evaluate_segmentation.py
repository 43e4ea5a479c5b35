# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""
mIoU, mAcc and aAcc of a segmentation model at the original size of every image, as mmsegmentation defines them.

    python -m examples.semantic_segmentation.evaluate_segmentation --model_name_or_path ... --data_dir ade20k/val
    accelerate launch -m examples.semantic_segmentation.evaluate_segmentation ... --scales 0.75 1.0 1.25 --flip

The second form uses every GPU (`torchrun --nproc_per_node 2` in place of `accelerate launch`: any number of processes,
also on a CPU). Each process takes its share of the images; only confusion matrices are kept. Preprocessing, sliding
windows and the meaning of 0 in label maps (`do_reduce_labels`) are those of the checkpoint's image processor.
"""

import argparse
import math
import time

import datasets
import numpy as np
import torch
from accelerate import Accelerator, PartialState
from tqdm import tqdm

from examples.evaluation import (
    check_numbers_and_output,
    choose_images,
    create_model_index,
    describe_data,
    describe_preprocessing,
    describe_run,
    evaluation_parser,
    start_evaluation,
)
from examples.image_datasets import load_split, published_name, undecoded
from examples.output_files import mark_of, write_json
from examples.semantic_segmentation.segmentation_data import check_ignore_index, list_folder, read_pair
from examples.semantic_segmentation.segmentation_metrics import (
    confusion_matrix,
    segmentation_metrics,
    warn_of_absent_classes,
)
from examples.semantic_segmentation.segmentation_models import IGNORE_INDEX_FIELDS, load_segmentation_model
from modeling_internimage import segment_image


MARK = mark_of(__file__)
METRICS = {"mIoU": "mean_iou", "mAcc": "mean_accuracy", "aAcc": "overall_accuracy"}


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    data_dir = "folder with images in 'images' and PNG files of the same names in 'maps'"
    parser = evaluation_parser(__doc__, data_dir, "label", "the label maps")
    parser.add_argument("--ignore_index", type=int, help="value of pixels that do not count; the model's, else 255")
    parser.add_argument("--scales", nargs="+", type=float, default=[1.0], help="average over these sizes")
    parser.add_argument("--flip", action="store_true", help="average with the mirror image")
    args = parser.parse_args(argv)
    check_numbers_and_output(args, {"num_workers": 0, "max_samples": 1}, MARK)
    return args


def load_rows(args: argparse.Namespace) -> datasets.Dataset:
    """Undecoded images and label maps."""
    columns = (args.image_column_name, args.label_column_name)
    if args.data_dir is not None:
        return list_folder(args.data_dir, "--data_dir", *columns)
    rows = undecoded(load_split(args), *columns)
    if len(rows) == 0:
        raise ValueError(f"There are no images in {args.dataset_name}, split {args.split}.")
    return rows


class Pairs(torch.utils.data.Dataset):
    """An image, uint8 (3, height, width), and its label map, int64 (height, width)."""

    def __init__(self, rows: datasets.Dataset, indices: list[int], columns: tuple[str, str], map_arguments: dict):
        self.rows = rows
        self.indices = indices
        self.columns = columns
        self.map_arguments = map_arguments

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, idx: int) -> tuple[torch.Tensor, torch.Tensor]:
        idx = self.indices[idx]
        files = [self.rows[idx][column] for column in self.columns]
        files = [file and file | {"path": file["path"] or f"of row {idx}"} for file in files]
        image, labels = read_pair(*files, **self.map_arguments)
        return torch.from_numpy(np.asarray(image).transpose(2, 0, 1).copy()), torch.from_numpy(labels)


def evaluate_model(model, image_processor, pairs, args: argparse.Namespace, accelerator: Accelerator) -> torch.Tensor:
    """Confusion matrix (num_labels, num_labels) of this process's images."""
    num_labels, ignore_index = model.config.num_labels, pairs.map_arguments["ignore_index"]
    matrix = torch.zeros(num_labels, num_labels, dtype=torch.int64, device=accelerator.device)
    loader = torch.utils.data.DataLoader(pairs, batch_size=None, num_workers=args.num_workers)
    for image, labels in tqdm(loader, desc="Evaluating", unit="image", disable=not accelerator.is_main_process):
        probabilities = segment_image(model, image_processor, image, scales=args.scales, flip=args.flip)
        if probabilities.sum().isnan():
            raise ValueError(
                f"The model computes values that are not numbers in {model.dtype}: choose another `--dtype`."
            )
        labels = labels.to(accelerator.device)
        matrix += confusion_matrix(probabilities.argmax(dim=0), labels, num_labels, ignore_index)
    return matrix


def describe_results(
    args: argparse.Namespace, accelerator: Accelerator, model, image_processor, matrix, num_images: int, seconds: float
) -> dict:
    """The facts about a run for the JSON file. Metrics are percentages, or `null` if they are undefined."""

    def percent(fraction: float) -> float | None:
        return None if math.isnan(fraction) else round(100 * fraction, 4)

    metrics = segmentation_metrics(matrix)
    values = {name: percent(metrics[key]) for name, key in METRICS.items()}
    per_class = zip(metrics["per_category_iou"].tolist(), metrics["per_category_accuracy"].tolist())
    test_time = {"scales": args.scales, "flip": args.flip}
    return {
        "model": published_name(args.model_name_or_path),
        "dataset": describe_data(args),
        "num_images": num_images,
        "num_pixels": int(matrix.sum()),
        **values,
        "classes": [
            {"name": model.config.id2label[idx], "IoU": percent(iou), "Acc": percent(accuracy)}
            for idx, (iou, accuracy) in enumerate(per_class)
        ],
        **test_time,
        "preprocessing": describe_preprocessing(
            image_processor, ("size_divisor", "do_reduce_labels", "window_size", "window_stride")
        ),
        **describe_run(args, accelerator, model, num_images, seconds),
        "model_index": create_model_index(
            args,
            "image-segmentation",
            [(METRICS[name], name, value) for name, value in values.items() if value is not None],
            {} if args.scales == [1.0] and not args.flip else test_time,
        ),
    }


def main(argv: list[str] | None = None):
    args = parse_arguments(argv)
    accelerator = start_evaluation()
    with accelerator.main_process_first():  # the others find the data in the cache
        rows = load_rows(args)
    model, image_processor = load_segmentation_model(
        args.model_name_or_path, args.dtype, accelerator.device, args.use_kernels
    )
    if args.ignore_index is None:
        fields = (name for name in IGNORE_INDEX_FIELDS if hasattr(model.config, name))
        args.ignore_index = next((getattr(model.config, name) for name in fields), 255)
    do_reduce_labels = bool(getattr(image_processor, "do_reduce_labels", False))
    check_ignore_index(args.ignore_index, model.config.num_labels, do_reduce_labels)
    map_arguments = {
        "num_labels": model.config.num_labels,
        "ignore_index": args.ignore_index,
        "do_reduce_labels": do_reduce_labels,
    }
    indices = choose_images(len(rows), args)
    own = indices[accelerator.process_index :: accelerator.num_processes]
    pairs = Pairs(rows, own, (args.image_column_name, args.label_column_name), map_arguments)

    start = time.perf_counter()
    matrix = evaluate_model(model, image_processor, pairs, args, accelerator)
    matrix = accelerator.reduce(matrix, reduction="sum").cpu()
    seconds = time.perf_counter() - start
    if not accelerator.is_main_process:
        return
    if matrix.sum() == 0:
        raise ValueError(
            f"All pixels of the label maps are {args.ignore_index}, which is ignored: nothing to evaluate."
        )
    warn_of_absent_classes(matrix, model.config.id2label)
    result = describe_results(args, accelerator, model, image_processor, matrix, len(indices), seconds)
    values = ", ".join(f"{name} {result[name]:.2f}" for name in METRICS)
    print(f"{values} of {len(indices)} images in {seconds:.1f} s")
    if args.output is not None:
        write_json(args.output, result, MARK)
        print(f"Written: {args.output}")


if __name__ == "__main__":
    main()
    PartialState().destroy_process_group()
