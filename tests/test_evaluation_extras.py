"""evaluate.py's extras: loss by position, needles, contamination, speed: each against brute force or a made model."""

import dataclasses
import json
import math
import re
import shutil
import types

import numpy as np
import pytest
import torch
from commands import command
from conftest import run_of_its_own, write_words

import evaluate
from common.errors import UserError
from data.dataset import open_dataset
from data.tokenizers import BytesTokenizer, CharactersTokenizer, tokenizer_from_meta
from data.writer import DatasetWriter
from evaluation import contamination, energy, needle, speed
from evaluation.figures import Figure
from evaluation.held_out import HeldOut, bits_per_byte, read_windows, text_of, validation_text
from evaluation.needle import CHOICES, DEPTHS, hidden_in, make_all, measure
from evaluation.positions import bucket_of, by_position
from evaluation.scoring import Score
from evaluation.subject import Subject, find_subject
from inference.loading import cache_bytes

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A short run on data of its own: `run` and `data` in one folder."""
    return run_of_its_own(tmp_path_factory.mktemp("extras"))


def said(run, *arguments):
    """What evaluate.py prints, and the file that it writes."""
    results = run.parent / "results.json"
    done = command(evaluate.main, run, "--device=cpu", f"--save_results={results}", *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout, json.loads(results.read_text())


def refused(*arguments):
    done = command(evaluate.main, *arguments, "--device=cpu")
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode == 2 and len(errors) == 1 and done.stdout == "", done.stderr
    return errors[0]


# ---------------------------------------------------------------------------------------------------------------------
# By position


def test_a_bucket_ends_at_a_power_of_two():
    assert bucket_of(1, 9).tolist() == [0, 1, 2, 2, 3, 3, 3, 3, 4]
    assert bucket_of(63, 3).tolist() == [6, 6, 7]


@pytest.mark.parametrize("stride", [64, 24])
def test_the_loss_by_position_is_that_of_each_token_alone(run, stride):
    """Token by token: the text before it in its window is read whole, in float64, and nothing else."""
    subject = find_subject(run, None, CPU, None)
    text = validation_text(subject.run)
    reading = read_windows(subject, text, stride)
    found = by_position(subject, reading)
    subject.model.double()
    nats: dict[int, list[float]] = {}
    for document in text.documents:
        whole, done = [0, *document], 0
        while done < len(document):
            end = min(done + (stride if done else 64), len(document))
            start = max(0, end - 64)
            with torch.no_grad():
                likelihoods = subject.model(torch.tensor([whole[start:end]]))[0].log_softmax(-1)
            for place in range(done, end):
                before = place + 1 - start
                loss = -likelihoods[before - 1, document[place]].item()
                nats.setdefault(next(n for n in range(8) if before <= 2**n), []).append(loss)
            done = end
    assert [bucket.last for bucket in found] == [2**n for n in sorted(nats)] == [1, 2, 4, 8, 16, 32, 64]
    assert [bucket.first for bucket in found] == [1, 2, 3, 5, 9, 17, 33]
    for bucket, number in zip(found, sorted(nats), strict=True):
        assert bucket.tokens == len(nats[number])
        assert bucket.nats_per_token == pytest.approx(np.mean(nats[number]), abs=1e-5) and bucket.error > 0
        assert bucket.bits_per_byte == pytest.approx(bucket.nats_per_token / math.log(2))  # a byte is a token
    total = sum(bucket.nats_per_token * bucket.tokens for bucket in found)
    bits = bits_per_byte(subject, reading)[0].value
    assert total / math.log(2) / sum(map(len, text.documents)) == pytest.approx(bits, rel=1e-6)


def test_the_error_of_a_bucket_is_the_spread_over_documents(run):
    """Against resamples of documents."""
    subject = find_subject(run, None, CPU, None)
    drawn = np.random.default_rng(0)
    words = "loss model train token layer width depth scale".split()
    texts = [" ".join(drawn.choice(words, size)) for size in drawn.integers(4, 60, 60)]
    reading = read_windows(subject, HeldOut("texts", [list(text.encode()) for text in texts]), 64)
    bucket = by_position(subject, reading)[4]  # 9 to 16
    sums = np.zeros((len(texts), 2))
    for row, own in zip(sums, reading.samples, strict=True):
        for read in own:
            values = [v for n, v in enumerate(read.score.of_tokens) if 9 <= len(read.window.context) + n <= 16]
            row += -sum(values), len(values)
    draws = drawn.integers(len(sums), size=(4000, len(sums)))
    assert bucket.error == pytest.approx(np.std([sums[draw, 0].sum() / sums[draw, 1].sum() for draw in draws]), rel=0.1)


def test_positions_through_the_command(run, tmp_path):
    text, results = said(run, "--by_position", f"--png={tmp_path / 'positions.png'}")
    lines = text[text.index("loss by position") :].splitlines()
    assert lines[1].split() == "tokens before nats per token std. error bits per byte tokens".split()
    for line, bucket in zip(lines[2:9], results["by_position"], strict=True):
        assert f"{bucket['nats_per_token']:.4f}" in line and f"{bucket['tokens']:,}" in line
    assert (tmp_path / "positions.png").read_bytes().startswith(b"\x89PNG")


# ---------------------------------------------------------------------------------------------------------------------
# A prepared dataset as the text


def test_a_datasets_folder_is_a_text(run, tmp_path):
    """Its documents and its bytes, also of another tokenizer than the run's."""
    subject = find_subject(run, None, CPU, None)
    texts = ["loss of a model", "training, a depth"]
    meta = {"kind": "characters", "end_of_document": 20, "characters": "".join(sorted(set("".join(texts))))}
    meta["end_of_document"] = len(meta["characters"])
    own = tokenizer_from_meta(meta)
    with DatasetWriter(tmp_path / "other", meta, own.vocab_size, "made") as writer:
        for split in ("train", "val"):
            for text in texts:
                writer.add(split, [*own.encode(text), own.end_of_document], len(text))
    found = text_of(tmp_path / "other", subject.tokenizer)
    assert [subject.tokenizer.decode(document) for document in found.documents] == texts
    same = text_of(run.parent / "data/words", subject.tokenizer)
    assert same.documents == validation_text(subject.run).documents
    split = open_dataset(run.parent / "data/words").splits["val"]
    reading = read_windows(subject, same, 64)
    nats = sum(-read.score.log_likelihood for read in reading.reads)
    assert bits_per_byte(subject, reading)[0].value == pytest.approx(nats / math.log(2) / split.bytes)
    assert "there is no dataset folder" not in refused(run, f"--text={tmp_path / 'absent'}")
    (tmp_path / "empty").mkdir()
    assert "has no meta.json" in refused(run, f"--text={tmp_path / 'empty'}")


# ---------------------------------------------------------------------------------------------------------------------
# Needles


class Copies:
    """A model of bytes that writes what followed when what was last read stood in the text before: as far back as
    `reach` tokens, longer passages before shorter ones. Whatever it does not know it takes for equally likely."""

    turns_anew = True  # each text is read whole

    def __init__(self, block, reach):
        self.config, self.reach = types.SimpleNamespace(block_size=block), reach
        self.embedding = types.SimpleNamespace(weight=torch.zeros(256, 1))
        self.head_weight = torch.zeros(256, 1)

    def hidden(self, tokens, caches=None, last=None):
        assert caches is None
        return torch.stack([self.read(row.tolist()) for row in tokens])[:, -(last or 0) :]

    def read(self, tokens):
        found = torch.zeros(len(tokens), 256)
        for end in range(len(tokens)):
            start = max(0, end + 1 - self.reach)
            for length in range(24, 3, -1):
                last = bytes(tokens[max(start, end + 1 - length) : end + 1])
                place = bytes(tokens[start : end + 1]).rfind(last, 0, end - start)
                if len(last) == length and place >= 0:
                    found[end, tokens[start + place + length]] = 10.0
                    break
        return found

    def logits(self, hidden):
        return hidden


def copying(block, reach):
    return Subject("copies", Copies(block, reach), BytesTokenizer(0), 0, False, None)


HAYSTACK = HeldOut("noise", [np.random.default_rng(0).integers(1, 256, 3000).tolist()])


def test_a_model_that_copies_finds_every_needle():
    lengths, found = measure(copying(128, 10**6), HAYSTACK, 4, 16)
    assert lengths == [64, 128] and found.shape == (2, len(DEPTHS), 4, 3)
    assert (found[..., 0] == 1).all() and (found[..., 2] == 1).all() and (found[..., 1] > 20).all()


def test_a_model_that_sees_no_further_finds_those_that_are_near():
    """Of 256 tokens it sees 100: the needle at the end of the text, and those at other depths in shorter ones."""
    lengths, found = measure(copying(256, 100), HAYSTACK, 4, 16)
    written = found[..., 2].mean(axis=2)
    assert lengths == [64, 128, 256]
    assert (written[0] == 1).all() and (written[:, -1] == 1).all()
    assert (written[2, :3] == 0).all() and written[1, 0] == 0 and written[1, 3] == 1
    unseen = found[2, :3]
    assert np.allclose(unseen[..., 0], 1 / CHOICES) and np.allclose(unseen[..., 1], 0, atol=1e-4)  # all equally likely


def test_who_guesses_is_right_once_in_four():
    drawn = np.random.default_rng(1)
    results = [needle.results_of([Score(value, False) for value in drawn.normal(size=CHOICES)]) for _ in range(4000)]
    right, above, written = np.mean(results, axis=0)
    assert right == pytest.approx(0.25, abs=0.02) and above == pytest.approx(0, abs=0.05) and written == 0
    assert needle.results_of([Score(-1.0, True)] * 4)[0] == 0.25
    assert needle.results_of([Score(-1.0, True), Score(-3.0, False), Score(-2.0, False), Score(-4.0, False)])[1] == 2.0


def test_where_a_needle_lies():
    """As deep as said, in a text of exactly the length."""
    subject = copying(128, 1)
    (one,) = make_all(subject.tokenizer, 1)
    filler = list(b"x" * 200)
    for depth in DEPTHS:
        requests = hidden_in(one, 0, filler, 100, depth)
        right = bytes(requests[0].context)
        before = right.index(bytes(one.sentence)) - 1
        assert len(requests[0].context) + len(requests[0].continuation) - 1 == 100
        assert before == round(depth * (100 - one.size)) and right.endswith(bytes(one.question)) and right[0] == 0
        assert bytes(one.question + one.answers[0]) + b"\n" == bytes(one.sentence)
        assert len({request.continuation for request in requests}) == CHOICES
    assert make_all(subject.tokenizer, 3) == make_all(subject.tokenizer, 3)


def test_a_tokenizer_without_digits_has_letters():
    letters = CharactersTokenizer(None, "\n .T" + "abcdefghijklmnopqrstuvwxyz")
    assert re.fullmatch(r" [b-m]{5}\.", letters.decode(make_all(letters, 1)[0].answers[0]))
    with pytest.raises(UserError, match="--needle: the run's tokenizer cannot say"):
        make_all(CharactersTokenizer(None, "xyz"), 1)


def test_needles_through_the_command(run, tmp_path):
    text, results = said(run, "--needle", "--limit=3", f"--png={tmp_path / 'needle.png'}")
    assert "needle: 3 of each length and depth, in the validation split of words" in text
    assert "right of four, chance 25.0%:" in text and "written by greedy decoding:" in text
    assert [(cell["length"], cell["depth"]) for cell in results["needle"]] == [(64, depth) for depth in DEPTHS]
    assert {cell["right of four"]["chance"] for cell in results["needle"]} == {0.25}
    assert (tmp_path / "needle.png").stat().st_size > 10_000
    (tmp_path / "short.txt").write_text("loss")
    assert "fewer than the model's block of 64" in refused(run, "--needle", f"--text={tmp_path / 'short.txt'}")


# ---------------------------------------------------------------------------------------------------------------------
# Contamination


def test_what_was_planted_is_found_and_nothing_else(monkeypatch, tmp_path):
    """Against a brute-force search, in documents of many pieces."""
    pytest.importorskip("datatrove")
    drawn = np.random.default_rng(0)
    words = [f"{a}{b}{c}" for a in "bcdfgl" for b in "aeiou" for c in "mnrst"]
    samples = [" ".join(drawn.choice(words, size)) for size in drawn.integers(8, 40, 60)]
    training = [list(drawn.choice(words, size)) for size in drawn.integers(20, 4000, 12)]
    for number in range(0, 60, 3):  # of these 12 to 16 words, in a document at any place
        plant = samples[number].split()[: 12 + number % 5]
        document = training[number % 12]
        place = int(drawn.integers(len(document)))
        document[place:place] = [word.upper() for word in plant]
    texts = [" ".join(document) for document in training]
    grams = {tuple(text.lower().split()[n : n + 13]) for text in texts for n in range(len(text.split()) - 12)}
    own = [{tuple(text.split()[n : n + 13]) for n in range(len(text.split()) - 12)} for text in samples]
    with DatasetWriter(tmp_path / "made", {"kind": "bytes", "end_of_document": 0}, 256, "made") as writer:
        for split in ("train", "val"):
            for text in texts:
                writer.add(split, [*text.encode(), 0], len(text))
    monkeypatch.setattr(contamination, "PIECE", 3000)
    bar = types.SimpleNamespace(update=lambda tokens: None)
    read = list(contamination.texts_of(open_dataset(tmp_path / "made"), bar))
    assert len(read) > len(texts) and max(map(len, read)) < 2 * 3000 + 1024
    found = contamination.look([[sample] for sample in samples], read)
    assert found.contaminated.tolist() == [bool(mine & grams) for mine in own]
    assert found.too_short.tolist() == [not mine for mine in own]
    assert 5 < found.contaminated.sum() < 20 and found.too_short.any()


def test_contamination_through_the_command(run, tmp_path):
    """Two of three files of a dataset are of the training text: with and without them by hand."""
    pytest.importorskip("datatrove")
    subject = find_subject(run, None, CPU, None)
    trained = open_dataset(run.parent / "data/words")
    from data.dataset import TokenReader

    tokens = TokenReader(trained.splits["train"], trained.dtype).read(0, trained.splits["train"].tokens)
    documents = bytes(tokens.astype(np.uint8)).decode().split("\0")
    clean = " ".join(f"word{n} is another" for n in range(40))
    texts = [documents[3], clean, "short", "before it. " + documents[5][100:300]]
    meta = {"kind": "bytes", "end_of_document": 0}
    with DatasetWriter(tmp_path / "asked", meta, 256, "made") as writer:
        for split in ("train", "val"):
            for text in texts:
                writer.add(split, [*text.encode(), 0], len(text))
    printed, results = said(run, f"--text={tmp_path / 'asked'}", "--contamination")
    assert (
        "contamination: text: 2 of 4 samples (50.0%) have 13 words in a row with the training data; 1 have fewer words"
        in printed
    )
    found = results["contamination"]["text"]
    assert found["which"] == [0, 3] and (found["samples"], found["contaminated"], found["too_short"]) == (4, 2, 1)
    for figure, own in zip(found["figures"], ([0, 1, 2, 3], [1, 2], [0, 3]), strict=True):
        alone = read_windows(subject, HeldOut("some", [list(texts[n].encode()) for n in own]), 64)
        assert figure["value"] == pytest.approx(bits_per_byte(subject, alone)[0].value, abs=1e-6)
    assert [figure["of"] for figure in found["figures"]] == [
        "all documents", "clean documents", "contaminated documents"
    ]  # fmt: skip


def test_contamination_of_a_benchmark_that_has_another_name_than_its_task():
    """Its figures are found by the task whose samples they are the mean of."""
    pytest.importorskip("datatrove")
    samples = [{"doc_id": n, "filter": "none", "acc": float(n == 2)} | {"doc": {}} for n in range(4)]
    found = contamination.Found(np.array([False, False, True, True]), np.zeros(4, dtype=bool))
    figure = Figure("mine (0-shot)", "acc", 0.25, None, 0.25, 4, "samples", parts=("task (0-shot)",))
    others = dataclasses.replace(figure, parts=("task (0-shot)", "another (0-shot)"))
    parts = contamination._of_task("task (0-shot)", samples, found, [figure, others])
    assert [(which, part.value, part.samples) for which, part in parts] == [
        ("all", 0.25, 4), ("clean", 0.0, 2), ("contaminated", 0.5, 2)
    ]  # fmt: skip


def test_contamination_of_tasks_and_what_is_refused(run, tmp_path, monkeypatch):
    pytest.importorskip("datatrove")
    pytest.importorskip("lm_eval")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    subject = find_subject(run, None, CPU, None)
    trained = open_dataset(run.parent / "data/words")
    from data.dataset import TokenReader

    tokens = TokenReader(trained.splits["train"], trained.dtype).read(0, 2000)
    seen = bytes(tokens.astype(np.uint8)).decode().split("\0")[1].split()
    rows = [
        {"question": " ".join(seen[n : n + 15] if n % 2 else [f"new{n}{m}" for m in range(15)]), "right": n % 2}
        for n in range(6)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "mine.yaml").write_text(
        "task: mine\ndataset_path: json\ndataset_kwargs:\n  data_files: {test: rows.jsonl}\ntest_split: test\n"
        "output_type: multiple_choice\ndoc_to_text: '{{question}}'\ndoc_to_choice: ['loss', 'model']\n"
        "doc_to_target: right\n"
    )
    samples = tmp_path / "samples.jsonl"
    printed, results = said(run, f"--tasks={tmp_path / 'mine.yaml'}", "--contamination", f"--save_samples={samples}")
    assert "contamination: mine: 3 of 6 samples (50.0%)" in printed
    answered = {line["doc_id"]: line["acc"] for line in map(json.loads, samples.read_text().splitlines())}
    found = {
        figure["samples_are"]: figure
        for figure in results["contamination"]["mine"]["figures"]
        if figure["metric"] == "acc"
    }
    for which, numbers in (("all", range(6)), ("clean", (0, 2, 4)), ("contaminated", (1, 3, 5))):
        assert found[which]["value"] == pytest.approx(np.mean([answered[number] for number in numbers]))
    assert found["all"]["value"] == results["figures"][0]["value"] and subject.run is not None

    kept = run.parent / "data/words"
    kept.rename(tmp_path / "away")
    (tmp_path / "text.txt").write_text("loss model " * 40)
    try:
        assert "there is no dataset folder" in refused(run, f"--text={tmp_path / 'text.txt'}", "--contamination")
        write_words(kept, {"train": 41, "val": 8}, length=80)
        assert "was prepared anew" in refused(run, f"--text={tmp_path / 'text.txt'}", "--contamination")
    finally:
        shutil.rmtree(kept)
        (tmp_path / "away").rename(kept)


# ---------------------------------------------------------------------------------------------------------------------
# Speed


def test_the_grid_of_speeds(run, tmp_path, monkeypatch):
    """Every cell's counts follow from what was timed: rates times seconds are tokens, caches those of the texts."""
    monkeypatch.setattr(speed, "BATCHES", (1, 3))
    clock = iter(range(10**6))
    monkeypatch.setattr(speed.time, "perf_counter", lambda: float(next(clock)))
    energy_of = iter(np.arange(10**6) * 5.0)
    monkeypatch.setattr(speed, "meter_of", lambda device: lambda: float(next(energy_of)))
    subject = find_subject(run, None, CPU, None)
    cells = speed.measure_grid(subject.model, (1, 3))
    assert [(cell.batch, cell.context) for cell in cells] == [(1, 32), (1, 64), (3, 32), (3, 64)]
    for cell in cells:  # of one second and five joules a part
        assert cell.read + cell.written == cell.context and cell.seconds_to_first_token == 1.0
        assert cell.prefill_tokens_per_second == cell.batch * cell.read
        assert cell.decode_tokens_per_second == cell.batch * cell.written
        assert cell.prefill_joules_per_token == pytest.approx(5 / (cell.batch * cell.read))
        assert cell.decode_joules_per_token == pytest.approx(5 / (cell.batch * cell.written))
        caches = subject.model.empty_caches(cell.batch, cell.context)
        assert cell.cache_bytes == caches.bytes == cell.batch * cache_bytes(subject.model.config, 1, cell.context)


def test_speed_through_the_command(run, tmp_path):
    text, results = said(run, "--speed", f"--png={tmp_path / 'speed.png'}")
    heads = text[text.index("speed, random tokens") :].splitlines()[1]
    assert "prefill tok/s" in heads and "mJ/token written" in heads
    assert len(results["speed_grid"]) == 3 * 2 and all(
        cell["decode_tokens_per_second"] > 0 for cell in results["speed_grid"]
    )
    assert (tmp_path / "speed.png").stat().st_size > 10_000


def test_a_batch_that_does_not_fit_is_no_number(run, monkeypatch):
    subject = find_subject(run, None, CPU, None)
    real = speed._round

    def one_text(model, ids, written, meter):
        if len(ids) > 1:
            raise torch.OutOfMemoryError("out of memory")
        return real(model, ids, written, meter)

    monkeypatch.setattr(speed, "_round", one_text)
    cells = speed.measure_grid(subject.model, (1, 2))
    assert [cell.decode_tokens_per_second is None for cell in cells] == [False, False, True, True]


def test_joules_of_a_processor(tmp_path):
    """Two packages, of which one's counter begins anew; what a package counts of its parts is in it."""
    assert energy._of_processor(tmp_path) is None
    counters = {"intel-rapl:0": 900, "intel-rapl:1": 50, "intel-rapl:0:0": 7}

    def write():
        for name, value in counters.items():
            (tmp_path / name).mkdir(exist_ok=True)
            (tmp_path / name / "energy_uj").write_text(f"{value}\n")
            (tmp_path / name / "max_energy_range_uj").write_text("1000\n")

    write()
    meter = energy._of_processor(tmp_path)
    assert meter() == 0.0
    counters.update({"intel-rapl:0": 100, "intel-rapl:1": 60})
    write()
    assert meter() == pytest.approx((200 + 10) / 1e6)
    (tmp_path / "intel-rapl:1/energy_uj").unlink()
    assert energy._of_processor(tmp_path) is None


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--tasks=x", "--needle"], "--needle is of a text"),
        (["--tasks=x", "--by_position"], "--by_position is of a text"),
        (["--png=x.png"], "--png is a picture of"),
        (["--needle", "--png=x.jpg"], "the file's name must end in .png"),
    ],
)
def test_mistakes_are_one_line(run, arguments, reason):
    assert reason in refused(run, *arguments)
