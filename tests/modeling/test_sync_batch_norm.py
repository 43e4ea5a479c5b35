# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
import copy

import pytest
import torch
from torch import nn

from modeling_internimage import InternImageForImageClassification
from modeling_internimage.modeling_internimage import InternImageBatchNorm
from modeling_internimage.training.sync_batch_norm import InternImageSyncBatchNorm


def test_conversion(tiny_config):
    """The same parameters under the same names. Other batch norms become PyTorch's."""
    model = nn.Sequential(InternImageForImageClassification(tiny_config()), nn.BatchNorm2d(2)).train()
    model[0].base_model.pooler.batch_norm.requires_grad_(False)
    before = model.state_dict(keep_vars=True)
    model = InternImageSyncBatchNorm.convert_sync_batchnorm(model)
    after = model.state_dict(keep_vars=True)
    assert list(after) == list(before) and all(after[name] is before[name] for name in before)
    pooler = model[0].base_model.pooler
    assert type(pooler.batch_norm) is InternImageSyncBatchNorm and type(model[1]) is nn.SyncBatchNorm
    assert pooler.batch_norm.training and not pooler.batch_norm.weight.requires_grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("is_frozen", [True, False])
def test_only_what_is_trained_is_synchronised(dtype, training, is_frozen, monkeypatch):
    """The rest computes what `InternImageBatchNorm` does, also with bfloat16 parameters and float32 statistics."""
    batch_norm = InternImageBatchNorm(4).train(training).requires_grad_(not is_frozen)
    batch_norm.running_mean.copy_(torch.arange(4.0))
    for parameter in batch_norm.parameters():
        parameter.data = parameter.data.to(dtype)
    synchronised = InternImageSyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(batch_norm))
    forward, inputs_of_all = nn.SyncBatchNorm.forward, []

    def synchronise(module, inputs):
        return inputs_of_all.append(inputs) or inputs if module.training else forward(module, inputs)

    monkeypatch.setattr(nn.SyncBatchNorm, "forward", synchronise)
    hidden_states = torch.randn(2, 4, 3, 3, generator=torch.Generator().manual_seed(0)).to(dtype)
    output = synchronised(hidden_states)
    if training and not is_frozen:
        assert len(inputs_of_all) == 1
        return
    assert not inputs_of_all
    torch.testing.assert_close(output, batch_norm(hidden_states), rtol=0, atol=0)
    for name, tensor in synchronised.state_dict().items():
        assert torch.equal(tensor, batch_norm.state_dict()[name])
