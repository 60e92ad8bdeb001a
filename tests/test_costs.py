"""Parameters and FLOPs: what is written in flops_parameter_counting/ against what PyTorch's own counters see."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from common.errors import UserError
from components import registry
from components.mixers.attention.module import Attention
from components.mixers.recurrent import CausalConvolution
from components.spec import Activation
from components.stacked import StackedLinear
from configurator import load
from flops_parameter_counting.costs.model_cost import model_cost
from model_builder import LanguageModel, build_model
from model_components import component, register, registered
from model_config import ModelArchitectureConfig, architecture_keys, resolve_architecture
from training.plan import plan_run

BUILT_IN = registered()  # before any test registers more
COMPONENTS = [(kind, name) for kind, names in BUILT_IN.items() for name in names]

TINY = {
    "arch_preset": "custom",
    "n_layer": 2,
    "n_head": 4,
    "num_key_value_heads": 2,
    "n_embd": 24,
    "d_ff": 40,
    "block_size": 16,
    "vocab_size": 31,
    "attention_backend": "manual",
}

# Parameter counts of the published checkpoints, as their safetensors files hold them (GPT-2: openai-community on the
# Hugging Face hub, tied head once; Llama: meta-llama), and the sizes of their config.json that the preset leaves open.
PUBLISHED = {
    "gpt2": (124_439_808, {"arch_preset": "gpt2", "vocab_size": 50257}),
    "gpt2-medium": (
        354_823_168,
        {"arch_preset": "gpt2", "n_layer": 24, "n_head": 16, "n_embd": 1024, "vocab_size": 50257},
    ),
    "llama-2-7b": (
        6_738_415_616,
        {"arch_preset": "llama", "n_layer": 32, "n_head": 32, "n_embd": 4096, "vocab_size": 32000},
    ),
    "llama-2-13b": (
        13_015_864_320,
        {"arch_preset": "llama", "n_layer": 40, "n_head": 40, "n_embd": 5120, "vocab_size": 32000},
    ),
    "llama-3.1-8b": (
        8_030_261_248,
        {"arch_preset": "llama3", "n_layer": 32, "n_head": 32, "n_embd": 4096, "num_key_value_heads": 8},
    ),
    "llama-3.1-70b": (
        70_553_706_496,
        {"arch_preset": "llama3", "n_layer": 80, "n_head": 64, "n_embd": 8192, "num_key_value_heads": 8},
    ),
    "llama-3.1-405b": (
        405_853_388_800,
        {
            "arch_preset": "llama3",
            "n_layer": 126,
            "n_head": 128,
            "n_embd": 16384,
            "num_key_value_heads": 8,
            "d_ff": 53248,
        },
    ),
}
PUBLISHED_D_FF = {"gpt2-medium": 4096, "llama-2-7b": 11008, "llama-2-13b": 13824, "llama-3.1-70b": 28672}

# Which part of the cost each parameter of the module belongs to: by the first of these that its name has in it.
PARTS = {
    "position.": "position",
    "embedding.": "embedding",
    ".mixer.": "attention",
    ".ffn.router.": "router",
    ".ffn.shared_": "shared_experts",
    ".ffn.": "ffn",
    "norm.": "norms",
    "lm_head.": "lm_head",
}


def on_meta(config: ModelArchitectureConfig) -> LanguageModel:
    """The module without memory for its weights."""
    with torch.device("meta"):
        return LanguageModel(config)


def parameters_by_part(model: LanguageModel) -> dict[str, int]:
    counts = dict.fromkeys([*PARTS.values(), "mamba", "delta", "short_conv", "experts"], 0)
    for name, parameter in model.named_parameters():
        part = next(part for pattern, part in PARTS.items() if pattern in name)
        if part == "attention" and not isinstance(model.get_submodule(name.partition(".mixer.")[0]).mixer, Attention):
            part = "mamba"
        if part == "ffn" and isinstance(model.get_submodule(name.rpartition(".")[0]), StackedLinear):
            part = "experts"
        counts[part] += parameter.numel()
    of_experts = ("router", "experts", "shared_experts")  # which a model without them does not list
    return {part: count for part, count in counts.items() if count or part not in of_experts}


def cpu_flash_flops(query, key, value, *args, **kwargs) -> int:
    """FlopCounterMode does not know the CPU's fused attention: two products of every query with every key."""
    batch, heads, queries, width = query
    return 2 * 2 * batch * heads * queries * key[2] * width


def count_flops(config: ModelArchitectureConfig, batch: int, length: int, backward: bool) -> FlopCounterMode:
    model = build_model(config, seed=0)
    tokens = torch.randint(config.vocab_size, (batch, length))
    mapping = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: cpu_flash_flops}
    with FlopCounterMode(display=False, custom_mapping=mapping) as counter:
        if backward:
            model(tokens, tokens).total().backward()
        else:
            model(tokens)
    return counter


@st.composite
def architectures(draw) -> ModelArchitectureConfig:
    """Any architecture that makes sense, small, with sizes that no two have in common by habit."""
    position = draw(st.sampled_from(BUILT_IN["position_encoding"]))
    kv_heads, group = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    n_head = kv_heads * group
    head_dim = draw(st.integers(1, 3)) * (2 if position == "rope" else 1)
    ffn_type = draw(st.sampled_from(BUILT_IN["ffn_type"]))
    keys = {
        "arch_preset": "custom",
        "n_layer": draw(st.integers(1, 3)),
        "n_head": n_head,
        "num_key_value_heads": kv_heads,
        "n_embd": n_head * head_dim,
        "d_ff": draw(st.integers(1, 19)),
        "block_size": draw(st.integers(1, 12)),
        "vocab_size": draw(st.integers(2, 41)),
        "position_encoding": position,
        "ffn_type": ffn_type,
        "normalization": draw(st.sampled_from(BUILT_IN["normalization"])),
        "norm_position": draw(st.sampled_from(["pre", "post", "sandwich", "inside"])),
        "bias": draw(st.booleans()),
        "weight_tying": draw(st.booleans()),
        "attention_backend": "manual",
        "attention_sinks": draw(st.booleans()),
        "attention_output_gate": draw(st.sampled_from([None, "head", "element"])),
        "value_residual": draw(st.booleans()),
    }
    found = registry.spec("ffn_type", ffn_type)
    if found.name == "experts":
        keys |= draw(experts(keys.pop("d_ff")))
    elif not found.is_gated:
        keys["activation"] = draw(st.sampled_from(BUILT_IN["activation"]))
    return resolve_architecture(keys)


@st.composite
def experts(draw, width: int) -> dict[str, Any]:
    """Of the backends, not the grouped products, which the counter takes for 0 FLOPs."""
    count = draw(st.integers(1, 5))
    shared = draw(st.integers(0, 2))
    return {
        "expert_d_ff": width,
        "n_experts": count,
        "n_experts_per_token": draw(st.integers(1, count)),
        "n_shared_experts": shared,
        "shared_expert_gate": shared > 0 and draw(st.booleans()),
        "expert_bias": draw(st.booleans()),
        "router_scores": draw(st.sampled_from(["softmax", "sigmoid"])),
        "router_z_loss": draw(st.sampled_from([0.0, 0.1])),
        "experts_backend": draw(st.sampled_from(["loop", "segments"])),
    }


@settings(max_examples=80)
@given(config=architectures(), data=st.data())
def test_parameters_and_flops_equal_pytorchs_counts(config, data):
    length, batch = data.draw(st.integers(1, config.block_size)), data.draw(st.integers(1, 3))
    cost = model_cost(config, length)
    assert cost.parameters == parameters_by_part(on_meta(config))
    assert cost.n_params == sum(cost.parameters.values())
    forward = count_flops(config, batch, length, backward=False)
    assert cost.forward_flops() * batch * length == forward.get_total_flops()
    training = count_flops(config, batch, length, backward=True)
    assert cost.training_flops() * batch * length == training.get_total_flops()


@pytest.mark.parametrize("model", PUBLISHED)
def test_published_parameter_counts(model):
    published, keys = PUBLISHED[model]
    config = resolve_architecture({"vocab_size": 128256, **keys})
    assert config.d_ff == PUBLISHED_D_FF.get(model, config.d_ff)
    assert model_cost(config).n_params == published
    assert sum(parameter.numel() for parameter in on_meta(config).parameters()) == published


def test_the_causal_convention_counts_half_of_the_scores():
    """The two products with the scores are the manual backend's only batched ones."""
    config = resolve_architecture(TINY)
    cost = model_cost(config, 16)
    counted = count_flops(config, 3, 16, backward=False).get_flop_counts()["Global"]
    scores = counted[torch.ops.aten.bmm]
    assert scores > 0
    assert (cost.forward_flops("full") - cost.forward_flops("causal")) * 3 * 16 == scores // 2
    assert cost.training_flops("causal") == 3 * cost.forward_flops("causal")
    with pytest.raises(ValueError, match="convention"):
        cost.forward_flops("half")


def test_flops_of_a_llama_are_palms_formula():
    """Chowdhery et al. 2022, PaLM, appendix B: 6N + 12LHQT a token. N: the parameters of matrix products, the head's
    among them; a norm's weights and the look-up take part in none."""
    config = resolve_architecture({"arch_preset": "llama", "n_embd": 384, "n_head": 6, "vocab_size": 1000})
    cost = model_cost(config, 512)
    n = cost.n_params - cost.parameters["embedding"] - cost.parameters["norms"]
    assert cost.training_flops() == 6 * n + 12 * config.n_layer * config.n_head * config.head_dim * 512


def test_flops_of_gpt2_are_nanogpts_estimate_less_its_norms():
    """nanoGPT's N is all parameters but the positions': the tied embedding stands for the head, and the weights of
    norms, which are in no matrix product, are the whole difference."""
    config = resolve_architecture({"vocab_size": 50304})
    cost = model_cost(config)
    n = cost.n_params - cost.parameters["position"]
    nanogpt = 6 * n + 12 * config.n_layer * config.n_head * config.head_dim * config.block_size
    assert cost.training_flops() == nanogpt - 6 * 25 * 768


def test_attention_ffn_ratio():
    """Without biases, GPT-2's attention has 4 D^2 weights to the FFN's 8 D^2; the scores add 4 T D to 16 D^2 FLOPs."""
    cost = model_cost(resolve_architecture({"vocab_size": 65, "n_embd": 768, "n_head": 12}), 1024)
    assert cost.attention_ffn_ratio == pytest.approx((8 * 768 + 4 * 1024) / (16 * 768), rel=1e-12)


def test_a_vocabulary_that_is_not_known_is_refused():
    with pytest.raises(UserError, match="vocab_size"):
        model_cost(resolve_architecture({}))


# The registry


def size_of(kind: str, name: str, config: ModelArchitectureConfig) -> int:
    return sum(weights.size for weights in registry.spec(kind, name).all_weights(config))


def flops_of(kind: str, name: str, config: ModelArchitectureConfig, length: int) -> dict[str, int]:
    """Per token: of the matrix products, and of each part of the others."""
    spec, found = registry.spec(kind, name), dict[str, int]()
    found["matmul"] = sum(2 * weights.size for weights in spec.all_weights(config) if weights.multiplies)
    for product in spec.all_products(config, length):
        found[product.part] = found.get(product.part, 0) + product.flops
    return found


@pytest.mark.parametrize(("kind", "name"), COMPONENTS)
def test_every_component_takes_the_flops_that_its_spec_says(kind, name):
    """In a model, which is otherwise the plainest: all but this one component are counted elsewhere too.

    Without grouped queries: the CPU's fused kernel is then called with as many keys as queries. Of Mamba-2's backends
    only the names: its scan is counted below, and one of them needs a GPU.
    """
    chosen = {kind: name} if kind in architecture_keys() else {}
    if kind == "mamba_backend":
        assert flops_of(kind, name, resolve_architecture(TINY), 16) == {"matmul": 0}
        return
    sizes = {"expert_d_ff": 40, "d_ff": None} if name == "experts" else {}
    config = resolve_architecture(TINY | {"num_key_value_heads": None} | sizes | chosen)
    for backward in (False, True) if config.attention_backend == "manual" else (False,):
        flops = count_flops(config, 2, 16, backward).get_total_flops()
        cost = model_cost(config)
        assert (cost.training_flops() if backward else cost.forward_flops()) * 2 * 16 == flops


def mamba_architecture(**keys) -> ModelArchitectureConfig:
    """For mixers that are built by themselves, whatever the layers are."""
    sizes = {"mamba_head_dim": 8, "mamba_n_groups": 2, "mamba_chunk_size": 4, "mamba_d_conv": 3, "mamba_d_state": 5}
    return resolve_architecture(TINY).replace(**sizes | keys)


def count_convolutions(module: torch.nn.Module, batch: int, length: int) -> int:
    """Those of a mixer are shifted multiplications, which the counter does not see: as the kernels of their shapes."""
    with FlopCounterMode(display=False) as counter:
        for convolution in (m for m in module.modules() if isinstance(m, CausalConvolution)):
            channels, width = convolution.weight.shape
            before = torch.zeros(batch, channels, length + width - 1)
            torch.nn.functional.conv1d(before, convolution.weight[:, None], groups=channels)
    return counter.get_total_flops()


@pytest.mark.parametrize("length", [2, 4, 16])  # half a chunk, one, four
@pytest.mark.parametrize("keys", [{}, {"mamba_n_groups": 1, "mamba_chunk_size": 8, "bias": True}, {"mamba_n_heads": 4}])
def test_mamba_2_takes_the_flops_that_its_cost_says(keys, length):
    """Forward; and backward, which is twice forward where there are chunks to pass a state between."""
    config = mamba_architecture(**keys)
    module, cost = component("mixer", "mamba2")(config), flops_of("mixer", "mamba2", config, length)
    convolutions = count_convolutions(module, 3, length)
    x = torch.randn(3, length, 24, requires_grad=True)
    assert cost["convolution"] * 3 * length == convolutions
    per_pass = (cost["matmul"] + cost["scan"]) * 3 * length
    with FlopCounterMode(display=False) as counter:
        y = module(x)
    assert counter.get_total_flops() == per_pass
    if length > config.mamba_chunk_size:
        with FlopCounterMode(display=False) as backward:
            y.sum().backward()
        assert backward.get_total_flops() == 2 * per_pass
    assert cost.keys() == {"matmul", "convolution", "scan"}


def test_mamba_1_takes_the_flops_that_its_cost_says():
    """The scan's products one by one, as matrix products that the counter sees; the rest in the module, in which it
    sees the products with C as well."""
    config, batch, length = mamba_architecture(), 3, 16
    module, cost = component("mixer", "mamba1")(config), flops_of("mixer", "mamba1", config, length)
    state = torch.zeros(batch, 48, 5)
    with FlopCounterMode(display=False) as into_state:
        for _ in range(length):
            state = state + torch.randn(batch, 48, 1) @ torch.randn(batch, 1, 5)  # input and B
    with FlopCounterMode(display=False) as out_of_state:
        for _ in range(length):
            state @ torch.randn(batch, 5, 1)  # C
    assert cost["scan"] * batch * length == into_state.get_total_flops() + out_of_state.get_total_flops()
    assert cost["convolution"] * batch * length == count_convolutions(module, batch, length)
    with FlopCounterMode(display=False) as whole:
        module(torch.randn(batch, length, 24))
    assert whole.get_total_flops() - out_of_state.get_total_flops() == cost["matmul"] * batch * length
    assert cost.keys() == {"matmul", "convolution", "scan"}


def count_outside_of_products(name: str, heads: int, chunk: int, chunks: int, K: int) -> int:
    """Of all heads, what PyTorch's counter takes for 0 FLOPs: the inverses, by substitution row by row; and where
    decays are one a channel, the elementwise products of each token's query and key with its own key. As products that
    it sees."""
    with FlopCounterMode(display=False) as counter:
        inverse = torch.eye(chunk)
        for row in range(1, chunk):
            inverse[row] -= (torch.ones(1, row) @ inverse[:row])[0]
        if name == "kimi_delta":
            for _ in range(2 * chunk):
                torch.ones(1, K) @ torch.ones(K, 1)
    return heads * chunks * counter.get_total_flops()


@pytest.mark.parametrize("length", [3, 4, 16])  # of a chunk that is not full, of one, of four
@pytest.mark.parametrize("name", ["gated_delta", "kimi_delta"])
@pytest.mark.parametrize("keys", [{}, {"linear_value_head_dim": 3, "linear_chunk_size": 8}])
def test_delta_rules_take_the_flops_that_their_cost_says(name, keys, length):
    """Forward; and backward, which is twice forward, and the scores once more, which are computed again."""
    sizes = {"linear_num_value_heads": 3, "linear_key_head_dim": 5, "linear_chunk_size": 4}
    config = resolve_architecture(TINY).replace(**sizes | keys)
    module, cost = component("mixer", name)(config), flops_of("mixer", name, config, length)
    chunk = min(config.linear_chunk_size, {3: 4}.get(length, length))
    chunks = -(-length // chunk)
    tokens, counted = 2 * chunks * chunk, 2 * length  # of two sequences
    outside = count_outside_of_products(name, 3, chunk, 2 * chunks, 5)
    x = torch.randn(2, length, 24, requires_grad=True)
    assert cost["short_convolution"] * counted == count_convolutions(module, 2, length)
    with FlopCounterMode(display=False) as forward:
        y = module(x)
    projected, rule = cost["matmul"] * counted, cost["delta_rule"] * tokens
    assert forward.get_total_flops() + outside == projected + rule
    with FlopCounterMode(display=False) as backward:
        y.sum().backward()
    of_a_token = 2 * (2 * 5 * chunk) if name == "gated_delta" else 2 * (2 * 5 * (chunk - 1)) // 2
    assert backward.get_total_flops() == 2 * forward.get_total_flops() + 3 * tokens * of_a_token
    assert cost.keys() == {"matmul", "short_convolution", "delta_rule"}


@pytest.mark.parametrize("name", ["gated_delta", "kimi_delta"])
def test_a_delta_rule_decodes_by_its_recurrence(name):
    """Three products with the state, of every head: of the key, into it, of the query."""
    sizes = {"linear_num_value_heads": 3, "linear_key_head_dim": 5, "linear_value_head_dim": 7}
    config = resolve_architecture(TINY).replace(**sizes)
    found = registry.spec("mixer", name)
    with FlopCounterMode(display=False) as counter:
        state = torch.ones(3, 5, 7)
        read = torch.ones(3, 1, 5) @ state
        torch.ones(3, 1, 5) @ (state + torch.ones(3, 5, 1) @ read)
    for length in (1, 100):
        share = flops_of("mixer", name, config, length)["delta_rule"]
        assert share + found.decoding_difference(config, length) == counter.get_total_flops()


@pytest.mark.parametrize("name", ["mamba1", "mamba2"])
@pytest.mark.parametrize("keys", [{}, {"bias": True, "mamba_expand": 3, "mamba_n_groups": 1, "n_embd": 40}])
def test_mamba_has_the_parameters_that_its_cost_says(name, keys):
    config = mamba_architecture(**keys)
    module = component("mixer", name)(config)
    expected = sum(parameter.numel() for parameter in module.parameters())
    assert size_of("mixer", name, config) == expected


def test_the_walk_meets_every_kind_that_a_configuration_chooses():
    kinds = {"normalization", "activation", "position_encoding", "attention_backend", "ffn_type", "mixer"}
    kinds |= {"mamba_backend"}
    assert kinds <= set(registered())


@pytest.fixture
def own_registry():
    """What a test registers is forgotten after it."""
    with registry.kept():
        yield


USERS_COMPONENTS = """
import torch
from components.spec import FFN, Norm, Weights, vectors
from model_components import register, register_spec

n_layer, n_head, n_embd, block_size, vocab_size = 2, 2, 12, 8, 31
attention_backend = "manual"
normalization = "scaled_norm"
ffn_type = "one_matrix"


@register_spec
class ScaledNormSpec(Norm):
    name = "scaled_norm"

    def weights(self, config):
        return [*vectors("norm.weight", config.n_embd), *vectors("scale", 1)]


@register("normalization", "scaled_norm")
class ScaledNorm(torch.nn.Module):
    def __init__(self, config):
        super().__init__()
        self.norm = torch.nn.RMSNorm(config.n_embd)
        self.scale = torch.nn.Parameter(torch.empty(1))

    def reset_parameters(self):
        self.scale.data.fill_(1.5)

    def forward(self, x):
        return self.scale * self.norm(x)


@register_spec
class OneMatrixSpec(FFN):
    name = "one_matrix"

    def weights(self, config):
        matrix = Weights(("weight",), (config.n_embd, config.n_embd), multiplies=True, writes=True)
        return [matrix, *vectors("bias", config.n_embd)]


@register("ffn_type", "one_matrix")
class OneMatrix(torch.nn.Linear):
    def __init__(self, config):
        super().__init__(config.n_embd, config.n_embd)
"""


def test_a_users_own_components_are_planned_built_and_counted(own_registry, tmp_path):
    file = tmp_path / "own.py"
    file.write_text(USERS_COMPONENTS)
    configuration = load([str(file)])
    plan = plan_run(configuration, None)
    model = build_model(configuration.model, seed=0)
    assert model.blocks[1].ffn_norm.scale.item() == 1.5
    by_hand = 31 * 12 + 8 * 12 + 2 * (4 * 12 * 12) + 2 * (12 * 12 + 12) + 5 * 13
    assert plan.cost.n_params == sum(p.numel() for p in model.parameters()) == by_hand
    counted = count_flops(configuration.model, 2, 8, backward=True).get_total_flops()
    assert plan.flops_per_token["full"] * 2 * 8 == counted


def test_a_module_without_a_spec_is_refused(own_registry):
    with pytest.raises(UserError, match="activation 'uncounted' has no spec, so that nothing would count it"):
        register("activation", "uncounted")(lambda config: torch.nn.Tanh())
    with pytest.raises(UserError, match="activation='uncounted' is none of: gelu"):
        model_cost(resolve_architecture(TINY | {"activation": "uncounted"}))


def test_a_name_is_registered_once():
    with pytest.raises(UserError, match="activation 'gelu' is registered already"):
        register("activation", "gelu")(lambda config: torch.nn.Tanh())
    with pytest.raises(UserError, match="activation 'gelu' is registered already"):
        registry.register_spec(type("Gelu", (Activation,), {"name": "gelu"}))
