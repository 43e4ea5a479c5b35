# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""Predictions with Ray Data on two workers. Ray is not among the packages of the quick tests."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import datasets
import numpy as np
import psutil
import pytest
from PIL import Image
from testing_utils import REPOSITORY, randomize
from transformers import pipeline

from examples.image_files import list_files
from examples.large_scale.worker import image_source
from examples.parquet_parts import read_tables
from modeling_internimage import InternImageConfig, InternImageForImageClassification, create_image_processor
from modeling_internimage.images import decode_image


NUM_IMAGES = 800
DAMAGED = 534


@pytest.fixture(scope="module")
def stock(tmp_path_factory):
    """A model, and 800 small images in a folder, one of which is damaged."""
    folder = tmp_path_factory.mktemp("stock")
    config = InternImageConfig(embed_dim=16, depths=[1, 1, 1, 1], num_groups=[1, 2, 4, 8], num_labels=3)
    randomize(InternImageForImageClassification(config)).save_pretrained(folder / "model")
    create_image_processor(32).save_pretrained(folder / "model")
    pixels = np.random.default_rng(0).integers(0, 256, (NUM_IMAGES, 36, 36, 3), dtype=np.uint8)
    for idx, values in enumerate(pixels):
        file = folder / "images" / str(idx % 10) / f"{idx}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(values).save(file)
    file = folder / "images" / str(DAMAGED % 10) / f"{DAMAGED}.png"
    file.write_bytes(file.read_bytes()[:100])
    return folder


@pytest.fixture(scope="module")
def cluster():
    """Ray for tests in this process."""
    from examples.large_scale import predict

    handler = signal.getsignal(signal.SIGTERM)
    predict.start_ray(predict.parse_arguments(["-", "--model=-", "--output=-", "--object-store-mb=200"]))
    yield predict
    predict.ray.shutdown()
    signal.signal(signal.SIGTERM, handler)  # Ray leaves its own, which would end other tests of this process


def workers_of(driver: subprocess.Popen) -> list[psutil.Process]:
    """The processes of the two actors."""
    found = []
    for process in psutil.Process(driver.pid).children(recursive=True):
        try:
            if process.cmdline()[:1] and process.cmdline()[0].startswith("ray::MapWorker"):
                found.append(process)
        except psutil.NoSuchProcess:
            pass
    return found


@pytest.mark.slow
def test_killed_worker_and_killed_run(stock, tmp_path):
    """Nothing is lost or twice, and the results are those of the pipeline."""
    output, log = tmp_path / "output", tmp_path / "log"
    arguments = ["images", "--model", "model", "--output", output, "--rows-per-file", 40, "--batch-size", 10]
    arguments += ["--object-store-mb", 200, "--top-k", 2]
    command = [sys.executable, "-m", "examples.large_scale.predict", *map(str, arguments)]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}

    def start(workers: int) -> subprocess.Popen:
        return subprocess.Popen(
            [*command, "--concurrency", str(workers)],
            cwd=stock,
            env=environment,
            stdout=log.open("a"),
            stderr=subprocess.STDOUT,
            text=True,
        )

    def wait_for_files(count: int, driver: subprocess.Popen):
        deadline = time.monotonic() + 600
        while len(list((output / "predictions").glob("part-*.parquet"))) < count:
            assert driver.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.01)

    driver = start(workers=2)
    try:
        wait_for_files(1, driver)
        workers = workers_of(driver)
        assert len(workers) == 2
        workers[0].kill()
        wait_for_files(6, driver)
        started = psutil.Process(driver.pid).children(recursive=True)
        workers = workers_of(driver)
    finally:
        driver.send_signal(signal.SIGKILL)
    driver.wait()
    assert not psutil.wait_procs(workers, timeout=60)[1]
    for process in started:  # Ray's agents, which may take minutes to see that they are alone
        if process.is_running():
            process.kill()
    files = sorted((output / "predictions").iterdir())
    before = {file: file.read_bytes() for file in files}
    num_done = len(read_tables([output / "predictions"], ["file"]))
    assert 240 <= num_done < NUM_IMAGES - 40
    log.write_text("")
    assert start(workers=1).wait(timeout=600) == 0, log.read_text()
    text = log.read_text()
    assert f"{num_done} of {NUM_IMAGES} images are done" in text or f"{num_done + 1} of {NUM_IMAGES}" in text
    assert before == {file: file.read_bytes() for file in files}

    table = read_tables([output / "predictions"], ["file", "labels", "scores"])
    failures = read_tables([output / "failures"], ["file", "reason"]).to_pylist()
    damaged = f"images/{DAMAGED % 10}/{DAMAGED}.png"
    assert [row["file"] for row in failures] == [damaged] and "corrupt or truncated" in failures[0]["reason"]
    images = [str(file.relative_to(stock)) for file in map(Path, list_files([str(stock / "images")]))]
    assert sorted(table["file"].to_pylist() + [damaged]) == sorted(images)
    classifier = pipeline("image-classification", model=str(stock / "model"))
    for row in table.take(list(range(0, NUM_IMAGES - 1, 40))).to_pylist():
        expected = classifier(decode_image(str(stock / row["file"]), "The image"), top_k=2)
        assert row["labels"] == [entry["label"] for entry in expected]
        np.testing.assert_allclose(row["scores"], [entry["score"] for entry in expected], rtol=1e-3)


@pytest.fixture
def table_of_images(stock, tmp_path):
    """Seven rows in row groups of three, as `datasets` writes them: the fourth is null, the sixth damaged."""
    files = list_files([str(stock / "images" / "0")])[:7]
    rows = [{"bytes": Path(file).read_bytes(), "path": None} for file in files]
    rows[3], rows[5] = None, {"bytes": b"damaged", "path": None}
    features = datasets.Features({"picture": datasets.Image()})
    table = datasets.Dataset.from_dict({"picture": rows}, features=features)
    table.to_parquet(tmp_path / "images.parquet", batch_size=3)
    return str(tmp_path / "images.parquet"), files


def test_images_in_parquet_files(table_of_images):
    table, files = table_of_images
    for row in (0, 2, 4, 6):
        expected = Image.open(files[row])
        assert np.array_equal(decode_image(image_source(f"{table}#{row}", "picture"), "It"), expected), row
    with pytest.raises(ValueError, match="#3 is missing"):
        image_source(f"{table}#3", "picture")
    assert image_source("photo.parquet.png", "picture") == "photo.parquet.png"


@pytest.mark.slow
def test_features_of_parquet_files(cluster, table_of_images, stock, tmp_path, capsys):
    """And settings that do not fit what is in the folder."""
    table, files = table_of_images
    arguments = [table, "--model", str(stock / "model"), "--task", "features", "--output", str(tmp_path / "output")]
    with pytest.raises(ValueError, match=r"no column 'image', only \['picture'\]"):
        cluster.main(arguments)
    arguments += ["--image-column", "picture", "--batch-size", "2"]
    cluster.main(arguments)
    rows = read_tables([tmp_path / "output" / "predictions"], ["file", "features"]).to_pylist()
    features = {row["file"]: row["features"] for row in rows}
    failures = read_tables([tmp_path / "output" / "failures"], ["file", "reason"])["file"].to_pylist()
    assert sorted(failures) == [f"{table}#3", f"{table}#5"] and len(rows) == 5
    extractor = pipeline("image-feature-extraction", model=str(stock / "model"))
    for row in (0, 6):
        expected = extractor(Image.open(files[row]), pool=True)[0]
        np.testing.assert_allclose(features[f"{table}#{row}"], expected, rtol=1e-3, atol=1e-4)

    before = {path: path.read_bytes() for path in (tmp_path / "output").rglob("part-*")}
    capsys.readouterr()
    cluster.main(arguments)
    assert "7 of 7 images are done." in capsys.readouterr().out
    with pytest.raises(ValueError, match="has results with `--task features`, this is classes"):
        cluster.main([*arguments, "--task", "classes"])
    with pytest.raises(ValueError, match="has files of another origin"):
        cluster.main([*arguments, "--output", str(stock)])
    assert before == {path: path.read_bytes() for path in (tmp_path / "output").rglob("part-*")}
