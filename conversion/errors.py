# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
class ConversionError(Exception):
    """What keeps a checkpoint from being converted, checked or published: a sentence that says the way out."""
