"""Train one model: `python train.py config/x.py --key=value ...`, or the same under torchrun.

config -> model -> parallelism -> loop. This file says what happens in which order; `training/` says how.
"""

import contextlib
import dataclasses
import os
import sys
from pathlib import Path
from typing import Any

from common.errors import UserError, exit_cleanly
from common.output import outlast_output, terminal_width
from configurator import Configuration, differences, from_dict, load, with_run_dir, with_vocabulary
from data.dataset import dataset_folder
from data.mixture import Data, as_values, open_data, read_phases
from data.tokenizers import same_ids
from interop.sources import find_source, with_architecture_of
from model_config import architecture_keys
from parallel.ranks import ALONE, Ranks, ranks_from_environment, restarts
from runs.config import OF_ADAPTERS, RunConfig
from runs.folder import Misnamed, RunFolder, damage, read_state, step_of
from runs.logs import read_run
from training.plan import RunPlan, check_buildable, check_ranks, plan_run
from training.report import plan_notes, startup_report


@exit_cleanly
def main() -> int:
    return train_as(load(sys.argv[1:]))


def train_as(configuration: Configuration) -> int:
    """What a configuration says, whatever command made it; returns the process's exit code."""
    configuration = with_run_dir(configuration)
    if not configuration.run.dry_run:
        outlast_output()
    source = None if configuration.run.source is None else find_source(configuration.run.source)
    if source is not None:
        configuration = with_architecture_of(source, configuration)
    if source is not None and configuration.run.lora_from is not None:
        configuration = with_adapters_of(Path(configuration.run.lora_from), configuration)
    ranks = ranks_from_environment().sharing(configuration.run)
    configuration = with_mixture(configuration)
    dataset = find_dataset(configuration, ranks)
    if dataset is not None:
        configuration = with_vocabulary(configuration, dataset.vocab_size)
    plan = plan_run(configuration, dataset)
    world_size = configuration.run.world_size or ranks.size
    check_ranks(configuration, world_size)
    notes = plan_notes(configuration, plan, dataset.vocab_size if dataset else None)
    report = startup_report(configuration, plan, notes, world_size, terminal_width())
    if configuration.run.dry_run or dataset is None:
        if ranks.is_first:
            print(report)
        return 0
    check_buildable(configuration.model)
    if ranks.size > 1:  # a lost store or rank is said in one line (parallel/), not also with a stack of C++
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    benchmarks = find_benchmarks(configuration, dataset)
    objective = find_objective(configuration, dataset)

    folder = RunFolder(configuration.run_dir)
    only_looks = configuration.run.eval_only and source is None and folder.has_run
    with folder.hold() if ranks.is_first and not only_looks else contextlib.nullcontext():
        checkpoints = where_to_start(configuration, dataset, folder, ranks)
        if checkpoints and is_finished(checkpoints[0], folder, configuration, plan):
            if ranks.is_first:
                print(f"{folder.path} has finished its {plan.length} steps already; a larger --max_iters continues it")
            return 0
        if configuration.run.use_lora and source is None and not checkpoints:
            raise UserError(
                "use_lora trains adapters of weights that are there: --init_from with the folder of a run or of "
                "a Hugging Face model"
            )
        if folder.is_held:
            folder.check_writable()
        if ranks.is_first:  # what is refused is refused before, in its one line
            print(report, flush=True)

        from parallel.device import choose_device  # torch takes a second to import: what needs none stands above
        from training.trainer import train

        choose_device(configuration.run.device, ranks)  # before a source's weights are written
        if source is None or checkpoints:
            return train(configuration, dataset, plan, folder, checkpoints, ranks, benchmarks, objective)

        from runs.initial import begun_from

        with begun_from(source, folder, configuration, ranks) as checkpoint:
            return train(configuration, dataset, plan, folder, [checkpoint], ranks, benchmarks, objective)


def with_adapters_of(folder: Path, configuration: Configuration) -> Configuration:
    """The configuration with the adapters of a folder in PEFT's format. Raises UserError for keys that contradict."""
    from interop.adapters import adapters_from_peft

    found, _ = adapters_from_peft(folder, configuration.model)
    keys: dict[str, Any] = {"lora_r": found.r, "lora_alpha": found.alpha, "use_rslora": found.use_rslora}
    keys |= {"lora_targets": ",".join(found.targets) or None, "use_dora": found.use_dora}
    for name, value in keys.items():
        given = getattr(configuration.run, name)
        if given not in (getattr(RunConfig(), name), value):
            raise UserError(f"{name}={given!r} contradicts lora_from={str(folder)!r}, which has {value!r}: drop it")
    return dataclasses.replace(configuration, run=dataclasses.replace(configuration.run, **keys))


def with_mixture(configuration: Configuration) -> Configuration:
    """A mixture as the run keeps it, whatever becomes of a file that says it. Raises UserError for what is none."""
    run = configuration.run
    if run.mixture is None:
        return configuration
    run = dataclasses.replace(run, mixture=as_values(read_phases(run.mixture)))
    return dataclasses.replace(configuration, run=run)


def find_dataset(configuration: Configuration, ranks: Ranks) -> Data | None:
    """The prepared dataset, or several; None for a dry run without. Raises UserError for one that is missing or
    damaged."""
    run = configuration.run
    path = dataset_folder(run.dataset, run.data_dir)
    knows_size = configuration.model.vocab_size is not None and (run.mixture, run.val_dataset) == (None, None)
    if run.dry_run and knows_size and not (path / "meta.json").exists():
        return None
    verify = ranks.local_rank == 0  # one process of a machine reads the files through
    return open_data(run.dataset, run.mixture, run.val_dataset, run.data_dir, verify)


def find_benchmarks(configuration: Configuration, dataset: Data) -> Any:
    """What asks `eval_benchmarks` of the model in training (training.trainer.Benchmarks); None without any. Raises
    UserError for those that there are not."""
    if configuration.run.eval_benchmarks is None:
        return None
    from evaluation.while_training import open_benchmarks

    return open_benchmarks(configuration, dataset)


def find_objective(configuration: Configuration, dataset: Data) -> Any:
    """What a step makes smaller (training.objective.Objective); None for the next token's loss. Raises UserError where
    pairs have no reference, or rewards no function."""
    run = configuration.run
    if run.reinforce is not None:
        from finetuning.grpo import reinforcement_of

        return reinforcement_of(configuration, dataset)
    if run.preference is None:
        return None
    from finetuning.preferences import preference_of

    return preference_of(run, dataset)


def where_to_start(configuration: Configuration, dataset: Data, folder: RunFolder, ranks: Ranks) -> list[Path]:
    """The checkpoints that the run can be resumed from, newest first; none for scratch.

    Raises UserError where that would lose or mix up a run. A run that torchrun has started again continues.
    """
    start, existing = configuration.run.init_from, folder.checkpoints()
    if start not in ("resume", "auto") and restarts() == 0:
        only_evaluates = configuration.run.eval_only and configuration.run.source is not None  # as often as one likes
        if ranks.is_first and (existing or (folder.has_run and not only_evaluates)):
            again = "--init_from=auto" if start == "scratch" else f"train.py {folder.path}/config.py --init_from=auto"
            raise UserError(f"{folder.path} holds a run already: {again} continues it, another --out_dir keeps it")
        return []
    if not existing:
        if start == "resume":
            raise UserError(
                f"{folder.path} has no checkpoint to resume from: --init_from=auto starts from scratch then"
            )
        return []
    newest, state = first_readable(list(reversed(existing)))
    saved = from_dict(state["config"])
    # What changes neither parameters nor what they mean, nor what a token costs
    free = {name: configuration.model[name] for name, key in architecture_keys().items() if key.changes != "function"}
    comparable = saved.replace(**free)
    check_same_adapters(newest, state["config"], configuration.run)
    if differing := differences(comparable, configuration.model):
        raise UserError(f"{newest} is of another architecture: {', '.join(differing)}; choose another --out_dir")
    if not same_ids(state["data"].get("tokenizer", dataset.tokenizer), dataset.tokenizer):
        raise UserError(
            f"{newest} was trained with another tokenizer than {dataset.folder} has now: prepare the dataset as it "
            "was, or choose another --out_dir"
        )
    return list(reversed(existing))


def check_same_adapters(checkpoint: Path, before: dict[str, Any], run: RunConfig) -> None:
    """Raises UserError where a run would go on with other adapters than a checkpoint of it has; their dropout may
    change."""
    defaults = RunConfig()
    changed = [
        f"{name} was {old!r} and is {now!r}"
        for name in ("use_lora", *OF_ADAPTERS)
        if (old := before.get(name, getattr(defaults, name))) != (now := getattr(run, name)) and name != "lora_dropout"
    ]
    if changed:
        raise UserError(
            f"{checkpoint} has other adapters: {', '.join(changed)}; others begin with --init_from in another --out_dir"
        )


def first_readable(checkpoints: list[Path]) -> tuple[Path, dict[str, Any]]:
    """The first whose state is whole, and that. Raises UserError if none is."""
    reasons = []
    for checkpoint in checkpoints:
        try:
            return checkpoint, read_state(checkpoint)
        except Misnamed:
            raise
        except UserError as error:
            reasons.append(str(error))
    raise UserError(f"no checkpoint is whole: {'; '.join(reasons)}")


def is_finished(checkpoint: Path, folder: RunFolder, configuration: Configuration, plan: RunPlan) -> bool:
    """Whether a resumed run would have nothing to do: after its last step, a kill may have come before its summary."""
    is_last = not configuration.run.eval_only and step_of(checkpoint) >= plan.length
    if not is_last or not folder.log.exists() or read_run(folder.log).state != "finished":
        return False
    return damage(checkpoint, ALONE) is None


if __name__ == "__main__":
    main()
