"""Text from a run's checkpoint.

python sample.py out/quickstart --prompt "def main(" --temperature 0.8 --top_k 200
python sample.py --out_dir=out-shakespeare-char --start=FILE:prompt.txt --num_samples=3
"""

import argparse
import codecs
import dataclasses
import io
import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import configurator
from common.errors import ArgumentParser, UserError, exit_cleanly
from configurator import Configuration
from data.dataset import dataset_folder, open_dataset
from data.tokenizers import Tokenizer, tokenizer_from_meta
from model_builder import Caches, LanguageModel, build_model
from model_config import ModelArchitectureConfig
from parallel.device import choose_device
from parallel.ranks import ALONE
from runs.checkpoint import load_model
from runs.config import RunConfig, check_run
from runs.folder import RunFolder, checkpoint_choice, existing_run, read_state, saved_configuration


@exit_cleanly
def main() -> None:
    arguments = parse_arguments()
    device = choose_device(arguments.device, ALONE)
    if arguments.config is not None:
        configurator.load([arguments.config])
    checkpoint, which = run_folder(arguments).find(arguments.checkpoint)
    saved = configuration_of(checkpoint)
    tokenizer = find_tokenizer(checkpoint, saved)
    start = starting_tokens(tokenizer, arguments.prompt)
    model = load(checkpoint, saved, device)
    print(
        f"{checkpoint} ({which}), {model.config.name}, on {device.type}, {cache_sizes(model.config)}", file=sys.stderr
    )

    how = Sampling(arguments.temperature, arguments.top_k, arguments.top_p)
    generator = torch.Generator().manual_seed(arguments.seed)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal that is not UTF-8 shows what it can
    for number in range(arguments.num_samples):
        if number:
            print("-" * 20)
        tokens = generate(model, start, tokenizer, how, arguments.max_new_tokens, generator)
        pieces = decode_stream(tokenizer, start, tokens)
        if arguments.no_stream:
            pieces = iter(["".join(pieces)])
        for piece in pieces:
            print(piece, end="", flush=True)
        print()


# ---------------------------------------------------------------------------------------------------------------------
# The command line


def parse_arguments() -> argparse.Namespace:
    parser = ArgumentParser(__doc__)
    positive = number(int, lambda value: value >= 1, "a whole number, at least 1")
    share = number(float, lambda value: 0 < value <= 1, "a number above 0, at most 1")
    temperature = number(float, lambda value: 0 <= value < math.inf, "a number, at least 0")
    seed = number(int, lambda value: 0 <= value < 2**63, "a whole number from 0 to 2**63 - 1")
    option = parser.add_argument
    option("run", nargs="?", type=Path, help="the run's folder, such as out/quickstart")
    option("--out_dir", type=Path, metavar="RUN", help="the same, as nanoGPT spells it")
    option("--prompt", "--start", metavar="TEXT", help="to continue, or FILE:path; without it a new document begins")
    option("--max_new_tokens", type=positive, default=500, metavar="N", help="unless the document ends before (500)")
    option("--temperature", type=temperature, default=0.8, metavar="T", help="0: always the likeliest token (0.8)")
    option("--top_k", type=positive, default=200, metavar="K", help="only the K likeliest tokens (200)")
    option("--top_p", type=share, default=1.0, metavar="P", help="only the likeliest that together have P (1: all)")
    option("--seed", type=seed, default=1337, metavar="N", help="the same seed gives the same text (1337)")
    option("--num_samples", type=positive, default=1, metavar="N", help="texts (1)")
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


# ---------------------------------------------------------------------------------------------------------------------
# What the run left


def configuration_of(checkpoint: Path) -> Configuration:
    """The configuration of the run. Nothing of the run's folder is executed, since it may be a stranger's: a run with
    components of its own needs its config file named, or raises UserError."""
    try:
        return saved_configuration(read_state(checkpoint))
    except UserError as error:
        own = checkpoint.parent.parent / "config.py"
        raise UserError(f"{error}; if the run has components of its own: --config {own}") from None


def find_tokenizer(checkpoint: Path, saved: Configuration) -> Tokenizer:
    """That of the dataset which the run was trained on. Raises UserError when the dataset is not there any more."""
    dataset = open_dataset(dataset_folder(saved.run.dataset, saved.run.data_dir), verify=False)
    if dataset.vocab_size > (saved.model.vocab_size or 0):
        raise UserError(
            f"{dataset.folder} is not what {checkpoint} was trained on: its vocabulary of {dataset.vocab_size} is "
            f"larger than the model's {saved.model.vocab_size}"
        )
    return tokenizer_from_meta(dataset.tokenizer)


def load(checkpoint: Path, saved: Configuration, device: torch.device) -> LanguageModel:
    """The checkpoint's model, ready to sample. Raises UserError for one that is damaged."""
    model = build_model(saved.model.portable(), device)
    load_model(checkpoint, model)
    return model.eval()


def cache_sizes(config: ModelArchitectureConfig) -> str:
    """What decoding keeps of a text of block_size tokens, and what it would if every layer were attention."""
    said = f"caches at {config.block_size:,} tokens: {cache_bytes(config):,} bytes"
    if len({layer.mixer_spec.has_constant_state for layer in config.layer_counts}) == 2:
        transformer = config.replace(layer_pattern=None)
        said += f", with attention in every layer {cache_bytes(transformer):,}"
    return said


def cache_bytes(config: ModelArchitectureConfig) -> int:
    with torch.device("meta"):
        return LanguageModel(config).empty_caches(1, config.block_size).bytes


# ---------------------------------------------------------------------------------------------------------------------
# Sampling


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How the next token is chosen; see `distribution`."""

    temperature: float
    top_k: int
    top_p: float


def starting_tokens(tokenizer: Tokenizer, prompt: str | None) -> list[int]:
    """The ids to continue: of the prompt (or of the file in FILE:path), else what a new document begins after."""
    if prompt is not None and prompt.startswith("FILE:"):
        prompt = read_prompt(Path(prompt.removeprefix("FILE:")))
    if prompt:
        return tokenizer.encode(prompt)
    if tokenizer.end_of_document is not None:
        return [tokenizer.end_of_document]
    try:
        return tokenizer.encode("\n")
    except UserError:
        raise UserError("this dataset has neither ends of documents nor newlines to start after: --prompt") from None


def read_prompt(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot read the prompt {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UserError(f"cannot read the prompt {path}: it is not UTF-8 text") from None


@torch.inference_mode()
def generate(
    model: LanguageModel,
    start: list[int],
    tokenizer: Tokenizer,
    how: Sampling,
    max_new_tokens: int,
    generator: torch.Generator,
) -> Iterator[int]:
    """New tokens one by one, until the document ends (that token is not yielded) or `max_new_tokens` are there.

    Where layers attend, the model sees at most the last block_size tokens; else all of them. Ids that the tokenizer
    does not have, in a vocabulary that was padded, are never chosen. The draws are made on the CPU, in float64.
    """
    limit = model.context_limit
    context = list(start if limit is None else start[-limit:])
    room = len(context) + max_new_tokens
    caches, unread = model.empty_caches(1, room if limit is None else min(room, limit)), list(context)
    for _ in range(max_new_tokens):
        if limit is not None and len(context) > limit:  # each token's position changes: nothing kept applies any more
            context = context[-limit:]
            logits = read(model, context)
        else:
            logits = read(model, unread, caches)
        logits = logits[: tokenizer.vocab_size]
        if not torch.isfinite(logits).all():
            raise UserError("the model's output is not finite: its weights are damaged, or the run diverged")
        token = draw(distribution(logits.cpu(), how), generator)
        if token == tokenizer.end_of_document:
            return
        yield token
        unread = [token]
        context.append(token)


def read(model: LanguageModel, tokens: list[int], caches: Caches | None = None) -> Tensor:
    """The logits (V,) of what follows; a long prompt that goes to caches is read a block at a time."""
    device, block = next(model.parameters()).device, model.config.block_size
    pieces = torch.tensor([tokens], device=device).split(block, dim=1)
    for piece in pieces[:-1]:
        model.hidden(piece, caches)
    return model.next_token_logits(pieces[-1], caches)[0]


def distribution(logits: Tensor, how: Sampling) -> Tensor:
    """Logits (V,) -> probabilities (V,) in float64, of which those that are not to be chosen are 0.

    First the temperature divides the logits (0: all for the likeliest token). Of the result, the `top_k` likeliest
    tokens stay; of these, the fewest likeliest whose probabilities reach `top_p` (nucleus sampling, Holtzman et al.
    2020), at least one. Of equals, lower ids are likelier.
    """
    logits, order = torch.sort(logits.double(), descending=True, stable=True)
    if how.temperature == 0:
        kept = torch.ones(1, dtype=torch.float64)
    else:
        kept = torch.softmax((logits[: how.top_k] - logits[0]) / how.temperature, dim=0)
        if how.top_p < 1:
            before = kept.cumsum(0) - kept  # the probability of all likelier tokens
            kept = kept[before < how.top_p]
    probabilities = torch.zeros(len(logits), dtype=torch.float64)
    probabilities[order[: len(kept)]] = kept / kept.sum()
    return probabilities


def draw(probabilities: Tensor, generator: torch.Generator) -> int:
    """An index into probabilities (V,), at random by them."""
    return int(torch.multinomial(probabilities, 1, generator=generator))


def decode_stream(tokenizer: Tokenizer, start: list[int], tokens: Iterator[int]) -> Iterator[str]:
    """The text of the start and then of each token; a character that spans tokens comes when it is complete."""
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    prompt = [token for token in start if token != tokenizer.end_of_document]
    yield decoder.decode(tokenizer.decode_bytes(prompt))
    for token in tokens:
        yield decoder.decode(tokenizer.decode_bytes([token]))
    yield decoder.decode(b"", final=True)


if __name__ == "__main__":
    main()
