"""Whole documents in windows of equal length, by best-fit decreasing, or each in one of its own.

A document that is longer than a window is cut into pieces as long as one, and a rest; every other is one piece. Pieces
are placed the longest first, each in the window with the least room that it fits into, or in a new one (Ding et al.
2024, "Fewer Truncations Improve Language Modeling", arXiv 2404.10830).

Windows that hold pieces of the same lengths are one Group here, however many they are, so that what is decided depends
on the number of lengths and not on that of the documents. Where a piece of L tokens is placed k = floor(rest / L) times
into a window, what is left of it is less than half of the rest: a group changes at most log2(block_size) times, and
each length leaves at most three groups more. Hence O(block_size log block_size) decisions.
"""

import dataclasses
import math
from bisect import bisect_left, insort
from collections import defaultdict
from collections.abc import Callable

import numpy as np


@dataclasses.dataclass(frozen=True)
class Group:
    """So many windows, each with `rest` tokens of room left and `pieces` of (length, how many), the longest first."""

    windows: int
    rest: int
    pieces: tuple[tuple[int, int], ...] = ()


class _Room:
    """Groups by the room that is left in each of their windows."""

    def __init__(self) -> None:
        self._rests: list[int] = []  # of which there are groups, in order
        self._groups: dict[int, list[Group]] = defaultdict(list)

    def put(self, group: Group) -> None:
        if not self._groups[group.rest]:
            insort(self._rests, group.rest)
        self._groups[group.rest].append(group)

    def take(self, length: int) -> Group | None:
        """One with the least room of at least `length`; None if there is none."""
        place = bisect_left(self._rests, length)
        if place == len(self._rests):
            return None
        groups = self._groups[self._rests[place]]
        group = groups.pop()
        if not groups:
            del self._rests[place]
        return group

    def all(self) -> list[Group]:
        return [group for rest in self._rests for group in self._groups[rest]]


def best_fit_decreasing(counts: np.ndarray, block_size: int) -> list[Group]:
    """The windows of `counts` (block_size + 1,) pieces of each length, those with the least room first."""
    room = _Room()
    for length in np.flatnonzero(counts)[::-1].tolist():
        left = int(counts[length])
        while left:
            group = room.take(length) or Group(math.ceil(left / (block_size // length)), block_size)
            # Once a piece is in a window, that is the one with the least room for the next.
            each = min(left, group.rest // length)
            filled = min(group.windows, left // each)
            room.put(Group(filled, group.rest - each * length, (*group.pieces, (length, each))))
            if filled < group.windows:
                room.put(dataclasses.replace(group, windows=group.windows - filled))
            left -= filled * each
    return room.all()


def one_each(counts: np.ndarray, block_size: int) -> list[Group]:
    """As best_fit_decreasing, where each piece has a window of its own."""
    lengths = np.flatnonzero(counts)[::-1].tolist()
    return [Group(int(counts[length]), block_size - length, ((length, 1),)) for length in lengths]


class PackedText:
    """The windows of a text, of `lengths` (documents,) tokens one after the other: which pieces of it each has, as
    `place` puts them.

    Among pieces of one length, those that come first in the text are in the windows that come first. It keeps 8 bytes a
    document, and reads as many pieces of any window as it has.
    """

    def __init__(
        self,
        lengths: np.ndarray,
        block_size: int,
        place: Callable[[np.ndarray, int], list[Group]] = best_fit_decreasing,
    ):
        # Lengths come in the smallest type that holds them, which may not hold block_size.
        lengths = lengths.astype(np.promote_types(lengths.dtype, np.min_scalar_type(block_size)), copy=False)
        self.block_size = block_size
        self.documents = len(lengths)
        self.tokens = int(lengths.sum(dtype=np.int64))
        ends = np.cumsum(lengths, dtype=np.int64)
        long = np.flatnonzero(lengths >= block_size)
        self._long_starts = ends[long] - lengths[long]
        whole = np.cumsum(
            lengths[long] // block_size, dtype=np.int64
        )  # pieces as long as a window, up to each of these
        self._whole_before = np.concatenate(([0], whole))
        # Sorting 16 bits is counting them.
        rests = (lengths % block_size).astype(np.uint16 if block_size <= 1 << 16 else np.uint32)
        counts = np.bincount(rests, minlength=block_size + 1)
        starts = np.subtract(ends, rests, out=ends)
        self._starts = starts[np.argsort(rests, kind="stable")]  # of rests and of whole documents, by their length
        self._first = np.concatenate(([0], np.cumsum(counts)))  # among these, of each length
        counts[0], counts[block_size] = 0, self._whole_before[-1]
        self._groups = place(counts, block_size)
        self._group_ends = np.cumsum([group.windows for group in self._groups])
        self._used = _used_before(self._groups)
        self.n_windows = int(self._group_ends[-1]) if self._groups else 0

    @property
    def padding(self) -> float:
        """The share of all windows' places that no token of the text has."""
        return 1 - self.tokens / (self.n_windows * self.block_size)

    def pieces(self, window: int) -> tuple[list[int], list[int]]:
        """Of each piece in a window the first token's place in the text, and the length."""
        number = int(np.searchsorted(self._group_ends, window, side="right"))
        group, place = self._groups[number], window - int(self._group_ends[number])  # from the group's end, below 0
        starts: list[int] = []
        lengths: list[int] = []
        for (length, each), used in zip(group.pieces, self._used[number], strict=True):
            starts += self._places(length, used + (group.windows + place) * each, each)
            lengths += [length] * each
        return starts, lengths

    def _places(self, length: int, first: int, count: int) -> list[int]:
        """Where pieces of a length begin, from the `first` of them on."""
        if length < self.block_size:
            first += int(self._first[length])
            return self._starts[first : first + count].tolist()
        document = int(np.searchsorted(self._whole_before, first, side="right")) - 1
        return [int(self._long_starts[document]) + (first - int(self._whole_before[document])) * length]

    def document_lengths(self) -> dict[int, float]:
        """Which share of the windows' places is in pieces of which length, what is left of a window being one too."""
        places: dict[int, int] = defaultdict(int)
        for group in self._groups:
            for length, each in group.pieces:
                places[length] += group.windows * each * length
            if group.rest:
                places[group.rest] += group.windows * group.rest
        total = self.n_windows * self.block_size
        return {length: places[length] / total for length in sorted(places)}


class InOrder:
    """The windows of a text of `lengths` (documents,) tokens, of which each document has as many as it is shown
    `times`, in their order: window i is document i // times. It has what PackedText has."""

    def __init__(self, lengths: np.ndarray, block_size: int, times: int = 1):
        if lengths.max() > block_size:
            raise ValueError(f"a document of {lengths.max()} tokens does not fit in {block_size}")
        self.block_size, self.documents, self.n_windows = block_size, len(lengths), times * len(lengths)
        self.times = times
        self._lengths = lengths.astype(np.int64)
        self._starts = np.cumsum(self._lengths) - self._lengths
        self.tokens = int(self._lengths.sum())

    @property
    def padding(self) -> float:
        return 1 - self.tokens / (self.documents * self.block_size)

    def pieces(self, window: int) -> tuple[list[int], list[int]]:
        document = window // self.times
        return [int(self._starts[document])], [int(self._lengths[document])]

    def document_lengths(self) -> dict[int, float]:
        places = np.bincount(self._lengths, minlength=self.block_size + 1) * np.arange(self.block_size + 1)
        rests = np.bincount(self.block_size - self._lengths, minlength=self.block_size + 1)
        places += rests * np.arange(self.block_size + 1)
        total = self.documents * self.block_size
        return {int(length): float(places[length] / total) for length in np.flatnonzero(places)}


def _used_before(groups: list[Group]) -> list[list[int]]:
    """Of each group's kinds of pieces, how many of that length are in the groups before it."""
    used: dict[int, int] = defaultdict(int)
    found = []
    for group in groups:
        found.append([used[length] for length, _ in group.pieces])
        for length, each in group.pieces:
            used[length] += group.windows * each
    return found
