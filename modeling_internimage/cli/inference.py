# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""Images through a pipeline: read ahead, in batches; an image that fails does not end the run."""

import itertools
import signal
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from PIL import Image
from tqdm.auto import tqdm
from transformers import Pipeline

from .errors import CommandError, first_line
from .image_sources import ImageSource
from .models import gives_one_size
from .result_files import Journal


Failure = ValueError | RuntimeError


def run_pipeline(
    pipe: Pipeline, sources: Iterable[ImageSource], batch_size: int | None, num_readers: int, **kwargs
) -> Iterator[tuple[str, Any]]:
    """
    Name and result of each image, or name and exception: of a file that cannot be read, or of an image that the image
    processor or the model refuses, such as one that is too small. Images that follow each other make a batch;
    where the image processor keeps their sizes, only those of one size.

    Args:
        pipe (`Pipeline`):
            Of transformers.
        sources (`Iterable[ImageSource]`):
            What to read.
        batch_size (`int`, *optional*):
            Images in a batch. Defaults to 8, and to 1 where the image processor keeps the sizes of images.
        num_readers (`int`):
            Threads that read files while the model runs.
        kwargs:
            Arguments of the pipeline.
    """
    image_processor: Any = pipe.image_processor
    size, one_size = dict(image_processor.size or {}), gives_one_size(image_processor)
    batch_size = batch_size or (8 if one_size else 1)
    failed: deque[tuple[str, Failure]] = deque()
    waiting: deque[tuple[str, Image.Image]] = deque()  # given to the pipeline, without a result so far

    def readable():
        for source, image in read_ahead(sources, size, num_readers, 2 * batch_size):
            if isinstance(image, Exception):
                failed.append((source.name, image))
            else:
                yield source.name, image

    def give(images):
        for name, image in images:
            waiting.append((name, image))
            yield image

    for _, images in itertools.groupby(readable(), key=lambda entry: None if one_size else entry[1].size):
        at_end = False
        while not at_end:
            try:
                for result in pipe(give(images), batch_size=batch_size, **kwargs):
                    yield from _take_all(failed)
                    yield waiting.popleft()[0], result
                at_end = True
            except torch.OutOfMemoryError as error:
                raise CommandError(f"Memory of the device does not suffice for --batch-size {batch_size}.") from error
            except (ValueError, RuntimeError):  # of one of those waiting: one by one, it will be found
                while waiting:
                    name, image = waiting.popleft()
                    yield name, _result_or_exception(pipe, image, kwargs)
    yield from _take_all(failed)


def run_into_journal(
    pipe: Pipeline,
    sources: list[ImageSource],
    journal: Journal,
    encode: Callable[[str, Any], Any],
    batch_size: int | None,
    num_readers: int,
    **kwargs,
):
    """
    [`run_pipeline`] for the images that the journal does not have, with a progress bar; `encode` makes of a name and
    its result what the journal can hold.
    """
    todo = [] if journal.finished else [source for source in sources if source.name not in journal.done]
    if len(todo) < len(sources) and not journal.finished:
        print(f"{len(sources) - len(todo)} of {len(sources)} images are done already.", file=sys.stderr)
    try:
        for name, result in progress(run_pipeline(pipe, todo, batch_size, num_readers, **kwargs), len(todo)):
            if isinstance(result, Exception):
                report_failure(name, result)
                journal.fail(name, first_line(result))
            else:
                journal.add(name, encode(name, result))
    except KeyboardInterrupt:
        print(f"Interrupted. The same command continues, with what is in {journal.path}.", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)
    if not journal.finished:
        journal.finish()


def progress(results: Iterable, total: int) -> Iterable:
    """With a bar on stderr, if that is a terminal."""
    return tqdm(results, total=total, unit=" images", disable=None)


def report_failure(name: str, error: Exception):
    """On stderr, above the progress bar."""
    text = first_line(error)
    tqdm.write(printable(text if name in text else f"{name}: {text}"), file=sys.stderr)


def printable(text: str) -> str:
    """Without control characters, which names of files may contain."""
    return "".join(character if character.isprintable() else "?" for character in text)


def read_ahead(
    sources: Iterable[ImageSource], size: dict, num_readers: int, num_ahead: int
) -> Iterator[tuple[ImageSource, Image.Image | ValueError]]:
    """Each source with its image or the error of reading it, in order; threads read `num_ahead` images in advance."""

    def read(source: ImageSource) -> Image.Image | ValueError:
        try:
            return source.read(size)
        except ValueError as error:
            return error

    with ThreadPoolExecutor(num_readers) as readers:
        ahead: deque = deque()
        try:
            for source in sources:
                ahead.append((source, readers.submit(read, source)))
                if len(ahead) > num_ahead:
                    source, future = ahead.popleft()
                    yield source, future.result()
            for source, future in ahead:
                yield source, future.result()
        finally:
            readers.shutdown(cancel_futures=True)


def _result_or_exception(pipe: Pipeline, image: Image.Image, kwargs: dict):
    try:
        return pipe(image, **kwargs)
    except (ValueError, RuntimeError) as error:
        return error


def _take_all(entries: deque) -> Iterator:
    while entries:
        yield entries.popleft()
