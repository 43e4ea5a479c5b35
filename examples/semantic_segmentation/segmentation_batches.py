# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""From images and label maps to batches: augmentation for training, the image processor's steps for evaluation."""

import torch
from torchvision import tv_tensors
from torchvision.transforms import v2
from transformers.image_utils import SizeDict

from examples.semantic_segmentation.segmentation_data import read_pair
from modeling_internimage.resizing import target_size


ATTEMPTS_TO_CROP = 10


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


def training_augmentation(image_processor, data_args) -> v2.Transform:
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

    def __init__(self, image_processor, num_labels: int, data_args, is_training: bool):
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
