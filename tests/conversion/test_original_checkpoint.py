# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""Checkpoints of the original code and of its users, and damaged or hostile files."""

import argparse
import collections
import io
import os
import re
import subprocess
import sys
import tarfile
import types
import zipfile

import numpy
import pytest
import torch
from testing_utils import REPOSITORY

from conversion.errors import ConversionError
from conversion.original_checkpoint import read_classes, read_original_checkpoint


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
        ({"model_ema": WEIGHTS}, "only model_ema. Take the averaged weights: `--ema`"),
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


class Calls:
    """Pickled as a call of `function`."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before-1.6"])
def test_objects_of_numpy_are_not_built(zipped, tmp_path):
    """numpy's own function ends the interpreter for such a type. mmengine's logs have arrays."""
    scalar = numpy.float64(0).__reduce__()[0]
    extra = {"scalar": Calls(scalar, numpy.dtype([("a", "O")])), "array": numpy.arange(3)}
    file = tmp_path / "file.pth"
    torch.save({"model": WEIGHTS} | extra, file, _use_new_zipfile_serialization=zipped)
    assert read_original_checkpoint(file).keys() == WEIGHTS.keys()


@pytest.mark.parametrize(
    "value, name",
    [
        (torch.eye(2).to_sparse(), "_rebuild_sparse_tensor"),
        (torch.ones(2).to(torch.float8_e4m3fn), "_rebuild_tensor_v3"),
        (torch.ones(2, dtype=torch.complex64), "ComplexFloatStorage"),
        (torch.quantize_per_tensor(torch.ones(2), 1.0, 0, torch.qint8), "QInt8Storage"),
        (torch.ones(2, device="meta"), "_rebuild_meta_tensor_no_storage"),
        (Calls(torch.FloatTensor, 10**10), "torch.FloatTensor"),
        (Calls(bytearray, 10**10), "bytearray"),
    ],
    ids=["sparse", "float8", "complex", "quantized", "meta", "uninitialised", "memory"],
)
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before-1.6"])
def test_what_is_no_plain_tensor_is_named(value, name, zipped, tmp_path):
    file = tmp_path / "file.pth"
    torch.save({"model": WEIGHTS | {"extra": value}}, file, _use_new_zipfile_serialization=zipped)
    with pytest.raises(ConversionError, match=f"is refused: reading it would run .*{name}.* as plain tensors"):
        read_original_checkpoint(file)


def rewritten(content: bytes, compression=zipfile.ZIP_STORED, rename=lambda name: name, add=()) -> bytes:
    written = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as archive, zipfile.ZipFile(written, "w", compression) as new:
        for member in archive.infolist():
            new.writestr(rename(member.filename), archive.read(member))
        for name in add:
            new.writestr(name, b"")
    return written.getvalue()


def tar(content: bytes) -> bytes:
    written = io.BytesIO()
    with tarfile.open(fileobj=written, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("pickle"))
    return written.getvalue()


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda content: rewritten(content, zipfile.ZIP_DEFLATED), "compressed members"),
        (lambda content: rewritten(content, rename=lambda name: name.replace("data.pkl", "data.txt")), "without data"),
        (lambda content: rewritten(content, add=["file/DATA.pkl"]), "members of the same name"),
        (lambda content: rewritten(content, add=["file/constants.pkl"]), "TorchScript"),
        (lambda content: content + content, "several archives"),
        (lambda content: rewritten(content).replace(b"PK\x05\x06", b"PK\x05\x07"), "damaged"),
        (tar, "`torch.save` did not write it"),
    ],
    ids=["compressed", "no-pickle", "same-name", "script", "two", "no-end", "tar"],
)
def test_other_archives(change, message, tmp_path):
    file = tmp_path / "file.pth"
    torch.save(WEIGHTS, file)
    file.write_bytes(change(file.read_bytes()))
    with pytest.raises(ConversionError, match=message):
        read_original_checkpoint(file)


def test_what_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path, "/dev/zero"):
        with pytest.raises(ConversionError, match="There is no file"):
            read_original_checkpoint(path)


def test_attributes_of_dictionaries_are_not_used(tmp_path):
    class Shadowed:
        def __reduce__(self):
            return collections.OrderedDict, (), {"items": "text", "get": 1}, None, iter(WEIGHTS.items())

    torch.save({"model": Shadowed(), "meta": Shadowed()}, tmp_path / "file.pth")
    assert read_original_checkpoint(tmp_path / "file.pth").keys() == WEIGHTS.keys()


def test_buffers_of_an_averaging_hook(tmp_path):
    """mmcv's: `ema_` and the name with `_` for `.`; what it does not average stays."""
    averaged = {"ema_backbone_patch_embed_conv1_weight": torch.full((2, 3), 7.0)}
    torch.save({"state_dict": prefixed("backbone.") | averaged}, tmp_path / "file.pth")
    weights = read_original_checkpoint(tmp_path / "file.pth", ema=True)
    assert weights.keys() == WEIGHTS.keys()
    assert torch.equal(weights["patch_embed.conv1.weight"], torch.full((2, 3), 7.0))
    assert torch.equal(weights["head.bias"], WEIGHTS["head.bias"])
    weights = read_original_checkpoint(tmp_path / "file.pth")
    assert torch.equal(weights["patch_embed.conv1.weight"], WEIGHTS["patch_embed.conv1.weight"])


@pytest.mark.parametrize(
    "meta, expected",
    [
        ({"CLASSES": ("a", "b"), "PALETTE": [[1, 2, 3], [4, 5, 6]]}, (["a", "b"], [[1, 2, 3], [4, 5, 6]])),
        ({"dataset_meta": {"classes": ["a"], "palette": [(1, 2, 3)]}}, (["a"], [(1, 2, 3)])),
        ({"CLASSES": None}, (None, None)),
        ([1], (None, None)),
    ],
)
def test_class_names(meta, expected, tmp_path):
    torch.save({"state_dict": WEIGHTS, "meta": meta}, tmp_path / "file.pth")
    assert read_classes(tmp_path / "file.pth") == expected


@pytest.mark.slow
def test_mutated_files(tmp_path):
    """Checkpoints and configurations with random changes: a refusal in one line or success, in bounded memory."""
    command = [sys.executable, str(REPOSITORY / "tests" / "conversion" / "mutated_files.py"), str(tmp_path), "300"]
    result = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, timeout=120)
    assert result.returncode == 0, result.stderr[-3000:]
    converted, refused = map(int, result.stdout.split())
    assert converted > 10 and refused > 100
