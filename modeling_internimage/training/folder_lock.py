# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""A lock on the output folder, so that two training runs cannot write into it."""

import os
import socket
import sys
from pathlib import Path
from typing import IO

from transformers.utils import logging


if sys.platform == "win32":
    import msvcrt
else:
    import fcntl


logger = logging.get_logger(__name__)


class FolderLock:
    """
    Inside the `with` block, which can be nested, no other process can lock the folder. The operating system releases
    the lock when the process ends, even if it is killed; worker processes do not inherit it. The file `_lock` stays
    in the folder.

    Raises:
        RuntimeError: If another process has the lock.
        OSError: If the folder cannot be written.
    """

    def __init__(self, folder: str | os.PathLike):
        self.folder = Path(folder)
        self._depth = 0
        self._file = None

    def __enter__(self):
        if self._depth == 0:
            self._file = self._acquire()
        self._depth += 1

    def __exit__(self, *_):
        self._depth -= 1
        if self._depth == 0:
            self._file.close()
            self._file = None

    def _acquire(self):
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            file = open(self.folder / "_lock", "a+", encoding="utf-8")  # (`push_to_hub` leaves `_*` out)
        except OSError as error:
            raise OSError(f"The output folder {self.folder} cannot be written ({error}).") from error
        try:
            lock_file(file)
        except (BlockingIOError, PermissionError) as error:
            file.close()
            raise RuntimeError(
                f"Another run is writing to {self.folder}{_holder(self.folder)}. Name another output folder, or wait."
            ) from error
        except OSError as error:
            logger.warning(
                f"{self.folder} is on a file system without locks ({error}): a second run in it would not be detected."
            )
        if fcntl is not None:
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}")
            file.flush()
        return file


def lock_file(file: IO):
    """
    Lock an open file for this process, until it closes the file, by this handle or any other. Raises a
    `BlockingIOError` or `PermissionError` if another process has the lock.
    """
    if sys.platform == "win32":
        file.seek(0)
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
    else:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # `flock` would be shared with forked workers


def _holder(folder: Path) -> str:
    try:
        name = (folder / "_lock").read_text(encoding="utf-8")
    except OSError:  # Windows locks reading too
        name = ""
    return f" ({name})" if name else ""
