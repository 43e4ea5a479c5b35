# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""Results: the JSON file, the table, the targets and the plot."""

import datetime
import json

from .cases import BENCHMARKS, LARGE_STAGES
from .machine import commit_of_checkout
from .model import MODES


class Report:
    def __init__(self, path, arguments):
        self.path, self.device = path, arguments.device
        self.data = {
            "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            "commit": arguments.commit or commit_of_checkout(), "quick": arguments.quick, "complete": False,
            "failures": [], "not_run": [], "results": {},
        }  # fmt: skip

    def write(self):
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_name(self.path.name + ".new")
        temporary.write_text(json.dumps(self.data, indent=1) + "\n")
        temporary.replace(self.path)

    def add(self, task, result, seconds):
        self.data["results"].setdefault(task.section, {})[task.name] = result
        failed = "skipped" not in result and not result.get("ok")
        if failed:
            self.data["failures"].append(task.key)
        mark = "skip" if "skipped" in result else "FAIL" if failed else "ok"
        print(f"[{mark:4}] {task.key} ({seconds:.1f} s) {describe(result)}", flush=True)
        if failed and "traceback" in result:
            print(result["traceback"], flush=True)
        self.write()


def describe(result):
    """One line for the terminal."""
    message = result.get("skipped") or result.get("error")
    if isinstance(message, str):
        return message
    parts = []
    for name, tensor in (result.get("tensors") or result.get("parity") or {}).items():
        if isinstance(tensor, dict) and not tensor["ok"]:
            parts.append(f"{name}: error {tensor.get('error', tensor.get('got'))}, allowed {tensor.get('allowed')}")
    for name in ("ours", "PyTorch", "torch.compile"):
        if name in result:
            parts.append(f"{name} {1e6 * result[name]['seconds']:.2f} us")
    for key in ("forward", "training"):
        timing = result.get(key, {})
        times = timing if "cold" in timing else {"graph": timing} if timing else {}
        parts += [f"{key}, {how} {1e6 * part['seconds']:.2f} us" for how, part in times.items()]
    for variant, report in result.get("variants", {}).items():
        for key, part in report.items():
            if "cold" in part:
                parts.append(f"{variant}: {key} {1e6 * part['cold']['seconds']:.2f} us")
            elif isinstance(part, dict) and not part["ok"]:
                parts.append(f"{variant}: {key} failed {part.get('errors', part.get('error'))}")
    if "bytes_per_second" in result:
        parts.append(f"{result['bytes_per_second'] / 1e9:.0f} GB/s")
    if result.get("images_per_second"):
        parts.append(f"{result['images_per_second']:.0f} images/s")
    if not result.get("ok") and not parts:
        return json.dumps(result)[:600]
    return "; ".join(parts)


def seconds_of(result, key, how="cold"):
    part = (result or {}).get(key)
    if not isinstance(part, dict) or how not in part or part[how]["method"].startswith("events"):
        return None  # times that contain gaps between launches are in the JSON only
    return part[how]["seconds"]


def peer_times(result, variants):
    """The fastest of these variants of a peer: forward, forward with backward, backward."""
    forward, training, backward = [], [], []
    for name in variants:
        variant = (result or {}).get("variants", {}).get(name, {})
        time_forward = seconds_of(variant, "forward")
        if time_forward is None:
            continue
        forward.append(time_forward)
        for key in ("training", "training, 16-bit sums"):
            if seconds_of(variant, key) is not None:
                training.append(seconds_of(variant, key))
                backward.append(seconds_of(variant, key) - time_forward)
    return [min(times) if times else None for times in (forward, training, backward)]


def element_bytes(dtype_name):
    return 4 if dtype_name == "float32" else 2


def evaluate(report, arguments):
    """The rows of the table, and the targets."""
    found = report.data["results"]
    bandwidth = found.get("bandwidth", {}).get("copy", {}).get("bytes_per_second")
    rows = []
    measured = [("DCNv3", key, ours) for key, ours in found.get("ours", {}).items()]
    measured += [("DCNv4", key, ours) for key, ours in found.get("ours, DCNv4", {}).items()]
    for operator, key, ours in measured:
        if seconds_of(ours, "forward") is None:
            continue
        shape, dtype = key.split()
        height, width, groups = (BENCHMARKS | LARGE_STAGES)[shape]
        elements = ours["batch"] * height * width * groups * 16 * element_bytes(dtype)
        # Of DCNv3, the faster of a peer with and without the softmax; without it, the peer does less.
        variants = ("softmax", "no softmax") if operator == "DCNv3" else ("no softmax",)
        naive = found.get("naive", {}) if operator == "DCNv3" else {}
        peers = {name: peer_times(found.get(name, {}).get(key), variants) for name in ("DCNv4", "deformops")}
        # Backward: gradient of the output, value and its gradient; offset, mask and theirs.
        for position, (step, moved) in enumerate(
            (("forward", elements * (2 + 27 / 16)), ("training", elements * (5 + 81 / 16)))
        ):
            seconds = seconds_of(ours, step)
            if seconds is None:
                continue
            rows.append(
                {
                    "operator": operator, "shape": shape, "dtype": dtype,
                    "step": "forward" if step == "forward" else "forward+backward", "batch": ours["batch"],
                    "ours": seconds, "ours_warm": seconds_of(ours, step, "warm"),
                    "naive": seconds_of(naive.get(key), step),
                    "DCNv4": peers["DCNv4"][position], "deformops": peers["deformops"][position],
                    "ours_backward": seconds - seconds_of(ours, "forward"),
                    "deformops_backward": peers["deformops"][2], "bytes": moved,
                    "floor": moved / bandwidth if bandwidth else None,
                    "fraction_of_floor": moved / bandwidth / seconds if bandwidth else None,
                }
            )  # fmt: skip

    targets = []

    def target(name, value, needed, better=None, at_most=False):
        ok = None if value is None else value <= needed if at_most else value >= needed
        reached = None if value is None or better is None else value >= better
        targets.append({"target": name, "value": value, "needed": needed, "ok": ok, "better": better,
                        "better_reached": reached})  # fmt: skip

    def ratio(row, numerator, denominator="ours"):
        return row[numerator] / row[denominator] if row[numerator] and row[denominator] else None

    for row in rows:
        if row["operator"] != "DCNv3":
            continue
        name = f"{row['shape']} {row['dtype']}"
        if row["step"] == "forward":
            if row["dtype"] != "float32":
                target(f"forward, {name}: times faster than DCNv4", ratio(row, "DCNv4"), 1.3, 2.0)
                target(f"forward, {name}: times faster than deformops", ratio(row, "deformops"), 1.2, 1.5)
                target(f"forward, {name}: times faster than the naive kernel", ratio(row, "naive"), 6.0)
            if row["shape"] in ("56x56x64", "56x56x112") and row["dtype"] != "float16":
                needed, better = (0.6, None) if row["dtype"] == "float32" else (0.4, 0.55)
                target(f"forward, {name}: fraction of the floor", row["fraction_of_floor"], needed, better)
        else:
            value = ratio(row, "deformops_backward", "ours_backward")
            target(f"backward, {name}: times faster than deformops", value, 1.2)
    for key, result in found.get("latency", {}).items():
        seconds = (result.get("forward") or {}).get("seconds")
        target(f"batch 1, {key}: us in a CUDA graph", seconds and 1e6 * seconds, 4.0, at_most=True)
    report.data |= {"rows": rows, "targets": targets if arguments.device == "cuda" else []}


def number(value, scale=1.0, digits=1, suffix=""):
    return "-" if value is None else f"{value * scale:.{digits}f}{suffix}"


def fused_table(found, bandwidth):
    if not found.get("fused"):
        return []
    lines = [
        "",
        "| fused for inference, us | ours | PyTorch | torch.compile | of the floor |",
        "|:--|--:|--:|--:|--:|",
    ]
    for key, result in found["fused"].items():
        times = [result.get(name, {}).get("seconds") for name in ("ours", "PyTorch", "torch.compile")]
        floor = result["bytes"] / bandwidth if bandwidth and "bytes" in result else None
        cells = [key, *(number(seconds, 1e6) for seconds in times)]
        cells.append(number(floor and times[0] and floor / times[0], 100, 0, "%"))
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def model_table(found):
    """One line for each model, batch, dtype and step; a column for each mode."""
    rows = {}
    for result in [*found.get("model", {}).values(), *found.get("model, compiled", {}).values()]:
        if result.get("seconds"):
            operator = {True: "", False: ", PyTorch DCNv3"}[result["kernel"]]
            size = "x".join(map(str, result["size"]))
            key = (result["step"], result["batch"], size, result["dtype"], result["model"] + operator)
            rows.setdefault(key, {})[result["mode"]] = result
    if not rows:
        return []
    fastest = {key: min(result["seconds"] for result in modes.values()) for key, modes in rows.items()}
    lines = [
        "",
        "| whole model, ms | step | batch | dtype | " + " | ".join(MODES) + " | peak MB | ConvNeXt-T / this |",
        "|:--|:--|:--|:--|" + "--:|" * (len(MODES) + 2),
    ]
    for key in sorted(rows, key=lambda key: key[:4]):
        step, batch, size, dtype, model = key
        other = fastest.get((*key[:4], "ConvNeXt-T"))
        memory = [result["peak_memory"] for result in rows[key].values() if "peak_memory" in result]
        cells = [model, step, f"{batch}x{size}", dtype]
        cells += [number(rows[key].get(mode, {}).get("seconds"), 1e3, 2) for mode in MODES]
        cells += [number(max(memory, default=None), 1e-6, 0), number(other and other / fastest[key], 1, 2)]
        lines.append("| " + " | ".join(cells) + " |")
    return [
        *lines,
        "",
        "By the clock, the time of the CPU included; on a CPU, models have one layer per stage. float32: no TF32.",
        "Peak memory is that of the mode that takes most. The last column compares the fastest modes.",
    ]


def markdown(report):
    data, lines = report.data, []
    facts = data["results"].get("environment", {}).get("this machine", {})
    bandwidth = data["results"].get("bandwidth", {}).get("copy", {}).get("bytes_per_second")
    driver = facts.get("nvidia_smi", {}).get("driver_version", "-")
    lines.append(
        f"{facts.get('device', '-')}, driver {driver}, torch {facts.get('torch', '-')}, {data['date'][:10]}, commit "
        f"{(data['commit'] or '-')[:12]}, build {facts.get('library', '-')}; copy bandwidth "
        f"{number(bandwidth, 1e-9, 0)} GB/s. Times in microseconds."
    )
    lines += [
        "",
        "| operator | shape | dtype | step | ours | ours, warm | DCNv4 | deformops | naive | MB | of the floor |",
        "|:--|:--|:--|:--|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for row in data["rows"]:
        times = [number(row[key], 1e6) for key in ("ours", "ours_warm", "DCNv4", "deformops", "naive")]
        cells = [row["operator"], f"{row['batch']}x{row['shape']}", row["dtype"], row["step"], *times]
        cells += [number(row["bytes"], 1e-6), number(row["fraction_of_floor"], 100, 0, "%")]
        lines.append("| " + " | ".join(cells) + " |")
    lines += [
        "",
        "Inputs do not fit the cache (warm: always the same). DCNv3 includes the softmax; a peer's time is the faster",
        "of with and without it. DCNv4 has none. The floor is the time to move each tensor once at copy bandwidth.",
        "A dash: not measured.",
    ]
    launches = {
        key: result.get("variants", {}).get("no softmax", {}).get("own launch")
        for key, result in data["results"].get("DCNv4", {}).items()
    }
    if any(launches.values()):
        lines += [
            "",
            "| the package DCNv4 with the launch that it chooses, forward | us | wrong pixels |",
            "|:--|--:|--:|",
        ]
        for key, result in launches.items():
            if result:
                cells = [key, number(result["cold"]["seconds"], 1e6), number(result["wrong_pixels"], 100, 2, "%")]
                lines.append("| " + " | ".join(cells) + " |")
    latencies = data["results"].get("latency", {})
    if latencies:
        lines += ["", "| batch 1 | us per call |", "|:--|--:|"]
        for key, result in latencies.items():
            lines.append(f"| {key} | {number((result.get('forward') or {}).get('seconds'), 1e6, 2)} |")
    lines += fused_table(data["results"], bandwidth) + model_table(data["results"])
    if data["targets"]:
        lines += ["", "| target | measured | needed | better | |", "|:--|--:|--:|--:|:--|"]
        for target in data["targets"]:
            mark = {None: "not measured", True: "pass", False: "FAIL"}[target["ok"]]
            mark += " (better)" if target["better_reached"] else ""
            cells = [
                target["target"],
                number(target["value"], 1, 2),
                str(target["needed"]),
                str(target["better"] or "-"),
            ]
            lines.append("| " + " | ".join([*cells, mark]) + " |")
    return "\n".join(lines)


def plot(report, path):
    rows = [row for row in report.data["rows"] if (row["operator"], row["dtype"]) == ("DCNv3", "bfloat16")]
    try:
        import matplotlib
    except ImportError:
        print("matplotlib is not installed: no plot.")
        return
    if not rows:
        return
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(12, 4))
    for axis, step in zip(axes, ("forward", "forward+backward")):
        chosen = [row for row in rows if row["step"] == step]
        names = [name for name in ("ours", "DCNv4", "deformops", "naive") if any(row[name] for row in chosen)]
        for index, name in enumerate(names):
            positions = [i + (index - (len(names) - 1) / 2) * 0.8 / len(names) for i in range(len(chosen))]
            axis.bar(positions, [(row[name] or 0) * 1e6 for row in chosen], 0.8 / len(names), label=name)
        for i, row in enumerate(chosen):
            if row["floor"]:
                label = "floor" if i == 0 else None
                axis.hlines(row["floor"] * 1e6, i - 0.45, i + 0.45, color="black", linestyle="dashed", label=label)
        axis.set_xticks(range(len(chosen)), [f"{row['batch']}x{row['shape']}" for row in chosen])
        axis.set_yscale("log")
        axis.set_ylabel("microseconds")
        axis.set_title(f"DCNv3 {step}, bfloat16")
        axis.legend()
    figure.suptitle(report.data["results"].get("environment", {}).get("this machine", {}).get("device", ""))
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    print(f"Plot: {path}")
