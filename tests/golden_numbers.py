# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""Comparison of whole models with numbers of the original code (`tests/fixtures/golden/classification`)."""

import numpy as np
import pytest
import torch
from testing_utils import (
    FULLSIZE_MODELS,
    REDUCED_MODELS,
    convert_original,
    golden_input,
    unread_parameters,
    write_official_checkpoint,
)

from modeling_internimage import InternImageForImageClassification


def tolerance(expected: torch.Tensor) -> dict[str, float]:
    """Of float64 the rounding of what is stored; of float32 that of the largest numbers of the array."""
    if expected.dtype == torch.float64:
        return {"rtol": 1e-6, "atol": 1e-6}
    return {"rtol": 1e-4, "atol": 1e-4 * max(1.0, expected.abs().max().item())}


def load_official(folder, config, keys, seed, dtype=torch.float32):
    """
    A model from a checkpoint in the official layout, every key accounted for: of a Hub repository, or, for
    FlashInternImage, which has none, of a `.pth` file.
    """
    if config.get("core_op") == "DCNv4":
        return convert_original(folder, config, keys, seed).to(dtype)
    write_official_checkpoint(folder, config, keys, seed)
    model, info = InternImageForImageClassification.from_pretrained(folder, output_loading_info=True, dtype=dtype)
    assert not any(info.values()), info
    return model


def named_outputs(model, pixel_values: torch.Tensor) -> dict[str, torch.Tensor]:
    """The outputs of a classifier under the names of the golden arrays."""
    outputs = model(pixel_values, output_hidden_states=True)
    pooled = model.internimage(pixel_values).pooler_output
    return {"logits": outputs.logits, "pooled": pooled} | {
        f"stage{idx}": hidden_states for idx, hidden_states in enumerate(outputs.hidden_states) if idx > 0
    }


@torch.no_grad()
def assert_reduced_model(model, name: str):
    """A reduced model with its stand-in weights, in float32 or float64, computes the golden numbers."""
    golden = REDUCED_MODELS[name]
    assert model.num_parameters() == golden["num_parameters"] - unread_parameters(golden["keys"])
    arrays = np.load(golden["folder"] / f"{name}.npz")
    for shape in golden["input_shapes"]:
        outputs = named_outputs(model, golden_input(shape, golden["input_seed"]).to(model.dtype))
        for key, output in outputs.items():
            expected = torch.from_numpy(arrays[f"{shape[2]}x{shape[3]}.{key}"]).to(model.dtype)
            torch.testing.assert_close(output, expected, **tolerance(expected))


@torch.no_grad()
def assert_full_size_model(model, name: str):
    """T, S, B or L with its stand-in weights in float32 computes the golden numbers."""
    golden = FULLSIZE_MODELS[name]
    arrays = np.load(golden["folder"] / "fullsize.npz")
    outputs = named_outputs(model, golden_input(golden["input_shape"], golden["input_seed"]))
    for key in ("logits", "pooled"):
        expected = torch.from_numpy(arrays[f"{name}.{key}"])
        torch.testing.assert_close(outputs[key], expected, **tolerance(expected))
    for idx, statistics in enumerate(golden["stages"], start=1):
        stage = outputs[f"stage{idx}"]
        assert list(stage.shape) == statistics["shape"]
        flat = stage.contiguous().flatten()
        first, strided = (torch.from_numpy(arrays[f"{name}.stage{idx}.{part}64"]) for part in ("first", "strided"))
        scale = max(1.0, statistics["abs_max"])
        torch.testing.assert_close(flat[:64], first, rtol=1e-4, atol=1e-4 * scale)
        torch.testing.assert_close(flat[:: flat.numel() // 64][:64], strided, rtol=1e-4, atol=1e-4 * scale)
        assert flat.double().mean().item() == pytest.approx(statistics["mean"], abs=1e-5 * scale)
        assert flat.double().std(correction=0).item() == pytest.approx(statistics["std"], rel=1e-5)
