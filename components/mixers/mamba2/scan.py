"""The scan of Mamba-2 (Dao and Gu 2024, Transformers are SSMs): a state that decays, takes the next token's input in,
and is read. Heads of P channels, each with one decay, share their B and C within a group; the scan becomes products of
matrices.

    of every head:  state <- exp(decay) state + B x^T,  y = C state

    x (B, T, H, P)   decay (B, T, H), below 0   B, C (B, T, G, N)   state (B, H, P, N)   y like x, in the dtype of C

A layer's step dt is in two of them, as in the paper's listing: x is its input times dt, and decay is dt A.

Shapes: B batch, T tokens, H heads in G groups of R, P channels a head, N state; c chunks of Q. Decays and the state
between chunks are in float32 (float64 for float64 inputs), whatever autocast says, and the sums of decays in float64;
the products take the dtype of B and C, or autocast's. Final states are what a later call takes as its `initial_state`.
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from components.any_length import chunk_by_chunk
from components.mixers.fading import Fading
from components.precision import wide, widest

FEW_STEPS = 24  # of a recurrence: more are taken in groups


def ssd_step(x: Tensor, decay: Tensor, B: Tensor, C: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """The recurrence, for one token: the arguments without their T; returns y (B, H, P) and the next state."""
    shared_by = x.shape[1] // B.shape[1]  # heads of a group
    B, C = B.repeat_interleave(shared_by, dim=1), C.repeat_interleave(shared_by, dim=1)  # (B, H, N)
    added = wide(x)[..., None] * wide(B)[..., None, :]  # (B, H, P, N)
    state = torch.addcmul(added, wide(decay).exp()[..., None, None], wide(state))
    y = (state @ wide(C)[..., None]).squeeze(-1)
    return y.type_as(C), state


def ssd_naive(
    x: Tensor, decay: Tensor, B: Tensor, C: Tensor, initial_state: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The readable reference: token by token. Keeps every state for the backward pass."""
    state = x.new_zeros(*x.shape[:1], *x.shape[2:], B.shape[-1]) if initial_state is None else initial_state
    outputs = []
    for token in zip(x.unbind(1), decay.unbind(1), B.unbind(1), C.unbind(1), strict=True):
        y, state = ssd_step(*token, state)  # unbind: an index would write a whole gradient of x for every token
        outputs.append(y)
    return torch.stack(outputs, dim=1), state


def ssd_chunked(
    x: Tensor, decay: Tensor, B: Tensor, C: Tensor, chunk_size: int, initial_state: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """x (B, T, H, P), decay (B, T, H), B and C (B, T, G, N) -> y (B, T, H, P) and the final state (B, H, P, N), in
    chunks of `chunk_size` tokens, of any length, with matrix products (Dao and Gu 2024, section 6).

        state[t] = exp(decay[t]) state[t - 1] + B[t] x[t]^T,  y[t] = C[t] state[t]

    Within a chunk, as attention without a softmax whose scores C B^T fade with the distance; between chunks, through
    the state at each one's start. What is kept for the backward pass grows with T (Q + N / Q), not with T N.
    """
    batch, length, heads, width = x.shape
    groups, chunk = B.shape[2], min(chunk_size, length)
    padding = -length % chunk  # with zeros: the state neither decays nor takes anything in
    decay, dtype = wide(decay), C.dtype

    def chunks(t: Tensor, *shape: int) -> Tensor:
        """(B, T, ...) -> (B, c, Q, G, ...)."""
        padded = F.pad(t, (0, 0) * (t.dim() - 2) + (0, padding))
        return padded.reshape(batch, -1, chunk, groups, *shape)

    x_in = chunks(x.to(dtype), heads // groups, width)  # (B, c, Q, G, R, P)
    x_in = x_in.transpose(2, 3)  # (B, c, G, Q, R, P)
    B, C = (chunks(t, t.shape[-1]).transpose(2, 3) for t in (B, C))  # (B, c, G, Q, N)
    # Since the chunk's start, (B, c, G, R, Q). In float32 the sums, thousands where decay is strong, would leave their
    # rounding in every difference
    kept = widest(chunks(decay, heads // groups)).permute(0, 1, 3, 4, 2).cumsum(-1)

    # Within chunks: what token i reads of token j
    fading = Fading.apply(kept, decay.dtype)
    scores = (C @ B.mT)[:, :, :, None] * fading  # (B, c, G, R, Q, Q)
    y = (scores.to(dtype) @ x_in.transpose(3, 4)).transpose(3, 4)  # (B, c, G, Q, R, P)

    # Between chunks: what each adds to the state, the state at each one's start, what its tokens read of it
    until_end = (kept[..., -1:] - kept).to(decay.dtype).exp().mT[..., None]  # (B, c, G, Q, R, 1)
    kept = kept.to(decay.dtype)
    added = B.mT @ (x_in * until_end).to(dtype).flatten(-2)  # (B, c, G, N, R P)
    if initial_state is not None:
        initial_state = initial_state.reshape(batch, groups, heads // groups, width, -1).permute(0, 1, 4, 2, 3)
    added = wide(added).unflatten(-1, (-1, width))
    first = torch.zeros_like(added[:, 0]) if initial_state is None else wide(initial_state)
    starts, state = _PassOn.apply(added, kept[..., -1].exp(), first)
    read = (C @ starts.to(dtype).flatten(-2)).unflatten(-1, (-1, width))  # (B, c, G, Q, R, P)
    y = y + read * kept.exp().mT[..., None]

    y = y.transpose(2, 3).reshape(batch, -1, heads, width)[:, :length]
    return y.to(dtype), state.permute(0, 1, 3, 4, 2).reshape(batch, heads, width, -1)


def ssd_any_length(
    x: Tensor, decay: Tensor, B: Tensor, C: Tensor, chunk_size: int, initial_state: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The same for a tracer (components/any_length.py), chunk after chunk. What continues a text is one chunk: it is a
    token, or a piece of a prompt."""
    if initial_state is not None:
        return ssd_chunked(x, decay, B, C, x.shape[1], initial_state)
    state = wide(x.new_zeros(x.shape[0], *x.shape[2:], B.shape[-1]))

    def one(x: Tensor, decay: Tensor, B: Tensor, C: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        return ssd_chunked(x, decay, B, C, chunk_size, state)

    return chunk_by_chunk(one, (x, decay, B, C), state, chunk_size, x.shape[1])


class _PassOn(torch.autograd.Function):
    """The states (B, c, G, N, R, P) at the chunks' starts, and the one after the last (B, G, N, R, P), of

        added: like the states, what each chunk adds
        kept (B, c, G, R): what is left of its start's state at its end
        state: the first start.

    The gradients pass from chunk to chunk by the same recurrence, backwards; all that is kept for it are the states.
    """

    @staticmethod
    def forward(ctx: Any, added: Tensor, kept: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        kept = kept[:, :, :, None, :, None]
        starts, end = _recur(added, kept, state)
        ctx.save_for_backward(kept, starts)
        return starts, end

    @staticmethod
    def backward(ctx: Any, starts_grad: Tensor, end_grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        kept, starts = ctx.saved_tensors
        ends_grad, state_grad = _recur(starts_grad, kept, end_grad, backwards=True)
        return ends_grad, (ends_grad * starts).sum((3, 5)), state_grad


def _recur(added: Tensor, kept: Tensor, state: Tensor, backwards: bool = False) -> tuple[Tensor, Tensor]:
    """state <- kept state + added, over dimension 1, or from its end: the states before every step, stacked, and the
    last one.

    Many steps are taken in groups of about their root: in all groups at once from zero, then from group to group. That
    takes fewer and larger operations, which a GPU needs, and a compiler, which unrolls them.
    """
    length = added.shape[1]
    order = -1 if backwards else 1
    if length <= FEW_STEPS:
        passed = []
        for added_by_one, kept_by_one in list(zip(added.unbind(1), kept.unbind(1), strict=True))[::order]:
            passed.append(state)
            state = torch.addcmul(added_by_one, kept_by_one, state)
        return torch.stack(passed[::order], dim=1), state
    size = math.isqrt(length - 1) + 1
    missing = -length % size  # steps that keep all and add nothing
    added = F.pad(added, (0, 0) * (added.dim() - 2) + (0, missing)).unflatten(1, (-1, size))  # (B, groups, size, ...)
    kept = F.pad(kept, (0, 0) * (kept.dim() - 2) + (0, missing), value=1.0).unflatten(1, (-1, size))
    zero = torch.zeros_like(added[:, :, 0]).flatten(0, 1)
    inside, ends = _recur(added.flatten(0, 1), kept.flatten(0, 1), zero, backwards)
    groups, last = _recur(ends.unflatten(0, added.shape[:2]), kept.prod(2), state, backwards)
    in_order = kept.flip(2) if backwards else kept
    since_start = torch.cat((torch.ones_like(kept[:, :, :1]), in_order[:, :, :-1].cumprod(2)), dim=2)
    since_start = since_start.flip(2) if backwards else since_start
    before = torch.addcmul(inside.unflatten(0, added.shape[:2]), since_start, groups[:, :, None])
    # Copied where steps were added: the products would copy it, and both would be kept for backward
    return before.flatten(1, 2)[:, :length].contiguous(), last
