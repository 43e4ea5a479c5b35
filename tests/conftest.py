# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
import os


os.environ["HF_HUB_OFFLINE"] = "1"  # before huggingface_hub reads it

import numpy as np
import pytest

from modeling_internimage import InternImageConfig


@pytest.fixture
def tiny_config():
    """Keyword arguments override a configuration with every optional part that fits the convolutional pooler."""

    def build(**kwargs):
        defaults = {"embed_dim": 16, "depths": [1, 1, 2, 1], "num_groups": [1, 2, 4, 8], "image_size": 32}
        return InternImageConfig(**(defaults | kwargs))

    return build


@pytest.fixture
def clip_config(tiny_config):
    """As InternImage-H and -G: attention pooler, gates, norms inside the third stage."""
    return tiny_config(
        use_clip_projector=True,
        center_feature_scale=True,
        depthwise_kernel_size=5,
        post_norm=True,
        level2_post_norm_block_ids=[0, 1],
    )


@pytest.fixture(scope="session")
def photographs() -> list[np.ndarray]:
    """Two real photographs, RGB uint8, of different sizes."""
    from skimage import data

    return [data.astronaut(), data.coffee()]
