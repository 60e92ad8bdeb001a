"""What a checkpoint holds, whole, whoever wrote it; and the commands that read checkpoints, called in this process."""

import contextlib
import dataclasses
import io
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor


def last_checkpoint(run: Path) -> Path:
    return max(run.glob("checkpoints/step_*"))


def tensors(checkpoint: Path) -> dict[str, Tensor]:
    """The model's, and the optimizer's under `optimizer.<parameter>.<what>`."""
    reader = dcp.HuggingFaceStorageReader(str(checkpoint))
    known = reader.read_metadata().state_dict_metadata
    found = {name: torch.zeros(of.size, dtype=of.properties.dtype) for name, of in known.items()}
    dcp.load(found, storage_reader=reader, no_dist=True)
    return found


def weights(checkpoint: Path) -> dict[str, Tensor]:
    """The model's alone."""
    return {name: value for name, value in tensors(checkpoint).items() if not name.startswith("optimizer.")}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    """To the last bit."""
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@dataclasses.dataclass
class Done:
    """How a command ended."""

    returncode: int
    stdout: str
    stderr: str


def command(main: Callable[[], None], *arguments: object) -> Done:
    """A command's `main` with these arguments, much faster than as a process."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    with pytest.MonkeyPatch.context() as patch, kept_signals():
        patch.setattr(sys, "argv", ["the command", *map(str, arguments)])
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as end:
            main()
    if isinstance(end.value.code, int):
        code = end.value.code
    return Done(code, out.getvalue(), err.getvalue())


def training(data_dir: Path, run: Path, *keys: str) -> Done:
    """train.py on the small model of conftest; later keys replace earlier ones."""
    from conftest import SMALL

    import train

    given = [*SMALL, f"--data_dir={data_dir}", f"--out_dir={run}", *keys]
    return command(train.main, *{key.partition("=")[0]: key for key in given}.values())


@contextlib.contextmanager
def kept_signals() -> Iterator[None]:
    """train.py takes SIGINT and SIGTERM for the rest of its process's life."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
