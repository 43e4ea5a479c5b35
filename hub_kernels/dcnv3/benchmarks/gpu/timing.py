# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""Times of the kernel: CUDA graph replays with cold and warm inputs, latency, and copy bandwidth."""

import math
import statistics
import time
from dataclasses import replace

import torch

from .cases import LARGE_STAGES, compare, detached, make_tensors, results, stage_case


def capture(function, warm_up):
    """
    Records `function()` as a CUDA graph, after the calls of `warm_up` on another stream. Returns the graph and what
    the function returned, which every replay writes anew.
    """
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for call in warm_up:
            call()
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    current, graph = torch.cuda.current_stream(), torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            result = function()
    except Exception:
        torch.cuda.set_stream(current)  # torch leaves that of a failed capture
        raise
    return graph, result


class Timer:
    """Seconds per call."""

    def __init__(self, device, quick):
        self.device = device
        self.replays = 10 if quick else 25
        self.seconds = 0.1 if quick else 0.25  # to spend on one measurement

    def __call__(self, calls, keep=True, must_capture=True):
        """
        Runs the calls one after another, again and again. On a GPU as one CUDA graph, whose replays are timed with
        events: no time of the CPU is in it. `keep`: the results of all calls stay in memory until the last one. What
        cannot be captured raises an error or, not `must_capture`, is timed as it is launched.
        """
        if self.device == "cpu":
            calls[0]()
            times = []
            for call in calls[:3]:
                start = time.perf_counter()
                call()
                times.append(time.perf_counter() - start)
            return {"seconds": statistics.median(times), "method": "clock", "calls": len(times)}

        def run_all(keep):
            kept = []
            for call in calls:
                result = call()
                if keep:
                    kept.append(result)
                del result
            return kept

        try:
            graph, kept = capture(lambda: run_all(keep), [*calls[:2], calls[0]])
            run, method = graph.replay, "graph"
        except Exception as error:
            if must_capture:
                raise
            torch.cuda.synchronize()
            message = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
            run, method = lambda: run_all(False), f"events, because it could not be captured: {message}"
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        run()
        run()
        end.record()
        torch.cuda.synchronize()
        replays = self.seconds / max(start.elapsed_time(end) / 2000, 1e-6)
        replays = int(min(max(replays, self.replays), 10 * self.replays))
        events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(replays)]
        for start, end in events:
            start.record()
            run()
            end.record()
        torch.cuda.synchronize()
        times = sorted(start.elapsed_time(end) / 1000 / len(calls) for start, end in events)
        return {
            "seconds": statistics.median(times), "fastest": times[0], "method": method, "calls": len(calls),
            "replays": replays,
        }  # fmt: skip

    def cold(self, make_call, count):
        """For peers, as `cold_and_warm`, not warm."""
        return {"cold": self([make_call(index) for index in range(count)], must_capture=False)}

    def cold_and_warm(self, make_call, count):
        """`make_call(i)` uses input set i. Cold: all in turn, more than the cache holds. Warm: always the same."""
        calls = [make_call(index) for index in range(count)]
        return {"cold": self(calls), "warm": self([calls[0]] * (20 if self.device == "cuda" else 3), keep=False)}


def copy_bandwidth(worker):
    count = 2**28 if worker.device == "cuda" else 2**22
    source = torch.randn(count, device=worker.device)
    target = torch.empty_like(source)
    timing = worker.timer([lambda: target.copy_(source)] * 3, keep=False)
    return {"ok": True, "bytes_per_second": 2 * source.nbytes / timing["seconds"], **timing}


def benchmark_case(worker, shape, softmax=True):
    batch = 1 if worker.device == "cpu" else 4 if shape in LARGE_STAGES else 64
    return replace(stage_case(shape, batch, softmax), offsets="trained-like")


def input_sets(worker, case, dtype):
    """Enough sets of inputs that they do not fit the cache together."""
    first = make_tensors(case, dtype, worker.device)
    if worker.device == "cpu":
        return [first, first]
    bytes_per_set = sum(tensor.nbytes for tensor in first[0] if tensor is not None)
    cache = torch.cuda.get_device_properties(0).L2_cache_size
    count = max(6, math.ceil(4 * cache / bytes_per_set))
    return [first] + [make_tensors(case, dtype, worker.device, seed) for seed in range(1, count)]


def benchmark_ours(shape, dtype_name, softmax, worker):
    case = benchmark_case(worker, shape, softmax)
    sets = input_sets(worker, case, getattr(torch, dtype_name))
    call = worker.call(case)
    actual = results(call, *sets[0])
    worker.synchronize()
    check = compare(case, *sets[0], actual)
    report = {"ok": check["ok"], "parity": check["tensors"], "batch": case.batch, "sets": len(sets)}
    if not check["ok"]:
        return report
    worker.timer([lambda: call(*detached(sets[0][0]))] * 20, keep=False)  # until the clock is up

    def forward(index):
        tensors = detached(sets[index][0])
        return lambda: call(*tensors)

    def training(index):
        tensors, cotangent = sets[index]
        return lambda: torch.autograd.grad(call(*tensors), tensors[:3], cotangent)

    report["forward"] = worker.timer.cold_and_warm(forward, len(sets))
    report["training"] = worker.timer.cold_and_warm(training, len(sets))
    report["forward"]["cold again"] = worker.timer([forward(index) for index in range(len(sets))])
    return report


def latency(shape, dtype_name, worker):
    """Batch 1, one call after another inside a CUDA graph."""
    case = replace(stage_case(shape, 1), offsets="trained-like")
    tensors, cotangent = make_tensors(case, getattr(torch, dtype_name), worker.device)
    call = worker.call(case)
    check = compare(case, tensors, cotangent, results(call, tensors, cotangent))
    report = {"ok": check["ok"], "parity": check["tensors"]}
    if check["ok"]:
        tensors = detached(tensors)
        report["forward"] = worker.timer([lambda: call(*tensors)] * (64 if worker.device == "cuda" else 3), False)
    return report
