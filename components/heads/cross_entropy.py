"""The LM head and its loss in one step, a few rows at a time, so that the logits never exist as a whole."""

import dataclasses
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor, Partial, Replicate
from torch.nn import functional as F

from components.heads.spec import IGNORED, loss_rows


def linear_cross_entropy(hidden: Tensor, weight: Tensor, targets: Tensor, cap: float | None = None) -> Tensor:
    """The cross-entropy of `softmax(hidden @ weight.T)`, summed over the targets that count: nats, a float32 scalar.
    With a cap, of `softmax(cap * tanh(hidden @ weight.T / cap))`.

    hidden (..., D), weight (V, D), targets (...) of ids below V, or IGNORED. The products run in autocast's dtype, the
    softmax in float32. The gradients are made together with the loss, chunk by chunk: no logits are kept and none are
    computed twice, so the cost is that of the plain head and the memory that of one chunk and the two gradients.

    A weight that is distributed by its rows, with hidden states distributed over the same ranks in any way, gives the
    same on every rank; the ranks exchange two numbers a row.
    """
    vocabulary = None
    if isinstance(weight, DTensor) and isinstance(hidden, DTensor):
        mesh = weight.device_mesh
        hidden = hidden.redistribute(mesh, [Replicate()]).to_local(grad_placements=[Partial()])
        weight = weight.to_local()
        vocabulary = _VocabularyShard(mesh.get_local_rank() * weight.shape[0], mesh.get_group())
    hidden, targets = hidden.reshape(-1, hidden.shape[-1]), targets.reshape(-1)
    if not torch.is_grad_enabled():  # which a Function does not see: it would make the gradients all the same
        hidden, weight = hidden.detach(), weight.detach()
    return _LinearCrossEntropy.apply(hidden, weight, targets, _Head(vocabulary, cap))


@dataclasses.dataclass(frozen=True)
class _VocabularyShard:
    """The rows of the head that this rank has, of equally many on each rank of the group."""

    first: int
    group: dist.ProcessGroup


@dataclasses.dataclass(frozen=True)
class _Head:
    """What there is to know of the head besides its weight."""

    vocabulary: _VocabularyShard | None
    cap: float | None


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, head: _Head) -> Tensor:
        device = hidden.device.type
        autocast = torch.is_autocast_enabled(device)
        dtype = torch.get_autocast_dtype(device) if autocast else hidden.dtype
        wants_hidden, wants_weight, *_ = ctx.needs_input_grad
        hidden_grad = torch.empty_like(hidden) if wants_hidden else None
        weight_grad = torch.zeros_like(weight) if wants_weight else None
        with torch.autocast(device, enabled=False):
            loss = _accumulate(hidden, weight.to(dtype), targets, hidden_grad, weight_grad, head)
        ctx.save_for_backward(hidden_grad, weight_grad)
        return loss

    @staticmethod
    def backward(ctx: Any, loss_grad: Tensor) -> tuple[Tensor | None, ...]:
        gradients = [None if grad is None else grad.mul_(loss_grad.to(grad.dtype)) for grad in ctx.saved_tensors]
        return *gradients, None, None


def _accumulate(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    hidden_grad: Tensor | None,
    weight_grad: Tensor | None,
    head: _Head,
) -> Tensor:
    """The sum of the loss; its gradients are written into the given buffers. (Those of a mean over many rows would be
    too small for float16, and no gradient scaler has seen them yet.)"""
    rows_per_chunk = loss_rows(*weight.shape)
    loss = torch.zeros((), device=hidden.device)
    for start in range(0, len(targets), rows_per_chunk):
        rows = slice(start, start + rows_per_chunk)
        into = None if hidden_grad is None else hidden_grad[rows]
        loss += _chunk(hidden[rows].to(weight.dtype), weight, targets[rows, None], into, weight_grad, head)
    return loss


def _chunk(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    hidden_grad: Tensor | None,
    weight_grad: Tensor | None,
    head: _Head,
) -> Tensor:
    """The summed loss of a few rows; a function, so that their logits are gone before the next ones are made."""
    logits, vocabulary, cap = F.linear(hidden, weight).float(), head.vocabulary, head.cap  # (rows, V)
    if cap is not None:
        logits.div_(cap).tanh_().mul_(cap)
    counts = targets != IGNORED  # (rows, 1)
    here = counts  # whether the target is in this vocabulary
    if vocabulary is not None:
        targets = targets - vocabulary.first
        here = counts & (targets >= 0) & (targets < weight.shape[0])
    targets = targets.where(here, 0)
    log_normalizer = logits.logsumexp(-1, keepdim=True)  # (rows, 1)
    target_logits = logits.gather(-1, targets) * here
    if vocabulary is not None:
        log_normalizer, target_logits = _of_all_vocabulary(log_normalizer, target_logits, vocabulary.group)
    loss = ((log_normalizer - target_logits) * counts).sum()
    if hidden_grad is None and weight_grad is None:
        return loss
    slope = None if cap is None else (logits / cap).square_().neg_().add_(1)  # of the bounded logits, by those before
    # With an infinite normalizer what does not count has no probabilities, and no gradient
    probabilities = logits.sub_(log_normalizer.masked_fill(~counts, torch.inf)).exp_()
    logits_grad = probabilities.scatter_add_(-1, targets, -here.to(probabilities.dtype))
    if slope is not None:
        logits_grad.mul_(slope)
        del slope  # before the products, which are as large
    logits_grad = logits_grad.to(weight.dtype)
    if hidden_grad is not None:
        hidden_grad.copy_(logits_grad @ weight)
    if weight_grad is not None:
        weight_grad += logits_grad.T @ hidden
    return loss


def _of_all_vocabulary(
    log_normalizer: Tensor, target_logits: Tensor, group: dist.ProcessGroup
) -> tuple[Tensor, Tensor]:
    """From those of one rank's vocabulary, each (rows, 1), those of the whole one."""
    mine = torch.stack((log_normalizer, target_logits))
    every = mine.new_empty(dist.get_world_size(group), *mine.shape)  # (ranks, 2, rows, 1)
    dist.all_gather(list(every), mine, group=group)
    return every[:, 0].logsumexp(0), every[:, 1].sum(0)
