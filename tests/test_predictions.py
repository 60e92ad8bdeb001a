"""What a config predicts of its run stands in the log beside what came, and is what the law says."""

import json
import math
import re
import shlex
from pathlib import Path

import pytest
from commands import command
from test_training import records

import train as train_command
from configurator import load
from flops_parameter_counting import detailed_cost_analysis
from flops_parameter_counting.costs.model_cost import model_cost
from training.plan import plan_run

CONSTANTS = {"E": 1.5, "A": 20.0, "B": 30.0, "alpha": 0.3, "beta": 0.4}
LAW = CONSTANTS | {"N": "total", "source": "made for this test"}
TOKENS_PER_STEP = 2 * 4 * 32


def says(n, d):
    return CONSTANTS["E"] + CONSTANTS["A"] / n ** CONSTANTS["alpha"] + CONSTANTS["B"] / d ** CONSTANTS["beta"]


@pytest.fixture
def law(tmp_path) -> Path:
    (tmp_path / "mine.json").write_text(json.dumps(LAW))
    return tmp_path / "mine.json"


def test_the_log_holds_the_law_against_every_loss(train, law, tmp_path):
    done = train(f"--scaling_law={law}", "--predicted_flops=1e9", "--predicted_seconds=2")
    assert done.returncode == 0, done.stderr
    (run,), (summary,) = records(tmp_path / "run", "run"), records(tmp_path / "run", "summary")
    n = run["parameters"]["total"]
    for record in records(tmp_path / "run", "iter"):
        assert record["expected_loss"] == pytest.approx(says(n, record["step"] * TOKENS_PER_STEP), rel=1e-12)
    first, *later = records(tmp_path / "run", "eval")
    assert first["step"] == 0 and first["expected_loss"] is None
    for record in later:
        assert record["expected_loss"] == pytest.approx(says(n, record["step"] * TOKENS_PER_STEP), rel=1e-12)
        shown = f"validation loss {record['val_loss']:.4f} (expected {record['expected_loss']:.4f})"
        assert shown in done.stdout
    end = says(n, 12 * TOKENS_PER_STEP)
    assert run["prediction"] == summary["prediction"]
    assert run["prediction"] == {"law": "mine", "loss": pytest.approx(end, rel=1e-12), "flops": 1e9, "seconds": 2.0}
    actual = {"loss": later[-1]["val_loss"], "flops": summary["flops"]["full"], "seconds": summary["train_seconds"]}
    for what, value in actual.items():
        assert summary["miss"][what] == pytest.approx(value - run["prediction"][what], rel=1e-9), what
    outcome = re.search(r"\(miss\): loss (.*) │ FLOPs (.*) │ seconds of training (.*)", done.stdout)
    loss, flops, seconds = outcome.groups()
    share = (actual["loss"] - end) / end
    assert loss == f"{end:.4f} → {actual['loss']:.4f} ({actual['loss'] - end:+.4f}, {share:+.2%})"
    assert flops.startswith(f"1.0000e+09 → {actual['flops']:.4e} (") and seconds.startswith("2.0 → ")
    assert "ranks architectures" not in done.stdout


def test_a_run_without_a_prediction_says_nothing_of_one(train, tmp_path):
    done = train("--max_iters=1")
    (run,), (summary,) = records(tmp_path / "run", "run"), records(tmp_path / "run", "summary")
    assert run["prediction"] is None and summary["prediction"] is None and summary["miss"] is None
    every = records(tmp_path / "run", "iter") + records(tmp_path / "run", "eval")
    assert {record["expected_loss"] for record in every} == {None}
    assert "expected" not in done.stdout and "redicted" not in done.stdout.replace("predicted_", "")


def test_each_law_counts_its_own_parameters(train, law, tmp_path):
    law.write_text(json.dumps(LAW | {"N": "non_embedding"}))
    assert train("--max_iters=1", f"--scaling_law={law}").returncode == 0
    (run,) = records(tmp_path / "run", "run")
    parts = run["parameters"]["by_part"]
    blocks = parts["attention"] + parts["ffn"] + parts["norms"]
    assert run["prediction"]["loss"] == pytest.approx(says(blocks, TOKENS_PER_STEP), rel=1e-12)


def test_a_stated_loss_wins_over_the_law(train, law, tmp_path):
    assert train("--max_iters=1", f"--scaling_law={law}", "--predicted_loss=3.25").returncode == 0
    assert records(tmp_path / "run", "summary")[0]["prediction"]["loss"] == 3.25


def test_a_published_law_ranks_and_says_so(train):
    done = train("--max_iters=1", "--scaling_law=besiroglu")
    assert "besiroglu was fitted to other data and another tokenizer: it ranks architectures" in done.stdout


def test_a_prediction_of_another_run_is_said(train, tmp_path):
    """Such as an emitted config with another --max_iters."""
    note = "note: the prediction is of another run: this one has"
    assert note in train("--max_iters=1", "--predicted_flops=1e13").stdout
    (run,) = records(tmp_path / "run", "run")
    flops = run["flops_per_token"]["full"] * TOKENS_PER_STEP
    for share, other in ((0.991, False), (1.011, True)):
        done = train("--max_iters=1", f"--predicted_flops={share * flops}", f"--out_dir=of_{share}")
        assert done.returncode == 0 and "Predicted: " in done.stdout and (note in done.stdout) == other, share


def test_a_run_that_did_not_reach_its_end_has_no_miss(train, law, tmp_path):
    """The prediction is of the end."""
    keys = [f"--scaling_law={law}", "--eval_only=True"]
    assert train(*keys).returncode == 0
    (summary,) = records(tmp_path / "run", "summary")
    assert summary["prediction"]["law"] == "mine" and summary["miss"] is None


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("--scaling_law=besirolu", "scaling_law: law 'besirolu' is none of: hoffmann, hoffmann_unrounded, besiroglu"),
        ("--scaling_law=nowhere.json", "scaling_law: nowhere.json: cannot read it"),
        ("--predicted_loss=0", "predicted_loss=0.0 must be above 0"),
        ("--predicted_seconds=soon", "predicted_seconds='soon': expected float or None"),
    ],
)
def test_predictions_that_are_none(train, key, message, tmp_path):
    done = train(key)
    assert done.returncode == 2 and message in done.stderr and done.stderr.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_a_law_in_the_config_is_checked(train, tmp_path):
    (tmp_path / "bad.py").write_text(f"scaling_law = {LAW | {'alpha': -1}!r}\n")
    done = train(str(tmp_path / "bad.py"))
    assert done.returncode == 2 and "scaling_law: alpha=-1 must be a number above 0" in done.stderr


def test_a_law_in_the_config_lasts_through_checkpoint_and_reproduction(train, tmp_path):
    (tmp_path / "mine.py").write_text(f"scaling_law = {LAW!r}\npredicted_loss = 3.5\n")
    assert train(str(tmp_path / "mine.py"), "--max_iters=4").returncode == 0
    done = train(str(tmp_path / "mine.py"), "--init_from=auto")
    assert done.returncode == 0 and "resumed at step 4" in done.stdout, done.stderr
    first, second = records(tmp_path / "run", "run")
    assert first["prediction"] == second["prediction"]
    assert first["prediction"] == {"law": "law", "loss": 3.5, "flops": None, "seconds": None}
    again = load([str(tmp_path / "run/config.py")])
    assert again.run.scaling_law == LAW and again.run.predicted_loss == 3.5


# ---------------------------------------------------------------------------------------------------------------------
# Configs that the planner emits


def emit(tmp_path, arguments: str):
    made = tmp_path / "made.py"
    given = ["--grid_search", *shlex.split(arguments), f"--emit={made}", "--force"]
    done = command(detailed_cost_analysis.main, *given)
    assert done.returncode == 0, done.stderr
    configuration = load([str(made)])
    return configuration.run, plan_run(configuration, None), " ".join(made.read_text().replace("#", " ").split())


def test_a_fitted_law_goes_into_the_config_and_needs_no_other_file(law, tmp_path):
    law.write_text(
        json.dumps(LAW | {"range": {"N": [1e4, 1e6], "D": [1e5, 1e7]}, "draws": [list(CONSTANTS.values())] * 2})
    )
    run, plan, text = emit(tmp_path, f"1e13 --law {law}")
    law.unlink()
    assert run.scaling_law == LAW | {"name": "mine", "range": {"N": [1e4, 1e6], "D": [1e5, 1e7]}}
    assert run.predicted_loss == pytest.approx(says(plan.cost.n_params, plan.tokens), abs=5.1e-6)
    assert f"Predicted loss: {run.predicted_loss:.5f}" in text
    assert run.predicted_flops == plan.flops("full") and run.predicted_seconds is None
    done = command(train_command.main, tmp_path / "made.py", "--dry_run", f"--data_dir={tmp_path}")
    assert done.returncode == 0 and "scaling_law={'name': 'mine'" in " ".join(done.stdout.split()), done.stderr


def test_a_published_law_goes_in_by_name_with_a_warning(tmp_path):
    run, _, text = emit(tmp_path, "1e20")
    assert run.scaling_law == "besiroglu" and f"Predicted loss: {run.predicted_loss:.5f}" in text
    assert "besiroglu, of other data and another tokenizer, ranks and does not foretell the loss scaling_law" in text


def test_a_loss_that_a_model_has_which_knows_nothing_is_no_prediction(tmp_path):
    run, plan, text = emit(tmp_path, "1e13")
    stated = float(re.search(r"Predicted loss: ([\d.]+)", text).group(1))
    assert stated > math.log(256) and run.predicted_loss is None and run.scaling_law is None
    assert run.predicted_flops == plan.flops("full")


def test_hardware_gives_the_time(tmp_path):
    """1 day of 8 devices at 40 % of 989.4 TFLOP/s is the budget, and the run takes its share of the day."""
    run, plan, _ = emit(tmp_path, "--device H100-SXM --devices 8 --days 1 --mfu 0.4")
    budget = 8 * 0.4 * 86_400 * 989.4e12
    assert run.predicted_seconds == pytest.approx(86_400 * plan.flops("full") / budget, rel=1e-3)
    assert 0.99 * 86_400 < run.predicted_seconds <= 86_400 * 1.001


def test_the_cost_of_the_emitted_model_is_the_one_predicted(tmp_path):
    run, plan, _ = emit(tmp_path, "1e12 --arch hybrid")
    assert run.predicted_flops == model_cost(load([str(tmp_path / "made.py")]).model).training_flops() * plan.tokens
