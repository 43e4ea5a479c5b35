# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""Checkpoint folders: which of them are complete, and from which one training can resume."""

import json
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers.trainer_pt_utils import safe_globals
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from transformers.utils import SAFE_WEIGHTS_NAME, logging


logger = logging.get_logger(__name__)

AVERAGED_WEIGHTS_FOLDER = "ema"
STATE_NAME = "trainer_state.json"  # the Trainer writes it last

# A checkpoint must have at least one file or folder of each kind. DeepSpeed has folders of its own.
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
    """The tensors in nested dictionaries and lists, with their paths, such as `state.0.exp_avg`."""
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
    A checkpoint folder of the Trainer, and its faults.

    Attributes:
        unusable: Why training cannot resume from it, or `None`.
        unreadable: The files that training can do without and that cannot be read, with the reasons.
        missing: The parts without a file, which would start anew.
    """

    path: Path
    unusable: str | None = None
    unreadable: dict[Path, str] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)

    @classmethod
    def examine(cls, folder: str | os.PathLike) -> "CheckpointFolder":
        """Read every file once, and look for faults."""
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
        """Whether nothing is missing, or only all that `save_only_model` leaves out."""
        return self.unusable is None and not self.unreadable and len(self.missing) in (0, len(_PARTS))

    @property
    def faults(self) -> str:
        if self.unusable is not None:
            return self.unusable
        return "; ".join([*self.unreadable.values(), *(f"{part} is missing" for part in self.missing)])

    def prepare(self):
        """
        Rename files that cannot be read to `*.unreadable`, so that the Trainer can resume from this folder. Warnings
        name what starts anew.

        Raises:
            ValueError: If training cannot resume from this folder.
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
    """The checkpoint to resume from, and the newer ones that are damaged more than it."""
    numbers = {}
    for folder in Path(output_dir).glob(f"{PREFIX_CHECKPOINT_DIR}-*"):
        if (match := re.fullmatch(rf"{PREFIX_CHECKPOINT_DIR}-(\d+)", folder.name)) and folder.is_dir():
            numbers[folder] = int(match[1])
    examined: list[CheckpointFolder] = []
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
    The newest complete checkpoint of a run or, without one, the newest that has at least weights and state. Warnings
    name the newer ones that are skipped.
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
        shape = list(getattr(parameter, "ds_shape", parameter.shape))  # DeepSpeed ZeRO-3 keeps them elsewhere
        if shapes.get(name) != shape:
            raise ValueError(
                f"{checkpoint} is of another model: {name} has the shape {shapes.get(name)} there and {shape} here. "
                "Name another `--output_dir`, or delete that one."
            )
