# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""
COCO's average precision of a detector: of boxes and, if it has mask heads, of masks, computed by pycocotools.

    python -m examples.object_detection.evaluate_detection --model_name_or_path ... \\
        --data_dir coco/val2017 --annotations coco/annotations/instances_val2017.json
    accelerate launch -m examples.object_detection.evaluate_detection ...

The second form uses every GPU (`torchrun --nproc_per_node 2` in place of `accelerate launch`: any number of processes,
also on a CPU). Each process takes its share of the images. Preprocessing is that of the checkpoint's image processor;
classes of the model and categories of the data find each other by their names.
"""

import argparse
import time

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import send_to_device
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
from examples.object_detection.detection_data import (
    Collate,
    DetectionImages,
    check_objects,
    hub_categories,
    order_categories,
    read_coco,
)
from examples.object_detection.detection_metrics import CocoEvaluator
from examples.object_detection.detection_models import has_mask_head, load_detection_model
from examples.output_files import mark_of, write_json


MARK = mark_of(__file__)


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = evaluation_parser(__doc__, "folder of images", "objects", "`bbox` and `category` of objects")
    parser.add_argument("--annotations", help="JSON file in the format of COCO, on the images in --data_dir")
    parser.add_argument("--batch_size", type=int, default=1, help="images at a time; above 1 they are padded")
    parser.add_argument("--boxes_only", action="store_true", help="no masks, for data without `segmentation`")
    args = parser.parse_args(argv)
    if (args.data_dir is None) != (args.annotations is None):
        raise ValueError("`--data_dir` and `--annotations` go together: give both.")
    check_numbers_and_output(args, {"num_workers": 0, "max_samples": 1, "batch_size": 1}, MARK)
    return args


def load_rows(args: argparse.Namespace):
    """Undecoded images with objects, and names of categories by id."""
    columns = (args.image_column_name, args.label_column_name)
    if args.data_dir is not None:
        return read_coco(args.data_dir, args.annotations, "--annotations", *columns)
    rows = undecoded(load_split(args), columns[0])
    return rows, hub_categories(rows.features, columns[1])


def evaluate_model(model, images: DetectionImages, evaluator: CocoEvaluator, indices: list[int], args, accelerator):
    """Adds this process's images, those at `indices`, to `evaluator`."""
    loader = torch.utils.data.DataLoader(
        torch.utils.data.Subset(images, indices),
        batch_size=args.batch_size,
        num_workers=args.num_workers,
        collate_fn=Collate(images.image_processor),
    )
    for batch in tqdm(loader, desc="Evaluating", unit="batch", disable=not accelerator.is_main_process):
        labels = batch.pop("labels")
        batch = send_to_device(batch, accelerator.device)
        with torch.inference_mode():
            outputs = model(batch["pixel_values"].to(model.dtype), pixel_mask=batch["pixel_mask"])
        evaluator.add(outputs, labels)


def percent(fraction: float) -> float | None:
    """-1 stands for an undefined metric, when there are no objects."""
    return None if fraction < 0 else round(100 * fraction, 4)


def describe_results(
    args: argparse.Namespace, accelerator: Accelerator, model, image_processor, results, num_images: int, seconds
) -> dict:
    """The facts about a run for the JSON file. Metrics are percentages, or `null` if they are undefined."""
    metrics, per_category = results
    metrics = {name: percent(value) for name, value in metrics.items()}
    reported = [("bbox_map", "box AP"), ("segm_map", "mask AP")]
    return {
        "model": published_name(args.model_name_or_path),
        "dataset": describe_data(args) | {"annotations": args.annotations and published_name(args.annotations)},
        "num_images": num_images,
        **metrics,
        "categories": {
            kind: {name: percent(value) for name, value in values.items()} for kind, values in per_category.items()
        },
        "preprocessing": describe_preprocessing(image_processor, ("size_divisor",)) | {"batch_size": args.batch_size},
        **describe_run(args, accelerator, model, num_images, seconds),
        "model_index": create_model_index(
            args,
            "object-detection",
            [(name, title, metrics[name]) for name, title in reported if metrics.get(name) is not None],
            {},
        ),
    }


def main(argv: list[str] | None = None):
    args = parse_arguments(argv)
    accelerator = start_evaluation()
    with accelerator.main_process_first():  # the others find the data in the cache
        rows, categories = load_rows(args)
    model, image_processor = load_detection_model(
        args.model_name_or_path, args.dtype, accelerator.device, args.use_kernels
    )
    image_processor.category_ids = order_categories(categories, model.config.id2label)
    with_masks = has_mask_head(model.config) and not args.boxes_only
    check_objects(rows, args.label_column_name, with_masks)
    indices = choose_images(len(rows), args)
    own = indices[accelerator.process_index :: accelerator.num_processes]
    columns = (args.image_column_name, args.label_column_name)
    images = DetectionImages(rows, columns, image_processor, with_masks=False)
    evaluator = CocoEvaluator(rows, args.label_column_name, categories, image_processor, with_masks)

    start = time.perf_counter()
    evaluate_model(model, images, evaluator, own, args, accelerator)
    results = evaluator.compute()
    seconds = time.perf_counter() - start
    if not accelerator.is_main_process:
        return
    result = describe_results(args, accelerator, model, image_processor, results, len(indices), seconds)
    names = {"bbox_map": "box AP", "bbox_map_50": "AP50", "segm_map": "mask AP", "segm_map_50": "AP50"}
    values = ", ".join(f"{title} {result[name]}" for name, title in names.items() if name in result)
    print(f"{values} of {len(indices)} images in {seconds:.1f} s")
    if args.output is not None:
        write_json(args.output, result, MARK)
        print(f"Written: {args.output}")


if __name__ == "__main__":
    main()
    PartialState().destroy_process_group()
