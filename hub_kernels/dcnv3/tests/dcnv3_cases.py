# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""Arguments for the operator, and what to compare its results with: the PyTorch definition of the model."""

import torch

from modeling_internimage import DCNv3


NAMES = ("value", "offset", "mask", "center_scale")


def pytorch_definition() -> DCNv3:
    """With the operator that rounds positions as the kernel does: samples on pixels stay on the same side of them."""
    layer = DCNv3()
    layer.operator = "embedding_bag"
    return layer


def random_arguments(
    dtype=torch.float32, device="cpu", seed=0, batch_size=2, height=5, width=6, num_groups=2, group_channels=3,
    kernel_size=3, stride=1, padding=1, dilation=1, remove_center=False, gate=False, softmax=True, offset_scale=1.5,
    spread=1.0,
):  # fmt: skip
    """Arguments of `DCNv3.forward`, in order, the tensors with gradients."""
    generator = torch.Generator().manual_seed(seed)
    out_height, out_width = (
        (size + 2 * padding - dilation * (kernel_size - 1) - 1) // stride + 1 for size in (height, width)
    )
    points = kernel_size**2 - remove_center
    shapes = [(height, width, num_groups * group_channels), (out_height, out_width, num_groups * points * 2)]
    shapes += [(out_height, out_width, num_groups * points), (out_height, out_width, num_groups)]
    tensors = [torch.randn(batch_size, *shape, dtype=torch.float64, generator=generator) for shape in shapes]
    tensors[1] *= spread
    tensors = [tensor.to(device, dtype).requires_grad_() for tensor in tensors]
    if not gate:
        tensors[3] = None
    return (
        *tensors, kernel_size, stride, padding, dilation, num_groups, offset_scale, remove_center, softmax,
    )  # fmt: skip


def converted(arguments, dtype, device=None):
    """The same numbers in another dtype, as new leaves."""
    return tuple(
        argument.detach().to(device, dtype).requires_grad_() if isinstance(argument, torch.Tensor) else argument
        for argument in arguments
    )


def cotangent_of(output):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(output.shape, dtype=torch.float64, generator=generator).to(output.device, output.dtype)


def results(function, arguments):
    """The output and the gradients of the tensors, by name."""
    output = function(*arguments)
    output.backward(cotangent_of(output))
    named = {"output": output.detach()}
    for name, argument in zip(NAMES, arguments):
        if argument is not None:
            named[name] = argument.grad
    return named


def error(result, exact):
    """The largest deviation."""
    return (result.double().cpu() - exact).abs().max().item() if exact.numel() else 0.0


def check_against_definition(function, arguments):
    """
    The error of `function`, against the definition in float64, may be twice that of the definition in the same dtype,
    three times for gradients. Where the definition happens to be exact: one rounding of the largest number, a few
    where sums are taken in the same dtype; float64 has nothing to compare with, there it is a few dozen.
    """
    dtype = arguments[0].dtype
    actual = results(function, arguments)
    # In evaluation mode: in training mode it converts positions to [-1, 1] and back, which moves some across a pixel,
    # where the gradient of the offset jumps.
    definition = pytorch_definition()
    exact = results(definition, converted(arguments, torch.float64, "cpu"))
    plain = results(definition, converted(arguments, dtype))
    for name, result in actual.items():
        assert result.dtype == dtype and result.shape == exact[name].shape, name
        factor = 2 if name == "output" else 3
        # What is added up are products of normal numbers, in the gradients of offset, mask and gate one per channel of
        # a group: that is the scale where everything cancels (one point, softmax).
        channels = arguments[0].shape[-1] // arguments[8]
        largest = channels**0.5 if name in NAMES[1:] else 1.0
        largest = max(largest, exact[name].abs().max().item()) if exact[name].numel() else 0.0
        rounding = {torch.float64: 64, torch.float32: 4}.get(dtype, 1) * torch.finfo(dtype).eps
        allowed = factor * error(plain[name], exact[name]) + rounding * largest
        assert error(result, exact[name]) <= allowed, (name, error(result, exact[name]), allowed, largest)
