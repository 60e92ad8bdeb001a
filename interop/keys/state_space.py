"""Mamba, Mamba-2, and Bamba, which has attention too."""

import math
from collections.abc import Mapping

from common.errors import UserError
from interop.keys.base import (
    BIASES,
    ROPE,
    TRANSFORMER_SIZES,
    FamilyKeys,
    Keys,
    Values,
    agree,
    biases_of,
    divides,
    heads,
    rotary,
    same_keys,
    transformer,
)
from interop.keys.llama import LLAMA_SAME

_LENGTH = 2048  # which pure ones have none of; Mamba's were trained at this one
_MAMBA_SIZES = {"hidden_size": "n_embd", "num_hidden_layers": "n_layer", "vocab_size": "vocab_size"}
_MAMBA_SAME = {
    **_MAMBA_SIZES,
    "state_size": "mamba_d_state",
    "expand": "mamba_expand",
    "conv_kernel": "mamba_d_conv",
    "use_conv_bias": "mamba_conv_bias",
    "use_bias": "mamba_bias",
    "tie_word_embeddings": "weight_tying",
}
_MAMBA2_OWN = {"head_dim": "mamba_head_dim", "n_groups": "mamba_n_groups", "chunk_size": "mamba_chunk_size"}
_BAMBA_MAMBA = {
    "mamba_expand": "mamba_expand",
    "mamba_d_state": "mamba_d_state",
    "mamba_d_conv": "mamba_d_conv",
    "mamba_n_groups": "mamba_n_groups",
    "mamba_chunk_size": "mamba_chunk_size",
    "mamba_conv_bias": "mamba_conv_bias",
    "mamba_proj_bias": "mamba_bias",
}


def _mamba(values: Values) -> Keys:
    rank, width = values["time_step_rank"], values["hidden_size"]
    rank = math.ceil(width / 16) if rank == "auto" else rank
    return {"layer_pattern": "S", **_state_space(values, _MAMBA_SAME), "mamba_dt_rank": rank}


def _mamba2(values: Values) -> Keys:
    d_inner = values["num_heads"] * values["head_dim"]
    if d_inner != values["expand"] * values["hidden_size"]:
        raise UserError(f"num_heads x head_dim = {d_inner} contradicts expand x hidden_size")
    divides(values, "num_heads", "n_groups")
    return {"layer_pattern": "M", **_state_space(values, _MAMBA_SAME | _MAMBA2_OWN)}


def _state_space(values: Values, same: Mapping[str, str]) -> Keys:
    """What a pure Mamba and Mamba-2 share: no positions, no attention, no FFN."""
    width, layers = values["hidden_size"], values["num_hidden_layers"]
    for key, expected in (("d_model", width), ("n_layer", layers), ("d_inner", values["expand"] * width)):
        agree(values, key, "what hidden_size, num_hidden_layers and expand say", expected)
    agree(values, "intermediate_size", "expand x hidden_size", values["expand"] * width)
    return {
        **same_keys(values, same),
        "block_size": _LENGTH,
        "normalization": "rmsnorm",
        "position_encoding": "none",
        "ffn_pattern": "-",
    }


def _state_space_details(values: Values) -> Keys:
    return {"norm_eps": values["layer_norm_epsilon"]}


def _bamba(values: Values) -> Keys:
    """Mamba-2 and a few layers of attention; each has an FFN."""
    count = values["num_hidden_layers"]
    indices = values["attn_layer_indices"] or []
    if any(type(index) is not int or not 0 <= index < count for index in indices):
        raise UserError(f"attn_layer_indices={indices} names a layer that is none of 0 to {count - 1}")
    mamba, pattern = bamba_mamba(values), "".join("A" if layer in indices else "M" for layer in range(count))
    attention = heads(values) | {"attention_bias": biases_of(values), "n_head": values["num_attention_heads"]}
    shared = {key: value for key, value in transformer(values).items() if key not in attention}
    return {
        **shared,
        "layer_pattern": pattern,
        "bias": values["mlp_bias"],
        **(attention if "A" in pattern else {"position_encoding": "none"}),
        **(mamba if "M" in pattern else {}),
    }


def bamba_mamba(values: Values) -> Keys:
    """The sizes of its Mamba-2. Raises UserError where they contradict each other."""
    d_inner = values["mamba_expand"] * values["hidden_size"]
    if values["mamba_d_head"] != "auto":
        agree(values, "mamba_d_head", "mamba_expand x hidden_size / mamba_n_heads", d_inner // values["mamba_n_heads"])
    divides({"mamba_expand x hidden_size": d_inner, **values}, "mamba_expand x hidden_size", "mamba_n_heads")
    divides(values, "mamba_n_heads", "mamba_n_groups")
    return {**same_keys(values, _BAMBA_MAMBA), "mamba_head_dim": d_inner // values["mamba_n_heads"]}


def _bamba_details(values: Values) -> Keys:
    attends = set(values["attn_layer_indices"] or [])
    if len(attends) in (0, values["num_hidden_layers"]):
        raise UserError("attn_layer_indices must name some layers and leave some: transformers cannot step others")
    return {"norm_eps": values["rms_norm_eps"], **rotary(values, share_unless_given=0.5)}


_PURE_MAMBA: Keys = {
    "expand": 2, "conv_kernel": 4, "use_bias": False, "use_conv_bias": True, "intermediate_size": None,
    "d_model": None, "n_layer": None, "d_inner": None, "ssm_cfg": None,
}  # fmt: skip
_SILU: Keys = {"hidden_act": "silu"}  # of the convolution too
BAMBAS_SIZES: Keys = {
    "mamba_n_heads": 128, "mamba_d_head": "auto", "mamba_n_groups": 1, "mamba_d_state": 256, "mamba_d_conv": 4,
    "mamba_expand": 2, "mamba_chunk_size": 256, "mamba_conv_bias": True, "mamba_proj_bias": False,
}  # fmt: skip
ANY_STEP = [0.0, math.inf]

FAMILIES: dict[str, FamilyKeys] = {
    "mamba": FamilyKeys(
        required=tuple(_MAMBA_SIZES),
        counted={"state_size": 16, "time_step_rank": "auto", "tie_word_embeddings": True, **_PURE_MAMBA},
        function={"layer_norm_epsilon": 1e-5},
        fixed=_SILU,
        same=_MAMBA_SAME,
        read=_mamba,
        details=_state_space_details,
    ),
    "mamba2": FamilyKeys(
        required=tuple(_MAMBA_SIZES),
        counted={
            "num_heads": 128, "head_dim": 64, "n_groups": 8, "state_size": 128, "chunk_size": 256,
            "tie_word_embeddings": False, **_PURE_MAMBA,
        },
        function={"layer_norm_epsilon": 1e-5},
        fixed=_SILU | {"time_step_limit": ANY_STEP},
        same=_MAMBA_SAME | _MAMBA2_OWN,
        read=_mamba2,
        details=_state_space_details,
    ),
    "bamba": FamilyKeys(
        required=tuple(TRANSFORMER_SIZES),
        counted={
            "num_key_value_heads": 8, "attn_layer_indices": None, "max_position_embeddings": 262144,
            "tie_word_embeddings": False, **BAMBAS_SIZES, **BIASES,
        },
        # Whatever partial_rotary_factor is beside rope_parameters, transformers 5 reads 0.5: it decides nothing.
        function={"rms_norm_eps": 1e-5, "partial_rotary_factor": None, **ROPE},
        fixed={"attention_dropout": 0.0, "z_loss_coefficient": 0.0, "time_step_limit": ANY_STEP, **_SILU},
        same=LLAMA_SAME,
        read=_bamba,
        details=_bamba_details,
    ),
}  # fmt: skip
