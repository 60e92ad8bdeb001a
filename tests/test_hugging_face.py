"""Models of Hugging Face, weights copied: the same logits, loss and gradients; and what is refused.

Tolerance: 1e-5 absolute, in float32. All weights are drawn large enough for logits and gradients of the order of one
(which is asserted), so that this is about a hundred rounding errors, and far below what any wrong formula does.
"""

import copy
import dataclasses

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from errors import UserError
from interop.hugging_face import architecture_from_hugging_face, weights_from_hugging_face
from model_builder import build_model

TOLERANCE = {"rtol": 0.0, "atol": 1e-5}
BATCH, LENGTH = 3, 23

GPT2 = {
    "n_layer": 2,
    "n_head": 4,
    "n_embd": 32,
    "n_positions": 40,
    "vocab_size": 101,
    "embd_pdrop": 0.0,
    "attn_pdrop": 0.0,
    "resid_pdrop": 0.0,
}
LLAMA = {
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "hidden_size": 32,
    "intermediate_size": 88,
    "max_position_embeddings": 64,
    "vocab_size": 101,
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,  # so short that all three bands of frequencies occur
}
MODELS = {
    "gpt2": GPT2Config(**GPT2),
    "gpt2, another FFN": GPT2Config(**GPT2, n_inner=50, activation_function="relu", layer_norm_epsilon=1e-3),
    "gpt2, untied": GPT2Config(**GPT2, tie_word_embeddings=False),
    "llama 2": LlamaConfig(**LLAMA),
    "llama 3": LlamaConfig(
        **LLAMA, num_key_value_heads=2, rope_parameters={"rope_type": "default", "rope_theta": 500000.0}
    ),
    "llama 3.1": LlamaConfig(**LLAMA, num_key_value_heads=2, rope_parameters=LLAMA3_ROPE, rms_norm_eps=1e-5),
    "llama, linear rope scaling": LlamaConfig(
        **LLAMA, rope_parameters={"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}
    ),
    "llama, multi-query, tied": LlamaConfig(**LLAMA, num_key_value_heads=1, tie_word_embeddings=True),
    "llama, biases, gelu gate": LlamaConfig(**LLAMA, attention_bias=True, mlp_bias=True, hidden_act="gelu"),
}


def original(config):
    """Hugging Face's model with every parameter random, norms and biases too."""
    config = copy.deepcopy(config)
    config._attn_implementation = "eager"
    torch.manual_seed(0)
    model = (GPT2LMHeadModel if config.model_type == "gpt2" else LlamaForCausalLM)(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn(parameter.shape)
    return model


def loss_and_gradients(model, tokens):
    """Hugging Face shifts the labels itself: the last of LENGTH + 1 tokens is a target only."""
    loss = model(input_ids=tokens, labels=tokens).loss
    loss.backward()
    return loss.detach(), {name: parameter.grad for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("backend", ["sdpa", "manual"])
@pytest.mark.parametrize("name", MODELS)
def test_same_logits_loss_and_gradients(name, backend):
    theirs = original(MODELS[name])
    config = theirs.config.to_dict()
    architecture = architecture_from_hugging_face(config)
    ours = build_model(dataclasses.replace(architecture, attention_backend=backend)).eval()
    ours.load_state_dict(weights_from_hugging_face(theirs.state_dict(), config))
    tokens = torch.randint(MODELS[name].vocab_size, (BATCH, LENGTH + 1))

    with torch.no_grad():
        logits, expected_logits = ours(tokens), theirs(tokens).logits
    assert expected_logits.std() > 0.5
    torch.testing.assert_close(logits, expected_logits, **TOLERANCE)

    loss = ours(tokens[:, :-1], tokens[:, 1:])
    loss.backward()
    expected_loss, expected = loss_and_gradients(theirs, tokens)
    torch.testing.assert_close(loss.detach(), expected_loss, **TOLERANCE)
    expected = weights_from_hugging_face(expected, config)  # the map is linear, so it holds for gradients too
    gradients = {name: parameter.grad for name, parameter in ours.named_parameters()}
    assert gradients.keys() == expected.keys()
    for parameter, gradient in gradients.items():
        if "k_proj.bias" not in parameter:  # the softmax does not see it: its gradient is zero
            assert expected[parameter].abs().max() > 1e-3, parameter
        torch.testing.assert_close(gradient, expected[parameter], msg=lambda m, p=parameter: f"{p}: {m}", **TOLERANCE)


def test_configurations_of_transformers_4():
    """`rope_theta` and `rope_scaling` stood apart, the latter with a `type`; head_dim and KV heads could be absent."""
    old = {
        "model_type": "llama",
        **LLAMA,
        "rope_theta": 500000.0,
        "rope_scaling": {"type": "linear", "factor": 2.0},
        "torch_dtype": "bfloat16",
        "architectures": ["LlamaForCausalLM"],
    }
    architecture = architecture_from_hugging_face(old)
    assert architecture.rope_theta == 500000.0
    assert architecture.rope_scaling == {"rope_type": "linear", "factor": 2.0}
    assert (architecture.num_key_value_heads, architecture.weight_tying) == (4, False)
    new = LlamaConfig(**LLAMA, rope_parameters={"rope_type": "linear", "rope_theta": 500000.0, "factor": 2.0})
    assert architecture_from_hugging_face(new.to_dict()) == architecture


def test_what_config_json_leaves_out_has_hugging_faces_defaults():
    for config in (GPT2Config(**GPT2), LlamaConfig(**LLAMA)):
        sizes = GPT2 if config.model_type == "gpt2" else LLAMA
        short = {"model_type": config.model_type, **sizes}
        assert architecture_from_hugging_face(short) == architecture_from_hugging_face(config.to_dict())


def test_a_checkpoint_saved_without_its_head_and_with_old_buffers():
    theirs = original(MODELS["gpt2"])
    config = theirs.config.to_dict()
    bare = theirs.transformer.state_dict()  # no prefix, no lm_head
    bare["h.0.attn.bias"] = torch.ones(1, 1, 40, 40)
    weights = weights_from_hugging_face(bare, config)
    for name, tensor in weights_from_hugging_face(theirs.state_dict(), config).items():
        assert torch.equal(weights[name], tensor)


@pytest.mark.parametrize(
    ("model_type", "change", "named"),
    [
        ("bert", {}, "model_type"),
        ("gpt2", {"activation_function": "mish"}, "activation_function"),
        ("gpt2", {"resid_pdrop": 0.2}, "resid_pdrop"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx"),
        ("gpt2", {"reorder_and_upcast_attn": True}, "reorder_and_upcast_attn"),
        ("gpt2", {"n_ctx": 7}, "n_ctx"),
        ("llama", {"attention_bias": True}, "attention_bias"),
        ("llama", {"head_dim": 16}, "head_dim"),
        ("llama", {"hidden_act": "relu"}, "hidden_act"),
        ("llama", {"attention_dropout": 0.1}, "attention_dropout"),
        ("llama", {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0}}, "rope_type"),
        (
            "llama",
            {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}},
            "partial_rotary_factor",
        ),
        ("llama", {"sliding_window": 128}, "sliding_window"),
        ("llama", {"hidden_size": None}, "hidden_size"),
    ],
)
def test_what_cannot_be_represented_is_refused_by_its_key(model_type, change, named):
    config = {"model_type": model_type, **(GPT2 if model_type == "gpt2" else LLAMA), **change}
    with pytest.raises(UserError, match=named) as refusal:
        architecture_from_hugging_face(config)
    assert len(str(refusal.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda state: state.pop("model.layers.1.mlp.up_proj.weight"), r"lack blocks\.1\.ffn\.up_proj\.weight"),
        (lambda state: state.update({"model.layers.0.mlp.experts.weight": torch.ones(2)}), r"mlp\.experts\.weight"),
        (lambda state: state.update({"model.norm.weight": torch.ones(31)}), r"final_norm\.weight is \(31,\)"),
        (lambda state: state.update({"model.norm.bias": torch.ones(32)}), r"have final_norm\.bias"),
    ],
)
def test_weights_that_do_not_fit_are_refused(damage, message):
    theirs = original(MODELS["llama 2"])
    state = theirs.state_dict()
    damage(state)
    with pytest.raises(UserError, match=message):
        weights_from_hugging_face(state, theirs.config.to_dict())
