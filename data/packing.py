"""How a run's samples are cut out of its data: by the keys block_size and packing. No torch.

`windows` follow one another in a split's text and begin anywhere in a document. `best_fit` packs whole documents into
windows (data/best_fit.py), `single` gives each one of its own, as `pairs` does, where every two of them are shown
together, and `prompts`, where each is shown as often as it is to be completed. Of these the lengths are needed, for
which every token is looked at: they are kept beside the dataset, in .documents-train.npz and .documents-val.npz. Where
these cannot be written, every call looks.
"""

import contextlib
import dataclasses
import functools
import sys
import zipfile
from collections.abc import Callable

import numpy as np

from common.errors import UserError
from common.files import written_aside
from data.best_fit import InOrder, PackedText, one_each
from data.dataset import READ_BYTES, SLOW_FILE_BYTES, Dataset, Split, SplitReader

PLACED: dict[str, Callable[..., PackedText | InOrder]] = {
    "best_fit": PackedText,
    "single": functools.partial(PackedText, place=one_each),
    "pairs": InOrder,
    "prompts": InOrder,
}


@dataclasses.dataclass(frozen=True)
class Cut:
    """How samples of `block_size` tokens are made of a split: as the key `packing` says, and of prompts for a
    `group_size` of completions of each."""

    block_size: int
    packing: str = "windows"
    group_size: int = 1

    @property
    def together(self) -> int:
        """How many samples after one another belong together, and are windows after one another."""
        return 2 if self.packing == "pairs" else self.group_size

    @property
    def is_written_later(self) -> bool:
        """Whether samples are begun by the data and ended by the model: then nobody knows yet how long they are."""
        return self.packing == "prompts"

    @property
    def follow_one_another(self) -> bool:
        """Whether windows do, whatever the documents are."""
        return self.packing not in PLACED

    def n_windows(self, dataset: Dataset, split: str) -> int:
        """How many samples an epoch has. Raises UserError, as the others do, where documents cannot be packed."""
        if self.follow_one_another:
            return dataset.splits[split].n_windows(self.block_size)
        return packed(dataset, split, self).n_windows

    def padding(self, dataset: Dataset, split: str) -> float:
        """The share of the samples' tokens that are none of the text's; 0 where that is not known."""
        return 0.0 if self.follow_one_another or self.is_written_later else packed(dataset, split, self).padding

    def document_lengths(self, dataset: Dataset, split: str) -> dict[int, float]:
        """Which share of the samples' tokens is in documents, or pieces of these, of which length, padding among them:
        it is masked as a document of its own. What is written later counts as whole windows."""
        if self.is_written_later:
            return {self.block_size: 1.0}
        if self.follow_one_another:
            return dataset.document_lengths(split, self.block_size)
        return packed(dataset, split, self).document_lengths()


def packed(dataset: Dataset, split: str, cut: Cut) -> PackedText | InOrder:
    """The windows of a split whose documents are packed, worked out once a process. Raises UserError for a dataset that
    marks no ends of documents, and for training text that is one document."""
    dataset.check_documents()
    marks = dataset.splits[split].marks
    if cut.packing == "pairs" and not (marks and marks.of_pairs):
        raise UserError(f"packing='pairs': the documents of {dataset.folder} are no pairs: finetune.py makes some")
    if (cut.packing == "prompts") != bool(marks and marks.of_prompts):
        are = "are prompts, of which nothing is learned" if cut.packing != "prompts" else "are no prompts"
        raise UserError(f"packing={cut.packing!r}: the documents of {dataset.folder} {are}: finetune.py makes others")
    found = _packed(dataset.splits[split], dataset.dtype, dataset.tokenizer["end_of_document"], cut)
    if split == "train" and found.documents == 1 and marks is None:
        raise UserError(
            f"packing={cut.packing!r}: the train split of {dataset.folder} is one document: take packing='windows', or "
            "prepare its documents apart"
        )
    return found


@functools.cache
def _packed(split: Split, dtype: np.dtype, end_of_document: int | None, cut: Cut) -> PackedText | InOrder:
    times = {"times": cut.group_size} if cut.packing == "prompts" else {}
    return PLACED[cut.packing](lengths_of_documents(split, dtype, end_of_document), cut.block_size, **times)


def lengths_of_documents(split: Split, dtype: np.dtype, end_of_document: int | None) -> np.ndarray:
    """(documents,) tokens of each, its end included, in the smallest unsigned type. What follows the last end is a
    document too. Raises UnusableData."""
    note = split.shards[0].path.with_name(f".documents-{split.name}.npz")
    key = f"{split.checksum} {end_of_document}"
    with contextlib.suppress(OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile), np.load(note) as known:
        if known["key"] == key and known["lengths"].sum(dtype=np.int64) == split.tokens:
            return known["lengths"]
    lengths = _look_for_ends(split, dtype, end_of_document)
    with contextlib.suppress(OSError), written_aside(note) as path, path.open("wb") as file:
        np.savez(file, key=np.array(key), lengths=lengths)
    return lengths


def _look_for_ends(split: Split, dtype: np.dtype, end_of_document: int | None) -> np.ndarray:
    if split.tokens * dtype.itemsize >= SLOW_FILE_BYTES:
        print(f"looking for the documents of {split.shards[0].path} (once) ...", file=sys.stderr)
    reader, at_once = SplitReader(split, dtype, end_of_document), READ_BYTES // dtype.itemsize
    ends = [
        first + 1 + np.flatnonzero(reader.ends(*reader.read(first, min(at_once, split.tokens - first))))
        for first in range(0, split.tokens, at_once)
    ]
    if not (ends[-1].size and ends[-1][-1] == split.tokens):
        ends.append(np.array([split.tokens]))
    lengths = np.diff(np.concatenate(ends), prepend=0)
    return lengths.astype(np.min_scalar_type(lengths.max()))
