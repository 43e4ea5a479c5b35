# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""Configurations of mmdetection and mmsegmentation, which are Python files: read, never run."""

import ast
import operator
from pathlib import Path
from typing import Any

from conversion.errors import ConversionError


MAX_BYTES = 100_000
_MAX_VALUES = 200_000  # in all files together: a few lines of code can describe exponentially many
_MAX_NUMBER = 1e12
_OPERATORS = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
}  # fmt: skip
MERGED = "Give the merged configuration, which the training wrote into its work directory."


class Unread:
    """Stands for a value that only running the code would give. Most of them, as paths of files, are not needed."""


def read_python_config(file: Path) -> dict[str, Any]:
    """
    The variables of a configuration on top of those of its `_base_` files, merged as mmcv does. Tuples become lists,
    what is more than literals, `dict(...)`, names and arithmetic becomes `Unread`.

    Raises:
        `ConversionError`: for a missing file, and for statements other than assignments and imports.
    """
    return _Reader().read(file)


class _Reader:
    def __init__(self):
        self.num_values = 0
        self.files: list[Path] = []

    def read(self, file: Path) -> dict[str, Any]:
        path = file.resolve()
        if path in self.files:
            raise ConversionError(f"{file} is a `_base_` of the configuration more than once. {MERGED}")
        self.files.append(path)
        try:
            return self._merge(*self._read_alone(file))
        except (ValueError, SyntaxError, MemoryError, RecursionError) as error:
            raise ConversionError(f"{file} cannot be read: {error}.") from error

    def _read_alone(self, file: Path) -> tuple[dict, dict]:
        """The variables of the `_base_` files and those of the file itself."""
        if file.stat().st_size > MAX_BYTES:
            raise ConversionError(f"{file} has {file.stat().st_size:,} bytes: that is not a configuration.")
        variables: dict[str, Any] = {}
        for statement in ast.parse(file.read_text(encoding="utf-8")).body:
            if isinstance(statement, ast.Assign) and [type(target) for target in statement.targets] == [ast.Name]:
                variables[statement.targets[0].id] = self._evaluate(statement.value, variables)
            elif not isinstance(statement, (ast.Import, ast.ImportFrom)) and not _is_docstring(statement):
                raise ConversionError(
                    f"{file}, line {statement.lineno}: the file is not run, and only assignments to names are read. "
                    f"{MERGED}"
                )
        bases = variables.pop("_base_", [])
        bases = [bases] if isinstance(bases, str) else bases
        if not isinstance(bases, list) or not all(isinstance(base, str) for base in bases):
            raise ConversionError(f"{file} has a `_base_` that is not a list of file names. {MERGED}")
        inherited: dict[str, Any] = {}
        for base in bases:
            path = file.parent / base
            if path.suffix != ".py" or not path.is_file():
                raise ConversionError(f"{file} builds on {base}, which is not there. Copy it there. Or: {MERGED}")
            inherited |= self.read(path)
        return inherited, variables

    def _evaluate(self, node: ast.AST, variables: dict[str, Any]):
        self._count()
        match node:
            case ast.Constant(value=bool() | int() | float() | str() | None):
                return node.value
            case ast.List() | ast.Tuple():
                return [self._evaluate(element, variables) for element in node.elts]
            case ast.Dict():
                return self._dict(zip(node.keys, node.values), variables)
            case ast.Call(func=ast.Name(id="dict"), args=[]):
                keys = [keyword.arg and ast.Constant(keyword.arg) for keyword in node.keywords]
                return self._dict(zip(keys, [keyword.value for keyword in node.keywords]), variables)
            case ast.Name():
                return self._copy(variables.get(node.id, Unread))
            case ast.UnaryOp(op=ast.USub()):
                value = self._evaluate(node.operand, variables)
                return -value if _is_number(value) else Unread
            case ast.BinOp() if type(node.op) in _OPERATORS:
                values = self._evaluate(node.left, variables), self._evaluate(node.right, variables)
                if not all(map(_is_number, values)) or (
                    values[1] == 0 and not isinstance(node.op, (ast.Add, ast.Sub))
                ):
                    return Unread
                return _OPERATORS[type(node.op)](*values)
        return Unread

    def _dict(self, items, variables: dict[str, Any]):
        entries: dict[str, Any] = {}
        for key, node in items:
            value = self._evaluate(node, variables)
            if key is None and isinstance(value, dict):  # **value
                entries |= value
            elif isinstance(key, ast.Constant) and isinstance(key.value, str):
                entries[key.value] = value
            else:
                return Unread
        return entries

    def _merge(self, inherited: dict, own: dict) -> dict:
        """mmcv's `Config._merge_a_into_b`: dictionaries are merged, unless they have `_delete_=True`."""
        merged = dict(inherited)
        for name, value in own.items():
            if isinstance(value, dict):
                is_new = value.get("_delete_") is True or not isinstance(merged.get(name), dict)
                value = {key: entry for key, entry in value.items() if key != "_delete_"}
                value = self._merge({} if is_new else merged[name], value)
            merged[name] = value
        return merged

    def _copy(self, value):
        self._count()
        if isinstance(value, dict):
            return {key: self._copy(entry) for key, entry in value.items()}
        return [self._copy(entry) for entry in value] if isinstance(value, list) else value

    def _count(self):
        self.num_values += 1
        if self.num_values > _MAX_VALUES:
            raise ValueError(f"it describes more than {_MAX_VALUES:,} values")


def _is_docstring(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)


def _is_number(value) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= _MAX_NUMBER
