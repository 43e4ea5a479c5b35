# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""PyTorch InternImage model, after "InternImage: Exploring Large-Scale Vision Foundation Models with Deformable
Convolutions" (https://arxiv.org/abs/2211.05778) and the original code (https://github.com/OpenGVLab/InternImage), and
FlashInternImage, after "Efficient Deformable ConvNets: Rethinking Dynamic and Sparse Operator for Vision Applications"
(https://arxiv.org/abs/2401.06197) and its code (https://github.com/OpenGVLab/DCNv4)."""

import math
import re
from typing import Any, TypeVar

import torch
from torch import nn
from transformers import initialization as init
from transformers.activations import ACT2FN, GELUActivation
from transformers.backbone_utils import BackboneMixin
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import (
    BackboneOutput,
    BaseModelOutputWithPoolingAndNoAttention,
    ImageClassifierOutputWithNoAttention,
)
from transformers.modeling_utils import PreTrainedModel
from transformers.utils import logging
from transformers.utils.generic import can_return_tuple

from .configuration_internimage import InternImageConfig


try:  # that of `kernels` marks the class with any version of transformers
    from kernels import use_kernel_forward_from_hub
except ImportError:
    from transformers.integrations import use_kernel_forward_from_hub


PreTrainedModelType = TypeVar("PreTrainedModelType", bound=PreTrainedModel)

logger = logging.get_logger(__name__)

# Original parameter names (the `.pth` files; the official Hub repositories put `model.` in front) -> ours, applied in
# order. Every rule has at most one group: that is what the `key_mapping` of `from_pretrained` supports. No rule
# matches a name of ours, so a checkpoint saved by this code passes through unchanged.
ORIGINAL_TO_CONVERTED_KEY_MAPPING = {
    r"^(?:model\.)?patch_embed\.": "embeddings.",
    r"^embeddings\.conv(\d)\.": r"embeddings.convolution\1.",
    r"^embeddings\.norm(\d)\.1\.": r"embeddings.layernorm\1.",
    r"^(?:model\.)?levels\.0\.downsample\.": "encoder.stages.1.downsampling.",  # now the start of the next stage
    r"^(?:model\.)?levels\.1\.downsample\.": "encoder.stages.2.downsampling.",
    r"^(?:model\.)?levels\.2\.downsample\.": "encoder.stages.3.downsampling.",
    r"\.downsampling\.conv\.": ".downsampling.convolution.",
    r"\.downsampling\.norm\.1\.": ".downsampling.layernorm.",
    r"^(?:model\.)?levels\.": "encoder.stages.",
    r"\.blocks\.(\d+)\.": r".layers.\1.",
    r"\.norm(\d)\.0\.": r".norm\1.",
    r"\.norm\.0\.": ".norm.",
    r"\.res_post_norm(\d)\.0\.": r".res_post_norm\1.",
    r"\.post_norms\.(\d+)\.0\.": r".post_norms.\1.",
    r"\.gamma(\d)$": r".layer_scale\1",
    r"\.dcn\.dw_conv\.0\.": ".dcn.depthwise_convolution.",
    r"\.dcn\.dw_conv\.1\.1\.": ".dcn.depthwise_layernorm.",
    r"\.dcn\.offset_mask_dw\.": ".dcn.depthwise_convolution.",
    r"\.dcn\.offset\.": ".dcn.offset_proj.",
    r"\.dcn\.mask\.": ".dcn.mask_proj.",
    r"\.center_feature_scale_proj_(weight|bias)$": r".center_feature_scale_proj.\1",
    r"^(?:model\.)?conv_head\.0\.": "pooler.convolution.",
    r"^(?:model\.)?conv_head\.1\.0\.": "pooler.batch_norm.",
    r"^(?:model\.)?dcnv3_head_x4\.0\.": "pooler.last_stage_proj.",
    r"^(?:model\.)?dcnv3_head_x3\.": "pooler.previous_stage_proj.",
    r"^(?:model\.)?clip_projector\.norm1_([qkv])\.0\.": r"pooler.layernorm_\1.",
    r"^(?:model\.)?clip_projector\.cross_dcn\.([qkv]_bias)$": r"pooler.\1",
    r"^(?:model\.)?clip_projector\.cross_dcn\.([qkv])\.weight$": r"pooler.\1_proj.weight",
    r"^(?:model\.)?clip_projector\.cross_dcn\.proj\.": "pooler.out_proj.",
    r"^(?:model\.)?fc_norm\.0\.": "pooler.layernorm.",
    r"^(?:model\.)?head\.": "classifier.",
    r"^(?:model\.)?meta_head_1\.": "metadata_head.temporal_embeddings.",
    r"^(?:model\.)?meta_head_2\.": "metadata_head.spatial_embeddings.",
    r"_embeddings\.0\.": "_embeddings.projection.",
    r"_embeddings\.2\.": "_embeddings.layernorm.",
    r"_embeddings\.3\.w(\d)\.": r"_embeddings.fc\1.",
    r"_embeddings\.3\.norm_fn(\d)\.": r"_embeddings.layernorm\1.",
    r"^(?:model\.)?meta_norm\.": "metadata_head.layernorm.",
    r"^(?:model\.)?meta_head\.": "metadata_head.classifier.",
}


@use_kernel_forward_from_hub("DCNv3")
class DCNv3(nn.Module):
    """
    Deformable convolution v3 (section 3.1 of the paper; `DCNv3Function` / `dcnv3_core_pytorch` of the original), in
    plain PyTorch: no parameters, any device, any floating dtype, differentiable.

    Every output pixel is, per group of channels, a weighted sum of bilinear samples of `value` around it. PyTorch has
    two operators that can take it: `grid_sample`, whose backward pass is about three times as fast, which can be
    differentiated twice, traced and exported; and `embedding_bag`, whose forward pass is about three times as fast on
    a CPU and stores no samples.

    Attributes:
        operator (`str`, defaults to `"auto"`):
            `"grid_sample"`, `"embedding_bag"`, or `"auto"`, which takes

            - `grid_sample` where something asks for gradients, in evaluation mode too, and where a graph is recorded
              that has to hold on other machines: `torch.export`, `torch.jit.trace`, ONNX;
            - `embedding_bag` for inference, also under `torch.compile`; and for gradients on a GPU with
              `torch.use_deterministic_algorithms`.

            This is the only switch. Two things replace the whole method: a compiled kernel, when one is asked for, and
            `modeling_internimage.export`, whose graphs hold `GridSample` or `DeformConv`. Neither of PyTorch's
            operators has derivatives in forward mode (`torch.func.jvp`, `hessian`).
    """

    operator = "auto"

    def forward(
        self,
        value: torch.Tensor,
        offset: torch.Tensor,
        mask: torch.Tensor,
        center_scale: torch.Tensor | None,
        kernel_size: int,
        stride: int,
        padding: int,
        dilation: int,
        num_groups: int,
        offset_scale: float,
        remove_center: bool,
        softmax: bool,
    ) -> torch.Tensor:
        r"""
        Args:
            value (`torch.Tensor` of shape `(batch_size, height, width, channels)`):
                The projected input. Outside of it everything is zero.
            offset (`torch.Tensor` of shape `(batch_size, out_height, out_width, num_groups * num_points * 2)`):
                Displacement (x, y) of each sampling point in input pixels. Points are ordered column by column.
            mask (`torch.Tensor` of shape `(batch_size, out_height, out_width, num_groups * num_points)`):
                Weight of each sampling point: logits if `softmax`, else used as they are.
            center_scale (`torch.Tensor` of shape `(batch_size, out_height, out_width, num_groups)`, *optional*):
                Logits of the gate that blends each group's output with `value`. Stride 1 only.
            kernel_size, stride, padding, dilation (`int`):
                As in a convolution; `num_points` is `kernel_size**2`, one less with `remove_center`.
            num_groups (`int`):
                Number of channel groups, each with its own offsets and mask.
            offset_scale (`float`):
                Factor on the regular grid, about the kernel centre, and on the offsets.
            remove_center (`bool`):
                Leave the central point out. Needs an odd `kernel_size`.
            softmax (`bool`):
                Whether to normalise `mask` over the points of each group.

        Returns:
            `torch.Tensor` of shape `(batch_size, out_height, out_width, channels)` in `value`'s dtype. Sums are taken
            in float32, or float64 for float64 inputs.

        Raises:
            `ValueError`: if the arguments do not describe a DCNv3 or the shapes do not fit them.
        """
        _check_dcnv3_arguments(
            value, offset, mask, center_scale, kernel_size, stride, padding, dilation, num_groups, remove_center
        )
        batch_size, height, width, channels = value.shape
        out_height, out_width = offset.shape[1:3]
        num_points = kernel_size**2 - remove_center
        device, dtype = value.device, torch.promote_types(value.dtype, torch.float32)
        if device.type == "cuda" and not torch.compiler.is_compiling():
            logger.warning_once(
                "DCNv3 runs as its PyTorch reference on the GPU. A compiled kernel can replace it: "
                "`from_pretrained(..., use_kernels=True)`, or `modeling_internimage.use_dcnv3_kernel(model)` for a "
                "model that is loaded."
            )

        # Where each point samples, in pixels. The regular grid is separable: only a row and a column of it are built.
        point = torch.arange(num_points, device=device)
        if remove_center:
            point = point + (point >= num_points // 2)
        center = dilation * (kernel_size - 1) // 2
        grid_x = (point // kernel_size * dilation - center).to(dtype) * offset_scale
        grid_y = (point % kernel_size * dilation - center).to(dtype) * offset_scale
        origin_x = torch.arange(out_width, device=device, dtype=dtype) * stride + (center - padding)
        origin_y = torch.arange(out_height, device=device, dtype=dtype) * stride + (center - padding)
        grid_x = (origin_x[:, None] + grid_x).view(1, 1, out_width, 1, num_points)
        grid_y = (origin_y[:, None] + grid_y).view(1, out_height, 1, 1, num_points)
        offset = offset.view(batch_size, out_height, out_width, num_groups, num_points, 2)
        # From one pixel outside on, a sample sees only zeros: there, farther makes no difference.
        x = torch.add(grid_x, offset[..., 0], alpha=offset_scale).clamp(-1, width)
        y = torch.add(grid_y, offset[..., 1], alpha=offset_scale).clamp(-1, height)

        weight = mask.to(dtype).view(batch_size, out_height, out_width, num_groups, num_points)
        if softmax:  # written out: on a CPU, `softmax` over so few points takes several times as long
            weight = (weight - weight.detach().amax(dim=-1, keepdim=True)).exp()
            weight = weight / weight.sum(dim=-1, keepdim=True)

        images = value.to(dtype).view(batch_size, height, width, num_groups, channels // num_groups)
        if self._choose_operator(images, x, y, weight) == "grid_sample":
            output = self._sample_and_sum(images, x, y, weight, padding)
        else:
            output = self._sum_rows(images, x, y, weight)
        if center_scale is not None:
            output = torch.lerp(output, images, center_scale.to(dtype).sigmoid().unsqueeze(-1))
        return output.flatten(3).to(value.dtype)

    def _choose_operator(self, *tensors: torch.Tensor) -> str:
        if self.operator in ("grid_sample", "embedding_bag"):
            return self.operator
        if self.operator != "auto":
            raise ValueError(
                f"`operator` must be 'auto', 'grid_sample' or 'embedding_bag', the layer has {self.operator!r}."
            )
        if torch.jit.is_tracing() or torch.compiler.is_exporting():
            return "grid_sample"
        needs_gradients = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
        # The backward pass of `grid_sample` on a GPU adds in any order, that of `embedding_bag` in a fixed one.
        is_ordered = tensors[0].device.type == "cpu" or not torch.are_deterministic_algorithms_enabled()
        return "grid_sample" if needs_gradients and is_ordered else "embedding_bag"

    @staticmethod
    def _sample_and_sum(images, x, y, weight, padding):
        """`images` (N, H, W, G, D), the others (N, Ho, Wo, G, P) -> (N, Ho, Wo, G, D). Keeps every sample."""
        batch_size, out_height, out_width, num_groups, num_points = x.shape
        images = images.permute(0, 3, 4, 1, 2).flatten(0, 1)
        # `grid_sample` needs no padding, but the original divides by the padded size: with it, positions round alike.
        images = nn.functional.pad(images, (padding, padding, padding, padding))
        height, width = images.shape[2:]
        x = (x + (padding + 0.5)) * (2 / width) - 1  # pixels -> [-1, 1]
        y = (y + (padding + 0.5)) * (2 / height) - 1
        grid = torch.stack((x, y), dim=-1).permute(0, 3, 1, 2, 4, 5).flatten(0, 1).flatten(1, 2)
        samples = nn.functional.grid_sample(images, grid, padding_mode="zeros", align_corners=False)
        weight = weight.permute(0, 3, 1, 2, 4).reshape(batch_size * num_groups, 1, out_height * out_width, num_points)
        output = (samples * weight).sum(dim=-1)  # (N * G, D, Ho * Wo)
        return output.view(batch_size, num_groups, images.shape[1], out_height, out_width).permute(0, 3, 4, 1, 2)

    @staticmethod
    def _sum_rows(images, x, y, weight):
        """As `_sample_and_sum`. Interpolation makes a sample a weighted sum of four pixels, a row of D values each."""
        batch_size, num_groups, group_channels = images.shape[0], *images.shape[3:]
        # Zeros around the image, so that the four neighbours of every sample exist.
        rows = nn.functional.pad(images, (0, 0, 0, 0, 1, 2, 1, 2))
        padded_height, padded_width = rows.shape[1:3]
        rows = rows.reshape(-1, group_channels)
        left, top = x.detach().floor(), y.detach().floor()
        x, y = x - left, y - top  # from here on the fractions, in [0, 1)

        # Which rows: that of the top left neighbour, then its neighbours right, below and diagonally below. int32 is
        # twice as fast; the wider type serves tensors with more rows or samples than it can count.
        largest = max(rows.shape[0], 4 * x.numel()) if not torch.compiler.is_compiling() else 0
        wide = largest > torch.iinfo(torch.int32).max
        dtype = torch.int64 if wide else torch.int32
        right, below = num_groups, padded_width * num_groups
        first = torch.arange(batch_size, device=x.device, dtype=dtype).view(-1, 1, 1, 1, 1) * (padded_height * below)
        first = first + torch.arange(num_groups, device=x.device, dtype=dtype).view(-1, 1) + (below + right)
        index = (top.to(dtype) * padded_width + left.to(dtype)) * num_groups + first
        # NaN offsets become arbitrary integers: keep them inside, their weights are NaN anyway.
        index = index.clamp(0, max(rows.shape[0] - 1 - below - right, 0))
        index = torch.stack((index, index + right, index + below, index + (below + right)), dim=-2)

        bottom = weight * y
        top = weight - bottom
        bottom_right, top_right = bottom * x, top * x
        weight = torch.stack((top - top_right, top_right, bottom - bottom_right, bottom_right), dim=-2)

        index, weight = index.reshape(-1, 4 * x.shape[-1]), weight.reshape(-1, 4 * x.shape[-1])
        output = nn.functional.embedding_bag(index, rows, per_sample_weights=weight, mode="sum")
        return output.view(*x.shape[:-1], group_channels)


def _check_dcnv3_arguments(
    value, offset, mask, center_scale, kernel_size, stride, padding, dilation, num_groups, remove_center
):
    if value.ndim != 4 or not value.is_floating_point():
        raise ValueError(
            "`value` must have shape (batch_size, height, width, channels) and a floating point dtype, got "
            f"{tuple(value.shape)} and {value.dtype}."
        )
    batch_size, height, width, channels = value.shape
    numbers = {"kernel_size": kernel_size, "stride": stride, "dilation": dilation, "padding": padding}
    for name, number in numbers.items():
        if number < (name != "padding"):
            raise ValueError(f"`{name}` must be at least {int(name != 'padding')}, got {number}.")
    if num_groups < 1 or channels < 1 or channels % num_groups:
        raise ValueError(f"`value` has {channels} channels, which `num_groups={num_groups}` does not divide.")
    if remove_center and (kernel_size % 2 == 0 or kernel_size == 1):
        raise ValueError(
            "`remove_center` needs a kernel with a centre and points around it: `kernel_size` must be odd and at "
            f"least 3, got {kernel_size}."
        )
    extent = dilation * (kernel_size - 1) + 1
    out_height = (height + 2 * padding - extent) // stride + 1
    out_width = (width + 2 * padding - extent) // stride + 1
    if out_height < 1 or out_width < 1:
        raise ValueError(
            f"`value` of {height}x{width} pixels with `padding={padding}` is smaller than the kernel, which spans "
            f"{extent} pixels (`kernel_size={kernel_size}`, `dilation={dilation}`)."
        )
    num_points = kernel_size**2 - remove_center
    expected = {
        "offset": (offset, num_groups * num_points * 2),
        "mask": (mask, num_groups * num_points),
        "center_scale": (center_scale, num_groups),
    }
    for name, (tensor, last_size) in expected.items():
        shape = (batch_size, out_height, out_width, last_size)
        if tensor is not None and tensor.shape != shape:
            raise ValueError(f"`{name}` must have shape {shape}, got {tuple(tensor.shape)}.")
        if tensor is not None and tensor.device != value.device:
            raise ValueError(f"`{name}` is on {tensor.device} and `value` on {value.device}: move one to the other.")
    if center_scale is not None and (stride != 1 or (out_height, out_width) != (height, width)):
        raise ValueError(
            "`center_scale` blends the output with `value` pixel by pixel, so `stride` must be 1 and `padding` must "
            f"keep the size; got stride={stride} and an output of {out_height}x{out_width} for {height}x{width}."
        )


class InternImageDropPath(nn.Module):
    """Stochastic depth per sample (https://arxiv.org/abs/1603.09382). Identity outside training."""

    def __init__(self, drop_prob: float = 0.0):
        super().__init__()
        self.drop_prob = drop_prob

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        if self.drop_prob == 0.0 or not self.training:
            return hidden_states
        keep_prob = 1 - self.drop_prob
        shape = (hidden_states.shape[0],) + (1,) * (hidden_states.ndim - 1)
        kept = torch.rand(shape, dtype=torch.float32, device=hidden_states.device) < keep_prob
        return hidden_states * (kept.to(hidden_states.dtype) / keep_prob)

    def extra_repr(self) -> str:
        return f"p={self.drop_prob}"


class InternImageEmbeddings(nn.Module):
    """The stem: two strided convolutions, to a quarter of the resolution (`StemLayer` of the original)."""

    def __init__(self, config: InternImageConfig):
        super().__init__()
        width = config.embed_dim // 2
        self.num_channels = config.num_channels
        self.convolution1 = nn.Conv2d(config.num_channels, width, kernel_size=3, stride=2, padding=1)
        self.layernorm1 = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.activation = ACT2FN[config.hidden_act]
        self.convolution2 = nn.Conv2d(width, config.embed_dim, kernel_size=3, stride=2, padding=1)
        self.layernorm2 = nn.LayerNorm(config.embed_dim, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """(batch_size, num_channels, height, width) -> (batch_size, embed_dim, height / 4, width / 4)"""
        # Channels-last memory from here on: every permute below and in the stages is a view. (`torch.vmap` knows no
        # `torch.channels_last`.)
        pixel_values = pixel_values.permute(0, 2, 3, 1).to(self.convolution1.weight.dtype).contiguous()
        hidden_states = self.convolution1(pixel_values.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)  # NHWC
        hidden_states = self.activation(self.layernorm1(hidden_states)).permute(0, 3, 1, 2)  # NCHW
        hidden_states = self.convolution2(hidden_states).permute(0, 2, 3, 1)  # NHWC
        return self.dropout(self.layernorm2(hidden_states)).permute(0, 3, 1, 2)  # NCHW


class InternImageDownsampling(nn.Module):
    """Halves the resolution and doubles the channels between two stages (`DownsampleLayer` of the original)."""

    def __init__(self, config: InternImageConfig, channels: int):
        super().__init__()
        self.convolution = nn.Conv2d(channels, 2 * channels, kernel_size=3, stride=2, padding=1, bias=False)
        self.layernorm = nn.LayerNorm(2 * channels, eps=config.layer_norm_eps)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """(batch_size, channels, height, width) -> (batch_size, height / 2, width / 2, 2 * channels)"""
        return self.layernorm(self.convolution(hidden_states).permute(0, 2, 3, 1))  # NCHW -> NHWC


class InternImageDeformableConvolution(nn.Module):
    """The operator [`DCNv3`] in a 3x3 window, without the projections around it."""

    kernel_size = 3  # in every InternImage; `depthwise_kernel_size` is another kernel
    softmax: bool  # whether the sampling weights of a group are normalised

    def __init__(self, config: InternImageConfig, num_groups: int):
        super().__init__()
        self.num_groups = num_groups
        self.offset_scale = float(config.offset_scale)
        self.remove_center = config.remove_center
        self.num_points = self.kernel_size**2 - config.remove_center
        self.dcnv3 = DCNv3()

    def sample(
        self,
        value: torch.Tensor,
        offset: torch.Tensor,
        mask: torch.Tensor,
        center_scale: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Apply [`DCNv3`] to tensors of the shapes that it describes; returns the shape of `value`."""
        return self.dcnv3(
            value,
            offset,
            mask,
            center_scale,
            kernel_size=self.kernel_size,
            stride=1,
            padding=self.kernel_size // 2,
            dilation=1,
            num_groups=self.num_groups,
            offset_scale=self.offset_scale,
            remove_center=self.remove_center,
            softmax=self.softmax,
        )


class InternImageDCNv3(InternImageDeformableConvolution):
    """
    The projections around [`DCNv3`] (the module `DCNv3` of the original). Also used alone, it starts with the regular
    grid and equal weights: offsets, masks and gates are 0. (`input_proj` and `output_proj` start as `nn.Linear` then;
    in a model, Xavier-uniform.)
    """

    softmax = True

    def __init__(self, config: InternImageConfig, channels: int, num_groups: int):
        super().__init__(config, num_groups)
        self.depthwise_convolution = _depthwise_convolution(channels, config.depthwise_kernel_size)
        self.depthwise_layernorm = nn.LayerNorm(channels, eps=config.layer_norm_eps)
        self.activation = ACT2FN[config.hidden_act]
        self.input_proj = nn.Linear(channels, channels)
        self.offset_proj = nn.Linear(channels, num_groups * self.num_points * 2)
        self.mask_proj = nn.Linear(channels, num_groups * self.num_points)
        self.center_feature_scale_proj = nn.Linear(channels, num_groups) if config.center_feature_scale else None
        self.output_proj = nn.Linear(channels, channels, bias=config.dcn_output_bias)
        _initialize_projections(
            xavier=[self.input_proj, self.output_proj],
            zeros=[self.offset_proj, self.mask_proj, self.center_feature_scale_proj],
        )

    def sampling_parameters(
        self, hidden_states: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Offsets, mask logits and gate logits (or `None`) of [`DCNv3`], from the input of this module."""
        features = self.depthwise_convolution(hidden_states.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)  # NCHW and back
        features = self.activation(self.depthwise_layernorm(features))
        center_scale = None if self.center_feature_scale_proj is None else self.center_feature_scale_proj(features)
        return self.offset_proj(features), self.mask_proj(features), center_scale

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """(batch_size, height, width, channels) -> the same"""
        offset, mask, center_scale = self.sampling_parameters(hidden_states)
        return self.output_proj(self.sample(self.input_proj(hidden_states), offset, mask, center_scale))


class InternImageDCNv4(InternImageDeformableConvolution):
    """
    The layer of FlashInternImage (the module `DCNv4` of its code, https://github.com/OpenGVLab/DCNv4): the weights of
    the sampling points are used as they are, without a softmax, and come straight from the input, or from a depthwise
    convolution of it. The original's projection `offset_mask` is two here, without its padding: see
    `split_offset_mask` in `conversion`. Weights start at 0, and so does what [`DCNv3`] returns.

    Args:
        config ([`InternImageConfig`]):
            `depthwise_kernel_size`, `offset_scale`, `remove_center` and `dcn_output_bias` are those of the layer.
        channels, num_groups (`int`):
            Of the stage. The original needs multiples of 16 channels in a group; here any number works.
        center_feature_scale (`bool`, *optional*, defaults to `False`):
            Blend the output with the value through a learned gate per group. No FlashInternImage has this gate:
            `config.center_feature_scale` only adds norms to its stages.
        without_pointwise (`bool`, *optional*, defaults to `False`):
            Leave `value_proj` and `output_proj` out. No FlashInternImage does this.
    """

    softmax = False

    def __init__(
        self,
        config: InternImageConfig,
        channels: int,
        num_groups: int,
        center_feature_scale: bool = False,
        without_pointwise: bool = False,
    ):
        super().__init__(config, num_groups)
        kernel_size = config.depthwise_kernel_size
        self.depthwise_convolution = _depthwise_convolution(channels, kernel_size) if kernel_size else None
        self.value_proj = nn.Identity() if without_pointwise else nn.Linear(channels, channels)
        self.offset_proj = nn.Linear(channels, num_groups * self.num_points * 2)
        self.mask_proj = nn.Linear(channels, num_groups * self.num_points)
        self.center_feature_scale_proj = nn.Linear(channels, num_groups) if center_feature_scale else None
        bias = config.dcn_output_bias
        self.output_proj = nn.Identity() if without_pointwise else nn.Linear(channels, channels, bias=bias)
        _initialize_projections(
            xavier=[self.value_proj, self.output_proj],
            zeros=[self.offset_proj, self.mask_proj, self.center_feature_scale_proj],
        )

    def sampling_parameters(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None]:
        """Offsets and weights of [`DCNv3`], and `None` for its gate, from the input of this module."""
        if self.depthwise_convolution is not None:
            hidden_states = self.depthwise_convolution(hidden_states.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return self.offset_proj(hidden_states), self.mask_proj(hidden_states), None

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """(batch_size, height, width, channels) -> the same"""
        value = self.value_proj(hidden_states)
        offset, mask, _ = self.sampling_parameters(hidden_states)
        output = self.sample(value, offset, mask)
        if self.center_feature_scale_proj is not None:  # from the output; in DCNv3 from what predicts the offsets
            gate = self.center_feature_scale_proj(output).sigmoid()
            output = torch.lerp(output, value, gate.repeat_interleave(output.shape[-1] // self.num_groups, dim=-1))
        return self.output_proj(output)


def _depthwise_convolution(channels: int, kernel_size: int) -> nn.Conv2d:
    return nn.Conv2d(channels, channels, kernel_size, padding=kernel_size // 2, groups=channels)


def _initialize_projections(xavier: list[nn.Module], zeros: list[nn.Linear | None]):
    """
    Zero the weights of `zeros`, and mark all for `_init_weights`, which transformers calls only for modules that own
    parameters, not for the one that they belong to.
    """
    for projection in xavier:
        projection.initialization = "xavier"
    for projection in zeros:
        if projection is not None:
            projection.initialization = "zeros"
            nn.init.zeros_(projection.weight)
            nn.init.zeros_(projection.bias)


CORE_OPS = {"DCNv3": InternImageDCNv3, "DCNv4": InternImageDCNv4}


class InternImageMLP(nn.Module):
    """The feed-forward network of a layer (`MLPLayer` of the original)."""

    def __init__(self, config: InternImageConfig, channels: int):
        super().__init__()
        hidden_channels = int(channels * config.mlp_ratio)
        self.fc1 = nn.Linear(channels, hidden_channels)
        self.activation = ACT2FN[config.hidden_act]
        self.fc2 = nn.Linear(hidden_channels, channels, bias=config.mlp_fc2_bias)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        hidden_states = self.fc1(hidden_states)
        # Inference overwrites the largest tensor of the network, which saves memory and up to a tenth of the time.
        in_place = isinstance(self.activation, GELUActivation) and not _is_hooked(self.fc1, self.activation)
        if in_place and not torch.is_grad_enabled() and not torch.jit.is_tracing():
            hidden_states = torch.ops.aten.gelu_(hidden_states)
        else:
            hidden_states = self.activation(hidden_states)
        return self.dropout(self.fc2(self.dropout(hidden_states)))


def _is_hooked(*modules: nn.Module) -> bool:
    """Whether forward hooks see tensors of `modules`, which must not be overwritten. PyTorch has no public getter."""
    return any(module._forward_hooks or module._forward_pre_hooks for module in modules)


@use_kernel_forward_from_hub("InternImageLayer")
class InternImageLayer(GradientCheckpointingLayer):
    """
    DCNv3 or DCNv4, and a feed-forward network, each with a residual connection (`InternImageLayer` of the original).
    """

    def __init__(self, config: InternImageConfig, channels: int, num_groups: int, drop_path_rate: float):
        super().__init__()
        self.post_norm = config.post_norm
        self.norm1 = nn.LayerNorm(channels, eps=config.layer_norm_eps)
        self.dcn = CORE_OPS[config.core_op](config, channels, num_groups)
        self.norm2 = nn.LayerNorm(channels, eps=config.layer_norm_eps)
        self.mlp = InternImageMLP(config, channels)
        self.drop_path = InternImageDropPath(drop_path_rate)
        self.layer_scale1 = self.layer_scale2 = self.res_post_norm1 = self.res_post_norm2 = None
        if config.layer_scale_init_value is not None:
            self.layer_scale1 = nn.Parameter(torch.full((channels,), float(config.layer_scale_init_value)))
            self.layer_scale2 = nn.Parameter(torch.full((channels,), float(config.layer_scale_init_value)))
        elif config.res_post_norm and not config.post_norm:
            self.res_post_norm1 = nn.LayerNorm(channels, eps=config.layer_norm_eps)
            self.res_post_norm2 = nn.LayerNorm(channels, eps=config.layer_norm_eps)

    def residual_branch(self, hidden_states, function, norm, res_post_norm, layer_scale):
        branch = norm(function(hidden_states)) if self.post_norm else function(norm(hidden_states))
        if res_post_norm is not None:
            branch = res_post_norm(branch)
        if layer_scale is not None:
            branch = branch * layer_scale
        return hidden_states + self.drop_path(branch)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """(batch_size, height, width, channels) -> the same"""
        hidden_states = self.residual_branch(
            hidden_states, self.dcn, self.norm1, self.res_post_norm1, self.layer_scale1
        )
        return self.residual_branch(hidden_states, self.mlp, self.norm2, self.res_post_norm2, self.layer_scale2)


class InternImageStage(nn.Module):
    """The layers at one resolution (`InternImageBlock` of the original, but its downsampling opens the next stage)."""

    def __init__(self, config: InternImageConfig, stage_idx: int):
        super().__init__()
        channels = config.hidden_sizes[stage_idx]
        first_layer = sum(config.depths[:stage_idx])
        self.downsampling = InternImageDownsampling(config, channels // 2) if stage_idx > 0 else None
        self.layers = nn.ModuleList(
            InternImageLayer(
                config,
                channels,
                config.num_groups[stage_idx],
                drop_path_rate=_drop_path_rate(config, first_layer + idx),
            )
            for idx in range(config.depths[stage_idx])
        )
        self.post_norm_layers = (config.level2_post_norm_block_ids or []) if stage_idx == 2 else []
        self.post_norms = nn.ModuleList(
            nn.LayerNorm(channels, eps=config.layer_norm_eps) for _ in self.post_norm_layers
        )
        has_norm = not config.post_norm or config.center_feature_scale
        self.norm = nn.LayerNorm(channels, eps=config.layer_norm_eps) if has_norm else None

    def forward(self, hidden_states: torch.Tensor, coupling: torch.Tensor | None = None) -> torch.Tensor:
        """
        (batch_size, channels, height, width) of the previous stage -> the same of this stage. Both are channels-first
        views of channels-last memory. A composite backbone adds `coupling`, of the shape of the output, to the input
        of the first layer.
        """
        if self.downsampling is None:
            hidden_states = hidden_states.permute(0, 2, 3, 1)  # NCHW -> NHWC
        else:
            hidden_states = self.downsampling(hidden_states)
        if coupling is not None:
            hidden_states = hidden_states + coupling.permute(0, 2, 3, 1)
        for layer_idx, layer in enumerate(self.layers):
            hidden_states = layer(hidden_states)
            if layer_idx in self.post_norm_layers:
                hidden_states = self.post_norms[self.post_norm_layers.index(layer_idx)](hidden_states)
        if self.norm is not None:
            hidden_states = self.norm(hidden_states)
        return hidden_states.permute(0, 3, 1, 2)  # NHWC -> NCHW


def _drop_path_rate(config: InternImageConfig, layer_idx: int) -> float:
    """Stochastic depth rate of a layer, counted from 0 through the whole network."""
    num_layers = sum(config.depths)
    if config.drop_path_type == "uniform":
        return config.drop_path_rate
    return config.drop_path_rate * layer_idx / max(num_layers - 1, 1)


class InternImageEncoder(nn.Module):
    def __init__(self, config: InternImageConfig):
        super().__init__()
        self.stages = nn.ModuleList(InternImageStage(config, stage_idx) for stage_idx in range(len(config.depths)))

    def forward(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The stem's output -> that and the output of every stage, all (batch_size, channels, height, width)."""
        all_hidden_states = (hidden_states,)
        for stage in self.stages:
            hidden_states = stage(hidden_states)
            all_hidden_states += (hidden_states,)
        return all_hidden_states


class InternImageBatchNorm(nn.BatchNorm2d):
    """
    Batch norm that uses and keeps its running statistics, also in training, while `weight.requires_grad` is false. An
    adapter (PEFT) saves only what it trains: with fixed statistics, the reloaded model is the trained one. With
    `modules_to_save=["batch_norm"]`, PEFT trains and saves them.

    DeepSpeed and FSDP make the parameters bfloat16 but not the statistics. PyTorch wants both in float32.
    """

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        is_fixed = self.training and not self.weight.requires_grad
        if not is_fixed and self.weight.dtype == self.running_mean.dtype:
            return super().forward(hidden_states)
        training = self.training and not is_fixed
        if training:
            self.num_batches_tracked.add_(1)
        mean, var = self.running_mean, self.running_var
        weight, bias = self.weight.to(mean.dtype), self.bias.to(mean.dtype)
        return nn.functional.batch_norm(hidden_states, mean, var, weight, bias, training, self.momentum, self.eps)


class InternImageConvPooler(nn.Module):
    """Pooling of InternImage-T to -XL: 1x1 convolution, batch norm, activation, mean (the original's `conv_head`)."""

    def __init__(self, config: InternImageConfig):
        super().__init__()
        self.output_size = config.hidden_size
        self.convolution = nn.Conv2d(config.hidden_sizes[-1], self.output_size, kernel_size=1, bias=False)
        self.batch_norm = InternImageBatchNorm(self.output_size)
        self.activation = ACT2FN[config.hidden_act]

    def forward(self, previous_stage: torch.Tensor, last_stage: torch.Tensor) -> torch.Tensor:
        """Last two stages' (batch_size, channels, height, width) -> (batch_size, output_size)"""
        return self.activation(self.batch_norm(self.convolution(last_stage))).mean(dim=(2, 3))


class InternImageAttentionPooler(nn.Module):
    """
    Pooling of InternImage-H and -G: the mean token of the last two stages attends to all their tokens
    (`dcnv3_head_x3`, `dcnv3_head_x4`, `clip_projector` and `fc_norm` of the original, whose sizes are constants too).
    """

    hidden_size = 1024
    num_heads = 16
    upsample_factor = 2

    def __init__(self, config: InternImageConfig):
        super().__init__()
        size, eps = self.hidden_size, config.layer_norm_eps
        self.last_stage_proj = nn.Conv2d(config.hidden_sizes[-1], size * self.upsample_factor**2, kernel_size=1)
        self.previous_stage_proj = nn.Conv2d(config.hidden_sizes[-2], size, kernel_size=1)
        self.layernorm_q = nn.LayerNorm(size, eps=eps)
        self.layernorm_k = nn.LayerNorm(size, eps=eps)
        self.layernorm_v = nn.LayerNorm(size, eps=eps)
        self.q_proj = nn.Linear(size, size, bias=False)
        self.k_proj = nn.Linear(size, size, bias=False)
        self.v_proj = nn.Linear(size, size, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(size))
        self.k_bias = nn.Parameter(torch.zeros(size))
        self.v_bias = nn.Parameter(torch.zeros(size))
        self.output_size = config.hidden_size
        self.out_proj = nn.Linear(size, self.output_size)
        self.layernorm = nn.LayerNorm(self.output_size, eps=eps)

    def forward(self, previous_stage: torch.Tensor, last_stage: torch.Tensor) -> torch.Tensor:
        """Last two stages' (batch_size, channels, height, width) -> (batch_size, output_size)"""
        last_stage = nn.functional.pixel_shuffle(self.last_stage_proj(last_stage), self.upsample_factor)
        tokens = (last_stage + self.previous_stage_proj(previous_stage)).flatten(2).transpose(1, 2)
        query = self.q_proj(self.layernorm_q(tokens.mean(dim=1, keepdim=True))) + self.q_bias
        key = self.k_proj(self.layernorm_k(tokens)) + self.k_bias
        value = self.v_proj(self.layernorm_v(tokens)) + self.v_bias
        query, key, value = (
            states.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for states in (query, key, value)
        )
        pooled = nn.functional.scaled_dot_product_attention(query, key, value)  # (batch_size, num_heads, 1, head_dim)
        return self.layernorm(self.out_proj(pooled.flatten(1)))


class InternImageMetadataEmbeddings(nn.Module):
    """
    Features of the date or the place of an image: a linear layer and a residual block (`meta_head_1` and `meta_head_2`
    of the original, whose width is a constant too).
    """

    hidden_size = 64
    layer_norm_eps = 1e-5

    def __init__(self, input_size: int):
        super().__init__()
        size, eps = self.hidden_size, self.layer_norm_eps
        self.projection = nn.Linear(input_size, size)
        self.layernorm = nn.LayerNorm(size, eps=eps)
        self.fc1 = nn.Linear(size, size)
        self.layernorm1 = nn.LayerNorm(size, eps=eps)
        self.fc2 = nn.Linear(size, size)
        self.layernorm2 = nn.LayerNorm(size, eps=eps)

    def forward(self, metadata: torch.Tensor) -> torch.Tensor:
        """(batch_size, input_size) -> (batch_size, 64)"""
        hidden_states = self.projection(metadata.to(self.projection.weight.dtype))
        hidden_states = self.layernorm(nn.functional.relu(hidden_states))
        branch = self.layernorm1(nn.functional.relu(self.fc1(hidden_states)))
        branch = self.layernorm2(nn.functional.relu(self.fc2(branch)))
        return hidden_states + branch


class InternImageMetadataHead(nn.Module):
    """Logits from the dates and places of images (`meta_norm` and `meta_head` of the original)."""

    temporal_size = 4
    spatial_size = 3

    def __init__(self, config: InternImageConfig):
        super().__init__()
        self.temporal_embeddings = InternImageMetadataEmbeddings(self.temporal_size)
        self.spatial_embeddings = InternImageMetadataEmbeddings(self.spatial_size)
        size = 2 * InternImageMetadataEmbeddings.hidden_size
        self.layernorm = nn.LayerNorm(size, eps=config.layer_norm_eps)
        self.classifier = nn.Linear(size, config.num_labels)

    def forward(self, temporal: torch.Tensor, spatial: torch.Tensor) -> torch.Tensor:
        """(batch_size, 4) and (batch_size, 3) -> (batch_size, num_labels)"""
        hidden_states = torch.cat((self.temporal_embeddings(temporal), self.spatial_embeddings(spatial)), dim=-1)
        return self.classifier(self.layernorm(hidden_states))


class InternImagePreTrainedModel(PreTrainedModel):
    """Weight initialisation and loading, shared by all InternImage models."""

    config: InternImageConfig
    base_model_prefix = "internimage"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    _no_split_modules = [
        "InternImageEmbeddings",
        "InternImageLayer",
        "InternImageAttentionPooler",
        "InternImageMetadataHead",
    ]

    def __init__(self, config: InternImageConfig, *inputs, **kwargs):
        if getattr(config, "model_type", None) != self.config_class.model_type:
            raise ValueError(
                f"`config` must be an `{self.config_class.__name__}`, got a `{type(config).__name__}`. For other "
                "models use their own class, or `AutoModel.from_config`."
            )
        super().__init__(config, *inputs, **kwargs)

    @torch.no_grad()
    def _init_weights(self, module):
        """As the original: `_init_weights`, `_init_deform_weights` and the constructors of its modules."""
        super()._init_weights(module)
        if isinstance(module, nn.Linear):
            initialization = getattr(module, "initialization", "normal")
            if initialization == "zeros":
                init.zeros_(module.weight)
            elif initialization == "xavier":
                init.xavier_uniform_(module.weight)
            else:
                init.trunc_normal_(module.weight, std=self.config.initializer_range)
        elif isinstance(module, nn.Conv2d):  # PyTorch's default
            init.kaiming_uniform_(module.weight, a=math.sqrt(5))
            if module.bias is not None:
                bound = 1 / math.sqrt(module.weight[0].numel())
                init.uniform_(module.bias, -bound, bound)
        elif isinstance(module, InternImageLayer) and module.layer_scale1 is not None:
            init.constant_(module.layer_scale1, self.config.layer_scale_init_value)
            init.constant_(module.layer_scale2, self.config.layer_scale_init_value)
        elif isinstance(module, InternImageAttentionPooler):
            for bias in (module.q_bias, module.k_bias, module.v_bias):
                init.zeros_(bias)

    @classmethod
    def from_pretrained(
        cls: type[PreTrainedModelType],
        pretrained_model_name_or_path,
        *model_args,
        key_mapping=None,
        output_loading_info=False,
        **kwargs,
    ) -> PreTrainedModelType:
        """
        As [`~transformers.PreTrainedModel.from_pretrained`]. Checkpoints in the layout of the original InternImage
        `.pth` files or of the official Hub repositories load as they are. (FlashInternImage has to be converted: its
        `offset_mask` projection is split.)

        Raises:
            `ValueError`: if the checkpoint was made with another `core_op` than the configuration has.
        """
        key_mapping = ORIGINAL_TO_CONVERTED_KEY_MAPPING if key_mapping is None else key_mapping
        loaded: Any = super().from_pretrained(  # a pair: the annotation of transformers leaves it out, as ours does
            pretrained_model_name_or_path, *model_args, key_mapping=key_mapping, output_loading_info=True, **kwargs
        )
        model, loading_info = loaded
        _check_core_op(model.config, loading_info)
        return loaded if output_loading_info else model

    def save_pretrained(self, save_directory, *args, save_original_format: bool = False, **kwargs):
        """
        As [`~transformers.PreTrainedModel.save_pretrained`], but parameters get the names of this code unless
        `save_original_format` asks for those of the checkpoint that was loaded.
        """
        super().save_pretrained(save_directory, *args, save_original_format=save_original_format, **kwargs)

    def _check_pixel_values(self, pixel_values: torch.Tensor):
        """Raise a `ValueError` for input that a layer inside would refuse with a less clear message."""
        check_pixel_values(pixel_values, self.config)
        stride = 2 ** (len(self.config.depths) + 1)
        height, width = pixel_values.shape[2:]
        if height < stride or width < stride:
            raise ValueError(
                f"`pixel_values` of {height}x{width} pixels are smaller than the stride of the network, {stride}. "
                f"Resize the images to at least {stride}x{stride}."
            )


def _check_core_op(config: InternImageConfig, loading_info: dict):
    """Raise a `ValueError` if the layers of the checkpoint are not those of `config.core_op`, naming what differs."""
    unexpected = loading_info["unexpected_keys"]
    if packed := [key for key in unexpected if ".dcn.offset_mask." in key]:
        raise ValueError(
            f"The checkpoint has the projections of the original's FlashInternImage ({packed[0]}, ...), which are "
            "split here. Convert it with `python -m conversion.convert_internimage_to_hf`."
        )
    other = {"DCNv3": ".dcn.value_proj.", "DCNv4": ".dcn.input_proj."}[config.core_op]
    if not any(other in key for key in unexpected):
        return
    differences = []
    for place, keys in (("checkpoint", unexpected), ("model", loading_info["missing_keys"])):
        names = sorted({re.sub(r".*\.layers\.\d+\.", "", key) for key in keys if ".layers." in key})
        differences.append(f"only in the {place}: {', '.join(names)}")
    raise ValueError(
        f"The configuration has `core_op={config.core_op!r}`, the checkpoint was made with another one ("
        f"{'; '.join(differences)}). Load it with its own configuration."
    )


def check_pixel_values(pixel_values: torch.Tensor, config):
    """Raise a `ValueError` unless `pixel_values` are a batch of images for a model with this configuration."""
    if not isinstance(pixel_values, torch.Tensor):
        raise ValueError(
            f"`pixel_values` must be a `torch.Tensor`, got a `{type(pixel_values).__name__}`. An image processor "
            'called with `return_tensors="pt"` makes one from images.'
        )
    num_channels = getattr(config, "num_channels", None)  # which not every backbone has
    if pixel_values.ndim != 4 or (num_channels is not None and pixel_values.shape[1] != num_channels):
        raise ValueError(
            f"`pixel_values` must have shape (batch_size, {num_channels or 'num_channels'}, height, width), got "
            f"{tuple(pixel_values.shape)}."
        )
    if not pixel_values.is_floating_point():
        raise ValueError(
            f"`pixel_values` must be floating point, got {pixel_values.dtype}. An image processor makes them "
            "from images."
        )


class InternImageModel(InternImagePreTrainedModel):
    """
    The InternImage encoder with its pooler, without a task head.

    Args:
        config ([`InternImageConfig`]):
            The configuration, which determines the architecture.
        add_pooling_layer (`bool`, *optional*, defaults to `True`):
            Whether to build the pooler. Without it `pooler_output` is `None`.
    """

    # Most checkpoints are classifiers, whose head this model does not need.
    _keys_to_ignore_on_load_unexpected = [r"^classifier\.", r"^metadata_head\."]

    def __init__(self, config: InternImageConfig, add_pooling_layer: bool = True):
        super().__init__(config)
        self.embeddings = InternImageEmbeddings(config)
        self.encoder = InternImageEncoder(config)
        self.pooler = None
        if add_pooling_layer:
            self.pooler = (InternImageAttentionPooler if config.use_clip_projector else InternImageConvPooler)(config)
        self.post_init()

    def get_input_embeddings(self):
        return self.embeddings.convolution1

    @can_return_tuple
    def forward(
        self, pixel_values: torch.FloatTensor, output_hidden_states: bool | None = None, **kwargs
    ) -> BaseModelOutputWithPoolingAndNoAttention:
        r"""
        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch_size, num_channels, height, width)`):
                Normalised images, as an image processor makes them.
            output_hidden_states (`bool`, *optional*):
                Whether to return the outputs of the stem and of every stage. Defaults to the configuration's value.
            return_dict (`bool`, *optional*):
                Whether to return a [`~transformers.utils.ModelOutput`] or a tuple.

        Returns:
            [`~transformers.modeling_outputs.BaseModelOutputWithPoolingAndNoAttention`]: `last_hidden_state` of shape
            `(batch_size, hidden_sizes[-1], height / 32, width / 32)`, a map and no sequence, so that
            `VisionEncoderDecoderModel` cannot take it; `pooler_output` of shape `(batch_size, hidden_size)`, which
            `VisionTextDualEncoderModel` takes; and, if asked for, `hidden_states`: stem and stages,
            `(batch_size, channels, height, width)` each, at strides 4, 4, 8, 16 and 32.

        Raises:
            `ValueError`: if `pixel_values` has the wrong shape or dtype, is smaller than the network's stride, or has
            a size whose last two stages the attention pooler cannot add.

        Example:

        ```python
        >>> import torch
        >>> from modeling_internimage import InternImageConfig, InternImageModel

        >>> model = InternImageModel(InternImageConfig()).eval()
        >>> outputs = model(torch.randn(1, 3, 224, 224))
        >>> list(outputs.last_hidden_state.shape), list(outputs.pooler_output.shape)
        ([1, 512, 7, 7], [1, 768])
        ```"""
        self._check_pixel_values(pixel_values)
        if self.pooler is not None and self.config.use_clip_projector:
            self._check_attention_pooler_size(*pixel_values.shape[2:])
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states

        all_hidden_states = self.encoder(self.embeddings(pixel_values))
        pooler_output = None if self.pooler is None else self.pooler(*all_hidden_states[-2:])
        return BaseModelOutputWithPoolingAndNoAttention(
            last_hidden_state=all_hidden_states[-1],
            pooler_output=pooler_output,
            hidden_states=all_hidden_states if output_hidden_states else None,
        )

    def _check_attention_pooler_size(self, height: int, width: int):
        stride = 2 ** (len(self.config.depths) + 1)
        for name, size in (("height", height), ("width", width)):
            if 2 * math.ceil(size / stride) != math.ceil(size / (stride // 2)):
                below, above = size // stride * stride, (size // stride + 1) * stride
                raise ValueError(
                    f"`pixel_values` have a {name} of {size} pixels, with which the attention pooler "
                    f"(`use_clip_projector=True`) cannot add the last two stages: the size of the last stage, "
                    f"ceil({size} / {stride}), must be half that of the previous one, ceil({size} / {stride // 2}). "
                    f"Multiples of {stride} always work; the nearest are {below} and {above}."
                )


class InternImageForImageClassification(InternImagePreTrainedModel):
    """
    InternImage with an image classification head: a linear layer on the pooled features. With
    `config.use_metadata_head`, a second one adds logits from the date and the place of each image.
    """

    accepts_loss_kwargs = False

    def __init__(self, config: InternImageConfig):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.internimage = InternImageModel(config)
        pooled_size = self.internimage.pooler.output_size
        self.classifier = nn.Linear(pooled_size, config.num_labels) if config.num_labels > 0 else nn.Identity()
        self.metadata_head = None
        if config.use_metadata_head:
            if config.num_labels == 0:
                raise ValueError("`use_metadata_head=True` adds to the logits, but `num_labels=0` makes none.")
            self.metadata_head = InternImageMetadataHead(config)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.FloatTensor,
        labels: torch.Tensor | None = None,
        output_hidden_states: bool | None = None,
        temporal: torch.FloatTensor | None = None,
        spatial: torch.FloatTensor | None = None,
        **kwargs,
    ) -> ImageClassifierOutputWithNoAttention:
        r"""
        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch_size, num_channels, height, width)`):
                Normalised images, as an image processor makes them.
            labels (`torch.LongTensor` of shape `(batch_size,)`, *optional*):
                Class indices in `[0, num_labels)` for the cross-entropy loss (-100 is ignored); for regression and
                multi-label problems floats, see `config.problem_type`.
            output_hidden_states (`bool`, *optional*):
                Whether to return the outputs of the stem and of every stage. Defaults to the configuration's value.
            temporal (`torch.FloatTensor` of shape `(batch_size, 4)`, *optional*):
                Dates: (sin, cos, 0, 0) of `2 * pi * month / 12`, or zeros for an unknown one. `encode_metadata` of the
                package `modeling_internimage` makes `temporal` and `spatial`. Needs `config.use_metadata_head`.
            spatial (`torch.FloatTensor` of shape `(batch_size, 3)`, *optional*):
                Places as points on the unit sphere: (cos lat cos lon, cos lat sin lon, sin lat), or zeros for an
                unknown one. If only one of `temporal` and `spatial` is given, the other one is unknown; if neither
                is, the logits are those of the image alone.
            return_dict (`bool`, *optional*):
                Whether to return a [`~transformers.utils.ModelOutput`] or a tuple.

        Returns:
            [`~transformers.modeling_outputs.ImageClassifierOutputWithNoAttention`]: `loss` if `labels` are given,
            `logits` of shape `(batch_size, num_labels)` and, if asked for, `hidden_states` as in [`InternImageModel`].

        Raises:
            `ValueError`: as [`InternImageModel`]; for `temporal` or `spatial` of another shape, or for a model without
            `config.use_metadata_head`; and for labels on the CPU that are NaN or out of range. (On a GPU looking at
            the values would stall the device; a `DataLoader`'s labels can be checked before they go there.)

        Example:

        ```python
        >>> import torch
        >>> from modeling_internimage import InternImageConfig, InternImageForImageClassification

        >>> model = InternImageForImageClassification(InternImageConfig(num_labels=10)).eval()
        >>> outputs = model(torch.randn(2, 3, 64, 64), labels=torch.tensor([3, 7]))
        >>> list(outputs.logits.shape)
        [2, 10]
        ```"""
        if labels is not None and labels.device.type == "cpu" and not torch.compiler.is_compiling():
            self._check_labels(labels)
        has_metadata = temporal is not None or spatial is not None
        if has_metadata:
            temporal, spatial = self._check_metadata(pixel_values, temporal, spatial)
        outputs = self.internimage(pixel_values, output_hidden_states=output_hidden_states, return_dict=True)
        logits = self.classifier(outputs.pooler_output)
        if has_metadata:
            logits = logits + self.metadata_head(temporal, spatial).to(logits.device)
        loss = None if labels is None else self.loss_function(labels, logits, self.config)
        return ImageClassifierOutputWithNoAttention(loss=loss, logits=logits, hidden_states=outputs.hidden_states)

    def _check_metadata(self, pixel_values, temporal, spatial) -> tuple[torch.Tensor, torch.Tensor]:
        """`temporal` and `spatial`, zeros for one that is `None`. Raises a `ValueError` if they do not fit."""
        if self.metadata_head is None:
            raise ValueError(
                "`temporal` and `spatial` need a model with `config.use_metadata_head=True`; this one takes images "
                "only."
            )
        sizes = {"temporal": self.metadata_head.temporal_size, "spatial": self.metadata_head.spatial_size}
        metadata = {"temporal": temporal, "spatial": spatial}
        for name, size in sizes.items():
            shape = (pixel_values.shape[0], size)
            if metadata[name] is None:
                metadata[name] = pixel_values.new_zeros(shape)
            elif metadata[name].shape != shape or not metadata[name].is_floating_point():
                raise ValueError(
                    f"`{name}` must be floating point of shape {tuple(shape)}, got {metadata[name].dtype} of shape "
                    f"{tuple(metadata[name].shape)}. `modeling_internimage.encode_metadata` makes it."
                )
        return metadata["temporal"], metadata["spatial"]

    def _check_labels(self, labels: torch.Tensor):
        if labels.is_floating_point():
            if labels.isnan().any():
                raise ValueError("`labels` contain NaN. Remove or replace those examples.")
        elif self.config.problem_type in (None, "single_label_classification") and self.num_labels > 1:
            wrong = labels[((labels < 0) | (labels >= self.num_labels)) & (labels != -100)]
            if wrong.numel():
                raise ValueError(
                    f"`labels` must be in [0, {self.num_labels}), the range of `config.num_labels`, or -100 to be "
                    f"ignored; got {wrong[0].item()}. Set `num_labels` to the number of classes of the dataset."
                )


class InternImageBackbone(BackboneMixin, InternImagePreTrainedModel):
    """
    InternImage as a backbone for detection and segmentation: the outputs of the stem and the stages, without further
    norms, as in the official downstream models. Which are returned is `config.out_features`.
    """

    has_attentions = False
    # A backbone is often loaded from a classification checkpoint, whose pooler and classifier it has no use for.
    _keys_to_ignore_on_load_unexpected = [
        r"^pooler\.",
        r"^(internimage\.)?pooler\.",
        r"^classifier\.",
        r"^metadata_head\.",
    ]

    def __init__(self, config: InternImageConfig):
        super().__init__(config)
        self.num_features = [config.embed_dim] + config.hidden_sizes
        if config.core_op == "DCNv4" and config.layer_scale_init_value is None:
            logger.warning_once(
                "A FlashInternImage backbone without layer scale cannot be built with the original code, whose "
                "detectors and segmentation models all have it. This one works; to train as they were, set "
                "`layer_scale_init_value=1.0`."
            )
        self.embeddings = InternImageEmbeddings(config)
        self.encoder = InternImageEncoder(config)
        self.post_init()

    def get_input_embeddings(self):
        return self.embeddings.convolution1

    @can_return_tuple
    def forward(
        self, pixel_values: torch.FloatTensor, output_hidden_states: bool | None = None, **kwargs
    ) -> BackboneOutput:
        r"""
        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch_size, num_channels, height, width)`):
                Normalised images, as an image processor makes them. Any size of at least 32x32 pixels.
            output_hidden_states (`bool`, *optional*):
                Whether to return the outputs of the stem and of every stage. Defaults to the configuration's value.
            return_dict (`bool`, *optional*):
                Whether to return a [`~transformers.utils.ModelOutput`] or a tuple.

        Returns:
            [`~transformers.modeling_outputs.BackboneOutput`]: `feature_maps`, a tuple with one tensor of shape
            `(batch_size, channels, height, width)` for each of `out_features`, and `hidden_states` if asked for.

        Raises:
            `ValueError`: if `pixel_values` has the wrong shape or dtype or is smaller than the network's stride.

        Example:

        ```python
        >>> import torch
        >>> from modeling_internimage import InternImageBackbone, InternImageConfig

        >>> config = InternImageConfig(out_features=["stage1", "stage2", "stage3", "stage4"])
        >>> backbone = InternImageBackbone(config).eval()
        >>> [list(feature_map.shape) for feature_map in backbone(torch.randn(1, 3, 64, 96)).feature_maps]
        [[1, 64, 16, 24], [1, 128, 8, 12], [1, 256, 4, 6], [1, 512, 2, 3]]
        ```"""
        self._check_pixel_values(pixel_values)
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        all_hidden_states = self.encoder(self.embeddings(pixel_values))
        feature_maps = tuple(
            hidden_states
            for stage, hidden_states in zip(self.stage_names, all_hidden_states)
            if stage in self.out_features
        )
        return BackboneOutput(
            feature_maps=feature_maps, hidden_states=all_hidden_states if output_hidden_states else None
        )


__all__ = [
    "DCNv3",
    "InternImageBackbone",
    "InternImageForImageClassification",
    "InternImageModel",
    "InternImagePreTrainedModel",
]
