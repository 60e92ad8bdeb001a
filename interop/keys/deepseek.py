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
    check_size,
    divides,
    gated_ffn,
    rotary,
    transformer,
)


def latent_attention(values: Values) -> Keys:
    """That of all its relatives; what there is beside it to say of a head agrees with it."""
    agree(values, "num_key_value_heads", "num_attention_heads", values["num_attention_heads"])
    query = values["qk_nope_head_dim"] + values["qk_rope_head_dim"]
    agree(values, "qk_head_dim", "qk_nope_head_dim + qk_rope_head_dim", query)
    return {key: values[key] for key in LATENT} | {"attention_bias": biases_of(values)}


def check_experts_met(values: Values, count: str) -> None:
    """`count`: the key that says of how many experts a token meets num_experts_per_tok."""
    if values["num_experts_per_tok"] > values[count]:
        met = f"num_experts_per_tok={values['num_experts_per_tok']}"
        raise UserError(f"{met} is more than {count}={values[count]}")


def _deepseek(values: Values) -> Keys:
    """Latent attention in every layer; experts in all but the first few."""
    count, dense = values["num_hidden_layers"], values["first_k_dense_replace"]
    if dense > count:
        raise UserError(f"first_k_dense_replace={dense} is more than num_hidden_layers={count}")
    check_experts_met(values, "n_routed_experts")
    agree(values, "head_dim", "qk_rope_head_dim", values["qk_rope_head_dim"])
    found = transformer(values) | latent_attention(values)
    found |= {"bias": values.get("mlp_bias", False), "layer_pattern": "C"}
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
    """Whether pairs to be rotated lie beside one another (rope_interleave) is an order of rows:
    interop/latent_models.py."""
    found = gated_ffn(values) | rotary(values)
    gate, dense = found["ffn_type"], values["first_k_dense_replace"]
    if dense == 0:
        del found["ffn_type"]
    return found | ({"expert_type": gate} if dense < values["num_hidden_layers"] else {})


def _has_experts(values: Values) -> bool:
    return values["first_k_dense_replace"] < values["num_hidden_layers"]


def _v2_details(values: Values) -> Keys:
    """Scores are a softmax, and are not divided by their sum, whatever norm_topk_prob says."""
    divides(values, "hidden_size", "num_attention_heads")  # which their class asks for
    if not _has_experts(values):
        return _details(values)
    method, scores = values["topk_method"] or "greedy", values["scoring_func"] or "softmax"
    if method not in ("greedy", "group_limited_greedy"):
        raise UserError(f"topk_method={method!r} is none of: greedy, group_limited_greedy")
    if scores != "softmax":
        raise UserError(f"scoring_func={scores!r} cannot be represented; only 'softmax' can")
    groups = _groups(values, None, None) if method == "group_limited_greedy" else {}
    scaling = {"routed_scaling_factor": _factor(values, 1.0)}
    return _details(values) | {"norm_topk_prob": False, **scaling, **groups}


def _v3_details(values: Values) -> Keys:
    if not isinstance(interleaved := values["rope_interleave"], bool | None):
        raise UserError(f"rope_interleave={interleaved!r}: expected true or false")
    if not _has_experts(values):
        return _details(values)
    for key, only in (("topk_method", "noaux_tc"), ("scoring_func", "sigmoid")):
        if values[key] not in (None, only):
            raise UserError(f"{key}={values[key]!r} cannot be represented; only {only!r} can")
    normed = True if values["norm_topk_prob"] is None else values["norm_topk_prob"]
    chosen = {"router_scores": "sigmoid", "balance_bias": True, "norm_topk_prob": normed}
    return _details(values) | chosen | {"routed_scaling_factor": _factor(values, 2.5)} | _groups(values, 8, 4)


def _factor(values: Values, default: float) -> float:
    given = values["routed_scaling_factor"]
    return default if given is None else given


def _groups(values: Values, count: int | None, met: int | None) -> Keys:
    found = {"n_group": values["n_group"] or count, "topk_group": values["topk_group"] or met}
    for key, value in found.items():
        check_size(key, value)
    return found


LATENT = ("q_lora_rank", "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")


_DEEPSEEKS_COUNTED: Keys = {
    "q_lora_rank": 1536, "kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128,
    "tie_word_embeddings": False, "attention_bias": False, "head_dim": None, "qk_head_dim": None,
}  # fmt: skip
_DEEPSEEKS_FUNCTION: Keys = LLAMAS_FUNCTION | dict.fromkeys(
    "n_group norm_topk_prob rope_interleave routed_scaling_factor scoring_func topk_group topk_method".split()
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
