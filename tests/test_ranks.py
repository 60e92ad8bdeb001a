"""Ranks that end with a memory fault, for these tests: once may be the library's, always is not."""

import os
import signal
from pathlib import Path

import pytest
import torch.multiprocessing as mp
from ranks import on_ranks


def faults(ranks, before: Path, always: bool) -> int:
    if always or not before.exists():
        before.touch()
        os.kill(os.getpid(), signal.SIGSEGV)
    return ranks.rank


def test_ranks_with_a_memory_fault_start_once_more(tmp_path):
    with pytest.warns(UserWarning, match="SIGSEGV: its stack stands above; once more"):
        assert on_ranks(1, faults, tmp_path / "once", False) == [0]
    with pytest.warns(UserWarning, match="once more"), pytest.raises(mp.ProcessExitedException, match="SIGSEGV"):
        on_ranks(1, faults, tmp_path / "always", True)
