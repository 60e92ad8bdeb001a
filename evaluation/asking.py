"""Everything that a model is asked for --tasks and --benchmarks: all of it is found and checked before any is asked."""

import dataclasses
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common.errors import UserError
from evaluation.benchmarks import BENCHMARKS, PROGRAMS, benchmark_figure
from evaluation.figures import Figure
from evaluation.harness import Outcome, as_loaded, ask_tasks, check_tasks, load_benchmarks, load_tasks, run_benchmarks
from evaluation.programs import Problem, ask_for_programs, check_allowed, check_problems, humaneval, read_problems
from evaluation.subject import Subject

HUMANEVAL = BENCHMARKS[PROGRAMS].questions.name


@dataclasses.dataclass(frozen=True)
class Wanted:
    """What is asked, with its data, of each task the first `limit` samples or all. `benchmarks` are those of the
    harness, whose tasks `loaded` has by the name of their questions; `tasks` are others, as TaskManager.load gives
    them; `problems`, by their names, have programs for answers."""

    benchmarks: Sequence[str]
    loaded: dict[str, list[Any]]
    tasks: dict[str, Any]
    problems: Sequence[tuple[str, list[Problem]]]
    limit: int | None

    def check(self, subject: Subject) -> None:
        """Raises UserError for what cannot be asked of this model."""
        for part in (as_loaded(self.loaded), self.tasks):
            check_tasks(subject, part)
        for _, problems in self.problems:
            check_problems(subject, problems)

    def ask(self, subject: Subject, batch_size: int | None) -> Outcome:
        """The outcome of all. Raises UserError."""
        self.check(subject)
        outcomes = []
        if self.benchmarks:
            outcomes.append(run_benchmarks(subject, self.benchmarks, self.loaded, self.limit, batch_size))
        if self.tasks["tasks"]:
            outcomes.append(ask_tasks(subject, self.tasks, self.limit, batch_size))
        outcomes += [ask_for_programs(subject, name, problems, batch_size) for name, problems in self.problems]
        figures = [beside(figure) for outcome in outcomes for figure in outcome.figures]
        return Outcome(figures, {task: samples for outcome in outcomes for task, samples in outcome.samples.items()})


def find_wanted(tasks: Sequence[str], benchmarks: Sequence[str], limit: int | None, run_generated_code: bool) -> Wanted:
    """What these names mean. Raises UserError for what there is not."""
    files = [Path(name) for name in tasks if name.endswith(".jsonl")]
    if files or PROGRAMS in benchmarks:
        check_allowed(run_generated_code)
    problems: list[tuple[str, list[Problem]]] = [(file.stem, read_problems(file)[:limit]) for file in files]
    if PROGRAMS in benchmarks:
        problems.insert(0, (HUMANEVAL, humaneval()[:limit]))
    scored = [name for name in benchmarks if name != PROGRAMS]
    loaded = load_benchmarks(scored)
    others = [name for name in tasks if not name.endswith(".jsonl")]
    own = load_tasks(others) if others else as_loaded({})
    check_names([*as_loaded(loaded)["tasks"], *own["tasks"], *(name for name, _ in problems)])
    return Wanted(scored, loaded, own, problems, limit)


def check_names(names: Sequence[str]) -> None:
    """Raises UserError where two have one name: their samples could not be told apart."""
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise UserError(f"two tasks have the name {twice[0]}: rename one, or evaluate them one after the other")


def beside(figure: Figure) -> Figure:
    """HumanEval's figure beside GPT-3's; others have theirs."""
    return benchmark_figure(PROGRAMS, figure) if figure.task == HUMANEVAL else figure
