"""What a model is: presets, derived sizes, names, and the combinations that are refused."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from configurator import load
from errors import UserError
from model_config import PRESETS, ModelArchitectureConfig, resolve_architecture

LLAMA3_SCALING = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}

# For every architecture key: a value that no preset has, and what it takes for the value to be legal.
OVERRIDES = {
    "n_layer": (7, {}),
    "n_head": (6, {}),
    "n_embd": (384, {}),
    "num_key_value_heads": (3, {}),
    "d_ff": (1000, {}),
    "ffn_expansion_ratio": (5.0, {}),
    "ffn_multiple_of": (100, {}),
    "block_size": (77, {}),
    "vocab_size": (65, {}),
    "normalization": ("a_norm", {}),
    "norm_eps": (1e-3, {}),
    "norm_position": ("post", {}),
    "activation": ("relu_squared", {"ffn_type": "standard"}),
    "ffn_type": ("geglu", {}),
    "position_encoding": ("alibi", {}),
    "rope_theta": (12345.0, {}),
    "rope_scaling": ({"rope_type": "linear", "factor": 2.0}, {"position_encoding": "rope"}),
    "attention_backend": ("manual", {}),
    "bias": (None, {}),  # the opposite of the preset's
    "weight_tying": (None, {}),
    "dropout": (0.25, {}),
}

# What else an override may change, because it is derived from it.
FOLLOWERS = {
    "n_head": {"num_key_value_heads"},
    "n_embd": {"d_ff"},
    "ffn_expansion_ratio": {"d_ff"},
    "ffn_multiple_of": {"d_ff"},
    "ffn_type": {"d_ff", "activation"},
    "bias": {"normalization"},  # legacy only
}


def changed_keys(one: ModelArchitectureConfig, other: ModelArchitectureConfig) -> set[str]:
    before, after = dataclasses.asdict(one), dataclasses.asdict(other)
    return {key for key in before if before[key] != after[key]}


def test_every_architecture_key_has_an_override_to_test():
    assert set(OVERRIDES) | {"arch_preset"} == {field.name for field in dataclasses.fields(ModelArchitectureConfig)}


@pytest.mark.parametrize("source", ["command line", "file"])
@pytest.mark.parametrize("key", OVERRIDES)
@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_never_swallows_an_override(preset, key, source, tmp_path):
    value, needed = OVERRIDES[key]
    needed = needed | {"arch_preset": preset}
    baseline = load([f"--{k}={v}" for k, v in needed.items()]).model
    if value is None:
        value = not getattr(baseline, key)
    chosen = needed | {key: value}
    if source == "file":
        file = tmp_path / "chosen.py"
        file.write_text("".join(f"{k} = {v!r}\n" for k, v in chosen.items()))
        model = load([str(file)]).model
    else:
        model = load([f"--{k}={v}" for k, v in chosen.items()]).model

    if key == "ffn_expansion_ratio":  # 5 x 768 = 3840 is a multiple of 64 and of 256
        assert model.d_ff == 3840
    elif key == "ffn_multiple_of":
        assert model.d_ff % 100 == 0
        assert 0 <= model.d_ff - {"llama": 2048, "team": 2048, "llama3": 2688}.get(preset, 3072) < 100
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
