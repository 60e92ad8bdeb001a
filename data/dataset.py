"""What a prepared dataset is: one writer for every prepare script, one reader for every command.

    data/<name>/
        train.bin, val.bin   token ids one after the other, little-endian uint16 (uint32 when vocab_size > 65536)
        meta.json            what they hold; written last, so that a folder which has it is finished
        tokenizer.*          the tokenizer's file, where meta.json names one
        .verified.json       the reader's note of the files whose contents it has already checked
        .lock                held while a prepare script writes here

meta.json is {"format": 1, "source", "tokenizer", "vocab_size", "dtype", "splits": {"train": {...}, "val": {...}}} with
"file", "tokens", "bytes", "documents" and "checksum" for each split. "bytes" counts the UTF-8 bytes of the split's
original text, without separators, so that bits per byte = loss / ln 2 * tokens / bytes.

No torch in here: a command that only plans must start in a fraction of a second.
"""

import json
import operator
import os
import shlex
import sys
import zlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np

from common.errors import UserError, did_you_mean
from common.files import open_text, real, replace_file, sync
from common.locks import left_as_it_was, lock
from data.tokenizers import FILES, content_of

FORMAT = 1
SPLITS = ("train", "val")
DATA_FOLDER = Path(__file__).resolve().parent
READ_BYTES = 1 << 24  # a file is verified in pieces of this size
SLOW_FILE_BYTES = 1 << 30  # a file this large takes long enough to verify that the user is told


def dtype_for(vocab_size: int) -> np.dtype:
    """The type that stores ids below `vocab_size`: little-endian uint16, or uint32 where 16 bits do not suffice."""
    return np.dtype("<u2" if vocab_size <= 1 << 16 else "<u4")


# ---------------------------------------------------------------------------------------------------------------------
# Writing


class DatasetWriter:
    """Writes a dataset document by document in constant memory; nothing looks finished before everything is.

        with DatasetWriter(folder, tokenizer, vocab_size, source) as writer:
            writer.add("train", ids, text_bytes)

    `tokenizer` is what meta.json keeps for `tokenizers.tokenizer_from_meta`, `tokenizer_file` what is in the file that
    it names, if it does; `source` says where the text came from.
    The files grow under temporary names in the same folder and are renamed when the block ends. If it ends by an
    exception they are removed; if the process is killed, the next preparation removes them. Whatever dataset the
    folder had stays whole until the new one is complete. Raises UserError when the folder cannot be written or
    another process is preparing it, and at the end of the block when a split is empty.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        tokenizer: dict[str, Any],
        vocab_size: int,
        source: str,
        tokenizer_file: bytes | None = None,
    ):
        self.folder = Path(folder)
        self.tokenizer = tokenizer
        self.tokenizer_file = tokenizer_file
        self.vocab_size = vocab_size
        self.source = source
        self._splits: dict[str, _SplitFile] = {}

    def __enter__(self) -> "DatasetWriter":
        with ExitStack() as opened, writing_to(self.folder):
            opened.enter_context(left_as_it_was(self.folder))
            if (held := lock(self.folder)) is None:
                raise UserError(f"another process is preparing {self.folder}: wait until it has finished")
            opened.enter_context(held)
            for leftover in self.folder.glob(".*.partial"):  # of a preparation that was killed
                leftover.unlink(missing_ok=True)
            for name in SPLITS:
                self._splits[name] = opened.enter_context(_SplitFile(self.folder, name, dtype_for(self.vocab_size)))
            self._opened = opened.pop_all()
        return self

    def add(self, split: str, ids: Sequence[int] | np.ndarray, text_bytes: int, documents: int = 1) -> None:
        """Append `ids` (tokens,), which stand for `text_bytes` bytes of text and complete `documents` documents.

        One call may bring several documents, or a piece of one (`documents=0` for all but its last piece). The
        caller appends the tokenizer's end_of_document id to each document where there is one. Raises UserError for
        an id outside the vocabulary.
        """
        array = np.asarray(ids) if len(ids) else np.empty(0, np.int64)
        if array.size and (array.min() < 0 or array.max() >= self.vocab_size):
            wrong = array.min() if array.min() < 0 else array.max()
            raise UserError(f"token id {wrong} lies outside the vocabulary of {self.vocab_size}: check the tokenizer")
        end = self.tokenizer["end_of_document"]
        if documents and end is not None and not (array.size and array[-1] == end):
            raise ValueError(f"a document must end with the tokenizer's end_of_document id {end}")
        with writing_to(self.folder):
            self._splits[split].append(array, text_bytes, documents)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Whatever happens, this closes the files, removes what was not renamed, and unlocks the folder.
        if error is not None:
            self._opened.__exit__(kind, error, trace)
            return
        with self._opened:
            self._finish()

    def _finish(self) -> None:
        """Put the new files in place in an order that no kill or power cut can turn into a lie."""
        for split in self._splits.values():
            if split.tokens == 0:
                raise UserError(f"the {split.name} split of {self.folder} would be empty: give more text")
        meta = {
            "format": FORMAT,
            "source": self.source,
            "tokenizer": self.tokenizer,
            "vocab_size": self.vocab_size,
            "dtype": dtype_for(self.vocab_size).name,
            "splits": {name: split.describe() for name, split in self._splits.items()},
        }
        with writing_to(self.folder):
            for split in self._splits.values():
                split.flush_to_disk()
            (self.folder / "meta.json").unlink(missing_ok=True)  # from here on the old dataset is gone ...
            sync(self.folder)
            for name in FILES.values():
                (self.folder / name).unlink(missing_ok=True)
            for split in self._splits.values():
                split.temporary.replace(split.path)
            if self.tokenizer_file is not None:
                replace_file(self.folder / self.tokenizer["file"], self.tokenizer_file, on_disk=True)
            sync(self.folder)
            text = json.dumps(meta, indent=1) + "\n"
            replace_file(self.folder / "meta.json", text.encode(), on_disk=True)  # ... and here the new one is
            sync(self.folder)


class _SplitFile:
    """One .bin file while it grows, under its temporary name."""

    def __init__(self, folder: Path, name: str, dtype: np.dtype):
        self.name = name
        self.path = folder / f"{name}.bin"
        self.temporary = folder / f".{name}.bin.partial"
        self.tokens = self.text_bytes = self.documents = self.checksum = 0
        self._dtype = dtype
        self._file = self.temporary.open("wb", buffering=1 << 20)

    def append(self, ids: np.ndarray, text_bytes: int, documents: int) -> None:
        content = ids.astype(self._dtype).tobytes()
        self._file.write(content)
        self.checksum = zlib.crc32(content, self.checksum)
        self.tokens += len(ids)
        self.text_bytes += text_bytes
        self.documents += documents

    def describe(self) -> dict[str, Any]:
        return {
            "file": self.path.name,
            "tokens": self.tokens,
            "bytes": self.text_bytes,
            "documents": self.documents,
            "checksum": _checksum_text(self.checksum),
        }

    def flush_to_disk(self) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())

    def __enter__(self) -> "_SplitFile":
        return self

    def __exit__(self, *_: object) -> None:
        self.temporary.unlink(missing_ok=True)  # nothing to remove once it has been renamed
        with writing_to(self.path.parent):
            self._file.close()


@contextmanager
def writing_to(folder: Path) -> Iterator[None]:
    """A full disk or a missing permission is the user's to mend: one line instead of a traceback."""
    try:
        yield
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {error.strerror or error}") from error


def _checksum_text(crc: int) -> str:
    # CRC-32 finds every error burst of up to 32 bits and misses a random one in 2**32. It guards against accidents,
    # not attackers, and unlike a cryptographic hash it keeps up with the disk that brings 18 GB of tokens.
    return f"crc32:{crc:08x}"


# ---------------------------------------------------------------------------------------------------------------------
# Reading

MOST_MEASURED = 4096  # windows, of which the lengths of documents are taken


def document_numbers(tokens: np.ndarray, end_of_document: int) -> np.ndarray:
    """(windows, T) token ids -> int64 (windows, T), which document of its window each is of, from 0: that of the token
    before, or, after an end, the next."""
    after_end = np.zeros(tokens.shape, dtype=np.int64)
    after_end[:, 1:] = tokens[:, :-1] == end_of_document
    return after_end.cumsum(axis=1)


@dataclass(frozen=True)
class Split:
    """One split of a dataset. `bytes` are those of the original UTF-8 text, not of the file at `path`."""

    name: str
    path: Path
    tokens: int
    bytes: int
    documents: int
    checksum: str

    @property
    def bytes_per_token(self) -> float:
        """Bytes of text that one token stands for; bits per byte = loss / ln 2 / bytes_per_token."""
        return self.bytes / self.tokens

    def n_windows(self, block_size: int) -> int:
        """How many non-overlapping windows of `block_size` inputs it holds, each with its targets one token later."""
        return (self.tokens - 1) // block_size


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

    @property
    def end_of_document(self) -> int:
        """The id that ends every document. Raises UserError for a tokenizer without one."""
        end = self.tokenizer["end_of_document"]
        if end is None:
            raise UserError(
                f"mask_documents=True: the tokenizer of {self.folder} has no end of documents: take a dataset whose "
                "has one, or mask_documents=False"
            )
        return end

    def document_lengths(self, split: str, block_size: int) -> dict[int, float]:
        """Which share of a split's tokens is in documents of which length, as windows of `block_size` cut them: of all
        windows, or of MOST_MEASURED that lie evenly. Raises UserError."""
        found, end = self.splits[split], self.end_of_document
        windows = found.n_windows(block_size)
        counts = np.zeros(block_size + 1, dtype=np.int64)  # documents of each length
        measured = np.linspace(0, windows - 1, min(windows, MOST_MEASURED)).astype(np.int64)
        with found.path.open("rb") as file:
            for window in measured.tolist():
                file.seek(window * block_size * self.dtype.itemsize)
                tokens = np.fromfile(file, self.dtype, block_size)
                lengths = np.bincount(document_numbers(tokens[None], end)[0])
                counts += np.bincount(lengths, minlength=block_size + 1)
        total = len(measured) * block_size
        return {int(length): int(length * counts[length]) / total for length in np.flatnonzero(counts)}

    def check_fits(self, block_size: int, vocab_size: int) -> None:
        """Raise UserError unless each split holds a window of `block_size`, and `vocab_size` (the model's) every id."""
        for split in self.splits.values():
            if split.n_windows(block_size) < 1:
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
        _check_length(dataset, split)
    if verify:
        content_of(dataset.tokenizer, dataset.folder)
        _verify_contents(dataset)
    return dataset


def how_to_prepare(folder: Path) -> str:
    """The command that prepares `folder`, as the end of an error message."""
    known = sorted(script.parent.name for script in DATA_FOLDER.glob("*/prepare.py"))
    name = real(folder).name
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
        if meta["format"] != FORMAT:
            found = f"{path} has format {meta['format']!r}, this version reads {FORMAT}"
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
        if not entry["file"].isprintable():
            raise ValueError(f"the {name} split's file cannot be called {entry['file']!a}")
        splits[name] = Split(name, folder / entry["file"], **counts, checksum=str(entry["checksum"]))
    return Dataset(
        folder=folder,
        source=str(meta["source"]),
        tokenizer=dict(meta["tokenizer"]),
        vocab_size=operator.index(meta["vocab_size"]),
        dtype=np.dtype(str(meta["dtype"])).newbyteorder("<"),
        splits=splits,
    )


def _check_length(dataset: Dataset, split: Split) -> None:
    if split.tokens == 0:
        raise UserError(f"the {split.name} split of {dataset.folder} is empty; {how_to_prepare(dataset.folder)}")
    try:
        with split.path.open("rb") as file:  # opened, not only looked at: an unreadable file is found here
            length = os.fstat(file.fileno()).st_size
    except OSError as error:
        message = f"cannot read {split.path}: {error.strerror}"
        raise UserError(f"{message}; {how_to_prepare(dataset.folder)}") from error
    expected = split.tokens * dataset.dtype.itemsize
    if length != expected:
        raise UserError(
            f"{split.path} has {length} bytes, but meta.json says {split.tokens} tokens of {dataset.dtype.name} "
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
    for split in dataset.splits.values():
        state = split.path.stat()  # before reading: a change while reading must not be taken for verified
        mark = [state.st_size, state.st_mtime_ns, split.checksum, dataset.vocab_size]
        if not (isinstance(known, dict) and known.get(split.name) == mark):
            _verify_file(dataset, split)
        verified[split.name] = mark
    if verified != known:
        try:
            replace_file(note, (json.dumps(verified) + "\n").encode(), on_disk=True)
        except OSError:
            return  # a folder that we may not write to is verified at every start


def checksum(file: BinaryIO) -> str:
    """What meta.json states as the checksum of a split, of the rest of an open file."""
    crc = 0
    while piece := file.read(READ_BYTES):
        crc = zlib.crc32(piece, crc)
    return _checksum_text(crc)


def _verify_file(dataset: Dataset, split: Split) -> None:
    if split.path.stat().st_size >= SLOW_FILE_BYTES:
        print(f"verifying {split.path} (once) ...", file=sys.stderr)
    crc = largest = 0
    with split.path.open("rb") as file:
        while piece := file.read(READ_BYTES):
            crc = zlib.crc32(piece, crc)
            largest = max(largest, int(np.frombuffer(piece, dataset.dtype).max()))
    if _checksum_text(crc) != split.checksum:
        raise UserError(
            f"{split.path} is damaged: its checksum is {_checksum_text(crc)}, meta.json says {split.checksum}; "
            f"{how_to_prepare(dataset.folder)}"
        )
    if largest >= dataset.vocab_size:
        raise UserError(
            f"{split.path} has a token id {largest}, outside the vocabulary of {dataset.vocab_size} that meta.json "
            f"states; {how_to_prepare(dataset.folder)}"
        )


def _one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())
