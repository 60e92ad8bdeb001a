"""Several datasets as one: whose turn it is, by arithmetic alone; what a run makes of them, and says."""

import collections
import json
import math
from fractions import Fraction

import pytest
from commands import command
from conftest import BYTES, write_words
from hypothesis import given, settings
from hypothesis import strategies as st

import compare_architectures
from data.mixture import PERIOD, MixtureOrder, as_values, in_thousandths, read_phases
from data.writer import DatasetWriter

# DeepSeek's, Llama's and others' lists are like it: web text, The Pile, code, books, Wikipedia, papers, links, answers
EIGHT = {
    "c4": 0.30, "pile": 0.25, "starcoder": 0.15, "books": 0.10,
    "wikipedia": 0.05, "arxiv": 0.05, "openwebtext": 0.05, "stackexchange": 0.05,
}  # fmt: skip
shares = st.dictionaries(st.sampled_from(list("abcdefgh")), st.floats(1, 50), min_size=1)
seeds = st.integers(0, 2**32 - 1)


def names(order: MixtureOrder, samples: range) -> collections.Counter[str]:
    return collections.Counter(order.locate(sample)[0] for sample in samples)


def test_eight_sources_have_their_shares():
    counts = in_thousandths(EIGHT)
    assert counts == {name: round(PERIOD * share) for name, share in EIGHT.items()}
    assert in_thousandths({"a": 1, "b": 1, "c": 1}) == {"a": 334, "b": 333, "c": 333}


@given(shares)
def test_shares_are_rounded_to_thousandths(given):
    counts, total = in_thousandths(given), sum(map(Fraction, given.values()))
    assert sum(counts.values()) == PERIOD
    for name, share in given.items():
        assert abs(counts[name] - PERIOD * Fraction(share) / total) < 1 + 1e-6


@settings(max_examples=25)
@given(shares, seeds, st.integers(0, 1 << 50))
def test_every_window_of_a_thousand_samples_has_exactly_the_shares(given, seed, start):
    phases = read_phases(given)
    order = MixtureOrder(phases, 64, seed)
    assert names(order, range(start, start + PERIOD)) == phases[0].counts


@settings(max_examples=25)
@given(shares, shares, seeds, st.integers(1, 3000), st.integers(1, 2000))
def test_each_source_is_met_in_its_own_order_through_all_phases(first, second, seed, change, more):
    block_size = 8
    phases = read_phases([first, {"from_tokens": change * block_size - 3, **second}])
    order, met = MixtureOrder(phases, block_size, seed), collections.Counter()
    for sample in range(change + more):
        name, index = order.locate(sample)
        assert name in (first if sample < change else second)
        assert index == met[name]
        met[name] += 1
    assert {name: count for name, count in order.counts(change + more).items() if count} == met


@settings(max_examples=25)
@given(shares, seeds, st.integers(0, 999), st.integers(1, 999))
def test_a_source_lies_evenly(given, seed, start, length):
    """In a window of any length each has its share, but for one sample at each end, and one for its drawn place."""
    phases = read_phases(given)
    found = names(MixtureOrder(phases, 64, seed), range(start, start + length))
    for name, count in phases[0].counts.items():
        assert abs(found[name] - length * count / PERIOD) <= 1 + len(given)


def test_the_order_depends_on_the_seed():
    one, other = (MixtureOrder(read_phases(EIGHT), 64, seed) for seed in (1, 2))
    samples = range(200)
    assert [one.locate(n) for n in samples] == [MixtureOrder(read_phases(EIGHT), 64, 1).locate(n) for n in samples]
    assert [one.locate(n) for n in samples] != [other.locate(n) for n in samples]


def test_what_a_run_keeps_is_read_as_the_same():
    phases = read_phases([EIGHT, {"from_tokens": 10**9, "books": 2, "code": 1}])
    assert read_phases(json.loads(json.dumps(as_values(phases)))) == phases
    assert read_phases(repr(as_values(phases))) == phases


# Runs


MIXED = "--mixture={'tiny': 0.7, 'short': 0.3}"


def records(folder, kind):
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [line for line in lines if line["type"] == kind]


def test_a_run_says_the_loss_and_the_epochs_of_each_source(train, tmp_path, data_dir):
    done = train(MIXED, "--eval_iters=10", "--eval_batch_size=4")
    assert done.returncode == 0, done.stderr
    last = records(tmp_path / "run", "eval")[-1]
    sources = last["sources"]
    assert last["val_loss"] == pytest.approx(0.7 * sources["tiny"]["val_loss"] + 0.3 * sources["short"]["val_loss"])
    bytes_per_token = {}
    for name, windows in (("tiny", 7), ("short", 3)):
        meta = json.loads((data_dir / name / "meta.json").read_text())
        of_split = meta["splits"]["val"]
        bytes_per_token[name] = of_split["bytes"] / of_split["tokens"]
        of_source = sources[name]["val_loss"] / math.log(2) / bytes_per_token[name]
        assert sources[name]["val_bits_per_byte"] == pytest.approx(of_source)
        samples = 12 * 2 * 4  # steps of two micro-batches of four, so many of each source
        order = MixtureOrder(read_phases({"tiny": 0.7, "short": 0.3}), 32, 1337)
        n_windows = (meta["splits"]["train"]["tokens"] - 1) // 32
        assert f"{order.counts(samples)[name] / n_windows:.2f} epochs" in done.stdout
        alone = train(  # the same model on the windows of one source
            f"--init_from={tmp_path / 'run'}", f"--dataset={name}", "--eval_only=True", f"--eval_iters={windows}",
            "--eval_batch_size=4", f"--out_dir={tmp_path / name}", "--mixture=None", "--n_layer=2",
        )  # fmt: skip
        assert f"validation loss {sources[name]['val_loss']:.4f}" in alone.stdout, alone.stderr
    mean = 0.7 * bytes_per_token["tiny"] + 0.3 * bytes_per_token["short"]
    assert last["val_bits_per_byte"] == pytest.approx(last["val_loss"] / math.log(2) / mean)


def test_a_mixture_is_resumed_without_the_file_that_said_it(train, tmp_path):
    file = tmp_path / "mixture.toml"
    file.write_text("[[phase]]\ntiny = 3\nshort = 1\n[[phase]]\nfrom_tokens = 1_000\nshort = 1\n")
    assert train(f"--mixture={file}", "--out_dir=whole").returncode == 0
    assert train(f"--mixture={file}", "--out_dir=halves", "--max_iters=6", "--lr_decay_iters=12").returncode == 0
    file.unlink()
    done = train("halves/config.py", "--init_from=resume", "--out_dir=halves")
    assert done.returncode == 0, done.stderr
    whole, halves = (records(tmp_path / name, "iter")[-1] for name in ("whole", "halves"))
    assert (whole["loss"], whole["step"]) == (halves["loss"], halves["step"])
    assert records(tmp_path / "whole", "eval")[-1]["sources"].keys() == {"short"}, "what the last phase has"


def test_a_source_that_is_met_often_is_said(train):
    assert "note: short is met" in train("--mixture={'short': 9, 'tiny': 1}", "--dry_run", "--max_iters=100").stdout


@pytest.mark.parametrize(
    ("mixture", "message"),
    [
        ("{'tiny': -1}", "the share of 'tiny' is -1: give a number above 0, or leave it out"),
        ("{'tiny': 0, 'short': 1}", "the share of 'tiny' is 0: give a number above 0"),
        ("{'tiny': 'much'}", "the share of 'tiny' is 'much'"),
        ("{'tiny': 1e-5, 'short': 1}", "the share of 'tiny' is less than one of 1,000 samples: leave it out"),
        ("{}", "mixture: a phase names no dataset"),
        ("[]", "give shares by the names of datasets"),
        ("{'tiny': 1", "is no Python literal"),
        ("[{'tiny': 1}, {'short': 1}]", "from_tokens=None must be a number of tokens in every phase but the first"),
        (
            "[{'tiny': 1}, {'from_tokens': 9, 'short': 1}, {'from_tokens': 9, 'tiny': 1}]",
            "is not after the phase before",
        ),
        ("{'from_tokens': 5, 'tiny': 1}", "from_tokens=5 must be 0, or absent, in the first phase"),
        ("{'tiny': 1, 'tinny': 1}", "there is no dataset folder"),
        ("{'tiny': 1, 'other': 1}", "mixture: tiny and other have different tokenizers: prepare them with one"),
        ("{'tiny': 1, 'scrap': 1}", "block_size 32 needs 33 tokens, but the train split of"),
        ("nowhere.toml", "cannot read nowhere.toml: No such file or directory"),
    ],
)
def test_what_is_no_mixture_is_one_line(train, tmp_path, data_dir, mixture, message):
    folder = tmp_path / "data"
    write_words(folder / "tiny", {"train": 4, "val": 4}, length=80)
    write_words(folder / "short", {"train": 40, "val": 40}, length=2)
    for name, tokenizer, length in (("other", {**BYTES, "end_of_document": 1}, 80), ("scrap", BYTES, 20)):
        with DatasetWriter(folder / name, tokenizer, 256, "generated") as writer:
            for split in ("train", "val"):
                writer.add(split, [65] * length + [tokenizer["end_of_document"]], length)
    done = train(f"--data_dir={folder}", f"--mixture={mixture}")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1 and message in done.stderr, done.stderr
    assert not (tmp_path / "run").exists()


# Validation on another dataset


@pytest.mark.parametrize("data", ["--dataset=tiny", MIXED], ids=["a dataset", "a mixture"])
def test_a_run_is_validated_on_the_text_of_another_dataset(train, tmp_path, data_dir, data):
    done = train(data, "--val_dataset=short")
    assert done.returncode == 0, done.stderr
    alone = train(
        f"--init_from={tmp_path / 'run'}", "--dataset=short", "--eval_only=True", f"--out_dir={tmp_path / 'alone'}",
        "--mixture=None", "--val_dataset=None",
    )  # fmt: skip
    last = records(tmp_path / "run", "eval")[-1]
    assert f"validation loss {last['val_loss']:.4f}" in alone.stdout, alone.stderr
    of_split = json.loads((data_dir / "short/meta.json").read_text())["splits"]["val"]
    bits = last["val_loss"] / math.log(2) * of_split["tokens"] / of_split["bytes"]
    assert last["val_bits_per_byte"] == pytest.approx(bits) and "sources" not in last
    assert records(tmp_path / "run", "run")[0]["dataset"]["splits"]["val"]["checksum"] == of_split["checksum"]


def test_runs_on_several_datasets_compare_on_common_text(train, tmp_path):
    """As they do not where each has its own."""
    for name in ("tiny", "short"):
        for common in ([], ["--val_dataset=short"]):
            assert train(f"--dataset={name}", *common, f"--out_dir={name}{len(common)}").returncode == 0
    common, own = (
        command(compare_architectures.main, str(tmp_path / f"tiny{which}"), str(tmp_path / f"short{which}"))
        for which in (1, 0)
    )
    assert common.returncode == 0 and "nats below" in common.stdout, common.stderr
    assert own.returncode == 2 and "were validated on different data" in own.stderr


def test_validation_text_of_another_tokenizer_is_one_line(train, tmp_path, data_dir):
    folder = tmp_path / "data"
    write_words(folder / "tiny", {"train": 4, "val": 4}, length=80)
    with DatasetWriter(folder / "other", {**BYTES, "end_of_document": 1}, 256, "generated") as writer:
        for split in ("train", "val"):
            writer.add(split, [65] * 80 + [1], 80)
    done = train(f"--data_dir={folder}", "--val_dataset=other")
    assert done.returncode == 2 and "val_dataset: tiny and other have different tokenizers" in done.stderr
