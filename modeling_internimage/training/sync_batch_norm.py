# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""Batch norm with the statistics of all processes."""

from torch import nn

from ..modeling_internimage import InternImageBatchNorm


class InternImageSyncBatchNorm(InternImageBatchNorm, nn.SyncBatchNorm):
    """
    `nn.SyncBatchNorm` with the two rules of [`InternImageBatchNorm`]: it is fixed while `weight.requires_grad` is
    false, and its parameters may be bfloat16 beside float32 statistics.

    Example:

    ```python
    >>> model = InternImageSyncBatchNorm.convert_sync_batchnorm(model)  # before `DistributedDataParallel`
    ```
    """

    def forward(self, hidden_states):
        # (PyTorch's kernels for several processes, unlike those for one, take parameters of another dtype.)
        is_trained = self.training and self.weight.requires_grad
        return (nn.SyncBatchNorm if is_trained else InternImageBatchNorm).forward(self, hidden_states)

    @classmethod
    def convert_sync_batchnorm(cls, module: nn.Module, process_group=None) -> nn.Module:
        """As `nn.SyncBatchNorm.convert_sync_batchnorm`. Only an [`InternImageBatchNorm`] becomes one of this class."""
        converted = super().convert_sync_batchnorm(module, process_group)
        if isinstance(module, InternImageBatchNorm):
            converted.__class__ = cls
        return converted
