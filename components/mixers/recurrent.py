"""What the recurrent mixers have in common: their cache, and the convolution before a scan or a rule."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from components.context import Context
from components.parts import own_part

STEPS = (1e-3, 1e-1)  # between which a layer's steps dt lie at first, log-uniformly (Gu and Dao 2023, section 3.6)


@dataclasses.dataclass
class RecurrentCache:
    """What a layer keeps of the tokens so far (components/caches.py), of the same size however many they are."""

    convolution: Tensor  # (B, K - 1, channels), the last tokens as the convolution reads them
    state: Tensor  # Mamba-1: (B, E, N). Mamba-2: (B, H, E/H, N)

    def advance(self, y: Tensor, state: Tensor) -> Tensor:
        """Takes over the state after the tokens whose output y is; returns y."""
        self.state.copy_(state)
        return y


class CausalConvolution(nn.Module):
    """Each channel's last K tokens, weighted and summed, then the activation, if any: (B, T, channels) -> (B, T,
    channels).

    As K shifted multiplications, which for so few are faster than a convolution kernel. A rank convolves the channels
    that it has of the weight.
    """

    context: Context | None = None

    def __init__(
        self,
        channels: int,
        width: int,
        bias: bool = True,
        activation: Callable[[Tensor], Tensor] | None = F.silu,
    ):
        super().__init__()
        self.activation = activation
        self.weight = nn.Parameter(torch.empty(channels, width))
        self.bias = nn.Parameter(torch.empty(channels)) if bias else None
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Uniform in 1 / sqrt(K) around 0, like PyTorch's and the reference's."""
        bound = 1 / math.sqrt(self.weight.shape[1])
        for parameter in (self.weight, self.bias):
            if parameter is not None:
                parameter.copy_(torch.empty(parameter.shape).uniform_(-bound, bound))

    def forward(self, x: Tensor, tail: Tensor | None = None, places: Tensor | None = None) -> Tensor:
        """`tail` (B, K - 1, channels): the tokens before x, replaced by the last ones of x; None: zeros. `places`
        (B, T), of each token in its document: it sees none before that (None: all are of one)."""
        length, before = x.shape[1], self.weight.shape[1] - 1
        if tail is not None:
            padded = torch.cat((tail, x), dim=1).type_as(x)  # a cast of the tail may be itself, which exporters lose
        else:
            seen = x if self.context is None else torch.cat((self.context.before(x, 1, before + 1), x), dim=1)
            padded = F.pad(seen, (0, 0, before + length - seen.shape[1], 0))
        bias = x.new_zeros(()) if self.bias is None else own_part(self.bias).type_as(x)
        y = _Shifted.apply(padded, own_part(self.weight).type_as(x), bias, places)
        if tail is not None:
            tail.copy_(padded[:, length:])
        return y if self.activation is None else self.activation(y)


class _Shifted(torch.autograd.Function):
    """padded (B, K - 1 + T, channels), weight (channels, K), bias (channels) or (), places (B, T) or None ->
    (B, T, channels). Its gradients are summed up in place, in autograd's order, which would write one of the whole
    input for every shift."""

    @staticmethod
    def forward(ctx: Any, padded: Tensor, weight: Tensor, bias: Tensor, places: Tensor | None) -> Tensor:
        ctx.save_for_backward(padded, weight, places)
        before = weight.shape[1] - 1
        length = padded.shape[1] - before
        y = bias.expand(padded.shape[0], length, padded.shape[2]).clone()
        for shift in range(weight.shape[1]):
            y.addcmul_(_of_same_document(padded[:, shift : shift + length], places, before - shift), weight[:, shift])
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        padded, weight, places = ctx.saved_tensors
        padded_grad, weight_grad, before = torch.zeros_like(padded), torch.empty_like(weight), weight.shape[1] - 1
        for shift in reversed(range(weight.shape[1])):
            seen, own = slice(shift, shift + gradient.shape[1]), _of_same_document(gradient, places, before - shift)
            padded_grad[:, seen].add_(own * weight[:, shift])
            weight_grad[:, shift] = (own * padded[:, seen]).sum((0, 1))
        bias_grad = gradient.sum((0, 1)) if ctx.needs_input_grad[2] else None
        return padded_grad, weight_grad, bias_grad, None


def _of_same_document(values: Tensor, places: Tensor | None, distance: int) -> Tensor:
    """(B, T, channels), 0 for tokens whose document began fewer than `distance` tokens before."""
    return values if places is None or not distance else values * (places >= distance)[..., None]


def bias_of_steps(count: int) -> Tensor:
    """(count,), whose softplus is drawn log-uniformly from STEPS."""
    steps = torch.empty(count).uniform_(math.log(STEPS[0]), math.log(STEPS[1])).exp()
    return steps + torch.log(-torch.expm1(-steps))
