# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""Arguments for the operator, numbers of the original code, and the comparison with the reference."""

import json
import math
import zlib

import numpy as np
import torch
from golden_cases import GOLDEN, TOLERANCES, golden_cases, golden_error, load_golden, split_offset_mask
from reference_dcnv3 import reference_dcnv3


NAMES = ("value", "offset", "mask", "center_scale")
GOLDEN_CASES = golden_cases()
LAYER_CASES = json.loads((GOLDEN / "dcnv4" / "layer.json").read_text())

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
    **{
        f"d{group_channels}_raw_mask": {"group_channels": group_channels, "num_groups": 3, "softmax": False}
        for group_channels in (1, 3, 5, 7, 13, 16, 24)
    },
    "stage4": {"batch_size": 1, "height": 7, "width": 7, "num_groups": 32, "group_channels": 16, "offset_scale": 1.0},
}  # fmt: skip

# In the first four, stages of FlashInternImage-T and B at 224x224, the original DCNv4 operator computes some pixels
# from the wrong image: it takes all pixels of a block for pixels of the same image.
BATCHES = {
    "T stage 2": {"batch_size": 2, "height": 28, "width": 28, "num_groups": 8, "group_channels": 16},
    "T stage 3": {"batch_size": 4, "height": 14, "width": 14, "num_groups": 16, "group_channels": 16},
    "T stage 4": {"batch_size": 8, "height": 7, "width": 7, "num_groups": 32, "group_channels": 16},
    "B stage 4": {"batch_size": 3, "height": 7, "width": 7, "num_groups": 56, "group_channels": 16},
    **{
        f"{group_channels} channels": {
            "batch_size": 3, "height": 3, "width": 5, "num_groups": 4, "group_channels": group_channels
        }
        for group_channels in (1, 3, 5, 7, 13, 24)
    },
}  # fmt: skip
BATCHES = {name: geometry | {"softmax": False} for name, geometry in BATCHES.items()}


def random_arguments(
    dtype=torch.float32, device="cpu", seed=0, batch_size=2, height=5, width=6, num_groups=2, group_channels=3,
    kernel_size=3, stride=1, padding=1, dilation=1, remove_center=False, gate=False, softmax=True, offset_scale=1.5,
    spread=1.0,
):  # fmt: skip
    """Arguments of `dcnv3`, in order, the tensors with gradients."""
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


def check_against_reference(function, arguments):
    """
    Compares `function` with the reference in float64. The allowed error is twice that of the reference in the dtype of
    the arguments, three times for gradients; where that happens to be exact, it is one rounding of the largest number,
    a few in float32, and a few dozen in float64, which is compared with itself.
    """
    dtype = arguments[0].dtype
    actual = results(function, arguments)
    exact = results(reference_dcnv3, converted(arguments, torch.float64, "cpu"))
    plain = results(reference_dcnv3, converted(arguments, dtype))
    for name, result in actual.items():
        assert result.dtype == dtype and result.shape == exact[name].shape, name
        factor = 2 if name == "output" else 3
        # What is added up are products of normal numbers: in the gradients of offset, mask and gate one per channel of
        # a group, in the output one per point if weights are raw. That is the scale where everything cancels.
        channels, points = arguments[0].shape[-1] // arguments[8], arguments[4] ** 2
        largest = channels**0.5 if name in NAMES[1:] else 1.0 if arguments[11] else points**0.5
        largest = max(largest, exact[name].abs().max().item()) if exact[name].numel() else 0.0
        rounding = {torch.float64: 64, torch.float32: 4}.get(dtype, 1) * torch.finfo(dtype).eps
        allowed = factor * error(plain[name], exact[name]) + rounding * largest
        assert error(result, exact[name]) <= allowed, (name, error(result, exact[name]), allowed, largest)


def check_images_alone(function, arguments, exact_sums):
    """
    An image of a batch has the output and the gradients that it has alone, bit for bit. Without `exact_sums`, the
    gradient of `value` may be added up in another order.
    """
    batch = results(function, arguments)
    cotangent = cotangent_of(batch["output"])
    for index in range(arguments[0].shape[0]):
        tensors = [tensor.detach()[index : index + 1].requires_grad_() for tensor in arguments[:3]]
        output = function(*tensors, *arguments[3:])
        gradients = torch.autograd.grad(output, tensors, cotangent[index : index + 1])
        for name, alone in zip(("output", *NAMES), (output, *gradients)):
            if exact_sums or name != "value":
                assert torch.equal(batch[name][index : index + 1], alone), (index, name)
            else:
                torch.testing.assert_close(batch[name][index : index + 1], alone)


def check_golden(function, name, dtype=torch.float32, device="cpu"):
    """Output and gradients of one case are those of the original code."""
    arguments, cotangent, expected = load_golden(GOLDEN_CASES[name], name, dtype, device)
    output = function(*arguments)
    output.backward(cotangent)
    actual = {"output": output, "value": arguments[0].grad, "offset": arguments[1].grad, "mask": arguments[2].grad}
    errors = {key: golden_error(tensor, expected[key]) for key, tensor in actual.items()}
    assert max(errors.values()) <= TOLERANCES[dtype], errors


def seeded_tensor(key, shape, seed):
    """The weights that the original layer had: they depend on nothing but name, shape and seed."""
    noise = np.random.Generator(np.random.PCG64([seed, zlib.crc32(key.encode())])).standard_normal(shape, np.float32)
    scale = 1 / math.sqrt(math.prod(shape[1:])) if len(shape) > 1 else 0.1
    return noise * np.float32(scale) * np.float32(1 / 16 if key.startswith("offset_mask.") else 1)


def dcnv4_layer(function, parameters, hidden_states, settings):
    """
    The layer of DCNv4 around `function`, with the parameters of the original. `hidden_states` is
    (batch_size, height, width, channels).
    """

    def linear(name, tensor):
        weight = parameters.get(f"{name}.weight")
        return tensor if weight is None else torch.nn.functional.linear(tensor, weight, parameters.get(f"{name}.bias"))

    value, features = linear("value_proj", hidden_states), hidden_states
    if settings["dw_kernel_size"]:
        weight, bias = parameters["offset_mask_dw.weight"], parameters["offset_mask_dw.bias"]
        features = torch.nn.functional.conv2d(
            features.permute(0, 3, 1, 2), weight, bias, padding=weight.shape[-1] // 2, groups=weight.shape[0]
        ).permute(0, 2, 3, 1)
    num_groups, kernel_size = settings["group"], settings["kernel_size"]
    offset, mask = split_offset_mask(
        linear("offset_mask", features), num_groups, kernel_size**2 - settings["remove_center"]
    )
    output = function(
        value, offset, mask, None, kernel_size, settings["stride"], settings["pad"], settings["dilation"], num_groups,
        settings["offset_scale"], settings["remove_center"], False,
    )  # fmt: skip
    if settings["center_feature_scale"]:  # unlike that of DCNv3, the gate depends on the output
        gate = torch.nn.functional.linear(
            output, parameters["center_feature_scale_proj_weight"], parameters["center_feature_scale_proj_bias"]
        )
        gate = gate.sigmoid().repeat_interleave(output.shape[-1] // num_groups, dim=-1)
        output = torch.lerp(output, value, gate)
    return linear("output_proj", output)


def check_layer(function, name, dtype=torch.float32, device="cpu"):
    """Output and gradients of a layer of DCNv4, also those of every parameter, are those of the original code."""
    case = LAYER_CASES[name]
    batch_size, height, width = case["batch"], case["height"], case["width"]
    channels = case["module"]["channels"]

    def normal(*seed):
        noise = np.random.Generator(np.random.PCG64(seed)).standard_normal(
            (batch_size, height * width, channels), dtype=np.float32
        )
        return torch.from_numpy(noise).to(device, dtype).unflatten(1, (height, width))

    with np.load(GOLDEN / "dcnv4" / "layer.npz") as arrays:
        golden = {
            key.removeprefix(f"{name}."): torch.from_numpy(arrays[key]).to(device, dtype)
            for key in arrays
            if key.startswith(f"{name}.")
        }
    parameters = {
        key: torch.from_numpy(seeded_tensor(key, shape, case["weights_seed"])).to(device, dtype).requires_grad_()
        for key, shape in case["keys"].items()
    }
    hidden_states = normal(case["input_seed"], 12345).requires_grad_()
    output = dcnv4_layer(function, parameters, hidden_states, case["module"])
    output.backward(normal(case["cotangent_seed"], 54321))
    actual = {"output": output.flatten(1, 2), "grad_input": hidden_states.grad.flatten(1, 2)}
    actual |= {f"grad.{key}": parameter.grad for key, parameter in parameters.items()}
    assert actual.keys() == golden.keys()
    errors = {key: golden_error(tensor, [golden[key]]) for key, tensor in actual.items()}
    assert max(errors.values()) <= TOLERANCES[dtype], errors
