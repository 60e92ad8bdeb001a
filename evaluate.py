"""What a model can do, each figure with its noise: of a run, a checkpoint, or the folder of a Hugging Face model.

python evaluate.py out/quickstart
python evaluate.py out/quickstart --text novel.txt --stride 64
python evaluate.py out/quickstart --tasks hellaswag,arc_easy,my_task.yaml --limit 500 --save_results results.json
python evaluate.py gpt2-folder --tasks lambada_openai
python evaluate.py out/quickstart --benchmarks hellaswag,piqa --against out/other

Without --tasks: bits per byte of the run's validation text, questions that are made of it, speed and memory. --text
puts a file in its place. --tasks names tasks of EleutherAI's lm-evaluation-harness, which the extra `evaluation`
brings, or files of such tasks; --benchmarks takes mmlu, hellaswag, arc_easy, arc_challenge, truthfulqa, piqa,
winogrande, boolq, gsm8k, humaneval, all of these, or core. --against compares with another model, question by question.
docs/evaluation.md says more.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch

import configurator
from common.errors import ArgumentParser, UserError, exit_cleanly, positive
from common.files import check_target, write_json, write_whole
from evaluation.benchmarks import benchmarks_of
from evaluation.figures import Figure, table
from evaluation.held_out import READ, HeldOut, bits_per_byte, made_tasks, text_of, validation_text
from evaluation.paired import Samples, differences, lines, read_samples
from evaluation.speed import measure
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
    device = choose_device(arguments.device, ALONE)
    if arguments.config is not None:
        configurator.load([arguments.config])
    other = opponent(arguments, device)
    subject = find_subject(arguments.subject, arguments.checkpoint, device, arguments.add_bos_token)
    print(f"{subject.name}, {subject.model.config.name}, on {device_name(device)}, float32", file=sys.stderr)
    asks = bool(arguments.tasks or arguments.benchmarks)
    figures, samples = of_tasks(subject, arguments) if asks else ([], {})
    results: dict[str, Any] = {"subject": subject.name, "architecture": subject.model.config.name}
    if arguments.text is not None or not asks:
        figures += of_text(subject, arguments)
    print("\n".join(table(figures)))
    if not asks:
        speed = measure(subject.model)
        print("\n".join(speed.lines(subject.block)))
        results["speed"] = vars(speed)
    results["figures"] = [figure.as_json() for figure in figures]
    if other is not None:
        name = subject.name
        del subject  # whose memory the other model needs
        results["against"] = compared(name, figures, samples, other, arguments, device)
    save(arguments, results, samples)


def of_tasks(subject: Subject, arguments: argparse.Namespace) -> tuple[list[Figure], dict[str, list[dict[str, Any]]]]:
    """The figures of benchmarks and other tasks, and their samples."""
    try:
        from evaluation.asking import ask
    except ImportError as error:
        raise UserError(
            f"--tasks and --benchmarks need lm-evaluation-harness, but {error.name} is not installed: "
            "pip install -e '.[evaluation]'"
        ) from None
    outcome = ask(subject, arguments.tasks, arguments.benchmarks, arguments.limit, arguments.batch_size,
                  arguments.run_generated_code)  # fmt: skip
    return outcome.figures, outcome.samples


def opponent(arguments: argparse.Namespace, device: torch.device) -> Samples | Path | None:
    """What --against names: the samples of an evaluation, or the path of a model that can be loaded. Raises UserError
    before anything is asked."""
    if arguments.against is None or arguments.against.is_file():
        return None if arguments.against is None else read_samples(arguments.against)
    find_subject(arguments.against, None, device, arguments.add_bos_token)
    return arguments.against


def compared(
    name: str,
    figures: list[Figure],
    samples: Samples,
    other: Samples | Path,
    arguments: argparse.Namespace,
    device: torch.device,
) -> dict[str, Any]:
    """Prints and returns the differences to the other model, which is asked the same."""
    other_name = str(arguments.against)
    if isinstance(other, Path):
        subject = find_subject(other, None, device, arguments.add_bos_token)
        other_name = subject.name
        print(f"{other_name}, {subject.model.config.name}", file=sys.stderr)
        other = of_tasks(subject, arguments)[1]
    found = differences(figures, samples, other)
    print("\n".join(lines(found, name, other_name)))
    return {"subject": other_name, "differences": [one.as_json() for one in found]}


def of_text(subject: Subject, arguments: argparse.Namespace) -> list[Figure]:
    """The figures of a text: of the run's validation text a part, with questions; of a named one all."""
    text = text_to_read(subject, arguments.text)
    print(f"text: {text.name}, {text.described}", file=sys.stderr)
    most = None if arguments.text is not None else READ
    stride = arguments.stride or subject.block
    figures = bits_per_byte(subject, text, stride, most, arguments.batch_size)
    asks = arguments.tasks or arguments.benchmarks
    return figures if asks else [*figures, *made_tasks(subject, text, arguments.limit, arguments.batch_size)]


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
    option("--benchmarks", type=names, default=[], metavar="NAMES", help="by their usual names, all of them, or core")
    option("--against", type=Path, metavar="B", help="another model, or its --save_samples: which is better, and is it")
    option("--run_generated_code", action="store_true", help="run what the model writes for humaneval, confined")
    option("--text", type=Path, metavar="FILE", help="to read instead of the run's validation text")
    option("--stride", type=positive, metavar="N", help="new tokens a window of the text (the block: disjoint windows)")
    option("--limit", type=positive, metavar="N", help="questions of each task, the first ones (all)")
    option("--batch_size", type=batch_size, metavar="N", help="texts at once, or auto: as many as are fast (auto)")
    option("--add_bos_token", type=yes_or_no, metavar="BOOL", help="begin every text with a token (as in training)")
    option("--save_results", type=Path, metavar="FILE", help="write what is printed as JSON")
    option("--save_samples", type=Path, metavar="FILE", help="write what each task asked and got, a line of JSON each")
    option("--checkpoint", type=checkpoint_choice, metavar="WHICH", help="best, last or a step (best; last if none is)")
    option("--config", metavar="FILE", help="the run's config.py, if it registers components; it is executed")
    option("--device", type=device_choice, default="auto", metavar="D", help="auto, cpu, cuda, cuda:N or mps (auto)")
    arguments = parser.parse_args()
    arguments.benchmarks = benchmarks_of(arguments.benchmarks)
    asks = arguments.tasks or arguments.benchmarks
    for option_name in ("save_samples", "against"):
        if getattr(arguments, option_name) is not None and not asks:
            raise UserError(f"--{option_name} is of --tasks and --benchmarks")
    if arguments.stride is not None and asks and arguments.text is None:
        raise UserError("--stride is of a text: add --text FILE")
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
