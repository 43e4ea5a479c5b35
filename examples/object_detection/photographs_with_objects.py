# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""
Eight photographs of scikit-image with the outlines of 36 objects, drawn by hand, in the format of COCO.

    python -m examples.object_detection.photographs_with_objects --output_dir outputs/objects
    python -m examples.object_detection.photographs_with_objects --output_dir outputs/objects --model outputs/detector

With `--model`, its detections are drawn. The data set is for trying things out: what a model has learnt from eight
images shows on these images only.
"""

import argparse
import json
import math
from pathlib import Path

import torch
from PIL import Image
from pycocotools import mask as coco_mask
from skimage import data

from examples.object_detection.detect import detect, draw_detections
from examples.object_detection.detection_models import load_detection_model
from examples.output_files import check_outputs, mark_of, write_data
from examples.pictures import plt


MARK = mark_of(__file__)
# Ids as in COCO, where it has the class.
CATEGORIES = {"person": 1, "motorcycle": 4, "cat": 17, "cup": 47, "spoon": 50}
CATEGORIES |= {"rocket": 91, "helmet": 92, "camera": 93, "coin": 94, "saucer": 95, "optic disc": 96}
PHOTOGRAPHS = {
    "astronaut": data.astronaut,
    "camera": data.camera,
    "cat": data.cat,
    "coffee": data.coffee,
    "coins": data.coins,
    "motorcycle": lambda: data.stereo_motorcycle()[0],
    "retina": data.retina,
    "rocket": data.rocket,
}
OUTLINES = Path(__file__).parent / "outlines.json"
CORNERS_OF_ELLIPSE = 24
# Of the picture of detections, the width in inches.
PICTURES_IN_ROW, WIDTH = 4, 16


def polygon(outline: list[int]) -> list[float]:
    """x, y, x, y, ... of corners; four numbers are left, top, right, bottom of an ellipse."""
    if len(outline) > 4:
        return outline
    left, top, right, bottom = outline
    angles = (2 * math.pi * idx / CORNERS_OF_ELLIPSE for idx in range(CORNERS_OF_ELLIPSE))
    return [
        round((start + end) / 2 + (end - start) / 2 * function(angle), 2)
        for angle in angles
        for start, end, function in ((left, right, math.cos), (top, bottom, math.sin))
    ]


def write_data_set(folder: Path):
    """`folder / "images"` and `folder / "annotations.json"`."""
    objects = json.loads(OUTLINES.read_text())
    images, annotations = [], []
    for image_id, (name, load) in enumerate(PHOTOGRAPHS.items()):
        image = Image.fromarray(load())
        write_data(folder / "images" / f"{name}.png", image)
        size = {"width": image.width, "height": image.height}
        images.append({"id": image_id, "file_name": f"{name}.png"} | size)
        for category, outlines in objects[name].items():
            for outline in map(polygon, outlines):
                (mask,) = coco_mask.frPyObjects([outline], image.height, image.width)
                annotation = {"id": len(annotations) + 1, "image_id": image_id, "category_id": CATEGORIES[category]}
                annotation |= {"segmentation": [outline], "bbox": coco_mask.toBbox(mask).tolist()}
                annotations.append(annotation | {"area": int(coco_mask.area(mask)), "iscrowd": 0})
    categories = [{"id": idx, "name": name} for name, idx in CATEGORIES.items()]
    content = {"images": images, "annotations": annotations, "categories": categories}
    write_data(folder / "annotations.json", json.dumps(content) + "\n")
    print(f"{len(images)} photographs with {len(annotations)} objects in {folder}")


def draw_photographs(folder: Path, model_name: str, threshold: float, path: Path):
    """All photographs with the detections of a model that have a higher score than `threshold`."""
    check_outputs([path], MARK)
    model, image_processor = load_detection_model(model_name, "float32", torch.device("cpu"), use_kernels=False)
    pictures = []
    for name in PHOTOGRAPHS:
        image = Image.open(folder / "images" / f"{name}.png").convert("RGB")
        pictures.append(draw_detections(image, detect(model, image_processor, image, threshold), model.config))
    rows = [pictures[start : start + PICTURES_IN_ROW] for start in range(0, len(pictures), PICTURES_IN_ROW)]
    widths = [[picture.shape[1] / picture.shape[0] for picture in row] for row in rows]  # at a height of 1
    heights = [1 / sum(row) for row in widths]  # with which the rows are equally long
    figure = plt.figure(figsize=(WIDTH, WIDTH * sum(heights)), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.02, h_pad=0.02, wspace=0, hspace=0)
    subfigures = figure.subfigures(len(rows), 1, height_ratios=heights, squeeze=False)
    for row, ratios, subfigure in zip(rows, widths, subfigures.flat):
        for picture, axis in zip(row, subfigure.subplots(1, len(row), width_ratios=ratios)):
            axis.imshow(picture)
            axis.set_axis_off()
    figure.savefig(path, dpi=80, metadata={"Software": MARK})
    plt.close(figure)
    print(f"Written: {path}")


def main(argv: list[str] | None = None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/objects"), help="folder for images and JSON")
    parser.add_argument("--model", help="trained detector, to draw detections of")
    parser.add_argument("--threshold", type=float, default=0.8, help="draw detections with a higher score")
    args = parser.parse_args(argv)
    if args.model is not None:
        draw_photographs(args.output_dir, args.model, args.threshold, args.output_dir / "detections.png")
        return
    write_data_set(args.output_dir)


if __name__ == "__main__":
    main()
