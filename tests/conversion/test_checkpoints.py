# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""The registry against the facts collected from the original repository, and what is generated from it."""

import re

import pytest
from testing_utils import GOLDEN, REPOSITORY, read_json

from conversion.checkpoints import (
    CHECKPOINTS,
    ConversionError,
    accuracy_commands,
    find_checkpoint,
    markdown_table,
    text_table,
)
from modeling_internimage import InternImageConfig


TASKS = ("classification", "segmentation", "detection")
INTERNIMAGE, FLASH = (
    {name: manifest for task in TASKS for name, manifest in read_json(GOLDEN / file.format(task)).items()}
    for file in ("{}/manifests.json.gz", "dcnv4/{}_manifests.json.gz")
)
MANIFESTS = INTERNIMAGE | FLASH
BACKBONE_ARGUMENTS = {"out_indices", "init_cfg", "type", "drop_path_rate"}
HEADS = {
    "upernet": "UperNet", "segformer": "SegFormer head", "mask2former": "Mask2Former", "mask_rcnn": "Mask R-CNN",
    "cascade_mask_rcnn": "Cascade Mask R-CNN", "cascade_rcnn": "Cascade R-CNN", "dino": "DINO", "cb_dino": "CB-DINO",
}  # fmt: skip


# Published, and named in configurations of the authors, but not in their tables.
STARTS = [f"dino_4scale_cbinternimage_h_objects365_{number}classes" for number in (80, 20)]


def test_every_official_checkpoint_is_there():
    assert len(CHECKPOINTS) == 87
    assert list(CHECKPOINTS)[:62] == [*INTERNIMAGE, *STARTS]
    assert set(list(CHECKPOINTS)[62:]) == set(FLASH)


@pytest.mark.parametrize("name", MANIFESTS)
def test_records(name):
    manifest, checkpoint = MANIFESTS[name], CHECKPOINTS[name]
    assert checkpoint.num_parameters == manifest["num_parameters"]
    if "method" in manifest:  # a segmentation or detection model
        model = manifest["config"]["model"]
        original = {key: value for key, value in model["backbone"].items() if key not in BACKBONE_ARGUMENTS}
        assert checkpoint.head == HEADS[manifest["method"]]
        assert checkpoint.dataset == manifest["dataset"]
        assert checkpoint.num_labels == (manifest["dataset_num_classes"] or manifest["classes"])
        assert checkpoint.file == manifest["download_file"]
        reported = {key: value for key, value in manifest["reported"].items() if isinstance(value, float)}
        if manifest["dataset"] == "OpenImages":  # the original's evaluation there is not COCO's
            reported = {"openimages_mAP50": reported["box_mAP"]}
        assert checkpoint.reported == reported
        size = manifest["config"].get("train_crop_size") or manifest["config"]["image_scale"][::-1]
        if name in FLASH and "segment" in manifest["config_file"]:  # crops as high and wide as the shorter side
            size = size[:1] * 2
        assert list(checkpoint.image_size) == size
        assert checkpoint.task == (
            "image-segmentation" if "segment" in manifest["config_file"] else "object-detection"
        )
    else:
        original = manifest["config"]
        assert checkpoint.image_size == (original["image_size"],) * 2
        assert checkpoint.num_labels == original["num_classes"]
        assert checkpoint.file == f"{name}.pth"
        repository = manifest.get("hf_repository_name")
        assert checkpoint.hub_name == (repository and f"OpenGVLab/{repository}")
        if name in FLASH:
            assert checkpoint.reported.get("accuracy") == (manifest["reported"] or {}).get("acc1")
        assert (checkpoint.reported == {}) == (original["num_classes"] == 21841)
    if name in FLASH:
        url = f"https://huggingface.co/{checkpoint.family.repository}/resolve/main/{checkpoint.file}"
        assert url == manifest["download_url"]
    assert checkpoint.status == ("convertible" if checkpoint.file else "no weights published")
    ours, theirs = checkpoint.backbone_config(), InternImageConfig.from_dict(original)
    for argument in set(original) - {
        "norm_layer",
        "with_cp",
        "image_size",
        "num_classes",
        "label_smoothing",
    }:
        if argument not in ("drop_path_rate", "level2_post_norm", "depths", "groups"):
            assert getattr(ours, argument) == getattr(theirs, argument), argument
    assert (ours.depths, ours.num_groups) == (theirs.depths, theirs.num_groups)


def test_no_weights_published():
    assert CHECKPOINTS["cascade_internimage_xl_fpn_3x_crowd_human"].status == "no weights published"


@pytest.mark.parametrize(
    "wrong, nearest",
    [
        ("internimage_t_1k_22", "'internimage_t_1k_224'"),
        ("InternImage_XL_22kto1k_384.pth", "'internimage_xl_22kto1k_384'"),
    ],
)
def test_unknown_name_suggests_the_nearest(wrong, nearest):
    with pytest.raises(ConversionError, match=f"Did you mean {nearest}"):
        find_checkpoint(wrong)


def test_readme_table_is_generated():
    assert markdown_table(CHECKPOINTS.values()) in (REPOSITORY / "conversion" / "README.md").read_text()


def test_readme_commands_are_generated():
    """One for each accuracy of the authors."""
    readme = (REPOSITORY / "examples" / "image_classification" / "README.md").read_text()
    assert f"```bash\n{accuracy_commands(CHECKPOINTS.values())}\n```" in readme
    accuracies = [checkpoint for checkpoint in CHECKPOINTS.values() if "accuracy" in checkpoint.reported]
    assert len(accuracies) == readme.count("\n# top-1 ") == 12


def test_text_table():
    lines = text_table(CHECKPOINTS.values()).splitlines()
    assert len(lines) == 88 and len({re.search(r" (image|object)-", line).start() for line in lines[1:]}) == 1


def test_category_ids():
    """COCO's annotation files number the classes with gaps. The original's script numbers CrowdHuman's from 1."""
    checkpoint = CHECKPOINTS["mask_rcnn_internimage_t_fpn_1x_coco"]
    names = dict(zip(checkpoint.image_processor().category_ids, checkpoint.labels, strict=True))
    assert (names[1], names[13], names[90], len(names)) == ("person", "stop sign", "toothbrush", 80)
    assert CHECKPOINTS["dino_4scale_cbinternimage_h_objects365_lvis_val"].category_ids == list(range(1, 1204))
    assert CHECKPOINTS["dino_4scale_cbinternimage_h_objects365_voc07"].category_ids is None
    checkpoint = CHECKPOINTS["cascade_internimage_xl_fpn_3x_crowd_human"]
    assert dict(zip(checkpoint.image_processor().category_ids, checkpoint.labels, strict=True)) == {1: "person"}
