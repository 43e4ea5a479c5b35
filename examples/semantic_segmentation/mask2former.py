# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""What Mask2Former needs to learn semantic segmentation: a mask for each class of an image, and its loss."""

import torch
from accelerate import PartialState
from accelerate.utils import reduce
from transformers import Mask2FormerForUniversalSegmentation
from transformers.models.mask2former.modeling_mask2former import Mask2FormerLoss


def class_masks(labels: torch.Tensor, ignore_index: int) -> dict[str, list[torch.Tensor]]:
    """
    Masks of the classes in each image. Ignored pixels are in no mask.

    Args:
        labels (`torch.Tensor` of shape `(batch_size, height, width)`):
            Class indices or `ignore_index`.

    Returns:
        `dict` with arguments of Mask2Former, lists with a tensor for each image: `mask_labels` (n, height, width) of
        float32 and `class_labels` (n,) of int64, for the n classes in it.
    """
    class_labels = [image[image != ignore_index].unique() for image in labels]
    mask_labels = [(image == classes[:, None, None]).float() for image, classes in zip(labels, class_labels)]
    return {"mask_labels": mask_labels, "class_labels": class_labels}


class Mask2FormerLossOfAllProcesses(Mask2FormerLoss):
    """
    Divides the losses of masks by the number of masks in a process, averaged over the processes, as the original.
    transformers (5.22) divides this average by the number of processes once more, because `accelerate.utils.reduce`
    returns the mean, not the sum: on 16 GPUs these losses are up to 16 times too large.
    """

    def get_num_masks(self, class_labels: list[torch.Tensor], device: torch.device) -> torch.Tensor:
        num_masks = torch.tensor(float(sum(map(len, class_labels))), device=device)
        if PartialState().num_processes > 1:
            num_masks = reduce(num_masks, "mean")
        return num_masks.clamp(min=1)


def correct_loss(model: Mask2FormerForUniversalSegmentation):
    """Give the model [`Mask2FormerLossOfAllProcesses`]. Weights and checkpoints stay as they are."""
    model.criterion = Mask2FormerLossOfAllProcesses(model.config, model.weight_dict)
