"""A run's files that are taken away, replaced, full or out of reach: what is said, and that nothing is lost."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import processes
import pytest
from checkpoints import last_checkpoint
from commands import Done
from conftest import ROOT, environment, small_run
from test_resume import curve, same_end

KEYS = ["--checkpoint_interval=3", "--max_iters=10", "--compile=False"]

# A run to whose files something happens after its n-th step.
MEDDLED_RUN = """
import os, shutil
from pathlib import Path
import training.trainer as trainer
original, calls = trainer.take_step, 0

def remove(folder):
    while folder.exists():  # what the run writes meanwhile, as a checkpoint, goes in the next pass
        shutil.rmtree(folder, ignore_errors=True)

def take_step(*arguments):
    global calls
    calls += 1
    result = original(*arguments)
    if calls == {step} and os.environ.get("RANK", "0") == "0":
        run, data = Path("run"), Path("data/tiny")
        {meddle}
    return result

trainer.take_step = take_step
import train
train.main()
"""


@pytest.fixture
def meddled(train, data_dir, tmp_path) -> Callable[..., Done]:
    """The small run on data of its own, to whose files something happens."""
    shutil.copytree(data_dir / "tiny", tmp_path / "data/tiny")

    def run(meddle: str, step: int = 5, ranks: int = 1) -> Done:
        script = tmp_path / "meddled_run.py"
        script.write_text(MEDDLED_RUN.format(step=step, meddle=meddle))
        return train(*KEYS, "--data_dir=data", script=script, ranks=ranks)

    return run


@pytest.fixture(scope="module")
def whole(data_dir, tmp_path_factory) -> Path:
    """In a process of its own, as the others: what ran before in this one may leave its arithmetic another rounding."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    keys = small_run(data_dir, f"--out_dir={folder}", *KEYS)
    assert processes.run(ROOT / "train.py", keys, folder.parent, environment()).returncode == 0
    return folder


def records(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    "meddle",
    [
        "remove(run)",
        "run.rename('elsewhere')",
        "run.rename('elsewhere'); run.mkdir()",
        "remove(run); run.mkdir(); run.joinpath('notes').touch()",
    ],
)
def test_a_run_whose_folder_is_gone_says_so_at_once(meddled, tmp_path, meddle):
    done = meddled(meddle)
    assert done.returncode == 1 and "Iter 5 " in done.stdout and "Iter 6 " not in done.stdout
    assert done.stderr.startswith("error: run was removed, renamed or replaced") and done.stderr.count("\n") == 1
    left = list((tmp_path / "run").rglob("*")) if (tmp_path / "run").exists() else []
    assert [path.name for path in left if path.is_file()] == ["notes"] * ("notes" in meddle)


@pytest.mark.parametrize("meddle", ["(run / 'log.jsonl').unlink()", "(run / 'log.jsonl').rename('run/old')"])
def test_a_run_whose_log_is_gone_is_saved_and_ends(meddled, train, tmp_path, whole, meddle):
    done = meddled(meddle)
    assert done.returncode == 1 and "stopped: run/log.jsonl was removed or replaced" in done.stdout
    assert last_checkpoint(tmp_path / "run").name == "step_00000005"
    assert train(*KEYS, "--init_from=auto").returncode == 0
    assert same_end(tmp_path / "run", whole)


def test_a_run_that_never_had_a_checkpoint_does_not_say_that_one_is_kept(train, tmp_path):
    script = tmp_path / "small_disk.py"
    script.write_text(
        "import resource, train\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"  # a checkpoint is larger, the log is not
        "train.main()\n"
    )
    done = train(*KEYS, script=script)
    assert done.returncode == 1, done.stderr
    warnings = [line for line in done.stdout.splitlines() if line.startswith("warning: ")]
    assert warnings and all(line.endswith("; there is none yet") for line in warnings), warnings
    assert "finished" not in done.stdout and "kept" not in done.stdout
    assert "NOT SAVED (File too large): all steps taken at step 10 of 10" in done.stdout
    assert records(tmp_path / "run")[-1]["type"] == "summary"


def test_only_what_a_run_left_itself_is_tidied_away(train, tmp_path, whole):
    run = shutil.copytree(whole, tmp_path / "run")
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").touch()
    checkpoints = run / "checkpoints"
    for theirs in (".DS_Store", "._step_00000010", ".nfs0000000000000001", ".writing_notes"):
        (checkpoints / theirs).touch()
    (checkpoints / ".mine").mkdir()
    (checkpoints / ".mine/file").touch()
    (checkpoints / ".link").symlink_to(outside)
    (checkpoints / ".writing_00000009").symlink_to(outside)
    (checkpoints / "step_00000011").touch()
    theirs = {path.name for path in checkpoints.iterdir() if path.name.startswith(".")}
    for ours in (".writing_00000007", ".deleting_step_00000001"):
        (checkpoints / ours).mkdir()
        (checkpoints / ours / "shard").touch()
    assert train(*KEYS, "--max_iters=12", "--init_from=auto").returncode == 0
    assert {path.name for path in checkpoints.iterdir() if path.name.startswith(".")} == theirs
    assert (outside / "file").exists() and (checkpoints / ".mine/file").exists()


def test_a_checkpoint_under_the_name_of_another_step_is_refused(train, tmp_path, whole):
    run = shutil.copytree(whole, tmp_path / "run")
    before = (run / "log.jsonl").read_bytes()
    (run / "checkpoints/step_00000009").rename(run / "checkpoints/step_00000099")
    refused = train(*KEYS, "--max_iters=12", "--init_from=auto")
    assert refused.returncode == 2 and refused.stderr.count("\n") == 1
    assert "step_00000099 is the checkpoint of another step: rename it to step_00000009" in refused.stderr
    assert (run / "checkpoints/step_00000099").exists() and (run / "log.jsonl").read_bytes() == before
    (run / "checkpoints/step_00000099").rename(run / "checkpoints/step_00000009")
    assert "resumed at step 10" in train(*KEYS, "--max_iters=12", "--init_from=auto").stdout


@pytest.mark.parametrize("place", ["log.jsonl", "checkpoints"])
def test_what_cannot_be_written_is_found_before_the_first_step(train, tmp_path, place):
    wrong = tmp_path / "run" / place
    wrong.parent.mkdir()
    if place == "log.jsonl":
        wrong.mkdir()
    else:
        wrong.touch()
    refused = train(*KEYS, "--init_from=auto")
    assert refused.returncode == 2 and refused.stderr.startswith(f"error: cannot write to run/{place}: ")
    assert refused.stderr.count("\n") == 1 and "Iter" not in refused.stdout


# Written into what is there, as `cp` and `truncate` do; a prepare script gives another file the name.
CHANGES = {
    "cut short": "os.truncate(data / '{split}.bin', 100)",
    "overwritten": "size = os.path.getsize(data / '{split}.bin'); open(data / '{split}.bin', 'r+b').write(bytes(size))",
}


@pytest.mark.slow
@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize("change", CHANGES)
def test_data_that_change_under_a_run_end_it_saved(meddled, data_dir, train, tmp_path, whole, split, change):
    done = meddled(CHANGES[change].format(split=split))
    assert done.returncode == 1 and f"stopped: data/tiny/{split}.bin was " in done.stdout
    assert done.stderr == ""
    ended = records(tmp_path / "run")[-1]
    assert ended["type"] == "summary" and last_checkpoint(tmp_path / "run").name == f"step_{ended['step']:08d}"
    shutil.copytree(data_dir / "tiny", tmp_path / "data/tiny", dirs_exist_ok=True)
    assert train(*KEYS, "--data_dir=data", "--init_from=auto").returncode == 0
    assert curve(tmp_path / "run/log.jsonl") == curve(whole / "log.jsonl") and same_end(tmp_path / "run", whole)


@pytest.mark.slow
def test_data_that_change_under_two_ranks_end_both_saved(meddled, tmp_path):
    done = meddled(CHANGES["overwritten"].format(split="val"), ranks=2)
    assert done.returncode == 1 and "stopped: data/tiny/val.bin was changed" in done.stdout
    assert last_checkpoint(tmp_path / "run").name == "step_00000005"


def test_data_that_are_touched_or_prepared_anew_change_nothing(meddled, tmp_path, whole):
    anew = "Path('new').write_bytes(bytes(9)); os.rename('new', data / 'val.bin')"
    done = meddled("os.utime(data / 'train.bin'); " + anew)
    assert done.returncode == 0, done.stderr
    assert curve(tmp_path / "run/log.jsonl") == curve(whole / "log.jsonl")
