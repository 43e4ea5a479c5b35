# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""Conversion from the original's `.pth` files: numbers, accounting, what is written, what an interruption leaves."""

import dataclasses
import errno
import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from golden_numbers import assert_full_size_model, assert_reduced_model
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file
from testing_utils import (
    FULLSIZE_MODELS,
    MANIFESTS,
    REDUCED_MODELS,
    REPOSITORY,
    first_quick,
    original_state_dict,
    write_without_data,
)
from torch.nn.functional import layer_norm, linear
from transformers import AutoImageProcessor, AutoModelForImageClassification, pipeline

from conversion import convert_checkpoint, convert_internimage_to_hf
from conversion.checkpoints import CHECKPOINTS, entries_of_file
from conversion.convert_internimage_to_hf import main
from conversion.imagenet_head import IMAGENET_22K_TO_1K, use_imagenet_1k_head
from conversion.measure_peak_memory import peak_command
from conversion.model_card import card_metadata, create_model_card
from modeling_internimage import InternImageBackbone, InternImageForImageClassification, encode_metadata


@pytest.fixture
def write_original(tmp_path):
    """
    Writes a reduced model with stand-in weights as the original's trainer would, and its Hub `config.json`: with one
    layer in each stage, which is quick, or with all that golden numbers need.
    """

    def write(name="tiny_t", change=lambda state_dict: None, all_layers=False, **entries):
        golden = REDUCED_MODELS[name]
        state_dict = original_state_dict(golden["keys"], golden["weights_seed"])
        config = {"core_op": "DCNv3", "model_type": "internimage"} | golden["config"]
        if not all_layers:
            config["depths"] = [1, 1, 1, 1]
            state_dict = {key: tensor for key, tensor in state_dict.items() if not re.search(r"blocks\.[1-9]", key)}
        change(state_dict)
        torch.save({"model": state_dict, "epoch": 299} | entries, tmp_path / f"{name}.pth")
        (tmp_path / "config.json").write_text(json.dumps(config))
        return ["--config", str(tmp_path / "config.json"), "--source", str(tmp_path / f"{name}.pth")]

    return write


def leftovers(folder) -> set[str]:
    return {path.name for path in folder.iterdir()} - {"config.json", "tiny_t.pth", "tiny_h.pth"}


@pytest.mark.parametrize("name", first_quick(REDUCED_MODELS, lambda name: name.startswith("tiny_flash") or name))
def test_reduced_models(name, write_original, tmp_path):
    assert main([*write_original(name, all_layers=True), "--output-dir", str(tmp_path / "converted")]) == 0
    model, info = InternImageForImageClassification.from_pretrained(tmp_path / "converted", output_loading_info=True)
    assert not any(info.values())
    assert_reduced_model(model, name)


@pytest.mark.slow
@pytest.mark.parametrize("name", FULLSIZE_MODELS)
def test_full_size_models(name, tmp_path):
    """Golden numbers, class names, preprocessing, and for the largest memory: at most 1.3 times the checkpoint."""
    source = tmp_path / f"{name}.pth"
    torch.save({"model": original_state_dict(MANIFESTS[name]["keys"], FULLSIZE_MODELS[name]["weights_seed"])}, source)
    arguments = ["--checkpoint", name, "--source", str(source), "--output-dir", str(tmp_path / "converted")]
    arguments += ["--max-shard-size", "200MB"]
    if source.stat().st_size < 5e8:
        assert main(arguments) == 0
    else:  # in a process of its own
        command = peak_command("conversion.convert_internimage_to_hf", "main", arguments)
        result = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY)
        assert result.returncode == 0, result.stderr
        before, peak = (1024 * int(number) for number in result.stdout.split()[-2:])
        assert peak - before < 1.3 * source.stat().st_size
    model = AutoModelForImageClassification.from_pretrained(tmp_path / "converted")
    assert_full_size_model(model, name)
    assert model.config.id2label[999] == "toilet tissue, toilet paper, bathroom tissue"
    processor = AutoImageProcessor.from_pretrained(tmp_path / "converted")
    assert processor.crop_size["height"] == MANIFESTS[name]["config"]["image_size"]


@pytest.mark.parametrize("name", MANIFESTS)
def test_every_classification_checkpoint_is_accounted_for(name, tmp_path, capsys):
    """At full size: all keys used, all parameters found. `offset_mask` of DCNv4 becomes two, without unread rows."""
    write_without_data(name, tmp_path / "source.pth")
    assert main(["--checkpoint", name, "--source", str(tmp_path / "source.pth"), "--dry-run"]) == 0
    output = capsys.readouterr().out
    keys = MANIFESTS[name]["keys"]
    packed = [shape for key, shape in keys.items() if ".offset_mask." in key]
    assert f"{len(keys) + len(packed)} tensors" in output
    assert f"; {sum(shape[0] % 27 > 0 for shape in packed)} left out" in output
    assert not (tmp_path / "converted").exists()


@pytest.fixture
def inaturalist_checkpoint(monkeypatch, tmp_path):
    """The iNaturalist checkpoint at reduced width: its name, its file and the stand-in weights of it."""
    name, golden = "internimage_h_22ktoinat18_384", REDUCED_MODELS["tiny_h"]
    metadata_keys = {key: shape for key, shape in MANIFESTS[name]["keys"].items() if key.startswith("meta_")}
    keys = (
        golden["keys"] | metadata_keys | {"head.weight": [8142, golden["keys"]["head.weight"][1]], "head.bias": [8142]}
    )
    weights = original_state_dict(keys, 3)
    torch.save({"model": weights}, tmp_path / "inat.pth")
    architecture = {
        key: golden["config"][key] for key in ("channels", "depths", "groups", "level2_post_norm_block_ids")
    }
    record = CHECKPOINTS[name]
    record = dataclasses.replace(record, architecture=record.architecture | architecture, image_size=(64, 64))
    monkeypatch.setitem(CHECKPOINTS, name, record)
    monkeypatch.setattr(convert_internimage_to_hf, "download_original", lambda checkpoint: tmp_path / "inat.pth")
    return name, tmp_path / "inat.pth", weights


@torch.no_grad()
def test_date_and_place(inaturalist_checkpoint, tmp_path):
    """The branch is converted, rests without its inputs, and the card says that the metric was measured with it."""
    name, _, weights = inaturalist_checkpoint
    assert main(["--checkpoint", name, "--output-dir", str(tmp_path / "converted")]) == 0
    model, info = AutoModelForImageClassification.from_pretrained(tmp_path / "converted", output_loading_info=True)
    assert model.config.use_metadata_head and not any(info.values())
    pixel_values = torch.randn(2, 3, 64, 64)
    added = model(pixel_values, **encode_metadata(["2018-07-04", None], [10, 0], [20, 30])).logits
    added = added - model(pixel_values).logits
    features = []
    temporal = torch.tensor([[math.sin(7 * math.pi / 6), math.cos(7 * math.pi / 6), 0, 0], [0] * 4])
    latitude, longitude = math.radians(10), math.radians(20)
    place = [math.cos(latitude) * math.cos(longitude), math.cos(latitude) * math.sin(longitude), math.sin(latitude)]
    for part, x in (("meta_head_1", temporal), ("meta_head_2", torch.tensor([place, [0] * 3]))):
        own = {key.removeprefix(f"{part}."): tensor for key, tensor in weights.items() if key.startswith(f"{part}.")}
        x = linear(x, own["0.weight"], own["0.bias"]).relu()
        x = layer_norm(x, (64,), own["2.weight"], own["2.bias"])
        y = x
        for idx in "12":
            y = linear(y, own[f"3.w{idx}.weight"], own[f"3.w{idx}.bias"]).relu()
            y = layer_norm(y, (64,), own[f"3.norm_fn{idx}.weight"], own[f"3.norm_fn{idx}.bias"])
        features.append(x + y)
    features = layer_norm(torch.cat(features, 1), (128,), weights["meta_norm.weight"], weights["meta_norm.bias"], 1e-6)
    expected = linear(features, weights["meta_head.weight"], weights["meta_head.bias"])
    torch.testing.assert_close(added, expected, rtol=1e-4, atol=1e-4)
    card = (tmp_path / "converted" / "README.md").read_text()
    assert "92.6" in card and "measured it with the date and the place of each image" in card
    assert "encode_metadata(" in card


def test_date_and_place_of_ones_own(inaturalist_checkpoint, capsys):
    """The same architecture trained without the branch has no keys for it."""
    name, source, weights = inaturalist_checkpoint
    torch.save({"model": {key: tensor for key, tensor in weights.items() if not key.startswith("meta_")}}, source)
    assert main(["--checkpoint", name, "--source", str(source), "--dry-run"]) == 0
    assert "; 0 left out" in capsys.readouterr().out


def rename_one(state_dict):
    state_dict["levels.0.blocks.0.dcn.mask.renamed"] = state_dict.pop("levels.0.blocks.0.dcn.mask.bias")


@pytest.mark.parametrize(
    "change, named",
    [
        (rename_one, ["levels.0.blocks.0.dcn.mask.renamed", "encoder.stages.0.layers.0.dcn.mask_proj.bias"]),
        (
            lambda state_dict: state_dict.pop("head.bias.missing", state_dict.pop("conv_head.0.weight")),
            ["pooler.conv"],
        ),
        (lambda state_dict: state_dict.update({"extra": torch.ones(2)}), ["extra"]),
        (
            lambda state_dict: state_dict.update({"levels.0.norm.0.bias": torch.ones(7)}),
            ["levels.0.norm.0.bias", "(7,)"],
        ),
        (
            lambda state_dict: state_dict.update({"head.bias": state_dict["head.bias"].int()}),
            ["head.bias of torch.int32"],
        ),
    ],
    ids=["renamed", "missing", "extra", "shape", "type"],
)
def test_wrong_keys_are_named(change, named, write_original, tmp_path, capsys):
    assert main([*write_original(change=change), "--output-dir", str(tmp_path / "converted")]) == 1
    error = capsys.readouterr().err
    assert all(name in error for name in named) and error.count("\n") == 1
    assert leftovers(tmp_path) == set()


@pytest.mark.parametrize(
    "source, target, named",
    [
        (
            "internimage_t_1k_224",
            "flash_intern_image_t_1k_224",
            ["blocks.0.dcn.dw_conv.0.weight", "blocks.0.dcn.dw_conv.1.1.weight", "layers.0.dcn.value_proj.weight"],
        ),
        (
            "flash_intern_image_t_1k_224",
            "internimage_t_1k_224",
            ["blocks.0.dcn.value_proj.weight", "layers.0.dcn.depthwise_convolution.weight"],
        ),
    ],
)
def test_file_with_the_other_operator(source, target, named, tmp_path, capsys):
    """DCNv3 as DCNv4 and the reverse: refused with the names of what differs, and of what the file is."""
    write_without_data(source, tmp_path / "source.pth")
    assert main(["--checkpoint", target, "--source", str(tmp_path / "source.pth"), "--dry-run"]) == 1
    error = capsys.readouterr().err
    assert f"is not {target}: " in error and f"as many parameters as {source}" in error
    assert all(name in error for name in named), error


def test_unread_rows(write_original, tmp_path):
    """Named in the report and on the card, which is that of a FlashInternImage."""
    assert main([*write_original("tiny_flash_t"), "--output-dir", str(tmp_path / "converted")]) == 0
    report = json.loads((tmp_path / "converted" / "conversion_report.json").read_text())
    assert set(report["keys"]["dropped"]) == {
        f"levels.{level}.blocks.0.dcn.offset_mask.{name}[{rows}:]"
        for level, rows in enumerate((27, 54, 108))
        for name in ("weight", "bias")
    }
    card = (tmp_path / "converted" / "README.md").read_text()
    assert "FlashInternImage with 16 channels" in card and "(DCNv4)" in card and "arxiv.org/abs/2401.06197" in card
    assert "Rows of 6 tensors were left out" in card and "which the operator never reads" in card


def test_card_with_two_results():
    """The authors' tables disagree about one checkpoint; its card says so."""
    checkpoint = CHECKPOINTS["mask2former_flash_internimage_s_640_160k_ade20k_ss"]
    provenance = {"source": {"file": "", "sha256": ""}, "command": "", "versions": {}}
    options = convert_checkpoint.ConversionOptions()
    card = create_model_card(checkpoint, checkpoint.config(), options, {}, provenance)
    assert "FlashInternImage-S for semantic segmentation with a Mask2Former head" in card
    assert "| mIoU | 52.6 |" in card and "says 52.2 for this file" in card
    assert card_metadata(checkpoint, options).eval_results[0].source_name == "OpenGVLab/DCNv4"


def test_wrong_file_for_the_name(tmp_path, capsys):
    write_without_data("internimage_t_1k_224", tmp_path / "source.pth")
    arguments = ["--checkpoint", "internimage_s_1k_224", "--source", str(tmp_path / "source.pth"), "--dry-run"]
    assert main(arguments) == 1
    error = capsys.readouterr().err
    assert "is not internimage_s_1k_224" in error
    assert "patch_embed.conv1.weight (32, 3, 3, 3) instead of (40, 3, 3, 3)" in error
    assert "encoder.stages.0.layers.0.layer_scale1" in error
    assert "as many parameters as internimage_t_1k_224" in error


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_dtype_and_shards(dtype, write_original, tmp_path):
    arguments = [*write_original(), "--dtype", dtype, "--max-shard-size", "100KB"]
    assert main([*arguments, "--output-dir", str(tmp_path / "converted")]) == 0
    files = sorted((tmp_path / "converted").glob("*.safetensors"))
    index = json.loads((tmp_path / "converted" / "model.safetensors.index.json").read_text())
    assert len(files) > 3 and set(index["weight_map"].values()) == {file.name for file in files}
    assert {file.stat().st_mode & 0o777 for file in files} == {0o666 & ~os.umask(os.umask(0o022) or 0o022)}
    tensors = {name: tensor for file in files for name, tensor in load_file(file).items()}
    golden = REDUCED_MODELS["tiny_t"]
    original = original_state_dict(golden["keys"], golden["weights_seed"])["levels.1.blocks.0.mlp.fc1.weight"]
    converted = tensors["internimage.encoder.stages.1.layers.0.mlp.fc1.weight"]
    assert torch.equal(converted, original.to(getattr(torch, dtype)))
    assert AutoModelForImageClassification.from_pretrained(tmp_path / "converted").dtype == converted.dtype


def test_averaged_weights(write_original, tmp_path):
    golden = REDUCED_MODELS["tiny_t"]
    averaged = original_state_dict(golden["keys"], golden["weights_seed"])
    noise = original_state_dict(golden["keys"], 1)
    arguments = write_original(change=lambda weights: weights.update(noise), all_layers=True, model_ema=averaged)
    assert main([*arguments, "--ema", "--output-dir", str(tmp_path / "converted")]) == 0
    assert_reduced_model(InternImageForImageClassification.from_pretrained(tmp_path / "converted"), "tiny_t")


YAML = """
DATA: {IMG_SIZE: 64}
BASE: [base.yaml]
MODEL:
  TYPE: intern_image
  DROP_PATH_RATE: 0.1
  INTERN_IMAGE:
    LAYER_SCALE: None
    OFFSET_SCALE: 1.0
"""


@pytest.mark.parametrize("name, section", [("tiny_t", "INTERN_IMAGE"), ("tiny_flash_t", "FLASH_INTERN_IMAGE")])
def test_yaml_of_the_original_trainer(name, section, write_original, tmp_path):
    """The operator follows from the section, where the file does not name it."""
    _, _, *source = write_original(name, all_layers=True)
    config = REDUCED_MODELS[name]["config"]
    base = {name.upper(): config[name] for name in ("depths", "groups", "channels", "mlp_ratio", "post_norm")}
    (tmp_path / "my.yaml").write_text(YAML.replace("INTERN_IMAGE:", f"{section}:"))
    (tmp_path / "base.yaml").write_text(yaml.safe_dump({"MODEL": {section: base | {"LAYER_SCALE": "1e-5"}}}))
    output = tmp_path / "converted"
    assert main(["--config", str(tmp_path / "my.yaml"), *source, "--output-dir", str(output)]) == 0
    model = InternImageForImageClassification.from_pretrained(output)
    assert_reduced_model(model, name)
    assert model.config.layer_scale_init_value is None and model.config.image_size == 64
    assert "a data set of its own" in (output / "README.md").read_text()


@pytest.mark.parametrize(
    "file, text, message",
    [
        ("my.yaml", "MODEL: {TYPE: swin}", "neither `MODEL.INTERN_IMAGE` nor `MODEL.FLASH_INTERN_IMAGE`"),
        ("my.yaml", "MODEL: {INTERN_IMAGE: {CHANNELS: 16}, FLASH_INTERN_IMAGE: {CHANNELS: 16}}", "both `MODEL.INTERN"),
        ("my.yaml", "MODEL: [", "cannot be read"),
        ("my.json", "{", "cannot be read"),
        ("my.json", '{"model_type": "swin"}', "does not describe an InternImage"),
        ("my.json", '{"groups": [3, 2, 4, 8]}', "does not describe an InternImage.*num_groups"),
        ("my.json", "[1]", "holds a list"),
        ("my.json", "[" * 90_000, "cannot be read"),
        ("my.json", '{"mlp_ratio": Infinity}', "a number is Inf or NaN"),
        ("my.json", '{"depths": [1000000000, 1, 1, 1]}', "more layers than .* has tensors"),
        ("my.json", '{"mlp_ratio": 1e300}', "`mlp_ratio` must be from"),
        ("my.json", " " * 100_001, "100,001 bytes: that is not a configuration"),
        ("my.yaml", "[" * 90_000, "nested more than 50 deep"),
        ("my.yaml", "MODEL: {INTERN_IMAGE: &a [1], X: [*a, *a]}", "has aliases"),
        ("my.yaml", "MODEL: 2001-99-99", "cannot be read"),
        ("my.yaml", "BASE: [my.yaml]\nMODEL: {INTERN_IMAGE: {CHANNELS: 16}}", "each in one place"),
        ("my.yaml", "BASE: [../other.yaml]\nMODEL: {INTERN_IMAGE: {CHANNELS: 16}}", "beside or below"),
        ("my.yaml", "BASE: 3\nMODEL: {INTERN_IMAGE: {CHANNELS: 16}}", "not a list of file names"),
        ("my.yaml", 'BASE: "\\e[2J"\nMODEL: {INTERN_IMAGE: {CHANNELS: 16}}', r"not a list of file names: \\x1b\[2J"),
        (
            "my.json",
            '{"model_type": "upernet"}',
            "does not describe an InternImage: `backbone_config` has `model_type='r",
        ),
    ],
)
def test_other_configurations_are_refused(file, text, message, write_original, tmp_path, capsys):
    _, _, *source = write_original()
    (tmp_path / file).write_text(text)
    assert main(["--config", str(tmp_path / file), *source, "--dry-run"]) == 1
    error = capsys.readouterr().err
    assert re.search(message, error) and error.count("\n") == 1, error


def test_empty_sections_of_a_yaml(write_original, tmp_path):
    arguments = write_original()
    config = json.loads((tmp_path / "config.json").read_text())
    settings = {name.upper(): config[name] for name in ("depths", "groups", "channels", "mlp_ratio", "post_norm")}
    settings = {"DATA": None, "BASE": None, "MODEL": {"INTERN_IMAGE": settings}}
    (tmp_path / "my.yaml").write_text(yaml.safe_dump(settings))
    assert main(["--config", str(tmp_path / "my.yaml"), *arguments[2:], "--dry-run"]) == 0


@pytest.mark.parametrize(
    "bias, message",
    [
        (torch.zeros(()).expand(10**9), r"`head.bias` is of shape \(1000000000,\), not of 1 to 100,000 classes"),
        (torch.zeros(()), r"of shape \(\)"),
        (torch.zeros(0), r"of shape \(0,\)"),
    ],
    ids=["billion", "scalar", "empty"],
)
def test_claimed_classes(bias, message, write_original, capsys):
    assert main([*write_original(change=lambda weights: weights.update({"head.bias": bias})), "--dry-run"]) == 1
    assert re.search(message, capsys.readouterr().err)


@pytest.mark.parametrize(
    "change, options, message",
    [
        (lambda weights: weights["head.bias"].fill_(float("nan")), [], "head.bias in .* has Inf or NaN as float32"),
        (lambda weights: weights["head.bias"].fill_(1e30), ["--dtype", "float16"], "head.bias .*NaN as float16"),
        (
            lambda weights: weights.update(
                {key: torch.zeros((), dtype=value.dtype).expand(value.shape) for key, value in weights.items()}
            ),
            [],
            "its tensors are .*: some are expanded from fewer numbers",
        ),
    ],
    ids=["nan", "float16", "expanded"],
)
def test_weights_that_are_not_converted(change, options, message, write_original, tmp_path, capsys):
    assert main([*write_original(change=change), *options, "--output-dir", str(tmp_path / "converted")]) == 1
    assert re.search(message, capsys.readouterr().err)
    assert leftovers(tmp_path) == set()


def test_a_file_of_ones_own(write_original, tmp_path, capsys):
    """Its name is text in the card, whatever it contains, and nothing of the authors is said of it."""
    *config, source = write_original()
    hostile = Path(source).rename(tmp_path / 'a`");import os\n|<b>\x1b[31m.pth')
    assert main([*config, str(hostile), "--output-dir", str(tmp_path / "converted")]) == 0
    output, card = capsys.readouterr().out, (tmp_path / "converted" / "README.md").read_text()
    assert "\x1b" not in output + card and r"\x1b[31m" in card
    assert 'model="a-import-os-b-31m")' in card
    assert all(
        line.startswith(("| original |", "| converted with |")) for line in card.splitlines() if "import os" in line
    )
    assert "from its owner's file" in card and "its authors" not in card and "eported by the authors" not in card
    assert ModelCard(card).data.license == "unknown" and ModelCard(card).data.datasets is None


def test_classifier_with_other_classes(imagenet_22k_checkpoint, tmp_path, capsys):
    """Of an architecture of the registry: as many classes as the file has, without their names."""
    weights = torch.load(imagenet_22k_checkpoint[3])["model"]
    weights |= {name: weights[name][:5].clone() for name in ("head.weight", "head.bias")}
    torch.save({"model": weights}, imagenet_22k_checkpoint[3])
    assert main([*imagenet_22k_checkpoint, "--output-dir", str(tmp_path / "own")]) == 0
    assert "with 5 classes: LABEL_0" in capsys.readouterr().out
    assert AutoModelForImageClassification.from_pretrained(tmp_path / "own").config.num_labels == 5
    card = (tmp_path / "own" / "README.md").read_text()
    assert "ImageNet" not in card.split("## Licence")[0] and "a data set of its own (5 classes)" in card


@pytest.fixture
def imagenet_22k_checkpoint(monkeypatch, tmp_path):
    """A small ImageNet-22k classifier in the registry, and its file."""
    golden = REDUCED_MODELS["tiny_t"]
    keys = golden["keys"] | {"head.weight": [21841, golden["keys"]["head.weight"][1]], "head.bias": [21841]}
    torch.save({"model": original_state_dict(keys, 0)}, tmp_path / "small_22k.pth")
    config = {name: golden["config"][name] for name in ("depths", "groups", "channels")}
    record = dataclasses.replace(
        CHECKPOINTS["internimage_l_22k_192to384"], name="small_22k", architecture=config, image_size=(64, 64)
    )
    monkeypatch.setitem(CHECKPOINTS, "small_22k", record)
    return ["--checkpoint", "small_22k", "--source", str(tmp_path / "small_22k.pth")]


@torch.no_grad()
def test_imagenet_1k_head(imagenet_22k_checkpoint, tmp_path):
    """The original's list of rows, at conversion and on a loaded model."""
    assert len(IMAGENET_22K_TO_1K) == 1000 and IMAGENET_22K_TO_1K[:3] == [359, 368, 460]
    assert main([*imagenet_22k_checkpoint, "--output-dir", str(tmp_path / "22k")]) == 0
    assert main([*imagenet_22k_checkpoint, "--imagenet-1k-head", "--output-dir", str(tmp_path / "1k")]) == 0
    full = AutoModelForImageClassification.from_pretrained(tmp_path / "22k")
    small = AutoModelForImageClassification.from_pretrained(tmp_path / "1k")
    pixel_values = torch.randn(1, 3, 64, 64)
    logits = full(pixel_values).logits
    assert logits.shape == (1, 21841) and full.config.id2label[21840] == "knothole"
    torch.testing.assert_close(small(pixel_values).logits, logits[:, IMAGENET_22K_TO_1K])
    torch.testing.assert_close(use_imagenet_1k_head(full)(pixel_values).logits, logits[:, IMAGENET_22K_TO_1K])
    for model in (small, full):
        assert model.config.num_labels == model.num_labels == 1000
        assert model.config.id2label[0] == "tench, Tinca tinca"
    # A class and its row have the same name, but for the one that ImageNet-22k does not have.
    names = AutoModelForImageClassification.from_pretrained(tmp_path / "22k").config.id2label
    different = [idx for idx, row in enumerate(IMAGENET_22K_TO_1K) if names[row] != small.config.id2label[idx]]
    assert different == [850]
    card = (tmp_path / "1k" / "README.md").read_text()
    assert "start for fine-tuning" in card and "1000 classes" in card


@pytest.mark.parametrize("size", ["abc", "-1", "5", "1KB"])
def test_max_shard_size(size, write_original, capsys):
    """Something that is not a size is refused; one smaller than every tensor gives each a file of its own."""
    status = main([*write_original(), f"--max-shard-size={size}", "--dry-run"])
    output = capsys.readouterr()
    assert (status, "is not a size" in output.err) == ((0, False) if size == "1KB" else (1, True)), output


def test_imagenet_1k_head_of_another_classifier(write_original, tmp_path, capsys):
    assert main([*write_original(), "--imagenet-1k-head", "--dry-run"]) == 1
    assert "rows of an ImageNet-22k classifier" in capsys.readouterr().err


@pytest.fixture(scope="module")
def converted_t(tmp_path_factory):
    """InternImage-T at full size with stand-in weights, and what it was converted to, as if it were the download."""
    folder = tmp_path_factory.mktemp("t")
    torch.save(
        {"model": original_state_dict(MANIFESTS["internimage_t_1k_224"]["keys"], 0)},
        folder / "internimage_t_1k_224.pth",
    )
    source = ["--checkpoint", "internimage_t_1k_224", "--source", str(folder / "internimage_t_1k_224.pth")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(convert_internimage_to_hf, "download_original", lambda checkpoint: Path(source[3]))
        assert main([*source[:2], "--remote-code", "--output-dir", str(folder / "converted")]) == 0
    return source, folder / "converted"


def test_model_card(converted_t):
    _, folder = converted_t
    card = ModelCard.load(folder / "README.md")
    data = card.data
    assert (data.license, data.library_name, data.pipeline_tag) == ("mit", "transformers", "image-classification")
    assert data.base_model == "OpenGVLab/internimage_t_1k_224" and data.datasets == ["imagenet-1k"]
    (result,) = data.eval_results
    assert result.metric_value == 83.5 and "reported by the authors" in result.metric_name and not result.verified
    report = json.loads((folder / "conversion_report.json").read_text())
    for expected in (report["source"]["sha256"], report["command"], "Reported by the authors, not measured", "MIT"):
        assert expected in card.text
    assert "$" not in card.text and str(folder.parent) not in card.content + json.dumps(report)


def test_every_model_card_has_valid_metadata():
    """With the results of all entries of its file."""
    for checkpoint in CHECKPOINTS.values():
        metadata = card_metadata(checkpoint, convert_checkpoint.ConversionOptions())
        text = f"---\n{metadata.to_yaml()}\n---\n"
        read = ModelCard(text, ignore_metadata_errors=False).data
        results = sum(len(entry.reported) for entry in entries_of_file(checkpoint))
        assert read.license == "mit" and len(read.eval_results or []) == results


def test_use_of_what_was_written(converted_t, tmp_path, photographs):
    from PIL import Image

    _, folder = converted_t
    Image.fromarray(photographs[0]).save(tmp_path / "photo.jpg")
    predictions = pipeline("image-classification", model=str(folder))(str(tmp_path / "photo.jpg"))
    assert predictions[0]["label"] in AutoModelForImageClassification.from_pretrained(folder).config.label2id
    backbone, info = InternImageBackbone.from_pretrained(folder, output_loading_info=True)
    assert not any(info.values()) and len(backbone(torch.randn(1, 3, 64, 64)).feature_maps) == 1
    # For users without this package; tests/modeling/test_auto_classes.py runs such files.
    assert json.loads((folder / "config.json").read_text())["auto_map"] == convert_checkpoint.REMOTE_CODE
    assert {file.name for file in folder.glob("*.py")} == {"configuration_internimage.py", "modeling_internimage.py"}


def test_verify(converted_t, tmp_path, capsys):
    source, folder = converted_t
    assert main([*source, "--verify", str(folder)]) == 0
    assert "633 tensors equal" in capsys.readouterr().out
    assert main(["--checkpoint", "internimage_s_1k_224", *source[2:], "--verify", str(folder)]) == 1
    assert "was converted from internimage_t_1k_224" in capsys.readouterr().err
    assert main([*source, "--verify", str(tmp_path)]) == 1
    assert "no conversion report" in capsys.readouterr().err
    torch.save({"model": torch.load(source[3])["model"], "epoch": 1}, tmp_path / "same_weights.pth")
    assert main([*source[:3], str(tmp_path / "same_weights.pth"), "--verify", str(folder)]) == 1
    assert "SHA-256" in capsys.readouterr().err


def change_one_bit(folder):
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[-100] ^= 1
    (folder / "model.safetensors").write_bytes(content)


def change_tensors(change):
    def tamper(folder):
        state_dict = load_file(folder / "model.safetensors")
        change(state_dict)
        save_file(state_dict, folder / "model.safetensors", {"format": "pt"})

    return tamper


def change_configuration(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"offset_scale": 2.0}))


@pytest.mark.parametrize(
    "tamper, recorded, message",
    [
        (change_one_bit, False, "was changed since the conversion"),
        (lambda folder: (folder / "model.safetensors").unlink(), False, "model.safetensors is missing"),
        (change_one_bit, True, "differs from"),
        (change_tensors(lambda tensors: tensors.pop("classifier.bias")), True, "classifier.bias in .* differs from"),
        (change_tensors(lambda tensors: tensors.update(extra=torch.ones(1))), True, "tensors that are not in .*extra"),
        (
            change_tensors(lambda tensors: tensors.update({"classifier.bias": tensors["classifier.bias"].double()})),
            True,
            "classifier.bias in .* differs from",
        ),
        (change_configuration, True, "computes other logits"),
    ],
    ids=[
        "bit",
        "file",
        "recorded-bit",
        "recorded-missing",
        "recorded-extra",
        "recorded-dtype",
        "recorded-configuration",
    ],
)
def test_verify_finds_every_change(tamper, recorded, message, write_original, tmp_path, capsys):
    """Also one whose SHA-256 was recorded, as somebody who publishes something else would do."""
    arguments = write_original()
    folder = tmp_path / "converted"
    assert main([*arguments, "--output-dir", str(folder)]) == 0
    tamper(folder)
    if recorded:
        report = json.loads((folder / "conversion_report.json").read_text())
        for name in report["files"]:
            report["files"][name]["sha256"] = convert_checkpoint.file_sha256(folder / name)
        (folder / "conversion_report.json").write_text(json.dumps(report))
    capsys.readouterr()
    assert main([*arguments, "--verify", str(folder)]) == 1
    assert re.search(message, capsys.readouterr().err)


def test_finished_means_the_same_conversion(write_original, tmp_path, capsys):
    """A folder is finished if checkpoint, source, options and files are those asked for; else it is kept and named."""
    arguments = [*write_original(), "--output-dir", str(tmp_path / "converted")]
    assert main(arguments) == 0
    assert main(arguments) == 0 and "finished earlier" in capsys.readouterr().out
    assert main([*arguments, "--dtype", "float16"]) == 1 and "is not empty" in capsys.readouterr().err
    (tmp_path / "tiny_t.pth").rename(tmp_path / "other.pth")
    other = [*arguments[:3], str(tmp_path / "other.pth"), *arguments[4:]]
    assert main(other) == 1 and "is not empty" in capsys.readouterr().err
    write_original(epoch=300)
    assert main(arguments) == 1 and "is not empty" in capsys.readouterr().err
    write_original()
    assert main(arguments) == 0
    with open(tmp_path / "converted" / "model.safetensors", "ab") as file:
        file.write(b"more")
    assert main(arguments) == 1 and "is not empty" in capsys.readouterr().err


def test_left_out_keys_are_reported(write_original, tmp_path):
    arguments = write_original(change=lambda state_dict: state_dict.update({"ema_head_bias": torch.ones(10)}))
    folder = tmp_path / "new" / "parents" / "converted"
    assert main([*arguments, "--output-dir", str(folder)]) == 0
    report = json.loads((folder / "conversion_report.json").read_text())
    (reason,) = report["keys"]["dropped"].values()
    assert list(report["keys"]["dropped"]) == ["ema_head_bias"] and "second set of weights" in reason
    assert f"1 tensors were left out (ema_head_bias, ...): {reason}" in (folder / "README.md").read_text()


def test_mixed_precision_and_double_names(write_original, tmp_path, capsys):
    """The widest type of a source is kept for all; a parameter under two names is refused."""

    def one_wide(state_dict):
        for key, tensor in state_dict.items():
            state_dict[key] = tensor.half() if tensor.is_floating_point() else tensor
        state_dict["head.bias"] = state_dict["head.bias"].float()

    assert main([*write_original(change=one_wide), "--output-dir", str(tmp_path / "mixed")]) == 0
    assert load_file(tmp_path / "mixed" / "model.safetensors")["classifier.weight"].dtype == torch.float32
    twice = write_original(change=lambda state_dict: state_dict.update({"classifier.bias": state_dict["head.bias"]}))
    capsys.readouterr()
    assert main([*twice, "--dry-run"]) == 1
    assert "1 keys belong to no parameter (classifier.bias)" in capsys.readouterr().err


def test_output_directory_with_files_is_kept(write_original, tmp_path, capsys):
    (tmp_path / "converted").mkdir()
    (tmp_path / "converted" / "thesis.tex").write_text("precious")
    arguments = [*write_original(), "--output-dir", str(tmp_path / "converted")]
    assert main(arguments) == 1
    assert "is not empty" in capsys.readouterr().err
    assert [file.name for file in (tmp_path / "converted").iterdir()] == ["thesis.tex"]
    assert main([*arguments[:-1], str(tmp_path / "converted" / "thesis.tex")]) == 1
    assert "is not empty" in capsys.readouterr().err
    assert (tmp_path / "converted" / "thesis.tex").read_text() == "precious"


@pytest.mark.parametrize("kind", ["here", "link", "made"])
def test_empty_output_directory(kind, write_original, tmp_path, monkeypatch):
    """It stays the same folder, whatever it is called."""
    (tmp_path / "empty").mkdir()
    before = (tmp_path / "empty").stat().st_ino
    monkeypatch.chdir(tmp_path / "empty")
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    target = {"here": ".", "link": str(tmp_path / "link"), "made": str(tmp_path / "empty")}[kind]
    arguments = write_original()
    assert main([*arguments, "--output-dir", target]) == 0
    names = {"README.md", "config.json", "preprocessor_config.json", "model.safetensors", "conversion_report.json"}
    assert {file.name for file in Path().iterdir()} == names and Path().stat().st_ino == before
    assert main([*arguments, "--output-dir", target]) == 0  # finished earlier


@pytest.mark.parametrize("is_there", [True, False], ids=["there", "new"])
def test_two_conversions_into_one_folder(is_there, write_original, tmp_path, monkeypatch, capsys):
    """The second is refused while the first writes, and does not disturb it."""
    arguments = [*write_original(), "--output-dir", str(tmp_path / "converted")]
    if is_there:
        (tmp_path / "converted").mkdir()
    check, second = convert_checkpoint.check_logits, []

    def check_while_another_starts(plan, folder):
        monkeypatch.setattr(convert_checkpoint, "check_logits", check)
        second.append(main(arguments))
        return check(plan, folder)

    monkeypatch.setattr(convert_checkpoint, "check_logits", check_while_another_starts)
    assert main(arguments) == 0 and second == [1]
    assert "Another process is writing" in capsys.readouterr().err
    assert leftovers(tmp_path) == {"converted"} and not list((tmp_path / "converted").glob(".*"))


def test_files_of_others_are_never_deleted(write_original, tmp_path, capsys):
    """Not in a folder that is called as an unfinished one either."""
    unfinished = tmp_path / ".converted.unfinished"
    unfinished.mkdir()
    (unfinished / "thesis.tex").write_text("precious")
    (unfinished / "config.json").write_text("left by a killed process")
    arguments = [*write_original(), "--output-dir", str(tmp_path / "converted")]
    assert main(arguments) == 1 and "does not write (thesis.tex)" in capsys.readouterr().err
    assert (unfinished / "thesis.tex").read_text() == "precious"
    (unfinished / "thesis.tex").unlink()
    assert main(arguments) == 0 and leftovers(tmp_path) == {"converted"}


def test_damaged_report(write_original, tmp_path, capsys):
    folder, arguments = tmp_path / "converted", write_original()
    assert main([*arguments, "--output-dir", str(folder)]) == 0
    report = json.loads((folder / "conversion_report.json").read_text())
    files = {"../secret": {"bytes": 1, "sha256": ""}}
    for changed in (
        [report],
        report | {"files": files},
        report | {"options": {"dtype": "save"}},
        report | {"files": []},
        {},
    ):
        (folder / "conversion_report.json").write_text(json.dumps(changed))
        capsys.readouterr()
        for use in ("--verify", "--output-dir"):
            assert main([*arguments, use, str(folder)]) == 1
            error = capsys.readouterr().err
            assert "conversion_report.json is " in error and error.count("\n") == 1


def no_space(*arguments, **kwargs):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("moment", ["before", "while writing", "interrupt"])
def test_nothing_is_left_of_a_failure(moment, write_original, tmp_path, monkeypatch, capsys):
    arguments = [*write_original(), "--output-dir", str(tmp_path / "converted")]
    if moment == "before":
        usage = type("Usage", (), {"free": 1000})
        monkeypatch.setattr(convert_checkpoint.shutil, "disk_usage", lambda path: usage)
    elif moment == "while writing":
        monkeypatch.setattr(convert_checkpoint.safetensors.torch, "save_file", no_space)
    else:
        monkeypatch.setattr(convert_checkpoint, "check_logits", lambda *arguments: signal.raise_signal(signal.SIGINT))
        handler = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
        try:
            with pytest.raises(KeyboardInterrupt):
                main(arguments)
        finally:
            signal.signal(signal.SIGINT, handler)
        assert leftovers(tmp_path) == set()
        return
    assert main(arguments) == 1
    error = capsys.readouterr().err
    assert "on another disk" in error and error.count("\n") == 1
    assert leftovers(tmp_path) == set()


@pytest.mark.slow
def test_kill_in_the_middle(write_original, tmp_path):
    """Nothing that could be taken for a checkpoint is there afterwards, and the next run cleans up and finishes."""
    arguments = [*write_original(), "--output-dir", str(tmp_path / "converted"), "--max-shard-size", "30KB"]
    command = [sys.executable, "-m", "conversion.convert_internimage_to_hf", *arguments]
    process = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    unfinished = tmp_path / ".converted.unfinished"
    deadline = time.monotonic() + 60
    while not list(unfinished.glob("*.safetensors")) and time.monotonic() < deadline:
        time.sleep(0.001)
    process.kill()
    process.wait()
    assert leftovers(tmp_path) == {".converted.unfinished"}
    assert main(arguments) == 0
    assert leftovers(tmp_path) == {"converted"}


WITHOUT_WEIGHTS = "cascade_internimage_xl_fpn_3x_crowd_human"


def test_all(write_original, tmp_path, monkeypatch, capsys):
    """What is finished stays, a failure does not stop the others, a file is converted once, what is left out said."""
    write_original("tiny_t", all_layers=True)
    write_original("tiny_h", all_layers=True)
    (tmp_path / "damaged.pth").write_bytes(b"")

    def record(name, config):
        architecture = {key: value for key, value in config.items() if key not in ("num_classes", "image_size")}
        template = CHECKPOINTS["internimage_t_1k_224"]
        return dataclasses.replace(
            template,
            name=name,
            file=f"{name}.pth",
            architecture=architecture,
            num_labels=config["num_classes"],
            labels=None,
            image_size=(64, 64),
        )

    ignored = ("label_smoothing", "drop_path_rate")
    tiny_t, tiny_h = (
        {key: value for key, value in REDUCED_MODELS[name]["config"].items() if key not in ignored}
        for name in ("tiny_t", "tiny_h")
    )
    records = [record("damaged", tiny_t), record("tiny_t", tiny_t), record("tiny_h", tiny_h)]
    records += [dataclasses.replace(records[-1], name="same_file"), CHECKPOINTS[WITHOUT_WEIGHTS]]
    monkeypatch.setattr(convert_internimage_to_hf, "CHECKPOINTS", {record.name: record for record in records})
    monkeypatch.setattr(
        convert_internimage_to_hf, "download_original", lambda checkpoint: tmp_path / f"{checkpoint.name}.pth"
    )
    arguments = ["--checkpoint", "all", "--output-dir", str(tmp_path / "all")]
    assert main(arguments) == 1
    output = capsys.readouterr()
    assert "1 failed: damaged" in output.err and f"{WITHOUT_WEIGHTS}: no weights published" in output.out
    assert "same_file: the same file as tiny_h, whose model card has the results of both" in output.out
    assert {folder.name for folder in (tmp_path / "all").iterdir()} == {"tiny_t", "tiny_h"}
    times = {file: file.stat().st_mtime_ns for file in (tmp_path / "all").rglob("*")}
    (tmp_path / "all" / "tiny_h" / "config.json").unlink()
    write_original("tiny_t", all_layers=True)
    (tmp_path / "tiny_t.pth").rename(tmp_path / "damaged.pth")
    assert main(arguments) == 1  # tiny_h is incomplete now, and not ours to delete
    output = capsys.readouterr()
    assert "1 failed: tiny_h" in output.err and "tiny_t: finished earlier" in output.out
    assert all(file.stat().st_mtime_ns == times[file] for file in (tmp_path / "all" / "tiny_t").iterdir())
    for file in (tmp_path / "all" / "tiny_h").iterdir():
        file.unlink()
    assert main(arguments) == 0


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([], "name what to convert"),
        (["--checkpoint", "internimage_t_1k_224"], "--output-dir"),
        (["--config", "a.yaml", "--output-dir", "b"], "--config needs --source"),
        (["--checkpoint", "all", "--source", "a.pth", "--output-dir", "b"], "all takes no --source"),
        (["--checkpoint", "all", "--output-dir", "b", "--push-to-hub", "org/name"], "only ORG"),
        (["--checkpoint", "x", "--output-dir", "b", "--push-to-hub", "org"], "ORG/NAME"),
    ],
)
def test_incomplete_commands(arguments, message, capsys):
    with pytest.raises(SystemExit):
        main(arguments)
    assert message in capsys.readouterr().err


def test_list(capsys):
    assert main(["--list"]) == 0
    assert "mask_rcnn_internimage_b_fpn_3x_coco" in capsys.readouterr().out


def test_offline_download_is_explained(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "empty"))
    assert main(["--checkpoint", "internimage_g_22kto1k_512", "--output-dir", str(tmp_path / "out")]) == 1
    error = capsys.readouterr().err
    assert "Cannot download OpenGVLab/InternImage/internimage_g_22kto1k_512.pth" in error and "--source" in error
