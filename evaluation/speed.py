"""How fast a model reads and writes one text, and what memory that takes, on the device that it is on."""

import dataclasses
import itertools
import statistics
import time
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from tqdm import tqdm

from common.units import bytes_text, number
from evaluation.energy import Meter, meter_of
from evaluation.extras import Extra, grid_lines
from inference.loading import cache_bytes
from model_builder import LanguageModel
from parallel.device import memory_in_use, synchronize

ROUNDS = 5  # of which the median counts
MOST_READ, MOST_WRITTEN = 512, 64  # tokens
BATCHES, SHORTEST = (1, 4, 16), 32  # of a grid: texts at once, and the shortest context, tokens
GRID_ROUNDS, GRID_WRITTEN = 3, 32


@dataclasses.dataclass(frozen=True)
class Speed:
    """One text, batch 1: `read` tokens of a prompt at once, then `written` tokens one by one."""

    read: int
    written: int
    prefill_tokens_per_second: float
    seconds_to_first_token: float
    decode_tokens_per_second: float
    weight_bytes: int
    cache_bytes: int  # of a text as long as the block
    peak_bytes: int | None  # of the process so far, on a GPU of PyTorch's tensors; None where the device does not tell

    def lines(self, block: int) -> list[str]:
        """For people."""
        peak = "" if self.peak_bytes is None else f", {bytes_text(self.peak_bytes)} at most in this process so far"
        return [
            f"speed, one text: {self.prefill_tokens_per_second:,.0f} tokens/s of a prompt of {self.read:,} "
            f"(first token after {1000 * self.seconds_to_first_token:,.1f} ms), "
            f"then {self.decode_tokens_per_second:,.0f} tokens/s",
            f"memory: {bytes_text(self.weight_bytes)} of weights, {bytes_text(self.cache_bytes)} of caches "
            f"at {block:,} tokens{peak}",
        ]


@dataclasses.dataclass(frozen=True)
class Cell:
    """`batch` texts at once, each of `context` tokens in the end: `read` of them as prompts, then `written` one by one.
    The memory is None where the device does not tell, the joules too; where memory did not suffice, all is None."""

    batch: int
    context: int
    read: int
    written: int
    prefill_tokens_per_second: float | None  # of all texts
    seconds_to_first_token: float | None
    decode_tokens_per_second: float | None  # of all texts
    weight_bytes: int
    cache_bytes: int  # of all texts
    peak_bytes: int | None  # that PyTorch's tensors on the device took at most
    prefill_joules_per_token: float | None
    decode_joules_per_token: float | None


@torch.inference_mode()
def measure(model: LanguageModel) -> Speed:
    """The median of ROUNDS, after one that warms up."""
    block, device = model.config.block_size, model.embedding.weight.device
    read = max(min(block // 2, MOST_READ), 1)
    written = max(min(block - read, MOST_WRITTEN), 1)
    first, rest = _medians(_rounds(model, 1, read, written, ROUNDS, None))[:2]
    assert first is not None and rest is not None
    return Speed(
        read=read,
        written=written,
        prefill_tokens_per_second=read / first,
        seconds_to_first_token=first,
        decode_tokens_per_second=written / rest,
        weight_bytes=_weight_bytes(model),
        cache_bytes=cache_bytes(model.config),
        peak_bytes=memory_in_use(device)["peak"],
    )


@torch.inference_mode()
def measure_grid(model: LanguageModel, batches: Sequence[int] = BATCHES) -> list[Cell]:
    """Every batch at contexts of powers of two up to the block; the median of GRID_ROUNDS after one that warms up."""
    block, device = model.config.block_size, model.embedding.weight.device
    contexts = [
        *(1 << power for power in range(SHORTEST.bit_length() - 1, block.bit_length()) if 1 << power < block),
        block,
    ]
    meter, found = meter_of(device), []
    with tqdm(total=len(batches) * len(contexts), desc="speed", leave=False) as bar:
        for batch in batches:
            for context in contexts:
                found.append(_cell(model, batch, context, meter))
                bar.update()
    return found


def _cell(model: LanguageModel, batch: int, context: int, meter: Meter | None) -> Cell:
    device = model.embedding.weight.device
    written = max(min(context // 4, GRID_WRITTEN), 1)
    read = max(context - written, 1)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    try:
        first, rest, of_first, of_rest = _medians(_rounds(model, batch, read, written, GRID_ROUNDS, meter))
    except (torch.OutOfMemoryError, RuntimeError) as error:
        if "memory" not in str(error):
            raise
        first = rest = of_first = of_rest = None
    return Cell(
        batch=batch,
        context=context,
        read=read,
        written=written,
        prefill_tokens_per_second=_over(batch * read, first),
        seconds_to_first_token=first,
        decode_tokens_per_second=_over(batch * written, rest),
        weight_bytes=_weight_bytes(model),
        cache_bytes=cache_bytes(model.config, batch, min(read + written, context)),
        peak_bytes=torch.cuda.max_memory_allocated(device) if device.type == "cuda" and first is not None else None,
        prefill_joules_per_token=None if of_first is None else of_first / (batch * read),
        decode_joules_per_token=None if of_rest is None else of_rest / (batch * written),
    )


def _over(count: int, seconds: float | None) -> float | None:
    return None if seconds is None else count / seconds


def _weight_bytes(model: LanguageModel) -> int:
    return sum(parameter.nbytes for parameter in model.parameters())


Round = tuple[float, float, float | None, float | None]  # seconds and joules of reading, seconds and joules of writing


def _medians(rounds: Sequence[Round]) -> list[float | None]:
    """Seconds to the first tokens and for the others, joules likewise."""
    return [
        statistics.median(known)
        if len(known := [value for value in values if value is not None]) == len(values)
        else None
        for values in zip(*rounds, strict=True)
    ]


def _rounds(model: LanguageModel, batch: int, read: int, written: int, rounds: int, meter: Meter | None) -> list[Round]:
    """So many rounds, without the one before them that warms up."""
    drawn = torch.randint(model.config.vocab_size, (batch, read), generator=torch.Generator().manual_seed(0))
    ids = drawn.to(model.embedding.weight.device)
    return [_round(model, ids, written, meter) for _ in range(rounds + 1)][1:]


def _round(model: LanguageModel, ids: torch.Tensor, written: int, meter: Meter | None) -> Round:
    """Ids (B, T) -> seconds until the first token of each text is chosen, and for the `written` tokens after it; and
    what the meter counts meanwhile."""
    device, texts = ids.device, len(ids)
    times, joules = [], []

    def note() -> None:
        synchronize(device)
        joules.append(None if meter is None else meter())
        times.append(time.perf_counter())

    note()
    length, limit = ids.shape[1] + written, model.context_limit
    fits = limit is None or length <= limit  # not in a block of one token, of which nothing is kept
    caches = model.empty_caches(texts, length) if fits else None
    token = model.next_token_logits(ids, caches).argmax(-1, keepdim=True)
    note()
    for _ in range(written):
        token = model.next_token_logits(token, caches).argmax(-1, keepdim=True)
    note()
    spent = [None if a is None or b is None else b - a for a, b in itertools.pairwise(joules)]
    return times[1] - times[0], times[2] - times[1], spent[0], spent[1]


# ---------------------------------------------------------------------------------------------------------------------
# As it is shown


def speed_grid(model: LanguageModel) -> Extra:
    """What `measure_grid` finds."""
    cells = measure_grid(model)
    heads = (
        "batch",
        "context",
        "prefill tok/s",
        "first token ms",
        "decode tok/s",
        "caches",
        "peak",
        "mJ/token read",
        "mJ/token written",
    )
    rows = [
        (
            f"{one.batch:,}",
            f"{one.context:,}",
            number(one.prefill_tokens_per_second, ",.0f"),
            number(_thousand(one.seconds_to_first_token), ",.1f"),
            number(one.decode_tokens_per_second, ",.0f"),
            bytes_text(one.cache_bytes),
            "n/a" if one.peak_bytes is None else bytes_text(one.peak_bytes),
            number(_thousand(one.prefill_joules_per_token), ",.3g"),
            number(_thousand(one.decode_joules_per_token), ",.3g"),
        )
        for one in cells
    ]
    title = f"speed, random tokens, float32, medians of {GRID_ROUNDS}; {bytes_text(cells[0].weight_bytes)} of weights"
    draws = tuple(partial(draw, cells, which) for which in ("prefill", "decode"))
    return Extra("speed_grid", grid_lines(title, heads, rows), [dataclasses.asdict(one) for one in cells], draws)


def _thousand(value: float | None) -> float | None:
    return None if value is None else 1000 * value


def draw(cells: Sequence[Cell], which: str, axes: Any) -> None:
    """Tokens per second over the context, a line a batch."""
    for batch in dict.fromkeys(one.batch for one in cells):
        own = [one for one in cells if one.batch == batch and one.prefill_tokens_per_second is not None]
        rates = [getattr(one, f"{which}_tokens_per_second") for one in own]
        axes.plot([one.context for one in own], rates, marker="o", markersize=3.5, label=f"batch {batch:,}")
    axes.set_xscale("log", base=2)
    axes.set(yscale="log", title=which, xlabel="context, tokens", ylabel="tokens per second, all texts")
    axes.legend(frameon=False)
    axes.grid(alpha=0.25, which="both")
