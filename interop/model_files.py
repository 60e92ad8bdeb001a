"""Reads a model's configuration from any file that holds one.

`read_model` takes a config file of this repository, a `config.json` (Hugging Face's, that of state-spaces/mamba, or the
one that a run leaves behind), each JSON with or without comments. Keys that change no count are passed over by name;
every other key is understood or refused. No torch.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from common.errors import UserError, did_you_mean
from common.json_files import read_json
from configurator import configuration_keys, from_dict, load, with_vocabulary
from data.facts import prepared
from flops_parameter_counting.costs.report import Model
from model_config import ModelArchitectureConfig, resolve_architecture

LENGTH_OF_STATE_SPACE_MODELS = 2048  # which have none of their own; Mamba's were trained at this one

# ---------------------------------------------------------------------------------------------------------------------
# Files


def read_model(path: Path, vocab_size: int | None = None) -> Model:
    """Raises UserError, naming the file and the key. A config file may leave the vocabulary to its dataset, if that is
    prepared, or to `vocab_size`."""
    if path.suffix == ".py":
        given = [] if vocab_size is None else [f"--vocab_size={vocab_size}"]
        configuration = load([str(path), *given])
        if configuration.model.vocab_size is None:
            dataset = prepared(configuration.run.dataset, configuration.run.data_dir)
            if dataset is None:
                raise UserError(
                    f"{path}: its vocabulary is that of the dataset {configuration.run.dataset!r}, which is not "
                    "prepared: prepare it, or give a vocab_size"
                )
            configuration = with_vocabulary(configuration, dataset.vocab_size)
        return Model(configuration.name, "config file", configuration.model, run=configuration.run)
    if vocab_size is not None:
        raise UserError(f"--vocab_size is for a config file; {path} says its own")
    try:
        return model_from_values(read_json(path), path.stem)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def model_from_values(values: Mapping[str, Any], name: str) -> Model:
    """The model of the content of a config.json. Raises UserError, naming the key."""
    if "model_type" not in values and "ssm_cfg" in values:
        values = _from_mamba_ssm(values)
    model_type = values.get("model_type")
    if model_type is None and values.get("architectures") == ["GPT2LMHeadModel"]:  # written before there were types
        model_type = "gpt2"
    if model_type is None:
        if not values.keys() & configuration_keys().keys():
            raise UserError("no model_type, which names a Hugging Face model, and no key of this repository's")
        return Model(name, "saved configuration", from_dict(values))
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        hint = did_you_mean(str(model_type), FAMILIES)
        raise UserError(f"model_type={model_type!r} is none of: {', '.join(FAMILIES)}{hint}")
    return _read_family(FAMILIES[model_type], model_type, values, name)


# ---------------------------------------------------------------------------------------------------------------------
# Hugging Face's families

# Keys that change no count. The dtype of a checkpoint's tensors is not asked here: --dtype says it.
_WITHOUT_EFFECT = """
    _attn_implementation _attn_implementation_autoset _name_or_path activation_function architectures
    attention_dropout attn_pdrop attn_rotary_emb auto_map aux_loss_alpha bos_token_id chunk_size_feed_forward
    dtype embd_pdrop eos_token_id ep_size finetuning_task fused_add_norm
    gradient_checkpointing hidden_act id2label initializer_range is_decoder label2id layer_norm_epsilon
    mamba_dt_rank max_length min_length model_type n_group n_special norm_before_gate norm_topk_prob
    num_logits_to_keep output_attentions output_hidden_states output_router_logits pad_token_id
    pad_vocab_size_multiple partial_rotary_factor predict_special_tokens prefix pretraining_tp problem_type
    quantization_config reorder_and_upcast_attn rescale_prenorm_residual resid_pdrop residual_in_fp32 return_dict
    rms_norm rms_norm_eps rope_interleave rope_parameters rope_scaling rope_theta routed_scaling_factor
    scale_attn_by_inverse_layer_idx scale_attn_weights scoring_func sep_token_id seq_aux summary_activation
    summary_first_dropout summary_proj_to_labels summary_type summary_use_proj task_specific_params time_step_floor
    time_step_init_scheme time_step_limit time_step_max time_step_min time_step_scale tokenizer_class topk_group
    topk_method torch_dtype torchscript transformers_version unsloth_fixed unsloth_version use_associative_scan
    use_bfloat16 use_cache use_mamba_kernels use_mambapy use_mrope z_loss_coefficient
""".split()

# Keys that mean another network than the one counted, unless they have this value.
_FIXED: dict[str, Any] = {"is_encoder_decoder": False, "add_cross_attention": False, "moe_layer_freq": 1}

_Values = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Family:
    """How the config.json of a model_type reads. `required` are sizes, 1 or more; what is `optional` has the default
    of its family, with which its type must agree (None: a size or null)."""

    required: tuple[str, ...]
    optional: dict[str, Any]
    build: Callable[[_Values], dict[str, Any]]  # our keys


def _read_family(family: Family, model_type: str, values: _Values, name: str) -> Model:
    known = {*family.required, *family.optional, *_FIXED, *_WITHOUT_EFFECT}
    for key, value in values.items():
        if key not in known:
            raise UserError(f"unknown key {key!r} of a {model_type} configuration{did_you_mean(key, known)}")
        if key in _FIXED and value != _FIXED[key]:
            raise UserError(f"{key}={value!r} is not counted here; only {_FIXED[key]!r} is")
    for key in family.required:
        if key not in values:
            raise UserError(f"a {model_type} configuration needs {key}, which is missing")
        _check_size(key, values[key])
    for key, default in family.optional.items():
        if key in values:
            _check_optional(key, values[key], default)
    architecture = resolve_architecture({"arch_preset": "custom", **family.build(family.optional | dict(values))})
    notes = tuple(_notes(family, model_type, values, architecture))
    return Model(name, model_type, architecture, notes, is_ours=False)


_MOST = 10**9  # of anything: mistakes end here, and 64-bit arithmetic is far
_MOST_LAYERS = 10**5


def _check_size(key: str, value: Any, least: int = 1) -> None:
    most = _MOST_LAYERS if key in ("n_layer", "num_hidden_layers") else _MOST
    if type(value) is not int or not least <= value <= most:
        raise UserError(f"{key}={value!r}: expected a whole number from {least} to {most:,}")


_MAY_BE_NULL = ("sliding_window",)  # although its default is a size
_MAY_BE_ZERO = ("first_k_dense_replace", "n_shared_experts", "num_nextn_predict_layers", "max_window_layers")


def _check_optional(key: str, value: Any, default: Any) -> None:
    if isinstance(default, bool):
        if not isinstance(value, bool):
            raise UserError(f"{key}={value!r}: expected true or false")
    elif isinstance(default, str):
        if value != default:
            _check_size(key, value)
    elif key == "ssm_cfg":
        if value not in (None, {}):
            raise UserError(f"ssm_cfg={value!r} beside a model_type is not known here")
    elif key in ("layer_types", "attn_layer_indices"):
        if value is not None and not isinstance(value, list):
            raise UserError(f"{key}={value!r}: expected a list")
    elif value is not None or (isinstance(default, int) and key not in _MAY_BE_NULL):
        _check_size(key, value, least=0 if key in _MAY_BE_ZERO else 1)


def _notes(family: Family, model_type: str, values: _Values, architecture: ModelArchitectureConfig) -> list[str]:
    """What was assumed."""
    mixers = {layer.mixer for layer in architecture.layer_counts}
    assumed = [key for key in _WORTH_A_NOTE if family.optional.get(key) is not None and key not in values]
    if "sliding_attention" not in mixers:
        assumed = [key for key in assumed if key != "sliding_window"]
    defaults = [f"{key}={family.optional[key]}" for key in assumed]
    notes = [f"not in the file, so as {model_type} has it by default: {', '.join(defaults)}"] if defaults else []
    if mixers <= {"mamba1", "mamba2"}:
        from_a_chunk_on = f" from {architecture.mamba_chunk_size} tokens, a chunk, on" if "mamba2" in mixers else ""
        notes.append(f"a state-space model costs the same a token at any sequence length{from_a_chunk_on}")
    if values.get("num_nextn_predict_layers"):
        notes.append("num_nextn_predict_layers: the layers that predict further tokens are not counted")
    if values.get("quantization_config") is not None:
        notes.append("quantization_config: scales are not counted, and bytes are those of --dtype")
    return notes


# Optional keys whose default deserves a word, as it decides what is counted.
_WORTH_A_NOTE = (
    "sliding_window", "head_dim", "max_position_embeddings", "state_size", "expand", "conv_kernel", "time_step_rank",
    "mamba_d_conv", "mamba_expand", "tie_word_embeddings",
)  # fmt: skip


def _agree(values: _Values, key: str, meaning: str, expected: int) -> None:
    """Raises UserError where a key that follows from others contradicts them."""
    if values.get(key) not in (None, expected):
        raise UserError(f"{key}={values[key]!r} contradicts {meaning} = {expected}")


def _divides(values: _Values, whole: str, part: str) -> None:
    if values[whole] % values[part]:
        raise UserError(f"{whole}={values[whole]} is not divisible by {part}={values[part]}")


def _gpt2(values: _Values) -> dict[str, Any]:
    _divides(values, "n_embd", "n_head")
    _agree(values, "n_ctx", "n_positions", values["n_positions"])
    return {
        "n_layer": values["n_layer"],
        "n_head": values["n_head"],
        "n_embd": values["n_embd"],
        "d_ff": values["n_inner"] or 4 * values["n_embd"],
        "block_size": values["n_positions"],
        "vocab_size": values["vocab_size"],
        "position_encoding": "learned_absolute",
        "bias": True,
        "weight_tying": values["tie_word_embeddings"],
    }


def _transformer(values: _Values) -> dict[str, Any]:
    """The keys that Llama, its relatives, Bamba and DeepSeek share: rotary positions, RMSNorm, gated FFN."""
    return {
        "n_layer": values["num_hidden_layers"],
        "n_head": values["num_attention_heads"],
        "n_embd": values["hidden_size"],
        "d_ff": values["intermediate_size"],
        "block_size": values["max_position_embeddings"],
        "vocab_size": values["vocab_size"],
        "normalization": "rmsnorm",
        "position_encoding": "rope",
        "ffn_type": "swiglu",
        "weight_tying": values["tie_word_embeddings"],
    }


def _heads(values: _Values) -> dict[str, Any]:
    """Queries, keys and values of grouped-query attention."""
    kv_heads = values["num_key_value_heads"] or values["num_attention_heads"]
    _divides({**values, "num_key_value_heads": kv_heads}, "num_attention_heads", "num_key_value_heads")
    if values.get("head_dim") is None:
        _divides(values, "hidden_size", "num_attention_heads")
    return {"num_key_value_heads": kv_heads, "head_dim": values.get("head_dim")}


def _biased(values: _Values) -> str:
    return "all" if values["attention_bias"] else "none"


def _llama(values: _Values) -> dict[str, Any]:
    biases = {"bias": values["mlp_bias"], "attention_bias": _biased(values)}
    return _transformer(values) | _heads(values) | biases


def _mistral(values: _Values) -> dict[str, Any]:
    window = {"layer_pattern": "W", "attention_window": values["sliding_window"]} if values["sliding_window"] else {}
    return _transformer(values) | _heads(values) | window


def _qwen2(values: _Values) -> dict[str, Any]:
    """Biases of Q, K and V, and of nothing else."""
    return _transformer(values) | _heads(values) | _qwen_layers(values) | {"attention_bias": "qkv"}


def _qwen3(values: _Values) -> dict[str, Any]:
    shared = _transformer(values) | _heads(values) | _qwen_layers(values)
    return shared | {"attention_bias": _biased(values), "qk_norm": True}


def _qwen_layers(values: _Values) -> dict[str, Any]:
    """Sliding windows from layer max_window_layers on, where they are used at all; `layer_types` must say the same."""
    count = values["num_hidden_layers"]
    windowed = values["use_sliding_window"] and values["sliding_window"] is not None
    full = min(count, values["max_window_layers"]) if windowed else count
    types = ["full_attention"] * full + ["sliding_attention"] * (count - full)
    if values["layer_types"] not in (None, types):
        raise UserError("layer_types contradicts num_hidden_layers, use_sliding_window and max_window_layers")
    if full == count:
        return {}
    return {"layer_pattern": "A" * full + "W" * (count - full), "attention_window": values["sliding_window"]}


def _mamba(values: _Values) -> dict[str, Any]:
    rank, width = values["time_step_rank"], values["hidden_size"]
    rank = math.ceil(width / 16) if rank == "auto" else rank
    return {"layer_pattern": "S", **_state_space(values), "mamba_dt_rank": rank}


def _mamba2(values: _Values) -> dict[str, Any]:
    d_inner = values["num_heads"] * values["head_dim"]
    if d_inner != values["expand"] * values["hidden_size"]:
        raise UserError(f"num_heads x head_dim = {d_inner} contradicts expand x hidden_size")
    _divides(values, "num_heads", "n_groups")
    return {
        "layer_pattern": "M",
        **_state_space(values),
        "mamba_head_dim": values["head_dim"],
        "mamba_n_groups": values["n_groups"],
        "mamba_chunk_size": values["chunk_size"],
    }


def _state_space(values: _Values) -> dict[str, Any]:
    """What a pure Mamba and Mamba-2 share: no positions, no attention, no FFN."""
    width, layers = values["hidden_size"], values["num_hidden_layers"]
    for key, expected in (("d_model", width), ("n_layer", layers), ("d_inner", values["expand"] * width)):
        _agree(values, key, "what hidden_size, num_hidden_layers and expand say", expected)
    _agree(values, "intermediate_size", "expand x hidden_size", values["expand"] * width)
    return {
        "n_layer": layers,
        "n_embd": width,
        "block_size": LENGTH_OF_STATE_SPACE_MODELS,
        "vocab_size": values["vocab_size"],
        "normalization": "rmsnorm",
        "position_encoding": "none",
        "weight_tying": values["tie_word_embeddings"],
        "ffn_pattern": "-",
        "mamba_d_state": values["state_size"],
        "mamba_expand": values["expand"],
        "mamba_d_conv": values["conv_kernel"],
        "mamba_conv_bias": values["use_conv_bias"],
        "mamba_bias": values["use_bias"],
    }


def _bamba(values: _Values) -> dict[str, Any]:
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
    mamba = {
        "mamba_expand": values["mamba_expand"],
        "mamba_head_dim": d_inner // values["mamba_n_heads"],
        "mamba_d_state": values["mamba_d_state"],
        "mamba_d_conv": values["mamba_d_conv"],
        "mamba_n_groups": values["mamba_n_groups"],
        "mamba_chunk_size": values["mamba_chunk_size"],
        "mamba_conv_bias": values["mamba_conv_bias"],
        "mamba_bias": values["mamba_proj_bias"],
    }
    pattern = "".join("A" if layer in indices else "M" for layer in range(count))
    return {
        **shared,
        "layer_pattern": pattern,
        "bias": values["mlp_bias"],
        **(attention if "A" in pattern else {"position_encoding": "none"}),
        **(mamba if "M" in pattern else {}),
    }


def _deepseek(values: _Values) -> dict[str, Any]:
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
    found |= {"bias": values["mlp_bias"], "attention_bias": _biased(values), "layer_pattern": "C"}
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
_TRANSFORMER = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
_BIASES = {"attention_bias": False, "mlp_bias": False}
_QWEN = {
    "max_position_embeddings": 32768, "tie_word_embeddings": False, "use_sliding_window": False,
    "sliding_window": 4096, "max_window_layers": 28, "layer_types": None,
}  # fmt: skip
_PURE_MAMBA = {
    "expand": 2, "conv_kernel": 4, "use_bias": False, "use_conv_bias": True, "intermediate_size": None,
    "d_model": None, "n_layer": None, "d_inner": None, "ssm_cfg": None,
}  # fmt: skip
_DEEPSEEK = Family(
    (*_TRANSFORMER, "moe_intermediate_size", "n_routed_experts", "num_experts_per_tok", *_LATENT[1:]),
    {
        "q_lora_rank": None, "num_key_value_heads": None, "n_shared_experts": None, "first_k_dense_replace": 0,
        "max_position_embeddings": 4096, "tie_word_embeddings": False, "head_dim": None, "qk_head_dim": None,
        "num_nextn_predict_layers": 0, **_BIASES,
    },
    _deepseek,
)  # fmt: skip

# What is absent from a file has the default of transformers' configuration class, where one is safe to assume.
FAMILIES: dict[str, Family] = {
    "gpt2": Family(
        ("n_layer", "n_head", "n_embd", "n_positions", "vocab_size"),
        {"n_inner": None, "n_ctx": None, "tie_word_embeddings": True},
        _gpt2,
    ),
    "llama": Family(
        _TRANSFORMER,
        {
            "num_key_value_heads": None, "head_dim": None, "max_position_embeddings": 2048,
            "tie_word_embeddings": False, **_BIASES,
        },
        _llama,
    ),
    "mistral": Family(
        (*_TRANSFORMER, "num_key_value_heads"),
        {
            "head_dim": None, "max_position_embeddings": 131072, "tie_word_embeddings": False,
            "sliding_window": 4096,
        },
        _mistral,
    ),
    "qwen2": Family((*_TRANSFORMER, "num_key_value_heads"), _QWEN, _qwen2),
    "qwen3": Family(
        (*_TRANSFORMER, "num_key_value_heads"), {**_QWEN, "head_dim": 128, "attention_bias": False}, _qwen3
    ),
    "mamba": Family(
        ("hidden_size", "num_hidden_layers", "vocab_size"),
        {"state_size": 16, "time_step_rank": "auto", "tie_word_embeddings": True, **_PURE_MAMBA},
        _mamba,
    ),
    "mamba2": Family(
        ("hidden_size", "num_hidden_layers", "vocab_size", "num_heads", "head_dim", "n_groups", "state_size"),
        {"tie_word_embeddings": False, "time_step_rank": "auto", "chunk_size": 256, **_PURE_MAMBA},
        _mamba2,
    ),
    "bamba": Family(
        (*_TRANSFORMER, "num_key_value_heads", "mamba_n_heads", "mamba_n_groups", "mamba_d_state"),
        {
            "attn_layer_indices": None, "mamba_d_head": "auto", "mamba_d_conv": 4, "mamba_expand": 2,
            "mamba_chunk_size": 256, "mamba_conv_bias": True, "mamba_proj_bias": False,
            "max_position_embeddings": 262144, "tie_word_embeddings": False, **_BIASES,
        },
        _bamba,
    ),
    "deepseek_v2": _DEEPSEEK,
    "deepseek_v3": _DEEPSEEK,
}  # fmt: skip


# What state-spaces/mamba calls the keys of Hugging Face's Mamba and Mamba-2, and its own defaults.
_MAMBA_SSM_NAMES = {
    "d_state": "state_size", "d_conv": "conv_kernel", "expand": "expand", "bias": "use_bias",
    "conv_bias": "use_conv_bias", "dt_rank": "time_step_rank", "headdim": "head_dim", "ngroups": "n_groups",
    "chunk_size": "chunk_size",
}  # fmt: skip
_MAMBA_SSM_KEYS = (
    "d_model", "n_layer", "vocab_size", "ssm_cfg", "rms_norm", "residual_in_fp32", "fused_add_norm",
    "pad_vocab_size_multiple", "tie_embeddings", "d_intermediate", "attn_layer_idx", "attn_cfg",
)  # fmt: skip


def _from_mamba_ssm(values: _Values) -> dict[str, Any]:
    """The config.json of state-spaces/mamba-* and mamba2-* in Hugging Face's keys."""
    for key in values:
        if key not in _MAMBA_SSM_KEYS:
            raise UserError(f"unknown key {key!r} of a mamba_ssm configuration{did_you_mean(key, _MAMBA_SSM_KEYS)}")
    if values.get("rms_norm", True) is not True:
        raise UserError(f"rms_norm={values['rms_norm']!r} is not counted here; only true is")
    for key in ("attn_layer_idx", "d_intermediate"):
        if values.get(key):
            raise UserError(f"{key}={values[key]!r}: layers of attention or FFN are not counted in this format")
    for key in ("d_model", "n_layer", "vocab_size"):
        if key not in values:
            raise UserError(f"a mamba_ssm configuration needs {key}, which is missing")
        _check_size(key, values[key])
    details = dict(values["ssm_cfg"]) if isinstance(values["ssm_cfg"], dict) else {}
    layer = details.pop("layer", "Mamba1")
    if layer not in ("Mamba1", "Mamba2"):
        raise UserError(f"ssm_cfg: layer={layer!r} is none of: Mamba1, Mamba2")
    for key in details:
        if key not in _MAMBA_SSM_NAMES:
            raise UserError(f"ssm_cfg: unknown key {key!r}{did_you_mean(key, _MAMBA_SSM_NAMES)}")
    multiple, vocab_size = values.get("pad_vocab_size_multiple", 8), values["vocab_size"]
    _check_size("pad_vocab_size_multiple", multiple)
    theirs = {_MAMBA_SSM_NAMES[key]: value for key, value in details.items()}
    translated = {
        "model_type": layer.lower().removesuffix("1"),
        "hidden_size": values["d_model"],
        "num_hidden_layers": values["n_layer"],
        "vocab_size": math.ceil(vocab_size / multiple) * multiple,
        "tie_word_embeddings": values.get("tie_embeddings", True),
        "expand": 2,
    }
    if layer == "Mamba2":
        translated |= {"state_size": 128, "head_dim": 64, "n_groups": 1}
    translated |= theirs
    if layer == "Mamba2":
        for key in ("expand", "head_dim"):
            _check_size(key, translated[key])
        translated["num_heads"] = translated["expand"] * translated["hidden_size"] // translated["head_dim"]
    return translated
