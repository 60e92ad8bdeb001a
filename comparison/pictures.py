"""The loss curves as a picture for a paper."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from comparison.curves import COLORS
from comparison.runs import Run, Unit, bits_per_byte_factor, comparable_unit
from comparison.statistics import PLACES, At
from comparison.table import unit_of
from errors import UserError

STYLES = ("-", "--", ":", "-.")
AXES: dict[At, str] = {
    "steps": "optimizer steps",
    "tokens": "training tokens",
    "flops": "training FLOPs (full attention)",
    "time": "training time (s)",
}


def write_loss_curves(runs: Sequence[Run], file: Path, x: At = "tokens") -> None:
    """A PNG: each run's training loss, faint, and its validation loss with a mark at each evaluation.

    In nats per token, or in bits per byte where the tokenizers differ. Raises UserError when the losses do not compare,
    no log says `x`, or the file cannot be written.
    """
    from matplotlib.figure import Figure  # half a second, and only this function needs it

    unit, place = comparable_unit([run.log for run in runs]), PLACES[x][0]
    if all(np.isnan(curve.x[place]).all() for run in runs for curve in run.curves.values()):
        raise UserError(f"no common metric: none of the runs has a loss with a known place in {PLACES[x][1]}")
    figure = Figure(figsize=(8, 5), dpi=150, layout="constrained")
    axes = figure.subplots()
    for index, run in enumerate(runs):
        color, style = COLORS[index % len(COLORS)], STYLES[index // len(COLORS) % len(STYLES)]
        axes.plot(*_points(run, "train", place, unit), color=color, linestyle=style, alpha=0.35, linewidth=0.8)
        axes.plot(
            *_points(run, "val", place, unit),
            color=color, linestyle=style, marker="o", markersize=3.5, linewidth=1.4, label=run.numbers.run,
        )  # fmt: skip
    axes.set(xlabel=AXES[x], ylabel="loss (nats per token)" if unit == "nats" else "loss (bits per byte)")
    scale, letter = unit_of(axes.get_xlim()[1])
    if x == "flops":
        axes.ticklabel_format(axis="x", style="sci", scilimits=(0, 0))
    else:
        axes.xaxis.set_major_formatter(lambda value, _: f"{value / scale:g}{letter}" if value else "0")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    axes.legend(title="validation (marked), training (faint)", alignment="left", frameon=False)
    try:
        figure.savefig(file, format="png")
    except OSError as error:
        raise UserError(f"cannot write {file}: {error.strerror}") from None


def _points(run: Run, split: str, place: str, unit: Unit) -> tuple[list[float], list[float]]:
    curve = run.curves[f"{split}_loss"]
    factor = 1.0 if unit == "nats" else bits_per_byte_factor(run.log, split)
    if factor is None:
        return [], []
    return curve.x[place].tolist(), (curve.y * factor).tolist()
