"""Gated experts of which a token meets a few, and shared ones (DeepSeek-AI 2024, DeepSeek-V2, section 2.2)."""

from typing import Any

from common.errors import UserError
from common.keys import key
from components.registry import register_spec
from components.spec import FFN, Config, Weights, matrices


@register_spec
class Experts(FFN):
    name, label, letter = "experts", "MoE", "E"
    what = "experts"

    n_experts: int = key(8, "experts of a layer", at_least=1)
    n_experts_per_token: int = key(2, "experts that a token meets", at_least=1)
    n_shared_experts: int = key(0, "experts that every token meets besides", at_least=0)
    expert_d_ff: int = key(1024, "hidden width of an expert", at_least=1)

    def check(self, config: Config) -> None:
        if config.n_experts_per_token > config.n_experts:
            raise UserError(
                f"n_experts_per_token={config.n_experts_per_token} is more than n_experts={config.n_experts}"
            )

    def weights(self, config: Config) -> list[Weights]:
        count, width, hidden = config.n_experts, config.n_embd, config.expert_d_ff
        met = (config.n_experts_per_token, count)
        shared = config.n_shared_experts * hidden
        found = [
            *matrices("router", count, width, part="router"),
            Weights(("gate_proj", "up_proj"), (count, hidden, width), True, met, part="experts"),
            Weights(("down_proj",), (count, width, hidden), True, met, writes=True, part="experts"),
        ]
        if shared:
            of_shared: dict[str, Any] = {"bias": config.bias, "part": "shared_experts"}
            found += matrices(("shared_gate_proj", "shared_up_proj"), shared, width, **of_shared)
            found += matrices("shared_down_proj", width, shared, **of_shared, writes=True)
        return found
