# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""The inner loops of the CPU backend under the address and undefined-behaviour sanitizers, per instruction set."""

import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest


ROOT = Path(__file__).parents[1]
X86 = ["-mavx2", "-mfma", "-mf16c"]
AVX512 = [*X86, "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq"]
FLAGS = {
    "dcnv3_cpu/dcnv3_cpu_portable.cpp": [],
    "dcnv3_cpu/dcnv3_cpu_avx2.cpp": X86,
    "dcnv3_cpu/dcnv3_cpu_avx512.cpp": AVX512,
    "dcnv3_cpu/dcnv3_cpu_avx512_bf16.cpp": [*AVX512, "-mavx512bf16"],
    "tests/cpu_sanitizers/driver.cpp": [],
}


@pytest.mark.skipif(shutil.which("g++") is None, reason="compiles with g++")
def test_sanitizers(tmp_path):
    """Exactly sized buffers, odd geometries, NaN, infinite and huge offsets: no access outside, no undefined step."""
    sanitize = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]

    def compile_source(source):
        target = tmp_path / (Path(source).stem + ".o")
        command = [
            "g++",
            "-std=c++20",
            "-O0",
            "-g1",
            "-Wno-psabi",
            *sanitize,
            *FLAGS[source],
            "-c",
            str(ROOT / source),
        ]
        subprocess.run([*command, "-o", str(target)], check=True)
        return str(target)

    with ThreadPoolExecutor(2) as pool:
        objects = list(pool.map(compile_source, FLAGS))
    subprocess.run(["g++", *sanitize, *objects, "-o", str(tmp_path / "driver")], check=True)
    result = subprocess.run([str(tmp_path / "driver")], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]
    assert int(result.stdout.split()[0]) >= 480  # at least both index types of the portable loops
