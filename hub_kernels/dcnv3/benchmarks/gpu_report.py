# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""
Checks the DCNv3 kernel on this machine's GPU, then measures it. Needs torch with CUDA and this checkout, no `kernels`.

    python hub_kernels/dcnv3/benchmarks/gpu_report.py                   # 8.5 minutes, the build included
    python hub_kernels/dcnv3/benchmarks/gpu_report.py --quick           # 4 minutes, the build included
    python hub_kernels/dcnv3/benchmarks/gpu_report.py --device cpu      # what can run without a GPU
    python hub_kernels/dcnv3/benchmarks/gpu_report.py --minutes 20 --sections model "model, compiled"

Results are compared with reference_dcnv3.py in float64; no time is reported without such a comparison in the same run.
Offsets are as in trained layers, 1 to 2 pixels in standard deviation and correlated between neighbours:
`trained_like_offsets` in gpu/cases.py makes those of operators, `randomize_offsets` in gpu/model.py those of models.
Whole models are measured where the package modeling_internimage is installed or on the PYTHONPATH, and ConvNeXt-T
where transformers is. DCNv4 (PyPI) and deformops (PyPI, its Triton operator) are checked and timed where they are
installed, and the naive kernel of naive_dcnv3.cu where nvcc is. The JSON file is written after every step. The exit
code is 1 if a check failed.

Every step is a task of a child process, which is replaced when an error leaves the GPU unusable for it. The plan with
its expected seconds is printed first; the most valuable tasks come first. A task that would not end in time is not
started, and listed under not_run.
"""

import argparse
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path

import torch
from gpu.machine import FOLDER, Worker, nvidia_smi, one_line, prepare_build
from gpu.report import Report, evaluate, markdown, plot
from gpu.tasks import Pace, make_tasks, print_plan


STARTED = time.time()
# For a task that takes longer than expected, and for the table and the plot.
RESERVE = 15


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.strip().split("\n")[0])
    parser.add_argument("--output", type=Path, help="default: results/<device>.json beside this script")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--quick", action="store_true", help="fewer cases, mostly bfloat16")
    parser.add_argument("--minutes", type=float, help="for everything, the build included (default: 8.4, quick: 3.8)")
    parser.add_argument("--sections", nargs="+", metavar="NAME", help="only these sections of the plan")
    parser.add_argument("--commit", help="to record, where the checkout has no history")
    parser.add_argument("--events", help=argparse.SUPPRESS)
    parser.add_argument("--start", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--until", type=float, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.minutes is None:
        arguments.minutes = 3.8 if arguments.quick else 8.4
    known = {task.section for task in make_tasks(argparse.Namespace(**vars(arguments) | {"sections": None}))}
    if not known.issuperset(arguments.sections or []):
        parser.error(f"--sections takes some of {sorted(known)}, got {arguments.sections}.")
    return arguments


def work(arguments):
    """
    The child process: runs tasks from `start` on, and writes what happens as lines of JSON. A task that would not end
    before `until` (a time since the epoch) is left out.
    """
    tasks, pace = make_tasks(arguments), Pace()
    worker = Worker(arguments)
    with open(arguments.events, "a", buffering=1) as events:

        def write(**event):
            events.write(json.dumps(event) + "\n")

        for index in range(arguments.start, len(tasks)):
            if time.time() + pace.expect(tasks[index]) > arguments.until:
                write(event="not run", index=index)
                continue
            write(event="start", index=index)
            start = time.perf_counter()
            try:
                result = tasks[index].function(worker)
                worker.synchronize()
            except Exception as error:
                # No reference to the exception: its traceback would keep tensors alive.
                result = {"ok": False, "error": one_line(error), "traceback": traceback.format_exc()[-1500:]}
            broken = False
            try:
                worker.synchronize()
                if worker.device == "cuda":
                    torch.cuda.empty_cache()
            except Exception as error:
                broken = True
                result |= {"ok": False, "device_error": one_line(error)}
            seconds = time.perf_counter() - start
            pace.add(tasks[index], seconds)
            write(event="result", index=index, seconds=seconds, result=result)
            if broken:
                os._exit(3)


def kill(process):
    """The child and what it started; it leads a process group of its own."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def nothing_can_run(report):
    return any(key.startswith(("environment", "load")) for key in report.data["failures"])


def follow(process, events, tasks, index, until, report):
    """Reports what a child process does. Returns the task that comes next."""
    started, limit = time.monotonic(), 120.0 + tasks[index].limit  # importing torch may take long
    position = 0
    with open(events) as lines:
        while True:
            ended = process.poll() is not None
            while (line := lines.readline()).endswith("\n"):
                position, event = lines.tell(), json.loads(line)
                started, limit = time.monotonic(), tasks[index].limit
                if event["event"] == "result":
                    if tasks[index].section in ("environment", "ours", "ours, DCNv4") and report.device == "cuda":
                        event["result"]["nvidia_smi"] = nvidia_smi()
                    report.add(tasks[index], event["result"], event["seconds"])
                    index, limit = index + 1, 60.0
                elif event["event"] == "not run":
                    report.data["not_run"].append(tasks[index].key)
                    index, limit = index + 1, 60.0
            lines.seek(position)
            if index == len(tasks):
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(20)
                return index
            if nothing_can_run(report):
                return index
            if time.time() > until + RESERVE / 2:
                report.data["not_run"].append(f"{tasks[index].key} (stopped: it took longer than expected)")
                return index + 1
            if ended and process.returncode == 3:  # the result of the task that broke the GPU is there
                return index
            seconds = time.monotonic() - started
            if ended or seconds > limit:
                message = f"the process ended with exit code {process.returncode}"
                message = message if ended else f"took longer than {limit:.0f} s and was stopped"
                report.add(tasks[index], {"ok": False, "error": message}, seconds)
                return index + 1
            time.sleep(0.05)


def run_tasks(arguments, report):
    tasks, index = make_tasks(arguments), 0
    until = STARTED + 60 * arguments.minutes - RESERVE
    print_plan(tasks, until - time.time())
    with tempfile.TemporaryDirectory() as folder:
        events = Path(folder) / "events"
        while index < len(tasks) and time.time() < until and not nothing_can_run(report):
            events.write_text("")
            command = [sys.executable, str(Path(__file__).resolve()), "--device", arguments.device]
            command += ["--events", str(events), "--start", str(index), "--until", str(until)]
            command += ["--quick"] * arguments.quick
            command += ["--sections", *arguments.sections] if arguments.sections else []
            process = subprocess.Popen(command, start_new_session=True)
            try:
                index = follow(process, events, tasks, index, until, report)
            finally:
                kill(process)
    report.data["not_run"] += [task.key for task in tasks[index:]]
    report.data["complete"] = not report.data["not_run"]
    if report.data["not_run"]:
        print(f"Not run, for lack of time: {'; '.join(report.data['not_run'])}")


def main():
    arguments = parse_arguments()
    if arguments.events:
        return work(arguments)
    smi = nvidia_smi() if arguments.device == "cuda" else {"name": "cpu"}
    print("GPU:", smi or "nvidia-smi does not answer")
    file = re.sub(r"[^A-Za-z0-9]+", "_", smi.get("name", "cuda")).strip("_").lower() + ".json"
    output = arguments.output or FOLDER / "results" / file
    report = Report(output, arguments)
    report.data["build"] = prepare_build(arguments.device)
    report.write()
    try:
        run_tasks(arguments, report)
    finally:
        if arguments.device == "cuda":
            report.data["nvidia_smi_after"] = nvidia_smi()
        evaluate(report, arguments)
        report.write()
    table = markdown(report)
    print("\n" + table + "\n")
    output.with_suffix(".md").write_text(table + "\n")
    plot(report, output.with_suffix(".png"))
    print(f"Results: {output}")
    failures = report.data["failures"]
    print(f"{len(failures)} checks failed." if failures else "Every check that ran succeeded.")
    print("\n".join(f"  {key}" for key in failures))
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
