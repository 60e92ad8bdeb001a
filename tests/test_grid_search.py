"""The backward search: the published tables, the exact mode, the command, against loops and closed forms."""

import dataclasses
import io
import itertools
import json
import math
import re
import subprocess
import sys
from fractions import Fraction

import numpy as np
import pytest
from conftest import ROOT, environment
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import UserError
from components import registry
from configurator import load
from flops_parameter_counting import detailed_cost_analysis
from flops_parameter_counting.costs.model_cost import model_cost
from flops_parameter_counting.costs.report import describe
from flops_parameter_counting.costs.setting import Setting
from flops_parameter_counting.laws import fitting as law_fitting
from flops_parameter_counting.laws.scaling_laws import LAWS, Law, count_parameters
from flops_parameter_counting.planner import search as grid_search
from flops_parameter_counting.planner.search import Search, uncertainty
from flops_parameter_counting.planner.space import SearchSpace, default_aspect_ratio, default_space
from interop.model_files import Model
from model_config import presets, resolve_architecture

COMMAND = ROOT / "flops_parameter_counting/detailed_cost_analysis.py"
PUBLISHED_BUDGET = 1.36e21
ARCHITECTURES = tuple(presets())

# loss, parameters (B), tokens (B), layers, width, heads, as the two tables print them
UNCONSTRAINED = [
    (2.33512, 1.545, 101.909, 18, 2048, 16),
    (2.33793, 1.658, 91.818, 20, 2048, 16),
    (2.342901, 1.771, 81.727, 22, 2048, 16),
    (2.344803, 1.998, 71.636, 26, 2048, 16),
    (2.350339, 1.084, 132.182, 54, 1024, 8),
    (2.350728, 1.023, 142.273, 50, 1024, 8),
    (2.350778, 0.932, 162.455, 44, 1024, 8),
    (2.351059, 2.224, 61.545, 30, 2048, 16),
    (2.351107, 1.145, 122.091, 58, 1024, 8),
    (2.351597, 2.776, 51.455, 16, 3072, 24),
]
CHINCHILLA = [
    (2.351059, 2.224, 61.545, 30, 2048, 16),
    (2.351597, 2.776, 51.455, 16, 3072, 24),
    (2.358454, 2.564, 51.455, 36, 2048, 16),
    (2.363909, 3.273, 41.364, 20, 3072, 24),
    (2.370558, 3.017, 41.364, 44, 2048, 16),
    (2.406585, 2.009, 41.364, 52, 1536, 24),
    (2.418881, 2.597, 31.273, 38, 2048, 32),
]


def run(capsys, monkeypatch, *arguments: str) -> tuple[int, str, str]:
    """(exit code, stdout, stderr) of the command, in this process."""
    monkeypatch.setattr(sys, "argv", [str(COMMAND), *arguments])
    with pytest.raises(SystemExit) as end:
        detailed_cost_analysis.main()
    out, err = capsys.readouterr()
    return int(end.value.code or 0), out, err


@pytest.fixture
def command(capsys, monkeypatch, tmp_path):
    """`command(*arguments)`: what it printed and its JSON, for a search that succeeds."""

    def call(*arguments: str) -> tuple[str, dict]:
        code, out, err = run(capsys, monkeypatch, *arguments, f"--json={tmp_path / 'found.json'}")
        assert code == 0, err
        return out, json.loads((tmp_path / "found.json").read_text())

    return call


# The published search


@pytest.mark.parametrize(("options", "rows"), [([], UNCONSTRAINED), (["--enforce_chinchilla"], CHINCHILLA)])
def test_the_published_tables_row_for_row(command, options, rows):
    out, found = command("--grid_search", "1.36e21", "--flops_formula=published", *options)
    candidates = found["candidates"]
    printed = [
        (
            *(round(row["loss"], 6), round(row["n_params"] / 1e9, 3), round(row["tokens"] / 1e9, 3)),
            *(row["n_layer"], row["n_embd"], row["n_head"]),
        )
        for row in candidates
    ]
    assert printed == rows
    for loss, n_params, tokens, *_ in rows:
        assert any(
            f"{loss:.6f}" in line and f"{n_params:.3f}" in line and f"{tokens:.3f}" in line for line in out.splitlines()
        )
    passed = (
        {"passed_flops": 7, "passed_chinchilla": 11805} if options else {"passed_flops": 51, "passed_chinchilla": None}
    )
    assert found["statistics"] == passed | {"configs_tried": 504, "within_noise": None}
    for heading in ("BEST CONFIG", f"TOP {len(rows)}", "SEARCH STATISTICS", "D/N", "D/(20N)"):
        assert heading in out
    best = candidates[0]
    assert best["tokens_per_parameter"] == pytest.approx(best["tokens"] / best["n_params"])
    assert best["chinchilla_ratio"] == pytest.approx(best["tokens_per_parameter"] / 20)


def test_what_the_published_optimum_really_costs(command):
    """18 layers x 2048 with 8 KV heads of 128, d_ff 7168, 101.909e9 tokens, written out."""
    h, f, layers, tokens = 2048, 7168, 18, 1e9 + 10 * (1e12 - 1e9) / 99
    weights = layers * (2 * h * h + 2 * h * 8 * 128 + 3 * h * f)
    without_logits = 3 * (2 * weights + layers * 4 * 2048 * h) * tokens
    with_logits = without_logits + 3 * 2 * 128256 * h * tokens
    out, found = command("--grid_search", "1.36e21", "--flops_formula=published")
    best = found["candidates"][0]
    assert best["true_flops_without_logits"] == pytest.approx(without_logits, rel=1e-12)
    assert best["true_flops"] == pytest.approx(with_logits, rel=1e-12)
    assert (f"{without_logits:.4e}", f"{with_logits:.4e}") == ("7.1553e+20", "8.7614e+20")
    assert "8.7614e+20 with logits (64.4 % of the budget), 7.1553e+20 without" in out


def test_other_flags_apply_to_the_published_search(command):
    every = command("--grid_search", "1.36e21", "--flops_formula=published", "--top_k=60")[1]["candidates"]
    assert len(every) == 51
    small = command("--grid_search", "1.36e21", "--flops_formula=published", "--top_k=60", "--max_params=1.6e9")[1]
    assert small["candidates"] == [row for row in every if row["n_params"] <= 1.6e9]
    shaped = command("--grid_search", "1.36e21", "--flops_formula=published", "--top_k=60", "--aspect_ratio=32:256")[1]
    assert shaped["candidates"] == [row for row in every if 32 <= row["n_embd"] / row["n_layer"] <= 256]
    multi_head = command("--grid_search", "1.36e21", "--flops_formula=published", "--no_gqa")[1]
    assert multi_head["statistics"]["configs_tried"] == 28 * 24 * 2  # no rule about eight heads
    assert all(row["num_key_value_heads"] == row["n_head"] for row in multi_head["candidates"])


def test_the_published_search_rounds_the_ffn_down(command):
    """d_ff = floor(3.5 H / 256) 256: of grouped-query attention's widths, multiples of 512, that is 3.5 H."""
    found = command("--grid_search", "1.36e21", "--flops_formula=published", "--no_gqa", "--top_k=200")[1]
    assert found["statistics"]["passed_flops"] == 112
    assert all(row["d_ff"] == 7 * row["n_embd"] // 512 * 256 for row in found["candidates"])
    assert (16, 1792) not in {(row["n_layer"], row["n_embd"]) for row in found["candidates"]}
    assert any(row["d_ff"] < 3.5 * row["n_embd"] for row in found["candidates"])


# The exact search


@pytest.mark.parametrize("arch", ["hybrid", "llama"])
@pytest.mark.parametrize("budget", ["1e18", "1e21"])
def test_an_ffn_is_as_wide_as_a_config_files_own_would_be(command, arch, budget):
    """8/3 of the width is seldom whole; then it is the next multiple of 64."""
    for row in command("--grid_search", budget, "--arch", arch, "--top_k=50")[1]["candidates"]:
        assert row["d_ff"] % 64 == 0 and 0 <= row["d_ff"] - 8 / 3 * row["n_embd"] < 64


def test_a_bound_that_decides_is_named_with_what_it_costs(command):
    """The best is that of a search without the bound; a bound that takes the best from no one is not named."""
    asked = ["--grid_search", "1e18", "--law=hoffmann"]
    out, found = command(*asked)
    _, free = command(*asked, "--aspect_ratio=0:inf")
    best, other = found["candidates"][0], free["candidates"][0]
    said = (
        f"the bound on n_embd / n_layer, between 32 and 128, decides: without it the best is {other['n_layer']} layers"
    )
    assert other["loss"] < best["loss"]
    assert any(note.startswith(said) for note in found["notes"])
    assert f"predicted {other['loss']:.4f} in place of {best['loss']:.4f}" in " ".join(out.split())
    assert not any("decides" in note for note in free["notes"])
    wide = command(*asked, f"--aspect_ratio=0:{other['n_embd'] / other['n_layer']}")[1]
    assert wide["candidates"][0] == other and not any("decides" in note for note in wide["notes"])
    for bound, name in (("--max_params=2e7", "number of parameters"), ("--tokens_min=1.5e10", "number of tokens")):
        notes = command(*asked, bound)[1]["notes"]
        assert any(note.startswith(f"the bound on {name}, at ") and " decides: " in note for note in notes), notes


def test_a_loss_that_means_nothing_is_no_headline(command):
    """Hoffmann's law says 15 of bytes, of which a model that knows nothing has ln 256."""
    out, found = command("--grid_search", "1e11")
    loss = found["candidates"][0]["loss"]
    assert loss > math.log(256)
    assert (
        f"Predicted loss   none: the law's {loss:.6f} only ranks, above the ln(256) = 5.545 of knowing nothing" in out
    )
    out, found = command("--grid_search", "1e20")
    assert f"Predicted loss   {found['candidates'][0]['loss']:.6f}\n" in out


def test_what_the_whole_published_budget_buys(command):
    _, found = command("--grid_search", "1.36e21", "--law=hoffmann")
    best = found["candidates"][0]
    assert (best["n_layer"], best["n_embd"], best["n_head"], best["num_key_value_heads"]) == (16, 2560, 40, 8)
    assert f"{best['n_params']:.3e}" == "2.009e+09" and f"{best['tokens']:.3e}" == "1.226e+11"
    assert f"{best['loss']:.5f}" == "2.29186"
    assert 0 <= int(PUBLISHED_BUDGET) - best["flops"] < best["flops_per_token"]


def test_the_default_search_compares_itself_with_the_published_one(command):
    out, found = command("--grid_search", "1.36e21")
    assert found["law"]["name"] == "besiroglu"
    assert "7.16e+20 FLOPs without logits (53 %), 8.76e+20 with them (64 % of the budget)" in out
    assert "1.04e+21, 76 %" in out, "6 N + 12 L H Q T counts the input embedding as a product"
    assert "16 layers x 2560, 40 heads" in out and "predicted 2.29186" in out


EXPERTS = ("n_experts", "n_experts_per_token", "n_shared_experts", "expert_d_ff")
SIZES = st.lists(st.integers(1, 12), min_size=1, max_size=3, unique=True)


LATENT = ("deepseek_dense", "deepseek_v3", "kimi_linear")  # which have no key and value heads
# Layers, and one more
OF_ALL_KINDS = {"hybrid": 1, "deepseek_v3": 3, "qwen3_next": 3, "kimi_linear": 3, "granite_hybrid": 5, "nemotron_h": 4}
WITH_EXPERTS = [
    arch for arch in ARCHITECTURES if "expert_d_ff" in resolve_architecture({"arch_preset": arch}).layer_keys
]


@st.composite
def small_spaces(draw, archs=ARCHITECTURES):
    arch = draw(st.sampled_from(archs))
    multiple = {"mamba2": 32, "hybrid": 32, "granite_hybrid": 32, "nemotron_h": 256}.get(arch, 16)
    sizes = {
        "head_dims": [8, 16],
        "kv_heads": draw(st.sampled_from([None, (1,), (1, 2)])),
        "ffn_expansion_ratio": draw(st.sampled_from([1.0, 8 / 3, 3.5, 4.0])),
    }
    if arch in LATENT:
        sizes["kv_heads"] = None
    if arch in ("mamba1", "mamba2"):
        sizes = {"head_dims": [], "kv_heads": None, "ffn_expansion_ratio": 0.0}
    gated = [(1,), (1, 2)]  # a gate is of something
    if arch in WITH_EXPERTS:
        sizes |= {
            "n_experts": [size * (8 if arch == "deepseek_v3" else 1) for size in draw(SIZES)],  # which has 8 groups
            "n_experts_per_token": [1, *draw(SIZES)],
            "n_shared_experts": draw(st.sampled_from(gated if arch == "qwen3_next" else [(0,), (1,), (0, 2)])),
            "granularity": draw(st.sampled_from([(0.5,), (1.0,), (3.0,), (0.1, 1.0), (0.05, 0.5)])),
        }
    return SearchSpace(
        arch=arch,
        vocab_size=draw(st.integers(1, 300)),
        sequence_length=draw(st.integers(1, 64)),
        hidden_sizes=[multiple * size for size in draw(SIZES)],
        layers=[size + OF_ALL_KINDS.get(arch, 0) for size in draw(SIZES)],
        **sizes,
        weight_tying=draw(st.booleans()),
    )


def architectures(space: SearchSpace):
    """Every valid architecture of a space, one by one, as the configuration of a run."""
    shared = {"arch_preset": space.arch, "vocab_size": space.vocab_size, "block_size": space.sequence_length}
    shared["weight_tying"] = space.weight_tying
    if space.arch in ("mamba1", "mamba2"):
        for width, layers in itertools.product(space.hidden_sizes, space.layers):
            yield resolve_architecture(shared | {"n_layer": layers, "n_embd": width})
    for width, head_dim, layers in itertools.product(space.hidden_sizes, space.head_dims, space.layers):
        for kv in space.kv_heads or (width // head_dim,):
            if width % head_dim == 0 and width // head_dim % kv == 0:
                heads = {"n_head": width // head_dim}
                heads |= {} if space.arch in LATENT else {"num_key_value_heads": kv}
                if space.arch in ("gpt_oss", "qwen3_next"):  # whose preset has a head_dim of its own
                    heads["head_dim"] = head_dim
                for ffn in ffns(space, width):
                    yield resolve_architecture(shared | {"n_layer": layers, "n_embd": width} | heads | ffn)


def ffns(space: SearchSpace, width: int):
    """The FFNs of a width, as keys of a configuration: one that is dense, or experts that a token can meet."""
    if space.arch not in WITH_EXPERTS:
        yield {"d_ff": ffn_width(space.ffn_expansion_ratio, width)}
        return
    choices = space.n_experts, space.n_experts_per_token, space.n_shared_experts, space.granularity
    for count, met, shared, granularity in itertools.product(*map(set, choices)):
        if met <= (count // 2 if space.arch == "deepseek_v3" else count):  # of whose 8 groups a token's are of 4
            exact = Fraction(space.ffn_expansion_ratio).limit_denominator(10) * width / Fraction(granularity)
            keys = {"n_experts": count, "n_experts_per_token": met, "n_shared_experts": shared}
            if space.arch in ("deepseek_v3", "kimi_linear"):
                keys["d_ff"] = ffn_width(space.ffn_expansion_ratio, width)
            yield keys | {"expert_d_ff": 8 * math.ceil(exact / 8)}


def ffn_width(ratio: float, width: int) -> int:
    """In fractions: what is whole as it is, what is not up to a multiple of 64."""
    exact = Fraction(ratio).limit_denominator(10) * width
    return int(exact) if exact.denominator == 1 else 64 * math.ceil(exact / 64)


@settings(max_examples=60)
@given(small_spaces(), st.floats(1e9, 1e15), st.sampled_from(sorted(LAWS)), st.none() | st.floats(1e3, 1e9))
def test_the_best_is_that_of_a_loop_over_configurations(space, budget, law, unique):
    """One configuration at a time, through the cost of a single model, with Python's integers."""
    losses = {}
    for config in architectures(space):
        cost = model_cost(config)
        tokens = int(budget) // cost.training_flops()
        if tokens >= space.sequence_length:
            heads = (config.n_head, config.kv_heads) if config.layers_with("AWC") else (0, 0)
            experts = [config[name] for name in EXPERTS] if space.arch in WITH_EXPERTS else [0] * 4
            sizes = (config.n_layer, config.n_embd, *heads, *experts)
            losses[sizes] = float(LAWS[law].of(cost).loss(count_parameters(cost, LAWS[law].N), tokens, unique))
    search = Search(budget, LAWS[law], space, unique_tokens=unique)
    if not losses:
        with pytest.raises(UserError, match="nothing is feasible"):
            grid_search.grid_search(search)
        return
    result = grid_search.grid_search(search)
    found = result.candidates(10_000)
    assert len(found) == result.passed_flops == len(losses)
    assert result.configs_tried == len(list(architectures(space)))
    assert found[0].loss == pytest.approx(min(losses.values()), rel=1e-12)
    assert [c.loss for c in found] == pytest.approx(sorted(losses.values()), rel=1e-12)
    for c in found:
        sizes = (c.n_layer, c.n_embd, c.n_head, c.num_key_value_heads, *(getattr(c, name) for name in EXPERTS))
        assert c.loss == pytest.approx(losses[sizes], rel=1e-12)
        assert 0 <= int(budget) - c.flops < c.flops_per_token, "the budget is met to a token, and never exceeded"


def test_a_preset_whose_layers_repeat():
    """Three mixers, and an FFN in every second layer: the same six layers, over and over."""
    with registry.kept():
        registry.register_preset(
            "repeating",
            {"layer_pattern": "MAW", "ffn_pattern": "F-", "attention_window": 100, "position_encoding": "rope"},
        )
        space = default_space(1e18, "repeating")
        found = grid_search.grid_search(Search(1e18, LAWS["besiroglu"], space)).candidates(10_000)
        assert {candidate.n_layer for candidate in found} == set(space.layers), "patterns end with the layers"
        for candidate in found:
            config = candidate.config(space)
            sizes = {name: getattr(candidate, name) for name in ("n_layer", "n_embd", "n_head", "d_ff")}
            shared = {"vocab_size": space.vocab_size, "block_size": space.sequence_length, "weight_tying": True}
            assert config == resolve_architecture({"arch_preset": "repeating", **shared, **sizes})
            cost = model_cost(config)
            assert (candidate.n_params, candidate.flops_per_token) == (cost.n_params, cost.training_flops())


def test_a_preset_that_begins_with_dense_layers():
    """Two dense FFNs, then experts; and its config, written out, is that of as many layers."""
    with registry.kept():
        preset = {"ffn_pattern": "FF,E", "layer_pattern": "AAW", "attention_window": 100, "position_encoding": "rope"}
        registry.register_preset("begins_dense", preset | {"ffn_type": "swiglu", "ffn_expansion_ratio": 3.0})
        space = dataclasses.replace(default_space(1e18, "begins_dense"), layers=range(1, 12), kv_heads=None)
        assert (space.ffn_expansion_ratio, space.granularity) == (3.0, (3.0 / (8 / 3 / 2),))
        found = grid_search.grid_search(Search(1e18, LAWS["besiroglu"], space)).candidates(10_000)
        assert {candidate.n_layer for candidate in found} == set(range(3, 12))
        shared = {"vocab_size": space.vocab_size, "block_size": space.sequence_length, "weight_tying": True}
        for candidate in found[::17]:
            config = candidate.config(space)
            sizes = {name: getattr(candidate, name) for name in ("n_layer", "n_embd", "n_head", "d_ff", "expert_d_ff")}
            assert config == resolve_architecture({"arch_preset": "begins_dense", **shared, **sizes})
            cost = model_cost(config)
            assert (candidate.n_params, candidate.n_active) == (cost.n_params, cost.n_active)
            assert candidate.flops_per_token == cost.training_flops()
        with pytest.raises(UserError, match="layers: begins_dense begins with 2 that come once: take more of them"):
            dataclasses.replace(space, layers=[1, 2])


@settings(max_examples=30)
@given(st.floats(11, 26), st.floats(1.0, 50), st.sampled_from(ARCHITECTURES))
def test_a_larger_budget_buys_no_worse_a_model(exponent, factor, arch):
    space = default_space(10**exponent, arch)
    losses = [
        grid_search.grid_search(Search(budget, LAWS["besiroglu"], space)).candidates(1)[0].loss
        for budget in (10**exponent, factor * 10**exponent)
    ]
    assert losses[1] <= losses[0]


@pytest.mark.parametrize("law", ["hoffmann", "besiroglu"])
@pytest.mark.parametrize("budget", [1e15, 1e18])
def test_the_optimum_approaches_the_closed_form(law, budget):
    """With one token of vocabulary and of context, FLOPs are 6 N but for norms, embedding and scores: the best of a
    fine space has nearly the N and the loss of the optimum under C = 6 N D (Hoffmann et al. 2022, equation 4)."""
    space = SearchSpace("llama3", 1, 1, range(16, 2049, 16), range(1, 65), (16,), None, 3.5, True)
    best = grid_search.grid_search(Search(budget, LAWS[law], space)).candidates(1)[0]
    n = np.geomspace(1e3, 1e12, 1_000_001)
    losses = LAWS[law].loss(n, budget / 6 / n)
    assert best.loss == pytest.approx(losses.min(), rel=2e-3)
    # Around the optimum the loss is flat: what 0.1 % of loss allows in N bounds how far the best may be.
    near = n[losses < losses.min() * 1.001]
    assert near[0] * 0.9 < best.n_params < near[-1] * 1.1


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("exponent", range(10, 27))
def test_every_budget_has_a_default_space_with_an_answer(arch, exponent):
    budget = 10.0**exponent
    search = Search(budget, LAWS["besiroglu"], default_space(budget, arch), aspect_ratio=default_aspect_ratio(budget))
    if arch == "nemotron_h" and exponent == 10:  # whose smallest is larger
        with pytest.raises(UserError, match=r"raise the budget to at least 1.04e\+10 FLOPs"):
            grid_search.grid_search(search)
        return
    result = grid_search.grid_search(search)
    best = result.candidates(1)[0]
    few = arch in ("mamba2", "hybrid", "granite_hybrid", "gpt_oss")  # heads of 64, or biases of many experts
    fewest = {"deepseek_v3": 1}.get(arch, 8 if few else 20) if exponent < 12 else 20
    # V3's ranks are the large model's at every width; Nemotron-H's 8 groups of heads of 64 take multiples of 256
    smallest = {"deepseek_v3": 15, "nemotron_h": 17}.get(arch, 13)
    assert result.passed_flops >= (1 if arch == "nemotron_h" and exponent < smallest else fewest)
    if exponent >= smallest:
        assert 5 < best.tokens_per_parameter < 100, "the law's optimum lies inside of the space"


def test_the_memory_of_all_experts_binds_and_the_flops_of_the_active_ones(command):
    """More experts cost no FLOPs but their router's, and memory for each: a device of half the memory has fewer."""
    device = "--peak_flops 1e14 --days 1 --mfu 0.4 --arch mixtral --n_experts 2,4,8,16,32,64 --top_k 100000"
    largest = {}
    for gigabytes in (4, 8, 16):
        _, found = command("--grid_search", *device.split(), "--device_memory", str(gigabytes))
        rows = found["candidates"]
        assert all(row["memory_per_device"] <= gigabytes * 1e9 for row in rows)
        largest[gigabytes] = max(row["n_params"] for row in rows)
        for row in rows:
            router = 6 * row["n_layer"] * row["n_experts"] * row["n_embd"]
            experts = 18 * row["n_layer"] * 2 * row["n_embd"] * row["expert_d_ff"]
            attention = 24 * row["n_layer"] * row["n_embd"] ** 2 + 12 * row["n_layer"] * 1024 * row["n_embd"]
            assert row["flops_per_token"] == router + experts + attention + 6 * 50304 * row["n_embd"]
    assert largest[4] < largest[8] < largest[16]
    # 16 bytes a parameter, every expert's too, and what a batch keeps
    assert all(0.5 < largest[gigabytes] * 16 / 1e9 / gigabytes < 1 for gigabytes in largest)


def test_where_laws_of_experts_disagree_the_report_shows_each(command):
    """Each one's own best is that of a search by it; what is said of the best above is that law's loss of it."""
    space = "1e20 --arch mixtral --n_experts 8,64 --n_experts_per_token 1,2,8 --n_shared_experts 0,1".split()
    out, found = command("--grid_search", *space)
    rows = {row["law"]: row for row in found["by_laws_of_experts"]}
    assert set(rows) == {"ludziejewski", "tian", "abnar"}
    best = found["candidates"][0]
    sizes = {name: best[name] for name in ("n_layer", "n_embd", "n_head", *EXPERTS)}
    cost = model_cost(
        resolve_architecture({"arch_preset": "mixtral", "vocab_size": 50304, "block_size": 1024, **sizes})
    )
    for name, row in rows.items():
        own = command("--grid_search", *space, f"--law={name}", "--top_k=1")[1]["candidates"][0]
        assert row["best"] == own
        law = LAWS[name].of(cost)
        assert row["loss_of_this_search"] == pytest.approx(law.loss(count_parameters(cost, law.N), best["tokens"]))
        assert own["loss"] <= row["loss_of_this_search"]
    met = {(row["best"]["n_experts_per_token"], row["best"]["n_shared_experts"]) for row in rows.values()}
    assert ("They disagree on" in out) == (len(met) > 1 or len({row["best"]["n_experts"] for row in rows.values()}) > 1)
    out, found = command("--grid_search", "1e20", "--arch=mixtral")
    assert "BY EACH LAW" not in out and "by_laws_of_experts" not in found, "there is no choice of experts"


def test_the_result_does_not_depend_on_the_chunks(monkeypatch):
    search = Search(1e18, LAWS["hoffmann"], default_space(1e18, "llama3"), max_params=2e8, enforce_chinchilla=True)
    whole = grid_search.grid_search(search, keep=5)
    monkeypatch.setattr(grid_search, "CHUNK", 7)
    in_pieces = grid_search.grid_search(search, keep=5)
    assert in_pieces.candidates(5) == whole.candidates(5)
    assert in_pieces.bounds["chinchilla"].passed == whole.passed_chinchilla == whole.passed_flops


def test_bounds_hold(command):
    _, found = command(
        *"--grid_search 1e18 --top_k 5000 --max_params 1e8 --aspect_ratio 40:90 --enforce_chinchilla".split(),
        *"--tokens_min 2.1e9 --tokens_max 4e9 --kv_heads 1,2,4 --head_dims 64".split(),
    )
    assert len(found["candidates"]) == found["statistics"]["passed_flops"] > 1
    for row in found["candidates"]:
        assert row["n_params"] <= 1e8 and 40 <= row["n_embd"] / row["n_layer"] <= 90
        assert 2.1e9 <= row["tokens"] <= 4e9 and 0.5 <= row["chinchilla_ratio"] <= 1.5
        assert row["num_key_value_heads"] in (1, 2, 4) and row["n_embd"] == 64 * row["n_head"]


def test_scarce_data_is_repeated_or_answered_with_parameters(command):
    """Muennighoff et al. 2023: excess parameters lose value faster than repetitions (R_N* < R_D*), so that scarce data
    call for a smaller model and more epochs. A law that borrows only the value of repeated tokens goes the other way,
    and says what it borrows."""
    for law, sign in (("muennighoff", 1), ("hoffmann", -1)):
        plenty = command("--grid_search", "1e19", f"--law={law}")[1]["candidates"][0]
        out, found = command("--grid_search", "1e19", f"--law={law}", "--unique_tokens=2e8")
        scarce = found["candidates"][0]
        assert scarce["loss"] > plenty["loss"]
        assert sign * scarce["tokens"] > sign * plenty["tokens"]
        assert ("their value is that of Muennighoff et al. 2023" in out) == (law == "hoffmann")
        enough = command("--grid_search", "1e19", f"--law={law}", "--unique_tokens=1e12")[1]["candidates"][0]
        assert enough["n_params"] == plenty["n_params"] and enough["loss"] == pytest.approx(plenty["loss"])


def test_inference_moves_the_budget_into_tokens(command):
    trained = command("--grid_search", "1e20")[1]["candidates"][0]
    served = command("--grid_search", "1e20", "--inference_tokens=2e10")[1]["candidates"][0]
    assert served["n_params"] < trained["n_params"]
    assert served["inference_flops"] == served["flops_per_token"] // 3 * 20_000_000_000
    spent = served["flops"] + served["inference_flops"]
    assert 0 <= 10**20 - spent < served["flops_per_token"], "the budget pays for both"


def test_the_budget_of_eight_h100_in_ten_days(command):
    out, found = command("--grid_search", *"--device H100-SXM --devices 8 --days 10 --mfu 0.45".split())
    assert found["budget"] == pytest.approx(8 * 989.4e12 * 0.45 * 10 * 24 * 3600)
    assert "x MFU 0.45 x 10 days" in out
    assert "at most 80 GB on each of 8 devices, fsdp (micro-batch 1, bfloat16, AdamW)" in out, (
        "what was assumed is said"
    )
    assert 0 < found["memory"]["passed"] < 504 and found["memory"]["strategy"] == "fsdp"
    assert all(row["memory_per_device"] <= 80e9 for row in found["candidates"])


# What fits the devices

TRAININGS = [
    Setting(device_memory=30e9),
    Setting(device_memory=12e9, activation_checkpointing=True, micro_batch=3),
    Setting(device_memory=5e9, devices=7, strategy="fsdp", micro_batch=2),
    Setting(device_memory=20e9, devices=4, strategy="zero1", dtype="float32"),
]


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("training", TRAININGS, ids=lambda training: f"{training.strategy}, {training.dtype}")
def test_only_what_fits_is_kept_and_all_of_it(arch, training):
    """Against --model_config's figure of each architecture by itself; of a ninth of the space, as far as it reaches."""
    space = default_space(1e20, arch)
    space = dataclasses.replace(space, hidden_sizes=space.hidden_sizes[::3], layers=space.layers[::3])

    def candidates(training):
        result = grid_search.grid_search(Search(1e20, LAWS["besiroglu"], space, training=training))
        return result, result.candidates(10_000)

    result, kept = candidates(training)
    fitting = []
    for candidate in candidates(None)[1]:
        memory = describe(Model("one", "test", candidate.config(space)), training)["memory"]
        if memory["fits"]:
            fitting.append(dataclasses.replace(candidate, memory_per_device=memory["total"]))
    assert kept == fitting
    assert result.bounds["memory"].entered > result.bounds["memory"].passed == len(kept) > 0


@pytest.mark.parametrize(
    "options",
    [
        "--device A6000 --mfu 0.4 --days 2",
        "--device H100-SXM --devices 8 --mfu 0.45 --days 10 --micro_batch 6 --activation_checkpointing",
        "--peak_flops 1e12 --mfu 0.3 --days 4 --device_memory 4 --arch gpt2 --dtype float32 --micro_batch 8",
        "--device V100 --devices 6 --strategy zero1 --dtype float16 --mfu 0.3 --days 8",
    ],
)
def test_the_emitted_config_needs_what_was_promised(capsys, monkeypatch, command, tmp_path, options):
    """Its own batch, checkpointing and sharing: `--model_config` on the same devices counts what the search did."""
    emitted = tmp_path / "made.py"
    _, found = command("--grid_search", *options.split(), "--vocab_size=50304", f"--emit={emitted}")
    memory, best = found["memory"], found["candidates"][0]
    machines = [f"--devices={memory['devices']}", f"--strategy={memory['strategy']}"]
    machines += [f"--device_memory={memory['device_memory'] / 1e9}", f"--micro_batch={memory['micro_batch']}"]
    _, asked = command("--model_config", str(emitted), *machines)
    assert asked["memory"]["total"] == best["memory_per_device"] and asked["memory"]["fits"] is True
    _, as_it_is = command("--model_config", str(emitted), *machines[:3])
    assert as_it_is["memory"]["total"] <= best["memory_per_device"] and as_it_is["memory"]["micro_batch"] >= 1
    run = load([str(emitted)]).run
    assert run.gradient_accumulation_steps % memory["devices"] == 0
    shares = {"fsdp": run.use_fsdp, "zero1": run.use_zero1, "ddp": not run.use_fsdp and not run.use_zero1}
    assert shares[memory["strategy"]]
    assert f"# Memory: {as_it_is['memory']['total'] / 1e9:,.2f} GB of" in emitted.read_text()


def test_a_device_of_unknown_memory_bounds_nothing_and_says_so(command):
    options = "--grid_search --peak_flops 5e13 --days 30 --mfu 0.4".split()
    out, free = command(*options)
    assert "memory is not checked: --device_memory says what it has" in out
    assert free["memory"]["passed"] is None and free["candidates"][0]["memory_per_device"] > 8e9
    out, bounded = command(*options, "--device_memory=8")
    assert "not checked" not in out and "the memory of a device in GB: " in out
    assert all(row["memory_per_device"] <= 8e9 for row in bounded["candidates"])
    assert command("--grid_search", "1e18")[1]["candidates"][0]["memory_per_device"] is None


def test_what_the_message_on_memory_advises_is_enough(capsys, monkeypatch, command):
    """Each of the remedies that it names, on the architecture that it names."""
    space = "--hidden_sizes 2048:4096:1024 --head_dims 64,128 --layers 22,32 --vocab_size 50304 --no_gqa".split()
    machines = "--grid_search --device A100-40GB --mfu 0.4 --aspect_ratio 0:inf".split()

    def refusal(*options: str) -> str:
        code, _, err = run(capsys, monkeypatch, *machines, *space, *options)
        assert code == 2 and "the memory of a device in GB must be at most 40" in err, err
        return err

    err = refusal("--days=16", "--micro_batch=16")
    assert "22L-16H-2048D" in err and "fits with --micro_batch 1 or with --activation_checkpointing\n" in err
    for remedy in (["--micro_batch=1"], ["--micro_batch=16", "--activation_checkpointing"]):
        assert command(*machines, *space, "--days=16", *remedy)[1]["candidates"][0]["n_layer"] == 22
    err = refusal("--days=16", "--devices=4", "--strategy=ddp", "--layers=48")
    assert "fits with --strategy fsdp\n" in err
    command(*machines, *space, "--days=16", "--devices=4", "--strategy=fsdp", "--layers=48")
    err = refusal("--days=16", "--layers=128")
    assert (
        "fits with --micro_batch 1 --activation_checkpointing --strategy fsdp on 4 times the --devices for 1/4" in err
    )
    spread = "--micro_batch 1 --activation_checkpointing --strategy fsdp".split()
    command(*machines, *space, *spread, "--layers=128", "--devices=4", "--days=4")
    refusal(*spread, "--layers=128", "--devices=2", "--days=8")
    assert "take smaller --hidden_sizes" in refusal("--days=16", "--vocab_size=30000000")


# Long work


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def on_a_terminal(monkeypatch, work) -> str:
    """What `work` writes to a stderr that is a terminal."""
    terminal = Terminal()
    with monkeypatch.context() as patched:
        patched.setattr(sys, "stderr", terminal)
        work()
    return terminal.getvalue()


def a_long_search() -> None:
    space = SearchSpace("llama3", 100, 8, range(8, 8008, 8), range(1, 1201), (8,), (1,), 3.5, True)
    grid_search.grid_search(Search(1e20, LAWS["besiroglu"], space))


def a_long_bootstrap() -> None:
    draws = np.array([1.7, 400.0, 410.0, 0.34, 0.28]) * np.random.default_rng(0).normal(1, 0.01, (20_000, 5))
    search = Search(1e18, a_law(draws), default_space(1e18, "llama3"))
    uncertainty(grid_search.grid_search(search))


def points() -> law_fitting.Points:
    n, d = (axis.ravel() for axis in np.meshgrid(np.geomspace(1e6, 1e9, 6), np.geomspace(1e8, 1e11, 6)))
    return law_fitting.Points(n, d, LAWS["hoffmann"].loss(n, d))


def a_fit() -> None:
    law_fitting.fit_law(points(), starts=law_fitting.grid_of_starts()[::100], progress=True)


def a_bootstrap_of_a_fit() -> None:
    fit = law_fitting.fit_law(points(), starts=law_fitting.grid_of_starts()[::100])
    law_fitting.bootstrap(points(), fit, 40, seed=0, progress=True)


@pytest.mark.parametrize(
    ("work", "unit"),
    [(a_long_search, "chunk"), (a_long_bootstrap, "draw"), (a_fit, "starts"), (a_bootstrap_of_a_fit, "resamples")],
)
def test_long_work_shows_a_bar_on_a_terminal_only(monkeypatch, capsys, work, unit):
    monkeypatch.setattr(grid_search, "SHOWS_PROGRESS", 1 << 20)  # a quarter, for the test's sake
    shown = on_a_terminal(monkeypatch, work)
    assert "0%|" in shown and f" {unit}" in shown, shown
    work()
    assert capsys.readouterr().err == ""


def test_short_searches_show_none(monkeypatch):
    search = Search(1e18, LAWS["besiroglu"], default_space(1e18, "llama3"))
    assert on_a_terminal(monkeypatch, lambda: grid_search.grid_search(search)) == ""


# How sure the law is


def a_law(draws) -> Law:
    return Law("drawn", 1.7, 400.0, 410.0, 0.34, 0.28, "a test", draws=np.array(draws))


def test_a_law_that_is_certain_has_one_best():
    law = a_law([[1.7, 400.0, 410.0, 0.34, 0.28]] * 3)
    result = grid_search.grid_search(Search(1e18, law, default_space(1e18, "llama3")))
    sure = uncertainty(result)
    equals = int((result.best["loss"] == result.best["loss"][0]).sum())  # as many heads as twice as wide ones
    assert sure.p_best[:equals].tolist() == [1 / equals] * equals and sure.p_best.sum() == 1 and sure.regret[0] == 0
    assert sure.loss[0] == sure.loss[1] == result.candidates(1)[0].loss
    assert sure.n_params == (result.candidates(1)[0].n_params,) * 2


def test_equals_share_the_probability_to_be_the_best(monkeypatch):
    """An attention of as many keys and values, whatever the number of heads: the same N and FLOPs."""
    space = dataclasses.replace(
        default_space(1e17, "gpt2"), hidden_sizes=[256], layers=[4], head_dims=[32, 64], kv_heads=None
    )
    law = a_law([1.7, 400.0, 410.0, 0.34, 0.28] * np.random.default_rng(0).normal(1, 0.02, (40, 5)))
    result = grid_search.grid_search(Search(1e17, law, space))
    assert len(set(result.best["loss"])) == 1, "they are equal"
    assert uncertainty(result).p_best.tolist() == [0.5, 0.5]


def test_the_bootstrap_is_that_of_a_loop():
    rng = np.random.default_rng(0)
    draws = [1.7, 400.0, 410.0, 0.34, 0.28] * rng.normal(1, 0.02, (40, 5))
    space = default_space(1e17, "gpt2")
    result = grid_search.grid_search(Search(1e17, a_law(draws), space))
    sure, candidates = uncertainty(result), result.candidates(10_000)
    wins, regrets, as_good = [0] * len(candidates), [0.0] * len(candidates), [0] * len(candidates)
    for e, a, b, alpha, beta in draws:
        losses = [e + a / c.n_params**alpha + b / c.tokens**beta for c in candidates]
        for index in (ties := [index for index, loss in enumerate(losses) if loss == min(losses)]):
            wins[index] += 1 / len(ties)
        for index, loss in enumerate(losses):
            regrets[index] += (loss - min(losses)) / 40
            as_good[index] += loss <= losses[0]
    assert sure.p_best.tolist() == pytest.approx([win / 40 for win in wins])
    assert sure.regret.tolist() == pytest.approx(regrets, abs=1e-12)
    assert sure.within_noise.tolist() == [count >= 2 for count in as_good]
    assert max(wins) < 40, "these laws disagree"


def test_the_report_of_a_law_with_draws(command, tmp_path):
    constants = [1.7, 400.0, 410.0, 0.34, 0.28]
    draws = (constants * np.random.default_rng(1).normal(1, 0.01, (30, 5))).tolist()
    law = dict(zip(("E", "A", "B", "alpha", "beta"), constants, strict=True)) | {"N": "total", "source": "a test"}
    (tmp_path / "law.json").write_text(json.dumps(law | {"draws": draws}))
    out, found = command("--grid_search", "1e18", f"--law={tmp_path / 'law.json'}", "--top_k=2000")
    assert "95 % interval" in out and "P(best)" in out and "Within the noise" in out
    assert sum(row["p_best"] for row in found["candidates"]) == pytest.approx(1)
    low, high = found["intervals"]["loss"]
    assert low < found["candidates"][0]["loss"] < high
    within = sum(row["within_noise"] for row in found["candidates"])
    assert found["statistics"]["within_noise"] == within >= 1


def test_a_law_sees_the_n_it_means():
    """Without the embedding, a small model counts for less, and the same budget goes to another one."""
    space = default_space(1e17, "llama3")
    total = grid_search.grid_search(Search(1e17, LAWS["hoffmann"], space)).candidates(1)[0]
    blocks = Law("blocks", 1.69, 406.4, 410.7, 0.34, 0.28, "a test", N="non_embedding")
    other = grid_search.grid_search(Search(1e17, blocks, space)).candidates(1)[0]
    cost = model_cost(other.config(space))
    n = cost.n_params - cost.parameters["embedding"] - cost.parameters["lm_head"]
    assert other.loss == pytest.approx(1.69 + 406.4 / n**0.34 + 410.7 / other.tokens**0.28)
    assert other != total


def test_besiroglu_gets_no_interval_and_the_reason(command):
    out, found = command("--grid_search", "1e18")
    assert found["intervals"] is None and "not how they vary together" in out
    assert "that besiroglu was fitted on" in out, "1e18 is outside of the range of the fit"


# The command


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("", "give --grid_search with a budget"),
        ("--grid_search 0", "'0' is not a number of FLOPs above 0"),
        ("--grid_search=-1e20", "'-1e20' is not a number of FLOPs above 0"),
        ("--grid_search -1e20", "--grid_search -1e20: no option takes a number below 0"),
        ("--grid_search=", "--grid_search: '' is not a number of FLOPs above 0"),
        ("--grid_search nan", "'nan' is not a number"),
        ("--grid_search lots", "'lots' is not a number"),
        ("--grid_search", "--device is missing"),
        ("--grid_search --device H100-SXM --days 3", "--mfu is missing"),
        ("--grid_search 1e20 --device H100-SXM", "the budget is given twice"),
        ("--grid_search 1e20 --device_memory 80", "--device_memory says nothing beside --grid_search with a number"),
        ("--grid_search 1e20 --tokens 1e9", "--tokens says nothing beside --grid_search"),
        ("--grid_search --device L4 --days 3 --mfu 0.4 --device_memory 24", "--device_memory contradict each other"),
        ("--grid_search --device L4 --days 3 --mfu 0.4 --strategy fdsp", "(did you mean 'fsdp'?)"),
        ("--grid_search --device L4 --days 3 --mfu 0.4 --micro_batch 0", "'0' is not a whole number above 0"),
        ("--grid_search --peak_flops 1e12 --days 3 --mfu 0.4 --dtype bf16", "did you mean 'bfloat16'?"),
        ("--grid_search --peak_flops 1e12 --days 3 --mfu 0.4 --device_memory nan", "'nan' is not a number above 0"),
        ("--grid_search --device L4 --days 1e308 --mfu 0.4", "beyond arithmetic"),
        ("--grid_search 1e20 --inference_tokens 0.5", "'0.5' is not a whole number above 0"),
        ("--grid_search 1e20 --top_k 1e30", "'1e30' is above"),
        ("--grid_search 1e20 --json /", "is a folder"),
        ("--grid_search --device H100 --days 3 --mfu 0.4", "device 'H100' is none of"),
        ("--grid_search --device V100 --days 3 --mfu 0.4", "V100 does not compute in 'bfloat16'; it has float16"),
        ("--grid_search --device A100 --days 3 --mfu 45", "--mfu=45 is more than the device can do"),
        ("--grid_search 1e20 --law hofman", "did you mean 'hoffmann'?"),
        ("--grid_search 1e20 --law kumar:3", "bits are a whole number from 4 to 16"),
        ("--grid_search 1e20 --law besiroglu:8", "law 'besiroglu:8' is none of"),
        ("--grid_search 1e20 --law gone.json", "gone.json: cannot read it"),
        ("--grid_search 1e20 --arch Mamba-2", "(did you mean 'mamba2'?)"),
        ("--grid_search 1e20 --flops_formula approximate", "is none of: exact, published"),
        ("--grid_search 1e20 --flops_formula published --arch gpt2", "the published formula is Llama's"),
        ("--grid_search 1e20 --hidden_sizes 8192:1024:256", "holds no size of 1 or more"),
        ("--grid_search 1e20 --hidden_sizes 64:128:0", "has a step of 0"),
        ("--grid_search 1e20 --layers 0,4", "holds no size of 1 or more"),
        ("--grid_search 1e20 --layers four", "'four' is neither a size nor first:end:step"),
        ("--grid_search 1e20 --head_dims 63", "RoPE rotates pairs, so 63 cannot be a head dimension"),
        ("--grid_search 1e20 --hidden_sizes 100 --head_dims 64", "the space is empty"),
        ("--grid_search 1e20 --no_gqa --kv_heads 8", "contradict each other"),
        ("--grid_search 1e20 --n_experts 8", "n_experts: llama3 has no experts: drop it, or take another --arch"),
        ("--grid_search 1e20 --granularity 2", "granularity: llama3 has no experts"),
        (
            "--grid_search 1e20 --arch mixtral --n_experts 2 --n_experts_per_token 4",
            "n_experts_per_token=4 is more than",
        ),
        ("--grid_search 1e20 --arch mixtral --n_experts 0", "holds no size of 1 or more"),
        ("--grid_search 1e20 --arch mixtral --n_shared_experts -1", "no option takes a number below 0"),
        ("--grid_search 1e20 --arch mixtral --n_shared_experts one", "'one' is neither a size nor first:end:step"),
        ("--grid_search 1e20 --arch mixtral --granularity 0", "'0' is not a number above 0"),
        ("--grid_search 1e20 --arch mixtral --n_experts 1:2000000", "choices of experts are more than 1,000,000"),
        ("--grid_search 1e20 --vocab_size 0", "'0' is not a whole number above 0"),
        ("--grid_search 1e20 --sequence_length 10.5", "'10.5' is not a whole number above 0"),
        ("--grid_search 1e20 --top_k 0", "'0' is not a whole number above 0"),
        ("--grid_search 1e20 --aspect_ratio 256:32", "is not low:high"),
        ("--grid_search 1e20 --aspect_ratio 32", "'32' is not low:high"),
        ("--grid_search 1e20 --weight_tying maybe", "neither True nor False"),
        ("--grid_search 1e20 --tokens_min 2e9 --tokens_max 1e9", "tokens_min=2e+09 is above tokens_max=1e+09"),
        ("--grid_search 1e20 --json nowhere/x.json", "there is no folder nowhere"),
        ("--grid_search 1e20 --hidden_sizes 1:100000000", "must hold 1 to 1,000,000 sizes"),
        ("--grid_search 1e20 --hidden_sizes 64000000000", "beyond 64-bit arithmetic"),
        ("--grid_search 1e20 --force", "--force is for the config file"),
        ("--grid_search 1e20 --hiden_sizes 64", "--hiden_sizes"),
        # nothing feasible: which bound binds, and what would do
        ("--grid_search 1e13 --hidden_sizes 4096 --head_dims 64 --layers 64", "raise the budget to at least"),
        ("--grid_search 1e20 --max_params 1e3", "raise --max_params to at least"),
        ("--grid_search 1e20 --tokens_max 1e6", "raise --tokens_max, or take larger --hidden_sizes"),
        ("--grid_search 1e20 --aspect_ratio 1000:2000", "n_embd / n_layer must be between 1000 and 2000"),
        ("--grid_search 1e20 --inference_tokens 1e15", "the inference alone costs more than the budget"),
        ("--grid_search 1e13 --flops_formula published", "FLOPs / budget must be between 0.98 and 1.02"),
        ("--grid_search 1e24 --hidden_sizes 64 --layers 2 --no_gqa --enforce_chinchilla", "take larger --hidden_sizes"),
    ],
)
def test_bad_input_is_one_line(capsys, monkeypatch, tmp_path, arguments, message):
    monkeypatch.chdir(tmp_path)
    code, out, err = run(capsys, monkeypatch, *arguments.split())
    assert (code, out) == (2, ""), err
    assert err.startswith("error: ") and err.count("\n") == 1 and message in err
    assert list(tmp_path.iterdir()) == []


def test_the_budget_that_the_message_names_is_enough(capsys, monkeypatch, command):
    space = "--hidden_sizes 4096 --head_dims 64 --layers 64".split()
    _, _, err = run(capsys, monkeypatch, "--grid_search", "1e13", *space)
    enough = err.partition("at least ")[2].partition("raise the budget to at least ")[2].partition(" FLOPs")[0]
    assert command("--grid_search", enough, *space)[1]["statistics"]["passed_flops"] >= 1
    assert run(capsys, monkeypatch, "--grid_search", str(0.98 * float(enough)), *space)[0] == 2


@pytest.mark.parametrize(
    "arguments",
    [
        "1e11 --tokens_min 1e9",
        "1e15 --inference_tokens 1e12",
        "1e13 --arch gpt2 --tokens_min 1e12 --enforce_chinchilla",
        "1e20 --max_params 1e3",
        "1e18 --max_params 33333 --tokens_min 1e10",
        "1e20 --max_params 3e7 --enforce_chinchilla",
    ],
)
def test_following_the_advice_finds_something(capsys, monkeypatch, command, arguments):
    """Also where another budget means another space, and where one bound hides the next."""
    budget, *options = arguments.split()
    code, _, err = run(capsys, monkeypatch, "--grid_search", budget, *options)
    assert code == 2
    if more := re.search(r"raise the budget to at least (\S+) FLOPs", err):
        budget = more[1]
    else:
        options += ["--max_params", re.search(r"raise --max_params to at least (\d+)", err)[1]]
    assert command("--grid_search", budget, *options)[1]["statistics"]["passed_flops"] >= 1


def test_no_advice_that_does_not_help(capsys, monkeypatch):
    _, _, err = run(capsys, monkeypatch, *"--grid_search 1e11 --tokens_min 1e15 --max_params 1e6".split())
    assert "lower --tokens_min, or take smaller models" in err and "raise the budget" not in err


def test_the_command_needs_no_torch(tmp_path):
    script = (
        "import runpy, sys; sys.modules['torch'] = None; "
        f"sys.argv = ['x', '--grid_search', '1e18']; runpy.run_path({str(COMMAND)!r}, run_name='__main__')"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env=environment(), capture_output=True, text=True
    )
    assert done.returncode == 0 and "BEST CONFIG" in done.stdout, done.stderr


def test_the_json_says_what_was_assumed(command):
    _, found = command("--grid_search", "1e18", "--vocab_size=32000", "--weight_tying")
    assert found["space"]["vocab_size"] == 32000 and found["space"]["weight_tying"] is True
    assert found["budget"] == 1e18 and found["flops_formula"] == "exact" and "logits" in found["convention"]
    assert {rule["name"] for rule in found["training_rules"]} == {"step_law", "deepseek", "porian", "olmo_ladder"}
    losses = [row["loss"] for row in found["candidates"]]
    assert losses == sorted(losses) and len(losses) == 10 and math.isfinite(losses[0])
