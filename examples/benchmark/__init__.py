# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""Benchmarks of InternImage: `python -m examples.benchmark --help`."""
