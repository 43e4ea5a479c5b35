# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""Publishing the kernel: to a stand-in of the Hub, with a kernel in plain Python in the layout of the compiled one."""

import importlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from hub_stand_in import HubStandIn
from testing_utils import REPOSITORY


KERNEL = REPOSITORY / "hub_kernels" / "dcnv3"
PUBLISH_AND_LOAD = """
import sys
from pathlib import Path
import publish
from huggingface_hub import constants
from kernels import get_kernel

upload = publish.lay_out(Path(sys.argv[1]), "someone/dcnv3")
print(publish.check(upload))
print("published", publish.push(upload, "someone/dcnv3", private=False))
kernel = get_kernel("someone/dcnv3", version=1, backend="cpu", trust_remote_code=True)
print("loaded", kernel.__file__, publish.compare_with_reference(kernel.dcnv3, "cpu"))

constants.HF_HUB_USER_AGENT_ORIGIN = None
try:
    get_kernel("someone/dcnv3", version=1, backend="cpu", trust_remote_code=True)
except Exception as error:
    print("without an origin:", error)
"""


@pytest.fixture
def publish(monkeypatch) -> ModuleType:
    monkeypatch.setattr(sys, "path", [str(KERNEL), *sys.path])
    return importlib.import_module("publish")


@pytest.fixture
def root(tmp_path) -> Path:
    """A kernel in the layout of the real one, whose only variant needs no compiler."""
    root = tmp_path / "dcnv3"
    for path in ("build.toml", "CARD.md", "LICENSE", "benchmarks/benchmark.py", "benchmarks/reference_dcnv3.py"):
        (root / path).parent.mkdir(exist_ok=True)
        shutil.copy(KERNEL / path, root / path)
    shutil.copytree(KERNEL / "torch-ext", root / "torch-ext")
    variant = root / "build" / "torch-cpu"
    (variant / "__pycache__").mkdir(parents=True)
    (variant / "__pycache__" / "layers.pyc").write_bytes(b"")
    shutil.copy(KERNEL / "benchmarks" / "reference_dcnv3.py", variant)
    (variant / "__init__.py").write_text("from .reference_dcnv3 import reference_dcnv3 as dcnv3\n")
    metadata = {"name": "dcnv3", "id": "_dcnv3_cpu_0", "version": 1, "license": "Apache-2.0", "python-depends": []}
    metadata |= {"upstream": "https://github.com/OpenGVLab/InternImage", "backend": {"type": "cpu"}}
    (variant / "metadata.json").write_text(json.dumps(metadata))
    return root


@pytest.mark.slow
def test_publish_and_load(root, tmp_path):
    """What was uploaded is what `get_kernel` loads, in a branch of the version; other machines' variants stay."""
    with HubStandIn() as hub:
        hub.files("kernel", "someone/dcnv3")[".gitattributes"] = b""
        others = {"build/torch-stable-abi211-cpu-aarch64-linux/__init__.py": b"", "build/torch-cpu/old.py": b""}
        hub.files("kernel", "someone/dcnv3", "v1").update(others)
        environment = hub.environment(tmp_path / "cache") | {"PYTHONPATH": str(KERNEL)}
        process = subprocess.run(
            [sys.executable, "-c", PUBLISH_AND_LOAD, str(root)],
            env=os.environ | environment, capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        assert process.returncode == 0, process.stderr
        # If this fails, `kernels` is mended: HF_HUB_USER_AGENT_ORIGIN can leave `HubStandIn` and the README.
        assert "without an origin: Illegal header value b'kernels/" in process.stdout
        assert "torch-cpu': 'loads, within" in process.stdout
        assert f"loaded {tmp_path / 'cache'}" in process.stdout and "build/torch-cpu/__init__.py 0.0" in process.stdout
        files = hub.files("kernel", "someone/dcnv3", "v1")
        assert files.keys() == {
            "build/torch-stable-abi211-cpu-aarch64-linux/__init__.py",
            *(f"build/torch-cpu/{name}" for name in ("__init__.py", "metadata.json", "reference_dcnv3.py")),
            "benchmarks/benchmark.py", "benchmarks/reference_dcnv3.py", "LICENSE",
        }  # fmt: skip
        assert hub.files("kernel", "someone/dcnv3").keys() == {".gitattributes", "README.md"}


def test_card(publish, root):
    """Everything in the template is filled in; the repository is the one that is named."""
    card = publish.lay_out(root, "someone/fast-dcnv3").card
    assert card.startswith("---\nlibrary_name: kernels\nlicense: apache-2.0\ntags:\n")
    assert 'get_kernel("someone/fast-dcnv3", version=1)' in card and "- `dcnv3`\n" in card
    assert "{{" not in card and "{%" not in card


def test_wrong_results_are_not_published(publish, root):
    code = (
        "from .reference_dcnv3 import reference_dcnv3\ndef dcnv3(*a, **k): return 1.001 * reference_dcnv3(*a, **k)\n"
    )
    (root / "build" / "torch-cpu" / "__init__.py").write_text(code)
    with pytest.raises(publish.BuildError, match="torch-cpu differs from the reference by 1.0e-03"):
        publish.check(publish.lay_out(root, "someone/dcnv3"))


def test_old_variants_are_not_published(publish, root):
    metadata = root / "build" / "torch-cpu" / "metadata.json"
    metadata.write_text(metadata.read_text().replace('"version": 1', '"version": 2'))
    with pytest.raises(publish.BuildError, match="is of version 2, build.toml of 1: build it again"):
        publish.lay_out(root, "someone/dcnv3")
    shutil.rmtree(root / "build" / "torch-cpu")
    with pytest.raises(publish.BuildError, match="has no variant"):
        publish.lay_out(root, "someone/dcnv3")


def test_without_network(publish, root):
    """(The tests run with `HF_HUB_OFFLINE`.)"""
    upload = publish.lay_out(root, "someone/dcnv3")
    with pytest.raises(publish.BuildError, match="Nothing was published as someone/dcnv3, is there a network"):
        publish.push(upload, "someone/dcnv3", private=False)
