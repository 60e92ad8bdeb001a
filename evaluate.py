"""What a model can do, each figure with its noise: of a run, a checkpoint, or the folder of a Hugging Face model.

python evaluate.py out/quickstart
python evaluate.py out/quickstart --text novel.txt --stride 64
python evaluate.py out/quickstart --tasks hellaswag,arc_easy,my_task.yaml --limit 500 --save_results results.json
python evaluate.py gpt2-folder --tasks lambada_openai
python evaluate.py out/chat --tasks my_task.yaml --text data/wikitext --against out/quickstart
python evaluate.py out/quickstart --by_position --needle --speed --contamination --png quickstart.png
python evaluate.py out/quickstart --all_checkpoints --watch

Without --tasks: bits per byte of the run's validation text, questions that are made of it, speed and memory. --text
puts a file in its place. --tasks names tasks of EleutherAI's lm-evaluation-harness, which the extra `evaluation`
brings, or files of such tasks; --benchmarks takes mmlu, hellaswag, arc_easy, arc_challenge, truthfulqa, piqa,
winogrande, boolq, gsm8k, humaneval, all of these, or core. --against compares with another model, question by question
and document by document.
docs/evaluation.md says more.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch

import configurator
from common.errors import ArgumentParser, UserError, above_zero, exit_cleanly, positive
from common.files import check_target, write_json, write_whole
from components.quantized.module import method_of
from evaluation.benchmarks import benchmarks_of
from evaluation.checkpoints import Follower, table_of
from evaluation.divergence import divergence, means_the_same
from evaluation.extras import Extra, write_picture
from evaluation.figures import Figure, table
from evaluation.held_out import (
    READ,
    HeldOut,
    Reading,
    bits_per_byte,
    made_tasks,
    read_windows,
    text_of,
    validation_text,
)
from evaluation.needle import needle_test
from evaluation.paired import Difference, Samples, differences, distance, lines, read_samples
from evaluation.positions import positions
from evaluation.speed import measure, speed_grid
from evaluation.subject import Subject, find_subject
from parallel.device import choose_device, device_name
from parallel.ranks import ALONE
from runs.config import RunConfig, check_run
from runs.evaluations import NAME
from runs.folder import checkpoint_choice, existing_run

ASKED = ("tasks", "benchmarks", "text", "stride", "limit", "add_bos_token")  # what decides a figure


@exit_cleanly
def main() -> None:
    arguments = parse_arguments()
    for option in ("save_results", "save_samples"):
        check_target(option, getattr(arguments, option))
    check_target("png", arguments.png, ".png")
    device = choose_device(arguments.device, ALONE)
    if arguments.config is not None:
        configurator.load([arguments.config])
    wanted = wanted_of(arguments)
    if arguments.all_checkpoints:
        follow(arguments, wanted, device)
        return
    other = opponent(arguments, device, wanted)
    subject = find_subject(arguments.subject, arguments.checkpoint, device, arguments.add_bos_token)
    method = method_of(subject.model.state_dict())
    computes = "float32" if method is None else f"float32, matrices in {method}"
    print(f"{subject.name}, {subject.model.config.name}, on {device_name(device)}, {computes}", file=sys.stderr)
    figures, samples = of_tasks(subject, wanted, arguments)
    results: dict[str, Any] = {"subject": subject.name, "architecture": subject.model.config.name}
    reading = None
    if arguments.text is not None or wanted is None:
        reading = read_text(subject, text_to_read(subject, arguments.text), arguments)
        figures += of_text(subject, reading, arguments)
    extras = extras_of(subject, reading, figures, samples, arguments)
    print("\n".join([*table(figures), *(line for extra in extras for line in extra.lines)]))
    if wanted is None:
        speed = measure(subject.model)
        print("\n".join(speed.lines(subject.block)))
        results["speed"] = vars(speed)
    results["figures"] = [figure.as_json() for figure in figures]
    results |= {extra.name: extra.values for extra in extras}
    if other is not None:
        found, name = compared(subject, reading, figures, samples, other, wanted, arguments, device)
        print("\n".join(lines(found, subject.name, name)))
        results["against"] = {"subject": name, "differences": [one.as_json() for one in found]}
    save(arguments, results, samples)
    if arguments.png is not None:
        write_picture(arguments.png, extras)
        print(f"picture: {arguments.png}")


def wanted_of(arguments: argparse.Namespace) -> Any:
    """What --tasks and --benchmarks name, as evaluation.asking has found it; None without either."""
    if not (arguments.tasks or arguments.benchmarks):
        return None
    try:
        from evaluation.asking import find_wanted
    except ImportError as error:
        raise UserError(
            f"--tasks and --benchmarks need lm-evaluation-harness, but {error.name} is not installed: "
            "pip install -e '.[evaluation]'"
        ) from None
    return find_wanted(arguments.tasks, arguments.benchmarks, arguments.limit, arguments.run_generated_code)


def of_tasks(
    subject: Subject, wanted: Any, arguments: argparse.Namespace
) -> tuple[list[Figure], dict[str, list[dict[str, Any]]]]:
    """The figures of benchmarks and other tasks, and their samples."""
    if wanted is None:
        return [], {}
    outcome = wanted.ask(subject, arguments.batch_size)
    return outcome.figures, outcome.samples


def follow(arguments: argparse.Namespace, wanted: Any, device: torch.device) -> None:
    """Every checkpoint of a run, and with --watch those that it goes on to write."""
    folder = existing_run(arguments.subject)
    if not folder.has_run:
        raise UserError(f"--all_checkpoints is of a run's folder, and {folder.path} is none")

    def ask(checkpoint: Path) -> list[Figure]:
        subject = find_subject(checkpoint, None, device, arguments.add_bos_token)
        figures, _ = of_tasks(subject, wanted, arguments)
        if arguments.text is not None or wanted is None:
            reading = read_text(subject, text_to_read(subject, arguments.text), arguments)
            figures += of_text(subject, reading, arguments)
        return figures

    asked = {name: str(value) for name in ASKED if (value := getattr(arguments, name)) not in (None, [])}
    follower = Follower(folder, arguments.save_results or folder.path / NAME, asked, ask)
    try:
        follower.follow(arguments.watch, lambda found: print("\n".join(table_of(found)), flush=True))
    except KeyboardInterrupt:
        if arguments.watch is None:
            raise
        print("no longer watching; the run goes on")
    print(f"results: {follower.file}")


def opponent(arguments: argparse.Namespace, device: torch.device, wanted: Any) -> Samples | Path | None:
    """What --against names: the samples of an evaluation, or the path of a model that can be loaded. Raises UserError
    before anything is asked."""
    if arguments.against is None:
        return None
    if not arguments.against.is_file():
        find_subject(arguments.against, None, device, arguments.add_bos_token)
        return arguments.against
    if wanted is None or arguments.text is not None:
        raise UserError(f"--against {arguments.against} has answers of tasks, and none of a text: name the model")
    return read_samples(arguments.against)


def compared(
    subject: Subject,
    reading: Reading | None,
    figures: list[Figure],
    samples: Samples,
    other: Samples | Path,
    wanted: Any,
    arguments: argparse.Namespace,
    device: torch.device,
) -> tuple[list[Difference], str]:
    """The differences to the other model, which is asked the same, and its name."""
    if not isinstance(other, Path):
        return differences(figures, samples, other), str(arguments.against)
    if reading is None:
        subject.model.to("meta")  # the other model may need its memory
    base = find_subject(other, None, device, arguments.add_bos_token)
    print(f"{base.name}, {base.model.config.name}", file=sys.stderr)
    its_figures, its_samples = of_tasks(base, wanted, arguments)
    if reading is None:
        return differences(figures, samples, its_samples), base.name
    has_same_tokens = means_the_same(subject.tokenizer, base.tokenizer)
    text = reading.text if has_same_tokens else reading.text.encoded(subject.tokenizer, base.tokenizer)
    its_figures += of_text(base, read_text(base, text, arguments), arguments)
    found = differences(figures, samples, its_samples, its_figures)
    return [*found, *([distance(divergence(subject, base, reading))] if has_same_tokens else [])], base.name


def read_text(subject: Subject, text: HeldOut, arguments: argparse.Namespace) -> Reading:
    """What the model says of a part of the run's validation text, or of all of a named one."""
    most = None if arguments.text is not None else READ
    return read_windows(subject, text, arguments.stride or subject.block, most, arguments.batch_size)


def of_text(subject: Subject, reading: Reading, arguments: argparse.Namespace) -> list[Figure]:
    """The figures of a text, and, without tasks, of questions that are made of it."""
    asks = arguments.tasks or arguments.benchmarks
    asked = [] if asks else made_tasks(subject, reading.text, arguments.limit, arguments.batch_size)
    return [*bits_per_byte(subject, reading), *asked]


def extras_of(
    subject: Subject,
    reading: Reading | None,
    figures: list[Figure],
    samples: dict[str, list[dict[str, Any]]],
    arguments: argparse.Namespace,
) -> list[Extra]:
    """What was asked for besides figures."""
    found = []
    if arguments.by_position and reading is not None:
        found.append(positions(subject, reading))
    if arguments.needle and reading is not None:
        found.append(needle_test(subject, reading.text, arguments.limit, arguments.batch_size))
    if arguments.contamination:
        try:
            from evaluation.contamination import check
        except ImportError as error:
            raise UserError(
                f"--contamination needs datatrove, but {error.name} is not installed: pip install -e '.[curation]'"
            ) from None
        found.append(check(subject, samples, reading, figures))
    if arguments.speed:
        found.append(speed_grid(subject.model))
    return found


def text_to_read(subject: Subject, file: Path | None) -> HeldOut:
    """A named text, else the run's own. Raises UserError for a model that has none."""
    if file is not None:
        text = text_of(file, subject.tokenizer)
    elif subject.run is not None:
        text = validation_text(subject.run)
    else:
        raise UserError(
            f"{subject.name} does not say what text it was not trained on: name one with --text, or --tasks"
        )
    print(f"text: {text.name}, {text.described}", file=sys.stderr)
    return text


def save(arguments: argparse.Namespace, results: dict[str, Any], samples: dict[str, list[dict[str, Any]]]) -> None:
    """The files that were asked for."""
    if arguments.save_results is not None:
        write_json(arguments.save_results, results)
        print(f"results: {arguments.save_results}")
    if arguments.save_samples is not None:
        lines = [{"task": task, **sample} for task, found in samples.items() for sample in found]
        write_whole(arguments.save_samples, "".join(json.dumps(line, default=str) + "\n" for line in lines).encode())
        print(f"samples: {arguments.save_samples}")


# ---------------------------------------------------------------------------------------------------------------------
# The command line


def parse_arguments() -> argparse.Namespace:
    parser = ArgumentParser(__doc__)
    option = parser.add_argument
    option("subject", type=Path, help="a run's folder, a checkpoint in it, or the folder of a Hugging Face model")
    option("--tasks", type=names, default=[], metavar="NAMES", help="of the harness, YAML files or folders of them")
    option(
        "--text",
        type=Path,
        metavar="FILE",
        help="to read instead of the run's validation text: a file, or the "
        "folder of a prepared dataset, whose validation split is read",
    )
    option("--benchmarks", type=names, default=[], metavar="NAMES", help="by their usual names, all of them, or core")
    option("--against", type=Path, metavar="B", help="another model, or its --save_samples: which is better, and is it")
    option("--run_generated_code", action="store_true", help="run what the model writes for humaneval, confined")
    option("--stride", type=positive, metavar="N", help="new tokens a window of the text (the block: disjoint windows)")
    option("--by_position", action="store_true", help="the loss by how much of the text stands before a token")
    option("--needle", action="store_true", help="find a number in texts of several lengths, at several depths")
    option("--contamination", action="store_true", help="what of all this has 13 words in a row with the training data")
    option("--speed", action="store_true", help="speed, memory and energy by batch and context")
    option("--png", type=Path, metavar="FILE", help="a picture of what these find")
    option(
        "--limit", type=positive, metavar="N", help="questions of each task, the first ones (all); needles a cell (25)"
    )
    option("--batch_size", type=batch_size, metavar="N", help="texts at once, or auto: as many as are fast (auto)")
    option("--add_bos_token", type=yes_or_no, metavar="BOOL", help="begin every text with a token (as in training)")
    option("--save_results", type=Path, metavar="FILE", help="write what is printed as JSON")
    option("--save_samples", type=Path, metavar="FILE", help="write what each task asked and got, a line of JSON each")
    option("--checkpoint", type=checkpoint_choice, metavar="WHICH", help="best, last or a step (best; last if none is)")
    option("--all_checkpoints", action="store_true", help="each checkpoint of the run once; goes on where it was ended")
    option(
        "--watch",
        type=above_zero,
        nargs="?",
        const=10.0,
        metavar="SECONDS",
        help="and, every so many seconds (10), those that the run has written meanwhile, until it ends",
    )
    option("--config", metavar="FILE", help="the run's config.py, if it registers components; it is executed")
    option("--device", type=device_choice, default="auto", metavar="D", help="auto, cpu, cuda, cuda:N or mps (auto)")
    arguments = parser.parse_args()
    arguments.benchmarks = benchmarks_of(arguments.benchmarks)
    check_together(arguments)
    return arguments


def check_together(arguments: argparse.Namespace) -> None:
    """Raises UserError for options that say nothing together."""
    asks = arguments.tasks or arguments.benchmarks
    if arguments.save_samples is not None and not asks:
        raise UserError("--save_samples is of --tasks and --benchmarks")
    if arguments.watch is not None and not arguments.all_checkpoints:
        raise UserError("--watch follows a run: add --all_checkpoints")
    for name in ("by_position", "needle", "contamination", "speed", "png", "save_samples", "checkpoint", "against"):
        if arguments.all_checkpoints and getattr(arguments, name):
            raise UserError(f"--{name} is of one checkpoint: leave out --all_checkpoints, or name it with --checkpoint")
    for name in ("stride", "by_position", "needle"):
        if getattr(arguments, name) and asks and arguments.text is None:
            raise UserError(f"--{name} is of a text: add --text FILE")
    if arguments.png is not None and not (arguments.by_position or arguments.needle or arguments.speed):
        raise UserError("--png is a picture of --by_position, --needle and --speed: add one of them")


def names(text: str) -> list[str]:
    found = [name for name in text.split(",") if name]
    if not found:
        raise argparse.ArgumentTypeError("no task is named")
    return list(dict.fromkeys(found))


def batch_size(text: str) -> int | None:
    return None if text == "auto" else positive(text)


def yes_or_no(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"{text!r} is neither True nor False")
    return text.lower() == "true"


def device_choice(text: str) -> str:
    check_run(RunConfig(device=text))  # the names are those of train.py's key
    return text


if __name__ == "__main__":
    main()
