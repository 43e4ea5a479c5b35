# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""Reading checkpoints of the original code, `.pth` files, without running anything they contain."""

import pickletools
import re
import zipfile
from collections import OrderedDict
from pathlib import Path

import torch

from conversion.errors import ConversionError


# Where a checkpoint keeps its weights: the original's trainer, mm-style toolboxes, DeepSpeed.
WEIGHTS_ENTRIES = ("model", "state_dict", "module")
EMA_ENTRIES = ("model_ema", "state_dict_ema", "ema_state_dict", "ema")
# Keys of averaging hooks beside the weights -> why they are left out.
EMA_KEYS = {
    "ema_": "the second set of weights of an averaging hook, which `--ema` takes",
    "steps": "the counter of an averaging hook",
}


class _Inert:
    """Placeholder for objects that are not read, such as the best metric so far as a NumPy number."""

    def __init__(self, *args):
        pass

    def __setstate__(self, state):
        pass


_NUMPY_NAMES = [f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("scalar", "_reconstruct")]
_NUMPY_NAMES += ["numpy.dtype", "numpy.ndarray"]
# Settings and numbers that trainers store beside the weights, and what they become.
INERT_CLASSES = [(OrderedDict, name) for name in ("yacs.config.CfgNode", "argparse.Namespace")]
INERT_CLASSES += [(_Inert, name) for name in (*_NUMPY_NAMES, "mmengine.logging.history_buffer.HistoryBuffer")]
# All names that unpickling plain tensors and settings looks up.
_NUMBERS = ("Double", "Float", "Half", "BFloat16", "Long", "Int", "Short", "Char", "Byte", "Bool")
_DTYPES = ("float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool")
NEEDED_NAMES = {
    "collections.OrderedDict", "torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_tensor",
    "torch._utils._rebuild_parameter", "torch.Size", "torch.device", "_codecs.encode", "__builtin__.set",
    *(f"torch.{number}Storage" for number in _NUMBERS), *(f"torch.{dtype}" for dtype in _DTYPES),
    *(name for _, name in INERT_CLASSES),
}  # fmt: skip
# First bytes, after the protocol, of files that PyTorch wrote before 1.6. (Later ones are zip archives.)
_MAGIC_NUMBER = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."


def read_original_checkpoint(
    file: str | Path, ema: bool = False, strip: bool = True, prefix: str | None = None
) -> dict[str, torch.Tensor]:
    """
    The weights in a `.pth` file, under the names of the original model.

    The tensors are mapped from the file, not read: they take memory once they are used, and give it back when the last
    of them is deleted. Prefixes that wrappers add (`module.`, `backbone.`) are taken off.

    Args:
        file: The checkpoint. Its weights may be in an entry `model`, `state_dict` or `module`, or be the whole file.
        ema: Take the exponential moving average of the weights instead: an entry `model_ema`, `state_dict_ema`,
            `ema_state_dict` or `ema`, or the buffers `ema_...` of mmcv's hook among the weights.
        strip: Take the prefixes off.
        prefix: Read only the keys that begin with it, such as `"img_backbone."`, and take it off too. Of the prefixes
            of wrappers only `module.` is taken off then: `backbone.` may be a part of the model.

    Raises:
        `ConversionError`: if the file is missing, damaged, no checkpoint, or would run code when unpickled.
    """
    checkpoint = _load(Path(file))
    if not isinstance(checkpoint, dict):
        raise ConversionError(f"{file} holds a {type(checkpoint).__name__}, not a dictionary of weights.")
    checkpoint = _entries(checkpoint)
    entries = EMA_ENTRIES if ema else WEIGHTS_ENTRIES
    candidates = [checkpoint[entry] for entry in entries if entry in checkpoint]
    if not ema:
        candidates.append(checkpoint)
    weights = next((_entries(candidate) for candidate in candidates if _is_state_dict(candidate)), None)
    if weights is None and ema:
        weights = _averaged_buffers(read_original_checkpoint(file, strip=False))
    if weights is None:
        raise ConversionError(
            f"{file} has no {'averaged ' if ema else ''}weights: none of the entries {', '.join(entries)} is there, "
            f"only {', '.join(sorted(key for key in checkpoint if isinstance(key, str))[:10]) or 'nothing'}."
            + (" Take the averaged weights: `--ema`." if set(EMA_ENTRIES) & checkpoint.keys() and not ema else "")
        )
    wrappers = r"^(?:module\.|backbone\.)+" if prefix is None else r"^(?:module\.)+"
    state_dict = {}
    for original_key, tensor in weights.items():
        key = re.sub(wrappers, "", original_key) if strip else original_key
        if prefix is not None:
            if not key.startswith(prefix):
                continue
            key = key.removeprefix(prefix)
        if key in state_dict:
            raise ConversionError(f"{file} has {key!r} twice, with and without a prefix of a wrapper.")
        state_dict[key] = tensor.detach()
    return state_dict


def count_parameters(weights: dict[str, torch.Tensor]) -> int:
    """Number of parameters in a state dict, without buffers and the averaged weights of a hook."""
    buffers = ("running_mean", "running_var", "num_batches_tracked")
    return sum(
        tensor.numel()
        for key, tensor in weights.items()
        if not key.endswith(buffers) and not key.startswith(tuple(EMA_KEYS))
    )


def _averaged_buffers(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor] | None:
    """
    The weights, each replaced by its average where mmcv's hook keeps one: a buffer whose name is `ema_` and the
    weight's with `_` for `.`. `None` if there is no such buffer.
    """
    buffers = {key: "ema_" + key.replace(".", "_") for key in weights}
    buffers = {key: buffer for key, buffer in buffers.items() if buffer in weights}
    if not buffers:
        return None
    return {key: weights[buffers.get(key, key)] for key in weights if key not in set(buffers.values())}


def read_classes(file: str | Path) -> tuple[list | None, list | None]:
    """
    The class names and the palette that toolboxes of the mm family store in `meta` beside the weights, unchecked;
    `None` for what is missing. Raises `ConversionError` as [`read_original_checkpoint`].
    """
    meta = _entries(_entries(_load(Path(file))).get("meta"))
    meta = _entries(meta.get("dataset_meta")) or meta
    values = (meta.get(name) or meta.get(name.lower()) for name in ("CLASSES", "PALETTE"))
    return tuple(list(value) if isinstance(value, (list, tuple)) else None for value in values)


def _entries(value) -> dict:
    """The entries of a dictionary; none of another value. (`value.items` could be replaced by what is in the file.)"""
    return dict(dict.items(value)) if isinstance(value, dict) else {}


def _is_state_dict(candidate) -> bool:
    entries = _entries(candidate)
    return bool(entries) and all(
        isinstance(key, str) and isinstance(value, torch.Tensor) for key, value in entries.items()
    )


def _load(file: Path):
    if not file.is_file():
        raise ConversionError(f"There is no file {file}.")
    try:
        needed = _names_in(file)
    except ConversionError:
        raise
    except Exception as error:  # a damaged archive or pickle can raise any error
        raise _damaged(file, error) from error
    if unneeded := sorted(needed - NEEDED_NAMES):
        raise ConversionError(
            f"{file} is refused: reading it would run {unneeded[0]}, which is more than weights need. If you trust "
            "it, load it where it came from and save only its `state_dict()`, as plain tensors."
        )
    with torch.serialization.safe_globals(INERT_CLASSES):
        try:
            # Files from before PyTorch 1.6 are not zip archives and cannot be mapped.
            return torch.load(file, map_location="cpu", mmap=_is_zip(file), weights_only=True)
        except Exception as error:  # as can what they contain
            raise _damaged(file, error) from error


def _damaged(file: Path, error: Exception) -> ConversionError:
    reason = re.split(r"[.\n]", str(error))[0] or type(error).__name__
    return ConversionError(
        f"{file} ({file.stat().st_size:,} bytes) is damaged or was downloaded in part: {reason}. Delete it and "
        "download it again."
    )


def _is_zip(file: Path) -> bool:
    with open(file, "rb") as opened:
        return opened.read(4) == b"PK\x03\x04"


def _names_in(file: Path) -> set[str]:
    """
    Names of everything that unpickling `file` would look up. Raises `ConversionError` for a file that is not as
    `torch.save` writes it: another reader might find other contents in it.
    """
    if _is_zip(file):
        with zipfile.ZipFile(file) as archive:
            return _names_in_pickle(archive.read(_pickle_member(file, archive.infolist())))
    with open(file, "rb") as opened:
        if file.stat().st_size and opened.read(15)[2:] != _MAGIC_NUMBER:
            raise ConversionError(f"{file} is not a PyTorch checkpoint: `torch.save` did not write it.")
        opened.seek(0)
        # Magic number, version, system, what was saved, keys of its storages.
        return set().union(*(_names_in_pickle(opened) for _ in range(5)))


def _pickle_member(file: Path, members: list[zipfile.ZipInfo]) -> str:
    names = [member.filename for member in members]
    pickled = f"{names[0].split('/')[0]}/data.pkl" if names else "data.pkl"
    problem = None
    if any(name.endswith("/constants.pkl") for name in names):
        problem = "it is a TorchScript program"
    elif pickled not in names:
        problem = "it is another zip archive, without data.pkl"
    elif len({name.lower() for name in names}) < len(names):
        problem = "it has members of the same name"
    elif any(member.compress_type != zipfile.ZIP_STORED for member in members):
        problem = "it has compressed members"
    elif sum(member.file_size for member in members) > file.stat().st_size or members[0].header_offset:
        problem = "its members overlap, or it is several archives in one"
    if problem:
        raise ConversionError(
            f"{file} is not a PyTorch checkpoint of weights: {problem}. Save a `state_dict()` again."
        )
    return pickled


def _names_in_pickle(pickled) -> set[str]:
    return {
        argument.replace(" ", ".") if opcode.name == "GLOBAL" else opcode.name
        for opcode, argument, _ in pickletools.genops(pickled)
        if opcode.name in ("GLOBAL", "STACK_GLOBAL", "INST", "EXT1", "EXT2", "EXT4")
    }
