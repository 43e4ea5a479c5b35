# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""DINO, a detection transformer (https://arxiv.org/abs/2203.03605), on any backbone."""

from .configuration_dino_detr import DinoDetrConfig
from .modeling_dino_detr import DinoDetrForObjectDetection, DinoDetrObjectDetectionOutput
