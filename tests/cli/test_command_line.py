# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""The command `internimage`, in this process where nothing has to be killed."""

import csv
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO
from testing_utils import MANIFESTS, REPOSITORY, randomize
from transformers import (
    AutoImageProcessor,
    AutoModel,
    UperNetConfig,
    UperNetForSemanticSegmentation,
    pipeline,
)

import modeling_internimage
from examples.benchmark import command_line
from modeling_internimage import (
    InternImageConfig,
    InternImageForImageClassification,
    InternImageSegmentationImageProcessorPil,
    MaskRCNNConfig,
    MaskRCNNForObjectDetection,
    MaskRCNNImageProcessorPil,
)
from modeling_internimage.cli import info, main, result_files
from modeling_internimage.label_maps import class_colours


LABELS = {0: "cat", 1: "dog", 2: "owl"}
STAGES = ["stage1", "stage2", "stage3", "stage4"]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory) -> dict[str, str]:
    """A small classifier, segmentation model, and detector with masks."""
    folder = tmp_path_factory.mktemp("checkpoints")
    tiny = {"embed_dim": 16, "depths": [1, 1, 2, 1], "num_groups": [1, 2, 4, 8], "image_size": 32}
    backbone = InternImageConfig(**tiny, out_features=STAGES)
    sizes = {"shortest_edge": 64}
    models = {
        "classifier": (
            InternImageForImageClassification(InternImageConfig(**tiny, id2label=LABELS)),
            modeling_internimage.create_image_processor(32),
        ),
        "segmenter": (
            UperNetForSemanticSegmentation(
                UperNetConfig(backbone_config=backbone, hidden_size=16, id2label=LABELS, use_auxiliary_head=False)
            ),
            InternImageSegmentationImageProcessorPil(size=sizes),
        ),
        "detector": (
            MaskRCNNForObjectDetection(
                MaskRCNNConfig(
                    backbone_config=backbone,
                    hidden_size=8,
                    box_head_hidden_size=16,
                    mask_head_num_layers=1,
                    num_proposals_per_level=50,
                    score_threshold=0.0,
                    id2label=LABELS,
                )
            ),
            MaskRCNNImageProcessorPil(size=sizes),
        ),
    }
    for name, (model, image_processor) in models.items():
        randomize(model).save_pretrained(folder / name)
        image_processor.save_pretrained(folder / name)
    return {name: str(folder / name) for name in models}


@pytest.fixture
def photos(photographs, tmp_path, monkeypatch) -> list[str]:
    """Images of two sizes, in the working directory; names of two folders are the same."""
    monkeypatch.chdir(tmp_path)
    names = ["photos/0.jpg", "photos/1.png", "photos/a/0.jpg", "photos/b/0.jpg"]
    for idx, name in enumerate(names):
        os.makedirs(os.path.dirname(name), exist_ok=True)
        Image.fromarray(photographs[idx % 2][: 90 + 10 * (idx % 2), 100 * idx : 100 * idx + 120]).save(name)
    return names


@pytest.fixture
def run(monkeypatch, capfd):
    """Runs the command; returns exit status, standard output and errors."""

    def run(*arguments) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["internimage", *map(str, arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as stop:
            main()
        return stop.value.code, *capfd.readouterr()

    return run


def table(file) -> list[dict]:
    with open(file, newline="", encoding="utf-8") as lines:
        return list(csv.DictReader(lines))


@pytest.mark.parametrize("batch_size", [1, 3])
def test_classifier_as_the_pipeline(batch_size, run, checkpoints, photos):
    """JSON, CSV, Parquet and the printed table have the labels and scores of the bare pipeline."""
    expected = pipeline("image-classification", model=checkpoints["classifier"])(photos, top_k=2)
    arguments = ["predict", "photos", "--model", checkpoints["classifier"], "--top-k", 2, "--batch-size", batch_size]
    for file in ("out/p.json", "out/p.csv", "out/p.parquet"):
        assert run(*arguments, "--output", file)[0] == 0
    entries = json.loads(Path("out/p.json").read_text())
    assert [entry["file"] for entry in entries] == photos
    for entry, rows in zip(entries, expected, strict=True):
        assert [row["label"] for row in entry["predictions"]] == [row["label"] for row in rows]
        scores = [row["score"] for row in entry["predictions"]]
        assert scores == pytest.approx([row["score"] for row in rows], abs=1e-6)
    flat = [{"file": entry["file"], **row} for entry in entries for row in entry["predictions"]]
    rows = [row | {"score": float(row["score"])} for row in table("out/p.csv")]
    assert rows == [row | {"score": pytest.approx(row["score"])} for row in flat]
    from pyarrow import parquet

    assert parquet.read_table("out/p.parquet").to_pylist() == rows
    status, printed, _ = run(*arguments)
    lines = printed.splitlines()
    assert status == 0 and len(lines) == 1 + len(flat)
    assert lines[1].split() == [photos[0], f"{flat[0]['score']:.3f}", flat[0]["label"]]
    assert os.listdir("out") and not [name for name in os.listdir("out") if "partial" in name or "errors" in name]


def test_detector(run, checkpoints, photos, tmp_path):
    """Boxes in floating point; in COCO's format with ids of an annotation file, and with masks for pycocotools."""
    arguments = ["predict", *photos, "--model", checkpoints["detector"], "--threshold", 0.6, "--batch-size", 2]
    expected = pipeline("object-detection", model=checkpoints["detector"])(photos, threshold=0.6)
    assert run(*arguments, "--output", "boxes.csv")[0] == 0
    rows = table("boxes.csv")
    flat = [(name, found) for name, detections in zip(photos, expected) for found in detections]
    assert len(rows) == len(flat) > 4
    for row, (name, found) in zip(rows, flat):
        assert row["file"] == name and row["label"] == found["label"] == LABELS[int(row["label_id"])]
        assert float(row["score"]) == pytest.approx(found["score"], abs=1e-5)
        assert [float(row[side]) for side in found["box"]] == pytest.approx(list(found["box"].values()), abs=1.01)
    images = [
        {"id": 7 + idx, "file_name": name.removeprefix("photos/"), "width": 120, "height": 90 + 10 * (idx % 2)}
        for idx, name in enumerate(photos)
    ]
    categories = [{"id": 10 * idx + 3, "name": name} for idx, name in LABELS.items()]
    annotations = tmp_path / "annotations.json"
    annotations.write_text(json.dumps({"images": images, "categories": categories, "annotations": []}))
    assert run(*arguments, "--output", "found.coco.json", "--annotations", annotations)[0] == 0
    found = COCO(str(annotations)).loadRes("found.coco.json")
    assert len(found.anns) == len(rows)
    for idx, row in enumerate(rows, start=1):
        entry = found.anns[idx]
        assert entry["image_id"] == 7 + photos.index(row["file"])
        assert entry["category_id"] == 10 * int(row["label_id"]) + 3
        left, top, width, height = entry["bbox"]
        assert [left, top, left + width, top + height] == pytest.approx(
            [float(row[side]) for side in ("xmin", "ymin", "xmax", "ymax")], abs=1e-3
        )
        mask = found.annToMask(entry)
        assert mask.shape == (images[entry["image_id"] - 7]["height"], 120)
        inside = mask[max(int(top) - 1, 0) : int(top + height) + 2, max(int(left) - 1, 0) : int(left + width) + 2]
        assert inside.sum() == mask.sum()
    annotations.write_text(json.dumps({"images": images[1:], "categories": categories}))
    status, _, errors = run(*arguments, "--output", "other.coco.json", "--annotations", annotations)
    assert status == 2 and "has no image photos/0.jpg" in errors


def test_segmentation(run, checkpoints, photos):
    """Label maps with the palette, at places that two images never share, and the share of each class."""
    Image.open(photos[0]).save("photos/0.png")  # beside photos/0.jpg
    arguments = ["predict", "photos", "--model", checkpoints["segmenter"], "--output", "out"]
    assert run(*arguments)[0] == 0
    names = sorted(str(path.relative_to("out/label_maps")) for path in Path("out").rglob("*.png"))
    assert names == ["0.jpg.png", "0.png.png", "1.png", "a/0.png", "b/0.png"]
    rows = table("out/predictions.csv")
    segments = pipeline("image-segmentation", model=checkpoints["segmenter"])(photos[3])
    own = [row for row in rows if row["file"] == photos[3]]
    assert {row["label"] for row in own} == {segment["label"] for segment in segments}
    label_map = Image.open(own[0]["label_map"])
    labels = np.asarray(label_map)
    assert label_map.size == Image.open(photos[3]).size and label_map.mode == "P"
    assert label_map.getpalette()[:9] == class_colours(UperNetConfig(id2label=LABELS)).ravel().tolist()
    for segment in segments:
        (row,) = (row for row in own if row["label"] == segment["label"])
        assert ((labels == int(row["label_id"])) == (np.asarray(segment["mask"]) > 0)).all()
        assert int(row["pixels"]) == (labels == int(row["label_id"])).sum()
        assert float(row["share"]) == pytest.approx(int(row["pixels"]) / labels.size)
    # A picture of somebody else, where a label map would be.
    Path("other/label_maps").mkdir(parents=True)
    Image.new("L", (1, 1)).save("other/label_maps/1.png")
    status, _, errors = run(*arguments[:-1], "other")
    assert status == 2 and "other/label_maps/1.png exists" in errors
    status, _, errors = run(*arguments[:-1], "photos/maps")
    assert status == 2 and "lies in photos, with the images" in errors


@pytest.mark.parametrize("stage", ["pooled", "stage2"])
def test_features(stage, run, checkpoints, photos):
    """As the model has them; in NumPy's format with a list of names, and in Parquet with shapes."""
    model = AutoModel.from_pretrained(checkpoints["classifier"]).eval()
    image_processor = AutoImageProcessor.from_pretrained(checkpoints["classifier"])
    inputs = image_processor([Image.open(file) for file in photos], return_tensors="pt")
    with torch.no_grad():
        outputs = model(**inputs, output_hidden_states=True)
    expected = outputs.pooler_output if stage == "pooled" else outputs.hidden_states[2]
    arguments = ["embed", "photos", "--model", checkpoints["classifier"], "--stage", stage, "--output"]
    assert run(*arguments, "out.npy")[0] == run(*arguments, "out.parquet")[0] == 0
    features = np.load("out.npy")
    assert features.dtype == np.float32
    np.testing.assert_allclose(features, expected.numpy(), atol=1e-5)
    assert json.loads(Path("out.names.json").read_text()) == photos
    from pyarrow import parquet

    for name, row, feature in zip(photos, parquet.read_table("out.parquet").to_pylist(), features, strict=True):
        assert row["file"] == name and np.array_equal(np.reshape(row["features"], row["shape"]), feature)


def test_bad_images(run, checkpoints, photos, photographs):
    """Each is named, the others have results, whatever batch they were in."""
    whole = Path(photos[0]).read_bytes()
    Path("photos/empty.jpg").write_bytes(b"")
    Path("photos/torn.jpg").write_bytes(whole[: len(whole) // 2])
    Path("photos/text.png").write_text("no image")
    Image.new("L", (1, 90_000)).save("photos/thin.png")  # 32 pixels wide, it would have 92 million pixels
    bad = {"photos/empty.jpg", "photos/torn.jpg", "photos/text.png", "photos/thin.png"}
    Image.fromarray(photographs[0][:40, :40]).convert("CMYK").save("photos/cmyk.jpg")
    Image.fromarray(photographs[0][:40, :40, 0].astype(np.uint16) * 256).save("photos/16_bits.png")
    frames = [Image.fromarray(photographs[0][start : start + 40, :40]) for start in (0, 200)]
    frames[0].save("photos/moving.gif", save_all=True, append_images=frames[1:])
    good = {*photos, "photos/cmyk.jpg", "photos/16_bits.png", "photos/moving.gif"}
    Path("photos/notes.txt").write_text("not looked at")
    arguments = ["predict", "photos", "--model", checkpoints["classifier"]]
    status, _, errors = run(*arguments, "--output", "p.csv")
    assert status == 1 and "4 images have no result: see p.csv.errors.csv" in errors
    assert all(name in errors for name in bad) and "notes" not in errors
    assert {row["file"] for row in table("p.csv")} == good and len(table("p.csv")) == len(good)
    assert {row["file"] for row in table("p.csv.errors.csv")} == bad
    status, printed, errors = run(*arguments)
    assert status == 1 and "4 of 11 images have no result" in errors and len(printed.splitlines()) == 1 + len(good)


def test_image_that_the_model_refuses(run, checkpoints, photos, monkeypatch):
    """It is found in its batch, and the others of the batch have results."""
    forward = InternImageForImageClassification.forward
    dark = Image.new("RGB", (50, 50))
    dark.save("photos/dark.png")

    def refuse(self, pixel_values, **kwargs):
        if (pixel_values.flatten(1).std(dim=1) < 1).any() and (pixel_values.flatten(1).amax(dim=1) < -1).any():
            raise ValueError("too dark")
        return forward(self, pixel_values, **kwargs)

    monkeypatch.setattr(InternImageForImageClassification, "forward", refuse)
    status, _, errors = run("predict", "photos", "--model", checkpoints["classifier"], "--output", "p.csv")
    assert status == 1 and "photos/dark.png: too dark" in errors
    assert [row["file"] for row in table("p.csv")] == photos


def test_which_images(run, checkpoints, photos):
    """Files, folders and patterns; each image once; hidden files never."""
    Path("photos/.hidden").mkdir()
    Image.new("RGB", (40, 40)).save("photos/.hidden/x.png")
    os.symlink("0.jpg", "photos/[0].jpg")

    def named(*arguments):
        _, printed, _ = run("predict", *arguments, "--model", checkpoints["classifier"])
        return [line.split()[0] for line in printed.splitlines()[1:]]

    everything = sorted([*photos, "photos/[0].jpg"])
    assert named("photos") == named("photos/**/*.*g") == named("photos/", "./photos/0.jpg", photos[2]) == everything
    assert named("photos/[0].jpg") == ["photos/[0].jpg"]  # a file before a pattern
    assert named(photos[3], photos[0]) == [photos[3], photos[0]]


def test_dataset(run, checkpoints, photos):
    """Rows of a local dataset, with an image in the bytes of a table and one that is missing."""
    import datasets

    rows = {"picture": [Image.open(photos[0]), None, Image.open(photos[1])], "label": [0, 1, 2]}
    Path("data").mkdir()
    features = datasets.Features({"picture": datasets.Image(), "label": datasets.Value("int64")})
    datasets.Dataset.from_dict(rows, features=features).to_parquet("data/test.parquet")
    arguments = ["predict", "--dataset", "data", "--model", checkpoints["classifier"], "--output", "p.csv"]
    status, _, errors = run(*arguments)
    assert status == 2 and "--image-column image" in errors and "picture" in errors
    status, _, errors = run(*arguments, "--image-column", "picture")
    assert status == 1 and "Row 1 of data has no image" in errors
    expected = pipeline("image-classification", model=checkpoints["classifier"])(photos[:2], top_k=1)
    rows = [(row["file"], row["label"]) for row in table("p.csv")]
    assert rows == [("test/0", expected[0][0]["label"]), ("test/2", expected[1][0]["label"])]
    status, _, errors = run(*arguments, "--split", "train")
    assert status == 2 and "--split train is not in data, which has test" in errors


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["predict", "photos", "--model", "missing"], "The model missing cannot be loaded"),
        (["predict", "photo", "--model", "classifier"], "photo does not exist"),
        (["predict", "photos/*.tif", "--model", "classifier"], "'photos/*.tif' matches no image file"),
        (["predict", "empty", "--model", "classifier"], "The folder empty has no image files"),
        (["predict", "--model", "classifier"], "Name images"),
        (["predict", "photos", "--model", "classifier", "--output", "p.txt"], "p.txt must end in"),
        (["predict", "photos", "--model", "classifier", "--output", "empty"], "empty is a folder"),
        (["predict", "photos", "--model", "classifier", "--output", "a.csv"], "a.csv is a folder"),
        (["predict", "photos", "--model", "classifier", "--output", "p.coco.json"], "is for detectors"),
        (["predict", "photos", "--model", "classifier", "--device", "cuda:9"], "--device cuda:9 cannot be used"),
        (["predict", "photos", "--model", "classifier", "--batch-size", "0"], "'--batch-size'"),
        (["embed", "photos", "--model", "detector", "--output", "f.npy"], "model of type mask_rcnn"),
        (["embed", "photos", "--model", "classifier", "--output", "f.npy", "--stage", "stage7"], "must be one of"),
        (["embed", "photos", "--model", "classifier", "--output", "f.csv"], "must end in .npy or .parquet"),
        (["info", "missing"], "The model missing cannot be loaded"),
    ],
)
def test_mistakes(arguments, message, run, checkpoints, photos):
    """A sentence and status 2; nothing is written."""
    os.makedirs("empty")
    os.makedirs("a.csv")
    before = sorted(map(str, Path().rglob("*")))
    status, _, errors = run(*(checkpoints.get(argument, argument) for argument in arguments))
    assert status == 2 and message in errors and "Traceback" not in errors
    assert sorted(map(str, Path().rglob("*"))) == before


def test_weights_that_are_missing_or_damaged(run, checkpoints, photos, tmp_path):
    """No prediction of a model with random weights."""
    model = AutoModel.from_pretrained(checkpoints["classifier"])
    model.save_pretrained("headless")
    AutoImageProcessor.from_pretrained(checkpoints["classifier"]).save_pretrained("headless")
    status, _, errors = run("predict", "photos", "--model", "headless")
    assert status == 2 and "headless lacks weights of InternImageForImageClassification" in errors
    weights = Path("headless/model.safetensors")
    weights.write_bytes(weights.read_bytes()[:1000])
    status, _, errors = run("predict", "photos", "--model", "headless")
    assert status == 2 and "The model headless cannot be loaded" in errors


@pytest.mark.parametrize(
    "package, arguments",
    [
        ("pyarrow", ["predict", "photos", "--output", "p.parquet"]),
        ("datasets", ["predict", "--dataset", "data"]),
        ("pycocotools", ["predict", "photos", "--output", "p.coco.json"]),
    ],
)
def test_missing_package(package, arguments, run, checkpoints, photos, monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == package]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, package, None)
    status, _, errors = run(*arguments, "--model", checkpoints["detector"])
    assert status == 2 and f"pip install {package}" in errors


@pytest.mark.parametrize("foreign", ["p.csv", "p.csv.partial", "p.csv.errors.csv"])
def test_other_files_are_kept(foreign, run, checkpoints, photos):
    Path(foreign).write_text("of somebody else\n")
    status, _, errors = run("predict", "photos", "--model", checkpoints["classifier"], "--output", "p.csv")
    assert status == 2 and foreign in errors
    assert Path(foreign).read_text() == "of somebody else\n"


def slow_command(arguments: list, after: int) -> subprocess.Popen:
    """The command in a process, which stops for good when `after` images have results."""
    code = f"""
import sys, time
from modeling_internimage import cli
from modeling_internimage.cli import result_files

def write(journal, line, write=result_files.Journal._write):
    write(journal, line)
    if sum(1 for _ in journal.records()) == {after}:
        print("waiting", flush=True)
        time.sleep(600)

result_files.Journal._write = write
cli.main()
"""
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
    )


def test_kill_and_continue(run, checkpoints, photos):
    """Meanwhile a second run is refused, and other options do not continue it. What is torn is done again."""
    arguments = ["predict", "photos", "--model", checkpoints["classifier"], "--batch-size", "2", "--output"]
    assert run(*arguments, "whole.csv")[0] == 0
    process = slow_command([*arguments, "p.csv"], after=2)
    assert process.stdout.readline() == "waiting\n"
    status, _, errors = run(*arguments, "p.csv")
    assert status == 2 and "Another run is writing to p.csv" in errors
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    journal = Path("p.csv.partial")
    assert not Path("p.csv").exists() and journal.read_text().count('"result"') == 2
    with open(journal, "a") as file:
        file.write('{"image": "photos/a/0.jpg", "resu')
    status, _, errors = run(*arguments[:4], "--top-k", "3", "--output", "p.csv")
    assert status == 2 and "belongs to a run with other options" in errors
    status, _, errors = run(*arguments, "p.csv", "--workers", 1)
    assert status == 0 and "2 of 4 images are done already" in errors
    assert Path("p.csv").read_bytes() == Path("whole.csv").read_bytes() and not journal.exists()


@pytest.mark.parametrize("name", ["f.npy", "f.parquet"])
def test_features_continue(name, run, checkpoints, photos, monkeypatch):
    """The same file as without an interruption, here between the last two steps: output written, journal removed."""
    arguments = ["embed", "photos", "--model", checkpoints["classifier"], "--batch-size", "2", "--output"]
    assert run(*arguments, f"whole_{name}")[0] == 0
    with monkeypatch.context() as patch:
        patch.setattr(result_files.Journal, "remove", lambda journal: sys.exit(9))
        assert run(*arguments, name)[0] == 9
    assert Path(name).exists() and Path(f"{name}.partial").exists()
    assert run(*arguments, name)[0] == 0
    assert not Path(f"{name}.partial").exists()
    assert Path(name).read_bytes() == Path(f"whole_{name}").read_bytes()


def test_images_that_were_mended(run, checkpoints, photos, monkeypatch):
    """What failed before an interruption is tried again."""
    content = Path(photos[0]).read_bytes()
    Path(photos[0]).write_bytes(b"")
    arguments = ["predict", "photos", "--model", checkpoints["classifier"], "--output", "p.csv"]
    with monkeypatch.context() as patch:
        patch.setattr(result_files.Journal, "finish", lambda journal: sys.exit(9))
        assert run(*arguments)[0] == 9
    Path(photos[0]).write_bytes(content)
    assert run(*arguments)[0] == 0
    assert sorted(row["file"] for row in table("p.csv")) == photos and not Path("p.csv.errors.csv").exists()


def test_info(run, checkpoints):
    for name, facts in {
        "classifier": ["InternImageForImageClassification", "3: cat, dog, owl", "at 32x32", "any sides of 32"],
        "segmenter": ["UperNetForSemanticSegmentation", "image-segmentation", "at 64x64\n"],
        "detector": ["MaskRCNNForObjectDetection", "depths [1, 1, 2, 1]", "at 64x64 in the backbone"],
    }.items():
        status, printed, _ = run("info", checkpoints[name])
        assert status == 0 and all(fact in printed for fact in facts), printed
        assert "5, as the PyTorch reference" in printed
    assert "at 64x96" in run("info", checkpoints["classifier"], "--size", 64, 96)[1]
    status, _, errors = run("info", checkpoints["classifier"], "--size", 8, 8)
    assert status == 2 and "--size 8 8" in errors


def classifier_t() -> InternImageForImageClassification:
    return InternImageForImageClassification(InternImageConfig(**MANIFESTS["internimage_t_1k_224"]["config"]))


def upernet_t() -> UperNetForSemanticSegmentation:
    backbone = InternImageConfig(out_features=STAGES)
    return UperNetForSemanticSegmentation(
        UperNetConfig(backbone_config=backbone, auxiliary_in_channels=256, num_labels=150)
    )


@pytest.mark.parametrize(
    "build, size, reported",
    [(classifier_t, (224, 224), 5), pytest.param(upernet_t, (512, 2048), 944, marks=pytest.mark.slow)],
)
def test_operations_as_in_the_paper(build, size, reported):
    """The FLOPs of the paper, in units of 1e9."""
    with torch.device("meta"):
        model = build().eval()
    assert info.multiply_accumulates(model, size) / 1e9 == pytest.approx(reported, rel=0.03)


def test_delegates(run, monkeypatch):
    """The arguments arrive in their order, options too, and so does the exit status."""
    from conversion import convert_internimage_to_hf
    from modeling_internimage.export import __main__ as export

    arguments = ["--first", "1", "place", "other", "--size", "32", "64", "--help"]
    received = []
    for command, module in (("export", export), ("convert", convert_internimage_to_hf)):
        assert run(command, "--help")[1].startswith(f"usage: python -m {module.__package__}")
        monkeypatch.setattr(module, "main", lambda arguments: received.append(arguments) or 3)
        assert run(command, *arguments)[0] == 3
    assert received == [arguments, arguments]


def test_no_conversion_without_a_checkout(run, tmp_path, monkeypatch):
    monkeypatch.setattr("modeling_internimage.cli.__file__", str(tmp_path / "a" / "b" / "__init__.py"))
    for name in ("conversion", "conversion.convert_internimage_to_hf"):
        monkeypatch.setitem(sys.modules, name, None)
    status, _, errors = run("convert", "--list")
    assert status == 2 and "only in a checkout" in errors


def test_benchmark(checkpoints, tmp_path, capsys):
    """`internimage predict` and the bare pipeline classify the same files."""
    arguments = ["--model", checkpoints["classifier"], "--cases", "32x5", "--min-runs", "1", "--output"]
    command_line.main([*arguments, str(tmp_path / "times.json")])
    (case,) = json.loads((tmp_path / "times.json").read_text())["cases"]
    assert case["ratio"] > 0 and case["seconds"].keys() == case["processor_seconds"].keys() == {"pipeline", "command"}
    assert "5 images of 32x32, batch size 8" in capsys.readouterr().out


@pytest.mark.slow
def test_import():
    """
    A small part of the time that the model classes of transformers take: 0.12 s of processor time without bytecode to
    write, beside 5. No other package is imported than transformers, and of its models only those that ours use.
    """
    code = """
import sys, time
from transformers import AutoImageProcessor, AutoModelForImageClassification, ConvNextForImageClassification
of_transformers, before = time.process_time(), set(sys.modules)
import modeling_internimage
print((time.process_time() - of_transformers) / of_transformers, *sorted(set(sys.modules) - before))
"""
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    process = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    share, *modules = process.stdout.split()
    assert {name.split(".")[0] for name in modules} == {"modeling_internimage", "transformers"}
    models = {
        name.split(".")[-2] for name in modules if name.startswith("transformers.models.") and ".modeling_" in name
    }
    assert models == {"deformable_detr", "mask2former"}
    assert not {f"modeling_internimage.{name}" for name in ("cli", "export", "training.trainer")} & set(modules)
    assert float(share) < 0.06, share
