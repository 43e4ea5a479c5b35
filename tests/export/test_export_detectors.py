# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""Detectors and Mask2Former as plain ONNX, in ONNX Runtime and OpenVINO."""

from collections import Counter

import numpy as np
import pytest
import torch
from testing_utils import randomize
from torch import nn
from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation

from modeling_internimage import (
    DinoDetrConfig,
    DinoDetrForObjectDetection,
    MaskRCNNConfig,
    MaskRCNNForObjectDetection,
)
from modeling_internimage.export import export_onnx
from modeling_internimage.mask_rcnn.non_maximum_suppression import non_maximum_suppression


onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
openvino = pytest.importorskip("openvino")
pytest.importorskip("onnxscript")
pytest.importorskip("torchvision")

CHECKS = ("ort", "openvino")


class Suppression(nn.Module):
    def forward(self, boxes, scores):
        return non_maximum_suppression(boxes, scores, 0.1, 0.5)


@pytest.mark.parametrize("num_box_classes", [1, 3])
def test_non_maximum_suppression(num_box_classes, tmp_path):
    """Boxes of all classes or of each, in every batch size, and an image without any."""
    from modeling_internimage.export.translations import TRANSLATIONS

    def inputs(batch_size, number):
        generator = torch.Generator().manual_seed(number)
        start = torch.rand(batch_size, number, num_box_classes, 2, generator=generator) * 30
        size = 5 + torch.rand(batch_size, number, num_box_classes, 2, generator=generator) * 30
        scores = torch.rand(batch_size, number, 3, generator=generator)
        scores[0, number // 2 :] = 0
        scores[-1] = 0
        return torch.cat((start, start + size), dim=-1), scores

    open_sizes = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    program = torch.onnx.export(
        Suppression().eval(),
        inputs(2, 10),
        dynamic_shapes={"boxes": open_sizes, "scores": open_sizes},
        custom_translation_table=TRANSLATIONS,
        dynamo=True,
        verbose=False,
    )
    program.save(tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    compiled = openvino.Core().compile_model(str(tmp_path / "model.onnx"), "CPU")
    for shape in ((3, 40), (1, 7)):
        boxes, scores = inputs(*shape)
        expected = non_maximum_suppression(boxes, scores, 0.1, 0.5)
        assert 0 < expected[0].sum() < (scores[0] > 0.1).sum() or shape[0] == 1
        arrays = {"boxes": boxes.numpy(), "scores": scores.numpy()}
        np.testing.assert_array_equal(session.run(None, arrays)[0], expected)
        np.testing.assert_array_equal(compiled(arrays)[0], expected)


def build_mask_rcnn(backbone_config, **kwargs):
    sizes = {"hidden_size": 16, "box_head_hidden_size": 16, "num_labels": 3, "max_detections": 7, "num_proposals": 50}
    return MaskRCNNForObjectDetection(
        MaskRCNNConfig(backbone_config=backbone_config, mask_head_num_layers=1, **sizes, **kwargs)
    )


def build_cascade(backbone_config):
    return build_mask_rcnn(
        backbone_config,
        bbox_reg_stds=[[0.1, 0.1, 0.2, 0.2], [0.05, 0.05, 0.1, 0.1]],
        stage_positive_ious=[0.5, 0.6],
        stage_loss_weights=[1.0, 0.5],
        box_head_num_conv_layers=1,
        box_head_num_fc_layers=1,
        class_agnostic_boxes=True,
        fpn_norm="layer_norm",
    )


def build_dino(backbone_config):
    sizes = {"d_model": 64, "num_queries": 20, "encoder_layers": 1, "decoder_layers": 2, "num_labels": 3}
    sizes |= {"num_feature_levels": 2}
    sizes |= {f"{part}_ffn_dim": 64 for part in ("encoder", "decoder")}
    sizes |= {f"{part}_attention_heads": 4 for part in ("encoder", "decoder")}
    return DinoDetrForObjectDetection(DinoDetrConfig(backbone_config=backbone_config, **sizes))


def build_mask2former(backbone_config):
    widths = ("feature_size", "mask_feature_size", "hidden_dim", "encoder_feedforward_dim", "dim_feedforward")
    sizes = dict.fromkeys(widths, 32) | {"encoder_layers": 1, "decoder_layers": 2, "num_queries": 5, "num_labels": 3}
    return Mask2FormerForUniversalSegmentation(
        Mask2FormerConfig(backbone_config=backbone_config, num_attention_heads=4, **sizes)
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "build, dynamic",
    [
        (build_mask_rcnn, "all"),
        (build_cascade, "batch"),
        (build_dino, "all"),
        (build_mask2former, "batch"),
    ],
)
def test_whole_models(build, dynamic, tiny_config, tmp_path):
    """The export compares other batch sizes and, with `dynamic="all"`, another image size than the traced ones."""
    stages = ["stage4"] if build is build_dino else ["stage1", "stage2", "stage3", "stage4"]
    backbone_config = tiny_config(out_features=stages, depths=[1, 1, 1, 1])
    model = randomize(build(backbone_config))
    report = export_onnx(model, tmp_path / "onnx", size=(96, 128), dynamic=dynamic, checks=CHECKS)
    nodes = Counter(node.op_type for node in onnx.load(tmp_path / "onnx" / "model.onnx").graph.node)
    assert nodes["Loop"] == nodes["Scan"] == nodes["If"] == 0 and nodes["GridSample"] > 0
    if build in (build_mask_rcnn, build_cascade):
        assert report["outputs"] == ["logits", "pred_boxes", "pred_scores", "pred_labels", "pred_masks"]
        assert all(differences["pred_labels"] == 0 for differences in report["differences"].values())
        with torch.no_grad():
            assert (model(torch.randn(1, 3, 96, 128)).pred_scores > 0).all()  # rows that matter
    elif build is build_dino:
        assert report["outputs"] == ["logits", "pred_boxes"]
    else:
        assert report["outputs"] == ["class_queries_logits", "masks_queries_logits"]


def test_open_size_of_mask2former(tiny_config, tmp_path):
    model = build_mask2former(tiny_config(out_features=["stage1", "stage2", "stage3", "stage4"])).eval()
    with pytest.raises(ValueError, match="`dynamic='all'` is not for Mask2Former.*Use `dynamic='batch'`"):
        export_onnx(model, tmp_path / "onnx", size=(96, 128), dynamic="all")
    assert not any(tmp_path.iterdir())


@pytest.mark.slow
def test_no_detections(tiny_config, tmp_path):
    """The heads see no region; runtimes differ in how they take empty arrays."""
    backbone_config = tiny_config(out_features=["stage1", "stage2", "stage3", "stage4"], depths=[1, 1, 1, 1])
    model = randomize(build_mask_rcnn(backbone_config, score_threshold=0.99))
    export_onnx(model, tmp_path / "onnx", size=(96, 128), dynamic="none", checks=CHECKS)
