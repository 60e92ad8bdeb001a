"""Whether one model answers better than another: both were asked the same questions, so question by question.

The difference of two means of the same questions comes with a 95 % interval and a p-value of the paired bootstrap: the
questions' differences are drawn anew with replacement, as if other questions of the kind had been asked. Of several
tasks some look different by chance alone: the p-values are Holm's, so that in 95 of 100 comparisons of models that are
equally good, no task at all is called better or worse.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.errors import UserError
from evaluation.figures import NORMAL_95, Figure, aligned, linear
from evaluation.rows import read_rows

DRAWS = 10_000
DRAWN_AT_ONCE = 1 << 22  # numbers
LEVEL = 0.05
NORMAL_80 = 0.841621  # the normal distribution's 80 % quantile: the power at which a number of samples is given
SEEDS = (
    "The noise is that of the questions. Another seed of training makes another model, whose figures differ, too: "
    "whether a way to train is better takes runs of several seeds (docs/comparing_runs.md)."
)

Samples = Mapping[str, Sequence[Mapping[str, Any]]]  # by their task


@dataclasses.dataclass(frozen=True)
class Difference:
    """The difference of two models in one metric of a task, as shares of 1 where the metric is one.

    `p` is corrected for all differences that are looked at together; None for a distance, which is 0 of no two models.
    `needed`: so many questions would find a difference of this size with a probability of 80 %, were it the true one;
    None where there is none."""

    task: str
    metric: str
    a: float
    b: float
    interval: tuple[float, float]  # of a - b
    p: float | None
    samples: int
    needed: int | None
    is_share: bool
    higher_is_better: bool
    of: str = "samples"  # what these are

    @property
    def verdict(self) -> str:
        """In words what may be said of the first model; empty of a distance."""
        if self.p is None:
            return ""
        if self.p < LEVEL:
            return "better" if (self.a > self.b) == self.higher_is_better else "worse"
        if self.needed is None:
            return "no difference seen"
        return f"difference within noise: {self.needed:,} {self.of} would tell"

    def as_json(self) -> dict[str, Any]:
        interval = [end if math.isfinite(end) else None for end in self.interval]
        return dataclasses.asdict(self) | {"interval": interval, "verdict": self.verdict}


def differences(
    figures: Sequence[Figure], of_a: Samples, of_b: Samples, of_text: Sequence[Figure] = ()
) -> list[Difference]:
    """Of the figures of `a` those that are means of samples, against `b`, which was asked the same; of tasks by their
    samples, of a text by the figures that `b` has in it. Raises UserError where it was not asked the same."""
    once = {(figure.parts, figure.metric): figure for figure in reversed(figures) if figure.parts}
    found = [difference_of(figure, *paired_values(figure, of_a, of_b)) for figure in reversed(once.values())]
    theirs = {(figure.task, figure.metric): figure for figure in of_text}
    for figure in figures:
        other = theirs.get((figure.task, figure.metric))
        if figure.sums is not None and other is not None and other.sums is not None:
            found.append(difference_of(figure, *linear_values(figure.sums, other.sums)))
    if not found:
        raise UserError("--against: none of the tasks has a metric that is a mean over its samples")
    tested = [one.p for one in found if one.p is not None]
    return [dataclasses.replace(one, p=p) for one, p in zip(found, corrected(tested), strict=True)]


def distance(figure: Figure) -> Difference:
    """A figure that says how far `a` is from `b`, and so is 0 of `b` itself. It is not tested."""
    assert figure.sums is not None
    interval, _ = paired_bootstrap(linear(*figure.sums))
    return Difference(
        figure.task, figure.metric, figure.value, 0.0, interval, None, figure.samples, None,
        figure.is_share, figure.higher_is_better, figure.of,
    )  # fmt: skip


def difference_of(figure: Figure, a: NDArray[np.float64], b: NDArray[np.float64]) -> Difference:
    """Values (n,) of the same questions; `p` is not corrected."""
    interval, p = paired_bootstrap(a - b)
    return Difference(
        figure.task, figure.metric, float(a.mean()), float(b.mean()), interval, p, len(a), samples_needed(a - b),
        figure.is_share, figure.higher_is_better, "samples" if figure.parts else figure.of,
    )  # fmt: skip


# ---------------------------------------------------------------------------------------------------------------------
# Numbers


def paired_bootstrap(values: NDArray[np.float64]) -> tuple[tuple[float, float], float]:
    """Differences (n,) -> the 95 % interval of their mean, and the probability of a mean as far from 0 or farther were
    the true one 0: that of the draws' means, moved to 0 (Efron and Tibshirani, An Introduction to the Bootstrap,
    section 16.4). The draws' spread is widened by sqrt(n / (n - 1)), since they are of the sample."""
    n, mean = len(values), float(values.mean())
    if n < 2:
        return (-math.inf, math.inf), 1.0
    kinds, counts = np.unique(values, return_counts=True)  # few, where answers are right or wrong
    rng = np.random.default_rng(0)
    pieces = max(DRAWN_AT_ONCE // len(kinds), 1)
    sizes = [min(pieces, DRAWS - start) for start in range(0, DRAWS, pieces)]
    means = np.concatenate([rng.multinomial(n, counts / n, size) @ kinds / n for size in sizes])
    around = (means - mean) * math.sqrt(n / (n - 1))
    low, high = mean + np.quantile(around, [LEVEL / 2, 1 - LEVEL / 2])
    farther = int((np.abs(around) >= abs(mean) * (1 - 1e-9)).sum())
    return (float(low), float(high)), (farther + 1) / (DRAWS + 1)


def corrected(values: Sequence[float]) -> list[float]:
    """The p-values of tests that are looked at together (Holm 1979): compared with a level, they keep it for all."""
    order = np.argsort(values)
    found = [0.0] * len(values)
    most = 0.0
    for rank, place in enumerate(order):
        most = max(most, min((len(values) - rank) * values[place], 1.0))
        found[place] = most
    return found


def samples_needed(values: NDArray[np.float64]) -> int | None:
    """How many differences such as these (n,) a test at the level of 5 % needs to find their mean with a power of 80 %,
    were it the true one; None where the mean is 0."""
    mean = float(values.mean())
    if len(values) < 2 or mean == 0:
        return None
    return max(math.ceil(((NORMAL_95 + NORMAL_80) * float(values.std(ddof=1)) / mean) ** 2), 2)


# ---------------------------------------------------------------------------------------------------------------------
# Samples


def paired_values(figure: Figure, of_a: Samples, of_b: Samples) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The metric of both, by question. Raises UserError where these are not the same."""
    pairs: list[tuple[float, float]] = []
    for task in figure.parts:
        a, b = (values_of(samples.get(task, ()), figure.metric) for samples in (of_a, of_b))
        if not b:
            raise UserError(f"--against: it has no samples of {task} with {figure.metric}")
        if a.keys() != b.keys():
            both = len(a.keys() & b.keys())
            raise UserError(
                f"--against: {task} was asked otherwise there: {both:,} of its {len(b):,} questions are among the "
                f"{len(a):,} here; take the same --limit, data, and version of the task"
            )
        pairs += [(a[question], b[question]) for question in a]
    values = np.array(pairs, dtype=float)
    return values[:, 0], values[:, 1]


def linear_values(
    a: tuple[NDArray[np.float64], NDArray[np.float64]], b: tuple[NDArray[np.float64], NDArray[np.float64]]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Values (n,) of the samples of a text, whose means are what the figures say. Raises UserError where the two were
    asked of other samples."""
    if not np.array_equal(a[1], b[1]):
        raise UserError(
            "--against: it reads the text in other windows, having another block or tokenizer: name the folder of a "
            "prepared dataset with --text, which is compared document by document"
        )
    return linear(*a), linear(*b)


def values_of(samples: Sequence[Mapping[str, Any]], label: str) -> dict[tuple[Any, ...], float]:
    """A metric's values by question, which is its number, its text and how it was asked. `label` as in Figure."""
    metric, _, rest = label.partition(" (")
    filtered = rest.removesuffix(")") or "none"
    return {
        tuple(sample.get(key) for key in ("doc_id", "doc_hash", "prompt_hash")): float(sample[metric])
        for sample in samples
        if sample.get("filter") == filtered and isinstance(sample.get(metric), int | float)
    }


def read_samples(file: Path) -> dict[str, list[dict[str, Any]]]:
    """What --save_samples wrote. Raises UserError."""
    found: dict[str, list[dict[str, Any]]] = {}
    for row in read_rows(file, "--against"):
        if not isinstance(row.get("task"), str) or "filter" not in row:
            raise UserError(f"--against: {file} is not what --save_samples writes")
        found.setdefault(row["task"], []).append(row)
    return found


# ---------------------------------------------------------------------------------------------------------------------
# For people


def lines(found: Sequence[Difference], a: str, b: str) -> list[str]:
    """The table, and what it is not."""
    heads = ("task", "metric", "A", "B", "A - B", "95 % interval", "p (Holm)", "of", "A is")
    rows = [heads, *(cells(one) for one in found)]
    return [f"A: {a}", f"B: {b}", *aligned(rows, left=(0, 1, len(heads) - 1)), SEEDS]


def cells(one: Difference) -> tuple[str, ...]:
    """A row of the table."""
    values = [f"{value:.1%}" if one.is_share else f"{value:.4f}" for value in (one.a, one.b)]
    signed = [f"{value:+.1%}" if one.is_share else f"{value:+.4f}" for value in (one.a - one.b, *one.interval)]
    return (one.task, one.metric, *values, signed[0], f"{signed[1]} to {signed[2]}",
            "n/a" if one.p is None else f"{one.p:.3g}", f"{one.samples:,} {one.of}", one.verdict)  # fmt: skip
