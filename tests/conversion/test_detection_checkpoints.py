# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""The official two-stage detectors: numbers of the original, every checkpoint's keys, what is written."""

import copy
import re

import numpy as np
import pytest
import torch
from golden_detectors import MANIFESTS as ALL_MANIFESTS
from golden_detectors import convert_case, padded_inputs, read_arrays, read_facts
from PIL import Image
from testing_utils import first_quick, unread_parameters
from transformers import AutoImageProcessor, pipeline

from conversion.checkpoints import CHECKPOINTS
from conversion.convert_checkpoint import ConversionOptions, empty_model, plan_conversion
from conversion.convert_internimage_to_hf import main
from conversion.errors import ConversionError
from conversion.model_card import create_model_card
from conversion.offset_mask import UNREAD
from conversion.original_config import own_checkpoint


CASES = read_facts("*rcnn*.json")
# A full-size checkpoint of the same kind for each case.
RECORDS = {
    "mask_rcnn": "mask_rcnn_internimage_t_fpn_1x_coco",
    "cascade_mask_rcnn": "cascade_internimage_l_fpn_1x_coco",
    "cascade_rcnn": "cascade_internimage_xl_fpn_3x_crowd_human",
}
MANIFESTS = {name: manifest for name, manifest in ALL_MANIFESTS.items() if manifest["method"] in RECORDS}
# Names of golden arrays by kind; the others are feature maps and what the region proposal network makes of them.
KINDS = {
    "boxes": r"proposals|stage\d\.rois|det_boxes",
    "regions": r".*(roi_feats|cls_logits|deltas|mask_logits|mask_probs)",
}
# float64 proves. In float32 rounding differs between processors, boxes of thousands of pixels, before they are cut,
# carry it on, and a pixel of a mask whose probability is almost a half may be either.
TOLERANCES = {
    torch.float32: {"maps": 5e-4, "boxes": 1e-2, "regions": 5e-3, "scores": 1e-4, "bytes": 25},
    torch.float64: {"maps": 2e-6, "boxes": 5e-5, "regions": 1e-5, "scores": 1e-6, "bytes": 0},
}


@pytest.fixture(scope="module", params=sorted(CASES))
def case(request, tmp_path_factory):
    """(facts, golden arrays, model that was converted to a folder and loaded from it, its input, that folder)."""
    facts = CASES[request.param]
    folder = tmp_path_factory.mktemp(request.param)
    _, model = convert_case(facts, folder)
    inputs = padded_inputs(facts["input"]["shape"], facts["input"]["seed"], facts["img_shapes"])
    return facts, read_arrays(request.param), model, inputs, folder / "converted"


def record_calls(model, inputs) -> tuple[dict, object]:
    """Arguments and results of the parts of a model in one forward pass, by name, and its outputs."""
    calls = {}

    def record(name):
        def hook(module, args, result):
            calls.setdefault(name, []).append((args, result))

        return hook

    names = r"backbone|neck|rpn\.head|roi_heads\.((box|mask)_(roi_align|heads\.\d))"
    handles = [
        module.register_forward_hook(record(name.removeprefix("roi_heads.")))
        for name, module in model.named_modules()
        if re.fullmatch(names, name)
    ]
    with torch.no_grad():
        outputs = model(**inputs)
    for handle in handles:
        handle.remove()
    return calls, outputs


def assert_golden(output: torch.Tensor, golden: np.ndarray, **tolerance):
    golden = torch.from_numpy(golden)
    torch.testing.assert_close(output, golden.to(output.dtype), **tolerance)


def named_outputs(case) -> dict[str, torch.Tensor]:
    """What the model computes, under the names of the golden arrays."""
    facts, arrays, model, inputs, folder = case
    calls, outputs = record_calls(model, inputs)
    named = {}
    feature_maps = calls["neck"][0][1]
    for kind, maps in zip(
        ("backbone", "fpn", "rpn_cls", "rpn_reg"),
        (calls["backbone"][0][1].feature_maps, feature_maps, *calls["rpn.head"][0][1]),
    ):
        named |= {f"{kind}.{level}": feature_map for level, feature_map in enumerate(maps)}
    for level, anchors in enumerate(model.rpn.anchors(feature_maps, torch.float32)):
        named[f"anchors_first12.{level}"] = anchors[:12]
    (_, rois), _ = calls["box_roi_align"][0]
    named["roi_levels"] = model.roi_heads.box_roi_align.levels(rois)
    image_sizes = torch.tensor(facts["img_shapes"])
    rpn_outputs = model.rpn.predict(feature_maps)
    anchors = model.rpn.anchors(feature_maps, rpn_outputs[0][0].dtype)
    config = model.config
    proposals = model.rpn.propose(
        anchors, *rpn_outputs, image_sizes, config.num_proposals_per_level, config.num_proposals
    )
    for idx, (boxes, scores) in enumerate(zip(*proposals)):
        boxes, scores = boxes[scores >= 0], scores[scores >= 0]
        if "info" in facts:
            assert len(boxes) == facts["info"][f"num_proposals.{idx}"]
        named[f"proposals.{idx}"] = torch.cat((boxes, scores[:, None]), dim=1)
        named[f"proposals_top50.{idx}"] = named[f"proposals.{idx}"][:50]
    logits = []
    for stage, ((_, rois), regions) in enumerate(calls["box_roi_align"]):
        (_, (stage_logits, deltas)) = calls[f"box_heads.{stage}"][0]
        logits.append(stage_logits)
        named |= {f"stage{stage}.rois": rois, f"stage{stage}.roi_feats_first6": regions[:6]}
        named |= {f"stage{stage}.cls_logits": stage_logits, f"stage{stage}.deltas": deltas.flatten(1)}
    for name in ("roi_feats_first6", "cls_logits", "deltas"):
        named[f"bbox_{name}"] = named[f"stage0.{name}"]
        named[f"bbox_{name}_first50"] = named[f"stage0.{name}"][:50]
    for idx in range(len(image_sizes)):
        named[f"mean_cls_logits.{idx}"] = torch.stack(logits).mean(dim=0)[rois[:, 0] == idx]

    image_processor = AutoImageProcessor.from_pretrained(folder)
    target_sizes = [tuple(size) for size in facts["ori_shapes"]]
    results = image_processor.post_process_object_detection(outputs, target_sizes=target_sizes)
    labels = torch.cat([result["labels"] for result in results])
    for idx, result in enumerate(results):
        named[f"det_boxes_scores.{idx}"] = torch.cat((result["boxes"], result["scores"][:, None]), dim=1)
        named[f"det_labels.{idx}"] = result["labels"]
    if model.config.use_mask_head:
        ((_, regions),) = calls["mask_roi_align"]
        named["mask_roi_feats_first2"] = regions[:2]
        for stage in range(len(model.roi_heads.mask_heads)):
            _, masks = calls[f"mask_heads.{stage}"][0]
            named[f"stage{stage}.mask_logits_of_label"] = masks[torch.arange(len(masks)), labels]
        named["mask_logits_of_label"] = named["stage0.mask_logits_of_label"]
        named["mask_logits_all_classes_first2"] = calls["mask_heads.0"][0][1][:2, :8]
        named["mean_mask_probs_of_label"] = outputs.pred_masks[outputs.pred_scores > 0].sigmoid()
        results = image_processor.post_process_instance_segmentation(outputs, target_sizes=target_sizes)
        for idx, result in enumerate(results):
            named[f"masks_packed.{idx}"] = result["masks"]
    return named


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_golden_numbers(case, dtype):
    """Every array of the original: of each part in one forward pass, and of what the image processor makes of it."""
    facts, arrays, model, inputs, folder = case
    inputs = inputs | {"pixel_values": inputs["pixel_values"].to(dtype)}
    named = named_outputs((facts, arrays, copy.deepcopy(model).to(dtype), inputs, folder))
    tolerances = TOLERANCES[dtype]
    for name in arrays:
        if name.startswith("masks_packed"):
            packed = np.packbits(named[name].flatten(1).numpy(), axis=1)
            assert packed.shape == arrays[name].shape and (packed != arrays[name]).sum() <= tolerances["bytes"]
            continue
        kind = next((kind for kind, pattern in KINDS.items() if re.match(pattern, name)), "maps")
        assert_golden(named[name], arrays[name], rtol=0, atol=tolerances[kind])
        if name.startswith(("proposals", "det_boxes")):
            assert_golden(named[name][:, 4], arrays[name][:, 4], rtol=0, atol=tolerances["scores"])


def test_pipeline(case, photographs):
    """Both ways to the same boxes, of every score that the model returns."""
    folder, image = case[-1], Image.fromarray(photographs[0][:64, :96])
    detector = pipeline("object-detection", model=str(folder))
    detections = detector(image, threshold=0.05)
    image_processor = AutoImageProcessor.from_pretrained(folder)
    with torch.no_grad():
        outputs = detector.model(**image_processor(image, return_tensors="pt"))
    (result,) = image_processor.post_process_object_detection(outputs, target_sizes=[(64, 96)])
    assert len(detections) == len(result["scores"]) > 0
    for detection, label, box in zip(detections, result["labels"], result["boxes"]):
        assert detection["label"] == f"class {label}"
        assert list(detection["box"].values()) == box.int().tolist()
    assert detector(image, threshold=0.99) == [one for one in detections if one["score"] > 0.99]


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
    assert model.num_parameters() == manifest["num_parameters"] - unread_parameters(manifest["keys"])
    assert list(model.config.id2label.values()) == manifest["class_names"]


@pytest.mark.parametrize("name", MANIFESTS)
def test_settings(name):
    """Of the model and of its image processor, as in the original's configuration."""
    facts, config = MANIFESTS[name]["config"], CHECKPOINTS[name].config()
    model, test = facts["model"], facts["test_cfg"]
    anchors, heads = model["rpn_head"]["anchor_generator"], model["roi_head"]["bbox_head"]
    heads = heads if isinstance(heads, list) else [heads]
    assert (anchors["strides"][:4], anchors["scales"]) == (config.feature_strides, [config.anchor_scale])
    assert anchors["ratios"] == config.anchor_ratios
    assert [head["bbox_coder"]["target_stds"] for head in heads] == config.bbox_reg_stds
    assert {head["reg_class_agnostic"] for head in heads} == {config.class_agnostic_boxes}
    assert model["roi_head"].get("stage_loss_weights", [1.0]) == config.stage_loss_weights
    assert {head.get("reg_decoded_bbox", False) for head in heads} == {config.box_loss == "giou"}
    assert (test["rpn"]["nms_pre"], test["rpn"]["max_per_img"], test["rpn"]["nms"]["iou_threshold"]) == (
        config.num_proposals_per_level, config.num_proposals, config.proposal_nms_threshold
    )  # fmt: skip
    assert (test["rcnn"]["score_thr"], test["rcnn"]["nms"]["iou_threshold"], test["rcnn"]["max_per_img"]) == (
        config.score_threshold, config.nms_threshold, config.max_detections
    )  # fmt: skip
    image_processor = CHECKPOINTS[name].image_processor()
    assert [image_processor.size["longest_edge"], image_processor.size["shortest_edge"]] == facts["image_scale"]
    assert image_processor.size_divisor == facts["padding_divisor"]
    np.testing.assert_allclose(np.multiply(image_processor.image_mean, 255), facts["normalisation"]["mean"])
    np.testing.assert_allclose(np.multiply(image_processor.image_std, 255), facts["normalisation"]["std"])


def test_wrong_keys_are_named(tmp_path):
    name = RECORDS["cascade_mask_rcnn"]

    def change(state_dict):
        state_dict["roi_head.extra"] = state_dict.pop("roi_head.bbox_head.2.fc_cls.bias")

    source = write_manifest_checkpoint(name, tmp_path / "source.pth", change)
    with pytest.raises(ConversionError, match="1 keys belong to no parameter .*extra.*box_heads.2.classifier.bias"):
        plan_conversion(CHECKPOINTS[name], source, ConversionOptions())


def with_own_classes(number: int):
    """Changes a state dict to a detector of `number` classes."""
    sizes = {"fc_cls": number + 1, "fc_reg": 4 * number, "conv_logits": number}

    def change(state_dict):
        for key, tensor in state_dict.items():
            part = next((part for part in sizes if part in key), None)
            if part and not (part == "fc_reg" and len(tensor) == 4):  # boxes of every class alike
                state_dict[key] = torch.zeros(()).expand(sizes[part], *tensor.shape[1:])

    return change


def add_meta(file, meta):
    torch.save(torch.load(file) | {"meta": meta}, file)


def test_own_classes(tmp_path, capsys):
    """A detector that a user trained: its own number and names of classes, nothing of the official record's."""
    name = RECORDS["mask_rcnn"]
    source = write_manifest_checkpoint(name, tmp_path / "mine.pth", with_own_classes(3))
    arguments = ["--checkpoint", name, "--source", str(source), "--dry-run"]
    assert main(arguments) == 0 and "with 3 classes: LABEL_0, LABEL_1, LABEL_2" in capsys.readouterr().out
    add_meta(source, {"CLASSES": ("crack", "ho|le", "\x1brust")})
    assert main(arguments) == 0 and r"with 3 classes: crack, ho|le, \x1brust" in capsys.readouterr().out
    own = own_checkpoint(CHECKPOINTS[name], source)
    config = own.config()
    assert config.id2label == {0: "crack", 1: "ho|le", 2: r"\x1brust"}
    assert own.image_processor().category_ids is None
    provenance = {"source": {"file": "mine.pth", "sha256": ""}, "command": "", "versions": {}}
    card = create_model_card(own, config, ConversionOptions(), {}, provenance)
    assert card.count("COCO") == card.count("eported by the authors") == card.count("its authors") == 0
    assert "# mine\n" in card and r"| 1 | ho\|le |" in card


@pytest.mark.parametrize("labels", [("crack",), ("a", "b", "c", "d"), (1, 2, 3)])
def test_class_names_that_do_not_fit(labels, tmp_path, capsys):
    name = RECORDS["mask_rcnn"]
    source = write_manifest_checkpoint(name, tmp_path / "mine.pth", with_own_classes(3))
    add_meta(source, {"CLASSES": labels})
    assert main(["--checkpoint", name, "--source", str(source), "--dry-run"]) == 1
    assert "do not fit its classifier `roi_head.bbox_head.fc_cls.bias`, for 3 classes" in capsys.readouterr().err


@pytest.mark.parametrize("kind, number", [("mask_rcnn", None), ("cascade_mask_rcnn", 3), ("cascade_rcnn", 3)])
def test_averaging_hook(kind, number, tmp_path, capsys):
    """mmcv's doubles the keys. The second set is left out and named, or taken."""

    def change(state_dict):
        if number:
            with_own_classes(number)(state_dict)
        buffers = {"ema_" + key.replace(".", "_"): tensor for key, tensor in state_dict.items()}
        state_dict |= buffers

    source = write_manifest_checkpoint(RECORDS[kind], tmp_path / "source.pth", change)
    arguments = ["--checkpoint", RECORDS[kind], "--source", str(source), "--dry-run"]
    num_keys = len(MANIFESTS[RECORDS[kind]]["keys"])
    assert main(arguments) == 0
    output = capsys.readouterr().out
    assert f"; {num_keys} left out" in output and "second set of weights of an averaging hook" in output
    assert main([*arguments, "--ema"]) == 0 and "; 0 left out" in capsys.readouterr().out


def test_weights_of_the_registry_without_a_download(tmp_path):
    """With the official classes they keep the names and ids of the classes, but no claim to be the authors'."""
    record = CHECKPOINTS[RECORDS["mask_rcnn"]]
    source = write_manifest_checkpoint(record.name, tmp_path / "source.pth")
    for meta in ({}, {"CLASSES": tuple(record.labels)}):
        add_meta(source, meta)
        own = own_checkpoint(record, source)
        assert (own.labels, own.title, own.reported) == (record.labels, "source", {})
        assert own.image_processor().category_ids == record.image_processor().category_ids


def test_model_card(case):
    """What the model is for, that it finds masks, if it does, and the names of the classes."""
    facts, _, model, _, folder = case
    card = (folder / "README.md").read_text()
    assert "pipeline_tag: object-detection" in card and 'pipeline("object-detection"' in card
    assert (
        ("instance segmentation" in card)
        == ("post_process_instance_segmentation" in card)
        == (model.config.use_mask_head)
    )
    assert "\n## Classes\n\nTheir ids in annotations of C" in card
    table = [line for line in card.splitlines() if re.match(r"\| \d", line)]
    assert table == [f"| {idx} | class {idx} |" for idx in range(model.config.num_labels)]
