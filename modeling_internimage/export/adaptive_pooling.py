# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""Adaptive average pooling of maps whose size an exported graph leaves open."""

import torch
from torch import nn


class ExportableAdaptiveAvgPool2d(nn.Module):
    """
    [`torch.nn.AdaptiveAvgPool2d`] as two matrix products, one with the averages of rows and one with those of columns.
    `torch.onnx.export` fixes the bins of the original at the size that it traces.
    """

    def __init__(self, output_size: int | tuple[int, int]):
        super().__init__()
        self.output_size = (output_size, output_size) if isinstance(output_size, int) else tuple(output_size)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """(batch_size, channels, height, width) -> (batch_size, channels, *output_size)"""
        rows, columns = (
            self.averages(size, bins, hidden_states) for size, bins in zip(hidden_states.shape[2:], self.output_size)
        )
        return rows @ hidden_states @ columns.T

    @staticmethod
    def averages(size: int, bins: int, like: torch.Tensor) -> torch.Tensor:
        """(bins, size): each row averages the positions in its bin, from floor(i size / bins) to ceil((i + 1) ...)."""
        bin_idx = torch.arange(bins, device=like.device)[:, None]
        start, end = bin_idx * size // bins, ((bin_idx + 1) * size + bins - 1) // bins
        position = torch.arange(size, device=like.device)
        return ((position >= start) & (position < end)).to(like.dtype) / (end - start).to(like.dtype)
