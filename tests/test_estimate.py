"""Estimates: planted costs come back, intervals are as wide as a closed form says, and a run ten times as large as the
sample has the tokens and bytes that were estimated."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT

from common.errors import UserError
from data import estimate
from data.dataset import open_dataset
from data.documents import Documents
from data.estimate import GROUPS, Interval, Sample, Wanted, Work, measure_preparation
from data.parts import FilePart, prepare_parts
from data.tokenizers import choose

BYTE = choose("byte")


def files(folder: Path, documents: int, count: int = 4) -> list[FilePart]:
    """Texts of random lengths and words, in so many files."""
    rng, words = np.random.default_rng(1), "one two three four five six seven eight nine ten".split()
    folder.mkdir()
    for number in range(count):
        texts = [" ".join(rng.choice(words, int(rng.integers(20, 400)))) for _ in range(documents // count)]
        (folder / f"{number}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return [FilePart(path, "text", "paragraphs") for path in sorted(folder.iterdir())]


def size_of_texts(parts: list[FilePart]) -> int:
    return sum(len(text.encode()) for part in parts for text in part.texts())


# ---------------------------------------------------------------------------------------------------------------------
# From a sample to an estimate


def test_planted_costs_give_back_the_closed_form():
    """3 microseconds a byte for any number of processes, 2 for at most 4 of them, and 5 bytes of disk for 7 of text."""
    text = np.random.default_rng(0).uniform(1e5, 1e6, GROUPS)
    counts = {"text bytes": text, "tokens": text / 4, "bytes on disk": 5 / 7 * text}
    sample = Sample(counts, (Work(3e-6 * text), Work(2e-6 * text, most=4)), "", once={"bytes on disk": 1000.0})
    found = estimate.estimate(sample, Wanted("tokens", 100e9, 32, dollars_per_hour=0.25))
    hours = 400e9 * (3e-6 / 32 + 2e-6 / 4) / 3600
    expected = {"text bytes": 400e9, "tokens": 100e9, "bytes on disk": 400e9 * 5 / 7 + 1000, "hours": hours}
    expected["dollars"] = hours * 32 * 0.25
    assert found.keys() == expected.keys()
    for name, value in expected.items():  # costs that are the same in every group have an interval without width
        assert found[name] == Interval(*3 * [pytest.approx(value)])
    assert "dollars" not in estimate.estimate(sample, Wanted("text bytes", 1.0, 1))
    alone = estimate.estimate(sample, Wanted("text bytes", 400e9, 2))["hours"].value
    assert alone == pytest.approx(400e9 * 5e-6 / 2 / 3600)


def test_an_interval_is_as_wide_as_that_of_a_ratio_of_sums():
    """The variance of a ratio by linearization (Cochran 1977, Sampling Techniques, section 6.4), for 200 groups."""
    rng = np.random.default_rng(2)
    text = rng.uniform(1e5, 1e6, 200)
    seconds = text * rng.normal(3e-6, 6e-7, 200)
    found = estimate.estimate(Sample({"text bytes": text}, (Work(seconds),), ""), Wanted("text bytes", 1e9, 1))["hours"]
    ratio = seconds.sum() / text.sum()
    error = np.sqrt(((seconds - ratio * text) ** 2).sum() * 200 / 199) / text.sum()
    assert found.value == pytest.approx(ratio * 1e9 / 3600)
    assert found.high - found.low == pytest.approx(2 * 1.96 * error * 1e9 / 3600, rel=0.05)


def test_a_sample_is_of_files_that_lie_evenly_among_all(tmp_path):
    groups = estimate.groups_of(files(tmp_path / "many", 400, count=40), 100, keep=True)
    assert [group.path.name for group in groups] == [f"{number}.jsonl" for number in sorted(map(str, range(40)))][::2]
    parts = files(tmp_path / "few", 400, count=2)
    groups = estimate.groups_of(parts, 100, keep=True)
    read = [text for group in groups for text in group]
    assert read == [text for part in parts for text in list(part.texts())[:50]]
    assert sum(group.text_bytes for group in groups) == sum(len(text.encode()) for text in read)


# ---------------------------------------------------------------------------------------------------------------------
# What is measured


class Clock:
    """One that only what is planted moves."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_preparation_that_takes_planted_seconds(tmp_path, monkeypatch):
    """30 ms a file, and 2 microseconds a byte, of which the first are not in an estimate."""
    clock, prepare = Clock(), estimate.prepare_part

    def planted(job, number):
        record = prepare(job, number)
        clock.now += 0.03 + 2e-6 * sum(record[split]["bytes"] for split in ("train", "val"))
        return record

    monkeypatch.setattr(estimate, "prepare_part", planted)
    sample = measure_preparation(files(tmp_path / "texts", 2000), BYTE, 0.1, 400, clock)
    found = estimate.estimate(sample, Wanted("text bytes", 1e12, 16))["hours"]
    in_the_files = GROUPS * len("word" * 8) / sample.counts["text bytes"].sum()
    assert found.value == pytest.approx(1e12 * 2e-6 / 16 / 3600 * (1 - in_the_files))
    assert found.high - found.low < 1e-3 * found.value
    assert "30 ms here" in sample.assumed[0]


def test_a_curation_that_takes_planted_seconds(tmp_path, monkeypatch):
    """In each pass 2 microseconds a byte, and 3 in each stage between them, shared among its tasks; beside both, times
    of a task that do not grow. All documents are as long."""
    pytest.importorskip("datatrove")
    from test_curation import BARE, WITHOUT

    from data.curation import estimate as of_curation
    from data.curation.recipe import Needs
    from data.curation.stages import Plan

    clock, run_task = Clock(), of_curation.run_task

    def planted(plan, number, rank):
        stage = plan.stages[number]
        run_task(plan, number, rank)
        of = [plan.parts[rank]] if stage.is_pass else plan.parts
        clock.now += 0.02 + (2e-6 if stage.is_pass else 3e-6 / stage.tasks) * sum(group.text_bytes for group in of)

    monkeypatch.setattr(of_curation, "run_task", planted)
    folder = tmp_path / "texts"
    folder.mkdir()
    texts = [
        f"{number:05d} " + " ".join(f"word{number * 7 % (3 + one):04d}" for one in range(30)) for number in range(600)
    ]
    (folder / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    recipe = of_curation.dataclasses.replace(BARE, **dict.fromkeys(WITHOUT, False) | {"near_duplicates": True})
    plan = Plan(tmp_path / "out", (FilePart(folder / "a.jsonl", "text", "paragraphs"),), recipe, Needs())
    sample = of_curation.measure_curation(plan, BYTE, 600, clock)
    found = estimate.estimate(sample, Wanted("text bytes", 1e12, 32))
    passes, between = 2 * 2e-6 / 32, 3e-6 / 14 + 3e-6 / 1  # documents and distinct; likenesses and clusters
    assert found["hours"] == Interval(*3 * [pytest.approx(1e12 * (passes + between) / 3600)])
    assert not (tmp_path / "out").exists()


def test_a_preparation_ten_times_as_large_is_as_estimated(tmp_path):
    """Tokens and bytes on disk, within 15 %. Time is for benchmarks/estimates.py: it is not the same twice."""
    parts = files(tmp_path / "texts", 2000)
    sample = measure_preparation(parts, BYTE, 0.1, 200)
    found = estimate.estimate(sample, Wanted("text bytes", size_of_texts(parts), 1))
    prepare_parts(tmp_path / "out", parts, BYTE, 0.1, "a test", 1, lambda _: None)
    splits = open_dataset(tmp_path / "out").splits.values()
    assert found["tokens"].value == pytest.approx(sum(split.tokens for split in splits), rel=0.15)
    on_disk = sum(path.stat().st_size for path in (tmp_path / "out").glob("*.bin"))
    assert found["bytes on disk"].value == pytest.approx(on_disk, rel=0.15)
    assert found["documents"].low < 2000 < found["documents"].high


@pytest.mark.slow
def test_a_curation_ten_times_as_large_is_as_estimated(tmp_path):
    """Tokens that are left and their bytes on disk, within 15 %. A tenth of the documents is a copy, a fifth short."""
    pytest.importorskip("datatrove")
    import random

    from test_curation import prose, sentence

    from data.curation.estimate import measure_curation
    from data.curation.recipe import Needs, Recipe
    from data.curation.run import curate
    from data.curation.stages import Plan

    rng = random.Random(4)
    kinds = [lambda: prose(rng), lambda: sentence(rng, "en")[:90], lambda: " ".join(3 * [prose(rng)])]
    texts = [rng.choices(kinds, (7, 2, 1))[0]() for _ in range(5000)]
    texts = [texts[place - 1] if place % 10 == 9 else text for place, text in enumerate(texts)]
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    plan = Plan(tmp_path / "out", (FilePart(path, "text", "paragraphs"),), Recipe(), Needs())
    found = estimate.estimate(measure_curation(plan, BYTE, 500), Wanted("text bytes", size_of_texts([*plan.parts]), 1))
    curate(plan, 1, lambda _: None)
    (written,) = (tmp_path / "out/documents").iterdir()
    left = list(Documents([written]))
    assert 0.5 < len(left) / len(texts) < 0.8
    assert found["tokens left"].value == pytest.approx(sum(len(text.encode()) for text in left), rel=0.15)
    assert found["documents left"].value == pytest.approx(len(left), rel=0.15)
    assert found["bytes on disk"].value == pytest.approx(written.stat().st_size, rel=0.15)


# ---------------------------------------------------------------------------------------------------------------------
# The commands


def call(folder: Path, script: str, *arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, ROOT / script, *arguments], cwd=folder, capture_output=True, text=True)


PARTS, WHOLE = "data/c4/prepare.py", "data/openwebtext/prepare.py"


@pytest.mark.parametrize("script", [PARTS, WHOLE])
def test_the_command_says_what_it_takes_and_writes_nothing_else(tmp_path, script):
    parts = files(tmp_path / "texts", 800)
    given = ["--estimate", "--input=texts", "--tokenizer=byte", "--out_dir=out", "--num_proc=32", "--tokens=100e9"]
    given += ["--sample_documents=200", "--dollars_per_hour=0.05"]
    done = call(tmp_path, script, *given, "--save_estimate=found.json")
    assert done.returncode == 0 and not done.stderr, done.stderr
    assert "measured here: 200 documents, the first of 4 files, " in done.stdout
    assert "for 100,000,000,000 tokens on 32 processes, with 95 % intervals of the sample:" in done.stdout
    assert "32 processes do 32 times as much as one" in done.stdout
    assert {path.name for path in tmp_path.iterdir()} == {"texts", "found.json"}
    found = json.loads((tmp_path / "found.json").read_text())["estimates"]
    assert found["bytes on disk"]["value"] == 200e9  # each is 2 bytes
    assert found["dollars"]["value"] == pytest.approx(found["hours"]["value"] * 32 * 0.05)
    documents = [text for part in parts for text in list(part.texts())[:50]]
    size = sum(len(text) for text in documents)
    assert found["documents"]["value"] == pytest.approx(100e9 * 200 / (size + 200))  # an end of each is a token


@pytest.mark.parametrize("given, message", [
    (["--tokens=5"], "--tokens is for an estimate: give --estimate, too"),
    (["--estimate"], "give --tokens or --text_bytes, one of them"),
    (["--estimate", "--tokens=5", "--text_bytes=5"], "give --tokens or --text_bytes, one of them"),
    (["--estimate", "--tokens=-1"], "'-1' is not a number above 0"),
    (["--estimate", "--tokens=1e9", "--save_estimate=a.txt"], "must end in .json"),
    (["--estimate", "--tokens=1e9"], "4 documents are too few to estimate from"),
])  # fmt: skip
@pytest.mark.parametrize("script", [PARTS, WHOLE, "data/curate.py"])
def test_what_cannot_be_estimated_is_one_line(tmp_path, script, given, message):
    if script == "data/curate.py":
        pytest.importorskip("datatrove")
    files(tmp_path / "texts", 4)
    where = "--output_dir=out" if script == "data/curate.py" else "--out_dir=out"
    done = call(tmp_path, script, "--input=texts", "--tokenizer=byte", where, *given)
    assert done.returncode == 2 and message in done.stderr and done.stderr.count("\n") == 1, done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["texts"]


def test_a_dataset_that_is_prepared_as_a_whole_is_as_large_as_was_estimated(tmp_path):
    """Of a tenth of the documents."""
    parts = files(tmp_path / "texts", 800)
    given = ["--input=texts", "--tokenizer=byte", "--out_dir=out", "--num_proc=1"]
    wanted = ["--estimate", f"--text_bytes={size_of_texts(parts)}"]
    done = call(tmp_path, WHOLE, *given, *wanted, "--sample_documents=80", "--save_estimate=found.json")
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "found.json").read_text())["estimates"]
    done = call(tmp_path, WHOLE, *given)
    assert done.returncode == 0, done.stderr
    splits = json.loads((tmp_path / "out/meta.json").read_text())["splits"].values()
    assert found["tokens"]["value"] == pytest.approx(sum(split["tokens"] for split in splits), rel=0.15)
    on_disk = sum((tmp_path / "out" / split["file"]).stat().st_size for split in splits)
    assert found["bytes on disk"]["value"] == pytest.approx(on_disk, rel=0.15)
    done = call(tmp_path, WHOLE, *given[:1], "--tokenizer=char", *wanted)
    assert done.returncode == 2 and "--tokenizer=char takes its characters from all texts" in done.stderr


def test_a_curation_needs_a_folder_to_write_and_an_estimate_none(tmp_path):
    pytest.importorskip("datatrove")
    files(tmp_path / "texts", 4)
    done = call(tmp_path, "data/curate.py", "--input=texts")
    assert done.returncode == 2 and "--output_dir is missing" in done.stderr
    done = call(
        tmp_path, "data/curate.py", "--input=texts", "--estimate", "--tokens=1e9", "--config=quick", "--tokenizer=byte"
    )
    assert done.returncode == 2 and "--estimate is of all documents of files" in done.stderr


def test_groups_without_documents_are_no_sample():
    with pytest.raises(UserError, match="0 documents are too few"):
        estimate.check_groups([])
