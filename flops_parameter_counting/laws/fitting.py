"""Fits L(N, D) = E + A / N^alpha + B / D^beta to measured losses, as Besiroglu et al. 2024 do; and says how sure it is.

With a = ln A, b = ln B, e = ln E, the fit minimises over (a, alpha, b, beta, e)

    sum of Huber(ln(exp(a - alpha ln N) + exp(b - beta ln D) + exp(e)) - ln L),    delta = 1e-3

(Hoffmann et al. 2022, section 3.3) with L-BFGS from a grid of 4,500 starts. Besiroglu et al. found that a mean in the
place of the sum is so small that the optimiser stops early; the criteria to stop are relative here, and cannot be met
by a small objective alone.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Iterator

import numpy as np

from common.errors import UserError
from flops_parameter_counting.laws.lbfgs import minimise
from flops_parameter_counting.laws.scaling_laws import CONSTANTS, middle_95

HUBER_DELTA = 1e-3
SAME_MINIMUM = 1e-6  # relative difference of the objective within which two starts have found the same one
ELEMENTS = 1 << 17  # (start, point) pairs evaluated at a time: they stay in a processor's cache

FEWEST_POINTS = 10  # two for each constant
FEWEST_VALUES = 3  # of N, and of D: a power law with an offset has three constants
NARROWEST_SPAN = 2.0  # largest over smallest N, D and D/N
RESOLVED = 2.0  # standard errors that an exponent must be above 0
WELL_KNOWN = 2.0  # largest over smallest of an exponent's middle 95 %, above which the points are called narrow
WIDER = "add runs with other N and D"


@dataclasses.dataclass(frozen=True)
class Points:
    """Measured losses, arrays (points,): parameters, training tokens, and nats per token."""

    n: np.ndarray
    d: np.ndarray
    loss: np.ndarray

    def __len__(self) -> int:
        return len(self.loss)

    def __getitem__(self, which: np.ndarray) -> "Points":
        return Points(self.n[which], self.d[which], self.loss[which])

    @property
    def c(self) -> np.ndarray:
        """Training FLOPs as C = 6 N D, which orders the points by budget; the fit does not use it."""
        return 6 * self.n * self.d


@dataclasses.dataclass(frozen=True)
class Fit:
    """`constants` (5,) and their `standard_errors` from the fit's curvature, in the order of CONSTANTS.

    `objective` is the sum of Huber at the minimum, `residuals` (points,) are ln of predicted over measured loss, and
    `reached` of `starts` starts found that minimum.
    """

    constants: np.ndarray
    standard_errors: np.ndarray
    objective: float
    residuals: np.ndarray
    reached: int
    starts: int

    def loss(self, n: np.ndarray, d: np.ndarray) -> np.ndarray:
        """Nats per token."""
        return predicted(self.constants, n, d)


def predicted(constants: np.ndarray, n: np.ndarray, d: np.ndarray) -> np.ndarray:
    """Nats per token of constants (..., 5) in the order of CONSTANTS; n and d broadcast with (...)."""
    e, a, b, alpha, beta = np.moveaxis(constants, -1, 0)
    return e + a * n**-alpha + b * d**-beta


def grid_of_starts() -> np.ndarray:
    """(4500, 5): a and b in 0..25 step 5, alpha and beta in 0..2 step 0.5, e in -1..1 step 0.5."""
    logarithms, exponents, e = np.arange(0, 26, 5.0), np.arange(0, 2.1, 0.5), np.arange(-1, 1.1, 0.5)
    return np.array(list(itertools.product(logarithms, exponents, logarithms, exponents, e)))


# ---------------------------------------------------------------------------------------------------------------------
# The fit


def fit_law(points: Points, starts: np.ndarray | None = None, progress: bool = False) -> Fit:
    """The best minimum from `starts` (k, 5) in the coordinates (a, alpha, b, beta, e), by default the full grid.

    Raises UserError where the points cannot support a law: see `check_spread` and `check_resolved`.
    """
    check_spread(points)
    starts = grid_of_starts() if starts is None else starts
    objective = _SumOfHuber(points)
    chunks = list(_chunks(objective.standardised(starts), len(points)))
    found = [minimise(objective, chunk) for chunk in _shown(chunks, progress, "starts")]
    x, values = (np.concatenate(parts) for parts in zip(*found, strict=True))
    best, smallest = x[[values.argmin()]], float(values.min())
    errors = objective.standard_errors(best[0])
    fit = Fit(
        constants=objective.constants(best)[0],
        standard_errors=errors,
        objective=HUBER_DELTA * smallest,
        residuals=objective.residuals(best)[0][0],
        reached=int(np.isclose(values, smallest, rtol=SAME_MINIMUM, atol=1e-12).sum()),  # 0 where there is no noise
        starts=len(starts),
    )
    check_resolved(points, fit)
    return fit


def bootstrap(points: Points, fit: Fit, draws: int, seed: int, progress: bool = False) -> np.ndarray:
    """Fits to `draws` resamples of the points with replacement, each from the minimum of `fit`.

    Of shape (k, 5) in the order of CONSTANTS, k <= draws: a resample whose fit is no law (`are_laws`) is left out,
    and where these are so many that they would reach into the middle 95 %, raises UserError.
    """
    n_points = len(points)
    counts = np.random.default_rng(seed).multinomial(n_points, np.full(n_points, 1 / n_points), size=draws)
    start = _SumOfHuber(points).standardised(_logarithmic(fit.constants[None]))
    found = []
    for chunk in _shown(list(_chunks(counts.astype(float), n_points)), progress, "resamples"):
        objective = _SumOfHuber(points, chunk)
        x, _ = minimise(objective, np.repeat(start, len(chunk), axis=0))
        found.append(objective.constants(x))
    constants = np.concatenate(found)
    laws = constants[are_laws(constants, points)]
    if draws - len(laws) > 0.025 * draws:
        raise UserError(
            f"the points cannot support a law: {draws - len(laws):,} of {draws:,} bootstrap resamples give none "
            f"(an exponent of 0 or less, or E = 0); {_spans(points)}; {WIDER}"
        )
    return laws


class _SumOfHuber:
    """The objective over delta, which is near the sum of |residuals|, for rows of (a', alpha', b', beta', e).

    ln N and ln D are standardised, so that a term is exp(a' - alpha' z): the same minima, and none of the correlation
    of a with alpha that makes the optimiser crawl. `weights` (rows, points) count how often a row has a point.
    """

    def __init__(self, points: Points, weights: np.ndarray | None = None):
        log_n, log_d = np.log(points.n), np.log(points.d)
        self.centre, self.scale = np.array([[log_n.mean(), log_d.mean()], [log_n.std(), log_d.std()]])
        self.n, self.d = (log_n - self.centre[0]) / self.scale[0], (log_d - self.centre[1]) / self.scale[1]
        self.log_loss = np.log(points.loss)
        ones = np.ones(len(points))
        self.by_n, self.by_d = np.stack([ones, -self.n], axis=1), np.stack([ones, -self.d], axis=1)  # (points, 2)
        self.weights = weights

    def standardised(self, x: np.ndarray) -> np.ndarray:
        a, alpha, b, beta, e = x.T
        (n, d), (n_scale, d_scale) = self.centre, self.scale
        return np.stack([a - alpha * n, alpha * n_scale, b - beta * d, beta * d_scale, e], axis=1)

    def constants(self, x: np.ndarray) -> np.ndarray:
        """(rows, 5) in the order of CONSTANTS; what is too large or small for a float becomes inf or 0."""
        a, alpha, b, beta, e = x.T
        alpha, beta = alpha / self.scale[0], beta / self.scale[1]
        a, b = a + alpha * self.centre[0], b + beta * self.centre[1]
        with np.errstate(over="ignore"):
            return np.stack([np.exp(e), np.exp(a), np.exp(b), alpha, beta], axis=1)

    def residuals(self, x: np.ndarray) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """ln of predicted over measured loss (rows, points), and the share of each term in the prediction."""
        a, alpha, b, beta, e = x.T[..., None]
        terms = a - alpha * self.n, b - beta * self.d, e
        largest = functools.reduce(np.maximum, terms)
        n_part, d_part, rest = (np.exp(term - largest) for term in terms)
        total = n_part + d_part + rest
        return np.log(total) + largest - self.log_loss, (n_part / total, d_part / total, rest / total)

    def __call__(self, x: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        residual, (n_share, d_share, e_share) = self.residuals(x)
        slope = np.clip(residual / HUBER_DELTA, -1, 1)
        value = slope * (residual - 0.5 * HUBER_DELTA * slope)
        if self.weights is not None:
            weights = self.weights[rows]
            value, slope = weights * value, weights * slope
        by_e = np.einsum("rp,rp->r", slope, e_share)
        return value.sum(axis=1), np.column_stack([(slope * n_share) @ self.by_n, (slope * d_share) @ self.by_d, by_e])

    def standard_errors(self, x: np.ndarray) -> np.ndarray:
        """(5,) in the order of CONSTANTS at `x` (5,), from the Jacobian of the residuals.

        The noise is taken to be normal with the mean absolute residual, and at least delta, below which this fit
        tells no residual from noise: points of a formula, without noise, cannot seem to support what runs could not.
        The minimum of absolute residuals varies sqrt(pi/2) times as much as that of squares.
        """
        residuals, (n_share, d_share, e_share) = self.residuals(x[None])
        to_sd = math.sqrt(math.pi / 2)
        noise = max(to_sd * np.abs(residuals).sum() / (len(self.n) - len(CONSTANTS)), HUBER_DELTA)
        jacobian = np.column_stack([n_share.T * self.by_n, d_share.T * self.by_d, e_share.T])
        # from (a', alpha', b', beta', e) to (E, A, B, alpha, beta): dA = A da, a = a' + alpha' mean/scale
        (n, d), (n_scale, d_scale) = self.centre, self.scale
        e_value, a_value, b_value, _, _ = self.constants(x[None])[0]
        change = np.zeros((5, 5))
        change[0, 4] = e_value
        change[1, :2] = a_value, a_value * n / n_scale
        change[2, 2:4] = b_value, b_value * d / d_scale
        change[3, 1], change[4, 3] = 1 / n_scale, 1 / d_scale
        _, singular, axes = np.linalg.svd(jacobian, full_matrices=False)
        # where a term vanished, huge errors for its constants and only for those
        singular = np.maximum(singular, 1e-12 * singular[0])
        return noise * to_sd * np.linalg.norm(change @ axes.T / singular, axis=1)


def _logarithmic(constants: np.ndarray) -> np.ndarray:
    """(rows, 5) from the order of CONSTANTS to (a, alpha, b, beta, e)."""
    e, a, b, alpha, beta = constants.T
    return np.stack([np.log(a), alpha, np.log(b), beta, np.log(e)], axis=1)


def _chunks(rows: np.ndarray, n_points: int) -> Iterator[np.ndarray]:
    size = max(1, ELEMENTS // n_points)
    return (rows[start : start + size] for start in range(0, len(rows), size))


def _shown(chunks: list[np.ndarray], progress: bool, what: str) -> Iterator[np.ndarray]:
    """The chunks, with a bar that counts their rows."""
    if not progress:
        yield from chunks
        return
    from tqdm import tqdm

    with tqdm(total=sum(map(len, chunks)), unit=f" {what}", leave=False, disable=None) as bar:
        for chunk in chunks:
            yield chunk
            bar.update(len(chunk))


# ---------------------------------------------------------------------------------------------------------------------
# What the points can support


def check_spread(points: Points) -> None:
    """Raises UserError for points that no fit can make a law of, before one is tried.

    Ten points; three different N and D, since a power law with an offset has three constants; and spans of at least a
    factor of two: of N, of D, of D/N (on one ray the terms of N and D cannot be told apart), and of D around the
    parabola in logarithms that follows it best as a function of N (nor can they on any other curve, one IsoFLOP curve
    among them).
    """
    log_n, log_d = np.log(points.n), np.log(points.d)
    distinct = {"N": len(np.unique(points.n)), "D": len(np.unique(points.d))}
    spans = {"N": log_n, "D": log_d, "D/N": log_d - log_n}
    problem = None
    if len(points) < FEWEST_POINTS:
        problem = f"there are {len(points)}, and five constants need at least {FEWEST_POINTS}"
    elif few := [name for name, count in distinct.items() if count < FEWEST_VALUES]:
        problem = f"there are only {distinct[few[0]]} different {few[0]}, and at least {FEWEST_VALUES} are needed"
    elif narrow := [name for name, logs in spans.items() if _span(logs) < NARROWEST_SPAN]:
        ray = ": on one ray the terms of N and D cannot be told apart" if narrow[0] == "D/N" else ""
        problem = f"{narrow[0]} spans a factor of {_span(spans[narrow[0]]):.3g} only, below {NARROWEST_SPAN:g}{ray}"
    elif (width := _span(_around_parabola(log_n, log_d))) < NARROWEST_SPAN:
        problem = (
            f"they lie near one curve of N and D, around which D spans a factor of {width:.3g} only, below "
            f"{NARROWEST_SPAN:g}: on one curve the terms of N and D cannot be told apart"
        )
    if problem is not None:
        raise UserError(f"the points cannot support a law: {problem}; {WIDER}")


def _span(logs: np.ndarray) -> float:
    """Largest over smallest."""
    return float(np.exp(np.ptp(logs)))


def _around_parabola(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """What a least-squares parabola in x leaves of y."""
    x = (x - x.mean()) / x.std()
    powers = np.stack([np.ones_like(x), x, x**2], axis=1)
    return y - powers @ np.linalg.lstsq(powers, y, rcond=None)[0]


def check_resolved(points: Points, fit: Fit) -> None:
    """Raises UserError where the points do not determine the law.

    Both exponents must be at least RESOLVED standard errors above 0, with the standard errors of `Fit`, and E more
    than HUBER_DELTA of the lowest loss, below which the fit cannot see it. What makes the errors large is a range that
    is too narrow for the noise.
    """
    problem = None
    if fit.constants[0] <= HUBER_DELTA * points.loss.min():
        problem = "the best fit has E = 0, so that they show no loss which neither N nor D lowers"
    value, error, name = min(
        zip(fit.constants[3:], fit.standard_errors[3:], CONSTANTS[3:], strict=True), key=_resolution
    )
    if problem is None and value < RESOLVED * error:
        problem = f"{name} = {value:.3g} has a standard error of {error:.2g}, and must be {RESOLVED:g} of these above 0"
    if problem is not None:
        raise UserError(f"the points cannot support a law: {problem}; {_spans(points)}; {WIDER}")


def _resolution(exponent: tuple[float, float, str]) -> float:
    value, error, _ = exponent
    return value / error


def are_laws(constants: np.ndarray, points: Points) -> np.ndarray:
    """Whether constants (rows, 5) are finite and above 0, E by more than HUBER_DELTA of the lowest loss: (rows,)."""
    positive = (np.isfinite(constants) & (constants > 0)).all(axis=1)
    return positive & (constants[:, 0] > HUBER_DELTA * points.loss.min())


def too_narrow(draws: np.ndarray, points: Points) -> list[str]:
    """What must be said where the bootstrap `draws` (k, 5) leave an exponent open by more than a factor of WELL_KNOWN:
    whatever is extrapolated with it is open by as much, in logarithms."""
    lines = []
    for name, values in zip(CONSTANTS[3:], draws.T[3:], strict=True):
        low, high = middle_95(values)
        if high > WELL_KNOWN * low:
            lines.append(
                f"the points are too narrow to say {name}: its 95 % interval, {low:.3g} to {high:.3g}, spans more than "
                f"a factor of {WELL_KNOWN:g}; {_spans(points)}; {WIDER}"
            )
    return lines


def _spans(points: Points) -> str:
    spans = (_span(np.log(values)) for values in (points.n, points.d, points.d / points.n))
    return "N spans a factor of {:.3g}, D of {:.3g}, D/N of {:.3g}".format(*spans)


# ---------------------------------------------------------------------------------------------------------------------
# What the fit is worth


@dataclasses.dataclass(frozen=True)
class HeldOut:
    """How a fit to the other points predicts those of the largest budgets.

    `errors` (held-out points,) are ln of predicted over measured loss; `from_budget` is the smallest C = 6 N D held
    out.
    """

    errors: np.ndarray
    from_budget: float
    fitted: int


def hold_out(points: Points, factor: float, starts: np.ndarray | None = None, progress: bool = False) -> HeldOut:
    """Fit without the points whose C = 6 N D is within `factor` of the largest, and predict these; `starts` as in
    `fit_law`.

    Raises UserError where the others cannot support a law.
    """
    c = points.c
    largest = c >= c.max() / factor
    rest, held = points[~largest], points[largest]
    fit = fit_law(rest, starts, progress)
    return HeldOut(np.log(fit.loss(held.n, held.d) / held.loss), float(held.c.min()), len(rest))


def optimal_parameters(constants: np.ndarray, c: float | np.ndarray) -> np.ndarray:
    """N of the lowest loss under C = 6 N D, for constants (..., 5) (Hoffmann et al. 2022, equation 4)."""
    _, a, b, alpha, beta = np.moveaxis(constants, -1, 0)
    g = (alpha * a / (beta * b)) ** (1 / (alpha + beta))
    return g * (c / 6) ** (beta / (alpha + beta))
