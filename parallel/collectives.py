"""The process group of a run, and the few exchanges that the training loop makes itself."""

import contextlib
import datetime
import os
from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch import Tensor

from common.errors import UserError
from parallel.ranks import Ranks, restarts
from runs.config import RunConfig


@contextlib.contextmanager
def process_group(ranks: Ranks, device: torch.device, run: RunConfig) -> Iterator[None]:
    """Connects the ranks for the block. One process needs it only for a strategy that PyTorch builds on groups."""
    if ranks.size == 1 and not run.is_sharded:
        yield
        return
    backend = run.backend
    if backend == "nccl" and device.type != "cuda":
        raise UserError(f"backend='nccl' needs GPUs; on {device.type} take --backend=gloo")
    if backend == "auto":  # gloo for what lies in main memory: checkpoints, and offloaded state
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(
        backend,
        store=meeting_place(ranks),
        rank=ranks.rank,
        world_size=ranks.size,
        timeout=datetime.timedelta(seconds=run.comm_timeout),
        device_id=device if device.type == "cuda" else None,
    )
    yield
    dist.destroy_process_group()  # not after an exception: the others may wait in a collective that never comes


def meeting_place(ranks: Ranks) -> dist.Store:
    """Where the ranks leave each other their addresses: torchrun's store, or the first rank's.

    torchrun keeps its store when it starts failed ranks again; under a prefix of their own they do not find the
    addresses of the dead (PyTorch does so only with TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1).
    """
    if ranks.size == 1:
        return dist.HashStore()
    is_ours = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True" and ranks.is_first
    store = dist.TCPStore(
        os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), ranks.size, is_ours, multi_tenant=True
    )
    return dist.PrefixStore(f"isoflop/{restarts()}", store)


def sum_over_ranks(values: Tensor, ranks: Ranks) -> Tensor:
    """In place; every rank gets the sum, to which ranks with the same data contribute once."""
    if ranks.size > 1:
        if not ranks.speaks_for_its_data:
            values.zero_()
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
