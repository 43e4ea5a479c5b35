# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""
The detectors of the golden numbers: the keys of full-size ones, and the conversion, inputs and labels of reduced ones
(`tests/fixtures/golden/detection` and `dcnv4`).
"""

import dataclasses

import numpy as np
import torch
from testing_utils import GOLDEN, golden_input, original_state_dict, read_json

from conversion.checkpoints import CHECKPOINTS, Checkpoint
from conversion.convert_checkpoint import ConversionOptions, Plan, convert_checkpoint, plan_conversion
from conversion.offset_mask import UNREAD


DETECTION, FLASH = GOLDEN / "detection", GOLDEN / "dcnv4"
MANIFESTS = read_json(DETECTION / "manifests.json.gz") | read_json(FLASH / "detection_manifests.json.gz")
# A full-size checkpoint of the same kind, by the original's classes and by whether there are masks.
RECORDS = {
    ("MaskRCNN", "InternImage", True): "mask_rcnn_internimage_t_fpn_1x_coco",
    ("CascadeRCNN", "InternImage", True): "cascade_internimage_l_fpn_1x_coco",
    ("CascadeRCNN", "InternImage", False): "cascade_internimage_xl_fpn_3x_crowd_human",
    ("DINO", "InternImage", False): "dino_4scale_internimage_t_1x_coco",
    ("CBDINO", "CBInternImage", False): "dino_4scale_cbinternimage_h_objects365_coco",
    ("MaskRCNN", "FlashInternImage", True): "mask_rcnn_flash_internimage_t_fpn_1x_coco",
    ("CascadeRCNN", "FlashInternImage", True): "cascade_flash_internimage_l_fpn_1x_coco",
    ("DINO", "FlashInternImage", False): "dino_4scale_flash_internimage_t_1x_coco",
}


def read_facts(pattern: str) -> dict[str, dict]:
    """Facts about the cases whose files match `pattern`, by name."""
    files = sorted([*DETECTION.glob(pattern), *FLASH.glob(pattern)])
    return {file.stem: read_json(file) for file in files}


def reduced_record(facts: dict, **head_config) -> Checkpoint:
    """The record of a reduced model: that of a full-size one with other sizes."""
    model = facts["model"]
    is_dino = "DINO" in model["type"]
    head = model["bbox_head"] if is_dino else model["roi_head"]["bbox_head"]
    head = head[0] if isinstance(head, list) else head
    renamed = {"channels": "embed_dim", "groups": "num_groups", "layer_scale": "layer_scale_init_value"}
    renamed |= {"dw_kernel_size": "depthwise_kernel_size"}
    left_out = ("type", "drop_path_rate", "norm_layer", "out_indices", "with_cp", "level2_post_norm")
    architecture = {renamed.get(key, key): value for key, value in model["backbone"].items() if key not in left_out}
    if "level2_post_norm_block_ids" in architecture:
        architecture["level2_post_norm_block_ids"] = architecture["level2_post_norm_block_ids"][:1]
    if is_dino:
        layers = {part: head["transformer"][part] for part in ("encoder", "decoder")}
        arguments = {"d_model": 64, "num_queries": head["num_query"]}
        arguments["max_detections"] = model["test_cfg"]["max_per_img"]
        for part, layer in layers.items():
            arguments[f"{part}_layers"] = layer["num_layers"]
            arguments[f"{part}_ffn_dim"] = layer["transformerlayers"]["feedforward_channels"]
    else:
        test = model["test_cfg"]
        arguments = {
            "hidden_size": model["neck"]["out_channels"],
            "box_head_hidden_size": head["fc_out_channels"],
            "num_proposals": test["rpn"]["max_per_img"],
            "num_proposals_per_level": test["rpn"]["nms_pre"],
            "max_detections": test["rcnn"]["max_per_img"],
        }
    kind = model["type"], model["backbone"]["type"], "mask_head" in model.get("roi_head", {})
    record = CHECKPOINTS[RECORDS[kind]]
    return dataclasses.replace(
        record,
        architecture=architecture,
        head_config=record.head_config | arguments | head_config,
        num_labels=head["num_classes"],
        labels=[f"class {idx}" for idx in range(head["num_classes"])],
    )


def plan_case(facts: dict, folder, change=lambda state_dict: None, **head_config) -> Plan:
    """The conversion of a case, with its stand-in weights after a `change`."""
    state_dict = original_state_dict(facts["keys"], facts["weight_seed"])
    # The composite cases have a norm after their sixth layer, of three: no original checkpoint has one without use.
    state_dict = {key: tensor for key, tensor in state_dict.items() if ".post_norms.1." not in key}
    change(state_dict)
    folder.mkdir(exist_ok=True)
    torch.save({"state_dict": state_dict, "meta": {}}, folder / "source.pth")
    return plan_conversion(reduced_record(facts, **head_config), folder / "source.pth", ConversionOptions())


def convert_case(facts: dict, folder, **head_config):
    """The plan of the conversion and the model that was converted to `folder / "converted"` and loaded from it."""
    plan = plan_case(facts, folder, **head_config)
    convert_checkpoint(plan, folder / "converted", "a test")
    model, info = plan.head.auto_class.from_pretrained(folder / "converted", output_loading_info=True)
    assert not any(info.values()) and set(plan.dropped.values()) <= {UNREAD}
    return plan, model


def padded_inputs(shape: list[int], seed: int, image_shapes: list[list[int]]) -> dict[str, torch.Tensor]:
    """`pixel_values` of a case, 0 outside its images, and `pixel_mask`."""
    pixel_values = golden_input(shape, seed)
    pixel_mask = torch.zeros(pixel_values.shape[:1] + pixel_values.shape[2:], dtype=torch.int64)
    for mask, (height, width) in zip(pixel_mask, image_shapes):
        mask[:height, :width] = 1
    return {"pixel_values": pixel_values * pixel_mask[:, None], "pixel_mask": pixel_mask}


def relative_labels(case: dict, image_shapes: list[list[int]]) -> list[dict[str, torch.Tensor]]:
    """Labels of a training case, with boxes in float64."""
    labels = []
    for boxes, classes, (height, width) in zip(case["gt_boxes_xyxy"], case["gt_labels"], image_shapes):
        corners = torch.tensor(boxes, dtype=torch.float64).reshape(-1, 4) / torch.tensor([width, height] * 2)
        centers = torch.cat(((corners[:, :2] + corners[:, 2:]) / 2, corners[:, 2:] - corners[:, :2]), dim=1)
        labels.append({"class_labels": torch.tensor(classes, dtype=torch.int64), "boxes": centers})
    return labels


def read_arrays(name: str) -> dict[str, np.ndarray]:
    folder = FLASH if "_flash_" in name else DETECTION
    return dict(np.load(folder / f"{name}.npz"))
