"""Folders that one process at a time works in. The kernel lets go of a lock however its process ends."""

import fcntl
import time
from pathlib import Path
from typing import IO

PATIENCE = 0.2  # seconds: `is_locked` holds the lock for an instant


def lock(folder: Path) -> IO[str] | None:
    """The folder's lock file, held until it is closed; None while another process holds it. Raises OSError where the
    file cannot be written."""
    file = (folder / ".lock").open("w")
    try:
        if _taken(file):
            return file
    except BaseException:
        file.close()
        raise
    file.close()
    return None


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
