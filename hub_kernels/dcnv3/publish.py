# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""Builds, checks and publishes this kernel as a repository of the Kernel Hub.

    python publish.py ORG/NAME                  # a dry run: build, check, list what would be uploaded
    python publish.py ORG/NAME --upload         # needs `hf auth login` and the right to create kernels

What is uploaded, and where to, is as kernel-builder does it: the card as README.md on the branch `main`; the variants,
`build/<variant>/`, and the benchmarks on the branch of the version, `v1`. Variants of other machines stay there.
"""

import argparse
import ast
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import jinja2
import tomllib
import torch
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import HfHubHTTPError
from kernels import Metadata, get_local_kernel

from local_build import ROOT, BuildError, say, unique_id


sys.path.append(str(ROOT / "benchmarks"))
from reference_dcnv3 import reference_dcnv3  # noqa: E402


BENCHMARKS = ("benchmark.py", "reference_dcnv3.py")  # the second is imported by the first


@dataclass(frozen=True)
class Upload:
    """
    Args:
        card: Content of README.md on the branch `main`.
        version_files: Path in the repository -> file, on the branch of the version.
        version: Of the kernel.
    """

    card: str
    version_files: dict[str, Path]
    version: int

    @property
    def branch(self) -> str:
        return f"v{self.version}"

    @property
    def variants(self) -> list[str]:
        return sorted({path.split("/")[1] for path in self.version_files if path.startswith("build/")})


def lay_out(root: Path, repo_id: str) -> Upload:
    """What belongs into the repository. Raises `BuildError` if there is no variant, or one of another version."""
    general = tomllib.loads((root / "build.toml").read_text())["general"]
    version = general["version"]
    variants = [folder for folder in sorted((root / "build").glob("torch*")) if folder.is_dir()]
    if not variants:
        raise BuildError(f"{root / 'build'} has no variant: build one with `python local_build.py`.")
    files = {}
    for folder in variants:
        metadata = Metadata.read_from_file(folder / "metadata.json")
        if metadata.version != version:
            raise BuildError(f"{folder} is of version {metadata.version}, build.toml of {version}: build it again.")
        files |= {
            f"build/{file.relative_to(folder.parent).as_posix()}": file
            for file in sorted(folder.rglob("*"))
            if file.is_file() and "__pycache__" not in file.parts
        }
    files |= {f"benchmarks/{file}": root / "benchmarks" / file for file in BENCHMARKS}
    files["LICENSE"] = root / "LICENSE"
    return Upload(card_of(root, general, repo_id), files, version)


def card_of(root: Path, general: dict, repo_id: str) -> str:
    """CARD.md, filled in as kernel-builder does."""
    statements = ast.parse((root / "torch-ext" / general["name"] / "__init__.py").read_text()).body
    (names,) = (
        ast.literal_eval(statement.value)
        for statement in statements
        if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == "__all__"
    )
    environment = jinja2.Environment(trim_blocks=True, undefined=jinja2.StrictUndefined, keep_trailing_newline=True)
    return environment.from_string((root / "CARD.md").read_text()).render(
        repo_id=repo_id,
        version=general["version"],
        functions=[name for name in names if name != "layers"],
        has_benchmark=(root / "benchmarks" / "benchmark.py").is_file(),
        upstream=general["upstream"],
        license=general["license"].lower(),
    )


def check_sources(upload: Upload):
    """Raise `BuildError` if a variant was built from other sources than those beside this file."""
    config = tomllib.loads((ROOT / "build.toml").read_text())
    for variant in upload.variants:
        folder, backend = ROOT / "build" / variant, backend_of(variant)
        expected = f"_{config['general']['name']}_{backend}_{unique_id(config, backend)}"
        if Metadata.read_from_file(folder / "metadata.json").id != expected:
            raise BuildError(f"{folder} was built from other sources: build it again, without --no-build.")


def backend_of(variant: str) -> str:
    return "cpu" if "-cpu" in variant else "cuda"


def check(upload: Upload) -> dict[str, str]:
    """
    Load each variant as `kernels` loads the repository, and compare it with the reference. Returns what was found for
    each. Raises `BuildError` if a variant does not load or computes something else.
    """
    findings = {}
    with tempfile.TemporaryDirectory() as folder:
        for path, file in upload.version_files.items():
            (Path(folder) / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, Path(folder) / path)
        for variant in upload.variants:
            backend = backend_of(variant)
            if backend == "cuda" and torch.version.cuda is None:
                findings[variant] = "not loaded: this torch was built without CUDA"
                continue
            try:
                kernel = get_local_kernel(Path(folder), backend=backend)
            except Exception as error:  # of `kernels` or of the kernel: any class
                raise BuildError(f"{variant} does not load: {type(error).__name__}: {error}") from error
            loaded = Path(kernel.__file__).parent.name
            if loaded != variant:
                raise BuildError(f"`kernels` loads {loaded} in place of {variant}: remove one of the two from build/.")
            devices = ["cpu"] + ["cuda"] * (backend == "cuda" and torch.cuda.is_available())
            errors = [compare_with_reference(kernel.dcnv3, device) for device in devices]
            if max(errors) > 1e-5:
                raise BuildError(f"{variant} differs from the reference by {max(errors):.1e}.")
            findings[variant] = f"loads, within {max(errors):.0e} of the reference on {' and '.join(devices)}"
            if backend == "cuda" and "cuda" not in devices:
                findings[variant] += "; no GPU here: its CUDA code was not run"
    return findings


def compare_with_reference(dcnv3, device: str) -> float:
    """Largest relative difference of the output and of the gradients for a small case in float32."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(2, 9, 7, 32), (2, 9, 7, 2 * 9 * 2), (2, 9, 7, 2 * 9)]
    tensors = [torch.randn(shape, generator=generator).to(device).requires_grad_() for shape in shapes]
    cotangent = torch.randn(shapes[0], generator=generator).to(device)
    results = []
    for function in (dcnv3, reference_dcnv3):
        output = function(*tensors, num_groups=2)
        results.append([output, *torch.autograd.grad(output, tensors, cotangent)])
    return max(((own - other).abs().max() / other.abs().max()).item() for own, other in zip(*results))


def push(upload: Upload, repo_id: str, private: bool) -> str:
    """
    Upload, in one commit for each branch. Returns the address of the version. Raises `BuildError` if the Hub cannot be
    reached or refuses.
    """
    try:
        return _push(upload, repo_id, private)
    except HfHubHTTPError as error:
        raise BuildError(
            f"The Hub refused the upload to {repo_id}: {error.server_message or error}. Log in with `hf auth login` "
            "and a token with write access; the right to create kernels is requested in the account's settings."
        ) from error
    except Exception as error:  # the Hub's client does not wrap those of the libraries that it uses
        reason = f"{type(error).__name__}: {error}"
        raise BuildError(f"Nothing was published as {repo_id}, is there a network? ({reason})") from error


def _push(upload: Upload, repo_id: str, private: bool) -> str:
    api = HfApi()
    api.create_repo(repo_id, repo_type="kernel", private=private, exist_ok=True)
    card = CommitOperationAdd("README.md", upload.card.encode())
    api.create_commit(repo_id, [card], repo_type="kernel", commit_message=f"Card of version {upload.version}")
    api.create_branch(repo_id, branch=upload.branch, repo_type="kernel", exist_ok=True)
    replaced = tuple(f"build/{variant}/" for variant in upload.variants)
    there = api.list_repo_files(repo_id, repo_type="kernel", revision=upload.branch)
    operations = [
        CommitOperationDelete(path) for path in there if path.startswith(replaced) and path not in upload.version_files
    ]
    operations += [CommitOperationAdd(path, file) for path, file in upload.version_files.items()]
    message = f"Version {upload.version}: {', '.join(upload.variants)}"
    return api.create_commit(
        repo_id, operations, repo_type="kernel", revision=upload.branch, commit_message=message
    ).commit_url


def main(arguments: list[str] | None = None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("repo_id", metavar="ORG/NAME", help="of the repository, which is created if it is not there")
    parser.add_argument("--upload", action="store_true", help="upload; without it, a dry run")
    parser.add_argument("--private", action="store_true", help="create a private repository")
    parser.add_argument("--no-build", action="store_true", help="take the variants in build/, which must be current")
    args = parser.parse_args(arguments)
    if args.repo_id.count("/") != 1:
        parser.error(f"name the repository as ORG/NAME, not {args.repo_id!r}")
    if not args.no_build and subprocess.run([sys.executable, ROOT / "local_build.py"]).returncode:
        raise BuildError("The build failed; nothing was uploaded.")
    upload = lay_out(ROOT, args.repo_id)
    check_sources(upload)
    for variant, finding in check(upload).items():
        say(f"{variant}: {finding}")
    say(f"branch main: README.md ({len(upload.card.encode())} bytes)")
    for path, file in upload.version_files.items():
        say(f"branch {upload.branch}: {path} ({file.stat().st_size} bytes)")
    if not args.upload:
        say(f"A dry run: nothing was uploaded to {args.repo_id}. Add --upload to do it.")
        return
    say(f"published: {push(upload, args.repo_id, args.private)}")
    say(f'Load it with get_kernel("{args.repo_id}", version={upload.version}).')


if __name__ == "__main__":
    try:
        main()
    except BuildError as error:
        sys.exit(f"publish.py: {error}")
