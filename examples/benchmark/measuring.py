# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""Time, memory, and the machine."""

import datetime
import itertools
import json
import platform
import subprocess
import tempfile
import time
from pathlib import Path

import torch
import transformers


def processor_name() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []:
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def machine_description(device: str) -> dict:
    """What a reader needs to judge the numbers: hardware, versions, date and commit."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    return {
        "device": torch.cuda.get_device_name() if device == "cuda" else processor_name(),
        "threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "date": datetime.date.today().isoformat(),
        "commit": commit or None,
    }


def where_and_when(machine: dict) -> str:
    """The end of the line below a table."""
    return f"on {machine['device']}, {machine['threads']} threads, torch {machine['torch']}, {machine['date']}."


def synchronize(device: str):
    if device == "cuda":
        torch.cuda.synchronize()


def time_in_turn(
    functions: dict, device: str, min_runs: int, max_seconds: float, burst: int = 1, clock=time.perf_counter
) -> dict[str, list[float]]:
    """
    Run the functions alternately, each `burst` times at its turn; return the seconds of a run, for every turn. Single
    runs find the caches and the allocator as the other functions left them. A burst is warm: a run that is not timed
    precedes it. `clock` returns seconds; `time.process_time` leaves out what other processes take.
    """
    seconds = {name: [] for name in functions}
    for function in functions.values():
        function()
    started = time.perf_counter()
    while len(next(iter(seconds.values()))) < min_runs or time.perf_counter() - started < max_seconds:
        for name, function in functions.items():
            if burst > 1:
                function()
            synchronize(device)
            start = clock()
            for _ in range(burst):
                function()
            synchronize(device)
            seconds[name].append((clock() - start) / burst)
    return seconds


def peak_memory_mib(function, device: str) -> float:
    """
    Highest memory of tensors, above those at the start, while `function` runs. (The process may take more: what the
    C library keeps back of freed memory depends on its settings and on what ran before.)
    """
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        function()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        function()
    with tempfile.TemporaryDirectory() as folder:
        profiler.export_chrome_trace(f"{folder}/trace.json")
        events = json.loads(Path(folder, "trace.json").read_text())["traceEvents"]
    events = sorted((event for event in events if event["name"] == "[memory]"), key=lambda event: event["ts"])
    return max(itertools.accumulate(event["args"]["Bytes"] for event in events), default=0) / 2**20
