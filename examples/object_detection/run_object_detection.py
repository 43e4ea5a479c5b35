# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""
Fine-tune a detector on images annotated in the format of COCO or a Hub dataset: Mask R-CNN, with masks or without, its
cascades, or DINO.

    python run_object_detection.py --train_dir images --train_annotations train.json --backbone ... --do_train
    python run_object_detection.py arguments.json

The shape is that of transformers' own example of this name. README.md beside this file has complete commands.
"""

import logging
import re
import sys
from dataclasses import dataclass, field

import datasets
import transformers
from transformers import AutoConfig, AutoImageProcessor, AutoModelForObjectDetection, set_seed

from examples.image_datasets import DatasetArguments, select_samples, train_and_validation, undecoded
from examples.object_detection.detection_augmentation import training_augmentation
from examples.object_detection.detection_data import (
    Collate,
    DetectionImages,
    annotations_of,
    check_objects,
    hub_categories,
    order_categories,
    read_coco,
)
from examples.object_detection.detection_metrics import CocoEvaluator
from examples.object_detection.detection_models import DETECTORS, check_detector, create_image_processor, has_masks
from examples.training import (
    HeadArguments,
    create_backbone,
    freeze_stages,
    parse_head_arguments,
    read_overrides,
    train_and_evaluate,
)
from modeling_internimage.training import InternImageTrainer
from modeling_internimage.training.sync_batch_norm import InternImageSyncBatchNorm


# Patterns of the tensors that are new when a checkpoint is trained with other classes, or with masks if it had none.
NEW_TENSORS = {
    "mask_rcnn": r"roi_heads\.(box_heads\.\d+\.(classifier|box_regressor)|mask_heads)\.",
    "dino_detr": r"(class_embed\.\d+|denoising_class_embed)\.",
}


@dataclass
class ModelArguments(HeadArguments):
    model_name_or_path: str | None = field(
        default=None, metadata={"help": "Detector to fine-tune: a folder or a Hub id."}
    )
    head: str = field(default="mask_rcnn", metadata={"help": "Of a new model.", "choices": list(DETECTORS)})
    use_mask_head: bool | None = field(
        default=None,
        metadata={"help": "Whether Mask R-CNN trains masks. Default: checkpoint's; a new model has them."},
    )


@dataclass
class DataArguments(DatasetArguments):
    train_annotations: str | None = field(
        default=None, metadata={"help": "JSON file in the format of COCO, on the images in `train_dir`."}
    )
    validation_annotations: str | None = field(default=None, metadata={"help": "The same, for evaluation."})
    label_column_name: str = field(
        default="objects", metadata={"help": "Column of a Hub dataset with `bbox` and `category` of all objects."}
    )
    skip_images_without_annotations: bool = field(
        default=False, metadata={"help": "Do not train on images without annotations, as the authors."}
    )
    shortest_edge: int | None = field(
        default=None, metadata={"help": "Shorter side of images in pixels, if not the image processor's; 800."}
    )
    longest_edge: int | None = field(
        default=None, metadata={"help": "Longer side at most, if not the image processor's; 5/3 of the shorter."}
    )
    min_shortest_edge: int | None = field(
        default=None,
        metadata={"help": "Smallest shorter side in training, for random scales. Default: one scale, the largest."},
    )
    max_shortest_edge: int | None = field(
        default=None, metadata={"help": "Largest shorter side in training, if not the image processor's."}
    )
    step_of_scales: int = field(
        default=32, metadata={"help": "Step between the shorter sides in training; 1 in the recipes of DINO-H and G."}
    )
    train_longest_edge: int | None = field(
        default=None, metadata={"help": "Longer side at most in training, if not the image processor's."}
    )
    random_crop: bool = field(
        default=False,
        metadata={
            "help": "Half of the training images are cut before they are scaled, as in the authors' 3x recipes."
        },
    )
    crop_with_objects: bool = field(
        default=False,
        metadata={
            "help": "As in the authors' recipes of DINO-T and L: another image in place of one whose cut has no "
            "object, and no largest longer side before the cut."
        },
    )
    horizontal_flip: bool = field(default=True, metadata={"help": "Mirror half of the training images."})

    def __post_init__(self):
        folders = (self.train_dir, self.validation_dir)
        if self.dataset_name is None and not any(folders):
            raise ValueError(
                "No images: give `--dataset_name` (a Hub dataset), or `--train_dir` and/or `--validation_dir` "
                "(folders of images) with `--train_annotations` and `--validation_annotations` (JSON files)."
            )
        if self.crop_with_objects and not self.random_crop:
            raise ValueError("`--crop_with_objects` belongs to `--random_crop`: give both or none.")
        for name, folder in zip(("train", "validation"), folders):
            if (folder is None) != (getattr(self, f"{name}_annotations") is None):
                raise ValueError(f"`--{name}_dir` and `--{name}_annotations` go together: give both.")


def load_images(
    data_args: DataArguments, model_args: ModelArguments, seed: int
) -> tuple[datasets.DatasetDict, dict[int, str]]:
    """The splits `train` and `validation`, as far as there are images for them, and names of categories by id."""
    columns = (data_args.image_column_name, data_args.label_column_name)
    if data_args.dataset_name is not None:
        splits = datasets.load_dataset(
            data_args.dataset_name,
            data_args.dataset_config_name,
            cache_dir=model_args.cache_dir,
            token=model_args.token,
        )
        splits = undecoded(train_and_validation(splits, data_args, seed, ""), columns[0])
        return splits, hub_categories(next(iter(splits.values())).features, columns[1])
    splits, categories = {}, {}
    for name in ("train", "validation"):
        folder, file = getattr(data_args, f"{name}_dir"), getattr(data_args, f"{name}_annotations")
        if folder is not None:
            splits[name], categories[name] = read_coco(folder, file, f"--{name}_annotations", *columns)
    first, *others = categories.values()
    if any(other != first for other in others):
        raise ValueError(
            f"`--train_annotations` has the categories {first} and `--validation_annotations` {others[0]}: they must "
            "be the same."
        )
    return train_and_validation(datasets.DatasetDict(splits), data_args, seed, ""), first


def load_model(model_args: ModelArguments, data_args: DataArguments, categories: dict[int, str]):
    """The model and its image processor: of a checkpoint, or with a new head."""
    hub = model_args.hub_arguments()
    names = list(categories.values())
    create_model = new_model if model_args.model_name_or_path is None else pretrained_model
    model = create_model(model_args, names, hub)
    source = model_args.image_processor_name or model_args.model_name_or_path
    if source is None:
        image_processor = create_image_processor(model.config)
    else:
        image_processor = AutoImageProcessor.from_pretrained(source, **hub)
    size = dict(image_processor.size)
    if data_args.shortest_edge is not None:
        size = {"shortest_edge": data_args.shortest_edge, "longest_edge": data_args.shortest_edge * 5 // 3}
    if data_args.longest_edge is not None:
        size["longest_edge"] = data_args.longest_edge
    if not size.get("shortest_edge") or not size.get("longest_edge"):
        raise ValueError(
            f"The image processor of {source} has the size {size}: give `--shortest_edge`, as images keep their "
            "proportions."
        )
    image_processor.size = size
    image_processor.category_ids = order_categories(categories, model.config.id2label)
    return model, image_processor


def new_model(model_args: ModelArguments, names: list[str], hub: dict):
    """A model with a new head, whose backbone is that of a checkpoint or also new."""
    config_class = DETECTORS[model_args.head]
    backbone, backbone_config = create_backbone(model_args, hub, config_class().backbone_config.out_features)
    fields = read_overrides(model_args.head_overrides) | _mask_fields(model_args, config_class) | _classes(names)
    model = AutoModelForObjectDetection.from_config(config_class(backbone_config=backbone_config, **fields))
    if backbone is not None:
        model.backbone.load_state_dict(backbone.state_dict())
    return model


def pretrained_model(model_args: ModelArguments, names: list[str], hub: dict):
    """The detector of a checkpoint. If it has other classes, what depends on their number is new."""
    argument = f"--model_name_or_path {model_args.model_name_or_path}"
    config = AutoConfig.from_pretrained(model_args.model_name_or_path, **hub)
    check_detector(config, argument)
    fields = _mask_fields(model_args, type(config))
    if set(names) != set(config.id2label.values()):  # else in the order of the checkpoint
        fields |= _classes(names)
    if model_args.drop_path_rate is not None:
        config.backbone_config.drop_path_rate = model_args.drop_path_rate
    config.update(fields)
    model, info = AutoModelForObjectDetection.from_pretrained(
        model_args.model_name_or_path,
        config=config,
        ignore_mismatched_sizes=model_args.ignore_mismatched_sizes,
        output_loading_info=True,
        **hub,
    )
    new = {*info["missing_keys"], *(name for name, *_ in info["mismatched_keys"])}
    unexpected = sorted(name for name in new if not re.match(NEW_TENSORS[config.model_type], name))
    if unexpected:
        raise ValueError(
            f"`{argument}` lacks '{unexpected[0]}', or has it in another shape than its config.json says, such as of "
            "another number of feature levels. Correct the config.json, or train a new head: `--backbone`."
        )
    return model


def _mask_fields(model_args: ModelArguments, config_class: type) -> dict[str, bool]:
    if model_args.use_mask_head is None:
        return {}
    if not hasattr(config_class, "use_mask_head"):
        raise ValueError(
            f"`--use_mask_head {str(model_args.use_mask_head).lower()}` is for Mask R-CNN, {config_class.model_type} "
            "has no masks: leave it out."
        )
    return {"use_mask_head": model_args.use_mask_head}


def _classes(names: list[str]) -> dict:
    return {"id2label": dict(enumerate(names)), "label2id": {name: idx for idx, name in enumerate(names)}}


class DetectionTrainer(InternImageTrainer):
    """Evaluation computes COCO's metrics of the detections."""

    def __init__(self, *args, evaluator: CocoEvaluator | None, **kwargs):
        super().__init__(*args, **kwargs)
        self.evaluator = evaluator

    def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True, **kwargs)
        if not model.training:  # without `compute_metrics`, evaluation keeps nothing else of the outputs
            self.evaluator.add(outputs, inputs["labels"])
        return (loss, outputs) if return_outputs else loss

    def evaluation_loop(self, *args, metric_key_prefix: str = "eval", **kwargs):
        output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        metrics, _ = self.evaluator.compute()
        output.metrics.update({f"{metric_key_prefix}_{name}": value for name, value in metrics.items()})
        return output


def main(argv: list[str] | None = None):
    model_args, data_args, recipe, training_args = parse_head_arguments(
        ModelArguments, DataArguments, sys.argv[1:] if argv is None else argv
    )
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s", level=logging.WARNING)
    transformers.utils.logging.set_verbosity(training_args.get_process_log_level())
    set_seed(training_args.seed)

    columns = (data_args.image_column_name, data_args.label_column_name)
    splits, categories = load_images(data_args, model_args, training_args.seed)
    if data_args.skip_images_without_annotations and "train" in splits:
        splits["train"] = splits["train"].filter(_has_annotations, input_columns=columns[1])
    splits = select_samples(splits, data_args, training_args)
    model, image_processor = load_model(model_args, data_args, categories)
    with_masks = has_masks(model.config)
    for rows in splits.values():
        check_objects(rows, columns[1], with_masks)
    freeze_stages(model, model_args.freeze_stages)
    if training_args.world_size > 1 and training_args.device.type == "cuda":  # as the authors do
        model = InternImageSyncBatchNorm.convert_sync_batchnorm(model)

    training_args.remove_unused_columns = False  # the examples are dictionaries of their own
    train_dataset = eval_dataset = evaluator = None
    if training_args.do_train:
        augmentation = training_augmentation(image_processor, data_args)
        train_dataset = DetectionImages(splits["train"], columns, image_processor, with_masks, augmentation)
    if training_args.do_eval:
        eval_dataset = DetectionImages(splits["validation"], columns, image_processor, with_masks)
        evaluator = CocoEvaluator(splits["validation"], columns[1], categories, image_processor, with_masks)
    trainer = DetectionTrainer(
        model=model,
        args=training_args,
        recipe=recipe,
        train_dataset=train_dataset,
        eval_dataset=eval_dataset,
        evaluator=evaluator,
        processing_class=image_processor,
        data_collator=Collate(image_processor),
    )
    source = model_args.model_name_or_path or model_args.backbone
    train_and_evaluate(trainer, data_args, source, "object-detection", ("bbox_map", "AP of boxes"))


def _has_annotations(objects) -> bool:
    return len(annotations_of(objects)) > 0  # (crowds count, as in mmdetection)


if __name__ == "__main__":
    main()
