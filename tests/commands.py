"""The commands, called in the test's own process: much faster than as processes of their own."""

import contextlib
import dataclasses
import io
import signal
import sys
from collections.abc import Callable, Iterator

import pytest

from components import registry


@dataclasses.dataclass
class Done:
    """How a command ended."""

    returncode: int
    stdout: str
    stderr: str


def command(main: Callable[[], None], *arguments: object) -> Done:
    """A command's `main` with these arguments."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    with pytest.MonkeyPatch.context() as patch, kept_signals(), registry.kept():
        patch.setattr(sys, "argv", ["the command", *map(str, arguments)])
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as end:
            main()
    if isinstance(end.value.code, int):
        code = end.value.code
    return Done(code, out.getvalue(), err.getvalue())


@contextlib.contextmanager
def kept_signals() -> Iterator[None]:
    """train.py takes these signals for the rest of its process's life."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
