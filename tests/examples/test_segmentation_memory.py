# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""The table of memory says what is measured."""

import json

import pytest
import torch
from conftest import REPOSITORY

from examples.segmentation_memory import markdown_table, measure


RESULT = json.loads((REPOSITORY / "examples" / "results" / "segmentation_memory.json").read_text())


def test_readme_table():
    assert markdown_table(RESULT) in (REPOSITORY / "examples" / "semantic_segmentation" / "README.md").read_text()


def test_measured_again():
    name = "upernet_internimage_t_512_160k_ade20k"
    assert measure(name, torch.float32, False) == pytest.approx(
        RESULT["models"][name]["peak_mib"]["float32"], rel=0.02
    )
