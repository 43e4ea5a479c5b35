# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""Which images a command reads: files, folders, patterns, or the rows of a dataset."""

import glob
import io
import os
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from ..images import decode_image, image_endings
from .errors import CommandError, complaints, import_extra


@dataclass(frozen=True)
class ImageSource:
    """
    An image that has not been read yet.

    Attributes:
        name (`str`):
            What results call it: the path as the user wrote it, or split and row number of a dataset ("test/17").
        content (`Callable[[], str | io.BytesIO]`):
            Gives the path or the bytes of the file.
    """

    name: str
    content: Callable[[], str | io.BytesIO]

    def read(self, size=None) -> Image.Image:
        """
        The RGB image, turned as its EXIF data says; of an animation, the first picture. Raises a `ValueError` that
        names the file if it cannot be decoded or, at the `size` of an image processor, has too many pixels.
        """
        return decode_image(self.content(), f"The image file {self.name}", size)


def find_images(arguments: list[str]) -> list[ImageSource]:
    """
    The images of files, folders (with the folders in them) and patterns ("photos/**/*.jpg"), in the order of the
    arguments, sorted within each, every path once. In folders and patterns, only files with the ending of an image
    count, and no hidden ones.

    Raises:
        `CommandError`: for an argument that is none of these, or without any image.
    """
    names: dict[str, None] = {}
    for argument in arguments:
        if os.path.isdir(argument):
            found = files_below(argument, image_endings())
            if not found:
                raise CommandError(f"The folder {argument} has no image files.")
        elif os.path.exists(argument):
            found = [argument]
        elif glob.has_magic(argument):
            matches = filter(os.path.isfile, glob.iglob(argument, recursive=True))
            found = _with_endings(matches, image_endings())
            if not found:
                raise CommandError(f"The pattern '{argument}' matches no image file.")
        else:
            raise CommandError(
                f"{argument} does not exist: name image files, folders, patterns such as 'photos/*.jpg', or a dataset "
                "with --dataset."
            )
        names |= dict.fromkeys(map(os.path.normpath, found))
    return [ImageSource(name, lambda name=name: name) for name in names]


def dataset_images(name: str, configuration: str | None, split: str, column: str) -> list[ImageSource]:
    """
    The images of a split of a dataset: of the Hub, or a local folder that `datasets` loads.

    Raises:
        `CommandError`: if there is no such dataset, split or column of images, or no row.
    """
    datasets = import_extra("datasets", "--dataset")
    with complaints(Exception, prefix=f"The dataset {name} cannot be loaded: "):  # of `datasets` or the Hub: any class
        splits = datasets.load_dataset(name, configuration)
    if split not in splits:
        raise CommandError(f"--split {split} is not in {name}, which has {', '.join(splits)}.")
    rows = splits[split]
    columns = [name for name, feature in rows.features.items() if isinstance(feature, datasets.Image)]
    if column not in columns:
        raise CommandError(
            f"--image-column {column} is not a column of images of {name}, which has {', '.join(columns) or 'none'}."
        )
    if not len(rows):
        raise CommandError(f"The split {split} of {name} has no rows.")
    rows = rows.select_columns([column]).cast_column(column, datasets.Image(decode=False))

    def content(idx: int) -> str | io.BytesIO:
        row = rows[idx][column]
        if row is None:
            raise ValueError(f"Row {idx} of {name} has no image.")
        return row["path"] if row["bytes"] is None else io.BytesIO(row["bytes"])

    return [ImageSource(f"{split}/{idx}", lambda idx=idx: content(idx)) for idx in range(len(rows))]


def places_below(arguments: list[str], sources: list[ImageSource]) -> dict[str, str]:
    """
    For the name of each image a relative path without ending, for results in an output folder: that from the deepest
    folder that holds all arguments. Images that differ only in their ending keep it: "photo.jpg" and "photo.png".
    """
    if not arguments:  # rows of a dataset
        return {source.name: source.name for source in sources}
    root = os.path.commonpath([os.path.abspath(_fixed_folder(argument)) for argument in arguments])
    paths = {source.name: os.path.relpath(source.name, root) for source in sources}
    stems = {name: os.path.splitext(path)[0] for name, path in paths.items()}
    counts = Counter(map(str.casefold, stems.values()))  # some file systems do not know small letters from capitals
    return {name: stem if counts[stem.casefold()] == 1 else paths[name] for name, stem in stems.items()}


def _fixed_folder(argument: str) -> str:
    """A folder itself, the folder of a file, and of a pattern the part before its first wildcard."""
    if os.path.exists(argument):
        return argument if os.path.isdir(argument) else os.path.dirname(argument)
    parts = Path(argument).parts
    first = next(idx for idx, part in enumerate(parts) if glob.has_magic(part))
    return os.path.join("", *parts[:first])


def files_below(folder: str, endings: Iterable[str]) -> list[str]:
    """The files in a folder and the folders in it that have one of these endings, sorted, without hidden ones."""
    files = []
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]  # `os.walk` leaves out the others
        files += [os.path.join(parent, name) for name in names if not name.startswith(".")]
    return _with_endings(files, endings)


def _with_endings(files: Iterable[str], endings: Iterable[str]) -> list[str]:
    return sorted(file for file in files if file.lower().endswith(tuple(endings)))
