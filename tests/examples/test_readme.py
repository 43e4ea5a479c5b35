# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""Every command and every code block of the READMEs runs."""

import dataclasses
import gzip
import importlib.util
import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from unittest.mock import create_autospec

import datasets
import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file
from golden_detectors import DETECTION, read_facts
from huggingface_hub import hf_hub_download
from PIL import Image
from testing_utils import (
    REDUCED_MODELS,
    REPOSITORY,
    first_quick,
    original_state_dict,
    randomize,
    run_module,
    write_official_checkpoint,
    write_without_data,
)
from transformers import (
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    UperNetConfig,
    UperNetForSemanticSegmentation,
    pipeline,
)
from typer.testing import CliRunner

import modeling_internimage
from conversion import hub
from conversion.checkpoints import CHECKPOINTS
from examples.benchmark.__main__ import table
from examples.image_classification import evaluate_accuracy
from examples.object_detection import photographs_with_objects
from examples.semantic_segmentation import coins
from modeling_internimage import (
    DinoDetrConfig,
    DinoDetrForObjectDetection,
    InternImageBackbone,
    InternImageConfig,
    InternImageForImageClassification,
    MaskRCNNConfig,
    MaskRCNNForObjectDetection,
    cli,
)


READMES = ["README.md", "conversion/README.md"]
READMES += ["examples/image_classification/README.md", "examples/feature_extraction/README.md"]
READMES += ["examples/semantic_segmentation/README.md", "examples/object_detection/README.md"]
READMES += ["examples/web_demo/README.md"]
READMES += [f"examples/{name}/README.md" for name in ("image_search", "large_scale", "multi_camera", "slurm")]
OFFICIAL_REPOSITORY = "OpenGVLab/internimage_t_1k_224"
REGISTERS = "register_for_auto_class"
# In place of what training commands and their JSON files say: enough to run every part of the scripts.
SHORT_RUN = {
    "max_steps": 1, "max_train_samples": 4, "max_eval_samples": 2, "report_to": "none",
    "per_device_train_batch_size": 2,
}  # fmt: skip
SHORT_JSON = SHORT_RUN | {"bf16": False, "dataloader_num_workers": 0}
FOLDERS = {"train_dir": "images/train", "validation_dir": "images/validation"}
# Metric of a training script, what is added to its commands, and to its JSON files.
TRAINING = {
    "run_image_classification": ("eval_accuracy", {}, FOLDERS),
    "run_semantic_segmentation": ("eval_mean_iou", {"image_size": 64}, {}),
    "run_object_detection": ("eval_bbox_map", {"shortest_edge": 64}, {}),
}


def is_run_by_ci(words):
    assert shlex.join(words) in (REPOSITORY / ".ci" / "run").read_text().splitlines()  # on a clean clone


def is_run_by_make_demo(words):
    """At full length."""
    makefile = (REPOSITORY / "Makefile").read_text()
    assert "run_image_classification $(DIGITS)/digits.json" in makefile and (REPOSITORY / words[-1]).is_file()


def has_page_arguments(words):
    """It runs until it is stopped: tests/examples/test_web_demo.py starts the page."""
    app = pytest.importorskip("examples.web_demo.app", reason="The page needs Gradio: pip install '.[web]'.")
    assert app.parse_arguments(words[3:]).model == ["outputs/digits"]


def is_not_run(words):
    pass


def has_imagenet_arguments(words):
    arguments = evaluate_accuracy.parse_arguments(words[4:])
    assert (arguments.data_dir, arguments.dataset_name) in (("imagenet/val", None), (None, "inat2018"))


def has_eight_processes(words):
    assert load_config_from_file(str(REPOSITORY / words[3])).num_processes == 8
    assert words[4] == "-m" and importlib.util.find_spec(words[5]) and (REPOSITORY / words[6]).is_file()


def install(words):
    options = ["--no-deps", "--no-build-isolation", "--quiet", "--target", str(Path("site").absolute())]
    subprocess.run([sys.executable, "-m", "pip", *words[1:], *options], check=True, cwd=REPOSITORY)
    installed = {path.name for path in Path("site", "modeling_internimage").iterdir()}
    assert {"__init__.py", "py.typed", "modeling_internimage.py", "mask_rcnn"} <= installed


def is_for_a_public_address(words):
    assert words[2] == "ADDRESS"


def on_the_command_line(words):
    """What the entry point runs."""
    result = CliRunner().invoke(cli.app, words[1:])
    assert result.exit_code == 0, result.output


def train(words):
    metric, added, _ = TRAINING[words[2].split(".")[-1]]
    if "--backbone" in words:  # a new head, of usual size
        added = added | {"head_overrides": '{"hidden_size": 16}'}
    options = [word for name, value in (SHORT_RUN | added).items() for word in (f"--{name}", str(value))]
    run_module(*words[2:], *options)
    assert metric in json.loads(Path(words[words.index("--output_dir") + 1], "all_results.json").read_text())


def train_from_json(words):
    metric, _, replaced = TRAINING[words[2].split(".")[-1]]
    arguments = json.loads((REPOSITORY / words[-1]).read_text()) | SHORT_JSON | replaced
    if "model_name_or_path" in arguments:
        arguments["model_name_or_path"] = "official"
    Path("short.json").write_text(json.dumps(arguments))
    run_module(*words[2:-1], "short.json")
    assert metric in json.loads(Path(arguments["output_dir"], "all_results.json").read_text())


def plan_conversion(words):
    """The file has gigabytes: all its keys are accounted for, nothing is written."""
    write_without_data(words[words.index("--checkpoint") + 1], Path("large.pth"))
    run_module(*words[2:], "--source", "large.pth", "--dry-run")


def convert_and_verify(words):
    run_module(*words[2:5], "--output-dir", words[-1])
    run_module(*words[2:])


def extract_backbone(words):
    shutil.rmtree(words[-1])  # the other commands' one
    run_module(*words[2:], "--config", "bev_fields.json")
    assert Path(words[-1], "model.safetensors").is_file()


def needs_a_network(words):
    """Its own test has a stand-in of the Hub."""
    assert importlib.import_module(words[2]).main(words[3:]) == 1


def show_camera_features(words):
    run_module(*words[2:], "--cameras", "2", "--height", "64", "--width", "96", "--runs", "1")


def run(words):
    run_module(*words[2:])


def export(words):
    run_module(f"{words[2]}.__main__", *words[3:])
    assert {"onnxruntime", "openvino"} <= json.loads(Path(words[4], "export.json").read_text())["versions"].keys()


def run_with_other_packages(words):
    """Those that the quick tests do not have: FAISS, Ray."""
    run_module(*words[2:])


def measure_recall(words):
    run_module(*words[2:4], "outputs/my_model", "--data-dir", "images")


def search(words):
    """In an index that the command before has built."""
    build = ["images/train", "--model", "outputs/my_model", "--index", words[words.index("--index") + 1]]
    run_module("examples.image_search.build_index", *build)
    run_module(*words[2:])
    assert Path(words[-1]).is_file()


def index_features(words):
    """Of a table that the command before has written."""
    build = ["images/train", "--model", "outputs/my_model", "--index", "other"]
    run_module("examples.image_search.build_index", *build)
    shutil.copytree("other/features", words[words.index("--features") + 1])
    run_module(*words[2:])


def has_arguments_of_predict(words):
    from examples.large_scale import predict

    module, *arguments = words[words.index("-m") + 1 :]
    assert module == predict.__name__ and predict.parse_arguments(arguments).num_gpus == 1


def names_files_and_module(words):
    """Of a Slurm job."""
    script = words.index("examples/slurm/train.sbatch")
    config = [word.split("=")[1] for word in words if word.startswith("ACCELERATE_CONFIG=")]
    assert all((REPOSITORY / file).is_file() for file in [words[script], *config])
    assert words[script + 1] == "-m" and importlib.util.find_spec(words[script + 2])


NEEDS_OTHER_PACKAGES = [run_with_other_packages, measure_recall, search, index_features, has_arguments_of_predict]
CONVERT = r"python -m conversion\.convert_internimage_to_hf"
# How commands are tested: the first entry that a command begins with counts.
HOW = {
    r"make ": is_run_by_ci,
    r"python -m examples\.web_demo\.app ": has_page_arguments,
    r"export ": is_not_run,
    r"git clone ": is_for_a_public_address,
    r"pip install ": install,
    r"internimage ": on_the_command_line,
    r".*/digits\.json$": is_run_by_make_demo,
    r"accelerate launch -m examples\.image_classification\.evaluate_accuracy ": has_imagenet_arguments,
    r"accelerate launch --config_file ": has_eight_processes,
    r"python -m examples\.\w+\.run_\w+ .*\.json$": train_from_json,
    r"python -m examples\.\w+\.run_\w+ ": train,
    r"python -m examples\.image_search\.recall ": measure_recall,
    r"python -m examples\.image_search\.search ": search,
    r"python -m examples\.image_search\.build_index --features ": index_features,
    r"python -m examples\.(image_search|large_scale)\.": run_with_other_packages,
    r"ray job submit ": has_arguments_of_predict,
    r"(\w+=\S+ )?sbatch ": names_files_and_module,
    rf"{CONVERT} --checkpoint (internimage_[lh]|flash)_": plan_conversion,
    rf"{CONVERT} --backbone-only ": extract_backbone,
    r"python -m conversion\.check_official ": needs_a_network,
    r"python -m examples\.multi_camera\.": show_camera_features,
    rf"{CONVERT} .*--verify ": convert_and_verify,
    r"python -m modeling_internimage\.export ": export,
    r"python -m ": run,
}


def blocks(language: str) -> list:
    """Every fenced code block in a language, called after its README. What needs its own process is slow."""
    return [
        pytest.param(block, id=f"{readme}-{idx}", marks=[pytest.mark.slow] if REGISTERS in block else [])
        for readme in READMES
        for idx, block in enumerate(re.findall(rf"```{language}\n(.*?)```", (REPOSITORY / readme).read_text(), re.S))
    ]


def how_to_test(command: str) -> Callable:
    how = next((function for pattern, function in HOW.items() if re.match(pattern, command)), None)
    assert how is not None, f"Add to HOW how this command is tested: {command}"
    return how


def commands() -> list[str]:
    """Once each."""
    text = "\n".join(param.values[0] for param in blocks("bash"))
    lines = (re.sub(r"(^|\s+)#.*", "", line).strip() for line in text.replace("\\\n", " ").splitlines())
    return list(dict.fromkeys(filter(None, lines)))


REDUCED = REDUCED_MODELS["tiny_t"]
TINY = {"embed_dim": 16, "depths": [1, 1, 2, 1], "num_groups": [1, 2, 4, 8]}
STAGES = ["stage1", "stage2", "stage3", "stage4"]


@pytest.fixture(scope="module")
def stock(photographs, tmp_path_factory):
    """A folder with everything the commands name: images, data sets, models."""
    folder = tmp_path_factory.mktemp("stock")
    Image.fromarray(photographs[0]).save(folder / "photo.jpg")
    (folder / "photos").mkdir()
    Image.fromarray(photographs[1]).save(folder / "photos" / "coffee.jpg")
    images = []
    for split in ("train", "validation"):
        for name, photograph in zip(("astronaut", "coffee"), photographs):
            (folder / "images" / split / name).mkdir(parents=True)
            for idx in range(4):
                images.append(Image.fromarray(photograph[idx * 60 : idx * 60 + 200, :300]))
                images[-1].save(folder / "images" / split / name / f"{idx}.jpg")
    features = {"image": datasets.Image(), "labels": datasets.ClassLabel(names=["healthy", "rust"])}
    write_table(folder / "beans", features, {"image": images, "labels": [idx % 2 for idx in range(len(images))]})
    for name, labels in (
        ("digits", list("0123456789")),
        ("my_model", ["astronaut", "coffee"]),
        ("photographs_model", ["astronaut", "cat"]),
    ):
        model = InternImageForImageClassification(InternImageConfig(**TINY, image_size=32, **named(labels)))
        randomize(model).save_pretrained(folder / "outputs" / name)
        modeling_internimage.create_image_processor(32).save_pretrained(folder / "outputs" / name)
    flash = InternImageForImageClassification(InternImageConfig(**TINY, core_op="DCNv4"))
    randomize(flash).save_pretrained(folder / "flash_internimage_t")
    write_official_checkpoint(folder / "official", REDUCED["config"], REDUCED["keys"], seed=0)
    torch.save({"model": original_state_dict(REDUCED["keys"], seed=0)}, folder / "ckpt_epoch_99.pth")
    settings = {"CHANNELS": 16, "DEPTHS": REDUCED["config"]["depths"], "GROUPS": REDUCED["config"]["groups"]}
    (folder / "my.yaml").write_text(json.dumps({"MODEL": {"INTERN_IMAGE": settings}}))
    backbone = {f"img_backbone.{key}": tensor for key, tensor in original_state_dict(REDUCED["keys"], seed=0).items()}
    torch.save({"state_dict": backbone | {"pts_bbox_head.bias": torch.zeros(1)}}, folder / "bev.pth")
    InternImageBackbone(InternImageConfig(**TINY)).save_pretrained(folder / "backbone")
    (folder / "bev_fields.json").write_text('{"offset_scale": 1.0}')  # its shapes are not official ones
    facts = read_facts("mask_rcnn_t_like.json")["mask_rcnn_t_like"]
    pipeline = json.loads(gzip.decompress((DETECTION / "manifests.json.gz").read_bytes()))[
        "mask_rcnn_internimage_t_fpn_1x_coco"
    ]["config"]["test_pipeline"]
    (folder / "my_mask_rcnn.py").write_text(f"model = {facts['model']!r}\ntest_pipeline = {pipeline!r}\n")
    torch.save({"state_dict": original_state_dict(facts["keys"], seed=0)}, folder / "epoch_12.pth")
    add_segmentation(folder, images)
    add_detection(folder, images)
    return folder


@pytest.fixture
def workplace(stock, tmp_path, monkeypatch):
    """A copy of it, and the scripts. InternImage-T is a reduced model, which the Hub has."""
    shutil.copytree(stock, tmp_path, dirs_exist_ok=True)
    (tmp_path / "examples").symlink_to(REPOSITORY / "examples")
    monkeypatch.chdir(tmp_path)
    record = CHECKPOINTS["internimage_t_1k_224"]
    architecture = {name: REDUCED["config"][name] for name in ("depths", "groups", "channels")}
    record = dataclasses.replace(record, architecture=architecture, num_labels=10, labels=None)
    monkeypatch.setitem(CHECKPOINTS, record.name, record)
    download = create_autospec(hf_hub_download, return_value=str(tmp_path / "ckpt_epoch_99.pth"))
    monkeypatch.setattr(hub, "hf_hub_download", download)
    return tmp_path


def named(labels: list[str]) -> dict:
    return {"id2label": dict(enumerate(labels)), "label2id": {label: idx for idx, label in enumerate(labels)}}


def write_table(folder: Path, features: dict, rows: dict):
    """A dataset that `load_dataset` finds in `folder`."""
    folder.mkdir()
    table = datasets.Dataset.from_dict(rows, features=datasets.Features(features))
    table.to_parquet(folder / "train.parquet")


def add_detection(folder: Path, images: list[Image.Image]):
    """What the commands for detection name: eight photographs, files in COCO's format, a data set, three models."""
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
    features = {
        "bbox": datasets.List(datasets.List(datasets.Value("float32"))),
        "category": datasets.List(datasets.ClassLabel(names=["mask", "glove"])),
    }
    rows = {"image": images[:8], "objects": [objects] * 8}
    write_table(folder / "medical", {"image": datasets.Image(), "objects": features}, rows)
    for name, classes in (
        ("outputs/objects_model", list(photographs_with_objects.CATEGORIES)),
        ("outputs/my_detector", ["cup", "cat"]),
        ("mask_rcnn_internimage_t_fpn_1x_coco", ["cup", "cat", "dog"]),
    ):
        config = MaskRCNNConfig(
            backbone_config=InternImageConfig(**TINY, out_features=STAGES),
            hidden_size=16, box_head_hidden_size=16, max_detections=10, **named(classes),
        )  # fmt: skip
        randomize(MaskRCNNForObjectDetection(config)).save_pretrained(folder / name)
        size = {"shortest_edge": 64, "longest_edge": 128}
        modeling_internimage.MaskRCNNImageProcessor(size=size).save_pretrained(folder / name)
    config = DinoDetrConfig(
        backbone_config=InternImageConfig(**TINY, out_features=STAGES[1:]), d_model=64, encoder_layers=1,
        decoder_layers=2, encoder_ffn_dim=32, decoder_ffn_dim=32, num_queries=20,
        **named(list(photographs_with_objects.CATEGORIES)),
    )  # fmt: skip
    randomize(DinoDetrForObjectDetection(config)).save_pretrained(folder / "outputs" / "objects_dino")
    modeling_internimage.DinoDetrImageProcessor(size=size).save_pretrained(folder / "outputs" / "objects_dino")


def add_segmentation(folder: Path, images: list[Image.Image]):
    """What the commands for segmentation name: images with maps in folders and as a data set, coins, models."""
    coins.write_folders(folder / "outputs" / "coins")
    (folder / "classes.json").write_text('{"dark": [0, 0, 90], "bright": [255, 200, 0]}')
    for split in ("train", "validation"):
        for name in ("images", "maps"):
            (folder / "scenes" / split / name).mkdir(parents=True)
        for idx, image in enumerate(images[:4]):
            image.save(folder / "scenes" / split / "images" / f"{idx}.jpg")
            labels = image.convert("L").point(lambda value: int(value > 100))
            labels.save(folder / "scenes" / split / "maps" / f"{idx}.png")
    files = {"image": (folder / "scenes" / "train" / "images").iterdir(),
             "annotation": (folder / "scenes" / "train" / "maps").iterdir()}  # fmt: skip
    rows = {column: sorted(map(str, paths)) for column, paths in files.items()}
    write_table(folder / "streets", dict.fromkeys(files, datasets.Image()), rows)
    config = UperNetConfig(
        backbone_config=InternImageConfig(**TINY, out_features=STAGES),
        hidden_size=8, auxiliary_channels=8, auxiliary_in_channels=64, **named(["dark", "bright"]),
    )  # fmt: skip
    image_processor = modeling_internimage.InternImageSegmentationImageProcessor(
        size={"shortest_edge": 64, "longest_edge": 256}, size_divisor=32
    )
    for name in ("outputs/coins_model", "outputs/my_segmenter", "upernet_internimage_t_512_160k_ade20k"):
        randomize(UperNetForSemanticSegmentation(config)).save_pretrained(folder / name)
        image_processor.save_pretrained(folder / name)
    model = Mask2FormerForUniversalSegmentation(
        Mask2FormerConfig(
            backbone_config=InternImageConfig(**TINY, out_features=STAGES), feature_size=32, mask_feature_size=32,
            hidden_dim=32, encoder_layers=1, decoder_layers=2, num_queries=5, **named(["dark", "bright"]),
        )
    )  # fmt: skip
    image_processor = modeling_internimage.InternImageMask2FormerImageProcessor(size={"height": 64, "width": 64})
    randomize(model).save_pretrained(folder / "outputs" / "coins_mask2former")
    image_processor.save_pretrained(folder / "outputs" / "coins_mask2former")


@pytest.mark.parametrize("block", blocks("python"))
def test_python_blocks(block, workplace):
    code = block.replace(OFFICIAL_REPOSITORY, "official")
    if REGISTERS in code:  # for good: in a process of its own
        subprocess.run([sys.executable, "-c", code], check=True)
        assert (workplace / "my-internimage" / "modeling_internimage.py").is_file()
    else:
        exec(code, {"__name__": "__main__"})


def kind_of_test(command: str):
    how = how_to_test(command)
    return how if how in NEEDS_OTHER_PACKAGES else (how, *command.split()[:3])


@pytest.mark.parametrize(
    "command",
    first_quick(commands(), kind_of_test, slow_kinds=NEEDS_OTHER_PACKAGES),
    ids=lambda command: command[:100],
)
def test_commands(command, workplace):
    how_to_test(command)(["official" if word == OFFICIAL_REPOSITORY else word for word in shlex.split(command)])


@pytest.mark.parametrize(
    "file",
    [file for file in sorted((REPOSITORY / "examples").glob("*/*.json")) if "do_train" in file.read_text()],
    ids=lambda file: file.stem,
)
def test_interrupted_runs_continue(file):
    """As the READMEs say: what they train saves checkpoints on the way."""
    arguments = json.loads(file.read_text())
    if arguments["save_strategy"] != "epoch":
        assert arguments["save_strategy"] == "steps"
        assert arguments["save_steps"] == arguments["eval_steps"]
        assert arguments["save_steps"] < arguments.get("max_steps", float("inf")) / 2


def test_digits_table(workplace, capsys):
    """The table of the demo says what the pipeline says."""
    run_module("examples.image_classification.classify_digits", "--model", "outputs/digits", "--count", "7")
    output = capsys.readouterr().out
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


TABLES = [f"benchmark_cpu{kind}" for kind in ("", "_kernel", "_kernel_epyc", "_flash")]
TABLES += [f"convnext_{kind}" for kind in ("t_cpu", "t_cpu_800x1216", "b_cpu")]
TABLES += [f"convnext_{kind}" for kind in ("t_cpu_bf16", "t_cpu_bf16_800x1216", "b_cpu_bf16")]
TABLES += ["profile_cpu", "training_step_cpu", "process_memory"]


@pytest.mark.parametrize("name", TABLES)
def test_benchmark_tables_are_the_recorded_ones(name):
    result = json.loads((REPOSITORY / "examples" / "results" / f"{name}.json").read_text())
    text = table(result)
    assert text in (REPOSITORY / "examples" / "results" / "README.md").read_text()
    if name == "convnext_t_cpu":
        assert text in (REPOSITORY / "README.md").read_text()
