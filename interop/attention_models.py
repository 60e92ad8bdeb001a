"""GPT-2 (Radford et al. 2019) and Llama (Touvron et al. 2023)."""

from typing import Any

from common.errors import UserError
from components.ffns.gated.spec import GATES
from interop.family import Family, Place, our_activation, our_rotary, places, their_activation, their_rotary
from model_config import ModelArchitectureConfig

_DROPOUTS = ("embd_pdrop", "attn_pdrop", "resid_pdrop")


def _read_gpt2(config: dict[str, Any]) -> dict[str, Any]:
    dropouts = {key: config[key] for key in _DROPOUTS}
    if len(set(dropouts.values())) > 1:
        raise UserError(f"embd_pdrop, attn_pdrop and resid_pdrop differ ({dropouts}); a LanguageModel has one dropout")
    if config["n_ctx"] not in (None, config["n_positions"]):
        raise UserError(f"n_ctx={config['n_ctx']} is not n_positions={config['n_positions']}")
    return {
        "d_ff": config["n_inner"] or 4 * config["n_embd"],
        "activation": our_activation("activation_function", config["activation_function"]),
        "normalization": "layernorm",
        "norm_eps": config["layer_norm_epsilon"],
        "position_encoding": "learned_absolute",
        "bias": True,
        "weight_tying": config["tie_word_embeddings"],
        "dropout": dropouts["embd_pdrop"],
    }


def _write_gpt2(config: ModelArchitectureConfig) -> dict[str, Any]:
    return {
        "n_inner": config.d_ff,
        "activation_function": their_activation(config.activation),
        "layer_norm_epsilon": config.norm_eps,
        "tie_word_embeddings": config.weight_tying,
        **dict.fromkeys(_DROPOUTS, config.dropout),
    }


def _read_llama(config: dict[str, Any]) -> dict[str, Any]:
    if config["attention_bias"] != config["mlp_bias"]:
        raise UserError(
            f"attention_bias={config['attention_bias']} and mlp_bias={config['mlp_bias']} differ; "
            "a LanguageModel has biases in all linear layers or in none"
        )
    head_dim = config["hidden_size"] // max(1, config["num_attention_heads"])
    if config["head_dim"] not in (None, head_dim):
        raise UserError(f"head_dim={config['head_dim']} is not hidden_size / num_attention_heads = {head_dim}")
    gate = our_activation("hidden_act", config["hidden_act"])
    ffn_types = [ffn_type for ffn_type, activation in GATES.items() if activation == gate]
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
        **our_rotary(config),
    }


def _write_llama(config: ModelArchitectureConfig) -> dict[str, Any]:
    return {
        "num_key_value_heads": config.kv_heads,
        "hidden_act": their_activation(GATES.get(config.ffn_type, "silu")),
        "rms_norm_eps": config.norm_eps,
        "attention_bias": config.bias,
        "mlp_bias": config.bias,
        "tie_word_embeddings": config.weight_tying,
        "rope_parameters": their_rotary(config),
    }


def _transposed(*modules: str) -> Place:
    """GPT-2 stores matrices as (inputs, outputs)."""
    return Place(
        modules,
        to_ours=lambda tensor: tensor.T if tensor.ndim == 2 else tensor,
        to_theirs=lambda tensor, config: tensor.T if tensor.ndim == 2 else tensor,
    )


GPT2 = Family(
    model_class="GPT2LMHeadModel",
    has_ffn=True,
    sizes={
        "n_layer": "n_layer",
        "n_head": "n_head",
        "n_embd": "n_embd",
        "n_positions": "block_size",
        "vocab_size": "vocab_size",
    },
    defaults={
        "n_inner": None,
        "activation_function": "gelu_new",
        **dict.fromkeys(_DROPOUTS, 0.1),
        "layer_norm_epsilon": 1e-5,
        "tie_word_embeddings": True,
        "n_ctx": None,
    },
    fixed={
        "is_encoder_decoder": False,
        "add_cross_attention": False,
        "reorder_and_upcast_attn": False,
        "scale_attn_by_inverse_layer_idx": False,
        "scale_attn_weights": True,
    },
    read=_read_gpt2,
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
    sizes={
        "num_hidden_layers": "n_layer",
        "num_attention_heads": "n_head",
        "hidden_size": "n_embd",
        "intermediate_size": "d_ff",
        "max_position_embeddings": "block_size",
        "vocab_size": "vocab_size",
    },
    defaults={
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
    fixed={"is_encoder_decoder": False, "attention_dropout": 0.0},
    read=_read_llama,
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
