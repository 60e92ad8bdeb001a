"""The norms: (B, T, D) -> (B, T, D)."""

from torch import nn

from components.registry import register_module
from model_config import ModelArchitectureConfig


@register_module("normalization", "layernorm")
def layernorm(config: ModelArchitectureConfig) -> nn.Module:
    return nn.LayerNorm(config.n_embd, eps=config.norm_eps)


@register_module("normalization", "layernorm_nobias")
def layernorm_nobias(config: ModelArchitectureConfig) -> nn.Module:
    return nn.LayerNorm(config.n_embd, eps=config.norm_eps, bias=False)


@register_module("normalization", "rmsnorm")
def rmsnorm(config: ModelArchitectureConfig) -> nn.Module:
    return nn.RMSNorm(config.n_embd, eps=config.norm_eps)
