# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""The authors' training: parameter groups and schedules, averaged weights, mixup and cutmix."""

from typing import TYPE_CHECKING

from .optimization import create_parameter_groups


if TYPE_CHECKING:
    from .trainer import InternImageTrainer, Recipe

__all__ = ["InternImageTrainer", "Recipe", "create_parameter_groups"]


def __getattr__(name: str):
    if name in ("InternImageTrainer", "Recipe"):  # imported on demand: they need accelerate
        from . import trainer

        return getattr(trainer, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
