# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""
Feature pyramids of several cameras: an InternImage with an FPN, as 3D detectors have it in front of their heads.

    python -m examples.multi_camera.camera_features --model backbone
    python -m examples.multi_camera.camera_features --model backbone --train --freeze_stages 1 --gradient_checkpointing

Prints the shape of each feature map, and time and memory of one batch of random images.
"""

import argparse
from pathlib import Path

import torch
from torch import nn
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from examples.benchmark.measuring import machine_description, peak_memory_mib, time_in_turn, where_and_when
from examples.output_files import check_outputs, mark_of, write_json
from examples.training import freeze_stages
from modeling_internimage import InternImageBackbone, use_dcnv3_kernel


MARK = mark_of(__file__)


class CameraFeatures(nn.Module):
    """
    Args:
        backbone: Its `out_features` are the levels of the pyramid.
        channels: Of each level of the pyramid.
        extra_level: Whether to add a level of half the resolution of the last one.
    """

    def __init__(self, backbone: InternImageBackbone, channels: int = 256, extra_level: bool = False):
        super().__init__()
        self.backbone = backbone
        self.neck = FeaturePyramidNetwork(
            backbone.channels, channels, extra_blocks=LastLevelMaxPool() if extra_level else None
        )

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        """
        Normalised images, (batch_size, cameras, 3, height, width) -> for each level, from fine to coarse,
        (batch_size, cameras, channels, height / stride, width / stride)
        """
        if images.ndim != 5:
            raise ValueError(
                f"`images` must have shape (batch_size, cameras, 3, height, width), got {tuple(images.shape)}."
            )
        feature_maps = self.backbone(images.flatten(0, 1)).feature_maps
        pyramid = self.neck(dict(zip(self.backbone.out_features, feature_maps)))
        return [level.unflatten(0, images.shape[:2]) for level in pyramid.values()]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder or Hub name of any InternImage checkpoint")
    parser.add_argument("--out_features", nargs="+", default=["stage2", "stage3", "stage4"], metavar="STAGE")
    parser.add_argument("--channels", type=int, default=256, help="of each level of the pyramid")
    parser.add_argument("--extra_level", action="store_true", help="one more level, of half the resolution")
    parser.add_argument("--batch_size", type=int, default=1)
    parser.add_argument("--cameras", type=int, default=6)
    parser.add_argument("--height", type=int, default=256)
    parser.add_argument("--width", type=int, default=704)
    parser.add_argument("--train", action="store_true", help="measure forward and backward pass")
    parser.add_argument("--freeze_stages", type=int, default=0, help="the stem and so many stages are not trained")
    parser.add_argument("--gradient_checkpointing", action="store_true", help="less memory, more time in training")
    parser.add_argument("--kernel", action="store_true", help="the compiled DCNv3 kernel")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--output", type=Path, help="JSON file for the results")
    args = parser.parse_args()
    if args.output:
        check_outputs([args.output], MARK)

    backbone = InternImageBackbone.from_pretrained(args.model, out_features=args.out_features)
    model = CameraFeatures(backbone, args.channels, args.extra_level).to(args.device).train(args.train)
    freeze_stages(model, args.freeze_stages)
    if args.gradient_checkpointing:
        backbone.gradient_checkpointing_enable()
    if args.kernel:
        use_dcnv3_kernel(model, strict=True)
    shape = (args.batch_size, args.cameras, backbone.config.num_channels, args.height, args.width)
    images = torch.randn(shape, device=args.device)

    def step():
        with torch.set_grad_enabled(args.train):
            levels = model(images)
        if args.train:
            sum(level.square().mean() for level in levels).backward()
            model.zero_grad()
        return levels

    print(f"images {shape}")
    names = [*backbone.out_features, "pool"] if args.extra_level else backbone.out_features
    shapes = {name: list(level.shape) for name, level in zip(names, step(), strict=True)}
    for name, level_shape in shapes.items():
        print(f"{name:8s} {tuple(level_shape)}")
    parameters = list(model.parameters())
    num_trained = sum(parameter.numel() for parameter in parameters if parameter.requires_grad)
    print(f"{sum(map(torch.numel, parameters)) / 1e6:.1f}M parameters, of which {num_trained / 1e6:.1f}M are trained")
    device = torch.device(args.device).type
    seconds = time_in_turn({"step": step}, device, args.runs, max_seconds=0)["step"]
    result = {
        "shapes": shapes,
        "seconds": sorted(seconds)[len(seconds) // 2],
        "peak_mib": peak_memory_mib(step, device),
        "machine": machine_description(device),
        "arguments": {name: value for name, value in vars(args).items() if name != "output"},
    }
    what = "forward and backward pass" if args.train else "forward pass"
    print(f"{what}: {result['seconds']:.2f} s, {result['peak_mib']:.0f} MiB above the weights,")
    print(where_and_when(result["machine"]))
    if args.output:
        write_json(args.output, result, MARK)


if __name__ == "__main__":
    main()
