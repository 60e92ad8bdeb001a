"""The gated delta rule (Yang, Kautz and Hatamizadeh 2024, Gated Delta Networks): a matrix that decays, is corrected
where a token's key reads it, and is read by the token's query.

    of every head, of unit vectors q / sqrt(K) and k:
        state <- exp(decay) state
        state <- state + k (beta (v - k state))^T
        y = q state

    q, k (B, T, G, K)   v (B, T, H, V)   decay (B, T, H, 1 or K), below 0   beta (B, T, H), 0 to 1   state (B, H, K, V)

Each of the G heads of queries and keys serves H / G heads of values that follow one another. A decay is one number for
all channels of a key, or one for each (Kimi Team 2025, Kimi Linear). Queries and keys are made unit vectors here, so
that no copies of them are kept for the backward pass.

Shapes: B batch, T tokens, c chunks of C, N = B H. All is computed in float32 (float64 for float64 inputs), whatever
autocast says, and so are y and the states. Final states are what a later call takes as its `initial_state`.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from components.any_length import token_by_token
from components.mixers.delta import chunk_tokens
from components.mixers.fading import by_channel, by_head
from components.precision import wide

NORM_EPS = 1e-6  # beside a square sum, as in the published code
SEGMENT = 2**11  # tokens of one head whose chunks are computed at once: few enough for a CPU's cache
SEGMENT_OF_GPU = 2**18  # and enough to keep a GPU busy


def unit(x: Tensor, length: float = 1.0) -> Tensor:
    """Of this length, but for an eps: (..., K) -> (..., K)."""
    x = wide(x)
    return x * (length * (x.square().sum(-1, keepdim=True) + NORM_EPS).rsqrt())


def delta_step(q: Tensor, k: Tensor, v: Tensor, decay: Tensor, beta: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """The recurrence, for one token: the arguments without their T; returns y (B, H, V) and the next state."""
    served = v.shape[1] // k.shape[1]
    q, k = (unit(one).repeat_interleave(served, dim=1) for one in (q, k))  # (B, H, K)
    faded = wide(state) * wide(decay).exp()[..., None]
    error = wide(v) - (k[..., None, :] @ faded).squeeze(-2)  # (B, H, V)
    state = faded + k[..., None] * (wide(beta)[..., None] * error)[..., None, :]
    return (q[..., None, :] @ state).squeeze(-2) / math.sqrt(q.shape[-1]), state


def delta_naive(
    q: Tensor, k: Tensor, v: Tensor, decay: Tensor, beta: Tensor, initial_state: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The readable reference: token by token. Keeps every state for the backward pass."""
    state = _empty_state(k, v) if initial_state is None else initial_state
    outputs = []
    for token in zip(*(one.unbind(1) for one in (q, k, v, decay, beta)), strict=True):
        q_t, k_t, v_t, decay_t, beta_t = token
        y, state = delta_step(q_t, k_t, v_t, decay_t, beta_t, state)
        outputs.append(y)
    return torch.stack(outputs, dim=1), state


def delta_any_length(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    decay: Tensor,
    beta: Tensor,
    chunk_size: int,
    initial_state: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The same for a tracer (components/any_length.py)."""
    state = _empty_state(k, v) if initial_state is None else initial_state
    return token_by_token(delta_step, (q, k, v, decay, beta), state)


@torch.compiler.disable  # it would unroll the loop over chunks
def delta_chunked(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    decay: Tensor,
    beta: Tensor,
    chunk_size: int,
    initial_state: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The same with products of matrices, in chunks of `chunk_size` tokens, a power of 2: q, k (B, T, G, K),
    v (B, T, H, V), decay (B, T, H, 1 or K), beta (B, T, H) -> y (B, T, H, V) and the final state (B, H, K, V), of any
    length (Yang et al. 2024, Parallelizing Linear Transformers with the Delta Rule, section 3, with decays).

    By how much the values of a chunk are off depends on those before them in it: that is a system of equations, with a
    triangular matrix, whose inverse is of keys and decays alone. Between chunks, the state at each one's start. The
    backward pass keeps these, and the inverses, and computes the rest again.
    """
    state = _empty_state(k, v) if initial_state is None else wide(initial_state)
    with torch.autocast(v.device.type, enabled=False):
        return _Chunked.apply(q, k, v, wide(decay), wide(beta), state, chunk_tokens(chunk_size, v.shape[1]))


def _empty_state(k: Tensor, v: Tensor) -> Tensor:
    return wide(v.new_zeros(v.shape[0], v.shape[2], k.shape[-1], v.shape[-1]))


# ---------------------------------------------------------------------------------------------------------------------
# What of chunks follows from queries, keys, decays and betas


class _Chunks(NamedTuple):
    """Of all chunks of a segment, c first, then N."""

    reads: Tensor  # (c, N, C, K) queries, as the state at the start is still there for them
    matches: Tensor  # (c, N, C, K) keys, the same
    writes: Tensor  # (c, N, C, K) keys times beta, as what they wrote is there at the end
    kept: Tensor  # (c, N, 1 or K, 1) of the state
    attends: Tensor  # (c, N, C, C) what each query reads of what each key wrote
    overlaps: Tensor  # (c, N, C, C) the same of each key; what counts is below the diagonal


def _chunks(inputs: Sequence[Tensor], chunk: int) -> _Chunks:
    """inputs: q, k, decay and beta, by token."""
    q, k, decay, beta = inputs
    served = decay.shape[2] // k.shape[2]
    queries, keys = (by_chunk(one, chunk)[:, :, None].expand(-1, -1, served, -1, -1).flatten(1, 2) for one in (q, k))
    keys, decay = unit(keys), by_chunk(decay, chunk)
    readers = torch.stack((unit(queries, q.shape[-1] ** -0.5), keys), dim=-2)  # (c, N, C, 2, K)
    writers = keys * by_chunk(beta[..., None], chunk)
    faded = (by_head if decay.shape[-1] == 1 else by_channel)(readers, writers, decay)
    reads, matches = (readers * faded.since_start[..., None, :]).unbind(-2)
    attends, overlaps = faded.products.unbind(-2)
    return _Chunks(reads, matches, writers * faded.until_end, decay.sum(-2).exp()[..., None], attends, overlaps)


def by_chunk(x: Tensor, chunk: int) -> Tensor:
    """(B, T, H, X) -> (c, N, C, X), the last chunk filled up with zeros: such a token decays, writes and reads
    nothing."""
    missing = -x.shape[1] % chunk
    padded = F.pad(x, (0, 0, 0, 0, 0, missing)) if missing else x  # a copy, even of nothing more
    return padded.unflatten(1, (-1, chunk)).permute(1, 0, 3, 2, 4).flatten(1, 2)


def by_token(x: Tensor, like: Tensor) -> Tensor:
    """(c, N, C, X) -> (B, T, H, X), the shape of `like`."""
    batch, length, heads, _ = like.shape
    return x.unflatten(1, (batch, heads)).permute(1, 0, 3, 2, 4).flatten(1, 2)[:, :length]


# ---------------------------------------------------------------------------------------------------------------------
# From chunk to chunk


class _Chunked(torch.autograd.Function):
    """Segment by segment, so that what is computed of one stays in the cache."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, decay: Tensor, beta: Tensor, state: Tensor, chunk: int
    ) -> tuple[Tensor, Tensor]:
        y, kept, shape = state.new_empty(v.shape), list[Tensor](), state.shape
        state = state.flatten(0, 1)
        for part in _segments(v, chunk):
            chunks = _chunks([one[:, part] for one in (q, k, decay, beta)], chunk)
            values = by_chunk(wide(v[:, part]), chunk)  # (c, N, C, V)
            solved = torch.linalg.solve_triangular(
                chunks.overlaps, torch.eye(chunk, dtype=values.dtype, device=v.device), upper=False, unitriangular=True
            )  # (c, N, C, C)
            starts, errors, state = _forwards(chunks, values, solved, state)
            y[:, part] = by_token(chunks.attends @ errors + chunks.reads @ starts, y[:, part])
            kept += [starts, errors, solved]
        ctx.save_for_backward(q, k, v, decay, beta, *kept)
        ctx.chunk = chunk
        return y, state.reshape(shape).clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, y_grad: Tensor, state_grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, decay, beta, *kept = ctx.saved_tensors  # read once: a checkpoint gives them out once
        inputs = [q, k, decay, beta]
        gradients, v_grad, shape = [torch.empty_like(one) for one in inputs], torch.empty_like(v), state_grad.shape
        state_grad = state_grad.flatten(0, 1)
        for index, part in reversed(list(enumerate(_segments(v, ctx.chunk)))):
            starts, errors, solved = kept[3 * index :][:3]
            with torch.enable_grad():
                leaves = [one[:, part].detach().requires_grad_() for one in inputs]
                chunks = _chunks(leaves, ctx.chunk)
            fixed = _Chunks(*(one.detach() for one in chunks))
            outputs_grad = by_chunk(y_grad[:, part], ctx.chunk)  # (c, N, C, V)
            ends_grad, missed_grad, state_grad = _backwards(fixed, solved, outputs_grad, state_grad)
            of_chunks = _Chunks(
                reads=outputs_grad @ starts.mT,
                matches=-(missed_grad @ starts.mT),
                writes=errors @ ends_grad.mT,
                kept=(ends_grad * starts).sum_to_size(fixed.kept.shape),
                attends=outputs_grad @ errors.mT,
                overlaps=-(missed_grad @ errors.mT).tril_(-1),
            )
            for into, gradient in zip(gradients, torch.autograd.grad(chunks, leaves, of_chunks), strict=True):
                into[:, part] = gradient
            v_grad[:, part] = by_token(missed_grad, v[:, part])
        q_grad, k_grad, decay_grad, beta_grad = gradients
        return q_grad, k_grad, v_grad, decay_grad, beta_grad, state_grad.reshape(shape), None


def _segments(v: Tensor, chunk: int) -> Iterator[slice]:
    """Of whole chunks, but for the last one."""
    batch, length, heads, _ = v.shape
    tokens = SEGMENT if v.device.type == "cpu" else SEGMENT_OF_GPU
    size = max(1, tokens // (batch * heads * chunk)) * chunk
    return (slice(start, start + size) for start in range(0, length, size))


def _forwards(chunks: _Chunks, values: Tensor, solved: Tensor, state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """values (c, N, C, V), solved (c, N, C, C) and the first state (N, K, V) -> the states at the chunks' starts
    (c, N, K, V), by how much each value is off when its token corrects the state (c, N, C, V), and the last state."""
    starts, errors = values.new_empty(len(values), *state.shape), torch.empty_like(values)
    for index, (value, kept, writes) in enumerate(zip(values, chunks.kept, chunks.writes, strict=True)):
        starts[index] = state
        missed = torch.baddbmm(value, chunks.matches[index], state, alpha=-1)  # by the state at the start
        torch.bmm(solved[index], missed, out=errors[index])
        state = torch.baddbmm(kept * state, writes.mT, errors[index])
    return starts, errors, state


def _backwards(
    chunks: _Chunks, solved: Tensor, outputs_grad: Tensor, state_grad: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of the outputs (c, N, C, V) and of the last state (N, K, V) -> those of the states at the chunks'
    ends (c, N, K, V), of what the values miss of the state at the start (c, N, C, V), which are those of the values,
    and of the first state."""
    starts_grad, errors_grad = chunks.reads.mT @ outputs_grad, chunks.attends.mT @ outputs_grad
    ends_grad, missed_grad = torch.empty_like(starts_grad), torch.empty_like(errors_grad)
    for index in reversed(range(len(solved))):
        ends_grad[index] = state_grad
        error_grad = torch.baddbmm(errors_grad[index], chunks.writes[index], state_grad)
        torch.bmm(solved[index].mT, error_grad, out=missed_grad[index])
        read_grad = torch.addcmul(starts_grad[index], chunks.kept[index], state_grad)
        state_grad = torch.baddbmm(read_grad, chunks.matches[index].mT, missed_grad[index], alpha=-1)
    return ends_grad, missed_grad, state_grad
