"""Run a test's body on n gloo ranks of this machine."""

import faulthandler
import os
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from processes import warm

from parallel.collectives import process_group
from parallel.ranks import Ranks
from runs.config import RunConfig


def on_ranks(size: int, body: Callable[..., Any], *arguments: Any) -> list[Any]:
    """`body(ranks, *arguments)` on each of `size` processes; returns what they returned, by rank.

    `body` stands at a module's top level. An exception on any rank fails the caller. A rank that ends with a memory
    fault did so below Python: PyTorch 2.13's gloo did, in a thread of its own while all ranks waited for a
    reduce-scatter, once in all runs of these tests. Such ranks are started once more, with a warning.
    """
    try:
        return _started(size, body, arguments)
    except mp.ProcessExitedException as error:
        if error.signal_name != "SIGSEGV":
            raise
        warnings.warn(f"{body.__name__}: {error}: its stack stands above; once more", stacklevel=2)
        return _started(size, body, arguments)


def _started(size: int, body: Callable[..., Any], arguments: tuple) -> list[Any]:
    # As torchrun does it: a port that is found free and bound later may be another's by then.
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    results = warm().Manager().dict()
    mp.start_processes(_one_rank, (size, store.port, results, body, arguments), nprocs=size, start_method="forkserver")
    return [pickle.loads(results[rank]) for rank in range(size)]


def _one_rank(rank: int, size: int, port: int, results: Any, body: Callable, arguments: tuple) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_USE_AGENT_STORE": "True"}
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(size)}
    # Where a rank was that a signal ended stands in the failed test's stderr: the stacks of Python, then of C++.
    faulthandler.enable()
    torch._C._set_print_stack_traces_on_fatal_signal(True)
    torch.set_num_threads(1)
    ranks = Ranks(rank, rank, size)
    with process_group(ranks, torch.device("cpu"), RunConfig(use_fsdp=True)):  # a group for one rank too
        # As bytes: multiprocessing would keep a file open for every tensor.
        results[rank] = pickle.dumps(body(ranks, *arguments))
