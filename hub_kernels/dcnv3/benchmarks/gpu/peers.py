# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""What the kernel is compared with: DCNv4, deformops, and the naive kernel of naive_dcnv3.cu."""

import ctypes
import importlib.util
import shutil
import statistics
import subprocess
import tempfile
from dataclasses import replace
from pathlib import Path

import torch
from golden_cases import split_offset_mask

from .cases import compare, detached, reference_results, results
from .machine import FOLDER, one_line
from .timing import benchmark_case, input_sets


PEER_LIMITS = {"float32": 1e-4, "float16": 5e-3, "bfloat16": 4e-2}


class Naive:
    """The kernel of naive_dcnv3.cu."""

    dtypes = {"float32": 0, "float16": 1, "bfloat16": 2}

    def __init__(self):
        nvcc = shutil.which("nvcc") or shutil.which("/usr/local/cuda/bin/nvcc")
        if nvcc is None:
            raise RuntimeError("nvcc was not found: no naive kernel")
        major, minor = torch.cuda.get_device_capability()
        self.folder = tempfile.TemporaryDirectory()
        library = Path(self.folder.name) / "naive.so"
        command = [nvcc, "-O3", "-std=c++17", f"-arch=sm_{major}{minor}", "-shared", "-Xcompiler", "-fPIC"]
        done = subprocess.run([*command, str(FOLDER / "naive_dcnv3.cu"), "-o", str(library)], capture_output=True)
        if done.returncode:
            raise RuntimeError(f"nvcc could not compile naive_dcnv3.cu: {(done.stdout + done.stderr).decode()[-500:]}")
        self.launch = ctypes.CDLL(str(library)).naive_dcnv3_forward
        self.launch.restype = ctypes.c_int
        self.launch.argtypes = [ctypes.c_void_p] * 4 + [ctypes.c_int64] + [ctypes.c_int] * 5 + [ctypes.c_void_p]

    def __call__(self, value, offset, mask, groups):
        output = torch.empty_like(value)
        batch, height, width, channels = value.shape
        error = self.launch(
            value.data_ptr(), offset.data_ptr(), mask.data_ptr(), output.data_ptr(), batch, height, width, groups,
            channels // groups, self.dtypes[str(value.dtype).removeprefix("torch.")],
            torch.cuda.current_stream().cuda_stream,
        )  # fmt: skip
        if error:
            raise RuntimeError(f"the naive kernel failed with CUDA error {error}")
        return output


def benchmark_naive(shape, dtype_name, worker):
    try:
        naive = worker.get("naive", Naive)
    except RuntimeError as error:
        return {"skipped": str(error)}
    case = benchmark_case(worker, shape)
    sets = input_sets(worker, case, getattr(torch, dtype_name))
    tensors, cotangent = sets[0]
    actual = results(worker.call(case), tensors, cotangent)  # its gradients: the naive kernel has none
    actual["output"] = naive(*detached(tensors[:3]), case.groups)
    check = compare(case, tensors, cotangent, actual)["tensors"]["output"]
    report = {"ok": check["ok"], "parity": check}
    if check["ok"]:

        def forward(index):
            operands = detached(sets[index][0][:3])
            return lambda: naive(*operands, case.groups)

        report["forward"] = worker.timer.cold_and_warm(forward, len(sets))
    return report


def grouped(case, offset, mask):
    shape = (*offset.shape[:3], case.groups)
    return offset.reshape(*shape, case.points * 2), mask.reshape(*shape, case.points)


class DCNv4:
    """`DCNv4.ext`, called directly: its own choice of a launch is wrong where it does not divide the image."""

    def __init__(self):
        import DCNv4.ext
        from DCNv4.functions.dcnv4_func import DCNv4Function

        self.extension, self.function = DCNv4.ext, DCNv4Function

    def pack(self, case, offset, mask):
        packed = torch.cat(grouped(case, offset, mask), dim=-1).flatten(3)
        return torch.nn.functional.pad(packed, (0, -packed.shape[-1] % 8)).contiguous()

    def unpack(self, case, gradient):
        return split_offset_mask(gradient, case.groups, case.points)

    def specs(self, case, strides, most_threads=512):
        """(channels per thread, threads per block) whose number of pixels per block divides the image."""
        pixels = case.height * case.width
        found = []
        for stride in strides:
            threads = case.channels // stride
            multipliers = [m for m in range(1, 65) if pixels % m == 0 and threads * m <= most_threads]
            found += [(stride, threads * m) for m in multipliers[-4:]]
        return found

    def geometry(self, case):
        k, s, p, d = case.kernel, case.stride, case.pad, case.dilation
        return (k, k, s, s, p, p, d, d, case.groups, case.group_channels, case.offset_scale)

    def forward(self, case, value, packed, spec, softmax):
        return self.extension.dcnv4_forward(value, packed, *self.geometry(case), 256, 0, *spec, softmax)

    def forward_as_published(self, case, value, packed):
        return self.function.apply(value, packed, *self.geometry(case), 256, 0)

    def backward(self, case, value, packed, cotangent, spec, softmax):
        return self.extension.dcnv4_backward(value, packed, *self.geometry(case), 256, cotangent, 0, *spec, softmax)


class Deformops:
    """The Triton operator of deformops."""

    def __init__(self):
        from deformops.registry import Backend, attn

        self.attn, self.backend = attn, Backend.TRITON

    def pack(self, case, offset, mask):
        shape = (*offset.shape[:3], case.groups, case.points)
        return torch.cat((offset.reshape(*shape, 2), mask.reshape(*shape, 1)), dim=-1).flatten(3).contiguous()

    def unpack(self, case, gradient):
        gradient = gradient[..., : case.groups * case.points * 3]
        gradient = gradient.unflatten(-1, (case.groups, case.points, 3))
        return gradient[..., :2].flatten(3), gradient[..., 2].flatten(3)

    def forward(self, case, value, packed, softmax, fp32acc):
        k, s, p, d = case.kernel, case.stride, case.pad, case.dilation
        return self.attn(
            value, packed, kernel_size=(k, k), stride=(s, s), padding=(p, p), dilation=(d, d), groups=case.groups,
            group_dims=case.group_channels, spread=case.offset_scale, method="softmax" if softmax else "linear",
            backend=self.backend, fp32acc=fp32acc,
        )  # fmt: skip


def relative_errors(actual, exact):
    """||actual - exact|| / ||exact||: for peers, which round at other places."""
    return {
        name: ((actual[name].double() - exact[name]).norm() / exact[name].norm().clamp_min(1e-30)).item()
        for name in actual
    }


def is_close(errors, dtype_name):
    return all(error <= PEER_LIMITS[dtype_name] for error in errors.values())


def fastest_spec(specs, make_call):
    """Specs by time of one launch, those that cannot be launched left out."""
    timed = []
    for spec in specs:
        call = make_call(spec)
        try:
            call()
            torch.cuda.synchronize()
        except Exception:
            continue
        times = []
        for _ in range(5):
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            call()
            end.record()
            torch.cuda.synchronize()
            times.append(start.elapsed_time(end))
        timed.append((statistics.median(times), spec))
    return [spec for _, spec in sorted(timed)]


def measure_own_launch(worker, peer, case, operands, exact, dtype_name):
    """The package as its users call it. Where a block reaches into the next image, pixels are wrong: how many?"""
    output = peer.forward_as_published(case, *operands[0][:2])
    limit = PEER_LIMITS[dtype_name] * exact["output"].abs().max()
    wrong = ((output.double() - exact["output"]).abs() > limit).any(dim=-1)

    def forward(index):
        return lambda: peer.forward_as_published(case, *operands[index][:2])

    return {"wrong_pixels": wrong.double().mean().item(), **worker.timer.cold(forward, len(operands))}


def measure_dcnv4(worker, peer, case, operands, exact, dtype_name):
    report = {}
    value, packed, cotangent = operands[0]
    strides = (4, 2, 8) if dtype_name == "float32" else (8, 4, 2)
    forward_specs = fastest_spec(
        peer.specs(case, strides), lambda spec: lambda: peer.forward(case, value, packed, spec, case.softmax)
    )
    forward_spec = None
    for spec in forward_specs:
        errors = relative_errors({"output": peer.forward(case, value, packed, spec, case.softmax)}, exact)
        if is_close(errors, dtype_name):
            forward_spec = spec
            break
    report["forward_parity"] = {"ok": forward_spec is not None, "errors": errors if forward_specs else {}}
    if forward_spec is None:
        return report
    report["forward_spec"] = forward_spec

    def forward(index):
        value, packed, _ = operands[index]
        return lambda: peer.forward(case, value, packed, forward_spec, case.softmax)

    report["forward"] = worker.timer.cold(forward, len(operands))
    if not case.softmax:  # the function of the package has no such argument
        report["own launch"] = measure_own_launch(worker, peer, case, operands, exact, dtype_name)

    def gradients(spec):
        return peer.backward(case, value, packed, cotangent, spec, case.softmax)

    try:
        gradients(peer.specs(case, (1, 2, 4))[0])
        worker.synchronize()
    except Exception as error:
        report["training_parity"] = {"ok": False, "error": one_line(error)}
        return report
    for spec in fastest_spec(peer.specs(case, (1, 2, 4)), lambda spec: lambda: gradients(spec)):
        grad_value, grad_packed = gradients(spec)
        actual = dict(zip(("value", "offset", "mask"), (grad_value, *peer.unpack(case, grad_packed))))
        errors = relative_errors(actual, exact)
        if is_close(errors, dtype_name):
            break
    else:
        report["training_parity"] = {"ok": False, "errors": errors}
        return report
    report["training_parity"] = {"ok": True, "errors": errors}
    report["backward_spec"] = spec

    def training(index):
        value, packed, cotangent = operands[index]

        def call():
            output = peer.forward(case, value, packed, forward_spec, case.softmax)
            return output, peer.backward(case, value, packed, cotangent, spec, case.softmax)

        return call

    report["training"] = worker.timer.cold(training, len(operands))
    return report


def measure_deformops(worker, peer, case, operands, exact, dtype_name):
    report = {}
    value, packed, _ = operands[0]
    errors = relative_errors({"output": peer.forward(case, value, packed, case.softmax, True)}, exact)
    report["forward_parity"] = {"ok": is_close(errors, dtype_name), "errors": errors}
    if not report["forward_parity"]["ok"]:
        return report

    def forward(index):
        value, packed, _ = operands[index]
        return lambda: peer.forward(case, value, packed, case.softmax, True)

    report["forward"] = worker.timer.cold(forward, len(operands))
    # Where the gradient of value is added up; in 16 bits is its default on this GPU, and less accurate.
    for fp32acc in (True, False) if dtype_name != "float32" else (True,):
        key = "training" if fp32acc else "training, 16-bit sums"

        def gradients(index, fp32acc=fp32acc):
            value, packed, cotangent = operands[index]
            value, packed = value.requires_grad_(), packed.requires_grad_()

            def call():
                output = peer.forward(case, value, packed, case.softmax, fp32acc)
                return torch.autograd.grad(output, (value, packed), cotangent)

            return call

        try:
            grad_value, grad_packed = gradients(0)()
            actual = dict(zip(("value", "offset", "mask"), (grad_value, *peer.unpack(case, grad_packed))))
            errors = relative_errors(actual, exact)
        except Exception as error:
            worker.synchronize()
            report[f"{key}_parity"] = {"ok": False, "error": one_line(error)}
            continue
        report[f"{key}_parity"] = {"ok": is_close(errors, dtype_name), "errors": errors}
        if report[f"{key}_parity"]["ok"]:
            report[key] = worker.timer.cold(gradients, len(operands))
    return report


def peer_benchmark(name, make, shape, dtype_name, worker):
    try:
        peer = worker.get(name, make)
    except ImportError as error:
        if importlib.util.find_spec(name) is None:
            return {"skipped": "not installed"}
        return {"skipped": f"cannot be imported: {error}"}
    case = benchmark_case(worker, shape)
    sets = input_sets(worker, case, getattr(torch, dtype_name))
    report = {"ok": True, "variants": {}}
    for softmax in (True, False):
        variant = replace(case, softmax=softmax)
        operands = []  # value, packed offset and mask, gradient of the output
        for (value, offset, mask, _), cotangent in sets:
            if not softmax:
                mask = mask.detach().unflatten(-1, (case.groups, case.points)).softmax(dim=-1).flatten(3)
            operands.append((value.detach(), peer.pack(variant, offset.detach(), mask.detach()), cotangent))
        tensors = [*sets[0][0][:3], None]
        tensors[1:3] = peer.unpack(variant, operands[0][1])
        exact = reference_results(variant, tensors, sets[0][1], torch.float64)
        measure = measure_dcnv4 if isinstance(peer, DCNv4) else measure_deformops
        report["variants"]["softmax" if softmax else "no softmax"] = measure(
            worker, peer, variant, operands, exact, dtype_name
        )
        del operands, exact
    return report
