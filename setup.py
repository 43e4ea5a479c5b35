# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""
Metadata is in setup.cfg. Only the description is made here: links and pictures of README.md are relative to the
repository, and elsewhere need its address, `Source` among the project URLs of setup.cfg. Without it they are left out.
"""

import configparser
import re
from pathlib import Path

from setuptools import setup


def description(readme: str, address: str | None) -> str:
    """The README with links that work anywhere."""

    def absolute(link: re.Match) -> str:
        picture, text, path = link.groups()
        if address is None:
            return "" if picture else text
        return f"{picture}[{text}]({address}/{'raw' if picture else 'blob'}/main/{path})"

    return re.sub(r"(!?)\[([^]]*)\]\((?!https?:|#)([^)]+)\)", absolute, readme)


if __name__ == "__main__":
    root = Path(__file__).parent
    metadata = configparser.ConfigParser()
    metadata.read(root / "setup.cfg", encoding="utf-8")
    urls = dict(line.split(" = ") for line in metadata["metadata"]["project_urls"].split("\n") if line)
    setup(
        long_description=description((root / "README.md").read_text(encoding="utf-8"), urls.get("Source")),
        long_description_content_type="text/markdown",
    )
