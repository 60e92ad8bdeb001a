"""The table of the runs: for the terminal, as Markdown, CSV and JSON; and the sentences of the statistics."""

import csv
import dataclasses
import io
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common import files
from common.errors import UserError
from common.texts import csv_cell, markdown_text
from common.units import number, short
from comparison.runs import COLUMNS, Numbers, Run, differing_keys
from comparison.statistics import PLACES, At, Difference, Group, compare_groups, groups

GAP = "  "

# The fields of Numbers that have a column, and what stands over each, in two lines.
FIELDS = {
    "parameters": ("", "params"),
    "flops_per_token": ("FLOPs/tok", "(full)"),
    "tokens": ("", "tokens"),
    "flops": ("FLOPs", "(full)"),
    "best_val_loss": ("best val", "loss"),
    "last_val_loss": ("last val", "loss"),
    "bits_per_byte": ("bits per", "byte"),
    "tokens_per_second": ("", "tokens/s"),
    "mfu": ("MFU", "(full)"),
    "peak_memory": ("peak", "memory"),
    "skipped_steps": ("skipped", "steps"),
    "predicted_loss": ("predicted", "loss"),
    "miss": ("", "miss"),
    "state": ("", "state"),
}
HEADINGS = tuple(FIELDS.values())


def cells(numbers: Numbers) -> list[str]:
    """One for each of HEADINGS, `n/a` where the log does not say."""
    mfu = number(numbers.mfu, ".1%")
    return [
        short(numbers.parameters),
        short(numbers.flops_per_token),
        short(numbers.tokens),
        number(numbers.flops, ".3e" if numbers.flops else "d"),
        number(numbers.best_val_loss, ".4f"),
        number(numbers.last_val_loss, ".4f"),
        number(numbers.bits_per_byte, ".3f"),
        number(numbers.tokens_per_second, ",.0f"),
        mfu if numbers.mfu_convention in (None, "full") else f"{mfu} ({numbers.mfu_convention})",
        "n/a" if numbers.peak_memory is None else f"{numbers.peak_memory / 1e9:.2f} GB",
        number(numbers.skipped_steps, "d"),
        number(numbers.predicted_loss, ".4f"),
        "n/a" if numbers.miss_percent is None else f"{numbers.miss:+.4f} ({numbers.miss_percent:+.1f}%)",
        numbers.state,
    ]


def rows(runs: Sequence[Run]) -> tuple[list[tuple[str, str]], list[list[str]]]:
    """Headings of two lines, and a row a run: its name, its architecture, the keys that differ, and HEADINGS."""
    keys = differing_keys([run.config for run in runs])
    headings = [("", "run"), ("", "architecture"), *(("", key) for key in keys), *HEADINGS]
    body = [
        [
            run.numbers.run,
            run.numbers.architecture or "n/a",
            *(str(run.config.get(key, "n/a")) for key in keys),
            *cells(run.numbers),
        ]
        for run in runs
    ]
    return headings, body


def table(runs: Sequence[Run], width: int | None = None) -> str:
    """One line a run under two lines of headings. Where that is wider than `width` characters, what the run is stands
    in a line of its own above its numbers, and these take as many lines as they need."""
    headings, body = rows(runs)
    texts = len(headings) - len(HEADINGS)
    lines = align([*map(list, zip(*headings, strict=True)), *body], [*range(texts), len(headings) - 1])
    if width is None or max(map(len, lines)) <= width:
        return "\n".join(lines)
    numbers = [list(line) for line in zip(*HEADINGS, strict=True)] + [row[texts:] for row in body]
    parts = [align([row[start:end] for row in numbers], ()) for start, end in _lines_of_columns(numbers, width)]
    folded = [part[line] for part in parts for line in (0, 1)]
    for index, row in enumerate(body):
        keys = [f"{key}={cell}" for (_, key), cell in zip(headings[2:texts], row[2:texts], strict=True)]
        told = GAP.join([row[0], row[1], *keys])
        folded += textwrap.wrap(told, width, subsequent_indent=GAP, break_long_words=False, break_on_hyphens=False)
        folded += [part[2 + index] for part in parts]
    return "\n".join(folded)


def align(lines: Sequence[Sequence[str]], text_columns: Sequence[int]) -> list[str]:
    """Lines in which text columns are aligned to the left and numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return [
        GAP.join(
            cell.ljust(width) if column in text_columns else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]


def _lines_of_columns(lines: Sequence[Sequence[str]], width: int) -> list[tuple[int, int]]:
    """(first, after the last) of the columns that fit side by side."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    starts, used = [0], -len(GAP)
    for column, needed in enumerate(widths):
        used += len(GAP) + needed
        if used > width and column > starts[-1]:
            starts.append(column)
            used = needed
    return list(zip(starts, [*starts[1:], len(widths)], strict=True))


# ---------------------------------------------------------------------------------------------------------------------
# Statistics


def comparisons(runs: Sequence[Run], at: At) -> list[Difference | str]:
    """The first group against each other one; in place of a comparison that cannot be, the reason. A run without
    others of its kind is called by its own name."""
    labels = {id(run.log): run.numbers.run for run in runs}
    found = groups([run.log for run in runs])
    named = [group if group.runs[1:] else dataclasses.replace(group, name=labels[id(group.runs[0])]) for group in found]
    return [_compared(other, named[0], at) for other in named[1:]]


def _compared(a: Group, b: Group, at: At) -> Difference | str:
    try:
        return compare_groups(a, b, at)
    except UserError as error:
        return f"{a.name} against {b.name} at equal {PLACES[at][1]}: not compared, {error}"


def sentence(comparison: Difference | str) -> str:
    return comparison if isinstance(comparison, str) else comparison.text


# ---------------------------------------------------------------------------------------------------------------------
# Files


def write_csv(runs: Sequence[Run], file: Path) -> None:
    """A line a run: every number in full, then the keys that differ as `config.<key>`; empty where not known."""
    keys = differing_keys([run.config for run in runs])
    lines = io.StringIO(newline="")
    writer = csv.writer(lines)
    writer.writerow([*COLUMNS, *(f"config.{key}" for key in keys)])
    for run in runs:
        values = [*dataclasses.astuple(run.numbers), *(run.config.get(key) for key in keys)]
        writer.writerow(map(csv_cell, values))
    files.write_whole(file, lines.getvalue().encode())


def write_json(runs: Sequence[Run], file: Path, more: Sequence[dict[str, Any]], other: dict[str, Any]) -> None:
    """{"runs": the numbers, whole configuration and log file of each and `more`, "comparisons": {at: the differences}},
    and `other`."""
    described = [
        {**dataclasses.asdict(run.numbers), "log": str(run.log.path), "config": run.config, **own}
        for run, own in zip(runs, more, strict=True)
    ]
    compared: dict[str, Any] = {
        at: [
            {"text": found} if isinstance(found, str) else dataclasses.asdict(found) for found in comparisons(runs, at)
        ]
        for at in PLACES
    }
    files.write_json(file, {"runs": described, "comparisons": compared, **other})


def write_markdown(runs: Sequence[Run], file: Path, notes: Sequence[str], at: At) -> None:
    """A table for a pull request, with the notes and comparisons below it."""
    headings, body = rows(runs)
    texts = len(headings) - len(HEADINGS)
    lines = [
        _markdown_row([" ".join(filter(None, heading)) for heading in headings]),
        _markdown_row(["---"] * texts + ["---:"] * (len(HEADINGS) - 1) + ["---"]),
        *map(_markdown_row, body),
    ]
    told = [*map(sentence, comparisons(runs, at)), *notes]
    text = "\n".join(lines) + "\n" + "".join(f"\n{markdown_text(line)}\n" for line in told)
    files.write_whole(file, text.encode())


def _markdown_row(row: Sequence[str]) -> str:
    return "| " + " | ".join(map(markdown_text, row)) + " |"
