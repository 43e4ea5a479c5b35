# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""
Denoising queries (`CdnQueryGenerator` of mmdetection; https://arxiv.org/abs/2203.03605, section 3.3): noisy copies of
the objects that the decoder has to restore, in groups of positive copies and of negative ones with more noise.
"""

from dataclasses import dataclass

import torch
from transformers.image_transforms import corners_to_center_format

from .configuration_dino_detr import DinoDetrConfig
from .loss_dino_detr import inverse_sigmoid


@dataclass
class DenoisingQueries:
    """
    Denoising queries of a batch. A group has a slot for each object of the fullest image: first the positive copies,
    then the negative ones. An image with fewer objects has empty slots, which take part as background.

    Attributes:
        labels: Class of each query after noise, -1 for empty slots, (batch_size, num_queries).
        box_logits: Logits of its box after noise, (batch_size, num_queries, 4).
        matches: Index of the object that it has to restore, -1 for background, (batch_size, num_queries).
        group_size: Number of queries in a group.
    """

    labels: torch.Tensor
    box_logits: torch.Tensor
    matches: torch.Tensor
    group_size: int

    @property
    def num_queries(self) -> int:
        return self.labels.shape[1]

    def blocked(self, num_matching_queries: int) -> torch.Tensor:
        """
        Mask (num_queries + num_matching_queries, ...) of what the queries must not attend to: matching queries, which
        come last, do not see denoising queries, and groups do not see each other.
        """
        device, number = self.labels.device, self.num_queries
        group = torch.arange(number, device=device) // max(self.group_size, 1)
        group = torch.cat((group, group.new_full((num_matching_queries,), -1)))
        return (group[:, None] != group) & (group >= 0)


@dataclass
class Noise:
    """
    Random numbers for n noisy copies of objects.

    Attributes:
        flip: Uniform in [0, 1), small where the class is replaced, (n,).
        labels: Classes that replace others, (n,).
        signs: -1 or 1, direction in which each coordinate of the corners moves, (n, 4).
        distances: Uniform in [0, 1), how far, (n, 4).
    """

    flip: torch.Tensor
    labels: torch.Tensor
    signs: torch.Tensor
    distances: torch.Tensor

    @classmethod
    def draw(cls, number: int, num_labels: int, device: torch.device) -> "Noise":
        return cls(
            flip=torch.rand(number, device=device),
            labels=torch.randint(num_labels, (number,), device=device),
            signs=torch.randint(2, (number, 4), device=device) * 2 - 1,
            distances=torch.rand(number, 4, device=device),
        )


@torch.no_grad()
def create_denoising_queries(
    config: DinoDetrConfig, targets: list[dict[str, torch.Tensor]], image_sizes: torch.Tensor
) -> DenoisingQueries:
    """
    Args:
        targets (`list[dict[str, torch.Tensor]]`):
            Objects of each image, from [`~modeling_internimage.detection.targets.prepare_targets`].
        image_sizes (`torch.Tensor` of shape `(batch_size, 2)`):
            Height and width of each image without padding.
    """
    device, numbers = image_sizes.device, [len(target["boxes"]) for target in targets]
    num_slots = max(numbers)
    num_groups = max(1, config.num_denoising // num_slots) if num_slots else 1
    num_parts = 2 * num_groups  # of each group first the positive copies, then the negative ones

    # All objects, listed once for each part.
    limits = image_sizes.flip(1).repeat(1, 2)
    boxes = torch.cat([target["boxes"] / limit for target, limit in zip(targets, limits)]).repeat(num_parts, 1)
    labels = torch.cat([target["class_labels"] for target in targets]).repeat(num_parts)
    images = torch.cat([torch.full((number,), idx) for idx, number in enumerate(numbers)]).repeat(num_parts).to(device)
    objects = torch.cat([torch.arange(number) for number in numbers]).repeat(num_parts).to(device)
    parts = torch.arange(num_parts, device=device).repeat_interleave(sum(numbers))

    noise = Noise.draw(len(labels), config.num_labels, device)
    labels = torch.where(noise.flip < config.label_noise_ratio * 0.5, noise.labels, labels)
    half_sizes = (corners_to_center_format(boxes)[:, 2:] / 2).repeat(1, 2)
    is_negative = parts % 2
    shifts = noise.signs * (noise.distances.to(boxes.dtype) + is_negative[:, None]) * half_sizes
    # A side may become negative; its logit is then the lowest one.
    noisy = corners_to_center_format((boxes + shifts * config.box_noise_scale).clamp(0, 1))

    slots = parts * num_slots + objects
    shape = (len(targets), num_parts * num_slots)
    query_labels = torch.full(shape, -1, device=device)
    matches = torch.full(shape, -1, device=device)
    box_logits = boxes.new_zeros((*shape, 4))
    query_labels[images, slots] = labels
    matches[images, slots] = objects.where(is_negative == 0, -1)
    box_logits[images, slots] = inverse_sigmoid(noisy)
    return DenoisingQueries(query_labels, box_logits, matches, group_size=2 * num_slots)
