"""SIGINT and SIGTERM as a request that the training loop reads when it is ready to stop."""

import signal
import sys
from types import FrameType


class StopRequest:
    """From its creation on, the first signal only notes itself; a second one ends the process at once."""

    def __init__(self, announce: bool = True) -> None:
        self.announce = announce
        self.signal_number: int | None = None
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.signal_number is not None:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        self.signal_number = number
        if self.announce:
            name = signal.Signals(number).name
            print(f"\n{name}: finishing the step, then saving; once more to stop at once", file=sys.stderr)

    def __bool__(self) -> bool:
        return self.signal_number is not None
