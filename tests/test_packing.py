"""packing='best_fit': whole documents in windows, each token once, whatever reads them; what padding counts as."""

import itertools
import json
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoints import last_checkpoint, tensors
from conftest import BYTES
from hypothesis import given, settings
from hypothesis import strategies as st

import data.packing
from components.heads.spec import IGNORED
from configurator import load
from data.best_fit import PackedText, best_fit_decreasing
from data.dataset import open_dataset
from data.loader import MixedLoader, PackedLoader, WindowOrder, training_batches
from data.mixture import Mixture, MixtureOrder, read_phases
from data.packing import Cut, lengths_of_documents, packed
from data.writer import DatasetWriter
from flops_parameter_counting.laws.loss_points import read_points
from training.plan import plan_run
from training.validation import WINDOW_SEED

END = 0

# ---------------------------------------------------------------------------------------------------------------------
# What is in a window


def rooms_of_best_fit(lengths: list[int], block_size: int) -> list[int]:
    """The room that each window is left with, piece by piece and window by window, as the paper tells it."""
    pieces = []
    for length in lengths:
        pieces += [block_size] * (length // block_size)
        pieces += [length % block_size] if length % block_size else []
    rooms: list[int] = []
    for piece in sorted(pieces, reverse=True):
        fitting = [room for room in rooms if room >= piece]
        if fitting:
            rooms[rooms.index(min(fitting))] -= piece
        else:
            rooms.append(block_size - piece)
    return sorted(rooms)


few_lengths = st.lists(st.integers(1, 40), min_size=1, max_size=60)
block_sizes = st.integers(1, 32)


@settings(max_examples=400)
@given(lengths=few_lengths, block_size=block_sizes)
def test_windows_are_those_of_best_fit_decreasing_one_piece_after_the_other(lengths, block_size):
    packing = PackedText(np.array(lengths, dtype=np.uint8), block_size)
    rooms = [block_size - sum(packing.pieces(window)[1]) for window in range(packing.n_windows)]
    assert sorted(rooms) == rooms_of_best_fit(lengths, block_size)
    assert packing.padding == pytest.approx(sum(rooms) / (len(rooms) * block_size))


@settings(max_examples=400)
@given(lengths=few_lengths, block_size=block_sizes)
def test_every_token_is_in_one_window_and_no_document_that_fits_is_cut(lengths, block_size):
    packing = PackedText(np.array(lengths, dtype=np.uint8), block_size)
    found = [zip(*packing.pieces(window), strict=True) for window in range(packing.n_windows)]
    pieces = sorted(itertools.chain(*found))
    expected, first = [], 0
    for length in lengths:
        for place in range(0, length, block_size):
            expected.append((first + place, min(block_size, length - place)))
        first += length
    assert pieces == expected


@pytest.mark.parametrize("block_size", [255, 256, 65_535, 65_536, 65_537])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.uint32, np.int64])
def test_lengths_may_have_a_type_that_holds_no_window(dtype, block_size):
    lengths = np.random.default_rng(0).integers(1, min(np.iinfo(dtype).max, 3 * block_size), 200).astype(dtype)
    packing = PackedText(lengths, block_size)
    rooms = sorted(block_size - sum(packing.pieces(window)[1]) for window in range(packing.n_windows))
    assert rooms == rooms_of_best_fit(lengths.tolist(), block_size)


@given(lengths=few_lengths, block_size=block_sizes)
def test_shares_of_documents_of_each_length_by_hand(lengths, block_size):
    packing, counts = PackedText(np.array(lengths), block_size), Counter()
    for window in range(packing.n_windows):
        _, of_window = packing.pieces(window)
        for length in [*of_window, block_size - sum(of_window)]:
            counts[length] += length
    total = packing.n_windows * block_size
    assert packing.document_lengths() == pytest.approx({n: count / total for n, count in counts.items() if n})


def test_what_is_packed_together_never_changes_between_versions():
    # A change of these changes the data that a run sees after it is resumed.
    lengths = np.random.default_rng(0).integers(1, 30, 12)
    assert lengths.tolist() == [25, 19, 15, 8, 9, 2, 3, 1, 6, 24, 19, 27]
    packing = PackedText(lengths, 16)
    assert [packing.pieces(window) for window in range(packing.n_windows)] == [
        ([0], [16]), ([25], [16]), ([88], [16]), ([112], [16]), ([131], [16]), ([59, 104], [8, 8]),
        ([147, 41, 76], [11, 3, 2]), ([16, 78, 128, 81], [9, 3, 3, 1]), ([44], [15]), ([67, 82], [9, 6]),
    ]  # fmt: skip


def test_what_is_decided_does_not_grow_with_the_documents():
    """A hundred thousand million documents of all lengths up to 2,048, by how many there are of each."""
    counts = np.random.default_rng(0).integers(0, 10**8, 2049)
    counts[0] = 0
    groups = best_fit_decreasing(counts, 2048)
    found = np.zeros_like(counts)
    for group in groups:
        assert group.rest == 2048 - sum(length * each for length, each in group.pieces)
        for length, each in group.pieces:
            found[length] += group.windows * each
    assert np.array_equal(found, counts)
    assert len(groups) <= 3 * 2048


# ---------------------------------------------------------------------------------------------------------------------
# Of a dataset


def dataset_of(folder: Path, lengths, val=(3, 5, 40), tokenizer=BYTES):
    """Documents of these lengths, whose ends are their last tokens; what else they say differs from place to place."""
    with DatasetWriter(folder, tokenizer, 50_000, "made for a test") as writer:
        for split, of_split in (("train", lengths), ("val", val)):
            texts = itertools.count(1)
            for length in of_split:
                ids = [next(texts) for _ in range(length - 1)]
                writer.add(split, [*ids, END], text_bytes=length)
    return open_dataset(folder)


def tokens_of(dataset, split: str = "train") -> np.ndarray:
    return np.concatenate([np.fromfile(shard.path, dataset.dtype) for shard in dataset.splits[split].shards])


def rows_of(loader, epoch: int = 0):
    """(tokens, targets, documents) of an epoch's samples, as lists."""
    batch = loader.batch(epoch * loader.n_windows, loader.n_windows)
    assert batch.n_targets == int((batch.targets != IGNORED).sum())
    return list(zip(batch.tokens.tolist(), batch.targets.tolist(), batch.documents.tolist(), strict=True))


@settings(max_examples=60)
@given(lengths=st.lists(st.integers(1, 40), min_size=2, max_size=30), block_size=block_sizes, seed=st.integers(0, 9))
def test_an_epoch_has_every_token_once_with_the_one_that_follows_it(lengths, block_size, seed):
    """As (document's token, its target) pairs by their places; a document that fits is one run of one number."""
    block_size = min(block_size, sum(lengths) - 1)
    with tempfile.TemporaryDirectory() as folder:
        dataset = dataset_of(Path(folder), lengths)
        text = tokens_of(dataset).tolist()
        loader = PackedLoader(dataset, "train", Cut(block_size, "best_fit"), seed)
        epochs = [rows_of(loader, epoch) for epoch in (0, 1)]
    following = [*text[1:], IGNORED]
    ends = np.cumsum(lengths).tolist()
    documents = [tuple(zip(text[a:b], following[a:b], strict=True)) for a, b in zip([0, *ends], ends, strict=False)]
    expected = Counter(
        pairs[first : first + block_size] for pairs in documents for first in range(0, len(pairs), block_size)
    )
    for rows in epochs:
        found = Counter()
        for tokens, targets, numbers in rows:
            assert numbers == sorted(numbers) and set(numbers) == set(range(numbers[-1] + 1))
            for _, group in itertools.groupby(range(block_size), key=lambda place: numbers[place]):
                places = list(group)
                found[tuple((tokens[place], targets[place]) for place in places)] += 1
        assert not expected - found
        assert all(set(pairs) == {(END, IGNORED)} for pairs in found - expected), "padding"
        places = sum(len(pairs) * count for pairs, count in found.items())
        assert places == len(rows) * block_size


def test_shards_are_read_as_one_text(tmp_path):
    """Pieces lie across the files."""
    lengths, folder = [7, 30, 2, 1, 9, 17, 40, 5], tmp_path / "many"
    one, _ = dataset_of(tmp_path / "one", lengths), dataset_of(folder, lengths)
    meta = json.loads((folder / "meta.json").read_text())
    splits, shards = meta["splits"], []
    for number, part in enumerate(np.split(tokens_of(one), [3, 20, 21, 60])):
        shards.append({"file": f"train-{number:05}.bin", "tokens": len(part), "checksum": "not looked at"})
        (folder / shards[-1]["file"]).write_bytes(part.tobytes())
    splits["train"]["shards"], splits["val"]["shards"] = shards, [dict(splits["val"])]
    (folder / "meta.json").write_text(json.dumps(meta | {"format": 2}))
    several = open_dataset(tmp_path / "many", verify=False)
    loaders = [PackedLoader(found, "train", Cut(16, "best_fit"), 0) for found in (one, several)]
    assert rows_of(loaders[0]) == rows_of(loaders[1])


def test_lengths_are_looked_for_once(tmp_path, monkeypatch):
    dataset = dataset_of(tmp_path, [5, 1, 300, 2])
    split, note = dataset.splits["train"], tmp_path / ".documents-train.npz"
    assert lengths_of_documents(split, dataset.dtype, END).tolist() == [5, 1, 300, 2]
    looks = []
    monkeypatch.setattr(data.packing, "_look_for_ends", lambda *given: looks.append(given) or np.array([308]))
    assert lengths_of_documents(split, dataset.dtype, END).tolist() == [5, 1, 300, 2] and not looks
    content = note.read_bytes()
    at = content.index(bytes([5, 0, 1, 0, 44, 1, 2, 0]))  # the lengths: with 2 and 4 for 5 and 1 their sum is the same
    for damaged in (content[:-30], b"", content[: at - 60], content[:at] + bytes([2, 0, 4]) + content[at + 3 :]):
        note.write_bytes(damaged)
        assert lengths_of_documents(split, dataset.dtype, END).tolist() == [308]
    assert len(looks) == 4
    note.write_bytes(content)
    assert lengths_of_documents(split, dataset.dtype, 7).tolist() == [308], "other ends"
    assert not list(tmp_path.glob("*.partial"))


def test_a_folder_that_cannot_be_written_is_looked_through_every_time(tmp_path, monkeypatch):
    dataset = dataset_of(tmp_path, [5, 1, 300, 2])
    (tmp_path / ".documents-train.npz").mkdir()
    for _ in range(2):
        assert lengths_of_documents(dataset.splits["train"], dataset.dtype, END).tolist() == [5, 1, 300, 2]


@pytest.mark.parametrize("at_once", [1, 2, 3, 1000])
def test_ends_are_found_wherever_the_file_is_divided_and_what_follows_the_last_is_a_document(
    tmp_path, monkeypatch, at_once
):
    plain = BYTES | {"end_of_document": None}
    with DatasetWriter(tmp_path, plain, 256, "made for a test") as writer:
        writer.add("train", [0, 5, 0, 0, 6, 7], text_bytes=6)
        writer.add("val", [1, 1], text_bytes=2)
    dataset = open_dataset(tmp_path)
    monkeypatch.setattr(data.packing, "READ_BYTES", at_once * dataset.dtype.itemsize)
    assert lengths_of_documents(dataset.splits["train"], dataset.dtype, END).tolist() == [1, 2, 1, 2]


def test_ranks_that_divide_sequences_have_all_documents_and_count_their_own_targets(tmp_path):
    dataset = dataset_of(tmp_path, [7, 30, 2, 1, 9, 17, 40, 5])
    whole = PackedLoader(dataset, "train", Cut(16, "best_fit"), 0).batch(0, 5)
    parts = [PackedLoader(dataset, "train", Cut(16, "best_fit"), 0, slice(a, a + 8)).batch(0, 5) for a in (0, 8)]
    assert torch.equal(torch.cat([part.targets for part in parts], 1), whole.targets)
    assert all(torch.equal(part.documents, whole.documents) for part in parts)
    assert sum(part.n_targets for part in parts) == whole.n_targets
    assert [part.n_targets for part in parts] == [int((part.targets != IGNORED).sum()) for part in parts]


def test_each_source_of_a_mixture_is_packed_by_itself(tmp_path):
    sources = {name: dataset_of(tmp_path / name, lengths) for name, lengths in (("a", [7, 30, 2] * 5), ("b", [3] * 40))}
    phases = read_phases({"a": 0.7, "b": 0.3})
    mixed = training_batches(Mixture(sources, phases), Cut(16, "best_fit"), 5, True, slice(None))
    assert isinstance(mixed, MixedLoader)
    order, loaders = (
        MixtureOrder(phases, 16, 5),
        {name: PackedLoader(one, "train", Cut(16, "best_fit"), 5) for name, one in sources.items()},
    )
    batch, targets = mixed.batch(30, 20), 0
    for row in range(20):
        name, sample = order.locate(30 + row)
        one = loaders[name].batch(sample, 1)
        assert torch.equal(batch.tokens[row], one.tokens[0]) and torch.equal(batch.documents[row], one.documents[0])
        targets += one.n_targets
    assert batch.n_targets == targets


# ---------------------------------------------------------------------------------------------------------------------
# A run

PACKED = ["--packing=best_fit", "--mask_documents=True"]


def records(run: Path, kind: str) -> list[dict]:
    lines = map(json.loads, (run / "log.jsonl").read_text().splitlines())
    return [record for record in lines if record["type"] == kind]


def paddings(folder: Path) -> dict[str, float]:
    """Of each split at 32 tokens, counted in the batches of an epoch."""
    dataset, found = open_dataset(folder), {}
    for split in ("train", "val"):
        loader = PackedLoader(dataset, split, Cut(32, "best_fit"), 0)
        text = dataset.splits[split].tokens
        assert loader.batch(0, loader.n_windows).n_targets == text - 1, "all but the last token have one"
        found[split] = 1 - text / (loader.n_windows * 32)
    return found


def test_a_run_says_what_is_padding(train, tmp_path, data_dir):
    expected = paddings(data_dir / "short")
    planned = train(*PACKED, "--dataset=short", "--dry_run")
    done = train(*PACKED, "--dataset=short")
    assert done.returncode == 0, done.stderr
    (start,), steps = records(tmp_path / "run", "run"), records(tmp_path / "run", "iter")
    assert start["padding"] == pytest.approx(expected) and 0 < expected["train"] < 0.5
    for split, share in expected.items():
        for said in (planned.stdout, done.stdout):
            assert f"{share:.3%} of {split} (" in said
            assert f"some {96 * 32 * (1 - expected['train']):,.0f} tokens of the run are text" in " ".join(said.split())
    loader = PackedLoader(open_dataset(data_dir / "short"), "train", Cut(32, "best_fit"), 1337)
    for record in steps:
        assert record["targets"] == loader.batch(8 * (record["step"] - 1), 8).n_targets < 8 * 32
        assert record["tokens"] == 8 * 32 * record["step"]
    lengths = packed(open_dataset(data_dir / "short"), "train", Cut(32, "best_fit")).document_lengths()
    assert start["document_length"] == pytest.approx(sum(n * share for n, share in lengths.items()))
    windows = train("--dataset=short", "--out_dir=windows")
    assert "Packing" not in windows.stdout and "targets" not in records(tmp_path / "windows", "iter")[0]


def test_flops_are_those_of_the_pairs_of_each_document_and_of_padding(data_dir):
    keys = ["--n_layer=1", "--n_embd=32", "--n_head=2", "--block_size=32", "--vocab_size=256", "--dataset=short"]
    plan = plan_run(load([*keys, *PACKED]), open_dataset(data_dir / "short"))
    loader = PackedLoader(open_dataset(data_dir / "short"), "train", Cut(32, "best_fit"), 0)
    documents = loader.batch(0, loader.n_windows).documents
    pairs = (documents[:, :, None] == documents[:, None]).sum().item() / documents.numel()
    assert plan.flops_by_part["attention_scores"] == pytest.approx(3 * 2 * 2 * 32 * pairs, rel=1e-3)


def test_the_law_meets_tokens_of_text(train, tmp_path, data_dir):
    """In the log as in a fit; FLOPs are of all that is computed."""
    keys = [*PACKED, "--dataset=short", "--scaling_law=besiroglu"]
    assert train(*keys).returncode == 0
    share = 1 - paddings(data_dir / "short")["train"]
    (start,), last = records(tmp_path / "run", "run"), records(tmp_path / "run", "iter")[-1]
    n, d = start["parameters"]["total"], share * last["tokens"]
    assert last["expected_loss"] == pytest.approx(1.8172 + 482.01 / n**0.3478 + 2085.43 / d**0.3658, rel=1e-4)
    assert last["flops"]["full"] == last["tokens"] * start["flops_per_token"]["full"]
    points = read_points([tmp_path / "run"], "total").points
    assert (points.n.item(), points.d.item()) == pytest.approx((n, d))


def test_a_mixture_says_the_padding_of_its_samples(train, tmp_path, data_dir):
    done = train(*PACKED, "--mixture={'tiny': 0.7, 'short': 0.3}")
    assert done.returncode == 0, done.stderr
    counts = MixtureOrder(read_phases({"tiny": 0.7, "short": 0.3}), 32, 1337).counts(96)
    shares = {name: paddings(data_dir / name)["train"] for name in counts}
    expected = sum(count * shares[name] for name, count in counts.items()) / 96
    assert records(tmp_path / "run", "run")[0]["padding"]["train"] == pytest.approx(expected)
    for name in counts:
        windows = packed(open_dataset(data_dir / name), "train", Cut(32, "best_fit")).n_windows
        assert f"{counts[name] / windows:.2f} epochs" in done.stdout


def losses(run: Path) -> list[float]:
    return [record["loss"] for record in records(run, "iter")] + [record["val_loss"] for record in records(run, "eval")]


def test_a_run_that_is_resumed_goes_on_as_if_nothing_had_happened(train, tmp_path):
    keys = [*PACKED, "--dataset=short", "--dropout=0.1"]
    assert train(*keys, "--out_dir=whole").returncode == 0
    assert train(*keys, "--out_dir=halves", "--max_iters=6", "--lr_decay_iters=12").returncode == 0
    assert train(*keys, "--out_dir=halves", "--init_from=resume").returncode == 0
    whole, halves = (tensors(last_checkpoint(tmp_path / name)) for name in ("whole", "halves"))
    assert whole.keys() == halves.keys() and all(torch.equal(whole[name], halves[name]) for name in whole)
    assert losses(tmp_path / "whole")[:12] == losses(tmp_path / "halves")[:12]


def test_validation_on_another_dataset_is_packed_too(train, tmp_path, data_dir):
    assert train(*PACKED, "--dataset=tiny", "--val_dataset=short").returncode == 0
    expected = {name: paddings(data_dir / of)[name] for name, of in (("train", "tiny"), ("val", "short"))}
    assert records(tmp_path / "run", "run")[0]["padding"] == pytest.approx(expected)


def test_the_loss_is_that_of_all_targets_however_the_batch_is_divided(train, tmp_path):
    keys = [*PACKED, "--dataset=short", "--max_iters=3", "--lr_decay_iters=12"]
    assert train(*keys, "--out_dir=one", "--batch_size=8", "--gradient_accumulation_steps=1").returncode == 0
    assert train(*keys, "--out_dir=eight", "--batch_size=1", "--gradient_accumulation_steps=8").returncode == 0
    ways = {"ranks": [], "context": ["--context_parallel=2"], "pipeline": ["--pipeline_parallel=2"]}
    for name, more in ways.items():
        done = train(*keys, *more, f"--out_dir={name}", ranks=2)
        assert done.returncode == 0, done.stderr
    expected = losses(tmp_path / "one")
    assert len(expected) == 5
    for name in ("eight", *ways):
        assert losses(tmp_path / name) == pytest.approx(expected, rel=2e-5), name
        targets = [[one["targets"] for one in records(tmp_path / of, "iter")] for of in (name, "one")]
        assert targets[0] == targets[1]


def test_an_evaluation_of_other_windows_is_another(train, tmp_path):
    assert train("--mask_documents=True", "--dataset=short", "--max_iters=4").returncode == 0
    done = train(*PACKED, "--dataset=short", "--max_iters=8", "--init_from=resume")
    assert done.returncode == 0 and "packing: 'windows' -> 'best_fit'" in done.stdout, done.stderr
    assert "note: other windows are evaluated than before" in done.stdout


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (["--packing=best_fit"], "keeps whole documents apart: add --mask_documents=True"),
        (["--packing=bestfit", "--mask_documents=True"], "packing='bestfit' is none of: windows, best_fit"),
        ([*PACKED, "--dataset=one"], "is one document: take packing='windows', or prepare its documents apart"),
        ([*PACKED, "--dataset=endless"], "has no end of documents"),
        ([*PACKED, "--mixture={'many': 1, 'one': 1}"], "one is one document: take packing='windows'"),
        ([*PACKED, "--dataset=many", "--block_size=1000"], "block_size 1000 needs 1001 tokens, but the train split of"),
    ],
)  # fmt: skip
def test_what_cannot_be_packed_is_one_line(train, tmp_path, keys, message):
    folder = tmp_path / "data"
    dataset_of(folder / "one", [200], [40, 40])
    dataset_of(folder / "many", [20] * 10, [40])
    dataset_of(folder / "endless", [20] * 10, [40], BYTES | {"end_of_document": None})
    for more in ([], ["--dry_run"]):
        done = train("--vocab_size=50000", f"--data_dir={folder}", *keys, *more)
        assert (done.returncode, done.stdout) == (2, ""), done.stdout
        assert message in done.stderr and done.stderr.count("\n") == 1, done.stderr
    assert not (tmp_path / "run").exists()


def test_a_dry_run_without_the_dataset_does_not_know_the_padding(train):
    done = train(*PACKED, "--dataset=openwebtext", "--vocab_size=50257", "--dry_run")
    assert done.returncode == 0 and "padding is not known, the dataset is not prepared" in done.stdout, done.stderr


def test_an_evaluation_of_a_token_that_nothing_follows_has_no_loss(train, tmp_path):
    """The split's last document is its end alone, and alone in its window, which here comes first."""
    whole = next(count for count in range(1, 100) if WindowOrder(count + 1, WINDOW_SEED).window(0) == count)
    dataset = dataset_of(tmp_path / "data" / "ends", [20] * 10, [*[32] * whole, 1])
    assert PackedLoader(dataset, "val", Cut(32, "best_fit"), WINDOW_SEED).batch(0, 1).n_targets == 0
    keys = [*PACKED, "--dataset=ends", f"--data_dir={tmp_path / 'data'}", "--vocab_size=50000", "--eval_iters=1"]
    done = train(*keys, "--eval_batch_size=1", "--max_iters=1")
    assert done.returncode == 0, done.stderr
    assert [record["val_loss"] for record in records(tmp_path / "run", "eval")] == [None, None]
