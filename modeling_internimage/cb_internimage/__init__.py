# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""CB-InternImage, two InternImages in one backbone."""

from .configuration_cb_internimage import CBInternImageConfig
from .modeling_cb_internimage import CBInternImageBackbone, CBInternImageBackboneOutput
