# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""The fused operators of a layer against their parts in float64. Whole layers and models are in test_end_to_end.py."""

import pytest
import torch
from torch.nn.functional import conv2d, gelu, layer_norm, linear


# batch_size, height, width: a part of a vector, of a panel, of what a thread takes at a time; several threads.
PIXELS = [(1, 1, 1), (1, 3, 7), (2, 5, 9), (3, 17, 23)]
EPS = 1e-6


@pytest.fixture
def ops(kernel, device):
    if device == "cuda":
        pytest.skip("the fused operators are for CPUs")
    return kernel.ops


def random_tensors(dtype, shapes):
    torch.manual_seed(0)
    return {
        name: None if shape is None else (torch.randn(shape) * (shape[-1] ** -0.5 if len(shape) == 2 else 1)).to(dtype)
        for name, shape in shapes.items()
    }


def branch_by_parts(tensors):
    """`internimage_branch` by PyTorch's operators, in the dtype of the tensors."""
    output = tensors["hidden_states"]
    if tensors["norm_in_weight"] is not None:
        output = layer_norm(output, output.shape[-1:], tensors["norm_in_weight"], tensors["norm_in_bias"], EPS)
    if tensors["hidden_weight"] is not None:
        output = gelu(linear(output, tensors["hidden_weight"], tensors["hidden_bias"]))
    elif tensors["hidden_bias"] is not None:
        output = gelu(output + tensors["hidden_bias"])
    if tensors["output_weight"] is not None:
        output = linear(output, tensors["output_weight"], tensors["output_bias"])
    elif tensors["output_bias"] is not None:
        output = output + tensors["output_bias"]
    if tensors["norm_out_weight"] is not None:
        output = layer_norm(output, output.shape[-1:], tensors["norm_out_weight"], tensors["norm_out_bias"], EPS)
    if tensors["scale"] is not None:
        output = output * tensors["scale"]
    return output if tensors["residual"] is None else tensors["residual"] + output


def sampling_by_parts(tensors):
    """`internimage_sampling` by PyTorch's operators, and the features that its products with weights begin with."""
    hidden_states = tensors["hidden_states"]
    if tensors["norm_in_weight"] is not None:
        weight, bias = tensors["norm_in_weight"], tensors["norm_in_bias"]
        hidden_states = layer_norm(hidden_states, hidden_states.shape[-1:], weight, bias, EPS)
    features = hidden_states
    weight = tensors["convolution_weight"]
    if weight is not None:
        features = conv2d(
            features.permute(0, 3, 1, 2), weight, tensors["convolution_bias"], padding=weight.shape[-1] // 2,
            groups=weight.shape[0],
        ).permute(0, 2, 3, 1)  # fmt: skip
    if tensors["norm_weight"] is not None:
        features = gelu(layer_norm(features, features.shape[-1:], tensors["norm_weight"], tensors["norm_bias"], EPS))
    inputs = {"value": hidden_states, "offset": features, "mask": features, "center_scale": features}
    outputs = [
        linear(pixels, tensors[f"{name}_weight"], tensors[f"{name}_bias"])
        for name, pixels in inputs.items()
        if tensors[f"{name}_weight"] is not None
    ]
    return [*outputs, features.contiguous()]


def assert_as_exact(outputs, by_parts, tensors):
    """Errors against float64 are at most twice those of PyTorch's operators; float64 itself agrees to its rounding."""
    exact = by_parts({name: None if tensor is None else tensor.double() for name, tensor in tensors.items()})
    for output, own, expected in zip(outputs, by_parts(tensors), exact, strict=True):
        assert output.shape == expected.shape and output.dtype == own.dtype and output.is_contiguous()
        if output.dtype == torch.float64:
            torch.testing.assert_close(output, expected, rtol=1e-12, atol=1e-12)
            continue
        error, allowed = ((tensor.double() - expected).abs() for tensor in (output, own))
        unit = torch.finfo(output.dtype).eps * expected.abs().max()
        assert error.max() <= 2 * allowed.max() + 4 * unit
        assert error.mean() <= 2 * allowed.mean() + unit / 8


def branch_shapes(pixels, channels, hidden, out, parts):
    shapes = {
        "hidden_states": (*pixels, channels),
        "residual": (*pixels, out),
        "norm_in_weight": (channels,),
        "norm_in_bias": (channels,),
        "hidden_weight": (hidden, channels),
        "hidden_bias": (hidden,),
        "output_weight": (out, hidden if "hidden_weight" in parts else channels),
        "output_bias": (out,),
        "norm_out_weight": (out,),
        "norm_out_bias": (out,),
        "scale": (out,),
    }
    present = {"hidden_states", *parts} | (set() if "products done" in parts else {"output_weight"})
    return {name: shape if name in present else None for name, shape in shapes.items()}


def run_branch(ops, tensors):
    tensors = dict(tensors)
    first = [tensors.pop(name) for name in ("hidden_states", "residual", "norm_in_weight", "norm_in_bias")]
    scale = tensors.pop("scale")
    return ops.internimage_branch(*first, EPS, *tensors.values(), EPS, scale)


ALL_PARTS = branch_shapes((1, 1, 1), 1, 1, 1, ())
BRANCHES = {  # channels, hidden channels, output channels, what there is
    "alone": (64, 1, 64, []),
    "mlp": (
        64,
        256,
        64,
        ["norm_in_weight", "norm_in_bias", "hidden_weight", "hidden_bias", "output_bias", "residual"],
    ),
    "everything": (20, 33, 20, list(ALL_PARTS)),
    "projection": (37, 1, 50, ["output_bias", "norm_out_weight", "norm_out_bias", "residual", "scale"]),
    "deep": (300, 520, 5, ["hidden_weight", "scale"]),
    "single": (1, 3, 1, ["hidden_weight", "hidden_bias", "residual"]),
    "bias and GELU": (52, 52, 52, ["products done", "hidden_bias"]),
    "what follows a product": (
        40,
        1,
        40,
        ["products done", "output_bias", "norm_out_weight", "norm_out_bias", "residual", "scale"],
    ),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", BRANCHES)
@pytest.mark.parametrize("pixels", PIXELS, ids=str)
def test_branch(ops, pixels, name, dtype):
    tensors = random_tensors(dtype, branch_shapes(pixels, *BRANCHES[name]))
    assert_as_exact([run_branch(ops, tensors)], lambda each: [branch_by_parts(each)], tensors)


SAMPLINGS = {  # channels, groups, kernel size, what there is
    "DCNv3": (64, 4, 3, ["norm in", "norm", "biases"]),
    "gate": (20, 5, 5, ["norm", "biases", "gate"]),
    "DCNv4": (37, 3, None, ["norm in", "biases"]),
    "DCNv4 with a convolution": (48, 2, 3, []),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", SAMPLINGS)
@pytest.mark.parametrize("pixels", PIXELS, ids=str)
def test_sampling(ops, pixels, name, dtype):
    channels, groups, kernel_size, parts = SAMPLINGS[name]
    has_convolution, norm = kernel_size is not None, (channels,) if "norm" in parts else None
    shapes = {
        "hidden_states": (*pixels, channels),
        "norm_in_weight": (channels,) if "norm in" in parts else None,
        "norm_in_bias": (channels,) if "norm in" in parts else None,
        "convolution_weight": (channels, 1, kernel_size, kernel_size) if has_convolution else None,
        "convolution_bias": (channels,) if has_convolution and "biases" in parts else None,
        "norm_weight": norm,
        "norm_bias": norm,
    }
    for head, size in {"value": channels, "offset": 18 * groups, "mask": 9 * groups, "center_scale": groups}.items():
        exists = head != "center_scale" or "gate" in parts
        shapes[f"{head}_weight"] = (size, channels) if exists else None
        shapes[f"{head}_bias"] = (size,) if exists and "biases" in parts else None
    tensors = random_tensors(dtype, shapes)
    values = list(tensors.values())
    outputs = ops.internimage_sampling(*values[:3], EPS, *values[3:7], EPS, *values[7:])
    outputs = outputs if "gate" in parts else outputs[:3]  # without a gate, the last one is empty
    assert_as_exact(outputs, lambda each: sampling_by_parts(each)[:-1], tensors)
    if has_convolution:
        tensors |= {"norm_in_weight": None, "norm_in_bias": None}
        features = ops.internimage_features(values[0], *values[3:7], EPS)
        assert_as_exact([features], lambda each: sampling_by_parts(each)[-1:], tensors)


def test_nothing_and_strides(ops):
    shapes = branch_shapes((2, 3, 4), *BRANCHES["everything"])
    tensors = random_tensors(torch.float32, shapes)
    expected = run_branch(ops, tensors)
    for name in ("hidden_states", "residual", "hidden_weight"):
        tensors[name] = tensors[name].transpose(0, 1).contiguous().transpose(0, 1)
    assert torch.equal(run_branch(ops, tensors), expected)
    for name in ("hidden_states", "residual"):
        tensors[name] = tensors[name][:0]
    assert run_branch(ops, tensors).shape == (0, 3, 4, 20)


@pytest.mark.parametrize(
    "name, change, message",
    [
        ("residual", lambda t: t[:, :1], r"`residual` must have shape \(2, 3, 4, 20\), got \(2, 1, 4, 20\)."),
        ("scale", lambda t: t.double(), "`scale` and `hidden_states` must have the same dtype"),
        ("hidden_states", lambda t: t.int(), "`hidden_states` must have dtype float32, float64, float16 or bfloat16."),
        ("hidden_states", lambda t: t[0], r"`hidden_states` must have shape \(batch_size, height, width, channels\)"),
        ("norm_out_bias", lambda t: None, "`norm_out_weight` and `norm_out_bias` go together"),
        ("hidden_weight", lambda t: t[0], "`hidden_weight` must have two dimensions"),
        ("hidden_bias", lambda t: t[:-1], r"`hidden_bias` must have shape \(33\), got \(32\)."),
    ],
)
def test_bad_arguments(ops, name, change, message):
    tensors = random_tensors(torch.float32, branch_shapes((2, 3, 4), *BRANCHES["everything"]))
    tensors[name] = change(tensors[name])
    with pytest.raises(RuntimeError, match=message):
        run_branch(ops, tensors)
