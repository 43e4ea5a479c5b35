# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""The feed-forward network with gradients, against PyTorch. Whole models are in test_end_to_end.py."""

import copy
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn.functional import gelu


@pytest.fixture
def training(kernel, device, monkeypatch):
    """The kernel's module `training`, which takes 5 pixels at a time."""
    if device == "cuda":
        pytest.skip("the fused operators are for CPUs")
    monkeypatch.setattr(kernel.training, "_PIXELS_PER_THREAD", 1)
    monkeypatch.setattr(kernel.training, "_MIN_PIXELS", 5)
    return kernel.training


def assert_as_exact(tensors, own, exact):
    """Errors against float64 are at most twice those of PyTorch."""
    for tensor, by_torch, expected in zip(tensors, own, exact, strict=True):
        assert tensor.shape == expected.shape and tensor.dtype == by_torch.dtype
        if tensor.dtype == torch.float64:
            torch.testing.assert_close(tensor, expected, rtol=1e-12, atol=1e-12)
            continue
        error, allowed = ((each.double() - expected).abs() for each in (tensor, by_torch))
        unit = torch.finfo(tensor.dtype).eps * expected.abs().max()
        assert error.max() <= 2 * allowed.max() + unit
        assert error.mean() <= 2 * allowed.mean() + unit / 8


def gelu_by_torch(hidden_states, bias, grad_output):
    hidden_states = (hidden_states if bias is None else hidden_states + bias).requires_grad_()
    output = gelu(hidden_states)
    return output.detach(), torch.autograd.grad(output, hidden_states, grad_output)[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("rows, channels", [(1, 1), (3, 37), (70, 64), (300, 129)])
@pytest.mark.parametrize("with_bias", [False, True])
def test_gelu(training, rows, channels, with_bias, dtype):
    torch.manual_seed(0)
    hidden_states, grad_output = 3 * torch.randn(rows, channels), torch.randn(rows, channels)
    bias = torch.randn(channels) if with_bias else None
    arguments = [None if each is None else each.to(dtype) for each in (hidden_states, bias, grad_output)]
    exact = gelu_by_torch(*(None if each is None else each.double() for each in arguments))
    results = training.ops.internimage_gelu(*arguments)
    assert_as_exact(results, gelu_by_torch(*arguments), exact)
    without_gradient, empty = training.ops.internimage_gelu(*arguments[:2], None)
    assert torch.equal(without_gradient, results[0]) and empty.shape == (0, channels)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_gelu_of_extremes(training, dtype):
    numbers = torch.tensor([[-1e30, -20.0, -0.0, 0.0, 20.0, 1e30, torch.nan]], dtype=dtype)
    output, gradient = training.ops.internimage_gelu(numbers, None, torch.ones_like(numbers))
    torch.testing.assert_close(output, gelu(numbers), rtol=0, atol=1e-20, equal_nan=True)
    expected = torch.tensor([[0, 0, 0.5, 0.5, 1, 1, torch.nan]], dtype=dtype)
    torch.testing.assert_close(gradient, expected, rtol=0, atol=1e-7, equal_nan=True)


def test_bad_arguments(training):
    hidden_states = torch.zeros(3, 4)
    for arguments, message in [
        ((hidden_states[0], None, None), r"`hidden_states` must have shape \(rows, channels\), got \(4\)."),
        ((hidden_states.int(), None, None), "`hidden_states` must have dtype float32, float64, float16 or bfloat16."),
        ((hidden_states, torch.zeros(3), None), r"`bias` must have shape \(4\), got \(3\)."),
        ((hidden_states, None, torch.zeros(2, 4)), r"`grad_output` must have shape \(3, 4\), got \(2, 4\)."),
    ]:
        with pytest.raises(RuntimeError, match=message):
            training.ops.internimage_gelu(*arguments)


class MLP(nn.Module):
    """As `InternImageMLP`, without its activation and dropout, which `training.mlp` does not read."""

    def __init__(self, channels=6, hidden_channels=19, with_bias=True):
        super().__init__()
        torch.manual_seed(0)
        self.fc1 = nn.Linear(channels, hidden_channels, bias=with_bias)
        self.fc2 = nn.Linear(hidden_channels, channels, bias=with_bias)

    def forward(self, hidden_states):
        return self.fc2(gelu(self.fc1(hidden_states)))


def gradients(function, mlp, hidden_states, grad_output):
    """The output, and gradients of `hidden_states` and of every parameter that has one."""
    hidden_states = hidden_states.detach().requires_grad_()
    output = function(hidden_states)
    inputs = [hidden_states, *(parameter for parameter in mlp.parameters() if parameter.requires_grad)]
    return [output.detach(), *torch.autograd.grad(output, inputs, grad_output)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("pixels", [(1, 1, 1), (2, 3, 7), (3, 20, 20)], ids=str)
def test_mlp(training, pixels, with_bias, dtype):
    mlp = MLP(32, 128, with_bias).to(dtype)
    exact_mlp = copy.deepcopy(mlp).double()
    hidden_states, grad_output = torch.randn(2, *pixels, 32, dtype=dtype)
    exact = gradients(exact_mlp, exact_mlp, hidden_states.double(), grad_output.double())
    own = gradients(mlp, mlp, hidden_states, grad_output)
    assert_as_exact(gradients(lambda x: training.mlp(mlp, x), mlp, hidden_states, grad_output), own, exact)


def test_gradcheck(training):
    mlp = MLP().double()
    hidden_states = torch.randn(1, 3, 4, 6, dtype=torch.float64, requires_grad=True)
    parameters = [parameter.detach().requires_grad_() for parameter in mlp.parameters()]

    def function(hidden_states, *parameters):
        fc1, fc2 = (SimpleNamespace(weight=weight, bias=bias) for weight, bias in zip(*[iter(parameters)] * 2))
        return training.mlp(SimpleNamespace(fc1=fc1, fc2=fc2), hidden_states)

    assert torch.autograd.gradcheck(function, (hidden_states, *parameters))


@pytest.mark.parametrize(
    "frozen", [["fc1.weight"], ["fc1.bias", "fc2.weight"], ["fc1.weight", "fc1.bias"], ["fc2.bias"]]
)
@pytest.mark.parametrize("needs_input", [False, True])
def test_frozen_parameters(training, frozen, needs_input):
    mlp = MLP()
    for name, parameter in mlp.named_parameters():
        parameter.requires_grad_(name not in frozen)
    hidden_states = torch.randn(1, 3, 4, 6, requires_grad=needs_input)
    results = []
    for function in (mlp, lambda hidden_states: training.mlp(mlp, hidden_states)):
        hidden_states.grad = None
        mlp.zero_grad()
        function(hidden_states).square().sum().backward()
        results.append({"input": hidden_states.grad} | {name: each.grad for name, each in mlp.named_parameters()})
    assert {name for name, gradient in results[1].items() if gradient is None} == {
        *frozen,
        *(() if needs_input else ("input",)),
    }
    for name, gradient in results[0].items():
        torch.testing.assert_close(results[1][name], gradient, msg=name)


@pytest.mark.parametrize("empty", [False, True])
def test_strides_and_nothing(training, empty):
    mlp = MLP()
    hidden_states = torch.randn(6, 3, 4, 2 * (not empty)).permute(3, 1, 2, 0)
    for grad_output in (torch.ones(()).expand(hidden_states.shape), torch.randn_like(hidden_states)):
        own = gradients(mlp, mlp, hidden_states, grad_output)
        for result, expected in zip(
            gradients(lambda x: training.mlp(mlp, x), mlp, hidden_states, grad_output), own, strict=True
        ):
            torch.testing.assert_close(result, expected)


def test_used_twice(training):
    """In one graph, which may be run backward again; its gradient has no derivative."""
    mlp = MLP()
    hidden_states = torch.randn(1, 3, 4, 6, requires_grad=True)
    results = []
    for function in (mlp, lambda hidden_states: training.mlp(mlp, hidden_states)):
        mlp.zero_grad()
        loss = function(function(hidden_states)).square().sum()
        loss.backward(retain_graph=True)
        loss.backward()
        results.append([parameter.grad.clone() for parameter in mlp.parameters()])
    torch.testing.assert_close(results[1], results[0])
    for parameter in mlp.parameters():
        parameter.requires_grad_(False)
    gradient = torch.autograd.grad(training.mlp(mlp, hidden_states).sum(), hidden_states, create_graph=True)[0]
    with pytest.raises(NotImplementedError, match="only once"):
        gradient.sum().backward()


def kept_numbers(function, hidden_states):
    """How many numbers autograd keeps for the backward pass of a function."""
    sizes = {}

    def keep(tensor):
        sizes[tensor.data_ptr()] = tensor.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = function(hidden_states)
    assert output.requires_grad
    return sum(sizes.values())


def test_memory(training):
    """The output of GELU is not kept."""
    mlp, hidden_states = MLP(32, 128), torch.randn(1, 20, 20, 32, requires_grad=True)
    kept = kept_numbers(lambda hidden_states: training.mlp(mlp, hidden_states), hidden_states)
    assert kept <= kept_numbers(mlp, hidden_states) - 128 * 20 * 20 + 128  # and the bias is
