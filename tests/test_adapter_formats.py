"""Adapters in PEFT's files: what they make of the exported base there is what they make of it here."""

import json
import re

import pytest
import torch
from checkpoints import last_checkpoint
from commands import command
from conftest import LLAMA, training

import checkpoint as checkpoint_command
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
