# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""The operators, through `kernels`, against the model's PyTorch definition and the original's numbers."""

import inspect
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from dcnv3_cases import NAMES, check_against_definition, converted, cotangent_of, random_arguments, results
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from modeling_internimage import DCNv3


GOLDEN = Path(__file__).resolve().parents[3] / "tests" / "fixtures" / "golden" / "dcnv3"
CASES = json.loads((GOLDEN / "op.json").read_text())

GEOMETRIES = {
    "basic": {},
    "gate": {"gate": True},
    "raw_mask": {"softmax": False},
    "raw_mask_gate": {"softmax": False, "gate": True},
    "stride2": {"stride": 2, "height": 9, "width": 7},
    "stride3_dilation2": {"stride": 3, "dilation": 2, "height": 11, "width": 8},
    "remove_center": {"remove_center": True, "gate": True},
    "remove_center_k5": {"kernel_size": 5, "padding": 2, "remove_center": True, "stride": 2, "dilation": 2},
    "pad0": {"padding": 0},
    "pad3": {"padding": 3},
    "one_row": {"height": 1, "width": 9, "gate": True},
    "one_column": {"height": 9, "width": 1},
    "one_pixel": {"height": 1, "width": 1, "gate": True},
    "far": {"spread": 8.0, "gate": True},
    "scale": {"offset_scale": 0.25},
    "zero_offsets": {"spread": 0.0, "offset_scale": 1.0},
    **{
        f"k{kernel_size}": {"kernel_size": kernel_size, "padding": kernel_size // 2, "height": 8, "width": 7}
        for kernel_size in range(1, 8)
    },
    **{
        f"d{group_channels}": {"group_channels": group_channels, "num_groups": num_groups, "gate": True}
        for group_channels, num_groups in
        ((1, 4), (3, 3), (5, 2), (8, 4), (16, 4), (17, 1), (32, 2), (64, 2), (256, 1))
    },
    "stage": {"height": 14, "width": 14, "num_groups": 16, "group_channels": 16, "offset_scale": 1.0},
}  # fmt: skip


def skip_unsupported(dtype, device):
    if dtype == torch.float64 and device == "cuda":
        pytest.skip("float64 is a CPU dtype")


@pytest.mark.kernels_ci
@pytest.mark.parametrize("name", CASES)
def test_golden(kernel, device, name):
    case = CASES[name]
    with np.load(GOLDEN / "op.npz") as arrays:
        array = {
            key.split(".")[1]: torch.from_numpy(arrays[key]).to(device) for key in arrays if key.startswith(name + ".")
        }
    value, offset, mask = (array[key].requires_grad_() for key in ("input", "offset", "mask"))
    output = kernel.dcnv3(
        value, offset, mask, None, case["kernel"], case["stride"], case["pad"], case["dilation"], case["group"],
        case["offset_scale"], bool(case["remove_center"]), softmax=False,
    )  # fmt: skip
    output.backward(array["cotangent"])
    torch.testing.assert_close(output, array["output"], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(value.grad, array["grad_input"], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(mask.grad, array["grad_mask"], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(offset.grad, array["grad_offset"], rtol=1e-4, atol=1e-4)


@pytest.mark.kernels_ci
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_parity(kernel, device, geometry, dtype):
    skip_unsupported(dtype, device)
    check_against_definition(kernel.dcnv3, random_arguments(dtype, device, **GEOMETRIES[geometry]))


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


@settings(max_examples=80, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(geometry=geometries())
def test_random_arguments(kernel, device, geometry):
    check_against_definition(kernel.dcnv3, random_arguments(device=device, **geometry))


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
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64], ids=str)
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
@pytest.mark.parametrize("gate", [False, True])
def test_empty_batch(kernel, device, gate):
    arguments = random_arguments(device=device, batch_size=0, gate=gate)
    output = kernel.dcnv3(*arguments)
    output.sum().backward()
    assert output.shape == (0, 5, 6, 6) and arguments[1].grad.shape == arguments[1].shape


@pytest.mark.kernels_ci
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("group_channels", [3, 16])
@pytest.mark.parametrize("bad", [1e6, -1e6, 1e30, -1e30, float("inf"), -float("inf"), float("nan")])
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
    check_against_definition(kernel.dcnv3, arguments)


REFUSALS = [
    ({"value": (2, 5, 6)}, "`value` must have shape"),
    ({"num_groups": 4}, "`num_groups=4` does not divide"),
    ({"num_groups": 0}, "`num_groups=0`"),
    ({"kernel_size": 0}, "`kernel_size` must be between 1 and 7, got 0"),
    ({"kernel_size": 8}, "`kernel_size` must be between 1 and 7, got 8"),
    ({"stride": 0}, "`stride` must be at least 1"),
    ({"dilation": 0}, "`dilation` must be at least 1"),
    ({"padding": -1}, "`padding` must not be negative"),
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
    arguments = dict(
        zip(inspect.signature(DCNv3.forward).parameters, (None, *random_arguments(device=device, gate=True)))
    )
    del arguments["self"]
    for name, other in change.items():
        arguments[name] = torch.zeros(other, device=device) if isinstance(other, tuple) else other
    return arguments


@pytest.mark.kernels_ci
@pytest.mark.parametrize("change, message", REFUSALS, ids=[message for _, message in REFUSALS])
def test_refusals(kernel, device, change, message):
    arguments = refusal_arguments(change, device)
    with pytest.raises(RuntimeError) as error:
        kernel.dcnv3(**arguments)
    assert message in str(error.value)
    # The backward operator trusts its caller no more than the forward one.
    with pytest.raises(RuntimeError) as error:
        kernel._ops.ops.dcnv3_backward(torch.zeros(2, 5, 6, 6, device=device), *arguments.values())
    assert message in str(error.value)


@pytest.mark.kernels_ci
def test_refuses_gradient_of_other_shape(kernel, device):
    arguments = random_arguments(device=device)
    for wrong in (torch.zeros(2, 5, 6, 5), torch.zeros(2, 5, 6), torch.zeros(1, 5, 6, 6)):
        with pytest.raises(RuntimeError, match="`grad_output`"):
            kernel._ops.ops.dcnv3_backward(wrong.to(device), *arguments)
    with pytest.raises(RuntimeError, match="`grad_output`"):
        kernel._ops.ops.dcnv3_backward(torch.zeros(2, 5, 6, 6, device=device, dtype=torch.float16), *arguments)


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
@pytest.mark.parametrize("dtype", [torch.int32, torch.complex64], ids=str)
def test_refuses_unsupported_dtype(kernel, device, dtype):
    arguments = [a.to(dtype) if isinstance(a, torch.Tensor) else a for a in random_arguments(device=device)]
    with pytest.raises(RuntimeError, match="`value`.*dtype|dtype.*`value`"):
        kernel.dcnv3(*arguments)


@pytest.mark.kernels_ci
@pytest.mark.parametrize("geometry", ["gate", "raw_mask", "stride2", "remove_center", "d16"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
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
    torch.library.opcheck(ops.dcnv3_forward.default, detached)
    torch.library.opcheck(ops.dcnv3_backward.default, (gradient, *detached))


@pytest.mark.parametrize(
    "geometry",
    [
        {"gate": True},
        {"softmax": False, "gate": True},
        {"kernel_size": 5, "stride": 2, "padding": 2, "dilation": 2, "remove_center": True, "height": 9, "width": 10},
        {"kernel_size": 1, "padding": 0, "stride": 3},
        {"kernel_size": 2, "padding": 1},
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
    from torch._dynamo.testing import CompileCounterWithBackend

    torch._dynamo.reset()
    block = Block(kernel.layers.DCNv3()).to(device)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(block, fullgraph=True, backend=counter, dynamic=dynamic)
    shapes = [(2, 5, 6, 32), (2, 5, 6, 32)] + ([(3, 7, 4, 32)] if dynamic else [])
    for shape in shapes:
        hidden_states = torch.randn(shape, device=device)
        expected, output = block(hidden_states), compiled(hidden_states)
        torch.testing.assert_close(output, expected)
        for parameter in block.parameters():
            parameter.grad = None
        output.sum().backward()
        gradients = [parameter.grad for parameter in block.parameters()]
        expected_gradients = torch.autograd.grad(expected.sum(), list(block.parameters()))
        for gradient, expected_gradient in zip(gradients, expected_gradients):
            torch.testing.assert_close(gradient, expected_gradient)
    assert counter.frame_count == 1


def test_compile_refuses(kernel, device):
    """A wrong shape is found while compiling."""
    torch._dynamo.reset()
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
    """As the definition between the same projections: the output has the dtype of `value`, parameters keep theirs."""
    hidden_states = torch.randn(2, 5, 6, 32, device=device)
    outputs, gradients = [], []
    for layer in (DCNv3(), kernel.layers.DCNv3()):
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


def test_fake_and_meta(kernel):
    """Shapes without data, and without a GPU those of a GPU."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    arguments = random_arguments(device="meta", stride=2, height=9)
    assert kernel.dcnv3(*arguments).shape == (2, 5, 3, 6)
    with FakeTensorMode():
        value, offset, mask, gate = (
            torch.empty(2, 5, 6, size, device="cuda", dtype=torch.float16) for size in (6, 36, 18, 2)
        )
        output = kernel.dcnv3(value, offset, mask, gate, num_groups=2)
    assert output.shape == (2, 5, 6, 6) and output.dtype == torch.float16 and output.device.type == "cuda"


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
            check_against_definition(kernel.dcnv3, arguments)


@pytest.mark.kernels_ci
def test_layer_is_a_drop_in(kernel):
    """`kernels` takes only a layer without constructor and state, with the definition's arguments."""
    layer = kernel.layers.DCNv3
    assert list(inspect.signature(layer.forward).parameters) == list(inspect.signature(DCNv3.forward).parameters)
    assert layer.__init__ is torch.nn.Module.__init__ and layer.has_backward and layer.can_torch_compile
    assert not layer().state_dict()
