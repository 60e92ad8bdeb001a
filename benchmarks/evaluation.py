"""Requests per second of a multiple-choice task, here and by lm-evaluation-harness's own backend, in turn in one run,
on the same weights: a Hugging Face folder that is made of a model with random weights and a tokenizer of bytes.

    python benchmarks/evaluation.py
    python benchmarks/evaluation.py --vocab_size 256
    python benchmarks/evaluation.py --shots 5 --questions 200

A question is a passage of random words, after `--shots` others with their answers, which are the same for all; its
answers are words, too, of unequal lengths. Both sides are given the strings: encoding is timed, loading is not. Tokens
are bytes; the head has a row for each of --vocab_size, as many as a tokenizer of words would want. Rates are of the
processor's time, which other work on the machine changes little, and of the clock's.
"""

import argparse
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the repository runs without being installed

import torch

from common.errors import ArgumentParser, UserError, exit_cleanly, positive
from data.tokenizers import BytesTokenizer
from evaluation.subject import find_subject
from interop.folders import write_model
from interop.hugging_face import architecture_to_hugging_face, weights_to_hugging_face
from interop.tokenizer_files import write_tokenizer
from model_builder import build_model
from model_config import ModelArchitectureConfig, resolve_architecture

ANSWERS = 4
END = 0  # the byte that ends a text, as in the datasets of bytes: the tokenizer's files do not tell the backend
WORDS = "loss model train token layer width depth scale data step rate head cache bytes".split()
PASSAGE, ANSWER = (20, 50), (1, 4)  # words, fewest and most


@exit_cleanly
def main() -> None:
    options = parse_arguments()
    try:
        from lm_eval.api.instance import Instance
        from lm_eval.models.huggingface import HFLM

        from evaluation.harness import Asked
    except ImportError as error:
        raise UserError(f"{error.name} is not installed: pip install -e '.[dev]'") from None
    torch.set_num_threads(options.threads)
    config = architecture(options)
    pairs = requests(options.questions, options.shots)
    asked = [Instance("loglikelihood", {}, pair, number, ("made", number, 1)) for number, pair in enumerate(pairs)]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_folder(config, folder)
        subject = find_subject(folder, None, torch.device("cpu"), None)
        contestants = {"here": Asked(subject, None)}
        for size in options.batch_sizes:
            how = {"device": "cpu", "dtype": "float32", "prefix_token_id": END}
            contestants[f"hf, {size} texts at once"] = HFLM(name, batch_size=size, **how)
        before = statistics.mean(len(context) for context, _ in pairs)
        print(
            f"{config.name}, {subject.block:,} tokens, vocabulary {config.vocab_size:,}; {options.questions:,} "
            f"questions of {ANSWERS} answers, {options.shots} shots, {before:,.0f} bytes before an answer; "
            f"{options.threads} threads, median of {options.rounds} rounds"
        )
        rates: dict[str, list[list[float]]] = {name: [] for name in contestants}
        answers = {}
        for _ in range(options.rounds):
            for name, contestant in contestants.items():
                start = times()
                answers[name] = contestant.loglikelihood(asked, disable_tqdm=True)
                rates[name].append([len(asked) / (end - begin) for begin, end in zip(start, times(), strict=True)])
    report(rates, answers)


def parse_arguments() -> argparse.Namespace:
    parser = ArgumentParser(__doc__)
    option = parser.add_argument
    option("--questions", type=positive, default=2000, metavar="N", help="(2000)")
    option("--shots", type=int, choices=range(11), default=0, metavar="N", help="examples before each question (0)")
    option("--vocab_size", type=positive, default=8192, metavar="N", help="at least 256, of the model (8192)")
    option("--n_layer", type=positive, default=4, metavar="N", help="(4)")
    option("--n_embd", type=positive, default=192, metavar="N", help="a multiple of 64 (192)")
    option("--batch_sizes", type=positive, nargs="+", default=[1, 8, 32], metavar="N", help="of the backend (1 8 32)")
    option("--rounds", type=positive, default=3, metavar="N", help="(3)")
    option("--threads", type=positive, default=2, metavar="N", help="(2)")
    options = parser.parse_args()
    if options.n_embd % 64:
        raise UserError(f"--n_embd={options.n_embd} must be a multiple of 64")
    if options.vocab_size < 256:
        raise UserError(f"--vocab_size={options.vocab_size} has no room for every byte: take at least 256")
    return options


def architecture(options: argparse.Namespace) -> ModelArchitectureConfig:
    """A Llama, with a block that all examples fit in."""
    longest = (options.shots + 1) * (PASSAGE[1] + ANSWER[1] + 1) * (max(map(len, WORDS)) + 1)
    keys = {"arch_preset": "llama3", "n_layer": options.n_layer, "n_embd": options.n_embd}
    keys |= {"vocab_size": options.vocab_size, "block_size": longest}
    heads = options.n_embd // 64
    return resolve_architecture(keys | {"n_head": heads, "num_key_value_heads": heads})


def write_folder(config: ModelArchitectureConfig, folder: Path) -> None:
    """As `checkpoint.py export --format hf` does, of random weights."""
    model = build_model(config, seed=0)
    description = architecture_to_hugging_face(config, {"bos_token_id": END, "eos_token_id": END, "pad_token_id": None})
    weights = weights_to_hugging_face(model.state_dict(), config)
    write_model(folder, description | {"dtype": "float32"}, weights, shard_bytes=1 << 40)
    write_tokenizer(BytesTokenizer(END), config.block_size, folder)


def requests(questions: int, shots: int) -> list[tuple[str, str]]:
    """Contexts and answers, always the same ones."""
    draw = random.Random(0)

    def words(bounds: tuple[int, int]) -> str:
        return " ".join(draw.choices(WORDS, k=draw.randint(*bounds)))

    before = "".join(f"{words(PASSAGE)}: {words(ANSWER)}\n" for _ in range(shots))
    found = []
    for _ in range(questions):
        text = f"{before}{words(PASSAGE)}:"
        found += [(text, f" {words(ANSWER)}") for _ in range(ANSWERS)]
    return found


def times() -> tuple[float, float]:
    """Seconds of the processor and of the clock."""
    return time.process_time(), time.perf_counter()


def report(rates: dict[str, list[list[float]]], answers: dict[str, Sequence[tuple[float, bool]]]) -> None:
    """Rates, the ratios to the fastest of the backend's, and the largest difference of the answers."""
    medians = {name: [statistics.median(found) for found in zip(*each, strict=True)] for name, each in rates.items()}
    fastest = [max(found) for found in zip(*(both for name, both in medians.items() if name != "here"), strict=True)]
    for name, both in medians.items():
        apart = max(abs(one - two) for (one, _), (two, _) in zip(answers["here"], answers[name], strict=True))
        of_each = "   ".join(
            f"{rate:>8,.1f} per {unit} ({rate / best:5.2f} x)"
            for rate, best, unit in zip(both, fastest, ("processor second", "second"), strict=True)
        )
        print(f"{name:24s} {of_each}   answers apart by {apart:.1e} nats")


if __name__ == "__main__":
    main()
