# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""Detection: image processing, labels, what is made of the outputs."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from testing_utils import GOLDEN
from transformers import AutoImageProcessor
from transformers.models.detr.image_processing_pil_detr import binary_mask_to_rle

from modeling_internimage import MaskRCNNObjectDetectionOutput
from modeling_internimage.coco_annotations import check_segmentation, decode_mask
from modeling_internimage.dino_detr import DINO_DETR_IMAGE_PROCESSOR_CLASSES
from modeling_internimage.mask_rcnn import MASK_RCNN_IMAGE_PROCESSOR_CLASSES


BACKENDS = sorted(MASK_RCNN_IMAGE_PROCESSOR_CLASSES)
PREPROCESS = json.loads((GOLDEN / "detection" / "preprocess.json").read_text())["description"]
INPUTS = {"wide": ([452, 10], (37, 53, 3)), "long": ([452, 11], (20, 90, 3)), "tall": ([452, 12], (71, 40, 3))}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", INPUTS)
def test_golden_preprocessing(name, backend):
    """Bytes equal OpenCV's, the padded numbers the original's; the mask marks what is not padding."""
    arrays, description = np.load(GOLDEN / "detection" / "preprocess.npz"), PREPROCESS[name]
    seed, shape = INPUTS[name]
    image = np.random.Generator(np.random.PCG64(seed)).integers(0, 256, shape, np.uint8)
    longest_edge, shortest_edge = description["img_scale"]
    image_processor = MASK_RCNN_IMAGE_PROCESSOR_CLASSES[backend](
        size={"shortest_edge": shortest_edge, "longest_edge": longest_edge}
    )
    height, width, _ = description["img_shape"]
    resized = image_processor(image, do_rescale=False, do_normalize=False, return_tensors="np")["pixel_values"][0]
    np.testing.assert_array_equal(resized.transpose(1, 2, 0)[:height, :width], arrays[f"{name}.resized_uint8_rgb"])
    batch = image_processor(Image.fromarray(image), return_tensors="pt")
    expected = torch.from_numpy(arrays[f"{name}.padded_normalised_hwc"]).permute(2, 0, 1)[None]
    torch.testing.assert_close(batch["pixel_values"], expected, rtol=0, atol=2e-6)
    mask = batch["pixel_mask"][0]
    assert mask.dtype == torch.int64 and mask.shape == expected.shape[2:]
    assert mask[:height, :width].all() and mask.sum() == height * width


@pytest.mark.parametrize("backend", BACKENDS)
def test_batch_of_different_sizes(backend):
    image_processor = MASK_RCNN_IMAGE_PROCESSOR_CLASSES[backend](size={"shortest_edge": 40, "longest_edge": 100})
    images = [np.full((40, 70, 3), 255, np.uint8), np.full((90, 45, 3), 255, np.uint8)]
    batch = image_processor(images, return_tensors="pt")
    assert batch["pixel_values"].shape == (2, 3, 96, 96)
    assert [mask.sum().item() for mask in batch["pixel_mask"]] == [40 * 70, 80 * 40]
    assert ((batch["pixel_values"] != 0).all(dim=1) == (batch["pixel_mask"] > 0)).all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "size, expected",
    [
        ({"shortest_edge": 20}, (20, 180)),  # as DETR's image processor: the longer edge has no limit
        (20, (20, 180)),
        ({"longest_edge": 90}, (10, 90)),
        ({"shortest_edge": 20, "longest_edge": 90}, (10, 90)),
        ({"height": 30, "width": 50}, (30, 50)),
    ],
)
def test_sizes(size, expected, backend):
    image_processor = MASK_RCNN_IMAGE_PROCESSOR_CLASSES[backend](size=size)
    batch = image_processor(np.zeros((40, 360, 3), np.uint8), return_tensors="pt")
    assert (batch["pixel_mask"][0].sum(dim=0).max(), batch["pixel_mask"][0].sum(dim=1).max()) == expected


@pytest.mark.parametrize(
    "size",
    [
        {"shortest_edge": 0}, {"shortest_edge": -5}, {"shortest_edge": 20, "longest_edge": -1},
        {"height": 0, "width": 9}, {"max_height": 20, "max_width": 20}, {"height": 20}, {"edge": 20},
    ],
)  # fmt: skip
def test_bad_sizes(size):
    with pytest.raises(ValueError, match="size"):
        MASK_RCNN_IMAGE_PROCESSOR_CLASSES["pil"](size=size)(np.zeros((40, 360, 3), np.uint8))


@pytest.mark.parametrize("backend", BACKENDS)
def test_image_processor_round_trip(backend, tmp_path):
    size = {"shortest_edge": 64, "longest_edge": 256}
    image_processor = MASK_RCNN_IMAGE_PROCESSOR_CLASSES[backend](size=size, size_divisor=64, category_ids=[3, 7])
    image_processor.save_pretrained(tmp_path)
    loaded = AutoImageProcessor.from_pretrained(tmp_path, backend=backend)
    assert type(loaded) is type(image_processor) and loaded.to_dict() == image_processor.to_dict()
    assert loaded.category_ids == [3, 7] and loaded.size_divisor == 64


SQUARE = [10, 20, 30, 20, 30, 40, 10, 40]  # corners of a square of 20 pixels


def annotation(**kwargs) -> dict:
    return {"bbox": [10, 20, 20, 20], "category_id": 0, "area": 400, "iscrowd": 0, "segmentation": [SQUARE]} | kwargs


@pytest.mark.parametrize("backend", BACKENDS)
def test_labels(backend):
    """An image of 100x50 pixels at half the size: boxes relative to it, masks in its pixels, ids with gaps."""
    pytest.importorskip("pycocotools")
    image_processor = MASK_RCNN_IMAGE_PROCESSOR_CLASSES[backend](
        size={"shortest_edge": 25, "longest_edge": 50}, category_ids=[1, 5, 90]
    )
    square = np.zeros((100, 50), np.uint8)
    square[20:40, 10:30] = 1
    runs = np.diff(np.flatnonzero(np.diff(square.T.ravel(), prepend=2))).tolist()
    uncompressed = {"size": [100, 50], "counts": [*runs, square.size - sum(runs)]}
    entries = [
        annotation(category_id=90),
        annotation(category_id=1, segmentation=uncompressed),
        annotation(category_id=5, bbox=[-10, 90, 30, 30], area=900),  # beyond the image
        annotation(category_id=5, iscrowd=1),
        annotation(category_id=5, bbox=[5, 5, 0, 10], area=0),
        annotation(category_id=5, bbox=[60, 5, 10, 10]),  # outside
        annotation(category_id=5, area=0),
        annotation(category_id=5, ignore=1),
    ]
    image = np.zeros((100, 50, 3), np.uint8)
    batch = image_processor(
        image, {"image_id": 7, "annotations": entries}, return_segmentation_masks=True, return_tensors="pt"
    )
    (labels,) = batch["labels"]
    assert labels["class_labels"].tolist() == [2, 0, 1]
    torch.testing.assert_close(
        labels["boxes"], torch.tensor([[0.4, 0.3, 0.4, 0.2], [0.4, 0.3, 0.4, 0.2], [0.2, 0.95, 0.4, 0.1]])
    )
    assert labels["orig_size"].tolist() == [100, 50] and labels["size"].tolist() == [50, 25]
    assert labels["masks"].shape == (3, 50, 25) and labels["masks"].dtype == torch.bool
    assert torch.equal(labels["masks"][0], torch.from_numpy(square[::2, ::2] > 0))
    assert torch.equal(labels["masks"][0], labels["masks"][1])

    (labels,) = image_processor(
        image, {"image_id": 7, "annotations": []}, return_segmentation_masks=True, return_tensors="pt"
    )["labels"]
    assert labels["boxes"].shape == (0, 4) and labels["masks"].shape == (0, 50, 25)


@pytest.mark.parametrize(
    "segmentation",
    [SQUARE, [[1, 2, 3, 4], SQUARE, []], [np.array(SQUARE, dtype=np.float32)], np.array([SQUARE]), (tuple(SQUARE),)],
    ids=["flat", "fragments", "array", "arrays", "tuples"],
)
def test_forms_of_polygons(segmentation):
    pytest.importorskip("pycocotools")
    image_processor = MASK_RCNN_IMAGE_PROCESSOR_CLASSES["pil"](do_resize=False)
    entry = annotation(segmentation=segmentation, bbox=np.array([10, 20, 20, 20]), area=None, iscrowd=None)
    (labels,) = image_processor(
        np.zeros((100, 50, 3), np.uint8),
        {"image_id": 7, "annotations": [entry]},
        return_segmentation_masks=True,
        return_tensors="pt",
    )["labels"]
    expected = torch.zeros(1, 100, 50, dtype=torch.bool)
    expected[:, 20:40, 10:30] = True
    assert torch.equal(labels["masks"], expected)


def test_compressed_run_lengths():
    """Strings of pycocotools are accepted; with a character changed they no longer fill the image."""
    coco_mask = pytest.importorskip("pycocotools.mask")
    random = np.random.default_rng(0)
    for height, width in ((1, 1), (7, 5), (300, 200)):
        for density in (0.0, 0.01, 0.5, 1.0):
            mask = (random.random((height, width)) < density).astype(np.uint8)
            counts = coco_mask.encode(np.asfortranarray(mask))["counts"]
            for form in (counts, counts.decode()):
                entry = annotation(segmentation={"size": [height, width], "counts": form})
                decoded = decode_mask(check_segmentation(entry, 7, height, width), height, width)
                assert np.array_equal(decoded, mask)
            changed = bytearray(counts)
            changed[random.integers(len(changed))] ^= 1 << random.integers(5)
            entry["segmentation"]["counts"] = bytes(changed)
            with pytest.raises(ValueError, match="run lengths"):
                check_segmentation(entry, 7, height, width)
    for counts in ("", "\ud800", "~", "o" * 20, "P" * 9, "\0"):
        with pytest.raises(ValueError, match="run lengths"):
            check_segmentation(annotation(segmentation={"size": [9, 9], "counts": counts}), 7, 9, 9)


@pytest.mark.parametrize(
    "entries, message",
    [
        ([annotation(category_id=2)], "Image 7 has an annotation of category 2, which is not in `category_ids`"),
        ([annotation(bbox=[1, 2, 3, float("nan")])], r"An annotation of image 7 has the `bbox` \[1, 2, 3, nan\]"),
        ([annotation(category_id="1")], "has the category '1': `category_id` must be a whole number, and no text"),
        ([annotation(id=5, iscrowd="0")], "Annotation 5 of image 7 has `iscrowd` '0': it must be 0 or 1"),
        ([annotation(area="9")], "has the `area` '9'"),
        ([annotation(segmentation=None)], "An annotation of image 7 has no `segmentation`"),
        ([annotation(segmentation=[[1, 2, 3, 4]])], "has no polygon with three corners"),
        ([annotation(segmentation=[[]])], "has no polygon with three corners"),
        ([annotation(segmentation=[[*SQUARE, 1]])], "has the polygon"),
        ([annotation(segmentation=[[1e9, *SQUARE[1:]]])], "has the polygon"),
        ([annotation(segmentation=[[10**400, *SQUARE[1:]]])], "has the polygon"),
        ([annotation(segmentation=[[*SQUARE[:-1], float("nan")]])], "has the polygon"),
        ([annotation(segmentation=[["1", *SQUARE[1:]]])], "has the polygon"),
        ([annotation(segmentation=[[-1e5, -1e5, 1e5, 1e5] * 20])], "outline of more than 2000000 pixels"),
        ([annotation(segmentation={"size": [9, 9], "counts": [0, 81]})], "9x9 pixels .*, but the image has 100x50"),
        ([annotation(segmentation={"size": [100], "counts": [0, 5000]})], r"a mask of size \[100\]"),
        ([annotation(segmentation={"size": [100, 50], "counts": [0, 4999]})], "run lengths .* add up to .* 100x50"),
        ([annotation(segmentation={"size": [100, 50], "counts": [5001, -1]})], "run lengths"),
        ([annotation(segmentation={"size": [100, 50], "counts": [0, 5000.0]})], "run lengths"),
        ([annotation(segmentation={"size": [100, 50], "counts": "0b"})], "run lengths"),
        ([annotation(segmentation={"size": [100, 50]})], "run lengths None"),
        (None, "must be dictionaries with `image_id` and `annotations`"),
    ],
)
def test_bad_annotations(entries, message):
    """(What is wrong with a mask has crashed pycocotools, or left its memory as it was.)"""
    pytest.importorskip("pycocotools")
    image_processor = MASK_RCNN_IMAGE_PROCESSOR_CLASSES["pil"](category_ids=[0, 1])
    image = np.zeros((100, 50, 3), np.uint8)
    annotations = {"image_id": 7, "annotations": entries} if entries else {"image_id": 7}
    with pytest.raises(ValueError, match=message):
        image_processor(image, annotations, return_segmentation_masks=True)
    with pytest.raises(ValueError, match="`image_id` must be a whole number, got 'a.jpg'. Give the images numbers"):
        image_processor(image, {"image_id": "a.jpg", "annotations": []})
    with pytest.raises(ValueError, match="`annotations` must have an entry for each of the 2 images"):
        image_processor([image, image], [annotations])


@pytest.mark.parametrize(
    "target_sizes",
    [
        torch.tensor([[20, 40], [10, 30]]),
        [torch.tensor([20, 40]), torch.tensor([10, 30])],
        [[torch.tensor(20), torch.tensor(40)], (10, 30)],
        np.array([[20, 40], [10, 30]]),
        ((20.0, 40.0), (10.0, 30.0)),
    ],
)
def test_target_sizes(target_sizes):
    """As `labels` or a pipeline have them: numbers in tensors, arrays, lists."""
    outputs = MaskRCNNObjectDetectionOutput(
        pred_boxes=torch.tensor([[[0.5, 0.5, 1.0, 1.0]]] * 2),
        pred_scores=torch.tensor([[0.9]] * 2),
        pred_labels=torch.tensor([[0]] * 2),
        pred_masks=torch.ones(2, 1, 28, 28),
    )
    image_processor = MASK_RCNN_IMAGE_PROCESSOR_CLASSES["pil"]()
    results = image_processor.post_process_instance_segmentation(outputs, target_sizes=target_sizes)
    assert [result["boxes"].tolist() for result in results] == [[[0, 0, 40, 20]], [[0, 0, 30, 10]]]
    assert [result["masks"].shape for result in results] == [(1, 20, 40), (1, 10, 30)]
    assert [result["segmentation"].shape for result in results] == [(20, 40), (10, 30)]
    assert list(results[0]) == ["scores", "labels", "boxes", "masks", "segmentation", "segments_info"]


@pytest.mark.parametrize("target_sizes", [[], torch.zeros(0, 2)])
def test_post_processing_of_no_images(target_sizes):
    outputs = MaskRCNNObjectDetectionOutput(
        pred_boxes=torch.zeros(0, 7, 4),
        pred_scores=torch.zeros(0, 7),
        pred_labels=torch.zeros(0, 7, dtype=torch.int64),
        pred_masks=torch.zeros(0, 7, 28, 28),
    )
    image_processor = MASK_RCNN_IMAGE_PROCESSOR_CLASSES["pil"]()
    assert image_processor.post_process_instance_segmentation(outputs, target_sizes=target_sizes) == []
    with pytest.raises(ValueError, match="`target_sizes` must have a height and a width for each of the 0 images"):
        image_processor.post_process_object_detection(outputs, target_sizes=[(1, 2)])


def test_post_processing():
    """Boxes and masks in the pixels of the original image, above the threshold; none of the filled-up rows."""
    outputs = MaskRCNNObjectDetectionOutput(
        pred_boxes=torch.tensor([[[0.5, 0.5, 0.5, 0.5], [0.25, 0.5, 0.5, 1.0], [0, 0, 0, 0]]]),
        pred_scores=torch.tensor([[0.9, 0.3, 0.0]]),
        pred_labels=torch.tensor([[2, 1, -1]]),
        pred_masks=torch.ones(1, 3, 28, 28),
    )
    image_processor = MASK_RCNN_IMAGE_PROCESSOR_CLASSES["pil"]()
    (result,) = image_processor.post_process_instance_segmentation(outputs, target_sizes=[(20, 40)])
    assert result["boxes"].tolist() == [[10, 5, 30, 15], [0, 0, 20, 20]]
    assert result["labels"].tolist() == [2, 1]
    expected = torch.zeros(2, 20, 40, dtype=torch.bool)
    expected[0, 5:15, 10:30] = expected[1, :, :20] = True
    assert torch.equal(result["masks"], expected)
    (result,) = image_processor.post_process_object_detection(outputs, threshold=0.5)
    assert result["boxes"].tolist() == [[0.25, 0.25, 0.75, 0.75]] and "masks" not in result
    (result,) = image_processor.post_process_object_detection(outputs, threshold=0.0)
    assert len(result["scores"]) == 2
    with pytest.raises(ValueError, match="`target_sizes` must have a height and a width for each of the 1 images"):
        image_processor.post_process_object_detection(outputs, target_sizes=[(1, 2), (3, 4)])
    with pytest.raises(ValueError, match="for each of the 1 images, got shape .2,."):
        image_processor.post_process_object_detection(outputs, target_sizes=(20, 40))
    with pytest.raises(ValueError, match="Masks need `target_sizes`"):
        image_processor.post_process_instance_segmentation(outputs)
    for without_masks in (MaskRCNNObjectDetectionOutput(pred_boxes=outputs.pred_boxes), SimpleNamespace()):
        with pytest.raises(ValueError, match="The model has no mask heads"):
            image_processor.post_process_instance_segmentation(without_masks, target_sizes=[(20, 40)])


def overlapping_detections() -> MaskRCNNObjectDetectionOutput:
    """In an image of 8x8 pixels: the left half, a column of it, the lower half, and the right half."""
    return MaskRCNNObjectDetectionOutput(
        pred_boxes=torch.tensor(
            [[[0.25, 0.5, 0.5, 1], [0.125, 0.5, 0.25, 1], [0.5, 0.75, 1, 0.5], [0.75, 0.5, 0.5, 1], [0.0] * 4]]
        ),
        pred_scores=torch.tensor([[0.9, 0.8, 0.7, 0.6, 0.0]]),
        pred_labels=torch.tensor([[2, 1, 0, 2, -1]]),
        pred_masks=torch.full((1, 5, 28, 28), 9.0),
    )


@pytest.mark.parametrize("share, ids", [(0.0, [0, 1, 2, 3]), (0.5, [0, 2, 3]), (0.6, [0]), (1.0, [0])])
def test_segmentation_map(share, ids):
    """The best detection is on top; what is hidden by more than asked for leaves the map, not the masks."""
    image_processor = MASK_RCNN_IMAGE_PROCESSOR_CLASSES["pil"]()
    (result,) = image_processor.post_process_instance_segmentation(
        overlapping_detections(), overlap_mask_area_threshold=share, target_sizes=[(8, 8)]
    )
    expected = torch.full((8, 8), -1)
    expected[:, :4] = 0
    if 2 in ids:
        expected[4:, 4:] = 2
        expected[:4, 4:] = 3
    assert torch.equal(result["segmentation"].long(), expected) and result["segmentation"].dtype == torch.int32
    assert [segment["id"] for segment in result["segments_info"]] == ids
    labels, scores = [2, 1, 0, 2], [0.9, 0.8, 0.7, 0.6]
    for segment in result["segments_info"]:
        idx = segment["id"]
        assert segment == {"id": idx, "label_id": labels[idx], "was_fused": False, "score": scores[idx]}
    assert result["masks"].sum(dim=(1, 2)).tolist() == [32, 16, 32, 32] and len(result["scores"]) == 4


def test_whole_masks():
    """`return_binary_maps` and `return_coco_annotation` have every detection."""
    image_processor = MASK_RCNN_IMAGE_PROCESSOR_CLASSES["pil"]()
    outputs, sizes = overlapping_detections(), [(8, 8)]
    (result,) = image_processor.post_process_instance_segmentation(
        outputs, target_sizes=sizes, return_binary_maps=True
    )
    assert torch.equal(result["segmentation"], result["masks"]) and result["segmentation"].dtype == torch.bool
    assert [segment["id"] for segment in result["segments_info"]] == [0, 1, 2, 3]
    (result,) = image_processor.post_process_instance_segmentation(
        outputs, target_sizes=sizes, return_coco_annotation=True
    )
    rows = [start for row in range(8) for start in (8 * row + 1, 2)]
    assert result["segmentation"][1:3] == [rows, [33, 32]]
    # The functions of transformers for the same.
    expected = [binary_mask_to_rle(mask.int()) for mask in result["masks"]]
    assert result["segmentation"] == expected
    with pytest.raises(ValueError, match="exclude each other"):
        image_processor.post_process_instance_segmentation(outputs, 0.5, 0.5, 0.5, sizes, True, True)
    (result,) = image_processor.post_process_instance_segmentation(outputs, threshold=0.95, target_sizes=sizes)
    assert (
        result["segments_info"] == [] and (result["segmentation"] == -1).all() and result["masks"].shape == (0, 8, 8)
    )


@pytest.mark.parametrize("backend", BACKENDS)
def test_dino_preprocessing(backend):
    """Images, masks of the padding and labels are those of the two-stage detectors."""
    pytest.importorskip("pycocotools")
    size = {"shortest_edge": 40, "longest_edge": 100}
    photographs = np.random.default_rng(0).integers(0, 256, (2, 100, 50, 3), np.uint8)
    images = [photographs[0], photographs[1, :70]]
    annotations = [{"image_id": idx, "annotations": [annotation(category_id=9)]} for idx in range(2)]
    batches = [
        classes[backend](size=size, category_ids=[7, 9])(
            images, annotations, return_segmentation_masks=True, return_tensors="pt"
        )
        for classes in (MASK_RCNN_IMAGE_PROCESSOR_CLASSES, DINO_DETR_IMAGE_PROCESSOR_CLASSES)
    ]
    for name in ("pixel_values", "pixel_mask"):
        assert torch.equal(batches[0][name], batches[1][name])
    for expected, actual in zip(batches[0]["labels"], batches[1]["labels"]):
        assert expected.keys() == actual.keys() and all(torch.equal(expected[name], actual[name]) for name in expected)


@pytest.mark.parametrize("name, max_detections", [("dino_t_like", 30), ("cb_dino_h_like", 25)])
def test_golden_dino_detections(name, max_detections, tmp_path):
    """Boxes in the original images, scores and classes, from the outputs of the last layer."""
    arrays = np.load(GOLDEN / "detection" / f"{name}.npz")
    sizes = json.loads((GOLDEN / "detection" / f"{name}.json").read_text())["ori_shapes"]
    DINO_DETR_IMAGE_PROCESSOR_CLASSES["pil"](max_detections=max_detections).save_pretrained(tmp_path)
    image_processor = DINO_DETR_IMAGE_PROCESSOR_CLASSES["pil"].from_pretrained(tmp_path)
    logits, boxes = (torch.from_numpy(arrays[array][-1]) for array in ("class_logits", "boxes_cxcywh"))
    outputs = SimpleNamespace(logits=logits, pred_boxes=boxes)
    results = image_processor.post_process_object_detection(outputs, target_sizes=sizes)
    assert len(results) == len(sizes)
    for idx, result in enumerate(results):
        expected = torch.from_numpy(arrays[f"det_boxes_scores.{idx}"])
        assert torch.equal(result["labels"], torch.from_numpy(arrays[f"det_labels.{idx}"]))
        torch.testing.assert_close(result["boxes"], expected[:, :4], rtol=0, atol=5e-5)
        torch.testing.assert_close(result["scores"], expected[:, 4])


def dino_outputs(dtype=torch.float32) -> SimpleNamespace:
    """Two queries and three classes; the first box reaches beyond the image."""
    logits = torch.tensor([[[0.0, 2.0, -3.0], [1.0, -40.0, 3.0]]], dtype=dtype)
    return SimpleNamespace(logits=logits, pred_boxes=torch.tensor([[[0.25, 0.5, 1.0, 0.5], [0.5] * 4]], dtype=dtype))


def test_dino_post_processing():
    """A query may be detected as several classes; float16 loses no detection."""
    image_processor = DINO_DETR_IMAGE_PROCESSOR_CLASSES["pil"](max_detections=4)
    (result,) = image_processor.post_process_object_detection(dino_outputs(), target_sizes=[(20, 40)])
    assert result["labels"].tolist() == [2, 1, 0, 0]
    first, second = [0, 5, 30, 15], [10, 5, 30, 15]
    assert result["boxes"].tolist() == [second, first, second, first]
    torch.testing.assert_close(result["scores"], torch.tensor([3.0, 2.0, 1.0, 0.0]).sigmoid())
    (result,) = image_processor.post_process_object_detection(dino_outputs(), threshold=0.6, top_k=100)
    assert result["labels"].tolist() == [2, 1, 0] and result["boxes"][0].tolist() == [0.25, 0.25, 0.75, 0.75]
    (result,) = image_processor.post_process_object_detection(dino_outputs(torch.float16), top_k=100)
    assert len(result["scores"]) == 6 and result["boxes"].dtype == torch.float32
    nothing = SimpleNamespace(logits=torch.zeros(0, 2, 3), pred_boxes=torch.zeros(0, 2, 4))
    assert image_processor.post_process_object_detection(nothing, target_sizes=[]) == []


@pytest.mark.parametrize(
    "change, arguments, error, message",
    [
        ({}, {"target_sizes": [(1, 2), (3, 4)]}, ValueError, "for each of the 1 images, got shape .2, 2."),
        ({}, {"top_k": 0}, ValueError, "`top_k` .or `max_detections`. must be at least 1, got 0"),
        ({"logits": torch.full((1, 2, 3), torch.nan)}, {}, FloatingPointError, "detections are not finite"),
        ({"pred_boxes": torch.full((1, 2, 4), torch.inf)}, {}, FloatingPointError, "outputs are torch.float32"),
    ],
)
def test_bad_dino_outputs(change, arguments, error, message):
    outputs = SimpleNamespace(**vars(dino_outputs()) | change)
    with pytest.raises(error, match=message):
        DINO_DETR_IMAGE_PROCESSOR_CLASSES["pil"]().post_process_object_detection(outputs, **arguments)
