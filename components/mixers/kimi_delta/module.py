"""Kimi delta attention as a layer, (B, T, D) -> (B, T, D): its state is all that a token learns of those before it.

    x ─┬─ q_proj ─ convolution ─ silu ─ unit vector ─ read ────┐
       ├─ k_proj ─ convolution ─ silu ─ unit vector ─ address ─┤
       ├─ v_proj ─ convolution ─ silu ─ value ─────────────────┼─ delta rule ─ norm ─┬─ o_proj
       ├─ b_proj ─ sigmoid ─ how far it corrects ──────────────┤                     │
       ├─ f_a_proj ─ f_b_proj ─ softplus ─ step ─ decays ──────┘                     │
       └─ g_a_proj ─ g_b_proj ─ sigmoid ─ gate ──────────────────────────────────────┘

The convolutions are three; Hugging Face's Kimi Linear holds them as one, in the order q, k, v.

Shapes: B batch, T tokens, D n_embd, H heads, K and V the widths of their keys and values.
"""

from torch import Tensor
from torch.nn import functional as F

from components.mixers.delta_mixer import DeltaMixer
from components.parts import PartLinear, own_part
from components.precision import wide
from components.registry import register_module, spec
from model_config import ModelArchitectureConfig


@register_module("mixer", "kimi_delta")
class KimiDelta(DeltaMixer):
    """(B, T, D) -> (B, T, D): every one of H heads has a state (K, V), of which each of K channels decays by itself,
    and which every token corrects where its key reads it (Kimi Team 2025, Kimi Linear, sections 3 and 4).

        q, k, v = silu(convolution(q_proj(x), k_proj(x), v_proj(x)));  q, k = q / |q| / sqrt(K), k / |k|
        beta = sigmoid(b_proj(x));  decay = -exp(A_log) softplus(f_b_proj(f_a_proj(x)) + dt_bias)
        faded = diag(exp(decay[t])) state[t - 1]
        state[t] = faded + k[t] (beta[t] (v[t] - k[t] faded))^T
        y[t] = o_proj(norm(q[t] state[t]) * sigmoid(g_b_proj(g_a_proj(x[t]))))
    """

    rates_from = 1.0

    def __init__(self, config: ModelArchitectureConfig):
        mixer = spec("mixer", "kimi_delta")
        super().__init__(mixer, config)
        rank = mixer.value_dim(config)
        self.f_a_proj = PartLinear(config.n_embd, rank, bias=False)
        self.f_b_proj = PartLinear(rank, mixer.decays(config), bias=False)
        self.g_a_proj = PartLinear(config.n_embd, rank, bias=False)
        self.g_b_proj = PartLinear(rank, mixer.value_width(config), bias=False)
        self.reset_parameters()

    def decay(self, x: Tensor) -> Tensor:
        step = F.softplus(wide(self.f_b_proj(self.f_a_proj(x))) + wide(own_part(self.dt_bias)))  # (B, T, H K)
        return step.unflatten(-1, (-1, self.key_dim)) * -wide(own_part(self.A_log)).exp()[:, None]

    def gate(self, x: Tensor) -> Tensor:
        return wide(self.g_b_proj(self.g_a_proj(x))).sigmoid()
