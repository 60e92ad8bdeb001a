"""Run a test's body on n gloo ranks of this machine."""

import os
import socket
from collections.abc import Callable
from typing import Any

import torch
import torch.multiprocessing as mp

from training.parallel import process_group
from training.ranks import Ranks


def on_ranks(size: int, body: Callable[..., Any], *arguments: Any) -> list[Any]:
    """`body(ranks, *arguments)` on each of `size` processes; returns what they returned, by rank.

    `body` stands at a module's top level. An exception on any rank fails the caller.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = mp.get_context("spawn")
    results = context.Manager().dict()
    mp.spawn(_one_rank, args=(size, port, results, body, arguments), nprocs=size)
    return [results[rank] for rank in range(size)]


def _one_rank(rank: int, size: int, port: int, results: Any, body: Callable, arguments: tuple) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": str(rank), "WORLD_SIZE": str(size)}
    torch.set_num_threads(1)
    ranks = Ranks(rank, rank, size)
    with process_group(ranks, torch.device("cpu"), "gloo"):
        results[rank] = body(ranks, *arguments)
