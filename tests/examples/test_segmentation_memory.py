# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""The table of memory says what is measured."""

import json

import pytest
import torch
from conftest import REPOSITORY

from examples.benchmark import peak_memory_mib
from examples.segmentation_memory import markdown_table, measure
from modeling_internimage import SegformerHeadConfig, SegformerHeadForSemanticSegmentation


RESULT = json.loads((REPOSITORY / "examples" / "results" / "segmentation_memory.json").read_text())


def test_readme_table():
    assert markdown_table(RESULT) in (REPOSITORY / "examples" / "semantic_segmentation" / "README.md").read_text()


def test_measured_again():
    name = "upernet_internimage_t_512_160k_ade20k"
    assert measure(name, torch.float32, False) == pytest.approx(
        RESULT["models"][name]["peak_mib"]["float32"], rel=0.02
    )


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
