# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""Image processors of DINO. With torchvision."""

from transformers.image_processing_backends import TorchvisionBackend

from .image_processing_pil_dino_detr import DinoDetrProcessing


class DinoDetrImageProcessor(DinoDetrProcessing, TorchvisionBackend):
    """
    Preprocessing of the official DINO models, which is that of [`MaskRCNNImageProcessor`]: bilinear resizing of bytes
    as OpenCV does it, keeping the proportions within `size` (`shortest_edge`, `longest_edge`); ImageNet mean and
    standard deviation; then zeros at the right and at the bottom, up to the largest image of the batch and a multiple
    of `size_divisor`. Annotations become labels, and outputs of the model detections.

    Args:
        size (`dict[str, int]` or `int`, *optional*, defaults to `{"shortest_edge": 800, "longest_edge": 1333}`):
            Or one of the two edges, with no limit for the other one; a number is `shortest_edge`. Or `height` and
            `width`. The official models on InternImage-H and -G take 1000 and 2000.
        size_divisor, category_ids, max_detections:
            See [`DinoDetrImageProcessorKwargs`].
    """
