"""How what a token wrote fades until another reads it: all pairs of tokens within chunks, from their decays.

Exponentials are taken of sums that are never above 0: what has faded is small, and nothing overflows.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from components.precision import widest


class Fading(torch.autograd.Function):
    """exp(kept[i] - kept[j]), what token i finds of what token j put in: kept (..., Q) in float64 -> (..., i, j) of
    `dtype`, 0 where j is later.

    There the exponential would overflow, so that -inf stands before it is taken. The differences are those of `kept`
    rounded, and of what the rounding left, which together are as good as float64 in half of its memory. The gradient
    of a pair is added to i and taken from j, and a sum over the chunk later lets them cancel: in float64, in full.
    """

    @staticmethod
    def forward(ctx: Any, kept: Tensor, dtype: torch.dtype) -> Tensor:
        rounded = kept.to(dtype)
        left = (kept - rounded).to(dtype)
        fading = rounded[..., :, None] - rounded[..., None, :]
        fading.add_(left[..., :, None]).sub_(left[..., None, :])
        later = torch.ones(fading.shape[-2:], dtype=torch.bool, device=kept.device).triu_(1)
        fading.masked_fill_(later, -torch.inf).exp_()
        ctx.save_for_backward(fading)
        ctx.sums_in = kept.dtype
        return fading

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (fading,) = ctx.saved_tensors
        gradient = (gradient * fading).tril_(-1)  # a token's own would cancel, and drown what is smaller until then
        return gradient.sum(-1, dtype=ctx.sums_in) - gradient.sum(-2, dtype=ctx.sums_in), None


class Faded(NamedTuple):
    """Of chunks of Q tokens: what readers (..., Q, R, K), R of each token, find of writers (..., Q, K) as far as these
    have not faded when they are read; and how much of anything is left, for each channel or for all."""

    products: Tensor  # (..., Q, R, Q), 0 where the writer is later
    since_start: Tensor  # (..., Q, K or 1), after each token, of what was there before the chunk
    until_end: Tensor  # (..., Q, K or 1), after the chunk, of what each token wrote


def by_head(readers: Tensor, writers: Tensor, decay: Tensor) -> Faded:
    """With one decay a token, (..., Q, 1), which is a factor of each product.

    Until the end, the sums are taken from there, because a difference of sums from the start would leave its rounding
    in gradients that are smaller.
    """
    kept = widest(decay).cumsum(-2)
    fading = Fading.apply(kept.squeeze(-1), writers.dtype)
    later = F.pad(decay[..., 1:, :], (0, 0, 0, 1)).flip(-2).cumsum(-2).flip(-2)
    return Faded(_products(readers, writers) * fading[..., None, :], kept.to(decay.dtype).exp(), later.exp())


def by_channel(readers: Tensor, writers: Tensor, decay: Tensor) -> Faded:
    """With a decay for every channel, (..., Q, K), which is no factor of a product: Q is a power of 2.

    Tokens are split in halves, and these again, down to single ones. What the second half of a block reads of the first
    one fades until the first one's end, and from there on: two factors, neither above 1, of writers and of readers.
    They are multiplied up from block to block, so that they are as good as their logarithms' sums in float64.
    """
    since, until = decay.exp(), torch.ones_like(decay)  # of blocks of one token, with it and after it
    own, across, half = (readers * writers[..., None, :]).sum(-1), list[Tensor](), 1
    while half < decay.shape[-2]:
        (since_first, since_second), (until_first, until_second) = _halves(since, half), _halves(until, half)
        reading = readers.unflatten(-3, (-1, 2, half))[..., 1, :, :, :] * since_second[..., None, :]
        writing = writers.unflatten(-2, (-1, 2, half))[..., 0, :, :] * until_first  # (..., blocks, half, K)
        across.append(_products(reading, writing))  # (..., blocks, half, R, half)
        since = torch.cat((since_first, since_second * since_first[..., -1:, :]), dim=-2).flatten(-3, -2)
        until = torch.cat((until_first * since_second[..., -1:, :], until_second), dim=-2).flatten(-3, -2)
        half *= 2
    return Faded(_Assembled.apply(own, *across), since, until)


def _products(readers: Tensor, writers: Tensor) -> Tensor:
    """readers (..., Q, R, K), writers (..., P, K) -> (..., Q, R, P)."""
    return (readers.flatten(-3, -2) @ writers.mT).unflatten(-2, readers.shape[-3:-1])


def _halves(x: Tensor, half: int) -> tuple[Tensor, ...]:
    """(..., Q, K) -> the first and the second halves of blocks of 2 half tokens, (..., blocks, half, K) each."""
    return x.unflatten(-2, (-1, 2, half)).unbind(-3)


class _Assembled(torch.autograd.Function):
    """The products (..., Q, R, Q), of what each token reads of its own, (..., Q, R), and of what second halves of
    blocks read of first ones, for halves of 1, 2, 4 and more tokens (..., blocks, half, R, half)."""

    @staticmethod
    def forward(ctx: Any, own: Tensor, *across: Tensor) -> Tensor:
        products = own.new_zeros(*own.shape, own.shape[-2])
        products.diagonal(dim1=-3, dim2=-1).copy_(own.mT)
        for level, one in enumerate(across):
            _across(products, 1 << level).copy_(one)
        ctx.levels = len(across)
        return products

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, ...]:
        own = gradient.diagonal(dim1=-3, dim2=-1).mT
        return own, *(_across(gradient, 1 << level) for level in range(ctx.levels))


def _across(products: Tensor, half: int) -> Tensor:
    """The elements (..., blocks, half, R, half) of products (..., Q, R, Q) that second halves read of first ones."""
    reading = products.unflatten(-3, (-1, 2, half))[..., 1, :, :, :]  # (..., blocks, half, R, Q)
    both = reading.unflatten(-1, (-1, 2, half))[..., 0, :]  # (..., blocks, half, R, blocks, half)
    return both.diagonal(dim1=-5, dim2=-2).movedim(-1, -4)
