"""The position encodings: parameters, kept bytes, checks."""

import math

from common.errors import UserError
from common.keys import key
from components.registry import register_spec
from components.spec import Config, MicroBatch, Position, Weights

# What each form of rope_scaling takes beside its rope_type.
ROPE_SCALING = {
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
}


class _Position(Position):
    def check(self, config: Config) -> None:
        if not self.rotates and config.rope_scaling is not None:
            raise UserError(f"rope_scaling is given, but position_encoding={config.position_encoding!r}")

    def kept(self, batch: MicroBatch) -> int:
        return 0


@register_spec
class LearnedAbsolute(_Position):
    name, label = "learned_absolute", "AbsPos"

    def weights(self, config: Config) -> list[Weights]:
        return [Weights(("embedding.weight",), (config.block_size, config.n_embd))]

    def kept(self, batch: MicroBatch) -> int:
        """The rows that were looked up."""
        return 8 * batch.config.block_size


@register_spec
class Rotary(_Position):
    """Su et al. 2021, RoFormer."""

    name, label = "rope", "RoPE"
    acts_in = "mixers"
    rotates = True
    depends_on = ("head_dim", "rope_theta", "rope_scaling")

    rope_theta: float = key(10000.0, "base of the rotary frequencies", above=0, group="Architecture: positions")
    rope_scaling: dict | None = key(
        None, "as in Hugging Face: {'rope_type': 'linear', 'factor': ...} or {'rope_type': 'llama3', ...}"
    )

    def check(self, config: Config) -> None:
        scaling = config.rope_scaling
        if scaling is None:
            return
        kind = scaling.get("rope_type")
        if not isinstance(kind, str) or kind not in ROPE_SCALING:
            raise UserError(f"rope_scaling: rope_type={kind!r} is none of: {', '.join(ROPE_SCALING)}")
        numbers = ROPE_SCALING[kind]
        if set(scaling) != {"rope_type", *numbers}:
            raise UserError(
                f"rope_scaling of type {kind!r} takes exactly the keys {', '.join(sorted({'rope_type', *numbers}))}"
            )
        for name in numbers:
            if type(scaling[name]) not in (int, float) or not 0 < scaling[name] < math.inf:
                raise UserError(f"rope_scaling: {name}={scaling[name]!r} must be a number above 0")
        if kind == "llama3" and scaling["high_freq_factor"] <= scaling["low_freq_factor"]:
            raise UserError("rope_scaling: high_freq_factor must be above low_freq_factor")

    def kept(self, batch: MicroBatch) -> int:
        """Cosines and sines (T, h/2), once for all layers that turn alike."""
        return 2 * batch.config.block_size * (batch.config.head_dim // 2) * 4


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
