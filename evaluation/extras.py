"""What an evaluation can have besides figures: lines for people, values for a file, and a panel of a picture."""

import dataclasses
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from common.files import write_whole

PANEL = (6.5, 4.5)  # inches


@dataclasses.dataclass(frozen=True)
class Extra:
    """`values` can be written as JSON; `draws` are panels, each given matplotlib's axes."""

    name: str
    lines: list[str]
    values: Any
    draws: tuple[Callable[[Any], None], ...] = ()


def write_picture(file: Path, extras: Sequence[Extra]) -> None:
    """A PNG with the panels of all, side by side. Raises UserError where it cannot be written."""
    from matplotlib.figure import Figure  # half a second, and only a picture needs it

    draws = [draw for extra in extras for draw in extra.draws]
    figure = Figure(figsize=(PANEL[0] * len(draws), PANEL[1]), dpi=150, layout="constrained")
    for axes, draw in zip(figure.subplots(1, len(draws), squeeze=False)[0], draws, strict=True):
        draw(axes)
        axes.spines[["top", "right"]].set_visible(False)
    picture = io.BytesIO()
    figure.savefig(picture, format="png")
    write_whole(file, picture.getvalue())


def grid_lines(title: str, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A table whose columns are aligned to the right, under its title."""
    table = [heads, *rows]
    widths = [max(len(row[column]) for row in table) for column in range(len(heads))]
    return [title, *("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in table)]
