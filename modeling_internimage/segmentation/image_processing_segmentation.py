# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""Image processors of the official segmentation models. With torchvision."""

from transformers import SegformerImageProcessor

from .image_processing_pil_segmentation import InternImageSegmentationProcessing, Mask2FormerProcessing


class InternImageSegmentationImageProcessor(InternImageSegmentationProcessing, SegformerImageProcessor):
    """
    Preprocessing of the official segmentation models (`segmentation/configs` of the original): bilinear resizing
    of bytes as OpenCV does it, keeping the proportions within `size` (`shortest_edge`, `longest_edge`), then to
    multiples of `size_divisor` if given; ImageNet mean and standard deviation. Segmentation maps are resized to
    the same size, taking the nearest pixel.

    Images of a batch must have the same size after resizing; [`segment_image`] takes any.

    Args:
        size (`dict[str, int]`, *optional*, defaults to `{"shortest_edge": 512, "longest_edge": 2048}`):
            Or `height` and `width`.
        size_divisor, do_reduce_labels, window_size, window_stride:
            See [`InternImageSegmentationImageProcessorKwargs`].
    """


class InternImageMask2FormerImageProcessor(Mask2FormerProcessing, SegformerImageProcessor):
    """
    [`InternImageSegmentationImageProcessor`] for Mask2Former, with transformers' `post_process_instance_segmentation`
    and `post_process_panoptic_segmentation`. `pipeline("image-segmentation")` looks for these methods: with this image
    processor, its default is panoptic segmentation, and `subtask` may be "panoptic", "instance" or "semantic".

    It also loads the file of the other class: `InternImageMask2FormerImageProcessor.from_pretrained(folder)`.
    """
