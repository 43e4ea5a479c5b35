# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""What the image processors of all detectors share."""

import math
import operator
import reprlib

import numpy as np
import torch
from transformers.image_processing_base import BatchFeature
from transformers.image_transforms import center_to_corners_format, corners_to_center_format
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, PILImageResampling, SizeDict
from transformers.processing_utils import ImagesKwargs

from ..coco_annotations import check_annotation, check_segmentation, decode_mask
from ..images import EightBitImages
from ..resizing import resize_bilinear, target_size


class DetectionImageProcessorKwargs(ImagesKwargs, total=False):
    r"""
    size_divisor (`int`, *optional*, defaults to 32):
        Pad height and width of a batch to multiples of this number.
    category_ids (`list[int]`, *optional*):
        Ids of the categories in annotations, in the order of the classes of the model. Without it an id is a class
        index.
    """

    size_divisor: int
    category_ids: list[int] | None


class DetectionProcessing(EightBitImages):
    """Preprocessing and labels, for both backends of every detector's image processor."""

    valid_kwargs = DetectionImageProcessorKwargs
    model_input_names = ["pixel_values", "pixel_mask"]
    resample = PILImageResampling.BILINEAR
    image_mean = IMAGENET_DEFAULT_MEAN
    image_std = IMAGENET_DEFAULT_STD
    size = {"shortest_edge": 800, "longest_edge": 1333}
    default_to_square = False
    do_convert_rgb = True
    do_resize = True
    do_rescale = True
    do_normalize = True
    do_pad = True
    size_divisor = 32
    category_ids = None

    def preprocess(self, images, annotations=None, return_segmentation_masks: bool = False, **kwargs) -> BatchFeature:
        """
        Args:
            images:
                One or more, of any sizes.
            annotations (`dict` or `list[dict]`, *optional*):
                For each image, as in files of COCO, `image_id` (a number) and `annotations`: dictionaries with `bbox`
                (left, top, width, height in pixels), `category_id` and, for masks, `segmentation` (polygons or run
                lengths). Boxes are cut at the border of the image. Crowds, boxes of less than a pixel and what has
                `ignore` are left out, as in the original: where they are, background is learned.
            return_segmentation_masks (`bool`, *optional*, defaults to `False`):
                Whether labels get the masks of the annotations.

        Returns:
            [`BatchFeature`]: `pixel_values`, `pixel_mask` and, with annotations, `labels` as the
            model takes them, with `image_id`, `orig_size` and `size` (height, width).
        """
        return super().preprocess(images, annotations, return_segmentation_masks, **kwargs)

    def _preprocess(
        self,
        images,
        annotations,
        return_segmentation_masks,
        do_resize,
        size,
        do_pad,
        pad_size,
        size_divisor,
        category_ids,
        return_tensors,
        **kwargs,
    ):
        annotations = [annotations] if isinstance(annotations, dict) else annotations
        if annotations is not None and len(annotations) != len(images):
            raise ValueError(
                f"`annotations` must have an entry for each of the {len(images)} images: {len(annotations)}."
            )
        original_sizes = [image.shape[-2:] for image in images]
        if do_resize:
            images = [_resize(image, size) for image in images]
        sizes = [image.shape[-2:] for image in images]
        if do_pad and pad_size is None:
            pad_size = SizeDict(
                **{
                    name: math.ceil(max(sides) / size_divisor) * size_divisor
                    for name, sides in zip(("height", "width"), zip(*sizes))
                }
            )
        kwargs |= {"size": size, "do_pad": do_pad, "pad_size": pad_size, "return_tensors": return_tensors}
        batch = super()._preprocess(images, do_resize=False, **kwargs)
        if do_pad:
            masks = np.zeros((len(sizes), pad_size.height, pad_size.width), dtype=np.int64)
            for mask, (height, width) in zip(masks, sizes):
                mask[:height, :width] = 1
            batch.update(BatchFeature({"pixel_mask": list(masks)}, tensor_type=return_tensors))
        if annotations is not None:
            batch["labels"] = [
                BatchFeature(
                    _labels(annotation, original_size, size, category_ids, return_segmentation_masks),
                    tensor_type=return_tensors,
                )
                for annotation, original_size, size in zip(annotations, original_sizes, sizes)
            ]
        return batch


def boxes_in_pixels(pred_boxes: torch.Tensor, target_sizes: torch.Tensor | list | None) -> torch.Tensor:
    """
    Boxes of a model (centre, width and height, relative to the image) as left, top, right and bottom in pixels,
    clipped to the image.

    Args:
        pred_boxes (`torch.Tensor` of shape `(batch_size, n, 4)`):
            Output of the model.
        target_sizes (`torch.Tensor` of shape `(batch_size, 2)` or a list of tuples or tensors, *optional*):
            Height and width of each image. Without it the corners are relative to the image, too.

    Returns:
        `torch.Tensor` of shape `(batch_size, n, 4)`.
    """
    boxes = center_to_corners_format(pred_boxes).clamp(0, 1)
    if target_sizes is None:
        return boxes
    sizes = [torch.as_tensor(size, device=boxes.device, dtype=boxes.dtype) for size in target_sizes]
    sizes = torch.stack(sizes) if sizes else boxes.new_zeros(0, 2)
    if sizes.shape != (len(boxes), 2):
        raise ValueError(
            f"`target_sizes` must have a height and a width for each of the {len(boxes)} images, got shape "
            f"{tuple(sizes.shape)}."
        )
    return boxes * sizes.flip(1).repeat(1, 2)[:, None]


def _resize(image, size: SizeDict):
    """A tensor or array (channels, height, width) at the processor's size."""
    height, width = target_size(image.shape[-2], image.shape[-1], size)
    if isinstance(image, np.ndarray):
        return resize_bilinear(torch.from_numpy(np.ascontiguousarray(image)), height, width).numpy()
    return resize_bilinear(image, height, width)


def _labels(
    annotation: dict, original_size: tuple[int, int], size: tuple[int, int], category_ids, with_masks: bool
) -> dict[str, torch.Tensor]:
    """Annotations of an image in the format of COCO -> labels of the model."""
    if "image_id" not in annotation or not isinstance(annotation.get("annotations"), list | tuple):
        raise ValueError(
            "`annotations` must be dictionaries with `image_id` and `annotations`, a list, as in files of COCO, got "
            f"{reprlib.repr(annotation)}."
        )
    try:
        image_id = operator.index(annotation["image_id"])
    except TypeError as error:
        raise ValueError(
            f"`image_id` must be a whole number, got {annotation['image_id']!r}. Give the images numbers, such as "
            "their positions in a list of the names."
        ) from error
    height, width = original_size
    class_of = None if category_ids is None else {category: idx for idx, category in enumerate(category_ids)}
    boxes, classes, masks = [], [], []
    for entry in annotation["annotations"]:
        entry = check_annotation(entry, image_id)
        left, top, box_width, box_height = entry["bbox"]
        corners = (max(left, 0), max(top, 0), min(left + box_width, width), min(top + box_height, height))
        inside = corners[2] > corners[0] and corners[3] > corners[1]
        is_object = not (entry["iscrowd"] or entry["ignore"])
        if not is_object or not inside or box_width < 1 or box_height < 1 or entry.get("area", 1) <= 0:
            continue
        category = entry["category_id"]
        if class_of is not None and category not in class_of:
            raise ValueError(
                f"Image {image_id} has an annotation of category {category!r}, which is not in "
                "`category_ids`. Add it there, or leave the annotation out."
            )
        boxes.append(corners)
        classes.append(category if class_of is None else class_of[category])
        if with_masks:
            masks.append(decode_mask(check_segmentation(entry, image_id, height, width), height, width))
    boxes = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    labels = {
        "image_id": torch.tensor([image_id]),
        "class_labels": torch.tensor(classes, dtype=torch.int64),
        "boxes": corners_to_center_format(boxes / torch.tensor([width, height, width, height])),
        "orig_size": torch.tensor(tuple(original_size)),
        "size": torch.tensor(tuple(size)),
    }
    if with_masks:
        masks = torch.from_numpy(np.array(masks, dtype=np.uint8).reshape(-1, 1, height, width))
        if len(masks):  # the nearest pixels
            masks = torch.nn.functional.interpolate(masks, size=tuple(size))
        else:
            masks = masks.new_zeros((0, 1, *size))
        labels["masks"] = masks[:, 0] > 0
    return labels
