"""What components compute, in forms that hold for any number of tokens when they are traced once.

An exporter runs a model once, on tensors whose sizes are symbols, and keeps the operations: branches and loops of
Python's over tokens would stay what they were for that one text. A mixer or an FFN that has some has a method
`hold_for_any_length`, which puts what stands here in their place; the caches that it makes then grow by concatenation,
along the dimension `grows`, and have no other fields than tensors.
"""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor
from torch._higher_order_ops.scan import scan
from torch.nn import functional as F

Step = Callable[..., tuple[Tensor, Tensor]]  # (what each input has of a token, or of a chunk, state) -> y, next state


def masked_attention(
    q: Tensor, k: Tensor, v: Tensor, score_bias: Tensor | None, dropout: float, window: int | None = None
) -> Tensor:
    """A backend of attention (components/mixers/attention/module.py): one fused call, whose mask is made of places."""
    queries, keys = q.shape[2], k.shape[2]
    places = torch.arange(keys, device=q.device)
    own = torch.arange(keys - queries, keys, device=q.device)[:, None]
    unseen = places > own if window is None else (places > own) | (places <= own - window)
    bias = q.new_zeros(1, 1, 1) if score_bias is None else score_bias
    bias = bias if bias.dim() == 4 else bias[None]
    mask = bias.masked_fill(unseen, -torch.inf)  # (B or 1, H or 1, T, S + T)
    return F.scaled_dot_product_attention(q, k, v, mask, dropout, enable_gqa=k.shape[1] < q.shape[1])


def token_by_token(step: Step, inputs: Iterable[Tensor], state: Tensor) -> tuple[Tensor, Tensor]:
    """A recurrence over inputs (B, T, ...) from the state before them -> y (B, T, ...) and the last state."""
    y, state = _in_turn(step, (one.transpose(0, 1) for one in inputs), state)
    return y.transpose(0, 1), state


def chunk_by_chunk(
    step: Step, inputs: Iterable[Tensor], state: Tensor, chunk: int, length: int
) -> tuple[Tensor, Tensor]:
    """The same of a step that takes `chunk` of the `length` tokens at once, and to which zeros add nothing.

    At the end stands a chunk of zeros, always: a single chunk would be a case of its own to a tracer. Tokens are put in
    chunks and taken out by their places, since it does not know that the sizes of reshaped tensors agree.
    """
    own = torch.arange(length)
    places = torch.arange(0, length + chunk, chunk)[:, None] + torch.arange(chunk)  # (c, Q)
    padded = (F.pad(one, (0, 0) * (one.dim() - 2) + (0, 2 * chunk)) for one in inputs)
    y, state = _in_turn(step, (one[:, places].transpose(0, 1) for one in padded), state)  # of (c, B, Q, ...)
    return y[own // chunk, :, own % chunk].transpose(0, 1), state


def _in_turn(step: Step, inputs: Iterable[Tensor], state: Tensor) -> tuple[Tensor, Tensor]:
    """Over the first dimension of all inputs."""

    def one(state: Tensor, given: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        y, state = step(*given, state)
        return _own(state), _own(y)

    state, y = scan(one, _own(state), tuple(inputs), dim=0)
    return y, state


def _own(x: Tensor) -> Tensor:
    """The operator takes no views, and of a state one layout only."""
    return x.clone(memory_format=torch.contiguous_format)
