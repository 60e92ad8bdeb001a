"""The gated short convolution, (B, T, D) -> (B, T, D).

    x ─┬─ B_proj ─┐
       ├─ x_proj ─ * ─ convolution ─┐
       └─ C_proj ───────────────────* ─ o_proj

Shapes: B batch, T tokens, D n_embd, K tokens that the convolution sees.
"""

import dataclasses

from torch import Tensor, nn

from components.mixers.recurrent import CausalConvolution
from components.parts import PartLinear, SummandLinear
from components.registry import register_module
from model_config import ModelArchitectureConfig


@dataclasses.dataclass
class ConvolutionCache:
    """What a layer keeps of the tokens so far (components/caches.py), of the same size however many they are."""

    convolution: Tensor  # (B, K - 1, D), the last tokens as the convolution reads them


@register_module("mixer", "short_convolution")
class ShortConvolution(nn.Module):
    """(B, T, D) -> (B, T, D): every channel sees its last K tokens, and what it sees and gives is weighted by what the
    token is (Liquid AI 2025, LFM2 Technical Report, section 2.1).

        y = o_proj(C_proj(x) * convolution(B_proj(x) * x_proj(x)))

    Tensor-parallel ranks call it on all tokens, with the parameters of some channels; their outputs are added.
    """

    def __init__(self, config: ModelArchitectureConfig):
        super().__init__()
        width, bias = config.n_embd, config.short_conv_bias
        self.B_proj, self.C_proj, self.x_proj = (PartLinear(width, width, bias=bias) for _ in range(3))
        self.conv = CausalConvolution(width, config.short_conv_kernel_dim, bias, activation=None)
        self.o_proj = SummandLinear(width, width, bias=bias)

    def empty_cache(self, batch: int, room: int = 0) -> ConvolutionCache:
        """A cache of the same size for any number of tokens, `room`, to come."""
        channels, width = self.conv.weight.shape
        return ConvolutionCache(self.conv.weight.new_zeros(batch, width - 1, channels))

    def forward(self, x: Tensor, cache: ConvolutionCache | None = None, places: Tensor | None = None) -> Tensor:
        tail = None if cache is None else cache.convolution
        seen = self.conv(self.B_proj(x) * self.x_proj(x), tail, places)
        return self.o_proj(self.C_proj(x) * seen)
