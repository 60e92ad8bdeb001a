"""Models to count: a small one of every family of Hugging Face's, and public ones by their sizes. No torch."""

from interop.configurations import FAMILIES
from interop.keys.base import Keys

# By the names that families call them. Windows are as long as the shortest context, so that they hide nothing.
SIZES: Keys = {
    "n_layer": 4, "n_head": 4, "n_embd": 32, "n_positions": 64, "vocab_size": 97, "hidden_size": 32,
    "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4, "num_experts_per_tok": 2,
    "num_local_experts": 4, "num_experts": 4, "n_routed_experts": 4, "moe_intermediate_size": 24,
}  # fmt: skip
CHOSEN: Keys = {
    "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 64, "sliding_window": 16,
    "max_window_layers": 2, "use_sliding_window": True, "sliding_window_pattern": 2, "attn_layer_indices": [1],
    "mamba_n_heads": 4, "mamba_d_state": 8, "num_heads": 4, "n_groups": 2, "state_size": 8, "q_lora_rank": 12,
    "kv_lora_rank": 10, "qk_nope_head_dim": 6, "qk_rope_head_dim": 16, "v_head_dim": 8, "n_shared_experts": 1,
    "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1, "shared_expert_intermediate_size": 48,
    "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 6, "linear_value_head_dim": 10,
    "linear_num_heads": 3, "linear_head_dim": 6, "shared_intermediate_size": 96, "mamba_num_heads": 6,
    "ssm_state_size": 8, "hybrid_override_pattern": "M*-M",
    "linear_attn_config": {"kda_layers": [1, 3], "full_attn_layers": [2, 4]},
}  # fmt: skip


def small(model_type: str) -> Keys:
    """The config.json of a small model of a family, with heads that share keys and values, windows, experts and latent
    vectors wherever the family has them."""
    family = FAMILIES[model_type]
    values = {key: SIZES[key] for key in family.required}
    values |= {key: CHOSEN[key] for key in (*family.counted, *family.function) if key in CHOSEN}
    values |= {key: SIZES[key] for key in family.counted if key in SIZES and key not in _WIDTHS}
    if "kv_lora_rank" in values:  # latent attention has as many keys as queries
        values["num_key_value_heads"] = values["num_attention_heads"]
    if model_type == "granitemoehybrid":  # which has no attention unless something says where
        values["layer_types"] = ["mamba", "attention", "mamba", "mamba"]
    if "max_window_layers" not in values:  # by which windows begin somewhere
        values.pop("use_sliding_window", None)
    return {"model_type": model_type, **values}


_WIDTHS = ("intermediate_size", "n_layer")  # of a Mamba, they follow from others


# Sizes of public models, as their config.json on Hugging Face's hub have them; how many parameters these make is
# counted, not stated.
def _sizes(layers: int, width: int, d_ff: int, heads: tuple[int, int], vocab_size: int) -> Keys:
    """`heads`: of queries, and of keys and values."""
    return {
        "num_hidden_layers": layers, "hidden_size": width, "intermediate_size": d_ff, "vocab_size": vocab_size,
        "num_attention_heads": heads[0], "num_key_value_heads": heads[1],
    }  # fmt: skip


_LATENT: Keys = {"kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128}
_GEMMA_HEADS: Keys = {"head_dim": 256, "query_pre_attn_scalar": 256}
PUBLIC: dict[str, Keys] = {
    "gpt2-xl": {"model_type": "gpt2", "n_layer": 48, "n_head": 25, "n_embd": 1600, "n_positions": 1024,
                "vocab_size": 50257},
    "llama-3.1-8b": {"model_type": "llama", **_sizes(32, 4096, 14336, (32, 8), 128256)},
    "mistral-7b": {"model_type": "mistral", **_sizes(32, 4096, 14336, (32, 8), 32000), "sliding_window": 4096},
    "qwen2.5-7b": {"model_type": "qwen2", **_sizes(28, 3584, 18944, (28, 4), 152064)},
    "qwen3-8b": {"model_type": "qwen3", **_sizes(36, 4096, 12288, (32, 8), 151936), "head_dim": 128},
    "phi-3-mini": {"model_type": "phi3", **_sizes(32, 3072, 8192, (32, 32), 32064), "sliding_window": 2047},
    "smollm3-3b": {"model_type": "smollm3", **_sizes(36, 2048, 11008, (16, 4), 128256)},
    "pythia-6.9b": {"model_type": "gpt_neox", **_sizes(32, 4096, 16384, (32, 32), 50432)},
    "gemma-2-9b": {"model_type": "gemma2", **_sizes(42, 3584, 14336, (16, 8), 256000), **_GEMMA_HEADS},
    "gemma-3-12b": {"model_type": "gemma3_text", **_sizes(48, 3840, 15360, (16, 8), 262208), **_GEMMA_HEADS,
                    "sliding_window": 1024},
    "olmo-2-7b": {"model_type": "olmo2", **_sizes(32, 4096, 11008, (32, 32), 100352)},
    "olmo-3-7b": {"model_type": "olmo3", **_sizes(32, 4096, 11008, (32, 32), 100278), "sliding_window": 4096},
    "granite-3-8b": {"model_type": "granite", **_sizes(40, 4096, 12800, (32, 8), 49155), "tie_word_embeddings": True},
    "mamba-130m": {"model_type": "mamba", "num_hidden_layers": 24, "hidden_size": 768, "vocab_size": 50280},
    "mamba2-130m": {"model_type": "mamba2", "num_hidden_layers": 24, "hidden_size": 768, "vocab_size": 50288,
                    "num_heads": 24, "n_groups": 1, "tie_word_embeddings": True},
    "bamba-9b": {"model_type": "bamba", **_sizes(32, 4096, 14336, (32, 8), 128256), "mamba_d_state": 128,
                 "attn_layer_indices": [9, 18, 27]},
    "granite-4.0-h-small": {
        "model_type": "granitemoehybrid", **_sizes(40, 4096, 768, (32, 8), 100352), "num_local_experts": 72,
        "num_experts_per_tok": 10, "shared_intermediate_size": 1536, "mamba_n_heads": 128, "mamba_d_state": 128,
        "layer_types": ["attention" if layer in (5, 15, 25, 35) else "mamba" for layer in range(40)],
        "tie_word_embeddings": True,
    },
    "nemotron-h-8b": {
        "model_type": "nemotron_h", **_sizes(52, 4096, 21504, (32, 8), 131072), "mamba_num_heads": 128,
        "hybrid_override_pattern": "M-M-M-M*-" + 3 * "M-M-M-M-M*-" + 5 * "M-",
    },
    "deepseek-v2-lite": {
        "model_type": "deepseek_v2", **_sizes(27, 2048, 10944, (16, 16), 102400), **_LATENT, "q_lora_rank": None,
        "n_routed_experts": 64, "num_experts_per_tok": 6, "n_shared_experts": 2, "moe_intermediate_size": 1408,
        "first_k_dense_replace": 1,
    },
    "deepseek-v3": {
        "model_type": "deepseek_v3", **_sizes(61, 7168, 18432, (128, 128), 129280), **_LATENT, "q_lora_rank": 1536,
        "n_routed_experts": 256, "num_experts_per_tok": 8, "n_shared_experts": 1, "moe_intermediate_size": 2048,
        "first_k_dense_replace": 3,
    },
    "mixtral-8x7b": {"model_type": "mixtral", **_sizes(32, 4096, 14336, (32, 8), 32000), "num_local_experts": 8,
                     "num_experts_per_tok": 2},
    "qwen3-30b-a3b": {"model_type": "qwen3_moe", **_sizes(48, 2048, 6144, (32, 4), 151936), "head_dim": 128,
                      "num_experts": 128, "num_experts_per_tok": 8, "moe_intermediate_size": 768},
    "olmoe-1b-7b": {"model_type": "olmoe", **_sizes(16, 2048, 1024, (16, 16), 50304), "num_experts": 64,
                    "num_experts_per_tok": 8},
    "qwen3-next-80b-a3b": {
        "model_type": "qwen3_next", **_sizes(48, 2048, 5120, (16, 2), 151936), "head_dim": 256, "num_experts": 512,
        "num_experts_per_tok": 10, "moe_intermediate_size": 512, "shared_expert_intermediate_size": 512,
        "linear_num_key_heads": 16, "linear_num_value_heads": 32, "linear_key_head_dim": 128,
        "linear_value_head_dim": 128, "rope_theta": 10000000.0,
    },
    "kimi-linear-48b-a3b": {
        "model_type": "kimi_linear", **_sizes(27, 2304, 9216, (32, 32), 163840), **_LATENT, "q_lora_rank": None,
        "num_experts": 256, "num_experts_per_token": 8, "num_shared_experts": 1, "moe_intermediate_size": 1024,
        "first_k_dense_replace": 1, "linear_attn_config": {
            "full_attn_layers": [4, 8, 12, 16, 20, 24, 27], "head_dim": 128, "num_heads": 32,
            "kda_layers": [layer for layer in range(1, 27) if layer % 4], "short_conv_kernel_size": 4,
        },
    },
    "gpt-oss-20b": {"model_type": "gpt_oss", **_sizes(24, 2880, 2880, (64, 8), 201088), "head_dim": 64,
                    "num_local_experts": 32, "num_experts_per_tok": 4, "sliding_window": 128},
}  # fmt: skip


def public(name: str, layers: int | None = None) -> Keys:
    """The config.json of a public model, with its first `layers` layers only where so many suffice."""
    values = dict(PUBLIC[name])
    if values["model_type"] == "gpt_neox":  # which has as many keys as queries, and no key that says so
        del values["num_key_value_heads"]
    if layers is not None:
        key = "n_layer" if "n_layer" in values else "num_hidden_layers"
        values[key] = min(layers, values[key])
        if "attn_layer_indices" in values:
            values["attn_layer_indices"] = [1]
        if "layer_types" in values:
            values["layer_types"] = values["layer_types"][:layers]
        if "hybrid_override_pattern" in values:
            values["hybrid_override_pattern"] = "M-M-*-"[:layers]
        if "linear_attn_config" in values:
            values["linear_attn_config"] = {
                key: [one for one in value if one <= layers] if isinstance(value, list) else value
                for key, value in values["linear_attn_config"].items()
            }
    return values
