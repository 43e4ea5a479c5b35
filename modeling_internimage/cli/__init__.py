# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""
The command `internimage`: predictions and features of many images, facts about a checkpoint, export, conversion.

Exit status: 0 if everything is done; 1 if some images have no result; 2 if the command cannot be carried out.
"""

import os
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer
from transformers.utils import logging

from .errors import CommandError


# The modules that do the work are imported by the command that needs them.

app = typer.Typer(
    name="internimage",
    help="InternImage on the command line. `internimage COMMAND --help` shows the options of a command.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

Images = Annotated[
    list[str] | None,
    typer.Argument(metavar="IMAGES...", help="Image files, folders (with those inside), patterns like 'a/**/*.jpg'."),
]
Model = Annotated[str, typer.Option(help="Checkpoint: a folder, or a repository of the Hub.")]
Dataset = Annotated[
    str | None, typer.Option(help="Instead of IMAGES: a dataset of the Hub, or a local folder of one.")
]
DatasetConfig = Annotated[str | None, typer.Option(help="Configuration of the dataset.")]
Split = Annotated[str, typer.Option(help="Split of the dataset.")]
ImageColumn = Annotated[str, typer.Option(help="Column of the dataset with the images.")]
BatchSize = Annotated[
    int | None,
    typer.Option(min=1, help="Images in a batch. Default: 8; 1 if the model takes images in their own proportions."),
]
Device = Annotated[str | None, typer.Option(help="Such as cpu or cuda:1. Default: cuda where there is one.")]
Dtype = Annotated[Literal["float32", "float16", "bfloat16"], typer.Option(help="Of the model.")]
Kernel = Annotated[bool, typer.Option("--kernel", help="Run DCNv3 as the compiled kernel, or stop if there is none.")]
Workers = Annotated[int, typer.Option(min=1, help="Threads that read images while the model runs.")]
DEFAULT_WORKERS = min(4, os.cpu_count() or 1)

PASSED_ON = {"allow_extra_args": True, "ignore_unknown_options": True, "allow_interspersed_args": False}


@app.command("predict")
def predict_command(
    model: Model,
    images: Images = None,
    output: Annotated[
        str | None,
        typer.Option(
            help="File ending in .csv, .json, .parquet or .coco.json (detectors); a folder for label maps "
            "(segmentation). Default: print a table."
        ),
    ] = None,
    dataset: Dataset = None,
    dataset_config: DatasetConfig = None,
    split: Split = "test",
    image_column: ImageColumn = "image",
    batch_size: BatchSize = None,
    device: Device = None,
    dtype: Dtype = "float32",
    kernel: Kernel = False,
    workers: Workers = DEFAULT_WORKERS,
    top_k: Annotated[int, typer.Option(min=1, help="Classifiers: labels for each image.")] = 1,
    threshold: Annotated[
        float,
        typer.Option(min=0, max=1, help="Detectors: the lowest score. (0 for an evaluation with COCO's metrics.)"),
    ] = 0.5,
    annotations: Annotated[
        str | None, typer.Option(help="For .coco.json: a file of annotations with the ids of images and categories.")
    ] = None,
):
    """
    Labels, boxes or label maps of images, by a classifier, a detector or a segmentation model.

    Images that cannot be read are named and do not end the run. A run that was stopped continues with the same
    command. Files that exist are not overwritten.
    """
    command = results_depend_on(locals())
    from .predict import predict

    status = predict(
        find_sources(images, dataset, dataset_config, split, image_column),
        images or [],
        model,
        output,
        annotations,
        threshold,
        top_k,
        batch_size,
        workers,
        command=command,
        device=device,
        dtype=dtype,
        kernel=kernel,
    )
    raise typer.Exit(status)


@app.command("embed")
def embed_command(
    model: Model,
    output: Annotated[str, typer.Option(help="File ending in .parquet or .npy (with the names in .names.json).")],
    images: Images = None,
    stage: Annotated[
        str, typer.Option(help="pooled: (channels,); or stem, stage1, ...: (channels, height, width).")
    ] = "pooled",
    dataset: Dataset = None,
    dataset_config: DatasetConfig = None,
    split: Split = "test",
    image_column: ImageColumn = "image",
    batch_size: BatchSize = None,
    device: Device = None,
    dtype: Dtype = "float32",
    kernel: Kernel = False,
    workers: Workers = DEFAULT_WORKERS,
):
    """
    Features of images, float32: pooled, or the map of a stage.

    Images that cannot be read are named and do not end the run. A run that was stopped continues with the same
    command. Files that exist are not overwritten.
    """
    command = results_depend_on(locals())
    from .embed import embed

    status = embed(
        find_sources(images, dataset, dataset_config, split, image_column),
        model,
        output,
        stage,
        batch_size,
        workers,
        command=command,
        device=device,
        dtype=dtype,
        kernel=kernel,
    )
    raise typer.Exit(status)


@app.command("info")
def info_command(
    model: Annotated[str, typer.Argument(help="Checkpoint: a folder, or a repository of the Hub.")],
    size: Annotated[
        tuple[int, int] | None,
        typer.Option(
            metavar="HEIGHT WIDTH", help="For the count of operations. Default: that of the image processor."
        ),
    ] = None,
):
    """Architecture, task, parameters, operations, image sizes, and what DCNv3 runs as. Reads no weights."""
    from .info import describe

    for name, value in describe(model, size).items():
        print(f"{name:<14}{value}")


@app.command("export", context_settings=PASSED_ON, add_help_option=False)
def export_command(context: typer.Context):
    """Write a model as ONNX: `python -m modeling_internimage.export`, with its arguments."""
    from ..export.__main__ import main

    raise typer.Exit(main(context.args))


@app.command("convert", context_settings=PASSED_ON, add_help_option=False)
def convert_command(context: typer.Context):
    """Convert the authors' checkpoints: `python -m conversion.convert_internimage_to_hf`, with its arguments."""
    checkout = Path(__file__).parents[2]
    if (checkout / "conversion" / "convert_internimage_to_hf.py").is_file():
        sys.path.insert(0, str(checkout))
    try:
        from conversion.convert_internimage_to_hf import main
    except ModuleNotFoundError as error:
        if str(error.name).split(".")[0] != "conversion":
            raise
        raise CommandError(
            "The conversion is not in the installed package, only in a checkout of its repository: run "
            "`python -m conversion.convert_internimage_to_hf` there, or `pip install -e .` and this command again."
        ) from error

    raise typer.Exit(main(context.args))


def find_sources(images: list[str] | None, dataset: str | None, dataset_config: str | None, split: str, column: str):
    from .image_sources import dataset_images, find_images

    if bool(images) == (dataset is not None):
        raise CommandError("Name images (files, folders, patterns) or a dataset with --dataset: one of both.")
    return dataset_images(dataset, dataset_config, split, column) if dataset is not None else find_images(images)


def results_depend_on(arguments: dict) -> dict:
    """Without what only changes the speed or the place."""
    return {
        name: value for name, value in arguments.items() if name not in ("output", "batch_size", "workers", "device")
    }


def main():
    """The command `internimage`. Ends the process, with the exit status."""
    logging.disable_progress_bar()  # of loading weights, for fractions of a second
    try:
        app(prog_name="internimage")
    except CommandError as error:
        print(f"internimage: {error}", file=sys.stderr)
        sys.exit(2)
