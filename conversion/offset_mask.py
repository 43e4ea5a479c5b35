# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""The projection `offset_mask` of the original's DCNv4, which is two projections here."""

import torch


PACKED = ".dcn.offset_mask."
PARTS = (".dcn.offset_proj.", ".dcn.mask_proj.")  # in the order in which `split_offset_mask` names their rows
UNREAD = "padding to a multiple of 8 rows, which the operator never reads"


def split_offset_mask(num_groups: int, num_points: int) -> list[torch.Tensor]:
    """
    Indices of the rows of `offset_mask` (`DCNv4Function` and the module `DCNv4` of the original): those of the
    offsets, those of the weights, and those that nothing reads.

    Group by group there are x and y of each point, then the weight of each point; at the end, zeros up to a multiple
    of 8. Within each part, the order is that of the model here.
    """
    used = num_groups * num_points * 3
    rows = torch.arange(used).view(num_groups, num_points * 3)
    padding = torch.arange(used, (used + 7) // 8 * 8)
    return [rows[:, : num_points * 2].flatten(), rows[:, num_points * 2 :].flatten(), padding]
