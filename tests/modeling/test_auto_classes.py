# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""Auto classes, image processor, pipelines and publishing as remote code."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from testing_utils import MANIFESTS, REDUCED_MODELS, randomize, write_official_checkpoint
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    pipeline,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES
from transformers.utils import is_torchvision_available

import modeling_internimage
from modeling_internimage import (
    InternImageBackbone,
    InternImageConfig,
    InternImageForImageClassification,
    InternImageModel,
)


BACKENDS = ["pil", "torchvision"] if is_torchvision_available() else ["pil"]
IMAGENET_MEAN, IMAGENET_STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])


@pytest.fixture(params=["DCNv3", "DCNv4"])
def checkpoint(request, tiny_config, tmp_path):
    """A saved classifier with its image processor."""
    config = tiny_config(image_size=64, num_labels=3, id2label={0: "cat", 1: "dog", 2: "owl"}, core_op=request.param)
    randomize(InternImageForImageClassification(config)).save_pretrained(tmp_path / "checkpoint")
    modeling_internimage.create_image_processor(64).save_pretrained(tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


@pytest.fixture
def image_files(photographs, tmp_path):
    files = []
    for idx, photograph in enumerate(photographs):
        files.append(str(tmp_path / f"{idx}.png"))
        Image.fromarray(photograph).save(files[-1])
    return files


def official_preprocessing(image: Image.Image, size: int) -> torch.Tensor:
    """Shorter side to `size`, bicubic with PIL; centre crop; ImageNet mean and standard deviation."""
    width, height = image.size
    scale = size / min(width, height)
    image = image.resize((max(size, int(width * scale)), max(size, int(height * scale))), Image.Resampling.BICUBIC)
    left, top = (image.width - size) // 2, (image.height - size) // 2
    array = np.asarray(image.crop((left, top, left + size, top + size)), dtype=np.float64) / 255
    return torch.from_numpy(((array - IMAGENET_MEAN) / IMAGENET_STD).transpose(2, 0, 1)).float()


def test_auto_classes(checkpoint):
    modeling_internimage.register_auto_classes()  # a second time
    assert type(AutoConfig.from_pretrained(checkpoint)) is InternImageConfig
    assert type(AutoModel.from_pretrained(checkpoint)) is InternImageModel
    model = AutoModelForImageClassification.from_pretrained(checkpoint)
    assert type(model) is InternImageForImageClassification
    assert type(AutoModel.from_config(model.config)) is InternImageModel


@pytest.fixture(scope="module")
def official_repository(tmp_path_factory):
    """`OpenGVLab/internimage_t_1k_224` with stand-in weights."""
    manifest = MANIFESTS["internimage_t_1k_224"]
    return write_official_checkpoint(tmp_path_factory.mktemp("hub"), manifest["config"], manifest["keys"], seed=0)


@pytest.mark.parametrize("auto_class", [AutoModel, AutoModelForImageClassification, InternImageBackbone])
def test_official_repository(auto_class, official_repository):
    """No flags, no remote code, every key accounted for."""
    model, info = auto_class.from_pretrained(official_repository, output_loading_info=True)
    assert not any(info.values()), info
    assert model(torch.randn(1, 3, 64, 64))[0] is not None
    assert AutoConfig.from_pretrained(official_repository).id2label[0] == "tench, Tinca tinca"


def test_pipeline_on_an_official_repository(official_repository, image_files):
    predictions = pipeline("image-classification", model=str(official_repository), top_k=2)(image_files)
    labels = set(InternImageConfig.from_pretrained(official_repository).id2label.values())
    assert all(entry["label"] in labels for prediction in predictions for entry in prediction)


@pytest.mark.slow
def test_import_is_silent():
    """No output, no network, no compiler, and the Auto classes know the model afterwards."""
    code = (
        # Where they are installed, transformers imports trio (of selenium), which starts `ldconfig`, and torchao,
        # which prints warnings of torch.
        "import sys; sys.modules['trio'] = sys.modules['torchao'] = None\n"
        "import socket, subprocess, torch\n"
        "def refuse(*args, **kwargs): raise AssertionError('network or process')\n"
        "socket.socket.connect = socket.create_connection = subprocess.Popen = refuse\n"
        "import modeling_internimage\n"
        "from transformers import AutoConfig\n"
        "assert AutoConfig.for_model('internimage').embed_dim == 64\n"
    )
    result = subprocess.run([sys.executable, "-W", "error::UserWarning", "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout == result.stderr == ""


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("source", ["ours", "official"])
def test_image_processor(source, backend, checkpoint, photographs, tmp_path):
    """The official preprocessing, from our files and from those of the official repositories."""
    if source == "official":
        golden = REDUCED_MODELS["tiny_t"]
        checkpoint = write_official_checkpoint(tmp_path / "official", golden["config"], golden["keys"], seed=0)
    size = 224 if source == "official" else 64
    processor = AutoImageProcessor.from_pretrained(checkpoint, backend=backend)
    for photograph in photographs:
        actual = processor(Image.fromarray(photograph), return_tensors="pt")["pixel_values"][0]
        expected = official_preprocessing(Image.fromarray(photograph), size)
        # PIL rounds the resized image to bytes; torchvision's own resampling may land one level beside.
        levels = (actual - expected).abs() * torch.tensor(IMAGENET_STD)[:, None, None] * 255
        assert levels.max() < (0.01 if backend == "pil" else 2.01) and levels.mean() < 0.1
    greyscale = Image.fromarray(photographs[0]).convert("L")
    assert processor(greyscale, return_tensors="pt")["pixel_values"].shape == (1, 3, size, size)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("image_size", [(40, 64), [64, 40], (48, 48)])
def test_rectangular_images(image_size, backend, photographs, tmp_path):
    """Height and width: the whole image at that size. A square is as one number."""
    image_processor = modeling_internimage.create_image_processor(image_size, backend)
    image_processor.save_pretrained(tmp_path)
    loaded = AutoImageProcessor.from_pretrained(tmp_path, backend=backend)
    assert loaded.to_dict() == image_processor.to_dict()
    image = Image.fromarray(photographs[0])
    actual = loaded(image, return_tensors="pt")["pixel_values"]
    assert actual.shape == (1, 3, *image_size)
    if image_size[0] == image_size[1]:
        expected = modeling_internimage.create_image_processor(48, backend)(image, return_tensors="pt")["pixel_values"]
        assert torch.equal(actual, expected)
    else:
        resized = np.asarray(image.resize(image_size[::-1], Image.Resampling.BICUBIC)) / 255
        expected = torch.from_numpy(((resized - IMAGENET_MEAN) / IMAGENET_STD).transpose(2, 0, 1)).float()
        levels = (actual[0] - expected).abs() * torch.tensor(IMAGENET_STD)[:, None, None] * 255
        assert levels.max() < (0.01 if backend == "pil" else 2.01)


@pytest.mark.parametrize("image_size", [0, (224,), (224, 320, 3), "224", 224.0, (224, -1), None])
def test_bad_image_sizes(image_size):
    with pytest.raises(ValueError, match="`image_size` must be one number of pixels, or a height and a"):
        modeling_internimage.create_image_processor(image_size)


def test_unknown_image_processor_backend():
    with pytest.raises(ValueError, match="Unknown `backend='opencv'`"):
        modeling_internimage.create_image_processor(backend="opencv")


@pytest.mark.parametrize("batch_size", [None, 2])
@torch.no_grad()
def test_image_classification_pipeline(batch_size, checkpoint, image_files, caplog):
    classifier = pipeline("image-classification", model=str(checkpoint))
    inputs = [*image_files, Image.open(image_files[0])]
    predictions = classifier(inputs, batch_size=batch_size)
    processor = AutoImageProcessor.from_pretrained(checkpoint)
    model = AutoModelForImageClassification.from_pretrained(checkpoint)
    for image, prediction in zip([image_files[0], image_files[1], image_files[0]], predictions, strict=True):
        probabilities = model(**processor(Image.open(image), return_tensors="pt")).logits[0].softmax(-1)
        assert {entry["label"] for entry in prediction} == {"cat", "dog", "owl"}
        for entry in prediction:
            class_idx = next(idx for idx, label in model.config.id2label.items() if label == entry["label"])
            assert entry["score"] == pytest.approx(probabilities[class_idx].item(), abs=1e-5)
    single = classifier(image_files[0])
    assert [entry["label"] for entry in single] == [entry["label"] for entry in predictions[0]]
    assert "not supported" not in caplog.text


@pytest.mark.parametrize("source", ["folder", "objects"])
@torch.no_grad()
def test_image_segmentation_pipeline(source, tiny_config, image_files, tmp_path, caplog):
    """With the SegFormer head; nothing is called unsupported."""
    config = modeling_internimage.SegformerHeadConfig(
        backbone_config=tiny_config(out_features=["stage1", "stage2", "stage3", "stage4"]), hidden_size=8, num_labels=3
    )
    model = randomize(modeling_internimage.SegformerHeadForSemanticSegmentation(config))
    image_processor = modeling_internimage.InternImageSegmentationImageProcessorPil(size={"shortest_edge": 64})
    arguments = {"model": model, "image_processor": image_processor}
    if source == "folder":
        for part in arguments.values():
            part.save_pretrained(tmp_path / "segmenter")
        arguments = {"model": str(tmp_path / "segmenter")}
    segments = pipeline("image-segmentation", **arguments)(image_files[0])
    image = Image.open(image_files[0])
    outputs = model(**image_processor(image, return_tensors="pt"))
    (expected,) = image_processor.post_process_semantic_segmentation(outputs, [(image.height, image.width)])
    for segment in segments:
        label = config.label2id[segment["label"]]
        assert ((np.asarray(segment["mask"]) > 0) == (expected == label).numpy()).mean() > 0.99
    assert {segment["label"] for segment in segments} == {
        config.id2label[label] for label in expected.unique().tolist()
    }
    assert "not supported" not in caplog.text


def test_pipelines_still_have_to_be_told(tiny_config, caplog, monkeypatch):
    """When this fails, `auto_registration._tell_pipelines` can go."""
    config = modeling_internimage.SegformerHeadConfig(backbone_config=tiny_config(), hidden_size=8)
    arguments = {
        "model": modeling_internimage.SegformerHeadForSemanticSegmentation(config),
        "image_processor": modeling_internimage.InternImageSegmentationImageProcessorPil(),
    }
    monkeypatch.delitem(MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES, config.model_type)
    pipeline("image-segmentation", **arguments)
    assert "not supported" in caplog.text


@pytest.mark.parametrize("batch_size", [None, 2])
@torch.no_grad()
def test_image_feature_extraction_pipeline(batch_size, checkpoint, image_files):
    extractor = pipeline("image-feature-extraction", model=str(checkpoint))
    model = AutoModel.from_pretrained(checkpoint)
    processor = AutoImageProcessor.from_pretrained(checkpoint)
    features = extractor(image_files, batch_size=batch_size, return_tensors=True)
    pooled = extractor([Image.open(file) for file in image_files], pool=True, return_tensors=True)
    for file, feature, vector in zip(image_files, features, pooled, strict=True):
        outputs = model(**processor(Image.open(file), return_tensors="pt"))
        torch.testing.assert_close(feature.reshape(outputs.last_hidden_state.shape), outputs.last_hidden_state)
        torch.testing.assert_close(vector.reshape(outputs.pooler_output.shape), outputs.pooler_output)


@pytest.mark.slow
def test_remote_code(checkpoint, tiny_config, tmp_path):
    """
    `register_for_auto_class` publishes the two source files; a process without this package loads and runs them. (A
    copy: registering changes the classes of this process for good.)
    """
    publish = (
        "import sys\n"
        "from modeling_internimage import *\n"
        "InternImageConfig.register_for_auto_class()\n"
        "InternImageModel.register_for_auto_class('AutoModel')\n"
        "InternImageForImageClassification.register_for_auto_class('AutoModelForImageClassification')\n"
        "InternImageForImageClassification.from_pretrained(sys.argv[1]).save_pretrained(sys.argv[2])\n"
        "InternImageConfig.from_pretrained(sys.argv[1])\n"
    )
    published = tmp_path / "published"
    subprocess.run([sys.executable, "-c", publish, checkpoint, published], check=True, capture_output=True)
    assert {file.name for file in published.glob("*.py")} == {
        "configuration_internimage.py",
        "modeling_internimage.py",
    }
    auto_map = json.loads((published / "config.json").read_text())["auto_map"]
    assert auto_map["AutoConfig"] == "configuration_internimage.InternImageConfig"
    modeling_internimage.create_image_processor(64).save_pretrained(published)

    use = (
        "import sys, torch\n"
        "class Blocker:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'modeling_internimage': raise ModuleNotFoundError(name)\n"
        "sys.meta_path.insert(0, Blocker())\n"
        "from transformers import AutoModelForImageClassification, pipeline\n"
        "model = AutoModelForImageClassification.from_pretrained(sys.argv[1], trust_remote_code=True)\n"
        "assert type(model).__module__.startswith('transformers_modules'), type(model)\n"
        "torch.save(model(torch.ones(1, 3, 64, 64)).logits, sys.argv[2])\n"
        "model.save_pretrained(sys.argv[3])\n"
    )
    environment = os.environ | {"HF_HOME": str(tmp_path / "home"), "HF_MODULES_CACHE": str(tmp_path / "modules")}
    arguments = [sys.executable, "-c", use, published, tmp_path / "logits.pt", tmp_path / "saved_again"]
    result = subprocess.run(arguments, env=environment, capture_output=True, text=True, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    model = InternImageForImageClassification.from_pretrained(checkpoint)
    with torch.no_grad():
        torch.testing.assert_close(torch.load(tmp_path / "logits.pt"), model(torch.ones(1, 3, 64, 64)).logits)
    # Where the package is installed, it serves those checkpoints too, without trusting their code.
    again, info = InternImageForImageClassification.from_pretrained(tmp_path / "saved_again", output_loading_info=True)
    assert not any(info.values()), info
    assert type(AutoModelForImageClassification.from_pretrained(published)) is InternImageForImageClassification


def test_every_public_name_resolves():
    assert all(hasattr(modeling_internimage, name) for name in modeling_internimage.__all__)
