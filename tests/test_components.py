"""Each component against a formula of its own or another's implementation."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from transformers import BloomConfig, GptOssConfig, GptOssForCausalLM, LlamaConfig
from transformers.activations import ACT2FN
from transformers.models.bloom import modeling_bloom
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssExperts
from transformers.models.llama import modeling_llama

from common.errors import UserError
from components import registry
from components.mixers.attention.module import capped, with_sinks
from components.positions.module import rotate
from components.spec import Activation
from configurator import load
from model_builder import build_model
from model_components import component, register, register_spec, registered
from model_config import ModelArchitectureConfig, resolve_architecture

CPU = torch.device("cpu")


def small(**keys) -> ModelArchitectureConfig:
    sizes = {"arch_preset": "custom", "n_head": 4, "n_embd": 32, "block_size": 16, "vocab_size": 53}
    return resolve_architecture(sizes | keys)


def built(kind: str, name: str, **keys):
    """The component of a small model that has it."""
    return component(kind, name)(small(**{kind: name}, **keys))


def shared(name: str, **keys):
    """What a position encoding hands to the mixers of a small model: a function of (T, device, start)."""
    config = small(position_encoding=name, **keys)
    (handed,) = component("position_encoding", name).shared(config, config.head_dim).values()
    return handed


# Norms


@pytest.mark.parametrize("name", registered()["normalization"])
@pytest.mark.parametrize("eps", [1e-5, 0.3])
def test_norms_are_their_formulas(name, eps):
    torch.manual_seed(0)
    norm = built("normalization", name, norm_eps=eps).double()
    for parameter in norm.parameters():
        parameter.data.normal_()
    x = 3 * torch.randn(5, 7, 32, dtype=torch.float64) + 2
    centred = x if name.startswith("rmsnorm") else x - x.mean(-1, keepdim=True)
    factor = norm.weight + 1 if name == "rmsnorm_zero_centred" else norm.weight
    expected = centred / (centred.square().mean(-1, keepdim=True) + eps).sqrt() * factor
    if name == "layernorm":
        expected = expected + norm.bias
    torch.testing.assert_close(norm(x), expected)


def test_rmsnorm_is_hugging_faces():
    ours, theirs = built("normalization", "rmsnorm", norm_eps=1e-3), modeling_llama.LlamaRMSNorm(32, eps=1e-3)
    theirs.weight.data.normal_()
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(5, 7, 32)
    torch.testing.assert_close(ours(x), theirs(x))


# Activations


@pytest.mark.parametrize(
    ("name", "formula"),
    [
        ("gelu", lambda x: x * (1 + math.erf(x / math.sqrt(2))) / 2),
        ("gelu_tanh", lambda x: x * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2),
        ("quick_gelu", lambda x: x / (1 + math.exp(-1.702 * x))),
        ("silu", lambda x: x / (1 + math.exp(-x))),
        ("relu", lambda x: max(x, 0.0)),
        ("relu_squared", lambda x: max(x, 0.0) ** 2),
        ("leaky_relu", lambda x: x if x > 0 else 0.01 * x),
    ],
)
def test_activations_are_their_formulas(name, formula):
    x = torch.linspace(-6, 6, 241, dtype=torch.float64)
    torch.testing.assert_close(built("activation", name)(x), torch.tensor([formula(v) for v in x.tolist()]).double())


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("gelu", "gelu"),
        ("gelu_tanh", "gelu_new"),
        ("silu", "silu"),
        ("relu", "relu"),
        ("relu_squared", "relu2"),
        ("quick_gelu", "quick_gelu"),
    ],
)
def test_activations_are_hugging_faces(ours, theirs):
    x = torch.randn(1000) * 3
    torch.testing.assert_close(built("activation", ours)(x), ACT2FN[theirs](x))


# Positions


@given(n_head=st.integers(1, 130))
def test_alibi_slopes_are_blooms(n_head):
    """Also where the number of heads is no power of two."""
    alibi = shared("alibi", n_head=n_head, n_embd=n_head)
    theirs = modeling_bloom.build_alibi_tensor(torch.ones(1, 2), n_head, torch.float32)  # (H, 1, 2): slope x position
    torch.testing.assert_close(alibi.slopes(CPU), theirs[:, 0, 1])


def test_alibi_attends_as_bloom_does():
    """Bloom adds slope x key position; a softmax does not see the difference, which is constant over the keys."""
    n_head, length = BloomConfig(n_head=6).n_head, 9
    alibi = shared("alibi", n_head=n_head, n_embd=48)
    bias = modeling_bloom.build_alibi_tensor(torch.ones(1, length), n_head, torch.float32)  # (H, 1, T)
    scores = torch.randn(n_head, length, length)
    future = torch.ones(length, length, dtype=torch.bool).triu(1)
    expected = (scores + bias).masked_fill(future, -torch.inf).softmax(-1)
    ours = (scores + alibi(length, CPU)).masked_fill(future, -torch.inf).softmax(-1)
    torch.testing.assert_close(ours, expected)


@pytest.mark.parametrize(
    "scaling",
    [
        None,
        {"rope_type": "linear", "factor": 3.0},
        {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
    ],
    ids=lambda scaling: scaling["rope_type"] if scaling else "default",
)
@pytest.mark.parametrize("theta", [10000.0, 500000.0])
def test_rope_is_hugging_faces(scaling, theta):
    rope = shared("rope", n_embd=256, rope_theta=theta, rope_scaling=scaling)
    parameters = {"rope_theta": theta, **(scaling or {"rope_type": "default"})}
    config = LlamaConfig(
        hidden_size=256, num_attention_heads=4, max_position_embeddings=512, rope_parameters=parameters
    )
    length = 300
    q, k = torch.randn(2, 4, length, 64), torch.randn(2, 4, length, 64)
    cos, sin = modeling_llama.LlamaRotaryEmbedding(config)(q, torch.arange(length)[None])
    expected = modeling_llama.apply_rotary_pos_emb(q, k, cos, sin)
    rotation = rope(length, CPU)
    # Angles reach 300 radians, of which float32 keeps 1.5e-5.
    torch.testing.assert_close(rotate(q, rotation), expected[0], rtol=0, atol=1e-4)
    torch.testing.assert_close(rotate(k, rotation), expected[1], rtol=0, atol=1e-4)


def test_rotated_products_depend_on_the_distance_alone():
    rope = shared("rope")
    rotation = rope(16, CPU)
    q, k = (torch.randn(1, 1, 1, 8).expand(1, 1, 16, 8) for _ in range(2))
    products = rotate(q, rotation) @ rotate(k, rotation).mT  # (1, 1, T, T)
    for distance in range(-15, 16):
        diagonal = products[0, 0].diagonal(distance)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal))
    torch.testing.assert_close(rotate(q, rotation).norm(dim=-1), q.norm(dim=-1))


def test_rotation_is_in_float32_and_gives_back_the_dtype():
    rope = shared("rope")
    q = torch.randn(2, 4, 16, 8)
    rotated = rotate(q.bfloat16(), rope(16, CPU))
    assert rotated.dtype == torch.bfloat16
    assert torch.equal(rotated, rotate(q.bfloat16().float(), rope(16, CPU)).bfloat16())


def test_learned_positions_are_added():
    position = built("position_encoding", "learned_absolute")
    x = torch.randn(3, 5, 32)
    torch.testing.assert_close(position.embed(x) - x, position.embedding.weight[:5].expand(3, 5, 32))


# Attention


def attention_by_hand(q, k, v, bias):
    """Query by query, over its past only."""
    batch, heads, length, width = q.shape
    out = torch.empty_like(q)
    for b in range(batch):
        for h in range(heads):
            group = h // (heads // k.shape[1])  # heads that share keys are neighbours, as in Hugging Face's weights
            for t in range(length):
                scores = k[b, group, : t + 1] @ q[b, h, t] / math.sqrt(width)
                if bias is not None:
                    scores = scores + bias[h, t, : t + 1]
                out[b, h, t] = scores.softmax(0) @ v[b, group, : t + 1]
    return out


@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("kv_heads", [6, 3, 2, 1])
@pytest.mark.parametrize("backend", registered()["attention_backend"])
def test_backends_are_attention_written_by_hand(backend, kv_heads, with_bias):
    torch.manual_seed(0)
    q = torch.randn(2, 6, 7, 4, dtype=torch.float64)
    k, v = torch.randn(2, kv_heads, 7, 4, dtype=torch.float64), torch.randn(2, kv_heads, 7, 4, dtype=torch.float64)
    bias = torch.randn(6, 7, 7, dtype=torch.float64) if with_bias else None
    out = component("attention_backend", backend)(q, k, v, bias, 0.0)
    # manual takes its softmax in float32
    tolerance = {"rtol": 0.0, "atol": 1e-12 if backend == "sdpa" else 1e-6}
    torch.testing.assert_close(out, attention_by_hand(q, k, v, bias), **tolerance)


SMALL_ATTENTION = {"n_layer": 4, "num_key_value_heads": 2, "position_encoding": "rope"}
WITH_WINDOWS = SMALL_ATTENTION | {"layer_pattern": "WA", "attention_window": 5}


def randomised(model: nn.Module, dtype: torch.dtype = torch.float64) -> nn.Module:
    """With every parameter random, also those that begin as a constant."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn(parameter.shape)
    return model.to(dtype).eval()


class WithoutFFN(nn.Module):
    """In place of gpt-oss's experts."""

    def forward(self, x):
        return torch.zeros_like(x), None


def test_sinks_are_gpt_osss():
    """Logits and the gradient of every parameter, in layers within a window and without, whose biases are all there."""
    sizes = {"num_hidden_layers": 4, "hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2}
    sizes |= {"head_dim": 8, "vocab_size": 53, "num_local_experts": 2, "intermediate_size": 8, "sliding_window": 5}
    rotation = {"rope_type": "default", "rope_theta": 100.0}
    theirs = GptOssForCausalLM(GptOssConfig(**sizes, rope_parameters=rotation, attn_implementation="eager"))
    for layer in theirs.model.layers:
        layer.mlp, layer.post_attention_layernorm = WithoutFFN(), nn.Identity()
    assert theirs.config.layer_types[0] == "sliding_attention"
    keys = WITH_WINDOWS | {"attention_backend": "manual", "attention_sinks": True}
    keys |= {"attention_bias": "all", "rope_theta": 100.0, "weight_tying": False, "normalization": "rmsnorm"}
    ours = randomised(build_model(small(**keys, ffn_pattern="-"), seed=0), torch.float32)
    names = {"model.embed_tokens": "embedding", "model.layers": "blocks", "self_attn.sinks": "mixer.sinks.weight"}
    names |= {"self_attn": "mixer", "input_layernorm": "mixer_norm", "model.norm": "final_norm"}

    def our_name(name: str) -> str:
        for one, other in names.items():
            name = name.replace(one, other)
        return name

    state = ours.state_dict()
    theirs.load_state_dict({name: state[our_name(name)] for name in theirs.state_dict()})
    tokens, weights = torch.randint(53, (2, 16)), torch.randn(2, 16, 53)
    found, expected = ours(tokens), theirs(tokens).logits
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    (found * weights).mean().backward()
    (expected * weights).mean().backward()
    gradients = {our_name(name): parameter.grad for name, parameter in theirs.named_parameters()}
    assert gradients.keys() == dict(ours.named_parameters()).keys()
    for name, parameter in ours.named_parameters():
        assert parameter.grad.abs().max() > 1e-6, name
        torch.testing.assert_close(parameter.grad, gradients[name], rtol=0, atol=1e-5)


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("cap", [None, 1.5])
@pytest.mark.parametrize("biased", [False, True])
def test_a_sink_is_a_key_of_no_value(biased, cap, window):
    """Query by query: the weights of what it sees are exp(score) over a sum in which exp(sink) is one more; after a
    cache of three tokens, too."""
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, heads, length, 4).double() for heads, length in ((4, 5), (2, 8), (2, 8)))
    sinks, bias = torch.randn(4).double(), torch.randn(4, 5, 8).double() if biased else None
    attend = component("attention_backend", "manual") if cap is None else capped(cap)
    found = attend(q, k, v, with_sinks(bias, sinks, 8), 0.0, window)
    for head, t in itertools.product(range(4), range(5)):
        first = 0 if window is None else max(0, t + 4 - window)
        scores = k[:, head // 2, first : t + 4] @ q[:, head, t, :, None] / 2  # (B, keys, 1)
        scores = scores if cap is None else cap * (scores / cap).tanh()
        scores = scores if bias is None else scores + bias[head, t, first : t + 4, None]
        weights = scores.exp() / (scores.exp().sum(1, keepdim=True) + sinks[head].exp())
        torch.testing.assert_close(found[:, head, t], (weights * v[:, head // 2, first : t + 4]).sum(1))


def test_sinks_begin_as_the_one_of_a_softmax_that_may_be_empty():
    """exp(0): Miller's softmax, in whose denominator there is one more. Without sinks weights add up to 1."""
    model = build_model(small(**SMALL_ATTENTION, attention_backend="manual", attention_sinks=True), seed=0)
    mixer = model.blocks[0].mixer
    assert torch.equal(mixer.sinks.weight, torch.zeros(4))
    q = torch.zeros(1, 4, 3, 8)  # all scores are 0
    y = mixer.attend(q, q[:, :2], torch.ones(1, 2, 3, 8), with_sinks(None, mixer.sinks(), 3), 0.0)
    torch.testing.assert_close(y[0, 0, :, 0], torch.tensor([1 / 2, 2 / 3, 3 / 4]))


@pytest.mark.parametrize("bias", ["none", "qkv", "all"])
@pytest.mark.parametrize("backend", registered()["attention_backend"])
@pytest.mark.parametrize("gate", ["head", "element"])
def test_output_gates_are_their_formula(gate, backend, bias):
    """Qiu et al. 2025, G1: Y * sigmoid(X W), with X what queries are made of too, and Y what the same attention without
    a gate gives to its projection. It has a bias where queries have one."""
    keys = SMALL_ATTENTION | {"attention_backend": backend, "attention_bias": bias, "attention_output_gate": gate}
    mixer = randomised(component("mixer", "attention")(small(**keys)))
    plain = component("mixer", "attention")(small(**keys | {"attention_output_gate": None})).double()
    plain.load_state_dict(mixer.state_dict(), strict=False)
    assert (mixer.gate_proj.bias is not None) == (bias != "none")
    x, seen = torch.randn(2, 16, 32).double(), []
    plain.o_proj.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    plain(x)
    y = seen[0].unflatten(-1, (4, 8)).clone()  # (B, T, H, h)
    numbers = mixer.gate_proj(x)
    for b, t, head, i in itertools.product(range(2), range(16), range(4), range(8)):
        number = numbers[b, t, head if gate == "head" else 8 * head + i]
        y[b, t, head, i] /= 1 + math.exp(-number)
    torch.testing.assert_close(mixer(x), mixer.o_proj(y.flatten(2)))


def by_hand(model, tokens, weights):
    """What the model's layers compute where each attention has one key-value head a query head: `weights` are those of
    the value residual, by layer, None where a layer has none."""
    x, first = model.embedding(tokens), None
    for block, weight in zip(model.blocks, weights, strict=True):
        mixer, normed = block.mixer, block.mixer_norm(x)
        if weight is None:
            x = x + mixer(normed)
        else:
            q, k, v = (proj(normed) for proj in (mixer.q_proj, mixer.k_proj, mixer.v_proj))
            first = v if first is None else first
            v = (1 - weight) * v + weight * first
            q, k, v = (y.unflatten(-1, (4, 8)).transpose(1, 2) for y in (q, k, v))
            x = x + mixer.o_proj(attention_by_hand(q, k, v, None).transpose(1, 2).flatten(2))
        x = x + block.ffn(block.ffn_norm(x))
    return model.logits(model.final_norm(x))


@pytest.mark.parametrize("backend", registered()["attention_backend"])
@pytest.mark.parametrize("pattern", ["AUA", "MAMU", "AMMA"])
def test_value_residuals_are_their_formula(pattern, backend):
    """(1 - w) V + w V_1 with the first attention layer's V_1, whatever stands between; a layer without one neither
    takes nor gives."""
    keys = {"position_encoding": "none", "layer_pattern": pattern, "n_layer": len(pattern)}
    keys |= {"mamba_head_dim": 16} if "M" in pattern else {}
    for without in (None, pattern.index("A")):
        own = {} if without is None else {"layer_values": {without: {"value_residual": False}}}
        model = randomised(build_model(small(**keys, **own, value_residual=True, attention_backend=backend), seed=0))
        weights = [
            None if letter == "M" or index == without else block.mixer.value_weight.weight.item()
            for index, (letter, block) in enumerate(zip(pattern, model.blocks, strict=True))
        ]
        tokens = torch.randint(53, (2, 9))
        torch.testing.assert_close(model(tokens), by_hand(model, tokens, weights), rtol=0, atol=1e-6)


def test_a_value_residual_begins_at_a_half_and_does_nothing_in_the_first_layer():
    config = small(**SMALL_ATTENTION, value_residual=True)
    model, tokens = build_model(config, seed=0), torch.randint(53, (2, 16))
    weights = [block.mixer.value_weight.weight for block in model.blocks]
    assert all(torch.equal(weight, torch.tensor([0.5])) for weight in weights)
    model(tokens, tokens).total().backward()
    assert [weight.grad.item() != 0 for weight in weights] == [False, True, True, True]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"attention_sinks": True}, "attention_backend='sdpa' has no attention_sinks=True: take .*'manual'"),
        (
            {
                "attention_backend": "manual",
                "layer_values": {1: {"attention_backend": "sdpa"}},
                "attention_sinks": True,
            },
            "attention_backend='sdpa' has no attention_sinks=True: take .*'manual'",
        ),
        (
            {"value_residual": True, "layer_values": {2: {"num_key_value_heads": 4}}},
            "layers of num_key_value_heads=2 and head_dim=8 and of num_key_value_heads=4 and head_dim=8 cannot share "
            "value_residual: give them equal sizes",
        ),
        ({"attention_output_gate": "heads"}, r"attention_output_gate='heads' is none of: None, head, element \(did"),
        ({"value_residual": "yes"}, "value_residual='yes': expected bool"),
        ({"attention_sinks": 1}, "attention_sinks=1: expected bool"),
    ],
)
def test_what_attention_cannot_have_is_one_line(keys, message):
    with pytest.raises(UserError, match=message) as refusal:
        small(**WITH_WINDOWS | keys)
    assert "\n" not in str(refusal.value)


def test_layers_that_share_no_values_may_differ():
    own = {2: {"num_key_value_heads": 4, "value_residual": False}}
    config = small(**WITH_WINDOWS | {"value_residual": True, "layer_values": own})
    assert "4L-2A2W-4H-32D-GQA2-ValueResidual-RoPE" in config.name
    tokens = torch.randint(53, (2, 16))
    build_model(config, seed=0)(tokens, tokens).total().backward()


# FFN


@pytest.mark.parametrize(("name", "gate"), [("swiglu", nn.functional.silu), ("geglu", nn.functional.gelu)])
def test_gated_ffns(name, gate):
    ffn = built("ffn_type", name, d_ff=40, bias=True)
    x = torch.randn(3, 5, 32)
    expected = ffn.down_proj(gate(ffn.gate_proj(x)) * ffn.up_proj(x))
    torch.testing.assert_close(ffn(x), expected)
    assert ffn.gate_proj.weight.shape == ffn.up_proj.weight.shape == (40, 32)


@pytest.mark.parametrize("limit", [7.0, 0.5])
def test_a_clamped_ffn_is_gpt_osss(limit):
    """An expert's own arithmetic, with its columns in turn: bits and gradients, beyond the limits too."""
    theirs = GptOssExperts(GptOssConfig(hidden_size=32, intermediate_size=40, num_local_experts=2, swiglu_limit=limit))
    ffn = randomised(built("ffn_type", "swiglu_clamped", d_ff=40, bias=True, swiglu_limit=limit), torch.float32)
    x = (3 * torch.randn(3, 5, 32)).requires_grad_()
    gate, up = ffn.gate_proj(x), ffn.up_proj(x)
    assert (gate > limit).any() and (up > limit).any() and (up < -limit).any()
    expected = ffn.down_proj(theirs._apply_gate(torch.stack((gate, up), -1).flatten(-2)))
    assert torch.equal(ffn(x), expected)
    for found, other in zip(
        *(torch.autograd.grad(y.sum(), (x, *ffn.parameters())) for y in (ffn(x), expected)), strict=True
    ):
        torch.testing.assert_close(found, other)


def test_a_limit_is_of_a_clamped_ffn_alone():
    with pytest.raises(UserError, match=r"swiglu_limit=5\.0 is given, but no layer has a clamped gated FFN: drop it"):
        small(ffn_type="swiglu", swiglu_limit=5.0)
    with pytest.raises(UserError, match=r"swiglu_limit=0\.0 must be above 0"):
        small(ffn_type="swiglu_clamped", swiglu_limit=0)
    with pytest.raises(UserError, match=r"ffn_type='swiglu_clamped' has its own activation \(quick_gelu\)"):
        small(ffn_type="swiglu_clamped", activation="silu")


# The registry


def test_an_unknown_component_names_the_nearest():
    with pytest.raises(UserError, match=r"normalization='rmsnrom' is none of: layernorm, .*did you mean 'rmsnorm'\?"):
        component("normalization", "rmsnrom")


@pytest.fixture
def own_registry():
    """What a test registers is forgotten after it."""
    with registry.kept():
        yield


def test_a_component_is_used_under_each_of_its_names(own_registry):
    @register_spec
    class Tanh(Activation):
        names = ("one_name", "another")

    register("activation", "one_name", "another")(lambda config: nn.Tanh())
    assert isinstance(built("activation", "one_name"), nn.Tanh)
    assert registered()["activation"][-2:] == ["one_name", "another"]


WITHOUT_RESET = """
import torch
from components.spec import Norm, vectors
from model_components import register, register_spec

n_layer, n_head, n_embd, block_size, vocab_size = 2, 2, 12, 8, 31
normalization = "norm_that_cannot_be_initialised"


@register_spec
class NormSpec(Norm):
    name = "norm_that_cannot_be_initialised"

    def weights(self, config):
        return vectors("weight", config.n_embd)


@register("normalization", "norm_that_cannot_be_initialised")
class Norm(torch.nn.Module):
    def __init__(self, config):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(config.n_embd))
"""


def test_a_component_that_cannot_initialise_itself_is_refused(own_registry, tmp_path):
    """Its constructor's values are gone: the model is made without memory first."""
    file = tmp_path / "own.py"
    file.write_text(WITHOUT_RESET)
    configuration = load([str(file)])
    message = r"blocks\.0\.mixer_norm \(Norm\) has parameters but no reset_parameters\(\)"
    with pytest.raises(UserError, match=message):
        build_model(configuration.model, seed=0)
