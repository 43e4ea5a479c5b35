# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""
Files that the scripts write. They carry a mark of the script, and no script writes over a file without its own mark.
"""

import json
import os
from collections.abc import Iterable
from pathlib import Path

from PIL import Image, PngImagePlugin
from safetensors import safe_open


def mark_of(script: str) -> str:
    """The mark of a script, `__file__`: for `write_json`, `write_picture` and the metadata of other files."""
    return f"modeling-internimage {Path(script).name}"


def check_outputs(outputs: Iterable[Path], mark: str, inputs: Iterable[str] = ()):
    """
    Raise a `ValueError` if an output is a folder, one of the inputs (also through a link), the same as another output,
    or an existing file without this mark. To be called first, before hours of work.
    """
    files_read = {(status.st_dev, status.st_ino) for status in map(os.stat, filter(os.path.exists, inputs))}
    names = set()
    for path in outputs:
        name = os.path.realpath(path).casefold()  # some file systems do not know small letters from capitals
        if name in names:
            raise ValueError(f"Two results would be written to {path}: rename one of the images.")
        names.add(name)
        if path.is_dir():
            raise ValueError(f"{path} is a folder, where a file would be written: name another place.")
        if not path.exists():
            continue
        status = path.stat()
        if (status.st_dev, status.st_ino) in files_read:
            raise ValueError(f"{path} is read, and would be written over: name another place for the results.")
        if _read_mark(path) != mark:
            raise ValueError(
                f"{path} exists, and is not a result of {mark.split()[-1]}: name another place for the results, or "
                "remove that file."
            )


def _read_mark(path: Path) -> str | None:
    try:
        if path.suffix == ".png":
            with Image.open(path) as image:
                return image.info.get("Software")
        if path.suffix == ".safetensors":
            with safe_open(path, "pt") as file:
                return file.metadata()["Software"]
        return json.loads(path.read_bytes())["Software"]
    except Exception:  # any file may be there, and what the libraries raise about it is not all documented
        return None


def write_picture(path: Path, image: Image.Image, mark: str):
    """A PNG file. (For matplotlib: `savefig(path, metadata={"Software": mark})`.)"""
    text = PngImagePlugin.PngInfo()
    text.add_text("Software", mark)
    image.save(path, pnginfo=text)


def write_json(path: Path, content: dict, mark: str):
    """Whole or not at all: a file of this name is complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text(json.dumps({"Software": mark} | content, indent=2) + "\n", encoding="utf-8")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_data(path: Path, content: str | Image.Image):
    """
    A file of a data set, text or PNG, without a mark. Raises a `ValueError` if there is another file of this name.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        if isinstance(content, str):
            temporary.write_text(content, encoding="utf-8")
        else:
            content.save(temporary, "PNG")
        if path.exists() and (path.is_dir() or path.read_bytes() != temporary.read_bytes()):
            raise ValueError(f"{path} exists, and is another file: name another `--output_dir`, or remove that file.")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
