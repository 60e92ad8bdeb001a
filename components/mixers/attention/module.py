"""Causal self-attention, and the backends that compute it.

Shapes: B batch, T tokens, S tokens in the cache before them, D n_embd, H query heads, K key-value heads, h head_dim.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from components.any_length import masked_attention
from components.context import Context
from components.mixers.attention.spec import biases, blocks, without_positions
from components.norms.module import WideRMSNorm, ZeroCentredRMSNorm
from components.positions.module import rotate
from components.precision import wide
from components.registry import module, register_module
from model_config import ModelArchitectureConfig

# ---------------------------------------------------------------------------------------------------------------------
# Backends: causal attention of q (B, H, T, h) over k (B, K, S + T, h) and v (B, K, S + T, w) -> (B, H, T, w), of every
# query over the last `window` keys, its own included (None: over all). The queries are those of the last T keys.
# `score_bias`, (H or 1, T, S + T) or (B, H or 1, T, S + T), is added to the scores: what is -inf there is not met
# either (None: nothing). For backends that have sinks it may have a further column, of scores of no key: they take part
# in the softmax only.


@register_module("attention_backend", "sdpa")
def sdpa(
    q: Tensor, k: Tensor, v: Tensor, score_bias: Tensor | None, dropout: float, window: int | None = None
) -> Tensor:
    """q (B, H, T, h), k and v (B, K, S + T, h) -> (B, H, T, h), by PyTorch's fused kernels, which never hold the scores
    as a whole (Dao et al. 2022, FlashAttention).

        softmax(q k^T / sqrt(h) + mask) v
    """
    queries, keys, width, value_width = q.shape[2], k.shape[2], q.shape[-1], v.shape[-1]
    q, k, v = (_as_wide_as(max(width, value_width), x) for x in (q, k, v))  # fused kernels take one width
    fused = functools.partial(
        F.scaled_dot_product_attention,
        dropout_p=dropout, scale=1 / math.sqrt(width), enable_gqa=k.shape[1] < q.shape[1],
    )  # fmt: skip
    if score_bias is None and window is None and not 1 < queries < keys:
        y = fused(q, k, v, is_causal=queries == keys)  # one query after a cache meets every key
    else:
        bias = score_bias if score_bias is not None else q.new_zeros(1, 1, 1)
        bias = bias if bias.dim() == 4 else bias[None]  # (B or 1, H or 1, T, S + T): no fused kernel takes three
        bias = bias.expand(*bias.shape[:2], queries, keys)
        unseen = _unseen(queries, keys, q.device, window)
        of_blocks = []
        for own, met in blocks(queries, keys, window, dropout):
            mask = bias[..., own, met].masked_fill(unseen[own, met], -torch.inf).to(q.dtype)
            of_blocks.append(fused(q[:, :, own], k[:, :, met], v[:, :, met], mask))
        y = of_blocks[0] if len(of_blocks) == 1 else torch.cat(of_blocks, dim=2)
    return y if y.shape[-1] == value_width else y[..., :value_width]


def _as_wide_as(width: int, x: Tensor) -> Tensor:
    """(..., w) -> (..., width), with zeros behind, which add nothing to a product."""
    return x if x.shape[-1] == width else F.pad(x, (0, width - x.shape[-1]))


@register_module("attention_backend", "manual")
def manual(
    q: Tensor, k: Tensor, v: Tensor, score_bias: Tensor | None, dropout: float, window: int | None = None
) -> Tensor:
    """q (B, H, T, h), k and v (B, K, S + T, h) -> (B, H, T, h). The readable reference: the formula
    (Vaswani et al. 2017, equation 1), with the whole matrix of scores (B, H, T, S + T).

        softmax(q k^T / sqrt(h) + mask) v
    """
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
    queries, keys = scores.shape[-2:]
    if score_bias is not None:
        scores = scores + score_bias[..., :keys]
    scores = wide(scores.masked_fill(_unseen(queries, keys, scores.device, window), -torch.inf))
    if score_bias is not None and score_bias.shape[-1] > keys:
        scores = torch.cat((scores, score_bias[..., keys:].expand(*scores.shape[:-1], 1)), dim=-1)
    return F.dropout(scores.softmax(dim=-1)[..., :keys].to(dtype), dropout)


def with_sinks(score_bias: Tensor | None, sinks: Tensor, keys: int) -> Tensor:
    """A bias of scores, or none, with the column of sinks (H,): (H, 1, S + T + 1), or as the bias is beside it."""
    column = sinks[:, None, None]
    if score_bias is None:
        return F.pad(column, (keys, 0))
    shape = (*score_bias.shape[:-3], len(sinks), *score_bias.shape[-2:])
    return torch.cat((score_bias.expand(shape), column.expand(*shape[:-1], 1)), dim=-1)


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


@dataclasses.dataclass
class GrowingCache:
    """The same of an attention that holds for any length, in tensors alone. A window is in the mask: all are kept."""

    grows: ClassVar[int] = 2  # the dimension of tokens

    key: Tensor  # (B, K, S, h)
    value: Tensor

    def extend(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        self.key, self.value = torch.cat((self.key, k), dim=2), torch.cat((self.value, v), dim=2)
        return self.key, self.value


class Numbers(nn.Module):
    """() -> (n,) learned numbers, all of which start at `initial`. Of a module of their own ranks may have a part."""

    def __init__(self, count: int, initial: float):
        super().__init__()
        self.weight, self.initial = nn.Parameter(torch.empty(count)), initial

    def reset_parameters(self) -> None:
        nn.init.constant_(self.weight, self.initial)

    def forward(self) -> Tensor:
        return self.weight


@register_module("mixer", "attention")
class Attention(nn.Module):
    """(B, T, D) -> (B, T, D): multi-head (K = H; Vaswani et al. 2017, Attention Is All You Need, section 3.2),
    grouped-query (Ainslie et al. 2023) and multi-query (K = 1; Shazeer 2019) causal self-attention.

        q, k, v = q_proj(x), k_proj(x), v_proj(x)        q (B, H, T, h); k, v (B, K, T, h)
        y = o_proj(softmax(q k^T / sqrt(h) + mask) v)

    Sinks are gpt-oss's (OpenAI 2025): a learned score of no key for each head. At 0, where they start, they are the 1
    in the denominator of Miller 2023, Attention Is Off By One; transformers draws them from a normal of 0.02. Output
    gates are G1 of Qiu et al. 2025, Gated Attention for Large Language Models. A value residual is that of Zhou et al.
    2024, Value Residual Learning, in the form of modded-nanogpt: one weight a layer, which starts at the paper's fixed
    1/2, in the first layer too, where it mixes values with themselves and changes nothing.
    """

    window: int | None = None
    context: Context | None = None
    has_any_length = False

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
        self.gate_proj = self.sinks = self.value_weight = None
        if config.attention_output_gate is not None:
            gates = config.n_head if config.attention_output_gate == "head" else width
            self.gate_proj = nn.Linear(config.n_embd, gates, bias=of_inputs)
        if config.attention_sinks:
            self.sinks = Numbers(config.n_head, 0.0)
        if config.value_residual:
            self.value_weight = Numbers(1, 0.5)
        self.hands_on = ("value_residual",) if config.value_residual else ()
        self.attend = module("attention_backend", config.attention_backend)
        if config.attn_logit_softcapping is not None:
            self.attend = capped(config.attn_logit_softcapping)
        self.shared = module("position_encoding", config.position_encoding).shared(config, config.head_dim)
        self.dropout, self.multiplier = config.dropout, config.attention_multiplier

    def hold_for_any_length(self) -> None:
        """For exporters (components/any_length.py). A cap and sinks want the formula, which does as it is."""
        if self.attend is sdpa:
            self.attend = masked_attention
        self.has_any_length = True

    def empty_cache(self, batch: int, room: int) -> AttentionCache | GrowingCache:
        """A cache for that many tokens; within a window, for those that the next query meets besides its own."""
        room = room if self.window is None else min(room, self.window - 1)
        heads = self.k_proj.weight.shape[0] // self.head_dim
        if self.has_any_length:
            none = self.k_proj.weight.new_zeros(batch, heads, 0, self.head_dim)
            return GrowingCache(none, none)
        keys = self.k_proj.weight.new_zeros(batch, heads, room, self.head_dim)
        return AttentionCache(keys, torch.zeros_like(keys))

    def forward(
        self,
        x: Tensor,
        rotation: tuple[Tensor, Tensor] | None = None,
        score_bias: Tensor | None = None,
        hidden: Tensor | None = None,
        cache: AttentionCache | GrowingCache | None = None,
        value_residual: Tensor | None = None,
    ) -> Any:
        """(B, T, D), and from the first of the layers with a value residual its values (B, T, K h), for the others."""
        q, k, v = self.q_proj(x), self.k_proj(x), self.v_proj(x)  # (B, T, H h), (B, T, K h) twice
        if self.qk_norm == "width":
            q, k = self.q_norm(q), self.k_norm(k)
        handed = {}
        if self.value_weight is not None:
            if value_residual is None:
                handed["value_residual"] = value_residual = v
            v = v.lerp(value_residual, self.value_weight().type_as(v))
        q, k, v = (y.unflatten(-1, (-1, self.head_dim)) for y in (q, k, v))
        if self.qk_norm is True:
            q, k = self.q_norm(q), self.k_norm(k)
        q, k, v = (y.transpose(1, 2) for y in (q, k, v))  # (B, H, T, h), (B, K, T, h) twice
        if rotation is not None:
            q, k = rotate(q, rotation), rotate(k, rotation)
        if cache is not None:
            k, v = cache.extend(k, v)
        elif self.context is not None:
            k, v = self._with_those_before(k, v, self.context)
        keys = k.shape[2]  # that are left, within a window
        score_bias = None if score_bias is None else score_bias[..., -keys:]
        if hidden is not None:
            score_bias = q.new_zeros(1, 1, 1) if score_bias is None else score_bias
            score_bias = score_bias.masked_fill(hidden[..., -keys:], -torch.inf)  # (B, H or 1, T, S + T)
        if self.sinks is not None:
            score_bias = with_sinks(score_bias, self.sinks(), keys)
        dropout = self.dropout if self.training else 0.0
        if self.multiplier is not None:  # in place of the 1 / sqrt(h) that backends multiply by
            q = q * (self.multiplier * math.sqrt(self.head_dim))
        y = self.attend(q, k, v, score_bias, dropout, self.window).transpose(1, 2)  # (B, T, H, h)
        if self.gate_proj is not None:
            y = y * self.gate_proj(x).sigmoid().unflatten(-1, (y.shape[2], -1))  # (B, T, H, 1 or h)
        y = self.o_proj(y.flatten(2))
        return (y, handed) if handed else y

    def _with_those_before(self, k: Tensor, v: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        """Keys and values (B, K, T, h) after those that other ranks have of the tokens before: (B, K, S + T, h)."""
        both = torch.cat((k, v), dim=-1)
        both = torch.cat((context.before(both, 2, self.window), both), dim=2)
        k, v = both.split(self.head_dim, dim=-1)
        return k, v


@register_module("mixer", "sliding_attention")
class SlidingAttention(Attention):
    """(B, T, D) -> (B, T, D): attention in which a query meets the last attention_window keys, its own included
    (Beltagy et al. 2020, Longformer, section 3.1).

        mask[query, key] = 0 where 0 <= query - key < attention_window, else -inf
    """

    def __init__(self, config: ModelArchitectureConfig):
        super().__init__(config)
        self.window = config.attention_window


@register_module("mixer", "unplaced_attention")
class UnplacedAttention(Attention):
    """(B, T, D) -> (B, T, D): attention that the position encoding neither rotates nor biases, beside layers where it
    does (Kazemnejad et al. 2023, The Impact of Positional Encoding on Length Generalization; Yang et al. 2025, Rope to
    Nope and Back Again).

        mask[query, key] = 0 where key <= query, else -inf
    """

    def __init__(self, config: ModelArchitectureConfig):
        super().__init__(without_positions(config))
