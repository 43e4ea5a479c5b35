# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""The authors' training: parameter groups and schedules, averaged weights, mixup and cutmix."""

from typing import TYPE_CHECKING

from .optimization import create_parameter_groups
from .recipe import Recipe


if TYPE_CHECKING:
    from .trainer import InternImageTrainer

__all__ = ["InternImageTrainer", "Recipe", "create_parameter_groups"]


def __getattr__(name: str):
    if name == "InternImageTrainer":  # imported on demand: it needs accelerate
        from .trainer import InternImageTrainer

        return InternImageTrainer
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
