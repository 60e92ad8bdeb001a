"""The LM head and its loss in one step, a few rows at a time, so that the logits never exist as a whole."""

import dataclasses
from collections.abc import Sequence
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
    hidden, weight, head = _on_this_rank(hidden, weight, cap)
    return _LinearCrossEntropy.apply(hidden, weight, targets.reshape(-1), head)


def each_cross_entropy(hidden: Tensor, weight: Tensor, targets: Tensor, cap: float | None = None) -> Tensor:
    """What `linear_cross_entropy` adds up, of each target: nats, float32, as targets (...); 0 where one does not count.
    For losses that weigh targets by what the model says of others: their gradients can only be made afterwards, so the
    logits are computed twice, chunk by chunk both times."""
    hidden, weight, head = _on_this_rank(hidden, weight, cap)
    return _EachCrossEntropy.apply(hidden, weight, targets.reshape(-1), head).reshape(targets.shape)


def _on_this_rank(hidden: Tensor, weight: Tensor, cap: float | None) -> "tuple[Tensor, Tensor, _Head]":
    """The hidden states (N, D), this rank's rows of the weight, and what else there is to know of the head."""
    vocabulary = None
    if isinstance(weight, DTensor) and isinstance(hidden, DTensor):
        mesh = weight.device_mesh
        hidden = hidden.redistribute(mesh, [Replicate()]).to_local(grad_placements=[Partial()])
        weight = weight.to_local()
        vocabulary = _VocabularyShard(mesh.get_local_rank() * weight.shape[0], mesh.get_group())
    hidden = hidden.reshape(-1, hidden.shape[-1])
    if not torch.is_grad_enabled():  # which a Function does not see: it would make the gradients all the same
        hidden, weight = hidden.detach(), weight.detach()
    return hidden, weight, _Head(vocabulary, cap)


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


_Gradients = tuple[Tensor | None, Tensor | None]  # of hidden states (N, D) and of the weight


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, head: _Head) -> Tensor:
        gradients = _empty_gradients(hidden, weight, ctx.needs_input_grad)
        # Summed, whose gradients are 1: those of a mean over many rows would be too small for float16, and no gradient
        # scaler has seen them yet.
        loss = _by_chunks(hidden, weight, targets, gradients, head).sum()
        ctx.save_for_backward(*gradients)
        return loss

    @staticmethod
    def backward(ctx: Any, loss_grad: Tensor) -> tuple[Tensor | None, ...]:
        gradients = [None if grad is None else grad.mul_(loss_grad.to(grad.dtype)) for grad in ctx.saved_tensors]
        return *gradients, None, None


class _EachCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, head: _Head) -> Tensor:
        ctx.save_for_backward(hidden, weight, targets)
        ctx.head, ctx.dtype = head, _dtype_of_products(hidden)
        return _by_chunks(hidden, weight, targets, (None, None), head)

    @staticmethod
    def backward(ctx: Any, loss_grad: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, targets = ctx.saved_tensors
        gradients = _empty_gradients(hidden, weight, ctx.needs_input_grad)
        with torch.autocast(hidden.device.type, ctx.dtype, enabled=ctx.dtype != hidden.dtype):
            _by_chunks(hidden, weight, targets, gradients, ctx.head, loss_grad)
        return *gradients, None, None


def _dtype_of_products(hidden: Tensor) -> torch.dtype:
    device = hidden.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype


def _empty_gradients(hidden: Tensor, weight: Tensor, wanted: Sequence[bool]) -> _Gradients:
    return torch.empty_like(hidden) if wanted[0] else None, torch.zeros_like(weight) if wanted[1] else None


def _by_chunks(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    gradients: _Gradients,
    head: _Head,
    loss_grad: Tensor | None = None,
) -> Tensor:
    """The loss of each target (N,). Gradients are written into the buffers that are given: those of the losses' sum, or
    where `loss_grad` (N,) says what each counts, of that one."""
    dtype = _dtype_of_products(hidden)
    loss = torch.empty(len(targets), device=hidden.device)
    with torch.autocast(hidden.device.type, enabled=False):
        weight = weight.to(dtype)
        rows_per_chunk = loss_rows(*weight.shape)
        for start in range(0, len(targets), rows_per_chunk):
            rows = slice(start, start + rows_per_chunk)
            into = (None if gradients[0] is None else gradients[0][rows], gradients[1])
            counts = None if loss_grad is None else loss_grad[rows, None]
            loss[rows] = _chunk(hidden[rows].to(dtype), weight, targets[rows, None], into, head, counts)
    return loss


def _chunk(
    hidden: Tensor, weight: Tensor, targets: Tensor, gradients: _Gradients, head: _Head, loss_grad: Tensor | None
) -> Tensor:
    """The losses of a few rows; a function, so that their logits are gone before the next ones are made."""
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
    loss = ((log_normalizer - target_logits) * counts)[:, 0]
    hidden_grad, weight_grad = gradients
    if hidden_grad is None and weight_grad is None:
        return loss
    slope = None if cap is None else (logits / cap).square_().neg_().add_(1)  # of the bounded logits, by those before
    # With an infinite normalizer what does not count has no probabilities, and no gradient
    probabilities = logits.sub_(log_normalizer.masked_fill(~counts, torch.inf)).exp_()
    logits_grad = probabilities.scatter_add_(-1, targets, -here.to(probabilities.dtype))
    if slope is not None:
        logits_grad.mul_(slope)
        del slope  # before the products, which are as large
    if loss_grad is not None:
        logits_grad.mul_(loss_grad)
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
