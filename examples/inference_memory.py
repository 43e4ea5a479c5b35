# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""
Memory of inference with the official segmentation and detection models: weights, and the peak of tensors for one image
of the size that the checkpoint is made for.

    export LOCAL_KERNELS=kernels-community/dcnv3=hub_kernels/dcnv3
    python -m examples.inference_memory --task segmentation --output examples/results/segmentation_memory.json
    python -m examples.inference_memory --task detection --output examples/results/detection_memory.json
    python -m examples.inference_memory --task dino --output examples/results/dino_memory.json
    python -m examples.inference_memory --table examples/results/detection_memory.json

The peak is that of the tensors a real forward pass on the CPU allocates. On a GPU they are the same tensors; nothing
has been measured there. Each stage of the backbone has two layers, and so have encoder and decoder of DINO: further
ones run when those before them have freed their memory, and do not change the peak. Detectors find as many objects as
they may. Workspaces and the allocator's reserve come on top.
"""

import argparse
import json
import math
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch

from conversion.checkpoints import CHECKPOINTS, find_checkpoint
from conversion.convert_checkpoint import empty_model
from conversion.heads import HEADS
from examples.benchmark.measuring import machine_description, peak_memory_mib
from examples.output_files import check_outputs, mark_of, write_json
from modeling_internimage import DinoDetrConfig, use_dcnv3_kernel


MARK = mark_of(__file__)
MODELS = {
    "segmentation": [
        "upernet_internimage_t_512_160k_ade20k",
        "upernet_internimage_s_512_160k_ade20k",
        "upernet_internimage_b_512_160k_ade20k",
        "upernet_internimage_l_640_160k_ade20k",
        "upernet_internimage_xl_640_160k_ade20k",
        "upernet_internimage_h_896_160k_ade20k",
        "segformer_internimage_l_512x1024_80k_mapillary",
        "mask2former_internimage_h_896_80k_cocostuff2ade20k",
        "mask2former_internimage_h_480_40k_nyu",
    ],
    "detection": [
        "mask_rcnn_internimage_t_fpn_1x_coco",
        "mask_rcnn_internimage_s_fpn_1x_coco",
        "mask_rcnn_internimage_b_fpn_1x_coco",
        "cascade_internimage_l_fpn_1x_coco",
        "cascade_internimage_xl_fpn_1x_coco",
    ],
    "dino": [
        "dino_4scale_internimage_t_1x_coco",
        "dino_4scale_internimage_l_1x_coco_layer_wise_lr",
        "dino_4scale_internimage_h_objects365_coco",
        "dino_4scale_internimage_g_objects365_coco",
        "dino_4scale_cbinternimage_h_objects365_coco",
        "dino_4scale_cbinternimage_h_objects365_lvis_minival",
    ],
}
SETTINGS = {  # dtype, whether DCNv3 is the compiled kernel
    "float32": (torch.float32, False),
    "bfloat16": (torch.bfloat16, False),
    "bfloat16, kernel": (torch.bfloat16, True),
}


def measure(name: str, dtype: torch.dtype, with_kernel: bool) -> float:
    """Peak in MiB above weights and input, for one image."""
    checkpoint = find_checkpoint(name)
    config = checkpoint.config()
    config.dtype = dtype
    config.backbone_config.depths = [2, 2, 2, 2]
    config.backbone_config.level2_post_norm_block_ids = None
    if isinstance(config, DinoDetrConfig):
        config.encoder_layers = config.decoder_layers = 2
    if hasattr(config, "score_threshold"):
        config.score_threshold = 0.0
    model = empty_model(HEADS[checkpoint.head].model_class, config).to_empty(device="cpu").eval()
    torch.manual_seed(0)
    for tensor in [*model.parameters(), *model.buffers()]:  # neither NaN nor denormal: those are slow
        tensor.data.normal_(std=tensor[0].numel() ** -0.5) if tensor.ndim > 1 else tensor.data.fill_(0.5)
    if with_kernel:
        use_dcnv3_kernel(model, strict=True)
    divisor = checkpoint.size_divisor or 1
    size = [math.ceil(side / divisor) * divisor for side in checkpoint.image_size]
    pixel_values = torch.randn(1, 3, *size, dtype=dtype)
    with torch.inference_mode():
        return peak_memory_mib(lambda: model(pixel_values), "cpu")


def measure_in_process(*arguments) -> float:
    """In a process of its own: a second profile of a large model crashes torch 2.12."""
    with ProcessPoolExecutor(max_workers=1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return round(pool.submit(measure, *arguments).result(), 1)


def markdown_table(result: dict) -> str:
    lines = ["| checkpoint | pixels | weights, float32 | " + " | ".join(SETTINGS) + " |", "|---" * 6 + "|"]
    for name, row in result["models"].items():
        peaks = [row["peak_mib"].get(setting) for setting in SETTINGS]
        cells = ["not measured" if peak is None else f"{peak / 1024:.2f} GiB" for peak in peaks]
        weights = f"{4 * row['num_parameters'] / 2**30:.2f} GiB"
        lines.append(f"| {name} | {row['pixels']} | {weights} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=MODELS, default="segmentation", help="whose models to measure")
    parser.add_argument("--models", nargs="+", choices=CHECKPOINTS, metavar="NAME", help="in place of the task's")
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=list(SETTINGS), help="all by default")
    parser.add_argument("--output", type=Path, help="JSON file for the results")
    parser.add_argument("--table", type=Path, help="print an earlier JSON file as Markdown, measure nothing")
    args = parser.parse_args()
    if args.table:
        print(markdown_table(json.loads(args.table.read_text())))
        return
    if args.output:
        check_outputs([args.output], MARK)
    models = {}
    for name in args.models or MODELS[args.task]:
        checkpoint = find_checkpoint(name)
        models[name] = {
            "pixels": "x".join(map(str, checkpoint.image_size)),
            "num_parameters": checkpoint.num_parameters,
            "peak_mib": {setting: measure_in_process(name, *SETTINGS[setting]) for setting in args.settings},
        }
        print(json.dumps({name: models[name]}), flush=True)
    if args.output:
        result = {"machine": machine_description("cpu"), "models": models}
        write_json(args.output, result, MARK)


if __name__ == "__main__":
    main()
