# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""Non-maximum suppression of the two-stage detectors as `NonMaxSuppression`, a standard operator of ONNX."""

from onnxscript import BOOL, FLOAT
from onnxscript import opset18 as op


def onnx_non_maximum_suppression(boxes: FLOAT, scores: FLOAT, score_threshold: float, iou_threshold: float) -> BOOL:
    """[`~modeling_internimage.mask_rcnn.non_maximum_suppression.non_maximum_suppression`] as nodes of ONNX."""
    scores = op.Transpose(scores, perm=[0, 2, 1])  # (batch_size, num_classes, n)
    shape, number = op.Shape(scores), op.Shape(boxes, start=1, end=2)
    if boxes.shape[2] == 1:
        boxes = op.Squeeze(boxes, [2])  # (batch_size, n, 4)
    else:  # the node has the same boxes for all classes of an image: each class becomes an image of its own
        rest, one, four = (op.Constant(value_ints=[size]) for size in (-1, 1, 4))
        boxes = op.Reshape(op.Transpose(boxes, perm=[0, 2, 1, 3]), op.Concat(rest, number, four, axis=0))
        scores = op.Reshape(scores, op.Concat(rest, one, number, axis=0))
    indices = op.NonMaxSuppression(boxes, scores, number, iou_threshold, score_threshold)  # image, class, box
    kept = op.ScatterND(op.Expand(0.0, op.Shape(scores)), indices, op.Expand(1.0, op.Shape(indices, end=1)))
    return op.Greater(op.Transpose(op.Reshape(kept, shape), perm=[0, 2, 1]), 0.5)
