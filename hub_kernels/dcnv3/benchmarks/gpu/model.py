# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""
Whole models: inference and training steps of InternImage, FlashInternImage and ConvNeXt. Needs the package
modeling_internimage, and transformers for ConvNeXt.

Trained offsets are neither zero nor noise. Fresh models would sample the regular grid, so `randomize_offsets` gives
every offset a standard deviation of 1 to 2 pixels: a constant for each coordinate of each sampling point, and a part
that follows the features. Neighbours correlate because the images are smooth (noise enlarged by 8).
"""

import contextlib
import copy
import os
import statistics
import time
import types
from dataclasses import asdict, dataclass

import torch

from .timing import capture


BASE = {"embed_dim": 112, "depths": [4, 4, 21, 4], "num_groups": [7, 14, 28, 56], "post_norm": True}
# The arguments of InternImageConfig; None: ConvNeXt. InternImage-B starts with a layer scale of 1e-5, which would hide
# the errors of a layer: here it is 1.
MODELS = {
    "InternImage-T": {"layer_scale_init_value": 1.0},
    "InternImage-B": {"layer_scale_init_value": 1.0, **BASE},
    "FlashInternImage-T": {"layer_scale_init_value": 1.0, "core_op": "DCNv4"},
    "ConvNeXt-T": None,
    "ConvNeXt-T, channels last": None,
}
MODES = ("eager", "torch.compile", "reduce-overhead", "CUDA graph")
DTYPES = {"float32": torch.float32, "TF32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
# The largest relative errors of logits and of all gradients together, against float32.
LOGITS_LIMITS = {"float32": 1e-2, "TF32": 3e-2, "float16": 0.1, "bfloat16": 0.1}
GRADIENT_LIMITS = {"float32": 1e-2, "TF32": 0.1, "float16": 0.3, "bfloat16": 0.3}


@dataclass(frozen=True)
class ModelRun:
    """
    One row. `dtype` is a key of DTYPES: float32 computes products and convolutions without TF32, TF32 with it. For
    inference the model is converted to float16 or bfloat16; a training step keeps float32 weights under autocast. The
    modes torch.compile and reduce-overhead compile the model, a CUDA graph holds the whole call or step.
    """

    model: str
    batch: int
    dtype: str
    step: str = "inference"  # or "training": forward, cross entropy, backward, AdamW
    mode: str = "eager"
    kernel: bool = True  # else the PyTorch DCNv3
    size: tuple[int, int] = (224, 224)

    @property
    def name(self):
        parts = [self.model, f"batch {self.batch}", self.dtype, self.step, self.mode]
        parts += ["reference"] * (not self.kernel)
        parts += ["x".join(map(str, self.size))] * (self.size != (224, 224))
        return ", ".join(parts)


def randomize_offsets(model):
    """
    See above. Most of a mask is a bias: without a softmax, a deep model with large random projections would amplify
    every rounding.
    """
    for suffix, mean, std in (
        ("offset_proj.weight", 0, None), ("offset_proj.bias", 0, 1),
        ("mask_proj.weight", 0, 0.005), ("mask_proj.bias", 1 / 9, 0.05),
    ):  # fmt: skip
        parameters = [parameter for name, parameter in model.named_parameters() if name.endswith(suffix)]
        if not parameters:
            raise RuntimeError(
                f"No parameter of {type(model).__name__} has a name that ends with {suffix!r}: without random offsets "
                "and masks the benchmark would sample the regular grid. Put the present names into gpu/model.py."
            )
        for parameter in parameters:
            parameter.data.normal_(mean, 1.5 / parameter.shape[-1] ** 0.5 if std is None else std)


def make_models(worker, **config):
    """
    The model (InternImage-T, but for what `config` changes) with its own DCNv3 and with the kernel's layers, in
    evaluation mode and with the same weights; and how many modules have the kernel.
    """
    for name, setting in (("HF_HUB_OFFLINE", "1"), ("TOKENIZERS_PARALLELISM", "false")):
        os.environ.setdefault(name, setting)
    from modeling_internimage import InternImageConfig, InternImageForImageClassification

    torch.manual_seed(0)
    config = InternImageConfig(num_labels=1000, **config)
    reference, kernelized = (InternImageForImageClassification(config).eval().to(worker.device) for _ in range(2))
    randomize_offsets(reference)
    kernelized.load_state_dict(reference.state_dict())
    layers = {name: getattr(worker.kernel.layers, name) for name in worker.kernel.layers.__all__}
    modules = [module for module in kernelized.modules() if type(module).__name__ in layers]
    for module in modules:  # as `kernels.kernelize` does, which this machine may not have
        module.forward = types.MethodType(layers[type(module).__name__].forward, module)
    return reference, kernelized, sum(type(module).__name__ == "DCNv3" for module in modules)


def make_convnext(worker, memory_format, depths):
    from transformers import ConvNextConfig, ConvNextForImageClassification

    torch.manual_seed(0)
    model = ConvNextForImageClassification(ConvNextConfig(num_labels=1000, depths=depths)).eval()
    model = model.to(worker.device, memory_format=memory_format)
    return model, model, 0


def make_pair(name, worker):
    """
    The reference, the model to measure, and how many DCNv3 modules have the kernel. On a CPU, one layer per stage: it
    only tries the code.
    """
    small = worker.device == "cpu"
    if MODELS[name] is not None:
        return make_models(worker, **MODELS[name] | ({"depths": [1, 1, 1, 1]} if small else {}))
    memory_format = torch.channels_last if "channels last" in name else torch.contiguous_format
    return make_convnext(worker, memory_format, [1, 1, 1, 1] if small else [3, 3, 9, 3])


def make_images(run, worker):
    generator = torch.Generator(worker.device).manual_seed(0)
    height, width = run.size
    coarse = torch.randn(run.batch, 3, height // 8, width // 8, device=worker.device, generator=generator)
    images = torch.nn.functional.interpolate(coarse, size=run.size, mode="bicubic", align_corners=True)
    return images.to(memory_format=torch.channels_last) if "channels last" in run.model else images


@contextlib.contextmanager
def tf32(allowed):
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = allowed
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def relative_error(actual, expected):
    return ((actual.double() - expected.double()).norm() / expected.double().norm()).item()


def compiled(model, mode):
    if mode in ("torch.compile", "reduce-overhead"):
        return torch.compile(model, mode="default" if mode == "torch.compile" else mode)
    return model


def in_mode(call, mode):
    """`call`, or what replays it as a CUDA graph and returns the tensor that the graph writes."""
    if mode == "CUDA graph":
        graph, result = capture(call, [call] * 3)

        def replay():
            graph.replay()
            return result

        return replay
    if mode == "reduce-overhead":

        def mark_and_call():
            torch.compiler.cudagraph_mark_step_begin()
            return call()

        return mark_and_call
    return call


def median_seconds(worker, call):
    """Of whole calls by the clock, the time of the CPU included."""
    times, enough = [], 0.3 if worker.arguments.quick else 0.6
    while len(times) < (10 if worker.device == "cuda" else 2) or (sum(times) < enough and len(times) < 200):
        worker.synchronize()
        start = time.perf_counter()
        call()
        worker.synchronize()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def gradients(model):
    return torch.cat([p.grad.flatten().float() for p in model.parameters() if p.grad is not None])


def training_step(run, worker, model, images, labels):
    """A function that trains one step and returns the loss. The gradients stay until the next step."""
    dtype = DTYPES[run.dtype]
    function = compiled(model, run.mode)
    # So small a learning rate that weights, and with them the work, stay as they are.
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-8, fused=True, capturable=worker.device == "cuda")
    # Constant: AdamW divides it out. It keeps gradients of float16 from vanishing.
    loss_scale = 1024 if run.dtype == "float16" else 1

    def step():
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(
            worker.device, dtype, enabled=dtype != torch.float32, cache_enabled=run.mode != "CUDA graph"
        ):
            logits = function(images).logits
        loss = torch.nn.functional.cross_entropy(logits.float(), labels)
        (loss * loss_scale).backward()
        optimizer.step()
        return loss.detach()

    return step, loss_scale


def expected_logits(run, worker, images):
    """The logits of the reference in float32 for the first four images, and the kernel's error against them."""
    reference, model, _ = worker.get(run.model, lambda: make_pair(run.model, worker))
    with torch.inference_mode(), tf32(False):
        expected = reference(images[:4]).logits.double()
        error = relative_error(model(images[:4]).logits, expected)
    return expected, error


def expected_gradients(run, worker, images, labels):
    """The gradients in float32 of the model that is measured, on the whole batch."""
    _, model, _ = worker.get(run.model, lambda: make_pair(run.model, worker))
    model = copy.deepcopy(model).train()
    with tf32(False):
        torch.nn.functional.cross_entropy(model(images).logits, labels).backward()
    return gradients(model)


def gradient_error(run, worker, images, labels):
    """The error of the kernel's gradients in float32 against the reference's, on four images."""
    models = worker.get(run.model, lambda: make_pair(run.model, worker))[:2]
    found = []
    with tf32(False):
        for model in map(copy.deepcopy, models):
            model.train()
            torch.nn.functional.cross_entropy(model(images[:4]).logits, labels[:4]).backward()
            found.append(gradients(model))
    return relative_error(found[1], found[0])


def model_benchmark(run, worker):
    try:
        reference, kernelized, layers = worker.get(run.model, lambda: make_pair(run.model, worker))
    except ImportError as error:
        return {"skipped": f"a package is missing: {error}"}
    images = make_images(run, worker)
    labels = torch.arange(run.batch, device=worker.device) % 1000
    report = {"ok": False, **asdict(run), "layers": layers, "seconds": None}
    expected, report["relative_error_float32"] = worker.get(
        (run.model, run.size, run.batch), lambda: expected_logits(run, worker, images)
    )
    if report["relative_error_float32"] > 1e-3:
        return report
    if run.step == "training":
        report["gradient_error_float32"] = worker.get(
            (run.model, run.size, run.batch, "gradients"), lambda: gradient_error(run, worker, images, labels)
        )
        expected = expected_gradients(run, worker, images, labels)
        if report["gradient_error_float32"] > GRADIENT_LIMITS["float32"]:
            return report
    if worker.device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    model = copy.deepcopy(kernelized if run.kernel else reference)
    with tf32(run.dtype == "TF32"), torch.inference_mode(run.step == "inference"):
        start = time.perf_counter()
        if run.step == "training":
            call, loss_scale = training_step(run, worker, model.train(), images, labels)
            call = in_mode(call, run.mode)
            call()
            worker.synchronize()
            report["first_call"] = time.perf_counter() - start
            report["relative_error"] = relative_error(gradients(model) / loss_scale, expected)
            report["ok"] = report["relative_error"] < GRADIENT_LIMITS[run.dtype]
        else:
            function = compiled(model.to(DTYPES[run.dtype]), run.mode)
            images = images.to(DTYPES[run.dtype])
            call = in_mode(lambda: function(images).logits, run.mode)
            logits = call()
            worker.synchronize()
            report["first_call"] = time.perf_counter() - start
            report["relative_error"] = relative_error(logits[:4], expected)
            report["ok"] = report["relative_error"] < LOGITS_LIMITS[run.dtype]
            del logits
        if report["ok"]:
            report["seconds"] = median_seconds(worker, call)
            report["images_per_second"] = run.batch / report["seconds"]
    if worker.device == "cuda":
        report["peak_memory"] = torch.cuda.max_memory_allocated() - before
    torch.compiler.reset()
    return report
