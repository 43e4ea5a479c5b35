# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""Averaged weights."""

import contextlib
import os

import torch
from safetensors.torch import load_file
from torch import nn
from transformers.utils import SAFE_WEIGHTS_NAME


class WeightAverage:
    """
    Exponential moving average of a model's parameters and buffers (timm's `ModelEma` in the original). Sharded
    parameters (`DTensor`, FSDP2) have sharded averages. Torch's `AveragedModel` and timm's `ModelEmaV3` copy the
    model, which FSDP2 refuses, and average bfloat16 weights in bfloat16.

    Args:
        model: Sharded or not, but not compiled. Its parameters and buffers are read at each `update`.
        decay: Weight of the old average at each `update`.

    Attributes:
        average: The averaged parameters and buffers by name; floating-point ones in float32 or float64.

    Raises:
        ValueError: If DeepSpeed ZeRO-3 has partitioned the parameters.
    """

    def __init__(self, model: nn.Module, decay: float):
        if any(hasattr(parameter, "ds_id") for parameter in model.parameters()):
            raise ValueError(
                "DeepSpeed ZeRO-3 keeps parameters where they cannot be averaged: train without `ema_decay`, or "
                "with FSDP or ZeRO-1."
            )
        self.model = model
        self.decay = decay
        # At least float32: bfloat16 rounds a step of a ten-thousandth away. (DeepSpeed's weights can be bfloat16.)
        self.average = {
            name: tensor.detach().to(torch.promote_types(tensor.dtype, torch.float32), copy=True)
            if tensor.is_floating_point()
            else tensor.detach().clone()
            for name, tensor in self._tensors()
        }

    def _tensors(self):
        for module in self.model.modules():
            if hasattr(module, "reshard"):  # FSDP2: after a forward pass, the outermost module is not sharded
                module.reshard()
        yield from self.model.named_parameters()
        yield from self.model.named_buffers()

    @torch.no_grad()
    def update(self):
        for name, tensor in self._tensors():
            if tensor.is_floating_point():
                average = self.average[name]
                average.lerp_(tensor.to(average.dtype), 1 - self.decay)
            else:
                self.average[name].copy_(tensor)

    @contextlib.contextmanager
    def applied(self):
        """
        The model has the averaged weights inside the `with` block, which can be nested. A copy of its current weights
        is kept in memory meanwhile.
        """
        current = {name: tensor.detach().clone() for name, tensor in self._tensors()}
        self._set(self.average)
        try:
            yield
        finally:
            self._set(current)

    @torch.no_grad()
    def _set(self, values: dict[str, torch.Tensor]):
        for name, tensor in self._tensors():
            tensor.data.copy_(values[name])

    @torch.no_grad()
    def load(self, folder: str):
        """Read the average from `model.safetensors` in `folder`, which holds whole tensors, not shards."""
        state_dict = load_file(os.path.join(folder, SAFE_WEIGHTS_NAME))
        for name, tensor in self.average.items():
            tensor.copy_(_like(state_dict[name], tensor))


def _like(whole: torch.Tensor, tensor: torch.Tensor) -> torch.Tensor:
    """`whole`, or this process's shard of it if `tensor` is sharded."""
    if not hasattr(tensor, "device_mesh"):
        return whole
    from torch.distributed.tensor import DTensor, distribute_tensor  # which not every build of torch has

    assert isinstance(tensor, DTensor)
    return distribute_tensor(whole.to(tensor.device), tensor.device_mesh, tensor.placements, src_data_rank=None)
