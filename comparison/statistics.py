"""Whether one group of runs is better than another, and how sure that is.

Runs that differ only by their seed are a group. Two groups are compared at equal steps, tokens, FLOPs or training
time, each at the latest place that all their runs reached; between evaluations the loss is a straight line over the
logarithm of the place. The evaluation before the first step is left out: from there no line is straight.

The difference of the means comes with a 95 % interval of Student's t: over the differences seed by seed where both
groups have the same seeds (with one block size and tokenizer they saw the same data in the same order), else by Welch.
A group of one seed has no interval.
"""

import dataclasses
import functools
import json
import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from common.errors import UserError
from comparison.runs import NAMING_KEYS, Unit, bits_per_byte_factor, comparable_unit, differing_keys
from runs.config import evaluated_windows
from runs.logs import RunLog

At = Literal["steps", "tokens", "flops", "time"]
PLACES: dict[At, tuple[str, str]] = {  # what a place is in runs.logs.POSITIONS, and in words
    "steps": ("step", "steps"),
    "tokens": ("tokens", "tokens"),
    "flops": ("flops", "FLOPs"),
    "time": ("time", "training time"),
}
CONFIDENCE = 0.95
SAME_END = 0.005  # relative: runs of one budget end within a step of each other


@dataclasses.dataclass(frozen=True)
class Group:
    """Runs that differ only by their seed, under the architecture's name or the keys that set them apart."""

    name: str
    runs: list[RunLog]


@dataclasses.dataclass(frozen=True)
class Difference:
    """`a` against `b`: below 0 where `a` has the lower loss. `interval` is that of the difference, None where a group
    has one seed only; `seeds` counts those of `a` and of `b`."""

    difference: float
    interval: tuple[float, float] | None
    seeds: tuple[int, int]
    unit: Unit
    at: At
    place: float  # in steps, tokens, FLOPs or seconds
    paired: bool
    text: str = ""  # all of it in a sentence


# ---------------------------------------------------------------------------------------------------------------------
# Groups


def groups(runs: Sequence[RunLog]) -> list[Group]:
    """The groups in the order of their first runs."""
    members: dict[str, list[RunLog]] = {}
    for index, run in enumerate(runs):
        members.setdefault(_identity(run, index), []).append(run)
    return [Group(name, group) for name, group in zip(_names(list(members.values())), members.values(), strict=True)]


def _identity(run: RunLog, index: int) -> str:
    """Equal for runs of one group. A run whose log does not say what it was is a group of its own. How the sequences
    of a step and of an evaluation were divided, to fit a memory, changes neither."""
    config = run.run.get("config")
    if not config:
        return f"run {index}"
    kept = {key: value for key, value in config.items() if key not in NAMING_KEYS and key != "seed"}
    if None not in map(kept.get, ("gradient_accumulation_steps", "batch_size", "eval_iters")):
        kept["eval_iters"] = evaluated_windows(config)
        kept["gradient_accumulation_steps"] *= kept.pop("batch_size")
        kept.pop("eval_batch_size", None)
    return json.dumps([kept, run.validated_on], sort_keys=True)


def _names(members: Sequence[Sequence[RunLog]]) -> list[str]:
    """The architectures where they tell all groups apart; with them, where they do not, the keys that differ."""
    firsts = [group[0] for group in members]
    architectures = [first.run.get("architecture") or first.name for first in firsts]
    if len(set(architectures)) == len(architectures):
        return architectures
    configs = [first.run.get("config") or {} for first in firsts]
    keys = [key for key in differing_keys(configs) if key != "seed"]
    names = [
        ", ".join([architecture] * (len(set(architectures)) > 1) + [f"{key}={config.get(key)}" for key in keys])
        for architecture, config in zip(architectures, configs, strict=True)
    ]
    return [
        f"{name} ({first.name})" if names.count(name) > 1 or not name else name
        for name, first in zip(names, firsts, strict=True)
    ]


# ---------------------------------------------------------------------------------------------------------------------
# Differences


def compare_groups(a: Group, b: Group, at: At) -> Difference:
    """Raises UserError where the losses do not compare, or no place was reached by all."""
    runs = [*a.runs, *b.runs]
    unit = comparable_unit(runs)
    place = common_place(runs, at)
    of_a, of_b = (_losses_by_seed(group, at, place, unit) for group in (a, b))
    paired = len(of_a) > 1 and of_a.keys() == of_b.keys()
    difference = float(np.mean([*of_a.values()]) - np.mean([*of_b.values()]))
    interval = None
    if paired:
        interval = paired_interval([of_a[seed] - of_b[seed] for seed in of_a])
    elif len(of_a) > 1 and len(of_b) > 1:
        interval = welch_interval([*of_a.values()], [*of_b.values()])
    found = Difference(difference, interval, (len(of_a), len(of_b)), unit, at, place, paired)
    return dataclasses.replace(found, text=_sentence(a, b, found))


def common_place(runs: Sequence[RunLog], at: At) -> float:
    """The latest place of an evaluation that every run reached, in the unit of `at`. Raises UserError without one."""
    words = PLACES[at][1]
    ends, starts = [], []
    for run in runs:
        points = _trained(run, at)
        if not points:
            raise UserError(
                f"{run.name} has no finite validation loss after its first step with a known place in {words}"
            )
        starts.append(points[0][0])
        ends.append(points[-1][0])
    if max(starts) > min(ends):
        late, early = runs[starts.index(max(starts))], runs[ends.index(min(ends))]
        raise UserError(f"{late.name} was first evaluated after {early.name} had ended: no equal {words}")
    return min(ends)


def loss_at(run: RunLog, at: At, place: float, unit: Unit = "nats") -> float:
    """The validation loss there, on the line between the evaluations before and after it."""
    points = _trained(run, at)
    loss = float(np.interp(math.log(place), [math.log(x) for x, _ in points], [y for _, y in points]))
    if unit == "nats":
        return loss
    factor = bits_per_byte_factor(run, "val")
    if factor is None:
        raise UserError(f"the log of {run.name} does not say how many tokens and bytes its validation data have")
    return loss * factor


def _trained(run: RunLog, at: At) -> list[tuple[float, float]]:
    """(place, validation loss) of the evaluations after the first step."""
    return [(x, loss) for x, loss in run.val_losses(PLACES[at][0]) if x > 0]


def _losses_by_seed(group: Group, at: At, place: float, unit: Unit) -> dict[Any, float]:
    """{seed: loss}. A seed that ran twice is one sample: the mean of its runs."""
    found: dict[Any, list[float]] = {}
    for run in group.runs:
        found.setdefault((run.run.get("config") or {}).get("seed"), []).append(loss_at(run, at, place, unit))
    return {seed: float(np.mean(losses)) for seed, losses in found.items()}


def _sentence(a: Group, b: Group, found: Difference) -> str:
    difference, interval, seeds, unit = found.difference, found.interval, found.seeds, found.unit
    at, place = found.at, found.place
    where = f"at equal {PLACES[at][1]} ({_place_in_words(at, place)})"
    size, direction = f"{abs(difference):.3g} {unit}", "below" if difference < 0 else "above"
    if difference == 0:
        size, direction = "exactly", "equal to"
    unfinished = [group.name for group in (a, b) if any(_goes_on(run, at, place) for run in group.runs)]
    if unfinished:  # whose learning rate may not have decayed there
        where = f"{where[:-1]}, before the end of {unfinished[0] if len(unfinished) == 1 else 'both'})"
    if at == "time" and _differ_in_machine([*a.runs, *b.runs]):
        where += " on different machines"
    if interval is None:
        once = " and ".join(group.name for group, count in zip((a, b), seeds, strict=True) if count == 1)
        return f"{a.name} is {size} {direction} {b.name} {where}: no interval, seeds were not repeated in {once}"
    low, high = interval
    counted = f"{seeds[0]} seeds each" if seeds[0] == seeds[1] else f"{seeds[0]} and {seeds[1]} seeds"
    if low <= 0 <= high:
        return (
            f"{a.name} against {b.name} {where}: the difference of {difference:.3g} {unit} is smaller than the seeds' "
            f"noise (95 % interval {low:.3g} to {high:.3g}), {counted}"
        )
    low, high = sorted((abs(low), abs(high)))
    return f"{a.name} is {size} {direction} {b.name} {where}: 95 % interval {low:.3g} to {high:.3g}, {counted}"


def _place_in_words(at: At, place: float) -> str:
    return {"steps": f"{place:,.0f}", "tokens": f"{place:.4g}", "flops": f"{place:.3g}", "time": f"{place:,.4g} s"}[at]


def _goes_on(run: RunLog, at: At, place: float) -> bool:
    """Whether the run went on after this place, or was to."""
    return _trained(run, at)[-1][0] > (1 + SAME_END) * place or run.step < (run.run.get("steps") or 0)


def _differ_in_machine(runs: Sequence[RunLog]) -> bool:
    keys = ("device_name", "ranks", "threads_per_rank", "host")
    return len({tuple((run.run.get("hardware") or {}).get(key) for key in keys) for run in runs}) > 1


# ---------------------------------------------------------------------------------------------------------------------
# Intervals


def paired_interval(differences: Sequence[float]) -> tuple[float, float]:
    """The 95 % interval of the mean of two or more differences."""
    values = np.asarray(differences)
    error = values.std(ddof=1) / math.sqrt(len(values))
    reach = t_quantile(len(values) - 1) * error
    return float(values.mean() - reach), float(values.mean() + reach)


def welch_interval(a: Sequence[float], b: Sequence[float]) -> tuple[float, float]:
    """The 95 % interval of mean(a) - mean(b), two or more values each, whose variances may differ (Welch 1947)."""
    parts = [np.var(values, ddof=1) / len(values) for values in (a, b)]
    difference, variance = float(np.mean(a) - np.mean(b)), float(sum(parts))
    if variance == 0:
        return difference, difference
    freedom = variance**2 / sum(part**2 / (len(values) - 1) for part, values in zip(parts, (a, b), strict=True))
    reach = t_quantile(float(freedom)) * math.sqrt(variance)
    return difference - reach, difference + reach


@functools.cache
def t_quantile(freedom: float, confidence: float = CONFIDENCE) -> float:
    """t with P(|T| <= t) = `confidence` for Student's T of `freedom` >= 1 degrees, by bisection."""
    low, high = 0.0, 1.0
    while _t_probability(high, freedom) < confidence:
        low, high = high, 2 * high
    while high - low > 1e-12 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if _t_probability(middle, freedom) < confidence else (low, middle)
    return high


def _t_probability(t: float, freedom: float) -> float:
    """P(|T| <= t). With t = sqrt(freedom) tan(angle) the density is cos(angle) ** (freedom - 1) over its integral."""
    angles = np.linspace(0, math.atan(t / math.sqrt(freedom)), 2001)
    density = np.cos(angles) ** (freedom - 1)
    integral = (
        (density[0] + 4 * density[1::2].sum() + 2 * density[2:-1:2].sum() + density[-1]) * angles[1] / 3
    )  # Simpson
    whole = math.sqrt(math.pi) / 2 * math.exp(math.lgamma(freedom / 2) - math.lgamma((freedom + 1) / 2))
    return float(integral / whole)
