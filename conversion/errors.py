# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
def printable(text) -> str:
    """Text from a file (keys, names, labels) for a terminal: one line without control characters, not endless."""
    text = str(text)
    text = text if len(text) <= 2000 else f"{text[:2000]}..."
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape", "surrogatepass").decode() for char in text
    )


class ConversionError(Exception):
    """Why a checkpoint cannot be converted, checked or published: a sentence that names the way out."""

    def __init__(self, message: str):
        super().__init__(printable(message))
