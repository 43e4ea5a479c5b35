# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""
CB-InternImage: two InternImages behind one stem, of which the second sees the features of the first
(`CBInternImage` of the original; composite backbones: https://arxiv.org/abs/2107.00420, section 3).
"""

from dataclasses import dataclass

import torch
from torch import nn
from transformers import initialization as init
from transformers.backbone_utils import BackboneMixin
from transformers.modeling_outputs import BackboneOutput
from transformers.utils.generic import can_return_tuple

from ..modeling_internimage import InternImageEmbeddings, InternImageEncoder, InternImagePreTrainedModel
from .configuration_cb_internimage import CBInternImageConfig


@dataclass
class CBInternImageBackboneOutput(BackboneOutput):
    r"""
    Args:
        feature_maps (`tuple[torch.FloatTensor]`):
            Maps of the lead network, (batch_size, channels, height, width) for each of `out_features`.
        assisting_feature_maps (`tuple[torch.FloatTensor]`, *optional*, returned when
            `output_assisting_feature_maps=True`):
            The same of the assisting network.
        hidden_states (`tuple[torch.FloatTensor]`, *optional*):
            Outputs of the stem and of the stages of the lead network.
    """

    assisting_feature_maps: tuple[torch.Tensor, ...] | None = None


class CBInternImageBackbone(BackboneMixin, InternImagePreTrainedModel):
    """
    Two InternImages of one architecture behind one stem. The assisting network runs first. Before each stage of the
    lead network, `gamma * composite feature` is added to its input: the sum of the assisting network's map of that
    stage and of 1x1 convolutions of its later maps, brought to the same size (nearest neighbour). The lead network's
    outputs are the feature maps.

    As in the original, each gamma is rounded to float16 before it is used, at every precision, and in training its
    gradient is rounded to float16 too (the sum; beyond 65504 it is infinite). A new model has gammas of 0, with which
    the networks are not coupled. The original requires sizes that are multiples of 32; here every size works.
    """

    config: CBInternImageConfig
    has_attentions = False

    def __init__(self, config: CBInternImageConfig):
        super().__init__(config)
        channels = config.hidden_sizes
        self.num_features = [config.embed_dim] + channels
        self.embeddings = InternImageEmbeddings(config)
        self.assisting_encoder = InternImageEncoder(config)
        self.lead_encoder = InternImageEncoder(config)
        self.composite_connections = nn.ModuleList(
            nn.ModuleList(nn.Conv2d(later, width, kernel_size=1) for later in channels[stage_idx + 1 :])
            for stage_idx, width in enumerate(channels)
        )
        self.gammas = nn.ParameterList(nn.Parameter(torch.zeros(width)) for width in channels)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module):
        super()._init_weights(module)
        if module is self:
            for gamma in self.gammas:
                init.zeros_(gamma)

    def get_input_embeddings(self):
        return self.embeddings.convolution1

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.FloatTensor,
        output_hidden_states: bool | None = None,
        output_assisting_feature_maps: bool = False,
        **kwargs,
    ) -> CBInternImageBackboneOutput:
        r"""
        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch_size, num_channels, height, width)`):
                Normalised images, as an image processor makes them. Any size of at least 32x32 pixels.
            output_hidden_states (`bool`, *optional*):
                Whether to return the outputs of the stem and of the lead network's stages. Defaults to the
                configuration's value.
            output_assisting_feature_maps (`bool`, *optional*, defaults to `False`):
                Whether to return the maps of the assisting network too, which detectors train. Otherwise each is freed
                as soon as no later stage of the lead network needs it.
            return_dict (`bool`, *optional*):
                Whether to return a [`~transformers.utils.ModelOutput`] or a tuple.

        Returns:
            [`CBInternImageBackboneOutput`].

        Raises:
            `ValueError`: if `pixel_values` has the wrong shape or dtype or is smaller than the network's stride.

        Example:

        ```python
        >>> import torch
        >>> from modeling_internimage import CBInternImageBackbone, CBInternImageConfig

        >>> config = CBInternImageConfig(depths=[1, 1, 2, 1], out_features=["stage2", "stage3", "stage4"])
        >>> backbone = CBInternImageBackbone(config).eval()
        >>> [list(feature_map.shape) for feature_map in backbone(torch.randn(1, 3, 64, 96)).feature_maps]
        [[1, 128, 8, 12], [1, 256, 4, 6], [1, 512, 2, 3]]
        ```"""
        self._check_pixel_values(pixel_values)
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        hidden_states = self.embeddings(pixel_values)
        all_hidden_states = (hidden_states,)
        assisting = self.assisting_encoder(hidden_states)
        assisting_feature_maps = self._feature_maps(assisting) if output_assisting_feature_maps else None
        maps = list(assisting[1:])
        del assisting
        for stage_idx, stage in enumerate(self.lead_encoder.stages):
            coupling = self._coupling(stage_idx, maps[stage_idx:])
            maps[stage_idx] = None  # no later stage needs it
            hidden_states = stage(hidden_states, coupling)
            all_hidden_states += (hidden_states,)
        return CBInternImageBackboneOutput(
            feature_maps=self._feature_maps(all_hidden_states),
            assisting_feature_maps=assisting_feature_maps,
            hidden_states=all_hidden_states if output_hidden_states else None,
        )

    def _coupling(self, stage_idx: int, maps: list[torch.Tensor]) -> torch.Tensor:
        """What a stage of the lead network adds to its input, from the assisting network's `maps` of it and later."""
        feature, size = maps[0], maps[0].shape[2:]
        for connection, later in zip(self.composite_connections[stage_idx], maps[1:]):
            feature = feature + nn.functional.interpolate(connection(later), size=size, mode="nearest")
        gamma = self.gammas[stage_idx].to(torch.float16).to(feature.dtype)
        return gamma[:, None, None] * feature

    def _feature_maps(self, hidden_states) -> tuple[torch.Tensor, ...]:
        return tuple(
            feature_map for name, feature_map in zip(self.stage_names, hidden_states) if name in self.out_features
        )


__all__ = ["CBInternImageBackbone", "CBInternImageBackboneOutput"]
