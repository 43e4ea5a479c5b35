# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""Plain ONNX: what is written, what is refused, and that runtimes compute it as PyTorch does."""

import errno
import json
import shutil
from importlib.util import find_spec

import numpy as np
import onnx
import pytest
import torch
from testing_utils import first_quick, randomize
from torch import nn
from transformers import AutoConfig, AutoImageProcessor, UperNetConfig, UperNetForSemanticSegmentation

from modeling_internimage import (
    InternImageBackbone,
    InternImageConfig,
    InternImageForImageClassification,
    InternImageModel,
    SegformerHeadConfig,
    SegformerHeadForSemanticSegmentation,
    create_image_processor,
    kernel_integration,
    use_dcnv3_kernel,
)
from modeling_internimage.export import export_onnx, onnx_export, verification
from modeling_internimage.export.__main__ import main
from modeling_internimage.export.adaptive_pooling import ExportableAdaptiveAvgPool2d


ARCHITECTURE = {"embed_dim": 16, "depths": [1, 1], "num_groups": [1, 2]}
STAGES = ["stage1", "stage2"]
RUNTIMES = ("ort", "openvino")
OPERATORS = ("grid_sample", "deform_conv")


def classifier(**config) -> InternImageForImageClassification:
    return randomize(InternImageForImageClassification(InternImageConfig(num_labels=10, **ARCHITECTURE | config)))


def flash_classifier() -> InternImageForImageClassification:
    return classifier(core_op="DCNv4")


def base_model(**config) -> InternImageModel:
    return randomize(InternImageModel(InternImageConfig(**ARCHITECTURE | config)))


def backbone_config(**config) -> InternImageConfig:
    return InternImageConfig(out_features=STAGES, **ARCHITECTURE | config)


def backbone(**config) -> InternImageBackbone:
    return randomize(InternImageBackbone(backbone_config(**config)))


def segformer_head() -> SegformerHeadForSemanticSegmentation:
    config = SegformerHeadConfig(backbone_config=backbone_config(), num_labels=5, hidden_size=32)
    return randomize(SegformerHeadForSemanticSegmentation(config))


def upernet() -> UperNetForSemanticSegmentation:
    stages = [*STAGES, "stage3", "stage4"]  # its auxiliary head reads the third
    architecture = {"embed_dim": 8, "depths": [1, 1, 1, 1], "num_groups": [1, 1, 1, 1], "out_features": stages}
    config = UperNetConfig(
        backbone_config=InternImageConfig(**architecture),
        hidden_size=16,
        auxiliary_in_channels=32,
        auxiliary_channels=16,
        num_labels=5,
    )
    return randomize(UperNetForSemanticSegmentation(config))


# Those of H and G: attention pooler, post norms, gate, no central point, another factor on the offsets.
CLIP_CONFIG = {
    "use_clip_projector": True,
    "center_feature_scale": True,
    "remove_center": True,
    "offset_scale": 2.0,
    "res_post_norm": True,
    "layer_scale_init_value": None,
    "depthwise_kernel_size": 5,
}


def attention_pooled_classifier() -> InternImageForImageClassification:
    return classifier(**ARCHITECTURE | CLIP_CONFIG)


EXPORTS = [
    (classifier, "all", "grid_sample"),
    (classifier, "all", "deform_conv"),
    (classifier, "none", "grid_sample"),
    (flash_classifier, "all", "grid_sample"),
    (flash_classifier, "all", "deform_conv"),
    (attention_pooled_classifier, "all", "grid_sample"),
    (attention_pooled_classifier, "batch", "deform_conv"),
    (base_model, "batch", "grid_sample"),
    (backbone, "all", "grid_sample"),
    (segformer_head, "all", "grid_sample"),
    (upernet, "all", "grid_sample"),
    (upernet, "all", "deform_conv"),
]
OUTPUTS = {
    base_model: ["last_hidden_state", "pooler_output"],
    backbone: ["feature_maps.0", "feature_maps.1"],
}


@pytest.mark.parametrize("create, dynamic, operator", first_quick(EXPORTS))
def test_runtimes_compute_what_pytorch_does(create, dynamic, operator, tmp_path):
    checks = RUNTIMES if operator == "grid_sample" else ("ort",)
    report = export_onnx(
        create(), tmp_path / "exported", size=(64, 96), dynamic=dynamic, operator=operator, checks=checks
    )
    outputs = OUTPUTS.get(create, ["logits"])
    for runtime in checks:
        differences = report["differences"][runtime]
        assert list(differences) == outputs
        assert all(0 < difference <= 1e-5 for difference in differences.values())
    shapes = report["checked_shapes"]
    assert len({shape[0] for shape in shapes}) == (1 if dynamic == "none" else 2)
    assert len({tuple(shape[2:]) for shape in shapes}) == (2 if dynamic == "all" else 1)

    model = onnx.load(tmp_path / "exported" / "model.onnx")
    assert not any(node.metadata_props for node in model.graph.node)  # no stack traces of this machine
    assert [node.op_type for node in model.graph.node].count("Loop") == 0
    assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", report["opset"])]
    assert [output.name for output in model.graph.output] == outputs
    operators = {node.op_type for node in model.graph.node} & {"GridSample", "DeformConv"}
    assert operators == {"GridSample" if operator == "grid_sample" else "DeformConv"}


@pytest.fixture(scope="module")
def program():
    """The program of [`classifier`], for tests of what happens after the trace."""
    model = onnx_export.prepare_for_export(classifier(), "grid_sample")
    return onnx_export._export(model, ["pixel_values"], ["logits"], 18, (32, 32), "batch")


@pytest.fixture
def traced(monkeypatch, program):
    monkeypatch.setattr(onnx_export, "_export", lambda *args: program)
    return program


def test_folder(traced, tmp_path):
    image_processor = create_image_processor(32)
    report = export_onnx(classifier(), tmp_path / "exported", image_processor=image_processor)
    files = {file.name for file in (tmp_path / "exported").iterdir()}
    assert files == {"model.onnx", "config.json", "preprocessor_config.json", "export.json"}
    assert [file.name for file in tmp_path.iterdir()] == ["exported"]
    assert json.loads((tmp_path / "exported" / "export.json").read_text()) == report
    assert report["size"] == [32, 32]
    assert AutoConfig.from_pretrained(tmp_path / "exported").num_labels == 10
    assert AutoImageProcessor.from_pretrained(tmp_path / "exported").to_dict() == image_processor.to_dict()


def other_values(monkeypatch):
    monkeypatch.setattr(verification, "_difference", lambda output, expected: 2e-5)


def not_a_number(monkeypatch):
    monkeypatch.setattr(verification, "_difference", lambda output, expected: float("nan"))


def full_disk(monkeypatch):
    def save(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(torch.onnx.ONNXProgram, "save", save)


def small_disk(monkeypatch):
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=100))


@pytest.mark.parametrize(
    "failure, error, message",
    [
        (other_values, RuntimeError, "onnxruntime computes `logits` 2.0e-05 of its largest value away"),
        (not_a_number, RuntimeError, "onnxruntime computes `logits` nan"),
        (full_disk, OSError, "No space left"),
        (small_disk, OSError, "but only 0.00 GB are free there. Make room"),
    ],
)
def test_failure_leaves_nothing_behind(failure, error, message, traced, tmp_path, monkeypatch):
    failure(monkeypatch)
    with pytest.raises(error, match=message):
        export_onnx(classifier(), tmp_path / "exported", size=(32, 32))
    assert not list(tmp_path.iterdir())


def test_nothing_is_overwritten(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(FileExistsError, match="exists and is not empty"):
        export_onnx(classifier(), tmp_path)
    (tmp_path / ".exported.unfinished").mkdir()
    with pytest.raises(FileExistsError, match="Another process is writing .*, or was killed"):
        export_onnx(classifier(), tmp_path / "exported")
    assert sorted(file.name for file in tmp_path.iterdir()) == [".exported.unfinished", "file"]


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"operator": "plugin"}, "`operator` must be one of 'grid_sample', 'deform_conv', got 'plugin'"),
        ({"opset": 16}, "`opset=16` is too old: `operator='grid_sample'` needs 18"),
        ({"operator": "deform_conv", "opset": 18}, "`opset=18` is too old: `operator='deform_conv'` needs 19"),
        ({"dynamic": "width"}, "`dynamic` must be one of"),
        ({"size": (16, 64)}, "`size` must be height and width, of at least 32 pixels"),
        ({"checks": ("onnxruntime",)}, "`checks` may have 'ort', 'openvino', 'tensorrt-rtx', got 'onnxruntime'"),
        ({"operator": "deform_conv", "checks": ("openvino",)}, "which does not know `DeformConv`"),
    ],
)
def test_arguments_that_do_not_fit(arguments, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        export_onnx(classifier(), tmp_path / "exported", **arguments)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "change, message",
    [
        (nn.Module.train, "`model` is in training mode: call `model.eval\\(\\)`"),
        (nn.Module.double, "`model` is in torch.float64: load it with"),
        (nn.Module.bfloat16, "`model` is in bfloat16, .*: load it with `dtype=torch.float32`, and ask the runtime"),
        (lambda model: model.to("meta"), "`model` is on meta: call `model.cpu\\(\\)`"),
    ],
    ids=["training", "float64", "bfloat16", "meta"],
)
def test_models_that_do_not_fit(change, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        export_onnx(change(classifier()), tmp_path / "exported")


def test_size_for_the_attention_pooler(tmp_path):
    with pytest.raises(ValueError, match="Multiples of 8 always work"):
        export_onnx(attention_pooled_classifier(), tmp_path / "exported", size=(36, 36))
    assert not list(tmp_path.iterdir())


def test_missing_runtime(tmp_path, monkeypatch):
    monkeypatch.setitem(verification.MODULES, "openvino", "no_such_module")
    with pytest.raises(ImportError, match="`checks` has 'openvino': pip install openvino, or leave it out"):
        export_onnx(classifier(), tmp_path / "exported", checks=("openvino",))


def test_kernel_stays_out_of_the_file(traced, tmp_path, caplog, monkeypatch):
    model = classifier()
    kernel_layers = kernel_integration.KERNEL_LAYERS | {"DCNv3": OtherKernel}
    monkeypatch.setattr(kernel_integration, "_load_kernel_layers", lambda *args: kernel_layers)
    use_dcnv3_kernel(model)
    logger = onnx_export.logger
    monkeypatch.setattr(logger, "propagate", True)
    export_onnx(model, tmp_path / "exported", size=(32, 32))
    assert "The compiled DCNv3 kernel of the model stays out of the file" in caplog.text
    copied = onnx_export.prepare_for_export(model, "grid_sample")
    assert not any("forward" in vars(module) for module in copied.modules())
    assert any("forward" in vars(module) for module in model.modules())


class OtherKernel(nn.Module):
    def forward(self, *args, **kwargs):
        from modeling_internimage import DCNv3

        return DCNv3()(*args, **kwargs)


@pytest.mark.slow
@pytest.mark.parametrize("create", [classifier, flash_classifier])
@pytest.mark.parametrize("operator", OPERATORS)
def test_half_precision(operator, create, tmp_path):
    checks = RUNTIMES if operator == "grid_sample" else ("ort",)
    report = export_onnx(create().half(), tmp_path / "exported", size=(64, 96), operator=operator, checks=checks)
    assert report["dtype"] == "float16"
    model = onnx.shape_inference.infer_shapes(onnx.load(tmp_path / "exported" / "model.onnx"))
    types = {value.name: value.type.tensor_type.elem_type for value in model.graph.value_info}
    positions = {"GridSample": 1, "DeformConv": 2}
    grids = [node.input[positions[node.op_type]] for node in model.graph.node if node.op_type in positions]
    assert {types[grid] for grid in grids} == {onnx.TensorProto.FLOAT}
    ends = [*model.graph.input, *model.graph.output]
    assert {value.type.tensor_type.elem_type for value in ends} == {onnx.TensorProto.FLOAT}
    weights = {tensor.data_type for tensor in model.graph.initializer if np.prod(tensor.dims) > 100}
    assert onnx.TensorProto.FLOAT16 in weights


@pytest.mark.slow
@pytest.mark.skipif(find_spec("tensorrt_rtx") is None, reason="tensorrt-rtx-cu13 is not installed")
def test_tensorrt_rtx_builds_an_engine(tmp_path):
    report = export_onnx(classifier(), tmp_path / "exported", size=(64, 64), checks=("tensorrt-rtx",))
    assert report["differences"] == {"tensorrt-rtx": "built"}


@pytest.mark.slow
def test_full_size(tmp_path):
    """The file of InternImage-T is as large as its weights, and a runtime computes it exactly."""
    model = randomize(InternImageForImageClassification(InternImageConfig()))
    report = export_onnx(model, tmp_path / "exported", checks=RUNTIMES)
    assert set(report["differences"]) == set(RUNTIMES)
    num_bytes = sum(tensor.nbytes for tensor in model.state_dict().values())
    assert (tmp_path / "exported" / "model.onnx").stat().st_size <= 1.05 * num_bytes


def test_weights_beyond_two_gigabytes(program, tmp_path, monkeypatch):
    """They go to a second file. (The limit is lowered instead of making a large model.)"""
    monkeypatch.setattr(onnx_export, "_export", lambda *args: program)
    monkeypatch.setattr(onnx_export, "LARGEST_FILE", 1)
    export_onnx(classifier(), tmp_path / "exported", size=(32, 32))
    files = {file.name: file.stat().st_size for file in (tmp_path / "exported").iterdir()}
    assert set(files) == {"model.onnx", "model.onnx.data", "config.json", "export.json"}
    assert files["model.onnx.data"] > 0.5 * sum(tensor.nbytes for tensor in classifier().state_dict().values())


def test_command_line(traced, tmp_path, capsys):
    classifier().save_pretrained(tmp_path / "model")
    create_image_processor(32).save_pretrained(tmp_path / "model")
    assert main([str(tmp_path / "model"), str(tmp_path / "exported"), "--check", "ort"]) == 0
    assert "onnxruntime: differs by" in capsys.readouterr().out
    assert main([str(tmp_path / "model"), str(tmp_path / "exported")]) == 1
    assert "error: `folder`" in capsys.readouterr().err
    assert main([str(tmp_path / "model"), str(tmp_path / "other"), "--model-class", "UperNetModel"]) == 1
    assert "'UperNetModel' is a model neither of this package nor of transformers" in capsys.readouterr().err
    assert main([str(tmp_path / "nothing"), str(tmp_path / "other")]) == 1


@pytest.mark.parametrize("size", [(7, 9), (2, 3), (16, 24)])
def test_adaptive_pooling(size):
    maps = torch.randn(2, 3, *size, dtype=torch.float64)
    for bins in (1, 2, 3, 6):
        expected = nn.functional.adaptive_avg_pool2d(maps, bins)
        torch.testing.assert_close(ExportableAdaptiveAvgPool2d(bins)(maps), expected)
