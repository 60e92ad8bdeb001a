"""Folders that one process at a time works in. The kernel lets go of a lock however its process ends."""

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

PATIENCE = 0.2  # seconds: `is_locked` holds the lock for an instant


def lock(folder: Path) -> IO[str] | None:
    """The folder's lock file, held until it is closed; None while another process holds it. Raises OSError where the
    file cannot be written."""
    with contextlib.ExitStack() as opened:
        file = opened.enter_context((folder / ".lock").open("w"))
        if not _taken(file):
            return None
        if not _has_its_name(file, folder):  # who held it has taken it away meanwhile (`left_as_it_was`)
            return lock(folder)
        opened.pop_all()
        return file


def _has_its_name(file: IO[str], folder: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), (folder / ".lock").stat())
    except FileNotFoundError:
        return False


@contextlib.contextmanager
def left_as_it_was(folder: Path) -> Iterator[None]:
    """Makes the folder, whose lock the block takes and holds to its end. Where the block ends by an exception with
    nothing new in the folder, what it has made is taken away: the lock, the folder, and those around it."""
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    before = _names_in(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException:
        if _names_in(folder) - before == {".lock"}:
            _remove_lock(folder)
        with contextlib.suppress(OSError):
            for path in filter(Path.exists, made):
                path.rmdir()  # stops at one that is not empty
        raise


def _names_in(folder: Path) -> set[str]:
    try:
        return {path.name for path in folder.iterdir()}
    except OSError:
        return set()


def _remove_lock(folder: Path) -> None:
    """Unless another process holds it by now."""
    with contextlib.suppress(OSError):
        if (held := lock(folder)) is not None:
            with held:
                (folder / ".lock").unlink()


def _taken(file: IO[str]) -> bool:
    until = time.monotonic() + PATIENCE
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > until:
                return False
            time.sleep(0.02)
        else:
            return True


def is_locked(folder: Path) -> bool:
    """Whether a live process holds the folder."""
    try:
        with (folder / ".lock").open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)  # released as the file closes
    except BlockingIOError:
        return True
    except OSError:  # no lock file: a folder that was copied here, or that nobody has worked in
        return False
    return False
