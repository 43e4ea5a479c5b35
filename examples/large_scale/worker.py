# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""What the workers of predict.py do: read images, and run the model."""

import argparse
import functools
import io
import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from transformers import AutoModelForImageClassification, pipeline

from examples.evaluation import load_trained_model
from examples.image_files import load_feature_extractor
from modeling_internimage import use_dcnv3_kernel
from modeling_internimage.images import decode_image


# The columns of the tasks' results.
RESULTS = {
    "classes": {"labels": pa.list_(pa.string()), "scores": pa.list_(pa.float32())},
    "features": {"features": pa.list_(pa.float32())},
}


def image_source(name: str, image_column: str) -> str | io.BytesIO:
    """The path of an image file, or the content of an image in a Parquet file. Raises a `ValueError` for a null."""
    match = re.fullmatch(r"(.*\.parquet)#(\d+)", name)
    if match is None:
        return name
    row, group = int(match[2]), 0
    metadata = pq.read_metadata(match[1])
    while row >= metadata.row_group(group).num_rows:
        row -= metadata.row_group(group).num_rows
        group += 1
    value = read_row_group(match[1], group, image_column)[row].as_py()
    if isinstance(value, dict):  # as `datasets` writes images
        value = value["bytes"]
    if not isinstance(value, bytes):
        raise ValueError(f"The image {name} is missing: its row has no bytes.")
    return io.BytesIO(value)


@functools.lru_cache(maxsize=1)
def read_row_group(file: str, group: int, column: str) -> pa.ChunkedArray:
    return pq.ParquetFile(file).read_row_group(group, columns=[column])[column]


def read_images(batch: dict[str, np.ndarray], image_processor, image_column: str) -> dict[str, np.ndarray]:
    """
    Adds `pixel_values` (batch_size, channels, height, width), each as a pipeline preprocesses it, and `reason`: why
    an image cannot be read, "" for the others.
    """

    def preprocess(image: Image.Image) -> np.ndarray:
        return image_processor(image, return_tensors="pt")["pixel_values"][0].numpy()

    pixel_values, reasons = [], []
    for name in batch["file"]:
        try:
            values = preprocess(decode_image(image_source(name, image_column), f"The image {name}"))
            reason = ""
        except ValueError as error:
            values = preprocess(Image.new("RGB", (64, 64)))  # in its place: every row has pixels
            reason = str(error)
        pixel_values.append(values)
        reasons.append(reason)
    if len({values.shape for values in pixel_values}) > 1:
        raise ValueError(
            "The image processor of `--model` leaves images in different sizes, which cannot be in one batch: set its "
            "`crop_size`, or `size` to a height and a width."
        )
    return batch | {"pixel_values": np.stack(pixel_values), "reason": np.array(reasons)}


class Predictor:
    """An actor: the pipeline of a model, without its preprocessing."""

    def __init__(self, args: argparse.Namespace):
        self.columns = RESULTS[args.task]
        device = "cuda" if args.num_gpus else "cpu"
        if args.task == "features":
            self.pipeline = load_feature_extractor(args.model, device, args.dtype, args.kernel)
            self.options = {"pool": True, "return_tensors": True}
            return
        model = load_trained_model(
            AutoModelForImageClassification, args.model, args.dtype, device, use_kernels=False, part="classifier"
        )
        if args.kernel:
            use_dcnv3_kernel(model, strict=True)
        self.pipeline = pipeline("image-classification", model=model, image_processor=args.model, device=device)
        self.options = {"top_k": args.top_k}

    def __call__(self, batch: dict[str, np.ndarray]) -> pa.Table:
        results: dict[str, list] = {name: [[]] * len(batch["file"]) for name in self.columns}
        readable = np.flatnonzero(batch["reason"] == "")
        if len(readable) > 0:
            pixel_values = torch.from_numpy(batch["pixel_values"][readable]).to(self.pipeline.dtype)
            outputs = self.pipeline.forward({"pixel_values": pixel_values})
            for idx, row in enumerate(readable):
                own = {name: value[idx : idx + 1] for name, value in outputs.items()}
                result = self.pipeline.postprocess(own, **self.options)
                if "features" in self.columns:
                    results["features"][row] = result.float().flatten().tolist()
                else:
                    results["labels"][row] = [entry["label"] for entry in result]
                    results["scores"][row] = [entry["score"] for entry in result]
        columns = {"file": batch["file"].tolist(), "reason": batch["reason"].tolist(), **results}
        return pa.table(columns, schema=pa.schema({"file": pa.string(), "reason": pa.string(), **self.columns}))
