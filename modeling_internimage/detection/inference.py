# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""
Detection in several scales and mirrored images, merged by weighted boxes fusion. This is a procedure of this library:
that of the authors' results with test-time augmentation is not published.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn
from transformers.image_utils import ImageInput, get_image_size

from ..multi_scale import load_array, scaled_inputs


@torch.inference_mode()
def detect_objects(
    model: nn.Module,
    image_processor,
    image: ImageInput | str,
    scales: Sequence[float] = (1.0,),
    flip: bool = False,
    threshold: float = 0.0,
    iou_threshold: float = 0.55,
    max_detections: int | None = None,
) -> dict[str, torch.Tensor]:
    """
    Objects in one image. With several scales, or mirrored, the detections of all are merged by [`fuse_boxes`].

    Args:
        model (`nn.Module`):
            A model for object detection.
        image_processor:
            That of the model.
        image (`PIL.Image.Image`, `np.ndarray`, `torch.Tensor` or `str`):
            Of any size up to `PIL.Image.MAX_IMAGE_PIXELS`; a string is a file or a URL.
        scales (`Sequence[float]`, *optional*, defaults to `(1.0,)`):
            Factors on the `size` of the image processor.
        flip (`bool`, *optional*, defaults to `False`):
            Also take the mirror image, for each scale.
        threshold (`float`, *optional*, defaults to 0.0):
            Smallest score of the result, exclusive.
        iou_threshold (`float`, *optional*, defaults to 0.55):
            As for [`fuse_boxes`].
        max_detections (`int`, *optional*):
            Most detections, after they are merged. Defaults to no limit.

    Returns:
        `dict[str, torch.Tensor]`: `scores` (n,), `labels` (n,) and `boxes` (n, 4), left, top, right, bottom in pixels
        of `image`; the best first.

    Raises:
        `ValueError`: for an image that cannot be decoded, scales that are not above 0, and an image processor that
            crops or splits images.

    Example:

    ```python
    >>> import torch
    >>> from modeling_internimage import InternImageConfig, MaskRCNNConfig, MaskRCNNForObjectDetection
    >>> from modeling_internimage import MaskRCNNImageProcessorPil, detect_objects

    >>> backbone = InternImageConfig(embed_dim=16, depths=[1, 1, 1, 1], num_groups=[1, 2, 4, 8])
    >>> model = MaskRCNNForObjectDetection(MaskRCNNConfig(backbone_config=backbone, num_labels=3)).eval()
    >>> image_processor = MaskRCNNImageProcessorPil(size={"shortest_edge": 64, "longest_edge": 106})
    >>> image = torch.randint(0, 256, (3, 50, 70), dtype=torch.uint8)
    >>> list(detect_objects(model, image_processor, image, scales=(1.0, 1.5), flip=True))
    ['scores', 'labels', 'boxes']
    ```"""
    image = load_array(image)
    height, width = get_image_size(image) if image.ndim == 3 else image.shape
    views = []
    for inputs, _, mirrored in scaled_inputs(model, image_processor, image, scales, flip):
        (view,) = image_processor.post_process_object_detection(
            model(**inputs), threshold=0.0, target_sizes=[(height, width)]
        )
        if mirrored:
            left, top, right, bottom = view["boxes"].unbind(1)
            view["boxes"] = torch.stack((width - right, top, width - left, bottom), dim=1)
        views.append({name: view[name] for name in ("scores", "labels", "boxes")})
    result = fuse_boxes(views, iou_threshold) if len(views) > 1 else views[0]
    kept = (result["scores"] > threshold).nonzero()[:max_detections, 0]
    return {name: values[kept] for name, values in result.items()}


def fuse_boxes(views: Sequence[dict[str, torch.Tensor]], iou_threshold: float = 0.55) -> dict[str, torch.Tensor]:
    """
    Weighted boxes fusion (Solovyev, Wang and Gabruseva, 2021) of detections of the same image. The boxes of a class,
    the best first, join the cluster whose box they overlap most, or start a new one. The box of a cluster is the mean
    of its boxes, weighted by their scores. Its score is their sum over the number of views, or over the number of
    boxes if that is larger: a box that few views have counts little.

    Args:
        views (`Sequence[dict[str, torch.Tensor]]`):
            Detections of each view: `scores` (n,), above 0, `labels` (n,) and `boxes` (n, 4), left, top, right, bottom
            in pixels of the image.
        iou_threshold (`float`, *optional*, defaults to 0.55):
            A box joins a cluster if their intersection over union is larger.

    Returns:
        `dict[str, torch.Tensor]`: `scores`, `labels` and `boxes` of the clusters, the best first.
    """
    if len(views) == 0 or not 0 <= iou_threshold < 1:
        raise ValueError(
            "`views` must have the detections of one view or more and `iou_threshold` be from 0 to below 1, got "
            f"{len(views)} and {iou_threshold}."
        )
    joined = {name: torch.cat([view[name] for view in views]) for name in ("scores", "labels", "boxes")}
    order = joined["scores"].argsort(descending=True, stable=True)
    scores, labels, boxes = (values[order].cpu().numpy() for values in joined.values())
    scores, boxes = scores.astype(np.float64), boxes.astype(np.float64)
    fused: dict[str, list] = {"scores": [], "labels": [], "boxes": []}
    for label in np.unique(labels):
        of_class = labels == label
        sums, own_boxes = _cluster(scores[of_class], boxes[of_class], iou_threshold)
        fused["scores"].append(sums[:, 0] / np.maximum(sums[:, 1], len(views)))
        fused["labels"].append(np.full(len(sums), label))
        fused["boxes"].append(own_boxes)
    if not fused["scores"]:
        return joined
    order = np.argsort(-np.concatenate(fused["scores"]), kind="stable")
    return {name: torch.from_numpy(np.concatenate(fused[name])[order]).to(values) for name, values in joined.items()}


def _cluster(scores: np.ndarray, boxes: np.ndarray, iou_threshold: float) -> tuple[np.ndarray, np.ndarray]:
    """Sum of scores and number of boxes (clusters, 2), and box (clusters, 4) of each cluster of one class."""
    sums, weighted, means = np.zeros((len(boxes), 2)), np.zeros_like(boxes), np.zeros_like(boxes)
    number = 0
    for score, box in zip(scores, boxes):
        overlaps = _ious(means[:number], box)
        idx = overlaps.argmax() if number else 0
        if number == 0 or overlaps[idx] <= iou_threshold:
            idx, number = number, number + 1
        sums[idx] += score, 1
        weighted[idx] += score * box
        means[idx] = weighted[idx] / sums[idx, 0]
    return sums[:number], means[:number]


def _ious(boxes: np.ndarray, box: np.ndarray) -> np.ndarray:
    """Intersection over union of each of `boxes` (n, 4) with `box` (4,); 0 without an intersection."""
    sides = np.minimum(boxes[:, 2:], box[2:]) - np.maximum(boxes[:, :2], box[:2])
    intersections = sides.clip(min=0).prod(axis=1)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1) + (box[2:] - box[:2]).prod()
    return intersections / np.maximum(areas - intersections, np.finfo(np.float64).tiny)
