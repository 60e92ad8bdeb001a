"""Mamba (Gu and Dao 2023, section 3), (B, T, D) -> (B, T, D): the state of each layer is all that a token learns of
those before it.

    x ─┬─ z_proj ────────────────────────────────────── silu ─ gate ─┐
       └─ x_proj ─ convolution ─ silu ─┬─ input ─────────────┐       │
                                       └─ selection_proj ─ step, write, read ─ scan (+ D input) ─ o_proj

Shapes: B batch, T tokens, D n_embd, E = mamba_expand D channels, N state, K convolution width.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from components.lora.module import adapted
from components.mixers.mamba1.scan import selective_any_length, selective_scan, selective_step
from components.mixers.recurrent import CausalConvolution, RecurrentCache, bias_of_steps
from components.parts import PartLinear, SummandLinear, added_up, own_part
from components.precision import wide
from components.registry import register_module, spec
from model_config import ModelArchitectureConfig


class StepProjection(nn.Module):
    """From the narrow vector that the steps of all channels come out of: (B, T, rank) -> steps (B, T, E), above 0.

    Not an `nn.Linear`, because it is not initialised like the others.
    """

    takes_adapters = True

    def __init__(self, rank: int, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width, rank))
        self.bias = nn.Parameter(torch.empty(width))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Uniform in 1 / sqrt(rank) around 0, which keeps the variance, as in the reference."""
        bound = 1 / math.sqrt(self.weight.shape[1])
        self.weight.copy_(torch.empty(self.weight.shape).uniform_(-bound, bound))
        self.bias.copy_(bias_of_steps(len(self.bias)))

    def forward(self, x: Tensor) -> Tensor:
        product = adapted(self, x, F.linear(x, own_part(self.weight)))
        return F.softplus(wide(product) + wide(own_part(self.bias)))


@register_module("mixer", "mamba1")
class Mamba1(nn.Module):
    """(B, T, D) -> (B, T, D): every one of E channels has a state of N numbers
    (Gu and Dao 2023, Mamba, section 3).

        u = silu(convolution(x_proj(x)));  step, write, read = split(selection_proj(u));  step = softplus(dt_proj(step))
        state[t] = exp(-exp(A_log) step[t]) state[t - 1] + step[t] u[t] write[t]
        y[t] = o_proj((state[t] read[t] + D u[t]) * silu(z_proj(x[t])))

    Tensor-parallel ranks call it on all tokens, with the parameters of some channels, and add up what is selected from
    these; their outputs are added, too.
    """

    def __init__(self, config: ModelArchitectureConfig):
        super().__init__()
        mixer = spec("mixer", "mamba1")
        width, rank, bias = mixer.width(config), mixer.rank(config), mixer.has_bias(config)
        self.state_size = mixer.state(config)
        self.z_proj = PartLinear(config.n_embd, width, bias=bias)
        self.x_proj = PartLinear(config.n_embd, width, bias=bias)
        self.x_conv = CausalConvolution(width, config.mamba_d_conv, config.mamba_conv_bias)
        self.selection = (rank, self.state_size, self.state_size)  # rows of selection_proj: for the steps, B, C
        self.selection_proj = SummandLinear(width, sum(self.selection), bias=False)
        self.dt_proj = StepProjection(rank, width)
        # (E, N) as one vector: what is no matrix of a linear map is not to be treated like one by the optimizer
        self.A_log = nn.Parameter(torch.empty(width * self.state_size))
        self.D = nn.Parameter(torch.empty(width))
        self.o_proj = SummandLinear(width, config.n_embd, bias=bias)
        self.scan = selective_scan
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Every channel decays at the rates 1 to N, as in the reference."""
        self.A_log.view(-1, self.state_size).copy_(torch.arange(1, self.state_size + 1).log())
        self.D.fill_(1.0)

    def hold_for_any_length(self) -> None:
        """For exporters (components/any_length.py)."""
        self.scan = selective_any_length

    def empty_cache(self, batch: int, room: int = 0) -> RecurrentCache:
        """A cache of the same size for any number of tokens, `room`, to come."""
        weight = own_part(self.x_conv.weight)
        channels, width = weight.shape
        convolution = weight.new_zeros(batch, width - 1, channels)
        return RecurrentCache(convolution, wide(weight.new_zeros(batch, channels, self.state_size)))

    def forward(self, x: Tensor, cache: RecurrentCache | None = None, places: Tensor | None = None) -> Tensor:
        x_in = self.x_conv(self.x_proj(x), cache.convolution if cache is not None else None, places)  # (B, T, E)
        selected = added_up(self.selection_proj(x_in), self.selection_proj.weight)  # of the channels of all ranks
        for_steps, B, C = selected.split(self.selection, dim=-1)  # (B, T, rank), (B, T, N) twice
        dt = self.dt_proj(for_steps)  # (B, T, E)
        A = -wide(own_part(self.A_log)).exp().view(-1, self.state_size)
        if cache is None:
            y, _ = self.scan(x_in, dt, A, B, C, places=places)
        elif x.shape[1] == 1:
            y, state = selective_step(x_in[:, 0], dt[:, 0], A, B[:, 0], C[:, 0], cache.state)
            y = cache.advance(y[:, None], state)
        else:
            y = cache.advance(*self.scan(x_in, dt, A, B, C, cache.state))
        y = (y + own_part(self.D).type_as(y) * x_in) * F.silu(self.z_proj(x))
        return self.o_proj(y)
