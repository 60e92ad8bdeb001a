"""The activations, elementwise."""

import torch
from torch import Tensor, nn

from components.registry import register_module
from model_config import ModelArchitectureConfig


@register_module("activation", "gelu")
def gelu(config: ModelArchitectureConfig) -> nn.Module:
    """(..., F) -> (..., F), with P the standard normal distribution (Hendrycks and Gimpel 2016, Gaussian Error Linear
    Units).

        y = x P(X <= x) = x (1 + erf(x / sqrt(2))) / 2
    """
    return nn.GELU()


@register_module("activation", "gelu_tanh")
def gelu_tanh(config: ModelArchitectureConfig) -> nn.Module:
    """(..., F) -> (..., F). The approximation of GELU that GPT-2 was trained with (Hendrycks and Gimpel 2016, Gaussian
    Error Linear Units, section 2).

        y = x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) / 2
    """
    return nn.GELU(approximate="tanh")


@register_module("activation", "quick_gelu")
class QuickGELU(nn.Module):
    """(..., F) -> (..., F). Another approximation of GELU (Hendrycks and Gimpel 2016, Gaussian Error Linear Units,
    section 2).

        y = x sigmoid(1.702 x)
    """

    def __init__(self, config: ModelArchitectureConfig):
        super().__init__()

    def forward(self, x: Tensor) -> Tensor:
        return quick_gelu(x)


def quick_gelu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(1.702 * x)


@register_module("activation", "silu")
def silu(config: ModelArchitectureConfig) -> nn.Module:
    """(..., F) -> (..., F) (Hendrycks and Gimpel 2016, Gaussian Error Linear Units, section 5; Elfwing et al. 2017,
    Sigmoid-Weighted Linear Units; Swish of Ramachandran et al. 2017 with its factor 1).

        y = x sigmoid(x)
    """
    return nn.SiLU()


@register_module("activation", "relu")
def relu(config: ModelArchitectureConfig) -> nn.Module:
    """(..., F) -> (..., F)
    (Nair and Hinton 2010, Rectified Linear Units).

        y = max(x, 0)
    """
    return nn.ReLU()


@register_module("activation", "relu_squared")
class ReLUSquared(nn.Module):
    """(..., F) -> (..., F)
    (So et al. 2021, Primer).

        y = max(x, 0)^2
    """

    def __init__(self, config: ModelArchitectureConfig):
        super().__init__()

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x).square()


@register_module("activation", "leaky_relu")
def leaky_relu(config: ModelArchitectureConfig) -> nn.Module:
    """(..., F) -> (..., F)
    (Maas et al. 2013, Rectifier Nonlinearities Improve Neural Network Acoustic Models).

        y = max(x, 0) + 0.01 min(x, 0)
    """
    return nn.LeakyReLU()
