# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""int8: after training for ONNX Runtime and OpenVINO, and weights alone with torchao."""

import json

import numpy as np
import onnx
import pytest
import torch
from PIL import Image
from testing_utils import REDUCED_MODELS, randomize, run_module, write_official_checkpoint
from transformers import AutoModelForImageClassification

from examples.deployment.quantize import RUNTIMES, onnx_graph, openvino_graph, quantize_export, sampling_nodes
from modeling_internimage import InternImageConfig, InternImageForImageClassification, create_image_processor


QUANTIZERS = ("QuantizeLinear", "DequantizeLinear", "FakeQuantize")
PROJECTIONS = ("Conv", "Convolution", "Gemm", "MatMul")


@pytest.fixture(scope="session")
def exported(tmp_path_factory):
    """A tiny classifier, exported in both forms: folders by name of the operator."""
    from modeling_internimage.export import export_onnx

    config = InternImageConfig(embed_dim=16, depths=[1, 1], num_groups=[1, 2], image_size=32, num_labels=5)
    model = randomize(InternImageForImageClassification(config))
    folder = tmp_path_factory.mktemp("exported")
    for operator in ("grid_sample", "deform_conv"):
        export_onnx(model, folder / operator, operator=operator, image_processor=create_image_processor(32))
    return folder


@pytest.fixture(scope="session")
def pictures(tmp_path_factory, photographs):
    """A folder of 16 pieces of photographs, a damaged picture and a file that is none."""
    folder = tmp_path_factory.mktemp("pictures")
    for idx in range(16):
        piece = photographs[idx % 2][20 * idx : 20 * idx + 64, 10 * idx : 10 * idx + 64]
        Image.fromarray(piece).save(folder / f"{idx}.png")
    (folder / "damaged.png").write_bytes(b"\x89PNG\r\n")
    (folder / "notes.txt").write_text("no picture")
    return folder


def graph_of(folder, runtime):
    if runtime == "onnxruntime":
        return onnx_graph(onnx.load(folder / "model.onnx"))
    openvino = pytest.importorskip("openvino")
    return openvino_graph(openvino.Core().read_model(folder / "model.xml"))


def logits_of(folder, runtime, pixel_values):
    if runtime == "onnxruntime":
        import onnxruntime

        session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
        return session.run(["logits"], {"pixel_values": pixel_values})[0]
    import openvino

    name = "model.xml" if (folder / "model.xml").exists() else "model.onnx"
    compiled = openvino.Core().compile_model(folder / name, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return compiled([pixel_values])["logits"]


@pytest.mark.parametrize(
    "runtime, operator", [("onnxruntime", "grid_sample"), ("onnxruntime", "deform_conv"), ("openvino", "grid_sample")]
)
def test_offsets_stay_in_float(runtime, operator, exported, pictures, tmp_path, caplog):
    for package in RUNTIMES[runtime].packages:
        pytest.importorskip(package)
    description = quantize_export(exported / operator, tmp_path / "int8", runtime, pictures)
    assert description["calibration_pictures"] == 16
    assert "damaged.png" in caplog.text and "1 of 17 pictures" in caplog.text
    files = {path.name for path in (tmp_path / "int8").iterdir()}
    assert {"config.json", "preprocessor_config.json", "quantization.json"} < files
    assert [path.name for path in tmp_path.iterdir()] == ["int8"]

    graph = graph_of(tmp_path / "int8", runtime)
    sampling = sampling_nodes(graph)
    # The walk stops at a quantised projection too, so that its inputs and everything behind it are looked at.
    assert {graph[name].operator for name in sampling} & set(PROJECTIONS)
    assert not {graph[name].operator for name in sampling} & set(QUANTIZERS)
    before = {graph[name].operator for node in sampling for name in graph[node].inputs if name is not None}
    assert not before & set(QUANTIZERS)
    # Others are quantised: the two strided convolutions of the stem, both MLPs, the projections.
    quantized = [
        node
        for node in graph.values()
        if node.operator in PROJECTIONS and graph[node.inputs[0] or ""].operator in QUANTIZERS
    ]
    assert len(quantized) >= 10

    pixel_values = np.random.default_rng(0).standard_normal((2, 3, 32, 32), dtype=np.float32)
    expected = logits_of(exported / operator, runtime, pixel_values)
    actual = logits_of(tmp_path / "int8", runtime, pixel_values)
    assert 0 < np.linalg.norm(actual - expected) < 0.1 * np.linalg.norm(expected)
