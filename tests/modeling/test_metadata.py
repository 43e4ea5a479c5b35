# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""Dates and places of images: their encoding, and the branch of the classifier that takes them."""

import copy
import datetime
import math

import numpy as np
import pytest
import torch
from testing_utils import randomize
from transformers import Trainer, TrainingArguments

from modeling_internimage import (
    InternImageBackbone,
    InternImageForImageClassification,
    InternImageModel,
    encode_metadata,
)


@pytest.fixture
def model(tiny_config):
    return randomize(InternImageForImageClassification(tiny_config(use_metadata_head=True, num_labels=5)))


@pytest.fixture
def pixel_values():
    return torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def metadata():
    """Of three images: all known, nothing known, no place."""
    return encode_metadata(["2018-07-04", None, "2018-01-31"], [48.2, None, 10], [-122.5, None, None])


def layer_norm(x, norm: dict[str, np.ndarray], eps: float):
    centred = x - x.mean(axis=-1, keepdims=True)
    variance = (centred**2).mean(axis=-1, keepdims=True)
    return centred / np.sqrt(variance + eps) * norm["weight"] + norm["bias"]


def expected_logits(model, metadata: dict[str, torch.Tensor]) -> np.ndarray:
    """The formulas of the branch in NumPy and float64."""
    weights: dict = {}
    for name, tensor in model.metadata_head.state_dict().items():
        module, kind = name.rsplit(".", 1)
        weights.setdefault(module, {})[kind] = tensor.double().numpy()

    def linear(x, module):
        return x @ weights[module]["weight"].T + weights[module]["bias"]

    features = []
    for name in ("temporal", "spatial"):
        part = f"{name}_embeddings"
        x = np.maximum(linear(metadata[name].double().numpy(), f"{part}.projection"), 0)
        x = layer_norm(x, weights[f"{part}.layernorm"], 1e-5)
        y = layer_norm(np.maximum(linear(x, f"{part}.fc1"), 0), weights[f"{part}.layernorm1"], 1e-5)
        y = layer_norm(np.maximum(linear(y, f"{part}.fc2"), 0), weights[f"{part}.layernorm2"], 1e-5)
        features.append(x + y)
    return linear(layer_norm(np.concatenate(features, axis=-1), weights["layernorm"], 1e-6), "classifier")


@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-10), (torch.float32, 1e-4)])
@pytest.mark.parametrize("given", [("temporal", "spatial"), ("temporal",), ("spatial",)])
@torch.no_grad()
def test_logits(given, dtype, tolerance, model, pixel_values, metadata):
    """The branch adds to the logits of the image; what is left out is unknown."""
    unknown = encode_metadata([None] * 3)
    expected = expected_logits(model, unknown | {name: metadata[name] for name in given})
    model, pixel_values = model.to(dtype), pixel_values.to(dtype)
    added = model(pixel_values, **{name: metadata[name] for name in given}).logits - model(pixel_values).logits
    assert abs(expected).max() > 0.5
    np.testing.assert_allclose(added.numpy(), expected, rtol=tolerance, atol=tolerance)


@torch.no_grad()
def test_without_date_and_place(model, pixel_values, metadata):
    """The logits are those of a model without the branch, which refuses both inputs."""
    config = copy.deepcopy(model.config)
    config.use_metadata_head = False
    plain = InternImageForImageClassification(config).eval()
    plain.load_state_dict(model.state_dict(), strict=False)
    assert torch.equal(model(pixel_values).logits, plain(pixel_values).logits)
    with pytest.raises(ValueError, match="`temporal` and `spatial` need a model with `config.use_metadata_head=True`"):
        plain(pixel_values, **metadata)


@torch.no_grad()
def test_mixed_batch(model, pixel_values, metadata):
    """An image has the same logits alone and beside images about which less is known."""
    logits = model(pixel_values, **metadata).logits
    for idx in range(3):
        own = {name: tensor[idx : idx + 1] for name, tensor in metadata.items()}
        torch.testing.assert_close(model(pixel_values[idx : idx + 1], **own).logits, logits[idx : idx + 1])
    assert not metadata["temporal"][1].any() and not metadata["spatial"][1:].any()


@pytest.mark.parametrize(
    "metadata, message",
    [
        ({"temporal": torch.zeros(3, 3)}, r"`temporal` must be floating point of shape \(3, 4\), got .* \(3, 3\)"),
        ({"spatial": torch.zeros(1, 3)}, r"`spatial` must be floating point of shape \(3, 3\), got .* \(1, 3\)"),
        ({"spatial": torch.zeros(3, 3, dtype=torch.int64)}, "`spatial` must be floating point .* got torch.int64"),
    ],
    ids=["size", "batch", "dtype"],
)
def test_bad_inputs(metadata, message, model, pixel_values):
    with pytest.raises(ValueError, match=message):
        model(pixel_values, **metadata)


def test_no_classes(tiny_config):
    with pytest.raises(ValueError, match="`use_metadata_head=True` adds to the logits, but `num_labels=0` makes none"):
        InternImageForImageClassification(tiny_config(use_metadata_head=True, num_labels=0))


@torch.no_grad()
def test_save_and_load(model, pixel_values, metadata, tmp_path):
    """Models without a classifier have no use for the branch, and load the same checkpoint without a complaint."""
    model.save_pretrained(tmp_path)
    loaded, info = InternImageForImageClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert loaded.config.use_metadata_head and not any(info.values())
    assert torch.equal(loaded(pixel_values, **metadata).logits, model(pixel_values, **metadata).logits)
    for model_class in (InternImageModel, InternImageBackbone):
        _, info = model_class.from_pretrained(tmp_path, output_loading_info=True)
        assert not any(info.values())


@pytest.mark.slow
@torch.no_grad()
def test_export_with_dynamic_batch(model, pixel_values, metadata):
    inputs = {"pixel_values": pixel_values} | metadata
    batch = torch.export.Dim("batch")
    program = torch.export.export(model, (), inputs, dynamic_shapes={name: {0: batch} for name in inputs})
    two = {name: tensor[:2] for name, tensor in inputs.items()}
    torch.testing.assert_close(program.module()(**two)[0], model(**two)[0])


@pytest.mark.slow
@torch.no_grad()
def test_compile(model, pixel_values, metadata):
    torch.compiler.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(pixel_values, **metadata).logits, model(pixel_values, **metadata).logits)


def test_trainer(model, pixel_values, metadata, tmp_path):
    """It keeps the columns `temporal` and `spatial`, and its collator stacks them."""
    rows = [
        {"pixel_values": pixel_values[idx], "labels": idx, "remark": "left out"}
        | {name: tensor[idx] for name, tensor in metadata.items()}
        for idx in range(3)
    ]
    before = copy.deepcopy(model.metadata_head.state_dict())
    arguments = TrainingArguments(tmp_path, max_steps=1, report_to="none", use_cpu=True, dataloader_pin_memory=False)
    Trainer(model, arguments, train_dataset=rows).train()
    after = model.metadata_head.state_dict()
    assert all(not torch.equal(before[name], after[name]) for name in before)


def test_dates():
    """Of any kind; the day and the time make no difference, and twelve months are a circle."""
    dates = ["2018-02-01", " 2018-02-28 23:59:00 ", "2010-02-14 20:19:00+00:00", datetime.date(2018, 2, 3)]
    dates += [datetime.datetime(2018, 2, 3, 4), np.datetime64("2018-02-03"), np.datetime64("2018-02-03T04", "ns")]
    temporal = encode_metadata(dates)["temporal"]
    expected = torch.tensor([math.sin(math.pi / 3), math.cos(math.pi / 3), 0, 0])
    torch.testing.assert_close(temporal, expected.expand(len(dates), 4))
    months = encode_metadata([f"2018-{month:02d}-15" for month in range(1, 13)])["temporal"]
    angles = torch.arange(1, 13) * math.pi / 6
    torch.testing.assert_close(months[:, :2], torch.stack((angles.sin(), angles.cos()), dim=1))
    assert not months[:, 2:].any()


def test_places():
    """Points on the unit sphere: longitude 90 is y, the North pole z."""
    spatial = encode_metadata(latitudes=[60, "-30.0", 90], longitudes=[90.0, -135, 12])["spatial"]
    root = math.sqrt(3) / 2
    expected = [[0, 0.5, root], [-root * math.sqrt(0.5), -root * math.sqrt(0.5), -0.5], [0, 0, 1]]
    torch.testing.assert_close(spatial, torch.tensor(expected))


def test_unknown_values():
    nothing = [None, float("nan"), "", " ", np.datetime64("NaT")]
    assert not encode_metadata(nothing)["temporal"].any()
    nothing = [None, float("nan"), "", "nan", 0, 0.0]
    for latitudes, longitudes in ((nothing, [5] * 6), ([5] * 6, nothing)):
        metadata = encode_metadata(None, latitudes, longitudes)
        assert not metadata["spatial"].any() and not metadata["temporal"].any()
    assert {name: list(tensor.shape) for name, tensor in encode_metadata([]).items()} == {
        "temporal": [0, 4],
        "spatial": [0, 3],
    }


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"dates": ["2018-05-01", "May 2018"]}, "`dates` must be ISO 8601 .* entry 1 is 'May 2018'"),
        ({"dates": ["2018-13-01"]}, "entry 0 is '2018-13-01'"),
        ({"dates": [7]}, "entry 0 is 7"),
        ({"dates": "2018-05-01"}, "`dates` must be a list with one entry for each image, got '2018-05-01'"),
        ({"latitudes": [1, 91], "longitudes": [1, 1]}, "`latitudes` must be degrees from -90 to 90, .* entry 1 is 91"),
        (
            {"latitudes": [1], "longitudes": [-181]},
            "`longitudes` must be degrees from -180 to 180, .* entry 0 is -181",
        ),
        ({"latitudes": ["north"], "longitudes": [1]}, "entry 0 is 'north'"),
        ({"latitudes": [float("inf")], "longitudes": [1]}, "entry 0 is inf"),
        ({"latitudes": [1]}, "A place needs both `latitudes` and `longitudes`"),
        (
            {"dates": [None], "latitudes": [1, 2], "longitudes": [1, 2]},
            "must have one entry for each image, got .*'da",
        ),
        ({}, "must have one entry for each image, got {}"),
    ],
    ids=str,
)
def test_bad_values(arguments, message):
    with pytest.raises(ValueError, match=message):
        encode_metadata(**arguments)
