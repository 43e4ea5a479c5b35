# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""The operators, through `kernels`, against the reference and the original's numbers."""

import inspect
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from dcnv3_cases import (
    BATCHES,
    GEOMETRIES,
    GOLDEN_CASES,
    LAYER_CASES,
    NAMES,
    check_against_reference,
    check_golden,
    check_images_alone,
    check_layer,
    converted,
    cotangent_of,
    random_arguments,
    results,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from reference_dcnv3 import reference_dcnv3


def skip_unsupported(dtype, device):
    if dtype == torch.float64 and device == "cuda":
        pytest.skip("float64 is a CPU dtype")


@pytest.mark.kernels_ci
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", GOLDEN_CASES)
def test_golden(kernel, device, name, dtype):
    skip_unsupported(dtype, device)
    check_golden(kernel.dcnv3, name, dtype, device)


@pytest.mark.parametrize("name", GOLDEN_CASES)
def test_golden_reference(name):
    """What everything else is compared with computes the original's numbers."""
    check_golden(reference_dcnv3, name, torch.float64)


@pytest.mark.kernels_ci
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", LAYER_CASES)
def test_golden_layer(kernel, device, name, dtype):
    skip_unsupported(dtype, device)
    check_layer(kernel.dcnv3, name, dtype, device)


@pytest.mark.parametrize("name", LAYER_CASES)
def test_golden_layer_reference(name):
    check_layer(reference_dcnv3, name, torch.float64)


@pytest.mark.kernels_ci
@pytest.mark.parametrize("geometry", BATCHES)
def test_images_alone(kernel, device, geometry):
    check_images_alone(kernel.dcnv3, random_arguments(device=device, **BATCHES[geometry]), exact_sums=device == "cpu")


# Conversions of the narrow dtypes, and float64, depend on the channels of a group and on what is summed.
PARITY = [(name, dtype) for name in GEOMETRIES for dtype in (torch.float32, torch.bfloat16)]
PARITY += [
    (name, dtype)
    for name in GEOMETRIES
    for dtype in (torch.float16, torch.float64)
    if name.startswith("d") or name in ("raw_mask_gate", "stride3_dilation2", "remove_center", "k7")
]


@pytest.mark.kernels_ci
@pytest.mark.parametrize("geometry, dtype", PARITY, ids=str)
def test_parity(kernel, device, geometry, dtype):
    skip_unsupported(dtype, device)
    check_against_reference(kernel.dcnv3, random_arguments(dtype, device, **GEOMETRIES[geometry]))


@st.composite
def geometries(draw):
    kernel_size = draw(st.integers(1, 7))
    remove_center = kernel_size % 2 == 1 and kernel_size > 1 and draw(st.booleans())
    dilation, padding = draw(st.integers(1, 3)), draw(st.integers(0, 4))
    smallest = max(1, dilation * (kernel_size - 1) + 1 - 2 * padding)
    same_size = 2 * padding == dilation * (kernel_size - 1)
    stride = draw(st.integers(1, 3))
    return {
        "batch_size": draw(st.integers(1, 3)),
        "height": draw(st.integers(smallest, smallest + 6)),
        "width": draw(st.integers(smallest, smallest + 6)),
        "num_groups": draw(st.integers(1, 5)),
        "group_channels": draw(st.one_of(st.integers(1, 40), st.sampled_from([48, 64, 100, 128]))),
        "kernel_size": kernel_size,
        "stride": stride,
        "padding": padding,
        "dilation": dilation,
        "remove_center": remove_center,
        "gate": stride == 1 and same_size and draw(st.booleans()),
        "softmax": draw(st.booleans()),
        "offset_scale": draw(st.sampled_from([0.5, 1.0, 1.5, 2.0])),
        "spread": draw(st.sampled_from([0.5, 2.0, 20.0])),
        "seed": draw(st.integers(0, 1000)),
        "dtype": draw(st.sampled_from([torch.float32, torch.float32, torch.bfloat16, torch.float16])),
    }


@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(geometry=geometries())
def test_random_arguments(kernel, device, geometry):
    check_against_reference(kernel.dcnv3, random_arguments(device=device, **geometry))


def strided_views(arguments):
    """The same numbers in other memory layouts."""
    value, offset, mask, gate = arguments[:4]
    joint = torch.cat((offset, mask, gate), dim=-1)
    yield "rows of one projection", (value, *joint.split([offset.shape[-1], mask.shape[-1], gate.shape[-1]], dim=-1))
    yield "channels first", [t.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1) for t in arguments[:4]]
    yield "width first", [t.transpose(1, 2).contiguous().transpose(1, 2) for t in arguments[:4]]
    yield "every second channel", [torch.stack((t, t), dim=-1).flatten(3)[..., ::2] for t in arguments[:4]]
    for shift in (1, 3):
        shifted = [torch.cat((t.new_zeros(shift), t.flatten()))[shift:].view(t.shape) for t in arguments[:4]]
        assert shifted[0].storage_offset() == shift and shifted[0].is_contiguous()
        yield f"unaligned by {shift} elements", shifted


@pytest.mark.kernels_ci
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("group_channels", [3, 16])
def test_memory_layouts(kernel, device, dtype, group_channels):
    """Layouts change nothing: neither the output nor the gradients, bit for bit (but for sums by atomics on CUDA)."""
    skip_unsupported(dtype, device)
    arguments = random_arguments(dtype, device, gate=True, group_channels=group_channels)
    expected = results(kernel.dcnv3, arguments)
    for layout, tensors in strided_views([tensor.detach() for tensor in arguments[:4]]):
        actual = results(kernel.dcnv3, [t.detach().requires_grad_() for t in tensors] + list(arguments[4:]))
        for name, result in actual.items():
            exact = device == "cpu" or name != "value"
            tolerance = {"rtol": 0, "atol": 0} if exact else {}
            where = f"{layout}, {name}: "
            torch.testing.assert_close(result, expected[name], **tolerance, msg=lambda text, where=where: where + text)


def test_expanded_gradient(kernel, device):
    """`sum().backward()` hands over a gradient without memory of its own."""
    arguments = random_arguments(device=device, gate=True)
    kernel.dcnv3(*arguments).sum().backward()
    same = converted(arguments, torch.float32)
    output = kernel.dcnv3(*same)
    output.backward(torch.ones_like(output))
    for argument, other in zip(arguments[:4], same[:4]):
        torch.testing.assert_close(argument.grad, other.grad)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
def test_strides_beyond_32_bits(kernel, device, dtype):
    """Rows 2**30 elements apart. Memory that nobody touches is not taken."""
    if device == "cuda":
        pytest.skip("would take the memory")
    arguments = random_arguments(dtype, height=3, group_channels=16)
    value = torch.empty_strided(arguments[0].shape, (512, 2**30, 32, 1), dtype=dtype)
    value.copy_(arguments[0].detach())
    expected = results(kernel.dcnv3, arguments)
    actual = results(kernel.dcnv3, (value.requires_grad_(), *converted(arguments[1:], dtype)))
    for name, result in actual.items():
        torch.testing.assert_close(result, expected[name])


@pytest.mark.kernels_ci
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    "geometry",
    [
        {"batch_size": 0, "gate": True},
        {"batch_size": 0, "height": 0, "padding": 2},
        {"height": 0, "padding": 2},
        {"width": 0, "padding": 2, "group_channels": 16},
        {"height": 0, "width": 0, "padding": 3, "stride": 2, "softmax": False},
    ],
    ids=str,
)
def test_empty(kernel, device, geometry, dtype):
    """No image, or images without pixels in padding: zeros, the gradients too, and nothing is read."""
    skip_unsupported(dtype, device)
    arguments = random_arguments(dtype, device, **geometry)
    torch.use_deterministic_algorithms(True, warn_only=True)  # fills memory that nobody wrote with NaN
    try:
        for name, result in results(kernel.dcnv3, arguments).items():
            shaped = arguments[NAMES.index(name)] if name in NAMES else arguments[1]
            assert result.shape[:3] == shaped.shape[:3] and result.dtype == dtype, name
            assert torch.equal(result, torch.zeros_like(result)), name
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.kernels_ci
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("bad", [0.0, float("inf"), float("nan")])
def test_images_as_large_as_32_bits_count(kernel, device, dtype, bad):
    """The padding makes it 2**31 - 1 pixels on a side, all of them the same memory. Outputs at 0 and 2**30."""
    skip_unsupported(dtype, device)
    for height, width in ((2**31 - 3, 2**27), (2**27, 2**31 - 3)):
        value = torch.ones(16, dtype=dtype, device=device).expand(1, height, width, 16)
        out = (1, 2, 1) if height > width else (1, 1, 2)
        offset, mask = (torch.zeros(*out, size, dtype=dtype, device=device) for size in (18, 9))
        output = kernel.dcnv3(value, offset, mask, stride=2**30)
        expected = torch.tensor([4 / 9, 6 / 9], dtype=dtype, device=device)
        torch.testing.assert_close(output, expected.view(*out, 1).expand(*out, 16))
        kernel.dcnv3(value, offset + bad, mask, stride=2**30)
        with pytest.raises(RuntimeError, match="a padded side may have at most 2147483647 pixels"):
            kernel.dcnv3(value, offset, mask, stride=2**30, padding=2)


def test_out_of_memory(kernel, device):
    """The words that code which then tries a smaller batch looks for."""
    value, offset, mask = (torch.zeros(size, device=device).expand(1, 2**20, 2**20, size) for size in (256, 18, 9))
    words = "CUDA out of memory." if device == "cuda" else "DefaultCPUAllocator: can't allocate memory"
    with pytest.raises(RuntimeError, match=words):
        kernel.dcnv3(value, offset, mask)


@pytest.mark.kernels_ci
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("group_channels", [3, 16])
@pytest.mark.parametrize("bad", [1e6, -1e30, float("inf"), -float("inf"), float("nan")])
def test_wild_offsets(kernel, device, bad, group_channels, dtype):
    """A sample far away is zero, that of a NaN position is zero or NaN. Nothing else is touched, nor its gradients."""
    skip_unsupported(dtype, device)
    arguments = random_arguments(dtype, device, gate=True, group_channels=group_channels)
    with torch.no_grad():
        arguments[1][0, 2, 3, :8] = bad
    output = kernel.dcnv3(*arguments)
    touched = torch.zeros(output.shape, dtype=torch.bool, device=device)
    touched[0, 2, 3, :group_channels] = True  # the group whose offsets these are
    assert output[~touched].isfinite().all()
    output.masked_fill(touched, 0).sum().backward()
    if bad == bad:
        far = converted(arguments, dtype)
        with torch.no_grad():
            far[1][0, 2, 3, :8] = 100.0
        expected = kernel.dcnv3(*far)
        torch.testing.assert_close(output, expected, rtol=0, atol=0)
        expected.masked_fill(touched, 0).sum().backward()
        for argument, other in zip(arguments[:4], far[:4]):
            torch.testing.assert_close(argument.grad, other.grad)


@pytest.mark.parametrize("which", [1, 2, 3])
@pytest.mark.parametrize("bad", [float("inf"), -float("inf"), float("nan"), 1e30])
def test_everything_wild(kernel, device, which, bad):
    """No crash, whatever the whole tensor holds. What comes out is not specified."""
    arguments = random_arguments(device=device, gate=True, group_channels=16)
    with torch.no_grad():
        arguments[which].fill_(bad)
    kernel.dcnv3(*arguments).sum().backward()


@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
def test_wild_value(kernel, device, bad):
    """A pixel that is not finite stays out of the outputs that do not look at it."""
    arguments = random_arguments(device=device, height=9, width=9, spread=0.1, group_channels=16, offset_scale=1.0)
    with torch.no_grad():
        arguments[0][0, 4, 4] = bad
    output = kernel.dcnv3(*arguments)
    assert output[1].isfinite().all() and output[0, :2].isfinite().all() and output[0, :, 7:].isfinite().all()


@pytest.mark.kernels_ci
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_extreme_logits(kernel, device, dtype):
    """The softmax does not overflow, and a logit of minus infinity is a weight of zero."""
    arguments = random_arguments(dtype, device, gate=True)
    with torch.no_grad():
        arguments[2].mul_(3e4)
        arguments[3].mul_(1e3)
        arguments[2][..., ::9] = -float("inf")
    check_against_reference(kernel.dcnv3, arguments)


REFUSALS = [
    ({"value": (2, 5, 6)}, "`value` must have shape"),
    ({"num_groups": 4}, "`num_groups=4` does not divide"),
    ({"num_groups": 0}, "`num_groups=0`"),
    ({"kernel_size": 0}, "`kernel_size` must be between 1 and 7, got 0"),
    ({"kernel_size": 8}, "`kernel_size` must be between 1 and 7, got 8"),
    ({"kernel_size": 2**62}, "`kernel_size` must be between 1 and 7"),
    ({"stride": 0}, "`stride` must be between 1 and 2147483647, got 0"),
    ({"stride": 2**31}, "`stride` must be between 1 and 2147483647, got 2147483648"),
    ({"dilation": 0}, "`dilation` must be between 1 and 2147483647, got 0"),
    ({"dilation": 2**62}, "`dilation` must be between 1"),
    ({"dilation": 2**31 - 1}, "smaller than the kernel, which spans 4294967295 pixels"),
    ({"padding": -1}, "`padding` must be between 0 and 2147483647, got -1"),
    ({"padding": 2**62}, "`padding` must be between 0"),
    ({"padding": 2**30}, "a padded side may have at most 2147483647 pixels"),
    ({"num_groups": -(2**63)}, "does not divide"),
    ({"num_groups": 2**62}, "does not divide"),
    ({"offset_scale": float("nan")}, "`offset_scale` must be between -2147483647 and 2147483647, got nan"),
    ({"offset_scale": -float("inf")}, "`offset_scale` must be between"),
    ({"offset_scale": 1e300}, "`offset_scale` must be between"),
    ({"value": (2, 5, 6, 0)}, "A group must have between 1 and 256 channels"),
    ({"value": (2, 2**31, 6, 6)}, "`value` of 2147483648x6 pixels with `padding=1` is too large"),
    ({"value": (2, 5, 2**40, 6)}, "is too large"),
    ({"value": (2, 5, 6, 2**31)}, "`value` must have at most 2147483647 channels"),
    ({"value": (0, 5, 6, 6)}, "`offset` must have shape (0, 5, 6, 36)"),
    ({"value": (2, 0, 6, 6)}, "smaller than the kernel"),
    ({"value": (2, 0, 6, 6), "padding": 2}, "`offset` must have shape (2, 2, 8, 36)"),
    ({"kernel_size": 2, "remove_center": True}, "`kernel_size` must be odd"),
    ({"kernel_size": 1, "remove_center": True}, "leaves no point"),
    ({"dilation": 5}, "smaller than the kernel"),
    ({"stride": 2}, "`offset` must have shape (2, 3, 3, 36), got (2, 5, 6, 36)"),
    ({"offset": (2, 5, 6, 18)}, "`offset` must have shape"),
    ({"offset": (2, 5, 36)}, "`offset` must have shape"),
    ({"mask": (2, 5, 6, 17)}, "`mask` must have shape"),
    ({"mask": (1, 5, 6, 18)}, "`mask` must have shape"),
    ({"center_scale": (2, 5, 6, 6)}, "`center_scale` must have shape"),
    ({"padding": 0, "offset": (2, 3, 4, 36), "mask": (2, 3, 4, 18)}, "`center_scale` blends"),
    ({"value": (2, 5, 6, 514)}, "A group must have between 1 and 256 channels"),
]


def refusal_arguments(change, device):
    arguments = dict(zip(inspect.signature(reference_dcnv3).parameters, random_arguments(device=device, gate=True)))
    for name, other in change.items():
        arguments[name] = torch.zeros(1, device=device).expand(other) if isinstance(other, tuple) else other
    return arguments


@pytest.mark.kernels_ci
@pytest.mark.parametrize("change, message", REFUSALS, ids=[message for _, message in REFUSALS])
def test_refusals(kernel, device, change, message):
    for place in (device, "meta"):  # tensors without data, as compilers see them, are refused alike
        arguments = refusal_arguments(change, place)
        with pytest.raises(RuntimeError) as error:
            kernel.dcnv3(**arguments)
        assert message in str(error.value)
        # The backward operator trusts its caller no more than the forward one.
        with pytest.raises(RuntimeError) as error:
            kernel._ops.ops.dcnv3_backward(torch.zeros(2, 5, 6, 6, device=place), *arguments.values())
        assert message in str(error.value)


@pytest.mark.kernels_ci
@pytest.mark.parametrize("name", NAMES[:3])
@pytest.mark.parametrize("other", [None, np.zeros((2, 5, 6, 6), np.float32)], ids=["None", "array"])
def test_refuses_what_is_no_tensor(kernel, device, name, other):
    arguments = refusal_arguments({name: other}, device)
    with pytest.raises(TypeError, match=f"`{name}` must be a tensor, got {type(other).__name__}"):
        kernel.dcnv3(**arguments)
    if other is None:
        with pytest.raises(RuntimeError, match=f"`{name}` must be a tensor, got None"):
            kernel._ops.ops.dcnv3_forward(**arguments)


@pytest.mark.kernels_ci
def test_refuses_gradient_of_other_shape(kernel, device):
    arguments = random_arguments(device=device)
    for wrong in (torch.zeros(2, 5, 6, 5), torch.zeros(2, 5, 6), torch.zeros(1, 5, 6, 6)):
        with pytest.raises(RuntimeError, match="`grad_output`"):
            kernel._ops.ops.dcnv3_backward(wrong.to(device), *arguments)
    right = torch.zeros(2, 5, 6, 6, device=device)
    for wrong in (right.half(), right.to("meta"), None):
        with pytest.raises(RuntimeError, match="`grad_output`"):
            kernel._ops.ops.dcnv3_backward(wrong, *arguments)
    with pytest.raises(RuntimeError, match="`grad_output`"):
        kernel._ops.ops.dcnv3_backward(None, *random_arguments(device="meta"))


@pytest.mark.kernels_ci
@pytest.mark.parametrize("name", NAMES[1:])
def test_refuses_other_device(kernel, device, name):
    """A tensor on the meta device must not turn the call into a fake one."""
    for other in ["meta"] + (["cpu"] if device == "cuda" else []):
        arguments = refusal_arguments({}, device)
        arguments[name] = arguments[name].detach().to(other)
        with pytest.raises(RuntimeError, match=f"`{name}` and `value` must be on the same device"):
            kernel.dcnv3(**arguments)


@pytest.mark.kernels_ci
@pytest.mark.parametrize("name", NAMES[1:])
def test_refuses_other_dtype(kernel, device, name):
    """The operator; the function converts floating dtypes."""
    arguments = refusal_arguments({}, device)
    arguments[name] = arguments[name].half()
    with pytest.raises(RuntimeError, match=f"`{name}` and `value` must have the same dtype"):
        kernel._ops.ops.dcnv3_forward(**arguments)
    arguments[name] = arguments[name].int()
    with pytest.raises(TypeError, match=f"`{name}` must have a floating point dtype"):
        kernel.dcnv3(**arguments)


@pytest.mark.kernels_ci
@pytest.mark.parametrize("dtype", [torch.int32, torch.complex64, torch.float8_e4m3fn], ids=str)
@pytest.mark.parametrize("batch_size", [0, 2])
def test_refuses_unsupported_dtype(kernel, device, dtype, batch_size):
    arguments = random_arguments(batch_size=batch_size)
    for place in (device, "meta"):
        with pytest.raises(RuntimeError, match="`value` must have dtype float32"):
            kernel.dcnv3(*(a.to(dtype).to(place) if isinstance(a, torch.Tensor) else a for a in arguments))


@pytest.mark.kernels_ci
@pytest.mark.parametrize("geometry, dtype", [("gate", torch.float32), ("stride2", torch.bfloat16)], ids=str)
def test_opcheck(kernel, device, geometry, dtype):
    arguments = random_arguments(dtype, device, **GEOMETRIES[geometry])
    ops = kernel._ops.ops
    torch.library.opcheck(ops.dcnv3_forward.default, arguments)
    detached = [a.detach() if isinstance(a, torch.Tensor) else a for a in arguments]
    gradient = cotangent_of(kernel.dcnv3(*detached))
    torch.library.opcheck(ops.dcnv3_backward.default, (gradient, *detached))
    # Not contiguous: the fake kernels must know that the results are.
    detached[0] = detached[0].transpose(1, 2).contiguous().transpose(1, 2)
    detached[1] = detached[1].transpose(1, 2).contiguous().transpose(1, 2)
    for op, operands in ((ops.dcnv3_forward, detached), (ops.dcnv3_backward, (gradient, *detached))):
        torch.library.opcheck(op.default, operands, test_utils=("test_schema", "test_faketensor"))


@pytest.mark.parametrize(
    "geometry",
    [
        {"gate": True, "height": 2},
        {"softmax": False, "gate": True, "height": 2},
        {"kernel_size": 5, "stride": 2, "padding": 2, "dilation": 2, "remove_center": True, "height": 7},
        {"kernel_size": 1, "padding": 0, "stride": 3},
        {"kernel_size": 2, "padding": 1, "height": 2},
        {"kernel_size": 7, "padding": 0, "height": 8, "width": 7, "num_groups": 1},
        {"group_channels": 16, "num_groups": 1, "height": 3, "width": 4},
    ],
    ids=str,
)
def test_gradcheck(kernel, device, geometry):
    skip_unsupported(torch.float64, device)
    assert torch.autograd.gradcheck(kernel.dcnv3, random_arguments(torch.float64, batch_size=1, **geometry))


def test_only_wanted_gradients(kernel, device):
    arguments = random_arguments(device=device, gate=True)
    for wanted in range(4):
        some = [a.detach() if isinstance(a, torch.Tensor) else a for a in arguments]
        some[wanted].requires_grad_()
        kernel.dcnv3(*some).sum().backward()
        assert [a.grad is not None for a in some[:4]] == [position == wanted for position in range(4)]


def test_second_derivative_is_refused(kernel, device):
    arguments = random_arguments(device=device)
    (gradient,) = torch.autograd.grad(kernel.dcnv3(*arguments).sum(), arguments[0], create_graph=True)
    with pytest.raises(NotImplementedError, match="only once"):
        gradient.sum().backward()
    function, tensors = with_numbers(kernel.dcnv3, arguments)
    first = torch.func.grad(lambda *tensors: function(*tensors).sum())
    with pytest.raises(NotImplementedError, match="only once"):
        torch.func.grad(lambda *tensors: first(*tensors).sum())(*tensors)


def with_numbers(function, arguments):
    """A function of tensors only, and these."""
    count = 3 if arguments[3] is None else 4
    tensors = tuple(tensor.detach() for tensor in arguments[:count])
    return lambda *tensors: function(*tensors, *arguments[count:]), tensors


SMALL = {"batch_size": 1, "height": 2, "width": 3, "num_groups": 1}


@pytest.mark.parametrize("gate", [False, True])
def test_func_jacobians(kernel, device, gate):
    """Those of the reference, one row after the other and all at once."""
    skip_unsupported(torch.float64, device)
    arguments = random_arguments(torch.float64, gate=gate, **SMALL)
    function, tensors = with_numbers(kernel.dcnv3, arguments)
    reference, _ = with_numbers(reference_dcnv3, arguments)
    positions = tuple(range(len(tensors)))
    expected = torch.autograd.functional.jacobian(reference, tensors)
    output = reference(*tensors)
    leaves = [tensor.clone().requires_grad_() for tensor in tensors]
    rows = torch.eye(output.numel(), dtype=torch.float64).unflatten(0, output.shape).flatten(0, 3)
    batched = torch.autograd.grad(function(*leaves), leaves, rows.view(-1, *output.shape), is_grads_batched=True)
    for ours in (
        torch.func.jacrev(function, positions)(*tensors),
        torch.func.jacrev(function, positions, chunk_size=1)(*tensors),
        [jacobian.view(*output.shape, *tensor.shape) for jacobian, tensor in zip(batched, tensors)],
    ):
        for jacobian, other in zip(ours, expected):
            torch.testing.assert_close(jacobian, other)
    result, pull_back = torch.func.vjp(function, *tensors)
    torch.testing.assert_close(result, output)
    for gradient, jacobian in zip(pull_back(torch.ones_like(output)), expected):
        torch.testing.assert_close(gradient, jacobian.sum(dim=(0, 1, 2, 3)))


@pytest.mark.kernels_ci
@pytest.mark.parametrize("in_dims", [(0, 0, 0), (None, 0, 0, 0), (0, None, None, None), (2, 1, 4, -1)], ids=str)
def test_func_vmap(kernel, device, in_dims):
    """What a loop computes, forward and backward, with the derivative inside and outside of `vmap`."""
    arguments = random_arguments(device=device, gate=len(in_dims) == 4, batch_size=6)
    function, tensors = with_numbers(kernel.dcnv3, arguments)
    tensors = [t.unflatten(0, (3, 2)) if dim is not None else t[:2] for t, dim in zip(tensors, in_dims)]
    mapped = [t if dim is None else t.movedim(0, dim) for t, dim in zip(tensors, in_dims)]
    each = [[t if dim is None else t[i] for t, dim in zip(tensors, in_dims)] for i in range(3)]
    output = torch.func.vmap(function, in_dims)(*mapped)
    torch.testing.assert_close(output, torch.stack([function(*some) for some in each]), rtol=0, atol=0)
    if None not in in_dims:
        compiled = torch.compile(torch.func.vmap(function, in_dims), fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(*mapped), output, rtol=0, atol=0)

    def loss(*tensors):
        return function(*tensors).square().sum()

    positions = tuple(range(len(tensors)))
    gradients = torch.func.vmap(torch.func.grad(loss, positions), in_dims)(*mapped)
    for i, some in enumerate(each):
        leaves = [t.clone().requires_grad_() for t in some]
        loss(*leaves).backward()
        for gradient, leaf in zip(gradients, leaves):
            torch.testing.assert_close(gradient[i], leaf.grad)
    outside = torch.func.grad(lambda *mapped: torch.func.vmap(loss, in_dims)(*mapped).sum(), positions)(*mapped)
    for gradient, whole, dim in zip(gradients, outside, in_dims):
        torch.testing.assert_close(whole, gradient.sum(0) if dim is None else gradient.movedim(0, dim))


@pytest.mark.kernels_ci
def test_func_per_sample_gradients(kernel, device):
    """`functional_call` under `grad` under `vmap`, for every parameter of a block."""
    block = Block(kernel.layers.DCNv3()).to(device)
    parameters = {name: parameter.detach() for name, parameter in block.named_parameters()}
    images = torch.randn(3, 5, 6, 32, device=device)

    def loss(parameters, image):
        return torch.func.functional_call(block, parameters, image[None]).square().mean()

    gradients = torch.func.vmap(torch.func.grad(loss), (None, 0))(parameters, images)
    for i, image in enumerate(images):
        block.zero_grad()
        block(image[None]).square().mean().backward()
        for name, parameter in block.named_parameters():
            torch.testing.assert_close(gradients[name][i], parameter.grad)


@pytest.mark.kernels_ci
@pytest.mark.parametrize("transform", ["jvp", "jacfwd", "hessian", "jvp of vjp", "dual", "dual with gradient"])
def test_forward_mode_is_refused(kernel, device, transform):
    """Never a tangent that is silently zero."""
    function, (value, *rest) = with_numbers(kernel.dcnv3, random_arguments(device=device, **SMALL))

    def of_value(value):
        return function(value, *rest)

    with pytest.raises(NotImplementedError, match="no forward-mode derivative"):
        if transform == "jvp":
            torch.func.jvp(of_value, (value,), (value,))
        elif transform == "jacfwd":
            torch.func.jacfwd(of_value)(value)
        elif transform == "hessian":
            torch.func.hessian(lambda value: of_value(value).sum())(value)
        elif transform == "jvp of vjp":
            output, pull_back = torch.func.vjp(of_value, value)
            torch.func.jvp(pull_back, (output,), (output,))
        else:
            with torch.autograd.forward_ad.dual_level():
                value = value.clone().requires_grad_(transform == "dual with gradient")
                of_value(torch.autograd.forward_ad.make_dual(value, torch.ones_like(value)))


def test_fuzz(kernel, device):
    """Random arguments, also hostile ones, are computed rightly or refused with a sentence. A crash is a failure."""
    command = [sys.executable, Path(__file__).parent / "fuzz_ops.py", "--device", device, "--count", "100"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]


@pytest.mark.kernels_ci
def test_repeatable(kernel, device):
    """Twice the same, bit for bit, on a CPU with any number of threads. (On CUDA not the gradient of `value`.)"""
    arguments = random_arguments(device=device, height=17, width=15, num_groups=4, group_channels=16, gate=True)
    expected = results(kernel.dcnv3, arguments)
    threads = torch.get_num_threads()
    try:
        for number in (1, 2, 3):
            torch.set_num_threads(number)
            for name, result in results(kernel.dcnv3, converted(arguments, torch.float32)).items():
                if device == "cpu" or name != "value":
                    assert torch.equal(result, expected[name]), name
    finally:
        torch.set_num_threads(threads)


def test_deterministic_algorithms(kernel, device):
    arguments = random_arguments(device=device)
    torch.use_deterministic_algorithms(True)
    try:
        output = kernel.dcnv3(*arguments)
        if device == "cuda":
            with pytest.raises(RuntimeError, match="does not have a deterministic implementation"):
                output.sum().backward()
            torch.use_deterministic_algorithms(True, warn_only=True)
            with pytest.warns(UserWarning, match="does not have a deterministic implementation"):
                kernel.dcnv3(*arguments).sum().backward()
        else:
            output.sum().backward()
    finally:
        torch.use_deterministic_algorithms(False)


class Block(torch.nn.Module):
    """The layer between projections, as the model has it."""

    def __init__(self, layer):
        super().__init__()
        torch.manual_seed(0)
        self.layer = layer
        self.value_proj = torch.nn.Linear(32, 32)
        self.rest_proj = torch.nn.Linear(32, 2 * 9 * 3 + 2)

    def forward(self, hidden_states):
        offset, mask, gate = self.rest_proj(hidden_states).split([36, 18, 2], dim=-1)
        return self.layer(self.value_proj(hidden_states), offset, mask, gate, 3, 1, 1, 1, 2, 1.0, False, True)


@pytest.mark.kernels_ci
@pytest.mark.parametrize("dynamic", [False, True])
def test_compile(kernel, device, dynamic):
    """One graph, compiled once."""
    torch.compiler.reset()
    block = Block(kernel.layers.DCNv3()).to(device)
    compiled = torch.compile(block, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    stance = "default"
    for shape in [(2, 5, 6, 32), (3, 7, 4, 32) if dynamic else (2, 5, 6, 32)]:
        hidden_states = torch.randn(shape, device=device)
        with torch.compiler.set_stance(stance):
            output = compiled(hidden_states)
        expected = block(hidden_states)
        torch.testing.assert_close(output, expected)
        gradients, expected_gradients = (
            torch.autograd.grad(result.sum(), list(block.parameters())) for result in (output, expected)
        )
        torch.testing.assert_close(gradients, expected_gradients)
        stance = "fail_on_recompile"


def test_compile_refuses(kernel, device):
    """A wrong shape is found while compiling."""
    torch.compiler.reset()
    arguments = refusal_arguments({"mask": (2, 5, 6, 17)}, device)
    with pytest.raises(Exception, match="`mask` must have shape"):
        torch.compile(kernel.dcnv3, fullgraph=True, backend="aot_eager")(**arguments)


@pytest.mark.kernels_ci
@pytest.mark.parametrize("strict", [False, True])
def test_export(kernel, device, strict):
    block = Block(kernel.layers.DCNv3()).to(device).eval()
    shapes = {"hidden_states": {0: torch.export.Dim("batch_size", min=1, max=64)}}
    example = torch.randn(2, 5, 6, 32, device=device)
    program = torch.export.export(block, (example,), dynamic_shapes=shapes, strict=strict)
    assert any("dcnv3_forward" in str(node.target) for node in program.graph.nodes)
    for batch_size in (1, 2, 5):
        hidden_states = torch.randn(batch_size, 5, 6, 32, device=device)
        torch.testing.assert_close(program.module()(hidden_states), block(hidden_states))


@pytest.mark.kernels_ci
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast(kernel, device, dtype):
    """As the reference between the same projections: the output has the dtype of `value`, parameters keep theirs."""
    hidden_states = torch.randn(2, 5, 6, 32, device=device)
    outputs, gradients = [], []
    for layer in (reference_dcnv3, kernel.layers.DCNv3()):
        block = Block(layer).to(device)
        with torch.autocast(device, dtype):
            output = block(hidden_states)
        output.float().square().sum().backward()
        outputs.append(output)
        gradients.append([parameter.grad for parameter in block.parameters()])
    assert outputs[0].dtype == outputs[1].dtype == dtype
    torch.testing.assert_close(outputs[1], outputs[0])
    for gradient, expected in zip(gradients[1], gradients[0]):
        assert gradient.dtype == torch.float32
        torch.testing.assert_close(gradient, expected, rtol=0.05, atol=0.05 * expected.abs().max().item())


@pytest.mark.kernels_ci
@pytest.mark.parametrize("widest", range(4))
def test_mixed_dtypes(kernel, device, widest):
    """No number is rounded on the way in; the output has the dtype of `value`, each gradient that of its tensor."""
    arguments = list(random_arguments(torch.bfloat16, device, gate=True))
    arguments[widest] = arguments[widest].detach().float().mul(1.001).requires_grad_()
    output = kernel.dcnv3(*arguments)
    assert output.dtype == arguments[0].dtype
    output.float().sum().backward()
    exact = converted(arguments, torch.float32)
    exact_output = kernel.dcnv3(*exact)
    exact_output.sum().backward()
    torch.testing.assert_close(output, exact_output.to(output.dtype))
    for argument, other in zip(arguments[:4], exact[:4]):
        assert argument.grad.dtype == argument.dtype
        torch.testing.assert_close(argument.grad.float(), other.grad, rtol=2e-2, atol=2e-2)


def test_meta(kernel):
    """Shapes without data."""
    assert kernel.dcnv3(*random_arguments(device="meta", stride=2, height=9)).shape == (2, 5, 3, 6)


def test_cuda_graph(kernel, device):
    if device != "cuda":
        pytest.skip("CUDA graphs need CUDA")
    arguments = [a.detach() if isinstance(a, torch.Tensor) else a for a in random_arguments(device=device, gate=True)]
    kernel.dcnv3(*arguments)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = kernel.dcnv3(*arguments)
    arguments[0].normal_()
    graph.replay()
    torch.cuda.synchronize()
    torch.testing.assert_close(output, kernel.dcnv3(*arguments))


def test_other_devices_and_streams(kernel, device):
    if device != "cuda":
        pytest.skip("needs CUDA")
    for index in range(torch.cuda.device_count()):
        arguments = random_arguments(device=f"cuda:{index}", gate=True)
        stream = torch.cuda.Stream(index)
        stream.wait_stream(torch.cuda.current_stream(index))
        with torch.cuda.stream(stream):
            check_against_reference(kernel.dcnv3, arguments)


@pytest.mark.kernels_ci
def test_layer_is_a_drop_in(kernel):
    """`kernels` takes only a layer without constructor and state, with the arguments of the layer it replaces."""
    layer = kernel.layers.DCNv3
    names = list(inspect.signature(reference_dcnv3).parameters)
    assert list(inspect.signature(kernel.dcnv3).parameters) == names
    assert list(inspect.signature(layer.forward).parameters) == ["self", *names]
    assert layer.__init__ is torch.nn.Module.__init__ and layer.has_backward and layer.can_torch_compile
    assert not layer().state_dict()
