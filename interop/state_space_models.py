"""Mamba (Gu and Dao 2023), Mamba-2 (Dao and Gu 2024), and Bamba, a hybrid of Mamba-2 and Llama's attention and FFN."""

from typing import Any

from components.mixers.attention.spec import biases
from components.registry import spec
from interop.attention_models import LLAMA_ATTENTION
from interop.family import Family, Place, places, their_rotary
from interop.keys.state_space import ANY_STEP
from model_config import ModelArchitectureConfig


def _write_mamba(config: ModelArchitectureConfig) -> dict[str, Any]:
    mixer = spec("mixer", "mamba1")
    return {
        "state_size": mixer.state(config),
        "time_step_rank": mixer.rank(config),
        "use_bias": mixer.has_bias(config),
        "layer_norm_epsilon": config.norm_eps,
    }


def _write_mamba2(config: ModelArchitectureConfig) -> dict[str, Any]:
    mixer = spec("mixer", "mamba2")
    return {
        "num_heads": mixer.heads(config),
        "expand": mixer.width(config) // config.n_embd,
        "time_step_limit": ANY_STEP,
        "state_size": mixer.state(config),
        "use_bias": mixer.has_bias(config),
        "layer_norm_epsilon": config.norm_eps,
    }


def _write_bamba(config: ModelArchitectureConfig) -> dict[str, Any]:
    return {
        "attn_layer_indices": [layer for layer, letter in enumerate(config.pattern) if letter == "A"],
        "num_key_value_heads": config.kv_heads,
        "attention_bias": all(biases(config)),
        "rms_norm_eps": config.norm_eps,
        "rope_parameters": {"partial_rotary_factor": 1.0, **their_rotary(config)},
        **write_bamba_mamba(config),
    }


def write_bamba_mamba(config: ModelArchitectureConfig) -> dict[str, Any]:
    mixer = spec("mixer", "mamba2")
    return {
        "mamba_n_heads": mixer.heads(config),
        "mamba_d_head": config.mamba_head_dim,
        "mamba_expand": mixer.width(config) // config.n_embd,
        "mamba_n_groups": config.mamba_n_groups,
        "mamba_d_state": mixer.state(config),
        "mamba_d_conv": config.mamba_d_conv,
        "mamba_chunk_size": config.mamba_chunk_size,
        "mamba_conv_bias": config.mamba_conv_bias,
        "mamba_proj_bias": mixer.has_bias(config),
        "time_step_limit": ANY_STEP,
    }


def convolutions(*modules: str) -> Place:
    """Theirs have a dimension for the one input channel of each."""
    return Place(
        modules,
        to_ours=lambda tensor, config: tensor.squeeze(1) if tensor.ndim == 3 else tensor,
        to_theirs=lambda tensor, config: tensor.unsqueeze(1) if tensor.ndim == 2 else tensor,
    )


_MAMBA_MIXER = {
    "in_proj": Place(("mixer.x_proj", "mixer.z_proj")),
    "conv1d": convolutions("mixer.x_conv"),
    **places({"x_proj": "mixer.selection_proj", "dt_proj": "mixer.dt_proj", "out_proj": "mixer.o_proj"}),
    "A_log": Place(
        ("mixer.A_log",),
        to_ours=lambda tensor, config: tensor.flatten(),
        to_theirs=lambda tensor, config: tensor.unflatten(0, (-1, spec("mixer", "mamba1").state(config))),
    ),
    "D": Place(("mixer.D",)),
}
MAMBA2_MIXER = {
    "in_proj": Place(tuple(f"mixer.{name}_proj" for name in ("z", "x", "B", "C", "dt"))),
    "conv1d": convolutions("mixer.x_conv", "mixer.B_conv", "mixer.C_conv"),
    **places({name: f"mixer.{name}" for name in ("dt_bias", "A_log", "D", "norm")}),
    **places({"out_proj": "mixer.o_proj"}),
}


def named(prefix: str, mixer: dict[str, Place]) -> dict[str, Place]:
    return {f"{prefix}.{name}": place for name, place in mixer.items()}


_BACKBONE = places({"embeddings": "embedding", "norm_f": "final_norm", "lm_head": "lm_head"})

MAMBA = Family(
    model_class="MambaForCausalLM",
    has_ffn=False,
    write=_write_mamba,
    prefix="backbone.",
    blocks="layers",
    outside=_BACKBONE,
    within=places({"norm": "mixer_norm"}),
    mixers={"S": named("mixer", _MAMBA_MIXER)},
)

MAMBA2 = Family(
    model_class="Mamba2ForCausalLM",
    has_ffn=False,
    write=_write_mamba2,
    prefix="backbone.",
    blocks="layers",
    outside=_BACKBONE,
    within=places({"norm": "mixer_norm"}),
    mixers={"M": named("mixer", MAMBA2_MIXER)},
)

BAMBA = Family(
    model_class="BambaForCausalLM",
    has_ffn=True,
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
    may_lack_mixers=False,
    mixers={"A": LLAMA_ATTENTION, "M": named("mamba", MAMBA2_MIXER)},
)
