"""How long the runs of a ladder will take on this machine, by a short measurement.

Of each architecture the models with the fewest and the most FLOPs a step are trained for a few steps, on the device
that the runs will use and one run at a time. What lies between is interpolated, the logarithm of the time over that of
the FLOPs. Several runs at once, or several devices a run, take other times.
"""

import dataclasses
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from common.errors import UserError
from ladders.configs import config_text
from ladders.plan import Plan, Run

SCRIPT = Path(__file__).parent / "measure.py"


def calibrated(plan: Plan) -> Plan:
    """The plan with the seconds of every run, and how they were measured. Raises UserError where nothing trains."""
    extremes = {run.arch: _extremes(plan.runs, run.arch) for run in plan.runs}
    measured, start = _measure(plan, [run for runs in extremes.values() for run in runs])
    steps = {
        arch: [{"flops": step_flops(run), "seconds": measured[run.name]["seconds"]} for run in runs]
        for arch, runs in extremes.items()
    }
    device = next(iter(measured.values()))["device"]
    runs = tuple(dataclasses.replace(run, seconds=seconds_of(run, steps[run.arch])) for run in plan.runs)
    return dataclasses.replace(plan, runs=runs, calibration={"device": device, "start_seconds": start, "steps": steps})


def step_flops(run: Run) -> int:
    return run.flops_per_token * run.tokens_per_step


def seconds_of(run: Run, measured: Sequence[dict[str, float]]) -> float:
    """In training steps, six digits: as the run's config states it."""
    flops, seconds = ([point[name] for point in measured] for name in ("flops", "seconds"))
    a_step = np.exp(np.interp(np.log(step_flops(run)), np.log(flops), np.log(seconds)))
    return float(f"{run.steps * a_step:.6g}")


def _extremes(runs: Sequence[Run], arch: str) -> list[Run]:
    """With the fewest and the most FLOPs a step; one run where these are equal."""
    of_arch = sorted((run for run in runs if run.arch == arch), key=step_flops)
    return list({step_flops(run): run for run in (of_arch[0], of_arch[-1])}.values())


def _measure(plan: Plan, runs: Sequence[Run]) -> tuple[dict[str, dict[str, Any]], float]:
    """What the process found by run, and the seconds that it took to start."""
    with tempfile.TemporaryDirectory() as folder:
        configs = [Path(folder) / f"{run.name}.py" for run in runs]
        for run, config in zip(runs, configs, strict=True):
            config.write_text(config_text(run, plan.arguments, run.learning_rate, None, None))
        target, began = Path(folder) / "measured.json", time.perf_counter()
        command = [sys.executable, str(SCRIPT), str(target), *map(str, configs)]
        done = subprocess.run(command, capture_output=True, text=True)
        took = time.perf_counter() - began
        if done.returncode != 0:
            last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
            raise UserError(f"the calibration failed: {last.removeprefix('error: ')}")
        found = {point["config"]: point for point in json.loads(target.read_text())}
    return found, took - sum(point["took"] for point in found.values())
