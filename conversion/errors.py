# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
def printable(text) -> str:
    """What a file says (keys, names, labels), for a terminal: one line, control characters as escapes, not endless."""
    text = str(text)
    text = text if len(text) <= 2000 else f"{text[:2000]}..."
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape", "surrogatepass").decode() for char in text
    )


class ConversionError(Exception):
    """What keeps a checkpoint from being converted, checked or published: a sentence that says the way out."""

    def __init__(self, message: str):
        super().__init__(printable(message))
