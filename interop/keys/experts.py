"""Relatives of Llama with experts in place of FFNs: Mixtral, Qwen3-MoE, OLMoE, gpt-oss."""

from typing import Any

from common.errors import UserError
from interop.keys.base import (
    FULL,
    LLAMAS_FUNCTION,
    ROPE,
    SLIDING,
    TRANSFORMER_SAME,
    WHOLE_HEADS,
    FamilyKeys,
    Keys,
    Values,
    biases_of,
    gated_ffn,
    heads,
    layer_windows,
    rotary,
    same_keys,
    transformer,
)
from interop.keys.llama import qwen_layers

# Their FFNs are experts alone, whose width is called that of an FFN
_MIXTRAL_SAME = {
    **TRANSFORMER_SAME,
    "intermediate_size": "expert_d_ff",
    "num_local_experts": "n_experts",
    "num_experts_per_tok": "n_experts_per_token",
}
_OLMOE_SAME = {
    **{key: ours for key, ours in _MIXTRAL_SAME.items() if key != "num_local_experts"},
    "num_experts": "n_experts",
}
QWEN_EXPERTS = {
    "num_experts": "n_experts",
    "num_experts_per_tok": "n_experts_per_token",
    "moe_intermediate_size": "expert_d_ff",
}
_QWEN_SAME = {key: ours for key, ours in TRANSFORMER_SAME.items() if key != "intermediate_size"} | QWEN_EXPERTS


def _only_experts(values: Values, same: dict[str, str]) -> Keys:
    kind = {"normalization": "rmsnorm", "position_encoding": "rope", "ffn_pattern": "E"}
    return same_keys(values, same) | kind | heads(values)


def _details(values: Values) -> Keys:
    """The norms' eps, positions, and which gated FFN an expert is."""
    found = gated_ffn(values) | rotary(values)
    return {"expert_type" if key == "ffn_type" else key: value for key, value in found.items()}


def _mixtral(values: Values) -> Keys:
    window = values["sliding_window"]
    types = [SLIDING if window else FULL] * values["num_hidden_layers"]
    found = _only_experts(values, _MIXTRAL_SAME) | {"attention_bias": "none"}
    return found | layer_windows(values, types, window)


def qwen_experts(values: Values) -> Keys:
    """Experts in every decoder_sparse_step-th layer but those of mlp_only_layers: which layers have which, and sizes of
    experts where there are any."""
    count, every, dense = values["num_hidden_layers"], values["decoder_sparse_step"], values["mlp_only_layers"] or []
    if any(type(index) is not int or not 0 <= index < count for index in dense):
        raise UserError(f"mlp_only_layers={dense} names a layer that is none of 0 to {count - 1}")
    pattern = "".join("F" if layer in dense or (layer + 1) % every else "E" for layer in range(count))
    return {"ffn_pattern": pattern, **(same_keys(values, QWEN_EXPERTS) if "E" in pattern else {})}


def without_idle_ffn(found: Keys) -> Keys:
    """Where every layer has experts, no key of an FFN says anything."""
    idle = () if "F" in found["ffn_pattern"] else ("d_ff", "ffn_type")
    return {key: value for key, value in found.items() if key not in idle}


def _qwen3_moe(values: Values) -> Keys:
    found = transformer(values) | heads(values) | qwen_layers(values) | qwen_experts(values)
    return without_idle_ffn(found | {"attention_bias": biases_of(values), "qk_norm": True})


def _qwen3_moe_details(values: Values) -> Keys:
    pattern, found = _qwen3_moe(values)["ffn_pattern"], _details(values)
    if "F" in pattern:
        found["ffn_type"] = found["expert_type"]
    if "E" not in pattern:
        del found["expert_type"]
    return found | ({"norm_topk_prob": values["norm_topk_prob"]} if "E" in pattern else {})


def _olmoe(values: Values) -> Keys:
    return _only_experts(values, _OLMOE_SAME) | {"attention_bias": biases_of(values), "qk_norm": "width"}


def _olmoe_details(values: Values) -> Keys:
    return _details(values) | {"norm_topk_prob": values["norm_topk_prob"]}


def _gpt_oss(values: Values) -> Keys:
    """A window in every other layer, the first among them."""
    types = [SLIDING if layer % 2 == 0 else FULL for layer in range(values["num_hidden_layers"])]
    found = _only_experts(values, _MIXTRAL_SAME) | layer_windows(values, types, values["sliding_window"])
    sinks = {"attention_sinks": True, "attention_backend": "manual"}
    return found | sinks | {"attention_bias": biases_of(values), "expert_bias": True}


def _gpt_oss_details(values: Values) -> Keys:
    scaled = {**values, "rope_parameters": values["rope_parameters"] or _GPT_OSS_ROPE}
    of_experts = {"expert_type": "swiglu_clamped", "swiglu_limit": values["swiglu_limit"]}
    return {"norm_eps": values["rms_norm_eps"], **of_experts, **rotary(scaled)}


_REQUIRED = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
_COUNTED: Keys = {"head_dim": None, "tie_word_embeddings": False}
_GPT_OSS_ROPE: dict[str, Any] = {
    "rope_type": "yarn", "rope_theta": 150000.0, "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0,
    "truncate": False, "original_max_position_embeddings": 4096,
}  # fmt: skip

FAMILIES: dict[str, FamilyKeys] = {
    "mixtral": FamilyKeys(
        required=_REQUIRED,
        counted={
            **_COUNTED, "num_key_value_heads": 8, "max_position_embeddings": 131072, "sliding_window": None,
            "num_local_experts": 8, "num_experts_per_tok": 2,
        },
        function={**LLAMAS_FUNCTION, "rms_norm_eps": 1e-5, "rope_theta": 1000000.0},
        fixed={**WHOLE_HEADS, "router_jitter_noise": 0.0},
        same=_MIXTRAL_SAME,
        read=_mixtral,
        details=_details,
        aliases={"num_experts": "num_local_experts"},
    ),
    "qwen3_moe": FamilyKeys(
        required=_REQUIRED,
        counted={
            **_COUNTED, "num_key_value_heads": 4, "max_position_embeddings": 32768, "attention_bias": False,
            "use_sliding_window": False, "sliding_window": 4096, "max_window_layers": 28, "layer_types": None,
            "decoder_sparse_step": 1, "mlp_only_layers": None, "moe_intermediate_size": 768, "num_experts": 128,
            "num_experts_per_tok": 8,
        },
        function={**LLAMAS_FUNCTION, "norm_topk_prob": False},
        fixed={**WHOLE_HEADS, "use_mrope": False},
        same=_QWEN_SAME,
        read=_qwen3_moe,
        details=_qwen3_moe_details,
        aliases={"num_local_experts": "num_experts"},
    ),
    "olmoe": FamilyKeys(
        required=_REQUIRED,
        counted={
            "num_key_value_heads": None, "max_position_embeddings": 4096, "tie_word_embeddings": False,
            "attention_bias": False, "num_experts": 64, "num_experts_per_tok": 8,
        },
        function={**LLAMAS_FUNCTION, "rms_norm_eps": 1e-5, "norm_topk_prob": False},
        fixed={**WHOLE_HEADS, "clip_qkv": None},
        same=_OLMOE_SAME,
        read=_olmoe,
        details=_olmoe_details,
        aliases={"num_local_experts": "num_experts"},
    ),
    "gpt_oss": FamilyKeys(
        required=_REQUIRED,
        counted={
            "head_dim": 64, "tie_word_embeddings": False, "num_key_value_heads": 8, "max_position_embeddings": 131072,
            "attention_bias": True, "sliding_window": 128, "layer_types": None, "num_local_experts": 128,
            "num_experts_per_tok": 4,
        },
        function={**ROPE, "rms_norm_eps": 1e-5, "rope_theta": 150000.0, "swiglu_limit": 7.0},
        fixed={**WHOLE_HEADS, "swiglu_alpha": 1.702, "hidden_act": "silu"},
        same=_MIXTRAL_SAME,
        read=_gpt_oss,
        details=_gpt_oss_details,
        aliases={"num_experts": "num_local_experts", "experts_per_token": "num_experts_per_tok"},
    ),
}  # fmt: skip
