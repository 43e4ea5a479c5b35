# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""Configuration of the composite backbone."""

from huggingface_hub.dataclasses import strict

from ..configuration_internimage import InternImageConfig


@strict
class CBInternImageConfig(InternImageConfig):
    r"""
    Configuration of [`CBInternImageBackbone`]. The fields are those of [`InternImageConfig`] and describe both of its
    networks, which have the same architecture.

    Example:

    ```python
    >>> from modeling_internimage import CBInternImageBackbone, CBInternImageConfig

    >>> config = CBInternImageConfig(out_features=["stage2", "stage3", "stage4"])
    >>> backbone = CBInternImageBackbone(config)
    ```"""

    model_type = "cb_internimage"


__all__ = ["CBInternImageConfig"]
