# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""DCNv3 as a compiled kernel from the Kernel Hub, through the `kernels` library, instead of its PyTorch reference.

A kernel is loaded only when one is asked for: by `use_kernels=True` of `from_pretrained` or by `use_dcnv3_kernel`. It
replaces the `forward` of single layers, never a parameter or a class: that of DCNv3, and that of `InternImageLayer`,
which in inference on a CPU computes all that surrounds DCNv3 in fused operators. FlashInternImage has the
same layers: its DCNv4 is DCNv3 without the softmax.
"""

import functools
import inspect
import os
import re
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import MethodType, ModuleType
from typing import Any, TypeVar

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.utils import ENV_VARS_TRUE_VALUES, is_kernels_available, logging
from transformers.utils.versions import require_version

from .modeling_internimage import CORE_OPS, DCNv3, InternImageLayer


logger = logging.get_logger(__name__)

ModelType = TypeVar("ModelType", bound=nn.Module)

KERNEL_REPOSITORY = "kernels-community/dcnv3"
KERNEL_REPOSITORY_VARIABLE = "INTERNIMAGE_KERNEL_REPOSITORY"
PYTORCH_REFERENCE = "PyTorch reference"
KERNEL_LAYERS: dict[str, type[nn.Module]] = {"DCNv3": DCNv3, "InternImageLayer": InternImageLayer}
_REQUIREMENT = "kernels>=0.17.2"  # as in setup.cfg
_SECONDS_BETWEEN_ATTEMPTS = 60


class KernelNotAvailableError(FileNotFoundError):
    """The DCNv3 kernel is not available; the message says why. (`kernelize` survives only a `FileNotFoundError`.)"""


@dataclass(frozen=True)
class DCNv3KernelRepository:
    """
    Where the kernel comes from, for mappings of the `kernels` library: a local build that the environment variable
    `LOCAL_KERNELS` names, else the Hub or its cache. (The `LayerRepository` of `kernels` asks the Hub even for local
    builds and never falls back to a build for the CPU.) Environment variables are read when the object is made.

    Args:
        repository (`str`, *optional*):
            `"org/name"`, `"org/name@version"` or `"org/name@revision"`; the version defaults to 1. Defaults to the
            environment variable `INTERNIMAGE_KERNEL_REPOSITORY`, then to `"kernels-community/dcnv3"`.
        trust_remote_code (`bool`, *optional*, defaults to `False`):
            Whether to run a kernel of a publisher that the Hub does not list as trusted.
        device (`str`, *optional*, defaults to `"cpu"`):
            Type of the device that the model is on.
        layer_name (`str`, *optional*, defaults to `"DCNv3"`):
            Which layer of the kernel: `"DCNv3"` or `"InternImageLayer"`.
    """

    repository: str | None = None
    trust_remote_code: bool = False
    device: str = "cpu"
    layer_name: str = "DCNv3"
    # `kernels` loads equal repositories once; another local build makes another repository.
    local_kernels: str | None = field(default_factory=lambda: os.environ.get("LOCAL_KERNELS"), init=False)
    _failure: tuple[float, str] = field(default=(float("-inf"), ""), init=False, repr=False, compare=False)

    def __post_init__(self):
        if self.repository is not None:
            _parse_reference(self.repository)
        # `load` checks the variable: importing this package, which makes repositories, must not fail.
        reference = self.repository or os.environ.get(KERNEL_REPOSITORY_VARIABLE) or KERNEL_REPOSITORY
        object.__setattr__(self, "repository", reference if "@" in reference else f"{reference}@1")

    def load(self) -> type[nn.Module]:
        """`load_now` for `kernelize`, which hides failures and tries again for every layer and at every change between
        `train()` and `eval()`: this warns, and makes one attempt a minute."""
        failed_at, message = self._failure
        if time.monotonic() - failed_at < _SECONDS_BETWEEN_ATTEMPTS:
            raise KernelNotAvailableError(message)
        try:
            return self.load_now()
        except KernelNotAvailableError as error:
            object.__setattr__(self, "_failure", (time.monotonic(), str(error)))
            logger.warning_once(f"{error} DCNv3 runs as its PyTorch reference: the same results, more slowly.")
            raise

    def load_now(self) -> type[nn.Module]:
        """Returns the class whose `forward` replaces that of the layer, or raises a [`KernelNotAvailableError`]."""
        if self.device not in ("cpu", "cuda"):
            raise self.not_available(f"it runs on cpu and cuda, the model is on {self.device}")
        try:
            layer = getattr(self._import_kernel().layers, self.layer_name)
            arguments = _arguments(KERNEL_LAYERS[self.layer_name])
            if _arguments(layer) != arguments or not (layer.has_backward and layer.can_torch_compile):
                raise TypeError(
                    f"`layers.{self.layer_name}` must have a backward, compile and take the arguments "
                    f"{', '.join(arguments)}"
                )
        except Exception as error:  # of `kernels`, the Hub or the kernel: any class
            reason = (str(error).strip().splitlines() or ["no message"])[0].rstrip(".:")
            raise self.not_available(
                f"{type(error).__name__}: {reason}. It needs `pip install '{_REQUIREMENT}'` and a build for this "
                "torch, from the Hub (unset HF_HUB_OFFLINE; pass `trust_remote_code=True` for a publisher that it "
                "does not list as trusted) or from a folder (set LOCAL_KERNELS='org/name=folder')"
            ) from error
        return layer

    def _import_kernel(self) -> ModuleType:
        enabled = os.environ.get("USE_HUB_KERNELS", "YES").upper() in ENV_VARS_TRUE_VALUES
        if not enabled or os.environ.get("DISABLE_KERNEL_MAPPING", "0") != "0":
            raise RuntimeError("the environment variable USE_HUB_KERNELS or DISABLE_KERNEL_MAPPING forbids kernels")
        require_version(_REQUIREMENT)
        from kernels import get_kernel

        repo_id, version = _parse_reference(self.repository)
        load = functools.partial(get_kernel, repo_id, **version, trust_remote_code=self.trust_remote_code)
        try:
            return load()
        except FileNotFoundError:  # no build for this torch; with a torch for CUDA, there may be one for the CPU
            if self.device != "cpu" or torch.version.cuda is None:
                raise
            return load(backend="cpu")

    def not_available(self, reason: str) -> KernelNotAvailableError:
        return KernelNotAvailableError(f"The DCNv3 kernel {self.repository} cannot be used: {reason}.")


def register_dcnv3_kernel():
    """
    Make `use_kernels=True` of `from_pretrained` find the DCNv3 kernel, on CPU and CUDA, for every model that contains
    an InternImage. Importing the package does it; doing it again reads the environment variables again. Mappings of
    other layers stay as they are, and nothing is loaded before a model asks for it.
    """
    if is_kernels_available():  # otherwise transformers refuses `use_kernels=True` by itself
        from kernels import register_kernel_mapping

        devices = ("cpu", "cuda", "mps", "npu", "xpu")  # the last three to say that there is no kernel
        register_kernel_mapping(
            {
                layer_name: {device: DCNv3KernelRepository(device=device, layer_name=layer_name) for device in devices}
                for layer_name in KERNEL_LAYERS
            }
        )


def use_dcnv3_kernel(
    model: ModelType,
    enabled: bool = True,
    *,
    repository: str | None = None,
    trust_remote_code: bool = False,
    strict: bool = False,
) -> ModelType:
    """
    Run the DCNv3 layers of a model as a compiled kernel, or as the PyTorch reference again: `use_kernels=True` for
    models that exist already, any version of transformers and any repository.

    One call serves training, inference and `torch.compile`. `copy.deepcopy` keeps the kernel. Checkpoints do not know
    about it, and a model that went through `pickle` runs the reference until this is called again.

    Args:
        model (`torch.nn.Module`):
            Any model with an InternImage in it, on the device where it will run. It is changed in place.
        enabled (`bool`, *optional*, defaults to `True`):
            `False` goes back to the PyTorch reference.
        repository (`str`, *optional*), trust_remote_code (`bool`, *optional*, defaults to `False`):
            Which kernel to load, see [`DCNv3KernelRepository`].
        strict (`bool`, *optional*, defaults to `False`):
            Whether a kernel that is not available is an error. Otherwise it is a warning and the model stays as it is.

    Returns:
        `torch.nn.Module`: the same model. From now on transformers chooses no kernels for it when it changes between
        `train()` and `eval()`, as it does after `use_kernels=True`; kernels of other layers stay.

    Raises:
        [`KernelNotAvailableError`]: if `strict` and the kernel is not available.
        `ValueError`: if `model` has no DCNv3 layer or `repository` is not of that form.
    """
    layers = {layer_name: _layers_of(model, layer_name).values() for layer_name in KERNEL_LAYERS}
    if not layers["DCNv3"]:
        raise ValueError(f"`model` must contain an InternImage: a `{type(model).__name__}` without one has no DCNv3.")
    if enabled:
        try:
            kernel_layers = _load_kernel_layers(model, repository, trust_remote_code)
        except KernelNotAvailableError as error:
            if strict:
                raise
            logger.warning(f"{error} The model stays as it is; the PyTorch reference has the same results.")
            return model
    for layer_name in layers:
        for layer in layers[layer_name]:
            if enabled:  # as `kernelize` does, which also resets every layer that its mapping does not name
                layer.forward = MethodType(kernel_layers[layer_name].forward, layer)
            else:
                layer.__dict__.pop("forward", None)
    for module in model.modules():
        if isinstance(module, PreTrainedModel) and module.use_kernels:
            module.set_use_kernels(False)  # undoes nothing; ends the choice at each `train()` and `eval()`
    return model


def dcnv3_implementations(model: nn.Module) -> dict[str, str]:
    """
    What the DCNv3 layers of a model run now.

    Returns:
        `dict[str, str]`: for the name of each DCNv3 layer, `"PyTorch reference"` or repository, version and build of
        a kernel, such as `"kernels-community/dcnv3@1 (torch-stable-abi211-cu130-x86_64-linux)"`; with `LOCAL_KERNELS`
        or `HF_HUB_OFFLINE`, the kernel's name, version and folder.
    """
    return {name: _implementation(layer) for name, layer in _layers_of(model, "DCNv3").items()}


def _implementation(layer: nn.Module) -> str:
    forward = inspect.unwrap(layer.forward)  # hooks of accelerate wrap it
    function = getattr(forward, "__func__", forward)
    if function is type(layer).forward:
        return PYTORCH_REFERENCE
    kernels = sys.modules.get("kernels")  # imported, if a kernel runs
    for kernel in kernels.get_loaded_kernels() if kernels else ():
        build = Path(kernel.module.__file__).parent
        if Path(inspect.getfile(function)).is_relative_to(build):
            name, place = (kernel.repo_info.repo_id, build.name) if kernel.repo_info else (kernel.metadata.name, build)
            return f"{name}@{kernel.metadata.version} ({place})"
    return f"{function.__module__}.{function.__qualname__}"


def _load_kernel_layers(
    model: nn.Module, repository: str | None, trust_remote_code: bool
) -> dict[str, type[nn.Module]]:
    kinds = {(parameter.device.type, parameter.dtype) for parameter in model.parameters()}
    device = next(iter({device for device, _ in kinds} - {"cpu", "meta"}), "cpu")
    repositories = {
        layer_name: DCNv3KernelRepository(repository, trust_remote_code, device, layer_name)
        for layer_name in KERNEL_LAYERS
    }
    kernel = repositories["DCNv3"]
    if ("cuda", torch.float64) in kinds:
        raise kernel.not_available("on cuda it has no float64")
    module: Any  # one of the classes in `CORE_OPS`, or a copy of it from remote code
    for module in model.modules():
        if type(module).__name__ in {layer_class.__name__ for layer_class in CORE_OPS.values()}:
            channels = module.offset_proj.in_features // module.num_groups
            if channels > 256:
                raise kernel.not_available(f"its groups have up to 256 channels, those of the model {channels}")
    return {layer_name: each.load_now() for layer_name, each in repositories.items()}


def _layers_of(model: nn.Module, layer_name: str) -> dict[str, nn.Module]:
    original = KERNEL_LAYERS[layer_name]

    def is_layer(layer_class):  # or its copy from the source files beside a checkpoint (`trust_remote_code`)
        is_copy = layer_class.__name__ == layer_name and _arguments(layer_class) == _arguments(original)
        return is_copy or issubclass(layer_class, original)

    return {name: module for name, module in model.named_modules() if is_layer(type(module))}


def _arguments(layer_class: type[nn.Module]) -> list[str]:
    return list(inspect.signature(layer_class.forward).parameters)[1:]


def _parse_reference(reference: str | None) -> tuple[str, dict[str, int | str]]:
    """`"org/name@version"` -> `"org/name"` and the argument of `get_kernel` for the version."""
    match = re.fullmatch(r"([\w.-]+/[\w.-]+)(?:@([\w./-]+))?", str(reference))
    if match is None:
        raise ValueError(
            f"`repository` (or the environment variable {KERNEL_REPOSITORY_VARIABLE}) must be a repository of the Hub "
            f"such as '{KERNEL_REPOSITORY}' or '{KERNEL_REPOSITORY}@1', got {reference!r} (a local build is named by "
            "the environment variable LOCAL_KERNELS='org/name=folder')."
        )
    repo_id, version = match[1], match[2] or "1"
    return repo_id, {"version": int(version)} if version.isdecimal() else {"revision": version}
