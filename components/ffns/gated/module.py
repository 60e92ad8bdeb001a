"""Gated FFNs: (B, T, D) -> (B, T, D)."""

from torch import Tensor, nn

from components.registry import module, register_module
from model_config import ModelArchitectureConfig


@register_module("ffn_type", "swiglu", "geglu", "geglu_tanh")
class GatedFFN(nn.Module):
    """Shazeer 2020, GLU Variants Improve Transformer: the activation of the gate multiplies the other half."""

    def __init__(self, config: ModelArchitectureConfig):
        super().__init__()
        self.gate_proj = nn.Linear(config.n_embd, config.d_ff, bias=config.bias)
        self.up_proj = nn.Linear(config.n_embd, config.d_ff, bias=config.bias)
        self.activation = module("activation", config.activation)(config)
        self.down_proj = nn.Linear(config.d_ff, config.n_embd, bias=config.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(self.activation(self.gate_proj(x)) * self.up_proj(x))
