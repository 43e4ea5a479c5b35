# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""The table of memory says what is measured."""

import json

import pytest
import torch
from testing_utils import REPOSITORY

from examples.benchmark.measuring import peak_memory_mib
from examples.inference_memory import markdown_table, measure
from modeling_internimage import SegformerHeadConfig, SegformerHeadForSemanticSegmentation


RESULTS = {
    task: json.loads((REPOSITORY / "examples" / "results" / f"{task}_memory.json").read_text())
    for task in ("segmentation", "detection")
}


@pytest.mark.parametrize(
    "task, folder", [("segmentation", "semantic_segmentation"), ("detection", "object_detection")]
)
def test_readme_table(task, folder):
    assert markdown_table(RESULTS[task]) in (REPOSITORY / "examples" / folder / "README.md").read_text()


@pytest.mark.slow
@pytest.mark.parametrize(
    "task, name",
    [("segmentation", "upernet_internimage_t_512_160k_ade20k"), ("detection", "mask_rcnn_internimage_t_fpn_1x_coco")],
)
def test_measured_again(task, name):
    expected = RESULTS[task]["models"][name]["peak_mib"]["float32"]
    assert measure(name, torch.float32, False) == pytest.approx(expected, rel=0.02)


def test_a_third_layer_does_not_change_the_peak(tiny_config):
    """Where the backbone has the peak. A second one does: beside its input there is still the stage's."""

    def peak(depth: int) -> float:
        stages = ["stage1", "stage2", "stage3", "stage4"]
        backbone_config = tiny_config(embed_dim=32, depths=[depth] * 4, out_features=stages)
        config = SegformerHeadConfig(backbone_config=backbone_config, hidden_size=8, num_labels=2)
        model = SegformerHeadForSemanticSegmentation(config).eval()
        with torch.inference_mode():
            return peak_memory_mib(lambda: model(torch.zeros(1, 3, 256, 256)), "cpu")

    one, two, three, five = map(peak, (1, 2, 3, 5))
    assert two == three == five
    assert two - one == pytest.approx(32 * 64 * 64 * 4 / 2**20)
