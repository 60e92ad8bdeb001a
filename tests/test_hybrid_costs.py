"""What hybrids cost, from planner to startup report: grids, searches, shipped sizes, caches, and what is refused."""

import dataclasses
import json
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from commands import command
from conftest import ROOT, environment
from hypothesis import given, settings
from hypothesis import strategies as st

import train
from components.mixers.mamba1.module import Mamba1
from components.mixers.mamba2.module import Mamba2
from components.mixers.mamba2.spec import hybrid_pattern
from configurator import Configuration, load, with_vocabulary
from flops_parameter_counting import detailed_cost_analysis
from flops_parameter_counting.costs.model_cost import model_cost
from flops_parameter_counting.costs.report import as_text, describe
from flops_parameter_counting.costs.setting import Setting
from flops_parameter_counting.planner.space import SIZES, SearchSpace, default_space
from interop.model_files import Model
from model_builder import build_model
from model_config import resolve_architecture
from runs.config import RunConfig
from training.plan import check_ranks, plan_run
from training.report import startup_report

MAMBAS = ("mamba1", "mamba2", "hybrid")


def planned(name: str):
    return plan_run(with_vocabulary(load([str(ROOT / f"config/{name}.py")]), 256), None)


# Parts


def test_the_parts_of_a_hybrid_are_those_of_its_layers():
    """With three mixers, and FFNs after attention alone, each costs the difference that one more layer of it makes."""
    keys = {"n_embd": 64, "n_head": 4, "vocab_size": 53, "block_size": 32, "mamba_head_dim": 16}
    keys |= {"arch_preset": "hybrid", "ffn_after": "attention"}

    def cost(pattern: str):
        chosen = keys if "M" in pattern else {k: v for k, v in keys.items() if k != "mamba_head_dim"}
        return model_cost(resolve_architecture(chosen | {"layer_pattern": pattern, "n_layer": len(pattern)}))

    base = cost("AM")
    for letter, parts in {
        "A": {"attention", "ffn", "norms"},
        "M": {"mamba", "norms"},
        "S": {"mamba", "norms"},
    }.items():
        more = cost("AM" + letter)
        grown = {part for part, count in more.parameters.items() if count != base.parameters[part]}
        assert grown == parts
    three = cost("AMAMS")
    assert three.parameters["ffn"] == 2 * base.parameters["ffn"]
    assert three.flops["attention_scores"] == 2 * base.flops["attention_scores"]
    assert three.flops["scan"] == 2 * base.flops["scan"] + cost("AMS").flops["scan"] - base.flops["scan"]


@pytest.mark.parametrize(
    ("keys", "has_ratio"), [({"layer_pattern": "M"}, False), ({"layer_pattern": "AM", "ffn_after": "mamba"}, True)]
)
def test_the_ratio_of_attention_to_ffn_needs_both(keys, has_ratio):
    configuration = Configuration(resolve_architecture({"vocab_size": 53, **keys}), RunConfig())
    plan = plan_run(configuration, None)
    assert (plan.cost.attention_ffn_ratio is not None) == has_ratio
    assert ("Attention/FFN ratio" in startup_report(configuration, plan, [])) == has_ratio
    no_ffn = dataclasses.replace(
        plan, cost=model_cost(resolve_architecture({"arch_preset": "mamba2", "vocab_size": 9}))
    )
    assert no_ffn.cost.attention_ffn_ratio is None


# The reports


def test_the_startup_report_draws_the_layers():
    model = resolve_architecture({"arch_preset": "hybrid", "n_layer": 24, "vocab_size": 53})
    text = startup_report(*with_plan(model), [])
    assert "Layers:                MAAMMMAMMMMAMMMMAMMMAAAA   9 attention, 15 Mamba-2\n" in text
    cost = model_cost(model)
    training = {part: 3 * cost.flops[part] for part in ("convolution", "scan")}
    for part, count in {"mamba": cost.parameters["mamba"], **training}.items():
        assert re.search(rf"^  {part} +{count:,} ", text, re.MULTILINE)
    keys = {"layer_pattern": "WSA", "attention_window": 9, "ffn_after": "attention", "vocab_size": 53}
    text = startup_report(*with_plan(resolve_architecture(keys)), [])
    assert "WSAWSAWSAWSA   4 attention, 4 attention within 9 tokens, 4 Mamba-1; 8 with an FFN\n" in text
    assert "Layers:" not in startup_report(*with_plan(resolve_architecture({"vocab_size": 53})), [])


def with_plan(model):
    configuration = Configuration(model, RunConfig())
    return configuration, plan_run(configuration, None)


@pytest.mark.parametrize("preset", MAMBAS)
def test_the_cache_is_what_the_layers_keep(preset):
    """In float32: the modules' own caches, and keys and values of every attention layer."""
    keys = {"arch_preset": preset, "n_layer": 4, "n_embd": 64, "vocab_size": 53, "block_size": 40, "mamba_d_conv": 3}
    if preset == "hybrid":
        keys |= {"n_head": 4, "num_key_value_heads": 2}
    config = resolve_architecture(keys)
    model = build_model(config, seed=0)
    held = 2 * 40 * 2 * 16 * 4 * config.layers_with("A")
    for block in model.blocks:
        if isinstance(block.mixer, Mamba1 | Mamba2):
            cache = block.mixer.empty_cache(1)
            held += cache.state.nbytes + cache.convolution.nbytes
    found = describe(Model("one", "test", config), Setting(dtype="float32"))
    cache = found["memory"]["cache"]
    assert cache["bytes_per_sequence"] == held == found["decoding"]["bytes_by_part"]["cache"]
    assert f"{cache['by_part']['state']:,} bytes" in as_text(found)
    half = describe(Model("one", "test", config), Setting(dtype="bfloat16"))["memory"]["cache"]["by_part"]
    assert half["state"] == cache["by_part"]["state"] and 2 * half["convolution"] == cache["by_part"]["convolution"]


@pytest.mark.parametrize("preset", ["mamba1", "mamba2"])
def test_a_pure_mamba_decodes_at_constant_cost(preset):
    """At any context, by its recurrence: of Mamba-2 a token of a sequence of one."""
    config = resolve_architecture({"arch_preset": preset, "n_layer": 4, "n_embd": 64, "vocab_size": 53})
    model = Model("one", "test", config)
    found = [describe(model, Setting(sequence_length=length))["decoding"] for length in (200, 32_768)]
    assert found[0]["bytes_per_token"] == found[1]["bytes_per_token"]
    assert found[0]["flops_per_token"] == found[1]["flops_per_token"]
    recurrence = model_cost(config, 200).flops["scan"]
    if preset == "mamba2":
        recurrence = 4 * 4 * 128 * 128  # into the state, out of it
    assert model_cost(config, 200).flops["convolution"] == 4 * 2 * 4 * (128 + (2 * 128 if preset == "mamba2" else 0))
    others = sum(flops for part, flops in model_cost(config, 200).flops.items() if part != "scan")
    assert found[0]["flops_per_token"] == others + recurrence


# Searches


@settings(max_examples=60)
@given(
    st.sampled_from(MAMBAS),
    st.lists(st.tuples(st.integers(2, 60), st.integers(1, 9)), min_size=1, max_size=4),
)
def test_a_grid_costs_what_each_of_its_architectures_costs(arch, shapes):
    """A hybrid has the attention that `hybrid_pattern` gives each depth."""
    pure = arch != "hybrid"
    layers, widths = [layers for layers, _ in shapes], [32 * width for _, width in shapes]
    space = SearchSpace(arch, 31, 16, widths, layers, () if pure else (16,), None, 0.0 if pure else 3.0, True)
    (grid,) = space.grids(10_000)
    cost = model_cost(grid)
    for index in range(len(space)):
        sizes = {name: int(getattr(grid, name)[index]) for name in SIZES}
        config = space.config(sizes)
        if not pure:
            assert config.layer_pattern == hybrid_pattern(sizes["n_layer"], 0.375)
        assert config == resolve_architecture(config.as_dict()), "what is emitted is a legal architecture"
        alone = model_cost(config)
        for part, count in alone.parameters.items():
            assert np.broadcast_to(cost.parameters[part], len(space))[index] == count
        for part, flops in alone.flops.items():
            assert np.broadcast_to(cost.flops[part], len(space))[index] == flops


def found_by(monkeypatch, capsys, *arguments: str) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["detailed_cost_analysis.py", *arguments])
    with pytest.raises(SystemExit) as end:
        detailed_cost_analysis.main()
    out, err = capsys.readouterr()
    return int(end.value.code or 0), out, err


@pytest.mark.parametrize("arch", MAMBAS)
def test_an_emitted_config_is_what_trains(arch, monkeypatch, capsys, tmp_path, data_dir):
    """N, FLOPs per token and of the run: in the search, in the file, in train.py's report. And it trains."""
    made = tmp_path / "made.py"
    options = ["--grid_search", "1e12", "--arch", arch, f"--emit={made}", f"--json={tmp_path / 'found.json'}"]
    code, out, err = found_by(monkeypatch, capsys, *options, "--dataset=tiny", f"--data_dir={data_dir}")
    assert code == 0, err
    assert "was fitted to transformers: of models with recurrent layers it may be wrong" in out
    best = json.loads((tmp_path / "found.json").read_text())["candidates"][0]
    done = command(
        train.main, made, "--max_iters=2", "--warmup_iters=1", "--device=cpu", f"--out_dir={tmp_path / 'run'}"
    )
    assert done.returncode == 0, done.stderr
    assert f"Parameters:            {best['n_params']:,}\n" in done.stdout
    assert f"FLOPs per token:       {best['flops_per_token']:,} " in done.stdout
    assert "finished at step 2 of 2" in done.stdout
    plan = plan_run(load([str(made)]), None)
    assert f"= {plan.flops('full'):.4e}" in made.read_text()
    assert f'arch_preset = "{arch}"' in made.read_text()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--arch mamba2 --head_dims 64", "head_dims: mamba2 has neither attention nor FFNs"),
        ("--arch mamba1 --kv_heads 4", "kv_heads: mamba1 has neither attention nor FFNs"),
        ("--arch mamba1 --no_gqa", "no_gqa: mamba1 has neither attention nor FFNs"),
        ("--arch mamba2 --no_gqa", "no_gqa: mamba2 has neither attention nor FFNs"),
        ("--arch mamba2 --ffn_expansion_ratio 4", "ffn_expansion_ratio: mamba2 has neither attention nor FFNs"),
        (
            "--arch mamba2 --hidden_sizes 40,72",
            "the space is empty: the layers of mamba2 need hidden sizes that are multiples of 32",
        ),
        ("--arch hybrid --layers 1", "layers: hybrid has 2 kinds of layers: take 2 or more"),
        (
            "--arch hybrids",
            "arch 'hybrids' is none of: legacy, gpt2, llama, llama3, team, qwen3_next, kimi_linear, mamba1, ",
        ),
        ("--arch falcon_h1", "arch='falcon_h1' cannot be represented: in its layers attention and Mamba-2 read the"),
        ("--arch hybrid --flops_formula published", "the published formula is Llama's"),
    ],
)
def test_refused_spaces(options, message, monkeypatch, capsys):
    code, _, err = found_by(monkeypatch, capsys, "--grid_search", "1e13", *options.split())
    assert code == 2 and message in err and len(err.splitlines()) == 1


def test_the_default_spaces_of_large_budgets_have_grouped_queries():
    assert default_space(1e21, "hybrid").kv_heads == (8,)
    assert default_space(1e21, "mamba2").head_dims == ()


# Ranks


@pytest.mark.parametrize("keys", ["--layer_pattern=AM", "--layer_pattern=S", "--ffn_after=mamba"])
def test_tensor_parallel_ranks_share_layers_with_a_state_and_without_an_ffn(keys):
    check_ranks(load(["--tensor_parallel=2", "--vocab_size=256", keys]), 2)


# The shipped sizes

PUBLISHED = {"hybrid_1.3b": 1.44e9, "hybrid_2.7b": 2.56e9, "hybrid_6.7b": 5.96e9, "hybrid_13b": 10.66e9}
EXACT = {
    "hybrid_1.3b": 1_434_549_824,
    "hybrid_2.7b": 2_569_003_200,
    "hybrid_6.7b": 5_976_592_896,
    "hybrid_13b": 10_693_701_600,
}
RUNS = {
    "run_quick_test": "arch_hybrid",
    "run_small_scale": "hybrid_1.3b",
    "run_medium_scale": "hybrid_2.7b",
    "run_large_scale": "hybrid_6.7b",
    "run_xlarge_scale": "hybrid_13b",
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_hybrid_sizes(name):
    cost = planned(name).cost
    assert cost.n_params == EXACT[name]
    assert cost.n_params == pytest.approx(PUBLISHED[name], rel=0.02)
    model = load([str(ROOT / f"config/{name}.py")]).model
    assert model.layers_with("A") == 0.375 * model.n_layer
    with torch.device("meta"):
        built = build_model(model, device="meta")
    assert sum(parameter.numel() for parameter in built.parameters()) == EXACT[name]


@pytest.mark.parametrize("name", RUNS)
def test_a_run_preset_trains_the_model_of_its_size(name):
    run, size = (load([str(ROOT / f"config/{one}.py")]).model for one in (name, RUNS[name]))
    assert run.replace(block_size=size.block_size) == size
    assert f"{RUNS[name]}.py" in (ROOT / f"config/{name}.py").read_text()


@pytest.mark.parametrize("name", [*PUBLISHED, *RUNS])
def test_the_comments_state_the_true_figures(name):
    """Layers, parameters by part, FLOPs per token and of the run, steps; and every product that is written out."""
    text = " ".join((ROOT / f"config/{name}.py").read_text().replace("#", " ").split())
    plan, model = planned(name), load([str(ROOT / f"config/{name}.py")]).model
    parts = " + ".join(f"{count:,} {part}" for part, count in plan.cost.parameters.items() if count)
    per_token = plan.flops_per_token["full"]
    assert f"Layers: {model.layer_pattern} (A attention, M Mamba-2)" in text
    assert f"Parameters: {parts} = {plan.cost.n_params:,}" in text
    assert f"FLOPs per token: {per_token:,} (training, full attention, with logits)" in text
    assert f"{plan.tokens:,} tokens x {per_token:,} = {plan.flops('full'):.4e}" in text
    assert f"= {plan.tokens_per_step:,} tokens a step" in text
    assert f"{plan.length:,} steps" in text
    for terms, result in re.findall(r"((?:[\d,]+ x )+[\d,]+) = ([\d,]+)\b", text):
        if "tokens" not in terms:
            assert eval(terms.replace(",", "").replace("x", "*")) == int(result.replace(",", "")), terms


@pytest.mark.parametrize("name", [*PUBLISHED, *RUNS])
def test_dry_run(name, tmp_path):
    process = [sys.executable, str(ROOT / "train.py"), str(ROOT / f"config/{name}.py"), "--dry_run"]
    process.append(f"--data_dir={tmp_path}")
    if name in ("run_large_scale", "run_xlarge_scale"):
        process.append(f"--world_size={64 if name == 'run_xlarge_scale' else 32}")
    done = subprocess.run(process, cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert f"Parameters:            {planned(name).cost.n_params:,}\n" in done.stdout
    assert list(tmp_path.iterdir()) == []
