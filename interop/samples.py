"""A small model of every family of Hugging Face's: what its config.json says where it says small sizes. No torch."""

from interop.configurations import FAMILIES
from interop.keys.base import FamilyKeys, Keys

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
    "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1,
}  # fmt: skip


def small(model_type: str) -> Keys:
    """The config.json of a small model of a family, with heads that share keys and values, windows, experts and latent
    vectors wherever the family has them."""
    family = FAMILIES[model_type]
    values = {key: SIZES[key] for key in family.required}
    values |= {key: CHOSEN[key] for key in (*family.counted, *family.function) if key in CHOSEN}
    values |= {key: SIZES[key] for key in family.counted if key in SIZES and key not in _WIDTHS}
    return {"model_type": model_type, **{key: value for key, value in values.items() if _says(key, family)}}


_WIDTHS = ("intermediate_size", "n_layer")  # of a Mamba, they follow from others


def _says(key: str, family: FamilyKeys) -> bool:
    """Whether the family means by a key what CHOSEN does: latent attention has as many keys as queries, and windows
    begin somewhere only where a key says from which layer on."""
    if key == "num_key_value_heads":
        return "kv_lora_rank" not in family.counted
    return key != "use_sliding_window" or "max_window_layers" in family.counted
