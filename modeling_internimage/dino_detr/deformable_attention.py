# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""Multi-scale deformable attention (https://arxiv.org/abs/2010.04159, section 4.1) for inference."""

import torch
from torch import nn
from transformers.models.deformable_detr.modeling_deformable_detr import MultiScaleDeformableAttention


def sum_of_samples(
    value: torch.Tensor,
    spatial_shapes: torch.Tensor,
    level_start_index: torch.Tensor,
    sampling_locations: torch.Tensor,
    attention_weights: torch.Tensor,
) -> torch.Tensor:
    """
    What `MultiScaleDeformableAttention` computes, for the CPU: the corners of every sampling point are rows of a
    table, of which `embedding_bag` makes the weighted sum, in float32 if `value` is in half precision.

    Args:
        value (`torch.Tensor` of shape `(batch_size, sequence_length, num_heads, head_dim)`):
            All levels.
        spatial_shapes (`torch.Tensor` of shape `(num_levels, 2)`):
            Height and width of each level.
        level_start_index (`torch.Tensor` of shape `(num_levels,)`):
            Position in the sequence at which each level begins.
        sampling_locations (`torch.Tensor` of shape `(batch_size, num_queries, num_heads, num_levels, num_points, 2)`):
            x and y relative to the level. Outside of it `value` is 0.
        attention_weights (`torch.Tensor` of shape `(batch_size, num_queries, num_heads, num_levels, num_points)`):
            Weights of the points.

    Returns:
        `torch.Tensor` of shape `(batch_size, num_queries, num_heads * head_dim)`.
    """
    batch_size, sequence_length, num_heads, head_dim = value.shape
    dtype = torch.promote_types(value.dtype, torch.float32)
    height, width = spatial_shapes.to(dtype)[:, :, None].unbind(1)
    x, y = (sampling_locations.to(dtype).nan_to_num() * torch.stack((width, height), dim=-1) - 0.5).unbind(-1)
    left, top = x.floor(), y.floor()
    corners, weights = [], []
    for row, row_weight in ((top, 1 - y + top), (top + 1, y - top)):
        row_weight = row_weight * attention_weights * ((row >= 0) & (row < height))
        row_start = row.clamp(min=0).minimum(height - 1) * width
        for column, column_weight in ((left, 1 - x + left), (left + 1, x - left)):
            weights.append(row_weight * column_weight * ((column >= 0) & (column < width)))
            corners.append(row_start + column.clamp(min=0).minimum(width - 1))
    rows = torch.stack(corners, dim=-1).long() + level_start_index[:, None, None]
    rows = rows + torch.arange(batch_size)[:, None, None, None, None, None] * sequence_length
    rows = rows * num_heads + torch.arange(num_heads)[:, None, None, None]
    sums = nn.functional.embedding_bag(
        rows.flatten(3).flatten(0, 2),
        value.reshape(-1, head_dim).to(dtype),
        per_sample_weights=torch.stack(weights, dim=-1).flatten(3).flatten(0, 2),
        mode="sum",
    )
    return sums.view(batch_size, -1, num_heads * head_dim).to(value.dtype)


class DinoDetrMultiScaleDeformableAttention(MultiScaleDeformableAttention):
    """
    As its base class, but inference handles a part of the queries at a time, which takes a fraction of the memory,
    and on a CPU calls [`sum_of_samples`], which takes a fraction of the time. A kernel of the Hub replaces this
    method too.
    """

    num_queries_at_a_time = 4096

    def forward(
        self,
        value: torch.Tensor,
        value_spatial_shapes: torch.Tensor,
        value_spatial_shapes_list: list[tuple],
        level_start_index: torch.Tensor,
        sampling_locations: torch.Tensor,
        attention_weights: torch.Tensor,
        im2col_step: int,
    ) -> torch.Tensor:
        is_traced = torch.compiler.is_compiling() or torch.jit.is_tracing()

        def attend(locations, weights):
            if value.device.type == "cpu" and not is_traced and not torch.is_grad_enabled():
                return sum_of_samples(value, value_spatial_shapes, level_start_index, locations, weights)
            levels = (value, value_spatial_shapes, value_spatial_shapes_list, level_start_index)
            return super(DinoDetrMultiScaleDeformableAttention, self).forward(*levels, locations, weights, im2col_step)

        if is_traced or torch.is_grad_enabled():
            return attend(sampling_locations, attention_weights)
        number = self.num_queries_at_a_time
        parts = zip(sampling_locations.split(number, dim=1), attention_weights.split(number, dim=1))
        return torch.cat([attend(*part) for part in parts], dim=1)
