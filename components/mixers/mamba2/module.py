"""Mamba-2, (B, T, D) -> (B, T, D): the state of each layer is all that a token learns of those before it.

    x ─┬─ z_proj ──────────────────────────────────────────── gate ─┐
       ├─ x_proj ─ convolution ─ silu ─ input ─┐                    │
       ├─ B_proj ─ convolution ─ silu ─ write ─┤                    │
       ├─ C_proj ─ convolution ─ silu ─ read ──┼─ scan (+ D input) ─┴─ norm ─ o_proj
       └─ dt_proj ─ softplus ─ step ───────────┘

The projections are matrices of their own, like those of attention. Hugging Face's Mamba-2 holds them as the rows of
one, in the order z, x, B, C, dt, and the three convolutions, in the order x, B, C, as one.

Shapes: B batch, T tokens, D n_embd, E = mamba_expand D channels, H heads, G groups, N state, K convolution width.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from components.documents import forgetting
from components.mixers.mamba2 import kernels  # noqa: F401 (registers the backends)
from components.mixers.mamba2.scan import ssd_any_length, ssd_step
from components.mixers.recurrent import CausalConvolution, RecurrentCache, bias_of_steps
from components.parts import PartLinear, SummandLinear, added_up, own_part
from components.precision import wide
from components.registry import module, register_module, spec
from model_config import ModelArchitectureConfig


class GatedNorm(nn.Module):
    """RMSNorm of y silu(z), in groups of channels, in float32: y, z (B, T, E) -> (B, T, E). A rank has the channels
    that it has of the weight; where that is a part of a group, the ranks add up their squares."""

    def __init__(self, width: int, groups: int, eps: float):
        super().__init__()
        self.span, self.eps = width // groups, eps  # channels of a group
        self.weight = nn.Parameter(torch.ones(width))

    @torch.no_grad()
    def reset_parameters(self) -> None:
        self.weight.fill_(1.0)

    def forward(self, y: Tensor, z: Tensor) -> Tensor:
        weight, gated = own_part(self.weight), wide(y) * F.silu(wide(z))
        if len(weight) < self.span:
            squares = added_up(gated.square().sum(-1, keepdim=True), self.weight)  # (B, T, 1), of all ranks
            normed = gated * (squares / self.span + self.eps).rsqrt()
        else:
            normed = F.rms_norm(gated.unflatten(-1, (-1, self.span)), (self.span,), eps=self.eps).flatten(-2)
        return (normed * wide(weight)).type_as(z)


@register_module("mixer", "mamba2")
class Mamba2(nn.Module):
    """(B, T, D) -> (B, T, D): every one of H heads of P channels has a state (P, N), whose decay is one number
    (Dao and Gu 2024, Transformers are SSMs, sections 6 and 7).

        u, write, read = silu(convolution(x_proj(x), B_proj(x), C_proj(x)));  step = softplus(dt_proj(x) + dt_bias)
        state[t] = exp(-exp(A_log) step[t]) state[t - 1] + step[t] u[t] write[t]^T
        y[t] = o_proj(norm((state[t] read[t] + D u[t]) * silu(z_proj(x[t]))))

    Tensor-parallel ranks call it on all tokens, with the parameters of some heads, and with those of their groups, or
    of the one that all are in; their outputs are added (Dao and Gu 2024, section 8.1).
    """

    def __init__(self, config: ModelArchitectureConfig):
        super().__init__()
        mixer = spec("mixer", "mamba2")
        self.head_dim, self.state_size = config.mamba_head_dim, mixer.state(config)
        self.chunk_size = config.mamba_chunk_size
        width, heads, bias = mixer.width(config), mixer.heads(config), mixer.has_bias(config)
        written_or_read = mixer.written_or_read(config)
        self.convolved = (width, written_or_read, written_or_read)  # channels of x, B, C
        self.z_proj = PartLinear(config.n_embd, width, bias=bias)
        self.x_proj = PartLinear(config.n_embd, width, bias=bias)
        self.B_proj = PartLinear(config.n_embd, written_or_read, bias=bias)
        self.C_proj = PartLinear(config.n_embd, written_or_read, bias=bias)
        self.dt_proj = PartLinear(config.n_embd, heads, bias=bias)
        self.x_conv, self.B_conv, self.C_conv = (
            CausalConvolution(channels, config.mamba_d_conv, config.mamba_conv_bias) for channels in self.convolved
        )
        self.dt_bias = nn.Parameter(torch.empty(heads))
        self.A_log = nn.Parameter(torch.empty(heads))
        self.D = nn.Parameter(torch.empty(heads))
        self.norm = GatedNorm(width, config.mamba_n_groups, config.norm_eps)
        self.o_proj = SummandLinear(width, config.n_embd, bias=bias)
        self.scan = module("mamba_backend", config.mamba_backend)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """-A is uniform in 1 to 16, as in the reference."""
        self.dt_bias.copy_(bias_of_steps(len(self.dt_bias)))
        self.A_log.copy_(torch.empty(len(self.A_log)).uniform_(1, 16).log())
        self.D.fill_(1.0)

    def hold_for_any_length(self) -> None:
        """For exporters (components/any_length.py)."""
        self.scan = ssd_any_length

    def empty_cache(self, batch: int, room: int = 0) -> RecurrentCache:
        """A cache of the same size for any number of tokens, `room`, to come."""
        weight = own_part(self.x_conv.weight)
        convolution = weight.new_zeros(batch, weight.shape[1] - 1, sum(self.convolved))
        state = wide(weight.new_zeros(batch, len(own_part(self.D)), self.head_dim, self.state_size))
        return RecurrentCache(convolution, state)

    def forward(self, x: Tensor, cache: RecurrentCache | None = None, places: Tensor | None = None) -> Tensor:
        tails = cache.convolution.split(self.convolved, dim=-1) if cache is not None else (None, None, None)
        x_in = self.x_conv(self.x_proj(x), tails[0], places).unflatten(-1, (-1, self.head_dim))  # (B, T, H, E/H)
        B = self.B_conv(self.B_proj(x), tails[1], places).unflatten(-1, (-1, self.state_size))  # (B, T, G, N)
        C = self.C_conv(self.C_proj(x), tails[2], places).unflatten(-1, (-1, self.state_size))
        dt = F.softplus(wide(self.dt_proj(x)) + wide(own_part(self.dt_bias)))  # (B, T, H)
        entering, decay = x_in * dt[..., None], dt * -wide(own_part(self.A_log)).exp()  # (B, T, H, E/H), (B, T, H)
        decay = forgetting(decay, places)
        if cache is None:
            y, _ = self.scan(entering, decay, B, C, self.chunk_size)
        elif x.shape[1] == 1:
            y, state = ssd_step(entering[:, 0], decay[:, 0], B[:, 0], C[:, 0], cache.state)
            y = cache.advance(y[:, None], state)
        else:
            y = cache.advance(*self.scan(entering, decay, B, C, self.chunk_size, cache.state))
        y = y + wide(own_part(self.D))[:, None] * x_in
        return self.o_proj(self.norm(y.flatten(2), self.z_proj(x)))
