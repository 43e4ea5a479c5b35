# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""Mixup and cutmix, and random augmentation that an interrupted run repeats."""

import contextlib
import random
import zlib
from collections.abc import Callable

import numpy
import torch
from transformers.utils import is_torchvision_available


class MixupCutmix:
    """
    A data collator that mixes the images of each training batch, and their labels into probabilities (torchvision's
    `MixUp` and `CutMix`).

    Args:
        collate: The collator that makes `pixel_values` and integer `labels`.
        num_labels: Number of classes.
        mixup, cutmix: As in [`Recipe`].
    """

    def __init__(self, collate: Callable, num_labels: int, mixup: float, cutmix: float):
        if not is_torchvision_available():
            raise ImportError('`mixup` and `cutmix` need torchvision: pip install "modeling-internimage[vision]".')
        from torchvision.transforms import v2

        mixing = [v2.MixUp(alpha=mixup, num_classes=num_labels)] if mixup else []
        mixing += [v2.CutMix(alpha=cutmix, num_classes=num_labels)] if cutmix else []
        self.collate = collate
        self.mix = v2.RandomChoice(mixing)

    def __call__(self, examples: list) -> dict[str, torch.Tensor]:
        batch = self.collate(examples)
        # Seeded by the batch itself, since the Trainer's collator removes indices: the same images are always mixed in
        # the same way, see `SeededImages`.
        pixels = batch["pixel_values"][..., ::8, ::8].double().numpy().tobytes()
        with _random_numbers_of(zlib.crc32(batch["labels"].numpy().tobytes(), zlib.crc32(pixels))):
            batch["pixel_values"], batch["labels"] = self.mix(batch["pixel_values"], batch["labels"])
        return batch


class SeededImages(torch.utils.data.Dataset):
    """
    The images of `dataset`, with random augmentation that depends only on the seed, the epoch and the index, not on
    the number of processes and workers or on earlier random numbers. So a resumed run repeats it exactly. (The Trainer
    does not save the state of accelerate's stateful data loaders.) `epoch` is a tensor in shared memory, so that
    persistent workers see it change.
    """

    def __init__(self, dataset, seed: int, epoch: torch.Tensor):
        self.dataset = dataset
        self.seed = seed
        self.epoch = epoch

    def __len__(self):
        return len(self.dataset)

    def __getitem__(self, idx):
        seed = hash((self.seed, self.epoch.item(), idx)) % 2**32
        with _random_numbers_of(seed):
            return self.dataset[idx]


@contextlib.contextmanager
def _random_numbers_of(seed: int):
    """Seed the CPU's random number generators inside the block, and restore their states after it."""
    python_state, numpy_state = random.getstate(), numpy.random.get_state()
    with torch.random.fork_rng(devices=[]):
        random.seed(seed)
        numpy.random.seed(seed)
        torch.random.default_generator.manual_seed(seed)  # `torch.manual_seed` sets those of GPUs too
        try:
            yield
        finally:
            random.setstate(python_state)
            numpy.random.set_state(numpy_state)
