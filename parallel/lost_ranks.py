"""Which rank a run has lost, when an exchange between ranks fails or does not end.

The error that PyTorch raises names an address, and ranks that wait for one which waits for the lost one look lost too.
So every rank tells the others that it lives, and says when one of its exchanges has failed: lost is who fell silent,
or, when nobody did, who lives but never came to the exchange.
"""

import contextlib
import datetime
import os
import threading
import time
from collections.abc import Iterator

import torch.distributed as dist

from common.errors import RunFailure, UserError
from parallel.launcher import launcher_is_gone
from parallel.ranks import Ranks, restarts

BEAT_SECONDS = 1.0
SILENT_SECONDS = 5.0  # without a beat: gone
EXCHANGE_ERRORS = ("gloo", "nccl", "connection closed", "connection reset", "timed out", "timeout", "broken pipe")


class Watch:
    """This rank's signs of life. `place` says what it is doing, for the error: "step 7"."""

    def __init__(self, ranks: Ranks):
        self.ranks, self.place = ranks, "the start"
        self._prefix = f"isoflop/{restarts()}"  # a restarted run may meet the store of the failed one
        self._over = threading.Event()
        if ranks.size > 1:
            self._store = self._connect()
            threading.Thread(target=self._beat, args=(self._connect(),), daemon=True).start()

    def _connect(self) -> dist.TCPStore:
        """A connection of its own to the store where the ranks met."""
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        patience = datetime.timedelta(seconds=SILENT_SECONDS)
        return dist.TCPStore(address, port, is_master=False, timeout=patience, wait_for_workers=False)

    def _beat(self, store: dist.TCPStore) -> None:
        with contextlib.suppress(RuntimeError):  # the store is gone: whoever kept it is lost, and others notice
            # torchrun keeps the store: when it is gone, PyTorch would print a stack of what it cannot send there
            while not self._over.wait(BEAT_SECONDS) and not launcher_is_gone(self.ranks):
                store.add(f"{self._prefix}/beat/{self.ranks.rank}", 1)

    def stop(self) -> None:
        self._over.set()

    def explain(self, error: Exception, timeout: float) -> RunFailure:
        """The one line that says which rank is lost; empty on ranks that leave it to another to say."""
        if launcher_is_gone(self.ranks, patience=1.0):  # and the store with it: who is lost nobody knows
            said = f"torchrun has gone, and then an exchange of {self.place} failed: {_CONTINUES}"
            return RunFailure(said if self.ranks.local_rank == 0 else "")
        try:
            failed, silent = self._look_around()
            if self._store.add(f"{self._prefix}/said", 1) > 1:
                return RunFailure("")
        except RuntimeError:
            failed, silent = {self.ranks.rank}, {0}  # whose process keeps the store
        others = set(range(self.ranks.size)) - failed
        if silent:
            return RunFailure(f"{_named(silent)} gone in {self.place}: {_ADVICE}")
        if others:
            return RunFailure(f"{_named(others)} not come to an exchange of {self.place} in {timeout:g} s: {_ADVICE}")
        return RunFailure(f"an exchange of {self.place} failed: {str(error).splitlines()[0]}")

    def _look_around(self) -> tuple[set[int], set[int]]:
        """The ranks whose exchanges have failed too, and those that have fallen silent."""
        self._store.set(f"{self._prefix}/failed/{self.ranks.rank}", "1")
        before = self._beats()
        time.sleep(SILENT_SECONDS)
        after = self._beats()
        everyone = range(self.ranks.size)
        failed = {rank for rank in everyone if self._store.check([f"{self._prefix}/failed/{rank}"])}
        return failed, {rank for rank in everyone if before[rank] == after[rank]} - failed

    def _beats(self) -> list[int]:
        return [self._store.add(f"{self._prefix}/beat/{rank}", 0) for rank in range(self.ranks.size)]


_CONTINUES = "--init_from=auto continues from the last checkpoint"
_ADVICE = f"its own output says why, if it could say anything; {_CONTINUES}"


def _named(ranks: set[int]) -> str:
    listed = ", ".join(map(str, sorted(ranks)))
    return f"rank {listed} has" if len(ranks) == 1 else f"ranks {listed} have"


@contextlib.contextmanager
def naming_lost_ranks(ranks: Ranks, timeout: float) -> Iterator[Watch]:
    """Turns the failure of an exchange within the block into a RunFailure that names the rank and the place."""
    watch = Watch(ranks)
    try:
        yield watch
    except (UserError, RunFailure):
        raise
    except Exception as error:
        if ranks.size == 1 or not any(sign in str(error).lower() for sign in EXCHANGE_ERRORS):
            raise
        raise watch.explain(error, timeout) from error
    finally:
        watch.stop()
