# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""What transformers' common suites ask of a model."""

import copy
import json
import logging
import math
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from testing_utils import randomize
from transformers import ResNetConfig
from transformers.utils import is_torchvision_available

from modeling_internimage import (
    InternImageBackbone,
    InternImageConfig,
    InternImageForImageClassification,
    InternImageModel,
    MaskRCNNConfig,
    MaskRCNNForObjectDetection,
    SegformerHeadConfig,
    SegformerHeadForSemanticSegmentation,
    modeling_internimage,
)
from modeling_internimage.modeling_internimage import (
    InternImageBatchNorm,
    InternImageDCNv3,
    InternImageDCNv4,
    InternImageDropPath,
    InternImageLayer,
)


ALL_CLASSES = [InternImageModel, InternImageForImageClassification, InternImageBackbone]


@pytest.fixture(params=["conv", "clip", "flash"])
def config(request, tiny_config, clip_config):
    if request.param == "clip":
        return clip_config
    return tiny_config(layer_scale_init_value=0.1, core_op="DCNv4" if request.param == "flash" else "DCNv3")


@pytest.fixture
def pixel_values():
    return torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def assert_same_outputs(first, second, **tolerance):
    assert first.keys() == second.keys()
    for key in first:
        torch.testing.assert_close(first[key], second[key], **tolerance)


@pytest.mark.parametrize("max_shard_size", ["10GB", "100KB"])
@pytest.mark.parametrize("model_class", ALL_CLASSES)
@torch.no_grad()
def test_save_and_load(model_class, max_shard_size, config, pixel_values, tmp_path):
    model = randomize(model_class(config))
    model.save_pretrained(tmp_path, max_shard_size=max_shard_size)
    assert (len(list(tmp_path.glob("*.safetensors"))) > 1) == (max_shard_size == "100KB")
    loaded, info = model_class.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values()), info
    assert not loaded.training
    assert_same_outputs(model(pixel_values), loaded(pixel_values), rtol=1e-4, atol=1e-6)


@torch.no_grad()
def test_checkpoints_feed_every_class(config, pixel_values, tmp_path):
    """One checkpoint serves classifier, model and backbone; what is missing is named and fresh."""
    classifier = randomize(InternImageForImageClassification(config))
    classifier.save_pretrained(tmp_path / "classifier")
    expected = classifier(pixel_values, output_hidden_states=True)

    model, info = InternImageModel.from_pretrained(tmp_path / "classifier", output_loading_info=True)
    assert not any(info.values())
    torch.testing.assert_close(model(pixel_values).last_hidden_state, expected.hidden_states[-1], rtol=0, atol=0)

    backbone, info = InternImageBackbone.from_pretrained(
        tmp_path / "classifier", output_loading_info=True, out_features=["stem", "stage3"]
    )
    assert not any(info.values()), info
    feature_maps = backbone(pixel_values).feature_maps
    torch.testing.assert_close(feature_maps, (expected.hidden_states[0], expected.hidden_states[3]), rtol=0, atol=0)

    model.save_pretrained(tmp_path / "model")
    loaded, info = InternImageForImageClassification.from_pretrained(tmp_path / "model", output_loading_info=True)
    assert set(info["missing_keys"]) == {"classifier.weight", "classifier.bias"}
    torch.testing.assert_close(
        loaded.internimage(pixel_values).pooler_output, model(pixel_values).pooler_output, rtol=1e-4, atol=1e-6
    )


def test_missing_and_unexpected_keys_are_named(config, tmp_path, caplog):
    InternImageModel(config).save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    weights["encoder.stages.0.surplus"] = weights.pop("encoder.stages.0.layers.0.mlp.fc1.weight")
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    logging.getLogger("transformers").propagate = True
    InternImageModel.from_pretrained(tmp_path)
    logging.getLogger("transformers").propagate = False
    assert "encoder.stages.0.surplus" in caplog.text and "encoder.stages.0.layers.0.mlp.fc1.weight" in caplog.text


@pytest.mark.parametrize("core_op", ["DCNv3", "DCNv4"])
def test_checkpoint_with_the_other_core_op_is_refused(core_op, tiny_config, tmp_path):
    """Not loaded in part, with fresh weights for the rest."""
    own = InternImageModel(tiny_config(core_op=core_op))
    own.save_pretrained(tmp_path)
    other = tiny_config(core_op="DCNv4" if core_op == "DCNv3" else "DCNv3")
    message = rf"has `core_op='{other.core_op}'`, .*only in the checkpoint: .*dcn.{{}}_proj.weight.* its own config"
    message = message.format("input" if core_op == "DCNv3" else "value")
    for model_class in ALL_CLASSES:
        with pytest.raises(ValueError, match=message):
            model_class.from_pretrained(tmp_path, config=other)
        assert InternImageModel.from_pretrained(tmp_path).config.core_op == core_op


def test_packed_projection_has_to_be_converted(tiny_config, tmp_path):
    """Weights of an original FlashInternImage: `from_pretrained` renames, but does not split."""
    InternImageModel(tiny_config(core_op="DCNv4")).save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    weights["levels.0.blocks.0.dcn.offset_mask.weight"] = weights.pop("encoder.stages.0.layers.0.dcn.mask_proj.weight")
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match="original's FlashInternImage .*offset_mask.weight.* Convert it with"):
        InternImageModel.from_pretrained(tmp_path)


def test_other_number_of_labels(tiny_config, pixel_values, tmp_path):
    model = randomize(InternImageForImageClassification(tiny_config(num_labels=10)))
    model.save_pretrained(tmp_path)
    with pytest.raises(RuntimeError, match="classifier|ignore_mismatched_sizes"):
        InternImageForImageClassification.from_pretrained(tmp_path, num_labels=3)
    names = {0: "cat", 1: "dog", 2: "owl"}
    loaded = InternImageForImageClassification.from_pretrained(tmp_path, id2label=names, ignore_mismatched_sizes=True)
    assert loaded.config.id2label == names and loaded(pixel_values).logits.shape == (3, 3)
    torch.testing.assert_close(
        loaded.internimage(pixel_values).pooler_output, model.internimage(pixel_values).pooler_output
    )
    no_head = InternImageForImageClassification(tiny_config(num_labels=0)).eval()
    assert no_head(pixel_values).logits.shape == (3, 192)


@pytest.mark.parametrize("model_class", ALL_CLASSES)
@torch.no_grad()
def test_outputs(model_class, config, pixel_values):
    """Tuple and dict outputs, hidden states by argument and by configuration."""
    model = randomize(model_class(config))
    outputs = model(pixel_values)
    assert outputs.hidden_states is None
    outputs = model(pixel_values, output_hidden_states=True)
    sizes = [(16, 16), (16, 16), (32, 8), (64, 4), (128, 2)]
    assert [tuple(states.shape) for states in outputs.hidden_states] == [(3, c, s, s) for c, s in sizes]
    as_tuple = model(pixel_values, output_hidden_states=True, return_dict=False)
    torch.testing.assert_close(as_tuple, outputs.to_tuple(), rtol=0, atol=0)
    model.config.output_hidden_states = True
    assert len(model(pixel_values).hidden_states) == 5 == model.config.num_hidden_layers + 1
    assert model(pixel_values, output_hidden_states=False).hidden_states is None
    model.config.return_dict = False
    assert isinstance(model(pixel_values), tuple)


def test_hidden_states_have_gradients(config, pixel_values):
    model = randomize(InternImageForImageClassification(config)).train()
    outputs = model(pixel_values, output_hidden_states=True)
    for states in outputs.hidden_states:
        states.retain_grad()
    outputs.logits.sum().backward()
    assert all(states.grad.abs().sum() > 0 for states in outputs.hidden_states)


def test_without_pooler(config, pixel_values):
    model = InternImageModel(config, add_pooling_layer=False).eval()
    assert model(pixel_values).pooler_output is None
    assert not any("pooler" in name for name in model.state_dict())


@torch.no_grad()
def test_batched_equals_single_and_repeated(config, pixel_values):
    model = randomize(InternImageForImageClassification(config))
    batched = model(pixel_values).logits
    assert torch.equal(batched, model(pixel_values).logits)
    single = torch.cat([model(image[None]).logits for image in pixel_values])
    torch.testing.assert_close(batched, single, rtol=1e-5, atol=1e-5)
    assert model(pixel_values[:0]).logits.shape == (0, 2)


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_gradient_checkpointing(use_reentrant, config, pixel_values):
    gradients = {}
    for checkpointing in (False, True):
        config.drop_path_rate = 0.5
        model = randomize(InternImageForImageClassification(config)).train()
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
            layers = [module for module in model.modules() if isinstance(module, InternImageLayer)]
            assert all(layer.gradient_checkpointing for layer in layers)
        torch.manual_seed(0)
        model(pixel_values, labels=torch.tensor([0, 1, 1])).loss.backward()
        gradients[checkpointing] = {name: parameter.grad for name, parameter in model.named_parameters()}
    assert all(gradient is not None for gradient in gradients[True].values())
    assert_same_outputs(gradients[True], gradients[False])


def test_stochastic_depth(tiny_config):
    """The rate of every layer, and what a dropped branch is: all of a sample or nothing of it."""
    for kind, expected in {"linear": [0.0, 0.1, 0.2, 0.3, 0.4], "uniform": [0.4] * 5}.items():
        model = InternImageModel(tiny_config(drop_path_rate=0.4, drop_path_type=kind))
        rates = [module.drop_path.drop_prob for module in model.modules() if isinstance(module, InternImageLayer)]
        assert rates == pytest.approx(expected)
    torch.manual_seed(0)
    drop_path, ones = InternImageDropPath(0.25), torch.ones(4000, 2, 2, 3)
    dropped = drop_path(ones)
    per_sample = dropped.flatten(1)
    assert torch.equal(per_sample.amin(1), per_sample.amax(1))
    assert sorted(set(per_sample[:, 0].tolist())) == pytest.approx([0.0, 1 / 0.75])
    assert per_sample.mean().item() == pytest.approx(1.0, abs=0.05)
    assert torch.equal(drop_path.eval()(ones), ones)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@torch.no_grad()
def test_dtype(dtype, config, pixel_values, tmp_path):
    randomize(InternImageForImageClassification(config)).save_pretrained(tmp_path)
    model = InternImageForImageClassification.from_pretrained(tmp_path, dtype=dtype)
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    outputs = model(pixel_values, output_hidden_states=True)  # float32 images: converted at the stem
    assert outputs.logits.dtype == dtype and {states.dtype for states in outputs.hidden_states} == {dtype}


def test_autocast(config, pixel_values):
    model = randomize(InternImageForImageClassification(config)).train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs = model(pixel_values, labels=torch.tensor([0, 1, 1]))
    outputs.loss.backward()
    assert all(parameter.grad.dtype == torch.float32 for parameter in model.parameters())
    exact = model(pixel_values).logits
    assert (outputs.logits.float() - exact).abs().max() < 0.05 * exact.abs().max()


@torch.no_grad()
def test_disk_offload(config, pixel_values, tmp_path):
    """Half of the model stays on disk and is read when its turn comes."""
    pytest.importorskip("accelerate")
    model = randomize(InternImageForImageClassification(config))
    model.save_pretrained(tmp_path)
    parts = ["internimage.embeddings", "internimage.encoder.stages.0", "internimage.encoder.stages.1"]
    rest = ["internimage.encoder.stages.2", "internimage.encoder.stages.3", "internimage.pooler", "classifier"]
    loaded = InternImageForImageClassification.from_pretrained(
        tmp_path,
        device_map=dict.fromkeys(parts, "cpu") | dict.fromkeys(rest, "disk"),
        offload_folder=tmp_path / "offload",
    )
    assert loaded.classifier.weight.device.type == "meta"
    assert_same_outputs(loaded(pixel_values), model(pixel_values), rtol=1e-4, atol=1e-6)


def test_meta_device():
    """InternImage-G, three billion parameters, without their memory."""
    start = time.perf_counter()
    with torch.device("meta"):
        model = InternImageForImageClassification(
            InternImageConfig(
                embed_dim=512, depths=[2, 2, 48, 4], num_groups=[16, 32, 64, 128], post_norm=True,
                depthwise_kernel_size=5, level2_post_norm_block_ids=[5, 11, 17, 23, 29, 35, 41, 47],
                center_feature_scale=True, use_clip_projector=True, num_labels=1000,
            )
        )  # fmt: skip
    assert model.num_parameters() == 3_076_373_352
    assert time.perf_counter() - start < 10


@pytest.mark.parametrize(
    "kind, training",
    [
        ("clip", True),
        pytest.param("clip", False, marks=pytest.mark.slow),
        pytest.param("DCNv3", True, marks=pytest.mark.slow),
        pytest.param("DCNv4", True, marks=pytest.mark.slow),
    ],
)
def test_compile(kind, training, tiny_config, clip_config, pixel_values):
    """One graph, and none again for the next call of the same shape. (Inductor itself is PyTorch's to test.)"""
    torch.compiler.reset()
    config = clip_config if kind == "clip" else tiny_config(layer_scale_init_value=0.1, core_op=kind)
    config.problem_type = "single_label_classification"
    model = randomize(InternImageForImageClassification(config)).train(training)
    copied = copy.deepcopy(model)
    compiled = torch.compile(copied, fullgraph=True, backend="aot_eager")
    labels = torch.tensor([0, 1, 1])
    expected = model(pixel_values, labels=labels)
    actual = compiled(pixel_values, labels=labels)
    assert_same_outputs(actual, expected)
    with torch.compiler.set_stance("fail_on_recompile"):
        compiled(pixel_values * 2, labels=labels)
    if training:
        expected.loss.backward()
        compiled.zero_grad()
        copied.load_state_dict(model.state_dict())
        compiled(pixel_values, labels=labels).loss.backward()
        for parameter, compiled_parameter in zip(model.parameters(), compiled.parameters()):
            torch.testing.assert_close(compiled_parameter.grad, parameter.grad, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
@torch.no_grad()
def test_compile_inductor(tiny_config, pixel_values):
    model = randomize(InternImageModel(tiny_config(depths=[1, 1], num_groups=[1, 2])))
    compiled = torch.compile(model, fullgraph=True)
    torch.testing.assert_close(compiled(pixel_values)[0], model(pixel_values)[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "model_class", [InternImageForImageClassification, pytest.param(InternImageBackbone, marks=pytest.mark.slow)]
)
@torch.no_grad()
def test_export_with_dynamic_batch(model_class, clip_config, pixel_values):
    model = randomize(model_class(clip_config))
    program = torch.export.export(
        model, (), {"pixel_values": pixel_values}, dynamic_shapes={"pixel_values": {0: torch.export.Dim("batch")}}
    )
    for batch_size in (1, 5):
        images = torch.randn(batch_size, 3, 64, 64)
        torch.testing.assert_close(program.module()(pixel_values=images)[0], model(images)[0])


@pytest.mark.parametrize("gradients", [False, True])
def test_jit_trace(gradients, clip_config, pixel_values):
    """Its check runs the model again without gradients: the graph must not depend on them."""
    model = randomize(InternImageModel(clip_config)).eval()
    with torch.set_grad_enabled(gradients):
        traced = torch.jit.trace(model, pixel_values, strict=False)
        expected = model(pixel_values).last_hidden_state
        torch.testing.assert_close(traced(pixel_values)["last_hidden_state"], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@torch.no_grad()
def test_compile_with_dynamic_sizes():
    """One graph for every batch size and image size."""
    model = randomize(InternImageModel(InternImageConfig(embed_dim=16, depths=[1, 1], num_groups=[1, 2])))
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True, dynamic=True)
    for shape in ((2, 3, 64, 96), (3, 3, 96, 64)):
        images = torch.randn(shape)
        torch.testing.assert_close(compiled(images).pooler_output, model(images).pooler_output)


def test_second_derivatives_in_evaluation(tiny_config, pixel_values):
    """A gradient penalty."""
    model = randomize(InternImageModel(tiny_config())).eval()
    (gradient,) = torch.autograd.grad(
        model(pixel_values.requires_grad_()).pooler_output.sum(), pixel_values, create_graph=True
    )
    gradient.norm().backward()
    offsets = model.encoder.stages[0].layers[0].dcn.offset_proj
    assert offsets.weight.grad.isfinite().all() and offsets.weight.grad.any()


def test_gradients_per_image(tiny_config):
    """`vmap` of `grad` over images, through all of the model."""
    model = randomize(InternImageForImageClassification(tiny_config())).double().eval()
    parameters = {name: parameter.detach() for name, parameter in model.named_parameters()}
    images = torch.randn(2, 3, 32, 32, dtype=torch.float64)

    def score(parameters, image):
        return torch.func.functional_call(model, parameters, (image[None],)).logits.square().sum()

    together = torch.func.vmap(torch.func.grad(score), in_dims=(None, 0))(parameters, images)
    for idx, image in enumerate(images):
        model.zero_grad()
        model(image[None]).logits.square().sum().backward()
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(together[name][idx], parameter.grad)


def test_layer_alone_starts_on_the_regular_grid(tiny_config):
    layer = InternImageDCNv3(tiny_config(center_feature_scale=True), channels=16, num_groups=2)
    offset, mask, center_scale = layer.sampling_parameters(torch.randn(1, 4, 5, 16))
    assert not (offset.any() or mask.any() or center_scale.any())
    assert not InternImageDCNv4(tiny_config(core_op="DCNv4"), 16, 2)(torch.randn(1, 4, 5, 16)).any()


def test_backbone_that_the_original_could_not_build(tiny_config, caplog):
    """FlashInternImage-T, loaded from its classifier: it works, and how its detectors were built is said once."""
    modeling_internimage.logger.warning_once.cache_clear()
    logging.getLogger("transformers").propagate = True
    InternImageBackbone(tiny_config(core_op="DCNv4", layer_scale_init_value=1.0))
    assert not caplog.text
    InternImageBackbone(tiny_config(core_op="DCNv4"))
    logging.getLogger("transformers").propagate = False
    assert "set `layer_scale_init_value=1.0`" in caplog.text


def test_lora(config, pixel_values):
    peft = pytest.importorskip("peft")
    model, pixel_values = randomize(InternImageForImageClassification(config)).double(), pixel_values.double()
    targets = ["value_proj" if config.core_op == "DCNv4" else "input_proj"]
    targets += ["output_proj", "offset_proj", "mask_proj", "fc1", "fc2"]
    lora = peft.get_peft_model(
        model, peft.LoraConfig(r=2, target_modules=targets, modules_to_save=["classifier"], init_lora_weights=False)
    )
    lora.train()
    lora(pixel_values=pixel_values, labels=torch.tensor([0, 1, 1])).loss.backward()
    trained = {name for name, parameter in lora.named_parameters() if parameter.requires_grad}
    assert all("lora" in name or "classifier" in name for name in trained)
    for target in targets:
        assert sum(f".{target}.lora_A" in name for name in trained) == sum(model.config.depths)
    gradients = {name: p.grad for name, p in lora.named_parameters() if p.requires_grad}
    assert all(gradient is not None and gradient.abs().sum() > 0 for gradient in gradients.values())
    merged = copy.deepcopy(lora).merge_and_unload().eval()
    torch.testing.assert_close(merged(pixel_values).logits, lora.eval()(pixel_values).logits)


@pytest.mark.parametrize("saved", [["classifier"], ["classifier", "batch_norm"]], ids="-".join)
def test_trained_adapter_reloads_the_same(saved, config, pixel_values, tmp_path):
    """What is not in the adapter stays as it was, also running statistics, in a loop without the Trainer."""
    peft = pytest.importorskip("peft")
    base = randomize(InternImageForImageClassification(config))
    settings = peft.LoraConfig(r=2, target_modules="all-linear", modules_to_save=saved)
    lora = peft.get_peft_model(copy.deepcopy(base), settings).train()
    optimizer = torch.optim.AdamW([p for p in lora.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(3):
        lora(pixel_values=pixel_values, labels=torch.tensor([0, 1, 1])).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    lora.save_pretrained(tmp_path)
    again = peft.PeftModel.from_pretrained(copy.deepcopy(base), tmp_path).eval()
    expected = lora.eval()(pixel_values=pixel_values).logits
    torch.testing.assert_close(again(pixel_values=pixel_values).logits, expected, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(expected, base.eval()(pixel_values=pixel_values).logits, atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_frozen_batch_norm_is_fixed(dtype):
    """In training too, with gradients of what is before it; trained, it is PyTorch's."""
    batch_norm = InternImageBatchNorm(4).train()
    plain = torch.nn.BatchNorm2d(4).train()
    for module in (batch_norm, plain):
        module.running_mean.copy_(torch.arange(4.0))
        module.running_var.fill_(4.0)
    hidden_states = torch.randn(2, 4, 3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float32)
    torch.testing.assert_close(batch_norm(hidden_states), plain(hidden_states), rtol=0, atol=0)
    assert all(torch.equal(tensor, plain.state_dict()[key]) for key, tensor in batch_norm.state_dict().items())

    before = {key: tensor.clone() for key, tensor in batch_norm.state_dict().items()}
    for parameter in batch_norm.requires_grad_(False).parameters():
        parameter.data = parameter.data.to(dtype)
    hidden_states = hidden_states.to(dtype).requires_grad_()
    output = batch_norm(hidden_states)
    expected = plain.load_state_dict(before) and plain.eval()(hidden_states.float())
    torch.testing.assert_close(output.float(), expected, rtol=2**-7, atol=1e-6)
    output.sum().backward()
    assert hidden_states.grad.abs().min() > 0
    assert all(torch.equal(tensor.float(), before[key].float()) for key, tensor in batch_norm.state_dict().items())
    assert batch_norm.num_batches_tracked == 1


def test_initialisation(config):
    """As the original's, for every parameter: golden/README section 5."""
    config.layer_norm_eps, config.embed_dim = 1e-6, 64
    with torch.device("meta"):
        model = InternImageForImageClassification(config)
    model = model.to_empty(device="cpu")
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.fill_(math.nan) if tensor.is_floating_point() else tensor.fill_(7)
    model.init_weights()
    if config.core_op == "DCNv4":
        assert not model.internimage.encoder.stages[0].layers[0].dcn(torch.randn(1, 4, 5, 64)).any()
    for name, tensor in model.state_dict().items():
        parent = name.rsplit(".", 2)[-2]
        owner = model.get_submodule(name.rsplit(".", 1)[0])
        if name.endswith("num_batches_tracked"):
            assert tensor == 0
        elif "layer_scale" in name:
            assert (tensor == 0.1).all(), name
        elif any(
            part in name for part in ("offset_proj", "mask_proj", "center_feature_scale_proj", "q_bias", "k_bias")
        ):
            assert (tensor == 0).all(), name
        elif isinstance(owner, (torch.nn.LayerNorm, torch.nn.BatchNorm2d)):
            assert (tensor == float(name.endswith(("weight", "running_var")))).all(), name
        elif isinstance(owner, torch.nn.Linear) and name.endswith("bias") or name.endswith("v_bias"):
            assert (tensor == 0).all(), name
        elif isinstance(owner, torch.nn.Conv2d):
            fan_in = owner.weight[0].numel()
            assert 0.5 * fan_in**-0.5 < tensor.abs().max() <= fan_in**-0.5, name
        elif parent in ("input_proj", "value_proj", "output_proj"):
            bound = math.sqrt(6 / sum(tensor.shape))
            assert 0.9 * bound < tensor.abs().max() <= bound, name
        else:
            assert isinstance(owner, torch.nn.Linear) and tensor.std().item() == pytest.approx(0.02, rel=0.15), name


@pytest.mark.parametrize(
    "problem_type, num_labels, labels",
    [
        ("single_label_classification", 3, torch.tensor([0, 2, -100])),
        ("multi_label_classification", 3, torch.tensor([[1.0, 0, 1], [0, 0, 0], [1, 1, 1]])),
        ("regression", 1, torch.tensor([0.1, -2.0, 3.0])),
    ],
)
@pytest.mark.parametrize("inferred", [False, True])
def test_problem_types(problem_type, num_labels, labels, inferred, tiny_config, pixel_values):
    config = tiny_config(num_labels=num_labels, problem_type=None if inferred else problem_type)
    model = randomize(InternImageForImageClassification(config))
    outputs = model(pixel_values, labels=labels)
    expected = {
        "single_label_classification": lambda: torch.nn.functional.cross_entropy(outputs.logits, labels),
        "multi_label_classification": lambda: torch.nn.functional.binary_cross_entropy_with_logits(
            outputs.logits, labels
        ),
        "regression": lambda: torch.nn.functional.mse_loss(outputs.logits[:, 0], labels),
    }[problem_type]()
    torch.testing.assert_close(outputs.loss, expected)


HEADS = {SegformerHeadForSemanticSegmentation: SegformerHeadConfig}
if is_torchvision_available():
    HEADS[MaskRCNNForObjectDetection] = MaskRCNNConfig


@pytest.mark.parametrize(
    "pixel_values, message",
    [
        (None, "must be a `torch.Tensor`, got a `NoneType`"),
        (torch.zeros(1, 3, 64, 64).tolist(), "must be a `torch.Tensor`, got a `list`. An image processor called with"),
        ([torch.zeros(3, 64, 64)], "must be a `torch.Tensor`, got a `list`"),
        (torch.zeros(1, 3, 64, 64).numpy(), "must be a `torch.Tensor`, got a `ndarray`"),
        (torch.zeros(3, 64, 64), r"must have shape \(batch_size, 3, height, width\), got \(3, 64, 64\)"),
        (torch.zeros(1, 1, 3, 64, 64), r"got \(1, 1, 3, 64, 64\)"),
        (torch.zeros(1, 1, 64, 64), r"got \(1, 1, 64, 64\)"),
        (torch.zeros(1, 64, 64, 3), r"got \(1, 64, 64, 3\)"),
        (torch.zeros(1, 3, 64, 64, dtype=torch.uint8), "must be floating point, got torch.uint8"),
        (torch.zeros(1, 3, 64, 64, dtype=torch.bool), "must be floating point, got torch.bool"),
        (torch.zeros(1, 3, 0, 64), "0x64 pixels are smaller than the stride of the network, 32"),
        (torch.zeros(1, 3, 31, 64), "31x64 pixels are smaller than the stride of the network, 32"),
    ],
)
@pytest.mark.parametrize("model_class", [*ALL_CLASSES, *HEADS])
def test_bad_pixel_values(model_class, pixel_values, message, tiny_config):
    config = tiny_config(out_features=["stage1", "stage2", "stage3", "stage4"])
    if model_class in HEADS:
        config = HEADS[model_class](backbone_config=config, hidden_size=8)
    with pytest.raises(ValueError, match=message):
        model_class(config)(pixel_values=pixel_values)


@pytest.mark.parametrize("head", [None, *HEADS])
@torch.no_grad()
def test_no_images(head, tiny_config, clip_config):
    """Of an empty batch every output is empty."""
    if head is None:
        models = [model_class(config) for model_class in ALL_CLASSES for config in (tiny_config(), clip_config)]
    else:
        models = [
            head(HEADS[head](backbone_config=tiny_config(out_features=["stage1", "stage2", "stage3", "stage4"])))
        ]
    for model in models:
        outputs = model.eval()(torch.zeros(0, 3, 64, 64), return_dict=True)
        assert all(len(output) == 0 for output in outputs.values() if isinstance(output, torch.Tensor))


@pytest.mark.parametrize("size, works", [(64, True), (96, True), (63, True), (49, True), (48, False), (65, False)])
@torch.no_grad()
def test_sizes_of_the_attention_pooler(size, works, clip_config):
    """Exactly those for which the original's addition of the last two stages is defined."""
    model = InternImageModel(clip_config).eval()
    if works:
        assert model(torch.zeros(1, 3, 64, size)).pooler_output.shape == (1, 768)
    else:
        nearest = (32, 64) if size == 48 else (64, 96)
        with pytest.raises(ValueError, match=f"width of {size} pixels.*nearest are {nearest[0]} and {nearest[1]}"):
            model(torch.zeros(1, 3, 64, size))
    backbone = InternImageBackbone(clip_config).eval()
    assert backbone(torch.zeros(1, 3, 64, size)).feature_maps[0].shape == (1, 128, 2, -(-size // 32))


@pytest.mark.parametrize(
    "labels, message",
    [
        ([0, 1, 2], r"must be in \[0, 2\).*got 2"),
        ([0, -1, 1], r"must be in \[0, 2\).*got -1"),
        ([[0.0, 1.0], [float("nan"), 0.0], [0.0, 0.0]], "contain NaN"),
    ],
)
def test_bad_labels(labels, message, tiny_config, pixel_values):
    with pytest.raises(ValueError, match=message):
        InternImageForImageClassification(tiny_config())(pixel_values, labels=torch.tensor(labels))


@pytest.mark.parametrize("model_class", ALL_CLASSES)
def test_other_model_type(model_class, tmp_path):
    with pytest.raises(ValueError, match="must be an `InternImageConfig`, got a `ResNetConfig`"):
        model_class(ResNetConfig())
    ResNetConfig().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="`model_type='resnet'`, not 'internimage'"):
        model_class.from_pretrained(tmp_path)


@pytest.mark.parametrize("damage", ["truncated", "garbage"])
def test_corrupt_checkpoint(damage, tiny_config, tmp_path):
    """A damaged file is an error, never a model with some weights."""
    InternImageModel(tiny_config()).save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    data = file.read_bytes()
    file.write_bytes(data[: len(data) // 2] if damage == "truncated" else b"\x00" * len(data))
    with pytest.raises(Exception, match="(?i)safetensor|header|incomplete|deserializ"):
        InternImageModel.from_pretrained(tmp_path)


def test_module_names_are_stable(clip_config, tiny_config):
    """Parameter names are the checkpoint format: changing one breaks what users saved."""
    names = set()
    for core_op in ("DCNv3", "DCNv4"):
        config = tiny_config(layer_scale_init_value=1.0, core_op=core_op, depthwise_kernel_size=3)
        names |= set(InternImageForImageClassification(config).state_dict())
    clip_config.use_metadata_head = True
    names |= set(InternImageForImageClassification(clip_config).state_dict())
    clip_config.post_norm, clip_config.res_post_norm = False, True
    names |= set(InternImageForImageClassification(clip_config).state_dict())
    pieces = {".".join("*" if part.isdigit() else part for part in name.split(".")) for name in names}
    expected = json.loads((Path(__file__).parent / "parameter_names.json").read_text())
    assert sorted(pieces) == expected


def test_bfloat16_parameters_with_float32_statistics(tiny_config):
    """What DeepSpeed and FSDP make of a model."""
    model = randomize(InternImageForImageClassification(tiny_config())).train()
    pixel_values = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    expected = model(pixel_values).logits
    batch_norm = copy.deepcopy(model.internimage.pooler.batch_norm)
    for parameter in model.parameters():
        parameter.data = parameter.data.bfloat16()
    logits = model(pixel_values.bfloat16()).logits
    torch.testing.assert_close(logits.float(), expected, rtol=0.1, atol=0.1)
    again = model.internimage.pooler.batch_norm
    assert again.running_mean.dtype == torch.float32 and again.num_batches_tracked == 2
    assert batch_norm.num_batches_tracked == 1 and not torch.equal(again.running_mean, batch_norm.running_mean)


@torch.no_grad()
@pytest.mark.parametrize(
    "module, hook",
    [
        ("fc1", "register_forward_hook"),
        ("activation", "register_forward_pre_hook"),
        ("activation", "register_forward_hook"),
    ],
)
def test_activation_in_place_is_not_observed(module, hook, tiny_config):
    """Without gradients the feed-forward network works in place, but not under the eyes of a hook."""
    mlp = randomize(InternImageForImageClassification(tiny_config())).base_model.encoder.stages[0].layers[0].mlp
    inputs, seen = torch.randn(1, 4, 4, 16), []
    hidden = mlp.fc1(inputs)
    activated = torch.nn.functional.gelu(hidden)
    torch.testing.assert_close(mlp(inputs), mlp.fc2(activated))
    getattr(getattr(mlp, module), hook)(
        lambda module, args, output=None: seen.append(args[0] if output is None else output)
    )
    torch.testing.assert_close(mlp(inputs), mlp.fc2(activated))
    observed = activated if (module, hook) == ("activation", "register_forward_hook") else hidden
    torch.testing.assert_close(seen[0], observed)
