"""Everything that a model is asked for --tasks and --benchmarks."""

from collections.abc import Sequence
from pathlib import Path

from evaluation.benchmarks import PROGRAMS
from evaluation.harness import Outcome, run_benchmarks, run_tasks
from evaluation.programs import check_allowed, run_file, run_humaneval
from evaluation.subject import Subject


def ask(
    subject: Subject,
    tasks: Sequence[str],
    benchmarks: Sequence[str],
    limit: int | None,
    batch_size: int | None,
    run_generated_code: bool,
) -> Outcome:
    """The outcome of all: benchmarks first, programs after the rest. Raises UserError."""
    files = [Path(name) for name in tasks if name.endswith(".jsonl")]
    others = [name for name in tasks if not name.endswith(".jsonl")]
    scored = [name for name in benchmarks if name != PROGRAMS]
    if files or PROGRAMS in benchmarks:
        check_allowed(run_generated_code)
    outcomes = []
    if scored:
        outcomes.append(run_benchmarks(subject, scored, limit, batch_size))
    if PROGRAMS in benchmarks:
        outcomes.append(run_humaneval(subject, limit, batch_size))
    if others:
        outcomes.append(run_tasks(subject, others, limit, batch_size))
    outcomes += [run_file(subject, file, limit, batch_size) for file in files]
    figures = [figure for outcome in outcomes for figure in outcome.figures]
    return Outcome(figures, {task: samples for outcome in outcomes for task, samples in outcome.samples.items()})
