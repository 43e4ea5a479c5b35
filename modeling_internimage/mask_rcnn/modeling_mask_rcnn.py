# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""
Two-stage object detection and instance segmentation on any backbone: Mask R-CNN (https://arxiv.org/abs/1703.06870) on
a feature pyramid (https://arxiv.org/abs/1612.03144), and its cascade (https://arxiv.org/abs/1906.09756). `MaskRCNN`
and `CascadeRCNN` of mmdetection, whose results these are.
"""

from dataclasses import dataclass

import torch
from torch import nn
from transformers import initialization as init
from transformers.backbone_utils import load_backbone
from transformers.image_transforms import corners_to_center_format
from transformers.modeling_outputs import ModelOutput
from transformers.modeling_utils import PreTrainedModel
from transformers.utils import is_torchvision_available
from transformers.utils.generic import can_return_tuple

from ..detection.targets import check_not_traced, get_image_sizes, prepare_targets
from ..modeling_internimage import InternImageBatchNorm, PreTrainedModelType, check_pixel_values
from .boxes import anchor_boxes, clip_boxes, decode_boxes
from .configuration_mask_rcnn import MaskRCNNConfig
from .loss_mask_rcnn import SampledProposals, box_head_losses, deltas_of_class, mask_loss, rpn_losses
from .non_maximum_suppression import non_maximum_suppression


if is_torchvision_available():
    from torchvision.ops import roi_align

# Regions with sides below twice this many pixels use the finest feature map; each doubling, the next coarser one.
FINEST_REGION = 56

# Parameter names of earlier versions of this model -> today's. No rule matches today's names.
EARLIER_KEY_MAPPING = {
    r"^rpn\.(convolution|classifier|box_regressor)\.": r"rpn.head.\1.",
    r"^box_heads\.": "roi_heads.box_heads.",
    r"^mask_heads\.": "roi_heads.mask_heads.",
}


@dataclass
class MaskRCNNObjectDetectionOutput(ModelOutput):
    r"""
    `logits` and `pred_boxes` have the format of DETR. Every image has `max_detections` rows, the best first; rows
    without a detection are background, with score 0, label -1 and a box of zeros. All numbers are finite; otherwise
    the model raises a `FloatingPointError`.

    Args:
        loss (`torch.FloatTensor` of shape `(1,)`, *optional*, returned when `labels` are given):
            Sum of `loss_dict`.
        loss_dict (`dict[str, torch.Tensor]`, *optional*, returned when `labels` are given):
            The losses, with their weights.
        logits (`torch.FloatTensor` of shape `(batch_size, max_detections, num_labels + 1)`):
            Class logits of the region that a detection comes from, averaged over the stages; the last is background.
            One region may yield several detections of different classes: in each, classes more probable than its label
            count as background. Softmax gives `pred_scores` and `pred_labels`.
        pred_boxes (`torch.FloatTensor` of shape `(batch_size, max_detections, 4)`):
            Centre x, centre y, width, height, relative to the size of each image without its padding.
        pred_scores (`torch.FloatTensor` of shape `(batch_size, max_detections)`):
            Probability of the label.
        pred_labels (`torch.LongTensor` of shape `(batch_size, max_detections)`):
            Class index.
        pred_masks (`torch.FloatTensor` of shape `(batch_size, max_detections, mask_height, mask_width)`, *optional*):
            Mask logits on a grid over the box; the image processor pastes them into the image. In a cascade, logits of
            the mean probability over the stages.
        hidden_states (`tuple[torch.FloatTensor]`, *optional*):
            Hidden states of the backbone.
    """

    loss: torch.FloatTensor | None = None
    loss_dict: dict | None = None
    logits: torch.FloatTensor | None = None
    pred_boxes: torch.FloatTensor | None = None
    pred_scores: torch.FloatTensor | None = None
    pred_labels: torch.LongTensor | None = None
    pred_masks: torch.FloatTensor | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None


class MaskRCNNChannelLayerNorm(nn.LayerNorm):
    """Layer normalisation over the channels of a feature map (batch_size, channels, height, width)."""

    def forward(self, feature_map: torch.Tensor) -> torch.Tensor:
        return super().forward(feature_map.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)  # NCHW -> NHWC and back


class MaskRCNNFeaturePyramid(nn.Module):
    """
    Top-down feature pyramid: each level adds the upsampled coarser one (`FPN` of the original; with
    `config.fpn_norm="layer_norm"` its `FPN_vitdet`).
    """

    def __init__(self, config: MaskRCNNConfig, in_channels: list[int]):
        super().__init__()
        width, has_norm = config.hidden_size, config.fpn_norm == "layer_norm"
        self.lateral_convolutions = nn.ModuleList(
            nn.Conv2d(channels, width, kernel_size=1, bias=not has_norm) for channels in in_channels
        )
        self.lateral_norms = nn.ModuleList(
            MaskRCNNChannelLayerNorm(width) if has_norm else nn.Identity() for _ in in_channels
        )
        self.output_convolutions = nn.ModuleList(
            nn.Conv2d(width, width, kernel_size=3, padding=1, bias=not has_norm) for _ in in_channels
        )
        self.output_norms = nn.ModuleList(
            MaskRCNNChannelLayerNorm(width) if has_norm else nn.Identity() for _ in in_channels
        )

    def forward(self, feature_maps: tuple[torch.Tensor, ...]) -> list[torch.Tensor]:
        """Feature maps (batch_size, channels, height, width), finest first -> the pyramid and one coarser level."""
        maps = [
            norm(convolution(feature_map))
            for convolution, norm, feature_map in zip(self.lateral_convolutions, self.lateral_norms, feature_maps)
        ]
        for idx in range(len(maps) - 1, 0, -1):
            maps[idx - 1] = maps[idx - 1] + nn.functional.interpolate(maps[idx], size=maps[idx - 1].shape[2:])
        maps = [
            norm(convolution(feature_map))
            for convolution, norm, feature_map in zip(self.output_convolutions, self.output_norms, maps)
        ]
        return [*maps, maps[-1][:, :, ::2, ::2]]


class MaskRCNNRPNHead(nn.Module):
    """Objectness and box deltas for every anchor (`RPNHead` of the original)."""

    def __init__(self, config: MaskRCNNConfig):
        super().__init__()
        width, num_anchors = config.hidden_size, len(config.anchor_ratios)
        self.convolution = nn.Conv2d(width, width, kernel_size=3, padding=1)
        self.activation = nn.ReLU(inplace=True)
        self.classifier = nn.Conv2d(width, num_anchors, kernel_size=1)
        self.box_regressor = nn.Conv2d(width, 4 * num_anchors, kernel_size=1)
        for layer in (self.convolution, self.classifier, self.box_regressor):
            layer.initialization = 0.01

    def forward(self, feature_maps: list[torch.Tensor]) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """For each level, logits (batch_size, anchors, height, width) and deltas (batch_size, 4 * anchors, ...)."""
        logits, deltas = [], []
        for feature_map in feature_maps:
            hidden_states = self.activation(self.convolution(feature_map))
            logits.append(self.classifier(hidden_states))
            deltas.append(self.box_regressor(hidden_states))
        return logits, deltas


class MaskRCNNRegionProposalNetwork(nn.Module):
    """Proposals: the anchors that may be objects, moved onto them (https://arxiv.org/abs/1506.01497, section 3)."""

    def __init__(self, config: MaskRCNNConfig):
        super().__init__()
        self.config = config
        self.strides = [*config.feature_strides, 2 * config.feature_strides[-1]]
        self.head = MaskRCNNRPNHead(config)

    def forward(
        self, feature_maps: list[torch.Tensor], image_sizes: torch.Tensor, targets: list[dict] | None = None
    ) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
        """
        Args:
            feature_maps (`list[torch.Tensor]`):
                Levels of the pyramid, (batch_size, channels, height, width) each.
            image_sizes (`torch.Tensor` of shape `(batch_size, 2)`):
                Height and width of each image without padding.
            targets (`list[dict[str, torch.Tensor]]`, *optional*):
                Objects of each image, from `prepare_targets`.

        Returns:
            Boxes and scores of the proposals, from [`~MaskRCNNRegionProposalNetwork.propose`]; and the losses, none
            without `targets`.
        """
        config, is_training = self.config, targets is not None
        logits, deltas = self.predict(feature_maps)
        anchors = self.anchors(feature_maps, logits[0].dtype)
        losses = {}
        if is_training:
            trained = self.trained_anchors(feature_maps, anchors, image_sizes)
            losses = rpn_losses(
                config, torch.cat(logits, dim=1), torch.cat(deltas, dim=1), torch.cat(anchors), trained, targets
            )
        else:
            _check_finite("proposals", feature_maps[0].dtype, *logits, *deltas)
        boxes, scores = self.propose(
            anchors,
            logits,
            deltas,
            image_sizes,
            config.num_train_proposals_per_level if is_training else config.num_proposals_per_level,
            config.num_train_proposals if is_training else config.num_proposals,
        )
        return boxes, scores, losses

    def predict(self, feature_maps: list[torch.Tensor]) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """For each level, logits (batch_size, n) and deltas (batch_size, n, 4) in the order of the anchors."""
        logits, deltas = self.head(feature_maps)
        dtype = _box_dtype(logits[0])
        # (batch_size, anchors, height, width) -> (batch_size, height, width, anchors)
        return [level.permute(0, 2, 3, 1).flatten(1).to(dtype) for level in logits], [
            level.permute(0, 2, 3, 1).flatten(1).unflatten(1, (-1, 4)).to(dtype) for level in deltas
        ]

    def anchors(self, feature_maps: list[torch.Tensor], dtype: torch.dtype) -> list[torch.Tensor]:
        """For each level, its anchors (n, 4)."""
        scale, ratios = self.config.anchor_scale, self.config.anchor_ratios
        return [
            anchor_boxes(feature_map.shape[2], feature_map.shape[3], stride, scale, ratios, feature_map.device, dtype)
            for feature_map, stride in zip(feature_maps, self.strides)
        ]

    def trained_anchors(
        self, feature_maps: list[torch.Tensor], anchors: list[torch.Tensor], image_sizes: torch.Tensor
    ) -> torch.Tensor:
        """
        Mask (batch_size, num_anchors) of the anchors that take part in the loss: those at positions inside the image,
        padded to a multiple of the coarsest stride; without `rpn_outside_anchors`, only those that lie inside it.
        """
        divisor = self.config.feature_strides[-1]
        padded = (image_sizes + divisor - 1) // divisor * divisor
        trained = []
        for feature_map, stride in zip(feature_maps, self.strides):
            rows, columns = (
                torch.arange(size, device=padded.device) * stride < padded[:, axis, None]
                for axis, size in enumerate(feature_map.shape[2:])
            )
            positions = rows[:, :, None, None] & columns[:, None, :, None]
            trained.append(positions.expand(-1, -1, -1, len(self.config.anchor_ratios)).flatten(1))
        trained = torch.cat(trained, dim=1)
        if not self.config.rpn_outside_anchors:
            anchors, limits = torch.cat(anchors), image_sizes.flip(1)[:, None]
            trained = trained & ((anchors[:, :2] >= 0) & (anchors[:, 2:] < limits)).all(dim=-1)
        return trained

    @torch.no_grad()
    def propose(
        self, anchors, logits, deltas, image_sizes: torch.Tensor, num_per_level: int, num_proposals: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Boxes (batch_size, num_proposals, 4) and scores (batch_size, num_proposals) of the proposals, the best first:
        the `num_per_level` best anchors of each level, without empty boxes and those that overlap a better one of
        their level. Rows without a proposal are at the end, with score -1 and a box of zeros.
        """
        boxes, scores, levels = [], [], []
        for level, own_anchors in enumerate(anchors):
            level_scores = logits[level].sigmoid()
            best_scores, best = level_scores.topk(torch.sym_min(num_per_level, level_scores.shape[1]))
            best_deltas = deltas[level].gather(1, best[..., None].expand(-1, -1, 4))
            boxes.append(decode_boxes(own_anchors[best], best_deltas))
            scores.append(best_scores)
            levels.append(torch.full_like(best, level))
        boxes = clip_boxes(torch.cat(boxes, dim=1), image_sizes[:, None])
        scores, levels = torch.cat(scores, dim=1), torch.cat(levels, dim=1)
        scores = scores.masked_fill(~(boxes[..., 2:] > boxes[..., :2]).all(dim=-1), -1)
        is_level = levels[..., None] == torch.arange(len(anchors), device=levels.device)
        scores_of_levels = scores[..., None].masked_fill(~is_level, -1)
        kept = non_maximum_suppression(boxes[:, :, None], scores_of_levels, -1, self.config.proposal_nms_threshold)
        scores, best = best_rows(scores.masked_fill(~kept.any(dim=-1), -1), num_proposals, -1)
        boxes = boxes.gather(1, best[..., None].expand(-1, -1, 4))
        return boxes.masked_fill((scores < 0)[..., None], 0), scores


class MaskRCNNRoIAlign(nn.Module):
    """
    RoIAlign on the feature map that fits the size of each region (`SingleRoIExtractor` of the original). torchvision's
    `MultiScaleRoIAlign` is close, but chooses levels by another formula and has no `aligned=True`.
    """

    def __init__(self, config: MaskRCNNConfig, size: int):
        super().__init__()
        self.feature_strides = config.feature_strides
        self.size = size

    def levels(self, rois: torch.Tensor) -> torch.Tensor:
        """Index (n,) of the feature map that each region is pooled from."""
        sides = (rois[:, 3:] - rois[:, 1:3]).prod(dim=1).sqrt()
        levels = (sides / FINEST_REGION + 1e-6).log2().floor()
        return levels.clamp(0, len(self.feature_strides) - 1).long()

    def forward(self, feature_maps: list[torch.Tensor], rois: torch.Tensor) -> torch.Tensor:
        """Regions (n, 5), index of the image and box in pixels -> (n, channels, size, size)."""
        levels = self.levels(rois)
        regions = feature_maps[0].new_empty((rois.shape[0], feature_maps[0].shape[1], self.size, self.size))
        for level, (feature_map, stride) in enumerate(zip(feature_maps, self.feature_strides)):
            own = (levels == level).nonzero()[:, 0]
            # `roi_align` lacks half precision on some devices.
            aligned = roi_align(feature_map.to(rois.dtype), rois[own], self.size, 1 / stride, 0, aligned=True)
            regions[own] = aligned.to(regions.dtype)
        return regions


class MaskRCNNConvLayer(nn.Module):
    """3x3 convolution, batch normalisation, ReLU (`ConvModule` of the original, with synchronised statistics)."""

    def __init__(self, channels: int):
        super().__init__()
        self.convolution = nn.Conv2d(channels, channels, kernel_size=3, padding=1, bias=False)
        self.convolution.initialization = "kaiming"
        self.batch_norm = InternImageBatchNorm(channels)
        self.activation = nn.ReLU(inplace=True)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        hidden_states, norm = self.convolution(hidden_states), self.batch_norm
        if torch.compiler.is_exporting():
            # PyTorch's batch normalisation asks whether there is any region. An exported program cannot know.
            scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
            shift = norm.bias - norm.running_mean * scale
            return self.activation(hidden_states * scale[:, None, None] + shift[:, None, None])
        return self.activation(norm(hidden_states))


class MaskRCNNBoxHead(nn.Module):
    """Class logits and box deltas of regions (`Shared2FCBBoxHead` and `ConvFCBBoxHead` of the original)."""

    def __init__(self, config: MaskRCNNConfig):
        super().__init__()
        width = config.box_head_hidden_size
        in_features = config.hidden_size * config.box_roi_size**2
        self.conv_layers = nn.ModuleList(
            MaskRCNNConvLayer(config.hidden_size) for _ in range(config.box_head_num_conv_layers)
        )
        self.fc_layers = nn.ModuleList(
            nn.Linear(in_features if idx == 0 else width, width) for idx in range(config.box_head_num_fc_layers)
        )
        self.activation = nn.ReLU(inplace=True)
        out_features = width if len(self.fc_layers) else in_features
        self.classifier = nn.Linear(out_features, config.num_labels + 1)
        self.box_regressor = nn.Linear(out_features, 4 * (1 if config.class_agnostic_boxes else config.num_labels))
        self.classifier.initialization, self.box_regressor.initialization = 0.01, 0.001

    def forward(self, regions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Regions (n, channels, size, size) -> logits (n, num_labels + 1), the last for background, and deltas
        (n, num_labels or 1, 4).
        """
        for layer in self.conv_layers:
            regions = layer(regions)
        hidden_states = regions.flatten(1)
        for layer in self.fc_layers:
            hidden_states = self.activation(layer(hidden_states))
        return self.classifier(hidden_states), self.box_regressor(hidden_states).unflatten(1, (-1, 4))


class MaskRCNNMaskHead(nn.Module):
    """Mask logits of regions, one mask for each class (`FCNMaskHead` of the original)."""

    def __init__(self, config: MaskRCNNConfig):
        super().__init__()
        width = config.hidden_size
        self.convolutions = nn.ModuleList(
            nn.Conv2d(width, width, kernel_size=3, padding=1) for _ in range(config.mask_head_num_layers)
        )
        self.upsample = nn.ConvTranspose2d(width, width, kernel_size=2, stride=2)
        self.activation = nn.ReLU(inplace=True)
        self.classifier = nn.Conv2d(width, config.num_labels, kernel_size=1)
        for layer in (*self.convolutions, self.upsample, self.classifier):
            layer.initialization = "kaiming"

    def forward(self, regions: torch.Tensor) -> torch.Tensor:
        """Regions (n, channels, size, size) -> logits (n, num_labels, 2 * size, 2 * size)."""
        for convolution in self.convolutions:
            regions = self.activation(convolution(regions))
        return self.classifier(self.activation(self.upsample(regions)))


class MaskRCNNRoIHeads(nn.Module):
    """
    Box heads, each of which refines the boxes of the one before (https://arxiv.org/abs/1906.09756), and mask heads
    (`StandardRoIHead` and `CascadeRoIHead` of the original).
    """

    def __init__(self, config: MaskRCNNConfig):
        super().__init__()
        self.config = config
        self.box_roi_align = MaskRCNNRoIAlign(config, config.box_roi_size)
        self.box_heads = nn.ModuleList(MaskRCNNBoxHead(config) for _ in config.bbox_reg_stds)
        if config.use_mask_head:
            self.mask_roi_align = MaskRCNNRoIAlign(config, config.mask_roi_size)
            self.mask_heads = nn.ModuleList(MaskRCNNMaskHead(config) for _ in config.bbox_reg_stds)

    def forward(
        self,
        feature_maps: list[torch.Tensor],
        image_sizes: torch.Tensor,
        boxes: torch.Tensor,
        scores: torch.Tensor,
        targets: list[dict] | None = None,
    ) -> dict[str, torch.Tensor]:
        """
        Args:
            feature_maps, image_sizes, targets:
                As in [`MaskRCNNRegionProposalNetwork`].
            boxes (`torch.Tensor` of shape `(batch_size, num_proposals, 4)`):
                Proposals.
            scores (`torch.Tensor` of shape `(batch_size, num_proposals)`):
                Their scores, below 0 in rows without a proposal.

        Returns:
            The losses with `targets`, else the detections under the names of [`MaskRCNNObjectDetectionOutput`].
        """
        if targets is not None:
            proposals = [own[own_scores >= 0] for own, own_scores in zip(boxes, scores)]
            return self.losses(feature_maps, image_sizes, proposals, targets)
        return self.detect(feature_maps, image_sizes, boxes, scores)

    def losses(self, feature_maps, image_sizes, proposals, targets) -> dict[str, torch.Tensor]:
        """Losses of all stages. Each stage samples the regions that the one before has refined."""
        losses: dict[str, torch.Tensor] = {}
        for stage, box_head in enumerate(self.box_heads):
            sampled = SampledProposals(self.config, stage, proposals, targets)
            logits, deltas = box_head(self.box_roi_align(feature_maps, sampled.rois))
            logits, deltas = logits.to(sampled.rois.dtype), deltas.to(sampled.rois.dtype)
            losses |= box_head_losses(self.config, stage, sampled, logits, deltas)
            if self.config.use_mask_head:
                positive = sampled.rois[sampled.objects >= 0]
                masks = self.mask_heads[stage](self.mask_roi_align(feature_maps, positive)).to(sampled.rois.dtype)
                losses |= mask_loss(self.config, stage, sampled, masks, [target["masks"] for target in targets])
            if stage + 1 < len(self.box_heads):
                refined = self.refine(sampled.rois, logits, deltas, stage, image_sizes, sampled.labels).detach()
                refined = refined[~sampled.is_object_box]
                proposals = [refined[refined[:, 0] == idx, 1:] for idx in range(len(targets))]
        return losses

    def refine(self, rois, logits, deltas, stage: int, image_sizes, labels=None) -> torch.Tensor:
        """
        Regions (n, 5) moved by the deltas of a stage: those of the best class, or in training of the class in `labels`
        (n,) unless that is background.
        """
        best = logits[:, :-1].argmax(dim=1)
        labels = best if labels is None else torch.where(labels == self.config.num_labels, best, labels)
        deltas = deltas_of_class(deltas, labels).to(rois.dtype)
        boxes = decode_boxes(rois[:, 1:], deltas, self.config.bbox_reg_stds[stage])
        return torch.cat((rois[:, :1], clip_boxes(boxes, image_sizes[rois[:, 0].long()])), dim=1)

    def detect(self, feature_maps, image_sizes, boxes, scores) -> dict[str, torch.Tensor]:
        config, batch_size = self.config, boxes.shape[0]
        proposals = Rows(scores >= 0)
        rois = proposals.regions(boxes)
        stages: list[tuple[torch.Tensor, torch.Tensor]] = []  # logits and deltas of each
        for stage, box_head in enumerate(self.box_heads):
            if stage > 0:
                rois = self.refine(rois, stages[-1][0], stages[-1][1], stage - 1, image_sizes)
            stages.append(box_head(self.box_roi_align(feature_maps, rois)))
        logits = torch.stack([logits.to(rois.dtype) for logits, _ in stages]).mean(dim=0)
        probabilities = logits.softmax(dim=-1)[:, :-1]
        _check_finite("detections", feature_maps[0].dtype, probabilities, *(deltas for _, deltas in stages))
        boxes = decode_boxes(rois[:, None, 1:], stages[-1][1].to(rois.dtype), config.bbox_reg_stds[-1])
        boxes = clip_boxes(boxes, image_sizes[rois[:, 0].long(), None])

        # (batch_size, num_proposals, ...) again
        logits, boxes, probabilities = (proposals.pad(tensor) for tensor in (logits, boxes, probabilities))
        scores, row, labels = select_detections(
            boxes, probabilities, config.score_threshold, config.nms_threshold, config.max_detections
        )
        images = torch.arange(batch_size, device=row.device)[:, None]
        boxes = boxes[images, row, labels if boxes.shape[2] > 1 else 0]
        sizes = image_sizes.to(boxes.dtype).flip(1).repeat(1, 2)[:, None]
        found = Rows(scores > 0)
        no_object = logits.new_full((config.num_labels + 1,), torch.finfo(logits.dtype).min)
        no_object[-1] = 0  # background has all of the probability
        detections = {
            "logits": torch.where(found.mask[..., None], logits_of_labels(logits[images, row], labels), no_object),
            "pred_boxes": corners_to_center_format(boxes / sizes).masked_fill(~found.mask[..., None], 0),
            "pred_scores": scores,
            "pred_labels": labels.masked_fill(~found.mask, -1),
        }
        if config.use_mask_head:
            masks = self.predict_masks(feature_maps, found.regions(boxes), found.select(labels))
            detections["pred_masks"] = found.pad(masks, torch.finfo(masks.dtype).min)
        return detections

    def predict_masks(self, feature_maps, rois: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Mask logits (n, height, width) of regions (n, 5) for their `labels` (n,)."""
        regions = self.mask_roi_align(feature_maps, rois)
        indices = torch.arange(labels.shape[0], device=labels.device)
        masks = torch.stack([mask_head(regions)[indices, labels] for mask_head in self.mask_heads])
        _check_finite("masks", feature_maps[0].dtype, masks)
        if len(masks) == 1:
            return masks[0]
        # The logit log(p) - log(1 - p) of the mean probability p over the stages, where p may round to 0 or 1.
        return _log_sum(nn.functional.logsigmoid(masks)) - _log_sum(nn.functional.logsigmoid(-masks))


class MaskRCNNForObjectDetection(PreTrainedModel):
    """
    Mask R-CNN, or its cascade, on any backbone: `backbone`, feature pyramid `neck`, region proposal network `rpn`, and
    `roi_heads` with one or more stages of box heads and, if `config.use_mask_head`, mask heads.

    The whole forward pass exports with `torch.export` and [`~modeling_internimage.export.export_onnx`], with any batch
    size, height and width. The number of regions in the graph depends on the content of the images, and numbers that
    are not finite raise no error there, but detect nothing.

    Batch normalisation in box heads sees the regions of one process; with
    `training.sync_batch_norm.InternImageSyncBatchNorm`, as in the original, those of all processes.
    """

    config: MaskRCNNConfig
    base_model_prefix = "backbone"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = False

    def __init__(self, config: MaskRCNNConfig):
        if not is_torchvision_available():
            raise ImportError(
                "`MaskRCNNForObjectDetection` needs torchvision, for RoIAlign and non-maximum suppression: "
                'pip install "modeling-internimage[vision]".'
            )
        super().__init__(config)
        self.backbone = load_backbone(config)
        if len(self.backbone.channels) != len(config.feature_strides):
            raise ValueError(
                f"`feature_strides={config.feature_strides}` must have one entry for each feature map of the "
                f"backbone, which has {len(self.backbone.channels)}: {self.backbone.out_features}."
            )
        self.neck = MaskRCNNFeaturePyramid(config, self.backbone.channels)
        self.rpn = MaskRCNNRegionProposalNetwork(config)
        self.roi_heads = MaskRCNNRoIHeads(config)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module):
        # As the original: Xavier in the pyramid and the linear layers of box heads, Kaiming in all of mask heads.
        super()._init_weights(module)
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):
            if module.bias is not None:
                init.zeros_(module.bias)
            initialization = getattr(module, "initialization", "xavier")
            if initialization == "xavier":
                init.xavier_uniform_(module.weight)
            elif initialization == "kaiming":
                init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            else:  # the standard deviation of a normal distribution
                init.normal_(module.weight, std=initialization)

    @classmethod
    def from_pretrained(
        cls: type[PreTrainedModelType], pretrained_model_name_or_path, *model_args, key_mapping=None, **kwargs
    ) -> PreTrainedModelType:
        """As [`~transformers.PreTrainedModel.from_pretrained`], also for checkpoints with earlier parameter names."""
        key_mapping = EARLIER_KEY_MAPPING if key_mapping is None else key_mapping
        return super().from_pretrained(pretrained_model_name_or_path, *model_args, key_mapping=key_mapping, **kwargs)

    def save_pretrained(self, save_directory, *args, save_original_format: bool = False, **kwargs):
        """As [`~transformers.PreTrainedModel.save_pretrained`], always with today's parameter names."""
        super().save_pretrained(save_directory, *args, save_original_format=save_original_format, **kwargs)

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.FloatTensor,
        pixel_mask: torch.LongTensor | None = None,
        labels: list[dict[str, torch.Tensor]] | None = None,
        output_hidden_states: bool | None = None,
        **kwargs,
    ) -> MaskRCNNObjectDetectionOutput:
        r"""
        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch_size, num_channels, height, width)`):
                Normalised images, as an image processor makes them, padded at the right and at the bottom.
            pixel_mask (`torch.LongTensor` of shape `(batch_size, height, width)`, *optional*):
                1 for pixels of the image, 0 for padding. Without it there is no padding. Boxes end where the image
                does.
            labels (`list[dict[str, torch.Tensor]]`, *optional*):
                For each image `class_labels` (num_objects,), class indices in `[0, num_labels)`; `boxes`
                (num_objects, 4), centre x, centre y, width, height relative to the size of the image without padding,
                and inside it; and, with mask heads, `masks` (num_objects, height, width) in pixels of the model's
                input, with or without padding. An image may have no object.
            output_hidden_states (`bool`, *optional*):
                Whether to return the hidden states of the backbone. Defaults to the configuration's value.
            return_dict (`bool`, *optional*):
                Whether to return a [`~transformers.utils.ModelOutput`] or a tuple.

        Returns:
            [`MaskRCNNObjectDetectionOutput`]: `loss` and `loss_dict` if `labels` are given; `hidden_states` if asked
            for; detections, except in training mode with labels. The image processor turns them into boxes and masks
            of the original image. A batch may have no image, without labels.

            Non-maximum suppression runs at the size of the input. The original runs it on boxes scaled to the original
            image, with the same result, because scaling axes keeps intersection over union.

        Raises:
            `ValueError`: For labels that do not fit each other, the images or the model.
            `FloatingPointError`: For detections that are not finite, because weights or `pixel_values` are not, or
            activations overflow in float16. (With labels in training mode, the loss is not finite instead.)

        Example:

        ```python
        >>> import torch
        >>> from modeling_internimage import MaskRCNNConfig, MaskRCNNForObjectDetection

        >>> model = MaskRCNNForObjectDetection(MaskRCNNConfig(num_labels=80)).eval()
        >>> list(model(torch.randn(1, 3, 64, 96)).pred_boxes.shape)
        [1, 100, 4]
        ```"""
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        check_not_traced(self)
        check_pixel_values(pixel_values, self.config.backbone_config)
        sizes = get_image_sizes(pixel_values, pixel_mask)
        targets = None
        if labels is not None:
            targets = prepare_targets(
                labels, self.config.num_labels, sizes, pixel_values.shape[2:], self.config.use_mask_head
            )
        outputs = self.backbone.forward_with_filtered_kwargs(
            pixel_values, output_hidden_states=output_hidden_states, return_dict=True
        )
        feature_maps = self.neck(outputs.feature_maps)
        results = {"hidden_states": outputs.hidden_states}
        if targets is not None:
            *proposals, losses = self.rpn(feature_maps, sizes, targets)
            losses |= self.roi_heads(feature_maps, sizes, *proposals, targets)
            results |= {"loss": sum(losses.values()), "loss_dict": losses}
        if targets is None or not self.training:
            *proposals, _ = self.rpn(feature_maps, sizes)
            results |= self.roi_heads(feature_maps, sizes, *proposals)
        return MaskRCNNObjectDetectionOutput(**results)


class Rows:
    """The rows of images that hold something: `mask` (batch_size, num_rows), of which n are true."""

    def __init__(self, mask: torch.Tensor):
        self.mask = mask
        self.indices = mask.flatten().nonzero()[:, 0]

    def select(self, tensor: torch.Tensor) -> torch.Tensor:
        """(batch_size, num_rows, ...) -> (n, ...)"""
        return tensor.flatten(0, 1)[self.indices]

    def pad(self, tensor: torch.Tensor, value: float = 0) -> torch.Tensor:
        """(n, ...) -> (batch_size, num_rows, ...), `value` in the other rows."""
        padded = tensor.new_full((self.mask.numel(), *tensor.shape[1:]), value)
        return padded.index_copy(0, self.indices, tensor).unflatten(0, self.mask.shape)

    def regions(self, boxes: torch.Tensor) -> torch.Tensor:
        """Boxes (batch_size, num_rows, 4) -> regions (n, 5), the index of the image first."""
        images = self.indices // self.mask.shape[1]
        return torch.cat((images[:, None].to(boxes.dtype), self.select(boxes)), dim=1)


def best_rows(scores: torch.Tensor, number: int, value: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Of `scores` (batch_size, n), the best `number` and their indices. Missing ones are `value`, with index 0."""
    best = torch.sym_min(number, scores.shape[1])
    scores, indices = scores.topk(best, dim=1)
    missing = (0, number - best)
    return nn.functional.pad(scores, missing, value=value), nn.functional.pad(indices, missing)


def select_detections(
    boxes: torch.Tensor, scores: torch.Tensor, score_threshold: float, nms_threshold: float, number: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """
    Scores, rows and labels, all (batch_size, number), of the best of `boxes` (batch_size, n, num_labels or 1, 4), the
    best first: `scores` (batch_size, n, num_labels) above `score_threshold` that survive non-maximum suppression in
    their class (`multiclass_nms` of mmdetection). Where there are fewer, scores are 0.
    """
    kept = non_maximum_suppression(boxes, scores, score_threshold, nms_threshold)
    scores, best = best_rows(scores.masked_fill(~kept, 0).flatten(1), number, 0)
    return scores, best // kept.shape[2], best % kept.shape[2]


def logits_of_labels(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """
    Logits (..., num_labels + 1) of regions -> of detections with `labels` (...): classes at least as probable as the
    label give their probability to background, so that the label is the best class and keeps its probability.
    """
    classes, labels = logits[..., :-1], labels[..., None]
    # The margin covers logits that softmax rounds to the same probability.
    is_other = (classes > classes.gather(-1, labels) - 1e-3).scatter(-1, labels, False)
    background = torch.cat((classes.masked_fill(~is_other, -torch.inf), logits[..., -1:]), dim=-1)
    classes = classes.masked_fill(is_other, torch.finfo(logits.dtype).min)
    return torch.cat((classes, background.logsumexp(dim=-1, keepdim=True)), dim=-1)


def _box_dtype(tensor: torch.Tensor) -> torch.dtype:
    """At least float32, which box coordinates need."""
    return torch.promote_types(tensor.dtype, torch.float32)


def _log_sum(tensor: torch.Tensor) -> torch.Tensor:
    """
    `tensor.logsumexp(dim=0)` of finite numbers, which also exports: PyTorch's function asks whether there are any.
    """
    largest = tensor.amax(dim=0)
    return largest + (tensor - largest).exp().sum(dim=0).log()


def _check_finite(what: str, dtype: torch.dtype, *tensors: torch.Tensor):
    """
    Raise a `FloatingPointError` for Inf and NaN. Thresholds would drop them, and the image would look empty. What is
    exported or compiled cannot raise it.
    """
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return
    if not torch.stack([tensor.isfinite().all() for tensor in tensors]).all():
        raise FloatingPointError(
            f"The {what} are not finite; the feature maps are {dtype}. In float16 large activations overflow: load "
            "the model in bfloat16 or float32. Else `pixel_values` or weights are not finite; of the weights, "
            "`[name for name, weight in model.named_parameters() if not weight.isfinite().all()]`."
        )


__all__ = ["MaskRCNNForObjectDetection", "MaskRCNNObjectDetectionOutput"]
