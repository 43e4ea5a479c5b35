# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""The official segmentation models: numbers of the original, every checkpoint's keys, what is written."""

import copy
import dataclasses

import numpy as np
import pytest
import torch
from golden_numbers import tolerance
from testing_utils import GOLDEN, first_quick, golden_input, original_state_dict, read_json, unread_parameters
from transformers import AutoImageProcessor, pipeline
from transformers.modeling_outputs import SemanticSegmenterOutput

from conversion.checkpoints import CHECKPOINTS, Checkpoint
from conversion.convert_checkpoint import ConversionOptions, convert_checkpoint, empty_model, plan_conversion
from conversion.convert_internimage_to_hf import main
from conversion.errors import ConversionError
from conversion.heads import HEADS
from conversion.offset_mask import UNREAD
from conversion.original_config import own_checkpoint
from modeling_internimage import semantic_scores, window_scores


SEGMENTATION, FLASH = GOLDEN / "segmentation", GOLDEN / "dcnv4"
MANIFESTS = read_json(SEGMENTATION / "manifests.json.gz") | read_json(FLASH / "segmentation_manifests.json.gz")
FILES = [*SEGMENTATION.glob("*_*.json"), *FLASH.glob("upernet_*.json"), *FLASH.glob("mask2former_*.json")]
CASES = {file.stem: read_json(file) | {"arrays_file": file.with_suffix(".npz")} for file in FILES}
# A full-size checkpoint of the same head for each kind.
RECORDS = {
    "UPerHead": "upernet_internimage_t_512_160k_ade20k",
    "SegformerHead": "segformer_internimage_l_512x1024_80k_mapillary",
    "Mask2FormerHead": "mask2former_internimage_h_480_40k_nyu",
}
FLASH_RECORDS = {
    "UPerHead": "upernet_flash_internimage_t_512_160k_ade20k",
    "Mask2FormerHead": "mask2former_flash_internimage_t_512_160k_ade20k_ss",
}


def reduced_record(case: dict) -> Checkpoint:
    """The record of a reduced model: that of a full-size one with other sizes."""
    backbone, head = case["model"]["backbone"], case["model"]["decode_head"]
    architecture = {
        "embed_dim": backbone["channels"],
        "num_groups": backbone["groups"],
        "depths": backbone["depths"],
        "layer_scale_init_value": backbone["layer_scale"],
        "level2_post_norm_block_ids": backbone.get("level2_post_norm_block_ids"),
        "depthwise_kernel_size": backbone.get("dw_kernel_size"),
    } | {
        name: backbone[name]
        for name in (
            "core_op", "offset_scale", "post_norm", "res_post_norm", "center_feature_scale", "dcn_output_bias",
            "mlp_fc2_bias",
        )
        if name in backbone
    }  # fmt: skip
    record = CHECKPOINTS[(FLASH_RECORDS if backbone["type"] == "FlashInternImage" else RECORDS)[head["type"]]]
    arguments = {"hidden_size": head["channels"]} if "channels" in head else {}
    if auxiliary := case["model"].get("auxiliary_head"):
        arguments |= {"auxiliary_channels": auxiliary["channels"], "auxiliary_in_channels": auxiliary["in_channels"]}
    if head["type"] == "Mask2FormerHead":
        encoder, decoder = head["pixel_decoder"]["encoder"], head["transformer_decoder"]
        width = head["feat_channels"]
        arguments |= {"feature_size": width, "mask_feature_size": width, "hidden_dim": width}
        arguments |= {
            "encoder_layers": encoder["num_layers"],
            "decoder_layers": decoder["num_layers"] + 1,
            "num_attention_heads": decoder["transformerlayers"]["attn_cfgs"]["num_heads"],
            "encoder_feedforward_dim": encoder["transformerlayers"]["ffn_cfgs"]["feedforward_channels"],
            "dim_feedforward": decoder["transformerlayers"]["feedforward_channels"],
            "num_queries": head["num_queries"],
        }
    num_labels = head["num_classes"]
    return dataclasses.replace(
        record,
        architecture=architecture,
        head_config=record.head_config | arguments,
        num_labels=num_labels,
        labels=[f"class {idx}" for idx in range(num_labels)],
        palette=[[idx, 0, 0] for idx in range(num_labels)],
        num_original_labels=None,
    )


@pytest.fixture(scope="module", params=sorted(CASES))
def case(request, tmp_path_factory):
    """(facts, golden arrays, model that was converted to a folder and loaded from it, input, that folder)."""
    facts = CASES[request.param]
    folder = tmp_path_factory.mktemp(request.param)
    source = folder / "source.pth"
    torch.save({"state_dict": original_state_dict(facts["keys"], facts["weight_seed"]), "meta": {}}, source)
    plan = plan_conversion(reduced_record(facts), source, ConversionOptions())
    convert_checkpoint(plan, folder / "converted", "a test")
    model, info = plan.head.auto_class.from_pretrained(folder / "converted", output_loading_info=True)
    assert not any(info.values())
    pixel_values = golden_input(facts["input"]["shape"], facts["input"]["seed"])
    return facts, np.load(facts["arrays_file"]), model, pixel_values, folder / "converted"


def assert_golden(output: torch.Tensor, golden: np.ndarray):
    expected = torch.from_numpy(golden).to(output.dtype)
    torch.testing.assert_close(output, expected, **tolerance(expected))


@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.float64, marks=pytest.mark.slow)])
@torch.no_grad()
def test_golden_outputs(case, dtype):
    facts, arrays, model, pixel_values, folder = case
    model, pixel_values = copy.deepcopy(model).to(dtype), pixel_values.to(dtype)
    backbone = model.model.pixel_level_module.encoder if hasattr(model, "model") else model.backbone
    feature_maps = backbone(pixel_values).feature_maps
    for idx, feature_map in enumerate(feature_maps):
        assert_golden(feature_map, arrays[f"backbone.{idx}"])
    for head in ("decode_head", "auxiliary_head"):
        if f"{head}.logits" in arrays:
            assert_golden(getattr(model, head)(feature_maps), arrays[f"{head}.logits"])
    if "class_logits.0" in arrays:
        outputs = model(pixel_values, output_auxiliary_logits=True)
        predictions = [*outputs.auxiliary_logits, outputs]
        assert f"class_logits.{len(predictions)}" not in arrays
        for idx, prediction in enumerate(predictions):
            assert_golden(prediction["class_queries_logits"], arrays[f"class_logits.{idx}"])
            assert_golden(prediction["masks_queries_logits"], arrays[f"mask_logits.{idx}"])
    assert_golden(semantic_scores(model(pixel_values)), arrays["seg_logits_at_input_size"])


@torch.no_grad()
def test_golden_inference(case):
    """Windows, the size of the image, probabilities, the map: through the image processor of the checkpoint."""
    facts, arrays, model, pixel_values, folder = case
    image_processor = AutoImageProcessor.from_pretrained(folder)
    outputs = model(pixel_values)
    if "slide_logits" in arrays:
        test = facts["model"]["test_cfg"]
        sides = [dict(zip(("height", "width"), test[name])) for name in ("crop_size", "stride")]
        outputs = SemanticSegmenterOutput(logits=window_scores(model, pixel_values, *sides))
        assert_golden(outputs.logits, arrays["slide_logits"])
    target_sizes = [tuple(facts["ori_shape"])] * len(pixel_values)
    maps = image_processor.post_process_semantic_segmentation(outputs, target_sizes=target_sizes)
    np.testing.assert_array_equal(torch.stack(maps).numpy(), arrays["prediction"])
    if "inference_probs_at_ori_shape" in arrays:
        scores = image_processor.post_process_semantic_segmentation(outputs, target_sizes, True)
        probabilities = torch.stack([score.segmentation_scores.softmax(dim=0) for score in scores])
        assert_golden(probabilities, arrays["inference_probs_at_ori_shape"])


def test_pipeline(case, photographs):
    folder = case[-1]
    segments = pipeline("image-segmentation", model=str(folder))(photographs_image(photographs))
    assert {segment["mask"].size for segment in segments} == {(96, 64)}
    assert sum(np.asarray(segment["mask"], dtype=bool).astype(int) for segment in segments).tolist() == [[1] * 96] * 64
    assert all(segment["label"].startswith("class ") for segment in segments)


def photographs_image(photographs):
    from PIL import Image

    return Image.fromarray(photographs[0][:64, :96])


def write_manifest_checkpoint(name: str, file, change=lambda state_dict: None):
    """The full-size checkpoint as a file of kilobytes: every tensor is a broadcast zero."""
    state_dict = {
        key: torch.zeros((), dtype=torch.int64 if key.endswith("num_batches_tracked") else None).expand(shape)
        for key, shape in MANIFESTS[name]["keys"].items()
    }
    change(state_dict)
    torch.save({"state_dict": state_dict}, file)
    return file


@pytest.mark.parametrize("name", first_quick(MANIFESTS, lambda name: name.split("_internimage_")[0]))
def test_every_key_of_every_checkpoint(name, tmp_path):
    manifest, checkpoint = MANIFESTS[name], CHECKPOINTS[name]
    source = write_manifest_checkpoint(name, tmp_path / "source.pth")
    plan = plan_conversion(checkpoint, source, ConversionOptions())
    assert len(plan.used_keys()) == len(manifest["keys"]) and set(plan.dropped.values()) <= {UNREAD}
    model = empty_model(plan.head.model_class, plan.config)
    left_out = manifest["num_parameters"] - sum(parameter.numel() for parameter in model.parameters())
    left_out -= unread_parameters(manifest["keys"])
    rows = manifest["classes"] - manifest["dataset_num_classes"]
    widths = (
        [head["channels"] for part, head in manifest["config"]["model"].items() if part.endswith("_head")]
        if rows
        else []
    )
    assert left_out == sum(rows * (width + 1) for width in widths)  # classes without a meaning
    assert list(model.config.id2label.values()) == manifest["class_names"]
    assert model.config.palette == manifest["palette"]


def test_mask2former_accepts_the_backbone(caplog):
    """Without a warning, and without changing the class for others."""
    config = CHECKPOINTS["mask2former_internimage_h_480_40k_nyu"].config()
    assert "internimage" in config.backbones_supported and "internimage" not in type(config).backbones_supported
    assert "not a supported model" not in caplog.text


@pytest.mark.parametrize("name", MANIFESTS)
def test_image_processors(name):
    config, image_processor = MANIFESTS[name]["config"], CHECKPOINTS[name].image_processor()
    assert [image_processor.size["longest_edge"], image_processor.size["shortest_edge"]] == config["image_scale"]
    assert image_processor.size_divisor == (32 if "ResizeToMultiple" in config["transforms"] else None)
    assert image_processor.do_reduce_labels == MANIFESTS[name]["reduce_zero_label"]
    np.testing.assert_allclose(np.multiply(image_processor.image_mean, 255), config["normalisation"]["mean"])
    np.testing.assert_allclose(np.multiply(image_processor.image_std, 255), config["normalisation"]["std"])
    test = config["test_cfg"]
    window = None if test["mode"] == "whole" else dict(zip(("height", "width"), test["crop_size"]))
    stride = None if test["mode"] == "whole" else dict(zip(("height", "width"), test["stride"]))
    assert (image_processor.window_size, image_processor.window_stride) == (window, stride)


def test_meaningless_classes_are_left_out(tmp_path):
    """Of the 150 rows in a classifier of Cityscapes, the first 19 are kept, in both heads."""
    name = "upernet_internimage_t_512x1024_160k_cityscapes"

    def number_rows(state_dict):
        for head in ("decode_head", "auxiliary_head"):
            state_dict[f"{head}.conv_seg.bias"] = torch.arange(150.0)

    plan = plan_conversion(
        CHECKPOINTS[name], write_manifest_checkpoint(name, tmp_path / "source.pth", number_rows), ConversionOptions()
    )
    for _, tensor in plan.tensors(["decode_head.classifier.bias", "auxiliary_head.classifier.bias"]):
        assert tensor.tolist() == list(range(19))


@pytest.mark.parametrize("kind", RECORDS)
def test_wrong_keys_are_named(kind, tmp_path):
    name = RECORDS[kind]
    key = {"Mask2FormerHead": "decode_head.cls_embed.bias"}.get(kind, "decode_head.conv_seg.bias")

    def change(state_dict):
        state_dict["decode_head.extra"] = state_dict.pop(key)

    source = write_manifest_checkpoint(name, tmp_path / "source.pth", change)
    missing = HEADS[CHECKPOINTS[name].head].rename_key(key)[0]
    with pytest.raises(ConversionError, match=f"1 keys belong to no parameter .decode_head.extra.*{missing}"):
        plan_conversion(CHECKPOINTS[name], source, ConversionOptions())


@pytest.mark.parametrize("kind", RECORDS)
@pytest.mark.parametrize("names", ["CLASSES", "dataset_meta", None])
def test_own_classes(kind, names, tmp_path):
    """Of a user's training: number of classes from the classifier, names and colours from the file."""
    record = CHECKPOINTS[RECORDS[kind]]
    num_rows = 4 + HEADS[record.head].num_rows_without_class

    def change(state_dict):
        for key, tensor in state_dict.items():
            if ".conv_seg." in key or ".cls_embed." in key:
                state_dict[key] = torch.zeros(()).expand(num_rows, *tensor.shape[1:])

    source = write_manifest_checkpoint(record.name, tmp_path / "mine.pth", change)
    labels, palette = ["road", "tree", "roof", "sky"], [[idx, 0, 255] for idx in range(4)]
    meta = {
        "CLASSES": {"CLASSES": tuple(labels), "PALETTE": palette},
        "dataset_meta": {"dataset_meta": {"classes": labels, "palette": palette}},
    }
    torch.save(torch.load(source) | {"meta": meta.get(names)}, source)
    own = own_checkpoint(record, source)
    plan = plan_conversion(own, source, ConversionOptions())
    assert not plan.dropped and plan.config.num_labels == 4 and not own.reduce_labels and not own.reported
    assert list(plan.config.id2label.values()) == (labels if names else [f"LABEL_{idx}" for idx in range(4)])
    assert own.palette == (palette if names else None)


@pytest.mark.parametrize("names", [19, 20])
def test_rows_without_a_class(names, tmp_path):
    """A classifier of 150 rows for fewer classes, as the authors' for Cityscapes: with other names, a user's."""
    record = CHECKPOINTS["upernet_internimage_t_512x1024_160k_cityscapes"]
    source = write_manifest_checkpoint(record.name, tmp_path / "mine.pth")
    labels = [f"class {idx}" for idx in range(names)]
    torch.save(torch.load(source) | {"meta": {"CLASSES": labels}}, source)
    own = own_checkpoint(record, source)
    assert (own.num_labels, own.num_original_labels, own.labels) == (names, 150, labels)
    assert not plan_conversion(own, source, ConversionOptions()).dropped


def test_remote_code_is_refused(tmp_path, capsys):
    name = RECORDS["UPerHead"]
    source = write_manifest_checkpoint(name, tmp_path / "source.pth")
    arguments = ["--checkpoint", name, "--source", str(source), "--output-dir", str(tmp_path / "new"), "--remote-code"]
    assert main(arguments) == 1
    assert "`--remote-code` is for image classifiers" in capsys.readouterr().err and not (tmp_path / "new").exists()
