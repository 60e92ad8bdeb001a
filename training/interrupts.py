"""SIGINT, SIGTERM and SIGHUP as a request that the training loop reads when it is ready to stop."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

from common.output import say_at_once

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class StopRequest:
    """From its creation on, the first signal only notes itself; a second one ends the process at once.

    A hang-up is never the second one: when a terminal closes, shell and kernel send one each, and a service that is
    stopped gets one beside its SIGTERM. One that the process was started to ignore (nohup) is ignored.
    """

    def __init__(self, announce: bool = True) -> None:
        self.announce = announce
        self.signal_number: int | None = None
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._note)
        if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
            signal.signal(signal.SIGHUP, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.signal_number not in (None, signal.SIGHUP) and number != signal.SIGHUP:
            signal.signal(number, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
            signal.raise_signal(number)
        if self.announce and self.signal_number is None:
            name = signal.Signals(number).name
            say_at_once(f"\n{name}: finishing the step, then saving; once more to stop at once")
        if self.signal_number in (None, signal.SIGHUP):
            self.signal_number = number

    def __bool__(self) -> bool:
        return self.signal_number is not None


@contextlib.contextmanager
def kept_from_children() -> Iterator[None]:
    """Processes that are started within the block, such as compilers, never get the signals of a Ctrl-C, which reach
    all that share a terminal: the step that waits for them can be finished. This process gets them as before.

    Children inherit what the thread that starts them has blocked; here another thread takes the signals, and Python
    runs its handlers in the main one as ever.
    """
    over = threading.Event()
    threading.Thread(target=over.wait, name="signals", daemon=True).start()  # it inherits that nothing is blocked
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        over.set()
