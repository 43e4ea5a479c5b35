# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""
Semantic segmentation with the convolutional form of SegFormer's head ("SegFormer", https://arxiv.org/abs/2105.15203,
section 3.2; `SegformerHead` of mmsegmentation), on any backbone. The head of transformers'
`SegformerForSemanticSegmentation` is another one: linear projections without norm and activation.
"""

import torch
from torch import nn
from transformers import initialization as init
from transformers.backbone_utils import load_backbone
from transformers.modeling_outputs import SemanticSegmenterOutput
from transformers.modeling_utils import PreTrainedModel
from transformers.utils.generic import can_return_tuple

from ..modeling_internimage import InternImageBatchNorm, check_pixel_values
from .configuration_segformer_head import SegformerHeadConfig


class SegformerHeadConvLayer(nn.Module):
    """1x1 convolution, batch normalisation, ReLU. (`ConvModule` of the original.)"""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.convolution = nn.Conv2d(in_channels, out_channels, kernel_size=1, bias=False)
        self.batch_norm = InternImageBatchNorm(out_channels)
        self.activation = nn.ReLU()

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.activation(self.batch_norm(self.convolution(hidden_states)))


class SegformerHead(nn.Module):
    """Projects each feature map, enlarges all to the size of the first, and fuses them."""

    def __init__(self, config: SegformerHeadConfig, in_channels: list[int]):
        super().__init__()
        width = config.hidden_size
        self.projections = nn.ModuleList(SegformerHeadConvLayer(channels, width) for channels in in_channels)
        self.fusion = SegformerHeadConvLayer(len(in_channels) * width, width)
        self.dropout = nn.Dropout2d(config.classifier_dropout_prob)
        self.classifier = nn.Conv2d(width, config.num_labels, kernel_size=1)

    def forward(self, feature_maps: tuple[torch.Tensor, ...]) -> torch.Tensor:
        """Feature maps (batch_size, channels, height, width) -> logits at the size of the first."""
        size = feature_maps[0].shape[2:]
        projected = [
            nn.functional.interpolate(projection(feature_map), size=size, mode="bilinear", align_corners=False)
            for projection, feature_map in zip(self.projections, feature_maps)
        ]
        return self.classifier(self.dropout(self.fusion(torch.cat(projected, dim=1))))


class SegformerHeadForSemanticSegmentation(PreTrainedModel):
    """Any backbone with the convolutional SegFormer head."""

    config: SegformerHeadConfig
    base_model_prefix = "backbone"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = False

    def __init__(self, config: SegformerHeadConfig):
        super().__init__(config)
        if config.num_labels < 2:
            raise ValueError(
                f"`num_labels={config.num_labels}` must be 2 or more: for one kind of object use 2, class 0 being the "
                "background."
            )
        self.backbone = load_backbone(config)
        self.decode_head = SegformerHead(config, self.backbone.channels)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module):
        super()._init_weights(module)
        if isinstance(module, nn.Conv2d):
            init.normal_(module.weight, std=self.config.initializer_range)
            if module.bias is not None:
                init.zeros_(module.bias)

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.FloatTensor,
        labels: torch.LongTensor | None = None,
        output_hidden_states: bool | None = None,
        **kwargs,
    ) -> SemanticSegmenterOutput:
        r"""
        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch_size, num_channels, height, width)`):
                Normalised images, as an image processor makes them.
            labels (`torch.LongTensor` of shape `(batch_size, height, width)`, *optional*):
                Class index of every pixel, in `[0, num_labels)` or `config.loss_ignore_index`.
            output_hidden_states (`bool`, *optional*):
                Whether to return the hidden states of the backbone. Defaults to the configuration's value.
            return_dict (`bool`, *optional*):
                Whether to return a [`~transformers.utils.ModelOutput`] or a tuple.

        Returns:
            [`~transformers.modeling_outputs.SemanticSegmenterOutput`]: `loss` (cross-entropy) if `labels` are given,
            `logits` of shape `(batch_size, num_labels, height, width)`, the size of the input, and `hidden_states` if
            asked for.

        Raises:
            `ValueError`: if `pixel_values` has the wrong shape or dtype.

        Example:

        ```python
        >>> import torch
        >>> from modeling_internimage import SegformerHeadConfig, SegformerHeadForSemanticSegmentation

        >>> model = SegformerHeadForSemanticSegmentation(SegformerHeadConfig(num_labels=19)).eval()
        >>> list(model(torch.randn(1, 3, 64, 96)).logits.shape)
        [1, 19, 64, 96]
        ```"""
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        check_pixel_values(pixel_values, self.config.backbone_config)
        outputs = self.backbone.forward_with_filtered_kwargs(
            pixel_values, output_hidden_states=output_hidden_states, return_dict=True
        )
        logits = self.decode_head(outputs.feature_maps)
        logits = nn.functional.interpolate(logits, size=pixel_values.shape[2:], mode="bilinear", align_corners=False)
        loss = None
        if labels is not None:
            ignored = self.config.loss_ignore_index
            loss = nn.functional.cross_entropy(logits.float(), labels, ignore_index=ignored, reduction="sum")
            loss = loss / (labels != ignored).sum().clamp(min=1)  # the mean, 0 where there is nothing to learn
        return SemanticSegmenterOutput(loss=loss, logits=logits, hidden_states=outputs.hidden_states)


__all__ = ["SegformerHeadForSemanticSegmentation"]
