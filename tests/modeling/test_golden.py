# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""Whole models against numbers of the original code, through `from_pretrained` on the layouts it left behind."""

import gzip
import json

import numpy as np
import pytest
import torch
from golden_numbers import assert_full_size_model, assert_reduced_model, load_official, named_outputs
from safetensors.torch import save_file
from testing_utils import (
    FULLSIZE_MODELS,
    GOLDEN,
    MANIFESTS,
    REDUCED_MODELS,
    TRAINING,
    golden_input,
    official_key,
    original_state_dict,
    rename,
    unread_parameters,
    write_official_checkpoint,
)

from conversion.heads import HEADS
from modeling_internimage import InternImageConfig, InternImageForImageClassification


HEAD = HEADS["linear classifier"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", REDUCED_MODELS)
def test_reduced_models(name, dtype, tmp_path):
    golden = REDUCED_MODELS[name]
    model = load_official(tmp_path, golden["config"], golden["keys"], golden["weights_seed"], dtype=dtype)
    assert_reduced_model(model, name)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * ("_t_" not in name)) for name in FULLSIZE_MODELS]
)
def test_full_size_models(name, tmp_path):
    manifest = MANIFESTS[name]
    seed = FULLSIZE_MODELS[name]["weights_seed"]
    assert_full_size_model(load_official(tmp_path, manifest["config"], manifest["keys"], seed), name)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", TRAINING)
def test_training(name, dtype, tmp_path):
    golden = TRAINING[name]
    keys = REDUCED_MODELS[golden["reduced_model"]]["keys"]
    model = load_official(tmp_path, golden["config"], keys, golden["weights_seed"], dtype=dtype).train()
    pixel_values = golden_input(golden["input_shape"], golden["input_seed"]).to(dtype)
    outputs = model(pixel_values, labels=torch.tensor(golden["labels"]))
    outputs.loss.backward()
    rtol = 1e-4 if dtype == torch.float32 else 1e-6
    assert outputs.loss.item() == pytest.approx(golden["loss"], rel=rtol)
    torch.testing.assert_close(outputs.logits, torch.tensor(golden["train_logits"], dtype=dtype), rtol=rtol, atol=rtol)
    buffers = {name.removeprefix("internimage."): buffer for name, buffer in model.named_buffers()}
    for key, expected in golden["batchnorm_buffers_after_forward"].items():
        actual = buffers[rename(key)]
        torch.testing.assert_close(actual, torch.tensor(expected, dtype=actual.dtype), rtol=rtol, atol=rtol)
    gradients = {name.removeprefix("internimage."): p.grad for name, p in model.named_parameters()}
    norms = golden["grad_norms"]
    names = {key: [name.removeprefix("internimage.") for name in HEAD.rename_key(key)] for key in norms}
    assert {name for of_key in names.values() for name in of_key} == set(gradients)
    for key, expected in norms.items():
        zero = key in golden["structurally_zero_gradients"]
        actual = torch.cat([gradients[name].flatten() for name in names[key]]).norm().item()
        assert actual == (pytest.approx(0, abs=1e-6) if zero else pytest.approx(expected, rel=rtol)), key


@pytest.mark.parametrize("name", MANIFESTS)
def test_parameter_counts(name):
    """Every released architecture, on the meta device: same parameters, buffers and shapes as the original."""
    manifest = MANIFESTS[name]
    with torch.device("meta"):
        has_metadata = name == "internimage_h_22ktoinat18_384"
        model = InternImageForImageClassification(
            InternImageConfig(**manifest["config"], use_metadata_head=has_metadata)
        )
    assert model.num_parameters() == manifest["num_parameters"] - unread_parameters(manifest["keys"])
    expected = {}
    for key, shape in manifest["keys"].items():
        for new_name in HEAD.rename_key(key):
            rows = 18 if ".offset_proj." in new_name else 9  # of the 27 of each group
            own = [shape[0] // 27 * rows, *shape[1:]] if ".offset_mask." in key else shape
            expected[new_name.removeprefix("internimage.")] = own
    assert {key.removeprefix("internimage."): list(v.shape) for key, v in model.state_dict().items()} == expected


def test_the_official_layout_is_exact():
    """`write_official_checkpoint` names keys as the published files do."""
    layout = json.loads(gzip.decompress((GOLDEN / "classification" / "hf_layout_keys.json.gz").read_bytes()))
    for name, classes in layout["checkpoints"].items():
        published = classes["AutoModelForImageClassification"]["hf_layout_keys"]
        assert list(published) == list(MANIFESTS[name]["keys"])
        assert {key: official_key(key) for key in published} == published


@pytest.mark.slow
def test_extra_large_model(tmp_path):
    """The largest for which memory is sure to suffice; H and G are covered by their reduced models and by shape."""
    manifest = MANIFESTS["internimage_xl_22kto1k_384"]
    model = load_official(tmp_path, manifest["config"], manifest["keys"], seed=0)
    with torch.no_grad():
        assert model(torch.randn(1, 3, 64, 64)).logits.isfinite().all()


@pytest.mark.parametrize("prefix", ["", "model."])
def test_what_is_saved_has_our_names(prefix, tmp_path):
    """Original names with and without the prefix of the Hub layout load; saving writes neither."""
    golden = REDUCED_MODELS["tiny_h"]
    source = tmp_path / "source"
    write_official_checkpoint(source, golden["config"], golden["keys"], golden["weights_seed"])
    state_dict = original_state_dict(golden["keys"], golden["weights_seed"])
    save_file(
        {prefix + key: value for key, value in state_dict.items()}, source / "model.safetensors", {"format": "pt"}
    )
    model, info = InternImageForImageClassification.from_pretrained(source, output_loading_info=True)
    assert not any(info.values()), info
    model.save_pretrained(tmp_path / "saved")
    from safetensors import safe_open

    with safe_open(tmp_path / "saved" / "model.safetensors", "pt") as file:
        assert set(file.keys()) == set(model.state_dict())
    config = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert config["embed_dim"] == golden["config"]["channels"]
    assert not {"channels", "norm_layer", "num_classes", "auto_map"} & set(config)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ["tiny_t", "tiny_l_xl", "tiny_h", "tiny_flash_t", "tiny_flash_l"])
@torch.no_grad()
def test_half_precision(name, dtype, tmp_path):
    """
    The error of a half-precision model against float64 is at most twice what rounding to that precision costs at every
    step of the same network with an exact operator: DCNv3 computed in float64 from half-precision tensors.
    """
    golden = REDUCED_MODELS[name]
    model = load_official(tmp_path, golden["config"], golden["keys"], golden["weights_seed"], dtype=dtype)
    pixel_values = golden_input(golden["input_shapes"][0], golden["input_seed"])
    arrays = np.load(golden["folder"] / f"{name}.npz")
    size = "x".join(map(str, pixel_values.shape[2:]))

    def errors():
        outputs = named_outputs(model, pixel_values.to(dtype))
        return {
            key: (outputs[key].double() - torch.from_numpy(arrays[f"{size}.{key}"])).abs().mean() for key in outputs
        }

    ours = errors()
    for module in model.modules():
        if type(module).__name__ == "DCNv3":
            definition = module.forward

            def exact(value, offset, mask, center_scale, *, _definition=definition, **kwargs):
                center_scale = None if center_scale is None else center_scale.double()
                return _definition(value.double(), offset.double(), mask.double(), center_scale, **kwargs).to(dtype)

            module.forward = exact
    for key, error in errors().items():
        assert ours[key] <= 2 * error, key
