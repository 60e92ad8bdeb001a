"""The scan of Mamba (Gu and Dao 2023): a state that decays, takes the next token's input in, and is read. Every channel
has N decays of its own, and the scan stays a recurrence.

    of every channel:  state <- exp(dt A) state + dt x B,  y = C state

    x (B, T, D)   dt (B, T, D), above 0   A (D, N), below 0   B, C (B, T, N)   state (B, D, N)   y like x

Shapes: B batch, T tokens, D channels, N state; chunks of Q tokens. All of it is in float32 (float64 for float64
inputs), whatever autocast says. Final states are what a later call takes as its `initial_state`.
"""

import itertools
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from components.any_length import token_by_token
from components.mixers.mamba1.spec import SCAN_CHUNK
from components.precision import wide


def selective_step(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """The recurrence, for one token: the arguments without their T; returns y (B, D) and the next state."""
    dt = wide(dt)
    added = (wide(x) * dt)[..., None] * wide(B)[:, None]  # (B, D, N)
    state = torch.addcmul(added, (dt[..., None] * wide(A)).exp(), wide(state))
    y = (state @ wide(C)[..., None]).squeeze(-1)
    return y.type_as(x), state


def selective_naive(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    initial_state: Tensor | None = None,
    places: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The readable reference: token by token. Keeps every state for the backward pass. `places` as below."""
    state = x.new_zeros(*x.shape[:1], *A.shape) if initial_state is None else initial_state
    outputs = []
    is_first = torch.zeros(x.shape[:2], dtype=torch.bool, device=x.device) if places is None else places == 0
    tokens = (t.unbind(1) for t in (x, dt, B, C, is_first))
    for x_t, dt_t, B_t, C_t, starts in zip(*tokens, strict=True):
        state = state.masked_fill(starts[:, None, None], 0.0)
        y, state = selective_step(x_t, dt_t, A, B_t, C_t, state)
        outputs.append(y)
    return torch.stack(outputs, dim=1), state


def selective_any_length(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    initial_state: Tensor | None = None,
    places: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The same for a tracer (components/any_length.py), which has no documents."""
    state = wide(x.new_zeros(x.shape[0], *A.shape)) if initial_state is None else initial_state
    return token_by_token(lambda x, dt, B, C, state: selective_step(x, dt, A, B, C, state), (x, dt, B, C), state)


@torch.compiler.disable  # it would unroll the recurrence: a graph of every token
def selective_scan(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    initial_state: Tensor | None = None,
    places: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The same, a chunk of tokens at a time: all but the recurrence itself is done for a whole chunk at once, and the
    backward pass computes a chunk's states again from the one at its start, so that no others are kept. `places`
    (B, T), of each token in its document: nothing is left at its first of the state before (None: all are of one)."""
    state = None if initial_state is None else wide(initial_state).mT
    inputs = (wide(t) for t in (x, dt, A.mT.contiguous(), B, C))
    with torch.autocast(x.device.type, enabled=False):
        y, state = _SelectiveScan.apply(*inputs, state, None if places is None else places == 0)
    return y.type_as(x), state.mT


class _SelectiveScan(torch.autograd.Function):
    """With A as (N, D) and the state as (B, N, D): the channels, which are many, lie next to each other."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        dt: Tensor,
        A: Tensor,
        B: Tensor,
        C: Tensor,
        state: Tensor | None,
        is_first: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        if state is None:
            state = x.new_zeros(x.shape[0], *A.shape)
        chunks, y = _chunks(x.shape[1]), torch.empty_like(x)
        starts = state.new_empty(len(chunks), *state.shape)
        for start, chunk in zip(starts.unbind(), chunks, strict=True):
            start.copy_(state)
            _, states = _chunk_states(x[:, chunk], dt[:, chunk], A, B[:, chunk], start, _of(is_first, chunk))
            y[:, chunk] = (C[:, chunk].transpose(0, 1)[:, :, None] @ states[1:]).squeeze(2).transpose(0, 1)
            state = states[-1]
        ctx.save_for_backward(x, dt, A, B, C, starts, is_first)
        return y, state.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, y_grad: Tensor, state_grad: Tensor) -> tuple[Tensor | None, ...]:
        x, dt, A, B, C, starts, is_first = ctx.saved_tensors
        x_grad, dt_grad, A_grad = torch.empty_like(x), torch.empty_like(dt), torch.zeros_like(A)
        B_grad, C_grad = torch.empty_like(B), torch.empty_like(C)
        for chunk, start in reversed(list(zip(_chunks(x.shape[1]), starts.unbind(), strict=True))):
            x_c, dt_c = x[:, chunk].transpose(0, 1), dt[:, chunk].transpose(0, 1)  # (Q, B, D)
            B_c, C_c, y_grad_c = (t[:, chunk].transpose(0, 1) for t in (B, C, y_grad))  # (Q, B, N) twice, (Q, B, D)
            given = x[:, chunk], dt[:, chunk], A, B[:, chunk], start, _of(is_first, chunk)
            decays, states = _chunk_states(*given)
            C_grad[:, chunk] = (states[1:] @ y_grad_c[..., None]).squeeze(-1).transpose(0, 1)
            # Of every state: through what the token reads, and through the next state
            gradients = C_c[..., None] * y_grad_c[:, :, None]  # (Q, B, N, D)
            gradients[-1] += state_grad
            backwards = zip(reversed(gradients.unbind()), reversed(decays.unbind()), strict=True)
            for (later, decay), (gradient, _) in itertools.pairwise(backwards):
                gradient.addcmul_(decay, later)
            inputs = x_c * dt_c
            B_grad[:, chunk] = (gradients @ inputs[..., None]).squeeze(-1).transpose(0, 1)
            input_grad = (B_c[:, :, None] @ gradients).squeeze(2)  # (Q, B, D)
            # Of the exponent dt A: the decay, times the state before, times the gradient of the one after
            before_grad = gradients.mul_(decays)
            state_grad = before_grad[0].clone()
            exponent_grad = before_grad.mul_(states[:-1])
            A_grad += (exponent_grad * dt_c[:, :, None]).sum((0, 1))
            through_decay = exponent_grad.mul_(A).sum(2)
            x_grad[:, chunk] = (input_grad * dt_c).transpose(0, 1)
            dt_grad[:, chunk] = (input_grad * x_c + through_decay).transpose(0, 1)
        return x_grad, dt_grad, A_grad, B_grad, C_grad, state_grad if ctx.needs_input_grad[5] else None, None


def _chunks(length: int) -> list[slice]:
    return [slice(start, start + SCAN_CHUNK) for start in range(0, length, SCAN_CHUNK)]


def _of(is_first: Tensor | None, chunk: slice) -> Tensor | None:
    return None if is_first is None else is_first[:, chunk]


def _chunk_states(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, start: Tensor, is_first: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The decays (Q, B, N, D) of a chunk, and its states (Q + 1, B, N, D) from the one before it (B, N, D) on."""
    x, dt, B = x.transpose(0, 1), dt.transpose(0, 1), B.transpose(0, 1)
    decays = (dt[:, :, None] * A).exp_()
    if is_first is not None:
        decays.masked_fill_(is_first.T[..., None, None], 0.0)
    states = decays.new_empty(len(decays) + 1, *start.shape)
    states[0] = start
    torch.mul((x * dt)[:, :, None], B[..., None], out=states[1:])  # what each token adds
    for decay, (before, state) in zip(decays.unbind(), itertools.pairwise(states.unbind()), strict=True):
        state.addcmul_(decay, before)
    return decays, states
