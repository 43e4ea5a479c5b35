# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
import json

import pytest
import torch
from testing_utils import randomize, run_module

from examples.multi_camera.camera_features import CameraFeatures
from examples.training import freeze_stages
from modeling_internimage import InternImageBackbone


@pytest.fixture
def backbone(tiny_config):
    return randomize(InternImageBackbone(tiny_config(out_features=["stage2", "stage3", "stage4"])))


@torch.no_grad()
def test_cameras_do_not_mix(backbone):
    """Every camera of every sample has the features that it has alone."""
    model = CameraFeatures(backbone, channels=24, extra_level=True).eval()
    images = torch.randn(2, 3, 3, 64, 96)
    levels = model(images)
    assert [tuple(level.shape) for level in levels] == [
        (2, 3, 24, 8, 12), (2, 3, 24, 4, 6), (2, 3, 24, 2, 3), (2, 3, 24, 1, 2)
    ]  # fmt: skip
    for level, alone in zip(levels, model(images[1:, 2:])):
        torch.testing.assert_close(level[1:, 2:], alone)
    with pytest.raises(ValueError, match=r"\(batch_size, cameras, 3, height, width\), got \(2, 3, 64, 96\)"):
        model(images[:, 0])


def test_freezing_and_checkpointing(backbone):
    """Frozen stages get no gradients, and checkpointing does not change those of the others."""
    images = torch.randn(1, 2, 3, 64, 64)
    gradients = []
    for checkpointing in (False, True):
        model = CameraFeatures(backbone, channels=8).train()
        torch.manual_seed(0)
        for parameter in model.neck.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
        freeze_stages(model, 1)
        if checkpointing:
            backbone.gradient_checkpointing_enable()
        sum(level.square().mean() for level in model(images)).backward()
        gradients.append({name: parameter.grad for name, parameter in backbone.named_parameters()})
        backbone.zero_grad()
    frozen = {name for name, gradient in gradients[0].items() if gradient is None}
    assert frozen == {name for name in gradients[0] if name.startswith(("embeddings.", "encoder.stages.0."))}
    for name in gradients[0].keys() - frozen:
        torch.testing.assert_close(gradients[0][name], gradients[1][name])


def test_script(backbone, tmp_path, capsys):
    backbone.save_pretrained(tmp_path / "backbone")
    arguments = ["--model", tmp_path / "backbone", "--cameras", 2, "--height", 64, "--width", 96, "--channels", 8]
    arguments += ["--train", "--freeze_stages", 1, "--gradient_checkpointing", "--runs", 1, "--device", "cpu"]
    run_module("examples.multi_camera.camera_features", *arguments, "--output", tmp_path / "result.json")
    output = capsys.readouterr().out
    assert "stage2   (1, 2, 8, 8, 12)" in output and "forward and backward pass" in output
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["shapes"]["stage4"] == [1, 2, 8, 2, 3] and result["peak_mib"] > 0 and result["seconds"] > 0
