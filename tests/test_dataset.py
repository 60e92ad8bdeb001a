"""A prepared dataset: what the writer leaves on the disk, and what the reader refuses."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import tracemalloc
import zlib
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import UserError
from data.dataset import open_dataset
from data.writer import DatasetWriter

REPOSITORY = Path(__file__).resolve().parent.parent
BYTES = {"kind": "bytes", "end_of_document": 0}
PLAIN = {"kind": "bytes", "end_of_document": None}


def write_dataset(folder, train, val, vocab_size=256):
    with DatasetWriter(folder, PLAIN, vocab_size, source="a test") as writer:
        writer.add("train", train, text_bytes=len(train))
        writer.add("val", val, text_bytes=len(val))


@pytest.fixture
def folder(tmp_path):
    """A small good dataset, opened once, so that the reader has noted its files as verified."""
    folder = tmp_path / "python_stdlib"
    write_dataset(folder, np.arange(1000) % 200, np.arange(300) % 200)
    open_dataset(folder)
    return folder


def edit_meta(folder, change):
    path = folder / "meta.json"
    meta = json.loads(path.read_text())
    change(meta)
    path.write_text(json.dumps(meta))


def flip_byte(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def flip_byte_secretly(path):
    """Damage that neither the size nor the modification time shows."""
    before = path.stat()
    flip_byte(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


# Writing


documents = st.lists(st.lists(st.integers(0, 69_999), max_size=20), min_size=1, max_size=10)


@settings(max_examples=30)
@given(train=documents, val=documents, vocab_size=st.sampled_from([70_000, 1 << 16]))
def test_files_hold_the_documents_and_meta_describes_them(train, val, vocab_size):
    train, val = ([[token % vocab_size for token in ids] + [0] for ids in part] for part in (train, val))
    with tempfile.TemporaryDirectory() as folder:
        with DatasetWriter(folder, BYTES, vocab_size, source="a test") as writer:
            for ids in train:
                writer.add("train", ids, text_bytes=3 * len(ids))
            writer.add("val", val[0][:-1], text_bytes=5, documents=0)  # a document in two pieces
            writer.add("val", np.concatenate([val[0][-1:], *val[1:]]), text_bytes=6, documents=len(val))
        dataset = open_dataset(folder)
        meta = json.loads(Path(folder, "meta.json").read_text())
        for name, expected in (("train", [*chain(*train)]), ("val", [*chain(*val)])):
            content = Path(folder, f"{name}.bin").read_bytes()
            assert np.frombuffer(content, "<u4" if vocab_size == 70_000 else "<u2").tolist() == expected
            assert dataset.splits[name].tokens == len(expected)
            assert meta["splits"][name]["checksum"] == f"crc32:{zlib.crc32(content):08x}"
    assert (dataset.splits["train"].documents, dataset.splits["val"].documents) == (len(train), len(val))
    assert dataset.splits["train"].bytes_per_token == 3.0
    assert dataset.splits["val"].bytes == 11
    assert (dataset.vocab_size, dataset.tokenizer, dataset.source) == (vocab_size, BYTES, "a test")
    assert meta["dtype"] == dataset.dtype.name == ("uint32" if vocab_size == 70_000 else "uint16")


def test_writer_needs_constant_memory(tmp_path):
    piece = np.full(100_000, 7)
    tracemalloc.start()
    with DatasetWriter(tmp_path, PLAIN, 256, source="a test") as writer:
        for _ in range(100):
            writer.add("train", piece, text_bytes=100_000)
        writer.add("val", piece, text_bytes=100_000)
        peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (tmp_path / "train.bin").stat().st_size == 20_000_000
    assert peak < 5_000_000


@pytest.mark.parametrize("token", [256, -1, 70_000])
def test_id_outside_the_vocabulary_is_refused_and_leaves_nothing(tmp_path, token):
    with (
        pytest.raises(UserError, match=f"token id {token} lies outside the vocabulary of 256"),
        DatasetWriter(tmp_path, PLAIN, 256, source="a test") as writer,
    ):
        writer.add("train", [1, 2, 3], text_bytes=3)
        writer.add("val", [1, token], text_bytes=2)
    assert not list(tmp_path.iterdir())


def test_every_document_ends_with_the_end_of_document_id(tmp_path):
    with pytest.raises(ValueError, match="end_of_document"), DatasetWriter(tmp_path, BYTES, 256, "a test") as writer:
        writer.add("train", [1, 2, 3], text_bytes=3)


def test_a_dataset_without_validation_text_is_not_written(tmp_path):
    with (
        pytest.raises(UserError, match=r"the val split of .* would be empty"),
        DatasetWriter(tmp_path, PLAIN, 256, source="a test") as writer,
    ):
        writer.add("train", [1, 2, 3], text_bytes=3)
    assert not list(tmp_path.iterdir())


def test_old_dataset_survives_a_preparation_that_fails(folder):
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(KeyboardInterrupt), DatasetWriter(folder, PLAIN, 256, source="a test") as writer:
        writer.add("train", [5] * 100_000, text_bytes=1)
        raise KeyboardInterrupt
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_only_one_process_prepares_a_folder(tmp_path):
    with DatasetWriter(tmp_path, PLAIN, 256, source="a test") as writer:
        with (
            pytest.raises(UserError, match="another process is preparing"),
            DatasetWriter(tmp_path, PLAIN, 256, source="a test"),
        ):
            pass
        writer.add("train", [1, 2], text_bytes=2)
        writer.add("val", [1, 2], text_bytes=2)
    assert open_dataset(tmp_path).splits["train"].tokens == 2


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot write to"), DatasetWriter(tmp_path / "file", PLAIN, 256, "a test"):
        pass


WRITE_AND_DIE = """
import os, signal, sys
from data.writer import DatasetWriter

remaining = int(sys.argv[2])

def deadly(call):
    def counted(*arguments, **options):
        global remaining
        remaining -= 1
        if remaining < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return call(*arguments, **options)
    return counted

for name in ("replace", "rename", "unlink", "fsync"):
    setattr(os, name, deadly(getattr(os, name)))
with DatasetWriter(sys.argv[1], {"kind": "bytes", "end_of_document": None}, 256, "the new one") as writer:
    writer.add("train", [2] * 1000, text_bytes=1000)
    writer.add("val", [2] * 300, text_bytes=300)
"""


def test_kill_before_any_change_of_the_disk_leaves_the_old_dataset_or_none_or_the_new_one(folder, tmp_path):
    outcomes = []
    for survived_calls in range(100):
        victim = tmp_path / f"victim{survived_calls}"
        shutil.copytree(folder, victim)
        command = [sys.executable, "-c", WRITE_AND_DIE, str(victim), str(survived_calls)]
        status = subprocess.run(command, cwd=REPOSITORY, timeout=60).returncode
        try:
            dataset = open_dataset(victim)
        except UserError as error:
            assert "has no meta.json" in str(error)
            outcomes.append("none")
        else:
            first = {
                name: np.fromfile(split.shards[0].path, dataset.dtype)[1] for name, split in dataset.splits.items()
            }
            assert first == ({"train": 1, "val": 1} if dataset.source == "a test" else {"train": 2, "val": 2})
            outcomes.append(dataset.source)
        if status == 0:
            break
        assert status == -signal.SIGKILL
        write_dataset(victim, [3] * 100, [3] * 50)  # the next preparation is not disturbed by what was left
        assert open_dataset(victim).splits["train"].tokens == 100
        assert not list(victim.glob(".*.partial"))
    assert list(dict.fromkeys(outcomes)) == ["a test", "none", "the new one"]  # in this order, each at least once


# Reading


def remove_key(meta):
    del meta["splits"]["val"]["bytes"]


DAMAGES = {
    "no folder": (lambda folder: shutil.rmtree(folder), "there is no dataset folder"),
    "no meta.json": (lambda folder: (folder / "meta.json").unlink(), "no meta.json, so it is not prepared"),
    "no val.bin": (lambda folder: (folder / "val.bin").unlink(), "val.bin: No such file"),
    "truncated": (lambda folder: os.truncate(folder / "train.bin", 1998), "1998 bytes, but .* 1000 tokens of uint16"),
    "odd length": (lambda folder: os.truncate(folder / "train.bin", 1999), "1999 bytes"),
    "too long": (lambda folder: os.truncate(folder / "val.bin", 602), "602 bytes, but .* 300 tokens"),
    "a flipped bit": (lambda folder: flip_byte(folder / "val.bin"), "damaged: its checksum is crc32:"),
    "other dtype": (lambda folder: edit_meta(folder, lambda meta: meta.update(dtype="uint32")), "says dtype uint32"),
    "no dtype": (lambda folder: edit_meta(folder, lambda meta: meta.update(dtype="fp7")), "meta.json is damaged"),
    "format": (
        lambda folder: edit_meta(folder, lambda meta: meta.update(format=4)),
        "has format 4, this .* reads 1, 2 and 3",
    ),
    "not JSON": (lambda folder: (folder / "meta.json").write_text("{"), "meta.json is damaged"),
    "a list": (lambda folder: (folder / "meta.json").write_text("[]"), "meta.json is damaged"),
    "a missing key": (lambda folder: edit_meta(folder, remove_key), "meta.json is damaged .KeyError: 'bytes'"),
    "a wrong type": (lambda folder: edit_meta(folder, lambda meta: meta.update(vocab_size="256")), "is damaged"),
    "small vocabulary": (
        lambda folder: edit_meta(folder, lambda meta: meta.update(vocab_size=150)),
        "token id 199, outside the vocabulary of 150",
    ),
    "an empty split": (
        lambda folder: edit_meta(folder, lambda meta: meta["splits"]["val"].update(tokens=0)),
        "the val split of .* is empty",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_refused_in_one_line_that_names_the_command(folder, damage):
    inflict, message = DAMAGES[damage]
    inflict(folder)
    with pytest.raises(UserError, match=message) as refused:
        open_dataset(folder)
    assert "\n" not in str(refused.value)
    assert f"prepare it with: python data/python_stdlib/prepare.py --out_dir {folder}" in str(refused.value)


def test_files_are_read_once_until_they_change(folder):
    flip_byte_secretly(folder / "train.bin")
    open_dataset(folder)  # size and time are as they were when verified: not read again
    (folder / ".verified.json").unlink()
    with pytest.raises(UserError, match=r"train.bin is damaged"):
        open_dataset(folder)


def test_a_damaged_note_of_verified_files_is_not_believed(folder):
    flip_byte_secretly(folder / "train.bin")
    for note in ("", "[]", '{"train": 1}'):
        (folder / ".verified.json").write_text(note)
        with pytest.raises(UserError, match=r"train.bin is damaged"):
            open_dataset(folder)


def test_a_folder_that_takes_no_note_is_verified_every_time(folder):
    (folder / ".verified.json").unlink()
    (folder / ".verified.json").mkdir()  # stands in the way, also of root, whom permissions do not stop
    open_dataset(folder)
    flip_byte_secretly(folder / "train.bin")
    with pytest.raises(UserError, match=r"train.bin is damaged"):
        open_dataset(folder)
    assert not list(folder.glob(".*.partial"))


def test_without_verify_only_the_contents_go_unchecked(folder):
    flip_byte(folder / "train.bin")
    assert open_dataset(folder, verify=False).splits["train"].tokens == 1000
    os.truncate(folder / "train.bin", 100)
    with pytest.raises(UserError, match="100 bytes"):
        open_dataset(folder, verify=False)


def test_the_command_that_prepares_is_named():
    script_name = "python data/shakespeare_char/prepare.py"
    with pytest.raises(UserError, match=f"{script_name} --out_dir /no/such/shakespeare_char$"):
        open_dataset("/no/such/shakespeare_char")
    with pytest.raises(UserError, match=r"prepare one of .*: .*python_stdlib.* .did you mean 'shakespeare_char'"):
        open_dataset("/no/such/shakespear_char")


def test_the_command_has_no_out_dir_in_the_repository(tmp_path, monkeypatch):
    monkeypatch.setattr("data.dataset.DATA_FOLDER", tmp_path)
    (tmp_path / "poems").mkdir()
    (tmp_path / "poems" / "prepare.py").touch()
    with pytest.raises(UserError, match=r"prepare it with: python data/poems/prepare.py$"):
        open_dataset(tmp_path / "poems")


def test_model_and_data_must_fit(folder):
    dataset = open_dataset(folder)
    dataset.check_fits(block_size=299, vocab_size=256)
    dataset.check_fits(block_size=16, vocab_size=50304)
    with pytest.raises(UserError, match=r"block_size 300 needs 301 tokens, but the val split .* at most 299"):
        dataset.check_fits(block_size=300, vocab_size=256)
    with pytest.raises(UserError, match="vocabulary of 256, but the model's is 255"):
        dataset.check_fits(block_size=16, vocab_size=255)


def test_opening_a_dataset_imports_no_torch():
    program = "import sys, data.dataset; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, timeout=60).returncode == 0
