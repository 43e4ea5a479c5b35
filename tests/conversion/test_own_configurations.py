# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""Checkpoints that users trained with mmdetection or mmsegmentation, converted with their own configurations."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from testing_utils import GOLDEN, first_quick, golden_input, original_state_dict, read_json

from conversion.checkpoints import CHECKPOINTS
from conversion.convert_checkpoint import ConversionOptions, plan_conversion
from conversion.convert_internimage_to_hf import main
from conversion.errors import ConversionError
from conversion.heads import HEADS
from conversion.offset_mask import UNREAD
from conversion.original_config import checkpoint_from_config
from conversion.python_config import Unread, read_python_config
from modeling_internimage import MaskRCNNForObjectDetection


INTERNIMAGE, FLASH = (
    {
        name: facts
        for task in ("detection", "segmentation")
        for name, facts in read_json(GOLDEN / (file % task)).items()
    }
    for file in ("%s/manifests.json.gz", "dcnv4/%s_manifests.json.gz")
)
MANIFESTS = INTERNIMAGE | FLASH
# One checkpoint of each method; of those with a FlashInternImage, `flash_...`.
EXAMPLES = {manifest["method"]: name for name, manifest in reversed(INTERNIMAGE.items())}
EXAMPLES |= {f"flash_{manifest['method']}": name for name, manifest in reversed(FLASH.items())}


def zeros(shape, integer=False) -> torch.Tensor:
    """A tensor that takes no memory."""
    return torch.zeros((), dtype=torch.int64 if integer else None).expand(shape)


@pytest.fixture
def write_own(tmp_path):
    """
    Writes a full-size checkpoint as a file of kilobytes, with another number of classes, and its configuration, `.py`.
    Returns the arguments of the command.
    """

    def write(name, change=lambda facts, weights: None, num_classes=None, ema=False, **entries):
        facts = json.loads(json.dumps(MANIFESTS[name]["config"]))
        shapes = dict(MANIFESTS[name]["keys"])
        if num_classes:
            rows = {"fc_cls": num_classes + 1, "cls_embed": num_classes + 1, "conv_seg": num_classes}
            rows |= {"conv_logits": num_classes, "fc_reg": 4 * num_classes}
            rows |= {"cls_branches": num_classes, "label_embedding": num_classes}
            for key, shape in shapes.items():
                part = next((part for part in rows if f".{part}." in key), None)
                if part and not (part == "fc_reg" and shape[0] == 4):  # class-agnostic
                    shapes[key] = [rows[part], *shape[1:]]
        weights = {key: zeros(shape, "num_batches" in key) for key, shape in shapes.items()}
        if ema:
            weights |= {"ema_" + key.replace(".", "_"): tensor for key, tensor in weights.items()}
        change(facts, weights)
        torch.save({"state_dict": weights} | entries, tmp_path / "mine.pth")
        variables = {name: facts[name] for name in ("model", "test_pipeline") if name in facts}
        crop = facts.get("train_crop_size")
        if name in FLASH and "reduce_zero_label" in MANIFESTS[name]:  # of which the facts have no training
            crop = facts["image_scale"][1:] * 2
        if crop:
            load = {"type": "LoadAnnotations", "reduce_zero_label": MANIFESTS[name]["reduce_zero_label"]}
            variables["train_pipeline"] = [load, {"type": "RandomCrop", "crop_size": tuple(crop)}]
        text = "\n".join(f"{variable} = {value!r}" for variable, value in variables.items())
        (tmp_path / "mine.py").write_text(text)
        return ["--config", str(tmp_path / "mine.py"), "--source", str(tmp_path / "mine.pth")]

    return write


def record_of(arguments):
    return checkpoint_from_config(Path(arguments[1]), Path(arguments[3]))


@pytest.mark.parametrize("name", first_quick(MANIFESTS, lambda name: (name in FLASH, MANIFESTS[name]["method"])))
def test_official_configurations(name, write_own):
    """They give what the registry says of the same checkpoint, and account for every key."""
    meta = {"CLASSES": MANIFESTS[name]["class_names"], "PALETTE": MANIFESTS[name].get("palette")}
    arguments = write_own(name, meta=meta)
    own, official = record_of(arguments), CHECKPOINTS[name]
    assert (own.head, own.task, own.image_size) == (official.head, official.task, official.image_size)
    expected = official.config()
    expected.backbone_config.use_clip_projector = False  # which a backbone does not have
    assert own.config().to_dict() == expected.to_dict()
    image_processor = official.image_processor()
    if official.task == "object-detection":
        image_processor.category_ids = None
    assert own.image_processor().to_dict() == image_processor.to_dict()
    plan = plan_conversion(own, Path(arguments[3]), ConversionOptions())
    assert len(plan.used_keys()) == len(MANIFESTS[name]["keys"])


SLOW_METHODS = [
    pytest.param(method, marks=[pytest.mark.slow] * (method not in ("mask_rcnn", "upernet", "flash_mask_rcnn")))
    for method in EXAMPLES
]


@pytest.mark.parametrize("method", SLOW_METHODS)
def test_own_classes(method, write_own, capsys):
    """Three, whatever the configuration says, named by the file. The second set of weights is left out or taken."""
    name, labels = EXAMPLES[method], ("crack", "hole", "rust")
    arguments = write_own(name, num_classes=3, ema=True, meta={"CLASSES": labels})
    keys = MANIFESTS[name]["keys"]
    unread = sum(".offset_mask." in key and shape[0] % 27 > 0 for key, shape in keys.items())
    for options, left_out in (([], len(keys) + unread), (["--ema"], unread)):
        assert main([*arguments, "--dry-run", *options]) == 0
        output = capsys.readouterr().out
        assert "a file of your own, with 3 classes: crack, hole, rust" in output and f"; {left_out} left out" in output
    config = record_of(write_own(name, num_classes=3)).config()
    assert config.id2label == {idx: f"LABEL_{idx}" for idx in range(3)}


@pytest.mark.parametrize("method", SLOW_METHODS)
def test_config_json(method, write_own, tmp_path):
    """Of a converted model. Its class names are taken if the checkpoint has none and as many classes."""
    name = EXAMPLES[method]
    expected = CHECKPOINTS[name].config()
    expected.save_pretrained(tmp_path)
    num_rows = MANIFESTS[name]["dataset_num_classes"]
    source = write_own(name, num_classes=num_rows)[2:]
    own = record_of(["--config", tmp_path / "config.json", *source])
    assert own.head == CHECKPOINTS[name].head
    if getattr(expected, "palette", None):
        del expected.palette  # the checkpoint has none
    config = own.config().to_dict()
    assert {key: config[key] for key in expected.to_dict()} == expected.to_dict() | {
        "transformers_version": config["transformers_version"]
    }
    assert set(plan_conversion(own, Path(source[1]), ConversionOptions()).dropped.values()) <= {UNREAD}


@torch.no_grad()
def test_conversion_of_a_detector(tmp_path):
    """From the files to golden numbers."""
    facts = json.loads((GOLDEN / "detection" / "mask_rcnn_t_like.json").read_text())
    weights = original_state_dict(facts["keys"], facts["weight_seed"])
    labels = [f"class {idx}" for idx in range(len(weights["roi_head.bbox_head.fc_cls.bias"]) - 1)]
    torch.save({"state_dict": weights, "meta": {"CLASSES": labels}}, tmp_path / "mine.pth")
    pipeline = MANIFESTS[EXAMPLES["mask_rcnn"]]["config"]["test_pipeline"]
    (tmp_path / "mine.py").write_text(f"model = {facts['model']!r}\ntest_pipeline = {pipeline!r}")
    arguments = ["--config", str(tmp_path / "mine.py"), "--source", str(tmp_path / "mine.pth")]
    assert main([*arguments, "--output-dir", str(tmp_path / "new")]) == 0
    model = MaskRCNNForObjectDetection.from_pretrained(tmp_path / "new")
    pixel_values = golden_input(facts["input"]["shape"], facts["input"]["seed"])
    golden = np.load(GOLDEN / "detection" / "mask_rcnn_t_like.npz")
    assert all((height, width) == tuple(pixel_values.shape[2:]) for height, width in facts["img_shapes"][:1])
    feature_maps = model.neck(model.backbone(pixel_values[:1]).feature_maps)
    for level, feature_map in enumerate(feature_maps):
        expected = torch.from_numpy(golden[f"fpn.{level}"])[:1]
        torch.testing.assert_close(feature_map, expected.float(), rtol=0, atol=5e-4)
    assert main([*arguments, "--verify", str(tmp_path / "new")]) == 0
    card = (tmp_path / "new" / "README.md").read_text()
    assert "with Mask R-CNN" in card and "preprocessing is the authors'" not in card


def test_names_and_bases(tmp_path):
    """As the official files are written: on top of others, with names, `**`, arithmetic, `_delete_`."""
    (tmp_path / "configs" / "mine").mkdir(parents=True)
    (tmp_path / "configs" / "base.py").write_text(
        '"""A docstring."""\n'
        "import os\n"
        "norm = dict(mean=[1., -2], to_rgb=True)\n"
        "root = os.environ['HOME'] + '/data'\n"
        "pipeline = [dict(type='Normalize', **norm), dict(type='Resize', scale=(8 * 4, 2 + 7 // 2))]\n"
        "model = dict(backbone=dict(type='ResNet', depth=50), neck=dict(type='FPN', num_outs=5), test_cfg=None)\n"
        "data = dict(test=dict(pipeline=pipeline, root=root))\n"
    )
    (tmp_path / "configs" / "mine" / "mine.py").write_text(
        "_base_ = ['../base.py']\n"
        "num_classes = 3\n"
        "model = dict(\n"
        "    backbone=dict(_delete_=True, type='InternImage', channels=64),\n"
        "    neck={'num_outs': 6},\n"
        "    head=dict(weights=[1.0] * num_classes, num_classes=num_classes),\n"
        "    test_cfg=dict(mode='whole'))\n"
    )
    config = read_python_config(tmp_path / "configs" / "mine" / "mine.py")
    assert config["model"] == {
        "backbone": {"type": "InternImage", "channels": 64},
        "neck": {"type": "FPN", "num_outs": 6},
        "head": {"weights": Unread, "num_classes": 3},
        "test_cfg": {"mode": "whole"},
    }
    assert config["data"]["test"]["root"] is Unread
    assert config["data"]["test"]["pipeline"] == [
        {"type": "Normalize", "mean": [1.0, -2], "to_rgb": True},
        {"type": "Resize", "scale": [32, 5]},
    ]


@pytest.mark.parametrize(
    "text, message",
    [
        ("_base_ = '../missing.py'", "builds on ../missing.py, which is not there. .*Give the merged configuration"),
        ("_base_ = ['mine.py']", "is a `_base_` of the configuration more than once"),
        ("_base_ = 3", "a `_base_` that is not a list of file names"),
        ("open('ran', 'w')", "line 1: the file is not run, and only assignments to names are read"),
        ("model = dict()\nif True:\n    model = 3", "line 2: the file is not run"),
        ("model = dict()\nmodel['backbone'] = 3", "line 2: the file is not run"),
        ("model = dict(", "cannot be read"),
        ("\0", "cannot be read"),
        ("(" * 5000, "cannot be read"),
        ("a = 1" + " + 1" * 20000, "cannot be read|has no `model`"),
        ("a = [1]\n" + "a = [a, a]\n" * 40, "describes more than 200,000 values"),
        (f"a = 9\n{'a = a * a' + chr(10)}" * 60, "has no `model`"),
        (" " * 100_001, "100,001 bytes: that is not a configuration"),
        ("model = 3", "has `model=3`, not a dictionary"),
        ("model = dict(bbox_head=dict(type=['a']))", "does not describe an InternImage: unhashable"),
        ("model = dict(bbox_head=dict(type='RetinaHead'))", "the head 'RetinaHead', which cannot be converted. These"),
    ],
    ids=range(16),
)
def test_files_that_are_no_configurations(text, message, write_own, tmp_path, monkeypatch, capsys):
    """One sentence, and nothing is run."""
    arguments = write_own(EXAMPLES["mask_rcnn"])
    (tmp_path / "mine.py").write_text(text)
    monkeypatch.chdir(tmp_path)
    assert main([*arguments, "--dry-run"]) == 1
    error = capsys.readouterr().err
    assert re.search(message, error) and error.count("\n") == 1, error
    assert not (tmp_path / "ran").exists()


def set_value(path: str, value):
    """Changes a setting of the configuration, names and indices joined by dots."""

    def change(facts, weights):
        *parents, last = path.split(".")
        for part in parents:
            facts = facts[int(part) if part.isdigit() else part]
        facts.pop(last) if value is None else facts.update({last: value})

    return change


def test_values_that_are_not_read(write_own, tmp_path, capsys):
    """The file names others as it likes; it may not compute a setting that is needed."""
    arguments = write_own(EXAMPLES["mask_rcnn"])
    text = (tmp_path / "mine.py").read_text()
    (tmp_path / "mine.py").write_text(f"work_dir = str(3)\n{text}\ngpu_ids = range(0, 1)")
    assert main([*arguments, "--dry-run"]) == 0
    for old, new, name in (
        ("'post_norm': False", "'post_norm': bool(0)", "post_norm"),
        ("[4, 4", "[f(), 4", "depths"),
    ):
        assert old in text
        (tmp_path / "mine.py").write_text(text.replace(old, new, 1))
        capsys.readouterr()
        assert main([*arguments, "--dry-run"]) == 1
        assert f"computes `model.backbone.{name}`, but it is not run: write the value" in capsys.readouterr().err


@pytest.mark.parametrize(
    "method, path, value, message",
    [
        ("mask_rcnn", "model.backbone.type", "ResNet", "`model.backbone.type='ResNet'`; only 'InternImage'"),
        ("mask_rcnn", "model.backbone.out_indices", [1, 2, 3], r"`model.backbone.out_indices=\[1, 2, 3\]`; only"),
        ("mask_rcnn", "model.backbone.core_op", "DCNv4", "DCNv4 is the operator of the type 'FlashInternImage'"),
        ("mask_rcnn", "model.backbone.core_op", "DCNv5", "does not describe an InternImage: .*`core_op='DCNv5'`"),
        ("flash_mask_rcnn", "model.backbone.core_op", "DCNv3", "`model.backbone.core_op='DCNv3'`; only 'DCNv4'"),
        ("flash_mask_rcnn", "model.backbone.layer_scale", None, "has no `model.backbone.layer_scale`, without which"),
        ("flash_mask_rcnn", "model.neck.norm_cfg.type", "BN", "`model.neck.norm_cfg.type='BN'`; only 'LN'"),
        ("flash_cascade_mask_rcnn", "model.roi_head.bbox_head.0.with_dcn", None, "with_dcn=True`; only False"),
        (
            "flash_mask2former",
            "model.decode_head.pixel_decoder.encoder.transformerlayers.attn_cfgs.use_softmax",
            False,
            "attn_cfgs.use_softmax=False`; only True",
        ),
        ("mask_rcnn", "model.backbone.depths", [10**9] * 4, "more layers than .* has tensors"),
        ("mask_rcnn", "model.neck.num_outs", 4, "`model.neck.num_outs=4`; only 5"),
        ("mask_rcnn", "model.test_cfg.rcnn.nms.type", "soft_nms", "nms.type='soft_nms'`; only 'nms'"),
        ("mask_rcnn", "model.rpn_head", None, "has no `model.rpn_head.anchor_generator`. Give the merged"),
        ("mask_rcnn", "test_pipeline", None, "has no `test_pipeline`"),
        ("mask_rcnn", "test_pipeline.1.img_scale", [[1333, 800], [2000, 1200]], "not 2 positive whole numbers"),
        ("mask_rcnn", "test_pipeline.1.transforms.2.to_rgb", False, "`Normalize.to_rgb=False`; only True"),
        ("mask_rcnn", "test_pipeline.1.transforms.3.size_divisor", 64, "`Pad.size_divisor=64`; only 32"),
        ("upernet", "model.decode_head.align_corners", True, "`model.decode_head.align_corners=True`; only False"),
        ("upernet", "model.decode_head.pool_scales", 3, "does not describe an InternImage|No model can be made"),
        ("upernet", "model.decode_head.channels", 256, "keys have another shape"),
        ("segformer", "model.decode_head.channels", 128, "keys have another shape"),
        ("dino", "model.backbone.out_indices", [0, 1, 2, 3], r"out_indices=\[0, 1, 2, 3\]`; only \[1, 2, 3\]"),
        ("dino", "model.bbox_head.positional_encoding.temperature", 10000, "temperature=10000`; only 20"),
    ],
    ids=str,
)  # fmt: skip
def test_settings_that_are_not_converted(method, path, value, message, write_own, capsys):
    arguments = write_own(EXAMPLES[method], set_value(path, value))
    assert main([*arguments, "--dry-run"]) == 1
    error = capsys.readouterr().err
    assert re.search(message, error) and error.count("\n") == 1, error


def test_default_offset_scale(write_own):
    """Of the original's FlashInternImage for detection and segmentation: half of that of an InternImage."""
    for method, expected in (("mask_rcnn", 1.0), ("flash_mask_rcnn", 0.5)):
        own = record_of(write_own(EXAMPLES[method], set_value("model.backbone.offset_scale", None)))
        assert own.config().backbone_config.offset_scale == expected


def test_settings_of_images(write_own):
    """Where they differ from the official ones."""

    def change(facts, weights):
        normalize = facts["test_pipeline"][1]["transforms"][3]
        assert normalize["type"] == "Normalize"
        normalize |= {"mean": [51, 102, 153], "std": [25.5] * 3}
        facts["model"]["test_cfg"] = {"mode": "slide", "crop_size": (512, 512), "stride": [341, 341]}

    image_processor = record_of(write_own(EXAMPLES["upernet"], change)).image_processor()
    assert list(image_processor.image_mean) == [0.2, 0.4, 0.6] and list(image_processor.image_std) == [0.1] * 3
    assert image_processor.window_stride == {"height": 341, "width": 341}


def test_faster_rcnn(write_own):
    """A two-stage detector that the registry does not have."""

    def change(facts, weights):
        del facts["model"]["roi_head"]["mask_head"]
        for key in [key for key in weights if "mask_head" in key]:
            del weights[key]
        facts["model"]["roi_head"]["bbox_head"]["loss_bbox"] = {"type": "SmoothL1Loss", "loss_weight": 2.0}

    arguments = write_own(EXAMPLES["mask_rcnn"], change)
    own = record_of(arguments)
    config = plan_conversion(own, Path(arguments[3]), ConversionOptions()).config
    assert own.head == "Faster R-CNN" in HEADS and not config.use_mask_head
    assert (config.box_loss, config.box_loss_weight) == ("smooth_l1", 2.0)


def test_other_classes_than_the_official_checkpoint(write_own, capsys):
    """By name too: a warning, and no refusal."""
    name = EXAMPLES["cascade_mask_rcnn"]
    source = write_own(name, num_classes=3)[2:]
    assert main(["--checkpoint", name, *source, "--dry-run"]) == 0
    output = capsys.readouterr()
    assert f"has 3 classes, {name} has 80: it is converted with its own" in output.err
    assert "with 3 classes: LABEL_0" in output.out


def test_missing_files(write_own, tmp_path):
    arguments = write_own(EXAMPLES["mask_rcnn"])
    with pytest.raises(ConversionError, match="There is no file .*mine.pth"):
        (tmp_path / "mine.pth").unlink()
        record_of(arguments)
    with pytest.raises(ConversionError, match="There is no file .*other.py"):
        record_of(["--config", tmp_path / "other.py", *arguments[2:]])
