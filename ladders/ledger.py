"""The prediction ledger: what was said of each run before it started, and what came.

`ledger.jsonl` is only ever appended, one JSON object a line:

    {"type": "prediction", "time", "run", "config", "learning_rate", "law", "loss", "loss_95", "flops", "seconds",
     "why"}                                                                            before each run starts
    {"type": "learning_rate", "time", "arch", "learning_rate", "factor", "losses"}     what a sweep found
    {"type": "law", "time", "law", "draws", "points", "why"}                           fitted to the smaller budgets

`time` is in seconds since 1970, `config` the hash of the run's config file, `law` a law file's content or null, `loss`
in nats per token or null, with `why` there is none, in words; `loss_95` holds the middle 95 % of the law's draws. No
torch.
"""

import dataclasses
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common.errors import UserError
from common.files import open_file
from common.texts import all_harmless, markdown_text
from ladders.configs import check_config
from ladders.plan import Folder, Plan, Run
from runs.logs import RunLog, fits, read_run

Record = dict[str, Any]


def append(ledger: Path, record: Record) -> Record:
    """Write a record that is on the disk before anything that follows from it happens."""
    line = json.dumps({"type": record["type"], "time": round(time.time(), 3), **record}, allow_nan=False)
    try:
        with ledger.open("ab") as file:
            file.write(("\n" * _ends_in_the_middle(ledger) + line + "\n").encode())
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise UserError(f"cannot write {ledger}: {error.strerror}") from None
    return json.loads(line)


def _ends_in_the_middle(ledger: Path) -> bool:
    """Whether a kill cut its last line."""
    content = ledger.read_bytes()
    return bool(content) and not content.endswith(b"\n")


def read(ledger: Path) -> list[Record]:
    """Every whole record, in the order in which they were written. Raises UserError where there is no ledger."""
    try:
        with open_file(ledger) as file:
            lines = file.read().splitlines()
    except OSError as error:
        raise UserError(f"cannot read {ledger}: {error.strerror}") from None
    records = []
    for line in lines:
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if _is_whole(record):
            records.append(dict.fromkeys(_SAID.get(record["type"], ())) | all_harmless(record))
    return records


# What the readers take a field for, where it is there and not null.
_SHAPE: dict[str, Any] = {
    **dict.fromkeys(("time", "loss", "flops", "seconds", "learning_rate", "factor"), float),
    **dict.fromkeys(("run", "config", "arch", "why"), str),
    "law": dict,
}
_NEEDED = {"prediction": ("run",), "learning_rate": ("arch", "factor")}
_SAID = {"prediction": ("config", "learning_rate", "law", "loss", "flops", "seconds"), "law": ("law", "draws", "why")}


def _is_whole(record: Any) -> bool:
    """Whether it is a record as `append` writes them."""
    if not isinstance(record, dict) or record.get("time") is None or not isinstance(record.get("type"), str):
        return False
    needed = _NEEDED.get(record["type"], ())
    return all(record.get(name) is not None for name in needed) and fits(record, _SHAPE)


def predictions(records: Sequence[Record]) -> dict[str, Record]:
    """By run. The first counts: a later one could have been made after the run."""
    found: dict[str, Record] = {}
    for record in records:
        if record["type"] == "prediction":
            found.setdefault(record["run"], record)
    return found


def of_type(records: Sequence[Record], kind: str) -> list[Record]:
    return [record for record in records if record["type"] == kind]


# ---------------------------------------------------------------------------------------------------------------------
# What came


@dataclasses.dataclass(frozen=True)
class Entry:
    """A run, what was predicted of it, and what came of it: None where it is not known (yet). Errors are actual minus
    predicted."""

    run: Run
    prediction: Record | None
    log: RunLog | None
    started: float | None  # seconds since 1970

    @property
    def is_finished(self) -> bool:
        return self.log is not None and self.log.state == "finished" and self.log.step >= self.run.steps

    @property
    def is_settled(self) -> bool:
        """Finished; or of the sweep, and stopped by itself: at this learning rate it does not train."""
        return self.is_finished or (self.run.is_sweep and self.log is not None and self.log.state == "stopped")

    @property
    def state(self) -> str:
        if self.log is None:
            return "not started"
        return "finished" if self.is_finished else f"{self.log.state} at step {self.log.step:,} of {self.run.steps:,}"

    @property
    def loss(self) -> float | None:
        """The last validation loss of a finished run, in nats per token."""
        return self.log.final_val_loss if self.log is not None and self.is_finished else None

    @property
    def flops(self) -> int | None:
        """Spent by a finished run, full attention."""
        return self._summary("flops", "full")

    @property
    def seconds(self) -> float | None:
        """In training steps, of a finished run."""
        return self._summary("train_seconds")

    def _summary(self, *path: str) -> Any:
        value: Any = self.log.summary if self.log is not None and self.is_finished else None
        for name in path:
            value = None if value is None else value[name]
        return value

    def predicted(self, what: str) -> float | None:
        return None if self.prediction is None else self.prediction[what]

    def miss(self, what: str) -> float | None:
        predicted, actual = self.predicted(what), getattr(self, what)
        return None if predicted is None or actual is None else actual - predicted

    @property
    def proof(self) -> str:
        """`before` the run's first record; else what is wrong with the order, in words."""
        if self.prediction is None:
            return "no prediction"
        if self.started is None:
            return "not started"
        if self.prediction["time"] > self.started:
            return "AFTER THE START"
        if self.log is None or not self.log.run:
            return "not known"
        carried = self.log.run.get("prediction") or {}
        if any(not _same(carried.get(what), self.prediction[what]) for what in ("loss", "flops", "seconds")):
            return "THE RUN CARRIED ANOTHER"
        return "before"


def _same(carried: float | None, predicted: float | None) -> bool:
    """A config states five decimals of a loss, and six digits of a time."""
    if carried is None or predicted is None:
        return carried is predicted
    return abs(carried - predicted) <= 1e-5 * max(1, abs(predicted))


def entries(plan: Plan, folder: Folder) -> list[Entry]:
    """An entry for every run of the plan, in its order. Raises UserError for a config that is not as it was planned."""
    said = predictions(read(folder.ledger))
    for run in plan.runs:
        if run.name in said and folder.config(run).exists():
            check_config(folder.config(run), said[run.name]["config"])
    found = []
    for run in plan.runs:
        log = _log(folder.run(run) / "log.jsonl")
        found.append(Entry(run, said.get(run.name), log, None if log is None else _first_time(log.path)))
    return found


def _log(path: Path) -> RunLog | None:
    """None for a run that has written no whole record yet."""
    try:
        return read_run(path) if path.exists() else None
    except UserError:
        return None


def _first_time(path: Path) -> float | None:
    """When the run wrote its first whole record, whichever process of it that was."""
    with path.open("rb") as lines:
        for line in lines:
            try:
                return float(json.loads(line)["time"])
            except (ValueError, TypeError, KeyError, RecursionError):
                continue
    return None


# ---------------------------------------------------------------------------------------------------------------------
# As a table

HEADINGS = (
    "run", "parameters", "predicted loss", "loss", "error", "FLOPs predicted", "FLOPs", "error",
    "seconds predicted", "seconds", "error", "predicted", "state",
)  # fmt: skip


def rows(found: Sequence[Entry]) -> list[list[str]]:
    """The ledger's lines under HEADINGS; an error is of the predicted value."""
    return [
        [
            entry.run.name,
            f"{entry.run.n_params:,}",
            *_three(entry, "loss", ".4f"),
            *_three(entry, "flops", ".4e"),
            *_three(entry, "seconds", ",.1f"),
            entry.proof,
            entry.state,
        ]
        for entry in found
    ]


def _three(entry: Entry, what: str, form: str) -> list[str]:
    predicted, actual, miss = entry.predicted(what), getattr(entry, what), entry.miss(what)
    share = "" if miss is None or not predicted else f"{miss / predicted:+.2%}"
    return ["" if predicted is None else f"{predicted:{form}}", "" if actual is None else f"{actual:{form}}", share]


def as_text(headings: Sequence[str], lines: Sequence[Sequence[str]], gap: str = "  ") -> str:
    """Columns aligned, the first and the last two to the left."""
    table = [list(headings), *lines]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    left = {0, len(widths) - 2, len(widths) - 1}
    return "\n".join(
        gap.join(
            cell.ljust(width) if index in left else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in table
    )


def as_markdown(headings: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    table = [headings, ["---"] * len(headings), *lines]
    return "".join("| " + " | ".join(map(markdown_text, line)) + " |\n" for line in table)
