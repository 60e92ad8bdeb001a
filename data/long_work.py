"""Work on many texts, which takes long: shared among processes that end with the one that began them, and continued
after a kill."""

import concurrent.futures
import contextlib
import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import active_children, get_context, parent_process
from pathlib import Path
from typing import Any

from common.errors import UserError
from common.files import replace_file, sync


@contextlib.contextmanager
def processes(
    count: int, where_killed: str, begin: Callable[..., None] | None = None, *arguments: Any
) -> Iterator[concurrent.futures.ProcessPoolExecutor]:
    """So many for the block, each of which calls `begin` first. A block that ends early ends what they are at. Raises
    UserError, with `where_killed`, if one was killed."""
    others = set(active_children())
    with concurrent.futures.ProcessPoolExecutor(count, get_context("spawn"), _begin, (begin, arguments)) as pool:
        try:
            yield pool
        except BrokenProcessPool:
            raise UserError(where_killed) from None
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in set(active_children()) - others:
                process.terminate()
            raise


def _begin(begin: Callable[..., None] | None, arguments: tuple[Any, ...]) -> None:
    """A process of a pool ends when the first process ends it, or is no more: by itself it would wait for work for ever
    where that was killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process, and the first one ends the others
    threading.Thread(target=_wait_for_the_first_to_end, daemon=True).start()
    if begin is not None:
        begin(*arguments)


def _wait_for_the_first_to_end() -> None:
    first = parent_process()
    assert first is not None
    first.join()
    os._exit(1)


def begin_or_go_on(note: Path, text: str, refusal: str) -> None:
    """What work in steps is of is written into a `note` in a folder of its own; or it is there, and the same. Raises
    UserError, with the refusal, where other work was begun there."""
    if not note.exists():  # nor is anything that it would be the note of
        shutil.rmtree(note.parent, ignore_errors=True)
        note.parent.mkdir()
        replace_file(note, text.encode(), on_disk=True)
        sync(note.parent)
    elif note.read_text(encoding="utf-8") != text:
        raise UserError(refusal)
