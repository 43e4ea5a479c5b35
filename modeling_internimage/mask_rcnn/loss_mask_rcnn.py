# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""
Training of the two-stage detectors: assignment of objects to anchors and proposals
(`MaxIoUAssigner` and `RandomSampler` of mmdetection), and the losses.
"""

import torch
from torch import nn
from transformers.utils import is_torchvision_available

from .boxes import decode_boxes, encode_boxes
from .configuration_mask_rcnn import MaskRCNNConfig


if is_torchvision_available():
    from torchvision.ops import box_iou, generalized_box_iou_loss, roi_align

BACKGROUND = -1
IGNORED = -2


def match_boxes(
    boxes: torch.Tensor,
    targets: torch.Tensor,
    positive_iou: float,
    negative_iou: float,
    allow_low_quality_matches: bool,
) -> torch.Tensor:
    """
    The target assigned to each box. (torchvision's `Matcher` is not public and breaks ties differently.)

    Args:
        boxes (`torch.Tensor` of shape `(n, 4)`):
            Anchors or proposals.
        targets (`torch.Tensor` of shape `(m, 4)`):
            Boxes of the objects in the image, without empty ones.
        positive_iou (`float`):
            A box gets the target it overlaps most if their intersection over union is at least that.
        negative_iou (`float`):
            A box that overlaps every target less than that is background. In between, it is ignored.
        allow_low_quality_matches (`bool`):
            Every target also gets the boxes that overlap it most, if that is at least `negative_iou`, whatever else
            they overlap; the last target if there are several.

    Returns:
        `torch.Tensor` of shape `(n,)`: indices of targets, `BACKGROUND` or `IGNORED`.
    """
    if len(targets) == 0 or len(boxes) == 0:
        return torch.full((len(boxes),), BACKGROUND, device=boxes.device)
    overlaps = box_iou(targets, boxes)  # (m, n)
    best, matches = overlaps.max(dim=0)
    matches = torch.where(best >= positive_iou, matches, torch.where(best < negative_iou, BACKGROUND, IGNORED))
    if allow_low_quality_matches:
        best_of_target = overlaps.amax(dim=1, keepdim=True)
        is_best = (overlaps == best_of_target) & (best_of_target >= negative_iou)
        order = torch.arange(1, len(targets) + 1, device=boxes.device)[:, None]
        last = (is_best * order).amax(dim=0) - 1
        matches = torch.where(last >= 0, last, matches)
    return matches


def sample_matches(matches: torch.Tensor, num_samples: int, positive_fraction: float) -> tuple[torch.Tensor, ...]:
    """
    Random positions in `matches` (n,) of objects and of background, together at most `num_samples`, of which objects
    are at most the fraction `positive_fraction`.
    """
    positive = _choose((matches >= 0).nonzero()[:, 0], int(num_samples * positive_fraction))
    negative = _choose((matches == BACKGROUND).nonzero()[:, 0], num_samples - len(positive))
    return positive, negative


def _choose(indices: torch.Tensor, number: int) -> torch.Tensor:
    if len(indices) <= number:
        return indices
    return indices[torch.randperm(len(indices), device=indices.device)[:number]]


def box_loss(predicted: torch.Tensor, targets: torch.Tensor, kind: str, beta: float) -> torch.Tensor:
    """Sum over boxes (n, 4), which are deltas for `"l1"` and `"smooth_l1"`, corners for `"giou"`."""
    if kind == "l1":
        return nn.functional.l1_loss(predicted, targets, reduction="sum")
    if kind == "smooth_l1":
        return nn.functional.smooth_l1_loss(predicted, targets, reduction="sum", beta=beta)
    return generalized_box_iou_loss(predicted, targets, reduction="sum", eps=1e-6)


def rpn_losses(
    config: MaskRCNNConfig,
    logits: torch.Tensor,
    deltas: torch.Tensor,
    anchors: torch.Tensor,
    trained: torch.Tensor,
    targets: list[dict[str, torch.Tensor]],
) -> dict[str, torch.Tensor]:
    """
    Losses of the region proposal network: binary cross-entropy of the sampled anchors and box loss of those assigned
    to an object, both divided by the number of samples.

    Args:
        logits (`torch.Tensor` of shape `(batch_size, num_anchors)`), deltas (`(batch_size, num_anchors, 4)`):
            Predictions of the network.
        anchors (`torch.Tensor` of shape `(num_anchors, 4)`):
            In pixels.
        trained (`torch.Tensor` of shape `(batch_size, num_anchors)`):
            Mask of the anchors that may be sampled.
        targets (`list[dict[str, torch.Tensor]]`):
            Objects of each image, from [`~modeling_internimage.detection.targets.prepare_targets`].
    """
    classification, regression, num_samples = [], [], 0
    for idx, target in enumerate(targets):
        boxes, candidates = target["boxes"], trained[idx].nonzero()[:, 0]
        matches = match_boxes(anchors[candidates], boxes, config.rpn_positive_iou, config.rpn_negative_iou, True)
        positive, negative = sample_matches(matches, config.rpn_num_samples, 0.5)
        num_samples += max(len(positive), 1) + max(len(negative), 1)
        sampled = candidates[torch.cat((positive, negative))]
        is_object = (torch.arange(len(sampled), device=sampled.device) < len(positive)).to(logits.dtype)
        classification.append(
            nn.functional.binary_cross_entropy_with_logits(logits[idx, sampled], is_object, reduction="sum")
        )
        positive_anchors = candidates[positive]
        target_deltas = encode_boxes(anchors[positive_anchors], boxes[matches[positive]], [1.0] * 4)
        regression.append(
            box_loss(deltas[idx, positive_anchors], target_deltas, config.rpn_box_loss, config.rpn_smooth_l1_beta)
        )
    return {
        "loss_rpn_classification": torch.stack(classification).sum() / num_samples,
        "loss_rpn_boxes": torch.stack(regression).sum() / num_samples,
    }


class SampledProposals:
    """
    The proposals that a stage is trained on, from all images of a batch.

    Attributes:
        rois (`torch.Tensor` of shape `(n, 5)`): Index of the image and box.
        labels (`torch.Tensor` of shape `(n,)`): Class index, `num_labels` for background.
        targets (`torch.Tensor` of shape `(n, 4)`): Box of the object, or the proposal itself for background.
        objects (`torch.Tensor` of shape `(n,)`): Index of the object in its image, or `BACKGROUND`.
        is_object_box (`torch.Tensor` of shape `(n,)`): Whether it is the box of an object, added to the proposals.
    """

    def __init__(
        self, config: MaskRCNNConfig, stage: int, proposals: list[torch.Tensor], labels: list[dict[str, torch.Tensor]]
    ):
        rois, classes, targets, objects, added = [], [], [], [], []
        for idx, (boxes, label) in enumerate(zip(proposals, labels)):
            num_objects = len(label["boxes"])
            iou = config.stage_positive_ious[stage]
            matches = match_boxes(boxes, label["boxes"], iou, iou, config.allow_low_quality_matches)
            matches = torch.cat((torch.arange(num_objects, device=matches.device), matches))
            boxes = torch.cat((label["boxes"], boxes))
            positive, negative = sample_matches(matches, config.roi_num_samples, 0.25)
            sampled = torch.cat((positive, negative))
            rois.append(nn.functional.pad(boxes[sampled], (1, 0), value=idx))
            background = boxes.new_full((len(negative),), config.num_labels, dtype=torch.int64)
            classes.append(torch.cat((label["class_labels"][matches[positive]], background)))
            targets.append(torch.cat((label["boxes"][matches[positive]], boxes[negative])))
            objects.append(matches[sampled])
            added.append(sampled < num_objects)
        self.rois, self.labels, self.targets = torch.cat(rois), torch.cat(classes), torch.cat(targets)
        self.objects, self.is_object_box = torch.cat(objects), torch.cat(added)


def box_head_losses(
    config: MaskRCNNConfig, stage: int, sampled: SampledProposals, logits: torch.Tensor, deltas: torch.Tensor
) -> dict[str, torch.Tensor]:
    """
    Losses of a box head: cross-entropy of all sampled proposals and box loss of those assigned to an object, both
    divided by the number of samples.

    Args:
        logits (`torch.Tensor` of shape `(n, num_labels + 1)`):
            Class logits; the last is background.
        deltas (`torch.Tensor` of shape `(n, num_labels or 1, 4)`):
            Box deltas for each class, or for all classes.
    """
    num_samples = max(len(sampled.labels), 1)
    positive = (sampled.objects >= 0).nonzero()[:, 0]
    predicted = deltas_of_class(deltas[positive], sampled.labels[positive])
    boxes, targets, stds = sampled.rois[positive, 1:], sampled.targets[positive], config.bbox_reg_stds[stage]
    if config.box_loss == "giou":
        predicted = decode_boxes(boxes, predicted, stds)
    else:
        targets = encode_boxes(boxes, targets, stds)
    classification = nn.functional.cross_entropy(logits, sampled.labels, reduction="sum")
    regression = box_loss(predicted, targets, config.box_loss, config.smooth_l1_beta)
    return {
        f"loss_classification_{stage}": config.stage_loss_weights[stage] * classification / num_samples,
        f"loss_boxes_{stage}": config.stage_loss_weights[stage] * config.box_loss_weight * regression / num_samples,
    }


def deltas_of_class(deltas: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Deltas (n, 4) for the classes `labels` (n,), from `deltas` (n, num_labels or 1, 4)."""
    if deltas.shape[1] == 1:
        return deltas[:, 0]
    return deltas[torch.arange(labels.shape[0], device=labels.device), labels]


def mask_loss(
    config: MaskRCNNConfig,
    stage: int,
    sampled: SampledProposals,
    logits: torch.Tensor,
    masks: list[torch.Tensor],
) -> dict[str, torch.Tensor]:
    """
    Mean binary cross-entropy of the masks of the sampled objects, for their classes.

    Args:
        logits (`torch.Tensor` of shape `(num_positive, num_labels, mask_height, mask_width)`):
            Mask logits of the proposals assigned to objects, in order.
        masks (`list[torch.Tensor]` of shape `(num_objects, height, width)` each):
            Masks of the objects in each image, in pixels of the model's input.
    """
    positive = sampled.objects >= 0
    labels, rois, objects = sampled.labels[positive], sampled.rois[positive], sampled.objects[positive]
    if len(labels) == 0:
        return {f"loss_masks_{stage}": logits.sum() * 0}
    targets = []
    for idx, own_masks in enumerate(masks):
        own = rois[:, 0] == idx
        if not own.any():
            continue
        own_rois = torch.cat((objects[own, None].to(rois), rois[own, 1:]), dim=1)
        # A cell of the target is 1 if the mask covers half of it, as in the original.
        own_masks = own_masks.to(rois)[:, None]
        targets.append(roi_align(own_masks, own_rois, logits.shape[2:], sampling_ratio=0, aligned=True)[:, 0] >= 0.5)
    predicted = logits[torch.arange(len(labels), device=labels.device), labels]
    loss = nn.functional.binary_cross_entropy_with_logits(predicted, torch.cat(targets).to(logits.dtype))
    return {f"loss_masks_{stage}": config.stage_loss_weights[stage] * loss}
