"""The commands, called in the test's own process: much faster than as processes of their own."""

import contextlib
import dataclasses
import io
import signal
import sys
from collections.abc import Callable, Iterator

import pytest

import model_components
from flops_parameter_counting.costs import component_costs, memory


@dataclasses.dataclass
class Done:
    """How a command ended."""

    returncode: int
    stdout: str
    stderr: str


def command(main: Callable[[], None], *arguments: object) -> Done:
    """A command's `main` with these arguments."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    with pytest.MonkeyPatch.context() as patch, kept_signals(), kept_registries():
        patch.setattr(sys, "argv", ["the command", *map(str, arguments)])
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as end:
            main()
    if isinstance(end.value.code, int):
        code = end.value.code
    return Done(code, out.getvalue(), err.getvalue())


@contextlib.contextmanager
def kept_registries() -> Iterator[None]:
    """A config file registers its components for the rest of its process's life."""
    registries = (model_components._REGISTRY, component_costs._COSTS, memory._KEPT)
    before = [{kind: dict(names) for kind, names in registry.items()} for registry in registries]
    try:
        yield
    finally:
        for registry, names in zip(registries, before, strict=True):
            registry.clear()
            registry.update(names)


@contextlib.contextmanager
def kept_signals() -> Iterator[None]:
    """train.py takes SIGINT and SIGTERM for the rest of its process's life."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
