"""Input that cannot be used, and disks that fill: one line from each command that reads texts, and nothing that looks
finished."""

import functools
import gzip
import json
import random
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

from common.errors import UserError
from data.documents import Documents
from data.parts import FilePart, prepare_parts
from data.tokenizers import choose

ROWS = "".join(json.dumps({"text": f"text {number} " + "word " * 50}) + "\n" for number in range(200)).encode()
ENCRYPTED = random.Random(0).randbytes(5000)  # looks like noise, as what is encrypted does


def zst(content: bytes) -> bytes:
    return pytest.importorskip("zstandard").ZstdCompressor().compress(content)


def parquet(content: bytes) -> bytes:
    pyarrow, file = pytest.importorskip("pyarrow"), pytest.importorskip("io").BytesIO()
    texts = [json.loads(line)["text"] for line in content.splitlines()]
    pytest.importorskip("pyarrow.parquet").write_table(pyarrow.table({"text": texts}), file)
    return file.getvalue()


def half(content: bytes) -> bytes:
    return content[: len(content) // 2]


BAD = {
    "truncated.jsonl": (lambda: ROWS[:-20], "truncated.jsonl, line 200 is not JSON"),
    "truncated.json": (lambda: b"[" + b",".join(ROWS.splitlines()), "its array has no end"),
    "truncated.jsonl.gz": (lambda: half(gzip.compress(ROWS)), "it is damaged or was not copied to its end"),
    "truncated.jsonl.zst": (lambda: half(zst(ROWS)), "Truncated compressed stream"),
    "truncated.parquet": (lambda: half(parquet(ROWS)), "cannot read .*truncated.parquet"),
    "damaged.parquet": (lambda: (whole := parquet(ROWS))[:30] + bytes(40) + whole[70:], "cannot read .*damaged"),
    "mixed.jsonl": (lambda: ROWS + b'["a list"]\n', 'line 201 must be an object with a string named "text"'),
    "packed.jsonl": (lambda: gzip.compress(ROWS), "is not UTF-8 text: byte 1, in line 1"),
    "parquet.jsonl": (lambda: parquet(ROWS), "is not UTF-8 text|is not JSON"),
    "encrypted.txt": (lambda: ENCRYPTED, "is not UTF-8 text: byte 0"),
    "encrypted.jsonl": (lambda: ENCRYPTED, "is not UTF-8 text: byte 0"),
    "encrypted.json": (lambda: ENCRYPTED, "is not UTF-8 text: byte 0"),
    "encrypted.parquet": (lambda: ENCRYPTED, "cannot read .*encrypted.parquet"),
    "encrypted.txt.gz": (lambda: ENCRYPTED, "it is damaged or was not copied to its end"),
    "encrypted.txt.zst": (lambda: ENCRYPTED, "cannot read .*encrypted.txt.zst"),
}  # fmt: skip


@pytest.fixture(params=BAD)
def shards(request, tmp_path) -> tuple[list[FilePart], str]:
    """A good shard and a bad one, and what is said of that."""
    make, message = BAD[request.param]
    (tmp_path / "a.jsonl").write_bytes(ROWS)
    (tmp_path / request.param).write_bytes(make())
    paths = [tmp_path / "a.jsonl", tmp_path / request.param]
    return [FilePart(path, "text", "paragraphs") for path in paths], message


def one_line(error: UserError) -> bool:
    return "\n" not in str(error)


def test_a_bad_shard_ends_a_preparation(shards, tmp_path):
    parts, message = shards
    with pytest.raises(UserError, match=message) as raised:
        prepare_parts(tmp_path / "out", parts, choose("byte"), 0.3, "a test", 1, lambda _: None)
    assert one_line(raised.value) and not (tmp_path / "out/meta.json").exists()
    assert not list((tmp_path / "out").glob("*.bin"))


def test_a_bad_shard_ends_a_curation(shards, tmp_path):
    pytest.importorskip("datatrove")
    from test_curation import BARE

    from data.curation.recipe import Needs
    from data.curation.run import curate
    from data.curation.stages import Plan

    parts, message = shards
    with pytest.raises(UserError, match=message) as raised:
        curate(Plan(tmp_path / "out", tuple(parts), BARE, Needs()), 1, lambda _: None)
    assert one_line(raised.value)
    assert {path.name for path in (tmp_path / "out").iterdir()} <= {".curation", ".lock"}


def test_a_shard_that_may_not_be_read_is_named(tmp_path):
    """A folder of that name is no file to anybody, root included."""
    (tmp_path / "a.jsonl").mkdir()
    with pytest.raises(UserError, match=r"cannot read .*a\.jsonl: Is a directory"):
        list(Documents([tmp_path / "a.jsonl"]))


# ---------------------------------------------------------------------------------------------------------------------
# A disk that fills: no file may grow beyond so many bytes, which the system refuses as it does when none are left


def call(folder: Path, most: int, *arguments: str) -> subprocess.CompletedProcess:
    limit = functools.partial(resource.setrlimit, resource.RLIMIT_FSIZE, (most, most))
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=folder, preexec_fn=limit, capture_output=True, text=True)


@pytest.mark.parametrize("most", [0, 100, 20_000])
@pytest.mark.parametrize("name", ["c4", "openwebtext"])
def test_a_full_disk_ends_a_preparation(tmp_path, name, most):
    (tmp_path / "a.jsonl").write_bytes(ROWS)
    script = str(ROOT / f"data/{name}/prepare.py")
    given = ["--input=a.jsonl", "--tokenizer=byte", "--val_fraction=0.3", "--num_proc=1", "--out_dir=out"]
    done = call(tmp_path, most, script, *given)
    assert done.returncode == 2 and done.stderr.splitlines()[-1].startswith("error: cannot write to out"), done.stderr
    assert "Traceback" not in done.stderr and not (tmp_path / "out/meta.json").exists()
    assert call(tmp_path, 1 << 30, script, *given).returncode == 0  # once there is room


@pytest.mark.parametrize("most", [0, 50, 700, 2000])
def test_a_full_disk_ends_a_curation(tmp_path, most):
    pytest.importorskip("datatrove")
    from test_curation import small_plan

    from data.curation.filters import identifier
    from data.curation.run import curate

    plan = small_plan(tmp_path / "texts")
    identifier()  # which is unpacked in the temporary folder
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, before[1]))
    try:
        with pytest.raises(UserError, match=r"cannot write to .*out") as raised:
            curate(plan, 1, lambda _: None)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert one_line(raised.value) and not (plan.output_dir / "manifest.json").exists()
    curate(plan, 1, lambda _: None)
    assert (plan.output_dir / "manifest.json").exists()


def test_a_full_temporary_folder_is_named(tmp_path):
    pytest.importorskip("datatrove")
    (tmp_path / "a.jsonl").write_bytes(ROWS)
    done = call(tmp_path, 2000, str(ROOT / "data/curate.py"), "--input=a.jsonl", "--output_dir=out", "--workers=1")
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert "cannot unpack py3langid's model in " in done.stderr and not (tmp_path / "out").exists()
