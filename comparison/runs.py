"""The numbers of a run, each once, for the table, the files and the page; and which runs' losses compare."""

import dataclasses
import math
import operator
from collections.abc import Callable, Sequence
from typing import Any, Literal

from common.errors import UserError, did_you_mean
from common.keys import keys_of
from common.texts import harmless
from comparison.curves import Curve, curves
from flops_parameter_counting.laws.scaling_laws import LAWS
from runs.config import RunConfig, evaluated_windows
from runs.logs import RunLog

NAMING_KEYS = {name for name, key in keys_of(RunConfig).items() if key.changes == "name"}
Unit = Literal["nats", "bits per byte"]


@dataclasses.dataclass(frozen=True)
class Numbers:
    """One run's line of the table; None where the log does not say. docs/comparing_runs.md has the columns."""

    run: str
    architecture: str | None
    parameters: int | None
    flops_per_token: int | None  # training, full attention
    steps: int
    tokens: int | None
    flops: int | None  # spent on training, full attention
    train_seconds: float | None
    best_val_loss: float | None  # nats per token
    last_val_loss: float | None  # nats per token
    bits_per_byte: float | None  # of the best validation loss
    tokens_per_second: float | None
    mfu: float | None  # share of 1
    mfu_convention: str | None
    peak_memory: int | None  # bytes
    skipped_steps: int | None
    predicted_loss: float | None  # nats per token
    miss: float | None  # last validation loss less the predicted one, nats per token, of a run that came to its end
    miss_percent: float | None  # of the predicted loss
    state: str


@dataclasses.dataclass(frozen=True)
class Run:
    """A run as it is compared. `log` has lost its `iter` records, which are in `curves`: fifty long runs fit."""

    log: RunLog
    numbers: Numbers
    curves: dict[str, Curve]

    @property
    def config(self) -> dict[str, Any]:
        return self.log.run.get("config") or {}


def describe(log: RunLog, name: str | None = None) -> Run:
    """What is compared of a run, under its own name or another one."""
    throughput, run = log.throughput, log.run
    convention = mfu = None
    if throughput is not None:
        convention = "full" if "full" in throughput.mfu else "unstated"
        mfu = throughput.mfu.get(convention)
    predicted = (run.get("prediction") or {}).get("loss")
    last, ended = log.final_val_loss, log.state == "finished" and log.step >= (run.get("steps") or 0)
    miss = last - predicted if ended and predicted is not None and last is not None else None
    numbers = Numbers(
        run=name or log.name,
        architecture=run.get("architecture"),
        parameters=(run.get("parameters") or {}).get("total"),
        flops_per_token=(run.get("flops_per_token") or {}).get("full"),
        steps=log.step,
        tokens=log.tokens,
        flops=log.flops,
        train_seconds=log.train_seconds,
        best_val_loss=log.best_val_loss,
        last_val_loss=last,
        bits_per_byte=log.best_val_bits_per_byte,
        tokens_per_second=throughput.tokens_per_second if throughput else None,
        mfu=mfu,
        mfu_convention=convention,
        peak_memory=log.peak_memory,
        skipped_steps=log.skipped_steps,
        predicted_loss=predicted,
        miss=miss,
        miss_percent=100 * miss / predicted if miss is not None and predicted else None,
        state=log.state,
    )
    return Run(dataclasses.replace(log, iters=log.iters[-1:]), numbers, curves(log))


def describe_all(logs: Sequence[RunLog]) -> list[Run]:
    """The runs under their names; where two are the same, under the paths of their folders."""
    return [describe(log, name) for log, name in zip(logs, labels(logs), strict=True)]


def labels(logs: Sequence[RunLog]) -> list[str]:
    """The runs' names; where two are the same, their paths."""
    names = [log.name for log in logs]
    paths = [str(log.path.parent if log.path.name == "log.jsonl" else log.path) for log in logs]
    return [harmless(path) if names.count(name) > 1 else name for name, path in zip(names, paths, strict=True)]


def differing_keys(configs: Sequence[dict[str, Any]]) -> list[str]:
    """The configuration keys in which the runs differ, in their order in the log; those that only name a run left out.
    A key that one of the logs lacks differs; a log without any configuration says nothing."""
    stated = [config for config in configs if config]
    keys = list(dict.fromkeys(key for config in stated for key in config if key not in NAMING_KEYS))
    missing = object()
    return [key for key in keys if any(config.get(key, missing) != stated[0].get(key, missing) for config in stated)]


# ---------------------------------------------------------------------------------------------------------------------
# Sorting and filtering

COLUMNS = tuple(field.name for field in dataclasses.fields(Numbers))
COMPARISONS: dict[str, Callable[[Any, Any], bool]] = {
    ">=": operator.ge, "<=": operator.le, "!=": operator.ne, "=": operator.eq, ">": operator.gt, "<": operator.lt,
}  # fmt: skip


def value(run: Run, column: str) -> Any:
    """What a run has in a column of the table or, under its own name, of a configuration key."""
    return getattr(run.numbers, column) if column in COLUMNS else run.config.get(column)


def sort(runs: Sequence[Run], column: str, descending: bool = False) -> list[Run]:
    """Sorts by a column or a key; runs that have no such value come last. Raises UserError for a column that there is
    not, and for losses that do not compare."""
    check_column(runs, column)
    if column in ("best_val_loss", "last_val_loss") and comparable_unit([run.log for run in runs]) != "nats":
        raise UserError(f"--sort {column}: the runs' tokenizers differ, sort by bits_per_byte")
    if column == "bits_per_byte":
        comparable_unit([run.log for run in runs])
    known = [run for run in runs if value(run, column) is not None]
    unknown = [run for run in runs if value(run, column) is None]
    kinds = {type(value(run, column)) for run in known}
    numbers = kinds <= {int, float, bool}
    return sorted(known, key=lambda run: _order(value(run, column), numbers), reverse=descending) + unknown


def matching(runs: Sequence[Run], condition: str) -> list[Run]:
    """The runs for which a condition such as `n_layer>4` or `arch_preset=llama` holds. Raises UserError for one that
    says nothing, and where it leaves no run."""
    sign = next((sign for sign in COMPARISONS if sign in condition), None)
    if sign is None:
        raise UserError(f"--filter {condition!r} is no condition: write key=value, key!=value, key>value or key<value")
    column, _, wanted = (part.strip() for part in condition.partition(sign))
    check_column(runs, column)
    known = [found for run in runs if (found := value(run, column)) is not None]
    if sign not in ("=", "!=") and known and all(map(_is_number, known)) and math.isnan(_number(wanted)):
        raise UserError(f"--filter {condition!r}: {column} is a number, compare it with one such as 1500000 or 1.5e6")
    kept = [run for run in runs if _holds(value(run, column), sign, wanted)]
    if not kept:
        raise UserError(f"--filter {condition!r} leaves none of the {len(runs)} runs")
    return kept


def trained_on(runs: Sequence[Run], names: Sequence[str]) -> list[Run]:
    """The runs on datasets of these names. Raises UserError for one that no run has."""
    known = list(dict.fromkeys(run.log.dataset_name for run in runs))
    for name in names:
        if name not in known:
            raise UserError(f"--dataset: none of the runs was trained on {name!r}, but on {', '.join(known)}")
    return [run for run in runs if run.log.dataset_name in names]


def check_column(runs: Sequence[Run], column: str) -> None:
    known = [*COLUMNS, *dict.fromkeys(key for run in runs for key in run.config)]
    if column not in known:
        raise UserError(f"there is no column or configuration key {column!r}{did_you_mean(column, known)}")


def _order(value: Any, numbers: bool) -> Any:
    return value if numbers else str(value)


def _holds(found: Any, sign: str, wanted: str) -> bool:
    """Numbers compare as numbers, everything else as text; what is not known meets no condition but `!=`."""
    if found is None:
        return (sign == "=" and wanted == "None") or (sign == "!=" and wanted != "None")
    number = _number(wanted)
    if _is_number(found) and not math.isnan(number):
        return COMPARISONS[sign](found, number)
    return COMPARISONS[sign](str(found), wanted)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _number(text: str) -> float:
    """nan where it is none."""
    try:
        return float(text)
    except ValueError:
        return math.nan


# ---------------------------------------------------------------------------------------------------------------------
# What compares


class NoCommonMetric(UserError):
    """The runs' losses do not compare, and why."""


def comparable_unit(logs: Sequence[RunLog]) -> Unit:
    """In what these runs' losses compare: nats per token where they were validated on the same tokens, else bits per
    byte where it was the same text. Raises NoCommonMetric, with the reason, where they do not compare."""
    if len(logs) > 1 and (silent := next((log for log in logs if log.validated_on[-1] is None), None)) is not None:
        raise NoCommonMetric(f"no common metric: the log of {silent.name} does not say on what it was validated")
    if len({log.validated_on for log in logs}) <= 1:
        return "nats"
    first, other = next((logs[0], log) for log in logs if log.validated_on != logs[0].validated_on)
    sizes = [log.split("val").get("bytes") for log in (first, other)]
    told = " and ".join(dict.fromkeys(log.dataset_name for log in (first, other)))
    if None in sizes:
        reason = "the log does not say how many bytes of text that is, so that bits per byte are not known"
    elif len({log.split("val").get("bytes") for log in logs}) == 1:
        return "bits per byte"
    else:
        reason = f"of {sizes[0]:,} and {sizes[1]:,} bytes"
    raise NoCommonMetric(
        f"no common metric: {first.name} and {other.name} were validated on different data ({told}): {reason}"
    )


def bits_per_byte_factor(log: RunLog, split: str) -> float | None:
    """Bits per byte of a split's text for each nat per token; None where its bytes are not known."""
    described = log.split(split)
    tokens, size = described.get("tokens"), described.get("bytes")
    return tokens / size / math.log(2) if tokens and size else None


def _windows(log: RunLog) -> tuple[Any, ...]:
    """The validation windows: so many sequences, in an order that no key changes, of so many tokens, whether of one
    document each or of several that are kept apart, and whether these are whole."""
    config = log.run.get("config") or {}
    packing = config.get("packing", "windows")
    return evaluated_windows(config), config.get("block_size"), config.get("mask_documents", False), packing


def notes(logs: Sequence[RunLog]) -> list[str]:
    """What the reader must know before comparing the runs."""
    found = []
    if len({log.validated_on for log in logs}) > 1:
        names = sorted({log.dataset_name for log in logs})
        which = ", ".join(names) if len(names) > 1 else f"versions of {names[0]}"
        found.append(
            f"the validation data differ ({which}): losses do not compare, bits per byte only on the same text"
        )
    elif len(logs) > 1 and logs[0].is_validated_by_name:
        found.append("the logs have no checksum of their validation data: that they are equal rests on the name alone")
    elif len({_windows(log) for log in logs}) > 1:
        found.append(
            "the runs differ in eval_iters x eval_batch_size (before there was that key, batch_size), in block_size, "
            "packing or mask_documents: their validation losses are means over different windows of the split, unless "
            "it has no more, or over documents that are kept apart and others that are not"
        )
    if any("unstated" in (log.throughput.mfu if log.throughput else {}) for log in logs):
        found.append("an MFU marked (unstated) is from a log that does not say which attention it counts")
    for log in logs:
        if log.other_evals:
            last = log.other_evals[-1]["step"]
            found.append(
                f"{log.name}: {len(log.other_evals)} evaluations up to step {last:,} are left out: since then the run "
                "evaluates something else"
            )
        late = [record for record in log.evals if record["val_loss"] is None]
        if late:
            found.append(f"{log.name}: {len(late)} evaluations were not finite (first at step {late[0]['step']:,})")
    ranked = [log for log in logs if _law_only_ranks(log)]
    for law in dict.fromkeys(log.run["config"]["scaling_law"] for log in ranked):
        which = ", ".join(log.name for log in ranked if log.run["config"]["scaling_law"] == law)
        found.append(
            f"{which}: the law {law} was fitted to other data and another tokenizer: it ranks architectures and does "
            "not foretell the loss, and the miss says nothing of the run"
        )
    return [f"note: {note}" for note in found]


def _law_only_ranks(log: RunLog) -> bool:
    """Whether the run's predicted loss is a published law's (as training.plan.Prediction.only_ranks). A fitted law
    stands in the configuration as a file or with its constants."""
    law = (log.run.get("config") or {}).get("scaling_law")
    return (
        isinstance(law, str)
        and law.partition(":")[0] in LAWS
        and (log.run.get("prediction") or {}).get("loss") is not None
    )


def mfu_in_words(runs: Sequence[Run]) -> str:
    """MFU with the conventions in which the logs count attention."""
    words = {"full": "full attention", "unstated": "convention unstated"}
    found = dict.fromkeys(run.numbers.mfu_convention for run in runs if run.numbers.mfu_convention is not None)
    return f"MFU ({', or '.join(words[name] for name in found)})" if found else "MFU"
