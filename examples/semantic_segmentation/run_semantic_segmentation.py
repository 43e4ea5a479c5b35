# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""
Fine-tune InternImage with UperNet or the SegFormer head, or any model of `AutoModelForSemanticSegmentation`.

    python run_semantic_segmentation.py --train_dir images/train --classes_file classes.json --backbone ... --do_train
    python run_semantic_segmentation.py arguments.json

The shape is that of transformers' own example of this name. README.md beside this file has complete commands.
"""

import logging
import sys
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import datasets
import numpy as np
import torch
import transformers
from torchvision import tv_tensors
from torchvision.transforms import v2
from transformers import (
    MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING,
    AutoConfig,
    AutoImageProcessor,
    AutoModelForSemanticSegmentation,
    TrainingArguments,
    UperNetConfig,
    set_seed,
)
from transformers.image_utils import SizeDict

from examples.image_datasets import DatasetArguments, select_samples, train_and_validation, undecoded
from examples.semantic_segmentation.segmentation_data import (
    check_ignore_index,
    check_ignored_pixels,
    list_folder,
    read_classes,
    read_pair,
)
from examples.semantic_segmentation.segmentation_metrics import StreamedMetrics, confusion_matrix
from examples.semantic_segmentation.segmentation_models import check_classes
from examples.training import (
    HeadArguments,
    create_backbone,
    freeze_stages,
    parse_head_arguments,
    read_overrides,
    train_and_evaluate,
)
from modeling_internimage import (
    InternImageSegmentationImageProcessor,
    SegformerHeadConfig,
)
from modeling_internimage.resizing import target_size
from modeling_internimage.training import InternImageTrainer
from modeling_internimage.training.sync_batch_norm import InternImageSyncBatchNorm


RECIPES = Path(__file__).parent / "recipes"
HEADS = {"upernet": UperNetConfig, "segformer": SegformerHeadConfig}
ATTEMPTS_TO_CROP = 10


@dataclass
class ModelArguments(HeadArguments):
    model_name_or_path: str | None = field(
        default=None, metadata={"help": "Segmentation checkpoint to fine-tune: a folder or a Hub id."}
    )
    head: str = field(default="upernet", metadata={"help": "Of a new model.", "choices": list(HEADS)})


@dataclass
class DataArguments(DatasetArguments):
    train_dir: str | None = field(
        default=None, metadata={"help": "Folder with images in 'images' and PNG files of the same names in 'maps'."}
    )
    label_column_name: str = field(default="label", metadata={"help": "Column with the label maps."})
    classes_file: str | None = field(
        default=None,
        metadata={
            "help": "JSON file with the classes: a list of names, or an object of names and colours, "
            '{"sky": [70, 130, 180], ...}. Without it: those of the checkpoint.'
        },
    )
    ignore_index: int = field(default=255, metadata={"help": "Value of pixels in label maps that do not count."})
    do_reduce_labels: bool | None = field(
        default=None,
        metadata={
            "help": "0 in label maps stands for unlabelled, classes start at 1 (ADE20K). Default: checkpoint's."
        },
    )
    image_size: int | None = field(
        default=None,
        metadata={
            "help": "Shorter side in pixels (the longer at most 4 times it), if not the image processor's; 512."
        },
    )
    crop_size: int | None = field(
        default=None, metadata={"help": "Side of the square training crops, if not the shorter side of the images."}
    )
    min_resize_ratio: float = field(default=0.5, metadata={"help": "Smallest factor on the size in training."})
    max_resize_ratio: float = field(default=2.0, metadata={"help": "Largest factor on the size in training."})
    max_class_fraction: float = field(
        default=0.75, metadata={"help": "Largest part of a training crop for one class, if another crop can be found."}
    )
    horizontal_flip: bool = field(default=True, metadata={"help": "Mirror half of the training images."})
    photometric_distortion: bool = field(
        default=True, metadata={"help": "Change brightness, contrast, saturation and hue at random in training."}
    )

    def __post_init__(self):
        if self.dataset_name is None and self.train_dir is None and self.validation_dir is None:
            raise ValueError(
                "No images: give `--dataset_name` (a Hub dataset), or `--train_dir` and/or `--validation_dir` (images "
                "in the folder 'images' and label maps in 'maps')."
            )
        if not 0 < self.min_resize_ratio <= self.max_resize_ratio:
            raise ValueError(
                f"`--min_resize_ratio {self.min_resize_ratio}` must be above 0 and at most `--max_resize_ratio "
                f"{self.max_resize_ratio}`."
            )


def load_images(data_args: DataArguments, model_args: ModelArguments, seed: int) -> datasets.DatasetDict:
    """The splits `train` and `validation`, as far as there are images for them, with undecoded images and maps."""
    columns = (data_args.image_column_name, data_args.label_column_name)
    if data_args.dataset_name is not None:
        splits = datasets.load_dataset(
            data_args.dataset_name,
            data_args.dataset_config_name,
            cache_dir=model_args.cache_dir,
            token=model_args.token,
        )
    else:
        folders = {"train": data_args.train_dir, "validation": data_args.validation_dir}
        splits = datasets.DatasetDict(
            {
                name: list_folder(folder, f"--{name}_dir", *columns)
                for name, folder in folders.items()
                if folder is not None
            }
        )
    return undecoded(train_and_validation(splits, data_args, seed, ""), *columns)


class RandomRatioResize(v2.Transform):
    """Resize to `size` of an image processor times a random factor, keeping the proportions."""

    def __init__(self, size: dict[str, int], min_ratio: float, max_ratio: float):
        super().__init__()
        self.size, self.min_ratio, self.max_ratio = dict(size), min_ratio, max_ratio

    def make_params(self, flat_inputs) -> dict:
        ratio = self.min_ratio + (self.max_ratio - self.min_ratio) * torch.rand(()).item()
        scaled = {name: int(side * ratio) for name, side in self.size.items() if side}
        return {"size": target_size(*v2.query_size(flat_inputs), SizeDict(**scaled))}

    def transform(self, inpt, params):
        return v2.functional.resize(inpt, size=list(params["size"]), antialias=False)


class RandomCropOfSeveralClasses(v2.Transform):
    """
    Crop to at most `size` x `size` pixels in which no class has more than `max_class_fraction` of the labelled pixels.
    If ten random crops do not satisfy this, the last one is taken.
    """

    def __init__(self, size: int, max_class_fraction: float, ignore_index: int):
        super().__init__()
        self.size, self.max_class_fraction, self.ignore_index = size, max_class_fraction, ignore_index

    def make_params(self, flat_inputs) -> dict:
        labels = next(inpt for inpt in flat_inputs if isinstance(inpt, tv_tensors.Mask))
        height, width = (min(self.size, side) for side in labels.shape[-2:])
        for _ in range(ATTEMPTS_TO_CROP):
            top = torch.randint(labels.shape[-2] - height + 1, ()).item()
            left = torch.randint(labels.shape[-1] - width + 1, ()).item()
            crop = labels[..., top : top + height, left : left + width]
            counts = crop[crop != self.ignore_index].unique(return_counts=True)[1]
            if len(counts) > 1 and counts.max() / counts.sum() < self.max_class_fraction:
                break
        return {"top": top, "left": left, "height": height, "width": width}

    def transform(self, inpt, params):
        return v2.functional.crop(inpt, **params)


def training_augmentation(image_processor, data_args: DataArguments) -> v2.Transform:
    """The steps of the original's training pipeline, for an image and its label map."""
    crop = data_args.crop_size or min(side for side in dict(image_processor.size).values() if side)
    distortions = [{"brightness": 0.125}, {"contrast": 0.5}, {"saturation": 0.5}, {"hue": 0.1}]
    steps = [
        RandomRatioResize(image_processor.size, data_args.min_resize_ratio, data_args.max_resize_ratio),
        RandomCropOfSeveralClasses(crop, data_args.max_class_fraction, data_args.ignore_index),
        v2.RandomHorizontalFlip(0.5 if data_args.horizontal_flip else 0.0),
    ]
    if data_args.photometric_distortion:
        steps += [v2.RandomApply([v2.ColorJitter(**distortion)], p=0.5) for distortion in distortions]
    steps += [
        v2.ToDtype({tv_tensors.Image: torch.float32, "others": None}, scale=True),
        v2.Normalize(image_processor.image_mean, image_processor.image_std),
        # Pads images that are smaller than the crop, at a random place in it.
        v2.RandomCrop(crop, pad_if_needed=True, fill={tv_tensors.Image: 0.0, tv_tensors.Mask: data_args.ignore_index}),
    ]
    return v2.Compose(steps)


class Transform:
    """From undecoded images and label maps to `pixel_values` and `labels`, with augmentation or without."""

    def __init__(self, image_processor, num_labels: int, data_args: DataArguments, is_training: bool):
        self.image_processor = image_processor
        self.columns = (data_args.image_column_name, data_args.label_column_name)
        self.map_arguments = {
            "num_labels": num_labels,
            "ignore_index": data_args.ignore_index,
            "do_reduce_labels": bool(image_processor.do_reduce_labels),
        }
        self.augmentation = training_augmentation(image_processor, data_args) if is_training else None

    def __call__(self, batch: dict) -> dict:
        examples = [self.prepare(*rows) for rows in zip(*(batch[column] for column in self.columns))]
        return {name: [example[name] for example in examples] for name in ("pixel_values", "labels")}

    def prepare(self, image_row: dict, map_row: dict) -> dict[str, torch.Tensor]:
        """`pixel_values` (channels, height, width) and `labels` (height, width)."""
        image, labels = read_pair(image_row, map_row, **self.map_arguments)
        if self.augmentation is not None:
            labels = tv_tensors.Mask(torch.from_numpy(labels))
            image, labels = self.augmentation(tv_tensors.Image(v2.functional.pil_to_tensor(image)), labels)
            return {"pixel_values": image.as_subclass(torch.Tensor), "labels": labels.as_subclass(torch.Tensor)}
        # The map is reduced already.
        inputs = self.image_processor(image, labels, do_reduce_labels=False, return_tensors="pt")
        return {"pixel_values": inputs["pixel_values"][0], "labels": inputs["labels"][0]}


def collate(examples: list[dict], ignore_index: int) -> dict[str, torch.Tensor]:
    """`pixel_values` (batch_size, channels, height, width), `labels` (batch_size, height, width): the largest size."""
    height, width = (max(example["labels"].shape[dim] for example in examples) for dim in (0, 1))

    def pad(tensor, value):
        missing = (0, width - tensor.shape[-1], 0, height - tensor.shape[-2])
        return torch.nn.functional.pad(tensor, missing, value=value)

    return {
        "pixel_values": torch.stack([pad(example["pixel_values"], 0.0) for example in examples]),
        "labels": torch.stack([pad(example["labels"], ignore_index) for example in examples]),
    }


def load_model(model_args: ModelArguments, data_args: DataArguments):
    """The model and its image processor: of a checkpoint, or with a new head."""
    fields = {"loss_ignore_index": data_args.ignore_index}
    if data_args.classes_file is not None:
        names, palette = read_classes(data_args.classes_file)
        fields["id2label"] = dict(enumerate(names))
        fields["label2id"] = {name: idx for idx, name in enumerate(names)}
        fields["palette"] = palette
    hub = model_args.hub_arguments()
    if model_args.model_name_or_path is None:
        if data_args.classes_file is None:
            raise ValueError("A new model needs `--classes_file`, a JSON file with the names of the classes.")
        model = new_model(model_args, fields, hub)
    else:
        config = AutoConfig.from_pretrained(model_args.model_name_or_path, **hub)
        if type(config) not in MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING:
            raise ValueError(
                f"`--model_name_or_path {model_args.model_name_or_path}` is a model of type {config.model_type}, "
                "which this script cannot train: give an InternImage checkpoint as `--backbone`, for a new head."
            )
        config.update(fields)
        if hasattr(config, "semantic_loss_ignore_index"):  # what SegFormer and others of transformers call it
            config.semantic_loss_ignore_index = data_args.ignore_index
        if model_args.drop_path_rate is not None:
            config.backbone_config.drop_path_rate = model_args.drop_path_rate
        model = AutoModelForSemanticSegmentation.from_pretrained(
            model_args.model_name_or_path,
            config=config,
            ignore_mismatched_sizes=model_args.ignore_mismatched_sizes,
            **hub,
        )
    source = model_args.image_processor_name or model_args.model_name_or_path
    if source is not None:
        image_processor = AutoImageProcessor.from_pretrained(source, **hub)
    else:
        size = data_args.image_size or 512
        size = {"shortest_edge": size, "longest_edge": 4 * size}
        image_processor = InternImageSegmentationImageProcessor(size=size, size_divisor=32)
    if data_args.image_size is not None:
        image_processor.size = {"shortest_edge": data_args.image_size, "longest_edge": 4 * data_args.image_size}
    if data_args.do_reduce_labels is not None:
        image_processor.do_reduce_labels = data_args.do_reduce_labels
    if "labels" not in image_processor(np.zeros((8, 8, 3), np.uint8), np.zeros((8, 8), np.uint8), return_tensors="pt"):
        raise ValueError(
            f"{type(image_processor).__name__} of the checkpoint makes no label maps, which are needed here: name a "
            "checkpoint with another one, such as SegformerImageProcessor, as `--image_processor_name`."
        )
    check_classes(model.config.num_labels, f"--model_name_or_path {model_args.model_name_or_path}")
    check_ignore_index(data_args.ignore_index, model.config.num_labels, bool(image_processor.do_reduce_labels))
    return model, image_processor


def new_model(model_args: ModelArguments, fields: dict, hub: dict):
    """A model with a new head, whose backbone is that of a checkpoint or also new."""
    backbone, backbone_config = create_backbone(model_args, hub)
    if model_args.head == "upernet":
        fields = {"auxiliary_in_channels": backbone_config.hidden_sizes[2], **fields}
    fields = fields | read_overrides(model_args.head_overrides)
    config = HEADS[model_args.head](backbone_config=backbone_config, **fields)
    model = AutoModelForSemanticSegmentation.from_config(config)
    if backbone is not None:
        model.backbone.load_state_dict(backbone.state_dict())
    return model


class SegmentationTrainer(InternImageTrainer):
    """
    Evaluation returns a confusion matrix for each image instead of its logits. Logits that are smaller than the label
    map (transformers' SegFormer) are resized first.
    """

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        loss, logits, labels = super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)
        if logits is None or labels is None:
            return loss, logits, labels
        config = self.model.config
        matrices = []
        for scores, label in zip(logits, labels):
            if scores.shape[1:] != label.shape:
                scores = torch.nn.functional.interpolate(scores[None], size=label.shape, mode="bilinear")[0]
            predictions = scores.argmax(dim=0)
            matrices.append(confusion_matrix(predictions, label, config.num_labels, config.loss_ignore_index))
        # The label maps are not needed any more, and those of other processes may have other sizes.
        return loss, torch.stack(matrices), labels[:, 0, 0]

    def get_train_dataloader(self):
        """Batch normalisation cannot train on the one image that may be left over at the end of an epoch."""
        args = self.args
        drop_last = args.dataloader_drop_last
        left_over = len(self.train_dataset) % args.train_batch_size  # with several processes, batches are filled up
        args.dataloader_drop_last = drop_last or (args.world_size == 1 and left_over == 1)
        try:
            return super().get_train_dataloader()
        finally:
            args.dataloader_drop_last = drop_last


def prepare_training(model, training_args: TrainingArguments, num_images: int):
    """Check that batch norm gets two images. Set up checkpointing and synchronised batch norm."""
    is_synchronised = training_args.world_size > 1 and training_args.device.type == "cuda"
    images_per_step = training_args.per_device_train_batch_size * (training_args.world_size if is_synchronised else 1)
    if min(images_per_step, num_images) < 2:
        raise ValueError(
            f"`--per_device_train_batch_size {training_args.per_device_train_batch_size}` with {num_images} training "
            "images: batch normalisation needs at least two images per step and process (processes on GPUs count "
            "together)."
        )
    if (
        training_args.gradient_checkpointing and not model.supports_gradient_checkpointing
    ):  # UperNet; its backbone does
        model.backbone.gradient_checkpointing_enable(training_args.gradient_checkpointing_kwargs)
        training_args.gradient_checkpointing = False
    if is_synchronised:  # as the authors do
        model = InternImageSyncBatchNorm.convert_sync_batchnorm(model)
    return model


def main(argv: list[str] | None = None):
    model_args, data_args, recipe, training_args = parse_head_arguments(
        ModelArguments, DataArguments, sys.argv[1:] if argv is None else argv
    )
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s", level=logging.WARNING)
    transformers.utils.logging.set_verbosity(training_args.get_process_log_level())
    set_seed(training_args.seed)

    splits = load_images(data_args, model_args, training_args.seed)
    all_training_images = splits.get("train")
    splits = select_samples(splits, data_args, training_args)
    model, image_processor = load_model(model_args, data_args)
    freeze_stages(model, model_args.freeze_stages)
    if training_args.do_train:
        model = prepare_training(model, training_args, len(splits["train"]))
    transforms = {
        name: Transform(image_processor, model.config.num_labels, data_args, name == "train") for name in splits
    }
    if training_args.do_train:
        check_ignored_pixels(
            all_training_images,
            data_args.label_column_name,
            model.config.id2label,
            **transforms["train"].map_arguments,
        )
    for name, split in splits.items():
        split.set_transform(transforms[name])

    training_args.remove_unused_columns = False  # the transforms need the image column
    training_args.batch_eval_metrics = True
    trainer = SegmentationTrainer(
        model=model,
        args=training_args,
        recipe=recipe,
        train_dataset=splits["train"] if training_args.do_train else None,
        eval_dataset=splits["validation"] if training_args.do_eval else None,
        compute_metrics=StreamedMetrics(model.config.id2label),
        processing_class=image_processor,
        data_collator=partial(collate, ignore_index=data_args.ignore_index),  # which workers can be sent
    )
    source = model_args.model_name_or_path or model_args.backbone
    train_and_evaluate(trainer, data_args, source, "image-segmentation", ("mean_iou", "mIoU"))


if __name__ == "__main__":
    main()
