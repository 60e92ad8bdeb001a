"""What runs had on benchmarks: logged while they were trained (`eval_benchmarks`), or found of their checkpoints by
evaluate.py --all_checkpoints; side by side in a table, and as a section of the page."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from common.errors import UserError, did_you_mean
from comparison.looks import looks
from comparison.page import Section
from comparison.runs import Run
from comparison.table import align
from evaluation.figures import NORMAL_95
from runs.evaluations import NAME, kept

Metric = tuple[str, str]  # a task and one of its metrics


@dataclasses.dataclass(frozen=True)
class Score:
    """What a run had in a metric after a step. `bits_per_byte` is its validation loss there; None: not evaluated."""

    step: int
    tokens: int
    bits_per_byte: float | None
    value: float
    error: float | None
    chance: float | None
    samples: int
    higher_is_better: bool


def scores_of(run: Run) -> dict[Metric, list[Score]]:
    """In the order of steps; what the log says of a step comes before what was found of its checkpoint. Raises
    UserError for evaluations.json that is something else."""
    losses = {record["step"]: record.get("val_bits_per_byte") for record in run.log.evals}
    file = run.log.path.parent / NAME
    later = kept(file) if run.log.path.name == "log.jsonl" else []
    said: list[tuple[Any, int, int, dict[str, Any]]] = [
        *((None, one["step"], one.get("tokens") or 0, one["tasks"]) for one in run.log.benchmarks),
        *((one.asked, one.step, one.tokens, one.tasks) for one in reversed(later)),
    ]
    found: dict[Metric, dict[int, Score]] = {}
    asked: dict[Metric, Any] = {}  # how it was asked first: what was asked otherwise does not compare
    for how, step, tokens, tasks in said:
        for metric, one in (((task, name), one) for task, metrics in tasks.items() for name, one in metrics.items()):
            if asked.setdefault(metric, how) == how and one.get("value") is not None:
                score = Score(
                    step=step,
                    tokens=tokens,
                    bits_per_byte=losses.get(step),
                    value=one["value"],
                    error=one.get("error"),
                    chance=one.get("chance"),
                    samples=one.get("samples") or 0,
                    higher_is_better=one.get("higher_is_better") is not False,
                )
                found.setdefault(metric, {}).setdefault(step, score)
    return {metric: [by_step[step] for step in sorted(by_step)] for metric, by_step in found.items()}


@dataclasses.dataclass(frozen=True)
class Benchmarked:
    """Runs and their scores, and all metrics that one of them has."""

    runs: Sequence[Run]
    scores: Sequence[dict[Metric, list[Score]]]

    @classmethod
    def of(cls, runs: Sequence[Run]) -> "Benchmarked":
        return cls(runs, [scores_of(run) for run in runs])

    @property
    def metrics(self) -> list[Metric]:
        return list(dict.fromkeys(metric for found in self.scores for metric in found))

    def chosen(self, tasks: Sequence[str]) -> list[Metric]:
        """The metrics of the tasks, or all. Raises UserError for a task that no run was asked."""
        known = list(dict.fromkeys(task for task, _ in self.metrics))
        if not known:
            raise UserError(
                "--benchmarks: no run has any: train with --eval_benchmarks, or call evaluate.py RUN --all_checkpoints"
            )
        for task in tasks:
            if task not in known:
                raise UserError(f"--benchmarks: no run was asked {task!r}{did_you_mean(task, known)}")
        return [metric for metric in self.metrics if not tasks or metric[0] in tasks]

    def rows(self) -> tuple[list[str], list[list[str]]]:
        """Headings, and of each run its last score in every metric, with the standard error."""
        body = []
        for run, found in zip(self.runs, self.scores, strict=True):
            last = [found[metric][-1] if metric in found else None for metric in self.metrics]
            step = max((score.step for score in last if score is not None), default=None)
            body.append([run.numbers.run, "n/a" if step is None else f"{step:,}", *map(cell, last)])
        return ["run", "step", *(f"{task} {name}" for task, name in self.metrics)], body

    def lines(self) -> list[str]:
        """For people; none where no run has any."""
        if not self.metrics:
            return []
        headings, body = self.rows()
        return ["", "benchmarks, the last of each run, with their standard errors", *align([headings, *body], [0])]

    def sections(self) -> list[Section]:
        """Of the page: the same table, and the scores over the tokens."""
        if not self.metrics:
            return []
        headings, body = self.rows()
        return [Section("Benchmarks", headings=headings, rows=body, figure=self.figure())]

    def figure(self) -> dict[str, Any]:
        """For plotly: a run's colour, a symbol a metric, bars of 95 %; losses, which are of another size, left out."""
        data = []
        for run, found, (color, _) in zip(self.runs, self.scores, looks([run.log for run in self.runs]), strict=True):
            for number, metric in enumerate(self.metrics):
                own = [score for score in found.get(metric, []) if score.higher_is_better]
                if own:
                    data.append({
                        "type": "scatter",
                        "mode": "lines+markers",
                        "name": f"{run.numbers.run}: {' '.join(metric)}",
                        "x": [score.tokens for score in own],
                        "y": [score.value for score in own],
                        "error_y": {"array": [NORMAL_95 * (score.error or 0) for score in own]},
                        "line": {"color": color},
                        "marker": {"symbol": number, "color": color},
                    })  # fmt: skip
        layout = {"xaxis": {"title": {"text": "training tokens"}}, "yaxis": {"title": {"text": "score (bars: 95 %)"}}}
        return {"data": data, "layout": layout}

    def as_json(self) -> list[dict[str, list[dict[str, Any]]]]:
        """Of each run, by `task metric`, its scores."""
        return [
            {" ".join(metric): [dataclasses.asdict(score) for score in own] for metric, own in found.items()}
            for found in self.scores
        ]


def cell(score: Score | None) -> str:
    if score is None:
        return "n/a"
    return f"{score.value:.4g}" + ("" if score.error is None else f" ± {score.error:.2g}")
