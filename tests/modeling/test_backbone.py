# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""InternImage as a backbone, alone and inside a segmentation model of transformers."""

import pytest
import torch
from huggingface_hub.errors import HFValidationError
from testing_utils import randomize
from transformers import AutoBackbone, AutoConfig, UperNetConfig, UperNetForSemanticSegmentation

from modeling_internimage import InternImageBackbone


@pytest.mark.parametrize(
    "selector, expected",
    [
        ({}, ["stage4"]),
        ({"out_features": ["stem", "stage2", "stage4"]}, ["stem", "stage2", "stage4"]),
        ({"out_indices": [1, 2, 3, 4]}, ["stage1", "stage2", "stage3", "stage4"]),
        ({"out_indices": [-2]}, ["stage3"]),
        ({"out_features": ["stage1"], "out_indices": [1]}, ["stage1"]),
    ],
    ids=str,
)
@torch.no_grad()
def test_feature_maps(selector, expected, tiny_config):
    backbone = AutoBackbone.from_config(tiny_config(**selector)).eval()
    assert type(backbone) is InternImageBackbone and backbone.out_features == expected
    channels = {"stem": 16, "stage1": 16, "stage2": 32, "stage3": 64, "stage4": 128}
    strides = {"stem": 4, "stage1": 4, "stage2": 8, "stage3": 16, "stage4": 32}
    assert backbone.channels == [channels[name] for name in expected]
    outputs = backbone(torch.randn(2, 3, 70, 100))  # no multiple of anything
    assert isinstance(outputs.feature_maps, tuple) and outputs.hidden_states is None
    for name, feature_map in zip(expected, outputs.feature_maps, strict=True):
        assert feature_map.shape == (2, channels[name], -(-70 // strides[name]), -(-100 // strides[name]))


def test_auto_backbone_does_not_load_folders(tiny_config, tmp_path):
    """
    It asks the Hub whether the folder is a repository. When this test fails, it loads them: README.md and
    conversion/heads.py need no exception then.
    """
    InternImageBackbone(tiny_config()).save_pretrained(tmp_path / "backbone")
    with pytest.raises(HFValidationError):
        AutoBackbone.from_pretrained(tmp_path / "backbone")
    config = AutoConfig.from_pretrained(tmp_path / "backbone")
    assert type(AutoBackbone.from_config(config)) is InternImageBackbone


def test_wrong_selector(tiny_config):
    backbone = InternImageBackbone(tiny_config())
    with pytest.raises(ValueError, match="stage9"):
        backbone.out_features = ["stage9"]


def test_upernet(clip_config, tmp_path):
    """Trains, survives its JSON, and writes the backbone under our names."""
    clip_config.out_features = ["stage1", "stage2", "stage3", "stage4"]
    config = UperNetConfig(
        backbone_config=clip_config, num_labels=5, hidden_size=16, auxiliary_channels=8, auxiliary_in_channels=64
    )
    model = UperNetForSemanticSegmentation(config).train()
    assert type(model.backbone) is InternImageBackbone
    pixel_values = torch.randn(2, 3, 64, 96)
    labels = torch.randint(0, 5, (2, 64, 96))
    model(pixel_values, labels=labels).loss.backward()
    gradients = {name: parameter.grad for name, parameter in model.backbone.named_parameters()}
    # Offsets and masks start at zero, so what produces them gets its gradient only from the second step on.
    assert all(gradient is not None for gradient in gradients.values())
    assert gradients["embeddings.convolution1.weight"].abs().sum() > 0

    randomize(model)
    model.save_pretrained(tmp_path)
    loaded, info = UperNetForSemanticSegmentation.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values()), info
    expected_config = config.backbone_config.to_dict() | {"dtype": "float32"}  # which `from_pretrained` notes
    assert loaded.config.backbone_config.to_dict() == expected_config
    with torch.no_grad():  # (memory of another alignment: not the same to the last bit)
        torch.testing.assert_close(loaded(pixel_values).logits, model(pixel_values).logits, rtol=1e-4, atol=1e-6)
    from safetensors import safe_open

    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert "backbone.encoder.stages.0.layers.0.dcn.offset_proj.weight" in set(file.keys())
