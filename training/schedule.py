"""How long a run is, and its learning rate at every step. Pure functions of the configuration; no torch."""

import math

from runs.config import RunConfig


def run_length(run: RunConfig, tokens_per_step: int, flops_per_token: int) -> int:
    """Optimizer steps of the whole run: the first step that reaches max_iters, max_tokens or max_flops ends it."""
    steps = []
    if run.max_iters is not None:
        steps.append(run.max_iters)
    if run.max_tokens is not None:
        steps.append(math.ceil(run.max_tokens / tokens_per_step))
    if run.max_flops is not None:
        steps.append(math.ceil(run.max_flops / (tokens_per_step * flops_per_token)))
    return min(steps)


def learning_rate(run: RunConfig, step: int, length: int) -> float:
    """The learning rate of step `step` (counted from 0) of a run of `length` steps.

    Linear warm-up, then `lr_schedule` down to min_lr at lr_decay_iters: cosine (Loshchilov and Hutter 2016), linear,
    wsd (stable, then linear decay; Hu et al. 2024, MiniCPM); or constant.
    """
    if not run.decay_lr:
        return run.learning_rate
    if step < run.warmup_iters:
        return run.learning_rate * (step + 1) / (run.warmup_iters + 1)
    if run.lr_schedule == "constant":
        return run.learning_rate
    end = decay_end(run, length)
    start = run.warmup_iters
    if run.lr_schedule == "wsd":
        start = max(start, wsd_decay_start(run, length))
    if step < start:
        return run.learning_rate
    if step >= end:
        return run.min_lr
    progress = (step - start) / (end - start)
    remaining = 0.5 * (1 + math.cos(math.pi * progress)) if run.lr_schedule == "cosine" else 1 - progress
    return run.min_lr + remaining * (run.learning_rate - run.min_lr)


def decay_end(run: RunConfig, length: int) -> int:
    """The step at which min_lr is reached."""
    return length if run.lr_decay_iters is None else run.lr_decay_iters


def wsd_decay_start(run: RunConfig, length: int) -> int:
    """The step at which wsd begins to decay, if the warm-up is over by then."""
    end = decay_end(run, length)
    return end - round(run.wsd_decay_fraction * end)


def schedule_notes(run: RunConfig, length: int) -> list[str]:
    """What a schedule does that may not be meant."""
    if not run.decay_lr or run.lr_schedule == "constant" or length == 0:
        return []
    notes = []
    if decay_end(run, length) > length:
        last = learning_rate(run, length - 1, length)
        notes.append(
            f"the learning rate does not come down to min_lr: it decays until step {run.lr_decay_iters:,} "
            f"(lr_decay_iters), and the run ends after {length:,}, at {last:.2e} of {run.learning_rate:.2e}"
        )
    if run.lr_schedule == "wsd" and wsd_decay_start(run, length) < run.warmup_iters:
        notes.append(
            f"the warm-up of {run.warmup_iters:,} steps is not over at step {wsd_decay_start(run, length):,}, where "
            "wsd would begin to decay: it decays from the end of the warm-up on, and is never stable"
        )
    return notes


JUMP = 0.1  # relative difference of the learning rate that is said


def jump_note(before: RunConfig, now: RunConfig, step: int, lengths: tuple[int, int]) -> str | None:
    """That the learning rate of the next step is another than it would have been before a run was resumed, with other
    keys or another length (of `lengths` the first is that before); None where it is not."""
    due, rate = (learning_rate(run, step, length) for run, length in zip((before, now), lengths, strict=True))
    if step >= lengths[1] or abs(rate - due) <= JUMP * max(rate, due):
        return None
    last = learning_rate(before, max(0, step - 1), lengths[0])
    return (
        f"the learning rate jumps from {last:.2e} to {rate:.2e}: it followed a schedule of {lengths[0]:,} steps, now "
        f"one of {lengths[1]:,}"
    )
