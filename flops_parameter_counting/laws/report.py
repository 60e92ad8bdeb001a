"""What a fit to measured points found: the law, how sure it is, what it predicts; as data, as text and as a picture."""

import dataclasses
import io
from typing import Any

import numpy as np

from common.errors import UserError
from flops_parameter_counting.laws.fitting import (
    HUBER_DELTA,
    Fit,
    HeldOut,
    Points,
    bootstrap,
    fit_law,
    hold_out,
    optimal_parameters,
    predicted,
    too_narrow,
)
from flops_parameter_counting.laws.loss_points import Measured
from flops_parameter_counting.laws.scaling_laws import CONSTANTS, N_MEANINGS, middle_95


@dataclasses.dataclass(frozen=True)
class Fitted:
    """Everything the command says and writes. `draws` is (k, 5), or None; `held_out` is text where there is none."""

    measured: Measured
    n_meaning: str
    fit: Fit
    draws: np.ndarray | None
    draws_asked: int
    seed: int
    held_out: HeldOut | str

    @property
    def intervals(self) -> dict[str, tuple[float, float]]:
        """95 % of the draws, by constant; empty without draws."""
        if self.draws is None:
            return {}
        return {name: middle_95(values) for name, values in zip(CONSTANTS, self.draws.T, strict=True)}

    @property
    def notes(self) -> list[str]:
        narrow = [] if self.draws is None else too_narrow(self.draws, self.measured.points)
        return [*narrow, *self.measured.notes]


def fit_everything(
    measured: Measured, n_meaning: str, draws: int, seed: int, holdout: float, progress: bool = False
) -> Fitted:
    """The law of the points, whose N is as `n_meaning` says; `draws` resamples or 0, and `holdout` as the options.
    Raises UserError where the points do not support a law."""
    points = measured.points
    fit = fit_law(points, progress=progress)
    drawn = bootstrap(points, fit, draws, seed, progress=progress) if draws else None
    held_out: HeldOut | str = "not asked for"
    if holdout:
        try:
            held_out = hold_out(points, holdout, progress=progress)
        except UserError as error:
            held_out = f"not possible, without the largest budget {error}"
    return Fitted(measured, n_meaning, fit, drawn, draws, seed, held_out)


# ---------------------------------------------------------------------------------------------------------------------
# The law file


def as_json(fitted: Fitted) -> dict[str, Any]:
    """What scaling_laws.read_law takes; under `fit`, where it is from."""
    fit, points = fitted.fit, fitted.measured.points
    law: dict[str, Any] = dict(zip(CONSTANTS, fit.constants.tolist(), strict=True))
    law["N"] = fitted.n_meaning
    law["source"] = f"a fit to {len(points)} points of {fitted.measured.source}"
    law["range"] = {"N": extremes(points.n), "D": extremes(points.d)}
    law["standard_errors"] = dict(zip(CONSTANTS, fit.standard_errors.tolist(), strict=True))
    if fitted.draws is not None:
        law["draws"] = fitted.draws.tolist()
    held_out: Any = fitted.held_out
    if isinstance(held_out, HeldOut):
        held_out = {
            "from_budget": held_out.from_budget,
            "fitted": held_out.fitted,
            "errors_of_log_loss": held_out.errors.tolist(),
        }
    law["fit"] = {
        "method": f"sum of Huber (delta = {HUBER_DELTA:g}) of the residuals of ln L, L-BFGS (Besiroglu et al. 2024)",
        "starts": fit.starts,
        "starts_that_reached_the_minimum": fit.reached,
        "sum_of_huber": fit.objective,
        "bootstrap": fitted.draws_asked,
        "seed": fitted.seed,
        "intervals_95": {name: list(interval) for name, interval in fitted.intervals.items()},
        "held_out": held_out,
        "notes": fitted.notes,
        "points_N_D_loss": np.column_stack([points.n, points.d, points.loss]).tolist(),
    }
    return law


def extremes(values: np.ndarray) -> list[float]:
    return [float(values.min()), float(values.max())]


# ---------------------------------------------------------------------------------------------------------------------
# Text


def as_text(fitted: Fitted) -> str:
    """Several paragraphs for the console."""
    points, fit = fitted.measured.points, fitted.fit
    spans = {"N": points.n, "D": points.d, "D/N": points.d / points.n, "C = 6 N D": points.c}
    listed = "   ".join(f"{name} {values.min():.3g} to {values.max():.3g}" for name, values in spans.items())
    lines = [
        f"Points:       {len(points)} of {fitted.measured.source}   N: {N_MEANINGS[fitted.n_meaning]}",
        f"              {listed}",
        f"Fit:          {fit.reached:,} of {fit.starts:,} starts reached the minimum, a sum of Huber of "
        f"{fit.objective:.6g}",
        f"Residuals:    mean |ln L| {np.abs(fit.residuals).mean():.3%}, largest {np.abs(fit.residuals).max():.3%}",
        f"Held out:     {held_out_text(fitted.held_out)}",
        "",
        "L(N, D) = E + A / N^alpha + B / D^beta, in nats per token",
        f"  {'':<6}{'':>11}   standard error   95 % of the bootstrap",
    ]
    for name, value, error in zip(CONSTANTS, fit.constants, fit.standard_errors, strict=True):
        low, high = fitted.intervals.get(name, (None, None))
        interval = "" if low is None else f"{low:.4g} to {high:.4g}"
        lines.append(f"  {name:<6}{value:>11.4g}   {error:>14.2g}   {interval}".rstrip())
    lines += ["", *optimum_lines(fitted)]
    if fitted.draws is None:
        lines.append("note: without --bootstrap the law has no draws, and a search by it no intervals")
    elif left_out := fitted.draws_asked - len(fitted.draws):
        lines.append(
            f"note: {left_out} of {fitted.draws_asked:,} resamples gave no law (an exponent or E of 0) and are left out"
        )
    lines += [f"note: {note}" for note in fitted.notes]
    return "\n".join(lines)


def held_out_text(held_out: HeldOut | str) -> str:
    if isinstance(held_out, str):
        return held_out
    errors = held_out.errors
    return (
        f"{len(errors)} points of C >= {held_out.from_budget:.3g}, predicted from the other {held_out.fitted}: "
        f"mean |error| {np.abs(errors).mean():.3%}, bias {errors.mean():+.3%}"
    )


def optimum_lines(fitted: Fitted) -> list[str]:
    """What the law says is best at the largest budget, under C = 6 N D."""
    c = float(fitted.measured.points.c.max())
    constants = fitted.fit.constants
    best = optimal_parameters(constants, c)
    exponent = constants[4] / (constants[3] + constants[4])
    ratio = c / 6 / best**2
    intervals = ["", ""]
    if fitted.draws is not None:
        drawn = optimal_parameters(fitted.draws, c)
        both = fitted.draws[:, 4] / fitted.draws[:, 3:].sum(axis=1), c / 6 / drawn**2
        intervals = [" ({:.3g} to {:.3g})".format(*middle_95(values)) for values in both]
    return [
        f"Optimum under C = 6 N D: N ~ C^{exponent:.3f}{intervals[0]}; at C = {c:.3g}: N = {best:.3g}, "
        f"D/N = {ratio:.3g}{intervals[1]}"
    ]


# ---------------------------------------------------------------------------------------------------------------------
# The picture


def draw(fitted: Fitted) -> bytes:
    """A PNG: loss over N with the law's curve at each budget, and the residuals over N and over D."""
    from matplotlib.colors import LogNorm  # half a second, and only a picture needs it
    from matplotlib.figure import Figure

    points = fitted.measured.points
    figure = Figure(figsize=(11, 5.5), dpi=150, layout="constrained")
    axes = figure.subplot_mosaic([["curves", "n"], ["curves", "d"]], width_ratios=[1.5, 1])
    look: dict[str, Any] = {
        "c": points.c,
        "cmap": "viridis",
        "norm": LogNorm(vmin=points.c.min(), vmax=points.c.max()),
        "s": 16,
    }
    dots = axes["curves"].scatter(points.n, points.loss, zorder=3, **look)
    draw_curves(axes["curves"], fitted, dots)
    axes["curves"].set(xscale="log", xlabel="parameters N", ylabel="loss (nats per token)")
    for name, x, label in (("n", points.n, "parameters N"), ("d", points.d, "training tokens D")):
        axes[name].axhline(0, color="gray", linewidth=0.8)
        axes[name].scatter(x, 100 * fitted.fit.residuals, **look)
        axes[name].set(xscale="log", xlabel=label, ylabel="residual of ln L (%)")
    axes["n"].set_title("residuals: predicted over measured loss", fontsize=10)
    for one in axes.values():
        one.spines[["top", "right"]].set_visible(False)
        one.grid(alpha=0.25)
    figure.colorbar(dots, ax=list(axes.values()), label="training FLOPs, C = 6 N D", pad=0.01)
    picture = io.BytesIO()
    figure.savefig(picture, format="png")
    return picture.getvalue()


def draw_curves(axes: Any, fitted: Fitted, dots: Any) -> None:
    """The law's loss over N at each budget, coloured as the `dots`, and the line through the curves' minima."""
    points, constants = fitted.measured.points, fitted.fit.constants
    low, high = extremes(points.loss)
    budgets = budgets_to_draw(points)
    axes.set_ylim(low - 0.05 * (high - low), high + 0.05 * (high - low))
    for budget, (first, last) in budgets:
        n = np.geomspace(first / 1.3, last * 1.3, 200)
        axes.plot(n, predicted(constants, n, budget / 6 / n), color=dots.to_rgba(budget), linewidth=1.2)
    c = np.geomspace(budgets[0][0], budgets[-1][0], 50)
    best = optimal_parameters(constants, c)
    label = "law's optimum under C = 6 N D"
    axes.plot(best, predicted(constants, best, c / 6 / best), "k--", linewidth=1, label=label)
    axes.legend(frameon=False)


def budgets_to_draw(points: Points) -> list[tuple[float, list[float]]]:
    """(C, smallest and largest N) of every IsoFLOP curve: of the budgets that the points share, or, where they do not
    lie on few budgets, of six between the smallest and the largest."""
    c = np.sort(points.c)
    groups = np.split(c, np.flatnonzero(np.diff(np.log(c)) > np.log(1.2)) + 1)
    if len(groups) > 12 or any(group[-1] > 1.5 * group[0] for group in groups):
        return [(float(budget), extremes(points.n)) for budget in np.geomspace(c[0], c[-1], 6)]
    inside = [(points.c >= group[0]) & (points.c <= group[-1]) for group in groups]
    return [(float(np.median(group)), extremes(points.n[which])) for group, which in zip(groups, inside, strict=True)]
