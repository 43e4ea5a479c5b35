# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""Non-maximum suppression as one operator of PyTorch, with as many outputs as inputs: graphs of any image hold it."""

import torch
from transformers.utils import is_torchvision_available


if is_torchvision_available():
    from torchvision.ops import batched_nms


NAME = "modeling_internimage::non_maximum_suppression"

# Not by `torch.library.custom_op` or `register_fake`, which look up the file of every imported module: that would be a
# quarter of the time of importing this package.
torch.library.define(
    NAME,
    "(Tensor boxes, Tensor scores, float score_threshold, float iou_threshold) -> Tensor",
    tags=torch.Tag.pt2_compliant_tag,
)


def non_maximum_suppression(
    boxes: torch.Tensor, scores: torch.Tensor, score_threshold: float, iou_threshold: float
) -> torch.Tensor:
    """
    The boxes of each image that overlap no better one of their class.

    Args:
        boxes (`torch.Tensor` of shape `(batch_size, n, num_classes, 4)` or `(batch_size, n, 1, 4)`):
            Left, top, right, bottom, for each class or for all classes.
        scores (`torch.Tensor` of shape `(batch_size, n, num_classes)`):
            At most `score_threshold` for boxes that are not there.
        score_threshold (`float`):
            Smallest score, exclusive.
        iou_threshold (`float`):
            Intersection over union above which the box with the lower score is dropped.

    Returns:
        `torch.Tensor` of shape `(batch_size, n, num_classes)`, bool.
    """
    return torch.ops.modeling_internimage.non_maximum_suppression(boxes, scores, score_threshold, iou_threshold)


@torch.library.impl(NAME, "default")
def _kept(boxes, scores, score_threshold, iou_threshold):
    kept = torch.zeros_like(scores, dtype=torch.bool)
    for own_kept, own_boxes, own_scores in zip(kept, boxes.expand(-1, -1, scores.shape[2], -1), scores):
        row, label = (own_scores > score_threshold).nonzero(as_tuple=True)
        # `batched_nms` moves the boxes of each class to another place, where float32 would round them.
        dtype = scores.dtype if scores.device.type == "mps" else torch.float64  # which that device lacks
        best = batched_nms(own_boxes[row, label].to(dtype), own_scores[row, label].to(dtype), label, iou_threshold)
        own_kept[row[best], label[best]] = True
    return kept


@torch.library.impl(NAME, "meta")
def _kept_without_data(boxes, scores, score_threshold, iou_threshold):
    return torch.empty_like(scores, dtype=torch.bool)
