# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""Annotations in the format of COCO: checks, before pycocotools sees them, and masks."""

import math
import reprlib

import numpy as np


# Limits in pixels, beyond any image. pycocotools truncates coordinates and counts to 32 bits and allocates memory in
# proportion to the length of outlines, without checks.
MAX_COORDINATE = 10**6
MAX_OUTLINE = 2 * 10**6
MAX_ID = 2**53


def check_annotation(entry: dict, image_id) -> dict:
    """
    A copy of an annotation with `bbox` as a list, `iscrowd` and `ignore` as `bool`, and `area` only if it is known.

    Args:
        entry: With `bbox` and `category_id`; `id` is for messages.
        image_id: For messages.

    Raises:
        `ValueError`: if a value is not in COCO's format. [`check_segmentation`] checks `segmentation`.
    """
    if not isinstance(entry, dict):
        raise ValueError(f"Image {image_id} has the annotation {reprlib.repr(entry)}: it must be a dictionary.")
    box = _plain(entry.get("bbox"))
    if not isinstance(box, list) or len(box) != 4 or not all(map(_is_number, box)):
        raise _error(
            entry, image_id, f"has the `bbox` {reprlib.repr(box)}: it must be left, top, width and height in pixels."
        )
    category = _plain(entry.get("category_id"))
    if not _is_number(category, MAX_ID) or category % 1:
        raise _error(
            entry,
            image_id,
            f"has the category {reprlib.repr(category)}: `category_id` must be a whole number, and no text.",
        )
    checked = entry | {"bbox": box, "category_id": category}
    for key in ("iscrowd", "ignore"):
        value = _plain(entry.get(key))
        if value is not None and not (_is_number(value, 1) and value in (0, 1)):
            raise _error(entry, image_id, f"has `{key}` {reprlib.repr(value)}: it must be 0 or 1.")
        checked[key] = bool(value)
    area = _plain(checked.pop("area", None))
    if area is not None:
        if not _is_number(area, MAX_COORDINATE**2):
            raise _error(entry, image_id, f"has the `area` {reprlib.repr(area)}: it must be a number of pixels.")
        checked["area"] = area
    return checked


def check_segmentation(entry: dict, image_id, height: int | None, width: int | None) -> list[list[float]] | dict:
    """
    The mask of an annotation, safe for pycocotools: polygons of at least three corners, or run lengths that fill the
    image. A single polygon need not be in a list. Polygons of one or two corners, as annotation tools leave them
    beside others, are left out.

    Args:
        entry: With `segmentation`; `id` is for messages.
        image_id: For messages.
        height, width: Size of the image in pixels, if known.

    Raises:
        `ValueError`: if it is neither.
    """
    segmentation = _plain(entry.get("segmentation"))
    if not segmentation:
        raise _error(entry, image_id, "has no `segmentation`: add it, or remove the annotation.")
    if isinstance(segmentation, dict):
        return _check_runs(entry, segmentation, image_id, height, width)
    if not isinstance(segmentation, list):
        raise _error(
            entry,
            image_id,
            f"has the `segmentation` {reprlib.repr(segmentation)}: it must be polygons or run lengths.",
        )
    if _is_number(segmentation[0], math.inf):
        segmentation = [segmentation]
    polygons = [_plain(polygon) for polygon in segmentation]
    for polygon in polygons:
        if not isinstance(polygon, list) or len(polygon) % 2 or not _are_coordinates(polygon):
            raise _error(
                entry,
                image_id,
                f"has the polygon {reprlib.repr(polygon)}: it must be x, y, x, y, ... in pixels. Correct it, "
                "or remove the annotation.",
            )
    polygons = [polygon for polygon in polygons if len(polygon) >= 6]
    if not polygons:
        raise _error(
            entry,
            image_id,
            f"has no polygon with three corners, only {reprlib.repr(segmentation)}: correct it, or remove the "
            "annotation.",
        )
    if sum(map(_longest_outline, polygons)) > MAX_OUTLINE and sum(map(_outline, polygons)) > MAX_OUTLINE:
        raise _error(
            entry,
            image_id,
            f"has polygons with an outline of more than {MAX_OUTLINE} pixels: correct them, or remove the annotation.",
        )
    return polygons


def encode_mask(segmentation: list[list[float]] | dict, height: int, width: int) -> dict:
    """Compressed run lengths, as pycocotools has them, of what [`check_segmentation`] returns."""
    try:
        from pycocotools import mask as coco_mask
    except ImportError as error:
        raise ImportError(
            'Masks of annotations need pycocotools: pip install "modeling-internimage[train]".'
        ) from error
    if isinstance(segmentation, list):
        return coco_mask.merge(coco_mask.frPyObjects(segmentation, height, width))
    if isinstance(segmentation["counts"], list):
        return coco_mask.frPyObjects(segmentation, height, width)
    return segmentation


def decode_mask(segmentation: list[list[float]] | dict, height: int, width: int) -> np.ndarray:
    """The same as an array (height, width) of uint8, 0 and 1."""
    runs = encode_mask(segmentation, height, width)
    from pycocotools import mask as coco_mask

    return coco_mask.decode(runs)


def _error(entry: dict, image_id, text: str) -> ValueError:
    own = entry.get("id")
    name = "An annotation" if own is None else f"Annotation {reprlib.repr(own)}"
    return ValueError(f"{name} of image {image_id} {text}")


def _plain(value):
    """Lists and numbers in place of tuples, arrays and tensors."""
    if isinstance(value, (list, int, float)):  # a tuple of types is quicker than their union
        return value
    return list(value) if isinstance(value, tuple) else value.tolist() if hasattr(value, "tolist") else value


def _is_number(value, limit: float = MAX_COORDINATE) -> bool:
    return isinstance(value, (int, float, np.number)) and bool(-limit <= value <= limit)  # False for NaN


def _are_coordinates(polygon: list) -> bool:
    try:
        # The sum finds NaN, which makes minimum and maximum depend on the order. All three are quick on long lists.
        if not polygon:
            return True
        return math.isfinite(sum(polygon)) and max(-min(polygon), max(polygon)) <= MAX_COORDINATE
    except (TypeError, OverflowError):  # of text, lists or integers beyond any float
        return False


def _longest_outline(polygon: list[float]) -> float:
    return len(polygon) * (max(polygon) - min(polygon))


def _outline(polygon: list[float]) -> float:
    corners = np.reshape(polygon, (-1, 2))
    return np.abs(corners - np.roll(corners, 1, axis=0)).max(axis=1).sum()


def _check_runs(entry: dict, segmentation: dict, image_id, height: int | None, width: int | None) -> dict:
    size, counts = _plain(segmentation.get("size")), _plain(segmentation.get("counts"))
    is_size = isinstance(size, list) and len(size) == 2 and all(isinstance(side, int) and side > 0 for side in size)
    if not is_size or size[0] * size[1] >= 2**32:
        raise _error(
            entry, image_id, f"has a mask of size {reprlib.repr(size)}: it must be its height and width in pixels."
        )
    if (height or size[0], width or size[1]) != tuple(size):
        raise _error(
            entry,
            image_id,
            f"has a mask of {size[0]}x{size[1]} pixels (height x width), but the image has "
            f"{height or size[0]}x{width or size[1]}: correct it, or remove the annotation.",
        )
    if isinstance(counts, str | bytes):
        runs = _decompress(counts)
    else:
        runs = counts if isinstance(counts, list) and set(map(type, counts)) <= {int} else None
    if not runs or min(runs) < 0 or sum(runs) != size[0] * size[1]:
        raise _error(
            entry,
            image_id,
            f"has the run lengths {reprlib.repr(counts)}: they must be whole numbers that add up to the pixels "
            f"of the mask, {size[0]}x{size[1]}. Correct them, or remove the annotation.",
        )
    return {"size": size, "counts": counts}


def _decompress(counts: str | bytes) -> list[int] | None:
    """
    Run lengths of a compressed string, or `None` if it is malformed. A character holds five bits, the lowest first;
    from the fourth number on, the string has differences to the number two before.
    """
    try:
        codes = np.frombuffer(counts.encode() if isinstance(counts, str) else counts, np.uint8).astype(np.int64) - 48
    except UnicodeEncodeError:  # half of a surrogate pair
        return None
    ends = np.flatnonzero(codes < 32)
    if not len(ends) or ends[-1] != len(codes) - 1 or codes.min() < 0 or codes.max() > 63:
        return None
    lengths = np.diff(ends, prepend=-1)
    if lengths.max() > 7:  # 35 bits
        return None
    starts = ends - lengths + 1
    positions = np.arange(len(codes)) - np.repeat(starts, lengths)
    runs = np.add.reduceat((codes & 31) << 5 * positions, starts)
    runs -= (codes[ends] >> 4) << 5 * lengths  # the sign
    runs[1::2] = np.cumsum(runs[1::2])
    runs[2::2] = np.cumsum(runs[2::2])
    return runs.tolist()
