"""Kills work at each of its changes on the disk in turn."""

import os
import signal
from collections.abc import Callable, Mapping
from typing import Any


def killed_after(steps: int, work: Callable[[], object], changing: Mapping[Any, str]) -> bool:
    """Does the work in a process that is killed before it calls, for the `steps`-th time, any of the functions that
    change the disk: their names, by what has them. Whether it came that far."""
    child = os.fork()
    if child == 0:
        try:
            _count(steps, changing)
            work()
        except BaseException:
            os._exit(1)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, "the work failed before it was killed"
    return os.WIFSIGNALED(status)


def _count(steps: int, changing: Mapping[Any, str]) -> None:
    left = steps

    def counted(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            nonlocal left
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments, **options)

        return call

    for owner, names in changing.items():
        for name in names.split():
            setattr(owner, name, counted(getattr(owner, name)))
