"""Text of any files: which files an input means, what is a document in them, and what prepare scripts make of them."""

import codecs
import gzip
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st
from test_prepare import documents_of, ids_of, needs_gpt2, prepare, refusal, script

from common.errors import UserError
from data import documents as module
from data import preparation
from data.documents import Documents, find_files
from data.openwebtext.prepare import Downloaded
from data.tokenizers import tokenizer_from_meta

TEXTS = ["Grüße\naus Köln", "東京 𝄞", 'a "quoted", [bracketed] text', "last"]


def write(folder: Path, name: str, texts: list[str]) -> Path:
    """A file of documents whose kind and compression its name says."""
    path, kind = folder / name, name.lower().removesuffix(".gz").removesuffix(".zst").rpartition(".")[2]
    objects = [{"url": "somewhere", "text": text} for text in texts]
    if kind == "parquet":
        pyarrow = pytest.importorskip("pyarrow")
        from pyarrow import parquet

        parquet.write_table(pyarrow.table({"n": list(range(len(texts))), "text": texts}), path, row_group_size=2)
        return path
    content = {
        "txt": "\n\n".join(texts) + "\n",
        "jsonl": "".join(json.dumps(each) + "\n" for each in objects),
        "json": json.dumps(objects, indent=2),
    }[kind].encode()
    if name.lower().endswith(".gz"):
        content = gzip.compress(content)
    if name.lower().endswith(".zst"):
        content = pytest.importorskip("pyarrow").compress(content, codec="zstd", asbytes=True)
    path.write_bytes(content)
    return path


KINDS = ["a.txt", "a.jsonl", "a.json", "a.parquet", "a.txt.gz", "a.jsonl.gz", "a.json.gz", "a.jsonl.zst", "a.TXT.Zst",
         "A.JSONL", "A.PARQUET"]  # fmt: skip


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_of_file_has_the_same_documents(tmp_path, name):
    assert list(Documents(find_files([str(write(tmp_path, name, TEXTS))]))) == TEXTS


@given(
    texts=st.lists(st.text(st.characters(exclude_categories=["Cs"])), max_size=5), spaces=st.text(" \t\n", max_size=3)
)
def test_json_is_an_array_or_values_one_after_the_other(tmp_path_factory, texts, spaces):
    path = tmp_path_factory.mktemp("json") / "a.json"
    written = [json.dumps({"text": text}, indent=1) for text in texts]
    with_text = [text for text in texts if text.strip()]
    for content in (f"{spaces}[{spaces}{','.join(written)}{spaces}]{spaces}", spaces.join(written) + spaces):
        path.write_text(content, newline="")
        documents = Documents([path])
        assert list(documents) == with_text
        assert documents.empty == len(texts) - len(with_text)


def test_json_is_read_in_pieces(tmp_path, monkeypatch):
    """Also a value that is longer than many of them."""
    monkeypatch.setattr(module, "PIECE", 7)
    texts = ["x" * 5, "y\n" * 40, "z"]
    (tmp_path / "a.json").write_text(json.dumps([{"text": text} for text in texts], indent=2))
    assert list(Documents([tmp_path / "a.json"])) == texts


@pytest.mark.parametrize(
    "split_by, expected, empty",
    [
        ("paragraphs", ["one\n two", "three", "four"], 0),
        ("lines", ["one", " two", "three", "four"], 3),
        ("files", ["one\n two\n   \nthree\n\t\n\nfour\n"], 0),
    ],
)
def test_a_text_file_is_split_as_chosen(tmp_path, split_by, expected, empty):
    """Lines of spaces are blank; documents without text are left out and counted."""
    (tmp_path / "a.txt").write_text("one\n two\n   \nthree\n\t\n\nfour\n")
    documents = Documents([tmp_path / "a.txt"], split_by=split_by)
    assert list(documents) == expected
    assert documents.empty == empty


def test_a_byte_order_mark_is_no_text(tmp_path):
    for name, content in {"a.txt": "text", "a.jsonl": '{"text": "text"}', "a.json": '[{"text": "text"}]'}.items():
        (tmp_path / name).write_bytes(codecs.BOM_UTF8 + content.encode())
        assert list(Documents([tmp_path / name])) == ["text"]


def test_the_file_that_is_named_is_the_file(tmp_path, monkeypatch):
    """Though its name is a pattern that another file matches."""
    monkeypatch.chdir(tmp_path)
    for name in ("glob[1].txt", "glob1.txt", "globx.txt"):
        Path(name).write_text(name)
    assert find_files(["glob[1].txt"]) == [Path("glob[1].txt")]
    assert find_files(["glob[1x].txt"]) == [Path("glob1.txt"), Path("globx.txt")]
    assert find_files(["globx.txt", "*.txt"]) == [Path("globx.txt"), Path("glob1.txt"), Path("glob[1].txt")]


def test_a_folder_is_all_files_of_known_kinds_below_it(tmp_path):
    for name in ("b/2.jsonl", "b/c/1.TXT.gz", "a.parquet", ".hidden.txt", "notes.pdf", "b/.partial.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = find_files([str(tmp_path)])
    assert [str(path.relative_to(tmp_path)) for path in found] == ["a.parquet", "b/2.jsonl", "b/c/1.TXT.gz"]


@pytest.mark.parametrize(
    "name, content, expected",
    [
        ("a.txt", "Größe".encode("latin-1"), "is not UTF-8 text: byte 2, in line 1"),
        ("a.jsonl", b'{"text": "a"}\n\n{"text": "\xe9"}\n', "is not UTF-8 text: byte 25, in line 3"),
        ("a.txt.gz", gzip.compress(b"a" * 10_000, mtime=0)[:-9], "is damaged or was not copied to its end"),
        ("a.txt.gz", b"plain text", "cannot read"),
        ("a.txt.zst", b"plain text", "cannot read"),
        ("a.parquet", b"plain text", "cannot read"),
        ("a.json", b'[{"text": "a"}, {"text": "b"', "value 2 is not JSON"),
        ("a.json", b'[{"text": "a"}', "its array has no end"),
        ("a.json", b'[{"text": "a"}] x', "something follows its array"),
        ("a.json", b"[" * 100_000, "value 1 is not JSON"),
        ("a.jsonl", b"[" * 100_000, "line 1 is not JSON"),
        ("a.jsonl", b'{"text": "\\ud800"}\n', "is half of a character"),
        ("a.jsonl", b'{"text": 3}\n', 'must be an object with a string named "text"'),
        ("a.pdf", b"%PDF", "it is not known how to read this"),
    ],
)
def test_what_cannot_be_read_is_one_line(tmp_path, name, content, expected):
    if name.endswith((".zst", ".parquet")):
        pytest.importorskip("pyarrow")
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=expected) as refused:
        list(Documents([tmp_path / name]))
    assert name in str(refused.value) and "\n" not in str(refused.value)


# What prepare scripts make of them


@needs_gpt2
def test_documents_of_all_kinds_become_one_dataset(tmp_path):
    """With their text under another name, so many tokens for validation, and the blank ones counted."""
    texts = [f"Document {number} " + "with words " * (number % 7) for number in range(40)]
    (tmp_path / "in").mkdir()
    for number, name in enumerate(("a.jsonl", "b.json.gz", "c.jsonl.gz", "d.jsonl")):
        rows = [{"content": text} for text in texts[number::4]] + [{"content": " \n"}]
        content = (json.dumps(rows) if "json." in name else "\n".join(map(json.dumps, rows))).encode()
        (tmp_path / "in" / name).write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    given = ["--input", "in", "--text_key", "content", "--num_proc", "1"]
    printed, dataset = prepare("openwebtext", tmp_path, *given, "--val_tokens", "50")
    train, val = documents_of(dataset, "train"), documents_of(dataset, "val")
    assert sorted(train + val) == sorted(texts)
    assert "left out: 4 documents without text" in printed
    ids = [len(tokenizer_from_meta(dataset.tokenizer, dataset.folder).encode(text)) + 1 for text in val]
    assert dataset.splits["val"].tokens == sum(ids) >= 50 > sum(ids[:-1])

    _, dataset = prepare("openwebtext", tmp_path, *given, "--val_fraction", "0.26")
    assert len(documents_of(dataset, "val")) == 11  # 26 % of 40, rounded up


@needs_gpt2
def test_the_draw_of_documents_is_that_of_datasets(tmp_path):
    """nanoGPT's split is `train_test_split` with this seed and share, order included."""
    datasets = pytest.importorskip("datasets")
    texts = [f"Number {number}." for number in range(2100)]
    (tmp_path / "a.txt").write_text("\n".join(texts))
    _, dataset = prepare("openwebtext", tmp_path, "--input", "a.txt", "--split_by", "lines", "--num_proc", "2")
    parts = datasets.Dataset.from_dict({"text": texts}).train_test_split(test_size=0.0005, seed=2357, shuffle=True)
    assert documents_of(dataset, "train") == parts["train"]["text"]
    assert documents_of(dataset, "val") == parts["test"]["text"]


@needs_gpt2
@settings(max_examples=60)
@given(
    text=st.text("ab 'st1!\n\t\r\x1c\u3000\x85é東", min_size=1, max_size=60),
    share=st.floats(0.01, 0.99),
    piece=st.integers(1, 9),
)
def test_a_text_that_comes_in_pieces_has_the_ids_of_the_whole(text, share, piece):
    tokenizer = tokenizer_from_meta({"kind": "gpt2", "end_of_document": None})
    cut = int((1 - share) * len(text))
    pieces = [text[start : start + piece] for start in range(0, len(text), piece)]
    found: dict[str, list[int]] = {"train": [], "val": []}
    ended = []
    for split, part, is_last in preparation._in_words(preparation._parts(pieces, cut, len(text))):
        found[split] += tokenizer.encode(part)
        ended += [split] * is_last
    assert found == {"train": tokenizer.encode(text[:cut]), "val": tokenizer.encode(text[cut:])}
    assert ended == [split for split, part in (("train", text[:cut]), ("val", text[cut:])) if part]


def test_blank_documents_of_a_download_are_counted():
    datasets = pytest.importorskip("datasets")
    documents = Downloaded(datasets.Dataset.from_dict({"text": ["one", "", "two", " \n"] * 600}))
    assert list(documents) == ["one", "two"] * 600
    assert documents.empty == 1200


def test_blank_documents_are_no_part_of_a_text_and_are_counted(tmp_path):
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in ("one", " \n", "", "two")))
    printed, dataset = prepare("shakespeare_char", tmp_path, "--input", "a.jsonl")
    assert "left out: 2 documents without text" in printed
    decode = tokenizer_from_meta(dataset.tokenizer, dataset.folder).decode
    assert "".join(decode(ids_of(dataset, split).tolist()) for split in ("train", "val")) == "one\n\ntwo\n\n"


@pytest.mark.parametrize("name", ["shakespeare_char", pytest.param("shakespeare", marks=needs_gpt2)])
def test_so_many_tokens_of_a_text_are_for_validation(tmp_path, name):
    text = "".join(f"Zeile {number}: Grüße, 東京\n" for number in range(200))
    (tmp_path / "a.txt").write_text(text)
    _, dataset = prepare(name, tmp_path, "--input", "a.txt", "--val_tokens", "333")
    decode = tokenizer_from_meta(dataset.tokenizer, dataset.folder).decode
    assert "".join(decode(ids_of(dataset, split).tolist()) for split in ("train", "val")) == text
    assert 333 <= dataset.splits["val"].tokens <= 340  # of a character that has several tokens all
    assert "--val_tokens=99999: the whole text has" in refusal_of(name, tmp_path, "a.txt", "--val_tokens", "99999")


def refusal_of(name, folder, file, *options):
    for old in (folder / "out").glob("*"):
        old.unlink()
    return refusal(name, folder, "--input", file, *options)


@pytest.mark.parametrize(
    "options", [["--val_fraction", "1"], ["--val_tokens", "0"], ["--val_tokens", "3", "--val_fraction", "0.1"]]
)
def test_options_that_cannot_be_are_one_line(tmp_path, options):
    (tmp_path / "a.txt").write_text("text")
    assert "--val_" in refusal_of("shakespeare_char", tmp_path, "a.txt", *options)


@needs_gpt2
@pytest.mark.parametrize("name, content", [("a.txt", ""), ("a.txt", " \n \n"), ("a.jsonl", ""), ("a.json", "[]")])
def test_a_file_without_text_is_one_line(tmp_path, name, content):
    (tmp_path / name).write_text(content)
    assert "no document cannot be split" in refusal_of("openwebtext", tmp_path, name)


@needs_gpt2
@pytest.mark.parametrize("name, most", [("openwebtext", 60e6), ("shakespeare", 40e6), ("shakespeare_char", 40e6)])
def test_memory_does_not_grow_with_the_text(tmp_path, name, most):
    """Of 2 MB of text and of 24 MB, one after the other in new processes."""
    line = "The same words again and again, 123 times, until there are enough of them.\n" * 20 + "\n"
    argv = [str(script(name)), "--input", "a.txt", "--out_dir", "out", *(["--num_proc=1"] * (name == "openwebtext"))]
    peaks = []
    for size in (2e6, 24e6):
        (tmp_path / "a.txt").write_text(line * int(size / len(line)))
        program = (
            f"import runpy, sys\nfrom common.memory import peak_of_process\nsys.argv = {argv}\n"
            f"try:\n    runpy.run_path(sys.argv[0], run_name='__main__')\n"
            "finally:\n    print(peak_of_process())"
        )
        done = subprocess.run(
            [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        peaks.append(int(done.stdout.split()[-1]))
    assert peaks[1] - peaks[0] < most, peaks
