"""Configurations of published families: what is counted from a config.json against the models that transformers
builds from it, and what a mistake in one says."""

import json

import pytest
import torch
from commands import command
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from common.errors import UserError
from common.json_files import read_json
from flops_parameter_counting import detailed_cost_analysis
from flops_parameter_counting.costs.model_cost import model_cost
from flops_parameter_counting.costs.report import describe
from flops_parameter_counting.costs.setting import Setting
from interop import hugging_face
from interop.configurations import FAMILIES
from interop.hugging_face import architecture_from_hugging_face
from interop.known_keys import HARMLESS, OF_OTHERS
from interop.model_files import model_from_values, read_model
from model_builder import LanguageModel
from model_config import resolve_architecture

transformers = pytest.importorskip("transformers")

GPT2 = {"n_layer": 2, "n_head": 2, "n_embd": 16, "n_positions": 32, "vocab_size": 31}
TRANSFORMER = {
    "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 31, "max_position_embeddings": 64,
}  # fmt: skip
MAMBA2 = {"num_heads": 6, "head_dim": 8, "n_groups": 2, "state_size": 5}
DEEPSEEK = {
    **TRANSFORMER, "num_key_value_heads": 4, "moe_intermediate_size": 12, "n_routed_experts": 8, "n_group": 2,
    "topk_group": 1, "num_experts_per_tok": 3, "n_shared_experts": 2, "first_k_dense_replace": 1, "q_lora_rank": None,
    "kv_lora_rank": 8, "qk_nope_head_dim": 6, "qk_rope_head_dim": 4, "v_head_dim": 3,
}  # fmt: skip
SMALL = {
    "gpt2": GPT2,
    "llama": {**TRANSFORMER, "attention_bias": True, "head_dim": 8},
    "mistral": {**TRANSFORMER, "sliding_window": None},
    "qwen2": TRANSFORMER,
    "qwen3": {**TRANSFORMER, "head_dim": 8},
    "phi3": {**TRANSFORMER, "pad_token_id": None},
    "smollm3": {**TRANSFORMER, "num_hidden_layers": 4, "pad_token_id": None},
    "gpt_neox": {key: value for key, value in TRANSFORMER.items() if key != "num_key_value_heads"},
    "gemma2": {**TRANSFORMER, "head_dim": 8, "pad_token_id": None},
    "gemma3_text": {**TRANSFORMER, "head_dim": 8, "pad_token_id": None},
    "olmo2": {**TRANSFORMER, "pad_token_id": None},
    "olmo3": {**TRANSFORMER, "pad_token_id": None},
    "granite": TRANSFORMER,
    "mixtral": {**TRANSFORMER, "num_local_experts": 4},
    "qwen3_moe": {
        **TRANSFORMER, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 12, "head_dim": 8,
        "mlp_only_layers": [1],
    },
    "qwen3_next": {
        **TRANSFORMER, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 12, "head_dim": 8,
        "shared_expert_intermediate_size": 24, "mlp_only_layers": [1], "full_attention_interval": 2,
        "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 6, "linear_value_head_dim": 5,
    },
    "kimi_linear": {
        **{key: value for key, value in DEEPSEEK.items() if key != "n_routed_experts"}, "num_local_experts": 8,
        "linear_num_heads": 3, "linear_head_dim": 5, "pad_token_id": None,
        "layer_types": ["linear_attention", "full_attention", "linear_attention"],
    },
    "olmoe": {**TRANSFORMER, "num_experts": 4, "num_experts_per_tok": 2},
    "gpt_oss": {**TRANSFORMER, "num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 8},
    "mamba": {"hidden_size": 24, "num_hidden_layers": 2, "vocab_size": 31, "state_size": 5, "time_step_rank": 3},
    "mamba2": {"hidden_size": 24, "num_hidden_layers": 2, "vocab_size": 31, "chunk_size": 4, **MAMBA2},
    "bamba": {
        **TRANSFORMER, "attn_layer_indices": [1], "mamba_n_heads": 6, "mamba_d_head": 8, "mamba_n_groups": 2,
        "mamba_d_state": 5, "mamba_chunk_size": 4,
    },
    "granitemoehybrid": {
        **TRANSFORMER, "num_local_experts": 4, "num_experts_per_tok": 2, "shared_intermediate_size": 80,
        "layer_types": ["mamba", "attention", "mamba"], "mamba_n_heads": 6, "mamba_d_head": 8, "mamba_n_groups": 2,
        "mamba_d_state": 5, "mamba_chunk_size": 4,
    },
    "nemotron_h": {
        **{key: value for key, value in TRANSFORMER.items() if key != "num_hidden_layers"},
        "layers_block_type": ["mamba", "attention", "mlp", "mamba"], "head_dim": 7, "mamba_num_heads": 4,
        "mamba_head_dim": 9, "n_groups": 2, "ssm_state_size": 5, "chunk_size": 4, "pad_token_id": None,
    },
    "deepseek_v2": DEEPSEEK,
    "deepseek_v3": {**DEEPSEEK, "q_lora_rank": 9},
}  # fmt: skip


def complete(family: str, keys: dict) -> dict:
    """What transformers writes into config.json, every key of the family among them."""
    return transformers.AutoConfig.for_model(family, bos_token_id=0, eos_token_id=0, **keys).to_dict()


def build(family: str, keys: dict):
    return built_of(transformers.AutoConfig.for_model(family, bos_token_id=0, eos_token_id=0, **keys))


def built_of(config):
    experts = (
        {"experts_implementation": "eager"}
        if "num_experts_per_tok" in SMALL[config.model_type] or (config.model_type == "mixtral")
        else {}
    )
    return transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager", **experts).eval()


def written(family: str, keys: dict, folder) -> dict:
    """The file that save_pretrained writes, as JSON says it."""
    transformers.AutoConfig.for_model(family, **keys).save_pretrained(folder)
    return json.loads((folder / "config.json").read_text())


def read(values: dict):
    return model_from_values(values, "test").architecture


def found(family: str, keys: dict, length: int) -> dict:
    """What is said of a model."""
    model = model_from_values({"model_type": family, **keys}, "test")
    return describe(model, Setting(sequence_length=length, dtype="float32"))


def test_every_family_is_tested():
    assert SMALL.keys() == FAMILIES.keys()


# Parameters


@pytest.mark.parametrize("family", SMALL)
@pytest.mark.parametrize("tied", [True, False])
def test_parameters_are_those_of_transformers_model(family, tied):
    keys = {**SMALL[family], "tie_word_embeddings": tied}
    counted = sum(parameter.numel() for parameter in build(family, keys).parameters())
    for values in ({"model_type": family, **keys}, complete(family, keys)):
        assert model_cost(read(values), 16).n_params == counted


@settings(max_examples=25)
@given(data=st.data())
def test_parameters_of_any_sizes(data):
    """Llama, Qwen 2 and 3, Bamba and DeepSeek with sizes that share nothing by habit."""
    draw = data.draw
    family = draw(st.sampled_from(["llama", "qwen2", "qwen3", "bamba", "deepseek_v2", "deepseek_v3"]))
    kv_heads, layers = draw(st.integers(1, 2)), draw(st.integers(1, 3))
    heads = kv_heads * draw(st.integers(1, 3))
    keys = {**SMALL[family], "num_hidden_layers": layers, "num_attention_heads": heads}
    keys |= {"num_key_value_heads": kv_heads, "hidden_size": 24 * heads, "intermediate_size": draw(st.integers(1, 50))}
    keys |= {"vocab_size": draw(st.integers(2, 50)), "tie_word_embeddings": draw(st.booleans())}
    if family == "bamba":
        expand = draw(st.integers(1, 2))
        keys |= {"mamba_expand": expand, "mamba_d_head": 2 * expand, "mamba_n_heads": 12 * heads}
        keys |= {"attn_layer_indices": draw(st.lists(st.integers(0, layers - 1), unique=True))}
    if family.startswith("deepseek"):
        keys |= {"num_key_value_heads": heads, "first_k_dense_replace": draw(st.integers(0, layers))}
        keys |= {"q_lora_rank": draw(st.sampled_from([None, 5])), "n_shared_experts": draw(st.integers(1, 3))}
    with torch.device("meta"):
        model = build(family, keys)
    counted = sum(parameter.numel() for parameter in model.parameters())
    assert model_cost(read({"model_type": family, **keys}), 8).n_params == counted


@pytest.mark.parametrize("family", SMALL)
def test_a_key_that_a_file_leaves_out_has_the_default_of_transformers_class(family, tmp_path):
    """Every single one of what save_pretrained writes of a model of real width: the sizes that every model has are
    missed by name."""
    experts = {"num_experts_per_tok": 6} if family.startswith("deepseek") else {}
    blocks = {"layers_block_type": ["mamba", "attention", "mlp", "mamba"]} if family == "nemotron_h" else {}
    experts |= {"intermediate_size": 512} if family == "granitemoehybrid" else {}  # of which a shared one has several
    file = written(family, {"num_hidden_layers": 5, **experts} | blocks, tmp_path)
    for key in file.keys() - {"model_type", *blocks}:  # by default some of these blocks are experts without gates
        values = {name: value for name, value in file.items() if name != key}
        if key in FAMILIES[family].required:
            with pytest.raises(UserError, match=f"needs {key}, which is missing"):
                read(values)
            continue
        (tmp_path / "config.json").write_text(json.dumps(values))
        with torch.device("meta"):
            theirs = built_of(transformers.AutoConfig.from_pretrained(tmp_path))
        counted = sum(parameter.numel() for parameter in theirs.parameters())
        assert model_cost(read(values), 16).n_params == counted, key


@pytest.mark.parametrize("family", SMALL)
def test_the_defaults_are_those_of_transformers_class(family):
    """Those that it derives from other keys apart, which are None or `auto` here, and what it does not have."""
    theirs, own = transformers.CONFIG_MAPPING[family].__dataclass_fields__, FAMILIES[family]
    for key, default in (own.counted | own.function).items():
        if key in theirs and default is not None and key != "time_step_limit":
            assert default == theirs[key].default, key
    sizes = {key for key in own.required if key in theirs}
    assert sizes == set(own.required)


@pytest.mark.parametrize(
    ("family", "keys"),
    [
        ("deepseek_v2", {"mlp_bias": True, "attention_bias": True}),  # of shared experts too
        ("deepseek_v2", {"num_experts": 4, "n_routed_experts": 4}),
        ("nemotron_h", {"mlp_bias": True, "use_bias": True, "use_conv_bias": False}),
        ("nemotron_h", {"layers_block_type": None, "hybrid_override_pattern": "*-M-M", "mamba_d_conv": 2}),
        ("granitemoehybrid", {"attention_bias": True, "mamba_proj_bias": True, "mamba_conv_bias": False}),
        ("granitemoehybrid", {"num_local_experts": 0, "num_experts_per_tok": 0, "position_embedding_type": "nope"}),
        ("gpt2", {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 32}),
    ],
)
def test_biases_and_other_names_of_keys(family, keys):
    with torch.device("meta"):
        counted = sum(parameter.numel() for parameter in build(family, SMALL[family] | keys).parameters())
    assert model_cost(read({"model_type": family, **SMALL[family], **keys}), 16).n_params == counted
    if family == "gpt2":
        assert read({"model_type": family, **keys, "vocab_size": 31}) == read({"model_type": family, **GPT2})
        with pytest.raises(UserError, match="hidden_size=24 contradicts n_embd=16, whose other name it is"):
            read({"model_type": family, **GPT2, "hidden_size": 24})


@pytest.mark.parametrize("family", SMALL)
def test_a_model_without_an_lm_head_is_not_counted_as_one_with_it(family):
    base = {"model_type": family, **SMALL[family]}
    with torch.device("meta"):
        config = transformers.AutoConfig.for_model(**base)
        bare = type(transformers.AutoModel.from_config(config)).__name__
    for name in (bare, f"{family.title()}ForSequenceClassification", "GPT2DoubleHeadsModel"):
        reason = "has no LM head" if name == bare else "has another head than a language model"
        with pytest.raises(UserError, match=f"'{name}' {reason}, which is not counted here; without this key"):
            read({**base, "architectures": [name]})
    for names in (None, [], [type(build(family, SMALL[family])).__name__], ["GPT2LMHeadModel"]):
        assert read({**base, "architectures": names}) == read(base)


def test_active_parameters_leave_out_the_experts_that_a_token_does_not_meet():
    cost = model_cost(read({"model_type": "deepseek_v2", **DEEPSEEK}), 8)
    expert = 3 * 24 * 12  # gate, up, down
    assert cost.n_params - cost.n_active == 2 * (8 - 3) * expert
    assert {part for part in cost.parameters if cost.active[part] != cost.parameters[part]} == {"experts"}


# FLOPs


def counted_flops(family: str, batch: int, length: int) -> dict[str, int]:
    """Forward, by PyTorch's operator."""
    tokens = torch.randint(31, (batch, length))
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        build(family, SMALL[family])(tokens)
    return {str(operator): flops for operator, flops in counter.get_flop_counts()["Global"].items()}


@pytest.mark.parametrize("family", ["gpt2", "llama", "mistral", "qwen2", "qwen3", "deepseek_v2", "deepseek_v3"])
def test_flops_are_those_that_pytorch_counts(family):
    cost = model_cost(read({"model_type": family, **SMALL[family]}), 12)
    counted = counted_flops(family, 2, 12)
    assert 2 * 12 * cost.forward_flops() == sum(counted.values())
    assert 2 * 12 * cost.flops["attention_scores"] == counted["aten.bmm"]
    assert cost.flops_by_part("causal") == {**cost.flops, "attention_scores": cost.flops["attention_scores"] // 2}


@pytest.mark.parametrize("family", ["mamba", "mamba2", "bamba"])
def test_projections_and_convolutions_of_state_spaces_are_those_that_pytorch_counts(family):
    """The reference implementations convolve three padding positions too, and compute the scan in ways of their own,
    which the counter sees in part: of Mamba's the product that reads the state, half of its products. Those of Mamba-2
    are written out: 2 layers, 48 channels, 2 groups of 5 numbers of state, chunks of 4."""
    parts = model_cost(read({"model_type": family, **SMALL[family]}), 12).flops
    counted = counted_flops(family, 2, 12)
    matrices = sum(parts.get(part, 0) for part in ("mamba_projections", "attention_projections", "ffn", "lm_head"))
    assert 2 * 12 * matrices == counted["aten.mm"]
    convolution = counted["aten.convolution"] / (2 * (12 + 3))
    products = 2 * (2 * 4 * 2 * 5 + 2 * 4 * 48 + 4 * 48 * 5)
    if family == "mamba":
        products = 2 * counted["aten.bmm"] / (2 * 12)
    assert parts["convolution"] == convolution and parts["scan"] == products


def test_a_token_of_a_state_space_model_costs_the_same_at_any_length():
    config = read({"model_type": "mamba2", **SMALL["mamba2"]})
    assert model_cost(config, 7) == model_cost(config, 7000)
    short, long = (found("mamba2", SMALL["mamba2"], length) for length in (7, 7000))
    assert short["memory"]["cache"] == long["memory"]["cache"]
    estimates = long["flops_per_token"]["estimates"]
    assert estimates["6N+12LHQT"] == estimates["6N"]


@given(length=st.integers(1, 60), window=st.integers(1, 80))
def test_a_sliding_window_bounds_the_keys_that_a_query_meets(length, window):
    """Full: as many keys for every query as it may ever meet. Causal: the pairs of the triangle, up to its edge, which
    the convention halves."""
    values = {**TRANSFORMER, "sliding_window": window}
    cost, keys = model_cost(read({"model_type": "mistral", **values}), length), min(length, window)
    pair = 3 * 4 * 24  # layers, FLOPs of a pair for each element of a head, width
    assert cost.flops["attention_scores"] == pair * keys
    pairs = sum(min(query, window) for query in range(1, length + 1))
    causal = cost.flops_by_part("causal")["attention_scores"]
    assert causal * length == pytest.approx(pair * (pairs - keys / 2), abs=3 * length)
    assert cache_elements("mistral", values, length) == {"keys_and_values": 3 * 2 * min(length, window - 1) * 12}


def test_qwens_first_layers_have_no_window():
    keys = {**TRANSFORMER, "use_sliding_window": True, "sliding_window": 5, "max_window_layers": 2}
    config = read({"model_type": "qwen2", **keys})
    assert [layer.mixer for layer in config.layers] == ["attention", "attention", "sliding_attention"]
    assert read(complete("qwen2", keys)).layers == config.layers
    assert all(layer.mixer == "attention" for layer in read({"model_type": "qwen2", **TRANSFORMER}).layers)


# Cache


def cache_elements(family: str, keys: dict, length: int) -> dict[str, int]:
    """By part, in all layers."""
    cache = found(family, keys, length)["memory"]["cache"]
    return {part: size // 4 for part, size in cache["by_part"].items()}


def size_of(value) -> int:
    """Bytes of all tensors in a cache's layer, however it names them."""
    if isinstance(value, torch.Tensor):
        return value.nbytes if value.ndim else 0  # what it counts the tokens with
    return sum(map(size_of, value.values())) if isinstance(value, dict) else 0


WINDOWS = [
    ("mistral", {"sliding_window": 5}),
    ("mistral", {"sliding_window": 50}),
    ("qwen2", {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 2}),
]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("family", "more"), [*((family, {}) for family in SMALL), *WINDOWS])
def test_the_cache_is_as_large_as_that_of_transformers(family, more, dtype):
    """In bytes: a state-space layer's state is float32 there whatever the model's dtype is."""
    keys = SMALL[family] | more
    model = build(family, keys).to(getattr(torch, dtype))
    with torch.no_grad():
        output = model(torch.zeros(1, 9, dtype=torch.long), use_cache=True)
    cache = output.cache_params if family.startswith("mamba") else output.past_key_values
    model = model_from_values({"model_type": family, **keys}, "test")
    counted = describe(model, Setting(sequence_length=9, dtype=dtype))
    held = sum(size_of(vars(layer)) for layer in cache.layers)
    assert counted["memory"]["cache"]["bytes_per_sequence"] == held
    assert counted["decoding"]["bytes_by_part"]["cache"] == held


def test_latent_attention_caches_one_latent_vector_and_one_rotated_key_a_token():
    assert cache_elements("deepseek_v2", DEEPSEEK, 9) == {"latent_keys_and_values": 3 * 9 * (8 + 4)}


# What train.py can build


def test_llama_and_gpt2_are_our_presets():
    llama = read({"model_type": "llama", **TRANSFORMER})
    ours = resolve_architecture(
        {"arch_preset": "llama", "n_layer": 3, "n_head": 4, "num_key_value_heads": 2, "n_embd": 24, "d_ff": 40,
         "block_size": 64, "vocab_size": 31}
    )  # fmt: skip
    assert model_cost(llama) == model_cost(ours)
    gpt2 = read({"model_type": "gpt2", **GPT2})
    sizes = {"n_layer": 2, "n_head": 2, "n_embd": 16, "block_size": 32, "vocab_size": 31}
    assert model_cost(gpt2) == model_cost(resolve_architecture({"arch_preset": "gpt2", **sizes}))


@pytest.mark.parametrize(
    ("family", "keys", "ours"),
    [
        ("mamba", {"time_step_rank": "auto"}, {"arch_preset": "mamba1", "n_layer": 2}),
        ("mamba2", {"tie_word_embeddings": True}, {"arch_preset": "mamba2", "n_layer": 2}),
        (
            "bamba",
            {},
            {"arch_preset": "hybrid", "n_layer": 3, "layer_pattern": "MAM", "n_head": 4, "num_key_value_heads": 2}
            | {"d_ff": 40, "weight_tying": False},
        ),
    ],
)
def test_mambas_are_our_presets(family, keys, ours):
    """With costs as of our own keys, part by part; chunks of 4 as in the file."""
    sizes = {"n_embd": 24, "vocab_size": 31, "mamba_d_state": 5}
    if family != "mamba":
        sizes |= {"mamba_head_dim": 8, "mamba_n_groups": 2, "mamba_chunk_size": 4}
    theirs, config = read({"model_type": family, **SMALL[family], **keys}), resolve_architecture(sizes | ours)
    for length in (3, 12):
        assert model_cost(theirs, length) == model_cost(config, length)


OTHERS = [  # beside those of SMALL
    ("mamba", {"use_bias": True}),
    ("mamba", {"use_conv_bias": False}),
    ("mamba2", {"use_bias": True, "use_conv_bias": False}),
    ("bamba", {"mamba_proj_bias": True, "mlp_bias": True, "attention_bias": True}),
    ("llama", {"mlp_bias": True, "attention_bias": False}),
    ("mistral", {"sliding_window": 5, "head_dim": 10}),
    ("qwen2", {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 2}),
]


@pytest.mark.parametrize(("family", "keys"), [*((family, {}) for family in SMALL), *OTHERS])
def test_what_is_built_of_a_file_has_the_parameters_of_transformers_model(family, keys):
    """By their shapes: ours has its matrices apart where theirs are one below the other."""
    keys = {**SMALL[family], **keys}
    with torch.device("meta"):
        ours, theirs = LanguageModel(read({"model_type": family, **keys})), build(family, keys)
    biases = [
        sum(parameter.numel() for name, parameter in model.named_parameters() if name.endswith("bias"))
        for model in (ours, theirs)
    ]
    assert biases[0] == biases[1]
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters())


# Files


def test_an_empty_ssm_cfg_says_nothing():
    """The checkpoints of state-spaces/mamba-*-hf have one beside their model_type."""
    keys = {"model_type": "mamba", **SMALL["mamba"]}
    assert read(keys | {"ssm_cfg": {}}) == read(keys)
    with pytest.raises(UserError, match="ssm_cfg="):
        read(keys | {"ssm_cfg": {"layer": "Mamba2"}})


NO_VALUE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3) | st.just(10**400),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=2), inner, max_size=2),
    max_leaves=4,
)


@settings(max_examples=400)
@given(data=st.data(), value=NO_VALUE)
def test_any_value_of_any_key_is_counted_or_refused(data, value):
    family = data.draw(st.sampled_from(sorted(FAMILIES)))
    known = {*FAMILIES[family].required, *FAMILIES[family].counted, "model_type", "rope_scaling", "architectures"}
    values = {"model_type": family, **SMALL[family], data.draw(st.sampled_from(sorted(known))): value}
    try:
        cost = model_cost(read(values), 16)
    except UserError as error:
        assert "\n" not in str(error)
    else:
        assert cost.n_params > 0


@pytest.mark.parametrize("family", SMALL)
def test_a_folder_is_read_by_its_configuration(family, tmp_path):
    folder = tmp_path / "the model"
    expected = model_cost(read(written(family, SMALL[family], folder)), 16).n_params
    found = tmp_path / "found.json"
    done = command(detailed_cost_analysis.main, "--model_config", folder, "--sequence_length=16", "--json", found)
    assert done.returncode == 0 and done.stdout.startswith(f"the model ({family}), "), done.stderr
    assert json.loads(found.read_text())["parameters"]["total"] == expected
    done = command(detailed_cost_analysis.main, "--model_config", tmp_path)
    assert done.returncode == 2 and f"error: {tmp_path}/config.json: cannot read it: No such file" in done.stderr


def test_comments_are_no_part_of_json(tmp_path):
    file = tmp_path / "config.json"
    file.write_text('{ // one "quoted"\n "a//b": "/* kept */ \\" // kept", /* two\nlines */ "c": [1, 2]}\n// end')
    assert read_json(file) == {"a//b": '/* kept */ " // kept', "c": [1, 2]}
    file.write_text('{ /* two\nlines */\n "a": oops}')
    with pytest.raises(UserError, match="line 3"):
        read_json(file)


def test_a_runs_own_config_json_is_read(tmp_path):
    from configurator import as_dict, load

    configuration = load(["--n_layer=2", "--n_embd=64", "--n_head=2", "--vocab_size=99"])
    file = tmp_path / "config.json"
    file.write_text(json.dumps(as_dict(configuration)))
    assert read_model(file).architecture == configuration.model


def test_the_original_mambas_configuration():
    """state-spaces/mamba's format: the vocabulary is padded, sizes that are left out are its own defaults."""
    theirs = {"d_model": 32, "n_layer": 2, "vocab_size": 61, "pad_vocab_size_multiple": 16}
    ours = {"model_type": "mamba", "hidden_size": 32, "num_hidden_layers": 2, "vocab_size": 64}
    assert read({**theirs, "ssm_cfg": {}}) == read(ours)
    details = {"layer": "Mamba2", "d_state": 4, "headdim": 16, "ngroups": 2}
    sizes = {"state_size": 4, "head_dim": 16, "n_groups": 2, "num_heads": 4, "tie_word_embeddings": True}
    assert read({**theirs, "ssm_cfg": details}) == read({**ours, **sizes, "model_type": "mamba2"})


PUBLIC_FILES = {  # as they stand on the Hugging Face hub: one without a model_type, one with keys of no effect
    354_823_168: """{"architectures": ["GPT2LMHeadModel"], "attn_pdrop": 0.1, "embd_pdrop": 0.1,
        "initializer_range": 0.02, "layer_norm_epsilon": 1e-05, "n_ctx": 1024, "n_embd": 1024, "n_head": 16,
        "n_layer": 24, "n_positions": 1024, "n_special": 0, "predict_special_tokens": true, "resid_pdrop": 0.1,
        "vocab_size": 50257}""",
    494_032_768: """{"architectures": ["Qwen2ForCausalLM"], "attention_dropout": 0.0, "bos_token_id": 151643,
        "eos_token_id": 151643, "hidden_act": "silu", "hidden_size": 896, "initializer_range": 0.02,
        "intermediate_size": 4864, "max_position_embeddings": 32768, "max_window_layers": 24, "model_type": "qwen2",
        "num_attention_heads": 14, "num_hidden_layers": 24, "num_key_value_heads": 2, "rms_norm_eps": 1e-06,
        "rope_theta": 1000000.0, "sliding_window": 32768, "tie_word_embeddings": true, "torch_dtype": "bfloat16",
        "transformers_version": "4.40.1", "use_cache": true, "use_mrope": false, "use_sliding_window": false,
        "vocab_size": 151936}""",
    9_780_235_392: """{"architectures": ["BambaForCausalLM"], "attention_dropout": 0.0,
        "attn_layer_indices": [9, 18, 27], "attn_rotary_emb": 64, "bos_token_id": 128000, "eos_token_id": 128001,
        "hidden_act": "silu", "hidden_size": 4096, "initializer_range": 0.02, "intermediate_size": 14336,
        "mamba_chunk_size": 256, "mamba_conv_bias": true, "mamba_d_conv": 4, "mamba_d_head": 64, "mamba_d_state": 128,
        "mamba_dt_rank": 256, "mamba_expand": 2, "mamba_n_groups": 1, "mamba_n_heads": 128, "mamba_proj_bias": false,
        "model_type": "bamba", "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 8,
        "num_logits_to_keep": 1, "pad_token_id": 0, "rms_norm_eps": 1e-05, "tie_word_embeddings": false,
        "transformers_version": "4.47.0.dev0", "use_cache": true, "use_mamba_kernels": true, "vocab_size": 128256}""",
    128_989_632: """{"d_model": 768, "d_intermediate": 0, "n_layer": 24, "vocab_size": 50277,
        "ssm_cfg": {"layer": "Mamba2"}, "attn_layer_idx": [], "attn_cfg": {}, "rms_norm": true,
        "residual_in_fp32": true, "fused_add_norm": true, "pad_vocab_size_multiple": 16, "tie_embeddings": true}""",
}


@pytest.mark.parametrize("parameters", PUBLIC_FILES)
def test_public_files_are_read_as_they_are(tmp_path, parameters):
    file = tmp_path / "config.json"
    file.write_text(PUBLIC_FILES[parameters])
    assert model_cost(read_model(file).architecture, 1).n_params == parameters


@pytest.mark.parametrize(
    ("family", "change", "message"),
    [
        ("llama", {"hidden_size": None}, "hidden_size=None: expected a whole number"),
        ("llama", {"hidden_size": 25, "head_dim": None}, "hidden_size=25 is not divisible by num_attention_heads=4"),
        ("llama", {"head_dim": None, "num_key_value_heads": 3}, "not divisible by num_key_value_heads=3"),
        ("llama", {"num_hidden_layers": 0}, "num_hidden_layers=0: expected a whole number from 1"),
        ("llama", {"num_hidden_layers": 10**12}, "num_hidden_layers=1000000000000: expected"),
        ("llama", {"vocab_size": 31.5}, "vocab_size=31.5"),
        ("llama", {"intermediate_size": "40"}, "intermediate_size='40'"),
        ("llama", {"hiden_size": 24}, "unknown key 'hiden_size' of a llama configuration (did you mean 'hidden_size'"),
        ("llama", {"tie_word_embeddings": "yes"}, "tie_word_embeddings='yes': expected true or false"),
        ("llama", {"is_encoder_decoder": True}, "is_encoder_decoder=True cannot be represented; only False can"),
        ("llama", {"model_type": "lama"}, "did you mean 'llama'"),
        ("gpt2", {"n_ctx": 16}, "n_ctx=16 contradicts n_positions = 32"),
        ("gpt2", {"n_embd": 15}, "n_embd=15 is not divisible by n_head=2"),
        ("qwen2", {"layer_types": ["full_attention"]}, "layer_types contradicts"),
        ("mamba", {"intermediate_size": 40}, "intermediate_size=40 contradicts expand x hidden_size = 48"),
        ("mamba2", {"num_heads": 5}, "num_heads x head_dim = 40 contradicts expand x hidden_size"),
        ("bamba", {"attn_layer_indices": [3]}, "names a layer that is none of 0 to 2"),
        ("bamba", {"mamba_d_head": 4}, "mamba_d_head=4 contradicts"),
        ("granitemoehybrid", {"shared_intermediate_size": 41}, "=41 is not divisible by intermediate_size=40"),
        ("granitemoehybrid", {"num_experts_per_tok": 5}, "num_experts_per_tok=5 is more than num_local_experts=4"),
        ("granitemoehybrid", {"num_experts_per_tok": 0}, "num_experts_per_tok=0: expected a whole number from 1"),
        ("granitemoehybrid", {"layer_types": ["mamba", "mlp", "mamba"]}, "layer_types contradicts num_hidden_layers=3"),
        ("granitemoehybrid", {"mamba_d_head": 4}, "mamba_d_head=4 contradicts"),
        ("nemotron_h", {"layers_block_type": None}, "needs layers_block_type or hybrid_override_pattern"),
        ("nemotron_h", {"layers_block_type": ["mlp", "mamba"]}, "'-M': an FFN that follows no mixer cannot be repr"),
        ("nemotron_h", {"layers_block_type": ["attention", "mlp", "mlp"]}, "'*--': an FFN that follows no mixer"),
        (
            "nemotron_h",
            {"layers_block_type": ["attention", "moe"]},
            "moe layers have no gates, and cannot be represented",
        ),
        ("nemotron_h", {"layers_block_type": ["attention", 3]}, "layers_block_type must be made of: linear_attention"),
        ("nemotron_h", {"layers_block_type": None, "hybrid_override_pattern": "M|*"}, "'|' is none of: M, *, -, E"),
        ("nemotron_h", {"num_hidden_layers": 5}, "num_hidden_layers=5 contradicts the number of layers_block_type = 4"),
        ("nemotron_h", {"n_groups": 3}, "mamba_num_heads=4 is not divisible by n_groups=3"),
        ("nemotron_h", {"attention_bias": True}, "attention_bias=True cannot be represented; only False can"),
        ("deepseek_v2", {"num_experts_per_tok": 9}, "num_experts_per_tok=9 is more than n_routed_experts=8"),
        ("deepseek_v2", {"first_k_dense_replace": 4}, "first_k_dense_replace=4 is more than num_hidden_layers=3"),
        ("deepseek_v2", {"num_key_value_heads": 2}, "num_key_value_heads=2 contradicts num_attention_heads = 4"),
        ("deepseek_v2", {"moe_layer_freq": 2}, "moe_layer_freq=2 cannot be represented; only 1 can"),
    ],
)
def test_a_wrong_configuration_is_refused_by_the_name_of_its_key(family, change, message):
    with pytest.raises(UserError) as refused:
        read({"model_type": family, **SMALL[family], **change})
    assert message in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize("family", SMALL)
def test_every_required_key_is_missed_by_name(family):
    for key in FAMILIES[family].required:
        values = {"model_type": family, **SMALL[family]}
        del values[key]
        with pytest.raises(UserError, match=f"a {family} configuration needs {key}, which is missing"):
            read(values)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1]", "it holds no object"),
        ("{", "line 1"),
        ("{}", "no model_type"),
        ('{"model_type": "llama", "model_type": "gpt2"}', "model_type is given 2 times"),
        ('{"n_layer": 2, "n_heads": 2}', "unknown key 'n_heads' (did you mean 'n_head'"),
        ('{"d_model": 8, "n_layer": 1, "vocab_size": 8, "ssm_cfg": {"layer": "Mamba3"}}', "none of: Mamba1, Mamba2"),
        ('{"d_model": 8, "n_layer": 1, "vocab_size": 8, "ssm_cfg": {"dstate": 4}}', "did you mean 'd_state'"),
        ('{"d_model": 8, "n_layer": 1, "vocab_size": 8, "ssm_cfg": {}, "attn_layer_idx": [0]}', "attn_layer_idx"),
        ('{"d_model": 8, "n_layer": 1, "ssm_cfg": {}}', "needs vocab_size"),
    ],
)
def test_a_wrong_file_is_named(tmp_path, text, message):
    file = tmp_path / "config.json"
    file.write_text(text)
    with pytest.raises(UserError) as refused:
        read_model(file)
    assert str(refused.value).startswith(f"{file}: ") and message in str(refused.value)


def test_what_was_assumed_is_noted():
    notes = " ".join(model_from_values({"model_type": "mistral", **TRANSFORMER}, "m").notes)
    assert "sliding_window=4096" in notes
    assert model_from_values({**complete("llama", TRANSFORMER)}, "m").notes == ()
    deepseek = {"model_type": "deepseek_v3", **DEEPSEEK, "num_nextn_predict_layers": 1}
    assert any("further tokens are not counted" in note for note in model_from_values(deepseek, "m").notes)


# One reader for the planner and for weights

EXACT = {name: SMALL[name] for name in hugging_face.FAMILIES}
EXACT["bamba"] = {
    **SMALL["bamba"],
    "rope_parameters": {"partial_rotary_factor": 1.0},
}  # of half a head, 3, are no pairs
EXACT["granitemoehybrid"] = {**SMALL["granitemoehybrid"], "position_embedding_type": "rope"}
EXACT["gpt_neox"] = {**SMALL["gpt_neox"], "rope_parameters": {"partial_rotary_factor": 1.0}}
EXACT["deepseek_v2"] = {**SMALL["deepseek_v2"], "topk_method": "group_limited_greedy", "topk_group": 2}
EXACT["deepseek_v3"] = {**SMALL["deepseek_v3"], "topk_group": 2}
# What transformers ignores too: V2's scores are never divided by their sum, nor could its pairs lie apart.
IGNORED = {("bamba", "partial_rotary_factor"), ("deepseek_v2", "rope_interleave"), ("deepseek_v2", "norm_topk_prob")}


def refusal(reader, values: dict) -> str:
    with pytest.raises(UserError) as refused:
        reader(values)
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_what_has_weights_has_details():
    assert FAMILIES.keys() == EXACT.keys()


@pytest.mark.parametrize("family", EXACT)
def test_an_unknown_key_that_could_be_a_size_is_refused_by_both_readers(family):
    """Those of other families among them."""
    others = {key for other in FAMILIES.values() for key in other.known} - FAMILIES[family].known - OF_OTHERS
    assert others
    for key in ("hiden_size", "", *others):
        for value in (7, True, "x", 0.5, [1], {"a": 1}):
            values = {"model_type": family, **EXACT[family], key: value}
            messages = {refusal(reader, values) for reader in (read, architecture_from_hugging_face)}
            assert len(messages) == 1 and f"unknown key {key!r} of a {family} configuration" in messages.pop()


@pytest.mark.parametrize("family", SMALL)
def test_a_harmless_key_changes_neither_reading(family):
    """Nor does an unknown one that says nothing, or is some library's private one; these are named in a note."""
    readers = (read, architecture_from_hugging_face) if family in EXACT else (read,)
    base, own = {"model_type": family, **(SMALL | EXACT)[family]}, FAMILIES[family]
    anything, nothing = (None, True, 7, "x", [1], {"a": 1}), (None, False, 0, "", [], {})
    tried = [(key, value) for key in (HARMLESS | OF_OTHERS) - own.decisive - {"architectures"} for value in anything]
    tried += [("_of_some_library", value) for value in anything] + [("some_switch", value) for value in nothing]
    for key, value in tried:
        if key not in own.function:
            for reader in readers:
                assert reader({**base, key: value}) == reader(base), key
    said = model_from_values({**base, **dict(tried)}, "test").notes
    for key in {key for key, _ in tried}:
        assert any(f" {key}=" in note for note in said) == (key not in own.known)


OF_REAL_FILES = {
    "is_llama_config": True, "_num_labels": 3, "rope_interleaved": False, "n_special": 0,
    "predict_special_tokens": True, "is_decoder": True, "tokenizer_class": "LlamaTokenizerFast", "torchscript": True,
    "max_length": 20, "auto_map": {"AutoModelForCausalLM": "modeling_own.Own"}, "unsloth_fixed": True,
    "_attn_implementation_autoset": True, "some_null": None,
}  # fmt: skip


@pytest.mark.parametrize("family", SMALL)
def test_keys_of_real_files_that_change_nothing_are_named_in_a_note(family):
    base = {"model_type": family, **(SMALL | EXACT)[family]}
    more = OF_REAL_FILES | ({} if "attention_bias" in FAMILIES[family].known else {"attention_bias": False})
    found = model_from_values(base | more, "test")
    assert found.architecture == read(base)
    (note,) = [note for note in found.notes if "passed over" in note]
    assert note.startswith(f"keys of no {family} in transformers that change no shape, passed over: is_llama_config=")
    assert all(f" {key}=" in note for key in more)
    if family in EXACT:
        assert architecture_from_hugging_face(base | more) == architecture_from_hugging_face(base)


@pytest.mark.parametrize("family", EXACT)
def test_null_says_nothing(family):
    """Under any key that has one value only here."""
    base, own = {"model_type": family, **EXACT[family]}, FAMILIES[family]
    for key in (*own.fixed, "quantization_config", "is_encoder_decoder", "add_cross_attention"):
        for reader in (read, architecture_from_hugging_face):
            assert reader({**base, key: None}) == reader(base)


def test_a_misspelt_key_of_the_counts_is_no_unknown_switch():
    """Even one that says false; null says nothing to anyone."""
    base = {"model_type": "llama", **SMALL["llama"]}
    with pytest.raises(UserError, match=r"unknown key 'tie_word_embedings' .* \(did you mean 'tie_word_embeddings'"):
        read(base | {"tie_word_embedings": False})
    assert read(base | {"tie_word_embedings": None}) == read(base)


def test_attention_in_chunks_that_transformers_does_not_read_is_noted():
    """Of Qwen's models for a million tokens: others than transformers read it."""
    base = {"model_type": "qwen2", **SMALL["qwen2"]}
    found = model_from_values(base | {"dual_chunk_attention_config": {"chunk_size": 4, "local_size": 2}}, "test")
    assert found.architecture == read(base) and any("dual_chunk_attention_config" in note for note in found.notes)


@pytest.mark.parametrize("family", SMALL)
def test_a_key_of_the_function_changes_no_count_and_is_not_passed_over(family):
    base, own = {"model_type": family, **(SMALL | EXACT)[family]}, FAMILIES[family]
    for key in own.function | own.fixed | {"quantization_config": None, "dual_chunk_attention_config": None}:
        values = {**base, key: {"partial_rotary_factor": 1.0, "a": 1}}
        assert read(values) == read(base)
        if family in EXACT and (family, key) not in IGNORED:
            assert key in refusal(architecture_from_hugging_face, values)


@pytest.mark.parametrize("family", EXACT)
def test_both_readers_say_the_same_of_a_wrong_count(family):
    base, own = {"model_type": family, **EXACT[family]}, FAMILIES[family]
    for key in (*own.required, *own.counted, "is_encoder_decoder", "add_cross_attention"):
        values = {**base, key: 1.5}
        assert refusal(read, values) == refusal(architecture_from_hugging_face, values)


@pytest.mark.parametrize("family", ["llama", "bamba"])
def test_no_number_of_kv_heads_means_as_many_as_of_queries(family):
    assert complete(family, {**EXACT[family], "num_key_value_heads": None})["num_key_value_heads"] == 4
    base = {"model_type": family, **EXACT[family]}
    for reader in (read, architecture_from_hugging_face):
        assert reader({**base, "num_key_value_heads": None}) == reader({**base, "num_key_value_heads": 4})


@settings(max_examples=300)
@given(data=st.data())
def test_what_is_read_exactly_has_as_many_parameters_as_are_counted(data):
    draw = data.draw
    family = draw(st.sampled_from(sorted(EXACT)))
    own, values = FAMILIES[family], {"model_type": family, **EXACT[family]}
    keys = st.sampled_from(sorted({*own.required, *own.counted, *own.function}))
    value = (
        st.integers(0, 8).map(lambda number: 8 * number or 1) | st.booleans() | st.sampled_from(["gelu", "silu", 0.1])
    )
    values |= draw(st.dictionaries(keys, value, max_size=3))
    try:
        exact = architecture_from_hugging_face(values)
    except UserError:
        return
    assert model_cost(exact, 8).n_params == model_cost(read(values), 8).n_params
