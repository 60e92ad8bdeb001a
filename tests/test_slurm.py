"""The SLURM script of docs/, with stand-ins for SLURM's commands."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, SMALL, environment

pytestmark = pytest.mark.slow

STAND_INS = {
    "srun": 'exec "$@"',
    "torchrun": f'exec {sys.executable} -m torch.distributed.run "$@"',
    "scontrol": 'echo "$@" >> scontrol.log; echo localhost',
}


def job(folder: Path, data: Path, *keys: str) -> subprocess.Popen:
    """The script as a job of one machine with two ranks."""
    for name, body in STAND_INS.items():
        (folder / name).write_text(f"#!/bin/bash\n{body}\n")
        (folder / name).chmod(0o755)
    given = {key.partition("=")[0]: key for key in [*SMALL, f"--data_dir={data}", f"--out_dir={folder}/run", *keys]}
    slurm = {"SLURM_JOB_ID": "7", "SLURM_NNODES": "1", "SLURM_JOB_NODELIST": "localhost", "SLURM_GPUS_ON_NODE": "2"}
    script = folder / "train.py"
    script.unlink(missing_ok=True)
    script.symlink_to(ROOT / "train.py")
    return subprocess.Popen(
        ["bash", str(ROOT / "docs/slurm.sh"), *given.values()],
        cwd=folder, env=environment() | slurm | {"PATH": f"{folder}:{os.environ['PATH']}"},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip


def test_a_job_that_runs_out_of_time_is_queued_again_and_ends(data_dir, tmp_path):
    first = job(tmp_path, data_dir, "--max_iters=1000000", "--compile=False")
    assert first.stdout is not None
    for line in first.stdout:
        if line.startswith("Iter 5"):
            break
    (launcher,) = subprocess.run(["pgrep", "-P", str(first.pid)], capture_output=True, text=True).stdout.split()
    os.kill(int(launcher), signal.SIGTERM)  # as SLURM does: to the steps and not to the script
    assert first.wait(timeout=60) != 0
    assert "requeue 7" in (tmp_path / "scontrol.log").read_text()
    (tmp_path / "scontrol.log").unlink()

    steps = int(max((tmp_path / "run/checkpoints").glob("step_*")).name[5:])
    last = job(tmp_path, data_dir, f"--max_iters={steps + 5}")
    output = last.communicate(timeout=60)[0]
    assert last.returncode == 0 and f"resumed at step {steps:,}" in output, output
    assert "requeue" not in (tmp_path / "scontrol.log").read_text()


def test_a_job_that_fails_is_not_queued_again(data_dir, tmp_path):
    failed = job(tmp_path, data_dir, "--n_head=3")
    failed.communicate(timeout=60)
    assert failed.returncode != 0
    assert "requeue" not in (tmp_path / "scontrol.log").read_text()
