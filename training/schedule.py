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
    end = length if run.lr_decay_iters is None else run.lr_decay_iters
    start = run.warmup_iters
    if run.lr_schedule == "wsd":
        start = max(start, end - round(run.wsd_decay_fraction * end))
    if step < start:
        return run.learning_rate
    if step >= end:
        return run.min_lr
    progress = (step - start) / (end - start)
    remaining = 0.5 * (1 + math.cos(math.pi * progress)) if run.lr_schedule == "cosine" else 1 - progress
    return run.min_lr + remaining * (run.learning_rate - run.min_lr)
