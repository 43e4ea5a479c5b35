# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""
Calls the operator with random arguments, many of them hostile: each call gives what the reference gives in float64,
or an error with a sentence. test_ops.py runs a hundred calls; more:

    python fuzz_ops.py --count 10000 --seed 1
"""

import argparse
import math
import random
import resource

import conftest  # noqa: F401 (where `kernels` finds the build)
import torch
from dcnv3_cases import check_against_reference, random_arguments
from kernels import get_kernel


NUMBERS = [-(2**63), -(2**31), -1, 0, 1, 2, 3, 4, 7, 8, 2**30, 2**31 - 1, 2**31, 2**62, 2**63, 1.0, "3", None]
SCALES = [0.0, -1.5, 1e-300, 1e9, 2.0**31, 1e300, math.nan, math.inf, "1", None]
DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]
OTHER_DTYPES = [torch.int64, torch.bool, torch.complex64, torch.float8_e4m3fn]
CONTENTS = [math.nan, math.inf, -math.inf, 1e30, -1e9, 2.0**31]


def geometry(rng):
    kernel_size = rng.choice([1, 2, 3, 3, 3, 5, 7])
    dilation = rng.choice([1, 1, 2, 3, (2**31 - 64) // 6])
    padding = max(0, dilation * (kernel_size - 1) // 2 + rng.choice([0, 0, 0, -1, 1]))
    smallest = max(0, dilation * (kernel_size - 1) + 1 - 2 * padding)
    stride = rng.choice([1, 1, 2, 3, 2**31 - 1])
    return {
        "batch_size": rng.choice([0, 1, 2, 3]),
        "height": smallest + rng.randrange(7),
        "width": smallest + rng.randrange(7),
        "num_groups": rng.randint(1, 4),
        "group_channels": rng.choice([1, 3, 8, 16, 17, 40]),
        "kernel_size": kernel_size,
        "stride": stride,
        "padding": padding,
        "dilation": dilation,
        "remove_center": kernel_size in (3, 5, 7) and rng.random() < 0.3,
        "gate": rng.random() < 0.3,  # refused where the size changes
        "softmax": rng.random() < 0.7,
        "offset_scale": rng.choice([0.0, 0.5, 1.0, 2.0, -1.0]),
        "spread": rng.choice([0.5, 3.0, 50.0]),
        "seed": rng.randrange(1000),
    }


def spoiled(tensor, rng):
    """Something else in the place of a tensor."""
    change = rng.randrange(9)
    if tensor is None or change == 0:
        return rng.choice([None, 1.0, [1.0]])
    tensor = tensor.detach()
    if change == 1:
        return tensor.to(rng.choice(DTYPES + OTHER_DTYPES))
    if change == 2:
        return tensor.to("meta")
    if change == 3:
        return tensor.flatten(0, rng.randint(0, 2))
    if change == 4:
        return tensor.narrow(rng.randrange(4), 0, 0)
    if change == 5:
        dim, size = rng.randrange(4), rng.choice([1, 2, 5, 2**31, 2**40])
        return tensor.new_ones(()).expand(*tensor.shape[:dim], size, *tensor.shape[dim + 1 :])
    if change == 6:
        return tensor.to_sparse() if tensor.device.type == "cpu" else tensor[..., None]
    if tensor.numel():
        tensor = tensor.clone(memory_format=torch.contiguous_format)
        tensor.view(-1)[rng.randrange(tensor.numel())] = rng.choice(CONTENTS)
    return tensor


def relaid(tensor, rng):
    """The same numbers in another memory layout."""
    first, second = rng.sample(range(4), 2)
    tensor = tensor.detach().transpose(first, second).contiguous().transpose(first, second)
    return tensor.requires_grad_()


def is_plain(arguments):
    tensors = [argument for argument in arguments[:4] if argument is not None]
    flags = all(isinstance(argument, bool) for argument in arguments[10:])  # torch takes numbers, too
    same = all(tensor.dtype == tensors[0].dtype and tensor.isfinite().all() for tensor in tensors)
    # Tolerances are for ordinary numbers, but offsets may be any.
    ordinary = all(tensor.abs().max() < 1000 for tensor in tensors if tensor is not arguments[1])
    return flags and same and ordinary and abs(arguments[9]) <= 2


def call(kernel, rng, device):
    dtype = rng.choice(DTYPES)
    arguments = list(random_arguments(dtype, device, **geometry(rng)))
    for i in range(4):
        if arguments[i] is not None and rng.random() < 0.2:
            arguments[i] = relaid(arguments[i], rng)
    for i in rng.sample(range(12), rng.choice([0, 0, 1, 1, 2])):
        arguments[i] = spoiled(arguments[i], rng) if i < 4 else rng.choice(SCALES if i == 9 else NUMBERS)

    def result(function, *arguments):
        try:
            return function(*arguments)
        except (RuntimeError, TypeError, ValueError) as error:
            assert len(str(error).split()) > 4, repr(error)

    output = result(kernel.dcnv3, *arguments)
    grad_output = spoiled(torch.ones(2, 5, 6, 8, dtype=dtype) if output is None else output, rng)
    result(kernel._ops.ops.dcnv3_backward, grad_output, *arguments)
    if output is None or output.device.type == "meta":
        return False
    if output.requires_grad:
        output.sum().backward()
    if arguments[0].numel() == 0:
        assert not output.any()
        assert all(t.grad is None or not t.grad.any() for t in arguments[:4] if t is not None)
    elif is_plain(arguments):
        arguments[:4] = [t if t is None else t.detach().contiguous().requires_grad_() for t in arguments[:4]]
        check_against_reference(kernel.dcnv3, arguments)
        assert torch.equal(output, kernel.dcnv3(*arguments))
    return True


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if options.device == "cpu":
        resource.setrlimit(resource.RLIMIT_AS, (16 * 2**30,) * 2)
    kernel = get_kernel("kernels-community/dcnv3", version=1, backend=options.device)
    accepted = 0
    for number in range(options.seed * options.count, (options.seed + 1) * options.count):
        print(f"call {number}", flush=True)  # the last line is the call to look at
        accepted += call(kernel, random.Random(number), options.device)
    print(f"{accepted} of {options.count} accepted")
    assert accepted > options.count / 4


if __name__ == "__main__":
    main()
