"""Processes that need not import PyTorch first: they are forked from one that has.

What only a fresh interpreter shows (its imports, its start by torchrun, its end) is for the tests that start the real
command, such as the README's first hour.
"""

import functools
import multiprocessing
import os
import runpy
import sys
import tempfile
from collections.abc import Mapping, Sequence
from multiprocessing import forkserver, reduction
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from typing import Any, TextIO

import pytest
from commands import Done

ROOT = Path(__file__).resolve().parent.parent
PRELOADED = ["pytest", "hypothesis", "training.trainer", "torch.distributed.run"]


@functools.cache
def warm() -> ForkServerContext:
    """Starts processes, all forked from one that has a single thread and nothing of a test's in it."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))
        forkserver.ensure_running()
    return context


def start(
    script: Path, keys: Sequence[str], cwd: Path, env: Mapping[str, str], torchrun: Sequence[str], out: int, err: int
) -> ForkServerProcess:
    """A script as a process of its own, or as those of torchrun, if that has arguments. `out` and `err` are files."""
    arguments = [str(script), *keys]
    if torchrun:
        arguments = [*torchrun, "--run_path", "--start_method=fork", *arguments]
    process = warm().Process(target=_run, args=(arguments, cwd, dict(env), bool(torchrun), _Files(out, err)))
    process.start()
    return process


class _Files:
    """Open files on their way to a process that is being started."""

    def __init__(self, *files: int):
        self.files = files

    def __reduce__(self) -> tuple[Any, ...]:
        return _received, tuple(map(reduction.DupFd, self.files))


def _received(*files: Any) -> list[int]:
    return [file.detach() for file in files]


def run(script: Path, keys: Sequence[str], cwd: Path, env: Mapping[str, str], torchrun: Sequence[str] = ()) -> Done:
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        process = start(script, keys, cwd, env, torchrun, out.fileno(), err.fileno())
        process.join(120)
        ended = process.exitcode
        if ended is None:
            process.kill()
        printed = []
        for file in (out, err):
            file.seek(0)
            printed.append(file.read().decode())
    assert ended is not None, f"{script} does not end\n{printed}"
    return Done(ended, *printed)


def start_speaking(
    script: Path, keys: Sequence[str], cwd: Path, env: Mapping[str, str], torchrun: Sequence[str] = ()
) -> tuple[ForkServerProcess, TextIO]:
    """A process, and all that it prints, as it prints it."""
    reader, writer = os.pipe()
    process = start(script, keys, cwd, env, torchrun, writer, writer)
    os.close(writer)
    return process, os.fdopen(reader)


def _run(arguments: list[str], cwd: Path, env: dict[str, str], torchrun: bool, outputs: list[int]) -> None:
    for number, file in enumerate(outputs, start=1):
        os.dup2(file, number)
        os.close(file)
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    from parallel import device

    device.measure_matmul = lambda *_: 1e11  # half a second, for a figure that no test of a process looks at
    if torchrun:
        from torch.distributed.run import main

        main(arguments)
    else:
        sys.argv = arguments
        runpy.run_path(arguments[0], run_name="__main__")
