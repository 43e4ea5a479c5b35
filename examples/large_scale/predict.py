# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""
Classes or features of millions of images, on the CPUs and GPUs of one machine or many, with Ray Data.

    python -m examples.large_scale.predict photos --model outputs/my_model --output outputs/predictions
    python -m examples.large_scale.predict "data/*.parquet" --task features --model M --output outputs/features \\
        --num-gpus 1 --concurrency 8 --batch-size 256 --dtype bfloat16 --kernel --address auto

Workers read images and run the model, and this process alone writes what they return: Parquet files in `predictions`,
images that cannot be read, with the reason, in `failures`. Each file appears when it is whole. The same command, given
again after any interruption, does the images that are in neither of the two.
"""

import argparse
import json
import os
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from tqdm import tqdm
from transformers import AutoImageProcessor

from examples.image_datasets import image_endings
from examples.image_files import list_files
from examples.large_scale.worker import RESULTS, Predictor, read_images
from examples.output_files import check_outputs, mark_of, write_json
from examples.parquet_parts import TableWriter, read_tables
from modeling_internimage.training.folder_lock import FolderLock


os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # read when Ray is imported
import ray  # noqa: E402


MARK = mark_of(__file__)
# Preprocessed images travel in blocks of this size, so that a small object store is enough.
BLOCK_BYTES = 32 * 2**20
MAX_BLOCKS = 10_000
FAILURES = pa.schema({"file": pa.string(), "reason": pa.string()})


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", nargs="+", help="image or Parquet files, folders, patterns, .txt files with paths")
    parser.add_argument("--image-column", default="image", help="column of the Parquet files with the images")
    parser.add_argument("--model", required=True, help="checkpoint: a folder or a Hub id")
    parser.add_argument("--task", choices=list(RESULTS), default="classes")
    parser.add_argument("--top-k", type=int, default=5, help="classes of each image")
    parser.add_argument("--output", type=Path, required=True, help="folder for the tables")
    parser.add_argument("--rows-per-file", type=int, default=10_000, help="results in a file, about")
    parser.add_argument("--batch-size", type=int, default=32, help="images at once, in each actor")
    parser.add_argument("--concurrency", type=int, default=1, help="actors, each with a copy of the model")
    parser.add_argument("--num-gpus", type=float, default=0, help="GPUs of each actor: 0, 1 or a part, 0.5")
    parser.add_argument("--num-cpus", type=int, default=1, help="CPU cores of each actor")
    parser.add_argument("--dtype", choices=["float32", "float16", "bfloat16"], default="float32", help="of the model")
    parser.add_argument("--kernel", action="store_true", help="run DCNv3 as the compiled kernel")
    parser.add_argument("--address", help="a Ray cluster ('auto': this machine's); without it, one is started here")
    parser.add_argument("--object-store-mb", type=int, default=500, help="shared memory of the cluster started here")
    args = parser.parse_args(argv)
    for name in ("top_k", "rows_per_file", "batch_size", "concurrency", "num_cpus", "object_store_mb"):
        if getattr(args, name) < 1:
            raise ValueError(f"`--{name.replace('_', '-')} {getattr(args, name)}` must be at least 1.")
    return args


def list_images(sources: list[str], image_column: str) -> list[str]:
    """Names of all images: of a file its path, of row 17 of a Parquet file "path.parquet#17"."""
    names = []
    for file in list_files(sources, image_endings() | {".parquet"}):
        if not file.endswith(".parquet"):
            names.append(file)
            continue
        try:
            table = pq.ParquetFile(file)
        except (OSError, pa.ArrowInvalid) as error:
            raise ValueError(f"{file} cannot be read as a Parquet file: {error}. Replace or remove it.") from error
        if image_column not in table.schema_arrow.names:
            raise ValueError(
                f"{file} has no column '{image_column}', only {table.schema_arrow.names}: name it with "
                "`--image-column`."
            )
        names += [f"{file}#{row}" for row in range(table.metadata.num_rows)]
    return names


def start_ray(args: argparse.Namespace):
    """Connect to a cluster, or start one here. Raises a `ValueError` if it is too small for the actors."""
    needed = args.concurrency * args.num_cpus + 1  # a core for the tasks that read images
    if args.address is not None:
        ray.init(address=args.address)
    else:
        ray.init(
            address="local",
            num_cpus=max(needed, os.cpu_count() or 1),
            object_store_memory=args.object_store_mb * 2**20,
            include_dashboard=False,
        )
    available = ray.cluster_resources()
    if available.get("CPU", 0) < needed or available.get("GPU", 0) < args.concurrency * args.num_gpus:
        raise ValueError(
            f"`--concurrency {args.concurrency}` needs {needed} CPU cores, one for reading images, and "
            f"{args.concurrency * args.num_gpus:g} GPUs; the cluster has {available.get('CPU', 0):g} and "
            f"{available.get('GPU', 0):g}."
        )
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.target_max_block_size = BLOCK_BYTES


def create_dataset(names: list[str], args: argparse.Namespace) -> ray.data.Dataset:
    """A row for each image: `file`, `reason`, and the columns of the task."""
    rows_per_block = max(4 * args.batch_size, -(-len(names) // MAX_BLOCKS))
    rows = pa.table({"file": names})
    blocks = [rows.slice(start, rows_per_block) for start in range(0, len(names), rows_per_block)]
    image_processor = AutoImageProcessor.from_pretrained(args.model)
    return (
        ray.data.from_arrow(blocks)
        .map_batches(
            read_images,
            batch_size=args.batch_size,
            num_cpus=args.num_cpus,  # as the actors: without GPUs, Ray Data reads and predicts in one process
            fn_kwargs={"image_processor": image_processor, "image_column": args.image_column},
        )
        .map_batches(
            Predictor,
            batch_size=args.batch_size,
            fn_constructor_args=[args],
            compute=ray.data.ActorPoolStrategy(size=args.concurrency),
            num_cpus=args.num_cpus,
            num_gpus=args.num_gpus,
        )
    )


def write_results(dataset: ray.data.Dataset, names: list[str], args: argparse.Namespace) -> dict:
    """
    Write the rows of all `names`, each once. Returns their number, that of the unreadable ones, and the seconds until
    the first and the last result.
    """
    waiting = set(names)
    schema = pa.schema({"file": pa.string(), **RESULTS[args.task]})
    start, seconds_to_first, num_first, num_failures = time.perf_counter(), 0.0, 0, 0
    with (
        TableWriter(args.output / "predictions", schema, args.rows_per_file) as predictions,
        TableWriter(args.output / "failures", FAILURES, args.rows_per_file) as failures,
        tqdm(total=len(names), unit=" images") as progress,
    ):
        for batch in dataset.iter_batches(batch_size=None, batch_format="pyarrow"):
            # Ray repeats the work of a process that died, and is to return each row once. This makes sure of it.
            batch = batch.filter(pa.array([name in waiting for name in batch["file"].to_pylist()], pa.bool_()))
            waiting.difference_update(batch["file"].to_pylist())
            is_readable = pc.equal(batch["reason"], "")
            predictions.add(batch.filter(is_readable).select(schema.names))
            failed = batch.filter(pc.invert(is_readable)).select(FAILURES.names)
            failures.add(failed)
            num_failures += len(failed)
            progress.update(len(batch))
            if not seconds_to_first:
                seconds_to_first, num_first = time.perf_counter() - start, len(batch)
    if waiting:
        raise RuntimeError(f"Ray returned no result for {len(waiting)} images. Run the same command again for these.")
    return {
        "images": len(names),
        "failures": num_failures,
        "images_in_first_result": num_first,
        "seconds_to_first_result": seconds_to_first,
        "seconds": time.perf_counter() - start,
    }


def claim_output(args: argparse.Namespace):
    """
    Write what the results depend on into the output folder. Raises a `ValueError` if the folder has results of other
    settings, or files of another origin.
    """
    file = args.output / "run.json"
    settings = {"model": args.model, "task": args.task, "dtype": args.dtype}
    if args.task == "classes":
        settings["top_k"] = args.top_k
    check_outputs([file], MARK)
    if file.exists():
        before = json.loads(file.read_text(encoding="utf-8"))
        for name, value in settings.items():
            if before.get(name) != value:
                raise ValueError(
                    f"`--output {args.output}` has results with `--{name.replace('_', '-')} {before.get(name)}`, this "
                    f"is {value}: name another folder."
                )
    elif args.output.is_dir() and any(entry.name != "_lock" for entry in args.output.iterdir()):
        raise ValueError(f"`--output {args.output}` has files of another origin: name a new folder.")
    else:
        write_json(file, settings, MARK)


def predict(args: argparse.Namespace) -> dict | None:
    """Do what is left to do, and return what `write_results` does; `None` if nothing is left."""
    names = list_images(args.images, args.image_column)
    with FolderLock(args.output):
        claim_output(args)
        tables = [folder for folder in (args.output / "predictions", args.output / "failures") if folder.is_dir()]
        done = set(read_tables(tables, ["file"])["file"].to_pylist())
        left = [name for name in names if name not in done]
        print(f"{len(names) - len(left)} of {len(names)} images are done.")
        if not left:
            return None
        is_running = ray.is_initialized()
        try:
            if not is_running:
                start_ray(args)
            result = write_results(create_dataset(left, args), left, args)
        finally:
            if not is_running:
                ray.shutdown()
    print(
        f"{result['images']} images in {result['seconds']:.1f} s, {result['failures']} of them unreadable (see "
        f"{args.output / 'failures'})."
    )
    return result


def main(argv: list[str] | None = None):
    predict(parse_arguments(argv))


if __name__ == "__main__":
    main()
