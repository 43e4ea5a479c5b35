# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""The benchmark of exported models: ratios, agreement with PyTorch, both runtimes on a file."""

import json

import pytest
import torch
from testing_utils import REPOSITORY


for package in ("onnx", "onnxruntime", "openvino"):
    pytest.importorskip(package)

from examples.deployment import benchmark  # noqa: E402


class Clock:
    """Each function says how long it takes."""

    now = 0.0

    def __call__(self):
        return self.now

    def function(self, seconds, logits):
        def run():
            self.now += seconds
            return logits

        return run


def test_ratios():
    clock, logits = Clock(), torch.ones(1, 4)
    seconds = {
        "torch internimage": 4.0, "torch convnext": 2.0, "onnxruntime internimage-deform_conv": 2.0,
        "onnxruntime convnext": 1.5,
    }  # fmt: skip
    functions = {name: clock.function(duration, logits) for name, duration in seconds.items()}
    results = benchmark.measure(functions, 2, 0, clock)
    ours = results["onnxruntime internimage-deform_conv"]
    assert (ours["ms"], ours["speed_over_torch"], ours["speed_over_convnext"]) == (2000, 2.0, 0.75)
    functions["onnxruntime convnext"] = clock.function(1, 1.01 * logits)
    with pytest.raises(SystemExit, match="'onnxruntime convnext' and PyTorch disagree"):
        benchmark.measure(functions, 2, 0, clock)


def test_runtimes(tmp_path):
    """Both compute a file of any batch size."""
    images = torch.randn(3, 3, 32, 32)
    program = torch.onnx.export(
        Mean(), (images,), input_names=["pixel_values"], output_names=["logits"], opset_version=18, dynamo=True,
        dynamic_shapes=({0: "batch_size"},), verbose=False,
    )  # fmt: skip
    program.save(tmp_path / "model.onnx")
    for function in (
        benchmark.onnxruntime_function(tmp_path / "model.onnx", images),
        benchmark.openvino_function(tmp_path / "model.onnx", images, "f32"),
    ):
        torch.testing.assert_close(function(), images.mean(dim=(2, 3)))


def test_table_is_the_recorded_one():
    result = json.loads((REPOSITORY / "examples" / "results" / "deployment_cpu.json").read_text())
    assert benchmark.markdown_table(result) in (REPOSITORY / "examples" / "deployment" / "README.md").read_text()


class Mean(torch.nn.Module):
    def forward(self, pixel_values):
        return pixel_values.mean(dim=(2, 3))
