# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""Intermediate features and sampling points."""

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from testing_utils import randomize, run_module

from examples.feature_extraction import extract_features
from examples.sampling_points import StageSampling
from modeling_internimage import InternImageModel, create_image_processor


@pytest.fixture
def model_and_image(tiny_config, photographs, tmp_path, request):
    core_op = getattr(request, "param", "DCNv3")
    model = randomize(InternImageModel(tiny_config(center_feature_scale=True, core_op=core_op)))
    model.save_pretrained(tmp_path / "model")
    create_image_processor(64).save_pretrained(tmp_path / "model")
    Image.fromarray(photographs[0]).save(tmp_path / "photo.jpg")
    return model, str(tmp_path / "model"), str(tmp_path / "photo.jpg")


@torch.no_grad()
def test_extract_features(model_and_image, tmp_path):
    model, model_path, image = model_and_image
    options = ["--model", model_path, "--image", image, "--output", tmp_path / "out" / "stages"]
    run_module("examples.feature_extraction.extract_features", *options)
    features = load_file(tmp_path / "out" / "stages.safetensors")
    _, _, pixel_values = extract_features.load(model_path, image)
    outputs = model(pixel_values, output_hidden_states=True)
    assert list(outputs.hidden_states[2].shape) == [1, 32, 8, 8]
    for name, expected in zip(model.config.stage_names, outputs.hidden_states):
        torch.testing.assert_close(features[name], expected)
    torch.testing.assert_close(features["pooler_output"], outputs.pooler_output)
    with Image.open(tmp_path / "out" / "stages.png") as picture:
        assert np.asarray(picture.convert("RGB")).std() > 20


@torch.no_grad()
def test_modules_by_name(model_and_image):
    model, model_path, image = model_and_image
    _, _, pixel_values = extract_features.load(model_path, image, image_size=96)
    features = extract_features.extract_features(model, pixel_values, ["encoder.stages.1.layers.0.dcn", "pooler"])
    assert {name: list(feature.shape) for name, feature in features.items()} == {
        "encoder.stages.1.layers.0.dcn": [1, 12, 12, 32],
        "pooler": [1, 192],
    }
    with pytest.raises(ValueError, match="no module 'stages.1'"):
        extract_features.extract_features(model, pixel_values, ["stages.1"])


@pytest.mark.parametrize(
    "settings", [{}, {"offset_scale": 2.0}, {"remove_center": True}, {"core_op": "DCNv4"}], ids=str
)
@torch.no_grad()
def test_sampling_points_are_where_the_operator_samples(settings, tiny_config):
    """Interpolating at the points and summing with their weights, by hand, gives the operator's output."""
    dcn = randomize(InternImageModel(tiny_config(**settings))).encoder.stages[1].layers[0].dcn
    hidden_states = torch.randn(1, 6, 7, 32)
    value_proj = dcn.value_proj if settings.get("core_op") == "DCNv4" else dcn.input_proj
    value = torch.nn.functional.pad(value_proj(hidden_states)[0], (0, 0, 9, 9, 9, 9))  # zeros outside
    captured = {}
    dcn.output_proj.register_forward_pre_hook(lambda module, arguments: captured.update(output=arguments[0]))
    dcn(hidden_states)
    sampling = StageSampling(dcn, hidden_states, image_size=(48, 56))
    for row, column in ((0, 0), (3, 4), (5, 6)):
        points, weights, _ = sampling.at(row, column)
        expected = captured["output"][0, row, column].view(dcn.num_groups, -1)
        for group in range(dcn.num_groups):
            channels = value.unflatten(-1, (dcn.num_groups, -1))[:, :, group]
            total = 0
            for (x, y), weight in zip((points[group] + 9).clamp(0.5, 22.5).tolist(), weights[group].tolist()):
                left, top = int(x), int(y)
                upper = channels[top, left] * (left + 1 - x) + channels[top, left + 1] * (x - left)
                lower = channels[top + 1, left] * (left + 1 - x) + channels[top + 1, left + 1] * (x - left)
                total = total + weight * (upper * (top + 1 - y) + lower * (y - top))
            torch.testing.assert_close(total, expected[group], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("model_and_image", ["DCNv3", "DCNv4"], indirect=True)
def test_show_sampling_points(model_and_image, tmp_path):
    _, model_path, image = model_and_image
    command = ["examples.feature_extraction.show_sampling_points", "--model", model_path, "--image", image]
    picture = tmp_path / "points.png"
    run_module(*command, "--pixel", "10", "40", "--output", picture)
    with Image.open(picture) as opened:
        assert opened.width > 1000 and np.asarray(opened.convert("RGB")).std() > 20
    with pytest.raises(SystemExit, match="is outside of the preprocessed image"):
        run_module(*command, "--pixel", "64", "0", "--output", picture)
