"""compare_architectures.py: which runs it takes, what its table and its files say, the picture, and following a run."""

import contextlib
import csv
import json
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest
from commands import command
from conftest import ROOT, environment
from hypothesis import given
from hypothesis import strategies as st
from test_comparison_statistics import made
from test_run_logs import record, run_train, write_log

import compare_architectures
from common.units import short
from comparison import pictures, runs, table
from runs.folder import RunFolder
from runs.logs import RunLog, read_run


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


def in_process(folder, *arguments):
    with contextlib.chdir(folder):
        return command(compare_architectures.main, *arguments)


def synthetic(folder, dataset="d", checksum="1", **run):
    """The log of a run that tells very little."""
    described = {"name": dataset, "vocab_size": 256, "splits": {"val": {"checksum": checksum}}}
    return read_run(write_log(folder / "log.jsonl", record("run", dataset=described, **run)))


def described(two_runs):
    return runs.describe_all([read_run(two_runs / "out" / name) for name in ("plain", "gated")])


def raw(folder, kind):
    """The log's own lines, without its reader."""
    return [r for r in map(json.loads, (folder / "log.jsonl").read_text().splitlines()) if r["type"] == kind]


def test_the_table_says_what_the_logs_say(two_runs):
    done = compare(two_runs, "out/plain", "out/gated")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    keys = lines[1].split()[2 : lines[1].split().index("params")]
    assert set(keys) >= {"arch_preset", "normalization", "ffn_type"} and not {"out_dir", "seed", "n_layer"} & set(keys)
    for name, line in zip(("plain", "gated"), lines[2:4], strict=True):
        row, (run,), (summary,) = (
            line.split(),
            raw(two_runs / "out" / name, "run"),
            raw(two_runs / "out" / name, "summary"),
        )
        assert row[:2] == [name, run["architecture"]]
        assert row[2 : 2 + len(keys)] == [str(run["config"][key]) for key in keys]
        peaks = [r["memory"]["peak"] for r in [*raw(two_runs / "out" / name, "iter"), summary]]
        assert row[2 + len(keys) :] == [
            f"{run['parameters']['total'] / 1000:.2f}K",
            f"{run['flops_per_token']['full'] / 1000:.1f}K",
            "3.072K",  # 12 steps of 2 x 4 x 32 tokens
            f"{3072 * run['flops_per_token']['full']:.3e}",
            f"{summary['best_val_loss']:.4f}",
            f"{summary['last_val_loss']:.4f}",
            f"{summary['best_val_bits_per_byte']:.3f}",
            f"{summary['tokens_per_second']:,.0f}",
            f"{100 * summary['mfu']['full']:.1f}%",
            f"{max(peaks) / 1e9:.2f}",
            "GB",
            "0",
            "n/a",
            "n/a",
            "finished",
        ]


def test_the_runs_are_compared_in_a_sentence(two_runs):
    done = compare(two_runs, "out/plain", "out/gated", "--x", "flops")
    plain, gated = described(two_runs)
    (sentence,) = done.stdout.splitlines()[4:]
    assert sentence.startswith("gated is ") and " plain at equal FLOPs" in sentence
    assert "no interval, seeds were not repeated" in sentence
    fewer, more = sorted((plain, gated), key=lambda run: run.numbers.flops)
    assert f"({fewer.numbers.flops:.3g}, before the end of {more.numbers.run}): no interval" in sentence


def test_without_runs_the_newest_ones_are_compared(two_runs):
    names = [line.split()[0] for line in compare(two_runs).stdout.splitlines()[2:4]]
    assert names == ["gated", "plain"]
    names = [line.split()[0] for line in compare(two_runs, "--latest", 1).stdout.splitlines()[2:]]
    assert names == ["gated"]


def test_patterns_files_sorting_and_filters(two_runs):
    def names(*arguments):
        done = compare(two_runs, *arguments)
        assert done.returncode == 0, done.stderr
        return [line.split()[0] for line in done.stdout.splitlines()[2:] if line.endswith("finished")]

    assert names("out/*") == names("out/*/log.jsonl") == ["gated", "plain"]
    assert names("out/plain", "out/*") == ["plain", "gated"]  # none twice
    assert names("out/*", "--sort", "parameters") == ["plain", "gated"]
    assert names("out/*", "--sort", "-parameters") == names("out/*", "--sort=parameters", "--reverse")
    assert names("out/*", "--filter", "arch_preset=team") == ["gated"]
    assert names("out/*", "--filter", "n_layer>=2", "--filter", "arch_preset!=team") == ["plain"]


def test_a_pattern_takes_runs_and_passes_over_what_was_made_of_them(two_runs, tmp_path):
    shutil.copytree(two_runs / "out", tmp_path / "out")
    made = ["--png=out/a.png", "--csv=out/a.csv", "--json=out/a.json", "--markdown=out/a.md", "--report=out/a.html"]
    assert in_process(tmp_path, "out/*", *made).returncode == 0
    shutil.copy(tmp_path / "out/plain/log.jsonl", tmp_path / "out/copied.jsonl")
    (tmp_path / "out/older.json").write_text(json.dumps({"training_iterations": []}))
    (tmp_path / "out/empty").mkdir()
    with contextlib.chdir(tmp_path):
        names = [path.name for path in compare_architectures.expanded(Path("out/*"))]
    assert names == ["copied.jsonl", "gated", "older.json", "plain"]


def test_a_run_that_is_named_twice_is_compared_once(two_runs):
    twice = ["out/plain", "out/gated", "out/plain/log.jsonl", two_runs / "out/plain", "out/gated/../plain", "out/*"]
    with contextlib.chdir(two_runs):
        found = compare_architectures.choose_runs([Path(path) for path in twice], None)
    assert [run.numbers.run for run in found] == ["plain", "gated"]


def test_a_name_that_cannot_be_printed_is_one_line(tmp_path):
    folder = tmp_path / os.fsdecode(b"r\xff")
    write_log(folder / "log.jsonl", record("run"))
    for done in (in_process(tmp_path, folder.name), in_process(tmp_path, "*"), in_process(folder, "../*")):
        assert done.returncode == 2 and done.stderr.count("\n") == 1 and "not UTF-8" in done.stderr


def test_the_files_hold_the_numbers(two_runs, tmp_path):
    files = {name: tmp_path / f"runs.{name}" for name in ("csv", "json", "markdown")}
    done = compare(two_runs, "out/*", *(f"--{name}={file}" for name, file in files.items()))
    assert done.returncode == 0, done.stderr
    with files["csv"].open(newline="") as lines:
        rows = list(csv.DictReader(lines))
    numbers = json.loads(files["json"].read_text())
    for row, run in zip(rows, numbers["runs"], strict=True):
        (summary,) = raw(two_runs / "out" / run["run"], "summary")
        assert float(row["best_val_loss"]) == run["best_val_loss"] == summary["best_val_loss"]
        assert int(row["flops"]) == run["flops"] == summary["flops"]["full"]
        assert float(row["train_seconds"]) == run["train_seconds"] == summary["train_seconds"]
        assert row["predicted_loss"] == "" and run["predicted_loss"] is None
        assert row["config.ffn_type"] == run["config"]["ffn_type"] and "config.n_layer" not in row
    assert numbers["comparisons"].keys() == {"steps", "tokens", "flops", "time"}
    assert numbers["comparisons"]["steps"][0]["place"] == 12
    table = [line for line in files["markdown"].read_text().splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in table}) == 1 and len(table) == 4
    assert [cell.strip() for cell in table[2].split("|")][1] == "gated"


def test_a_reader_of_the_files_never_meets_half_of_one(two_runs, tmp_path):
    """They are replaced and not written over: whoever opened the old one still reads it."""
    names = ("csv", "json", "markdown", "report", "png")
    for name in names:
        (tmp_path / name).write_text("old")
        os.link(tmp_path / name, tmp_path / f"{name}.opened")
    done = in_process(two_runs, "out/*", *(f"--{name}={tmp_path / name}" for name in names))
    assert done.returncode == 0, done.stderr
    for name in names:
        assert (tmp_path / f"{name}.opened").read_text() == "old" and (tmp_path / name).stat().st_size > 100


def test_the_prediction_and_the_miss(tmp_path):
    prediction = {"law": "a law", "loss": 2.0, "flops": None, "seconds": None}
    path = write_log(
        tmp_path / "log.jsonl",
        record("run", prediction=prediction, steps=9),
        record("eval", 5, tokens=50, val_loss=2.1),
        record("eval", 9, tokens=90, val_loss=2.3),
    )
    assert table.cells(runs.describe(read_run(path)).numbers)[-3:] == ["2.0000", "n/a", "cut"]  # not at its end
    with path.open("a") as log:
        log.write(json.dumps(record("summary", 9, reason="finished", tokens_per_second=None)) + "\n")
    numbers = runs.describe(read_run(path)).numbers
    assert (numbers.predicted_loss, numbers.best_val_loss, numbers.last_val_loss) == (2.0, 2.1, 2.3)
    assert (numbers.miss, numbers.miss_percent) == (pytest.approx(0.3), pytest.approx(15.0))
    assert table.cells(numbers)[-3:] == ["2.0000", "+0.3000 (+15.0%)", "finished"]


@pytest.mark.parametrize("x", ["tokens", "steps", "flops", "time"])
def test_the_picture_is_a_png(two_runs, tmp_path, x):
    picture = tmp_path / "loss.curves"  # a PNG under any name
    done = compare(two_runs, "--png", picture, "--x", x)
    assert done.returncode == 0 and str(picture) in done.stdout, done.stderr
    content = picture.read_bytes()
    assert content.startswith(b"\x89PNG\r\n\x1a\n")
    width, height = struct.unpack(">II", content[16:24])
    assert width == 1350 and 1200 < height < 1300


def test_the_curves_are_those_of_the_logs(two_runs, tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    drawn = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: drawn.append(figure))
    logs = [read_run(two_runs / "out" / name) for name in ("plain", "gated")]
    for x, place in (("tokens", "tokens"), ("steps", "step"), ("flops", "flops"), ("time", "time")):
        pictures.write_plots(described(two_runs), tmp_path / "loss.png", x=x)
        figure = drawn.pop()
        panels = figure.axes
        lines = panels[0].get_lines()
        expected = [points for log in logs for points in (log.train_losses(place), log.val_losses(place))]
        assert [list(zip(*line.get_data(), strict=True)) for line in lines] == expected
        (legend,) = figure.legends
        assert [text.get_text() for text in legend.get_texts()] == ["plain", "gated"]
        assert [line.get_color() for line in legend.get_lines()] == [line.get_color() for line in lines[1::2]]
        norms = [[(record[place], record["grad_norm"]) for record in log.iters] for log in logs]
        if place in ("step", "tokens"):
            assert [list(zip(*line.get_data(), strict=True)) for line in panels[3].get_lines()] == norms
        assert [axes.get_ylabel() for axes in panels[1:]] == [
            "MFU (full attention), %", "peak memory (GB)", "gradient norm",
        ]  # fmt: skip


@pytest.mark.parametrize("count", [2, 12, 40])
def test_the_legend_names_groups_below_the_panels_and_leaves_them_their_size(count, tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    drawn = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: drawn.append(figure))
    alone = [made([5.0, 4.0], name="_$alone", arch_preset="gpt2", dropout=99)]
    keys = [{"seed": seed, "arch_preset": "gpt2", "dropout": share} for share in range(count // 2) for seed in (1, 2)]
    seeds = [made([5.0, 4.0], **key) for key in keys]
    pictures.write_plots(runs.describe_all(alone + seeds), tmp_path / "loss.png")
    (figure,) = drawn
    figure.draw_without_rendering()
    legend = figure.legends[0].get_window_extent()
    panels = [panel.get_window_extent() for panel in figure.axes]
    names = [text.get_text().replace("\\", "") for text in figure.legends[0].get_texts()]
    assert names == ["_$alone-1", *(f"dropout={share} (2 seeds)" for share in range(count // 2))]
    assert legend.y1 < min(panel.y0 for panel in panels)
    assert legend.x0 >= 0 and legend.x1 <= figure.bbox.width and legend.y0 >= 0
    assert panels[0].height > 4 * figure.dpi and min(panel.height for panel in panels[1:]) > 2 * figure.dpi


def test_no_picture_needs_no_matplotlib(two_runs):
    code = (
        "import sys; sys.argv = ['compare', 'out/plain']\n"
        "import compare_architectures\n"
        "try:\n    compare_architectures.main()\n"
        "finally:\n    assert not {'matplotlib', 'plotly', 'torch'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=two_runs, env=environment(), capture_output=True)
    assert done.returncode == 0, done.stderr


def test_a_run_that_has_only_begun_has_cells_without_numbers(tmp_path):
    numbers = runs.describe(synthetic(tmp_path, architecture="2L")).numbers
    cells = ["n/a", "n/a", "0", "0", "n/a", "n/a", "n/a", "n/a", "n/a", "n/a", "0", "n/a", "n/a", "cut"]
    assert table.cells(numbers) == cells


def test_numbers_align_to_the_right_and_a_narrow_terminal_gets_lines_of_its_own_width(two_runs):
    found = described(two_runs)
    wide = table.table(found).splitlines()
    assert len(wide) == 4
    rows = [table.cells(run.numbers) for run in found]
    for column, heading in ((0, "params"), (5, "last val"), (7, "tokens/s"), (8, "MFU")):
        assert rows[0][column] in wide[2] and rows[1][column] in wide[3] and heading in wide[0] + wide[1]
        ends = {line.rindex(cell[column]) + len(cell[column]) for line, cell in zip(wide[2:], rows, strict=True)}
        assert len(ends) == 1
    narrow = table.table(found, width=80).splitlines()
    assert max(map(len, narrow)) <= 80 < max(map(len, wide))
    first, second = (next(i for i, line in enumerate(narrow) if line.startswith(name)) for name in ("plain ", "gated "))
    assert sorted(" ".join(narrow[:first]).split()) == sorted(" ".join(sum(table.HEADINGS, ())).split())
    told = " ".join(narrow[first:second]).split()
    keys = [f"{key}={found[0].config[key]}" for key in runs.differing_keys([run.config for run in found])]
    assert told == ["plain", found[0].numbers.architecture, *keys, *" ".join(rows[0]).split()]


def test_runs_of_one_name_are_told_apart_by_their_folders(tmp_path):
    logs = [synthetic(tmp_path / "x/run"), synthetic(tmp_path / "y/run"), synthetic(tmp_path / "other")]
    assert runs.labels(logs) == [str(tmp_path / "x/run"), str(tmp_path / "y/run"), "other"]


def test_different_validation_data_are_noted(tmp_path):
    a, again = synthetic(tmp_path / "a"), synthetic(tmp_path / "b")
    assert runs.notes([a, again]) == []
    (note,) = runs.notes([a, synthetic(tmp_path / "c", dataset="e", checksum="2")])
    assert "(d, e)" in note
    (note,) = runs.notes([a, synthetic(tmp_path / "c", checksum="2")])
    assert "versions of d" in note


def test_different_windows_and_lost_evaluations_are_noted(tmp_path):
    shape = {"eval_iters": 4, "batch_size": 6, "block_size": 32}
    a = synthetic(tmp_path / "a", config=shape)
    assert runs.notes([a, synthetic(tmp_path / "b", config={**shape, "eval_iters": 8, "batch_size": 3})]) == []
    for key in ("eval_iters", "block_size"):
        (note,) = runs.notes([a, synthetic(tmp_path / "c", config={**shape, key: 5})])
        assert "different windows" in note
    lost = read_run(write_log(tmp_path / "d/log.jsonl", record("run"), record("eval", 7, tokens=7, val_loss=None)))
    assert runs.notes([lost]) == ["note: d: 1 evaluations were not finite (first at step 7)"]


def test_a_law_that_only_ranks_is_noted(tmp_path):
    def log(name, law, loss=3.0):
        return synthetic(tmp_path / name, config={"scaling_law": law}, prediction={"law": str(law), "loss": loss})

    fitted = {"name": "besiroglu", "E": 1.0}
    logs = [log("a", "besiroglu"), log("b", "hoffmann"), log("c", "besiroglu"), log("d", "mine.json"), log("e", fitted)]
    logs += [log("f", None), log("g", "besiroglu", loss=None)]
    first, second = runs.notes(logs)
    assert first.startswith("note: a, c: the law besiroglu was fitted to other data and another tokenizer: it ranks")
    assert second.startswith("note: b: the law hoffmann ")


def test_a_run_is_followed_until_it_ends(two_runs, tmp_path):
    """The log of a run that holds its folder, written as it would be."""
    lines = (two_runs / "out/plain/log.jsonl").read_bytes().splitlines(keepends=True)
    log = tmp_path / "run/log.jsonl"
    log.parent.mkdir()
    log.write_bytes(b"".join(lines[:-1]))
    command = [sys.executable, str(ROOT / "compare_architectures.py"), "run", "--watch", "0.2"]
    with RunFolder(log.parent).hold():
        watching = subprocess.Popen(command, cwd=tmp_path, env=environment(), stdout=subprocess.PIPE, text=True)
        first = [watching.stdout.readline() for _ in range(3)]
        log.write_bytes(b"".join(lines))
    rest, _ = watching.communicate(timeout=30)
    assert watching.returncode == 0 and first[2].rstrip().endswith("running")
    assert rest.rstrip().endswith("finished")


def test_an_interrupted_watch_ends_cleanly(two_runs, tmp_path):
    log = tmp_path / "run/log.jsonl"
    log.parent.mkdir()
    log.write_bytes(b"".join((two_runs / "out/plain/log.jsonl").read_bytes().splitlines(keepends=True)[:-1]))
    command = [sys.executable, str(ROOT / "compare_architectures.py"), "run", "--watch"]
    with RunFolder(log.parent).hold():
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        watching = subprocess.Popen(command, cwd=tmp_path, env=environment(), text=True, **pipes)
        while "running" not in watching.stdout.readline():
            pass
        time.sleep(0.2)
        watching.send_signal(signal.SIGINT)
        out, err = watching.communicate(timeout=30)
    assert (watching.returncode, err) == (0, "") and "no longer watching" in out


@given(st.integers(1000, 10**15 - 10**12))
def test_short_numbers_keep_four_digits(count):
    text = short(count)
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
        (["out/absent*"], "the pattern matches no run's folder and no log"),
        (["out/**a"], "there is no run out/**a"),
        (["a" * 300], "File name too long"),
        (["a" * 300 + "*/b"], "File name too long"),
        (["out/plain", "--png", "no/such/folder/loss.png"], "cannot write no/such/folder/loss.png"),
        (["out/plain", "--csv", "no/such/folder/a.csv"], "cannot write no/such/folder/a.csv"),
        (["out/plain", "--csv", 300 * "a"], "cannot write aaa"),
        (["out/plain", "--json", "out"], "cannot write out"),
        (["out/plain", "--markdown", "no/such/folder/a.md"], "cannot write no/such/folder/a.md"),
        (["out/plain", "--report", "no/such/folder/a.html"], "cannot write no/such/folder/a.html"),
        (["out/plain", "--x", "epochs"], "invalid choice"),
        (["out/plain", "--sort", "best_val_los"], "did you mean 'best_val_loss'?"),
        (["out/plain", "--reverse"], "--reverse is for --sort"),
        (["out/plain", "--filter", "n_layer"], "is no condition"),
        (["out/plain", "--filter", "n_layers>1"], "did you mean 'n_layer'?"),
        (["out/plain", "--filter", "n_layer>99"], "leaves none of the 1 runs"),
        (["out/plain", "--filter", "tokens>1K"], "tokens is a number, compare it with one"),
        (["out/plain", "--filter", "learning_rate<=nan"], "learning_rate is a number, compare it with one"),
        (["out/plain", "--watch", "0"], "must be a number of seconds above 0"),
    ],
)
def test_mistakes_are_one_line(two_runs, arguments, reason):
    done = in_process(two_runs, *arguments)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ") and reason in line


def test_no_runs_at_all_is_one_line(tmp_path):
    done = compare(tmp_path)
    assert done.returncode == 2 and "no run under" in done.stderr and len(done.stderr.splitlines()) == 1


@pytest.fixture
def without_metric(tmp_path):
    """The folders a and b, validated on different texts."""
    for name, size in (("a", 400), ("b", 500)):
        val = {"checksum": name, "tokens": 100, "bytes": size}
        dataset = {"name": name, "vocab_size": 256, "splits": {"val": val}}
        write_log(
            tmp_path / name / "log.jsonl",
            record("run", dataset=dataset, config={"n": name}),
            record("eval", 1, tokens=10, val_loss=2.0),
        )
    return tmp_path


def test_losses_without_a_common_metric_end_with_an_error_when_all_is_written(without_metric):
    files = ("csv", "json", "markdown", "report")
    for arguments in ([], [f"--{name}={name}" for name in files], ["--png=png"], ["--png=png", "--csv=csv"]):
        done = in_process(without_metric, "a", "b", *arguments)
        assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
        assert done.stderr.startswith("error: no common metric: a and b were validated on different data")
        assert "not compared, no common metric" in done.stdout and len(done.stdout.splitlines()) >= 5
        for file in (without_metric / name for name in files if f"--{name}={name}" in arguments):
            assert file.stat().st_size > 100
            file.unlink()
    assert not (without_metric / "png").exists()
    for column in ("best_val_loss", "bits_per_byte"):
        done = in_process(without_metric, "a", "b", "--sort", column)
        assert done.returncode == 2 and len(done.stderr.splitlines()) == 1 and "no common metric" in done.stderr


def test_a_watch_goes_on_without_a_common_metric(without_metric):
    done = in_process(without_metric, "a", "b", "--watch", "1", "--png=png")  # and ends, as no run goes on
    assert (done.returncode, done.stderr) == (0, "") and "no plots: no common metric: a and b" in done.stdout


def test_runs_without_an_evaluation_need_no_metric(without_metric):
    log = without_metric / "b/log.jsonl"
    log.write_text(log.read_text().splitlines()[0] + "\n")
    assert in_process(without_metric, "a", "b").returncode == 0


# ---------------------------------------------------------------------------------------------------------------------
# Keys, sorting and conditions

KEYS = st.sampled_from(["n_layer", "bias", "out_dir", "dtype"])
VALUES = st.one_of(st.none(), st.booleans(), st.integers(-3, 3), st.sampled_from(["a", "b"]))


@given(st.lists(st.dictionaries(KEYS, st.sampled_from([None, 2, 3, "a"])), max_size=4))
def test_the_keys_that_differ_are_those_and_only_those(configs):
    stated = [config for config in configs if config]
    for key in ("n_layer", "bias", "dtype"):
        values = {json.dumps(config[key]) if key in config else "absent" for config in stated}
        assert (key in runs.differing_keys(configs)) == (len(values) > 1)
    assert "out_dir" not in runs.differing_keys(configs)


@given(st.lists(VALUES, min_size=1, max_size=6), st.booleans())
def test_sorting_keeps_all_and_puts_the_unknown_last(values, descending):
    described = [runs.describe(read_like({"key": value, "index": index})) for index, value in enumerate(values)]
    found = [run.config["key"] for run in runs.sort(described, "key", descending)]
    known = [value for value in found if value is not None]
    assert sorted(map(repr, found)) == sorted(map(repr, values)) and found[len(known) :] == [None] * (
        len(values) - len(known)
    )
    if all(isinstance(value, int) for value in known):
        assert known == sorted(known, reverse=descending)


def read_like(config):
    return RunLog(Path("log.jsonl"), run={"config": config})


@pytest.mark.parametrize(
    ("condition", "kept"),
    [("x>1", [2, 10]), ("x>=2", [2, 10]), ("x<2", [1]), ("x=2.0", [2]), ("x!=2", [1, 10, None]), ("x=None", [None])],
)
def test_conditions_compare_numbers_as_numbers(condition, kept):
    told = [runs.describe(read_like({"x": value})) for value in (1, 2, 10, None)]
    assert [run.config["x"] for run in runs.matching(told, condition)] == kept


def test_text_that_looks_like_a_number_compares_as_text():
    told = [runs.describe(read_like({"x": value})) for value in ("10", "9", "b", None)]
    assert [run.config["x"] for run in runs.matching(told, "x>a")] == ["b"]
    assert [run.config["x"] for run in runs.matching(told, "x>10")] == ["9", "b"]


def test_the_document_has_every_column():
    document = (ROOT / "docs/comparing_runs.md").read_text()
    assert re.findall(r"^\| `([a-z_]+)` \|", document, flags=re.MULTILINE) == list(runs.COLUMNS)
