"""Reads what a run logged: the one reader of `log.jsonl` for every tool. docs/log_format.md has the fields.

A log may have been cut anywhere, by a kill or a full disk, and continued by a resumed run. What comes out is one
consistent story: every whole record, except those that a later process took back by going on from an earlier step.
No torch.
"""

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

from common.errors import UserError
from common.files import open_file, real
from common.locks import is_locked
from common.texts import all_harmless, harmless
from runs.config import evaluated_windows
from runs.older_logs import read_older

Record = dict[str, Any]
KINDS = ("run", "iter", "eval", "benchmarks", "checkpoint", "event", "summary")
POSITIONS = ("step", "tokens", "flops", "time", "wall")  # what a loss can be looked up by
_TAIL_BYTES = 1 << 16
_NEEDED = {"iter": "loss", "eval": "val_loss", "benchmarks": "tasks"}  # the field that such a record is for

# What the readers take a field for, where it is there and not null: a number, a truth, text, or fields of its own.
_SPLIT: dict[str, Any] = {"tokens": float, "bytes": float, "checksum": str}
_SHAPE: dict[str, Any] = {
    **dict.fromkeys(("time", "step", "steps", "tokens", "train_seconds", "skipped_steps"), float),
    **dict.fromkeys(("loss", "val_loss", "val_bits_per_byte", "grad_norm", "step_ms", "tokens_per_second"), float),
    "flops": {"full": float},
    "mfu": {"full": float, "causal": float, "unstated": float},
    "memory": {"peak": float},
    "skipped": bool,
    "architecture": str,
    "config": dict.fromkeys(("seed", "gradient_accumulation_steps", "batch_size", "block_size", "eval_iters"), float),
    "parameters": {"total": float},
    "flops_per_token": {"full": float},
    "prediction": {"loss": float},
    "dataset": {"name": str, "vocab_size": float, "splits": {"train": _SPLIT, "val": _SPLIT}},
    "hardware": {"device_name": str, "host": str, "ranks": float, "threads_per_rank": float},
}


@dataclasses.dataclass(frozen=True)
class Throughput:
    """Speed of all ranks over timed steps. `mfu` is a share of the peak, by convention: `full` and `causal`, or
    `unstated` where an older log does not say."""

    tokens_per_second: float
    mfu: dict[str, float]


@dataclasses.dataclass
class RunLog:
    """One run. The lists are in the order of the steps, at most one `iters` and one `evals` record a step."""

    path: Path
    run: Record = dataclasses.field(default_factory=dict)  # of the newest process; empty if its line was lost
    iters: list[Record] = dataclasses.field(default_factory=list)
    evals: list[Record] = dataclasses.field(default_factory=list)  # of the windows that the newest process evaluates
    other_evals: list[Record] = dataclasses.field(default_factory=list)  # of earlier ones, on other windows
    benchmarks: list[Record] = dataclasses.field(default_factory=list)
    checkpoints: list[Record] = dataclasses.field(default_factory=list)
    events: list[Record] = dataclasses.field(default_factory=list)
    summary: Record | None = None  # of the newest process; None while it runs, or if it was killed
    cut_lines: int = 0  # lines that are no whole record

    @property
    def name(self) -> str:
        """The run folder's name, as it can be printed."""
        file = real(self.path)
        return harmless(file.parent.name if file.name == "log.jsonl" else file.stem)

    @property
    def state(self) -> str:
        """`finished`; `interrupted` (by a signal); `stopped` (too many steps without a finite gradient); `running`;
        or `cut` (killed: no summary, and no process holds the folder)."""
        if self.summary is None:
            return "running" if self.path.name == "log.jsonl" and is_locked(self.path.parent) else "cut"
        reason = str(self.summary.get("reason"))
        if reason == "finished":
            return reason
        return "stopped" if reason.startswith("stopped") else "interrupted"

    @property
    def step(self) -> int:
        """Optimizer steps that the log knows of."""
        return max((record["step"] for record in self._counted()), default=0)

    @property
    def tokens(self) -> int | None:
        """Training tokens of all ranks up to `step`; None where an older log does not say."""
        return self._furthest("tokens")

    @property
    def flops(self) -> int | None:
        """Training FLOPs up to `step`, full attention; None where an older log does not say."""
        return self._furthest("flops")

    @property
    def train_seconds(self) -> float | None:
        """Seconds in training steps up to `step`; None where an older log does not say."""
        return self._furthest("time")

    @property
    def skipped_steps(self) -> int | None:
        """Steps that changed no weight; None where an older log does not say."""
        if self.summary is not None:
            return self.summary.get("skipped_steps")
        known = [record["skipped"] for record in self.iters if record.get("skipped") is not None]
        return sum(known) if known or not self.iters else None

    @property
    def peak_memory(self) -> int | None:
        """Bytes, the highest of all processes' peaks; None where none is known."""
        records = [*self.iters, *([self.summary] if self.summary else [])]
        peaks = [(record.get("memory") or {}).get("peak") for record in records]
        return max((peak for peak in peaks if peak is not None), default=None)

    @property
    def dataset_name(self) -> str:
        return self._dataset.get("name") or "unknown"

    def split(self, name: str) -> Record:
        """What the log says of a split of the dataset; empty where it says nothing."""
        return (self._dataset.get("splits") or {}).get(name) or {}

    @property
    def validated_on(self) -> tuple[Any, ...]:
        """What is equal for two runs exactly when they were validated on the same tokens: the checksum of the split,
        whatever its folder is called. Where an older log has none, the dataset's name has to do."""
        if self.is_validated_by_name:
            return "by its name", self._dataset.get("name")
        return self._dataset.get("vocab_size"), self.split("val")["checksum"]

    @property
    def is_validated_by_name(self) -> bool:
        """Whether the log has no checksum of what the run was validated on."""
        return self.split("val").get("checksum") is None

    @property
    def _dataset(self) -> Record:
        return self.run.get("dataset") or {}

    def _furthest(self, x: str) -> Any:
        known = [place for record in self._counted() if (place := position(record, x)) is not None]
        return max(known, default=None if self._counted() else 0)

    def _counted(self) -> list[Record]:
        return [*self.iters[-1:], *self.evals[-1:], *([self.summary] if self.summary else [])]

    def train_losses(self, x: str = "step") -> list[tuple[float, float]]:
        """(position, training loss in nats per token), `x` being one of POSITIONS; steps without a finite loss, or
        whose position the log does not say, are left out."""
        return _points(self.iters, x, "loss")

    def val_losses(self, x: str = "step") -> list[tuple[float, float]]:
        """(position, validation loss in nats per token), `x` being one of POSITIONS; without evaluations that were not
        finite, or whose position the log does not say."""
        return _points(self.evals, x, "val_loss")

    @property
    def best_eval(self) -> Record | None:
        """The `eval` record with the lowest validation loss, the first of equals."""
        finite = [record for record in self.evals if record["val_loss"] is not None]
        return min(finite, key=lambda record: record["val_loss"], default=None)

    @property
    def best_val_loss(self) -> float | None:
        """In nats per token."""
        return self.best_eval["val_loss"] if self.best_eval else None

    @property
    def best_val_bits_per_byte(self) -> float | None:
        """Bits per byte of the evaluation with the lowest loss; None where the dataset's byte count is not known."""
        return self.best_eval.get("val_bits_per_byte") if self.best_eval else None

    @property
    def final_val_loss(self) -> float | None:
        """The loss of the last evaluation, in nats per token."""
        return self.evals[-1]["val_loss"] if self.evals else None

    @property
    def throughput(self) -> Throughput | None:
        """The speed as the newest process summed it up; without such a summary, the mean over the time of all timed
        steps."""
        if self.summary is not None and self.summary.get("tokens_per_second") is not None:
            return Throughput(self.summary["tokens_per_second"], self.summary.get("mfu") or {})
        tokens = time = 0.0
        at_peak: dict[str, float] = {}  # seconds that the same FLOPs take at the device's peak
        before = 0
        for record in self.iters:
            if None not in map(record.get, ("step_ms", "tokens_per_second", "mfu")):
                seconds = (record["step"] - before) * record["step_ms"] / 1000
                time += seconds
                tokens += record["tokens_per_second"] * seconds
                for name, share in record["mfu"].items():
                    at_peak[name] = at_peak.get(name, 0.0) + share * seconds
            before = record["step"]
        if not time:
            return None
        return Throughput(tokens / time, {name: total / time for name, total in at_peak.items()})


def position(record: Record, x: str) -> float | None:
    """Where an `iter`, `eval` or `summary` record stands: its `step`, its `tokens`, its training `flops` (full
    attention), its `time` in training steps, or its `wall` clock time since the run began, both in seconds. None where
    the log does not say."""
    if x == "flops":
        return (record.get("flops") or {}).get("full")
    return record.get({"time": "train_seconds", "wall": "wall_seconds"}.get(x, x))


def _points(records: list[Record], x: str, y: str) -> list[tuple[float, float]]:
    return [
        (place, record[y]) for record in records if (place := position(record, x)) is not None and record[y] is not None
    ]


def read_run(path: str | os.PathLike) -> RunLog:
    """Read a run, given its folder or its log file; a file of the older layout (runs/older_logs.py) too.

    Raises UserError when there is none, when it has no whole record, and when the file is something else.
    """
    file = log_file(Path(path))
    log = RunLog(file)
    records: list[Record] = []
    try:
        with open_file(file) as lines:
            for line in lines:
                if (record := _parse(line)) is not None:
                    records.append(record)
                elif line.strip():
                    log.cut_lines += 1
    except FileNotFoundError:
        raise UserError(f"there is no run {path}: {file} does not exist") from None
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror}") from None
    if not records and (older := read_older(file)) is not None:
        if not all(map(fits, (older["run"], *older["iters"], *older["evals"]))):
            raise UserError(f"{file} is of the older layout, but one of its numbers or texts is something else")
        return RunLog(file, **all_harmless(older))
    if not records:
        reason = "none of its lines is a whole record of a run" if log.cut_lines else "it is empty"
        raise UserError(f"{file} holds no run: {reason}")
    _sort_in(records, log)
    return log


def log_file(path: Path) -> Path:
    """The log of a run that is named by its folder or by its log."""
    return path / "log.jsonl" if path.is_dir() else path


def find_runs(base: str | os.PathLike = ".", latest: int | None = None) -> list[Path]:
    """Folders of the runs under `base`/out/, and of those that are `base`/out* themselves, as nanoGPT's users name
    them. The one that wrote a record last comes first; without a limit, all of them. Empty where there is none.
    """
    logs = {*Path(base).glob("out/*/log.jsonl"), *Path(base).glob("out*/log.jsonl")}
    try:
        times = {log.parent: time for log in logs if (time := _last_time(log)) is not None}
    except OSError as error:
        raise UserError(f"cannot read {error.filename}: {error.strerror}") from None
    newest_first = sorted(times, key=lambda folder: (-times[folder], folder))
    return newest_first[:latest]


def _parse(line: bytes) -> Record | None:
    """The record on a line, its texts harmless to whoever prints them; None for a line that was cut, or is none of
    ours."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(record, dict) or record.get("type") not in KINDS:
        return None
    positioned = record["type"] == "run" or type(record.get("step")) is int
    if record["type"] == "benchmarks" and not are_scores(record.get("tasks")):
        return None
    whole = positioned and record.get("time") is not None and _NEEDED.get(record["type"], "type") in record
    if not whole or not fits(record):
        return None
    return all_harmless(record) if b"\\" in line or not line.isascii() else record


def fits(value: Any, shape: Any = _SHAPE) -> bool:
    """Whether a record, or a field of it, is what the readers take it for. No number of a run is near a float's end,
    and what JSON calls NaN or Infinity is none."""
    if value is None:
        return True
    if isinstance(shape, dict):
        return isinstance(value, dict) and all(fits(value[name], shape[name]) for name in value.keys() & shape.keys())
    if shape is float:
        return type(value) in (int, float) and -1e300 < value < 1e300
    return isinstance(value, shape)


def are_scores(tasks: Any) -> bool:
    """Whether this is {task: {metric: its value, standard error, chance, samples and direction}}, of benchmarks."""
    shape = {**dict.fromkeys(("value", "error", "chance", "samples"), float), "higher_is_better": bool}
    return isinstance(tasks, dict) and all(
        isinstance(metrics, dict) and all(isinstance(one, dict) and fits(one, shape) for one in metrics.values())
        for metrics in tasks.values()
    )


def _sort_in(records: list[Record], log: RunLog) -> None:
    """Put the records into the log, in the order in which they were written.

    A process begins with a `run` record. If it resumed, the event `resume` follows with the step that it went on
    from; else its first step tells (and a process that died before any step says nothing). What earlier processes
    wrote about later steps is superseded.
    """
    _add_wall_seconds(records)
    kept: list[Record] = []
    begins = False
    measured: dict[int, tuple[Any, ...] | None] = {}  # by the identity of an `eval` record: what it is a mean over
    for record in records:
        if record["type"] == "run":
            log.run, log.summary, begins = record, None, True
            continue
        if record["type"] == "eval":
            measured[id(record)] = evaluated_on(log.run)
        resumes = record["type"] == "event" and record.get("event") == "resume"
        if begins or resumes:
            last_valid = record["step"] if resumes else record["step"] - 1
            kept = [earlier for earlier in kept if earlier["step"] <= last_valid]
            log.summary, begins = None, False
        if record["type"] == "summary":
            log.summary = record
        else:
            kept.append(record)
    log.events = [record for record in kept if record["type"] == "event"]
    log.iters, evals, log.benchmarks, log.checkpoints = (
        _last_of_each_step(kept, kind) for kind in ("iter", "eval", "benchmarks", "checkpoint")
    )
    now = evaluated_on(log.run)
    for record in evals:
        same = None in (there := measured[id(record)], now) or there == now
        (log.evals if same else log.other_evals).append(record)


def evaluated_on(run: Record) -> tuple[Any, ...] | None:
    """What is equal for processes whose validation losses are means over the same windows, by their `run` records:
    the split, how it is cut, and how many windows an evaluation takes. None where the record does not say."""
    config = run.get("config") or {}
    val = ((run.get("dataset") or {}).get("splits") or {}).get("val") or {}
    tokens, block_size, windows = val.get("tokens"), config.get("block_size"), evaluated_windows(config)
    if not (val.get("checksum") and tokens and block_size and windows):
        return None
    return val["checksum"], block_size, min(windows, (tokens - 1) // block_size)


def _add_wall_seconds(records: list[Record]) -> None:
    """`wall_seconds` of every record but `run`: since the first record, without the pauses between a process's last
    record and the next process. Seconds that went into steps which a later process took back were spent, and count."""
    seconds, before = 0.0, None
    for record in records:
        if record["type"] == "run":
            before = record
            continue
        resumes = record["type"] == "event" and record.get("event") == "resume"
        if before is not None and (not resumes or before["type"] == "run"):  # else a process whose `run` line was lost
            seconds += max(0, record["time"] - before["time"])  # a clock may be put back
        record["wall_seconds"], before = seconds, record


def _last_of_each_step(records: list[Record], kind: str) -> list[Record]:
    """A resumed run may repeat the evaluation and the checkpoint of the step that it goes on from."""
    return list({record["step"]: record for record in records if record["type"] == kind}.values())


def _last_time(log: Path) -> float | None:
    """When the last whole record was written, in seconds since 1970, from the file's end alone; None without one."""
    size, length = log.stat().st_size, _TAIL_BYTES
    with log.open("rb") as file:
        while True:
            file.seek(max(0, size - length))
            for line in reversed(file.read().split(b"\n")):
                if (record := _parse(line)) is not None:
                    return record["time"]
            if length >= size:
                return None
            length *= 16
