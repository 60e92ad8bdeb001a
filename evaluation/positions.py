"""The loss by position: how much the text before a token helps, and whether a model uses all of its block."""

import dataclasses
import functools
import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.units import number
from evaluation.extras import Extra, grid_lines
from evaluation.figures import NORMAL_95, ratio_error
from evaluation.held_out import Reading
from evaluation.subject import Subject


@dataclasses.dataclass(frozen=True)
class Bucket:
    """The tokens whose predictions rest on `first` to `last` tokens before them in the window, the one that a document
    follows included."""

    first: int
    last: int
    tokens: int
    nats_per_token: float
    error: float | None  # standard error of that, over documents, or over windows of a single one; None: of one sample
    bits_per_byte: float


def by_position(subject: Subject, reading: Reading) -> list[Bucket]:
    """Buckets of positions up to powers of two, as far as the text has tokens in them; each token is in one."""
    samples = reading.samples
    buckets = math.ceil(math.log2(subject.block)) + 1
    sums = np.zeros((len(samples), 3, buckets))  # nats, bytes, tokens
    size_of = functools.cache(lambda token, continued: len(subject.tokenizer.decode_bytes([token], continued)))
    for sample, own in zip(sums, samples, strict=True):
        for read in own:
            into = bucket_of(len(read.window.context), len(read.window.continuation))
            sizes = [size_of(token, read.is_continued or n > 0) for n, token in enumerate(read.window.continuation)]
            assert read.score.of_tokens is not None
            nats = -read.score.of_tokens.astype(float)
            for row, values in enumerate((nats, np.array(sizes, dtype=float), np.ones(len(into)))):
                sample[row] += np.bincount(into, values, minlength=buckets)
    return [_bucket(number, subject.block, sums[..., number]) for number in range(buckets) if sums[:, 2, number].any()]


def bucket_of(context: int, count: int) -> NDArray[np.int64]:
    """(count,) bucket of each of so many tokens after a context of so many: the power of two, at least the number of
    tokens before it, that is the bucket's last position."""
    return np.ceil(np.log2(np.arange(context, context + count))).astype(int)


def _bucket(number: int, block: int, sums: NDArray[np.float64]) -> Bucket:
    """Sums (samples, 3) of nats, bytes, tokens."""
    nats, sizes, tokens = sums.T
    return Bucket(
        first=2 ** (number - 1) + 1 if number else 1,
        last=min(2**number, block),
        tokens=int(tokens.sum()),
        nats_per_token=float(nats.sum() / tokens.sum()),
        error=ratio_error(nats, tokens),
        bits_per_byte=float(nats.sum() / math.log(2) / sizes.sum()),
    )


def positions(subject: Subject, reading: Reading) -> Extra:
    """The buckets as they are shown."""
    buckets = by_position(subject, reading)
    heads = ("tokens before", "nats per token", "std. error", "bits per byte", "tokens")
    rows = [
        (
            f"{one.first:,}" if one.first == one.last else f"{one.first:,} to {one.last:,}",
            f"{one.nats_per_token:.4f}",
            number(one.error, ".4f"),
            f"{one.bits_per_byte:.4f}",
            f"{one.tokens:,}",
        )
        for one in buckets
    ]
    lines = grid_lines(f"loss by position, of {reading.text.name}", heads, rows)
    return Extra("by_position", lines, [dataclasses.asdict(one) for one in buckets], (partial(draw, buckets),))


def draw(buckets: Sequence[Bucket], axes: Any) -> None:
    """The loss over the last position of each bucket, with 95 % intervals."""
    reach = [NORMAL_95 * (one.error or 0.0) for one in buckets]
    places, losses = [one.last for one in buckets], [one.nats_per_token for one in buckets]
    axes.errorbar(places, losses, yerr=reach, marker="o", markersize=3.5, capsize=2)
    axes.set_xscale("log", base=2)
    axes.set(title="loss by position", xlabel="tokens before, at most", ylabel="nats per token (bars: 95 %)")
    axes.grid(alpha=0.25)
