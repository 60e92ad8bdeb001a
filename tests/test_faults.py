"""Lost ranks, lost launchers, restarts: what is said, and that nothing is lost."""

import contextlib
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TextIO

import processes
import pytest
from checkpoints import last_checkpoint, same, tensors
from commands import Done
from conftest import ROOT, environment, small_run
from test_resume import KEYS, curve, same_end

from common.errors import UserError
from runs.folder import RunFolder

pytestmark = pytest.mark.slow

# A run in which something happens when one rank begins its n-th step.
FAULTY_RUN = """
import os, signal, time
import training.trainer as trainer
original, calls = trainer.take_step, 0

def take_step(*arguments):
    global calls
    calls += 1
    if calls == {step} and os.environ["RANK"] == "{rank}" and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
        {fault}
    return original(*arguments)

trainer.take_step = take_step
import train
train.main()
"""
KILL = "os.kill(os.getpid(), signal.SIGKILL)"
FREEZE = "os.kill(os.getpid(), signal.SIGSTOP)"
HANG = "time.sleep(1000)"
CRASH = "raise ValueError('a bug')"
TWO_RANKS = ["--standalone", "--nproc_per_node=2"]


def start(folder: Path, data: Path, *keys: str, script: Path = ROOT / "train.py") -> subprocess.Popen:
    """The small run of test_resume under the real torchrun, which starts it again once."""
    launcher = ["-m", "torch.distributed.run", *TWO_RANKS, "--max_restarts=1"]
    return subprocess.Popen(
        [sys.executable, *launcher, str(script), *small_run(data, *KEYS, "--out_dir=run", *keys)],
        cwd=folder, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def read_until(output: Iterable[str] | None, pattern: str) -> str:
    """The line in which the pattern appears. The test's own time limit ends a wait in vain."""
    seen = []
    for line in output or ():
        seen.append(line)
        if re.search(pattern, line):
            return line
    raise AssertionError(f"{pattern!r} is not in:\n{''.join(seen)}")


def kill_everything(launcher: int, output: TextIO | None) -> None:
    """The launcher and its ranks, which torchrun starts in sessions of their own."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(launcher, signal.SIGSTOP)  # it starts no more of them
    for pid in [launcher, *children(launcher)]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    if output is not None:
        output.read()  # ends when the last of them has closed it
        output.close()


def children(pid: int) -> list[int]:
    listed = subprocess.run(["ps", "-A", "-o", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
    return [int(child) for child, parent in (line.split() for line in listed.splitlines()) if int(parent) == pid]


def wait_until_free(run: Path) -> None:
    """Until no live run holds the folder."""
    for _ in range(600):
        try:
            with RunFolder(run).hold():
                return
        except UserError:
            time.sleep(0.1)
    raise AssertionError(f"{run} is still held")


@pytest.fixture(scope="module")
def uninterrupted(data_dir, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("uninterrupted")
    done = continued(folder, data_dir)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "run"


def continued(folder: Path, data: Path) -> Done:
    keys = small_run(data, *KEYS, "--out_dir=run", "--init_from=auto")
    return processes.run(ROOT / "train.py", keys, folder, environment(), TWO_RANKS)


@pytest.mark.parametrize(
    ("fault", "ranks", "lost", "message"),
    [
        (KILL, 4, 1, r"rank 1 has gone in step 6: .*--init_from=auto"),
        (KILL, 2, 0, r"rank 0 has gone in step 6"),
        (FREEZE, 2, 1, r"rank 1 has gone in step 6"),
        (HANG, 2, 1, r"rank 1 has not come to an exchange of step 6 in 5 s"),
        (CRASH, 2, 1, r"rank 1 has gone in step 6"),
    ],
    ids=["killed", "killed first", "frozen", "hung", "crashed"],
)
def test_the_error_names_the_lost_rank_and_the_step(data_dir, tmp_path, fault, ranks, lost, message):
    script = tmp_path / "faulty_run.py"
    script.write_text(FAULTY_RUN.format(step=6, rank=lost, fault=fault))
    keys = small_run(data_dir, *KEYS, "--out_dir=run", "--comm_timeout=5", "--gradient_accumulation_steps=4")
    torchrun = ["--standalone", f"--nproc_per_node={ranks}"]
    process, output = processes.start_speaking(script, keys, tmp_path, environment(), torchrun)
    try:
        line = read_until(output, r"^error: ")
        assert re.search(message, line), line
        assert last_checkpoint(tmp_path / "run").name in ("step_00000003", "step_00000004")  # it may be under way
    finally:
        kill_everything(process.pid, output)


def test_torchrun_starts_a_failed_run_again_and_it_continues_by_itself(data_dir, tmp_path, uninterrupted):
    script = tmp_path / "faulty_run.py"
    script.write_text(FAULTY_RUN.format(step=6, rank=1, fault=KILL))
    process = start(tmp_path, data_dir, script=script)
    output = process.communicate(timeout=120)[0]
    assert process.returncode == 0, output
    assert re.search("resumed at step [34]", output)
    assert curve(tmp_path / "run/log.jsonl") == curve(uninterrupted / "log.jsonl")
    assert same_end(tmp_path / "run", uninterrupted)


@pytest.mark.parametrize("everything", [True, False], ids=["launcher and ranks", "the launcher alone"])
def test_the_launcher_is_killed(data_dir, tmp_path, uninterrupted, everything):
    keys = small_run(data_dir, *KEYS, "--out_dir=run")
    torchrun = [*TWO_RANKS, "--max_restarts=1"]
    process, output = processes.start_speaking(ROOT / "train.py", keys, tmp_path, environment(), torchrun)
    read_until(output, "^Iter 5 ")
    if everything:
        kill_everything(process.pid, output)
    else:
        process.kill()  # the ranks live on, and may finish the run
    process.join()
    wait_until_free(tmp_path / "run")
    assert continued(tmp_path, data_dir).returncode == 0
    assert curve(tmp_path / "run/log.jsonl") == curve(uninterrupted / "log.jsonl")
    assert same_end(tmp_path / "run", uninterrupted)


@pytest.mark.parametrize("after", [0, 4])
def test_the_launcher_is_killed_before_the_ranks_have_met(data_dir, tmp_path, after):
    """One rank comes late, and the other waits for it."""
    config = tmp_path / "late.py"
    config.write_text(
        "import os, time\n_rank = os.environ['RANK']\nprint('here', _rank, flush=True)\n"
        "time.sleep(7 if _rank == '1' else 0)\n"
    )
    process = start(tmp_path, data_dir, str(config))
    for _ in range(2):
        read_until(process.stdout, "^here ")
    time.sleep(after)
    process.kill()
    *report, last = process.communicate(timeout=30)[0].splitlines()  # until the ranks have ended, too
    assert last.startswith("error: torchrun has gone") and not any("rror" in line for line in report), report
    wait_until_free(tmp_path / "run")


@pytest.mark.soak
@pytest.mark.parametrize("strategy", [(), ("--use_fsdp=True",)], ids=["ddp", "fsdp"])
def test_a_run_killed_at_fifty_instants_ends_as_one_that_was_not(data_dir, tmp_path, strategy):
    """At random ones, every third in the start-up, the others in steps, evaluations and saves: so soon after the first
    of them that the run outlasts all kills."""
    keys = [*strategy, "--max_iters=3000", "--checkpoint_interval=5", "--eval_interval=20", "--log_interval=10"]
    began = time.monotonic()
    whole = start(tmp_path, data_dir, *keys, "--out_dir=whole")
    read_until(whole.stdout, "^Iter 10 ")
    start_up = time.monotonic() - began
    for line in whole.stdout or []:
        assert not line.startswith("error"), line
    assert whole.wait(timeout=60) == 0
    steps = time.monotonic() - began - start_up
    rng = random.Random(0)
    for kill in range(50):
        process = start(tmp_path, data_dir, *keys, "--init_from=auto")
        if kill % 3 == 0:
            time.sleep(rng.uniform(0, 0.7 * start_up))
        else:
            read_until(process.stdout, "^Iter ")
            time.sleep(rng.uniform(0, steps / 70))
        assert process.poll() is None, "the run has ended before the last kill"
        kill_everything(process.pid, process.stdout)
        process.wait()
    last = start(tmp_path, data_dir, *keys, "--init_from=auto")
    output = last.communicate(timeout=1200)[0]
    assert last.returncode == 0 and "resumed at step" in output
    assert curve(tmp_path / "run/log.jsonl") == curve(tmp_path / "whole/log.jsonl")
    assert same(*(tensors(last_checkpoint(tmp_path / name)) for name in ("run", "whole")))
