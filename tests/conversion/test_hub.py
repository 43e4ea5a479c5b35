# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""Downloading, publishing and verifying: the Hub's real client, in its own process, against a stand-in of the Hub."""

import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from hub_stand_in import HubStandIn
from testing_utils import MANIFESTS, REPOSITORY, original_state_dict

from conversion import hub as conversion_hub
from conversion.convert_checkpoint import ConversionOptions, file_sha256
from conversion.convert_internimage_to_hf import main
from conversion.errors import ConversionError


NAME = "internimage_t_1k_224"
TARGET = f"someone/{NAME}"


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """InternImage-T with stand-in weights, as the authors publish it."""
    file = tmp_path_factory.mktemp("source") / f"{NAME}.pth"
    torch.save({"model": original_state_dict(MANIFESTS[NAME]["keys"], 0)}, file)
    return file


@pytest.fixture(scope="module")
def finished(source) -> Path:
    """What it is converted to."""
    assert main(["--checkpoint", NAME, "--source", str(source), "--output-dir", str(source.parent / "converted")]) == 0
    return source.parent / "converted"


@pytest.fixture
def hub(source):
    with HubStandIn() as hub:
        hub.add_repository("OpenGVLab/InternImage", {source.name: source})
        yield hub


@pytest.fixture
def run(hub, tmp_path):
    """Runs the command against the stand-in; returns (exit status, its output)."""

    def run(*arguments, token="hf_write"):
        command = [sys.executable, "-m", "conversion.convert_internimage_to_hf", *map(str, arguments)]
        environment = os.environ | hub.environment(tmp_path / "home", token)
        result = subprocess.run(command, env=environment, cwd=REPOSITORY, capture_output=True, text=True, timeout=300)
        return result.returncode, result.stdout + result.stderr

    return run


def uploads(hub) -> int:
    return sum(method == "PUT" for method, _ in hub.requests)


def test_download_convert_publish_verify(hub, run, tmp_path):
    arguments = ["--checkpoint", NAME, "--output-dir", tmp_path / "converted", "--push-to-hub", TARGET]
    status, output = run(*arguments)
    assert status == 0, output
    repository = hub.repositories[TARGET]
    converted = {file.name: file.read_bytes() for file in (tmp_path / "converted").iterdir()}
    assert {name: content for name, content in repository.files.items() if name != ".gitattributes"} == converted
    assert len(repository.commits) == 2  # the Hub's own first one, and all of ours in one
    assert uploads(hub) == 1

    status, output = run(*arguments)  # the folder is finished, the repository up to date
    assert status == 0 and "finished earlier" in output, output
    assert len(repository.commits) == 2 and uploads(hub) == 1

    status, output = run("--checkpoint", NAME, "--verify", TARGET)
    assert status == 0 and "633 tensors equal" in output, output

    # Other shards replace the old file, in one commit again.
    arguments = ["--checkpoint", NAME, "--output-dir", tmp_path / "sharded", "--push-to-hub", TARGET]
    status, output = run(*arguments, "--max-shard-size", "50MB")
    assert status == 0, output
    weights = {name for name in repository.files if name.endswith(".safetensors")}
    assert weights == {f"model-0000{idx}-of-00003.safetensors" for idx in (1, 2, 3)}
    assert len(repository.commits) == 3


def test_a_published_file_that_was_changed_is_found(hub, run, source, finished):
    files = {file.name: file.read_bytes() for file in finished.iterdir()}
    files["config.json"] = json.dumps(json.loads(files["config.json"]) | {"offset_scale": 2.0}).encode()
    hub.add_repository(TARGET, files)
    status, output = run("--checkpoint", NAME, "--source", source, "--verify", TARGET)
    assert status == 1 and "config.json is missing or was changed since the conversion" in output


@pytest.mark.parametrize(
    "token, fails, message",
    [
        (None, None, "no valid token. Log in with `hf auth login`"),
        ("hf_unknown", None, "no valid token"),
        ("hf_read", None, "no permission"),
        ("hf_write", lambda method, path: method == "PUT", "status 507"),
        ("hf_write", lambda method, path: path.endswith("/commit/main"), "status 507"),
    ],
    ids=["no-token", "unknown-token", "read-token", "broken-upload", "broken-commit"],
)
def test_failed_push(token, fails, message, hub, run, finished):
    """Nothing arrives, and the converted folder is kept for another time."""
    before = hub.add_repository(TARGET, {"README.md": b"before", "model-old.safetensors": b"old"}).files
    hub.fail = fails
    arguments = ["--checkpoint", NAME, "--output-dir", finished, "--push-to-hub", TARGET]
    status, output = run(*arguments, token=token)
    assert status == 1 and f"Cannot push to {TARGET}" in output and message in output, output
    assert "Traceback" not in output
    assert hub.repositories[TARGET].files == before
    if message == "status 507":
        hub.fail = None
        assert run(*arguments)[0] == 0
        assert {file.name for file in finished.iterdir()} | {".gitattributes"} >= set(hub.repositories[TARGET].files)


def test_broken_and_damaged_downloads(hub, run, tmp_path):
    """No checkpoint comes of them. The Hub's client keeps no part of a file, and finds no damage in its cache."""
    hub.fail, hub.failure = lambda method, path: method == "GET" and path.endswith(".pth"), None
    arguments = ["--checkpoint", NAME, "--output-dir", tmp_path / "converted"]
    status, output = run(*arguments)
    assert status == 1 and "Cannot download OpenGVLab/InternImage/internimage_t_1k_224.pth" in output, output
    assert "Traceback" not in output and not (tmp_path / "converted").exists()
    hub.fail = None
    assert run(*arguments)[0] == 0
    (blob,) = (path for path in (tmp_path / "home").rglob("blobs/*") if path.stat().st_size > 1e6)
    content = bytearray(blob.read_bytes())
    content[len(content) // 2] ^= 1
    blob.write_bytes(content)
    status, output = run("--checkpoint", NAME, "--output-dir", tmp_path / "again")
    assert status == 1 and "is damaged: its SHA-256 is not the Hub's" in output
    assert not (tmp_path / "again").exists()


def as_link(file: Path):
    file.rename(file.parent.parent / file.name)
    file.symlink_to(file.parent.parent / file.name)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda folder: (folder / ".env").write_text("HF_TOKEN=secret"), None),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"other"), "model.safetensors is missing or was"),
        (lambda folder: (folder / "README.md").unlink(), "README.md is missing or was changed"),
        (lambda folder: as_link(folder / "config.json"), "config.json is a link"),
        (lambda folder: as_link(folder / "conversion_report.json"), "conversion_report.json is a link"),
        (lambda folder: (folder / "conversion_report.json").unlink(), "has no conversion_report.json"),
    ],
    ids=["added", "changed", "missing", "link", "linked-report", "no-report"],
)
def test_what_is_published_is_what_was_converted(change, message, tmp_path, monkeypatch):
    """No other file, and nothing at all if one is not that of the report."""
    folder = tmp_path / "converted"
    folder.mkdir()
    for name in ("config.json", "model.safetensors", "README.md"):
        (folder / name).write_text(f"content of {name}")
    files = {file.name: {"bytes": file.stat().st_size, "sha256": file_sha256(file)} for file in folder.iterdir()}
    report = {"checkpoint": NAME, "options": asdict(ConversionOptions()), "source": {"sha256": ""}, "files": files}
    (folder / "conversion_report.json").write_text(json.dumps(report))
    change(folder)
    published = []

    class Api:
        def create_repo(self, repo_id, exist_ok):
            assert message is None

        def list_repo_files(self, repo_id):
            return []

        def create_commit(self, repo_id, operations, commit_message):
            published.extend(operation.path_in_repo for operation in operations)
            return type("Commit", (), {"commit_url": "address"})

    monkeypatch.setattr(conversion_hub, "HfApi", Api)
    if message is None:
        assert conversion_hub.push(folder, TARGET, "converted") == "address"
        assert sorted(published) == sorted([*files, "conversion_report.json"])
        assert conversion_hub.unpublished(folder) == [".env"]
    else:
        with pytest.raises(ConversionError, match=message):
            conversion_hub.push(folder, TARGET, "converted")
        assert not published


def test_model_card_passes_the_hub_check(hub, finished, tmp_path):
    code = f"from huggingface_hub import ModelCard; ModelCard.load({str(finished / 'README.md')!r}).validate()"
    subprocess.run([sys.executable, "-c", code], env=os.environ | hub.environment(tmp_path / "home"), check=True)
    assert ("POST", "/api/validate-yaml") in hub.requests
