"""Multi-head, grouped-query (Ainslie et al. 2023) and multi-query causal self-attention, over all tokens or within a
window (Beltagy et al. 2020, Longformer, section 3.1), and the backends that compute it.

h is the width of a head, H the query heads, K the key-value heads.
"""

import dataclasses
from typing import Any

from common.arrays import larger, smaller
from common.errors import UserError
from common.keys import key
from components.registry import register_spec, spec
from components.spec import Config, MicroBatch, Mixer, Product, Remembered, Spec, Weights, matrices, vectors

QUERIES_AT_ONCE = 512  # in fused kernels that are given a mask: these compute what it hides too


def blocks(queries: int, keys: int, window: int | None, dropout: float) -> list[tuple[slice, slice]]:
    """Blocks of the last queries of so many keys, and the keys that each may meet. With dropout, for which PyTorch has
    no fused kernel on a CPU, all are one."""
    before, found, step = keys - queries, [], queries if dropout else QUERIES_AT_ONCE
    for start in range(0, queries, step):
        end = min(start + step, queries)
        first = 0 if window is None else max(0, before + start + 1 - window)
        found.append((slice(start, end), slice(first, before + end)))
    return found


@dataclasses.dataclass(frozen=True)
class Sizes:
    """What a backend is given: heads of queries, heads of keys and values, and how wide one is of queries and keys, and
    of values; and whether scores have a cap, and sinks, which not every attention has whose config says so."""

    heads: Any
    kv_heads: Any
    width: Any
    value_width: Any
    is_capped: bool = False
    has_sinks: bool = False


class Backend(Spec):
    """What computes attention between the projections; it has no parameters, and its FLOPs are the mixer's."""

    kind = "attention_backend"
    is_fused = False  # its output is laid out like the queries
    has_cap = False
    has_sinks = False

    def check(self, config: Config) -> None:
        for name, is_there in (("attn_logit_softcapping", self.has_cap), ("attention_sinks", self.has_sinks)):
            if config[name] and not is_there:
                raise UserError(
                    f"attention_backend={self.name!r} has no {name}={config[name]!r}: take attention_backend='manual'"
                )

    def kept(self, batch: MicroBatch) -> int:
        config = batch.config
        sizes = Sizes(config.n_head, config.kv_heads, config.head_dim, config.head_dim)
        is_capped = config.attn_logit_softcapping is not None
        return self.kept_of(batch, dataclasses.replace(sizes, is_capped=is_capped, has_sinks=config.attention_sinks))

    def kept_of(self, batch: MicroBatch, sizes: Sizes) -> int:
        """The bytes that it keeps of heads of these sizes. Raises UserError where nobody has written that down."""
        return super().kept(batch)

    def mask(self, batch: MicroBatch, window: int | None) -> int:
        """Bytes of what it keeps that is no smaller for a part of the heads."""
        return 0

    def keeps_output(self, batch: MicroBatch, has_window: bool) -> bool:
        """Whether what it returns is among what it keeps."""
        return False


class Heads(Mixer):
    """What every attention has."""

    what = "attention"
    part = "attention"
    products_parts = ("attention_scores",)
    uses_positions = has_heads = True

    n_head: int = key(12, "query heads of each attention", at_least=1, group="Architecture: attention")
    attention_bias: str | None = key(
        None,
        "biases of attention's projections: none, qkv (and of an output gate) or all; None: as bias",
        choices=(None, "none", "qkv", "all"),
    )
    attention_backend: str = key(
        "sdpa", "sdpa (PyTorch's fused kernels) or manual (the readable reference)", changes="speed"
    )

    def function(self, config: Config) -> dict[str, Any]:
        which = config.attention_bias or ("all" if config.bias else "none")
        return {**super().function(config), "attention_bias": which}


class _AttentionKeys(Heads):
    num_key_value_heads: int | None = key(
        None, "key and value heads: n_head is multi-head (None), 1 is multi-query, between is grouped-query", at_least=1
    )
    head_dim: int | None = key(None, "width of a head; None: n_embd / n_head", at_least=1)
    qk_norm: bool | str = key(
        False,
        "RMSNorm of queries and of keys, before they are rotated: of each head's (True), or of all heads' together "
        "(width)",
        choices=(False, True, "width"),
    )
    attention_multiplier: float | None = key(
        None, "scores are the products of queries and keys times this; None: 1 / sqrt(head_dim)", above=0
    )
    attn_logit_softcapping: float | None = key(
        None, "c: scores are bounded to +-c, as c tanh(score / c); None: not. Backend manual only", above=0
    )
    attention_sinks: bool = key(
        False,
        "each query head has a learned score of no key, which takes its share of every softmax. Backend manual only",
    )
    attention_output_gate: str | None = key(
        None,
        "attention's output times sigmoid(gate_proj(x)) before the output projection: a number a head, or an element",
        choices=(None, "head", "element"),
    )
    value_residual: bool = key(
        False,
        "values are (1 - w) times the layer's own and w times the first such layer's; w is learned, one a layer",
    )


def biases(config: Config) -> tuple[bool, bool]:
    """Whether queries, keys and values have biases, and whether the output projection has."""
    which = config.attention_bias or ("all" if config.bias else "none")
    return which != "none", which == "all"


@register_spec
class Attention(_AttentionKeys):
    name, label, letter, title = "attention", "Attention", "A", "attention"
    is_default, takes_documents, takes_context = True, "hidden", True
    divides = ("n_head", "num_key_value_heads")
    not_shared = "tensor_parallel does not share norms of queries and keys: take qk_norm=False, or use_fsdp"
    has_window = False

    def function(self, config: Config) -> dict[str, Any]:
        scale = config.attention_multiplier or config.head_dim**-0.5
        return {**super().function(config), "attention_multiplier": scale}

    def derived(self, config: Config) -> dict[str, Any]:
        if config["head_dim"] is None and config.n_embd % config.n_head:
            raise UserError(
                f"n_embd={config.n_embd} is not divisible by n_head={config.n_head}: change one of them, or give "
                "head_dim"
            )
        return {"num_key_value_heads": config.kv_heads, "head_dim": config.head_dim}

    def check(self, config: Config) -> None:
        if config.n_head % config.kv_heads:
            raise UserError(f"n_head={config.n_head} is not divisible by num_key_value_heads={config.kv_heads}")
        spec("position_encoding", config.position_encoding).check_heads(config)

    def suffix(self, config: Config) -> list[str]:
        grouped = "MQA" if config.kv_heads == 1 else f"GQA{config.kv_heads}"
        norms = {False: [], True: ["QKNorm"], "width": ["WideQKNorm"]}
        gates = {None: [], "head": ["HeadGate"], "element": ["ElementGate"]}
        return [
            *[grouped] * (config.kv_heads < config.n_head),
            *norms[config.qk_norm],
            *["Sinks"] * config.attention_sinks,
            *gates[config.attention_output_gate],
            *["ValueResidual"] * config.value_residual,
        ]

    def hands_on(self, config: Config) -> dict[str, dict[str, Any]]:
        """The values of the first layer with a value residual (Zhou et al. 2024, ResFormer)."""
        shape = {"num_key_value_heads": config.kv_heads, "head_dim": config.head_dim}
        return {"value_residual": shape} if config.value_residual else {}

    def window(self, config: Config, length: int) -> int:
        """Keys that a query meets at most, in sequences of `length` tokens."""
        return length

    def within(self, config: Config) -> dict[str, Spec]:
        return {"attend": spec("attention_backend", config.attention_backend)}

    def weights(self, config: Config) -> list[Weights]:
        width, kv_width = config.n_head * config.head_dim, config.kv_heads * config.head_dim
        of_inputs, of_output = biases(config)
        normed = zip(("q_norm.weight", "k_norm.weight"), _normed_widths(config), strict=False)
        found = [
            *matrices("q_proj", width, config.n_embd, of_inputs, "rows"),
            *matrices(("k_proj", "v_proj"), kv_width, config.n_embd, of_inputs, "rows"),
        ]
        found += [norm for name, size in normed for norm in vectors(name, size, part="norms")]
        if config.attention_output_gate is not None:
            found += matrices("gate_proj", _gates(config), config.n_embd, of_inputs, "rows")
        if config.attention_sinks:
            found += vectors("sinks.weight", config.n_head, divided="rows")
        if config.value_residual:
            found += vectors("value_weight.weight", 1, divided="heads")
        return [*found, *matrices("o_proj", config.n_embd, width, of_output, "columns", writes=True)]

    def products(self, config: Config, length: int) -> list[Product]:
        """Q K^T and its product with V. Of the length x keys pairs, a triangle of keys x keys / 2 lies in the future or
        before the sequence."""
        keys = self.window(config, length)
        scores = 2 * 2 * keys * (config.n_head * config.head_dim)
        return [Product("attention_scores", scores, masked=scores * keys // (2 * length))]

    def kept(self, batch: MicroBatch) -> int:
        """The input of the three projections and of a gate's, what norms, a value residual, the backend and a gate
        keep, and the input of the output projection, unless that is the fused kernel's output: its layout follows the
        queries', and rotated ones lie head by head, which is no other layout for a single head."""
        batch = batch.within(batch.config.attention_window if self.has_window else None)
        config = batch.config
        backend = spec("attention_backend", config.attention_backend)
        fused, gated = backend.keeps_output(batch, self.has_window), config.attention_output_gate is not None
        rotates = spec("position_encoding", config.position_encoding).rotates
        is_copied = not fused or gated or (rotates and config.n_head > 1)
        return (
            batch.linear_inputs(config.n_embd, layers=3 + gated)
            + _kept_by_norms(batch)
            + _kept_by_value_residual(batch)
            + backend.kept(batch)
            + self._mask(batch)
            + _kept_by_gate(batch, fused)
            + batch.tokens * _query_width(config) * batch.e * is_copied
        )

    def whole(self, batch: MicroBatch) -> int:
        return super().whole(batch) + self._mask(batch)

    def _mask(self, batch: MicroBatch) -> int:
        window = self.window(batch.config, batch.keys) if self.has_window else None
        return spec("attention_backend", batch.config.attention_backend).mask(batch, window)

    def remembers(self, config: Config, length: int, with_current: bool) -> list[Remembered]:
        return [Remembered("keys_and_values", 2 * length * config.kv_heads * config.head_dim)]

    def palm_scores(self, config: Config, length: int) -> int:
        return 12 * config.n_head * config.head_dim * length


def _query_width(config: Config) -> int:
    return config.n_head * config.head_dim


def _normed_widths(config: Config) -> tuple[int, ...]:
    """What the norms of queries and of keys take the mean square of, if there are any."""
    if not config.qk_norm:
        return ()
    heads = (config.n_head, config.kv_heads) if config.qk_norm == "width" else (1, 1)
    return tuple(count * config.head_dim for count in heads)


def _kept_by_norms(batch: MicroBatch) -> int:
    """Queries and keys before the norms and, for the gradients of their weights, normalized, in float32, and each
    norm's root mean square."""
    config, numbers = batch.config, 0
    for heads, width in zip((config.n_head, config.kv_heads), _normed_widths(config), strict=False):
        numbers += (1 if batch.adapters else 2) * heads * config.head_dim + heads * config.head_dim // width
    is_centred = spec("normalization", config.normalization).is_zero_centred
    factors = sum(_normed_widths(config)) if is_centred else 0  # 1 + weight
    return 4 * (batch.tokens * numbers + factors)


def _gates(config: Config) -> Any:
    """Numbers that the output of attention is multiplied by."""
    return config.n_head if config.attention_output_gate == "head" else _query_width(config)


def _kept_by_gate(batch: MicroBatch, fused: bool) -> int:
    """The sigmoid, and what it multiplies, where the fused kernel does not keep that itself."""
    if batch.config.attention_output_gate is None:
        return 0
    return batch.tokens * (_gates(batch.config) + _query_width(batch.config) * (not fused)) * batch.e


def _kept_by_value_residual(batch: MicroBatch) -> int:
    """The layer's own values, of which the first layer's are those that all mix with; and a cast of the weight."""
    config = batch.config
    if not config.value_residual:
        return 0
    return batch.tokens * config.kv_heads * config.head_dim * batch.e + (batch.e if batch.e < 4 else 0)


@register_spec
class SlidingAttention(Attention):
    name, label, letter = "sliding_attention", "SlidingAttention", "W"
    is_default = False
    title = "attention within {attention_window} tokens"
    what = "attention within a window"
    has_window = True

    attention_window: int | None = key(None, "tokens that a query of a W layer meets, its own included", at_least=1)

    def check(self, config: Config) -> None:
        super().check(config)
        if config.attention_window is None:
            raise UserError("layer_pattern has W layers, whose attention_window is not given")

    def window(self, config: Config, length: int) -> int:
        return smaller(length, config.attention_window or length)

    def remembers(self, config: Config, length: int, with_current: bool) -> list[Remembered]:
        """What the next query meets besides its own key and value."""
        return super().remembers(config, min(length, config.attention_window - 1), with_current)


@register_spec
class UnplacedAttention(Attention):
    """Only the causal mask tells it the order (Kazemnejad et al. 2023): it neither rotates nor biases."""

    name, label, letter = "unplaced_attention", "UnplacedAttention", "U"
    is_default = uses_positions = False
    title = "attention without positions"

    def check(self, config: Config) -> None:
        super().check(without_positions(config))

    def kept(self, batch: MicroBatch) -> int:
        return super().kept(batch.of_layer(without_positions(batch.config)))


def without_positions(config: Config) -> Config:
    return config.replace(position_encoding="none")


@register_spec
class Fused(Backend):
    """PyTorch's scaled_dot_product_attention."""

    name = "sdpa"
    is_fused = True

    def kept_of(self, batch: MicroBatch, sizes: Sizes) -> int:
        """Queries, keys, values, output, all as wide as the widest, and the log of each query's normalizer; the mask of
        a score bias.

        With dropout PyTorch has no fused kernel on the CPU and takes the formula, in float32.
        """
        config, e, width = batch.config, batch.e, larger(sizes.width, sizes.value_width)
        scores = batch.tokens * sizes.heads * batch.keys
        if config.dropout:  # softmax, dropout's mask, dropped weights
            return 3 * batch.tokens * 4 * sizes.heads * width + 3 * scores * 4
        biased = spec("position_encoding", config.position_encoding).biases_scores
        masks = batch.batch_size if batch.has_documents else 1
        mask = masks * sizes.heads * _pairs(batch, None, config.dropout) * e if biased else 0
        keys_and_values = batch.batch_size * batch.keys * 2 * sizes.kv_heads * width
        return (batch.tokens * 2 * sizes.heads * width + keys_and_values) * e + batch.tokens * sizes.heads * 4 + mask

    def mask(self, batch: MicroBatch, window: int | None) -> int:
        """That of a window, of queries after other ranks' keys, or of each sequence's documents, unless it lies in the
        score bias, which every head has of its own."""
        config = batch.config
        biased = spec("position_encoding", config.position_encoding).biases_scores
        masks = batch.batch_size if batch.has_documents else window is not None or batch.before > 0
        return batch.e * _pairs(batch, window, 0.0) * masks * (not biased and not config.dropout)

    def keeps_output(self, batch: MicroBatch, has_window: bool) -> bool:
        """Unless the formula takes its place, or it is joined of several blocks'."""
        config = batch.config
        biased = spec("position_encoding", config.position_encoding).biases_scores
        has_mask = biased or has_window or batch.has_documents or batch.before > 0
        return not config.dropout and not (has_mask and config.block_size > QUERIES_AT_ONCE)


def _pairs(batch: MicroBatch, window: int | None, dropout: float) -> int:
    """Elements of the masks of all blocks of queries."""
    of_blocks = blocks(batch.config.block_size, batch.keys, window, dropout)
    return sum((own.stop - own.start) * (met.stop - met.start) for own, met in of_blocks)


@register_spec
class Manual(Backend):
    """The formula, with the whole matrix of scores."""

    name = "manual"
    has_cap = has_sinks = True

    def kept_of(self, batch: MicroBatch, sizes: Sizes) -> int:
        """Queries, keys and values of every query head; the float32 softmax, with a column of sinks; the weights, where
        they are not the softmax itself; dropout's mask; and of a cap what it bounds to 1."""
        config, e = batch.config, batch.e
        rows = batch.tokens * sizes.heads
        scores = rows * batch.keys
        softmax = 4 * (scores + rows * sizes.has_sinks)
        weights = scores * e if e < 4 or config.dropout else 0
        capped = scores * e if sizes.is_capped else 0
        keys_and_values = batch.batch_size * batch.keys * sizes.heads * (sizes.width + sizes.value_width)
        vectors = rows * sizes.width + keys_and_values
        return vectors * e + softmax + weights + batch.dropout_mask(scores, e) + capped

    def mask(self, batch: MicroBatch, window: int | None) -> int:
        """(T, S + T), the keys that are not seen."""
        return batch.config.block_size * batch.within(window).keys
