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
    """With a decay for every channel, (..., Q, K), which is no factor of a product: Q is a power of 2."""
    return Faded(*_ByHalves.apply(readers, writers, decay))


def _products(readers: Tensor, writers: Tensor) -> Tensor:
    """readers (..., Q, R, K), writers (..., P, K) -> (..., Q, R, P)."""
    return (readers.flatten(-3, -2) @ writers.mT).unflatten(-2, readers.shape[-3:-1])


def _halves(x: Tensor, half: int) -> tuple[Tensor, ...]:
    """(..., Q, K) -> the first and the second halves of blocks of 2 half tokens, (..., blocks, half, K) each."""
    return x.unflatten(-2, (-1, 2, half)).unbind(-3)


class _ByHalves(torch.autograd.Function):
    """Tokens are split in halves, and these again, down to single ones. What the second half of a block reads of the
    first one fades until the first one's end, and from there on: two factors, neither above 1, of writers and of
    readers. They are multiplied up from block to block, so that they are as good as their logarithms' sums in float64.

    Gradients of the factors are those of their logarithms, which from block to block are sums: nothing is divided, and
    nothing cancels.
    """

    @staticmethod
    def forward(ctx: Any, readers: Tensor, writers: Tensor, decay: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        since, until = decay.exp(), torch.ones_like(decay)  # of blocks of one token, with it and after it
        products = readers.new_zeros(*readers.shape[:-1], readers.shape[-3])
        products.diagonal(dim1=-3, dim2=-1).copy_((readers * writers[..., None, :]).sum(-1).mT)
        factors = []
        for half in _sizes(decay):
            factors += [since, until]
            (since_first, since_second), (until_first, until_second) = _halves(since, half), _halves(until, half)
            reading, writing = _faded(readers, writers, since, until, half)
            _across(products, half).copy_(_products(reading, writing))
            since = torch.cat((since_first, since_second * since_first[..., -1:, :]), dim=-2).flatten(-3, -2)
            until = torch.cat((until_first * since_second[..., -1:, :], until_second), dim=-2).flatten(-3, -2)
        ctx.save_for_backward(readers, writers, *factors, since, until)
        return products, since, until

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, since_grad: Tensor, until_grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        readers, writers, *factors, since, until = ctx.saved_tensors
        own = gradient.diagonal(dim1=-3, dim2=-1).mT[..., None]  # (..., Q, R, 1)
        readers_grad, writers_grad = own * writers[..., None, :], (own * readers).sum(-2)
        of_since, of_until = since_grad * since, until_grad * until  # of logarithms, of blocks of any size
        for level, half in reversed(list(enumerate(_sizes(writers)))):
            since, until = factors[2 * level : 2 * level + 2]
            since_first, since_second = _halves(of_since, half)
            until_first, _ = _halves(of_until, half)
            since_first[..., -1, :] += since_second.sum(-2)  # by all of which the second half had faded
            since_second[..., -1, :] += until_first.sum(-2)
            reading, writing = _faded(readers, writers, since, until, half)
            across = _across(gradient, half).flatten(-3, -2)  # (..., blocks, half R, half)
            reading_grad = (across @ writing).unflatten(-2, reading.shape[-3:-1])
            writing_grad = across.mT @ reading.flatten(-3, -2)
            since_second += (reading_grad * reading).sum(-2)
            until_first += writing_grad * writing
            _seconds(readers_grad, half).addcmul_(reading_grad, _halves(since, half)[1][..., None, :])
            _halves(writers_grad, half)[0].addcmul_(writing_grad, _halves(until, half)[0])
        return readers_grad, writers_grad, of_since


def _sizes(x: Tensor) -> list[int]:
    """Tokens of half a block, in the order of the levels: 1, 2, 4 and so on, of x (..., Q, K)."""
    return [1 << level for level in range(x.shape[-2].bit_length() - 1)]


def _faded(readers: Tensor, writers: Tensor, since: Tensor, until: Tensor, half: int) -> tuple[Tensor, Tensor]:
    """Readers in second halves (..., blocks, half, R, K) and writers in first ones (..., blocks, half, K), faded from
    and until where the halves meet."""
    reading = _seconds(readers, half) * _halves(since, half)[1][..., None, :]
    return reading, _halves(writers, half)[0] * _halves(until, half)[0]


def _seconds(readers: Tensor, half: int) -> Tensor:
    """(..., Q, R, K) -> the second halves of blocks of 2 half tokens, (..., blocks, half, R, K)."""
    return readers.unflatten(-3, (-1, 2, half))[..., 1, :, :, :]


def _across(products: Tensor, half: int) -> Tensor:
    """The elements (..., blocks, half, R, half) of products (..., Q, R, Q) that second halves read of first ones."""
    reading = products.unflatten(-3, (-1, 2, half))[..., 1, :, :, :]  # (..., blocks, half, R, Q)
    both = reading.unflatten(-1, (-1, 2, half))[..., 0, :]  # (..., blocks, half, R, blocks, half)
    return both.diagonal(dim1=-5, dim2=-2).movedim(-1, -4)
