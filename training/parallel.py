"""The ranks of a run: one process, or several under torchrun that average their gradients (DDP)."""

import contextlib
from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from errors import UserError
from training.ranks import Ranks


@contextlib.contextmanager
def process_group(ranks: Ranks, device: torch.device, backend: str) -> Iterator[None]:
    """Connects the ranks for the block; nothing to do for one process."""
    if ranks.size == 1:
        yield
        return
    if backend == "auto":
        backend = "nccl" if device.type == "cuda" else "gloo"
    if backend == "nccl" and device.type != "cuda":
        raise UserError(f"backend='nccl' needs GPUs; on {device.type} take --backend=gloo")
    dist.init_process_group(backend, device_id=device if device.type == "cuda" else None)
    yield
    dist.destroy_process_group()  # not after an exception: the others may wait in a collective that never comes


def parallelize(model: nn.Module, ranks: Ranks, device: torch.device) -> nn.Module:
    """The model as every rank trains it: the same weights, the gradients averaged over the ranks in backward."""
    if ranks.size == 1:
        return model
    device_ids = [device.index] if device.type == "cuda" else None
    return DistributedDataParallel(model, device_ids=device_ids, gradient_as_bucket_view=True)


def without_gradient_sync(model: nn.Module, wanted: bool) -> contextlib.AbstractContextManager:
    """For all micro-batches of a step but the last: gradients add up locally and travel once."""
    return model.no_sync() if wanted and isinstance(model, DistributedDataParallel) else contextlib.nullcontext()


def sum_over_ranks(values: Tensor, ranks: Ranks) -> Tensor:
    """In place; every rank gets the sum."""
    if ranks.size > 1:
        dist.all_reduce(values)
    return values


def largest_over_ranks(values: Tensor, ranks: Ranks) -> Tensor:
    """In place; every rank gets the largest."""
    if ranks.size > 1:
        dist.all_reduce(values, op=dist.ReduceOp.MAX)
    return values


def from_first_rank(values: Tensor, ranks: Ranks) -> Tensor:
    """In place; every rank gets the first one's values."""
    if ranks.size > 1:
        dist.broadcast(values, src=0)
    return values
