"""Fits a loss law to measured points, as Besiroglu et al. 2024 do, and writes it for --law.

  python flops_parameter_counting/fit_scaling_law.py points.csv --out law.json --png fit.png
  python flops_parameter_counting/fit_scaling_law.py out/ladder-* --out law.json
  python flops_parameter_counting/detailed_cost_analysis.py --grid_search 1e17 --law law.json

A CSV file has the columns N (or params), D (or tokens) and loss, in nats per token; C may stand in place of N or D, and
the missing one is that of C = 6 N D. A run's folder gives its parameters, training tokens and last validation loss.
"""

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the repository runs without being installed

from common.errors import ArgumentParser, UserError, did_you_mean, exit_cleanly
from common.files import check_target, write_whole
from flops_parameter_counting.laws.loss_points import read_points
from flops_parameter_counting.laws.report import as_json, as_text, draw, fit_everything
from flops_parameter_counting.laws.scaling_laws import N_MEANINGS

FEWEST_DRAWS = 40  # 2.5 % of them is one


@exit_cleanly
def main() -> int:
    arguments = parse_arguments()
    check_target("out", arguments.out, ".json", arguments.force)
    check_target("png", arguments.png, ".png", arguments.force)
    measured = read_points(arguments.points, arguments.n_meaning)
    fitted = fit_everything(
        measured, arguments.n_meaning, arguments.bootstrap, arguments.seed, arguments.holdout, progress=True
    )
    picture = draw(fitted) if arguments.png is not None else None
    written = []
    if arguments.out is not None:
        write_whole(arguments.out, (json.dumps(as_json(fitted), allow_nan=False) + "\n").encode())
        written.append(
            f"wrote {arguments.out}: detailed_cost_analysis.py --grid_search FLOPS --law {arguments.out} plans by it"
        )
    if picture is not None:
        write_whole(arguments.png, picture)
        written.append(f"wrote {arguments.png}")
    print("\n".join([as_text(fitted), *([""] if written else []), *written]))
    return 0


def parse_arguments() -> argparse.Namespace:
    built = ArgumentParser(__doc__)
    add = built.add_argument
    add("points", nargs="+", type=Path, metavar="POINTS", help="CSV files and folders of runs")
    add("--out", type=Path, metavar="FILE.json", help="write the law")
    add("--png", type=Path, metavar="FILE.png", help="draw its IsoFLOP curves and residuals")
    add("--force", action="store_true", help="overwrite these files")
    add("--n_meaning", default="total", help=f"what N counts: {', '.join(N_MEANINGS)} (default: total)")
    add("--bootstrap", type=int, default=1000, help=f"resamples: 0, or at least {FEWEST_DRAWS} (default: 1000)")
    add("--seed", type=int, default=0, help="of the resamples (default: 0)")
    add(
        "--holdout", type=float, default=2.0, metavar="FACTOR",
        help="predict the points with C = 6 N D within this factor of the largest from the others; 1: only the "
        "largest; 0: none (default: 2)",
    )  # fmt: skip
    arguments = built.parse_args()
    if arguments.n_meaning not in N_MEANINGS:
        guess = did_you_mean(arguments.n_meaning, N_MEANINGS)
        raise UserError(f"--n_meaning={arguments.n_meaning} is none of: {', '.join(N_MEANINGS)}{guess}")
    if arguments.bootstrap != 0 and arguments.bootstrap < FEWEST_DRAWS:
        raise UserError(
            f"--bootstrap={arguments.bootstrap} must be 0 or at least {FEWEST_DRAWS}: fewer give no interval"
        )
    if arguments.seed < 0:
        raise UserError(f"--seed={arguments.seed} must be 0 or more")
    if arguments.holdout != 0 and not 1 <= arguments.holdout < float("inf"):
        raise UserError(f"--holdout={arguments.holdout:g} must be 1 or more, or 0 to hold nothing out")
    return arguments


if __name__ == "__main__":
    main()
