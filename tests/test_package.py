# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""What a user gets from the package: its types, its wheel and its source distribution."""

import email
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile

import pytest
from testing_utils import REPOSITORY

import modeling_internimage


@pytest.mark.parametrize("name", modeling_internimage.TORCHVISION_CLASSES)
def test_missing_torchvision(name):
    """Without torchvision these names are not there, and the package says what to do."""
    with pytest.raises(ImportError, match=f"`{name}` needs torchvision.*pip install torchvision.*`{name}Pil`"):
        modeling_internimage.__getattr__(name)
    assert hasattr(modeling_internimage, f"{name}Pil")
    assert not hasattr(modeling_internimage, "Missing")


def test_installed_as_a_path(tmp_path):
    """Type checkers and editors look along paths: they do not run the import hooks of other editable installs."""
    code = "from importlib.machinery import PathFinder; print(PathFinder.find_spec('modeling_internimage').origin)"
    assert subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True).returncode == 0


@pytest.mark.slow
def test_distributions(tmp_path):
    """The wheel holds the package and its command, the source distribution also all that README.md speaks of."""
    clone = tmp_path / "clone"
    ignored = shutil.ignore_patterns(".*", "outputs", "build", "node_modules", "*.egg-info")
    shutil.copytree(REPOSITORY, clone, ignore=ignored)
    for kind in ("bdist_wheel", "sdist"):
        command = [sys.executable, "setup.py", "--quiet", kind, "--dist-dir", tmp_path]
        result = subprocess.run(command, cwd=clone, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
        names = wheel.namelist()
        metadata = email.message_from_bytes(wheel.read(next(name for name in names if name.endswith("/METADATA"))))
        entry_points = wheel.read(next(name for name in names if name.endswith("/entry_points.txt"))).decode()
    assert {name.split("/")[0].split("-")[0] for name in names} == {"modeling_internimage"}
    assert {"modeling_internimage/py.typed", "modeling_internimage/cli/__init__.py"} < set(names)
    assert "internimage = modeling_internimage.cli:main" in entry_points
    assert metadata["License-Expression"] == "Apache-2.0"
    links = re.findall(r"\]\(([^)]+)\)", metadata.get_payload())
    assert links and all(link.startswith(("https://", "#")) for link in links)
    with tarfile.open(next(tmp_path.glob("*.tar.gz"))) as archive:
        folders = {name.split("/")[1] for name in archive.getnames() if "/" in name}
    assert {"conversion", "examples", "hub_kernels", "tests", "constraints.txt", "Makefile"} < folders
