"""Gated FFNs: (B, T, D) -> (B, T, D)."""

from collections.abc import Callable

from torch import Tensor, nn

from components.registry import module, register_module
from model_config import ModelArchitectureConfig


@register_module("ffn_type", "swiglu", "geglu", "geglu_tanh")
class GatedFFN(nn.Module):
    """(B, T, D) -> (B, T, D), of hidden width F: what the activation makes of the gate multiplies the other half
    (Shazeer 2020, GLU Variants Improve Transformer, equation 6).

        y = down_proj(activation(gate_proj(x)) * up_proj(x))

    The activation is silu of swiglu, gelu of geglu, and gelu_tanh of geglu_tanh.
    """

    def __init__(self, config: ModelArchitectureConfig):
        super().__init__()
        self.gate_proj = nn.Linear(config.n_embd, config.d_ff, bias=config.bias)
        self.up_proj = nn.Linear(config.n_embd, config.d_ff, bias=config.bias)
        self.activation = module("activation", config.activation)(config)
        self.down_proj = nn.Linear(config.d_ff, config.n_embd, bias=config.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(self.gated(self.gate_proj(x), self.up_proj(x)))

    def gated(self, gate: Tensor, up: Tensor) -> Tensor:
        """Elementwise, (..., F)."""
        return self.activation(gate) * up


@register_module("ffn_type", "swiglu_clamped")
class ClampedSwiGLU(GatedFFN):
    """(B, T, D) -> (B, T, D), of hidden width F: gpt-oss's
    (OpenAI 2025), which has it in experts; L is swiglu_limit.

        gate, up = min(gate_proj(x), L), min(max(up_proj(x), -L), L)
        y = down_proj((up + 1) * gate * sigmoid(1.702 gate))
    """

    def __init__(self, config: ModelArchitectureConfig):
        super().__init__(config)
        self.limit = config.swiglu_limit

    def gated(self, gate: Tensor, up: Tensor) -> Tensor:
        return clamped_swiglu(gate, up, self.limit, self.activation)


def clamped_swiglu(gate: Tensor, up: Tensor, limit: float, activation: Callable[[Tensor], Tensor]) -> Tensor:
    """gpt-oss's (OpenAI 2025), elementwise: (up + 1) activation(gate), with gate at most `limit` and up within +-limit;
    its activation is quick_gelu."""
    return (up.clamp(-limit, limit) + 1) * activation(gate.clamp(max=limit))
