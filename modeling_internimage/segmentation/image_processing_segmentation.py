# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""Image processors of the official segmentation models. With torchvision."""

from transformers import SegformerImageProcessor

from .image_processing_pil_segmentation import InternImageSegmentationProcessing


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
