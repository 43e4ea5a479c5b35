# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""mIoU, mAcc and aAcc as mmsegmentation defines them, from one confusion matrix over all images."""

import logging

import torch


logger = logging.getLogger(__name__)

NAMED = 10  # values or classes in a message


def confusion_matrix(
    predictions: torch.Tensor, labels: torch.Tensor, num_labels: int, ignore_index: int = 255
) -> torch.Tensor:
    """
    Counts of pixels. The matrices of several images can be added. (`evaluate` keeps all predictions in memory,
    scikit-learn counts on the CPU only.)

    Args:
        predictions, labels (`torch.Tensor` of the same shape, usually `(height, width)`):
            Class indices in `[0, num_labels)`; pixels whose label is `ignore_index` do not count.

    Returns:
        `torch.Tensor` of shape `(num_labels, num_labels)`, int64: one row for each label, one column for each
        prediction.
    """
    counted = labels != ignore_index
    pairs = num_labels * labels[counted].long() + predictions[counted].long()
    return torch.bincount(pairs, minlength=num_labels**2).reshape(num_labels, num_labels)


def segmentation_metrics(matrix: torch.Tensor) -> dict:
    """
    Args:
        matrix (`torch.Tensor` of shape `(num_labels, num_labels)`):
            Of [`confusion_matrix`].

    Returns:
        `dict` of fractions: `mean_iou` and `mean_accuracy` over the classes for which they are defined,
        `overall_accuracy` of all pixels, and the float64 tensors `per_category_iou` and `per_category_accuracy` of
        shape `(num_labels,)`. The accuracy of a class without a labelled pixel is NaN and does not count; its IoU is
        0 if it is predicted somewhere and else NaN. Without any labelled pixel, everything is NaN.
    """
    matrix = matrix.double().cpu()
    hits, labelled, predicted = matrix.diag(), matrix.sum(dim=1), matrix.sum(dim=0)
    iou = hits / (labelled + predicted - hits)
    accuracy = hits / labelled
    return {
        "mean_iou": iou.nanmean().item(),
        "mean_accuracy": accuracy.nanmean().item(),
        "overall_accuracy": (hits.sum() / labelled.sum()).item(),
        "per_category_iou": iou,
        "per_category_accuracy": accuracy,
    }


def listing(values: list) -> str:
    """The first values, for a message."""
    return ", ".join(map(str, values[:NAMED])) + (", ..." if len(values) > NAMED else "")


def warn_of_absent_classes(matrix: torch.Tensor, id2label: dict[int, str]):
    """Log which classes have no labelled pixel in a confusion matrix (num_labels, num_labels)."""
    absent = [id2label[idx] for idx, count in enumerate(matrix.sum(dim=1).tolist()) if count == 0]
    if absent:
        logger.warning(
            f"{len(absent)} of {len(matrix)} classes have no labelled pixel in the evaluation: {listing(absent)}."
        )


class StreamedMetrics:
    """`compute_metrics` of a Trainer with `batch_eval_metrics`: adds up confusion matrices, keeps no predictions."""

    def __init__(self, id2label: dict[int, str]):
        self.id2label = id2label
        self.matrix = 0

    def __call__(self, result, compute_result: bool = True) -> dict[str, float]:
        """`result.predictions`: matrices (batch_size, num_labels, num_labels)."""
        self.matrix = self.matrix + result.predictions.sum(dim=0)
        if not compute_result:
            return {}
        metrics = segmentation_metrics(self.matrix)
        warn_of_absent_classes(self.matrix, self.id2label)
        self.matrix = 0
        return {name: value for name, value in metrics.items() if isinstance(value, float)}
