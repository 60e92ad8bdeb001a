"""The delta rules against their recurrence, and the mixers against Hugging Face's.

Tolerances are relative to the largest element of what is compared: 1e-10 in float64, 1e-5 in float32.
"""

import copy
import importlib.util
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from recurrent import continues, is_near_under_autocast, sees_no_future
from test_mamba import assert_log_uniform_steps, assert_near, bytes_kept, values_and_gradients
from torch import Tensor, nn
from transformers import KimiLinearConfig, Qwen3NextConfig
from transformers.models.kimi_linear import modeling_kimi_linear as kimi_linear
from transformers.models.qwen3_next import modeling_qwen3_next as qwen3_next

from common.errors import UserError
from components.mixers import delta_rule
from components.mixers.delta_rule import delta_chunked, delta_naive, delta_step, unit
from components.registry import spec
from model_builder import Block, LanguageModel, build_model
from model_components import component
from model_config import Layer, ModelArchitectureConfig, resolve_architecture
from runs.config import RunConfig
from training.optimizer import build_optimizer

LETTERS = {"gated_delta": "D", "kimi_delta": "K"}
MIXERS = tuple(LETTERS)
DECAYS = ("head", "channel")  # what has a decay of its own


# ---------------------------------------------------------------------------------------------------------------------
# The rule


def inputs(length, decays="head", batch=2, groups=2, served=2, K=4, V=3, dtype=torch.float64, seed=0):
    """q, k, v, decay, beta, and the state to start from."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    heads = groups * served
    decay = -0.3 * normal(batch, length, heads, 1 if decays == "head" else K).exp()
    found = (
        normal(batch, length, groups, K), normal(batch, length, groups, K), normal(batch, length, heads, V),
        decay, normal(batch, length, heads).sigmoid(), normal(batch, heads, K, V),
    )  # fmt: skip
    return [one.to(dtype).requires_grad_() for one in found]


def chunked(chunk_size):
    return lambda q, k, v, decay, beta, state=None: delta_chunked(q, k, v, decay, beta, chunk_size, state)


def fresh(tensors, dtype=None):
    return [one.detach().clone().to(dtype or one.dtype).requires_grad_() for one in tensors]


def assert_equal_to_the_recurrence(scan, given_inputs, dtypes=(torch.float64, torch.float32)):
    """Values and gradients, of the recurrence in float64."""
    for dtype in dtypes:
        rounded = fresh(given_inputs, dtype)  # what float32 inputs are is what both see
        expected = values_and_gradients(delta_naive, fresh(rounded, torch.float64))
        for ours, theirs in zip(values_and_gradients(scan, rounded), expected, strict=True):
            assert ours.dtype == dtype
            assert_near(ours, theirs)


@pytest.mark.parametrize("decays", DECAYS)
def test_the_recurrence_is_a_product_of_matrices(decays):
    """Yang et al. 2024, equation 10, with unit vectors: S_t = (I - beta k k^T) diag(alpha) S + beta k v^T, of which
    o_t = S^T q / sqrt(K): each state from the first one, by all matrices between."""
    q, k, v, decay, beta, state = (one.detach() for one in inputs(6, decays, batch=1))
    y, last = delta_naive(q, k, v, decay, beta, state)
    for head in range(4):
        keys, queries = (one[0, :, head // 2] for one in (k, q))  # heads that share keys are neighbours
        keys, queries = (one / (one.square().sum(-1, keepdim=True) + 1e-6).sqrt() for one in (keys, queries))
        moves = [
            (torch.eye(4).double() - beta[0, t, head] * torch.outer(keys[t], keys[t]))
            @ torch.diag(decay[0, t, head].exp().expand(4))
            for t in range(6)
        ]
        for t in range(6):
            found = state[0, head]
            for move in moves[: t + 1]:
                found = move @ found
            for s in range(t + 1):
                written = beta[0, s, head] * torch.outer(keys[s], v[0, s, head])
                for move in moves[s + 1 : t + 1]:
                    written = move @ written
                found = found + written
            assert_near(y[0, t, head], queries[t] @ found / math.sqrt(4))
        assert_near(last[0, head], found)


@pytest.mark.parametrize("decays", DECAYS)
@settings(max_examples=40)
@given(
    length=st.integers(1, 23),
    chunk_size=st.sampled_from([1, 2, 4, 8, 16, 32]),
    groups=st.integers(1, 2),
    served=st.integers(1, 3),
    K=st.integers(2, 5),  # of a unit vector of one number the gradient is all rounding
    V=st.integers(1, 5),
    seed=st.integers(0, 99),
)
def test_chunks_are_the_recurrence(decays, length, chunk_size, groups, served, K, V, seed):
    found = inputs(length, decays, 2, groups, served, K, V, seed=seed)
    for given_inputs in (found, found[:-1]):
        assert_equal_to_the_recurrence(chunked(chunk_size), given_inputs, (torch.float64,))


@pytest.mark.parametrize("decays", DECAYS)
@pytest.mark.parametrize("chunk_size", [16, 64, 128])
def test_in_both_precisions_over_hundreds_of_tokens(decays, chunk_size):
    found = inputs(300, decays, K=16, V=24)
    assert_equal_to_the_recurrence(chunked(chunk_size), found)
    assert_equal_to_the_recurrence(chunked(chunk_size), found[:-1])


def test_in_many_segments(monkeypatch):
    """Of one chunk each, or of several; with the state carried from one to the next."""
    expected = values_and_gradients(chunked(16), found := inputs(150))
    for tokens in (1, 3 * 16 * 8, 2**20):
        monkeypatch.setattr(delta_rule, "SEGMENT", tokens)
        for ours, theirs in zip(values_and_gradients(chunked(16), found), expected, strict=True):
            assert_near(ours, theirs)


@pytest.mark.parametrize("decays", DECAYS)
@pytest.mark.parametrize("strength", ["50", "50 to 100,000", "some", "none"])
def test_strong_decays(decays, strength):
    """All by 50 a token or more, so that all that is left of a token at the next one is 1e-22; in some tokens and
    channels only; or nowhere. Sums of exponents over a chunk are to -3 million."""
    q, k, v, decay, beta, state = inputs(150, decays, K=8)
    drawn = torch.rand(decay.shape, generator=torch.Generator().manual_seed(1)).double()
    decay = {
        "50": -50 - drawn,
        "50 to 100,000": -50 * (2000 * drawn).clamp(min=1),
        "some": torch.where(drawn < 0.2, -60.0, -0.01 * drawn),
        "none": 0 * drawn,
    }[strength]
    assert_equal_to_the_recurrence(chunked(64), [q, k, v, decay, beta, state])


@pytest.mark.parametrize("decays", DECAYS)
@pytest.mark.parametrize("angle", [0.0, 1e-3, 0.1])
def test_nearly_parallel_keys_that_are_overwritten(decays, angle):
    """With betas near 1 and hardly a decay, each token takes out what the one before it has written."""
    q, k, v, decay, beta, state = inputs(200, decays, K=16, V=16)
    k = k[:, :1] + angle * k
    beta = 1 - 1e-3 * beta
    assert_equal_to_the_recurrence(chunked(64), [q, k, v, 1e-3 * decay, beta, state])


@pytest.mark.parametrize("decays", DECAYS)
@settings(max_examples=25)
@given(split=st.integers(1, 39))
def test_a_sequence_is_split_anywhere_with_the_state_carried(decays, split):
    *tokens, state = inputs(40, decays)

    def in_two(*given_inputs):
        *tokens, state = given_inputs
        first, state = delta_chunked(*(one[:, :split] for one in tokens), 8, state)
        second, state = delta_chunked(*(one[:, split:] for one in tokens), 8, state)
        return torch.cat((first, second), dim=1), state

    whole = values_and_gradients(chunked(8), [*tokens, state])
    for ours, expected in zip(values_and_gradients(in_two, [*tokens, state]), whole, strict=True):
        assert_near(ours, expected)


@pytest.mark.parametrize("decays", DECAYS)
def test_a_step_is_one_token_of_a_sequence(decays):
    *tokens, state = (one.detach() for one in inputs(1, decays))
    y, last = delta_step(*(one[:, 0] for one in tokens), state)
    expected, expected_last = delta_chunked(*tokens, 64, state)
    assert_near(y, expected[:, 0])
    assert_near(last, expected_last)


@pytest.mark.parametrize("decays", DECAYS)
@pytest.mark.parametrize("scan", [delta_naive, chunked(64)], ids=["by token", "chunks"])
def test_all_is_in_float32_whatever_autocast_says(scan, decays):
    """Of bfloat16 inputs, as a layer's under autocast are, it computes what it does of the same numbers in float64."""
    q, k, v, decay, beta, state = (one.detach() for one in inputs(200, decays, dtype=torch.float32))
    rounded = (q.bfloat16(), k.bfloat16(), v.bfloat16(), decay, beta, state)
    with torch.autocast("cpu", torch.bfloat16):
        found = chunked(64)(*rounded)
    for ours, expected in zip(found, delta_naive(*(one.double() for one in rounded)), strict=True):
        assert ours.dtype == torch.float32
        assert_near(ours, expected)


@pytest.mark.parametrize("decays", DECAYS)
def test_memory_does_not_hold_the_state_of_every_token(decays):
    """What is kept is as many bytes a token for any length, and is not a state of every token, which the reference
    keeps."""
    sizes = {"batch": 1, "groups": 1, "served": 2, "K": 32, "V": 32, "dtype": torch.float32}
    short, long = (bytes_kept(chunked(64), inputs(length, decays, **sizes)) for length in (512, 4096))
    state = 2 * 32 * 32 * 4
    assert long == pytest.approx(8 * short, rel=1e-3)
    assert short < 512 * state / 4
    assert bytes_kept(delta_naive, inputs(512, decays, **sizes)) > 512 * state


# ---------------------------------------------------------------------------------------------------------------------
# Others' implementations


def of_hugging_face(rule, decays="head"):
    """Theirs have no choice but to start with no state, or to compute in float32."""

    def scan(q, k, v, decay, beta, state):
        g = decay.squeeze(-1) if decays == "head" else decay
        return rule(q, k, v, g=g, beta=beta, initial_state=state, output_final_state=True, use_qk_l2norm_in_kernel=True)

    return scan


@pytest.mark.parametrize(
    ("rule", "decays"),
    [
        (qwen3_next.torch_chunk_gated_delta_rule, "head"),
        (qwen3_next.torch_recurrent_gated_delta_rule, "head"),
        (kimi_linear.chunk_kimi_delta_attention, "channel"),
        (kimi_linear.recurrent_kimi_delta_attention, "channel"),
    ],
    ids=["gated, chunks", "gated, by token", "Kimi, chunks", "Kimi, by token"],
)
def test_the_rule_is_hugging_faces(rule, decays):
    found = inputs(150, decays, served=2 if decays == "head" else 1, K=16, V=24, dtype=torch.float32)
    expected = values_and_gradients(of_hugging_face(rule, decays), fresh(found))
    for ours, theirs in zip(values_and_gradients(chunked(32), found), expected, strict=True):
        assert_near(ours, theirs)


def naive_of_fla(rule: str):
    """flash-linear-attention's readable code, loaded without its package, whose import needs Triton."""
    found = importlib.util.find_spec("fla")
    if found is None or not found.submodule_search_locations:
        pytest.skip("fla-core is not installed")
    pytest.importorskip("einops")
    file = Path(next(iter(found.submodule_search_locations))) / "ops" / rule / "naive.py"
    loader = importlib.util.spec_from_file_location(f"fla_{rule}_naive", file)
    module = importlib.util.module_from_spec(loader)
    loader.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("folder", "function", "decays"),
    [
        ("gated_delta_rule", "naive_recurrent_gated_delta_rule", "head"),
        ("gated_delta_rule", "naive_chunk_gated_delta_rule", "head"),
        ("kda", "naive_recurrent_kda", "channel"),
        ("kda", "naive_chunk_kda", "channel"),
    ],
)
def test_the_rule_is_that_of_flash_linear_attention(folder, function, decays):
    """Whose queries and keys are not normalized, whose scale is K^-0.5, and whose chunks are full."""
    rule = getattr(naive_of_fla(folder), function)
    found = inputs(128, decays, served=1, K=16, V=24, dtype=torch.float32)

    def scan(q, k, v, decay, beta, state):
        g = decay.squeeze(-1) if decays == "head" else decay
        return rule(
            q=unit(q), k=unit(k), v=v, g=g, beta=beta, scale=16**-0.5, initial_state=state, output_final_state=True
        )

    expected = values_and_gradients(scan, fresh(found))
    for ours, theirs in zip(values_and_gradients(chunked(64), found), expected, strict=True):
        assert_near(ours, theirs)


# ---------------------------------------------------------------------------------------------------------------------
# The mixers


def architecture(name: str, n_embd: int = 16, **keys) -> ModelArchitectureConfig:
    """A small model's; the mixers are built by themselves here, whatever its layers are."""
    sizes = {"arch_preset": "custom", "n_layer": 2, "n_embd": n_embd, "vocab_size": 31}
    own = {"linear_num_value_heads": 2, "linear_chunk_size": 8}
    return resolve_architecture(sizes | own | {"layer_pattern": LETTERS[name], "position_encoding": "none"} | keys)


def randomised(module: nn.Module, seed: int = 0) -> nn.Module:
    """With every parameter of a size that matters, also those that start as zeros or ones."""
    torch.manual_seed(seed)
    for parameter in module.parameters():
        parameter.data += 0.2 * torch.randn(parameter.shape)
    return module


def mixer(name: str, **keys) -> nn.Module:
    return randomised(component("mixer", name)(architecture(name, **keys)))


def qwen3_nexts(config: ModelArchitectureConfig) -> nn.Module:
    mixer = spec("mixer", "gated_delta")
    shape = Qwen3NextConfig(
        hidden_size=config.n_embd,
        linear_num_key_heads=mixer.key_heads(config),
        linear_num_value_heads=mixer.heads(config),
        linear_key_head_dim=mixer.key_dim(config),
        linear_value_head_dim=mixer.value_dim(config),
        linear_conv_kernel_dim=config.linear_conv_kernel_dim,
        rms_norm_eps=config.norm_eps,
        layer_types=["linear_attention"],
        num_hidden_layers=1,
    )
    return qwen3_next.Qwen3NextGatedDeltaNet(shape, layer_idx=0)


def as_qwen3_nexts(ours: dict[str, Tensor], config: ModelArchitectureConfig) -> dict[str, Tensor]:
    """Values or gradients, with the rows of q, k, v and z, and of b and a, in the order of key heads."""
    heads = spec("mixer", "gated_delta").key_heads(config)

    def by_head(*names: str) -> Tensor:
        return torch.cat([ours[f"{name}.weight"].unflatten(0, (heads, -1)) for name in names], dim=1).flatten(0, 1)

    convolutions = torch.cat([ours[f"{name}_conv.weight"] for name in "qkv"])
    same = {"dt_bias": "dt_bias", "A_log": "A_log", "norm.weight": "norm.weight", "out_proj.weight": "o_proj.weight"}
    return {
        "in_proj_qkvz.weight": by_head("q_proj", "k_proj", "v_proj", "z_proj"),
        "in_proj_ba.weight": by_head("b_proj", "a_proj"),
        "conv1d.weight": convolutions[:, None],
        **{theirs: ours[name] for theirs, name in same.items()},
    }


def kimi_linears(config: ModelArchitectureConfig) -> nn.Module:
    mixer = spec("mixer", "kimi_delta")
    shape = KimiLinearConfig(
        hidden_size=config.n_embd,
        linear_num_heads=mixer.heads(config),
        linear_head_dim=mixer.key_dim(config),
        linear_conv_kernel_dim=config.linear_conv_kernel_dim,
        rms_norm_eps=config.norm_eps,
        layer_types=["linear_attention"],
        num_hidden_layers=1,
    )
    return kimi_linear.KimiLinearDeltaAttention(shape, layer_idx=0)


def as_kimi_linears(ours: dict[str, Tensor], config: ModelArchitectureConfig) -> dict[str, Tensor]:
    """Values or gradients, of which only the convolutions and the decays' are held otherwise."""
    same = {name: ours[name] for name in ours if name.startswith(("q_p", "k_p", "v_p", "b_p", "g_", "o_"))}
    return same | {
        "forget_gate.f_a_proj.weight": ours["f_a_proj.weight"],
        "forget_gate.f_b_proj.weight": ours["f_b_proj.weight"],
        "forget_gate.dt_bias": ours["dt_bias"],
        "forget_gate.A_log": ours["A_log"].view(1, 1, -1, 1),
        "conv1d.weight": torch.cat([ours[f"{name}_conv.weight"] for name in "qkv"])[:, None],
        "o_norm.weight": ours["norm.weight"],
    }


HUGGING_FACES = {"gated_delta": (qwen3_nexts, as_qwen3_nexts), "kimi_delta": (kimi_linears, as_kimi_linears)}


@pytest.mark.parametrize("length", [1, 2, 32, 75])
@pytest.mark.parametrize(
    ("name", "keys"),
    [
        ("gated_delta", {}),
        ("gated_delta", {"linear_num_key_heads": 1, "linear_value_head_dim": 12, "norm_eps": 0.1}),
        ("gated_delta", {"linear_num_value_heads": 6, "linear_num_key_heads": 3, "linear_conv_kernel_dim": 2}),
        ("kimi_delta", {}),
        ("kimi_delta", {"linear_num_value_heads": 3, "linear_conv_kernel_dim": 2, "norm_eps": 0.1}),
    ],
)
def test_mixers_are_hugging_faces(name, keys, length):
    """Gradients of what decays come from are sums that nearly cancel, over differences of sums that their chunks take
    in float32: theirs are up to 1.6e-4 off those in float64 (seen in 40 draws), ours 7e-6 on one kind of processor and
    1.2e-5 on another, whose products add up in another order."""
    torch.manual_seed(0)
    config, ours = architecture(name, **keys), mixer(name, **keys)
    exact = copy.deepcopy(ours).double()
    build, renamed = HUGGING_FACES[name]
    theirs = build(config).eval()
    theirs.load_state_dict(renamed(dict(ours.named_parameters()), config))
    x = torch.randn(2, length, 16)
    weights = torch.randn(x.shape)
    given_inputs, outputs = [x.clone().requires_grad_() for _ in range(2)], []
    for module, own_x in zip((ours, theirs), given_inputs, strict=True):
        outputs.append(module(own_x))
        (outputs[-1] * weights).sum().backward()
    assert_near(outputs[0], outputs[1])
    assert_near(given_inputs[0].grad, given_inputs[1].grad)
    (exact(x.double()) * weights).sum().backward()
    gradients, true = (renamed({n: p.grad for n, p in one.named_parameters()}, config) for one in (ours, exact))
    for parameter, value in theirs.named_parameters():
        of_gates = parameter.endswith(("A_log", "dt_bias", "in_proj_ba.weight"))
        assert_near(gradients[parameter], true[parameter], 2e-5 if of_gates else None)
        assert_near(value.grad, true[parameter], 5e-4 if parameter.endswith(("A_log", "dt_bias")) else None)


@pytest.mark.parametrize("name", MIXERS)
@settings(max_examples=20)
@given(pieces=st.lists(st.integers(1, 20), min_size=1, max_size=6), width=st.integers(1, 5))
def test_a_cache_continues_from_pieces_of_any_length(name, pieces, width):
    """Prefill, then token by token, or anything else: as the whole at once; the cache is updated in place."""
    assert_near(*continues(mixer(name, linear_conv_kernel_dim=width).double(), pieces))


@pytest.mark.parametrize("name", MIXERS)
def test_a_mixer_is_handed_nothing_besides_and_sees_no_future(name):
    """Also where an encoding of positions acts in a model's other mixers."""
    pattern = {"layer_pattern": LETTERS[name] + "A", "position_encoding": "rope", "n_head": 2}
    assert Block(architecture(name, **pattern), Layer(name, None)).shared == {}
    sees_no_future(mixer(name))


@pytest.mark.parametrize("name", MIXERS)
def test_autocast_is_near_float32(name):
    """Of the inputs and the output of every projection, and of the convolutions. The rule itself is in float32."""
    is_near_under_autocast(mixer(name, n_embd=64), roundings=10)


@pytest.mark.parametrize(
    ("name", "from_rate", "mean"),
    [("gated_delta", 0.01, 8.005), ("kimi_delta", 1.0, 8.5)],
)
def test_initial_values(name, from_rate, mean):
    keys = {"n_embd": 512, "linear_num_value_heads": 1024, "linear_key_head_dim": 1, "linear_value_head_dim": 2}
    module = build_model(architecture(name, **keys), seed=0).blocks[0].mixer
    rates = module.A_log.detach().exp()
    assert from_rate <= rates.min() < from_rate + 0.2
    assert 15.8 < rates.max() <= 16
    assert rates.mean().item() == pytest.approx(mean, abs=0.5)  # 16 / sqrt(12 x 1024) is 0.14
    assert_log_uniform_steps(module.dt_bias)
    assert (module.norm.weight == 1).all()
    assert module.q_proj.weight.std().item() == pytest.approx(0.02, rel=0.02)
    assert module.o_proj.weight.std().item() == pytest.approx(0.02 / 2, rel=0.02)  # sqrt(2 x 2 layers)
    assert module.k_conv.weight.abs().max() <= 0.5  # 1 / sqrt(4)
    assert module.k_conv.weight.std().item() == pytest.approx(0.5 / 3**0.5, rel=0.05)


@pytest.mark.parametrize("name", MIXERS)
def test_initial_values_depend_on_the_seed_alone(name):
    config = architecture(name)
    one, same, other = (dict(build_model(config, seed=seed).named_parameters()) for seed in (3, 3, 4))
    assert all(torch.equal(one[key], same[key]) for key in one)
    for key in one:
        if (own := key.partition(".mixer.")[2]) and own != "norm.weight":
            assert not torch.equal(one[key], other[key]), key


@pytest.mark.parametrize("name", MIXERS)
def test_what_is_no_matrix_or_kernel_is_not_decayed(name):
    model: LanguageModel = build_model(architecture(name), seed=0)
    decayed, _ = build_optimizer(model, RunConfig()).param_groups
    names = {id(p): n.partition(".mixer.")[2] for n, p in model.named_parameters()}
    with_decay = {names[id(p)] for p in decayed["params"]} - {""}
    assert with_decay
    assert all(n.endswith(("_proj.weight", "_conv.weight")) for n in with_decay if not n.startswith("ffn"))


# ---------------------------------------------------------------------------------------------------------------------
# Sizes, and what is refused


def test_sizes_that_follow():
    """Heads of 64, or as wide as n_embd leaves them."""
    mixer = spec("mixer", "gated_delta")
    for n_embd, sizes in {768: (12, 64, 64), 2048: (32, 64, 64), 80: (2, 40, 40), 24: (1, 24, 24)}.items():
        config = resolve_architecture({"layer_pattern": "D", "n_embd": n_embd, "position_encoding": "none"})
        assert (mixer.heads(config), mixer.key_dim(config), mixer.value_dim(config)) == sizes
        assert mixer.key_heads(config) == sizes[0]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"linear_chunk_size": 48}, "linear_chunk_size=48 is no power of 2: take 32, 64 or 128"),
        ({"linear_num_key_heads": 3}, "the 2 value heads of a gated delta rule .* linear_num_key_heads=3"),
        ({"linear_key_head_dim": 0}, "linear_key_head_dim=0 must be at least 1"),
    ],
)
def test_sizes_that_no_gated_delta_rule_has(keys, message):
    with pytest.raises(UserError, match=message) as refusal:
        architecture("gated_delta", **keys)
    assert len(str(refusal.value).splitlines()) == 1


def test_keys_are_refused_where_no_layer_has_them():
    with pytest.raises(UserError, match="linear_chunk_size=32 is given, but no layer has a delta rule"):
        resolve_architecture({"linear_chunk_size": 32})
