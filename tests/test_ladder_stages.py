"""A ladder from plan to law and back to the planner, on runs that a known law makes up; and what cannot be a ladder."""

import dataclasses
import fcntl
import hashlib
import io
import json
import re
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from commands import Done, command
from conftest import ROOT
from hypothesis import given
from hypothesis import strategies as st
from tqdm import tqdm

import ladder as ladder_command
import ladders.runner
import ladders.stages
from common.errors import UserError
from configurator import load
from flops_parameter_counting import detailed_cost_analysis
from flops_parameter_counting.laws import fitting as law_fitting
from flops_parameter_counting.laws.fitting import predicted
from flops_parameter_counting.laws.scaling_laws import CONSTANTS, LAWS, find_law
from flops_parameter_counting.planner.emit import RunSizes
from ladders.calibration import seconds_of, step_flops
from ladders.ledger import append, entries, of_type, predictions, read
from ladders.plan import Folder, Plan, _evaluable, read_plan
from ladders.report import isoflop_figure
from ladders.runner import Runner, divided
from ladders.sizes import isoflop_search, sizes_around
from model_config import presets
from runs.logs import read_run
from training.plan import plan_run

PLANTED = {"E": 1.2, "A": 40.0, "B": 60.0, "alpha": 0.36, "beta": 0.34}
NOISE = 1e-3
FAILS = 'run["budget"] == 0'
BEST_RATE = 4e-3  # of the sweep
HIGHEST_RATE = 0.5  # with which anything trains

# In the place of train.py: the log of a run whose loss is the planted law's, more for other learning rates.
TRAINER = f"""
import json, math, runpy, sys, time, zlib
from pathlib import Path

config, out = Path(sys.argv[1]), Path(next(a for a in sys.argv if a.startswith("--out_dir=")).partition("=")[2])
plan = json.loads((config.parent.parent / "plan.json").read_text())
(run,) = [run for run in plan["runs"] if run["name"] == config.stem]
keys = {{k: v for k, v in runpy.run_path(str(config)).items() if not k.startswith("_")}}
if {FAILS}:
    sys.exit("error: unlucky")
law, n, tokens = {PLANTED!r}, run["n_params"], run["steps"] * run["tokens_per_step"]
loss = law["E"] + law["A"] / n ** law["alpha"] + law["B"] / tokens ** law["beta"]
loss *= 1 + {NOISE} * (zlib.crc32(config.stem.encode()) / 2**31 - 1)
loss += run["is_sweep"] * math.log(keys["learning_rate"] / {BEST_RATE}) ** 2
stops = keys["learning_rate"] > {HIGHEST_RATE}
reason = "stopped: no finite gradient" if stops else "finished"
config_of_run = {{"decay_lr": True, "lr_schedule": "cosine", "lr_decay_iters": None, **keys}}
flops = {{"full": tokens * run["flops_per_token"], "causal": 1}}
law_name = (keys.get("scaling_law") or {{}}).get("name")
carried = {{"law": law_name, "loss": keys.get("predicted_loss"), "flops": keys["predicted_flops"]}}
records = [
    {{"type": "run", "name": out.name, "architecture": run["model"], "config": config_of_run, "steps": run["steps"],
      "parameters": {{"total": n, "by_part": {{}}}}, "flops_per_token": {{"full": run["flops_per_token"]}},
      "tokens_per_step": run["tokens_per_step"], "prediction": {{**carried, "seconds": keys["predicted_seconds"]}},
      "dataset": {{"name": "tiny", "vocab_size": 256, "splits": {{"val": {{"checksum": "1"}}}}}}}},
    {{"type": "eval", "step": run["steps"], "tokens": tokens, "flops": flops, "val_loss": loss,
      "val_bits_per_byte": None, "best": True, "train_seconds": 1.0, "seconds": 0.0}},
    {{"type": "summary", "reason": reason, "step": run["steps"], "tokens": tokens, "flops": flops,
      "train_seconds": 1.0, "tokens_per_second": None}},
]
out.mkdir(parents=True)
(out / "log.jsonl").write_text("".join(json.dumps({{"time": time.time(), **record}}) + "\\n" for record in records))
if stops:
    print("error: the loss is not finite", "===== a launcher's summary =====", sep="\\n")
    sys.exit(1)
"""


@pytest.fixture(scope="module")
def ladder(data_dir, tmp_path_factory):
    """`ladder(*arguments)`: the command in a folder of the module's, with runs and a calibration that are made up."""
    folder = tmp_path_factory.mktemp("stages")
    (folder / "trainer.py").write_text(TRAINER)
    starts = law_fitting.grid_of_starts()[::100]

    def calibrated(plan: Plan) -> Plan:
        runs = tuple(dataclasses.replace(run, seconds=2.0) for run in plan.runs)
        return dataclasses.replace(plan, runs=runs, calibration={"device": "made up", "start_seconds": 3.0})

    def call(*arguments: object) -> Done:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ladders.runner, "TRAIN", folder / "trainer.py")
            patch.setattr(ladders.runner, "LOOK_SECONDS", 0.02)
            patch.setattr(ladder_command, "calibrated", calibrated)
            patch.setattr(law_fitting, "grid_of_starts", lambda: starts)  # tests/test_fit_scaling_law.py takes all
            patch.setattr(ladders.stages, "DRAWS", 200)
            patch.chdir(folder)
            data = [f"--data_dir={data_dir}", "--dataset=tiny", "--block_size=32"] if arguments[0] == "plan" else []
            return command(ladder_command.main, arguments[0], *data, *arguments[1:])

    call.folder = folder
    return call


@pytest.fixture(scope="module")
def isoflop(ladder) -> tuple[Path, Done, Done]:
    """Three budgets of five sizes with a sweep, run; and what the plan and the run printed."""
    planned = ladder(
        "plan", "--isoflop=3e11:3e13:3", "--arch=llama3", f"--tune=lr=1e-3,{BEST_RATE},1.6e-2", "--out=ladder/i"
    )
    assert planned.returncode == 0, planned.stderr
    ran = ladder("run", "ladder/i", "--jobs=2")
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ladder.folder / "ladder/i", planned, ran


# ---------------------------------------------------------------------------------------------------------------------
# The plan


def test_an_isoflop_ladder_lies_off_every_ray(isoflop):
    folder, planned, _ = isoflop
    runs = [run for run in read_plan(folder).runs if not run.is_sweep]
    assert sorted({run.budget for run in runs}) == [3e11, 3e12, 3e13]
    for budget in (3e12, 3e13):
        n = [run.n_params for run in runs if run.budget == budget]
        assert len(set(n)) == 5 and n == sorted(n) and 6 < n[-1] / n[0] < 12, "about 3 times the best N both ways"
    for run in runs:
        configuration = load_run(folder, run)
        assert run.budget * 0.98 < plan_run(configuration, None).flops("full") <= run.budget
        model = configuration.model
        assert model.n_embd % 16 == 0 and model.head_dim >= 16 and 8 <= model.n_embd / model.n_layer <= 64
    n, d = (np.array([getattr(run, name) for run in runs], float) for name in ("n_params", "tokens"))
    spans = [float(values.max() / values.min()) for values in (n, d, d / n)]
    stated = re.search(r"all runs: N spans a factor of ([\d.]+), D of ([\d.]+), D/N of ([\d.]+);", planned.stdout)
    assert [float(value) for value in stated.groups()] == pytest.approx(spans, rel=5e-3)


def load_run(folder: Path, run):
    return load([str(folder / f"configs/{run.name}.py")])


def test_datasets_are_compared_like_architectures(ladder):
    """Each with the same models, seeds and validation text, at equal FLOPs, and with a learning rate of its own."""
    rates = f"--tune=lr=1e-3,{BEST_RATE}"
    asked = ["plan", "--budget=1e12", "--arch=gpt2", "--seeds=2", "--dataset=tiny,short", rates, "--out=ladder/data"]
    planned = ladder(*asked, "--val_dataset=short")
    assert planned.returncode == 0, planned.stderr
    folder = ladder.folder / "ladder/data"
    plan = read_plan(folder)
    runs = [run for run in plan.runs if not run.is_sweep]
    assert [(run.dataset, run.seed) for run in runs] == [(data, seed) for data in ("tiny", "short") for seed in (1, 2)]
    assert len({(run.flops, str(run.architecture)) for run in runs}) == 1
    sweep = [run.name for run in plan.runs if run.is_sweep]
    assert sweep == [f"sweep-gpt2-1e12-{data}-lr{rate:g}" for data in ("tiny", "short") for rate in (1e-3, BEST_RATE)]
    repeats = re.findall(r"note: (\d+) runs pass over the [\d,]+ training tokens of (\w+) more", planned.stdout)
    assert repeats == [("4", "tiny"), ("4", "short")]
    keys = [load_run(folder, run).run for run in plan.runs if run.is_sweep]
    assert [(one.dataset, one.val_dataset) for one in keys] == [
        (data, "short") for data in ("tiny",) * 2 + ("short",) * 2
    ]
    ran = ladder("run", "ladder/data", "--jobs=2")
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert f"gpt2 on short: learning rate {BEST_RATE:g} has the lowest loss of the sweep" in ran.stdout
    done = ladder("report", "ladder/data")
    assert done.returncode == 0 and re.search(r"dataset=(tiny|short) against dataset=\w+ at equal FLOPs", done.stdout)
    assert "nothing was written" in ladder(*asked, "--val_dataset=short").stdout
    other = ladder(*asked, "--val_dataset=tiny")
    assert other.returncode == 2 and "(val_dataset, data differ)" in other.stderr


def test_a_plan_of_one_dataset_has_the_hash_that_it_had_before_there_could_be_several(isoflop):
    values = json.loads((isoflop[0] / "plan.json").read_text())
    assert "val_dataset" not in values["arguments"] and "dataset" not in values["runs"][0]
    runs = [{**run, "seconds": None} for run in values["runs"]]
    asked = {"arguments": values["arguments"], "dataset": values["dataset"], "runs": runs}
    assert hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:12] == values["hash"]


def test_the_sweep_is_counted_and_takes_a_quarter_of_the_steps(isoflop):
    folder, planned, _ = isoflop
    plan = read_plan(folder)
    sweep, rest = ([run for run in plan.runs if run.is_sweep is wanted] for wanted in (True, False))
    flops = [sum(plan_run(load_run(folder, run), None).flops("full") for run in runs) for runs in (sweep, rest)]
    assert f"FLOPs: {sum(flops):.4e} " in planned.stdout and f", {flops[0]:.4e} of them in the sweep" in planned.stdout
    assert len({run.n_params for run in sweep}) == 1 and sorted(run.learning_rate for run in sweep)[1] == BEST_RATE
    (whole,) = [run for run in rest if run.budget == 3e11 and run.n_params == sweep[0].n_params]
    assert {run.steps for run in sweep} == {round(whole.steps / 4)}


def test_the_best_rate_changes_the_rule_everywhere_by_the_same_factor(isoflop):
    folder, _, ran = isoflop
    plan = read_plan(folder)
    assert f"llama3: learning rate {BEST_RATE:g} has the lowest loss of the sweep\n" in ran.stdout
    swept = next(run for run in plan.runs if run.is_sweep)
    for run in plan.runs:
        rate = load_run(folder, run).run.learning_rate
        if not run.is_sweep:
            same = run.budget == 3e11 and run.n_params == swept.n_params
            assert rate == pytest.approx(BEST_RATE) if same else 0 < rate <= 10 * BEST_RATE
    factors = {round(load_run(folder, run).run.learning_rate / run.learning_rate, 2) for run in plan.runs[3:]}
    assert len(factors) == 1


def test_what_waits_has_no_config_yet(ladder):
    planned = ladder("plan", "--isoflop=3e11:3e13:3", "--arch=llama3", "--sizes=2", "--out=ladder/waits")
    plan, folder = read_plan(ladder.folder / "ladder/waits"), ladder.folder / "ladder/waits"
    waits = [run for run in plan.runs if run.waits_for]
    assert [run.budget for run in waits] == [3e13, 3e13]
    assert {path.stem for path in (folder / "configs").iterdir()} == {
        run.name for run in plan.runs if not run.waits_for
    }
    assert "the smaller budgets have 4 runs, and a law that predicts the largest needs 10" in planned.stdout
    done = ladder("run", "ladder/waits")
    assert (
        done.returncode == 0 and "no prediction for the largest budget: the points cannot support a law" in done.stdout
    )
    said = predictions(read(folder / "ledger.jsonl"))
    assert all(said[run.name]["loss"] is None and "cannot support" in said[run.name]["why"] for run in waits)


@pytest.mark.parametrize("arch", ["gpt2", "hybrid"])
def test_a_budget_gets_the_planners_choice(ladder, arch, tmp_path):
    """What --grid_search says for this budget, vocabulary and context length."""
    found = tmp_path / "found.json"
    asked = ["--grid_search", "7e12", "--arch", arch, "--vocab_size", "256", "--sequence_length", "32"]
    assert command(detailed_cost_analysis.main, *asked, "--json", found).returncode == 0
    best = json.loads(found.read_text())["candidates"][0]
    assert ladder("plan", "--budget=7e12", f"--arch={arch}", "--seeds=1", f"--out=ladder/{arch}").returncode == 0
    folder = ladder.folder / "ladder" / arch
    (run,) = read_plan(folder).runs
    model = load_run(folder, run).model
    for name in ("n_layer", "n_embd", "n_head", "num_key_value_heads", "d_ff"):
        assert getattr(model, name) == best[name], name
    assert run.flops_per_token == best["flops_per_token"] and 0 <= best["tokens"] - run.tokens < run.tokens_per_step


# ---------------------------------------------------------------------------------------------------------------------
# The law


def test_the_largest_budget_is_predicted_from_the_others_before_it_runs(isoflop):
    folder, _, _ = isoflop
    plan, records = read_plan(folder), read(folder / "ledger.jsonl")
    (law,) = of_type(records, "law")
    smaller = [read_run(folder / "runs" / run.name) for run in plan.runs if not run.is_sweep and run.budget < 3e13]
    assert law["points"] == len(smaller) == 10
    assert law["time"] > max(log.summary["time"] for log in smaller)
    constants = np.array([law["law"][name] for name in CONSTANTS])
    largest = [entry for entry in entries(plan, Folder(folder)) if entry.run.budget == 3e13]
    assert len(largest) == 5
    for entry in largest:
        expected = float(predicted(constants, np.array(float(entry.run.n_params)), np.array(float(entry.run.tokens))))
        carried = load_run(folder, entry.run).run
        assert entry.prediction["loss"] == carried.predicted_loss == pytest.approx(expected, abs=5.1e-6)
        assert carried.scaling_law == law["law"]
        low, high = entry.prediction["loss_95"]
        assert low < entry.prediction["loss"] < high
        assert law["time"] <= entry.prediction["time"] < entry.started and entry.proof == "before"
        assert abs(entry.miss("loss")) < 0.01 * entry.loss


def test_the_loop_is_closed(isoflop, ladder, tmp_path):
    """The fit finds the law that made the runs, and the planner plans by it."""
    folder, _, _ = isoflop
    done = ladder("fit", "ladder/i")
    assert done.returncode == 0, done.stderr
    assert (folder / "law.png").read_bytes().startswith(b"\x89PNG")
    law = find_law(str(folder / "law.json"))
    low, high = np.quantile(law.draws, [0.005, 0.995], axis=0)
    for name, bottom, top in zip(CONSTANTS, low, high, strict=True):
        assert bottom < PLANTED[name] < top, name
    for entry in entries(read_plan(folder), Folder(folder)):
        if not entry.run.is_sweep:
            assert law.loss(entry.run.n_params, entry.run.tokens) == pytest.approx(entry.loss, rel=3 * NOISE)
    emitted = tmp_path / "next.py"
    arguments = ["--grid_search", "1e14", "--law", folder / "law.json", "--emit", emitted]
    done = command(detailed_cost_analysis.main, *arguments)
    assert done.returncode == 0 and "95 % interval" in done.stdout, done.stderr
    configuration = load([str(emitted)])
    plan = plan_run(configuration, None)
    assert configuration.run.predicted_loss == pytest.approx(law.loss(plan.cost.n_params, plan.tokens), abs=5.1e-6)


def test_a_fitted_law_predicts_a_ladder_at_one_budget(isoflop, ladder):
    folder, _, _ = isoflop
    law = PLANTED | {"N": "non_embedding", "source": "planted"}
    (folder / "planted.json").write_text(json.dumps(law))
    arguments = ["plan", "--budget=2e12", "--arch=gpt2,mamba2,hybrid", "--seeds=2", f"--law={folder / 'planted.json'}"]
    planned = ladder(*arguments, "--out=ladder/one")
    assert planned.returncode == 0, planned.stderr
    runs = read_plan(ladder.folder / "ladder/one").runs
    assert [run.seed for run in runs] == [1, 2] * 3
    for run in runs:
        configuration = load_run(ladder.folder / "ladder/one", run)
        parts = plan_run(configuration, None).cost.parameters
        blocks = sum(count for part, count in parts.items() if part not in ("embedding", "position", "lm_head"))
        expected = law["E"] + law["A"] / blocks ** law["alpha"] + law["B"] / run.tokens ** law["beta"]
        assert configuration.run.predicted_loss == pytest.approx(expected, abs=5.1e-6)
        assert f"{expected:.4f}" in next(line for line in planned.stdout.splitlines() if line.startswith(run.name))


def test_the_report_draws_the_law(isoflop, ladder):
    folder, _, _ = isoflop
    done = ladder("report", "ladder/i")
    assert done.returncode == 0, done.stderr
    assert "L(N, D) = E + A / N^alpha + B / D^beta" in done.stdout
    page = (folder / "report.html").read_text()
    assert '"3e+12 FLOPs, law"' in page
    assert "\n  alpha " in re.search("<pre>(.*?)</pre>", page, re.DOTALL)[1]
    assert page.count('<th scope="col">predicted loss</th>') == 1
    for entry in entries(read_plan(folder), Folder(folder)):
        if entry.run.budget == 3e13:
            (line,) = [line for line in done.stdout.splitlines() if line.startswith(f"{entry.run.name} ")]
            predicted_loss = entry.prediction["loss"]
            assert f"{predicted_loss:.4f}" in line and f"{entry.loss:.4f}" in line
            assert f"{entry.loss / predicted_loss - 1:+.2%}" in line and " before " in line


def test_the_curve_of_a_budget_passes_through_the_law_at_its_runs(isoflop):
    found = [entry for entry in entries(read_plan(isoflop[0]), Folder(isoflop[0])) if not entry.run.is_sweep]
    figure = isoflop_figure(found, "total", np.array([PLANTED[name] for name in CONSTANTS]))
    traces = {trace["name"]: trace for trace in figure["data"]}
    assert len(traces) == 2 * 3
    for entry in found:
        name = f"{entry.run.budget:.3g} FLOPs"
        marks, curve = traces[name], traces[f"{name}, law"]
        law = PLANTED["E"] + PLANTED["A"] / entry.run.n_params**0.36 + PLANTED["B"] / entry.run.tokens**0.34
        assert marks["y"][marks["x"].index(entry.run.n_params)] == entry.loss
        assert np.interp(np.log(entry.run.n_params), np.log(curve["x"]), curve["y"]) == pytest.approx(law, rel=1e-3)


# ---------------------------------------------------------------------------------------------------------------------
# The ledger


def test_a_line_that_a_kill_cut_is_lost_alone(tmp_path):
    ledger = tmp_path / "ledger.jsonl"
    ledger.touch()
    append(ledger, {"type": "law", "law": None})
    with ledger.open("a") as file:
        file.write('{"type": "prediction", "ru')
    append(ledger, {"type": "prediction", "run": "a"})
    assert [record["type"] for record in read(ledger)] == ["law", "prediction"]


def test_the_first_prediction_counts(tmp_path):
    ledger = tmp_path / "ledger.jsonl"
    ledger.touch()
    for loss in (1.0, 2.0):
        append(ledger, {"type": "prediction", "run": "a", "loss": loss})
    assert predictions(read(ledger))["a"]["loss"] == 1.0


def test_a_config_that_was_lost_is_made_again_as_it_was(isoflop, ladder):
    folder, _, _ = isoflop
    run = read_plan(folder).runs[-1]
    config = folder / f"configs/{run.name}.py"
    text, log = config.read_text(), folder / "runs" / run.name / "log.jsonl"
    config.unlink()
    content = log.read_text()
    log.unlink()
    log.parent.rmdir()
    try:
        assert ladder("run", "ladder/i").returncode == 0
        assert config.read_text() == text
    finally:
        log.write_text(content)


# ---------------------------------------------------------------------------------------------------------------------
# Time and devices


def test_time_between_the_measured_models_is_a_power_of_their_flops(isoflop):
    run = read_plan(isoflop[0]).runs[5]
    flops = step_flops(run)
    measured = [{"flops": flops / 4, "seconds": 0.1}, {"flops": flops * 4, "seconds": 0.4}]
    assert seconds_of(run, measured) == pytest.approx(0.2 * run.steps, rel=1e-5)
    assert seconds_of(run, measured[:1]) == pytest.approx(0.1 * run.steps, rel=1e-5)


def test_runs_at_the_same_time_have_gpus_of_their_own(isoflop, monkeypatch):
    runner = Runner(read_plan(isoflop[0]), Folder(isoflop[0]), gpus=2, jobs=2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert [runner.environment(slot)["CUDA_VISIBLE_DEVICES"] for slot in (0, 1)] == ["0,1", "2,3"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,7")
    assert [runner.environment(slot)["CUDA_VISIBLE_DEVICES"] for slot in (0, 1)] == ["4,5", "6,7"]
    launched = runner.command(runner.plan.runs[0], Path("x.py"))
    assert launched[1:5] == ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    assert "--device=cuda" in launched, "with fewer GPUs than that, not on the processor"


def test_more_gpus_than_are_visible_are_refused(isoflop, ladder, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    done = ladder("run", "ladder/i", "--gpus=2", "--jobs=2")
    assert done.returncode == 2 and "--jobs=2 with --gpus=2 take 4 GPUs, and 2 are visible" in done.stderr


def test_a_run_of_an_earlier_call_takes_the_place_of_one_of_this(ladder):
    """With one job nothing starts beside it: times and devices are those of one run at a time."""
    ladder("plan", "--budget=1e12", "--arch=gpt2", "--seeds=2", "--out=ladder/held")
    first, second = (ladder.folder / f"ladder/held/runs/gpt2-1e12-s{seed}" for seed in (1, 2))
    first.mkdir(parents=True)
    released = []

    def hold() -> None:
        with (first / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            holds.set()
            time.sleep(2)
            released.append(time.time())
        shutil.rmtree(first)

    holds, holder = threading.Event(), threading.Thread(target=hold)
    holder.start()
    holds.wait()
    done = ladder("run", "ladder/held")
    holder.join()
    assert done.returncode == 0, done.stdout + done.stderr
    assert "gpt2-1e12-s1: a process of an earlier call goes on with it; waiting for it" in done.stdout
    started = json.loads((second / "log.jsonl").read_text().splitlines()[0])["time"]
    assert started >= released[0]


def test_the_bar_counts_the_flops_of_the_whole_ladder(isoflop):
    plan = read_plan(isoflop[0])
    runner = Runner(plan, Folder(isoflop[0]), gpus=None, jobs=1)
    with tqdm(total=float(plan.flops), file=io.StringIO()) as runner.bar:
        runner._show_progress()
        assert runner.bar.n == sum(run.steps * run.tokens_per_step * run.flops_per_token for run in plan.runs)


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_ranks_share_a_step_and_evaluate_the_same_windows(isoflop, ranks):
    for run in read_plan(isoflop[0]).runs:
        changed = dict(key.removeprefix("--").split("=") for key in divided(run, ranks))
        accumulation = int(changed.get("gradient_accumulation_steps", run.gradient_accumulation_steps))
        batch, batches = int(changed.get("batch_size", run.batch_size)), int(changed.get("eval_iters", run.eval_iters))
        assert accumulation % ranks == 0 and accumulation * batch * 32 == run.tokens_per_step
        assert batches * batch == run.eval_iters * run.batch_size


@given(st.integers(1, 300), st.integers(1, 8), st.integers(0, 9))
def test_every_batch_has_the_same_windows(batch_size, accumulation, power):
    """A batch as it is planned, and divided among ranks."""
    planned = RunSizes(accumulation, batch_size, 32, 10, 1e-3)
    sizes = _evaluable(planned, 2**power)
    assert sizes.tokens_per_step == planned.tokens_per_step and 2**power % sizes.batch_size == 0
    run = SimpleNamespace(
        name="x",
        gradient_accumulation_steps=sizes.gradient_accumulation_steps,
        batch_size=sizes.batch_size,
        eval_iters=2**power // sizes.batch_size,
    )
    for ranks in (2, 3, 4):
        try:
            keys = dict(key.removeprefix("--").split("=") for key in divided(run, ranks))
        except UserError:
            assert planned.gradient_accumulation_steps * planned.batch_size % ranks
            continue
        if keys:
            assert int(keys["eval_iters"]) * int(keys["batch_size"]) == 2**power
            assert int(keys["gradient_accumulation_steps"]) % ranks == 0


def test_more_ranks_than_sequences_are_refused(isoflop):
    with pytest.raises(UserError, match="which 3 GPUs cannot share: lower --gpus"):
        divided(read_plan(isoflop[0]).runs[0], 3)


# ---------------------------------------------------------------------------------------------------------------------
# What cannot be


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--budget=1e12 --arch=lama", f"--arch=lama is none of: {', '.join(presets())} (did you mean 'llama'?)"),
        ("--budget=1e12 --arch=gpt2,gpt2", "--arch names gpt2 twice"),
        ("--arch=gpt2", "give either --budget or --isoflop"),
        ("--budget=1e12 --isoflop=1e11:1e12:3 --arch=gpt2", "give either --budget or --isoflop"),
        ("--budget=1e12 --arch=gpt2 --seeds=0", "argument --seeds: '0' is not a whole number of 1 or more"),
        ("--budget=-1 --arch=gpt2", "argument --budget: '-1' is not a number above 0"),
        ("--budget=1e6 --arch=gpt2", "a budget of 1e+06 FLOPs is too small for any gpt2 on sequences of 32 tokens: "),
        ("--isoflop=1e12:1e14 --arch=gpt2", "--isoflop=1e12:1e14 is not LOW:HIGH:COUNT, such as 1e12:1e14:5"),
        ("--isoflop=1e12:x:4 --arch=gpt2", "--isoflop: 'x' is not a number above 0"),
        ("--isoflop=1e14:1e12:4 --arch=gpt2", "LOW must be below HIGH"),
        ("--isoflop=1e12:1e14:3 --arch=gpt2,llama3", "--isoflop takes one --arch"),
        ("--isoflop=1e12:1e14:3 --arch=gpt2 --dataset=tiny,short", "--isoflop takes one --dataset"),
        ("--budget=1e12 --arch=gpt2 --dataset=tiny,short", "on common text: name the dataset to validate all on, with"),
        ("--budget=1e12 --arch=gpt2 --dataset=tiny,tiny --val_dataset=tiny", "--dataset names tiny twice"),
        ("--budget=1e12 --arch=gpt2 --dataset=tiny, --val_dataset=tiny", "--dataset=tiny, lacks a name"),
        ("--budget=1e12 --arch=gpt2 --dataset=tiny,a/b --val_dataset=tiny", "runs are called after 'a/b'"),
        ("--budget=1e12 --arch=gpt2 --dataset=tiny,shrt --val_dataset=tiny", "shrt"),
        ("--isoflop=1e12:1.01e12:20 --arch=gpt2", "20 budgets do not differ in their first three digits"),
        ("--budget=1e9 --arch=gpt2 --batch_tokens=1048576", "1e+09 FLOPs are less than one step of 1,048,576 tokens"),
        ("--budget=1e12 --arch=gpt2 --tune=lr=1e-3,1.0000001e-3", "give at least two learning rates, each once"),
        ("--isoflop=1e9:2e9:2 --arch=gpt2", "do not have 5 sizes of gpt2"),
        ("--budget=1e12 --arch=gpt2 --sizes=3", "--sizes is for --isoflop"),
        ("--budget=1e12 --arch=gpt2 --tokens_per_parameter=20", "--tokens_per_parameter is for --isoflop"),
        ("--budget=1e12 --arch=gpt2 --layers=3", "--layers is for --isoflop"),
        ("--budget=1e12 --arch=gpt2 --spread=4", "--spread is for --isoflop"),
        ("--isoflop=1e12:1e14:3 --arch=gpt2 --spread=0.5", "--spread=0.5 must be above 1"),
        ("--budget=1e12 --arch=gpt2 --batch_tokens=100", "--batch_tokens=100 is not a multiple of the block size, 32"),
        ("--budget=1e12 --arch=gpt2 --tune=rate=1", "--tune=rate=1 is not lr=RATE,..., such as lr=1e-3,2e-3,4e-3"),
        ("--budget=1e12 --arch=gpt2 --tune=lr=1e-3", "give at least two learning rates, each once"),
        ("--budget=1e12 --arch=gpt2 --law=besirolu", "(did you mean 'besiroglu'?)"),
        ("--budget=1e12 --arch=gpt2 --n_meaning=all", "--n_meaning=all is none of"),
    ],
)  # fmt: skip
def test_what_is_no_plan_is_one_line_and_writes_nothing(ladder, arguments, message):
    done = ladder("plan", *arguments.split(), "--out=ladder/none")
    assert done.returncode == 2 and message in done.stderr and done.stderr.count("\n") == 1
    assert not (ladder.folder / "ladder/none").exists()


def test_a_dataset_that_is_not_prepared(tmp_path):
    (tmp_path / "python_stdlib").mkdir()
    arguments = ["plan", "--budget=1e12", "--arch=gpt2", f"--data_dir={tmp_path}", f"--out={tmp_path / 'x'}"]
    done = command(ladder_command.main, *arguments)
    assert done.returncode == 2 and "python data/python_stdlib/prepare.py" in done.stderr
    assert done.stderr.count("\n") == 1 and not (tmp_path / "x").exists()


@pytest.mark.parametrize("subcommand", ["run", "report", "fit"])
def test_a_folder_without_a_plan(ladder, subcommand, tmp_path):
    done = ladder(subcommand, tmp_path)
    assert done.returncode == 2 and f"{tmp_path} holds no plan" in done.stderr and done.stderr.count("\n") == 1


def test_a_plan_into_an_empty_folder_and_one_of_something_else(ladder, tmp_path):
    assert ladder("plan", "--budget=1e12", "--arch=gpt2", f"--out={tmp_path}").returncode == 0
    (tmp_path / "plan.json").unlink()
    done = ladder("plan", "--budget=1e12", "--arch=gpt2", f"--out={tmp_path}")
    assert done.returncode == 2 and f"{tmp_path} holds no plan" in done.stderr


def test_a_folder_that_cannot_be_written_is_refused_before_anything_is_measured(ladder, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setattr(ladder_command, "calibrated", None)
    done = ladder("plan", "--budget=1e12", "--arch=gpt2", f"--out={tmp_path}/file/x")
    assert done.returncode == 2 and f"cannot write {tmp_path}/file/x" in done.stderr and done.stderr.count("\n") == 1


def test_a_plan_that_was_changed_is_refused_by_its_hash(isoflop, ladder, tmp_path):
    text = (isoflop[0] / "plan.json").read_text()
    (tmp_path / "plan.json").write_text(re.sub(r'"steps": \d+', '"steps": 7', text, count=1))
    done = ladder("run", tmp_path)
    stated = json.loads(text)["hash"]
    assert done.returncode == 2 and "plan.json was changed: its hash is " in done.stderr and stated in done.stderr


def test_failures_are_listed_and_what_waits_for_them_is_named(ladder):
    ladder("plan", "--isoflop=3e11:3e13:3", "--arch=llama3", "--sizes=2", "--seeds=1", "--out=ladder/unlucky")
    folder = ladder.folder / "ladder/unlucky"
    trainer = ladder.folder / "trainer.py"
    trainer.write_text(TRAINER.replace(FAILS, 'run["budget"] == 3e12'))
    try:
        done = ladder("run", "ladder/unlucky")
    finally:
        trainer.write_text(TRAINER)
    plan = read_plan(folder)
    failed, waiting = ([run for run in plan.runs if run.budget == budget] for budget in (3e12, 3e13))
    assert done.returncode == 1 and "2 of 6 runs have finished" in done.stdout
    for run in failed:
        assert f"failed: {run.name}: unlucky (ladder/unlucky/output/{run.name}.txt)" in done.stdout
    for run in waiting:
        assert f"not started: {run.name} waits for law" in done.stdout
    assert ladder("run", "ladder/unlucky").returncode == 0


def test_a_rate_at_which_nothing_trains_is_not_chosen_and_holds_nothing_up(ladder):
    ladder("plan", "--budget=1e12", "--arch=gpt2", "--seeds=1", "--tune=lr=1e-3,1.0", "--out=ladder/diverging")
    done = ladder("run", "ladder/diverging")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "sweep-gpt2-1e12-lr1: does not train at this rate: the loss is not finite" in done.stdout
    assert "gpt2: learning rate 0.001 has the lowest loss of the sweep" in done.stdout
    again = ladder("run", "ladder/diverging")
    assert again.returncode == 0 and "starts" not in again.stdout
    assert "sweep-gpt2-1e12-lr1" in ladder("report", "ladder/diverging").stdout


def test_the_command_needs_no_torch_to_plan():
    code = "import sys, ladder; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_one_size_is_the_best(data_dir):
    (alone,) = sizes_around(isoflop_search(3e12, "gpt2", LAWS["besiroglu"], 256, 256), 1, 3.0)
    three = sizes_around(isoflop_search(3e12, "gpt2", LAWS["besiroglu"], 256, 256), 3, 3.0)
    assert three[0].candidate.n_params < alone.candidate.n_params < three[2].candidate.n_params


def test_sizes_are_spread_around_the_best(data_dir):
    choices = sizes_around(isoflop_search(3e12, "gpt2", LAWS["besiroglu"], 256, 256), 7, 3.0)
    n = [choice.candidate.n_params for choice in choices]
    assert n == sorted(set(n)) and len(n) == 7 and n[-1] / n[0] < 9.2
    assert all(isinstance(choice.candidate.tokens, int) for choice in choices)
    around = sizes_around(isoflop_search(3e12, "gpt2", LAWS["besiroglu"], 256, 256), 3, 3.0, 60.0)
    smallest, middle, largest = (choice.candidate for choice in around)
    assert 40 < middle.tokens / middle.n_params < 90
    assert smallest.tokens / smallest.n_params > 3 * 60 and largest.tokens / largest.n_params < 60 / 3


def test_sizes_of_one_depth_differ_in_their_width():
    choices = sizes_around(isoflop_search(3e12, "llama3", LAWS["besiroglu"], 128, 256), 5, 4.0, 25.0, 3)
    assert {choice.candidate.n_layer for choice in choices} == {3}
    widths = [choice.candidate.n_embd for choice in choices]
    assert widths == sorted(set(widths)) and len(widths) == 5


def test_every_step_has_the_tokens_that_are_asked_for(ladder):
    """Also more than go into one micro-batch."""
    for tokens in (64, 65536):
        folder = f"ladder/steps{tokens}"
        done = ladder("plan", "--budget=3e12", "--arch=gpt2,llama3", f"--batch_tokens={tokens}", f"--out={folder}")
        assert done.returncode == 0, done.stderr
        for run in read_plan(ladder.folder / folder).runs:
            assert run.tokens_per_step == tokens == run.gradient_accumulation_steps * run.batch_size * 32
            assert run.batch_size * 32 <= 16_384
            assert 0 <= 3e12 - run.flops < run.tokens_per_step * run.flops_per_token
