"""Marks: which tokens count as targets and where documents end, whatever cuts the text into windows."""

import json

import numpy as np
import pytest
from conftest import write_words

from common.errors import UserError
from components.heads.spec import IGNORED
from data.dataset import open_dataset
from data.loader import split_batches, training_batches
from data.mixture import Mixture, read_phases
from data.packing import Cut
from data.writer import DatasetWriter

WITHOUT_END = {"kind": "bytes", "end_of_document": None}
LENGTHS = (5, 12, 1, 16, 9, 3, 16, 2)
T = 16


def documents(lengths=LENGTHS, seed=0):
    """(ids, counts) of each; any id may be anywhere, as no id ends a document."""
    draw = np.random.default_rng(seed)
    found = [(draw.integers(0, 256, length), draw.random(length) < 0.5) for length in lengths]
    for _, counts in found:
        counts[0] = False
    return found


def marked(folder, train=None, val=None):
    with DatasetWriter(folder, WITHOUT_END, 256, "drawn", is_marked=True) as writer:
        for split, given in (("train", train or documents()), ("val", val or documents(seed=1))):
            for ids, counts in given:
                writer.add_marked(split, ids, counts, text_bytes=len(ids), counted_bytes=2 * int(counts.sum()) // 3)
    return open_dataset(folder)


def pairs(given):
    """Of each document the (token, target) pairs within it, sorted: what a model may be taught of it."""
    return sorted(
        (int(ids[place - 1]), int(ids[place])) for ids, counts in given for place in np.flatnonzero(counts).tolist()
    )


@pytest.mark.parametrize("packing", ["best_fit", "single"])
def test_what_counts_is_a_target_once_in_an_epoch_however_documents_are_packed(tmp_path, packing):
    dataset, cut = marked(tmp_path), Cut(T, packing)
    loader = split_batches(dataset, "train", cut, 3, True, slice(None))
    found = []
    for sample in range(loader.n_windows):
        batch = loader.batch(sample, 1)
        is_target = batch.targets != IGNORED
        assert batch.n_targets == is_target.sum()
        found += zip(batch.tokens[is_target].tolist(), batch.targets[is_target].tolist(), strict=True)
    assert sorted(found) == pairs(documents())
    assert sum(batch.n_targets for batch in [loader.batch(0, loader.n_windows)]) == len(found)


def test_a_document_a_window(tmp_path):
    """Alone from the window's beginning on, and what is left of the window is another document without targets."""
    loader = split_batches(marked(tmp_path), "train", Cut(T, "single"), 0, True, slice(None))
    assert loader.n_windows == len(LENGTHS)
    batch, seen = loader.batch(0, len(LENGTHS)), set()
    for tokens, targets, numbers in zip(batch.tokens, batch.targets, batch.documents, strict=True):
        length = int((numbers == 0).sum())
        seen.add(tuple(tokens[:length].tolist()))
        assert (numbers[length:] == 1).all() and (targets[length:] == IGNORED).all()
    assert seen == {tuple(ids.tolist()) for ids, _ in documents()}


def test_windows_of_the_text(tmp_path):
    """Token by token, against the text itself; documents end where they are marked to, and at no id."""
    given = documents()
    ids, counts = (np.concatenate(parts) for parts in zip(*given, strict=True))
    number = np.repeat(np.arange(len(LENGTHS)), LENGTHS)
    loader = split_batches(marked(tmp_path), "train", Cut(T), 3, True, slice(None))
    batch = loader.batch(0, 3)
    for row, window in enumerate(loader.order.window(np.arange(3)).tolist()):
        start = window * T
        expected = np.where(counts, ids, IGNORED)[start + 1 : start + T + 1]
        assert batch.tokens[row].tolist() == ids[start : start + T].tolist()
        assert batch.targets[row].tolist() == expected.tolist()
        assert batch.documents[row].tolist() == (number[start : start + T] - number[start]).tolist()


def test_a_dataset_without_marks_is_written_as_ever(tmp_path):
    write_words(tmp_path, {"train": 4, "val": 2}, length=8)
    meta = json.loads((tmp_path / "meta.json").read_text())
    assert meta["format"] == 1 and list(meta["splits"]["train"]) == ["file", "tokens", "bytes", "documents", "checksum"]
    assert sorted(path.name for path in tmp_path.glob("*.bin")) == ["train.bin", "val.bin"]
    loader = split_batches(open_dataset(tmp_path), "train", Cut(T), 0, False, slice(None))
    assert loader.batch(0, 2).n_targets is None


def test_bits_per_byte_are_of_the_tokens_that_count(tmp_path):
    split = marked(tmp_path).splits["train"]
    count = sum(int(counts.sum()) for _, counts in documents())
    assert split.marks.counted_tokens == count
    assert split.bytes_per_token == sum(2 * int(counts.sum()) // 3 for _, counts in documents()) / count


def test_other_marks_are_other_data(tmp_path):
    """A run that is resumed, and one that is evaluated, sees that they are others."""
    other = [(ids, np.roll(counts, 1) & (np.arange(len(ids)) > 0)) for ids, counts in documents()]
    one, two = marked(tmp_path / "one"), marked(tmp_path / "two", train=other)
    assert one.splits["train"].shards[0].checksum == two.splits["train"].shards[0].checksum
    assert one.identity["data of train"] != two.identity["data of train"]
    assert one.identity["data of val"] == two.identity["data of val"]


def test_a_new_dataset_without_marks_leaves_none_behind(tmp_path):
    marked(tmp_path)
    write_words(tmp_path, {"train": 4, "val": 2}, length=8)
    assert sorted(path.name for path in tmp_path.glob("*.bin")) == ["train.bin", "val.bin"]


def test_beside_text_in_which_everything_counts(tmp_path):
    """A mixture of both says how many targets count in every batch."""
    write_words(tmp_path / "plain", {"train": 40, "val": 8}, length=80)
    sources = {"plain": open_dataset(tmp_path / "plain"), "marked": marked(tmp_path / "marked")}
    mixture = Mixture(sources, read_phases({"plain": 0.5, "marked": 0.5}))
    loader = training_batches(mixture, Cut(T), 0, False, slice(None))
    for first in range(0, 16, 2):
        batch = loader.batch(first, 2)
        assert batch.n_targets == (batch.targets != IGNORED).sum()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: flip(folder / "train.marks.bin"), "train.marks.bin is damaged: its checksum is"),
        (lambda folder: (folder / "val.marks.bin").write_bytes(b"\0"), "has 1 bytes, but meta.json says 64 marks of"),
        (lambda folder: (folder / "val.marks.bin").unlink(), "cannot read"),
        (lambda folder: of_meta(folder, counted_tokens=0), "a count of the train split's marks is impossible"),
        (lambda folder: of_meta(folder, counted_bytes=65), "a count of the train split's marks is impossible"),
    ],
)
def test_marks_that_are_not_as_they_were_are_one_line(tmp_path, damage, message):
    marked(tmp_path)
    damage(tmp_path)
    with pytest.raises(UserError, match=message) as error:
        open_dataset(tmp_path)
    assert "\n" not in str(error.value)


def flip(path):
    content = bytearray(path.read_bytes())
    content[3] ^= 1
    path.write_bytes(content)


def of_meta(folder, **changed):
    meta = json.loads((folder / "meta.json").read_text())
    meta["splits"]["train"]["marks"] |= changed
    (folder / "meta.json").write_text(json.dumps(meta))


def test_a_split_of_which_nothing_counts_is_none(tmp_path):
    nothing = [(ids, np.zeros_like(counts)) for ids, counts in documents()]
    with pytest.raises(UserError, match=r"the train split of .* would be empty"):
        marked(tmp_path, train=nothing)
    assert not (tmp_path / "meta.json").exists()
