"""What becomes of ranks whose launcher is gone before they have met.

The store in which they leave each other their addresses is torchrun's: without it they would wait for minutes, and
hold the run's folder. Once the run has begun they need it no more, and go on to the end.
"""

import os
import sys
import threading
import time

from parallel.ranks import Ranks

LOOK_SECONDS = 0.2


class LauncherWatch:
    """From its creation until `release`, this process ends when the one that started it has ended."""

    def __init__(self, ranks: Ranks):
        self.ranks = ranks
        self._over = threading.Event()
        if ranks.size > 1 and ranks.started_by is not None:
            threading.Thread(target=self._look, name="launcher", daemon=True).start()

    def _look(self) -> None:
        while not self._over.wait(LOOK_SECONDS):
            if launcher_is_gone(self.ranks):
                if self.ranks.local_rank == 0:
                    print(f"error: {LAUNCHER_GONE}", file=sys.stderr, flush=True)
                os._exit(1)  # the main thread waits for an answer that never comes

    def release(self) -> None:
        self._over.set()


LAUNCHER_GONE = "torchrun has gone before the ranks had met: start the run again"


def launcher_is_gone(ranks: Ranks, patience: float = 0.0) -> bool:
    """Whether the process that started this one has ended, or does so within some seconds: a process that is killed
    closes its connections a moment before it is seen to be gone."""
    until = time.monotonic() + patience
    while ranks.started_by is not None and os.getppid() == ranks.started_by and time.monotonic() < until:
        time.sleep(0.05)
    return ranks.started_by is not None and os.getppid() != ranks.started_by
