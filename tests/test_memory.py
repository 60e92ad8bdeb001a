"""The memory estimate against the tensors that autograd keeps and the bytes that PyTorch's allocator hands out."""

import contextlib
import itertools
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import UserError
from components import registry
from components.heads import spec as head
from components.mixers.mamba2.spec import hybrid_pattern
from components.parts import own_part
from components.quantized.module import flat
from components.registry import PRESETS
from components.spec import MicroBatch, Norm
from flops_parameter_counting.costs.memory import activation_bytes, training_memory
from flops_parameter_counting.costs.report import describe, memory_per_device
from flops_parameter_counting.costs.setting import COMPUTE_BYTES, STRATEGIES, Setting
from flops_parameter_counting.planner.space import SIZES, Grid
from interop.model_files import model_from_values
from model_builder import LanguageModel, build_model
from model_components import registered
from model_config import ModelArchitectureConfig, resolve_architecture

SMALL = {"n_layer": 3, "n_head": 4, "n_embd": 64, "block_size": 48, "vocab_size": 211}
OF_THREE_LAYERS = {  # with attention and its FFN, too
    "mamba1": {"layer_pattern": "SAS"},
    "mamba2": {"layer_pattern": "MAM"},
    "qwen3_next": {"layer_pattern": "DAD"},
    "kimi_linear": {"layer_pattern": "KCK"},
    "granite_hybrid": {"layer_pattern": "MAM"},
    "nemotron_h": {"layer_pattern": "MAM", "ffn_pattern": "F-F", "mamba_n_groups": 2},
}
BUILT_IN = [(kind, name) for kind, names in registered().items() for name in names]
DTYPES = ["float32", "bfloat16"]
ACTIVATIONS = ("gelu", "gelu_tanh", "quick_gelu", "silu", "relu", "relu_squared", "leaky_relu")


def autocast(dtype: str):
    return torch.autocast("cpu", torch.bfloat16) if dtype == "bfloat16" else contextlib.nullcontext()


@contextlib.contextmanager
def counting_kept_bytes(model: LanguageModel, exclude: tuple[torch.Tensor, ...] = ()):
    """Collects {storage: bytes} of everything that autograd keeps on this rank, except parameters and `exclude`."""
    parameters = flat(dict(model.named_parameters())).values()
    outside = {own_part(tensor.detach()).untyped_storage().data_ptr() for tensor in (*parameters, *exclude)}
    kept: dict[int, tuple[int, torch.Tensor]] = {}

    def pack(tensor):
        storage = own_part(tensor.detach()).untyped_storage()
        if storage.data_ptr() not in outside:
            kept[storage.data_ptr()] = (storage.nbytes(), tensor)  # the tensor keeps its address from being reused
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield kept


def kept_by_model(model: LanguageModel, batch_size: int, dtype: str) -> int:
    config = model.config
    tokens = torch.randint(config.vocab_size, (batch_size, config.block_size))
    with counting_kept_bytes(model) as kept, autocast(dtype):
        hidden = model.hidden(tokens)
    assert hidden.requires_grad
    return sum(size for size, _ in kept.values())


def kept_by_a_block(model: LanguageModel, batch_size: int, dtype: str, block: int = 0) -> int:
    """Besides its input and what the position encoding gives to all blocks."""
    config = model.config
    x = 1 * torch.randn(batch_size, config.block_size, config.n_embd, requires_grad=True)  # autocast caches leaves
    chosen = model.blocks[block]
    shared = {name: make(config.block_size, x.device) for name, make in chosen.shared.items()}
    handed = {}
    with autocast(dtype):
        if chosen.hands_on:  # and is no first one of its kind
            handed = {name: one.detach() for name, one in chosen(x, **shared)[3].items()}
    excluded = (x, *shared.get("rotation", ()), *handed.values())
    with counting_kept_bytes(model, exclude=excluded) as kept, autocast(dtype):
        chosen(x, **shared, **handed)
    return sum(size for size, _ in kept.values())


@pytest.mark.parametrize(
    ("family", "keys"),
    [
        ("llama", {}),
        ("mistral", {"sliding_window": None}),
        ("mistral", {"sliding_window": 48, "head_dim": 24}),
        ("mistral", {"sliding_window": 47}),
        ("qwen2", {}),
        ("qwen3", {"head_dim": 16}),
    ],
)
def test_activations_of_llamas_relatives_are_those_of_transformers_models(family, keys):
    """In float32: transformers' own casts under autocast are not ours. Windows as long as the sequence, biases of
    queries, keys and values, and wide heads change no formula."""
    transformers = pytest.importorskip("transformers")
    keys = {"hidden_size": 64, "intermediate_size": 176, "num_hidden_layers": 3, "num_attention_heads": 4,
            "num_key_value_heads": 4, "vocab_size": 211, "max_position_embeddings": 48} | keys  # fmt: skip
    theirs = transformers.AutoConfig.for_model(family, use_cache=False, **keys)
    model = transformers.AutoModel.from_config(theirs, attn_implementation="sdpa").train()
    with counting_kept_bytes(model) as kept:
        model(input_ids=torch.randint(211, (3, 48)))
    read = model_from_values({"model_type": family, **keys}, "a relative")
    found = describe(read, Setting(micro_batch=3, dtype="float32"))["memory"]
    assert found["not_known"] is None
    assert found["by_part"]["activations"] == pytest.approx(sum(size for size, _ in kept.values()), rel=0.05)


@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("backend", registered()["attention_backend"])
@pytest.mark.parametrize("preset", PRESETS)
def test_activations_of_the_presets(preset, backend, dtype, dropout):
    keys = {"arch_preset": preset, "attention_backend": backend, "dropout": dropout}
    if backend == "sdpa":
        keys |= {"attn_logit_softcapping": None, "attention_sinks": False}
    config = resolve_architecture(SMALL | keys | OF_THREE_LAYERS.get(preset, {}))
    estimate = training_memory(config, 3, dtype)["activations"]
    assert estimate == pytest.approx(kept_by_model(build_model(config, seed=0), 3, dtype), rel=0.05)


@st.composite
def latent_sizes(draw):
    """Values narrower than keys, as wide, or wider; not of one number, which lies in any order."""
    sizes = {name: draw(st.integers(2, 20)) for name in ("kv_lora_rank", "qk_nope_head_dim", "v_head_dim")}
    return sizes | {"q_lora_rank": draw(st.sampled_from([None, 11])), "qk_rope_head_dim": draw(st.sampled_from([4, 8]))}


@st.composite
def mixers(draw, n_layer, block_size):
    """Any pattern with attention in it, and FFNs after it (what no layer has is refused), and sizes of its mixers."""
    pattern = draw(st.text("AWUMSCDKV", min_size=n_layer - 1, max_size=n_layer - 1))
    keys = {"layer_pattern": "A" + pattern, "ffn_after": draw(st.sampled_from(["all", "attention"]))}
    if "W" in pattern:
        keys["attention_window"] = draw(st.integers(1, block_size))
    if "C" in pattern:
        keys |= draw(latent_sizes()) | {"partial_rotary_factor": 1.0}
    if "D" in pattern or "K" in pattern:
        keys |= {"linear_key_head_dim": draw(st.integers(1, 9)), "linear_value_head_dim": draw(st.integers(1, 9))}
        keys |= {"linear_num_value_heads": draw(st.sampled_from([2, 4]))}
        keys |= {"linear_conv_kernel_dim": draw(st.integers(1, 5))}
        keys |= {"linear_chunk_size": draw(st.sampled_from([1, 4, 16, 64]))}
    if "D" in pattern:
        keys["linear_num_key_heads"] = draw(st.integers(1, 2))
    if "M" in pattern:
        groups = draw(st.integers(1, 2))
        keys |= {"mamba_head_dim": draw(st.sampled_from([1, 2])), "mamba_n_groups": groups}
        keys |= {"mamba_chunk_size": draw(st.integers(1, 40))}
    if "M" in pattern or "S" in pattern:
        keys |= {"mamba_d_state": draw(st.integers(1, 9)), "mamba_d_conv": draw(st.integers(1, 5))}
        keys |= {"mamba_expand": draw(st.sampled_from([2, 4]))}
    return keys


@st.composite
def micro_batches(draw):
    """Any architecture, its sizes in any proportion, and a batch size and dtype."""
    position = draw(st.sampled_from(["learned_absolute", "rope", "alibi", "none"]))
    kv_heads, group = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    head_dim = draw(st.sampled_from([4, 6, 10]))  # of 2: rotated halves of 1 are laid out as no fused kernel takes them
    keys = {
        "arch_preset": "custom",
        "n_layer": draw(st.integers(1, 3)),
        "n_head": kv_heads * group,
        "num_key_value_heads": kv_heads,
        "n_embd": kv_heads * group * head_dim,
        "d_ff": draw(st.integers(1, 90)),
        "block_size": draw(st.integers(2, 33)),
        "vocab_size": 29,
        "position_encoding": position,
        "normalization": draw(st.sampled_from(registered()["normalization"])),
        "norm_position": draw(st.sampled_from(["pre", "post", "sandwich", "inside"])),
        "attention_backend": draw(st.sampled_from(["sdpa", "manual"])),
        "bias": draw(st.booleans()),
        "dropout": draw(st.sampled_from([0.0, 0.2])),
        "qk_norm": draw(st.sampled_from([False, True, "width"])),
        "attention_output_gate": draw(st.sampled_from([None, "head", "element"])),
        "value_residual": draw(st.booleans()),
    }
    keys["parallel_residual"] = keys["norm_position"] != "post" and draw(st.booleans())
    if keys["attention_backend"] == "manual":
        keys["attn_logit_softcapping"] = draw(st.sampled_from([None, 2.0]))
        keys["attention_sinks"] = draw(st.booleans())
    if position == "rope":
        keys["partial_rotary_factor"] = draw(st.sampled_from([1.0, 4 / head_dim]))
    if draw(st.booleans()):
        keys |= draw(mixers(keys["n_layer"], keys["block_size"]))
    ffn = draw(st.sampled_from(["swiglu", "swiglu_clamped", "geglu", *ACTIVATIONS]))
    keys |= {"activation": ffn} if ffn in ACTIVATIONS else {"ffn_type": ffn}
    return resolve_architecture(keys), draw(st.integers(2, 5)), draw(st.sampled_from(DTYPES))


@settings(max_examples=100)
@given(micro_batches())
def test_activations_of_any_architecture(micro_batch):
    config, batch_size, dtype = micro_batch
    estimate = training_memory(config, batch_size, dtype)["activations"]
    assert estimate == pytest.approx(kept_by_model(build_model(config, seed=0), batch_size, dtype), rel=0.05)


@pytest.mark.parametrize("norm_position", ["pre", "post", "sandwich", "inside"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("position", registered()["position_encoding"])
def test_activations_with_checkpointing(position, dtype, norm_position):
    """The blocks' inputs at the end of the forward pass, and all that one block keeps when it is computed again."""
    keys = {"arch_preset": "custom", "position_encoding": position, "norm_position": norm_position, "n_layer": 5}
    config, batch_size = resolve_architecture(SMALL | keys), 16
    model = build_model(config, seed=0, activation_checkpointing=True)
    measured = kept_by_model(model, batch_size, dtype) + kept_by_a_block(model, batch_size, dtype)
    estimate = training_memory(config, batch_size, dtype, activation_checkpointing=True)["activations"]
    assert estimate == pytest.approx(measured, rel=0.05)
    assert estimate < training_memory(config, batch_size, dtype)["activations"] / 2


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("groups", "heads"), [(1, None), (4, None), (4, 12)])
@pytest.mark.parametrize("pattern", ["M", "S", "MAS"])
def test_activations_of_mamba_layers_to_the_byte(pattern, groups, heads, dtype):
    """The sequence is no whole number of chunks."""
    keys = {"arch_preset": "mamba2", "layer_pattern": pattern, "block_size": 45, "n_layer": 6}
    if "M" in pattern:
        keys |= {"mamba_head_dim": 16, "mamba_n_groups": groups, "mamba_chunk_size": 16, "mamba_n_heads": heads}
    sizes = {key: size for key, size in SMALL.items() if key != "n_head" or "A" in pattern}
    assert_kept_to_the_byte(resolve_architecture(sizes | keys), dtype)


def assert_kept_to_the_byte(config: ModelArchitectureConfig, dtype: str) -> None:
    """With checkpointing the largest of the first three blocks, which are all kinds that there are, counts besides."""
    estimate = training_memory(config, 3, dtype)["activations"]
    assert estimate == kept_by_model(build_model(config, seed=0), 3, dtype)
    model = build_model(config, seed=0, activation_checkpointing=True)
    largest = max(kept_by_a_block(model, 3, dtype, block) for block in range(3))
    estimate = training_memory(config, 3, dtype, activation_checkpointing=True)["activations"]
    assert estimate == pytest.approx(kept_by_model(model, 3, dtype) + largest, rel=1e-3)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("keys", [{}, {"linear_num_key_heads": 2, "linear_conv_kernel_dim": 1}])
@pytest.mark.parametrize("pattern", ["D", "K", "DAK"])
def test_activations_of_delta_rules_to_the_byte(pattern, keys, dtype):
    """The sequence is no whole number of chunks, and of chunks of 64 tokens not one."""
    keys = {name: value for name, value in keys.items() if "D" in pattern or name != "linear_num_key_heads"}
    keys |= {"arch_preset": "mamba2", "layer_pattern": pattern, "block_size": 45, "n_layer": 6}
    sizes = {key: size for key, size in SMALL.items() if key != "n_head" or "A" in pattern}
    of_rules = {"linear_num_value_heads": 4, "linear_key_head_dim": 24, "linear_value_head_dim": 12}
    for chunk in (16, 64):
        assert_kept_to_the_byte(resolve_architecture(sizes | of_rules | {"linear_chunk_size": chunk} | keys), dtype)


@pytest.mark.parametrize("keys", [{"attn_logit_softcapping": 2.0}, {"attention_sinks": True}])
def test_latent_attention_has_no_cap_and_no_sinks_of_the_attention_beside_it(keys):
    latent = {"kv_lora_rank": 8, "qk_nope_head_dim": 6, "qk_rope_head_dim": 4, "v_head_dim": 5}
    chosen = {"arch_preset": "custom", "layer_pattern": "ACA", "attention_backend": "manual"}
    config = resolve_architecture(SMALL | chosen | latent | keys)
    assert training_memory(config, 2, "float32")["activations"] == kept_by_model(
        build_model(config, seed=0), 2, "float32"
    )


GATES_OF_OUTPUT = [None, "head", "element"]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("position", ["learned_absolute", "rope", "alibi"])
@pytest.mark.parametrize("backend", registered()["attention_backend"])
def test_activations_of_gates_sinks_and_value_residuals_to_the_byte(backend, position, dropout, dtype):
    """In layers of three kinds, with grouped queries; with checkpointing what is handed on is kept beside inputs."""
    for gate, residual, sinks in itertools.product(GATES_OF_OUTPUT, [False, True], [False, backend == "manual"]):
        keys = {"attention_output_gate": gate, "value_residual": residual, "attention_sinks": sinks}
        keys |= {"num_key_value_heads": 2, "attention_backend": backend, "position_encoding": position}
        pattern = {"layer_pattern": "WAU", "attention_window": 9, "dropout": dropout}
        config = resolve_architecture(SMALL | {"arch_preset": "llama3"} | keys | pattern)
        model = build_model(config, seed=0)
        assert training_memory(config, 2, dtype)["activations"] == kept_by_model(model, 2, dtype), keys


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("keys", [{"ffn_type": "swiglu_clamped", "bias": True}, {"activation": "quick_gelu"}])
def test_activations_of_gpt_osss_ffn_to_the_byte(keys, dtype):
    config = resolve_architecture(SMALL | {"arch_preset": "custom", "d_ff": 88} | keys)
    assert training_memory(config, 2, dtype)["activations"] == kept_by_model(build_model(config, seed=0), 2, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("pattern", "block"), [("AAAA", 1), ("MAMA", 0), ("MMMA", 0)])
def test_what_a_block_hands_to_later_ones_is_kept_with_checkpointing(pattern, block, dtype):
    """Once, beside the blocks' inputs; and nothing where there is no later one. `block` is the largest."""
    keys = {"arch_preset": "llama3", "value_residual": True, "layer_pattern": pattern, "n_layer": 4}
    config = resolve_architecture(SMALL | keys | ({"mamba_head_dim": 16} if "M" in pattern else {}))
    model, handed = build_model(config, seed=0, activation_checkpointing=True), []
    handles = [b.register_forward_hook(lambda m, args, output: handed.extend(output[3].values())) for b in model.blocks]
    measured = kept_by_model(model, 2, dtype)
    for handle in handles:
        handle.remove()
    (values,) = handed
    assert values.nbytes == 2 * 48 * 64 * COMPUTE_BYTES[dtype]  # two sequences of 48 tokens, as wide as the stream
    angles = 2 * 48 * 8 * 4  # keywords of a checkpointed function are held, but not by autograd: these, and the values
    measured += angles + values.nbytes * (pattern.count("A") > 1) + kept_by_a_block(model, 2, dtype, block)
    assert training_memory(config, 2, dtype, activation_checkpointing=True)["activations"] == measured


@settings(max_examples=60)
@given(latent_sizes(), st.integers(1, 3), st.sampled_from(registered()["position_encoding"]), st.data())
def test_activations_of_latent_attention_to_the_byte(sizes, heads, position, data):
    """Of both backends, in float32 and bfloat16, with and without dropout, for one head, too; and beside a layer of
    attention that turns as many numbers, or other ones."""
    keys = {
        "normalization": data.draw(st.sampled_from(["rmsnorm", "rmsnorm_zero_centred"])),
        "attention_backend": data.draw(st.sampled_from(registered()["attention_backend"])),
        "dropout": data.draw(st.sampled_from([0.0, 0.1])),
        "bias": data.draw(st.booleans()),
        "layer_pattern": data.draw(st.sampled_from(["C", "CCA"])),
    }
    if "A" in keys["layer_pattern"]:
        keys |= {"head_dim": 8, "num_key_value_heads": heads, "dropout": 0.0}
    shape = {"n_layer": 3, "n_head": heads, "n_embd": 32, "block_size": 21, "vocab_size": 29}
    config = resolve_architecture({"arch_preset": "custom", "position_encoding": position, **shape, **keys, **sizes})
    for dtype in DTYPES:
        estimate = training_memory(config, 2, dtype)["activations"]
        assert estimate == kept_by_model(build_model(config, seed=0), 2, dtype)


# Peaks, by the allocator's own record


def allocation_peak(function) -> int:
    """The most bytes that were allocated at once since the start of `function`, scratch of kernels included."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        kept_alive = function()
    del kept_alive
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    sizes = [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]  # freed ones are negative
    return max(itertools.accumulate(sizes))


PEAKS = {
    "small vocabulary": {"arch_preset": "gpt2", "vocab_size": 65},
    "one chunk of logits": {"arch_preset": "llama", "vocab_size": 2500},
    "many chunks of logits": {"arch_preset": "llama3", "vocab_size": 20000, "n_layer": 2},
    "bounded logits": {"arch_preset": "gemma2", "vocab_size": 20000, "n_layer": 2, "attn_logit_softcapping": None},
    "more logits than weights": {"arch_preset": "team", "vocab_size": 15000, "n_embd": 16},
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("keys", PEAKS.values(), ids=PEAKS)
def test_the_peak_of_a_forward_pass_is_activations_and_loss(keys, dtype, monkeypatch):
    monkeypatch.setattr(head, "CHUNK_BYTES", 8 * 2**20)  # as for a vocabulary eight times larger
    config = resolve_architecture({"n_layer": 4, "n_head": 4, "n_embd": 128, "block_size": 128} | keys)
    model, tokens = build_model(config, seed=0), torch.randint(config.vocab_size, (4, 128))

    def forward():
        with autocast(dtype):
            return model(tokens, tokens).mean

    estimate = training_memory(config, 4, dtype)
    forward()  # what the first call alone allocates is none of the model's
    assert estimate["activations"] + estimate["logits"] == pytest.approx(allocation_peak(forward), rel=0.05)


def test_autocast_holds_all_cast_weights_until_the_loss_is_there():
    """So with checkpointing, a short batch through a wide model is held by its weights' copies."""
    config = resolve_architecture(
        {"arch_preset": "llama", "n_layer": 8, "n_embd": 256, "n_head": 4, "block_size": 32, "vocab_size": 65}
    )
    model = build_model(config, seed=0, activation_checkpointing=True)
    tokens = torch.randint(65, (1, 32))

    def forward():
        with autocast("bfloat16"):
            return model(tokens, tokens).mean

    forward()
    estimate = training_memory(config, 1, "bfloat16", activation_checkpointing=True)
    assert estimate["activations"] + estimate["logits"] == pytest.approx(allocation_peak(forward), rel=0.05)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("each", [False, True], ids=["sum", "each target's loss"])
def test_a_whole_step_stays_within_the_sum(dtype, checkpointing, each):
    """Everything but the weights is allocated within the first step, and is there at once only in part. What an
    objective makes of each target's loss needs no more."""
    config = resolve_architecture(
        {"arch_preset": "team", "n_layer": 4, "n_head": 4, "n_embd": 128}
        | {
            "block_size": 128,
            "vocab_size": 1000,
        }
    )
    model, tokens = build_model(config, seed=0, activation_checkpointing=checkpointing), torch.randint(1000, (4, 128))
    optimizer = torch.optim.AdamW(model.parameters(), foreach=False)

    def step():
        for _ in range(2):  # micro-batches: the second runs beside the gradients of the first
            with autocast(dtype):
                loss = model(tokens, tokens, each=each).mean
            loss.sum().backward()
        optimizer.step()

    estimate = training_memory(config, 4, dtype, checkpointing)
    allocated = allocation_peak(step)
    without_weights = sum(estimate.values()) - estimate["weights"]
    assert allocated < without_weights
    assert allocated > max(estimate["gradients"] + estimate["optimizer"], 0.5 * without_weights)


def test_weights_gradients_and_optimizer_are_float32():
    config = resolve_architecture(SMALL)
    model, tokens = build_model(config, seed=0), torch.randint(211, (1, 48))
    optimizer = torch.optim.AdamW(model.parameters())
    model(tokens, tokens).total().backward()
    optimizer.step()
    size = {
        "weights": sum(p.nbytes for p in model.parameters()),
        "gradients": sum(p.grad.nbytes for p in model.parameters()),
        "optimizer": sum(t.nbytes for state in optimizer.state.values() for t in state.values() if t.ndim > 0),
    }
    estimate = training_memory(config, 1, "bfloat16")
    assert {part: estimate[part] for part in size} == size


@pytest.mark.parametrize(
    ("vocab_size", "width", "rows"),
    [(256, 192, 65536), (50304, 192, 333), (50304, 768, 768), (128256, 2048, 2048), (128256, 16384, 2048)],
)
def test_tokens_whose_logits_are_computed_at_a_time(vocab_size, width, rows):
    """64 MiB of float32 logits, at least 2,048 tokens' or as many as the head is wide."""
    assert head.loss_rows(vocab_size, width) == rows


def test_llama3s_vocabulary_costs_its_table_and_not_its_logits():
    """Its gradient, a cast, a product that is added and a cast of that, and 768 tokens' logits with their gradient, as
    many as it is wide. The float32 logits of all 12 x 1,024 tokens, and their gradient, would be 32 tables."""
    config = resolve_architecture({"arch_preset": "llama3", "n_embd": 768, "n_head": 12, "vocab_size": 128256})
    loss = training_memory(config, 12, "bfloat16")["logits"]
    table = 4 * 128256 * 768
    assert table < loss < 5 * table


@pytest.mark.parametrize("chunks", [1, 24, 25, 26, 32, 50, 64])
def test_the_states_between_chunks_are_kept_once(chunks):
    """However many there are: beyond 24 they pass on in groups, whose number need not divide them."""
    sizes = {"n_layer": 2, "n_embd": 32, "mamba_d_state": 16, "mamba_head_dim": 16, "mamba_chunk_size": 4}
    config = resolve_architecture({"arch_preset": "mamba2", "vocab_size": 29, "block_size": 4 * chunks, **sizes})
    kept = kept_by_model(build_model(config, seed=0), 2, "float32")
    assert training_memory(config, 2, "float32")["activations"] == kept


# A whole grid at once


@st.composite
def grids(draw):
    """Architectures of the same components: their configurations, and the same as arrays."""
    config, batch_size, _ = draw(micro_batches())
    shapes = draw(st.lists(st.tuples(st.integers(2, 9), *[st.integers(1, 9)] * 4), min_size=1, max_size=4))
    pattern = draw(st.sampled_from(["A", "W", "M", "S", "C", "D", "K", "V"]))
    ratio = draw(st.sampled_from([None, 0.375, 0.5, 0.8]))
    sizes = {"attention_window": 3, "mamba_head_dim": 2, "mamba_n_groups": 1}
    config = config.replace(**sizes, layer_pattern=pattern, n_layer=1)
    configs = [
        config.replace(
            n_layer=layers,
            layer_pattern=pattern * layers if ratio is None else hybrid_pattern(layers, ratio),
            n_head=kv * group,
            num_key_value_heads=kv,
            head_dim=2 * half,
            n_embd=2 * half * kv * group,
            d_ff=7 * d_ff,
        )
        for layers, kv, group, half, d_ff in shapes
    ]
    arrays = {name: np.array([getattr(one, name) for one in configs]) for name in (*SIZES, "head_dim")}
    layers = dict.fromkeys(layer for one in configs for layer in one.layer_counts)
    counts = {layer: np.array([one.layer_counts.get(layer, 0) for one in configs]) for layer in layers}
    return configs, Grid(counts, **(config.as_dict() | arrays)), batch_size


@settings(max_examples=150)
@given(
    grids(),
    st.sampled_from([*COMPUTE_BYTES, "tf32"]),
    st.sampled_from(list(STRATEGIES)),
    st.integers(1, 9),
    st.booleans(),
    st.sampled_from([np.int64, float]),
)
def test_a_grid_needs_what_each_of_its_architectures_needs(made, dtype, strategy, devices, checkpointing, kind):
    """To the byte, in integers and in floats, with every component, strategy and dtype."""
    configs, grid, batch_size = made
    training = Setting(
        micro_batch=batch_size, dtype=dtype, strategy=strategy, devices=devices, activation_checkpointing=checkpointing
    )
    grid = grid.changed(lambda values: values.astype(kind))
    parts = memory_per_device(grid, grid.block_size, training)["by_part"]
    for index, config in enumerate(configs):
        alone = memory_per_device(config, config.block_size, training)["by_part"]
        assert all(type(size) is int for size in alone.values())
        assert {part: np.broadcast_to(size, len(configs))[index] for part, size in parts.items()} == alone


# The registry


def test_every_component_has_its_memory_written():
    config = resolve_architecture(SMALL | {"ffn_pattern": "FFE", "expert_d_ff": 24})
    batch = MicroBatch(config, 2, COMPUTE_BYTES["float32"])
    for kind, name in BUILT_IN:
        assert registry.spec(kind, name).kept(batch) >= 0


def test_a_component_whose_memory_is_not_known_is_named():
    with registry.kept():
        registry.register_spec(type("Unwritten", (Norm,), {"name": "unwritten"}))
        config = resolve_architecture(SMALL | {"arch_preset": "custom", "normalization": "unwritten"})
        with pytest.raises(UserError, match="the memory of normalization='unwritten' is not known"):
            activation_bytes(MicroBatch(config, 2, 4), checkpointing=False)


# What a process has had


def test_a_process_has_its_own_peak():
    """Not that of the large one which began it, which Linux gives its `getrusage`."""
    program = "from common.memory import peak_of_process\n{}\nprint(peak_of_process())"
    alone, filled = program.format(""), program.format("bytearray(b'1') * 300_000_000")
    large = "import subprocess, sys\nkept = bytearray(b'1') * 600_000_000\n"
    large += f"subprocess.run([sys.executable, '-c', {alone!r}])"
    peaks = {
        one: int(subprocess.run([sys.executable, "-c", one], cwd=ROOT, capture_output=True, check=True).stdout)
        for one in (alone, filled, large)
    }
    assert 1e6 < peaks[alone] < 100e6 and 290e6 < peaks[filled] - peaks[alone] < 330e6
    if sys.platform == "linux":
        assert peaks[large] < 100e6
