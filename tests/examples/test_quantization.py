# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""int8: after training for ONNX Runtime and OpenVINO, and weights alone with torchao."""

import functools
import importlib.util
import json
import shutil

import numpy as np
import onnx
import pytest
import torch
from PIL import Image
from testing_utils import REDUCED_MODELS, REPOSITORY, golden_input, randomize, write_official_checkpoint
from transformers import AutoModelForImageClassification

from examples.deployment.quantize import RUNTIMES, onnx_graph, openvino_graph, quantize_export, sampling_nodes
from modeling_internimage import InternImageConfig, InternImageForImageClassification, create_image_processor
from modeling_internimage.export import export_onnx


QUANTIZERS = ("QuantizeLinear", "DequantizeLinear", "FakeQuantize")
PROJECTIONS = ("Conv", "Convolution", "Gemm", "MatMul")


@pytest.fixture(scope="session")
def export(tmp_path_factory):
    """Function that exports a tiny classifier with an operator, once, and returns the folder."""

    @functools.cache
    def export(operator: str, core_op: str = "DCNv3"):
        config = {"embed_dim": 16, "depths": [1, 1], "num_groups": [1, 2], "image_size": 32, "num_labels": 5}
        model = randomize(InternImageForImageClassification(InternImageConfig(core_op=core_op, **config)))
        folder = tmp_path_factory.mktemp("exported") / operator
        export_onnx(model, folder, operator=operator, image_processor=create_image_processor(32))
        return folder

    return export


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
    "runtime, operator, core_op",
    [
        ("onnxruntime", "grid_sample", "DCNv3"),
        ("openvino", "grid_sample", "DCNv3"),
        pytest.param("onnxruntime", "deform_conv", "DCNv3", marks=pytest.mark.slow),
        pytest.param("onnxruntime", "grid_sample", "DCNv4", marks=pytest.mark.slow),
    ],
)
def test_offsets_stay_in_float(runtime, operator, core_op, export, pictures, tmp_path, caplog):
    for package in RUNTIMES[runtime].packages:
        pytest.importorskip(package)
    description = quantize_export(export(operator, core_op), tmp_path / "int8", runtime, pictures)
    assert description["calibration_pictures"] == 16
    assert "damaged.png" in caplog.text and "1 of 17 pictures" in caplog.text
    files = {path.name for path in (tmp_path / "int8").iterdir()}
    assert {"config.json", "preprocessor_config.json", "quantization.json"} < files
    assert [path.name for path in tmp_path.iterdir()] == ["int8"]

    graph = graph_of(tmp_path / "int8", runtime)
    sampling = sampling_nodes(graph)
    # Neither these nodes nor what they read, the features of the projections, are quantized.
    assert {graph[name].operator for name in sampling} & set(PROJECTIONS)
    assert not {graph[name].operator for name in sampling} & set(QUANTIZERS)
    before = {graph[name].operator for node in sampling for name in graph[node].inputs if name is not None}
    assert not before & set(QUANTIZERS)
    # Weights and inputs of the others: convolutions, both MLPs, the projections of the values and the classifier.
    assert sum(node.operator in QUANTIZERS for node in graph.values()) > 20

    pixel_values = np.random.default_rng(0).standard_normal((2, 3, 32, 32), dtype=np.float32)
    expected = logits_of(export(operator, core_op), runtime, pixel_values)
    actual = logits_of(tmp_path / "int8", runtime, pixel_values)
    # Random weights, and an image unlike the pictures: that is the worst case.
    assert 0 < np.linalg.norm(actual - expected) < 0.2 * np.linalg.norm(expected)


def test_bad_input(export, pictures, tmp_path, monkeypatch):
    """One sentence each, and nothing is written."""
    model = export("grid_sample")
    (tmp_path / "empty").mkdir()
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "a.jpg").write_bytes(b"")
    output = tmp_path / "int8"
    with pytest.raises(ValueError, match="`--calibration_dir .*empty` has no pictures"):
        quantize_export(model, output, "onnxruntime", tmp_path / "empty")
    with pytest.raises(ValueError, match="None of the 1 pictures"):
        quantize_export(model, output, "onnxruntime", tmp_path / "damaged")
    with pytest.raises(ValueError, match="has no model.onnx"):
        quantize_export(tmp_path / "empty", output, "onnxruntime", pictures)
    with pytest.raises(ValueError, match="empty exists"):
        quantize_export(model, tmp_path / "empty", "onnxruntime", pictures)
    with pytest.raises(ValueError, match="`--num_pictures 0`"):
        quantize_export(model, output, "onnxruntime", pictures, 0)
    quantize_export(model, tmp_path / "once", "onnxruntime", pictures, 2)
    with pytest.raises(ValueError, match="quantized already"):
        quantize_export(tmp_path / "once", output, "onnxruntime", pictures)
    larger = shutil.copytree(model, tmp_path / "larger")
    create_image_processor(64).save_pretrained(larger)
    with pytest.raises(ValueError, match=r"takes `pixel_values` of shape \[None, 3, 32, 32\]"):
        quantize_export(larger, output, "onnxruntime", pictures)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match="pip install openvino nncf"):
        quantize_export(model, output, "openvino", pictures)
    assert {path.name for path in tmp_path.iterdir()} == {"empty", "damaged", "once", "larger"}


@pytest.fixture
def torchao():
    pytest.importorskip("torchao")


@pytest.mark.parametrize("name", ["tiny_t", "tiny_h"])
def test_int8_weights(name, tmp_path, torchao):
    """From the layout of the official repositories, and saved and loaded again."""
    from examples.deployment.finetune_int8_lora import load_int8_model

    golden = REDUCED_MODELS[name]
    official = write_official_checkpoint(
        tmp_path / "official", golden["config"], golden["keys"], golden["weights_seed"]
    )
    model = load_int8_model(official)
    int8 = {key.split(".")[-2] for key, parameter in model.named_parameters() if hasattr(parameter, "qdata")}
    attention = {"q_proj", "k_proj", "v_proj", "out_proj"} if name == "tiny_h" else set()
    assert int8 == {"input_proj", "output_proj", "fc1", "fc2"} | attention

    pixel_values = golden_input(golden["input_shapes"][0], golden["input_seed"])
    with torch.no_grad():
        exact = AutoModelForImageClassification.from_pretrained(official)(pixel_values).logits
        logits = model(pixel_values).logits
    assert 0 < (logits - exact).norm() < 0.05 * exact.norm()
    model.save_pretrained(tmp_path / "int8")
    with torch.no_grad():
        again = AutoModelForImageClassification.from_pretrained(tmp_path / "int8")(pixel_values).logits
    torch.testing.assert_close(again, logits, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_lora_learns(tmp_path, torchao):
    """In a short run from random weights, where the int8 ones stay as they are."""
    pytest.importorskip("peft")
    from examples.deployment import finetune_int8_lora

    torch.manual_seed(0)
    config = InternImageConfig(embed_dim=16, depths=[1, 1], num_groups=[1, 2], image_size=32, num_labels=7)
    InternImageForImageClassification(config).save_pretrained(tmp_path / "base")
    create_image_processor(32).save_pretrained(tmp_path / "base")
    arguments = ["--model_name_or_path", str(tmp_path / "base"), "--output_dir", str(tmp_path / "adapter")]
    accuracy = finetune_int8_lora.main([*arguments, "--num_train_epochs", "3"])
    assert accuracy["accuracy_after"] > accuracy["accuracy_before"] + 0.1
    assert (tmp_path / "adapter" / "adapter_model.safetensors").stat().st_size < 1e6


def test_tables_in_the_guide(torchao):
    pytest.importorskip("peft")
    from examples.deployment import measure_int8, measure_weight_only

    guide = (REPOSITORY / "examples" / "deployment" / "int8.md").read_text()
    results = {
        name: json.loads((REPOSITORY / "examples" / "results" / f"int8_{name}.json").read_text())
        for name in ("digits", "photographs", "t", "weight_only")
    }
    assert measure_int8.markdown_table([results[name] for name in ("digits", "photographs", "t")]) in guide
    assert measure_weight_only.markdown_table(results["weight_only"]) in guide
    for name in ("digits", "photographs"):
        accuracy = {key: row["accuracy"] for key, row in results[name]["results"].items()}
        for runtime in ("onnxruntime", "openvino"):
            assert accuracy[f"{runtime} int8"] >= accuracy[f"{runtime} float32"] - 0.01
