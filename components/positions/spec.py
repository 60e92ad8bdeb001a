"""The position encodings: parameters, kept bytes, checks."""

import math
from typing import Any

from common.arrays import rounded_down
from common.errors import UserError
from common.keys import key
from components.registry import register_spec
from components.spec import Config, MicroBatch, Position, Weights

# What each form of rope_scaling takes beside its rope_type, and what it may have.
_ORIGINAL = "original_max_position_embeddings"
ROPE_SCALING: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "linear": (("factor",), ()),
    "dynamic": (("factor", _ORIGINAL), ()),
    "llama3": (("factor", "low_freq_factor", "high_freq_factor", _ORIGINAL), ()),
    "yarn": (
        ("factor", _ORIGINAL),
        ("attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate"),
    ),
    "longrope": (("factor", "short_factor", "long_factor", _ORIGINAL), ("attention_factor",)),
}


def rotated(config: Config, head_dim: Any) -> Any:
    """How many of the `head_dim` numbers of a query are rotated."""
    share = config.partial_rotary_factor
    return head_dim if share == 1 else rounded_down(share * head_dim)


class _Position(Position):
    def check(self, config: Config) -> None:
        if not self.rotates and config.rope_scaling is not None:
            raise UserError(f"rope_scaling is given, but position_encoding={config.position_encoding!r}")

    def kept(self, batch: MicroBatch) -> int:
        return 0


@register_spec
class LearnedAbsolute(_Position):
    name, label = "learned_absolute", "AbsPos"
    keeps_places = True

    def weights(self, config: Config) -> list[Weights]:
        return [Weights(("embedding.weight",), (config.block_size, config.n_embd))]

    def kept(self, batch: MicroBatch) -> int:
        """The rows that were looked up."""
        return 8 * (batch.tokens if batch.has_documents else batch.config.block_size)


@register_spec
class Rotary(_Position):
    """Su et al. 2021, RoFormer."""

    name, label = "rope", "RoPE"
    acts_in = "mixers"
    rotates = True
    depends_on = ("rope_theta", "rope_scaling", "partial_rotary_factor")

    rope_theta: float = key(10000.0, "base of the rotary frequencies", above=0, group="Architecture: positions")
    rope_scaling: dict | None = key(
        None, f"as in Hugging Face, of rope_type {', '.join(ROPE_SCALING)}: {{'rope_type': 'linear', 'factor': ...}}"
    )
    partial_rotary_factor: float = key(
        1.0, "share of each head's width that is rotated, from its start; at most 1", above=0
    )

    def check(self, config: Config) -> None:
        if config.partial_rotary_factor > 1:
            raise UserError(f"partial_rotary_factor={config.partial_rotary_factor} is more than 1, a whole head")
        if config.rope_scaling is not None:
            _check_scaling(config.rope_scaling)

    def turns_by_length(self, config: Config) -> bool:
        scaling = config.rope_scaling or {}
        original = scaling.get("original_max_position_embeddings")
        return scaling.get("rope_type") in ("dynamic", "longrope") and config.block_size > original

    def check_heads(self, config: Config) -> None:
        self.check(config)
        width, share = rotated(config, config.head_dim), config.partial_rotary_factor
        if width % 2 or not width:
            of = "head_dim, or n_embd / n_head" + ("" if share == 1 else f", times partial_rotary_factor={share}")
            raise UserError(
                f"RoPE rotates pairs: the head dimension ({of}) = {width} must be even; change n_head or n_embd, or "
                "take another position_encoding"
            )
        scaling = config.rope_scaling or {}
        for name in ("short_factor", "long_factor"):
            if name in scaling and len(scaling[name]) != width // 2:
                raise UserError(f"rope_scaling: {name} must be {width // 2} numbers, one for each pair of a head")
        if scaling.get("rope_type") == "dynamic" and width == 2:
            raise UserError("rope_scaling of type 'dynamic' needs more than one pair in a head")

    def kept(self, batch: MicroBatch) -> int:
        """Cosines and sines (T, half of what is rotated), once for all layers that turn alike."""
        return 2 * batch.config.block_size * (rotated(batch.config, batch.config.head_dim) // 2) * 4


def _check_scaling(scaling: dict[str, Any]) -> None:
    """Raises UserError for what is no form of it."""
    kind = scaling.get("rope_type")
    if not isinstance(kind, str) or kind not in ROPE_SCALING:
        raise UserError(f"rope_scaling: rope_type={kind!r} is none of: {', '.join(ROPE_SCALING)}")
    needed, optional = ROPE_SCALING[kind]
    if not {"rope_type", *needed} <= set(scaling) <= {"rope_type", *needed, *optional}:
        more = f", and may have {', '.join(optional)}" if optional else ""
        raise UserError(
            f"rope_scaling of type {kind!r} takes exactly the keys {', '.join(sorted({'rope_type', *needed}))}{more}"
        )
    for name, value in scaling.items():
        if name in ("short_factor", "long_factor"):
            if not isinstance(value, list | tuple) or not all(map(_is_positive, value)):
                raise UserError(f"rope_scaling: {name} must be a list of numbers above 0")
        elif name == "truncate":
            if not isinstance(value, bool):
                raise UserError(f"rope_scaling: truncate={value!r} must be true or false")
        elif name != "rope_type" and not _is_positive(value):
            raise UserError(f"rope_scaling: {name}={value!r} must be a number above 0")
    if kind == "llama3" and scaling["high_freq_factor"] <= scaling["low_freq_factor"]:
        raise UserError("rope_scaling: high_freq_factor must be above low_freq_factor")


def _is_positive(value: Any) -> bool:
    return type(value) in (int, float) and 0 < value < math.inf


@register_spec
class ALiBi(_Position):
    """Press et al. 2021, Train Short, Test Long. Its bias is kept where it is used, by the backend."""

    name, label = "alibi", "ALiBi"
    acts_in = "mixers"
    biases_scores = True
    divides = None
    not_shared = "tensor_parallel does not share ALiBi's slopes among ranks: take another position_encoding"


@register_spec
class NoPosition(_Position):
    """No encoding: only the causal mask tells the order."""

    name, label = "none", "NoPos"
    acts_in = None
