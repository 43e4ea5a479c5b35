# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""Tables that grow: folders of Parquet files, part-000000.parquet and so on, each of which is whole."""

import os
from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq


class TableWriter:
    """
    Appends rows to the table in `folder`, in new files of about `rows_per_file` rows; files that are there stay as
    they are. At the end of the `with` block, also after an error, the last rows are written. One writer at a time: the
    caller holds a lock.
    """

    def __init__(self, folder: Path, schema: pa.Schema, rows_per_file: int):
        self.folder = folder
        self.schema = schema
        self.rows_per_file = rows_per_file
        self._tables: list[pa.Table] = []
        folder.mkdir(parents=True, exist_ok=True)
        for unfinished in folder.glob(".part-*.unfinished"):  # of a writer that was killed
            unfinished.unlink()
        numbers = (int(file.stem.removeprefix("part-")) for file in folder.glob("part-*.parquet"))
        self._number = max(numbers, default=-1) + 1

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.flush()

    def add(self, columns: dict | pa.Table):
        """Rows as columns: a table, or lists or arrays of the same length."""
        if isinstance(columns, pa.Table):
            self._tables.append(columns.cast(self.schema))
        else:
            self._tables.append(pa.table(columns, schema=self.schema))
        if sum(len(table) for table in self._tables) >= self.rows_per_file:
            self.flush()

    def flush(self):
        table = pa.concat_tables(self._tables) if self._tables else ()
        if len(table) == 0:
            return
        path = self.folder / f"part-{self._number:06d}.parquet"
        unfinished = self.folder / f".{path.stem}.unfinished"
        pq.write_table(table, unfinished)
        with open(unfinished, "rb") as file:
            os.fsync(file.fileno())  # so that the name appears after the content, also if the machine fails
        unfinished.rename(path)
        self._tables = []
        self._number += 1


def read_tables(paths: Iterable[str | Path], columns: list[str]) -> pa.Table:
    """
    Some columns of Parquet files and folders of them, one below the other.

    Raises:
        `ValueError`: for a file that is not there, has not these columns, or is no Parquet file.
    """
    tables = []
    for path in map(Path, paths):
        for file in sorted(path.glob("*.parquet")) if path.is_dir() else [path]:
            try:
                tables.append(pq.read_table(file, columns=columns, partitioning=None).select(columns))
            except (OSError, KeyError, pa.ArrowInvalid) as error:
                raise ValueError(f"{file} must be a Parquet file with the columns {columns}: {error}") from error
    return pa.concat_tables(tables, promote_options="permissive") if tables else pa.table({c: [] for c in columns})
