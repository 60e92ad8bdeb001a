"""What a prepared dataset is: one writer for every prepare script, one reader for every command.

    data/<name>/
        train.bin, val.bin   token ids one after the other, little-endian uint16 (uint32 when vocab_size > 65536); of a
                             corpus that was prepared in parts train-00000.bin and so on, which are one after the other
        meta.json            what they hold; written last, so that a folder which has it is finished
        tokenizer.*          the tokenizer's file, where meta.json names one
        .verified.json       the reader's note of the files whose contents it has already checked
        train.marks.bin, val.marks.bin   of data for fine-tuning: a byte for each token, which says what it is
        .documents-train.npz, .documents-val.npz   the lengths of the documents (data/packing.py)
        .lock                held while a prepare script writes here

meta.json is {"format": 1, "source", "tokenizer", "vocab_size", "dtype", "splits": {"train": {...}, "val": {...}}} with
"file", "tokens", "bytes", "documents" and "checksum" for each split. "bytes" counts the UTF-8 bytes of the split's
original text, without separators, so that bits per byte = loss / ln 2 * tokens / bytes. A split in several files has
"shards" for "file", a list of {"file", "tokens", "checksum"}, and the format is 2.

Where splits have "marks", {"file", "checksum", "counted_tokens", "counted_bytes"}, of pairs of documents with
"of_pairs", of labelled ones with "of_labels" too, of prompts, in which nothing counts, with "of_prompts"
(data/questions.py), the format is 3. A mark is a sum of COUNTED, if this token counts when it is the target, and ENDS,
if it is its document's last: there an end_of_document in the text means nothing, and there need be none; with labels
also of DESIRABLE, at the end of a document that is. Then a loss is of the counted tokens, and bits per byte =
loss / ln 2 * counted_tokens / counted_bytes, the bytes of the text that these stand for.

No torch in here: a command that only plans must start in a fraction of a second.
"""

import json
import operator
import os
import re
import resource
import shlex
import sys
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from common.errors import UserError, did_you_mean
from common.files import open_text, real, replace_file, writing_to
from data.tokenizers import content_of

FORMAT = 1  # of a dataset with a file a split
FORMAT_OF_SHARDS = 2
FORMAT_OF_MARKS = 3
FORMATS = (FORMAT, FORMAT_OF_SHARDS, FORMAT_OF_MARKS)
COUNTED, ENDS, DESIRABLE = 1, 2, 4  # in a token's mark
MARK = np.dtype(np.uint8)
SPLITS = ("train", "val")
OF_A_SPLIT = re.compile(rf"({'|'.join(SPLITS)})(-[0-9]+|\.marks)?\.bin")  # what its files are called
DATA_FOLDER = Path(__file__).resolve().parent
READ_BYTES = 1 << 24  # a file is verified in pieces of this size
SLOW_FILE_BYTES = 1 << 30  # a file this large takes long enough to verify that the user is told


def dtype_for(vocab_size: int) -> np.dtype:
    """The type that stores ids below `vocab_size`: little-endian uint16, or uint32 where 16 bits do not suffice."""
    return np.dtype("<u2" if vocab_size <= 1 << 16 else "<u4")


MOST_MEASURED = 4096  # windows, of which the lengths of documents are taken


def document_numbers(is_end: np.ndarray) -> np.ndarray:
    """(windows, T), whether a token ends a document -> int64 (windows, T), which document of its window each is of,
    from 0: that of the token before, or, after an end, the next."""
    after_end = np.zeros(is_end.shape, dtype=np.int64)
    after_end[:, 1:] = is_end[:, :-1]
    return after_end.cumsum(axis=1)


@dataclass(frozen=True)
class Shard:
    """A file of a split's tokens."""

    path: Path
    tokens: int
    checksum: str


@dataclass(frozen=True)
class Marks:
    """The marks of a split's tokens, and how many of these count, and stand for how many bytes of text; whether every
    two of its documents are a pair, of which the first is preferred, or, `of_labels`, has a label, and the second has
    none; or whether its documents are prompts."""

    shards: tuple[Shard, ...]
    counted_tokens: int
    counted_bytes: int
    of_pairs: bool = False
    of_labels: bool = False
    of_prompts: bool = False


@dataclass(frozen=True)
class Split:
    """One split of a dataset, whose tokens are those of its shards one after the other. `bytes` are those of the
    original UTF-8 text, not of the files. `checksum` is of the tokens and, where there are any, of the marks."""

    name: str
    shards: tuple[Shard, ...]
    tokens: int
    bytes: int
    documents: int
    checksum: str
    marks: Marks | None = None  # None: every token counts, and documents end with the tokenizer's end_of_document

    @property
    def bytes_per_token(self) -> float:
        """Bytes of text that one token that counts stands for; bits per byte = loss / ln 2 / bytes_per_token. 0 of
        pairs and prompts, whose loss is none of text."""
        if self.marks is not None:
            if self.marks.of_pairs or self.marks.of_prompts:
                return 0.0
            return self.marks.counted_bytes / self.marks.counted_tokens
        return self.bytes / self.tokens

    def n_windows(self, block_size: int) -> int:
        """How many non-overlapping windows of `block_size` inputs it holds, each with its targets one token later."""
        return (self.tokens - 1) // block_size


class UnusableData(Exception):
    """A split's file that cannot be read any more, or is not what it was: one line that says so."""


class TokenReader:
    """Reads tokens of a split, or their marks, wherever they lie in its files.

    The files stay open, so a dataset that is prepared anew meanwhile does not change what is read. They are read, not
    mapped: a file that someone cuts short would end a process that has it mapped.
    """

    def __init__(self, split: Split | Marks, dtype: np.dtype):
        self._shards, self._dtype = split.shards, dtype
        _allow_open_files(len(split.shards))
        self._files = [shard.path.open("rb") for shard in split.shards]
        self._starts = np.cumsum([0, *(shard.tokens for shard in split.shards)])
        self._written = [_last_written(file) for file in self._files]

    def read(self, first: int, count: int) -> np.ndarray:
        """Tokens (count,) from the `first` on. Raises UnusableData."""
        return self.read_each(np.array([first]), np.array([count]))

    def read_each(self, firsts: np.ndarray, counts: np.ndarray) -> np.ndarray:
        """Of several places (n,), the tokens from each of `firsts` on, `counts` (n,) of them: all after one another.
        Raises UnusableData."""
        numbers = np.searchsorted(self._starts, firsts, side="right") - 1
        places = firsts - self._starts[numbers]
        found: list[bytes] = []
        for number, place, count in zip(numbers.tolist(), places.tolist(), counts.tolist(), strict=True):
            while place + count > self._shards[number].tokens:  # it goes on in the next file
                here = self._shards[number].tokens - place
                found.append(self._read(number, place, here))
                number, place, count = number + 1, 0, count - here
            found.append(self._read(number, place, count))
        return np.frombuffer(found[0] if len(found) == 1 else b"".join(found), self._dtype)

    def _read(self, number: int, place: int, count: int) -> bytes:
        width = count * self._dtype.itemsize
        try:
            content = os.pread(self._files[number].fileno(), width, place * self._dtype.itemsize)
        except OSError as error:
            raise UnusableData(f"cannot read {self._shards[number].path}: {error.strerror}") from None
        if len(content) < width:
            raise UnusableData(f"{self._shards[number].path} was cut short while the run read it")
        return content

    def check_unchanged(self) -> None:
        """Raises UnusableData when what has been read since the last call may be something else than was opened: when
        a file was written to, and its checksum is another one now."""
        for number, file in enumerate(self._files):
            written = _last_written(file)
            if written != self._written[number]:
                if self._checksum(number) != self._shards[number].checksum:
                    raise UnusableData(f"{self._shards[number].path} was changed while the run read it")
                self._written[number] = written

    def _checksum(self, number: int) -> str:
        with open(self._files[number].fileno(), "rb", closefd=False) as file:
            file.seek(0)
            return checksum(file)


def _last_written(file: BinaryIO) -> tuple[int, int]:
    """Size and time of the last change, which stay what they are when another file gets the name."""
    found = os.fstat(file.fileno())
    return found.st_size, found.st_mtime_ns


def _allow_open_files(wanted: int) -> None:
    """Raises the process's own limit on open files, which systems set far below what they allow."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = wanted + 1024  # beside what else a process opens
    if soft != resource.RLIM_INFINITY and soft < needed:
        resource.setrlimit(
            resource.RLIMIT_NOFILE, (needed if hard == resource.RLIM_INFINITY else min(needed, hard), hard)
        )


@dataclass(frozen=True)
class Dataset:
    """A prepared dataset as meta.json describes it. Ids of all splits are below `vocab_size`."""

    folder: Path
    source: str
    tokenizer: dict[str, Any]
    vocab_size: int
    dtype: np.dtype
    splits: dict[str, Split]

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def sources(self) -> dict[str, "Dataset"]:
        """It alone; of a mixture (data/mixture.py) there are several."""
        return {self.name: self}

    @property
    def shares(self) -> dict[str, float]:
        """Of the sources, in the samples."""
        return {self.name: 1.0}

    @property
    def validation_sources(self) -> dict[str, "Dataset"]:
        """The datasets whose validation splits are evaluated: it alone."""
        return self.sources

    @property
    def validation_shares(self) -> dict[str, float]:
        """Of the sources, in the loss of a validation."""
        return {self.name: 1.0}

    @property
    def identity(self) -> dict[str, Any]:
        """What a run keeps of it, to know what its tokens mean and whether they are still the same."""
        return {f"data of {name}": split.checksum for name, split in self.splits.items()} | {
            "tokenizer": self.tokenizer
        }

    def keep_tokenizer(self, folder: Path) -> None:
        """Copies the tokenizer's file, if it has one, to the folder of a run. Raises UserError."""
        content = content_of(self.tokenizer, self.folder)
        if content is not None:
            with writing_to(folder):
                replace_file(folder / self.tokenizer["file"], content)

    def reader(self, split: str) -> "SplitReader":
        return SplitReader(self.splits[split], self.dtype, self.tokenizer["end_of_document"])

    def check_documents(self) -> None:
        """Raises UserError unless it is known where documents end."""
        if self.tokenizer["end_of_document"] is None and not all(split.marks for split in self.splits.values()):
            raise UserError(
                f"mask_documents=True: the tokenizer of {self.folder} has no end of documents: take a dataset whose "
                "has one, or mask_documents=False"
            )

    def document_lengths(self, split: str, block_size: int) -> dict[int, float]:
        """Which share of a split's tokens is in documents of which length, as windows of `block_size` cut them: of all
        windows, or of MOST_MEASURED that lie evenly. Raises UserError."""
        self.check_documents()
        reader, windows = self.reader(split), self.splits[split].n_windows(block_size)
        counts = np.zeros(block_size + 1, dtype=np.int64)  # documents of each length
        measured = np.linspace(0, windows - 1, min(windows, MOST_MEASURED)).astype(np.int64)
        for window in measured.tolist():
            is_end = reader.ends(*reader.read(window * block_size, block_size))
            lengths = np.bincount(document_numbers(is_end[None])[0])
            counts += np.bincount(lengths, minlength=block_size + 1)
        total = len(measured) * block_size
        return {int(length): int(length * counts[length]) / total for length in np.flatnonzero(counts)}

    @property
    def filler(self) -> int:
        """An id for places without a token."""
        end = self.tokenizer["end_of_document"]
        return 0 if end is None else end

    def check_fits(self, block_size: int, vocab_size: int, follow_one_another: bool = True) -> None:
        """Raise UserError unless `vocab_size` (the model's) holds every id, and each split a window of `block_size`: a
        split with marks may be shorter where windows do not `follow_one_another`."""
        for split in self.splits.values():
            if split.n_windows(block_size) < 1 and (follow_one_another or split.marks is None):
                raise UserError(
                    f"block_size {block_size} needs {block_size + 1} tokens, but the {split.name} split of "
                    f"{self.folder} has {split.tokens}: set --block_size to at most {split.tokens - 1}, "
                    f"or prepare more text"
                )
        if self.vocab_size > vocab_size:
            raise UserError(
                f"{self.folder} has a vocabulary of {self.vocab_size}, but the model's is {vocab_size}: "
                f"set --vocab_size to at least {self.vocab_size}"
            )

    def describe(self) -> str:
        """One line for people: tokens, documents and bytes of each split, and where they are."""
        parts = [
            f"{split.name} {split.tokens:,} tokens ({split.bytes:,} bytes, {split.documents:,} "
            f"{'document' if split.documents == 1 else 'documents'})"
            for split in self.splits.values()
        ]
        return f"{self.folder}: {', '.join(parts)}, vocabulary {self.vocab_size:,}"


class SplitReader:
    """Reads a split's tokens, with what is marked of each."""

    def __init__(self, split: Split, dtype: np.dtype, end_of_document: int | None):
        self._tokens = TokenReader(split, dtype)
        self._marks = None if split.marks is None else TokenReader(split.marks, MARK)
        self._end = end_of_document

    @property
    def is_marked(self) -> bool:
        """Whether some of the tokens may not count as targets."""
        return self._marks is not None

    def read(self, first: int, count: int) -> tuple[np.ndarray, np.ndarray | None]:
        """As `read_each`, of one place."""
        return self.read_each(np.array([first]), np.array([count]))

    def read_each(self, firsts: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """As TokenReader.read_each, the tokens, and their marks, None where there are none. Raises UnusableData."""
        marks = None if self._marks is None else self._marks.read_each(firsts, counts)
        return self._tokens.read_each(firsts, counts), marks

    def ends(self, tokens: np.ndarray, marks: np.ndarray | None) -> np.ndarray:
        """Whether each is the last of its document."""
        return tokens == self._end if marks is None else marks & ENDS > 0

    def check_unchanged(self) -> None:
        """As TokenReader.check_unchanged."""
        self._tokens.check_unchanged()
        if self._marks is not None:
            self._marks.check_unchanged()


def dataset_folder(name: str, data_dir: str | None) -> Path:
    """Where a dataset lies, as the config keys `dataset` and `data_dir` say."""
    return (DATA_FOLDER if data_dir is None else Path(data_dir)) / name


def open_dataset(folder: str | os.PathLike, verify: bool = True) -> Dataset:
    """Open a prepared dataset, or raise a UserError that says what is wrong with it and how to prepare it.

    Files must have the lengths, and with `verify` the checksums, that meta.json states. A file of tokens is read for
    its checksum once: .verified.json remembers its size and modification time. Where that note cannot be written, every
    call reads the files. Of several processes that start together, one need verify.
    """
    dataset = _read_meta(Path(folder))
    for split in dataset.splits.values():
        if split.tokens == 0:
            raise UserError(f"the {split.name} split of {dataset.folder} is empty; {how_to_prepare(dataset.folder)}")
    for shard, kind in _files(dataset):
        _check_length(dataset, shard, kind)
    if verify:
        content_of(dataset.tokenizer, dataset.folder)
        _verify_contents(dataset)
    return dataset


def how_to_prepare(folder: Path) -> str:
    """The command that prepares `folder`, as the end of an error message."""
    known = sorted(script.parent.name for script in DATA_FOLDER.glob("*/prepare.py"))
    name = real(folder).name
    corpus = next((one for one in known if name.startswith(f"{one}_")), None)
    if name not in known and corpus is not None:
        return (
            f"prepare it with: python data/{corpus}/prepare.py --out_dir {shlex.quote(str(folder))} and the "
            "--tokenizer that its name ends in"
        )
    if name not in known:
        return f"prepare one of the datasets under data/: {', '.join(known)}{did_you_mean(name, known)}"
    command = f"prepare it with: python data/{name}/prepare.py"
    if real(folder) != DATA_FOLDER / name:
        command += f" --out_dir {shlex.quote(str(folder))}"
    return command


def _read_meta(folder: Path) -> Dataset:
    """meta.json, with every field of the type and range that the format says."""
    path = folder / "meta.json"
    if not folder.is_dir():
        raise UserError(f"there is no dataset folder {folder.absolute()}; {how_to_prepare(folder)}")
    try:
        with open_text(path) as file:
            meta = json.load(file)
        if not isinstance(meta, dict) or "format" not in meta:
            raise ValueError("it has no format number")
        if meta["format"] not in FORMATS:
            known = f"{', '.join(map(str, FORMATS[:-1]))} and {FORMATS[-1]}"
            found = f"{path} has format {meta['format']!r}, this version reads {known}"
            raise UserError(f"{found}; {how_to_prepare(folder)}")
        dataset = _parse_meta(folder, meta)
    except FileNotFoundError:
        raise UserError(
            f"{folder.absolute()} has no meta.json, so it is not prepared; {how_to_prepare(folder)}"
        ) from None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except RecursionError:
        raise UserError(f"{path} is damaged (it is nested too deeply); {how_to_prepare(folder)}") from None
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{path} is damaged ({_one_line(error)}); {how_to_prepare(folder)}") from error
    if dataset.dtype != dtype_for(dataset.vocab_size):
        right = dtype_for(dataset.vocab_size).name
        raise UserError(
            f"{path} says dtype {dataset.dtype.name}, but a vocabulary of {dataset.vocab_size} is stored as {right}; "
            f"{how_to_prepare(folder)}"
        )
    return dataset


def _parse_meta(folder: Path, meta: dict[str, Any]) -> Dataset:
    splits = {}
    for name in SPLITS:
        entry = meta["splits"][name]
        counts = {key: operator.index(entry[key]) for key in ("tokens", "bytes", "documents")}
        if not 0 <= min(counts.values()) <= max(counts.values()) < 2**63:
            raise ValueError(f"a count of the {name} split is impossible")
        files = entry["shards"] if meta["format"] == FORMAT_OF_SHARDS else [entry]
        shards = tuple(_parse_shard(folder, name, file) for file in files)
        marks = _parse_marks(folder, name, entry) if meta["format"] == FORMAT_OF_MARKS else None
        checksums = [str(entry["checksum"]), *(shard.checksum for shard in (marks.shards if marks else ()))]
        split = Split(name, shards, **counts, checksum=" ".join(checksums), marks=marks)
        if split.tokens != sum(shard.tokens for shard in shards):
            raise ValueError(f"the {name} split has other tokens than its shards together")
        splits[name] = split
    return Dataset(
        folder=folder,
        source=str(meta["source"]),
        tokenizer=dict(meta["tokenizer"]),
        vocab_size=operator.index(meta["vocab_size"]),
        dtype=np.dtype(str(meta["dtype"])).newbyteorder("<"),
        splits=splits,
    )


def _parse_shard(folder: Path, split: str, entry: dict[str, Any]) -> Shard:
    if not entry["file"].isprintable():
        raise ValueError(f"the {split} split's file cannot be called {entry['file']!a}")
    return Shard(folder / entry["file"], operator.index(entry["tokens"]), str(entry["checksum"]))


def _parse_marks(folder: Path, split: str, entry: dict[str, Any]) -> Marks:
    found = entry["marks"]
    shard = _parse_shard(folder, split, {"tokens": entry["tokens"], **found})
    tokens, size = (operator.index(found[key]) for key in ("counted_tokens", "counted_bytes"))
    kinds = {name: found.get(name, False) is True for name in ("of_pairs", "of_labels", "of_prompts")}
    marks = Marks((shard,), tokens, size, **kinds)
    fewest = 0 if marks.of_prompts else 1
    if not fewest <= marks.counted_tokens <= entry["tokens"] or not 0 <= marks.counted_bytes <= entry["bytes"]:
        raise ValueError(f"a count of the {split} split's marks is impossible")
    return marks


@dataclass(frozen=True)
class _Kind:
    """What is in a file: `name` as people call it, and no value of as much as `end`."""

    name: str
    dtype: np.dtype
    end: int


def _files(dataset: Dataset) -> Iterator[tuple[Shard, _Kind]]:
    """Every file of the splits."""
    tokens = _Kind("tokens", dataset.dtype, dataset.vocab_size)
    for split in dataset.splits.values():
        yield from ((shard, tokens) for shard in split.shards)
        if split.marks:
            end = COUNTED + ENDS + 1 + (DESIRABLE if split.marks.of_labels else 0)
            yield from ((shard, _Kind("marks", MARK, end)) for shard in split.marks.shards)


def _check_length(dataset: Dataset, shard: Shard, kind: _Kind) -> None:
    try:
        with shard.path.open("rb") as file:  # opened, not only looked at: an unreadable file is found here
            length = os.fstat(file.fileno()).st_size
    except OSError as error:
        message = f"cannot read {shard.path}: {error.strerror}"
        raise UserError(f"{message}; {how_to_prepare(dataset.folder)}") from error
    expected = shard.tokens * kind.dtype.itemsize
    if length != expected:
        raise UserError(
            f"{shard.path} has {length} bytes, but meta.json says {shard.tokens} {kind.name} of {kind.dtype.name} "
            f"({expected} bytes); {how_to_prepare(dataset.folder)}"
        )


def _verify_contents(dataset: Dataset) -> None:
    """Compare the files with their checksums, except those that are as they were when last compared."""
    note = dataset.folder / ".verified.json"
    try:
        known = json.loads(note.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        known = None
    verified = {}
    for shard, kind in _files(dataset):
        state = shard.path.stat()  # before reading: a change while reading must not be taken for verified
        mark = [state.st_size, state.st_mtime_ns, shard.checksum, kind.end]
        if not (isinstance(known, dict) and known.get(shard.path.name) == mark):
            _verify_file(dataset, shard, kind)
        verified[shard.path.name] = mark
    if verified != known:
        try:
            replace_file(note, (json.dumps(verified) + "\n").encode(), on_disk=True)
        except OSError:
            return  # a folder that we may not write to is verified at every start


def checksum_text(crc: int) -> str:
    # CRC-32 finds every error burst of up to 32 bits and misses a random one in 2**32. It guards against accidents,
    # not attackers, and unlike a cryptographic hash it keeps up with the disk that brings 18 GB of tokens.
    return f"crc32:{crc:08x}"


def checksum(file: BinaryIO) -> str:
    """What meta.json states as the checksum of a file, of the rest of an open one."""
    crc = 0
    while piece := file.read(READ_BYTES):
        crc = zlib.crc32(piece, crc)
    return checksum_text(crc)


def _verify_file(dataset: Dataset, shard: Shard, kind: _Kind) -> None:
    if shard.path.stat().st_size >= SLOW_FILE_BYTES:
        print(f"verifying {shard.path} (once) ...", file=sys.stderr)
    crc = largest = 0
    with shard.path.open("rb") as file:
        while piece := file.read(READ_BYTES):
            crc = zlib.crc32(piece, crc)
            largest = max(largest, int(np.frombuffer(piece, kind.dtype).max()))
    if checksum_text(crc) != shard.checksum:
        raise UserError(
            f"{shard.path} is damaged: its checksum is {checksum_text(crc)}, meta.json says {shard.checksum}; "
            f"{how_to_prepare(dataset.folder)}"
        )
    if largest >= kind.end:
        wrong = f"a token id {largest}, outside the vocabulary of {dataset.vocab_size} that meta.json states"
        what = wrong if kind.name == "tokens" else f"a mark {largest}, which this version does not know"
        raise UserError(f"{shard.path} has {what}; {how_to_prepare(dataset.folder)}")


def _one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())
