"""`--backward_config`: what given machines make of a given model, against arithmetic by hand; every key is honoured or
refused."""

import copy
import itertools
import json
import math
import re
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import UserError
from configurator import as_dict, load
from flops_parameter_counting import detailed_cost_analysis
from flops_parameter_counting.costs.report import describe
from flops_parameter_counting.costs.setting import Setting
from flops_parameter_counting.laws.scaling_laws import LAWS
from flops_parameter_counting.planner.backward import answer, as_text, backward, read_question
from interop.model_files import Model

COMMAND = ROOT / "flops_parameter_counting/detailed_cost_analysis.py"
EXAMPLE = ROOT / "config/backward_h100.jsonc"

LLAMA = {"arch_preset": "llama3", "n_layer": 18, "n_head": 16, "num_key_value_heads": 8, "n_embd": 2048, "d_ff": 7168,
         "block_size": 2048, "vocab_size": 128256}  # fmt: skip
GEAR = {"gpu_type": "H100-SXM", "num_gpus": 8, "available_hours": 240}
QUESTION = {"architecture": LLAMA, "training_gear": GEAR, "training_efficiency": {"mfu": 0.45}}

# LLAMA by hand: 18 blocks of 2048 x (2 x 2048 + 2 x 1024 + 3 x 7168) weights, two norms each and one at the end
WEIGHTS = 18 * 2048 * (2 * 2048 + 2 * 1024 + 3 * 7168)
N = WEIGHTS + 2 * 128256 * 2048 + (2 * 18 + 1) * 2048
FLOPS_PER_TOKEN = 3 * (2 * WEIGHTS + 18 * 4 * 2048 * 2048 + 2 * 128256 * 2048)
C = 989.4e12 * 8 * 240 * 3600 * 0.45


LAW = {"E": 1.7, "A": 400.0, "B": 410.0, "alpha": 0.34, "beta": 0.28, "N": "total", "source": "a test"}


@pytest.fixture
def ask(tmp_path):
    """`ask(values)`: what `backward` finds for a file of these sections."""

    def asked(values: dict) -> dict:
        path = tmp_path / "question.jsonc"
        path.write_text(json.dumps(values))
        return backward(read_question(path))

    return asked


@pytest.fixture
def command(capsys, monkeypatch, tmp_path):
    """`command(*arguments)`: exit code, stdout, stderr."""

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", [str(COMMAND), *arguments])
        with pytest.raises(SystemExit) as end:
            detailed_cost_analysis.main()
        printed = capsys.readouterr()
        return int(end.value.code or 0), printed.out, printed.err

    return run


def with_(section: str, **values) -> dict:
    """QUESTION with other values in a section; those that are None are left out."""
    changed = copy.deepcopy(QUESTION)
    together = changed.get(section, {}) | values
    return changed | {section: {key: value for key, value in together.items() if value is not None}}


# The figures


def test_everything_follows_by_hand(ask):
    found = ask(QUESTION)
    assert found["model"]["n_params"] == found["model"]["n_of_law"] == N == 1_544_628_224
    assert found["model"]["flops_per_token"] == FLOPS_PER_TOKEN
    assert found["compute"]["flops"] == pytest.approx(C, rel=1e-12)
    tokens = found["tokens"]
    assert tokens["D"] == tokens["afforded_by_compute"] == int(C) // FLOPS_PER_TOKEN and tokens["binds"] == "compute"
    assert tokens["hours"] == pytest.approx(240) and tokens["allowed_by_data"] is None
    assert found["loss"]["predicted"] == pytest.approx(1.8172 + 482.01 / N**0.3478 + 2085.43 / tokens["D"] ** 0.3658)
    assert tokens["tokens_per_parameter"] == pytest.approx(C / FLOPS_PER_TOKEN / N)


def test_the_dataset_may_bind_and_leaves_time(ask):
    question = with_("dataset_constraints", unique_tokens=2e10, epochs=2.5) | {"scaling_law": "hoffmann"}
    found = ask(question)
    tokens = found["tokens"]
    assert tokens["D"] == tokens["allowed_by_data"] == 50_000_000_000 and tokens["binds"] == "data"
    assert tokens["epochs"] == 2.5 and tokens["afforded_by_compute"] == int(C) // FLOPS_PER_TOKEN
    assert tokens["hours"] == pytest.approx(240 * 5e10 * FLOPS_PER_TOKEN / C)
    worth = 2e10 + 2e10 * 15.387756 * (1 - math.exp(-1.5 / 15.387756))  # Muennighoff et al. 2023, equation 5
    assert found["loss"]["worth_in_unique_tokens"] == pytest.approx(worth)
    assert found["loss"]["predicted"] == pytest.approx(1.69 + 406.4 / N**0.34 + 410.7 / worth**0.28)
    assert any("their value is that of Muennighoff" in note for note in found["notes"])


def test_a_dataset_that_is_not_seen_twice_changes_nothing(ask):
    plenty = ask(with_("dataset_constraints", unique_tokens=1e12, epochs=1))
    free = ask(QUESTION)
    assert plenty["loss"] == free["loss"] and plenty["tokens"]["binds"] == "compute"
    assert plenty["tokens"]["epochs"] == pytest.approx(free["tokens"]["D"] / 1e12)
    assert not any("Muennighoff" in note for note in plenty["notes"])


@settings(max_examples=60)
@given(
    st.floats(1, 1e6),
    st.sampled_from([name for name, law in sorted(LAWS.items()) if law.N != "non_embedding"]),
    st.none() | st.tuples(st.integers(10**6, 10**13), st.floats(0.5, 40)),
)
def test_the_optimum_is_that_of_a_minimiser_and_never_worse(tmp_path_factory, hours, law, data):
    """With tokens at the model's own FLOPs a parameter; scipy's bounded minimiser over ln N, from several brackets."""
    optimize = pytest.importorskip("scipy.optimize")
    question = with_("training_gear", available_hours=hours) | {"scaling_law": law}
    if data is not None:
        question["dataset_constraints"] = {"unique_tokens": data[0], "epochs": data[1]}
    path = tmp_path_factory.mktemp("asked") / "question.json"
    path.write_text(json.dumps(question))
    found = backward(read_question(path))
    flops, cap = found["compute"]["flops"], math.inf if data is None else found["tokens"]["allowed_by_data"]

    def loss(log_n: float) -> float:
        n = math.exp(log_n)
        return float(LAWS[law].loss(n, min(cap, flops / (FLOPS_PER_TOKEN / N) / n), data and data[0]))

    brackets = np.linspace(0, math.log(flops / (FLOPS_PER_TOKEN / N)), 60)  # to D = 1
    minima = [
        optimize.minimize_scalar(loss, bounds=pair, method="bounded").fun for pair in itertools.pairwise(brackets)
    ]
    best = found["optimum"]
    assert best["loss"] == pytest.approx(min(minima), rel=1e-5)
    assert best["loss_above_optimum"] >= -1e-9
    assert best["loss_above_optimum"] == pytest.approx(found["loss"]["predicted"] - best["loss"], abs=1e-12)
    assert best["n_over_optimum"] == pytest.approx(N / best["n_of_law"])


def test_without_a_bound_on_data_the_optimum_is_the_closed_form(ask):
    """Hoffmann et al. 2022, equation 4, with this model's FLOPs per parameter and token in the place of 6."""
    found = ask(QUESTION | {"scaling_law": "hoffmann"})
    alpha, beta, a, b = 0.34, 0.28, 406.4, 410.7
    g = (alpha * a / (beta * b)) ** (1 / (alpha + beta))
    n = g * (C / (FLOPS_PER_TOKEN / N)) ** (beta / (alpha + beta))
    assert found["optimum"]["n_of_law"] == pytest.approx(n, rel=2e-3)


def test_memory_is_that_of_model_config(ask):
    efficiency = {"mfu": 0.45, "micro_batch": 3, "activation_checkpointing": True}
    found = ask(QUESTION | {"training_efficiency": efficiency})
    model = Model("the architecture", "test", read_architecture(LLAMA))
    for memory in found["memory"]:
        setting = Setting(micro_batch=3, activation_checkpointing=True, devices=8, strategy=memory["strategy"])
        assert memory["by_part"] == describe(model, setting)["memory"]["by_part"]
        assert memory["fits"] is (memory["total"] <= 80e9)
    assert {"ddp", "zero1", "fsdp"} <= {memory["strategy"] for memory in found["memory"]}


def read_architecture(values: dict):
    from configurator import from_dict

    return from_dict(values)


def test_a_law_with_draws_gives_an_interval(ask, tmp_path):
    constants = [1.7, 400.0, 410.0, 0.34, 0.28]
    draws = constants * np.random.default_rng(0).normal(1, 0.01, (50, 5))
    law = dict(zip(("E", "A", "B", "alpha", "beta"), constants, strict=True))
    law |= {"N": "non_embedding", "source": "a test", "draws": draws.tolist()}
    found = ask(QUESTION | {"scaling_law": law})
    n = WEIGHTS + (2 * 18 + 1) * 2048
    assert found["model"]["n_of_law"] == n and found["law"]["N"] == "non_embedding"
    losses = [e + a / n**alpha + b / found["tokens"]["D"] ** beta for e, a, b, alpha, beta in draws]
    assert found["loss"]["interval_95"] == pytest.approx(np.quantile(losses, [0.025, 0.975]))
    (tmp_path / "law.json").write_text(json.dumps(law))
    assert ask(QUESTION | {"scaling_law": "law.json"})["loss"] == found["loss"], "a path, relative to the file"


# Where the architecture comes from


def test_an_architecture_in_keys_a_file_or_hugging_faces(ask, tmp_path):
    inline = ask(QUESTION)
    hugging_face = {"model_type": "llama", "num_hidden_layers": 18, "num_attention_heads": 16, "hidden_size": 2048,
                    "num_key_value_heads": 8, "intermediate_size": 7168, "max_position_embeddings": 2048,
                    "vocab_size": 128256, "rope_theta": 5e5}  # fmt: skip
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/llama.json").write_text(json.dumps(hugging_face))
    (tmp_path / "mine.py").write_text("".join(f"{key} = {value!r}\n" for key, value in LLAMA.items()))
    run = as_dict(load([str(tmp_path / "mine.py")]))
    (tmp_path / "run.json").write_text(json.dumps(run))
    for architecture in (hugging_face, "sub/llama.json", "mine.py", "run.json"):
        found = ask(QUESTION | {"architecture": architecture})
        for section in ("tokens", "loss", "optimum"):
            assert found[section] == inline[section]
        assert [memory["total"] for memory in found["memory"]] == [memory["total"] for memory in inline["memory"]]


def test_experts_count_as_many_as_a_token_meets(ask):
    sizes = {"hidden_size": 512, "intermediate_size": 1024, "num_hidden_layers": 4, "num_attention_heads": 8}
    experts = {"moe_intermediate_size": 256, "n_routed_experts": 16, "num_experts_per_tok": 2, "vocab_size": 1000}
    latent = {"kv_lora_rank": 64, "qk_nope_head_dim": 32, "qk_rope_head_dim": 16, "v_head_dim": 32}
    found = ask(QUESTION | {"architecture": {"model_type": "deepseek_v2", **sizes, **experts, **latent}})
    model = found["model"]
    assert model["n_of_law"] == model["n_active"] == model["n_params"] - 4 * 14 * 3 * 512 * 256
    assert any("experts" in note for note in found["notes"])
    assert all(memory["not_known"] is None for memory in found["memory"])


def test_another_sequence_length_costs_other_scores(ask):
    found = ask(with_("dataset_constraints", sequence_length=4096))
    assert found["model"]["flops_per_token"] == FLOPS_PER_TOKEN + 3 * 18 * 4 * 2048 * 2048
    assert found["model"]["sequence_length"] == 4096


def test_a_device_that_is_not_listed(ask):
    gear = {"gpu_type": "my laptop", "num_gpus": 1, "available_hours": 5000, "dtype": "float32", "peak_flops": 2e11}
    found = ask(QUESTION | {"training_gear": gear})
    assert found["compute"]["flops"] == pytest.approx(2e11 * 5000 * 3600 * 0.45)
    assert all(memory["fits"] is None and memory["dtype"] == "float32" for memory in found["memory"])
    known = ask(QUESTION | {"training_gear": gear | {"device_memory_gb": 16}})
    assert all(memory["fits"] is False and memory["device_memory"] == 16e9 for memory in known["memory"])


# The command


def test_the_example_prints_what_it_writes(command, tmp_path):
    code, out, err = command("--backward_config", str(EXAMPLE), f"--json={tmp_path / 'found.json'}")
    assert code == 0, err
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["model"]["n_params"] == N and found["compute"]["flops"] == pytest.approx(C)
    assert found["tokens"]["D"] == 240_000_000_000 and found["tokens"]["binds"] == "data"
    printed = [f"{N:,}", f"{FLOPS_PER_TOKEN:,}", f"{C:.4e}", "240,000,000,000", f"{found['loss']['predicted']:.6f}"]
    printed += [f"{memory['total'] / 1e9:,.2f} GB  fits in 80 GB" for memory in found["memory"]]
    printed += ["9.894e+14 FLOP/s (H100-SXM, bfloat16, dense) x 8 x 240 hours x 3,600 s x MFU 0.45"]
    printed += ["the dataset binds: 4 epochs", "79.09 hours (33.0 %) are left", f"D/(20N) {2.4e11 / N / 20:.3f}"]
    for text in printed:
        assert text in out, text


SHAPE = "--hidden_sizes 2048 --layers 18 --head_dims 128 --kv_heads 8 --ffn_expansion_ratio 3.5 --aspect_ratio 0:inf"
PLENTY = {"unique_tokens": 10**13, "epochs": 2}


@pytest.mark.parametrize(
    "values",
    [
        QUESTION,
        with_("architecture", vocab_size=50304, weight_tying=True, block_size=1024) | {"scaling_law": "hoffmann"},
        with_("training_efficiency", mfu=0.31, micro_batch=2, activation_checkpointing=True)
        | {"scaling_law": "muennighoff", "dataset_constraints": PLENTY | {"sequence_length": 4096}},
        with_("training_gear", gpu_type="mine", peak_flops=3.3e14, device_memory_gb=96, available_hours=100.1),
        with_("training_gear", gpu_type="V100", dtype="float16", num_gpus=64) | {"scaling_law": "law.json"},
        QUESTION | {"scaling_law": {**LAW, "E": 1.1}},
    ],
)
def test_the_search_that_it_names_finds_the_same_in_the_space_of_this_model(command, tmp_path, monkeypatch, values):
    """Its N, its D to the last token, its loss."""
    monkeypatch.chdir(tmp_path)
    law = values.get("scaling_law")
    Path("law.json").write_text(json.dumps(law if isinstance(law, dict) else LAW))
    Path("question.jsonc").write_text(json.dumps(values))
    _, out, _ = command("--backward_config", "question.jsonc", "--json=answer.json")
    answer = json.loads(Path("answer.json").read_text())
    line = re.search(r"an architecture of this kind for these machines.*:\n +(python .*)", out).group(1)
    assert line == answer["search"]
    code, _, err = command(*shlex.split(line)[2:], "--json=found.json")
    assert code == 0, err
    code, _, err = command(*shlex.split(line)[2:], *SHAPE.split(), "--json=found.json")
    assert code == 0, err
    best = json.loads(Path("found.json").read_text())["candidates"][0]
    assert (best["n_params"], best["tokens"]) == (answer["model"]["n_params"], answer["tokens"]["D"])
    assert best["loss"] == pytest.approx(answer["loss"]["predicted"], rel=1e-12)
    memory = {each["strategy"]: each["total"] for each in answer["memory"]}
    assert best["memory_per_device"] == memory["fsdp"]


@pytest.mark.parametrize(
    "keys, arch",
    [
        ({"arch_preset": "mamba2", "n_layer": 8, "n_embd": 512}, "mamba2"),
        ({"arch_preset": "hybrid", "n_layer": 8, "n_embd": 512, "n_head": 8}, "hybrid"),
        ({"arch_preset": "gpt2", "n_layer": 8, "n_embd": 512, "n_head": 8}, "gpt2"),
        ({"arch_preset": "team", "n_layer": 8, "n_embd": 512, "n_head": 8}, "team"),
        ({"model_type": "mamba", "num_hidden_layers": 8, "hidden_size": 512, "state_size": 16}, "mamba1"),
        (
            {
                "model_type": "llama",
                "num_hidden_layers": 8,
                "hidden_size": 512,
                "num_attention_heads": 8,
                "num_key_value_heads": 8,
            },
            "llama3",
        ),
        (
            {
                "arch_preset": "custom",
                "layer_pattern": "WWSM",
                "attention_window": 64,
                "n_layer": 8,
                "n_embd": 512,
                "n_head": 8,
            },
            None,
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_the_search_is_for_the_architecture_that_was_given(ask, keys, arch):
    sizes = {"vocab_size": 50304} if "arch_preset" in keys else {"vocab_size": 50304, "intermediate_size": 1408}
    if keys.get("model_type") == "mamba":
        del sizes["intermediate_size"]
    found = ask({**QUESTION, "architecture": keys | sizes})
    if arch is None:
        assert found["search"] is None
    else:
        assert f" --arch {arch} " in found["search"]


def test_outside_of_the_laws_data_it_warns(ask):
    found = ask(with_("training_gear", available_hours=2))
    assert any("D = 2.98e+09 lies outside the 5e+09 to 5e+11" in note for note in found["notes"])


COMMENTED = """
{ // "architecture": 1
  "architecture": "model.json", /* "training_gear": {"num_gpus": 9}, } */
  "training_gear": {
    "gpu_type": "L4", "available_hours": 3,
    "num_gpus": 8, // , }
  },
  "training_efficiency": {"mfu": 0.45, /* last */ },
  "scaling_law": {"E": 1.69, "A": 406.4, "B": 410.7, "alpha": 0.34, "beta": 0.28, "N": "total", "source": "a, }, // b",}
}
"""


def test_comments_and_a_comma_after_the_last_item(tmp_path):
    (tmp_path / "model.json").write_text(json.dumps(LLAMA))
    (tmp_path / "q.jsonc").write_text(COMMENTED)
    question = read_question(tmp_path / "q.jsonc")
    assert question.setting.devices == 8 and question.law.source == "a, }, // b"


# What is wrong is refused

HF_EXTRA = {"model_type": "llama", "hiden_size": 3}
WRONG = [
    (QUESTION | {"training": {}}, "unknown section 'training' (did you mean 'training_gear'?)"),
    ({k: v for k, v in QUESTION.items() if k != "architecture"}, "the section architecture is missing"),
    ({k: v for k, v in QUESTION.items() if k != "training_efficiency"}, "the section training_efficiency is missing"),
    (QUESTION | {"training_gear": [8]}, "training_gear: expected an object of keys and values"),
    # architecture
    (with_("architecture", n_layers=3), "architecture: saved configuration: unknown key 'n_layers' (did you mean"),
    (with_("architecture", n_head=7), "architecture: n_embd=2048 is not divisible by n_head=7"),
    (with_("architecture", n_layer=0), "architecture: n_layer=0 must be at least 1"),
    (with_("architecture", ffn_expansion_ratio=3.5), "say the same thing twice"),
    (with_("architecture", batch_size=8), "architecture: batch_size is a key of runs, which says nothing here"),
    (with_("architecture", vocab_size=None), "architecture: the key vocab_size is missing"),
    (with_("architecture", normalization="rmsnrom"), "architecture: normalization='rmsnrom' is none of"),
    (QUESTION | {"architecture": HF_EXTRA}, "architecture: unknown key 'hiden_size' of a llama configuration"),
    (QUESTION | {"architecture": 3}, "architecture: expected an object of keys and values, or the path"),
    (QUESTION | {"architecture": "gone.json"}, "gone.json: cannot read it"),
    (QUESTION | {"architecture": "\0"}, "architecture: expected a text in quotes"),
    (QUESTION | {"architecture": "\ud800"}, "architecture: expected a text in quotes"),
    (QUESTION | {"architecture": ""}, "architecture: expected a text in quotes"),
    (QUESTION | {"architecture": "gone.py"}, "gone.py: cannot read the config file"),
    # training_gear
    (with_("training_gear", gpus=8), "training_gear: unknown key 'gpus' (did you mean 'num_gpus'?)"),
    (with_("training_gear", num_gpus=None), "training_gear: the key num_gpus is missing"),
    (with_("training_gear", num_gpus=0), "training_gear: num_gpus=0: expected a number above 0"),
    (with_("training_gear", num_gpus=2.5), "training_gear: num_gpus=2.5: expected a whole number, 1 or more"),
    (with_("training_gear", num_gpus="8"), "training_gear: num_gpus='8': expected a number above 0"),
    (with_("training_gear", num_gpus=True), "training_gear: num_gpus=True: expected a number above 0"),
    (with_("training_gear", num_gpus=1e200), "training_gear: num_gpus=1e+200: expected a whole number"),
    (with_("training_gear", available_hours=-3), "training_gear: available_hours=-3: expected a number above 0"),
    (with_("training_gear", available_hours=math.nan), "training_gear: available_hours=nan: expected a number above 0"),
    (with_("training_gear", available_hours=math.inf), "training_gear: available_hours=inf: expected a number above 0"),
    (with_("training_gear", available_hours=1e299), "its FLOPs are beyond arithmetic"),
    (with_("training_gear", gpu_type="H100"), "training_gear: gpu_type: device 'H100' is none of"),
    (with_("training_gear", gpu_type="cpu"), "training_gear: gpu_type: the peak of a CPU is measured"),
    (with_("training_gear", gpu_type=""), "training_gear: gpu_type='': expected a text"),
    (with_("training_gear", dtype="bf16"), "training_gear: dtype='bf16': is none of: float32, bfloat16"),
    (with_("training_gear", gpu_type="V100"), "training_gear: dtype: V100 does not compute in 'bfloat16'"),
    (with_("training_gear", peak_flops=1e15), "training_gear: peak_flops contradicts gpu_type='H100-SXM'"),
    (with_("training_gear", device_memory_gb=80), "training_gear: device_memory_gb contradicts gpu_type"),
    (with_("training_gear", gpu_type="mine", peak_flops=0), "training_gear: peak_flops=0: expected a number above 0"),
    # training_efficiency
    (with_("training_efficiency", mfu=45), "training_efficiency: mfu=45: is more than the device can do"),
    (with_("training_efficiency", mfu=0), "training_efficiency: mfu=0: expected a number above 0"),
    (with_("training_efficiency", mfu=None), "training_efficiency: the key mfu is missing"),
    (with_("training_efficiency", micro_batch=0), "micro_batch=0: expected a number above 0"),
    (with_("training_efficiency", activation_checkpointing=1), "activation_checkpointing=1: expected true or false"),
    # dataset_constraints
    (with_("dataset_constraints", max_epochs=4), "unknown key 'max_epochs' (did you mean 'epochs'?)"),
    (with_("dataset_constraints", epochs=4), "epochs says nothing without unique_tokens, which is missing"),
    (with_("dataset_constraints", unique_tokens=1e9), "unique_tokens says nothing without epochs, which is missing"),
    (with_("dataset_constraints", unique_tokens=1e9, epochs=0), "epochs=0: expected a number above 0"),
    (with_("dataset_constraints", unique_tokens=0.5, epochs=1), "unique_tokens=0.5: expected a whole number"),
    (with_("dataset_constraints", unique_tokens=1000, epochs=2), "the dataset allows 2,000 tokens, less than one"),
    (with_("training_gear", available_hours=1e-9), "the machines afford 1 tokens, less than one sequence of 2,048"),
    (
        with_("architecture", arch_preset="gpt2") | {"dataset_constraints": {"sequence_length": 4096}},
        "dataset_constraints: sequence_length=4096: the model has learned positions for 2048 tokens",
    ),
    # scaling_law
    (QUESTION | {"scaling_law": "hofman"}, "scaling_law: law 'hofman' is none of"),
    (QUESTION | {"scaling_law": 3}, "scaling_law: expected a law's name"),
    (QUESTION | {"scaling_law": "gone.json"}, "gone.json: cannot read it"),
    (QUESTION | {"scaling_law": "\0.json"}, ".json: cannot read it"),
    (QUESTION | {"scaling_law": {"E": 1, "A": 1}}, "scaling_law: the law lacks B, alpha, beta, N, source"),
    (QUESTION | {"scaling_law": {"E": 1, "a": 1}}, "scaling_law: unknown key 'a'"),
]  # fmt: skip


NO_VALUE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3) | st.just(10**400),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=2), inner, max_size=2),
    max_leaves=4,
)
COMPLETE = with_("training_efficiency", micro_batch=2, activation_checkpointing=True) | {
    "dataset_constraints": PLENTY | {"sequence_length": 1024}, "scaling_law": LAW
}  # fmt: skip
PLACES = [(section, key) for section, values in COMPLETE.items() for key in [*values, None]]


@settings(max_examples=300)
@given(place=st.sampled_from(PLACES), value=NO_VALUE)
def test_any_value_anywhere_is_answered_or_refused(tmp_path_factory, place, value):
    section, key = place
    path = tmp_path_factory.mktemp("fuzz") / "question.jsonc"
    path.write_text(json.dumps(COMPLETE | {section: value if key is None else COMPLETE[section] | {key: value}}))
    try:
        found = answer(path)
    except UserError as error:
        assert str(path) in str(error) and str(error).isprintable()
    else:
        as_text(found).encode()


@pytest.mark.parametrize(("values", "message"), WRONG, ids=[message for _, message in WRONG])
def test_bad_input_is_one_line(command, tmp_path, monkeypatch, values, message):
    (tmp_path / "q.jsonc").write_text(json.dumps(values))
    monkeypatch.chdir(tmp_path)
    code, out, err = command("--backward_config", "q.jsonc", "--json=found.json")
    assert (code, out) == (2, "")
    assert err.startswith("error: q.jsonc: ") and message in err and err.count("\n") == 1, err
    assert [path.name for path in tmp_path.iterdir()] == ["q.jsonc"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "line 1: Expecting value"),
        ("[]", "it holds no object of keys and values"),
        ('{"training_gear": {"num_gpus": 1, "num_gpus": 2}}', "num_gpus is given 2 times"),
        ('{"training_gear": {"num_gpus": 1' + 5000 * "0" + "}}", "a number in it is too long"),
        ('{"training_gear": {,}', "line 1"),
    ],
)
def test_what_is_no_json_is_refused(tmp_path, text, message):
    (tmp_path / "q.jsonc").write_text(text)
    with pytest.raises(UserError, match=re.escape(message)):
        read_question(tmp_path / "q.jsonc")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--backward_config gone.jsonc", "gone.jsonc: cannot read it"),
        (f"--backward_config {EXAMPLE} --device H200", "--device says nothing beside --backward_config"),
        (f"--backward_config {EXAMPLE} --sequence_length 8", "--sequence_length says nothing beside --backward_config"),
        (f"--backward_config {EXAMPLE} --grid_search 1e20", "are two commands"),
        (f"--backward_config {EXAMPLE} --json nowhere/x.json", "there is no folder nowhere"),
    ],
)
def test_other_options_are_refused(command, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    code, out, err = command(*arguments.split())
    assert (code, out) == (2, "") and message in err and err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
