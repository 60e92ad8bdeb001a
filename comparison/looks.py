"""Which colour and which dashes a run is drawn with: runs that differ only by their seed share their colour."""

from collections.abc import Sequence

from comparison.statistics import groups
from runs.logs import RunLog

# Five of Okabe and Ito's colours, and in place of those too light for a white page three that stand out on a dark one
# too; colour-blind readers can tell all apart. Black is the colour of the text.
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#d01040", "#7080ff", "#000000", "#8030ff")
DASHES = 7  # ways to dash a line


def looks(runs: Sequence[RunLog]) -> list[tuple[str, int]]:
    """For each run its colour and the number of its dashes, from 0. Each group takes the colour that the fewest runs
    have, and another where that has no dashes left: up to 56 runs, no two look alike."""
    found: dict[int, tuple[str, int]] = {}
    used = dict.fromkeys(COLORS, 0)
    for group in groups(runs):
        color = min(used, key=used.__getitem__)
        for run in group.runs:
            if used[color] % DASHES == 0:
                color = min(used, key=used.__getitem__)
            found[id(run)] = color, used[color] % DASHES
            used[color] += 1
    return [found[id(run)] for run in runs]
