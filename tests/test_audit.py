"""What is counted here beside what transformers' classes are and run: of every family, small and of public sizes; and
models of families that have no room here, which are counted by their class alone."""

import importlib.util
import json
import subprocess
import sys

import pytest
import torch
import transformers
from conftest import ROOT
from torch.utils.flop_counter import FlopCounterMode

from common.errors import UserError
from components import registry
from flops_parameter_counting import detailed_cost_analysis, validate
from flops_parameter_counting.costs.model_cost import model_cost
from interop.audit import LENGTH, audit
from interop.configurations import FAMILIES
from interop.model_files import model_from_values
from interop.samples import PUBLIC, public, small
from interop.tracing import trace

NO_TOKENS = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))
WITH_ROOM = [name for name, values in PUBLIC.items() if values["model_type"] in FAMILIES]


def build(values: dict, device: str = "cpu"):
    """Their model, whose experts are as many products as there are choices."""
    keys = {key: value for key, value in values.items() if key != "model_type"}
    config = transformers.AutoConfig.for_model(values["model_type"], **(NO_TOKENS | keys))
    with torch.device(device):
        return transformers.AutoModelForCausalLM.from_config(
            config, attn_implementation="eager", experts_implementation="batched_mm"
        ).eval()


@pytest.fixture
def command(capsys, monkeypatch, tmp_path):
    """Run `detailed_cost_analysis.py --model_config` on a config.json and return its code, stdout, stderr, and JSON."""

    def run(values: dict, arguments: str = ""):
        (tmp_path / "config.json").write_text(json.dumps(values))
        found = tmp_path / "found.json"
        found.unlink(missing_ok=True)
        options = ["--model_config", str(tmp_path / "config.json"), "--json", str(found), *arguments.split()]
        monkeypatch.setattr(sys, "argv", ["detailed_cost_analysis.py", *options])
        with pytest.raises(SystemExit) as leaving:
            detailed_cost_analysis.main()
        out, error = capsys.readouterr()
        return leaving.value.code or 0, out, error, json.loads(found.read_text()) if found.exists() else None

    return run


# ---------------------------------------------------------------------------------------------------------------------
# Families with a room


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_audited_equal_part_by_part(family):
    found = audit(small(family), family)
    assert found.differences() == []
    assert set(found.not_compared) <= {"scan", "delta_rule"}
    assert sum(theirs for _, theirs in found.parameters.values()) == build(small(family)).num_parameters()
    assert {"lm_head", "norms"} <= {*found.flops, *found.parameters}
    assert "other" not in found.parameters and not any(ours == 0 for ours, _ in found.flops.values())


def test_every_family_has_a_model_of_public_size():
    assert {values["model_type"] for values in PUBLIC.values()} >= set(FAMILIES)


@pytest.mark.parametrize("name", WITH_ROOM)
def test_parameters_of_public_sizes_are_those_of_the_class(name):
    """Of four layers in their real widths; those that repeat add nothing."""
    values = public(name, layers=4)
    config = model_from_values(values, name).architecture
    cost, model = model_cost(config, 1), build(values, "meta")
    assert cost.n_params == model.num_parameters() == sum(one.numel() for one in model.parameters())
    stacks = {k: one.numel() for k, one in model.named_parameters() if ".experts." in k}
    idle = sum(stacks.values())
    if stacks:
        met = model.config.num_experts_per_tok
        idle -= sum(count * met // model.get_parameter(k).shape[0] for k, count in stacks.items())
    assert cost.n_active == cost.n_params - idle


@pytest.mark.slow
@pytest.mark.parametrize("name", PUBLIC)
def test_whole_models_of_public_sizes_are_audited_equal(name):
    """And those whose family has no room here have the parameters of their class."""
    if name in WITH_ROOM:
        assert audit(public(name), name).differences() == []
    else:
        assert sum(trace(public(name), 8).parameters.values()) == build(public(name), "meta").num_parameters()


@pytest.mark.slow
def test_validate_audits_every_family(capsys):
    assert validate.validate() == 0
    printed = capsys.readouterr().out
    for family in FAMILIES:
        assert f"audit of a small {family}: parameters" in printed and f"audit of a small {family}: FLOPs" in printed
    for name in WITH_ROOM:
        assert f"audit of {name}, {validate.LAYERS} layers: FLOPs" in printed
    assert "FAIL" not in printed


def test_an_audit_stands_beside_the_report(command):
    code, out, error, found = command(small("llama"), "--audit")
    assert code == 0, error
    assert "AUDIT beside LlamaForCausalLM of transformers" in out and "DIFFERS" not in out
    assert found["audit"]["differences"] == [] and found["audit"]["sequence_length"] == LENGTH
    ours = found["parameters"]["by_part"]
    assert {part: both["ours"] for part, both in found["audit"]["parameters"].items()} == ours
    assert {part: both["traced"] for part, both in found["audit"]["parameters"].items()} == ours


def test_a_window_bounds_the_audit_and_says_so(command):
    code, out, _, found = command(small("mistral"), "--audit --sequence_length 64")
    assert code == 0 and "audited at 16 tokens, the window" in out
    assert found["sequence_length"] == 64 and found["audit"]["sequence_length"] == 16


def wrong_products(monkeypatch):
    spec = type(registry.spec("mixer", "attention"))
    products = spec.products
    monkeypatch.setattr(spec, "products", lambda *given: products(*given)[:-1])


def wrong_bias(monkeypatch):
    spec = type(registry.spec("ffn_type", "swiglu"))
    weights = spec.weights
    monkeypatch.setattr(spec, "weights", lambda self, config: weights(self, config.replace(bias=True)))


@pytest.mark.parametrize(
    ("mistake", "named"),
    [(wrong_products, "FLOPs of attention_scores: 0 here"), (wrong_bias, "parameters of ffn: 18,944 here, 18,432 by")],
)
def test_a_wrong_spec_is_an_error_that_names_the_part(command, monkeypatch, mistake, named):
    mistake(monkeypatch)
    code, out, error, found = command(small("llama"), "--audit")
    assert code == 2 and error.count("\n") == 1
    assert "config: the audit differs in" in error and named in error and "DIFFERS" in out
    assert len(found["audit"]["differences"]) == (1 if mistake is wrong_products else 2)  # the other: active ones
    found = list(validate.audit_checks_of("a", small("llama")))
    assert [one.what for one in found if (not one.passed and "attention_scores" in one.what) or "ffn" in one.what]


def test_what_an_audit_is_for(command, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["x", "--model_config", str(ROOT / "config/full_gpt2_124m.py"), "--audit"])
    with pytest.raises(SystemExit):
        detailed_cost_analysis.main()
    assert "--audit is for a config.json of Hugging Face" in capsys.readouterr().err


# ---------------------------------------------------------------------------------------------------------------------
# Families without one

SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 97}
CONTEXT = {"num_key_value_heads": 2, "max_position_embeddings": 24}
FOREIGN = {
    "cohere": SIZES | CONTEXT,
    "starcoder2": SIZES | CONTEXT,
    "stablelm": SIZES | CONTEXT,
    "phi": SIZES | CONTEXT,
    "nemotron": SIZES | CONTEXT,
    "granitemoe": SIZES | CONTEXT | {"num_local_experts": 4, "num_experts_per_tok": 2},
}
FOREIGN = {name: {"model_type": name, **values} for name, values in FOREIGN.items() if name not in FAMILIES}


@pytest.mark.parametrize("family", FOREIGN)
def test_any_model_is_counted_by_its_class(command, family):
    """Parameters and FLOPs are those of the class with weights, run on the CPU."""
    code, out, error, found = command(FOREIGN[family])
    assert code == 0, error
    model = build(FOREIGN[family])
    assert found["parameters"]["total"] == model.num_parameters() == sum(found["parameters"]["by_part"].values())
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        model(torch.zeros(2, 24, dtype=torch.long))
    flops = found["flops_per_token"]
    assert found["sequence_length"] == 24 and 2 * 24 * flops["forward"] == counter.get_total_flops()
    assert flops["forward"] == sum(flops["by_part"].values()) and flops["training"] == 3 * flops["forward"]
    assert flops["by_part"]["attention_scores"] == 2 * 2 * 24 * 32 * 2  # layers, products, keys, width, multiply-adds
    assert found["traced"] == type(model).__name__ in out and "what is computed elementwise is not seen" in out
    assert f"{model.num_parameters():,}" in out and found["name"] == "config" and family in out


def test_a_token_of_a_traced_model_meets_the_experts_that_it_chooses():
    traced = trace(FOREIGN["granitemoe"], 16)
    experts = 2 * 4 * 3 * 32 * 48  # layers, experts, matrices
    assert traced.parameters["experts"] == experts and traced.active["experts"] == experts // 2
    assert traced.flops["experts"] == 16 * 2 * experts // 2
    assert traced.parameters["router"] == 2 * 4 * 32


def test_what_a_trace_does_not_see_is_said():
    sizes = {key: SIZES[key] for key in ("hidden_size", "num_hidden_layers", "vocab_size")}
    traced = trace({"model_type": "falcon_mamba", **sizes, "max_position_embeddings": 16}, 16)
    assert "scan" in traced.unlike and "not seen" in traced.notes[-1]
    assert "state of FalconMambaMixer" in traced.notes[-1]
    windowed = trace({**FOREIGN["starcoder2"], "sliding_window": 4}, 16)
    assert any("sliding_window=4: attention is counted in full" in note for note in windowed.notes)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model_type": "lama"}, "model_type='lama' is none of: gpt2, llama"),
        ({"model_type": ["cohere"]}, "is none of: gpt2"),
        ({"model_type": "t5"}, "model_type='t5': transformers has no causal language model of this type"),
        ({"model_type": "longcat_flash"}, "cannot be traced by transformers: "),  # its experts depend on values
        ({**FOREIGN["cohere"], "num_attention_heads": "many"}, "model_type='cohere' cannot be traced by transformers"),
        ({**FOREIGN["phi"], "max_position_embeddings": None}, "'max_position_embeddings': TypeError"),
    ],
)
def test_what_cannot_be_traced_is_refused_in_one_line(command, values, message):
    code, out, error, found = command(values)
    assert code == 2 and out == "" and found is None
    assert error.startswith("error: ") and error.count("\n") == 1 and message in error


def test_code_beside_a_model_is_not_run(command, tmp_path):
    (tmp_path / "modeling_own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    remote = {"auto_map": {"AutoConfig": "modeling_own.Config", "AutoModelForCausalLM": "modeling_own.Model"}}
    assert command({**FOREIGN["cohere"], **remote})[0] == 0
    code, _, error, _ = command({"model_type": "own", **remote})
    assert code == 2 and "nor has transformers" in error
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("option", ["--tokens 1e9 --mfu 0.4 --device H200", "--micro_batch 2", "--audit"])
def test_what_a_trace_does_not_tell_is_refused(command, option):
    code, _, error, _ = command(FOREIGN["cohere"], option)
    assert code == 2 and "is traced, of which --" in error and error.count("\n") == 1


@pytest.mark.parametrize(("values", "option"), [(FOREIGN["cohere"], ""), (small("llama"), "--audit")])
def test_without_transformers_it_is_said_what_to_install(command, monkeypatch, values, option):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "transformers" else found(name))
    code, _, error, _ = command(values, option)
    assert code == 2 and "transformers must be installed: pip install transformers" in error


def test_a_model_that_is_not_traced_needs_neither_torch_nor_transformers(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(small("llama")))
    program = """import sys
from flops_parameter_counting import detailed_cost_analysis
try:
    detailed_cost_analysis.main()
except SystemExit as end:
    assert not end.code
assert not {"torch", "transformers"} & set(sys.modules)
"""
    arguments = [sys.executable, "-c", program, "--model_config", str(tmp_path)]
    done = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "PARAMETERS" in done.stdout, done.stderr


def test_a_length_is_asked_for_where_the_model_has_none():
    with pytest.raises(UserError, match="give --sequence_length"):
        trace({"model_type": "bloom", "vocab_size": 97, "hidden_size": 32, "n_head": 4, "n_layer": 1})
