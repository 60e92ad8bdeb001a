"""What the machine has, and a refusal of what is far too large for it: the system would rather end some process."""

import os
from pathlib import Path

from common.errors import UserError
from common.units import bytes_text

TOO_MUCH = 2  # times its memory: an estimate below that is left to the machine, which may have a swap or a GPU
CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")


def memory_bytes() -> int:
    """The machine's main memory, or what of it a container may use."""
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        return min(physical, int(CGROUP_LIMIT.read_text()))
    except (OSError, ValueError):  # no container, or one without a limit: "max"
        return physical


def check_memory(what: str, needed: int, instead: str) -> None:
    """Raises UserError, with what to do `instead`, where this is far more than the machine has."""
    if needed > TOO_MUCH * (there := memory_bytes()):
        raise UserError(f"{what} takes {bytes_text(needed)}, and this machine has {bytes_text(there)}: {instead}")
