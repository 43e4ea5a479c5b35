# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""The page "which model for my data": its tables are the recorded ones, and its script trains what it says."""

import json

import pytest
from testing_utils import REPOSITORY

from conversion.checkpoints import find_checkpoint
from examples.choosing_a_model import compare_models
from modeling_internimage import InternImageForImageClassification, create_image_processor


RESULTS = REPOSITORY / "examples" / "results"
PAGE = REPOSITORY / "examples" / "choosing_a_model" / "README.md"


def test_table_of_models_is_the_recorded_one():
    result = json.loads((RESULTS / "models.json").read_text())
    assert compare_models.markdown_table(result) in PAGE.read_text()
    for name, row in result["models"].items():
        assert row["reported_top1"] == find_checkpoint(name).reported["accuracy"]
        # The registry also counts rows that FlashInternImage pads its projections with.
        assert row["num_parameters"] == pytest.approx(find_checkpoint(name).num_parameters, rel=1e-3)


def test_a_model_is_counted():
    name = "internimage_t_1k_224"
    assert compare_models.count(name) == json.loads((RESULTS / "models.json").read_text())["models"][name]


@pytest.mark.slow
def test_table_of_fine_tuning_is_the_recorded_one():
    from examples.choosing_a_model.compare_fine_tuning import markdown_table  # needs PEFT

    assert markdown_table(json.loads((RESULTS / "fine_tuning.json").read_text())) in PAGE.read_text()


@pytest.mark.slow
def test_fine_tuning_trains_what_the_setting_says(tmp_path, tiny_config):
    from examples.choosing_a_model.compare_fine_tuning import train

    InternImageForImageClassification(tiny_config()).save_pretrained(tmp_path / "pretrained")
    create_image_processor(32).save_pretrained(tmp_path / "pretrained")
    settings = ("head", "LoRA", "all weights")
    rows = {setting: train("digits", setting, 0.05, tmp_path, tmp_path / "pretrained") for setting in settings}
    trained = {setting: row["num_trained_parameters"] for setting, row in rows.items()}
    assert trained["head"] < trained["LoRA"] < trained["all weights"] == rows["all weights"]["num_parameters"]
