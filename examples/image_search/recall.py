# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""
Recall@1: how often the nearest neighbour of an image is of the same class.

    python -m examples.image_search.recall --model outputs/photographs_model --data-dir outputs/photographs \\
        --output examples/results/image_search.json

The images of `train` are searched for the neighbours of those of `validation`, folders of `--data-dir` with a folder
for each class. Beside the model: models of its architecture with random weights, and the pixels that it is given.
"""

import argparse
import statistics
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModel, Pipeline

from examples.benchmark.measuring import machine_description
from examples.image_datasets import published_name
from examples.image_files import embed_files, list_files, load_feature_extractor
from examples.image_search.build_index import add_model_arguments
from examples.image_search.image_index import build_vectors, normalized
from examples.output_files import check_outputs, mark_of, write_json
from modeling_internimage.images import decode_image


MARK = mark_of(__file__)
UNTRAINED_SEEDS = range(5)


def recall_at_1(files: list[str], features: np.ndarray, queries: list[str], query_features: np.ndarray) -> float:
    """The part of the queries whose nearest file is in a folder of the same name."""
    _, nearest = build_vectors(features, "Flat").search(normalized(query_features), 1)
    hits = [Path(query).parent.name == Path(files[idx]).parent.name for query, (idx,) in zip(queries, nearest)]
    return round(sum(hits) / len(hits), 4)


def embed(extractor: Pipeline, files: list[str], batch_size: int) -> np.ndarray:
    """(len(files), channels). Raises a `ValueError` for a file that cannot be read."""
    batches = list(embed_files(extractor, files, batch_size))
    for batch in batches:
        for reason in batch.unreadable.values():
            raise ValueError(reason)
    return np.concatenate([batch.features for batch in batches])


def pixels(extractor: Pipeline, files: list[str]) -> np.ndarray:
    """What the model is given, in one row of numbers for each image."""
    images = [decode_image(file, f"The image file {file}") for file in files]
    return extractor.image_processor(images, return_tensors="pt")["pixel_values"].flatten(1).numpy()


def measure(extractor: Pipeline, files: list[str], queries: list[str], batch_size: int) -> float:
    return recall_at_1(files, embed(extractor, files, batch_size), queries, embed(extractor, queries, batch_size))


def main(argv: list[str] | None = None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="checkpoint of an InternImage: a folder or a Hub id")
    parser.add_argument("--data-dir", type=Path, default=Path("outputs/photographs"))
    parser.add_argument("--output", type=Path, help="JSON file for the results")
    add_model_arguments(parser)
    args = parser.parse_args(argv)
    if args.output is not None:
        check_outputs([args.output], MARK)
    files, queries = (list_files([str(args.data_dir / split)]) for split in ("train", "validation"))
    extractor = load_feature_extractor(args.model, args.device, args.dtype, args.kernel)
    recall = {"trained": measure(extractor, files, queries, args.batch_size)}
    untrained = []
    for seed in UNTRAINED_SEEDS:
        torch.manual_seed(seed)
        extractor.model = AutoModel.from_config(extractor.model.config).to(extractor.device).eval()
        untrained.append(measure(extractor, files, queries, args.batch_size))
    recall["untrained"] = round(statistics.mean(untrained), 4)
    recall["pixels"] = recall_at_1(files, pixels(extractor, files), queries, pixels(extractor, queries))
    result = {
        "model": published_name(args.model),
        "data": published_name(str(args.data_dir)),
        "num_images": len(files),
        "num_queries": len(queries),
        "recall_at_1": recall,
        "recall_at_1_of_untrained": untrained,
        "machine": machine_description(args.device),
    }
    print(f"recall@1 of {len(queries)} queries among {len(files)} images: {recall}")
    if args.output is not None:
        write_json(args.output, result, MARK)
        print(f"Written: {args.output}")


if __name__ == "__main__":
    main()
