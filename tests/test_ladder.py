"""A ladder that really trains: planned, killed and started again, reported. test_ladder_stages.py has the rest."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from commands import command
from conftest import ROOT, environment

import ladder as ladder_command
from configurator import load
from flops_parameter_counting.costs.model_cost import model_cost
from ladders.ledger import entries, predictions, read
from ladders.plan import Folder, read_plan
from runs.logs import RunLog, read_run
from training.plan import plan_run

pytestmark = pytest.mark.slow

BUDGET = 1e9


def process(*arguments: object, cwd: Path) -> subprocess.Popen:
    """ladder.py as its users call it."""
    line = [sys.executable, str(ROOT / "ladder.py"), *map(str, arguments)]
    pipe = subprocess.PIPE
    return subprocess.Popen(line, cwd=cwd, env=environment(), stdout=pipe, stderr=pipe, text=True)


def call(*arguments: object, cwd: Path) -> tuple[int, str, str]:
    started = process(*arguments, cwd=cwd)
    out, err = started.communicate(timeout=120)
    return started.returncode, out, err


def losses(folder: Path) -> dict[str, list]:
    return {path.name: read_run(path).val_losses() for path in sorted((folder / "runs").iterdir())}


@pytest.fixture(scope="module")
def planned(data_dir, tmp_path_factory) -> Path:
    """A folder with `x`: gpt2 and llama3 at one budget, planned and not run."""
    folder = tmp_path_factory.mktemp("ladder")
    shutil.copytree(data_dir, folder / "data")
    code, out, err = call("plan", *PLAN, cwd=folder)
    assert code == 0, err
    (folder / "printed.txt").write_text(out)
    return folder


PLAN = (
    f"--budget {BUDGET:g} --arch gpt2,llama3 --seeds 1 --dataset tiny --data_dir data --block_size 32 --device cpu "
    "--out x"
).split()


@pytest.fixture(scope="module")
def finished(planned) -> Path:
    """A copy of it, run to its end without a break."""
    shutil.copytree(planned / "x", planned / "whole")
    began = time.monotonic()
    code, out, err = call("run", "whole", cwd=planned)
    (planned / "whole/took.txt").write_text(str(time.monotonic() - began))
    assert code == 0, out + err
    assert out.splitlines()[-1] == "2 of 2 runs have finished"
    return planned / "whole"


def test_the_plan_states_what_the_runs_cost(planned):
    """FLOPs, steps and sizes as train.py counts them from the configs; all with the same data and windows."""
    plan, printed = read_plan(planned / "x"), (planned / "printed.txt").read_text()
    configs = {run.name: load([str(planned / f"x/configs/{run.name}.py")]) for run in plan.runs}
    total = 0
    for run in plan.runs:
        configuration = configs[run.name]
        of_train = plan_run(configuration, None)
        total += of_train.flops("full")
        one_step = of_train.tokens_per_step * model_cost(configuration.model).training_flops()
        assert BUDGET - one_step < of_train.flops("full") <= BUDGET
        assert configuration.run.predicted_flops == of_train.flops("full") == run.flops
        (line,) = [line for line in printed.splitlines() if line.startswith(f"{run.name} ")]
        assert f"{of_train.cost.n_params:,}" in line and f"{of_train.length:,}" in line
        assert f"{of_train.flops('full'):.4e}" in line and f"{of_train.flops('full') / BUDGET:.2%}" in line
        assert configuration.model.name in line
    assert f"FLOPs: {total:.4e} " in printed and f"Plan {plan.hash}: 2 runs" in printed
    runs = [configuration.run for configuration in configs.values()]
    windows = {
        (c.run.eval_iters * c.run.batch_size, c.model.block_size, c.run.dataset, c.run.seed) for c in configs.values()
    }
    assert len(windows) == 1 and {run.lr_schedule for run in runs} == {"cosine"}


def test_every_run_is_predicted_before_it_starts(finished):
    plan, said = read_plan(finished), predictions(read(finished / "ledger.jsonl"))
    for run in plan.runs:
        first = json.loads((finished / f"runs/{run.name}/log.jsonl").read_text().splitlines()[0])
        assert said[run.name]["time"] < first["time"]
        assert first["prediction"]["flops"] == said[run.name]["flops"] == run.flops
        assert first["prediction"]["seconds"] == said[run.name]["seconds"] == run.seconds
    assert [entry.proof for entry in entries(plan, Folder(finished))] == ["before", "before"]
    for entry in entries(plan, Folder(finished)):
        summary = read_run(finished / "runs" / entry.run.name).summary
        assert entry.miss("flops") == summary["miss"]["flops"] == 0
        assert entry.miss("seconds") == pytest.approx(summary["miss"]["seconds"])


def test_time_and_disk_are_about_what_the_plan_says(finished):
    """The machine may be busy with something else: within a factor of ten."""
    plan = read_plan(finished)
    took = sum(read_run(finished / "runs" / run.name).train_seconds for run in plan.runs)
    assert 1 / 10 < took / sum(run.seconds for run in plan.runs) < 10
    assert 1 / 10 < float((finished / "took.txt").read_text()) / plan.seconds < 10
    on_disk = sum(file.stat().st_size for file in (finished / "runs").rglob("*") if file.is_file())
    assert on_disk == pytest.approx(plan.bytes, rel=0.3)


def test_a_plan_made_again_writes_nothing(planned):
    before = {path: path.stat().st_mtime_ns for path in (planned / "x").rglob("*")}
    code, out, _ = call("plan", *PLAN, cwd=planned)
    assert code == 0 and out.endswith("x holds this plan already: nothing was written\n")
    assert {path: path.stat().st_mtime_ns for path in (planned / "x").rglob("*")} == before


def test_another_plan_in_the_folder_is_refused_by_its_hash(planned):
    done = command_in(planned, "plan", *PLAN, "--seeds", "2")
    mine = read_plan(planned / "x").hash
    assert done.returncode == 2 and f"x holds another plan, {mine} (seeds differ), and this one is " in done.stderr


# ---------------------------------------------------------------------------------------------------------------------
# Kills


def wait_for(what, seconds=90.0):
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if (found := what()) is not None:
            return found
        time.sleep(0.05)
    raise AssertionError("it did not come to that")


def has_saved(run: Path) -> RunLog | None:
    """The log of a run that has a checkpoint in it."""
    log = read_run(run) if (run / "log.jsonl").exists() and (run / "log.jsonl").stat().st_size > 5000 else None
    return log if log is not None and log.checkpoints else None


def has_begun(run: Path) -> RunLog | None:
    """The log of a run that has taken a step."""
    log = read_run(run) if (run / "log.jsonl").exists() and (run / "log.jsonl").stat().st_size > 5000 else None
    return log if log is not None and log.iters else None


def test_killed_anywhere_it_goes_on_as_if_nothing_had_happened(finished, planned):
    """A kill of the runner leaves its run behind, which the next call waits for; SIGTERM goes on to the run, which
    saves; a third call finishes. Every loss is that of the ladder that nobody disturbed."""
    folder = planned / "killed"
    shutil.copytree(planned / "x", folder)
    first, second = (folder / "runs" / run.name for run in read_plan(folder).runs)
    runner = process("run", folder, cwd=planned)
    wait_for(lambda: has_saved(first))
    runner.kill()
    runner.communicate()
    runner = process("run", folder, cwd=planned)
    wait_for(lambda: has_begun(second))  # and not until its end, which is near
    runner.send_signal(signal.SIGTERM)
    out, err = runner.communicate(timeout=60)
    assert runner.returncode == 128 + signal.SIGTERM, out + err
    assert "stopped by SIGTERM; the same command goes on" in out
    assert read_run(first).state == "finished" and read_run(second).state == "interrupted"
    code, out, err = call("run", folder, cwd=planned)
    assert code == 0, out + err
    assert f"{second.name}: goes on\n" in out and "2 of 2 runs have finished" in out
    assert losses(folder) == losses(finished)
    assert [entry.proof for entry in entries(read_plan(folder), Folder(folder))] == ["before", "before"]


def test_a_kill_between_the_last_checkpoint_and_the_summary(finished, tmp_path):
    """The run evaluates its end again, and writes its summary."""
    folder = tmp_path / "lost"
    shutil.copytree(finished, folder)
    run = next((folder / "runs").iterdir())
    log = (run / "log.jsonl").read_text().splitlines(keepends=True)
    assert json.loads(log[-1])["type"] == "summary"
    (run / "log.jsonl").write_text("".join(log[:-1]))
    assert read_run(run).state == "cut"
    code, out, err = call("run", folder, cwd=tmp_path)
    assert code == 0, out + err
    assert losses(folder) == losses(finished) and read_run(run).state == "finished"


def test_a_run_that_another_process_holds_is_waited_for(finished, tmp_path):
    """And two runners do not work on one ladder."""
    folder = tmp_path / "held"
    shutil.copytree(finished, folder)
    run = next((folder / "runs").iterdir())
    log = (run / "log.jsonl").read_text().splitlines(keepends=True)
    (run / "log.jsonl").write_text("".join(log[:3]))
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(run)], env=environment(),
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert holder.stdout.readline() == "held\n"
    runner = process("run", folder, cwd=tmp_path)
    assert runner.stdout.readline() == f"{run.name}: a process of an earlier call goes on with it; waiting for it\n"
    code, _, err = call("run", folder, cwd=tmp_path)
    assert code == 2 and "another ladder.py run works on" in err and err.count("\n") == 1
    (run / "log.jsonl").write_text("".join(log))
    holder.communicate("done\n")
    out, _ = runner.communicate(timeout=60)
    assert runner.returncode == 0 and out.splitlines()[-1] == "2 of 2 runs have finished"


HOLD = """
import sys
from pathlib import Path
from runs.folder import RunFolder
with RunFolder(Path(sys.argv[1])).hold():
    print("held", flush=True)
    input()
"""


def test_a_failed_run_does_not_stop_the_others(finished, planned, tmp_path):
    """The first run is to be made again, on a dataset that is gone; the second has finished."""
    folder = tmp_path / "failing"
    shutil.copytree(finished, folder)
    first, second = read_plan(folder).runs
    shutil.rmtree(folder / "runs" / first.name)
    hidden = planned / "data/hidden"
    (planned / "data/tiny").rename(hidden)
    try:
        code, out, err = call("run", folder, "--jobs", "2", cwd=tmp_path)
    finally:
        hidden.rename(planned / "data/tiny")
    assert code == 1 and err == ""
    assert "1 of 2 runs have finished\n" in out
    (line,) = [line for line in out.splitlines() if line.startswith(f"failed: {first.name}: ")]
    assert "data/tiny" in line and f"output/{first.name}.txt" in line
    assert read_run(folder / "runs" / second.name).state == "finished"


def test_a_config_that_was_changed_is_refused_by_its_hash(finished, tmp_path):
    folder = tmp_path / "changed"
    shutil.copytree(finished, folder)
    run = read_plan(folder).runs[0]
    config = folder / f"configs/{run.name}.py"
    config.write_text(config.read_text() + "# mine\n")
    for subcommand in ("run", "report", "fit"):
        done = command_in(tmp_path, subcommand, folder)
        planned_hash = predictions(read(folder / "ledger.jsonl"))[run.name]["config"]
        assert done.returncode == 2 and done.stderr.count("\n") == 1, subcommand
        assert f"{run.name}.py was changed after it was planned: its hash is " in done.stderr
        assert f"and the ledger has {planned_hash}: restore it" in done.stderr


def command_in(folder: Path, *arguments: object):
    before = Path.cwd()
    os.chdir(folder)
    try:
        return command(ladder_command.main, *arguments)
    finally:
        os.chdir(before)


# ---------------------------------------------------------------------------------------------------------------------
# The report


def test_the_report_names_the_winner_and_shows_the_ledger(finished, tmp_path):
    done = command(
        ladder_command.main, "report", finished, "--markdown", tmp_path / "r.md", "--out", tmp_path / "r.html"
    )
    assert done.returncode == 0, done.stderr
    plan = read_plan(finished)
    by_loss = sorted(plan.runs, key=lambda run: read_run(finished / "runs" / run.name).final_val_loss)
    best = read_run(finished / "runs" / by_loss[0].name)
    stated = f"At {BUDGET:.3g} FLOPs the lowest mean loss is {best.final_val_loss:.4f} nats per token, of "
    markdown, page = (tmp_path / "r.md").read_text(), (tmp_path / "r.html").read_text()
    for text in (done.stdout, markdown, page):
        assert stated + best.run["architecture"] in text
        assert "no interval" in text, "there is one seed"
    for run in plan.runs:
        log = read_run(finished / "runs" / run.name)
        error = log.train_seconds / run.seconds - 1
        cells = [
            f"{run.n_params:,}",
            f"{log.final_val_loss:.4f}",
            f"{run.flops:.4e}",
            "+0.00%",
            f"{error:+.2%}",
            "before",
        ]
        (line,) = [line for line in markdown.splitlines() if line.startswith(f"| {run.name} |")]
        assert all(f"| {cell} |" in line for cell in cells), line
    spent = sum(read_run(finished / "runs" / run.name).flops for run in plan.runs)
    assert f"Spent: {spent:.4e} of {plan.flops:.4e} FLOPs" in done.stdout
    assert "No law: a law is that of one architecture, and the runs are of gpt2 and llama3." in done.stdout


def test_which_data_are_better_shows_on_common_text(planned):
    """Trained on words in documents of two and of eighty, validated on those of eighty, step by step as many FLOPs."""
    plan = [key for key in PLAN[:-2] if key not in ("gpt2,llama3",)]
    plan[plan.index("--arch") + 1 : plan.index("--arch") + 1] = ["gpt2"]
    plan[plan.index("--dataset") + 1] = "tiny,short"
    code, _, err = call("plan", *plan, "--val_dataset", "tiny", "--out", "data_ladder", cwd=planned)
    assert code == 0, err
    code, out, err = call("run", "data_ladder", "--jobs", "2", cwd=planned)
    assert code == 0, out + err
    logs = {path.name: read_run(path) for path in (planned / "data_ladder/runs").iterdir()}
    assert {log.dataset_name for log in logs.values()} == {"tiny", "short"}
    assert len({log.validated_on for log in logs.values()}) == 1 and len({log.flops for log in logs.values()}) == 1
    code, out, err = call("report", "data_ladder", cwd=planned)
    assert code == 0 and "nats per token, of dataset=tiny." in out, out + err
    done = subprocess.run(
        [sys.executable, str(ROOT / "compare_architectures.py"), "data_ladder/runs/*", "--dataset", "short"],
        cwd=planned, env=environment(), capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0 and "gpt2-1e+09-short" not in done.stderr and "tiny" not in done.stdout


def test_a_prediction_made_after_the_start_is_caught(finished, tmp_path):
    folder = tmp_path / "late"
    shutil.copytree(finished, folder)
    records = read(folder / "ledger.jsonl")
    records[0]["time"] = time.time()
    records[1]["flops"] += 10**6
    (folder / "ledger.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    proofs = [entry.proof for entry in entries(read_plan(folder), Folder(folder))]
    assert proofs == ["AFTER THE START", "THE RUN CARRIED ANOTHER"]
