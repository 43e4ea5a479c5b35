# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""What a training run leaves on disk: whole checkpoints, one run in a folder, an orderly end on SIGTERM."""

import json
import os
import re
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers.trainer_pt_utils import safe_globals
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from transformers.utils import SAFE_WEIGHTS_NAME, logging


try:
    import fcntl
except ImportError:  # Windows
    fcntl = None
    import msvcrt


logger = logging.get_logger(__name__)

AVERAGED_WEIGHTS_FOLDER = "ema"
STATE_NAME = "trainer_state.json"  # the Trainer writes it last

# Files or folders of a checkpoint, of which one must be there. DeepSpeed has all in folders of its own.
_WEIGHTS = ("*.safetensors", "*/adapter_model.safetensors", "pytorch_model*", "adapter_model*", "global_step*")
_PARTS = {
    "the optimizer": ("optimizer.pt", "optimizer.bin", "optimizer_*", "global_step*"),
    "the learning rate's schedule": ("scheduler.pt", "global_step*"),
    "the random numbers": ("rng_state*.pth",),
}
_OTHER_FILES = (
    "optimizer.pt", "optimizer.bin", "scheduler.pt", "scaler.pt", "rng_state*.pth",
    f"{AVERAGED_WEIGHTS_FOLDER}/*.safetensors",
)  # fmt: skip


def name_of_not_finite(tensors: Iterable[tuple[str, torch.Tensor]]) -> str | None:
    """The first name whose tensor, sharded or not, has NaN or Inf (in this process's shard)."""
    names, extremes = [], []
    for name, tensor in tensors:
        tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor
        if tensor.is_floating_point() and tensor.numel() > 0 and tensor.element_size() > 1:
            names.append(name)
            extremes.append(torch.stack(torch.aminmax(tensor.detach())).float())  # NaN if one is
    if not extremes:
        return None
    device = extremes[0].device
    is_finite = torch.isfinite(torch.stack([pair.to(device) for pair in extremes])).all(dim=1).tolist()
    return None if all(is_finite) else names[is_finite.index(False)]


def nested_tensors(value, name: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors in dictionaries and lists, with the names of the path to them."""
    if isinstance(value, torch.Tensor):
        yield name, value
    elif isinstance(value, (dict, list, tuple)):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from nested_tensors(item, f"{name}.{key}" if name else str(key))


def _fault_of_file(file: Path) -> str | None:
    """Why a file cannot be read, or what in it is not finite."""
    try:
        if file.suffix == ".safetensors":
            with safe_open(file, "pt") as saved:
                # (One tensor at a time: the generator keeps none.)
                name = next(
                    (name for name in saved.keys() if name_of_not_finite([(name, saved.get_tensor(name))])), None
                )
        else:
            with safe_globals():  # arrays of numpy
                name = name_of_not_finite(
                    nested_tensors(torch.load(file, map_location="cpu", weights_only=True, mmap=True))
                )
    except Exception as error:  # damaged files make their readers raise anything
        return f"{file.name} cannot be read: {type(error).__name__} {error}".splitlines()[0]
    return None if name is None else f"{file.name} has NaN or Inf in {name}"


@dataclass
class CheckpointFolder:
    """
    A folder of the Trainer and what is wrong with it.

    Attributes:
        unusable: Why training cannot go on from it, or `None`.
        unreadable: Of the files that it could go on without, those that cannot be read, and why.
        missing: What would start anew because there is no file of it.
    """

    path: Path
    unusable: str | None = None
    unreadable: dict[Path, str] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)

    @classmethod
    def examine(cls, folder: str | os.PathLike) -> "CheckpointFolder":
        """Reads all of it once."""
        checkpoint = cls(Path(folder))
        checkpoint.unusable = checkpoint._find_unusable()
        if checkpoint.unusable is None:
            files = [file for pattern in _OTHER_FILES for file in sorted(checkpoint.path.glob(pattern))]
            faults = {file: _fault_of_file(file) for file in files}
            checkpoint.unreadable = {file: fault for file, fault in faults.items() if fault is not None}
            checkpoint.missing = [
                part
                for part, patterns in _PARTS.items()
                if not any(any(checkpoint.path.glob(pattern)) for pattern in patterns)
            ]
        return checkpoint

    def _find_unusable(self) -> str | None:
        if not self.path.is_dir():
            return "there is no such folder"
        if not (self.path / STATE_NAME).is_file():
            return f"{STATE_NAME} is missing"
        if not has_state(self.path):
            return f"{STATE_NAME} cannot be read"
        if not any(any(self.path.glob(pattern)) for pattern in _WEIGHTS):
            return "the weights are missing"
        for index in self.path.glob("*.index.json"):
            try:
                shards = set(json.loads(index.read_text())["weight_map"].values())
            except (ValueError, KeyError, TypeError, AttributeError):
                return f"{index.name} cannot be read"
            if absent := sorted(shard for shard in shards if not (self.path / shard).is_file()):
                return f"{absent[0]} is missing"
        weights = sorted({file for pattern in ("*.safetensors", "*/adapter_model.safetensors", "*_model.bin")
                          for file in self.path.glob(pattern)})  # fmt: skip
        return next((fault for file in weights if (fault := _fault_of_file(file))), None)

    @property
    def is_complete(self) -> bool:
        """Also without optimizer, schedule and random numbers, if all of them were left out (`save_only_model`)."""
        return self.unusable is None and not self.unreadable and len(self.missing) in (0, len(_PARTS))

    @property
    def faults(self) -> str:
        if self.unusable is not None:
            return self.unusable
        return "; ".join([*self.unreadable.values(), *(f"{part} is missing" for part in self.missing)])

    def prepare(self):
        """
        Make the Trainer able to go on from it: files that cannot be read get the ending `.unreadable`. A warning says
        what starts anew.

        Raises:
            ValueError: If it cannot go on from this folder.
        """
        if self.unusable is not None:
            raise ValueError(f"Training cannot go on from {self.path}: {self.unusable}. Name another, or delete it.")
        for file, fault in self.unreadable.items():
            logger.warning(
                f"{self.path}: {fault}. It is kept as {file.name}.unreadable, and what it held starts anew."
            )
            file.rename(f"{file}.unreadable")
        again = self.examine(self.path).missing if self.unreadable else self.missing
        if len(set(again) & {"the optimizer", "the learning rate's schedule"}) == 1:  # the Trainer reads both or none
            again = [part for part in _PARTS if part in again or part != "the random numbers"]
        if again:
            logger.warning(
                f"{self.path} has only a part of a checkpoint. Training goes on from its weights and step; "
                f"{', '.join(again)} start anew."
            )


def has_state(folder: str | os.PathLike) -> bool:
    """Whether the file that the Trainer writes last into a checkpoint is whole."""
    try:
        return isinstance(json.loads((Path(folder) / STATE_NAME).read_text(encoding="utf-8"))["global_step"], int)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _find(output_dir: str | os.PathLike) -> tuple[CheckpointFolder | None, list[CheckpointFolder]]:
    """The checkpoint to resume from, and the newer ones that are worse."""
    numbers = {}
    for folder in Path(output_dir).glob(f"{PREFIX_CHECKPOINT_DIR}-*"):
        if (match := re.fullmatch(rf"{PREFIX_CHECKPOINT_DIR}-(\d+)", folder.name)) and folder.is_dir():
            numbers[folder] = int(match[1])
    examined = []
    for folder in sorted(numbers, key=numbers.get, reverse=True):
        checkpoint = CheckpointFolder.examine(folder)
        if checkpoint.is_complete:
            return checkpoint, examined
        examined.append(checkpoint)
    for idx, checkpoint in enumerate(examined):
        if checkpoint.unusable is None:
            return checkpoint, examined[:idx]
    return None, examined


def find_checkpoint(output_dir: str | os.PathLike) -> CheckpointFolder | None:
    """
    The newest complete checkpoint of a run or else the newest that has at least weights and state. Newer ones that
    are passed over are named in a warning.
    """
    chosen, newer = _find(output_dir)
    way_on = "there is none before it to resume from"
    if chosen is not None:
        way_on = f"resuming from the one before, {chosen.path}"
    for checkpoint in newer:
        logger.warning(
            f"{checkpoint.path} is incomplete or damaged, as a killed run leaves it ({checkpoint.faults}): {way_on}."
        )
    return chosen


def last_complete_checkpoint(output_dir: str | os.PathLike) -> str | None:
    """The folder that `find_checkpoint` finds, without a warning."""
    checkpoint, _ = _find(output_dir)
    return None if checkpoint is None else str(checkpoint.path)


def check_same_architecture(model: nn.Module, checkpoint: str | os.PathLike):
    """Raise a `ValueError` if the weights in `checkpoint` are of another model or cannot be read."""
    file = Path(checkpoint) / SAFE_WEIGHTS_NAME
    if not file.is_file():  # an adapter, or shards
        return
    try:
        with safe_open(file, "pt") as saved:
            shapes = {name: saved.get_slice(name).get_shape() for name in saved.keys()}
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{file} cannot be read ({error}). Name another checkpoint, or delete that one.") from error
    for name, parameter in model.named_parameters():
        name = name.replace("_orig_mod.", "").removeprefix("module.")
        shape = list(getattr(parameter, "ds_shape", parameter.shape))  # DeepSpeed ZeRO-3 keeps them elsewhere
        if shapes.get(name) != shape:
            raise ValueError(
                f"{checkpoint} is of another model: {name} has the shape {shapes.get(name)} there and {shape} here. "
                "Name another `--output_dir`, or delete that one."
            )


class FolderLock:
    """
    A folder is one process's inside the `with` block, which can be nested. The operating system ends the lock with
    the process, however that ends; worker processes do not share it. The file `_lock` stays in the folder.

    Raises:
        RuntimeError: If another process has the lock.
        OSError: If the folder cannot be written.
    """

    def __init__(self, folder: str | os.PathLike):
        self.folder = Path(folder)
        self._depth = 0
        self._file = None

    def __enter__(self):
        if self._depth == 0:
            self._file = self._acquire()
        self._depth += 1

    def __exit__(self, *_):
        self._depth -= 1
        if self._depth == 0:
            self._file.close()
            self._file = None

    def _acquire(self):
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            file = open(self.folder / "_lock", "a+", encoding="utf-8")  # (`push_to_hub` leaves `_*` out)
        except OSError as error:
            raise OSError(f"The output folder {self.folder} cannot be written ({error}).") from error
        try:
            if fcntl is not None:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # `flock` would be shared with forked workers
            else:
                file.seek(0)
                msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        except (BlockingIOError, PermissionError) as error:
            file.close()
            raise RuntimeError(
                f"Another run is writing to {self.folder}{_holder(self.folder)}. Name another output folder, or wait."
            ) from error
        except OSError as error:
            logger.warning(
                f"{self.folder} is on a file system without locks ({error}): a second run in it would not be noticed."
            )
        if fcntl is not None:
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}")
            file.flush()
        return file


def _holder(folder: Path) -> str:
    try:
        name = (folder / "_lock").read_text(encoding="utf-8")
    except OSError:  # Windows locks reading too
        name = ""
    return f" ({name})" if name else ""


class SigtermGuard:
    """
    SIGTERM, with which Slurm, Kubernetes and others announce the end, does not end the process inside the `with`
    block, which can be nested; it sets `received`. Another one, a second or more later (launchers repeat it at once),
    ends it. The outermost block ends the process if there was one: `SystemExit` with the status 143. Does nothing in
    other threads than the main one and if the program has a handler of its own.
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
    Workers of `dataloader` end only when their parent says so. Slurm and `timeout` send SIGTERM to all processes, and
    the parent needs its workers until the step is done.
    """
    dataloader = getattr(dataloader, "base_dataloader", dataloader)  # accelerate's are around one
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


class Published(str):
    """A string that pickles as another one, or as `None`: what is in a file that leaves this machine."""

    def __new__(cls, value: str, published: str | None):
        string = super().__new__(cls, value)
        string.published = published
        return string

    def __reduce__(self):
        return (type(None), ()) if self.published is None else (str, (self.published,))

    def __deepcopy__(self, memo):
        return self
