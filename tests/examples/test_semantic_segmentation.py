# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""The training and the inference script for segmentation, end to end on small real images, and what they refuse."""

import json
import pickle
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from testing_utils import REPOSITORY, first_quick, randomize, run_short_training
from torchvision import tv_tensors
from transformers import (
    AutoModelForSemanticSegmentation,
    Mask2FormerConfig,
    Mask2FormerImageProcessor,
    SegformerConfig,
    SegformerForSemanticSegmentation,
    SegformerImageProcessor,
    pipeline,
)

from conversion.checkpoints import CHECKPOINTS
from examples.semantic_segmentation import coins, segment
from examples.semantic_segmentation import run_semantic_segmentation as script
from examples.semantic_segmentation import segmentation_batches as batches
from examples.semantic_segmentation import segmentation_data as data
from modeling_internimage import (
    InternImageForImageClassification,
    SegformerHeadConfig,
    SegformerHeadForSemanticSegmentation,
    segment_image,
)
from modeling_internimage.modeling_internimage import CORE_OPS, InternImageBatchNorm


ARCHITECTURE = '{"embed_dim": 16, "depths": [1, 1, 1, 1], "num_groups": [1, 2, 4, 8]}'
HEAD = '{"hidden_size": 8, "auxiliary_channels": 8}'
CLASSES = {"dark": [0, 0, 90], "medium": [0, 150, 0], "bright": [255, 200, 0]}
MAP = {"num_labels": 3, "ignore_index": 255, "do_reduce_labels": False}


@pytest.fixture
def scenes(photographs, tmp_path):
    """Crops of a photograph, of different sizes, with three classes of brightness."""
    random = np.random.default_rng(0)
    for split, count in (("train", 5), ("validation", 3)):
        for name in ("images", "maps"):
            (tmp_path / split / name).mkdir(parents=True)
        for idx in range(count):
            (top, left), (height, width) = random.integers(0, 300, size=2), random.integers(50, 80, size=2)
            crop = photographs[0][top : top + height, left : left + width]
            Image.fromarray(crop).save(tmp_path / split / "images" / f"{idx}.jpg")
            labels = np.digitize(crop.mean(axis=2), [60, 150]).astype(np.uint8)
            labels[0] = 255
            Image.fromarray(labels).save(tmp_path / split / "maps" / f"{idx}.png")
    (tmp_path / "classes.json").write_text(json.dumps(CLASSES))
    return tmp_path


@pytest.fixture(scope="module")
def segmenter(tmp_path_factory):
    """A small UperNet with random weights and a palette."""
    folder = tmp_path_factory.mktemp("segmenter")
    (folder / "classes.json").write_text(json.dumps(CLASSES))
    model_args = script.ModelArguments(config_overrides=ARCHITECTURE, head_overrides=HEAD)
    data_args = script.DataArguments(train_dir="x", classes_file=str(folder / "classes.json"), image_size=48)
    model, image_processor = script.load_model(model_args, data_args)
    randomize(model).save_pretrained(folder / "model")
    image_processor.save_pretrained(folder / "model")
    return folder / "model"


def run(folder, output_dir, **kwargs):
    arguments = {
        "config_overrides": ARCHITECTURE,
        "head_overrides": HEAD,
        "train_dir": str(folder / "train"),
        "validation_dir": str(folder / "validation"),
        "classes_file": str(folder / "classes.json"),
        "image_size": 48,
        "output_dir": str(output_dir),
        "per_device_eval_batch_size": 1,
    }
    run_short_training(script, folder / "arguments.json", **(arguments | kwargs))


def test_train_save_resume_and_use(scenes, tmp_path):
    """Two images per step, the fifth is left over: batch normalisation cannot train on one."""
    output = tmp_path / "output"
    run(scenes, output)
    for name in ("model.safetensors", "preprocessor_config.json", "training_curves.png", "README.md"):
        assert (output / name).is_file(), name
    run(scenes, output, num_train_epochs=2)
    log = json.loads((output / "trainer_state.json").read_text())["log_history"]
    assert [entry["step"] for entry in log if "loss" in entry] == [1, 2, 3, 4]
    results = json.loads((output / "all_results.json").read_text())
    names = ("eval_mean_iou", "eval_mean_accuracy", "eval_overall_accuracy")
    assert all(0 <= results[name] <= 1 for name in names) and results["eval_loss"] > 0

    config = json.loads((output / "config.json").read_text())
    assert config["id2label"] == {"0": "dark", "1": "medium", "2": "bright"}
    assert config["palette"] == list(CLASSES.values()) and config["auxiliary_loss_weight"] == 0.4
    segmenter = pipeline("image-segmentation", model=str(output))
    parts = segmenter(str(scenes / "validation" / "images" / "0.jpg"))
    assert {part["label"] for part in parts} <= set(CLASSES)
    with Image.open(scenes / "validation" / "images" / "0.jpg") as image:
        assert parts[0]["mask"].size == image.size


@pytest.mark.parametrize("core_op", first_quick(CORE_OPS))
def test_a_new_head_and_other_classes(core_op, scenes, tmp_path, tiny_config):
    """The backbone of a classifier, then of a segmentation model, is kept; in between nothing is trained."""
    classifier = InternImageForImageClassification(tiny_config(core_op=core_op))
    randomize(classifier).save_pretrained(tmp_path / "classifier")
    options = {"config_overrides": None, "learning_rate": 0.0, "weight_decay": 0.0, "gradient_checkpointing": True}
    run(scenes, tmp_path / "first", **options, backbone=str(tmp_path / "classifier"), head="segformer",
        head_overrides='{"hidden_size": 8}', drop_path_rate=0.1, layer_decay=0.9,
        deformable_multiplier=0.1)  # fmt: skip
    (scenes / "classes.json").write_text('["dark", "medium", "bright", "never"]')
    run(scenes, tmp_path / "second", **options, head_overrides=None, model_name_or_path=str(tmp_path / "first"))
    model = AutoModelForSemanticSegmentation.from_pretrained(tmp_path / "second")
    assert type(model).__name__ == "SegformerHeadForSemanticSegmentation" and model.config.num_labels == 4
    assert model.config.backbone_config.drop_path_rate == 0.1 and model.config.palette is None
    expected = classifier.internimage.state_dict()
    for name, tensor in model.backbone.state_dict().items():
        assert torch.equal(tensor, expected[name]), name


@pytest.mark.parametrize("kind", ["upernet", "segformer of transformers"])
def test_evaluation_at_the_size_of_the_input(kind, scenes, tmp_path):
    """
    The Trainer's streamed mIoU, against one loop over the images and mmsegmentation's histograms. (transformers'
    SegFormer has logits of a quarter of the size.)
    """
    config = {"model_name_or_path": str(tmp_path / "model"), "config_overrides": None, "head_overrides": None}
    model_args = script.ModelArguments(config_overrides=ARCHITECTURE, head_overrides=HEAD)
    data_args = script.DataArguments(
        train_dir=str(scenes / "train"), classes_file=str(scenes / "classes.json"), image_size=48
    )
    model, image_processor = script.load_model(model_args, data_args)
    if kind != "upernet":
        model, image_processor = tiny_segformer(), SegformerImageProcessor(size={"height": 50, "width": 70})
        config["image_size"] = None
    randomize(model).save_pretrained(tmp_path / "model")
    image_processor.save_pretrained(tmp_path / "model")
    run(scenes, tmp_path / "output", do_train=False, **config)
    hits, either = np.zeros(3), np.zeros(3)
    for idx in range(3):
        image = Image.open(scenes / "validation" / "images" / f"{idx}.jpg")
        labels = np.asarray(Image.open(scenes / "validation" / "maps" / f"{idx}.png"))
        inputs = image_processor(image, labels, return_tensors="pt")
        with torch.inference_mode():
            logits = model(inputs["pixel_values"]).logits
        assert (logits.shape[-2:] == inputs["labels"][0].shape) == (kind == "upernet")
        logits = torch.nn.functional.interpolate(logits, size=inputs["labels"][0].shape, mode="bilinear")
        predictions = logits[0].argmax(dim=0)
        counted = inputs["labels"][0] != 255
        for label in range(3):
            is_label, is_predicted = inputs["labels"][0][counted] == label, predictions[counted] == label
            hits[label] += (is_label & is_predicted).sum()
            either[label] += (is_label | is_predicted).sum()
    results = json.loads((tmp_path / "output" / "all_results.json").read_text())
    assert results["eval_mean_iou"] == pytest.approx((hits / either).mean())


def tiny_segformer():
    config = SegformerConfig(hidden_sizes=[8, 8, 16, 16], depths=[1, 1, 1, 1], num_attention_heads=[1, 1, 2, 2],
                             decoder_hidden_size=8, num_labels=3)  # fmt: skip
    return SegformerForSemanticSegmentation(config)


def test_transformers_segformer_trains(scenes, tmp_path):
    """With a value to ignore that is not the checkpoint's."""
    for split in ("train", "validation"):
        for file in (scenes / split / "maps").iterdir():
            labels = np.asarray(Image.open(file)).copy()
            labels[labels == 255] = 77
            Image.fromarray(labels).save(file)
    tiny_segformer().save_pretrained(tmp_path / "model")
    SegformerImageProcessor(size={"height": 50, "width": 70}).save_pretrained(tmp_path / "model")
    run(scenes, tmp_path / "output", model_name_or_path=str(tmp_path / "model"), config_overrides=None,
        head_overrides=None, image_size=None, ignore_index=77)  # fmt: skip
    results = json.loads((tmp_path / "output" / "all_results.json").read_text())
    assert 0 <= results["eval_mean_iou"] <= 1 and results["train_loss"] > 0
    config = json.loads((tmp_path / "output" / "config.json").read_text())
    assert config["semantic_loss_ignore_index"] == config["loss_ignore_index"] == 77


def augmentation(**kwargs):
    arguments = {"train_dir": "x", "image_size": 64, "photometric_distortion": False} | kwargs
    data_args = script.DataArguments(**arguments)
    image_processor = script.InternImageSegmentationImageProcessor(size={"shortest_edge": 64, "longest_edge": 256})
    return batches.training_augmentation(image_processor, data_args), image_processor


@pytest.mark.parametrize("size", [(200, 90), (40, 300), (1, 1)], ids=str)
def test_augmentation_keeps_image_and_map_together(size):
    """The image shows its map: after resizing, cropping, mirroring and padding it still does."""
    random = np.random.default_rng(0)
    blocks = np.kron(random.integers(0, 3, size=(size[0] // 20 + 1, size[1] // 20 + 1)), np.ones((20, 20), dtype=int))
    labels = torch.from_numpy(blocks[: size[0], : size[1]])
    image = tv_tensors.Image((labels * 100).to(torch.uint8).expand(3, -1, -1))
    augment, image_processor = augmentation()
    mean, std = (
        torch.tensor(values)[:, None, None] for values in (image_processor.image_mean, image_processor.image_std)
    )
    for seed in range(6):
        torch.manual_seed(seed)
        pixels, mask = augment(image, tv_tensors.Mask(labels))
        assert pixels.shape == (3, 64, 64) and mask.shape == (64, 64) and pixels.dtype == torch.float32
        inside = mask != 255
        assert inside.any() and (pixels[:, ~inside] == 0).all()
        shown = ((pixels * std + mean)[0] * 255 / 100).round()
        assert (shown == mask)[inside].float().mean() > 0.85  # not where classes meet


def test_photometric_distortion_changes_colours_only(photographs):
    labels = tv_tensors.Mask(torch.zeros(512, 512, dtype=torch.int64))
    image = tv_tensors.Image(torch.from_numpy(photographs[0]).permute(2, 0, 1))
    results = []
    for distorted in (False, True):
        torch.manual_seed(0)
        augment, _ = augmentation(photometric_distortion=distorted, min_resize_ratio=1.0, max_resize_ratio=1.0,
                                  horizontal_flip=False)  # fmt: skip
        results.append(augment(image, labels)[0])
    assert 0.05 < (results[0] - results[1]).abs().mean() < 1.5


def test_crops_of_several_classes():
    """Class 1 is in one corner; pixels without a label do not count as a class."""
    labels = torch.zeros(100, 100, dtype=torch.int64)
    labels[50:, 50:] = 1
    labels[:50, :50] = 255
    crop = batches.RandomCropOfSeveralClasses(40, 0.75, 255)
    fractions = []
    for seed in range(50):
        torch.manual_seed(seed)
        part = crop(tv_tensors.Mask(labels))
        assert part.shape == (40, 40)
        counts = part[part != 255].unique(return_counts=True)[1]
        fractions.append((counts.max() / counts.sum()).item() if len(counts) else 1.0)
    assert np.mean(np.array(fractions) < 0.75) > 0.9
    crop.max_class_fraction = 1.1  # any crop with two classes
    assert crop(tv_tensors.Mask(torch.zeros(20, 60, dtype=torch.int64))).shape == (20, 40)


@pytest.mark.parametrize("mode", ["L", "P", "I;16", "1"])
def test_label_maps_hold_indices(mode, tmp_path):
    """Whatever the colours of a palette: its indices are the classes."""
    labels = np.array([[0, 1, 1], [1, 0, 255]] if mode != "1" else [[0, 1, 1], [1, 0, 1]])
    image = Image.fromarray(labels.astype(np.uint16 if mode == "I;16" else np.uint8))
    if mode == "P":
        image.putpalette([7, 7, 7, 200, 100, 50] * 128)
    if mode == "1":
        image = Image.fromarray(labels.astype(bool))
    image.save(tmp_path / "map.png")
    with Image.open(tmp_path / "map.png") as saved:
        assert saved.mode == mode
    row = {"bytes": None, "path": str(tmp_path / "map.png")}
    assert data.read_label_map(row, **MAP).tolist() == labels.tolist()


def test_reduced_labels_and_another_ignore_index(tmp_path):
    Image.fromarray(np.array([[0, 1, 3, 255]], dtype=np.uint8)).save(tmp_path / "map.png")
    row = {"bytes": None, "path": str(tmp_path / "map.png")}
    assert data.read_label_map(row, 3, 255, do_reduce_labels=True).tolist() == [[255, 0, 2, 255]]
    Image.fromarray(np.array([[0, 299, 65535]], dtype=np.uint16)).save(tmp_path / "map.png")
    assert data.read_label_map(row, 300, 65535, do_reduce_labels=False).tolist() == [[0, 299, 65535]]
    with pytest.raises(ValueError, match="has the value 65535, which is neither a class, 1 to 300, nor 255, which is"):
        data.read_label_map(row, 300, 255, do_reduce_labels=True)


def spoil(scenes, what: str):
    images, maps = scenes / "train" / "images", scenes / "train" / "maps"
    if what == "object ignored":
        for file in maps.iterdir():
            Image.open(file).point(lambda value: 255 * (value > 0)).save(file)
    elif what == "value":
        labels = np.asarray(Image.open(maps / "3.png")).copy()
        labels[2, 2:5] = 7, 9, 7
        Image.fromarray(labels).save(maps / "3.png")
    elif what == "size":
        Image.new("L", (20, 10)).save(maps / "3.png")
    elif what == "colours":
        Image.new("RGB", Image.open(images / "3.jpg").size).save(maps / "3.png")
    elif what == "corrupt":
        (maps / "3.png").write_bytes((maps / "3.png").read_bytes()[:60])
    elif what == "no map":
        (maps / "3.png").unlink()
    elif what == "no maps":
        maps.rename(scenes / "train" / "labels")
    elif what == "empty":
        for file in images.iterdir():
            file.unlink()
    elif what == "classes":
        (scenes / "classes.json").write_text('{"sky": [1, 2], "sea": [1, 2, 300]}')


@pytest.mark.parametrize(
    "what, message",
    [
        ("value", r"The label map .*train/maps/3.png has the values 7, 9, which are neither a class, 0 to 2, nor"),
        (
            "object ignored",
            "5 of 5 label maps .* have only 0, 'dark', and 255, .* If 255 stands for a class, write its",
        ),
        ("size", r"The image .*train/images/3.jpg has \d+x\d+ pixels and its label map .*train/maps/3.png 20x10"),
        ("colours", r"The label map .*train/maps/3.png is an image of mode RGB, it must have one class index"),
        ("corrupt", r"The image file .*train/maps/3.png is corrupt or truncated"),
        ("no map", r"The image .*train/images/3.jpg has no label map .*train/maps/3.png: add it"),
        ("no maps", r"`--train_dir .*train` has no folder 'maps': it must have the images in 'images' and"),
        ("empty", r"There are no images in .*train/images"),
        ("classes", r"`--classes_file .*` must have two or more classes: a list of names, or an object"),
    ],
)
def test_bad_files(what, message, scenes, tmp_path):
    spoil(scenes, what)
    with pytest.raises(ValueError, match=message):
        run(scenes, tmp_path / "output", do_eval=False, eval_strategy="no")
    assert not (tmp_path / "output" / "model.safetensors").exists()


@pytest.mark.parametrize(
    "change, message",
    [
        ({"train_dir": None, "validation_dir": None}, "No images: give `--dataset_name`"),
        ({"train_dir": "/does/not/exist"}, "`--train_dir /does/not/exist` has no folder 'images'"),
        ({"classes_file": None}, "A new model needs `--classes_file`"),
        ({"classes_file": "none.json"}, "`--classes_file none.json` is not a file"),
        ({"ignore_index": 2}, r"`--ignore_index 2` is the index of a class: it must be outside of \[0, 3\)"),
        ({"model_name_or_path": "somewhere"}, "describe a new model: leave out `--model_name_or_path`"),
        ({"backbone": "somewhere"}, "`--config_overrides` describes a new backbone: leave out `--backbone`"),
        ({"mixup": 0.8}, "`--mixup` and `--cutmix` are for classification"),
        ({"label_smoothing_factor": 0.1}, "`--label_smoothing_factor` is for classification"),
        ({"min_resize_ratio": 3.0}, "`--min_resize_ratio 3.0` must be above 0 and at most `--max_resize_ratio 2.0`"),
        ({"per_device_train_batch_size": 1}, "batch normalisation needs at least two images per step"),
        ({"validation_dir": None, "train_val_split": 0.0}, "There are no validation images, which `--do_eval` needs"),
    ],
    ids=str,
)
def test_bad_arguments(change, message, scenes, tmp_path):
    with pytest.raises(ValueError, match=message):
        run(scenes, tmp_path / "output", **change)


def test_ignored_pixels_of_large_data_sets(scenes, caplog, monkeypatch):
    """As few maps are read as it takes; without a second class among the first ones there is a warning."""
    rows = data.list_folder(str(scenes / "train"), "--train_dir")
    names = dict(enumerate(CLASSES))
    monkeypatch.setattr(data, "MAPS_TO_CHECK", 2)
    for idx in (4, 3, 2):
        (scenes / "train" / "maps" / f"{idx}.png").unlink()  # not read
    data.check_ignored_pixels(rows, "label", names, **MAP)
    assert caplog.text == ""
    for idx in (0, 1):
        Image.fromarray(np.array([[0, 255]], dtype=np.uint8)).save(scenes / "train" / "maps" / f"{idx}.png")
    data.check_ignored_pixels(rows, "label", names, **MAP)
    assert "2 of 5 label maps for training were looked at, and have only 0, 'dark'," in caplog.text
    Image.new("L", (2, 1)).save(scenes / "train" / "maps" / "1.png")
    Image.new("L", (2, 1)).save(scenes / "train" / "maps" / "0.png")
    caplog.clear()
    data.check_ignored_pixels(rows, "label", names, **MAP)  # nothing is ignored
    assert caplog.text == ""


def test_workers_can_be_spawned(scenes, tmp_path, monkeypatch):
    """What they are sent can be pickled. Classes without a pixel in the evaluation are named, by the way."""
    trainers = []
    monkeypatch.setattr(script, "train_and_evaluate", lambda trainer, *args: trainers.append(trainer))
    run(scenes, tmp_path / "output")
    (trainer,) = trainers
    sent = trainer.train_dataset, trainer.eval_dataset, trainer.data_collator
    train_dataset, eval_dataset, collate = pickle.loads(pickle.dumps(sent))
    for dataset in (train_dataset, eval_dataset):
        assert collate([dataset[0], dataset[1]])["labels"].shape[0] == 2


def test_image_processors_without_label_maps(segmenter, scenes, tmp_path):
    Mask2FormerImageProcessor().save_pretrained(tmp_path / "processor")
    with pytest.raises(ValueError, match="Mask2FormerImageProcessor of the checkpoint makes no label maps"):
        run(scenes, tmp_path / "output", image_processor_name=str(tmp_path / "processor"), image_size=None)


def test_a_single_class(scenes, tmp_path):
    config = tiny_segformer().config
    config.num_labels = 1
    SegformerForSemanticSegmentation(config).save_pretrained(tmp_path / "model")
    SegformerImageProcessor().save_pretrained(tmp_path / "model")
    for run_it in (
        lambda: run(scenes, tmp_path / "output", model_name_or_path=str(tmp_path / "model"), config_overrides=None,
                    head_overrides=None, classes_file=None, image_size=None),
        lambda: segment.load_segmentation_model(str(tmp_path / "model"), "float32", torch.device("cpu"), False),
    ):  # fmt: skip
        with pytest.raises(
            ValueError, match="model` has a single class, to which every pixel would belong: fine-tune"
        ):
            run_it()


def test_checkpoints_that_cannot_be_trained(scenes, tmp_path, tiny_config):
    InternImageForImageClassification(tiny_config()).save_pretrained(tmp_path / "classifier")
    options = {"config_overrides": None, "head_overrides": None}
    with pytest.raises(
        ValueError, match="classifier` is a model of type internimage, .* as `--backbone`, for a new head"
    ):
        run(scenes, tmp_path / "output", **options, model_name_or_path=str(tmp_path / "classifier"))
    tiny_segformer().save_pretrained(tmp_path / "segformer")
    with pytest.raises(ValueError, match="`--backbone .*former` is a model of type segformer, it must be InternImage"):
        run(scenes, tmp_path / "output", **options, backbone=str(tmp_path / "segformer"))


def test_what_the_heads_need_for_training(segmenter, tiny_config):
    """Checkpointing in UperNet's backbone; on several GPUs statistics of all of them, under the same names."""
    model = AutoModelForSemanticSegmentation.from_pretrained(segmenter)
    arguments = SimpleNamespace(
        train_batch_size=1, per_device_train_batch_size=1, world_size=2, device=torch.device("cuda"),
        gradient_checkpointing=True, gradient_checkpointing_kwargs=None,
    )  # fmt: skip
    names = list(model.state_dict())
    model = script.prepare_training(model, arguments, num_images=9)
    assert model.backbone.is_gradient_checkpointing and not arguments.gradient_checkpointing
    assert isinstance(model.decode_head.bottleneck.batch_norm, torch.nn.SyncBatchNorm)
    assert list(model.state_dict()) == names
    config = SegformerHeadConfig(backbone_config=tiny_config(out_features=["stage3", "stage4"]), hidden_size=8)
    model = script.prepare_training(SegformerHeadForSemanticSegmentation(config), arguments, num_images=9)
    assert isinstance(model.decode_head.fusion.batch_norm, InternImageBatchNorm)  # stays fixed where it is frozen
    with pytest.raises(ValueError, match="with 1 training images: batch normalisation needs at least two"):
        script.prepare_training(model, arguments, num_images=1)


@pytest.mark.parametrize("world_size, device", [(1, "cpu"), (1, "cuda"), (2, "cpu")])
def test_batch_normalisation_has_two_images(world_size, device, segmenter):
    """Only processes on GPUs share their statistics; the GPUs of one process do not."""
    model = AutoModelForSemanticSegmentation.from_pretrained(segmenter)
    arguments = SimpleNamespace(
        train_batch_size=2 if (world_size, device) == (1, "cuda") else 1, per_device_train_batch_size=1,
        world_size=world_size, device=torch.device(device), gradient_checkpointing=False,
    )  # fmt: skip
    with pytest.raises(ValueError, match="batch normalisation needs at least two images per step and process"):
        script.prepare_training(model, arguments, num_images=9)
    arguments.per_device_train_batch_size = 2
    model = script.prepare_training(model, arguments, num_images=9)
    assert type(model.decode_head.bottleneck.batch_norm) is torch.nn.BatchNorm2d


# The table of the authors' configurations: size, learning rate, layer decay, stochastic depth, clipping, images per
# GPU.
AUTHORS = {
    "upernet_internimage_t_512_160k_ade20k": (512, 6e-5, 1.0, 0.2, 0.0, 2),
    "upernet_internimage_s_512_160k_ade20k": (512, 6e-5, 1.0, 0.3, 0.0, 2),
    "upernet_internimage_b_512_160k_ade20k": (512, 6e-5, 1.0, 0.4, 0.0, 2),
    "upernet_internimage_l_640_160k_ade20k": (640, 2e-5, 0.94, 0.4, 0.1, 2),
    "upernet_internimage_xl_640_160k_ade20k": (640, 2e-5, 0.94, 0.4, 0.1, 2),
    "upernet_internimage_h_896_160k_ade20k": (896, 2e-5, 0.95, 0.5, 0.1, 1),
    "upernet_flash_internimage_t_512_160k_ade20k": (512, 6e-5, 1.0, 0.2, 0.0, 2),
    "upernet_flash_internimage_s_512_160k_ade20k": (512, 6e-5, 1.0, 0.3, 0.0, 2),
    "upernet_flash_internimage_b_512_160k_ade20k": (512, 6e-5, 1.0, 0.3, 0.0, 2),
    "upernet_flash_internimage_l_640_160k_ade20k": (640, 2e-5, 0.94, 0.4, 0.1, 2),
    "mask2former_flash_internimage_t_512_160k_ade20k_ss": (512, 1e-4, 0.9, 0.2, 0.01, 2),
    "mask2former_flash_internimage_s_640_160k_ade20k_ss": (640, 1e-4, 1.0, 0.3, 0.1, 2),
    "mask2former_flash_internimage_b_640_160k_ade20k_ss": (640, 1e-4, 1.0, 0.4, 0.1, 2),
    "mask2former_flash_internimage_l_640_160k_ade20k_ss": (640, 1e-4, 0.94, 0.5, 0.1, 2),
}


MASK2FORMER_SIZES = (
    "feature_size", "mask_feature_size", "hidden_dim", "num_attention_heads", "num_queries", "encoder_layers",
    "decoder_layers", "encoder_feedforward_dim", "dim_feedforward", "no_object_weight", "train_num_points",
)  # fmt: skip


@pytest.mark.parametrize("name", AUTHORS)
def test_recipes_are_the_authors(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe = json.loads((script.RECIPES / f"{name}.json").read_text()) | {"bf16": False, "use_cpu": True}
    (tmp_path / "recipe.json").write_text(json.dumps(recipe))
    model_args, data_args, recipe, training = script.parse_head_arguments(
        script.ModelArguments, script.DataArguments, [str(tmp_path / "recipe.json")]
    )
    actual = (
        data_args.image_size, training.learning_rate, recipe.layer_decay, model_args.drop_path_rate,
        training.max_grad_norm, training.per_device_train_batch_size,
    )  # fmt: skip
    assert actual == AUTHORS[name]
    assert (training.max_steps, training.warmup_steps, training.weight_decay) == (160_000, 1500, 0.05)
    assert (training.lr_scheduler_type, training.lr_scheduler_kwargs) == ("polynomial", {"power": 1.0, "lr_end": 0.0})
    assert (training.adam_beta1, training.adam_beta2, recipe.layer_counting) == (0.9, 0.999, "downstream")
    assert (data_args.min_resize_ratio, data_args.max_resize_ratio, data_args.max_class_fraction) == (0.5, 2.0, 0.75)
    assert data_args.do_reduce_labels and data_args.horizontal_flip and data_args.photometric_distortion
    assert model_args.head == name.split("_")[0] and model_args.backbone.split("/")[1] in CHECKPOINTS
    if model_args.head == "mask2former":
        official = CHECKPOINTS[name].config()
        ours = Mask2FormerConfig(**script.read_overrides(model_args.head_overrides))
        for field in MASK2FORMER_SIZES:
            assert getattr(ours, field) == getattr(official, field), field
    names, palette = data.read_classes(REPOSITORY / data_args.classes_file)
    assert (len(names), len(palette), names[0], names[-1]) == (150, 150, "wall", "flag")


def test_coins(tmp_path):
    """The pieces for training and evaluation share no pixel."""
    coins.write_folders(tmp_path)
    photograph, labels = coins.coins_and_labels()
    assert set(np.unique(labels)) == {0, 1} and 0.3 < labels.mean() < 0.45
    for split, columns in coins.COLUMNS.items():
        files = sorted((tmp_path / split / "images").iterdir())
        assert len(files) == 3 * (len(columns) - 1)
        for file in files:
            top, left = map(int, file.stem.split("_"))
            piece = np.asarray(Image.open(file))
            assert piece.shape == (101, 128) and (left < 256) == (split == "train")
            assert np.array_equal(piece, photograph[top : top + 101, left : left + 128])


@pytest.mark.slow
@pytest.mark.parametrize("recipe, max_steps", [("coins", 30), ("coins_mask2former", 100)])
def test_coins_are_learned(recipe, max_steps, tmp_path):
    """A few steps of the recipe are enough."""
    coins.write_folders(tmp_path)
    arguments = json.loads((script.RECIPES.parent / f"{recipe}.json").read_text())
    arguments = {name: value.replace("outputs/coins/", f"{tmp_path}/") if isinstance(value, str) else value
                 for name, value in arguments.items()}  # fmt: skip
    run(tmp_path, **arguments | {"output_dir": str(tmp_path / "model"), "max_steps": max_steps, "eval_strategy": "no",
                                 "disable_tqdm": True})  # fmt: skip
    assert json.loads((tmp_path / "model" / "all_results.json").read_text())["eval_mean_iou"] > 0.75
    coins.main(["--output_dir", str(tmp_path), "--model", str(tmp_path / "model")])
    with Image.open(tmp_path / "predictions.png") as picture:
        assert picture.width > 600 and np.asarray(picture.convert("L")).std() > 10
    if recipe == "coins_mask2former":
        segmenter = pipeline("image-segmentation", model=str(tmp_path / "model"))
        expected = np.asarray(Image.open(tmp_path / "validation" / "maps" / "0_256.png")) == 1
        for subtask in ("semantic", "instance", "panoptic"):
            parts = segmenter(str(tmp_path / "validation" / "images" / "0_256.png"), subtask=subtask, threshold=0.5)
            found = np.any([np.asarray(part["mask"]) > 0 for part in parts if part["label"] == "coin"], axis=0)
            assert (found & expected).sum() > 0.7 * (found | expected).sum(), subtask


def test_pictures_and_maps(segmenter, scenes, tmp_path, capsys):
    files = [scenes / "validation" / "images" / f"{idx}.jpg" for idx in (0, 1)]
    Image.new("RGB", (1, 1), (9, 99, 200)).save(tmp_path / "pixel.png")
    options = ["--model_name_or_path", str(segmenter), "--output_dir", str(tmp_path / "pictures")]
    segment.main(
        [*map(str, files), str(tmp_path / "pixel.png"), *options, "--save_maps", "--scales", "1", "1.5", "--flip"]
    )
    assert capsys.readouterr().out.count("Written: ") == 6
    model, image_processor = segment.load_segmentation_model(str(segmenter), "float32", torch.device("cpu"), False)
    for file in files:
        image = Image.open(file)
        expected = segment_image(model, image_processor, image, scales=(1.0, 1.5), flip=True).argmax(dim=0)
        path = tmp_path / "pictures" / f"{file.stem}_segmentation_map.png"
        saved = data.read_label_map({"bytes": None, "path": str(path)}, **MAP)
        assert np.array_equal(saved, expected.numpy())
        with Image.open(path) as palette_image:  # its colours are the model's
            colour = palette_image.convert("RGB").getpixel((5, 7))
        assert list(colour) == CLASSES[model.config.id2label[int(expected[7, 5])]]
        with Image.open(tmp_path / "pictures" / f"{file.stem}_segmentation.png") as picture:
            assert picture.width > 700 and np.asarray(picture.convert("L")).std() > 10
    with Image.open(tmp_path / "pictures" / "pixel_segmentation_map.png") as pixel:
        assert pixel.size == (1, 1)
    with pytest.raises(ValueError, match="Two results would be written to .*0_segmentation.png"):
        segment.main([str(files[0]), "elsewhere/0.jpg", *options])


def test_pictures_beside_the_images(segmenter, scenes):
    """Twice the same command: the images stay, also those called like label maps, and the results are written anew."""
    images = scenes / "validation" / "images"
    (images / "1.jpg").rename(images / "0_map.jpg")
    before = {file: file.read_bytes() for file in images.iterdir()}
    options = ["--model_name_or_path", str(segmenter), "--output_dir", str(images), "--save_maps"]
    for _ in range(2):
        segment.main([*map(str, before), *options])
    assert {file: file.read_bytes() for file in before} == before and len(list(images.iterdir())) == 9
    with pytest.raises(ValueError, match="2_segmentation.png is read, and would be written over"):
        segment.main([str(images / "2.jpg"), str(images / "2_segmentation.png"), *options])


@pytest.mark.parametrize("size", [(1, 1), (7, 3), (3, 7)], ids=str)
def test_images_of_few_pixels(size, segmenter):
    """Their height is not taken for channels."""
    model, image_processor = segment.load_segmentation_model(str(segmenter), "float32", torch.device("cpu"), False)
    image = Image.effect_noise(size, 60).convert("RGB")
    image.putpixel((0, 0), (250, 10, 90))
    probabilities = segment_image(model, image_processor, image)
    assert probabilities.shape == (3, size[1], size[0])
    pixels = torch.from_numpy(np.asarray(image).transpose(2, 0, 1).copy())
    assert torch.equal(probabilities, segment_image(model, image_processor, pixels))


def test_overlay():
    """Colours over the classes; pixels of other values as they are. Without a palette, colours that differ."""
    image = Image.new("RGB", (3, 1), (100, 100, 100))
    picture = segment.blend(image, np.array([[0, 1, 255]]), np.array([[0, 0, 0], [200, 100, 0]], dtype=np.uint8))
    assert np.abs(picture - np.array([[[45, 45, 45], [155, 100, 45], [100, 100, 100]]])).max() <= 1
    assert picture[0, 2].tolist() == [100, 100, 100]
    config = script.SegformerHeadConfig(num_labels=60)
    colours = segment.class_colours(config).astype(int)
    distances = np.abs(colours[:, None] - colours[None]).sum(axis=2) + 1000 * np.eye(60, dtype=int)
    assert colours.shape == (60, 3) and distances.min() > 10
