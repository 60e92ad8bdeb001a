"""Models of Hugging Face, weights copied: the same logits, loss and gradients; and what is refused.

Tolerance: 1e-5 absolute, in float32. All weights are drawn large enough for logits and gradients of the order of one
(which is asserted), so that this is about a hundred rounding errors, and far below what any wrong formula does.
"""

import copy
import json
import math

import pytest
import torch
from hugging_face_models import (
    BAMBA,
    DEEPSEEK,
    DEEPSEEK_YARN,
    GPT2,
    GRANITE_HYBRID,
    KIMI_LINEAR,
    LLAMA,
    LLAMA3_ROPE,
    LONGROPE,
    MAMBA,
    MAMBA2,
    MODELS,
    NEMOTRON_H,
    QWEN3_NEXT,
    WHOLE_HEADS,
    WINDOWS_WITHOUT_POSITIONS,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    BambaConfig,
    DeepseekV3Config,
    GPT2Config,
    LlamaConfig,
    Mamba2Config,
    MambaConfig,
    NemotronHConfig,
)
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from common.errors import UserError
from interop.hugging_face import (
    architecture_from_hugging_face,
    architecture_to_hugging_face,
    as_in_files,
    as_stored,
    weights_from_hugging_face,
    weights_to_hugging_face,
)
from model_builder import LanguageModel, build_model
from model_config import resolve_architecture

TOLERANCE = {"rtol": 0.0, "atol": 1e-5}
BATCH, LENGTH = 3, 23

BIAS_OF_CHOICE = "e_score_correction_bias"
RATES_OF_QWEN3_NEXT = "linear_attn.A_log"


def original(config):
    """Hugging Face's model with every parameter random, norms and biases too; and Qwen3-Next, whose rates and
    steps are large when drawn, forgets slowly, so that there is something to forget after a token."""
    config = copy.deepcopy(config)
    config._attn_implementation = "eager"
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn(parameter.shape)
        for name, rates in model.named_parameters():
            if name.endswith(RATES_OF_QWEN3_NEXT):
                rates -= 3
        for name, bias in model.named_buffers():
            if name.endswith(BIAS_OF_CHOICE):
                bias += 0.2 * torch.randn(bias.shape)
    return model


def loss_and_gradients(model, tokens):
    """Hugging Face shifts the labels itself: the last of LENGTH + 1 tokens is a target only. What moves without a
    gradient stands for itself."""
    loss = model(input_ids=tokens, labels=tokens).loss
    loss.backward()
    moved = {name: bias for name, bias in model.named_buffers() if name.endswith(BIAS_OF_CHOICE)}
    return loss.detach(), {name: parameter.grad for name, parameter in model.named_parameters()} | moved


@pytest.mark.parametrize("backend", ["sdpa", "manual"])
@pytest.mark.parametrize("name", MODELS)
def test_same_logits_loss_and_gradients(name, backend):
    theirs = original(MODELS[name])
    config = theirs.config.to_dict()
    architecture = architecture_from_hugging_face(config)
    if architecture.attention_sinks and backend != "manual":
        pytest.skip("which has no sinks")
    ours = build_model(architecture.replace(attention_backend=backend)).eval()
    ours.load_state_dict(weights_from_hugging_face(theirs.state_dict(), config))
    tokens = torch.randint(MODELS[name].vocab_size, (BATCH, LENGTH + 1))

    with torch.no_grad():
        logits, expected_logits = ours(tokens), theirs(tokens).logits
        rounding = (copy.deepcopy(ours).double()(tokens) - logits).abs().max().item()  # 1.3e-5 on some processors
    assert expected_logits.std() > 0.5
    assert rounding < 1e-5 * logits.abs().max()
    torch.testing.assert_close(logits, expected_logits, rtol=0.0, atol=TOLERANCE["atol"] + rounding)

    loss = ours(tokens[:, :-1], tokens[:, 1:]).mean
    loss.backward()
    expected_loss, expected = loss_and_gradients(theirs, tokens)
    torch.testing.assert_close(loss.detach(), expected_loss, **TOLERANCE)
    expected = weights_from_hugging_face(expected, config)  # the map is linear, so it holds for gradients too
    gradients = {name: parameter.grad for name, parameter in ours.named_parameters()}
    assert gradients.keys() == expected.keys() - {name for name, _ in ours.named_buffers()}
    for parameter, gradient in gradients.items():
        if "k_proj.bias" not in parameter:  # the softmax does not see it: its gradient is zero
            assert expected[parameter].abs().max() > 50 * TOLERANCE["atol"], parameter
        torch.testing.assert_close(gradient, expected[parameter], msg=lambda m, p=parameter: f"{p}: {m}", **TOLERANCE)


# ---------------------------------------------------------------------------------------------------------------------
# Out

HYBRID = {
    "layer_pattern": "MAM",
    "n_layer": 3,
    "n_head": 4,
    "num_key_value_heads": 2,
    "n_embd": 32,
    "d_ff": 88,
    "block_size": 64,
    "vocab_size": 101,
    "ffn_type": "swiglu",
    "normalization": "rmsnorm",
    "position_encoding": "rope",
    "rope_theta": 500.0,
    "mamba_head_dim": 16,
    "mamba_n_groups": 2,
    "mamba_d_state": 8,
}


def loaded_by_transformers(folder, weights, config):
    """Through the files that anyone would give it, without a tensor too few or too many."""
    (folder / "config.json").write_text(json.dumps(architecture_to_hugging_face(config)))
    save_file(weights_to_hugging_face(weights, config), folder / "model.safetensors", {"format": "pt"})
    model, found = AutoModelForCausalLM.from_pretrained(
        folder, attn_implementation="eager", dtype=torch.float32, output_loading_info=True
    )
    assert not any(found.values()), found
    return model.eval()


@pytest.mark.parametrize("name", MODELS)
def test_there_and_back_is_the_same(name, tmp_path):
    """Configuration, weights and gradients come back to the bit, and their class computes what it did."""
    theirs = original(MODELS[name])
    config = theirs.config.to_dict()
    architecture = architecture_from_hugging_face(config)
    written = architecture_to_hugging_face(architecture)
    assert architecture_from_hugging_face(written) == architecture
    weights = weights_from_hugging_face(theirs.state_dict(), config)
    back = weights_to_hugging_face(weights, architecture)
    tied = {"lm_head.weight"} if architecture.weight_tying else set()
    assert back.keys() == theirs.state_dict().keys() - tied
    for parameter, tensor in back.items():
        assert torch.equal(tensor, theirs.state_dict()[parameter]), parameter

    again = loaded_by_transformers(tmp_path, weights, architecture)
    tokens = torch.randint(101, (BATCH, LENGTH + 1))
    tokens[0, :3] = torch.arange(3)  # which their configurations take for special tokens unless told otherwise
    expected_loss, expected = loss_and_gradients(theirs, tokens)
    loss, gradients = loss_and_gradients(again, tokens)
    torch.testing.assert_close(loss, expected_loss, **TOLERANCE)
    assert gradients.keys() == expected.keys()
    for parameter, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected[parameter], **TOLERANCE)


@pytest.mark.parametrize("rank", [None, 11])
def test_pairs_that_lie_apart_are_the_same_function_in_another_order(rank, tmp_path):
    """Without rope_interleave; written, they lie beside one another."""
    yarn = DEEPSEEK_YARN | {"mscale": 1.0, "mscale_all_dim": 1.0}
    theirs = original(DeepseekV3Config(**DEEPSEEK, q_lora_rank=rank, rope_interleave=False, rope_parameters=yarn))
    config, tokens = theirs.config.to_dict(), torch.randint(101, (BATCH, LENGTH + 1))
    ours = build_model(architecture_from_hugging_face(config)).eval()
    ours.load_state_dict(weights_from_hugging_face(theirs.state_dict(), config))
    again = loaded_by_transformers(tmp_path, ours.state_dict(), ours.config)
    assert again.config.rope_interleave and not theirs.config.rope_interleave
    expected_loss, expected = loss_and_gradients(theirs, tokens)
    expected = weights_from_hugging_face(expected, config)
    loss = ours(tokens[:, :-1], tokens[:, 1:]).mean
    loss.backward()
    torch.testing.assert_close(loss.detach(), expected_loss, **TOLERANCE)
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], **TOLERANCE)
    with torch.no_grad():
        torch.testing.assert_close(ours(tokens), theirs(tokens).logits, **TOLERANCE)
        torch.testing.assert_close(again(tokens).logits, theirs(tokens).logits, **TOLERANCE)
    assert_same_greedy_text(ours, theirs, length=40)


def random_model(**keys):
    """Ours, as `original` makes theirs."""
    model = build_model(resolve_architecture(keys), seed=0).eval()
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn(parameter.shape)
    return model


def test_a_hybrid_writes_the_same_greedy_text_as_a_bamba(tmp_path):
    """Trained nowhere: drawn, exported, read by transformers, and stepped with the caches of each."""
    ours = random_model(**HYBRID)
    theirs = loaded_by_transformers(tmp_path, ours.state_dict(), ours.config)
    assert type(theirs).__name__ == "BambaForCausalLM"
    assert theirs.config.rope_parameters == WHOLE_HEADS
    tokens = assert_same_greedy_text(ours, theirs, length=60)
    assert len(set(tokens[0, 7:].tolist())) > 5  # no text that repeats a few


@torch.no_grad()
def assert_same_greedy_text(ours, theirs, length):
    """Stepped with the caches of each; the text."""
    prompt = torch.randint(3, 101, (1, 7))
    torch.testing.assert_close(ours(prompt), theirs(prompt).logits, **TOLERANCE)
    caches, tokens = ours.empty_caches(1, length), prompt
    logits = ours.next_token_logits(prompt, caches)
    while tokens.shape[1] < length:
        tokens = torch.cat((tokens, logits.argmax(-1, keepdim=True)), dim=1)
        logits = ours.next_token_logits(tokens[:, -1:], caches)
    theirs.generation_config.eos_token_id = None  # of an untrained model it means nothing
    mask = torch.ones_like(prompt)
    text = theirs.generate(prompt, attention_mask=mask, max_length=length, do_sample=False, pad_token_id=0)
    assert torch.equal(text, tokens)
    return tokens


@pytest.mark.parametrize("name", [name for name in MODELS if "mamba" not in name])
def test_greedy_text_is_theirs(name):
    theirs = original(MODELS[name])
    config = theirs.config.to_dict()
    ours = build_model(architecture_from_hugging_face(config)).eval()
    ours.load_state_dict(weights_from_hugging_face(theirs.state_dict(), config))
    assert_same_greedy_text(ours, theirs, length=40)


@torch.no_grad()
def test_a_bamba_is_stepped_with_position_ids():
    """Without them each step's token would stand at the text's start."""
    theirs = original(MODELS["bamba"])
    config = theirs.config.to_dict()
    ours = build_model(architecture_from_hugging_face(config)).eval()
    ours.load_state_dict(weights_from_hugging_face(theirs.state_dict(), config))
    tokens = torch.randint(101, (1, 20))
    caches, theirs_keep = ours.empty_caches(1, 20), None
    for position, token in enumerate(tokens.split(1, dim=1)):
        at = torch.tensor([[position]])
        output = theirs(token, past_key_values=theirs_keep, use_cache=True, position_ids=at)
        theirs_keep = output.past_key_values
        torch.testing.assert_close(ours(token, caches=caches), output.logits, **TOLERANCE)


@torch.no_grad()
def test_a_nemotron_h_has_no_least_step():
    """Its class has one where it reads a prompt, time_step_min, and none where it goes on token by token; neither has a
    model here, and what is written has one that is nothing."""
    theirs = original(NemotronHConfig(**NEMOTRON_H | {"time_step_min": 1e-3}))
    for name, bias in theirs.named_parameters():
        if name.endswith("dt_bias"):
            bias -= 7
    config, tokens = theirs.config.to_dict(), torch.randint(101, (1, 20))
    ours = build_model(architecture_from_hugging_face(config)).eval()
    ours.load_state_dict(weights_from_hugging_face(theirs.state_dict(), config))
    written = architecture_to_hugging_face(ours.config)["time_step_min"]

    def read_from(least, tokens, cache=None):
        for layer in theirs.model.layers:
            layer.mixer.time_step_limit = (least, math.inf)
        return theirs(tokens, past_key_values=cache, use_cache=True)

    logits = ours(tokens)
    assert (read_from(1e-3, tokens).logits - logits).abs().max() > 100 * TOLERANCE["atol"]
    torch.testing.assert_close(read_from(written, tokens).logits, logits, **TOLERANCE)
    cache = read_from(written, tokens[:, :1]).past_key_values
    for position in range(1, tokens.shape[1]):
        output = read_from(1e-3, tokens[:, position : position + 1], cache)
        torch.testing.assert_close(output.logits[:, 0], logits[:, position], **TOLERANCE)


@pytest.mark.parametrize(
    ("keys", "reason"),
    [
        ({"layer_pattern": "SAM"}, "layer_pattern='SAM': .* has Mamba-1 beside other mixers"),
        ({"layer_pattern": "M", "position_encoding": "none"}, "has Mamba-2 with FFNs and without attention"),
        ({"layer_pattern": "MWA", "attention_window": 4}, "layer_pattern='MWA': .* has attention within a window"),
        (
            {"layer_pattern": "DAD", "ffn_after": "attention"},
            "Qwen3NextForCausalLM has an FFN after every layer: ffn_after='attention' cannot",
        ),
        (
            {"layer_pattern": "DAD", "ffn_pattern": "FF-"},
            "Qwen3NextForCausalLM has an FFN after every layer: ffn_pattern='FF-' cannot",
        ),
        ({"ffn_after": "attention"}, "position_encoding='rope' cannot be .*: NemotronHForCausalLM has 'none'"),
        (
            {"ffn_after": "mamba", "position_encoding": "none", "weight_tying": False},
            "ffn_type='swiglu' cannot be represented: NemotronHForCausalLM has 'standard'",
        ),
        (
            {"arch_preset": "nemotron_h", "layer_pattern": "MAM", "mamba_n_groups": 1, "weight_tying": True},
            "weight_tying=True cannot be represented: NemotronHForCausalLM has False",
        ),
        (
            {"arch_preset": "nemotron_h", "layer_pattern": "MAM", "mamba_n_groups": 1, "attention_bias": "all"},
            "attention_bias='all' cannot be represented: NemotronHForCausalLM has 'none'",
        ),
        (
            {"arch_preset": "granite_hybrid", "layer_pattern": "MAM", "norm_topk_prob": False},
            "norm_topk_prob=False cannot be represented: GraniteMoeHybridForCausalLM has True",
        ),
        ({"ffn_type": "geglu"}, "ffn_type='geglu' cannot be represented: BambaForCausalLM has 'swiglu'"),
        ({"position_encoding": "alibi", "rope_theta": 1e4}, "position_encoding='alibi' cannot .*: Bamba.* has 'rope'"),
        ({"normalization": "layernorm"}, "normalization='layernorm' cannot"),
        ({"norm_position": "post"}, "norm_position='post' cannot .* has 'pre'"),
        ({"layer_pattern": "A", "norm_position": "post"}, "norm_position='post' cannot .*: LlamaForCausalLM has 'pre'"),
        (
            {"layer_pattern": "A", "ffn_type": "standard", "activation": "relu"},
            "ffn_type='standard' cannot .* has 'swiglu'",
        ),
        (
            {"arch_preset": "gpt2", "num_key_value_heads": 4, "ffn_type": "swiglu"},
            "ffn_type='swiglu' cannot .*: GPT2LMHeadModel has 'standard'",
        ),
        ({"arch_preset": "gpt2"}, "num_key_value_heads=2 cannot be represented: GPT2LMHeadModel has 4"),
        ({"arch_preset": "gpt2", "num_key_value_heads": 4, "bias": False}, "bias=False cannot .* has True"),
        ({"vocab_size": None}, "vocab_size=None"),
        ({"layer_values": {1: {"n_head": 2}}}, "layer_values=.* cannot .*: BambaForCausalLM has no layer's own keys"),
        ({"qk_norm": True}, "qk_norm=True cannot .*: BambaForCausalLM has False"),
        (
            {"layer_pattern": "A", "qk_norm": True, "attention_bias": "qkv", "head_dim": 6},
            "attention_bias='qkv' cannot .*: Qwen3ForCausalLM has 'none'",
        ),
        ({"head_dim": 6}, "head_dim=6 cannot be represented: GraniteMoeHybridForCausalLM has 8"),
        (
            {"layer_pattern": "A", "attention_sinks": True, "attention_backend": "manual"},
            "attention_sinks=True cannot be represented: LlamaForCausalLM has False",
        ),
        (
            {"layer_pattern": "A", "ffn_type": "swiglu_clamped"},
            "ffn_type='swiglu_clamped' cannot be represented: LlamaForCausalLM has 'swiglu'",
        ),
        (
            {"layer_pattern": "A", "attention_output_gate": "element"},
            "attention_output_gate='element' cannot be represented: LlamaForCausalLM has None",
        ),
        (
            {"layer_pattern": "DWA", "attention_window": 4},
            "layer_pattern='DWA': .* has the gated delta rule beside such",
        ),
        ({"layer_pattern": "KAK"}, "layer_pattern='KAK': .* has Kimi delta attention beside such mixers"),
        ({"layer_pattern": "ACA"}, "layer_pattern='ACA': .* has latent attention beside such mixers"),
        (
            {"layer_pattern": "DAD"},
            "normalization='rmsnorm' cannot .*: Qwen3NextForCausalLM has 'rmsnorm_zero_centred'",
        ),
        (
            {"arch_preset": "qwen3_next", "layer_pattern": "DAD", "attention_output_gate": None},
            "attention_output_gate=None cannot .*: Qwen3NextForCausalLM has 'element'",
        ),
        (
            {"arch_preset": "qwen3_next", "layer_pattern": "DAD", "n_shared_experts": 0, "shared_expert_gate": False},
            "shared_expert_intermediate_size=0: expected a whole number from 1",
        ),
        (
            {"arch_preset": "kimi_linear", "layer_pattern": "KCK", "weight_tying": True},
            "weight_tying=True cannot be represented: KimiLinearForCausalLM has False",
        ),
        (
            {"arch_preset": "kimi_linear", "layer_pattern": "KCK", "linear_value_head_dim": 9},
            "linear_value_head_dim=9 cannot be represented: KimiLinearForCausalLM has 128",
        ),
        ({"arch_preset": "kimi_linear", "layer_pattern": "KKK"}, "layer_types must name one full_attention layer"),
        (
            {"arch_preset": "gpt2", "num_key_value_heads": 4, "value_residual": True},
            "value_residual=True cannot be represented: GPT2LMHeadModel has False",
        ),
    ],
)
def test_what_no_class_of_theirs_is_is_refused_with_the_reason(keys, reason):
    dropped = {"n_head", "num_key_value_heads", "n_embd", "vocab_size", "n_layer", "block_size"}
    base = {key: value for key, value in HYBRID.items() if key in dropped} if "arch_preset" in keys else dict(HYBRID)
    if "M" not in keys.get("layer_pattern", "M"):
        base = {key: value for key, value in base.items() if not key.startswith("mamba_")}
    if keys.get("position_encoding", "rope") != "rope":
        base.pop("rope_theta")
    if keys.get("layer_pattern") == "KKK":
        base = {key: value for key, value in base.items() if key != "n_head"}
    if keys.get("arch_preset") == "kimi_linear":
        base.pop("num_key_value_heads")
    if keys.get("layer_pattern") == "M":
        base = {key: value for key, value in base.items() if key not in ("n_head", "num_key_value_heads")}
    with pytest.raises(UserError, match=reason) as refusal:
        architecture_to_hugging_face(resolve_architecture(base | keys))
    assert len(str(refusal.value).splitlines()) == 1


_DELTA = {"n_experts": 6, "n_experts_per_token": 2, "expert_d_ff": 16, "linear_num_value_heads": 2, "norm_eps": 0.1}
_DELTA |= {"linear_key_head_dim": 8}
OF_MAMBA_HYBRIDS = {
    "granite_hybrid": {"n_experts": 6, "n_experts_per_token": 2, "expert_d_ff": 16},
    "nemotron_h": {"layer_pattern": "MAM", "ffn_pattern": "F-F", "mamba_n_groups": 2},
}
OF_DELTA_RULES = {
    "qwen3_next": {**_DELTA, "layer_pattern": "DAD", "head_dim": 8},
    "kimi_linear": {
        **_DELTA, "layer_pattern": "KCK", "kv_lora_rank": 12, "qk_nope_head_dim": 10, "qk_rope_head_dim": 8,
        "v_head_dim": 14,
    },
}  # fmt: skip


@st.composite
def architectures(draw):
    """A preset that has a class, and up to two changes of which some take it out of it."""
    presets = ["gpt2", "llama", "llama3", "mistral", "qwen3", "neox", "mamba1", "mamba2", "hybrid", *OF_DELTA_RULES]
    presets += OF_MAMBA_HYBRIDS
    preset = draw(st.sampled_from(presets))
    keys = {"arch_preset": preset, "n_layer": 3, "n_embd": 32, "vocab_size": 101, "block_size": 24}
    keys |= {"n_head": 4} if preset not in ("mamba1", "mamba2") else {}
    keys |= {"mamba_head_dim": 16, "mamba_chunk_size": 8} if preset in ("mamba2", "hybrid", *OF_MAMBA_HYBRIDS) else {}
    keys |= OF_DELTA_RULES.get(preset, {}) | OF_MAMBA_HYBRIDS.get(preset, {})
    choices = {
        "layer_pattern": ["A", "M", "S", "MMA", "SSA", "AWW", "W", "UAW", "DDA", "AKC"],
        "parallel_residual": [True, False],
        "partial_rotary_factor": [0.25, 0.5],
        "attention_window": [5],
        "ffn_after": ["all", "attention", "mamba"],
        "ffn_type": ["standard", "swiglu", "swiglu_clamped", "geglu", "geglu_tanh"],
        "normalization": ["layernorm", "layernorm_nobias", "rmsnorm", "rmsnorm_zero_centred"],
        "norm_position": ["pre", "post", "sandwich", "inside"],
        "embedding_multiplier": [None, 2.0],
        "residual_multiplier": [0.5],
        "logits_scaling": [2.0],
        "attention_multiplier": [0.2, 5**-0.5],
        "final_logit_softcapping": [2.0],
        "norm_eps": [1e-5, 0.1],
        "position_encoding": ["learned_absolute", "rope", "alibi", "none"],
        "rope_theta": [50.0],
        "activation": ["gelu", "silu", "relu", "leaky_relu"],
        "num_key_value_heads": [1, 2],
        "bias": [False, True],
        "weight_tying": [False, True],
        "mamba_n_groups": [2],
        "mamba_d_state": [5],
        "mamba_expand": [1],
        "mamba_n_heads": [4, 6],
        "mamba_d_conv": [2],
        "head_dim": [6],
        "attention_bias": ["none", "qkv", "all"],
        "qk_norm": [True, "width"],
        "attention_output_gate": ["head", "element"],
        "value_residual": [True],
        "mamba_bias": [False, True],
        "mamba_conv_bias": [False],
        "mamba_dt_rank": [3],
        "linear_num_value_heads": [4],
        "linear_num_key_heads": [1],
        "linear_value_head_dim": [12],
        "linear_conv_kernel_dim": [2],
        "linear_chunk_size": [8],
        "n_shared_experts": [0, 2],
        "shared_expert_gate": [False, True],
        "norm_topk_prob": [False],
        "ffn_pattern": ["F", "EFE"],
        "q_lora_rank": [9],
        "n_group": [2],
        "layer_values": [{0: {"rope_theta": 7.0}}, {0: {"n_head": 2}}],
    }
    changed = draw(st.lists(st.sampled_from(list(choices)), max_size=2, unique=True))
    return keys | {key: draw(st.sampled_from(choices[key])) for key in changed}


@settings(max_examples=200)
@given(architectures())
def test_whatever_is_written_computes_the_same(keys):
    try:
        ours = random_model(**keys)
        written = architecture_to_hugging_face(ours.config)
    except UserError:
        return
    config = AutoConfig.for_model(**{key: value for key, value in written.items() if key != "architectures"})
    theirs = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    missing, unexpected = theirs.load_state_dict(weights_to_hugging_face(ours.state_dict(), ours.config), strict=False)
    assert not unexpected and missing == (["lm_head.weight"] if ours.config.weight_tying else [])
    tokens = torch.randint(101, (2, LENGTH), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits, expected = ours(tokens), theirs(tokens).logits
    assert (logits - expected).abs().max() <= TOLERANCE["atol"] * max(1.0, expected.abs().max())


def test_presets_that_have_a_class():
    """Dropout and the backend are no reasons to refuse; every preset but nanoGPT's has a class."""
    for preset, model_type in (
        ("gpt2", "gpt2"), ("llama", "llama"), ("llama3", "llama"), ("team", "llama"),
        ("mistral", "mistral"), ("qwen3", "qwen3"), ("phi3", "mistral"),
        ("smollm3", "smollm3"), ("neox", "gpt_neox"), ("gemma2", "gemma2"), ("gemma3", "gemma3_text"),
        ("olmo2", "olmo2"), ("mixtral", "mixtral"), ("qwen3_moe", "qwen3_moe"), ("olmoe", "olmoe"),
        ("gpt_oss", "gpt_oss"), ("deepseek_dense", "deepseek_v3"), ("deepseek_v3", "deepseek_v3"),
        ("mamba1", "mamba"), ("mamba2", "mamba2"), ("hybrid", "bamba"), ("qwen3_next", "qwen3_next"),
        ("kimi_linear", "kimi_linear"), ("granite_hybrid", "granitemoehybrid"), ("nemotron_h", "nemotron_h"),
    ):  # fmt: skip
        config = resolve_architecture({"arch_preset": preset, "vocab_size": 100, "dropout": 0.25})
        written = architecture_to_hugging_face(config)
        assert written["model_type"] == model_type
        assert written.get("embd_pdrop") == (0.25 if preset == "gpt2" else None)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda state: state.pop("blocks.1.mixer.q_proj.weight"), r"lack blocks\.1\.mixer\.q_proj\.weight"),
        (lambda state: state.update({"extra": torch.ones(2)}), "have extra"),
        (lambda state: state.update({"blocks.0.mixer.D": torch.ones(3)}), r"blocks\.0\.mixer\.D is \(3,\)"),
    ],
)
def test_weights_that_are_not_of_the_architecture_are_refused(damage, message):
    model = random_model(**HYBRID)
    state = model.state_dict()
    damage(state)
    with pytest.raises(UserError, match=message):
        weights_to_hugging_face(state, model.config)


# ---------------------------------------------------------------------------------------------------------------------
# Configurations


ANYTHING = [
    None, True, 0, -1, 7, 1.5, math.nan, math.inf, "", "auto", "silu", [], [1], ["a"], [[1]], {}, {"a": 1},
    {"rope_type": "linear"}, {"rope_type": "linear", "factor": "x"}, {"rope_theta": "x"}, {"type": [1]},
    {"partial_rotary_factor": "x"},
]  # fmt: skip


@pytest.mark.parametrize(
    "name",
    [
        "gpt2",
        "llama 3.1",
        "mistral",
        "qwen 2",
        "qwen 3",
        "phi 3",
        "smollm 3",
        "neox",
        "gemma 2",
        "gemma 3",
        "olmo 3",
        "granite",
        "mamba",
        "mamba 2",
        "bamba",
        "qwen 3 next",
        "kimi linear",
        "granite 4",
        "nemotron-h",
    ],
)
def test_anything_under_any_key_is_read_or_refused_in_one_line(name):
    config = {key: value for key, value in MODELS[name].to_dict().items() if value is not None}
    for key in [*config, "head_dim", "n_inner", "rope_scaling", "rope_theta"]:
        for value in ANYTHING:
            try:
                architecture_from_hugging_face(config | {key: value})
            except UserError as refusal:
                assert len(str(refusal).splitlines()) == 1, (key, value)


ORIGINAL = {"original_max_position_embeddings": 16}
SCALINGS = [
    {"rope_type": "linear", "factor": 4.0},
    {"rope_type": "dynamic", "factor": 4.0},
    {key: value for key, value in LLAMA3_ROPE.items() if key != "rope_theta"},
    {"rope_type": "yarn", "factor": 4.0, **ORIGINAL},
    {"rope_type": "yarn", "factor": 4.0, "truncate": False, "beta_fast": 4.0, "beta_slow": 0.5, **ORIGINAL},
    {"rope_type": "yarn", "factor": 40.0, "mscale": 1.0, "mscale_all_dim": 0.5, **ORIGINAL},
    {"rope_type": "yarn", "factor": None, "attention_factor": 0.7, **ORIGINAL},
    {"rope_type": "yarn", "factor": 1.0, "mscale": 0, **ORIGINAL},
    {"rope_type": "longrope", "short_factor": [1.0] * 8, "long_factor": [1.0, 2, 3, 4, 5, 6, 7, 8], **ORIGINAL},
    {"rope_type": "longrope", "short_factor": [1.5] * 8, "long_factor": [2.0] * 8, "factor": 8.0, **ORIGINAL},
    {"rope_type": "longrope", "short_factor": [1.5] * 8, "long_factor": [2.0] * 8, "attention_factor": 1.3, **ORIGINAL},
]


@pytest.mark.parametrize("scaling", SCALINGS)
@pytest.mark.parametrize("length", [9, 16, 17, 200])
def test_frequencies_and_attention_factor_are_theirs(scaling, length):
    """With a block_size beyond the original context, and texts within and beyond that."""
    sizes = LLAMA | {"hidden_size": 64, "max_position_embeddings": 16 if scaling["rope_type"] == "dynamic" else 64}
    theirs = LlamaConfig(**sizes, rope_parameters={"rope_theta": 500.0, **scaling})
    expected, factor = ROPE_INIT_FUNCTIONS[scaling["rope_type"]](theirs, torch.device("cpu"), seq_len=length)
    ours = architecture_from_hugging_face(theirs.to_dict())
    rotation = build_model(ours.replace(block_size=256)).blocks[0].shared["rotation"]
    torch.testing.assert_close(rotation.frequencies("cpu", length), expected, rtol=1e-6, atol=0.0)
    cos, sin = rotation(length, torch.device("cpu"))
    assert torch.allclose((cos**2 + sin**2).sqrt(), torch.tensor(factor), rtol=1e-6)
    angles = torch.arange(length)[:, None] * expected
    torch.testing.assert_close(cos, angles.cos() * factor, rtol=0.0, atol=1e-5)


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
    both = {"rope_parameters": {"rope_type": "default", "rope_theta": 7.0}, "rope_scaling": old["rope_scaling"]}
    assert LlamaConfig(**LLAMA, **both, rope_theta=500000.0).rope_parameters == {
        "type": "linear",
        **new.rope_parameters,
    }
    assert architecture_from_hugging_face(old | both) == architecture


def test_kimis_config_as_published():
    """With layers counted from 1 in lists of their own, and other names of keys."""
    layers = {"kda_layers": [1, 3], "full_attn_layers": [2], "head_dim": 6, "num_heads": 3, "short_conv_kernel_size": 4}
    published = {key: value for key, value in KIMI_LINEAR.items() if key not in ("layer_types", "num_local_experts")}
    del published["linear_num_heads"], published["linear_head_dim"], published["num_experts_per_tok"]
    published |= {
        "linear_attn_config": layers,
        "num_experts": 8,
        "num_experts_per_token": 3,
        "model_type": "kimi_linear",
    }
    published |= {"model_max_length": published.pop("max_position_embeddings"), "rope_theta": 10000.0, "head_dim": 72}
    expected = architecture_from_hugging_face({"model_type": "kimi_linear", **KIMI_LINEAR})
    assert architecture_from_hugging_face(published) == expected
    theirs = AutoConfig.for_model(**published)
    assert architecture_from_hugging_face(theirs.to_dict()) == expected
    for wrong in ({"kda_layers": [1]}, {"full_attn_layers": [2, 3]}, {"kda_layers": ["1", 3]}, {"kda_layers": 1}):
        with pytest.raises(UserError, match="its lists must name each of the layers 1 to 3 once"):
            architecture_from_hugging_face(published | {"linear_attn_config": layers | wrong})
    own = {"layer_types": KIMI_LINEAR["layer_types"]}  # which win
    assert (
        architecture_from_hugging_face(published | own | {"linear_attn_config": layers | {"kda_layers": [1]}})
        == expected
    )


def test_nemotron_hs_config_as_published():
    """With the layers as a text, and what its first files call otherwise; a list beside the text wins."""
    published = {key: value for key, value in NEMOTRON_H.items() if key not in ("layers_block_type", "head_dim")}
    published |= {
        "model_type": "nemotron_h", "hybrid_override_pattern": "M-M*-", "num_hidden_layers": 5, "attention_head_dim": 6,
        "mamba_proj_bias": False, "expand": 2, "time_step_limit": [0.0, math.inf], "use_mamba_kernels": True,
        "rescale_prenorm_residual": True, "residual_in_fp32": False, "num_logits_to_keep": 1, "sliding_window": None,
    }  # fmt: skip
    expected = architecture_from_hugging_face({"model_type": "nemotron_h", **NEMOTRON_H})
    assert (expected.layer_pattern, expected.ffn_pattern) == ("MMA", "F-F")
    assert architecture_from_hugging_face(published) == expected
    listed = {"layer_types": ["linear_attention", "full_attention"], "num_hidden_layers": 2}
    found = architecture_from_hugging_face(published | listed)
    assert (found.layer_pattern, found.ffn_pattern) == ("MA", "--")
    assert AutoConfig.for_model(**published).layers_block_type == AutoConfig.for_model(**NEMOTRON_H | {
        "model_type": "nemotron_h"
    }).layers_block_type  # fmt: skip
    further = {"mtp.layers.0.norm.weight": torch.ones(32)}  # which transformers leaves out, too
    theirs = original(MODELS["nemotron-h"])
    weights = weights_from_hugging_face({**theirs.state_dict(), **further}, published)
    assert weights.keys() == weights_from_hugging_face(theirs.state_dict(), published).keys()


def test_a_bamba_of_transformers_4_that_rotates_whole_heads():
    """Read as transformers 5 reads it: what stands beside `rope_scaling` does not change the half that is rotated."""
    old = BAMBA | {"rope_theta": 500.0, "rope_parameters": None, "partial_rotary_factor": 0.5}
    old |= {"rope_scaling": {"type": "default", "partial_rotary_factor": 1.0}}
    read = BambaConfig(**old).rope_parameters
    assert (read["partial_rotary_factor"], read["rope_theta"]) == (1.0, 500.0)
    expected = architecture_from_hugging_face({"model_type": "bamba", **BAMBA, "rope_parameters": WHOLE_HEADS})
    assert architecture_from_hugging_face({"model_type": "bamba", **old}) == expected


@pytest.mark.parametrize(
    ("config", "parameters"),
    [
        (
            """{"model_type": "mamba", "architectures": ["MambaForCausalLM"], "d_inner": 1536, "d_model": 768,
            "hidden_size": 768, "n_layer": 24, "num_hidden_layers": 24, "vocab_size": 50280, "state_size": 16,
            "intermediate_size": 1536, "conv_kernel": 4, "expand": 2, "hidden_act": "silu", "fused_add_norm": true,
            "rms_norm": true, "residual_in_fp32": true, "pad_vocab_size_multiple": 8, "ssm_cfg": {},
            "time_step_rank": 48, "time_step_scale": 1.0, "time_step_min": 0.001, "time_step_max": 0.1,
            "time_step_floor": 0.0001, "time_step_init_scheme": "random", "use_bias": false, "use_conv_bias": true,
            "layer_norm_epsilon": 1e-05, "rescale_prenorm_residual": false, "torch_dtype": "float32"}""",
            129_135_360,
        ),
        (
            """{"model_type": "mamba2", "hidden_size": 768, "num_hidden_layers": 24, "vocab_size": 50288,
            "num_heads": 24, "head_dim": 64, "n_groups": 1, "state_size": 128, "chunk_size": 256, "expand": 2,
            "rms_norm": true, "norm_before_gate": false, "time_step_limit": [0.0, Infinity],
            "tie_word_embeddings": true}""",
            128_989_632,
        ),
    ],
)
def test_published_state_space_models_have_their_published_parameters(config, parameters):
    with torch.device("meta"):
        model = LanguageModel(architecture_from_hugging_face(json.loads(config)))
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters


def test_what_config_json_leaves_out_has_hugging_faces_defaults():
    whole = {**BAMBA, "mamba_d_head": "auto"}
    for config, sizes in (
        (GPT2Config(**GPT2), GPT2),
        (LlamaConfig(**LLAMA), LLAMA),
        (MambaConfig(**MAMBA), MAMBA),
        (Mamba2Config(**MAMBA | {"hidden_size": 4096}), MAMBA | {"hidden_size": 4096}),
        (BambaConfig(**whole), whole),
    ):
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
        ("llama", {"hidden_act": "relu"}, "hidden_act"),
        ("llama", {"attention_dropout": 0.1}, "attention_dropout"),
        ("llama", {"rope_parameters": {"rope_type": "su", "rope_theta": 1e4, "factor": 2.0}}, "rope_type"),
        (
            "llama",
            {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}},
            "partial_rotary_factor",
        ),
        ("llama", {"sliding_window": 128}, "sliding_window"),
        ("qwen2", {"num_key_value_heads": 4, "layer_types": ["x", "full_attention"]}, "layer_types contradicts num_h"),
        (
            "qwen3",
            {"num_key_value_heads": 4, "head_dim": 8, "layer_types": ["full_attention", "sliding_attention"]},
            "sliding_attention, whose sliding_window is not given or not used",
        ),
        ("llama", {"hidden_size": None}, "hidden_size"),
        ("llama", {"hidden_size": "32"}, "hidden_size='32': expected a whole number"),
        ("mamba", {"hidden_act": "gelu"}, "hidden_act"),
        ("mamba", {"intermediate_size": 32}, "intermediate_size=32 contradicts expand x hidden_size = 64"),
        ("mamba", {"expand": 1.5}, "expand=1.5: expected a whole number"),
        ("mamba2", {"time_step_limit": [0.0, 0.1]}, "time_step_limit"),
        ("mamba2", {"num_heads": 5}, "num_heads x head_dim = 80 contradicts expand x hidden_size"),
        ("mamba2", {"n_groups": 3}, "num_heads=4 is not divisible by n_groups=3"),
        ("bamba", {"rope_parameters": {"partial_rotary_factor": 1.5}}, "partial_rotary_factor=1.5 is more than 1"),
        ("phi3", {"rope_parameters": {"rope_type": "linear", "factor": 2.0}}, "rope_type='linear' cannot be"),
        ("phi3", {"rope_parameters": {**LONGROPE, "long_factor": [1.0]}}, "short_factor must be 4 numbers"),
        ("smollm3", {**WINDOWS_WITHOUT_POSITIONS}, "no_rope_layers: layers within a sliding_window and without"),
        ("gemma2", {"use_bidirectional_attention": True}, "use_bidirectional_attention"),
        ("gemma3_text", {"num_key_value_heads": 2, "attn_logit_softcapping": 50.0}, "attn_logit_softcapping=50.0"),
        ("gemma2", {"query_pre_attn_scalar": 0}, "query_pre_attn_scalar=0"),
        (
            "gemma3_text",
            {"num_key_value_heads": 2, "rope_parameters": {"rope_theta": 1.0}},
            "rope_parameters=.*expected those",
        ),
        ("gpt_neox", {"hidden_dropout": 0.1}, "hidden_dropout and attention_dropout differ"),
        ("gpt_neox", {"use_parallel_residual": 1}, "use_parallel_residual=1: expected true or false"),
        ("bamba", {"attn_layer_indices": [7]}, "attn_layer_indices=\\[7\\] names a layer that is none of 0 to 2"),
        ("bamba", {"attn_layer_indices": [0, 1, 2]}, "leave some"),
        ("bamba", {"attn_layer_indices": []}, "name some"),
        ("bamba", {"hidden_act": "gelu"}, "hidden_act"),
        ("bamba", {"mamba_d_head": 8}, "mamba_d_head=8"),
        ("bamba", {"mamba_n_heads": 0}, "mamba_n_heads=0"),
        ("qwen3_next", {"layer_types": ["linear_attention"] * 3}, "must name one full_attention layer at least"),
        ("qwen3_next", {"layer_types": ["full_attention", "sliding_attention"]}, "one of linear_attention, full_att"),
        ("qwen3_next", {"hidden_act": "gelu"}, "hidden_act"),
        ("qwen3_next", {"shared_expert_intermediate_size": 13}, "=13 is not divisible by moe_intermediate_size=12"),
        ("qwen3_next", {"linear_num_key_heads": 3}, "linear_num_value_heads=4 is not divisible by linear_num_key_h"),
        ("qwen3_next", {"partial_rotary_factor": 0.0}, "partial_rotary_factor=0.0"),
        ("falcon_h1", {}, "model_type='falcon_h1' cannot be represented: in its layers attention and Mamba-2 read the"),
        ("granitemoehybrid", {"layer_types": ["mamba"] * 3}, "layer_types must name one full_attention layer at least"),
        ("granitemoehybrid", {"position_embedding_type": "alibi"}, "position_embedding_type='alibi' is none of: rope"),
        ("granitemoehybrid", {"hidden_act": "gelu"}, "hidden_act='gelu' cannot be represented; only 'silu' can"),
        ("granitemoehybrid", {"time_step_limit": [0.0, 0.1]}, "time_step_limit"),
        ("granitemoehybrid", {"attention_multiplier": 0.0}, "attention_multiplier=0.0"),
        ("nemotron_h", {"layers_block_type": ["mamba", "mlp"]}, "layers_block_type must name one full_attention layer"),
        ("nemotron_h", {"layers_block_type": ["mlp", "attention"]}, "'-\\*': an FFN that follows no mixer cannot be"),
        ("nemotron_h", {"layers_block_type": ["attention", "moe"]}, "the experts of moe layers have no gates"),
        ("nemotron_h", {"mlp_hidden_act": "mish"}, "mlp_hidden_act='mish' is none of"),
        ("nemotron_h", {"mamba_hidden_act": "gelu"}, "mamba_hidden_act='gelu' cannot be represented"),
        ("nemotron_h", {"time_step_limit": [0.001, 0.1]}, "time_step_limit"),
        ("nemotron_h", {"num_nextn_predict_layers": 1}, "num_nextn_predict_layers=1 cannot be represented"),
        ("nemotron_h", {"sliding_window": 5}, "sliding_window=5 cannot be represented"),
        ("kimi_linear", {"layer_types": ["linear_attention"] * 3}, "must name one full_attention layer at least"),
        ("kimi_linear", {"num_key_value_heads": 2}, "num_key_value_heads=2 contradicts num_attention_heads = 4"),
        ("kimi_linear", {"mla_use_nope": False}, "mla_use_nope=False cannot be represented; only True can"),
        ("kimi_linear", {"moe_router_activation_func": "softmax"}, "only 'sigmoid' can"),
        ("kimi_linear", {"n_shared_experts": 0}, "n_shared_experts=0 cannot be represented"),
        ("kimi_linear", {"num_experts": 9}, "num_experts=9 contradicts num_local_experts=8"),
        ("kimi_linear", {"linear_attn_config": {"heads": 3}}, "linear_attn_config: unknown key 'heads'"),
        ("kimi_linear", {"linear_attn_config": {"num_heads": "3"}}, "linear_attn_config: num_heads='3'"),
    ],
)
def test_what_cannot_be_represented_is_refused_by_its_key(model_type, change, named):
    sizes = {"gpt2": GPT2, "mamba": MAMBA, "mamba2": MAMBA2, "bamba": BAMBA}
    sizes |= {"qwen3_next": QWEN3_NEXT, "kimi_linear": KIMI_LINEAR}
    sizes = (sizes | {"granitemoehybrid": GRANITE_HYBRID, "nemotron_h": NEMOTRON_H}).get(model_type, LLAMA)
    config = {"model_type": model_type, **sizes, **change}
    with pytest.raises(UserError, match=named) as refusal:
        architecture_from_hugging_face(config)
    assert len(str(refusal.value).splitlines()) == 1


def test_a_head_that_is_tied_and_is_not_the_embedding_is_not_dropped():
    theirs = original(MODELS["llama, multi-query, tied"])
    config = theirs.config.to_dict()
    head, embedding = "lm_head.weight", "model.embed_tokens.weight"
    state = {name: tensor.clone() for name, tensor in theirs.state_dict().items()}
    assert as_stored(config, state) == config
    expected = weights_from_hugging_face(state, config)
    for without in (head, embedding):  # one of them is enough
        fewer = {name: tensor for name, tensor in state.items() if name != without}
        found = weights_from_hugging_face(fewer, config)
        assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in found)
    state[head] += 1
    with pytest.raises(UserError, match=r"lm_head.weight is not the embedding, .* tie_word_embeddings=false"):
        weights_from_hugging_face(state, config)
    untied = as_stored(config, state)
    assert untied == config | {"tie_word_embeddings": False}
    assert torch.equal(weights_from_hugging_face(state, untied)[head], state[head])


def test_special_tokens_are_written_as_they_are_given():
    architecture = architecture_from_hugging_face(MODELS["llama 2"].to_dict())
    tokens = {"bos_token_id": 1, "eos_token_id": [2, 3]}
    assert architecture_to_hugging_face(architecture, tokens).items() >= tokens.items()
    assert "pad_token_id" not in architecture_to_hugging_face(architecture, tokens)
    assert architecture_to_hugging_face(architecture)["eos_token_id"] is None


@pytest.mark.parametrize("number", ["Infinity", "-Infinity", "NaN"])
def test_numbers_that_json_does_not_have(number):
    limit = {"model_type": "mamba2", **MAMBA2, "time_step_limit": [0.0, {"__float__": number}]}
    if number == "Infinity":
        assert architecture_from_hugging_face(limit) == architecture_from_hugging_face(
            {"model_type": "mamba2", **MAMBA2}
        )
    else:
        with pytest.raises(UserError, match="time_step_limit="):
            architecture_from_hugging_face(limit)


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


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda state: state.pop("model.layers.0.mamba.D"), r"lack blocks\.0\.mixer\.D"),
        (
            lambda state: state.update({"model.layers.0.mamba.in_proj.weight": torch.ones(7, 32)}),
            r"mamba\.in_proj\.weight has 7 rows, the configuration says",
        ),
        (
            lambda state: state.update({"model.layers.1.mamba.in_proj.weight": torch.ones(7, 32)}),
            "has no place in a LanguageModel made of this BambaForCausalLM",
        ),
    ],
)
def test_weights_of_a_hybrid_that_do_not_fit_are_refused(damage, message):
    theirs = original(MODELS["bamba"])
    state = theirs.state_dict()
    damage(state)
    with pytest.raises(UserError, match=message):
        weights_from_hugging_face(state, theirs.config.to_dict())


# ---------------------------------------------------------------------------------------------------------------------
# Files that name tensors otherwise than the class

IN_FILES = [
    "mixtral", "qwen 3 with experts in some layers", "olmoe", "gpt-oss", "deepseek v3, experts", "qwen 3 next",
    "granite 4", "nemotron-h",
]  # fmt: skip


@pytest.mark.parametrize("name", IN_FILES)
def test_files_have_the_names_that_save_pretrained_writes(name, tmp_path):
    """Each expert's matrices by themselves, mostly; and what they hold is read as what the class holds is."""
    theirs = original(MODELS[name])
    theirs.save_pretrained(tmp_path)
    config, files = theirs.config.to_dict(), load_file(tmp_path / "model.safetensors")
    weights, of_class = (weights_from_hugging_face(tensors, config) for tensors in (files, theirs.state_dict()))
    assert weights.keys() == of_class.keys() and all(torch.equal(weights[key], of_class[key]) for key in weights)
    architecture = architecture_from_hugging_face(config)
    written = as_in_files(weights_to_hugging_face(weights, architecture), architecture_to_hugging_face(architecture))
    assert written.keys() == files.keys() and all(torch.equal(written[key], files[key]) for key in files)


def test_kimis_files_are_read_as_published_and_as_save_pretrained_writes_them(tmp_path):
    """Published, an FFN is `mlp` and only experts are `block_sparse_moe`; save_pretrained calls both by the latter."""
    theirs = original(MODELS["kimi linear"])
    theirs.save_pretrained(tmp_path)
    config, files = theirs.config.to_dict(), load_file(tmp_path / "model.safetensors")
    dense = "model.layers.0.block_sparse_moe."
    published = {name.replace(dense, "model.layers.0.mlp."): tensor for name, tensor in files.items()}
    assert len(published.keys() - files.keys()) == 3
    weights = weights_from_hugging_face(theirs.state_dict(), config)
    for tensors in (files, published):
        found = weights_from_hugging_face(tensors, config)
        assert found.keys() == weights.keys() and all(torch.equal(found[key], weights[key]) for key in weights)
    architecture = architecture_from_hugging_face(config)
    written = as_in_files(weights_to_hugging_face(weights, architecture), architecture_to_hugging_face(architecture))
    assert written.keys() == published.keys() and all(torch.equal(written[key], published[key]) for key in written)
    save_file(written, tmp_path / "model.safetensors", {"format": "pt"})
    again, told = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32, output_loading_info=True)
    assert not any(told.values()), told
    assert all(torch.equal(tensor, theirs.state_dict()[key]) for key, tensor in again.state_dict().items())
    del files["model.layers.1.self_attn.kv_b_proj.weight"], published["model.layers.0.self_attn.k_conv1d.weight"]
    for tensors, named in ((files, r"lack blocks\.1\.mixer\.kv_b_proj"), (published, "q_conv1d.weight' has no place")):
        with pytest.raises(UserError, match=named):
            weights_from_hugging_face(tensors, config)


def test_what_predicts_further_tokens_of_qwen3_next_is_left_out():
    """As transformers leaves it out."""
    theirs = original(MODELS["qwen 3 next"])
    config = theirs.config.to_dict()
    further = {"mtp.fc.weight": torch.ones(2, 2), "mtp.layers.0.mlp.gate.weight": torch.ones(2, 2)}
    weights = weights_from_hugging_face({**theirs.state_dict(), **further}, config)
    assert weights.keys() == weights_from_hugging_face(theirs.state_dict(), config).keys()


def test_a_matrix_of_an_expert_that_is_missing_is_named(tmp_path):
    theirs = original(MODELS["mixtral"])
    theirs.save_pretrained(tmp_path)
    files = load_file(tmp_path / "model.safetensors")
    del files["model.layers.1.block_sparse_moe.experts.2.w3.weight"]
    with pytest.raises(UserError, match=r"layers\.1\.block_sparse_moe\.experts\.0\.w1\.weight' has no place"):
        weights_from_hugging_face(files, theirs.config.to_dict())


def test_layers_that_predict_further_tokens_are_left_out():
    """DeepSeek-V3's files have one, after the last; transformers does not load it either."""
    theirs = original(MODELS["deepseek v3, experts"])
    config = theirs.config.to_dict() | {"num_nextn_predict_layers": 1}
    further = {"model.layers.2.eh_proj.weight": torch.ones(2, 2), "model.layers.2.mlp.gate.weight": torch.ones(2, 2)}
    weights = weights_from_hugging_face({**theirs.state_dict(), **further}, config)
    assert weights.keys() == weights_from_hugging_face(theirs.state_dict(), config).keys()
    with pytest.raises(UserError, match="eh_proj"):
        weights_from_hugging_face({**theirs.state_dict(), **further}, config | {"num_nextn_predict_layers": 0})
