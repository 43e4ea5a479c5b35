# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""The 1,797 scanned digits that scikit-learn ships, as a `datasets.DatasetDict`: real images without a download."""

import numpy as np
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image
from PIL import Image as PILImage
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split


def load_digits_dataset(test_fraction: float = 0.2, seed: int = 0) -> DatasetDict:
    """
    Returns:
        `DatasetDict` with splits `train` and `test` (stratified by class, always the same for a seed) and the columns
        `image` (8x8 greyscale PNG) and `label` (`ClassLabel` "0" to "9").
    """
    digits = load_digits()
    images = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    train, test = train_test_split(
        np.arange(len(images)), test_size=test_fraction, random_state=seed, stratify=digits.target
    )
    features = Features({"image": Image(), "label": ClassLabel(names=[str(digit) for digit in range(10)])})
    return DatasetDict(
        {
            name: Dataset.from_dict(
                {
                    "image": [PILImage.fromarray(images[i]) for i in indices],
                    "label": [int(digits.target[i]) for i in indices],
                },
                features=features,
            )
            for name, indices in (("train", train), ("test", test))
        }
    )
