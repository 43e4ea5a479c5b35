# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""
DINO object detection (https://arxiv.org/abs/2203.03605) on any backbone: `DINO` and `CBDINO` of the original, whose
results these are. The self-supervised models of the same name are another matter, hence `DinoDetr`.
"""

import math
import re
from dataclasses import dataclass

import torch
from torch import nn
from transformers import initialization as init
from transformers.backbone_utils import load_backbone
from transformers.modeling_outputs import ModelOutput
from transformers.modeling_utils import PreTrainedModel
from transformers.models.deformable_detr.modeling_deformable_detr import (
    DeformableDetrDecoderLayer,
    DeformableDetrEncoderLayer,
    DeformableDetrMLPPredictionHead,
    DeformableDetrMultiscaleDeformableAttention,
)
from transformers.models.mask2former.modeling_mask2former import Mask2FormerSinePositionEmbedding
from transformers.utils.generic import can_return_tuple

from ..cb_internimage import CBInternImageBackbone
from ..detection.targets import check_not_traced, get_image_sizes, prepare_targets
from ..modeling_internimage import check_pixel_values
from .configuration_dino_detr import NUM_NORM_GROUPS, DinoDetrConfig
from .deformable_attention import DinoDetrMultiScaleDeformableAttention
from .denoising_dino_detr import DenoisingQueries, create_denoising_queries
from .loss_dino_detr import dino_detr_losses, inverse_sigmoid


# Temperatures of the sine encodings of positions on the maps, and of reference points.
MAP_TEMPERATURE, REFERENCE_TEMPERATURE = 20, 10000
# Relative width and height of the box that a position of the finest level proposes; each coarser level doubles it.
FINEST_PROPOSAL_SIZE = 0.05
# Positions whose proposals have a coordinate outside this range are not proposed.
PROPOSAL_RANGE = (0.01, 0.99)
# Probability of every class at the start of training.
PRIOR_PROBABILITY = 0.01

# Patterns of module names -> initialisation, see `_init_weights`.
INITIALIZATION = {
    r"self_attn\.[qkv]_proj$": "fused_xavier",
    r"(self_attn\.o|value|output)_proj$": "xavier_without_bias",
    r"attention_weights$|^bbox_embed\.\d+\.layers\.2$": "zeros",
    r"^bbox_embed\.\d+\.layers\.[01]$": "default",
    r"^class_embed\.\d+$": "classifier",
}


@dataclass
class DinoDetrObjectDetectionOutput(ModelOutput):
    r"""
    Args:
        loss (`torch.FloatTensor` of shape `(1,)`, *optional*, returned when `labels` are given):
            Sum of `loss_dict`.
        loss_dict (`dict[str, torch.Tensor]`, *optional*, returned when `labels` are given):
            The losses, with their weights: `loss_ce`, `loss_bbox` and `loss_giou` of the last decoder layer; with the
            suffix `_0`, `_1`, ... of the earlier layers; `_enc` of the selected positions of the encoder; `_dn`,
            `_dn_0`, ... of denoising queries (in training mode); each of them again with the suffix `_assisting` on
            the maps of the assisting network of [`CBInternImageBackbone`] (in training mode).
        logits (`torch.FloatTensor` of shape `(batch_size, num_queries, num_labels)`):
            Class logits of every query; their sigmoid is the probability of each class.
        pred_boxes (`torch.FloatTensor` of shape `(batch_size, num_queries, 4)`):
            Centre x, centre y, width, height, relative to the size of each image without its padding; float32 if the
            model is in half precision.
        auxiliary_outputs (`list[dict[str, torch.Tensor]]`, *optional*, returned when `labels` are given):
            `logits` and `pred_boxes` of the earlier decoder layers, with `config.auxiliary_loss`.
        last_hidden_state (`torch.FloatTensor` of shape `(batch_size, num_queries, d_model)`):
            Output of the last decoder layer, after its norm.
        init_reference_points (`torch.FloatTensor` of shape `(batch_size, num_queries, 4)`):
            The boxes of the selected positions, which the first decoder layer starts from.
        intermediate_reference_points (`torch.FloatTensor` of shape
            `(batch_size, decoder_layers - 1, num_queries, 4)`): The boxes that later layers start from.
        encoder_last_hidden_state (`torch.FloatTensor` of shape `(batch_size, sequence_length, d_model)`):
            Output of the encoder, all levels, the finest first, row by row.
        enc_outputs_class (`torch.FloatTensor` of shape `(batch_size, num_queries, num_labels)`):
            Class logits of the selected positions, those with the highest logit first.
        enc_outputs_coord_logits (`torch.FloatTensor` of shape `(batch_size, num_queries, 4)`):
            Logits of their boxes.
        hidden_states (`tuple[torch.FloatTensor]`, *optional*):
            Hidden states of the backbone.
    """

    loss: torch.FloatTensor | None = None
    loss_dict: dict | None = None
    logits: torch.FloatTensor | None = None
    pred_boxes: torch.FloatTensor | None = None
    auxiliary_outputs: list[dict[str, torch.Tensor]] | None = None
    last_hidden_state: torch.FloatTensor | None = None
    init_reference_points: torch.FloatTensor | None = None
    intermediate_reference_points: torch.FloatTensor | None = None
    encoder_last_hidden_state: torch.FloatTensor | None = None
    enc_outputs_class: torch.FloatTensor | None = None
    enc_outputs_coord_logits: torch.FloatTensor | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None


@dataclass
class DinoDetrLevels:
    """
    What encoder and decoder know about the levels.

    Attributes:
        shapes: Height and width of each level.
        spatial_shapes: The same as a tensor, (num_levels, 2).
        level_start_index: Position in the sequence at which each level begins, (num_levels,).
        masks: For each level, whether a position is in the image and not in the padding, (batch_size, height, width).
        valid_ratios: Part of the width and of the height of each level that is in the image, (batch_size, num_levels,
            2), at least float32.
        attention_mask: `masks` as a sequence, (batch_size, sequence_length), or `None` if there is no padding.
    """

    shapes: list[tuple[int, int]]
    spatial_shapes: torch.Tensor
    level_start_index: torch.Tensor
    masks: list[torch.Tensor]
    valid_ratios: torch.Tensor
    attention_mask: torch.Tensor | None

    @classmethod
    def create(cls, feature_maps: list[torch.Tensor], pixel_mask: torch.Tensor | None) -> "DinoDetrLevels":
        batch_size, device = feature_maps[0].shape[0], feature_maps[0].device
        dtype = torch.promote_types(feature_maps[0].dtype, torch.float32)
        shapes = [tuple(feature_map.shape[2:]) for feature_map in feature_maps]
        spatial_shapes = torch.tensor(shapes, device=device)
        sizes = spatial_shapes.prod(dim=1)
        if pixel_mask is None:
            masks = [torch.ones((batch_size, *shape), dtype=torch.bool, device=device) for shape in shapes]
            valid_ratios = torch.ones((batch_size, len(shapes), 2), dtype=dtype, device=device)
        else:
            pixels = pixel_mask[:, None].to(dtype)
            masks = [nn.functional.interpolate(pixels, size=shape)[:, 0] > 0 for shape in shapes]
            # A mask without any image counts as one position, so that there is no division by 0.
            valid_ratios = torch.stack(
                [
                    torch.stack([mask.any(dim).sum(1).clamp(min=1) / mask.shape[3 - dim] for dim in (1, 2)], dim=1)
                    for mask in masks
                ],
                dim=1,
            ).to(dtype)
        return cls(
            shapes=shapes,
            spatial_shapes=spatial_shapes,
            level_start_index=sizes.cumsum(0) - sizes,
            masks=masks,
            valid_ratios=valid_ratios,
            attention_mask=None if pixel_mask is None else torch.cat([mask.flatten(1) for mask in masks], dim=1),
        )

    def centers(self) -> torch.Tensor:
        """x and y of every position relative to the image without padding, (batch_size, sequence_length, 2)."""
        centers = []
        for level, (height, width) in enumerate(self.shapes):
            ratios = self.valid_ratios[:, level, :, None]  # (batch_size, 2, 1)
            x = (torch.arange(width, device=ratios.device) + 0.5) / (ratios[:, 0] * width)
            y = (torch.arange(height, device=ratios.device) + 0.5) / (ratios[:, 1] * height)
            x, y = x[:, None].expand(-1, height, -1), y[:, :, None].expand(-1, -1, width)
            centers.append(torch.stack((x, y), dim=-1).flatten(1, 2))
        return torch.cat(centers, dim=1)

    def proposed_boxes(self) -> torch.Tensor:
        """
        The box that each position proposes, (batch_size, sequence_length, 4): centre x, centre y, width and height,
        relative to the image without padding (`gen_encoder_output_proposals` of the original).
        """
        centers = self.centers()
        sizes = [
            torch.full((height * width,), FINEST_PROPOSAL_SIZE * 2**level, device=centers.device, dtype=centers.dtype)
            for level, (height, width) in enumerate(self.shapes)
        ]
        return torch.cat((centers, torch.cat(sizes)[:, None].expand(centers.shape)), dim=-1)


def sine_embedding(boxes: torch.Tensor, num_features: int) -> torch.Tensor:
    """
    Sine encoding of relative boxes (..., 4), centre x, centre y, width, height: `num_features` for each coordinate,
    sine and cosine in turn, ordered y, x, width, height (`gen_sineembed_for_position` of the original).
    """
    exponents = torch.arange(0, num_features, 2, device=boxes.device, dtype=boxes.dtype) / num_features
    angles = boxes[..., [1, 0, 2, 3], None] * (2 * math.pi / REFERENCE_TEMPERATURE**exponents)
    return torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(-3)


class DinoDetrConvLayer(nn.Module):
    """Convolution without bias, group normalisation (`ConvModule` of the original)."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, stride: int = 1):
        super().__init__()
        self.convolution = nn.Conv2d(
            in_channels, out_channels, kernel_size, stride=stride, padding=kernel_size // 2, bias=False
        )
        self.norm = nn.GroupNorm(NUM_NORM_GROUPS, out_channels)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.norm(self.convolution(hidden_states))


class DinoDetrNeck(nn.Module):
    """Maps of the backbone brought to one width, and coarser levels (`ChannelMapper` of the original)."""

    def __init__(self, config: DinoDetrConfig, in_channels: list[int]):
        super().__init__()
        self.projections = nn.ModuleList(
            DinoDetrConvLayer(channels, config.d_model, kernel_size=1) for channels in in_channels
        )
        self.extra_projections = nn.ModuleList(
            DinoDetrConvLayer(in_channels[-1] if idx == 0 else config.d_model, config.d_model, kernel_size=3, stride=2)
            for idx in range(config.num_feature_levels - len(in_channels))
        )

    def forward(self, feature_maps: tuple[torch.Tensor, ...]) -> list[torch.Tensor]:
        """Maps (batch_size, channels, height, width), the finest first -> the levels, (batch_size, d_model, ...)."""
        levels = [projection(feature_map) for projection, feature_map in zip(self.projections, feature_maps)]
        coarsest = feature_maps[-1]
        for projection in self.extra_projections:
            coarsest = projection(coarsest)
            levels.append(coarsest)
        return levels


class DinoDetrEncoder(nn.Module):
    """Deformable attention between the positions of all levels (`DetrTransformerEncoder` of the original)."""

    def __init__(self, config: DinoDetrConfig):
        super().__init__()
        self.level_embed = nn.Embedding(config.num_feature_levels, config.d_model)
        self.position_embedding = Mask2FormerSinePositionEmbedding(
            config.d_model // 2, temperature=MAP_TEMPERATURE, normalize=True
        )
        self.layers = nn.ModuleList(DeformableDetrEncoderLayer(config) for _ in range(config.encoder_layers))
        for layer in self.layers:
            layer.self_attn.attn = DinoDetrMultiScaleDeformableAttention()

    def forward(self, feature_maps: list[torch.Tensor], levels: DinoDetrLevels) -> torch.Tensor:
        """Levels (batch_size, d_model, height, width) -> (batch_size, sequence_length, d_model)"""
        hidden_states = torch.cat([feature_map.flatten(2) for feature_map in feature_maps], dim=2).transpose(1, 2)
        position_embeddings = torch.cat(
            [
                self.position_embedding(
                    feature_map.shape, feature_map.device, levels.valid_ratios.dtype, mask
                ).flatten(2).transpose(1, 2).to(hidden_states.dtype)
                + level_embed
                for feature_map, mask, level_embed in zip(feature_maps, levels.masks, self.level_embed.weight)
            ],
            dim=1,
        )  # fmt: skip
        reference_points = (levels.centers()[:, :, None] * levels.valid_ratios[:, None]).to(hidden_states.dtype)
        for layer in self.layers:
            hidden_states = layer(
                hidden_states,
                levels.attention_mask,
                position_embeddings,
                reference_points,
                levels.spatial_shapes,
                levels.shapes,
                levels.level_start_index,
            )
        return hidden_states


class DinoDetrDecoder(nn.Module):
    """
    Queries that look at the levels around their boxes, which every layer refines (`DinoTransformerDecoder` of the
    original).
    """

    def __init__(self, config: DinoDetrConfig):
        super().__init__()
        width = config.d_model
        self.layers = nn.ModuleList(DeformableDetrDecoderLayer(config) for _ in range(config.decoder_layers))
        for layer in self.layers:
            layer.encoder_attn.attn = DinoDetrMultiScaleDeformableAttention()
        self.ref_point_head = DeformableDetrMLPPredictionHead(2 * width, width, width, num_layers=2)
        self.norm = nn.LayerNorm(width)

    def forward(
        self,
        hidden_states: torch.Tensor,
        reference_points: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        levels: DinoDetrLevels,
        bbox_embed: nn.ModuleList,
        attention_mask: torch.Tensor | None = None,
    ) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """
        Args:
            hidden_states (`torch.Tensor` of shape `(batch_size, num_queries, d_model)`):
                Content of the queries.
            reference_points (`torch.Tensor` of shape `(batch_size, num_queries, 4)`):
                Their boxes, centre x, centre y, width, height, relative to the images without padding.
            encoder_hidden_states (`torch.Tensor` of shape `(batch_size, sequence_length, d_model)`):
                Output of the encoder.
            levels (`DinoDetrLevels`):
                Its levels.
            bbox_embed (`nn.ModuleList`):
                For each layer, the head that predicts how a box changes.
            attention_mask (`torch.Tensor` of shape `(1, 1, num_queries, num_queries)`, *optional*):
                Added to the logits of the self-attention.

        Returns:
            For each layer, its normed output (batch_size, num_queries, d_model), and the boxes that it started from.
        """
        dtype = hidden_states.dtype
        ratios = levels.valid_ratios.repeat(1, 1, 2)[:, None]  # (batch_size, 1, num_levels, 4)
        outputs, all_reference_points = [], [reference_points]
        for idx, layer in enumerate(self.layers):
            # No gradient passes from a layer to the boxes of the one before, except through the predictions.
            reference_points = all_reference_points[-1].detach()
            level_boxes = reference_points[:, :, None] * ratios
            position = sine_embedding(level_boxes[:, :, 0], self.norm.normalized_shape[0] // 2)
            hidden_states = layer(
                hidden_states,
                self.ref_point_head(position.to(dtype)),
                level_boxes.to(dtype),
                levels.spatial_shapes,
                levels.shapes,
                levels.level_start_index,
                encoder_hidden_states,
                levels.attention_mask,
                attention_mask=attention_mask,
            )
            outputs.append(self.norm(hidden_states))
            if idx + 1 < len(self.layers):
                all_reference_points.append(refine(reference_points, bbox_embed[idx](hidden_states)))
        return outputs, all_reference_points


def refine(boxes: torch.Tensor, deltas: torch.Tensor) -> torch.Tensor:
    """Relative boxes (..., 4) changed by deltas (..., 4) of their logits."""
    return (inverse_sigmoid(boxes) + deltas.to(boxes.dtype)).sigmoid()


class DinoDetrForObjectDetection(PreTrainedModel):
    """
    DINO on any backbone: `backbone`, `neck`, `encoder`, selection of the positions that the queries start from,
    `decoder`, and for each decoder layer and the encoder a classifier `class_embed` and a box head `bbox_embed`.

    The shapes of the outputs depend only on the shapes of the inputs, so that the whole forward pass compiles
    (`torch.compile(fullgraph=True)`) and exports (`torch.export`).
    """

    config: DinoDetrConfig
    base_model_prefix = "backbone"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = False
    _supports_sdpa = True
    _no_split_modules = ["DinoDetrNeck", "DeformableDetrEncoderLayer", "DeformableDetrDecoderLayer"]

    def __init__(self, config: DinoDetrConfig):
        super().__init__(config)
        self.backbone = load_backbone(config)
        num_maps, width = len(self.backbone.channels), config.d_model
        if num_maps > config.num_feature_levels:
            raise ValueError(
                f"`num_feature_levels={config.num_feature_levels}` must be at least the number of feature maps of the "
                f"backbone, which has {num_maps}: {self.backbone.out_features}."
            )
        self.neck = DinoDetrNeck(config, self.backbone.channels)
        self.encoder = DinoDetrEncoder(config)
        self.enc_output = nn.Linear(width, width)
        self.enc_output_norm = nn.LayerNorm(width)
        self.query_embed = nn.Embedding(config.num_queries, width)
        self.denoising_class_embed = nn.Embedding(config.num_labels, width)
        self.decoder = DinoDetrDecoder(config)
        # The last of each serves the encoder.
        num_heads = config.decoder_layers + 1
        self.class_embed = nn.ModuleList(nn.Linear(width, config.num_labels) for _ in range(num_heads))
        self.bbox_embed = nn.ModuleList(
            DeformableDetrMLPPredictionHead(width, width, 4, num_layers=3) for _ in range(num_heads)
        )
        self._tag_initialization()
        self.post_init()

    def _tag_initialization(self):
        for name, module in self.named_modules():
            if isinstance(module, DeformableDetrMultiscaleDeformableAttention):
                module.sampling_offsets.initialization = (module.n_heads, module.n_levels, module.n_points)
            for pattern, initialization in INITIALIZATION.items():
                if re.search(pattern, name) and not name.startswith("backbone."):
                    module.initialization = initialization

    @torch.no_grad()
    def _init_weights(self, module):
        # As the original: Xavier, with PyTorch's biases, except where `INITIALIZATION` says otherwise.
        super()._init_weights(module)
        if isinstance(module, nn.Embedding):
            init.normal_(module.weight)
        elif isinstance(module, nn.Conv2d):
            init.xavier_uniform_(module.weight)
        elif isinstance(module, nn.Linear):
            initialization = getattr(module, "initialization", "xavier")
            bound = module.in_features**-0.5
            init.uniform_(module.bias, -bound, bound)
            if initialization in ("default", "classifier"):
                init.uniform_(module.weight, -bound, bound)
            elif initialization == "fused_xavier":  # of one matrix for queries, keys and values
                init.xavier_uniform_(module.weight, gain=0.5**0.5)
            elif initialization in ("xavier", "xavier_without_bias"):
                init.xavier_uniform_(module.weight)
            else:
                init.zeros_(module.weight)
            if initialization in ("fused_xavier", "xavier_without_bias", "zeros"):
                init.zeros_(module.bias)
            elif initialization == "classifier":
                init.constant_(module.bias, math.log(PRIOR_PROBABILITY / (1 - PRIOR_PROBABILITY)))
            elif isinstance(initialization, tuple):  # sampling offsets
                init.copy_(module.bias, sampling_directions(*initialization))

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.FloatTensor,
        pixel_mask: torch.LongTensor | None = None,
        labels: list[dict[str, torch.Tensor]] | None = None,
        output_hidden_states: bool | None = None,
        **kwargs,
    ) -> DinoDetrObjectDetectionOutput:
        r"""
        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch_size, num_channels, height, width)`):
                Normalised images, as an image processor makes them, padded at the right and at the bottom.
            pixel_mask (`torch.LongTensor` of shape `(batch_size, height, width)`, *optional*):
                1 for pixels of the image, 0 for padding. Without it there is no padding.
            labels (`list[dict[str, torch.Tensor]]`, *optional*):
                For each image `class_labels` (num_objects,), class indices in `[0, num_labels)`, and `boxes`
                (num_objects, 4), centre x, centre y, width, height relative to the size of the image without padding,
                and inside it. Empty boxes are left out. An image may have no object.
            output_hidden_states (`bool`, *optional*):
                Whether to return the hidden states of the backbone. Defaults to the configuration's value.
            return_dict (`bool`, *optional*):
                Whether to return a [`~transformers.utils.ModelOutput`] or a tuple.

        Returns:
            [`DinoDetrObjectDetectionOutput`]. In training mode with `labels`, the losses also count denoising queries
            and, with [`CBInternImageBackbone`], the maps of its assisting network.

        Raises:
            `ValueError`: For labels that do not fit each other, the images or the model; and for a `pixel_mask`, on
            the CPU, without any pixel of an image. (On a GPU, looking at it would stall the device. The boxes of such
            an image mean nothing.)

        Example:

        ```python
        >>> import torch
        >>> from modeling_internimage import DinoDetrConfig, DinoDetrForObjectDetection

        >>> model = DinoDetrForObjectDetection(DinoDetrConfig(num_labels=80)).eval()
        >>> list(model(torch.randn(1, 3, 256, 320)).pred_boxes.shape)
        [1, 900, 4]
        ```"""
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        check_not_traced(self)
        check_pixel_values(pixel_values, self.config.backbone_config)
        if pixel_values.shape[0] == 0:
            raise ValueError("`pixel_values` have no image. Leave out empty batches.")
        sizes = get_image_sizes(pixel_values, pixel_mask)
        if pixel_mask is not None and sizes.device.type == "cpu" and not torch.compiler.is_compiling():
            self._check_image_sizes(sizes)
        targets = denoising = None
        if labels is not None:
            targets = prepare_targets(labels, self.config.num_labels, sizes, pixel_values.shape[2:])
        with_assisting = self.training and targets is not None and isinstance(self.backbone, CBInternImageBackbone)
        arguments = {"output_assisting_feature_maps": True} if with_assisting else {}
        outputs = self.backbone.forward_with_filtered_kwargs(
            pixel_values, output_hidden_states=output_hidden_states, return_dict=True, **arguments
        )
        feature_maps = outputs.feature_maps
        if with_assisting:  # the images once more, those of the assisting network first
            feature_maps = [torch.cat(maps) for maps in zip(outputs.assisting_feature_maps, feature_maps)]
            pixel_mask = None if pixel_mask is None else pixel_mask.repeat(2, 1, 1)
            sizes, targets = sizes.repeat(2, 1), targets * 2
        if self.training and targets is not None:
            denoising = create_denoising_queries(self.config, targets, sizes)

        feature_maps = self.neck(feature_maps)
        levels = DinoDetrLevels.create(feature_maps, pixel_mask)
        encoder_hidden_states = self.encoder(feature_maps, levels)
        enc_logits, enc_box_logits = self.select_queries(encoder_hidden_states, levels)
        queries, reference_points, attention_mask = self.create_queries(enc_box_logits, denoising, enc_logits.dtype)
        hidden_states, reference_points = self.decoder(
            queries, reference_points, encoder_hidden_states, levels, self.bbox_embed, attention_mask
        )
        # Only the losses need the predictions of the earlier layers.
        layers = range(len(hidden_states) - 1 if targets is None else 0, len(hidden_states))
        all_logits = [self.class_embed[idx](hidden_states[idx]) for idx in layers]
        all_boxes = [refine(reference_points[idx], self.bbox_embed[idx](hidden_states[idx])) for idx in layers]

        loss = loss_dict = auxiliary_outputs = None
        if targets is not None:
            all_logits, all_boxes = torch.stack(all_logits), torch.stack(all_boxes)
            loss_dict = dino_detr_losses(
                self.config,
                all_logits,
                all_boxes,
                enc_logits,
                enc_box_logits,
                targets,
                sizes,
                denoising,
                with_assisting,
            )
            loss = sum(loss_dict.values())
        # Of the queries, those for denoising come first; of the images, those for the assisting network.
        own = (
            slice(len(queries) // 2 if with_assisting else 0, None),
            slice(0 if denoising is None else denoising.num_queries, None),
        )
        if targets is not None and self.config.auxiliary_loss:
            auxiliary_outputs = [
                {"logits": logits[own], "pred_boxes": boxes[own]}
                for logits, boxes in zip(all_logits[:-1], all_boxes[:-1])
            ]
        return DinoDetrObjectDetectionOutput(
            loss=loss,
            loss_dict=loss_dict,
            logits=all_logits[-1][own],
            pred_boxes=all_boxes[-1][own],
            auxiliary_outputs=auxiliary_outputs,
            last_hidden_state=hidden_states[-1][own],
            init_reference_points=reference_points[0][own],
            intermediate_reference_points=torch.stack(reference_points, dim=1)[own[0], 1:, own[1]],
            encoder_last_hidden_state=encoder_hidden_states[own[0]],
            enc_outputs_class=enc_logits[own[0]],
            enc_outputs_coord_logits=enc_box_logits[own[0]],
            hidden_states=outputs.hidden_states,
        )

    def select_queries(self, encoder_hidden_states, levels: DinoDetrLevels) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Class logits (batch_size, num_queries, num_labels) and box logits (batch_size, num_queries, 4) of the positions
        with the highest class logits, the best first.
        """
        proposals = levels.proposed_boxes()
        low, high = PROPOSAL_RANGE
        is_valid = ((proposals > low) & (proposals < high)).all(dim=-1, keepdim=True)
        if levels.attention_mask is not None:
            is_valid = is_valid & levels.attention_mask[..., None]
        proposals = (proposals / (1 - proposals)).log().masked_fill(~is_valid, torch.inf)
        hidden_states = self.enc_output_norm(self.enc_output(encoder_hidden_states.masked_fill(~is_valid, 0)))
        logits = self.class_embed[-1](hidden_states)
        number = torch.sym_min(self.config.num_queries, logits.shape[1])
        best = logits.amax(dim=-1).topk(number, dim=1).indices[..., None]
        # The box head sees the selected positions only.
        hidden_states = hidden_states.gather(1, best.expand(-1, -1, hidden_states.shape[2]))
        box_logits = self.bbox_embed[-1](hidden_states).to(proposals.dtype)
        box_logits = box_logits + proposals.gather(1, best.expand(-1, -1, 4))
        return logits.gather(1, best.expand(-1, -1, logits.shape[2])), box_logits

    def create_queries(
        self, box_logits: torch.Tensor, denoising: DenoisingQueries | None, dtype: torch.dtype
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """
        Content (batch_size, num_queries, d_model), boxes (batch_size, num_queries, 4) and attention mask of the
        decoder's queries, those for denoising first.
        """
        batch_size, num_queries = box_logits.shape[:2]
        queries = self.query_embed.weight[:num_queries].expand(batch_size, -1, -1).to(dtype)
        box_logits = box_logits.detach()
        if denoising is None:
            return queries, box_logits.sigmoid(), None
        content = self.denoising_class_embed(denoising.labels.clamp(min=0))
        content = content.masked_fill((denoising.labels < 0)[..., None], 0).to(dtype)
        if denoising.num_queries == 0:  # every parameter has a gradient, as several processes require
            queries = queries + 0 * self.denoising_class_embed.weight.sum()
        queries = torch.cat((content, queries), dim=1)
        box_logits = torch.cat((denoising.box_logits.to(box_logits.dtype), box_logits), dim=1)
        blocked = denoising.blocked(num_queries)
        attention_mask = torch.zeros(blocked.shape, dtype=dtype, device=blocked.device)
        attention_mask = attention_mask.masked_fill(blocked, torch.finfo(dtype).min)
        return queries, box_logits.sigmoid(), attention_mask[None, None]

    @staticmethod
    def _check_image_sizes(sizes: torch.Tensor):
        empty = (sizes == 0).any(dim=1).nonzero()[:, 0].tolist()
        if empty:
            raise ValueError(
                f"`pixel_mask` marks every pixel of image {empty[0]} as padding. It must be 1 for the pixels of the "
                "image, 0 for padding; leave such images out of the batch."
            )


def sampling_directions(num_heads: int, num_levels: int, num_points: int) -> torch.Tensor:
    """
    Initial sampling offsets of deformable attention, flattened: each head looks into its direction, its points 1, 2,
    ... positions away.
    """
    angles = torch.arange(num_heads, dtype=torch.float64) * (2 * math.pi / num_heads)
    directions = torch.stack((angles.cos(), angles.sin()), dim=-1)
    directions = directions / directions.abs().amax(dim=-1, keepdim=True)
    distances = torch.arange(1, num_points + 1, dtype=torch.float64)
    offsets = directions[:, None, None] * distances[:, None]  # (num_heads, 1, num_points, 2)
    return offsets.expand(-1, num_levels, -1, -1).flatten().to(torch.get_default_dtype())


__all__ = ["DinoDetrForObjectDetection", "DinoDetrObjectDetectionOutput"]
