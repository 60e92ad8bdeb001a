"""The process group of a run, and the few exchanges that the training loop makes itself."""

import contextlib
import datetime
import os
import socket
from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch import Tensor

from common.errors import RunFailure, UserError
from parallel.launcher import LAUNCHER_GONE, launcher_is_gone
from parallel.ranks import Ranks, restarts
from runs.config import RunConfig

SECONDS_TO_CONNECT = 30


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
    try:
        dist.init_process_group(
            backend,
            store=meeting_place(ranks),
            rank=ranks.rank,
            world_size=ranks.size,
            timeout=datetime.timedelta(seconds=run.comm_timeout),
            device_id=device if device.type == "cuda" else None,
        )
    except (dist.DistError, OSError) as error:
        if isinstance(error, OSError) or launcher_is_gone(ranks, patience=1.0):
            raise RunFailure(LAUNCHER_GONE if ranks.local_rank == 0 else "") from None
        raise RunFailure(f"the ranks did not meet: {str(error).splitlines()[0]}") from None
    yield
    dist.destroy_process_group()  # not after an exception: the others may wait in a collective that never comes


def meeting_place(ranks: Ranks) -> dist.Store:
    """Where the ranks leave each other their addresses: torchrun's store, or the first rank's.

    torchrun keeps its store when it starts failed ranks again; under a prefix of their own they do not find the
    addresses of the dead (PyTorch does so only with TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1). Raises OSError where
    torchrun has gone.
    """
    if ranks.size == 1:
        return dist.HashStore()
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    is_torchruns = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    if is_torchruns:  # it was there before the ranks were: PyTorch would look for it for minutes
        socket.create_connection((address, port), timeout=SECONDS_TO_CONNECT).close()
    store = dist.TCPStore(address, port, ranks.size, not is_torchruns and ranks.is_first, multi_tenant=True)
    return dist.PrefixStore(f"isoflop/{restarts()}", store)


def sum_over_ranks(values: Tensor, ranks: Ranks) -> Tensor:
    """In place; every rank gets the sum, to which ranks with the same tokens contribute once."""
    if ranks.size > 1:
        if not ranks.speaks_for_its_tokens:
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
