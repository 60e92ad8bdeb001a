"""Several architectures at one budget: each one's best, which is that of a search of its own, side by side."""

import json
import sys

import pytest
from conftest import ROOT

import ladder
from configurator import load
from flops_parameter_counting import detailed_cost_analysis
from flops_parameter_counting.costs.model_cost import model_cost
from flops_parameter_counting.costs.report import memory_per_device
from flops_parameter_counting.costs.setting import Setting
from flops_parameter_counting.laws.scaling_laws import LAWS, count_parameters
from ladders.plan import read_plan
from model_config import presets, resolve_architecture
from training.plan import plan_run

COMMAND = ROOT / "flops_parameter_counting/detailed_cost_analysis.py"


@pytest.fixture
def search(capsys, monkeypatch, tmp_path):
    """`search(*arguments)`: exit code, stdout, stderr, and the JSON, None where there is none."""

    def call(*arguments: str):
        file = tmp_path / "found.json"
        file.unlink(missing_ok=True)
        monkeypatch.setattr(sys, "argv", [str(COMMAND), "--grid_search", *arguments, f"--json={file}"])
        with pytest.raises(SystemExit) as end:
            detailed_cost_analysis.main()
        out, err = capsys.readouterr()
        return int(end.value.code or 0), out, err, json.loads(file.read_text()) if file.exists() else None

    return call


def test_every_preset_has_a_row_that_its_own_search_has_too(search):
    names = list(presets())
    code, out, err, found = search("1e15", "--arch", ",".join(names), "--top_k=1")
    assert code == 0, err
    assert sorted(row["arch"] for row in found["side_by_side"]) == sorted(names)
    losses = [row["loss"] for row in found["side_by_side"]]
    assert losses == sorted(losses)
    for row in found["side_by_side"]:
        alone = search("1e15", "--arch", row["arch"], "--top_k=1")[3]
        assert found["architectures"][row["arch"]] == alone
        best = alone["candidates"][0]
        assert (row["loss"], row["n_params"], row["tokens"]) == (best["loss"], best["n_params"], best["tokens"])
        assert f"{row['loss']:.6f}" in out and row["architecture"] in out


def test_a_row_is_that_of_one_model(search):
    """Recounted from the name and the sizes, of a dense model, one of experts and one with a state."""
    row_of = {row["arch"]: row for row in search("1e17", "--arch=gpt2,mixtral,mamba2", "--top_k=1")[3]["side_by_side"]}
    found = search("1e17", "--arch=gpt2,mixtral,mamba2")[3]["architectures"]
    for arch, row in row_of.items():
        best = found[arch]["candidates"][0]
        keys = {name: best[name] for name in ("n_layer", "n_embd", "n_head", "d_ff", "expert_d_ff") if best.get(name)}
        config = resolve_architecture({"arch_preset": arch, "vocab_size": 50304, "block_size": 1024, **keys})
        cost = model_cost(config)
        assert (row["architecture"], row["n_params"], row["n_active"]) == (config.name, cost.n_params, cost.n_active)
        assert row["flops"] == row["tokens"] * cost.training_flops() <= 1e17
        assert row["loss"] == pytest.approx(LAWS["besiroglu"].loss(count_parameters(cost, "total"), row["tokens"]))
        assert row["memory"] == memory_per_device(config, 1024, Setting())["total"]
    assert row_of["mixtral"]["n_active"] < row_of["mixtral"]["n_params"]


def test_all_have_one_vocabulary_and_length(search):
    """At 1e21 llama3 has by itself the published ones, 128,256 and 2,048, under which it would not compare."""
    found = search("1e21", "--arch=llama3,gpt2")[3]
    assert {report["space"]["vocab_size"] for report in found["architectures"].values()} == {50304}
    assert {report["space"]["sequence_length"] for report in found["architectures"].values()} == {1024}
    found = search("1e21", "--arch=llama3,gpt2", "--vocab_size=128256", "--sequence_length=2048")[3]
    alone = search("1e21", "--arch=llama3")[3]
    assert found["architectures"]["llama3"]["candidates"] == alone["candidates"]


def test_what_is_said_of_them(search):
    """The law's caveat, in words; of all what all have in common, of some with their names."""
    out = search("1e17", "--arch=llama3,mamba2,mixtral")[1]
    assert "note: the law knows a model by its N and its D: between these architectures it compares how many" in out
    assert "note: losses are in nats per token of the law's own tokenizer" in out
    assert "note: mamba2: besiroglu was fitted to transformers" in out
    assert "note: mixtral: the law is one of dense models: of experts its N counts those that a token meets" in out


def test_each_has_a_config_file(search, tmp_path):
    code, out, err, found = search("1e17", "--arch=gpt2,mamba2,mixtral", f"--emit={tmp_path / 'best_{arch}.py'}")
    assert code == 0, err
    for row in found["side_by_side"]:
        path = tmp_path / f"best_{row['arch']}.py"
        assert f"wrote {path}: " in out
        plan = plan_run(load([str(path)]), None)
        assert (plan.cost.n_params, plan.cost.n_active) == (row["n_params"], row["n_active"])
        assert plan.flops_per_token["full"] == row["flops_per_token"]
        assert 0 <= row["tokens"] - plan.tokens < plan.tokens_per_step


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--arch=llama3,Mamba-2", "arch 'Mamba-2' is none of"),
        ("--arch=llama3,Mamba-2", "(did you mean 'mamba2'?)"),
        ("--arch=llama3,", "arch '' is none of"),
        ("--arch=llama3,gpt2,llama3", "names llama3 twice"),
        ("--arch=llama3,gpt2 --emit={tmp}/x.py", "--arch names 2: write {arch} in its name, as in x_{arch}.py"),
        ("--arch=llama3,gpt2 --emit={tmp}/x_{{arch}}.txt", "must end in .py"),
        ("--arch=llama3,mamba1 --head_dims=64", "head_dims: mamba1 has neither attention nor FFNs"),
        ("--arch=llama3,gpt2 --flops_formula=published", "for --arch=gpt2 take the exact one"),
    ],
)
def test_bad_input_is_one_line(search, tmp_path, arguments, message):
    code, out, err, found = search("1e17", *arguments.format(tmp=tmp_path, arch="{arch}").split())
    assert (code, out, found) == (2, "", None) and message in err and err.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_ladders_config_of_experts_is_the_model_that_was_chosen(data_dir, tmp_path, monkeypatch):
    """Of a preset with a head_dim of its own too, which the chosen model need not have."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["ladder.py", *LADDER, f"--data_dir={data_dir}"])
    with pytest.raises(SystemExit) as end:
        ladder.main()
    assert not end.value.code
    plan = read_plan(tmp_path / "x")
    assert {run.arch for run in plan.runs} == {"mixtral", "gpt_oss"}
    for run in plan.runs:
        configuration = load([str(tmp_path / f"x/configs/{run.name}.py")])
        cost = model_cost(configuration.model)
        assert (configuration.model.name, cost.n_params) == (run.model, run.n_params)
        assert cost.training_flops() == run.flops_per_token


LADDER = (
    "plan --budget 1e12 --arch mixtral,gpt_oss --seeds 1 --dataset tiny --block_size 32 --device cpu --out x".split()
)


def test_a_ladder_is_planned_by_laws_of_n_and_d(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["ladder.py", *LADDER, "--law=abnar"])
    with pytest.raises(SystemExit) as end:
        ladder.main()
    assert end.value.code == 2 and "--law=abnar sees more of a model than N and D" in capsys.readouterr().err
