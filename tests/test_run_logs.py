"""What a run writes is what runs/logs.py reads and docs/log_format.md describes, also after kills, cuts and resumes."""

import json
import math
import re
import shutil
import subprocess
import sys
from pathlib import Path

import processes
import pytest
from conftest import ROOT, SMALL, environment
from hypothesis import given
from hypothesis import strategies as st

from common.errors import UserError
from comparison.page import page
from comparison.runs import describe, describe_all
from runs.folder import RunFolder
from runs.logs import RunLog, find_runs, read_run

FULL_DISK = """
import errno
import runs.checkpoint

def write_data(*arguments):
    raise OSError(errno.ENOSPC, "No space left on device")

runs.checkpoint._Writer.write_data = write_data
import train
train.main()
"""


def run_train(data_dir: Path, out_dir: Path, *keys: str, script: Path = ROOT / "train.py") -> int:
    """Train the small model of conftest in `out_dir`; returns the exit code."""
    given = {key.partition("=")[0]: key for key in [*SMALL, f"--data_dir={data_dir}", f"--out_dir={out_dir}", *keys]}
    return processes.run(script, list(given.values()), ROOT, environment()).returncode


@pytest.fixture(scope="module")
def eventful(data_dir, tmp_path_factory):
    """Two processes of one run. The first one took 8 steps, but its checkpoint of step 8 was damaged; the second one
    went on from step 4 to step 10, on a full disk. Returns the run's folder and the log as the first one left it."""
    folder = tmp_path_factory.mktemp("eventful")
    run, full_disk = folder / "run", folder / "full_disk.py"
    keys = ["--gradient_stats_interval=4", "--keep_last=2"]
    keys += ["--eval_benchmarks=text,choice", "--eval_benchmarks_limit=20"]
    keys += ["--scaling_law=besiroglu", "--predicted_flops=1e9", "--predicted_seconds=1"]
    assert run_train(data_dir, run, *keys, "--max_iters=8") == 0
    first = (run / "log.jsonl").read_bytes()
    (run / "checkpoints/step_00000008/state.json").write_text("{}")
    full_disk.write_text(FULL_DISK)
    assert run_train(data_dir, run, *keys, "--max_iters=10", "--init_from=auto", script=full_disk) == 1
    return run, first


@pytest.fixture
def first_log(eventful, tmp_path):
    """The log of a run of one process, alone in a folder."""
    (tmp_path / "log.jsonl").write_bytes(eventful[1])
    return tmp_path / "log.jsonl"


def records_of(content: bytes) -> list[dict]:
    return [json.loads(line) for line in content.splitlines()]


def record(kind: str, step: int | None = None, time: float = 0, **fields) -> dict:
    return {"type": kind, "time": time, **({} if step is None else {"step": step}), **fields}


def write_log(path: Path, *records: dict | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"".join(r if isinstance(r, bytes) else json.dumps(r).encode() + b"\n" for r in records))
    return path


def as_written(records: list[dict]) -> list[dict]:
    """Without what the reader adds."""
    return [{name: value for name, value in r.items() if name != "wall_seconds"} for r in records]


# ---------------------------------------------------------------------------------------------------------------------
# A real run


def test_a_resumed_run_reads_as_one_run(eventful):
    folder, first = eventful
    log = read_run(folder)
    everything = records_of((folder / "log.jsonl").read_bytes())
    written_first = len(records_of(first))

    assert [r["step"] for r in everything if r["type"] == "iter"] == [*range(1, 9), *range(5, 11)]
    assert [r["step"] for r in log.iters] == list(range(1, 11))
    assert [everything.index(r) < written_first for r in as_written(log.iters)] == [True] * 4 + [False] * 6
    assert [r["step"] for r in log.evals] == [0, 4, 8, 10]
    assert [r["step"] for r in log.checkpoints] == [4]
    assert (log.events[0]["event"], log.events[0]["step"]) == ("resume", 4)
    assert [r["event"] for r in log.events[1:3]] == ["damaged_checkpoint", "checkpoint_failed"]
    assert {r["event"] for r in log.events[3:]} <= {"checkpoint_failed"}
    assert log.run["steps"] == 10 and as_written([log.summary]) == everything[-1:] and log.state == "finished"
    assert log.name == "run" and log.step == 10 and log.tokens == 10 * 2 * 4 * 32 and log.cut_lines == 0
    assert log.best_val_loss == log.summary["best_val_loss"] == min(r["val_loss"] for r in log.evals)
    assert log.best_val_bits_per_byte == log.summary["best_val_bits_per_byte"]
    assert log.final_val_loss == log.summary["last_val_loss"]
    assert log.train_losses("tokens") == [(r["tokens"], r["loss"]) for r in log.iters]
    assert log.val_losses() == [(r["step"], r["val_loss"]) for r in log.evals]
    processes = [everything[:written_first], everything[written_first:]]
    spent = sum(process[-1]["time"] - process[0]["time"] for process in processes)
    assert log.summary["wall_seconds"] == pytest.approx(spent, abs=0.05)  # a record of a checkpoint may come late
    for (wall, _), r in zip(log.val_losses("wall"), log.evals, strict=True):
        assert wall == r["wall_seconds"] >= r["train_seconds"] + r["seconds"] - 0.005  # `time` is in whole milliseconds


def test_bits_per_byte_follows_from_loss_and_bytes(eventful):
    log = read_run(eventful[0])
    val = log.run["dataset"]["splits"]["val"]
    expected = log.best_val_loss / math.log(2) * val["tokens"] / val["bytes"]
    assert log.best_val_bits_per_byte == pytest.approx(expected, rel=1e-12)


def test_without_a_summary_the_speed_comes_from_the_steps(first_log):
    """Every step is logged here, so that the mean over the steps must be what the summary says."""
    of_summary = read_run(first_log).throughput
    first_log.write_bytes(b"".join(first_log.read_bytes().splitlines(keepends=True)[:-1]))
    log = read_run(first_log)
    assert log.summary is None and log.throughput.tokens_per_second != log.iters[-1]["tokens_per_second"]
    assert log.throughput.tokens_per_second == pytest.approx(of_summary.tokens_per_second, rel=1e-9)
    assert log.throughput.mfu == pytest.approx(of_summary.mfu, rel=1e-9)


# ---------------------------------------------------------------------------------------------------------------------
# docs/log_format.md

DOCUMENT = (ROOT / "docs/log_format.md").read_text()


def documented_fields() -> dict[str, set[tuple[str, ...]]]:
    """{title of a section under `## Fields`: the fields in its table, split at their dots}"""
    sections = re.split(r"^### ", DOCUMENT.partition("## Fields")[2], flags=re.MULTILINE)[1:]
    return {
        section.splitlines()[0].replace("`", ""): {
            tuple(field.split(".")) for field in re.findall(r"^\| `([^`]+)` \|", section, flags=re.MULTILINE)
        }
        for section in sections
    }


def leaves(value: object, path: tuple[str, ...] = ()) -> dict[tuple[str, ...], object]:
    """{path: value} of everything in nested objects."""
    if not isinstance(value, dict):
        return {path: value}
    return {leaf: inner for name in value for leaf, inner in leaves(value[name], (*path, name)).items()}


def is_instance_of(path: tuple[str, ...], field: tuple[str, ...]) -> bool:
    """Whether a path is what a field describes; `<...>` in a field stands for any key."""
    return len(path) == len(field) and all(f in (p, f"<{f[1:-1]}>") for p, f in zip(path, field, strict=True))


def test_the_document_names_every_field_that_a_run_writes_and_no_other(eventful):
    documented = documented_fields()
    of_every_record = documented.pop("Every record")
    written: dict[str, set[tuple[str, ...]]] = {}
    for r in records_of((eventful[0] / "log.jsonl").read_bytes()):
        title = f"event of the name {r['event']}" if r["type"] == "event" else r["type"]
        fields = documented[title] | of_every_record
        for path, value in leaves(r).items():
            if any(is_instance_of(path, field) for field in fields):
                written.setdefault(title, set()).add(path)
            else:  # a group such as `mfu` is null as a whole where it is not known
                assert value is None and any(field[: len(path)] == path for field in fields), f"{title}: {path}"

    assert written.keys() == documented.keys()
    outside_of_git = read_run(eventful[0]).run["git"] is None
    for title, fields in documented.items():
        for field in fields | of_every_record:
            seen = any(is_instance_of(path, field) for path in written[title])
            of_experts = field[0] in ("auxiliary", "loads")  # test_extending, test_experts
            of_others = field[0] in ("sources", "targets")  # test_mixture, test_packing
            of_pairs = field[0] == "measured"  # test_preference_runs
            of_marks = field[-1].startswith("counted_")  # test_finetune
            elsewhere = of_experts or of_marks or of_others or of_pairs or (field[0] == "git" and outside_of_git)
            assert seen or elsewhere, f"{title}: {field} is never written"


def test_the_example_of_the_document_runs(eventful, tmp_path, monkeypatch, capsys):
    shutil.copytree(eventful[0], tmp_path / "out/quickstart")
    monkeypatch.chdir(tmp_path)
    code = re.search(r"```python\n(.*?)```", DOCUMENT, flags=re.DOTALL).group(1)
    names: dict = {}
    exec(code, names)
    assert capsys.readouterr().out.startswith("finished 10 ")
    assert [log.name for log in names["newest"]] == ["quickstart"]


# ---------------------------------------------------------------------------------------------------------------------
# Cuts and resumes


@given(st.data())
def test_a_cut_loses_no_whole_record(eventful, tmp_path_factory, data):
    """Cut at any byte; and then a later process may have gone on in the same file."""
    originals = eventful[1].split(b"\n")
    content = eventful[1][: data.draw(st.integers(1, len(eventful[1])), label="cut at byte")]
    whole = [json.loads(line) for line in content.split(b"\n") if line and line in originals]
    last_is_cut = content.split(b"\n")[-1] not in originals
    if data.draw(st.booleans(), label="a later process"):
        reached = max((r["step"] for r in whole if "step" in r), default=0)
        later = [record("run"), record("event", reached, event="resume"), record("iter", reached + 1, loss=1.0)]
        content += b"\n" + b"".join(json.dumps(r).encode() + b"\n" for r in later)
        whole += later
    path = tmp_path_factory.mktemp("cut") / "log.jsonl"
    path.write_bytes(content)
    if not whole:
        with pytest.raises(UserError, match="none of its lines is a whole record"):
            read_run(path)
        return
    log = read_run(path)
    assert log.run == [r for r in whole if r["type"] == "run"][-1]
    assert as_written([log.summary] if log.summary else []) == [r for r in whole[-1:] if r["type"] == "summary"]
    for kind, found in (("iter", log.iters), ("eval", log.evals), ("checkpoint", log.checkpoints)):
        assert as_written(found) == [r for r in whole if r["type"] == kind]
    assert log.cut_lines == last_is_cut


PROCESS = st.tuples(st.floats(0, 1), st.integers(0, 6), st.booleans())


@given(st.lists(PROCESS, min_size=1, max_size=6), st.data())
def test_what_a_later_process_took_back_is_gone(tmp_path_factory, processes, data):
    """Processes go on from any step that an earlier one reached, or start over; each loss is written only once."""
    lines, truth, evaluated, reached = [], {}, {}, 0
    for number, (share, length, starts_over) in enumerate(processes):
        start = 0 if starts_over or number == 0 else round(share * reached)
        lines.append(record("run", number=number))
        if starts_over or number == 0:
            truth, evaluated = {}, {0: number}
            lines.append(record("eval", 0, val_loss=number))
        else:
            lines.append(record("event", start, event="resume"))
            truth = {step: loss for step, loss in truth.items() if step <= start}
            evaluated = {step: loss for step, loss in evaluated.items() if step <= start}
        for step in range(start + 1, start + length + 1):
            truth[step] = evaluated[step] = number + step / 1000
            lines.append(record("iter", step, loss=truth[step]))
            lines.append(record("eval", step, val_loss=truth[step]))
        reached = start + length
        if has_summary := data.draw(st.booleans()):
            lines.append(record("summary", reached, reason="SIGTERM"))
    log = read_run(write_log(tmp_path_factory.mktemp("resumes") / "log.jsonl", *lines))
    assert dict(log.train_losses()) == truth and dict(log.val_losses()) == evaluated
    assert [r["step"] for r in log.iters] == sorted(truth) and len(log.evals) == len(evaluated)
    assert log.run["number"] == len(processes) - 1
    assert as_written([log.summary] if log.summary else []) == lines[len(lines) - has_summary :]


def test_a_process_that_died_before_any_step_takes_nothing_back(tmp_path):
    steps = [record("iter", step, loss=1.0) for step in (1, 2, 3)]
    log = read_run(write_log(tmp_path / "log.jsonl", record("run"), *steps, record("run", died=True)))
    assert as_written(log.iters) == steps and log.run["died"]
    resumed = [record("run"), record("event", 2, event="resume"), record("iter", 3, loss=2.0)]
    log = read_run(write_log(tmp_path / "log.jsonl", record("run"), *steps, record("run"), *resumed))
    assert [loss for _, loss in log.train_losses()] == [1.0, 1.0, 2.0]


def test_a_resume_whose_event_was_cut_is_told_by_its_first_step(tmp_path):
    steps = [record("iter", step, loss=1.0) for step in (1, 2, 3)]
    path = write_log(
        tmp_path / "log.jsonl", record("run"), *steps, record("run"), b'{"type": "ev\n', record("iter", 3, loss=2.0)
    )
    log = read_run(path)
    assert log.train_losses() == [(1, 1.0), (2, 1.0), (3, 2.0)] and log.cut_lines == 1


def test_a_resume_whose_run_record_was_cut_is_told_by_its_event(tmp_path):
    before = [record("run"), record("iter", 1, loss=1.0), record("summary", 1, reason="SIGTERM")]
    after = [record("event", 1, event="resume"), record("iter", 2, loss=2.0)]
    log = read_run(write_log(tmp_path / "log.jsonl", *before, b'{"type": "run", "ti\n', *after))
    assert log.train_losses() == [(1, 1.0), (2, 2.0)] and log.summary is None and log.cut_lines == 1


FIRST_PROCESS = [
    record("run", time=100),
    record("eval", 0, time=107, val_loss=5.0),
    record("iter", 1, time=110, loss=4.0),
    record("eval", 2, time=130, val_loss=3.0),
    record("checkpoint", 2, time=131),
    record("iter", 3, time=150, loss=2.5),
]


def test_wall_clock_time_leaves_pauses_out_and_counts_what_was_taken_back(tmp_path):
    """The first process spent 50 s; of those, 19 s went into a step that the second one took back."""
    resumed = [record("event", 2, time=1004, event="resume"), record("iter", 3, time=1011, loss=2.0)]
    resumed += [record("eval", 3, time=1021, val_loss=1.0), record("summary", 3, time=1030, reason="finished")]
    log = read_run(write_log(tmp_path / "log.jsonl", *FIRST_PROCESS, record("run", time=1000), *resumed))
    assert log.train_losses("wall") == [(10, 4.0), (50 + 11, 2.0)]
    assert log.val_losses("wall") == [(7, 5.0), (30, 3.0), (50 + 21, 1.0)]
    assert log.summary["wall_seconds"] == 50 + 30
    cut = read_run(write_log(tmp_path / "log.jsonl", *FIRST_PROCESS, b'{"type": "run", "ti\n', *resumed))
    assert cut.val_losses("wall")[-1] == (50 + 17, 1.0)  # from the event, where the line of the process is lost


def test_wall_clock_time_of_a_run_that_started_over_and_of_a_clock_that_was_put_back(tmp_path):
    again = [record("run", time=7000), record("iter", 1, time=7010, loss=4.0), record("iter", 2, time=3400, loss=3.0)]
    again += [record("iter", 3, time=3405, loss=2.0)]
    log = read_run(write_log(tmp_path / "log.jsonl", *FIRST_PROCESS, *again))
    assert log.train_losses("wall") == [(60, 4.0), (60, 3.0), (65, 2.0)]


GAPS = st.lists(st.integers(0, 10**6), min_size=1, max_size=8)  # milliseconds


@given(st.lists(st.tuples(st.integers(0, 10**9), GAPS), min_size=1, max_size=6), st.data())
def test_wall_clock_time_is_the_time_of_all_processes_up_to_there(tmp_path_factory, processes, data):
    lines, truth, time, spent, step = [], {}, 0, 0, 0
    for pause, gaps in processes:
        time += pause
        lines.append(record("run", time=time / 1000))
        if lines[1:]:
            step = data.draw(st.integers(0, step), label="resumes at step")
            lines.append(record("event", step, time=time / 1000, event="resume"))
            truth = {at: wall for at, wall in truth.items() if at <= step}
        for gap in gaps:
            time, spent, step = time + gap, spent + gap, step + 1
            truth[step] = spent / 1000
            lines.append(record("iter", step, time=time / 1000, loss=step))
    log = read_run(write_log(tmp_path_factory.mktemp("wall") / "log.jsonl", *lines))
    assert {loss: wall for wall, loss in log.train_losses("wall")} == pytest.approx(truth, abs=1e-6)


@pytest.mark.parametrize(
    ("reason", "state"),
    [
        ("finished", "finished"),
        ("SIGTERM", "interrupted"),
        ("stopped: 10 steps in a row had no finite gradient", "stopped"),
        (None, "cut"),
    ],
)
def test_the_state_of_a_run_that_ended(tmp_path, reason, state):
    summary = [record("summary", 1, reason=reason)] if reason else []
    assert read_run(write_log(tmp_path / "log.jsonl", record("run"), *summary)).state == state


def test_a_run_that_holds_its_folder_is_running(tmp_path):
    write_log(tmp_path / "log.jsonl", record("run"))
    with RunFolder(tmp_path).hold():
        assert read_run(tmp_path).state == "running"
    assert read_run(tmp_path).state == "cut"


FOREIGN = [None, "text", 3, -1, 0, 1e308, float("inf"), float("nan"), 10**400, True, [], [1], {}, {"full": "x"}]


@given(st.data())
def test_a_line_that_is_none_of_ours_counts_as_cut_and_every_reader_goes_on(eventful, tmp_path_factory, data):
    """One field of one record, at any depth, is something else or gone."""
    records = records_of(eventful[1])
    changed = data.draw(st.sampled_from(records))
    paths = sorted(leaves(changed))
    path = data.draw(st.sampled_from(paths))
    path = path[: data.draw(st.integers(1, len(path)), label="depth")]
    inner = changed
    for name in path[:-1]:
        inner = inner[name]
    if data.draw(st.booleans(), label="gone"):
        del inner[path[-1]]
    else:
        inner[path[-1]] = data.draw(st.sampled_from(FOREIGN))
    log = read_run(write_log(tmp_path_factory.mktemp("foreign") / "log.jsonl", *records))
    assert log.cut_lines in (0, 1)
    for found in (log, log.train_losses("flops"), log.val_losses("time"), describe(log), describe_all([log, log])):
        assert found is not None
    assert page(describe_all([log, read_run(eventful[0])]), "title", [])


@pytest.mark.parametrize(
    "line",
    [
        record("iter", 1),
        record("eval", 1),
        record("iter", 1, loss="x"),
        record("eval", 1, val_loss=[1]),
        record("iter", 1, loss=float("inf")),
        record("iter", 1, loss=1.0, memory="much"),
        record("iter", 1, loss=1.0, skipped="no"),
        record("eval", 1, val_loss=1.0, tokens=10**400),
        record("run", config=["n_layer"]),
        record("run", dataset={"splits": {"val": 3}}),
        record("summary", 1, mfu={"full": "x"}, tokens_per_second=1.0),
    ],
)
def test_what_a_reader_could_not_use_is_no_whole_record(tmp_path, line):
    log = read_run(write_log(tmp_path / "log.jsonl", record("run"), line, record("iter", 2, loss=2.0)))
    assert log.cut_lines == 1 and log.train_losses() == [(2, 2.0)] and not log.evals and log.summary is None


# ---------------------------------------------------------------------------------------------------------------------
# Finding and refusing


def test_the_newest_run_is_the_one_that_wrote_last(tmp_path):
    write_log(tmp_path / "out/b/log.jsonl", record("run", time=1), record("iter", 1, time=30, loss=1.0))
    write_log(tmp_path / "out/a/log.jsonl", record("run", time=20), b'{"type": "iter", "time": 99, ' + b"x" * 200_000)
    write_log(tmp_path / "out-nano/log.jsonl", record("run", time=25))
    write_log(tmp_path / "out/just-started/log.jsonl")
    write_log(tmp_path / "data/c/log.jsonl", record("run", time=50))
    (tmp_path / "out/no-log").mkdir()
    newest = [tmp_path / "out/b", tmp_path / "out-nano", tmp_path / "out/a"]
    assert find_runs(tmp_path) == newest
    assert find_runs(tmp_path, latest=2) == newest[:2]
    assert find_runs(tmp_path / "data") == []


def test_what_is_no_run_is_refused_in_one_line(tmp_path):
    write_log(tmp_path / "empty/log.jsonl")
    write_log(tmp_path / "foreign/log.jsonl", {"message": "from another program"}, b"\x89PNG\r\n\x00\n", b"[" * 99999)
    (tmp_path / "nothing").mkdir()
    refused = {
        "empty": "empty/log.jsonl holds no run: it is empty",
        "foreign": "foreign/log.jsonl holds no run: none of its lines is a whole record of a run",
        "nothing": "nothing/log.jsonl does not exist",
        "absent": "there is no run",
    }
    for name, reason in refused.items():
        with pytest.raises(UserError, match=reason) as caught:
            read_run(tmp_path / name)
        assert "\n" not in str(caught.value)


def test_reading_a_log_needs_no_torch():
    code = "import sys, runs.logs; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def described(name: str | None, vocab_size: int | None, checksum: str | None) -> RunLog:
    dataset = {"name": name, "vocab_size": vocab_size, "splits": {"val": {"checksum": checksum}}}
    return RunLog(Path("log.jsonl"), run={"dataset": dataset})


def test_the_same_tokens_are_told_by_their_checksum_and_only_without_one_by_name():
    text = described("text", 256, "1")
    assert text.validated_on == described("a_copy", 256, "1").validated_on
    assert text.validated_on != described("text", 256, "2").validated_on
    assert text.validated_on != described("text", 300, "1").validated_on  # the same bytes, but not the same tokens
    older, silent = described("text", 256, None), RunLog(Path("log.jsonl"))
    assert older.validated_on == described("text", None, None).validated_on
    assert older.validated_on not in (text.validated_on, described("other", 256, None).validated_on)
    assert [log.is_validated_by_name for log in (text, older, silent)] == [False, True, True]
    assert (text.dataset_name, silent.dataset_name, silent.split("val")) == ("text", "unknown", {})
