"""SIGINT and SIGTERM finish the step, save, and exit, at any time and on all ranks."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT, environment, small_run
from processes import start_speaking
from test_resume import curve

# Sends this process a signal when one of the run's functions is called for the n-th time.
SIGNALLED_RUN = """
import importlib, os
owner = importlib.import_module({module!r})
original, calls = getattr(owner, {name!r}), 0

def signalled(*arguments, **keywords):
    global calls
    calls += 1
    if calls == {call} and int(os.environ.get("RANK", 0)) == {rank}:
        os.kill(os.getpid(), {number})
    return original(*arguments, **keywords)

setattr(owner, {name!r}, signalled)
import train
train.main()
"""


def signalled_run(folder: Path, function: str, call: int, number: int, rank: int = 0) -> Path:
    module, name = function.split(":")
    script = folder / "signalled_run.py"
    script.write_text(SIGNALLED_RUN.format(module=module, name=name, call=call, number=int(number), rank=rank))
    return script


@pytest.mark.parametrize(
    ("function", "call", "number", "step"),
    [
        ("training.trainer:parallelize", 1, signal.SIGTERM, 0),  # before the first step
        ("training.step:backward_pass", 6, signal.SIGINT, 6),  # the step is finished
        ("training.validation:precision", 6, signal.SIGTERM, 4),  # the second evaluation is not
        ("runs.checkpoint:checksum", 1, signal.SIGTERM, None),  # while a checkpoint is written, in the background
    ],
)
def test_a_signal_saves_and_the_run_continues_bit_for_bit(train, tmp_path, function, call, number, step):
    assert train("--out_dir=whole").returncode == 0
    stopped = train(script=signalled_run(tmp_path, function, call, number))
    assert stopped.returncode == 128 + number
    summary = json.loads((tmp_path / "run/log.jsonl").read_text().splitlines()[-1])
    assert summary["type"] == "summary" and summary["reason"] == number.name and step in (summary["step"], None)
    assert max((tmp_path / "run/checkpoints").iterdir()).name == f"step_{summary['step']:08d}"
    assert train("--init_from=auto").returncode == 0
    assert curve(tmp_path / "run/log.jsonl") == curve(tmp_path / "whole/log.jsonl")


@pytest.mark.parametrize(
    ("function", "call"), [("training.step:backward_pass", 3), ("training.validation:precision", 2)]
)
def test_a_signal_to_one_of_two_ranks_stops_both_after_the_same_step(train, tmp_path, function, call):
    stopped = train(ranks=2, script=signalled_run(tmp_path, function, call, signal.SIGTERM, rank=1))
    assert stopped.returncode == 1 and "143" in stopped.stderr  # torchrun's report of ranks that did not end with 0
    summary = json.loads((tmp_path / "run/log.jsonl").read_text().splitlines()[-1])
    assert summary["reason"] == "SIGTERM"
    assert train("--init_from=auto", ranks=2).returncode == 0


def test_ctrl_c_on_the_real_command_saves_a_checkpoint(data_dir, tmp_path):
    endless = small_run(data_dir, "--out_dir=run", "--max_iters=1000000", "--compile=False")
    command = [sys.executable, str(ROOT / "train.py"), *endless]
    process = subprocess.Popen(command, cwd=tmp_path, env=environment(), stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("Iter 3"):
            break
    process.send_signal(signal.SIGINT)
    rest = process.communicate(timeout=60)[0]
    assert process.returncode == 130 and "SIGINT at step" in rest
    assert len(list((tmp_path / "run/checkpoints").glob("step_*"))) >= 1


def test_a_second_signal_ends_the_process_at_once(data_dir, tmp_path):
    """Here in a step that never ends."""
    script = tmp_path / "endless_step.py"
    script.write_text(
        "import time, train, training.trainer\n"
        "def take_step(*arguments):\n"
        "    print('in the step', flush=True)\n"
        "    while True: time.sleep(0.1)\n"
        "training.trainer.take_step = take_step\ntrain.main()\n"
    )
    process, output = start_speaking(script, small_run(data_dir, "--out_dir=run"), tmp_path, environment())
    for line in output:
        if line == "in the step\n":
            break
    process.terminate()
    time.sleep(0.5)
    assert process.is_alive()
    process.terminate()
    process.join(10)
    assert process.exitcode == -signal.SIGTERM
    output.close()
