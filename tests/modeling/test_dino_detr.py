# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""DINO: the model, denoising, matching and losses. Numbers of the original: tests/conversion."""

import itertools
import json
import math

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from processes import run_in_two_processes
from testing_utils import randomize
from torch import nn
from transformers import AutoModelForObjectDetection, ResNetConfig
from transformers.models.deformable_detr.modeling_deformable_detr import MultiScaleDeformableAttention

from modeling_internimage import CBInternImageConfig, DinoDetrConfig, DinoDetrForObjectDetection
from modeling_internimage.dino_detr.deformable_attention import DinoDetrMultiScaleDeformableAttention
from modeling_internimage.dino_detr.denoising_dino_detr import create_denoising_queries
from modeling_internimage.dino_detr.loss_dino_detr import generalized_iou, match_queries, set_losses
from modeling_internimage.dino_detr.modeling_dino_detr import (
    DinoDetrLevels,
    sampling_directions,
)


@pytest.fixture
def build(tiny_config):
    """A small detector with random weights; `composite`: on two networks in one."""

    def build(composite: bool = False, **kwargs) -> DinoDetrForObjectDetection:
        backbone_config = tiny_config(out_features=["stage2", "stage3", "stage4"])
        if composite:
            backbone_config = CBInternImageConfig(**backbone_config.to_diff_dict() | {"model_type": "cb_internimage"})
        sizes = {"d_model": 64, "encoder_layers": 2, "decoder_layers": 3, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32}
        sizes |= {"num_queries": 20, "num_labels": 3, "num_denoising": 6, "encoder_attention_heads": 4}
        config = DinoDetrConfig(backbone_config=backbone_config, **(sizes | kwargs))
        return randomize(DinoDetrForObjectDetection(config))

    return build


def example_labels(dtype: torch.dtype = torch.float32) -> list[dict[str, torch.Tensor]]:
    boxes = torch.tensor([[0.3, 0.4, 0.5, 0.5], [0.7, 0.6, 0.4, 0.6]], dtype=dtype)
    no_object = {"class_labels": torch.zeros(0, dtype=torch.int64), "boxes": torch.zeros(0, 4, dtype=dtype)}
    return [{"class_labels": torch.tensor([0, 2]), "boxes": boxes}, no_object]


def padded_batch(dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    """Two images, the second smaller."""
    pixel_values = torch.randn(2, 3, 64, 96, dtype=dtype)
    pixel_mask = torch.ones(2, 64, 96, dtype=torch.int64)
    pixel_mask[1, 40:] = pixel_mask[1, :, 60:] = 0
    return {"pixel_values": pixel_values * pixel_mask[:, None], "pixel_mask": pixel_mask}


@torch.no_grad()
@pytest.mark.parametrize("composite", [False, True])
def test_round_trip(composite, build, tmp_path):
    model = build(composite)
    model.save_pretrained(tmp_path)
    loaded, info = AutoModelForObjectDetection.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values()) and type(loaded) is DinoDetrForObjectDetection
    pixel_values = torch.randn(2, 3, 64, 96)
    outputs = model(pixel_values, output_hidden_states=True)
    assert outputs.logits.shape == (2, 20, 3) and outputs.pred_boxes.shape == (2, 20, 4)
    assert outputs.encoder_last_hidden_state.shape == (2, 8 * 12 + 4 * 6 + 2 * 3 + 1 * 2, 64)
    assert outputs.init_reference_points.shape == (2, 20, 4)
    assert outputs.intermediate_reference_points.shape == (2, 2, 20, 4) and len(outputs.hidden_states) == 5
    assert "loss" not in outputs and "auxiliary_outputs" not in outputs
    for expected, output in zip(outputs.to_tuple()[:-1], loaded(pixel_values, return_dict=False)):
        torch.testing.assert_close(output, expected)


@torch.no_grad()
def test_padding(build):
    """An image alone and in a batch with a larger one has the same outputs; without padding no mask is needed."""
    model = build().double()
    batch = padded_batch(torch.float64)
    together = model(**batch)
    for idx in range(2):
        alone = model(**{name: tensor[idx : idx + 1] for name, tensor in batch.items()})
        for name in ("logits", "pred_boxes", "init_reference_points"):
            torch.testing.assert_close(alone[name], together[name][idx : idx + 1])
    without_mask = model(batch["pixel_values"][:1])
    torch.testing.assert_close(without_mask.pred_boxes, together.pred_boxes[:1])


@torch.no_grad()
def test_images_smaller_than_a_level(build):
    """There are as many queries as positions if those are fewer."""
    model = build(num_queries=900)
    outputs = model(torch.randn(1, 3, 40, 33), labels=example_labels()[:1])
    num_positions = 5 * 5 + 3 * 3 + 2 * 2 + 1
    assert outputs.logits.shape == (1, num_positions, 3) and outputs.loss.isfinite()
    with pytest.raises(ValueError, match="`pixel_values` have no image"):
        model(torch.randn(0, 3, 64, 64))
    with pytest.raises(ValueError, match="smaller than the stride of the network"):
        model(torch.randn(1, 3, 31, 64))


def test_image_that_is_padding(build):
    batch = padded_batch()
    batch["pixel_mask"][1] = 0
    with pytest.raises(ValueError, match="`pixel_mask` marks every pixel of image 1 as padding"):
        build()(**batch)
    levels = DinoDetrLevels.create([torch.zeros(2, 64, 8, 12)], batch["pixel_mask"])  # as on a GPU
    assert levels.proposed_boxes().isfinite().all()


@pytest.mark.parametrize("composite", [False, True])
def test_no_object_in_the_batch(composite, build):
    """Losses of boxes and of denoising are 0; every parameter has a gradient."""
    model = build(composite).train()
    outputs = model(**padded_batch(), labels=[example_labels()[1]] * 2)
    zero = {name for name, loss in outputs.loss_dict.items() if loss == 0}
    assert zero == {name for name in outputs.loss_dict if "_ce" not in name or "_dn" in name}
    outputs.loss.backward()
    # The refinement after the last layer is used nowhere; its head also predicts.
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert model.denoising_class_embed.weight.grad.abs().sum() == 0


@pytest.mark.parametrize("composite", [False, True])
def test_loss_names(composite, build):
    """In training denoising queries and the assisting network count, in evaluation they do not exist."""
    model = build(composite)
    kinds = [f"loss_{kind}" for kind in ("ce", "bbox", "giou")]
    layers = ["_0", "_1", ""]
    expected = {kind + suffix for kind in kinds for suffix in [*layers, "_enc"]}
    outputs = model(**padded_batch(), labels=example_labels())
    assert outputs.loss_dict.keys() == expected
    assert outputs.loss.item() == pytest.approx(sum(outputs.loss_dict.values()).item())
    expected |= {f"{kind}_dn{suffix}" for kind in kinds for suffix in layers}
    if composite:
        expected |= {f"{name}_assisting" for name in expected}
    trained = model.train()(**padded_batch(), labels=example_labels())
    assert trained.loss_dict.keys() == expected and trained.logits.shape == (2, 20, 3)
    assert len(trained.auxiliary_outputs) == 2 and trained.encoder_last_hidden_state.shape[0] == 2
    model.config.auxiliary_loss = False
    names = model(**padded_batch(), labels=example_labels()).loss_dict.keys()
    assert names == {name for name in expected if not name.removesuffix("_assisting").endswith(("_0", "_1"))}


def test_more_objects_than_queries(build):
    model = build(num_queries=5).train()
    labels = [{"class_labels": torch.zeros(12, dtype=torch.int64), "boxes": torch.rand(12, 4) * 0.1 + 0.3}] * 2
    outputs = model(**padded_batch(), labels=labels)
    outputs.loss.backward()
    assert outputs.loss.isfinite() and outputs.logits.shape == (2, 5, 3)


BAD_LABELS = {
    "`class_labels` must be at least 0 and below `num_labels=3`, got 0 to 3": {"class_labels": torch.tensor([0, 3])},
    "`labels` have 1 `class_labels` and 2 `boxes`": {"class_labels": torch.tensor([0])},
    r"got \[nan, 0.5": {"boxes": torch.tensor([[torch.nan, 0.5, 0.1, 0.1], [0.5, 0.5, 0.1, 0.1]])},
    r"got \[1.5, 0.5": {"boxes": torch.tensor([[1.5, 0.5, 0.1, 0.1], [0.5, 0.5, 0.1, 0.1]])},
}


@pytest.mark.parametrize("message", BAD_LABELS)
def test_bad_labels(message, build):
    with pytest.raises(ValueError, match=message):
        build()(**padded_batch(), labels=[example_labels()[0] | BAD_LABELS[message], example_labels()[1]])


def test_empty_boxes_are_left_out(build):
    labels = example_labels()
    more = [
        {
            "class_labels": torch.cat((label["class_labels"], torch.tensor([1]))),
            "boxes": torch.cat((label["boxes"], torch.tensor([[0.5, 0.5, 0.0, 0.2]]))),
        }
        for label in labels
    ]
    model, batch = build(), padded_batch()
    torch.testing.assert_close(model(**batch, labels=more).loss, model(**batch, labels=labels).loss)


def test_generalized_iou():
    boxes = torch.tensor([[0.0, 0, 2, 2], [0.0, 0, 2, 2], [0.0, 0, 2, 2], [1.0, 1, 1, 1]])
    targets = torch.tensor([[0.0, 0, 2, 2], [1.0, 0, 3, 2], [4.0, 0, 6, 2], [1.0, 1, 1, 1]])
    # The same, half, apart (a third of the hull is empty), empty.
    torch.testing.assert_close(generalized_iou(boxes, targets), torch.tensor([1, 1 / 3, -1 / 3, 0]))


def test_matching_has_the_lowest_cost():
    """Against all assignments of three objects to five queries, with costs as written in the issue of the paper."""
    config = DinoDetrConfig(num_labels=4)
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 1, 5, 4, generator=generator, dtype=torch.float64)
    boxes = torch.rand(2, 1, 5, 4, generator=generator, dtype=torch.float64) * 0.5 + 0.2
    corners = torch.tensor([[10.0, 5, 60, 40], [30, 20, 90, 60], [5, 5, 20, 60]], dtype=torch.float64)
    targets = [{"class_labels": torch.tensor([3, 0, 3]), "boxes": corners}]
    matches = match_queries(config, logits, boxes, targets, torch.tensor([[64, 96]]))

    def cost(set_idx: int, query: int, target: int) -> float:
        probability = logits[set_idx, 0, query, targets[0]["class_labels"][target]].sigmoid().item()
        positive = -0.25 * (1 - probability) ** 2 * math.log(probability)
        negative = -0.75 * probability**2 * math.log(1 - probability)
        x, y, width, height = boxes[set_idx, 0, query].tolist()
        left, top, right, bottom = corners[target].tolist()
        center = [(left + right) / 192, (top + bottom) / 128, (right - left) / 96, (bottom - top) / 64]
        own = torch.tensor([x - width / 2, y - height / 2, x + width / 2, y + height / 2], dtype=torch.float64)
        overlap = generalized_iou(own * torch.tensor([96, 64, 96, 64]), corners[target]).item()
        distance = sum(abs(one - other) for one, other in zip((x, y, width, height), center))
        return 2 * (positive - negative) + 5 * distance - 2 * overlap

    for set_idx in range(2):
        best = min(
            itertools.permutations(range(5), 3),
            key=lambda queries: sum(cost(set_idx, query, target) for target, query in enumerate(queries)),
        )
        assert [matches[set_idx, 0].tolist().index(target) for target in range(3)] == list(best)
        assert (matches[set_idx, 0] == -1).sum() == 2


def test_predictions_that_are_not_finite(build):
    """The loss shows them, as mixed precision expects, and nothing fails."""
    model = build().train()
    with torch.no_grad():
        model.class_embed[1].bias.fill_(torch.inf)
    loss = model(**padded_batch(), labels=example_labels()).loss
    assert not loss.isfinite()


def test_denoising_queries():
    """Groups, slots and noise: https://arxiv.org/abs/2203.03605, section 3.3."""
    config = DinoDetrConfig(num_labels=80, num_denoising=100)
    corners = torch.tensor([[10.0, 10, 40, 30], [20, 20, 80, 60], [50, 5, 60, 15]], dtype=torch.float64)
    targets = [
        {"class_labels": torch.tensor([1, 2, 3]), "boxes": corners},
        {"class_labels": torch.tensor([4]), "boxes": corners[:1]},
    ]
    sizes = torch.tensor([[64, 96], [64, 96]])
    torch.manual_seed(0)
    queries = create_denoising_queries(config, targets, sizes)
    assert queries.num_queries == 2 * 3 * 33 and queries.group_size == 6
    matches = queries.matches.view(2, 33, 2, 3)
    assert (matches[0, :, 0] == torch.tensor([0, 1, 2])).all() and (matches[:, :, 1] == -1).all()
    assert (matches[1, :, 0] == torch.tensor([0, -1, -1])).all()
    labels = queries.labels.view(2, 33, 2, 3)
    assert (labels[1, :, :, 1:] == -1).all() and (labels[0] >= 0).all()
    flipped = (labels[0] != torch.tensor([1, 2, 3])).double().mean()
    assert 0.15 < flipped < 0.35  # a quarter
    boxes = queries.box_logits.view(2, 33, 2, 3, 4).sigmoid()[0]
    assert (queries.box_logits.view(2, 33, 2, 3, 4)[1, :, :, 1:] == 0).all()
    center = torch.tensor([50 / 96, 40 / 64], dtype=torch.float64)  # of the second object
    half = torch.tensor([30 / 96, 20 / 64], dtype=torch.float64)
    shifts = (boxes[:, :, 1, :2] - center).abs() / half
    assert shifts[:, 0].max() <= 1 and shifts[:, 1].max() > 1  # positive and negative
    blocked = queries.blocked(5)
    assert blocked[:6, 6:198].all() and not blocked[:6, :6].any()  # other groups, the own
    assert blocked[198:, :198].all() and not blocked[:, 198:].any()  # matching queries


@pytest.mark.slow
def test_losses_count_objects_of_all_processes(tmp_path):
    """Counts are averaged over processes, before they divide."""
    code = """
import torch
from modeling_internimage.dino_detr.loss_dino_detr import mean_over_processes
torch.distributed.init_process_group("gloo")
rank = torch.distributed.get_rank()
print("counts", rank, mean_over_processes(torch.tensor([2, 5 * rank])).tolist())
"""
    output = run_in_two_processes(tmp_path, code)
    assert "counts 0 [2.0, 2.5]" in output and "counts 1 [2.0, 2.5]" in output


def test_set_losses():
    """By hand: one query with the object's class and half of its box, one background query."""
    config = DinoDetrConfig(num_labels=2)
    logits = torch.tensor([[[[1.0, -1.0], [-2.0, -2.0]]]])
    boxes = torch.tensor([[[[0.25, 0.5, 0.5, 1.0], [0.5, 0.5, 0.1, 0.1]]]])
    targets = [{"class_labels": torch.tensor([0]), "boxes": torch.tensor([[0.0, 0, 20, 10]])}]
    losses = set_losses(config, logits, boxes, torch.tensor([[[0, -1]]]), targets, torch.tensor([[10, 20]]), 4.0)
    probabilities = logits.flatten().sigmoid()
    focal = 0.25 * (1 - probabilities[0]) ** 2 * -probabilities[0].log()
    focal += (0.75 * probabilities[1:] ** 2 * -(1 - probabilities[1:]).log()).sum()
    torch.testing.assert_close(losses["ce"], focal[None] / 4)
    torch.testing.assert_close(losses["bbox"], torch.tensor([5 * (0.25 + 0.5) / 4]))
    torch.testing.assert_close(losses["giou"], torch.tensor([2 * 0.5 / 4]))


@pytest.mark.parametrize("composite", [False, True])
def test_gradient_checkpointing(composite, build):
    model, batch = build(composite).double().train(), padded_batch(torch.float64)
    gradients = []
    for _ in range(2):
        torch.manual_seed(0)
        model.zero_grad()
        model(**batch, labels=example_labels(torch.float64)).loss.backward()
        gradients.append([parameter.grad.clone() for parameter in model.parameters()])
        model.gradient_checkpointing_enable()
    for expected, gradient in zip(*gradients):
        torch.testing.assert_close(gradient, expected)


def test_initialization(build):
    """As the original: classes start at a probability of 1 percent, boxes at their references."""
    model = DinoDetrForObjectDetection(build().config)
    assert all((head.bias + math.log(99)).abs().max() < 1e-6 for head in model.class_embed)
    assert all(not parameter.any() for head in model.bbox_embed for parameter in head.layers[-1].parameters())
    assert 0.8 < model.query_embed.weight.std() < 1.2 and 0.8 < model.encoder.level_embed.weight.std() < 1.2
    attention = model.decoder.layers[0].encoder_attn
    assert not attention.sampling_offsets.weight.any() and not attention.attention_weights.weight.any()
    directions = attention.sampling_offsets.bias.view(8, 4, 4, 2)
    torch.testing.assert_close(directions.flatten(), sampling_directions(8, 4, 4))
    assert directions[0, :, :, 0].tolist() == [[1, 2, 3, 4]] * 4 and directions[0, :, :, 1].abs().max() < 1e-6
    torch.testing.assert_close(directions[1, 0, 0], torch.ones(2))  # diagonal
    width = 64
    limits = {"fused": math.sqrt(6 / (4 * width)), "single": math.sqrt(6 / (2 * width))}
    weights = {"fused": model.decoder.layers[0].self_attn.q_proj.weight, "single": model.enc_output.weight}
    for name, weight in weights.items():
        assert 0.9 * limits[name] < weight.abs().max() <= limits[name]
    outputs = model.eval()(torch.randn(1, 3, 64, 96))
    torch.testing.assert_close(outputs.pred_boxes, outputs.init_reference_points, atol=2e-3, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype, build):
    """
    Encoder and decoder err at most twice as much as their layers with inputs and outputs rounded to this precision;
    boxes stay in float32. (Selection is left out: rounding changes which positions become queries.)
    """
    exact = build().double()
    pixel_values = torch.randn(1, 3, 64, 96, dtype=torch.float64).to(dtype).double()
    for parameter in exact.parameters():
        parameter.copy_(parameter.to(dtype))
    boxes = torch.rand(1, 20, 4, dtype=torch.float64) * 0.4 + 0.3

    def run(model, pixel_values):
        feature_maps = model.neck(model.backbone(pixel_values).feature_maps)
        levels = DinoDetrLevels.create(feature_maps, None)
        encoded = model.encoder(feature_maps, levels)
        queries = model.query_embed.weight[None].to(encoded.dtype)
        states, references = model.decoder(
            queries, boxes.to(levels.valid_ratios.dtype), encoded, levels, model.bbox_embed
        )
        return {"encoder": encoded, "decoder": states[-1], "boxes": references[-1]}

    expected = run(exact, pixel_values)
    half = run(build().to(dtype), pixel_values.to(dtype))
    for module in exact.modules():
        if not list(module.children()):
            module.register_forward_hook(lambda module, inputs, output: output.to(dtype).double())
    rounded = run(exact, pixel_values)
    assert half["boxes"].dtype == torch.float32 and half["encoder"].dtype == dtype
    for name, value in expected.items():
        error, allowed = (half[name].double() - value).abs().mean(), (rounded[name] - value).abs().mean()
        assert 0 < error <= 2 * allowed, (name, error, allowed)


@pytest.mark.slow
@torch.no_grad()
def test_compile(build):
    """As one graph. (Other sizes: `test_export`; the default backend takes minutes.)"""
    model = build()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    batch = padded_batch()
    expected, outputs = model(**batch), compiled(**batch)
    torch.testing.assert_close(outputs.logits, expected.logits, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(outputs.pred_boxes, expected.pred_boxes, rtol=1e-3, atol=1e-3)


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize(("composite", "with_mask"), [(False, True), (True, True), (False, False)])
def test_export(composite, with_mask, build):
    """With any batch size and any size of more than 64 pixels."""
    model, dynamic = build(composite), torch.export.Dim.DYNAMIC

    def inputs(*shape):
        pixel_mask = torch.ones(shape[0], *shape[2:], dtype=torch.int64)
        pixel_mask[-1, :, 70:] = 0
        return (torch.randn(shape), pixel_mask)[: 1 + with_mask]

    sizes = ({0: dynamic, 2: dynamic, 3: dynamic}, {0: dynamic, 1: dynamic, 2: dynamic})[: 1 + with_mask]
    exported = torch.export.export(model, inputs(2, 3, 96, 130), dynamic_shapes=sizes).module()
    for shape in ((3, 3, 65, 131), (1, 3, 200, 96)):
        batch = inputs(*shape)
        expected, outputs = model(*batch), exported(*batch)
        torch.testing.assert_close(outputs.logits, expected.logits, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(outputs.pred_boxes, expected.pred_boxes, rtol=1e-4, atol=1e-4)


def test_other_backbone():
    """ResNet, two levels of which the convolutions of the neck make four."""
    backbone_config = ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16, 24, 32], depths=[1] * 4, out_features=["stage3", "stage4"]
    )
    config = DinoDetrConfig(backbone_config=backbone_config, d_model=64, encoder_layers=1, decoder_layers=1)
    model = DinoDetrForObjectDetection(config).eval()
    assert len(model.neck.extra_projections) == 2
    assert model(torch.randn(1, 3, 256, 320)).logits.shape == (1, 16 * 20 + 8 * 10 + 4 * 5 + 2 * 3, 2)
    with pytest.raises(ValueError, match="`num_feature_levels=1` must be at least the number of feature maps"):
        DinoDetrForObjectDetection(DinoDetrConfig(backbone_config=backbone_config, num_feature_levels=1))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_queries": 0}, "`num_queries` must be from 1"),
        ({"d_model": 32}, "`d_model=32` must be a multiple of 32"),
        ({"decoder_attention_heads": 7}, "`decoder_attention_heads=7` must divide `d_model=256`"),
        ({"activation_function": "nothing"}, "Unknown `activation_function='nothing'`"),
        ({"focal_alpha": math.nan}, "`focal_alpha` must be from 0 to 1"),
    ],
)
def test_bad_configuration(arguments, message):
    with pytest.raises(StrictDataclassError, match=message):
        DinoDetrConfig(**arguments)


def test_saved_configuration(build, tmp_path):
    build(composite=True).config.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved["model_type"] == "dino_detr" and saved["backbone_config"]["model_type"] == "cb_internimage"


def test_kernel_of_the_hub(build):
    """`use_kernels=True` finds the deformable attention by this mark."""
    pytest.importorskip("kernels")
    names = {
        getattr(type(module), "kernel_layer_name", None)
        for name, module in build().named_modules()
        if name.endswith("attn.attn")
    }
    assert names == {"MultiScaleDeformableAttention"}


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_deformable_attention(dtype, monkeypatch):
    """Inference, part by part, and training compute the same as transformers, also for points outside the levels."""
    shapes = [(5, 7), (3, 4), (1, 2)]
    generator = torch.Generator().manual_seed(0)
    value = torch.randn(2, sum(height * width for height, width in shapes), 3, 8, generator=generator)
    locations = torch.rand(2, 11, 3, 3, 2, 2, generator=generator) * 2 - 0.5
    locations[0, 0] = torch.tensor([0.0, 1.0])
    weights = torch.rand(2, 11, 3, 3, 2, generator=generator)
    levels = torch.tensor(shapes), shapes, torch.tensor([0, 35, 47])
    inputs = [value.to(dtype), *levels, locations.to(dtype), weights.to(dtype), 64]
    exact = [
        tensor.double() if torch.is_tensor(tensor) and tensor.is_floating_point() else tensor for tensor in inputs
    ]
    expected = MultiScaleDeformableAttention()(*exact)
    attention = DinoDetrMultiScaleDeformableAttention()
    monkeypatch.setattr(attention, "num_queries_at_a_time", 4)
    output = attention(*inputs)
    assert output.dtype == dtype
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(output.double(), expected, rtol=4 * eps, atol=16 * eps)
    with torch.enable_grad():
        torch.testing.assert_close(attention(*exact), expected)
    inputs[4][1, 3] = torch.nan
    assert attention(*inputs).isfinite().all()  # NaN comes from the weights and values, which have it too


def test_layers_of_transformers(build):
    """Names of parameters in layers of transformers, which are part of the checkpoint format."""
    names = {name for name, _ in build().encoder.layers[0].named_parameters()}
    linear = ["self_attn.sampling_offsets", "self_attn.attention_weights", "self_attn.value_proj"]
    linear += ["self_attn.output_proj", "self_attn_layer_norm", "mlp.fc1", "mlp.fc2", "final_layer_norm"]
    assert names == {f"{name}.{kind}" for name in linear for kind in ("weight", "bias")}
    decoder = {name for name, _ in build().decoder.layers[0].named_parameters()}
    linear = [name.replace("self_attn.", "encoder_attn.") for name in linear] + ["encoder_attn_layer_norm"]
    linear += [f"self_attn.{name}_proj" for name in "qkvo"]
    assert decoder == {f"{name}.{kind}" for name in linear for kind in ("weight", "bias")}
    assert not any(isinstance(module, nn.BatchNorm2d) for module in build().modules())
