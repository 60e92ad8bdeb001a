"""What a preparation or a curation takes: from a sample that was really processed, for a size that is wanted.

    python data/c4/prepare.py --estimate --tokens 100e9 --num_proc 32 --dollars_per_hour 0.05
    python data/curate.py --estimate --tokens 100e9 --workers 32 --input PATH ...

Documents are drawn in groups, from the beginnings of files that lie evenly among all. Everything grows with the text:
an estimate is the ratio of two sums over the groups, and its interval the middle 95 % of that ratio in resamples of the
groups (Efron and Tibshirani 1993, An Introduction to the Bootstrap, section 13.3).
"""

import argparse
import dataclasses
import itertools
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from common.errors import ArgumentParser, UserError, above_zero, positive
from common.files import check_target, write_json, writing_to
from common.units import bytes_text
from data.dataset import dtype_for
from data.parts import Job, Part, prepare_part
from data.tokenizers import Kept

GROUPS = 20
FEWEST = 5  # groups that an interval is of
RESAMPLES = 10_000
SEED = 0


@dataclasses.dataclass(frozen=True)
class Work:
    """Seconds on one process for the documents of each group (groups,), and how many processes can share it: None where
    that is any number."""

    seconds: np.ndarray
    most: int | None = None


@dataclasses.dataclass(frozen=True)
class Sample:
    """What was measured: counts of each group (groups,), which have `text bytes` and `tokens` and are in bytes where
    their names say so; the work; and what an estimate from it takes for granted, for people."""

    counts: dict[str, np.ndarray]
    work: tuple[Work, ...]
    said: str
    assumed: tuple[str, ...] = ()
    once: dict[str, float] = dataclasses.field(default_factory=dict)  # what a count has beside, however much there is


@dataclasses.dataclass(frozen=True)
class Wanted:
    """So many of one of the sample's counts, on so many processes, each of which costs so many dollars an hour."""

    count: str
    size: float
    processes: int
    dollars_per_hour: float | None = None


@dataclasses.dataclass(frozen=True)
class Interval:
    value: float
    low: float
    high: float


def estimate(sample: Sample, wanted: Wanted) -> dict[str, Interval]:
    """Every count of the sample, `hours` and, where their price is known, `dollars`."""
    groups = len(sample.counts[wanted.count])
    draws = np.random.default_rng(SEED).multinomial(groups, np.full(groups, 1 / groups), RESAMPLES)
    whole, drawn = _of_groups(sample, wanted, np.ones((1, groups))), _of_groups(sample, wanted, draws)
    intervals = {name: np.quantile(drawn[name], [0.025, 0.975]) for name in whole}
    return {name: Interval(float(whole[name][0]), *map(float, intervals[name])) for name in whole}


def _of_groups(sample: Sample, wanted: Wanted, times: np.ndarray) -> dict[str, np.ndarray]:
    """The estimates (draws,) from the groups, each taken so many `times` (draws, groups)."""
    scale = wanted.size / (times @ sample.counts[wanted.count])
    found = {name: sample.once.get(name, 0.0) + scale * (times @ count) for name, count in sample.counts.items()}
    shared = [(work.seconds, min(wanted.processes, work.most or wanted.processes)) for work in sample.work]
    found["hours"] = scale * sum(times @ seconds / processes for seconds, processes in shared) / 3600
    if wanted.dollars_per_hour is not None:
        found["dollars"] = found["hours"] * wanted.processes * wanted.dollars_per_hour
    return found


# ---------------------------------------------------------------------------------------------------------------------
# The sample


class Group:
    """A part of the next documents of a file, which can be read once. `text_bytes` and `documents` are what was read;
    with `keep`, `read` has the texts."""

    empty = 0

    def __init__(self, path: Any, texts: Iterator[str], count: int, keep: bool):
        self.path = path
        self.read: list[str] = []
        self.text_bytes = self.documents = 0
        self._texts, self._count, self._keep = texts, count, keep

    @property
    def identity(self) -> list[Any]:
        return [str(self.path)]

    def texts(self) -> "Group":
        return self

    def __iter__(self) -> Iterator[str]:
        for text in itertools.islice(self._texts, self._count):
            self.text_bytes += len(text.encode())
            self.documents += 1
            if self._keep:
                self.read.append(text)
            yield text


def groups_of(parts: Sequence[Part], documents: int, keep: bool = False) -> list[Group]:
    """So many documents in GROUPS groups: the first ones of files that lie evenly among all."""
    chosen = [number * len(parts) // GROUPS for number in range(GROUPS)]
    texts = {index: iter(parts[index].texts()) for index in chosen}
    counts = [documents * (number + 1) // GROUPS - documents * number // GROUPS for number in range(GROUPS)]
    return [
        Group(getattr(parts[index], "path", index), texts[index], count, keep)
        for index, count in zip(chosen, counts, strict=True)
    ]


def check_groups(groups: Sequence[Group]) -> None:
    """Raises UserError where too few have documents."""
    if sum(group.documents > 0 for group in groups) < FEWEST:
        found = sum(group.documents for group in groups)
        raise UserError(f"--estimate: {found} documents are too few to estimate from: give more, or more files")


def describe(groups: Sequence[Group], tokens: float, seconds: float) -> str:
    files = len({group.path for group in groups if group.documents})
    return (
        f"measured here: {sum(group.documents for group in groups):,} documents, the first of {files:,} "
        f"file{'s' * (files > 1)}, {bytes_text(sum(group.text_bytes for group in groups))} of text, {tokens:,.0f} "
        f"tokens, {seconds:.1f} s on one process"
    )


def size_of(folder: Path) -> int:
    """Bytes of the files in a folder and below it."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


Clock = Callable[[], float]  # seconds


def measure_preparation(
    parts: Sequence[Part], kept: Kept, share: float, documents: int, clock: Clock = time.perf_counter
) -> Sample:
    """Prepares so many documents in a temporary folder. Raises UserError."""
    groups = groups_of(parts, documents)
    kept.tokenizer.encode("a text")  # which reads its table
    with tempfile.TemporaryDirectory() as folder, writing_to(Path(folder)):
        for_a_file = _seconds_for_a_file(Path(folder), kept, clock)
        job = Job(Path(folder), tuple(groups), kept, share)
        records, seconds = zip(*(_timed(job, number, clock) for number in range(GROUPS)), strict=True)
    check_groups(groups)
    splits = [[record["train"], record["val"]] for record in records]
    tokens = np.array([sum(split["tokens"] for split in both) for both in splits], float)
    counts = {
        "text bytes": np.array([group.text_bytes for group in groups], float),
        "documents": np.array([group.documents for group in groups], float),
        "tokens": tokens,
        "bytes on disk": tokens * dtype_for(kept.tokenizer.vocab_size).itemsize,
    }
    read = counts["documents"] > 0
    work = Work(np.where(read, np.array(seconds) - for_a_file, 0.0))
    beside = f"what a file takes beside its documents, {1000 * for_a_file:.0f} ms here, is not in it"
    said = describe(groups, float(tokens.sum()), float(work.seconds.sum()))
    assumed = (beside, "no more disk is needed meanwhile: shards are renamed, not copied")
    return Sample(counts, (work,), said, assumed, {"bytes on disk": float(len(kept.content or b""))})


def _timed(job: Job, number: int, clock: Clock) -> tuple[dict[str, Any], float]:
    began = clock()
    return prepare_part(job, number), clock() - began


def _seconds_for_a_file(folder: Path, kept: Kept, clock: Clock) -> float:
    """The middle one of some files with a few words for both splits, most of which is waiting for the disk."""
    short = [Group(number, iter(["word"] * 8), 8, keep=False) for number in range(9)]
    job = Job(folder, tuple(short), kept, share=0.5)
    return float(np.median([_timed(job, number, clock)[1] for number in range(len(short))]))


# ---------------------------------------------------------------------------------------------------------------------
# The options, and what is said


def add_estimate(built: ArgumentParser, processes: str, size_of_what: str) -> None:
    """`processes`: the option that says how many."""
    add = built.add_argument
    add(
        "--estimate",
        action="store_true",
        help=f"process a sample in a temporary folder, and say what --tokens or --text_bytes {size_of_what} would take "
        f"on {processes} processes",
    )
    add("--tokens", type=above_zero, metavar="N", help="to estimate for, such as 100e9")
    add("--text_bytes", type=above_zero, metavar="N", help="to estimate for, instead of tokens")
    add("--sample_documents", type=positive, metavar="N", help="that an estimate is made from (default: 10000)")
    add("--dollars_per_hour", type=above_zero, metavar="X", help="of one process, for an estimate")
    add("--save_estimate", type=Path, metavar="FILE", help="a .json for the estimate, too")


def wanted_from(arguments: argparse.Namespace, processes: int) -> Wanted | None:
    """What the arguments ask to be estimated; None without --estimate. Raises UserError."""
    options = ("tokens", "text_bytes", "sample_documents", "dollars_per_hour", "save_estimate")
    if not arguments.estimate:
        for option in options:
            if getattr(arguments, option) is not None:
                raise UserError(f"--{option} is for an estimate: give --estimate, too, or leave it out")
        return None
    if (arguments.tokens is None) == (arguments.text_bytes is None):
        raise UserError("--estimate: give --tokens or --text_bytes, one of them, for how much there is to do")
    check_target("save_estimate", arguments.save_estimate, ".json")
    count, size = ("tokens", arguments.tokens) if arguments.tokens else ("text bytes", arguments.text_bytes)
    arguments.sample_documents = arguments.sample_documents or 10_000
    return Wanted(count, size, processes, arguments.dollars_per_hour)


def tell(sample: Sample, wanted: Wanted, save: Path | None) -> None:
    """Prints the estimate, and writes it into a file where one is given. Raises UserError."""
    found = estimate(sample, wanted)
    print("\n".join([sample.said, *table(found, wanted), *(f"assumed: {line}" for line in _assumed(sample, wanted))]))
    if save:
        write_json(
            save,
            {
                "measured": sample.said,
                "wanted": dataclasses.asdict(wanted),
                "estimates": {name: dataclasses.asdict(one) for name, one in found.items()},
                "assumed": _assumed(sample, wanted),
            },
        )


def _assumed(sample: Sample, wanted: Wanted) -> list[str]:
    one = "the rest is like the sample, and this machine as fast all the time"
    faster = f"{wanted.processes:,} processes do {wanted.processes:,} times as much as one, where they can share it"
    return [one, *([faster] if wanted.processes > 1 else []), *sample.assumed]


def table(found: dict[str, Interval], wanted: Wanted) -> list[str]:
    """A line for each estimate, for people."""
    size = _text(wanted.count, wanted.size)
    what = f"{size} of text" if wanted.count == "text bytes" else f"{size} tokens"
    many = f"{wanted.processes:,} process{'es' * (wanted.processes > 1)}"
    lines = [f"for {what} on {many}, with 95 % intervals of the sample:"]
    for name, one in found.items():
        label = name.replace("bytes on ", "").replace(" bytes", "")
        between = "" if name == wanted.count else f"{_text(name, one.low)} to {_text(name, one.high)}"
        lines.append(f"  {label:<24}{_text(name, one.value):>18}   {between}".rstrip())
    if "dollars" not in found:
        lines.append(f"  {'dollars':<24}{'not known':>18}   --dollars_per_hour is what one process costs")
    return lines


def _text(name: str, value: float) -> str:
    if "bytes" in name:
        return bytes_text(value)
    return f"{value:,.3g}" if name in ("hours", "dollars") and value < 100 else f"{value:,.0f}"
