"""Granite 4 (IBM 2025; granitemoehybrid), Mamba-2 and attention with Granite's multipliers and FFNs or experts; and
Nemotron-H (NVIDIA 2025), whose layers are a mixer or an FFN each, around the stream: two of them are a block here."""

import dataclasses
from typing import Any

from components.registry import spec
from interop.attention_models import GRANITE, LLAMA_ATTENTION, write_granite
from interop.expert_models import stacked
from interop.family import Family, Place, places, their_activation
from interop.file_names import Renamed
from interop.keys.base import FULL, LINEAR
from interop.keys.state_space import ANY_STEP
from interop.state_space_models import MAMBA2_MIXER, named, write_bamba_mamba
from model_config import ModelArchitectureConfig

# ---------------------------------------------------------------------------------------------------------------------
# Granite 4


def _write_granite_hybrid(config: ModelArchitectureConfig) -> dict[str, Any]:
    return {
        **write_granite(config),
        "layer_types": _layer_types(config),
        "position_embedding_type": "rope" if config.position_encoding == "rope" else "nope",
        # Their class wants heads that divide mamba_expand x hidden_size even where no layer has any
        **(write_bamba_mamba(config) if "M" in config.pattern else {"mamba_n_heads": 1}),
        **_granite_ffn(config),
    }


def _layer_types(config: ModelArchitectureConfig) -> list[str]:
    return [LINEAR if letter == "M" else FULL for letter in config.pattern]


def _granite_ffn(config: ModelArchitectureConfig) -> dict[str, Any]:
    if all(layer.ffn != "experts" for layer in config.layers):
        sizes = {"intermediate_size": config.d_ff, "shared_intermediate_size": config.d_ff}
        return {"hidden_act": "silu", "num_local_experts": 0, **sizes}
    return {
        "hidden_act": "silu",
        "num_local_experts": config.n_experts,
        "num_experts_per_tok": config.n_experts_per_token,
        "intermediate_size": config.expert_d_ff,
        "shared_intermediate_size": config.n_shared_experts * config.expert_d_ff,
    }


_GRANITE_FILES = Renamed(
    renamed=(
        ("block_sparse_moe.input_linear.weight", "block_sparse_moe.experts.gate_up_proj"),
        ("block_sparse_moe.output_linear.weight", "block_sparse_moe.experts.down_proj"),
        ("block_sparse_moe.router.layer.weight", "block_sparse_moe.router.weight"),
    )
)
_SHARED_FFN = {
    "shared_mlp.input_linear": Place(("ffn.gate_proj", "ffn.up_proj")),
    **places({"shared_mlp.output_linear": "ffn.down_proj"}),
}
_GRANITE_EXPERTS = {
    **stacked("block_sparse_moe"),
    "shared_mlp.input_linear": Place(("ffn.shared_gate_proj", "ffn.shared_up_proj")),
    **places({"shared_mlp.output_linear": "ffn.shared_down_proj", "block_sparse_moe.router": "ffn.router"}),
}
GRANITE_HYBRID = dataclasses.replace(
    GRANITE,
    model_class="GraniteMoeHybridForCausalLM",
    write=_write_granite_hybrid,
    within=places({"input_layernorm": "mixer_norm", "post_attention_layernorm": "ffn_norm"}) | _SHARED_FFN,
    mixers={"A": LLAMA_ATTENTION, "M": named("mamba", MAMBA2_MIXER)},
    experts=_GRANITE_EXPERTS,
    in_files=_GRANITE_FILES,
)


# ---------------------------------------------------------------------------------------------------------------------
# Nemotron-H

# transformers 5.23 lets no step be less than time_step_min while it reads a prompt, and takes steps as they are when it
# goes on token by token; time_step_limit, the key that bounds them elsewhere, it does not read. This is no bound.
_NO_LEAST_STEP = {"time_step_min": 1e-30}


def _write_nemotron_h(config: ModelArchitectureConfig) -> dict[str, Any]:
    kinds = ((kind, layer.ffn) for kind, layer in zip(_layer_types(config), config.layers, strict=True))
    return {
        "layers_block_type": [half for kind, ffn in kinds for half in (kind, *["mlp"] * (ffn is not None))],
        "num_attention_heads": config.n_head,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "tie_word_embeddings": config.weight_tying,
        "layer_norm_epsilon": config.norm_eps,
        **_NO_LEAST_STEP,
        **(_write_mamba(config) if "M" in config.pattern else {}),
        **(_write_ffn(config) if config.d_ff else {}),
    }


def _write_mamba(config: ModelArchitectureConfig) -> dict[str, Any]:
    mixer = spec("mixer", "mamba2")
    return {
        "mamba_num_heads": mixer.heads(config),
        "mamba_head_dim": config.mamba_head_dim,
        "ssm_state_size": mixer.state(config),
        "n_groups": config.mamba_n_groups,
        "conv_kernel": config.mamba_d_conv,
        "chunk_size": config.mamba_chunk_size,
        "use_conv_bias": config.mamba_conv_bias,
        "use_bias": mixer.has_bias(config),
        "time_step_limit": ANY_STEP,
    }


def _write_ffn(config: ModelArchitectureConfig) -> dict[str, Any]:
    return {"intermediate_size": config.d_ff, "mlp_hidden_act": their_activation(config.activation)}


NEMOTRON_H = Family(
    model_class="NemotronHForCausalLM",
    has_ffn=None,
    write=_write_nemotron_h,
    prefix="model.",
    blocks="layers",
    outside=places({"embeddings": "embedding", "norm_f": "final_norm", "lm_head": "lm_head"}),
    within=places({"norm": "mixer_norm"}),
    mixers={
        "A": places({f"mixer.{name}_proj": f"mixer.{name}_proj" for name in "qkvo"}),
        "M": named("mixer", MAMBA2_MIXER),
    },
    ffn_layer=places({"norm": "ffn_norm", **{f"mixer.{name}_proj": f"ffn.{name}_proj" for name in ("up", "down")}}),
    left_out=("mtp.",),  # what predicts further tokens
    in_files=Renamed(renamed=(("backbone.", "model."),)),
    compared_with=_NO_LEAST_STEP,
)
