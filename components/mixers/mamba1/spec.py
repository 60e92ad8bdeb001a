"""Mamba (Gu and Dao 2023, section 3)."""

from typing import Any

from common.keys import key
from components.mixers.convolution import kept_by_forgetting
from components.mixers.state_space import StateSpace
from components.registry import register_preset, register_spec
from components.spec import Config, MicroBatch, Product, Weights, matrices, vectors

SCAN_CHUNK = 16  # tokens between the states that the scan keeps: few enough for a core's cache


@register_spec
class Mamba1(StateSpace):
    name, label, letter, title = "mamba1", "Mamba1", "S", "Mamba-1"
    own_state = 16

    mamba_dt_rank: int | None = key(
        None, "of Mamba-1: width that the steps of all channels come out of; None: n_embd / 16, rounded up", at_least=1
    )

    def rank(self, config: Config) -> int:
        return config.mamba_dt_rank or -(-config.n_embd // 16)

    def function(self, config: Config) -> dict[str, Any]:
        return {**super().function(config), "mamba_dt_rank": self.rank(config)}

    def weights(self, config: Config) -> list[Weights]:
        width, d_state, rank, bias = self.width(config), self.state(config), self.rank(config), self.has_bias(config)
        selected = (rank, d_state, d_state)
        return [
            *matrices(("z_proj", "x_proj"), width, config.n_embd, bias),  # the gate and the input
            *self.convolution("x_conv", width, config),
            *matrices("selection_proj", sum(selected), width, fused=selected),  # the steps' origin, B, C
            *matrices("dt_proj", width, rank, bias=True),  # the steps
            *vectors("A_log", width * d_state),
            *vectors("D", width),
            *matrices("o_proj", config.n_embd, width, bias, writes=True),
        ]

    def products(self, config: Config, length: int) -> list[Product]:
        """The scan makes two multiply-adds for every element of the state (channels x d_state): one adds the outer
        product of input and B, one is of the product with C. The decay is elementwise."""
        scan = 2 * 2 * self.width(config) * self.state(config)
        return [self.convolution_product(config), Product("scan", scan)]

    def kept(self, batch: MicroBatch) -> int:
        """What the scan keeps are its inputs, in float32, and the state at the start of every SCAN_CHUNK tokens."""
        config, e, tokens = batch.config, batch.e, batch.tokens
        width, state = self.width(config), self.state(config)
        selection = self.rank(config) + 2 * state
        cast = 0 if e == 4 else 4 * tokens * (width + 2 * state) + e * width  # the input, B and C; D
        starts = batch.batch_size * -(-config.block_size // SCAN_CHUNK)
        return (
            batch.linear_inputs(config.n_embd, layers=2)  # the input of the gate's and the input's projection
            + self.convolution_kept(batch, width)
            + tokens * (width + selection) * e  # its output, and what is selected from it
            + 2 * tokens * width * 4  # the steps, before softplus and after
            + kept_by_forgetting(batch)
            + cast
            + (starts + 2) * width * state * 4  # the states, and A twice
            + 4 * tokens * width * e  # the gate, before silu and after; what it multiplies; their product
        )


register_preset(
    "mamba1",
    {"layer_pattern": "S", "ffn_after": "attention", "position_encoding": "none", "normalization": "rmsnorm"},
    "Gu and Dao 2023, Mamba",
)
