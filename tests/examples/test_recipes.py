# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""Every block of the page with recipes for other people's tools runs, and what it leaves is right."""

import json
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from test_readme import OFFICIAL_REPOSITORY, STAGES, TINY, how_to_test, named
from testing_utils import REDUCED_MODELS, REPOSITORY, randomize, write_official_checkpoint
from transformers import AutoImageProcessor, AutoModelForImageClassification, AutoModelForObjectDetection

import modeling_internimage
from examples.object_detection.detection_data import read_coco
from modeling_internimage import (
    DinoDetrConfig,
    DinoDetrForObjectDetection,
    InternImageConfig,
    MaskRCNNConfig,
    MaskRCNNForObjectDetection,
)


PAGE = (REPOSITORY / "examples" / "recipes" / "README.md").read_text()
EXPORTS = REPOSITORY / "tests" / "fixtures" / "annotation_tools"
NAMES = ["cup", "face", "cat"]
SIZE = (300, 200)


def sections() -> dict[str, str]:
    """Text of the sections, by the beginning of their titles, such as "SAHI"."""
    parts = re.split(r"^## (.*)\n", PAGE, flags=re.M)
    return {re.split(r"[:,]| data", title)[0]: text for title, text in zip(parts[1::2], parts[2::2])}


def write_detectors():
    size = {"shortest_edge": 64, "longest_edge": 128}
    config = MaskRCNNConfig(
        backbone_config=InternImageConfig(**TINY, out_features=STAGES),
        hidden_size=16, box_head_hidden_size=16, max_detections=10, **named(NAMES),
    )  # fmt: skip
    torch.manual_seed(0)
    model = randomize(MaskRCNNForObjectDetection(config))
    for name in ("mask_rcnn_internimage_t_fpn_1x_coco", "outputs/my_detector"):
        model.save_pretrained(name)
        modeling_internimage.MaskRCNNImageProcessor(size=size).save_pretrained(name)
    config = DinoDetrConfig(
        backbone_config=InternImageConfig(**TINY, out_features=STAGES[1:]), d_model=64, encoder_layers=1,
        decoder_layers=2, encoder_ffn_dim=32, decoder_ffn_dim=32, num_queries=20, **named(NAMES),
    )  # fmt: skip
    randomize(DinoDetrForObjectDetection(config)).save_pretrained("dino_4scale_internimage_t_1x_coco")
    modeling_internimage.DinoDetrImageProcessor(size=size).save_pretrained("dino_4scale_internimage_t_1x_coco")


def write_data(pictures: dict[str, Image.Image]):
    """What the page names: pictures, a folder for each class, files of annotation tools, a video."""
    pictures["coffee"].save("photo.jpg")
    pictures["coffee"].resize((900, 600)).save("large.jpg")
    for split in ("train", "validation"):
        for name, picture in pictures.items():
            folder = Path("images", split, name)
            folder.mkdir(parents=True)
            for idx in range(4):
                picture.crop((20 * idx, 0, 20 * idx + 100, 100)).save(folder / f"{idx}.jpg")
    shutil.copytree(EXPORTS, ".", dirs_exist_ok=True)
    for file in Path().rglob("*.json"):
        content = json.loads(file.read_text())
        for entry in content["images"] if isinstance(content, dict) and "images" in content else []:
            folder = Path("cvat/images") if file.parts[0] == "cvat" else file.parent
            path = folder / entry["file_name"]
            path.parent.mkdir(parents=True, exist_ok=True)
            next(picture for name, picture in pictures.items() if name in path.name).save(path)
    shutil.copytree("cvat/images", "scenes/images")
    shutil.copy("cvat/annotations/instances_default.json", "scenes/validation.json")
    shutil.copytree("cvat/images", "yolo/images")
    Path("yolo/labels").mkdir()
    Path("yolo/data.yaml").write_text("names: [cup, face]\nnc: 2\n")
    Path("yolo/labels/astronaut.txt").write_text("1 0.5 0.25 0.2 0.3\n")
    Path("yolo/labels/coffee.txt").write_text("0 0.5 0.5 0.4 0.6\n0 0.1 0.2 0.1 0.2\n")


@pytest.fixture
def workplace(photographs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arrays = zip(("astronaut", "coffee"), photographs)
    write_data({name: Image.fromarray(array[: SIZE[1], : SIZE[0]]) for name, array in arrays})
    write_detectors()
    write_truth()
    reduced = REDUCED_MODELS["tiny_t"]
    write_official_checkpoint(tmp_path / "official", reduced["config"], reduced["keys"], seed=0)
    file = tmp_path / "official" / "preprocessor_config.json"
    file.write_text(file.read_text().replace("224", "64"))
    write_wide_classifier()
    return tmp_path


def write_wide_classifier():
    """With multiples of 64 channels, which bitsandbytes needs on CPUs with AVX512-BF16."""
    torch.manual_seed(0)
    config = modeling_internimage.InternImageConfig(embed_dim=64, depths=[1, 1], num_groups=[2, 4], num_labels=10)
    randomize(AutoModelForImageClassification.from_config(config)).save_pretrained("wide")
    AutoImageProcessor.from_pretrained("official").save_pretrained("wide")


def write_truth():
    """Objects of the scenes at which the untrained detector has an average precision between 0 and 1."""
    model = AutoModelForObjectDetection.from_pretrained("outputs/my_detector")
    image_processor = AutoImageProcessor.from_pretrained("outputs/my_detector")
    file = Path("scenes/validation.json")
    content = json.loads(file.read_text()) | {"annotations": []}
    content["categories"] = [{"id": 3 * idx + 1, "name": name} for idx, name in enumerate(NAMES)]
    for entry in content["images"]:
        inputs = image_processor(Image.open(Path("scenes/images", entry["file_name"])), return_tensors="pt")
        with torch.no_grad():
            outputs = model(**inputs)
        (found,) = image_processor.post_process_object_detection(outputs, threshold=0.0, target_sizes=[SIZE[::-1]])
        for (left, top, right, bottom), label in list(zip(found["boxes"].tolist(), found["labels"].tolist()))[1::2]:
            width, height = right - left, bottom - top
            box = {"bbox": [left + 0.12 * width, top, 0.88 * width, height], "area": 0.88 * width * height}
            annotation = {"id": len(content["annotations"]) + 1, "image_id": entry["id"], "iscrowd": 0}
            content["annotations"].append(annotation | box | {"category_id": 3 * label + 1})
    file.write_text(json.dumps(content))


def original_logits(checkpoint: str = "official") -> torch.Tensor:
    model = AutoModelForImageClassification.from_pretrained(checkpoint)
    inputs = AutoImageProcessor.from_pretrained(checkpoint)(Image.open("photo.jpg"), return_tensors="pt")
    with torch.no_grad():
        return model(**inputs).logits


def relative_difference(actual: torch.Tensor, expected: torch.Tensor) -> float:
    return ((actual - expected).norm() / expected.norm()).item()


def check_supervision(names):
    detections = names["detect"](names["image"])
    assert 0 < len(detections) <= 10 and detections.mask.shape[1:] == SIZE[::-1]
    for mask, (left, top, right, bottom) in zip(detections.mask, detections.xyxy):
        rows, columns = np.nonzero(mask)
        assert len(rows) == 0 or (left - 1 <= columns.min() and columns.max() <= right + 1)
        assert len(rows) == 0 or (top - 1 <= rows.min() and rows.max() <= bottom + 1)
    assert (names["drawn"] != names["image"]).any() and Image.open("detections.png").size == SIZE
    found = names["slicer"](names["large"])
    assert len(found) and found.xyxy.max() > 640  # also in the last windows
    assert names["sv"].VideoInfo.from_video_path("tracked.mp4").total_frames == 6
    assert names["tracker"].update(names["detect"](names["image"])).tracker_id.max() >= 0


def check_sahi(names):
    assert {entry["category_name"] for entry in names["annotations"]} <= set(NAMES) and names["annotations"]
    scores = [prediction.score.value for prediction in names["result"].object_prediction_list]
    assert scores and min(scores) >= 0.3
    dino = names["dino"]
    dino.perform_inference(np.array(Image.open("photo.jpg")))
    outputs = dino.original_predictions
    size = [SIZE[::-1]]
    ours = dino.processor.post_process_object_detection(outputs, threshold=0.3, target_sizes=size)[0]
    theirs, _, _ = dino.get_valid_predictions(outputs.logits[0], outputs.pred_boxes[0])
    assert theirs.max().item() == pytest.approx(ours["scores"].max().item())


def check_torchao(names):
    assert 0 < relative_difference(names["logits"], original_logits()) < 0.1
    reloaded = AutoModelForImageClassification.from_pretrained("internimage_t_int8")
    inputs = names["image_processor"](Image.open("photo.jpg"), return_tensors="pt")
    with torch.no_grad():
        torch.testing.assert_close(reloaded(**inputs).logits, names["logits"])


def check_bitsandbytes(names):
    """The logits are those of a model whose weights are rounded to 4 bits."""
    from bitsandbytes.functional import dequantize_4bit
    from bitsandbytes.nn import Linear4bit

    rounded = AutoModelForImageClassification.from_pretrained("wide")
    assert names["model"].get_memory_footprint() < 0.5 * rounded.get_memory_footprint()
    quantized = AutoModelForImageClassification.from_pretrained(
        "wide", quantization_config=names["quantization_config"], device_map="cpu"
    )  # before a forward pass, in which bitsandbytes may pack the weights
    for name, module in quantized.named_modules():
        if isinstance(module, Linear4bit):
            weight = dequantize_4bit(module.weight.data, module.weight.quant_state)
            rounded.get_submodule(name).weight.data.copy_(weight)
    inputs = names["image_processor"](Image.open("photo.jpg"), return_tensors="pt")
    with torch.no_grad():
        assert relative_difference(names["logits"].float(), rounded(**inputs).logits) < 1e-2
    assert relative_difference(names["logits"].float(), original_logits("wide")) > 1e-2


def check_peft(names):
    """The merged model is the trained one, although the file of the adapter is a fraction of it."""
    batch = names["collate"]([names["images"]["validation"][idx] for idx in range(2)])
    models = [names["model"].eval(), names["merged"].eval()]
    models += [names["load_classifier"]().eval(), AutoModelForImageClassification.from_pretrained("outputs/merged")]
    with torch.no_grad():
        trained, merged, untrained, reloaded = (model(batch["pixel_values"]).logits for model in models)
    torch.testing.assert_close(merged, trained, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(reloaded, trained, rtol=1e-3, atol=1e-3)
    assert relative_difference(untrained, trained) > 0.01


def check_captum(names):
    assert names["coarse"].shape == (1, 1, 2, 2) and names["heat_map"].shape == (64, 64)
    pixel_values, target = names["pixel_values"], names["target"]
    with torch.no_grad():
        rise = names["logits_of"](pixel_values) - names["logits_of"](torch.zeros_like(pixel_values))
    # What integrated gradients promise.
    torch.testing.assert_close(names["of_pixels"].sum().item(), rise[0, target].item(), rtol=0.1, atol=0.02)


def check_optuna(names):
    assert 1e-5 <= names["best"].hyperparameters["learning_rate"] <= 1e-3 and 0 <= names["best"].objective <= 1


def check_torchmetrics(names):
    """The same average precision as the script's, which rounds."""
    ours = json.loads(Path("outputs/ap.json").read_text())
    assert 5 < ours["bbox_map"] < 95  # per cent
    assert 100 * names["results"]["map"].item() == pytest.approx(ours["bbox_map"], abs=0.1)


def check_yolo(names):
    rows, categories = read_coco("yolo/images", "yolo/annotations.json", "--train_annotations")
    boxes = {Path(row["image"]["path"]).stem: json.loads(row["objects"]) for row in rows}
    assert list(categories.values()) == ["cup", "face"] and len(boxes["coffee"]) == 2
    (face,) = boxes["astronaut"]
    assert categories[face["category_id"]] == "face" and face["bbox"] == pytest.approx([120, 20, 60, 60], abs=1)


def check_exports(names):
    for name in ("label_studio", "cvat", "roboflow"):
        config = json.loads(Path("outputs", f"{name}_detector", "config.json").read_text())
        assert sorted(config["id2label"].values())[:2] == ["cup", "face"]


CHECKS = {
    "supervision": check_supervision,
    "SAHI": check_sahi,
    "torchao": check_torchao,
    "bitsandbytes": check_bitsandbytes,
    "PEFT": check_peft,
    "captum": check_captum,
    "optuna": check_optuna,
    "torchmetrics": check_torchmetrics,
    "YOLO": check_yolo,
    "Label Studio": check_exports,
}


@pytest.mark.slow
@pytest.mark.parametrize("section", CHECKS)
def test_recipe(section, workplace):
    names = {"__name__": "__main__"}
    for language, block in re.findall(r"```(python|bash)\n(.*?)```", sections()[section], re.S):
        block = block.replace(OFFICIAL_REPOSITORY, "wide" if section.startswith("bitsandbytes") else "official")
        if language == "python":
            if "from trackers" in block:
                write_video(names["image"])
            exec(block, names)
        else:
            for command in block.replace("\\\n", " ").strip().splitlines():
                how_to_test(command)(shlex.split(command))
    CHECKS[section](names)


def test_every_section_with_code_is_checked():
    assert {title for title, text in sections().items() if "```" in text} == set(CHECKS)


def write_video(image: np.ndarray):
    """Six frames that move over a picture."""
    import supervision as sv

    with sv.VideoSink("video.mp4", sv.VideoInfo(width=240, height=160, fps=25)) as sink:
        for step in range(6):
            frame = image[2 * step : 2 * step + 160, 3 * step : 3 * step + 240, ::-1]
            sink.write_frame(np.ascontiguousarray(frame))
