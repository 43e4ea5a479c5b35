# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""Layers that `kernels.kernelize` puts in the place of a model's own."""

from typing import Optional

import torch
from torch import nn

from . import dcnv3


__all__ = ["DCNv3"]


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
