"""What a model is: presets, derived sizes, names, and the combinations that are refused."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import UserError
from components import registry
from components.mixers.mamba2.spec import hybrid_pattern
from components.registry import PRESETS, spec
from components.spec import Activation, Norm
from configurator import as_dict, from_dict, load
from model_config import ModelArchitectureConfig, architecture_keys, resolve_architecture

LLAMA3_SCALING = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}

# For every architecture key: a value that no preset has, and what it takes for the value to be legal. A key about what
# no layer has is refused: the patterns have layers of all kinds, with an FFN and without, whatever the preset.
BOTH = {"layer_pattern": "AM"}
LATENT = {"layer_pattern": "AC"}
DELTA = {"layer_pattern": "AD"}
EXPERTS = {"layer_pattern": "AM", "ffn_pattern": "FE"}
OVERRIDES = {
    "n_layer": (7, {}),
    "n_head": (6, BOTH),
    "n_embd": (384, {}),
    "num_key_value_heads": (3, BOTH),
    "head_dim": (48, BOTH),
    "attention_bias": ("qkv", BOTH),
    "qk_norm": (None, BOTH),
    "d_ff": (1000, BOTH),
    "ffn_expansion_ratio": (5.0, BOTH),
    "ffn_multiple_of": (100, BOTH),
    "block_size": (77, {}),
    "vocab_size": (65, {}),
    "normalization": ("a_norm", {}),
    "norm_eps": (1e-3, {}),
    "norm_position": ("post", {}),
    "activation": ("leaky_relu", {"ffn_type": "standard", **BOTH}),
    "ffn_type": ("geglu", BOTH),
    "swiglu_limit": (3.0, {"ffn_type": "swiglu_clamped", **BOTH}),
    "position_encoding": ("alibi", BOTH),
    "rope_theta": (12345.0, BOTH),
    "rope_scaling": ({"rope_type": "linear", "factor": 2.0}, {"position_encoding": "rope", **BOTH}),
    "partial_rotary_factor": (0.5, {"position_encoding": "rope", **BOTH}),
    "parallel_residual": (None, {"norm_position": "pre"}),
    "embedding_multiplier": (3.0, {}),
    "residual_multiplier": (3.0, {}),
    "logits_scaling": (3.0, {}),
    "final_logit_softcapping": (3.0, {}),
    "attention_multiplier": (3.0, BOTH),
    "attn_logit_softcapping": (3.0, {"attention_backend": "manual", **BOTH}),
    "attention_sinks": (None, {"attention_backend": "manual", **BOTH}),
    "attention_output_gate": ("head", BOTH),
    "value_residual": (True, BOTH),
    "attention_backend": ("manual", BOTH),
    "bias": (None, {}),  # the opposite of the preset's
    "weight_tying": (None, {}),
    "dropout": (0.25, {}),
    "layer_pattern": ("AMMSWMMMMMMA", {"attention_window": 9, "layer_pattern": "AW"}),
    "hybrid_attention_ratio": (0.5, {}),
    "ffn_pattern": ("F-FFFF-FFFFF", {"ffn_pattern": "F-"}),
    "layer_values": ({"A": {"n_head": 24, "num_key_value_heads": 24, "head_dim": 32}}, BOTH),
    "ffn_after": ("mamba", BOTH),
    "attention_window": (5, {"attention_window": 9, "layer_pattern": "AW"}),
    "mamba_d_state": (32, BOTH),
    "mamba_expand": (3, BOTH),
    "mamba_d_conv": (2, BOTH),
    "mamba_conv_bias": (False, BOTH),
    "mamba_bias": (True, BOTH),
    "mamba_dt_rank": (7, {"layer_pattern": "AS"}),
    "q_lora_rank": (24, LATENT),
    "kv_lora_rank": (24, LATENT),
    "qk_nope_head_dim": (24, LATENT),
    "qk_rope_head_dim": (24, LATENT),
    "v_head_dim": (24, LATENT),
    "linear_num_value_heads": (6, DELTA),
    "linear_num_key_heads": (3, DELTA),
    "linear_key_head_dim": (24, DELTA),
    "linear_value_head_dim": (24, DELTA),
    "linear_conv_kernel_dim": (3, DELTA),
    "linear_chunk_size": (32, DELTA),
    "short_conv_kernel_dim": (4, {"layer_pattern": "AV"}),
    "short_conv_bias": (True, {"layer_pattern": "AV"}),
    "n_experts": (24, EXPERTS),
    "n_experts_per_token": (3, EXPERTS),
    "n_shared_experts": (3, EXPERTS),
    "expert_d_ff": (24, EXPERTS),
    "expert_expansion_ratio": (0.25, EXPERTS),
    "expert_type": ("geglu", EXPERTS),
    "expert_bias": (None, EXPERTS),
    "shared_expert_gate": (None, EXPERTS | {"n_shared_experts": 1}),
    "router_scores": ({"softmax": "sigmoid", "sigmoid": "softmax"}, EXPERTS),
    "norm_topk_prob": (None, EXPERTS),
    "routed_scaling_factor": (1.5, EXPERTS),
    "n_group": (4, EXPERTS),
    "topk_group": (2, EXPERTS | {"n_group": 4}),
    "balance_bias": (None, EXPERTS),
    "balance_rate": (0.01, EXPERTS | {"balance_bias": True}),
    "balance_loss": (0.5, EXPERTS),
    "balance_over": ({"batch": "sequence", "sequence": "batch"}, EXPERTS),
    "router_z_loss": (0.002, EXPERTS),
    "experts_backend": ("loop", EXPERTS),
    "mamba_head_dim": (32, BOTH),
    "mamba_n_groups": (4, BOTH),
    "mamba_n_heads": (8, BOTH),
    "mamba_chunk_size": (32, BOTH),
    "mamba_backend": ("chunked", BOTH),
}

OF_DENSE_FFNS = ("d_ff", "ffn_expansion_ratio", "ffn_multiple_of", "activation", "ffn_type", "swiglu_limit")

# What else an override may change, because it is derived from it.
FOLLOWERS = {
    "n_layer": {"layer_pattern", "ffn_pattern"},
    # the Mambas' had none
    "hybrid_attention_ratio": {
        "layer_pattern",
        "num_key_value_heads",
        "head_dim",
        "d_ff",
        "activation",
        "attention_window",
        "layer_values",
        "q_lora_rank",
        "linear_key_head_dim",
    },
    "norm_position": {"parallel_residual"},  # which has no such form
    "n_head": {"num_key_value_heads", "head_dim"},
    "n_embd": {"d_ff", "head_dim", "expert_d_ff"},
    "ffn_expansion_ratio": {"d_ff"},
    "ffn_multiple_of": {"d_ff"},
    "ffn_type": {"d_ff", "activation"},
    "n_experts_per_token": {"expert_d_ff"},
    "n_shared_experts": {"expert_d_ff"},
    "expert_expansion_ratio": {"expert_d_ff"},
    "bias": {"normalization"},  # legacy only
}


def changed_keys(one: ModelArchitectureConfig, other: ModelArchitectureConfig) -> set[str]:
    before, after = one.as_dict(), other.as_dict()
    return {key for key in before if before[key] != after[key]}


def test_every_architecture_key_has_an_override_to_test():
    assert set(OVERRIDES) | {"arch_preset"} == architecture_keys().keys()


@pytest.fixture(autouse=True)
def users_components(monkeypatch):
    """Names that only the tests here know."""
    monkeypatch.setitem(registry.SPECS["normalization"], "a_norm", Norm("a_norm"))
    monkeypatch.setitem(registry.SPECS["activation"], "mine", Activation("mine"))


@pytest.mark.parametrize("key", OVERRIDES)
@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_never_swallows_an_override(preset, key, tmp_path):
    """From a file or from the command line, in turn."""
    source = ("command line", "file")[(list(PRESETS).index(preset) + list(OVERRIDES).index(key)) % 2]
    value, needed = OVERRIDES[key]
    needed = needed | {"arch_preset": preset}
    if preset in ("gemma2", "gpt_oss") and key == "attention_backend":  # whose other one has neither
        value, needed = "sdpa", needed | {"attn_logit_softcapping": None, "attention_sinks": False}
    if PRESETS[preset].get("ffn_pattern") == "E" and key in OF_DENSE_FFNS:
        needed |= {"ffn_pattern": "F"}
    if PRESETS[preset].get("ffn_pattern") and key == "ffn_after":
        needed |= {"ffn_pattern": None}
    if preset == "nemotron_h" and key != "mamba_n_groups":  # whose 8 do not divide the heads of every width
        needed |= {"mamba_n_groups": 1}
    baseline = load([f"--{k}={v}" for k, v in needed.items()]).model
    if value is None:
        value = not getattr(baseline, key)
    elif isinstance(value, dict) and key != "layer_values":  # whichever it is not
        value = value.get(getattr(baseline, key), value)
    chosen = needed | {key: value}
    if source == "file":
        file = tmp_path / "chosen.py"
        file.write_text("".join(f"{k} = {v!r}\n" for k, v in chosen.items()))
        configuration = load([str(file)])
    else:
        configuration = load([f"--{k}={v}" for k, v in chosen.items()])
    model = configuration.model
    assert from_dict(as_dict(configuration)) == model, "what was saved does not load"

    if key == "ffn_expansion_ratio":  # 5 x 768 = 3840 is a multiple of 64 and of 256
        assert model.d_ff == 3840
    elif key == "ffn_multiple_of":
        assert model.d_ff % 100 == 0
        gated = {"llama": 2048, "team": 2048, "hybrid": 2048, "llama3": 2688, "mistral": 2688, "qwen3": 2304}
        gated |= dict.fromkeys(("mixtral", "qwen3_moe", "olmoe", "gpt_oss", "deepseek_dense"), 2048)
        gated |= {
            "deepseek_v3": 1975,
            "phi3": 2048,
            "deepseek_dense": 2048,
            "smollm3": 4128,
            "gemma3": 4608,
            "olmo2": 2064,
            "nemotron_h": 4032,
        }
        assert 0 <= model.d_ff - gated.get(preset, 3072) < 100
    elif key == "expert_expansion_ratio":
        assert model.expert_d_ff == 192
    elif key == "hybrid_attention_ratio":
        assert model.layer_pattern == hybrid_pattern(12, value) and model.hybrid_attention_ratio is None
    else:
        assert getattr(model, key) == value
        assert key in changed_keys(baseline, model)
    assert changed_keys(baseline, model) <= {key} | FOLLOWERS.get(key, set())
    if preset != "legacy" and key == "bias":
        assert changed_keys(baseline, model) == {"bias"}


def test_gpt2_is_the_published_one():
    model = resolve_architecture({"arch_preset": "gpt2"})
    assert (model.n_layer, model.n_head, model.n_embd, model.block_size, model.d_ff) == (12, 12, 768, 1024, 3072)
    assert (model.activation, model.normalization, model.norm_position) == ("gelu_tanh", "layernorm", "pre")
    assert (model.bias, model.weight_tying, model.position_encoding) == (True, True, "learned_absolute")
    assert model.norm_eps == 1e-5


@pytest.mark.parametrize(
    ("keys", "published_d_ff"),
    [
        ({"arch_preset": "gpt2"}, 3072),
        ({"arch_preset": "gpt2", "n_embd": 1600, "n_head": 25}, 6400),  # GPT-2 XL
        ({"arch_preset": "llama", "n_embd": 4096, "n_head": 32}, 11008),  # Llama 2 7B
        ({"arch_preset": "llama", "n_embd": 5120, "n_head": 40}, 13824),  # Llama 2 13B
        # Llama 2 70B: its ffn_dim_multiplier of 1.3 on 8/3, rounded up to a multiple of 4096
        (
            {
                "arch_preset": "llama",
                "n_embd": 8192,
                "n_head": 64,
                "ffn_expansion_ratio": 1.3 * 8 / 3,
                "ffn_multiple_of": 4096,
            },
            28672,
        ),
        ({"arch_preset": "llama3", "n_embd": 4096, "n_head": 32}, 14336),  # Llama 3 8B
        ({"arch_preset": "llama3", "n_embd": 8192, "n_head": 64}, 28672),  # Llama 3 70B
        ({"arch_preset": "team"}, 2048),
    ],
)
def test_d_ff_of_published_models(keys, published_d_ff):
    assert resolve_architecture(keys).d_ff == published_d_ff


@pytest.mark.parametrize(
    ("keys", "d_ff", "activation"),
    [
        ({}, 3072, "gelu"),
        ({"ffn_type": "swiglu"}, 2048, "silu"),
        ({"ffn_type": "geglu"}, 2048, "gelu"),
        ({"arch_preset": "gpt2", "ffn_type": "swiglu"}, 2048, "silu"),  # gelu_tanh gives way
        ({"arch_preset": "llama", "ffn_type": "standard"}, 3072, "gelu"),  # 8/3 gives way
        ({"arch_preset": "llama3", "ffn_type": "geglu"}, 2688, "gelu"),  # another gated one keeps 3.5
        ({"arch_preset": "llama3", "ffn_expansion_ratio": None}, 2048, "silu"),  # back to 8/3
        ({"arch_preset": "llama", "d_ff": 1001}, 1001, "silu"),  # taken as it is, not rounded
        ({"d_ff": 1024, "ffn_multiple_of": 256}, 1024, "gelu"),
        ({"ffn_expansion_ratio": 2}, 1536, "gelu"),
        ({"ffn_expansion_ratio": 1e-9}, 1, "gelu"),
        ({"ffn_expansion_ratio": 7 / 3, "n_embd": 108}, 252, "gelu"),  # 252.00000000000003 in binary
        ({"ffn_expansion_ratio": 2.001, "ffn_multiple_of": 512}, 2048, "gelu"),
    ],
)
def test_width_and_activation_of_the_ffn(keys, d_ff, activation):
    model = resolve_architecture(keys)
    assert (model.d_ff, model.activation) == (d_ff, activation)


@given(
    ratio=st.fractions(min_value=1, max_value=8, max_denominator=6),
    width=st.integers(1, 200).map(lambda n: 12 * n),
    multiple=st.sampled_from([1, 8, 64, 100, 256]),
)
def test_d_ff_is_the_least_multiple_that_is_wide_enough(ratio, width, multiple):
    keys = {"n_head": 1, "n_embd": width, "ffn_expansion_ratio": float(ratio), "ffn_multiple_of": multiple}
    exact = ratio * width  # in rational arithmetic, without the rounding of 8/3
    assert resolve_architecture(keys).d_ff == -(-exact // multiple) * multiple


@pytest.mark.parametrize(
    ("keys", "name"),
    [
        ({"arch_preset": "team"}, "12L-12H-768D-RoPE-RMS-SwiGLU-PreNorm"),
        ({"arch_preset": "team", "num_key_value_heads": 12}, "12L-12H-768D-RoPE-RMS-SwiGLU-PreNorm"),
        ({"arch_preset": "team", "num_key_value_heads": 4}, "12L-12H-768D-GQA4-RoPE-RMS-SwiGLU-PreNorm"),
        ({"arch_preset": "llama", "num_key_value_heads": 1}, "12L-12H-768D-MQA-RoPE-RMS-SwiGLU-PreNorm"),
        ({"n_head": 1, "num_key_value_heads": 1}, "12L-1H-768D-AbsPos-LNnoBias-GELU-PreNorm"),
        ({"arch_preset": "gpt2", "norm_position": "post"}, "12L-12H-768D-AbsPos-LN-GELUtanh-PostNorm"),
        ({"n_layer": 2, "position_encoding": "alibi", "activation": "mine"}, "2L-12H-768D-ALiBi-LNnoBias-mine-PreNorm"),
        ({"arch_preset": "mamba1"}, "12L-Mamba1-768D-NoPos-RMS-PreNorm"),
        ({"arch_preset": "mamba2", "n_layer": 24}, "24L-Mamba2-768D-NoPos-RMS-PreNorm"),
        ({"arch_preset": "mamba2", "ffn_after": "all"}, "12L-Mamba2-768D-NoPos-RMS-GELU-PreNorm"),
        (
            {"arch_preset": "hybrid", "n_layer": 24, "num_key_value_heads": 4},
            "24L-9A15M-12H-768D-GQA4-RoPE-RMS-SwiGLU-PreNorm",
        ),
        (
            {"layer_pattern": "WSMA", "attention_window": 8, "ffn_after": "mamba"},
            "12L-3A3W3M3S-12H-768D-AbsPos-LNnoBias-GELU-PreNorm",
        ),
        (
            {"attention_sinks": True, "attention_backend": "manual", "num_key_value_heads": 2, "value_residual": True},
            "12L-12H-768D-GQA2-Sinks-ValueResidual-AbsPos-LNnoBias-GELU-PreNorm",
        ),
        ({"attention_output_gate": "head"}, "12L-12H-768D-HeadGate-AbsPos-LNnoBias-GELU-PreNorm"),
        (
            {"attention_output_gate": "element", "ffn_type": "swiglu_clamped"},
            "12L-12H-768D-ElementGate-AbsPos-LNnoBias-ClampedSwiGLU-PreNorm",
        ),
        ({"layer_pattern": "W", "attention_window": 8}, "12L-12W-12H-768D-AbsPos-LNnoBias-GELU-PreNorm"),
    ],
)
def test_names(keys, name):
    assert resolve_architecture(keys).name == name


def test_bias_of_the_legacy_preset_speaks_of_the_norms_too():
    assert resolve_architecture({}).normalization == "layernorm_nobias"
    assert resolve_architecture({"bias": True}).normalization == "layernorm"
    assert resolve_architecture({"bias": True, "normalization": "rmsnorm"}).normalization == "rmsnorm"
    assert resolve_architecture({"normalization": "layernorm"}).normalization == "layernorm"


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"n_embd": 770}, ["n_embd=770", "n_head=12", "not divisible"]),
        ({"num_key_value_heads": 5}, ["n_head=12", "num_key_value_heads=5", "not divisible"]),
        ({"num_key_value_heads": 24}, ["num_key_value_heads=24"]),
        ({"position_encoding": "rope", "n_embd": 36, "n_head": 12}, ["3", "even"]),
        ({"d_ff": 1000, "ffn_expansion_ratio": 4.0}, ["d_ff=1000", "ffn_expansion_ratio=4.0", "twice"]),
        ({"d_ff": 1000, "ffn_multiple_of": 64}, ["d_ff=1000", "ffn_multiple_of=64"]),
        ({"arch_preset": "llama", "activation": "relu"}, ["swiglu", "silu", "relu"]),
        ({"rope_scaling": {"rope_type": "linear", "factor": 2.0}}, ["rope_scaling", "learned_absolute"]),
        ({"n_layers": 12}, ["n_layers", "'n_layer'"]),
        ({"arch_preset": "lama3"}, ["arch_preset='lama3'", "'llama3'"]),
        ({"arch_preset": ["llama"]}, ["arch_preset", "expected str"]),
        ({"ffn_type": ["swiglu"]}, ["ffn_type", "expected str"]),
    ],
)
def test_refused_combinations(keys, words):
    with pytest.raises(UserError) as refusal:
        resolve_architecture(keys)
    assert all(word in str(refusal.value) for word in words), refusal.value


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({}, None),
        ({"rope_type": "yarn"}, "yarn"),
        ({"rope_type": ["linear"]}, "linear"),
        ({"beta_fast": 32}, "exactly"),
        ({"factor": 0}, "factor=0"),
        ({"factor": "8"}, "factor='8'"),
        ({"factor": True}, "factor=True"),
        ({"factor": float("nan")}, "factor=nan"),
        ({"high_freq_factor": 1.0}, "high_freq_factor"),
    ],
)
def test_rope_scaling(change, word):
    keys = {"arch_preset": "llama3", "rope_scaling": LLAMA3_SCALING | change}
    if word is None:
        assert resolve_architecture(keys).rope_scaling == LLAMA3_SCALING
    else:
        with pytest.raises(UserError, match=word):
            resolve_architecture(keys)


# The mixers of the layers


def test_the_24_layers_of_the_seed():
    """Attention at 1, 2, 6, 11, 16 and 20 to 23."""
    pattern = hybrid_pattern(24, 0.375)
    assert pattern == "MAAMMMAMMMMAMMMMAMMMAAAA"
    assert [layer for layer, letter in enumerate(pattern) if letter == "A"] == [1, 2, 6, 11, 16, 20, 21, 22, 23]
    assert resolve_architecture({"n_layer": 24, "hybrid_attention_ratio": 0.375}).layer_pattern == pattern
    assert resolve_architecture({"n_layer": 24, "arch_preset": "hybrid"}).layer_pattern == pattern


@given(n_layer=st.integers(1, 130), ratio=st.floats(0, 1))
def test_a_hybrid_has_the_attention_that_its_ratio_says(n_layer, ratio):
    """It is met as nearly as layers allow; the last layer has it if any has, and the first one only if all have."""
    pattern = hybrid_pattern(n_layer, ratio)
    assert len(pattern) == n_layer and set(pattern) <= {"A", "M"}
    assert abs(pattern.count("A") - ratio * n_layer) <= 0.5
    if "A" in pattern:
        assert pattern[-1] == "A" and (pattern[0] == "M" or "M" not in pattern)


def test_the_mixers_of_the_layers():
    model = resolve_architecture({"n_layer": 6, "layer_pattern": "AMS", "ffn_after": "mamba"})
    assert (model.layer_pattern, model.pattern) == ("AMSAMS", "AMSAMS")
    assert (model.layers_with("A"), model.layers_with("MS"), model.ffn_layers) == (2, 4, 4)
    attention = resolve_architecture({"layer_pattern": "A"})
    assert attention == resolve_architecture({}) == resolve_architecture({"hybrid_attention_ratio": 1})
    assert (attention.layer_pattern, attention.pattern, attention.ffn_layers) == (None, 12 * "A", 12)
    pure = resolve_architecture({"arch_preset": "mamba2"})
    assert (pure.num_key_value_heads, pure.d_ff, pure.activation, pure.ffn_layers) == (None, None, None, 0)
    assert resolve_architecture({"hybrid_attention_ratio": 0}).pattern == 12 * "M"


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"layer_pattern": "AB"}, "layer_pattern='AB' must be made of the letters A attention, C latent_attention, U "),
        ({"layer_pattern": "am"}, "layer_pattern='am' must be made of"),
        ({"layer_pattern": ""}, "layer_pattern='' is empty"),
        ({"layer_pattern": "AMMMM"}, "layer_pattern has 5 letters, which do not divide n_layer=12"),
        ({"layer_pattern": "AM" * 12}, "layer_pattern has 24 letters, which do not divide n_layer=12"),
        ({"layer_pattern": ["A"]}, "layer_pattern.*expected str"),
        (
            {"layer_pattern": "M", "n_layer": 10**11},
            "n_layer=100000000000 must be below 100001",
        ),
        ({"layer_pattern": "AM", "hybrid_attention_ratio": 0.5}, "say the same thing twice"),
        ({"hybrid_attention_ratio": 1.5}, "hybrid_attention_ratio=1.5 is a share of the layers"),
        ({"hybrid_attention_ratio": -0.1}, "hybrid_attention_ratio=-0.1 must be at least 0"),
        ({"layer_pattern": "W"}, "W layers, whose attention_window is not given"),
        (
            {"arch_preset": "hybrid", "layer_pattern": "M"},
            "layer_pattern='M' leaves no layer with attention, in which position_encoding='rope' of arch_preset='hybr",
        ),
        (
            {"arch_preset": "hybrid", "hybrid_attention_ratio": 0},
            "hybrid_attention_ratio=0.0 leaves .* position_encoding='rope' of arch_preset='hybrid' acts: take",
        ),
        (
            {"arch_preset": "mamba2", "position_encoding": "alibi"},
            "arch_preset='mamba2' leaves no layer with attention, in which position_encoding='alibi' acts",
        ),
        ({"arch_preset": "hybrid", "n_layer": 1}, "hybrid_attention_ratio=0.375 of n_layer=1 is no attention layer"),
        (
            {"arch_preset": "hybrid", "hybrid_attention_ratio": 0.02},
            "hybrid_attention_ratio=0.02 of n_layer=12 is no attention layer: take a larger one",
        ),
        ({"layer_pattern": "M", "ffn_after": "behind"}, "ffn_after='behind'"),
        # What no layer has
        ({"arch_preset": "mamba2", "n_head": 4}, "n_head=4 is given, but no layer has attention"),
        ({"arch_preset": "mamba2", "num_key_value_heads": 12}, "num_key_value_heads=12 is given, but no layer has att"),
        ({"arch_preset": "mamba1", "attention_backend": "manual"}, "attention_backend='manual' is given, but no layer"),
        ({"layer_pattern": "AM", "attention_window": 9}, "attention_window=9 is given, but no layer has attention wi"),
        ({"arch_preset": "mamba2", "d_ff": 64}, "d_ff=64 is given, but no layer has an FFN"),
        ({"layer_pattern": "M", "ffn_after": "attention", "ffn_type": "swiglu"}, "ffn_type='swiglu' is given, but no"),
        ({"ffn_after": "mamba", "activation": "relu"}, "activation='relu' is given, but no layer has an FFN"),
        ({"mamba_d_state": 64}, "mamba_d_state=64 is given, but no layer has a state space"),
        ({"arch_preset": "mamba1", "mamba_head_dim": 32}, "mamba_head_dim=32 is given, but no layer has Mamba-2"),
    ],
)
def test_refused_mixers(keys, message):
    with pytest.raises(UserError, match=message) as refusal:
        resolve_architecture(keys)
    assert len(str(refusal.value).splitlines()) == 1


@given(
    pattern=st.text("AWMS", min_size=1, max_size=4),
    after=st.sampled_from(["all", "attention", "mamba"]),
    preset=st.sampled_from(list(PRESETS)),
)
def test_every_mixture_loads_as_it_was_saved(pattern, after, preset):
    keys = {"arch_preset": preset, "layer_pattern": pattern, "ffn_after": after, "position_encoding": "none"}
    keys |= {"ffn_pattern": None} if "E" in PRESETS[preset].get("ffn_pattern", "") else {}
    model = resolve_architecture(keys | ({"attention_window": 7} if "W" in pattern else {}))
    assert from_dict(model.as_dict()) == model
    assert resolve_architecture(model.as_dict()).name == model.name


# Mamba layers


def test_sizes_of_mamba_layers():
    """Those of mamba-130m and mamba2-130m."""
    mamba1, mamba2 = spec("mixer", "mamba1"), spec("mixer", "mamba2")
    model = resolve_architecture({"n_embd": 768, "layer_pattern": "M"})
    assert (mamba2.width(model), mamba2.heads(model), mamba1.rank(model)) == (1536, 24, 48)
    assert (mamba1.state(model), mamba2.state(model)) == (16, 128)
    model = resolve_architecture({"n_embd": 780, "mamba_d_state": 40, "layer_pattern": "S"})
    assert mamba1.rank(model) == 49  # 48.75
    assert (mamba1.state(model), mamba2.state(model)) == (40, 40)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"mamba_d_state": 0}, "mamba_d_state=0 must be at least 1"),
        ({"mamba_expand": 1.5}, "mamba_expand=1.5: expected int"),
        ({"mamba_d_conv": 0}, "mamba_d_conv=0 must be at least 1"),
        ({"mamba_chunk_size": 0}, "mamba_chunk_size=0 must be at least 1"),
        ({"mamba_head_dim": 60}, "2 x 768 = 1536 channels are not divisible by mamba_head_dim=60"),
        ({"mamba_head_dim": 2048}, "1536 channels are not divisible by mamba_head_dim=2048"),
        ({"mamba_n_groups": 5}, "the 24 heads of a Mamba-2 layer .* are not divisible by mamba_n_groups=5"),
        ({"mamba_n_groups": 48}, "the 24 heads of a Mamba-2 layer .* are not divisible by mamba_n_groups=48"),
        ({"mamba_n_groups": 5, "mamba_n_heads": 6}, "the 6 heads of a Mamba-2 layer .* by mamba_n_groups=5"),
        ({"mamba_expand": 3, "mamba_n_heads": 6}, "mamba_expand=3 changes nothing where mamba_n_heads=6"),
        ({"arch_preset": "falcon_h1"}, "arch_preset='falcon_h1' cannot be represented: in its layers attention and"),
        (
            {"mamba_backend": "fla", "mamba_chunk_size": 128},
            "mamba_backend='fla' has chunks of 64 tokens: drop mamba_chunk_size=128",
        ),
    ],
)
def test_sizes_that_no_mamba_layer_has(keys, message):
    with pytest.raises(UserError, match=message) as refusal:
        resolve_architecture({"layer_pattern": "M", **keys})
    assert len(str(refusal.value).splitlines()) == 1


def test_a_layer_has_what_follows_from_its_own_values():
    """By letter and by number; saved with numbers, which load as they are, also from JSON's strings."""
    keys = {
        "layer_pattern": "AWAM",
        "n_layer": 4,
        "n_embd": 64,
        "n_head": 4,
        "attention_window": 5,
        "mamba_head_dim": 16,
    }
    own = {"W": {"n_head": 8}, 2: {"d_ff": 100, "attention_bias": "qkv"}}
    model = resolve_architecture(keys | {"layer_values": own})
    full, window, third, _ = (model.of(layer) for layer in model.layers)
    assert (full.n_head, full.kv_heads, full.head_dim, full.d_ff) == (4, 4, 16, 256)
    assert (window.n_head, window.kv_heads, window.head_dim, window.d_ff) == (8, 8, 8, 256)
    assert (third.n_head, third.d_ff, third.attention_bias) == (4, 100, "qkv")
    assert len(model.layer_counts) == 4
    saved = json.loads(json.dumps(model.as_dict()))
    again = from_dict(saved)
    assert [again.of(layer) for layer in again.layers] == [
        model.of(layer).replace(layer_values=again.layer_values) for layer in model.layers
    ]


@pytest.mark.parametrize(
    ("own", "message"),
    [
        ({"S": {"n_head": 2}}, "layer_values: 'S': .* must be a letter of layer_pattern or a number from 0 to 11"),
        ({12: {"n_head": 2}}, "layer_values: 12: .* must be a letter of layer_pattern or a number from 0 to 11"),
        ({"A": 3}, "layer_values: 'A': 3 must be a letter"),
        ({"A": {"mamba_expand": 3}}, "layer_values: 'mamba_expand' is no key of the layer 'A'"),
        ({"A": {"n_head": 0}}, "n_head=0 must be at least 1"),
        ({"A": {"n_head": 7}}, "n_embd=768 is not divisible by n_head=7"),
        ({0: {"ffn_type": "swiglu"}}, "layer_values: 'ffn_type' is no key of the layer 0"),
    ],
)
def test_refused_layer_values(own, message):
    with pytest.raises(UserError, match=message) as refusal:
        resolve_architecture({"layer_values": own})
    assert len(str(refusal.value).splitlines()) == 1


def test_an_ffn_for_each_layer():
    model = resolve_architecture({"n_layer": 6, "ffn_pattern": "F-E", "ffn_type": "swiglu"})
    assert [layer.ffn for layer in model.layers] == ["swiglu", None, "experts"] * 2
    assert (model.ffn_pattern, model.ffn_layers) == ("F-EF-E", 4)
    with pytest.raises(UserError, match="ffn_pattern='FX' must be made of the letters F ffn_type's, - none, E experts"):
        resolve_architecture({"ffn_pattern": "FX"})
    with pytest.raises(UserError, match="ffn_pattern has 5 letters, which do not divide n_layer=12"):
        resolve_architecture({"ffn_pattern": "FFFF-"})
    with pytest.raises(UserError, match="say the same thing twice"):
        resolve_architecture({"ffn_pattern": "F-", "ffn_after": "mamba"})
