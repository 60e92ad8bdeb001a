"""How fast a law is fitted: 250 points from the full grid of 4,500 starts, and a bootstrap of 1,000 resamples.

    python benchmarks/fit_scaling_law.py

Prints what was measured beside the target. The points are Besiroglu's law with 1 % of noise on ten IsoFLOP curves.
"""

import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the repository runs without being installed

import numpy as np

from common.errors import ArgumentParser, exit_cleanly
from common.memory import peak_of_process
from flops_parameter_counting.laws.fitting import Points, bootstrap, fit_law
from flops_parameter_counting.laws.scaling_laws import LAWS

BUDGETS, SIZES, NOISE, DRAWS = 10, 25, 0.01, 1000


@exit_cleanly
def main() -> int:
    ArgumentParser(__doc__).parse_args()
    points = noisy_points()
    start = time.perf_counter()
    fit = fit_law(points, progress=True)
    fitted = time.perf_counter()
    bootstrap(points, fit, DRAWS, seed=0, progress=True)
    line(f"fit of {len(points)} points from {fit.starts:,} starts", fitted - start, "60 s")
    line(f"bootstrap of {DRAWS:,} resamples", time.perf_counter() - fitted, "60 s")
    print(f"peak memory of the process: {peak_of_process() / 1e9:.2f} GB")
    return 0


def noisy_points() -> Points:
    budgets = np.repeat(np.geomspace(1e18, 1e22, BUDGETS), SIZES)
    n = np.sqrt(budgets / 120) * np.tile(np.geomspace(0.15, 7, SIZES), BUDGETS)
    d = budgets / 6 / n
    noise = np.random.default_rng(0).normal(0, NOISE, len(n))
    return Points(n, d, LAWS["besiroglu"].loss(n, d) * np.exp(noise))


def line(what: str, seconds: float, target: str) -> None:
    print(f"{what:<40} {seconds:>8.2f} s   target: under {target}")


if __name__ == "__main__":
    main()
