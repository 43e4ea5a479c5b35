# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""The official InternImage checkpoints: a registry, and the scripts that republish them in this package's format."""
