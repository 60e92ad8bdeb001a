"""Mamba (Gu and Dao 2023, section 3)."""

from typing import Any

from common.keys import key
from components.mixers.convolution import kept_by_forgetting
from components.mixers.state_space import StateSpace
from components.registry import register_preset, register_spec
from components.spec import AddedUp, Config, MicroBatch, Product, Weights, matrices, vectors

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
            *matrices(("z_proj", "x_proj"), width, config.n_embd, bias, "rows"),  # the gate and the input
            *self.convolution("x_conv", width, config),
            # The steps' origin, B, C
            *matrices(
                "selection_proj", sum(selected), width, divided="columns", fused=selected, fed_by=("x_proj", "x_conv")
            ),
            *matrices("dt_proj", width, rank, True, "rows", fed_by=("x_proj", "x_conv", "selection_proj")),  # the steps
            *vectors("A_log", width * d_state, divided="rows"),
            *vectors("D", width, divided="rows"),
            *self.output(config),
        ]

    def shared_sizes(self, config: Config) -> dict[str, Any]:
        return {"mamba_expand*n_embd": self.width(config)}

    def added_up(self, config: Config) -> list[AddedUp]:
        """What is selected from the channels of all ranks."""
        selected = self.rank(config) + 2 * self.state(config)
        names = (name for one in self.weights(config) for name in one.names)
        return [AddedUp(selected, tuple(name for name in names if name.startswith(("x_", "selection_"))))]

    def products(self, config: Config, length: int) -> list[Product]:
        """The scan makes two multiply-adds for every element of the state (channels x d_state): one adds the outer
        product of input and B, one is of the product with C. The decay is elementwise."""
        scan = 2 * 2 * self.width(config) * self.state(config)
        return [self.convolution_product(config), Product("scan", scan)]

    def kept(self, batch: MicroBatch) -> int:
        """What the scan keeps are its inputs, in float32, and the state at the start of every SCAN_CHUNK tokens."""
        config, e, tokens = batch.config, batch.e, batch.tokens
        width, state = self.width(config), self.state(config)
        cast = 0 if e == 4 else 4 * tokens * width + e * width  # the input; D
        starts = batch.batch_size * -(-config.block_size // SCAN_CHUNK)
        return (
            self.whole(batch)
            + self.convolution_kept(batch, width)
            + tokens * width * e  # its output
            + 2 * tokens * width * 4  # the steps, before softplus and after
            + cast
            + (starts + 2) * width * state * 4  # the states, and A twice
            + 4 * tokens * width * e  # the gate, before silu and after; what it multiplies; their product
        )

    def whole(self, batch: MicroBatch) -> int:
        """The input of the gate's and the input's projection; what is selected, of which the scan casts B and C; and
        which tokens forget."""
        config, e, state = batch.config, batch.e, self.state(batch.config)
        cast = 0 if e == 4 else 4 * 2 * state
        selected = batch.tokens * ((self.rank(config) + 2 * state) * e + cast)
        return batch.linear_inputs(config.n_embd, layers=2) + selected + kept_by_forgetting(batch)


register_preset(
    "mamba1",
    {"layer_pattern": "S", "ffn_after": "attention", "position_encoding": "none", "normalization": "rmsnorm"},
    "Gu and Dao 2023, Mamba",
)
