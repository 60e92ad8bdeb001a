"""Exact resume: a run that is killed at any instant and started again goes on as if nothing had happened."""

import json
import re
import runpy
import shutil
from pathlib import Path

import pytest
from checkpoints import last_checkpoint, same, tensors
from commands import command
from conftest import small_run
from setups import LATENT

import train as train_command
from runs.logs import read_run

# A run that kills itself, as `kill -9` would, when one of its own functions has been called for the n-th time.
KILLED_RUN = """
import importlib, os, signal
module, name = {function!r}.rsplit(":")
owner = importlib.import_module(module)
*path, name = name.split(".")
for part in path:
    owner = getattr(owner, part)
original, calls = getattr(owner, name), 0

def killed(*arguments, **keywords):
    global calls
    calls += 1
    if calls == {call} and {rank} == int(os.environ.get("RANK", 0)):
        if {after}:
            original(*arguments, **keywords)
        os.kill(os.getpid(), signal.SIGKILL)
    return original(*arguments, **keywords)

setattr(owner, name, killed)
import train
train.main()
"""


def killed_run(folder: Path, function: str, call: int, after: bool = False, rank: int = 0) -> Path:
    script = folder / "killed_run.py"
    script.write_text(KILLED_RUN.format(function=function, call=call, after=after, rank=rank))
    return script


KEYS = ["--dropout=0.1", "--checkpoint_interval=3", "--max_iters=10", "--keep_last=2"]


def curve(log: Path) -> dict[int, tuple]:
    """Loss and gradient norm of every step, loss of every evaluation; of two records of a step the later one."""
    values: dict = {}
    for line in log.read_text().splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            continue  # cut by the kill
        if record["type"] == "iter":
            values[record["step"]] = (record["loss"], record["grad_norm"])
        if record["type"] == "eval":
            values["eval", record["step"]] = record["val_loss"]
    return values


def same_end(run: Path, other: Path) -> bool:
    """Whether the last checkpoints of two runs hold the same, to the last bit."""
    return same(*(tensors(last_checkpoint(folder)) for folder in (run, other)))


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, data_dir):
    """The reference, for each number of ranks, computed once."""
    finished: dict[int, Path] = {}

    def get(ranks: int, train) -> Path:
        if ranks not in finished:
            folder = tmp_path_factory.mktemp(f"reference{ranks}") / "run"
            done = train(*KEYS, f"--out_dir={folder}", ranks=ranks)
            assert done.returncode == 0, done.stderr
            finished[ranks] = folder
        return finished[ranks]

    return get


@pytest.mark.parametrize(
    ("function", "call", "after"),
    [
        ("training.trainer:Trainer.run_to_the_end", 1, False),  # before the first step
        ("training.trainer:take_step", 2, False),  # before there is any checkpoint
        ("training.step:backward_pass", 6, True),  # with gradients, before the update
        ("data.loader:SplitLoader.batch", 15, False),  # while data are read, or in an evaluation
        ("training.validation:precision", 7, False),  # within the second evaluation
        ("runs.checkpoint:Checkpointer.start", 2, True),  # copied, perhaps not written
        ("runs.checkpoint:_Writer.write_data", 2, True),  # tensors written
        ("runs.folder:write_state", 2, True),  # all written, not renamed
        ("runs.checkpoint:Checkpointer.settle", 12, True),  # perhaps renamed, the log does not know
        ("runs.folder:shutil.rmtree", 1, False),  # before an old checkpoint, renamed already, is deleted
        ("training_logger:TrainingLogger.evaluation", 2, True),
        ("training_logger:TrainingLogger.finish", 1, False),  # all is done but the summary
    ],
)
def test_killed_anywhere_the_run_continues_bit_for_bit(train, tmp_path, uninterrupted, function, call, after):
    reference = uninterrupted(1, train)
    killed = train(*KEYS, script=killed_run(tmp_path, function, call, after))
    assert killed.returncode == -9, killed.stderr
    resumed = train(*KEYS, "--init_from=auto")
    assert resumed.returncode == 0 and "note: the learning rate jumps" not in resumed.stdout, resumed.stderr
    assert curve(tmp_path / "run/log.jsonl") == curve(reference / "log.jsonl")
    assert same_end(tmp_path / "run", reference)
    assert not list((tmp_path / "run/checkpoints").glob(".*")), "leftovers of the killed run"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("function", "call", "rank"),
    [
        ("training.step:backward_pass", 6, 1),
        ("runs.checkpoint:_Writer.write_data", 2, 0),
        ("training.validation:precision", 3, 1),
    ],
)
def test_two_ranks_continue_bit_for_bit_after_one_was_killed(train, tmp_path, uninterrupted, function, call, rank):
    reference = uninterrupted(2, train)
    killed = train(*KEYS, ranks=2, script=killed_run(tmp_path, function, call, after=True, rank=rank))
    assert killed.returncode == 1 and "SIGKILL" in killed.stderr
    resumed = train(*KEYS, "--init_from=auto", ranks=2)
    assert resumed.returncode == 0, resumed.stderr
    assert curve(tmp_path / "run/log.jsonl") == curve(reference / "log.jsonl")
    assert same_end(tmp_path / "run", reference)


def test_a_run_that_was_killed_before_its_summary_writes_it(train, tmp_path, uninterrupted):
    reference = uninterrupted(1, train)
    assert train(*KEYS, script=killed_run(tmp_path, "training_logger:TrainingLogger.finish", 1)).returncode == -9
    assert train(*KEYS, "--init_from=auto").returncode == 0
    ours, theirs = (read_run(folder) for folder in (tmp_path / "run", reference))
    assert ours.state == "finished"
    for field in ("step", "tokens", "flops", "last_val_loss", "best_val_loss", "best_step"):
        assert ours.summary[field] == theirs.summary[field], field


def test_two_ranks_train_and_evaluate_as_one_does(train, uninterrupted):
    """The same batches, the same dropout masks; only the order of sums differs."""
    one, two = (curve(uninterrupted(ranks, train) / "log.jsonl") for ranks in (1, 2))
    assert one.keys() == two.keys()
    for step in one:
        assert two[step] == pytest.approx(one[step], rel=1e-4), step
    assert two["eval", 0] == one["eval", 0], "before training, the evaluation is the same to the last bit"
    lines = [json.loads(line) for line in (uninterrupted(2, train) / "log.jsonl").read_text().splitlines()]
    hardware = lines[0]["hardware"]
    timed = [line for line in lines if line["type"] == "iter" and line["mfu"]]
    assert hardware["ranks"] == 2 and timed
    for line in timed:
        assert line["peak_flops_per_second"] == 2 * hardware["peak_flops_per_second_per_device"]
        assert line["tokens_per_second"] == pytest.approx(256 / (line["step_ms"] / 1000)), "of the global batch"


def test_a_finished_run_is_left_alone_and_a_longer_one_continues(train, tmp_path):
    train(*KEYS)
    again = train(*KEYS, "--init_from=auto")
    assert again.returncode == 0 and "has finished its 10 steps already" in again.stdout
    longer = train(*KEYS, "--init_from=resume", "--max_iters=14")
    assert longer.returncode == 0
    jump = re.search(r"note: the learning rate jumps from (\S+) to (\S+): it followed a schedule of 10", longer.stdout)
    rates = {record["step"]: record["learning_rate"] for record in read_run("run").iters}
    assert jump is not None and [float(rate) for rate in jump.groups()] == pytest.approx(
        [rates[10], rates[11]], rel=1e-2
    )
    steps = [step for step in curve(tmp_path / "run/log.jsonl") if isinstance(step, int)]
    assert steps == list(range(1, 15))
    events = [json.loads(line) for line in (tmp_path / "run/log.jsonl").read_text().splitlines()]
    (resume,) = [event for event in events if event["type"] == "event"]
    assert resume["event"] == "resume" and resume["step"] == 10
    assert "max_iters: 10 -> 14" in resume["changed"]


def test_a_log_cut_within_a_line_is_continued_on_a_new_one(train, tmp_path):
    train(*KEYS)
    log = tmp_path / "run/log.jsonl"
    whole = log.read_bytes()
    log.write_bytes(whole[: len(whole) - 40])
    train(*KEYS, "--init_from=auto", "--max_iters=11")
    lines = log.read_text().splitlines()
    broken = [line for line in lines if not line.endswith("}")]
    assert len(broken) == 1 and json.loads(lines[lines.index(broken[0]) + 1])["type"] == "run"


def test_resume_refuses_another_architecture_and_names_the_keys(train, tmp_path):
    train(*KEYS)
    refused = train(*KEYS, "--init_from=auto", "--n_layer=3", "--position_encoding=rope")
    assert refused.returncode == 2
    assert "n_layer: 2 -> 3" in refused.stderr and "position_encoding: 'learned_absolute' -> 'rope'" in refused.stderr
    assert refused.stderr.count("\n") == 1


def test_latent_attention_continues_bit_for_bit(train, tmp_path):
    keys = [*LATENT, *KEYS, "--decay_lr=False"]
    assert train(*keys, "--out_dir=whole").returncode == 0
    assert train(*keys, "--max_iters=4").returncode == 0
    resumed = train(*keys, "--init_from=resume")
    assert resumed.returncode == 0, resumed.stderr
    whole = curve(tmp_path / "whole/log.jsonl")
    assert {step: curve(tmp_path / "run/log.jsonl")[step] for step in range(4, 10)} == {
        n: whole[n] for n in range(4, 10)
    }
    assert same_end(tmp_path / "run", tmp_path / "whole")


def test_delta_rules_continue_bit_for_bit(train, tmp_path):
    keys = ["--layer_pattern=DAK", "--n_layer=3", "--linear_chunk_size=4", *KEYS, "--decay_lr=False"]
    assert train(*keys, "--out_dir=whole").returncode == 0
    assert train(*keys, "--max_iters=4").returncode == 0
    resumed = train(*keys, "--init_from=resume")
    assert resumed.returncode == 0, resumed.stderr
    whole, continued = (curve(tmp_path / f"{name}/log.jsonl") for name in ("whole", "run"))
    assert {step: continued[step] for step in range(4, 10)} == {step: whole[step] for step in range(4, 10)}
    assert same_end(tmp_path / "run", tmp_path / "whole")


def test_what_changes_speed_alone_may_change_on_resume(train, tmp_path):
    """And what changes the FLOPs of a token may not: those of the steps before are counted already."""
    mixed = ["--layer_pattern=AM", "--mamba_head_dim=16", "--mamba_d_state=8", "--max_iters=3"]
    assert train(*mixed).returncode == 0
    changed = ["--mamba_backend=chunked", "--attention_backend=manual", "--max_iters=4"]
    resumed = train(*mixed, "--init_from=resume", *changed)
    assert resumed.returncode == 0, resumed.stderr
    refused = train(*mixed, "--init_from=resume", "--mamba_chunk_size=8", *changed)
    assert refused.returncode == 2 and "mamba_chunk_size: 64 -> 8" in refused.stderr
    assert "backend" not in refused.stderr


def test_scratch_never_overwrites_a_run(train, tmp_path):
    train(*KEYS)
    before = (tmp_path / "run/log.jsonl").read_bytes()
    refused = train(*KEYS)
    assert refused.returncode == 2 and "holds a run already" in refused.stderr
    assert (tmp_path / "run/log.jsonl").read_bytes() == before


def test_resume_without_a_checkpoint_says_so(train):
    refused = train(*KEYS, "--init_from=resume")
    assert refused.returncode == 2 and "no checkpoint to resume from" in refused.stderr


def test_the_config_that_a_run_leaves_continues_that_run(train, data_dir, tmp_path):
    """Of two runs each its own, from another folder and under another name too."""
    config = tmp_path / "mine.py"
    config.write_text("seed = 7\n")
    assert train(*KEYS, "--out_dir=a").returncode == 0
    small = [key for key in small_run(data_dir, *KEYS) if not key.startswith("--out_dir")]
    for arguments in ([str(config), *small], ["--out_dir=b", "--seed=8", *small]):
        assert command(train_command.main, *arguments).returncode == 0
    (tmp_path / "b").rename(tmp_path / "elsewhere")
    for folder, seed in (("a", 1337), ("out/mine", 7), ("elsewhere", 8)):
        assert runpy.run_path(f"{folder}/config.py")["out_dir"] in (folder, "b")
        done = command(train_command.main, f"{folder}/config.py", "--init_from=auto", "--max_iters=12")
        assert done.returncode == 0 and f"resumed at step 10 from {folder}/checkpoints" in done.stdout, done.stderr
        log = read_run(folder)
        assert log.step == 12 and log.run["config"]["seed"] == seed and log.run["config"]["out_dir"] == folder
    assert not (tmp_path / "b").exists() and [path.name for path in Path("out").iterdir()] == ["mine"]
    copied = shutil.copy("a/config.py", "again.py")
    assert "a has finished its 12 steps already" in command(train_command.main, copied).stdout


def test_the_time_in_steps_is_that_of_steps_alone(train, tmp_path):
    """Loading a checkpoint and putting one in place take two seconds each here."""
    slow = tmp_path / "slow.py"
    slow.write_text(
        "import time\nimport training.trainer as trainer, runs.folder as folder\n"
        "load, put = trainer.load_checkpoint, folder.RunFolder.put_in_place\n"
        "def load_checkpoint(*arguments):\n    time.sleep(2)\n    load(*arguments)\n"
        "def put_in_place(*arguments):\n    time.sleep(2)\n    return put(*arguments)\n"
        "trainer.load_checkpoint, folder.RunFolder.put_in_place = load_checkpoint, put_in_place\n"
        "import train\ntrain.main()\n"
    )
    assert train(*KEYS, "--max_iters=4").returncode == 0
    before = read_run("run").train_seconds
    assert train(*KEYS, "--max_iters=8", "--init_from=resume", script=slow).returncode == 0
    log = read_run("run")
    assert log.summary["train_seconds"] - before < 1.5
    assert all(record["train_seconds"] - before < 1.5 for record in log.iters if record["step"] > 4)
