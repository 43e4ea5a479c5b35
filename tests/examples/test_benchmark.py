# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""The benchmark measures what it says."""

import json

import numpy as np
import pytest
import torch
from testing_utils import GOLDEN, REPOSITORY, run_module

from examples import benchmark
from modeling_internimage import DCNv3


CASES = json.loads((GOLDEN / "dcnv3" / "op.json").read_text())


@pytest.mark.parametrize("name", CASES)
def test_baseline_is_dcnv3(name):
    """The literal transcription that the speed-up is measured against computes the original's numbers."""
    arrays, case = np.load(GOLDEN / "dcnv3" / "op.npz"), CASES[name]
    value, offset, mask = (torch.from_numpy(arrays[f"{name}.{key}"]) for key in ("input", "offset", "mask"))
    output = benchmark.LiteralDCNv3()(
        value, offset, mask, None, case["kernel"], case["stride"], case["pad"], case["dilation"], case["group"],
        case["offset_scale"], bool(case["remove_center"]), softmax=False,
    )  # fmt: skip
    torch.testing.assert_close(output, torch.from_numpy(arrays[f"{name}.output"]), rtol=1e-4, atol=1e-4)


def test_baseline_with_gate():
    torch.manual_seed(0)
    tensors = torch.randn(2, 5, 6, 8), torch.randn(2, 5, 6, 36), torch.randn(2, 5, 6, 18), torch.randn(2, 5, 6, 2)
    arguments = (*tensors, 3, 1, 1, 1, 2, 1.0, False, True)
    torch.testing.assert_close(benchmark.LiteralDCNv3()(*arguments), DCNv3()(*arguments), rtol=1e-4, atol=1e-5)


def test_peak_memory():
    """What is freed does not count, what is there before neither."""
    there = torch.ones(1024, 1024)  # 4 MiB
    assert benchmark.peak_memory_mib(lambda: (there + 1) * 2, "cpu") == pytest.approx(8, rel=1e-3)
    assert benchmark.peak_memory_mib(lambda: [there + 1 for _ in range(3)] and None, "cpu") == pytest.approx(
        12, rel=1e-3
    )
    assert benchmark.peak_memory_mib(lambda: None, "cpu") == 0


def test_command(tiny_config, tmp_path, monkeypatch):
    """On a small model and one small operator."""
    config = tiny_config()
    architecture = {name: getattr(config, name) for name in ("embed_dim", "depths", "num_groups")}
    monkeypatch.setitem(benchmark.ARCHITECTURES, "T", architecture)
    monkeypatch.setattr(benchmark, "OPERATOR_SHAPES", [(7, 32, 2)])
    output = tmp_path / "results.json"
    options = ["--sizes", "64x96", "--batch-sizes", "1", "--min-runs", "2", "--seconds", "0", "--output", output]
    run_module("examples.benchmark", *options)
    result = json.loads(output.read_text())
    assert {"device", "threads", "torch", "transformers", "date"} <= result["machine"].keys()
    (case,) = result["cases"]
    assert (case["height"], case["width"], case["batch_size"]) == (64, 96, 1)
    assert case["results"].keys() == {"literal", "reference"}
    assert all(entry["ms"] > 0 and entry["peak_mib"] > 0 for entry in case["results"].values())


def test_comparison_of_architectures(tiny_config, tmp_path, monkeypatch):
    """Each implementation of both, after the check against the literal transcription; and the table of it."""
    for name, core_op in (("T", "DCNv3"), ("Flash-T", "DCNv4")):
        config = tiny_config(core_op=core_op)
        fields = ("core_op", "embed_dim", "depths", "num_groups")
        monkeypatch.setitem(benchmark.ARCHITECTURES, name, {field: getattr(config, field) for field in fields})
    output = tmp_path / "results.json"
    options = ["--compare-with", "Flash-T", "--sizes", "32x64", "--batch-sizes", "1", "2"]
    run_module("examples.benchmark", *options, "--min-runs", "2", "--seconds", "0", "--output", output)
    result = json.loads(output.read_text())
    assert [case["batch_size"] for case in result["cases"]] == [1, 2]
    for case in result["cases"]:
        assert case["results"].keys() == {"reference"}
        for entries in case["results"].values():
            assert entries.keys() == {"T", "Flash-T"} and entries["Flash-T"]["runs"] == 2
            assert all(entry["ms"] > 0 and entry["processor_ms"] > 0 for entry in entries.values())
            assert entries["Flash-T"]["speedup"] > 0 and entries["Flash-T"]["processor_speedup"] > 0
    table = benchmark.markdown_table(result).splitlines()
    assert len(table) == 6 and table[0].startswith("| image | batch | | T | Flash-T |") and "(" in table[2]


def test_definition_is_faster_than_the_transcription():
    """The recorded target: at least 1.15 times as fast at 224 pixels, batch 1 and 8. (Not timed here: too noisy.)"""
    recorded = json.loads((REPOSITORY / "examples" / "results" / "benchmark_cpu.json").read_text())
    cases = [case for case in recorded["cases"] if case["height"] == 224]
    speedups = {case["batch_size"]: case["results"]["reference"]["speedup"] for case in cases}
    assert speedups.keys() == {1, 8} and min(speedups.values()) >= 1.15
    assert {(case["height"], case["width"]) for case in recorded["cases"]} == {
        (224, 224), (384, 384), (512, 512), (800, 1216)
    }  # fmt: skip
