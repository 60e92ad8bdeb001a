"""Runs side by side: a table of what they are, what they cost and how good they became; statistics, plots and a page.

python compare_architectures.py --latest 3
python compare_architectures.py out/quickstart out/wider --report report.html --png loss.png
python compare_architectures.py "out/seed*" --filter "n_layer>4" --sort best_val_loss
"""

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common.errors import ArgumentParser, UserError, exit_cleanly
from common.output import terminal_width, wrapped
from comparison.benchmarks import Benchmarked
from comparison.downstream import downstream
from comparison.page import write_page_of
from comparison.pictures import write_plots
from comparison.runs import NoCommonMetric, Run, comparable_unit, describe, labels, matching, notes, sort, trained_on
from comparison.statistics import PLACES
from comparison.table import comparisons, sentence, table, write_csv, write_json, write_markdown
from runs.logs import RunLog, find_runs, log_file, read_run

DEFAULT_LATEST = 3
DEFAULT_SECONDS = 10
CLEAR = "\x1b[H\x1b[2J"


@exit_cleanly
def main() -> None:
    arguments = parse_arguments()
    if arguments.watch is None:
        runs = show(arguments)
        comparable_unit([run.log for run in runs if run.numbers.best_val_loss is not None])  # an error, last of all
        return
    try:
        while any(run.numbers.state == "running" for run in show(arguments, clear=sys.stdout.isatty())):
            time.sleep(arguments.watch)
    except KeyboardInterrupt:
        print("no longer watching; the runs go on")


def parse_arguments() -> argparse.Namespace:
    parser = ArgumentParser(__doc__)
    parser.add_argument(
        "run", nargs="*", type=Path, metavar="RUN",
        help="a run's folder such as out/quickstart, a log file, or a pattern in quotes such as 'out/seed*'",
    )  # fmt: skip
    parser.add_argument(
        "--latest", type=int, metavar="N",
        help=f"the N newest runs of out/*/ and out*/ instead (default without a RUN: {DEFAULT_LATEST})",
    )  # fmt: skip
    parser.add_argument("--dataset", metavar="NAMES", help="keep the runs on these, with commas between them")
    parser.add_argument("--sort", metavar="COLUMN", help="by a column or a configuration key; -COLUMN: highest first")
    parser.add_argument("--reverse", action="store_true", help="sort the highest first")
    parser.add_argument(
        "--filter", action="append", default=[], metavar="CONDITION",
        help="keep the runs for which it holds, such as 'n_layer>4' or arch_preset=llama; may be repeated",
    )  # fmt: skip
    parser.add_argument(
        "--x", choices=tuple(PLACES), default="tokens", help="what the curves are drawn over and the runs compared at"
    )
    parser.add_argument(
        "--benchmarks", type=lambda text: text.split(","), nargs="?", const=[], metavar="TASKS",
        help="what a loss means for these benchmarks (all): a fit over the runs, and which tasks decide anything",
    )  # fmt: skip
    parser.add_argument("--report", type=Path, metavar="FILE", help="write one HTML page with everything")
    parser.add_argument("--png", type=Path, metavar="FILE", help="write the main plots, for a paper, to this file")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write the numbers as CSV")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers and the statistics as JSON")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the table for a pull request")
    parser.add_argument(
        "--watch", type=float, nargs="?", const=DEFAULT_SECONDS, metavar="SECONDS",
        help=f"again every so many seconds (default: {DEFAULT_SECONDS}), until no run goes on",
    )  # fmt: skip
    arguments = parser.parse_args(_with_sign(sys.argv[1:]))
    if arguments.watch is not None and not 0 < arguments.watch < float("inf"):
        raise UserError(f"--watch={arguments.watch:g} must be a number of seconds above 0")
    if arguments.reverse and arguments.sort is None:
        raise UserError("--reverse is for --sort: name the column")
    return arguments


def show(arguments: argparse.Namespace, clear: bool = False) -> list[Run]:
    """Print the table and write the files."""
    runs = choose_runs(arguments.run, arguments.latest)
    if arguments.dataset is not None:
        runs = trained_on(runs, arguments.dataset.split(","))
    for condition in arguments.filter:
        runs = matching(runs, condition)
    if arguments.sort is not None:
        column = arguments.sort.removeprefix("-")
        runs = sort(runs, column, descending=arguments.reverse or column != arguments.sort)
    told = notes([run.log for run in runs])
    width = terminal_width()
    print(CLEAR * clear + table(runs, width))
    for line in (*map(sentence, comparisons(runs, arguments.x)), *told):
        print(wrapped(line, width))
    benchmarked = Benchmarked.of(runs)
    print("".join(f"{line}\n" for line in benchmarked.lines()), end="")
    of_losses: dict[str, Any] = {}
    if arguments.benchmarks is not None:
        lines, of_losses = downstream(benchmarked, arguments.benchmarks)
        print("\n".join(wrapped(line, width) for line in lines))
    write_files(runs, arguments, told, benchmarked, of_losses)
    sys.stdout.flush()
    return runs


def write_files(
    runs: Sequence[Run],
    arguments: argparse.Namespace,
    told: Sequence[str],
    benchmarked: Benchmarked,
    of_losses: dict[str, Any],
) -> None:
    if arguments.csv is not None:
        write_csv(runs, arguments.csv)
        print(f"numbers: {arguments.csv}")
    if arguments.json is not None:
        more = [{"benchmarks": own} for own in benchmarked.as_json()]
        write_json(runs, arguments.json, more, {"from_loss_to_benchmark": of_losses} if of_losses else {})
        print(f"numbers and statistics: {arguments.json}")
    if arguments.markdown is not None:
        write_markdown(runs, arguments.markdown, told, arguments.x)
        print(f"table: {arguments.markdown}")
    if arguments.report is not None:
        write_page_of(runs, arguments.report, "Runs side by side", benchmarked.sections())
        print(f"report: {arguments.report}")
    if arguments.png is not None:
        try:
            write_plots(runs, arguments.png, arguments.x)
            print(f"plots: {arguments.png}")
        except NoCommonMetric as error:  # ends the command, but after everything else was written
            if arguments.watch is None:
                raise
            print(f"no plots: {error}")


def choose_runs(paths: Sequence[Path], latest: int | None) -> list[Run]:
    """The runs that were named, or the newest ones. Raises UserError when there are none."""
    if paths and latest is not None:
        raise UserError("give either runs or --latest, not both")
    if latest is not None and latest < 1:
        raise UserError(f"--latest={latest} must be at least 1")
    if paths:
        paths = [found for path in paths for found in expanded(path)]
    else:
        paths = find_runs(".", DEFAULT_LATEST if latest is None else latest)
        if not paths:
            raise UserError(f"no run under {Path.cwd() / 'out'}: train one (make quickstart), or name a run's folder")
    once: dict[str, Path] = {}  # a run may be named by its folder and by its log
    for path in paths:
        once.setdefault(os.path.realpath(log_file(path)), path)
    paths = list(once.values())
    names = labels([RunLog(log_file(path)) for path in paths])
    for name in (*map(str, paths), *names):
        check_name(name)
    return [describe(read_run(path), name) for path, name in zip(paths, names, strict=True)]


def expanded(path: Path) -> list[Path]:
    """What a pattern stands for: run folders and logs of either layout, in order; a path as it is."""
    try:
        if path.exists() or not set("*?[") & set(str(path)):
            return [path]
        matches = sorted(Path(path.anchor).glob(str(path.relative_to(path.anchor))))
        found = [match for match in matches if is_run(match)]
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    except ValueError as error:  # of the glob
        raise UserError(f"there is no run {path}: {error}") from None
    if not found:
        raise UserError(f"there is no run {path}: the pattern matches no run's folder and no log")
    return found


def is_run(path: Path) -> bool:
    """Whether a pattern means this: pages, pictures and tables of runs often lie beside the runs."""
    if not path.is_file():
        return (path / "log.jsonl").exists()
    return path.suffix == ".jsonl" or (path.suffix == ".json" and b'"training_iterations"' in path.read_bytes())


def check_name(name: str) -> None:
    """Raises UserError for one that could not be printed: a file may have any bytes as its name."""
    try:
        name.encode()
    except UnicodeEncodeError:
        raise UserError(f"the run {name!a} has a name that is not UTF-8: rename it") from None


def _with_sign(arguments: Sequence[str]) -> list[str]:
    """`--sort -COLUMN` as `--sort=-COLUMN`, which argparse would take for an option."""
    joined: list[str] = []
    for argument in arguments:
        if joined[-1:] == ["--sort"]:
            joined[-1] = f"--sort={argument}"
        else:
            joined.append(argument)
    return joined


if __name__ == "__main__":
    main()
