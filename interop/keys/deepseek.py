"""DeepSeek: latent attention, and experts in all layers but the first few."""

from common.errors import UserError
from interop.keys.base import (
    LLAMAS_FUNCTION,
    TRANSFORMER_SAME,
    TRANSFORMER_SIZES,
    WHOLE_HEADS,
    FamilyKeys,
    Keys,
    Values,
    agree,
    biases_of,
    divides,
    gated_ffn,
    rotary,
    transformer,
)


def _deepseek(values: Values) -> Keys:
    """Latent attention in every layer; experts in all but the first few."""
    count, dense = values["num_hidden_layers"], values["first_k_dense_replace"]
    if dense > count:
        raise UserError(f"first_k_dense_replace={dense} is more than num_hidden_layers={count}")
    if values["num_experts_per_tok"] > values["n_routed_experts"]:
        raise UserError(
            f"num_experts_per_tok={values['num_experts_per_tok']} is more than "
            f"n_routed_experts={values['n_routed_experts']}"
        )
    agree(values, "num_key_value_heads", "num_attention_heads", values["num_attention_heads"])
    query = values["qk_nope_head_dim"] + values["qk_rope_head_dim"]
    agree(values, "qk_head_dim", "qk_nope_head_dim + qk_rope_head_dim", query)
    agree(values, "head_dim", "qk_rope_head_dim", values["qk_rope_head_dim"])
    found = transformer(values) | {key: values[key] for key in _LATENT}
    found |= {"bias": values.get("mlp_bias", False), "attention_bias": biases_of(values), "layer_pattern": "C"}
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


def _details(values: Values) -> Keys:
    """What dense layers need: the keys of experts say nothing of a model without them. Whether pairs to be rotated lie
    beside one another (rope_interleave) is an order of rows: interop/latent_models.py."""
    count, dense = values["num_hidden_layers"], values["first_k_dense_replace"]
    if dense < count:
        raise UserError(
            f"first_k_dense_replace={dense} leaves experts in {count - dense} of num_hidden_layers={count}, which "
            "cannot be represented yet; dense layers can"
        )
    return gated_ffn(values) | rotary(values)


def _v2_details(values: Values) -> Keys:
    divides(values, "hidden_size", "num_attention_heads")  # which their class asks for
    return _details(values)


def _v3_details(values: Values) -> Keys:
    if not isinstance(interleaved := values["rope_interleave"], bool | None):
        raise UserError(f"rope_interleave={interleaved!r}: expected true or false")
    return _details(values)


_LATENT = ("q_lora_rank", "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")


_DEEPSEEKS_COUNTED: Keys = {
    "q_lora_rank": 1536, "kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128,
    "tie_word_embeddings": False, "attention_bias": False, "head_dim": None, "qk_head_dim": None,
}  # fmt: skip
_DEEPSEEKS_FUNCTION: Keys = LLAMAS_FUNCTION | dict.fromkeys(
    """aux_loss_alpha n_group norm_topk_prob output_router_logits rope_interleave routed_scaling_factor scoring_func
    seq_aux topk_group topk_method""".split()
)

FAMILIES: dict[str, FamilyKeys] = {
    "deepseek_v2": FamilyKeys(
        required=(*TRANSFORMER_SIZES, "num_experts_per_tok"),
        counted={
            **_DEEPSEEKS_COUNTED, "num_key_value_heads": None, "n_routed_experts": 64, "moe_intermediate_size": 1407,
            "n_shared_experts": 2, "first_k_dense_replace": 0, "max_position_embeddings": 2048, "mlp_bias": False,
            "num_nextn_predict_layers": 0,
        },
        function=_DEEPSEEKS_FUNCTION,
        fixed=WHOLE_HEADS,
        same=TRANSFORMER_SAME,
        read=_deepseek,
        details=_v2_details,
        aliases={"num_experts": "n_routed_experts"},
    ),
    "deepseek_v3": FamilyKeys(
        required=tuple(TRANSFORMER_SIZES),
        counted={
            **_DEEPSEEKS_COUNTED, "num_key_value_heads": None, "n_routed_experts": 256, "moe_intermediate_size": 2048,
            "n_shared_experts": 1, "num_experts_per_tok": 8, "first_k_dense_replace": 3,
            "max_position_embeddings": 4096, "num_nextn_predict_layers": 1,
        },
        function=_DEEPSEEKS_FUNCTION | {"rope_interleave": True},
        fixed=WHOLE_HEADS,
        same=TRANSFORMER_SAME,
        read=_deepseek,
        details=_v3_details,
        aliases={"num_local_experts": "n_routed_experts", "num_mtp_layers": "num_nextn_predict_layers"},
    ),
}  # fmt: skip
