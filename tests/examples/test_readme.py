# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""Every command and every code block of the READMEs runs."""

import importlib.util
import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file
from PIL import Image
from testing_utils import (
    MANIFESTS,
    REPOSITORY,
    original_state_dict,
    randomize,
    write_official_checkpoint,
    write_without_data,
)
from transformers import UperNetConfig, UperNetForSemanticSegmentation, pipeline

import modeling_internimage
from conversion.convert_internimage_to_hf import main
from examples import benchmark
from examples.image_classification import evaluate_accuracy
from examples.object_detection import photographs_with_objects
from examples.semantic_segmentation import coins
from modeling_internimage import (
    InternImageConfig,
    InternImageForImageClassification,
    MaskRCNNConfig,
    MaskRCNNForObjectDetection,
)


READMES = ["README.md", "conversion/README.md"]
READMES += ["examples/image_classification/README.md", "examples/feature_extraction/README.md"]
READMES += ["examples/semantic_segmentation/README.md", "examples/object_detection/README.md"]
OFFICIAL_REPOSITORY = "OpenGVLab/internimage_t_1k_224"
# Appended to training commands: enough to run every part of the script.
SHORT_RUN = ["--max_steps", "1", "--max_train_samples", "4", "--max_eval_samples", "2", "--report_to", "none"]
SHORT_RUN += ["--per_device_train_batch_size", "2"]
SHORT_JSON = {
    "max_steps": 1, "max_train_samples": 4, "max_eval_samples": 2, "report_to": "none", "bf16": False,
    "per_device_train_batch_size": 2, "dataloader_num_workers": 0,
}  # fmt: skip
FOLDERS = {"train_dir": "images/train", "validation_dir": "images/validation"}
# Metric, what is appended to commands, what replaces entries of JSON files.
SHORT_TASKS = {
    "run_image_classification": ("eval_accuracy", [], FOLDERS),
    "run_semantic_segmentation": ("eval_mean_iou", ["--image_size", "64"], {}),
    "run_object_detection": ("eval_bbox_map", ["--shortest_edge", "64"], {}),
}


def blocks(language: str) -> list:
    """(README, block) of every fenced code block in a language."""
    return [
        pytest.param(block, id=f"{readme}-{idx}")
        for readme in READMES
        for idx, block in enumerate(re.findall(rf"```{language}\n(.*?)```", (REPOSITORY / readme).read_text(), re.S))
    ]


def commands() -> list[str]:
    text = "\n".join(param.values[0] for param in blocks("bash"))
    lines = text.replace("\\\n", " ").splitlines()
    return list(dict.fromkeys(filter(None, (re.sub(r"(^|\s+)#.*", "", line).strip() for line in lines))))


@pytest.fixture(scope="module")
def official_checkpoint(tmp_path_factory):
    """InternImage-T at full size, in the layout of its official repository, with stand-in weights."""
    manifest = MANIFESTS["internimage_t_1k_224"]
    return write_official_checkpoint(
        tmp_path_factory.mktemp("hub") / "internimage_t_1k_224", manifest["config"], manifest["keys"], seed=0
    )


@pytest.fixture(scope="module")
def original_checkpoint(tmp_path_factory):
    """The same as the authors' `.pth` file."""
    file = tmp_path_factory.mktemp("original") / "internimage_t_1k_224.pth"
    torch.save({"model": original_state_dict(MANIFESTS[file.stem]["keys"], seed=0)}, file)
    return file


TINY = {"embed_dim": 16, "depths": [1, 1, 2, 1], "num_groups": [1, 2, 4, 8]}
STAGES = ["stage1", "stage2", "stage3", "stage4"]


@pytest.fixture(scope="module")
def stock(photographs, tmp_path_factory):
    """A folder with everything the commands name: images, data sets, models."""
    from datasets import ClassLabel, Dataset, Features
    from datasets import Image as ImageFeature

    folder = tmp_path_factory.mktemp("stock")
    Image.fromarray(photographs[0]).save(folder / "photo.jpg")
    images = []
    for split in ("train", "validation"):
        for name, photograph in zip(("astronaut", "coffee"), photographs):
            (folder / "images" / split / name).mkdir(parents=True)
            for idx in range(4):
                images.append(Image.fromarray(photograph[idx * 60 : idx * 60 + 200, :300]))
                images[-1].save(folder / "images" / split / name / f"{idx}.jpg")
    (folder / "beans").mkdir()
    features = Features({"image": ImageFeature(), "labels": ClassLabel(names=["healthy", "rust"])})
    data = Dataset.from_dict({"image": images, "labels": [idx % 2 for idx in range(len(images))]}, features=features)
    data.to_parquet(folder / "beans" / "train.parquet")
    digits = {idx: str(idx) for idx in range(10)}
    for name, labels in (("digits", digits), ("my_model", {0: "astronaut", 1: "coffee"})):
        label2id = {label: idx for idx, label in labels.items()}
        model = InternImageForImageClassification(
            InternImageConfig(**TINY, image_size=32, id2label=labels, label2id=label2id)
        )
        randomize(model).save_pretrained(folder / "outputs" / name)
        modeling_internimage.create_image_processor(32).save_pretrained(folder / "outputs" / name)
    add_segmentation(folder, images)
    add_detection(folder, images)
    return folder


@pytest.fixture
def workplace(stock, tmp_path, monkeypatch):
    """A copy of it, and the scripts."""
    shutil.copytree(stock, tmp_path, dirs_exist_ok=True)
    (tmp_path / "examples").symlink_to(REPOSITORY / "examples")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def add_detection(folder: Path, images: list[Image.Image]):
    """What the commands for detection name: eight photographs, files in COCO's format, a data set, three models."""
    import datasets

    photographs_with_objects.write_data_set(folder / "outputs" / "objects")
    (folder / "scenes" / "images").mkdir()
    objects = {"bbox": [[10, 20, 100, 90], [60, 70, 200, 110]], "category": [0, 1]}
    for split, own in (("train", images[:4]), ("validation", images[4:8])):
        content = {"images": [], "annotations": [], "categories": [{"id": 3, "name": "cup"}, {"id": 9, "name": "cat"}]}
        for idx, image in enumerate(own):
            name = f"{split}_{idx}.jpg"
            image.save(folder / "scenes" / "images" / name)
            content["images"].append({"id": idx, "file_name": name, "width": image.width, "height": image.height})
            for (left, top, width, height), category in zip(*objects.values()):
                corners = [left, top, left + width, top, left, top + height]
                entry = {"id": 2 * idx + category, "image_id": idx, "category_id": [3, 9][category], "iscrowd": 0}
                entry |= {"bbox": [left, top, width, height], "area": width * height, "segmentation": [corners]}
                content["annotations"].append(entry)
        (folder / "scenes" / f"{split}.json").write_text(json.dumps(content))
    (folder / "medical").mkdir()
    features = {
        "bbox": datasets.List(datasets.List(datasets.Value("float32"))),
        "category": datasets.List(datasets.ClassLabel(names=["mask", "glove"])),
    }
    features = datasets.Features({"image": datasets.Image(), "objects": features})
    rows = {"image": images[:8], "objects": [objects] * 8}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(folder / "medical" / "train.parquet")
    for name, classes in (
        ("outputs/objects_model", list(photographs_with_objects.CATEGORIES)),
        ("outputs/my_detector", ["cup", "cat"]),
        ("mask_rcnn_internimage_t_fpn_1x_coco", ["cup", "cat", "dog"]),
    ):
        config = MaskRCNNConfig(
            backbone_config=InternImageConfig(**TINY, out_features=STAGES),
            hidden_size=16,
            box_head_hidden_size=16,
            max_detections=10,
            id2label=dict(enumerate(classes)),
            label2id={name: idx for idx, name in enumerate(classes)},
        )
        randomize(MaskRCNNForObjectDetection(config)).save_pretrained(folder / name)
        size = {"shortest_edge": 64, "longest_edge": 128}
        modeling_internimage.MaskRCNNImageProcessor(size=size).save_pretrained(folder / name)


def add_segmentation(folder: Path, images: list[Image.Image]):
    """What the commands for segmentation name: images with maps in folders and as a data set, coins, two models."""
    from datasets import Dataset, Features
    from datasets import Image as ImageFeature

    coins.write_folders(folder / "outputs" / "coins")
    (folder / "classes.json").write_text('{"dark": [0, 0, 90], "bright": [255, 200, 0]}')
    for split in ("train", "validation"):
        for name in ("images", "maps"):
            (folder / "scenes" / split / name).mkdir(parents=True)
        for idx, image in enumerate(images[:4]):
            image.save(folder / "scenes" / split / "images" / f"{idx}.jpg")
            labels = image.convert("L").point(lambda value: int(value > 100))
            labels.save(folder / "scenes" / split / "maps" / f"{idx}.png")
    (folder / "streets").mkdir()
    files = {column: [str(folder / "scenes" / "train" / name) for name in names]
             for column, names in (("image", [f"images/{idx}.jpg" for idx in range(4)]),
                                   ("annotation", [f"maps/{idx}.png" for idx in range(4)]))}  # fmt: skip
    features = Features(dict.fromkeys(files, ImageFeature()))
    Dataset.from_dict(files, features=features).to_parquet(folder / "streets" / "train.parquet")
    config = UperNetConfig(
        backbone_config=InternImageConfig(**TINY, out_features=STAGES),
        hidden_size=8, auxiliary_channels=8, auxiliary_in_channels=64, id2label={0: "dark", 1: "bright"},
        label2id={"dark": 0, "bright": 1},
    )  # fmt: skip
    image_processor = modeling_internimage.InternImageSegmentationImageProcessor(
        size={"shortest_edge": 64, "longest_edge": 256}, size_divisor=32
    )
    for name in ("outputs/coins_model", "outputs/my_segmenter", "upernet_internimage_t_512_160k_ade20k"):
        randomize(UperNetForSemanticSegmentation(config)).save_pretrained(folder / name)
        image_processor.save_pretrained(folder / name)


@pytest.mark.parametrize("block", blocks("python"))
def test_python_blocks(block, workplace, official_checkpoint):
    code = block.replace(OFFICIAL_REPOSITORY, str(official_checkpoint))
    # In a process of its own: one of the blocks registers classes for good.
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    if "register_for_auto_class" in code:
        assert (workplace / "my-internimage" / "modeling_internimage.py").is_file()


@pytest.mark.parametrize("command", commands())
def test_commands(command, workplace, official_checkpoint, original_checkpoint, monkeypatch):
    words = shlex.split(command)
    ci = (REPOSITORY / ".ci" / "run").read_text()
    makefile = (REPOSITORY / "Makefile").read_text()
    if words[0] == "make":
        assert command in ci.splitlines()  # on a clean clone
        return
    if words[0] == "export":
        return
    if words[-1].endswith("digits.json"):  # `make demo` runs it, at full length
        assert "run_image_classification $(DIGITS)/digits.json" in makefile and (REPOSITORY / words[-1]).is_file()
        return
    if words[:4] == ["accelerate", "launch", "-m", "examples.image_classification.evaluate_accuracy"]:  # ImageNet
        assert evaluate_accuracy.parse_arguments(words[4:]).data_dir in ("imagenet/val", "inat2018/val")
        return
    if words[:2] == ["accelerate", "launch"]:  # eight GPUs
        assert load_config_from_file(str(REPOSITORY / words[3])).num_processes == 8
        assert words[4] == "-m" and importlib.util.find_spec(words[5]) and (REPOSITORY / words[6]).is_file()
        return
    if words[:2] == ["pip", "install"]:
        options = ["--no-deps", "--no-build-isolation", "--quiet", "--target", str(workplace / "site")]
        subprocess.run([sys.executable, "-m", "pip", *words[1:], *options], check=True, cwd=REPOSITORY)
        installed = {path.name for path in (workplace / "site" / "modeling_internimage").iterdir()}
        assert {"__init__.py", "py.typed", "modeling_internimage.py"} <= installed
        return
    assert words[0] == "python", f"unknown kind of command: {command}"
    words = [str(official_checkpoint) if word == OFFICIAL_REPOSITORY else word for word in words]
    task = words[2].split(".")[-1] if words[1] == "-m" else None
    if task in SHORT_TASKS:
        if words[-1].endswith(".json"):
            arguments = json.loads((REPOSITORY / words[-1]).read_text())
            arguments |= SHORT_JSON | SHORT_TASKS[task][2]
            if "model_name_or_path" in arguments:
                arguments["model_name_or_path"] = str(official_checkpoint)
            (workplace / "short.json").write_text(json.dumps(arguments))
            words[-1] = "short.json"
        else:
            words += SHORT_RUN + SHORT_TASKS[task][1]
    if "conversion.convert_internimage_to_hf" in words:
        monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))  # as if this were the checkout
        if "internimage_t_1k_224" in words:
            words += ["--source", str(original_checkpoint)]
        large = {"internimage_l_22k_192to384", "internimage_h_22ktoinat18_384"} & set(words)
        for name in large:  # gigabytes: plan it only, from a file without data
            write_without_data(name, workplace / "large.pth")
            words += ["--source", "large.pth", "--dry-run"]
        if "--verify" in words:  # what an earlier command has made
            assert main([*words[3:5], "--source", str(original_checkpoint), "--output-dir", words[-3]]) == 0
        (workplace / "my.yaml").write_text("MODEL: {INTERN_IMAGE: {CHANNELS: 64, DEPTHS: [4, 4, 18, 4]}}")
        (workplace / "ckpt_epoch_99.pth").symlink_to(original_checkpoint)
    result = subprocess.run([sys.executable, *words[1:]], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    if "--do_eval" in words:
        metrics = json.loads((workplace / words[words.index("--output_dir") + 1] / "all_results.json").read_text())
        assert SHORT_TASKS[task][0] in metrics


def test_digits_table(workplace):
    """The table of the demo says what the pipeline says."""
    command = [sys.executable, "-m", "examples.image_classification.classify_digits", "--model", "outputs/digits"]
    output = subprocess.run([*command, "--count", "7"], capture_output=True, text=True, check=True).stdout
    rows = [line.split() for line in output.splitlines() if ".png" in line and "_is_" in line]
    assert len(rows) == 7
    correct = sum(row[1] == row[2] for row in rows)
    assert f"{correct} of 7 correct" in output and output.count("<- wrong") == 7 - correct
    classifier = pipeline("image-classification", model="outputs/digits")
    for row in rows:
        best = classifier(str(workplace / "outputs" / "digits" / "held_out_digits" / row[0]))[0]
        assert (row[2], row[3]) == (best["label"], f"{best['score']:.3f}")
    with Image.open(workplace / "outputs" / "digits" / "predictions.png") as picture:
        assert picture.width > 1000


@pytest.mark.parametrize("name", ["benchmark_cpu", "benchmark_cpu_kernel", "benchmark_cpu_kernel_epyc"])
def test_benchmark_tables_are_the_recorded_ones(name):
    result = json.loads((REPOSITORY / "examples" / "results" / f"{name}.json").read_text())
    assert benchmark.markdown_table(result) in (REPOSITORY / "README.md").read_text()
