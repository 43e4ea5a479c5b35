# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""DCNv3 as `GridSample`, a standard operator of ONNX since opset 16."""

import torch
from torch import nn

from ..modeling_internimage import DCNv3


class GridSampleDCNv3(DCNv3):
    """
    [`DCNv3`] for an ONNX graph: the same function of the same arguments, in fewer and cheaper steps for a runtime.

    The regular grid is a constant, and offsets are added to it as they are, pairs of (x, y). Points come before pixels
    in the samples, so that runtimes add long rows of pixels instead of a few neighbouring points at a time.
    """

    def forward(
        self, value, offset, mask, center_scale, kernel_size, stride, padding, dilation, num_groups, offset_scale,
        remove_center, softmax,
    ):  # fmt: skip
        batch_size, height, width, channels = value.shape
        out_height, out_width = offset.shape[1:3]
        num_pixels, num_points = out_height * out_width, kernel_size**2 - remove_center
        dtype = torch.promote_types(value.dtype, torch.float32)
        options = {"dtype": dtype, "device": value.device}

        # Where each point samples, (N * G, P, Ho * Wo, 2). Pixels become [-1, 1] on the way: `2 / size` per pixel.
        point = torch.arange(num_points, **options)
        if remove_center:
            point = point + (point >= num_points // 2)
        center = dilation * (kernel_size - 1) // 2
        start = center - padding + 0.5
        x = torch.arange(out_width, **options) * stride + start
        y = torch.arange(out_height, **options) * stride + start
        step_x = (torch.floor(point / kernel_size) * dilation - center) * offset_scale
        step_y = (torch.remainder(point, kernel_size) * dilation - center) * offset_scale
        x = (x[:, None] + step_x) * (2 / width) - 1
        y = (y[:, None] + step_y) * (2 / height) - 1
        shape = (out_height, out_width, num_points)
        grid = torch.stack((x[None].expand(shape), y[:, None].expand(shape)), dim=-1)
        scale = torch.cat([torch.full((1,), 2 * offset_scale / size, **options) for size in (width, height)])
        offset = offset.to(dtype).view(batch_size, num_pixels, num_groups, num_points, 2)
        grid = offset * scale + grid.view(num_pixels, 1, num_points, 2)
        grid = grid.permute(0, 2, 3, 1, 4).flatten(0, 1)

        weight = mask.to(dtype).view(batch_size, num_pixels, num_groups, num_points)
        if softmax:
            weight = weight.softmax(dim=-1)
        weight = weight.permute(0, 2, 3, 1).flatten(0, 1).unsqueeze(1)  # (N * G, 1, P, Ho * Wo)
        images = value.to(dtype).permute(0, 3, 1, 2).unflatten(1, (num_groups, -1)).flatten(0, 1)  # (N * G, D, H, W)
        samples = nn.functional.grid_sample(images, grid, padding_mode="zeros", align_corners=False)
        output = (samples * weight).sum(dim=2).view(batch_size, channels, out_height, out_width).permute(0, 2, 3, 1)
        if center_scale is not None:
            gate = center_scale.to(dtype).sigmoid().unsqueeze(-1)
            output, images = (states.unflatten(-1, (num_groups, -1)) for states in (output, value.to(dtype)))
            output = (output + gate * (images - output)).flatten(3)
        return output.to(value.dtype)
