# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""The evaluation script, against accuracies that are known by construction."""

import csv
import json
import pickle
import shutil
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from huggingface_hub.repocard_data import model_index_to_eval_results
from PIL import Image
from processes import run_in_two_processes
from testing_utils import randomize
from transformers import AutoImageProcessor, ViTConfig, ViTForImageClassification, ViTImageProcessor

from examples import evaluation
from examples.image_classification import evaluate_accuracy as script
from modeling_internimage import (
    InternImageConfig,
    InternImageForImageClassification,
    InternImageModel,
    create_image_processor,
    encode_metadata,
)


ARCHITECTURE = {"embed_dim": 16, "depths": [1, 1, 1, 1], "num_groups": [1, 2, 4, 8], "image_size": 32}
CLASSES = [f"class_{idx}" for idx in range(7)]
# The place of the right class in the model's order, for each of 11 images: 4 are right, 9 among the best five.
PLACES = [1, 0, 6, 2, 0, 4, 0, 3, 5, 0, 1]


def save_model(folder: Path, names: list[str]) -> str:
    labels = {"id2label": dict(enumerate(names)), "label2id": {name: idx for idx, name in enumerate(names)}}
    model = InternImageForImageClassification(InternImageConfig(**ARCHITECTURE, **labels))
    randomize(model).save_pretrained(folder)
    create_image_processor(32).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("models") / "tiny", CLASSES)


@pytest.fixture(scope="module")
def crops(photographs):
    """11 crops of two photographs, of different sizes."""
    random = np.random.default_rng(0)
    boxes = zip(random.integers(0, 250, size=(11, 2)), random.integers(40, 120, size=(11, 2)))
    return [
        Image.fromarray(photographs[idx % 2][top : top + height, left : left + width])
        for idx, ((top, left), (height, width)) in enumerate(boxes)
    ]


@pytest.fixture(scope="module")
def labels(checkpoint, crops):
    """Labels that put the right class at `PLACES`, by a loop over single images."""
    model = InternImageForImageClassification.from_pretrained(checkpoint).eval()
    processor = AutoImageProcessor.from_pretrained(checkpoint)
    with torch.inference_mode():
        logits = [model(**processor(crop, return_tensors="pt")).logits[0] for crop in crops]
    return [int(scores.argsort(descending=True)[place]) for scores, place in zip(logits, PLACES)]


def save_images(folder: Path, crops, labels) -> Path:
    """The crops in folders of their classes; every class has a folder, and not all files are images."""
    for name in CLASSES:
        (folder / name).mkdir(parents=True)
        (folder / name / "notes.txt").write_text("no image")
    (folder / ".cache").mkdir()
    for idx, (crop, label) in enumerate(zip(crops, labels)):
        crop.save(folder / CLASSES[label] / f"{idx}.PNG")
    return folder


@pytest.fixture
def image_folder(crops, labels, tmp_path):
    return save_images(tmp_path / "val", crops, labels)


def arguments(checkpoint, output, *others, **data):
    data = [word for name, value in data.items() for word in (f"--{name}", str(value))]
    command = ["--model_name_or_path", checkpoint, "--output", str(output), "--batch_size", "4", "--num_workers", "0"]
    return [*command, *data, *others]


def run(checkpoint, tmp_path, *others, **data) -> dict:
    output = tmp_path / "results" / "accuracy.json"
    script.main(arguments(checkpoint, output, *others, **data))
    assert [path.name for path in output.parent.iterdir()] == [output.name]  # no temporary file stays
    return json.loads(output.read_text())


def truncate(file: Path):
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def test_accuracy(checkpoint, image_folder, tmp_path, capsys, caplog):
    """The accuracy by construction, and everything else that the file says."""
    result = run(checkpoint, tmp_path, data_dir=image_folder)
    assert result["top_1"] == {"percent": 36.3636, "count": 4}
    assert result["top_5"] == {"percent": 81.8182, "count": 9, "k": 5}
    assert (result["num_images"], result["num_skipped"], result["skipped"]) == (11, 0, [])
    assert result["model"] == Path(checkpoint).name and result["dataset"]["name"] == image_folder.name
    assert str(tmp_path) not in (tmp_path / "results" / "accuracy.json").read_text()
    assert (result["dtype"], result["processes"], result["batch_size"]) == ("float32", 1, 4)
    assert result["dcnv3"] == ["PyTorch reference"] and result["device"]
    preprocessing = result["preprocessing"]
    assert preprocessing["size"] == {"shortest_edge": 32} and preprocessing["resample"] == "bicubic"
    assert preprocessing["crop_size"] == {"height": 32, "width": 32}
    assert result["images_per_second"] == pytest.approx(11 / result["seconds"], rel=0.1)  # rounded to 1 ms
    assert result["versions"]["torch"] == torch.__version__ and set(result["versions"]) > {"transformers", "python"}
    assert len(result["date"]) == 10
    assert "top-1 36.36%, top-5 81.82% of 11 images (0 skipped)" in capsys.readouterr().out
    assert "label2id" not in caplog.text  # all names match

    name, metrics = model_index_to_eval_results(result["model_index"])
    assert name == "tiny" and [(metric.metric_name, metric.metric_value) for metric in metrics] == [
        ("top-1", 36.3636),
        ("top-5", 81.8182),
    ]
    card = ModelCard(f"---\n{json.dumps({'model-index': result['model_index']})}\n---\n")
    assert card.data.eval_results == metrics and metrics[0].dataset_args is None


# Runs the script several times: starting two processes takes longer than all the rest.
CODE = """
from examples.image_classification import evaluate_accuracy

for own in arguments:
    try:
        evaluate_accuracy.main(own)
    except ValueError as error:
        print(f"ValueError: {error}")
"""


@pytest.fixture(scope="module")
def two_processes(checkpoint, crops, labels, tmp_path_factory):
    """
    The script in 2 processes, on all images, on images of which 5 are corrupt, and on the same without
    `--skip_corrupt`: the folder, in it `intact`, `corrupt` and `accuracy_0.json` etc., and what was printed.
    """
    folder = tmp_path_factory.mktemp("two_processes")
    save_images(folder / "intact", crops, labels)
    files = sorted(save_images(folder / "corrupt", crops, labels).rglob("*.PNG"))
    for file in files[4:8] + files[:1]:
        truncate(file)
    runs = [
        arguments(checkpoint, folder / f"accuracy_{idx}.json", *others, data_dir=folder / name)
        for idx, (name, others) in enumerate((("intact", []), ("corrupt", ["--skip_corrupt"]), ("corrupt", [])))
    ]
    return folder, run_in_two_processes(folder, CODE, *runs)


@pytest.mark.slow
def test_two_processes_count_every_image_once(two_processes):
    """11 images in batches of 4 in 2 processes: the last batches are filled up with 5 others, which do not count."""
    folder, printed = two_processes
    result = json.loads((folder / "accuracy_0.json").read_text())
    assert result["processes"] == 2
    assert (result["num_images"], result["top_1"]["count"], result["top_5"]["count"]) == (11, 4, 9)
    assert printed.count("of 11 images (0 skipped)") == 1  # by one of the two


@pytest.mark.slow
def test_two_processes_skip_corrupt_images(two_processes, checkpoint, tmp_path):
    """One process finds its whole first batch corrupt, the other an image that fills up the last batch."""
    folder, printed = two_processes
    result = json.loads((folder / "accuracy_1.json").read_text())
    single = run(checkpoint, tmp_path, "--skip_corrupt", data_dir=folder / "corrupt")
    assert (single["processes"], result["processes"]) == (1, 2)
    files = sorted((folder / "corrupt").rglob("*.PNG"))
    places = [PLACES[int(file.stem)] for file in files[1:4] + files[8:]]
    for outcome in (single, result):
        assert (outcome["num_images"], outcome["num_skipped"]) == (6, 5)
        assert outcome["top_1"]["count"] == sum(place < 1 for place in places)
        assert outcome["top_5"]["count"] == sum(place < 5 for place in places)
    named = [file for error in result["skipped"] for file in files if str(file) in error]
    assert named == files[:1] + files[4:8] and single["skipped"] == result["skipped"]
    assert printed.count("Skipped: The image file") == 5
    _, metrics = model_index_to_eval_results(result["model_index"])
    assert metrics[0].dataset_args == {"skipped_images": 5}


@pytest.mark.slow
def test_two_processes_end_at_a_corrupt_image(two_processes):
    """Both, and with the same sentence."""
    folder, printed = two_processes
    file = min((folder / "corrupt").rglob("*.PNG"))
    assert printed.count(f"ValueError: The image file {file} is corrupt or truncated") == 2
    assert not (folder / "accuracy_2.json").exists()


@pytest.mark.parametrize("num_workers", [0, 2])
def test_corrupt_image(num_workers, checkpoint, image_folder, tmp_path, capsys):
    file = sorted(image_folder.rglob("*.PNG"))[3]
    truncate(file)
    data = {"data_dir": image_folder, "num_workers": num_workers}
    with pytest.raises(ValueError, match=rf"^The image file {file} is corrupt.*`--skip_corrupt` leaves such images"):
        run(checkpoint, tmp_path, **data)
    assert not list((tmp_path / "results").iterdir())
    result = run(checkpoint, tmp_path, "--skip_corrupt", **data)
    assert (result["num_images"], result["num_skipped"]) == (10, 1) and str(file) in result["skipped"][0]
    assert f"Skipped: The image file {file}" in capsys.readouterr().out


def test_workers_can_be_spawned(checkpoint, image_folder, tmp_path, monkeypatch):
    """What they are sent can be pickled."""
    pickled = []
    evaluate = script.evaluate_model
    monkeypatch.setattr(
        script, "evaluate_model",
        lambda model, loader, *args: pickled.append(pickle.dumps((loader.dataset, loader.collate_fn)))
        or evaluate(model, loader, *args),
    )  # fmt: skip
    run(checkpoint, tmp_path, data_dir=image_folder)
    assert len(pickled) == 1


def test_images_that_resizing_makes_huge(checkpoint, image_folder, tmp_path):
    """The shorter side alone is given, as for most classifiers: the other one is not bounded."""
    file = sorted(image_folder.rglob("*.PNG"))[3]
    Image.new("RGB", (200000, 1)).save(file)
    with pytest.raises(ValueError, match=rf"{file}, resized, has \d+x\d+ pixels, more than the \d+ of `PIL.Image.MAX"):
        run(checkpoint, tmp_path, data_dir=image_folder)


def test_only_corrupt_images(checkpoint, image_folder, tmp_path):
    for file in image_folder.rglob("*.PNG"):
        truncate(file)
    with pytest.raises(ValueError, match="^All 11 images are corrupt"):
        run(checkpoint, tmp_path, "--skip_corrupt", data_dir=image_folder)


def test_corrupt_image_in_a_dataset(checkpoint, crops, labels, tmp_path):
    """A file inside a table has no path: its row is named, that of the table."""
    crops[0].save(tmp_path / "crop.png")
    data = (tmp_path / "crop.png").read_bytes()
    rows = [{"bytes": data, "path": None} for _ in range(6)]
    rows[4], rows[5] = {"bytes": data[:99], "path": None}, None
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    table = datasets.Dataset.from_dict({"image": rows, "label": labels[:6]}, features=features)
    table.to_parquet(tmp_path / "data" / "validation.parquet")
    data = {"dataset_name": tmp_path / "data", "max_samples": 6}
    result = run(checkpoint, tmp_path, "--skip_corrupt", **data)
    assert [error.split(" is corrupt")[0] for error in result["skipped"]] == [
        "The image file of row 4",
        "The image file of row 5",
    ]


def test_classes_by_name(checkpoint, image_folder, tmp_path):
    """Names that the model knows decide, not the order of the folders; the model may know more classes."""
    renamed = save_model(tmp_path / "renamed", [f"{'gbecafd'[idx]}_{idx}" for idx in range(7)])
    for idx, name in enumerate(CLASSES):
        (image_folder / name).rename(image_folder / f"{'gbecafd'[idx]}_{idx}")
    assert run(renamed, tmp_path, data_dir=image_folder)["top_1"]["count"] == 4
    shutil.rmtree(image_folder / "g_0")
    expected = [PLACES[int(file.stem)] for file in image_folder.rglob("*.PNG")]
    result = run(renamed, tmp_path, data_dir=image_folder)
    assert result["num_images"] == len(expected) < 11
    assert result["top_1"]["count"] == sum(place < 1 for place in expected)
    assert result["top_5"]["count"] == sum(place < 5 for place in expected)


def test_classes_by_position(checkpoint, image_folder, tmp_path, caplog):
    """Other names, as many: the order of the folders, empty ones counted, and one warning."""
    for idx, name in enumerate(CLASSES):
        (image_folder / name).rename(image_folder / f"folder_{idx}")
    for file in (image_folder / "folder_0").glob("*"):
        file.unlink()
    labels_left = [int(file.parent.name[-1]) for file in image_folder.rglob("*.PNG")]
    expected = [PLACES[int(file.stem)] for file in image_folder.rglob("*.PNG")]
    assert 0 not in labels_left
    result = run(checkpoint, tmp_path, data_dir=image_folder)
    assert result["top_1"]["count"] == sum(place < 1 for place in expected)
    assert result["num_images"] == len(expected)
    assert caplog.text.count("are taken to be in the model's order, 'folder_0' as 'class_0'") == 1

    (image_folder / "folder_7").mkdir()
    with pytest.raises(ValueError, match="The data has 8 classes and the model 7, and 'folder_0' is not the name"):
        run(checkpoint, tmp_path, data_dir=image_folder)


def config(names):
    return InternImageConfig(id2label=dict(enumerate(names)), label2id={name: idx for idx, name in enumerate(names)})


def test_synsets(caplog):
    """The model's ImageNet classes have names, the folders numbers: the order is the same, nothing to warn of."""
    imagenet = InternImageConfig(num_labels=1000, norm_layer="LN")
    synsets = [f"n{number:08d}" for number in range(1440764, 1441764)]
    assert script.class_indices(synsets, imagenet) == list(range(1000))
    assert caplog.text == ""
    with pytest.raises(ValueError, match="The data has 999 classes and the model 1000"):
        script.class_indices(synsets[1:], imagenet)


@pytest.mark.parametrize(
    "names, model_names, message",
    [
        (["dog", "zebra"], ["cat", "dog"], "class 0, 'dog', is the model's class 1, but 'zebra' is not in its"),
        (["crane"], ["crane", "hen", "crane"], "The data has 1 classes and the model 3, and 'crane' is not the name"),
    ],
    ids=["contradiction", "ambiguous"],
)
def test_names_that_do_not_decide(names, model_names, message):
    with pytest.raises(ValueError, match=message):
        script.class_indices(names, config(model_names))


@pytest.mark.parametrize(
    "feature, values, expected",
    [
        (datasets.ClassLabel(names=["dog", "cat"]), [0, 1, 1], [1, 0, 0]),
        (datasets.Value("string"), ["dog", "cat", "hen"], [1, 0, 2]),
        (datasets.Value("int32"), [2, 0, 1], [2, 0, 1]),
        (datasets.Value("int32"), [0, 3], "row 1 has the label 3, which is not in the model's [0, 3)"),
        (datasets.ClassLabel(names=["cat", "dog", "hen"]), [0, -1], "row 1 has the label -1"),
        (datasets.Value("string"), ["dog", None], "row 1 has the label None"),
        (datasets.Value("float32"), [0.0, float("nan")], "row 0 has the label 0.0"),
        (datasets.List(datasets.Value("int32")), [[0], [1]], "must have one class for each image"),
    ],
    ids=str,
)
def test_labels_of_a_dataset(feature, values, expected):
    rows = datasets.Dataset.from_dict({"label": values}, features=datasets.Features({"label": feature}))
    if isinstance(expected, list):
        assert script.model_labels(rows, "label", config(["cat", "dog", "hen"])) == expected
        return
    with pytest.raises(ValueError) as error:
        script.model_labels(rows, "label", config(["cat", "dog", "hen"]))
    assert expected in str(error.value)


def test_dataset(checkpoint, crops, labels, tmp_path):
    """A local data set with other column names, its classes in another order, and a choice of its images."""
    order = [3, 1, 0, 2, 6, 5, 4]
    features = datasets.Features(
        {"picture": datasets.Image(), "kind": datasets.ClassLabel(names=[CLASSES[idx] for idx in order])}
    )
    kinds = [order.index(label) for label in labels]
    table = datasets.Dataset.from_dict({"picture": crops, "kind": kinds}, features=features)
    table.to_parquet(tmp_path / "data" / "test.parquet")
    data = {"dataset_name": tmp_path / "data", "split": "test"}
    with pytest.raises(ValueError, match="has no column 'image'.*Name the right one with `--image_column_name`"):
        run(checkpoint, tmp_path, **data)
    with pytest.raises(ValueError, match=r"`--split validation` is not in .*, which has \['test'\]"):
        run(checkpoint, tmp_path, **data | {"split": "validation"})
    data |= {"image_column_name": "picture", "label_column_name": "kind"}
    result = run(checkpoint, tmp_path, **data)
    assert (result["num_images"], result["top_1"]["count"], result["top_5"]["count"]) == (11, 4, 9)
    assert result["dataset"]["split"] == "test"

    chosen = {seed: np.random.default_rng(seed).permutation(11)[:5] for seed in range(3)}
    assert len({tuple(rows) for rows in chosen.values()}) == 3
    for seed, rows in chosen.items():
        result = run(checkpoint, tmp_path, **data, max_samples=5, seed=seed)
        assert (result["num_images"], result["dataset"]["max_samples"]) == (5, 5)
        assert result["top_1"]["count"] == sum(PLACES[row] == 0 for row in rows)
        assert result["top_5"]["count"] == sum(PLACES[row] < 5 for row in rows)
    _, metrics = model_index_to_eval_results(result["model_index"])
    assert metrics[0].dataset_args == {"max_samples": 5, "seed": 2} and metrics[0].dataset_split == "test"
    assert run(checkpoint, tmp_path, **data, max_samples=50)["num_images"] == 11


@pytest.fixture(scope="module")
def metadata_checkpoint(tmp_path_factory):
    """A model for which date and place decide: the images hardly change its logits."""
    model = InternImageForImageClassification(InternImageConfig(**ARCHITECTURE, num_labels=7, use_metadata_head=True))
    randomize(model).classifier.weight.data *= 1e-3
    folder = tmp_path_factory.mktemp("metadata")
    model.save_pretrained(folder)
    create_image_processor(32).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def annotated_images(metadata_checkpoint, crops, tmp_path):
    """A folder of images with iNaturalist's columns. The labels are those that the model gives them with these."""
    dates = ["2018-01-05", "2018-04-05 11:12:13", "", None, "2018-07-05", "2018-10-05+00:00", *["2018-09-01"] * 5]
    latitudes = [48.2, -33.9, 60.0, 1.0, None, 0.0, 10, 20, 30, 40, 50]
    longitudes = [-122.5, 151.2, 25.0, 103.8, 11.0, 11.0, 10, 20, 30, 40, 50]
    model = InternImageForImageClassification.from_pretrained(metadata_checkpoint).eval()
    processor = AutoImageProcessor.from_pretrained(metadata_checkpoint)
    metadata = encode_metadata(dates, latitudes, longitudes)
    with torch.inference_mode():
        pixel_values = torch.cat([processor(crop, return_tensors="pt")["pixel_values"] for crop in crops])
        labels = model(pixel_values, **metadata).logits.argmax(dim=1).tolist()
        by_image = model(pixel_values).logits.argmax(dim=1).tolist()
    folder = tmp_path / "inat" / "validation"
    folder.mkdir(parents=True)
    rows = []
    for idx, crop in enumerate(crops):
        crop.save(folder / f"{idx:02}.png")
        rows.append([f"{idx:02}.png", labels[idx], dates[idx], latitudes[idx], longitudes[idx]])
    with open(folder / "metadata.csv", "w", newline="") as file:
        csv.writer(file).writerows([["file_name", "label", "date", "latitude", "longitude"], *rows])
    return folder, sum(one == other for one, other in zip(labels, by_image))


COLUMNS = ["--metadata_columns", "date", "latitude", "longitude"]


def test_date_and_place(metadata_checkpoint, annotated_images, tmp_path, caplog):
    """All labels are found with them, some without; missing values count as unknown and are counted."""
    folder, num_by_image = annotated_images
    truncate(folder / "07.png")
    data = {"dataset_name": folder.parent}
    result = run(metadata_checkpoint, tmp_path, "--skip_corrupt", *COLUMNS, **data)
    assert (result["num_images"], result["top_1"]["count"]) == (10, 10) and num_by_image < 10
    expected = {"columns": COLUMNS[1:], "images_with_date": 8, "images_with_place": 8}
    assert result["metadata"] == expected and "by the images alone" not in caplog.text
    _, metrics = model_index_to_eval_results(result["model_index"])
    assert metrics[0].dataset_args == {"skipped_images": 1, "metadata_columns": COLUMNS[1:]}
    result = run(metadata_checkpoint, tmp_path, "--skip_corrupt", **data)
    assert result["top_1"]["count"] < 10 and result["metadata"] is None
    assert "The model takes date and place too, but goes by the images alone here" in caplog.text


@pytest.mark.parametrize(
    "old, new, message",
    [
        ("2018-01-05", "5 Jan 2018", "entry 0 is '5 Jan 2018'. Correct it there, or make it empty"),
        ("-33.9", "133.9", "`latitudes` must be degrees from -90 to 90, .* entry 1 is 133.9"),
        ("103.8", "E103", "`longitudes` must be degrees .* entry 3 is 'E103'"),
        (",longitude", ",east", r"the dataset has no column 'longitude', only \[.*'east'\]"),
    ],
)
def test_bad_date_or_place(old, new, message, metadata_checkpoint, annotated_images, tmp_path):
    """Before anything is computed."""
    folder, _ = annotated_images
    text = (folder / "metadata.csv").read_text()
    (folder / "metadata.csv").write_text(text.replace(old, new, 1))
    with pytest.raises(ValueError, match=rf"`--metadata_columns.*{message}"):
        run(metadata_checkpoint, tmp_path, *COLUMNS, dataset_name=folder.parent)


def test_date_and_place_that_are_of_no_use(checkpoint, metadata_checkpoint, annotated_images, image_folder, tmp_path):
    with pytest.raises(ValueError, match="`--metadata_columns` needs a model that takes date and place"):
        run(checkpoint, tmp_path, *COLUMNS, dataset_name=annotated_images[0].parent)
    with pytest.raises(ValueError, match="`--metadata_columns` needs `--dataset_name`: a folder of classes"):
        run(metadata_checkpoint, tmp_path, *COLUMNS, data_dir=image_folder)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision(dtype, checkpoint, image_folder, tmp_path):
    """The model of this type, image by image in batches of the same shape."""
    result = run(checkpoint, tmp_path, data_dir=image_folder, dtype=dtype)
    assert (result["dtype"], result["num_images"]) == (dtype, 11)
    model = InternImageForImageClassification.from_pretrained(checkpoint, dtype=getattr(torch, dtype)).eval()
    processor = AutoImageProcessor.from_pretrained(checkpoint)
    files = sorted(image_folder.rglob("*.PNG"))
    with torch.inference_mode():
        pixels = [processor(Image.open(file), return_tensors="pt")["pixel_values"] for file in files]
        batches = [torch.cat(pixels[start : start + 4]).to(model.dtype) for start in (0, 4, 8)]
        predictions = torch.cat([model(batch).logits for batch in batches]).argmax(dim=1).tolist()
    labels = [CLASSES.index(file.parent.name) for file in files]
    assert result["top_1"]["count"] == sum(one == other for one, other in zip(predictions, labels))


def test_values_that_are_no_numbers(checkpoint, image_folder, tmp_path):
    """float16 overflows in some models; their accuracy would be that of guessing."""
    model = InternImageForImageClassification.from_pretrained(checkpoint)
    model.classifier.bias.data[0] = float("nan")
    model.save_pretrained(tmp_path / "model")
    create_image_processor(32).save_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match="not numbers in torch.float16: choose another `--dtype`"):
        run(str(tmp_path / "model"), tmp_path, data_dir=image_folder, dtype="float16")


def test_fewer_than_five_classes(crops, tmp_path):
    checkpoint = save_model(tmp_path / "model", ["astronaut", "coffee", "tea"])
    for idx, name in enumerate(("astronaut", "coffee")):
        (tmp_path / "val" / name).mkdir(parents=True)
        crops[idx].save(tmp_path / "val" / name / "0.jpg")
    result = run(checkpoint, tmp_path, data_dir=tmp_path / "val")
    assert result["top_5"] == {"percent": 100.0, "count": 2, "k": 3}
    assert [metric["name"] for metric in result["model_index"][0]["results"][0]["metrics"]] == ["top-1", "top-3"]


def test_another_architecture(crops, tmp_path):
    """Any model with an image processor, here one that does not crop; kernels are for InternImage."""
    config = ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=32, patch_size=16
    )
    ViTForImageClassification(config).save_pretrained(tmp_path / "model")
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path / "model")
    (tmp_path / "val" / "LABEL_1").mkdir(parents=True)
    for idx, crop in enumerate(crops[:3]):
        crop.save(tmp_path / "val" / "LABEL_1" / f"{idx}.jpg")
    result = run(str(tmp_path / "model"), tmp_path, data_dir=tmp_path / "val")
    assert result["num_images"] == 3 and result["top_5"] == {"percent": 100.0, "count": 3, "k": 2}
    assert result["dcnv3"] == [] and result["preprocessing"]["crop_size"] is None
    with pytest.raises(ValueError, match="`model` must contain an InternImage"):
        run(str(tmp_path / "model"), tmp_path, "--use_kernels", data_dir=tmp_path / "val")


def test_use_kernels(checkpoint, image_folder, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(evaluation, "use_dcnv3_kernel", lambda model: asked.append(type(model).__name__) or model)
    run(checkpoint, tmp_path, data_dir=image_folder, max_samples=1)
    assert asked == []
    run(checkpoint, tmp_path, "--use_kernels", data_dir=image_folder, max_samples=1)
    assert asked == ["InternImageForImageClassification"]


def test_untrained_classifier(image_folder, tmp_path):
    """A backbone without classifier would load, with a random one."""
    InternImageModel(InternImageConfig(**ARCHITECTURE, num_labels=7)).save_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match="lacks trained weights of the classifier, such as 'classifier.bias'"):
        run(str(tmp_path / "model"), tmp_path, data_dir=image_folder)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"data_dir": "/does/not/exist"}, "`--data_dir /does/not/exist` is not a folder"),
        ({"data_dir": "{val}/class_0"}, "class_0` has no folders in it, it must have one folder of images per class"),
        ({"batch_size": 0}, "`--batch_size 0` must be at least 1"),
        ({"max_samples": 0}, "`--max_samples 0` must be at least 1"),
        ({"output": "{val}"}, "val is a folder, where a file would be written"),
    ],
    ids=str,
)
def test_bad_arguments(change, message, checkpoint, image_folder, tmp_path):
    change = {name: str(value).format(val=image_folder) for name, value in change.items()}
    options = {"data_dir": image_folder, "output": tmp_path / "accuracy.json"} | change
    with pytest.raises(ValueError, match=message):
        script.main(arguments(checkpoint, **options))


def test_no_images(checkpoint, image_folder, tmp_path):
    for file in image_folder.rglob("*.PNG"):
        file.unlink()
    with pytest.raises(ValueError, match="There are no images in .*val"):
        run(checkpoint, tmp_path, data_dir=image_folder)
