# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""Training Mask2Former with the script for segmentation: masks, losses, checkpoints, and the pipeline."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from processes import run_in_two_processes
from testing_utils import REPOSITORY, randomize, run_short_training
from transformers import (
    AutoImageProcessor,
    AutoModelForUniversalSegmentation,
    Mask2FormerConfig,
    UperNetConfig,
    UperNetForSemanticSegmentation,
    pipeline,
)

from conversion.checkpoints import CHECKPOINTS
from examples.semantic_segmentation import run_semantic_segmentation as script
from examples.semantic_segmentation import segmentation_data as data
from examples.semantic_segmentation.mask2former import Mask2FormerLossOfAllProcesses, class_masks
from modeling_internimage import (
    InternImageForImageClassification,
    InternImageMask2FormerImageProcessor,
    InternImageSegmentationImageProcessor,
    semantic_scores,
)


HEAD = {
    "feature_size": 32, "mask_feature_size": 32, "hidden_dim": 32, "num_attention_heads": 2, "encoder_layers": 1,
    "encoder_feedforward_dim": 16, "decoder_layers": 2, "dim_feedforward": 16, "num_queries": 5,
    "train_num_points": 64,
}  # fmt: skip
BACKBONE = {"embed_dim": 16, "depths": [1, 1, 1, 1], "num_groups": [1, 2, 4, 8]}
STAGES = ["stage1", "stage2", "stage3", "stage4"]


@pytest.fixture(scope="module")
def scenes(photographs, tmp_path_factory):
    """Crops of a photograph, of different sizes, with three classes of brightness; one has no labelled pixel."""
    folder, random = tmp_path_factory.mktemp("scenes"), np.random.default_rng(0)
    for split, count in (("train", 5), ("validation", 3)):
        for name in ("images", "maps"):
            (folder / split / name).mkdir(parents=True)
        for idx in range(count):
            (top, left), (height, width) = random.integers(0, 300, size=2), random.integers(50, 80, size=2)
            crop = photographs[0][top : top + height, left : left + width]
            Image.fromarray(crop).save(folder / split / "images" / f"{idx}.png")
            labels = np.digitize(crop.mean(axis=2), [60, 150]).astype(np.uint8)
            labels[: None if idx == 1 else 5] = 255
            Image.fromarray(labels).save(folder / split / "maps" / f"{idx}.png")
    (folder / "classes.json").write_text('["dark", "medium", "bright"]')
    return folder


@pytest.fixture(scope="module")
def checkpoint(scenes, tmp_path_factory):
    """A small Mask2Former with random weights and its image processor, as the script makes them."""
    model_args = script.ModelArguments(config_overrides=BACKBONE, head="mask2former", head_overrides=HEAD)
    data_args = script.DataArguments(train_dir="x", classes_file=str(scenes / "classes.json"), image_size=48)
    folder = tmp_path_factory.mktemp("checkpoint")
    model, image_processor = script.load_model(model_args, data_args)
    randomize(model).save_pretrained(folder)
    image_processor.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def classifier(tiny_config, tmp_path):
    model = randomize(InternImageForImageClassification(tiny_config()))
    model.save_pretrained(tmp_path / "classifier")
    return model, str(tmp_path / "classifier")


def arguments(scenes, output_dir, **kwargs):
    """For a new head, or without one for `model_name_or_path`."""
    head = {} if "model_name_or_path" in kwargs else {"head": "mask2former", "head_overrides": HEAD, "image_size": 48}
    return {
        "train_dir": str(scenes / "train"),
        "validation_dir": str(scenes / "validation"),
        "classes_file": str(scenes / "classes.json"),
        "output_dir": str(output_dir),
        **head,
        **kwargs,
    }


def run(scenes, output_dir, **kwargs):
    run_short_training(script, output_dir.with_suffix(".json"), **arguments(scenes, output_dir, **kwargs))


def logged(output_dir, key: str) -> list[float]:
    log = json.loads((output_dir / "trainer_state.json").read_text())["log_history"]
    return [entry[key] for entry in log if key in entry]


def test_class_masks():
    """One mask for each class of an image; ignored pixels are in none."""
    labels = torch.tensor([[[0, 2], [255, 2]], [[255, 255], [255, 255]]])
    masks = class_masks(labels, ignore_index=255)
    assert [classes.tolist() for classes in masks["class_labels"]] == [[0, 2], []]
    assert masks["mask_labels"][0].tolist() == [[[1, 0], [0, 0]], [[0, 1], [0, 1]]]
    assert masks["mask_labels"][1].shape == (0, 2, 2) and masks["mask_labels"][1].dtype == torch.float32


def test_train_and_resume(classifier, scenes, tmp_path):
    """Five images in steps of two: the one that is left over is trained. A resumed run has the same losses."""
    kwargs = {"backbone": classifier[1], "gradient_checkpointing": True, "layer_decay": 0.9, "max_grad_norm": 0.1,
              "lr_scheduler_type": "constant"}  # fmt: skip
    run(scenes, tmp_path / "whole", **kwargs, num_train_epochs=2)
    for epochs in (1, 2):
        run(scenes, tmp_path / "parts", **kwargs, num_train_epochs=epochs)
    losses = logged(tmp_path / "whole", "loss")
    assert len(losses) == 6 and logged(tmp_path / "parts", "loss") == losses
    assert logged(tmp_path / "parts", "eval_mean_iou") == logged(tmp_path / "whole", "eval_mean_iou")
    config = json.loads((tmp_path / "parts" / "config.json").read_text())
    assert [config[f"{name}_weight"] for name in ("class", "mask", "dice", "no_object")] == [2.0, 5.0, 5.0, 0.1]


def test_evaluation_is_the_official_one(checkpoint, scenes, tmp_path):
    """The scores of the classes, enlarged to the input: against one loop over the images."""
    model = AutoModelForUniversalSegmentation.from_pretrained(checkpoint)
    image_processor = AutoImageProcessor.from_pretrained(checkpoint)
    assert type(image_processor) is InternImageMask2FormerImageProcessor
    run(scenes, tmp_path / "evaluated", model_name_or_path=checkpoint, do_train=False, per_device_eval_batch_size=1)
    hits, either = np.zeros(3), np.zeros(3)
    for idx in range(3):
        image = Image.open(scenes / "validation" / "images" / f"{idx}.png")
        labels = np.array(Image.open(scenes / "validation" / "maps" / f"{idx}.png"))
        inputs = image_processor(image, labels, return_tensors="pt")
        with torch.inference_mode():
            scores = semantic_scores(model(inputs["pixel_values"]), inputs["pixel_values"].shape[-2:])
        predictions, labels = scores[0].argmax(dim=0), inputs["labels"][0]
        for label in range(3):
            is_label, is_predicted = labels == label, (predictions == label) & (labels != 255)
            hits[label] += (is_label & is_predicted).sum()
            either[label] += (is_label | is_predicted).sum()
    results = json.loads((tmp_path / "evaluated" / "all_results.json").read_text())
    assert results["eval_mean_iou"] == pytest.approx((hits / either).mean()) and results["eval_loss"] > 0


@pytest.mark.parametrize("source", ["classifier", "UperNet"])
def test_a_new_head_keeps_the_backbone(source, classifier, scenes, tmp_path, tiny_config, caplog):
    model, folder = classifier
    backbone = model.internimage
    if source == "UperNet":
        config = UperNetConfig(backbone_config=tiny_config(out_features=STAGES), hidden_size=8, auxiliary_channels=8,
                               auxiliary_in_channels=64)  # fmt: skip
        model, folder = randomize(UperNetForSemanticSegmentation(config), seed=1), str(tmp_path / "upernet")
        model.save_pretrained(folder)
        backbone = model.backbone
    model_args = script.ModelArguments(backbone=folder, head="mask2former", head_overrides=HEAD, drop_path_rate=0.1)
    data_args = script.DataArguments(train_dir="x", classes_file=str(scenes / "classes.json"))
    new, _ = script.load_model(model_args, data_args)
    assert new.config.backbone_config.drop_path_rate == 0.1 and "not a supported model" not in caplog.text
    assert type(new.criterion) is Mask2FormerLossOfAllProcesses
    expected = backbone.state_dict()
    for name, tensor in new.model.pixel_level_module.encoder.state_dict().items():
        assert torch.equal(tensor, expected[name]), name


def test_a_checkpoint_gets_other_classes(checkpoint, scenes, tmp_path):
    """
    Also another value to ignore; in bfloat16, with one image per step, as there is no batch normalisation. The image
    processor is that of converted checkpoints.
    """
    shutil.copytree(scenes, tmp_path / "scenes")
    for file in (tmp_path / "scenes").glob("*/maps/*.png"):
        labels = np.array(Image.open(file))
        labels[labels == 255] = 77
        Image.fromarray(labels).save(file)
    (tmp_path / "scenes" / "classes.json").write_text('["dark", "medium", "bright", "never"]')
    model = str(shutil.copytree(checkpoint, tmp_path / "model"))
    InternImageSegmentationImageProcessor.from_pretrained(checkpoint).save_pretrained(model)
    run(tmp_path / "scenes", tmp_path / "output", model_name_or_path=model, per_device_train_batch_size=1,
        ignore_index=77, max_steps=2, eval_strategy="no", bf16=True, use_cpu=True)  # fmt: skip
    model = AutoModelForUniversalSegmentation.from_pretrained(tmp_path / "output")
    assert model.config.num_labels == 4 and model.config.ignore_value == 77
    image_processor = AutoImageProcessor.from_pretrained(tmp_path / "output")
    assert type(image_processor) is InternImageMask2FormerImageProcessor
    assert image_processor.size == {"shortest_edge": 48, "longest_edge": 192}
    assert model.criterion.empty_weight.tolist() == pytest.approx([1, 1, 1, 1, 0.1])
    assert 0 <= json.loads((tmp_path / "output" / "all_results.json").read_text())["eval_mean_iou"] <= 1


@pytest.mark.parametrize("subtask", ["semantic", "instance", "panoptic"])
def test_pipeline(subtask, checkpoint):
    """Two queries say that the left half is `dark` and the right half `bright`; the others say nothing."""
    segmenter = pipeline("image-segmentation", model=checkpoint)

    def say(module, inputs, outputs):
        logits = torch.full((1, 5, 4), -9.0)
        logits[:, :, 3], logits[:, 0, 0], logits[:, 1, 2] = 0.0, 9.0, 9.0
        masks = torch.full_like(outputs.masks_queries_logits, -9.0)
        half = masks.shape[-1] // 2
        masks[:, 0, :, :half], masks[:, 1, :, half:] = 9.0, 9.0
        outputs.class_queries_logits, outputs.masks_queries_logits = logits, masks
        return outputs

    segmenter.model.register_forward_hook(say)
    parts = {
        part["label"]: np.asarray(part["mask"]) > 0 for part in segmenter(Image.new("RGB", (96, 48)), subtask=subtask)
    }
    assert set(parts) == {"dark", "bright"}
    left = np.arange(96) < 48
    for label, expected in (("dark", left), ("bright", ~left)):
        assert parts[label].shape == (48, 96) and (parts[label] == expected).mean() > 0.97


# The authors' configurations: side of the crops, learning rate, clipping, steps, images per GPU, and whether 0 in
# label maps stands for unlabelled pixels.
AUTHORS = {
    "mask2former_internimage_h_896_80k_cocostuff2ade20k": (896, 1e-5, 0.1, 80_000, 1, True),
    "mask2former_internimage_h_896_80k_cocostuff164k": (896, 2e-5, 0.0, 80_000, 1, False),
    "mask2former_internimage_h_512_40k_cocostuff164k_to_10k": (512, 1e-5, 0.0, 40_000, 1, True),
    "mask2former_internimage_h_1024x1024_80k_mapillary2cityscapes": (1024, 1e-5, 0.1, 80_000, 2, False),
}


@pytest.mark.parametrize("name", AUTHORS)
def test_recipes_are_the_authors(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe = json.loads((script.RECIPES / f"{name}.json").read_text()) | {"bf16": False, "use_cpu": True}
    (tmp_path / "recipe.json").write_text(json.dumps(recipe))
    model_args, data_args, recipe, training = script.parse_head_arguments(
        script.ModelArguments, script.DataArguments, [str(tmp_path / "recipe.json")]
    )
    actual = (
        data_args.crop_size or data_args.image_size, training.learning_rate, training.max_grad_norm,
        training.max_steps, training.per_device_train_batch_size, data_args.do_reduce_labels,
    )  # fmt: skip
    assert actual == AUTHORS[name]
    assert (recipe.layer_decay, recipe.layer_counting, model_args.drop_path_rate) == (0.95, "downstream", 0.5)
    assert (training.warmup_steps, training.weight_decay) == (1500, 0.05)
    assert (training.lr_scheduler_type, training.lr_scheduler_kwargs) == ("polynomial", {"power": 1.0, "lr_end": 0.0})
    assert (data_args.min_resize_ratio, data_args.max_resize_ratio, data_args.max_class_fraction) == (0.5, 2.0, 0.75)
    start = CHECKPOINTS[(model_args.model_name_or_path or model_args.backbone).split("/")[1]]
    trained, config = CHECKPOINTS[name].config(), start.config()
    if model_args.backbone is not None:
        config = Mask2FormerConfig(backbone_config=trained.backbone_config, **model_args.head_overrides)
    head = ("hidden_dim", "feature_size", "mask_feature_size", "num_attention_heads", "num_queries", "encoder_layers",
            "decoder_layers", "encoder_feedforward_dim", "dim_feedforward")  # fmt: skip
    assert [getattr(config, field) for field in head] == [getattr(trained, field) for field in head]
    losses = (config.class_weight, config.mask_weight, config.dice_weight, config.no_object_weight)
    assert losses == (2.0, 5.0, 5.0, 0.1)
    assert (config.train_num_points, config.oversample_ratio, config.importance_sample_ratio) == (12544, 3.0, 0.75)
    labels = start.labels
    if data_args.classes_file is not None:
        labels, palette = data.read_classes(REPOSITORY / data_args.classes_file)
        assert palette == CHECKPOINTS[name].palette
    assert labels == CHECKPOINTS[name].labels


CODE = """
import torch
from accelerate import PartialState
from transformers import Mask2FormerConfig
from transformers.models.mask2former.modeling_mask2former import Mask2FormerLoss
from examples.semantic_segmentation import run_semantic_segmentation
from examples.semantic_segmentation.mask2former import Mask2FormerLossOfAllProcesses

run_semantic_segmentation.main([arguments[0]])
rank = PartialState().process_index
class_labels = [torch.zeros(3 if rank == 0 else 1, dtype=torch.int64), torch.zeros(0, dtype=torch.int64)]
for kind in (Mask2FormerLoss, Mask2FormerLossOfAllProcesses):
    loss = kind(Mask2FormerConfig(num_labels=4, num_queries=3), {})
    num_masks = loss.get_num_masks(class_labels, torch.device("cpu")).item()
    print(f"{kind.__name__} {rank}: {num_masks}\\n", end="")
"""


@pytest.mark.slow
def test_two_processes(classifier, scenes, tmp_path):
    """
    Masks are counted in all processes: (3 + 1) / 2. If this fails for `Mask2FormerLoss`, transformers does not divide
    by the number of processes twice any more, and `Mask2FormerLossOfAllProcesses` can go.
    """
    file = tmp_path / "arguments.json"
    values = arguments(scenes, tmp_path / "output", backbone=classifier[1], do_train=True, do_eval=True, max_steps=2,
                       per_device_train_batch_size=1, per_device_eval_batch_size=1, report_to="none",
                       disable_tqdm=True, logging_steps=1)  # fmt: skip
    file.write_text(json.dumps(values))
    printed = run_in_two_processes(tmp_path, CODE, str(file))
    for rank in (0, 1):
        assert f"Mask2FormerLossOfAllProcesses {rank}: 2.0" in printed and f"Mask2FormerLoss {rank}: 1.0" in printed
    assert 0 <= json.loads((tmp_path / "output" / "all_results.json").read_text())["eval_mean_iou"] <= 1
