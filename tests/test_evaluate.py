"""evaluate.py: what it says of a run without any other data, against counts by hand; noise and chance; what is
refused."""

import dataclasses
import json
import math
import re
import shutil

import numpy as np
import pytest
import torch
from commands import command
from conftest import ROOT, run_of_its_own, training, write_words
from setups import LLAMA
from test_tokenizers import sentencepiece_file

import checkpoint
import evaluate
from common.errors import UserError
from data.tokenizers import choose
from evaluation import held_out
from evaluation.figures import Figure, mean_error, ratio_error, table
from evaluation.held_out import (
    AFTER,
    BEFORE,
    HeldOut,
    bits_per_byte,
    choices,
    clozes,
    made_tasks,
    read_windows,
    validation_text,
)
from evaluation.scoring import Score
from evaluation.subject import find_subject

CPU = torch.device("cpu")
PAGE = (ROOT / "docs/evaluation.md").read_text()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A short run on data of its own: `run` and `data` in one folder."""
    return run_of_its_own(tmp_path_factory.mktemp("evaluated"))


@pytest.fixture(scope="module")
def said(run):
    done = command(evaluate.main, run, "--device=cpu", f"--save_results={run.parent / 'results.json'}")
    assert done.returncode == 0, done.stderr
    return done.stdout, json.loads((run.parent / "results.json").read_text())


def refused(*arguments):
    done = command(evaluate.main, *arguments, "--device=cpu")
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode == 2 and len(errors) == 1 and done.stdout == "", done.stderr
    return errors[0]


# ---------------------------------------------------------------------------------------------------------------------
# A run, without any other data


def test_what_is_said_of_a_run(run, said):
    """The table, speed and memory; the file has the same numbers."""
    text, results = said
    lines = text.splitlines()
    assert [line.split()[0] for line in lines[:5]] == ["task", "text", "text", "choice", "cloze"]
    speed = r"speed, one text: [\d,]+ tokens/s of a prompt of 32 \(first token after [\d.,]+ ms\), then [\d,]+ tokens/s"
    assert re.fullmatch(speed, lines[5])
    assert re.match(r"memory: .* of weights, .* of caches at 64 tokens, .* at most in this process so far", lines[6])
    for figure, line in zip(results["figures"], lines[1:5], strict=True):
        shown = f"{figure['value']:.1%}" if figure["is_share"] else f"{figure['value']:.4f}"
        assert shown in line and f"{figure['samples']:,} {figure['of']}" in line and figure["error"] > 0
    assert results["figures"][2]["chance"] == 0.25 and results["figures"][2]["samples"] == 200
    model = find_subject(run, None, CPU, None).model
    assert results["speed"]["weight_bytes"] == sum(parameter.nbytes for parameter in model.parameters())


def test_the_same_command_says_the_same(run, said):
    again = command(evaluate.main, run, "--device=cpu").stdout
    assert again.splitlines()[:5] == said[0].splitlines()[:5]


def test_questions_whose_answers_are_longer_than_the_block_are_left_out(data_dir, tmp_path):
    assert training(data_dir, tmp_path / "run", "--block_size=16", "--max_iters=1").returncode == 0
    done = command(evaluate.main, tmp_path / "run", "--device=cpu", "--limit=4")
    assert done.returncode == 0, done.stderr
    assert [line.split()[0] for line in done.stdout.splitlines()[1:4]] == ["text", "text", "cloze"]


@torch.no_grad()
def test_bits_per_byte_by_hand(run):
    """Each document after the end of the one before, 64 tokens at a time; with a stride, each after those before it."""
    subject = find_subject(run, None, CPU, None)
    text = validation_text(subject.run)
    assert len(text.documents) == 8
    for stride in (64, 16):
        nats = sum(by_hand(subject, document, stride) for document in text.documents)
        bits, perplexity = bits_per_byte(subject, read_windows(subject, text, stride))
        size = sum(map(len, text.documents))
        assert bits.value == pytest.approx(nats / math.log(2) / size, abs=1e-5) and bits.samples == 8
        assert perplexity.value == pytest.approx(math.exp(nats / size), abs=1e-4)


def by_hand(subject, document, stride):
    """Nats of a document of bytes that begins after a 0."""
    whole, nats, done = [0, *document], 0.0, 0
    while done < len(document):
        end = min(done + (stride if done else 64), len(document))
        read = torch.tensor([whole[max(0, end - 64) : end]])
        found = subject.model(read)[0].log_softmax(-1)[-(end - done) :]
        nats -= found.gather(1, torch.tensor(document[done:end])[:, None]).sum().item()
        done = end
    return nats


def test_bytes_are_those_of_the_text(run, monkeypatch, tmp_path):
    """Also where a tokenizer puts a space before a text that is not the text's."""
    monkeypatch.setattr(held_out, "scores", lambda _, requests, *__: [Score(-1.0, True)] * len(requests))
    tokenizer = choose(str(sentencepiece_file(tmp_path))).tokenizer
    subject = dataclasses.replace(find_subject(run, None, CPU, None), tokenizer=tokenizer)
    texts = ["loss of a model " * 20, "training a model"]
    text = HeldOut("a text", [subject.tokenizer.encode(text) for text in texts])
    bits = bits_per_byte(subject, read_windows(subject, text, 64))[0]
    count = sum(math.ceil(len(document) / 64) for document in text.documents)
    assert bits.value == pytest.approx(count / math.log(2) / sum(map(len, texts)))


def test_a_part_of_the_windows_lies_evenly(run):
    subject = find_subject(run, None, CPU, None)
    text = validation_text(subject.run)
    whole, part = (bits_per_byte(subject, read_windows(subject, text, 64, most))[0] for most in (None, 640))
    assert part.samples == 8 and part.value == pytest.approx(whole.value, abs=0.1) and part.value != whole.value


@pytest.mark.parametrize("keys", [["--dataset=tiny", "--val_dataset=words"], ["--mixture={'words': 1.0}"]])
def test_the_text_is_what_the_run_was_validated_on(run, data_dir, tmp_path, keys):
    """Of another dataset than the one it was trained on, and of a mixture's only one."""
    shutil.copytree(data_dir / "tiny", tmp_path / "data/tiny")
    shutil.copytree(run.parent / "data/words", tmp_path / "data/words")
    of_model = [key for key in LLAMA if not key.startswith("--dataset=")]
    done = training(tmp_path / "data", tmp_path / "run", *of_model, "--max_iters=1", *keys)
    assert done.returncode == 0, done.stderr
    found = validation_text(find_subject(tmp_path / "run", None, CPU, None).run)
    assert "words" in found.name
    assert found.documents == validation_text(find_subject(run, None, CPU, None).run).documents


def test_a_file_in_place_of_the_validation_text(run, tmp_path):
    (tmp_path / "text.txt").write_text("loss model train token layer width depth scale " * 20)
    done = command(evaluate.main, run, "--device=cpu", f"--text={tmp_path / 'text.txt'}", "--stride=32")
    assert done.returncode == 0 and "windows" in done.stdout and "text.txt, 940 tokens" in done.stderr


# ---------------------------------------------------------------------------------------------------------------------
# Made questions


TEXT = " ".join(f"{word}{'ab'[n % 2]}{'xyz'[n % 3]} stays here" for n, word in enumerate(["loss", "model"] * 90))


def test_a_choice_goes_on_from_its_text_and_three_others_do_not():
    questions = choices([TEXT[:2000], TEXT[2000:]])
    assert len(questions) > 100 and questions == choices([TEXT[:2000], TEXT[2000:]])
    for question in questions:
        assert question.text + question.answers[question.right] in TEXT and len(question.text) == BEFORE
        assert len(set(question.answers)) == 4 and {len(answer) for answer in question.answers} == {AFTER}
        assert question.answers[0][0] == " " and not question.text.endswith(" ")
    assert {question.right for question in questions} == {0, 1, 2, 3}


def test_a_cloze_asks_for_a_word_that_was_there():
    for question in clozes([TEXT]):
        (word,) = question.answers
        assert word.startswith(" ") and word[1:] in question.text.split() and len(word) >= 5


def test_made_tasks_count_what_is_right(run, monkeypatch):
    """With answers that are likely as a test says: the right one of every second choice, no word of a cloze."""
    subject = find_subject(run, None, CPU, None)

    def ask(subject, questions, batch_size):
        for n, question in enumerate(questions):
            likely = [(place == question.right) == (n % 2 == 0) for place in range(len(question.answers))]
            yield [Score(float(one), False) for one in likely]

    monkeypatch.setattr(held_out, "ask", ask)
    text = HeldOut("a text", [subject.tokenizer.encode(TEXT)])
    choice, cloze = made_tasks(subject, text, 50, None)
    assert (choice.value, choice.samples, choice.chance) == (0.5, 50, 0.25)
    assert choice.error == pytest.approx(math.sqrt(0.25 / 49))
    assert (cloze.value, cloze.verdict) == (0.0, "worse than chance") and 0.3 < cloze.chance < 1


# ---------------------------------------------------------------------------------------------------------------------
# Noise


def test_standard_errors_are_the_spread_over_draws():
    rng = np.random.default_rng(0)
    sums, sizes = rng.normal(8, 2, 400), rng.uniform(1, 5, 400)
    draws = rng.integers(400, size=(4000, 400))
    assert mean_error(sums) == pytest.approx(np.std([sums[draw].mean() for draw in draws]), rel=0.05)
    ratios = [sums[draw].sum() / sizes[draw].sum() for draw in draws]
    assert ratio_error(sums, sizes) == pytest.approx(np.std(ratios), rel=0.05)
    assert mean_error(np.zeros(98)) == pytest.approx(math.sqrt(0.01 * 0.99 / 98)) == mean_error(np.ones(98))
    assert mean_error(sums[:1]) is None and ratio_error(sums[:1], sizes[:1]) is None


@pytest.mark.parametrize(
    ("value", "verdict"), [(0.25, "within noise of chance"), (0.28, "within noise of chance"),
                           (0.32, "better than chance"), (0.18, "worse than chance")]
)  # fmt: skip
def test_whether_a_figure_is_more_than_guessing(value, verdict):
    """Of 200 questions with four answers: 1.96 standard errors of a guess are 6 %."""
    figure = Figure("task", "acc", value, 0.03, 0.25, 200)
    assert figure.verdict == verdict and verdict in table([figure])[1]
    assert Figure("task", "f1", value, 0.03, None, 200).verdict == ""


def test_guessing_is_called_so_nineteen_times_in_twenty():
    right = np.random.default_rng(0).binomial(400, 0.25, size=4000) / 400
    called = [Figure("task", "acc", value, 0.02, 0.25, 400).verdict == "within noise of chance" for value in right]
    assert np.mean(called) == pytest.approx(0.95, abs=0.01)


# ---------------------------------------------------------------------------------------------------------------------
# What is refused


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--limit=0"], "--limit: '0' is not a whole number of 1 or more"),
        (["--batch_size=some"], "--batch_size: 'some' is not a whole number"),
        (["--add_bos_token=maybe"], "--add_bos_token: 'maybe' is neither True nor False"),
        (["--tasks=,"], "--tasks: no task is named"),
        (["--save_samples=x.jsonl"], "--save_samples is of --tasks"),
        (["--tasks=x", "--stride=3"], "--stride is of a text"),
        (["--text=absent.txt"], "cannot read absent.txt"),
        (["--save_results=absent/x.json"], "there is no folder absent"),
        (["--checkpoint=7"], "has no checkpoint of step 7"),
    ],
)
def test_mistakes_are_one_line(run, arguments, reason):
    assert reason in refused(run, *arguments)


def test_what_is_no_model(run, tmp_path):
    assert "no run folder" in refused(tmp_path / "absent")
    assert "has no checkpoint" in refused(tmp_path)
    (tmp_path / "empty.txt").write_text("")
    assert "is empty" in refused(run, f"--text={tmp_path / 'empty.txt'}")


def test_a_validation_text_that_is_another_now(run, tmp_path):
    """It may have been trained on."""
    shutil.copytree(run.parent, tmp_path / "copy")
    config = json.loads((tmp_path / "copy/run/config.json").read_text())
    assert config["data_dir"] == str(run.parent / "data")
    moved = run.parent / "data" / "words"
    moved.rename(moved.with_name("kept"))
    try:
        write_words(moved, {"train": 40, "val": 9}, length=80)
        assert "was prepared anew since" in refused(run)
        shutil.rmtree(moved)
        assert "there is no dataset folder" in refused(run)
    finally:
        moved.with_name("kept").rename(moved)


def test_a_folder_of_a_model_needs_a_text_or_tasks(run, tmp_path):
    folder = tmp_path / "hf"
    assert command(checkpoint.main, "export", run, folder, "--format=hf").returncode == 0
    assert "name one with --text, or --tasks" in refused(folder)
    (tmp_path / "text.txt").write_text("loss model train token " * 40)
    one, two = (command(evaluate.main, path, f"--text={tmp_path / 'text.txt'}").stdout for path in (run, folder))
    assert one.splitlines()[:4] == two.splitlines()[:4]
    (folder / "tokenizer_config.json").write_text("{")
    assert "tokenizer_config.json: " in refused(folder, f"--text={tmp_path / 'text.txt'}")
    (folder / "tokenizer.json").unlink()
    assert "no tokenizer.json and no tokenizer.model" in refused(folder)


def test_weights_that_are_no_numbers(run):
    subject = find_subject(run, None, CPU, None)
    with torch.no_grad():
        subject.model.embedding.weight.fill_(torch.nan)
    with pytest.raises(UserError, match="not finite"):
        read_windows(subject, HeldOut("a text", [list(b"loss model")]), 64)


def test_the_page_states_these_numbers():
    assert f"{held_out.READ:,} tokens count" in PAGE
    assert f"a passage of {BEFORE} characters and four of {AFTER}" in PAGE and held_out.CHOICES == 4
