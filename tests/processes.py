# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""Several processes with gloo on the CPU: forks of a process that has imported everything, once for all tests."""

import contextlib
import multiprocessing
import os
import socket
import traceback
from collections.abc import Callable
from pathlib import Path


PRELOADED = ["torch.distributed.tensor", "torchvision", "accelerate", "transformers.trainer"]


def start_processes(count: int, target: Callable, *args, **kwargs) -> list[multiprocessing.Process]:
    """`target(*args, **kwargs)` in each, with the environment variables that torchrun sets."""
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(PRELOADED)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        environment = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    environment |= {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count), "OMP_NUM_THREADS": "1"}
    started = [
        processes.Process(
            target=_main,
            args=(environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)}, target, args, kwargs),
            daemon=True,
        )
        for rank in range(count)
    ]
    for process in started:
        process.start()
    return started


def join(processes: list[multiprocessing.Process]):
    """Wait until all have ended well."""
    try:
        for process in processes:
            process.join(180)
            assert process.exitcode == 0
    finally:
        for process in processes:
            process.kill()


def run_in_two_processes(folder: Path, code: str, *arguments: list | str) -> str:
    """What `code` prints in two processes. It finds the `arguments` in a list of this name."""
    processes = start_processes(2, _execute, folder, code, list(arguments))
    files = [folder / f"printed_{rank}.txt" for rank in range(2)]
    try:
        join(processes)
    except AssertionError as error:
        raise AssertionError("\n".join(file.read_text() for file in files if file.exists())) from error
    return "".join(file.read_text() for file in files)


def _main(environment: dict[str, str], target: Callable, args: tuple, kwargs: dict):
    os.environ |= environment
    target(*args, **kwargs)
    from accelerate import PartialState

    PartialState().destroy_process_group()


def _execute(folder: Path, code: str, arguments: list):
    os.environ["ACCELERATE_USE_CPU"] = "true"
    with open(folder / f"printed_{os.environ['RANK']}.txt", "w") as file, contextlib.redirect_stdout(file):
        try:
            exec(code, {"arguments": arguments})
        except BaseException:
            traceback.print_exc(file=file)
            raise
