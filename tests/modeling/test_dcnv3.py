# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""The DCNv3 reference and the layer around it, against the originals' numbers and against float64."""

import json

import numpy as np
import pytest
import torch
from golden_numbers import tolerance
from testing_utils import GOLDEN, original_state_dict

from conversion.offset_mask import split_offset_mask
from modeling_internimage import DCNv3, InternImageConfig
from modeling_internimage.modeling_internimage import InternImageDCNv4


CASES = json.loads((GOLDEN / "dcnv3" / "op.json").read_text())
ARRAYS = np.load(GOLDEN / "dcnv3" / "op.npz")
DCNV4_CASES = json.loads((GOLDEN / "dcnv4" / "op.json").read_text())
DCNV4_ARRAYS = np.load(GOLDEN / "dcnv4" / "op.npz")
LAYERS = json.loads((GOLDEN / "dcnv4" / "layer.json").read_text())
LAYER_ARRAYS = np.load(GOLDEN / "dcnv4" / "layer.npz")


OPERATORS = ("grid_sample", "embedding_bag")


def layer(operator: str) -> DCNv3:
    module = DCNv3()
    module.operator = operator
    return module


def random_arguments(
    dtype=torch.float64, batch_size=2, height=5, width=6, groups=2, group_channels=3, kernel_size=3, stride=1,
    padding=1, dilation=1, remove_center=False, gate=False, offset_scale=1.5, spread=1.0,
):  # fmt: skip
    """Arguments of `DCNv3.forward`, in order, the tensors with gradients."""
    torch.manual_seed(0)
    out_height, out_width = (
        (size + 2 * padding - dilation * (kernel_size - 1) - 1) // stride + 1 for size in (height, width)
    )
    points = kernel_size**2 - remove_center
    shapes = [(height, width, groups * group_channels), (out_height, out_width, groups * points * 2)]
    shapes += [(out_height, out_width, groups * points), (out_height, out_width, groups)]
    tensors = [torch.randn(batch_size, *shape, dtype=torch.float64) for shape in shapes]
    tensors[1] *= spread
    tensors = [tensor.to(dtype).requires_grad_() for tensor in tensors]
    if not gate:
        tensors[3] = None
    return (*tensors, kernel_size, stride, padding, dilation, groups, offset_scale, remove_center, True)


def with_dtype(arguments, dtype):
    """The same numbers in another dtype, as new leaves."""
    return tuple(
        argument.detach().to(dtype).requires_grad_() if isinstance(argument, torch.Tensor) else argument
        for argument in arguments
    )


def golden_arrays(arrays, name: str, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    return {
        key.removeprefix(f"{name}."): torch.from_numpy(arrays[key]).to(dtype)
        for key in arrays
        if key.startswith(f"{name}.")
    }


def assert_golden(actual: torch.Tensor, expected: torch.Tensor):
    torch.testing.assert_close(actual, expected, **tolerance(expected))


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", CASES)
def test_golden(name, dtype, operator):
    case, array = CASES[name], golden_arrays(ARRAYS, name, dtype)
    value, offset, mask = (array[key].requires_grad_() for key in ("input", "offset", "mask"))
    output = layer(operator)(value, offset, mask, None, *golden_geometry(case), softmax=False)
    output.backward(array["cotangent"])
    assert_golden(output, array["output"])
    assert_golden(value.grad, array["grad_input"])
    assert_golden(mask.grad, array["grad_mask"])
    assert_golden(offset.grad, array["grad_offset"])


def golden_geometry(case: dict) -> list:
    """The numbers among the arguments of `DCNv3.forward`, but `softmax`."""
    names = ("kernel", "stride", "pad", "dilation", "group", "offset_scale")
    return [case[name] for name in names] + [bool(case["remove_center"])]


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", DCNV4_CASES)
def test_golden_dcnv4(name, dtype, operator):
    """DCNv4 is DCNv3 without a softmax, on columns of its packed offsets and weights."""
    case, array = DCNV4_CASES[name], golden_arrays(DCNV4_ARRAYS, name, dtype)
    value, packed = (array[key].requires_grad_() for key in ("input", "offset_mask"))
    offset, mask, unread = split_offset_mask(case["group"], case["kernel"] ** 2 - case["remove_center"])
    assert len(offset) + len(mask) + len(unread) == packed.shape[-1]
    output = layer(operator)(
        value, packed[..., offset], packed[..., mask], None, *golden_geometry(case), softmax=bool(case["softmax"])
    )
    output.backward(array["cotangent"])
    assert_golden(output, array["output"])
    assert_golden(value.grad, array["grad_input"])
    # The gradient of a sample at exactly -1 may be one-sided, or 0 as in the original.
    closed = array.get("grad_offset_mask_closed", array["grad_offset_mask"])
    near = (packed.grad - closed).abs() < (packed.grad - array["grad_offset_mask"]).abs()
    assert_golden(packed.grad, torch.where(near, closed, array["grad_offset_mask"]))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", LAYERS)
def test_golden_dcnv4_layer(name, dtype):
    case, array = LAYERS[name], golden_arrays(LAYER_ARRAYS, name, dtype)
    options = case["module"]
    config = InternImageConfig(
        core_op="DCNv4", depthwise_kernel_size=options["dw_kernel_size"], remove_center=options["remove_center"],
        offset_scale=options["offset_scale"], dcn_output_bias=options["output_bias"],
    )  # fmt: skip
    module = InternImageDCNv4(
        config, options["channels"], options["group"], options["center_feature_scale"], options["without_pointwise"]
    ).to(dtype)
    *split, _ = split_offset_mask(options["group"], module.num_points)
    rows = dict(zip(("offset_proj", "mask_proj"), split))
    names = {"depthwise_convolution": "offset_mask_dw", "offset_proj": "offset_mask", "mask_proj": "offset_mask"}
    weights = original_state_dict(case["keys"], case["weights_seed"])
    origins = {}
    for key in module.state_dict():
        owner, leaf = key.split(".")
        separator = "_" if owner == "center_feature_scale_proj" else "."
        origins[key] = names.get(owner, owner) + separator + leaf, rows.get(owner, slice(None))
    module.load_state_dict({key: weights[origin][own] for key, (origin, own) in origins.items()})
    assert {origin for origin, _ in origins.values()} == set(weights)

    shape = (case["batch"], case["height"] * case["width"], options["channels"])
    hidden_states, cotangent = (
        torch.from_numpy(np.random.Generator(np.random.PCG64([case[f"{kind}_seed"], number])).standard_normal(
            shape, dtype=np.float32)).to(dtype).unflatten(1, (case["height"], case["width"]))
        for kind, number in (("input", 12345), ("cotangent", 54321))
    )  # fmt: skip
    output = module(hidden_states.requires_grad_())
    output.backward(cotangent)
    assert_golden(output.flatten(1, 2), array["output"])
    assert_golden(hidden_states.grad.flatten(1, 2), array["grad_input"])
    for key, parameter in module.named_parameters():
        origin, own = origins[key]
        assert_golden(parameter.grad, array[f"grad.{origin}"][own])


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize(
    "geometry",
    [
        {"gate": True},
        {"kernel_size": 5, "stride": 2, "padding": 2, "dilation": 2, "remove_center": True, "height": 9, "width": 10},
        {"kernel_size": 1, "padding": 0, "stride": 3},
        {"kernel_size": 7, "padding": 0, "height": 8, "width": 7, "groups": 1},
    ],
    ids=str,
)
def test_gradcheck(geometry, operator):
    arguments = random_arguments(batch_size=1, **geometry)
    assert torch.autograd.gradcheck(layer(operator), arguments, fast_mode=True)


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype, operator):
    """Only the inputs and the result are rounded to half precision: sums and positions are float32."""
    arguments = random_arguments(dtype, gate=True, height=14, width=30, group_channels=16, spread=4.0)
    output = layer(operator)(*arguments)
    assert output.dtype == dtype
    exact_arguments = with_dtype(arguments, torch.float64)
    exact = DCNv3()(*exact_arguments)
    rounding = (exact.to(dtype).double() - exact).abs().max()
    assert (output.double() - exact).abs().max() <= 1.01 * rounding
    cotangent = torch.randn_like(exact).to(dtype)
    output.backward(cotangent)
    exact.backward(cotangent.double())
    for argument, exact_argument in zip(arguments[:4], exact_arguments[:4]):
        assert argument.grad.dtype == dtype
        rounding = (exact_argument.grad.to(dtype).double() - exact_argument.grad).abs().max()
        assert (argument.grad.double() - exact_argument.grad).abs().max() <= 1.1 * rounding


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("scale", [1.0, 200.0])
def test_softmax_and_gate(scale, operator):
    """Both are inside the operator: outside of it, they give the same. Also for logits whose exponential overflows."""
    value, offset, mask, gate, *geometry, _ = random_arguments(gate=True)
    mask = scale * mask
    actual = layer(operator)(value, offset, mask, gate, *geometry, softmax=True)
    weights = mask.unflatten(-1, (2, 9)).softmax(dim=-1).flatten(3)
    output = layer(operator)(value, offset, weights, None, *geometry, softmax=False)
    gate = gate.sigmoid().repeat_interleave(3, dim=-1)
    torch.testing.assert_close(actual, output * (1 - gate) + value * gate)


class Used(torch.overrides.TorchFunctionMode):
    """Names the operators that run."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_function__(self, function, types, args=(), kwargs=None):
        self.names |= {function.__name__} & set(OPERATORS)
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(
    "gradients, device, deterministic, expected",
    [
        (True, "cpu", False, "grid_sample"),
        (False, "cpu", False, "embedding_bag"),
        (True, "cpu", True, "grid_sample"),
        (True, "meta", False, "grid_sample"),
        (
            True,
            "meta",
            True,
            "embedding_bag",
        ),  # as on a GPU, where the gradients of `grid_sample` are added in any order
    ],
)
def test_choice_of_operator(gradients, device, deterministic, expected, training):
    """One rule, whatever the mode: `grid_sample` for gradients, `embedding_bag` without."""
    arguments = [
        argument.to(device) if isinstance(argument, torch.Tensor) else argument for argument in random_arguments()
    ]
    torch.use_deterministic_algorithms(deterministic)
    try:
        with torch.set_grad_enabled(gradients), Used() as used:
            DCNv3().train(training)(*arguments)
    finally:
        torch.use_deterministic_algorithms(False)
    assert used.names == {expected}


@pytest.mark.parametrize("training", [False, True])
def test_second_derivatives(training):
    arguments = random_arguments(batch_size=1, height=3, width=3, groups=1, gate=True)
    assert torch.autograd.gradgradcheck(DCNv3().train(training), arguments)


def test_function_transforms():
    """Those of `torch.func` in reverse mode are right; the others are refused by PyTorch."""
    tensors, numbers = random_arguments(gate=True)[:4], random_arguments()[4:]

    def loss(value, offset, mask, gate):
        return DCNv3()(value[None], offset[None], mask[None], gate[None], *numbers).square().sum()

    expected = torch.autograd.grad(DCNv3()(*tensors, *numbers).square().sum(), tensors)
    tensors = [tensor.detach() for tensor in tensors]
    per_image = torch.func.vmap(torch.func.grad(loss, argnums=(0, 1, 2, 3)))(*tensors)
    torch.testing.assert_close(per_image, expected)
    torch.testing.assert_close(torch.func.jacrev(loss)(*(tensor[1] for tensor in tensors)), expected[0][1])
    losses = torch.stack([loss(*(tensor[idx] for tensor in tensors)) for idx in range(2)])
    torch.testing.assert_close(torch.func.vmap(loss)(*tensors), losses)
    with pytest.raises(NotImplementedError, match="forward AD"):
        torch.func.jvp(loss, tuple(tensor[0] for tensor in tensors), tuple(tensor[0] for tensor in tensors))


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("size", [(0, 4), (4, 0), (0, 0)])
def test_images_without_pixels(size, operator):
    """In wide padding: all samples are zero, and so are the gradients."""
    arguments = random_arguments(height=size[0], width=size[1], padding=2)
    output = layer(operator)(*arguments)
    output.sum().backward()
    assert output.shape == (2, size[0] + 2, size[1] + 2, 6) and not output.any()
    assert all(tensor.grad.shape == tensor.shape and not tensor.grad.any() for tensor in arguments[:3])


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("order", [(0, 3, 1, 2), (3, 1, 2, 0), (2, 1, 0, 3)])
def test_any_strides(order, operator):
    """As of a tensor that was made in another order of its dimensions."""
    arguments = random_arguments(gate=True)
    expected = layer(operator)(*arguments)
    inverse = [order.index(dim) for dim in range(4)]
    strided = [tensor.permute(order).contiguous().permute(inverse) for tensor in arguments[:4]]
    torch.testing.assert_close(layer(operator)(*strided, *arguments[4:]), expected)


def test_strided_offset_and_mask():
    """One projection may produce both: views with a row stride give the same as copies."""
    arguments = list(random_arguments(torch.float32))
    joint = torch.cat((arguments[1], arguments[2]), dim=-1)
    split = joint.split([arguments[1].shape[-1], arguments[2].shape[-1]], dim=-1)
    expected = DCNv3()(*arguments)
    torch.testing.assert_close(DCNv3()(arguments[0], *split, *arguments[3:]), expected, rtol=0, atol=0)
    channels_first = arguments[0].permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)
    torch.testing.assert_close(DCNv3()(channels_first, *arguments[1:]), expected, rtol=0, atol=0)


@pytest.mark.parametrize("operator", OPERATORS)
def test_empty_batch(operator):
    arguments = random_arguments(torch.float32, batch_size=0, gate=True)
    output = layer(operator)(*arguments)
    output.sum().backward()
    assert output.shape == (0, 5, 6, 6) and arguments[1].grad.shape == arguments[1].shape


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), 1e6, -1e30])
def test_wild_offsets(bad, operator):
    """A sample infinitely far away is zero. NaN stays in the output pixel it belongs to, or counts as outside."""
    arguments = random_arguments(torch.float32)
    with torch.no_grad():
        arguments[1][0, 2, 3, 0] = bad
    output = layer(operator)(*arguments)
    touched = torch.zeros(output.shape, dtype=torch.bool)
    touched[0, 2, 3, :3] = True  # the group whose offset it is
    assert output[~touched].isfinite().all()
    if bad == bad:
        far = with_dtype(arguments, torch.float32)
        with torch.no_grad():
            far[1][0, 2, 3, 0] = 100.0
        torch.testing.assert_close(output, DCNv3()(*far))
    output[~touched].sum().backward()


@pytest.mark.parametrize(
    "change, message",
    [
        ({"num_groups": 4}, "`num_groups=4` does not divide"),
        ({"kernel_size": 0}, "`kernel_size` must be at least 1"),
        ({"stride": 0}, "`stride` must be at least 1"),
        ({"kernel_size": 2, "remove_center": True}, "`kernel_size` must be odd"),
        ({"dilation": 5}, "smaller than the kernel"),
        ({"stride": 2}, "`offset` must have shape"),
        ({"mask": torch.zeros(2, 5, 6, 17)}, "`mask` must have shape"),
        ({"center_scale": torch.zeros(2, 5, 6, 3)}, "`center_scale` must have shape"),
        (
            {"height": 7, "padding": 0, "center_scale": torch.zeros(2, 5, 4, 2)},
            "`stride` must be 1 and `padding` must",
        ),
    ],
    ids=lambda value: None if isinstance(value, dict) else value,
)
def test_bad_arguments(change, message):
    names = ("value", "offset", "mask", "center_scale", "kernel_size", "stride", "padding", "dilation", "num_groups",
             "offset_scale", "remove_center", "softmax")  # fmt: skip
    change = dict(change)
    shape = {name: change.pop(name) for name in ("height",) if name in change}
    if "center_scale" in change and "padding" in change:
        shape["padding"] = 0
    arguments = dict(zip(names, random_arguments(torch.float32, **shape))) | change
    with pytest.raises(ValueError, match=message.replace("`", ".")):
        DCNv3()(**arguments)
