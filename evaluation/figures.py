"""A figure with what it takes to believe it: its standard error, what guessing has, and of how many samples it is."""

import dataclasses
import math
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

NORMAL_95 = 1.959964  # the normal distribution's 97.5 % quantile: 95 % lie within so many standard errors


@dataclasses.dataclass(frozen=True)
class Figure:
    """What a model has in one metric of a task.

    A `share` is of 1 and printed in per cent. `error` is the standard error of the value as an estimate for all
    questions of the kind; None: it has none. `chance` is the expected value of guessing; None: nobody can say.
    """

    task: str
    metric: str
    value: float
    error: float | None
    chance: float | None
    samples: int
    of: str = "questions"  # what the samples are
    is_share: bool = True
    higher_is_better: bool = True
    published: str = ""  # of GPT-3 with 175 billion parameters, for people
    goal: str = ""
    note: str = ""  # what else must be known of it
    parts: tuple[str, ...] = ()  # the tasks, whose samples it is the mean of
    # Of each sample (n,) a sum and its size, such as bits and bytes of a document: the value is the ratio of all
    sums: tuple[NDArray[np.float64], NDArray[np.float64]] | None = dataclasses.field(
        default=None, compare=False, repr=False
    )

    @property
    def verdict(self) -> str:
        """In words whether it is better than guessing; empty where nobody can say."""
        if self.chance is None:
            return ""
        noise = NORMAL_95 * math.sqrt(self.chance * (1 - self.chance) / self.samples)  # of whoever guesses
        if abs(self.value - self.chance) <= noise:
            return "within noise of chance"
        return "better than chance" if (self.value > self.chance) == self.higher_is_better else "worse than chance"

    def as_json(self) -> dict[str, Any]:
        values = {one.name: getattr(self, one.name) for one in dataclasses.fields(self) if one.name != "sums"}
        return values | {"verdict": self.verdict}


def mean_error(values: NDArray[np.float64]) -> float | None:
    """The standard error of the mean of samples (n,); None for a single one. Answers that are all right or all wrong
    have no spread, but are no proof that the next one is, too: then it is that of one right and one wrong one more."""
    n = len(values)
    if n < 2:
        return None
    if values.min() == values.max() and values[0] in (0, 1):
        share = (values.sum() + 1) / (n + 2)
        return math.sqrt(share * (1 - share) / n)
    return float(values.std(ddof=1) / math.sqrt(n))


def ratio_error(sums: NDArray[np.float64], sizes: NDArray[np.float64]) -> float | None:
    """The standard error of the ratio of two sums over samples (n,), such as bits over bytes of documents; None for a
    single one."""
    return None if len(sums) < 2 else float(linear(sums, sizes).std(ddof=1) / math.sqrt(len(sums)))


def linear(sums: NDArray[np.float64], sizes: NDArray[np.float64]) -> NDArray[np.float64]:
    """Values of the samples (n,) whose mean is the ratio of the two sums, and varies over samples as that does, to
    first order (linearisation: Cochran, Sampling Techniques, section 2.11)."""
    ratio = sums.sum() / sizes.sum()
    return ratio + (sums - ratio * sizes) / sizes.mean()


def table(figures: Sequence[Figure]) -> list[str]:
    """Lines for people."""
    compared = any(figure.goal for figure in figures)
    heads = ("task", "metric", "value", "std. error", "chance", *(("GPT-3 175B", "goal") if compared else ()), "of", "")
    return aligned([heads, *(cells(figure, compared) for figure in figures)], left=(0, 1, len(heads) - 1))


def cells(figure: Figure, compared: bool) -> tuple[str, ...]:
    """A row of the table, with what the figure is compared with or without."""
    values = (figure.value, figure.error, figure.chance)
    numbers = ["n/a" if value is None else f"{value:.1%}" if figure.is_share else f"{value:.4f}" for value in values]
    others = (figure.published, figure.goal) if compared else ()
    said = ", ".join(filter(None, (figure.verdict, figure.note)))
    return (figure.task, figure.metric, *numbers, *others, f"{figure.samples:,} {figure.of}", said)


def aligned(rows: Sequence[Sequence[str]], left: Collection[int]) -> list[str]:
    """Lines of columns as wide as their cells, these columns' words at the left, others' at the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    places = ["<" if number in left else ">" for number in range(len(widths))]
    lines = [[f"{cell:{place}{width}}" for cell, place, width in zip(row, places, widths, strict=True)] for row in rows]
    return ["  ".join(line).rstrip() for line in lines]
