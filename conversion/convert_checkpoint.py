# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""
One checkpoint from the original's format to a folder that `from_pretrained` loads: plan, write, check.

Nothing is trusted: every original key has to be used or named as left out, every parameter has to come from one, and
what was written is read again and compared with the source, tensor by tensor and through a forward pass.
"""

import contextlib
import datetime
import fcntl
import functools
import gc
import hashlib
import json
import os
import platform
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import huggingface_hub
import safetensors.torch
import torch
import transformers
from huggingface_hub import StateDictSplit, split_torch_state_dict_into_shards
from tqdm.auto import tqdm
from transformers import PreTrainedConfig, PreTrainedModel

import modeling_internimage
from conversion.checkpoints import CHECKPOINTS, Checkpoint
from conversion.errors import ConversionError, printable
from conversion.heads import HEADS, Head
from conversion.imagenet_head import NUM_IMAGENET_22K_CLASSES, imagenet_1k_rows
from conversion.model_card import create_model_card
from conversion.offset_mask import PARTS, UNREAD, split_offset_mask
from conversion.original_checkpoint import EMA_KEYS, count_parameters, read_original_checkpoint
from modeling_internimage.configuration_internimage import imagenet_labels
from modeling_internimage.modeling_internimage import InternImageDCNv4


REPORT_FILE = "conversion_report.json"
UNFINISHED = ".unfinished"
# The classes that `trust_remote_code=True` loads from the two source files, by Auto class.
REMOTE_CODE = {
    "AutoConfig": "configuration_internimage.InternImageConfig",
    "AutoModel": "modeling_internimage.InternImageModel",
    "AutoBackbone": "modeling_internimage.InternImageBackbone",
    "AutoModelForImageClassification": "modeling_internimage.InternImageForImageClassification",
}


@dataclass(frozen=True)
class ConversionOptions:
    """
    Args:
        dtype: `"float32"`, `"float16"` or `"bfloat16"`; `None` keeps the source's.
        max_shard_size: Size of a weights file, as in `save_pretrained`.
        ema: Convert the exponential moving average of the weights.
        imagenet_1k_head: Keep the 1000 rows of an ImageNet-22k classifier that stand for ImageNet-1k's classes.
        remote_code: Add the source files that users without this package load with `trust_remote_code=True`.
        backbone_only: Prefix of the keys of the backbone, which alone is converted.
    """

    dtype: str | None = None
    max_shard_size: str = "1GB"
    ema: bool = False
    imagenet_1k_head: bool = False
    remote_code: bool = False
    backbone_only: str | None = None


@dataclass(frozen=True)
class Origin:
    """An original tensor, some of its `rows`, or several tensors that are joined along `dim`."""

    keys: tuple[str, ...]
    rows: torch.Tensor | slice | None = None
    dim: int = 0

    def tensor(self, original: dict[str, torch.Tensor]) -> torch.Tensor:
        if len(self.keys) > 1:
            return torch.cat([original[key] for key in self.keys], self.dim)
        tensor = original[self.keys[0]]
        return tensor if self.rows is None else tensor[self.rows]

    def __str__(self):
        return " and ".join(self.keys)


@dataclass
class Plan:
    """A conversion that is not written yet, in which every key of the source is accounted for."""

    checkpoint: Checkpoint
    source: Path
    options: ConversionOptions
    config: PreTrainedConfig
    origins: dict[str, Origin]  # new name of a parameter or buffer -> where it is in the source
    computed: dict[str, torch.Tensor]  # new name -> buffer that follows from the configuration
    dropped: dict[str, str]  # original key -> why it is left out
    shards: StateDictSplit

    @property
    def num_bytes(self) -> int:
        return self.shards.metadata["total_size"]

    @property
    def head(self) -> Head:
        return HEADS[self.checkpoint.head]

    def tensors(self, names: Iterable[str]) -> Iterator[tuple[str, torch.Tensor]]:
        """The converted tensors of these new names, read from the source when they are asked for."""
        original = self.original()
        for name in names:
            if name in self.computed:
                tensor = self.computed[name]
            else:
                tensor = self.origins[name].tensor(original)
            if self.options.imagenet_1k_head and name.startswith("classifier."):
                tensor = imagenet_1k_rows(tensor)
            if tensor.is_floating_point():
                tensor = tensor.to(self.config.dtype)
            yield name, tensor.contiguous()

    def original(self) -> dict[str, torch.Tensor]:
        """The weights to convert, under their original keys (those of a backbone without its prefix)."""
        return read_original_checkpoint(self.source, self.options.ema, prefix=self.options.backbone_only)

    def names(self) -> list[str]:
        return [*self.origins, *self.computed]

    def used_keys(self) -> set[str]:
        """The original keys that are converted."""
        return {key for origin in self.origins.values() for key in origin.keys}

    def model(self) -> PreTrainedModel:
        """A model with weights taken directly from the source, not from the files that are written."""
        model = empty_model(self.head.model_class, self.config)
        model.load_state_dict(dict(self.tensors(self.names())), assign=True)
        return model.eval()


def plan_conversion(checkpoint: Checkpoint, source: Path, options: ConversionOptions) -> Plan:
    """
    Account for every key of `source` and every parameter of the model.

    Raises:
        `ConversionError`: if one is missing, superfluous or of another shape, naming them, and as
        [`read_original_checkpoint`].
    """
    head = HEADS[checkpoint.head]
    original = read_original_checkpoint(source, options.ema, prefix=options.backbone_only)
    config = checkpoint.config()
    if options.imagenet_1k_head and (
        checkpoint.task != "image-classification" or config.num_labels != NUM_IMAGENET_22K_CLASSES
    ):
        raise ConversionError(
            f"`--imagenet-1k-head` selects rows of an ImageNet-22k classifier, with {NUM_IMAGENET_22K_CLASSES} "
            f"classes; {checkpoint.name} has {config.num_labels}."
        )
    if options.remote_code and checkpoint.task not in ("image-classification", "image-feature-extraction"):
        raise ConversionError(
            f"`--remote-code` is for image classifiers: {checkpoint.name} has its backbone inside a model of "
            "transformers, which does not load remote code. Its users need this package."
        )
    dtypes = {tensor.dtype for tensor in original.values() if tensor.is_floating_point()}
    widest = functools.reduce(torch.promote_types, dtypes) if dtypes else torch.float32
    config.dtype = getattr(torch, options.dtype) if options.dtype else widest
    config.architectures = [head.model_class.__name__]

    try:
        expected = empty_model(head.model_class, config).state_dict()
    except (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise ConversionError(f"No model can be made of the configuration of {checkpoint.name}: {error}.") from error
    computed = {name: compute(config) for name, compute in head.computed.items()}
    origins, dropped, superfluous, shapes = {}, {}, [], []
    parts_of: dict[tuple[str, int], dict[int, str]] = {}  # name and dimension of what is joined -> number -> key
    for key, tensor in original.items():
        names = head.rename_key(key)
        reason = next((reason for prefix, reason in EMA_KEYS.items() if key.startswith(prefix)), None)
        if reason is not None:
            dropped[key] = reason
            continue
        if head.unused and names[0].startswith(head.unused):
            dropped[key] = "pooler and classifier, which a backbone does not have"
            continue
        if whole := head.whole(names[0]):
            name, number, dim = whole
            parts_of.setdefault((name, dim), {})[number] = key
            continue
        if any(name not in expected or name in origins for name in names):
            superfluous.append(key)
            continue
        parts = [expected[name].shape for name in names]
        shape = parts[0]
        if PARTS[0] in names[0] and len(names) > 1:
            num_points = InternImageDCNv4.kernel_size**2 - checkpoint.architecture.get("remove_center", False)
            *rows, unread = split_offset_mask(parts[1][0] // num_points, num_points)
            shape = (sum(map(len, (*rows, unread))), *shape[1:])
            if len(unread):
                dropped[f"{key}[{unread[0]}:]"] = UNREAD
        elif len(names) > 1:
            rows = [slice(idx * shape[0], (idx + 1) * shape[0]) for idx in range(len(names))]
            shape = (len(names) * shape[0], *shape[1:])
        elif checkpoint.num_original_labels and ".classifier." in names[0]:
            rows = [slice(shape[0])]
            shape = (checkpoint.num_original_labels, *shape[1:])
        else:
            rows = [None]
        origins |= {name: Origin((key,), part) for name, part in zip(names, rows)}
        if tensor.shape != shape:
            shapes.append(f"{key} {tuple(tensor.shape)} instead of {tuple(shape)}")
        elif tensor.is_floating_point() != expected[names[0]].is_floating_point():
            shapes.append(f"{key} of {tensor.dtype} instead of {expected[names[0]].dtype}")
    for (name, dim), keys in parts_of.items():
        origin = Origin(tuple(key for _, key in sorted(keys.items())), dim=dim)
        if name not in expected or name in origins:
            superfluous += origin.keys
            continue
        origins[name] = origin
        parts = [original[key] for key in origin.keys]
        if not _fit_together(parts, dim, expected[name].shape):
            found = ", ".join(f"{tuple(part.shape)} of {part.dtype}" for part in parts)
            shapes.append(f"{origin} {found} instead of parts of {tuple(expected[name].shape)}")
    if options.backbone_only is not None:
        dropped |= _outside(source, options)
    missing = [name for name in expected if name not in origins and name not in computed]
    problems = {
        "keys belong to no parameter": superfluous,
        "parameters, in the names they have here, have no key": missing,
        "keys have another shape or type": shapes,
    }
    if any(problems.values()):
        raise ConversionError(_explain(checkpoint, source, problems, original))
    if options.imagenet_1k_head:
        id2label = imagenet_labels(1000)
        config.id2label, config.label2id = id2label, {label: idx for idx, label in id2label.items()}
        expected = empty_model(head.model_class, config).state_dict()
    try:
        shards = split_torch_state_dict_into_shards(expected, max_shard_size=options.max_shard_size)
    except ValueError as error:
        raise ConversionError(
            f"`--max-shard-size {options.max_shard_size}` is not a size: write '500MB' or '2GB'."
        ) from error
    return Plan(checkpoint, source, options, config, origins, computed, dropped, shards)


def _outside(source: Path, options: ConversionOptions) -> dict[str, str]:
    """For each key that is not under the prefix of the backbone, why it is left out: the module that it belongs to."""
    return {
        key: next(
            (reason for prefix, reason in EMA_KEYS.items() if key.startswith(prefix)),
            f"part of `{key.split('.')[0]}`, not of the backbone",
        )
        for key in read_original_checkpoint(source, options.ema, prefix="")
        if not key.startswith(options.backbone_only)
    }


def _fit_together(parts: list[torch.Tensor], dim: int, shape: torch.Size) -> bool:
    """Whether `parts`, joined along `dim`, are a floating-point tensor of this shape."""
    try:
        joined = torch.cat([part.to("meta") for part in parts], dim)
    except (IndexError, RuntimeError):
        return False
    return joined.shape == shape and all(part.is_floating_point() for part in parts)


def empty_model(model_class: type[PreTrainedModel], config: PreTrainedConfig) -> PreTrainedModel:
    """A model on the meta device in `config.dtype`: it has names and shapes, and takes no memory."""
    with torch.device("meta"):
        return model_class(config).to(config.dtype)


def _explain(checkpoint: Checkpoint, source: Path, problems: dict[str, list[str]], original: dict) -> str:
    def some(keys):
        return ", ".join(keys[:5]) + (f" and {len(keys) - 5} more" if len(keys) > 5 else "")

    listed = "; ".join(f"{len(keys)} {kind} ({some(keys)})" for kind, keys in problems.items() if keys)
    num_parameters = count_parameters(original)
    others = [other.name for other in CHECKPOINTS.values() if other.num_parameters == num_parameters]
    hint = f"It has as many parameters as {' and '.join(others)}" if others else "Name the checkpoint it is"
    return f"{source} is not {checkpoint.name}: {listed}. {hint}, or get its file again."


def convert_checkpoint(plan: Plan, output_dir: Path, command: str) -> dict:
    """
    Write `plan` to the folder `output_dir` and check what was written. The folder, or the files in an empty folder
    that exists, appear when all is done: an error leaves nothing behind, a killed process only a hidden folder that
    the next run removes.

    Returns:
        The content of `conversion_report.json`.

    Raises:
        `ConversionError`: if `output_dir` has files in it, another process is writing it, the disk is too small, a
            weight is Inf or NaN, or the check fails.
    """
    output_dir = output_dir.resolve()
    is_there = output_dir.is_dir()
    # An existing folder is filled, not replaced: it may be a mount point, or the current directory.
    unfinished = output_dir / UNFINISHED if is_there else output_dir.parent / f".{output_dir.name}{UNFINISHED}"
    if output_dir.exists() and not (is_there and {file.name for file in output_dir.iterdir()} <= {UNFINISHED}):
        raise ConversionError(f"The output directory {output_dir} is not empty. Name another one, or empty it.")
    _check_size(plan)
    unfinished.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(unfinished.parent).free
    if free < 1.01 * plan.num_bytes:
        raise ConversionError(
            f"{output_dir} needs {plan.num_bytes / 1e9:.2f} GB, but only {free / 1e9:.2f} GB are free there. Make "
            "room, or name a directory on another disk."
        )
    with _empty_folder(unfinished):
        write_configuration(plan, unfinished)
        write_weights(plan, unfinished)
        source = {"file": plan.source.name, "bytes": plan.source.stat().st_size, "sha256": file_sha256(plan.source)}
        checks = {"tensors": check_tensors(plan, unfinished), "logits": check_logits(plan, unfinished)}
        provenance = {"source": source, "command": command, "versions": versions()}
        card = create_model_card(plan.checkpoint, plan.config, plan.options, plan.dropped, provenance)
        (unfinished / "README.md").write_text(card, encoding="utf-8")
        report = {
            "checkpoint": plan.checkpoint.name,
            "options": asdict(plan.options),
            **provenance,
            "keys": {"converted": len(plan.used_keys()), "dropped": plan.dropped},
            "checks": checks,
            "files": {
                file.name: {"bytes": file.stat().st_size, "sha256": file_sha256(file)}
                for file in sorted(unfinished.iterdir())
            },
        }
        (unfinished / REPORT_FILE).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
        if is_there:
            if any(file.name != UNFINISHED for file in output_dir.iterdir()):
                raise ConversionError(
                    f"The output directory {output_dir} got other files meanwhile. Name another one."
                )
            for name in (*report["files"], REPORT_FILE):  # the report, which says that all is there, comes last
                (unfinished / name).rename(output_dir / name)
        else:
            unfinished.replace(output_dir)
    return report


@contextlib.contextmanager
def _empty_folder(folder: Path):
    """
    An empty folder that is locked for this process. What a killed process left in it is removed first; the folder is
    removed at the end, unless it was renamed. The lock is held on the folder itself, so it ends with the process.
    """
    if folder.is_symlink():
        raise ConversionError(f"{folder} is a link. Remove it.")
    folder.mkdir(exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            is_ours = folder.is_dir() and os.path.samestat(os.fstat(descriptor), folder.stat())
        except BlockingIOError:
            is_ours = False
        if not is_ours:
            raise ConversionError(f"Another process is writing {folder}. Name another directory, or wait for it.")
        if others := sorted(file.name for file in folder.iterdir() if not _is_written_here(file)):
            raise ConversionError(f"{folder} has files that this command does not write ({others[0]}). Move it away.")
        for file in folder.iterdir():
            file.unlink()
        try:
            yield
        finally:
            # (After it got its final name, there is nothing to remove.)
            if folder.is_dir() and os.path.samestat(os.fstat(descriptor), folder.stat()):
                shutil.rmtree(folder, ignore_errors=True)
    finally:
        os.close(descriptor)


def _is_written_here(file: Path) -> bool:
    names = {"config.json", "preprocessor_config.json", "model.safetensors.index.json", "README.md", REPORT_FILE}
    names |= {f"{reference.split('.')[0]}.py" for reference in REMOTE_CODE.values()}
    return not file.is_dir() and (file.name in names or file.suffix == ".safetensors")


def _check_size(plan: Plan):
    """Raise `ConversionError` if the tensors are larger than their file, as expanded ones are."""
    original = plan.original()
    claimed = sum(original[key].nbytes for key in plan.used_keys())
    if claimed > plan.source.stat().st_size:
        raise ConversionError(
            f"{plan.source} has {plan.source.stat().st_size:,} bytes, but its tensors are {claimed:,}: some are "
            "expanded from fewer numbers. Save them as contiguous tensors."
        )


def versions() -> dict[str, str]:
    return {
        "modeling_internimage": modeling_internimage.__version__,
        "transformers": transformers.__version__,
        "torch": torch.__version__,
        "huggingface_hub": huggingface_hub.__version__,
        "python": platform.python_version(),
        "date": datetime.date.today().isoformat(),
    }


def write_weights(plan: Plan, folder: Path):
    """Write the safetensors files, of which one at a time is in memory, and their index if there are several."""
    with tqdm(total=plan.num_bytes, unit="B", unit_scale=True, desc="Converting", disable=None) as progress:
        for file, names in plan.shards.filename_to_tensors.items():
            # Cloned: safetensors refuses tensors that share memory.
            shard = {name: tensor.clone() for name, tensor in plan.tensors(names)}
            for name, tensor in shard.items():
                if not tensor.isfinite().all():
                    origin = plan.origins.get(name, name)
                    raise ConversionError(
                        f"{origin} in {plan.source} has Inf or NaN as {str(tensor.dtype).removeprefix('torch.')}: the "
                        "training failed, or the numbers are too large for that. Take an earlier checkpoint, or "
                        "`--dtype float32`."
                    )
            safetensors.torch.save_file(shard, folder / file, metadata={"format": "pt"})
            (folder / file).chmod((folder / "config.json").stat().st_mode)  # safetensors lets only the owner read it
            progress.update(sum(tensor.nbytes for tensor in shard.values()))
            del shard
    if plan.shards.is_sharded:
        index = {"metadata": plan.shards.metadata, "weight_map": plan.shards.tensor_to_filename}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")


def write_configuration(plan: Plan, folder: Path):
    """Write `config.json`, `preprocessor_config.json` and, if asked for, the source files."""
    if plan.options.remote_code:
        plan.config.auto_map = REMOTE_CODE
        for module in {reference.split(".")[0] for reference in REMOTE_CODE.values()}:
            shutil.copy(Path(modeling_internimage.__file__).parent / f"{module}.py", folder)
    plan.config.save_pretrained(folder)
    plan.checkpoint.image_processor().save_pretrained(folder)


def check_tensors(plan: Plan, folder: Path) -> dict:
    """Compare every tensor on disk with the source, bit for bit. Raises `ConversionError` for a difference."""
    found = set()
    for file, names in plan.shards.filename_to_tensors.items():
        if not (folder / file).is_file():
            raise ConversionError(f"{folder / file} is missing.")
        with safetensors.safe_open(folder / file, "pt") as saved:
            found.update(saved.keys())
            for name, expected in plan.tensors(names):
                tensor = saved.get_tensor(name) if name in saved.keys() else None
                if tensor is None or tensor.dtype != expected.dtype or not _same_bits(tensor, expected):
                    origin = plan.origins.get(name, "what follows from the configuration")
                    raise ConversionError(f"{name} in {folder / file} differs from {origin} in {plan.source}.")
    if found != set(plan.names()):
        raise ConversionError(
            f"{folder} has tensors that are not in {plan.source}: {sorted(found - set(plan.names()))}."
        )
    return {"compared": len(found), "equal": len(found)}


def _same_bits(first: torch.Tensor, second: torch.Tensor) -> bool:
    return first.shape == second.shape and torch.equal(
        first.contiguous().reshape(-1).view(torch.uint8), second.contiguous().reshape(-1).view(torch.uint8)
    )


@torch.inference_mode()
def check_logits(plan: Plan, folder: Path) -> dict:
    """
    Compare the outputs (`Head.outputs`) of the model that `from_pretrained` loads from `folder` with those of a model
    with weights taken directly from the source, for an image of random numbers. Raises `ConversionError` if they
    differ.
    """
    # 224 pixels whatever the checkpoint is made for: this proves the same, and takes seconds for the largest model.
    pixel_values = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0)).to(plan.config.dtype)
    model = plan.model()
    expected = plan.head.outputs(model, pixel_values).float()
    del model
    gc.collect()
    model, info = plan.head.auto_class.from_pretrained(folder, dtype="auto", output_loading_info=True)
    if any(info.values()):
        raise ConversionError(f"{folder} does not load cleanly: {info}.")
    logits = plan.head.outputs(model, pixel_values).float()
    difference = (logits - expected).abs().max().item()
    # The same numbers in the same order, but not always at the same alignment in memory: a last bit may differ.
    tolerance = 100 * torch.finfo(plan.config.dtype).eps * expected.abs().max().item()
    if not difference <= tolerance:
        raise ConversionError(f"The model in {folder} computes other logits than {plan.source}: off by {difference}.")
    return {
        "input": "torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))",
        "max_abs_difference": difference,
        "first": [round(value, 6) for value in logits[0].flatten()[:8].tolist()],
    }


def check_converted(plan: Plan, folder: Path) -> dict:
    """
    Repeat the checks of a conversion on a folder written earlier, and compare the files with its report.

    Returns:
        What was compared, as in the report.

    Raises:
        `ConversionError`: for the first thing that differs.
    """
    report = read_report(folder)
    if report is None:
        raise ConversionError(f"{folder} has no {REPORT_FILE}: it was not written by this command.")
    _check_size(plan)
    sha256 = file_sha256(plan.source)
    if sha256 != report["source"]["sha256"]:
        raise ConversionError(
            f"{folder} was converted from a file with SHA-256 {report['source']['sha256']}, but that of {plan.source} "
            f"is {sha256}."
        )
    check_files(folder, report)
    return {
        "files": len(report["files"]),
        "tensors": check_tensors(plan, folder),
        "logits": check_logits(plan, folder),
    }


def check_files(folder: Path, report: dict):
    """Compare every file that the report of `folder` lists. Raises `ConversionError` for a difference."""
    for name, recorded in report["files"].items():
        if not (folder / name).is_file() or file_sha256(folder / name) != recorded["sha256"]:
            raise ConversionError(
                f"{folder / name} is missing or was changed since the conversion. Convert again, into a new folder."
            )


def read_report(folder: Path) -> dict | None:
    """The report of a finished conversion, or `None` if there is none. Raises `ConversionError` if it is damaged."""
    try:
        report = json.loads((folder / REPORT_FILE).read_text(encoding="utf-8"))
        options = ConversionOptions(**report["options"])
        is_right = (
            options.dtype in (None, "float32", "float16", "bfloat16")
            and isinstance(options.backbone_only, str | None)
            and isinstance(report["checkpoint"], str)
            and isinstance(report["source"]["sha256"], str)
            and all(Path(name).name == name and not name.startswith(".") for name in report["files"])
            and all(recorded.keys() >= {"bytes", "sha256"} for recorded in report["files"].values())
        )
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (AttributeError, KeyError, RecursionError, TypeError, ValueError) as error:
        raise ConversionError(f"{folder / REPORT_FILE} is damaged: {error}. Delete the folder.") from error
    if not is_right:
        raise ConversionError(f"{folder / REPORT_FILE} is not as this command writes it. Delete the folder.")
    return report


def is_finished(folder: Path, checkpoint: Checkpoint, options: ConversionOptions, source: Path | None) -> bool:
    """Whether `folder` is a complete conversion of `checkpoint`, from the file `source` and with these options."""
    report = read_report(folder)
    return (
        report is not None
        and (source is None or not source.is_file() or file_sha256(source) == report["source"]["sha256"])
        and (report["checkpoint"], report["options"]) == (checkpoint.name, asdict(options))
        and all(
            (folder / name).is_file() and (folder / name).stat().st_size == recorded["bytes"]
            for name, recorded in report["files"].items()
        )
    )


def file_sha256(file: Path) -> str:
    with (
        open(file, "rb") as opened,
        tqdm(
            total=file.stat().st_size,
            unit="B",
            unit_scale=True,
            desc=f"SHA-256 of {printable(file.name)}",
            disable=None,
        ) as bar,
    ):
        digest = hashlib.sha256()
        while block := opened.read(1 << 24):
            digest.update(block)
            bar.update(len(block))
    return digest.hexdigest()
