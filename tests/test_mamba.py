"""The state-space scans against their recurrence, and the mixers against Hugging Face's.

Tolerances are relative to the largest element of what is compared: 1e-10 in float64, 1e-5 in float32.
"""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from recurrent import continues, is_near_under_autocast, sees_no_future
from torch import Tensor, nn
from transformers import Mamba2Config, MambaConfig
from transformers.models.mamba.modeling_mamba import MambaMixer
from transformers.models.mamba2.modeling_mamba2 import Mamba2Mixer

from components.mixers.mamba1.scan import selective_naive, selective_scan
from components.mixers.mamba2.scan import ssd_chunked, ssd_naive
from components.mixers.recurrent import CausalConvolution
from components.registry import spec
from model_builder import Block, LanguageModel
from model_components import component
from model_config import Layer, ModelArchitectureConfig, resolve_architecture
from runs.config import RunConfig
from training.optimizer import build_optimizer

MIXERS = ("mamba1", "mamba2")
RELATIVE = {torch.float64: 1e-10, torch.float32: 1e-5}


def assert_near(ours: Tensor, expected: Tensor, relative: float | None = None) -> None:
    """Equal but for a fraction of the largest element: by default, the one of ours' number format."""
    relative = RELATIVE[ours.dtype] if relative is None else relative
    expected = expected.to(ours.dtype)
    torch.testing.assert_close(ours, expected, rtol=0.0, atol=relative * expected.abs().max().item())


def architecture(n_embd: int = 16, n_head: int = 2, **keys) -> ModelArchitectureConfig:
    """A small model's; the mixers are built by themselves here, whatever its layers are."""
    model = resolve_architecture({"n_layer": 2, "n_head": n_head, "n_embd": n_embd, "vocab_size": 31})
    return model.replace(**{"mamba_d_state": 5, "mamba_head_dim": 4} | keys)


def mixer(name: str, seed: int = 0, **keys) -> nn.Module:
    """With every parameter of a size that matters, also those that start as zeros or ones."""
    torch.manual_seed(seed)
    module = component("mixer", name)(architecture(**keys))
    for parameter in module.parameters():
        parameter.data += 0.2 * torch.randn(parameter.shape)
    return module


# The scans


def ssd_inputs(length, batch=2, groups=2, shared_by=3, width=4, state=5, dtype=torch.float64, seed=0):
    """x, dt, A, B, C, and the state to start from."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    heads = groups * shared_by
    dt, A = 0.1 * normal(batch, length, heads).exp(), -2 * normal(heads).exp()
    B, C = normal(batch, length, groups, state), normal(batch, length, groups, state)
    inputs = (normal(batch, length, heads, width), dt, A, B, C, normal(batch, heads, width, state))
    return [t.to(dtype).requires_grad_() for t in inputs]


def selective_inputs(length, batch=2, channels=6, state=5, dtype=torch.float64, seed=0):
    """x, dt, A, B, C, and the state to start from."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    dt, A = 0.1 * normal(batch, length, channels).exp(), -2 * normal(channels, state).exp()
    B, C = normal(batch, length, state), normal(batch, length, state)
    inputs = (normal(batch, length, channels), dt, A, B, C, normal(batch, channels, state))
    return [t.to(dtype).requires_grad_() for t in inputs]


def values_and_gradients(scan, inputs):
    """Both results, y and the final state, and the gradients of a function of them in which every element has a weight
    of its own."""
    results = scan(*inputs)
    weights = (torch.linspace(-1, 2, r.numel(), device=r.device).view(r.shape).double() for r in results)
    weighted = sum((r.double() * w).sum() for r, w in zip(results, weights, strict=True))
    return [*results, *torch.autograd.grad(weighted, inputs, materialize_grads=True)]


def with_steps(scan):
    """The scan of what a layer has: its steps dt and rates A, in place of what follows from them."""
    return lambda x, dt, A, B, C, *more: scan(x * dt[..., None], dt * A, B, C, *more)


def chunked(chunk_size):
    return with_steps(lambda x, decay, B, C, state=None: ssd_chunked(x, decay, B, C, chunk_size, state))


by_token = with_steps(ssd_naive)


def test_the_recurrence_of_mamba_2_is_its_closed_form():
    """y_i = sum of j <= i of (C_i . B_j) exp(A sum of dt over j+1..i) dt_j x_j, without a start state."""
    x, dt, A, B, C, _ = ssd_inputs(7, batch=1, groups=2, shared_by=2)
    y, state = by_token(x, dt, A, B, C)
    for head, i in itertools.product(range(4), range(7)):
        group = head // 2  # heads of a group are neighbours
        decays = [(A[head] * dt[0, j + 1 : i + 1, head].sum()).exp() * dt[0, j, head] for j in range(i + 1)]
        read = [(C[0, i, group] @ B[0, j, group]) * decays[j] * x[0, j, head] for j in range(i + 1)]
        assert_near(y[0, i, head], sum(read))
        if i == 6:
            assert_near(
                state[0, head], sum(d * torch.outer(x[0, j, head], B[0, j, group]) for j, d in enumerate(decays))
            )


def test_the_recurrence_of_mamba_1_is_that_of_mamba_2_with_every_decay_its_own():
    """A channel of Mamba-1 with N decays is N heads of Mamba-2 with one channel and one number of state each."""
    x, dt, A, B, C, _ = selective_inputs(9)
    y, state = selective_naive(x, dt, A, B, C)
    by_state = [
        by_token(x[..., None], dt, A[:, n], B[:, :, None, n : n + 1], C[:, :, None, n : n + 1]) for n in range(5)
    ]
    assert_near(y, sum(part.squeeze(-1) for part, _ in by_state))
    assert_near(state, torch.cat([part.squeeze(-1) for _, part in by_state], dim=-1))


@settings(max_examples=40)
@given(
    length=st.integers(1, 23),
    chunk_size=st.integers(1, 25),
    groups=st.integers(1, 3),
    shared_by=st.integers(1, 3),
    width=st.integers(1, 4),
    state=st.integers(1, 6),
    seed=st.integers(0, 99),
)
def test_chunks_are_the_recurrence(length, chunk_size, groups, shared_by, width, state, seed):
    inputs = ssd_inputs(length, 2, groups, shared_by, width, state, seed=seed)
    for given_inputs in (inputs, inputs[:-1]):
        expected = values_and_gradients(by_token, given_inputs)
        for ours, theirs in zip(values_and_gradients(chunked(chunk_size), given_inputs), expected, strict=True):
            assert_near(ours, theirs)


@pytest.mark.parametrize(("length", "chunk_size"), [(24, 1), (25, 1), (50, 2), (700, 1), (145, 2)])
def test_many_chunks_pass_their_states_on_in_groups(length, chunk_size):
    """Up to 24 chunks one by one; more of them in groups that they fill or not; over 576 in groups of groups."""
    inputs = ssd_inputs(length, groups=1, shared_by=2, width=2, state=3)
    expected = values_and_gradients(by_token, inputs)
    for ours, theirs in zip(values_and_gradients(chunked(chunk_size), inputs), expected, strict=True):
        assert_near(ours, theirs)


@settings(max_examples=40)
@given(length=st.integers(1, 40), channels=st.integers(1, 5), state=st.integers(1, 6), seed=st.integers(0, 99))
def test_the_fast_selective_scan_is_the_recurrence(length, channels, state, seed):
    inputs = selective_inputs(length, 2, channels, state, seed=seed)
    for given_inputs in (inputs, inputs[:-1]):
        expected = values_and_gradients(selective_naive, given_inputs)
        for ours, theirs in zip(values_and_gradients(selective_scan, given_inputs), expected, strict=True):
            assert_near(ours, theirs)


@pytest.mark.parametrize(
    ("scan", "reference", "inputs"),
    [
        (chunked(64), by_token, ssd_inputs),
        (chunked(128), by_token, ssd_inputs),
        (selective_scan, selective_naive, selective_inputs),
    ],
    ids=["chunks of 64", "chunks of 128", "selective"],
)
def test_in_float32(scan, reference, inputs):
    """Over hundreds of tokens, against the recurrence in float64."""
    single = inputs(300, dtype=torch.float32)
    double = [t.detach().double().requires_grad_() for t in single]
    expected = values_and_gradients(reference, double)
    for ours, theirs in zip(values_and_gradients(scan, single), expected, strict=True):
        assert ours.dtype == torch.float32
        assert_near(ours, theirs)


@pytest.mark.parametrize("chunk_size", [64, 128, 256])
def test_in_float32_with_strong_decay(chunk_size):
    """Steps about 0.7 and A to -16, as a trained layer may have: exponents add up to thousands in a long chunk, whose
    differences in float32 would be off by 1e-4."""
    x, dt, A, B, C, state = (t.detach() for t in ssd_inputs(300, dtype=torch.float32))
    dt, A = 0.7 * (dt / dt.mean()).sqrt(), -torch.linspace(1, 16, len(A))
    single = [t.requires_grad_() for t in (x, dt, A, B, C, state)]
    double = [t.detach().double().requires_grad_() for t in single]
    expected = values_and_gradients(by_token, double)
    for ours, theirs in zip(values_and_gradients(chunked(chunk_size), single), expected, strict=True):
        assert_near(ours, theirs)


@pytest.mark.parametrize(
    ("scan", "inputs"),
    [(chunked(8), ssd_inputs), (selective_scan, selective_inputs)],
    ids=["mamba2", "mamba1"],
)
@settings(max_examples=25)
@given(split=st.integers(1, 39))
def test_a_sequence_is_split_anywhere_with_the_state_carried(scan, inputs, split):
    x, dt, A, B, C, state = inputs(40)

    def in_two(x, dt, A, B, C, state):
        first, state = scan(x[:, :split], dt[:, :split], A, B[:, :split], C[:, :split], state)
        second, state = scan(x[:, split:], dt[:, split:], A, B[:, split:], C[:, split:], state)
        return torch.cat((first, second), dim=1), state

    whole = values_and_gradients(scan, [x, dt, A, B, C, state])
    for ours, expected in zip(values_and_gradients(in_two, [x, dt, A, B, C, state]), whole, strict=True):
        assert_near(ours, expected)


@pytest.mark.parametrize(
    ("scan", "reference", "inputs"),
    [(chunked(16), by_token, ssd_inputs), (selective_scan, selective_naive, selective_inputs)],
    ids=["mamba2", "mamba1"],
)
def test_strong_decay_has_finite_gradients(scan, reference, inputs):
    """exp of what decays by 10,000 a token overflows with the sign turned, and 0 times infinity is no gradient."""
    x, dt, A, B, C, state = (t.detach() for t in inputs(40))
    double = [t.requires_grad_() for t in (x, dt, 1e4 * A, B, C, state)]
    single = [t.detach().float().requires_grad_() for t in double]
    expected = values_and_gradients(reference, double)
    for ours, theirs in zip(values_and_gradients(scan, double), expected, strict=True):
        assert_near(ours, theirs)
    assert all(t.isfinite().all() for t in values_and_gradients(scan, single))


@pytest.mark.parametrize(
    ("scan", "reference", "inputs"),
    [(chunked(128), by_token, ssd_inputs), (selective_scan, selective_naive, selective_inputs)],
    ids=["mamba2", "mamba1"],
)
def test_decays_and_states_are_in_float32_whatever_the_inputs_are(scan, reference, inputs):
    """bfloat16 keeps 8 bits: a rounding is off by 2^-9 at most. Mamba-2's products make four in a row (input, score,
    the state that is read, output), Mamba-1's scan only the output's. Decays that were summed up in it over a chunk
    would be off by a hundred times that."""
    x, dt, A, B, C, state = (t.detach() for t in inputs(512, dtype=torch.float32))
    x, B, C = x.bfloat16(), B.bfloat16(), C.bfloat16()
    y, final = scan(x, dt, A, B, C, state)
    expected, expected_final = reference(x.double(), dt.double(), A.double(), B.double(), C.double(), state.double())
    assert y.dtype == torch.bfloat16
    assert final.dtype == torch.float32
    assert_near(y.double(), expected, 4 * 2**-9)
    assert_near(final.double(), expected_final, 4 * 2**-9)


def bytes_kept(scan, inputs) -> int:
    """Memory that is held from the forward pass to the backward pass."""
    storages: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        results = scan(*inputs)
    del results
    return sum(storages.values())


@pytest.mark.parametrize(
    ("scan", "reference", "inputs"),
    [
        (chunked(64), by_token, lambda state: ssd_inputs(512, 1, 1, 2, 64, state, torch.float32)),
        (selective_scan, selective_naive, lambda state: selective_inputs(512, 1, 128, state, torch.float32)),
    ],
    ids=["mamba2", "mamba1"],
)
def test_memory_does_not_hold_the_state_of_every_token(scan, reference, inputs):
    """From 16 to 128 numbers a channel, 112 more for each of 512 tokens and 128 channels: the reference keeps those,
    the scans what a sixteenth of the tokens would."""
    of_every_token = 112 * 512 * 128 * 4
    assert bytes_kept(reference, inputs(128)) - bytes_kept(reference, inputs(16)) > of_every_token
    assert bytes_kept(scan, inputs(128)) - bytes_kept(scan, inputs(16)) < of_every_token / 8


# The mixers

# Hugging Face's parameters, each of ours one below the other.
HUGGING_FACE = {
    "mamba2": {
        "in_proj": ("z_proj", "x_proj", "B_proj", "C_proj", "dt_proj"),
        "conv1d": ("x_conv", "B_conv", "C_conv"),
        "norm": ("norm",),
        "out_proj": ("o_proj",),
    },
    "mamba1": {
        "in_proj": ("x_proj", "z_proj"),
        "conv1d": ("x_conv",),
        "x_proj": ("selection_proj",),
        "dt_proj": ("dt_proj",),
        "out_proj": ("o_proj",),
    },
}


def as_hugging_faces(name: str, ours: dict[str, Tensor], theirs: nn.Module) -> dict[str, Tensor]:
    """Values or gradients under the names, and in the shapes, of Hugging Face's mixer."""
    values = {}
    for parameter, template in theirs.named_parameters():
        module, _, kind = parameter.rpartition(".")
        parts = [f"{part}.{kind}" for part in HUGGING_FACE[name][module]] if module else [kind]
        values[parameter] = torch.cat([ours[part] for part in parts]).view_as(template)
    return values


def hugging_faces(name: str, config: ModelArchitectureConfig) -> nn.Module:
    shared = {
        "hidden_size": config.n_embd,
        "state_size": spec("mixer", name).state(config),
        "conv_kernel": config.mamba_d_conv,
        "expand": config.mamba_expand,
        "use_bias": config.bias,
    }
    if name == "mamba1":
        return MambaMixer(MambaConfig(**shared), layer_idx=0)
    return Mamba2Mixer(
        Mamba2Config(
            **shared, num_heads=spec("mixer", name).heads(config), head_dim=config.mamba_head_dim,
            n_groups=config.mamba_n_groups, chunk_size=7, layer_norm_epsilon=config.norm_eps,
        ),
        layer_idx=0,
    )  # fmt: skip


@pytest.mark.parametrize("length", [1, 2, 32, 75])
@pytest.mark.parametrize(
    ("name", "keys"),
    [
        ("mamba1", {}),
        ("mamba1", {"bias": True, "n_embd": 40, "mamba_d_state": None, "mamba_d_conv": 3, "mamba_expand": 1}),
        ("mamba2", {}),
        ("mamba2", {"bias": True, "mamba_n_groups": 4, "mamba_d_conv": 2, "mamba_expand": 3, "norm_eps": 0.1}),
        ("mamba2", {"mamba_n_groups": 2, "mamba_d_state": None, "mamba_chunk_size": 16}),
    ],
)
def test_mixers_are_hugging_faces(name, keys, length):
    ours = mixer(name, **keys)
    theirs = hugging_faces(name, architecture(**keys)).eval()
    theirs.load_state_dict(as_hugging_faces(name, dict(ours.named_parameters()), theirs))
    x = torch.randn(2, length, ours.z_proj.in_features)
    weights = torch.randn(x.shape)
    inputs, outputs = [x.clone().requires_grad_() for _ in range(2)], []
    for module, own_x in zip((ours, theirs), inputs, strict=True):
        outputs.append(module(own_x))
        (outputs[-1] * weights).sum().backward()
    assert_near(outputs[0], outputs[1])
    assert_near(inputs[0].grad, inputs[1].grad)
    gradients = as_hugging_faces(name, {n: p.grad for n, p in ours.named_parameters()}, theirs)
    for parameter, value in theirs.named_parameters():
        assert_near(gradients[parameter], value.grad)


@pytest.mark.parametrize("name", MIXERS)
@settings(max_examples=20)
@given(pieces=st.lists(st.integers(1, 20), min_size=1, max_size=6), d_conv=st.integers(1, 5))
def test_a_cache_continues_from_pieces_of_any_length(name, pieces, d_conv):
    """Prefill, then token by token, or anything else: as the whole at once; the cache is updated in place."""
    assert_near(*continues(mixer(name, mamba_d_conv=d_conv, mamba_chunk_size=8).double(), pieces))


@pytest.mark.parametrize("name", MIXERS)
def test_a_mixer_is_handed_nothing_besides_and_sees_no_future(name):
    """Also where an encoding of positions acts in a model's other mixers."""
    assert Block(architecture(position_encoding="rope"), Layer(name, None)).shared == {}
    sees_no_future(mixer(name))


@pytest.mark.parametrize("width", [1, 2, 4])
def test_the_convolution_is_pytorchs(width):
    convolution = CausalConvolution(6, width)
    x = torch.randn(2, 9, 6)
    expected = nn.functional.conv1d(x.mT, convolution.weight[:, None], convolution.bias, padding=width - 1, groups=6)
    torch.testing.assert_close(convolution(x), nn.functional.silu(expected[..., :9].mT))


@pytest.mark.parametrize("name", MIXERS)
def test_autocast_is_near_float32(name):
    """Of the inputs of each product, and of what it gives, from the first projection to the last."""
    is_near_under_autocast(mixer(name, n_embd=64, mamba_head_dim=16, mamba_d_state=16), roundings=10)


@pytest.mark.parametrize(
    ("name", "vocab_size", "published"),
    [("mamba1", 50280, 129_135_360), ("mamba2", 50288, 128_989_632)],  # state-spaces/mamba-130m and mamba2-130m
)
def test_published_parameter_counts(name, vocab_size, published):
    """24 layers of one mixer and one norm, a final norm, and a tied embedding."""
    with torch.device("meta"):
        module = component("mixer", name)(resolve_architecture({"n_embd": 768}))
    layer = sum(parameter.numel() for parameter in module.parameters()) + 768
    assert 24 * layer + 768 + vocab_size * 768 == published


# Initialisation and weight decay


def model_of(name: str, seed: int = 0, **keys) -> LanguageModel:
    """A model whose mixers are all of this kind, initialised."""
    config = architecture(**keys)
    model = LanguageModel(config)
    for block in model.blocks:
        block.mixer = component("mixer", name)(config)
    model.init_weights(seed)
    return model


def test_initial_values_of_mamba_2():
    keys = {"n_embd": 512, "mamba_head_dim": 1, "n_head": 8}  # 1024 heads
    module = model_of("mamba2", **keys).blocks[0].mixer
    decay_rates = module.A_log.detach().exp()
    assert 1 <= decay_rates.min() < 1.2
    assert 15.8 < decay_rates.max() <= 16
    assert decay_rates.mean().item() == pytest.approx(8.5, abs=0.5)  # 15 / sqrt(12 x 1024) is 0.14
    assert_log_uniform_steps(module.dt_bias)
    assert (module.D == 1).all()
    assert (module.norm.weight == 1).all()
    assert module.x_proj.weight.std().item() == pytest.approx(0.02, rel=0.02)
    assert module.o_proj.weight.std().item() == pytest.approx(0.02 / 2, rel=0.02)  # sqrt(2 x 2 layers)
    assert module.x_conv.weight.abs().max() <= 0.5  # 1 / sqrt(4)
    assert module.x_conv.weight.std().item() == pytest.approx(0.5 / 3**0.5, rel=0.05)


def test_initial_values_of_mamba_1():
    module = model_of("mamba1", n_embd=512, n_head=8).blocks[0].mixer
    rates = module.A_log.exp().view(1024, 5)
    torch.testing.assert_close(rates, torch.arange(1.0, 6).expand(1024, 5))
    assert_log_uniform_steps(module.dt_proj.bias)
    assert module.dt_proj.weight.shape == (1024, 32)  # rank 512 / 16
    assert module.dt_proj.weight.std().item() == pytest.approx(32**-0.5 / 3**0.5, rel=0.02)
    assert module.o_proj.weight.std().item() == pytest.approx(0.02 / 2, rel=0.02)


def assert_log_uniform_steps(bias: Tensor) -> None:
    """1024 of them, from 0.001 to 0.1: the mean of the decimal logarithm is -2, give or take 0.577 / 32."""
    logarithms = nn.functional.softplus(bias.detach().double()).log10()
    assert -3.0001 < logarithms.min() < -2.99
    assert -1.01 < logarithms.max() < -0.9999
    assert logarithms.mean().item() == pytest.approx(-2, abs=4 * 0.577 / 32)


@pytest.mark.parametrize("name", MIXERS)
def test_initial_values_depend_on_the_seed_alone(name):
    one, same, other = (dict(model_of(name, seed).named_parameters()) for seed in (3, 3, 4))
    assert all(torch.equal(one[key], same[key]) for key in one)
    constant = {"D", "norm.weight", *(["A_log"] if name == "mamba1" else [])}
    for key in one:
        if (own := key.partition(".mixer.")[2]) and own not in constant:
            assert not torch.equal(one[key], other[key]), key


@pytest.mark.parametrize("name", MIXERS)
def test_what_is_no_matrix_or_kernel_is_not_decayed(name):
    model = model_of(name)
    decayed, _ = build_optimizer(model, RunConfig()).param_groups
    names = {id(p): n.partition(".mixer.")[2] for n, p in model.named_parameters()}
    with_decay = {names[id(p)] for p in decayed["params"]} - {""}
    assert with_decay
    assert all(n.endswith(("_proj.weight", "_conv.weight")) for n in with_decay)
