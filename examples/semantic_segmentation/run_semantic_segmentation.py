# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""
Fine-tune InternImage with UperNet, the SegFormer head or Mask2Former, or any model of
`AutoModelForSemanticSegmentation`.

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
from transformers import (
    MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING,
    AutoConfig,
    AutoImageProcessor,
    AutoModelForSemanticSegmentation,
    AutoModelForUniversalSegmentation,
    Mask2FormerConfig,
    TrainingArguments,
    UperNetConfig,
    set_seed,
)
from transformers.modeling_outputs import SemanticSegmenterOutput

from examples.image_datasets import DatasetArguments, select_samples, train_and_validation, undecoded
from examples.semantic_segmentation.mask2former import class_masks, correct_loss
from examples.semantic_segmentation.segmentation_batches import Transform, collate
from examples.semantic_segmentation.segmentation_data import (
    check_ignore_index,
    check_ignored_pixels,
    list_folder,
    read_classes,
)
from examples.semantic_segmentation.segmentation_metrics import StreamedMetrics, confusion_matrix
from examples.semantic_segmentation.segmentation_models import (
    IGNORE_INDEX_FIELDS,
    backbone_of,
    check_classes,
    load_backbone,
)
from examples.training import (
    HeadArguments,
    freeze_stages,
    parse_head_arguments,
    read_overrides,
    train_and_evaluate,
)
from modeling_internimage import (
    InternImageMask2FormerImageProcessor,
    InternImageSegmentationImageProcessor,
    SegformerHeadConfig,
    semantic_scores,
)
from modeling_internimage.training import InternImageTrainer
from modeling_internimage.training.sync_batch_norm import InternImageSyncBatchNorm


RECIPES = Path(__file__).parent / "recipes"
HEADS = {"upernet": UperNetConfig, "segformer": SegformerHeadConfig, "mask2former": Mask2FormerConfig}
BATCH_NORMS = (torch.nn.BatchNorm2d, torch.nn.SyncBatchNorm)


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
        model = trained_model(model_args, fields, hub)
    for name in IGNORE_INDEX_FIELDS:
        if hasattr(model.config, name):
            setattr(model.config, name, data_args.ignore_index)
    if isinstance(model.config, Mask2FormerConfig):
        correct_loss(model)
    image_processor = load_image_processor(model_args, data_args, model.config)
    check_classes(model.config.num_labels, f"--model_name_or_path {model_args.model_name_or_path}")
    check_ignore_index(data_args.ignore_index, model.config.num_labels, bool(image_processor.do_reduce_labels))
    return model, image_processor


def new_model(model_args: ModelArguments, fields: dict, hub: dict):
    """A model with a new head, whose backbone is that of a checkpoint or also new."""
    backbone, backbone_config = load_backbone(model_args, hub)
    if model_args.head == "upernet":
        fields = {"auxiliary_in_channels": backbone_config.hidden_sizes[2], **fields}
    elif model_args.head == "mask2former":
        fields = {"backbones_supported": [backbone_config.model_type], **fields}  # else it warns that only Swin is
    fields = fields | read_overrides(model_args.head_overrides)
    config = HEADS[model_args.head](backbone_config=backbone_config, **fields)
    model = auto_class_of(config).from_config(config)
    if backbone is not None:
        backbone_of(model).load_state_dict(backbone.state_dict())
    return model


def trained_model(model_args: ModelArguments, fields: dict, hub: dict):
    """The model of a checkpoint, whose classifier is replaced if the classes differ."""
    config = AutoConfig.from_pretrained(model_args.model_name_or_path, **hub)
    if type(config) not in MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING and not isinstance(config, Mask2FormerConfig):
        raise ValueError(
            f"`--model_name_or_path {model_args.model_name_or_path}` is a model of type {config.model_type}, "
            "which this script cannot train: give an InternImage checkpoint as `--backbone`, for a new head."
        )
    config.update(fields)
    if model_args.drop_path_rate is not None:
        config.backbone_config.drop_path_rate = model_args.drop_path_rate
    return auto_class_of(config).from_pretrained(
        model_args.model_name_or_path,
        config=config,
        ignore_mismatched_sizes=model_args.ignore_mismatched_sizes,
        **hub,
    )


def auto_class_of(config):
    is_mask2former = isinstance(config, Mask2FormerConfig)
    return AutoModelForUniversalSegmentation if is_mask2former else AutoModelForSemanticSegmentation


def load_image_processor(model_args: ModelArguments, data_args: DataArguments, config):
    """The image processor of a checkpoint or of a new model with this `config`, with the size and labels asked for."""
    source, hub = model_args.image_processor_name or model_args.model_name_or_path, model_args.hub_arguments()
    is_mask2former = isinstance(config, Mask2FormerConfig)
    if source is None:
        size = data_args.image_size or 512
        size = {"shortest_edge": size, "longest_edge": 4 * size}
        kind = InternImageMask2FormerImageProcessor if is_mask2former else InternImageSegmentationImageProcessor
        image_processor = kind(size=size, size_divisor=32)
    else:
        image_processor = AutoImageProcessor.from_pretrained(source, **hub)
        if is_mask2former and type(image_processor) is InternImageSegmentationImageProcessor:
            image_processor = InternImageMask2FormerImageProcessor.from_pretrained(source, **hub)
    if data_args.image_size is not None:
        image_processor.size = {"shortest_edge": data_args.image_size, "longest_edge": 4 * data_args.image_size}
    if data_args.do_reduce_labels is not None:
        image_processor.do_reduce_labels = data_args.do_reduce_labels
    if "labels" not in image_processor(np.zeros((8, 8, 3), np.uint8), np.zeros((8, 8), np.uint8), return_tensors="pt"):
        raise ValueError(
            f"{type(image_processor).__name__} of the checkpoint makes no label maps, which are needed here: name a "
            "checkpoint with another one, such as SegformerImageProcessor, as `--image_processor_name`."
        )
    return image_processor


class SegmentationTrainer(InternImageTrainer):
    """
    Evaluation returns a confusion matrix for each image instead of its logits. Logits that are smaller than the label
    map (transformers' SegFormer) are resized first.
    """

    def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
        """Mask2Former learns the masks of the classes, and is evaluated by their scores, as the original."""
        if not isinstance(self.model.config, Mask2FormerConfig):
            return super().compute_loss(model, inputs, return_outputs, **kwargs)
        pixel_values, labels = inputs["pixel_values"], inputs["labels"]
        inputs = {"pixel_values": pixel_values, **class_masks(labels, self.model.config.loss_ignore_index)}
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True, **kwargs)
        if not return_outputs:
            return loss
        return loss, SemanticSegmenterOutput(logits=semantic_scores(outputs, pixel_values.shape[-2:]))

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
        is_wrong = args.world_size == 1 and left_over == 1 and has_batch_norm(self.model)
        args.dataloader_drop_last = drop_last or is_wrong
        try:
            return super().get_train_dataloader()
        finally:
            args.dataloader_drop_last = drop_last


def has_batch_norm(model) -> bool:
    return any(isinstance(module, BATCH_NORMS) for module in model.modules())


def prepare_training(model, training_args: TrainingArguments, num_images: int):
    """Check that batch norm gets two images. Set up checkpointing and synchronised batch norm."""
    is_synchronised = training_args.world_size > 1 and training_args.device.type == "cuda"
    images_per_step = training_args.per_device_train_batch_size * (training_args.world_size if is_synchronised else 1)
    if min(images_per_step, num_images) < 2 and has_batch_norm(model):
        raise ValueError(
            f"`--per_device_train_batch_size {training_args.per_device_train_batch_size}` with {num_images} training "
            "images: batch normalisation needs at least two images per step and process (processes on GPUs count "
            "together)."
        )
    # UperNet and Mask2Former have no gradient checkpointing of their own, their backbones do.
    if training_args.gradient_checkpointing and not model.supports_gradient_checkpointing:
        backbone_of(model).gradient_checkpointing_enable(training_args.gradient_checkpointing_kwargs)
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
    training_args.label_names = ["labels"]  # by default the names in the model's `forward`
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
