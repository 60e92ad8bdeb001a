"""What Hugging Face's config.json says of a model, family by family: the one place that knows their keys. No torch.

A key is of one of three sorts. Those of interop/known_keys.py change neither what a model computes nor what is counted.
Those of `function` and `fixed` change what it computes and no count. The others, `required` and `counted`, decide the
counts. `counted_keys` passes over the values of the second sort, so it serves a planner; `exact_keys` reads or refuses
every one of them, so what it returns computes the same. What either makes of a key that it does not know, known_keys.py
says; `notes` names what was passed over.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from common.errors import UserError
from components.ffns.gated.spec import GATES
from interop.known_keys import HARMLESS, check_is_language_model, check_unknown, unknown_to
from model_config import ModelArchitectureConfig, resolve_architecture

_LENGTH_OF_STATE_SPACE_MODELS = 2048  # which have none of their own; Mamba's were trained at this one

# Keys of every family that mean another network, unless they have this value.
_ANOTHER_NETWORK: dict[str, Any] = {"is_encoder_decoder": False, "add_cross_attention": False, "moe_layer_freq": 1}

# Keys of every family that change the function and no count: quantized weights, and attention that others than
# transformers compute in chunks.
_FIXED_EVERYWHERE: dict[str, Any] = {"quantization_config": None, "dual_chunk_attention_config": None}

_Values = Mapping[str, Any]
_Keys = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class FamilyKeys:
    """How the config.json of a model_type reads. `required` are sizes, 1 or more; what is `counted` beside them has the
    default of its family, with which its type must agree (None: a size or null)."""

    required: tuple[str, ...]
    counted: _Keys
    function: _Keys  # with the defaults; no count depends on them
    fixed: _Keys  # likewise, but a LanguageModel computes what this value means, and nothing else
    same: Mapping[str, str]  # their key -> ours, where the value is the same both ways
    read: Callable[[_Values], _Keys]  # sizes and counts, as our keys
    details: Callable[[_Values], _Keys] | None = None  # `function`, as our keys; None: no LanguageModel computes it
    aliases: Mapping[str, str] = dataclasses.field(default_factory=dict)  # another name that transformers takes -> key

    @property
    def known(self) -> set[str]:
        own = {*self.required, *self.counted, *self.function, *self.fixed, *self.aliases}
        return own | {"model_type", *_FIXED_EVERYWHERE, *_ANOTHER_NETWORK} | HARMLESS

    @property
    def decisive(self) -> set[str]:
        """The keys that decide the counts."""
        return {*self.required, *self.counted}


def with_model_type(config: _Values) -> _Keys:
    """GPT-2's first files were written before there were types, and name their class alone."""
    untyped = "model_type" not in config and config.get("architectures") == ["GPT2LMHeadModel"]
    return {**config, "model_type": "gpt2"} if untyped else dict(config)


def exact_architecture(config: _Values) -> ModelArchitectureConfig:
    """The architecture of a model that a LanguageModel computes exactly. Raises UserError, naming the key, for a model
    or a feature that it does not have."""
    exact = [name for name, family in FAMILIES.items() if family.details is not None]
    if config.get("model_type") not in exact:
        raise UserError(f"model_type={config.get('model_type')!r} is none of: {', '.join(exact)}")
    return resolve_architecture({"arch_preset": "custom", **exact_keys(config)})


def counted_keys(config: _Values) -> _Keys:
    """Our keys that decide sizes and counts. Raises UserError, naming the key; the `model_type` is one of FAMILIES."""
    check_is_language_model(config.get("architectures"))
    return FAMILIES[config["model_type"]].read(_complete(config))


def exact_keys(config: _Values) -> _Keys:
    """All our keys, with which a LanguageModel computes the same, for a family that has `details`. Raises UserError,
    naming the key, for a value that no LanguageModel has."""
    family, values = FAMILIES[config["model_type"]], _complete(config)
    assert family.details is not None
    for key, only in (family.fixed | _FIXED_EVERYWHERE).items():
        _check_only(key, values.get(key), only)
    for key, default in family.function.items():
        _check_like(key, values[key], default)
    return family.read(values) | family.details(values)


def notes(config: _Values) -> list[str]:
    """What was passed over, for people."""
    unknown = unknown_to(config, FAMILIES[config["model_type"]].known)
    which = f"keys of no {config['model_type']} in transformers that change no shape, passed over: "
    return [which + ", ".join(unknown)] if unknown else []


def _complete(config: _Values) -> _Keys:
    """With the defaults."""
    model_type = config["model_type"]
    family = FAMILIES[model_type]
    known = family.known
    values = _by_one_name({key: _plain(value) for key, value in config.items()}, family)
    for key, value in values.items():
        if key not in known:
            check_unknown(key, value, model_type, family.decisive, known)
        if key in _ANOTHER_NETWORK:
            _check_only(key, value, _ANOTHER_NETWORK[key])
    for key in family.required:
        if key not in values:
            raise UserError(f"a {model_type} configuration needs {key}, which is missing")
        check_size(key, values[key])
    for key, default in family.counted.items():
        if key in values:
            _check_counted(key, values[key], default)
    return {**family.counted, **family.function, **values}


def _by_one_name(values: _Keys, family: FamilyKeys) -> _Keys:
    """With the keys that were given by another name under their own."""
    found = {key: value for key, value in values.items() if key not in family.aliases}
    for alias, key in family.aliases.items():
        if alias in values and found.setdefault(key, values[alias]) != values[alias]:
            raise UserError(f"{alias}={values[alias]!r} contradicts {key}={found[key]!r}, whose other name it is")
    return found


# ---------------------------------------------------------------------------------------------------------------------
# Values

_NUMBERS = {"Infinity": math.inf, "-Infinity": -math.inf, "NaN": math.nan}  # which JSON has no way to write


def _plain(value: Any) -> Any:
    """Numbers that JSON does not have as numbers: transformers writes Infinity as {"__float__": "Infinity"}."""
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if isinstance(value, Mapping):
        name = value.get("__float__") if len(value) == 1 else None
        if isinstance(name, str) and name in _NUMBERS:
            return _NUMBERS[name]
        return {key: _plain(one) for key, one in value.items()}
    return value


_MOST = 10**9  # of anything: mistakes end here, and 64-bit arithmetic is far
_MOST_LAYERS = 10**5


def check_size(key: str, value: Any, least: int = 1) -> None:
    most = _MOST_LAYERS if key in ("n_layer", "num_hidden_layers") else _MOST
    if type(value) is not int or not least <= value <= most:
        raise UserError(f"{key}={value!r}: expected a whole number from {least} to {most:,}")


# Although the default is a size.
_MAY_BE_NULL = (
    "sliding_window", "num_key_value_heads", "q_lora_rank", "n_shared_experts", "final_logit_softcapping",
    "attn_logit_softcapping",
)  # fmt: skip
_MAY_BE_ZERO = ("first_k_dense_replace", "n_shared_experts", "num_nextn_predict_layers", "max_window_layers")


def _check_counted(key: str, value: Any, default: Any) -> None:
    if isinstance(default, bool):
        if not isinstance(value, bool):
            raise UserError(f"{key}={value!r}: expected true or false")
    elif isinstance(default, str):
        if value != default:
            check_size(key, value)
    elif key == "ssm_cfg":
        if value not in (None, {}):
            raise UserError(f"ssm_cfg={value!r} beside a model_type is not known here")
    elif key in ("layer_types", "attn_layer_indices", "no_rope_layers"):
        if value is not None and not isinstance(value, list):
            raise UserError(f"{key}={value!r}: expected a list")
    elif value is not None or (isinstance(default, int) and key not in _MAY_BE_NULL):
        check_size(key, value, least=0 if key in _MAY_BE_ZERO else 1)


def _check_only(key: str, value: Any, only: Any) -> None:
    """Null says nothing."""
    if value is not None and value != only:
        raise UserError(f"{key}={value!r} cannot be represented; only {only!r} can")


def _check_like(key: str, value: Any, default: Any) -> None:
    """Arithmetic is done with numbers; what has another default is checked where it is read."""
    if (
        isinstance(default, float)
        and type(value) not in (int, float)
        and (value is not None or key not in _MAY_BE_NULL)
    ):
        raise UserError(f"{key}={value!r}: expected a number")


def _agree(values: _Values, key: str, meaning: str, expected: int) -> None:
    """Raises UserError where a key that follows from others contradicts them."""
    if values.get(key) not in (None, expected):
        raise UserError(f"{key}={values[key]!r} contradicts {meaning} = {expected}")


def _divides(values: _Values, whole: str, part: str) -> None:
    if values[whole] % values[part]:
        raise UserError(f"{whole}={values[whole]} is not divisible by {part}={values[part]}")


def _ours(values: _Values, same: Mapping[str, str]) -> _Keys:
    return {ours: values[theirs] for theirs, ours in same.items()}


# The first name of each of ours is the one that is written.
ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "silu": "silu",
    "swish": "silu",
    "relu": "relu",
    "relu2": "relu_squared",
    "leaky_relu": "leaky_relu",
}


def _activation(key: str, name: Any) -> str:
    if not isinstance(name, str) or name not in ACTIVATIONS:
        raise UserError(f"{key}={name!r} is none of: {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]


_ORIGINAL = "original_max_position_embeddings"


def _rotary(values: _Values, share_unless_given: float | None = None) -> _Keys:
    """transformers 5 has all in `rope_parameters`; 4 has `rope_theta` beside `rope_scaling`, once with a `type`.

    `share_unless_given`: the share of a head's width that is rotated where no partial_rotary_factor among them says it;
    None: the class rotates whole heads only.
    """
    key = "rope_scaling" if values["rope_scaling"] else "rope_parameters"  # transformers prefers the former too
    given = values[key] or {}
    if not isinstance(given, Mapping):
        raise UserError(f"{key}={given!r}: expected keys with values")
    scaling = dict(given)
    theta = scaling.pop("rope_theta", values["rope_theta"])
    share = scaling.pop("partial_rotary_factor", share_unless_given or 1.0)
    if share_unless_given is None and share != 1.0:
        raise UserError(f"partial_rotary_factor={share} cannot be represented: the class rotates whole heads, 1.0")
    older_name = scaling.pop("type", "default")
    found = {"rope_theta": theta, "partial_rotary_factor": share}
    rope_type = scaling.pop("rope_type", older_name)
    if rope_type != "default":
        return {**found, "rope_scaling": {"rope_type": rope_type, **_completed(rope_type, scaling, values)}}
    if scaling:
        raise UserError(f"{key}: {', '.join(scaling)} beside rope_type 'default' cannot be represented")
    return found


def _completed(rope_type: Any, scaling: _Keys, values: _Values) -> _Keys:
    """With what transformers takes from elsewhere: the original context, which a key beside them may say, and the
    factor, which is then that of the two contexts. What is null, or a 0 that it takes for that, is left out."""
    length = values.get("max_position_embeddings")
    if rope_type == "dynamic":
        scaling[_ORIGINAL] = length
    if rope_type in ("llama3", "yarn", "longrope"):
        scaling[_ORIGINAL] = values.get(_ORIGINAL) or scaling.get(_ORIGINAL, length)
    if rope_type in ("yarn", "longrope") and scaling.get("factor") is None:
        check_size(_ORIGINAL, scaling[_ORIGINAL])
        scaling["factor"] = values["max_position_embeddings"] / scaling[_ORIGINAL]
    optional = ("attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim")
    absent = {name for name in optional if scaling.get(name) is None}
    absent |= {name for name in optional[1:] if scaling.get(name) == 0}
    return {name: value for name, value in scaling.items() if name not in absent}


# ---------------------------------------------------------------------------------------------------------------------
# GPT-2

DROPOUTS = ("embd_pdrop", "attn_pdrop", "resid_pdrop")
_GPT2_SIZES = {
    "n_layer": "n_layer",
    "n_head": "n_head",
    "n_embd": "n_embd",
    "n_positions": "block_size",
    "vocab_size": "vocab_size",
}
_GPT2_SAME = {**_GPT2_SIZES, "tie_word_embeddings": "weight_tying"}


def _gpt2(values: _Values) -> _Keys:
    _divides(values, "n_embd", "n_head")
    _agree(values, "n_ctx", "n_positions", values["n_positions"])
    return {
        **_ours(values, _GPT2_SAME),
        "d_ff": values["n_inner"] or 4 * values["n_embd"],
        "position_encoding": "learned_absolute",
        "bias": True,
    }


def _gpt2_details(values: _Values) -> _Keys:
    dropouts = {key: values[key] for key in DROPOUTS}
    if len(set(dropouts.values())) > 1:
        raise UserError(f"embd_pdrop, attn_pdrop and resid_pdrop differ ({dropouts}); a LanguageModel has one dropout")
    return {
        "activation": _activation("activation_function", values["activation_function"]),
        "norm_eps": values["layer_norm_epsilon"],
        "dropout": dropouts["embd_pdrop"],
    }


# ---------------------------------------------------------------------------------------------------------------------
# Llama and its relatives: rotary positions, RMSNorm, gated FFN

_TRANSFORMER_SIZES = {
    "hidden_size": "n_embd",
    "intermediate_size": "d_ff",
    "num_hidden_layers": "n_layer",
    "num_attention_heads": "n_head",
    "vocab_size": "vocab_size",
}
_TRANSFORMER_SAME = {
    **_TRANSFORMER_SIZES,
    "max_position_embeddings": "block_size",
    "tie_word_embeddings": "weight_tying",
}
_LLAMA_SAME = {**_TRANSFORMER_SAME, "mlp_bias": "bias"}


def _transformer(values: _Values) -> _Keys:
    """The keys that Llama, its relatives, Bamba and DeepSeek share."""
    kind = {"normalization": "rmsnorm", "position_encoding": "rope", "ffn_type": "swiglu"}
    return _ours(values, _TRANSFORMER_SAME) | kind


def _heads(values: _Values) -> _Keys:
    """Queries, keys and values of grouped-query attention."""
    kv_heads = values["num_key_value_heads"] or values["num_attention_heads"]
    _divides({**values, "num_key_value_heads": kv_heads}, "num_attention_heads", "num_key_value_heads")
    if values.get("head_dim") is None:
        _divides(values, "hidden_size", "num_attention_heads")
    return {"num_key_value_heads": kv_heads, "head_dim": values.get("head_dim")}


def _biased(values: _Values) -> str:
    return "all" if values["attention_bias"] else "none"


def _llama(values: _Values) -> _Keys:
    biases = {"bias": values["mlp_bias"], "attention_bias": _biased(values)}
    return _transformer(values) | _heads(values) | biases


def _llama_details(values: _Values) -> _Keys:
    """Of its relatives too."""
    return _gated(values) | _rotary(values)


def _gated(values: _Values, key: str = "hidden_act") -> _Keys:
    """Which FFN it is, and the norms' eps."""
    gate = _activation(key, values[key])
    ffn_types = [ffn_type for ffn_type, activation in GATES.items() if activation == gate]
    if not ffn_types:
        raise UserError(f"{key}={values[key]!r}: no gated FFN here has this activation")
    return {"ffn_type": ffn_types[0], "norm_eps": values["rms_norm_eps"]}


def _mistral(values: _Values) -> _Keys:
    """Within a window in every layer, or in none."""
    window = values["sliding_window"]
    types = [SLIDING if window else FULL] * values["num_hidden_layers"]
    return _transformer(values) | _heads(values) | {"attention_bias": "none"} | _windows(values, types, window)


def _qwen2(values: _Values) -> _Keys:
    """Biases of Q, K and V, and of nothing else."""
    return _transformer(values) | _heads(values) | _qwen_layers(values) | {"attention_bias": "qkv"}


def _qwen3(values: _Values) -> _Keys:
    shared = _transformer(values) | _heads(values) | _qwen_layers(values)
    return shared | {"attention_bias": _biased(values), "qk_norm": True}


def _qwen_layers(values: _Values) -> _Keys:
    """Sliding windows where they are used at all: from layer max_window_layers on, unless layer_types says where."""
    count, window = values["num_hidden_layers"], values["sliding_window"] if values["use_sliding_window"] else None
    full = min(count, values["max_window_layers"]) if window is not None else count
    return _windows(values, [FULL] * full + [SLIDING] * (count - full), window)


FULL, SLIDING = "full_attention", "sliding_attention"
LAYER_TYPES = {FULL: "A", SLIDING: "W"}


def _windows(values: _Values, unless_given: Sequence[str], window: int | None) -> _Keys:
    """Which layers attend within the window: those that layer_types names, where the file has it."""
    types, count = values.get("layer_types"), values["num_hidden_layers"]
    types = unless_given if types is None else types
    if len(types) != count or not all(isinstance(one, str) and one in LAYER_TYPES for one in types):
        raise UserError(f"layer_types contradicts num_hidden_layers={count}: one of {', '.join(LAYER_TYPES)} for each")
    pattern = "".join(LAYER_TYPES[one] for one in types)
    if "W" not in pattern:
        return {}
    if window is None:
        raise UserError("layer_types has sliding_attention, whose sliding_window is not given or not used")
    return {"layer_pattern": pattern, "attention_window": window}


# ---------------------------------------------------------------------------------------------------------------------
# Relatives that rotate a part of a head, or nothing in some layers; and GPT-NeoX


def _phi3(values: _Values) -> _Keys:
    """Llama with matrices put together, and Mistral's window."""
    return _mistral(values)


def _phi3_details(values: _Values) -> _Keys:
    check_size(_ORIGINAL, values[_ORIGINAL])
    found = _gated(values) | _rotary(_with_older_names(values), values["partial_rotary_factor"])
    if (kind := found.get("rope_scaling", {}).get("rope_type", "longrope")) != "longrope":
        raise UserError(f"rope_type={kind!r} cannot be represented; only 'default' and 'longrope' can")
    return found


def _with_older_names(values: _Values) -> _Keys:
    """Phi-3's first files called its form of rope_scaling su, or yarn."""
    found = dict(values)
    for key in ("rope_scaling", "rope_parameters"):
        if isinstance(given := values[key], Mapping):
            found[key] = {
                name: "longrope" if name in ("type", "rope_type") and kind in ("su", "yarn") else kind
                for name, kind in given.items()
            }
    return found


def _smollm3(values: _Values) -> _Keys:
    """Rotary positions in all layers but those with a 0 in no_rope_layers, which is every fourth."""
    count, window = values["num_hidden_layers"], values["sliding_window"] if values["use_sliding_window"] else None
    rotates, every = values["no_rope_layers"], values["no_rope_layer_interval"]
    if rotates is None:
        rotates = [int((layer + 1) % every != 0) for layer in range(count)]
    if len(rotates) != count or not all(type(one) in (int, bool) for one in rotates):
        raise UserError(f"no_rope_layers contradicts num_hidden_layers={count}: 0 or 1 for each")
    within = [window is not None and not one for one in rotates]
    found = _windows(values, [SLIDING if one else FULL for one in within], window)
    pattern = "".join(
        "U" if letter == "A" and not rotates[layer] else letter
        for layer, letter in enumerate(found.get("layer_pattern", "A" * count))
    )
    return _llama(values) | found | {"layer_pattern": pattern}


def _smollm3_details(values: _Values) -> _Keys:
    pattern, rotates = _smollm3(values)["layer_pattern"], values["no_rope_layers"]
    unplaced = range(len(pattern)) if rotates is None else [index for index, one in enumerate(rotates) if not one]
    if "W" in pattern and (rotates is None or any(pattern[layer] == "W" for layer in unplaced)):
        raise UserError("no_rope_layers: layers within a sliding_window and without positions cannot be represented")
    return _llama_details(values)


def _gpt_neox(values: _Values) -> _Keys:
    _divides(values, "hidden_size", "num_attention_heads")
    kind = {"normalization": "layernorm", "position_encoding": "rope", "ffn_type": "standard", "bias": True}
    return _ours(values, _TRANSFORMER_SAME) | kind | {"attention_bias": _biased(values)}


def _gpt_neox_details(values: _Values) -> _Keys:
    if not isinstance(values["use_parallel_residual"], bool):
        raise UserError(f"use_parallel_residual={values['use_parallel_residual']!r}: expected true or false")
    if values["hidden_dropout"] != values["attention_dropout"]:
        raise UserError("hidden_dropout and attention_dropout differ; a LanguageModel has one dropout")
    return {
        "activation": _activation("hidden_act", values["hidden_act"]),
        "norm_eps": values["layer_norm_eps"],
        "dropout": values["hidden_dropout"],
        "parallel_residual": values["use_parallel_residual"],
        **_rotary({**values, "rope_theta": values["rotary_emb_base"]}, share_unless_given=values["rotary_pct"]),
    }


# ---------------------------------------------------------------------------------------------------------------------
# Relatives with norms in other places: Gemma, OLMo; and Granite's multipliers


def _rotary_by_kind(values: _Values, local_theta: float, pattern: str) -> _Keys:
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
        found[kind] = {"rope_scaling": None, **_rotary(alone)}
    everywhere, local = found[FULL], found[SLIDING]
    if "A" not in pattern:
        return local
    own = {name: value for name, value in local.items() if value != everywhere[name]}
    return everywhere | ({"layer_values": {"W": own}} if own and "W" in pattern else {})


_GEMMAS_NORMS = {"normalization": "rmsnorm_zero_centred", "norm_position": "sandwich"}


def _gemma2(values: _Values) -> _Keys:
    """A window in every other layer, the first among them."""
    types = [SLIDING if layer % 2 == 0 else FULL for layer in range(values["num_hidden_layers"])]
    return _gemma(values) | _windows(values, types, values["sliding_window"])


def _gemma3(values: _Values) -> _Keys:
    """A window in all layers but the last of every six, and norms of queries and keys."""
    every = values["sliding_window_pattern"]
    types = [FULL if layer % every == every - 1 else SLIDING for layer in range(values["num_hidden_layers"])]
    return _gemma(values) | _windows(values, types, values["sliding_window"]) | {"qk_norm": True}


def _gemma(values: _Values) -> _Keys:
    return _transformer(values) | _heads(values) | {"attention_bias": _biased(values)} | _GEMMAS_NORMS


def _gemma2_details(values: _Values) -> _Keys:
    return _gemma_details(values) | _rotary(values)


def _gemma3_details(values: _Values) -> _Keys:
    local = values["rope_local_base_freq"]
    pattern = _gemma3(values).get("layer_pattern", "A")
    return _gemma_details(values) | _rotary_by_kind(values, local, pattern)


def _gemma_details(values: _Values) -> _Keys:
    check_size("query_pre_attn_scalar", values["query_pre_attn_scalar"])
    cap = values.get("attn_logit_softcapping")
    return {
        **_gated(values, "hidden_activation"),
        "embedding_multiplier": None,
        "attention_multiplier": values["query_pre_attn_scalar"] ** -0.5,
        "attn_logit_softcapping": cap,
        "final_logit_softcapping": values["final_logit_softcapping"],
        **({} if cap is None else {"attention_backend": "manual"}),
    }


def _olmo2(values: _Values) -> _Keys:
    norms = {"norm_position": "inside", "qk_norm": "width"}
    return _transformer(values) | _heads(values) | {"attention_bias": _biased(values)} | norms


def _olmo3(values: _Values) -> _Keys:
    """A window in three of four layers."""
    types = [FULL if layer % 4 == 3 else SLIDING for layer in range(values["num_hidden_layers"])]
    return _olmo2(values) | _windows(values, types, values["sliding_window"])


def _olmo3_details(values: _Values) -> _Keys:
    pattern = _olmo3(values).get("layer_pattern", "A")
    return _gated(values) | _rotary_by_kind(values, _OLMO3_THETA, pattern)


_OLMO3_THETA = 500000.0
_MULTIPLIERS = ("embedding_multiplier", "residual_multiplier", "attention_multiplier", "logits_scaling")


def _granite_details(values: _Values) -> _Keys:
    return _llama_details(values) | {key: values[key] for key in _MULTIPLIERS}


# ---------------------------------------------------------------------------------------------------------------------
# State spaces

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


def _mamba(values: _Values) -> _Keys:
    rank, width = values["time_step_rank"], values["hidden_size"]
    rank = math.ceil(width / 16) if rank == "auto" else rank
    return {"layer_pattern": "S", **_state_space(values, _MAMBA_SAME), "mamba_dt_rank": rank}


def _mamba2(values: _Values) -> _Keys:
    d_inner = values["num_heads"] * values["head_dim"]
    if d_inner != values["expand"] * values["hidden_size"]:
        raise UserError(f"num_heads x head_dim = {d_inner} contradicts expand x hidden_size")
    _divides(values, "num_heads", "n_groups")
    return {"layer_pattern": "M", **_state_space(values, _MAMBA_SAME | _MAMBA2_OWN)}


def _state_space(values: _Values, same: Mapping[str, str]) -> _Keys:
    """What a pure Mamba and Mamba-2 share: no positions, no attention, no FFN."""
    width, layers = values["hidden_size"], values["num_hidden_layers"]
    for key, expected in (("d_model", width), ("n_layer", layers), ("d_inner", values["expand"] * width)):
        _agree(values, key, "what hidden_size, num_hidden_layers and expand say", expected)
    _agree(values, "intermediate_size", "expand x hidden_size", values["expand"] * width)
    return {
        **_ours(values, same),
        "block_size": _LENGTH_OF_STATE_SPACE_MODELS,
        "normalization": "rmsnorm",
        "position_encoding": "none",
        "ffn_pattern": "-",
    }


def _state_space_details(values: _Values) -> _Keys:
    return {"norm_eps": values["layer_norm_epsilon"]}


def _bamba(values: _Values) -> _Keys:
    """Mamba-2 and a few layers of attention; each has an FFN."""
    count, d_inner = values["num_hidden_layers"], values["mamba_expand"] * values["hidden_size"]
    indices = values["attn_layer_indices"] or []
    if any(type(index) is not int or not 0 <= index < count for index in indices):
        raise UserError(f"attn_layer_indices={indices} names a layer that is none of 0 to {count - 1}")
    if values["mamba_d_head"] != "auto":
        _agree(values, "mamba_d_head", "mamba_expand x hidden_size / mamba_n_heads", d_inner // values["mamba_n_heads"])
    _divides({"mamba_expand x hidden_size": d_inner, **values}, "mamba_expand x hidden_size", "mamba_n_heads")
    _divides(values, "mamba_n_heads", "mamba_n_groups")
    attention = _heads(values) | {"attention_bias": _biased(values), "n_head": values["num_attention_heads"]}
    shared = {key: value for key, value in _transformer(values).items() if key not in attention}
    mamba = {**_ours(values, _BAMBA_MAMBA), "mamba_head_dim": d_inner // values["mamba_n_heads"]}
    pattern = "".join("A" if layer in indices else "M" for layer in range(count))
    return {
        **shared,
        "layer_pattern": pattern,
        "bias": values["mlp_bias"],
        **(attention if "A" in pattern else {"position_encoding": "none"}),
        **(mamba if "M" in pattern else {}),
    }


def _bamba_details(values: _Values) -> _Keys:
    attends = set(values["attn_layer_indices"] or [])
    if len(attends) in (0, values["num_hidden_layers"]):
        raise UserError("attn_layer_indices must name some layers and leave some: transformers cannot step others")
    return {"norm_eps": values["rms_norm_eps"], **_rotary(values, share_unless_given=0.5)}


# ---------------------------------------------------------------------------------------------------------------------
# DeepSeek


def _deepseek(values: _Values) -> _Keys:
    """Latent attention in every layer; experts in all but the first few."""
    count, dense = values["num_hidden_layers"], values["first_k_dense_replace"]
    if dense > count:
        raise UserError(f"first_k_dense_replace={dense} is more than num_hidden_layers={count}")
    if values["num_experts_per_tok"] > values["n_routed_experts"]:
        raise UserError(
            f"num_experts_per_tok={values['num_experts_per_tok']} is more than "
            f"n_routed_experts={values['n_routed_experts']}"
        )
    _agree(values, "num_key_value_heads", "num_attention_heads", values["num_attention_heads"])
    query = values["qk_nope_head_dim"] + values["qk_rope_head_dim"]
    _agree(values, "qk_head_dim", "qk_nope_head_dim + qk_rope_head_dim", query)
    _agree(values, "head_dim", "qk_rope_head_dim", values["qk_rope_head_dim"])
    found = _transformer(values) | {key: values[key] for key in _LATENT}
    found |= {"bias": values.get("mlp_bias", False), "attention_bias": _biased(values), "layer_pattern": "C"}
    if dense == 0:
        del found["d_ff"], found["ffn_type"]
    if dense < count:
        found |= {
            "ffn_pattern": "F" * dense + "E" * (count - dense),
            "n_experts": values["n_routed_experts"],
            "n_experts_per_token": values["num_experts_per_tok"],
            "n_shared_experts": values["n_shared_experts"] or 0,
            "expert_d_ff": values["moe_intermediate_size"],
        }
    return found


_LATENT = ("q_lora_rank", "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")

# ---------------------------------------------------------------------------------------------------------------------
# The families

_ROPE: _Keys = {"rope_theta": 10000.0, "rope_scaling": None, "rope_parameters": None}
_WHOLE_HEADS: _Keys = {"partial_rotary_factor": 1.0, "attention_dropout": 0.0}
_LLAMAS_FUNCTION: _Keys = {"hidden_act": "silu", "rms_norm_eps": 1e-6, **_ROPE}
_BIASES = {"attention_bias": False, "mlp_bias": False}
_QWEN: _Keys = {
    "num_key_value_heads": 32, "max_position_embeddings": 32768, "tie_word_embeddings": False,
    "use_sliding_window": False, "sliding_window": 4096, "max_window_layers": 28, "layer_types": None,
}  # fmt: skip
_GEMMAS_COUNTED: _Keys = {
    "num_key_value_heads": 4, "head_dim": 256, "tie_word_embeddings": True, "attention_bias": False,
    "sliding_window": 4096, "layer_types": None,
}  # fmt: skip
_GEMMAS_FUNCTION: _Keys = {
    "hidden_activation": "gelu_pytorch_tanh", "rms_norm_eps": 1e-6, "query_pre_attn_scalar": 256,
}  # fmt: skip
_GEMMAS_FIXED: _Keys = {**_WHOLE_HEADS, "use_bidirectional_attention": False, "hidden_act": "gelu_pytorch_tanh"}
_OLMOS_COUNTED: _Keys = {
    "num_key_value_heads": None, "max_position_embeddings": 2048, "tie_word_embeddings": False, "attention_bias": False,
}  # fmt: skip
_PURE_MAMBA: _Keys = {
    "expand": 2, "conv_kernel": 4, "use_bias": False, "use_conv_bias": True, "intermediate_size": None,
    "d_model": None, "n_layer": None, "d_inner": None, "ssm_cfg": None,
}  # fmt: skip
_SILU: _Keys = {"hidden_act": "silu"}  # of the convolution too
ANY_STEP = [0.0, math.inf]
_DEEPSEEKS_COUNTED: _Keys = {
    "q_lora_rank": 1536, "kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128,
    "tie_word_embeddings": False, "attention_bias": False, "head_dim": None, "qk_head_dim": None,
}  # fmt: skip
_DEEPSEEKS_FUNCTION: _Keys = _LLAMAS_FUNCTION | dict.fromkeys(
    """aux_loss_alpha n_group norm_topk_prob output_router_logits rope_interleave routed_scaling_factor scoring_func
    seq_aux topk_group topk_method""".split()
)

# What is absent from a file has the default of transformers' configuration class.
FAMILIES: dict[str, FamilyKeys] = {
    "gpt2": FamilyKeys(
        required=tuple(_GPT2_SIZES),
        counted={"n_inner": None, "n_ctx": None, "tie_word_embeddings": True},
        function={"activation_function": "gelu_new", "layer_norm_epsilon": 1e-5, **dict.fromkeys(DROPOUTS, 0.1)},
        fixed={
            "reorder_and_upcast_attn": False,
            "scale_attn_by_inverse_layer_idx": False,
            "scale_attn_weights": True,
        },
        same=_GPT2_SAME,
        read=_gpt2,
        details=_gpt2_details,
        aliases={
            "hidden_size": "n_embd",
            "max_position_embeddings": "n_positions",
            "num_attention_heads": "n_head",
            "num_hidden_layers": "n_layer",
        },
    ),
    "llama": FamilyKeys(
        required=tuple(_TRANSFORMER_SIZES),
        counted={
            "num_key_value_heads": None, "head_dim": None, "max_position_embeddings": 2048,
            "tie_word_embeddings": False, **_BIASES,
        },
        function=_LLAMAS_FUNCTION,
        fixed=_WHOLE_HEADS,
        same=_LLAMA_SAME,
        read=_llama,
        details=_llama_details,
    ),
    "mistral": FamilyKeys(
        required=tuple(_TRANSFORMER_SIZES),
        counted={
            "num_key_value_heads": 8, "head_dim": None, "max_position_embeddings": 131072,
            "tie_word_embeddings": False, "sliding_window": 4096,
        },
        function=_LLAMAS_FUNCTION,
        fixed=_WHOLE_HEADS,
        same=_TRANSFORMER_SAME,
        read=_mistral,
        details=_llama_details,
    ),
    "qwen2": FamilyKeys(
        required=tuple(_TRANSFORMER_SIZES),
        counted=_QWEN,
        function=_LLAMAS_FUNCTION,
        fixed={**_WHOLE_HEADS, "use_mrope": False},
        same=_TRANSFORMER_SAME,
        read=_qwen2,
        details=_llama_details,
    ),
    "qwen3": FamilyKeys(
        required=tuple(_TRANSFORMER_SIZES),
        counted={**_QWEN, "head_dim": 128, "attention_bias": False},
        function=_LLAMAS_FUNCTION,
        fixed={**_WHOLE_HEADS, "use_mrope": False},
        same=_TRANSFORMER_SAME,
        read=_qwen3,
        details=_llama_details,
    ),
    "phi3": FamilyKeys(
        required=tuple(_TRANSFORMER_SIZES),
        counted={
            "num_key_value_heads": None, "max_position_embeddings": 4096, "tie_word_embeddings": False,
            "sliding_window": None,
        },
        function={
            **_LLAMAS_FUNCTION, "rms_norm_eps": 1e-5, "original_max_position_embeddings": 4096,
            "partial_rotary_factor": 1.0,
        },
        fixed={"attention_dropout": 0.0, "resid_pdrop": 0.0, "embd_pdrop": 0.0},
        same=_TRANSFORMER_SAME,
        read=_phi3,
        details=_phi3_details,
    ),
    "smollm3": FamilyKeys(
        required=tuple(_TRANSFORMER_SIZES),
        counted={
            "num_key_value_heads": 4, "max_position_embeddings": 32768, "tie_word_embeddings": True,
            "use_sliding_window": False, "sliding_window": None, "layer_types": None, "no_rope_layers": None,
            "no_rope_layer_interval": 4, **_BIASES,
        },
        function={**_LLAMAS_FUNCTION, "rope_theta": 2000000.0},
        fixed=_WHOLE_HEADS,
        same=_LLAMA_SAME,
        read=_smollm3,
        details=_smollm3_details,
    ),
    "gpt_neox": FamilyKeys(
        required=tuple(_TRANSFORMER_SIZES),
        counted={"max_position_embeddings": 2048, "tie_word_embeddings": False, "attention_bias": True},
        function={
            "hidden_act": "gelu", "layer_norm_eps": 1e-5, "use_parallel_residual": True, "hidden_dropout": 0.0,
            "attention_dropout": 0.0, "rotary_pct": 0.25, "rotary_emb_base": 10000.0, "rope_scaling": None,
            "rope_parameters": None,
        },
        fixed={},
        same=_TRANSFORMER_SAME,
        read=_gpt_neox,
        details=_gpt_neox_details,
    ),
    "gemma2": FamilyKeys(
        required=tuple(_TRANSFORMER_SIZES),
        counted={**_GEMMAS_COUNTED, "max_position_embeddings": 8192},
        function={
            **_GEMMAS_FUNCTION, **_ROPE, "final_logit_softcapping": 30.0, "attn_logit_softcapping": 50.0,
        },
        fixed=_GEMMAS_FIXED,
        same=_TRANSFORMER_SAME,
        read=_gemma2,
        details=_gemma2_details,
    ),
    "gemma3_text": FamilyKeys(
        required=tuple(_TRANSFORMER_SIZES),
        counted={**_GEMMAS_COUNTED, "max_position_embeddings": 131072, "sliding_window_pattern": 6},
        function={
            **_GEMMAS_FUNCTION, **_ROPE, "rope_theta": 1000000.0, "rope_local_base_freq": 10000.0,
            "final_logit_softcapping": None,
        },
        fixed={**_GEMMAS_FIXED, "attn_logit_softcapping": None},  # which its class has and does not compute
        same=_TRANSFORMER_SAME,
        read=_gemma3,
        details=_gemma3_details,
    ),
    "olmo2": FamilyKeys(
        required=tuple(_TRANSFORMER_SIZES),
        counted=_OLMOS_COUNTED,
        function={**_LLAMAS_FUNCTION, "rms_norm_eps": 1e-5},
        fixed=_WHOLE_HEADS,
        same=_TRANSFORMER_SAME,
        read=_olmo2,
        details=_llama_details,
    ),
    "olmo3": FamilyKeys(
        required=tuple(_TRANSFORMER_SIZES),
        counted={**_OLMOS_COUNTED, "sliding_window": 4096, "layer_types": None},
        function={**_LLAMAS_FUNCTION, "rms_norm_eps": 1e-5, "rope_theta": _OLMO3_THETA},
        fixed=_WHOLE_HEADS,
        same=_TRANSFORMER_SAME,
        read=_olmo3,
        details=_olmo3_details,
    ),
    "granite": FamilyKeys(
        required=tuple(_TRANSFORMER_SIZES),
        counted={
            "num_key_value_heads": None, "max_position_embeddings": 2048, "tie_word_embeddings": False, **_BIASES,
        },
        function={**_LLAMAS_FUNCTION, **dict.fromkeys(_MULTIPLIERS, 1.0)},
        fixed=_WHOLE_HEADS,
        same=_LLAMA_SAME,
        read=_llama,
        details=_granite_details,
    ),
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
        required=tuple(_TRANSFORMER_SIZES),
        counted={
            "num_key_value_heads": 8, "attn_layer_indices": None, "mamba_n_heads": 128, "mamba_d_head": "auto",
            "mamba_n_groups": 1, "mamba_d_state": 256, "mamba_d_conv": 4, "mamba_expand": 2, "mamba_chunk_size": 256,
            "mamba_conv_bias": True, "mamba_proj_bias": False, "max_position_embeddings": 262144,
            "tie_word_embeddings": False, **_BIASES,
        },
        # Whatever partial_rotary_factor is beside rope_parameters, transformers 5 reads 0.5: it decides nothing.
        function={"rms_norm_eps": 1e-5, "partial_rotary_factor": None, **_ROPE},
        fixed={"attention_dropout": 0.0, "z_loss_coefficient": 0.0, "time_step_limit": ANY_STEP, **_SILU},
        same=_LLAMA_SAME | _BAMBA_MAMBA,
        read=_bamba,
        details=_bamba_details,
    ),
    "deepseek_v2": FamilyKeys(
        required=(*_TRANSFORMER_SIZES, "num_experts_per_tok"),
        counted={
            **_DEEPSEEKS_COUNTED, "num_key_value_heads": None, "n_routed_experts": 64, "moe_intermediate_size": 1407,
            "n_shared_experts": 2, "first_k_dense_replace": 0, "max_position_embeddings": 2048, "mlp_bias": False,
            "num_nextn_predict_layers": 0,
        },
        function=_DEEPSEEKS_FUNCTION,
        fixed=_WHOLE_HEADS,
        same=_TRANSFORMER_SAME,
        read=_deepseek,
        aliases={"num_experts": "n_routed_experts"},
    ),
    "deepseek_v3": FamilyKeys(
        required=tuple(_TRANSFORMER_SIZES),
        counted={
            **_DEEPSEEKS_COUNTED, "num_key_value_heads": None, "n_routed_experts": 256, "moe_intermediate_size": 2048,
            "n_shared_experts": 1, "num_experts_per_tok": 8, "first_k_dense_replace": 3,
            "max_position_embeddings": 4096, "num_nextn_predict_layers": 1,
        },
        function=_DEEPSEEKS_FUNCTION,
        fixed=_WHOLE_HEADS,
        same=_TRANSFORMER_SAME,
        read=_deepseek,
        aliases={"num_local_experts": "n_routed_experts", "num_mtp_layers": "num_nextn_predict_layers"},
    ),
}  # fmt: skip
