# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""Downloading, publishing and verifying, with mocks of the Hub's client that have its signatures."""

import dataclasses
import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import create_autospec

import pytest
import torch
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, hf_hub_download, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled
from testing_utils import REDUCED_MODELS, original_state_dict

from conversion import hub
from conversion.checkpoints import CHECKPOINTS
from conversion.convert_checkpoint import ConversionOptions, file_sha256
from conversion.convert_internimage_to_hf import main
from conversion.errors import ConversionError


NAME = "tiny_t"
TARGET = f"someone/{NAME}"


@pytest.fixture
def api(monkeypatch):
    """The Hub's client: `create_commit` succeeds, into a repository without files."""
    api = create_autospec(HfApi, instance=True)
    api.list_repo_files.return_value = []
    api.create_commit.return_value.commit_url = "the address of the commit"
    monkeypatch.setattr(hub, "HfApi", lambda: api)
    return api


@pytest.fixture
def download(monkeypatch, tmp_path):
    """`hf_hub_download` of a reduced model that is in the registry, from a cache laid out as the Hub's client does."""
    golden = REDUCED_MODELS[NAME]
    config = {name: golden["config"][name] for name in ("depths", "groups", "channels")}
    record = dataclasses.replace(
        CHECKPOINTS["internimage_t_1k_224"],
        name=NAME,
        file=f"{NAME}.pth",
        architecture=config,
        num_labels=golden["config"]["num_classes"],
        labels=None,
        image_size=(64, 64),
    )
    monkeypatch.setitem(CHECKPOINTS, NAME, record)
    original = tmp_path / "cache" / f"{NAME}.pth"
    original.parent.mkdir()
    torch.save({"model": original_state_dict(golden["keys"], golden["weights_seed"])}, original)
    blob = original.rename(original.parent / file_sha256(original))
    original.symlink_to(blob)
    download = create_autospec(hf_hub_download, return_value=str(original))
    monkeypatch.setattr(hub, "hf_hub_download", download)
    return download


def committed(api) -> tuple[dict[str, bytes], set[str]]:
    """What the last commit adds, with its content at that time, and deletes."""
    repo_id, operations = api.create_commit.call_args.args
    assert repo_id == TARGET
    added = {
        operation.path_in_repo: Path(operation.path_or_fileobj).read_bytes()
        for operation in operations
        if isinstance(operation, CommitOperationAdd)
    }
    return added, {operation.path_in_repo for operation in operations if isinstance(operation, CommitOperationDelete)}


def test_download_convert_publish_verify(api, download, tmp_path, monkeypatch, capsys):
    arguments = ["--checkpoint", NAME, "--output-dir", str(tmp_path / "converted"), "--push-to-hub", TARGET]
    assert main(arguments) == 0
    download.assert_called_once_with("OpenGVLab/InternImage", "tiny_t.pth", cache_dir=None)
    assert "published as the address of the commit" in capsys.readouterr().out
    converted = {file.name: file.read_bytes() for file in (tmp_path / "converted").iterdir()}
    assert committed(api) == (converted, set())
    assert api.create_commit.call_count == 1 and "model.safetensors" in converted

    assert main(arguments) == 0  # what is finished is neither downloaded nor converted again
    assert "finished earlier" in capsys.readouterr().out and download.call_count == 1

    # Other shards replace the old file in the same commit. Files that are no weights stay.
    api.list_repo_files.return_value = [*converted, ".gitattributes", "notes.md"]
    arguments = ["--checkpoint", NAME, "--output-dir", str(tmp_path / "sharded"), "--push-to-hub", TARGET]
    assert main([*arguments, "--max-shard-size", "100KB"]) == 0
    added, deleted = committed(api)
    assert deleted == {"model.safetensors"} and api.create_commit.call_count == 3
    assert len([name for name in added if name.endswith(".safetensors")]) > 3

    snapshot = create_autospec(snapshot_download, return_value=str(tmp_path / "converted"))
    monkeypatch.setattr(hub, "snapshot_download", snapshot)
    assert main(["--checkpoint", NAME, "--verify", TARGET]) == 0
    snapshot.assert_called_once_with(TARGET)
    assert f"{TARGET} is as converted" in capsys.readouterr().out


def test_damaged_download(download, tmp_path, capsys):
    """The Hub's client does not look for damage in its cache."""
    blob = Path(download.return_value).resolve()
    content = bytearray(blob.read_bytes())
    content[len(content) // 2] ^= 1
    blob.write_bytes(content)
    assert main(["--checkpoint", NAME, "--output-dir", str(tmp_path / "converted")]) == 1
    assert "is damaged: its SHA-256 is not the Hub's" in capsys.readouterr().err
    assert not (tmp_path / "converted").exists()


def status(code: int) -> HfHubHTTPError:
    response = SimpleNamespace(status_code=code, headers={}, request=None)
    return HfHubHTTPError("a long text", response=response, server_message="what the server says")


def upload_error() -> RuntimeError:
    """How the Hub's client reports a failed upload of one file."""
    error = RuntimeError("Error while uploading")
    error.__cause__ = status(507)
    return error


def refused_download() -> LocalEntryNotFoundError:
    """How it reports that the Hub refused a file that is not in the cache."""
    error = LocalEntryNotFoundError("not cached")
    error.__cause__ = status(403)
    return error


ERRORS = {
    "no-token": (status(401), "there is no valid token. Log in with `hf auth login`"),
    "no-permission": (status(403), "the token does not permit it"),
    "no-repository": (status(404), "there is no such repository or file"),
    "server": (status(507), "the Hub answered with status 507 (what the server says). Try again"),
    "upload": (upload_error(), "the Hub answered with status 507 (what the server says). Try again"),
    "refused": (refused_download(), "the token does not permit it"),
    "offline": (OfflineModeIsEnabled("offline"), "the Hub cannot be reached, or HF_HUB_OFFLINE is set"),
    "unreachable": (LocalEntryNotFoundError("not cached"), "the Hub cannot be reached, or HF_HUB_OFFLINE is set"),
    "network": (ConnectionResetError("broken"), "ConnectionResetError: broken. Try again"),
}


@pytest.mark.parametrize("error, message", ERRORS.values(), ids=ERRORS)
def test_errors_of_the_hub_are_sentences(error, message, api, download, folder, monkeypatch, tmp_path, capsys):
    """No checkpoint comes of a failed download. What failed to be published is published by the next attempt."""
    download.side_effect = error
    assert main(["--checkpoint", NAME, "--output-dir", str(tmp_path / "converted")]) == 1
    printed = capsys.readouterr().err
    assert "Cannot download OpenGVLab/InternImage/tiny_t.pth: " in printed and printed.count("\n") == 1
    assert message in printed and "name a file with `--source`" in printed
    assert not (tmp_path / "converted").exists()

    monkeypatch.setattr(hub, "snapshot_download", create_autospec(snapshot_download, side_effect=error))
    with pytest.raises(ConversionError, match=f"Cannot download {TARGET}: .*; or name a folder"):
        hub.download_converted(TARGET)

    api.create_commit.side_effect = error
    arguments = ["--checkpoint", NAME, "--output-dir", str(folder), "--push-to-hub", TARGET]
    assert main(arguments) == 1
    printed = capsys.readouterr().err
    assert f"Cannot push to {TARGET}: {message}" in printed and "the converted folder is kept" in printed
    api.create_commit.side_effect = None
    assert main(arguments) == 0
    assert committed(api)[0].keys() == {file.name for file in folder.iterdir()}


@pytest.fixture
def folder(tmp_path) -> Path:
    """Files with the report of a conversion."""
    folder = tmp_path / "finished"
    folder.mkdir()
    for name in ("config.json", "model.safetensors", "README.md"):
        (folder / name).write_text(f"content of {name}")
    files = {file.name: {"bytes": file.stat().st_size, "sha256": file_sha256(file)} for file in folder.iterdir()}
    report = {"checkpoint": NAME, "options": dataclasses.asdict(ConversionOptions()), "source": {"sha256": ""}}
    (folder / "conversion_report.json").write_text(json.dumps(report | {"files": files}))
    return folder


def as_link(file: Path):
    shutil.move(file, file.parent.parent)
    file.symlink_to(file.parent.parent / file.name)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda folder: (folder / "model.safetensors").write_bytes(b"other"), "model.safetensors is missing or was"),
        (lambda folder: (folder / "README.md").unlink(), "README.md is missing or was changed"),
        (lambda folder: as_link(folder / "config.json"), "config.json is a link"),
        (lambda folder: as_link(folder / "conversion_report.json"), "conversion_report.json is a link"),
        (lambda folder: (folder / "conversion_report.json").unlink(), "has no conversion_report.json"),
    ],
    ids=["changed", "missing", "link", "linked-report", "no-report"],
)
def test_nothing_is_published_if_a_file_is_not_that_of_the_report(change, message, api, folder):
    change(folder)
    with pytest.raises(ConversionError, match=message):
        hub.push(folder, TARGET, "converted")
    assert not api.method_calls


def test_other_files_are_not_published(api, folder):
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    (folder / ".env").write_text("HF_TOKEN=secret")
    assert hub.push(folder, TARGET, "a message") == "the address of the commit"
    assert committed(api) == (before, set())
    assert api.create_commit.call_args.kwargs == {"commit_message": "a message"}
    assert hub.unpublished(folder) == [".env"]
