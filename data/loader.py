"""Batches of windows in an order that depends on nothing but (seed, sample index).

A split of n tokens is cut into (n - 1) // block_size windows that do not overlap, or its documents are packed into
windows (data/packing.py). Sample i of a run shows window
`WindowOrder.window(i)`: samples 0 ... n_windows - 1 are the first epoch and show every window once, the next
n_windows samples are the second epoch in another order, and so on for ever.

Who takes which samples is the caller's business, and it is the same for any number of ranks: micro-batch `micro` of
optimizer step `step` is samples (step * gradient_accumulation_steps + micro) * batch_size onwards, and the ranks share
the micro-batches of a step among themselves. There is no state to save: a resumed run asks for the next index.
"""

import dataclasses
import itertools
import math
import operator
from collections import deque
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol

import numpy as np
import torch

from components.heads.spec import IGNORED
from data.dataset import COUNTED, DESIRABLE, Dataset, document_numbers
from data.mixture import Data, Mixture, MixtureOrder
from data.packing import Cut, packed
from data.questions import Question, read_questions
from data.reference import read_reference


@dataclasses.dataclass(frozen=True)
class Batch:
    """A micro-batch of B sequences, T tokens of each, int64. What does not count as a target is IGNORED
    (components/heads/spec.py); `n_targets` do (None: all). `documents` says which document of its sequence a token is
    of, where tokens meet those of their own only (None: all are of one); they are of whole sequences, where ranks
    divide these. Sequences that the model is to complete are `questions`, and each has a seed for it."""

    tokens: torch.Tensor  # (B, T)
    targets: torch.Tensor  # (B, T)
    documents: torch.Tensor | None = None  # (B, T, or more)
    n_targets: int | None = None
    reference: torch.Tensor | None = None  # (B,) what a reference model says of each sequence's targets, nats
    desirable: torch.Tensor | None = None  # (B,) bool, whether each sequence is labelled so
    questions: tuple[Question, ...] | None = None  # B
    seeds: tuple[int, ...] | None = None  # B, below 2**63

    def changed(self, change: Callable[[torch.Tensor], torch.Tensor]) -> "Batch":
        """The same with every tensor changed in the same way."""
        values: dict[str, Any] = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        tensors = {name: change(value) for name, value in values.items() if isinstance(value, torch.Tensor)}
        return Batch(**values | tensors)


class WindowOrder:
    """For each epoch a pseudo-random permutation of the windows, computed element by element in O(1) memory.

    A generalised Feistel cipher on the pairs (left, right) of a side × side square, side = ceil(sqrt(n_windows)), with
    addition modulo side and cycle walking back into the n_windows that are wanted: Black and Rogaway, "Ciphers with
    Arbitrary Finite Domains" (CT-RSA 2002). The square is at most 2 sqrt(n) + 1 larger than n, so walks are rare.
    Luby and Rackoff (1988) prove four rounds for an ideal round function; ours is the mixing function of SplitMix64
    (Steele, Lea, Flood 2014) and small squares need more, hence eight.
    """

    ROUNDS = 8

    def __init__(self, n_windows: int, seed: int):
        if not 1 <= n_windows <= 1 << 40:
            raise ValueError(f"n_windows must lie between 1 and 2**40, not {n_windows}")
        self.n_windows = n_windows
        self._side = np.uint64(math.isqrt(n_windows - 1) + 1)
        self._seed = _mix(np.array([operator.index(seed) & (1 << 64) - 1], dtype=np.uint64))

    def window(self, sample_index: int | np.ndarray) -> np.ndarray:
        """The windows that `sample_index` (any shape, int64, not negative) shows: same shape, int64."""
        index = np.asarray(sample_index, dtype=np.int64)
        if index.size and index.min() < 0:
            raise ValueError(f"sample indices start at 0, not {index.min()}")
        epoch, place = (part.ravel().astype(np.uint64) for part in np.divmod(index, self.n_windows))
        keys = _mix(self._seed + epoch)
        window = self._permute(place, keys)
        while (outside := window >= self.n_windows).any():
            window[outside] = self._permute(window[outside], keys[outside])
        return window.astype(np.int64).reshape(index.shape)

    def _permute(self, place: np.ndarray, keys: np.ndarray) -> np.ndarray:
        """One encryption of `place` (n,) in [0, side²) under `keys` (n,), one key per element."""
        left, right = np.divmod(place, self._side)
        for number in range(1, self.ROUNDS + 1):
            round_keys = _mix(keys + np.uint64(number))
            left, right = right, (left + _mix(round_keys ^ right) % self._side) % self._side
        return left * self._side + right


def _mix(x: np.ndarray) -> np.ndarray:
    """SplitMix64's next(): a bijection of 64 bits in which each input bit flips about half of the output bits."""
    x = x + np.uint64(0x9E3779B97F4A7C15)  # uint64 arrays wrap around, as meant here
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


class SplitLoader:
    """Batches of one split, whose samples are of `n_windows` windows. `own_part`: the tokens of every sequence that
    batches have; documents they have of all."""

    together = 1  # samples that every batch has all or none of

    def __init__(self, dataset: Dataset, split: str, block_size: int, n_windows: int, seed: int, own_part: slice):
        self.block_size, self.own_part, self.n_windows = block_size, own_part, n_windows
        self.order = WindowOrder(n_windows // self.together, seed)
        self._reader = dataset.reader(split)
        self.check_unchanged = self._reader.check_unchanged

    @property
    def counts_targets(self) -> bool:
        """Whether batches say how many of their targets count, as some may not."""
        return self._reader.is_marked

    def batch(self, first_sample: int, batch_size: int) -> Batch:
        """`batch_size` samples from `first_sample` on, of block_size tokens each. Raises UnusableData."""
        numbers, places = np.divmod(np.arange(first_sample, first_sample + batch_size), self.together)
        return self.of_windows(self.order.window(numbers) * self.together + places)

    def of_windows(self, windows: np.ndarray) -> Batch:
        """These (B,), in this order. Raises UnusableData."""
        sequences = self._sequences(windows.tolist())
        self.check_unchanged()
        tokens, targets = (
            torch.from_numpy(one[:, self.own_part]).contiguous() for one in (sequences.tokens, sequences.targets)
        )
        documents = None if sequences.documents is None else torch.from_numpy(sequences.documents)
        return Batch(tokens, targets, documents, _count(targets) if self.counts_targets else None)

    def _sequences(self, windows: list[int]) -> "_Sequences":
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class _Sequences:
    """What windows show, int64 (B, T) each."""

    tokens: np.ndarray
    targets: np.ndarray
    documents: np.ndarray | None


def _count(targets: torch.Tensor) -> int:
    return int((targets != IGNORED).sum())


class WindowLoader(SplitLoader):
    """Windows that follow one another in the text. Memory does not grow with the size of the files or with the batches
    already read."""

    def __init__(
        self,
        dataset: Dataset,
        split: str,
        block_size: int,
        seed: int,
        tells_documents: bool = False,
        own_part: slice = slice(None),
    ):
        """`tells_documents`: batches say which document a token is of. Raises UserError for a dataset that marks no
        ends of documents."""
        super().__init__(dataset, split, block_size, dataset.splits[split].n_windows(block_size), seed, own_part)
        self._tells_documents = tells_documents
        if tells_documents:
            dataset.check_documents()

    def _sequences(self, windows: list[int]) -> _Sequences:
        starts, length = np.array(windows) * self.block_size, self.block_size + 1
        read, marks = self._reader.read_each(starts, np.full(len(windows), length))
        rows = read.reshape(-1, length).astype(np.int64)
        tokens, targets = rows[:, :-1], rows[:, 1:]
        is_end = self._reader.ends(read, marks).reshape(-1, length)[:, :-1] if self._tells_documents else None
        if marks is not None:
            targets = np.where(marks.reshape(-1, length)[:, 1:] & COUNTED, targets, IGNORED)
        return _Sequences(tokens, targets, None if is_end is None else document_numbers(is_end))


class PackedLoader(SplitLoader):
    """Windows into which documents are packed, and which batches therefore tell of.

    Every token of the split is once in an epoch. Its target is the one that follows it in the split, as in a window of
    the text: that of a document's end is the first token of the next document there, whatever the window has next, and
    that of a piece's last token the first of the next piece. The split's last token has none. What is left of a window
    is filled with ends of documents, which are one document and have no targets.
    """

    counts_targets = True

    def __init__(self, dataset: Dataset, split: str, cut: Cut, seed: int, own_part: slice = slice(None)):
        """Raises UserError for a dataset whose documents cannot be packed."""
        self._packing = packed(dataset, split, cut)
        super().__init__(dataset, split, cut.block_size, self._packing.n_windows, seed, own_part)
        self._filler = dataset.filler

    def _sequences(self, windows: list[int]) -> _Sequences:
        pieces = [self._packing.pieces(window) for window in windows]
        starts, lengths = (np.array(list(itertools.chain(*which))) for which in zip(*pieces, strict=True))
        inputs, following = self._tokens_and_targets(starts, lengths)
        shape = (len(windows), self.block_size)
        tokens, targets = np.full(shape, self._filler), np.full(shape, IGNORED)
        documents = np.empty(shape, dtype=np.int64)
        first = 0
        for row, (_, of_window) in enumerate(pieces):
            length, count = sum(of_window), len(of_window)
            tokens[row, :length] = inputs[first : first + length]
            targets[row, :length] = following[first : first + length]
            documents[row, :length] = np.repeat(np.arange(count), of_window)
            documents[row, length:] = count
            first += length
        return _Sequences(tokens, targets, documents)

    def _tokens_and_targets(self, starts: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Of pieces (n,) their tokens, all after one another, and likewise those that follow each in the split, or
        IGNORED."""
        is_last = starts + lengths == self._packing.tokens
        read, marks = self._reader.read_each(starts, lengths + 1 - is_last)
        found = read.astype(np.int64)
        following = found if marks is None else np.where(marks & COUNTED, found, IGNORED)
        if is_last.any():
            ends = np.cumsum(lengths + 1 - is_last)[is_last]
            found, following = np.insert(found, ends, IGNORED), np.insert(following, ends, IGNORED)
        ends = np.cumsum(lengths + 1)
        is_input, is_target = np.ones(len(found), dtype=bool), np.ones(len(found), dtype=bool)
        is_input[ends - 1], is_target[ends - 1 - lengths] = False, False
        return found[is_input], following[is_target]


class PairedLoader(PackedLoader):
    """Pairs of documents that follow one another in the split, each in a window of its own; batches count pairs, and,
    where there are labels, say which documents are desirable. Beside a dataset of pairs lies what a reference says of
    each document, if a run needs that."""

    together = 2

    def __init__(self, dataset: Dataset, split: str, cut: Cut, seed: int, own_part: slice = slice(None)):
        """Raises UserError for a reference that is not of this split."""
        super().__init__(dataset, split, cut, seed, own_part)
        self._reference = read_reference(dataset, split)
        marks = dataset.splits[split].marks
        self._has_labels = marks is not None and marks.of_labels

    def of_windows(self, windows: np.ndarray) -> Batch:
        batch = super().of_windows(windows)
        reference = None if self._reference is None else torch.from_numpy(self._reference[windows])
        desirable = torch.from_numpy(self._desirable(windows.tolist())) if self._has_labels else None
        n_pairs = len(windows) // self.together
        return dataclasses.replace(batch, n_targets=n_pairs, reference=reference, desirable=desirable)

    def _desirable(self, windows: list[int]) -> np.ndarray:
        """(windows,) whether their documents are, as the marks of the last tokens say."""
        pieces = [self._packing.pieces(window) for window in windows]
        last = np.array([start + length - 1 for (start,), (length,) in pieces])
        _, marks = self._reader.read_each(last, np.ones(len(windows), dtype=np.int64))
        assert marks is not None
        return marks & DESIRABLE > 0


class PromptLoader(PackedLoader):
    """Prompts, each in a window of its own, in as many neighbouring samples as it is to be completed; batches count
    these. What a sample is completed with is drawn from a seed of its own, which depends on nothing but (seed, sample
    index): neither a resume nor who computes it, beside which others, changes it."""

    def __init__(self, dataset: Dataset, split: str, cut: Cut, seed: int, own_part: slice = slice(None)):
        """Raises UserError for questions that are not of this split."""
        self.together = cut.together
        super().__init__(dataset, split, cut, seed, own_part)
        self._questions = read_questions(dataset, split)
        self._seed = _mix(np.array([seed], dtype=np.uint64))

    def batch(self, first_sample: int, batch_size: int) -> Batch:
        samples = np.arange(first_sample, first_sample + batch_size).astype(np.uint64)
        seeds = _mix(self._seed + samples) >> np.uint64(1)
        return dataclasses.replace(super().batch(first_sample, batch_size), seeds=tuple(seeds.tolist()))

    def of_windows(self, windows: np.ndarray) -> Batch:
        questions = tuple(self._questions[window // self.together] for window in windows.tolist())
        return dataclasses.replace(super().of_windows(windows), n_targets=len(windows), questions=questions)


class MixedLoader:
    """Batches of a mixture: each sample is one of a source's, in the order that data/mixture.py says."""

    def __init__(self, loaders: Mapping[str, SplitLoader], order: MixtureOrder):
        self.loaders, self.order = loaders, order
        self.counts_targets = any(loader.counts_targets for loader in loaders.values())

    def batch(self, first_sample: int, batch_size: int) -> Batch:
        """As SplitLoader.batch."""
        places = map(self.order.locate, range(first_sample, first_sample + batch_size))
        samples = [self.loaders[name].batch(index, 1) for name, index in places]
        batch = joined(samples)
        return dataclasses.replace(batch, n_targets=_count(batch.targets)) if self.counts_targets else batch

    def check_unchanged(self) -> None:
        """As SplitLoader.check_unchanged, of every source."""
        for loader in self.loaders.values():
            loader.check_unchanged()


Loader = SplitLoader | MixedLoader


def split_batches(
    dataset: Dataset, split: str, cut: Cut, seed: int, tells_documents: bool, own_part: slice
) -> SplitLoader:
    """Batches of one dataset, as `cut` says. Packed documents are always told."""
    if cut.packing == "pairs":
        return PairedLoader(dataset, split, cut, seed, own_part)
    if cut.packing == "prompts":
        return PromptLoader(dataset, split, cut, seed, own_part)
    if not cut.follow_one_another:
        return PackedLoader(dataset, split, cut, seed, own_part)
    return WindowLoader(dataset, split, cut.block_size, seed, tells_documents, own_part)


def training_batches(data: Data, cut: Cut, seed: int, tells_documents: bool, own_part: slice) -> Loader:
    """What a run trains on."""
    loaders = {
        name: split_batches(source, "train", cut, seed, tells_documents, own_part)
        for name, source in data.sources.items()
    }
    if isinstance(data, Mixture):
        return MixedLoader(loaders, MixtureOrder(data.phases, cut.block_size, seed))
    return loaders[data.name]


def joined(batches: Sequence[Batch]) -> Batch:
    """The sequences of several batches after one another, which all tell of documents, or of targets that count, or
    none does."""
    tokens, targets = (torch.cat([getattr(one, name) for one in batches]) for name in ("tokens", "targets"))
    documents = [one.documents for one in batches if one.documents is not None]
    counted = [one.n_targets for one in batches if one.n_targets is not None]
    return Batch(tokens, targets, torch.cat(documents) if documents else None, sum(counted) if counted else None)


class _HasBatch(Protocol):
    def batch(self, first_sample: int, batch_size: int) -> Batch: ...


def prefetch(
    loader: _HasBatch,
    first_samples: Iterable[int],
    batch_size: int,
    device: torch.device | str,
    depth: int = 2,
) -> Generator[Batch, None, None]:
    """Yield `loader.batch(first, batch_size)` on `device` for each of `first_samples`, which may be endless.

    While the caller works on one batch, a background thread prepares the next `depth`. An error in preparing a batch
    is raised when that batch is asked for. `close()`, or dropping the generator, stops the thread; a generator that is
    still open when the interpreter exits delays it by at most the batches in preparation, because the thread never
    waits for the caller.
    """
    device = torch.device(device)
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", torch.cuda.current_device())  # the thread would take device 0 instead

    def prepare(first_sample: int) -> Batch:
        batch = loader.batch(first_sample, batch_size)
        if device.type != "cuda":
            return batch
        with torch.cuda.device(device):  # pinned memory lets the copy to the device run beside the computation
            return batch.changed(torch.Tensor.pin_memory)

    def deliver(batch: Future[Batch]) -> Batch:
        asynchronous = device.type == "cuda"  # elsewhere the source is not pinned and might be freed too early
        return batch.result().changed(lambda values: values.to(device, non_blocking=asynchronous))

    thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="prefetch")
    pending: deque[Future[Batch]] = deque()
    try:
        for first_sample in first_samples:
            pending.append(thread.submit(prepare, first_sample))
            if len(pending) > depth:
                yield deliver(pending.popleft())
        while pending:
            yield deliver(pending.popleft())
    finally:
        for future in pending:
            future.cancel()
        thread.shutdown()
