# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""The types that a user's script gets from the package. mypy reads this file; nothing runs it."""

from typing_extensions import assert_type  # noqa: UP035  (Python 3.10 has it only here)

from modeling_internimage import (
    InternImageBackbone,
    InternImageConfig,
    InternImageForImageClassification,
    MaskRCNNForObjectDetection,
    use_dcnv3_kernel,
)


model = InternImageForImageClassification.from_pretrained("internimage_t", num_labels=2)
assert_type(model, InternImageForImageClassification)
assert_type(use_dcnv3_kernel(model), InternImageForImageClassification)
assert_type(model.config, InternImageConfig)
assert_type(InternImageBackbone.from_pretrained("internimage_t", out_features=["stage4"]), InternImageBackbone)
assert_type(MaskRCNNForObjectDetection.from_pretrained("mask_rcnn"), MaskRCNNForObjectDetection)
