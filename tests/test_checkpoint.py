"""Checkpoints that do not care: which strategy wrote them and which reads them, what happened to their files, who made
them, and that training goes on while they are written."""

import itertools
import json
import pickle
import shutil
import signal
import time
from pathlib import Path

import pytest
from checkpoints import last_checkpoint, same, tensors
from commands import command
from conftest import training
from hypothesis import given
from hypothesis import strategies as st
from journeys import STEPS, Hop, all_hops
from ranks import on_ranks
from setups import (
    ALL_STATES,
    CONTEXT,
    DDP,
    FSDP,
    GPT2,
    HYBRID,
    LLAMA,
    MORE_EXPERTS,
    MUON,
    ODD,
    OFFLOAD,
    OPTIONS,
    SHARED_EXPERTS,
    TENSOR,
    ZERO1,
    ZERO2,
)
from test_parallel import CPU, MIXED
from test_resume import curve

import checkpoint as checkpoint_command
import sample
from parallel.collectives import process_group
from parallel.ranks import ALONE
from runs.checkpoint import _Writer
from runs.config import RunConfig
from runs.folder import RunFolder, checksum, damage, read_state, step_of, write_state

# ---------------------------------------------------------------------------------------------------------------------
# Any strategy, any number of ranks

SIZES = (4, 2, 1, 4)
Journey = tuple[list[str], list[list[str]]]  # the model, and its strategies at those numbers of ranks
JOURNEYS: list[Journey] = [
    ([*GPT2, "--dropout=0.1"], [DDP, FSDP, DDP, DDP]),
    (LLAMA, [ZERO1, TENSOR, FSDP, [*TENSOR, *FSDP]]),
    (ODD, [FSDP, ZERO1, DDP, ZERO1]),
    (GPT2, [OFFLOAD, ZERO2, ZERO1]),
    ([*ODD, "--weight_tying=False"], [HYBRID, DDP, DDP]),
    (MIXED, [FSDP, ZERO1, DDP, ZERO1]),
    (OPTIONS, [[*TENSOR, *FSDP], ZERO1, DDP]),
    (MORE_EXPERTS, [[*SHARED_EXPERTS, *FSDP], SHARED_EXPERTS, DDP, ["--expert_parallel=4"]]),
    ([*MORE_EXPERTS, MUON], [SHARED_EXPERTS, TENSOR, DDP, [*SHARED_EXPERTS, *FSDP]]),
    (ALL_STATES, [[*TENSOR, *FSDP], TENSOR, DDP, TENSOR]),
    (ALL_STATES, [[*CONTEXT, *FSDP], CONTEXT, DDP, [*CONTEXT, *TENSOR]]),
]


def alone(hops: list[tuple[list[str], Path | None, Path]], data: Path) -> list[list[Hop]]:
    with process_group(ALONE, CPU, RunConfig(use_fsdp=True)):
        return [all_hops(ALONE, hops, data)]


@pytest.fixture(scope="module")
def journeys(data_dir, tmp_path_factory):
    """For each journey its hops, on every rank. All journeys travel together, so that processes start four times."""
    folder = tmp_path_factory.mktemp("journeys")
    journeys: list[list[list[Hop]]] = [[] for _ in JOURNEYS]
    for leg, size in enumerate(SIZES):
        travelling = [number for number, (_, strategies) in enumerate(JOURNEYS) if leg < len(strategies)]
        hops = []
        for number in travelling:
            model, strategies = JOURNEYS[number]
            source = folder / f"{number}.{leg - 1}/checkpoints/step_{STEPS:08d}" if leg else None
            hops.append(([*strategies[leg], *model], source, folder / f"{number}.{leg}"))
        data = data_dir / "tiny"
        ranks = on_ranks(size, all_hops, hops, data) if size > 1 else alone(hops, data)
        for number, of_ranks in zip(travelling, zip(*ranks, strict=True), strict=True):
            journeys[number].append(of_ranks)
    return journeys, folder


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(JOURNEYS)), ids=lambda number: str(JOURNEYS[number]))
def test_from_any_strategy_and_number_of_ranks_to_any_other(number, journeys):
    """No tensor changes a bit on the way, and all go on with the same data and the same losses, up to rounding."""
    hops, folder = journeys[0][number], journeys[1]
    start = hops[0][0]
    assert any(name.endswith("exp_avg_sq") and value.any() for name, value in start.held.items())
    for leg, of_ranks in enumerate(hops):
        assert same(tensors(last_checkpoint(folder / f"{number}.{leg}")), start.held), "what the files say"
        for one in of_ranks:
            assert same(one.held, start.held)
            assert one.samples == start.samples > 0
            assert one.losses == pytest.approx(start.losses, rel=1e-5)
            assert one.norms == pytest.approx(start.norms, rel=1e-4)


@pytest.mark.parametrize("number", range(len(JOURNEYS)), ids=lambda number: str(JOURNEYS[number]))
def test_the_same_strategy_on_as_many_ranks_resumes_bit_for_bit(number, journeys):
    for leg, of_ranks in enumerate(journeys[0][number]):
        for one in of_ranks:
            assert one.resumed_exactly, (SIZES[leg], JOURNEYS[number][1][leg])


def test_an_export_does_not_tell_how_many_ranks_had_parts(journeys, tmp_path):
    """Byte for byte, but for the configuration, which names the strategy."""
    folder, exports = journeys[1], []
    for leg in range(len(SIZES)):
        run = folder / f"0.{leg}"
        (checkpoint,) = RunFolder(run).checkpoints()
        state = read_state(checkpoint)
        write_state(checkpoint, state | {"config": read_state(last_checkpoint(folder / "0.0"))["config"]})
        file = tmp_path / f"{leg}.safetensors"
        assert command(checkpoint_command.main, "export", run, file).returncode == 0
        write_state(checkpoint, state)
        exports.append(file.read_bytes())
    assert len(list(last_checkpoint(folder / "0.1").glob("*.safetensors"))) == 2
    assert exports.count(exports[0]) == len(SIZES)


# ---------------------------------------------------------------------------------------------------------------------
# Damage

KEYS = ["--dropout=0.1", "--keep_last=5", "--lr_decay_iters=12"]


@pytest.fixture(scope="module")
def runs(data_dir, tmp_path_factory):
    """`whole`, an uninterrupted run of 12 steps, and `begun`, its first 8, with checkpoints of steps 4 and 8."""
    folder = tmp_path_factory.mktemp("runs")
    for name, steps in (("whole", 12), ("begun", 8)):
        done = training(data_dir, folder / name, *KEYS, f"--max_iters={steps}")
        assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def begun(runs, tmp_path):
    return shutil.copytree(runs / "begun", tmp_path / "begun")


def events(run: Path, name: str) -> list[dict]:
    records = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [record for record in records if record["type"] == "event" and record["event"] == name]


def ends_as_uninterrupted(run: Path, uninterrupted: Path) -> bool:
    ends = [tensors(last_checkpoint(folder)) for folder in (run, uninterrupted)]
    return curve(run / "log.jsonl") == curve(uninterrupted / "log.jsonl") and same(*ends)


def only_tensors(checkpoint: Path) -> Path:
    (file,) = checkpoint.glob("*.safetensors")
    return file


def flip(file: Path, position: int, mask: int = 1) -> None:
    content = bytearray(file.read_bytes())
    content[position] ^= mask
    file.write_bytes(content)


DAMAGES = {
    "tensors cut short": lambda checkpoint: cut(only_tensors(checkpoint)),
    "a bit of the header": lambda checkpoint: flip(only_tensors(checkpoint), 50),
    "a bit of the tensors": lambda checkpoint: flip(only_tensors(checkpoint), -1),
    "no tensors": lambda checkpoint: only_tensors(checkpoint).unlink(),
    "a bit of the state": lambda checkpoint: flip(checkpoint / "state.json", 40),
    "state cut short": lambda checkpoint: cut(checkpoint / "state.json"),
    "no state": lambda checkpoint: (checkpoint / "state.json").unlink(),
    "an empty state": lambda checkpoint: (checkpoint / "state.json").write_text(""),
    "a file too many": lambda checkpoint: shutil.copy(only_tensors(checkpoint), checkpoint / "other.safetensors"),
    "nothing at all": lambda checkpoint: [file.unlink() for file in checkpoint.iterdir()],
}


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


@pytest.mark.parametrize("what", DAMAGES)
def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_is_used(what, begun, runs, data_dir):
    last = begun / "checkpoints/step_00000008"
    DAMAGES[what](last)
    as_it_was = {file.name: file.read_bytes() for file in last.iterdir()}
    done = training(data_dir, begun, *KEYS, "--init_from=auto")
    assert done.returncode == 0, done.stderr
    (event,) = events(begun, "damaged_checkpoint")
    assert event["checkpoint"] == "step_00000008" and event["step"] == 4 and str(last) in event["reason"]
    assert f"warning: {event['reason']}; it is kept as damaged_step_00000008" in done.stdout
    kept = begun / "checkpoints/damaged_step_00000008"
    assert {file.name: file.read_bytes() for file in kept.iterdir()} == as_it_was
    assert ends_as_uninterrupted(begun, runs / "whole")
    assert damage(last, ALONE) is None, "the step was taken and saved anew"


@given(st.data())
def test_no_flipped_bit_stays_unseen(runs, tmp_path_factory, data):
    """Every one in the tensors' file; in state.json all that change what it says (not, say, the kind of a space)."""
    checkpoint = runs / "begun/checkpoints/step_00000008"
    copy = shutil.copytree(checkpoint, tmp_path_factory.mktemp("flipped") / checkpoint.name)
    file = copy / data.draw(st.sampled_from(sorted(file.name for file in checkpoint.iterdir())))
    flip(file, data.draw(st.integers(0, file.stat().st_size - 1)), 1 << data.draw(st.integers(0, 7)))
    if damage(copy, ALONE) is None:
        assert file.name == "state.json" and read_state(copy) == read_state(checkpoint)
    shutil.rmtree(copy)


def test_a_copy_that_someone_put_beside_a_checkpoint_is_none(begun, runs, data_dir):
    checkpoint = begun / "checkpoints/step_00000008"
    shutil.copytree(checkpoint, checkpoint.with_name("step_00000008.kept"))
    assert training(data_dir, begun, *KEYS, "--keep_last=1", "--init_from=auto").returncode == 0
    assert ends_as_uninterrupted(begun, runs / "whole")
    assert (begun / "checkpoints/step_00000008.kept").exists()


def test_fsdp_on_two_ranks_then_one_process_then_fsdp_again(train, tmp_path, runs):
    """The real commands. One of the two ranks' parts of step 8 is damaged on the way back."""
    two = train(*KEYS, "--use_fsdp=True", "--max_iters=8", ranks=2)
    assert two.returncode == 0, two.stderr
    again = shutil.copytree(tmp_path / "run", tmp_path / "again")
    one = train(*KEYS, "--init_from=resume")
    assert one.returncode == 0 and "use_fsdp: True -> False" in one.stdout, one.stderr
    agrees(tmp_path / "run", runs / "whole")

    (second,) = again.glob("checkpoints/step_00000008/shard-00002*")
    flip(second, -1)
    back = train(*KEYS, "--use_fsdp=True", "--init_from=resume", "--out_dir=again", ranks=2)
    assert back.returncode == 0, back.stderr
    (event,) = events(again, "damaged_checkpoint")
    assert event["checkpoint"] == "step_00000008" and event["step"] == 4
    agrees(again, runs / "whole")


def agrees(run: Path, uninterrupted: Path) -> None:
    """Up to rounding: the same batches in the same order, none twice and none left out."""
    values, expected = curve(run / "log.jsonl"), curve(uninterrupted / "log.jsonl")
    assert values.keys() == expected.keys()
    for step in expected:
        assert values[step] == pytest.approx(expected[step], rel=1e-4), step
    progress = [read_state(last_checkpoint(folder))["progress"] for folder in (run, uninterrupted)]
    assert progress[0]["samples"] == progress[1]["samples"] and progress[0]["step"] == progress[1]["step"] == 12


# ---------------------------------------------------------------------------------------------------------------------
# Strangers' checkpoints


class Opens:
    """What, unpickled, makes a file."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return open, (str(self.marker), "w")


@pytest.fixture
def stranger(begun):
    """A run whose last checkpoint is a stranger's, and a pickle that tells when it is loaded."""
    marker = begun.parent / "executed"
    planted = pickle.dumps(Opens(marker))
    pickle.loads(planted).close()
    assert marker.exists(), "the trap works"
    marker.unlink()
    yield begun, planted
    assert not marker.exists(), "a stranger's code was executed"


def fit_checksums(checkpoint: Path, **changes: object) -> None:
    """Makes the checksums fit, as one would who wants to deceive."""
    state = read_state(checkpoint)
    files = {file.name: checksum(file) for file in checkpoint.glob("*.safetensors")}
    write_state(checkpoint, state | {"files": files} | changes)


def use(run: Path, data_dir: Path) -> dict[str, tuple[int, str]]:
    """Exit code and errors of every command that reads checkpoints; training comes last, since it may repair."""
    done = {
        "sample": command(sample.main, run, "--checkpoint=last", "--max_new_tokens=3", "--device=cpu"),
        "export": command(checkpoint_command.main, "export", run, run.parent / "file.safetensors"),
        "train": training(data_dir, run, *KEYS, "--init_from=resume"),
    }
    for one in done.values():
        assert one.returncode in (0, 2) and one.stderr.count("\n") == (one.returncode == 2 or "(last)" in one.stderr)
    return {name: (one.returncode, one.stderr) for name, one in done.items()}


def test_pickles_and_code_beside_the_tensors_are_never_looked_at(stranger, runs, data_dir):
    run, planted = stranger
    checkpoint = run / "checkpoints/step_00000008"
    for name in (".metadata", "__0_0.distcp", "pytorch_model.bin", "optimizer.pt", "model.ckpt", "scaler.pkl"):
        (checkpoint / name).write_bytes(planted)
    code = f"open({str(run.parent / 'executed')!r}, 'w')\n"
    for name in ("config.py", "conftest.py", "sitecustomize.py", "checkpoints/step_00000008/__init__.py"):
        (run / name).write_text(code)
    assert {name: code for name, (code, _) in use(run, data_dir).items()} == {"sample": 0, "export": 0, "train": 0}
    assert ends_as_uninterrupted(run, runs / "whole")


def test_a_pickle_in_place_of_the_tensors_is_an_error(stranger, data_dir):
    run, planted = stranger
    checkpoint = run / "checkpoints/step_00000008"
    only_tensors(checkpoint).write_bytes(planted)
    fit_checksums(checkpoint)
    for code, error in use(run, data_dir).values():
        assert code == 2 and "step_00000008 is damaged" in error


def test_a_pickle_among_the_tensors_is_an_error(stranger, data_dir):
    run, planted = stranger
    checkpoint = run / "checkpoints/step_00000008"
    (checkpoint / "more.safetensors").write_bytes(planted)
    unlisted = use(shutil.copytree(run, run.with_name("unlisted")), data_dir)
    assert unlisted["train"][0] == 0, "the checkpoint before is used"
    fit_checksums(checkpoint)
    for code, error in [*use(run, data_dir).values(), unlisted["sample"], unlisted["export"]]:
        assert code == 2 and "step_00000008" in error


@pytest.mark.parametrize("name", ["../../../elsewhere.safetensors", "/etc/passwd", "sub/x.safetensors", "../x"])
def test_a_state_that_names_files_elsewhere_is_damaged(stranger, data_dir, name):
    run, planted = stranger
    (run.parent / "elsewhere.safetensors").write_bytes(planted)
    checkpoint = run / "checkpoints/step_00000008"
    write_state(checkpoint, read_state(checkpoint) | {"files": {name: checksum(run.parent / "elsewhere.safetensors")}})
    done = use(run, data_dir)
    assert done["train"][0] == 0, "the checkpoint before is used"
    assert f"names {name!r}, a file elsewhere" in done["sample"][1] and "elsewhere" in done["export"][1]


@pytest.mark.parametrize(
    "change",
    [
        {"progress": {"step": "8"}},
        {"progress": {"step": -8}},
        {"progress": {"steps": 8}},
        {"progress": {"best_step": [8]}},
        {"progress": {"dtype": "load"}},
        {"progress": [8]},
        {"config": "config.py"},
        {"config": {"n_layer": "__import__('os')"}},
        {"config": {"vocab_size": None}},
        {"config": {"normalization": "os.system"}},
        {"config": {"dataset": 7}},
        {"config": {"from": "elsewhere"}},
        {"config": {"n_embd": 64}},
        {"data": ["x"]},
        {"scaler": "x"},
        {"scaler": {"scale": "x"}},
        {"files": {}},
        {"files": ["model.safetensors"]},
    ],
    ids=str,
)
def test_a_state_that_cannot_be_is_an_error_or_ignored(stranger, data_dir, change):
    run, _ = stranger
    checkpoint = run / "checkpoints/step_00000008"
    ((part, values),) = change.items()
    state = read_state(checkpoint)
    merges = isinstance(values, dict) and values and part != "files"
    write_state(checkpoint, state | {part: state[part] | values if merges else values})
    assert use(run, data_dir)["sample"][0] == 2


def test_nesting_without_end_is_an_error(stranger, data_dir):
    run, _ = stranger
    (run / "checkpoints/step_00000008/state.json").write_text('{"config":' * 100_000)
    assert use(run, data_dir)["train"][0] == 0, "the checkpoint before is used"


# ---------------------------------------------------------------------------------------------------------------------
# While training goes on


@pytest.fixture
def slow_disk(monkeypatch):
    """Writing takes a third of a second. Returns when it began and ended, and what else was being written then."""
    write, times = _Writer.write_data, []

    def slow(self, plan, planner):
        began, others = time.perf_counter(), [path for path in self.folder.parent.glob(".*") if path != self.folder]
        time.sleep(0.3)
        result = write(self, plan, planner)
        times.append((began, time.perf_counter(), others))
        return result

    monkeypatch.setattr(_Writer, "write_data", slow)
    return times


def test_training_goes_on_while_a_checkpoint_is_written(data_dir, tmp_path, runs, slow_disk):
    """What is written is the copy: later steps do not get into it."""
    assert training(data_dir, tmp_path / "run", *KEYS).returncode == 0
    assert ends_as_uninterrupted(tmp_path / "run", runs / "whole")
    for step in (4, 8):
        name = f"checkpoints/step_{step:08d}"
        assert same(tensors(tmp_path / "run" / name), tensors(runs / "whole" / name))
    records = [json.loads(line) for line in (tmp_path / "run/log.jsonl").read_text().splitlines()]
    saved = [record for record in records if record["type"] == "checkpoint"]
    assert [record["step"] for record in saved] == [4, 8, 12]
    for record in saved:
        assert 0 < record["stall_seconds"] < 0.3 <= record["seconds"]
    order = [(record["type"], record["step"]) for record in records if record["type"] in ("iter", "checkpoint")]
    for step in (4, 8):
        assert order.index(("iter", step + 1)) < order.index(("checkpoint", step))


def test_a_second_save_waits_for_the_first(data_dir, tmp_path, runs, slow_disk):
    done = training(data_dir, tmp_path / "run", *KEYS, "--max_iters=4", "--checkpoint_interval=1")
    assert done.returncode == 0 and len(slow_disk) == 4
    for (_, ended, _), (began, _, others) in itertools.pairwise(slow_disk):
        assert began >= ended and others == []
    assert [step_of(path) for path in RunFolder(tmp_path / "run").checkpoints()] == [1, 2, 3, 4]
    name = "checkpoints/step_00000004"
    assert same(tensors(tmp_path / "run" / name), tensors(runs / "whole" / name))


# Its second checkpoint is never written to the end; it takes two more steps meanwhile and is killed.
KILLED_WHILE_WRITING = """
import os, signal, threading
from runs import checkpoint
from training import trainer
write, step, second = checkpoint._Writer.write_data, trainer.take_step, threading.Event()

def hanging(self, plan, planner):
    if self.folder.name.endswith("8"):
        done = write(self, plan, planner)
        second.set()
        threading.Event().wait()
    return write(self, plan, planner)

def killing(training, *arguments):
    result = step(training, *arguments)
    if training.progress.step == 9:
        second.wait(30)
        os.kill(os.getpid(), signal.SIGKILL)
    return result

checkpoint._Writer.write_data, trainer.take_step = hanging, killing
import train
train.main()
"""


def test_a_kill_while_a_checkpoint_is_written_leaves_the_last_one_whole(train, data_dir, tmp_path, runs):
    script = tmp_path / "killed.py"
    script.write_text(KILLED_WHILE_WRITING)
    assert train(*KEYS, script=script).returncode == -signal.SIGKILL
    run = tmp_path / "run"
    assert 9 in curve(run / "log.jsonl") and (run / "checkpoints/.writing_00000008").exists()
    assert [path.name for path in RunFolder(run).checkpoints()] == ["step_00000004"]
    assert damage(last_checkpoint(run), ALONE) is None
    assert training(data_dir, run, *KEYS, "--init_from=auto").returncode == 0
    assert ends_as_uninterrupted(run, runs / "whole")


def test_a_checkpoint_without_its_optimizer_is_not_resumed_silently(begun, data_dir):
    """The state says that steps were taken: the optimizer must have remembered them."""
    from safetensors.torch import load_file, save_file

    checkpoint = begun / "checkpoints/step_00000008"
    file = only_tensors(checkpoint)
    save_file({name: x for name, x in load_file(file).items() if not name.startswith("optimizer.")}, file)
    fit_checksums(checkpoint)
    done = training(data_dir, begun, *KEYS, "--init_from=resume")
    assert done.returncode == 2 and "has no tensor optimizer." in done.stderr
