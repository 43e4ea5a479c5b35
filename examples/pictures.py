# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""Drawing without a screen."""

import colorsys

import matplotlib
import numpy as np


matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: F401  (imported from here)


def class_colours(config) -> np.ndarray:
    """Colours of the classes, uint8 (num_labels, 3): the model's palette, or hues that are easy to tell apart."""
    palette = getattr(config, "palette", None)
    if palette is None:
        golden_ratio = 0.618034
        hues = [
            (idx * golden_ratio % 1.0, 0.9 - 0.3 * (idx % 2), 0.95 - 0.3 * (idx // 2 % 2))
            for idx in range(config.num_labels)
        ]
        palette = [[round(255 * value) for value in colorsys.hsv_to_rgb(*hue)] for hue in hues]
    return np.array(palette, dtype=np.uint8)
