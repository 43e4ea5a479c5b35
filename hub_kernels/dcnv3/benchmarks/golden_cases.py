# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""Cases of the original DCNv3 and DCNv4 operators: arguments, and what they computed from these in float64."""

import json
from pathlib import Path

import torch


GOLDEN = Path(__file__).resolve().parents[1] / "tests" / "golden"
TOLERANCES = {torch.float64: 1e-6, torch.float32: 1e-5}  # of the largest number of a tensor; stored in float32


def golden_cases():
    """The settings of all cases, by name. DCNv4 is DCNv3 without softmax, with offsets and weights in one tensor."""
    return {
        name: case | {"file": operator}
        for operator in ("dcnv3", "dcnv4")
        for name, case in json.loads((GOLDEN / operator / "op.json").read_text()).items()
    }


def split_offset_mask(packed, num_groups, num_points):
    """
    Offset and mask as `dcnv3` takes them, from the packed tensor of DCNv4. There, every group has `3 * num_points`
    columns: the offsets, then the weights. Columns after those of the last group are unused.
    """
    groups = packed[..., : num_groups * num_points * 3].unflatten(-1, (num_groups, num_points * 3))
    offset, mask = groups.split([num_points * 2, num_points], dim=-1)
    return offset.flatten(-2), mask.flatten(-2)


def load_golden(case, name, dtype=torch.float32, device="cpu"):
    """
    Returns the arguments of `dcnv3`, in order, the tensors with gradients; the gradient of the output; and what is
    expected: the output and the gradients of value, offset and mask, by name. Where a sample lies exactly on the
    border, two gradients of `offset` are right. Each expected tensor is therefore a list of alternatives.
    """
    import numpy as np

    with np.load(GOLDEN / case["file"] / "op.npz") as arrays:
        tensors = {
            key.split(".")[1]: torch.from_numpy(arrays[key]).to(device, dtype)
            for key in arrays
            if key.startswith(name + ".")
        }
    num_groups, num_points = case["group"], case["kernel"] ** 2 - case["remove_center"]
    for prefix, suffix in (("", ""), ("grad_", ""), ("grad_", "_closed")):
        packed = tensors.get(f"{prefix}offset_mask{suffix}")
        if packed is not None:
            offset, mask = split_offset_mask(packed, num_groups, num_points)
            tensors |= {f"{prefix}offset{suffix}": offset, f"{prefix}mask{suffix}": mask}
    arguments = [tensors[key].requires_grad_() for key in ("input", "offset", "mask")]
    arguments += [
        None, case["kernel"], case["stride"], case["pad"], case["dilation"], num_groups, case["offset_scale"],
        bool(case["remove_center"]), bool(case.get("softmax", False)),
    ]  # fmt: skip
    offset_gradients = [f"grad_offset{variant}" for variant in ("", "_open", "_closed")]
    expected = {
        "output": [tensors["output"]],
        "value": [tensors["grad_input"]],
        "offset": [tensors[key] for key in offset_gradients if key in tensors],
        "mask": [tensors["grad_mask"]],
    }
    return arguments, tensors["cotangent"], expected


def golden_error(actual, alternatives):
    """The largest deviation from the nearest alternative, relative to the largest number in it."""
    return min(((actual - expected).abs().max() / expected.abs().max()).item() for expected in alternatives)
