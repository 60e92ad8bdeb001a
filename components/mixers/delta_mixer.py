"""What the delta-rule mixers have in common: projections, convolutions, the rule and its cache."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from components.documents import forgetting
from components.mixers.delta import DeltaRule
from components.mixers.delta_rule import delta_any_length, delta_chunked, delta_step
from components.mixers.recurrent import CausalConvolution, RecurrentCache, bias_of_steps
from components.parts import PartLinear, SummandLinear, own_part
from components.precision import wide


class HeadNorm(nn.Module):
    """RMSNorm of the output of every head, in float32, with one weight for all heads: (B, T, H, V) -> the same."""

    def __init__(self, width: int, eps: float):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))

    @torch.no_grad()
    def reset_parameters(self) -> None:
        self.weight.fill_(1.0)

    def forward(self, y: Tensor) -> Tensor:
        return F.rms_norm(y, y.shape[-1:], wide(own_part(self.weight)), self.eps)


class DeltaMixer(nn.Module):
    """All but what the decays and the gate of the output come from, which a mixer says. Tensor-parallel ranks call it
    on all tokens, with the parameters of some heads; their outputs are added."""

    rates_from: float  # of exp(A_log), which is drawn uniformly from there to 16

    def __init__(self, mixer: DeltaRule, config: Any):
        super().__init__()
        self.key_dim, self.value_dim = mixer.key_dim(config), mixer.value_dim(config)
        self.chunk_size, self.scan = config.linear_chunk_size, delta_chunked
        keys, values, heads = mixer.key_width(config), mixer.value_width(config), mixer.heads(config)
        self.convolved = (keys, keys, values)  # channels of q, k, v
        self.q_proj = PartLinear(config.n_embd, keys, bias=False)
        self.k_proj = PartLinear(config.n_embd, keys, bias=False)
        self.v_proj = PartLinear(config.n_embd, values, bias=False)
        self.b_proj = PartLinear(config.n_embd, heads, bias=False)
        self.q_conv, self.k_conv, self.v_conv = (
            CausalConvolution(channels, config.linear_conv_kernel_dim, bias=False) for channels in self.convolved
        )
        self.dt_bias = nn.Parameter(torch.empty(mixer.decays(config)))
        self.A_log = nn.Parameter(torch.empty(heads))
        self.norm = HeadNorm(self.value_dim, config.norm_eps)
        self.o_proj = SummandLinear(values, config.n_embd, bias=False)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """As in the published code."""
        self.dt_bias.copy_(bias_of_steps(len(self.dt_bias)))
        self.A_log.copy_(torch.empty(len(self.A_log)).uniform_(self.rates_from, 16).log())

    def hold_for_any_length(self) -> None:
        """For exporters (components/any_length.py)."""
        self.scan = delta_any_length

    def empty_cache(self, batch: int, room: int = 0) -> RecurrentCache:
        """A cache of the same size for any number of tokens, `room`, to come."""
        weight = own_part(self.q_conv.weight)
        convolution = weight.new_zeros(batch, weight.shape[1] - 1, sum(self.convolved))
        state = wide(weight.new_zeros(batch, len(own_part(self.A_log)), self.key_dim, self.value_dim))
        return RecurrentCache(convolution, state)

    def forward(self, x: Tensor, cache: RecurrentCache | None = None, places: Tensor | None = None) -> Tensor:
        tails = cache.convolution.split(self.convolved, dim=-1) if cache is not None else (None, None, None)
        q = self.q_conv(self.q_proj(x), tails[0], places).unflatten(-1, (-1, self.key_dim))  # (B, T, G, K)
        k = self.k_conv(self.k_proj(x), tails[1], places).unflatten(-1, (-1, self.key_dim))
        v = self.v_conv(self.v_proj(x), tails[2], places).unflatten(-1, (-1, self.value_dim))  # (B, T, H, V)
        decay, beta = forgetting(self.decay(x), places), wide(self.b_proj(x)).sigmoid()
        if cache is None:
            y, _ = self.scan(q, k, v, decay, beta, self.chunk_size)
        elif x.shape[1] == 1:
            y, state = delta_step(q[:, 0], k[:, 0], v[:, 0], decay[:, 0], beta[:, 0], cache.state)
            y = cache.advance(y[:, None], state)
        else:
            y = cache.advance(*self.scan(q, k, v, decay, beta, self.chunk_size, cache.state))
        gated = self.norm(y).flatten(2) * self.gate(x)  # (B, T, H V)
        return self.o_proj(gated.type_as(v))

    def decay(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, H, 1), or K for 1, below 0, in float32."""
        raise NotImplementedError

    def gate(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, H V), in float32."""
        raise NotImplementedError
