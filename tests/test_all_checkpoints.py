"""evaluate.py --all_checkpoints: each checkpoint once, in order, kept beside the run, and a run that is followed."""

import json
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from commands import command
from conftest import ROOT, environment, small_run, training

import evaluate
from evaluation import checkpoints
from evaluation.held_out import bits_per_byte, read_windows, validation_text
from evaluation.subject import find_subject

pytestmark = pytest.mark.usefixtures("one_size_of_batch")
ASK = ["--device=cpu", "--limit=10", "--all_checkpoints"]


@pytest.fixture
def run(data_dir, tmp_path):
    done = training(data_dir, tmp_path / "run", "--keep_last=9")
    assert done.returncode == 0, done.stderr
    return tmp_path / "run"


def asked(*arguments):
    done = command(evaluate.main, *arguments)
    assert done.returncode == 0, done.stderr
    return done


def test_every_checkpoint_in_the_order_of_steps(run):
    done = asked(run, *ASK)
    rows = [line.split()[0] for line in done.stdout.splitlines()[2:-1]]
    assert rows == ["4", "8", "12"]
    kept = json.loads((run / "evaluations.json").read_text())["evaluations"]
    assert [one["step"] for one in kept] == [4, 8, 12] and [one["tokens"] for one in kept] == [1024, 2048, 3072]
    for one, line in zip(kept, done.stdout.splitlines()[2:], strict=False):
        subject = find_subject(run, one["step"], torch.device("cpu"), None)
        figure = bits_per_byte(subject, read_windows(subject, validation_text(subject.run), 32, 1 << 16))[0]
        assert one["figures"][0]["value"] == pytest.approx(figure.value, rel=1e-12)
        assert f"{figure.value:.4f} ± {figure.error:.4f}" in line


def test_what_a_run_began_with_is_evaluated_too(run, data_dir, tmp_path):
    """Its checkpoint was written before the run's data were known."""
    begun = tmp_path / "begun"
    done = training(data_dir, begun, f"--init_from={run}", "--max_iters=4", "--keep_last=9")
    assert done.returncode == 0, done.stderr
    done = asked(begun, *ASK)
    assert [line.split()[0] for line in done.stdout.splitlines()[2:-1]] == ["0", "4"]
    value = json.loads((begun / "evaluations.json").read_text())["evaluations"][0]["figures"][0]["value"]
    asked(run, *ASK[:2], f"--save_results={tmp_path / 'its.json'}")
    assert value == json.loads((tmp_path / "its.json").read_text())["figures"][0]["value"]
    shutil.rmtree(begun / "checkpoints/step_00000004")
    done = command(evaluate.main, begun, *ASK[:2])
    assert done.returncode == 2 and "was trained on no data here: name a text with --text FILE" in done.stderr


def test_each_is_evaluated_once(run, monkeypatch):
    """Also one that the run has deleted since; and anew what is another checkpoint, or was asked otherwise."""
    first = asked(run, *ASK)
    assert first.stderr.count("\nstep ") + first.stderr.startswith("step ") == 3
    shutil.rmtree(run / "checkpoints/step_00000004")
    again = asked(run, *ASK)
    assert again.stdout == first.stdout and "step " not in again.stderr
    other = asked(run, *ASK[:-2], "--limit=5", "--all_checkpoints")
    assert [line.split()[0] for line in other.stdout.splitlines()[2:-1]] == ["8", "12"]
    assert asked(run, *ASK).stdout == first.stdout
    here = run.parent / "here.json"
    elsewhere = asked(run, *ASK, f"--save_results={here}")
    assert len(json.loads(here.read_text())["evaluations"]) == 2 and f"results: {here}" in elsewhere.stdout


def test_what_was_ended_goes_on(run, monkeypatch):
    """Ended after the first checkpoint, whose figures are kept."""
    whole, count = checkpoints.write, []

    def write(file, known):
        whole(file, known)
        count.append(len(known))
        if len(count) == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(checkpoints, "write", write)
    done = command(evaluate.main, run, *ASK)
    assert done.returncode == 130 and count == [1]
    assert "step 4" not in asked(run, *ASK).stderr and count == [1, 2, 3]


def test_a_checkpoint_that_goes_away_is_left_out_and_a_damaged_one_is_said(run, monkeypatch):
    real = evaluate.find_subject

    def gone(path, *others):
        if path.name == "step_00000008":
            shutil.rmtree(path)
        return real(path, *others)

    with monkeypatch.context() as patch:
        patch.setattr(evaluate, "find_subject", gone)
        done = asked(run, *ASK)
    assert [line.split()[0] for line in done.stdout.splitlines()[2:-1]] == ["4", "12"]
    (run / "evaluations.json").unlink()
    (run / "checkpoints/step_00000004/state.json").write_text("{}")
    done = command(evaluate.main, run, *ASK)
    assert done.returncode == 2 and "is damaged" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--watch"], "--watch follows a run"),
        (["--all_checkpoints", "--watch=0"], "'0' is not a number above 0"),
        (["--all_checkpoints", "--needle"], "--needle is of one checkpoint"),
        (["--all_checkpoints", "--checkpoint=last"], "--checkpoint is of one checkpoint"),
    ],
)
def test_mistakes(run, arguments, reason):
    done = command(evaluate.main, run, *arguments)
    assert done.returncode == 2 and reason in done.stderr and done.stdout == ""


def test_a_file_that_is_something_else(run):
    for content in ('{"evaluations": [{"step": 4}]}', '{"evaluations": 3}', "[", '{"evaluations": ["x"]}'):
        (run / "evaluations.json").write_text(content)
        done = command(evaluate.main, run, *ASK)
        assert done.returncode == 2 and "evaluations.json" in done.stderr, done.stderr
        assert (run / "evaluations.json").read_text() == content
    done = command(evaluate.main, run.parent, *ASK)
    assert done.returncode == 2 and "is of a run's folder" in done.stderr


@pytest.mark.slow
def test_a_run_is_followed_to_its_end(data_dir, tmp_path):
    """While it trains, with every checkpoint kept; and Ctrl-C ends it cleanly."""
    keys = small_run(
        data_dir, f"--out_dir={tmp_path / 'run'}", "--max_iters=400", "--eval_interval=100", "--keep_last=9"
    )
    trains = subprocess.Popen([sys.executable, ROOT / "train.py", *keys], env=environment(), stdout=subprocess.DEVNULL)
    try:
        until = time.monotonic() + 60
        while not list((tmp_path / "run").glob("checkpoints/step_*")) and time.monotonic() < until:
            time.sleep(0.1)
        watch = [sys.executable, ROOT / "evaluate.py", tmp_path / "run", *ASK, "--watch=0.2"]
        done = subprocess.run(watch, env=environment(), capture_output=True, text=True, timeout=120, check=False)
    finally:
        trains.wait(60)
    assert done.returncode == 0, done.stderr
    kept = json.loads((tmp_path / "run/evaluations.json").read_text())["evaluations"]
    assert [one["step"] for one in kept] == [100, 200, 300, 400]


@pytest.mark.slow
def test_control_c_ends_the_watching(run):
    from runs.folder import RunFolder

    lines = (run / "log.jsonl").read_text().splitlines()
    (run / "log.jsonl").write_text("\n".join(lines[:-1]) + "\n")  # without its summary, and held: it goes on
    with RunFolder(run).hold():
        watch = [sys.executable, ROOT / "evaluate.py", run, *ASK, "--watch=0.2"]
        watches = subprocess.Popen(watch, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        until = time.monotonic() + 90
        while time.monotonic() < until:
            file = run / "evaluations.json"
            if file.exists() and len(json.loads(file.read_text())["evaluations"]) == 3:
                break
            time.sleep(0.1)
        time.sleep(1)
        watches.send_signal(signal.SIGINT)
        out, err = watches.communicate(timeout=30)
    assert watches.returncode == 0 and "no longer watching; the run goes on" in out, err
