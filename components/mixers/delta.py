"""What the delta-rule mixers have in common, without PyTorch: keys, sizes, what the rule multiplies and keeps.

H value heads, K and V the widths of a head's keys and values; chunks of C tokens.
"""

from typing import Any

from common.errors import UserError
from common.keys import key
from components.mixers.convolution import kept_by_convolution, kept_by_forgetting
from components.spec import Config, MicroBatch, Mixer, Product, Remembered, Weights, matrices, vectors

OWN_HEAD_DIM = 64  # about, of a head, unless keys say otherwise


def chunk_tokens(chunk_size: int, length: int) -> int:
    """Tokens of a chunk: of a shorter sequence as many as halve to one, too."""
    return min(chunk_size, 1 << (length - 1).bit_length())


class DeltaRule(Mixer):
    """A layer whose heads each keep a matrix, which every token corrects where it is read by the token's key."""

    what = "a delta rule"
    part = "delta"
    products_parts = ("short_convolution", "delta_rule")
    has_constant_state = in_float32 = True  # decays do not bear to be rounded
    takes_documents, takes_context = "places", True
    divides, sums_parts = (), True

    linear_num_value_heads: int | None = key(
        None,
        "heads of a delta-rule layer, each with a state of its own; None: n_embd / 64, rounded up",
        at_least=1,
        group="Architecture: delta rules",
    )
    linear_key_head_dim: int | None = key(
        None,
        "width of a head's queries and keys in a delta-rule layer; None: n_embd / linear_num_value_heads, rounded up",
        at_least=1,
    )
    linear_value_head_dim: int | None = key(
        None, "width of a head's values in a delta-rule layer; None: as linear_key_head_dim", at_least=1
    )
    linear_conv_kernel_dim: int = key(
        4, "tokens that the convolutions of a delta-rule layer see, the current one included", at_least=1
    )
    linear_chunk_size: int = key(
        64,
        "tokens of a delta-rule layer whose products are made at once, a power of 2; changes speed and FLOPs, not the "
        "function",
        at_least=1,
    )

    # Sizes

    def heads(self, config: Config) -> Any:
        return config.linear_num_value_heads or -(-config.n_embd // OWN_HEAD_DIM)

    def key_heads(self, config: Config) -> Any:
        """Heads of queries and keys, each of which serves as many value heads."""
        return self.heads(config)

    def key_dim(self, config: Config) -> Any:
        return config.linear_key_head_dim or -(-config.n_embd // self.heads(config))

    def value_dim(self, config: Config) -> Any:
        return config.linear_value_head_dim or self.key_dim(config)

    def key_width(self, config: Config) -> Any:
        """Channels of all keys."""
        return self.key_heads(config) * self.key_dim(config)

    def value_width(self, config: Config) -> Any:
        """Channels of all values."""
        return self.heads(config) * self.value_dim(config)

    def decays(self, config: Config) -> Any:
        """Numbers a token, of all heads."""
        raise NotImplementedError

    def check(self, config: Config) -> None:
        if (chunk := config.linear_chunk_size) & (chunk - 1):
            raise UserError(f"linear_chunk_size={chunk} is no power of 2: take 32, 64 or 128")

    def function(self, config: Config) -> dict[str, Any]:
        """Without the chunks, which are a matter of speed."""
        own = {name: value for name, value in super().function(config).items() if name != "linear_chunk_size"}
        return {
            **own,
            "linear_num_value_heads": self.heads(config),
            "linear_key_head_dim": self.key_dim(config),
            "linear_value_head_dim": self.value_dim(config),
        }

    # Parameters

    def weights(self, config: Config) -> list[Weights]:
        """All but those of the decays and of the gate, which are a mixer's own."""
        keys, values = self.key_width(config), self.value_width(config)
        return [
            *matrices(("q_proj", "k_proj"), keys, config.n_embd, divided="rows"),
            *matrices("v_proj", values, config.n_embd, divided="rows"),
            *matrices("b_proj", self.heads(config), config.n_embd, divided="rows"),  # how far a token corrects
            Weights(("q_conv.weight", "k_conv.weight"), (keys, config.linear_conv_kernel_dim), divided="rows"),
            Weights(("v_conv.weight",), (values, config.linear_conv_kernel_dim), divided="rows"),
            *vectors("A_log", self.heads(config), divided="rows"),
            *vectors("dt_bias", self.decays(config), divided="rows"),
            *vectors("norm.weight", self.value_dim(config), divided="heads"),  # of every head's output
            *matrices("o_proj", config.n_embd, values, divided="columns", writes=True),
        ]

    def shared_sizes(self, config: Config) -> dict[str, Any]:
        return {"linear_num_value_heads": self.heads(config)}

    # FLOPs

    def products(self, config: Config, length: int) -> list[Product]:
        """A token of a last chunk that is not full counts as one of a full chunk."""
        convolved = 2 * self.key_width(config) + self.value_width(config)
        rule = self.heads(config) * (self._of_state(config) + self._within_chunk(config, length))
        return [
            Product("short_convolution", 2 * config.linear_conv_kernel_dim * convolved),
            Product("delta_rule", rule),
        ]

    def _of_state(self, config: Config) -> Any:
        """Of a head and token: what its key reads of the state, what is added there, what its query reads."""
        return 3 * 2 * self.key_dim(config) * self.value_dim(config)

    def _within_chunk(self, config: Config, length: int) -> Any:
        """Of a head and token: its query's and its key's products with the keys of its chunk; a row of the inverse of
        the system of all corrections, by substitution; and the two products with the values, C wide."""
        chunk = chunk_tokens(config.linear_chunk_size, length)
        return self.scores(config, chunk) + chunk * (chunk - 1) + 2 * 2 * chunk * self.value_dim(config)

    def scores(self, config: Config, chunk: int) -> Any:
        """FLOPs of a head and token between its query and key and the keys of its chunk."""
        raise NotImplementedError

    def decoding_difference(self, config: Config, length: int) -> int:
        """It decodes by its recurrence, which makes the products with the state, and none of a chunk."""
        return -self.heads(config) * self._within_chunk(config, length)

    # Memory

    def whole(self, batch: MicroBatch) -> int:
        """The input of six projections, and which tokens forget."""
        return batch.linear_inputs(batch.config.n_embd, layers=6) + kept_by_forgetting(batch)

    def rule_kept(self, batch: MicroBatch) -> int:
        """The convolutions; and of the rule its inputs, the state at every chunk's start, the inverse of its system,
        and how far each token's value was off."""
        config, tokens = batch.config, batch.tokens
        keys, values, heads = self.key_width(config), self.value_width(config), self.heads(config)
        chunk = chunk_tokens(config.linear_chunk_size, config.block_size)
        chunks = batch.batch_size * -(-config.block_size // chunk) * heads
        K, V = self.key_dim(config), self.value_dim(config)
        return (
            2 * kept_by_convolution(batch, keys, config.linear_conv_kernel_dim)
            + kept_by_convolution(batch, values, config.linear_conv_kernel_dim)
            + tokens * (2 * keys + values) * batch.e
            + tokens * (self.decays(config) + heads) * 4
            + chunks * (K * V + chunk * chunk + chunk * V) * 4
        )

    def remembers(self, config: Config, length: int, with_current: bool) -> list[Remembered]:
        """The state, in float32 whatever is computed in, and the tokens that the convolutions see again."""
        again = config.linear_conv_kernel_dim - (not with_current)
        convolved = 2 * self.key_width(config) + self.value_width(config)
        return [
            Remembered("state", self.heads(config) * self.key_dim(config) * self.value_dim(config), in_float32=True),
            Remembered("convolution", convolved * again),
        ]
