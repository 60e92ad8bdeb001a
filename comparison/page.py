"""The runs on one page: a single HTML file that opens from disk and loads nothing from the network."""

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from common.errors import UserError
from common.files import write_whole
from comparison.curves import Array, Curve, evenly, smooth, thin
from comparison.looks import looks
from comparison.plotting_library import plotting_library
from comparison.runs import (
    Run,
    bits_per_byte_factor,
    comparable_unit,
    describe_all,
    differing_keys,
    mfu_in_words,
    notes,
)
from comparison.statistics import PLACES, groups
from comparison.table import FIELDS, comparisons, rows, sentence
from runs.logs import RunLog

FOLDER = Path(__file__).parent
SMOOTHINGS = {"light": 0.005, "medium": 0.02, "strong": 0.05}  # in which share of the longest run a weight falls to 1/e
BUCKETS, FEWEST_BUCKETS, MOST_BUCKETS = 12_000, 240, 1_500  # of the training losses: of all runs, of one
SMOOTH_POINTS = 150
AXES = (*PLACES.values(), ("wall", "wall-clock time"))  # of runs.logs.POSITIONS, and in words


@dataclass(frozen=True)
class Section:
    """What a tool adds to the page: text, a table and a plotly figure, {"data": [...], "layout": {...}}."""

    heading: str
    paragraphs: Sequence[str] = ()
    headings: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()
    figure: dict[str, Any] | None = None
    lines: Sequence[str] = ()  # of a fixed pitch, as a terminal shows them


def write_page(runs: Sequence[RunLog], file: Path, title: str, sections: Sequence[Section] = ()) -> None:
    """The page of these runs, the sections first. Raises UserError when it cannot be written."""
    write_page_of(describe_all(runs), file, title, sections)


def write_page_of(runs: Sequence[Run], file: Path, title: str, sections: Sequence[Section] = ()) -> None:
    """Does what `write_page` does, for runs that are described already."""
    write_whole(file, page(runs, title, sections).encode())


def page(runs: Sequence[Run], title: str, sections: Sequence[Section]) -> str:
    try:
        unit, refusal = str(comparable_unit([run.log for run in runs])), ""
    except UserError as error:
        unit, refusal = "", paragraph(f"{error}. Their losses are not drawn together.", "note")
    units = [unit] if unit else []
    if unit == "nats" and all(bits_per_byte_factor(run.log, "val") is not None for run in runs):
        units.append("bits per byte")
    figures = [section.figure for section in sections if section.figure is not None]
    kinds = {trace.get("type", "scatter") for figure in figures for trace in figure["data"]}
    embedded = {"unit": unit or None, "mfu": mfu_in_words(runs), "runs": drawn(runs), "figures": figures}
    return Template((FOLDER / "page.html").read_text()).substitute(
        title=escape(title),
        css=(FOLDER / "page.css").read_text(),
        notes="\n".join(paragraph(note, "note") for note in notes([run.log for run in runs])),
        sections=sections_as_html(sections),
        places="".join(option(place, words, chosen=place == "tokens") for place, words in AXES),
        smoothings=option("-1", "none") + "".join(option(str(i), name) for i, name in enumerate(SMOOTHINGS)),
        units="".join(option(name, {"nats": "nats per token"}.get(name, name)) for name in units),
        no_losses=refusal,
        table=numbers_as_html(runs),
        differences=differences_as_html(runs),
        statistics=statistics_as_html(runs),
        environment=environment_as_html(runs),
        data=as_script(embedded),
        plotly=plotting_library(all_kinds=not kinds <= {"scatter"}),
        script=(FOLDER / "page.js").read_text(),
    )


# ---------------------------------------------------------------------------------------------------------------------
# What is drawn


def drawn(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """The curves of every run, thinned so that the page of fifty long runs is still small."""
    buckets = min(max(BUCKETS // max(len(runs), 1), FEWEST_BUCKETS), MOST_BUCKETS)
    longest = max((run.numbers.steps for run in runs), default=0) or 1
    return [
        {
            "name": run.numbers.run,
            "color": color,
            "dashes": dashes,
            "bits_per_byte": {split: bits_per_byte_factor(run.log, split) for split in ("train", "val")},
            "curves": {
                name: columns(thin(curve, buckets if name == "train_loss" else buckets // 2))
                for name, curve in run.curves.items()
            },
            "smooth": smoothed(run.curves["train_loss"], longest),
        }
        for run, (color, dashes) in zip(runs, looks([run.log for run in runs]), strict=True)
    ]


def smoothed(curve: Curve, longest: int) -> dict[str, Any]:
    """The smoothed training loss by each of SMOOTHINGS, computed from every logged step, not from those drawn."""
    means = [evenly(smooth(curve, share * longest), SMOOTH_POINTS) for share in SMOOTHINGS.values()]
    return {**columns(means[0]), "means": [rounded(mean.y, 5) for mean in means]}


def columns(curve: Curve) -> dict[str, list[float | None]]:
    return {**{name: rounded(values, 7) for name, values in curve.x.items()}, "y": rounded(curve.y, 5)}


def rounded(values: Array, digits: int) -> list[float | None]:
    """To so many significant digits, which no eye sees and which make the file small."""
    short = (float(f"{value:.{digits}g}") if math.isfinite(value) else None for value in values.tolist())
    return [int(value) if value is not None and value.is_integer() and value < 1e16 else value for value in short]


def as_script(value: Any) -> str:
    """JSON that no text in it, such as a run of the name `</script>`, can break out of."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")


# ---------------------------------------------------------------------------------------------------------------------
# What is written


def sections_as_html(sections: Sequence[Section]) -> str:
    written, figures = [], 0
    for section in sections:
        parts = [f"<h2>{escape(section.heading)}</h2>", *map(paragraph, section.paragraphs)]
        if section.lines:
            text = escape("\n".join(section.lines))
            parts.append(scrolling(f"<pre>{text}</pre>", section.heading))
        if section.figure is not None:
            label = escape(section.heading, quote=True)
            parts.append(f'<div class="chart" data-figure="{figures}" role="img" aria-label="{label}"></div>')
            figures += 1
        if section.rows:
            parts.append(table_as_html(section.headings, section.rows, section.heading))
        written.append("<section>\n" + "\n".join(parts) + "\n</section>")
    return "\n".join(written)


def numbers_as_html(runs: Sequence[Run]) -> str:
    headings, body = rows(runs)
    texts = len(headings) - len(FIELDS)
    numeric = [texts <= column < len(headings) - 1 for column in range(len(headings))]
    kinds = ["number" if is_number else "key" * (2 <= column < texts) for column, is_number in enumerate(numeric)]
    head = "".join(
        f'<th scope="col" class="{kind}"><button type="button">{escape(" ".join(filter(None, heading)))}</button></th>'
        for heading, kind in zip(headings, kinds, strict=True)
    )
    lines = []
    for run, row in zip(runs, body, strict=True):
        values = [*row[:texts], *(getattr(run.numbers, name) for name in FIELDS)]
        cells = (
            f'<td class="{kind}" data-value="{"" if value is None else escape(str(value))}">{escape(cell)}</td>'
            for cell, value, kind in zip(row, values, kinds, strict=True)
        )
        lines.append(f"<tr>{''.join(cells)}</tr>")
    table = f'<table id="table"><thead><tr>{head}</tr></thead><tbody>{"".join(lines)}</tbody></table>'
    return scrolling(table, "Numbers")


def differences_as_html(runs: Sequence[Run]) -> str:
    keys = differing_keys([run.config for run in runs])
    if not keys:
        return paragraph("The configurations are the same, but for keys that only name a run.")
    body = [[run.numbers.run, *(str(run.config.get(key, "n/a")) for key in keys)] for run in runs]
    return table_as_html(["run", *keys], body, "Differences in configuration")


def statistics_as_html(runs: Sequence[Run]) -> str:
    found = groups([run.log for run in runs])
    parts = [
        paragraph(
            "Runs that differ only by their seed are a group. Each group is compared with the first one, at the latest "
            "place that all runs of both reached. Every interval stands alone: of twenty such intervals, one misses."
        ),
        listed(f"{group.name}: {', '.join(run.name for run in group.runs)}" for group in found),
    ]
    if len(found) == 1:
        return "\n".join([*parts, paragraph("All runs are of one group: there is nothing to compare.")])
    for at, (_, words) in PLACES.items():
        parts += [f"<h3>At equal {words}</h3>", listed(map(sentence, comparisons(runs, at)))]
    return "\n".join(parts)


ENVIRONMENT = (
    ("device", ("hardware", "device_name")),
    ("ranks", ("hardware", "ranks")),
    ("threads a rank", ("hardware", "threads_per_rank")),
    ("host", ("hardware", "host")),
    ("system", ("hardware", "system")),
    ("peak FLOP/s of a device", ("hardware", "peak_flops_per_second_per_device")),
    ("source of the peak", ("hardware", "peak_source")),
    ("memory", ("hardware", "memory")),
    ("dtype", ("dtype",)),
    ("compiled", ("compile",)),
    ("Python", ("versions", "python")),
    ("PyTorch", ("versions", "torch")),
    ("commit", ("git", "commit")),
    ("changed", ("git", "changed")),
)


def environment_as_html(runs: Sequence[Run]) -> str:
    body = [[run.numbers.run, *(stated(run, path) for _, path in ENVIRONMENT)] for run in runs]
    commands = [[run.numbers.run, str(run.log.path), stated(run, ("command",))] for run in runs]
    return "\n".join(
        (
            table_as_html(["run", *(heading for heading, _ in ENVIRONMENT)], body, "Environment"),
            "<h3>Commands</h3>",
            table_as_html(["run", "log", "command"], commands, "Commands"),
        )
    )


def stated(run: Run, path: Sequence[str]) -> str:
    """A field of the `run` record in words, `n/a` where it is not there."""
    found: Any = run.log.run
    for name in path:
        found = found.get(name) if isinstance(found, dict) else None
    if found is None:
        return "n/a"
    if isinstance(found, bool):
        return "yes" if found else "no"
    if isinstance(found, list):
        return " ".join(map(str, found))
    return f"{found:.3e}" if isinstance(found, float) else str(found)


def table_as_html(headings: Sequence[str], body: Sequence[Sequence[str]], label: str) -> str:
    head = "".join(f'<th scope="col">{escape(heading)}</th>' for heading in headings)
    lines = "".join(
        "<tr>" + "".join(f"<td{' class=long' * (len(cell) > 60)}>{escape(cell)}</td>" for cell in row) + "</tr>"
        for row in body
    )
    return scrolling(f"<table><thead><tr>{head}</tr></thead><tbody>{lines}</tbody></table>", label)


def scrolling(table: str, label: str) -> str:
    """A table that a keyboard can scroll where it is wider than the screen."""
    return f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(label, quote=True)}">{table}</div>'


def paragraph(text: str, kind: str = "") -> str:
    return f'<p class="{kind}">{escape(text)}</p>' if kind else f"<p>{escape(text)}</p>"


def listed(texts: Iterable[str]) -> str:
    return "<ul>" + "".join(f"<li>{escape(text)}</li>" for text in texts) + "</ul>"


def option(value: str, words: str, chosen: bool = False) -> str:
    return f'<option value="{escape(value, quote=True)}"{" selected" * chosen}>{escape(words)}</option>'
