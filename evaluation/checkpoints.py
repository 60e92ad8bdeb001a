"""Every checkpoint of a run, in the order of its steps: each is evaluated once, what was found is kept beside the run,
and a run that goes on can be followed."""

import dataclasses
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from common.errors import UserError
from evaluation.extras import grid_lines
from evaluation.figures import Figure
from runs.evaluations import Evaluation, kept, write
from runs.folder import RunFolder, read_state, step_of
from runs.logs import read_run

Ask = Callable[[Path], list[Figure]]


@dataclasses.dataclass(frozen=True)
class Follower:
    """The checkpoints of a folder. `asked` says what is asked of each, so that only what was asked alike is taken over
    from `file`."""

    folder: RunFolder
    file: Path
    asked: dict[str, Any]
    ask: Ask

    def catch_up(self) -> list[Evaluation]:
        """Evaluate what is not yet; all that is known then, in the order of steps. A checkpoint that the run deletes
        meanwhile is left out, and one whose folder is there but cannot be used raises UserError."""
        known = kept(self.file)
        for checkpoint in self.folder.checkpoints():
            try:
                state = read_state(checkpoint)
                if any(one.is_of(state, self.asked) for one in known):
                    continue
                print(f"step {step_of(checkpoint):,}", file=sys.stderr)
                figures = self.ask(checkpoint)
            except UserError:
                if checkpoint.exists():
                    raise
                continue
            step = step_of(checkpoint)
            known = [one for one in known if (one.step, one.asked) != (step, self.asked)]  # of a run that took it again
            known.append(Evaluation.of(state, self.asked, [figure.as_json() for figure in figures]))
            write(self.file, known)
        return sorted((one for one in known if one.asked == self.asked), key=lambda one: one.step)

    def follow(self, seconds: float | None, show: Callable[[Sequence[Evaluation]], None]) -> None:
        """Catch up and show; every so many seconds again, until the run has ended, which it does with a checkpoint."""
        shown: list[Evaluation] | None = None
        while True:
            goes_on = seconds is not None and read_run(self.folder.path).state == "running"
            if (found := self.catch_up()) != shown:
                show(found)
                shown = found
            if not goes_on or seconds is None:
                return
            time.sleep(seconds)


def table_of(evaluations: Sequence[Evaluation]) -> list[str]:
    """A line a checkpoint, a column a metric."""
    columns = list(dict.fromkeys((one["task"], one["metric"]) for found in evaluations for one in found.figures))
    rows = []
    for found in evaluations:
        cells = {(one["task"], one["metric"]): _cell(one) for one in found.figures}
        rows.append([f"{found.step:,}", *(cells.get(column, "n/a") for column in columns)])
    return grid_lines("each with its standard error", ["step", *(f"{task} {metric}" for task, metric in columns)], rows)


def _cell(figure: dict[str, Any]) -> str:
    form = ".1%" if figure["is_share"] else ".4f"
    error = "n/a" if figure["error"] is None else format(figure["error"], form)
    return f"{figure['value']:{form}} ± {error}"
