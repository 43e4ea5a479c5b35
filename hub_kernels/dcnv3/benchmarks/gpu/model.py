# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""InternImage-T as a whole, with its PyTorch definition and with the kernel."""

import os
import statistics
import sys
import time
import types

import torch

from .machine import CHECKOUT, one_line


def make_models(worker):
    """InternImage-T, once as its PyTorch definition and once with the kernel."""
    for name, setting in (("HF_HUB_OFFLINE", "1"), ("TOKENIZERS_PARALLELISM", "false")):
        os.environ.setdefault(name, setting)
    sys.path.insert(0, str(CHECKOUT))
    from modeling_internimage import DCNv3, InternImageConfig, InternImageForImageClassification

    torch.manual_seed(0)
    config = InternImageConfig(num_labels=1000)
    models = [InternImageForImageClassification(config).eval().to(worker.device) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    # Fresh offsets are zero, which puts every sample on a pixel. Trained ones are not.
    for name, parameter in models[0].named_parameters():
        if name.endswith(("offset.weight", "mask.weight")):
            parameter.data.normal_(std=0.05)
    models[1].load_state_dict(models[0].state_dict())
    layers = [module for module in models[1].modules() if isinstance(module, DCNv3)]
    for layer in layers:
        layer.forward = types.MethodType(worker.kernel.layers.DCNv3.forward, layer)
    return *models, len(layers)


def model_benchmark(dtype_name, compiled, with_kernel, worker):
    try:
        definition, kernelized, count = worker.get("models", lambda: make_models(worker))
    except Exception as error:
        return {"skipped": f"the model cannot be made here: {type(error).__name__}: {one_line(error)}"}
    batch, size = (64, 224) if worker.device == "cuda" else (1, 64)
    dtype = getattr(torch, dtype_name)
    generator = torch.Generator(worker.device).manual_seed(0)
    images = torch.randn(batch, 3, size, size, device=worker.device, generator=generator)
    model = kernelized if with_kernel else definition
    allow = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    with torch.inference_mode():
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        expected = definition.float()(images[:4]).logits.double()
        logits = model.float()(images[:4]).logits.double()
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = allow
        error = ((logits - expected).norm() / expected.norm()).item()
        model = model.to(dtype)
        images = images.to(dtype)
        function = torch.compile(model) if compiled else model
        start = time.perf_counter()
        output = function(images).logits
        worker.synchronize()
        first = time.perf_counter() - start
        low = ((output[:4].double() - expected).norm() / expected.norm()).item()
        ok = error < 1e-3 and low < (1e-2 if dtype_name == "float32" else 0.1)
        report = {"ok": ok, "layers": count, "relative_error_float32": error, "relative_error": low}
        report |= {"batch": batch, "size": size, "first_call": first, "images_per_second": None}
        if not ok:
            return report
        times = []
        if worker.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        for _ in range(20 if worker.device == "cuda" else 2):  # whole calls, with the time of the CPU
            worker.synchronize()
            start = time.perf_counter()
            function(images)
            worker.synchronize()
            times.append(time.perf_counter() - start)
        report["seconds"] = statistics.median(times)
        report["images_per_second"] = batch / report["seconds"]
        if worker.device == "cuda":
            report["peak_memory"] = torch.cuda.max_memory_allocated()
    return report
