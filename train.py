"""Train one model: `python train.py config/x.py --key=value ...`, or the same under torchrun.

config -> model -> parallelism -> loop. This file says what happens in which order; `training/` says how.
"""

import contextlib
import dataclasses
import sys
from pathlib import Path

from configurator import Configuration, differences, from_dict, load, with_vocabulary
from errors import UserError, exit_cleanly
from training.dataset import DATA_FOLDER, Dataset, open_dataset
from training.interrupts import StopRequest
from training.plan import RunPlan, check_ranks, plan_run
from training.ranks import Ranks, ranks_from_environment
from training.report import plan_notes, startup_report
from training.run_folder import RunFolder, read_state

# May differ between a checkpoint and the run that resumes it: they change neither parameters nor what they mean.
FREE_TO_CHANGE = ("arch_preset", "attention_backend", "dropout")


@exit_cleanly
def main() -> int:
    configuration = load(sys.argv[1:])
    ranks = ranks_from_environment()
    dataset = find_dataset(configuration, ranks)
    if dataset is not None:
        configuration = with_vocabulary(configuration, dataset.vocab_size)
    plan = plan_run(configuration, dataset)
    check_ranks(configuration, ranks.size)
    if ranks.is_first:
        notes = plan_notes(configuration, plan, dataset.vocab_size if dataset else None)
        print(startup_report(configuration, plan, notes), flush=True)
    if configuration.run.dry_run or dataset is None:
        return 0

    stop = StopRequest(announce=ranks.is_first)
    folder = RunFolder(configuration.run_dir)
    with folder.hold() if ranks.is_first else contextlib.nullcontext():
        checkpoint = where_to_start(configuration, folder, ranks)
        if checkpoint is not None and is_finished(checkpoint, configuration, plan):
            if ranks.is_first:
                print(f"{folder.path} has finished its {plan.length} steps already; a larger --max_iters continues it")
            return 0

        from training.trainer import train  # torch takes a second to import: what needs none of it stands above

        return train(configuration, dataset, plan, folder, checkpoint, ranks, stop)


def find_dataset(configuration: Configuration, ranks: Ranks) -> Dataset | None:
    """The prepared dataset; None for a dry run without one. Raises UserError for one that is missing or damaged."""
    run = configuration.run
    path = (Path(run.data_dir) if run.data_dir is not None else DATA_FOLDER) / run.dataset
    if run.dry_run and configuration.model.vocab_size is not None and not (path / "meta.json").exists():
        return None
    return open_dataset(path, verify=ranks.local_rank == 0)  # one process of a machine reads the files through


def where_to_start(configuration: Configuration, folder: RunFolder, ranks: Ranks) -> Path | None:
    """The checkpoint to resume from, or None for scratch. Raises UserError where that would lose or mix up a run."""
    start, checkpoint = configuration.run.init_from, folder.last_checkpoint()
    if start == "scratch":
        if ranks.is_first and (folder.log.exists() or checkpoint):
            raise UserError(
                f"{folder.path} holds a run already: --init_from=auto continues it, another --out_dir keeps it"
            )
        return None
    if checkpoint is None:
        if start == "resume":
            raise UserError(
                f"{folder.path} has no checkpoint to resume from: --init_from=auto starts from scratch then"
            )
        return None
    saved = from_dict(read_state(checkpoint)["config"])
    comparable = dataclasses.replace(saved, **{key: getattr(configuration.model, key) for key in FREE_TO_CHANGE})
    if differing := differences(comparable, configuration.model):
        raise UserError(f"{checkpoint} is of another architecture: {', '.join(differing)}; choose another --out_dir")
    return checkpoint


def is_finished(checkpoint: Path, configuration: Configuration, plan: RunPlan) -> bool:
    """Whether a resumed run would have nothing to do."""
    return not configuration.run.eval_only and read_state(checkpoint)["progress"]["step"] >= plan.length


if __name__ == "__main__":
    main()
