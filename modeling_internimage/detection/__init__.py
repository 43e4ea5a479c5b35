# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""What all detectors share: image processing, class names, and inference in several scales."""

from .inference import detect_objects, fuse_boxes
from .labels import detection_labels
