# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""The check of the official checkpoints, with stand-ins of these in a stand-in of the Hub."""

import io
import json
import os
import subprocess
import sys

import pytest
import torch
from hub_stand_in import HubStandIn
from testing_utils import REDUCED_MODELS, REPOSITORY, original_state_dict, write_official_checkpoint
from transformers import UperNetConfig, UperNetForSemanticSegmentation

from conversion import check_official
from conversion.check_official import PHOTOGRAPHS, SENSIBLE_NAMES, Item, is_sensible, main, problem_of, select
from conversion.checkpoints import CHECKPOINTS
from conversion.errors import ConversionError
from modeling_internimage import (
    InternImageSegmentationImageProcessor,
    MaskRCNNConfig,
    MaskRCNNForObjectDetection,
    MaskRCNNImageProcessor,
)
from modeling_internimage.configuration_internimage import imagenet_labels


# InternImage-T and FlashInternImage-T of the registry become reduced models with ten classes, of one photograph.
DRIVER = """
import dataclasses, json, sys
from conversion import check_official
from conversion.checkpoints import CHECKPOINTS

for name, architecture in json.loads(sys.argv[1]).items():
    CHECKPOINTS[name] = dataclasses.replace(CHECKPOINTS[name], architecture=architecture, num_labels=10, labels=None)
for name in check_official.PHOTOGRAPHS.keys() - {"chelsea"}:
    del check_official.PHOTOGRAPHS[name]
sys.exit(check_official.main(sys.argv[2:]))
"""
REDUCED = {"internimage_t_1k_224": "tiny_t", "flash_intern_image_t_1k_224": "tiny_flash_t"}


@pytest.mark.slow
def test_download_check_and_report(tmp_path):
    """A repository and two files: one is broken, which does not stop the others, and passes the second time."""
    architectures = {}
    with HubStandIn() as hub:
        for name, reduced in REDUCED.items():
            golden, record = REDUCED_MODELS[reduced], CHECKPOINTS[name]
            architectures[name] = {key: golden["config"][key] for key in golden["config"] if key != "num_classes"}
            weights = io.BytesIO()
            torch.save({"model": original_state_dict(golden["keys"], 0)}, weights)
            hub.files("model", record.family.repository)[record.file] = weights.getvalue()
        golden = REDUCED_MODELS["tiny_t"]
        write_official_checkpoint(tmp_path / "official", golden["config"], golden["keys"], seed=0)
        repository = hub.files("model", "OpenGVLab/internimage_t_1k_224")
        repository.update({file.name: file.read_bytes() for file in (tmp_path / "official").iterdir()})
        hub.broken.add("flash_intern_image_t_1k_224.pth")

        def run():
            arguments = ["--only", "image_t_1k_224", "--output-dir", str(tmp_path / "out"), "--device", "cpu"]
            process = subprocess.run(
                [sys.executable, "-c", DRIVER, json.dumps(architectures), *arguments],
                env=os.environ | hub.environment(tmp_path / "cache") | {"PYTHONPATH": str(REPOSITORY)},
                capture_output=True, text=True, timeout=240,
            )  # fmt: skip
            return process, json.loads((tmp_path / "out" / "report.json").read_text())["items"]

        process, items = run()
        assert process.returncode == 1, process.stderr
        assert "3 of 3 checkpoints to check" in process.stdout and "2 of 3 passed" in process.stdout
        assert "the token does not permit it" in items["flash_intern_image_t_1k_224"]["problem"]
        file, repository = items["internimage_t_1k_224"], items["OpenGVLab/internimage_t_1k_224"]
        assert file["problem"] is repository["problem"] is None
        assert file["checks"]["tensors"]["equal"] == len(golden["keys"]) and len(file["checks"]["sha256"]) == 64
        assert file["photographs"] == repository["photographs"]
        assert len(file["photographs"]["chelsea"]["seen"]) == 5 and file["photographs"].keys() == {"chelsea"}
        assert {path.name for path in (tmp_path / "out").iterdir()} == {"report.json", "report.md"}
        table = (tmp_path / "out" / "report.md").read_text()
        assert "| internimage_t_1k_224 | image-classification | file |" in table

        hub.broken.clear()
        hub.requests.clear()
        process, items = run()
        assert process.returncode == 0, process.stdout + process.stderr
        assert "1 of 3 checkpoints to check (2 passed earlier)" in process.stdout
        assert items["flash_intern_image_t_1k_224"]["problem"] is None
        downloads = {request.split("/")[-1] for request in hub.requests if "/resolve/" in request}
        assert downloads == {"flash_intern_image_t_1k_224.pth"}


@pytest.fixture
def cat(monkeypatch):
    """Only the photograph of a cat."""
    monkeypatch.setattr(check_official, "PHOTOGRAPHS", {"chelsea": PHOTOGRAPHS["chelsea"]})


LABELS = {"id2label": {0: "dog", 1: "cat"}, "label2id": {"dog": 0, "cat": 1}}


def test_segmentation(cat, tiny_config):
    """A class that covers enough of the picture counts."""
    stages = ["stage1", "stage2", "stage3", "stage4"]
    config = UperNetConfig(
        backbone_config=tiny_config(out_features=stages), hidden_size=8, use_auxiliary_head=False, **LABELS
    )
    model = UperNetForSemanticSegmentation(config).eval()
    processor = InternImageSegmentationImageProcessor(size={"shortest_edge": 64, "longest_edge": 128})
    for label, name in LABELS["id2label"].items():
        model.decode_head.classifier.bias.data = torch.nn.functional.one_hot(torch.tensor(label), 2) * 100.0
        found = check_official.look_at_photographs(model, processor, "image-segmentation")
        assert found == {"chelsea": {"seen": [[name, 1.0]], "sensible": name == "cat"}}


def test_detection(cat, tiny_config):
    """Each class once, with its best score; without a class for the photograph there is nothing to judge."""
    config = MaskRCNNConfig(
        backbone_config=tiny_config(out_features=["stage1", "stage2", "stage3", "stage4"]),
        hidden_size=16, box_head_hidden_size=16, max_detections=5, **LABELS,
    )  # fmt: skip
    model = MaskRCNNForObjectDetection(config).eval()
    model.roi_heads.box_heads[0].classifier.bias.data = torch.tensor([0.0, 9.0, 0.0])  # the last is the background
    processor = MaskRCNNImageProcessor(size={"shortest_edge": 64, "longest_edge": 128})
    found = check_official.look_at_photographs(model, processor, "object-detection")["chelsea"]
    assert [label for label, _ in found["seen"]] == ["cat"] and found["sensible"]
    model.config.id2label = {0: "dog", 1: "car"}
    found = check_official.look_at_photographs(model, processor, "object-detection")["chelsea"]
    assert found["sensible"] is None


def test_without_network(tmp_path, capsys):
    """(The tests run with `HF_HUB_OFFLINE`.)"""
    assert main(["--only", "T", "--output-dir", str(tmp_path / "out")]) == 1
    error = capsys.readouterr().err
    assert "which needs a network: the Hub cannot be reached" in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_selection():
    """Sizes, of both families, or parts of names; files that two entries share once."""
    names = [name for name, *_ in select(None)]
    assert (
        len(names)
        == len(set(names))
        == sum(1 for _ in {c.file for c in CHECKPOINTS.values() if c.file})
        + len([checkpoint for checkpoint in CHECKPOINTS.values() if checkpoint.hub_name])
    )
    assert {checkpoint.backbone for _, checkpoint, _ in select(["t"])} == {"T", "Flash-T"}
    assert [name for name, *_ in select(["upernet_internimage_t_512_"])] == ["upernet_internimage_t_512_160k_ade20k"]
    with pytest.raises(ConversionError, match="`--only XXL` fits no checkpoint"):
        select(["XXL"])


@pytest.mark.parametrize("photograph", PHOTOGRAPHS)
def test_every_photograph_has_classes_of_imagenet(photograph):
    """Names that the classifiers have, letter by letter; and the picture is there."""
    labels = {label for label in imagenet_labels(1000).values() if is_sensible(photograph, label)}
    assert 2 <= len(labels) <= 12 and PHOTOGRAPHS.keys() == SENSIBLE_NAMES.keys()
    assert PHOTOGRAPHS[photograph]().ndim in (2, 3)


def seen(*values) -> dict:
    return {"photographs": {str(idx): {"seen": [], "sensible": value} for idx, value in enumerate(values)}}


def test_senseless_checkpoints_do_not_pass():
    assert problem_of(seen(True, True, True, False)) is None
    assert problem_of(seen(True, True, False, False)) == "only 2 of 4 photographs are seen sensibly"
    assert problem_of(seen(None, None, True)) is None and problem_of(seen(None)) is None


def test_full_disk_is_a_problem_of_one_checkpoint(tmp_path, monkeypatch):
    item = Item("internimage_g", CHECKPOINTS["internimage_g_22kto1k_512"], False, 12 * 10**15)
    problem = check_official.check_and_explain(item, tmp_path / "work", "cpu")["problem"]
    assert "24240000.00 GB are needed" in problem and "`--output-dir`" in problem and not (tmp_path / "work").exists()


def test_other_files_are_not_written_over(tmp_path):
    (tmp_path / "report.json").write_text("{}")
    with pytest.raises(ConversionError, match="was not written by this command"):
        check_official.read_report(tmp_path / "report.json")
