# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""What the benchmarks run: InternImage in several implementations, and ConvNeXt."""

import copy

import torch
from torch import nn
from transformers import ConvNextConfig, ConvNextForImageClassification

from modeling_internimage import InternImageConfig, InternImageForImageClassification, use_dcnv3_kernel
from modeling_internimage.modeling_internimage import InternImageDeformableConvolution


ARCHITECTURES = {
    "T": {},
    "S": {"embed_dim": 80, "depths": [4, 4, 21, 4], "num_groups": [5, 10, 20, 40]},
    "B": {"embed_dim": 112, "depths": [4, 4, 21, 4], "num_groups": [7, 14, 28, 56]},
}
for _name in ("S", "B"):
    ARCHITECTURES[_name].update(layer_scale_init_value=1e-5, post_norm=True)
ARCHITECTURES["Flash-T"] = {"core_op": "DCNv4"}
# Ordinary convolutional networks of about the size of InternImage-T and -B: arguments of `ConvNextConfig`.
CONVNEXT_ARCHITECTURES = {
    "ConvNeXt-T": {},
    "ConvNeXt-B": {"hidden_sizes": [128, 256, 512, 1024], "depths": [3, 3, 27, 3]},
}
# Side of the feature map, channels and groups in the stages of InternImage-T at 224 pixels.


class LiteralDCNv3(nn.Module):
    """
    The algorithm of the original's `dcnv3_core_pytorch`, step by step: pad the input, divide sampling positions by the
    padded size, repeat the grid for every image, map to [-1, 1], `grid_sample` each group, multiply, sum. Takes the
    arguments of `modeling_internimage.DCNv3`.
    """

    def forward(
        self, value, offset, mask, center_scale, kernel_size, stride, padding, dilation, num_groups, offset_scale,
        remove_center, softmax,
    ):  # fmt: skip
        num_points = kernel_size**2 - remove_center
        batch_size, out_height, out_width = offset.shape[:3]
        if softmax:
            mask = mask.view(batch_size, out_height, out_width, num_groups, num_points).softmax(-1)
        padded = nn.functional.pad(value, (0, 0, padding, padding, padding, padding))
        _, height, width, channels = padded.shape
        options = {"dtype": value.dtype, "device": value.device}
        center = dilation * (kernel_size - 1) // 2

        rows = torch.arange(out_height, **options) * stride + center + 0.5
        columns = torch.arange(out_width, **options) * stride + center + 0.5
        reference_y, reference_x = torch.meshgrid(rows / height, columns / width, indexing="ij")
        reference = torch.stack((reference_x, reference_y), -1).view(1, out_height, out_width, 1, 2)

        steps = torch.arange(kernel_size, **options) * dilation - center
        grid_x, grid_y = torch.meshgrid(steps / width, steps / height, indexing="ij")
        grid = torch.stack((grid_x, grid_y), -1).view(-1, 2)
        if remove_center:
            grid = torch.cat((grid[: num_points // 2], grid[num_points // 2 + 1 :]))
        grid = grid.repeat(num_groups, 1).view(1, 1, 1, num_groups * num_points, 2)

        size = torch.tensor([width, height], **options)
        offset = offset.view(batch_size, out_height, out_width, num_groups * num_points, 2)
        locations = (reference + grid * offset_scale).repeat(batch_size, 1, 1, 1, 1) + offset * offset_scale / size
        locations = 2 * locations - 1
        locations = locations.view(batch_size, out_height * out_width, num_groups, num_points, 2)
        locations = locations.transpose(1, 2).flatten(0, 1)
        images = padded.view(batch_size, height * width, channels).transpose(1, 2)
        images = images.reshape(batch_size * num_groups, channels // num_groups, height, width)
        samples = nn.functional.grid_sample(images, locations, padding_mode="zeros", align_corners=False)
        mask = mask.reshape(batch_size, out_height * out_width, num_groups, num_points).transpose(1, 2)
        mask = mask.reshape(batch_size * num_groups, 1, out_height * out_width, num_points)
        output = (samples * mask).sum(-1).view(batch_size, channels, out_height * out_width)
        output = output.transpose(1, 2).reshape(batch_size, out_height, out_width, channels).contiguous()
        if center_scale is not None:
            gate = center_scale.sigmoid().repeat_interleave(channels // num_groups, dim=-1)
            output = output * (1 - gate) + value * gate
        return output


def use_literal_dcnv3(model):
    """Replace the DCNv3 operator of every layer of `model` by [`LiteralDCNv3`]."""
    for module in model.modules():
        if isinstance(module, InternImageDeformableConvolution):
            module.dcnv3 = LiteralDCNv3()
    return model


def to_bfloat16(model):
    return model.to(torch.bfloat16)


def compiled(model):
    # Every shape gets code of its own. By default, the second one would get code for any shape, which is slower.
    # The layout optimisation takes (batch, height, width, channels) for (batch, channels, height, width) and
    # transposes every tensor between two convolutions.
    return torch.compile(model, fullgraph=True, dynamic=False, options={"layout_optimization": False})


def with_kernel(model):
    return use_dcnv3_kernel(model, strict=True)


# What can be compared with the literal transcription: steps that turn a fresh float32 model into it.
IMPLEMENTATIONS = {
    "reference": [],
    "reference-bfloat16": [to_bfloat16],
    "reference-compiled": [compiled],
    "kernel": [with_kernel],
    "kernel-bfloat16": [to_bfloat16, with_kernel],
    "kernel-compiled": [with_kernel, compiled],
    "kernel-bfloat16-compiled": [to_bfloat16, with_kernel, compiled],
}


def build_model(architecture: str) -> nn.Module:
    """A classifier in float32 and evaluation mode. The offsets and masks of an InternImage are as in use."""
    torch.manual_seed(0)
    if architecture in CONVNEXT_ARCHITECTURES:
        return ConvNextForImageClassification(ConvNextConfig(**CONVNEXT_ARCHITECTURES[architecture])).eval()
    config = InternImageConfig(**ARCHITECTURES[architecture])
    model = InternImageForImageClassification(config).eval()
    with torch.no_grad():  # a fresh model samples on the regular grid only
        for name, parameter in model.named_parameters():
            if "offset_proj" in name or "mask_proj" in name:
                parameter.normal_(std=0.02)
            if "mask_proj" in name and config.core_op == "DCNv4":
                parameter.mul_(0.25)  # there is no softmax: at random, larger weights amplify rounding in every layer
    return model


def implement(model: nn.Module, implementation: str) -> nn.Module:
    """Turn a model from `build_model` into this implementation of it. (The kernel changes nothing in ConvNeXt.)"""
    for step in IMPLEMENTATIONS[implementation]:
        if not (step is with_kernel and isinstance(model, ConvNextForImageClassification)):
            model = step(model)
    return model


def build_models(architecture: str, implementations: list[str], device: str) -> dict[str, nn.Module]:
    """
    The implementations, with the same weights, after the one that they are checked against: "literal", the literal
    transcription in float32; for ConvNeXt, "eager", the model of transformers in float32.
    """
    model = build_model(architecture).to(device)
    if architecture in CONVNEXT_ARCHITECTURES:
        models = {"eager": model}
    else:
        models = {"literal": use_literal_dcnv3(copy.deepcopy(model))}
    return models | {name: implement(copy.deepcopy(model), name) for name in implementations}


def relative_differences(models: dict[str, nn.Module], images: torch.Tensor) -> dict[str, float]:
    """Of the logits of the models to those of the first one; the end of the program if they disagree."""
    logits = {name: model(images.to(next(model.parameters()).dtype)).logits.float() for name, model in models.items()}
    first = next(iter(models))
    differences = {}
    for name in models:
        differences[name] = ((logits[name] - logits[first]).norm() / logits[first].norm()).item()
        if differences[name] > (0.05 if "bfloat16" in name else 1e-4):
            raise SystemExit(f"'{name}' and '{first}' disagree: their logits differ by {differences[name]:.2%}.")
    return differences
