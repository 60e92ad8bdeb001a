"""A needle in a haystack: a sentence with a number, somewhere in a long text, that is asked for at the text's end.

    [first] text ... "The number of raven is 48213." ... text "The number of raven is" → " 48213."

Small models seldom write the number. So the numbers of three other needles are asked for too: a model that looks back
at all finds the one that was said likelier than those, which whoever guesses does once in four.
"""

import dataclasses
import random
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.errors import UserError
from data.tokenizers import Tokenizer
from evaluation.extras import Extra, grid_lines
from evaluation.figures import mean_error
from evaluation.held_out import HeldOut
from evaluation.scoring import Request, Score, Tokens, scores
from evaluation.subject import Subject

DEPTHS = (0.0, 0.25, 0.5, 0.75, 1.0)  # share of the text before the needle
TRIALS = 25  # needles of each length and depth
CHOICES = 4  # numbers of which one is right
SHORTEST = 32  # tokens; longer ones are powers of two, and the block
KEYS = ("raven", "otter", "maple", "copper", "harbor", "violin", "walnut", "meadow", "pepper", "saddle")
SYMBOLS = ("0123456789", "bcdfghjklm")  # of numbers; of words, for a tokenizer without digits
LENGTH = 5  # symbols of a number
METRICS = ("right of four", "nats above the others", "written")
CHANCES = (1 / CHOICES, 0.0, len(SYMBOLS[0]) ** -LENGTH)
SHOWN = (  # of each metric its title and how its values are written
    (f"right of four, chance {1 / CHOICES:.1%}:", "{:.1%}"),
    ("nats above the others' mean, chance 0:", "{:+.3f}"),
    ("written by greedy decoding:", "{:.1%}"),
)


@dataclasses.dataclass(frozen=True)
class Needle:
    """Tokens of a sentence, of the question for its number, and of the numbers that may follow: the right one first."""

    sentence: Tokens
    question: Tokens
    answers: tuple[Tokens, ...]

    @property
    def size(self) -> int:
        """Tokens that it takes of those that a model reads, the one that the text follows included."""
        return len(self.sentence) + len(self.question) + max(map(len, self.answers))


def make(tokenizer: Tokenizer, symbols: str, trial: int) -> Needle:
    """The needle of a trial: always the same one."""
    drawn = random.Random(trial)
    numbers: dict[str, None] = {}
    while len(numbers) < CHOICES:
        numbers["".join(drawn.choices(symbols, k=LENGTH))] = None
    question = f"\nThe number of {KEYS[trial % len(KEYS)]} is"
    asked = tokenizer.encode(question)
    answers = [tuple(tokenizer.encode(f"{question} {number}.")[len(asked) :]) for number in numbers]
    sentence = tokenizer.encode(f"{question} {next(iter(numbers))}.\n")
    return Needle(tuple(sentence), tuple(asked), tuple(answers))


def make_all(tokenizer: Tokenizer, trials: int) -> list[Needle]:
    """Numbers of digits, or, for a tokenizer that has none, of letters. Raises UserError for one without either."""
    for symbols in SYMBOLS:
        try:
            tokenizer.encode(symbols)
            return [make(tokenizer, symbols, trial) for trial in range(trials)]
        except UserError as error:
            refused = error
    raise UserError(f"--needle: the run's tokenizer cannot say the sentence that is to be found: {refused}")


def lengths_of(block: int, needed: int) -> list[int]:
    """The tokens that a model reads of each text. Raises UserError where its block has no room for a needle."""
    if block < needed:
        raise UserError(f"--needle: the model's block of {block:,} tokens is too short, a needle needs {needed:,}")
    powers = (1 << power for power in range(block.bit_length()))
    return [length for length in powers if max(needed, SHORTEST) <= length < block] + [block]


def hidden_in(needle: Needle, first: int, filler: Sequence[int], length: int, depth: float) -> list[Request]:
    """What is asked of a needle at a depth of a text: of `length` tokens with the longest answer but its last token."""
    filler = filler[: length - needle.size]
    before = round(depth * len(filler))
    context = (first, *filler[:before], *needle.sentence, *filler[before:], *needle.question)
    return [Request(context, answer) for answer in needle.answers]


def results_of(answers: Sequence[Score]) -> tuple[float, float, float]:
    """Of one needle, in the order of METRICS: whether its number is the likeliest, by how much it is likelier than the
    others' mean, and whether greedy decoding would write it. Equal ones count in part, as whoever draws one has it."""
    right, *others = (answer.log_likelihood for answer in answers)
    chosen = 0.0 if max(others) > right else 1 / (1 + others.count(right))
    return chosen, right - float(np.mean(others)), float(answers[0].is_greedy)


def measure(
    subject: Subject, text: HeldOut, trials: int, batch_size: int | None
) -> tuple[list[int], NDArray[np.float64]]:
    """The lengths, and (lengths, depths, trials, METRICS). Of a trial, needle and text are the same everywhere. Raises
    UserError."""
    needles = make_all(subject.tokenizer, trials)
    lengths = lengths_of(subject.block, max(needle.size for needle in needles))
    haystack = [token for document in text.documents for token in (*document, subject.first)]
    room = len(haystack) - subject.block
    if room < 0:
        raise UserError(
            f"--needle: {text.name} has {len(haystack):,} tokens, fewer than the model's block of {subject.block:,}: "
            "name a longer text with --text"
        )
    starts = [random.Random(trial).randint(0, room) for trial in range(trials)]
    fillers = [haystack[start : start + subject.block] for start in starts]
    found = np.empty((len(lengths), len(DEPTHS), trials, len(METRICS)))
    for place in np.ndindex(found.shape[:2]):
        length, depth = lengths[place[0]], DEPTHS[place[1]]
        asked = [
            request
            for needle, filler in zip(needles, fillers, strict=True)
            for request in hidden_in(needle, subject.first, filler, length, depth)
        ]
        answered = scores(subject.model, asked, batch_size, f"needle, {length} tokens, depth {depth:.0%}")
        found[place] = [results_of(answered[n : n + CHOICES]) for n in range(0, len(answered), CHOICES)]
    return lengths, found


def needle_test(subject: Subject, text: HeldOut, trials: int | None, batch_size: int | None) -> Extra:
    """The test as it is shown, with so many needles of each length and depth."""
    lengths, found = measure(subject, text, trials or TRIALS, batch_size)
    trials, means = found.shape[2], found.mean(axis=2)
    cells = [
        {"length": length, "depth": depth, "trials": trials, **_metrics(found[row, column])}
        for row, length in enumerate(lengths)
        for column, depth in enumerate(DEPTHS)
    ]
    lines = [f"needle: {trials:,} of each length and depth, in {text.name}; each with its standard error"]
    heads = ["tokens", *(f"depth {depth:.0%}" for depth in DEPTHS)]
    for n, (title, form) in enumerate(SHOWN):
        lines += grid_lines(
            title, heads, [_row(length, found[row, ..., n], form) for row, length in enumerate(lengths)]
        )
    draws: tuple[Callable[[Any], None], ...] = tuple(partial(draw, lengths, means[..., n], n) for n in (0, 1))
    return Extra("needle", lines, cells, draws)


def _metrics(results: NDArray[np.float64]) -> dict[str, Any]:
    """Results (trials, METRICS) of one length and depth."""
    return {
        name: {"value": float(own.mean()), "error": mean_error(own), "chance": chance}
        for name, own, chance in zip(METRICS, results.T, CHANCES, strict=True)
    }


def _row(length: int, found: NDArray[np.float64], form: str) -> list[str]:
    """Results (depths, trials) of one length."""
    errors = (mean_error(one) for one in found)
    said = ("n/a" if error is None else form.format(error).lstrip("+") for error in errors)
    return [f"{length:,}", *(f"{form.format(one.mean())} ± {error}" for one, error in zip(found, said, strict=True))]


def draw(lengths: Sequence[int], means: NDArray[np.float64], metric: int, axes: Any) -> None:
    """Means (lengths, depths) as colours, with the depth downwards."""
    reach = max(float(np.abs(means).max()), 1e-9)
    low, high = ((0.0, 1.0), (-reach, reach))[metric]
    colours = axes.imshow(means.T, aspect="auto", vmin=low, vmax=high, cmap=("viridis", "RdBu")[metric])
    axes.set_xticks(range(len(lengths)), [f"{length:,}" for length in lengths])
    axes.set_yticks(range(len(DEPTHS)), [f"{depth:.0%}" for depth in DEPTHS])
    for row, column in np.ndindex(means.shape):
        value = f"{means[row, column]:.0%}" if metric == 0 else f"{means[row, column]:+.2f}"
        axes.text(row, column, value, ha="center", va="center", fontsize=8,
                  bbox={"facecolor": "white", "alpha": 0.6, "edgecolor": "none", "pad": 1})  # fmt: skip
    title = (f"needle: right of four (chance {1 / CHOICES:.0%})", "needle: nats above the other numbers (chance 0)")
    axes.set(title=title[metric], xlabel="tokens of the text", ylabel="depth of the needle")
    axes.figure.colorbar(colours, ax=axes)
