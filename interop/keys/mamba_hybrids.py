"""Mamba-2 and attention in forms of their own: Granite 4 (granitemoehybrid), whose layers may have experts, and
Nemotron-H, where a mixer and an FFN are a layer each."""

import re

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
    agree,
    biases_of,
    check_attends,
    check_only,
    check_size,
    divides,
    heads,
    of_each_layer,
    our_activation,
    rotary,
    same_keys,
    transformer,
)
from interop.keys.deepseek import check_experts_met
from interop.keys.gemma_olmo import MULTIPLIERS
from interop.keys.state_space import ANY_STEP, BAMBAS_SIZES, bamba_mamba

# ---------------------------------------------------------------------------------------------------------------------
# Granite 4

_GRANITE_LAYERS = {LINEAR: "M", FULL: "A", "mamba": "M", "attention": "A"}  # the latter in files of transformers 4
_GRANITE_SAME = {key: ours for key, ours in TRANSFORMER_SAME.items() if key != "intermediate_size"}
_POSITIONS = "position_embedding_type"


def _granite_hybrid(values: Values) -> Keys:
    """An FFN in every layer, or experts with a shared one beside them."""
    pattern = of_each_layer(values, "layer_types", _GRANITE_LAYERS, [LINEAR] * values["num_hidden_layers"])
    attention = heads(values) | {"attention_bias": biases_of(values), "n_head": values["num_attention_heads"]}
    others = {"d_ff", "ffn_type", *attention}
    return {
        **{key: value for key, value in transformer(values).items() if key not in others},
        "layer_pattern": pattern,
        "position_encoding": "none" if "A" not in pattern or values[_POSITIONS] in (None, "nope") else "rope",
        **(attention if "A" in pattern else {}),
        **(bamba_mamba(values) if "M" in pattern else {}),
        **_granite_ffn(values),
    }


def _granite_ffn(values: Values) -> Keys:
    """The shared FFN is one, as wide as several experts together."""
    shared = values["shared_intermediate_size"]
    if not values["num_local_experts"]:
        return {"ffn_type": "swiglu", "d_ff": shared}
    check_size("num_experts_per_tok", values["num_experts_per_tok"])
    check_experts_met(values, "num_local_experts")
    divides(values, "shared_intermediate_size", "intermediate_size")
    return {
        "ffn_pattern": "E",
        "n_experts": values["num_local_experts"],
        "n_experts_per_token": values["num_experts_per_tok"],
        "n_shared_experts": shared // values["intermediate_size"],
        "expert_d_ff": values["intermediate_size"],
    }


def _granite_hybrid_details(values: Values) -> Keys:
    """A softmax over the chosen experts is that over all of them, divided by what the chosen have."""
    counted = _granite_hybrid(values)
    check_attends(counted["layer_pattern"])
    if values[_POSITIONS] not in (None, "nope", "rope"):
        raise UserError(f"{_POSITIONS}={values[_POSITIONS]!r} is none of: rope, nope, null")
    return {
        "norm_eps": values["rms_norm_eps"],
        **{key: values[key] for key in MULTIPLIERS},
        **(rotary(values) if counted["position_encoding"] == "rope" else {}),
    }


# ---------------------------------------------------------------------------------------------------------------------
# Nemotron-H

# What its layers are, in a list or as the letters of a text: mixers, FFNs, and experts.
_HALVES = {LINEAR: "M", FULL: "*", "mlp": "-", "moe": "E", "mamba": "M", "attention": "*"}
_NEMOTRON_MAMBA = {
    "mamba_num_heads": "mamba_n_heads",
    "mamba_head_dim": "mamba_head_dim",
    "ssm_state_size": "mamba_d_state",
    "n_groups": "mamba_n_groups",
    "conv_kernel": "mamba_d_conv",
    "chunk_size": "mamba_chunk_size",
    "use_conv_bias": "mamba_conv_bias",
    "use_bias": "mamba_bias",
}
_NEMOTRON_SAME = {
    "hidden_size": "n_embd",
    "vocab_size": "vocab_size",
    "max_position_embeddings": "block_size",
    "mlp_bias": "bias",
}


def _nemotron_h(values: Values) -> Keys:
    """No positions, biases of attention or tied head: their class has none, whatever a key says."""
    mixers, ffns = _blocks(values)
    check_only("attention_bias", values["attention_bias"], False)
    divides(values, "mamba_num_heads", "n_groups")
    attention = heads(values) | {"n_head": values["num_attention_heads"], "attention_bias": "none"}
    return {
        **same_keys(values, _NEMOTRON_SAME),
        **{"n_layer": len(mixers), "layer_pattern": mixers, "ffn_pattern": ffns, "weight_tying": False},
        **{"normalization": "rmsnorm", "position_encoding": "none", "ffn_type": "standard"},
        **(attention if "A" in mixers else {}),
        **(same_keys(values, _NEMOTRON_MAMBA) if "M" in mixers else {}),
        **({"d_ff": values["intermediate_size"]} if "F" in ffns else {}),
    }


def _blocks(values: Values) -> tuple[str, str]:
    """The letters of layer_pattern and of ffn_pattern: a mixer is a block, and the FFN after it, if one is there."""
    halves = _halves(values)
    if "E" in halves:
        raise UserError("layers_block_type: the experts of moe layers have no gates, and cannot be represented")
    if re.fullmatch(r"([M*]-?)+", halves) is None:
        raise UserError(f"layers_block_type, {halves!r}: an FFN that follows no mixer cannot be represented")
    found = re.findall(r"([M*])(-?)", halves)
    return "".join("A" if mixer == "*" else "M" for mixer, _ in found), "".join("F" if ffn else "-" for _, ffn in found)


def _halves(values: Values) -> str:
    """A letter for each of their layers. The list wins over the text, as in transformers."""
    named, letters = values["layers_block_type"], values["hybrid_override_pattern"]
    if named is not None:
        if not all(isinstance(one, str) and one in _HALVES for one in named):
            raise UserError(f"layers_block_type must be made of: {', '.join(_HALVES)}")
        letters = "".join(_HALVES[one] for one in named)
    if not letters:
        raise UserError("a nemotron_h configuration needs layers_block_type or hybrid_override_pattern")
    if unknown := set(letters) - set(_HALVES.values()):
        raise UserError(f"hybrid_override_pattern: {min(unknown)!r} is none of: M, *, -, E")
    agree(values, "num_hidden_layers", "the number of layers_block_type", len(letters))
    return letters


def _nemotron_h_details(values: Values) -> Keys:
    counted = _nemotron_h(values)
    check_attends(counted["layer_pattern"], "layers_block_type")
    activation = our_activation("mlp_hidden_act", values["mlp_hidden_act"])
    has_ffn = "F" in counted["ffn_pattern"]
    return {"norm_eps": values["layer_norm_epsilon"], **({"activation": activation} if has_ffn else {})}


# Of experts and of layers that predict further tokens; and what its class does not read, as expand, or not any more.
_NEMOTRON_NO_EFFECT = (
    "n_routed_experts", "num_local_experts", "n_shared_experts", "moe_intermediate_size",
    "moe_shared_expert_intermediate_size", "moe_latent_size", "moe_shared_expert_overlap", "num_experts_per_tok",
    "routed_scaling_factor", "n_group", "topk_group", "norm_topk_prob", "mtp_layers_block_type",
    "mtp_hybrid_override_pattern", "mamba_proj_bias", "expand", "mamba_expand", "use_mamba_kernels",
    "mamba_ssm_cache_dtype", "mamba_dt_min", "mamba_dt_max", "mamba_dt_init_floor",
)  # fmt: skip

FAMILIES: dict[str, FamilyKeys] = {
    "granitemoehybrid": FamilyKeys(
        required=tuple(TRANSFORMER_SIZES),
        counted={
            "num_key_value_heads": None, "max_position_embeddings": 2048, "tie_word_embeddings": False,
            "attention_bias": False, "layer_types": None, "num_local_experts": 8, "num_experts_per_tok": 2,
            "shared_intermediate_size": 1024, **BAMBAS_SIZES,
        },
        function={
            **ROPE, "rms_norm_eps": 1e-6, _POSITIONS: None, **dict.fromkeys(MULTIPLIERS, 1.0),
        },
        fixed={"hidden_act": "silu", "attention_dropout": 0.0, "time_step_limit": ANY_STEP},
        same=_GRANITE_SAME,
        read=_granite_hybrid,
        details=_granite_hybrid_details,
        aliases={"layers_block_type": "layer_types"},
        may_be_zero=("num_local_experts", "num_experts_per_tok"),
    ),
    "nemotron_h": FamilyKeys(
        required=("hidden_size", "num_attention_heads", "vocab_size"),
        counted={
            "num_key_value_heads": 8, "head_dim": 128, "max_position_embeddings": 4096, "tie_word_embeddings": False,
            "attention_bias": False, "num_hidden_layers": None, "layers_block_type": None,
            "hybrid_override_pattern": None, "intermediate_size": 21504, "mlp_bias": False, "ssm_state_size": 128,
            "mamba_num_heads": 128, "mamba_head_dim": 64, "n_groups": 8, "conv_kernel": 4, "use_conv_bias": True,
            "use_bias": False, "chunk_size": 128,
        },
        function={"mlp_hidden_act": "relu2", "layer_norm_epsilon": 1e-5},
        fixed={
            "mamba_hidden_act": "silu", "attention_dropout": 0.0, "hidden_dropout": 0.0, "sliding_window": None,
            "time_step_limit": ANY_STEP, "num_nextn_predict_layers": 0,
        },
        same=_NEMOTRON_SAME,
        read=_nemotron_h,
        details=_nemotron_h_details,
        aliases={
            "layer_types": "layers_block_type", "attention_head_dim": "head_dim", "mamba_n_groups": "n_groups",
            "mamba_d_conv": "conv_kernel", "mamba_conv_bias": "use_conv_bias", "mamba_chunk_size": "chunk_size",
            "mamba_dt_limit": "time_step_limit",
        },
        no_effect=_NEMOTRON_NO_EFFECT,
    ),
}  # fmt: skip
