"""A corpus of any size, part by part, on several processes: tokens in shards, in memory that does not grow with it.

    <dataset>/.parts/
        manifest.json              what is prepared: tokenizer, parts, share for validation
        train-00012.bin, val-...   the tokens of part 12
        00012.json                 what they are, written last: that part is done

A part is a file of the corpus, its documents in order. Killed at any instant and started again, the same command goes
on with the parts that are not done; the bytes that it leaves depend neither on that nor on the number of processes.
Whether a document is for validation is a draw of its own, from its number and its part's.
"""

import concurrent.futures
import dataclasses
import json
import shutil
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np

from common.errors import UserError
from common.files import aside, replace_file, sync, writing_to
from common.locks import left_as_it_was, lock
from data.dataset import FORMAT_OF_SHARDS, SPLITS, checksum_text, dtype_for
from data.documents import Documents
from data.long_work import begin_or_go_on
from data.preparation import SEED, batches, encode_batch, encoding_processes, kept_of_this_process
from data.tokenizers import Kept
from data.writer import put_in_place


class Part(Protocol):
    """Documents, always the same ones in the same order, that one process prepares."""

    @property
    def identity(self) -> list[Any]:
        """What tells it from another and from itself after a change, as JSON has it."""

    def texts(self) -> "Texts":
        """Those with text. Iterating raises UserError."""


class PartOfFile(Part, Protocol):
    """One that says which file it is, or is of."""

    @property
    def path(self) -> Path: ...


class Texts(Protocol):
    """Documents, and after an iteration how many were left out as they have no text."""

    empty: int

    def __iter__(self) -> Iterator[str]: ...


@dataclasses.dataclass(frozen=True)
class FilePart:
    """A local file."""

    path: Path
    text_key: str
    split_by: str

    @property
    def identity(self) -> list[Any]:
        found = self.path.stat()
        return [str(self.path), found.st_size, found.st_mtime_ns, self.text_key, self.split_by]

    def texts(self) -> Documents:
        return Documents([self.path], self.text_key, self.split_by)


@dataclasses.dataclass(frozen=True)
class Job:
    """What every process knows."""

    folder: Path  # .parts
    parts: tuple[Part, ...]
    kept: Kept
    share: float  # of the documents, for validation

    def record(self, number: int) -> Path:
        return self.folder / f"{number:05d}.json"

    def shard(self, split: str, number: int) -> Path:
        return self.folder / f"{split}-{number:05d}.bin"


def prepare_parts(
    folder: Path, parts: Sequence[Part], kept: Kept, share: float, source: str, processes: int,
    say: Callable[[str], None] = print,
) -> int:  # fmt: skip
    """Prepares the dataset in `folder`; returns how many documents without text were left out. Raises UserError, also
    where `folder` has another preparation that was not ended, and where no document, or every one, was drawn for
    validation."""
    job = Job(folder / ".parts", tuple(parts), kept, share)
    with ExitStack() as opened, writing_to(folder):
        opened.enter_context(left_as_it_was(folder))
        if (held := lock(folder)) is None:
            raise UserError(f"another process is preparing {folder}: wait until it has finished")
        opened.enter_context(held)
        _begin(job, source)
        left = [number for number in range(len(parts)) if not job.record(number).exists()]
        if len(left) < len(parts):
            say(f"{len(parts) - len(left):,} of {len(parts):,} parts are done already")
        _prepare_all(job, left, processes, say)
        return _finish(folder, job, source)


def _begin(job: Job, source: str) -> None:
    """The manifest, or the same one that is there."""
    manifest = {"source": source, "tokenizer": job.kept.entry, "share": job.share, "seed": SEED}
    manifest["parts"] = [part.identity for part in job.parts]
    begin_or_go_on(
        job.folder / "manifest.json",
        json.dumps(manifest, indent=1) + "\n",
        f"{job.folder.parent} has a preparation of other texts, or with another tokenizer or share, that was not "
        f"ended: give the same command to go on, or remove {job.folder} to begin anew",
    )
    for leftover in job.folder.glob(".*.partial"):
        leftover.unlink(missing_ok=True)


def _prepare_all(job: Job, left: list[int], processes: int, say: Callable[[str], None]) -> None:
    if processes == 1:
        progress = _Progress(len(left), say)
        for number in left:
            progress.add(prepare_part(job, number))
        return
    with encoding_processes(processes, job.kept) as pool:
        progress = _Progress(len(left), say)
        running = [pool.submit(_prepare_in_process, job.folder, job.parts[one], job.share, one) for one in left]
        for done in concurrent.futures.as_completed(running):
            progress.add(done.result())


class _Progress:
    """Says tokens a second and the time left, from the parts that this process has seen done."""

    def __init__(self, parts: int, say: Callable[[str], None]):
        self.parts, self.say = parts, say
        self.done = self.tokens = 0
        self.began = time.monotonic()

    def add(self, record: dict[str, Any]) -> None:
        self.done += 1
        self.tokens += sum(record[split]["tokens"] for split in SPLITS)
        seconds = time.monotonic() - self.began
        left = seconds / self.done * (self.parts - self.done)
        speed = self.tokens / max(seconds, 1e-9)
        self.say(
            f"part {self.done:,} of {self.parts:,}: {self.tokens:,} tokens, {speed:,.0f} tok/s, {left:,.0f} s left"
        )


# ---------------------------------------------------------------------------------------------------------------------
# A part


def _prepare_in_process(folder: Path, part: Part, share: float, number: int) -> dict[str, Any]:
    return _prepare(Job(folder, (part,), kept_of_this_process(), share), part, number)


def prepare_part(job: Job, number: int) -> dict[str, Any]:
    """Writes the shards of a part and then its record, which it returns."""
    return _prepare(job, job.parts[number], number)


def _prepare(job: Job, part: Part, number: int) -> dict[str, Any]:
    draws = np.random.default_rng([SEED, number])
    dtype = dtype_for(job.kept.tokenizer.vocab_size)
    with writing_to(job.folder), ExitStack() as opened:
        shards = {split: opened.enter_context(_Shard(job.shard(split, number))) for split in SPLITS}
        documents = part.texts()
        for texts in batches(documents):
            ids, lengths, text_bytes = encode_batch(texts, job.kept.tokenizer)
            is_val = draws.random(len(texts)) < job.share
            for split, chosen in (("train", ~is_val), ("val", is_val)):
                own = ids[np.repeat(chosen, lengths)].astype(dtype)
                shards[split].append(own, int(text_bytes[chosen].sum()), int(chosen.sum()))
        record = {"empty": documents.empty} | {split: shard.end() for split, shard in shards.items()}
        replace_file(job.record(number), (json.dumps(record) + "\n").encode(), on_disk=True)
        sync(job.folder)
    return record


class _Shard:
    """The tokens of a part's split while they are written, aside."""

    def __init__(self, path: Path):
        self.path, self.aside = path, aside(path)
        self.counts = {"tokens": 0, "bytes": 0, "documents": 0}
        self.crc = 0

    def __enter__(self) -> "_Shard":
        self.file: BinaryIO = self.aside.open("wb", buffering=1 << 20)
        return self

    def append(self, ids: np.ndarray, text_bytes: int, documents: int) -> None:
        content = ids.tobytes()
        self.file.write(content)
        self.crc = zlib.crc32(content, self.crc)
        for name, more in (("tokens", len(ids)), ("bytes", text_bytes), ("documents", documents)):
            self.counts[name] += more

    def end(self) -> dict[str, Any]:
        """Gives the file its name. One without tokens is none."""
        self.file.close()
        if self.counts["tokens"]:
            sync(self.aside)
            self.aside.replace(self.path)
        return {"file": self.path.name, **self.counts, "checksum": checksum_text(self.crc)}

    def __exit__(self, *_: object) -> None:
        self.aside.unlink(missing_ok=True)
        self.file.close()


# ---------------------------------------------------------------------------------------------------------------------
# The whole


def _finish(folder: Path, job: Job, source: str) -> int:
    records = [json.loads(job.record(number).read_text(encoding="utf-8")) for number in range(len(job.parts))]
    splits = {split: _split([record[split] for record in records]) for split in SPLITS}
    for name, split in splits.items():
        if not split["tokens"]:
            raise UserError(f"the {name} split of {folder} would be empty: give more text, or another --val_fraction")
    vocab_size = job.kept.tokenizer.vocab_size
    meta = {
        "format": FORMAT_OF_SHARDS,
        "source": source,
        "tokenizer": job.kept.entry,
        "vocab_size": vocab_size,
        "dtype": dtype_for(vocab_size).name,
        "splits": splits,
    }
    written = [job.folder / shard["file"] for split in splits.values() for shard in split["shards"]]
    put_in_place(folder, written, meta, job.kept.content)
    (job.folder / "manifest.json").unlink()  # without which the rest is nothing
    sync(job.folder)
    shutil.rmtree(job.folder)
    return sum(record["empty"] for record in records)


def _split(records: list[dict[str, Any]]) -> dict[str, Any]:
    """A split of meta.json; its checksum is that of its shards' checksums."""
    shards = [record for record in records if record["tokens"]]
    counts = {name: sum(record[name] for record in records) for name in ("tokens", "bytes", "documents")}
    together = zlib.crc32(" ".join(f"{shard['tokens']} {shard['checksum']}" for shard in shards).encode())
    keys = ("file", "tokens", "checksum")
    listed = [{key: shard[key] for key in keys} for shard in shards]
    return {"shards": listed, **counts, "checksum": checksum_text(together)}
