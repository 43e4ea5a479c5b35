# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""Scripts for one task each, run from the root of the repository: `python -m examples.<task>.<script>`."""
