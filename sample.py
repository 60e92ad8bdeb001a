"""Text from a run's checkpoint.

python sample.py out/quickstart --prompt "def main(" --temperature 0.8 --top_k 200
python sample.py --out_dir=out-shakespeare-char --start=FILE:prompt.txt --num_samples=3
"""

import argparse
import dataclasses
import io
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

import configurator
from common.errors import ArgumentParser, UserError, exit_cleanly
from common.files import open_text
from data.documents import check_text
from data.tokenizers import Tokenizer
from inference.generation import generate, generate_batch
from inference.loading import cache_bytes, configuration_of, find_tokenizer, load
from inference.sampling import Sampling
from inference.text import decode_stream, has_ended, starting_tokens, until
from model_builder import LanguageModel
from model_config import ModelArchitectureConfig
from parallel.device import choose_device
from parallel.ranks import ALONE
from runs.config import RunConfig, check_run
from runs.folder import RunFolder, checkpoint_choice, existing_run

AT_ONCE = 32  # texts of a batch at most: they are in memory together


@exit_cleanly
def main() -> None:
    arguments = parse_arguments()
    device = choose_device(arguments.device, ALONE)
    if arguments.config is not None:
        configurator.load([arguments.config])
    checkpoint, which = run_folder(arguments).find(arguments.checkpoint)
    saved = configuration_of(checkpoint)
    tokenizer = find_tokenizer(checkpoint, saved)
    start = starting_tokens(tokenizer, prompt_of(arguments))
    model = load(checkpoint, saved, device)
    print(
        f"{checkpoint} ({which}), {model.config.name}, on {device.type}, {cache_sizes(model.config)}", file=sys.stderr
    )

    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal that is not UTF-8 shows what it can
    for number, pieces in enumerate(texts(model, tokenizer, start, arguments)):
        if number:
            print("-" * 20)
        for piece in pieces:
            print(piece, end="", flush=True)
        print()


def texts(
    model: LanguageModel, tokenizer: Tokenizer, start: list[int], arguments: argparse.Namespace
) -> Iterator[Iterator[str]]:
    """Every text, in the pieces in which it is printed."""
    how = Sampling(**{field.name: getattr(arguments, field.name) for field in dataclasses.fields(Sampling)})
    first, end = arguments.seed, arguments.seed + arguments.num_samples  # one a text: a batch has no order of draws
    if not arguments.no_stream:
        for seed in range(first, end):
            tokens = generate(model, start, tokenizer, how, arguments.max_new_tokens, seeded(seed))
            yield as_far_as_wanted(tokenizer, start, tokens, arguments.stop)
        return
    for seed in range(first, end, AT_ONCE):
        generators = [seeded(one) for one in range(seed, min(seed + AT_ONCE, end))]
        found: list[list[int]] = [[] for _ in generators]
        starts, ended = [start] * len(generators), set[int]()
        every = generate_batch(model, starts, tokenizer, how, arguments.max_new_tokens, generators, ended)
        for number, token in every:
            found[number].append(token)
            ended |= {number} if has_ended(tokenizer, found[number], arguments.stop) else set()
        for new in found:
            yield iter(["".join(as_far_as_wanted(tokenizer, start, new, arguments.stop))])


def as_far_as_wanted(
    tokenizer: Tokenizer, start: list[int], tokens: Iterable[int], stops: Sequence[str]
) -> Iterator[str]:
    """The text of the start, and of the tokens up to a stop string."""
    if not stops:
        yield from decode_stream(tokenizer, start, tokens)
        return
    pieces = decode_stream(tokenizer, start, tokens)
    yield next(pieces)  # the prompt's, in which nothing stops
    yield from until(pieces, stops)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# ---------------------------------------------------------------------------------------------------------------------
# The command line


def parse_arguments() -> argparse.Namespace:
    parser = ArgumentParser(__doc__)
    positive = number(int, lambda value: value >= 1, "a whole number, at least 1")
    share = number(float, lambda value: 0 < value <= 1, "a number above 0, at most 1")
    part = number(float, lambda value: 0 <= value <= 1, "a number from 0 to 1")
    above = number(float, lambda value: 0 < value < math.inf, "a number above 0")
    any_number = number(float, math.isfinite, "a number")
    temperature = number(float, lambda value: 0 <= value < math.inf, "a number, at least 0")
    seed = number(int, lambda value: 0 <= value < 2**63, "a whole number from 0 to 2**63 - 1")
    option = parser.add_argument
    option("run", nargs="?", type=Path, help="the run's folder, such as out/quickstart")
    option("--out_dir", type=Path, metavar="RUN", help="the same, as nanoGPT spells it")
    option(
        "--prompt",
        "--start",
        metavar="TEXT",
        help="to continue, or FILE:path; without it a new document begins; the name of a special token is that token",
    )
    option("--max_new_tokens", type=positive, default=500, metavar="N", help="unless the document ends before (500)")
    option("--temperature", type=temperature, default=0.8, metavar="T", help="0: always the likeliest token (0.8)")
    option("--top_k", type=positive, default=200, metavar="K", help="only the K likeliest tokens (200)")
    option("--top_p", type=share, default=1.0, metavar="P", help="only the likeliest that together have P (1: all)")
    option(
        "--min_p", type=part, default=0.0, metavar="P", help="only those P times as likely as the likeliest, or more"
    )
    option("--typical_p", type=share, default=1.0, metavar="P", help="only the most typical that together have P")
    option("--repetition_penalty", type=above, default=1.0, metavar="R", help="divides logits of what is there already")
    option("--presence_penalty", type=any_number, default=0.0, metavar="R", help="less of what was written already")
    option("--frequency_penalty", type=any_number, default=0.0, metavar="R", help="the same, for each time that it was")
    option("--stop", action="append", default=[], type=some_text, metavar="TEXT", help="ends the text; can be repeated")
    option("--seed", type=seed, default=1337, metavar="N", help="the same seed gives the same text (1337)")
    option("--num_samples", type=positive, default=1, metavar="N", help="texts, each of the seed after (1)")
    option("--checkpoint", type=checkpoint_choice, metavar="WHICH", help="best, last or a step (best; last if none is)")
    option("--config", metavar="FILE", help="the run's config.py, if it registers components; it is executed")
    option("--device", type=device_choice, default="auto", metavar="D", help="auto, cpu, cuda, cuda:N or mps (auto)")
    option("--no_stream", action="store_true", help="print each text when it is complete")
    return parser.parse_args()


def number(kind: Callable[[str], Any], accepts: Callable[[Any], bool], description: str) -> Callable[[str], Any]:
    """An argparse type: a number of one kind within bounds."""

    def parse(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError:
            value = math.nan  # which nothing accepts
        if not accepts(value):
            raise argparse.ArgumentTypeError(f"{text!r} is not {description}")
        return value

    return parse


def some_text(text: str) -> str:
    if not text:
        raise argparse.ArgumentTypeError("an empty text would end every text")
    check_text(text, "--stop")
    return text


def device_choice(text: str) -> str:
    check_run(RunConfig(device=text))  # the names are those of train.py's key
    return text


def run_folder(arguments: argparse.Namespace) -> RunFolder:
    path = arguments.run if arguments.out_dir is None else arguments.out_dir
    if path is None:
        raise UserError("name a run's folder: python sample.py out/quickstart")
    if arguments.run is not None and arguments.out_dir is not None:
        raise UserError(f"two runs, {arguments.run} and {arguments.out_dir}: name one")
    return existing_run(path)


def prompt_of(arguments: argparse.Namespace) -> str | None:
    """The prompt, or what the file in FILE:path holds."""
    if arguments.prompt is None or not arguments.prompt.startswith("FILE:"):
        check_text(arguments.prompt or "", "--prompt")
        return arguments.prompt
    path = Path(arguments.prompt.removeprefix("FILE:"))
    try:
        with open_text(path) as file:
            return file.read()
    except OSError as error:
        raise UserError(f"cannot read the prompt {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UserError(f"cannot read the prompt {path}: it is not UTF-8 text") from None


# ---------------------------------------------------------------------------------------------------------------------
# What is said of the caches


def cache_sizes(config: ModelArchitectureConfig) -> str:
    """What decoding keeps of a text of block_size tokens, and what it would if every layer were attention."""
    said = f"caches at {config.block_size:,} tokens: {cache_bytes(config):,} bytes"
    if len({layer.mixer_spec.has_constant_state for layer in config.layer_counts}) == 2:
        transformer = config.replace(layer_pattern=None)
        said += f", with attention in every layer {cache_bytes(transformer):,}"
    return said


if __name__ == "__main__":
    main()
