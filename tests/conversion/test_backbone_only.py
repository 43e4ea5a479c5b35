# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""Backbones taken out of larger models, such as the authors' 3D baselines."""

import json
from pathlib import Path

import pytest
import torch
from testing_utils import (
    GOLDEN,
    MANIFESTS,
    REDUCED_MODELS,
    convert_original,
    first_quick,
    original_state_dict,
    read_json,
)
from transformers import AutoImageProcessor, AutoModel

from conversion.backbone import complete_architecture, normalize_prefix, read_backbone
from conversion.checkpoints import CHECKPOINTS
from conversion.convert_checkpoint import read_report
from conversion.convert_internimage_to_hf import main
from modeling_internimage import InternImageBackbone, InternImageConfig


# Where the authors' baselines keep the backbone: occupancy and OpenLane-V2, HD maps; an mm detector trained elsewhere.
LAYOUTS = {
    "occupancy": ("img_backbone.", "", ["img_neck.lateral_convs.0.conv.weight", "pts_bbox_head.bev_embedding.weight"]),
    "hd-map": ("backbone.img_backbone.", "", ["backbone.img_neck.lateral_convs.0.conv.weight", "head.det_net.w"]),
    "wrapped": ("backbone.", "module.", ["module.neck.w", "module.bbox_head.w"]),
}
POOLER = ("conv_head.", "head.", "dcnv3_head", "clip_projector.", "fc_norm.")


def backbone_weights(name: str, seed: int = 0) -> dict[str, torch.Tensor]:
    """The backbone of a reduced model: without pooler and classifier, with the layer scale it has."""
    weights = original_state_dict(REDUCED_MODELS[name]["keys"], seed)
    return {key: tensor for key, tensor in weights.items() if not key.startswith(POOLER)}


def zeros(shape) -> torch.Tensor:
    """A tensor that takes no memory."""
    return torch.zeros(()).expand(shape)


def write(file, name: str, prefix: str, wrapper: str = "", others=(), **entries):
    weights = {f"{wrapper}{prefix}{key}": tensor for key, tensor in backbone_weights(name).items()}
    torch.save({"state_dict": weights | {key: torch.ones(2) for key in others}} | entries, file)


def write_config(file, name: str, **fields):
    """The fields that no official model of these sizes can tell."""
    config = REDUCED_MODELS[name]["config"]
    names = ("offset_scale", "level2_post_norm_block_ids", "post_norm")
    file.write_text(json.dumps({field: config[field] for field in names if config.get(field) is not None} | fields))


def arguments_for(folder: Path, layout: str = "occupancy", **entries) -> list[str]:
    """Writes a checkpoint of this layout, and the fields that its shapes do not say."""
    prefix, wrapper, others = LAYOUTS[layout]
    write(folder / "bev.pth", "tiny_t", prefix, wrapper, others, **entries)
    write_config(folder / "fields.json", "tiny_t", offset_scale=1.0)
    return ["--backbone-only", prefix, "--source", str(folder / "bev.pth"), "--config", str(folder / "fields.json")]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_key_is_converted_or_counted(layout, tmp_path, capsys):
    assert main([*arguments_for(tmp_path, layout, meta={"epoch": 24}), "--dry-run"]) == 0
    output, (_, wrapper, others) = capsys.readouterr().out, LAYOUTS[layout]
    assert f"{len(backbone_weights('tiny_t'))} tensors of" in output and f"; {len(others)} left out" in output
    for key in others:
        module = key.removeprefix(wrapper).split(".")[0]
        assert f"left out: 1: {key.removeprefix(wrapper)} (part of `{module}`, not of the backbone)" in output


def test_folder_loads_and_computes_the_same(tmp_path):
    """As the encoder of a classifier with these weights, converted by itself."""
    arguments = arguments_for(tmp_path)
    assert main([*arguments, "--output-dir", str(tmp_path / "backbone")]) == 0
    num_keys = len(backbone_weights("tiny_t"))
    report = read_report(tmp_path / "backbone")
    assert report["checks"]["tensors"] == {"compared": num_keys, "equal": num_keys}

    backbone, info = InternImageBackbone.from_pretrained(tmp_path / "backbone", output_loading_info=True)
    assert not any(info.values()) and backbone.out_features == ["stage1", "stage2", "stage3", "stage4"]
    model, info = AutoModel.from_pretrained(tmp_path / "backbone", add_pooling_layer=False, output_loading_info=True)
    assert not any(info.values())
    golden = REDUCED_MODELS["tiny_t"]
    classifier = convert_original(tmp_path / "classifier", golden["config"], golden["keys"], seed=0)
    image = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        expected = classifier(image, output_hidden_states=True).hidden_states[1:]
        for feature_map, hidden_state in zip(backbone(image).feature_maps, expected, strict=True):
            torch.testing.assert_close(feature_map, hidden_state)
        torch.testing.assert_close(model(image).last_hidden_state, expected[-1])
    processor = AutoImageProcessor.from_pretrained(tmp_path / "backbone")
    assert processor(torch.zeros(3, 64, 96), return_tensors="pt")["pixel_values"].shape == (1, 3, 64, 96)
    assert main([*arguments, "--verify", str(tmp_path / "backbone")]) == 0


REDUCED = [name for name in REDUCED_MODELS if "style" not in name]


@pytest.mark.parametrize("name", first_quick(REDUCED, lambda name: "flash" in name))
def test_shapes_say_the_architecture(name, tmp_path, capsys):
    """Of every kind of model, with the fields that shapes cannot say; a `.json` without them is told which."""
    write(tmp_path / "bev.pth", name, "img_backbone.")
    arguments = ["--backbone-only", "img_backbone.", "--source", str(tmp_path / "bev.pth"), "--dry-run"]
    assert main(arguments) == 1
    assert '`.json` with {"offset_scale": ...' in capsys.readouterr().err
    write_config(tmp_path / "fields.json", name)
    assert main([*arguments, "--config", str(tmp_path / "fields.json")]) == 0
    assert "tensors of" in capsys.readouterr().out


CLASSIFIERS = {name: ("", facts["keys"]) for name, facts in MANIFESTS.items()}
DETECTORS = {
    name: ("backbone.", facts["keys"])
    for file in ("detection/manifests.json.gz", "dcnv4/detection_manifests.json.gz")
    for name, facts in read_json(GOLDEN / file).items()
    if "cbinternimage" not in name
}


@pytest.mark.parametrize("name", CLASSIFIERS | DETECTORS)
def test_official_shapes_need_no_configuration(name):
    """What is not in the shapes is that of the official model. (Any layer scale does: the weights have the values.)"""
    prefix, keys = (CLASSIFIERS | DETECTORS)[name]
    weights = {key.removeprefix(prefix): zeros(shape) for key, shape in keys.items() if key.startswith(prefix)}
    found = complete_architecture(Path("bev.pth"), weights, {})
    expected = CHECKPOINTS[name].architecture
    has_scale = expected.get("layer_scale_init_value") is not None
    assert (found.pop("layer_scale_init_value") is not None) == has_scale
    for field in found.keys() | expected.keys() - {"layer_scale_init_value", "use_metadata_head"}:
        assert getattr(InternImageConfig(**found), field) == getattr(InternImageConfig(**expected), field), field


def test_configuration_of_the_training(tmp_path, capsys):
    """A `.py` in which the backbone is anywhere in `model`, as in the HD-map baseline, with fields for training."""
    config = REDUCED_MODELS["tiny_t"]["config"]
    write(tmp_path / "map.pth", "tiny_t", "backbone.img_backbone.")
    sizes = ", ".join(f"{name}={config[name]}" for name in ("channels", "depths", "groups"))
    text = f"""
model = dict(
    type='VectorMapNet',
    backbone_cfg=dict(
        type='IPMEncoder',
        img_backbone=dict(
            _delete_=True, type='InternImage', core_op='DCNv3', {sizes},
            mlp_ratio=4., drop_path_rate=0.3, norm_layer='LN', offset_scale=0.5, with_cp=True,
            out_indices=(1, 2, 3), init_cfg=dict(type='Pretrained', checkpoint='s.pth')),
        img_neck=dict(type='FPN')))
"""
    (tmp_path / "map.py").write_text(text)
    arguments = ["--backbone-only", "backbone.img_backbone", "--source", str(tmp_path / "map.pth")]
    arguments += ["--config", str(tmp_path / "map.py"), "--dry-run"]
    assert main(arguments) == 0
    assert "offset_scale 0.5" in capsys.readouterr().out
    (tmp_path / "map.py").write_text("model = dict(type='BEVFormer', img_backbone=dict(type='ResNet'))")
    assert main(arguments) == 1
    assert "has 0 settings with a type 'InternImage'" in capsys.readouterr().err


def test_pooler_and_classifier_are_left_out(tmp_path, capsys):
    """Of a file that is an InternImage itself."""
    torch.save({"model": original_state_dict(REDUCED_MODELS["tiny_t"]["keys"], 0)}, tmp_path / "t.pth")
    write_config(tmp_path / "fields.json", "tiny_t", offset_scale=1.0)
    arguments = ["--backbone-only", "", "--source", str(tmp_path / "t.pth"), "--config", str(tmp_path / "fields.json")]
    assert main([*arguments, "--dry-run"]) == 0
    assert "pooler and classifier, which a backbone does not have" in capsys.readouterr().out


def test_wrong_prefixes_and_extra_keys(tmp_path, capsys):
    write(tmp_path / "bev.pth", "tiny_t", "img_backbone.", others=["img_backbone.levels.0.adapter.weight"])
    arguments = ["--source", str(tmp_path / "bev.pth"), "--dry-run"]
    assert main(["--backbone-only", "backbone", *arguments]) == 1
    assert "no InternImage under 'backbone.'" in (error := capsys.readouterr().err)
    assert "It has one under 'img_backbone.'" in error
    write_config(tmp_path / "fields.json", "tiny_t", offset_scale=1.0)
    arguments += ["--config", str(tmp_path / "fields.json")]
    assert main(["--backbone-only", "img_backbone", *arguments]) == 1
    assert "1 keys belong to no parameter (levels.0.adapter.weight)" in capsys.readouterr().err


def test_averaged_weights_of_a_hook(tmp_path):
    """mmcv names them `ema_` and the whole key, prefix included."""
    content = {f"img_backbone.{key}": tensor for key, tensor in backbone_weights("tiny_t").items()}
    content["ema_img_backbone_patch_embed_conv1_bias"] = averaged = torch.ones(8)
    torch.save({"state_dict": content}, tmp_path / "bev.pth")
    weights = read_backbone(tmp_path / "bev.pth", "img_backbone.", ema=True)
    assert weights.keys() == backbone_weights("tiny_t").keys()
    assert torch.equal(weights["patch_embed.conv1.bias"], averaged)


def test_code_in_a_file_is_refused(tmp_path, capsys):
    class Runs:
        def __reduce__(self):
            return print, ("code ran",)

    write(tmp_path / "bev.pth", "tiny_t", "img_backbone.", evil=Runs())
    assert main(["--backbone-only", "img_backbone", "--source", str(tmp_path / "bev.pth"), "--dry-run"]) == 1
    output = capsys.readouterr()
    assert "is refused: reading it would run" in output.err and "code ran" not in output.out


@pytest.mark.parametrize(
    "prefix, normalized",
    [("img_backbone", "img_backbone."), ("module.img_backbone.", "img_backbone."), ("", ""), ("module.", "")],
)
def test_prefixes(prefix, normalized):
    assert normalize_prefix(prefix) == normalized
