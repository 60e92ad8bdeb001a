"""Latent attention (DeepSeek-AI 2024, DeepSeek-V2, section 2.1): keys and values come out of one latent vector a token;
the rotary part of the key is shared by all heads. Queries may come out of a latent vector of their own."""

import math
from typing import Any

from common.arrays import larger, smaller
from common.errors import UserError
from common.keys import key
from components.mixers.attention.spec import Backend, Heads, Sizes, biases
from components.positions.spec import rotated
from components.registry import register_spec, spec
from components.spec import Config, MicroBatch, Product, Remembered, Spec, Weights, matrices, vectors


@register_spec
class LatentAttention(Heads):
    name, label, letter, title = "latent_attention", "Latent", "C", "latent attention"
    what = "latent attention"
    takes_documents, takes_context = "hidden", True
    divides = ("n_head",)

    q_lora_rank: int | None = key(
        None, "of latent attention: width that queries come out of; None: that of the stream", at_least=1
    )
    kv_lora_rank: int = key(512, "of latent attention: width that keys and values come out of", at_least=1)
    qk_nope_head_dim: int = key(128, "of latent attention: width of a head's queries that is not rotated", at_least=1)
    qk_rope_head_dim: int = key(64, "of latent attention: width of a head's queries that is rotated", at_least=1)
    v_head_dim: int = key(128, "of latent attention: width of a head's values", at_least=1)

    def check(self, config: Config) -> None:
        position, width = spec("position_encoding", config.position_encoding), rotated(config, config.qk_rope_head_dim)
        if position.rotates and (width % 2 or not width):
            share = config.partial_rotary_factor
            of = "" if share == 1 else f" times partial_rotary_factor={share}"
            raise UserError(
                f"RoPE rotates pairs: qk_rope_head_dim={config.qk_rope_head_dim}{of} must be even, or take another "
                "position_encoding"
            )
        position.check_heads(config.replace(head_dim=config.qk_rope_head_dim))

    def suffix(self, config: Config) -> list[str]:
        of_queries = [] if config.q_lora_rank is None else [f"Q{config.q_lora_rank}"]
        return [f"MLA{config.kv_lora_rank}", *of_queries]

    def position_width(self, config: Config) -> int:
        return config.qk_rope_head_dim

    def within(self, config: Config) -> dict[str, Spec]:
        return {"attend": spec("attention_backend", config.attention_backend)}

    def weights(self, config: Config) -> list[Weights]:
        """The rows of `q_proj` or `q_b_proj` are those of the heads, each with what is rotated first; of `kv_a_proj`
        first the latent vector's, then the rotary key's; of `kv_b_proj` those of the heads, each with its key's first.
        Biases are the stream's projections' (DeepSeek's attention_bias: all of them)."""
        queries, values = _query_and_value_width(config)
        of_latent, of_output = biases(config)
        rank, latent = config.q_lora_rank, config.kv_lora_rank
        of_stream = (latent, config.qk_rope_head_dim)
        if rank is None:
            of_queries = matrices("q_proj", queries, config.n_embd, divided="rows")
        else:
            of_queries = [
                *matrices("q_a_proj", rank, config.n_embd, of_latent, "heads"),
                *vectors("q_a_norm.weight", rank, part="norms", divided="heads"),
                *matrices("q_b_proj", queries, rank, divided="rows", fed_by=("q_a_proj", "q_a_norm")),
            ]
        return [
            *of_queries,
            *matrices("kv_a_proj", sum(of_stream), config.n_embd, of_latent, "heads", fused=of_stream),
            *vectors("kv_a_norm.weight", latent, part="norms", divided="heads"),
            *matrices(
                "kv_b_proj",
                config.n_head * config.qk_nope_head_dim + values,
                latent,
                divided="rows",
                fed_by=("kv_a_proj", "kv_a_norm"),
            ),
            *matrices("o_proj", config.n_embd, values, of_output, "columns", writes=True),
        ]

    def products(self, config: Config, length: int) -> list[Product]:
        scores = 2 * length * sum(_query_and_value_width(config))
        return [Product("attention_scores", scores, masked=scores // 2)]

    def kept(self, batch: MicroBatch) -> int:
        """The stream's two projections' input; what the norms keep, and their outputs; what the backend keeps; and what
        lies beside that."""
        config = batch.config
        backend = spec("attention_backend", config.attention_backend)
        width, values = config.qk_nope_head_dim + config.qk_rope_head_dim, config.v_head_dim
        return (
            batch.linear_inputs(config.n_embd, layers=2)
            + _kept_by_norms(batch)
            + backend.kept_of(batch, Sizes(config.n_head, config.n_head, width, values))
            + self._mask(batch)
            + batch.tokens * batch.e * config.n_head * _kept_beside_the_backend(batch, backend)
        )

    def whole(self, batch: MicroBatch) -> int:
        return super().whole(batch) + self._mask(batch) + _kept_by_norms(batch)

    def _mask(self, batch: MicroBatch) -> int:
        return spec("attention_backend", batch.config.attention_backend).mask(batch, None)

    def remembers(self, config: Config, length: int, with_current: bool) -> list[Remembered]:
        numbers = length * (config.kv_lora_rank + config.qk_rope_head_dim)
        return [Remembered("latent_keys_and_values", numbers, whole=numbers)]

    def decoding_difference(self, config: Config, length: int) -> int:
        """What `flops_of_queries` says of one query, less a token's share of a forward pass."""
        expanding = 2 * config.kv_lora_rank * config.n_head * (config.qk_nope_head_dim + config.v_head_dim)
        whole = 2 * length * sum(_query_and_value_width(config))
        return config.n_head * smaller(*flops_of_queries(config, 1, length)) - whole - expanding

    def palm_scores(self, config: Config, length: int) -> int:
        """Q is the mean of the widths of a head's queries and values."""
        return 6 * length * sum(_query_and_value_width(config))


def _query_and_value_width(config: Config) -> tuple[Any, Any]:
    """The widths of all heads together."""
    query = config.qk_nope_head_dim + config.qk_rope_head_dim
    return config.n_head * query, config.n_head * config.v_head_dim


def _kept_by_norms(batch: MicroBatch) -> int:
    """Latent vectors before the norms and normalized, in float32, and each norm's root mean square; and what comes out,
    which is expanded. What becomes keys and values is not copied for that in float32, and keeps the rotary key with
    it; so does what comes from other ranks, in front of a copy."""
    config = batch.config
    widths = [config.kv_lora_rank] + [config.q_lora_rank] * (config.q_lora_rank is not None)
    beside = config.qk_rope_head_dim if batch.e == 4 else 0
    is_centred = spec("normalization", config.normalization).is_zero_centred
    factors = sum(widths) if is_centred else 0  # 1 + weight
    numbers = sum(2 * width + 1 for width in widths) + beside
    expanded = batch.tokens * sum(widths)
    if batch.before:
        both = config.kv_lora_rank + config.qk_rope_head_dim
        expanded += batch.batch_size * batch.keys * both - batch.tokens * config.kv_lora_rank
    return 4 * (batch.tokens * numbers + factors) + expanded * batch.e


def _kept_beside_the_backend(batch: MicroBatch, backend: Backend) -> Any:
    """Numbers of a head and token. The input of the output projection, unless that is the backend's output itself: so
    of a fused kernel where its layout is the projections' (rotated and padded queries lie head by head), and of a
    single head, whose padding it then keeps. And the keys before the rotary part joins them, which came out of one
    product with the values, where nothing copies these for the backend."""
    config, is_single = batch.config, batch.config.n_head == 1
    width, values = config.qk_nope_head_dim + config.qk_rope_head_dim, config.v_head_dim
    fused = backend.is_fused and not config.dropout  # with dropout the formula takes the place of the kernel
    kept = backend.keeps_output(batch, False)
    moved = not kept or values != width or spec("position_encoding", config.position_encoding).rotates
    alone = 0 if kept else larger(width, values) if backend.is_fused else values
    output = is_single * alone + (1 - is_single) * values * moved
    views = fused + (backend.is_fused and not fused and batch.e == 4) * is_single
    return output + views * config.qk_nope_head_dim * (values >= width)


def flops_of_queries(config: Config, queries: Any, keys: Any) -> tuple[Any, Any]:
    """FLOPs of a head, between its queries and its outputs, for the last tokens of a text whose latent vectors are in
    the cache, in the two ways: with the matrices that expand these multiplied into queries and outputs (section 2.1.2),
    so that scores and sums are of latent vectors; and with the latent vectors expanded. The cheaper one is taken: for
    few queries the first one, for a long prompt the second one, where latent vectors are wider than a head's key and
    value together are in half.
    """
    latent, expanded = config.kv_lora_rank, config.qk_nope_head_dim + config.v_head_dim
    absorbed = queries * latent * expanded + queries * keys * (2 * latent + config.qk_rope_head_dim)
    return 2 * absorbed, 2 * (keys * latent * expanded + queries * keys * (expanded + config.qk_rope_head_dim))


def score_factor(config: Config) -> float:
    """What scores are multiplied by beside 1 / sqrt(a query's width): in DeepSeek's YaRN mscale_all_dim makes them
    larger by (0.1 mscale_all_dim ln factor + 1)^2, wherever the rotation leaves queries and keys."""
    scaling = config.rope_scaling or {}
    weight, factor = scaling.get("mscale_all_dim"), scaling.get("factor", 1.0)
    return (0.1 * weight * math.log(factor) + 1.0) ** 2 if weight and factor > 1 else 1.0
