# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""
A photograph of coins as a small data set for segmentation, without a download.

    python -m examples.semantic_segmentation.coins --output_dir outputs/coins
    python -m examples.semantic_segmentation.coins --output_dir outputs/coins --model outputs/coins_model

The photograph is scikit-image's; label maps come from the region-based recipe of its tutorial (edges, markers from the
extremes of the grey values, watershed). The left two thirds are for training, the right third for evaluation.
With `--model`, the pieces for evaluation are drawn with label and prediction.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from scipy import ndimage
from skimage import data, filters, segmentation

from examples.output_files import check_outputs, mark_of, write_data
from examples.pictures import class_colours, plt
from examples.semantic_segmentation.segment import OPACITY, blend
from examples.semantic_segmentation.segmentation_data import list_folder, read_pair
from examples.semantic_segmentation.segmentation_metrics import confusion_matrix, segmentation_metrics
from examples.semantic_segmentation.segmentation_models import load_segmentation_model
from modeling_internimage import segment_image


MARK = mark_of(__file__)
CLASSES = {"background": [40, 40, 90], "coin": [255, 190, 0]}
ROWS = [0, 101, 202, 303]
COLUMNS = {"train": [0, 128, 256], "validation": [256, 384]}


def coins_and_labels() -> tuple[np.ndarray, np.ndarray]:
    """The photograph, uint8 (303, 384), and 1 where there is a coin, else 0."""
    coins = data.coins()
    markers = np.zeros(coins.shape, dtype=np.int32)
    markers[coins < 30] = 1
    markers[coins > 150] = 2
    is_coin = segmentation.watershed(filters.sobel(coins), markers) == 2
    return coins, ndimage.binary_fill_holes(is_coin).astype(np.uint8)


def write_folders(folder: Path):
    """Pieces that do not overlap in `folder / split / "images"` and `folder / split / "maps"`, and `classes.json`."""
    coins, labels = coins_and_labels()
    for split, columns in COLUMNS.items():
        for name, array in (("images", coins), ("maps", labels)):
            for top, bottom in zip(ROWS, ROWS[1:]):
                for left, right in zip(columns, columns[1:]):
                    piece = Image.fromarray(array[top:bottom, left:right])
                    write_data(folder / split / name / f"{top}_{left}.png", piece)
    write_data(folder / "classes.json", json.dumps(CLASSES) + "\n")


def draw_predictions(folder: Path, model_name: str, path: Path):
    """The pieces for evaluation: image, label and prediction, and their mIoU at full size."""
    check_outputs([path], MARK)
    model, image_processor = load_segmentation_model(model_name, "float32", torch.device("cpu"), use_kernels=False)
    rows = list_folder(str(folder / "validation"), "--output_dir")
    colours = class_colours(model.config)
    figure, axes = plt.subplots(
        len(rows), 3, figsize=(7.5, 2.1 * len(rows) + 0.3), layout="constrained", squeeze=False
    )
    matrix = 0
    for axis, title in zip(axes[0], ("image", "label", "prediction")):
        axis.set_title(title)
    for row, line in zip(rows, axes):
        image, labels = read_pair(row["image"], row["label"], num_labels=2, ignore_index=255, do_reduce_labels=False)
        predictions = segment_image(model, image_processor, image).argmax(dim=0)
        matrix = matrix + confusion_matrix(predictions, torch.from_numpy(labels), 2)
        pictures = (np.asarray(image), blend(image, labels, colours), blend(image, predictions.numpy(), colours))
        for picture, axis in zip(pictures, line):
            axis.imshow(picture)
            axis.set_axis_off()
    handles = [
        plt.Rectangle((0, 0), 1, 1, color=colour / 255, alpha=OPACITY, label=model.config.id2label[idx])
        for idx, colour in enumerate(colours)
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False)
    figure.savefig(path, dpi=100, metadata={"Software": MARK})
    plt.close(figure)
    print(f"mIoU {segmentation_metrics(matrix)['mean_iou']:.4f} of {len(rows)} pieces. Written: {path}")


def main(argv: list[str] | None = None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/coins"), help="folder for images and maps")
    parser.add_argument("--model", help="trained model, to draw predictions of")
    args = parser.parse_args(argv)
    if args.model is not None:
        draw_predictions(args.output_dir, args.model, args.output_dir / "predictions.png")
        return
    write_folders(args.output_dir)
    for split in COLUMNS:
        print(f"{len(list((args.output_dir / split / 'images').iterdir()))} pieces in {args.output_dir / split}")


if __name__ == "__main__":
    main()
