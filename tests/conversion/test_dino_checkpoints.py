# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""The official DINO detectors: numbers of the original, every checkpoint's keys, what is written and what is said."""

import copy
import dataclasses
import gzip
import json
import re

import numpy as np
import pytest
import torch
from testing_utils import GOLDEN, first_quick, golden_input, original_state_dict
from transformers import AutoImageProcessor

from conversion.checkpoints import CHECKPOINTS, Checkpoint
from conversion.convert_checkpoint import ConversionOptions, convert_checkpoint, empty_model, plan_conversion
from conversion.errors import ConversionError
from conversion.model_card import create_model_card


DETECTION = GOLDEN / "detection"
CASES = {name: json.loads((DETECTION / f"{name}.json").read_text()) for name in ("dino_t_like", "cb_dino_h_like")}
# A full-size checkpoint of the same kind for each case.
RECORDS = {
    "dino_t_like": "dino_4scale_internimage_t_1x_coco",
    "cb_dino_h_like": "dino_4scale_cbinternimage_h_objects365_coco",
}
MANIFESTS = {
    name: manifest
    for name, manifest in json.loads(gzip.decompress((DETECTION / "manifests.json.gz").read_bytes())).items()
    if "dino" in manifest["method"]
}
PREFIX = "dino_4scale_cbinternimage_h_objects365"
# Starts for fine-tuning, with the keys and shapes of what the authors made of them.
STARTS = {f"{PREFIX}_80classes": f"{PREFIX}_coco", f"{PREFIX}_20classes": f"{PREFIX}_voc07"}
# float64 proves; the largest error of the original in float32 is 1e-5, and 5e-5 of a pixel.
TOLERANCES = {torch.float32: {"maps": 2e-4, "pixels": 2e-3}, torch.float64: {"maps": 5e-6, "pixels": 5e-5}}


def reduced_record(name: str) -> Checkpoint:
    """The record of a reduced model: that of a full-size one with other sizes."""
    model = CASES[name]["model"]
    backbone, head = model["backbone"], model["bbox_head"]
    layers = {part: head["transformer"][part] for part in ("encoder", "decoder")}
    arguments = {f"{part}_layers": layer["num_layers"] for part, layer in layers.items()} | {
        f"{part}_ffn_dim": layer["transformerlayers"]["feedforward_channels"] for part, layer in layers.items()
    }
    renamed = {"channels": "embed_dim", "groups": "num_groups", "layer_scale": "layer_scale_init_value"}
    renamed |= {"dw_kernel_size": "depthwise_kernel_size"}
    left_out = ("type", "core_op", "drop_path_rate", "norm_layer", "out_indices", "with_cp", "level2_post_norm")
    architecture = {renamed.get(key, key): value for key, value in backbone.items() if key not in left_out}
    if "level2_post_norm_block_ids" in architecture:
        architecture["level2_post_norm_block_ids"] = architecture["level2_post_norm_block_ids"][:1]
    record = CHECKPOINTS[RECORDS[name]]
    return dataclasses.replace(
        record,
        architecture=architecture,
        head_config=arguments
        | {"d_model": 64, "num_queries": head["num_query"], "max_detections": model["test_cfg"]["max_per_img"]},
        num_labels=head["num_classes"],
        labels=[f"class {idx}" for idx in range(head["num_classes"])],
    )


def plan_case(name: str, folder, change=lambda state_dict: None):
    """The conversion of a golden case, with its stand-in weights after a `change`."""
    state_dict = original_state_dict(CASES[name]["keys"], CASES[name]["weight_seed"])
    # The composite case has a norm after its sixth layer, of three: no original checkpoint has one that is not used.
    state_dict = {key: tensor for key, tensor in state_dict.items() if ".post_norms.1." not in key}
    change(state_dict)
    folder.mkdir(exist_ok=True)
    torch.save({"state_dict": state_dict, "meta": {}}, folder / "source.pth")
    return plan_conversion(reduced_record(name), folder / "source.pth", ConversionOptions())


@pytest.fixture(scope="module", params=sorted(CASES))
def case(request, tmp_path_factory):
    """(name, model that was converted to a folder and loaded from it, its input, that folder)"""
    facts, folder = CASES[request.param], tmp_path_factory.mktemp(request.param)
    plan = plan_case(request.param, folder)
    convert_checkpoint(plan, folder / "converted", "a test")
    model, info = plan.head.auto_class.from_pretrained(folder / "converted", output_loading_info=True)
    assert not any(info.values()) and not plan.dropped
    pixel_values = golden_input(facts["input"]["shape"], facts["input"]["seed"])
    pixel_mask = torch.zeros(pixel_values.shape[:1] + pixel_values.shape[2:], dtype=torch.int64)
    for mask, (height, width) in zip(pixel_mask, facts["img_shapes"]):
        mask[:height, :width] = 1
    inputs = {"pixel_values": pixel_values * pixel_mask[:, None], "pixel_mask": pixel_mask}
    return request.param, model, inputs, folder / "converted"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_golden_numbers(case, dtype):
    """What the converted model computes, from the encoder to the boxes of the image processor."""
    name, model, inputs, folder = case
    arrays = np.load(DETECTION / f"{name}.npz")
    with torch.no_grad():
        outputs = copy.deepcopy(model).to(dtype)(**inputs | {"pixel_values": inputs["pixel_values"].to(dtype)})
    named = {
        f"encoder.layers.{model.config.encoder_layers - 1}": outputs.encoder_last_hidden_state,
        "two_stage_class_logits": outputs.enc_outputs_class,
        "two_stage_boxes": outputs.enc_outputs_coord_logits.sigmoid(),
    }
    tolerances = TOLERANCES[dtype]
    for key, output in named.items():
        np.testing.assert_allclose(output, arrays[key], rtol=0, atol=tolerances["maps"], err_msg=key)
    # Of the last layer of the decoder:
    for key, output in {
        "decoder.hidden_states_normed": outputs.last_hidden_state,
        "class_logits": outputs.logits,
        "boxes_cxcywh": outputs.pred_boxes,
    }.items():
        np.testing.assert_allclose(output, arrays[key][-1], rtol=0, atol=tolerances["maps"], err_msg=key)
    image_processor = AutoImageProcessor.from_pretrained(folder)
    sizes = [tuple(size) for size in CASES[name]["ori_shapes"]]
    for idx, result in enumerate(image_processor.post_process_object_detection(outputs, target_sizes=sizes)):
        golden = arrays[f"det_boxes_scores.{idx}"]
        np.testing.assert_allclose(result["boxes"], golden[:, :4], rtol=0, atol=tolerances["pixels"])
        np.testing.assert_allclose(result["scores"], golden[:, 4], rtol=0, atol=tolerances["maps"])
        np.testing.assert_array_equal(result["labels"], arrays[f"det_labels.{idx}"])


def split_feed_forward(state_dict: dict[str, torch.Tensor], parts: int = 4):
    """Change the feed-forward networks to those of G, which the original keeps in parts."""
    for key in [key for key in state_dict if ".ffns.0.layers." in key]:
        tensor = state_dict.pop(key)
        prefix, layer, kind = re.fullmatch(r"(.*\.ffns\.0\.)layers\.(0\.0|1)\.(weight|bias)", key).groups()
        if (layer, kind) == ("1", "bias"):
            state_dict[f"{prefix}fc2_bias"] = tensor
            continue
        name, dim = ("fc1", 0) if layer == "0.0" else ("fc2", 1)
        for idx, part in enumerate(tensor.chunk(parts, dim)):
            state_dict[f"{prefix}{name}_{idx}.{kind}"] = part.clone()


def test_parts_are_joined(tmp_path):
    """A checkpoint with G's feed-forward networks becomes the model of one with whole ones."""
    whole = plan_case("dino_t_like", tmp_path).model().state_dict()
    joined = plan_case("dino_t_like", tmp_path / "parts", split_feed_forward).model().state_dict()
    assert joined.keys() == whole.keys() and all(torch.equal(joined[name], whole[name]) for name in whole)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda key, state_dict: state_dict.pop(key), r"fc2_0\S* and \S*fc2_1\S* and \S*fc2_3\S* .* of \(64, 128\)"),
        (lambda key, state_dict: state_dict.update({key: torch.zeros(64)}), r"instead of parts of \(64, 128\)"),
        (lambda key, state_dict: state_dict.update({key: state_dict[key].long()}), "torch.int64, .* instead of parts"),
    ],
)  # fmt: skip
def test_parts_that_do_not_fit(change, message, tmp_path):
    def split_and_change(state_dict):
        split_feed_forward(state_dict)
        change("bbox_head.transformer.encoder.layers.1.ffns.0.fc2_2.weight", state_dict)

    with pytest.raises(ConversionError, match=f"1 keys have another shape or type .*{message}"):
        plan_case("dino_t_like", tmp_path, split_and_change)


def write_manifest_checkpoint(name: str, file):
    """The full-size checkpoint as a file of kilobytes: every tensor is a broadcast zero."""
    keys = MANIFESTS[name]["keys"]
    torch.save({"state_dict": {key: torch.zeros(()).expand(shape) for key, shape in keys.items()}}, file)
    return file


@pytest.mark.parametrize(
    "name, same",
    first_quick(
        [(name, name) for name in MANIFESTS] + list(STARTS.items()),
        lambda names: "_g_" in names[0] or CHECKPOINTS[names[0]].head,
    ),
)
def test_every_key_of_every_checkpoint(name, same, tmp_path):
    manifest, checkpoint = MANIFESTS[same], CHECKPOINTS[name]
    plan = plan_conversion(checkpoint, write_manifest_checkpoint(same, tmp_path / "source.pth"), ConversionOptions())
    assert plan.used_keys() == {key.removeprefix("backbone.") for key in manifest["keys"]} and not plan.dropped
    model = empty_model(plan.head.model_class, plan.config)
    assert model.num_parameters() == manifest["num_parameters"] == checkpoint.num_parameters
    labels = list(model.config.id2label.values())
    assert labels == ([f"LABEL_{idx}" for idx in range(len(labels))] if name in STARTS else manifest["class_names"])


@pytest.mark.parametrize("name", MANIFESTS)
def test_settings(name):
    """Of the model and of its image processor, as in the original's configuration."""
    facts, config = MANIFESTS[name]["config"], CHECKPOINTS[name].config()
    head, transformer = facts["model"]["bbox_head"], facts["model"]["bbox_head"]["transformer"]
    assert config.num_queries == head["num_query"] == transformer["two_stage_num_proposals"]
    assert config.num_denoising == head["dn_cfg"]["group_cfg"]["num_dn_queries"]
    noise = head["dn_cfg"]["noise_scale"]
    assert (config.label_noise_ratio, config.box_noise_scale) == (noise["label"], noise["box"])
    for part in ("encoder", "decoder"):
        layer = transformer[part]["transformerlayers"]
        assert getattr(config, f"{part}_layers") == transformer[part]["num_layers"]
        assert getattr(config, f"{part}_ffn_dim") == layer["feedforward_channels"]
    stages = facts["model"]["backbone"]["out_indices"]
    stages = stages[-1] if isinstance(stages[-1], list) else stages
    assert config.backbone_config.out_features == [f"stage{idx + 1}" for idx in stages]
    image_processor = CHECKPOINTS[name].image_processor()
    assert image_processor.max_detections == config.max_detections == facts["test_cfg"]["max_per_img"]
    assert [image_processor.size["longest_edge"], image_processor.size["shortest_edge"]] == facts["image_scale"]
    assert image_processor.size_divisor == facts["padding_divisor"]
    np.testing.assert_allclose(np.multiply(image_processor.image_mean, 255), facts["normalisation"]["mean"])
    np.testing.assert_allclose(np.multiply(image_processor.image_std, 255), facts["normalisation"]["std"])


def model_card(name: str) -> str:
    checkpoint, provenance = CHECKPOINTS[name], {"source": {"file": "", "sha256": ""}, "command": "", "versions": {}}
    return create_model_card(checkpoint, checkpoint.config(), ConversionOptions(), {}, provenance)


@pytest.mark.parametrize("name, other", [("lvis_minival", "lvis_val"), ("voc12", "voc07")])
def test_card_of_a_file_with_two_entries(name, other):
    """It has the results of both, whichever of them was converted."""
    card = model_card(f"{PREFIX}_{name}")
    for entry in (CHECKPOINTS[f"{PREFIX}_{name}"], CHECKPOINTS[f"{PREFIX}_{other}"]):
        assert f"| {entry.dataset} | percent |" in card and f"name: {entry.dataset}" in card
        assert all(f" | {value} |" in card and f"value: {value}" in card for value in entry.reported.values())
    assert ("How they augmented at test time is not published" in card) == (other == "lvis_val")
    assert f"Trained by its authors on {'LVIS v1' if 'lvis' in name else 'VOC 2007 and 2012'} (" in card


def test_card_of_a_start_for_fine_tuning():
    """Nobody knows its classes, and the card does not claim to."""
    card = model_card(f"{PREFIX}_80classes")
    assert "The classes are not known: the labels are numbers." in card and "a guess from the number" in card
    assert "## Classes" not in card and "None were reported for these weights" in card


def test_card_of_open_images():
    """Its metric is not COCO's, and its class names are to be checked."""
    card = model_card(f"{PREFIX}_openimages")
    assert "| Open Images mAP at IoU 0.5 | 74.1 |" in card and "box AP" not in card
    assert "compare them with that file" in card and "| 600 | " in card
    assert "CB-InternImage-H (two InternImage-H in one) for object detection with DINO" in card
