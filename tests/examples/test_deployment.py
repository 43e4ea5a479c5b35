# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""Deployment of exported models: pictures in and results out without torch, the pages, the browser."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from testing_utils import REPOSITORY
from transformers.modeling_outputs import SemanticSegmenterOutput
from transformers.models.mask2former.modeling_mask2former import Mask2FormerForUniversalSegmentationOutput

import modeling_internimage
from examples.deployment import preprocessing
from modeling_internimage import (
    DinoDetrImageProcessorPil,
    DinoDetrObjectDetectionOutput,
    InternImageMask2FormerImageProcessorPil,
    MaskRCNNImageProcessorPil,
    MaskRCNNObjectDetectionOutput,
    create_image_processor,
)


def build_image_processor(name: str, backend: str, options: dict):
    if name == "classifier":
        return create_image_processor(**options, backend=backend)
    return getattr(modeling_internimage, name + {"pil": "Pil", "torchvision": ""}[backend])(**options)


@pytest.mark.parametrize(
    "name, options, grey_values",  # by which torchvision's pixels may differ: it rounds bicubic resizing otherwise
    [
        ("classifier", {"image_size": 224}, 1),
        ("classifier", {"image_size": (96, 160)}, 1),
        ("InternImageSegmentationImageProcessor", {}, 0),
        ("InternImageSegmentationImageProcessor", {"size": {"longest_edge": 300}, "size_divisor": 32}, 0),
        ("MaskRCNNImageProcessor", {}, 0),
        ("DinoDetrImageProcessor", {"size": {"longest_edge": 256}, "pad_size": {"height": 256, "width": 256}}, 0),
    ],
)
def test_pixels_are_those_of_the_image_processors(name, options, grey_values, photographs, tmp_path):
    with_pillow, with_torchvision = (
        build_image_processor(name, backend, options) for backend in ("pil", "torchvision")
    )
    with_pillow.save_pretrained(tmp_path)
    settings = preprocessing.read_json(tmp_path, "preprocessor_config.json")
    for photograph in photographs:
        image = Image.fromarray(photograph)
        inputs = preprocessing.preprocess(image, settings)
        expected = with_pillow(image, return_tensors="np")
        assert inputs.keys() == expected.keys()
        for key, array in inputs.items():
            np.testing.assert_array_equal(array, expected[key])
            assert array.dtype == expected[key].dtype and array.flags.c_contiguous
        grey_value = 1 / 255 / np.array(settings["image_std"])[:, None, None]
        difference = inputs["pixel_values"] - with_torchvision(image, return_tensors="np")["pixel_values"]
        assert np.abs(difference / grey_value).max() < grey_values + 1e-3


@pytest.mark.parametrize("size", [(50, 90), (31, 20)])
def test_label_maps_are_those_of_the_image_processor(size):
    generator = torch.Generator().manual_seed(0)
    image_processor = InternImageMask2FormerImageProcessorPil()
    for outputs in (
        SemanticSegmenterOutput(logits=torch.randn(1, 7, 32, 48, generator=generator)),
        Mask2FormerForUniversalSegmentationOutput(
            class_queries_logits=torch.randn(1, 20, 8, generator=generator),
            masks_queries_logits=3 * torch.randn(1, 20, 8, 12, generator=generator),
        ),
    ):
        expected = image_processor.post_process_semantic_segmentation(outputs, target_sizes=[size])[0]
        labels = preprocessing.label_map({name: tensor.numpy() for name, tensor in outputs.items()}, *size)
        assert labels.shape == size and (labels == expected.numpy()).mean() > 0.999  # ties, within rounding


@pytest.mark.parametrize("threshold", [0.0, 0.5, 0.999])
def test_detections_are_those_of_the_image_processors(threshold):
    generator = torch.Generator().manual_seed(0)
    centre, size = torch.rand(2, 1, 40, 2, generator=generator)
    size[:, 3, 0] = 0  # a box without width
    boxes, size = torch.cat([centre, size], dim=-1), (70, 110)
    scores = torch.rand(1, 40, generator=generator).sort(descending=True).values
    mask_rcnn = MaskRCNNObjectDetectionOutput(
        pred_boxes=boxes,
        pred_scores=scores,
        pred_labels=torch.arange(40)[None],
        pred_masks=torch.randn(1, 40, 28, 28, generator=generator),
    )
    dino = DinoDetrObjectDetectionOutput(pred_boxes=boxes, logits=torch.randn(1, 40, 5, generator=generator))
    for outputs, expected in (
        (
            mask_rcnn,
            MaskRCNNImageProcessorPil().post_process_instance_segmentation(mask_rcnn, threshold, target_sizes=[size]),
        ),
        (dino, DinoDetrImageProcessorPil().post_process_object_detection(dino, threshold, target_sizes=[size])),
    ):
        outputs = {name: tensor.numpy() for name, tensor in outputs.items()}
        result = preprocessing.detections(outputs, *size, threshold)
        assert ("masks" in result) == ("pred_masks" in outputs)
        np.testing.assert_array_equal(result["labels"], expected[0]["labels"])
        np.testing.assert_allclose(result["scores"], expected[0]["scores"], rtol=1e-6)
        np.testing.assert_allclose(result["boxes"], expected[0]["boxes"], atol=1e-4)
        if "masks" in result:
            assert result["masks"].shape == expected[0]["masks"].shape
            assert (result["masks"] != expected[0]["masks"].numpy()).sum() <= 1e-5 * result["masks"].size


def test_preprocessing_needs_neither_torch_nor_transformers():
    code = "import sys, examples.deployment.preprocessing; assert not {'torch', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=True)
