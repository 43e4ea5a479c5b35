# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""Image files on the command line, and the pooled features of them."""

import glob
import itertools
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers import AutoModel, Pipeline, pipeline

from examples.image_datasets import image_endings
from modeling_internimage import use_dcnv3_kernel
from modeling_internimage.cli.image_sources import files_below
from modeling_internimage.images import decode_image


def list_files(sources: Iterable[str], endings: Iterable[str] | None = None) -> list[str]:
    """
    The files that `sources` name, each once: files, folders (with the folders in them, without hidden files), glob
    patterns and text files (`.txt`) with a path in each line.

    Args:
        endings (`Iterable[str]`, *optional*):
            In lower case, with the dot: which files of a folder are taken. Defaults to those of images.

    Raises:
        `ValueError`: for a source without any files.
    """
    endings = tuple(image_endings() if endings is None else endings)
    files: dict[str, None] = {}
    for source in sources:
        if os.path.isdir(source):
            found = files_below(source, endings)
        elif source.lower().endswith(".txt") and os.path.isfile(source):
            found = [line for line in Path(source).read_text(encoding="utf-8").splitlines() if line.strip()]
        elif os.path.exists(source):
            found = [source]
        else:
            found = sorted(file for file in glob.glob(source, recursive=True) if os.path.isfile(file))
        if not found:
            raise ValueError(f"{source} has no images: name a folder, files, a pattern or a .txt file with paths.")
        files |= dict.fromkeys(map(os.path.normpath, found))
    return list(files)


def load_feature_extractor(model_name_or_path: str, device: str, dtype: str, kernel: bool = False) -> Pipeline:
    """
    transformers' pipeline for features of a checkpoint, with pooled features, float tensors of shape (1, channels), as
    its results. With `kernel`, DCNv3 runs as the compiled kernel, or a [`KernelNotAvailableError`] is raised.
    """
    model = AutoModel.from_pretrained(model_name_or_path, dtype=getattr(torch, dtype))
    extractor = pipeline(
        "image-feature-extraction",
        model=model,
        image_processor=model_name_or_path,
        device=device,
        pool=True,
        return_tensors=True,
    )
    if kernel:
        use_dcnv3_kernel(extractor.model, strict=True)
    return extractor


@dataclass
class Embedded:
    """A batch of files: those that can be read, their `features` (len(files), channels), float32, and the others."""

    files: list[str]
    features: np.ndarray
    unreadable: dict[str, str]  # file -> reason


def embed_files(extractor: Pipeline, files: Iterable[str], batch_size: int) -> Iterator[Embedded]:
    """Pooled features of image files, a batch at a time."""
    files = iter(files)
    while names := list(itertools.islice(files, batch_size)):
        images, unreadable = {}, {}
        for name in names:
            try:
                images[name] = decode_image(name, f"The image file {name}")
            except ValueError as error:
                unreadable[name] = str(error)
        yield Embedded(list(images), embed_images(extractor, list(images.values())), unreadable)


def embed_images(extractor: Pipeline, images: list[Image.Image]) -> np.ndarray:
    """Pooled features (len(images), channels), float32, of images in one batch; (0, 0) of none."""
    if not images:
        return np.empty((0, 0), np.float32)
    features = extractor(images, batch_size=len(images))
    return torch.cat(features).float().numpy()
