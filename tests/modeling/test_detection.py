# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""Two-stage detection: boxes, training, the model. Numbers of whole models: tests/conversion."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from PIL import Image
from safetensors.torch import load_file
from testing_utils import GOLDEN, randomize
from torch import nn
from transformers import (
    AutoModelForInstanceSegmentation,
    AutoModelForObjectDetection,
    DetrImageProcessorPil,
    ResNetConfig,
    Trainer,
    TrainingArguments,
    pipeline,
)

from modeling_internimage import MaskRCNNConfig, MaskRCNNForObjectDetection, MaskRCNNImageProcessorPil
from modeling_internimage.detection.targets import prepare_targets
from modeling_internimage.mask_rcnn.boxes import anchor_boxes, clip_boxes, decode_boxes, encode_boxes, paste_masks
from modeling_internimage.mask_rcnn.loss_mask_rcnn import (
    BACKGROUND,
    IGNORED,
    SampledProposals,
    box_head_losses,
    box_loss,
    mask_loss,
    match_boxes,
    rpn_losses,
    sample_matches,
)
from modeling_internimage.mask_rcnn.modeling_mask_rcnn import (
    MaskRCNNRegionProposalNetwork,
    MaskRCNNRoIAlign,
    MaskRCNNRoIHeads,
    logits_of_labels,
    select_detections,
)


torchvision_ops = pytest.importorskip("torchvision.ops")  # without it there is no model

OPS = np.load(GOLDEN / "detection" / "ops.npz")
# The arrays are rounded to float32; boxes are some thousand pixels large before they are cut.
OPS_TOLERANCE = {"rtol": 1e-6, "atol": 2e-5}
STDS = {"rpn": [1.0] * 4, "rcnn": [0.1, 0.1, 0.2, 0.2], "stage1": [0.05, 0.05, 0.1, 0.1]}
STDS |= {"stage2": [0.033, 0.033, 0.067, 0.067]}


def golden(name: str) -> torch.Tensor:
    return torch.from_numpy(OPS[name])


def test_golden_anchors():
    for level, stride in enumerate((4, 8, 16, 32, 64)):
        anchors = anchor_boxes(2, 3, stride, 8, [0.5, 1.0, 2.0])
        torch.testing.assert_close(anchors, golden(f"anchors.grid_2x3.{level}"), **OPS_TOLERANCE)
        torch.testing.assert_close(anchors[:3], golden("anchors.base")[level], **OPS_TOLERANCE)


@pytest.mark.parametrize("name", [*STDS, "per_class"])
def test_golden_boxes(name):
    """Deltas to boxes; and boxes to deltas, where nothing was cut."""
    stds = STDS.get(name, STDS["rcnn"])
    boxes = golden("decode.rois")[:, None]
    deltas = golden(f"decode.{name}.deltas").unflatten(1, (-1, 4))
    decoded = decode_boxes(boxes, deltas, stds)
    clipped = clip_boxes(decoded, torch.tensor([128, 160])).flatten(1)
    torch.testing.assert_close(clipped, golden(f"decode.{name}.out"), **OPS_TOLERANCE)
    again = encode_boxes(boxes.expand_as(decoded).flatten(0, 1).double(), decoded.flatten(0, 1).double(), stds)
    moderate = (again * again.new_tensor(stds))[:, 2:].abs().amax(dim=1) < 4
    torch.testing.assert_close(again[moderate].float(), deltas.flatten(0, 1)[moderate], rtol=1e-4, atol=1e-4)


def test_golden_regions():
    feature_maps = []
    for level, stride in enumerate((4, 8, 16, 32)):
        shape = (1, 3, 512 // stride, 512 // stride)
        generator = np.random.Generator(np.random.PCG64([401 + level, 12345]))
        feature_maps.append(torch.from_numpy(generator.standard_normal(shape, dtype=np.float32)))
    rois = golden("roi.rois")
    roi_align = MaskRCNNRoIAlign(MaskRCNNConfig(), 7)
    assert roi_align.levels(rois).tolist() == golden("roi.level").tolist()
    torch.testing.assert_close(roi_align(feature_maps, rois), golden("roi.feats7"), rtol=1e-4, atol=1e-4)
    one_level = MaskRCNNRoIAlign(MaskRCNNConfig(feature_strides=[4]), 14)
    regions = one_level(feature_maps, rois[:6])
    torch.testing.assert_close(regions, golden("roi.feats14_level0"), rtol=1e-4, atol=1e-4)


def test_golden_suppression():
    for threshold in (0.5, 0.7):
        kept = torchvision_ops.batched_nms(golden("nms.boxes"), golden("nms.scores"), golden("nms.labels"), threshold)
        assert kept.tolist() == golden(f"nms.keep_{threshold}").tolist()
    boxes, all_scores = golden("multiclass_nms.boxes").unflatten(1, (4, 4)), golden("multiclass_nms.scores")[:, :-1]
    scores, row, label = select_detections(boxes[None], all_scores[None], 0.05, 0.5, 30)
    assert (row * 4 + label).tolist() == [golden("multiclass_nms.flat_index").tolist()]
    assert label.tolist() == [golden("multiclass_nms.labels").tolist()]
    detections = torch.cat((boxes[row[0], label[0]], scores[0, :, None]), dim=1)
    torch.testing.assert_close(detections, golden("multiclass_nms.dets"))
    # The size of the image does not matter: overlaps are relative.
    scaled = select_detections(boxes[None] * torch.tensor([2.17, 1.46, 2.17, 1.46]), all_scores[None], 0.05, 0.5, 30)
    assert torch.equal(scaled[1], row) and torch.equal(scaled[2], label)


def test_golden_pasting():
    masks = paste_masks(golden("paste.mask_logits")[:, 0].sigmoid(), golden("paste.boxes"), 48, 60)
    torch.testing.assert_close(masks, golden("paste.probs"), rtol=0, atol=1e-5)
    assert torch.equal(masks >= 0.5, golden("paste.binary") > 0)


def test_matching():
    """Ten boxes of width 10, shifted along x: intersection over union is (10 - d) / (10 + d)."""
    shifts = torch.tensor([0.0, 1, 3, 5, 7, 100, 204, 205, 500, 0])
    boxes = torch.stack((shifts, shifts * 0, shifts + 10, shifts * 0 + 10), dim=1)
    boxes[9] = 0  # empty
    targets = torch.tensor([[0.0, 0, 10, 10], [200.0, 0, 210, 10]])
    # Overlaps: 1, 0.82, 0.54, 0.33, 0.18 with the first, 0.43 and 0.33 with the second.
    matches = match_boxes(boxes, targets, 0.7, 0.3, allow_low_quality_matches=False)
    none, between = BACKGROUND, IGNORED
    assert matches.tolist() == [0, 0, between, between, none, none, between, between, none, none]
    matches = match_boxes(boxes, targets, 0.7, 0.3, allow_low_quality_matches=True)
    assert matches.tolist() == [0, 0, between, between, none, none, 1, between, none, none]
    matches = match_boxes(boxes, targets, 0.5, 0.5, allow_low_quality_matches=True)
    assert matches.tolist() == [0, 0, 0, none, none, none, none, none, none, none]
    assert match_boxes(boxes, targets[:0], 0.7, 0.3, True).tolist() == [none] * 10
    assert match_boxes(boxes[:0], targets, 0.7, 0.3, True).tolist() == []
    # The best box of the second target, although it overlaps the first more.
    targets = torch.tensor([[0.0, 0, 10, 10], [0.0, 0, 10, 4]])
    assert match_boxes(boxes[:1], targets, 0.3, 0.3, False).tolist() == [0]
    assert match_boxes(boxes[:1], targets, 0.3, 0.3, True).tolist() == [1]


def test_sampling():
    matches = torch.tensor([0] * 10 + [BACKGROUND] * 50 + [IGNORED] * 5)
    positive, negative = sample_matches(matches, 16, 0.25)
    assert len(positive) == 4 and len(negative) == 12 and len({*positive.tolist(), *negative.tolist()}) == 16
    assert (matches[positive] == 0).all() and (matches[negative] == BACKGROUND).all()
    positive, negative = sample_matches(matches, 1000, 0.25)  # all there are
    assert len(positive) == 10 and len(negative) == 50
    positive, negative = sample_matches(matches[10:], 16, 0.25)  # no object
    assert len(positive) == 0 and len(negative) == 16


def test_box_losses():
    """By hand."""
    predicted, targets = torch.tensor([[0.0, 0.5, 3.0, 0.0]]), torch.zeros(1, 4)
    assert box_loss(predicted, targets, "l1", 1.0).item() == 3.5
    assert box_loss(predicted, targets, "smooth_l1", 1.0).item() == 0.125 + 2.5
    boxes = torch.tensor([[0.0, 0, 2, 2], [0.0, 0, 2, 2], [0.0, 0, 2, 2], [1.0, 1, 1, 1]])
    targets = torch.tensor([[0.0, 0, 2, 2], [1.0, 0, 3, 2], [4.0, 0, 6, 2], [1.0, 1, 1, 1]])
    expected = [0, 1 - 1 / 3, 1 + 1 / 3, 1]  # the same, half, apart (a third of the hull is empty), empty
    losses = [box_loss(*pair, "giou", 1.0) for pair in zip(boxes.split(1), targets.split(1))]
    torch.testing.assert_close(torch.stack(losses), torch.tensor(expected), rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", ["l1", "smooth_l1", "giou"])
def test_gradients_of_box_losses(kind):
    generator = torch.Generator().manual_seed(0)
    start = torch.rand(6, 2, generator=generator, dtype=torch.float64) * 10
    predicted = torch.cat((start, start + 1 + 5 * torch.rand(6, 2, generator=generator, dtype=torch.float64)), dim=1)
    targets = predicted.roll(1, dims=0) + 0.3
    predicted.requires_grad_()
    assert torch.autograd.gradcheck(lambda boxes: box_loss(boxes, targets, kind, 1.0), predicted)


def test_rpn_losses():
    """By hand: an anchor that is the object, one that is background, one in between, one that is not trained."""
    config = MaskRCNNConfig()
    anchors = torch.tensor([[0.0, 0, 10, 10], [50.0, 50, 60, 60], [0.0, 0, 10, 20], [80.0, 80, 90, 90]])
    trained = torch.tensor([[True, True, True, False]] * 2)
    logits, deltas = torch.tensor([[1.0, -2.0, 5.0, 5.0]] * 2), torch.full((2, 4, 4), 0.25)
    losses = rpn_losses(config, logits, deltas, anchors, trained, [{"boxes": anchors[:1]}, {"boxes": anchors[:0]}])
    positive, negative = nn.functional.softplus(torch.tensor([-1.0])), nn.functional.softplus(logits[0])
    # In the second image three are background. Its number of objects counts as 1, as in the original.
    classification = (positive + negative[1] + negative[:3].sum()) / (1 + 1 + 1 + 3)
    torch.testing.assert_close(losses["loss_rpn_classification"], classification[0])
    torch.testing.assert_close(losses["loss_rpn_boxes"], torch.tensor(4 * 0.25 / 6))


def test_box_head_losses():
    """By hand: a proposal that is an object of class 2, with that class's deltas, and one that is background."""
    config = MaskRCNNConfig(num_labels=3, stage_loss_weights=[0.5], box_loss_weight=3.0)
    labels = [{"boxes": torch.zeros(0, 4), "class_labels": torch.zeros(0, dtype=torch.int64)}]
    labels.append({"boxes": torch.tensor([[0.0, 0, 10, 10]]), "class_labels": torch.tensor([2])})
    sampled = SampledProposals(config, 0, [torch.tensor([[5.0, 5, 9, 9]]), torch.zeros(0, 4)], labels)
    assert sampled.rois.tolist() == [[0, 5, 5, 9, 9], [1, 0, 0, 10, 10]]  # the box of an object is a proposal
    assert sampled.labels.tolist() == [3, 2] and sampled.is_object_box.tolist() == [False, True]
    logits = torch.tensor([[0.0, 0.0, 0.0, 1.0], [0.0, 0.0, 3.0, 0.0]])
    deltas = torch.full((2, 3, 4), torch.nan)
    deltas[1, 2] = 0.25
    losses = box_head_losses(config, 0, sampled, logits, deltas)
    expected = nn.functional.cross_entropy(logits, torch.tensor([3, 2]))
    torch.testing.assert_close(losses["loss_classification_0"], 0.5 * expected)
    torch.testing.assert_close(losses["loss_boxes_0"], torch.tensor(0.5 * 3 * 4 * 0.25 / 2))


def test_mask_loss():
    """Two objects, one proposal for the second, whose mask covers the upper left quarter of it."""
    config = MaskRCNNConfig(num_labels=3)
    masks = torch.zeros(2, 40, 40, dtype=torch.bool)
    masks[1, 8:24, 8:16] = True
    labels = [{"boxes": torch.tensor([[0.0, 0, 4, 4], [8.0, 8, 24, 24]]), "class_labels": torch.tensor([0, 2])}]
    sampled = SampledProposals(config, 0, [torch.tensor([[8.0, 8, 24, 40]])], labels)
    keep = sampled.rois[:, 4] == 40
    for name in ("rois", "labels", "targets", "objects", "is_object_box"):
        setattr(sampled, name, getattr(sampled, name)[keep])
    assert sampled.objects.tolist() == [1] and sampled.labels.tolist() == [2]
    logits = torch.full((1, 3, 28, 28), torch.nan)
    logits[:, 2] = 2.0
    (loss,) = mask_loss(config, 0, sampled, logits, [masks]).values()
    inside, outside = nn.functional.softplus(torch.tensor([-2.0, 2.0]))
    torch.testing.assert_close(loss, 0.25 * inside + 0.75 * outside)


CASCADE = {
    "bbox_reg_stds": [[0.1, 0.1, 0.2, 0.2], [0.05, 0.05, 0.1, 0.1]],
    "stage_positive_ious": [0.5, 0.6],
    "stage_loss_weights": [1.0, 0.5],
    "box_head_num_conv_layers": 1,
    "box_head_num_fc_layers": 1,
    "box_loss": "giou",
    "box_loss_weight": 10.0,
    "allow_low_quality_matches": False,
    "rpn_outside_anchors": False,
    "rpn_box_loss": "smooth_l1",
}
KINDS = {"mask_rcnn": {}, "cascade": CASCADE | {"fpn_norm": "layer_norm"}}
KINDS["class_agnostic"] = CASCADE | {"class_agnostic_boxes": True, "use_mask_head": False, "box_loss": "smooth_l1"}


@pytest.fixture
def build(tiny_config):
    def build(kind: str = "mask_rcnn", **kwargs) -> MaskRCNNForObjectDetection:
        backbone_config = tiny_config(out_features=["stage1", "stage2", "stage3", "stage4"])
        sizes = {"hidden_size": 16, "box_head_hidden_size": 16, "num_labels": 3, "max_detections": 7}
        sizes |= {"num_train_proposals": 100, "num_proposals": 50, "mask_head_num_layers": 1}
        return randomize(
            MaskRCNNForObjectDetection(
                MaskRCNNConfig(backbone_config=backbone_config, **(sizes | KINDS[kind] | kwargs))
            )
        )

    return build


def example_labels() -> list[dict[str, torch.Tensor]]:
    masks = torch.zeros(2, 64, 96, dtype=torch.bool)
    masks[0, 8:40, 8:56] = masks[1, 20:60, 50:90] = True
    boxes = torch.tensor([[32 / 96, 24 / 64, 48 / 96, 32 / 64], [70 / 96, 40 / 64, 40 / 96, 40 / 64]])
    no_object = {"class_labels": torch.zeros(0, dtype=torch.int64), "boxes": torch.zeros(0, 4)}
    return [
        {"class_labels": torch.tensor([0, 2]), "boxes": boxes, "masks": masks},
        no_object | {"masks": torch.zeros(0, 64, 96, dtype=torch.bool)},
    ]


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_round_trip(kind, build, tmp_path):
    model = build(kind)
    model.save_pretrained(tmp_path)
    loaded, info = AutoModelForObjectDetection.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values()) and type(loaded) is MaskRCNNForObjectDetection
    pixel_values = torch.randn(2, 3, 64, 96)
    outputs = model(pixel_values)
    names = {"logits": (4,), "pred_boxes": (4,), "pred_scores": (), "pred_labels": ()}
    names |= {"pred_masks": (28, 28)} if model.config.use_mask_head else {}
    assert {name: tensor.shape for name, tensor in outputs.items()} == {
        name: (2, 7, *shape) for name, shape in names.items()
    }
    assert (outputs.pred_scores > 0).any() and (outputs.pred_labels[outputs.pred_scores > 0] >= 0).all()
    for expected, output in zip(outputs.to_tuple(), loaded(pixel_values, return_dict=False)):
        torch.testing.assert_close(output, expected)
    assert len(loaded(pixel_values, output_hidden_states=True).hidden_states) == 5


def test_normalised_pyramid(build):
    """Each position has mean 0 and variance 1 over the channels, and no convolution has a bias."""
    neck = build("cascade", hidden_size=32).neck
    for norm in neck.output_norms:
        norm.reset_parameters()
    for feature_map in neck([torch.randn(1, 16 * 2**idx, 16 // 2**idx, 24 // 2**idx) for idx in range(4)]):
        variance, mean = torch.var_mean(feature_map, dim=1, correction=0)
        torch.testing.assert_close(mean, torch.zeros_like(mean), rtol=0, atol=1e-5)
        torch.testing.assert_close(variance, torch.ones_like(variance), rtol=0, atol=1e-2)
    convolutions = (*neck.lateral_convolutions, *neck.output_convolutions)
    assert all(convolution.bias is None for convolution in convolutions)
    assert all("_norms" not in name for name, _ in build().neck.named_parameters())


def test_earlier_names(build, tmp_path):
    """Checkpoints and configurations with the names of earlier versions load; what is saved has today's."""
    model = build("cascade")
    today = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    earlier = {name.replace("rpn.head.", "rpn.").replace("roi_heads.", ""): tensor for name, tensor in today.items()}
    assert earlier.keys() != today.keys()
    model.save_pretrained(tmp_path, state_dict=earlier)
    config = json.loads((tmp_path / "config.json").read_text())
    config |= {"box_stds": config.pop("bbox_reg_stds"), "match_low_quality": config.pop("allow_low_quality_matches")}
    (tmp_path / "config.json").write_text(json.dumps(config))
    loaded, info = MaskRCNNForObjectDetection.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    for name in ("bbox_reg_stds", "allow_low_quality_matches"):
        assert getattr(loaded.config, name) == getattr(model.config, name) == CASCADE[name]
    assert all(torch.equal(tensor, today[name]) for name, tensor in loaded.state_dict().items())
    loaded.save_pretrained(tmp_path)
    assert load_file(tmp_path / "model.safetensors").keys() == today.keys()


@torch.no_grad()
def test_padding(build):
    """An image alone and in a batch with a larger one has the same detections, none of them in the padding."""
    model = build()
    pixel_values = torch.randn(2, 3, 64, 96)
    pixel_values[1, :, 40:] = pixel_values[1, :, :, 60:] = 0
    pixel_mask = torch.ones(2, 64, 96, dtype=torch.int64)
    pixel_mask[1, 40:] = pixel_mask[1, :, 60:] = 0
    together = model(pixel_values, pixel_mask)
    for idx in range(2):
        alone = model(pixel_values[idx : idx + 1], pixel_mask[idx : idx + 1])
        for name, tensor in alone.items():
            torch.testing.assert_close(together[name][idx : idx + 1], tensor, rtol=1e-4, atol=1e-4)
    centers, sizes = together.pred_boxes.split(2, dim=-1)
    assert (centers - sizes / 2 >= -1e-6).all() and (centers + sizes / 2 <= 1 + 1e-6).all()
    assert (centers + sizes / 2)[1].max() > 0.9  # of the image without padding
    for bad in (pixel_mask[:, :32], pixel_mask.numpy(), pixel_mask.tolist()):
        with pytest.raises(ValueError, match="`pixel_mask` must have the size of `pixel_values` without channels"):
            model(pixel_values, bad)


@torch.no_grad()
def test_no_detections(build):
    outputs = build(score_threshold=0.99)(torch.randn(1, 3, 64, 96))
    assert (outputs.pred_scores == 0).all() and (outputs.pred_labels == -1).all()
    assert outputs.pred_masks.shape == (1, 7, 28, 28) and (outputs.pred_masks.sigmoid() == 0).all()
    assert (outputs.logits.softmax(-1) == torch.tensor([0.0, 0.0, 0.0, 1.0])).all()


def test_logits_of_labels():
    """A region that is three detections: the label is the best class of each, its probability is unchanged."""
    region = torch.tensor([2.0, 1.0, 1.0, -3.0, 0.5])  # the last is background
    logits = logits_of_labels(region.expand(4, 5), torch.arange(4))
    probabilities = logits.softmax(dim=-1)
    torch.testing.assert_close(probabilities.diagonal(), region.softmax(dim=0)[:4])
    assert probabilities[:, :-1].argmax(dim=1).tolist() == [0, 1, 2, 3]
    assert torch.equal(logits[0], region)
    assert (probabilities[1, [0, 2]] == 0).all() and torch.equal(logits[1, [1, 3]], region[[1, 3]])
    huge = logits_of_labels(torch.tensor([[-1e30, -3e30, 2e30]]), torch.tensor([1]))
    assert huge.isfinite().all() and huge[:, :-1].argmax() == 1


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_raw_outputs_as_those_of_detr(kind, build):
    """DETR's image processor makes the same detections of the raw outputs, and ours without scores and labels."""
    model = build(kind, score_threshold=0.0, max_detections=99)  # most regions are several detections
    outputs = model(torch.randn(2, 3, 64, 96))
    sizes = [(60, 100), (128, 64)]
    expected = MaskRCNNImageProcessorPil().post_process_object_detection(outputs, 0.0, sizes)
    raw = SimpleNamespace(logits=outputs.logits, pred_boxes=outputs.pred_boxes)
    for image_processor in (DetrImageProcessorPil(), MaskRCNNImageProcessorPil()):
        results = image_processor.post_process_object_detection(raw, 0.0, sizes)
        for result, own in zip(results, expected, strict=True):
            assert len(own["scores"]) > 0 and torch.equal(result["labels"], own["labels"])
            torch.testing.assert_close(result["scores"], own["scores"])
            torch.testing.assert_close(result["boxes"], own["boxes"])
    if model.config.use_mask_head:
        raw.pred_masks = outputs.pred_masks
        results = MaskRCNNImageProcessorPil().post_process_instance_segmentation(raw, 0.0, target_sizes=sizes)
        assert [len(result["segments_info"]) for result in results] == [len(own["scores"]) for own in expected]


@torch.no_grad()
def test_masks_of_a_cascade(build):
    """The logit of the mean probability over the stages, also where a probability rounds to 0 or 1."""
    model = build("cascade").double()
    seen = []
    for mask_head in model.roi_heads.mask_heads:
        mask_head.classifier.weight.mul_(30)
        mask_head.register_forward_hook(lambda module, inputs, output: seen.append(output))
    outputs = model(torch.randn(1, 3, 64, 96, dtype=torch.float64))
    kept = outputs.pred_scores > 0
    labels = outputs.pred_labels[kept]
    expected = torch.stack([masks[torch.arange(len(labels)), labels].sigmoid() for masks in seen]).mean(dim=0)
    torch.testing.assert_close(outputs.pred_masks[kept].sigmoid(), expected)
    same = model.float()
    for mask_head in same.roi_heads.mask_heads:
        mask_head.classifier.bias.fill_(500)
    masks = same(torch.randn(1, 3, 64, 96)).pred_masks
    assert masks.isfinite().all()


@pytest.fixture
def detector(build, tmp_path):
    """A folder with a detector and its image processor."""
    build(score_threshold=0.0).save_pretrained(tmp_path / "detector")
    MaskRCNNImageProcessorPil(size={"shortest_edge": 64}).save_pretrained(tmp_path / "detector")
    return tmp_path / "detector"


def test_pipelines(detector, caplog):
    """Boxes and instances, from a folder and from objects, also in batches; nothing is called unsupported."""
    random = np.random.default_rng(0)
    images = [Image.fromarray(random.integers(0, 256, (80, 96, 3), np.uint8)) for _ in range(2)]
    model = AutoModelForInstanceSegmentation.from_pretrained(detector)
    assert type(model) is MaskRCNNForObjectDetection
    image_processor = MaskRCNNImageProcessorPil.from_pretrained(detector)
    for arguments in ({"model": str(detector)}, {"model": model, "image_processor": image_processor}):
        found = pipeline("object-detection", **arguments)(images, threshold=0.0)
        segmenter = pipeline("image-segmentation", **arguments)
        segments = segmenter(images, threshold=0.0, overlap_mask_area_threshold=0.0)
        for own_segments, boxes in zip(segments, found, strict=True):
            assert [one["label"] for one in own_segments] == [one["label"] for one in boxes]
            assert all(one["mask"].size == (96, 80) for one in own_segments)
            scores = [one["score"] for one in boxes]
            assert [one["score"] for one in own_segments] == pytest.approx(scores, abs=1e-6) and len(scores) > 0
            assert sum(np.asarray(one["mask"]).astype(bool) for one in own_segments).max() <= 1
        batched = segmenter(images, threshold=0.0, overlap_mask_area_threshold=0.0, batch_size=2)
        assert [len(own) for own in batched] == [len(own) for own in segments]
    assert "not supported" not in caplog.text
    without_masks = AutoModelForInstanceSegmentation.from_pretrained(detector, use_mask_head=False)
    with pytest.raises(ValueError, match="The model has no mask heads"):
        pipeline("image-segmentation", model=without_masks, image_processor=image_processor)(images)


def test_compute_metrics_of_a_trainer(detector, tmp_path):
    """As in transformers' example: of each batch, the second and third of the outputs are all that is known."""
    model = AutoModelForObjectDetection.from_pretrained(detector)
    image_processor = MaskRCNNImageProcessorPil.from_pretrained(detector)
    random = np.random.default_rng(0)
    square = {"bbox": [10, 20, 30, 20], "category_id": 1, "segmentation": [[10, 20, 40, 20, 40, 40, 10, 40]]}
    pytest.importorskip("pycocotools")
    examples = []
    for idx in range(4):  # (In an incomplete batch the Trainer cuts off labels of any model.)
        image = random.integers(0, 256, (80, 96, 3), np.uint8)
        annotations = {"image_id": idx, "annotations": [square]}
        batch = image_processor(image, annotations, return_segmentation_masks=True, return_tensors="pt")
        examples.append({name: value[0] for name, value in batch.items()})
    seen = []

    def compute_metrics(evaluation):
        for predictions, targets in zip(evaluation.predictions, evaluation.label_ids, strict=True):
            outputs = SimpleNamespace(logits=torch.tensor(predictions[1]), pred_boxes=torch.tensor(predictions[2]))
            sizes = torch.tensor(np.array([target["orig_size"] for target in targets]))
            seen.extend(image_processor.post_process_object_detection(outputs, 0.0, sizes))
        return {"number": len(seen)}

    def collate(rows):
        names = ("pixel_values", "pixel_mask")
        stacked = {name: torch.stack([row[name] for row in rows]) for name in names}
        return stacked | {"labels": [row["labels"] for row in rows]}

    trainer = Trainer(
        model,
        TrainingArguments(
            tmp_path / "output", eval_do_concat_batches=False, per_device_eval_batch_size=2, report_to="none",
            use_cpu=True, remove_unused_columns=False,
        ),
        eval_dataset=examples, data_collator=collate, compute_metrics=compute_metrics,
    )  # fmt: skip
    metrics = trainer.evaluate()
    assert metrics["eval_number"] == 4
    expected = []
    for start in (0, 2):
        batch = collate(examples[start : start + 2])
        with torch.no_grad():
            outputs = model.eval()(batch["pixel_values"], batch["pixel_mask"])
        expected.extend(image_processor.post_process_object_detection(outputs, 0.0, [(80, 96)] * 2))
    for result, own in zip(seen, expected, strict=True):
        assert torch.equal(result["labels"], own["labels"]) and len(own["labels"]) > 0
        torch.testing.assert_close(result["boxes"], own["boxes"])
        torch.testing.assert_close(result["scores"], own["scores"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", KINDS)
def test_no_images(kind, dtype, build):
    """An empty batch has empty outputs, with and without a mask; but no loss."""
    model = build(kind).to(dtype)
    pixel_values = torch.zeros(0, 3, 64, 96, dtype=dtype)
    with torch.no_grad():
        expected = model(torch.zeros(1, 3, 64, 96, dtype=dtype))
        for pixel_mask in (None, torch.ones(0, 64, 96)):
            outputs = model(pixel_values, pixel_mask)
            assert {name: (tensor.shape, tensor.dtype) for name, tensor in outputs.items()} == {
                name: ((0, *tensor.shape[1:]), tensor.dtype) for name, tensor in expected.items()
            }
    with pytest.raises(ValueError, match="There is no loss of a batch without images"):
        model.train()(pixel_values, labels=[])


@torch.no_grad()
@pytest.mark.parametrize("number", [float("nan"), float("inf")])
@pytest.mark.parametrize(
    "name, what",
    [
        ("backbone.embeddings.convolution1.weight", "proposals"),
        ("rpn.head.classifier.bias", "proposals"),
        ("rpn.head.box_regressor.weight", "proposals"),
        ("roi_heads.box_heads.0.box_regressor.bias", "detections"),
        ("roi_heads.box_heads.1.classifier.weight", "detections"),
        ("roi_heads.box_heads.1.fc_layers.0.weight", "detections"),
        ("roi_heads.mask_heads.1.convolutions.0.weight", "masks"),
    ],
)
def test_weights_that_are_not_finite(name, what, number, build):
    """An error, not an image without detections. In training with labels the loss shows it."""
    model = build("cascade")
    model.get_parameter(name).fill_(number)
    with pytest.raises(FloatingPointError, match=f"The {what} are not finite; the feature maps are torch.float32"):
        model(torch.randn(2, 3, 64, 96))
    if number != number:
        assert model.train()(torch.randn(2, 3, 64, 96), labels=example_labels()).loss.isnan()


@torch.no_grad()
def test_activations_that_overflow(build):
    model = build()
    model.neck.output_convolutions[2].weight.mul_(1e5)
    pixel_values = torch.randn(1, 3, 64, 96)
    assert all(tensor.isfinite().all() for tensor in model(pixel_values).to_tuple())
    with pytest.raises(FloatingPointError, match="the feature maps are torch.float16. In float16 large activations"):
        model.half()(pixel_values.half())
    pixel_values[0, 1, 20, 30] = torch.nan
    with pytest.raises(FloatingPointError, match="`pixel_values` or weights are not finite"):
        build()(pixel_values)


@pytest.mark.parametrize("kind", KINDS)
def test_gradient_of_every_loss(kind, build, monkeypatch):
    """Finite differences along a random direction in all parameters. Regions have no gradient, and are held still."""
    torch.manual_seed(0)
    model = build(kind).double().train()
    pixel_values = torch.randn(2, 3, 64, 96, dtype=torch.float64)
    fixed = {}
    for part, name in ((MaskRCNNRegionProposalNetwork, "propose"), (MaskRCNNRoIHeads, "refine")):
        original = getattr(part, name)

        def same(self, *args, name=name, original=original):
            return fixed.setdefault(name, original(self, *args))

        monkeypatch.setattr(part, name, same)

    def losses():
        torch.manual_seed(0)  # the same samples
        outputs = model(pixel_values, labels=example_labels())
        assert "logits" not in outputs
        torch.testing.assert_close(outputs.loss, sum(outputs.loss_dict.values()))
        return outputs.loss_dict

    first = losses()
    num_stages = len(model.config.bbox_reg_stds)
    kinds = ["classification", "boxes"] + ["masks"] * model.config.use_mask_head
    expected = ["loss_rpn_classification", "loss_rpn_boxes"]
    expected += [f"loss_{loss}_{stage}" for stage in range(num_stages) for loss in kinds]
    assert list(first) == expected and all(loss > 0 for loss in first.values())
    parameters = list(model.parameters())
    directions = [torch.randn_like(parameter) for parameter in parameters]
    slopes = {}
    for name, loss in first.items():
        gradients = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
        slopes[name] = sum((g * d).sum() for g, d in zip(gradients, directions) if g is not None).item()
        assert gradients[0].abs().sum() > 0  # down to the first layer of the backbone
    values, step = [], 1e-9
    with torch.no_grad():
        for sign in (1, -2):
            for parameter, direction in zip(parameters, directions):
                parameter.add_(sign * step * direction)
            values.append(losses())
    for name, slope in slopes.items():
        assert ((values[0][name] - values[1][name]) / (2 * step)).item() == pytest.approx(slope, rel=1e-3), name


def test_trained_anchors(build):
    """Of an image of 40x60 pixels: positions up to 64x64 pixels; or only the anchors inside the image."""
    model = build()
    feature_maps = [torch.zeros(2, 1, 16, 24), torch.zeros(2, 1, 8, 12), torch.zeros(2, 1, 4, 6)]
    feature_maps += [torch.zeros(2, 1, 2, 3), torch.zeros(2, 1, 1, 2)]
    anchors, sizes = model.rpn.anchors(feature_maps, torch.float32), torch.tensor([[40, 60], [64, 96]])
    trained = model.rpn.trained_anchors(feature_maps, anchors, sizes)
    positions = [3 * (16 * 16 + 8 * 8 + 4 * 4 + 2 * 2 + 1), 3 * (16 * 24 + 8 * 12 + 4 * 6 + 2 * 3 + 2)]
    assert trained.sum(dim=1).tolist() == positions
    model.config.rpn_outside_anchors = False
    inside = model.rpn.trained_anchors(feature_maps, anchors, sizes)
    corners = torch.cat(anchors)[inside[0]]
    assert len(corners) > 0 and corners.min() >= 0
    assert corners[:, 2].max() < 60 and corners[:, 3].max() < 40 and not (inside & ~trained).any()


def test_stages_of_training(build, monkeypatch):
    """The second stage gets the refined regions of the first, without the boxes of objects that were added to them."""
    stages = []

    class Recorded(SampledProposals):
        def __init__(self, config, stage, proposals, labels):
            super().__init__(config, stage, proposals, labels)
            stages.append((self, proposals))

    monkeypatch.setattr("modeling_internimage.mask_rcnn.modeling_mask_rcnn.SampledProposals", Recorded)
    build("cascade").train()(torch.randn(2, 3, 64, 96), labels=example_labels())
    (first, _), (_, proposals) = stages
    assert first.is_object_box.tolist()[:2] == [True, True]
    assert [len(own) for own in proposals] == [
        ((first.rois[:, 0] == idx) & ~first.is_object_box).sum().item() for idx in range(2)
    ]
    assert not any(own.requires_grad for own in proposals)


def test_refinement(build):
    """By the deltas of the best class; in training by those of the object's class. Boxes end where the image does."""
    model = build("cascade")
    rois = torch.tensor([[0.0, 10, 10, 20, 20]] * 3)
    logits = torch.tensor([[5.0, 0.0, 0.0, 9.0]] * 3)  # the last is background
    deltas = torch.zeros(3, 3, 4)
    deltas[:, :, 0] = torch.tensor([10.0, 20.0, 200.0])  # times 0.1, of the width
    sizes = torch.tensor([[64, 96]])
    refined = model.roi_heads.refine(rois, logits, deltas, 0, sizes)
    assert refined.tolist() == [[0, 20, 10, 30, 20]] * 3
    refined = model.roi_heads.refine(rois, logits, deltas, 0, sizes, torch.tensor([3, 1, 2]))
    assert refined.tolist() == [[0, 20, 10, 30, 20], [0, 30, 10, 40, 20], [0, 96, 10, 96, 20]]


@pytest.mark.parametrize("kind", KINDS)
def test_training_without_objects(kind, build):
    """Images without a box, or with empty ones only: background is learned, and every parameter has a gradient."""
    model = build(kind).train()
    labels = example_labels()
    labels[0]["boxes"][:, 2:] = 0
    loss_dict = model(torch.randn(2, 3, 64, 96), labels=labels).loss_dict
    sum(loss_dict.values()).backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in model.parameters())
    zero = {name for name, loss in loss_dict.items() if loss == 0}
    assert zero == {name for name in loss_dict if "boxes" in name or "masks" in name}


def test_training_learns(build):
    """A few steps on one image lower the loss; in evaluation mode there are a loss and detections."""
    torch.manual_seed(0)
    model = build("cascade").train()
    pixel_values, labels = torch.randn(1, 3, 64, 96), example_labels()[:1]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    losses = []
    for _ in range(12):
        loss = model(pixel_values, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert np.mean(losses[-3:]) < 0.7 * losses[0]
    outputs = model.eval()(pixel_values, labels=labels)
    assert outputs.loss.isfinite() and outputs.pred_boxes.shape == (1, 7, 4)


def test_gradient_checkpointing(build):
    model = build().train()
    gradients = []
    for _ in range(2):
        torch.manual_seed(0)
        loss = model(torch.ones(1, 3, 64, 96), labels=example_labels()[:1]).loss
        gradients.append(torch.autograd.grad(loss, list(model.parameters())))
        model.gradient_checkpointing_enable()
    for first, second in zip(*gradients):
        torch.testing.assert_close(first, second, rtol=1e-4, atol=1e-5)


def boxes(*second) -> dict[str, torch.Tensor]:
    return {"boxes": torch.tensor([[0.5, 0.5, 1.0, 1.0], second])}


@pytest.mark.parametrize(
    "change, message",
    [
        ({"class_labels": torch.tensor([0, 3])}, "below `num_labels=3`, got 0 to 3"),
        ({"class_labels": torch.tensor([-1, 0])}, "below `num_labels=3`, got -1 to 2"),
        ({"class_labels": torch.tensor([0])}, "1 `class_labels` and 2 `boxes`"),
        (boxes(70.0, 40.0, 40.0, 40.0), "relative to the size of the image, inside it, got .70.0, 40.0, 40.0, 40.0."),
        (boxes(0.5, 0.5, 0.25, float("nan")), "`boxes` must be centre x, .* got .0.5, 0.5, 0.25, nan."),
        (boxes(0.5, 0.5, 0.25, float("inf")), "`boxes` must be centre x, .* got .0.5, 0.5, 0.25, inf."),
        (boxes(0.5, 0.5, 0.8, 0.6), None),
        (boxes(0.5, 0.5, -0.1, 0.6), "`boxes` must be centre x"),
        (boxes(0.6, 0.5, 0.9, 0.9), "`boxes` must be centre x"),  # corners, not centre and size
        (boxes(0.05, 0.5, 0.15, 0.9), "`boxes` must be centre x"),
        ({"masks": None}, "`labels` have no `masks`"),
        ({"masks": torch.zeros(1, 64, 96)}, r"image 1 must have the shape \(2, 64, 96\), .* got \(1, 64, 96\)"),
        ({"masks": torch.zeros(2, 32, 48)}, r"or \(2, 40, 60\) without padding, got \(2, 32, 48\)"),
        ({"masks": torch.zeros(2, 40, 60)}, None),
    ],
)
def test_bad_labels(change, message, build):
    """With the name of the argument, its value and the way out. Masks need no padding."""
    model = build().train()
    good = example_labels()[0]
    bad = {name: value for name, value in (good | change).items() if value is not None}
    pixel_mask = torch.ones(2, 64, 96)
    pixel_mask[1, 40:] = pixel_mask[1, :, 60:] = 0
    if message is None:
        assert model(torch.randn(2, 3, 64, 96), pixel_mask, labels=[good, bad]).loss.isfinite()
        return
    with pytest.raises(ValueError, match=message):
        model(torch.randn(2, 3, 64, 96), pixel_mask, labels=[good, bad])
    with pytest.raises(ValueError, match="`labels` must have an entry for each of the 3 images"):
        model(torch.randn(3, 3, 64, 96), labels=[good, bad])


def test_rounded_boxes(build):
    """Those of bfloat16 may reach a little beyond the image, by which they are cut."""
    label = {"class_labels": torch.tensor([0]), "boxes": torch.tensor([[0.902, 0.5, 0.2, 1.0]], dtype=torch.bfloat16)}
    model = build(use_mask_head=False)
    (prepared,) = prepare_targets([label], model.config.num_labels, torch.tensor([[64, 96]]), (64, 96))
    torch.testing.assert_close(prepared["boxes"], torch.tensor([[0.802 * 96, 0, 96, 64]]), rtol=0, atol=0.2)
    assert prepared["boxes"][0, 2] == 96
    assert model(torch.randn(1, 3, 64, 96), labels=[label]).loss.isfinite()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype, build):
    """Boxes stay in float32, losses too."""
    model = build().to(dtype)
    with torch.no_grad():
        outputs = model(torch.randn(1, 3, 64, 96, dtype=dtype))
    assert outputs.pred_boxes.dtype == torch.float32 and outputs.pred_boxes.isfinite().all()
    loss = model(torch.randn(1, 3, 64, 96, dtype=dtype), labels=example_labels()[:1]).loss
    assert loss.dtype == torch.float32 and loss.isfinite()


def test_another_backbone():
    backbone_config = ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 1, 1], layer_type="basic",
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )  # fmt: skip
    model = MaskRCNNForObjectDetection(MaskRCNNConfig(backbone_config=backbone_config, num_labels=3)).eval()
    assert model(torch.randn(1, 3, 64, 96)).pred_boxes.shape == (1, 100, 4)
    with pytest.raises(ValueError, match="`feature_strides=.8, 16, 32.` must have one entry for each feature map"):
        MaskRCNNForObjectDetection(MaskRCNNConfig(backbone_config=backbone_config, feature_strides=[8, 16, 32]))


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"bbox_reg_stds": [[0.1, 0.1, 0.2, 0.2]] * 3}, "must have one entry per stage of refinement"),
        ({"bbox_reg_stds": [[0.1, 0.2]]}, "`bbox_reg_stds` must have four numbers for each stage"),
        ({"box_loss": "iou"}, "Unknown `box_loss='iou'`"),
        ({"rpn_box_loss": "giou"}, "Unknown `rpn_box_loss='giou'`"),
        ({"fpn_norm": "batch_norm"}, "Unknown `fpn_norm='batch_norm'`. Choose one of .None, 'layer_norm'."),
        ({"anchor_ratios": []}, "`anchor_ratios` must be from 0.001 to 1000.0, got .."),
        ({"feature_strides": [4, 8, 0, 32]}, "`feature_strides` must be from 1 to 65536, got .4, 8, 0, 32."),
        (
            {"bbox_reg_stds": [[0.1, 0.1, 0.2, 0]]},
            "`bbox_reg_stds` must be from 1e-06 to 1000.0, got ..0.1, 0.1, 0.2, 0..",
        ),
        ({"max_detections": 0}, "`max_detections` must be from 1 to 1000000, got 0"),
        ({"anchor_scale": float("nan")}, "`anchor_scale` must be from 0.001 to 100000.0, got nan"),
        ({"mask_head_num_layers": -1}, "`mask_head_num_layers` must be from 0 to 1000, got -1"),
        ({"stage_loss_weights": [-1]}, "`stage_loss_weights` must be from 0 to 1000000.0, got .-1."),
        ({"nms_threshold": 50}, "`nms_threshold` must be from 0 to 1, got 50"),
        ({"stage_positive_ious": [1.5]}, "`stage_positive_ious` must be from 0 to 1"),
        ({"rpn_positive_iou": 0.2}, "`rpn_negative_iou` must be at most `rpn_positive_iou`, got 0.3 and 0.2"),
        ({"hidden_size": 0.5}, "hidden_size"),
        ({"score_threshold": "0.5"}, "score_threshold"),
    ],
)
def test_bad_configurations(arguments, message):
    with pytest.raises((ValueError, StrictDataclassError), match=message):
        MaskRCNNConfig(**arguments)


@pytest.mark.parametrize(
    "arguments",
    [
        {"feature_strides": (4, 8, 16, 32), "anchor_ratios": (0.5, 1, 2), "stage_positive_ious": (0.5,)},
        {"bbox_reg_stds": ((0.1, 0.1, 0.2, 0.2),), "stage_loss_weights": (1,)},
        {"bbox_reg_stds": [(1, 1, 1, 1)], "anchor_ratios": [1]},
        {"score_threshold": 0, "nms_threshold": 1, "proposal_nms_threshold": 1, "smooth_l1_beta": 1},
        {"rpn_positive_iou": 1, "rpn_negative_iou": 0, "rpn_smooth_l1_beta": 0, "anchor_scale": 8.0},
        {"box_head_num_fc_layers": 0, "mask_head_num_layers": 0},
    ],
)
def test_tuples_and_whole_numbers(arguments, tmp_path):
    """Are as good as lists and fractions, in Python and after the way through JSON."""
    config = MaskRCNNConfig(**arguments)
    config.save_pretrained(tmp_path)
    loaded = MaskRCNNConfig.from_pretrained(tmp_path)
    assert loaded.to_dict() == config.to_dict()
    for name, value in arguments.items():
        assert getattr(loaded, name) == getattr(config, name)
        np.testing.assert_array_equal(getattr(config, name), value)


class Exported(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, pixel_values):
        return self.model(pixel_values, return_dict=False)


@torch.no_grad()
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["mask_rcnn", "cascade"])
def test_export(kind, build):
    """The whole model, with another batch size than the traced one."""
    model = Exported(build(kind)).double().eval()  # float64: rounding does not decide
    open_batch = ({0: torch.export.Dim.DYNAMIC},)
    traced = torch.randn(2, 3, 64, 96, dtype=torch.float64)
    program = torch.export.export(model, (traced,), dynamic_shapes=open_batch).module()
    pixel_values = torch.randn(3, 3, 64, 96, dtype=torch.float64)
    for output, reference in zip(program(pixel_values), model(pixel_values), strict=True):
        torch.testing.assert_close(output, reference, rtol=1e-4, atol=1e-4)


def test_trace(build):
    with pytest.raises(RuntimeError, match="`torch.jit.trace` does not support `MaskRCNNForObjectDetection`. Use"):
        torch.jit.trace(build(), torch.randn(1, 3, 64, 96))


def test_without_torchvision(monkeypatch):
    monkeypatch.setattr("modeling_internimage.mask_rcnn.modeling_mask_rcnn.is_torchvision_available", lambda: False)
    with pytest.raises(ImportError, match=r"needs torchvision.*pip install .modeling-internimage\[vision\]"):
        MaskRCNNForObjectDetection(MaskRCNNConfig())
