"""Gated FFNs (Shazeer 2020, GLU Variants Improve Transformer)."""

from common.errors import UserError
from common.keys import key
from components.ffns.base import DenseFFN
from components.registry import register_spec
from components.spec import FFN, Config, MicroBatch, Weights, matrices

LABELS = {"swiglu": "SwiGLU", "geglu": "GEGLU", "geglu_tanh": "GEGLUtanh"}
GATES = {"swiglu": "silu", "geglu": "gelu", "geglu_tanh": "gelu_tanh"}  # what each applies to its gate
CLAMPED, CLAMPED_GATE = "swiglu_clamped", "quick_gelu"


class Clamps(FFN):
    """What may be clamped."""

    what = "a clamped gated FFN"

    swiglu_limit: float = key(
        7.0, "of swiglu_clamped: its gate is at most this, and what it multiplies within +- this", above=0
    )


class _Gated(DenseFFN):
    is_gated = True
    own_ratio = 8 / 3
    own_multiple = 64

    def check(self, config: Config) -> None:
        if config.activation != self.own_activation():
            raise UserError(
                f"ffn_type={self.name!r} has its own activation ({self.own_activation()}): "
                f"drop activation={config.activation!r}, or take ffn_type='standard'"
            )

    def weights(self, config: Config) -> list[Weights]:
        return [
            *matrices(("gate_proj", "up_proj"), config.d_ff, config.n_embd, config.bias, "rows"),
            *matrices("down_proj", config.n_embd, config.d_ff, config.bias, "columns", writes=True),
        ]

    def kept(self, batch: MicroBatch) -> int:
        """The input of gate and up, what the activation keeps, the two factors and their product."""
        config = batch.config
        (activation,) = self.within(config).values()
        inputs = batch.linear_inputs(config.n_embd, layers=2)
        return inputs + activation.kept(batch) + 3 * batch.tokens * config.d_ff * batch.e


@register_spec
class Gated(_Gated):
    names = tuple(GATES)

    def __init__(self, name: str):
        super().__init__(name)
        self.label = LABELS[name]

    def own_activation(self) -> str:
        return GATES[self.name]


@register_spec
class ClampedSwiGLU(_Gated, Clamps):
    """gpt-oss's (OpenAI 2025), which computes it in experts."""

    name, label = CLAMPED, "ClampedSwiGLU"

    def own_activation(self) -> str:
        return CLAMPED_GATE

    def kept(self, batch: MicroBatch) -> int:
        """Besides, gate and other half before they are clamped."""
        return super().kept(batch) + 2 * batch.tokens * batch.config.d_ff * batch.e
