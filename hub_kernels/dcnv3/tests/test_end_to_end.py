# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""From the local build to a fine-tuned InternImage: what a user of the kernel does, offline and on the CPU. Only these
tests need the package modeling_internimage."""

import copy
import inspect
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch


pytest.importorskip("modeling_internimage")

from gpu.model import make_models  # noqa: E402
from torch import nn  # noqa: E402
from torch.nn.modules.module import register_module_forward_hook  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402
from transformers import Trainer, TrainingArguments  # noqa: E402

from modeling_internimage import (  # noqa: E402
    DCNv3,
    InternImageConfig,
    InternImageForImageClassification,
    dcnv3_implementations,
    register_dcnv3_kernel,
    use_dcnv3_kernel,
)


BUILD = Path(__file__).parents[1] / "build"
# With a torch built for CUDA, `kernels` chooses the CUDA variant also without a GPU; the CPU one has to be named.
VARIANTS = {"cpu": "torch-stable-abi211-cpu-x86_64-linux", "cuda": "torch-stable-abi211-cu130-x86_64-linux"}


@pytest.fixture(params=VARIANTS)
def variant(request, monkeypatch):
    """Makes `kernels` use the build of one backend."""
    folder = BUILD / VARIANTS[request.param]
    if not folder.is_dir():
        pytest.skip(f"{folder.name} is not built (the CUDA variant needs nvcc)")
    if request.param == "cuda" and torch.version.cuda is None:
        pytest.skip("a CPU-only torch cannot load the CUDA variant")
    monkeypatch.setenv("LOCAL_KERNELS", f"kernels-community/dcnv3={folder}")
    return folder.name


@pytest.fixture
def model(request):
    """A small model that uses every argument of the operator that an InternImage has, with offsets as in use."""
    torch.manual_seed(0)
    core_op = getattr(request, "param", "DCNv3")
    config = InternImageConfig(
        core_op=core_op, embed_dim=32, depths=[1, 1, 2, 1], num_groups=[2, 4, 8, 16],
        offset_scale=2.0, center_feature_scale=True, num_labels=4, problem_type="single_label_classification",
    )  # fmt: skip
    model = InternImageForImageClassification(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if any(part in name for part in ("offset_proj", "mask_proj", "center_feature_scale_proj")):
                # Weights that no softmax bounds would amplify rounding from layer to layer.
                parameter.normal_(std=0.1 if core_op == "DCNv3" else 0.02)
    return model


def test_build_for_the_cpu_alone(model, tmp_path, monkeypatch):
    """As `make kernel` leaves it without nvcc: a model on the CPU runs it, also with a torch for CUDA."""
    folder = BUILD / VARIANTS["cpu"]
    if not folder.is_dir():
        pytest.skip(f"{folder.name} is not built")
    (tmp_path / "build").mkdir()
    (tmp_path / "build" / folder.name).symlink_to(folder)
    monkeypatch.setenv("LOCAL_KERNELS", f"kernels-community/dcnv3={tmp_path}")
    images = torch.randn(1, 3, 64, 64)
    expected = model(images).logits
    use_dcnv3_kernel(model, strict=True)
    assert all(folder.name in implementation for implementation in dcnv3_implementations(model).values())
    torch.testing.assert_close(model(images).logits, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("model", ["DCNv3", "DCNv4"], indirect=True)
@pytest.mark.parametrize("training", [False, True])
def test_same_outputs_and_gradients(variant, model, training):
    kernelized = use_dcnv3_kernel(copy.deepcopy(model), strict=True)
    assert all(variant in implementation for implementation in dcnv3_implementations(kernelized).values())
    images, labels = torch.randn(3, 3, 70, 90), torch.tensor([0, 3, 1])
    outputs = {}
    for name, each in (("reference", model), ("kernel", kernelized)):
        each.train(training)
        outputs[name] = each(images, labels=labels)
        outputs[name].loss.backward()
    torch.testing.assert_close(outputs["kernel"].logits, outputs["reference"].logits, rtol=1e-4, atol=1e-5)
    gradients = dict(kernelized.named_parameters())
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(gradients[name].grad, parameter.grad, rtol=1e-3, atol=1e-4, msg=name)


class CountFused(TorchDispatchMode):
    """Counts the fused operators that run."""

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += "internimage_" in str(function)
        return function(*args, **(kwargs or {}))


def fused_module(model):
    """The kernel's module `fused`."""
    layer = next(module for module in model.modules() if type(module).__name__ == "InternImageLayer")
    return inspect.getmodule(layer.forward.__func__).fused


def randomize(model):
    """Weights that make every part of a layer matter."""
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias") or "norm" in name or "layer_scale" in name:
                parameter.normal_(std=0.5)
            elif parameter.dim() == 2 and "offset_proj" not in name:
                parameter.normal_(std=parameter.shape[1] ** -0.5)
    return model


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"post_norm": True, "layer_scale_init_value": 1.0},
        {"res_post_norm": True, "depthwise_kernel_size": 5, "center_feature_scale": True},
        {"core_op": "DCNv4", "layer_scale_init_value": 1.0, "post_norm": True},
        {"core_op": "DCNv4", "depthwise_kernel_size": 3, "dcn_output_bias": True},
    ],
    ids=str,
)
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("fast_products", [False, True])
def test_fused_layers(variant, config, mode, fast_products, monkeypatch):
    """
    In inference, an InternImage layer is three fused operators, or four between PyTorch's products where the processor
    is made for these, and computes what the layer did.
    """
    config = InternImageConfig(embed_dim=24, depths=[1, 1], num_groups=[2, 6], num_labels=4, **config)
    model = randomize(InternImageForImageClassification(config)).double().eval()
    kernelized = use_dcnv3_kernel(copy.deepcopy(model), strict=True)
    monkeypatch.setattr(fused_module(kernelized), "_has_fast_products", lambda dtype: fast_products)
    images = torch.randn(2, 3, 70, 90, dtype=torch.float64)
    with mode(), CountFused() as fused:
        torch.testing.assert_close(kernelized(images).logits, model(images).logits, rtol=1e-10, atol=1e-10)
    has_features = config.depthwise_kernel_size is not None
    assert fused.count == 2 * (3 + has_features if fast_products else 3)
    use_dcnv3_kernel(kernelized, enabled=False)
    with mode(), CountFused() as fused:
        kernelized(images)
    assert fused.count == 0


def add_hook(model):
    model.internimage.encoder.stages[0].layers[0].mlp.fc1.register_forward_hook(lambda *args: None)


def replace_linear(model):  # as LoRA and quantisation do
    class OtherLinear(nn.Linear):
        pass

    model.internimage.encoder.stages[0].layers[0].dcn.offset_proj.__class__ = OtherLinear


def change_activation(model):
    model.internimage.encoder.stages[0].layers[0].mlp.activation = nn.GELU(approximate="tanh")


@pytest.mark.parametrize(
    "change, expected", [(lambda model: None, 6), (add_hook, 3), (replace_linear, 3), (change_activation, 3)]
)
@torch.no_grad()
def test_layers_that_are_not_fused(variant, change, expected):
    """A layer whose parts are observed or replaced runs its own modules; the other layers are fused."""
    config = InternImageConfig(embed_dim=24, depths=[1, 1], num_groups=[2, 6], num_labels=4)
    model = randomize(InternImageForImageClassification(config)).eval()
    change(model)
    kernelized = use_dcnv3_kernel(copy.deepcopy(model), strict=True)
    images = torch.randn(2, 3, 64, 64)
    with CountFused() as fused:
        torch.testing.assert_close(kernelized(images).logits, model(images).logits, rtol=1e-4, atol=1e-4)
    assert fused.count == expected


@pytest.mark.parametrize("context", ["training", "autocast", "vmap", "trace", "export", "global hook"])
def test_where_nothing_is_fused(variant, model, context):
    """Training mode, other dtypes and recorded graphs see the model's own modules."""
    use_dcnv3_kernel(model, strict=True)
    images = torch.randn(2, 3, 64, 64)
    handle = None
    if context == "training":
        model.train()
    if context == "global hook":
        handle = register_module_forward_hook(lambda *args: None)
    with CountFused() as fused, torch.no_grad():
        if context == "autocast":
            with torch.autocast("cpu", torch.bfloat16):
                model(images)
        elif context == "vmap":
            torch.func.vmap(lambda image: model(image[None]).logits)(images)
        elif context == "trace":
            torch.jit.trace(model, images, strict=False, check_trace=False)
        elif context == "export":
            program = torch.export.export(model, (images,))
            assert not any("::internimage_" in str(node.target) for node in program.graph.nodes)
        else:
            model(images)
    if handle is not None:
        handle.remove()
    assert fused.count == 0


def gradients(model, images, seed=0):
    """Of a small loss, by name."""
    torch.manual_seed(seed)  # of stochastic depth
    model.zero_grad()
    model(images).logits.square().sum().backward()
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"post_norm": True, "layer_scale_init_value": 1.0, "drop_path_rate": 0.4},
        {"res_post_norm": True, "center_feature_scale": True, "mlp_fc2_bias": False},
        {"core_op": "DCNv4", "layer_scale_init_value": 1.0},
    ],
    ids=str,
)
@pytest.mark.parametrize("checkpointing", [None, {"use_reentrant": True}, {"use_reentrant": False}], ids=str)
def test_training(variant, config, checkpointing):
    """With gradients, the feed-forward networks are the kernel's: the same gradients, also with frozen weights."""
    config = InternImageConfig(embed_dim=24, depths=[1, 1], num_groups=[2, 6], num_labels=4, **config)
    model = randomize(InternImageForImageClassification(config)).double().train()
    model.internimage.encoder.stages[1].layers[0].mlp.fc1.requires_grad_(False)
    kernelized = use_dcnv3_kernel(copy.deepcopy(model), strict=True)
    if checkpointing is not None:
        kernelized.gradient_checkpointing_enable(checkpointing)
    images = torch.randn(2, 3, 70, 90, dtype=torch.float64)
    with CountFused() as fused:
        results = gradients(kernelized, images)
    torch.testing.assert_close(results, gradients(model, images), rtol=1e-8, atol=1e-8)
    # Reentrant checkpointing runs layers without gradients first, by the model's modules.
    assert fused.count == (6 if checkpointing == {"use_reentrant": False} else 4)


def add_backward_hook(model):
    model.internimage.encoder.stages[0].layers[0].mlp.fc1.register_full_backward_hook(lambda *args: None)


def parametrize(model):
    mlp = model.internimage.encoder.stages[0].layers[0].mlp
    nn.utils.parametrizations.weight_norm(mlp.fc2)


def activate_dropout(model):
    model.internimage.encoder.stages[0].layers[0].mlp.dropout.p = 0.5


@pytest.mark.parametrize(
    "change, expected",
    [
        (lambda model: None, 4),
        (add_hook, 2),
        (add_backward_hook, 2),
        (change_activation, 2),
        (parametrize, 2),
        (activate_dropout, 2),
        (lambda model: model.to(torch.bfloat16), 0),
    ],
)
def test_training_where_a_part_is_replaced(variant, change, expected):
    """A feed-forward network whose parts are observed or replaced is the model's own."""
    config = InternImageConfig(embed_dim=24, depths=[1, 1], num_groups=[2, 6], num_labels=4)
    model = randomize(InternImageForImageClassification(config)).train()
    kernelized = use_dcnv3_kernel(copy.deepcopy(model), strict=True)
    change(model)
    change(kernelized)
    images = torch.randn(2, 3, 64, 64).to(next(model.parameters()).dtype)
    with CountFused() as fused:
        results = gradients(kernelized, images)
    assert fused.count == expected
    if expected:
        torch.testing.assert_close(results, gradients(model, images), rtol=1e-3, atol=1e-3)


def test_compiled_training(variant):
    """A compiler sees the model's modules, and DCNv3 in one graph with them."""
    config = InternImageConfig(embed_dim=24, depths=[1], num_groups=[2], num_labels=4)
    model = use_dcnv3_kernel(randomize(InternImageForImageClassification(config)).train(), strict=True)
    images = torch.randn(2, 3, 64, 64)
    expected = gradients(model, images)
    targets = []

    def record(graph_module, inputs):
        targets.extend(str(node.target) for node in graph_module.graph.nodes)
        return graph_module.forward

    results = gradients(torch.compile(model, fullgraph=True, backend=record), images)
    assert any("dcnv3_forward" in target for target in targets)
    assert not any("internimage_gelu" in target for target in targets)
    for name, gradient in expected.items():
        torch.testing.assert_close(results[f"_orig_mod.{name}"], gradient, rtol=1e-3, atol=1e-3, msg=name)


@torch.no_grad()
def test_compiled_fused_layers(variant, model):
    """`torch.compile` sees the fused operators, as one graph with the rest of the model."""
    use_dcnv3_kernel(model, strict=True)
    images = torch.randn(2, 3, 64, 64)
    expected = model(images).logits
    torch.testing.assert_close(torch.compile(model, fullgraph=True)(images).logits, expected, rtol=1e-4, atol=1e-4)
    targets = []

    def count(graph_module, inputs):
        targets.extend(str(node.target) for node in graph_module.graph.nodes)
        return graph_module.forward

    torch.compiler.reset()
    torch.compile(model, fullgraph=True, backend=count)(images)
    assert sum("internimage_branch" in target or "internimage_sampling" in target for target in targets) == 15


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", ["tiny_t", "tiny_s_b", "tiny_h", "tiny_g", "tiny_prenorm_layerscale", "tiny_flash_l"])
def test_golden_models(variant, name, dtype, tmp_path, monkeypatch):
    """Whole models compute the original's numbers in fused layers, however small their images are."""
    golden_numbers = pytest.importorskip("golden_numbers", reason="the numbers are in the tests of the package")
    golden = golden_numbers.REDUCED_MODELS[name]
    model = golden_numbers.load_official(
        tmp_path, golden["config"], golden["keys"], golden["weights_seed"], dtype=dtype
    )
    use_dcnv3_kernel(model, strict=True)
    monkeypatch.setattr(fused_module(model), "_PIXELS_PER_THREAD", 0)
    with CountFused() as counted:
        golden_numbers.assert_reduced_model(model, name)
    layers = sum(golden["config"]["depths"])
    assert counted.count == 3 * layers * 2 * len(golden["input_shapes"])  # logits and pooled features


def test_use_kernels(variant, model, tmp_path):
    """transformers' own way, which needs a transformers that accepts the installed `kernels`."""
    from transformers.utils import is_kernels_available

    if not is_kernels_available():
        pytest.skip("this transformers refuses the installed kernels")
    register_dcnv3_kernel()  # reads LOCAL_KERNELS again
    model.save_pretrained(tmp_path)
    loaded = InternImageForImageClassification.from_pretrained(tmp_path, use_kernels=True)
    assert all(variant in implementation for implementation in dcnv3_implementations(loaded).values())
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(loaded(images).logits, model(images).logits, rtol=1e-4, atol=1e-5)


def test_trainer(variant, model, tmp_path):
    """Fine-tuning steps change every parameter just as with the PyTorch DCNv3."""
    generator = torch.Generator().manual_seed(0)
    data = [{"pixel_values": torch.randn(3, 64, 64, generator=generator), "labels": i % 4} for i in range(8)]
    arguments = TrainingArguments(
        output_dir=str(tmp_path), max_steps=2, per_device_train_batch_size=4, learning_rate=1e-3, report_to="none",
        save_strategy="no", use_cpu=True, disable_tqdm=True, lr_scheduler_type="constant",
    )  # fmt: skip
    trained = {}
    for name in ("reference", "kernel"):
        each = copy.deepcopy(model)
        if name == "kernel":
            use_dcnv3_kernel(each, strict=True)
        result = Trainer(each, arguments, train_dataset=data).train()
        trained[name] = dict(each.named_parameters()), result.training_loss
    assert trained["kernel"][1] == pytest.approx(trained["reference"][1], rel=1e-4)
    for name, parameter in trained["reference"][0].items():
        assert not torch.equal(parameter, dict(model.named_parameters())[name]) or "k_bias" in name, name
    # Adam turns the sign of a gradient of nearly zero into a whole step: compare all parameters together.
    difference, size = 0.0, 0.0
    for name, parameter in trained["reference"][0].items():
        difference += (trained["kernel"][0][name] - parameter).abs().sum().item()
        size += (parameter - dict(model.named_parameters())[name]).abs().sum().item()
    assert difference < 0.02 * size


@torch.no_grad()
def test_compile(variant, model):
    """One graph with the kernel in it, compiled once."""
    use_dcnv3_kernel(model, strict=True)
    images = torch.randn(2, 3, 64, 64)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(images).logits, model(images).logits)
    with torch.compiler.set_stance("fail_on_recompile"):
        compiled(images + 1)


@torch.no_grad()
@pytest.mark.parametrize("core_op", ["DCNv3", "DCNv4"])
def test_models_of_the_gpu_report(variant, core_op):
    """Both compute the same, and their samples are off the pixels, as in a trained model."""
    from kernels import get_kernel

    backend = "cuda" if variant == VARIANTS["cuda"] else "cpu"
    worker = SimpleNamespace(device="cpu", kernel=get_kernel("kernels-community/dcnv3", version=1, backend=backend))
    reference, kernelized, count = make_models(worker, core_op=core_op, embed_dim=16, depths=[1, 1], num_groups=[1, 2])
    offsets = []
    for layer in reference.modules():
        if isinstance(layer, DCNv3):
            layer.register_forward_pre_hook(lambda layer, args, kwargs: offsets.append((*args, *kwargs.values())[1]),
                                            with_kwargs=True)  # fmt: skip
    images = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(kernelized(images).logits, reference(images).logits, rtol=1e-4, atol=1e-4)
    assert count == len(offsets) == 2
    assert all((offset != offset.round()).all() for offset in offsets)
