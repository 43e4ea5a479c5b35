# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""Publishing what local_build.py makes, as far as a dry run goes."""

import subprocess
import sys
from pathlib import Path


ROOT = Path(__file__).resolve().parents[1]


def test_dry_run(build):
    build("cpu")
    command = [sys.executable, ROOT / "publish.py", "someone/dcnv3", "--no-build"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "-cpu-x86_64-linux: loads, within" in result.stdout
    assert "branch v1: build/torch-stable-abi211-cpu-x86_64-linux/metadata.json" in result.stdout
    assert "A dry run: nothing was uploaded to someone/dcnv3" in result.stdout
