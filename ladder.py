"""Comparable runs: planned from budgets, run, reported, and fitted to a law that plans the next ones. docs/ladders.md

python ladder.py plan --budget 2e13 --arch gpt2,llama3 --seeds 3 --dataset python_stdlib --out ladder/x
python ladder.py plan --isoflop 1e12:1e14:5 --arch llama3 --out ladder/y
python ladder.py run ladder/x --jobs 2
python ladder.py report ladder/x
python ladder.py fit ladder/y
python flops_parameter_counting/detailed_cost_analysis.py --grid_search 1e15 --law ladder/y/law.json --emit config/z.py
"""

import argparse
import json
import re
from pathlib import Path

from common.errors import ArgumentParser, UserError, above_zero, did_you_mean, exit_cleanly, positive, same_name
from common.files import check_target, real, write_whole
from components.registry import load_rooms
from data.mixture import open_data
from flops_parameter_counting.fit_scaling_law import as_json as law_file
from flops_parameter_counting.fit_scaling_law import as_text as fit_as_text
from flops_parameter_counting.fit_scaling_law import draw
from flops_parameter_counting.laws.scaling_laws import LAWS, N_MEANINGS, find_law, is_published
from flops_parameter_counting.planner.emit import law_as_dict
from flops_parameter_counting.planner.search import DEFAULT_LAW
from flops_parameter_counting.planner.space import default_space
from ladders.calibration import calibrated
from ladders.ledger import entries
from ladders.plan import Arguments, Folder, existing_plan, make_plan, read_plan
from ladders.planned import check_folder, create, plan_as_text
from ladders.runner import Runner
from ladders.sizes import budgets
from ladders.stages import fit_entries
from model_config import presets


@exit_cleanly
def main() -> int:
    arguments = parser().parse_args()
    return arguments.command(arguments)


def parser() -> ArgumentParser:
    built = ArgumentParser(__doc__)
    commands = built.add_subparsers(required=True, metavar="plan, run, report or fit")
    add_plan_arguments(commands.add_parser("plan", description="Write a config a run and plan.json."))
    run = commands.add_parser("run", description="Run what is not finished.")
    run.add_argument("ladder", type=Path, metavar="LADDER", help="the folder that plan wrote")
    run.add_argument("--gpus", type=positive, metavar="N", help="of each run, by torchrun; default: one process a run")
    run.add_argument("--jobs", type=positive, metavar="N", default=1, help="runs at the same time (default: 1)")
    run.set_defaults(command=run_command)
    report = commands.add_parser("report", description="Write the comparison page, and print the prediction ledger.")
    report.add_argument("ladder", type=Path, metavar="LADDER")
    report.add_argument("--out", type=Path, metavar="FILE.html", help="the page (default: LADDER/report.html)")
    report.add_argument(
        "--markdown", type=Path, metavar="FILE.md", help="the ledger and the winner, for a pull request"
    )
    report.set_defaults(command=report_command)
    fit = commands.add_parser("fit", description="Fit a law to the finished runs: LADDER/law.json and law.png.")
    fit.add_argument("ladder", type=Path, metavar="LADDER")
    fit.add_argument("--n_meaning", help=f"what N counts: {', '.join(N_MEANINGS)} (default: the plan's)")
    fit.set_defaults(command=fit_command)
    return built


def add_plan_arguments(built: argparse.ArgumentParser) -> None:
    add = built.add_argument
    add("--budget", type=above_zero, metavar="FLOPS", help="of every run, in training FLOPs with full attention")
    add("--isoflop", metavar="LOW:HIGH:COUNT", help="instead: so many budgets, each with several sizes; for a law")
    add("--sizes", type=positive, metavar="N", help="models at each budget of --isoflop (default: 5)")
    add("--arch", required=True, metavar="NAMES", help=f"some of {','.join(presets())}")
    add(
        "--components",
        type=Path,
        metavar="DIR",
        help="a folder with components of your own, whose presets --arch can name; its code is executed",
    )
    add("--seeds", type=positive, metavar="N", help="of every run (default: 3; with --isoflop 1)")
    add(
        "--dataset", default="python_stdlib", metavar="NAMES",
        help="prepared, of the data folder (default: python_stdlib); several are compared, with --val_dataset",
    )  # fmt: skip
    add("--val_dataset", metavar="NAME", help="on whose validation split all runs are validated (default: their own)")
    add("--data_dir", type=Path, metavar="DIR", help="where datasets lie, as the config key")
    add("--block_size", type=positive, metavar="N", help="context length (default: what fits the smallest budget)")
    add(
        "--batch_tokens", type=positive, metavar="N",
        help="of a step of every run (default: by the published rules for batches)",
    )  # fmt: skip
    add("--spread", type=above_zero, metavar="FACTOR", help="from the middle size to others, both ways (default: 3)")
    add(
        "--tokens_per_parameter", type=above_zero, metavar="RATIO",
        help="of the middle sizes of --isoflop (default: what is best by --law)",
    )  # fmt: skip
    add("--layers", type=positive, metavar="N", help="of every size of --isoflop (default: what suits its width)")
    add("--tune", metavar="lr=RATE,...", help="try these learning rates first, for each architecture")
    add(
        "--law", default=DEFAULT_LAW,
        help=f"by which sizes are chosen: {', '.join(name for name in LAWS if LAWS[name].is_of_n_and_d)}, or a fitted "
        f"law's file, which also predicts the losses (default: {DEFAULT_LAW})",
    )  # fmt: skip
    add("--n_meaning", default="total", help=f"the N of laws fitted to the ladder: {', '.join(N_MEANINGS)}")
    add("--device", default="auto", help="as the config key (default: auto)")
    add("--out", type=Path, required=True, metavar="LADDER", help="the ladder's folder")
    built.set_defaults(command=plan_command)


# ---------------------------------------------------------------------------------------------------------------------
# The commands


def plan_command(arguments: argparse.Namespace) -> int:
    asked = arguments_of(arguments)
    data = {name: open_data(name, None, asked.val_dataset, asked.data_dir) for name in asked.datasets}
    plan = make_plan(asked, data)
    existing = existing_plan(arguments.out, plan)
    if existing is None:
        check_folder(arguments.out)
        plan = calibrated(plan)
        create(plan, arguments.out)
    print(plan_as_text(existing or plan, arguments.out, data))
    if existing is not None:
        print(f"{arguments.out} holds this plan already: nothing was written")
    return 0


def run_command(arguments: argparse.Namespace) -> int:
    plan = read_plan(arguments.ladder)
    return Runner(plan, Folder(arguments.ladder), arguments.gpus, arguments.jobs).run()


def report_command(arguments: argparse.Namespace) -> int:
    from ladders.report import report

    plan = read_plan(arguments.ladder)
    page = arguments.out or arguments.ladder / "report.html"
    check_target("out", page, ".html")
    check_target("markdown", arguments.markdown, ".md")
    found = report(plan, Folder(arguments.ladder), page)
    print(found.text)
    if arguments.markdown is not None:
        write_whole(arguments.markdown, found.markdown.encode())
        print(f"wrote {arguments.markdown}")
    print(f"wrote {page}")
    return 0


def fit_command(arguments: argparse.Namespace) -> int:
    plan, folder = read_plan(arguments.ladder), Folder(arguments.ladder)
    runs = [entry for entry in entries(plan, folder) if not entry.run.is_sweep]
    finished = [entry for entry in runs if entry.loss is not None]
    meaning = check_meaning(arguments.n_meaning or plan.arguments.n_meaning)
    fitted = fit_entries(finished, folder, meaning, holdout=2.0)
    law, png = arguments.ladder / "law.json", arguments.ladder / "law.png"
    write_whole(law, (json.dumps(law_file(fitted), allow_nan=False) + "\n").encode())
    write_whole(png, draw(fitted))
    print(fit_as_text(fitted))
    if left_out := len(runs) - len(finished):
        print(f"note: {left_out} of {len(runs)} runs have not finished with a finite loss and are left out")
    print(f"\nwrote {law}: detailed_cost_analysis.py --grid_search FLOPS --law {law} --emit FILE.py plans by it")
    print(f"wrote {png}")
    return 0


# ---------------------------------------------------------------------------------------------------------------------
# What is asked for


def arguments_of(given: argparse.Namespace) -> Arguments:
    """Raises UserError for what cannot be a ladder."""
    if (given.budget is None) == (given.isoflop is None):
        raise UserError("give either --budget or --isoflop")
    if given.sizes is not None and given.isoflop is None:
        raise UserError("--sizes is for --isoflop: at a --budget there is one size, the planner's choice")
    if given.components is not None:
        load_rooms(given.components)
    archs = given.arch.split(",")
    for arch in archs:
        if arch not in presets():
            raise UserError(f"--arch={arch} is none of: {', '.join(presets())}{same_name(arch, presets())}")
        if archs.count(arch) > 1:
            raise UserError(f"--arch names {arch} twice")
    if given.isoflop is not None and len(archs) > 1:
        raise UserError("--isoflop takes one --arch: a law is that of one architecture; plan a ladder for each")
    for option in ("spread", "tokens_per_parameter", "layers"):
        if getattr(given, option) is not None and given.isoflop is None:
            raise UserError(f"--{option} is for --isoflop: at a --budget the planner chooses the size")
    if given.spread is not None and given.spread <= 1:
        raise UserError(
            f"--spread={given.spread:g} must be above 1: sizes reach from 1/FACTOR to FACTOR times the middle"
        )
    check_datasets(given)
    asked = (given.budget,) if given.isoflop is None else tuple(isoflop(given.isoflop))
    law = find_law(given.law)
    if not law.is_of_n_and_d:
        raise UserError(f"--law={given.law} sees more of a model than N and D, by which alone a ladder is planned")
    block_size = given.block_size or default_space(min(asked), archs[0]).sequence_length
    if given.batch_tokens is not None and given.batch_tokens % block_size:
        raise UserError(f"--batch_tokens={given.batch_tokens} is not a multiple of the block size, {block_size}")
    return Arguments(
        budgets=asked,
        archs=tuple(archs),
        seeds=given.seeds or (3 if given.isoflop is None else 1),
        sizes=None if given.isoflop is None else given.sizes or 5,
        dataset=given.dataset,
        data_dir=None if given.data_dir is None else str(real(given.data_dir)),
        block_size=block_size,
        batch_tokens=given.batch_tokens,
        spread=given.spread or 3.0,
        tokens_per_parameter=given.tokens_per_parameter,
        layers=given.layers,
        tune=() if given.tune is None else tuple(rates(given.tune)),
        law=law_as_dict(law),
        predicts=not is_published(law),
        n_meaning=check_meaning(given.n_meaning),
        device=given.device,
        val_dataset=given.val_dataset,
    )


def check_datasets(given: argparse.Namespace) -> None:
    """Raises UserError for datasets that no ladder can compare."""
    names = given.dataset.split(",")
    for name in names:
        if names.count(name) > 1 or not name:
            raise UserError(f"--dataset names {name} twice" if name else f"--dataset={given.dataset} lacks a name")
        if len(names) > 1 and not re.fullmatch(r"[\w.-]+", name):
            raise UserError(f"--dataset: runs are called after {name!r}: name it in letters, digits, _ - .")
    if len(names) > 1 and given.isoflop is not None:
        raise UserError("--isoflop takes one --dataset: a law is that of one kind of data; plan a ladder for each")
    if len(names) > 1 and given.val_dataset is None:
        raise UserError(
            f"which of {given.dataset} is better shows on common text: name the dataset to validate all on, with "
            "--val_dataset"
        )


def isoflop(text: str) -> list[float]:
    parts = text.split(":")
    if len(parts) != 3 or not parts[2].isdecimal():
        raise UserError(f"--isoflop={text} is not LOW:HIGH:COUNT, such as 1e12:1e14:5")
    low, high, count = positive_of("isoflop", parts[0]), positive_of("isoflop", parts[1]), int(parts[2])
    if low >= high or count < 2:
        raise UserError(f"--isoflop={text}: LOW must be below HIGH, and COUNT at least 2")
    found = budgets(low, high, count)
    if len(set(found)) < count:
        raise UserError(f"--isoflop={text}: {count} budgets do not differ in their first three digits: lower COUNT")
    return found


def rates(text: str) -> list[float]:
    name, _, values = text.partition("=")
    if name != "lr" or not values:
        raise UserError(f"--tune={text} is not lr=RATE,..., such as lr=1e-3,2e-3,4e-3")
    found = [positive_of("tune", value) for value in values.split(",")]
    if len({f"{rate:g}" for rate in found}) < max(2, len(found)):
        raise UserError(f"--tune={text}: give at least two learning rates, each once")
    return found


def check_meaning(meaning: str) -> str:
    if meaning not in N_MEANINGS:
        guess = did_you_mean(meaning, N_MEANINGS)
        raise UserError(f"--n_meaning={meaning} is none of: {', '.join(N_MEANINGS)}{guess}")
    return meaning


def positive_of(option: str, text: str) -> float:
    try:
        return above_zero(text)
    except argparse.ArgumentTypeError as error:
        raise UserError(f"--{option}: {error}") from None


if __name__ == "__main__":
    main()
