# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""An orderly end of training on SIGTERM."""

import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass


class SigtermGuard:
    """
    Inside the `with` block, which can be nested, SIGTERM (sent by Slurm, Kubernetes and others before they kill a
    job) sets `received` instead of ending the process. At the end of the outermost block the process then exits with
    the status 143 (`SystemExit`). A second SIGTERM ends the process at once, unless it comes within a second of the
    first, as launchers send it. Outside the main thread, or if the program handles SIGTERM itself, nothing changes.
    """

    STATUS = 128 + signal.SIGTERM
    SECONDS = 1.0

    def __init__(self):
        self.received = False
        self._time = 0.0
        self._depth = 0
        self._is_installed = False

    def __enter__(self):
        self._depth += 1
        if self._depth > 1 or threading.current_thread() is not threading.main_thread():
            return
        if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
            self.received, self._is_installed = False, True
            signal.signal(signal.SIGTERM, self._handle)

    def __exit__(self, exception_type, *_):
        self._depth -= 1
        if self._depth == 0 and self._is_installed:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            self._is_installed = False
            if self.received and exception_type is None:
                raise SystemExit(self.STATUS)

    @property
    def is_active(self) -> bool:
        return self._depth > 0

    def _handle(self, *_):
        if not self.received:
            self.received, self._time = True, time.monotonic()
        elif time.monotonic() - self._time > self.SECONDS:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            signal.raise_signal(signal.SIGTERM)


def leave_sigterm_to_parent(dataloader):
    """
    Workers of `dataloader` obey SIGTERM only if it comes from their parent process. Slurm and `timeout` send it to all
    processes, and the parent needs its workers until the current step is complete.
    """
    dataloader = getattr(dataloader, "base_dataloader", dataloader)  # accelerate wraps data loaders
    if getattr(dataloader, "num_workers", 0) > 0 and hasattr(signal, "sigwaitinfo"):
        if not isinstance(dataloader.worker_init_fn, _StartWorker):
            dataloader.worker_init_fn = _StartWorker(dataloader.worker_init_fn)


@dataclass
class _StartWorker:
    start: Callable[[int], None] | None

    def __call__(self, worker_id: int):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_wait_for_parent, daemon=True).start()
        if self.start is not None:
            self.start(worker_id)


def _wait_for_parent():
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)
