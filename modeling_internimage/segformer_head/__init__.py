# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""The convolutional SegFormer head on any backbone."""

from .configuration_segformer_head import SegformerHeadConfig
from .modeling_segformer_head import SegformerHeadForSemanticSegmentation
