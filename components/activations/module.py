"""The activations, elementwise."""

import torch
from torch import Tensor, nn

from components.registry import register_module
from model_config import ModelArchitectureConfig


@register_module("activation", "gelu")
def gelu(config: ModelArchitectureConfig) -> nn.Module:
    return nn.GELU()


@register_module("activation", "gelu_tanh")
def gelu_tanh(config: ModelArchitectureConfig) -> nn.Module:
    """The approximation that GPT-2 was trained with."""
    return nn.GELU(approximate="tanh")


@register_module("activation", "quick_gelu")
class QuickGELU(nn.Module):
    """Hendrycks and Gimpel 2016, Gaussian Error Linear Units, section 2: another approximation."""

    def __init__(self, config: ModelArchitectureConfig):
        super().__init__()

    def forward(self, x: Tensor) -> Tensor:
        return quick_gelu(x)


def quick_gelu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(1.702 * x)


@register_module("activation", "silu")
def silu(config: ModelArchitectureConfig) -> nn.Module:
    return nn.SiLU()


@register_module("activation", "relu")
def relu(config: ModelArchitectureConfig) -> nn.Module:
    return nn.ReLU()


@register_module("activation", "relu_squared")
class ReLUSquared(nn.Module):
    """So et al. 2021, Primer."""

    def __init__(self, config: ModelArchitectureConfig):
        super().__init__()

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x).square()


@register_module("activation", "leaky_relu")
def leaky_relu(config: ModelArchitectureConfig) -> nn.Module:
    return nn.LeakyReLU()
