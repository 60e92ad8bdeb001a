"""What a model can do, each figure with its noise: of a run, a checkpoint, or the folder of a Hugging Face model.

python evaluate.py out/quickstart
python evaluate.py out/quickstart --text novel.txt --stride 64
python evaluate.py out/quickstart --tasks hellaswag,arc_easy,my_task.yaml --limit 500 --save_results results.json
python evaluate.py gpt2-folder --tasks lambada_openai

Without --tasks: bits per byte of the run's validation text, questions that are made of it, speed and memory. --text
puts a file in its place. --tasks names tasks of EleutherAI's lm-evaluation-harness, which the extra `evaluation`
brings, or files of such tasks; docs/evaluation.md says more.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import configurator
from common.errors import ArgumentParser, UserError, exit_cleanly, positive
from common.files import check_target, write_json, write_whole
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
from evaluation.positions import positions
from evaluation.speed import measure, speed_grid
from evaluation.subject import Subject, find_subject
from parallel.device import choose_device, device_name
from parallel.ranks import ALONE
from runs.config import RunConfig, check_run
from runs.folder import checkpoint_choice


@exit_cleanly
def main() -> None:
    arguments = parse_arguments()
    for option in ("save_results", "save_samples"):
        check_target(option, getattr(arguments, option))
    check_target("png", arguments.png, ".png")
    device = choose_device(arguments.device, ALONE)
    if arguments.config is not None:
        configurator.load([arguments.config])
    subject = find_subject(arguments.subject, arguments.checkpoint, device, arguments.add_bos_token)
    print(f"{subject.name}, {subject.model.config.name}, on {device_name(device)}, float32", file=sys.stderr)
    figures, samples = of_tasks(subject, arguments) if arguments.tasks else ([], {})
    results: dict[str, Any] = {"subject": subject.name, "architecture": subject.model.config.name}
    reading = None
    if arguments.text is not None or not arguments.tasks:
        reading = read_text(subject, arguments)
        figures += of_text(subject, reading, arguments)
    extras = extras_of(subject, reading, figures, samples, arguments)
    print("\n".join([*table(figures), *(line for extra in extras for line in extra.lines)]))
    if not arguments.tasks:
        speed = measure(subject.model)
        print("\n".join(speed.lines(subject.block)))
        results["speed"] = vars(speed)
    results["figures"] = [figure.as_json() for figure in figures]
    results |= {extra.name: extra.values for extra in extras}
    save(arguments, results, samples)
    if arguments.png is not None:
        write_picture(arguments.png, extras)
        print(f"picture: {arguments.png}")


def of_tasks(subject: Subject, arguments: argparse.Namespace) -> tuple[list[Figure], dict[str, list[dict[str, Any]]]]:
    """The figures of tasks of the harness, and their samples."""
    try:
        from evaluation.harness import run_tasks
    except ImportError as error:
        raise UserError(
            f"--tasks needs lm-evaluation-harness, but {error.name} is not installed: pip install -e '.[evaluation]'"
        ) from None
    outcome = run_tasks(subject, arguments.tasks, arguments.limit, arguments.batch_size)
    return outcome.figures, outcome.samples


def read_text(subject: Subject, arguments: argparse.Namespace) -> Reading:
    """What the model says of a part of the run's validation text, or of all of a named one."""
    text = text_to_read(subject, arguments.text)
    print(f"text: {text.name}, {text.described}", file=sys.stderr)
    most = None if arguments.text is not None else READ
    return read_windows(subject, text, arguments.stride or subject.block, most, arguments.batch_size)


def of_text(subject: Subject, reading: Reading, arguments: argparse.Namespace) -> list[Figure]:
    """The figures of a text, and, without tasks, of questions that are made of it."""
    asked = [] if arguments.tasks else made_tasks(subject, reading.text, arguments.limit, arguments.batch_size)
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
    if file is not None:
        return text_of(file, subject.tokenizer)
    if subject.run is None:
        raise UserError(
            f"{subject.name} does not say what text it was not trained on: name one with --text, or --tasks"
        )
    return validation_text(subject.run)


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
    option("--config", metavar="FILE", help="the run's config.py, if it registers components; it is executed")
    option("--device", type=device_choice, default="auto", metavar="D", help="auto, cpu, cuda, cuda:N or mps (auto)")
    arguments = parser.parse_args()
    if arguments.save_samples is not None and not arguments.tasks:
        raise UserError("--save_samples is of --tasks")
    for name in ("stride", "by_position", "needle"):
        if getattr(arguments, name) and arguments.tasks and arguments.text is None:
            raise UserError(f"--{name} is of a text: add --text FILE")
    if arguments.png is not None and not (arguments.by_position or arguments.needle or arguments.speed):
        raise UserError("--png is a picture of --by_position, --needle and --speed: add one of them")
    return arguments


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
