"""The registry: every interchangeable part of a model, under its kind (a configuration key) and name.

To add a part, write the module, register it, and write its cost in flops_parameter_counting/costs/component_costs.py.
A config file can do the same without touching the repository: `register(kind, name, cost=...)`.

Shapes: B batch, T tokens, D n_embd, H query heads, K key-value heads, h head dimension, F d_ff.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from common.errors import UserError, did_you_mean
from components.state_space import wide
from flops_parameter_counting.costs.component_costs import CostFunction, register_cost
from model_config import ModelArchitectureConfig

_REGISTRY: dict[str, dict[str, Any]] = {}


def register(kind: str, *names: str, cost: CostFunction | None = None) -> Callable[[Any], Any]:
    """Decorate a component. `cost` is for components outside the repository; the built-in ones have theirs already.

    A component is called with the ModelArchitectureConfig and returns the module, except the backends of
    attention and of Mamba-2, which are the functions themselves.
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
    """No encoding: only the causal mask tells the order. The others override one of the three methods.

    `start` is the position of the first token: what stands before it, S = start tokens, is in the caches.
    """

    def __init__(self, config: ModelArchitectureConfig):
        super().__init__()

    def embed(self, x: Tensor, start: int = 0) -> Tensor:
        """(B, T, D) token embeddings -> (B, T, D)."""
        return x

    def rotation(self, length: int, device: torch.device, start: int = 0) -> tuple[Tensor, Tensor] | None:
        """Cosines and sines (T, h/2) that turn queries and keys."""
        return None

    def score_bias(self, length: int, device: torch.device, start: int = 0) -> Tensor | None:
        """(H, T, S + T), added to the attention scores."""
        return None


@register("position_encoding", "learned_absolute")
class LearnedAbsolutePosition(NoPosition):
    def __init__(self, config: ModelArchitectureConfig):
        super().__init__(config)
        self.embedding = nn.Embedding(config.block_size, config.n_embd)

    def embed(self, x: Tensor, start: int = 0) -> Tensor:
        return x + self.embedding(torch.arange(start, start + x.shape[1], device=x.device))


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

    def rotation(self, length: int, device: torch.device, start: int = 0) -> tuple[Tensor, Tensor]:
        positions = torch.arange(start, start + length, device=device, dtype=torch.float32)
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

    def score_bias(self, length: int, device: torch.device, start: int = 0) -> Tensor:
        positions = torch.arange(start + length, device=device)
        distance = (positions[None, :] - positions[start:, None]).clamp(max=0)  # (T, S + T), key minus query
        return self.slopes(device)[:, None, None] * distance


def rotate(x: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    """Turn queries or keys (B, heads, T, h) by their positions' angles, in float32 (float64 for float64)."""
    cos, sin = rotation
    first, second = wide(x).chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).type_as(x)


# Attention backends: causal attention of q (B, H, T, h) over k, v (B, K, S + T, h) -> (B, H, T, h), of every query over
# the last `window` keys, its own included (None: over all). The queries are those of the last T keys; S is 0 without
# a cache.


@register("attention_backend", "sdpa")
def sdpa(
    q: Tensor, k: Tensor, v: Tensor, score_bias: Tensor | None, dropout: float, window: int | None = None
) -> Tensor:
    """PyTorch's fused kernels."""
    mask, queries, keys = None, q.shape[2], k.shape[2]
    if score_bias is not None or window is not None or 1 < queries < keys:
        bias = score_bias if score_bias is not None else q.new_zeros(1, 1, 1)
        mask = bias.masked_fill(_unseen(queries, keys, q.device, window), -torch.inf).to(q.dtype)
        mask = mask.expand(1, -1, -1, -1)  # (1, H or 1, T, S + T): with three dimensions no fused kernel takes it
    causal = mask is None and queries == keys  # one query after a cache meets every key
    return F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, dropout_p=dropout, is_causal=causal, enable_gqa=k.shape[1] < q.shape[1]
    )


@register("attention_backend", "manual")
def manual(
    q: Tensor, k: Tensor, v: Tensor, score_bias: Tensor | None, dropout: float, window: int | None = None
) -> Tensor:
    """The readable reference: the formula, with the whole matrix of scores."""
    shared_by = q.shape[1] // k.shape[1]  # query heads that share one key-value head
    k, v = k.repeat_interleave(shared_by, dim=1), v.repeat_interleave(shared_by, dim=1)  # (B, H, S + T, h)
    scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])  # (B, H, T, S + T)
    if score_bias is not None:
        scores = scores + score_bias
    scores = scores.masked_fill(_unseen(q.shape[2], k.shape[2], q.device, window), -torch.inf)
    weights = F.dropout(wide(scores).softmax(dim=-1).type_as(v), dropout)
    return weights @ v


def _unseen(queries: int, keys: int, device: torch.device, window: int | None) -> Tensor:
    """(T, S + T), true where a key lies after its query, or before its window."""
    everything, before = torch.ones(queries, keys, dtype=torch.bool, device=device), keys - queries
    future = everything.triu(before + 1)
    return future if window is None else future | everything.tril(before - window)


# Mixers: what moves information between positions, (B, T, D) -> (B, T, D). A call with a cache continues from the
# tokens that the cache has seen, by one token or many, and updates it in place.


@dataclasses.dataclass
class AttentionCache:
    """What an attention keeps of the tokens so far: their keys, turned already, and values; for decoding, without
    gradients. Where the room is less than the tokens, which is so within a window only, the last ones are kept."""

    keys: Tensor  # (B, K, room, h), of which the first `length` are there
    values: Tensor
    length: int = 0

    def extend(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Takes in those of the next tokens (B, K, T, h); returns all (B, K, S + T, h) that their queries may meet."""
        room, length = self.keys.shape[2], self.length + k.shape[2]
        if length <= room:
            self.keys[:, :, self.length : length] = k
            self.values[:, :, self.length : length] = v
            self.length = length
            return self.keys[:, :, :length].type_as(k), self.values[:, :, :length].type_as(v)
        k = torch.cat((self.keys[:, :, : self.length].type_as(k), k), dim=2)
        v = torch.cat((self.values[:, :, : self.length].type_as(v), v), dim=2)
        self.keys.copy_(k[:, :, length - room :])
        self.values.copy_(v[:, :, length - room :])
        self.length = room
        return k, v


@register("mixer", "attention")
class Attention(nn.Module):
    """Multi-head (K = H), grouped-query (Ainslie et al. 2023) and multi-query (K = 1) causal self-attention."""

    window: int | None = None

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

    def empty_cache(self, batch: int, room: int) -> AttentionCache:
        """With room for that many tokens; within a window, for those that the next query meets besides its own."""
        room = room if self.window is None else min(room, self.window - 1)
        heads = self.k_proj.weight.shape[0] // self.head_dim
        keys = self.k_proj.weight.new_zeros(batch, heads, room, self.head_dim)
        return AttentionCache(keys, torch.zeros_like(keys))

    def forward(
        self,
        x: Tensor,
        rotation: tuple[Tensor, Tensor] | None,
        score_bias: Tensor | None,
        cache: AttentionCache | None = None,
    ) -> Tensor:
        heads = (*x.shape[:2], -1, self.head_dim)
        q = self.q_proj(x).view(heads).transpose(1, 2)  # (B, H, T, h)
        k = self.k_proj(x).view(heads).transpose(1, 2)  # (B, K, T, h)
        v = self.v_proj(x).view(heads).transpose(1, 2)
        if rotation is not None:
            q, k = rotate(q, rotation), rotate(k, rotation)
        if cache is not None:
            k, v = cache.extend(k, v)
            score_bias = None if score_bias is None else score_bias[..., -k.shape[2] :]  # of the keys that are left
        dropout = self.dropout if self.training else 0.0
        y = self.attend(q, k, v, score_bias, dropout, self.window)
        return self.o_proj(y.transpose(1, 2).flatten(2))


@register("mixer", "sliding_attention")
class SlidingAttention(Attention):
    """Of every token over the last attention_window tokens (Beltagy et al. 2020, Longformer, section 3.1)."""

    def __init__(self, config: ModelArchitectureConfig):
        super().__init__(config)
        self.window = config.attention_window


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


# The state-space mixers register themselves; here at the end, because they need what stands above.
from components import mamba  # noqa: E402, F401
