# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""How a model gets a DCNv3 kernel and loses it again, with a stand-in kernel that calls the reference and counts."""

import copy
import json
import subprocess
import sys
import types
import uuid

import pytest
import torch
from testing_utils import REPOSITORY, randomize
from torch import nn
from transformers import AutoModelForImageClassification

from modeling_internimage import DCNv3, InternImageForImageClassification, InternImageModel, kernel_integration
from modeling_internimage.kernel_integration import (
    KERNEL_REPOSITORY,
    KERNEL_REPOSITORY_VARIABLE,
    PYTORCH_REFERENCE,
    DCNv3KernelRepository,
    KernelNotAvailableError,
    dcnv3_implementations,
    register_dcnv3_kernel,
    use_dcnv3_kernel,
)
from modeling_internimage.modeling_internimage import CORE_OPS


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

class InternImageLayer(torch.nn.Module):
    has_backward = True
    can_torch_compile = True

    def forward(self, hidden_states):
        return type(self).forward(self, hidden_states)
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
        self.implementation = f"dcnv3@1 ({self.build})"

    @property
    def calls(self) -> list[bool]:
        """For each call of a layer, whether it was training."""
        return getattr(sys.modules.get(f"{self.id}.layers"), "calls", [])


@pytest.fixture(autouse=True)
def fresh_state(monkeypatch):
    for variable in ("LOCAL_KERNELS", KERNEL_REPOSITORY_VARIABLE, "USE_HUB_KERNELS", "DISABLE_KERNEL_MAPPING"):
        monkeypatch.delenv(variable, raising=False)
    kernel_integration.logger.warning_once.cache_clear()


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    kernel = StandIn(tmp_path / "kernel")
    monkeypatch.setenv("LOCAL_KERNELS", f"{KERNEL_REPOSITORY}={kernel.folder}")
    return kernel


@pytest.fixture
def model(tiny_config, request):
    config = tiny_config(center_feature_scale=True, core_op=getattr(request, "param", "DCNv3"))
    return randomize(InternImageForImageClassification(config))


@pytest.fixture
def pixel_values():
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def warnings_of(caplog) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == kernel_integration.logger.name]


def implementation(model) -> str:
    """What all layers run."""
    (only,) = set(dcnv3_implementations(model).values())
    return only


def output_and_gradients(model, pixel_values):
    model.zero_grad()
    torch.manual_seed(0)
    logits = model(pixel_values).logits
    logits.square().mean().backward()
    return logits.detach(), {name: parameter.grad for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("model", CORE_OPS, indirect=True)
def test_same_outputs_and_gradients(stand_in, model, pixel_values, caplog):
    expected = output_and_gradients(model.train(), pixel_values)
    assert implementation(model) == PYTORCH_REFERENCE

    assert use_dcnv3_kernel(model, strict=True) is model
    assert implementation(model) == stand_in.implementation and len(dcnv3_implementations(model)) == NUM_LAYERS
    assert all(isinstance(model.get_submodule(name), DCNv3) for name in dcnv3_implementations(model))
    torch.testing.assert_close(output_and_gradients(model, pixel_values), expected, rtol=0, atol=0)
    model.eval()(pixel_values)  # nothing has to be chosen again
    assert stand_in.calls == [True] * NUM_LAYERS + [False] * NUM_LAYERS

    assert use_dcnv3_kernel(model, enabled=False) is model
    assert implementation(model) == PYTORCH_REFERENCE
    torch.testing.assert_close(output_and_gradients(model.train(), pixel_values), expected, rtol=0, atol=0)
    assert len(stand_in.calls) == 2 * NUM_LAYERS and not warnings_of(caplog)


def test_class_from_published_source(stand_in):
    """`trust_remote_code` makes another class of the same file. That of the original shares no more than the name."""
    copied = type("DCNv3", (nn.Module,), {"forward": DCNv3.forward})
    original = type("DCNv3", (nn.Module,), {"forward": lambda self, input: input})
    model = nn.Sequential(copied(), original(), nn.Linear(1, 1))
    assert dcnv3_implementations(model) == {"0": PYTORCH_REFERENCE}
    assert dcnv3_implementations(use_dcnv3_kernel(model, strict=True)) == {"0": stand_in.implementation}


def test_choice_of_repository(tmp_path, monkeypatch):
    """The argument goes before the environment variable; a failure changes nothing."""
    first, second = StandIn(tmp_path / "first"), StandIn(tmp_path / "second")
    monkeypatch.setenv("LOCAL_KERNELS", f"org/first={first.folder}:org/second={second.folder}")
    monkeypatch.setenv(KERNEL_REPOSITORY_VARIABLE, "org/first@3")
    layer = DCNv3()
    assert implementation(use_dcnv3_kernel(layer, strict=True)) == first.implementation
    assert implementation(use_dcnv3_kernel(layer, repository="org/second", strict=True)) == second.implementation
    with pytest.raises(KernelNotAvailableError, match="org/third@main cannot be used"):
        use_dcnv3_kernel(layer, repository="org/third@main", strict=True)
    assert implementation(layer) == second.implementation


def test_arguments_of_get_kernel(monkeypatch):
    """What a Hub repository would be asked for; on the CPU, with a torch for CUDA, also its build for the CPU."""
    requests = []

    def get_kernel(repo_id, **arguments):
        requests.append((repo_id, arguments))
        raise FileNotFoundError

    monkeypatch.setattr(kernels, "get_kernel", get_kernel)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    for arguments in ((None, False, "cuda"), ("org/name@7", True, "cuda"), ("a/b@main", True, "cuda"), ("a/b",)):
        with pytest.raises(KernelNotAvailableError):
            DCNv3KernelRepository(*arguments).load()
    assert requests == [
        ("kernels-community/dcnv3", {"version": 1, "trust_remote_code": False}),
        ("org/name", {"version": 7, "trust_remote_code": True}),
        ("a/b", {"revision": "main", "trust_remote_code": True}),
        ("a/b", {"version": 1, "trust_remote_code": False}),
        ("a/b", {"version": 1, "trust_remote_code": False, "backend": "cpu"}),
    ]


def test_hub_kernel_is_named_by_its_build(stand_in, monkeypatch):
    layer = use_dcnv3_kernel(DCNv3(), strict=True)
    (loaded,) = [kernel for kernel in kernels.get_loaded_kernels() if kernel.metadata.id == stand_in.id]
    from_hub = kernels.LoadedKernel(loaded.metadata, loaded.module, kernels.RepoInfo("org/published", "0123abcd"))
    monkeypatch.setattr(kernels, "get_loaded_kernels", lambda: [from_hub])
    assert implementation(layer) == "org/published@1 (torch-universal)"


def _raise(error):
    def get_kernel(*args, **kwargs):
        raise error

    return lambda patch, _: patch.setattr(kernels, "get_kernel", get_kernel)


def _layers(old, new):
    def prepare(patch, tmp_path):
        assert old in LAYERS
        StandIn(tmp_path, LAYERS.replace(old, new))
        patch.setenv("LOCAL_KERNELS", f"{KERNEL_REPOSITORY}={tmp_path}")

    return prepare


def _environment(name, value):
    return lambda patch, _: patch.setenv(name, value)


NOT_AVAILABLE = {
    "not installed": (lambda patch, _: patch.setitem(sys.modules, "kernels", None), ImportError, "pip install"),
    "too old": (
        lambda patch, _: patch.setattr(kernel_integration, "_REQUIREMENT", "kernels>=99"), ImportError,
        "found kernels==0.*pip install 'kernels>=99'",
    ),
    "switched off": (_environment("USE_HUB_KERNELS", "0"), RuntimeError, "USE_HUB_KERNELS"),
    "disabled": (_environment("DISABLE_KERNEL_MAPPING", "1"), RuntimeError, "DISABLE_KERNEL_MAPPING"),
    "offline": (lambda *_: None, ValueError, "HF_HUB_OFFLINE.*LOCAL_KERNELS='org/name=folder'"),
    "bad variable": (_environment(KERNEL_REPOSITORY_VARIABLE, "name"), ValueError, "INTERNIMAGE_KERNEL_.*'name@1'"),
    "bad LOCAL_KERNELS": (_environment("LOCAL_KERNELS", "dcnv3"), ValueError, "Invalid LOCAL_KERNELS entry: dcnv3"),
    "no folder": (_environment("LOCAL_KERNELS", f"{KERNEL_REPOSITORY}=/no/folder"), FileNotFoundError, "/no/folder"),
    "no build": (_environment("LOCAL_KERNELS", f"{KERNEL_REPOSITORY}=tests"), FileNotFoundError, "for this torch"),
    "wrong GPU": (_raise(RuntimeError("not for sm_70.\nmore")), RuntimeError, "RuntimeError: not for sm_70. It needs"),
    "no message": (_raise(TimeoutError()), TimeoutError, "TimeoutError: no message. It needs"),
    "broken": (_layers("import torch\n", "import no_module\n"), ModuleNotFoundError, "No module named 'no_module'"),
    "no layer": (_layers("class DCNv3(", "class Other("), AttributeError, "no attribute 'DCNv3'"),
    "other arguments": (_layers("self, value", "self, input"), TypeError, "take the arguments value, .*softmax"),
    "no backward": (_layers("has_backward = True", "has_backward = False"), TypeError, "must have a backward"),
    "no compile": (_layers("can_torch_compile = True", ""), AttributeError, "can_torch_compile"),
}  # fmt: skip


@pytest.mark.parametrize("case", NOT_AVAILABLE)
def test_kernel_not_available(case, tmp_path, monkeypatch, caplog):
    """Strict: one sentence with the first line of the original error. Else: a warning, and the reference."""
    prepare, cause, message = NOT_AVAILABLE[case]
    prepare(monkeypatch, tmp_path)
    layer = DCNv3()
    with pytest.raises(KernelNotAvailableError, match=message) as error_info:
        use_dcnv3_kernel(layer, strict=True)
    sentence = str(error_info.value)
    assert isinstance(error_info.value.__cause__, cause)
    assert sentence.startswith("The DCNv3 kernel ") and "\n" not in sentence and sentence.endswith(".")
    assert not warnings_of(caplog)

    assert use_dcnv3_kernel(layer) is layer and implementation(layer) == PYTORCH_REFERENCE
    (warning,) = warnings_of(caplog)
    assert warning == f"{sentence} The model stays as it is; the PyTorch reference has the same results."


@needs_transformers_kernels
@pytest.mark.parametrize("variable", ["HF_HUB_OFFLINE", "LOCAL_KERNELS", KERNEL_REPOSITORY_VARIABLE])
def test_kernel_not_available_to_transformers(variable, model, monkeypatch, caplog):
    """`use_kernels=True` warns once, tries once a minute for each kind of layer, in all modes, and never raises."""
    monkeypatch.setenv(variable, "1")
    attempts = []
    load_now = DCNv3KernelRepository.load_now
    monkeypatch.setattr(DCNv3KernelRepository, "load_now", lambda self: attempts.append(self) or load_now(self))
    register_dcnv3_kernel()
    assert not attempts
    model.set_use_kernels(True)
    model.train().eval()
    kinds = len(kernel_integration.KERNEL_LAYERS)
    assert len(attempts) == kinds
    monkeypatch.setattr(kernel_integration, "_SECONDS_BETWEEN_ATTEMPTS", 0)
    model.train()
    assert len(attempts) == kinds * (1 + NUM_LAYERS) and implementation(model) == PYTORCH_REFERENCE
    (warning,) = warnings_of(caplog)
    assert "cannot be used" in warning and warning.endswith("the same results, more slowly.")


@needs_transformers_kernels
def test_other_devices_with_transformers(caplog):
    register_dcnv3_kernel()
    fallback = kernels.KernelizeFallback.ALL
    layer = kernels.kernelize(DCNv3(), mode=kernels.Mode.INFERENCE, device="xpu", use_fallback=fallback)
    assert implementation(layer) == PYTORCH_REFERENCE
    (warning,) = warnings_of(caplog)
    assert "it runs on cpu and cuda, the model is on xpu" in warning


@pytest.mark.parametrize(
    ("device", "dtype", "config", "message"),
    [
        ("mps", torch.float32, {}, "it runs on cpu and cuda, the model is on mps"),
        ("cuda", torch.float64, {}, "on cuda it has no float64"),
        *(
            ("cpu", torch.float32, {"embed_dim": 512, "core_op": core_op}, "have up to 256 channels, .* model 512")
            for core_op in CORE_OPS
        ),
    ],
)
def test_models_that_the_kernel_cannot_run(device, dtype, config, message, tiny_config, monkeypatch, stand_in):
    with torch.device("meta"):
        model = InternImageModel(tiny_config(depths=[1], num_groups=[1], **config))
    parameter = types.SimpleNamespace(device=torch.device(device), dtype=dtype)
    monkeypatch.setattr(model, "parameters", lambda: [parameter])
    with pytest.raises(KernelNotAvailableError, match=message):
        use_dcnv3_kernel(model, strict=True)


def test_bad_arguments():
    with pytest.raises(ValueError, match="`model` must contain an InternImage: a `Linear` without one has no DCNv3"):
        use_dcnv3_kernel(nn.Linear(1, 1))
    for repository in ("dcnv3", "", "a/b/c", "org/name@", REPOSITORY):
        with pytest.raises(ValueError, match="`repository` .* must be .* 'kernels-community/dcnv3@1', got"):
            use_dcnv3_kernel(DCNv3(), repository=repository)


@needs_transformers_kernels
def test_use_kernels(stand_in, model, pixel_values, tmp_path, monkeypatch, caplog):
    """The way of transformers, on the CPU: `use_kernels=True`."""
    register_dcnv3_kernel()
    expected = model(pixel_values).logits
    use_dcnv3_kernel(model, strict=True).save_pretrained(tmp_path / "model")

    loaded = AutoModelForImageClassification.from_pretrained(tmp_path / "model", use_kernels=True)
    assert loaded.use_kernels and implementation(loaded) == stand_in.implementation
    torch.testing.assert_close(loaded(pixel_values).logits, expected, rtol=1e-4, atol=1e-6)
    loaded.train()(pixel_values)
    assert stand_in.calls == [False] * NUM_LAYERS + [True] * NUM_LAYERS
    assert "use_kernels" not in loaded.config.to_diff_dict()

    use_dcnv3_kernel(loaded, enabled=False).eval()  # transformers would choose again here
    assert implementation(loaded) == PYTORCH_REFERENCE
    assert implementation(AutoModelForImageClassification.from_pretrained(tmp_path / "model")) == PYTORCH_REFERENCE

    other = StandIn(tmp_path / "other")
    monkeypatch.setenv("LOCAL_KERNELS", f"{KERNEL_REPOSITORY}={other.folder}:org/own={stand_in.folder}")
    register_dcnv3_kernel()  # reads the environment again
    loaded.set_use_kernels(True)
    assert implementation(loaded) == other.implementation
    use_dcnv3_kernel(loaded, repository="org/own", strict=True).train()
    assert implementation(loaded) == stand_in.implementation
    assert not warnings_of(caplog)


def test_other_kernels_stay(stand_in, model):
    """Neither registering nor choosing touches what is mapped for other layers."""

    class OtherRepository:
        def load(self):
            return type("OtherKernel", (nn.Module,), {"forward": lambda self, value: value + 1})

    @kernels.use_kernel_forward_from_hub("OtherLayer")
    class OtherLayer(nn.Module):
        def forward(self, value):
            return value

    model = nn.Sequential(OtherLayer(), model)
    with kernels.use_kernel_mapping({"OtherLayer": {"cpu": OtherRepository()}}):
        register_dcnv3_kernel()
        kernels.kernelize(model, mode=kernels.Mode.INFERENCE, device="cpu")
    assert model[0](1) == 2
    if kernel_integration.is_kernels_available():
        assert implementation(model) == stand_in.implementation
    for enabled in (True, False):
        use_dcnv3_kernel(model, enabled, strict=True)
        assert model[0](1) == 2


def test_copies(stand_in, model, pixel_values, tmp_path):
    state = model.state_dict()
    expected = use_dcnv3_kernel(model, strict=True)(pixel_values).logits
    assert model.state_dict().keys() == state.keys()

    copied = copy.deepcopy(model)
    assert implementation(copied) == stand_in.implementation
    for name in dcnv3_implementations(copied):
        assert copied.get_submodule(name).forward.__self__ is copied.get_submodule(name)
    torch.testing.assert_close(copied(pixel_values).logits, expected, rtol=0, atol=0)
    assert len(stand_in.calls) == 2 * NUM_LAYERS

    torch.save(model, tmp_path / "model.pt")
    loaded = torch.load(tmp_path / "model.pt", weights_only=False)
    assert implementation(loaded) == PYTORCH_REFERENCE
    torch.testing.assert_close(loaded(pixel_values).logits, expected, rtol=1e-4, atol=1e-6)
    assert implementation(use_dcnv3_kernel(loaded, strict=True)) == stand_in.implementation


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_gradient_checkpointing(use_reentrant, stand_in, model, pixel_values):
    model, pixel_values = model.double().train(), pixel_values.double().requires_grad_()
    expected = output_and_gradients(model, pixel_values)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": use_reentrant})
    use_dcnv3_kernel(model, strict=True)
    torch.testing.assert_close(output_and_gradients(model, pixel_values)[1], expected[1])
    assert stand_in.calls == [True] * (2 * NUM_LAYERS)  # forward, and once more for the backward pass


@pytest.mark.slow
@torch.no_grad()
def test_compile(stand_in, tiny_config, pixel_values):
    """Compiled before or after: what runs is what the report says."""
    model = randomize(InternImageModel(tiny_config(depths=[1], num_groups=[1])))
    expected = model(pixel_values).pooler_output
    torch.compiler.reset()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    for enabled, num_calls in ((False, 0), (True, 1), (False, 1)):
        use_dcnv3_kernel(compiled, enabled, strict=True)
        torch.testing.assert_close(compiled(pixel_values).pooler_output, expected)
        assert len(stand_in.calls) == num_calls


def test_hooks(stand_in):
    """accelerate wraps `forward` of modules that it moves."""
    hooks = pytest.importorskip("accelerate.hooks")
    layer = use_dcnv3_kernel(DCNv3(), strict=True)
    assert implementation(hooks.add_hook_to_module(layer, hooks.ModelHook())) == stand_in.implementation


@pytest.mark.slow
def test_import_without_kernels():
    """
    Importing the package needs no `kernels`; asking for a kernel says how to install it. (`use_kernels=True` is an
    error of transformers then, as README.md says.)
    """
    code = """
import sys
sys.modules["kernels"] = None
from modeling_internimage import DCNv3, dcnv3_implementations, register_dcnv3_kernel, use_dcnv3_kernel
register_dcnv3_kernel()
assert dcnv3_implementations(use_dcnv3_kernel(DCNv3())) == {"": "PyTorch reference"}
use_dcnv3_kernel(DCNv3(), enabled=False)

from modeling_internimage import InternImageConfig, InternImageModel
model = InternImageModel(InternImageConfig(embed_dim=4, depths=[1], num_groups=[1]))
try:
    model.set_use_kernels(True)
except ValueError as error:
    assert "Kernels are not available" in str(error)
else:
    raise AssertionError("transformers survives without `kernels`: README.md need not say otherwise")
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY)
    assert result.returncode == 0, result.stderr
    assert result.stderr.count("pip install 'kernels>=") == 1


def test_repository_equality(monkeypatch):
    """`kernels` keeps layers by repository: equal means the same kernel."""
    default = DCNv3KernelRepository()
    assert default == DCNv3KernelRepository(f"{KERNEL_REPOSITORY}@1") == copy.deepcopy(default)
    assert hash(default) == hash(DCNv3KernelRepository(KERNEL_REPOSITORY))
    assert default != DCNv3KernelRepository("org/name") and default != DCNv3KernelRepository(trust_remote_code=True)
    before = hash(default)
    monkeypatch.setenv("LOCAL_KERNELS", "a/b=c")
    assert hash(default) == before and default != DCNv3KernelRepository()
