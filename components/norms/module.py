"""The norms: (B, T, D) -> (B, T, D)."""

from torch import Tensor, nn
from torch.nn import functional as F

from components.precision import wide
from components.registry import register_module
from model_config import ModelArchitectureConfig


@register_module("normalization", "layernorm")
def layernorm(config: ModelArchitectureConfig) -> nn.Module:
    """(B, T, D) -> (B, T, D), with the mean and the variance of each token's D numbers (Ba et al. 2016, Layer
    Normalization).

        y = weight (x - mean(x)) / sqrt(var(x) + norm_eps) + bias
    """
    return nn.LayerNorm(config.n_embd, eps=config.norm_eps)


@register_module("normalization", "layernorm_nobias")
def layernorm_nobias(config: ModelArchitectureConfig) -> nn.Module:
    """(B, T, D) -> (B, T, D), LayerNorm without its bias, as PaLM has none
    (Chowdhery et al. 2022, section 2).

        y = weight (x - mean(x)) / sqrt(var(x) + norm_eps)
    """
    return nn.LayerNorm(config.n_embd, eps=config.norm_eps, bias=False)


@register_module("normalization", "rmsnorm")
def rmsnorm(config: ModelArchitectureConfig) -> nn.Module:
    """(B, T, D) -> (B, T, D)
    (Zhang and Sennrich 2019, Root Mean Square Layer Normalization, equation 4).

        y = weight x / sqrt(mean(x^2) + norm_eps)
    """
    return nn.RMSNorm(config.n_embd, eps=config.norm_eps)


class WideRMSNorm(nn.RMSNorm):
    """(..., n) in float32 whatever the dtype of what it is given and of its weight; the output is in that dtype."""

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(wide(x), self.normalized_shape, self.factor(), self.eps).type_as(x)

    def factor(self) -> Tensor:
        return wide(self.weight)


class ZeroCentredRMSNorm(WideRMSNorm):
    def reset_parameters(self) -> None:
        nn.init.zeros_(self.weight)

    def factor(self) -> Tensor:
        return 1 + wide(self.weight)


@register_module("normalization", "rmsnorm_zero_centred")
def rmsnorm_zero_centred(config: ModelArchitectureConfig) -> nn.Module:
    """(B, T, D) -> (B, T, D), RMSNorm whose weights are what they add to 1, so that decaying one pulls it to 1 (Gemma
    Team 2024, Gemma, in its code).

        y = (1 + weight) x / sqrt(mean(x^2) + norm_eps)
    """
    return ZeroCentredRMSNorm(config.n_embd, eps=config.norm_eps)
