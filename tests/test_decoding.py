"""Decoding: what the caches give is what the whole text gives, for every pattern of mixers and every position encoding.

Tolerances: 1e-10 in float64 and 1e-5 in float32, absolute, for logits of the order of one (which is asserted).
"""

import itertools

import pytest
import torch
from commands import command
from conftest import training
from hypothesis import given
from hypothesis import strategies as st

import checkpoint
import sample
from components import registry
from data.tokenizers import tokenizer_from_meta
from flops_parameter_counting.costs.report import describe
from flops_parameter_counting.costs.setting import Model, Setting
from inference.generation import generate
from inference.sampling import Sampling, distribution, draw
from model_builder import Block, build_model
from model_config import resolve_architecture

TOLERANCE = {torch.float64: {"rtol": 0.0, "atol": 1e-10}, torch.float32: {"rtol": 0.0, "atol": 1e-5}}
BLOCK = 24
SMALL = {
    "n_head": 4,
    "n_embd": 32,
    "block_size": BLOCK,
    "vocab_size": 61,
    "mamba_head_dim": 16,
    "mamba_d_state": 8,
    "mamba_n_groups": 2,
    "mamba_chunk_size": 4,
    "attention_window": 5,
    "num_key_value_heads": 2,
    "rope_theta": 100.0,
    "attention_backend": "manual",
    "kv_lora_rank": 8,
    "qk_nope_head_dim": 6,
    "qk_rope_head_dim": 4,
    "v_head_dim": 5,
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 6,
    "linear_value_head_dim": 5,
    "linear_chunk_size": 4,
}
ONLY_IN = {  # what a model without such layers refuses
    "AWUC": ("n_head", "attention_backend"),
    "AWU": ("num_key_value_heads", "qk_norm", "attention_output_gate", "value_residual", "attention_sinks"),
    "AWC": ("rope_theta", "partial_rotary_factor"),
    "C": ("q_lora_rank", "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"),
    "W": ("attention_window",),
    "DK": ("linear_num_value_heads", "linear_key_head_dim", "linear_value_head_dim", "linear_conv_kernel_dim",
           "linear_chunk_size"),
    "D": ("linear_num_key_heads",),
    "M": ("mamba_head_dim", "mamba_n_groups", "mamba_chunk_size"),
    "MS": ("mamba_d_state",),
}  # fmt: skip


def small_model(pattern, dtype=torch.float64, **keys):
    """With every parameter random, norms and biases too, and as large as those of a trained one."""
    idle = {key for letters, names in ONLY_IN.items() if not set(letters) & set(pattern) for key in names}
    given = {key: value for key, value in (SMALL | keys).items() if key not in idle}
    config = resolve_architecture({"layer_pattern": pattern, "n_layer": len(pattern), **given})
    model = build_model(config, seed=0)
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not name.endswith(("A_log", "dt_bias", "dt_proj.bias")):  # steps above 1 would forget everything
                parameter += 0.15 * torch.randn(parameter.shape)
    return model.to(dtype).eval()


@torch.no_grad()
def in_pieces(model, tokens, cuts):
    """The logits, of the pieces that end at the cuts one after the other."""
    caches = model.empty_caches(len(tokens), tokens.shape[1])
    bounds = [0, *cuts, tokens.shape[1]]
    pieces = [tokens[:, start:end] for start, end in itertools.pairwise(bounds)]
    return torch.cat([model(piece, caches=caches) for piece in pieces], dim=1)


@st.composite
def models(draw):
    pattern = draw(st.text("AMSWUCDK", min_size=1, max_size=4))
    attends = set(pattern) & set("AWU")
    places = set(pattern) & set("AWC")
    keys = {
        "position_encoding": draw(
            st.sampled_from(["learned_absolute", "none"] + (["rope", "alibi"] if places else []))
        ),
        "norm_position": draw(st.sampled_from(["pre", "post", "sandwich", "inside"])),
        "ffn_after": draw(st.sampled_from(["all", "attention", "mamba"])),
        "parallel_residual": draw(st.booleans()),
        "final_logit_softcapping": draw(st.sampled_from([None, 8.0])),
        "partial_rotary_factor": draw(st.sampled_from([0.5, 1.0] if "C" in pattern else [0.25, 0.5, 1.0])),
        "normalization": draw(st.sampled_from(["layernorm", "rmsnorm", "rmsnorm_zero_centred"])),
        "bias": draw(st.booleans()),
        "num_key_value_heads": draw(st.sampled_from([1, 2, 4])),
        "attention_window": draw(st.integers(1, BLOCK + 2)),
        "attention_backend": draw(st.sampled_from(["sdpa", "manual"])),
        "qk_norm": draw(st.sampled_from([False, True, "width"])) if attends else False,
        "attention_output_gate": draw(st.sampled_from([None, "head", "element"])),
        "value_residual": draw(st.booleans()),
        "q_lora_rank": draw(st.sampled_from([None, 7])),
        "linear_conv_kernel_dim": draw(st.integers(1, 4)),
        "mamba_d_conv": draw(st.integers(1, 4)) if set(pattern) & set("MS") else 4,
    }
    keys["attention_sinks"] = keys["attention_backend"] == "manual" and draw(st.booleans())
    return pattern, keys


@given(models(), st.integers(1, BLOCK), st.sets(st.integers(1, BLOCK - 1)), st.sampled_from(list(TOLERANCE)))
def test_in_pieces_as_in_one(drawn, length, cuts, dtype):
    pattern, keys = drawn
    if keys["norm_position"] == "post":
        keys["parallel_residual"] = False  # which is refused
    if dtype == torch.float32 and set(pattern) & set("DK"):
        # Their norm divides by what a query finds. Where that is little it enlarges any rounding: of four such layers,
        # with an eps of 1e-5, the whole forward pass alone is up to 3.5e-5 off the one in float64; with this, 4e-6
        keys["norm_eps"] = 1e-2
    model = small_model(pattern, dtype, **keys)
    tokens = torch.randint(61, (2, length), generator=torch.Generator().manual_seed(length))
    with torch.no_grad():
        expected = model(tokens)
    assert 0.3 < expected.std() < 3
    found = in_pieces(model, tokens, sorted(cut for cut in cuts if cut < length))
    torch.testing.assert_close(found, expected, **TOLERANCE[dtype])
    last = 1 + len(cuts) % length
    with torch.no_grad():
        end = model.logits(model.hidden(tokens, last=last))
    torch.testing.assert_close(end, expected[:, -last:], **TOLERANCE[dtype])


@pytest.mark.parametrize("position", ["learned_absolute", "rope", "alibi", "none"])
@pytest.mark.parametrize("norm_position", ["pre", "post"])
@pytest.mark.parametrize("dtype", list(TOLERANCE))
def test_token_by_token_as_in_one(position, norm_position, dtype):
    """All mixers that know places; beyond the window of 5, and with a prompt of 3."""
    model = small_model("AMWSC", dtype, position_encoding=position, norm_position=norm_position)
    tokens = torch.randint(61, (3, BLOCK), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = model(tokens)
    for first in (1, 3):
        torch.testing.assert_close(in_pieces(model, tokens, range(first, BLOCK)), expected, **TOLERANCE[dtype])


LONGER = {
    "dynamic": {"factor": 3.0},
    "longrope": {"factor": 3.0, "short_factor": [1.0, 1.1, 1.3, 2.0], "long_factor": [1.5, 2.0, 7.0, 9.0]},
}


@pytest.mark.parametrize("pattern", ["AWA", "CA"])
@pytest.mark.parametrize("kind", LONGER)
@torch.no_grad()
def test_tokens_that_turn_anew_in_a_longer_text(kind, pattern):
    """Beyond the original context of 9: each step's logits are those of the text so far, read at once, also of texts
    that leave the batch and join it."""
    scaling = {"rope_type": kind, "original_max_position_embeddings": 9, **LONGER[kind]}
    model = small_model(pattern, position_encoding="rope", rope_scaling=scaling, qk_rope_head_dim=8)
    tokens = torch.randint(61, (3, BLOCK), generator=torch.Generator().manual_seed(0))
    caches, other = model.empty_caches(2, BLOCK), model.empty_caches(2, BLOCK)
    model.hidden(tokens[:2, :5], caches), model.hidden(tokens[1:, :5], other)
    other.keep([1])
    caches.join(other)
    for length in range(6, BLOCK + 1):
        found = model.next_token_logits(tokens[:, length - 1 : length], caches)
        torch.testing.assert_close(found, model(tokens[:, :length])[:, -1], **TOLERANCE[torch.float64])
    whole = model.hidden(tokens, model.empty_caches(3, BLOCK))
    caches = model.empty_caches(3, BLOCK)
    model.hidden(tokens[:, :5], caches, last=2)
    torch.testing.assert_close(model.hidden(tokens[:, 5:], caches, last=3), whole[:, -3:], **TOLERANCE[torch.float64])
    assert (model(tokens[:, :9])[:, :8] - model(tokens)[:, :8]).abs().max() > 0.01


@torch.no_grad()
def test_the_next_tokens_logits_are_those_of_the_last_token():
    model = small_model("MA")
    tokens = torch.randint(61, (2, 9))
    caches = model.empty_caches(2, 9)
    model.next_token_logits(tokens[:, :4], caches)
    torch.testing.assert_close(model.next_token_logits(tokens[:, 4:], caches), model(tokens)[:, -1])
    assert caches.length == 9
    with pytest.raises(ValueError, match="at least one token"):
        model.hidden(tokens, last=0)


@torch.no_grad()
def without_caches(model, start, how, count, generator):
    """What sample.generate did before there were caches: the last block, whole, for every token."""
    tokens = list(start)
    for _ in range(count):
        logits = model(torch.tensor([tokens[-BLOCK:]]))[0, -1]
        tokens.append(draw(distribution(logits, how), generator))
    return tokens[len(start) :]


@pytest.mark.parametrize("pattern", ["A", "MA", "SWM", "C"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("prompt", [1, 9, BLOCK, BLOCK + 5])
def test_the_text_is_the_same_as_without_caches(pattern, temperature, prompt):
    """Greedy and seeded, to beyond the block; in float64, where no tie is broken by rounding."""
    model, how = small_model(pattern, vocab_size=256), Sampling(temperature, top_k=200, top_p=1.0)
    start = torch.randint(256, (prompt,), generator=torch.Generator().manual_seed(0)).tolist()
    bytes_only = tokenizer_from_meta({"kind": "bytes", "end_of_document": None})
    found = generate(model, start, bytes_only, how, 2 * BLOCK, torch.Generator().manual_seed(1))
    expected = without_caches(model, start, how, 2 * BLOCK, torch.Generator().manual_seed(1))
    assert list(found) == expected


# ---------------------------------------------------------------------------------------------------------------------
# Sizes


def cache_bytes(pattern, length, dtype=torch.float32, **keys):
    return small_model(pattern, dtype, **keys).empty_caches(1, length).bytes


def test_bytes_by_hand():
    """float32: keys and values of 2 heads of 8; of a state space, the last 3 tokens' channels and the state."""
    token = 2 * 2 * 8 * 4
    assert cache_bytes("A", 20) == 20 * token
    assert cache_bytes("W", 20) == (5 - 1) * token  # the window less the query's own token
    assert cache_bytes("W", 3) == 3 * token
    assert cache_bytes("C", 20) == 20 * (8 + 4) * 4  # the latent vector and the rotary key, whatever the heads
    mamba2 = 4 * (3 * (64 + 2 * 2 * 8) + 64 * 8)
    assert cache_bytes("M", 20) == cache_bytes("M", BLOCK) == mamba2
    assert cache_bytes("S", 20) == 4 * (3 * 64 + 64 * 8)
    assert cache_bytes("AMMW", 20) == 20 * token + 2 * mamba2 + 4 * token
    options = {"attention_sinks": True, "attention_output_gate": "element", "value_residual": True}
    assert cache_bytes("AMMW", 20, **options) == cache_bytes("AMMW", 20)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("pattern", ["A", "W", "M", "S", "C", "AMMS", "AMMW"])
def test_the_caches_are_as_large_as_the_planner_says(pattern, dtype):
    model = Model("test", "config file", small_model(pattern).config)
    for length in (3, 5, 20):  # within the window, it, and beyond it
        said = describe(model, Setting(sequence_length=length, dtype=str(dtype).removeprefix("torch.")))
        assert cache_bytes(pattern, length, dtype) == said["memory"]["cache"]["bytes_per_sequence"]


@torch.no_grad()
def test_a_pure_state_space_model_reads_on_beyond_its_block_with_constant_memory():
    model = small_model("MS", position_encoding="none")
    tokens = torch.randint(61, (1, 5 * BLOCK))
    caches = model.empty_caches(1, 5 * BLOCK)
    before = caches.bytes
    found = torch.cat([model(token, caches=caches) for token in tokens.split(1, dim=1)], dim=1)
    assert caches.bytes == before
    longer = build_model(model.config.replace(block_size=5 * BLOCK)).double().eval()
    longer.load_state_dict(model.state_dict())
    torch.testing.assert_close(found, longer(tokens), **TOLERANCE[torch.float64])


@pytest.mark.parametrize(("pattern", "position"), [("AM", "none"), ("W", "rope"), ("M", "learned_absolute")])
def test_every_other_model_ends_at_its_block(pattern, position):
    model = small_model(pattern, position_encoding=position)
    with pytest.raises(ValueError, match=f"more than the block size {BLOCK}"):
        model.empty_caches(1, BLOCK + 1)
    caches = model.empty_caches(1, 3)
    with torch.no_grad(), pytest.raises(ValueError, match="4 tokens are more than the caches' room of 3"):
        model(torch.zeros(1, 4, dtype=torch.long), caches=caches)


# ---------------------------------------------------------------------------------------------------------------------
# What it must not cost


BUILT = [letter for letter, mixer in registry.by_letter("mixer").items() if registry.has_module("mixer", mixer.name)]


@pytest.mark.slow
@pytest.mark.parametrize(
    "keys", [{}, {"attention_sinks": True, "attention_output_gate": "head", "value_residual": True}]
)
@pytest.mark.parametrize("letter", [letter for letter in BUILT if letter not in "SDK"])
def test_a_block_in_training_is_still_one_graph(letter, keys):
    """Mamba-1's scan and the delta rules are excepted: their loops are kept out of the graph on purpose."""
    torch.compiler.reset()  # it counts how often one forward pass was compiled, of all blocks of a process
    config = small_model(letter, **keys).config
    block = Block(config, config.last_layer).train()
    compiled = torch.compile(block, fullgraph=True, backend="aot_eager")
    x = torch.randn(2, 8, 32, requires_grad=True)
    y, *_ = compiled(x)
    y.sum().backward()
    assert x.grad is not None


# ---------------------------------------------------------------------------------------------------------------------
# Whole journeys of a hybrid


@pytest.fixture(scope="module")
def hybrid(data_dir, tmp_path_factory):
    folder = tmp_path_factory.mktemp("hybrid")
    keys = ["--layer_pattern=MAWS", "--n_layer=4", "--attention_window=9", "--mamba_head_dim=16", "--mamba_d_state=8"]
    assert training(data_dir, folder / "run", *keys, "--position_encoding=rope").returncode == 0
    return folder


def test_a_hybrids_checkpoint_goes_out_and_comes_back(hybrid, data_dir):
    run, file = hybrid / "run", hybrid / "file.safetensors"
    done = command(checkpoint.main, "export", run, file)
    assert done.returncode == 0, done.stderr
    done = command(checkpoint.main, "import", file, hybrid / "back")
    assert done.returncode == 0, done.stderr
    texts = [
        command(sample.main, "--device=cpu", folder, "--prompt=loss", "--seed=3", "--max_new_tokens=40")
        for folder in (run, hybrid / "back")
    ]
    assert texts[0].returncode == 0, texts[0].stderr
    assert texts[0].stdout == texts[1].stdout and len(texts[0].stdout) > 20


def test_the_saving_of_a_hybrid_is_said(hybrid):
    """Float32, block 32, 2 heads of 16: 4 x 32 x 2 x 32 numbers where all four layers attend."""
    done = command(sample.main, "--device=cpu", hybrid / "run", "--max_new_tokens=1")
    attention, window = 32 * 2 * 32, 8 * 2 * 32
    spaces = (3 * (64 + 2 * 8) + 64 * 8) + (3 * 64 + 64 * 8)
    ours, theirs = 4 * (attention + window + spaces), 4 * 4 * attention
    said = f"caches at 32 tokens: {ours:,} bytes, with attention in every layer {theirs:,}"
    assert said in done.stderr, done.stderr
