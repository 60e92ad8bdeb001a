"""What the steps counted, put together of all tasks."""

import dataclasses
import json
from collections import Counter
from typing import Any

from common.errors import UserError
from data.curation.execution import stage_log
from data.curation.stages import INPUT, WRITTEN, Plan, Stage

COUNTED_APART = ("total", "forwarded", "dropped", "doc_len")  # of datatrove's names of counts
REASON = "dropped_"


@dataclasses.dataclass
class Step:
    """How many documents came and stayed, how many went for which reason, and whatever else the step counted."""

    seen: int = 0
    kept: int = 0
    reasons: dict[str, int] = dataclasses.field(default_factory=dict)
    counts: dict[str, int] = dataclasses.field(default_factory=dict)

    @property
    def removed(self) -> int:
        return self.seen - self.kept


def read_steps(plan: Plan) -> dict[str, Step]:
    """By what a report calls them, in their order; INPUT is what was read, WRITTEN what is left. Raises UserError where
    a pass did not see what the one before it left, as after a file was changed in between."""
    found: dict[str, Step] = {}
    before: Step | None = None
    for stage in plan.passes:
        of_stage = _of_pass(plan, stage)
        if before and of_stage[INPUT].seen != before.kept:
            raise UserError(
                f"{plan.folder / stage.name} is of {of_stage[INPUT].seen:,} documents, but {before.kept:,} were left "
                f"before it: files were changed; remove {plan.folder} to begin anew"
            )
        before = of_stage.pop(WRITTEN)
        found |= of_stage if not found else {name: step for name, step in of_stage.items() if name != INPUT}
    assert before is not None
    return found | {WRITTEN: before}


def _of_pass(plan: Plan, stage: Stage) -> dict[str, Step]:
    names = list(stage.steps())
    totals: list[Counter[str]] = [Counter() for _ in names]
    for rank in range(stage.tasks):
        text = (stage_log(plan, stage) / f"stats/{rank:05d}.json").read_text(encoding="utf-8")
        for total, of_step in zip(totals, json.loads(text), strict=True):
            total.update({name: _sum(value) for name, value in of_step["stats"].items()})
    found = {name: _step(total) for name, total in zip(names, totals, strict=True) if name}
    found[INPUT].seen = found[INPUT].kept = totals[0]["documents"] or totals[0]["total"]
    found[WRITTEN].kept = found[WRITTEN].seen
    return found


def _sum(value: Any) -> int:
    """datatrove writes a count as 0, or as an object with its total."""
    return int(value["total"] if isinstance(value, dict) else value)


def _step(total: Counter[str]) -> Step:
    reasons = {name.removeprefix(REASON): count for name, count in total.items() if name.startswith(REASON)}
    counts = {name: count for name, count in total.items() if name not in COUNTED_APART and not name.startswith(REASON)}
    return Step(total["total"], total["forwarded"] or total["total"] - total["dropped"], reasons, counts)
