# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""
DCNv3 with the shapes of InternImage-T's four stages, and DCNv4 (`softmax=False`) with those of FlashInternImage-T: the
same at 224x224, and larger ones at 800x1216. Forward, and forward with backward ("training"), against PyTorch.

    kernels benchmark ./hub_kernels/dcnv3              # a local build
    kernels benchmark kernels-community/dcnv3 --version 1

Needs `pip install "kernels[benchmark]"`. Results are compared with the reference first. The time of the reference is
that of one call; the reference is written to be read, so the ratio of the two times is no measure of speed. The batch
size is 64 on a GPU and 8 on a CPU, at 800x1216 8 and 1.
"""

import sys
from pathlib import Path

import torch
from kernels.benchmark import Benchmark


sys.path.insert(0, str(Path(__file__).parent))  # the runner loads this file alone
from reference_dcnv3 import reference_dcnv3  # noqa: E402


class Workloads:
    """What is measured for every stage. Not a `Benchmark`: the runner would take it for one."""

    seed = 0
    softmax = True
    batch_sizes = {"cuda": 64, "cpu": 8}

    def prepare(self, dtype, requires_grad):
        num_groups = self.channels // 16
        self.keywords = {"num_groups": num_groups, "softmax": self.softmax}
        value, offset, mask, self.cotangent = (
            torch.randn(self.batch_sizes[self.device], *self.size, last_size, device=self.device)
            for last_size in (self.channels, num_groups * 18, num_groups * 9, self.channels)
        )
        # Odd multiples of 1/32, as bfloat16 has them too: no sample lies on a pixel, where the gradient jumps.
        offset = ((offset * 16).floor().clamp(-63, 63) * 2 + 1) / 32
        if not self.softmax:  # outputs so small that the tolerance of the runner is more than bfloat16 rounds away
            mask = mask / 4
        self.tensors = [tensor.to(dtype).requires_grad_(requires_grad) for tensor in (value / 2, offset, mask)]

    def gradients(self, function):
        """As one tensor, which is what the runner compares."""
        output = function(*self.tensors, **self.keywords)
        return torch.cat(
            [gradient.flatten() for gradient in torch.autograd.grad(output, self.tensors, self.cotangent)]
        )

    def setup_forward_float32(self):
        self.prepare(torch.float32, requires_grad=False)

    def benchmark_forward_float32(self):
        self.out = self.kernel.dcnv3(*self.tensors, **self.keywords)

    def verify_forward_float32(self):
        return reference_dcnv3(*self.tensors, **self.keywords)

    def setup_forward_bfloat16(self):
        self.prepare(torch.bfloat16, requires_grad=False)

    def benchmark_forward_bfloat16(self):
        self.out = self.kernel.dcnv3(*self.tensors, **self.keywords)

    def verify_forward_bfloat16(self):
        return reference_dcnv3(*self.tensors, **self.keywords)

    # Only in float32: rounded to bfloat16, gradients differ by more than the tolerance of the runner, which is fixed.
    def setup_training_float32(self):
        self.prepare(torch.float32, requires_grad=True)

    def benchmark_training_float32(self):
        self.out = self.gradients(self.kernel.dcnv3)

    def verify_training_float32(self):
        return self.gradients(reference_dcnv3)


class Stage1(Workloads, Benchmark):
    size, channels = (56, 56), 64


class Stage2(Workloads, Benchmark):
    size, channels = (28, 28), 128


class Stage3(Workloads, Benchmark):
    size, channels = (14, 14), 256


class Stage4(Workloads, Benchmark):
    size, channels = (7, 7), 512


class DCNv4Stage1(Stage1):
    softmax = False


class DCNv4Stage2(Stage2):
    softmax = False


class DCNv4Stage3(Stage3):
    softmax = False


class DCNv4Stage4(Stage4):
    softmax = False


class LargeWorkloads(Workloads):
    """FlashInternImage-T at the usual size of detectors, 800x1216."""

    softmax = False
    batch_sizes = {"cuda": 8, "cpu": 1}


class DCNv4LargeStage1(LargeWorkloads, Benchmark):
    size, channels = (200, 304), 64


class DCNv4LargeStage2(LargeWorkloads, Benchmark):
    size, channels = (100, 152), 128


class DCNv4LargeStage3(LargeWorkloads, Benchmark):
    size, channels = (50, 76), 256


class DCNv4LargeStage4(LargeWorkloads, Benchmark):
    size, channels = (25, 38), 512
