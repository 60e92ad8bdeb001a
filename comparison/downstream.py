"""From loss to benchmark: what a task's score is at which bits per byte, by a fit over runs; and which tasks can decide
anything at their size, by the runs' spread over the noise between a run's last checkpoints.

The score is a sigmoid from chance, where the loss is high, to all that can be had (as in Llama 3 and in Bhagia et al.
2024, with the two ends known and so two constants instead of four: a ladder has few runs):

    score(L) = chance + (1 - chance) / (1 + exp((L - middle) / width))

Signal and noise are those of Heineman et al. 2025 (arXiv 2508.13144): the largest difference between two runs over
their mean, and the standard deviation of a run's last checkpoints over their mean. Between checkpoints a run also
learns, which counts as noise here.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.errors import UserError
from comparison.benchmarks import Benchmarked, Score
from comparison.runs import comparable_unit
from evaluation.figures import NORMAL_95
from flops_parameter_counting.laws.lbfgs import minimise
from flops_parameter_counting.laws.scaling_laws import middle_95

Array = NDArray[np.float64]

FEWEST_RUNS = 4  # for two constants, and a spread
MIDDLES, WIDTHS = (-2, -1, -0.5, 0, 0.5, 1), (0.05, 0.2, 0.5, 1, 3)  # of the starts, in spreads of the losses
DRAWS = 1000  # bootstrap resamples of the runs
LAST = 5  # checkpoints of a run that its noise is of,
FEWEST_LAST = 3  # or as many as there are, but no fewer
CHI_SQUARED_95 = 3.841  # of one degree of freedom
APART = NORMAL_95 * math.sqrt(2)  # standard deviations of one checkpoint that two must differ by


@dataclasses.dataclass(frozen=True)
class Sigmoid:
    """The fit over `runs` runs: constants in bits per byte, their standard errors from the fit's curvature, and their
    values of resamples of the runs (draws, 2). `lowest` is the lowest loss that a run had."""

    chance: float
    middle: float
    width: float
    errors: tuple[float, float]
    draws: Array
    runs: int
    chi_squared: float
    lowest: float

    def score(self, loss: float) -> float:
        """At so many bits per byte."""
        return float(_score(np.array([self.middle, math.log(self.width)]), self.chance, np.array([loss]))[0])

    def interval(self, loss: float) -> tuple[float, float]:
        """The middle 95 % of what resamples of the runs say there."""
        return middle_95(_score(_rows(self.draws), self.chance, np.array([loss]))[:, 0])

    @property
    def text(self) -> str:
        """In a sentence."""
        low, high = self.interval(self.lowest)
        return (
            f"{self.chance:.3g} + {1 - self.chance:.3g} / (1 + exp((bits per byte - {self.middle:.4g} ± "
            f"{self.errors[0]:.2g}) / ({self.width:.3g} ± {self.errors[1]:.2g}))), of {self.runs} runs; at the lowest, "
            f"{self.lowest:.4g} bits per byte: {self.score(self.lowest):.3g} (95 % over the runs: {low:.3g} to "
            f"{high:.3g})"
        )

    def as_json(self) -> dict[str, Any]:
        names = ("middle", "width")
        return {
            "chance": self.chance,
            **{name: getattr(self, name) for name in names},
            **{f"{name}_error": error for name, error in zip(names, self.errors, strict=True)},
            **{f"{name}_interval": middle_95(own) for name, own in zip(names, self.draws.T, strict=True)},
            "runs": self.runs,
            "chi_squared": self.chi_squared,
        }


def _score(constants: Array, chance: float, losses: Array) -> Array:
    """Constants (..., 2), the middle and the logarithm of the width; losses (n,) -> (..., n)."""
    middle, log_width = constants[..., :1], constants[..., 1:]
    steepness = np.clip((losses - middle) * np.exp(-log_width), -700, 700)
    return chance + (1 - chance) / (1 + np.exp(steepness))


def _rows(draws: Array) -> Array:
    return np.column_stack([draws[:, 0], np.log(draws[:, 1])])


def fit(losses: Array, values: Array, errors: Array, chance: float, draws: int = DRAWS, seed: int = 0) -> Sigmoid:
    """Weighted least squares over runs (n,): losses in bits per byte, scores, and their standard errors. Where the runs
    scatter more than these errors say, the constants' errors are larger by as much. Raises UserError for runs that
    cannot support it."""
    count = len(losses)
    if len(np.unique(losses)) < FEWEST_RUNS:
        raise UserError(f"{len(np.unique(losses))} losses are too few for a fit: it needs {FEWEST_RUNS} or more")
    resamples = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=draws)
    resamples = resamples[(resamples > 0).sum(axis=1) > 2]  # of two runs any difference is explained

    def reached_from(starts: Array, weights: Array) -> tuple[Array, Array]:
        def objective(x: Array, rows: NDArray[np.intp]) -> tuple[Array, Array]:
            residuals, jacobian = _residuals(x, chance, losses, values, errors)
            weighted = weights[rows] * residuals
            return 0.5 * (weighted * residuals).sum(axis=1), np.einsum("rn,rnp->rp", weighted, jacobian)

        return minimise(objective, starts)

    spread = float(np.ptp(losses))
    middles, widths = losses.mean() + spread * np.array(MIDDLES), np.log(spread * np.array(WIDTHS))
    grid = np.array([(middle, width) for middle in middles for width in widths])
    reached, found = reached_from(grid, np.ones((len(grid), count)))
    best = reached[found.argmin()]
    chi_squared = float(2 * found.min())
    flat = np.average(values, weights=errors**-2.0)
    scatter = max(1.0, chi_squared / (count - 2))
    if float((((values - flat) / errors) ** 2).sum()) - chi_squared < CHI_SQUARED_95 * scatter:
        raise UserError("the score does not depend on the loss, as far as these runs show")
    constants, _ = reached_from(np.repeat(best[None], len(resamples), axis=0), resamples.astype(float))
    _, jacobian = _residuals(best[None], chance, losses, values, errors)
    covariance = np.linalg.pinv(jacobian[0].T @ jacobian[0]) * scatter
    middle, width = float(best[0]), float(math.exp(best[1]))
    of_draws = np.column_stack([constants[:, 0], np.exp(np.clip(constants[:, 1], -50, 50))])
    own = (math.sqrt(covariance[0, 0]), width * math.sqrt(covariance[1, 1]))
    return Sigmoid(chance, middle, width, own, of_draws, count, chi_squared, float(losses.min()))


def _residuals(x: Array, chance: float, losses: Array, values: Array, errors: Array) -> tuple[Array, Array]:
    """Constants (rows, 2) -> residuals (rows, n) in standard errors, and their derivatives (rows, n, 2)."""
    predicted = _score(x, chance, losses)
    share = (predicted - chance) / (1 - chance)
    slope = (1 - chance) * share * (1 - share) * np.exp(-x[:, 1:])  # by the middle
    by_log_width = slope * (losses - x[:, :1])
    return (predicted - values) / errors, np.stack([slope, by_log_width], axis=2) / errors[:, None]


# ---------------------------------------------------------------------------------------------------------------------
# Signal and noise


@dataclasses.dataclass(frozen=True)
class SignalToNoise:
    """`signal` and `noise` relative to the mean, and the difference that two checkpoints must have to be told apart."""

    signal: float
    noise: float
    smallest: float
    runs: int
    checkpoints: int  # that the noise is of

    @property
    def ratio(self) -> float:
        return self.signal / self.noise if self.noise else math.inf

    def as_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self) | {"ratio": self.ratio if self.noise else None}

    @property
    def text(self) -> str:
        counted = f"{self.runs} runs, noise of {self.checkpoints} checkpoints"
        ratio = f"signal to noise {self.ratio:.3g} ({counted})"
        if self.ratio < APART:
            return f"{ratio}: decides nothing here, not even between the best and the worst run"
        return f"{ratio}: decides between runs that differ by {self.smallest:.2g} or more"


def signal_to_noise(runs: Sequence[Sequence[float]]) -> SignalToNoise:
    """Of each run its scores in the order of steps, of which the last LAST count. Raises UserError for fewer than two
    runs, and where no run has FEWEST_LAST."""
    last = [np.array(own[-LAST:], dtype=float) for own in runs if len(own)]
    several = [own for own in last if len(own) >= FEWEST_LAST]
    if len(last) < 2:
        raise UserError("signal to noise needs two runs or more")
    if not several:
        raise UserError(
            f"no noise is known: no run was asked at {FEWEST_LAST} steps or more after its first (a shorter "
            "eval_benchmarks_interval, or evaluate.py --all_checkpoints with a higher keep_last)"
        )
    means = np.array([own.mean() for own in last])
    freedom = sum(len(own) - 1 for own in several)
    deviation = math.sqrt(sum(float(((own - own.mean()) ** 2).sum()) for own in several) / freedom)
    of_several = float(np.concatenate(several).mean())
    if not means.mean() or not of_several:
        raise UserError("all scores are 0: there is neither signal nor noise")
    return SignalToNoise(
        signal=float(np.ptp(means) / means.mean()),
        noise=deviation / of_several,
        smallest=APART * deviation,
        runs=len(last),
        checkpoints=sum(map(len, several)),
    )


# ---------------------------------------------------------------------------------------------------------------------
# As it is shown


def downstream(found: Benchmarked, tasks: Sequence[str]) -> tuple[list[str], dict[str, Any]]:
    """For each metric of the tasks, or of all, two sentences; and the same numbers for a file. Raises UserError."""
    comparable_unit([run.log for run in found.runs])
    lines = ["", "from loss to benchmark, over the runs' last scores; which tasks decide anything at their size"]
    values: dict[str, dict[str, Any]] = {}
    for metric in found.chosen(tasks):
        own = [of_run[metric] for of_run in found.scores if metric in of_run]
        name = " ".join(metric)
        values[name] = {}
        for key, result_of in (("fit", _fit_of), ("signal_to_noise", _ratio_of)):
            try:
                result: Sigmoid | SignalToNoise = result_of(own)
                lines.append(f"{name}: {result.text}")
                values[name][key] = result.as_json()
            except UserError as error:
                lines.append(f"{name}: {'no fit: ' if key == 'fit' else ''}{error}")
                values[name][key] = None
    return lines, values


def _fit_of(runs: Sequence[Sequence[Score]]) -> Sigmoid:
    """Of each run the last score whose loss is known."""
    last = [known[-1] for own in runs if (known := [score for score in own if score.bits_per_byte is not None])]
    if not all(score.higher_is_better and 0 <= score.value <= 1 for score in last):
        raise UserError("a sigmoid is of shares that are higher where the model is better")
    chances = [score.chance for score in last if score.chance is not None]
    errors = [score.error for score in last if score.error]
    if len(errors) < len(last):
        raise UserError("a score has no standard error")
    chance = float(np.mean(chances)) if chances else 0.0
    losses, values = ([getattr(score, name) for score in last] for name in ("bits_per_byte", "value"))
    return fit(np.array(losses, float), np.array(values, float), np.array(errors, float), chance)


def _ratio_of(runs: Sequence[Sequence[Score]]) -> SignalToNoise:
    """Without what a run had before its first step."""
    return signal_to_noise([[score.value for score in own if score.step] for own in runs])
