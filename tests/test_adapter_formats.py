"""Adapters in PEFT's files: what they make of the exported base there is what they make of it here."""

import json
import re

import pytest
import torch
from checkpoints import last_checkpoint
from commands import command
from conftest import LLAMA, training

import checkpoint as checkpoint_command
import train as train_command
from inference.loading import configuration_of, load

GPT2 = ["--arch_preset=gpt2"]
NEOX = ["--arch_preset=neox", "--partial_rotary_factor=0.5"]
PHI = [*LLAMA, "--num_key_value_heads=1"]
LORA = ["--use_lora=True", "--lora_r=3", "--lora_alpha=12", "--learning_rate=1e-2", "--decay_lr=False", "--max_iters=4"]
CASES = {
    "llama": (LLAMA, []),
    "llama rsLoRA of some": (LLAMA, ["--use_rslora=True", "--lora_targets=q_proj,blocks.1.ffn.*"]),
    "llama DoRA": (LLAMA, ["--use_dora=True"]),
    "gpt2": (GPT2, []),
    "gpt2 rsLoRA": (GPT2, ["--use_rslora=True"]),
    "gpt2 DoRA of values": (GPT2, ["--use_dora=True", "--lora_targets=v_proj,o_proj"]),
    "neox": (NEOX, []),
}


@pytest.fixture(scope="module")
def bases(data_dir, tmp_path_factory):
    known = {}

    def get(keys):
        if (name := " ".join(keys)) not in known:
            known[name] = tmp_path_factory.mktemp("base") / "run"
            done = training(data_dir, known[name], *keys, "--max_iters=2")
            assert done.returncode == 0, done.stderr
        return known[name]

    return get


def exported(run, folder, *options):
    done = command(checkpoint_command.main, "export", run, folder, *options)
    assert done.returncode == 0, done.stderr
    return done.stdout


@torch.no_grad()
def logits_of_peft(base, folder, ids):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    plain = AutoModelForCausalLM.from_pretrained(base).eval()
    before = plain(ids).logits
    model = PeftModel.from_pretrained(plain, folder).eval()
    return before, model(ids).logits, model.merge_and_unload()(ids).logits


@pytest.mark.parametrize("name", CASES)
def test_peft_loads_them_on_the_exported_base(name, data_dir, bases, tmp_path):
    architecture, keys = CASES[name]
    run = tmp_path / "run"
    done = training(data_dir, run, f"--init_from={bases(architecture)}", *LORA, *keys)
    assert done.returncode == 0, done.stderr
    exported(run, tmp_path / "base", "--format", "hf", "--checkpoint", "0")
    said = exported(run, tmp_path / "adapters", "--format", "peft")
    assert re.search(r"LoRA|DoRA", said) and "--format hf --checkpoint=0" in said
    last = last_checkpoint(run)
    ours = load(last, configuration_of(last), torch.device("cpu"))
    ids = torch.randint(256, (2, 16), generator=torch.Generator().manual_seed(0))
    before, theirs, merged = logits_of_peft(tmp_path / "base", tmp_path / "adapters", ids)
    with torch.no_grad():
        expected = ours(ids)
    assert (before - expected).abs().max() > 1e-3
    torch.testing.assert_close(theirs, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(merged, expected, rtol=1e-5, atol=1e-5)
    config = json.loads((tmp_path / "adapters/adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"]) == (3, 12)


EXPERTS = [*LLAMA, *"--arch_preset=mixtral --n_experts=4 --expert_d_ff=16".split()]


def test_experts_are_no_modules_there(data_dir, bases, tmp_path):
    run = tmp_path / "run"
    assert training(data_dir, run, f"--init_from={bases(EXPERTS)}", *LORA).returncode == 0
    done = command(checkpoint_command.main, "export", run, tmp_path / "adapters", "--format", "peft")
    assert done.returncode == 2
    assert re.search(r"blocks.0.ffn.down_proj is none in MixtralForCausalLM: --format hf exports", done.stderr)
    done = command(checkpoint_command.main, "export", bases(EXPERTS), tmp_path / "adapters", "--format", "peft")
    assert done.returncode == 2 and "has no adapters: --format hf exports the model" in done.stderr
    assert not (tmp_path / "adapters").exists()


# ---------------------------------------------------------------------------------------------------------------------
# And back

SEVERAL = {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"v_proj": 5}}
OF_PEFT = {
    "llama": (LLAMA, {"target_modules": ["q_proj", "v_proj", "down_proj"]}),
    "llama DoRA of several ranks": (LLAMA, {"target_modules": "all-linear", "use_dora": True, **SEVERAL}),
    "gpt2 rsLoRA": (GPT2, {"target_modules": ["c_attn", "c_fc"], "use_rslora": True, "fan_in_fan_out": True}),
    "neox": (NEOX, {"target_modules": ["query_key_value", "dense"]}),
}


def saved_by_peft(base, folder, **keys):
    """Adapters as PEFT saves them, of which B is no longer zero; and the logits with them."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), LoraConfig(r=4, lora_alpha=6, **keys)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter += 0.1 * torch.randn(parameter.shape)
        model.save_pretrained(folder)
        return model(torch.arange(16)[None]).logits


@pytest.mark.parametrize("name", OF_PEFT)
def test_a_run_begins_with_adapters_that_peft_has_saved(name, data_dir, bases, tmp_path):
    architecture, keys = OF_PEFT[name]
    exported(bases(architecture), tmp_path / "base", "--format", "hf")
    expected = saved_by_peft(tmp_path / "base", tmp_path / "theirs", **keys)
    run, given = tmp_path / "run", ["--use_lora=True", f"--init_from={tmp_path}/base", f"--lora_from={tmp_path}/theirs"]
    done = training(data_dir, run, *given, "--max_iters=0")
    assert done.returncode == 0, done.stderr
    (first,) = run.glob("checkpoints/*")
    model = load(first, configuration_of(first), torch.device("cpu"))
    with torch.no_grad():
        torch.testing.assert_close(model(torch.arange(16)[None]), expected, rtol=1e-5, atol=1e-5)
    done = command(train_command.main, run / "config.py", "--init_from=resume", "--max_iters=2")
    assert done.returncode == 0, done.stderr
    last = last_checkpoint(run)
    assert last.name == "step_00000002"
    again = tmp_path / "again"
    exported(run, again, "--format", "peft")
    assert training(data_dir, tmp_path / "more", *given, f"--lora_from={again}", "--max_iters=0").returncode == 0
    (more,) = (tmp_path / "more").glob("checkpoints/*")
    ids = torch.arange(16)[None]
    with torch.no_grad():
        one, other = (load(path, configuration_of(path), torch.device("cpu"))(ids) for path in (last, more))
    torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_adapters_that_do_not_fit_are_refused_in_one_line(data_dir, bases, tmp_path):
    exported(bases(LLAMA), tmp_path / "base", "--format", "hf")
    saved_by_peft(tmp_path / "base", tmp_path / "theirs", target_modules=["q_proj"])
    saved_by_peft(tmp_path / "base", tmp_path / "head", target_modules=["q_proj", "lm_head"])
    wider, of_peft = [*LLAMA, "--n_embd=64"], "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
    another = r"has adapters of another base: A \(4, 32\) and B \(32, 4\) of blocks.0.mixer.q_proj, 64 x 64"
    refused = [
        (bases(wider), "theirs", ["--n_embd=64"], another),
        (bases(GPT2), "theirs", [], f"'{of_peft}' is no adapter of a linear layer of this GPT2LMHeadModel"),
        (bases(LLAMA), "head", [], r"lm_head.base_layer.weight' is no adapter of a linear layer"),
        (bases(LLAMA), "base", [], r"base is no folder of PEFT's adapters"),
        (bases(LLAMA), "theirs", ["--lora_r=8"], r"lora_r=8 contradicts lora_from='.*theirs', which has 4: drop it"),
        (bases(LLAMA), "theirs", ["--use_lora=False"], r"lora_from='.*' is for adapters: add --use_lora=True"),
    ]
    for base, folder, keys, message in refused:
        given = ["--use_lora=True", f"--init_from={base}", f"--lora_from={tmp_path / folder}", *keys]
        done = training(data_dir, tmp_path / "run", *given)
        assert done.returncode == 2 and len(done.stderr.splitlines()) == 1, done.stderr
        assert re.search(message, done.stderr), done.stderr
        assert not (tmp_path / "run").exists()
