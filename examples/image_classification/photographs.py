# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""
A small image folder of real photographs, without a download: which of nine photographs is this piece of?

    python -m examples.image_classification.photographs --output_dir outputs/photographs

The photographs come with scikit-image and scikit-learn. Each is cut into pieces of 128x128 pixels that do not overlap;
a quarter of them, spread over the photograph, is for validation.
"""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image
from skimage import data
from sklearn.datasets import load_sample_image

from examples.output_files import write_data


SKIMAGE_NAMES = (
    "astronaut", "brick", "cat", "coffee", "coins", "gravel", "immunohistochemistry", "rocket",
)  # fmt: skip
PIECE = 128
SHORT_SIDE = 768


def photographs() -> dict[str, Image.Image]:
    arrays = {name: getattr(data, name)() for name in SKIMAGE_NAMES}
    arrays["flower"] = load_sample_image("flower.jpg")
    return {name: Image.fromarray(np.asarray(array)).convert("RGB") for name, array in arrays.items()}


def write_image_folder(folder: Path):
    """One folder per photograph in `folder / "train"` and `folder / "validation"`."""
    for name, photograph in photographs().items():
        scale = SHORT_SIDE / min(photograph.size)
        photograph = photograph.resize([round(side * scale) for side in photograph.size], Image.Resampling.BICUBIC)
        for row in range(photograph.height // PIECE):
            for column in range(photograph.width // PIECE):
                split = "validation" if (row + 2 * column) % 4 == 0 else "train"
                left, top = column * PIECE, row * PIECE
                piece = photograph.crop((left, top, left + PIECE, top + PIECE))
                write_data(folder / split / name / f"{row}_{column}.png", piece)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/photographs"))
    args = parser.parse_args()
    write_image_folder(args.output_dir)
    for split in ("train", "validation"):
        count = len(list((args.output_dir / split).glob("*/*.png")))
        print(f"{count} pieces of {len(SKIMAGE_NAMES) + 1} photographs in {args.output_dir / split}")


if __name__ == "__main__":
    main()
