"""Everything that a model is asked for --tasks and --benchmarks: all of it is found and checked before any is asked."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from common.errors import UserError
from evaluation.benchmarks import BENCHMARKS, PROGRAMS, benchmark_figure
from evaluation.figures import Figure
from evaluation.harness import Outcome, as_loaded, ask_tasks, check_tasks, load_benchmarks, load_tasks, run_benchmarks
from evaluation.programs import Problem, ask_for_programs, check_allowed, check_problems, humaneval, read_problems
from evaluation.subject import Subject

HUMANEVAL = BENCHMARKS[PROGRAMS].questions.name


def ask(
    subject: Subject,
    tasks: Sequence[str],
    benchmarks: Sequence[str],
    limit: int | None,
    batch_size: int | None,
    run_generated_code: bool,
) -> Outcome:
    """The outcome of all, of each task the first `limit` samples, or all. Raises UserError."""
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
    for part in (as_loaded(loaded), own):
        check_tasks(subject, part)
    for _, content in problems:
        check_problems(subject, content)
    check_names([*as_loaded(loaded)["tasks"], *own["tasks"], *(name for name, _ in problems)])
    outcomes = [run_benchmarks(subject, scored, loaded, limit, batch_size)] if scored else []
    outcomes += [ask_tasks(subject, own, limit, batch_size)] if others else []
    outcomes += [ask_for_programs(subject, name, content, batch_size) for name, content in problems]
    figures = [beside(figure) for outcome in outcomes for figure in outcome.figures]
    return Outcome(figures, {task: samples for outcome in outcomes for task, samples in outcome.samples.items()})


def check_names(names: Sequence[str]) -> None:
    """Raises UserError where two have one name: their samples could not be told apart."""
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise UserError(f"two tasks have the name {twice[0]}: rename one, or evaluate them one after the other")


def beside(figure: Figure) -> Figure:
    """HumanEval's figure beside GPT-3's; others have theirs."""
    return benchmark_figure(PROGRAMS, figure) if figure.task == HUMANEVAL else figure
