"""Mamba-2 (Dao and Gu 2024, Transformers are SSMs, sections 6 and 7), its backends, and hybrids of it and attention.

H heads in G groups, chunks of Q.
"""

import math
from typing import Any, ClassVar

from common.errors import UserError
from common.keys import key
from components.mixers.convolution import kept_by_forgetting
from components.mixers.state_space import StateSpace
from components.registry import register_preset, register_spec, spec
from components.spec import AddedUp, Config, MicroBatch, Product, Spec, Weights, matrices, vectors

FUSED_CHUNK = 64  # tokens of a chunk in the fused kernels


class Backend(Spec):
    """What computes the scan in training; it has no parameters, and its FLOPs are the mixer's."""

    kind = "mamba_backend"

    def whole(self, batch: MicroBatch) -> int:
        """The kept bytes that tensor-parallel ranks do not share."""
        return 0


@register_spec
class Mamba2(StateSpace):
    name, label, letter, title = "mamba2", "Mamba2", "M", "Mamba-2"
    what = "Mamba-2"
    own_state = 128
    pattern_key = "hybrid_attention_ratio"
    portable: ClassVar[dict[str, Any]] = {"mamba_backend": "chunked"}
    replaces: ClassVar[dict[str, tuple[str, ...]]] = {"mamba_expand": ("mamba_n_heads",)}

    mamba_head_dim: int = key(64, "of Mamba-2: channels that share their decay", at_least=1)
    mamba_n_heads: int | None = key(
        None,
        "heads of Mamba-2, of mamba_head_dim channels each; None: as many as mamba_expand x n_embd channels make",
        at_least=1,
    )
    mamba_n_groups: int = key(1, "of Mamba-2: groups of heads that share what they write and read by", at_least=1)
    mamba_chunk_size: int = key(
        64, "of Mamba-2: tokens whose products are made at once; changes speed and FLOPs, not the function", at_least=1
    )
    mamba_backend: str = key(
        "auto",
        "what computes Mamba-2's scan in training: chunked (products of matrices, in PyTorch), fla (the extra "
        "kernels: fused, for a GPU, in chunks of 64), or auto (fla on a GPU in 16 bits, where it runs and agrees)",
        changes="speed",
    )

    def idle(self, config: Config) -> dict[str, str]:
        return {} if config.mamba_n_heads is None else {"mamba_expand": f"mamba_n_heads={config.mamba_n_heads}"}

    def function(self, config: Config) -> dict[str, Any]:
        """The heads, however they were given."""
        return {**super().function(config), "mamba_n_heads": self.heads(config), "mamba_expand": None}

    def width(self, config: Config) -> int:
        heads = config.mamba_n_heads
        return super().width(config) if heads is None else heads * config.mamba_head_dim

    def heads(self, config: Config) -> int:
        return self.width(config) // config.mamba_head_dim

    def written_or_read(self, config: Config) -> int:
        """Channels of B, and of C."""
        return config.mamba_n_groups * self.state(config)

    def convolved(self, config: Config) -> int:
        return self.width(config) + 2 * self.written_or_read(config)

    def convolved_whole(self, config: Config) -> int:
        return 2 * self.written_or_read(config) * self.has_one_group(config)

    def check(self, config: Config) -> None:
        if (width := self.width(config)) % config.mamba_head_dim:
            raise UserError(
                f"mamba_expand x n_embd = {config.mamba_expand} x {config.n_embd} = {width} channels are not "
                f"divisible by mamba_head_dim={config.mamba_head_dim}"
            )
        if self.heads(config) % config.mamba_n_groups:
            raise UserError(
                f"the {self.heads(config)} heads of a Mamba-2 layer (mamba_n_heads, or mamba_expand x n_embd / "
                f"mamba_head_dim) are not divisible by mamba_n_groups={config.mamba_n_groups}"
            )
        if config.mamba_backend == "fla" and config.mamba_chunk_size != FUSED_CHUNK:
            raise UserError(
                f"mamba_backend='fla' has chunks of {FUSED_CHUNK} tokens: drop "
                f"mamba_chunk_size={config.mamba_chunk_size}, or take mamba_backend='chunked'"
            )

    def width_step(self, config: Config) -> int:
        """For whole heads in every group, where n_embd decides how many there are."""
        channels = config.mamba_head_dim * config.mamba_n_groups
        return 1 if config.mamba_n_heads is not None else channels // math.gcd(config.mamba_expand, channels)

    def within(self, config: Config) -> dict[str, Spec]:
        return {"scan": spec("mamba_backend", config.mamba_backend)}

    def weights(self, config: Config) -> list[Weights]:
        width, heads, bias = self.width(config), self.heads(config), self.has_bias(config)
        written_or_read, of_groups = self.written_or_read(config), "heads" if self.has_one_group(config) else "rows"
        return [
            *matrices(("z_proj", "x_proj"), width, config.n_embd, bias, "rows"),  # the gate and the input
            *matrices(("B_proj", "C_proj"), written_or_read, config.n_embd, bias, of_groups),
            *matrices("dt_proj", heads, config.n_embd, bias, "rows"),  # the steps
            *self.convolution("x_conv", width, config),
            *self.convolution(("B_conv", "C_conv"), written_or_read, config, of_groups),
            *vectors(("dt_bias", "A_log", "D"), heads, divided="rows"),
            *vectors("norm.weight", width, divided="rows"),  # of the gated output
            *self.output(config),
        ]

    def has_one_group(self, config: Config) -> bool:
        """Whether all heads share what they write and read by, which tensor-parallel ranks then all make, and a norm,
        which spans them."""
        return config.mamba_n_groups == 1

    def shared_sizes(self, config: Config) -> dict[str, Any]:
        groups = {} if self.has_one_group(config) else {"mamba_n_groups": config.mamba_n_groups}
        heads = "mamba_expand*n_embd/mamba_head_dim" if config.mamba_n_heads is None else "mamba_n_heads"
        return {heads: self.heads(config), **groups}

    def added_up(self, config: Config) -> list[AddedUp]:
        """The squares of what the norm is given, where it spans the heads of all ranks."""
        names = (name for one in self.weights(config) for name in one.names)
        before = tuple(name for name in names if not name.startswith(("norm.", "o_proj.")))
        return [AddedUp(1, before, in_float32=True)] * self.has_one_group(config)

    def products(self, config: Config, length: int) -> list[Product]:
        """The scan makes the products within a chunk in full (Q x Q); a token of a last chunk that is not full counts
        as one of a full chunk."""
        state = 2 * 2 * self.width(config) * self.state(config)  # into the state and out of it
        return [self.convolution_product(config), Product("scan", self.within_chunks(config, length) + state)]

    def within_chunks(self, config: Config, length: int) -> Any:
        """FLOPs of C B^T of every group, and of its product with the input."""
        return 2 * min(config.mamba_chunk_size, length) * (self.written_or_read(config) + self.width(config))

    def decoding_difference(self, config: Config, length: int) -> int:
        """It decodes by its recurrence, without products of a chunk."""
        return -self.within_chunks(config, length)

    def kept(self, batch: MicroBatch) -> int:
        """What the backend keeps, and around it the projections, the convolutions, the steps, and the gated norm, in
        float32."""
        config, e, tokens = batch.config, batch.e, batch.tokens
        width, heads = self.width(config), self.heads(config)
        return (
            batch.linear_inputs(config.n_embd, layers=5)
            + self.convolution_kept(batch, width)
            + tokens * width * e  # the convolved input
            + 2 * tokens * heads * 4  # the steps, before softplus and after
            + kept_by_forgetting(batch)
            + spec("mamba_backend", config.mamba_backend).kept(batch)
            + 5 * tokens * width * 4  # the gate, before silu and after; y; their product; the same, normalized
            + self._of_groups(batch)
            + tokens * width * e  # the input of the output projection
        )

    def whole(self, batch: MicroBatch) -> int:
        """The input of five projections, which tokens forget, and what is of a group that all heads are in."""
        inputs = batch.linear_inputs(batch.config.n_embd, layers=5) + kept_by_forgetting(batch)
        if not self.has_one_group(batch.config):
            return inputs
        return inputs + self._of_groups(batch) + spec("mamba_backend", batch.config.mamba_backend).whole(batch)

    def _of_groups(self, batch: MicroBatch) -> int:
        """The convolutions of B and C, and the root mean square of every group."""
        convolved = 2 * self.convolution_kept(batch, self.written_or_read(batch.config))
        return convolved + batch.tokens * batch.config.mamba_n_groups * 4

    # Hybrids

    hybrid_attention_ratio: float | None = key(
        None,
        "share of attention layers among Mamba-2 layers, which writes layer_pattern; docs/using/hybrids.md says where "
        "they stand",
        at_least=0,
    )

    def pattern(self, n_layer: int, value: Any) -> str:
        if value > 1:
            raise UserError(f"hybrid_attention_ratio={value} is a share of the layers: take 0 to 1")
        pattern = hybrid_pattern(n_layer, value)
        if value > 0 and "A" not in pattern:
            raise UserError(
                f"hybrid_attention_ratio={value} of n_layer={n_layer} is no attention layer: take a larger one of "
                "them, or hybrid_attention_ratio=0 with position_encoding='none'"
            )
        return pattern

    def counts(self, n_layer: Any, value: Any) -> dict[str, Any]:
        """The layers of each kind are as many as in `hybrid_pattern`: a half is rounded to the even number, by Python
        as by numpy."""
        attention = (value * n_layer).round().astype(n_layer.dtype)
        return {"A": attention, "M": n_layer - attention}


def hybrid_pattern(n_layer: int, attention_ratio: float) -> str:
    """Where attention stands among Mamba-2 layers: two ninths of it early, from the second layer on, for patterns of
    the text; four ninths as the last layers, for the output; the rest evenly between, for what lies far apart.

    >>> hybrid_pattern(24, 0.375)
    'MAAMMMAMMMMAMMMMAMMMAAAA'
    """
    count = round(attention_ratio * n_layer)
    if count in (0, n_layer):
        return "A" * count or "M" * n_layer
    last = max(1, round(count * 4 / 9))
    early = min(count - last, round(count * 2 / 9))
    between = count - last - early
    spacing = (n_layer - last - early) / (between + 1)
    positions = {*range(1, early + 1), *range(n_layer - last, n_layer)}
    positions |= {round(early + spacing * (number + 1)) for number in range(between)}
    return "".join("A" if layer in positions else "M" for layer in range(n_layer))


@register_spec
class Chunked(Backend):
    """Products of matrices, in PyTorch. `auto` may take fused kernels, which keep less."""

    names = ("auto", "chunked")

    def kept(self, batch: MicroBatch) -> int:
        """What the products within and between chunks take, and the states at the chunks' starts."""
        config, e, mixer = batch.config, batch.e, spec("mixer", Mamba2.name)
        width, state, heads = mixer.width(config), mixer.state(config), mixer.heads(config)
        chunk, chunks = self._chunks(batch)
        padded = chunks * chunk  # tokens
        is_copied = heads // batch.tensor > 1  # head by head, where a rank has several
        return (
            self.whole(batch)
            + padded * heads * chunk * (4 + e)  # how they fade, and the product, in the compute dtype
            + padded * width * e * (3 + is_copied)  # inputs: as they are, head by head, faded; what is read
            + 2 * padded * heads * 4  # the decays from the chunk's start and to its end
            + (chunks + 2) * heads * 4  # the decays of whole chunks, and A twice
            + chunks * width * state * (4 + (e if e < 4 else 0))  # the states, and a cast of them
        )

    def whole(self, batch: MicroBatch) -> int:
        """B and C, and C B^T, which a rank has of its groups, or of the one that all heads are in."""
        config, e, (chunk, chunks) = batch.config, batch.e, self._chunks(batch)
        written_or_read = spec("mixer", Mamba2.name).written_or_read(config)
        copies = 1 + (config.mamba_n_groups // batch.tensor > 1)  # groups do not lie together, for any product
        return chunks * chunk * e * (2 * copies * written_or_read + config.mamba_n_groups * chunk)

    def _chunks(self, batch: MicroBatch) -> tuple[Any, Any]:
        """Tokens of a chunk, and how many chunks there are."""
        config = batch.config
        chunk = min(config.mamba_chunk_size, config.block_size)
        return chunk, batch.batch_size * -(-config.block_size // chunk)


@register_spec
class Fused(Backend):
    """The kernels of flash-linear-attention."""

    name = "fla"

    def kept(self, batch: MicroBatch) -> int:
        """B and C of every head, its inputs times their steps, and the decays in a chunk; the states are computed
        again."""
        config, e, tokens, mixer = batch.config, batch.e, batch.tokens, spec("mixer", Mamba2.name)
        heads = mixer.heads(config)
        inputs = 2 * tokens * heads * mixer.state(config) * e + tokens * mixer.width(config) * e
        return inputs + tokens * heads * 4 + 2 * heads * 4


register_preset(
    "mamba2",
    {"layer_pattern": "M", "ffn_after": "attention", "position_encoding": "none", "normalization": "rmsnorm"},
    "Dao and Gu 2024, Transformers are SSMs",
)
register_preset(
    "hybrid",
    {
        "hybrid_attention_ratio": 0.375,
        "position_encoding": "rope",
        "normalization": "rmsnorm",
        "ffn_type": "swiglu",
    },
    "Waleffe et al. 2024, An Empirical Study of Mamba-based Language Models, in this repository's order of layers",
)

# With the multipliers of its width, 4,096, and of its heads, of 128.
_GRANITE = {"layer_pattern": "MMMMMAMMMM", "ffn_pattern": "E", "position_encoding": "none", "normalization": "rmsnorm"}
_GRANITE_EXPERTS = {"n_experts": 72, "n_experts_per_token": 10, "n_shared_experts": 2, "expert_expansion_ratio": 0.1875}
_GRANITE_STREAM = {"embedding_multiplier": 12.0, "residual_multiplier": 0.22, "logits_scaling": 4096 / 256}
register_preset(
    "granite_hybrid",
    {**_GRANITE, **_GRANITE_EXPERTS, **_GRANITE_STREAM, "attention_multiplier": 1 / 128},
    "IBM 2025, Granite 4.0: the config.json of Granite-4.0-H-Small",
)

# Of its 28 blocks, four have attention; the Mamba-2 layer before each of these has no FFN.
_NEMOTRON = {"layer_pattern": "MMMMA" + 3 * "MMMMMA" + "MMMMM", "ffn_pattern": "FFF-F" + 3 * "FFFF-F" + "FFFFF"}
_NEMOTRON_KIND = {"position_encoding": "none", "normalization": "rmsnorm", "weight_tying": False, "mamba_n_groups": 8}
register_preset(
    "nemotron_h",
    {**_NEMOTRON, **_NEMOTRON_KIND, "activation": "relu_squared", "ffn_expansion_ratio": 5.25},
    "NVIDIA 2025, Nemotron-H: Nemotron-H-8B",
)
