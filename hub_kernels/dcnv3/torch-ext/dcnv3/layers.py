# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""Layers that `kernels.kernelize` puts in the place of a model's own."""

import functools
from typing import Optional

import torch
from torch import nn

from . import dcnv3, fused, training


__all__ = ["DCNv3", "InternImageLayer"]


class DCNv3(nn.Module):
    """
    The forward method of InternImage's `DCNv3` module, by the kernel. See `dcnv3.dcnv3` for the arguments, and for
    what happens to tensors of different dtypes (as under autocast).
    """

    has_backward = True
    can_torch_compile = True

    def forward(
        self,
        value: torch.Tensor,
        offset: torch.Tensor,
        mask: torch.Tensor,
        center_scale: Optional[torch.Tensor],
        kernel_size: int,
        stride: int,
        padding: int,
        dilation: int,
        num_groups: int,
        offset_scale: float,
        remove_center: bool,
        softmax: bool,
    ) -> torch.Tensor:
        return dcnv3(
            value, offset, mask, center_scale, kernel_size, stride, padding, dilation, num_groups, offset_scale,
            remove_center, softmax,
        )  # fmt: skip


class InternImageLayer(nn.Module):
    """
    The forward method of InternImage's `InternImageLayer` module. In inference on a CPU it is two operators around
    each DCNv3 (see `fused`), with gradients on a CPU the feed-forward network is computed in parts (see `training`).
    Everything else runs the model's own forward method: see `fused.parts_to_fuse` and `training.can_fuse`.
    """

    has_backward = True
    can_torch_compile = True

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        if training.can_fuse(self.mlp, hidden_states):
            hidden_states = self.residual_branch(
                hidden_states, self.dcn, self.norm1, self.res_post_norm1, self.layer_scale1
            )
            mlp = functools.partial(training.mlp, self.mlp)
            return self.residual_branch(hidden_states, mlp, self.norm2, self.res_post_norm2, self.layer_scale2)
        parts = fused.parts_to_fuse(self, hidden_states)
        if parts is None:
            return type(self).forward(self, hidden_states)
        sampled = self.dcn.sample(*fused.sampling(parts, hidden_states))
        hidden_states = fused.branch(
            sampled, hidden_states, fused.NO_NORM, fused.NO_LINEAR, parts.output, parts.norm_out1, parts.scale1
        )
        return fused.branch(
            hidden_states, hidden_states, parts.norm_in2, parts.fc1, parts.fc2, parts.norm_out2, parts.scale2
        )
