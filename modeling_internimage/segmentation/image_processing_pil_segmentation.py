# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""Image processors of the official segmentation models."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from transformers import Mask2FormerImageProcessorPil, SegformerImageProcessorPil
from transformers.modeling_outputs import SemanticSegmenterOutput
from transformers.processing_utils import ImagesKwargs

from ..images import EightBitImages
from ..resizing import resize_bilinear, target_size


class InternImageSegmentationImageProcessorKwargs(ImagesKwargs, total=False):
    r"""
    size_divisor (`int`, *optional*):
        Resize a second time, to the next multiples of this number. (Nothing is padded.)
    do_reduce_labels (`bool`, *optional*):
        Segmentation maps have 0 for unlabelled pixels: it becomes 255, and all other values one less.
    window_size (`dict[str, int]`, *optional*):
        `height` and `width` of the windows that [`segment_image`] moves over an image. `None`: the whole image.
    window_stride (`dict[str, int]`, *optional*):
        `height` and `width` of its steps. `None`: those of the windows, which then lie side by side.
    """

    size_divisor: int | None
    do_reduce_labels: bool
    window_size: dict[str, int] | None
    window_stride: dict[str, int] | None


class InternImageSegmentationProcessing(EightBitImages):
    """The code of both backends, on top of the image processor of SegFormer."""

    valid_kwargs = InternImageSegmentationImageProcessorKwargs
    size = {"shortest_edge": 512, "longest_edge": 2048}
    default_to_square = False
    do_convert_rgb = True
    size_divisor = None
    window_size = None
    window_stride = None

    def _preprocess(self, images, do_resize, size, resample, size_divisor=None, **kwargs):
        if do_resize:
            name = str(getattr(resample, "name", resample)).lower()  # of PIL or torchvision, or PIL's number
            is_map = name in ("nearest", "nearest_exact", "0")
            if not is_map and name not in ("bilinear", "2", "none"):
                raise ValueError(
                    f"`resample` must be bilinear, as in the original: got {resample}. Resize the images yourself and "
                    "pass `do_resize=False`."
                )
            images = [_resize(image, size, size_divisor, is_map) for image in images]
        return super()._preprocess(images, do_resize=False, size=size, resample=resample, **kwargs)

    def post_process_semantic_segmentation(
        self, outputs, target_sizes: list[tuple[int, int]] | None = None, return_segmentation_scores: bool = False
    ):
        """
        Class of every pixel, in the order of operations of the original: scores at the size of the input, resized to
        `target_sizes`, then the largest. (transformers' own post-processing of Mask2Former resizes the masks to
        384x384 pixels first, which gives slightly different maps.)

        Args:
            outputs:
                Of a semantic segmentation model (`logits`) or of Mask2Former (`class_queries_logits` and
                `masks_queries_logits`).
            target_sizes (`list[tuple[int, int]]`, *optional*):
                Height and width for each image, usually of the original. Defaults to the size of the logits,
                for Mask2Former to 4 times that of its masks.
            return_segmentation_scores (`bool`, *optional*, defaults to `False`):
                Return for each image an output with `segmentation` and `segmentation_scores` (num_labels, height,
                width): logits, or Mask2Former's sums of probabilities.

        Returns:
            `list[torch.Tensor]`: a map (height, width) of class indices for each image.
        """
        outputs = SemanticSegmenterOutput(logits=semantic_scores(outputs))
        return super().post_process_semantic_segmentation(outputs, target_sizes, return_segmentation_scores)


class Mask2FormerProcessing(InternImageSegmentationProcessing):
    """Also instance and panoptic segmentation, for Mask2Former only: the code of transformers' image processor."""

    post_process_instance_segmentation = Mask2FormerImageProcessorPil.post_process_instance_segmentation
    post_process_panoptic_segmentation = Mask2FormerImageProcessorPil.post_process_panoptic_segmentation


def semantic_scores(outputs, size: Sequence[int] | None = None) -> torch.Tensor:
    """
    (batch_size, num_labels, height, width): the logits of a semantic segmentation model; for Mask2Former, over all
    queries, the sum of class probability times mask probability (`semantic_inference` of its paper's code), taken at a
    quarter of the size and then enlarged.

    Args:
        outputs:
            The output of the model.
        size (`Sequence[int]`, *optional*):
            Height and width of the model's input, to which the scores are resized. Defaults to the size of the logits,
            or 4 times that of Mask2Former's masks: the next multiple of 4.
    """
    if "class_queries_logits" not in outputs:
        scores = outputs.logits
    else:
        # float32, because these are sums over 200 queries.
        classes = outputs.class_queries_logits.float().softmax(dim=-1)[..., :-1]  # the last stands for no object
        masks = outputs.masks_queries_logits.float().sigmoid()
        scores = torch.einsum("bqc,bqhw->bchw", classes, masks)
        size = size or (4 * masks.shape[-2], 4 * masks.shape[-1])
    if size is None or tuple(scores.shape[-2:]) == tuple(size):
        return scores
    return torch.nn.functional.interpolate(scores, size=tuple(size), mode="bilinear", align_corners=False)


def _resize(image, size, size_divisor: int | None, is_map: bool):
    """A tensor or array (channels, height, width) at the processor's size."""
    is_array = isinstance(image, np.ndarray)
    if is_array:
        image = torch.from_numpy(np.ascontiguousarray(image))
    height, width = target_size(image.shape[-2], image.shape[-1], size)
    sizes = [(height, width)]
    if size_divisor is not None:
        sizes.append((math.ceil(height / size_divisor) * size_divisor, math.ceil(width / size_divisor) * size_divisor))
    if is_map:
        # In floating point, which has nearest neighbours and holds every class index.
        resized = torch.nn.functional.interpolate(image[None].double(), size=sizes[-1], mode="nearest-exact")[0]
        image = resized.to(image.dtype)
    else:
        for height, width in sizes:
            image = resize_bilinear(image, height, width)
    return image.numpy() if is_array else image


class InternImageSegmentationImageProcessorPil(InternImageSegmentationProcessing, SegformerImageProcessorPil):
    """As [`InternImageSegmentationImageProcessor`], without torchvision."""


class InternImageMask2FormerImageProcessorPil(Mask2FormerProcessing, SegformerImageProcessorPil):
    """As [`InternImageMask2FormerImageProcessor`], without torchvision."""
