"""Latent attention (DeepSeek-AI 2024, DeepSeek-V2, section 2.1).

Shapes: B batch, T tokens, S tokens of the text so far with them, D n_embd, H heads; l kv_lora_rank, r qk_rope_head_dim,
p qk_nope_head_dim, w v_head_dim. A head's queries and keys are r + p wide, what is rotated first.

    training    x -> latent (l) and turned (r) -> keys (H, r + p), values (H, w) of every token; a backend of attention
    decoding    the cache has latent and turned alone; see `LatentAttention.continued`
"""

import dataclasses
from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor, nn

from components.any_length import masked_attention
from components.context import Context
from components.lora.module import matrix_of
from components.mixers.attention.spec import biases
from components.mixers.latent_attention.spec import flops_of_queries, score_factor
from components.norms.module import WideRMSNorm, ZeroCentredRMSNorm
from components.positions.module import rotate
from components.precision import wide
from components.registry import module, register_module
from model_config import ModelArchitectureConfig

NORM_EPS = 1e-6  # DeepSeek's, of the norms of latent vectors, whatever the others have
BLOCK_NUMBERS = 2**24  # scores, or expanded keys and values, that are there at once while a text is continued


@dataclasses.dataclass
class LatentCache:
    """What latent attention keeps of the tokens so far (components/caches.py)."""

    latents: Tensor  # (B, room, l + r), normalized, and the shared key, turned; the first `length` are there
    length: int = 0

    def extend(self, latent: Tensor, turned: Tensor) -> Tensor:
        """Takes in those of the next tokens (B, T, l), (B, T, r); returns all (B, S, l + r)."""
        length = self.length + latent.shape[1]
        self.latents[:, self.length : length] = torch.cat((latent, turned), dim=-1)
        self.length = length
        return self.latents[:, :length].type_as(latent)


@dataclasses.dataclass
class GrowingLatents:
    """The same of one that holds for any length."""

    grows: ClassVar[int] = 1  # the dimension of tokens

    latents: Tensor  # (B, S, l + r)

    def extend(self, latent: Tensor, turned: Tensor) -> Tensor:
        self.latents = torch.cat((self.latents, torch.cat((latent, turned), dim=-1)), dim=1)
        return self.latents


@register_module("mixer", "latent_attention")
class LatentAttention(nn.Module):
    """(B, T, D) -> (B, T, D): causal attention of H heads whose keys and values come out of one latent vector a token,
    beside a rotated key that all heads share (DeepSeek-AI 2024, DeepSeek-V2, section 2.1, equations 9 to 19). Queries
    may come out of a latent vector of their own (q_lora_rank).

        latent, turned = split(kv_a_proj(x))             (B, T, l), (B, T, r)
        k, v = split(kv_b_proj(norm(latent)))            (B, H, T, p), (B, H, T, w)
        q = q_proj(x), or q_b_proj(norm(q_a_proj(x)))    (B, H, T, r + p)
        y = o_proj(softmax(q [rotate(turned), k]^T / sqrt(r + p) + mask) v)
    """

    context: Context | None = None
    has_any_length = False

    def __init__(self, config: ModelArchitectureConfig):
        super().__init__()
        self.config = config
        self.width = config.qk_rope_head_dim + config.qk_nope_head_dim
        latent, queries, values = config.kv_lora_rank, config.n_head * self.width, config.n_head * config.v_head_dim
        of_latent, of_output = biases(config)
        norm = ZeroCentredRMSNorm if config.component("normalization").is_zero_centred else WideRMSNorm
        if config.q_lora_rank is None:
            self.q_proj = nn.Linear(config.n_embd, queries, bias=False)
        else:
            self.q_a_proj = nn.Linear(config.n_embd, config.q_lora_rank, bias=of_latent)
            self.q_a_norm = norm(config.q_lora_rank, eps=NORM_EPS)
            self.q_b_proj = nn.Linear(config.q_lora_rank, queries, bias=False)
        self.kv_a_proj = nn.Linear(config.n_embd, latent + config.qk_rope_head_dim, bias=of_latent)
        self.kv_a_norm = norm(latent, eps=NORM_EPS)
        self.kv_b_proj = nn.Linear(latent, config.n_head * config.qk_nope_head_dim + values, bias=False)
        self.o_proj = nn.Linear(values, config.n_embd, bias=of_output)
        self.attend = module("attention_backend", config.attention_backend)
        self.shared = module("position_encoding", config.position_encoding).shared(config, config.qk_rope_head_dim)
        self.factor = score_factor(config)

    def hold_for_any_length(self) -> None:
        """For exporters (components/any_length.py)."""
        self.attend, self.has_any_length = masked_attention, True

    def empty_cache(self, batch: int, room: int) -> LatentCache | GrowingLatents:
        weight = self.kv_a_proj.weight
        if self.has_any_length:
            return GrowingLatents(weight.new_zeros(batch, 0, weight.shape[0]))
        return LatentCache(weight.new_zeros(batch, room, weight.shape[0]))

    def forward(
        self,
        x: Tensor,
        rotation: tuple[Tensor, Tensor] | None = None,
        score_bias: Tensor | None = None,
        hidden: Tensor | None = None,
        cache: LatentCache | GrowingLatents | None = None,
    ) -> Tensor:
        q = self.q_proj(x) if self.config.q_lora_rank is None else self.q_b_proj(self.q_a_norm(self.q_a_proj(x)))
        q = q.unflatten(-1, (-1, self.width)).transpose(1, 2)  # (B, H, T, r + p)
        latent, turned = self.kv_a_proj(x).split((self.config.kv_lora_rank, self.config.qk_rope_head_dim), dim=-1)
        latent, turned = self.kv_a_norm(latent), turned[:, None]  # (B, T, l), (B, 1, T, r)
        if rotation is not None:
            q, turned = rotate(q, rotation), rotate(turned, rotation)
        if self.factor != 1:
            q = q * self.factor
        if cache is not None:
            y = self.continued(q, cache.extend(latent, turned[:, 0]), score_bias)
        else:
            if self.context is not None:
                latent, turned = self._with_those_before(latent, turned, self.context)
            if hidden is not None:
                score_bias = q.new_zeros(1, 1, 1) if score_bias is None else score_bias
                score_bias = score_bias.masked_fill(hidden, -torch.inf)  # (B, H or 1, T, T)
            k, v = self.expanded(latent, turned)
            y = self.attend(q, k, v, score_bias, self.config.dropout if self.training else 0.0)
        return self.o_proj(y.transpose(1, 2).flatten(2))

    def _with_those_before(self, latent: Tensor, turned: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        """(B, T, l), (B, 1, T, r) after those that other ranks have of the tokens before: (B, S, l), (B, 1, S, r)."""
        both = torch.cat((latent, turned[:, 0]), dim=-1)
        both = torch.cat((context.before(both, 1), both), dim=1)
        latent, turned = both.split((self.config.kv_lora_rank, self.config.qk_rope_head_dim), dim=-1)
        return latent, turned[:, None]

    def expanded(self, latent: Tensor, turned: Tensor) -> tuple[Tensor, Tensor]:
        """(B, S, l), (B, 1, S, r) -> keys (B, H, S, r + p), values (B, H, S, w)."""
        parts = (self.config.qk_nope_head_dim, self.config.v_head_dim)
        both = self.kv_b_proj(latent).unflatten(-1, (-1, sum(parts))).transpose(1, 2)  # (B, H, S, p + w)
        k, v = both.split(parts, dim=-1)
        return torch.cat((turned.expand(-1, k.shape[1], -1, -1), k), dim=-1), v

    def continued(self, q: Tensor, latents: Tensor, score_bias: Tensor | None) -> Tensor:
        """Queries (B, H, T, r + p) of the last T of S tokens, whose cache is (B, S, l + r) -> (B, H, T, w).

        What expands latent vectors into keys and values may as well be multiplied into queries and outputs
        ("absorbed"): of the two is done what takes fewer FLOPs. Latent vectors are expanded block by block, never all
        at once.
        """
        if self.has_any_length:
            return self.attend(q, *self._expanded_block(latents), score_bias, 0.0)
        latent, values, queries = self.config.kv_lora_rank, self.config.v_head_dim, q.shape[2]
        q = q * self.width**-0.5
        absorbed, expanded = flops_of_queries(self.config, queries, latents.shape[1])
        if expanded < absorbed:
            block = _tokens_at_once(q, self.width + values)
            return attend_by_blocks(q, latents, self._expanded_block, block, score_bias)
        of_heads = matrix_of(self.kv_b_proj).type_as(q).unflatten(0, (q.shape[1], -1))  # (H, p + w, l)
        turned, q = q.split((self.config.qk_rope_head_dim, self.config.qk_nope_head_dim), dim=-1)
        q = torch.cat((torch.einsum("bhtp,hpl->bhtl", q, of_heads[:, :-values]), turned), dim=-1)  # (B, H, T, l + r)
        y = attend_by_blocks(
            q, latents, lambda block: (block[:, None], block[:, None, :, :latent]), _tokens_at_once(q, 0), score_bias
        )
        return torch.einsum("bhtl,hwl->bhtw", y, of_heads[:, -values:])

    def _expanded_block(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        latent, turned = latents.split((self.config.kv_lora_rank, self.config.qk_rope_head_dim), dim=-1)
        return self.expanded(latent, turned[:, None])


def _tokens_at_once(q: Tensor, expanded: int) -> int:
    """Tokens of a block, for queries (B, H, T, d), where a head needs so many more numbers of each."""
    batch, heads, queries, _ = q.shape
    return max(1, BLOCK_NUMBERS // (batch * heads * max(queries, expanded)))


def attend_by_blocks(
    q: Tensor,
    latents: Tensor,
    keys_and_values: Callable[[Tensor], tuple[Tensor, Tensor]],
    block: int,
    score_bias: Tensor | None = None,
) -> Tensor:
    """Causal attention of queries (B, H, T, d) of the last T of S tokens over latent vectors (B, S, l + r), `block` of
    them at a time, with a running softmax (Milakov and Gimelshein 2018): (B, H, T, v).

    `keys_and_values` makes of a block's keys (B, G, b, d) and values (B, G, b, v), of each head (G = H), or one for all
    (G = 1). Scores are the products themselves, and what `score_bias` (H, T, S) adds.
    """
    before = latents.shape[1] - q.shape[2]
    peak = wide(q.new_full((*q.shape[:3], 1), -torch.inf))
    total, y = torch.zeros_like(peak), torch.zeros_like(peak)
    for start in range(0, latents.shape[1], block):
        k, v = keys_and_values(latents[:, start : start + block])
        first, end = max(0, start - before), start + k.shape[2]  # queries before the first see none of these keys
        scores = wide(_of_each_head(q[:, :, first:], k.mT))  # (B, H, T - first, b)
        if score_bias is not None:
            scores = scores + score_bias[:, first:, start:end]
        if end > before + first + 1:
            future = torch.ones(scores.shape[2:], dtype=torch.bool, device=q.device).triu(before + first - start + 1)
            scores = scores.masked_fill(future, -torch.inf)
        highest = torch.maximum(peak[:, :, first:], scores.amax(-1, keepdim=True))
        faded = (peak[:, :, first:] - highest).exp()
        weights = (scores - highest).exp()
        if start == 0:
            y = y.new_zeros(*y.shape[:3], v.shape[-1])
        y[:, :, first:] = y[:, :, first:] * faded + _of_each_head(weights.type_as(v), v)
        total[:, :, first:] = total[:, :, first:] * faded + weights.sum(-1, keepdim=True)
        peak[:, :, first:] = highest
    return (y / total).type_as(q)


def _of_each_head(x: Tensor, y: Tensor) -> Tensor:
    """(B, H, t, n) times (B, H or 1, n, m) -> (B, H, t, m), without a copy of what all heads share."""
    return x @ y if y.shape[1] == x.shape[1] else (x.flatten(1, 2) @ y[:, 0]).unflatten(1, x.shape[1:3])
