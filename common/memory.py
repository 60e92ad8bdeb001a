"""How much memory this process has had."""

import re
import resource
import sys
from pathlib import Path

_STATUS = Path("/proc/self/status")


def peak_of_process() -> int:
    """The most that was resident, bytes. Linux counts it in /proc/self/status since the program began; its `getrusage`
    gives a process the peak of the one that started it, where that is more."""
    if sys.platform == "linux" and (found := re.search(r"^VmHWM:\s*(\d+) kB$", _STATUS.read_text(), re.MULTILINE)):
        return int(found[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
