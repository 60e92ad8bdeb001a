"""Causal self-attention, and the backends that compute it.

Shapes: B batch, T tokens, S tokens in the cache before them, D n_embd, H query heads, K key-value heads, h head_dim.
"""

import dataclasses
import functools
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from components.mixers.attention.spec import biases, without_positions
from components.norms.module import WideRMSNorm, ZeroCentredRMSNorm
from components.positions.module import rotate
from components.precision import wide
from components.registry import module, register_module
from model_config import ModelArchitectureConfig

# ---------------------------------------------------------------------------------------------------------------------
# Backends: causal attention of q (B, H, T, h) over k (B, K, S + T, h) and v (B, K, S + T, w) -> (B, H, T, w), of every
# query over the last `window` keys, its own included (None: over all). The queries are those of the last T keys.
# `score_bias`, (H or 1, T, S + T) or (B, H or 1, T, S + T), is added to the scores: what is -inf there is not met
# either (None: nothing).


@register_module("attention_backend", "sdpa")
def sdpa(
    q: Tensor, k: Tensor, v: Tensor, score_bias: Tensor | None, dropout: float, window: int | None = None
) -> Tensor:
    """PyTorch's fused kernels."""
    mask, queries, keys = None, q.shape[2], k.shape[2]
    if score_bias is not None or window is not None or 1 < queries < keys:
        bias = score_bias if score_bias is not None else q.new_zeros(1, 1, 1)
        mask = bias.masked_fill(_unseen(queries, keys, q.device, window), -torch.inf).to(q.dtype)
        mask = mask if mask.dim() == 4 else mask[None]  # (B or 1, H or 1, T, S + T): no fused kernel takes three
    causal = mask is None and queries == keys  # one query after a cache meets every key
    width, value_width = q.shape[-1], v.shape[-1]
    q, k, v = (_as_wide_as(max(width, value_width), x) for x in (q, k, v))  # fused kernels take one width
    y = F.scaled_dot_product_attention(
        q, k, v, mask, dropout, causal, scale=1 / math.sqrt(width), enable_gqa=k.shape[1] < q.shape[1]
    )
    return y if y.shape[-1] == value_width else y[..., :value_width]


def _as_wide_as(width: int, x: Tensor) -> Tensor:
    """(..., w) -> (..., width), with zeros behind, which add nothing to a product."""
    return x if x.shape[-1] == width else F.pad(x, (0, width - x.shape[-1]))


@register_module("attention_backend", "manual")
def manual(
    q: Tensor, k: Tensor, v: Tensor, score_bias: Tensor | None, dropout: float, window: int | None = None
) -> Tensor:
    """The readable reference: the formula, with the whole matrix of scores."""
    k, v = _of_each_query_head(k, q), _of_each_query_head(v, q)  # (B, H, S + T, h)
    scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])  # (B, H, T, S + T)
    return _weights(scores, score_bias, dropout, window, v.dtype) @ v


def capped(cap: float) -> Callable[..., Tensor]:
    """The same with scores bounded to +-cap (Gemma Team 2024, Gemma 2), before what is added to them."""

    @functools.wraps(manual)
    def attend(
        q: Tensor, k: Tensor, v: Tensor, score_bias: Tensor | None, dropout: float, window: int | None = None
    ) -> Tensor:
        k, v = _of_each_query_head(k, q), _of_each_query_head(v, q)
        scores = q @ k.transpose(-2, -1) / (math.sqrt(q.shape[-1]) * cap)
        return _weights(cap * scores.tanh(), score_bias, dropout, window, v.dtype) @ v

    return attend


def _of_each_query_head(x: Tensor, q: Tensor) -> Tensor:
    """(B, K, S, h) -> (B, H, S, h): several query heads share a key-value head."""
    return x.repeat_interleave(q.shape[1] // x.shape[1], dim=1)


def _weights(
    scores: Tensor, score_bias: Tensor | None, dropout: float, window: int | None, dtype: torch.dtype
) -> Tensor:
    """(B, H, T, S + T) scores -> what each key's value counts, of those that a query may see."""
    if score_bias is not None:
        scores = scores + score_bias
    queries, keys = scores.shape[-2:]
    scores = scores.masked_fill(_unseen(queries, keys, scores.device, window), -torch.inf)
    return F.dropout(wide(scores).softmax(dim=-1).to(dtype), dropout)


def _unseen(queries: int, keys: int, device: torch.device, window: int | None) -> Tensor:
    """(T, S + T), true where a key lies after its query, or before its window."""
    everything, before = torch.ones(queries, keys, dtype=torch.bool, device=device), keys - queries
    future = everything.triu(before + 1)
    return future if window is None else future | everything.tril(before - window)


# ---------------------------------------------------------------------------------------------------------------------
# The mixers


@dataclasses.dataclass
class AttentionCache:
    """What an attention keeps of the tokens so far (components/caches.py): their keys, turned already, and values.
    Where the room is less than the tokens, which is so within a window only, the last ones are kept."""

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


@register_module("mixer", "attention")
class Attention(nn.Module):
    """Multi-head (K = H), grouped-query (Ainslie et al. 2023) and multi-query (K = 1) causal self-attention."""

    window: int | None = None

    def __init__(self, config: ModelArchitectureConfig):
        super().__init__()
        self.head_dim = config.head_dim
        width, kv_width = config.n_head * config.head_dim, config.kv_heads * config.head_dim
        of_inputs, of_output = biases(config)
        self.q_proj = nn.Linear(config.n_embd, width, bias=of_inputs)
        self.k_proj = nn.Linear(config.n_embd, kv_width, bias=of_inputs)
        self.v_proj = nn.Linear(config.n_embd, kv_width, bias=of_inputs)
        self.qk_norm = config.qk_norm
        if config.qk_norm:
            widths = (width, kv_width) if config.qk_norm == "width" else (config.head_dim, config.head_dim)
            is_centred = config.component("normalization").is_zero_centred
            norm = ZeroCentredRMSNorm if is_centred else WideRMSNorm
            self.q_norm, self.k_norm = (norm(size, eps=config.norm_eps) for size in widths)
        self.o_proj = nn.Linear(width, config.n_embd, bias=of_output)
        self.attend = module("attention_backend", config.attention_backend)
        if config.attn_logit_softcapping is not None:
            self.attend = capped(config.attn_logit_softcapping)
        self.shared = module("position_encoding", config.position_encoding).shared(config, config.head_dim)
        self.dropout, self.multiplier = config.dropout, config.attention_multiplier

    def empty_cache(self, batch: int, room: int) -> AttentionCache:
        """A cache for that many tokens; within a window, for those that the next query meets besides its own."""
        room = room if self.window is None else min(room, self.window - 1)
        heads = self.k_proj.weight.shape[0] // self.head_dim
        keys = self.k_proj.weight.new_zeros(batch, heads, room, self.head_dim)
        return AttentionCache(keys, torch.zeros_like(keys))

    def forward(
        self,
        x: Tensor,
        rotation: tuple[Tensor, Tensor] | None = None,
        score_bias: Tensor | None = None,
        hidden: Tensor | None = None,
        cache: AttentionCache | None = None,
    ) -> Tensor:
        q, k, v = self.q_proj(x), self.k_proj(x), self.v_proj(x)  # (B, T, H h), (B, T, K h) twice
        if self.qk_norm == "width":
            q, k = self.q_norm(q), self.k_norm(k)
        q, k, v = (y.unflatten(-1, (-1, self.head_dim)) for y in (q, k, v))
        if self.qk_norm is True:
            q, k = self.q_norm(q), self.k_norm(k)
        q, k, v = (y.transpose(1, 2) for y in (q, k, v))  # (B, H, T, h), (B, K, T, h) twice
        if rotation is not None:
            q, k = rotate(q, rotation), rotate(k, rotation)
        if cache is not None:
            k, v = cache.extend(k, v)
            score_bias = None if score_bias is None else score_bias[..., -k.shape[2] :]  # of the keys that are left
        if hidden is not None:
            score_bias = q.new_zeros(1, 1, 1) if score_bias is None else score_bias
            score_bias = score_bias.masked_fill(hidden, -torch.inf)  # (B, H or 1, T, S + T)
        dropout = self.dropout if self.training else 0.0
        if self.multiplier is not None:  # in place of the 1 / sqrt(h) that backends multiply by
            q = q * (self.multiplier * math.sqrt(self.head_dim))
        y = self.attend(q, k, v, score_bias, dropout, self.window)
        return self.o_proj(y.transpose(1, 2).flatten(2))


@register_module("mixer", "sliding_attention")
class SlidingAttention(Attention):
    """Every token attends to the last attention_window tokens (Beltagy et al. 2020, Longformer, section 3.1)."""

    def __init__(self, config: ModelArchitectureConfig):
        super().__init__(config)
        self.window = config.attention_window


@register_module("mixer", "unplaced_attention")
class UnplacedAttention(Attention):
    def __init__(self, config: ModelArchitectureConfig):
        super().__init__(without_positions(config))
