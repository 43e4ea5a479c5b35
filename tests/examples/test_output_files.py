# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""No script writes over an input, over another result, or over a file that it did not make."""

import importlib
import json
import os
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from examples import output_files


MARK = output_files.mark_of("somewhere/script.py")


def write(path: Path, mark: str):
    if path.suffix == ".png":
        output_files.write_picture(path, Image.new("L", (2, 2)), mark)
    elif path.suffix == ".safetensors":
        save_file({"x": torch.zeros(1)}, path, metadata={"Software": mark})
    else:
        output_files.write_json(path, {"a": 1}, mark)


@pytest.mark.parametrize("name", ["a.png", "a.json", "a.safetensors", "a"])
def test_only_own_files_are_written_over(name, tmp_path):
    path = tmp_path / name
    output_files.check_outputs([path], MARK)
    write(path, MARK)
    output_files.check_outputs([path], MARK)
    write(path, output_files.mark_of("other.py"))
    with pytest.raises(ValueError, match=f"{name} exists, and is not a result of script.py: name another"):
        output_files.check_outputs([path], MARK)
    for content in (b"", b"[]", b"[" * 10**5, b"\x89PNG\r\n\x1a\n", b'{"Software": 1}'):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="is not a result of script.py"):
            output_files.check_outputs([path], MARK)
    path.unlink()
    path.mkdir()
    with pytest.raises(ValueError, match="is a folder, where a file would be written"):
        output_files.check_outputs([path], MARK)


@pytest.mark.parametrize("link", [None, os.symlink, os.link])
def test_inputs_are_not_written_over(link, tmp_path):
    """Not even results of the same script, nor through links or other names."""
    path = tmp_path / "a.png"
    write(path, MARK)
    other = tmp_path / "folder" / "b.png"
    other.parent.mkdir()
    if link is not None:
        link(path, other)
    for source in (path, tmp_path / "folder" / ".." / "a.png") if link is None else (other,):
        with pytest.raises(ValueError, match="a.png is read, and would be written over"):
            output_files.check_outputs([path], MARK, [str(source)])
    output_files.check_outputs([tmp_path / "c.png"], MARK, [str(path), "https://nowhere/c.png"])
    for second in ("c.png", "folder/../c.png", "C.png"):
        with pytest.raises(ValueError, match="Two results would be written to"):
            output_files.check_outputs([tmp_path / "c.png", tmp_path / second], MARK)


def test_data_sets_are_not_mixed(tmp_path):
    for content, other in (("text", "other"), (Image.new("L", (2, 2)), Image.new("L", (2, 2), 1))):
        path = tmp_path / f"new/{type(content).__name__}"
        for _ in range(2):
            output_files.write_data(path, content)
        before = path.read_bytes()
        with pytest.raises(ValueError, match="exists, and is another file: name another `--output_dir`"):
            output_files.write_data(path, other)
        assert path.read_bytes() == before and len(list(path.parent.glob(".*"))) == 0


# The command that would destroy the file, and the file.
COMMANDS = {
    "semantic_segmentation.segment": (["{}/photo.jpg", "--output_dir", "{}"], "photo_segmentation.png"),
    "semantic_segmentation.segment, maps": (
        ["{}/photo.jpg", "--output_dir", "{}", "--save_maps"],
        "photo_segmentation_map.png",
    ),
    "object_detection.detect": (["{}/photo.jpg", "--output_dir", "{}"], "photo_detections.png"),
    "semantic_segmentation.evaluate_segmentation": (["--data_dir", "{}", "--output", "{}/a.json"], "a.json"),
    "image_classification.evaluate_accuracy": (["--data_dir", "{}", "--output", "{}/a.json"], "a.json"),
    "object_detection.evaluate_detection": (
        ["--data_dir", "{}", "--annotations", "{}/a.json", "--output", "{}/a.json"],
        "a.json",
    ),
    "feature_extraction.extract_features": (["--model", "x", "--image", "{}/photo.jpg", "--output", "{}/a"], "a.png"),
    "feature_extraction.extract_features, tensors": (
        ["--model", "x", "--image", "{}/photo.jpg", "--output", "{}/a"],
        "a.safetensors",
    ),
    "feature_extraction.show_sampling_points": (
        ["--model", "x", "--image", "{}/a.png", "--output", "{}/a.png"],
        "a.png",
    ),
    "semantic_segmentation.coins": (["--output_dir", "{}"], "classes.json"),
    "semantic_segmentation.coins, model": (["--output_dir", "{}", "--model", "x"], "predictions.png"),
    "image_classification.photographs": (["--output_dir", "{}"], "validation/astronaut/0_0.png"),
    "object_detection.photographs_with_objects": (["--output_dir", "{}"], "annotations.json"),
    "object_detection.photographs_with_objects, model": (["--output_dir", "{}", "--model", "x"], "detections.png"),
    "image_classification.classify_digits": (["--model", "{}"], "predictions.png"),
    "benchmark.__main__": (["--output", "{}/a.json"], "a.json"),
    "deployment.benchmark": (["--output", "{}/a.json"], "a.json"),
    "deployment.measure_int8": (["--model", "x", "--calibration_dir", "{}", "--output", "{}/a.json"], "a.json"),
    "deployment.measure_weight_only": (["--output", "{}/a.json"], "a.json"),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_scripts_leave_other_files_alone(command, tmp_path, monkeypatch):
    """Before a model is loaded: there is none."""
    arguments, name = COMMANDS[command]
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    for file in ("photo.jpg", name):
        (tmp_path / file).write_bytes(b"precious")
    script = command.split(",")[0]
    needs_model = script.split(".")[-1].startswith(("segment", "detect", "evaluate"))
    arguments = ["--model_name_or_path", "x"] * needs_model + [part.format(tmp_path) for part in arguments]
    monkeypatch.setattr(sys, "argv", [script, *arguments])
    with pytest.raises(ValueError, match=f"{name} (exists, and is|is read, and would)"):
        importlib.import_module(f"examples.{script}").main()
    assert (tmp_path / name).read_bytes() == (tmp_path / "photo.jpg").read_bytes() == b"precious"


def test_results_are_written_whole_or_not_at_all(tmp_path):
    file = tmp_path / "results.json"
    output_files.write_json(file, {"images": 1}, MARK)
    with pytest.raises(TypeError):
        output_files.write_json(file, {"images": object()}, MARK)
    assert json.loads(file.read_text())["images"] == 1 and list(tmp_path.iterdir()) == [file]
