"""SIGINT, SIGTERM and SIGHUP finish the step, save, and exit, at any time and on all ranks; output that breaks ends
nothing."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT, environment, small_run
from processes import start, start_speaking
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
        ("training.validation:precision", 14, signal.SIGTERM, 4),  # the second evaluation, of 12 batches, is not
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


def last_line(run: Path) -> dict:
    return json.loads((run / "log.jsonl").read_text().splitlines()[-1])


def until(happened, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_hang_ups_are_one_request_to_stop(data_dir, tmp_path):
    """A terminal that closes sends several, and takes standard output and error with it."""
    master, terminal = os.openpty()
    keys = small_run(data_dir, "--out_dir=run", "--max_iters=1000000", "--compile=False")
    process = start(ROOT / "train.py", keys, tmp_path, environment(), [], terminal, terminal)
    os.close(terminal)
    seen = b""
    while b"Iter 3 " not in seen:
        seen += os.read(master, 4096)
    os.close(master)
    for _ in range(2):
        os.kill(process.pid, signal.SIGHUP)
    process.join(60)
    assert process.exitcode == 128 + signal.SIGHUP
    summary = last_line(tmp_path / "run")
    assert summary["reason"] == "SIGHUP"
    assert (tmp_path / f"run/checkpoints/step_{summary['step']:08d}").is_dir()


def test_a_run_under_nohup_outlives_hang_ups(data_dir, tmp_path):
    script = tmp_path / "nohup.py"
    script.write_text(
        "import os, signal\nsignal.signal(signal.SIGHUP, signal.SIG_IGN)\nimport training.trainer as trainer\n"
        "original = trainer.take_step\n"
        "def take_step(*arguments):\n    os.kill(os.getpid(), signal.SIGHUP)\n    return original(*arguments)\n"
        "trainer.take_step = take_step\nimport train\ntrain.main()\n"
    )
    process, output = start_speaking(script, small_run(data_dir, "--out_dir=run"), tmp_path, environment())
    output.read()
    process.join(60)
    assert process.exitcode == 0 and last_line(tmp_path / "run")["reason"] == "finished"


@pytest.mark.parametrize("number", [None, signal.SIGTERM])
def test_a_reader_that_goes_away_stops_nothing(data_dir, tmp_path, number):
    """As `| head` does, and tee at a Ctrl-C."""
    reader, writer = os.pipe()
    keys = small_run(data_dir, "--out_dir=run", f"--max_iters={30 if number is None else 1000000}", "--compile=False")
    process = start(ROOT / "train.py", keys, tmp_path, environment(), [], writer, writer)
    os.close(writer)
    with os.fdopen(reader) as output:
        for line in output:
            if line.startswith("Iter 3 "):
                break
    if number is not None:
        os.kill(process.pid, number)
    process.join(60)
    assert process.exitcode == (0 if number is None else 128 + number)
    summary = last_line(tmp_path / "run")
    assert summary["reason"] == ("finished" if number is None else number.name)
    assert (tmp_path / f"run/checkpoints/step_{summary['step']:08d}").is_dir()


@pytest.mark.parametrize("broken", ["full", "closed", "ascii"])
def test_output_that_cannot_be_written_is_said_once_and_stops_nothing(data_dir, tmp_path, broken):
    keys = small_run(data_dir, "--out_dir=run", "--max_iters=2", "--compile=False")
    command = [sys.executable, str(ROOT / "train.py"), *keys]
    script = f'exec "$@" {">&-" if broken == "closed" else ">/dev/full" if broken == "full" else ""}'
    env = environment() | ({"PYTHONIOENCODING": "ascii"} if broken == "ascii" else {})
    done = subprocess.run(["sh", "-c", script, "sh", *command], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert last_line(tmp_path / "run")["reason"] == "finished"
    assert (tmp_path / "run/checkpoints/step_00000002").is_dir()
    warning = "warning: standard output cannot be written (No space left on device)"
    assert done.stderr.count("\n") == (broken == "full") and done.stderr.startswith(warning if broken == "full" else "")
    assert ("finished at step 2" in done.stdout) == (broken == "ascii")


def test_what_a_run_starts_does_not_get_its_signals(tmp_path):
    script = tmp_path / "with_a_child.py"
    script.write_text(
        "import os, signal, subprocess, sys\n"
        "from training.interrupts import StopRequest, kept_from_children\n"
        "stop = StopRequest()\n"
        "with kept_from_children():\n"
        "    work = 'import time; print(1, flush=True); time.sleep(0.3); raise SystemExit(7)'\n"
        "    child = subprocess.Popen([sys.executable, '-c', work], stdout=subprocess.PIPE)\n"
        "    child.stdout.readline()\n"
        "    os.killpg(0, signal.SIGINT)\n"
        "    assert child.wait() == 7 and stop.signal_number == signal.SIGINT\n"
        "os.kill(os.getpid(), signal.SIGINT)\n"
    )
    done = subprocess.run([sys.executable, script], env=environment(), capture_output=True, start_new_session=True)
    assert done.returncode == -signal.SIGINT and done.stderr.startswith(b"\nSIGINT: finishing the step"), done.stderr


@pytest.mark.soak
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
def test_ctrl_c_while_the_first_step_is_compiled_spares_the_compiler(data_dir, tmp_path):
    """The compiler's processes get the signal too, as those of a terminal do."""
    compiler = tmp_path / "slow_compiler"
    compiler.write_text(
        f'#!/bin/sh\ncase "$*" in *.cpp*) touch {tmp_path}/compiling; sleep 1;; esac\nexec g++ "$@" -O0\n'
    )
    compiler.chmod(0o755)
    keys = small_run(data_dir, "--out_dir=run", "--max_iters=1000000", "--compile=True", "--n_layer=1")
    env = environment() | {"CXX": str(compiler), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    env["TORCHINDUCTOR_VEC_ISA_OK"] = "1"  # the compiler is not tried first
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "train.py"), *keys],
        cwd=tmp_path, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    until((tmp_path / "compiling").exists)
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    assert err == "\nSIGINT: finishing the step, then saving; once more to stop at once\n" and "SIGINT at step" in out
    assert last_line(tmp_path / "run")["reason"] == "SIGINT"
