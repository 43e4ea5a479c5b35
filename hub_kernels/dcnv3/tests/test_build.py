# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""What local_build.py makes: both variants, without a GPU, and what `kernels` does with them."""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from dcnv3_cases import check_against_reference, random_arguments
from gpu.machine import load_module


ROOT = Path(__file__).resolve().parents[1]
VARIANT = "torch-stable-abi211-{}-x86_64-linux"
BACKENDS = ["cpu", "cuda"]


def variant_of(backend, build):
    build(backend)
    folders = list((ROOT / "build").glob(VARIANT.format("cpu" if backend == "cpu" else "cu*")))
    assert len(folders) == 1
    return folders[0]


def load(backend, build):
    """As `kernels` loads the variant of a backend; the CUDA variant also without a GPU."""
    from kernels import get_kernel

    folder = variant_of(backend, build)
    if backend == "cuda" and torch.version.cuda is None:
        pytest.skip("this torch was built without CUDA")
    kernel = get_kernel("kernels-community/dcnv3", version=1, backend=backend)
    assert Path(kernel.__file__).parent == folder
    return kernel


def local_build(*arguments, root=ROOT, **environment):
    command = [sys.executable, root / "local_build.py", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | environment)


def builders_parser():
    """kernel-builder's parser of build.toml and metadata.json. `kernels` contains it, but not under a public name."""
    from kernels import _rust

    return _rust


def test_build_toml():
    """kernel-builder knows every field."""
    build = builders_parser().Build.open(ROOT)
    assert sorted(str(backend) for backend in build.general.backends) == ["cpu", "cuda"]


def test_build_toml_names_every_source():
    text = (ROOT / "build.toml").read_text()
    for folder in ("dcnv3_common", "dcnv3_cpu", "dcnv3_cuda"):
        for path in (ROOT / folder).iterdir():
            if path.suffix in (".cpp", ".cu", ".h", ".cuh"):
                assert f'"{folder}/{path.name}"' in text, path.name


@pytest.mark.parametrize("backend", BACKENDS)
def test_metadata(backend, build):
    folder, parser = variant_of(backend, build), builders_parser()
    metadata = parser.Metadata.read_from_file(folder / "metadata.json")
    assert str(metadata.name) == "dcnv3" or metadata.name.python_name == "dcnv3"
    assert metadata.version == 1 and metadata.license == "Apache-2.0" and metadata.python_depends == []
    assert metadata.backend.backend_type == parser.Backend.from_str(backend)
    if backend == "cuda":
        assert {"7.5", "8.0", "9.0"} < set(metadata.backend.archs)
        assert any(arch.endswith("+PTX") for arch in metadata.backend.archs)
    assert re.fullmatch(rf"_dcnv3_{backend}_[0-9a-f]{{12}}", metadata.id)
    assert [path.name for path in folder.glob("*.so")] == [f"{metadata.id}.abi3.so"]
    assert metadata.id in (folder / "_ops.py").read_text()


@pytest.mark.parametrize("backend", BACKENDS)
def test_symbols(backend, build):
    variant_of(backend, build)
    result = local_build("--check-symbols")
    assert result.returncode == 0 and "within manylinux_2_28" in result.stdout


def test_symbol_check_finds_something():
    """The check would fail for a library that needs more, as libtorch_python does."""
    builder = load_module("local_build", ROOT / "local_build.py")
    library = Path(torch.__file__).parent / "lib" / "libtorch_python.so"
    with pytest.raises(builder.BuildError, match="torch's stable C ABI"):
        builder.check_symbols(library)


@pytest.mark.kernels_ci
@pytest.mark.parametrize("backend", BACKENDS)
def test_public_names(backend, build):
    kernel = load(backend, build)
    assert kernel.__all__ == ["dcnv3", "layers"] and kernel.layers.__all__ == ["DCNv3", "InternImageLayer"]
    for name in kernel.__all__:
        assert getattr(kernel, name).__doc__
    for name in kernel.layers.__all__:
        assert getattr(kernel.layers, name).__doc__


@pytest.mark.kernels_ci
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_cpu_operators_of_both_variants(backend, dtype, build):
    """A torch that was built for CUDA gets the CUDA variant, also where there is no GPU."""
    kernel = load(backend, build)
    check_against_reference(kernel.dcnv3, random_arguments(dtype, gate=True, group_channels=16))
    check_against_reference(kernel.dcnv3, random_arguments(dtype, stride=2, height=9))


def test_both_variants_in_one_process(build):
    kernels = [load(backend, build) for backend in BACKENDS]
    assert kernels[0]._ops.ops.dcnv3_forward is not kernels[1]._ops.ops.dcnv3_forward
    arguments = random_arguments(gate=True)
    torch.testing.assert_close(kernels[0].dcnv3(*arguments), kernels[1].dcnv3(*arguments), rtol=0, atol=0)


def test_device_code(build):
    """What the compiler made of the most used kernels for sm_90: 16 bytes at a time, no registers in memory."""
    triton = importlib.util.find_spec("triton")
    bundled = triton and Path(triton.origin).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    cuobjdump = shutil.which("cuobjdump") or (bundled if bundled and bundled.exists() else None)
    if cuobjdump is None:
        pytest.skip("neither the CUDA toolkit's cuobjdump was found nor triton's")
    (library,) = variant_of("cuda", build).glob("*.so")
    command = [cuobjdump, "-arch", "sm_90", library]
    usage = subprocess.run([*command, "-res-usage"], capture_output=True, text=True, check=True).stdout
    own = re.findall(r"Function \S*(?:forward|backward)_kernel.*?(?=Function |\Z)", usage, re.DOTALL)
    assert own and set(re.findall(r"(?:STACK|LOCAL):(\d+)", "".join(own))) == {"0"}
    code = subprocess.run([*command, "-sass"], capture_output=True, text=True, check=True).stdout
    for config in ("IfjLi4ELi4ELi3E", "I13__nv_bfloat16jLi8ELi2ELi3E"):  # 16 channels, 3x3 points
        (body,) = re.findall(rf"Function : \S*forward_kernelINS_6Config{config}.*?(?=Function : |\Z)", code, re.DOTALL)
        assert len(re.findall(r"LDG\.E\.128\b", body)) > 4 and re.findall(r"STG\.E\.128\b", body)
        assert not re.findall(r"STG\.E ", body)
    (body,) = re.findall(r"Function : \S*backward_kernelINS_6ConfigIfjLi4ELi4E.*?(?=Function : |\Z)", code, re.DOTALL)
    assert re.findall(r"REDG\.E\.ADD\.F32x4", body)


def test_one_build_under_two_paths(build, monkeypatch):
    from kernels import get_local_kernel

    folder = variant_of("cpu", build)
    monkeypatch.chdir(ROOT)
    kernels = [get_local_kernel(path) for path in (folder.relative_to(ROOT), folder)]
    assert kernels[0] is not kernels[1]
    for kernel in kernels:
        check_against_reference(kernel.dcnv3, random_arguments(gate=True))


@pytest.mark.parametrize("mode", ["INFERENCE", "TRAINING", "TRAINING | TORCH_COMPILE"])
def test_kernelize(mode, build):
    """`kernels` accepts the layer in the place of one in PyTorch, and it computes the same."""
    import kernels
    from kernels import LocalLayerRepository, Mode

    @kernels.use_kernel_forward_from_hub("DCNv3")
    class Layer(torch.nn.Module):
        def forward(
            self, value, offset, mask, center_scale, kernel_size, stride, padding, dilation, num_groups, offset_scale,
            remove_center, softmax,
        ):  # fmt: skip
            raise NotImplementedError

    if torch.version.cuda is not None and not shutil.which("nvcc"):
        pytest.skip("this torch takes the CUDA variant")
    variant_of("cpu" if torch.version.cuda is None else "cuda", build)
    mode = {"INFERENCE": Mode.INFERENCE, "TRAINING": Mode.TRAINING}.get(mode, Mode.TRAINING | Mode.TORCH_COMPILE)
    model = torch.nn.ModuleDict({"layer": Layer()}).train(mode != Mode.INFERENCE)
    repository = LocalLayerRepository(ROOT, layer_name="DCNv3")
    with kernels.use_kernel_mapping({"DCNv3": {"cpu": repository}}, inherit_mapping=False):
        kernels.kernelize(model, mode=mode, device="cpu", use_fallback=False)
    check_against_reference(model["layer"], random_arguments(gate=True))


@pytest.mark.parametrize("architecture", ["portable", "avx2", "avx512"])
def test_other_instruction_sets(architecture, build):
    """The tests of this machine's instruction set cover one of the four. The essential ones run with the others."""
    variant_of("cpu", build)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    command += [str(ROOT / "tests" / name) for name in ("test_ops.py", "test_fused.py")]
    command += ["-k", "parity or test_golden[ or wild or random_arguments or logits or branch or sampling"]
    environment = os.environ | {"DCNV3_CPU_ARCH": architecture}
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stdout[-3000:]


def test_nothing_to_do_is_quick(build):
    """A second build compiles nothing and has the same name."""
    folder = variant_of("cpu", build)
    identifier = json.loads((folder / "metadata.json").read_text())["id"]
    result = local_build("--backend", "cpu")
    assert result.returncode == 0, result.stderr
    compiled = [line for line in result.stdout.splitlines() if line.startswith("  ") and "->" not in line]
    assert compiled and all(line.endswith("unchanged") for line in compiled)
    assert json.loads((folder / "metadata.json").read_text())["id"] == identifier


@pytest.mark.skipif(shutil.which("g++") is None, reason="compiles with g++")
def test_changed_header_is_compiled_again(tmp_path):
    builder = load_module("local_build", ROOT / "local_build.py")
    source, header = tmp_path / "source.cpp", tmp_path / "header.h"
    source.write_text('#include "header.h"\nint number = NUMBER;\n')
    unit = builder.Unit(source, include=(), flags=())
    compiled = []
    for number in (1, 1, 2):
        header.write_text(f"#define NUMBER {number}\n")
        compiled.append(builder.compile_unit(unit, tmp_path / "source.o", [], tmp_path, "2.11.0", None) is not None)
    assert compiled == [True, False, True]


def test_clear_errors(tmp_path):
    tools = tmp_path / "bin"
    tools.mkdir()
    result = local_build("--backend", "cpu", PATH=str(tools))
    assert result.returncode == 1 and "g++ is needed" in result.stderr
    (tools / "g++").symlink_to(shutil.which("g++"))
    result = local_build("--backend", "cuda", PATH=str(tools), CUDA_HOME="", CUDA_PATH="")
    assert result.returncode == 1 and "nvcc is needed" in result.stderr

    # What build.toml names and is not there; and code that does not compile.
    copy = tmp_path / "dcnv3"
    shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns("build", "tests"))
    (copy / "dcnv3_cpu" / "dcnv3_cpu.cpp").write_text("#error no\n")
    for name in ("portable", "avx2", "avx512", "avx512_bf16"):
        (copy / "dcnv3_cpu" / f"dcnv3_cpu_{name}.cpp").write_text("// empty\n")
    result = local_build("--backend", "cpu", root=copy)
    assert result.returncode == 1 and "#error no" in result.stderr
    (copy / "dcnv3_cpu" / "dcnv3_cpu.cpp").unlink()
    result = local_build("--backend", "cpu", root=copy)
    assert result.returncode == 1 and "dcnv3_cpu.cpp, which does not exist" in result.stderr
