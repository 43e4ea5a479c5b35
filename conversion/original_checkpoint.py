# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""Reading checkpoints of the original code, `.pth` files, without running anything they contain."""

import pickle
import re
from collections import OrderedDict
from pathlib import Path

import numpy
import torch

from conversion.errors import ConversionError


# Where a checkpoint keeps its weights: the original's trainer, mm-style toolboxes, DeepSpeed.
WEIGHTS_ENTRIES = ("model", "state_dict", "module")
EMA_ENTRIES = ("model_ema", "state_dict_ema", "ema_state_dict", "ema")

# Settings that trainers store beside the weights. Nobody reads them here; they become plain dictionaries.
INERT_CLASSES = [(OrderedDict, name) for name in ("yacs.config.CfgNode", "argparse.Namespace")]
# Numbers of numpy, such as the best metric so far: what rebuilds them builds nothing else.
_rebuild_scalar = numpy.float64(0).__reduce__()[0]
NUMPY_NUMBERS = [(_rebuild_scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")]
NUMPY_NUMBERS += [numpy.dtype, *(type(numpy.dtype(code)) for code in ("f2", "f4", "f8", "i4", "i8", "u1", "?"))]


def read_original_checkpoint(file: str | Path, ema: bool = False) -> dict[str, torch.Tensor]:
    """
    The weights in a `.pth` file, under the names of the original model.

    The tensors are mapped from the file, not read: they take memory once they are used, and give it back when the last
    of them is deleted. Prefixes that wrappers add (`module.`, `backbone.`) are taken off.

    Args:
        file: The checkpoint. Its weights may be in an entry `model`, `state_dict` or `module`, or be the whole file.
        ema: Take the exponential moving average of the weights instead.

    Raises:
        `ConversionError`: if the file is missing, damaged, no checkpoint, or would run code when unpickled.
    """
    checkpoint = _load(Path(file))
    if not isinstance(checkpoint, dict):
        raise ConversionError(f"{file} holds a {type(checkpoint).__name__}, not a dictionary of weights.")
    entries = EMA_ENTRIES if ema else WEIGHTS_ENTRIES
    candidates = [checkpoint[entry] for entry in entries if entry in checkpoint]
    if not ema:
        candidates.append(checkpoint)
    weights = next((candidate for candidate in candidates if _is_state_dict(candidate)), None)
    if weights is None:
        raise ConversionError(
            f"{file} has no {'averaged ' if ema else ''}weights: none of the entries {', '.join(entries)} is there, "
            f"only {', '.join(sorted(map(str, checkpoint))[:10]) or 'nothing'}."
        )
    state_dict = {}
    for original_key, tensor in weights.items():
        key = re.sub(r"^(?:module\.|backbone\.)+", "", original_key)
        if key in state_dict:
            raise ConversionError(f"{file} has {key!r} twice, with and without a prefix of a wrapper.")
        state_dict[key] = tensor
    return state_dict


def _is_state_dict(candidate) -> bool:
    return (
        isinstance(candidate, dict)
        and len(candidate) > 0
        and all(isinstance(key, str) and isinstance(value, torch.Tensor) for key, value in candidate.items())
    )


def _load(file: Path):
    if not file.is_file():
        raise ConversionError(f"There is no file {file}.")
    with torch.serialization.safe_globals(INERT_CLASSES + NUMPY_NUMBERS):
        try:
            # Files from before PyTorch 1.6 are no zip archives and cannot be mapped.
            return torch.load(file, map_location="cpu", mmap=_is_zip(file), weights_only=True)
        except pickle.UnpicklingError as error:
            raise ConversionError(_why_unpickling_failed(file, str(error))) from error
        except (RuntimeError, EOFError, ValueError, OSError) as error:
            reason = re.split(r"[.\n]", str(error))[0] or "it ends too early"
            raise ConversionError(
                f"{file} ({file.stat().st_size:,} bytes) is damaged or was downloaded in part: {reason}. Delete it "
                "and download it again."
            ) from error


def _is_zip(file: Path) -> bool:
    with open(file, "rb") as opened:
        return opened.read(4) == b"PK\x03\x04"


def _why_unpickling_failed(file: Path, message: str) -> str:
    if needed := re.search(r"GLOBAL (\S+)|class (\S+) (?:is|was) not", message):
        name = next(filter(None, needed.groups()))
        return (
            f"{file} is refused: reading it would run {name}, which is more than weights need. If you trust it, load "
            "it where it came from and save only its `state_dict()`."
        )
    reason = re.search(r"WeightsUnpickler error:\s*(.+)", message)
    return f"{file} is not a PyTorch checkpoint, or is damaged: {reason[1] if reason else message}."
