"""Which keys of Hugging Face's config.json change neither what a model computes nor what is counted, and what is made
of a key that nobody here knows. No torch.

A key is unknown where neither transformers' class of the family has it nor a list here. Whether it could change shapes
is decided by what it says, since what reads it is not known:

- one that says nothing (null, false, 0, an empty text, list or mapping) switches nothing on: it is named in a note;
- one whose name begins with `_` is private to the library that wrote it: it is named in a note;
- any other (a number, a text, true, a list, a mapping) could be a size or name a component: it is refused;
- so is one that differs by a letter from a key that decides the counts, unless it is null: it was meant as that.
"""

import difflib
from collections.abc import Collection, Mapping
from typing import Any

from common.errors import UserError, did_you_mean

# Of transformers' classes: names of tokens and labels, of initialisation, of which implementation runs, of what a
# router adds to the loss in training, and state-spaces' names that transformers keeps and does not read. In bfloat16,
# residual_in_fp32 rounds elsewhere than a LanguageModel does. The dtype of a checkpoint's tensors is not asked here:
# --dtype says it. Where a family counts a key of this name, it does.
HARMLESS = frozenset(
    """
    _name_or_path _sliding_window_pattern architectures aux_loss_alpha bos_token_id chunk_size_feed_forward
    classifier_dropout dtype eos_token_id id2label initializer_range label2id num_logits_to_keep output_attentions
    output_hidden_states output_router_logits pad_token_id pretraining_tp problem_type rescale_prenorm_residual
    residual_in_fp32 return_dict router_aux_loss_coef seq_aux summary_activation summary_first_dropout
    summary_proj_to_labels summary_type summary_use_proj time_step_floor time_step_init_scheme time_step_max
    time_step_min time_step_rank time_step_scale torch_dtype transformers_version use_associative_scan use_cache
    use_mambapy
    """.split()
)

# Of real files: none of transformers' classes here has them (any more), and what wrote them says that they change
# neither shapes nor logits. They are named in a note. How text is generated is generation_config.json's business now;
# auto_map names code beside a checkpoint, which is never executed.
OF_OTHERS = frozenset(
    """
    attn_rotary_emb auto_map bad_words_ids begin_suppress_tokens cache_implementation decoder_start_token_id
    diversity_penalty do_sample early_stopping encoder_no_repeat_ngram_size ep_size exponential_decay_length_penalty
    finetuning_task forced_bos_token_id forced_eos_token_id fused_add_norm gradient_checkpointing initial_context_length
    is_decoder is_llama_config length_penalty mamba_dt_rank max_length max_new_tokens min_length model_max_length
    n_special no_repeat_ngram_size norm_before_gate num_beam_groups num_beams num_labels num_return_sequences
    output_scores pad_vocab_size_multiple predict_special_tokens prefix remove_invalid_values repetition_penalty
    return_dict_in_generate rms_norm rope_interleaved sep_token_id suppress_tokens task_specific_params temperature
    tokenizer_class top_k top_p torchscript typical_p unsloth_fixed unsloth_version use_bfloat16 use_mamba_kernels
    """.split()
)

_AS_GOOD_AS_EQUAL = 0.9  # of difflib: names that differ by a letter


def check_unknown(key: str, value: Any, model_type: str, counted: Collection[str], known: Collection[str]) -> None:
    """Raises UserError for an unknown key that could change shapes."""
    said = value is not None
    meant = said and bool(difflib.get_close_matches(key, counted, n=1, cutoff=_AS_GOOD_AS_EQUAL))
    if meant or not (says_nothing(value) or key.startswith("_") or key in OF_OTHERS):
        raise UserError(f"unknown key {key!r} of a {model_type} configuration{did_you_mean(key, known)}")


def says_nothing(value: Any) -> bool:
    """Whether a value switches nothing on."""
    return not value


def unknown_to(values: Mapping[str, Any], known: Collection[str]) -> list[str]:
    """What a note names: the keys that were passed over, each with a value that is short."""
    named = ((key if key.isidentifier() else repr(key), value) for key, value in values.items() if key not in known)
    return [f"{key}={_short(value)}" for key, value in named]


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else "..."


# ---------------------------------------------------------------------------------------------------------------------
# What stands on top of the model


def check_is_language_model(architectures: Any) -> None:
    """Raises UserError for `architectures` that name a class without an LM head, or with another head: what is counted
    is a language model. Absent or null, they name none."""
    if architectures is None:
        return
    if not isinstance(architectures, list) or not all(isinstance(name, str) for name in architectures):
        raise UserError(f"architectures={architectures!r}: expected a list of names")
    for name in architectures:
        if not name.endswith(("ForCausalLM", "LMHeadModel")):
            what = "has no LM head" if _is_base_model(name) else "has another head than a language model"
            raise UserError(
                f"architectures={architectures!r}: {name!r} {what}, which is not counted here; without this key the "
                "model is counted with an LM head"
            )


def _is_base_model(name: str) -> bool:
    return name.endswith("Model") and not name.endswith(("HeadsModel", "HeadModel"))
