"""Llama (Touvron et al. 2023), its relatives with rotary positions, RMSNorm and a gated FFN, and GPT-NeoX (Black et al.
2022)."""

from collections.abc import Mapping

from common.errors import UserError
from interop.keys.base import (
    BIASES,
    FULL,
    LLAMAS_FUNCTION,
    ORIGINAL,
    SLIDING,
    TRANSFORMER_SAME,
    TRANSFORMER_SIZES,
    WHOLE_HEADS,
    FamilyKeys,
    Keys,
    Values,
    biases_of,
    check_size,
    divides,
    gated_ffn,
    heads,
    layer_windows,
    our_activation,
    rotary,
    same_keys,
    transformer,
)

LLAMA_SAME = {**TRANSFORMER_SAME, "mlp_bias": "bias"}


def llama(values: Values) -> Keys:
    biases = {"bias": values["mlp_bias"], "attention_bias": biases_of(values)}
    return transformer(values) | heads(values) | biases


def llama_details(values: Values) -> Keys:
    """Of its relatives too."""
    return gated_ffn(values) | rotary(values)


def _mistral(values: Values) -> Keys:
    """Within a window in every layer, or in none."""
    window = values["sliding_window"]
    types = [SLIDING if window else FULL] * values["num_hidden_layers"]
    return transformer(values) | heads(values) | {"attention_bias": "none"} | layer_windows(values, types, window)


def _qwen2(values: Values) -> Keys:
    """Biases of Q, K and V, and of nothing else."""
    return transformer(values) | heads(values) | qwen_layers(values) | {"attention_bias": "qkv"}


def _qwen3(values: Values) -> Keys:
    shared = transformer(values) | heads(values) | qwen_layers(values)
    return shared | {"attention_bias": biases_of(values), "qk_norm": True}


def qwen_layers(values: Values) -> Keys:
    """Sliding windows where they are used at all: from layer max_window_layers on, unless layer_types says where."""
    count, window = values["num_hidden_layers"], values["sliding_window"] if values["use_sliding_window"] else None
    full = min(count, values["max_window_layers"]) if window is not None else count
    return layer_windows(values, [FULL] * full + [SLIDING] * (count - full), window)


def _phi3(values: Values) -> Keys:
    """Llama with matrices put together, and Mistral's window."""
    return _mistral(values)


def _phi3_details(values: Values) -> Keys:
    check_size(ORIGINAL, values[ORIGINAL])
    found = gated_ffn(values) | rotary(_with_older_names(values), values["partial_rotary_factor"])
    if (kind := found.get("rope_scaling", {}).get("rope_type", "longrope")) != "longrope":
        raise UserError(f"rope_type={kind!r} cannot be represented; only 'default' and 'longrope' can")
    return found


def _with_older_names(values: Values) -> Keys:
    """Phi-3's first files called its form of rope_scaling su, or yarn."""
    found = dict(values)
    for key in ("rope_scaling", "rope_parameters"):
        if isinstance(given := values[key], Mapping):
            found[key] = {
                name: "longrope" if name in ("type", "rope_type") and kind in ("su", "yarn") else kind
                for name, kind in given.items()
            }
    return found


def _smollm3(values: Values) -> Keys:
    """Rotary positions in all layers but those with a 0 in no_rope_layers, which is every fourth."""
    count, window = values["num_hidden_layers"], values["sliding_window"] if values["use_sliding_window"] else None
    rotates, every = values["no_rope_layers"], values["no_rope_layer_interval"]
    if rotates is None:
        rotates = [int((layer + 1) % every != 0) for layer in range(count)]
    if len(rotates) != count or not all(type(one) in (int, bool) for one in rotates):
        raise UserError(f"no_rope_layers contradicts num_hidden_layers={count}: 0 or 1 for each")
    within = [window is not None and not one for one in rotates]
    found = layer_windows(values, [SLIDING if one else FULL for one in within], window)
    pattern = "".join(
        "U" if letter == "A" and not rotates[layer] else letter
        for layer, letter in enumerate(found.get("layer_pattern", "A" * count))
    )
    return llama(values) | found | {"layer_pattern": pattern}


def _smollm3_details(values: Values) -> Keys:
    pattern, rotates = _smollm3(values)["layer_pattern"], values["no_rope_layers"]
    unplaced = range(len(pattern)) if rotates is None else [index for index, one in enumerate(rotates) if not one]
    if "W" in pattern and (rotates is None or any(pattern[layer] == "W" for layer in unplaced)):
        raise UserError("no_rope_layers: layers within a sliding_window and without positions cannot be represented")
    return llama_details(values)


def _gpt_neox(values: Values) -> Keys:
    divides(values, "hidden_size", "num_attention_heads")
    kind = {"normalization": "layernorm", "position_encoding": "rope", "ffn_type": "standard", "bias": True}
    return same_keys(values, TRANSFORMER_SAME) | kind | {"attention_bias": biases_of(values)}


def _gpt_neox_details(values: Values) -> Keys:
    if not isinstance(values["use_parallel_residual"], bool):
        raise UserError(f"use_parallel_residual={values['use_parallel_residual']!r}: expected true or false")
    if values["hidden_dropout"] != values["attention_dropout"]:
        raise UserError("hidden_dropout and attention_dropout differ; a LanguageModel has one dropout")
    return {
        "activation": our_activation("hidden_act", values["hidden_act"]),
        "norm_eps": values["layer_norm_eps"],
        "dropout": values["hidden_dropout"],
        "parallel_residual": values["use_parallel_residual"],
        **rotary({**values, "rope_theta": values["rotary_emb_base"]}, share_unless_given=values["rotary_pct"]),
    }


_QWEN: Keys = {
    "num_key_value_heads": 32, "max_position_embeddings": 32768, "tie_word_embeddings": False,
    "use_sliding_window": False, "sliding_window": 4096, "max_window_layers": 28, "layer_types": None,
}  # fmt: skip

FAMILIES: dict[str, FamilyKeys] = {
    "llama": FamilyKeys(
        required=tuple(TRANSFORMER_SIZES),
        counted={
            "num_key_value_heads": None, "head_dim": None, "max_position_embeddings": 2048,
            "tie_word_embeddings": False, **BIASES,
        },
        function=LLAMAS_FUNCTION,
        fixed=WHOLE_HEADS,
        same=LLAMA_SAME,
        read=llama,
        details=llama_details,
    ),
    "mistral": FamilyKeys(
        required=tuple(TRANSFORMER_SIZES),
        counted={
            "num_key_value_heads": 8, "head_dim": None, "max_position_embeddings": 131072,
            "tie_word_embeddings": False, "sliding_window": 4096,
        },
        function=LLAMAS_FUNCTION,
        fixed=WHOLE_HEADS,
        same=TRANSFORMER_SAME,
        read=_mistral,
        details=llama_details,
    ),
    "qwen2": FamilyKeys(
        required=tuple(TRANSFORMER_SIZES),
        counted=_QWEN,
        function=LLAMAS_FUNCTION,
        fixed={**WHOLE_HEADS, "use_mrope": False},
        same=TRANSFORMER_SAME,
        read=_qwen2,
        details=llama_details,
    ),
    "qwen3": FamilyKeys(
        required=tuple(TRANSFORMER_SIZES),
        counted={**_QWEN, "head_dim": 128, "attention_bias": False},
        function=LLAMAS_FUNCTION,
        fixed={**WHOLE_HEADS, "use_mrope": False},
        same=TRANSFORMER_SAME,
        read=_qwen3,
        details=llama_details,
    ),
    "phi3": FamilyKeys(
        required=tuple(TRANSFORMER_SIZES),
        counted={
            "num_key_value_heads": None, "max_position_embeddings": 4096, "tie_word_embeddings": False,
            "sliding_window": None,
        },
        function={
            **LLAMAS_FUNCTION, "rms_norm_eps": 1e-5, "original_max_position_embeddings": 4096,
            "partial_rotary_factor": 1.0,
        },
        fixed={"attention_dropout": 0.0, "resid_pdrop": 0.0, "embd_pdrop": 0.0},
        same=TRANSFORMER_SAME,
        read=_phi3,
        details=_phi3_details,
    ),
    "smollm3": FamilyKeys(
        required=tuple(TRANSFORMER_SIZES),
        counted={
            "num_key_value_heads": 4, "max_position_embeddings": 32768, "tie_word_embeddings": True,
            "use_sliding_window": False, "sliding_window": None, "layer_types": None, "no_rope_layers": None,
            "no_rope_layer_interval": 4, **BIASES,
        },
        function={**LLAMAS_FUNCTION, "rope_theta": 2000000.0},
        fixed=WHOLE_HEADS,
        same=LLAMA_SAME,
        read=_smollm3,
        details=_smollm3_details,
    ),
    "gpt_neox": FamilyKeys(
        required=tuple(TRANSFORMER_SIZES),
        counted={"max_position_embeddings": 2048, "tie_word_embeddings": False, "attention_bias": True},
        function={
            "hidden_act": "gelu", "layer_norm_eps": 1e-5, "use_parallel_residual": True, "hidden_dropout": 0.0,
            "attention_dropout": 0.0, "rotary_pct": 0.25, "rotary_emb_base": 10000.0, "rope_scaling": None,
            "rope_parameters": None,
        },
        fixed={},
        same=TRANSFORMER_SAME,
        read=_gpt_neox,
        details=_gpt_neox_details,
    ),
}  # fmt: skip
