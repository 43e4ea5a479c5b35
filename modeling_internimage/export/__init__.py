# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""Export to plain ONNX, without a plugin or an operator of our own."""

from .onnx_export import export_onnx


__all__ = ["export_onnx"]
