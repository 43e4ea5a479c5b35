# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""Dates and places of images as inputs of a classifier with `config.use_metadata_head`."""

import datetime
import math
from collections.abc import Sequence

import torch


def encode_metadata(
    dates: Sequence | None = None, latitudes: Sequence | None = None, longitudes: Sequence | None = None
) -> dict[str, torch.Tensor]:
    """
    The inputs `temporal` and `spatial` of [`InternImageForImageClassification`], as its iNaturalist checkpoint was
    trained with them. Of a date, only the month counts.

    A value is unknown, and gives zeros, if it is `None`, NaN, NaT or an empty string. A latitude or longitude of
    exactly 0 counts as unknown too, as in the original, and a place needs both.

    An image processor has no part in this. In training, the data set or the collator gives each batch the two tensors
    beside `pixel_values`: the `Trainer` keeps columns called `temporal` and `spatial`, and its default collator stacks
    them.

    Args:
        dates (`Sequence`, *optional*):
            ISO 8601 strings ("2018-06-30" or with a time), dates, datetimes or NumPy's datetimes, one for each image.
        latitudes (`Sequence`, *optional*):
            Degrees north, from -90 to 90: numbers or strings of numbers.
        longitudes (`Sequence`, *optional*):
            Degrees east, from -180 to 180.

    Returns:
        `dict[str, torch.Tensor]`: `temporal` of shape `(num_images, 4)` and `spatial` of shape `(num_images, 3)`, both
        float32. What is left out is unknown for all images.

    Raises:
        `ValueError`: for a value that is no date or no such number, naming its position; for lists of different
        lengths; for latitudes without longitudes.

    Example:

    ```python
    >>> from modeling_internimage import encode_metadata

    >>> metadata = encode_metadata(["2018-03-01", None], latitudes=[45.0, None], longitudes=[90.0, None])
    >>> metadata["temporal"].round(decimals=4).tolist()
    [[1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]]
    >>> metadata["spatial"].round(decimals=4).tolist()
    [[0.0, 0.7071, 0.7071], [0.0, 0.0, 0.0]]
    >>> # logits = model(pixel_values, **metadata).logits
    ```"""
    columns = {"dates": dates, "latitudes": latitudes, "longitudes": longitudes}
    given = {name: column for name, column in columns.items() if column is not None}
    for name, column in given.items():
        if isinstance(column, str) or not hasattr(column, "__len__"):
            raise ValueError(f"`{name}` must be a list with one entry for each image, got {column!r}.")
    lengths = {name: len(column) for name, column in given.items()}
    if len(set(lengths.values())) != 1:
        raise ValueError(f"`dates`, `latitudes` and `longitudes` must have one entry for each image, got {lengths}.")
    if (latitudes is None) != (longitudes is None):
        raise ValueError("A place needs both `latitudes` and `longitudes`: give both or neither.")
    num_images = next(iter(lengths.values()))
    unknown = [None] * num_images
    temporal = [_encode_date(date, idx) for idx, date in enumerate(unknown if dates is None else dates)]
    degrees = [
        [
            _read_degrees(name, idx, value, limit)
            for idx, value in enumerate(columns[name] if name in given else unknown)
        ]
        for name, limit in (("latitudes", 90), ("longitudes", 180))
    ]
    spatial = [_encode_place(latitude, longitude) for latitude, longitude in zip(*degrees)]
    return {
        "temporal": torch.tensor(temporal, dtype=torch.float32).view(num_images, 4),
        "spatial": torch.tensor(spatial, dtype=torch.float32).view(num_images, 3),
    }


def _is_unknown(value) -> bool:
    return value is None or bool(value != value) or (isinstance(value, str) and not value.strip())  # (NaN, NaT)


def _encode_date(value, idx: int) -> list[float]:
    if _is_unknown(value):
        return [0.0] * 4
    try:
        month = datetime.date.fromisoformat(str(value).strip()[:10]).month  # without the time
    except ValueError as error:
        raise ValueError(
            f'`dates` must be ISO 8601 ("2018-06-30"), or empty where unknown; entry {idx} is {value!r}.'
        ) from error
    angle = 2 * math.pi * month / 12
    return [math.sin(angle), math.cos(angle), 0.0, 0.0]


def _read_degrees(name: str, idx: int, value, limit: int) -> float:
    """A latitude or longitude in degrees, 0 for an unknown one."""
    if _is_unknown(value):
        return 0.0
    try:
        degrees = float(value)
    except (TypeError, ValueError):
        degrees = math.inf
    if math.isnan(degrees):  # the string "nan"
        return 0.0
    if not -limit <= degrees <= limit:
        raise ValueError(
            f"`{name}` must be degrees from {-limit} to {limit}, or empty where unknown; entry {idx} is {value!r}."
        )
    return degrees


def _encode_place(latitude: float, longitude: float) -> list[float]:
    if latitude == 0 or longitude == 0:
        return [0.0] * 3
    latitude, longitude = math.radians(latitude), math.radians(longitude)
    return [
        math.cos(latitude) * math.cos(longitude),
        math.cos(latitude) * math.sin(longitude),
        math.sin(latitude),
    ]
