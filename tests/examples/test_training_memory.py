# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""The table of training memory says what is measured."""

import json

import torch
from testing_utils import REPOSITORY

from examples.training_memory import markdown_table, measure, saved_bytes


RESULT = json.loads((REPOSITORY / "examples" / "results" / "training_memory.json").read_text())


def test_saved_bytes_of_known_modules():
    inputs = torch.ones(8, 4, requires_grad=True)
    assert saved_bytes(torch.nn.Linear(4, 3), inputs) == 8 * 4 * 4  # its input, not its weight
    assert saved_bytes(torch.nn.Sequential(torch.nn.Sigmoid(), torch.nn.Sigmoid()), inputs) == 2 * 8 * 4 * 4


def test_checkpointing_halves_the_activations_of_b():
    activations = {name: measure("B", False, name) for name in (False, True)}
    assert activations[True] <= activations[False] / 2
    recorded = RESULT["models"]["B"]["activations"]
    assert [recorded["reference"], recorded["reference, checkpointing"]] == list(activations.values())


def test_readme_table():
    assert markdown_table(RESULT) in (REPOSITORY / "examples" / "image_classification" / "README.md").read_text()
