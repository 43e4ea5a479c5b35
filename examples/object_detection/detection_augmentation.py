# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""The scales, crops and mirror images of the authors' training pipelines for detectors."""

import torch
from torchvision import tv_tensors
from torchvision.transforms import v2


CROP_SIDES = (384, 600)
SIDES_BEFORE_CROP = [400, 500, 600]


class NoObjectLeftError(Exception):
    """The crop of an image has none of its objects."""


class RandomSizedCrop(v2.Transform):
    """
    A crop whose sides are chosen between `CROP_SIDES`, as far as the image is large enough.

    Args:
        with_objects: Raise a `NoObjectLeftError` if there is no part of a box in the crop.
    """

    def __init__(self, with_objects: bool = False):
        super().__init__()
        self.with_objects = with_objects

    def make_params(self, flat_inputs) -> dict:
        params = {}
        for side, start, size in zip(("height", "width"), ("top", "left"), v2.query_size(flat_inputs)):
            low, high = (min(limit, size) for limit in CROP_SIDES)
            params[side] = torch.randint(low, high + 1, ()).item()
            params[start] = torch.randint(size - params[side] + 1, ()).item()
        if self.with_objects:
            (boxes,) = (inpt for inpt in flat_inputs if isinstance(inpt, tv_tensors.BoundingBoxes))
            cropped = v2.functional.clamp_bounding_boxes(v2.functional.crop(boxes, **params))
            if not (cropped[:, 2:] > cropped[:, :2]).all(dim=1).any():
                raise NoObjectLeftError
        return params

    def transform(self, inpt, params):
        return v2.functional.crop(inpt, **params)


def training_augmentation(image_processor, data_args) -> v2.Transform:
    """
    The steps of the original's training pipelines, for an image and its objects.

    Args:
        image_processor: Its size is the default of the scales.
        data_args (`DataArguments`): Of the training script.
    """
    largest = data_args.max_shortest_edge or image_processor.size["shortest_edge"]
    smallest = largest if data_args.min_shortest_edge is None else data_args.min_shortest_edge
    longest = data_args.train_longest_edge or image_processor.size["longest_edge"]
    if not 0 < smallest <= largest:
        raise ValueError(
            f"`--min_shortest_edge {smallest}` must be above 0 and at most the largest shorter side of images, "
            f"{largest}."
        )
    if data_args.step_of_scales < 1:
        raise ValueError(f"`--step_of_scales {data_args.step_of_scales}` must be at least 1, in pixels.")
    sides = [*range(smallest, largest, data_args.step_of_scales), largest]
    resize = v2.RandomShortestSize(sides, max_size=longest, antialias=False)
    if data_args.random_crop:
        longest_before_crop = None if data_args.crop_with_objects else longest
        smaller = v2.RandomShortestSize(SIDES_BEFORE_CROP, max_size=longest_before_crop, antialias=False)
        crop = RandomSizedCrop(with_objects=data_args.crop_with_objects)
        resize = v2.RandomChoice([resize, v2.Compose([smaller, crop, resize])])
    return v2.Compose(
        [
            resize,
            v2.RandomHorizontalFlip(0.5 if data_args.horizontal_flip else 0.0),
            v2.ClampBoundingBoxes(),
            v2.SanitizeBoundingBoxes(min_size=1.0),
        ]
    )
