"""What an evaluation is a mean over: so many windows, fixed for a run; and that it changes nothing of the run."""

import json
import shutil
from pathlib import Path

import pytest
from commands import command
from conftest import BYTES, training

import compare_architectures
from data.tokenizers import tokenizer_from_meta
from data.writer import DatasetWriter
from runs.config import RunConfig
from runs.folder import RunFolder, read_state, write_state
from runs.logs import read_run
from training.validation import evaluation_batches

KEYS = ["--max_iters=8", "--compile=False"]


@pytest.fixture(scope="module")
def begun(data_dir, tmp_path_factory) -> Path:
    """A run that was asked to stop after step 6 of 8, by a step limit of its config."""
    run = tmp_path_factory.mktemp("begun") / "run"
    assert training(data_dir, run, *KEYS, "--max_iters=6").returncode == 0
    return run


@pytest.fixture
def run(begun, tmp_path) -> Path:
    return shutil.copytree(begun, tmp_path / "run")


def evals(run: Path) -> dict[int, float]:
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return {line["step"]: line["val_loss"] for line in lines if line["type"] == "eval"}


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def other_dataset(data_dir: Path, folder: Path) -> Path:
    """The dataset of the tests with another validation split."""
    text, tokenizer = "depth scale width layer " * 200, tokenizer_from_meta(BYTES)
    with DatasetWriter(folder / "tiny", BYTES, 256, "other") as writer:
        for split in ("train", "val"):
            writer.add(split, [*tokenizer.encode(text), 0], len(text))
    shutil.copy(data_dir / "tiny/train.bin", folder / "tiny/train.bin")
    before, now = (json.loads((of / "tiny/meta.json").read_text()) for of in (data_dir, folder))
    now["splits"]["train"] = before["splits"]["train"]
    (folder / "tiny/meta.json").write_text(json.dumps(now))
    return folder


@pytest.mark.slow
def test_the_loss_does_not_depend_on_how_a_step_is_cut(train, tmp_path):
    """The same initial weights, then those of the same steps."""
    for name, (accumulation, batch) in {"one": (1, 8), "two": (2, 4), "eight": (8, 1), "five": (1, 5)}.items():
        cut = [f"--gradient_accumulation_steps={accumulation}", f"--batch_size={batch}", f"--out_dir={name}"]
        assert train(*KEYS, *cut).returncode == 0
    one, two, eight, five = (evals(tmp_path / name) for name in ("one", "two", "eight", "five"))
    assert two == pytest.approx(one, rel=1e-4) and eight == pytest.approx(one, rel=1e-4)
    assert one[0] == pytest.approx(two[0], rel=1e-6) == pytest.approx(eight[0], rel=1e-6)
    assert five[0] == pytest.approx(one[0], rel=1e-6)


@pytest.mark.parametrize("n_windows", [1, 5, 12, 13, 31, 1000])
@pytest.mark.parametrize("unit", [1, 12, 16])
def test_every_batch_size_takes_the_same_number_of_windows(n_windows, unit):
    taken = set()
    for batch_size in range(1, 40):
        run = RunConfig(eval_iters=7, eval_batch_size=unit, batch_size=batch_size)
        batches, size = evaluation_batches(run, n_windows)
        assert size <= batch_size
        taken.add(batches * size)
    (windows,) = taken
    assert windows == 7 * unit if n_windows >= 7 * unit else n_windows - min(unit, n_windows) < windows <= n_windows


def test_an_evaluation_changes_nothing_of_a_run(run, data_dir, tmp_path, capfd):
    (run / ".lock").unlink()
    before, state = contents(run), read_run(run).state
    keys = ["--eval_only=True", "--batch_size=2"]
    for start in ("auto", "resume"):
        done = training(data_dir, run, *KEYS, *keys, f"--init_from={start}")
        assert done.returncode == 0, done.stderr
        assert f"Eval 6 │ validation loss {evals(run)[6]:.4f}" in done.stdout
    other = other_dataset(data_dir, tmp_path / "other")
    elsewhere = training(data_dir, run, *KEYS, *keys, "--init_from=auto", f"--data_dir={other}")
    assert elsewhere.returncode == 0 and f"validation loss {evals(run)[6]:.4f}" not in elsewhere.stdout
    assert contents(run) == before and read_run(run).state == state


def test_a_run_may_be_evaluated_while_it_is_held(run, data_dir):
    with RunFolder(run).hold():
        done = training(data_dir, run, *KEYS, "--eval_only=True", "--init_from=auto")
    assert done.returncode == 0 and "Eval 6 │ validation loss" in done.stdout


def made_best(run: Path, loss: float) -> None:
    """As if step 4 had been much better than whatever comes."""
    for checkpoint in RunFolder(run).checkpoints():
        state = read_state(checkpoint)
        state["progress"] |= {"best_step": 4, "best_val_loss": loss}
        write_state(checkpoint, state)
    log = (run / "log.jsonl").read_text().splitlines()
    lines = [json.loads(line) for line in log]
    for line in lines:
        if line["type"] == "eval" and line["step"] == 4:
            line["val_loss"] = loss
    (run / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_the_best_is_of_what_is_evaluated_now(run, data_dir, tmp_path):
    made_best(run, 0.1)
    same = shutil.copytree(run, tmp_path / "same")
    resumed = training(data_dir, same, *KEYS, "--init_from=auto", "--batch_size=2", "--gradient_accumulation_steps=4")
    assert resumed.returncode == 0 and read_state(RunFolder(same).last_checkpoint())["progress"]["best_step"] == 4
    assert read_run(same).best_val_loss == 0.1 and not read_run(same).other_evals
    other = other_dataset(data_dir, tmp_path / "other")
    for number, key in enumerate(["--eval_iters=2", "--eval_batch_size=6", f"--data_dir={other}"]):
        changed = shutil.copytree(run, tmp_path / str(number))
        done = training(data_dir, changed, *KEYS, "--init_from=auto", "--always_save_checkpoint=False", key)
        assert done.returncode == 0 and "the best validation loss starts anew" in done.stdout
        progress = read_state(RunFolder(changed).last_checkpoint())["progress"]
        assert (progress["best_step"], progress["best_val_loss"]) == (8, evals(changed)[8])
        assert RunFolder(changed).find("best")[0].name == "step_00000008"
        log = read_run(changed)
        assert log.best_val_loss == log.summary["best_val_loss"] == evals(changed)[8]
        assert [record["step"] for record in log.evals] == [8]
        assert [record["step"] for record in log.other_evals] == [0, 4, 6]
        shown = command(compare_architectures.main, changed).stdout
        assert f"{evals(changed)[8]:.4f}" in shown and "0.1000" not in shown
        assert f"note: {number}: 3 evaluations up to step 6 are left out" in shown


def test_a_run_of_an_earlier_version_keeps_its_windows(run, data_dir):
    """It counted them in batch_size: 4 x 4."""
    for checkpoint in RunFolder(run).checkpoints():
        state = read_state(checkpoint)
        del state["config"]["eval_batch_size"]
        write_state(checkpoint, state)
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    del lines[0]["config"]["eval_batch_size"]
    (run / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    done = training(data_dir, run, *KEYS, "--init_from=auto", "--batch_size=2", "--gradient_accumulation_steps=4")
    assert done.returncode == 0 and "starts anew" not in done.stdout
    assert json.loads((run / "config.json").read_text())["eval_batch_size"] == 4
    assert [record["step"] for record in read_run(run).evals] == [0, 4, 6, 8]
