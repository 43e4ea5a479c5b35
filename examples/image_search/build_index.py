# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""
An index of images for `examples.image_search.search`, by the pooled features of a model.

    python -m examples.image_search.build_index photos --model outputs/my_model --index outputs/photo_index
    python -m examples.image_search.build_index --features features.parquet --model M --index outputs/photo_index

Run again with the same folder of the index, the first form computes features of new and changed files only, and drops
files that are no longer there; a run that was interrupted goes on. The second takes features that are there already:
Parquet files, or folders of them, with the columns `file` and `features`, as `internimage embed` and
`examples.large_scale.predict --task features` write them.
"""

import argparse
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from tqdm import tqdm
from transformers import Pipeline

from examples.image_files import embed_files, list_files, load_feature_extractor
from examples.image_search.image_index import ImageIndex, are_same, model_signature
from examples.parquet_parts import TableWriter, read_tables
from modeling_internimage.training.folder_lock import FolderLock


ROWS_PER_FILE = 1000
SCHEMA = pa.schema({"file": pa.string(), "modified": pa.int64(), "features": pa.list_(pa.float32())})


def add_model_arguments(parser: argparse.ArgumentParser):
    parser.add_argument("--batch-size", type=int, default=32, help="images at once")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu, cuda, cuda:1")
    parser.add_argument("--dtype", choices=["float32", "float16", "bfloat16"], default="float32", help="of the model")
    parser.add_argument("--kernel", action="store_true", help="run DCNv3 as the compiled kernel")


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", nargs="*", help="folders, image files, patterns, .txt files with paths")
    parser.add_argument("--features", nargs="+", default=[], help="Parquet files with features, in place of images")
    parser.add_argument("--model", required=True, help="checkpoint of an InternImage: a folder or a Hub id")
    parser.add_argument("--index", type=Path, required=True, help="folder of the index")
    parser.add_argument("--factory", default="Flat", help="kind of index for faiss.index_factory: 'IVF4096,Flat'")
    add_model_arguments(parser)
    args = parser.parse_args(argv)
    if bool(args.images) == bool(args.features):
        raise ValueError("Name images, or files with features after `--features`, and not both.")
    if args.batch_size < 1:
        raise ValueError(f"`--batch-size {args.batch_size}` must be at least 1.")
    return args


def embed_new_files(
    extractor: Pipeline, files: list[str], folder: Path, batch_size: int
) -> tuple[list[str], np.ndarray]:
    """
    The readable files and their features (num_files, channels). What is computed is added to the table in `folder`;
    what is there already, of a file with this name and time of modification, is taken from it.
    """
    modified = {file: os.stat(file).st_mtime_ns if os.path.exists(file) else 0 for file in files}
    known = features_of(read_tables([folder], SCHEMA.names) if folder.is_dir() else SCHEMA.empty_table(), modified)
    new = [file for file in files if file not in known]
    unreadable: dict[str, str] = {}
    with TableWriter(folder, SCHEMA, ROWS_PER_FILE) as writer, tqdm(total=len(new), unit=" images") as progress:
        for batch in embed_files(extractor, new, batch_size):
            times = [modified[file] for file in batch.files]
            writer.add({"file": batch.files, "modified": times, "features": list(batch.features)})
            known |= zip(batch.files, batch.features)
            unreadable |= batch.unreadable
            progress.update(len(batch.files) + len(batch.unreadable))
    for reason in unreadable.values():
        print(f"Left out: {reason}")
    print(f"{len(new) - len(unreadable)} files embedded, {len(files) - len(new)} known, {len(unreadable)} unreadable.")
    readable = [file for file in files if file in known]
    if not readable:
        raise ValueError(f"None of the {len(files)} image files can be read.")
    return readable, np.stack([known[file] for file in readable])


def features_of(table: pa.Table, modified: dict[str, int]) -> dict[str, np.ndarray]:
    """The rows of a table that belong to these files, as they are now."""
    current = [
        modified.get(file) == time for file, time in zip(table["file"].to_pylist(), table["modified"].to_pylist())
    ]
    table = table.filter(pa.array(current, pa.bool_()))
    return dict(zip(table["file"].to_pylist(), feature_matrix(table)))


def feature_matrix(table: pa.Table) -> np.ndarray:
    """The column `features` as float32 (num_rows, channels). Raises a `ValueError` if rows have different lengths."""
    rows = [np.asarray(row, np.float32) for row in table["features"].to_numpy()]
    if len({len(row) for row in rows}) > 1:
        raise ValueError("The features have different lengths: they must be those of one model.")
    return np.stack(rows) if rows else np.empty((0, 0), np.float32)


def read_features(paths: list[str], extractor: Pipeline, model: str) -> tuple[list[str], np.ndarray]:
    """
    The files and features of Parquet files. The features of the first file that is here are computed again, and a
    `ValueError` says so if they are not those of the model.
    """
    table = read_tables(paths, ["file", "features"])
    files, features = table["file"].to_pylist(), feature_matrix(table)
    if not files:
        raise ValueError(f"`--features {' '.join(paths)}` has no rows.")
    if len(set(files)) < len(files):
        raise ValueError(f"`--features {' '.join(paths)}` has {len(files) - len(set(files))} files more than once.")
    here = next((row for row, file in enumerate(files) if os.path.isfile(file)), None)
    if here is not None:
        computed = next(embed_files(extractor, [files[here]], batch_size=1)).features
        if len(computed) and not are_same(computed[0], features[here]):
            raise ValueError(
                f"`--features {' '.join(paths)}` are of another model: {model} computes others of {files[here]}. Name "
                "the model that computed them."
            )
    return files, features


def main(argv: list[str] | None = None):
    args = parse_arguments(argv)
    files = list_files(args.images)
    exists = ImageIndex.exists(args.index)
    extractor = load_feature_extractor(args.model, args.device, args.dtype, args.kernel)
    signature = model_signature(extractor)
    with FolderLock(args.index):
        if exists:
            index = ImageIndex.load(args.index)
            index.check_model(args.model, signature)
        else:
            index = ImageIndex(args.index, args.model, signature)
            index.save()
        if args.images:
            files, features = embed_new_files(extractor, files, args.index / "features", args.batch_size)
        else:
            files, features = read_features(args.features, extractor, args.model)
        gone = len(set(index.files) - set(files))
        index.set_images(files, features, args.factory)
        index.save()
    print(f"{len(files)} images in {args.index}" + (f", {gone} no longer there were dropped." if gone else "."))


if __name__ == "__main__":
    main()
