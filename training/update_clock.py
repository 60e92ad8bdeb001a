"""How long the optimizer's step takes, the exchanges in it included."""

import contextlib
import time
from collections import deque
from collections.abc import Iterator

import torch

Event = torch.cuda.Event


class UpdateClock:
    """Measures updates on a CPU by the clock. A GPU computes them later: events are put around them, and what one took
    is known when the device has passed it. On other devices nothing is measured."""

    def __init__(self) -> None:
        self._known: float | None = None
        self._pending: deque[tuple[Event, Event]] = deque()

    @contextlib.contextmanager
    def around(self, device: torch.device) -> Iterator[None]:
        """The block updates what is on this device."""
        if device.type == "cuda":
            events = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            events[0].record()
            yield
            events[1].record()
            self._pending.append(events)
            return
        started = time.perf_counter()
        yield
        self._known = time.perf_counter() - started if device.type == "cpu" else None

    def take(self) -> float | None:
        """Seconds of the oldest update that is over and was not taken yet; on a GPU, after a step that has waited for
        the device, that of the step before. None: there is none."""
        if self._pending and self._pending[0][1].query():
            begun, ended = self._pending.popleft()
            return begun.elapsed_time(ended) / 1000
        known, self._known = self._known, None
        return known
