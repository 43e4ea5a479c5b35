# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""Searching images by their features. FAISS is not among the packages of the quick tests."""

import json
import os
import re
import shutil
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image
from testing_utils import REPOSITORY, randomize, run_module
from transformers import AutoModel, pipeline
from typer.testing import CliRunner

from examples.image_files import embed_files, list_files, load_feature_extractor
from examples.parquet_parts import TableWriter, read_tables
from modeling_internimage import InternImageForImageClassification, cli, create_image_processor


BUILD, SEARCH = "examples.image_search.build_index", "examples.image_search.search"


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Two models of one architecture."""
    from modeling_internimage import InternImageConfig

    folder = tmp_path_factory.mktemp("models")
    config = InternImageConfig(embed_dim=16, depths=[1, 1, 1, 1], num_groups=[1, 2, 4, 8], num_labels=3)
    for seed, name in enumerate(("model", "another")):
        randomize(InternImageForImageClassification(config), seed).save_pretrained(folder / name)
        create_image_processor(32).save_pretrained(folder / name)
    return folder


@pytest.fixture
def photos(photographs, tmp_path, monkeypatch):
    """Five pieces of two photographs, a text file and a damaged image."""
    monkeypatch.chdir(tmp_path)
    for name, photograph in zip(("astronaut", "coffee"), photographs):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for idx in range(5):
            piece = photograph[idx * 40 : idx * 40 + 150, 50:250]
            Image.fromarray(piece).save(tmp_path / "photos" / name / f"{idx}.png")
    (tmp_path / "photos" / "notes.md").write_text("not an image")
    (tmp_path / "photos" / "._0.png").write_text("macOS keeps such files beside images")
    return tmp_path / "photos"


def test_list_files(photos, tmp_path):
    everything = list_files(["photos"])
    assert len(everything) == 10 and everything == sorted(everything)
    Path("list.txt").write_text("photos/coffee/1.png\n\nphotos/missing.png\n")
    assert list_files(["list.txt", "photos/coffee/1.png"]) == ["photos/coffee/1.png", "photos/missing.png"]
    assert list_files(["photos/*/3.png", "./photos/coffee/3.png"]) == ["photos/astronaut/3.png", "photos/coffee/3.png"]
    (tmp_path / "empty").mkdir()
    for source in ("empty", "photos/*.gif"):
        with pytest.raises(ValueError, match="has no images"):
            list_files([source])


@torch.no_grad()
def test_features_are_those_of_the_model(photos, models):
    """Also where a file in the batch cannot be read."""
    path = str(models / "model")
    (photos / "coffee" / "1.png").write_bytes(b"damaged")
    batch, *others = embed_files(load_feature_extractor(path, "cpu", "float32"), list_files(["photos/coffee"]), 5)
    assert [Path(file).name for file in batch.files] == ["0.png", "2.png", "3.png", "4.png"] and not others
    assert list(batch.unreadable) == ["photos/coffee/1.png"]
    model, image_processor = AutoModel.from_pretrained(path), create_image_processor(32)
    for file, features in zip(batch.files, batch.features):
        inputs = image_processor(Image.open(file), return_tensors="pt")
        torch.testing.assert_close(torch.from_numpy(features), model(**inputs).pooler_output[0], rtol=1e-4, atol=1e-5)


def test_table_writer_appends_whole_files(tmp_path):
    schema = pa.schema({"file": pa.string()})
    with pytest.raises(KeyboardInterrupt), TableWriter(tmp_path, schema, rows_per_file=2) as writer:
        for name in "abc":
            writer.add({"file": [name]})
        raise KeyboardInterrupt
    (tmp_path / ".part-000002.unfinished").write_bytes(b"killed here")
    with TableWriter(tmp_path, schema, rows_per_file=2) as writer:
        writer.add({"file": ["d"]})
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"part-00000{idx}.parquet" for idx in range(3)]
    assert read_tables([tmp_path], ["file"])["file"].to_pylist() == list("abcd")
    with pytest.raises(ValueError, match=r"part-000000.parquet must be a Parquet file with the columns \['label'\]"):
        read_tables([tmp_path], ["label"])


def build(models, *arguments: str, model: str = "model"):
    run_module(BUILD, *arguments, "--model", models / model, "--index", "index")


@pytest.mark.slow
def test_neighbours_and_picture(photos, models, capsys):
    """As NumPy finds them, with features of the pipeline."""
    build(models, "photos")
    query = "photos/astronaut/2.png"
    run_module(SEARCH, query, "--index", "index", "--count", "4", "--picture", "neighbours.png")
    rows = [line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("   ")]
    extractor = pipeline("image-feature-extraction", model=str(models / "model"))
    files = list_files(["photos"])
    features = np.array([extractor(file, pool=True)[0] for file in files])
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    similarities = features @ features[files.index(query)]
    best = np.argsort(-similarities)[:4]
    assert [file for _, file in rows] == [files[idx] for idx in best] and rows[0] == ["1.000", query]
    np.testing.assert_allclose([float(similarity) for similarity, _ in rows], similarities[best], atol=1e-3)
    with Image.open("neighbours.png") as picture:
        assert picture.width > 800 and np.asarray(picture.convert("RGB")).std() > 20
    Path("foreign.png").write_bytes(Path(query).read_bytes())
    with pytest.raises(ValueError, match="is not a result of search.py"):
        run_module(SEARCH, query, "--index", "index", "--picture", "foreign.png")


@pytest.mark.slow
def test_only_new_and_changed_files_are_embedded(photos, models, capsys):
    (photos / "coffee" / "4.png").write_bytes(b"damaged")
    build(models, "photos")
    output = capsys.readouterr().out
    assert "9 files embedded, 0 known, 1 unreadable" in output and "photos/coffee/4.png is corrupt" in output
    shutil.copy(photos / "coffee" / "0.png", photos / "coffee" / "4.png")
    Image.open(photos / "coffee" / "1.png").rotate(90).save(photos / "coffee" / "2.png")
    os.utime(photos / "coffee" / "2.png", (time.time() + 5,) * 2)
    (photos / "coffee" / "3.png").unlink()
    build(models, "photos")
    output = capsys.readouterr().out
    assert "2 files embedded, 7 known, 0 unreadable" in output and "1 no longer there were dropped" in output
    description = json.loads(Path("index", "index.json").read_text())
    assert description["files"] == list_files(["photos"])
    run_module(SEARCH, "photos/coffee/2.png", "--index", "index", "--count", "1")
    assert "1.000  photos/coffee/2.png" in capsys.readouterr().out


@pytest.mark.slow
def test_index_of_features_in_a_table(photos, models, capsys):
    """The file that `internimage embed` writes."""
    import faiss

    build(models, "photos")
    embed = ["embed", "photos", "--model", str(models / "model"), "--output", "features.parquet"]
    result = CliRunner().invoke(cli.app, embed)
    assert result.exit_code == 0, result.output
    shutil.move("index", "first")
    build(models, "--features", "features.parquet")
    assert "10 images in index" in capsys.readouterr().out
    first, second = (
        faiss.read_index(str(next(Path(name).glob("vectors-*.faiss")))).reconstruct_n(0, 10)
        for name in ("first", "index")
    )
    np.testing.assert_allclose(second, first, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="are of another model"):
        run_module(BUILD, "--features", "features.parquet", "--model", models / "another", "--index", "third")


@pytest.mark.slow
def test_refusals(photos, models):
    """Another model than that of the index, a folder of others, images that cannot be read."""
    build(models, "photos")
    before = {path: path.read_bytes() for path in Path("index").rglob("*") if path.is_file()}
    with pytest.raises(ValueError, match="computes other features"):
        build(models, "photos", model="another")
    with pytest.raises(ValueError, match="computes other features"):
        run_module(SEARCH, "photos/coffee/0.png", "--index", "index", "--model", models / "another")
    assert before == {path: path.read_bytes() for path in Path("index").rglob("*") if path.is_file()}
    with pytest.raises(ValueError, match="has files and no index"):
        run_module(BUILD, "photos", "--model", models / "model", "--index", "photos")
    Path("damaged.png").write_bytes(b"damaged")
    with pytest.raises(ValueError, match="None of the 1 image files can be read"):
        run_module(BUILD, "damaged.png", "--model", models / "model", "--index", "other")


@pytest.mark.slow
def test_killed_in_the_middle_of_embedding(photos, models, capsys, monkeypatch):
    """What was written before is not computed again."""
    from examples.image_search import build_index

    def flush_and_die(writer):
        if not list(writer.folder.glob("part-*")):
            flush(writer)
        raise SystemExit(9)

    flush = TableWriter.flush
    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(build_index, "ROWS_PER_FILE", 4)
        patch.setattr(TableWriter, "flush", flush_and_die)
        build(models, "photos", "--batch-size", "2")
    with pytest.raises(ValueError, match="is not finished"):
        run_module(SEARCH, "photos/coffee/0.png", "--index", "index")
    build(models, "photos")
    assert "6 files embedded, 4 known, 0 unreadable" in capsys.readouterr().out


def test_readme_has_the_recorded_recall():
    result = json.loads((REPOSITORY / "examples" / "results" / "image_search.json").read_text())
    readme = (REPOSITORY / "examples" / "image_search" / "README.md").read_text()
    assert re.findall(r"\| ([\d.]+) \|$", readme, re.M) == [f"{value:.3f}" for value in result["recall_at_1"].values()]
    lowest, highest = (f"{extreme(result['recall_at_1_of_untrained']):.3f}" for extreme in (min, max))
    assert f"({lowest} to {highest})" in readme and result["machine"]["date"] in readme
