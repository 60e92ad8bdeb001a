"""A stranger's text on its way to a terminal, to Markdown, to CSV and to a page: shown, and obeyed by nobody."""

import csv
import json

import pytest
from commands import command
from test_older_logs import OLDER

import compare_architectures
from common.errors import same_name
from common.texts import all_harmless, csv_cell, harmless, markdown_text
from interop.configurations import FAMILIES
from model_config import presets

HOSTILE = "\x1b[2J\x1b]0;title\x07\r\n\u202egnp\ud800 =1+1 |<img src=x>| ![a](http://x/y)"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain, ä, 模型, \U0001f999", "plain, ä, 模型, \U0001f999"),
        ("a\x1b[2Jb", "a\\x1b[2Jb"),
        ("two\r\nlines\x85\u2028", "two\\r\\nlines\\x85\\u2028"),
        ("\u202eevil\u200b", "\\u202eevil\\u200b"),
        ("half \ud800", "half \\ud800"),
    ],
)
def test_what_a_terminal_would_obey_is_escaped(text, shown):
    assert harmless(text) == shown
    assert all_harmless({text: [text, 1, None]}) == {shown: [shown, 1, None]}


def test_what_a_spreadsheet_would_compute_is_text():
    assert [csv_cell(text) for text in ("=1+1", "+1", "-1", "@a", "a=1")] == ["'=1+1", "'+1", "'-1", "'@a", "a=1"]
    assert [csv_cell(value) for value in (-1.5, None, True, {"a": 1})] == [-1.5, None, True, "{'a': 1}"]


def test_markdown_has_no_markup_of_a_strangers():
    assert markdown_text("a|b <img> ![a](b)") == "a\\|b \\<img> !\\[a](b)"


def test_a_strangers_log_in_every_output(tmp_path):
    """Its architecture, a key's name and value, and its dataset; beside a plain one, so that the keys differ."""
    config = OLDER["config"] | {"note": HOSTILE, HOSTILE: "=cmd()", "dataset": HOSTILE, "formula": "=1+1"}
    detail = {"mfu": 0.4, "tokens_per_sec": 1e5, "architecture": HOSTILE}
    hostile = OLDER | {"config": config, "training_iterations": [{"iter": 0, "loss": 3.0, "mfu": detail}]}
    for name, log in (("hostile", hostile), ("plain", OLDER)):
        (tmp_path / f"{name}.json").write_text(json.dumps(log))
    files = {kind: tmp_path / f"out.{kind}" for kind in ("csv", "markdown", "json", "report")}
    options = [f"--{kind}={file}" for kind, file in files.items()]
    done = command(compare_architectures.main, tmp_path / "hostile.json", tmp_path / "plain.json", *options)
    texts = [done.stdout + done.stderr, *(file.read_text() for file in files.values())]
    for text in texts:
        assert not set(text) & set("\x1b\x07\u202e\ud800"), "a control character"
    assert "\\x1b[2J" in texts[0]
    cells = [cell for row in csv.reader(files["csv"].open()) for cell in row]
    assert "'=1+1" in cells and not [cell for cell in cells if cell.startswith("=")]
    markdown = files["markdown"].read_text()
    assert "](http" not in markdown.replace("\\[a](http", "") and "<img" not in markdown.replace("\\<img", "")
    rows = [line for line in markdown.splitlines() if line.startswith("|")]
    assert len({line.replace("\\|", "").count("|") for line in rows}) == 1, "as many cells in every row"
    assert "<img" not in files["report"].read_text()


@pytest.mark.parametrize("name", ["minimax", "gemma9", "gpt3", "qwen9", "llama2", "bamba2", "phi", "jamba"])
def test_no_network_is_taken_for_another(name):
    assert same_name(name, {*FAMILIES, *presets()}) == ""


@pytest.mark.parametrize(
    ("name", "meant"),
    [("GPT-2", "gpt2"), ("Llama", "llama"), ("lama", "llama"), ("Mamba_2", "mamba2"), ("LLAMA-3", "llama3")],
)
def test_another_spelling_of_a_network_is_known(name, meant):
    assert same_name(name, {*FAMILIES, *presets()}) == f" (did you mean {meant!r}?)"
