"""Hugging Face in: the configuration and the weights of GPT-2 and Llama as those of a LanguageModel.

A configuration is what `config.json` holds (`PretrainedConfig.to_dict()`), in the form of transformers 4 or 5. What a
LanguageModel cannot be is refused by the name of its key; nothing that changes the function is passed over.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from errors import UserError
from model_builder import LanguageModel
from model_config import GATED_FFN_ACTIVATION, ModelArchitectureConfig, resolve_architecture

# Keys that do not change what a forward pass computes.
_WITHOUT_EFFECT = {
    "_name_or_path", "architectures", "bos_token_id", "chunk_size_feed_forward", "dtype", "eos_token_id", "id2label",
    "initializer_range", "label2id", "model_type", "output_attentions", "output_hidden_states", "pad_token_id",
    "pretraining_tp", "problem_type", "return_dict", "summary_activation", "summary_first_dropout",
    "summary_proj_to_labels", "summary_type", "summary_use_proj", "task_specific_params", "torch_dtype",
    "transformers_version", "use_cache",
}  # fmt: skip

# What a key means where config.json leaves it out, as it may; sizes have no such default here.
_DEFAULTS: dict[str, dict[str, Any]] = {
    "gpt2": {
        "n_inner": None,
        "activation_function": "gelu_new",
        "embd_pdrop": 0.1,
        "attn_pdrop": 0.1,
        "resid_pdrop": 0.1,
        "layer_norm_epsilon": 1e-5,
        "tie_word_embeddings": True,
        "n_ctx": None,
    },
    "llama": {
        "num_key_value_heads": None,
        "head_dim": None,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "rope_scaling": None,
        "rope_parameters": None,
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": False,
    },
}

# Keys that can have this value only.
_FIXED: dict[str, dict[str, Any]] = {
    "gpt2": {
        "is_encoder_decoder": False,
        "add_cross_attention": False,
        "reorder_and_upcast_attn": False,
        "scale_attn_by_inverse_layer_idx": False,
        "scale_attn_weights": True,
    },
    "llama": {"is_encoder_decoder": False, "attention_dropout": 0.0},
}

_SIZES = {
    "gpt2": {
        "n_layer": "n_layer",
        "n_head": "n_head",
        "n_embd": "n_embd",
        "n_positions": "block_size",
        "vocab_size": "vocab_size",
    },
    "llama": {
        "num_hidden_layers": "n_layer",
        "num_attention_heads": "n_head",
        "hidden_size": "n_embd",
        "intermediate_size": "d_ff",
        "max_position_embeddings": "block_size",
        "vocab_size": "vocab_size",
    },
}

_ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "silu": "silu",
    "swish": "silu",
    "relu": "relu",
    "relu2": "relu_squared",
}


def architecture_from_hugging_face(config: Mapping[str, Any]) -> ModelArchitectureConfig:
    """The architecture of a GPT-2 or Llama (`model_type`), any of its versions.

    Raises UserError, naming the key, for a model or a feature that a LanguageModel does not have.
    """
    model_type = config.get("model_type")
    if model_type not in _SIZES:
        raise UserError(f"model_type={model_type!r} is none of: {', '.join(_SIZES)}")
    defaults, fixed, sizes = _DEFAULTS[model_type], _FIXED[model_type], _SIZES[model_type]
    for key, value in config.items():
        if key in fixed and value != fixed[key]:
            raise UserError(f"{key}={value!r} cannot be represented; only {fixed[key]!r} can")
        if key not in _WITHOUT_EFFECT | defaults.keys() | fixed.keys() | sizes.keys():
            raise UserError(f"{key}={value!r} of a {model_type} configuration is not known here")
    for key in sizes:
        if config.get(key) is None:
            raise UserError(f"the {model_type} configuration has no {key}")
    complete = defaults | dict(config)
    given = {ours: complete[theirs] for theirs, ours in sizes.items()}
    given |= _gpt2_components(complete) if model_type == "gpt2" else _llama_components(complete)
    return resolve_architecture({"arch_preset": "custom", **given})


def _gpt2_components(config: Mapping[str, Any]) -> dict[str, Any]:
    dropouts = {key: config[key] for key in ("embd_pdrop", "attn_pdrop", "resid_pdrop")}
    if len(set(dropouts.values())) > 1:
        raise UserError(f"embd_pdrop, attn_pdrop and resid_pdrop differ ({dropouts}); a LanguageModel has one dropout")
    if config["n_ctx"] not in (None, config["n_positions"]):
        raise UserError(f"n_ctx={config['n_ctx']} is not n_positions={config['n_positions']}")
    return {
        "d_ff": config["n_inner"] or 4 * config["n_embd"],
        "activation": _activation("activation_function", config["activation_function"]),
        "normalization": "layernorm",
        "norm_eps": config["layer_norm_epsilon"],
        "position_encoding": "learned_absolute",
        "bias": True,
        "weight_tying": config["tie_word_embeddings"],
        "dropout": dropouts["embd_pdrop"],
    }


def _llama_components(config: Mapping[str, Any]) -> dict[str, Any]:
    if config["attention_bias"] != config["mlp_bias"]:
        raise UserError(
            f"attention_bias={config['attention_bias']} and mlp_bias={config['mlp_bias']} differ; "
            "a LanguageModel has biases in all linear layers or in none"
        )
    head_dim = config["hidden_size"] // config["num_attention_heads"]
    if config["head_dim"] not in (None, head_dim):
        raise UserError(f"head_dim={config['head_dim']} is not hidden_size / num_attention_heads = {head_dim}")
    gate = _activation("hidden_act", config["hidden_act"])
    ffn_types = [ffn_type for ffn_type, activation in GATED_FFN_ACTIVATION.items() if activation == gate]
    if not ffn_types:
        raise UserError(f"hidden_act={config['hidden_act']!r}: no gated FFN here has this activation")
    return {
        "num_key_value_heads": config["num_key_value_heads"],
        "ffn_type": ffn_types[0],
        "normalization": "rmsnorm",
        "norm_eps": config["rms_norm_eps"],
        "position_encoding": "rope",
        "bias": config["attention_bias"],
        "weight_tying": config["tie_word_embeddings"],
        **_rotary(config),
    }


def _activation(key: str, name: str) -> str:
    if name not in _ACTIVATIONS:
        raise UserError(f"{key}={name!r} is none of: {', '.join(_ACTIVATIONS)}")
    return _ACTIVATIONS[name]


def _rotary(config: Mapping[str, Any]) -> dict[str, Any]:
    """transformers 5 has all in `rope_parameters`; 4 has `rope_theta` beside `rope_scaling`, once with a `type`."""
    scaling = dict(config["rope_parameters"] or config["rope_scaling"] or {})
    theta = scaling.pop("rope_theta", config["rope_theta"])
    rope_type = scaling.pop("type", scaling.pop("rope_type", "default"))
    if rope_type != "default":
        return {"rope_theta": theta, "rope_scaling": {"rope_type": rope_type, **scaling}}
    if scaling:
        raise UserError(f"rope_parameters: {', '.join(scaling)} beside rope_type 'default' cannot be represented")
    return {"rope_theta": theta}


# Where each tensor goes: Hugging Face's module -> ours, outside the blocks and within one.

_OUTSIDE = {
    "gpt2": {"wte": "embedding", "wpe": "position.embedding", "ln_f": "final_norm", "lm_head": "lm_head"},
    "llama": {"embed_tokens": "embedding", "norm": "final_norm", "lm_head": "lm_head"},
}
_FUSED = "(q|k|v)"  # one matrix for all three
_WITHIN = {
    "gpt2": {
        "ln_1": "mixer_norm",
        "attn.c_attn": f"mixer.{_FUSED}_proj",
        "attn.c_proj": "mixer.o_proj",
        "ln_2": "ffn_norm",
        "mlp.c_fc": "ffn.up_proj",
        "mlp.c_proj": "ffn.down_proj",
    },
    "llama": {
        "input_layernorm": "mixer_norm",
        **{f"self_attn.{name}_proj": f"mixer.{name}_proj" for name in "qkvo"},
        "post_attention_layernorm": "ffn_norm",
        **{f"mlp.{name}_proj": f"ffn.{name}_proj" for name in ("gate", "up", "down")},
    },
}
_PREFIX = {"gpt2": "transformer.", "llama": "model."}  # absent where the model was saved without its head
_BLOCKS = {"gpt2": "h", "llama": "layers"}
_BUFFERS = {"gpt2": (".attn.bias", ".attn.masked_bias"), "llama": (".rotary_emb.inv_freq",)}  # of older checkpoints


def weights_from_hugging_face(state_dict: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, Tensor]:
    """The `state_dict` of the LanguageModel that `architecture_from_hugging_face(config)` describes.

    Every tensor keeps its dtype and device; some share memory with those given. Gradients under their parameters'
    names are carried over as well as weights. Raises UserError for a tensor that is unknown, missing or misshapen.
    """
    architecture = architecture_from_hugging_face(config)
    weights: dict[str, Tensor] = {}
    for name, tensor in state_dict.items():
        if not name.endswith(_BUFFERS[config["model_type"]]):
            weights |= _translate(config["model_type"], name, tensor)
    if architecture.weight_tying:
        weights.pop("lm_head.weight", None)
    _check_complete(weights, architecture)
    return weights


def _translate(model_type: str, name: str, tensor: Tensor) -> dict[str, Tensor]:
    """The tensor under its name in a LanguageModel; GPT-2's fused projection gives three."""
    module, _, kind = name.removeprefix(_PREFIX[model_type]).rpartition(".")
    parts = module.split(".", 2)  # e.g. h, 0, attn.c_proj
    in_block = len(parts) == 3 and parts[0] == _BLOCKS[model_type]
    table, place = (_WITHIN, parts[2]) if in_block else (_OUTSIDE, module)
    if place not in table[model_type]:
        raise UserError(f"tensor {name!r} has no place in a {model_type} LanguageModel")
    target = table[model_type][place]
    if in_block:
        target = f"blocks.{parts[1]}.{target}"
    if model_type == "gpt2" and in_block and tensor.ndim == 2:
        tensor = tensor.T  # GPT-2 stores (inputs, outputs)
    if _FUSED not in target:
        return {f"{target}.{kind}": tensor}
    names = [f"{target.replace(_FUSED, which)}.{kind}" for which in "qkv"]
    return dict(zip(names, tensor.chunk(3), strict=True))


def _check_complete(weights: Mapping[str, Tensor], architecture: ModelArchitectureConfig) -> None:
    with torch.device("meta"):
        expected = LanguageModel(architecture).state_dict()
    for name, tensor in expected.items():
        if name not in weights:
            raise UserError(f"the weights lack {name}")
        if weights[name].shape != tensor.shape:
            raise UserError(f"{name} is {tuple(weights[name].shape)}, the configuration says {tuple(tensor.shape)}")
    for name in weights.keys() - expected.keys():
        raise UserError(f"the weights have {name}, which the configuration does not")
