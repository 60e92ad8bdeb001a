"""What the families of interop/keys share: what there is to say of one, checks of values, rotary positions, and the
keys of Llama that its relatives have too. No torch."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from common.errors import UserError
from components.ffns.gated.spec import GATES
from interop.known_keys import HARMLESS

# Keys of every family that mean another network, unless they have this value.
ANOTHER_NETWORK: dict[str, Any] = {"is_encoder_decoder": False, "add_cross_attention": False, "moe_layer_freq": 1}

# Keys of every family that change the function and no count: quantized weights, and attention that others than
# transformers compute in chunks.
FIXED_EVERYWHERE: dict[str, Any] = {"quantization_config": None, "dual_chunk_attention_config": None}

Values = Mapping[str, Any]
Keys = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class FamilyKeys:
    """How the config.json of a model_type reads. `required` are sizes, 1 or more; what is `counted` beside them has the
    default of its family, with which its type must agree (None: a size or null)."""

    required: tuple[str, ...]
    counted: Keys
    function: Keys  # with the defaults; no count depends on them
    fixed: Keys  # likewise, but a LanguageModel computes what this value means, and nothing else
    same: Mapping[str, str]  # their key -> ours, where the value is the same both ways
    read: Callable[[Values], Keys]  # sizes and counts, as our keys
    details: Callable[[Values], Keys]  # `function`, as our keys
    aliases: Mapping[str, str] = dataclasses.field(default_factory=dict)  # another name that transformers takes -> key
    no_effect: tuple[str, ...] = ()  # of its class or its files, which it reads for nothing of such a model
    may_be_zero: tuple[str, ...] = ()  # of what is counted, which in other families is 1 or more

    @property
    def known(self) -> set[str]:
        own = {*self.required, *self.counted, *self.function, *self.fixed, *self.aliases, *self.no_effect}
        return own | {"model_type", *FIXED_EVERYWHERE, *ANOTHER_NETWORK} | HARMLESS

    @property
    def decisive(self) -> set[str]:
        """The keys that decide the counts, by all their names."""
        own = {*self.required, *self.counted}
        return own | {alias for alias, key in self.aliases.items() if key in own}


# ---------------------------------------------------------------------------------------------------------------------
# Values

_NUMBERS = {"Infinity": math.inf, "-Infinity": -math.inf, "NaN": math.nan}  # which JSON has no way to write


def plain(value: Any) -> Any:
    """Numbers that JSON does not have as numbers: transformers writes Infinity as {"__float__": "Infinity"}."""
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    if isinstance(value, Mapping):
        name = value.get("__float__") if len(value) == 1 else None
        if isinstance(name, str) and name in _NUMBERS:
            return _NUMBERS[name]
        return {key: plain(one) for key, one in value.items()}
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
_LISTS = (
    "layer_types", "attn_layer_indices", "no_rope_layers", "mlp_only_layers", "mlp_layer_types", "layers_block_type",
)  # fmt: skip
_TEXTS = ("hybrid_override_pattern",)


def check_counted(key: str, value: Any, default: Any, may_be_zero: bool = False) -> None:
    if isinstance(default, bool):
        if not isinstance(value, bool):
            raise UserError(f"{key}={value!r}: expected true or false")
    elif isinstance(default, str):
        if value != default:
            check_size(key, value)
    elif key == "ssm_cfg":
        if value not in (None, {}):
            raise UserError(f"ssm_cfg={value!r} beside a model_type is not known here")
    elif key == "linear_attn_config":
        if value is not None and not isinstance(value, Mapping):
            raise UserError(f"{key}={value!r}: expected keys with values")
    elif key in _LISTS:
        if value is not None and not isinstance(value, list):
            raise UserError(f"{key}={value!r}: expected a list")
    elif key in _TEXTS:
        if value is not None and not isinstance(value, str):
            raise UserError(f"{key}={value!r}: expected a text")
    elif value is not None or (isinstance(default, int) and key not in _MAY_BE_NULL):
        check_size(key, value, least=0 if may_be_zero or key in _MAY_BE_ZERO else 1)


def check_only(key: str, value: Any, only: Any) -> None:
    """Null says nothing."""
    if value is not None and value != only:
        raise UserError(f"{key}={value!r} cannot be represented; only {only!r} can")


def check_like(key: str, value: Any, default: Any) -> None:
    """Arithmetic is done with numbers; what has another default is checked where it is read."""
    if (
        isinstance(default, float)
        and type(value) not in (int, float)
        and (value is not None or key not in _MAY_BE_NULL)
    ):
        raise UserError(f"{key}={value!r}: expected a number")


def agree(values: Values, key: str, meaning: str, expected: int) -> None:
    """Raises UserError where a key that follows from others contradicts them."""
    if values.get(key) not in (None, expected):
        raise UserError(f"{key}={values[key]!r} contradicts {meaning} = {expected}")


def divides(values: Values, whole: str, part: str) -> None:
    if values[whole] % values[part]:
        raise UserError(f"{whole}={values[whole]} is not divisible by {part}={values[part]}")


def same_keys(values: Values, same: Mapping[str, str]) -> Keys:
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


def our_activation(key: str, name: Any) -> str:
    if not isinstance(name, str) or name not in ACTIVATIONS:
        raise UserError(f"{key}={name!r} is none of: {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]


ORIGINAL = "original_max_position_embeddings"


def rotary(values: Values, share_unless_given: float | None = None) -> Keys:
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
    share = scaling.pop("partial_rotary_factor", 1.0 if share_unless_given is None else share_unless_given)
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


def _completed(rope_type: Any, scaling: Keys, values: Values) -> Keys:
    """With what transformers takes from elsewhere: the original context, which a key beside them may say, and the
    factor, which is then that of the two contexts. What is null, or a 0 that it takes for that, is left out."""
    length = values.get("max_position_embeddings")
    if rope_type == "dynamic":
        scaling[ORIGINAL] = length
    if rope_type in ("llama3", "yarn", "longrope"):
        scaling[ORIGINAL] = values.get(ORIGINAL) or scaling.get(ORIGINAL, length)
    if rope_type in ("yarn", "longrope") and scaling.get("factor") is None:
        check_size(ORIGINAL, scaling[ORIGINAL])
        scaling["factor"] = values["max_position_embeddings"] / scaling[ORIGINAL]
    optional = ("attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim")
    absent = {name for name in optional if scaling.get(name) is None}
    absent |= {name for name in optional[1:] if scaling.get(name) == 0}
    return {name: value for name, value in scaling.items() if name not in absent}


# ---------------------------------------------------------------------------------------------------------------------
# What relatives of Llama share

TRANSFORMER_SIZES = {
    "hidden_size": "n_embd",
    "intermediate_size": "d_ff",
    "num_hidden_layers": "n_layer",
    "num_attention_heads": "n_head",
    "vocab_size": "vocab_size",
}
TRANSFORMER_SAME = {
    **TRANSFORMER_SIZES,
    "max_position_embeddings": "block_size",
    "tie_word_embeddings": "weight_tying",
}
ROPE: Keys = {"rope_theta": 10000.0, "rope_scaling": None, "rope_parameters": None}
WHOLE_HEADS: Keys = {"partial_rotary_factor": 1.0, "attention_dropout": 0.0}
LLAMAS_FUNCTION: Keys = {"hidden_act": "silu", "rms_norm_eps": 1e-6, **ROPE}
BIASES = {"attention_bias": False, "mlp_bias": False}


def transformer(values: Values) -> Keys:
    """The keys that Llama, its relatives, Bamba and DeepSeek share."""
    kind = {"normalization": "rmsnorm", "position_encoding": "rope", "ffn_type": "swiglu"}
    return same_keys(values, TRANSFORMER_SAME) | kind


def heads(values: Values) -> Keys:
    """Queries, keys and values of grouped-query attention."""
    kv_heads = values["num_key_value_heads"] or values["num_attention_heads"]
    divides({**values, "num_key_value_heads": kv_heads}, "num_attention_heads", "num_key_value_heads")
    if values.get("head_dim") is None:
        divides(values, "hidden_size", "num_attention_heads")
    return {"num_key_value_heads": kv_heads, "head_dim": values.get("head_dim")}


def biases_of(values: Values) -> str:
    return "all" if values["attention_bias"] else "none"


def gated_ffn(values: Values, key: str = "hidden_act") -> Keys:
    """Which FFN it is, and the norms' eps."""
    gate = our_activation(key, values[key])
    ffn_types = [ffn_type for ffn_type, activation in GATES.items() if activation == gate]
    if not ffn_types:
        raise UserError(f"{key}={values[key]!r}: no gated FFN here has this activation")
    return {"ffn_type": ffn_types[0], "norm_eps": values["rms_norm_eps"]}


FULL, SLIDING, LINEAR = "full_attention", "sliding_attention", "linear_attention"
LAYER_TYPES = {FULL: "A", SLIDING: "W"}


def of_each_layer(values: Values, key: str, letters: Mapping[str, str], unless_given: Sequence[str]) -> str:
    """The letters of what such a list says of every layer, where the file has it."""
    types, count = values.get(key), values["num_hidden_layers"]
    types = unless_given if types is None else types
    if len(types) != count or not all(isinstance(one, str) and one in letters for one in types):
        raise UserError(f"{key} contradicts num_hidden_layers={count}: one of {', '.join(letters)} for each")
    return "".join(letters[one] for one in types)


def check_attends(pattern: str, said_by: str = "layer_types") -> None:
    """Raises UserError for layers of which none has attention: transformers' own cache raises where none has."""
    if not set(pattern) & {"A", "C"}:
        raise UserError(f"{said_by} must name one {FULL} layer at least: transformers cannot run others alone")


def layer_windows(values: Values, unless_given: Sequence[str], window: int | None) -> Keys:
    """Which layers attend within the window: those that layer_types names, where the file has it."""
    pattern = of_each_layer(values, "layer_types", LAYER_TYPES, unless_given)
    if "W" not in pattern:
        return {}
    if window is None:
        raise UserError("layer_types has sliding_attention, whose sliding_window is not given or not used")
    return {"layer_pattern": pattern, "attention_window": window}
