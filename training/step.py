"""One optimizer step: micro-batches, gradients, clipping, update; or nothing at all when a number is not finite."""

import dataclasses
import math
from collections.abc import Iterator

import torch
from torch import nn

from data.loader import Batch
from parallel.collectives import sum_over_ranks
from parallel.device import precision
from parallel.ranks import Ranks
from parallel.strategy import own_part, settle_gradients, whole, without_gradient_sync
from runs.checkpoint import Training
from runs.config import RunConfig


@dataclasses.dataclass(frozen=True)
class StepResult:
    """Of the whole global batch. `loss` and `grad_norm` (before clipping) may be infinite or NaN if `skipped`."""

    loss: float
    grad_norm: float
    skipped: bool
    gradient_stats: dict[str, dict[str, float]] | None


def take_step(
    training: Training,
    model: nn.Module,
    batches: Iterator[Batch],
    run: RunConfig,
    learning_rate: float,
    ranks: Ranks,
    device: torch.device,
    dtype: str,
    wants_gradient_stats: bool,
) -> StepResult:
    """Train on one global batch; `model` is `training.model` in whatever parallelism wraps it.

    The loss is the mean over every target token of the global batch. A non-finite loss or gradient changes neither
    weights nor optimizer state.
    """
    loss_sum = backward_pass(training, model, batches, run, ranks, device, dtype)
    settle_gradients(training.model)
    training.scaler.unscale_(training.optimizer)
    gradients = [p.grad for p in training.model.parameters() if p.grad is not None]
    norm = whole(torch.nn.utils.get_total_norm(gradients))  # where the gradients are: offloaded, in main memory
    stats = gradient_stats(training.model) if wants_gradient_stats else None
    mean_loss = sum_over_ranks(loss_sum, ranks) / run.gradient_accumulation_steps
    both = torch.stack((mean_loss, norm.to(device)))
    loss, grad_norm = both.tolist()  # the one place where a step waits for the device
    finite = math.isfinite(loss) and math.isfinite(grad_norm)
    if finite:
        if run.grad_clip:
            clip(gradients, norm, run.grad_clip)
        for group in training.optimizer.param_groups:
            group["lr"] = learning_rate
        training.scaler.step(training.optimizer)
    training.scaler.update()
    training.optimizer.zero_grad(set_to_none=True)
    return StepResult(loss, grad_norm, not finite, stats)


def backward_pass(
    training: Training,
    model: nn.Module,
    batches: Iterator[Batch],
    run: RunConfig,
    ranks: Ranks,
    device: torch.device,
    dtype: str,
) -> torch.Tensor:
    """This rank's micro-batches, forward and backward. Returns the sum of their losses, a scalar on the device."""
    micro_batches = ranks.share(range(run.gradient_accumulation_steps))
    loss_sum = torch.zeros((), device=device)
    for micro in micro_batches:
        tokens, targets = next(batches)
        torch.manual_seed(_dropout_seed(run, training.progress.step, micro))
        with without_gradient_sync(model, run, wanted=micro != micro_batches[-1]):
            with precision(device, dtype):
                loss = model(tokens, targets)
            training.scaler.scale(loss / len(micro_batches)).backward()
        loss_sum += loss.detach()
    return loss_sum


@torch.no_grad()
def clip(gradients: list[torch.Tensor], norm: torch.Tensor, largest: float) -> None:
    """Scale gradients, whose norm over all of them is known, down to the largest that is wanted; in place (Pascanu et
    al. 2013, algorithm 1).

    Each rank multiplies what it has. PyTorch's own multiplies the distributed tensors, and first works out how: that is
    most of the first step of a deep model on tensor-parallel ranks.
    """
    factor = (largest / (norm + 1e-6)).clamp(max=1.0)
    torch._foreach_mul_([own_part(gradient) for gradient in gradients], factor)


def _dropout_seed(run: RunConfig, step: int, micro: int) -> int:
    """Dropout is a function of (seed, step, micro-batch): neither a resume nor the number of ranks changes it."""
    return ((run.seed << 40) + step * run.gradient_accumulation_steps + micro) % 2**63


def gradient_stats(model: nn.Module) -> dict[str, dict[str, float]]:
    """Norm, mean and standard deviation of the gradients (before clipping) of every block and of what is outside."""
    layers: dict[str, list[torch.Tensor]] = {}
    for name, parameter in model.named_parameters():
        parts = name.split(".")
        layer = ".".join(parts[:2]) if parts[0] == "blocks" else parts[0]
        if parameter.grad is not None:
            layers.setdefault(layer, []).append(whole(parameter.grad).float().flatten())
    stats = {}
    for layer, gradients in layers.items():
        flat = torch.cat(gradients)
        values = torch.stack((flat.norm(), flat.mean(), flat.std(correction=0))).tolist()
        stats[layer] = dict(zip(("norm", "mean", "std"), values, strict=True))
    return stats
