# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""
Training of DINO: matching of queries and objects (`HungarianAssigner` of mmdetection) and the losses (`DINOHead` and
`CBDINOHead` of the original).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn
from transformers.image_transforms import center_to_corners_format, corners_to_center_format
from transformers.utils import is_scipy_available

from .configuration_dino_detr import DinoDetrConfig


if is_scipy_available():
    from scipy.optimize import linear_sum_assignment

if TYPE_CHECKING:
    from .denoising_dino_detr import DenoisingQueries

# The exponent of the focal loss.
FOCAL_GAMMA = 2
# Smallest area that a box, and the hull of two boxes, counts with, in square pixels.
MIN_AREA = 1e-6
# What the number of objects is raised by when losses are divided by it: the resolution of float32.
EPSILON = torch.finfo(torch.float32).eps


def inverse_sigmoid(probabilities: torch.Tensor, eps: float = 1e-3) -> torch.Tensor:
    """
    Logits of `probabilities`, whose numerator and denominator are at least `eps`. (The function of this name in
    transformers has another `eps`.)
    """
    probabilities = probabilities.clamp(0, 1)
    return (probabilities.clamp(min=eps) / (1 - probabilities).clamp(min=eps)).log()


def generalized_iou(boxes: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """
    Generalised intersection over union (https://arxiv.org/abs/1902.09630) of boxes (..., 4), left, top, right, bottom
    in pixels, that broadcast. (torchvision is no requirement of this model, and bounds areas in another way.)
    """

    def area(low, high):
        return (high - low).clamp(min=0).prod(dim=-1)

    intersection = area(
        torch.maximum(boxes[..., :2], targets[..., :2]), torch.minimum(boxes[..., 2:], targets[..., 2:])
    )
    union = (area(boxes[..., :2], boxes[..., 2:]) + area(targets[..., :2], targets[..., 2:]) - intersection).clamp(
        min=MIN_AREA
    )
    hull = area(torch.minimum(boxes[..., :2], targets[..., :2]), torch.maximum(boxes[..., 2:], targets[..., 2:]))
    hull = hull.clamp(min=MIN_AREA)
    return intersection / union - (hull - union) / hull


@torch.no_grad()
def match_queries(
    config: DinoDetrConfig,
    logits: torch.Tensor,
    boxes: torch.Tensor,
    targets: list[dict[str, torch.Tensor]],
    image_sizes: torch.Tensor,
) -> torch.Tensor:
    """
    The object that each query is trained as, at most one query for an object, so that the sum of costs is lowest.

    Args:
        logits (`torch.Tensor` of shape `(num_sets, batch_size, num_queries, num_labels)`), boxes (`torch.Tensor` of
            shape `(num_sets, batch_size, num_queries, 4)`):
            Predictions. The sets (decoder layers, for example) are matched one by one.
        targets (`list[dict[str, torch.Tensor]]`):
            Objects of each image, from [`~modeling_internimage.detection.targets.prepare_targets`].
        image_sizes (`torch.Tensor` of shape `(batch_size, 2)`):
            Height and width of each image without padding.

    Returns:
        `torch.Tensor` of shape `(num_sets, batch_size, num_queries)`: index of the object in its image, -1 for none.
    """
    if not is_scipy_available():
        raise ImportError("`DinoDetrForObjectDetection` needs scipy for training: pip install scipy.")
    costs = []
    for idx, (target, size) in enumerate(zip(targets, image_sizes)):
        limits = size.flip(0).repeat(2)
        probabilities = logits[:, idx][..., target["class_labels"]].sigmoid()  # (num_sets, num_queries, num_objects)
        alpha = config.focal_alpha
        positive = -alpha * (1 - probabilities) ** FOCAL_GAMMA * (probabilities + 1e-12).log()
        negative = -(1 - alpha) * probabilities**FOCAL_GAMMA * (1 - probabilities + 1e-12).log()
        own = boxes[:, idx, :, None]
        target_boxes = corners_to_center_format(target["boxes"] / limits)
        distance = (own - target_boxes).abs().sum(dim=-1)
        overlap = generalized_iou(center_to_corners_format(own) * limits, target["boxes"])
        costs.append(
            config.class_cost * (positive - negative) + config.bbox_cost * distance - config.giou_cost * overlap
        )
    # One copy from the accelerator for all. Predictions that are not finite give a loss that is not finite, no error.
    flat = torch.cat([cost.flatten() for cost in costs]).nan_to_num().cpu().split([cost.numel() for cost in costs])
    matches = torch.full(logits.shape[:3], -1)
    for idx, (own, cost) in enumerate(zip(flat, costs)):
        for set_idx, matrix in enumerate(own.view(cost.shape).numpy()):
            queries, objects = linear_sum_assignment(matrix)
            matches[set_idx, idx, queries] = torch.from_numpy(objects)
    return matches.to(logits.device)


def set_losses(
    config: DinoDetrConfig,
    logits: torch.Tensor,
    boxes: torch.Tensor,
    matches: torch.Tensor,
    targets: list[dict[str, torch.Tensor]],
    image_sizes: torch.Tensor,
    num_objects: torch.Tensor | float,
) -> dict[str, torch.Tensor]:
    """
    Losses of sets of predictions, with their weights, (num_sets,) each: `ce`, focal loss of all queries and classes;
    `bbox`, L1 distance of relative boxes; `giou`, 1 - generalised intersection over union. Each is a sum divided by
    `num_objects`, the number of matched queries, averaged over processes.

    Args:
        logits, boxes, targets, image_sizes:
            As in [`match_queries`].
        matches (`torch.Tensor` of shape `(num_sets or 1, batch_size, num_queries)`):
            Index of the object in its image, -1 for background.
    """
    padded = nn.utils.rnn.pad_sequence
    limits = image_sizes.flip(1).repeat(1, 2)
    # One row more for each image, for background.
    labels = padded([nn.functional.pad(target["class_labels"], (0, 1), value=-1) for target in targets], True, -1)
    corners = padded([nn.functional.pad(target["boxes"], (0, 0, 0, 1)) for target in targets], True)
    matches = matches.expand(logits.shape[:3])
    is_object, objects = matches >= 0, matches.clamp(min=0)
    images = torch.arange(len(targets), device=matches.device)[:, None]
    labels = labels[images, objects].masked_fill(~is_object, -1)
    corners, limits = corners[images, objects], limits[:, None]

    one_hot = (labels[..., None] == torch.arange(logits.shape[-1], device=logits.device)).to(logits.dtype)
    probabilities = logits.sigmoid()
    error = probabilities + one_hot - 2 * probabilities * one_hot  # p for background, 1 - p for the object's class
    alpha = (1 - config.focal_alpha) + one_hot * (2 * config.focal_alpha - 1)
    cross_entropy = nn.functional.binary_cross_entropy_with_logits(logits, one_hot, reduction="none")
    focal = alpha * error**FOCAL_GAMMA * cross_entropy

    distance = (boxes - corners_to_center_format(corners / limits)).abs().sum(dim=-1)
    overlap = generalized_iou(center_to_corners_format(boxes) * limits, corners)
    divisor = num_objects + EPSILON
    return {
        "ce": config.class_loss_coefficient * focal.sum(dim=(1, 2, 3)) / divisor,
        "bbox": config.bbox_loss_coefficient * (distance * is_object).sum(dim=(1, 2)) / divisor,
        "giou": config.giou_loss_coefficient * ((1 - overlap) * is_object).sum(dim=(1, 2)) / divisor,
    }


def dino_detr_losses(
    config: DinoDetrConfig,
    logits: torch.Tensor,
    boxes: torch.Tensor,
    enc_logits: torch.Tensor,
    enc_box_logits: torch.Tensor,
    targets: list[dict[str, torch.Tensor]],
    image_sizes: torch.Tensor,
    denoising: DenoisingQueries | None = None,
    with_assisting: bool = False,
) -> dict[str, torch.Tensor]:
    """
    All losses of [`DinoDetrForObjectDetection`], with the names and weights of [`DinoDetrObjectDetectionOutput`].

    Args:
        logits (`torch.Tensor` of shape `(decoder_layers, batch_size, num_queries, num_labels)`), boxes (`torch.Tensor`
            of shape `(decoder_layers, batch_size, num_queries, 4)`):
            Predictions of the decoder layers, denoising queries first.
        enc_logits (`torch.Tensor` of shape `(batch_size, num_queries, num_labels)`), enc_box_logits (`torch.Tensor` of
            shape `(batch_size, num_queries, 4)`):
            Predictions of the selected positions of the encoder.
        targets, image_sizes:
            As in [`match_queries`].
        denoising (`DenoisingQueries`, *optional*):
            The denoising queries.
        with_assisting (`bool`, *optional*, defaults to `False`):
            Whether the first half of the batch comes from the assisting network of a composite backbone.
    """
    dtype = torch.promote_types(logits.dtype, torch.float32)
    num_denoising = 0 if denoising is None else denoising.num_queries
    matching_logits = torch.cat((logits[:, :, num_denoising:], enc_logits[None])).to(dtype)
    matching_boxes = torch.cat((boxes[:, :, num_denoising:], enc_box_logits.sigmoid()[None])).to(dtype)
    denoising_logits, denoising_boxes = logits[:, :, :num_denoising].to(dtype), boxes[:, :, :num_denoising].to(dtype)
    if not config.auxiliary_loss:
        matching_logits, matching_boxes = matching_logits[-2:], matching_boxes[-2:]
        denoising_logits, denoising_boxes = denoising_logits[-1:], denoising_boxes[-1:]
    num_layers = len(matching_logits) - 1
    suffixes = [f"_{idx}" for idx in range(num_layers - 1)] + [""]

    matches = match_queries(config, matching_logits, matching_boxes, targets, image_sizes)
    halves = {"": slice(None)}
    if with_assisting:
        half = len(targets) // 2
        halves = {"_assisting": slice(half), "": slice(half, None)}
    losses: dict[str, torch.Tensor] = {}
    for name, half in halves.items():
        own = targets[half], image_sizes[half]
        counts = [(matches[0, half] >= 0).sum()]
        if denoising is not None:
            counts.append((denoising.matches[half] >= 0).sum())
        counts = mean_over_processes(torch.stack(counts)).clamp(min=1)
        sets = set_losses(config, matching_logits[:, half], matching_boxes[:, half], matches[:, half], *own, counts[0])
        for kind, values in sets.items():
            names = [f"loss_{kind}{suffix}{name}" for suffix in [*suffixes, "_enc"]]
            losses |= dict(zip(names, values))
        if denoising is None:
            continue
        sets = set_losses(
            config, denoising_logits[:, half], denoising_boxes[:, half], denoising.matches[None, half], *own, counts[1]
        )
        for kind, values in sets.items():
            losses |= dict(zip([f"loss_{kind}_dn{suffix}{name}" for suffix in suffixes], values))
    if with_assisting:
        weight = config.assisting_loss_coefficient
        losses = {name: weight * loss if name.endswith("_assisting") else loss for name, loss in losses.items()}
    return losses


def mean_over_processes(numbers: torch.Tensor) -> torch.Tensor:
    """`numbers`, as floats, averaged over the processes of a distributed training."""
    numbers = numbers.to(torch.float32)
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.all_reduce(numbers)
        numbers = numbers / torch.distributed.get_world_size()
    return numbers
