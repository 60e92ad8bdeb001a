"""GPT-2 (Radford et al. 2019)."""

from common.errors import UserError
from interop.keys.base import FamilyKeys, Keys, Values, agree, divides, our_activation, same_keys

DROPOUTS = ("embd_pdrop", "attn_pdrop", "resid_pdrop")
_GPT2_SIZES = {
    "n_layer": "n_layer",
    "n_head": "n_head",
    "n_embd": "n_embd",
    "n_positions": "block_size",
    "vocab_size": "vocab_size",
}
_GPT2_SAME = {**_GPT2_SIZES, "tie_word_embeddings": "weight_tying"}


def _gpt2(values: Values) -> Keys:
    divides(values, "n_embd", "n_head")
    agree(values, "n_ctx", "n_positions", values["n_positions"])
    return {
        **same_keys(values, _GPT2_SAME),
        "d_ff": values["n_inner"] or 4 * values["n_embd"],
        "position_encoding": "learned_absolute",
        "bias": True,
    }


def _gpt2_details(values: Values) -> Keys:
    dropouts = {key: values[key] for key in DROPOUTS}
    if len(set(dropouts.values())) > 1:
        raise UserError(f"embd_pdrop, attn_pdrop and resid_pdrop differ ({dropouts}); a LanguageModel has one dropout")
    return {
        "activation": our_activation("activation_function", values["activation_function"]),
        "norm_eps": values["layer_norm_epsilon"],
        "dropout": dropouts["embd_pdrop"],
    }


FAMILIES: dict[str, FamilyKeys] = {
    "gpt2": FamilyKeys(
        required=tuple(_GPT2_SIZES),
        counted={"n_inner": None, "n_ctx": None, "tie_word_embeddings": True},
        function={"activation_function": "gelu_new", "layer_norm_epsilon": 1e-5, **dict.fromkeys(DROPOUTS, 0.1)},
        fixed={
            "reorder_and_upcast_attn": False,
            "scale_attn_by_inverse_layer_idx": False,
            "scale_attn_weights": True,
        },
        same=_GPT2_SAME,
        read=_gpt2,
        details=_gpt2_details,
        aliases={
            "hidden_size": "n_embd",
            "max_position_embeddings": "n_positions",
            "num_attention_heads": "n_head",
            "num_hidden_layers": "n_layer",
        },
    ),
}  # fmt: skip
