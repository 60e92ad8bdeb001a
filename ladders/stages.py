"""What becomes known of a ladder while it runs: the sweep's learning rates, the law of the smaller budgets, and with
them the predictions and configs of the runs that waited.

Every step is written to the ledger before anything follows from it, and is made again from there: a ladder that was
killed anywhere goes on.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from common.errors import UserError
from common.files import write_whole
from flops_parameter_counting.laws.fitting import predicted
from flops_parameter_counting.laws.loss_points import read_points
from flops_parameter_counting.laws.report import Fitted, as_json, fit_everything
from flops_parameter_counting.laws.scaling_laws import CONSTANTS, Law, law_from, middle_95
from flops_parameter_counting.planner.emit import law_as_dict
from ladders.configs import config_text
from ladders.ledger import Entry, Record, append, of_type, predictions, read
from ladders.plan import Folder, Plan, Run, hash_of, kinds, swept_run

DRAWS = 1000  # resamples of the points behind a fit's intervals


@dataclasses.dataclass(frozen=True)
class Foretold:
    """The law that predicts a run's loss, and its draws (k, 5); or why there is none."""

    law: Law | None
    draws: np.ndarray | None
    why: str | None


def prepare(run: Run, plan: Plan, folder: Folder) -> Path:
    """Predict a run that waits for nothing any more, and write its config; nothing that was done already is done again.
    Returns the config."""
    records = read(folder.ledger)
    said = predictions(records).get(run.name) or predict(run, plan, folder, records)
    text = config_of(run, plan, said)
    config = folder.config(run)
    if not config.exists():
        if hash_of(text) != said["config"]:
            raise UserError(f"{config} was lost, and this version of ladder.py writes another: restore it")
        config.parent.mkdir(exist_ok=True)
        write_whole(config, text.encode())
    return config


def predict(run: Run, plan: Plan, folder: Folder, records: Sequence[Record]) -> Record:
    """Appends what is predicted of a run, with the hash of the config that carries it."""
    foretold = _foretold(run, plan, records)
    loss = interval = None
    if foretold.law is not None:
        n = run.n_law[foretold.law.N]
        loss = float(f"{foretold.law.loss(n, run.tokens):.5f}")
        if foretold.draws is not None:
            interval = middle_95(predicted(foretold.draws, np.array(float(n)), np.array(float(run.tokens))))
    record = {
        "type": "prediction",
        "run": run.name,
        "learning_rate": _learning_rate(run, records),
        "law": None if foretold.law is None else law_as_dict(foretold.law),
        "loss": loss,
        "loss_95": interval,
        "flops": run.flops,
        "seconds": run.seconds,
        "why": foretold.why,
    }
    return append(folder.ledger, record | {"config": hash_of(config_of(run, plan, record))})


def config_of(run: Run, plan: Plan, said: Record) -> str:
    law = None if said["law"] is None else law_from(said["law"], "law")
    return config_text(run, plan.arguments, said["learning_rate"], law, said["loss"])


def _foretold(run: Run, plan: Plan, records: Sequence[Record]) -> Foretold:
    if "law" in run.waits_for:
        record = of_type(records, "law")[-1]
        if record["law"] is None:
            return Foretold(None, None, record["why"])
        return Foretold(law_from(record["law"], "law"), np.array(record["draws"]), None)
    if plan.arguments.predicts:
        return Foretold(plan.law, None, None)
    if plan.arguments.is_isoflop:
        return Foretold(None, None, "the law is fitted to this run")
    return Foretold(None, None, "no --law of this data was given")


def _learning_rate(run: Run, records: Sequence[Record]) -> float:
    if "sweep" not in run.waits_for:
        return run.learning_rate
    factor = next(record["factor"] for record in of_type(records, "learning_rate") if record["arch"] == run.kind)
    if factor is None:
        raise UserError(f"no run of the sweep of {run.kind} has a finite loss: plan another ladder with lower rates")
    return float(f"{factor * run.learning_rate:.3g}")


# ---------------------------------------------------------------------------------------------------------------------
# What a run waits for


def advance(plan: Plan, folder: Folder, found: Sequence[Entry]) -> list[str]:
    """Draw the conclusions that the finished runs allow: choose learning rates, fit the law. Returns what was
    concluded, in a line each."""
    records, said = read(folder.ledger), []
    for kind in kinds(plan.runs) if plan.arguments.tune else ():
        sweep = [entry for entry in found if entry.run.is_sweep and entry.run.kind == kind]
        known = any(record["arch"] == kind for record in of_type(records, "learning_rate"))
        if not known and all(entry.is_settled for entry in sweep):
            said.append(_choose_learning_rate(plan, folder, kind, sweep))
    needs_law = any("law" in run.waits_for for run in plan.runs)
    if needs_law and not of_type(records, "law") and all(entry.is_finished for entry in smaller(plan, found)):
        said.append(_fit_smaller(plan, folder, found))
    return said


def is_ready(run: Run, records: Sequence[Record]) -> bool:
    """Whether all that a run waits for is known."""
    known = {
        "sweep": any(record["arch"] == run.kind for record in of_type(records, "learning_rate")),
        "law": bool(of_type(records, "law")),
    }
    return all(known[what] for what in run.waits_for)


def smaller(plan: Plan, found: Sequence[Entry]) -> list[Entry]:
    """The runs of all budgets but the largest."""
    return [entry for entry in found if not entry.run.is_sweep and entry.run.budget < plan.largest_budget]


def _choose_learning_rate(plan: Plan, folder: Folder, kind: str, sweep: Sequence[Entry]) -> str:
    """The rate of the lowest loss. Of the other runs of its kind it changes the rule's rate by the same factor
    by which it changes that of the swept one."""
    losses = {f"{entry.run.learning_rate:g}": entry.loss for entry in sweep}
    finite = {rate: loss for rate, loss in losses.items() if loss is not None}
    record: Record = {"type": "learning_rate", "arch": kind, "losses": losses}
    if not finite:
        append(folder.ledger, record | {"learning_rate": None, "factor": None})
        return f"{kind}: no run of the sweep has a finite loss"
    best = min(finite, key=lambda rate: finite[rate])
    rule = swept_run(plan.runs, kind).learning_rate
    append(folder.ledger, record | {"learning_rate": float(best), "factor": float(best) / rule})
    rates = sorted(plan.arguments.tune)
    edge = (
        "; it is at the edge of the sweep: a better one may lie beyond" if float(best) in (rates[0], rates[-1]) else ""
    )
    return f"{kind}: learning rate {best} has the lowest loss of the sweep{edge if len(rates) > 1 else ''}"


def _fit_smaller(plan: Plan, folder: Folder, found: Sequence[Entry]) -> str:
    """The law of all budgets but the largest, or why the points support none."""
    law: dict[str, Any] | None = None
    draws = why = None
    try:
        fitted = fit_entries(smaller(plan, found), folder, plan.arguments.n_meaning, holdout=0)
        law, draws = law_as_dict(law_of(fitted)), fitted.draws
    except UserError as error:
        why = str(error)
    record = {"type": "law", "law": law, "draws": None if draws is None else draws.tolist(), "why": why}
    append(folder.ledger, record | {"points": len(smaller(plan, found))})
    if law is None:
        return f"no prediction for the largest budget: {why}"
    constants = ", ".join(f"{name} {law[name]:.4g}" for name in CONSTANTS)
    return f"the law of the smaller budgets, which predicts the largest: {constants}"


def fit_entries(chosen: Sequence[Entry], folder: Folder, n_meaning: str, holdout: float) -> Fitted:
    """Without runs whose last loss was not finite. Raises UserError where the others do not support a law."""
    chosen = [entry for entry in chosen if entry.loss is not None]
    if not chosen:
        raise UserError(f"{folder.path} has no finished run to fit a law to: python ladder.py run {folder.path}")
    found = kinds([entry.run for entry in chosen])
    if len(found) > 1:
        one = "one architecture" if chosen[0].run.dataset is None else "one architecture on one dataset"
        raise UserError(f"a law is that of {one}, and the runs are of {' and '.join(found)}")
    measured = read_points([folder.run(entry.run) for entry in chosen], n_meaning)
    return fit_everything(measured, n_meaning, DRAWS, 0, holdout)


def law_of(fitted: Fitted) -> Law:
    return law_from(as_json(fitted), "law")
