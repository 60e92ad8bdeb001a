"""What came of a ladder: the comparison page with winner, law and prediction ledger; and the same as text."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from common.errors import UserError
from comparison.looks import COLORS
from comparison.page import Section, write_page
from comparison.statistics import Group, compare_groups, groups
from flops_parameter_counting.laws.fitting import predicted
from flops_parameter_counting.laws.report import as_text as fit_as_text
from ladders.ledger import HEADINGS, Entry, as_markdown, as_text, entries, rows
from ladders.plan import Folder, Plan
from ladders.stages import fit_entries

HELD_OUT = 2.0  # the budgets within this factor of the largest, which the report's second fit leaves out
BUDGET_COLORS = tuple(color for color in COLORS if color != "#000000")  # which a dark page does not show


@dataclasses.dataclass(frozen=True)
class Report:
    text: str
    markdown: str


def report(plan: Plan, folder: Folder, page: Path) -> Report:
    """Writes the page, and returns what it says. Raises UserError for a ladder none of whose runs has finished."""
    found = entries(plan, folder)
    finished = [entry for entry in found if entry.loss is not None and not entry.run.is_sweep]
    if not finished:
        raise UserError(f"{folder.path} has no finished run with a finite loss: python ladder.py run {folder.path}")
    winner, costs, ledger = winners(plan, finished), _costs(plan, found), rows(found)
    law, figure = _law(plan, folder, finished)
    sections = [
        Section("Winner", winner),
        Section("Prediction ledger", _on_the_ledger(), HEADINGS, ledger),
        Section("Scaling law", lines=law, figure=figure),
        Section("Cost", costs),
    ]
    logs = [entry.log for entry in finished if entry.log is not None]
    write_page(logs, page, f"Ladder {folder.path.name}, plan {plan.hash}", sections)
    text = [as_text(HEADINGS, ledger), *winner, "\n".join(law), *costs]
    markdown = ["## Winner", *winner, "## Prediction ledger", *_on_the_ledger(), as_markdown(HEADINGS, ledger)]
    markdown += ["## Scaling law", "```text\n" + "\n".join(law) + "\n```", "## Cost", *costs]
    return Report("\n\n".join(text), "\n\n".join(markdown) + "\n")


def winners(plan: Plan, finished: Sequence[Entry]) -> list[str]:
    """For each budget the group of runs with the lowest mean loss, and how it stands to every other architecture."""
    lines = []
    for budget in sorted({entry.run.budget for entry in finished}):
        ranked = sorted(groups([e.log for e in finished if e.run.budget == budget and e.log is not None]), key=_mean)
        if len(ranked) > 1:
            best, *others = ranked
            lines.append(
                f"At {budget:.3g} FLOPs the lowest mean loss is {_mean(best):.4f} nats per token, of {best.name}."
            )
            if not plan.arguments.is_isoflop or plan.arguments.seeds > 1:
                lines += [f"{compare_groups(best, other, at='flops').text}." for other in others]
    return lines or ["There is one kind of run at each budget: nothing to compare."]


def _mean(group: Group) -> float:
    """The mean of the last validation losses, which are known here."""
    return float(np.mean([run.final_val_loss for run in group.runs if run.final_val_loss is not None]))


def _costs(plan: Plan, found: Sequence[Entry]) -> list[str]:
    logs = [(entry.run, entry.log) for entry in found if entry.log is not None]
    spent = sum(log.flops or 0 for _, log in logs)
    sweep = sum(log.flops or 0 for run, log in logs if run.is_sweep)
    finished = sum(entry.is_finished for entry in found)
    tuning = f", {sweep:.4e} of them in the sweep of learning rates" if plan.arguments.tune else ""
    seconds = sum(log.train_seconds or 0 for _, log in logs)
    return [
        f"{finished} of {len(found)} runs have finished. Spent: {spent:.4e} of {plan.flops:.4e} FLOPs{tuning}; "
        f"{seconds:,.0f} s in training steps."
    ]


def _on_the_ledger() -> list[str]:
    return [
        "What was predicted of each run before it started, what came, and the error, in % of the predicted. Losses are "
        "in nats per token, FLOPs of training with full attention, seconds in training steps. `before`: the prediction "
        "is older than the run's first record, and the run's log carries it."
    ]


def _law(plan: Plan, folder: Folder, finished: Sequence[Entry]) -> tuple[list[str], dict[str, Any] | None]:
    """The fit to all finished runs, in words and as a figure; or why there is none."""
    try:
        fitted = fit_entries(finished, folder, plan.arguments.n_meaning, HELD_OUT)
    except UserError as error:
        return [f"No law: {error}."], None
    return fit_as_text(fitted).splitlines(), isoflop_figure(finished, plan.arguments.n_meaning, fitted.fit.constants)


def isoflop_figure(finished: Sequence[Entry], n_meaning: str, constants: np.ndarray) -> dict[str, Any]:
    """Loss over N for plotly: the runs of each budget, and the law's curve through the same N and D. Between two sizes
    the tokens that a budget buys are a line over the logarithms."""
    data = []
    for index, budget in enumerate(sorted({entry.run.budget for entry in finished})):
        color, name = BUDGET_COLORS[index % len(BUDGET_COLORS)], f"{budget:.3g} FLOPs"
        runs = sorted((e.run.n_law[n_meaning], e.run.tokens, e.loss) for e in finished if e.run.budget == budget)
        n, tokens, losses = np.array(runs, float).T
        between = np.geomspace(n[0], n[-1], 100)
        d = np.exp(np.interp(np.log(between), np.log(n), np.log(tokens)))
        data.append(_trace(n, losses, name, color, "markers"))
        data.append(_trace(between, predicted(constants, between, d), f"{name}, law", color, "lines"))
    layout = {
        "xaxis": {"type": "log", "title": {"text": "parameters N"}},
        "yaxis": {"title": {"text": "validation loss (nats per token)"}},
    }
    return {"data": data, "layout": layout}


def _trace(x: np.ndarray, y: np.ndarray, name: str, color: str, mode: str) -> dict[str, Any]:
    look = {"marker": {"color": color}} if mode == "markers" else {"line": {"color": color}}
    return {"type": "scatter", "mode": mode, "name": name, "x": x.tolist(), "y": y.tolist(), **look}
