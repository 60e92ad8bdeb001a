"""Measured losses to fit a law to, from CSV files and from run folders."""

import csv
import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from common.errors import UserError, did_you_mean
from common.files import open_text, real
from flops_parameter_counting.laws.fitting import Points
from runs.logs import RunLog, read_run

# What a column may be called. Two of N, D and C are enough: the third follows from C = 6 N D.
COLUMNS = {"N": ("N", "params"), "D": ("D", "tokens"), "C": ("C",), "loss": ("loss",)}


@dataclasses.dataclass(frozen=True)
class Measured:
    """Points, where they are from in a few words, and what a reader of the fit should know about them."""

    points: Points
    source: str
    notes: list[str]


def read_points(paths: Sequence[Path], n_meaning: str) -> Measured:
    """The points of every CSV file and run among `paths`, in their order. N of a run is as `n_meaning` says, one of
    scaling_laws.N_MEANINGS; a CSV file's is what it is. Raises UserError for anything that cannot be a point.
    """
    if len({real(path) for path in paths}) < len(paths):
        twice = next(path for index, path in enumerate(paths) if real(path) in map(real, paths[:index]))
        raise UserError(f"{twice} is given twice: its points would count twice")
    rows: list[tuple[float, float, float]] = []
    notes: list[str] = []
    runs: list[RunLog] = []
    for path in paths:
        if path.suffix == ".csv" or (path.is_file() and path.suffix != ".jsonl"):
            read, new_notes = _read_csv(path)
            rows += read
            notes += new_notes
        else:
            log = read_run(path)
            try:
                rows.append(_point_of_run(path, log, n_meaning))
                _check_same_validation([*runs[:1], log])
            except KeyError as error:
                raise UserError(f"{path}: the log's record of the run lacks {error}") from None
            runs.append(log)
    n, d, loss = np.array(rows, dtype=float).T
    files = [path.name for path in paths if path.suffix != ".jsonl" and not path.is_dir()]
    counted = [*files, f"{len(runs)} runs"] if runs else files
    return Measured(Points(n, d, loss), " and ".join(counted), notes)


# ---------------------------------------------------------------------------------------------------------------------
# CSV


def _read_csv(path: Path) -> tuple[list[tuple[float, float, float]], list[str]]:
    """Rows of (N, D, loss), and notes."""
    (_, header), *lines = _lines(path)
    columns = _columns(path, header)
    rows, notes = [], []
    for number, cells in lines:
        if len(cells) != len(header):
            raise UserError(f"{path}, line {number}: {len(cells)} values under {len(header)} column names")
        values = {what: _value(path, number, header[index], cells[index]) for what, index in columns.items()}
        rows.append(_row(values))
        if not all(0 < value < math.inf for value in rows[-1]):
            raise UserError(f"{path}, line {number}: C = 6 N D gives no number above 0 for what is missing")
    derived = {"N": "N is C / (6 D)", "D": "D is C / (6 N)"}
    notes += [f"{path.name}: {rule}, by C = 6 N D" for what, rule in derived.items() if what not in columns]
    if unused := [name for index, name in enumerate(header) if index not in columns.values()]:
        notes.append(f"{path.name}: columns that are not used: {', '.join(unused)}")
    return rows, notes


def _lines(path: Path) -> list[tuple[int, list[str]]]:
    """(number, cells) of every line that is not empty, two at least. Raises UserError."""
    try:
        with open_text(path, newline="") as file:
            reader = csv.reader(file, strict=True)
            lines = [(reader.line_num, [cell.strip() for cell in cells]) for cells in reader if any(cells)]
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} is no CSV file: {error}") from None
    if len(lines) < 2:
        raise UserError(f"{path} holds no points: a line of column names and a line for each point are needed")
    return lines


def _columns(path: Path, header: list[str]) -> dict[str, int]:
    """Where N, D, loss and, in place of one of the first two, C stand. Raises UserError."""
    if twice := [name for name in header if header.count(name) > 1]:
        raise UserError(f"{path}: the column {twice[0]!r} stands there twice")
    found: dict[str, int] = {}
    for what, names in COLUMNS.items():
        present = [name for name in names if name in header]
        if len(present) > 1:
            raise UserError(f"{path}: the columns {' and '.join(present)} both mean {what}: keep one")
        if present:
            found[what] = header.index(present[0])
    if "N" in found and "D" in found:
        found.pop("C", None)
    known = [name for names in COLUMNS.values() for name in names]
    if "loss" not in found or len(found) < 3:
        guesses = (did_you_mean(name, known) for name in header if name not in known)
        raise UserError(
            f"{path}: the columns {', '.join(header)} are not enough: N (or params), D (or tokens) and loss are "
            f"needed, with C in place of N or D{next(filter(None, guesses), '')}"
        )
    return found


def _value(path: Path, line: int, column: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise UserError(f"{path}, line {line}: {column}={text!r} must be a number above 0")
    return value


def _row(values: dict[str, float]) -> tuple[float, float, float]:
    """(N, D, loss), with the missing one of N and D from C = 6 N D."""
    n = values["N"] if "N" in values else values["C"] / 6 / values["D"]
    d = values["D"] if "D" in values else values["C"] / 6 / values["N"]
    return n, d, values["loss"]


# ---------------------------------------------------------------------------------------------------------------------
# Runs


def _point_of_run(path: Path, log: RunLog, n_meaning: str) -> tuple[float, float, float]:
    """(N, training tokens, validation loss at the end). Raises UserError for a run that did not come to its end: its
    learning rate had not decayed, so that its loss is that of no (N, D)."""
    run, step = log.run, log.step
    if not run:
        raise UserError(f"{path}: the log lacks its record of what the run was")
    planned, config = run["steps"], run["config"]
    if log.state != "finished" or step < planned:
        raise UserError(
            f"{path} did not finish ({log.state} at step {step:,} of {planned:,}): finish it or leave it out"
        )
    if config["decay_lr"] and config["lr_schedule"] != "constant" and (config["lr_decay_iters"] or 0) > planned:
        raise UserError(
            f"{path} ended at step {planned:,}, before its learning rate had decayed (lr_decay_iters="
            f"{config['lr_decay_iters']:,}): leave it out"
        )
    if log.final_val_loss is None or log.evals[-1]["step"] < step:
        raise UserError(f"{path} has no finite validation loss at its end: leave it out")
    if log.tokens is None:
        raise UserError(f"{path}: its log does not say how many tokens it trained on: leave it out")
    if log.is_validated_by_name:
        raise UserError(f"{path}: its log has no checksum of its validation data: leave it out")
    padding = (run.get("padding") or {}).get("train", 0.0)  # which teaches nothing
    return float(_parameters(run, n_meaning)), log.tokens * (1 - padding), log.final_val_loss


def _parameters(run: dict[str, Any], meaning: str) -> int:
    """Returns what `scaling_laws.count_parameters` does, for the model that a log describes."""
    found = run["parameters"]
    parts, total, active = found["by_part"], found["total"], found.get("active", found["total"])
    if meaning in ("total", "active"):
        return active
    if meaning == "with_all_experts":
        return total
    blocks = active - sum(parts.get(part, 0) for part in ("embedding", "position", "lm_head"))
    head = run["flops_per_token"]["forward_by_part"]["lm_head"] // 2  # its matrix, tied or not: 2 FLOPs a weight
    return blocks + head if meaning == "non_embedding_with_head" else blocks


def _check_same_validation(runs: list[RunLog]) -> None:
    """Raises UserError where the first and the last were not validated on the same tokens."""
    first, last = runs[0], runs[-1]
    if first.validated_on != last.validated_on:
        raise UserError(
            f"{first.name} and {last.name} were validated on different data ({first.dataset_name} and "
            f"{last.dataset_name}): their losses do not compare"
        )
