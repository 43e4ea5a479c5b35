# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""Whole models, with their PyTorch DCNv3 and with the kernel. Needs the package modeling_internimage."""

import os
import statistics
import time
import types

import torch


# Operator, and on a GPU batch size, height and width.
MODELS = {
    "InternImage-T": ("DCNv3", 64, 224, 224),
    "FlashInternImage-T": ("DCNv4", 64, 224, 224),
    "FlashInternImage-T at 800x1216": ("DCNv4", 2, 800, 1216),
}


def randomize_offsets(model):
    """
    Fresh offsets are zero, which puts every sample on a pixel. Trained ones are not. Most of an offset and of a weight
    is a bias here: without a softmax, a deep model with large random projections would amplify every rounding.
    """
    for suffix, mean, std in (
        ("offset_proj.weight", 0, 0.005), ("offset_proj.bias", 0, 1),
        ("mask_proj.weight", 0, 0.005), ("mask_proj.bias", 1 / 9, 0.05),
    ):  # fmt: skip
        parameters = [parameter for name, parameter in model.named_parameters() if name.endswith(suffix)]
        if not parameters:
            raise RuntimeError(
                f"No parameter of {type(model).__name__} has a name that ends with {suffix!r}: without random offsets "
                "and masks the benchmark would sample the regular grid. Put the present names into gpu/model.py."
            )
        for parameter in parameters:
            parameter.data.normal_(mean, std)


def make_models(worker, **config):
    """
    The model (InternImage-T, but for what `config` changes) with its own DCNv3 and with the kernel's, in evaluation
    mode and with the same weights; and how many layers have the kernel.
    """
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


def model_benchmark(name, dtype_name, compiled, with_kernel, worker):
    core_op, batch, height, width = MODELS[name]
    if worker.device == "cpu":
        batch, height, width = 1, 64, 64
    try:
        reference, kernelized, count = worker.get(core_op, lambda: make_models(worker, core_op=core_op))
    except ImportError as error:
        return {"skipped": f"modeling_internimage cannot be imported: {error}"}
    dtype = getattr(torch, dtype_name)
    generator = torch.Generator(worker.device).manual_seed(0)
    images = torch.randn(batch, 3, height, width, device=worker.device, generator=generator)
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
        report |= {"batch": batch, "size": [height, width], "first_call": first, "images_per_second": None}
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
