"""What a run's log says over its steps, as arrays: read once, thinned without losing a spike, smoothed."""

import dataclasses
import itertools
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from runs.logs import POSITIONS, Record, RunLog, position

Array = NDArray[np.float64]

# What is drawn of each `iter` record, and of each `eval` record.
OF_ITERS: dict[str, Callable[[Record], float | None]] = {
    "train_loss": lambda record: record["loss"],  # nats per token
    "mfu": lambda record: _mfu(record.get("mfu")),  # share of 1, full attention (or as an older log has it)
    "memory": lambda record: (record.get("memory") or {}).get("peak"),  # bytes, highest so far in the process
    "grad_norm": lambda record: record.get("grad_norm"),
}
OF_EVALS: dict[str, Callable[[Record], float | None]] = {"val_loss": lambda record: record["val_loss"]}


@dataclasses.dataclass(frozen=True)
class Curve:
    """One quantity of one run. `x` has for each value its position, by each of runs.logs.POSITIONS; nan where the log
    does not say."""

    x: dict[str, Array]
    y: Array

    def __len__(self) -> int:
        return len(self.y)

    def at(self, indices: NDArray[np.intp]) -> "Curve":
        return Curve({name: values[indices] for name, values in self.x.items()}, self.y[indices])


def curves(log: RunLog) -> dict[str, Curve]:
    """Every quantity of OF_ITERS and OF_EVALS. Records where it is not known are left out."""
    found = {}
    for records, quantities in ((log.iters, OF_ITERS), (log.evals, OF_EVALS)):
        x = {name: np.array([position(record, name) for record in records], dtype=float) for name in POSITIONS}
        for name, value in quantities.items():
            y = np.array([value(record) for record in records], dtype=float)  # None becomes nan
            known = ~np.isnan(y)
            found[name] = Curve({place: values[known] for place, values in x.items()}, y[known])
    return found


def thin(curve: Curve, buckets: int) -> Curve:
    """At most 2 x `buckets` + 2 of the points: the lowest and the highest of each bucket of neighbours, the first and
    the last. A spike of one step stays."""
    count = len(curve)
    if count <= 2 * buckets + 2:
        return curve
    edges = np.linspace(0, count, buckets + 1).astype(int)
    kept = {0, count - 1}
    for start, end in itertools.pairwise(edges.tolist()):
        kept |= {start + int(np.argmin(curve.y[start:end])), start + int(np.argmax(curve.y[start:end]))}
    return curve.at(np.array(sorted(kept)))


def smooth(curve: Curve, scale: float) -> Curve:
    """The running mean in which a value's weight falls to 1/e over `scale` steps, whatever the interval of the log;
    divided by the sum of its weights, so that it begins at the first value and not at 0. At most 700 scales long: the
    weights are e to the steps / scale, and a float goes no further."""
    if not len(curve):
        return curve
    weights = np.exp((curve.x["step"] - curve.x["step"][-1]) / scale)
    return Curve(curve.x, np.cumsum(weights * curve.y) / np.cumsum(weights))


def evenly(curve: Curve, count: int) -> Curve:
    """About `count` points at even distances, with the first and the last: enough of a smooth curve."""
    if len(curve) <= count:
        return curve
    return curve.at(np.unique(np.linspace(0, len(curve) - 1, count).round().astype(int)))


def _mfu(shares: dict[str, float] | None) -> float | None:
    return None if shares is None else shares.get("full", shares.get("unstated"))
