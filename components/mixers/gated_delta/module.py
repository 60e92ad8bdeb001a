"""The gated delta rule as a layer, (B, T, D) -> (B, T, D): its state is all that a token learns of those before it.

    x ─┬─ q_proj ─ convolution ─ silu ─ unit vector ─ read ────┐
       ├─ k_proj ─ convolution ─ silu ─ unit vector ─ address ─┤
       ├─ v_proj ─ convolution ─ silu ─ value ─────────────────┼─ delta rule ─ norm ─┬─ o_proj
       ├─ b_proj ─ sigmoid ─ how far it corrects ──────────────┤                     │
       ├─ a_proj ─ softplus ─ step ─ decay ────────────────────┘                     │
       └─ z_proj ─ silu ─ gate ──────────────────────────────────────────────────────┘

The projections are matrices of their own, like those of attention. Qwen3-Next holds them as the rows of two: q, k, v
and z of each key head after one another, and b and a; and the three convolutions as one.

Shapes: B batch, T tokens, D n_embd, G key heads, H value heads, K and V the widths of their keys and values.
"""

from torch import Tensor
from torch.nn import functional as F

from components.mixers.delta_mixer import DeltaMixer
from components.parts import PartLinear, own_part
from components.precision import wide
from components.registry import register_module, spec
from model_config import ModelArchitectureConfig


@register_module("mixer", "gated_delta")
class GatedDelta(DeltaMixer):
    """(B, T, D) -> (B, T, D): every one of H heads has a state (K, V), which decays, and which every token corrects
    where its key reads it (Yang, Kautz and Hatamizadeh 2024, Gated Delta Networks, sections 3.1 and 3.4). Each of G
    heads of queries and keys serves H / G neighbours.

        q, k, v = silu(convolution(q_proj(x), k_proj(x), v_proj(x)));  q, k = q / |q| / sqrt(K), k / |k|
        beta = sigmoid(b_proj(x));  decay = -exp(A_log) softplus(a_proj(x) + dt_bias)
        faded = exp(decay[t]) state[t - 1]
        state[t] = faded + k[t] (beta[t] (v[t] - k[t] faded))^T
        y[t] = o_proj(norm(q[t] state[t]) * silu(z_proj(x[t])))
    """

    rates_from = 0.01  # not 0, whose logarithm is none

    def __init__(self, config: ModelArchitectureConfig):
        mixer = spec("mixer", "gated_delta")
        super().__init__(mixer, config)
        self.z_proj = PartLinear(config.n_embd, mixer.value_width(config), bias=False)
        self.a_proj = PartLinear(config.n_embd, mixer.heads(config), bias=False)
        self.reset_parameters()

    def decay(self, x: Tensor) -> Tensor:
        step = F.softplus(wide(self.a_proj(x)) + wide(own_part(self.dt_bias)))  # (B, T, H)
        return (step * -wide(own_part(self.A_log)).exp())[..., None]

    def gate(self, x: Tensor) -> Tensor:
        return F.silu(wide(self.z_proj(x)))
