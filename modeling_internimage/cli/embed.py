# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""`internimage embed`: features of many images."""

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from .errors import CommandError, import_extra
from .image_sources import ImageSource
from .inference import run_into_journal
from .models import load_feature_pipeline
from .result_files import Journal, decode_array, encode_array, publish_results, readable_name, write_npy, write_parquet


def embed(
    sources: list[ImageSource],
    model: str,
    output: str,
    stage: str,
    batch_size: int | None,
    num_readers: int,
    command: dict,
    **loading,
) -> int:
    """
    Features of images, float32, also of a model in half precision: `"pooled"`, (channels,), the input of the
    classifier; or the map of a stage, (channels, height, width).

    `.npy`: an array (num_images, *shape), and beside it the list of the images' names, `features.names.json`.
    `.parquet`: columns `file`, `features` (a flat list) and `shape`.

    Args:
        sources: The images.
        stage: "pooled", or one of `config.stage_names`.
        command: For the journal.
        loading: Arguments of [`load_pipeline`].

    Returns:
        `int`: the exit status: 1 if images have no result, else 0.
    """
    target = Path(output)
    if target.suffix.lower() not in (".npy", ".parquet"):
        raise CommandError(f"--output {output} must end in .npy or .parquet.")
    is_parquet = target.suffix.lower() == ".parquet"
    if is_parquet:
        import_extra("pyarrow", "--output with the ending .parquet")
    names_file = target.with_suffix(".names.json")
    journal = Journal(target, command, [] if is_parquet else [names_file])
    pipe = load_feature_pipeline(model, stage, **loading)
    with journal:
        run_into_journal(
            pipe, sources, journal, lambda name, features: encode_array(features), batch_size, num_readers
        )
        if is_parquet:
            columns = {"features": np.ndarray, "shape": list}
            rows = (
                (name, [{"features": decode_array(result).ravel(), "shape": result["shape"]}])
                for name, result in journal.records()
            )
            return publish_results(journal, {target: functools.partial(write_parquet, columns=columns, records=rows)})
        names = [readable_name(name) for name, _ in journal.records()]
        files: dict[Path, Callable[[Path], Any]] = {
            names_file: lambda path: path.write_text(json.dumps(names, indent=1) + "\n"),
            target: functools.partial(write_npy, records=journal.records),
        }
        return publish_results(journal, files)
