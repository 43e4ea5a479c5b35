# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""
From a picture to the inputs of an exported model, and from its outputs to labels, boxes and masks: with NumPy and
Pillow only, as the image processors do it. Pixels equal those of their Pillow backends.

Copy this file beside your program: it needs neither torch nor transformers nor the rest of this repository.
"""

import json
import math
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps


def read_json(folder: str | os.PathLike, name: str) -> dict:
    """`config.json` or `preprocessor_config.json` of an exported model."""
    return json.loads(Path(folder, name).read_text(encoding="utf-8"))


def open_image(path: str | os.PathLike) -> Image.Image:
    """An image file as RGB, turned as its EXIF data says."""
    with Image.open(path) as image:
        return ImageOps.exif_transpose(image).convert("RGB")


def preprocess(image: Image.Image, settings: dict, size: Sequence = ()) -> dict[str, np.ndarray]:
    """
    The inputs of an exported model, a batch of one image.

    Args:
        image (`PIL.Image.Image`):
            RGB, of any size.
        settings (`dict`):
            The content of `preprocessor_config.json`.
        size (`Sequence`, *optional*):
            Height and width of the input `pixel_values` as ONNX Runtime has them: numbers where the file takes no
            other, else names. A detector's image has to fit into a fixed size and is padded, that of a segmentation
            model is resized to it.

    Returns:
        `pixel_values`, float32 (1, 3, height, width), and for detectors `pixel_mask`, int64 (1, height, width), which
        is 1 on the image and 0 on the padding.
    """
    fixed = tuple(size) if len(size) == 2 and all(isinstance(side, int) for side in size) else None
    if settings["image_processor_type"].startswith("CLIP"):  # classifiers
        pixels = _resize_and_crop(image, settings)
    else:
        pixels = np.asarray(image)
        for height, width in _sizes(image.height, image.width, settings, fixed):
            pixels = resize_bytes(pixels, height, width)
    values = (pixels * np.float64(settings["rescale_factor"])).astype(np.float32)
    mean, std = (np.array(settings[name], dtype=np.float32) for name in ("image_mean", "image_std"))
    values = ((values - mean) / std).transpose(2, 0, 1)[None]
    if not settings.get("do_pad"):
        return {"pixel_values": np.ascontiguousarray(values)}
    height, width = values.shape[2:]
    padded_height, padded_width = fixed or _padded_size(height, width, settings)
    padding = ((0, padded_height - height), (0, padded_width - width))
    mask = np.pad(np.ones((1, height, width), dtype=np.int64), ((0, 0), *padding))
    return {"pixel_values": np.pad(values, ((0, 0), (0, 0), *padding)), "pixel_mask": mask}


def _resize_and_crop(image: Image.Image, settings: dict) -> np.ndarray:
    """Shorter side to `shortest_edge` by Pillow's filter, then the middle; uint8 (height, width, 3)."""
    size, crop = settings["size"], settings["crop_size"]
    if "shortest_edge" in size:
        shorter, edge = min(image.size), size["shortest_edge"]
        width, height = (edge if side == shorter else int(edge * side / shorter) for side in image.size)
    else:
        width, height = size["width"], size["height"]
    image = image.resize((width, height), resample=settings["resample"])
    left, top = (width - crop["width"]) // 2, (height - crop["height"]) // 2
    return np.asarray(image.crop((left, top, left + crop["width"], top + crop["height"])))


def _sizes(height: int, width: int, settings: dict, fixed: tuple[int, int] | None) -> list[tuple[int, int]]:
    """The sizes (height, width) that an image of a detector or segmentation model is resized to, one after another."""
    size, divisor, is_padded = settings["size"], settings.get("size_divisor"), settings.get("do_pad")
    if fixed and not is_padded:
        return [fixed]
    if "height" in size:
        height, width = size["height"], size["width"]
    else:
        scales = [size.get("longest_edge", math.inf) / max(height, width)]
        scales += [size.get("shortest_edge", math.inf) / min(height, width)]
        if fixed:
            scales += [fixed[0] / height, fixed[1] / width]
        height, width = (max(int(side * min(scales) + 0.5), 1) for side in (height, width))
    if is_padded or not divisor:
        return [(height, width)]
    return [(height, width), (math.ceil(height / divisor) * divisor, math.ceil(width / divisor) * divisor)]


def _padded_size(height: int, width: int, settings: dict) -> tuple[int, int]:
    if settings.get("pad_size"):
        return settings["pad_size"]["height"], settings["pad_size"]["width"]
    divisor = settings["size_divisor"]
    return math.ceil(height / divisor) * divisor, math.ceil(width / divisor) * divisor


def resize_bytes(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    """
    uint8 (height, width, channels) at another size, as `cv2.resize` does it to the last bit: bilinear, without
    antialiasing, with integer weights in units of 2**-11.
    """
    if pixels.shape[:2] == (height, width):
        return pixels
    left, right, right_weight = _neighbours(pixels.shape[1], width)
    above, below, below_weight = _neighbours(pixels.shape[0], height)
    right_weight, below_weight = (
        np.rint(weight * 2048).astype(np.int32)[:, None] for weight in (right_weight, below_weight)
    )
    pixels = pixels.astype(np.int32)
    rows = (pixels[:, left] * (2048 - right_weight) + pixels[:, right] * right_weight) >> 4
    below_weight = below_weight[:, None]
    upper, lower = (rows[above] * (2048 - below_weight)) >> 16, (rows[below] * below_weight) >> 16
    return ((upper + lower + 2) >> 2).astype(np.uint8)


def resize_scores(scores: np.ndarray, height: int, width: int) -> np.ndarray:
    """float32 (channels, height, width) at another size: bilinear, without antialiasing."""
    if scores.shape[1:] == (height, width):
        return scores
    left, right, right_weight = _neighbours(scores.shape[2], width)
    above, below, below_weight = _neighbours(scores.shape[1], height)
    scores = scores[:, :, left] * (1 - right_weight) + scores[:, :, right] * right_weight
    below_weight = below_weight[:, None]
    return scores[:, above] * (1 - below_weight) + scores[:, below] * below_weight


def _neighbours(size: int, new_size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each new pixel along one side, the two old ones it lies between and the weight of the second, float32."""
    position = ((np.arange(new_size) + 0.5) * (1 / (new_size / size)) - 0.5).astype(np.float32)
    first = np.floor(position)
    weight = position - first
    first = first.astype(np.int64)
    return first.clip(0, size - 1), (first + 1).clip(0, size - 1), weight


def probabilities(logits: np.ndarray) -> np.ndarray:
    """Softmax over the last axis."""
    exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return exponentials / exponentials.sum(axis=-1, keepdims=True)


def label_map(outputs: dict[str, np.ndarray], height: int, width: int) -> np.ndarray:
    """
    The class of every pixel, int64 (height, width).

    Args:
        outputs (`dict[str, np.ndarray]`):
            Of a semantic segmentation model (`logits`) or Mask2Former (`class_queries_logits` and
            `masks_queries_logits`), by name, for one image.
        height, width (`int`):
            Of the picture.
    """
    if "logits" in outputs:
        scores = outputs["logits"][0]
    else:
        classes = probabilities(outputs["class_queries_logits"][0])[:, :-1]  # the last stands for no object
        masks = _sigmoid(outputs["masks_queries_logits"][0])
        scores = np.einsum("qc,qhw->chw", classes, masks, optimize=True)
        scores = resize_scores(scores, 4 * scores.shape[1], 4 * scores.shape[2])
    return resize_scores(scores, height, width).argmax(axis=0)


def detections(
    outputs: dict[str, np.ndarray], height: int, width: int, threshold: float = 0.05, max_detections: int = 100
) -> dict[str, np.ndarray]:
    """
    The objects of one image, the best first.

    Args:
        outputs (`dict[str, np.ndarray]`):
            Of a two-stage detector (`pred_scores`, `pred_labels`, `pred_boxes` and, with masks, `pred_masks`) or DINO
            (`logits` and `pred_boxes`), by name.
        height, width (`int`):
            Of the picture.
        threshold (`float`, *optional*, defaults to 0.05):
            Smallest score, exclusive.
        max_detections (`int`, *optional*, defaults to 100):
            Of DINO; `max_detections` in its `preprocessor_config.json`.

    Returns:
        `scores` (n,), `labels` (n,), `boxes` (n, 4), left, top, right and bottom in pixels, and, with masks, `masks`,
        bool (n, height, width).
    """
    boxes = outputs["pred_boxes"][0]
    if "pred_scores" in outputs:
        scores, labels = outputs["pred_scores"][0], outputs["pred_labels"][0]
    else:
        scores = _sigmoid(outputs["logits"][0]).ravel()
        best = np.argsort(-scores, kind="stable")[:max_detections]
        queries, labels = np.divmod(best, outputs["logits"].shape[-1])
        scores, boxes = scores[best], boxes[queries]
    centre, half_size = boxes[:, :2], boxes[:, 2:] / 2
    boxes = np.concatenate([centre - half_size, centre + half_size], axis=1).clip(0, 1)
    boxes *= np.array([width, height, width, height], dtype=boxes.dtype)
    kept = scores > max(threshold, 0)
    result = {"scores": scores[kept], "labels": labels[kept], "boxes": boxes[kept]}
    if "pred_masks" in outputs:
        masks = zip(_sigmoid(outputs["pred_masks"][0][kept]), result["boxes"])
        pasted = [paste_mask(mask, box, height, width) >= 0.5 for mask, box in masks]
        result["masks"] = np.array(pasted, dtype=bool).reshape(-1, height, width)
    return result


def paste_mask(mask: np.ndarray, box: np.ndarray, height: int, width: int) -> np.ndarray:
    """
    The mask of a box as a mask of the whole picture, float32 (height, width): bilinear sampling at the centres of its
    pixels, 0 outside of the box.

    Args:
        mask (`np.ndarray` of shape `(mask_height, mask_width)`):
            Probabilities.
        box (`np.ndarray` of shape `(4,)`):
            Left, top, right and bottom in pixels.
        height, width (`int`):
            Of the picture.
    """
    weights = []
    for start, end, size, mask_size in (
        (box[1], box[3], height, mask.shape[0]),
        (box[0], box[2], width, mask.shape[1]),
    ):
        centres = np.arange(size, dtype=np.float32) + np.float32(0.5)
        # A box without width or height gets the middle of its mask everywhere along it.
        fraction = (centres - start) / (end - start) if end > start else np.full_like(centres, 0.5)
        positions = fraction * np.float32(mask_size) - np.float32(0.5)
        distances = np.abs(positions[:, None] - np.arange(mask_size, dtype=np.float32))
        weights.append((1 - distances).clip(0))
    return weights[0] @ mask @ weights[1].T


def _sigmoid(logits: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-logits))
