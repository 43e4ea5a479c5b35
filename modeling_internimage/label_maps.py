# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""Label maps of segmentation as images."""

import colorsys

import numpy as np
from PIL import Image


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


def label_map_image(labels: np.ndarray, colours: np.ndarray) -> Image.Image:
    """
    The label map (height, width) as an image: indices of 8 bits with the `colours` (num_labels, 3), uint8, as their
    palette; of more than 256 classes, grey values of 16 bits.
    """
    if len(colours) > 256:
        return Image.fromarray(labels.astype(np.uint16))
    image = Image.fromarray(labels.astype(np.uint8))
    image.putpalette(colours.tobytes())
    return image
