"""Kimi delta attention (Kimi Team 2025, Kimi Linear): the gated delta rule with a decay for every channel of a key."""

from typing import Any

from components.mixers.delta import DeltaRule
from components.registry import register_preset, register_spec
from components.spec import Config, MicroBatch, Weights, matrices


@register_spec
class KimiDelta(DeltaRule):
    """As many heads of keys as of values. Decays and gate come out of narrow vectors, as wide as a head's values."""

    name, label, letter, title = "kimi_delta", "KimiDelta", "K", "Kimi delta attention"
    what = "Kimi delta attention"

    def decays(self, config: Config) -> Any:
        """One for each channel of all keys."""
        return self.key_width(config)

    def weights(self, config: Config) -> list[Weights]:
        rank = self.value_dim(config)
        return [
            *super().weights(config),
            *matrices(("f_a_proj", "g_a_proj"), rank, config.n_embd, divided="heads"),
            *matrices("f_b_proj", self.decays(config), rank, divided="rows", fed_by=("f_a_proj",)),
            *matrices("g_b_proj", self.value_width(config), rank, divided="rows", fed_by=("g_a_proj",)),
        ]

    def scores(self, config: Config, chunk: int) -> Any:
        """Of the tokens before it only, by halves of the chunk, because a decay is no factor of a product: (C - 1) / 2
        a token, and its own key."""
        return 2 * 2 * self.key_dim(config) * (chunk + 1) // 2

    def kept(self, batch: MicroBatch) -> int:
        """What is kept whole; the rule; the decays' steps, before softplus and after; the gate; the rule's output,
        normalized, and times the norm's weight; and the input of the output projection."""
        config, e, tokens = batch.config, batch.e, batch.tokens
        heads, values = self.heads(config), self.value_width(config)
        return (
            self.whole(batch)
            + self.rule_kept(batch)
            + 2 * tokens * self.decays(config) * 4
            + 2 * heads * 4  # exp(A_log), and with its sign turned
            + 4 * tokens * values * 4
            + tokens * heads * 4  # each head's root mean square
            + tokens * values * e
        )

    def whole(self, batch: MicroBatch) -> int:
        """The narrow vectors besides, which come out of the stream for all heads."""
        return super().whole(batch) + 2 * batch.tokens * self.value_dim(batch.config) * batch.e


_LAYERS = {"layer_pattern": "KKKC", "linear_key_head_dim": 128, "ffn_pattern": "F,E", "position_encoding": "none"}
_SIZES = {"ffn_type": "swiglu", "ffn_expansion_ratio": 4.0, "expert_expansion_ratio": 1024 / 2304}
_OTHERS = {"normalization": "rmsnorm", "norm_eps": 1e-5, "weight_tying": False}
_EXPERTS = {"n_experts": 256, "n_experts_per_token": 8, "n_shared_experts": 1}
_ROUTER = {"router_scores": "sigmoid", "routed_scaling_factor": 2.446, "balance_bias": True, "balance_rate": 0.001}
_BALANCE = {"balance_loss": 1e-4, "balance_over": "sequence"}
register_preset(
    "kimi_linear",
    {**_LAYERS, **_SIZES, **_OTHERS, **_EXPERTS, **_ROUTER, **_BALANCE},
    "Kimi Team 2025, Kimi Linear: Kimi-Linear-48B-A3B, balanced as DeepSeek-V3 is",
)
