"""Relatives of Llama with norms in other places, Gemma and OLMo; and Granite's multipliers."""

from collections.abc import Mapping

from common.errors import UserError
from interop.keys.base import (
    BIASES,
    FULL,
    LLAMAS_FUNCTION,
    ROPE,
    SLIDING,
    TRANSFORMER_SAME,
    TRANSFORMER_SIZES,
    WHOLE_HEADS,
    FamilyKeys,
    Keys,
    Values,
    biases_of,
    check_size,
    gated_ffn,
    heads,
    layer_windows,
    rotary,
    transformer,
)
from interop.keys.llama import LLAMA_SAME, llama, llama_details


def _rotary_by_kind(values: Values, local_theta: float, pattern: str) -> Keys:
    """One base within windows and another without: `rope_parameters` for each kind of layer; rope_scaling, and the
    rope_theta beside it, are of layers without a window."""
    given = values["rope_parameters"] or {}
    if not isinstance(given, Mapping) or given.keys() - {FULL, SLIDING}:
        raise UserError(f"rope_parameters={given!r}: expected those of {FULL} and of {SLIDING}")
    found = {}
    for kind, theta in ((FULL, values["rope_theta"]), (SLIDING, local_theta)):
        own, more = given.get(kind) or {}, (values["rope_scaling"] if kind == FULL else None) or {}
        if not isinstance(own, Mapping) or not isinstance(more, Mapping):
            raise UserError(f"rope_parameters, rope_scaling: {own!r} and {more!r}: expected keys with values")
        alone = {**values, "rope_theta": theta, "rope_parameters": own, "rope_scaling": more and {**own, **more}}
        found[kind] = {"rope_scaling": None, **rotary(alone)}
    everywhere, local = found[FULL], found[SLIDING]
    if "A" not in pattern:
        return local
    own = {name: value for name, value in local.items() if value != everywhere[name]}
    return everywhere | ({"layer_values": {"W": own}} if own and "W" in pattern else {})


_GEMMAS_NORMS = {"normalization": "rmsnorm_zero_centred", "norm_position": "sandwich"}


def _gemma2(values: Values) -> Keys:
    """A window in every other layer, the first among them."""
    types = [SLIDING if layer % 2 == 0 else FULL for layer in range(values["num_hidden_layers"])]
    return _gemma(values) | layer_windows(values, types, values["sliding_window"])


def _gemma3(values: Values) -> Keys:
    """A window in all layers but the last of every six, and norms of queries and keys."""
    every = values["sliding_window_pattern"]
    types = [FULL if layer % every == every - 1 else SLIDING for layer in range(values["num_hidden_layers"])]
    return _gemma(values) | layer_windows(values, types, values["sliding_window"]) | {"qk_norm": True}


def _gemma(values: Values) -> Keys:
    return transformer(values) | heads(values) | {"attention_bias": biases_of(values)} | _GEMMAS_NORMS


def _gemma2_details(values: Values) -> Keys:
    return _gemma_details(values) | rotary(values)


def _gemma3_details(values: Values) -> Keys:
    local = values["rope_local_base_freq"]
    pattern = _gemma3(values).get("layer_pattern", "A")
    return _gemma_details(values) | _rotary_by_kind(values, local, pattern)


def _gemma_details(values: Values) -> Keys:
    check_size("query_pre_attn_scalar", values["query_pre_attn_scalar"])
    cap = values.get("attn_logit_softcapping")
    return {
        **gated_ffn(values, "hidden_activation"),
        "embedding_multiplier": None,
        "attention_multiplier": values["query_pre_attn_scalar"] ** -0.5,
        "attn_logit_softcapping": cap,
        "final_logit_softcapping": values["final_logit_softcapping"],
        **({} if cap is None else {"attention_backend": "manual"}),
    }


def _olmo2(values: Values) -> Keys:
    norms = {"norm_position": "inside", "qk_norm": "width"}
    return transformer(values) | heads(values) | {"attention_bias": biases_of(values)} | norms


def _olmo3(values: Values) -> Keys:
    """A window in three of four layers."""
    types = [FULL if layer % 4 == 3 else SLIDING for layer in range(values["num_hidden_layers"])]
    return _olmo2(values) | layer_windows(values, types, values["sliding_window"])


def _olmo3_details(values: Values) -> Keys:
    pattern = _olmo3(values).get("layer_pattern", "A")
    return gated_ffn(values) | _rotary_by_kind(values, _OLMO3_THETA, pattern)


_OLMO3_THETA = 500000.0
MULTIPLIERS = ("embedding_multiplier", "residual_multiplier", "attention_multiplier", "logits_scaling")


def _granite_details(values: Values) -> Keys:
    return llama_details(values) | {key: values[key] for key in MULTIPLIERS}


_GEMMAS_COUNTED: Keys = {
    "num_key_value_heads": 4, "head_dim": 256, "tie_word_embeddings": True, "attention_bias": False,
    "sliding_window": 4096, "layer_types": None,
}  # fmt: skip
_GEMMAS_FUNCTION: Keys = {
    "hidden_activation": "gelu_pytorch_tanh", "rms_norm_eps": 1e-6, "query_pre_attn_scalar": 256,
}  # fmt: skip
_GEMMAS_FIXED: Keys = {**WHOLE_HEADS, "use_bidirectional_attention": False, "hidden_act": "gelu_pytorch_tanh"}
_OLMOS_COUNTED: Keys = {
    "num_key_value_heads": None, "max_position_embeddings": 2048, "tie_word_embeddings": False, "attention_bias": False,
}  # fmt: skip

FAMILIES: dict[str, FamilyKeys] = {
    "gemma2": FamilyKeys(
        required=tuple(TRANSFORMER_SIZES),
        counted={**_GEMMAS_COUNTED, "max_position_embeddings": 8192},
        function={
            **_GEMMAS_FUNCTION, **ROPE, "final_logit_softcapping": 30.0, "attn_logit_softcapping": 50.0,
        },
        fixed=_GEMMAS_FIXED,
        same=TRANSFORMER_SAME,
        read=_gemma2,
        details=_gemma2_details,
    ),
    "gemma3_text": FamilyKeys(
        required=tuple(TRANSFORMER_SIZES),
        counted={**_GEMMAS_COUNTED, "max_position_embeddings": 131072, "sliding_window_pattern": 6},
        function={
            **_GEMMAS_FUNCTION, **ROPE, "rope_theta": 1000000.0, "rope_local_base_freq": 10000.0,
            "final_logit_softcapping": None,
        },
        fixed={**_GEMMAS_FIXED, "attn_logit_softcapping": None},  # which its class has and does not compute
        same=TRANSFORMER_SAME,
        read=_gemma3,
        details=_gemma3_details,
    ),
    "olmo2": FamilyKeys(
        required=tuple(TRANSFORMER_SIZES),
        counted=_OLMOS_COUNTED,
        function={**LLAMAS_FUNCTION, "rms_norm_eps": 1e-5},
        fixed=WHOLE_HEADS,
        same=TRANSFORMER_SAME,
        read=_olmo2,
        details=llama_details,
    ),
    "olmo3": FamilyKeys(
        required=tuple(TRANSFORMER_SIZES),
        counted={**_OLMOS_COUNTED, "sliding_window": 4096, "layer_types": None},
        function={**LLAMAS_FUNCTION, "rms_norm_eps": 1e-5, "rope_theta": _OLMO3_THETA},
        fixed=WHOLE_HEADS,
        same=TRANSFORMER_SAME,
        read=_olmo3,
        details=_olmo3_details,
    ),
    "granite": FamilyKeys(
        required=tuple(TRANSFORMER_SIZES),
        counted={
            "num_key_value_heads": None, "max_position_embeddings": 2048, "tie_word_embeddings": False, **BIASES,
        },
        function={**LLAMAS_FUNCTION, **dict.fromkeys(MULTIPLIERS, 1.0)},
        fixed=WHOLE_HEADS,
        same=LLAMA_SAME,
        read=llama,
        details=_granite_details,
    ),
}  # fmt: skip
