# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""The composite backbone. Numbers of the original: tests/conversion."""

import gc
import weakref

import pytest
import torch
from testing_utils import randomize
from torch import nn
from transformers import AutoBackbone, UperNetConfig, UperNetForSemanticSegmentation

from modeling_internimage import (
    CBInternImageBackbone,
    CBInternImageConfig,
    InternImageBackbone,
    InternImageConfig,
    MaskRCNNConfig,
    MaskRCNNForObjectDetection,
)


SIZES = {"embed_dim": 16, "depths": [1, 1, 2, 1], "num_groups": [1, 2, 4, 8]}
STAGES = ["stage1", "stage2", "stage3", "stage4"]


def config(**kwargs) -> CBInternImageConfig:
    return CBInternImageConfig(**(SIZES | {"out_features": STAGES} | kwargs))


@pytest.fixture
def backbone() -> CBInternImageBackbone:
    return randomize(CBInternImageBackbone(config()))


@torch.no_grad()
def test_round_trip(backbone, tmp_path):
    backbone.save_pretrained(tmp_path)
    loaded, info = CBInternImageBackbone.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values()) and type(AutoBackbone.from_config(loaded.config)) is CBInternImageBackbone
    assert loaded.channels == [16, 32, 64, 128]
    pixel_values = torch.randn(1, 3, 64, 96)
    outputs = loaded(pixel_values, output_hidden_states=True)
    for output, expected in zip(outputs.feature_maps, backbone(pixel_values).feature_maps):
        torch.testing.assert_close(output, expected)
    assert len(outputs.hidden_states) == 5 and "assisting_feature_maps" not in outputs


@torch.no_grad()
def test_new_networks_are_not_coupled():
    """With gammas of 0, each of the two is an InternImage behind the same stem."""
    backbone = CBInternImageBackbone(config())
    randomize(backbone)
    for gamma in backbone.gammas:
        gamma.zero_()
    assert all(not gamma.any() for gamma in CBInternImageBackbone(config()).gammas)
    pixel_values = torch.randn(1, 3, 64, 96)
    outputs = backbone(pixel_values, output_assisting_feature_maps=True)
    single = InternImageBackbone(InternImageConfig(**SIZES, out_features=STAGES)).eval()
    single.embeddings = backbone.embeddings
    for name, maps in (("assisting", outputs.assisting_feature_maps), ("lead", outputs.feature_maps)):
        single.encoder = getattr(backbone, f"{name}_encoder")
        for output, expected in zip(maps, single(pixel_values).feature_maps, strict=True):
            torch.testing.assert_close(output, expected)


@torch.no_grad()
@pytest.mark.parametrize("shape", [(64, 96), (65, 97), (33, 40)])
def test_any_size(shape, backbone):
    """Also sizes that are no multiples of 32, which the original refuses."""
    maps = backbone(torch.randn(1, 3, *shape)).feature_maps
    assert [tuple(feature_map.shape[2:]) for feature_map in maps] == [
        tuple(-(-size // stride) for size in shape) for stride in (4, 8, 16, 32)
    ]
    assert all(feature_map.isfinite().all() for feature_map in maps)


@torch.no_grad()
def test_gamma_is_rounded(backbone):
    """To float16, in every precision, without changing the type of the activations."""
    pixel_values = torch.randn(1, 3, 64, 64)
    expected = backbone(pixel_values).feature_maps
    for gamma in backbone.gammas:
        gamma.copy_(gamma.half().float())
    for output, own in zip(backbone(pixel_values).feature_maps, expected):
        assert torch.equal(output, own)
    for dtype in (torch.float64, torch.bfloat16):
        maps = backbone.to(dtype)(pixel_values.to(dtype)).feature_maps
        assert all(feature_map.dtype == dtype for feature_map in maps)


def test_gradient_of_gamma(backbone):
    """It is rounded to float16 too, as the stored gradients of the original are."""
    backbone(torch.randn(1, 3, 64, 64)).feature_maps[-1].sum().backward()
    for gamma in backbone.gammas:
        assert gamma.grad.any() and torch.equal(gamma.grad, gamma.grad.half().float())
    assert all(parameter.grad is not None for parameter in backbone.parameters())


@torch.no_grad()
def test_maps_of_the_assisting_network_are_freed(backbone):
    """When a stage of the lead network runs, maps that no later stage needs are gone."""
    maps, alive = [], []

    def keep(module, inputs, output):
        maps.append(weakref.ref(output))

    def count(module, inputs):
        gc.collect()
        alive.append([reference() is not None for reference in maps])

    for assisting, lead in zip(backbone.assisting_encoder.stages, backbone.lead_encoder.stages):
        assisting.register_forward_hook(keep)
        lead.layers[0].register_forward_pre_hook(count)
    backbone(torch.randn(1, 3, 64, 64))
    assert alive == [[idx > stage for idx in range(4)] for stage in range(4)]


@torch.no_grad()
def test_other_heads(tmp_path):
    """Every head takes it as any backbone."""
    pixel_values = torch.randn(1, 3, 64, 96)
    upernet = UperNetForSemanticSegmentation(
        UperNetConfig(backbone_config=config(), hidden_size=16, auxiliary_channels=8, auxiliary_in_channels=64)
    )
    assert upernet.eval()(pixel_values).logits.shape == (1, 2, 64, 96)
    pytest.importorskip("torchvision")
    detector = MaskRCNNForObjectDetection(MaskRCNNConfig(backbone_config=config(), hidden_size=16))
    detector.save_pretrained(tmp_path)
    loaded = MaskRCNNForObjectDetection.from_pretrained(tmp_path)
    assert type(loaded.backbone) is CBInternImageBackbone
    assert loaded(pixel_values).pred_boxes.shape == (1, 100, 4)


def test_wrong_configuration():
    with pytest.raises(ValueError, match="`config` must be an `CBInternImageConfig`, got a `InternImageConfig`"):
        CBInternImageBackbone(InternImageConfig(**SIZES))
    with pytest.raises(ValueError, match="`model_type='internimage'`, not 'cb_internimage'"):
        CBInternImageConfig.from_dict(InternImageConfig(**SIZES).to_dict())
    assert not any(isinstance(module, nn.BatchNorm2d) for module in CBInternImageBackbone(config()).modules())
