"""Mamba (Gu and Dao 2023), Mamba-2 (Dao and Gu 2024), and Bamba, a hybrid of Mamba-2 and Llama's attention and FFN."""

import math
from typing import Any

from common.errors import UserError
from components.registry import spec
from interop.attention_models import LLAMA_ATTENTION
from interop.family import Family, Place, our_rotary, places, their_rotary
from interop.model_files import LENGTH_OF_STATE_SPACE_MODELS
from model_config import ModelArchitectureConfig

# Of initialisation, of which implementation runs, and state-spaces' names that transformers keeps and does not read.
# In bfloat16, residual_in_fp32 rounds elsewhere than a LanguageModel does.
_WITHOUT_EFFECT = frozenset(
    """
    d_inner d_model fused_add_norm n_layer norm_before_gate pad_vocab_size_multiple rescale_prenorm_residual
    residual_in_fp32 rms_norm time_step_floor time_step_init_scheme time_step_max time_step_min
    time_step_scale use_associative_scan use_mambapy
    """.split()
)
_FIXED = {"is_encoder_decoder": False, "use_conv_bias": True, "hidden_act": "silu", "ssm_cfg": {}}
_SIZES = {"num_hidden_layers": "n_layer", "hidden_size": "n_embd", "vocab_size": "vocab_size"}

# Their key -> ours, of Mamba and Mamba-2 alike, the same both ways.
_SAME = {
    "state_size": "mamba_d_state",
    "expand": "mamba_expand",
    "conv_kernel": "mamba_d_conv",
    "layer_norm_epsilon": "norm_eps",
    "use_bias": "bias",
    "tie_word_embeddings": "weight_tying",
}
_SAME_IN_MAMBA2 = {"head_dim": "mamba_head_dim", "n_groups": "mamba_n_groups", "chunk_size": "mamba_chunk_size"}
_SAME_IN_BAMBA = {
    "mamba_n_groups": "mamba_n_groups",
    "mamba_d_state": "mamba_d_state",
    "mamba_d_conv": "mamba_d_conv",
    "mamba_expand": "mamba_expand",
    "mamba_chunk_size": "mamba_chunk_size",
    "rms_norm_eps": "norm_eps",
    "tie_word_embeddings": "weight_tying",
}
_ALONE = {  # what the layers of a pure state-space model are
    "ffn_after": "attention",
    "position_encoding": "none",
    "normalization": "rmsnorm",
    "block_size": LENGTH_OF_STATE_SPACE_MODELS,
}


def _ours(config: dict[str, Any], same: dict[str, str]) -> dict[str, Any]:
    return {ours: config[theirs] for theirs, ours in same.items()}


def _theirs(config: ModelArchitectureConfig, same: dict[str, str], mixer: str) -> dict[str, Any]:
    values = {theirs: getattr(config, ours) for theirs, ours in same.items()}
    state = next(theirs for theirs, ours in same.items() if ours == "mamba_d_state")
    return values | {state: spec("mixer", mixer).state(config)}


def _check_derived(key: str, value: Any, derived: int, how: str) -> None:
    if value not in (None, "auto", derived):
        raise UserError(f"{key}={value!r} is not {how} = {derived}")


def _read_mamba(config: dict[str, Any]) -> dict[str, Any]:
    hidden = config["hidden_size"]
    _check_derived("intermediate_size", config["intermediate_size"], config["expand"] * hidden, "expand x hidden_size")
    _check_derived("time_step_rank", config["time_step_rank"], math.ceil(hidden / 16), "hidden_size / 16, rounded up")
    return {"layer_pattern": "S", **_ALONE, **_ours(config, _SAME)}


def _write_mamba(config: ModelArchitectureConfig) -> dict[str, Any]:
    return _theirs(config, _SAME, "mamba1")


def _read_mamba2(config: dict[str, Any]) -> dict[str, Any]:
    width = config["expand"] * config["hidden_size"]
    _check_derived("num_heads x head_dim", config["num_heads"] * config["head_dim"], width, "expand x hidden_size")
    return {"layer_pattern": "M", **_ALONE, **_ours(config, _SAME | _SAME_IN_MAMBA2)}


def _write_mamba2(config: ModelArchitectureConfig) -> dict[str, Any]:
    return {"num_heads": spec("mixer", "mamba2").heads(config), **_theirs(config, _SAME | _SAME_IN_MAMBA2, "mamba2")}


def _read_bamba(config: dict[str, Any]) -> dict[str, Any]:
    biases = {key: config[key] for key in ("attention_bias", "mlp_bias", "mamba_proj_bias")}
    if len(set(biases.values())) > 1:
        raise UserError(f"{', '.join(biases)} differ; a LanguageModel has biases in all linear layers or in none")
    heads, width = config["mamba_n_heads"], config["mamba_expand"] * config["hidden_size"]
    if heads < 1 or width % heads:
        raise UserError(f"mamba_n_heads={heads} does not divide mamba_expand x hidden_size = {width}")
    _check_derived("mamba_d_head", config["mamba_d_head"], width // heads, "mamba_expand x hidden_size / mamba_n_heads")
    layers, attends = range(config["num_hidden_layers"]), config["attn_layer_indices"]
    if not isinstance(attends, list) or not all(layer in layers for layer in attends):
        raise UserError(f"attn_layer_indices={attends!r} must be a list of layers, each one of {len(layers)} from 0 on")
    if len(set(attends)) in (0, len(layers)):
        raise UserError("attn_layer_indices must name some layers and leave some: transformers cannot step others")
    return {
        "layer_pattern": "".join("A" if layer in attends else "M" for layer in layers),
        "num_key_value_heads": config["num_key_value_heads"],
        "ffn_type": "swiglu",
        "normalization": "rmsnorm",
        "position_encoding": "rope",
        "bias": config["mlp_bias"],
        "mamba_head_dim": width // heads,
        **_ours(config, _SAME_IN_BAMBA),
        **our_rotary(config, rotated_unless_given=0.5),
    }


def _write_bamba(config: ModelArchitectureConfig) -> dict[str, Any]:
    return {
        "attn_layer_indices": [layer for layer, letter in enumerate(config.pattern) if letter == "A"],
        "num_key_value_heads": config.kv_heads,
        "rope_parameters": {"partial_rotary_factor": 1.0, **their_rotary(config)},
        "mamba_n_heads": spec("mixer", "mamba2").heads(config),
        "mamba_d_head": config.mamba_head_dim,
        **dict.fromkeys(("attention_bias", "mlp_bias", "mamba_proj_bias"), config.bias),
        **_theirs(config, _SAME_IN_BAMBA, "mamba2"),
    }


def _convolutions(*modules: str) -> Place:
    """Theirs have a dimension for the one input channel of each."""
    return Place(
        modules,
        to_ours=lambda tensor: tensor.squeeze(1) if tensor.ndim == 3 else tensor,
        to_theirs=lambda tensor, config: tensor.unsqueeze(1) if tensor.ndim == 2 else tensor,
    )


_MAMBA_MIXER = {
    "in_proj": Place(("mixer.x_proj", "mixer.z_proj")),
    "conv1d": _convolutions("mixer.x_conv"),
    **places({"x_proj": "mixer.selection_proj", "dt_proj": "mixer.dt_proj", "out_proj": "mixer.o_proj"}),
    "A_log": Place(
        ("mixer.A_log",),
        to_ours=lambda tensor: tensor.flatten(),
        to_theirs=lambda tensor, config: tensor.unflatten(0, (-1, spec("mixer", "mamba1").state(config))),
    ),
    "D": Place(("mixer.D",)),
}
_MAMBA2_MIXER = {
    "in_proj": Place(tuple(f"mixer.{name}_proj" for name in ("z", "x", "B", "C", "dt"))),
    "conv1d": _convolutions("mixer.x_conv", "mixer.B_conv", "mixer.C_conv"),
    **places({name: f"mixer.{name}" for name in ("dt_bias", "A_log", "D", "norm")}),
    **places({"out_proj": "mixer.o_proj"}),
}


def _named(prefix: str, mixer: dict[str, Place]) -> dict[str, Place]:
    return {f"{prefix}.{name}": place for name, place in mixer.items()}


_BACKBONE = places({"embeddings": "embedding", "norm_f": "final_norm", "lm_head": "lm_head"})

MAMBA = Family(
    model_class="MambaForCausalLM",
    has_ffn=False,
    sizes=_SIZES,
    defaults={
        "state_size": 16,
        "expand": 2,
        "conv_kernel": 4,
        "layer_norm_epsilon": 1e-5,
        "use_bias": False,
        "tie_word_embeddings": True,
        "intermediate_size": None,
        "time_step_rank": "auto",
    },
    fixed=_FIXED,
    read=_read_mamba,
    write=_write_mamba,
    prefix="backbone.",
    blocks="layers",
    outside=_BACKBONE,
    within=places({"norm": "mixer_norm"}),
    mixers={"S": _named("mixer", _MAMBA_MIXER)},
    without_effect=_WITHOUT_EFFECT,
)

MAMBA2 = Family(
    model_class="Mamba2ForCausalLM",
    has_ffn=False,
    sizes=_SIZES,
    defaults={
        "num_heads": 128,
        "head_dim": 64,
        "state_size": 128,
        "n_groups": 8,
        "chunk_size": 256,
        "expand": 2,
        "conv_kernel": 4,
        "layer_norm_epsilon": 1e-5,
        "use_bias": False,
        "tie_word_embeddings": False,
    },
    fixed={**_FIXED, "time_step_limit": [0.0, math.inf]},
    read=_read_mamba2,
    write=_write_mamba2,
    prefix="backbone.",
    blocks="layers",
    outside=_BACKBONE,
    within=places({"norm": "mixer_norm"}),
    mixers={"M": _named("mixer", _MAMBA2_MIXER)},
    without_effect=_WITHOUT_EFFECT | {"time_step_rank"},
)

BAMBA = Family(
    model_class="BambaForCausalLM",
    has_ffn=True,
    sizes={
        **_SIZES,
        "num_attention_heads": "n_head",
        "intermediate_size": "d_ff",
        "max_position_embeddings": "block_size",
    },
    defaults={
        "attn_layer_indices": [],
        "num_key_value_heads": 8,
        "rope_theta": 10000.0,
        "rope_scaling": None,
        "rope_parameters": None,
        "attention_bias": False,
        "mlp_bias": False,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
        "mamba_n_heads": 128,
        "mamba_d_head": "auto",
        "mamba_n_groups": 1,
        "mamba_d_state": 256,
        "mamba_d_conv": 4,
        "mamba_expand": 2,
        "mamba_chunk_size": 256,
        "mamba_proj_bias": False,
    },
    fixed={
        "is_encoder_decoder": False,
        "hidden_act": "silu",  # of the convolution too
        "attention_dropout": 0.0,
        "mamba_conv_bias": True,
        "time_step_limit": [0.0, math.inf],
        "z_loss_coefficient": 0.0,
    },
    read=_read_bamba,
    write=_write_bamba,
    prefix="model.",
    blocks="layers",
    outside=places({"embed_tokens": "embedding", "final_layernorm": "final_norm", "lm_head": "lm_head"}),
    within=places(
        {
            "input_layernorm": "mixer_norm",
            "pre_ff_layernorm": "ffn_norm",
            **{f"feed_forward.{name}_proj": f"ffn.{name}_proj" for name in ("gate", "up", "down")},
        }
    ),
    mixers={"A": LLAMA_ATTENTION, "M": _named("mamba", _MAMBA2_MIXER)},
    # Whatever partial_rotary_factor is beside rope_parameters, transformers 5 reads 0.5.
    without_effect=frozenset(
        {"attn_rotary_emb", "mamba_dt_rank", "num_logits_to_keep", "partial_rotary_factor", "use_mamba_kernels"}
    ),
)
