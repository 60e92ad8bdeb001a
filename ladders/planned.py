"""A plan on the disk and in words."""

import contextlib
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from common.errors import UserError
from common.files import aside
from data.mixture import Data
from flops_parameter_counting.laws.fitting import FEWEST_POINTS, Points, bootstrap, fit_law, too_narrow
from flops_parameter_counting.laws.scaling_laws import Law
from ladders.ledger import as_text, predictions, read
from ladders.plan import TUNING_SHARE, Folder, Plan, Run, as_json, short
from ladders.stages import prepare

NOISE = 0.005  # of the losses, relative, with which the conditioning of a fit is tried out
RESAMPLES = 200
EXPONENT = 0.35  # of N and of D, near all that were published


def create(plan: Plan, path: Path) -> None:
    """Write the ladder's folder, whole or not at all: the plan, the configs that wait for nothing, the ledger."""
    with _made_aside(path) as made:
        folder = Folder(made)
        folder.plan.write_text(as_json(plan))
        folder.ledger.touch()
        for run in plan.runs:
            if not run.waits_for:
                prepare(run, plan, folder)
        made.rename(path)


def check_folder(path: Path) -> None:
    """Raises UserError for a folder that `create` could not write."""
    with _made_aside(path):
        pass


@contextlib.contextmanager
def _made_aside(path: Path) -> Iterator[Path]:
    made = aside(path)
    try:
        made.mkdir(parents=True)
        yield made
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from None
    finally:
        shutil.rmtree(made, ignore_errors=True)


# ---------------------------------------------------------------------------------------------------------------------
# In words

HEADINGS = (
    "run", "parameters", "tokens", "D/N", "steps", "tokens/step", "FLOPs", "of budget", "predicted loss", "seconds",
    "waits for", "model",
)  # fmt: skip


def plan_as_text(plan: Plan, path: Path, data: Mapping[str, Data]) -> str:
    said = predictions(read(Folder(path).ledger))
    losses = {name: record["loss"] for name, record in said.items()}
    lines = [as_text(HEADINGS, [_row(run, losses.get(run.name)) for run in plan.runs]), "", *_totals(plan)]
    lines += _notes(plan, data)
    return "\n".join([*lines, f"\npython ladder.py run {path}"])


def _row(run: Run, loss: float | None) -> list[str]:
    return [
        run.name,
        f"{run.n_params:,}",
        f"{run.tokens:,}",
        f"{run.tokens / run.n_params:.3g}",
        f"{run.steps:,}",
        f"{run.tokens_per_step:,}",
        f"{run.flops:.4e}",
        f"{run.flops / run.budget:.2%}",
        "" if loss is None else f"{loss:.4f}",
        "" if run.seconds is None else f"{run.seconds:,.1f}",
        " and ".join(run.waits_for),
        run.model,
    ]


def _totals(plan: Plan) -> list[str]:
    sweep = sum(run.flops for run in plan.runs if run.is_sweep)
    lines = [
        f"Plan {plan.hash}: {len(plan.runs)} runs",
        f"FLOPs: {plan.flops:.4e} (training, full attention)"
        + (f", {sweep:.4e} of them in the sweep ({sweep / plan.flops:.1%})" if sweep else ""),
    ]
    if plan.calibration is not None and plan.seconds is not None:
        training = sum(run.seconds or 0.0 for run in plan.runs)
        lines.append(
            f"Time: {training:,.0f} s in training steps, {plan.seconds:,.0f} s with evaluations and start-ups, one run "
            f"after the other on {plan.calibration['device']} (measured on the smallest and the largest model of each "
            "architecture, interpolated in FLOPs a step)"
        )
    return [*lines, f"Disk: {plan.bytes / 1e9:,.3f} GB when all have finished"]


def _notes(plan: Plan, data: Mapping[str, Data]) -> list[str]:
    notes = []
    if plan.arguments.tune:
        notes.append(
            f"the sweep takes {TUNING_SHARE:.0%} of the steps of each kind of run's smallest budget; the best rate, "
            "over what the rule says there, multiplies the rule's rates of all its runs, whose configs are written then"
        )
    for name, one in data.items():
        unique, where = one.splits["train"].tokens, f" of {name}" * (len(data) > 1)
        if repeating := [run for run in plan.runs if run.dataset in (None, name) and run.tokens > unique]:
            most = max(run.tokens for run in repeating) / unique
            notes.append(
                f"{len(repeating)} runs pass over the {unique:,} training tokens{where} more than once, at most "
                f"{most:.2f} times"
            )
    if plan.arguments.is_isoflop:
        notes += _on_the_fit(plan)
    return [f"note: {note}" for note in notes]


def _on_the_fit(plan: Plan) -> list[str]:
    """Whether the runs' N and D can support a law, and those of the smaller budgets one that predicts the largest."""
    runs = [run for run in plan.runs if not run.is_sweep]
    fitted = [run for run in runs if run.budget < plan.largest_budget]
    notes = [f"all runs: {_conditioning(plan, runs)}"]
    if len(fitted) < FEWEST_POINTS:
        return [
            *notes,
            f"the smaller budgets have {len(fitted)} runs, and a law that predicts the largest needs {FEWEST_POINTS}",
        ]
    notes.append(
        f"the smaller budgets, whose law predicts the runs of {plan.largest_budget:.3g} FLOPs before they start: "
        f"{_conditioning(plan, fitted)}"
    )
    return notes


def _conditioning(plan: Plan, runs: list[Run]) -> str:
    """How well the exponents would be known from losses with some noise: of the plan's law where it is a fitted one,
    else of a law whose terms of N and D are each half of its E in the middle of the runs."""
    meaning = plan.law.N if plan.arguments.predicts else plan.arguments.n_meaning
    n, d = (np.array(values, float) for values in ([run.n_law[meaning] for run in runs], [run.tokens for run in runs]))
    law = plan.law
    if not plan.arguments.predicts:
        a, b = (0.5 * np.exp(EXPONENT * np.log(values).mean()) for values in (n, d))
        law = Law("stand-in", 1.0, float(a), float(b), EXPONENT, EXPONENT, "no fit", meaning)
    noise = np.random.default_rng(0).normal(0, NOISE, len(runs))
    points = Points(n, d, law.loss(n, d) * np.exp(noise))
    factors = [short(float(values.max() / values.min())) for values in (n, d, d / n)]
    spans = "N spans a factor of {}, D of {}, D/N of {}".format(*factors)
    start = np.array([[np.log(law.A), law.alpha, np.log(law.B), law.beta, np.log(law.E)]])
    try:
        fit = fit_law(points, start)
        narrow = too_narrow(bootstrap(points, fit, RESAMPLES, 0), points)
    except UserError as error:
        return f"{spans}; ill-conditioned: {error}"
    if narrow:
        return f"{spans}; ill-conditioned: {narrow[0]}"
    return f"{spans}; well-conditioned: with {NOISE:.1%} of noise both exponents come out within a factor of two"
