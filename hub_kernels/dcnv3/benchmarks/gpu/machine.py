# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""This machine: paths, the built kernel, versions and clocks, and what one process keeps for its tasks."""

import importlib.metadata
import importlib.util
import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import torch

from .timing import Timer


FOLDER = Path(__file__).resolve().parents[1]
ROOT = FOLDER.parent


def find_variant(device):
    """The built variant for a device, the newest where there are several."""
    # A folder that is being built begins with a dot.
    for pattern in ["torch-*-cu*"] if device == "cuda" else ["torch-*-cpu-*", "torch-*-cu*"]:
        folders = [path for path in (ROOT / "build").glob(pattern) if (path / "__init__.py").exists()]
        if folders:
            return max(folders, key=lambda path: (path / "metadata.json").stat().st_mtime)
    return None


def load_module(name, path, **options):
    spec = importlib.util.spec_from_file_location(name, path, **options)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def prepare_build(device):
    """Builds the variant if it is missing or older than its source. Returns what happened."""
    folder, current = find_variant(device), None
    try:  # ask the builder which build its source would give
        builder = load_module("dcnv3_local_build", ROOT / "local_build.py")
        config = builder.tomllib.loads((ROOT / "build.toml").read_text())
        if folder is not None:
            metadata = json.loads((folder / "metadata.json").read_text())
            current = metadata["id"].rsplit("_", 1)[1] == builder.unique_id(config, metadata["backend"]["type"])
    except (Exception, SystemExit) as error:
        print(f"The builder cannot say whether the build is current: {one_line(error)}")
    if folder is None or current is False:
        print("Building the kernel: " + ("its source changed." if folder else "there is no build yet."), flush=True)
        command = [sys.executable, str(ROOT / "local_build.py"), "--backend", device, "--jobs", str(os.cpu_count())]
        done = subprocess.run(command, capture_output=True, text=True)
        folder, current = find_variant(device), done.returncode == 0
        if not current:
            print(done.stdout + done.stderr)
        if folder is None:
            sys.exit("There is no build of the kernel, and it could not be made.")
    return {"ok": True, "variant": folder.name, "current": current}


def nvidia_smi():
    fields = "name,driver_version,clocks.sm,clocks.mem,clocks.max.sm,clocks.max.mem,power.draw,power.limit"
    fields += ",temperature.gpu"
    command = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader"]
    try:
        output = subprocess.run(command, capture_output=True, text=True, timeout=20).stdout
        return dict(zip(fields.split(","), (part.strip() for part in output.strip().splitlines()[0].split(","))))
    except (OSError, IndexError, subprocess.TimeoutExpired):
        return {}


def commit_of_checkout():
    try:
        command = ["git", "-C", str(ROOT), "rev-parse", "HEAD"]
        return subprocess.run(command, capture_output=True, text=True).stdout.strip() or None
    except OSError:
        return None


def one_line(error):
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


class Worker:
    """What tasks need, made when first needed."""

    def __init__(self, arguments):
        self.arguments = arguments
        self.device = arguments.device
        self.timer = Timer(arguments.device, arguments.quick)
        self.cache = {}

    def get(self, name, make):
        """`make()`, once; an error is raised again every time."""
        if name not in self.cache:
            try:
                self.cache[name] = make()
            except Exception as error:
                self.cache[name] = error
        if isinstance(self.cache[name], Exception):
            raise self.cache[name]
        return self.cache[name]

    def load_kernel(self):
        """The built variant, as `kernels` would load it."""
        folder = find_variant(self.device)
        return load_module("dcnv3_build", folder / "__init__.py", submodule_search_locations=[str(folder)])

    @property
    def kernel(self):
        return self.get("kernel", self.load_kernel)

    def call(self, case):
        keywords = case.keywords()
        return lambda *tensors: self.kernel.dcnv3(*tensors, **keywords)

    def synchronize(self):
        if self.device == "cuda":
            torch.cuda.synchronize()


def environment(worker):
    found = {
        "python": platform.python_version(), "torch": torch.__version__, "torch_cuda": torch.version.cuda,
        "variant": find_variant(worker.device).name,
        "library": json.loads((find_variant(worker.device) / "metadata.json").read_text())["id"],
        "device": platform.processor() or platform.machine(),
    }  # fmt: skip
    if worker.device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        found |= {
            "device": properties.name, "compute_capability": f"{properties.major}.{properties.minor}",
            "multiprocessors": properties.multi_processor_count, "memory": properties.total_memory,
            "l2_cache": properties.L2_cache_size, "devices": torch.cuda.device_count(),
        }  # fmt: skip
    else:
        found |= {"threads": torch.get_num_threads()}
    for name in ("triton", "transformers", "DCNv4", "deformops"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return {"ok": True, **found}
