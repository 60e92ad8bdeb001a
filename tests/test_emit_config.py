"""A config that the search writes is the run it promised: the same figures in its comments, the plan and the report."""

import json
import re
import subprocess
import sys

import pytest
from conftest import ROOT, environment

from configurator import Configuration, load
from data.dataset import open_dataset
from flops_parameter_counting import detailed_cost_analysis
from flops_parameter_counting.laws.scaling_laws import LAWS
from flops_parameter_counting.planner.emit import schedule_keys
from training.plan import RunPlan, plan_run
from training.schedule import learning_rate

COMMAND = ROOT / "flops_parameter_counting/detailed_cost_analysis.py"


@pytest.fixture
def emit(capsys, monkeypatch, tmp_path):
    """`emit(*arguments)`: exit code and what stood on stderr; the config is tmp_path/made.py, the data found.json."""

    def run(*arguments: str) -> tuple[int, str]:
        outputs = [f"--emit={tmp_path / 'made.py'}", f"--json={tmp_path / 'found.json'}"]
        monkeypatch.setattr(sys, "argv", [str(COMMAND), "--grid_search", *arguments, *outputs])
        with pytest.raises(SystemExit) as end:
            detailed_cost_analysis.main()
        return int(end.value.code or 0), capsys.readouterr().err

    return run


def planned(path) -> tuple[Configuration, RunPlan]:
    configuration = load([str(path)])
    return configuration, plan_run(configuration, None)


@pytest.mark.parametrize(
    "arguments",
    [
        "1e11",
        "1e12 --arch gpt2",
        "1e13",
        "3e14 --law hoffmann --unique_tokens 1.1e7",
        "1e17 --arch gpt2",
        "1e19 --no_gqa --weight_tying",
        "1e20 --inference_tokens 1e10 --kv_heads 4 --vocab_size 50304",
        "1.36e21 --law hoffmann",
        "1.36e21 --flops_formula published --enforce_chinchilla",
        "1e24",
        "--device H100-SXM --devices 8 --days 1 --mfu 0.4",
        "1e13 --arch mamba1",
        "1e19 --arch mamba2",
        "1e13 --arch hybrid",
        "1e13 --arch deepseek_dense",
        "1.36e21 --arch hybrid --hidden_sizes 2048,2560 --layers 24,32 --vocab_size 128256",
        "--device H100-SXM --devices 8 --days 1 --mfu 0.4 --arch hybrid",
        "1e17 --arch gpt_oss",
        "1e19 --arch qwen3_moe --n_experts 8:65:8 --n_experts_per_token 1,2,4 --n_shared_experts 0,1 --granularity 2,4",
        "--device H100-SXM --days 1 --mfu 0.4 --arch mixtral --n_experts 8,256 --activation_checkpointing",
        "1e19 --arch mixtral --n_experts 8,64 --n_experts_per_token 1,2 --law ludziejewski",
        "1e19 --arch mixtral --n_experts 8,64 --n_experts_per_token 1,2 --law tian",
        "1e19 --arch mixtral --n_experts 8,64 --n_experts_per_token 1,2 --law abnar",
        "1e17 --law kumar:8",
    ],
)
def test_the_plan_is_the_promise(emit, tmp_path, arguments):
    """N and FLOPs per token are the candidate's; tokens are its, less what does not fill a step; comments agree."""
    code, err = emit(*arguments.split())
    assert code == 0, err
    found = json.loads((tmp_path / "found.json").read_text())
    best, lines = found["candidates"][0], (tmp_path / "made.py").read_text().splitlines()
    assert max(map(len, lines)) <= 120
    text = " ".join(" ".join(lines).replace("#", "").split())
    configuration, plan = planned(tmp_path / "made.py")
    assert plan.cost.n_params == best["n_params"]
    assert plan.flops_per_token["full"] == best["flops_per_token"]
    assert 0 <= best["tokens"] - plan.tokens < plan.tokens_per_step
    assert plan.flops("full") + best["inference_flops"] <= found["budget"]
    met = f", of which a token meets {plan.cost.n_active:,}" if "n_active" in best else ""
    assert plan.cost.n_active == best.get("n_active", best["n_params"])
    assert f"= {plan.cost.n_params:,}{met} FLOPs per token" in text
    assert f"FLOPs per token: {plan.flops_per_token['full']:,} " in text
    assert f"{plan.tokens:,} tokens x {plan.flops_per_token['full']:,} = {plan.flops('full'):.4e}" in text
    assert f"{plan.length:,} steps x {plan.tokens_per_step:,} = {plan.tokens:,} tokens" in text
    stated = float(re.search(r"Predicted loss: ([\d.]+)", text).group(1))
    assert stated == pytest.approx(best["loss"], rel=2e-2) and stated >= best["loss"] - 1e-5, (
        "fewer tokens, no less loss"
    )
    if configuration.run.predicted_loss is not None:
        assert plan.expected_loss(plan.tokens) == pytest.approx(stated, abs=1e-5) or "unique_tokens" in arguments
    assert arguments in text, "the command that made it"
    model = configuration.model
    heads = (model.n_head, model.kv_heads) if set(model.pattern) & set("AC") else (0, 0)
    assert (model.n_layer, model.n_embd, *heads, model.d_ff or 0) == tuple(
        best[key] for key in ("n_layer", "n_embd", "n_head", "num_key_value_heads", "d_ff")
    )
    assert "was fitted to transformers" in text or ("M" not in model.pattern and "S" not in model.pattern)


def test_the_prediction_is_that_of_the_rounded_run(emit, tmp_path):
    emit("1e13", "--law=hoffmann")
    _, plan = planned(tmp_path / "made.py")
    predicted = LAWS["hoffmann"].loss(plan.cost.n_params, plan.tokens)
    assert f"Predicted loss: {predicted:.5f} " in (tmp_path / "made.py").read_text()


@pytest.mark.parametrize("budget", ["1e11", "1e13", "1e19", "1e24"])
def test_batch_and_learning_rate_lie_within_the_rules(emit, tmp_path, budget):
    emit(budget)
    rules = json.loads((tmp_path / "found.json").read_text())["training_rules"]
    configuration, plan = planned(tmp_path / "made.py")
    run, batches = configuration.run, [rule["batch_tokens"] for rule in rules]
    assert min(batches) / 2 <= plan.tokens_per_step <= 2 * max(batches), "a power of two of sequences"
    assert run.sequences_per_step & (run.sequences_per_step - 1) == 0
    assert run.learning_rate == pytest.approx(min(rule["learning_rate"] for rule in rules), rel=0.05)
    rates = [learning_rate(run, step, plan.length) for step in range(plan.length)] if plan.length < 10**5 else [0.0]
    assert max(rates) <= run.learning_rate * (1 + 1e-12)
    if len(rates) > 1:
        assert rates[run.warmup_iters] == pytest.approx(run.learning_rate) and rates[-1] < 1.1 * run.min_lr


@pytest.mark.parametrize(
    ("steps", "warmup"), [(3, 0), (100, 25), (800, 200), (2000, 200), (4000, 200), (10_000, 500), (10**6, 2000)]
)
def test_the_warm_up_is_long_enough_for_adam_where_the_run_is(steps, warmup):
    assert f"warmup_iters = {warmup}" in schedule_keys(1e-3, steps)


def train(config, tmp_path, data_dir, *keys: str) -> subprocess.CompletedProcess:
    command = [sys.executable, str(ROOT / "train.py"), str(config), f"--data_dir={data_dir}", "--device=cpu", *keys]
    return subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=120)


def test_the_startup_report_shows_the_same_figures(emit, tmp_path):
    emit("1e13")
    best = json.loads((tmp_path / "found.json").read_text())["candidates"][0]
    text = (tmp_path / "made.py").read_text()
    done = train(tmp_path / "made.py", tmp_path, tmp_path, "--dry_run")
    assert done.returncode == 0, done.stderr
    assert f"Parameters:            {best['n_params']:,}\n" in done.stdout
    assert f"FLOPs per token:       {best['flops_per_token']:,} (training, full attention" in done.stdout
    tokens, _, flops = re.search(r"# FLOPs of the run: ([\d,]+) tokens x ([\d,]+) = ([\d.e+]+)", text).groups()
    assert f"Tokens: {tokens} " in done.stdout and f"FLOPs of the run:      {flops} (full)" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("budget", ["1e10", "2e11 --arch deepseek_dense --hidden_sizes 16,32"])
def test_a_small_budget_really_trains(emit, tmp_path, data_dir, budget):
    """The whole run that so many FLOPs buy, with nothing changed but the machine."""
    emit(*budget.split(), "--dataset=tiny", f"--data_dir={data_dir}")
    _, plan = planned(tmp_path / "made.py")
    keys = ["--device=cpu", "--dtype=float32", "--out_dir=run", "--eval_iters=1"]
    command = [sys.executable, str(ROOT / "train.py"), str(tmp_path / "made.py"), *keys]
    done = subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    log = [json.loads(line) for line in (tmp_path / "run/log.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in log if line["type"] == "iter"]
    assert losses[-1] < losses[0] - 0.5, "it learns"
    assert f"finished at step {plan.length} of {plan.length}" in done.stdout


def test_datasets_by_vocabulary(emit, tmp_path, data_dir):
    for arguments, dataset in (
        (["1e13"], "python_stdlib"),
        (["1e18"], "openwebtext"),
        (["1e13", "--dataset=tiny", f"--data_dir={data_dir}"], "tiny"),
    ):
        assert emit(*arguments, "--force")[0] == 0
        assert planned(tmp_path / "made.py")[0].run.dataset == dataset


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--vocab_size=65", "name it with --dataset"),
        ("--dataset=openwebtxt", "(did you mean 'openwebtext'?)"),
        ("--dataset=openwebtext --vocab_size=50256", "the dataset 'openwebtext' has 50257 token ids: take at least as"),
        ("--dataset=tiny --data_dir={data_dir} --vocab_size=255", "the dataset 'tiny' has 256 token ids"),
    ],
)
def test_datasets_that_do_not_fit(emit, tmp_path, data_dir, arguments, message):
    code, err = emit("1e13", *arguments.format(data_dir=data_dir).split())
    assert code == 2 and message in err and err.count("\n") == 1 and list(tmp_path.iterdir()) == []


def test_what_the_dataset_lacks_is_said(emit, tmp_path, data_dir):
    """More passes than one over its tokens, and token ids that its tokenizer does not have."""
    tokens = open_dataset(data_dir / "tiny").splits["train"].tokens
    emit("1e12", "--dataset=tiny", f"--data_dir={data_dir}", "--vocab_size=300")
    text, (_, plan) = (tmp_path / "made.py").read_text(), planned(tmp_path / "made.py")
    assert f"# tiny has {tokens:.4g} tokens, and the run passes over them {plan.tokens / tokens:.3g} times" in text
    assert "# Of 300 token ids its tokenizer has 256: the others never occur." in text
    emit("1e18", "--force", "--vocab_size=50257")
    text = (tmp_path / "made.py").read_text()
    assert "passes over them" not in text and "never occur" not in text
    emit("1e21", "--force")
    _, plan = planned(tmp_path / "made.py")
    text = (tmp_path / "made.py").read_text()
    assert f"openwebtext has 9.036e+09 tokens, and the run passes over them {plan.tokens / 9.036e9:.3g} times" in text


def test_an_existing_file_is_kept(emit, tmp_path):
    (tmp_path / "made.py").write_text("mine\n")
    code, err = emit("1e13")
    assert code == 2 and "made.py: the file exists; --force overwrites it" in err and err.count("\n") == 1
    assert (tmp_path / "made.py").read_text() == "mine\n" and not (tmp_path / "found.json").exists()
    assert emit("1e13", "--force")[0] == 0
    assert planned(tmp_path / "made.py")[1].length > 0


def test_a_folder_is_no_config_file(emit, tmp_path):
    (tmp_path / "made.py").mkdir()
    code, err = emit("1e13", "--force")
    assert code == 2 and "made.py is a folder: name a file" in err and not (tmp_path / "found.json").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("1e13 --emit=nowhere/x.py", "there is no folder"),
        ("1e13 --emit=x.txt", "the file's name must end in .py"),
        ("1e13 --emit=/proc/x.py", "--emit=/proc/x.py: cannot write to the folder /proc"),
        ("1e13 --json=/proc/x.json", "--json=/proc/x.json: cannot write to the folder /proc"),
        ("1e13 --law=nowhere.json", "nowhere.json: cannot read it"),
        ("1e20 --max_params=10", "nothing is feasible"),
    ],
)
def test_nothing_is_written_when_anything_is_wrong(capsys, monkeypatch, tmp_path, arguments, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        sys, "argv", [str(COMMAND), "--json=x.json", "--emit=y.py", "--grid_search", *arguments.split()]
    )
    with pytest.raises(SystemExit) as end:
        detailed_cost_analysis.main()
    err = capsys.readouterr().err
    assert end.value.code == 2 and message in err and err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
