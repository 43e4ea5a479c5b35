# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""DCNv3 as one operator of PyTorch, which becomes nodes of ONNX at the end of an export."""

import torch

from ..modeling_internimage import DCNv3


@torch.library.custom_op("modeling_internimage::dcnv3", mutates_args=())
def dcnv3(
    value: torch.Tensor,
    offset: torch.Tensor,
    mask: torch.Tensor,
    center_scale: torch.Tensor | None,
    kernel_size: int,
    stride: int,
    padding: int,
    dilation: int,
    num_groups: int,
    offset_scale: float,
    remove_center: bool,
    softmax: bool,
) -> torch.Tensor:
    """[`DCNv3`] as one operator: to trace its fifty steps in every layer would double the time of an export."""
    geometry = (kernel_size, stride, padding, dilation, num_groups, offset_scale, remove_center, softmax)
    return DCNv3()(value, offset, mask, center_scale, *geometry)


@dcnv3.register_fake
def _(value, offset, *arguments):
    return value.new_empty((*offset.shape[:3], value.shape[3]))


class GridSampleDCNv3(DCNv3):
    """[`DCNv3`] for `torch.onnx.export`, with `GridSample`: see `onnx_dcnv3` in translations.py."""

    def forward(self, *args, **kwargs):
        return dcnv3(*args, **kwargs)
