# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""DCNv3 in readable PyTorch: what the kernel is compared with, in tests and in benchmarks."""

import torch


def reference_dcnv3(
    value, offset, mask, center_scale=None, kernel_size=3, stride=1, padding=1, dilation=1, num_groups=1,
    offset_scale=1.0, remove_center=False, softmax=True,
):  # fmt: skip
    """
    Takes what `dcnv3` takes (see torch-ext/dcnv3/__init__.py for the shapes) and checks nothing. Computes in float32,
    or in float64 for float64 tensors; the output has the dtype of `value`. Slow: it stores four pixels per sample.
    """
    batch_size, height, width, channels = value.shape
    out_height, out_width = offset.shape[1:3]
    num_points = kernel_size**2 - remove_center
    device, dtype = value.device, torch.promote_types(value.dtype, torch.float32)
    # N: batch size, H and W: size of the image, Ho and Wo: of the output, G: groups, P: points, D: channels per group.
    images = value.to(dtype).reshape(batch_size, height, width, num_groups, channels // num_groups)
    offset = offset.to(dtype).reshape(batch_size, out_height, out_width, num_groups, num_points, 2)
    weight = mask.to(dtype).reshape(batch_size, out_height, out_width, num_groups, num_points)
    if softmax:
        weight = weight.softmax(dim=-1)

    # The regular grid, in pixels: (Wo, P) columns and (Ho, P) rows. Points are ordered column by column.
    point = torch.arange(kernel_size**2, device=device)
    if remove_center:
        point = point[point != kernel_size**2 // 2]
    center = dilation * (kernel_size - 1) // 2
    grid_x = (point // kernel_size * dilation - center).to(dtype) * offset_scale
    grid_y = (point % kernel_size * dilation - center).to(dtype) * offset_scale
    column = torch.arange(out_width, device=device, dtype=dtype) * stride + (center - padding)
    row = torch.arange(out_height, device=device, dtype=dtype) * stride + (center - padding)
    grid_x = (column[:, None] + grid_x).view(1, 1, out_width, 1, num_points)
    grid_y = (row[:, None] + grid_y).view(1, out_height, 1, 1, num_points)

    # Sampling positions, (N, Ho, Wo, G, P). A pixel or more outside, farther makes no difference.
    x = torch.add(grid_x, offset[..., 0], alpha=offset_scale).clamp(-1, width)
    y = torch.add(grid_y, offset[..., 1], alpha=offset_scale).clamp(-1, height)

    # Bilinear samples, (N, Ho, Wo, G, P, D): four pixels each, zeros outside the image.
    left, top = x.detach().floor(), y.detach().floor()
    x, y = x - left, y - top  # the fractions, in [0, 1)
    image = torch.arange(batch_size, device=device).view(-1, 1, 1, 1, 1)
    group = torch.arange(num_groups, device=device).view(-1, 1)
    samples = 0
    for down, right, share in ((0, 0, (1 - y) * (1 - x)), (0, 1, (1 - y) * x), (1, 0, y * (1 - x)), (1, 1, y * x)):
        row, column = (top + down).long(), (left + right).long()
        inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
        pixels = images[image, row.clamp(0, height - 1), column.clamp(0, width - 1), group]
        samples = samples + (share * inside).unsqueeze(-1) * pixels

    output = (weight.unsqueeze(-1) * samples).sum(dim=-2)
    if center_scale is not None:
        output = torch.lerp(output, images, center_scale.to(dtype).sigmoid().unsqueeze(-1))
    return output.flatten(3).to(value.dtype)
