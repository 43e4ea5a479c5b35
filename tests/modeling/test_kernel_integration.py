# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""The way from a model to a DCNv3 kernel and back, with a stand-in kernel that calls the definition and counts."""

import copy
import json
import logging
import socket
import subprocess
import sys
import types
import uuid
from pathlib import Path

import pytest
import torch
from testing_utils import REPOSITORY, randomize
from torch import nn
from transformers import AutoModel, ResNetConfig, ResNetModel, UperNetConfig, UperNetForSemanticSegmentation

from modeling_internimage import (
    DCNv3,
    InternImageBackbone,
    InternImageForImageClassification,
    InternImageModel,
    kernel_integration,
)
from modeling_internimage.kernel_integration import (
    KERNEL_REPOSITORY,
    KERNEL_REPOSITORY_VARIABLE,
    PYTORCH_DEFINITION,
    DCNv3KernelRepository,
    KernelNotAvailableError,
    dcnv3_implementations,
    register_dcnv3_kernel,
    use_dcnv3_kernel,
)


kernels = pytest.importorskip("kernels")
needs_transformers_kernels = pytest.mark.skipif(
    not kernel_integration.is_kernels_available(), reason="this transformers refuses this version of `kernels`"
)

NUM_LAYERS = 5  # of `tiny_config`
LAYERS = """
import torch
from modeling_internimage.modeling_internimage import DCNv3 as Definition

calls = []

class DCNv3(torch.nn.Module):
    has_backward = True
    can_torch_compile = True

    def forward(self, value, offset, mask, center_scale, kernel_size, stride, padding, dilation, num_groups,
                offset_scale, remove_center, softmax):
        calls.append(self.training)
        return Definition.forward(self, value, offset, mask, center_scale, kernel_size, stride, padding, dilation,
                                  num_groups, offset_scale, remove_center, softmax)
"""


class StandIn:
    """A kernel repository in a folder, in the one form that `kernels` accepts for any build of torch."""

    def __init__(self, folder, layers: str = LAYERS):
        self.folder, self.id = folder, f"_dcnv3_{uuid.uuid4().hex}"
        self.build = folder / "build" / "torch-universal"
        self.build.mkdir(parents=True)
        metadata = {"id": self.id, "name": "dcnv3", "version": 1, "license": "Apache-2.0", "python-depends": []}
        (self.build / "metadata.json").write_text(json.dumps(metadata | {"backend": {"type": "cpu"}}))
        (self.build / "__init__.py").write_text("from . import layers\n")
        (self.build / "layers.py").write_text(layers)

    @property
    def calls(self) -> list[bool]:
        return sys.modules[f"{self.id}.layers"].calls


@pytest.fixture(autouse=True)
def fresh_state(monkeypatch):
    for variable in ("LOCAL_KERNELS", KERNEL_REPOSITORY_VARIABLE, "USE_HUB_KERNELS"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(kernel_integration._MappedKernelRepository, "_failures", {})
    kernel_integration.logger.warning_once.cache_clear()


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    kernel = StandIn(tmp_path / "kernel")
    monkeypatch.setenv("LOCAL_KERNELS", f"{KERNEL_REPOSITORY}={kernel.folder}")
    return kernel


@pytest.fixture
def pixel_values():
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def upernet(config):
    config.out_features = ["stage1", "stage2", "stage3", "stage4"]
    return UperNetForSemanticSegmentation(
        UperNetConfig(
            backbone_config=config, hidden_size=16, auxiliary_in_channels=64, auxiliary_channels=8, num_labels=3
        )
    )


def warnings_of(caplog) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == kernel_integration.logger.name]


def output_and_gradients(model, pixel_values):
    model.zero_grad()
    torch.manual_seed(0)
    output = model(pixel_values)[0]
    output = output[0] if isinstance(output, tuple) else output
    output.square().mean().backward()
    return output.detach(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("build", [InternImageModel, InternImageForImageClassification, InternImageBackbone, upernet])
def test_same_outputs_and_gradients(build, training, stand_in, tiny_config, pixel_values):
    model = randomize(build(tiny_config(center_feature_scale=True))).train(training)
    expected = output_and_gradients(model, pixel_values)
    assert set(dcnv3_implementations(model).values()) == {PYTORCH_DEFINITION}

    assert use_dcnv3_kernel(model, strict=True) is model
    assert model.training == training
    actual = output_and_gradients(model, pixel_values)
    assert stand_in.calls == [training] * NUM_LAYERS
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)
    implementations = dcnv3_implementations(model)
    assert implementations == dict.fromkeys(implementations, f"{KERNEL_REPOSITORY}@1 ({stand_in.build})")
    assert len(implementations) == NUM_LAYERS and all(
        isinstance(model.get_submodule(name), DCNv3) for name in implementations
    )

    model.train(not training)  # one kernel serves both, nothing has to be chosen again
    model(pixel_values)
    assert stand_in.calls == [training] * NUM_LAYERS + [not training] * NUM_LAYERS

    assert use_dcnv3_kernel(model, enabled=False) is model
    assert set(dcnv3_implementations(model).values()) == {PYTORCH_DEFINITION}
    model(pixel_values)
    assert len(stand_in.calls) == 2 * NUM_LAYERS


def test_one_layer_alone(stand_in):
    layer = use_dcnv3_kernel(DCNv3(), strict=True)
    assert dcnv3_implementations(layer) == {"": f"{KERNEL_REPOSITORY}@1 ({stand_in.build})"}


def test_class_from_published_source(stand_in):
    """`trust_remote_code` makes another class of the same file. That of the original shares no more than the name."""
    copied = type("DCNv3", (nn.Module,), {"forward": DCNv3.forward})
    original = type("DCNv3", (nn.Module,), {"forward": lambda self, input: input})
    model = nn.Sequential(copied(), original(), nn.Linear(1, 1))
    assert dcnv3_implementations(model) == {"0": PYTORCH_DEFINITION}
    assert dcnv3_implementations(use_dcnv3_kernel(model, strict=True)) != {"0": PYTORCH_DEFINITION}


def test_unmarked_class(stand_in, monkeypatch, tiny_config):
    """The decorator of transformers marks nothing where it refuses the installed `kernels`."""
    for name in ("kernel_layer_name", "kernel_condition"):
        monkeypatch.delattr(DCNv3, name)
    model = use_dcnv3_kernel(InternImageModel(tiny_config()), strict=True)
    assert PYTORCH_DEFINITION not in dcnv3_implementations(model).values()


def test_choice_of_repository(tmp_path, monkeypatch, tiny_config):
    """Argument before environment variable before constant; the version is part of the name; choosing again works."""
    first, second = StandIn(tmp_path / "first"), StandIn(tmp_path / "second")
    monkeypatch.setenv("LOCAL_KERNELS", f"org/first={first.folder}:org/second={second.folder}")
    model = InternImageModel(tiny_config())

    def implementation():
        (only,) = set(dcnv3_implementations(model).values())
        return only

    monkeypatch.setenv(KERNEL_REPOSITORY_VARIABLE, "org/first@3")
    for _ in range(2):
        use_dcnv3_kernel(model, strict=True)
        assert implementation() == f"org/first@3 ({first.build})"
    use_dcnv3_kernel(model, repository="org/second", strict=True)
    assert implementation() == f"org/second@1 ({second.build})"
    with pytest.raises(KernelNotAvailableError, match="org/third@main cannot be used"):
        use_dcnv3_kernel(model, repository="org/third@main", strict=True)
    assert implementation() == f"org/second@1 ({second.build})"  # a failure changes nothing


def test_arguments_of_get_kernel(monkeypatch):
    """What a Hub repository would be asked for; on the CPU, with a torch for CUDA, also its build for the CPU."""
    requests = []

    def get_kernel(*args, **kwargs):
        requests.append((args, kwargs))
        raise FileNotFoundError

    monkeypatch.setattr(kernels, "get_kernel", get_kernel)
    for repository in (None, "org/name@7", "org/name@main"):
        with pytest.raises(KernelNotAvailableError):
            DCNv3KernelRepository(repository, repository is not None, device="cuda").load()
    with pytest.raises(KernelNotAvailableError):
        DCNv3KernelRepository("org/name", device="cpu").load()
    of_the_cpu = [(("org/name",), {"version": 1, "trust_remote_code": False})]
    if torch.version.cuda is not None:
        of_the_cpu.append((("org/name",), {"version": 1, "trust_remote_code": False, "backend": "cpu"}))
    assert requests == [
        (("kernels-community/dcnv3",), {"version": 1, "trust_remote_code": False}),
        (("org/name",), {"version": 7, "trust_remote_code": True}),
        (("org/name",), {"revision": "main", "trust_remote_code": True}),
        *of_the_cpu,
    ]


def test_hub_kernel_is_named_by_its_build(stand_in, monkeypatch):
    kernel = kernels.get_kernel(KERNEL_REPOSITORY, version=1)
    monkeypatch.delenv("LOCAL_KERNELS")
    monkeypatch.setattr(kernels, "get_kernel", lambda *args, **kwargs: kernel)
    layer = use_dcnv3_kernel(DCNv3(), repository="org/published@2", strict=True)
    assert dcnv3_implementations(layer) == {"": "org/published@2 (torch-universal)"}


def _raise(error, cause=None):
    def get_kernel(*args, **kwargs):
        error.__context__ = cause
        raise error

    return lambda tmp_path, monkeypatch: monkeypatch.setattr(kernels, "get_kernel", get_kernel)


def _layers(*replacements):
    def prepare(tmp_path, monkeypatch):
        source = LAYERS
        for old, new in replacements:
            assert old in source
            source = source.replace(old, new)
        kernel = StandIn(tmp_path / "kernel", source)
        monkeypatch.setenv("LOCAL_KERNELS", f"{KERNEL_REPOSITORY}={kernel.folder}")

    return prepare


def _environment(name, value):
    return lambda tmp_path, monkeypatch: monkeypatch.setenv(name, value)


def _not_published():
    error = kernel_integration.RepositoryNotFoundError.__new__(kernel_integration.RepositoryNotFoundError)
    error.args = ("404 Client Error.\n\nRepository Not Found",)
    return error


def _disabled(tmp_path, monkeypatch):
    StandIn(tmp_path / "kernel")
    monkeypatch.setenv("LOCAL_KERNELS", f"{KERNEL_REPOSITORY}={tmp_path / 'kernel'}")
    monkeypatch.setattr(sys.modules["kernels.layer.layer"], "_DISABLE_KERNEL_MAPPING", True)


REASONS = {
    "not installed": (
        lambda tmp_path, monkeypatch: monkeypatch.setitem(sys.modules, "kernels", None),
        r'`kernels` cannot be imported .*: `pip install "kernels>=0.17.2"`\.',
    ),
    "too old": (
        lambda tmp_path, monkeypatch: monkeypatch.setattr(kernels, "__version__", "0.9.0"),
        "`kernels` 0.9.0 is too old, upgrade it: `pip install",
    ),
    "switched off": (_environment("USE_HUB_KERNELS", "0"), "USE_HUB_KERNELS switches kernels off"),
    "disabled": (_disabled, "DISABLE_KERNEL_MAPPING"),
    "offline": (lambda *_: None, "HF_HUB_OFFLINE forbids to download it.*LOCAL_KERNELS='kernels-community/dcnv3="),
    "bad variable": (_environment(KERNEL_REPOSITORY_VARIABLE, "dcnv3"), f"{KERNEL_REPOSITORY_VARIABLE} must be"),
    "bad LOCAL_KERNELS": (_environment("LOCAL_KERNELS", "dcnv3"), "Invalid LOCAL_KERNELS entry: dcnv3"),
    "no folder there": (
        _environment("LOCAL_KERNELS", f"{KERNEL_REPOSITORY}=/no/such/folder"),
        "the folder /no/such/folder, which LOCAL_KERNELS names for it, does not exist",
    ),
    "no build in it": (
        _environment("LOCAL_KERNELS", f"{KERNEL_REPOSITORY}={Path(__file__).parent}"),
        "the folder .*modeling, which LOCAL_KERNELS names for it, has no build for torch [^ ]+ on ",
    ),
    "no build on the Hub": (
        _raise(FileNotFoundError("Cannot find a build variant for this system in x:\n\ntorch-cpu: no")),
        "it has no build for torch",
    ),
    "not published": (_raise(_not_published()), "no such repository.*may not be published yet"),
    "no network": (
        _raise(ValueError("could not verify publisher trust status"), socket.gaierror(-2, "Name not known")),
        None,
    ),
    "not trusted": (
        _raise(RuntimeError("Kernel repository 'a/b' is not from a trusted publisher. Set")),
        r"'kernels-community' as a trusted publisher; `use_dcnv3_kernel\(..., trust_remote_code=True\)`",
    ),
    "wrong GPU": (_raise(RuntimeError("not for sm_70\nsecond line")), r"failed \(RuntimeError: not for sm_70\)"),
    "broken": (_layers(("import torch\n", "import no_such_module\n")), "ModuleNotFoundError: No module named"),
    "no layer": (_layers(("class DCNv3(", "class Other(")), r"it has no `layers.DCNv3` with the arguments .*x\."),
    "other arguments": (_layers(("self, value, offset", "self, input, offset")), "with the arguments value"),
    "no backward": (_layers(("has_backward = True", "")), "does not declare `has_backward = True`"),
    "no compile": (_layers(("can_torch_compile = True", "")), "does not declare `can_torch_compile = True`"),
}  # fmt: skip


@pytest.mark.parametrize("case", REASONS)
def test_kernel_not_available(case, tiny_config, pixel_values, tmp_path, monkeypatch, caplog):
    """Strict: one sentence. Otherwise: the same as one warning, and the definition."""
    prepare, message = REASONS[case]
    if case == "no network":
        monkeypatch.setattr(kernel_integration.constants, "HF_HUB_OFFLINE", False)
        message = r"the Hub cannot be reached \(.*Name not known\)"
    model = randomize(InternImageModel(tiny_config()))
    expected = model(pixel_values).pooler_output
    prepare(tmp_path, monkeypatch)

    with pytest.raises(KernelNotAvailableError, match=message) as error_info:
        use_dcnv3_kernel(model, strict=True)
    sentence = str(error_info.value)
    assert sentence.startswith("The DCNv3 kernel ") and "\n" not in sentence and sentence.endswith(".")
    assert not warnings_of(caplog)

    assert use_dcnv3_kernel(model) is model
    assert warnings_of(caplog) == [
        f"{sentence} The model stays as it is; the PyTorch definition has the same results."
    ]
    assert set(dcnv3_implementations(model).values()) == {PYTORCH_DEFINITION}
    torch.testing.assert_close(model(pixel_values).pooler_output, expected, rtol=0, atol=0)


@needs_transformers_kernels
@pytest.mark.parametrize("case", [case for case in REASONS if case not in ("not installed", "disabled")])
def test_kernel_not_available_to_transformers(case, tiny_config, tmp_path, monkeypatch, caplog):
    """`use_kernels=True` warns once for all layers and modes, and never raises."""
    register_dcnv3_kernel()
    prepare, message = REASONS[case]
    model = InternImageModel(tiny_config())
    prepare(tmp_path, monkeypatch)
    loads = []
    load = DCNv3KernelRepository.load
    monkeypatch.setattr(DCNv3KernelRepository, "load", lambda self: loads.append(self) or load(self))
    model.set_use_kernels(True)
    model.eval(), model.train()
    (warning,) = warnings_of(caplog)
    assert "cannot be used" in warning and warning.endswith("the same results, more slowly.") and len(loads) == 1
    assert set(dcnv3_implementations(model).values()) == {PYTORCH_DEFINITION}


def test_other_devices(tiny_config, monkeypatch):
    model = InternImageModel(tiny_config())
    monkeypatch.setattr(model, "parameters", lambda: [types.SimpleNamespace(device=torch.device("mps"))])
    with pytest.raises(KernelNotAvailableError, match="it runs on cpu and cuda, the model is on mps"):
        use_dcnv3_kernel(model, strict=True)


@needs_transformers_kernels
def test_other_devices_with_transformers(caplog):
    register_dcnv3_kernel()
    layer = kernels.kernelize(
        DCNv3(), mode=kernels.Mode.INFERENCE, device="xpu", use_fallback=kernels.KernelizeFallback.ALL
    )
    assert set(dcnv3_implementations(layer).values()) == {PYTORCH_DEFINITION}
    (warning,) = warnings_of(caplog)
    assert "it runs on cpu and cuda, the model is on xpu" in warning


def test_models_that_the_kernel_cannot_run(tiny_config):
    model = InternImageModel(tiny_config(embed_dim=64, num_groups=[1, 1, 1, 1]))
    with pytest.raises(KernelNotAvailableError, match="its groups have up to 256 channels, those of the model 512"):
        use_dcnv3_kernel(model, strict=True)


def test_bad_arguments():
    with pytest.raises(ValueError, match="`model` must contain an InternImage: a `ResNetModel` without one"):
        use_dcnv3_kernel(ResNetModel(ResNetConfig(embedding_size=4, hidden_sizes=[4], depths=[1])))
    for repository in ("dcnv3", "", "a/b/c", "org/name@", REPOSITORY):
        with pytest.raises(ValueError, match="`repository` must be .* 'kernels-community/dcnv3@1', got"):
            use_dcnv3_kernel(DCNv3(), repository=repository)


@needs_transformers_kernels
def test_use_kernels(stand_in, tiny_config, pixel_values, tmp_path, caplog):
    """The way of transformers, on the CPU: `use_kernels=True`."""
    register_dcnv3_kernel()
    model = randomize(InternImageModel(tiny_config()))
    expected = model(pixel_values).pooler_output
    use_dcnv3_kernel(model, strict=True).save_pretrained(tmp_path / "model")

    for _ in range(2):
        loaded = AutoModel.from_pretrained(tmp_path / "model", use_kernels=True)
        assert loaded.use_kernels and PYTORCH_DEFINITION not in dcnv3_implementations(loaded).values()
        del stand_in.calls[:]
        torch.testing.assert_close(loaded(pixel_values).pooler_output, expected, rtol=1e-4, atol=1e-6)
        loaded.train()(pixel_values)
        assert stand_in.calls == [False] * NUM_LAYERS + [True] * NUM_LAYERS
    assert "use_kernels" not in loaded.config.to_diff_dict()

    use_dcnv3_kernel(loaded, enabled=False)
    loaded.eval()  # transformers would choose again here
    assert set(dcnv3_implementations(loaded).values()) == {PYTORCH_DEFINITION}
    plain = AutoModel.from_pretrained(tmp_path / "model")
    assert set(dcnv3_implementations(plain).values()) == {PYTORCH_DEFINITION}
    assert not warnings_of(caplog)


@needs_transformers_kernels
def test_own_choice_outlives_that_of_transformers(tmp_path, monkeypatch, tiny_config):
    register_dcnv3_kernel()
    default, other = StandIn(tmp_path / "default"), StandIn(tmp_path / "other")
    monkeypatch.setenv("LOCAL_KERNELS", f"{KERNEL_REPOSITORY}={default.folder}:org/other={other.folder}")
    model = InternImageModel(tiny_config())
    model.set_use_kernels(True)
    use_dcnv3_kernel(model, repository="org/other", strict=True)
    model.eval().train()
    assert set(dcnv3_implementations(model).values()) == {f"org/other@1 ({other.build})"}


def test_other_kernels_stay(stand_in, tiny_config):
    """Neither registering nor choosing touches what is mapped for other layers."""

    class OtherRepository:
        layer_name = "OtherLayer"

        def load(self):
            return type("OtherKernel", (nn.Module,), {"forward": lambda self, value: value + 1})

    @kernels.use_kernel_forward_from_hub("OtherLayer")
    class OtherLayer(nn.Module):
        def forward(self, value):
            return value

    model = nn.Sequential(OtherLayer(), InternImageModel(tiny_config()))
    mode = kernels.Mode.INFERENCE
    with kernels.use_kernel_mapping({"OtherLayer": {"cpu": OtherRepository()}}):
        register_dcnv3_kernel()
        kernels.kernelize(model, mode=mode, device="cpu")
        assert model[0](1) == 2
        if kernel_integration.is_kernels_available():
            assert PYTORCH_DEFINITION not in dcnv3_implementations(model).values()
    for enabled in (True, False):
        use_dcnv3_kernel(model, enabled, strict=True)
        assert model[0](1) == 2


def test_copies(stand_in, tiny_config, pixel_values, tmp_path):
    model = use_dcnv3_kernel(randomize(InternImageModel(tiny_config())), strict=True)
    expected = model(pixel_values).pooler_output

    copied = copy.deepcopy(model)
    assert dcnv3_implementations(copied) == dcnv3_implementations(model)
    for name in dcnv3_implementations(copied):
        assert copied.get_submodule(name).forward.__self__ is copied.get_submodule(name)
    del stand_in.calls[:]
    torch.testing.assert_close(copied(pixel_values).pooler_output, expected, rtol=0, atol=0)
    assert stand_in.calls == [False] * NUM_LAYERS

    torch.save(model, tmp_path / "model.pt")
    loaded = torch.load(tmp_path / "model.pt", weights_only=False)
    assert set(dcnv3_implementations(loaded).values()) == {PYTORCH_DEFINITION}
    torch.testing.assert_close(loaded(pixel_values).pooler_output, expected, rtol=1e-4, atol=1e-6)
    assert dcnv3_implementations(use_dcnv3_kernel(loaded, strict=True)) == dcnv3_implementations(model)
    assert model.state_dict().keys() == InternImageModel(tiny_config()).state_dict().keys()


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_gradient_checkpointing(use_reentrant, stand_in, tiny_config, pixel_values):
    model = randomize(InternImageForImageClassification(tiny_config())).double().train()
    pixel_values = pixel_values.double().requires_grad_()
    expected = output_and_gradients(model, pixel_values)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": use_reentrant})
    use_dcnv3_kernel(model, strict=True)
    torch.testing.assert_close(output_and_gradients(model, pixel_values)[1], expected[1])
    assert stand_in.calls == [True] * (2 * NUM_LAYERS)  # forward, and once more for the backward pass


@torch.no_grad()
def test_compile(stand_in, tiny_config, pixel_values):
    """Compiled before or after: what runs is what the report says."""
    model = randomize(InternImageModel(tiny_config()))
    expected = model(pixel_values).pooler_output
    torch.compiler.reset()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    for enabled in (False, True, False):
        use_dcnv3_kernel(compiled, enabled, strict=True)
        if enabled:
            del stand_in.calls[:]
        torch.testing.assert_close(compiled(pixel_values).pooler_output, expected)
        if enabled:
            assert stand_in.calls == [False] * NUM_LAYERS
    assert len(stand_in.calls) == NUM_LAYERS


def test_trainer(stand_in, tiny_config, tmp_path):
    pytest.importorskip("accelerate")
    from transformers import Trainer, TrainingArguments

    model = use_dcnv3_kernel(InternImageForImageClassification(tiny_config(num_labels=2)), strict=True)
    before = copy.deepcopy(model.state_dict())
    data = [{"pixel_values": torch.randn(3, 32, 32), "labels": index % 2} for index in range(2)]
    arguments = TrainingArguments(tmp_path, max_steps=1, use_cpu=True, report_to=[], disable_tqdm=True)
    assert torch.isfinite(torch.tensor(Trainer(model, arguments, train_dataset=data).train().training_loss))
    assert stand_in.calls == [True] * NUM_LAYERS
    assert any((before[name] != tensor).any() for name, tensor in model.state_dict().items())


def test_hooks(stand_in):
    """accelerate wraps `forward` of modules that it moves."""
    hooks = pytest.importorskip("accelerate.hooks")
    layer = use_dcnv3_kernel(DCNv3(), strict=True)
    expected = dcnv3_implementations(layer)
    assert dcnv3_implementations(hooks.add_hook_to_module(layer, hooks.ModelHook())) == expected


def test_without_kernels(tiny_config, tmp_path):
    """Neither importing the package nor asking for a kernel needs the library, and importing loads nothing."""
    InternImageModel(tiny_config()).save_pretrained(tmp_path)
    code = f"""
import sys
sys.modules["kernels"] = None
from modeling_internimage.kernel_integration import dcnv3_implementations, register_dcnv3_kernel, use_dcnv3_kernel
from transformers import AutoModel
register_dcnv3_kernel()
model = use_dcnv3_kernel(AutoModel.from_pretrained({str(tmp_path)!r}))
assert set(dcnv3_implementations(model).values()) == {{"PyTorch definition"}}
use_dcnv3_kernel(model, enabled=False)
try:
    use_dcnv3_kernel(model, strict=True)
except FileNotFoundError as error:
    assert "pip install" in str(error)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY)
    assert result.returncode == 0, result.stderr
    assert result.stderr.count("`kernels` cannot be imported") == 1


def test_registering_loads_nothing(monkeypatch):
    for name in ("get_kernel", "get_local_kernel"):
        monkeypatch.setattr(kernels, name, None)
    register_dcnv3_kernel()


def test_repository_equality(monkeypatch):
    """`kernels` keeps layers by repository: equal means the same kernel, whatever the environment says now."""
    default = DCNv3KernelRepository()
    assert default == DCNv3KernelRepository(f"{KERNEL_REPOSITORY}@1") == copy.deepcopy(default)
    assert hash(default) == hash(DCNv3KernelRepository(KERNEL_REPOSITORY))
    assert default != DCNv3KernelRepository("org/name") and default != DCNv3KernelRepository(trust_remote_code=True)
    assert str(default) == "`kernels-community/dcnv3@1`, layer `DCNv3`"
    before = hash(default)
    monkeypatch.setenv("LOCAL_KERNELS", "a/b=c")
    assert hash(default) != before


def test_log_is_quiet(stand_in, tiny_config, caplog):
    caplog.set_level(logging.INFO, logger=kernel_integration.logger.name)
    use_dcnv3_kernel(InternImageModel(tiny_config()), strict=True)
    assert not warnings_of(caplog)
