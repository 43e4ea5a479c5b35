# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""DCNv3 as a compiled kernel from the Kernel Hub, through the `kernels` library, instead of its PyTorch definition.

Nothing here imports `kernels` or looks for a kernel before it is asked to: by `use_kernels=True` of `from_pretrained`
or by `use_dcnv3_kernel`. A kernel replaces the `forward` of single layers, never a parameter or a class.
"""

import functools
import inspect
import os
import platform
import re
import socket
import time
from pathlib import Path
from types import ModuleType

import torch
from huggingface_hub import constants
from huggingface_hub.errors import RepositoryNotFoundError
from packaging import version
from torch import nn
from transformers.modeling_utils import PreTrainedModel
from transformers.utils import is_kernels_available, logging

from .modeling_internimage import DCNv3, InternImageDCNv3


logger = logging.get_logger(__name__)

KERNEL_REPOSITORY = "kernels-community/dcnv3"
KERNEL_VERSION = 1
# "org/name" or "org/name@version": another repository, for every model that is not given one as an argument.
KERNEL_REPOSITORY_VARIABLE = "INTERNIMAGE_KERNEL_REPOSITORY"

KERNEL_DEVICES = ("cpu", "cuda")
PYTORCH_DEFINITION = "PyTorch definition"
_LAYER_NAME = "DCNv3"  # under which the class is marked in modeling_internimage.py
_MINIMUM_KERNELS_VERSION = "0.17.2"  # of setup.cfg
_MAXIMUM_GROUP_CHANNELS = 256  # of the kernel
_SECONDS_BETWEEN_ATTEMPTS = 60

_loaded_kernels: dict[object, str] = {}  # `forward` of each loaded kernel layer -> where it comes from


class KernelNotAvailableError(FileNotFoundError):
    """The DCNv3 kernel is not available; the message says why. (A `FileNotFoundError` is the one error after which
    `kernelize` keeps the PyTorch definition.)"""


class DCNv3KernelRepository:
    """
    Where the kernel comes from, in the form that mappings of the `kernels` library take: a local build that the
    environment variable `LOCAL_KERNELS` names, else the Hub or its cache. `kernels` chooses the build by the installed
    torch, not by the device: a build for CUDA serves the CPU too, and where there is none, a model on the CPU gets the
    build for the CPU. (The `LayerRepository` of `kernels` does not, and asks the Hub even for local builds.)

    Args:
        repository (`str`, *optional*):
            `"org/name"` or `"org/name@version"`. Defaults to the environment variable `INTERNIMAGE_KERNEL_REPOSITORY`,
            then to `KERNEL_REPOSITORY`; the version to `KERNEL_VERSION`. A version that is no number is a revision.
        trust_remote_code (`bool`, *optional*, defaults to `False`):
            Whether to run a kernel of a publisher that the Hub does not list as trusted.
        device (`str`, *optional*, defaults to `"cpu"`):
            Type of the device that the model is on.
    """

    layer_name = _LAYER_NAME

    def __init__(self, repository: str | None = None, trust_remote_code: bool = False, device: str = "cpu"):
        if repository is not None:
            _parse_reference(repository, "`repository`")
        self.repository = repository
        self.trust_remote_code = trust_remote_code
        self.device = device

    @property
    def reference(self) -> str:
        reference = self.repository or os.environ.get(KERNEL_REPOSITORY_VARIABLE) or KERNEL_REPOSITORY
        return reference if "@" in reference else f"{reference}@{KERNEL_VERSION}"

    def load(self) -> type[nn.Module]:
        """
        Returns:
            The class whose `forward` replaces that of [`DCNv3`].

        Raises:
            [`KernelNotAvailableError`]: with one sentence, whatever the reason.
        """
        reference = self.reference
        try:
            kernels = _import_kernels()
            repo_id, revision = _parse_reference(reference, f"the environment variable {KERNEL_REPOSITORY_VARIABLE}")
        except (ImportError, ValueError) as error:
            raise _not_available(reference, str(error).rstrip(".")) from None
        load = functools.partial(kernels.get_kernel, repo_id, **revision, trust_remote_code=self.trust_remote_code)
        try:
            try:
                kernel = load()
            except FileNotFoundError:  # no build for this torch; with a torch for CUDA, there may be one for the CPU
                if self.device != "cpu" or torch.version.cuda is None:
                    raise
                kernel = load(backend="cpu")
        except Exception as error:  # this imports code and libraries of others: anything can happen
            raise _not_available(reference, _reason(error, repo_id)) from error

        layer = getattr(getattr(kernel, "layers", None), _LAYER_NAME, None)
        if layer is None or _arguments(layer) != _arguments(DCNv3):
            arguments = ", ".join(_arguments(DCNv3))
            raise _not_available(reference, f"it has no `layers.{_LAYER_NAME}` with the arguments {arguments}")
        for flag in ("has_backward", "can_torch_compile"):
            if not getattr(layer, flag, False):
                raise _not_available(reference, f"its `layers.{_LAYER_NAME}` does not declare `{flag} = True`")
        _loaded_kernels[layer.forward] = _describe(kernel, reference, repo_id)
        return layer

    def _key(self) -> tuple:
        return self.reference, self.trust_remote_code, self.device, os.environ.get("LOCAL_KERNELS")

    # `kernels` keeps loaded layers by repository: equal is what loads the same, with the environment as it is now.
    def __eq__(self, other):
        return isinstance(other, DCNv3KernelRepository) and self._key() == other._key()

    def __hash__(self):
        return hash(self._key())

    def __str__(self):
        return f"`{self.reference}`, layer `{self.layer_name}`"


class _MappedKernelRepository(DCNv3KernelRepository):
    """
    The entry of the global mapping, which `use_kernels=True` reads. There, `kernelize` calls `load` for every layer,
    and again whenever the model changes between `train()` and `eval()`; when it fails, nobody else tells the user.
    """

    _failures: dict[tuple, tuple[float, str]] = {}  # of all copies: `kernels` copies its mapping

    def load(self) -> type[nn.Module]:
        seconds, message = self._failures.get(self._key(), (None, None))
        if seconds is not None and time.monotonic() - seconds < _SECONDS_BETWEEN_ATTEMPTS:
            raise KernelNotAvailableError(message)
        try:
            if self.device not in KERNEL_DEVICES:
                raise _unsupported(self.reference, self.device)
            return super().load()
        except KernelNotAvailableError as error:
            self._failures[self._key()] = (time.monotonic(), str(error))
            logger.warning(f"{error} DCNv3 runs as its PyTorch definition: the same results, more slowly.")
            raise


def register_dcnv3_kernel():
    """
    Make `use_kernels=True` of `from_pretrained` find the DCNv3 kernel, on CPU and CUDA, for every model that contains
    an InternImage. Importing the package does it; doing it again is harmless. Mappings of other layers stay as they
    are, and nothing is loaded before a model asks for it.
    """
    if is_kernels_available():  # then transformers has imported it; otherwise it refuses `use_kernels=True` by itself
        from kernels import register_kernel_mapping

        devices = (*KERNEL_DEVICES, "mps", "npu", "xpu")
        repositories = {device: _MappedKernelRepository(device=device) for device in devices}
        register_kernel_mapping({_LAYER_NAME: repositories})


def use_dcnv3_kernel(
    model: nn.Module,
    enabled: bool = True,
    *,
    repository: str | None = None,
    trust_remote_code: bool = False,
    strict: bool = False,
) -> nn.Module:
    r"""
    Run the DCNv3 layers of a model as a compiled kernel, or as the PyTorch definition again. Does what
    `use_kernels=True` of `from_pretrained` does, for any version of transformers, for models that exist already and
    with a say in which kernel.

    The kernel serves training and inference, CPU and CUDA, and `torch.compile`, so one call is enough, in any state of
    the model. Copies made by `copy.deepcopy` keep it. Checkpoints do not know about it, and a model that went through
    `pickle` (or whole through `torch.save`) runs the definition until this is called again.

    Args:
        model (`torch.nn.Module`):
            Any model with an InternImage in it, on the device where it will run. It is changed in place.
        enabled (`bool`, *optional*, defaults to `True`):
            `False` goes back to the PyTorch definition.
        repository (`str`, *optional*):
            `"org/name"` or `"org/name@version"` on the Kernel Hub, see [`DCNv3KernelRepository`]. The environment
            variable `LOCAL_KERNELS="org/name=folder"` replaces it with a local build.
        trust_remote_code (`bool`, *optional*, defaults to `False`):
            Whether to run a kernel of a publisher that the Hub does not list as trusted.
        strict (`bool`, *optional*, defaults to `False`):
            Whether it is an error that the kernel is not available. Otherwise it is a warning and the model stays as
            it is.

    Returns:
        `torch.nn.Module`: the same model. From now on transformers chooses no kernels for it when it changes between
        `train()` and `eval()`, as it does after `use_kernels=True`; kernels of other layers stay.

    Raises:
        [`KernelNotAvailableError`]: if `strict` and the kernel is not available.
        `ValueError`: if `model` has no DCNv3 layer or `repository` is not of that form.

    Example:

    ```python
    >>> from modeling_internimage import InternImageConfig, InternImageModel, dcnv3_implementations, use_dcnv3_kernel

    >>> model = use_dcnv3_kernel(InternImageModel(InternImageConfig()), enabled=False)
    >>> set(dcnv3_implementations(model).values())
    {'PyTorch definition'}
    ```"""
    layers = _dcnv3_layers(model)
    if not layers:
        raise ValueError(f"`model` must contain an InternImage: a `{type(model).__name__}` without one has no DCNv3.")
    if enabled:
        try:
            _kernelize(model, layers, repository, trust_remote_code)
        except KernelNotAvailableError as error:
            if strict:
                raise
            logger.warning(f"{error} The model stays as it is; the PyTorch definition has the same results.")
            return model
    else:
        for layer in layers.values():
            layer.__dict__.pop("forward", None)  # what `kernelize` puts before the method of the class
    for module in model.modules():
        if isinstance(module, PreTrainedModel) and module.use_kernels:
            module.set_use_kernels(False)  # undoes nothing; ends the choice at each `train()` and `eval()`
    return model


def dcnv3_implementations(model: nn.Module) -> dict[str, str]:
    r"""
    What the DCNv3 layers of a model really run, now.

    Args:
        model (`torch.nn.Module`):
            Any model.

    Returns:
        `dict[str, str]`: for the name of each DCNv3 layer, `"PyTorch definition"` or repository, version and build of
        a kernel, such as `"kernels-community/dcnv3@1 (torch-stable-abi211-cu130-x86_64-linux)"`; a local build is
        given by its folder.
    """
    return {name: _implementation(layer) for name, layer in _dcnv3_layers(model).items()}


def _dcnv3_layers(model: nn.Module) -> dict[str, nn.Module]:
    return {name: module for name, module in model.named_modules() if _is_dcnv3(type(module))}


def _is_dcnv3(module_class: type[nn.Module]) -> bool:
    """Ours, or the same from the source files that are published beside a checkpoint (`trust_remote_code`)."""
    if issubclass(module_class, DCNv3):
        return True
    return module_class.__name__ == DCNv3.__name__ and _arguments(module_class) == _arguments(DCNv3)


def _arguments(module_class: type[nn.Module]) -> list[str]:
    return list(inspect.signature(module_class.forward).parameters)[1:]


def _implementation(layer: nn.Module) -> str:
    forward = inspect.unwrap(layer.forward)  # hooks of accelerate wrap it
    function = getattr(forward, "__func__", forward)
    if function is type(layer).forward:
        return PYTORCH_DEFINITION
    return _loaded_kernels.get(function, f"{function.__module__}.{function.__qualname__}")


def _kernelize(model: nn.Module, layers: dict[str, nn.Module], reference: str | None, trust_remote_code: bool):
    devices = {parameter.device.type for parameter in model.parameters()}
    device = "cuda" if "cuda" in devices else "cpu"
    repository = DCNv3KernelRepository(reference, trust_remote_code, device)
    unsupported = devices - {*KERNEL_DEVICES, "meta"}
    if unsupported:
        raise _unsupported(repository.reference, sorted(unsupported)[0])
    if any(parameter.device.type == "cuda" and parameter.dtype == torch.float64 for parameter in model.parameters()):
        raise _not_available(repository.reference, "on cuda it has no float64")
    for module in model.modules():
        if type(module).__name__ == InternImageDCNv3.__name__:
            group_channels = module.input_proj.out_features // module.num_groups
            if group_channels > _MAXIMUM_GROUP_CHANNELS:
                reason = (
                    f"its groups have up to {_MAXIMUM_GROUP_CHANNELS} channels, those of the model {group_channels}"
                )
                raise _not_available(repository.reference, reason)
    try:
        kernels = _import_kernels()
    except ImportError as error:
        raise _not_available(repository.reference, str(error)) from None

    # Layer by layer, because `kernelize` takes away the kernels of all layers that the mapping does not name. The mode
    # is the one that asks for most: a kernel that is fit for it is fit for all.
    with kernels.use_kernel_mapping({_LAYER_NAME: {device: repository}}, inherit_mapping=False):
        for layer in layers.values():
            if not hasattr(type(layer), "kernel_layer_name"):  # transformers marks nothing if it dislikes `kernels`
                kernels.replace_kernel_forward_from_hub(type(layer), _LAYER_NAME)
            mode = kernels.Mode.TRAINING | kernels.Mode.TORCH_COMPILE
            kernels.kernelize(layer, mode=mode, device=device, use_fallback=False)
    if any(_implementation(layer) == PYTORCH_DEFINITION for layer in layers.values()):
        reason = (
            "`kernels` left the PyTorch definition in place, as the environment variable DISABLE_KERNEL_MAPPING does"
        )
        raise _not_available(repository.reference, reason)


def _import_kernels() -> ModuleType:
    """The `kernels` library, or an `ImportError` with the way out."""
    install = f'`pip install "kernels>={_MINIMUM_KERNELS_VERSION}"`'
    try:
        import kernels
    except ImportError as error:
        raise ImportError(f"the library `kernels` cannot be imported ({error}), install it: {install}") from error
    if version.parse(kernels.__version__) < version.parse(_MINIMUM_KERNELS_VERSION):
        raise ImportError(f"the library `kernels` {kernels.__version__} is too old, upgrade it: {install}")
    if os.environ.get("USE_HUB_KERNELS", "YES").upper() not in ("1", "ON", "YES", "TRUE"):  # as transformers reads it
        raise ImportError("the environment variable USE_HUB_KERNELS switches kernels off, unset it")
    return kernels


def _parse_reference(reference: str, name: str) -> tuple[str, dict[str, int | str]]:
    """`"org/name@version"` -> `"org/name"` and the argument of `get_kernel` for the version."""
    match = re.fullmatch(r"([\w.-]+/[\w.-]+)(?:@([\w./-]+))?", reference) if isinstance(reference, str) else None
    if match is None:
        raise ValueError(
            f"{name} must be a repository of the Kernel Hub such as '{KERNEL_REPOSITORY}' or "
            f"'{KERNEL_REPOSITORY}@{KERNEL_VERSION}', got {reference!r} (a local build is named by the environment "
            "variable LOCAL_KERNELS='org/name=folder')."
        )
    repo_id, revision = match[1], match[2] or str(KERNEL_VERSION)
    return repo_id, {"version": int(revision)} if revision.isdecimal() else {"revision": revision}


def _not_available(reference: str, reason: str) -> KernelNotAvailableError:
    return KernelNotAvailableError(f"The DCNv3 kernel {reference} cannot be used: {reason}.")


def _unsupported(reference: str, device: str) -> KernelNotAvailableError:
    return _not_available(reference, f"it runs on cpu and cuda, the model is on {device}")


def _reason(error: Exception, repo_id: str) -> str:
    """Half a sentence on why `get_kernel` failed. It has no error classes: some cases are told by their text."""
    text = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".: ")
    causes = [error]
    while causes[-1].__cause__ or causes[-1].__context__:
        causes.append(causes[-1].__cause__ or causes[-1].__context__)
    if "build variant" in text:
        where = _local_folder(repo_id)
        if where is not None and not os.path.isdir(where):
            return f"the folder {where}, which LOCAL_KERNELS names for it, does not exist"
        where = "it has" if where is None else f"the folder {where}, which LOCAL_KERNELS names for it, has"
        return f"{where} no build for torch {torch.__version__} on {platform.system()} {platform.machine()}"
    if any(isinstance(cause, RepositoryNotFoundError) for cause in causes):
        return "the Hub has no such repository, or not for this user; it may not be published yet"
    if constants.HF_HUB_OFFLINE and isinstance(error, (ValueError, FileNotFoundError)) and "LOCAL_KERNELS" not in text:
        return (
            "it is not in the local cache and HF_HUB_OFFLINE forbids to download it; unset that once, or set "
            f"LOCAL_KERNELS='{repo_id}=folder' to a local build"
        )
    if isinstance(causes[-1], (ConnectionError, TimeoutError, socket.gaierror)):
        return f"the Hub cannot be reached ({causes[-1]})"
    if "trusted publisher" in text:
        publisher = repo_id.split("/")[0]
        return (
            f"the Hub does not list '{publisher}' as a trusted publisher; `use_dcnv3_kernel(..., "
            "trust_remote_code=True)` runs it nevertheless"
        )
    return f"loading it failed ({type(error).__name__}: {text})"


def _local_folder(repo_id: str) -> str | None:
    """The folder of a local build, from `LOCAL_KERNELS="org/name=folder:org/name=folder"`."""
    entries = (entry.partition("=") for entry in os.environ.get("LOCAL_KERNELS", "").split(":"))
    return {name: folder for name, _, folder in entries}.get(repo_id)


def _describe(kernel: ModuleType, reference: str, repo_id: str) -> str:
    build = next((folder for folder in Path(kernel.__file__).parents if (folder / "metadata.json").is_file()), None)
    if build is None:
        return reference
    return f"{reference} ({build.name if _local_folder(repo_id) is None else build})"
