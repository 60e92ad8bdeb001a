"""Every shipped config: its arithmetic is right, it plans at full size, and a small version of it trains."""

import re

import pytest
from conftest import ROOT

from configurator import load, with_vocabulary
from training.plan import plan_run

CONFIGS = sorted((ROOT / "config").glob("*.py"))
TINY = "--n_embd=32 --block_size=32 --vocab_size=None --d_ff=None".split()


def layers_to_attention(config) -> int:
    """How many layers it takes until the pattern has attention among them."""
    pattern = load([str(config)]).model.pattern
    return next((index + 1 for index, letter in enumerate(pattern) if letter in "AWC"), 1)


# config/dpo.py is for pairs and config/grpo_sums.py for prompts, which finetune.py makes (test_preference_runs.py,
# test_grpo_runs.py).
OF_TEXT = [path for path in CONFIGS if path.stem not in ("dpo", "grpo_sums")]


@pytest.mark.parametrize("config", OF_TEXT, ids=lambda path: path.stem)
def test_small_overrides_train(train, tmp_path, config):
    kv = ["--num_key_value_heads=1"] if "num_key_value_heads" in config.read_text() else []
    model = load([str(config)]).model
    has_heads = model.layers_with("A")
    groups = ["--mamba_n_groups=1"] if model.layers_with("M") and model.mamba_n_groups > 1 else []  # of one head
    heads = "--n_head=2" if has_heads else "--n_head=12"  # the default, which is no statement
    layers = f"--n_layer={max(2, layers_to_attention(config))}"
    done = train(
        str(config), *TINY, layers, heads, *kv, *groups, "--max_iters=2", "--lr_decay_iters=2", "--warmup_iters=0"
    )
    assert done.returncode == 0, done.stderr
    assert "finished at step 2 of 2" in done.stdout


@pytest.mark.parametrize("config", [path for path in CONFIGS if path.stem.startswith("arch_")], ids=lambda p: p.stem)
def test_the_parameter_count_in_the_comment_is_the_models(config):
    """Near 124M at full size; the comment's last figure is the total. Another than 124e6 is the exact one. Of experts
    those count that a token meets, and the figure before the last is theirs."""
    text = config.read_text()
    *_, active, stated = ["", *re.findall(r"= ([\d.]+)M$", text, flags=re.MULTILINE)]
    plan = plan_run(with_vocabulary(load([str(config)]), 50257), None)
    assert float(stated) == pytest.approx(plan.cost.n_params / 1e6, abs=0.051)
    assert plan.cost.n_active == pytest.approx(124e6, rel=0.03)
    if plan.cost.n_active != plan.cost.n_params:
        assert float(active) == pytest.approx(plan.cost.n_active / 1e6, abs=0.051)
    if "124e6" not in text:
        terms = re.search(r"([\d,]+) x 20 / 491,520 = ([\d,]+) steps", text).groups()
        assert [int(term.replace(",", "")) for term in terms] == [
            plan.cost.n_params, round(20 * plan.cost.n_params / plan.tokens_per_step)
        ]  # fmt: skip
    assert 19 < plan.tokens / plan.cost.n_active < 21, "trained for about 20 tokens a parameter"


def test_train_gpt2_is_nanogpts():
    """123.59M without positions, as nanoGPT reports it, and half a million tokens a step."""
    plan = plan_run(with_vocabulary(load([str(ROOT / "config/train_gpt2.py")]), 50257), None)
    assert plan.cost.n_params - plan.cost.parameters["position"] == 123_587_328
    assert plan.tokens_per_step == 491_520
    # nanoGPT estimates 6 N + 12 L H Q T with N without positions, which holds exactly but for the norms
    n = plan.cost.n_params - plan.cost.parameters["position"] - plan.cost.parameters["norms"]
    assert plan.flops_per_token["full"] == 6 * n + 12 * 12 * 768 * 1024
