# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""The forms of DCNv3 and of whole models in an exported graph, against the definition and the original's numbers."""

import copy
import json

import numpy as np
import pytest
import torch
from testing_utils import GOLDEN, randomize

from modeling_internimage import InternImageConfig, InternImageForImageClassification
from modeling_internimage.export.graph_forms import prepare_for_export
from modeling_internimage.export.grid_sample import GridSampleDCNv3
from modeling_internimage.modeling_internimage import InternImageDCNv3


onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
CASES = json.loads((GOLDEN / "dcnv3" / "op.json").read_text())
ARRAYS = np.load(GOLDEN / "dcnv3" / "op.npz")


@pytest.mark.parametrize("name", CASES)
def test_grid_sample_golden(name):
    """Other kernel sizes, strides, dilations, paddings, odd sizes, and offsets far outside of the image."""
    case = CASES[name]
    value, offset, mask, expected = (
        torch.from_numpy(ARRAYS[f"{name}.{key}"]).double() for key in ("input", "offset", "mask", "output")
    )
    output = GridSampleDCNv3()(
        value, offset, mask, None, case["kernel"], case["stride"], case["pad"], case["dilation"], case["group"],
        case["offset_scale"], bool(case["remove_center"]), softmax=False,
    )  # fmt: skip
    torch.testing.assert_close(output, expected, rtol=1e-6, atol=1e-6)  # the arrays are stored in float32


@pytest.mark.parametrize("operator", ["grid_sample", "deform_conv"])
@pytest.mark.parametrize(
    "kernel_size, config",
    [
        (3, {}),
        (5, {"offset_scale": 2.0, "remove_center": True, "center_feature_scale": True, "depthwise_kernel_size": 5}),
    ],
    ids=["plain", "everything"],
)
def test_layer(operator, kernel_size, config):
    """One DCNv3 layer as a graph, on maps of odd sizes, against its definition in float64."""
    layer_class = type("InternImageDCNv3", (InternImageDCNv3,), {"kernel_size": kernel_size})
    layer = randomize(layer_class(InternImageConfig(**config), 24, 3))
    hidden_states = torch.randn(2, 7, 10, 24, generator=torch.Generator().manual_seed(1))
    actual = run_graph(prepare_for_export(torch.nn.Sequential(layer), operator), hidden_states)
    expected = copy.deepcopy(layer).double()(hidden_states.double())
    assert difference(actual, expected) < 2e-6


@pytest.mark.parametrize("operator", ["grid_sample", "deform_conv"])
@pytest.mark.parametrize(
    "config",
    [
        {"post_norm": True, "layer_scale_init_value": 0.5},
        {"res_post_norm": True, "center_feature_scale": True, "remove_center": True, "use_clip_projector": True},
    ],
    ids=["like S to XL", "like H and G"],
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
    assert difference(run_graph(Logits(prepared), pixel_values, options), expected) < 1e-5
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


def run_graph(module: torch.nn.Module, tensor: torch.Tensor, options=None) -> torch.Tensor:
    """What ONNX Runtime computes with the graph of `module`, of which the size of the batch is open."""
    with torch.no_grad():
        program = torch.onnx.export(
            module.eval(), (tensor.expand(2, *tensor.shape[1:]),), dynamo=True, opset_version=19, verbose=False,
            dynamic_shapes=({0: torch.export.Dim("batch_size")},),
        )  # fmt: skip
    session = onnxruntime.InferenceSession(program.model_proto.SerializeToString(), options)
    (output,) = session.run(None, {session.get_inputs()[0].name: tensor.numpy()})
    return torch.from_numpy(output)


def difference(actual: torch.Tensor, expected: torch.Tensor) -> float:
    return ((actual - expected).abs().max() / expected.abs().max()).item()
