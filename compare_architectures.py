"""Runs side by side: a table of what they are, what they cost and how good they became; and their loss curves.

python compare_architectures.py --latest 3
python compare_architectures.py out/quickstart out/wider --png loss.png
"""

import argparse
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from errors import ArgumentParser, UserError, exit_cleanly
from run_logs import RunLog, find_runs, read_run

DEFAULT_LATEST = 3

# Over each column, in two lines. The first two columns are text, as is the last.
HEADINGS = (
    ("", "run"),
    ("", "architecture"),
    ("", "params"),
    ("FLOPs/tok", "(full)"),
    ("", "tokens"),
    ("best val", "loss"),
    ("bits per", "byte"),
    ("", "tokens/s"),
    ("MFU", "(full)"),
    ("", "state"),
)
TEXT_COLUMNS = (0, 1, 9)
GAP = "  "


@exit_cleanly
def main() -> None:
    arguments = parse_arguments()
    runs = choose_runs(arguments.run, arguments.latest)
    print(table(runs, width=terminal_width()))
    for note in notes(runs):
        print(note)
    if arguments.png is not None:
        write_loss_curves(runs, arguments.png, arguments.x)
        print(f"loss curves: {arguments.png}")


def parse_arguments() -> argparse.Namespace:
    parser = ArgumentParser(__doc__)
    parser.add_argument("run", nargs="*", type=Path, metavar="RUN", help="a run's folder, such as out/quickstart")
    parser.add_argument(
        "--latest", type=int, metavar="N",
        help=f"the N newest runs of out/*/ and out*/ instead (default without a RUN: {DEFAULT_LATEST})",
    )  # fmt: skip
    parser.add_argument("--png", type=Path, metavar="FILE", help="write the loss curves to this file")
    parser.add_argument("--x", choices=("tokens", "steps"), default="tokens", help="what the curves are drawn over")
    return parser.parse_args()


def choose_runs(paths: Sequence[Path], latest: int | None) -> list[RunLog]:
    """The runs that were named, or the newest ones. Raises UserError when there are none."""
    if paths and latest is not None:
        raise UserError("give either runs or --latest, not both")
    if latest is not None and latest < 1:
        raise UserError(f"--latest={latest} must be at least 1")
    if not paths:
        paths = find_runs(".", DEFAULT_LATEST if latest is None else latest)
        if not paths:
            raise UserError(f"no run under {Path.cwd() / 'out'}: train one (make quickstart), or name a run's folder")
    return [read_run(path) for path in paths]


# ---------------------------------------------------------------------------------------------------------------------
# The table


def table(runs: Sequence[RunLog], width: int | None = None) -> str:
    """One line a run under two lines of headings. Where that is wider than `width` characters, the run's name and
    its architecture stand in a line of their own above the numbers."""
    headings = [list(line) for line in zip(*HEADINGS, strict=True)]
    rows = [table_row(name, run) for name, run in zip(labels(runs), runs, strict=True)]
    lines = align(headings + rows, TEXT_COLUMNS)
    if width is None or max(map(len, lines)) <= width:
        return "\n".join(lines)
    narrow = align([line[2:] for line in headings + rows], [column - 2 for column in TEXT_COLUMNS])
    folded = narrow[: len(headings)]
    for row, numbers in zip(rows, narrow[len(headings) :], strict=True):
        folded += [f"{row[0]}{GAP}{row[1]}", numbers]
    return "\n".join(folded)


def table_row(name: str, run: RunLog) -> list[str]:
    """The cells of one run, `n/a` where the log does not say."""
    throughput = run.throughput
    return [
        name,
        run.run.get("architecture", "n/a"),
        short(run.run.get("parameters", {}).get("total")),
        short(run.run.get("flops_per_token", {}).get("full")),
        short(run.tokens),
        number(run.best_val_loss, ".4f"),
        number(run.best_val_bits_per_byte, ".3f"),
        number(throughput.tokens_per_second if throughput else None, ",.0f"),
        number(throughput.mfu["full"] if throughput else None, ".1%"),
        run.state,
    ]


def labels(runs: Sequence[RunLog]) -> list[str]:
    """The runs' names; where two are the same, the paths of their folders."""
    names = [run.name for run in runs]
    return [str(run.path.parent) if names.count(run.name) > 1 else run.name for run in runs]


def align(rows: Sequence[Sequence[str]], text_columns: Sequence[int]) -> list[str]:
    """Lines in which text columns are aligned to the left and numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        GAP.join(
            cell.ljust(width) if column in text_columns else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def number(value: float | None, form: str) -> str:
    return "n/a" if value is None else format(value, form)


def short(count: int | None) -> str:
    """Four digits and a unit, such as `124.4M`; numbers below 1,000 as they are."""
    if count is None:
        return "n/a"
    scale, unit = unit_of(count)
    return f"{count / scale:#.4g}{unit}" if unit else str(count)


def unit_of(count: float) -> tuple[int, str]:
    """(1,000,000, `M`) for 1.5e6. What rounds to 1,000 of a unit in four digits is 1 of the next."""
    units = ((10**12, "T"), (10**9, "B"), (10**6, "M"), (10**3, "K"))
    return next(((scale, unit) for scale, unit in units if count >= 0.99995 * scale), (1, ""))


def notes(runs: Sequence[RunLog]) -> list[str]:
    """What the reader of the table must know before comparing its losses."""
    datasets = {dataset_key(run): run.run.get("dataset", {}).get("name", "unknown") for run in runs}
    if len(datasets) <= 1:
        return []
    names = sorted(set(datasets.values()))
    which = ", ".join(names) if len(names) > 1 else f"versions of {names[0]}"
    return [f"note: the validation data differ ({which}): losses do not compare, bits per byte only on the same text"]


def dataset_key(run: RunLog) -> tuple[Any, ...]:
    """What is equal for two runs exactly when they were validated on the same tokens."""
    dataset = run.run.get("dataset", {})
    return (dataset.get("vocab_size"), dataset.get("splits", {}).get("val", {}).get("checksum"))


def terminal_width() -> int | None:
    """In characters; None where the output goes to a file or another program."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


# ---------------------------------------------------------------------------------------------------------------------
# The picture


def write_loss_curves(runs: Sequence[RunLog], file: Path, x: str = "tokens") -> None:
    """A PNG: each run's training loss, faint, and its validation loss with a mark at each evaluation.

    `x` is `tokens` or `steps`. Raises UserError when the file cannot be written.
    """
    from matplotlib.figure import Figure  # half a second, and only this function needs it

    key = "tokens" if x == "tokens" else "step"
    figure = Figure(figsize=(8, 5), dpi=150, layout="constrained")
    axes = figure.subplots()
    for index, (name, run) in enumerate(zip(labels(runs), runs, strict=True)):
        color = f"C{index % 10}"
        axes.plot(*columns(run.train_losses(key)), color=color, alpha=0.35, linewidth=0.8)
        axes.plot(*columns(run.val_losses(key)), color=color, marker="o", markersize=3.5, linewidth=1.4, label=name)
    axes.set(xlabel="training tokens" if x == "tokens" else "optimizer steps", ylabel="loss (nats per token)")
    scale, unit = unit_of(axes.get_xlim()[1])
    axes.xaxis.set_major_formatter(lambda value, _: f"{value / scale:g}{unit}" if value else "0")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    axes.legend(title="validation (marked), training (faint)", alignment="left", frameon=False)
    try:
        figure.savefig(file, format="png")
    except OSError as error:
        raise UserError(f"cannot write {file}: {error.strerror}") from None


def columns(points: Sequence[tuple[int, float]]) -> tuple[list[int], list[float]]:
    return [x for x, _ in points], [y for _, y in points]


if __name__ == "__main__":
    main()
