"""One optimizer step: micro-batches, gradients, clipping, update; or nothing at all when a number is not finite."""

import dataclasses
import itertools
import math
from collections.abc import Iterator

import torch
from torch import nn

from components.parts import own_part
from data.loader import Batch
from parallel.collectives import sum_over_ranks
from parallel.compute import Compute
from parallel.device import precision
from parallel.expert_parallel import shares_experts
from parallel.pipeline import Pipeline
from parallel.strategy import give_back_weights, settle_gradients, whole, without_gradient_sync
from runs.checkpoint import Training
from runs.config import RunConfig
from training.objective import AnyObjective, Objective, OfWholeBatch, next_token


@dataclasses.dataclass(frozen=True)
class StepResult:
    """What a step found of the whole global batch. `loss` and `grad_norm` (before clipping) may be infinite or NaN if
    `skipped`. So many `targets` count. `auxiliary` are the terms that components add for training, which are not in the
    loss. `loads` are, by block, the share of its choices that each of an FFN's experts has. `update_seconds`: what the
    optimizer took, of the last update of which UpdateClock knows it. `measured` is what the objective tells besides."""

    loss: float
    grad_norm: float
    skipped: bool
    targets: int
    gradient_stats: dict[str, dict[str, float]] | None
    auxiliary: dict[str, float]
    loads: dict[int, list[float]]
    update_seconds: float | None = None
    measured: dict[str, float] = dataclasses.field(default_factory=dict)


def take_step(
    training: Training,
    batches: Iterator[Batch],
    run: RunConfig,
    learning_rate: float,
    compute: Compute,
    wants_gradient_stats: bool = False,
    objective: AnyObjective = next_token,
) -> StepResult:
    """Train on one global batch.

    The loss is the objective's mean over every target that counts of the global batch. A non-finite loss or gradient
    changes neither weights nor optimizer state.
    """
    sums, loads, n_targets = backward_pass(training, batches, run, compute, objective)
    settle_gradients(training.model)
    training.scaler.unscale_(training.optimizer)
    gradients = [p.grad for p in training.model.parameters() if p.grad is not None]
    pipeline = training.wrapped if isinstance(training.wrapped, Pipeline) else None
    norm = total_norm(gradients) if pipeline is None else pipeline.norm(total_norm)
    stats = gradient_stats(training.model) if wants_gradient_stats else None
    if pipeline is not None and stats is not None:
        stats = pipeline.of_all_stages(stats)
    summed = sum_over_ranks(torch.cat((torch.stack(list(sums.values())), *loads.values())), compute.ranks)
    means, *of_blocks = summed.split([len(sums), *map(len, loads.values())])
    parts = run.gradient_accumulation_steps * run.context_parallel  # of the global batch, each with as many tokens
    loads = {block: load / parts for block, load in zip(loads, of_blocks, strict=True)}
    found = torch.cat((means / n_targets, norm.to(compute.device).reshape(1)))
    loss, *auxiliary, grad_norm = found.tolist()  # the one place where a step waits for the device
    finite = math.isfinite(loss) and math.isfinite(grad_norm)
    if finite:
        if run.grad_clip:
            clip(gradients, norm, run.grad_clip)
        for group in training.optimizer.param_groups:
            group["lr"] = learning_rate * group.get("of_learning_rate", 1.0)
        with training.clock.around(own_part(gradients[0]).device):
            training.scaler.step(training.optimizer)
        if loads:
            training.model.after_step(loads)
    training.scaler.update()
    training.optimizer.zero_grad(set_to_none=True)
    shares = {block: load.tolist() for block, load in loads.items()}
    named = dict(zip([name for name in sums if name != LOSS], auxiliary, strict=True))
    terms = {name: value for name, value in named.items() if not name.startswith(MEASURED)}
    measured = {name.removeprefix(MEASURED): value for name, value in named.items() if name.startswith(MEASURED)}
    return StepResult(loss, grad_norm, not finite, n_targets, stats, terms, shares, training.clock.take(), measured)


LOSS, MEASURED = "", "measured."  # among the sums of a step, which components name otherwise


def backward_pass(
    training: Training,
    batches: Iterator[Batch],
    run: RunConfig,
    compute: Compute,
    objective: AnyObjective = next_token,
) -> tuple[dict[str, torch.Tensor], dict[int, torch.Tensor], int]:
    """This rank's micro-batches, forward and backward. Returns the sums over their targets, scalars on the device, of
    the loss (under LOSS), of what components add and of what the objective tells, the sums of the micro-batches' loads
    by block, and how many targets of the global batch count.

    Each micro-batch's gradients are those of its sums over that number, so that every target weighs the same, however
    the global batch is divided; gradients are averaged over the ranks with tokens of their own, hence the factor.
    """
    micro_batches = compute.ranks.share(range(run.gradient_accumulation_steps))
    batches, n_targets = targets_of_step(batches, run, compute, len(micro_batches))
    weight = compute.ranks.copies / n_targets
    if isinstance(training.wrapped, Pipeline):
        mine = list(itertools.islice(batches, len(micro_batches)))
        loss, auxiliary, loads = training.wrapped.backward_pass(mine, weight)
        return {LOSS: loss, **auxiliary}, loads, n_targets
    if isinstance(objective, OfWholeBatch):
        mine = list(itertools.islice(batches, len(micro_batches)))
        objective, batches = asked_before(objective, training.wrapped, mine, compute), iter(mine)
    sums, loads = {LOSS: torch.zeros((), device=compute.device)}, dict[int, torch.Tensor]()
    for micro in micro_batches:
        batch = next(batches)
        torch.manual_seed(_dropout_seed(run, training.progress.step, micro))
        with without_gradient_sync(training.wrapped, run, wanted=micro != micro_batches[-1]):
            with precision(compute.device, compute.dtype):
                parts = objective(training.wrapped, batch)
            training.scaler.scale(parts.total() * weight).backward()
        sums[LOSS] += parts.cross_entropy.detach()
        for name, term in parts.auxiliary.items():
            sums[name] = sums.get(name, 0) + term.detach() * parts.n_targets
        for name, value in parts.measured.items():
            sums[MEASURED + name] = sums.get(MEASURED + name, 0) + value.detach()
        for block, load in parts.loads.items():
            loads[block] = loads.get(block, 0) + load
    return sums, loads, n_targets


@torch.no_grad()
def asked_before(objective: OfWholeBatch, model: nn.Module, batches: list[Batch], compute: Compute) -> Objective:
    """The objective of a global batch, of which this rank has these micro-batches."""
    model.eval()
    with precision(compute.device, compute.dtype):
        sums = torch.stack([objective.ask(model, batch) for batch in batches]).sum(0)
    model.train()
    give_back_weights(model)
    return objective.given(sum_over_ranks(sums, compute.ranks))


def targets_of_step(
    batches: Iterator[Batch], run: RunConfig, compute: Compute, count: int
) -> tuple[Iterator[Batch], int]:
    """The targets of a global batch that count, of which this rank has the next `count` micro-batches; and these.

    Where some do not count the micro-batches are looked through before the first one is computed, and the ranks
    exchange one number.
    """
    first = next(batches)
    if first.n_targets is None:
        every = run.gradient_accumulation_steps * run.context_parallel * first.targets.numel()
        return itertools.chain([first], batches), every
    mine = [first, *itertools.islice(batches, count - 1)]
    n_targets = torch.tensor(sum(batch.n_targets or 0 for batch in mine), device=compute.device)
    return iter(mine), max(1, int(sum_over_ranks(n_targets, compute.ranks)))


@torch.no_grad()
def total_norm(gradients: list[torch.Tensor]) -> torch.Tensor:
    """The norm of all gradients together, (), where they are: offloaded, in main memory. Those of experts that ranks
    share are on a mesh of their own."""
    by_mesh: dict[bool, list[torch.Tensor]] = {}
    for gradient in gradients:
        by_mesh.setdefault(shares_experts(gradient), []).append(gradient)
    norms = [whole(torch.nn.utils.get_total_norm(of_mesh)) for of_mesh in by_mesh.values()]
    return norms[0] if len(norms) == 1 else torch.linalg.vector_norm(torch.stack(norms))


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
