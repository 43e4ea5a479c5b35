# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""The Slurm script, with small stand-ins for `srun`, `scontrol`, `scancel` and, in the quick tests, `accelerate`."""

import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from testing_utils import REPOSITORY


SCRIPT = REPOSITORY / "examples" / "slurm" / "train.sbatch"
# A task for each node. As Slurm, it returns the highest status of the tasks.
SRUN = """#!/usr/bin/env bash
while [[ $1 == --* ]]; do shift; done
for ((node = 0; node < SLURM_NNODES; node++)); do
    SLURM_NODEID=$node "$@" &
    echo $! >> tasks
done
status=0
for task in $(cat tasks); do
    wait "$task" || { own=$?; ((own > status)) && status=$own; }
done
exit "$status"
"""
SCONTROL = """#!/usr/bin/env bash
case $1 in
    show) printf '127.0.0.1\\nother\\n' ;;
    requeue) echo "$2" >> requeued ;;
esac
"""
# As Slurm, it signals all processes of the tasks, the launchers and what they have started.
SCANCEL = f"""#!{sys.executable}
import pathlib, psutil, signal, sys
assert sys.argv[1:] == ["--signal=TERM", "{{job}}"]
for task in pathlib.Path("tasks").read_text().split():
    for process in [psutil.Process(int(task)), *psutil.Process(int(task)).children(recursive=True)]:
        process.send_signal(signal.SIGTERM)
"""
ACCELERATE = """#!/usr/bin/env bash
echo "$TORCH_ELASTIC_SHUTDOWN_TIMEOUT $*" >> launched
trap 'exit 1' TERM
{behaviour}
"""


class Slurm:
    """A queue with one job of two nodes, in the current folder."""

    def __init__(self, accelerate: str | None = None):
        with socket.socket() as free:  # the script derives the port from the job's number
            free.bind(("127.0.0.1", 0))
            self.job = str(free.getsockname()[1] - 20000 + 20000 * (free.getsockname()[1] < 20000))
        commands = {"srun": SRUN, "scontrol": SCONTROL, "scancel": SCANCEL.format(job=self.job)}
        if accelerate is not None:
            commands["accelerate"] = ACCELERATE.format(behaviour=accelerate)
        for name, text in commands.items():
            path = Path("bin", name)
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)
            path.chmod(0o755)

    def start(self, *arguments: str, **environment: str) -> subprocess.Popen:
        for name in ("tasks", "requeued", "launched"):
            Path(name).unlink(missing_ok=True)
        slurm = {"SLURM_JOB_ID": self.job, "SLURM_NNODES": "2", "SLURM_JOB_NODELIST": "node[1-2]"}
        path = os.pathsep.join([str(Path("bin").absolute()), str(Path(sys.executable).parent), os.environ["PATH"]])
        with open("log", "a") as log:
            return subprocess.Popen(
                [SCRIPT, *arguments],
                env=os.environ | slurm | {"PATH": path} | environment,
                stdout=log,
                stderr=subprocess.STDOUT,
            )


def wait_until(condition, process: subprocess.Popen, seconds: float = 300):
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None and time.monotonic() < deadline, Path("log").read_text()
        time.sleep(0.05)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("status", [0, 3])
def test_machines_meet_and_the_status_is_that_of_training(status, folder):
    slurm = Slurm(f'[[ "$*" == *"machine_rank 1"* ]] && exit {status}; exit 0')
    assert slurm.start("-m", "my.script", "my arguments.json", SLURM_GPUS_ON_NODE="8").wait(30) == status
    port = 20000 + int(slurm.job) % 20000
    assert sorted(Path("launched").read_text().splitlines()) == [
        f"540 launch --machine_rank {rank} --config_file examples/accelerate_configs/ddp.yaml --num_machines 2 "
        f"--num_processes 16 --main_process_ip 127.0.0.1 --main_process_port {port} -m my.script my arguments.json"
        for rank in (0, 1)
    ]
    assert not Path("requeued").exists()


@pytest.mark.parametrize("status", [0, 1], ids=["training ended meanwhile", "training was stopped"])
def test_usr1_stops_and_requeues(status, folder):
    slurm = Slurm(f"trap 'sleep 0.2; exit {status}' TERM\nwhile :; do sleep 0.1; done")
    process = slurm.start("-m", "my.script")
    wait_until(lambda: Path("launched").exists() and len(Path("launched").read_text().splitlines()) == 2, process)
    process.send_signal(signal.SIGUSR1)
    assert process.wait(30) == status
    assert Path("requeued").exists() == (status == 1)
    if status == 1:
        assert Path("requeued").read_text().split() == [slurm.job]


def test_options_of_the_script():
    """Those that the stand-ins do not read."""
    options = shlex.split(" ".join(re.findall(r"^#SBATCH (.*)", SCRIPT.read_text(), re.M)))
    assert {"--signal=B:USR1@600", "--requeue", "--open-mode=append", "--ntasks-per-node=1"} <= set(options)
    timeout = int(re.search(r"SHUTDOWN_TIMEOUT:-(\d+)", SCRIPT.read_text())[1])
    assert timeout < 600  # the launcher kills its processes before Slurm kills the job
    assert os.access(SCRIPT, os.X_OK)


@pytest.mark.slow
def test_stopped_and_requeued_training_ends_as_uninterrupted(folder):
    """Two processes with gloo."""
    rng = np.random.default_rng(0)
    for label in ("dark", "bright"):
        Path("images", label).mkdir(parents=True)
        for idx in range(16):
            pixels = rng.integers(0, 128, (32, 32, 3), dtype=np.uint8) + 128 * (label == "bright")
            Image.fromarray(pixels.astype(np.uint8)).save(Path("images", label, f"{idx}.png"))
    arguments = {
        "config_overrides": {"embed_dim": 16, "depths": [1, 1, 1, 1], "num_groups": [1, 2, 4, 8], "image_size": 32},
        "train_dir": "images", "train_val_split": 0.0, "do_train": True, "max_steps": 24, "logging_steps": 1,
        "per_device_train_batch_size": 2, "learning_rate": 1e-3, "save_strategy": "epoch", "report_to": "none",
        "dataloader_pin_memory": False, "disable_tqdm": True,
    }  # fmt: skip
    for name in ("uninterrupted", "interrupted"):
        Path(f"{name}.json").write_text(json.dumps(arguments | {"output_dir": name}))
    slurm = Slurm()
    environment = {
        "ACCELERATE_USE_CPU": "true", "ACCELERATE_MIXED_PRECISION": "no", "PYTHONPATH": str(REPOSITORY),
        "ACCELERATE_CONFIG": str(REPOSITORY / "examples" / "accelerate_configs" / "ddp.yaml"), "OMP_NUM_THREADS": "1",
    }  # fmt: skip

    def start(name: str) -> subprocess.Popen:
        script = "examples.image_classification.run_image_classification"
        return slurm.start("--mixed_precision", "no", "-m", script, f"{name}.json", **environment)

    assert start("uninterrupted").wait(600) == 0, Path("log").read_text()
    Path("log").unlink()
    process = start("interrupted")
    wait_until(lambda: Path("log").read_text().count("'loss'") >= 3, process)
    process.send_signal(signal.SIGUSR1)
    assert process.wait(600) != 0
    assert Path("requeued").read_text().split() == [slurm.job], Path("log").read_text()
    state = json.loads(next(Path("interrupted").glob("checkpoint-*/trainer_state.json")).read_text())
    assert 0 < state["global_step"] < 24
    assert not Path("interrupted", "model.safetensors").exists()
    assert start("interrupted").wait(600) == 0, Path("log").read_text()
    assert not Path("requeued").exists()
    saved = [Path(name, "model.safetensors").read_bytes() for name in ("uninterrupted", "interrupted")]
    assert saved[0] == saved[1]
