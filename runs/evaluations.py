"""What evaluate.py found of checkpoints, in a file beside the run: evaluations.json. No torch."""

import dataclasses
from pathlib import Path
from typing import Any

from common.errors import UserError
from common.files import write_json
from common.json_files import read_json
from common.texts import all_harmless
from runs.logs import are_scores

NAME = "evaluations.json"
NEEDED = {"task", "metric", "value", "error", "chance", "samples", "is_share", "higher_is_better"}  # of a figure


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """One checkpoint: its step and tokens, which it is by its `files`' checksums, what was `asked`, and the figures as
    evaluation/figures.py writes them."""

    step: int
    tokens: int
    files: dict[str, str]
    asked: dict[str, Any]
    figures: list[dict[str, Any]]

    @classmethod
    def of(cls, state: dict[str, Any], asked: dict[str, Any], figures: list[dict[str, Any]]) -> "Evaluation":
        """Of a checkpoint with this state.json."""
        progress = state["progress"]
        return cls(progress["step"], progress["tokens"], state["files"], asked, figures)

    def is_of(self, state: dict[str, Any], asked: dict[str, Any]) -> bool:
        """Whether it says what would be found again."""
        return self.files == state["files"] and self.asked == asked

    @property
    def tasks(self) -> dict[str, dict[str, dict[str, Any]]]:
        """The figures as the log's `benchmarks` records have them."""
        found: dict[str, dict[str, dict[str, Any]]] = {}
        for one in self.figures:
            found.setdefault(one["task"], {})[one["metric"]] = one
        return found


def kept(file: Path) -> list[Evaluation]:
    """What a file has, nothing where there is none. Raises UserError for a file that is something else."""
    if not file.exists():
        return []
    try:
        content = read_json(file)
        found = [Evaluation(**all_harmless(one)) for one in content["evaluations"]]
        for one in found:
            right = type(one.step) is int and type(one.tokens) is int and isinstance(one.files, dict)
            whole = all(figure.keys() >= NEEDED and figure["value"] is not None for figure in one.figures)
            if not (right and whole and isinstance(one.asked, dict) and are_scores(one.tasks)):
                raise ValueError
    except UserError as error:
        raise UserError(f"{file}: {error}") from None
    except (KeyError, TypeError, ValueError, AttributeError):
        raise UserError(f"{file} holds no evaluations of checkpoints: name another file, or remove it") from None
    return found


def write(file: Path, evaluations: list[Evaluation]) -> None:
    """Raises UserError where it cannot be written."""
    write_json(file, {"evaluations": [dataclasses.asdict(one) for one in evaluations]})
