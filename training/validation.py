"""The validation loss: on the same windows every time, and the same number for any number of ranks."""

import dataclasses
import functools
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from data.loader import Batch, SplitLoader
from parallel.collectives import largest_over_ranks, sum_over_ranks
from parallel.compute import Compute
from parallel.device import precision
from parallel.strategy import give_back_weights
from runs.config import RunConfig
from training.objective import AnyObjective, OfWholeBatch, next_token

WINDOW_SEED = 0  # of the validation order: not the run's, so that runs of several seeds compare


@dataclasses.dataclass(frozen=True)
class Means:
    """Over targets: the loss, of the next token in nats, and what an objective tells besides."""

    loss: float
    measured: dict[str, float] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Validation:
    """The validation splits of a run's data, by source, and the share that each has in the loss."""

    loaders: dict[str, SplitLoader]
    shares: dict[str, float]
    objective: AnyObjective = next_token

    @property
    def n_windows(self) -> int:
        return sum(loader.n_windows for loader in self.loaders.values())

    def check_unchanged(self) -> None:
        """As SplitLoader.check_unchanged."""
        for loader in self.loaders.values():
            loader.check_unchanged()

    def losses(
        self, model: nn.Module, run: RunConfig, compute: Compute, stop_requested: Callable[[], bool]
    ) -> dict[str, Means] | None:
        """Those of each source, over its share of an evaluation's windows; None if a rank must stop."""
        found = {}
        for name, loader in self.loaders.items():
            batches = evaluation_batches(run, loader.n_windows, self.shares[name], loader.together)
            means = evaluate(model, loader, *batches, compute, stop_requested, self.objective)
            if means is None:
                return None
            found[name] = means
        return found

    def mean(self, found: dict[str, Means]) -> Means:
        """That of text that is mixed by the shares."""
        names = next(iter(found.values())).measured
        measured = {one: sum(self.shares[name] * of.measured[one] for name, of in found.items()) for one in names}
        return Means(sum(self.shares[name] * of.loss for name, of in found.items()), measured)


def evaluation_batches(run: RunConfig, n_windows: int, share: float = 1.0, together: int = 1) -> tuple[int, int]:
    """How many batches an evaluation has, and of how many windows: together as many as eval_iters and eval_batch_size
    say, of which a source of a mixture has a `share`, but no less than eval_batch_size; or as many whole ones of these
    as the split's `n_windows` make, in batches that divide them evenly and are no larger than batch_size. All of these
    are multiples of `together`."""
    unit = min(run.eval_batch_size, n_windows) // together * together
    windows = min(max(1, round(run.eval_iters * share)), n_windows // unit) * unit
    size = max(size for size in range(together, min(unit, run.batch_size) + 1, together) if unit % size == 0)
    return windows // size, size


@torch.no_grad()
def evaluate(
    model: nn.Module,
    loader: SplitLoader,
    batches: int,
    batch_size: int,
    compute: Compute,
    stop_requested: Callable[[], bool],
    objective: AnyObjective = next_token,
) -> Means | None:
    """The objective's means over the first `batches` batches (or all that the split has); None if a rank must stop."""
    batch_size = min(batch_size, loader.n_windows)
    batches = min(batches, loader.n_windows // batch_size)
    over_batches = functools.partial(_sums, model, loader, batches, batch_size, compute, stop_requested)
    model.eval()
    found = _means(objective, over_batches)
    model.train()
    give_back_weights(model)
    return found


_Ask = Callable[[nn.Module, Batch], Tensor]


def _means(objective: AnyObjective, over_batches: Callable[[_Ask], Tensor | None]) -> Means | None:
    if isinstance(objective, OfWholeBatch):
        if (asked := over_batches(objective.ask)) is None:
            return None
        objective = objective.given(asked)
    of_batch, names = objective, list[str]()

    def told(model: nn.Module, batch: Batch) -> Tensor:
        """Losses, targets, and what is measured."""
        parts = of_batch(model, batch)
        names[:] = parts.measured
        return torch.stack((parts.cross_entropy, parts.n_targets, *parts.measured.values()))

    if (found := over_batches(told)) is None:
        return None
    loss, n_targets, *measured = found.tolist()
    means = [value / n_targets if n_targets else math.nan for value in (loss, *measured)]
    return Means(means[0], dict(zip(names, means[1:], strict=True)))


def _sums(
    model: nn.Module,
    loader: SplitLoader,
    batches: int,
    batch_size: int,
    compute: Compute,
    stop_requested: Callable[[], bool],
    ask: _Ask,
) -> Tensor | None:
    """What is asked of each batch (numbers,), summed over the batches in float64; None if a rank must stop.

    Each batch belongs to one rank. The ranks exchange the list of batch sums, not a partial sum, and everyone adds
    them in the same order: rounding does not depend on who computed what. All take equally many turns, as strategies
    need whose forward pass is an exchange; who has no batch left computes one again that is another's.
    """
    ranks, device = compute.ranks, compute.device
    device_of_sums = device if device.type == "cuda" else "cpu"  # mps has no float64
    mine, of_batch = ranks.share(range(batches)), dict[int, Tensor]()
    for turn in range(math.ceil(batches / ranks.data_size)):
        if turn % ranks.pipeline_parallel == 0:  # stages that asked each other in every turn would compute in turn
            interrupted = bool(largest_over_ranks(torch.tensor(int(stop_requested()), device=device_of_sums), ranks))
        if interrupted:
            return None
        index = mine[turn] if turn < len(mine) else 0
        batch = loader.batch(index * batch_size, batch_size).changed(lambda values: values.to(device))
        with precision(device, compute.dtype):
            found = ask(model, batch)
        if turn < len(mine):
            of_batch[index] = found
    sums = torch.zeros(len(found), batches, dtype=torch.float64, device=device_of_sums)
    for index, numbers in of_batch.items():
        sums[:, index] = numbers
    return sum_over_ranks(sums, ranks).sum(1)
