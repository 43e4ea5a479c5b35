# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""
Run `examples/quickstart.ipynb` and keep its outputs, without what changes from run to run.

    python -m examples.refresh_quickstart

Needs nbclient and ipykernel: `pip install ".[recipes,train,vision,export]"`.
"""

import argparse
import re
from pathlib import Path

import nbformat
from nbclient import NotebookClient


NOTEBOOK = Path(__file__).with_name("quickstart.ipynb")


def execute(file: Path, folder: Path) -> nbformat.NotebookNode:
    """
    The notebook in `file` with the outputs of a run in `folder`. Times and the log are left out.

    Raises:
        `nbclient.exceptions.CellExecutionError`: if a cell fails.
    """
    notebook = nbformat.read(file, as_version=4)
    resources = {"metadata": {"path": str(folder)}}
    NotebookClient(notebook, timeout=600, kernel_name="python3", coalesce_streams=True, resources=resources).execute()
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    notebook.metadata = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
    return notebook


def private_parts(notebook: nbformat.NotebookNode) -> set[str]:
    """Absolute paths in the outputs, which would tell about the machine."""
    texts = []
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            texts.append(output.get("text", ""))
            texts += [text for kind, text in output.get("data", {}).items() if kind.startswith("text/")]
    return set(re.findall(r"(?:/(?:home|root|tmp|work|usr|Users)|[A-Z]:\\)[\w/\\.-]*", "\n".join(texts)))


def main():
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    notebook = execute(NOTEBOOK, NOTEBOOK.parent)
    if paths := private_parts(notebook):
        raise SystemExit(f"{NOTEBOOK.name} prints paths of this machine, and was not written: {sorted(paths)}")
    nbformat.write(notebook, NOTEBOOK)
    print(f"Written: {NOTEBOOK.name}, {NOTEBOOK.stat().st_size / 1e3:.0f} KB")


if __name__ == "__main__":
    main()
