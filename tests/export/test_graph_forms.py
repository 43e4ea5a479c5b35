# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""The forms of DCNv3 and of whole models in an exported graph, against the definition and the original's numbers."""

import copy
import json

import numpy as np
import pytest
import torch
from testing_utils import GOLDEN, first_quick, randomize

from modeling_internimage import InternImageConfig, InternImageForImageClassification
from modeling_internimage.export.graph_forms import prepare_for_export
from modeling_internimage.export.grid_sample import GridSampleDCNv3
from modeling_internimage.export.translations import TRANSLATIONS
from modeling_internimage.modeling_internimage import CORE_OPS


onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
CASES = json.loads((GOLDEN / "dcnv3" / "op.json").read_text())
ARRAYS = np.load(GOLDEN / "dcnv3" / "op.npz")


class Operator(torch.nn.Module):
    """[`GridSampleDCNv3`] without a gate, with the settings of a golden case."""

    def __init__(self, case: dict):
        super().__init__()
        self.dcnv3 = GridSampleDCNv3()
        names = ("kernel", "stride", "pad", "dilation", "group", "offset_scale", "remove_center")
        self.geometry = [case[name] for name in names[:-1]] + [bool(case["remove_center"])]

    def forward(self, value, offset, mask):
        return self.dcnv3(value, offset, mask, None, *self.geometry, softmax=False)


@pytest.mark.parametrize("name", first_quick(CASES))
def test_grid_sample_golden(name):
    """Other kernel sizes, strides, dilations, paddings, odd sizes, and offsets far outside of the image."""
    inputs = [torch.from_numpy(ARRAYS[f"{name}.{key}"]).float() for key in ("input", "offset", "mask")]
    output = run_graph(Operator(CASES[name]), *inputs)
    assert difference(output, torch.from_numpy(ARRAYS[f"{name}.output"])) < 2e-6


@pytest.mark.parametrize("operator", ["grid_sample", "deform_conv"])
@pytest.mark.parametrize("core_op", CORE_OPS)
@pytest.mark.parametrize(
    "kernel_size, config",
    [
        (3, {}),
        (5, {"offset_scale": 2.0, "remove_center": True, "center_feature_scale": True, "depthwise_kernel_size": 5}),
    ],
    ids=["plain", "everything"],
)
def test_layer(operator, kernel_size, config, core_op):
    """One DCNv3 or DCNv4 layer as a graph, on maps of odd sizes, against its definition in float64."""
    layer_class = type(CORE_OPS[core_op].__name__, (CORE_OPS[core_op],), {"kernel_size": kernel_size})
    flags = {"center_feature_scale": True, "without_pointwise": True} if core_op == "DCNv4" and config else {}
    layer = randomize(layer_class(InternImageConfig(core_op=core_op, **config), 24, 3, **flags))
    hidden_states = torch.randn(2, 7, 10, 24, generator=torch.Generator().manual_seed(1))
    actual = run_graph(prepare_for_export(torch.nn.Sequential(layer), operator), hidden_states)
    expected = copy.deepcopy(layer).double()(hidden_states.double())
    assert difference(actual, expected) < 2e-6


@pytest.mark.parametrize("operator", ["grid_sample", "deform_conv"])
@pytest.mark.parametrize(
    "config",
    [
        pytest.param(
            {"res_post_norm": True, "center_feature_scale": True, "remove_center": True, "use_clip_projector": True},
            id="like H and G",
        ),
        pytest.param({"post_norm": True, "layer_scale_init_value": 0.5}, id="like S to XL", marks=pytest.mark.slow),
        pytest.param(
            {"core_op": "DCNv4", "depthwise_kernel_size": 3}, id="like FlashInternImage", marks=pytest.mark.slow
        ),
    ],
)
def test_model(operator, config, tmp_path):
    """Whole models. The copy for the export leaves the model as it is, shares its weights, and has fused GELUs."""
    config = InternImageConfig(embed_dim=16, depths=[1, 1], num_groups=[1, 2], num_labels=7, **config)
    model = randomize(InternImageForImageClassification(config))
    pixel_values = torch.randn(2, 3, 32, 48, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = model(pixel_values).logits
        prepared = prepare_for_export(model, operator)
        assert torch.equal(model(pixel_values).logits, expected)
    addresses = {parameter.data_ptr() for parameter in model.parameters()}
    own = {name for name, parameter in prepared.named_parameters() if parameter.data_ptr() not in addresses}
    changed = {"offset_proj", "mask_proj"} if operator == "deform_conv" else set()
    assert {name.split(".")[-2] for name in own} == changed
    assert {name for name, _ in prepared.named_parameters()} == {name for name, _ in model.named_parameters()}

    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    assert difference(run_graph(Logits(prepared), pixel_values, options=options), expected) < 1e-5
    operators = {node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node}
    assert "Erf" not in operators and operators & {"GridSample", "DeformConv"}


def test_unknown_operator():
    with pytest.raises(ValueError, match="'grid_sample', 'deform_conv', got 'embedding_bag'"):
        prepare_for_export(torch.nn.Sequential(), "embedding_bag")


class Logits(torch.nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, pixel_values):
        return self.model(pixel_values).logits


def run_graph(module: torch.nn.Module, *tensors: torch.Tensor, options=None) -> torch.Tensor:
    """What ONNX Runtime computes with the graph of `module`, of which the size of the batch is open."""
    with torch.no_grad():
        program = torch.onnx.export(
            module.eval(), tuple(tensor[:1].expand(2, *tensor.shape[1:]) for tensor in tensors), dynamo=True,
            opset_version=19, verbose=False, custom_translation_table=TRANSLATIONS,
            dynamic_shapes=({0: torch.export.Dim.DYNAMIC},) * len(tensors),
        )  # fmt: skip
    session = onnxruntime.InferenceSession(program.model_proto.SerializeToString(), options)
    names = [entry.name for entry in session.get_inputs()]
    (output,) = session.run(None, {name: tensor.numpy() for name, tensor in zip(names, tensors)})
    return torch.from_numpy(output)


def difference(actual: torch.Tensor, expected: torch.Tensor) -> float:
    return ((actual - expected).abs().max() / expected.abs().max()).item()
