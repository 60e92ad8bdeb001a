"""The benchmarks by name: each task of the harness as it is, on small data of its columns; its metric by hand from what
was asked and answered; CORE against a count by hand and simulated answers; what is refused."""

import json
import os
import socket
from pathlib import Path

import datasets
import huggingface_hub
import numpy as np
import pytest
from benchmark_data import apart, write_all, write_mmlu
from commands import command
from conftest import ROOT, training, write_words
from setups import LLAMA

import evaluate
from evaluation import benchmarks, harness
from evaluation.benchmarks import BENCHMARKS, CORE_MISSING, CORE_QUESTIONS, CORE_SIZE, core_figures, core_of
from evaluation.figures import Figure, mean_error

PAGE = (ROOT / "docs/evaluation.md").read_text()
LIKELIHOODS = ["hellaswag", "arc_easy", "arc_challenge", "truthfulqa", "piqa", "winogrande", "boolq"]
CHANCE = {"hellaswag": 1 / 4, "piqa": 1 / 2, "winogrande": 1 / 2, "boolq": 1 / 2}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A short run of bytes, with room for a prompt with five examples."""
    folder = tmp_path_factory.mktemp("benchmarks")
    write_words(folder / "data/words", {"train": 40, "val": 40}, length=400)
    keys = [*LLAMA, "--dataset=words", "--block_size=1024", "--batch_size=1", "--max_iters=2", "--eval_iters=1"]
    done = training(folder / "data", folder / "run", *keys)
    assert done.returncode == 0, done.stderr
    return folder / "run"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Where a command is called that finds the benchmarks' data."""
    folder = tmp_path_factory.mktemp("data")
    write_all(folder)
    return folder


@pytest.fixture(autouse=True, scope="module")
def offline(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        apart(patch, tmp_path_factory.mktemp("cache"))
        yield


def asked(run, folder, *arguments):
    """What evaluate.py prints, and its results and samples by task."""
    saved = [f"--save_results={run.parent / 'results.json'}", f"--save_samples={run.parent / 'samples.jsonl'}"]
    here = Path.cwd()
    os.chdir(folder)
    try:
        done = command(evaluate.main, run, "--device=cpu", *arguments, *saved)
    finally:
        os.chdir(here)
    assert done.returncode == 0, done.stderr
    samples = {}
    for line in (run.parent / "samples.jsonl").read_text().splitlines():
        samples.setdefault(json.loads(line)["task"], []).append(json.loads(line))
    return done.stdout, json.loads((run.parent / "results.json").read_text())["figures"], samples


@pytest.fixture(scope="module")
def likelihoods(run, data):
    return asked(run, data, f"--benchmarks={','.join(LIKELIHOODS)}")


def test_each_figure_is_the_share_of_right_answers_by_hand(likelihoods):
    """The likeliest answer, for acc_norm by bytes, against the right one in the data."""
    _, figures, samples = likelihoods
    assert [figure["task"] for figure in figures] == [f"{name} (0-shot)" for name in LIKELIHOODS]
    for name, figure in zip(LIKELIHOODS, figures, strict=True):
        own = samples[BENCHMARKS[name].questions.name]
        right = []
        for sample in own:
            scores = np.array([float(answer[0][0]) for answer in sample["resps"]])
            answers = [argument[1] for argument in sample["arguments"]]
            if figure["metric"] == "acc_norm":
                scores = scores / [len(answer.removeprefix(" ").encode()) for answer in answers]
            right.append(float(scores.argmax() == right_of(name, sample["doc"])))
        assert figure["value"] == pytest.approx(np.mean(right)) and figure["samples"] == len(own) == 8
        assert figure["error"] == pytest.approx(mean_error(np.array(right)))
        assert figure["chance"] == pytest.approx(CHANCE.get(name, np.mean([1 / len(one["resps"]) for one in own])))


def right_of(name, doc):
    """The place of the right answer, from the data's own columns."""
    if name.startswith("arc"):
        return doc["choices"]["label"].index(doc["answerKey"])
    columns = {"winogrande": "answer", "truthfulqa": None}
    column = columns.get(name, "label")
    return 0 if column is None else int(doc[column]) - (name == "winogrande")


def test_prompts_are_those_of_the_benchmarks(likelihoods):
    """A question as the model reads it, and its answers."""
    asked = {task: [tuple(argument) for argument in own[1]["arguments"]] for task, own in likelihoods[2].items()}
    assert asked["hellaswag (0-shot)"][0] == (
        "Training: A model layer scale train. The loss", " falls model layer scale train.")  # fmt: skip
    assert asked["arc_easy (0-shot)"][0] == ("Question: Which model layer scale train?\nAnswer:", " model layer")
    assert asked["piqa (0-shot)"][1] == ("Question: To model layer scale train\nAnswer:", " train width loss")
    assert asked["winogrande (0-shot)"][0] == ("The model beat the token as the model", " was small.")
    assert asked["winogrande (0-shot)"][1][0].endswith("as the token")
    assert [answer for _, answer in asked["boolq (0-shot)"]] == [" no", " yes"]
    first = asked["truthfulqa_mc1 (0-shot)"][0][0]
    assert first.startswith("Q: What is human life") and first.endswith("Q: What is model layer scale train?\nA:")


def test_the_table_says_what_a_figure_is_beside(likelihoods):
    text, figures, _ = likelihoods
    head, first, *_ = text.splitlines()
    assert "GPT-3 175B" in head and "goal" in head and "8 samples" in first
    assert "78.9% (0-shot)" in first and "80%+" in first and figures[0]["published"] == "78.9% (0-shot)"
    assert "60.5% (0-shot), 76.4% (32-shot)" in text and "none known" not in text
    assert all(figure["verdict"] for figure in figures) and "within noise of chance" in text


def test_mmlu_is_one_figure_of_57_subjects_with_five_examples(run, tmp_path):
    subjects = write_mmlu(tmp_path, harness.HARNESS_TASKS)
    text, (figure,), samples = asked(run, tmp_path, "--benchmarks=mmlu", "--limit=1")
    assert len(subjects) == len(samples) == 57 and figure["samples"] == 57
    assert figure["chance"] == pytest.approx(0.25)
    every = [sample for own in samples.values() for sample in own]
    assert figure["value"] == pytest.approx(np.mean([sample["acc"] for sample in every]))
    prompt = every[0]["arguments"][0][0]
    assert prompt.startswith("The following are multiple choice questions") and prompt.count("\nAnswer:") == 6
    assert "mmlu (5-shot)" in text and "43.9% (5-shot)" in text


def test_gsm8k_takes_the_number_after_the_marks(run, data, monkeypatch):
    """Of a model that writes what the examples show, but for every second question."""
    prompts = []

    def generate(self, requests, disable_tqdm=False):
        prompts.extend(request.args[0] for request in requests)
        return [f" {n} + 2 = {n + 2}\n#### {n + 2 + n % 2}" for n, _ in enumerate(requests)]

    monkeypatch.setattr(harness.Asked, "generate_until", generate)
    text, (figure,), samples = asked(run, data, "--benchmarks=gsm8k")
    assert figure["value"] == 0.5 and figure["metric"] == "exact_match (strict-match)" and figure["samples"] == 4
    assert prompts[0].count("Question:") == 6 and prompts[0].endswith("How many?\nAnswer:") and "none known" in text
    assert {sample["filter"] for sample in samples["gsm8k (5-shot)"]} == {"strict-match", "flexible-extract"}


# ---------------------------------------------------------------------------------------------------------------------
# CORE


def test_core_is_the_mean_of_centred_accuracies():
    found = {
        one.name: Figure(one.name, one.metric, 0.5 + n / 100, 0.02, one.chance or 0.25, 400)
        for n, one in enumerate(CORE_QUESTIONS)
    }
    first, *rest = core_figures(found)
    centred = [(figure.value - figure.chance) / (1 - figure.chance) for figure in found.values()]
    assert first.value == pytest.approx(np.mean(centred)) and first.task == "CORE, 20 of 22 tasks"
    assert len(rest) + len(CORE_MISSING) == CORE_SIZE and not any(figure.task == "CORE" for figure in [first, *rest])
    assert core_of([Figure("a (0-shot)", "acc", 0.5, None, 0.25, 1)])[1] is None


def test_its_standard_error_is_the_spread_over_other_questions():
    """Of three tasks, one of them asked twice: the same questions are right or wrong in both."""
    rng = np.random.default_rng(0)

    def draw():
        right = [rng.random(300) < share for share in (0.6, 0.4)]
        values = {"a (0-shot)": right[0], "a (10-shot)": right[0], "b (0-shot)": right[1]}
        return [
            Figure(name, "acc", one.mean(), mean_error(one.astype(float)), 0.25, 300) for name, one in values.items()
        ]

    drawn = [core_of(draw()) for _ in range(2000)]
    assert np.std([value for value, _ in drawn]) == pytest.approx(np.mean([error for _, error in drawn]), rel=0.05)


def test_every_task_of_core_is_in_the_harness():
    """The folder has it, and its metric is one of the task's."""
    for one in [*CORE_QUESTIONS, *(b.questions for b in BENCHMARKS.values() if b.questions.folder)]:
        files = (harness.HARNESS_TASKS / one.folder).rglob("*.yaml")
        texts = [text for file in files if f": {one.task}\n" in (text := file.read_text() + "\n")]
        assert texts, one.task
    manager = harness.TaskManager(include_path=str(harness.HARNESS_TASKS / "bigbench"), include_defaults=False)
    assert {one.task for one in CORE_QUESTIONS if "bigbench" in one.task} <= set(manager.all_tasks)
    assert not [name for name in CORE_MISSING if (harness.HARNESS_TASKS / name).exists()]


def test_core_of_the_command(run, data, monkeypatch):
    """Of two of its tasks, whose data are here."""
    monkeypatch.setattr(benchmarks, "CORE_QUESTIONS", CORE_QUESTIONS[:2])
    text, (core, *tasks), samples = asked(run, data, "--benchmarks=core")
    assert core["task"] == "CORE, 2 of 22 tasks" and list(samples) == ["hellaswag (0-shot)", "hellaswag (10-shot)"]
    assert core["value"] == pytest.approx(np.mean([(task["value"] - 0.25) / 0.75 for task in tasks]))
    assert "squad" in text and "jeopardy" in text


# ---------------------------------------------------------------------------------------------------------------------
# What is refused


def refused(run, *arguments):
    done = command(evaluate.main, run, *arguments, "--device=cpu")
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode == 2 and len(errors) == 1 and done.stdout == "", done.stderr
    return errors[0]


def test_mistakes_are_one_line(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "there is no benchmark 'helaswag' (did you mean 'hellaswag'?)" in refused(run, "--benchmarks=helaswag")
    line = refused(run, "--benchmarks=piqa")
    assert "hf download --repo-type dataset baber/piqa --local-dir baber/piqa" in line and "HF_HOME" in line
    assert "--run_generated_code allows it" in refused(run, "--benchmarks=all")
    assert "--save_samples is of --tasks and --benchmarks" in refused(run, "--save_samples=a.jsonl")


def test_a_context_that_is_too_short_for_what_is_written(run, data, tmp_path, monkeypatch):
    monkeypatch.chdir(data)
    assert training(run.parent / "data", tmp_path / "run", *LLAMA, "--dataset=words", "--max_iters=1").returncode == 0
    assert "generates up to 256 tokens, and the model's block is of" in refused(tmp_path / "run", "--benchmarks=gsm8k")
    done = command(evaluate.main, tmp_path / "run", "--benchmarks=boolq,truthfulqa", "--device=cpu")
    assert done.returncode == 0 and "truthfulqa_mc1 (0-shot): " in done.stderr and "lost their beginning" in done.stderr


def test_a_hub_that_does_not_answer_is_asked_once(run, tmp_path, monkeypatch):
    """And in a moment: its own libraries ask six times, with pauses between."""
    monkeypatch.chdir(tmp_path)
    for module in (datasets.config, huggingface_hub.constants):
        monkeypatch.setattr(module, "HF_HUB_OFFLINE", False)
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # and does not listen: a connection is refused
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", f"http://127.0.0.1:{nobody.getsockname()[1]}")
        asked = []
        session = huggingface_hub.get_session()
        monkeypatch.setattr(type(session), "head", lambda self, *a, **k: asked.append(a) or _refuse())
        assert "cannot load the task piqa" in refused(run, "--benchmarks=piqa,hellaswag")
    assert len(asked) == 1


def _refuse():
    raise ConnectionError("refused")


def test_the_page_has_the_table():
    """Name, task, examples, metric, published figures and goal."""
    for name, one in BENCHMARKS.items():
        (row,) = [line for line in PAGE.splitlines() if line.startswith(f"| {name} |")]
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        published = [f"{100 * value.value:.3g} ({value.setting})" for value in one.published]
        said = [name, f"`{one.questions.task}`", str(one.questions.shots), one.questions.metric.partition(" ")[0],
                ", ".join(published) or "none known"]  # fmt: skip
        assert cells[:5] == said and cells[-1] == f"{one.goal:.0%}"[:-1]
