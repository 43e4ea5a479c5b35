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
from transformers.image_transforms import center_to_corners_format, corners_to_center_format
from transformers.modeling_outputs import ModelOutput
from transformers.modeling_utils import PreTrainedModel
from transformers.utils import is_torchvision_available
from transformers.utils.generic import can_return_tuple

from ..modeling_internimage import InternImageBatchNorm, check_pixel_values
from .boxes import anchor_boxes, clip_boxes, decode_boxes
from .configuration_mask_rcnn import MaskRCNNConfig
from .loss_mask_rcnn import (
    SampledProposals,
    check_labels,
    detection_losses,
    mask_loss,
    offsets_of_class,
    proposal_losses,
)


if is_torchvision_available():
    from torchvision.ops import batched_nms, roi_align

# Side in pixels of a region, from whose double on it is cut out of the second feature map, and so on.
FINEST_REGION = 56


@dataclass
class MaskRCNNObjectDetectionOutput(ModelOutput):
    r"""
    `logits` and `pred_boxes` are as those of DETR: softmax of `logits`, the last of which is background, gives the
    label and the score of each detection. `pred_masks` are logits, too, but of points of the box. All numbers are
    finite: where they would not be, the model raises a `FloatingPointError`.

    Detections have fixed numbers, `max_detections` for each image, the best first. Where there are fewer, the others
    are background: score 0, label -1, a box of zeros.

    Args:
        loss (`torch.FloatTensor` of shape `(1,)`, *optional*, returned when `labels` are given):
            Sum of `loss_dict`.
        loss_dict (`dict[str, torch.Tensor]`, *optional*, returned when `labels` are given):
            The losses, with their weights.
        logits (`torch.FloatTensor` of shape `(batch_size, max_detections, num_labels + 1)`):
            Of the region that a detection comes from, the mean over the stages; the last is background. A region may
            be several detections, of different classes: in each of them, the classes that are more probable than its
            label count as background. `pred_scores` and `pred_labels` are what softmax makes of them.
        pred_boxes (`torch.FloatTensor` of shape `(batch_size, max_detections, 4)`):
            Centre x, centre y, width, height, relative to the size of each image without its padding.
        pred_scores (`torch.FloatTensor` of shape `(batch_size, max_detections)`):
            Probability of the label.
        pred_labels (`torch.LongTensor` of shape `(batch_size, max_detections)`):
            Class index.
        pred_masks (`torch.FloatTensor` of shape `(batch_size, max_detections, mask_height, mask_width)`, *optional*):
            Logits of the probability that a point of the box belongs to the object (in a cascade, the mean over the
            stages), on a grid over the box, not over the image: the image processor puts them there.
        hidden_states (`tuple[torch.FloatTensor]`, *optional*):
            Of the backbone.
    """

    loss: torch.FloatTensor | None = None
    loss_dict: dict | None = None
    logits: torch.FloatTensor | None = None
    pred_boxes: torch.FloatTensor | None = None
    pred_scores: torch.FloatTensor | None = None
    pred_labels: torch.LongTensor | None = None
    pred_masks: torch.FloatTensor | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None


class MaskRCNNFeaturePyramid(nn.Module):
    """Adds to each feature map what the coarser ones know. (`FPN` of the original.)"""

    def __init__(self, config: MaskRCNNConfig, in_channels: list[int]):
        super().__init__()
        width = config.hidden_size
        self.lateral_convolutions = nn.ModuleList(
            nn.Conv2d(channels, width, kernel_size=1) for channels in in_channels
        )
        self.output_convolutions = nn.ModuleList(
            nn.Conv2d(width, width, kernel_size=3, padding=1) for _ in in_channels
        )

    def forward(self, feature_maps: tuple[torch.Tensor, ...]) -> list[torch.Tensor]:
        """(batch_size, channels, height, width) each, the finest first -> those of the pyramid, and one more."""
        maps = [convolution(feature_map) for convolution, feature_map in zip(self.lateral_convolutions, feature_maps)]
        for idx in range(len(maps) - 1, 0, -1):
            maps[idx - 1] = maps[idx - 1] + nn.functional.interpolate(maps[idx], size=maps[idx - 1].shape[2:])
        maps = [convolution(feature_map) for convolution, feature_map in zip(self.output_convolutions, maps)]
        return [*maps, maps[-1][:, :, ::2, ::2]]


class MaskRCNNRegionProposalNetwork(nn.Module):
    """Says of each anchor whether it is an object, and how far off its box is. (`RPNHead` of the original.)"""

    def __init__(self, config: MaskRCNNConfig):
        super().__init__()
        width, num_anchors = config.hidden_size, len(config.anchor_ratios)
        self.convolution = nn.Conv2d(width, width, kernel_size=3, padding=1)
        self.activation = nn.ReLU(inplace=True)
        self.classifier = nn.Conv2d(width, num_anchors, kernel_size=1)
        self.box_regressor = nn.Conv2d(width, 4 * num_anchors, kernel_size=1)
        for layer in (self.convolution, self.classifier, self.box_regressor):
            layer.initial_std = 0.01

    def forward(self, feature_maps: list[torch.Tensor]) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """For each map logits (batch_size, anchors, height, width) and offsets (batch_size, 4 * anchors, ...)."""
        logits, offsets = [], []
        for feature_map in feature_maps:
            hidden_states = self.activation(self.convolution(feature_map))
            logits.append(self.classifier(hidden_states))
            offsets.append(self.box_regressor(hidden_states))
        return logits, offsets


class MaskRCNNRoIAlign(nn.Module):
    """
    Cuts regions out of the feature map of their size. (`SingleRoIExtractor` of the original.) `roi_align` of
    torchvision with `aligned=True` and `sampling_ratio=0`: as many samples as pixels.
    """

    def __init__(self, config: MaskRCNNConfig, size: int):
        super().__init__()
        self.feature_strides = config.feature_strides
        self.size = size

    def levels(self, rois: torch.Tensor) -> torch.Tensor:
        """Index (n,) of the feature map that regions are cut out of."""
        sides = (rois[:, 3:] - rois[:, 1:3]).prod(dim=1).sqrt()
        levels = (sides / FINEST_REGION + 1e-6).log2().floor()
        return levels.clamp(0, len(self.feature_strides) - 1).long()

    def forward(self, feature_maps: list[torch.Tensor], rois: torch.Tensor) -> torch.Tensor:
        """Regions (n, 5), index of the image and box in pixels -> (n, channels, size, size)."""
        levels = self.levels(rois)
        regions = feature_maps[0].new_empty((len(rois), feature_maps[0].shape[1], self.size, self.size))
        for level, (feature_map, stride) in enumerate(zip(feature_maps, self.feature_strides)):
            own = (levels == level).nonzero()[:, 0]
            # (It has no half precision on every device.)
            aligned = roi_align(feature_map.to(rois.dtype), rois[own], self.size, 1 / stride, 0, aligned=True)
            regions[own] = aligned.to(regions.dtype)
        return regions


class MaskRCNNConvLayer(nn.Module):
    """3x3 convolution, batch normalisation, ReLU. (`ConvModule` of the original, with synchronised statistics.)"""

    def __init__(self, channels: int):
        super().__init__()
        self.convolution = nn.Conv2d(channels, channels, kernel_size=3, padding=1, bias=False)
        self.convolution.kaiming_init = True
        self.batch_norm = InternImageBatchNorm(channels)
        self.activation = nn.ReLU(inplace=True)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.activation(self.batch_norm(self.convolution(hidden_states)))


class MaskRCNNBoxHead(nn.Module):
    """Class and box of a region. (`Shared2FCBBoxHead` and `ConvFCBBoxHead` of the original.)"""

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
        self.classifier.initial_std, self.box_regressor.initial_std = 0.01, 0.001

    def forward(self, regions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Regions (n, channels, size, size) -> logits (n, num_labels + 1), the last of background, and offsets
        (n, num_labels or 1, 4).
        """
        for layer in self.conv_layers:
            regions = layer(regions)
        hidden_states = regions.flatten(1)
        for layer in self.fc_layers:
            hidden_states = self.activation(layer(hidden_states))
        return self.classifier(hidden_states), self.box_regressor(hidden_states).unflatten(1, (-1, 4))


class MaskRCNNMaskHead(nn.Module):
    """Masks of a region, one for each class. (`FCNMaskHead` of the original.)"""

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
            layer.kaiming_init = True

    def forward(self, regions: torch.Tensor) -> torch.Tensor:
        """Regions (n, channels, size, size) -> logits (n, num_labels, 2 * size, 2 * size)."""
        for convolution in self.convolutions:
            regions = self.activation(convolution(regions))
        return self.classifier(self.activation(self.upsample(regions)))


class MaskRCNNForObjectDetection(PreTrainedModel):
    """
    Any backbone with a feature pyramid, a region proposal network, and one or more stages of box heads, each of which
    refines the boxes of the one before it; mask heads if `config.use_mask_head`.

    `backbone`, `neck` and `rpn` can be exported with `torch.export`. What follows depends on how many regions an image
    has, and its loops over images and sizes are not exported. Batch normalisation in box heads sees the regions of one
    process; `torch.nn.SyncBatchNorm.convert_sync_batchnorm(model)` makes it see all, as the original.
    """

    config_class = MaskRCNNConfig
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
        self.box_roi_align = MaskRCNNRoIAlign(config, config.box_roi_size)
        self.box_heads = nn.ModuleList(MaskRCNNBoxHead(config) for _ in config.box_stds)
        if config.use_mask_head:
            self.mask_roi_align = MaskRCNNRoIAlign(config, config.mask_roi_size)
            self.mask_heads = nn.ModuleList(MaskRCNNMaskHead(config) for _ in config.box_stds)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module):
        # As the original: Xavier in the pyramid and the linear layers of box heads, Kaiming in all of mask heads.
        super()._init_weights(module)
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):
            if module.bias is not None:
                init.zeros_(module.bias)
            initial_std = getattr(module, "initial_std", None)
            if initial_std is not None:
                init.normal_(module.weight, std=initial_std)
            elif getattr(module, "kaiming_init", False):
                init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            else:
                init.xavier_uniform_(module.weight)

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

            The original drops overlapping boxes after scaling them to the original image. Here that is done at the
            size of the input, with the same result: intersection over union does not change when axes are scaled.

        Raises:
            `ValueError`: For labels that do not fit each other, the images or the model.
            `FloatingPointError`: For detections that are not finite, because of weights or `pixel_values` that are
            not, or of activations that overflow in float16. (In training mode with labels, the loss is not finite
            then.)

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
        check_pixel_values(pixel_values, self.config.backbone_config)
        image_sizes = self._image_sizes(pixel_values, pixel_mask)
        if labels is not None:
            check_labels(self.config, labels, image_sizes, pixel_values.shape[2:])
        outputs = self.backbone.forward_with_filtered_kwargs(
            pixel_values, output_hidden_states=output_hidden_states, return_dict=True
        )
        feature_maps = self.neck(outputs.feature_maps)
        results = {"hidden_states": outputs.hidden_states}
        if labels is not None:
            losses = self._losses(feature_maps, image_sizes, self._prepare_labels(labels, image_sizes))
            results |= {"loss": sum(losses.values()), "loss_dict": losses}
        if labels is None or not self.training:
            results |= self._detect(feature_maps, image_sizes)
        return MaskRCNNObjectDetectionOutput(**results)

    @staticmethod
    def _image_sizes(pixel_values: torch.Tensor, pixel_mask: torch.Tensor | None) -> torch.Tensor:
        """Height and width of each image without padding, (batch_size, 2)."""
        if pixel_mask is None:
            return torch.tensor(pixel_values.shape[2:], device=pixel_values.device).expand(len(pixel_values), 2)
        shape = pixel_values.shape[:1] + pixel_values.shape[2:]
        if not isinstance(pixel_mask, torch.Tensor) or pixel_mask.shape != shape:
            raise ValueError(
                f"`pixel_mask` must have the size of `pixel_values` without channels: a `torch.Tensor` of shape "
                f"{tuple(shape)}, got a `{type(pixel_mask).__name__}` of {getattr(pixel_mask, 'shape', 'no shape')}."
            )
        is_image = pixel_mask > 0
        return torch.stack((is_image.any(dim=2).sum(dim=1), is_image.any(dim=1).sum(dim=1)), dim=1)

    def _prepare_labels(self, labels, image_sizes: torch.Tensor) -> list[dict[str, torch.Tensor]]:
        """Labels with boxes (left, top, right, bottom) in pixels, without empty boxes."""
        prepared = []
        for label, size in zip(labels, image_sizes):
            boxes = label["boxes"].reshape(-1, 4)
            boxes = center_to_corners_format(boxes.to(_box_dtype(boxes)))
            boxes = clip_boxes(boxes * size.flip(0).repeat(2), size)
            kept = (boxes[:, 2:] > boxes[:, :2]).all(dim=1)
            own = {"class_labels": label["class_labels"][kept], "boxes": boxes[kept]}
            if self.config.use_mask_head:
                own["masks"] = label["masks"][kept]
            prepared.append(own)
        return prepared

    def _propose(
        self, anchors: list[torch.Tensor], image_sizes: torch.Tensor, logits, offsets, num_per_level: int
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Boxes (batch_size, n, 4), scores and levels (batch_size, n) of the best anchors of each level."""
        boxes, scores, levels = [], [], []
        for level, own_anchors in enumerate(anchors):
            level_scores = logits[level].sigmoid()
            best_scores, best = level_scores.topk(min(num_per_level, level_scores.shape[1]))
            best_offsets = offsets[level].gather(1, best[..., None].expand(-1, -1, 4))
            boxes.append(decode_boxes(own_anchors[best], best_offsets))
            scores.append(best_scores)
            levels.append(torch.full_like(best, level))
        boxes = clip_boxes(torch.cat(boxes, dim=1), image_sizes[:, None])
        return boxes, torch.cat(scores, dim=1), torch.cat(levels, dim=1)

    def _select_proposals(self, boxes, scores, levels, number: int) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """
        For each image the proposals that are not empty and do not overlap better ones of their level: boxes (n, 4) and
        scores (n,), the best first.
        """
        selected_boxes, selected_scores = [], []
        for own_boxes, own_scores, own_levels in zip(boxes, scores, levels):
            kept = (own_boxes[:, 2:] > own_boxes[:, :2]).all(dim=1).nonzero()[:, 0]
            own_boxes, own_scores = own_boxes[kept], own_scores[kept]
            kept = batched_nms(own_boxes, own_scores, own_levels[kept], self.config.proposal_nms_threshold)[:number]
            selected_boxes.append(own_boxes[kept])
            selected_scores.append(own_scores[kept])
        return selected_boxes, selected_scores

    def _anchors(self, feature_maps: list[torch.Tensor], dtype: torch.dtype) -> list[torch.Tensor]:
        """Of each level, (n, 4)."""
        scale, ratios = self.config.anchor_scale, self.config.anchor_ratios
        return [
            anchor_boxes(*feature_map.shape[2:], stride, scale, ratios, feature_map.device, dtype)
            for feature_map, stride in zip(feature_maps, self._strides)
        ]

    @property
    def _strides(self) -> list[int]:
        return [*self.config.feature_strides, 2 * self.config.feature_strides[-1]]

    def _rpn_outputs(self, feature_maps: list[torch.Tensor]) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """For each level logits (batch_size, n) and offsets (batch_size, n, 4), ordered as the anchors."""
        logits, offsets = self.rpn(feature_maps)
        dtype = _box_dtype(logits[0])
        # (batch_size, anchors, height, width) -> (batch_size, height, width, anchors)
        return [level.permute(0, 2, 3, 1).flatten(1).to(dtype) for level in logits], [
            level.permute(0, 2, 3, 1).flatten(1).unflatten(1, (-1, 4)).to(dtype) for level in offsets
        ]

    def _refine(self, rois, logits, offsets, stage: int, image_sizes, labels=None) -> torch.Tensor:
        """Regions (n, 5) with the box that a stage predicts for `labels`, or else for the best class."""
        best = logits[:, :-1].argmax(dim=1)
        labels = best if labels is None else torch.where(labels == self.config.num_labels, best, labels)
        offsets = offsets_of_class(offsets, labels).to(rois.dtype)
        boxes = decode_boxes(rois[:, 1:], offsets, self.config.box_stds[stage])
        return torch.cat((rois[:, :1], clip_boxes(boxes, image_sizes[rois[:, 0].long()])), dim=1)

    def _detect(self, feature_maps: list[torch.Tensor], image_sizes: torch.Tensor) -> dict[str, torch.Tensor]:
        """The detections, under the names of the output."""
        config, dtype = self.config, feature_maps[0].dtype
        with torch.no_grad():
            rpn_logits, rpn_offsets = self._rpn_outputs(feature_maps)
            _check_finite("proposals", dtype, *rpn_logits, *rpn_offsets)
            anchors = self._anchors(feature_maps, rpn_logits[0].dtype)
            candidates = self._propose(anchors, image_sizes, rpn_logits, rpn_offsets, config.num_proposals_per_level)
            proposals, _ = self._select_proposals(*candidates, config.num_proposals)
            rois = _concatenate(proposals, candidates[0])
        stages = []  # logits and offsets of each
        for stage, box_head in enumerate(self.box_heads):
            if stage > 0:
                rois = self._refine(rois, *stages[-1], stage - 1, image_sizes)
            stages.append(box_head(self.box_roi_align(feature_maps, rois)))
        logits = torch.stack([logits.to(rois.dtype) for logits, _ in stages]).mean(dim=0)
        probabilities = logits.softmax(dim=-1)[:, :-1]
        _check_finite("detections", dtype, probabilities, *(offsets for _, offsets in stages))
        boxes = decode_boxes(rois[:, None, 1:], stages[-1][1].to(rois.dtype), config.box_stds[-1])
        boxes = clip_boxes(boxes, image_sizes[rois[:, 0].long(), None])
        boxes = boxes.expand(-1, config.num_labels, -1)
        selected = [
            select_detections(
                boxes,
                probabilities * (rois[:, :1] == idx),
                config.score_threshold,
                config.nms_threshold,
                config.max_detections,
            )
            for idx in range(len(image_sizes))
        ]
        nothing = torch.zeros(0, dtype=torch.int64, device=rois.device)
        row, label = (torch.cat(indices) for indices in zip((nothing, nothing), *selected))
        boxes = boxes[row, label]
        numbers = [len(own) for own, _ in selected]
        sizes = image_sizes[rois[row, 0].long()].to(boxes.dtype)
        relative = corners_to_center_format(boxes / sizes.flip(1).repeat(1, 2))
        no_object = logits.new_full((config.num_labels + 1,), torch.finfo(logits.dtype).min)
        no_object[-1] = 0  # background has all of the probability
        detections = {
            "logits": _pad(logits_of_labels(logits[row], label), numbers, config.max_detections, no_object),
            "pred_boxes": _pad(relative, numbers, config.max_detections),
            "pred_scores": _pad(probabilities[row, label], numbers, config.max_detections),
            "pred_labels": _pad(label, numbers, config.max_detections, value=-1),
        }
        if config.use_mask_head:
            regions = self.mask_roi_align(feature_maps, torch.cat((rois[row, :1], boxes), dim=1))
            indices = torch.arange(len(label), device=label.device)
            masks = torch.stack([mask_head(regions)[indices, label] for mask_head in self.mask_heads])
            _check_finite("masks", dtype, masks)
            if len(masks) > 1:
                # The mean of the probabilities as a logit, log(p) - log(1 - p), where p may round to 0 and 1.
                log_p = nn.functional.logsigmoid(masks).logsumexp(dim=0, keepdim=True)
                masks = log_p - nn.functional.logsigmoid(-masks).logsumexp(dim=0, keepdim=True)
            masks = masks[0]
            detections["pred_masks"] = _pad(masks, numbers, config.max_detections, torch.finfo(masks.dtype).min)
        return detections

    def _losses(
        self, feature_maps: list[torch.Tensor], image_sizes: torch.Tensor, labels: list[dict[str, torch.Tensor]]
    ) -> dict[str, torch.Tensor]:
        config = self.config
        rpn_logits, rpn_offsets = self._rpn_outputs(feature_maps)
        anchors = self._anchors(feature_maps, rpn_logits[0].dtype)
        losses = proposal_losses(
            config,
            torch.cat(rpn_logits, dim=1),
            torch.cat(rpn_offsets, dim=1),
            torch.cat(anchors),
            self._trained_anchors(feature_maps, anchors, image_sizes),
            [label["boxes"] for label in labels],
        )
        with torch.no_grad():
            candidates = self._propose(
                anchors, image_sizes, rpn_logits, rpn_offsets, config.num_train_proposals_per_level
            )
            proposals, _ = self._select_proposals(*candidates, config.num_train_proposals)
        for stage, box_head in enumerate(self.box_heads):
            sampled = SampledProposals(config, stage, proposals, labels)
            logits, offsets = box_head(self.box_roi_align(feature_maps, sampled.rois))
            logits, offsets = logits.to(sampled.rois.dtype), offsets.to(sampled.rois.dtype)
            losses |= detection_losses(config, stage, sampled, logits, offsets)
            if config.use_mask_head:
                positive = sampled.rois[sampled.objects >= 0]
                masks = self.mask_heads[stage](self.mask_roi_align(feature_maps, positive)).to(sampled.rois.dtype)
                losses |= mask_loss(config, stage, sampled, masks, [label["masks"] for label in labels])
            if stage + 1 < len(self.box_heads):
                refined = self._refine(sampled.rois, logits, offsets, stage, image_sizes, sampled.labels).detach()
                refined = refined[~sampled.is_object_box]
                proposals = [refined[refined[:, 0] == idx, 1:] for idx in range(len(labels))]
        return losses

    def _trained_anchors(self, feature_maps, anchors, image_sizes: torch.Tensor) -> torch.Tensor:
        """
        Which anchors the loss looks at, (batch_size, num_anchors): those of positions on the image, which counts as
        padded to multiples of the coarsest feature map's stride; on request only those inside the image.
        """
        divisor = self.config.feature_strides[-1]
        padded = (image_sizes + divisor - 1) // divisor * divisor
        trained = []
        for feature_map, stride in zip(feature_maps, self._strides):
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


def select_detections(
    boxes: torch.Tensor, scores: torch.Tensor, score_threshold: float, nms_threshold: float, number: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    The best `number` of `boxes` (n, num_labels, 4) with `scores` (n, num_labels) above `score_threshold` that do not
    overlap a better one of their class (`multiclass_nms` of mmdetection): rows and labels, the best first.
    """
    row, label = (scores > score_threshold).nonzero(as_tuple=True)
    kept = batched_nms(boxes[row, label], scores[row, label], label, nms_threshold)[:number]
    return row[kept], label[kept]


def logits_of_labels(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """
    Logits (n, num_labels + 1) of regions -> the same of detections with `labels` (n,): probabilities of classes that
    are as high as that of the label become background's. The label is the best class, with its probability.
    """
    classes, labels = logits[:, :-1], labels[:, None]
    # (A little below, softmax may round to the same number.)
    is_other = (classes > classes.gather(1, labels) - 1e-3).scatter(1, labels, False)
    background = torch.cat((classes.masked_fill(~is_other, -torch.inf), logits[:, -1:]), dim=1)
    classes = classes.masked_fill(is_other, torch.finfo(logits.dtype).min)
    return torch.cat((classes, background.logsumexp(dim=1, keepdim=True)), dim=1)


def _box_dtype(tensor: torch.Tensor) -> torch.dtype:
    """Boxes have at least single precision."""
    return torch.promote_types(tensor.dtype, torch.float32)


def _check_finite(what: str, dtype: torch.dtype, *tensors: torch.Tensor):
    """
    Raise a `FloatingPointError` for Inf and NaN. Comparing them with a threshold would
    drop them: an image would look empty.
    """
    if not torch.stack([tensor.isfinite().all() for tensor in tensors]).all():
        raise FloatingPointError(
            f"The {what} are not finite; the feature maps are {dtype}. In float16 large activations overflow: load "
            "the model in bfloat16 or float32. Else `pixel_values` or weights are not finite; of the weights, "
            "`[name for name, weight in model.named_parameters() if not weight.isfinite().all()]`."
        )


def _concatenate(boxes: list[torch.Tensor], like: torch.Tensor) -> torch.Tensor:
    """Boxes (n, 4) of each image -> regions (n of all, 5), the index of the image first."""
    regions = [nn.functional.pad(own, (1, 0), value=idx) for idx, own in enumerate(boxes)]
    return torch.cat([like.new_zeros((0, 5)), *regions])  # (there may be no image)


def _pad(tensor: torch.Tensor, numbers: list[int], length: int, value: float | torch.Tensor = 0) -> torch.Tensor:
    """Rows of a batch, `numbers` of them for each image -> (batch_size, length, ...)."""
    padded = tensor.new_empty((len(numbers), length, *tensor.shape[1:]))
    padded[:] = value
    for idx, own in enumerate(tensor.split(numbers)):
        padded[idx, : len(own)] = own
    return padded


__all__ = ["MaskRCNNForObjectDetection", "MaskRCNNObjectDetectionOutput"]
