# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest


ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "benchmarks"))  # reference_dcnv3

# Before anything imports huggingface_hub, which reads it once. Nothing here needs the network.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["LOCAL_KERNELS"] = f"kernels-community/dcnv3={ROOT}"

import torch  # noqa: E402


def pytest_configure(config):
    config.addinivalue_line("markers", "kernels_ci: the fast subset that kernel-builder's continuous integration runs")


@pytest.fixture(scope="session")
def build():
    """A function that brings the variant of a backend up to date, or skips where its compiler is missing."""
    done = set()

    def build(backend):
        compiler = {"cpu": "g++", "cuda": "nvcc"}[backend]
        if backend in done:
            return
        if shutil.which(compiler):
            command = [sys.executable, ROOT / "local_build.py", "--backend", backend]
            result = subprocess.run(command, capture_output=True, text=True)
            assert result.returncode == 0, result.stdout + result.stderr
        elif not list((ROOT / "build").glob("*-cpu-*" if backend == "cpu" else "*-cu*")):
            pytest.skip(f"no build, and no {compiler} to make one")
        done.add(backend)

    return build


def pytest_report_header(config):
    return None if torch.cuda.is_available() else "no CUDA device: nothing runs on a GPU"


@pytest.fixture(
    scope="session",
    params=["cpu"] + [pytest.param("cuda", marks=pytest.mark.kernels_ci)] * torch.cuda.is_available(),
)
def device(request):
    return request.param


@pytest.fixture(scope="session")
def kernel(device, build):
    """As `kernels` loads it: the CPU variant for a CPU (test_build.py uses the other one for CPU tensors, too)."""
    from kernels import get_kernel

    build(device)
    return get_kernel("kernels-community/dcnv3", version=1, backend=device)
