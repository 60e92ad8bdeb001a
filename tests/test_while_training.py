"""Benchmarks of a run while it is trained: that they change nothing of it, what they say, what they are in its log."""

import json

import pytest
import torch
from conftest import training

from evaluation.held_out import bits_per_byte, made_tasks, read_windows, validation_text
from evaluation.subject import find_subject
from runs.logs import read_run

pytestmark = pytest.mark.usefixtures("one_size_of_batch")
ASKED = ["--eval_benchmarks=text, choice,cloze", "--eval_benchmarks_interval=6", "--eval_benchmarks_limit=30"]


@pytest.fixture(scope="module")
def runs(data_dir, tmp_path_factory, one_size_of_batch):
    """A run of 12 steps with benchmarks, and the same one without."""
    folder = tmp_path_factory.mktemp("asked")
    for name, keys in (("with", ASKED), ("without", [])):
        done = training(data_dir, folder / name, "--keep_last=9", "--checkpoint_interval=6", "--dropout=0.1", *keys)
        assert done.returncode == 0, done.stderr
    return folder


def losses(log):
    """Everything that training computed."""
    return [(one["step"], one["loss"], one["grad_norm"]) for one in log.iters], log.val_losses()


def test_they_change_nothing_of_the_run(runs):
    """Bit by bit: losses, gradients, evaluations and the last weights."""
    with_them, without = (read_run(runs / name) for name in ("with", "without"))
    assert losses(with_them) == losses(without) and not without.benchmarks
    one, other = (
        find_subject(runs / name, 12, torch.device("cpu"), None).model.state_dict() for name in ("with", "without")
    )
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_they_are_asked_when_they_are_due(runs, data_dir, tmp_path):
    assert [one["step"] for one in read_run(runs / "with").benchmarks] == [0, 6, 12]
    keys = ["--eval_benchmarks=choice", "--eval_benchmarks_limit=5", "--eval_interval=5"]
    assert training(data_dir, tmp_path / "run", *keys).returncode == 0
    assert [one["step"] for one in read_run(tmp_path / "run").benchmarks] == [0, 5, 10, 12]


@pytest.mark.parametrize("step", [6, 12])
def test_the_figures_are_those_of_the_checkpoint(runs, step):
    subject = find_subject(runs / "with", step, torch.device("cpu"), None)
    text = validation_text(subject.run)
    figures = bits_per_byte(subject, read_windows(subject, text, subject.block, 1 << 16))
    figures += made_tasks(subject, text, 30, None)
    (record,) = (one for one in read_run(runs / "with").benchmarks if one["step"] == step)
    found = {(task, metric): one for task, metrics in record["tasks"].items() for metric, one in metrics.items()}
    assert found.keys() == {(figure.task, figure.metric) for figure in figures} and len(found) == 4
    for figure in figures:
        one = found[figure.task, figure.metric]
        assert one["value"] == pytest.approx(figure.value, rel=1e-12) and one["samples"] == figure.samples
        assert one["error"] == pytest.approx(figure.error, rel=1e-12) and one["chance"] == figure.chance


def test_adapters_are_asked_with_their_base(runs, data_dir, tmp_path):
    """The figure of the text is that of the checkpoint with its adapters merged, but for rounding."""
    keys = [f"--init_from={runs / 'without'}", "--use_lora=True", "--max_iters=2", "--eval_benchmarks=text"]
    done = training(data_dir, tmp_path / "run", *keys)
    assert done.returncode == 0, done.stderr
    *_, last = read_run(tmp_path / "run").benchmarks
    subject = find_subject(tmp_path / "run", 2, torch.device("cpu"), None)
    figure, *_ = bits_per_byte(subject, read_windows(subject, validation_text(subject.run), subject.block, 1 << 16))
    assert last["tasks"][figure.task][figure.metric]["value"] == pytest.approx(figure.value, rel=1e-4)


def test_their_time_is_in_no_step(runs, data_dir, tmp_path, monkeypatch):
    """Each takes half a second, and no step that long."""
    from evaluation.while_training import Benchmarks

    asked = Benchmarks.__call__

    def slow(self, *arguments):
        import time

        time.sleep(0.5)
        return asked(self, *arguments)

    monkeypatch.setattr(Benchmarks, "__call__", slow)
    keys = ["--eval_benchmarks=choice", "--eval_benchmarks_limit=5", "--eval_benchmarks_interval=3"]
    assert training(data_dir, tmp_path / "run", *keys).returncode == 0
    log = read_run(tmp_path / "run")
    assert len(log.benchmarks) == 5 and all(one["seconds"] > 0.5 for one in log.benchmarks)
    assert max(one["step_ms"] for one in log.iters if one["step_ms"] is not None) < 400 and log.train_seconds < 2


def test_a_resumed_run_asks_no_step_twice(data_dir, tmp_path):
    """Stopped at a step with benchmarks, whose checkpoint is after them; and resumed, with the same losses."""
    keys = ["--eval_benchmarks=choice", "--eval_benchmarks_limit=5", "--eval_benchmarks_interval=4"]
    assert training(data_dir, tmp_path / "whole", *keys).returncode == 0
    assert training(data_dir, tmp_path / "parts", *keys, "--max_iters=8", "--lr_decay_iters=12").returncode == 0
    done = training(data_dir, tmp_path / "parts", *keys, "--init_from=resume", "--lr_decay_iters=12")
    assert done.returncode == 0
    written = [json.loads(line) for line in (tmp_path / "parts/log.jsonl").read_text().splitlines()]
    assert [one["step"] for one in written if one["type"] == "benchmarks"] == [0, 4, 8, 12]
    whole, parts = (read_run(tmp_path / name) for name in ("whole", "parts"))
    assert losses(whole) == losses(parts)
    assert [one["tasks"] for one in whole.benchmarks] == [one["tasks"] for one in parts.benchmarks]


def test_a_signal_ends_them(data_dir, tmp_path, monkeypatch):
    """What is asked last is not noted, and the run is saved."""
    from training.interrupts import StopRequest

    def after_some(self):
        calls.append(1)
        return len(calls) > 6

    calls: list[int] = []
    done = training(data_dir, tmp_path / "run", "--eval_benchmarks=choice", "--max_iters=1")
    assert done.returncode == 0 and len(read_run(tmp_path / "run").benchmarks) == 2
    monkeypatch.setattr(StopRequest, "__bool__", after_some)
    done = training(data_dir, tmp_path / "other", "--eval_benchmarks=choice", "--max_iters=1", "--eval_interval=100")
    assert done.returncode == 0 and len(read_run(tmp_path / "other").benchmarks) < 2


def test_tasks_of_the_harness(data_dir, tmp_path, monkeypatch):
    """From a file, with examples before each question: the same questions every time."""
    pytest.importorskip("lm_eval")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    rows = [{"question": f"loss {n} is", "right": n % 2} for n in range(12)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "mine.yaml").write_text(
        "task: mine\ndataset_path: json\ndataset_kwargs:\n  data_files: {test: rows.jsonl}\ntest_split: test\n"
        "output_type: multiple_choice\ndoc_to_text: '{{question}}'\ndoc_to_choice: ['a', 'b']\n"
        "fewshot_split: test\nnum_fewshot: 2\ndoc_to_target: right\n"
    )
    keys = [f"--eval_benchmarks=choice,{tmp_path / 'mine.yaml'}", "--eval_benchmarks_limit=8", "--learning_rate=0"]
    done = training(data_dir, tmp_path / "run", *keys, "--min_lr=0", "--max_iters=4")
    assert done.returncode == 0, done.stderr
    found = read_run(tmp_path / "run").benchmarks
    assert [one["step"] for one in found] == [0, 4] and {*found[0]["tasks"]} == {"choice", "mine"}
    assert found[0]["tasks"] == found[1]["tasks"]  # nothing was learnt
    assert found[0]["tasks"]["mine"]["acc"]["samples"] == 8


@pytest.mark.parametrize(
    ("keys", "reason"),
    [
        (["--eval_benchmarks=choise"], "did you mean 'choice'?|there is no task 'choise'"),
        (["--eval_benchmarks=,"], "names none"),
        (["--eval_benchmarks_interval=3"], "eval_benchmarks_interval is for benchmarks"),
        (["--eval_benchmarks_limit=3"], "eval_benchmarks_limit is for benchmarks"),
        (["--eval_benchmarks=choice", "--use_fsdp=True"], "with use_fsdp no rank has it"),
        (["--eval_benchmarks=choice", "--pipeline_parallel=2"], "with pipeline_parallel no rank has it"),
        (["--eval_benchmarks=absent.yaml"], "there is no task"),
    ],
)
def test_what_cannot_be_asked_is_refused_before_anything_starts(data_dir, tmp_path, keys, reason):
    if "absent" in keys[0]:
        pytest.importorskip("lm_eval")
    done = training(data_dir, tmp_path / "run", *keys)
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode == 2 and len(errors) == 1 and any(one in errors[0] for one in reason.split("|"))
    assert not (tmp_path / "run").exists() and done.stdout == ""


def test_a_mixture_needs_one_text(data_dir, tmp_path):
    mixture = "--mixture={'tiny': 0.5, 'short': 0.5}"
    done = training(data_dir, tmp_path / "run", mixture, "--eval_benchmarks=choice")
    assert done.returncode == 2 and "name one with val_dataset" in done.stderr
    done = training(
        data_dir, tmp_path / "run", mixture, "--eval_benchmarks=choice", "--val_dataset=tiny", "--max_iters=1"
    )
    assert done.returncode == 0 and read_run(tmp_path / "run").benchmarks


def test_a_compiled_experts_model_is_asked_the_same(data_dir, tmp_path):
    """What shares the weights has their experts, biases and positions, too."""
    from setups import EXPERTS

    keys = [*EXPERTS, "--eval_benchmarks=text", "--max_iters=3", "--eval_interval=3"]
    done = training(data_dir, tmp_path / "run", *keys)
    assert done.returncode == 0, done.stderr
    subject = find_subject(tmp_path / "run", None, torch.device("cpu"), None)
    (bits, _) = bits_per_byte(subject, read_windows(subject, validation_text(subject.run), subject.block, 1 << 16))
    found = read_run(tmp_path / "run").benchmarks[-1]["tasks"]["text"]["bits per byte"]
    assert found["value"] == pytest.approx(bits.value, rel=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("keys", [[], ["--use_zero1=True"]])
def test_two_ranks_with_whole_models(train, tmp_path, keys):
    asked = ["--eval_benchmarks=choice", "--eval_benchmarks_limit=10", *keys]
    done = train(*asked, ranks=2)
    assert done.returncode == 0, done.stderr
    log = read_run(tmp_path / "run")
    assert [one["step"] for one in log.benchmarks] == [0, 4, 8, 12]
    assert done.stdout.count("Benchmarks 12 │ choice right passage") == 1
