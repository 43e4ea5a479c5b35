# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""
Convert the official InternImage and FlashInternImage checkpoints, or your own, to folders that transformers loads.

    python -m conversion.convert_internimage_to_hf --list
    python -m conversion.convert_internimage_to_hf --checkpoint internimage_t_1k_224 --output-dir internimage_t
    python -m conversion.convert_internimage_to_hf --checkpoint all --output-dir converted --push-to-hub my-org
    python -m conversion.convert_internimage_to_hf --checkpoint internimage_t_1k_224 --verify internimage_t
    python -m conversion.convert_internimage_to_hf --config my.yaml --source ckpt_epoch_99.pth --output-dir my_model
    python -m conversion.convert_internimage_to_hf --config my_mask_rcnn.py --source epoch_12.pth --output-dir my_model
    python -m conversion.convert_internimage_to_hf --backbone-only img_backbone --source bev.pth --output-dir backbone
"""

import argparse
import errno
import shlex
import sys
import traceback
from dataclasses import asdict
from pathlib import Path

from conversion.backbone import normalize_prefix
from conversion.checkpoints import CHECKPOINTS, Checkpoint, find_checkpoint, markdown_table, text_table
from conversion.convert_checkpoint import (
    ConversionOptions,
    Plan,
    check_converted,
    convert_checkpoint,
    is_finished,
    plan_conversion,
    read_report,
)
from conversion.errors import ConversionError, printable
from conversion.hub import download_converted, download_original, push, unpublished
from conversion.original_config import backbone_checkpoint, checkpoint_from_config, own_checkpoint
from modeling_internimage import InternImageConfig


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m conversion.convert_internimage_to_hf",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--list", action="store_true", help="show the registry and stop")
    parser.add_argument("--markdown", action="store_true", help="with --list: as a Markdown table")
    parser.add_argument("--checkpoint", metavar="NAME", help="a name of the registry, or 'all'")
    parser.add_argument("--config", type=Path, metavar="FILE", help="for your own: its .py, .yaml or config.json")
    parser.add_argument("--source", type=Path, metavar="FILE", help="the .pth file (default: download it)")
    parser.add_argument(
        "--output-dir", type=Path, metavar="DIR", help="the new folder; with 'all', the parent of the new folders"
    )
    parser.add_argument("--push-to-hub", metavar="ORG/NAME", help="publish the result; with 'all', only ORG")
    parser.add_argument("--verify", metavar="DIR|ORG/NAME", help="repeat the checks on what was converted earlier")
    parser.add_argument("--dry-run", action="store_true", help="plan and account for every key, write nothing")
    parser.add_argument("--dtype", choices=["float32", "float16", "bfloat16"], help="default: as in the source")
    parser.add_argument("--max-shard-size", default="1GB", metavar="SIZE", help="largest weights file (default: 1GB)")
    parser.add_argument("--ema", action="store_true", help="take the averaged weights that the file holds")
    parser.add_argument("--imagenet-1k-head", action="store_true", help="keep ImageNet-1k's rows of a 22k classifier")
    parser.add_argument(
        "--backbone-only",
        metavar="PREFIX",
        type=normalize_prefix,
        help="take the InternImage under this prefix of the keys out of --source, of any model of the mm family",
    )
    parser.add_argument("--remote-code", action="store_true", help="add the source files for trust_remote_code=True")
    parsed = parser.parse_args(arguments)
    if not parsed.list:
        if parsed.backbone_only is not None:
            if parsed.checkpoint or not parsed.source:
                parser.error("--backbone-only needs --source, and takes --config but no --checkpoint")
            if parsed.imagenet_1k_head:
                parser.error("--backbone-only leaves the classifier out: --imagenet-1k-head has no meaning")
        elif (parsed.checkpoint is None) == (parsed.config is None):
            parser.error("name what to convert: --checkpoint NAME (or 'all'), or --config FILE with --source FILE")
        if parsed.config and not parsed.source:
            parser.error("--config needs --source, the .pth file it belongs to")
        if parsed.checkpoint == "all" and (parsed.source or parsed.verify):
            parser.error("--checkpoint all takes no --source and no --verify")
        if not (parsed.output_dir or parsed.verify or parsed.dry_run):
            parser.error("name the new folder with --output-dir DIR, or look first with --dry-run")
        if parsed.push_to_hub and ("/" in parsed.push_to_hub) == (parsed.checkpoint == "all"):
            parser.error("--push-to-hub takes ORG/NAME, or with --checkpoint all only ORG")
    return parsed


def main(arguments: list[str] | None = None) -> int:
    """The exit status: 0 if everything that was asked for is done, 1 if not."""
    parsed = parse_arguments(arguments)
    if parsed.list:
        print((markdown_table if parsed.markdown else text_table)(CHECKPOINTS.values()))
        return 0
    if parsed.checkpoint == "all":
        return convert_all(parsed)
    return report_errors(convert_one, parsed)


def report_errors(function, *arguments) -> int:
    """Run `function`; an error is one sentence on stderr (with a traceback if it is not of a foreseen kind)."""
    try:
        function(*arguments)
        return 0
    except ConversionError as error:
        say(f"error: {error}", file=sys.stderr)
    except OSError as error:
        full = " Make room, or name a directory on another disk." if error.errno == errno.ENOSPC else ""
        say(f"error: {error}.{full}", file=sys.stderr)
    except Exception:
        for line in traceback.format_exc().splitlines():
            say(line, file=sys.stderr)
    return 1


def say(text: str, file=None):
    """Print a line, without control characters that come from a file."""
    print(printable(text), file=file)


def convert_one(parsed: argparse.Namespace):
    if parsed.backbone_only is not None:
        checkpoint = backbone_checkpoint(parsed.backbone_only, parsed.source, parsed.config, parsed.ema)
    elif parsed.config:
        checkpoint = checkpoint_from_config(parsed.config, parsed.source, parsed.ema)
    else:
        checkpoint = official = find_checkpoint(parsed.checkpoint)
        if parsed.source:
            checkpoint = own_checkpoint(official, parsed.source, parsed.ema)
        if checkpoint.num_labels != official.num_labels:
            say(
                f"warning: {parsed.source} has {checkpoint.num_labels} classes, {official.name} has "
                f"{official.num_labels}: it is converted with its own.",
                file=sys.stderr,
            )
    if parsed.verify:
        verify(checkpoint, parsed.source, parsed.verify)
    else:
        convert(checkpoint, parsed, parsed.output_dir, parsed.push_to_hub)


def convert_all(parsed: argparse.Namespace) -> int:
    """
    Convert every published checkpoint, the entries with the same file once. Finished ones are kept, and a failure does
    not stop the others.
    """
    failed, name_of_file = [], {}
    for checkpoint in CHECKPOINTS.values():
        if checkpoint.file is None:
            say(f"{checkpoint.name}: {checkpoint.status}")
            continue
        first = name_of_file.setdefault(checkpoint.file, checkpoint.name)
        if first != checkpoint.name:
            say(f"{checkpoint.name}: the same file as {first}, whose model card has the results of both")
            continue
        folder = parsed.output_dir and parsed.output_dir / checkpoint.name
        repo_id = parsed.push_to_hub and f"{parsed.push_to_hub}/{checkpoint.name}"
        if report_errors(convert, checkpoint, parsed, folder, repo_id):
            failed.append(checkpoint.name)
    if failed:
        say(
            f"error: {len(failed)} failed: {', '.join(failed)}. Run the same command again for these.", file=sys.stderr
        )
    return 1 if failed else 0


def options_of(parsed: argparse.Namespace) -> ConversionOptions:
    return ConversionOptions(
        dtype=parsed.dtype,
        max_shard_size=parsed.max_shard_size,
        ema=parsed.ema,
        imagenet_1k_head=parsed.imagenet_1k_head,
        remote_code=parsed.remote_code,
        backbone_only=parsed.backbone_only,
    )


def convert(checkpoint: Checkpoint, parsed: argparse.Namespace, folder: Path | None, repo_id: str | None):
    """Convert to `folder` unless that is done, and publish as `repo_id` if given."""
    options = options_of(parsed)
    if folder and is_finished(folder, checkpoint, options, parsed.source):
        say(f"{checkpoint.name}: finished earlier in {folder}")
    elif parsed.dry_run and parsed.source is None:
        say(f"{checkpoint.name}: would download {checkpoint.file} and convert it to {folder or 'a folder'}")
        return
    else:
        plan = plan_conversion(checkpoint, parsed.source or download_original(checkpoint), options)
        print_plan(plan, folder)
        if parsed.dry_run:
            return
        report = convert_checkpoint(plan, folder, command_line(checkpoint, parsed))
        say(f"{checkpoint.name}: {checked(report['checks'])}; saved in {folder}")
    if repo_id and not parsed.dry_run:
        if others := unpublished(folder):
            say(f"{checkpoint.name}: not published, because this command did not write it: {', '.join(others)}")
        say(f"{checkpoint.name}: published as {push(folder, repo_id, f'{checkpoint.name}, converted')}")


def command_line(checkpoint: Checkpoint, parsed: argparse.Namespace) -> str:
    """The command of this conversion, without the folders of its files."""
    words = ["python", "-m", "conversion.convert_internimage_to_hf"]
    if parsed.config:
        words += ["--config", parsed.config.name]
    elif parsed.checkpoint:
        words += ["--checkpoint", checkpoint.name]
    if parsed.source:
        words += ["--source", parsed.source.name]
    defaults = asdict(ConversionOptions())
    for name, value in asdict(options_of(parsed)).items():
        if value != defaults[name]:
            words += [f"--{name.replace('_', '-')}"] + ([] if value is True else [value])
    return shlex.join([*words, "--output-dir", checkpoint.name])


def print_plan(plan: Plan, folder: Path | None):
    size = f"{plan.num_bytes / 1e6:.1f} MB in {str(plan.config.dtype).removeprefix('torch.')}"
    files = len(plan.shards.filename_to_tensors)
    say(
        f"{plan.checkpoint.name}: {len(plan.names())} tensors of {plan.source} ({size}) to {folder or 'a folder'}, "
        f"{files} file{'s' if files > 1 else ''}; {len(plan.dropped)} left out"
    )
    if plan.options.backbone_only is not None:
        say(f"  {plan.config.core_op} backbone, with {architecture_text(plan.config)}")
    elif plan.checkpoint.title:
        classes = list(plan.config.id2label.values())
        names = f"{', '.join(classes[:5])}{', ...' if len(classes) > 5 else ''}"
        say(f"  a file of your own, with {len(classes)} classes: {names}")
    for reason in dict.fromkeys(plan.dropped.values()):
        keys = [key for key, its_reason in plan.dropped.items() if its_reason == reason]
        say(f"  left out: {len(keys)}: {', '.join(keys[:3])}{', ...' if len(keys) > 3 else ''} ({reason})")


def architecture_text(config: InternImageConfig) -> str:
    """What the shapes or an official model said of a backbone, to be compared with how it was trained."""
    fields = ("embed_dim", "depths", "num_groups", "offset_scale", "post_norm", "level2_post_norm_block_ids")
    return ", ".join(f"{field} {getattr(config, field)}" for field in fields if getattr(config, field) is not None)


def verify(checkpoint: Checkpoint, source: Path | None, target: str):
    """Repeat the checks of a conversion on `target`, a folder or a repository, with the options it was made with."""
    folder = download_converted(target)
    report = read_report(folder)
    if report is None:
        raise ConversionError(f"{target} has no conversion report: it was not written by this command.")
    if report["checkpoint"] != checkpoint.name:
        raise ConversionError(f"{target} was converted from {report['checkpoint']}, not from {checkpoint.name}.")
    plan = plan_conversion(checkpoint, source or download_original(checkpoint), ConversionOptions(**report["options"]))
    checks = check_converted(plan, folder)
    say(f"{checkpoint.name}: {target} is as converted: {checks['files']} files, {checked(checks)}")


def checked(checks: dict) -> str:
    return (
        f"{checks['tensors']['equal']} tensors equal to the source bit for bit, logits of the loaded model within "
        f"{checks['logits']['max_abs_difference']:.1e}"
    )


if __name__ == "__main__":
    sys.exit(main())
