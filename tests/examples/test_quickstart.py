# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""The notebook: every cell runs, and its stored outputs are those of its present cells."""

import json
import os
import sys

import pytest
from testing_utils import REPOSITORY


FILE = REPOSITORY / "examples" / "quickstart.ipynb"


def kinds(cells: list) -> list:
    """The kinds of the outputs of every code cell, and what their numbers are: they differ between processors."""
    return [[sorted(output.get("data", {"text": None})) for output in cell["outputs"]] for cell in cells]


def code_cells(notebook) -> list:
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def test_stored_notebook_is_small_and_complete():
    assert FILE.stat().st_size < 300_000
    cells = code_cells(json.loads(FILE.read_text()))
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))  # run once, in order
    assert not any("error" in output["output_type"] for cell in cells for output in cell["outputs"])


@pytest.mark.slow
def test_notebook_runs(tmp_path, monkeypatch):
    from examples.refresh_quickstart import execute, private_parts

    # The kernel is the Python of the tests, whatever is installed as "python3" elsewhere.
    monkeypatch.setenv("PATH", f"{os.path.dirname(sys.executable)}{os.pathsep}{os.environ['PATH']}")
    notebook = execute(FILE, FILE.parent)
    stored = code_cells(json.loads(FILE.read_text()))
    assert kinds(code_cells(notebook)) == kinds(stored)
    assert not private_parts(notebook)
    text = "\n".join(output.get("text", "") for cell in code_cells(notebook) for output in cell["outputs"])
    assert "as in PyTorch within 1e-4: True" in text
