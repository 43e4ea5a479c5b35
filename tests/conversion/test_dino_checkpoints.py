# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""The official DINO detectors: numbers of the original, every checkpoint's keys, what is written and what is said."""

import copy
import re

import numpy as np
import pytest
import torch
from golden_detectors import MANIFESTS as ALL_MANIFESTS
from golden_detectors import convert_case, padded_inputs, plan_case, read_arrays, read_facts
from testing_utils import first_quick, unread_parameters
from transformers import AutoImageProcessor

from conversion.checkpoints import CHECKPOINTS
from conversion.convert_checkpoint import ConversionOptions, empty_model, plan_conversion
from conversion.errors import ConversionError
from conversion.model_card import create_model_card
from conversion.offset_mask import UNREAD
from conversion.original_config import own_checkpoint
from modeling_internimage import CBInternImageBackbone
from modeling_internimage.dino_detr.modeling_dino_detr import DinoDetrLevels, refine


CASES = read_facts("*dino_*_like.json")
MANIFESTS = {name: manifest for name, manifest in ALL_MANIFESTS.items() if "dino" in manifest["method"]}
PREFIX = "dino_4scale_cbinternimage_h_objects365"
# Starts for fine-tuning, with the keys and shapes of what the authors made of them.
STARTS = {f"{PREFIX}_80classes": f"{PREFIX}_coco", f"{PREFIX}_20classes": f"{PREFIX}_voc07"}
# float64 proves; the largest error of the original in float32 is 1e-5, and 5e-5 of a pixel.
TOLERANCES = {torch.float32: {"maps": 2e-4, "pixels": 2e-3}, torch.float64: {"maps": 5e-6, "pixels": 5e-5}}


@pytest.fixture(scope="module", params=sorted(CASES))
def case(request, tmp_path_factory):
    """(name, model that was converted to a folder and loaded from it, its input, that folder)"""
    facts, folder = CASES[request.param], tmp_path_factory.mktemp(request.param)
    _, model = convert_case(facts, folder)
    inputs = padded_inputs(facts["input"]["shape"], facts["input"]["seed"], facts["img_shapes"])
    return request.param, model, inputs, folder / "converted"


def named_outputs(model, inputs) -> tuple[dict[str, torch.Tensor], object]:
    """What a model computes in one forward pass, under the names of the golden arrays, and its outputs."""
    seen = {}

    def keep(name):
        def hook(module, args, output):
            seen.setdefault(name, []).append(output)

        return hook

    names = r"backbone|neck|decoder|(encoder\.position_embedding)|(en|de)coder\.layers\.\d|decoder\.ref_point_head"
    names += f"|enc_output_norm|class_embed.{model.config.decoder_layers}"
    for name, module in model.named_modules():
        if re.fullmatch(names, name):
            module.register_forward_hook(keep(name))
    if is_composite := isinstance(model.backbone, CBInternImageBackbone):
        model.backbone.register_forward_pre_hook(
            lambda module, args, kwargs: (args, kwargs | {"output_assisting_feature_maps": True}), with_kwargs=True
        )
    no_object = {"class_labels": torch.zeros(0, dtype=torch.int64), "boxes": torch.zeros(0, 4)}
    with torch.no_grad():  # with labels, the predictions of every layer are made
        outputs = model(**inputs, labels=[no_object] * len(inputs["pixel_values"]))
        levels = DinoDetrLevels.create(seen["neck"][0], inputs["pixel_mask"])
    backbone, ((states, references),) = seen["backbone"][0], seen["decoder"]
    named = {f"backbone.{'cb1.' * is_composite}{idx}": maps for idx, maps in enumerate(backbone.feature_maps)}
    if is_composite:
        named |= {f"backbone.cb0.{idx}": maps for idx, maps in enumerate(backbone.assisting_feature_maps)}
    named |= {f"neck.{idx}": feature_map for idx, feature_map in enumerate(seen["neck"][0])}
    named |= {f"positional_encoding.{idx}": maps for idx, maps in enumerate(seen["encoder.position_embedding"])}
    for idx in range(len(states)):
        named[f"encoder.layers.{idx}"] = seen[f"encoder.layers.{idx}"][0]
        named[f"decoder.layers.{idx}"] = seen[f"decoder.layers.{idx}"][0]
        named[f"decoder.query_pos.{idx}"] = seen["decoder.ref_point_head"][idx]
    (enc_logits,) = seen[f"class_embed.{len(states)}"]
    with torch.no_grad():  # the last refinement serves no later layer
        last = refine(references[-1], model.bbox_embed[len(states) - 1](seen[f"decoder.layers.{len(states) - 1}"][0]))
    proposals = levels.proposed_boxes()
    is_valid = ((proposals > 0.01) & (proposals < 0.99)).all(dim=-1) & levels.attention_mask
    layers = [*outputs.auxiliary_outputs, {"logits": outputs.logits, "pred_boxes": outputs.pred_boxes}]
    named |= {
        "padding_mask_flat": ~levels.attention_mask,
        "encoder_output_proposals_logit": proposals.logit().masked_fill(~is_valid[..., None], 1e30),
        "enc_output_norm": seen["enc_output_norm"][0],
        "two_stage_max_logit": enc_logits.amax(dim=-1),
        "two_stage_topk_indices": enc_logits.amax(dim=-1).topk(model.config.num_queries).indices,
        "two_stage_class_logits": outputs.enc_outputs_class,
        "two_stage_boxes": outputs.enc_outputs_coord_logits.sigmoid(),
        "decoder.hidden_states_normed": torch.stack(states),
        "decoder.reference_points": torch.stack([*references, last]),
        "class_logits": torch.stack([layer["logits"] for layer in layers]),
        "boxes_cxcywh": torch.stack([layer["pred_boxes"] for layer in layers]),
    }
    return named, outputs


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_golden_numbers(case, dtype):
    """Every array of the original, and the boxes of the image processor."""
    name, model, inputs, folder = case
    inputs = inputs | {"pixel_values": inputs["pixel_values"].to(dtype)}
    named, outputs = named_outputs(copy.deepcopy(model).to(dtype), inputs)
    arrays, tolerances = read_arrays(name), TOLERANCES[dtype]
    image_processor = AutoImageProcessor.from_pretrained(folder)
    sizes = [tuple(size) for size in CASES[name]["ori_shapes"]]
    for idx, result in enumerate(image_processor.post_process_object_detection(outputs, target_sizes=sizes)):
        golden = arrays.pop(f"det_boxes_scores.{idx}")
        np.testing.assert_allclose(result["boxes"], golden[:, :4], rtol=0, atol=tolerances["pixels"])
        np.testing.assert_allclose(result["scores"], golden[:, 4], rtol=0, atol=tolerances["maps"])
        np.testing.assert_array_equal(result["labels"], arrays.pop(f"det_labels.{idx}"))
    for key, golden in arrays.items():
        np.testing.assert_allclose(named[key], golden, rtol=tolerances["maps"], atol=tolerances["maps"], err_msg=key)


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
    whole = plan_case(CASES["dino_t_like"], tmp_path).model().state_dict()
    joined = plan_case(CASES["dino_t_like"], tmp_path / "parts", split_feed_forward).model().state_dict()
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
        plan_case(CASES["dino_t_like"], tmp_path, split_and_change)


def write_manifest_checkpoint(name: str, file):
    """The full-size checkpoint as a file of kilobytes: every tensor is a broadcast zero."""
    keys = MANIFESTS[name]["keys"]
    torch.save({"state_dict": {key: torch.zeros(()).expand(shape) for key, shape in keys.items()}}, file)
    return file


@pytest.mark.parametrize(
    "name, same",
    first_quick(
        [(name, name) for name in MANIFESTS] + list(STARTS.items()),
        lambda names: ("_g_" in names[0], CHECKPOINTS[names[0]].head, CHECKPOINTS[names[0]].family.model),
    ),
)
def test_every_key_of_every_checkpoint(name, same, tmp_path):
    manifest, checkpoint = MANIFESTS[same], CHECKPOINTS[name]
    plan = plan_conversion(checkpoint, write_manifest_checkpoint(same, tmp_path / "source.pth"), ConversionOptions())
    assert plan.used_keys() == {key.removeprefix("backbone.") for key in manifest["keys"]}
    assert set(plan.dropped.values()) <= {UNREAD}
    model = empty_model(plan.head.model_class, plan.config)
    assert model.num_parameters() == manifest["num_parameters"] - unread_parameters(manifest["keys"])
    assert checkpoint.num_parameters == manifest["num_parameters"]
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


@pytest.mark.parametrize("names", [None, ("crack", "hole", "rust")])
def test_own_classes(names, tmp_path):
    """A detector that a user trained from an official one: its own classes, nothing that is the authors'."""
    record = CHECKPOINTS["dino_4scale_internimage_t_1x_coco"]
    source = write_manifest_checkpoint(record.name, tmp_path / "mine.pth")
    content = torch.load(source)
    for key, tensor in content["state_dict"].items():
        if "cls_branches" in key or "label_embedding" in key:
            content["state_dict"][key] = torch.zeros(()).expand(3, *tensor.shape[1:])
    torch.save(content | {"meta": {"CLASSES": names} if names else {}}, source)
    own = own_checkpoint(record, source)
    plan = plan_conversion(own, source, ConversionOptions())
    assert list(plan.config.id2label.values()) == list(names or ("LABEL_0", "LABEL_1", "LABEL_2"))
    assert (own.reported, own.category_ids, own.title) == ({}, None, "mine")


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
