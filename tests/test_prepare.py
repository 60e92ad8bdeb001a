"""The prepare scripts, called as a user calls them, and the tokenizers that they share with sampling."""

import codecs
import json
import os
import platform
import signal
import subprocess
import sys
import sysconfig
from pathlib import Path

import numpy as np
import pytest
import tiktoken
from hypothesis import given
from hypothesis import strategies as st

from common.errors import UserError
from data.dataset import open_dataset
from data.tokenizers import BytesTokenizer, tokenizer_from_meta
from inference.text import starting_tokens

REPOSITORY = Path(__file__).resolve().parent.parent
NO_NETWORK = {  # a port on which nothing listens: every attempt to connect fails at once
    **dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9"),
    **dict.fromkeys(("no_proxy", "NO_PROXY"), ""),
}
needs_shakespeare = pytest.mark.skipif(
    "ISOFLOP_TINYSHAKESPEARE" not in os.environ, reason="set ISOFLOP_TINYSHAKESPEARE to a file"
)
needs_gpt2 = pytest.mark.skipif("TIKTOKEN_CACHE_DIR" not in os.environ, reason="set TIKTOKEN_CACHE_DIR")


def script(name):
    return REPOSITORY / "data" / name / "prepare.py"


def call(command, folder, **environment):
    """Run a command in `folder`, away from the repository, with nothing to reach outside the machine."""
    environment = {**os.environ, **NO_NETWORK, "HF_HOME": str(folder / "cache"), **environment}
    command = [sys.executable, *map(str, command)]
    return subprocess.run(command, cwd=folder, env=environment, timeout=300, capture_output=True, text=True)


def prepare(name, folder, *arguments, **environment):
    """Call a prepare script that succeeds, writing to folder/out; return what it printed and the dataset."""
    done = call([script(name), "--out_dir", "out", *arguments], folder, **environment)
    assert done.returncode == 0, done.stderr
    return done.stdout, open_dataset(folder / "out")


def refusal(name, folder, *arguments, **environment):
    """Call a prepare script that refuses; return the one line in which it says why."""
    done = call([script(name), "--out_dir", "out", *arguments], folder, **environment)
    assert done.returncode == 2, done.stderr
    message = done.stderr.splitlines()[-1]
    assert message.startswith("error: ")
    assert "Traceback" not in done.stderr
    assert not list((folder / "out").glob("*.bin")) and not (folder / "out" / "meta.json").exists()
    return message


def ids_of(dataset, split):
    return np.fromfile(dataset.splits[split].shards[0].path, dataset.dtype)


def documents_of(dataset, split):
    """The documents of a split as text, cut at the ends of documents."""
    ids = ids_of(dataset, split)
    end = dataset.tokenizer["end_of_document"]
    assert ids[-1] == end
    decode = tokenizer_from_meta(dataset.tokenizer, dataset.folder).decode
    return [decode(part[part != end].tolist()) for part in np.split(ids, np.flatnonzero(ids == end)[:-1] + 1)]


# python_stdlib


@pytest.fixture(scope="module")
def stdlib(tmp_path_factory):
    """A folder in which data/python_stdlib/prepare.py has run once, what it printed, and the dataset."""
    folder = tmp_path_factory.mktemp("stdlib")
    printed, dataset = prepare("python_stdlib", folder)
    return folder, printed, dataset


def test_stdlib_documents_are_the_library_without_its_tests(stdlib):
    _, _, dataset = stdlib
    train, val = documents_of(dataset, "train"), documents_of(dataset, "val")
    library = Path(sysconfig.get_path("stdlib"))
    own = [path for path in library.rglob("*.py") if not {"site-packages", "dist-packages"} & set(path.parts)]
    tests = {path for path in own if {"test", "tests", "idle_test"} & set(path.relative_to(library).parts)}
    expected = []
    for path in set(own) - tests:
        content = path.read_bytes()
        try:
            if content and 0 not in content:
                expected.append(content.decode("utf-8"))
        except UnicodeDecodeError:
            continue
    assert sorted(train + val) == sorted(set(expected))  # of identical files, one
    assert (library / "json" / "decoder.py").read_text(encoding="utf-8") in train + val
    for split, documents in (("train", train), ("val", val)):
        facts = dataset.splits[split]
        assert facts.documents == len(documents)
        assert facts.bytes == sum(len(text.encode("utf-8")) for text in documents)
        assert facts.tokens == facts.bytes + facts.documents


def test_stdlib_is_split_by_file(stdlib):
    _, _, dataset = stdlib
    assert not set(documents_of(dataset, "train")) & set(documents_of(dataset, "val"))
    train, val = dataset.splits["train"].bytes, dataset.splits["val"].bytes
    assert 0.05 < val / (train + val) < 0.10
    assert dataset.vocab_size == 256


def test_stdlib_tells_what_it_wrote_and_where(stdlib):
    _, printed, dataset = stdlib
    assert f"standard library of {platform.python_implementation()} {platform.python_version()}: out: " in printed
    train = dataset.splits["train"]
    assert f"train {train.tokens:,} tokens ({train.bytes:,} bytes, {train.documents:,} documents)" in printed


def test_stdlib_is_prepared_once_and_always_alike(stdlib):
    folder, _, _ = stdlib
    files = ("train.bin", "val.bin", "meta.json")
    first = {name: (folder / "out" / name).read_bytes() for name in files}
    times = {name: (folder / "out" / name).stat().st_mtime_ns for name in files}

    printed, _ = prepare("python_stdlib", folder)
    assert printed.startswith("up to date")
    assert {name: (folder / "out" / name).stat().st_mtime_ns for name in files} == times

    printed, _ = prepare("python_stdlib", folder, "--force")
    assert not printed.startswith("up to date")
    assert (folder / "out" / "train.bin").stat().st_mtime_ns != times["train.bin"]
    assert {name: (folder / "out" / name).read_bytes() for name in files} == first


@pytest.mark.parametrize("reason", ["damaged", "another interpreter"])
def test_stdlib_is_prepared_again_when_it_must_be(tmp_path, reason):
    _, dataset = prepare("python_stdlib", tmp_path)
    before = ids_of(dataset, "val")
    if reason == "damaged":
        os.truncate(tmp_path / "out" / "val.bin", 10)
    else:
        meta = tmp_path / "out" / "meta.json"
        meta.write_text(meta.read_text().replace(platform.python_version(), "3.0.0"))
    printed, dataset = prepare("python_stdlib", tmp_path)
    assert not printed.startswith("up to date")
    assert np.array_equal(ids_of(dataset, "val"), before)


# Interruption. The script itself runs, and its process is struck while it writes.

STRIKE = """
import os, runpy, signal, sys
from data.writer import DatasetWriter

script, strike, after = sys.argv[1], getattr(signal, sys.argv[2]), int(sys.argv[3])
add = DatasetWriter.add

def add_then_strike(self, *arguments, **options):
    global after
    add(self, *arguments, **options)
    after -= 1
    if after == 0:
        os.kill(os.getpid(), strike)

DatasetWriter.add = add_then_strike
sys.argv = [script, *sys.argv[4:]]
runpy.run_path(script, run_name="__main__")
"""


@pytest.mark.parametrize("name, after", [("python_stdlib", 300), ("shakespeare_char", 1)])
@pytest.mark.parametrize("strike", ["SIGKILL", "SIGINT"])
def test_interrupted_preparation_leaves_nothing_that_looks_finished(tmp_path, name, after, strike):
    (tmp_path / "text.txt").write_text("To be, or not to be.\n" * 100)
    options = ["--input", "text.txt"] if name == "shakespeare_char" else []
    arguments = ["-c", STRIKE, script(name), strike, after, "--out_dir", "out", *options]
    done = call(arguments, tmp_path, PYTHONPATH=str(REPOSITORY))
    assert done.returncode == {"SIGKILL": -signal.SIGKILL, "SIGINT": 130}[strike]
    if strike == "SIGKILL":
        left = {path.name for path in (tmp_path / "out").iterdir()}
        assert left == {".lock", ".train.bin.partial", ".val.bin.partial"}
        with pytest.raises(UserError, match=r"no meta\.json"):
            open_dataset(tmp_path / "out")
    else:
        assert not (tmp_path / "out").exists()

    prepare(name, tmp_path, *options)
    left = {path.name for path in (tmp_path / "out").iterdir()}
    assert left == {".lock", ".verified.json", "train.bin", "val.bin", "meta.json"}


# shakespeare_char and shakespeare


@needs_shakespeare
def test_shakespeare_char_as_nanogpt_has_it(tmp_path):
    source = Path(os.environ["ISOFLOP_TINYSHAKESPEARE"])
    printed, dataset = prepare("shakespeare_char", tmp_path, "--input", source)
    assert "train 1,003,854 tokens" in printed and "val 111,540 tokens" in printed
    assert (dataset.vocab_size, dataset.splits["train"].tokens, dataset.splits["val"].tokens) == (65, 1003854, 111540)
    text = source.read_text(encoding="utf-8")
    numbers = {character: number for number, character in enumerate(sorted(set(text)))}
    expected = [numbers[character] for character in text]
    assert np.concatenate([ids_of(dataset, "train"), ids_of(dataset, "val")]).tolist() == expected
    assert dataset.splits["train"].bytes_per_token == 1.0


@needs_shakespeare
@needs_gpt2
def test_shakespeare_as_nanogpt_has_it(tmp_path):
    source = Path(os.environ["ISOFLOP_TINYSHAKESPEARE"])
    _, dataset = prepare("shakespeare", tmp_path, "--input", source)
    train, val = dataset.splits["train"], dataset.splits["val"]
    assert (dataset.vocab_size, train.tokens, val.tokens) == (50257, 301_966, 36_059)
    assert (train.bytes, val.bytes) == (1_003_854, 111_540)
    decode = tokenizer_from_meta(dataset.tokenizer, dataset.folder).decode
    text = decode(ids_of(dataset, "train").tolist()) + decode(ids_of(dataset, "val").tolist())
    assert text == source.read_text(encoding="utf-8")


def test_any_text_can_be_split_into_characters(tmp_path):
    text = "Füße, 東京, 𝄞\r\n" * 50
    (tmp_path / "text.txt").write_bytes(text.encode("utf-8"))
    _, dataset = prepare("shakespeare_char", tmp_path, "--input", "text.txt")
    decode = tokenizer_from_meta(dataset.tokenizer, dataset.folder).decode
    boundary = int(0.9 * len(text))
    for split, part in (("train", text[:boundary]), ("val", text[boundary:])):
        assert decode(ids_of(dataset, split).tolist()) == part
        assert dataset.splits[split].bytes == len(part.encode("utf-8"))
        assert dataset.splits[split].documents == 1
    assert dataset.vocab_size == len(set(text))


def test_a_text_that_is_already_there_is_not_downloaded(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "input.txt").write_text("0123456789" * 10)
    printed, dataset = prepare("shakespeare_char", tmp_path)
    assert "downloading" not in printed
    assert dataset.splits["train"].tokens == 90


@pytest.mark.parametrize("name", ["shakespeare_char", "shakespeare"])
def test_a_failed_download_is_one_line_that_tells_of_input(tmp_path, name):
    message = refusal(name, tmp_path)
    assert "cannot download" in message and message.endswith("give a local copy with --input FILE")
    assert not list(tmp_path.rglob("*input.txt*"))


@pytest.mark.parametrize(
    "content, expected",
    [
        (None, "there is no file text.txt"),
        (b"", "the train split of out would be empty"),
        (b"abc\xff", "text.txt is not UTF-8 text: byte 3"),
    ],
)
def test_a_text_that_cannot_be_used_is_one_line(tmp_path, content, expected):
    if content is not None:
        (tmp_path / "text.txt").write_bytes(content)
    assert expected in refusal("shakespeare_char", tmp_path, "--input", "text.txt")


# openwebtext, with the real `datasets` package on small local files

TEXTS = [f"Article {number}. " + "Grüße aus Köln! " * (number % 9) + "\nEnd." for number in range(2500)]


@needs_gpt2
def test_openwebtext_from_local_files(tmp_path):
    pytest.importorskip("datasets")
    rows = [json.dumps({"url": "somewhere", "text": text}) for text in TEXTS]
    (tmp_path / "docs.jsonl").write_text("\n".join(rows) + "\n")
    (tmp_path / "docs.txt").write_text("\n\n\n".join(TEXTS[:1000]) + "\n\n" + "\n\n".join(TEXTS[1000:]) + "\n")

    _, dataset = prepare("openwebtext", tmp_path, "--input", "docs.jsonl", "--num_proc", "1")
    train, val = documents_of(dataset, "train"), documents_of(dataset, "val")
    assert sorted(train + val) == sorted(TEXTS)
    assert len(val) == 2  # 0.05 % of 2500, rounded up
    for split, documents in (("train", train), ("val", val)):
        assert dataset.splits[split].documents == len(documents)
        assert dataset.splits[split].bytes == sum(len(text.encode("utf-8")) for text in documents)
    encode = tokenizer_from_meta(dataset.tokenizer, dataset.folder).encode
    assert ids_of(dataset, "val").tolist() == [token for text in val for token in [*encode(text), 50256]]
    assert (dataset.vocab_size, dataset.dtype.name) == (50257, "uint16")

    before = {split: ids_of(dataset, split) for split in ("train", "val")}
    _, dataset = prepare("openwebtext", tmp_path, "--input", "docs.txt", "--num_proc", "2")
    for split, ids in before.items():  # neither the format nor the number of processes makes a difference
        assert np.array_equal(ids_of(dataset, split), ids)


@needs_gpt2
@pytest.mark.parametrize(
    "file, content, expected",
    [
        ("docs.jsonl", '{"txt": "a"}\n{"txt": "b"}\n', 'must be an object with a string named "text"'),
        ("docs.jsonl", '{"text": "a"}\n{"text": null}\n', 'must be an object with a string named "text"'),
        ("docs.jsonl", '{"text": "a"}\n{"text": ', "docs.jsonl, line 2 is not JSON"),
        ("docs.txt", "a single document\n", "1 document cannot be split"),
        ("docs.csv", "a,b\n", "the name of a file of texts ends in .txt, .jsonl, .json, .parquet"),
        ("missing.txt", None, "there is no file missing.txt"),
    ],
)
def test_openwebtext_input_that_cannot_be_used_is_one_line(tmp_path, file, content, expected):
    pytest.importorskip("datasets")
    if content is not None:
        (tmp_path / file).write_text(content)
    assert expected in refusal("openwebtext", tmp_path, "--input", file)


@needs_gpt2
def test_openwebtext_without_network_tells_of_input(tmp_path):
    pytest.importorskip("datasets")
    message = refusal("openwebtext", tmp_path, HF_HUB_OFFLINE="1")
    assert "cannot load Skylion007/openwebtext" in message
    assert message.endswith("give a local copy with --input FILE")


@needs_gpt2
def test_openwebtext_without_the_datasets_package_names_the_extra(tmp_path):
    program = f"import runpy, sys; sys.modules['datasets'] = None; runpy.run_path({str(script('openwebtext'))!r}, "
    done = call(["-c", program + "run_name='__main__')", "--out_dir", "out"], tmp_path)
    assert done.returncode == 2
    assert done.stderr == "error: this needs the datasets package: pip install -e '.[datasets]'\n"


# Tokenizers

KINDS = [
    {"kind": "bytes", "end_of_document": 0},
    {"kind": "characters", "end_of_document": None, "characters": "\n aäß東京𝄞"},
    pytest.param({"kind": "gpt2", "end_of_document": 50256}, marks=needs_gpt2),
]


@pytest.mark.parametrize("meta", KINDS, ids=lambda meta: meta["kind"])
@given(text=st.text(alphabet="\n aäß東京𝄞"))
def test_text_survives_encoding_whole_and_token_by_token(meta, text):
    tokenizer = tokenizer_from_meta(meta)
    ids = tokenizer.encode(text)
    assert all(0 <= token < tokenizer.vocab_size for token in ids)
    assert tokenizer.decode(ids) == text
    stream = codecs.getincrementaldecoder("utf-8")()
    assert "".join(stream.decode(tokenizer.decode_bytes([token])) for token in ids) == text


@pytest.mark.parametrize("meta", KINDS, ids=lambda meta: meta["kind"])
def test_id_beyond_the_vocabulary_is_refused(meta):
    tokenizer = tokenizer_from_meta(meta)
    for token in (-1, tokenizer.vocab_size):
        with pytest.raises(UserError, match=f"token id {token} lies outside .* vocabulary of {tokenizer.vocab_size}"):
            tokenizer.decode([0, token])


def test_half_a_character_decodes_to_a_replacement():
    assert tokenizer_from_meta(KINDS[0]).decode([97, 0xC3]) == "a\ufffd"


def test_unknown_character_is_named():
    with pytest.raises(UserError, match=r"the character 'é' \(U\+00E9\) is not among the 8 characters"):
        tokenizer_from_meta(KINDS[1]).encode("aé")


@pytest.mark.parametrize("meta", [{"kind": "words", "end_of_document": None}, {"kind": "bytes"}, {}])
def test_unknown_tokenizer_is_refused(meta):
    with pytest.raises(UserError, match="a tokenizer that this version does not know"):
        tokenizer_from_meta(meta)


@needs_gpt2
def test_special_text_is_not_a_special_token():
    tokenizer = tokenizer_from_meta({"kind": "gpt2", "end_of_document": 50256})
    assert 50256 not in tokenizer.encode("<|endoftext|>")
    assert tokenizer.decode([50256]) == "<|endoftext|>"


@needs_gpt2
def test_in_a_prompt_it_is():
    """As tiktoken has it with `allowed_special`; for a tokenizer without special tokens it is text."""
    tokenizer, plain = tokenizer_from_meta({"kind": "gpt2", "end_of_document": None}), BytesTokenizer(0)
    for text in ("<|endoftext|>", "one<|endoftext|> two<|endoftext|>", "<|endoftext|", "a | b"):
        theirs = tiktoken.get_encoding("gpt2").encode(text, allowed_special={"<|endoftext|>"})
        assert starting_tokens(tokenizer, text) == theirs
        assert starting_tokens(plain, text) == list(text.encode())
    assert starting_tokens(tokenizer, "<|endoftext|>") == [50256]


def test_gpt2_without_its_table_is_one_line(tmp_path):
    (tmp_path / "text.txt").write_text("To be, or not to be.\n" * 100)
    message = refusal("shakespeare", tmp_path, "--input", "text.txt", TIKTOKEN_CACHE_DIR=str(tmp_path / "empty"))
    assert "cannot fetch the token table of gpt2" in message and "TIKTOKEN_CACHE_DIR" in message


def test_gpt2_without_tiktoken_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "tiktoken", None)
    with pytest.raises(UserError, match="pip install tiktoken"):
        tokenizer_from_meta({"kind": "gpt2", "end_of_document": None}).encode("a")
