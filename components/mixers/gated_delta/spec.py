"""The gated delta rule (Yang, Kautz and Hatamizadeh 2024, Gated Delta Networks), as in Qwen3-Next."""

from typing import Any

from common.errors import UserError
from common.keys import key
from components.mixers.delta import DeltaRule
from components.registry import register_preset, register_spec
from components.spec import Config, MicroBatch, Weights, matrices


@register_spec
class GatedDelta(DeltaRule):
    name, label, letter, title = "gated_delta", "GatedDelta", "D", "gated delta rule"
    what = "the gated delta rule"

    linear_num_key_heads: int | None = key(
        None,
        "of the gated delta rule: heads of queries and keys, each of which serves as many value heads; None: "
        "linear_num_value_heads",
        at_least=1,
    )

    def key_heads(self, config: Config) -> Any:
        return config.linear_num_key_heads or self.heads(config)

    def decays(self, config: Config) -> Any:
        """One a head."""
        return self.heads(config)

    def check(self, config: Config) -> None:
        super().check(config)
        if (heads := self.heads(config)) % self.key_heads(config):
            raise UserError(
                f"the {heads} value heads of a gated delta rule (linear_num_value_heads) are not divisible by "
                f"linear_num_key_heads={config.linear_num_key_heads}"
            )

    def function(self, config: Config) -> dict[str, Any]:
        return {**super().function(config), "linear_num_key_heads": self.key_heads(config)}

    def weights(self, config: Config) -> list[Weights]:
        return [
            *super().weights(config),
            *matrices("z_proj", self.value_width(config), config.n_embd, divided="rows"),  # the gate
            *matrices("a_proj", self.heads(config), config.n_embd, divided="rows"),  # the decays
        ]

    def shared_sizes(self, config: Config) -> dict[str, Any]:
        return {**super().shared_sizes(config), "linear_num_key_heads": self.key_heads(config)}

    def scores(self, config: Config, chunk: int) -> Any:
        """In full, C x C: a decay is a factor of each."""
        return 2 * 2 * chunk * self.key_dim(config)

    def kept(self, batch: MicroBatch) -> int:
        """What is kept whole; the rule; the decays' steps, before softplus and after; the gate, before silu and after;
        the rule's output, normalized, and times the norm's weight; and the input of the output projection."""
        config, e, tokens = batch.config, batch.e, batch.tokens
        heads, values = self.heads(config), self.value_width(config)
        return (
            self.whole(batch)
            + self.rule_kept(batch)
            + 2 * tokens * heads * 4
            + 2 * heads * 4  # exp(A_log), and with its sign turned
            + 5 * tokens * values * 4
            + tokens * heads * 4  # each head's root mean square
            + tokens * values * e
        )


_LAYERS = {"layer_pattern": "DDDA", "linear_key_head_dim": 128, "ffn_pattern": "E"}
_NORMS = {"normalization": "rmsnorm_zero_centred", "norm_eps": 1e-6, "qk_norm": True}
_ATTENTION = {"head_dim": 256, "attention_output_gate": "element", "weight_tying": False}
_POSITIONS = {"position_encoding": "rope", "rope_theta": 1e7, "partial_rotary_factor": 0.25}
_EXPERTS = {"n_experts": 512, "n_experts_per_token": 10, "expert_expansion_ratio": 0.25, "balance_loss": 0.001}
_SHARED_EXPERT = {"n_shared_experts": 1, "shared_expert_gate": True}
register_preset(
    "qwen3_next",
    {**_LAYERS, **_NORMS, **_ATTENTION, **_POSITIONS, **_EXPERTS, **_SHARED_EXPERT},
    "Qwen Team 2025, Qwen3-Next: Qwen3-Next-80B-A3B",
)
