"""The presets at full size: public parameter counts, true costs in their comments, dry runs, and the search that
made three of them makes them again."""

import re
import shlex
import subprocess
import sys

import pytest
from commands import command
from conftest import ROOT, environment

import train
from configurator import load
from training.plan import plan_run

CONFIGS = sorted((ROOT / "config").glob("full_*.py"))

# Of the checkpoints on the Hugging Face hub (openai-community, meta-llama), tied tensors once.
PUBLIC = {
    "full_gpt2_124m": 124_439_808,
    "full_gpt2_355m": 354_823_168,
    "full_gpt2_774m": 774_030_080,
    "full_gpt2_1558m": 1_557_611_200,
    "full_llama3_8b": 8_030_261_248,
    "full_llama3_70b": 70_553_706_496,
    "full_llama3_405b": 405_853_388_800,
}
BUDGET = 1.36e21
SEARCHED = {  # parameters; share of the budget that the run really costs, with logits and without
    "full_llama3_1.5b_optimal": (1_544_628_224, 0.644, 0.526),
    "full_llama3_2.2b_chinchilla": (2_224_154_624, 0.601, 0.530),
    "full_llama3_2.0b_exact": (2_009_418_240, 1.0, 0.822),
}


def plan(name: str):
    return plan_run(load([str(ROOT / f"config/{name}.py")]), None)


def test_every_preset_is_tested():
    assert {path.stem for path in CONFIGS} == PUBLIC.keys() | SEARCHED.keys()


@pytest.mark.parametrize("name", PUBLIC)
def test_public_parameter_counts(name):
    assert plan(name).cost.n_params == PUBLIC[name]


@pytest.mark.parametrize("name", SEARCHED)
def test_true_costs(name):
    n, share, share_without_logits = SEARCHED[name]
    planned = plan(name)
    logits = 3 * planned.cost.flops["lm_head"] * planned.tokens
    assert planned.cost.n_params == n
    assert planned.flops("full") / BUDGET == pytest.approx(share, abs=5e-4)
    assert (planned.flops("full") - logits) / BUDGET == pytest.approx(share_without_logits, abs=5e-4)


@pytest.mark.parametrize("name", SEARCHED)
def test_the_published_shapes(name):
    model = load([str(ROOT / f"config/{name}.py")]).model
    shape = (model.n_layer, model.n_embd, model.n_head, model.kv_heads, model.d_ff)
    assert (
        shape
        == {
            "full_llama3_1.5b_optimal": (18, 2048, 16, 8, 7168),
            "full_llama3_2.2b_chinchilla": (30, 2048, 16, 8, 7168),
            "full_llama3_2.0b_exact": (16, 2560, 40, 8, 8960),
        }[name]
    )
    assert (model.vocab_size, model.rope_theta, model.block_size) == (128_256, 500_000.0, 2048)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_the_comments_state_the_true_figures(config):
    """Parameters by part, FLOPs per token and of the run, steps; and every product and sum that is written out."""
    text = " ".join(config.read_text().replace("#", " ").split())
    planned = plan(config.stem)
    cost, per_token = planned.cost, planned.flops_per_token["full"]
    parts = " + ".join(f"{count:,} {part}" for part, count in cost.parameters.items() if count)
    assert f"Parameters: {parts} = {cost.n_params:,}" in text
    assert f"FLOPs per token: {per_token:,} (training, full attention, with logits)" in text
    assert f"{planned.tokens:,} tokens x {per_token:,} = {planned.flops('full'):.4e}" in text
    assert f"= {planned.tokens_per_step:,} tokens a step" in text
    assert f"{planned.length:,} steps" in text
    for terms, result in re.findall(r"((?:[\d,]+(?:\^2)? [x+] )+[\d,]+(?:\^2)?) = ([\d,]+)\b", text):
        arithmetic = terms.replace(",", "").replace("x", "*").replace("^2", "**2")
        assert eval(arithmetic) == int(result.replace(",", "")), terms


@pytest.mark.parametrize("name", PUBLIC)
def test_the_published_sizes_train_for_about_20_tokens_a_parameter(name):
    assert plan(name).tokens / PUBLIC[name] == pytest.approx(20, rel=1e-3)


SMALLER = """--n_layer=1 --n_embd=32 --n_head=2 --num_key_value_heads=2 --d_ff=64 --vocab_size=256 --block_size=16
--batch_size=2 --gradient_accumulation_steps=1 --max_iters=2 --warmup_iters=1 --eval_interval=2 --eval_iters=1
--log_interval=1 --dataset=tiny --device=cpu --dtype=float32""".split()


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_a_few_smaller_sizes_train_on_a_laptop(config, tmp_path, data_dir):
    """What the preset says beside its sizes stays: its blocks, optimizer, schedule and checkpointing."""
    done = command(train.main, config, *SMALLER, f"--data_dir={data_dir}", f"--out_dir={tmp_path / 'run'}")
    assert done.returncode == 0, done.stderr
    assert "finished at step 2 of 2" in done.stdout


@pytest.mark.parametrize("name", SEARCHED)
def test_the_search_makes_the_preset_again(name, tmp_path):
    """Below the lines about what it is. Where the writer changed: make it anew with the command in the file."""
    text = (ROOT / f"config/{name}.py").read_text()
    start = re.search(r"^# \d+L-", text, flags=re.MULTILINE).start()
    stated = " ".join(text[start:].replace("\n#", " ").split())
    line = re.search(r"Made by (python .*?) Parameters:", stated).group(1)
    _, *arguments = shlex.split(line)
    made = tmp_path / "config" / f"{name}.py"
    made.parent.mkdir()
    process = [sys.executable, str(ROOT / arguments[0]), *arguments[1:]]
    done = subprocess.run(process, cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert made.read_text() == text[start:]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_dry_run(config, tmp_path):
    process = [sys.executable, str(ROOT / "train.py"), str(config), "--dry_run", f"--data_dir={tmp_path}"]
    done = subprocess.run(process, cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert f"Parameters:            {plan(config.stem).cost.n_params:,}\n" in done.stdout
    assert list(tmp_path.iterdir()) == []
