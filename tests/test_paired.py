"""Two models on the same questions: the paired bootstrap against McNemar's test and Student's t, how often equal models
are called different, what a number of samples finds; the command, against a model and against its samples."""

import json
import math

import numpy as np
import pytest
import torch
from commands import command
from conftest import training, write_words
from scipy import stats
from setups import LLAMA
from test_harness import TASKS, write_task

import evaluate
from common.errors import UserError
from data.tokenizers import choose
from data.writer import DatasetWriter
from evaluation import paired
from evaluation.divergence import divergence
from evaluation.figures import Figure
from evaluation.held_out import read_windows, validation_text
from evaluation.paired import SEEDS, corrected, difference_of, differences, paired_bootstrap, samples_needed
from evaluation.subject import find_subject

ACC = Figure("task", "acc", 0.5, 0.01, 0.25, 100, parts=("task",))


def test_the_bootstrap_is_mcnemar_for_right_and_wrong_and_student_for_numbers():
    """On many questions."""
    rng = np.random.default_rng(1)
    for _ in range(5):
        a, b = ((rng.random((2, 4000)) < 0.5) & (rng.random(4000) < 0.8)).astype(float)
        gained, lost = (a > b).sum(), (a < b).sum()
        mcnemar = stats.chi2.sf((gained - lost) ** 2 / (gained + lost), 1)
        (low, high), p = paired_bootstrap(a - b)
        assert p == pytest.approx(mcnemar, abs=0.02) and low < a.mean() - b.mean() < high
    values = rng.normal(0.03, 1, 4000)
    student = stats.ttest_1samp(values, 0)
    assert paired_bootstrap(values)[1] == pytest.approx(student.pvalue, abs=0.015)
    assert paired_bootstrap(values)[0] == pytest.approx(student.confidence_interval(0.95), abs=0.003)


@pytest.mark.parametrize("differing", [0.05, 0.2, 0.5])
def test_equal_models_are_called_different_once_in_twenty_or_less(differing):
    """Answers of two models that are right equally often, 300 questions."""
    rng = np.random.default_rng(0)
    signs = rng.choice([-1.0, 1.0], (600, 300)) * (rng.random((600, 300)) < differing)
    found = np.mean([paired_bootstrap(values)[1] < 0.05 for values in signs])
    assert 0.01 < found < 0.05 + 3 * math.sqrt(0.05 * 0.95 / 600)


def test_of_many_tasks_hardly_ever_one_is_called_so_by_chance(monkeypatch):
    """Ten tasks: in at most 5 of 100 comparisons any; without Holm's correction, in about 40."""
    monkeypatch.setattr(paired, "DRAWS", 1000)
    rng = np.random.default_rng(0)
    found = np.array([[paired_bootstrap(v)[1] for v in rng.choice([-1.0, 0, 1], (10, 200))] for _ in range(400)])
    assert np.mean((found < 0.05).any(1)) == pytest.approx(1 - 0.95**10, abs=0.08)
    assert np.mean([min(corrected(one.tolist())) < 0.05 for one in found]) < 0.05 + 3 * math.sqrt(0.05 * 0.95 / 400)


def test_holm_by_hand():
    assert corrected([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert corrected([0.5, 0.9]) == [1.0, 1.0] and corrected([0.02]) == [0.02]


def test_so_many_samples_find_a_difference_in_four_of_five_cases(monkeypatch):
    monkeypatch.setattr(paired, "DRAWS", 1000)
    rng = np.random.default_rng(0)

    def draw(n):
        return rng.choice([-1.0, 0.0, 1.0], n, p=[0.1, 0.75, 0.15])

    needed = samples_needed(draw(200_000))
    found = np.mean([paired_bootstrap(draw(needed))[1] < 0.05 for _ in range(600)])
    assert needed == pytest.approx(7.849 * 0.2475 / 0.05**2, rel=0.1) and found == pytest.approx(0.8, abs=0.05)
    assert samples_needed(np.zeros(5)) is None


def test_verdicts():
    rng = np.random.default_rng(0)
    a = (rng.random(500) < 0.6).astype(float)
    worse = a * (rng.random(500) < 0.8)
    assert (difference_of(ACC, a, worse).verdict, difference_of(ACC, worse, a).verdict) == ("better", "worse")
    near = difference_of(ACC, a, np.where(np.arange(500) == 0, 1 - a, a))
    assert near.verdict == f"difference within noise: {near.needed:,} samples would tell" and near.needed > 500
    assert difference_of(ACC, a, a).verdict == "no difference seen" and difference_of(ACC, a, a).p == 1


def sample(number, value, prompt="p"):
    return {"doc_id": number, "doc_hash": str(number), "prompt_hash": prompt, "filter": "none", "acc": value}


def test_only_the_same_questions_are_compared():
    of_a = {"task": [sample(n, n % 2) for n in range(6)]}
    (found,) = differences([ACC, ACC], of_a, {"task": of_a["task"][::-1]})  # each once, in any order
    assert found.a == found.b == 0.5 and found.verdict == "no difference seen"
    for other in (of_a["task"][:5], [sample(n, 1, "with examples") for n in range(6)]):
        with pytest.raises(UserError, match="was asked otherwise there"):
            differences([ACC], of_a, {"task": other})
    with pytest.raises(UserError, match="no samples of task"):
        differences([ACC], of_a, {})
    with pytest.raises(UserError, match="none of the tasks"):
        differences([Figure("whole", "bits_per_byte", 1.0, None, None, 6)], of_a, of_a)


# ---------------------------------------------------------------------------------------------------------------------
# The command


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two runs that differ in their seed, and a task."""
    folder = tmp_path_factory.mktemp("pair")
    write_words(folder / "data/words", {"train": 40, "val": 8}, length=80)
    for seed in (1, 2):
        keys = [*LLAMA, "--dataset=words", "--block_size=64", f"--seed={seed}", "--max_iters=3"]
        assert training(folder / "data", folder / f"run{seed}", *keys).returncode == 0
    rows = [{"text": f"the {n}", "answers": [" a", " the", f" {n}"], "right": n % 3} for n in range(40)]
    return folder / "run1", folder / "run2", write_task(folder / "tasks", "which", *TASKS["which"][:2], rows)


def test_a_model_against_another_and_against_its_samples(runs, tmp_path):
    one, two, task = runs
    results, samples = tmp_path / "results.json", tmp_path / "samples.jsonl"
    common = [f"--tasks={task}", "--device=cpu"]
    assert command(evaluate.main, two, *common, f"--save_samples={samples}").returncode == 0
    done = command(evaluate.main, one, *common, f"--against={two}", f"--save_results={results}")
    assert done.returncode == 0, done.stderr
    said = done.stdout.splitlines()
    assert SEEDS in said and any(line.startswith("A: ") and str(one) in line for line in said)
    saved = json.loads(results.read_text())
    (acc, norm), figures = saved["against"]["differences"], saved["figures"]
    assert [acc["metric"], norm["metric"]] == ["acc", "acc_norm"] and acc["a"] == pytest.approx(figures[0]["value"])
    theirs = [json.loads(line)["acc"] for line in samples.read_text().splitlines()]
    assert acc["b"] == pytest.approx(np.mean(theirs)) and acc["samples"] == 40 and acc["verdict"]
    again = command(evaluate.main, one, *common, f"--against={samples}")
    rows = [line for line in said if line.startswith("which")]
    assert [line for line in again.stdout.splitlines() if line.startswith("which")] == rows and len(rows) == 4
    itself = command(evaluate.main, two, *common, f"--against={samples}").stdout
    assert itself.count("no difference seen") == 2


def test_an_interval_without_an_end_is_null_where_it_is_json(runs, tmp_path):
    one, two, _ = runs
    (text := tmp_path / "text.txt").write_text("a word")
    results = tmp_path / "results.json"
    given = ["--device=cpu", f"--text={text}", f"--against={two}", f"--save_results={results}"]
    assert command(evaluate.main, one, *given).returncode == 0

    def refuse(constant):
        raise AssertionError(constant)

    saved = json.loads(results.read_text(), parse_constant=refuse)
    assert [each["interval"] for each in saved["against"]["differences"]] == [[None, None]] * 2


def test_what_cannot_be_compared(runs, tmp_path):
    one, _, task = runs

    def refused(against):
        done = command(evaluate.main, one, f"--tasks={task}", "--device=cpu", f"--against={against}")
        assert done.returncode == 2 and done.stderr.count("error: ") == 1
        return done.stderr

    assert "no run folder" in refused(tmp_path / "absent")
    (file := tmp_path / "samples.jsonl").write_text('{"x": 1}\n')
    assert "is not what --save_samples writes" in refused(file)
    file.write_text("[1]\n")
    assert "line 1 of" in refused(file)
    file.write_text("")
    assert "is empty" in refused(file)


# ---------------------------------------------------------------------------------------------------------------------
# A text


def test_a_text_is_compared_document_by_document_and_with_the_distance(runs, tmp_path):
    one, two, task = runs
    results = tmp_path / "results.json"
    done = command(evaluate.main, one, "--device=cpu", f"--against={two}", f"--save_results={results}")
    assert done.returncode == 0, done.stderr
    saved = json.loads(results.read_text())
    found = {(each["task"], each["metric"]): each for each in saved["against"]["differences"]}
    assert [metric for _, metric in found] == [
        "bits per byte", "right passage", "right word", "KL to B, nats a token",
    ]  # fmt: skip
    alone = json.loads(command_results(two, tmp_path))
    for figure in (figure for figure in alone["figures"] if not figure["metric"].startswith("perplexity")):
        assert found[figure["task"], figure["metric"]]["b"] == pytest.approx(figure["value"], abs=1e-9)
    bits = found["text", "bits per byte"]
    assert bits["of"] == "documents" and bits["samples"] == 8 and bits["interval"][0] < bits["a"] - bits["b"]
    with_task = command(evaluate.main, one, "--device=cpu", f"--against={two}", f"--tasks={task}",
                        f"--text={one.parent / 'data/words'}")  # fmt: skip
    assert [line.split()[0] for line in with_task.stdout.splitlines() if "KL to B" in line] == ["text"]
    assert sum(line.startswith(("which", "text")) for line in with_task.stdout.splitlines()) == 4 + 4


def command_results(run, folder):
    file = folder / "alone.json"
    assert command(evaluate.main, run, "--device=cpu", f"--save_results={file}").returncode == 0
    return file.read_text()


def test_the_distance_is_the_definition_of_one_and_of_a_model_to_itself_0(runs, monkeypatch):
    """In float64, window by window, from the whole models' logits, and again from some tokens at a time."""
    a, b = (find_subject(run, None, torch.device("cpu"), None) for run in runs[:2])
    text = validation_text(a.run)
    reading = read_windows(a, text, a.block)
    assert divergence(a, a, reading).value == 0
    total = count = 0
    for document in text.documents:
        whole = [a.first, *document]
        for start in range(0, len(document), a.block):
            end = min(start + a.block, len(document))  # the last window reaches back as far as the others
            tokens = torch.tensor([whole[max(0, end - a.block) : end]])
            with torch.no_grad():
                logits = [one.model.logits(one.model.hidden(tokens))[0, start - end :, :256].double() for one in (a, b)]
            p, q = (torch.distributions.Categorical(logits=one) for one in logits)
            total += torch.distributions.kl_divergence(p, q).sum()
            count += end - start
    expected = float(total) / count
    assert divergence(a, b, reading).value == pytest.approx(expected, rel=1e-4) and expected > 1e-4
    monkeypatch.setattr("evaluation.divergence.AT_ONCE", 1000)
    assert divergence(a, b, reading).value == pytest.approx(expected, rel=1e-4)


def test_texts_that_do_not_compare(runs, tmp_path):
    one = runs[0]
    (file := tmp_path / "samples.jsonl").write_text("")
    done = command(evaluate.main, one, "--device=cpu", f"--against={file}")
    assert done.returncode == 2 and "has answers of tasks, and none of a text: name the model" in done.stderr
    longer = tmp_path / "longer"
    keys = [*LLAMA, "--dataset=words", "--block_size=32", "--max_iters=2"]
    assert training(one.parent / "data", longer, *keys).returncode == 0
    (novel := tmp_path / "novel.txt").write_text("loss model train token layer width depth scale " * 20)
    done = command(evaluate.main, one, "--device=cpu", f"--against={longer}", f"--text={novel}")
    assert done.returncode == 2 and "in other windows" in done.stderr
    done = command(evaluate.main, one, "--device=cpu", f"--against={longer}", f"--text={one.parent / 'data/words'}")
    assert done.returncode == 0 and "KL to B" in done.stdout


def test_a_model_with_another_tokenizer_is_compared_in_bits_per_byte(runs, tmp_path):
    one = runs[0]
    text = [" ".join(["loss model train token"] * 30)] * 4
    folder = tmp_path / "data/letters"
    tokenizer = choose("char", text)
    with DatasetWriter(folder, tokenizer.entry, tokenizer.tokenizer.vocab_size, "generated") as writer:
        for split in ("train", "val"):
            for document in text:
                writer.add(
                    split, [*tokenizer.tokenizer.encode(document), tokenizer.tokenizer.end_of_document], len(document)
                )
    done = training(tmp_path / "data", tmp_path / "letters", *LLAMA, "--dataset=letters", "--max_iters=2")
    assert done.returncode == 0, done.stderr
    done = command(evaluate.main, one, "--device=cpu", f"--against={tmp_path / 'letters'}", f"--text={folder}")
    assert done.returncode == 0, done.stderr
    rows = [line for line in done.stdout.splitlines() if line.startswith("text ")]
    assert len(rows) == 3 and "KL to B" not in done.stdout  # two figures and their difference
