# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""What the pictures of sampling points share."""

from collections.abc import Callable, Iterable

import torch
from torch import nn


def inputs_of(modules: Iterable[nn.Module], run: Callable[[], object]) -> tuple[dict[nn.Module, tuple], object]:
    """The positional inputs that each of `modules` gets in `run`, without gradients, and the result of `run`."""
    inputs = {}
    hooks = [
        module.register_forward_pre_hook(lambda module, arguments: inputs.update({module: arguments}))
        for module in modules
    ]
    with torch.inference_mode():
        result = run()
    for hook in hooks:
        hook.remove()
    return inputs, result


def draw_points(axes, image, points: torch.Tensor, weights: torch.Tensor, **kwargs):
    """
    Draw `points` (n, 2), x and y in pixels of `image`, over a pale `image`, those with large `weights` (n,) on top.
    Other arguments, of which tensors (n,) belong to the points, go to `axes.scatter`, whose result is returned.
    """
    order = weights.argsort()
    kwargs = {name: value[order] if isinstance(value, torch.Tensor) else value for name, value in kwargs.items()}
    axes.imshow(image, alpha=0.55)
    axes.set_xticks([])
    axes.set_yticks([])
    return axes.scatter(*points[order].T, linewidths=0, **kwargs)
