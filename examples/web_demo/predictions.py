# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""What the page shows of a picture: the predictions of a checkpoint, and where its DCNv3 samples. Without Gradio."""

import functools
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageDraw
from transformers import AutoConfig, Pipeline, PreTrainedConfig, pipeline

import modeling_internimage  # noqa: F401  (registers InternImage)
from examples.object_detection.detect import draw_detections
from examples.pictures import class_colours, plt
from examples.sampling_points import StageSampling, displayable, draw_stages, find_encoders, sample_stages
from modeling_internimage import images
from modeling_internimage.cli.models import find_task


# Arguments of the pipelines, for everything that a threshold may choose from later.
OPTIONS = {
    "image-classification": {"top_k": 5},
    "object-detection": {"threshold": 0.0},
    "image-segmentation": {"subtask": "semantic"},
}
PHOTOGRAPH_SIDE = 720  # of the photograph with the sampling points, in pixels
LARGEST_RADIUS = 14  # of a sampling point in it


@dataclass
class Picture:
    """A picture and what a model makes of it."""

    image: Image.Image
    # The result of the pipeline.
    results: list[dict]
    # The picture as the model gets it, (height, width, 3) in [0, 1], and the sampling of each stage. Without an
    # InternImage in the model: `None`, and no stages.
    model_input: torch.Tensor | None
    stages: list[StageSampling]


@functools.lru_cache(maxsize=2)
def load_pipeline(name: str) -> Pipeline:
    """The pipeline of a checkpoint, a folder or a Hub id. The two last ones stay in memory."""
    task, _ = find_task(AutoConfig.from_pretrained(name), name)
    return pipeline(task, model=name)


@functools.lru_cache(maxsize=4)
def look_at(model_name: str, path: str) -> Picture:
    """Run a model on a picture. What it makes of the last four pictures stays in memory."""
    pipe = load_pipeline(model_name)
    image = images.decode_image(path, "The picture")

    def run():
        return pipe(image, **OPTIONS[pipe.task])

    if not find_encoders(pipe.model):
        return Picture(image, run(), None, [])
    pixel_values, stages, results = sample_stages(pipe.model, run)
    return Picture(image, results, displayable(pixel_values.cpu(), pipe.image_processor), stages)


def class_scores(picture: Picture, threshold: float) -> dict[str, float]:
    """Of a classifier: the classes with at least this score."""
    return {row["label"]: row["score"] for row in picture.results if row["score"] >= threshold}


def segments(picture: Picture) -> list[tuple[np.ndarray, str, float]]:
    """Of a segmentation model: mask (height, width) in {0, 1}, class and share of the picture, the largest first."""
    masks = [(np.asarray(row["mask"]) > 0, row["label"]) for row in picture.results]
    rows = [(mask.astype(np.uint8), label, mask.mean().item()) for mask, label in masks]
    return sorted((row for row in rows if row[2] > 0), key=lambda row: -row[2])


def detections(picture: Picture, threshold: float) -> list[list]:
    """Of a detector: class, score, and left, top, right, bottom in pixels of what has at least this score."""
    rows = [row for row in picture.results if row["score"] >= threshold]
    rows.sort(key=lambda row: -row["score"])
    return [
        [row["label"], row["score"], *(row["box"][side] for side in ("xmin", "ymin", "xmax", "ymax"))] for row in rows
    ]


def draw_boxes(picture: Picture, rows: list[list], config: PreTrainedConfig) -> np.ndarray:
    """The picture with the `rows` of `detections`, uint8 (height, width, 3)."""
    result = {
        "labels": torch.tensor([config.label2id[row[0]] for row in rows], dtype=torch.int64),
        "scores": torch.tensor([row[1] for row in rows]),
        "boxes": torch.tensor([row[2:] for row in rows]).view(-1, 4),
    }
    return draw_detections(picture.image, result, config)


def colours_of_classes(config: PreTrainedConfig) -> dict[str, str]:
    """Of each class, as "#rrggbb"."""
    return {
        config.id2label[idx]: f"#{red:02x}{green:02x}{blue:02x}"
        for idx, (red, green, blue) in enumerate(class_colours(config).tolist())
    }


def colours_of_stages(num_stages: int) -> list[tuple[int, int, int]]:
    """RGB, from 0 to 255."""
    colours = plt.get_cmap("plasma")(np.linspace(0, 0.9, num_stages))
    return [tuple(colour) for colour in (255 * colours[:, :3]).round().astype(int).tolist()]


def enlargement(picture: Picture) -> float:
    """Pixels of the drawn photograph for one of the model's input."""
    return PHOTOGRAPH_SIDE / max(picture.model_input.shape[:2])


def draw_photograph(picture: Picture, x: int, y: int) -> Image.Image:
    """
    The sampling points of all stages for the pixel (`x`, `y`) of the model's input, over it: a colour for each stage,
    the area of a point in proportion to its weight.
    """
    height, width = picture.model_input.shape[:2]
    # Twice as large, and reduced in the end: Pillow draws without smoothing edges.
    scale = 2 * enlargement(picture)
    pixels = (255 * (0.6 * picture.model_input + 0.4)).round().byte().numpy()
    canvas = Image.fromarray(pixels).resize((round(width * scale), round(height * scale)), Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(canvas)
    samples = [stage.for_pixel(x, y) for stage in picture.stages]
    largest = max(sample["weights"].abs().max().item() for sample in samples)
    for sample, colour in list(zip(samples, colours_of_stages(len(samples))))[::-1]:  # the first stage on top
        centres = ((sample["points"] + 0.5) * scale).tolist()
        radii = (2 * LARGEST_RADIUS * (sample["weights"].abs() / largest).sqrt()).tolist()
        for centre, radius in zip(centres, radii):
            draw.circle(centre, radius, fill=colour, outline="white")
    draw.circle(((x + 0.5) * scale, (y + 0.5) * scale), 2 * LARGEST_RADIUS, outline="red", width=5)
    return canvas.reduce(2)


def draw_panels(picture: Picture, x: int, y: int) -> np.ndarray:
    """A panel for each stage, zoomed in on its points: uint8 (height, width, 4)."""
    figure = draw_stages(picture.model_input, picture.stages, x, y)
    figure.canvas.draw()
    pixels = np.array(figure.canvas.buffer_rgba())
    plt.close(figure)
    return pixels
