"""A corpus in parts: the same bytes however often it was killed and with however many processes, read as one split."""

import functools
import json
import os
import signal
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from hypothesis import given
from hypothesis import strategies as st
from kills import killed_after

from common.errors import UserError
from data import dataset, long_work, parts, writer
from data.corpora import Corpus, articles, column, gpt2_tokens, label, stream_parts
from data.dataset import TokenReader, UnusableData, open_dataset
from data.loader import WindowLoader
from data.parts import FilePart, prepare_parts
from data.tokenizers import choose
from data.writer import DatasetWriter

BYTE = choose("byte")
IN_PARTS = [path.parent.name for path in sorted(ROOT.glob("data/*/prepare.py")) if "CORPUS = " in path.read_text()]


CACHE = os.environ.get("TIKTOKEN_CACHE_DIR") or str(ROOT.parent / "shared/tiktoken_cache")
needs_gpt2 = pytest.mark.skipif(not Path(CACHE).is_dir(), reason="needs TIKTOKEN_CACHE_DIR with GPT-2's tokens")


def script(name: str, *arguments: str, cwd: Path) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, ROOT / name, *arguments], cwd=cwd, capture_output=True, text=True)


def corpus(folder: Path, files: int = 4, documents: int = 40) -> list[FilePart]:
    """Files of documents that all differ; the last file has none with text."""
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(0)
    for number in range(files):
        texts = [f"{number}.{one} " + "word " * int(rng.integers(1, 30)) for one in range(documents)]
        lines = [json.dumps({"text": text if number < files - 1 else " "}) for text in texts]
        (folder / f"{number}.jsonl").write_text("\n".join(lines) + "\n")
    return [FilePart(path, "text", "paragraphs") for path in sorted(folder.glob("*.jsonl"))]


def prepare(folder: Path, given: list[FilePart], processes: int = 1, share: float = 0.2) -> list[str]:
    said: list[str] = []
    prepare_parts(folder, given, BYTE, share, "a test", processes, said.append)
    return said


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if not path.name.startswith(".")}


def documents_of(found: dataset.Dataset, split: str) -> list[str]:
    reader = TokenReader(found.splits[split], found.dtype)
    return bytes(reader.read(0, found.splits[split].tokens).tolist()).decode().split("\0")[:-1]


def test_every_document_is_in_one_split_once_and_in_order(tmp_path):
    given = corpus(tmp_path / "texts")
    expected = [text for part in given for text in part.texts()]
    said = prepare(tmp_path / "out", given)
    found = open_dataset(tmp_path / "out")
    train, val = documents_of(found, "train"), documents_of(found, "val")
    assert sorted(train + val) == sorted(expected) and not set(train) & set(val)
    assert [text for text in expected if text in set(train)] == train
    assert 0.1 < len(val) / len(expected) < 0.3
    for split, texts in (("train", train), ("val", val)):
        assert found.splits[split].documents == len(texts)
        assert found.splits[split].bytes == sum(len(text.encode()) for text in texts)
        assert len(found.splits[split].shards) == 3  # of the file without text there is none
    assert said[-1].startswith("part 4 of 4: ") and "tok/s" in said[-1] and said[-1].endswith("0 s left")
    assert {path.name for path in (tmp_path / "out").iterdir() if path.name.startswith(".")} == {
        ".lock",
        ".verified.json",
    }


def test_the_number_of_processes_changes_nothing(tmp_path):
    given = corpus(tmp_path / "texts")
    prepare(tmp_path / "one", given)
    prepare(tmp_path / "two", given, processes=2)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


CHANGING = {
    Path: "replace unlink mkdir open", os: "unlink rmdir", parts._Shard: "append", parts: "sync", writer: "sync",
    long_work: "sync",
}  # fmt: skip


def test_killed_at_any_instant_and_started_again_it_leaves_the_same_bytes(tmp_path):
    given = corpus(tmp_path / "texts", files=3, documents=10)
    prepare(tmp_path / "whole", given)
    expected, steps = contents(tmp_path / "whole"), 0
    while True:
        steps += 1
        folder = tmp_path / f"killed_{steps}"
        work = functools.partial(prepare, folder, given)
        was_killed = killed_after(steps, work, CHANGING)
        if (folder / "meta.json").exists():
            open_dataset(folder)  # what looks finished is
        again = steps % 3 + 1  # killed again, soon after it went on
        if was_killed and killed_after(again, work, CHANGING):
            work()
        assert contents(folder) == expected, steps
        if not was_killed:
            break
    assert steps > 40


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGINT])
def test_several_processes_end_with_the_first_and_go_on_as_one(tmp_path, sent):
    """Killed after the first part is done: nothing keeps the pipe open, and what follows is the same bytes."""
    corpus(tmp_path / "texts", files=6, documents=3000)
    given = ["--input=texts", "--tokenizer=byte", "--val_fraction=0.2", "--num_proc=2"]
    command = [sys.executable, "-u", ROOT / "data/c4/prepare.py", *given, "--out_dir=out"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        assert "part 1 of 6" in running.stdout.readline()
        running.send_signal(sent)
        _, err = running.communicate(timeout=60)
    assert running.returncode == {signal.SIGKILL: -signal.SIGKILL, signal.SIGINT: 130}[sent], err
    assert not (tmp_path / "out/meta.json").exists()
    done = script("data/c4/prepare.py", *given, "--out_dir=out", cwd=tmp_path)
    assert done.returncode == 0 and "parts are done already" in done.stdout, done.stderr
    assert script("data/c4/prepare.py", *given, "--out_dir=whole", cwd=tmp_path).returncode == 0
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_a_reader_that_has_seen_enough_ends_it_without_a_word(tmp_path):
    corpus(tmp_path / "texts", documents=3000)
    given = ["--input=texts", "--tokenizer=byte", "--val_fraction=0.2", "--out_dir=out"]
    command = [sys.executable, "-u", ROOT / "data/c4/prepare.py", *given]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        assert "part 1 of 4" in running.stdout.readline()
        running.stdout.close()
        said = running.stderr.read()
    assert (running.returncode, said) == (1, "")
    done = script("data/c4/prepare.py", *given, cwd=tmp_path)
    assert done.returncode == 0 and "done already" in done.stdout, done.stderr


def test_what_was_done_is_not_done_again(tmp_path, monkeypatch):
    given = corpus(tmp_path / "texts")
    monkeypatch.setattr(parts, "_finish", lambda *_: 0)
    prepare(tmp_path / "out", given)
    monkeypatch.undo()
    monkeypatch.setattr(parts, "_prepare", lambda *_: pytest.fail("prepared again"))
    assert prepare(tmp_path / "out", given) == ["4 of 4 parts are done already"]


@pytest.mark.parametrize("change", ["another share", "another file", "a file that grew", "another tokenizer"])
def test_another_preparation_does_not_go_on_with_this_one(tmp_path, monkeypatch, change):
    given = corpus(tmp_path / "texts")
    monkeypatch.setattr(parts, "_finish", lambda *_: 0)
    prepare(tmp_path / "out", given)
    share, kept = 0.2, BYTE
    if change == "another share":
        share = 0.3
    elif change == "another file":
        given = given[1:]
    elif change == "a file that grew":
        with given[0].path.open("a") as file:
            file.write('{"text": "more"}\n')
    else:
        kept = BYTE.without_end()
    with pytest.raises(UserError, match=r"that was not ended: give the same command to go on, or remove .*\.parts"):
        prepare_parts(tmp_path / "out", given, kept, share, "a test", 1, print)


def test_the_dataset_before_stays_whole_until_the_new_one_is(tmp_path, monkeypatch):
    given = corpus(tmp_path / "texts")
    with DatasetWriter(tmp_path / "out", BYTE.entry, 256, "the one before") as writer:
        for split in ("train", "val"):
            writer.add(split, [65, 0], 1)
    monkeypatch.setattr(parts, "_finish", lambda *_: 0)
    prepare(tmp_path / "out", given)
    assert open_dataset(tmp_path / "out").source == "the one before"
    monkeypatch.undo()
    prepare(tmp_path / "out", given)
    assert open_dataset(tmp_path / "out").source == "a test"
    assert not (tmp_path / "out/train.bin").exists()
    with DatasetWriter(tmp_path / "out", BYTE.entry, 256, "the one after") as writer:
        for split in ("train", "val"):
            writer.add(split, [65, 0], 1)
    assert sorted(path.name for path in (tmp_path / "out").glob("*.bin")) == ["train.bin", "val.bin"]


def test_an_empty_split_is_one_line(tmp_path):
    with pytest.raises(UserError, match=r"the val split of .* would be empty: give more text"):
        prepare(tmp_path / "out", corpus(tmp_path / "texts", files=2, documents=3), share=1e-9)


def test_a_part_that_cannot_be_read_is_one_line_from_every_process(tmp_path):
    given = corpus(tmp_path / "texts")
    given[1].path.write_text('{"text": ')
    for processes in (1, 2):
        with pytest.raises(UserError, match=r"1\.jsonl, line 1 is not JSON"):
            prepare(tmp_path / f"out{processes}", given, processes)
        assert not (tmp_path / f"out{processes}/meta.json").exists()


def test_memory_does_not_grow_with_the_corpus(tmp_path):
    def most(documents: int) -> int:
        given = corpus(tmp_path / f"texts{documents}", files=2, documents=documents)
        tracemalloc.start()
        prepare(tmp_path / f"out{documents}", given)
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    assert most(60_000) < 1.3 * most(30_000)


# ---------------------------------------------------------------------------------------------------------------------
# Shards as one split


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """The same tokens in shards and in one file."""
    folder = tmp_path_factory.mktemp("both")
    prepare(folder / "shards", corpus(folder / "texts"))
    found = open_dataset(folder / "shards")
    with DatasetWriter(folder / "one", BYTE.entry, 256, "a test") as writer:
        for name, split in found.splits.items():
            ids = np.concatenate([np.fromfile(shard.path, found.dtype) for shard in split.shards])
            writer.add(name, ids, split.bytes, split.documents)
    return found, open_dataset(folder / "one")


@given(place=st.floats(0, 1), count=st.integers(1, 4000))
def test_tokens_are_read_across_shards(both, place, count):
    shards, one = (TokenReader(found.splits["train"], found.dtype) for found in both)
    first = int(place * (both[0].splits["train"].tokens - 1))
    count = min(count, both[0].splits["train"].tokens - first)
    assert np.array_equal(shards.read(first, count), one.read(first, count))


@pytest.mark.parametrize("block_size", [1, 7, 64, 1000])
def test_batches_of_shards_are_those_of_one_file(both, block_size):
    loaders = [WindowLoader(found, "train", block_size, seed=3, tells_documents=True) for found in both]
    for first in range(0, 40, 8):
        one, other = (loader.batch(first, 8) for loader in loaders)
        assert one.tokens.equal(other.tokens) and one.targets.equal(other.targets)
        assert one.documents.equal(other.documents)
    assert both[0].document_lengths("train", 64) == both[1].document_lengths("train", 64)


def test_damaged_shards_are_named(tmp_path):
    prepare(tmp_path / "out", corpus(tmp_path / "texts"))
    found = open_dataset(tmp_path / "out")
    loader = WindowLoader(found, "train", 16, 0)
    shard = found.splits["train"].shards[1].path
    content = bytearray(shard.read_bytes())
    content[5] ^= 1
    shard.write_bytes(content)
    with pytest.raises(UserError, match=r"train-00001\.bin is damaged: its checksum"):
        open_dataset(tmp_path / "out")
    with pytest.raises(UnusableData, match=r"train-00001\.bin was changed while the run read it"):
        loader.batch(0, 1)
    os.truncate(shard, 10)
    with pytest.raises(UserError, match=r"train-00001\.bin has 10 bytes, but meta.json says"):
        open_dataset(tmp_path / "out")


# ---------------------------------------------------------------------------------------------------------------------
# Corpora


def streamed(folder: Path) -> Corpus:
    """A corpus of the hub, as a local folder has one."""
    pytest.importorskip("datasets")
    corpus(folder)
    return Corpus(str(folder), None, column)


def test_a_stream_is_prepared_file_by_file(tmp_path):
    of_stream = stream_parts(streamed(tmp_path / "texts"))
    local = [FilePart(path, "text", "paragraphs") for path in sorted((tmp_path / "texts").iterdir())]
    assert len(of_stream) == len(local) == 4
    assert [list(part.texts()) for part in of_stream] == [list(part.texts()) for part in local]
    prepare(tmp_path / "streamed", of_stream, processes=2)
    prepare(tmp_path / "local", local)
    assert contents(tmp_path / "streamed") == contents(tmp_path / "local")


def test_a_corpus_that_is_whole_is_one_part(tmp_path):
    found = streamed(tmp_path / "texts")
    (part,) = stream_parts(Corpus(found.path, None, column, whole=True))
    assert list(part.texts()) == [text for one in stream_parts(found) for text in one.texts()]


def test_articles_begin_with_their_titles():
    first = [" = One = \n", "\n", " text = of = one \n", " = = Part = = \n", "more\n"]
    second = [" = Two of = them = \n", "end\n"]
    assert list(articles([{"text": line} for line in ["", *first, *second]])) == ["", "".join(first), "".join(second)]


@needs_gpt2
def test_published_tokens_become_text_again(monkeypatch):
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", CACHE)
    encode = choose("tiktoken:gpt2").tokenizer.encode
    texts = ["one text", "Grüße, 漢字"]
    assert list(gpt2_tokens([{"tokens": [*encode(text), 50256]} for text in texts])) == texts


@pytest.mark.parametrize(
    "tokenizer, expected",
    [("tiktoken:cl100k_base", "cl100k_base"), ("llama3:somewhere/tokenizer.model", "llama3"), ("byte", "byte"),
     ("mine/words_8k", "words_8k"), ("mine/words_8k/", "words_8k"), ("other.json", "other")],
)  # fmt: skip
def test_a_dataset_is_called_by_its_corpus_and_its_tokenizer(tokenizer, expected):
    assert label(tokenizer) == expected


@pytest.mark.parametrize("name", IN_PARTS)
def test_every_corpus_is_prepared_from_local_files(name, tmp_path):
    corpus(tmp_path / "texts")
    given = ["--input=texts", "--out_dir=out", "--tokenizer=byte", "--val_fraction=0.2", "--num_proc=1"]
    done = script(f"data/{name}/prepare.py", *given, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "part 4 of 4: " in done.stdout and "validation begins: '0." in done.stdout
    assert "left out: 40 documents without text" in done.stdout
    assert sum(split.documents for split in open_dataset(tmp_path / "out").splits.values()) == 120


def test_a_dataset_that_is_not_prepared_names_its_corpus(tmp_path):
    (tmp_path / "slimpajama_627b_llama3").mkdir()
    with pytest.raises(
        UserError, match=r"python data/slimpajama_627b/prepare\.py --out_dir .* and the --tokenizer that"
    ):
        open_dataset(tmp_path / "slimpajama_627b_llama3")


@pytest.mark.parametrize(
    "given, expected",
    [
        (["--tokenizer=char"], "data/openwebtext/prepare.py has it"),
        (["--input=none", "--tokenizer=byte"], "there is no file none"),
        (["--tokenizer=none"], "there is no tokenizer none"),
        (["--val_tokens=5"], "unrecognized arguments: --val_tokens=5"),
    ],
)
def test_a_corpus_that_cannot_be_prepared_is_one_line(tmp_path, given, expected):
    done = script("data/c4/prepare.py", "--out_dir=out", *given, cwd=tmp_path)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1) and expected in done.stderr


def test_a_hub_that_cannot_be_reached_is_one_line(tmp_path, monkeypatch):
    pytest.importorskip("datasets")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    done = script("data/c4/prepare.py", "--out_dir=out", "--tokenizer=byte", cwd=tmp_path)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "cannot load allenai/c4 (" in done.stderr and done.stderr.endswith("give a local copy with --input\n")
