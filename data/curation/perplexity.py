"""How unlike good examples a text is: its perplexity under a model of seven bytes in a row, with interpolated
Kneser-Ney smoothing (Chen and Goodman 1998, An Empirical Study of Smoothing Techniques for Language Modeling, section
2.7).

CCNet ranks documents so (Wenzek et al. 2020, section 3.4), with five pieces of words in a row by KenLM, which has no
wheels and trains with a program of its own. Bytes need no vocabulary: no word is unknown, and a misspelt one is not
what a rare one is. The bytes of a row together are one number of 63 bits, and a model is sorted arrays of these.
"""

import dataclasses
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

ORDER = 7
BITS = 9  # of each in a row
BEGIN, END = 256, 257  # what is before a text and after it
CAN_FOLLOW = 257  # every byte, and the end
READ = 10_000  # characters of a text: the score of a book is that of its beginning

Numbers = np.ndarray


@dataclasses.dataclass(frozen=True)
class Rows:
    """The rows of so many bytes that the examples have, ascending (rows,), with the count of each, and the discount of
    these counts; and the rows without their last byte (contexts,), with the sum of the counts of each and how many rows
    it begins."""

    rows: Numbers
    counts: Numbers
    contexts: Numbers
    totals: Numbers
    followers: Numbers
    discount: float

    @classmethod
    def of(cls, rows: Numbers, counts: Numbers) -> "Rows":
        contexts, start = np.unique(rows >> BITS, return_index=True)
        totals, followers = np.add.reduceat(counts, start), np.diff([*start, len(rows)])
        once, twice = (int((counts == count).sum()) + 1 for count in (1, 2))  # one more of each: never 0, nor 1
        return cls(rows, counts, contexts, totals, followers, once / (once + 2 * twice))

    def probability(self, rows: Numbers, lower: Numbers) -> Numbers:
        """Of the last byte of each row (asked,) after the others; `lower`: the same after one byte less."""
        counts = _look_up(self.rows, self.counts, rows)
        totals, followers = (_look_up(self.contexts, of, rows >> BITS) for of in (self.totals, self.followers))
        mixed = np.maximum(counts - self.discount, 0) + self.discount * followers * lower
        return np.where(totals > 0, mixed / np.maximum(totals, 1), lower)


@dataclasses.dataclass(frozen=True)
class ByteModel:
    """What is known of rows of 1 to ORDER bytes, and the AUC on examples that were not among those that it is of: as of
    a classifier, NaN where there were no bad ones."""

    rows: tuple[Rows, ...]
    auc: float = math.nan

    def score(self, text: str) -> float:
        """The mean logarithm of the probability of a byte: minus that of the perplexity."""
        return float(np.log(self.probabilities(text)).mean())

    def probabilities(self, text: str) -> Numbers:
        """Of each byte of a text and of its end (bytes + 1,), after those before it."""
        rows = _rows_of(text)
        found = np.full(len(rows), 1 / CAN_FOLLOW)
        for length, of in enumerate(self.rows, start=1):
            found = of.probability(_last(rows, length), found)
        return found

    def save(self, path: Path) -> None:
        arrays: dict[str, Any] = {"auc": self.auc}
        for place, of in enumerate(self.rows):
            arrays |= {f"{field.name}{place}": getattr(of, field.name) for field in dataclasses.fields(Rows)}
        with path.open("wb") as file:
            np.savez(file, **arrays)

    @classmethod
    def load(cls, path: Path) -> "ByteModel":
        names = [field.name for field in dataclasses.fields(Rows)]
        with np.load(path) as saved:
            rows = [Rows(*(saved[f"{name}{place}"] for name in names)) for place in range(ORDER)]
            return cls(tuple(rows), float(saved["auc"]))


def train_bytes(texts: Iterable[str]) -> ByteModel:
    """Of good examples. Takes 8 bytes of memory for each of theirs, and some times that while they are counted."""
    rows, counts = np.unique(np.concatenate([_rows_of(text) for text in texts]), return_counts=True)
    found = [Rows.of(rows, counts)]
    for length in range(ORDER - 1, 0, -1):  # of a shorter row, after how many bytes it occurs, and not how often
        rows, counts = np.unique(_last(rows, length), return_counts=True)
        found.append(Rows.of(rows, counts))
    return ByteModel(tuple(reversed(found)))


def _rows_of(text: str) -> Numbers:
    """The rows of ORDER that end with each byte of a text, and with its end (bytes + 1,)."""
    own = np.frombuffer(text[:READ].encode(), np.uint8).astype(np.int64)
    padded = np.concatenate([np.full(ORDER - 1, BEGIN), own, [END]])
    rows = np.zeros(len(own) + 1, np.int64)
    for place in range(ORDER):
        rows = rows << BITS | padded[place : place + len(rows)]
    return rows


def _last(rows: Numbers, length: int) -> Numbers:
    return rows & ((1 << BITS * length) - 1)


def _look_up(known: Numbers, values: Numbers, asked: Numbers) -> Numbers:
    """The values of what is known, ascending, and 0 of what is not."""
    place = np.minimum(np.searchsorted(known, asked), len(known) - 1)
    return np.where(known[place] == asked, values[place], 0)
