# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""
Files of results, and runs that continue where they stopped.

While a run lasts, its results stand in a journal beside the output, `predictions.csv.partial`: a line of JSON for each
image. The output is written from it at the end and appears whole; then the journal goes.
"""

import base64
import contextlib
import csv
import filecmp
import functools
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, PngImagePlugin
from transformers.utils import logging

from ..training.folder_lock import lock_file
from .errors import CommandError, import_extra


logger = logging.get_logger(__name__)

MARK = "modeling-internimage command line 1"
Records = Iterable[tuple[str, Any]]  # name of an image, its result


class Journal:
    """
    The results of a run so far. A context manager, which holds a lock: a second run cannot write to the same output.

    Args:
        output (`Path`):
            The file that the results are for.
        command (`dict`):
            What results depend on. A journal of another command is not continued.
        others (`Sequence[Path]`, *optional*):
            Files that are written beside the output.

    Attributes:
        done (`set[str]`):
            Names of the images that have a result.
        finished (`bool`):
            Whether all images were done, and only the output is missing or was just written.

    Raises:
        `CommandError`: if the journal belongs to something else or another process writes to it, or if the output or
            one of the others exists and is not that of this journal.
    """

    def __init__(self, output: Path, command: dict, others: Sequence[Path] = ()):
        self.output = output
        self.errors = output.with_name(f"{output.name}.errors.csv")
        self._outputs = [output, self.errors, *others]
        self.path = output.with_name(f"{output.name}.partial")
        self.done: set[str] = set()
        self.finished = False
        self._header = json.dumps({"Software": MARK, "command": command}).encode() + b"\n"
        self._check_output(may_be_ours=self.path.exists())

    def __enter__(self) -> "Journal":
        with file_errors(self.output):
            self.output.parent.mkdir(parents=True, exist_ok=True)
            self._file: BinaryIO = open(self.path, "a+b")  # noqa: SIM115
        try:
            self._continue()
        except BaseException:
            self._file.close()
            raise
        return self

    def __exit__(self, *_):
        with contextlib.suppress(OSError):  # of a full disk, again
            self._file.close()

    def add(self, name: str, result):
        """`result` is what JSON can hold."""
        self._write({"image": name, "result": result})

    def fail(self, name: str, message: str):
        """The image has no result; another run tries it again."""
        self._write({"image": name, "error": message})

    def finish(self):
        self._write({"finished": True})
        self.finished = True

    def remove(self):
        self._file.close()
        self.path.unlink()

    def records(self) -> Iterator[tuple[str, Any]]:
        """Names and results. (Only one iteration at a time: all read by the handle that has the lock.)"""
        return ((line["image"], line["result"]) for line in self._lines() if "result" in line)

    def failures(self) -> dict[str, str]:
        """Of images without a result, the last message."""
        messages, names = {}, set()
        for line in self._lines():
            if "error" in line:
                messages[line["image"]] = line["error"]
            elif "image" in line:
                names.add(line["image"])
        return {name: message for name, message in messages.items() if name not in names}

    def _continue(self):
        try:
            lock_file(self._file)
        except (BlockingIOError, PermissionError) as error:
            raise CommandError(f"Another run is writing to {self.output}: wait, or name another --output.") from error
        except OSError as error:
            logger.warning(f"{self.path} is on a file system without locks ({error}): start no second run of it.")
        self._file.seek(0)
        header = self._file.readline()
        if self._header.startswith(header) and header != self._header:  # new, or killed at once
            self._file.truncate(0)
            self._file.write(self._header)
            self._file.flush()
        elif header != self._header:
            raise CommandError(
                f"{self.path} belongs to a run with other options or to something else: repeat that command, or name "
                "another --output, or remove that file."
            )
        self._drop_torn_line()
        for line in self._lines():
            self.finished = self.finished or "finished" in line
            if "result" in line:
                self.done.add(line["image"])
        if not self.finished:
            self._check_output(may_be_ours=False)

    def _check_output(self, may_be_ours: bool):
        for path in self._outputs:
            if path.is_dir():
                raise CommandError(f"--output {path} is a folder: name a file.")
            if os.path.lexists(path) and not may_be_ours:
                raise CommandError(f"{path} exists and is not overwritten: name another --output, or remove it.")

    def _drop_torn_line(self):
        """A process that is killed may leave half a line."""
        end = self._file.seek(0)
        for line in self._file:
            end += len(line) if line.endswith(b"\n") else 0
        self._file.truncate(end)

    def _lines(self) -> Iterator[dict]:
        # Always by the same handle: closing another one would release the lock.
        self._file.seek(len(self._header))
        yield from map(json.loads, self._file)

    def _write(self, line: dict):
        with file_errors(self.output):
            self._file.write(json.dumps(line).encode() + b"\n")
            self._file.flush()


@contextlib.contextmanager
def file_errors(output: Path):
    """Turns an `OSError`, such as a full disk, into a [`CommandError`]."""
    try:
        yield
    except OSError as error:
        raise CommandError(
            f"{output} cannot be written ({error.strerror or error}). What is done so far is kept: after you have "
            "corrected that, the same command continues."
        ) from error


def publish(path: Path, write: Callable[[Path], Any]):
    """
    Let `write` make a file, which then gets the name `path`. An equal file may exist already, of a run that was killed
    just after; any other is kept, with a `CommandError`.
    """
    temporary = path.with_name(f"{path.name}.partial.new")
    with file_errors(path):
        try:
            write(temporary)
            if not os.path.lexists(path):
                temporary.replace(path)
            elif path.is_dir() or not filecmp.cmp(temporary, path, shallow=False):
                raise CommandError(f"{path} exists and is not overwritten: move it, and repeat the command.")
        finally:
            temporary.unlink(missing_ok=True)


def publish_results(journal: Journal, files: dict[Path, Callable[[Path], Any]]) -> int:
    """
    Write the files of a finished journal, each with its function, and beside them a table of the images that failed.
    Returns the exit status: 1 if images failed, else 0.
    """
    failures, num_images = journal.failures(), sum(1 for _ in journal.records())
    if failures:
        rows = [(name, [{"error": error}]) for name, error in failures.items()]
        publish(journal.errors, functools.partial(write_csv, columns={"error": str}, records=rows))
        print(f"{len(failures)} images have no result: see {journal.errors}.", file=sys.stderr)
    for path, write in files.items():
        publish(path, write)
    journal.remove()
    print(f"Written: {', '.join(map(str, files))} ({num_images} images)", file=sys.stderr)
    return 1 if failures else 0


def write_csv(path: Path, columns: dict[str, type], records: Records):
    """A line for each row of a result, in UTF-8. (Bytes of file names that are no UTF-8 stay as they are.)"""
    with open(path, "w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        writer = csv.writer(file)
        writer.writerow(["file", *columns])
        for name, rows in records:
            writer.writerows([name, *(row[column] for column in columns)] for row in rows)


def write_json(path: Path, columns: dict[str, type], records: Records):
    """A list with `file` and `predictions`, a list of dictionaries, of each image."""
    entries = ({"file": name, "predictions": rows} for name, rows in records)
    _write_json_list(path, entries)


def write_parquet(path: Path, columns: dict[str, type], records: Records):
    """The table of [`write_csv`]."""
    arrow, parquet = import_extra("pyarrow", ".parquet"), import_extra("pyarrow.parquet", ".parquet")
    types = {str: arrow.string(), int: arrow.int64(), float: arrow.float64()}
    types |= {np.ndarray: arrow.list_(arrow.float32()), list: arrow.list_(arrow.int64())}
    schema = arrow.schema({"file": arrow.string()} | {name: types[kind] for name, kind in columns.items()})
    rows = ({"file": readable_name(name), **row} for name, rows in records for row in rows)
    with parquet.ParquetWriter(path, schema) as writer:
        for chunk in _chunks(rows, 1000):
            writer.write_table(arrow.Table.from_pylist(chunk, schema=schema))


def write_coco(path: Path, image_ids: dict[str, int] | None, category_ids: dict[str, int] | None, records: Records):
    """
    Detections in COCO's format of results. Without ids of images and categories, the name of the image and the class
    index of the model stand for them.
    """

    def entries():
        for name, rows in records:
            for row in rows:
                left, top, right, bottom = (row[key] for key in ("xmin", "ymin", "xmax", "ymax"))
                entry = {
                    "image_id": image_ids[name] if image_ids else name,
                    "category_id": category_ids[row["label"]] if category_ids else row["label_id"],
                    "bbox": [left, top, right - left, bottom - top],
                    "score": row["score"],
                }
                yield entry | ({"segmentation": row["segmentation"]} if "segmentation" in row else {})

    _write_json_list(path, entries())


def write_npy(path: Path, records: Callable[[], Records]):
    """
    float32, (num_images, *shape of the features). Raises a `CommandError` if the images have features of different
    shapes.
    """
    count, shape = 0, None
    for name, result in records():
        if shape not in (None, result["shape"]):
            raise CommandError(
                f"The features of {name} have shape {result['shape']}, those before {shape}, and a .npy file holds "
                "one shape: write a .parquet file."
            )
        count, shape = count + 1, result["shape"]
    array = np.lib.format.open_memmap(path, "w+", np.float32, (count, *(shape or ())))
    for idx, (_, result) in enumerate(records()):
        array[idx] = decode_array(result)
    array.flush()


def encode_array(array: np.ndarray) -> dict:
    """For a journal: `shape`, and the float32 values in base64."""
    return {"shape": list(array.shape), "values": base64.b64encode(array.astype("<f4").tobytes()).decode()}


def decode_array(encoded: dict) -> np.ndarray:
    return np.frombuffer(base64.b64decode(encoded["values"]), "<f4").reshape(encoded["shape"])


def readable_name(name: str) -> str:
    """The name of a file, whose bytes need not be UTF-8, as text that can be written anywhere."""
    return name.encode(errors="surrogateescape").decode(errors="replace")


def write_marked_png(path: Path, image: Image.Image):
    """A PNG file that [`is_marked`], whole or not at all. Replaces an earlier one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = PngImagePlugin.PngInfo()
    text.add_text("Software", MARK)
    temporary = path.with_name(f"{path.name}.partial.new")
    image.save(temporary, "PNG", pnginfo=text)
    temporary.replace(path)


def is_marked(path: Path) -> bool:
    """Whether a file is a PNG file of this command line."""
    try:
        with Image.open(path) as image:
            return image.info.get("Software") == MARK
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return False


def _write_json_list(path: Path, entries: Iterable):
    with open(path, "w", encoding="utf-8") as file:
        separator = "[\n"
        for entry in entries:
            file.write(separator + json.dumps(entry))
            separator = ",\n"
        file.write("[]\n" if separator == "[\n" else "\n]\n")


def _chunks(items: Iterable, size: int) -> Iterator[list]:
    chunk = []
    for item in items:
        chunk.append(item)
        if len(chunk) == size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk
