# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""What of benchmarks/gpu_report.py can be tested without a GPU: its inputs, its plan, and a short run on the CPU."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from gpu.cases import make_tensors
from gpu.tasks import make_tasks
from gpu.timing import benchmark_case


SCRIPT = Path(__file__).parents[1] / "benchmarks" / "gpu_report.py"


@pytest.mark.parametrize("shape", ["56x56x64", "7x7x512"])
def test_offsets_are_as_in_trained_layers(shape):
    case = benchmark_case(SimpleNamespace(device="cpu"), shape)
    offset = make_tensors(case, torch.float32, "cpu")[0][1].detach()
    assert 1 < offset.std() < 2
    assert (offset != offset.round()).all()
    varying = offset - offset.mean(dim=(1, 2), keepdim=True)
    neighbours = (varying[:, :, 1:] * varying[:, :, :-1]).mean() / varying.var()
    assert 0.5 < neighbours < 0.95


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("quick", [True, False], ids=["quick", "full"])
def test_plan(device, quick):
    """No row twice; what matters most comes first and fits the time beside a minute for the build."""
    tasks = make_tasks(SimpleNamespace(device=device, quick=quick, sections=None))
    keys = [task.key for task in tasks]
    assert len(set(keys)) == len(keys)
    last = max(index for index, key in enumerate(keys) if key.startswith(("feature", "latency")))
    assert sum(task.seconds for task in tasks[: last + 1]) < (150 if quick else 330)


def test_run_on_the_cpu(build, tmp_path):
    """A task that is longer than the time left is not started, and the others succeed."""
    build("cpu")
    output = tmp_path / "report.json"
    command = [sys.executable, str(SCRIPT), "--device", "cpu", "--output", str(output), "--minutes", "0.9"]
    result = subprocess.run(
        [*command, "--sections", "model, compiled", "golden"], capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0, result.stdout + result.stderr
    report = json.loads(output.read_text())
    assert list(report["results"]) == ["environment", "load", "golden"]
    assert report["not_run"] == ["model, compiled: InternImage-T, batch 2, float32, inference, torch.compile, 64x64"]
