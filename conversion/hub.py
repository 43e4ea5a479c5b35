# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""Downloads from and uploads to the Hugging Face Hub, with errors in a sentence."""

import contextlib
import re
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, hf_hub_download, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

from conversion.checkpoints import Checkpoint
from conversion.convert_checkpoint import REPORT_FILE, check_files, file_sha256, read_report
from conversion.errors import ConversionError


def download_original(checkpoint: Checkpoint, cache_dir: Path | None = None) -> Path:
    """The authors' file, from the cache (of the Hub's client, or another folder) or from the Hub."""
    if checkpoint.file is None:
        raise ConversionError(f"The authors published no weights for {checkpoint.name}. Name a file with `--source`.")
    repository = checkpoint.family.repository
    with errors_as_sentences(f"download {repository}/{checkpoint.file}", "name a file with `--source`"):
        file = Path(hf_hub_download(repository, checkpoint.file, cache_dir=cache_dir))
    blob = file.resolve()  # the cache names large files after the Hub's SHA-256
    if re.fullmatch("[0-9a-f]{64}", blob.name) and file_sha256(blob) != blob.name:
        raise ConversionError(
            f"The download {blob} is damaged: its SHA-256 is not the Hub's. Delete it and try again."
        )
    return file


def download_converted(target: str) -> Path:
    """The folder `target`, or a copy of the repository of that name."""
    if Path(target).is_dir():
        return Path(target)
    with errors_as_sentences(f"download {target}", "name a folder"):
        return Path(snapshot_download(target))


def push(folder: Path, repo_id: str, message: str) -> str:
    """
    Publish the files that the report of a converted checkpoint lists, and the report, in one commit: all of them or
    none. Unchanged files are not sent again; weights that no longer belong to the checkpoint are deleted in the same
    commit. Other files in the folder are not published.

    Returns:
        The address of the repository's state.

    Raises:
        `ConversionError`: if a listed file is missing, a link, or not the one of the report, and for the Hub's errors.
    """
    report = read_report(folder)
    if report is None:
        raise ConversionError(f"{folder} has no {REPORT_FILE}: it was not written by this command.")
    files = {name: folder / name for name in (*report["files"], REPORT_FILE)}
    if links := [name for name, file in files.items() if file.is_symlink()]:
        raise ConversionError(f"{folder / links[0]} is a link, which is not published. Convert into a new folder.")
    check_files(folder, report)
    api = HfApi()
    with errors_as_sentences(f"push to {repo_id}", "push again later, the converted folder is kept"):
        api.create_repo(repo_id, exist_ok=True)
        weights = (name for name in api.list_repo_files(repo_id) if ".safetensors" in name)
        operations = [CommitOperationDelete(name) for name in weights if name not in files]
        operations += [CommitOperationAdd(name, file) for name, file in files.items()]
        # (Not `upload_folder`, which may spread a large upload over several commits.)
        return api.create_commit(repo_id, operations, commit_message=message).commit_url


def unpublished(folder: Path) -> list[str]:
    """Names of the other files in the folder of a finished conversion, which are not published."""
    return sorted({file.name for file in folder.iterdir()} - {*read_report(folder)["files"], REPORT_FILE})


@contextlib.contextmanager
def errors_as_sentences(action: str, alternative: str):
    try:
        yield
    except Exception as error:  # the Hub's client does not wrap those of the libraries that it uses
        raise ConversionError(f"Cannot {action}: {_reason(error)}; or {alternative}.") from error


def _reason(error: Exception) -> str:
    http_error = error if isinstance(error, HfHubHTTPError) else error.__cause__
    if isinstance(http_error, HfHubHTTPError):
        status = http_error.response.status_code
        if status == 401:
            return "there is no valid token. Log in with `hf auth login`, or set HF_TOKEN"
        if status == 403:
            return "the token does not permit it. Use one with write access"
        if status == 404:
            return "there is no such repository or file. Check the name"
        return f"the Hub answered with status {status} ({http_error.server_message or error}). Try again"
    if isinstance(error, (OfflineModeIsEnabled, LocalEntryNotFoundError)):
        return "the Hub cannot be reached, or HF_HUB_OFFLINE is set. Connect"
    return f"{type(error).__name__}: {error}. Try again"
