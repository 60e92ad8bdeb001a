"""The registry: every interchangeable part of a model, under its kind (a configuration key) and name.

To add a part, write the module, register it, and write its cost in flops_parameter_counting/component_costs.py.
A config file can do the same without touching the repository: `register(kind, name, cost=...)`.

Shapes: B batch, T tokens, D n_embd, H query heads, K key-value heads, h head dimension, F d_ff.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from errors import UserError, did_you_mean
from flops_parameter_counting.component_costs import CostFunction, register_cost
from model_config import ModelArchitectureConfig

_REGISTRY: dict[str, dict[str, Any]] = {}


def register(kind: str, *names: str, cost: CostFunction | None = None) -> Callable[[Any], Any]:
    """Decorate a component. `cost` is for components outside the repository; the built-in ones have theirs already.

    A component is called with the ModelArchitectureConfig and returns the module, except a backend of attention,
    which is the function itself.
    """

    def store(component: Any) -> Any:
        if cost is not None:
            register_cost(kind, *names)(cost)
        for name in names:
            _REGISTRY.setdefault(kind, {})[name] = component
        return component

    return store


def component(kind: str, name: str) -> Any:
    """What is registered. Raises UserError for an unknown name."""
    if name not in _REGISTRY[kind]:
        names = list(_REGISTRY[kind])
        raise UserError(f"{kind}={name!r} is none of: {', '.join(names)}{did_you_mean(name, names)}")
    return _REGISTRY[kind][name]


def registered() -> dict[str, list[str]]:
    """The names under every kind."""
    return {kind: list(names) for kind, names in _REGISTRY.items()}


class ResidualProjection(nn.Linear):
    """A linear layer that writes into the residual stream: initialised smaller, by the root of their number."""


# Norms: (B, T, D) -> (B, T, D)


@register("normalization", "layernorm")
def layernorm(config: ModelArchitectureConfig) -> nn.Module:
    return nn.LayerNorm(config.n_embd, eps=config.norm_eps)


@register("normalization", "layernorm_nobias")
def layernorm_nobias(config: ModelArchitectureConfig) -> nn.Module:
    return nn.LayerNorm(config.n_embd, eps=config.norm_eps, bias=False)


@register("normalization", "rmsnorm")
def rmsnorm(config: ModelArchitectureConfig) -> nn.Module:
    """Zhang and Sennrich 2019, Root Mean Square Layer Normalization."""
    return nn.RMSNorm(config.n_embd, eps=config.norm_eps)


# Activations: elementwise


@register("activation", "gelu")
def gelu(config: ModelArchitectureConfig) -> nn.Module:
    return nn.GELU()


@register("activation", "gelu_tanh")
def gelu_tanh(config: ModelArchitectureConfig) -> nn.Module:
    """The approximation that GPT-2 was trained with."""
    return nn.GELU(approximate="tanh")


@register("activation", "silu")
def silu(config: ModelArchitectureConfig) -> nn.Module:
    return nn.SiLU()


@register("activation", "relu")
def relu(config: ModelArchitectureConfig) -> nn.Module:
    return nn.ReLU()


@register("activation", "relu_squared")
class ReLUSquared(nn.Module):
    """So et al. 2021, Primer."""

    def __init__(self, config: ModelArchitectureConfig):
        super().__init__()

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x).square()


@register("activation", "leaky_relu")
def leaky_relu(config: ModelArchitectureConfig) -> nn.Module:
    return nn.LeakyReLU()


# Position encodings. One instance serves the whole model; each acts in one of three places.


@register("position_encoding", "none")
class NoPosition(nn.Module):
    """No encoding: only the causal mask tells the order. The others override one of the three methods."""

    def __init__(self, config: ModelArchitectureConfig):
        super().__init__()

    def embed(self, x: Tensor) -> Tensor:
        """(B, T, D) token embeddings -> (B, T, D)."""
        return x

    def rotation(self, length: int, device: torch.device) -> tuple[Tensor, Tensor] | None:
        """Cosines and sines (T, h/2) that turn queries and keys."""
        return None

    def score_bias(self, length: int, device: torch.device) -> Tensor | None:
        """(H, T, T), added to the attention scores."""
        return None


@register("position_encoding", "learned_absolute")
class LearnedAbsolutePosition(NoPosition):
    def __init__(self, config: ModelArchitectureConfig):
        super().__init__(config)
        self.embedding = nn.Embedding(config.block_size, config.n_embd)

    def embed(self, x: Tensor) -> Tensor:
        return x + self.embedding(torch.arange(x.shape[1], device=x.device))


@register("position_encoding", "rope")
class RotaryPosition(NoPosition):
    """Su et al. 2021, RoFormer; halves are paired (i with i + h/2), as in Hugging Face's weights."""

    def __init__(self, config: ModelArchitectureConfig):
        super().__init__(config)
        self.head_dim, self.theta, self.scaling = config.head_dim, config.rope_theta, config.rope_scaling

    def frequencies(self, device: torch.device) -> Tensor:
        """(h/2,) radians per token."""
        exponents = torch.arange(0, self.head_dim, 2, device=device, dtype=torch.float32) / self.head_dim
        frequencies = 1.0 / self.theta**exponents
        if self.scaling is None:
            return frequencies
        if self.scaling["rope_type"] == "linear":
            return frequencies / self.scaling["factor"]
        return _llama3_frequencies(frequencies, self.scaling)

    def rotation(self, length: int, device: torch.device) -> tuple[Tensor, Tensor]:
        positions = torch.arange(length, device=device, dtype=torch.float32)
        angles = torch.outer(positions, self.frequencies(device))  # (T, h/2)
        return angles.cos(), angles.sin()


def _llama3_frequencies(frequencies: Tensor, scaling: dict) -> Tensor:
    """Llama 3.1: long wavelengths are divided by `factor`, short ones kept, those between blended."""
    turns = scaling["original_max_position_embeddings"] * frequencies / (2 * math.pi)  # in the original context
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    kept = ((turns - low) / (high - low)).clamp(0, 1)
    return frequencies * (kept + (1 - kept) / scaling["factor"])


@register("position_encoding", "alibi")
class ALiBi(NoPosition):
    """Press et al. 2021, Train Short, Test Long: scores fall linearly with distance, at a slope of each head's own."""

    def __init__(self, config: ModelArchitectureConfig):
        super().__init__(config)
        self.n_head = config.n_head

    def slopes(self, device: torch.device) -> Tensor:
        """(H,): a geometric series; heads beyond a power of two take every other slope of the next one's series."""
        power = 2 ** math.floor(math.log2(self.n_head))
        slopes = [2 ** (-8 * (i + 1) / power) for i in range(power)]
        slopes += [2 ** (-4 * (i + 1) / power) for i in range(0, 2 * (self.n_head - power), 2)]
        return torch.tensor(slopes, device=device)

    def score_bias(self, length: int, device: torch.device) -> Tensor:
        positions = torch.arange(length, device=device)
        distance = (positions[None, :] - positions[:, None]).clamp(max=0)  # (T, T), key minus query
        return self.slopes(device)[:, None, None] * distance


def rotate(x: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    """Turn queries or keys (B, heads, T, h) by their positions' angles, in float32."""
    cos, sin = rotation
    first, second = x.float().chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).type_as(x)


# Attention backends: causal attention of q (B, H, T, h) over k, v (B, K, T, h) -> (B, H, T, h)


@register("attention_backend", "sdpa")
def sdpa(q: Tensor, k: Tensor, v: Tensor, score_bias: Tensor | None, dropout: float) -> Tensor:
    """PyTorch's fused kernels."""
    mask = None
    if score_bias is not None:
        mask = score_bias.masked_fill(_future(q.shape[2], q.device), -torch.inf).to(q.dtype)
        mask = mask[None]  # (1, H, T, T): with three dimensions no fused kernel takes it
    return F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, dropout_p=dropout, is_causal=mask is None, enable_gqa=k.shape[1] < q.shape[1]
    )


@register("attention_backend", "manual")
def manual(q: Tensor, k: Tensor, v: Tensor, score_bias: Tensor | None, dropout: float) -> Tensor:
    """The readable reference: the formula, with the whole (T, T) matrix of scores."""
    shared_by = q.shape[1] // k.shape[1]  # query heads that share one key-value head
    k, v = k.repeat_interleave(shared_by, dim=1), v.repeat_interleave(shared_by, dim=1)  # (B, H, T, h)
    scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])  # (B, H, T, T)
    if score_bias is not None:
        scores = scores + score_bias
    scores = scores.masked_fill(_future(q.shape[2], q.device), -torch.inf)
    weights = F.dropout(scores.float().softmax(dim=-1).type_as(v), dropout)
    return weights @ v


def _future(length: int, device: torch.device) -> Tensor:
    """(T, T), true where a key lies after its query."""
    return torch.ones(length, length, dtype=torch.bool, device=device).triu(1)


# Mixers: what moves information between positions, (B, T, D) -> (B, T, D)


@register("mixer", "attention")
class Attention(nn.Module):
    """Multi-head (K = H), grouped-query (Ainslie et al. 2023) and multi-query (K = 1) causal self-attention."""

    def __init__(self, config: ModelArchitectureConfig):
        super().__init__()
        self.head_dim = config.head_dim
        width, kv_width = config.n_head * config.head_dim, config.kv_heads * config.head_dim
        self.q_proj = nn.Linear(config.n_embd, width, bias=config.bias)
        self.k_proj = nn.Linear(config.n_embd, kv_width, bias=config.bias)
        self.v_proj = nn.Linear(config.n_embd, kv_width, bias=config.bias)
        self.o_proj = ResidualProjection(width, config.n_embd, bias=config.bias)
        self.attend = component("attention_backend", config.attention_backend)
        self.dropout = config.dropout

    def forward(self, x: Tensor, rotation: tuple[Tensor, Tensor] | None, score_bias: Tensor | None) -> Tensor:
        heads = (*x.shape[:2], -1, self.head_dim)
        q = self.q_proj(x).view(heads).transpose(1, 2)  # (B, H, T, h)
        k = self.k_proj(x).view(heads).transpose(1, 2)  # (B, K, T, h)
        v = self.v_proj(x).view(heads).transpose(1, 2)
        if rotation is not None:
            q, k = rotate(q, rotation), rotate(k, rotation)
        dropout = self.dropout if self.training else 0.0
        y = self.attend(q, k, v, score_bias, dropout)
        return self.o_proj(y.transpose(1, 2).flatten(2))


# Feed-forward networks: (B, T, D) -> (B, T, D)


@register("ffn_type", "standard")
class StandardFFN(nn.Module):
    def __init__(self, config: ModelArchitectureConfig):
        super().__init__()
        self.up_proj = nn.Linear(config.n_embd, config.d_ff or 0, bias=config.bias)
        self.activation = component("activation", config.activation or "gelu")(config)
        self.down_proj = ResidualProjection(config.d_ff or 0, config.n_embd, bias=config.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(self.activation(self.up_proj(x)))


@register("ffn_type", "swiglu", "geglu")
class GatedFFN(nn.Module):
    """Shazeer 2020, GLU Variants Improve Transformer: the activation of the gate multiplies the other half."""

    def __init__(self, config: ModelArchitectureConfig):
        super().__init__()
        self.gate_proj = nn.Linear(config.n_embd, config.d_ff or 0, bias=config.bias)
        self.up_proj = nn.Linear(config.n_embd, config.d_ff or 0, bias=config.bias)
        self.activation = component("activation", config.activation or "silu")(config)
        self.down_proj = ResidualProjection(config.d_ff or 0, config.n_embd, bias=config.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(self.activation(self.gate_proj(x)) * self.up_proj(x))
