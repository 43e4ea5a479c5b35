# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""
Download the official checkpoints one by one, load or convert them, verify them, and look at what they see in twelve
photographs. Needs a network.

    python -m conversion.check_official --only T
    python -m conversion.check_official --output-dir outputs/official

Writes `report.json` and `report.md`, a table to be pasted into an issue. One checkpoint at a time is on the disk. The
same command continues an interrupted run and repeats what failed.
"""

import argparse
import json
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import RepositoryNotFoundError
from matplotlib import cbook
from PIL import Image
from skimage import data
from sklearn.datasets import load_sample_image
from transformers import AutoImageProcessor, pipeline

from conversion.checkpoints import CHECKPOINTS, Checkpoint, entries_of_file
from conversion.convert_checkpoint import ConversionOptions, convert_checkpoint, plan_conversion, versions
from conversion.errors import ConversionError, printable
from conversion.heads import HEADS
from conversion.hub import download_original, errors_as_sentences
from modeling_internimage import segment_image


# Photographs that come with scikit-image, scikit-learn and matplotlib, and for each the names of classes, in any data
# set, that a model may sensibly give it.
PHOTOGRAPHS: dict[str, Callable[[], np.ndarray]] = {
    "chelsea": data.chelsea,
    "coffee": data.coffee,
    "rocket": data.rocket,
    "astronaut": data.astronaut,
    "camera": data.camera,
    "china": lambda: load_sample_image("china.jpg"),
    "flower": lambda: load_sample_image("flower.jpg"),
    "motorcycle": lambda: data.stereo_motorcycle()[0],
    "clock": data.clock,
    "grace_hopper": lambda: np.asarray(Image.open(cbook.get_sample_data("grace_hopper.jpg"))),
    "page": data.page,
    "brick": data.brick,
}
SENSIBLE_NAMES: dict[str, list[str]] = json.loads(
    Path(__file__).with_name("photographs.json").read_text(encoding="utf-8")
)
# A photograph is seen sensibly if one of its names is among the five best classes, covers this share of the pixels, or
# belongs to a detection with this score.
NUM_CLASSES, MIN_AREA, MIN_SCORE = 5, 0.05, 0.3
MIN_SHARE = 0.75  # of the photographs for which a model has a class
CHECKER = "conversion.check_official"


@dataclass(frozen=True)
class Item:
    """
    Args:
        name: Of the file without `.pth`, or of the repository.
        checkpoint: Its record.
        is_repository: Whether it is a repository that loads as it is, not a file to convert.
        num_bytes: Of the download.
    """

    name: str
    checkpoint: Checkpoint
    is_repository: bool
    num_bytes: int


def select(only: list[str] | None) -> list[tuple[str, Checkpoint, bool]]:
    """Name, record and whether it is a repository, of what is published and fits one of `only`; files once."""
    found, files = [], set()
    for checkpoint in CHECKPOINTS.values():
        if checkpoint.hub_name:
            found.append((checkpoint.hub_name, checkpoint, True))
        if checkpoint.file and checkpoint.file not in files:
            files.add(checkpoint.file)
            found.append((checkpoint.name, checkpoint, False))

    chosen = [entry for entry in found if not only or any(_fits(text, *entry[:2]) for text in only)]
    if not chosen:
        raise ConversionError(
            f"`--only {' '.join(only)}` fits no checkpoint: name a size (T, S, B, L, XL, H, G) or a part of a name, "
            "as `python -m conversion.convert_internimage_to_hf --list` shows them."
        )
    return chosen


def _fits(text: str, name: str, checkpoint: Checkpoint) -> bool:
    size = checkpoint.backbone.removeprefix("Flash-")
    return size.lower() == text.lower() if text.upper() in ("T", "S", "B", "L", "XL", "H", "G") else text in name


def look_up(entries: list[tuple[str, Checkpoint, bool]]) -> list[Item]:
    """The sizes of the downloads, asked of the Hub. What is missing there has none, and fails when its turn comes."""
    items = []
    with errors_as_sentences("look up the official checkpoints, which needs a network", "try again later"):
        sizes = {repository: _sizes(repository) for repository in {_repository(*entry) for entry in entries}}
    for name, checkpoint, is_repository in entries:
        own = sizes[_repository(name, checkpoint, is_repository)]
        files = [file for file in own if file.endswith(".safetensors")] if is_repository else [checkpoint.file]
        items.append(Item(name, checkpoint, is_repository, sum(own.get(file, 0) for file in files)))
    return items


def _repository(name: str, checkpoint: Checkpoint, is_repository: bool) -> str:
    return name if is_repository else checkpoint.family.repository


def _sizes(repository: str) -> dict[str, int]:
    try:
        siblings = HfApi().model_info(repository, files_metadata=True).siblings
    except RepositoryNotFoundError:
        return {}
    return {sibling.rfilename: sibling.size or 0 for sibling in siblings}


def check(item: Item, folder: Path, device: str) -> dict:
    """
    Download into the empty `folder`, load or convert, verify, look at the photographs.

    Returns:
        What is reported. Raises any error of the parts.
    """
    checkpoint, started = item.checkpoint, time.perf_counter()
    head = HEADS[checkpoint.head]
    if item.is_repository:
        with errors_as_sentences(f"download {item.name}", "try again later"):
            model_folder = Path(
                snapshot_download(item.name, cache_dir=folder, allow_patterns=["*.json", "*.safetensors"])
            )
        checks = {}
    else:
        file = download_original(checkpoint, cache_dir=folder)
        plan = plan_conversion(checkpoint, file, ConversionOptions())
        model_folder = folder / checkpoint.name
        report = convert_checkpoint(plan, model_folder, f"python -m {CHECKER} --only {checkpoint.name}")
        checks = report["checks"] | {"sha256": report["source"]["sha256"]}
    downloaded = time.perf_counter() - started
    model, info = head.auto_class.from_pretrained(model_folder, output_loading_info=True)
    if any(info.values()):
        raise ConversionError(f"{item.name} does not load cleanly: {info}.")
    num_parameters = model.num_parameters()
    model = model.eval().to(device)
    photographs = look_at_photographs(model, AutoImageProcessor.from_pretrained(model_folder), checkpoint.task)
    return {
        "parameters": num_parameters,
        "checks": checks,
        "photographs": photographs,
        "seconds": {"download and convert": round(downloaded), "all": round(time.perf_counter() - started)},
    }


def look_at_photographs(model, image_processor, task: str) -> dict[str, dict]:
    """
    For each photograph the classes that the model sees, best first, with their scores, and whether one of them is
    sensible: `None` if the model has no class for it.
    """
    labels = list(model.config.id2label.values())
    found = {}
    for name, load in PHOTOGRAPHS.items():
        image = Image.fromarray(load()).convert("RGB")
        seen = SEE[task](model, image_processor, image)
        is_known = any(is_sensible(name, label) for label in labels)
        found[name] = {
            "seen": [[label, round(score, 3)] for label, score in seen],
            "sensible": any(is_sensible(name, label) for label, _ in seen) if is_known else None,
        }
    return found


def is_sensible(photograph: str, label: str) -> bool:
    """Whether one of the names in a label, which commas separate, is one for this photograph."""
    return not {name.strip().lower() for name in label.split(",")}.isdisjoint(SENSIBLE_NAMES[photograph])


def classes_of(model, image_processor, image: Image.Image) -> list[tuple[str, float]]:
    classifier = pipeline("image-classification", model=model, image_processor=image_processor, device=model.device)
    return [(entry["label"], entry["score"]) for entry in classifier(image, top_k=NUM_CLASSES)]


def areas_of(model, image_processor, image: Image.Image) -> list[tuple[str, float]]:
    """Shares of the pixels, as the authors evaluate: in sliding windows where the checkpoint needs them."""
    label_map = segment_image(model, image_processor, image).argmax(dim=0)
    counts = torch.bincount(label_map.flatten(), minlength=model.config.num_labels)
    shares = (counts / label_map.numel()).tolist()
    areas = [(model.config.id2label[idx], share) for idx, share in enumerate(shares) if share >= MIN_AREA]
    return sorted(areas, key=lambda area: -area[1])


def objects_of(model, image_processor, image: Image.Image) -> list[tuple[str, float]]:
    """Each class once, with its best score."""
    detector = pipeline("object-detection", model=model, image_processor=image_processor, device=model.device)
    best: dict[str, float] = {}
    for entry in detector(image, threshold=MIN_SCORE):
        best[entry["label"]] = max(entry["score"], best.get(entry["label"], 0.0))
    return sorted(best.items(), key=lambda entry: -entry[1])


SEE = {"image-classification": classes_of, "image-segmentation": areas_of, "object-detection": objects_of}


def problem_of(result: dict) -> str | None:
    """Why a checkpoint that loads does not pass."""
    judged = [entry["sensible"] for entry in result["photographs"].values() if entry["sensible"] is not None]
    if judged and sum(judged) < MIN_SHARE * len(judged):
        return f"only {sum(judged)} of {len(judged)} photographs are seen sensibly"
    return None


def read_report(file: Path) -> dict:
    if not file.exists():
        return {"checker": CHECKER, "items": {}}
    try:
        report = json.loads(file.read_text(encoding="utf-8"))
        if report["checker"] == CHECKER:
            return report
    except (KeyError, TypeError, ValueError):
        pass
    raise ConversionError(f"{file} was not written by this command: name another `--output-dir`.")


def write_report(folder: Path, report: dict):
    """Both files, each at once: an interrupted run leaves the last whole ones."""
    for name, text in (("report.json", json.dumps(report, indent=2)), ("report.md", markdown_table(report))):
        (folder / f".{name}").write_text(text + "\n", encoding="utf-8")
        (folder / f".{name}").replace(folder / name)


def markdown_table(report: dict) -> str:
    lines = [
        "| checkpoint | task | from | tensors verified | photographs seen sensibly | seconds | result |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, result in report["items"].items():
        tensors = result.get("checks", {}).get("tensors", {}).get("equal", "-")
        judged = [entry["sensible"] for entry in result.get("photographs", {}).values()]
        judged = [value for value in judged if value is not None]
        seen = f"{sum(judged)} of {len(judged)}" if judged else "-"
        seconds = result.get("seconds", {}).get("all", "-")
        outcome = "ok" if result["problem"] is None else result["problem"].replace("|", "\\|").replace("\n", " ")
        kind = "repository" if result["is_repository"] else "file"
        lines.append(f"| {name} | {result['task']} | {kind} | {tensors} | {seen} | {seconds} | {outcome} |")
    where = ", ".join(f"{name} {version}" for name, version in report.get("versions", {}).items())
    return "\n".join([*lines, "", where])


def run(args: argparse.Namespace) -> int:
    """The number of checkpoints that fail."""
    items = look_up(select(args.only))
    folder, work = args.output_dir, args.output_dir / "downloads"
    report = read_report(folder / "report.json")
    report["versions"] = versions()
    done = {name for name, result in report["items"].items() if result["problem"] is None}
    left = [item for item in items if item.name not in done]
    folder.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(work, ignore_errors=True)  # of an interrupted run
    largest = max((needed_bytes(item) for item in left), default=0)
    print(
        f"{len(left)} of {len(items)} checkpoints to check ({len(items) - len(left)} passed earlier): "
        f"{sum(item.num_bytes for item in left) / 1e9:.2f} GB to download, at most {largest / 1e9:.2f} GB on the disk "
        f"at a time, {shutil.disk_usage(folder).free / 1e9:.2f} GB are free in {folder}",
        flush=True,
    )
    num_failed = 0
    for item in left:
        result = check_and_explain(item, work, args.device)
        num_failed += result["problem"] is not None
        report["items"][item.name] = result
        write_report(folder, report)
        print(f"{item.name}: {printable(result['problem'] or 'ok')}", flush=True)
    print(f"{len(items) - num_failed} of {len(items)} passed; {folder / 'report.md'} can be pasted into an issue")
    return num_failed


def needed_bytes(item: Item) -> int:
    """On the disk: the download, and a converted copy of a file."""
    return item.num_bytes if item.is_repository else round(2.02 * item.num_bytes)


def check_and_explain(item: Item, work: Path, device: str) -> dict:
    """As `check`, with `problem`, `None` if all is well. Any error is a problem. The downloads are deleted."""
    facts = {"task": item.checkpoint.task, "is_repository": item.is_repository, "bytes": item.num_bytes}
    facts["entries"] = [entry.name for entry in entries_of_file(item.checkpoint)]
    try:
        free = shutil.disk_usage(work.parent).free
        if free < needed_bytes(item):
            raise ConversionError(
                f"{needed_bytes(item) / 1e9:.2f} GB are needed, {free / 1e9:.2f} GB are free: make room, or name a "
                "directory on another disk with `--output-dir`."
            )
        work.mkdir()
        result = check(item, work, device)
        return facts | {"problem": problem_of(result)} | result
    except Exception as error:  # of any library: the others are checked all the same
        return facts | {"problem": f"{type(error).__name__}: {error}"}
    finally:
        shutil.rmtree(work, ignore_errors=True)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog=f"python -m {CHECKER}", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", metavar="T", help="sizes (T, S, ..., G) or parts of names; default: all")
    parser.add_argument("--output-dir", type=Path, default=Path("outputs/official"), metavar="DIR")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    try:
        return 1 if run(parser.parse_args(arguments)) else 0
    except ConversionError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
