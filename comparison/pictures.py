"""The main plots as a picture for a paper: losses, and below them MFU, memory and gradients."""

import io
import math
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from common.files import write_whole
from common.units import unit_of
from comparison.looks import looks
from comparison.runs import NoCommonMetric, Run, Unit, bits_per_byte_factor, comparable_unit, mfu_in_words
from comparison.statistics import PLACES, At, groups

WIDTH, HEIGHT = 9, 8  # inches, without the legend
LONGEST_LINE = 100  # characters of the legend
STYLES = ("-", "--", ":", "-.", (0, (8, 2)), (0, (8, 2, 1, 2)), (0, (1, 3)))  # by the number of a run's dashes
AXES: dict[At, str] = {
    "steps": "optimizer steps",
    "tokens": "training tokens",
    "flops": "training FLOPs (full attention)",
    "time": "training time (s)",
}
OTHERS = {  # curves of comparison.runs: what they are called (MFU by its convention), and what they are multiplied by
    "mfu": (None, 100),
    "memory": ("peak memory (GB)", 1e-9),
    "grad_norm": ("gradient norm", 1),
}


def write_plots(runs: Sequence[Run], file: Path, x: At = "tokens") -> None:
    """A PNG: each run's training loss, faint, and its validation loss with a mark at each evaluation; MFU, peak memory
    and gradient norm.

    Losses are in nats per token, or in bits per byte where the tokenizers differ. Raises NoCommonMetric when the
    losses do not compare or no log says `x`, and UserError when the file cannot be written.
    """
    from matplotlib.figure import Figure  # half a second, and only this function needs it

    unit, place = comparable_unit([run.log for run in runs]), PLACES[x][0]
    if all(np.isnan(curve.x[place]).all() for run in runs for curve in run.curves.values()):
        raise NoCommonMetric(f"no common metric: none of the runs has a loss with a known place in {PLACES[x][1]}")
    figure = Figure(dpi=150, layout="constrained")
    panels = figure.subplot_mosaic([["loss"] * 3, ["mfu", "memory", "grad_norm"]], height_ratios=[2, 1])
    lines = {}
    for run, (color, dashes) in zip(runs, looks([run.log for run in runs]), strict=True):
        look: dict[str, Any] = {"color": color, "linestyle": STYLES[dashes]}
        panels["loss"].plot(*_points(run, "train", place, unit), **look, alpha=0.35, linewidth=0.8)
        (lines[id(run.log)],) = panels["loss"].plot(
            *_points(run, "val", place, unit), **look, marker="o", markersize=3.5, linewidth=1.4
        )
        for name, (_, factor) in OTHERS.items():
            curve = run.curves[name]
            panels[name].plot(curve.x[place].tolist(), (curve.y * factor).tolist(), **look, linewidth=0.8)
    panels["loss"].set(ylabel="loss (nats per token)" if unit == "nats" else "loss (bits per byte)")
    for name, (label, _) in OTHERS.items():
        panels[name].set(ylabel=label or f"{mfu_in_words(runs)}, %")
    panels["grad_norm"].set(yscale="log")
    for axes in panels.values():
        _dress(axes, x)
    found = entries(runs)
    _explain(figure, [lines[id(first.log)] for first, _ in found], [entry for _, entry in found])
    picture = io.BytesIO()
    figure.savefig(picture, format="png")
    write_whole(file, picture.getvalue())


def entries(runs: Sequence[Run]) -> list[tuple[Run, str]]:
    """The first run of each group of seeds, and what the legend says of the group."""
    known = {id(run.log): run for run in runs}
    found = []
    for group in groups([run.log for run in runs]):
        first = known[id(group.runs[0])]
        seeds = len({run.run["config"].get("seed") for run in group.runs}) if len(group.runs) > 1 else 0
        found.append((first, f"{group.name} ({seeds} seed{'s' * (seeds > 1)})" if seeds else first.numbers.run))
    return found


def _explain(figure: Any, lines: Sequence[Any], entries: Sequence[str]) -> None:
    """The legend, below the panels: in as many columns as fit, the figure growing with its rows."""
    labels = [textwrap.fill(entry, LONGEST_LINE).replace("$", r"\$") for entry in entries]
    longest = max(len(line) for label in labels for line in label.split("\n"))
    columns = max(1, int((WIDTH - 0.2) / (0.9 + 0.075 * longest)))  # inches of a line's sample, and of a letter
    rows = math.ceil(len(labels) / columns) * max(label.count("\n") + 1 for label in labels)
    figure.set_size_inches(WIDTH, HEIGHT + 0.17 * (rows + 1))
    figure.legend(
        lines, labels, title="validation (marked), training (faint)", loc="outside lower left", ncols=columns,
        fontsize=8, handlelength=5, alignment="left", frameon=False,
    )  # fmt: skip


def _dress(axes: Any, x: At) -> None:
    axes.set(xlabel=AXES[x])
    scale, letter = unit_of(axes.get_xlim()[1])
    if x == "flops":
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:.3g}".replace("e+", "e"))
    else:
        axes.xaxis.set_major_formatter(lambda value, _: f"{value / scale:g}{letter}" if value else "0")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)


def _points(run: Run, split: str, place: str, unit: Unit) -> tuple[list[float], list[float]]:
    curve = run.curves[f"{split}_loss"]
    factor = 1.0 if unit == "nats" else bits_per_byte_factor(run.log, split)
    if factor is None:
        return [], []
    return curve.x[place].tolist(), (curve.y * factor).tolist()
