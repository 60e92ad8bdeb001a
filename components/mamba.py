"""The state-space mixers, (B, T, D) -> (B, T, D), called like attention: the state of each layer is all that a token
learns of those before it.

    x ─┬─ z_proj ──────────────────────────────────────────── gate ─┐
       ├─ x_proj ─ convolution ─ silu ─ input ─┐                    │
       ├─ B_proj ─ convolution ─ silu ─ write ─┤                    │
       ├─ C_proj ─ convolution ─ silu ─ read ──┼─ scan (+ D input) ─┴─ norm ─ o_proj       Mamba-2
       └─ dt_proj ─ softplus ─ step ───────────┘

Mamba-1 makes write, read and step from the convolved input instead, and has no norm. The projections are matrices of
their own, like those of attention: ranks can then share them by heads. Hugging Face's Mamba-2 holds them as the rows
of one, in the order z, x, B, C, dt, and the three convolutions, in the order x, B, C, as one.

Shapes: B batch, T tokens, D n_embd, E = mamba_expand D channels, H heads, G groups, N state, K convolution width.
"""

import dataclasses
import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from components import fused_scan  # noqa: F401 (registers the backends of Mamba-2's scan)
from components.state_space import selective_scan, selective_step, ssd_step, wide
from model_components import ResidualProjection, component, register
from model_config import ModelArchitectureConfig

STEPS = (1e-3, 1e-1)  # between which a layer's steps dt lie at first, log-uniformly (Gu and Dao 2023, section 3.6)


@dataclasses.dataclass
class MambaCache:
    """What a layer keeps of the tokens so far, of the same size however many they are. For decoding, without
    gradients: a call with a cache continues from it, by one token or many, and updates it in place."""

    convolution: Tensor  # (B, K - 1, channels), the last tokens as the convolution reads them
    state: Tensor  # Mamba-1: (B, E, N). Mamba-2: (B, H, E/H, N)

    def advance(self, y: Tensor, state: Tensor) -> Tensor:
        """Takes over the state after the tokens whose output y is; returns y."""
        self.state.copy_(state)
        return y


class CausalConvolution(nn.Module):
    """Each channel's last K tokens, weighted and summed, then silu: (B, T, channels) -> (B, T, channels).

    As K shifted multiplications, which for so few are faster than a convolution kernel.
    """

    def __init__(self, channels: int, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels, width))
        self.bias = nn.Parameter(torch.empty(channels))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """As PyTorch's and the reference's: uniform in 1 / sqrt(K) around 0."""
        bound = 1 / math.sqrt(self.weight.shape[1])
        for parameter in (self.weight, self.bias):
            parameter.copy_(torch.empty(parameter.shape).uniform_(-bound, bound))

    def forward(self, x: Tensor, tail: Tensor | None = None) -> Tensor:
        """`tail` (B, K - 1, channels): the tokens before x, replaced by the last ones of x; None: zeros."""
        length, before = x.shape[1], self.weight.shape[1] - 1
        padded = F.pad(x, (0, 0, before, 0)) if tail is None else torch.cat((tail.type_as(x), x), dim=1)
        y = self.bias.type_as(x)
        for shift, weight in enumerate(self.weight.type_as(x).unbind(1)):
            y = torch.addcmul(y, padded[:, shift : shift + length], weight)
        if tail is not None:
            tail.copy_(padded[:, length:])
        return F.silu(y)


class GatedNorm(nn.Module):
    """RMSNorm of y silu(z), in groups of channels, in float32: y, z (B, T, E) -> (B, T, E)."""

    def __init__(self, width: int, groups: int, eps: float):
        super().__init__()
        self.groups, self.eps = groups, eps
        self.weight = nn.Parameter(torch.ones(width))

    @torch.no_grad()
    def reset_parameters(self) -> None:
        self.weight.fill_(1.0)

    def forward(self, y: Tensor, z: Tensor) -> Tensor:
        gated = (wide(y) * F.silu(wide(z))).unflatten(-1, (self.groups, -1))
        normed = F.rms_norm(gated, gated.shape[-1:], eps=self.eps).flatten(-2)
        return (normed * wide(self.weight)).type_as(z)


@register("mixer", "mamba2")
class Mamba2(nn.Module):
    """Dao and Gu 2024, Transformers are SSMs, section 7."""

    def __init__(self, config: ModelArchitectureConfig):
        super().__init__()
        self.head_dim, self.groups = config.mamba_head_dim, config.mamba_n_groups
        self.state_size, self.chunk_size = config.mamba_state_size("mamba2"), config.mamba_chunk_size
        width, written_or_read = config.mamba_width, config.mamba_n_groups * self.state_size
        self.convolved = (width, written_or_read, written_or_read)  # channels of x, B, C
        self.z_proj = nn.Linear(config.n_embd, width, bias=config.bias)
        self.x_proj = nn.Linear(config.n_embd, width, bias=config.bias)
        self.B_proj = nn.Linear(config.n_embd, written_or_read, bias=config.bias)
        self.C_proj = nn.Linear(config.n_embd, written_or_read, bias=config.bias)
        self.dt_proj = nn.Linear(config.n_embd, config.mamba_heads, bias=config.bias)
        self.x_conv, self.B_conv, self.C_conv = (CausalConvolution(n, config.mamba_d_conv) for n in self.convolved)
        self.dt_bias = nn.Parameter(torch.empty(config.mamba_heads))
        self.A_log = nn.Parameter(torch.empty(config.mamba_heads))
        self.D = nn.Parameter(torch.empty(config.mamba_heads))
        self.norm = GatedNorm(width, config.mamba_n_groups, config.norm_eps)
        self.o_proj = ResidualProjection(width, config.n_embd, bias=config.bias)
        self.scan = component("mamba_backend", config.mamba_backend)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """As the reference: -A uniform in 1 to 16."""
        self.dt_bias.copy_(_bias_of_steps(len(self.dt_bias)))
        self.A_log.copy_(torch.empty(len(self.A_log)).uniform_(1, 16).log())
        self.D.fill_(1.0)

    def empty_cache(self, batch: int, room: int = 0) -> MambaCache:
        """Of the same size for any number of tokens, `room`, to come."""
        weight = self.x_conv.weight
        convolution = weight.new_zeros(batch, weight.shape[1] - 1, sum(self.convolved))
        state = wide(weight.new_zeros(batch, len(self.D), self.head_dim, self.state_size))
        return MambaCache(convolution, state)

    def forward(
        self,
        x: Tensor,
        rotation: tuple[Tensor, Tensor] | None = None,
        score_bias: Tensor | None = None,
        cache: MambaCache | None = None,
    ) -> Tensor:
        """The order of the tokens is in the recurrence: rotation and score bias have no part in it."""
        tails = cache.convolution.split(self.convolved, dim=-1) if cache is not None else (None, None, None)
        x_in = self.x_conv(self.x_proj(x), tails[0]).unflatten(-1, (-1, self.head_dim))  # (B, T, H, E/H)
        B = self.B_conv(self.B_proj(x), tails[1]).unflatten(-1, (self.groups, -1))  # (B, T, G, N)
        C = self.C_conv(self.C_proj(x), tails[2]).unflatten(-1, (self.groups, -1))
        dt = F.softplus(wide(self.dt_proj(x)) + wide(self.dt_bias))  # (B, T, H)
        A = -wide(self.A_log).exp()
        if cache is None:
            y, _ = self.scan(x_in, dt, A, B, C, self.chunk_size)
        elif x.shape[1] == 1:
            y, state = ssd_step(x_in[:, 0], dt[:, 0], A, B[:, 0], C[:, 0], cache.state)
            y = cache.advance(y[:, None], state)
        else:
            y = cache.advance(*self.scan(x_in, dt, A, B, C, self.chunk_size, cache.state))
        y = y + wide(self.D)[:, None] * x_in
        return self.o_proj(self.norm(y.flatten(2), self.z_proj(x)))


class StepProjection(nn.Module):
    """From the narrow vector that the steps of all channels come out of: (B, T, rank) -> steps (B, T, E), above 0.

    Not an `nn.Linear`, because it is not initialised like the others.
    """

    def __init__(self, rank: int, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width, rank))
        self.bias = nn.Parameter(torch.empty(width))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """As the reference: uniform in 1 / sqrt(rank) around 0, which keeps the variance."""
        bound = 1 / math.sqrt(self.weight.shape[1])
        self.weight.copy_(torch.empty(self.weight.shape).uniform_(-bound, bound))
        self.bias.copy_(_bias_of_steps(len(self.bias)))

    def forward(self, x: Tensor) -> Tensor:
        return F.softplus(wide(F.linear(x, self.weight)) + wide(self.bias))


@register("mixer", "mamba1")
class Mamba1(nn.Module):
    """Gu and Dao 2023, Mamba, section 3."""

    def __init__(self, config: ModelArchitectureConfig):
        super().__init__()
        width, rank, self.state_size = config.mamba_width, config.mamba_dt_rank, config.mamba_state_size("mamba1")
        self.z_proj = nn.Linear(config.n_embd, width, bias=config.bias)
        self.x_proj = nn.Linear(config.n_embd, width, bias=config.bias)
        self.x_conv = CausalConvolution(width, config.mamba_d_conv)
        self.selection = (rank, self.state_size, self.state_size)  # rows of selection_proj: for the steps, B, C
        self.selection_proj = nn.Linear(width, sum(self.selection), bias=False)
        self.dt_proj = StepProjection(rank, width)
        # (E, N) as one vector: what is no matrix of a linear map is not to be treated like one by the optimizer
        self.A_log = nn.Parameter(torch.empty(width * self.state_size))
        self.D = nn.Parameter(torch.empty(width))
        self.o_proj = ResidualProjection(width, config.n_embd, bias=config.bias)
        self.scan = selective_scan
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """As the reference: every channel decays at the rates 1 to N."""
        self.A_log.view(-1, self.state_size).copy_(torch.arange(1, self.state_size + 1).log())
        self.D.fill_(1.0)

    def empty_cache(self, batch: int, room: int = 0) -> MambaCache:
        """Of the same size for any number of tokens, `room`, to come."""
        channels, width = self.x_conv.weight.shape
        convolution = self.x_conv.weight.new_zeros(batch, width - 1, channels)
        return MambaCache(convolution, wide(self.A_log.new_zeros(batch, channels, self.state_size)))

    def forward(
        self,
        x: Tensor,
        rotation: tuple[Tensor, Tensor] | None = None,
        score_bias: Tensor | None = None,
        cache: MambaCache | None = None,
    ) -> Tensor:
        """The order of the tokens is in the recurrence: rotation and score bias have no part in it."""
        x_in = self.x_conv(self.x_proj(x), cache.convolution if cache is not None else None)  # (B, T, E)
        for_steps, B, C = self.selection_proj(x_in).split(self.selection, dim=-1)  # (B, T, rank), (B, T, N) twice
        dt = self.dt_proj(for_steps)  # (B, T, E)
        A = -wide(self.A_log).exp().view(-1, self.state_size)
        if cache is None:
            y, _ = self.scan(x_in, dt, A, B, C)
        elif x.shape[1] == 1:
            y, state = selective_step(x_in[:, 0], dt[:, 0], A, B[:, 0], C[:, 0], cache.state)
            y = cache.advance(y[:, None], state)
        else:
            y = cache.advance(*self.scan(x_in, dt, A, B, C, cache.state))
        y = (y + self.D.type_as(y) * x_in) * F.silu(self.z_proj(x))
        return self.o_proj(y)


def _bias_of_steps(count: int) -> Tensor:
    """(count,), whose softplus is drawn log-uniformly from STEPS."""
    steps = torch.empty(count).uniform_(math.log(STEPS[0]), math.log(STEPS[1])).exp()
    return steps + torch.log(-torch.expm1(-steps))
