"""The FFN of the first transformer: (B, T, D) -> (B, T, D)."""

from torch import Tensor, nn

from components.registry import module, register_module
from model_config import ModelArchitectureConfig


@register_module("ffn_type", "standard")
class StandardFFN(nn.Module):
    """(B, T, D) -> (B, T, D), of hidden width F
    (Vaswani et al. 2017, Attention Is All You Need, section 3.3).

        y = down_proj(activation(up_proj(x)))
    """

    def __init__(self, config: ModelArchitectureConfig):
        super().__init__()
        self.up_proj = nn.Linear(config.n_embd, config.d_ff, bias=config.bias)
        self.activation = module("activation", config.activation)(config)
        self.down_proj = nn.Linear(config.d_ff, config.n_embd, bias=config.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(self.activation(self.up_proj(x)))
