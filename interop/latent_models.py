"""DeepSeek-V2 and V3 (DeepSeek-AI 2024): latent attention, and experts in all layers but the first few.

Their heads have what is rotated last, ours first; and in all of V2's, and in V3's with rope_interleave, the two numbers
of a pair lie beside one another, where ours are half of the rotated width apart.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from components.ffns.gated.spec import GATES
from components.mixers.attention.spec import biases
from interop.attention_models import LLAMA
from interop.expert_models import ROUTER, STACKED
from interop.family import Family, Place, places, their_activation, their_rotary
from interop.file_names import InFiles
from interop.keys.deepseek import LATENT
from model_config import ModelArchitectureConfig


def _write(config: ModelArchitectureConfig) -> dict[str, Any]:
    """No further tokens are predicted."""
    ffns = [layer.ffn for layer in config.layers]
    dense = ffns.index("experts") if "experts" in ffns else config.n_layer
    return {
        **{name: config[name] for name in LATENT},
        "num_key_value_heads": config.n_head,
        "hidden_act": their_activation(GATES.get(config.ffn_type if dense else config.expert_type, "silu")),
        "rms_norm_eps": config.norm_eps,
        "rope_parameters": their_rotary(config),
        "attention_bias": all(biases(config)),
        "first_k_dense_replace": dense,
        "num_nextn_predict_layers": 0,
        **(_write_experts(config) if "experts" in ffns else {}),
    }


def _write_experts(config: ModelArchitectureConfig) -> dict[str, Any]:
    return {
        "intermediate_size": config.d_ff or config.expert_d_ff,
        "n_routed_experts": config.n_experts,
        "num_experts_per_tok": config.n_experts_per_token,
        "n_shared_experts": config.n_shared_experts,
        "moe_intermediate_size": config.expert_d_ff,
        "routed_scaling_factor": config.routed_scaling_factor,
        "norm_topk_prob": config.norm_topk_prob,
        "n_group": config.n_group,
        "topk_group": config.topk_group,
    }


def _write_v2(config: ModelArchitectureConfig) -> dict[str, Any]:
    method = "greedy" if config.n_group in (1, None) else "group_limited_greedy"
    return {"num_experts_per_tok": 1, **_write(config), "mlp_bias": config.bias, "topk_method": method}


Order = Callable[[Tensor], Tensor]  # of the rows (..., r, columns or none) that are rotated


def _apart(rows: Tensor) -> Tensor:
    """From pairs beside one another to halves."""
    return torch.cat((rows[..., 0::2], rows[..., 1::2]), dim=-1)


def _beside(rows: Tensor) -> Tensor:
    return torch.stack(rows.chunk(2, dim=-1), dim=-1).flatten(-2)


def _as_they_are(rows: Tensor) -> Tensor:
    return rows


def _queries(module: str, to_ours: Order, to_theirs: Order) -> Place:
    def theirs_to_ours(tensor: Tensor, config: ModelArchitectureConfig) -> Tensor:
        if len(tensor) != config.n_head * (config.qk_nope_head_dim + config.qk_rope_head_dim):
            return tensor  # and is refused by its shape
        heads = _by_head(tensor, config)  # (H, columns, p + r)
        kept, turned = heads.split((config.qk_nope_head_dim, config.qk_rope_head_dim), dim=-1)
        return _of_heads(torch.cat((to_ours(turned), kept), dim=-1))

    def ours_to_theirs(tensor: Tensor, config: ModelArchitectureConfig) -> Tensor:
        heads = _by_head(tensor, config)
        turned, kept = heads.split((config.qk_rope_head_dim, config.qk_nope_head_dim), dim=-1)
        return _of_heads(torch.cat((kept, to_theirs(turned)), dim=-1))

    return Place((module,), theirs_to_ours, ours_to_theirs)


def _by_head(tensor: Tensor, config: ModelArchitectureConfig) -> Tensor:
    """(H n, columns) -> (H, columns, n)."""
    return tensor.unflatten(0, (config.n_head, -1)).movedim(1, -1)


def _of_heads(heads: Tensor) -> Tensor:
    return heads.movedim(-1, 1).flatten(0, 1)


def _keys(module: str, to_ours: Order, to_theirs: Order) -> Place:
    """A latent vector's rows, and the rotary key's."""

    def ordered(order: Order) -> Callable[[Tensor, ModelArchitectureConfig], Tensor]:
        def apply(tensor: Tensor, config: ModelArchitectureConfig) -> Tensor:
            latent, turned = tensor[: config.kv_lora_rank], tensor[config.kv_lora_rank :]
            if len(turned) != config.qk_rope_head_dim:
                return tensor  # and is refused by its shape
            return torch.cat((latent, order(turned.movedim(0, -1)).movedim(-1, 0)))

        return apply

    return Place((module,), ordered(to_ours), ordered(to_theirs))


def _latent_attention(to_ours: Order, to_theirs: Order) -> dict[str, Place]:
    return {
        "self_attn.q_proj": _queries("mixer.q_proj", to_ours, to_theirs),
        "self_attn.q_b_proj": _queries("mixer.q_b_proj", to_ours, to_theirs),
        "self_attn.kv_a_proj_with_mqa": _keys("mixer.kv_a_proj", to_ours, to_theirs),
        **places(
            {
                "self_attn.q_a_proj": "mixer.q_a_proj",
                "self_attn.q_a_layernorm": "mixer.q_a_norm",
                "self_attn.kv_a_layernorm": "mixer.kv_a_norm",
                "self_attn.kv_b_proj": "mixer.kv_b_proj",
                "self_attn.o_proj": "mixer.o_proj",
            }
        ),
    }


_PAIRS, HALVES = {"C": _latent_attention(_apart, _beside)}, {"C": _latent_attention(_as_they_are, _as_they_are)}


def _of_v3(config: Mapping[str, Any]) -> Family:
    return DEEPSEEK_V3 if config.get("rope_interleave", True) else dataclasses.replace(DEEPSEEK_V3, mixers=HALVES)


_SHARED = places({f"mlp.shared_experts.{name}_proj": f"ffn.shared_{name}_proj" for name in ("gate", "up", "down")})
_EXPERTS = ROUTER | STACKED | _SHARED

DEEPSEEK_V2 = dataclasses.replace(
    LLAMA,
    model_class="DeepseekV2ForCausalLM",
    write=_write_v2,
    mixers=_PAIRS,
    experts=_EXPERTS,
    in_files=InFiles(),
    buffers=(),
)
BIASED_EXPERTS = _EXPERTS | places({"mlp.gate.e_score_correction_bias": "ffn.balance_bias"})
DEEPSEEK_V3 = dataclasses.replace(
    DEEPSEEK_V2,
    model_class="DeepseekV3ForCausalLM",
    write=_write,
    experts=BIASED_EXPERTS,
    variant=_of_v3,
)
