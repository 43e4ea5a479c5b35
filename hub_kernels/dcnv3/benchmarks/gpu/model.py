# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""InternImage-T as a whole, with its PyTorch DCNv3 and with the kernel. Needs the package modeling_internimage."""

import os
import statistics
import time
import types

import torch


def randomize_offsets(model):
    """Fresh offsets are zero, which puts every sample on a pixel. Trained ones are not."""
    for suffix in ("offset_proj.weight", "mask_proj.weight"):
        parameters = [parameter for name, parameter in model.named_parameters() if name.endswith(suffix)]
        if not parameters:
            raise RuntimeError(
                f"No parameter of {type(model).__name__} has a name that ends with {suffix!r}: without random offsets "
                "and masks the benchmark would sample the regular grid. Put the present names into gpu/model.py."
            )
        for parameter in parameters:
            parameter.data.normal_(std=0.05)


def make_models(worker, **config):
    """The model (InternImage-T, but for what `config` changes) with its own DCNv3 and with the kernel's, in evaluation
    mode and with the same weights; and how many layers have the kernel."""
    for name, setting in (("HF_HUB_OFFLINE", "1"), ("TOKENIZERS_PARALLELISM", "false")):
        os.environ.setdefault(name, setting)
    from modeling_internimage import DCNv3, InternImageConfig, InternImageForImageClassification

    torch.manual_seed(0)
    config = InternImageConfig(num_labels=1000, **config)
    reference, kernelized = (InternImageForImageClassification(config).eval().to(worker.device) for _ in range(2))
    randomize_offsets(reference)
    kernelized.load_state_dict(reference.state_dict())
    layers = [module for module in kernelized.modules() if isinstance(module, DCNv3)]
    for layer in layers:
        layer.forward = types.MethodType(worker.kernel.layers.DCNv3.forward, layer)
    return reference, kernelized, len(layers)


def model_benchmark(dtype_name, compiled, with_kernel, worker):
    try:
        reference, kernelized, count = worker.get("models", lambda: make_models(worker))
    except ImportError as error:
        return {"skipped": f"modeling_internimage cannot be imported: {error}"}
    batch, size = (64, 224) if worker.device == "cuda" else (1, 64)
    dtype = getattr(torch, dtype_name)
    generator = torch.Generator(worker.device).manual_seed(0)
    images = torch.randn(batch, 3, size, size, device=worker.device, generator=generator)
    model = kernelized if with_kernel else reference
    allow = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    with torch.inference_mode():
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        expected = reference.float()(images[:4]).logits.double()
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
