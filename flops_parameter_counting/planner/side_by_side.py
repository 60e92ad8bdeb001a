"""What one budget buys of several architectures: each one's best, side by side, as text and as data.

All have one vocabulary and one length of sequences, without which neither their FLOPs nor their losses compare.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

from common.errors import UserError
from flops_parameter_counting.costs.model_cost import model_cost
from flops_parameter_counting.costs.setting import Setting
from flops_parameter_counting.laws.scaling_laws import Law
from flops_parameter_counting.planner.report import Report, as_json, assumed_of_law, memory_in_words
from flops_parameter_counting.planner.search import memory_of


@dataclasses.dataclass(frozen=True)
class Row:
    """The best of one architecture. `memory` is bytes of one device in training, None where that is not known."""

    arch: str
    architecture: str
    loss: float
    n_params: int
    n_active: int
    tokens: float
    flops: float
    flops_per_token: int
    memory: int | None


def rows(reports: Sequence[Report]) -> list[Row]:
    """One of each report, the lowest loss first."""
    return sorted(map(_row, reports), key=lambda row: row.loss)


def _row(found: Report) -> Row:
    search, best = found.result.search, found.best
    config = best.config(search.space)
    try:
        memory = memory_of(config, search.training or Setting())
    except UserError:  # of a component whose memory nobody has written down
        memory = None
    return Row(
        arch=search.space.arch,
        architecture=config.name,
        loss=best.loss,
        n_params=best.n_params,
        n_active=model_cost(config).n_active,
        tokens=best.tokens,
        flops=best.true_flops,
        flops_per_token=best.flops_per_token,
        memory=memory,
    )


def caveat(law: Law) -> str:
    """What a law cannot tell of architectures."""
    knows = "its N, its D and its experts" if law.is_of_experts else "its N and its D"
    return (
        f"the law knows a model by {knows}: between these architectures it compares how many parameters and tokens the "
        "budget buys, not how well their layers learn; runs at equal cost tell that (ladder.py)"
    )


def notes(reports: Sequence[Report]) -> list[str]:
    """The caveat; what is to be said of all of them; and what of some, with their names."""
    of: dict[str, list[str]] = {}
    for found in reports:
        for note in dict.fromkeys(found.notes):
            of.setdefault(note, []).append(found.result.search.space.arch)
    shared = [note for note, archs in of.items() if len(archs) == len(reports)]
    others = [f"{', '.join(archs)}: {note}" for note, archs in of.items() if len(archs) < len(reports)]
    return [caveat(reports[0].result.search.law), *shared, *others]


def as_data(reports: Sequence[Report]) -> dict[str, Any]:
    """For JSON: the rows, the notes, and the whole report of each architecture."""
    search = reports[0].result.search
    return {
        "budget": search.budget,
        "law": search.law.name,
        "vocab_size": search.space.vocab_size,
        "sequence_length": search.space.sequence_length,
        "side_by_side": [dataclasses.asdict(row) for row in rows(reports)],
        "architectures": {found.result.search.space.arch: as_json(found) for found in reports},
        "notes": notes(reports),
    }


def as_text(reports: Sequence[Report]) -> str:
    """Several paragraphs for the console."""
    search = reports[0].result.search
    lines = [
        *assumed_of_law(search),
        f"Spaces:         vocabulary {search.space.vocab_size:,}, {search.space.sequence_length:,} tokens a sequence, "
        "of all architectures",
        f"Memory:         {memory_in_words(search.training or Setting())}",
    ]
    said = "\n".join(f"note: {note}" for note in notes(reports))
    return "\n\n".join(["\n".join(lines), _table(rows(reports)), said])


def _table(found: list[Row]) -> str:
    width = max(len(row.arch) for row in found)
    lines = [
        "SIDE BY SIDE, each one's best, the lowest predicted loss first",
        f"  {'':<{width}}      loss        N (M)   active (M)       D (M)  FLOPs a token        FLOPs         GB"
        "  architecture",
    ]
    for row in found:
        memory = "not known" if row.memory is None else f"{row.memory / 1e9:,.2f}"
        lines.append(
            f"  {row.arch:<{width}}  {row.loss:.6f}  {row.n_params / 1e6:>11,.3f}  {row.n_active / 1e6:>11,.3f}  "
            f"{row.tokens / 1e6:>10,.0f}  {row.flops_per_token:>13,}   {row.flops:.4e}  {memory:>9}  {row.architecture}"
        )
    return "\n".join(lines)
