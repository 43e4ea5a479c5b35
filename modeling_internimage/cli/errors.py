# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""Mistakes that the user can correct."""

import contextlib
import importlib
from types import ModuleType


class CommandError(Exception):
    """A foreseen mistake. The command line prints its sentence, without a traceback, and exits with status 2."""


def import_extra(name: str, purpose: str) -> ModuleType:
    """An optional package. Raises a [`CommandError`] with the pip command if it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        package = name.split(".")[0]
        raise CommandError(f"{purpose} needs the package {package}: pip install {package}") from error


@contextlib.contextmanager
def complaints(*kinds: type[Exception], prefix: str):
    """Turns exceptions of libraries into a [`CommandError`] of one line."""
    try:
        yield
    except kinds as error:
        raise CommandError(prefix + first_line(error)) from error


def first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
