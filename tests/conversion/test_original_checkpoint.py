# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""Files of the original code and of its users, and files that are none."""

import argparse
import os
import re
import sys
import types

import numpy
import pytest
import torch

from conversion.errors import ConversionError
from conversion.original_checkpoint import read_original_checkpoint


WEIGHTS = {"patch_embed.conv1.weight": torch.arange(6.0).view(2, 3), "head.bias": torch.ones(4)}


def prefixed(prefix: str) -> dict[str, torch.Tensor]:
    return {prefix + key: tensor for key, tensor in WEIGHTS.items()}


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before-1.6"])
@pytest.mark.parametrize(
    "content",
    [
        WEIGHTS,
        {"model": WEIGHTS},
        {"state_dict": prefixed("backbone."), "meta": {"epoch": 3}},
        {"module": prefixed("module."), "optimizer": {"state": {0: torch.ones(2)}}},
        {"model": prefixed("module.backbone."), "model_ema": {"head.bias": torch.zeros(4)}},
    ],
)
def test_wrappers(content, zipped, tmp_path):
    torch.save(content, tmp_path / "file.pth", _use_new_zipfile_serialization=zipped)
    weights = read_original_checkpoint(tmp_path / "file.pth")
    assert weights.keys() == WEIGHTS.keys()
    assert all(torch.equal(weights[key], WEIGHTS[key]) for key in WEIGHTS)


@pytest.mark.parametrize("entry", ["model_ema", "state_dict_ema"])
def test_averaged_weights(entry, tmp_path):
    torch.save({"model": prefixed("wrong."), entry: prefixed("module.")}, tmp_path / "file.pth")
    assert read_original_checkpoint(tmp_path / "file.pth", ema=True).keys() == WEIGHTS.keys()
    torch.save({"model": WEIGHTS, "epoch": 3}, tmp_path / "file.pth")
    with pytest.raises(ConversionError, match="no averaged weights.*model_ema.*only epoch, model"):
        read_original_checkpoint(tmp_path / "file.pth", ema=True)


def test_settings_of_the_original_trainer(tmp_path, monkeypatch):
    """Its checkpoints hold their settings as objects of `yacs`, which is not needed to read them."""

    class CfgNode(dict):
        def __init__(self, content):
            super().__init__(content)
            self.__dict__["__immutable__"] = True

    CfgNode.__module__, CfgNode.__qualname__ = "yacs.config", "CfgNode"
    config = types.ModuleType("yacs.config")
    config.CfgNode = CfgNode
    monkeypatch.setitem(sys.modules, "yacs", types.ModuleType("yacs"))
    monkeypatch.setitem(sys.modules, "yacs.config", config)
    settings = CfgNode({"MODEL": CfgNode({"NAME": "intern_image"})})
    torch.save({"model": WEIGHTS, "config": settings, "args": argparse.Namespace(lr=1)}, tmp_path / "file.pth")
    monkeypatch.undo()
    assert read_original_checkpoint(tmp_path / "file.pth").keys() == WEIGHTS.keys()


class Malicious:
    def __reduce__(self):
        return os.mkdir, ("ran",)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before-1.6"])
def test_code_is_refused(zipped, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"model": WEIGHTS, "extra": Malicious()}, "file.pth", _use_new_zipfile_serialization=zipped)
    with pytest.raises(ConversionError, match=r"file.pth is refused: reading it would run posix.mkdir"):
        read_original_checkpoint("file.pth")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "damage, message",
    [
        (lambda content: content[: len(content) // 2], "damaged or was downloaded in part"),
        (lambda content: content[:-10], "damaged or was downloaded in part"),
        (lambda content: b"", r"\(0 bytes\) is damaged"),
        (lambda content: b"<html>404</html>", "not a PyTorch checkpoint"),
    ],
    ids=["half", "end-missing", "empty", "html"],
)
def test_damaged_files(damage, message, tmp_path):
    file = tmp_path / "file.pth"
    torch.save({"model": WEIGHTS}, file)
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(ConversionError, match=message):
        read_original_checkpoint(file)


@pytest.mark.parametrize(
    "content, message",
    [
        ([1, 2], "holds a list, not a dictionary"),
        ({"epoch": 3}, "model, state_dict, module is there, only epoch"),
        ({}, "only nothing"),
        ({"model": prefixed("module.") | prefixed("")}, "'patch_embed.conv1.weight' twice"),
    ],
)
def test_other_content(content, message, tmp_path):
    torch.save(content, tmp_path / "file.pth")
    with pytest.raises(ConversionError, match=message):
        read_original_checkpoint(tmp_path / "file.pth")


def test_missing_file(tmp_path):
    with pytest.raises(ConversionError, match=re.escape(f"There is no file {tmp_path / 'file.pth'}")):
        read_original_checkpoint(tmp_path / "file.pth")


def test_numbers_of_numpy(tmp_path):
    """mm-style toolboxes store the best metric so far; the files of 2022 call numpy's module by its old name."""
    meta = {"best_score": numpy.float64(0.5), "iter": numpy.int64(3), "loss": numpy.float32(1)}
    file = tmp_path / "file.pth"
    torch.save({"state_dict": WEIGHTS, "meta": meta}, file, _use_new_zipfile_serialization=False)
    assert read_original_checkpoint(file).keys() == WEIGHTS.keys()
    new, old = b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n"
    assert new in file.read_bytes()
    file.write_bytes(file.read_bytes().replace(new, old))
    assert read_original_checkpoint(file).keys() == WEIGHTS.keys()
