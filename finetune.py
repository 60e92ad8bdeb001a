"""Fine-tune a model on conversations: python finetune.py MODEL [config/sft.py] --data chats.jsonl --key=value ...

python finetune.py out/quickstart config/sft.py --data chats.jsonl --epochs 2 --out_dir=out/chat
python finetune.py out/chat config/dpo.py --data pairs.jsonl --out_dir=out/preferred
python finetune.py out/chat config/grpo_sums.py --data prompts.jsonl --out_dir=out/rewarded
torchrun --nproc_per_node=4 finetune.py gpt2 --data chats/ --val_data held_out.jsonl --block_size=512

MODEL is a run's folder, that of a Hugging Face model, or the name of one in its cache. The conversations become a
dataset in the new run's folder, of whose tokens the answers' count, or for a preference pairs of answers, or labelled
ones, or prompts where rewards are learned; then train.py trains, with its keys, checkpoints, log and strategies. The
same command again continues the run. docs/using/finetuning.md says more.
"""

import argparse
import contextlib
import dataclasses
import math
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from common.errors import ArgumentParser, UserError, above_zero, exit_cleanly
from configurator import Configuration, load, with_run_dir
from data.dataset import open_dataset
from data.documents import find_files
from data.preparation import fraction
from data.reference import wait_for_reference
from finetuning.example import example
from finetuning.models import identity_of, template_folders, tokenizer_of
from finetuning.prepare import NAME, Prepared, Task, prepare, read_prepared, remove_prepared, wait_for, what_is_learned
from finetuning.rewards import rewards_of
from finetuning.templates import BUILT_IN, find_template
from interop.sources import find_source, with_architecture_of
from parallel.ranks import Ranks, ranks_from_environment
from runs.config import DATA, WITH_REFERENCE, RunConfig
from runs.folder import RunFolder
from train import train_as
from training.plan import check_buildable, check_ranks, cut_of, plan_run

CONFIG = Path(__file__).resolve().parent / "config/sft.py"
LENGTHS = ("max_iters", "max_tokens", "max_flops")
OWN = ("init_from", "dataset", "data_dir", "mixture", "val_dataset")  # keys whose values this command gives


@exit_cleanly
def main() -> int:
    arguments, rest = parse_arguments()
    configuration = with_run_dir(load(rest))
    check_keys(configuration.run, arguments)
    source, ranks = find_source(arguments.model, option=""), ranks_from_environment()
    configuration = with_architecture_of(source, configuration)
    check_plan(configuration, ranks)
    task, note = task_of(arguments, source, configuration)
    with place_of(configuration, ranks) as folder:
        found = dataset_in(folder, task, configuration.run, ranks)
        configuration = on_dataset(configuration, arguments, folder)
        run = configuration.run
        if run.preference in WITH_REFERENCE and run.source is not None and not run.dry_run:
            reference = source if arguments.reference is None else find_source(arguments.reference, "--reference")
            has_reference(folder, reference, configuration, ranks)
        if ranks.is_first:
            say(found, note, folder, task)
        return train_as(configuration)


def task_of(arguments: argparse.Namespace, source: Path, configuration: Configuration) -> tuple[Task, str | None]:
    """What is to be prepared, and what to say of the template."""
    kept = tokenizer_of(source, arguments.end_of_document)
    template, note = find_template(arguments.chat_template, template_folders(source))
    train, val = (tuple(find_files(given)) for given in (arguments.data, arguments.val_data))
    block_size = configuration.model.block_size
    run, data = configuration.run, (train, val, arguments.val_fraction)
    room = None if run.reinforce is None else run.max_completion
    task = Task(arguments.model, *data, kept, template, block_size, what_is_learned(run), arguments.reference, room)
    return dataclasses.replace(task, weights=identity_of(source)), note


def check_plan(configuration: Configuration, ranks: Ranks) -> None:
    """Raises UserError for a run that train.py would refuse whatever its data are, before these are prepared."""
    plan_run(configuration, None)
    check_ranks(configuration, configuration.run.world_size or ranks.size)
    check_buildable(configuration.model)
    rewards_of(configuration)
    if not configuration.run.dry_run:
        from parallel.device import choose_device  # torch takes a second to import: what needs none of it stands above

        choose_device(configuration.run.device, ranks)


@contextlib.contextmanager
def place_of(configuration: Configuration, ranks: Ranks) -> Iterator[Path]:
    """The run's folder, in which nothing is left where the run is refused; for a dry run one that is removed."""
    run = RunFolder(configuration.run_dir)
    if configuration.run.dry_run:
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder)
        return
    made = [path for path in (run.path / DATA, run.path, *run.path.parents) if not path.exists()]
    is_new = read_prepared(run.path) is None
    try:
        yield run.path
    except UserError:
        if ranks.is_first and is_new and not run.has_run:
            remove_prepared(run.path)
            with contextlib.suppress(OSError):
                for path in made:
                    path.rmdir()  # stops at one that is not empty
        raise


def dataset_in(folder: Path, task: Task, run: RunConfig, ranks: Ranks) -> Prepared:
    """The dataset of a run's folder, which the first rank prepares unless it is there. Raises UserError for a run on
    another."""
    found, identity = read_prepared(folder), task.identity
    if found is not None and found.identity == identity:
        return found
    if not ranks.is_first and not run.dry_run:  # for which each has a folder of its own
        wait_for(task, folder, run.comm_timeout)
        return Prepared(identity, [])
    if RunFolder(folder).has_run:
        if found is None:
            raise UserError(f"{folder} holds a run that is not of finetune.py: choose another --out_dir")
        differing = [name for name, value in identity.items() if found.identity.get(name) != value]
        raise UserError(
            f"{folder} holds a run that differs in {' and '.join(differing)}: choose another --out_dir, or continue it "
            f"as it is: train.py {folder}/config.py --init_from=auto"
        )
    return prepare(task, folder)


def has_reference(folder: Path, reference: Path, configuration: Configuration, ranks: Ranks) -> None:
    """The dataset of a run that begins gets what the reference says of its answers, which the first rank asks."""
    place = folder / DATA / NAME
    if not ranks.is_first:
        wait_for_reference(place, configuration.run.comm_timeout)
        return
    from finetuning.reference import ask_reference

    ask_reference(reference, open_dataset(place, verify=False), cut_of(configuration), configuration.run)


def on_dataset(configuration: Configuration, arguments: argparse.Namespace, folder: Path) -> Configuration:
    """The configuration of a run on the dataset in the folder: from the model, or, once it has begun, from its last
    checkpoint; as long as so many epochs, unless keys say how long."""
    run = configuration.run
    begun = not run.dry_run and RunFolder(folder).checkpoints()
    run = dataclasses.replace(
        run, dataset=NAME, data_dir=str(folder / DATA), init_from="auto" if begun else arguments.model
    )
    if not says_length(run):
        dataset = open_dataset(folder / DATA / NAME, verify=False)
        windows = cut_of(configuration).n_windows(dataset, "train")
        steps = math.ceil((arguments.epochs or 1.0) * windows / run.sequences_per_step)
        run = dataclasses.replace(run, max_iters=steps)
    return dataclasses.replace(configuration, run=run)


def says_length(run: RunConfig) -> bool:
    return any(getattr(run, name) != getattr(RunConfig(), name) for name in LENGTHS)


def check_keys(run: RunConfig, arguments: argparse.Namespace) -> None:
    """Raises UserError for keys that this command gives itself, for a length that is said twice, and for a reference
    that nothing is compared with."""
    epochs = arguments.epochs
    if arguments.reference is not None and run.preference not in WITH_REFERENCE:
        raise UserError(f"--reference is for preference={' or '.join(WITH_REFERENCE)}: drop it")
    for name in OWN:
        if getattr(run, name) != getattr(RunConfig(), name):
            raise UserError(f"{name}={getattr(run, name)!r}: finetune.py takes the model and --data instead: drop it")
    if epochs is not None and says_length(run):
        raise UserError(f"--epochs={epochs:g} and {', '.join(LENGTHS)} say how long the run is: keep one of them")


def say(found: Prepared, note: str | None, folder: Path, task: Task) -> None:
    """What was counted, and one example."""
    dataset = open_dataset(folder / DATA / NAME, verify=False)
    lines = [*found.counted, *([] if note is None else [note]), *markers(task)]
    shown = example(dataset, task.kept.tokenizer, in_colour=sys.stdout.isatty())
    print("\n".join([*lines, "", *shown, ""]), flush=True)


def markers(task: Task) -> list[str]:
    """That the template's markers are plain text to the tokenizer, where none is one of its special tokens."""
    special, source = task.kept.tokenizer.special, task.template.source
    named = any(name in source for name in special) or any(value in special for _, value in task.template.tokens)
    return [] if named else ["the template's markers are text to this tokenizer, not special tokens"]


# ---------------------------------------------------------------------------------------------------------------------
# The command line


def parse_arguments() -> tuple[argparse.Namespace, list[str]]:
    """This command's own, and the rest of the command line, which is train.py's."""
    usage = "finetune.py MODEL [CONFIG.py] --data PATH ... [options] [--key=value ...]; train.py --help has the keys"
    parser = ArgumentParser(__doc__, usage=usage)
    option = parser.add_argument
    option(
        "model",
        type=model_name,
        metavar="MODEL",
        help="a run's folder, a Hugging Face model's, or a name in Hugging Face's cache",
    )
    option("--data", nargs="+", required=True, metavar="PATH", help="conversations: .jsonl, .json, .parquet; .gz, .zst")
    option("--val_data", nargs="+", default=[], metavar="PATH", help="those for validation, instead of a share")
    option("--val_fraction", type=fraction, default=0.05, metavar="SHARE", help="of --data for validation (0.05)")
    option("--chat_template", default="auto", metavar="T", help=f"auto, {', '.join(BUILT_IN)}, or a file (auto)")
    option("--epochs", type=above_zero, metavar="E", help="how often every conversation is seen (1)")
    option("--reference", metavar="MODEL", help="that preferences are compared with (the model itself)")
    option("--end_of_document", metavar="NAME", help="the special token that ends a text, if the tokenizer has many")
    arguments, rest = parser.parse_known_args()
    if not any(one.endswith(".py") and not one.startswith("-") for one in rest):
        rest = [str(CONFIG), *rest]
    return arguments, rest


def model_name(text: str) -> str:
    """An argument's type: a folder however it is written, or a name."""
    return str(Path(text))


if __name__ == "__main__":
    main()
