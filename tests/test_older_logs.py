"""Logs of the older layout: what they say is read, what they do not say is not made up."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_compare import compare

from common.errors import UserError
from comparison.runs import describe
from runs.logs import read_run

DETAIL = {
    "mfu": 0.4692,
    "mfu_percent": 46.92,
    "tokens_per_sec": 123112.98,
    "flops_per_token": 1189200384.0,
    "architecture": "12L-12H-768D-AbsPos-LN-NB-GELU-PostNorm",
}
MEMORY = {"allocated_gb": 2.018073088, "reserved_gb": 15.632171008, "max_allocated_gb": 12.59791616}
OLDER = {
    "run_name": "run_20250101_120000",
    "config": {"gradient_accumulation_steps": 40, "batch_size": 12, "block_size": 1024, "dataset": "shakespeare"},
    "startup_info": {"model": {"total_params": 124373760}, "hardware": {"gpu_name": "A card", "num_gpus": 1}},
    "training_iterations": [
        {"iter": 0, "loss": 10.9, "time_ms": 18364.8, "mfu": -100.0},
        {"iter": 10, "loss": 10.5, "time_ms": 3992.43, "mfu": DETAIL, "memory": MEMORY},
        {"iter": 20, "loss": float("nan"), "time_ms": 4000.0, "mfu": 46.8},
    ],
    "eval_steps": [{"iter": 0, "train_loss": 10.9, "val_loss": 10.86}, {"iter": 20, "val_loss": 9.5}],
    "summary": {"final_iter": 20, "avg_mfu": 46.9},
}


def write(path, log):
    path.write_text(json.dumps(log, indent=2))
    return path


def test_what_it_says_is_read(tmp_path):
    log = read_run(write(tmp_path / "run_20250101_120000.json", OLDER))
    assert (log.name, log.state, log.step) == ("run_20250101_120000", "finished", 21)
    assert log.tokens == 21 * 40 * 12 * 1024
    assert log.train_losses() == [(1, 10.9), (11, 10.5)]
    assert log.val_losses("tokens") == [(0, 10.86), (20 * 491520, 9.5)]
    assert (log.best_val_loss, log.final_val_loss) == (9.5, 9.5)
    assert log.run["architecture"] == DETAIL["architecture"] and log.run["parameters"]["total"] == 124373760
    assert log.peak_memory == 12597916160


def test_a_warm_up_row_does_not_enter_the_speed(tmp_path):
    """The third row states no speed of its own: its tokens and its time do. It stands for ten steps, as the second."""
    throughput = read_run(write(tmp_path / "run.json", OLDER)).throughput
    seconds = (10 * 3.99243, 10 * 4.0)
    speeds = (123112.98, 491520 / 4.0)
    expected = sum(s * v for s, v in zip(seconds, speeds, strict=True)) / sum(seconds)
    assert throughput.tokens_per_second == pytest.approx(expected, rel=1e-9)
    assert throughput.mfu.keys() == {"unstated"}
    assert throughput.mfu["unstated"] == pytest.approx(
        (0.4692 * seconds[0] + 0.468 * seconds[1]) / sum(seconds), rel=1e-9
    )


def test_what_it_does_not_say_is_not_made_up(tmp_path):
    log = read_run(write(tmp_path / "run.json", OLDER))
    assert log.flops is log.train_seconds is log.skipped_steps is log.best_val_bits_per_byte is None
    assert log.train_losses("flops") == log.val_losses("time") == log.train_losses("wall") == []
    assert "flops_per_token" not in log.run
    bare = {"training_iterations": [{"iter": 0, "loss": 3.0, "time_ms": 5.0, "mfu": 30.0}]}
    log = read_run(write(tmp_path / "bare.json", bare))
    assert log.tokens is log.throughput is log.peak_memory is None and log.state == "cut"
    assert log.train_losses() == [(1, 3.0)] and log.run["config"] == {}


def test_a_file_of_the_older_layout_in_the_folder_of_a_live_run_is_not_running(tmp_path):
    from runs.folder import RunFolder

    write(tmp_path / "run.json", {**OLDER, "summary": {}})
    with RunFolder(tmp_path).hold():
        assert read_run(tmp_path / "run.json").state == "cut"


@given(st.dictionaries(st.sampled_from(list(OLDER)), st.sampled_from([None, 3, "text", [], {}, [{}], [3]])))
def test_damage_is_one_line_or_reads(tmp_path_factory, replaced):
    path = write(tmp_path_factory.mktemp("damaged") / "run.json", {**OLDER, **replaced})
    try:
        log = read_run(path)
        assert log.step >= 0 and log.state in ("finished", "cut")
    except UserError as error:
        assert "\n" not in str(error)


ROW = {"iter": 1, "loss": 3.0, "time_ms": 5.0, "mfu": DETAIL, "memory": MEMORY}
REPLACED = st.sampled_from([None, "text", float("inf"), float("nan"), -1, 10**400, [], {}, {"mfu_percent": "x"}])


@given(st.dictionaries(st.sampled_from(list(ROW)), REPLACED), st.dictionaries(st.sampled_from(list(MEMORY)), REPLACED))
def test_damage_in_a_row_is_one_line_or_reads(tmp_path_factory, replaced, memory):
    row = {**ROW, "memory": {**MEMORY, **memory}, **replaced}
    path = write(tmp_path_factory.mktemp("damaged") / "run.json", {**OLDER, "training_iterations": [row]})
    try:
        describe(read_run(path))
    except UserError as error:
        assert "\n" not in str(error)


@pytest.mark.parametrize("row", [{"iter": float("inf")}, {"memory": {"peak_gb": float("inf")}}])
def test_infinity_is_one_line(tmp_path, row):
    with pytest.raises(UserError, match="is no log of the older layout"):
        read_run(write(tmp_path / "run.json", {"training_iterations": [{**ROW, **row}]}))


def test_a_json_file_of_something_else_is_refused(tmp_path):
    with pytest.raises(UserError, match="holds no run"):
        read_run(write(tmp_path / "meta.json", {"vocab_size": 256}))


def test_the_command_takes_both_layouts(tmp_path):
    write(tmp_path / "run_1.json", OLDER)
    write(tmp_path / "run_2.json", {**OLDER, "config": {**OLDER["config"], "n_layer": 6}})
    done = compare(tmp_path, "run_*.json")
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()[2:4]
    assert first.split()[:3] == ["run_1", DETAIL["architecture"], "n/a"] and second.split()[2] == "6"
    assert "46.9% (unstated)" in first
    assert "does not say which attention it counts" in done.stdout and "no checksum" in done.stdout
