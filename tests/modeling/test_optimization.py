# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""Learning rate and weight decay of every parameter, against the authors' rules and names; their schedule."""

import gzip
import json
import math
import re

import pytest
import torch
from testing_utils import GOLDEN, MANIFESTS, first_quick, read_json, rename
from transformers import ResNetConfig, ResNetForImageClassification, UperNetConfig, UperNetForSemanticSegmentation

from conversion.checkpoints import CHECKPOINTS
from conversion.heads import HEADS
from conversion.offset_mask import PACKED, PARTS
from modeling_internimage import (
    DinoDetrConfig,
    DinoDetrForObjectDetection,
    InternImageBackbone,
    InternImageConfig,
    InternImageForImageClassification,
    create_parameter_groups,
)
from modeling_internimage.training.optimization import create_cosine_schedule, create_step_schedule


MODELS = [
    "internimage_t_1k_224",
    "internimage_l_22kto1k_384",
    "internimage_h_22kto1k_640",
    "flash_intern_image_t_1k_224",
    "flash_internimage_l_22kto1k_384",
]


def new_names(key: str) -> list[str]:
    """Ours of an original key, without the prefix of the base model: two for DCNv4's `offset_mask`."""
    return [rename(key).replace(PACKED, part) for part in PARTS] if PACKED in key else [rename(key)]


def original_rate_and_decay(key: str, shape: list[int], depths: list[int], ratio: float, multiplier: float):
    """From the description of the original's optimiser: the recipe's facts, by the names of its `.pth` files."""
    blocks = [f"levels.{level}.blocks.{block}." for level in range(4) for block in range(depths[level])]
    rates = {block: ratio**idx for idx, block in enumerate(reversed(blocks))}
    rates["patch_embed"] = rates["levels.0.blocks.0."]
    for level in range(3):
        rates[f"levels.{level}.downsample"] = rates[f"levels.{level}.norm"] = rates[f"levels.{level + 1}.blocks.0."]
    rate = next((rate for part, rate in rates.items() if part in key), 1.0)
    if "offset" in key or "center_feature_scale_proj" in key:
        rate *= multiplier
    return rate, 0.0 if len(shape) == 1 or key.endswith(".bias") else 0.05


@pytest.mark.parametrize("ratio, multiplier", [(0.9, 0.1), (0.9, 1.0), (1.0, 0.1)])
@pytest.mark.parametrize("name", MODELS)
def test_every_parameter(name, ratio, multiplier):
    manifest = MANIFESTS[name]
    with torch.device("meta"):
        model = InternImageForImageClassification(InternImageConfig(**manifest["config"]))
    groups = create_parameter_groups(model, 2e-5, 0.05, layer_decay=ratio, deformable_multiplier=multiplier)
    actual = {id(p): (group["lr"], group["weight_decay"]) for group in groups for p in group["params"]}
    parameters = {name.removeprefix("internimage."): parameter for name, parameter in model.named_parameters()}
    assert len(actual) == len(parameters) == sum(len(group["params"]) for group in groups)
    for key, shape in manifest["keys"].items():
        if re.search("running_|num_batches", key):
            continue
        rate, decay = original_rate_and_decay(key, shape, manifest["config"]["depths"], ratio, multiplier)
        for new_name in new_names(key):
            assert actual[id(parameters[new_name])] == (pytest.approx(2e-5 * rate), decay), new_name
    assert len({(group["lr"], group["weight_decay"]) for group in groups}) == len(groups)


def test_norms_inside_the_third_stage_train_at_the_full_rate():
    """A quirk of the original: its list of names leaves `post_norms` out."""
    key = "levels.2.post_norms.0.0.weight"
    assert original_rate_and_decay(key, [1280], MANIFESTS[MODELS[2]]["config"]["depths"], 0.9, 0.1) == (1.0, 0.0)


def original_downstream_layer(key: str, depths: list[int]) -> int:
    """Layer id in the authors' segmentation code, by the names of its `.pth` files: 0 the stem, blocks from 1."""
    if key.startswith("patch_embed"):
        return 0
    _, level, part, idx, *_ = key.split(".")
    if part in ("blocks", "post_norms"):
        return 1 + sum(depths[: int(level)]) + int(idx)
    return 1 + sum(depths[: min(int(level) + 1, 3)])  # downsampling and norm


def original_downstream_multiplier(key: str, core_op: str) -> float:
    """`offset_lr_scale=0.01` of the authors' code for DCNv4; DCNv3's offsets have no such factor in their code."""
    return 0.01 if core_op == "DCNv4" and "offset_mask" in key and "offset_mask_dw" not in key else 1.0


@pytest.mark.parametrize("name", MODELS)
def test_downstream_counting(name):
    manifest = MANIFESTS[name]
    depths = manifest["config"]["depths"]
    with torch.device("meta"):
        model = InternImageBackbone(InternImageConfig(**manifest["config"]))
    core_op = model.config.core_op
    multiplier = 0.01 if core_op == "DCNv4" else 1.0
    groups = create_parameter_groups(
        model, 2e-5, layer_decay=0.94, deformable_multiplier=multiplier, layer_counting="downstream"
    )
    actual = {id(parameter): group["lr"] for group in groups for parameter in group["params"]}
    parameters = dict(model.named_parameters())
    checked = 0
    for key in manifest["keys"]:
        if key.startswith(("patch_embed", "levels")):
            rate = 2e-5 * 0.94 ** (sum(depths) + 1 - original_downstream_layer(key, depths))
            rate *= original_downstream_multiplier(key, core_op)
            for new_name in new_names(key):
                assert actual[id(parameters[new_name])] == pytest.approx(rate), new_name
                checked += 1
    assert checked == len(parameters)


@pytest.mark.parametrize(
    "name, manifests",
    first_quick(
        [
            ("mask2former_flash_internimage_t_512_160k_ade20k_ss", "dcnv4/segmentation_manifests.json.gz"),
            ("mask2former_internimage_h_896_80k_cocostuff2ade20k", "segmentation/manifests.json.gz"),
        ]
    ),
)
def test_every_parameter_of_mask2former(name, manifests):
    """By the rules of the authors' segmentation code, which name parts of the head."""
    checkpoint = CHECKPOINTS[name]
    head, depths = HEADS[checkpoint.head], checkpoint.config().backbone_config.depths
    with torch.device("meta"):
        model = head.model_class(checkpoint.config())
    groups = create_parameter_groups(model, 1.0, 0.05, layer_decay=0.95, layer_counting="downstream")
    actual = {id(p): (group["lr"], group["weight_decay"]) for group in groups for p in group["params"]}
    parameters, seen = dict(model.named_parameters()), set()
    at_layer_0 = tuple(f"decode_head.{part}_embed" for part in ("mask", "cls", "level", "query"))
    for key, shape in read_json(GOLDEN / manifests)[name]["keys"].items():
        layer = sum(depths) + 1
        if key.startswith("backbone."):
            layer = original_downstream_layer(key.removeprefix("backbone."), depths)
        elif key.startswith((*at_layer_0, "decode_head.query_feat")):
            layer = 0
        is_exempt = len(shape) == 1 or key.endswith(".bias") or "sampling_offsets" in key
        expected = pytest.approx(0.95 ** (sum(depths) + 1 - layer)), 0.0 if is_exempt else 0.05
        for new_name in head.rename_key(key.removeprefix("backbone.")):
            if new_name in parameters:
                assert actual[id(parameters[new_name])] == expected, new_name
                seen.add(new_name)
    assert seen == parameters.keys()


DINO_GROUPS = json.loads(gzip.decompress((GOLDEN / "detection" / "dino_recipes.json.gz").read_bytes()))[
    "parameter_groups"
]
LARGE_DINO = {"layer_decay": 0.94, "sampling_offset_multiplier": 0.001}
# For each of the original's groups of parameters, a checkpoint with these and the arguments of its recipe.
DINO_RECIPES = {
    "T": ("internimage_t_1x_coco", {"layer_decay": 0.9}),
    "L_layer_wise": ("internimage_l_1x_coco_layer_wise_lr", {"layer_decay": 0.9}),
    "L_0.1x_backbone": (
        "internimage_l_1x_coco_0.1x_backbone_lr",
        {"weight_decay": 0.05, "backbone_multiplier": 0.1, "decay_all": True},
    ),
    "H": ("internimage_h_objects365_coco", LARGE_DINO),
    "G": ("internimage_g_objects365_coco", LARGE_DINO),
    "CB-H": ("cbinternimage_h_objects365_coco", LARGE_DINO),
}


@pytest.mark.parametrize("kind", DINO_RECIPES)
def test_every_parameter_of_dino(kind):
    """As the original's optimiser constructors assign them, for the models of full size."""
    name, arguments = DINO_RECIPES[kind]
    checkpoint = CHECKPOINTS[f"dino_4scale_{name}"]
    head = HEADS[checkpoint.head]
    with torch.device("meta"):
        model = head.model_class(checkpoint.config())
    arguments = {"weight_decay": 1e-4, "layer_counting": "downstream"} | arguments
    groups = create_parameter_groups(model, 1.0, **arguments)
    actual = {id(p): (group["lr"], group["weight_decay"]) for group in groups for p in group["params"]}
    parameters, seen = dict(model.named_parameters()), set()
    for group in DINO_GROUPS[kind]["groups"].values():
        for key in group["parameters"]:
            for new in head.rename_key(key.removeprefix("backbone.")):
                new, *_ = head.whole(new) or (new,)
                expected = (pytest.approx(group["lr_scale"]), group["weight_decay"])
                assert actual[id(parameters[new])] == expected, key
                seen.add(new)
    assert seen == parameters.keys() and DINO_GROUPS.keys() == DINO_RECIPES.keys()


def test_dino_on_another_backbone():
    """It has no layers to count, and still no weight decay of its sampling offsets."""
    backbone = ResNetConfig(depths=[1, 1], hidden_sizes=[8, 8], embedding_size=8, out_features=["stage1", "stage2"])
    model = DinoDetrForObjectDetection(
        DinoDetrConfig(backbone_config=backbone, d_model=64, encoder_layers=1, decoder_layers=1, num_queries=4)
    )
    groups = create_parameter_groups(model, 1.0, sampling_offset_multiplier=0.5)
    actual = {id(p): (group["lr"], group["weight_decay"]) for group in groups for p in group["params"]}
    assert actual[id(model.encoder.level_embed.weight)] == (1.0, 0.05)
    assert actual[id(model.encoder.layers[0].self_attn.sampling_offsets.weight)] == (0.5, 0.0)


def test_backbone_in_another_model(tiny_config):
    config = UperNetConfig(
        backbone_config=tiny_config(out_features=["stage1", "stage2", "stage3", "stage4"]),
        hidden_size=16, auxiliary_in_channels=64, auxiliary_channels=8, num_labels=3,
    )  # fmt: skip
    model = UperNetForSemanticSegmentation(config)
    model.backbone.embeddings.requires_grad_(False)
    groups = create_parameter_groups(model, 1.0, layer_decay=0.5)
    rates = {id(p): group["lr"] for group in groups for p in group["params"]}
    named = dict(model.named_parameters())
    assert rates[id(named["backbone.encoder.stages.0.layers.0.norm1.weight"])] == 0.5**4
    assert rates[id(named["decode_head.classifier.weight"])] == 1.0
    assert not any(id(p) in rates for p in model.backbone.embeddings.parameters())
    torch.optim.AdamW(groups)


def test_weight_decay_with_zero_3(tiny_config):
    """DeepSpeed empties the parameters and keeps their shapes in `ds_shape`."""
    model = InternImageForImageClassification(tiny_config())
    expected = [len(group["params"]) for group in create_parameter_groups(model, 1.0)]
    for parameter in model.parameters():
        parameter.ds_shape, parameter.data = parameter.shape, torch.empty(0)
    assert [len(group["params"]) for group in create_parameter_groups(model, 1.0)] == expected and len(expected) == 2


def test_other_models_and_values():
    resnet = ResNetForImageClassification(ResNetConfig(depths=[1, 1], hidden_sizes=[8, 8], embedding_size=8))
    assert {group["lr"] for group in create_parameter_groups(resnet, 0.1)} == {0.1}
    with pytest.raises(ValueError, match="without an InternImage"):
        create_parameter_groups(resnet, 0.1, layer_decay=0.9)
    for name in ("layer_decay", "deformable_multiplier", "backbone_multiplier", "sampling_offset_multiplier"):
        with pytest.raises(ValueError, match=f"`{name}` must be above 0 and at most 1, got 1.5"):
            create_parameter_groups(resnet, 0.1, **{name: 1.5})
    with pytest.raises(ValueError, match="`layer_counting` must be one of .*, got 'swin'"):
        create_parameter_groups(resnet, 0.1, layer_counting="swin")


@pytest.mark.parametrize("warmup", [0, 20])
def test_schedule_has_one_lowest_and_first_rate(warmup):
    """The formula of the original's scheduler, for the full rate, a tenth of it and one below the lowest."""
    rates, min_lr, warmup_lr = [5e-4, 5e-5, 1e-6], 5e-6, 5e-7
    groups = [{"params": [torch.nn.Parameter(torch.ones(1))], "lr": rate} for rate in rates]
    optimizer = torch.optim.SGD(groups)
    schedule = create_cosine_schedule(optimizer, warmup, 300, min_lr, warmup_lr)
    for step in range(301):
        for group, rate in zip(optimizer.param_groups, rates):
            if step < warmup:
                expected = warmup_lr + step * (rate - warmup_lr) / warmup
            else:
                expected = min_lr + 0.5 * (rate - min_lr) * (1 + math.cos(math.pi * step / 300))
            assert group["lr"] == pytest.approx(expected)
        optimizer.step()
        schedule.step()


@pytest.mark.parametrize("warmup, milestones", [(0, [80, 110]), (20, [80, 110]), (20, [])])
def test_steps_with_warmup(warmup, milestones):
    """
    mmcv's `StepLrUpdaterHook` with `warmup="linear"`, `warmup_ratio=0.001`, by its formula; without steps, as for the
    largest DINO detectors, constant.
    """
    rates = [1e-4, 3e-5]
    optimizer = torch.optim.AdamW([{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": rate} for rate in rates])
    schedule = create_step_schedule(optimizer, warmup, milestones)
    for step in range(121):
        for group, rate in zip(optimizer.param_groups, rates):
            expected = rate * 0.1 ** sum(step >= milestone for milestone in milestones)
            if step < warmup:
                expected *= 1 - (1 - step / warmup) * (1 - 0.001)
            assert group["lr"] == pytest.approx(expected)
        optimizer.step()
        schedule.step()


def test_schedule_of_rate_0():
    """It stays 0, whatever `min_lr` and `warmup_lr`; the rates of other groups do not."""
    groups = [{"params": [torch.nn.Parameter(torch.ones(1))], "lr": rate} for rate in (0.0, 1e-3)]
    optimizer = torch.optim.SGD(groups)
    schedule = create_cosine_schedule(optimizer, 2, 6, min_lr=1e-5, warmup_lr=1e-6)
    rates = []
    for _ in range(7):
        rates.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        schedule.step()
    assert [rate for rate, _ in rates] == [0.0] * 7
    assert rates[0][1] == pytest.approx(1e-6) and rates[6][1] == pytest.approx(1e-5)
