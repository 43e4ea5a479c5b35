# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""Detection in several scales and mirrored images, and how their detections are merged."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from transformers import AutoModelForObjectDetection, pipeline

from modeling_internimage import (
    DinoDetrConfig,
    DinoDetrForObjectDetection,
    DinoDetrImageProcessorPil,
    detect_objects,
    fuse_boxes,
)


def view(scores: list, labels: list, boxes: list) -> dict[str, torch.Tensor]:
    boxes = torch.tensor(boxes, dtype=torch.float64).reshape(-1, 4)
    return {"scores": torch.tensor(scores, dtype=torch.float64), "labels": torch.tensor(labels), "boxes": boxes}


NOTHING = view([], [], [])


def test_weighted_boxes_fusion():
    """The result of ensemble-boxes 1.0.9, computed with `iou_thr=0.55`; three boxes in two views count as three."""
    first = view([0.9, 0.5, 0.3], [0, 1, 0], [[10, 10, 50, 50], [60, 20, 90, 60], [12, 11, 52, 48]])
    second = view(
        [0.8, 0.6, 0.4, 0.7], [0, 1, 1, 2], [[11, 9, 52, 51], [58, 22, 88, 62], [10, 70, 30, 90], [11, 10, 50, 49]]
    )
    result = fuse_boxes([first, second])
    assert result["labels"].tolist() == [0, 1, 2, 1] and result["labels"].dtype == torch.int64
    torch.testing.assert_close(
        result["scores"], torch.tensor([0.666667, 0.55, 0.35, 0.2], dtype=torch.float64), rtol=0, atol=1e-6
    )
    expected = [[10.7, 9.75, 51.1, 50.1], [58.909088, 21.090908, 88.90908, 61.09091], [11, 10, 50, 49]]
    expected = torch.tensor([*expected, [10, 70, 30, 90]], dtype=torch.float64)
    torch.testing.assert_close(result["boxes"], expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize(
    "views, scores",
    [
        ([NOTHING, NOTHING], []),
        ([NOTHING, view([0.8], [3], [[0, 0, 5, 5]])], [0.4]),
        ([view([0.8], [3], [[5, 5, 5, 5]]), view([0.6], [3], [[5, 5, 5, 5]])], [0.4, 0.3]),  # no area
        ([view([0.8, 0.2], [3, 3], [[0, 0, 5, 5]] * 2)], [0.5]),
    ],
    ids=["nothing", "one view", "points", "twice"],
)
def test_fusion_of_few_boxes(views, scores):
    result = fuse_boxes(views)
    assert result["scores"].tolist() == pytest.approx(scores)
    assert result["boxes"].shape == (len(scores), 4) and result["labels"].tolist() == [3] * len(scores)


class BrightRectangle(nn.Module):
    """Finds what is bright, as class 1, but a fortieth of the image too far to the right."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.widths = []

    def forward(self, pixel_values, pixel_mask):
        height, width = pixel_mask[0].sum(dim=0).max(), pixel_mask[0].sum(dim=1).max()
        self.widths.append(width.item())
        rows, columns = (pixel_values[0, 0] > 1).nonzero().unbind(1)
        left, right = columns.min() / width + 0.025, (columns.max() + 1) / width + 0.025
        top, bottom = rows.min() / height, (rows.max() + 1) / height
        box = torch.stack(((left + right) / 2, (top + bottom) / 2, right - left, bottom - top))
        logits = torch.tensor([[[-9.0, 2.0, -8.0, -7.0, -6.0]]])
        return SimpleNamespace(logits=logits, pred_boxes=box[None, None])


@pytest.mark.parametrize(
    "scales, flip, shift, widths",
    [
        ((1.0,), False, 5, [64]),
        ((1.0,), True, 0, [64, 64]),
        ((1.0, 0.5, 2), True, 0, [64, 64, 32, 32, 128, 128]),
        ((1.0, 2), False, 5, [64, 128]),
    ],
)
def test_views_meet_in_the_image(scales, flip, shift, widths):
    """The shift to the right becomes one to the left in mirrored images, whatever the scale and the padding."""
    image = np.zeros((100, 200, 3), np.uint8)
    image[25:75, 50:100] = 255
    model = BrightRectangle()
    image_processor = DinoDetrImageProcessorPil(size={"shortest_edge": 32, "longest_edge": 64}, size_divisor=48)
    result = detect_objects(model, image_processor, Image.fromarray(image), scales, flip, max_detections=3)
    assert model.widths == widths
    assert result["labels"].tolist() == [1, 4, 3]
    box = torch.tensor([50.0 + shift, 25, 100 + shift, 75])
    torch.testing.assert_close(result["boxes"][0], box, rtol=0, atol=1)
    assert result["scores"][0].item() == pytest.approx(torch.tensor(2.0).sigmoid().item())
    result = detect_objects(model, image_processor, image, scales, flip, threshold=0.5)
    assert result["labels"].tolist() == [1]


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"scales": ()}, "`scales` must be one or more factors above 0"),
        ({"scales": (1.0, 0.0)}, "`scales` must be one or more factors above 0"),
        ({"scales": (1.0, float("nan"))}, "`scales` must be one or more factors above 0"),
        ({"flip": True, "iou_threshold": 1.0}, "`iou_threshold` be from 0 to below 1, got 2 and 1.0"),
    ],
)
def test_bad_arguments(arguments, message):
    image = np.full((30, 40, 3), 255, np.uint8)
    with pytest.raises(ValueError, match=message):
        detect_objects(BrightRectangle(), DinoDetrImageProcessorPil(size=32), image, **arguments)


def test_dino_in_a_pipeline(tmp_path, tiny_config):
    """Images of different sizes, one by one; several equal ones in a batch; and the same model in several scales."""
    config = DinoDetrConfig(
        backbone_config=tiny_config(out_features=["stage2", "stage3", "stage4"]),
        d_model=64,
        encoder_layers=1,
        decoder_layers=1,
        num_queries=20,
        num_labels=3,
    )
    DinoDetrForObjectDetection(config).save_pretrained(tmp_path)
    size = {"shortest_edge": 64, "longest_edge": 106}
    DinoDetrImageProcessorPil(size=size, max_detections=30).save_pretrained(tmp_path)
    detector = pipeline("object-detection", model=str(tmp_path))
    random = np.random.default_rng(0)
    images = [Image.fromarray(random.integers(0, 256, (side, 96, 3), np.uint8)) for side in (80, 50)]
    results = detector(images, threshold=0.0)
    assert [len(result) for result in results] == [30, 30]
    for image, result in zip(images, results):
        for box in (found["box"] for found in result):
            assert 0 <= box["xmin"] <= box["xmax"] <= image.width and 0 <= box["ymin"] <= box["ymax"] <= image.height
    scores = pytest.approx([found["score"] for found in results[0]], abs=1e-5)
    for result in detector([images[0]] * 2, threshold=0.0, batch_size=2):
        assert [found["score"] for found in result] == scores
    model = AutoModelForObjectDetection.from_pretrained(tmp_path)
    assert detect_objects(model, detector.image_processor, images[0])["scores"].tolist() == scores
    assert len(detect_objects(model, detector.image_processor, images[0], (1, 2), flip=True)["scores"]) >= 30
