# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""Checks of the kernel: parity, robustness, and how it works with the rest of torch."""

import math
import sys
from dataclasses import replace

import torch
from golden_cases import GOLDEN, TOLERANCES, golden_cases, golden_error, load_golden
from reference_dcnv3 import reference_dcnv3

from .cases import BENCHMARKS, TENSORS, Case, compare, largest_error, make_tensors, results, stage_case
from .machine import find_variant
from .timing import capture


def load(worker):
    kernel = worker.kernel
    missing = [name for name in ("dcnv3", "layers") if not hasattr(kernel, name)]
    return {"ok": not missing, "missing": missing, "folder": str(find_variant(worker.device).name)}


def parity(case, dtype_name, worker):
    tensors, cotangent = make_tensors(case, getattr(torch, dtype_name), worker.device)
    actual = results(worker.call(case), tensors, cotangent)
    worker.synchronize()
    return compare(case, tensors, cotangent, actual)


def wild_offsets(dtype_name, worker):
    """
    Offsets far outside, infinite and NaN, and logits that are infinite or NaN: outputs that have none of them do
    not change, infinitely far is outside, NaN gives NaN or counts as outside, and nothing crashes.
    """
    problems = []
    for base in (Case(13, 14, 4), Case(9, 10, 3, 5, kernel=5), Case(7, 7, 2, 64, gate=True), Case(1, 9, 2, 16)):
        case = base
        tensors, cotangent = make_tensors(case, getattr(torch, dtype_name), worker.device)
        clean = worker.call(case)(*tensors).detach()
        huge = 6e4 if dtype_name == "float16" else 1e30
        for number in (huge, -huge, 1e4, float("inf"), float("-inf"), float("nan")):
            offset, as_outside = (tensors[1].detach().clone() for _ in range(2))
            grouped_shape = (*offset.shape[:3], case.groups, case.points, 2)
            touched = torch.zeros(grouped_shape[:4], dtype=torch.bool, device=worker.device)
            touched.view(-1)[:: max(3, touched.numel() // 37)] = True
            offset.view(grouped_shape)[..., 1, :][touched] = number
            as_outside.view(grouped_shape)[..., 1, :][touched] = 1e4
            wild = [tensors[0], offset.requires_grad_(), *tensors[2:]]
            named = results(worker.call(case), wild, cotangent)
            worker.synchronize()
            output = named["output"].view(*grouped_shape[:4], -1)
            label = f"{case.height}x{case.width}, {case.group_channels} channels, offset {number}"
            if not torch.equal(output[~touched], clean.view(output.shape)[~touched]):
                problems.append(f"{label}: outputs without such an offset changed")
            expected = worker.call(case)(tensors[0], as_outside, *tensors[2:]).detach().view(output.shape)
            same = (output == expected) | output.isnan() if math.isnan(number) else output == expected
            if not same.all():
                problems.append(f"{label}: not as outside")
            if not math.isnan(number) and not all(tensor.isfinite().all() for tensor in named.values()):
                problems.append(f"{label}: gradients that are not finite")
            grad_offset = named["offset"].view(grouped_shape)
            if not grad_offset[~touched].isfinite().all():
                problems.append(f"{label}: gradients of other offsets are not finite")
        for number in (float("inf"), float("-inf"), float("nan"), 6e4):
            mask = tensors[2].detach().clone()
            mask.view(-1)[:: max(5, mask.numel() // 23)] = number
            results(worker.call(case), [*tensors[:2], mask.requires_grad_(), *tensors[3:]], cotangent)
            worker.synchronize()
    return {"ok": not problems, "problems": problems}


def golden(worker):
    if not GOLDEN.exists():
        return {"skipped": "the golden cases are not in this checkout"}
    report = {}
    for name, case in golden_cases().items():
        arguments, cotangent, expected = load_golden(case, name, device=worker.device)
        tensors, rest = arguments[:3], arguments[3:]
        actual = results(lambda *t, rest=rest: worker.kernel.dcnv3(*t, *rest), tensors, cotangent)
        errors = {key: golden_error(tensor, expected[key]) for key, tensor in actual.items()}
        report[name] = {key: error for key, error in errors.items() if not error <= TOLERANCES[torch.float32]}
    return {"ok": not any(report.values()), "cases": report}


def stream_feature(worker):
    """The kernel runs on the current stream: its input is written late on that one."""
    case = stage_case("28x28x128", 4)
    tensors, cotangent = make_tensors(case, torch.float32, worker.device)
    expected = results(worker.call(case), tensors, cotangent)
    late = [torch.zeros_like(tensor) for tensor in tensors[:3]]
    busy = torch.zeros(4096, 4096, device=worker.device)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(20):  # keeps the stream busy for some tens of milliseconds
            busy = busy @ busy
        for tensor, source in zip(late, tensors):
            tensor.copy_(source.detach())
        late = [tensor.requires_grad_() for tensor in late]
        actual = results(worker.call(case), [*late, None], cotangent)
    torch.cuda.synchronize()
    same = {name: torch.allclose(actual[name], expected[name], rtol=1e-4, atol=1e-4) for name in expected}
    return {"ok": all(same.values()), "same": same}


def second_device(worker):
    if torch.cuda.device_count() < 2:
        return {"skipped": "there is only one GPU"}
    case = Case(gate=True)
    tensors, cotangent = make_tensors(case, torch.float32, "cuda:1")
    actual = results(worker.call(case), tensors, cotangent)
    torch.cuda.synchronize(1)
    return compare(case, tensors, cotangent, actual) | {"current_device": torch.cuda.current_device()}


def graph_feature(worker):
    """Forward and backward in a CUDA graph, replayed on other numbers."""
    case = replace(stage_case("14x14x256", 4), gate=True)
    tensors, cotangent = make_tensors(case, torch.bfloat16, worker.device)
    others, _ = make_tensors(case, torch.bfloat16, worker.device, seed=1)
    expected = results(worker.call(case), others, cotangent)

    def step():
        return results(worker.call(case), tensors, cotangent)

    graph, captured = capture(step, [step, step])
    same = {}
    with torch.no_grad():
        for tensor, other in zip(tensors, others):
            tensor.copy_(other)
    for _ in range(3):
        graph.replay()
        torch.cuda.synchronize()
        for name, tensor in expected.items():  # the gradient of value is added up in any order
            tolerance = 2e-2 if name == "value" else 0.0
            same[name] = same.get(name, True) and torch.allclose(
                captured[name], tensor, rtol=tolerance, atol=tolerance
            )
    return {"ok": all(same.values()), "same": same}


def compile_feature(worker):
    """torch.compile without graph breaks; with `dynamic=True` one compilation serves every batch size."""
    case, same = Case(12, 13, 4), {}

    def function(value, offset, mask):
        return worker.kernel.dcnv3(value * 2, offset, mask, num_groups=case.groups).relu()

    for dynamic in (False, True):
        torch.compiler.reset()
        compiled = torch.compile(function, fullgraph=True, dynamic=dynamic)
        for index, batch in enumerate((2, 5, 3) if dynamic else (2, 2)):
            tensors, cotangent = make_tensors(replace(case, batch=batch), torch.float32, worker.device)
            expected = results(lambda *t: function(*t[:3]), tensors, cotangent)
            with torch.compiler.set_stance("fail_on_recompile" if index else "default"):
                actual = results(lambda *t: compiled(*t[:3]), tensors, cotangent)  # noqa: B023 (called at once)
            for name, tensor in expected.items():
                key = f"dynamic={dynamic}, batch {batch}, {name}"
                same[key] = torch.allclose(actual[name], tensor, rtol=1e-4, atol=1e-4)
    return {"ok": all(same.values()), "same": same}


def opcheck_feature(worker):
    """torch.library.opcheck: schema, fake kernels, autograd registration."""
    case = Case(6, 7, gate=True)
    tensors, cotangent = make_tensors(case, torch.float32, worker.device)
    rest = tuple(case.keywords().values())
    tests = ("test_schema", "test_autograd_registration", "test_faketensor")
    report = {}
    for name, operands in (
        ("dcnv3_forward", (*tensors, *rest)),
        ("dcnv3_backward", (cotangent, *(tensor.detach() for tensor in tensors), *rest)),
    ):
        operator = getattr(sys.modules["dcnv3_build._ops"].ops, name).default
        found = torch.library.opcheck(operator, operands, test_utils=tests, raise_exception=False)
        report |= {f"{name} {test}": str(result) for test, result in found.items()}
    return {"ok": all(result == "SUCCESS" for result in report.values()), "results": report}


def determinism(worker):
    different = []
    for name, size in BENCHMARKS.items() if worker.device == "cuda" else [("7x7x64", (7, 7, 4))]:
        case = Case(*size, 16, 32 if worker.device == "cuda" else 2, gate=True)
        for dtype in (torch.float32, torch.bfloat16):
            tensors, cotangent = make_tensors(case, dtype, worker.device)
            first = results(worker.call(case), tensors, cotangent)
            for _ in range(5):
                again = results(worker.call(case), tensors, cotangent)
                names = [key for key in first if key != "value" and not torch.equal(first[key], again[key])]
                different += [f"{name} {dtype} {key}" for key in names]
    alert = None
    if worker.device == "cuda":
        torch.use_deterministic_algorithms(True)
        try:
            results(worker.call(case), tensors, cotangent)
            alert = False
        except RuntimeError as error:
            alert = "deterministic" in str(error)
        finally:
            torch.use_deterministic_algorithms(False)
    return {"ok": not different and alert is not False, "different": different, "refused_when_asked": alert}


def images_alone(worker):
    """An image of a batch has the results that it has alone, also where DCNv4's own operator mixes up images."""
    different = []
    for name, batch in (("28x28x128", 2), ("14x14x256", 4), ("7x7x512", 8)):
        case = stage_case(name, batch, softmax=False)
        tensors, cotangent = make_tensors(case, torch.float32, worker.device)
        together = results(worker.call(case), tensors, cotangent)
        for index in range(batch):
            image = slice(index, index + 1)
            leaves = [None if t is None else t.detach()[image].requires_grad_() for t in tensors]
            for key, alone in results(worker.call(case), leaves, cotangent[image]).items():
                # On a GPU the gradient of value is added up in any order.
                if not torch.equal(together[key][image], alone) and not (key == "value" and worker.device == "cuda"):
                    different.append(f"{name}, image {index}, {key}")
    return {"ok": not different, "different": different}


def bad_arguments(worker):
    """A sentence that names the argument, and a kernel that still works afterwards."""
    tensors, _ = make_tensors(Case(), torch.float32, worker.device)
    value, offset, mask, _ = (None if t is None else t.detach() for t in tensors)
    calls = {
        "offset": lambda: worker.kernel.dcnv3(value, offset[..., :-1], mask, num_groups=2),
        "mask": lambda: worker.kernel.dcnv3(value, offset, mask[:, 1:], num_groups=2),
        "num_groups": lambda: worker.kernel.dcnv3(value, offset, mask, num_groups=5),
        "kernel_size": lambda: worker.kernel.dcnv3(value, offset, mask, kernel_size=9, num_groups=2),
    }
    if worker.device == "cuda":
        calls["device"] = lambda: worker.kernel.dcnv3(value, offset.cpu(), mask, num_groups=2)
        calls["float64"] = lambda: worker.kernel.dcnv3(value.double(), offset.double(), mask.double(), num_groups=2)
    messages = {}
    for name, call in calls.items():
        try:
            call()
            messages[name] = None
        except (RuntimeError, TypeError, ValueError) as error:
            messages[name] = str(error).splitlines()[0]
    worker.kernel.dcnv3(value, offset, mask, num_groups=2)
    worker.synchronize()
    return {"ok": all(messages.values()), "messages": messages}


def many_elements(backward, worker):
    """More elements than 32 bits count; the last images are compared."""
    case = Case(224, 224, 4, 16, batch=700)  # 2.2e9 elements of value, 2.5e9 of offset
    needed = (60 if backward else 24) * 2**30
    free = torch.cuda.mem_get_info()[0]
    if free < needed:
        return {"skipped": f"{free / 2**30:.0f} GiB of memory are free, {needed / 2**30:.0f} are needed"}
    tail = replace(case, batch=1)
    tensors, cotangent = make_tensors(tail, torch.bfloat16, worker.device)
    full = [tensor.detach().expand(case.batch, -1, -1, -1).contiguous() for tensor in tensors[:3]]
    if not backward:
        with torch.no_grad():
            output = worker.call(case)(*full, None)
        actual = results(worker.call(tail), tensors, cotangent) | {"output": output[-1:]}
        same_everywhere = torch.equal(output[0], output[-1]) and torch.equal(output[0], output[case.batch // 2])
    else:
        gradients = sys.modules["dcnv3_build._ops"].ops.dcnv3_backward(
            cotangent.expand(case.batch, -1, -1, -1).contiguous(), *full, None, *case.keywords().values()
        )
        actual = {name: gradient[-1:] for name, gradient in zip(TENSORS, gradients[:3])}
        actual["output"] = worker.call(tail)(*tensors).detach()
        same_everywhere = torch.equal(gradients[1][0], gradients[1][-1])
    report = compare(tail, tensors, cotangent, actual)
    return report | {"ok": report["ok"] and same_everywhere, "same_everywhere": same_everywhere}


def large_image(worker):
    """One image whose positions do not fit 32 bits; its last rows are compared."""
    if torch.cuda.mem_get_info()[0] < 30 * 2**30:
        return {"skipped": "too little free memory"}
    strip = Case(32, 4224, 4, 16, batch=1)
    tensors, cotangent = make_tensors(strip, torch.bfloat16, worker.device)
    full = [tensor.detach().repeat(1, 264, 1, 1) for tensor in tensors[:3]]  # 8448 rows, 2.28e9 elements of value
    with torch.no_grad():
        output = worker.call(strip)(*full, None)
        exact = reference_dcnv3(*(t.detach().double() for t in tensors[:3]), **strip.keywords())
        plain = reference_dcnv3(*(t.detach() for t in tensors[:3]), **strip.keywords())
    rows = slice(-24, None)  # the strip above the last one reaches into its first rows
    error, plain_error = (largest_error(t[:, rows], exact[:, rows]) for t in (output, plain))
    allowed = 2 * plain_error + torch.finfo(torch.bfloat16).eps * exact.abs().max().item()
    return {"ok": error <= allowed, "error": error, "allowed": allowed, "plain": plain_error}
