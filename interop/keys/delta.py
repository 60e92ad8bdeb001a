"""Attention in a few layers, and a delta rule in the others: Qwen3-Next and Kimi Linear."""

from common.errors import UserError
from interop.keys.base import (
    FULL,
    LINEAR,
    ROPE,
    TRANSFORMER_SAME,
    TRANSFORMER_SIZES,
    FamilyKeys,
    Keys,
    Values,
    biases_of,
    check_attends,
    check_size,
    divides,
    heads,
    of_each_layer,
    rotary,
    transformer,
)
from interop.keys.deepseek import check_experts_met, latent_attention
from interop.keys.experts import qwen_experts, without_idle_ffn

QWEN_LAYERS = {LINEAR: "D", FULL: "A"}
QWEN_DELTA = (
    "linear_num_key_heads",
    "linear_num_value_heads",
    "linear_key_head_dim",
    "linear_value_head_dim",
    "linear_conv_kernel_dim",
)


def _qwen3_next(values: Values) -> Keys:
    """Attention, whose output has a gate, in every fourth layer."""
    count, every = values["num_hidden_layers"], values["full_attention_interval"]
    default = [LINEAR if (layer + 1) % every else FULL for layer in range(count)]
    pattern = of_each_layer(values, "layer_types", QWEN_LAYERS, default)
    divides(values, "linear_num_value_heads", "linear_num_key_heads")
    attention = heads(values) | {
        "n_head": values["num_attention_heads"],
        "attention_bias": biases_of(values),
        "qk_norm": True,
        "attention_output_gate": "element",
    }
    found = {key: value for key, value in transformer(values).items() if key not in attention}
    found |= {"layer_pattern": pattern, "normalization": "rmsnorm_zero_centred", **qwen_experts(values)}
    found |= attention if "A" in pattern else {"position_encoding": "none"}
    found |= {key: values[key] for key in QWEN_DELTA} if "D" in pattern else {}
    return without_idle_ffn(found) | (_shared_expert(values) if "E" in found["ffn_pattern"] else {})


def _shared_expert(values: Values) -> Keys:
    """One, as wide as several of the others together."""
    divides(values, "shared_expert_intermediate_size", "moe_intermediate_size")
    count = values["shared_expert_intermediate_size"] // values["moe_intermediate_size"]
    return {"n_shared_experts": count, "shared_expert_gate": True}


def _qwen3_next_details(values: Values) -> Keys:
    pattern = _qwen3_next(values)["layer_pattern"]
    check_attends(pattern)
    normed = {"norm_topk_prob": values["norm_topk_prob"]} if "E" in _qwen3_next(values)["ffn_pattern"] else {}
    return {"norm_eps": values["rms_norm_eps"], **rotary(values, values["partial_rotary_factor"]), **normed}


KIMI_LAYERS = {LINEAR: "K", FULL: "C"}
KIMI_FFNS = {"dense": "F", "sparse": "E"}
_KIMI_SAME = {**TRANSFORMER_SIZES, "model_max_length": "block_size", "tie_word_embeddings": "weight_tying"}
_IN_FILES = {  # of the checkpoints' linear_attn_config, beside the lists of layers
    "head_dim": "linear_head_dim",
    "num_heads": "linear_num_heads",
    "short_conv_kernel_size": "linear_conv_kernel_dim",
}


def _kimi_linear(values: Values) -> Keys:
    """Latent attention without positions in every fourth layer or so; experts in all layers but the first. The head is
    never tied, whatever tie_word_embeddings says: their class has nothing that ties it."""
    values = _with_linear_attn_config(values)
    count, dense = values["num_hidden_layers"], values["first_k_dense_replace"]
    default = [FULL if layer and layer % 4 == 0 else LINEAR for layer in range(count)]
    pattern = of_each_layer(values, "layer_types", KIMI_LAYERS, default)
    ffns = ["dense" if layer < dense else "sparse" for layer in range(count)]
    found = transformer(values) | {
        "layer_pattern": pattern,
        "position_encoding": "none",
        "weight_tying": False,
        "ffn_pattern": of_each_layer(values, "mlp_layer_types", KIMI_FFNS, ffns),
    }
    attention = latent_attention(values)
    found |= attention if "C" in pattern else {}
    found |= _kimi_delta(values) if "K" in pattern else {}
    if "C" not in pattern:
        del found["n_head"]
    return without_idle_ffn(found) | (_kimi_experts(values) if "E" in found["ffn_pattern"] else {})


def _with_linear_attn_config(values: Values) -> Keys:
    """What the checkpoints say there, where layers are counted from 1; layer_types would win."""
    found, given, layers = dict(values), values["linear_attn_config"] or {}, values["num_hidden_layers"]
    if unknown := given.keys() - {*_IN_FILES, "full_attn_layers", "kda_layers"}:
        raise UserError(f"linear_attn_config: unknown key {min(map(str, unknown))!r}")
    for key, ours in _IN_FILES.items():
        if key in given:
            check_size(f"linear_attn_config: {key}", given[key])
            found[ours] = given[key]
    full, linear = given.get("full_attn_layers"), given.get("kda_layers")
    if values["layer_types"] is None and full is not None and linear is not None:
        named = [*full, *linear] if isinstance(full, list) and isinstance(linear, list) else []
        if sorted(map(repr, named)) != sorted(map(repr, range(1, layers + 1))):
            raise UserError(f"linear_attn_config: its lists must name each of the layers 1 to {layers} once")
        found["layer_types"] = [FULL if layer in full else LINEAR for layer in range(1, layers + 1)]
    return found


def _kimi_delta(values: Values) -> Keys:
    return {
        "linear_num_value_heads": values["linear_num_heads"],
        "linear_key_head_dim": values["linear_head_dim"],
        "linear_conv_kernel_dim": values["linear_conv_kernel_dim"],
    }


def _kimi_experts(values: Values) -> Keys:
    check_experts_met(values, "num_local_experts")
    return {
        "n_experts": values["num_local_experts"],
        "n_experts_per_token": values["num_experts_per_tok"],
        "n_shared_experts": values["n_shared_experts"] or 0,
        "expert_d_ff": values["moe_intermediate_size"],
    }


def _kimi_linear_details(values: Values) -> Keys:
    """As DeepSeek-V3 routes."""
    counted = _kimi_linear(values)
    check_attends(counted["layer_pattern"])
    for key in ("n_group", "topk_group"):
        check_size(key, values[key])
    if "E" in counted["ffn_pattern"] and not values["n_shared_experts"]:
        raise UserError(f"n_shared_experts={values['n_shared_experts']} cannot be represented: 1 or more can")
    routing = {"router_scores": "sigmoid", "balance_bias": True}
    routing |= {key: values[key] for key in ("norm_topk_prob", "routed_scaling_factor", "n_group", "topk_group")}
    return {"norm_eps": values["rms_norm_eps"], **(routing if "E" in counted["ffn_pattern"] else {})}


FAMILIES: dict[str, FamilyKeys] = {
    "qwen3_next": FamilyKeys(
        required=tuple(TRANSFORMER_SIZES),
        counted={
            "num_key_value_heads": 2, "head_dim": 256, "max_position_embeddings": 32768, "tie_word_embeddings": False,
            "attention_bias": False, "layer_types": None, "full_attention_interval": 4, "linear_conv_kernel_dim": 4,
            "linear_key_head_dim": 128, "linear_value_head_dim": 128, "linear_num_key_heads": 16,
            "linear_num_value_heads": 32, "decoder_sparse_step": 1, "mlp_only_layers": None,
            "moe_intermediate_size": 512, "shared_expert_intermediate_size": 512, "num_experts_per_tok": 10,
            "num_experts": 512,
        },
        function={**ROPE, "rms_norm_eps": 1e-6, "partial_rotary_factor": 0.25, "norm_topk_prob": True},
        fixed={"attention_dropout": 0.0, "hidden_act": "silu"},  # of the convolutions too
        same=TRANSFORMER_SAME,
        read=_qwen3_next,
        details=_qwen3_next_details,
    ),
    "kimi_linear": FamilyKeys(
        required=tuple(TRANSFORMER_SIZES),
        counted={
            "num_key_value_heads": 32, "head_dim": None, "qk_head_dim": None, "max_position_embeddings": 1048576,
            "tie_word_embeddings": False, "attention_bias": False, "q_lora_rank": None, "kv_lora_rank": 512,
            "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128, "layer_types": None,
            "mlp_layer_types": None, "first_k_dense_replace": 1, "linear_attn_config": None, "linear_head_dim": 128,
            "linear_num_heads": 32, "linear_conv_kernel_dim": 4, "moe_intermediate_size": 1024,
            "num_local_experts": 256, "num_experts_per_tok": 8, "n_shared_experts": 1,
        },
        function={
            "rms_norm_eps": 1e-5, "norm_topk_prob": True, "routed_scaling_factor": 2.446, "n_group": 1, "topk_group": 1,
            "rope_theta": 10000.0,  # of no effect
        },
        fixed={
            "attention_dropout": 0.0, "hidden_act": "silu", "moe_router_activation_func": "sigmoid",
            "use_grouped_topk": True, "mla_use_nope": True, "rope_scaling": None, "num_nextn_predict_layers": 0,
        },
        same=_KIMI_SAME,
        read=_kimi_linear,
        details=_kimi_linear_details,
        aliases={
            "model_max_length": "max_position_embeddings", "moe_renormalize": "norm_topk_prob",
            "num_expert_group": "n_group", "num_experts": "num_local_experts",
            "num_experts_per_token": "num_experts_per_tok", "num_shared_experts": "n_shared_experts",
        },
    ),
}  # fmt: skip
