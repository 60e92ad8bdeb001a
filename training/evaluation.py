"""The validation loss: on the same windows every time, and the same number for any number of ranks."""

from collections.abc import Callable

import torch
from torch import nn

from training.device import precision
from training.loader import WindowLoader
from training.parallel import sum_over_ranks
from training.ranks import Ranks

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
    them in the same order: rounding does not depend on who computed what.
    """
    batch_size = min(batch_size, loader.n_windows)
    batches = min(batches, loader.n_windows // batch_size)
    losses = torch.zeros(batches + 1, dtype=torch.float64)  # the last one counts ranks that were interrupted
    model.eval()
    for batch in ranks.share(range(batches)):
        if stop_requested():
            losses[-1] = 1
            break
        tokens, targets = loader.batch(batch * batch_size, batch_size)
        with precision(device, dtype):
            losses[batch] = model(tokens.to(device), targets.to(device)).item()
    model.train()
    losses = sum_over_ranks(losses.to(device) if device.type == "cuda" else losses, ranks).cpu()
    return None if losses[-1] else losses[:-1].mean().item()
