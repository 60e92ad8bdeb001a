"""Several datasets as one: which sample of a run is of which source, and what is known of them together.

A mixture is {"c4": 0.3, "code": 0.7}, or a list of such phases, of which all but the first say `from_tokens`, the
training tokens from which on they hold; or a TOML file with a table `[[phase]]` for each. Shares are of samples, which
are windows of block_size tokens each, in thousandths.

Sample i of a run is of a source, and the j-th of it, by arithmetic alone: within a phase the sources follow one another
in a pattern of PERIOD samples, so that any PERIOD samples after one another have exactly their shares. In the pattern
each source lies evenly, at a place drawn from the seed. As in data/loader.py there is no state to save.
"""

import ast
import dataclasses
import itertools
import zlib
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from common.errors import UserError
from common.toml_files import read_toml
from data.dataset import Dataset, Split, dataset_folder, open_dataset
from data.tokenizers import same_ids

PERIOD = 1000  # samples
FROM = "from_tokens"


@dataclasses.dataclass(frozen=True)
class Phase:
    """From so many training tokens on, so many of PERIOD samples of each source."""

    from_tokens: int
    counts: dict[str, int]

    def share(self, name: str) -> float:
        return self.counts.get(name, 0) / PERIOD


def read_phases(value: Any) -> tuple[Phase, ...]:
    """What the key `mixture` means, also as a command line has it. Raises UserError for what is no mixture."""
    if isinstance(value, str):
        value = _literal(value) if value.lstrip()[:1] in ("{", "[") else _read_toml(Path(value))
    given = [value] if isinstance(value, dict) else value
    if not isinstance(given, list) or not given or not all(isinstance(one, dict) for one in given):
        raise UserError(f"mixture={value!r}: give shares by the names of datasets, {{'c4': 0.3, 'code': 0.7}}")
    phases = tuple(_phase(one, is_first=index == 0) for index, one in enumerate(given))
    for before, after in itertools.pairwise(phases):
        if after.from_tokens <= before.from_tokens:
            raise UserError(
                f"mixture: {FROM}={after.from_tokens:,} is not after the phase before it: put them in order"
            )
    return phases


def sources(value: Any) -> list[str]:
    """The names of its datasets, in their order. Raises UserError."""
    return list(dict.fromkeys(name for phase in read_phases(value) for name in phase.counts))


def as_values(phases: Sequence[Phase]) -> list[dict[str, Any]]:
    """The same as a run's configuration keeps it."""
    return [{FROM: phase.from_tokens} | {name: phase.share(name) for name in phase.counts} for phase in phases]


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        raise UserError(f"mixture={text!r} is no Python literal, such as {{'c4': 0.3, 'code': 0.7}}") from None


def _read_toml(path: Path) -> Any:
    content = read_toml(path, "mixture")
    if list(content) != ["phase"]:
        raise UserError(
            f"mixture: {path} has {', '.join(content) or 'nothing'}: it needs tables [[phase]], and no other"
        )
    return content["phase"]


def _phase(given: dict[str, Any], is_first: bool) -> Phase:
    start = given.get(FROM, 0 if is_first else None)
    if type(start) is not int or start < 0 or (is_first and start):
        needed = "0, or absent, in the first phase" if is_first else "a number of tokens in every phase but the first"
        raise UserError(f"mixture: {FROM}={start!r} must be {needed}")
    shares = {name: share for name, share in given.items() if name != FROM}
    for name, share in shares.items():
        if not isinstance(share, int | float) or isinstance(share, bool) or not 0 < share < float("inf"):
            raise UserError(f"mixture: the share of {name!r} is {share!r}: give a number above 0, or leave it out")
    if not shares:
        raise UserError("mixture: a phase names no dataset")
    counts = in_thousandths(shares)
    for name, count in counts.items():
        if not count:
            raise UserError(f"mixture: the share of {name!r} is less than one of {PERIOD:,} samples: leave it out")
    return Phase(start, counts)


def in_thousandths(shares: Mapping[str, float]) -> dict[str, int]:
    """Counts of PERIOD samples, whose sum they are: what is left after rounding down goes to the largest remainders
    (Hamilton's method)."""
    total = sum(shares.values())
    exact = {name: PERIOD * share / total for name, share in shares.items()}
    counts = {name: int(wanted + 1e-9) for name, wanted in exact.items()}
    rests = sorted(exact, key=lambda name: counts[name] - exact[name])
    for name in rests[: PERIOD - sum(counts.values())]:
        counts[name] += 1
    return counts


class MixtureOrder:
    """Which source each sample of a run is of, and which of its samples, in runs of `block_size` tokens a sample."""

    def __init__(self, phases: Sequence[Phase], block_size: int, seed: int):
        self.phases = phases
        self._starts = [-(-phase.from_tokens // block_size) for phase in phases]  # the first sample from there on
        self._patterns = [_pattern(phase.counts, seed + index) for index, phase in enumerate(phases)]
        self._before: list[dict[str, int]] = [{}]  # each phase, samples of each source
        for index, end in enumerate(self._starts[1:]):
            self._before.append(self._counts_in(index, end))

    def locate(self, sample: int) -> tuple[str, int]:
        """The source of a sample, and how many of that source's come before it."""
        phase = self._phase(sample)
        period, place = divmod(sample - self._starts[phase], PERIOD)
        name, earlier = self._patterns[phase][place]
        return name, self._before[phase].get(name, 0) + period * self.phases[phase].counts[name] + earlier

    def counts(self, samples: int) -> dict[str, int]:
        """Of how many of a run's first samples each source is the source."""
        return self._counts_in(self._phase(samples), samples)

    def _phase(self, sample: int) -> int:
        return max(index for index, start in enumerate(self._starts) if start <= sample)

    def _counts_in(self, index: int, end: int) -> dict[str, int]:
        """Of each source, before the sample `end` of a phase."""
        periods, rest = divmod(end - self._starts[index], PERIOD)
        found = dict(self._before[index])
        for name, count in self.phases[index].counts.items():
            of_rest = sum(one == name for one, _ in self._patterns[index][:rest])
            found[name] = found.get(name, 0) + periods * count + of_rest
        return found


def _pattern(counts: Mapping[str, int], seed: int) -> list[tuple[str, int]]:
    """PERIOD sources in their order, each with how many of its own come before it in the pattern. The samples of each
    lie PERIOD / count apart, from a drawn place on."""
    rng = np.random.default_rng(seed)
    places = [
        ((number + shift) / count, name, number)
        for (name, count), shift in zip(counts.items(), rng.random(len(counts)), strict=True)
        for number in range(count)
    ]
    return [(name, number) for _, name, number in sorted(places)]


@dataclasses.dataclass(frozen=True)
class MixedSplit:
    """One split of all sources. `shares` are those by which its tokens are met, None where they change."""

    name: str
    sources: dict[str, Dataset]
    shares: dict[str, float] | None

    @property
    def tokens(self) -> int:
        return sum(source.splits[self.name].tokens for source in self.sources.values())

    @property
    def bytes(self) -> int:
        return sum(source.splits[self.name].bytes for source in self.sources.values())

    @property
    def checksum(self) -> str:
        """Of the shares and the checksums of all sources."""
        parts = {name: source.splits[self.name].checksum for name, source in self.sources.items()}
        return f"crc32:{zlib.crc32(repr((sorted(parts.items()), self.shares)).encode()):08x}"

    @property
    def bytes_per_token(self) -> float | None:
        """As `data.dataset.Split` has it, in the mean over tokens as they are met."""
        if self.shares is None:
            return None
        return sum(share * self.sources[name].splits[self.name].bytes_per_token for name, share in self.shares.items())


@dataclasses.dataclass(frozen=True)
class Mixture:
    """Prepared datasets, which give text the same ids, and how they are mixed. It has what a Dataset has."""

    sources: dict[str, Dataset]
    phases: tuple[Phase, ...]
    validated_on: Dataset | None = None  # in place of their own validation splits

    @property
    def name(self) -> str:
        return "+".join(self.sources)

    @property
    def folder(self) -> Path:
        """Of the first source, where they are said to lie."""
        return self._first.folder

    @property
    def _first(self) -> Dataset:
        return next(iter(self.sources.values()))

    @property
    def tokenizer(self) -> dict[str, Any]:
        return self._first.tokenizer

    @property
    def vocab_size(self) -> int:
        return max(source.vocab_size for source in self.sources.values())

    def keep_tokenizer(self, folder: Path) -> None:
        self._first.keep_tokenizer(folder)

    @cached_property
    def shares(self) -> dict[str, float]:
        """Of the last phase, which a run is trained for."""
        return {name: self.phases[-1].share(name) for name in self.phases[-1].counts}

    @property
    def validation_shares(self) -> dict[str, float]:
        """Those, or of the other dataset alone."""
        return self.shares if self.validated_on is None else self.validated_on.validation_shares

    @property
    def validation_sources(self) -> dict[str, Dataset]:
        """The datasets whose validation splits are evaluated."""
        if self.validated_on is not None:
            return self.validated_on.sources
        return {name: self.sources[name] for name in self.validation_shares}

    @property
    def splits(self) -> dict[str, MixedSplit | Split]:
        """A split that is another dataset's is that one, so that it has its checksum."""
        train = MixedSplit("train", self.sources, self.shares if len(self.phases) == 1 else None)
        if self.validated_on is not None:
            return {"train": train, "val": self.validated_on.splits["val"]}
        return {"train": train, "val": MixedSplit("val", self.validation_sources, self.shares)}

    @property
    def identity(self) -> dict[str, Any]:
        return {f"data of {name}": split.checksum for name, split in self.splits.items()} | {
            "tokenizer": self.tokenizer
        }

    def check_fits(self, block_size: int, vocab_size: int, follow_one_another: bool = True) -> None:
        for source in (*self.sources.values(), *self.validation_sources.values()):
            source.check_fits(block_size, vocab_size, follow_one_another)

    def counts(self, samples: int, block_size: int, seed: int) -> dict[str, int]:
        """Of how many of a run's first samples each source is the source."""
        return MixtureOrder(self.phases, block_size, seed).counts(samples)

    def describe(self) -> str:
        return "\n".join(source.describe() for source in self.sources.values())


Data = Dataset | Mixture


def open_data(dataset: str, mixture: Any, val_dataset: str | None, data_dir: str | None, verify: bool = True) -> Data:
    """What the keys of these names say. Raises UserError where it is missing, damaged, or no mixture."""
    data = _open_training(dataset, mixture, data_dir, verify)
    if val_dataset is None:
        return data
    other = open_dataset(dataset_folder(val_dataset, data_dir), verify)
    _check_alike(data, other, "val_dataset")
    if isinstance(data, Mixture):
        return dataclasses.replace(data, validated_on=other)
    return dataclasses.replace(data, splits={"train": data.splits["train"], "val": other.splits["val"]})


def _open_training(dataset: str, mixture: Any, data_dir: str | None, verify: bool) -> Data:
    if mixture is None:
        return open_dataset(dataset_folder(dataset, data_dir), verify)
    opened = {name: open_dataset(dataset_folder(name, data_dir), verify) for name in sources(mixture)}
    first, *others = opened.values()
    for other in others:
        _check_alike(first, other, "mixture")
    return Mixture(opened, read_phases(mixture))


def _check_alike(one: Data, other: Dataset, key: str) -> None:
    """Raises UserError where two do not give text the same ids."""
    ends = [data.tokenizer["end_of_document"] for data in (one, other)]
    if not same_ids(one.tokenizer, other.tokenizer) or ends[0] != ends[1]:
        raise UserError(f"{key}: {one.name} and {other.name} have different tokenizers: prepare them with one")
