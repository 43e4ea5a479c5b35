# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""Class names of the data sets that the official detectors were trained on."""

from pathlib import Path


# One name per line, in the order of the classes of the official models. The order of Open Images is that of its file
# class-descriptions-boxable.csv, which the original reads when it runs; the names are those of version 6.
DETECTION_LABEL_FILES = {
    "COCO": "coco.txt",
    "CrowdHuman": "crowdhuman.txt",
    "LVIS v1": "lvis-v1.txt",
    "OpenImages": "open-images.txt",
    "VOC": "voc.txt",
}


def detection_labels(dataset: str) -> list[str] | None:
    """Class names of one of `DETECTION_LABEL_FILES`, or `None` for another data set."""
    if dataset not in DETECTION_LABEL_FILES:
        return None
    file = Path(__file__).parents[1] / "labels" / DETECTION_LABEL_FILES[dataset]
    return file.read_text(encoding="utf-8").splitlines()
