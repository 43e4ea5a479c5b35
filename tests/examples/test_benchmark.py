# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""The benchmark measures what it says."""

import json
import time

import numpy as np
import pytest
import torch
from testing_utils import GOLDEN, REPOSITORY, run_module
from torch.utils.flop_counter import FlopCounterMode

from examples.benchmark import inference, models, process_memory, profiling, training_step
from examples.benchmark.__main__ import table
from examples.benchmark.measuring import peak_memory_mib
from modeling_internimage import DCNv3, InternImageForImageClassification


CASES = json.loads((GOLDEN / "dcnv3" / "op.json").read_text())


@pytest.mark.parametrize("name", CASES)
def test_baseline_is_dcnv3(name):
    """The literal transcription that the speed-up is measured against computes the original's numbers."""
    arrays, case = np.load(GOLDEN / "dcnv3" / "op.npz"), CASES[name]
    value, offset, mask = (torch.from_numpy(arrays[f"{name}.{key}"]) for key in ("input", "offset", "mask"))
    output = models.LiteralDCNv3()(
        value, offset, mask, None, case["kernel"], case["stride"], case["pad"], case["dilation"], case["group"],
        case["offset_scale"], bool(case["remove_center"]), softmax=False,
    )  # fmt: skip
    torch.testing.assert_close(output, torch.from_numpy(arrays[f"{name}.output"]), rtol=1e-4, atol=1e-4)


def test_baseline_with_gate():
    torch.manual_seed(0)
    tensors = torch.randn(2, 5, 6, 8), torch.randn(2, 5, 6, 36), torch.randn(2, 5, 6, 18), torch.randn(2, 5, 6, 2)
    arguments = (*tensors, 3, 1, 1, 1, 2, 1.0, False, True)
    torch.testing.assert_close(models.LiteralDCNv3()(*arguments), DCNv3()(*arguments), rtol=1e-4, atol=1e-5)


def test_peak_memory():
    """What is freed does not count, what is there before neither."""
    there = torch.ones(1024, 1024)  # 4 MiB
    assert peak_memory_mib(lambda: (there + 1) * 2, "cpu") == pytest.approx(8, rel=1e-3)
    assert peak_memory_mib(lambda: [there + 1 for _ in range(3)] and None, "cpu") == pytest.approx(12, rel=1e-3)
    assert peak_memory_mib(lambda: None, "cpu") == 0


@pytest.fixture
def run_benchmark(tiny_config, tmp_path, monkeypatch):
    """A function that runs the command on tiny models and returns the lines of the table and the results."""
    for name, core_op in (("T", "DCNv3"), ("Flash-T", "DCNv4")):
        config = tiny_config(core_op=core_op)
        fields = ("core_op", "embed_dim", "depths", "num_groups")
        monkeypatch.setitem(models.ARCHITECTURES, name, {field: getattr(config, field) for field in fields})
    convnext = {"hidden_sizes": [32, 48, 64, 96], "depths": [1, 1, 1, 1]}
    monkeypatch.setitem(models.CONVNEXT_ARCHITECTURES, "ConvNeXt-T", convnext)
    monkeypatch.setattr(inference, "OPERATOR_SHAPES", [(7, 32, 2)])
    monkeypatch.setattr(profiling, "SQUARE", 32)

    def run(*options) -> tuple[list[str], dict]:
        output = tmp_path / "results.json"
        run_module("examples.benchmark.__main__", *options, "--min-runs", "2", "--seconds", "0", "--output", output)
        result = json.loads(output.read_text())
        return table(result).splitlines(), result

    return run


def test_command(run_benchmark):
    lines, result = run_benchmark("--sizes", "64x96", "--batch-sizes", "1")
    assert {"device", "threads", "torch", "transformers", "date"} <= result["machine"].keys()
    (case,) = result["cases"]
    assert (case["height"], case["width"], case["batch_size"]) == (64, 96, 1)
    assert case["results"].keys() == {"literal", "reference"}
    assert all(entry["ms"] > 0 and entry["peak_mib"] > 0 for entry in case["results"].values())
    assert lines[0] == "| image | batch | literal | reference |"


@pytest.mark.parametrize("other", ["Flash-T", "ConvNeXt-T"])
def test_comparison_of_architectures(other, run_benchmark):
    """Each implementation of both, and the literal transcription, after the check that they agree."""
    options = ("--sizes", "32x64", "--batch-sizes", "1", "2", "--implementations", "reference", "reference-bfloat16")
    lines, result = run_benchmark("--compare-with", other, *options)
    assert [case["batch_size"] for case in result["cases"]] == [1, 2]
    for case in result["cases"]:
        assert case["results"].keys() == {"reference", "reference-bfloat16"}
        for entries in case["results"].values():
            assert entries.keys() == {"T", other} and entries[other]["runs"] == 2
            assert all(entry["ms"] > 0 and entry["processor_ms"] > 0 for entry in entries.values())
            # Two runs: the median of the ratios is their mean, and that of the reciprocals at least the reciprocal.
            for kind in ("speedup", "processor_speedup"):
                assert entries["T"][kind] * entries[other][kind] > 0.98
            assert entries["T"]["over_literal"] > 0
    assert len(lines) == 8 and lines[0].startswith(f"| image | batch | | T | {other} |")
    assert "x literal)" in lines[2]


def test_profile(run_benchmark):
    lines, result = run_benchmark("--profile", "--sizes", "32x64", "--batch-sizes", "1")
    (case,) = result["cases"]
    (entry,) = case["results"].values()
    known = {*profiling.PARTS, profiling.BIAS_COPIES}
    assert entry["parts"].keys() == known | {profiling.REST} and entry["floors"].keys() == known - {"bias copies"}
    assert entry["floor_ms"] == pytest.approx(sum(entry["floors"].values()), abs=0.01)
    assert entry["share_above_floor"] == pytest.approx(1 - entry["floor_ms"] / entry["ms"], abs=2e-3)
    # The patched `forward` of the reference, which names it, is gone: its operators have no name of their own.
    assert entry["operator_counts"]["aten::native_layer_norm"] == 24 and entry["operators"] > 500
    assert lines[0] == "| 32x64, batch 1 | reference | floor |" and any(line.startswith("| all |") for line in lines)


def test_module_calls_have_the_operations_of_the_model(tiny_config, monkeypatch):
    """Against PyTorch's counter, which knows products and convolutions. DCNv3: 4 corners of 9 points."""
    config = tiny_config()
    fields = ("embed_dim", "depths", "num_groups")
    monkeypatch.setitem(models.ARCHITECTURES, "T", {field: getattr(config, field) for field in fields})
    calls = profiling.module_calls("T", (2, 3, 64, 96))
    sampled = counted = 0
    for (part, *arguments), count in calls.items():
        if part == profiling.DCNV3:
            sampled += count * profiling.operations(*arguments)
        else:
            counted += count * profiling.operations(*arguments)
    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        InternImageForImageClassification(config).eval()(torch.empty(2, 3, 64, 96))
    assert counted == counter.get_total_flops()
    pixels = 2 * 64 * 96 // 16
    values = sum(depth * pixels // 4**idx * (16 << idx) for idx, depth in enumerate(config.depths))
    assert sampled == 2 * 4 * 9 * values


def test_parts_of_operators():
    @torch.library.custom_op("benchmark_test::internimage_mlp", mutates_args=())
    def fused(x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    inputs, linear = torch.randn(64, 32), torch.nn.Linear(32, 16)

    def function():
        fused(torch.nn.functional.gelu(linear(inputs)) + 1)
        with torch.profiler.record_function(profiling.DCNV3):
            torch.nn.functional.gelu(inputs)

    with torch.inference_mode():
        parts, operators = profiling.profile_parts(function, 3)
    assert parts.keys() == {"matrix products", "bias copies", "GELU", "additions", "DCNv3", "internimage_mlp"}
    assert operators["aten::gelu"] == 2 and operators["aten::addmm"] == 1
    assert all(0 < seconds < 1 for seconds in parts.values())


def test_training(run_benchmark):
    lines, result = run_benchmark("--training", "--sizes", "64x64", "--batch-sizes", "1")
    (case,) = result["cases"]
    assert case["results"].keys() == {"float32", "bfloat16"}
    for entries in case["results"].values():
        assert entries.keys() == {"ConvNeXt-T", "reference", "reference, checkpointing"}
        assert 0.05 < entries["reference"]["dcnv3_share"] < 0.95
    peaks = {name: entry["peak_mib"] for name, entry in case["results"]["float32"].items()}
    assert peaks["reference"] > peaks["reference, checkpointing"] > 0
    assert len(lines) == 2 + 6 + 2


def test_module_clock():
    """The modules' share of forward and backward pass, against a module that sleeps in both."""

    class Sleep(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            time.sleep(0.02)
            return x.clone()

        @staticmethod
        def backward(ctx, gradient):
            time.sleep(0.03)
            return gradient

    class Sleeper(torch.nn.Module):
        def forward(self, x):
            return Sleep.apply(x)

    modules = [Sleeper(), torch.nn.Linear(4, 4), Sleeper()]
    clock = training_step.ModuleClock([modules[0]])
    torch.nn.Sequential(*modules)(torch.ones(2, 4, requires_grad=True)).sum().backward()
    assert 0.05 <= clock.seconds < 0.08


def test_process_memory(run_benchmark):
    """In this process: the memory that a forward pass takes is at least that of its tensors."""
    result = process_memory.run_images("T", "reference", [(1, 512, 512), (2, 32, 32)], 2)
    assert result["loaded_mib"] > 100 and result["peak_mib"] >= result["afterwards_mib"]
    assert result["ms"] > 0 and result["processor_ms"] > 0 and result["tensors_mib"] > 5


@pytest.mark.slow
def test_process_memory_command(run_benchmark, monkeypatch):
    """The settings reach the processes: with a threshold of 1 MiB, freed tensors do not stay."""
    names = ("default", "map from 1 MiB")
    monkeypatch.setattr(process_memory, "SETTINGS", {name: process_memory.SETTINGS[name] for name in names})
    lines, result = run_benchmark("--process-memory", "--sizes", "512x512", "--batch-sizes", "1")
    (case,) = result["cases"]
    assert case["shapes"] == [[1, 512, 512]]
    default, mapped = (case["results"]["reference"][name] for name in names)
    assert mapped["afterwards_mib"] < 0.75 * default["afterwards_mib"]  # 32 and 62
    assert lines[2].startswith("| default |") and lines[3].startswith("| map from 1 MiB |")


def test_definition_is_faster_than_the_transcription():
    """The recorded target: at least 1.15 times as fast at 224 pixels, batch 1 and 8. (Not timed here: too noisy.)"""
    recorded = json.loads((REPOSITORY / "examples" / "results" / "benchmark_cpu.json").read_text())
    cases = [case for case in recorded["cases"] if case["height"] == 224]
    speedups = {case["batch_size"]: case["results"]["reference"]["speedup"] for case in cases}
    assert speedups.keys() == {1, 8} and min(speedups.values()) >= 1.15
    assert {(case["height"], case["width"]) for case in recorded["cases"]} == {
        (224, 224), (384, 384), (512, 512), (800, 1216)
    }  # fmt: skip
