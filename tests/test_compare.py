"""compare_architectures.py: which runs it takes, what its table says, and the picture."""

import struct
import subprocess
import sys

import pytest
from conftest import ROOT, environment
from hypothesis import given
from hypothesis import strategies as st
from test_run_logs import record, run_train, write_log

import compare_architectures
from run_logs import read_run


@pytest.fixture(scope="module")
def two_runs(data_dir, tmp_path_factory):
    """A folder with out/plain, and then out/gated with another FFN."""
    folder = tmp_path_factory.mktemp("two")
    assert run_train(data_dir, folder / "out/plain") == 0
    assert run_train(data_dir, folder / "out/gated", "--arch_preset=team") == 0
    return folder


def compare(folder, *arguments):
    command = [sys.executable, str(ROOT / "compare_architectures.py"), *map(str, arguments)]
    return subprocess.run(command, cwd=folder, env=environment(), capture_output=True, text=True, timeout=60)


def synthetic(folder, dataset="d", checksum="1", **run):
    """The log of a run that tells very little."""
    described = {"name": dataset, "vocab_size": 256, "splits": {"val": {"checksum": checksum}}}
    return read_run(write_log(folder / "log.jsonl", record("run", dataset=described, **run)))


def test_the_table_says_what_the_logs_say(two_runs):
    done = compare(two_runs, "out/plain", "out/gated")
    assert done.returncode == 0, done.stderr
    rows = [line.split() for line in done.stdout.splitlines()[2:]]
    assert [row[0] for row in rows] == ["plain", "gated"]
    for name, row in zip(("plain", "gated"), rows, strict=True):
        log = read_run(two_runs / "out" / name)
        summary = log.summary
        assert row[1] == log.run["architecture"]
        assert row[2] == f"{log.run['parameters']['total'] / 1000:.2f}K"
        assert row[3] == f"{log.run['flops_per_token']['full'] / 1000:.1f}K"
        assert row[4] == "3.072K"  # 12 steps of 2 x 4 x 32 tokens
        assert row[5] == f"{summary['best_val_loss']:.4f}"
        assert row[6] == f"{summary['best_val_bits_per_byte']:.3f}"
        assert row[7] == f"{summary['tokens_per_second']:,.0f}"
        assert row[8] == f"{100 * summary['mfu']['full']:.1f}%"
        assert row[9:] == ["finished"]
    assert rows[0][2:4] != rows[1][2:4]


def test_without_runs_the_newest_ones_are_compared(two_runs):
    names = [line.split()[0] for line in compare(two_runs).stdout.splitlines()[2:]]
    assert names == ["gated", "plain"]
    names = [line.split()[0] for line in compare(two_runs, "--latest", 1).stdout.splitlines()[2:]]
    assert names == ["gated"]


@pytest.mark.parametrize("x", ["tokens", "steps"])
def test_the_picture_is_a_png(two_runs, tmp_path, x):
    picture = tmp_path / "loss.curves"  # a PNG under any name
    done = compare(two_runs, "--png", picture, "--x", x)
    assert done.returncode == 0 and str(picture) in done.stdout, done.stderr
    content = picture.read_bytes()
    assert content.startswith(b"\x89PNG\r\n\x1a\n")
    assert struct.unpack(">II", content[16:24]) == (1200, 750)


def test_the_curves_are_those_of_the_logs(two_runs, tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    drawn = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, file, **_: drawn.append(figure))
    logs = [read_run(two_runs / "out" / name) for name in ("plain", "gated")]
    compare_architectures.write_loss_curves(logs, tmp_path / "loss.png", x="tokens")
    lines = drawn[0].axes[0].get_lines()
    expected = [points for log in logs for points in (log.train_losses("tokens"), log.val_losses("tokens"))]
    assert [list(zip(*line.get_data(), strict=True)) for line in lines] == expected
    assert [text.get_text() for text in drawn[0].axes[0].get_legend().get_texts()] == ["plain", "gated"]


def test_no_picture_needs_no_matplotlib(two_runs):
    code = (
        "import sys; sys.argv = ['compare', 'out/plain']\n"
        "import compare_architectures\n"
        "try:\n    compare_architectures.main()\n"
        "finally:\n    assert not {'matplotlib', 'torch'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=two_runs, env=environment(), capture_output=True)
    assert done.returncode == 0, done.stderr


def test_a_run_that_has_only_begun_has_cells_without_numbers(tmp_path):
    row = compare_architectures.table_row("new", synthetic(tmp_path, architecture="2L"))
    assert row == ["new", "2L", "n/a", "n/a", "0", "n/a", "n/a", "n/a", "n/a", "cut"]


def test_numbers_align_to_the_right_and_a_narrow_terminal_gets_two_lines_a_run(two_runs):
    logs = [read_run(two_runs / "out" / name) for name in ("plain", "gated")]
    wide = compare_architectures.table(logs).splitlines()
    assert len(wide) == 4
    rows = [compare_architectures.table_row("", log) for log in logs]
    for column, heading in ((2, "params"), (5, "loss"), (7, "tokens/s"), (8, "(full)")):
        cells = [heading, *(row[column] for row in rows)]
        assert len({line.rindex(cell) + len(cell) for line, cell in zip(wide[1:], cells, strict=True)}) == 1
    narrow = compare_architectures.table(logs, width=80).splitlines()
    assert max(map(len, narrow)) <= 80 < max(map(len, wide))
    assert narrow[2] == f"plain  {logs[0].run['architecture']}"
    assert narrow[3].split() == wide[2].split()[2:]


def test_runs_of_one_name_are_told_apart_by_their_folders(tmp_path):
    logs = [synthetic(tmp_path / "x/run"), synthetic(tmp_path / "y/run"), synthetic(tmp_path / "other")]
    assert compare_architectures.labels(logs) == [str(tmp_path / "x/run"), str(tmp_path / "y/run"), "other"]


def test_different_validation_data_are_noted(tmp_path):
    a, again = synthetic(tmp_path / "a"), synthetic(tmp_path / "b")
    assert compare_architectures.notes([a, again]) == []
    (note,) = compare_architectures.notes([a, synthetic(tmp_path / "c", dataset="e", checksum="2")])
    assert "(d, e)" in note
    (note,) = compare_architectures.notes([a, synthetic(tmp_path / "c", checksum="2")])
    assert "versions of d" in note


@given(st.integers(1000, 10**15 - 10**12))
def test_short_numbers_keep_four_digits(count):
    text = compare_architectures.short(count)
    value = float(text[:-1]) * 1000 ** ("KMBT".index(text[-1]) + 1)
    assert value == pytest.approx(count, rel=0.5001e-3)
    assert len(text) == 6 and 1 <= float(text[:-1]) < 1000


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["out/plain", "--latest", "2"], "give either runs or --latest"),
        (["--latest", "0"], "must be at least 1"),
        (["--latest", "many"], "invalid int value"),
        (["out/absent"], "there is no run out/absent"),
        (["out/plain", "--png", "no/such/folder/loss.png"], "cannot write no/such/folder/loss.png"),
        (["out/plain", "--x", "time"], "invalid choice"),
    ],
)
def test_mistakes_are_one_line(two_runs, arguments, reason):
    done = compare(two_runs, *arguments)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ") and reason in line


def test_no_runs_at_all_is_one_line(tmp_path):
    done = compare(tmp_path)
    assert done.returncode == 2 and "no run under" in done.stderr and len(done.stderr.splitlines()) == 1
