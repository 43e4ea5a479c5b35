# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""
Detect objects in image files: a picture of each, photo_detections.png, with boxes, masks, labels and scores.

    python -m examples.object_detection.detect --model_name_or_path outputs/my_detector photo.jpg
"""

import argparse
import itertools
from pathlib import Path

import numpy as np
import torch
from matplotlib import font_manager
from PIL import Image, ImageDraw, ImageFont
from torchvision.utils import draw_bounding_boxes, draw_segmentation_masks

from examples.image_datasets import decode_image
from examples.object_detection.detection_models import has_masks, load_detection_model
from examples.output_files import check_outputs, mark_of, write_picture
from examples.pictures import class_colours


MARK = mark_of(__file__)
OPACITY = 0.4


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", nargs="+", help="image files")
    parser.add_argument("--model_name_or_path", required=True, help="checkpoint: a folder or a Hub id")
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/detections"), help="folder for the pictures")
    parser.add_argument("--threshold", type=float, default=0.5, help="draw detections with a higher score")
    parser.add_argument("--dtype", choices=["float32", "float16", "bfloat16"], default="float32", help="of the model")
    parser.add_argument("--use_kernels", action="store_true", help="run DCNv3 as a compiled kernel")
    args = parser.parse_args(argv)
    check_outputs([output_path(args, file) for file in args.images], MARK, args.images)
    return args


def output_path(args: argparse.Namespace, file: str) -> Path:
    return args.output_dir / f"{Path(file).stem}_detections.png"


@torch.inference_mode()
def detect(model, image_processor, image: Image.Image, threshold: float) -> dict[str, torch.Tensor]:
    """`scores`, `labels`, `boxes` (n, 4) and, of a model with mask heads, `masks` (n, height, width) of an image."""
    inputs = image_processor(image, return_tensors="pt").to(model.device, model.dtype)
    outputs = model(**inputs)
    process = image_processor.post_process_object_detection
    if has_masks(model.config):
        process = image_processor.post_process_instance_segmentation
    return process(outputs, threshold=threshold, target_sizes=[(image.height, image.width)])[0]


def draw_detections(image: Image.Image, result: dict[str, torch.Tensor], config) -> np.ndarray:
    """uint8 (height, width, 3): the best detection on top."""
    order = result["scores"].argsort().cpu()
    labels = result["labels"].cpu()[order].tolist()
    colours = [tuple(colour) for colour in class_colours(config)[labels].tolist()]
    captions = [
        f"{config.id2label[label]} {score:.2f}" for label, score in zip(labels, result["scores"].cpu()[order].tolist())
    ]
    picture = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    if not labels:
        return picture.permute(1, 2, 0).numpy()
    for idx, colour in zip(order, colours):  # one by one: of several, torchvision draws what they share in black
        if "masks" in result:
            picture = draw_segmentation_masks(picture, result["masks"][idx].cpu(), alpha=OPACITY, colors=colour)
    boxes = result["boxes"].cpu()[order]
    line = max(round(min(image.size) / 200), 1)
    picture = draw_bounding_boxes(picture, boxes, colors=colours, width=line)
    picture = Image.fromarray(picture.permute(1, 2, 0).numpy())
    draw_captions(picture, boxes.tolist()[::-1], captions[::-1], colours[::-1])
    return np.array(picture)


def draw_captions(
    image: Image.Image, boxes: list[list[float]], captions: list[str], colours: list[tuple[int, int, int]]
):
    """
    Write each caption at a corner of its box (left, top, right, bottom), where it is whole and covers no earlier one.
    Captions without such a place are left out.
    """
    draw = ImageDraw.Draw(image)
    font = ImageFont.truetype(font_manager.findfont("DejaVu Sans"), max(round(min(image.size) / 25), 10))
    taken: list[tuple[float, float, float, float]] = []
    for (left, top, right, bottom), caption, colour in zip(boxes, captions, colours):
        _, _, width, height = draw.textbbox((2, 0), caption, font=font)
        width, height = width + 2, height + 2
        for x, y in itertools.product((left, right - width), (top - height, top, bottom - height, bottom)):
            place = (x, y, x + width, y + height)
            is_whole = x >= 0 and y >= 0 and place[2] <= image.width and place[3] <= image.height
            if is_whole and not any(_overlap(place, other) for other in taken):
                taken.append(place)
                draw.rectangle(place, fill=colour)
                is_light = np.dot(colour, (0.299, 0.587, 0.114)) > 150
                draw.text((x + 2, y), caption, font=font, fill="black" if is_light else "white")
                break


def _overlap(one: tuple[float, float, float, float], other: tuple[float, float, float, float]) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def main(argv: list[str] | None = None):
    args = parse_arguments(argv)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model, image_processor = load_detection_model(args.model_name_or_path, args.dtype, device, args.use_kernels)
    args.output_dir.mkdir(parents=True, exist_ok=True)
    for file in args.images:
        image = decode_image({"bytes": None, "path": file})
        result = detect(model, image_processor, image, args.threshold)
        path = output_path(args, file)
        write_picture(path, Image.fromarray(draw_detections(image, result, model.config)), MARK)
        names = ", ".join(model.config.id2label[label] for label in result["labels"].tolist())
        print(f"{len(result['scores'])} objects ({names}). Written: {path}")


if __name__ == "__main__":
    main()
