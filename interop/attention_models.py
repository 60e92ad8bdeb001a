"""GPT-2 (Radford et al. 2019), Llama (Touvron et al. 2023) and the families that came of it."""

import dataclasses
from typing import Any

from torch import Tensor

from components.ffns.gated.spec import GATES
from components.mixers.attention.spec import biases
from interop.family import Family, Place, places, their_activation, their_rotary
from interop.keys.base import FULL, LAYER_TYPES, SLIDING
from interop.keys.gpt2 import DROPOUTS
from model_config import ModelArchitectureConfig

LAYER_TYPES_OF = {ours: theirs for theirs, ours in LAYER_TYPES.items()} | {"U": FULL}


def _write_gpt2(config: ModelArchitectureConfig) -> dict[str, Any]:
    return {
        "n_inner": config.d_ff,
        "activation_function": their_activation(config.activation),
        "layer_norm_epsilon": config.norm_eps,
        **dict.fromkeys(DROPOUTS, config.dropout),
    }


def write_relative(config: ModelArchitectureConfig) -> dict[str, Any]:
    """What Llama and the families that came of it share."""
    return {
        "num_key_value_heads": config.kv_heads,
        "hidden_act": their_activation(GATES.get(config.ffn_type, "silu")),
        "rms_norm_eps": config.norm_eps,
        "head_dim": config.head_dim,
        "rope_parameters": their_rotary(config),
    }


def _write_llama(config: ModelArchitectureConfig) -> dict[str, Any]:
    return write_relative(config) | {"attention_bias": all(biases(config))}


def _write_mistral(config: ModelArchitectureConfig) -> dict[str, Any]:
    return write_relative(config) | {"sliding_window": config.attention_window}


def _write_qwen2(config: ModelArchitectureConfig) -> dict[str, Any]:
    """Without a width of heads, which is always that of the stream over their number."""
    written = write_relative(config) | their_windows(config) | {"use_sliding_window": "W" in config.pattern}
    return {key: value for key, value in written.items() if key != "head_dim"}


def _write_qwen3(config: ModelArchitectureConfig) -> dict[str, Any]:
    windows = their_windows(config) | {"use_sliding_window": "W" in config.pattern}
    return _write_llama(config) | windows


def _write_phi3(config: ModelArchitectureConfig) -> dict[str, Any]:
    written = {key: value for key, value in _write_mistral(config).items() if key != "head_dim"}
    original = (config.rope_scaling or {}).get("original_max_position_embeddings", config.block_size)
    return written | {"original_max_position_embeddings": original}


def _write_smollm3(config: ModelArchitectureConfig) -> dict[str, Any]:
    written = {key: value for key, value in _write_llama(config).items() if key != "head_dim"}
    types = [LAYER_TYPES_OF[letter] for letter in config.pattern]
    rotates = [int(letter != "U") for letter in config.pattern]
    windows = {"sliding_window": config.attention_window, "use_sliding_window": "W" in config.pattern}
    return written | windows | {"layer_types": types, "no_rope_layers": rotates}


def _write_gemma2(config: ModelArchitectureConfig) -> dict[str, Any]:
    gate = GATES.get(config.ffn_type, "silu")
    written = {key: value for key, value in _write_llama(config).items() if key != "hidden_act"}
    scale = config.attention_multiplier or config.head_dim**-0.5
    return written | {
        **their_windows(config),
        "hidden_activation": "gelu_pytorch_tanh" if gate == "gelu_tanh" else their_activation(gate),
        "query_pre_attn_scalar": max(1, round(scale**-2)),
        "attn_logit_softcapping": config.attn_logit_softcapping,
        "final_logit_softcapping": config.final_logit_softcapping,
    }


def _write_gemma3(config: ModelArchitectureConfig) -> dict[str, Any]:
    return _write_gemma2(config) | {"rope_parameters": _their_rotary_by_kind(config)}


def _their_rotary_by_kind(config: ModelArchitectureConfig) -> dict[str, Any]:
    first = {layer.mixer_spec.letter: config.of(layer) for layer in reversed(config.layers)}
    return {kind: their_rotary(first.get(letter, config)) for kind, letter in ((FULL, "A"), (SLIDING, "W"))}


def _write_olmo2(config: ModelArchitectureConfig) -> dict[str, Any]:
    return {key: value for key, value in _write_llama(config).items() if key != "head_dim"}


def _write_olmo3(config: ModelArchitectureConfig) -> dict[str, Any]:
    return _write_olmo2(config) | their_windows(config) | {"rope_parameters": _their_rotary_by_kind(config)}


def write_granite(config: ModelArchitectureConfig) -> dict[str, Any]:
    return _write_olmo2(config) | {
        "embedding_multiplier": config.embedding_factor,
        "residual_multiplier": config.residual_multiplier,
        "attention_multiplier": config.attention_multiplier or config.head_dim**-0.5,
        "logits_scaling": config.logits_scaling,
    }


def _write_gpt_neox(config: ModelArchitectureConfig) -> dict[str, Any]:
    return {
        "hidden_act": their_activation(config.activation),
        "layer_norm_eps": config.norm_eps,
        "hidden_dropout": config.dropout,
        "attention_dropout": config.dropout,
        "use_parallel_residual": config.parallel_residual,
        "attention_bias": all(biases(config)),
        "rope_parameters": {"partial_rotary_factor": 1.0, **their_rotary(config)},
    }


def their_windows(config: ModelArchitectureConfig) -> dict[str, Any]:
    types = [LAYER_TYPES_OF[letter] for letter in config.pattern]
    return {"sliding_window": config.attention_window, "layer_types": types}


def _transposed(*modules: str) -> Place:
    """GPT-2 stores matrices as (inputs, outputs)."""
    return Place(
        modules,
        to_ours=lambda tensor, config: tensor.T if tensor.ndim == 2 else tensor,
        to_theirs=lambda tensor, config: tensor.T if tensor.ndim == 2 else tensor,
    )


GPT2 = Family(
    model_class="GPT2LMHeadModel",
    has_ffn=True,
    write=_write_gpt2,
    prefix="transformer.",
    blocks="h",
    outside=places(
        {"wte": "embedding", "wpe": "position.embedding", "ln_f": "final_norm", "lm_head": "lm_head"},
    ),
    within={
        **places({"ln_1": "mixer_norm", "ln_2": "ffn_norm"}),
        "mlp.c_fc": _transposed("ffn.up_proj"),
        "mlp.c_proj": _transposed("ffn.down_proj"),
    },
    mixers={
        "A": {
            "attn.c_attn": _transposed("mixer.q_proj", "mixer.k_proj", "mixer.v_proj"),
            "attn.c_proj": _transposed("mixer.o_proj"),
        }
    },
    buffers=(".attn.bias", ".attn.masked_bias"),
)

LLAMA_ATTENTION = places({f"self_attn.{name}_proj": f"mixer.{name}_proj" for name in "qkvo"})

LLAMA = Family(
    model_class="LlamaForCausalLM",
    has_ffn=True,
    write=_write_llama,
    prefix="model.",
    blocks="layers",
    outside=places({"embed_tokens": "embedding", "norm": "final_norm", "lm_head": "lm_head"}),
    within=places(
        {
            "input_layernorm": "mixer_norm",
            "post_attention_layernorm": "ffn_norm",
            **{f"mlp.{name}_proj": f"ffn.{name}_proj" for name in ("gate", "up", "down")},
        }
    ),
    mixers={"A": LLAMA_ATTENTION},
    buffers=(".rotary_emb.inv_freq",),
)

_WITH_WINDOWS = {"A": LLAMA_ATTENTION, "W": LLAMA_ATTENTION}
_NORMS_OF_HEADS = places({f"self_attn.{name}_norm": f"mixer.{name}_norm" for name in "qk"})


def with_norms_of_heads(letters: str) -> dict[str, dict[str, Place]]:
    return dict.fromkeys(letters, LLAMA_ATTENTION | _NORMS_OF_HEADS)


_WITH_NORMS = with_norms_of_heads("AW")

MISTRAL = dataclasses.replace(
    LLAMA, model_class="MistralForCausalLM", write=_write_mistral, mixers=_WITH_WINDOWS, buffers=()
)
QWEN2 = dataclasses.replace(LLAMA, model_class="Qwen2ForCausalLM", write=_write_qwen2, mixers=_WITH_WINDOWS, buffers=())
QWEN3 = dataclasses.replace(LLAMA, model_class="Qwen3ForCausalLM", write=_write_qwen3, mixers=_WITH_NORMS, buffers=())

_PHI3_ATTENTION = {
    "self_attn.qkv_proj": Place(("mixer.q_proj", "mixer.k_proj", "mixer.v_proj")),
    **places({"self_attn.o_proj": "mixer.o_proj"}),
}
PHI3 = dataclasses.replace(
    LLAMA,
    model_class="Phi3ForCausalLM",
    write=_write_phi3,
    within={
        **places({"input_layernorm": "mixer_norm", "post_attention_layernorm": "ffn_norm"}),
        "mlp.gate_up_proj": Place(("ffn.gate_proj", "ffn.up_proj")),
        **places({"mlp.down_proj": "ffn.down_proj"}),
    },
    mixers={"A": _PHI3_ATTENTION, "W": _PHI3_ATTENTION},
    buffers=(),
)
SMOLLM3 = dataclasses.replace(
    LLAMA,
    model_class="SmolLM3ForCausalLM",
    write=_write_smollm3,
    mixers=dict.fromkeys("AWU", LLAMA_ATTENTION),
    buffers=(),
)


def _by_kind(tensor: Tensor, config: ModelArchitectureConfig) -> Tensor:
    """From rows of (head, query or key or value, width) to those of all queries, all keys, all values."""
    return tensor.unflatten(0, (config.n_head, 3, -1)).transpose(0, 1).flatten(0, 2)


def _by_head(tensor: Tensor, config: ModelArchitectureConfig) -> Tensor:
    return tensor.unflatten(0, (3, config.n_head, -1)).transpose(0, 1).flatten(0, 2)


GPT_NEOX = Family(
    model_class="GPTNeoXForCausalLM",
    has_ffn=True,
    write=_write_gpt_neox,
    prefix="gpt_neox.",
    blocks="layers",
    outside=places({"embed_in": "embedding", "final_layer_norm": "final_norm", "lm_head": "lm_head"}),
    within=places(
        {
            "input_layernorm": "mixer_norm",
            "post_attention_layernorm": "ffn_norm",
            "mlp.dense_h_to_4h": "ffn.up_proj",
            "mlp.dense_4h_to_h": "ffn.down_proj",
        }
    ),
    mixers={
        "A": {
            "attention.query_key_value": Place(("mixer.q_proj", "mixer.k_proj", "mixer.v_proj"), _by_kind, _by_head),
            **places({"attention.dense": "mixer.o_proj"}),
        }
    },
    older_names={"embed_out": "lm_head"},
    buffers=(".attention.bias", ".attention.masked_bias", ".rotary_emb.inv_freq"),
)

_GATED_FFN = places({f"mlp.{name}_proj": f"ffn.{name}_proj" for name in ("gate", "up", "down")})
_TWO_NORMS_A_HALF = places(
    {
        "input_layernorm": "mixer_norm",
        "post_attention_layernorm": "mixer_out_norm",
        "pre_feedforward_layernorm": "ffn_norm",
        "post_feedforward_layernorm": "ffn_out_norm",
    }
)
_NORMS_INSIDE = places({"post_attention_layernorm": "mixer_norm", "post_feedforward_layernorm": "ffn_norm"})
GEMMA2 = dataclasses.replace(
    LLAMA,
    model_class="Gemma2ForCausalLM",
    write=_write_gemma2,
    within=_TWO_NORMS_A_HALF | _GATED_FFN,
    mixers=_WITH_WINDOWS,
    buffers=(),
)
GEMMA3 = dataclasses.replace(GEMMA2, model_class="Gemma3ForCausalLM", write=_write_gemma3, mixers=_WITH_NORMS)
OLMO2 = dataclasses.replace(
    LLAMA,
    model_class="Olmo2ForCausalLM",
    write=_write_olmo2,
    within=_NORMS_INSIDE | _GATED_FFN,
    mixers={"A": _WITH_NORMS["A"]},
    buffers=(),
)
OLMO3 = dataclasses.replace(OLMO2, model_class="Olmo3ForCausalLM", write=_write_olmo3, mixers=_WITH_NORMS)
GRANITE = dataclasses.replace(LLAMA, model_class="GraniteForCausalLM", write=write_granite, buffers=())
