# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""
Average precision of a detector as COCO or LVIS defines it: of boxes and, if it has mask heads, of masks.

    python -m examples.object_detection.evaluate_detection --model_name_or_path ... \\
        --data_dir coco/val2017 --annotations coco/annotations/instances_val2017.json
    accelerate launch -m examples.object_detection.evaluate_detection ...
    python -m examples.object_detection.evaluate_detection ... --scales 0.75 1.0 1.25 --flip --boxes_only

The second form uses every GPU (`torchrun --nproc_per_node 2` in place of `accelerate launch`: any number of processes,
also on a CPU). Each process takes its share of the images. Preprocessing is that of the checkpoint's image processor;
classes of the model and categories of the data find each other by their names.

`--scales` and `--flip` look at every image in several sizes and mirrored, and merge the boxes of all by weighted boxes
fusion. The authors have not published how they did this for their results with test-time augmentation (such as 65.0
box AP on COCO): these cannot be repeated with it.

`--metric lvis` is for the annotations of LVIS, which are of some categories for each image; `--data_dir` then holds
the folders train2017 and val2017 of COCO. Two data sets have metrics of their own, which this script does not compute:

- VOC: AP at the overlap 0.5, the mean of 11 precisions for VOC 2007, else the whole area below the curve; a detection
  belongs to the object it overlaps most, even if a better one has taken that. `bbox_map_50` here is COCO's mean of
  101 precisions, and objects marked `difficult` have to be `iscrowd` in the file, or they count.
- Open Images: AP at the overlap 0.5 over a hierarchy of classes, with classes that were verified for the image only,
  and boxes of groups. `bbox_map_50` here knows neither.
"""

import argparse
import time

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import send_to_device
from torchvision.transforms import v2
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
from examples.object_detection.detection_metrics import CocoEvaluator, LvisEvaluator
from examples.object_detection.detection_models import has_masks, load_detection_model
from examples.output_files import mark_of, write_json
from modeling_internimage import detect_objects


MARK = mark_of(__file__)


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = evaluation_parser(__doc__, "folder of images", "objects", "`bbox` and `category` of objects")
    parser.add_argument("--annotations", help="JSON file in the format of COCO, on the images in --data_dir")
    parser.add_argument("--batch_size", type=int, default=1, help="images at a time; above 1 they are padded")
    parser.add_argument("--boxes_only", action="store_true", help="no masks, for data without `segmentation`")
    parser.add_argument("--metric", choices=["coco", "lvis"], default="coco", help="rules of the average precision")
    parser.add_argument("--scales", nargs="+", type=float, default=[1.0], help="merge boxes found in these sizes")
    parser.add_argument("--flip", action="store_true", help="merge with boxes found in the mirror image")
    args = parser.parse_args(argv)
    if (args.data_dir is None) != (args.annotations is None):
        raise ValueError("`--data_dir` and `--annotations` go together: give both.")
    if args.metric == "lvis" and args.annotations is None:
        raise ValueError("`--metric lvis` needs the file of LVIS with the annotations, `--annotations`.")
    if in_views(args) and args.batch_size > 1:
        raise ValueError(
            f"`--scales` and `--flip` take one image at a time: leave out `--batch_size {args.batch_size}`."
        )
    check_numbers_and_output(args, {"num_workers": 0, "max_samples": 1, "batch_size": 1}, MARK)
    return args


def in_views(args: argparse.Namespace) -> bool:
    """Whether the images are seen in other sizes than the image processor's, or mirrored."""
    return args.scales != [1.0] or args.flip


def load_rows(args: argparse.Namespace):
    """Undecoded images with objects, and names of categories by id."""
    columns = (args.image_column_name, args.label_column_name)
    if args.data_dir is not None:
        return read_coco(args.data_dir, args.annotations, "--annotations", *columns)
    rows = undecoded(load_split(args), columns[0])
    return rows, hub_categories(rows.features, columns[1])


def evaluate_model(model, rows, image_processor, evaluator: CocoEvaluator, indices: list[int], args, accelerator):
    """Adds this process's images, those at `indices`, to `evaluator`."""
    columns = (args.image_column_name, args.label_column_name)
    images = DetectionImages(rows, columns, image_processor, with_masks=False)
    collate = Collate(image_processor)
    for batch in load(images, indices, args, accelerator, batch_size=args.batch_size, collate_fn=collate):
        labels = batch.pop("labels")
        batch = send_to_device(batch, accelerator.device)
        with torch.inference_mode():
            outputs = model(batch["pixel_values"].to(model.dtype), pixel_mask=batch["pixel_mask"])
        evaluator.add(outputs, labels)


def evaluate_in_views(model, rows, image_processor, evaluator: CocoEvaluator, indices: list[int], args, accelerator):
    """As [`evaluate_model`], with boxes merged from `--scales` and `--flip`."""
    columns = (args.image_column_name, args.label_column_name)
    as_they_are = v2.Identity()  # in place of the resizing, which every view has of its own
    images = DetectionImages(rows, columns, image_processor, with_masks=False, augmentation=as_they_are)
    for example in load(images, indices, args, accelerator, batch_size=None):
        detections = detect_objects(model, image_processor, example["image"], args.scales, args.flip)
        evaluator.add_detections([detections], [example["labels"]])


def load(images: DetectionImages, indices: list[int], args, accelerator: Accelerator, **kwargs):
    """Batches, or single examples, of the images at `indices`, with a bar that shows the progress."""
    images = torch.utils.data.Subset(images, indices)
    loader = torch.utils.data.DataLoader(images, num_workers=args.num_workers, **kwargs)
    return tqdm(loader, desc="Evaluating", unit="batch", disable=not accelerator.is_main_process)


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
    test_time = {"scales": args.scales, "flip": args.flip} if in_views(args) else {}
    if len(args.scales) > 1 or args.flip:
        test_time["merging"] = "weighted boxes fusion"
    rules = {} if args.metric == "coco" else {"metric": args.metric}
    return {
        "model": published_name(args.model_name_or_path),
        "dataset": describe_data(args) | {"annotations": args.annotations and published_name(args.annotations)},
        "num_images": num_images,
        "metric": args.metric,
        **metrics,
        "categories": {
            kind: {name: percent(value) for name, value in values.items()} for kind, values in per_category.items()
        },
        "preprocessing": describe_preprocessing(image_processor, ("size_divisor",)) | {"batch_size": args.batch_size},
        "test_time": test_time,
        **describe_run(args, accelerator, model, num_images, seconds),
        "model_index": create_model_index(
            args,
            "object-detection",
            [(name, title, metrics[name]) for name, title in reported if metrics.get(name) is not None],
            rules | test_time,
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
    with_masks = has_masks(model.config) and not args.boxes_only
    if with_masks and in_views(args):
        raise ValueError("`--scales` and `--flip` merge boxes only: add `--boxes_only` for a model with mask heads.")
    check_objects(rows, args.label_column_name, with_masks)
    indices = choose_images(len(rows), args)
    own = indices[accelerator.process_index :: accelerator.num_processes]
    arguments = (rows, args.label_column_name, categories, image_processor, with_masks)
    evaluator = LvisEvaluator(*arguments, args.annotations) if args.metric == "lvis" else CocoEvaluator(*arguments)

    start = time.perf_counter()
    evaluate_images = evaluate_in_views if in_views(args) else evaluate_model
    evaluate_images(model, rows, image_processor, evaluator, own, args, accelerator)
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
