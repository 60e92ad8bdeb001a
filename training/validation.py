"""The validation loss: on the same windows every time, and the same number for any number of ranks."""

import math
from collections.abc import Callable

import torch
from torch import nn

from data.loader import WindowLoader
from parallel.collectives import largest_over_ranks, sum_over_ranks
from parallel.device import precision
from parallel.ranks import Ranks
from parallel.strategy import give_back_weights

WINDOW_SEED = 0  # of the validation order: not the run's, so that runs of several seeds compare


@torch.no_grad()
def evaluate(
    model: nn.Module,
    loader: WindowLoader,
    batches: int,
    batch_size: int,
    ranks: Ranks,
    device: torch.device,
    dtype: str,
    stop_requested: Callable[[], bool],
) -> float | None:
    """Mean loss in nats per token over the first `batches` batches (or all the split has); None if a rank must stop.

    Each batch belongs to one rank. The ranks exchange the list of batch losses, not a partial sum, and everyone adds
    them in the same order: rounding does not depend on who computed what. All take equally many turns, as strategies
    need whose forward pass is an exchange; who has no batch left computes one again that is another's.
    """
    batch_size = min(batch_size, loader.n_windows)
    batches = min(batches, loader.n_windows // batch_size)
    device_of_losses = device if device.type == "cuda" else "cpu"  # mps has no float64
    losses = torch.zeros(batches, dtype=torch.float64, device=device_of_losses)
    mine, interrupted = ranks.share(range(batches)), False
    model.eval()
    for turn in range(math.ceil(batches / ranks.data_size)):
        interrupted = bool(largest_over_ranks(torch.tensor(int(stop_requested()), device=device_of_losses), ranks))
        if interrupted:
            break
        batch = mine[turn] if turn < len(mine) else 0
        tokens, targets = loader.batch(batch * batch_size, batch_size)
        with precision(device, dtype):
            loss = model(tokens.to(device), targets.to(device))
        if turn < len(mine):
            losses[batch] = loss
    model.train()
    give_back_weights(model)
    return None if interrupted else sum_over_ranks(losses, ranks).mean().item()
