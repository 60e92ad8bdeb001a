"""Writes a prepared dataset (data/dataset.py): document by document, or what was prepared part by part."""

import json
import os
import zlib
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from common.errors import UserError
from common.files import replace_file, sync, writing_to
from common.locks import left_as_it_was, lock
from data.dataset import (
    COUNTED,
    DESIRABLE,
    ENDS,
    FORMAT,
    FORMAT_OF_MARKS,
    MARK,
    OF_A_SPLIT,
    SPLITS,
    checksum_text,
    dtype_for,
)
from data.tokenizers import FILES

KINDS = {"pairs": ("of_pairs",), "labels": ("of_pairs", "of_labels"), "prompts": ("of_prompts",)}  # in meta.json


class DatasetWriter:
    """Writes a dataset document by document in constant memory; nothing looks finished before everything is.

        with DatasetWriter(folder, tokenizer, vocab_size, source) as writer:
            writer.add("train", ids, text_bytes)

    `tokenizer` is what meta.json keeps for `tokenizers.tokenizer_from_meta`, `tokenizer_file` what is in the file that
    it names, if it does; `source` says where the text came from. With `is_marked` tokens have marks (data/dataset.py),
    `of` says what the documents are: `pairs`, pairs of which the first has a label (`labels`), or `prompts`.
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
        is_marked: bool = False,
        of: str | None = None,
    ):
        self.folder = Path(folder)
        self.is_marked, self.of = is_marked, of
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
                marks = opened.enter_context(_MarksFile(self.folder, name, self.of)) if self.is_marked else None
                dtype = dtype_for(self.vocab_size)
                self._splits[name] = opened.enter_context(_SplitFile(self.folder, name, dtype, marks))
            self._opened = opened.pop_all()
        return self

    def add(self, split: str, ids: Sequence[int] | np.ndarray, text_bytes: int, documents: int = 1) -> None:
        """Append `ids` (tokens,), which stand for `text_bytes` bytes of text and complete `documents` documents.

        One call may bring several documents, or a piece of one (`documents=0` for all but its last piece). The
        caller appends the tokenizer's end_of_document id to each document where there is one. Raises UserError for
        an id outside the vocabulary.
        """
        end = self.tokenizer["end_of_document"]
        array = self._checked(ids)
        if documents and end is not None and not (array.size and array[-1] == end):
            raise ValueError(f"a document must end with the tokenizer's end_of_document id {end}")
        with writing_to(self.folder):
            self._splits[split].append_documents(array, text_bytes, documents)

    def add_marked(
        self,
        split: str,
        ids: Sequence[int] | np.ndarray,
        counts: np.ndarray,
        text_bytes: int,
        counted_bytes: int,
        desirable: bool = False,
    ) -> None:
        """Append one document: `ids` (tokens,), of which those count as targets that `counts` (tokens,) says, and which
        stand for so many bytes of text, of which so many are of the ones that count; labelled `desirable`, or not.
        Raises as `add`."""
        marks = COUNTED * np.asarray(counts, dtype=MARK)
        marks[-1] |= ENDS | (DESIRABLE if desirable else 0)
        with writing_to(self.folder):
            self._splits[split].append_documents(self._checked(ids), text_bytes, 1, marks, counted_bytes)

    def _checked(self, ids: Sequence[int] | np.ndarray) -> np.ndarray:
        array = np.asarray(ids) if len(ids) else np.empty(0, np.int64)
        if array.size and (array.min() < 0 or array.max() >= self.vocab_size):
            wrong = array.min() if array.min() < 0 else array.max()
            raise UserError(f"token id {wrong} lies outside the vocabulary of {self.vocab_size}: check the tokenizer")
        return array

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
            if split.tokens == 0 or (split.marks is not None and not split.marks.can_be_learned):
                raise UserError(f"the {split.split} split of {self.folder} would be empty: give more text")
        meta = {
            "format": FORMAT_OF_MARKS if self.is_marked else FORMAT,
            "source": self.source,
            "tokenizer": self.tokenizer,
            "vocab_size": self.vocab_size,
            "dtype": dtype_for(self.vocab_size).name,
            "splits": {name: split.describe() for name, split in self._splits.items()},
        }
        with writing_to(self.folder):
            for split in self._splits.values():
                split.flush_to_disk()
            written = [path for split in self._splits.values() for path in split.written]
            put_in_place(self.folder, written, meta, self.tokenizer_file)


def put_in_place(folder: Path, written: Sequence[Path], meta: dict[str, Any], tokenizer_file: bytes | None) -> None:
    """Makes files that are on the disk, each under `final_name`, and the tokenizer's, the dataset of this meta.json, in
    an order that no kill or power cut can turn into a lie: called again after one, it ends what it began. Raises
    OSError."""
    named = {final_name(path) for path in written}
    (folder / "meta.json").unlink(missing_ok=True)  # from here on the old dataset is gone ...
    sync(folder)
    for path in folder.glob("*.bin"):
        if OF_A_SPLIT.fullmatch(path.name) and path.name not in named:
            path.unlink()
    for name in FILES.values():
        (folder / name).unlink(missing_ok=True)
    for path in filter(Path.exists, written):  # others were put in place before a kill
        path.replace(folder / final_name(path))
    if tokenizer_file is not None:
        replace_file(folder / meta["tokenizer"]["file"], tokenizer_file, on_disk=True)
    sync(folder)
    replace_file(
        folder / "meta.json", (json.dumps(meta, indent=1) + "\n").encode(), on_disk=True
    )  # ... here is the new
    sync(folder)


def final_name(path: Path) -> str:
    """What a file that is being written will be called."""
    return path.name.removeprefix(".").removesuffix(".partial")


class _GrowingFile:
    """A file that is written under a temporary name."""

    def __init__(self, folder: Path, name: str):
        self.name, self.checksum = name, 0
        self.temporary = folder / f".{name}.partial"
        self._file = self.temporary.open("wb", buffering=1 << 20)

    def append(self, content: bytes) -> None:
        self._file.write(content)
        self.checksum = zlib.crc32(content, self.checksum)

    def flush_to_disk(self) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.temporary.unlink(missing_ok=True)  # nothing to remove once it has been renamed
        with writing_to(self.temporary.parent):
            self._file.close()


class _MarksFile(_GrowingFile):
    """The marks of a split while they grow."""

    def __init__(self, folder: Path, split: str, of: str | None):
        super().__init__(folder, f"{split}.marks.bin")
        self.of = of
        self.counted_tokens = self.counted_bytes = 0

    @property
    def can_be_learned(self) -> bool:
        return self.counted_tokens > 0 or self.of == "prompts"

    def describe(self) -> dict[str, Any]:
        checksum = checksum_text(self.checksum)
        counts = {"counted_tokens": self.counted_tokens, "counted_bytes": self.counted_bytes}
        of = dict.fromkeys(KINDS.get(self.of or "", ()), True)
        return {"file": self.name, "checksum": checksum, **counts, **of}


class _SplitFile(_GrowingFile):
    """The tokens of a split while they grow, with their marks if they have any."""

    def __init__(self, folder: Path, split: str, dtype: np.dtype, marks: _MarksFile | None):
        super().__init__(folder, f"{split}.bin")
        self.split, self.marks = split, marks
        self.tokens = self.text_bytes = self.documents = 0
        self._dtype = dtype

    @property
    def written(self) -> list[Path]:
        """The temporary files."""
        return [self.temporary, *([] if self.marks is None else [self.marks.temporary])]

    def append_documents(
        self,
        ids: np.ndarray,
        text_bytes: int,
        documents: int,
        marks: np.ndarray | None = None,
        counted_bytes: int = 0,
    ) -> None:
        self.append(ids.astype(self._dtype).tobytes())
        self.tokens += len(ids)
        self.text_bytes += text_bytes
        self.documents += documents
        if self.marks is not None and marks is not None:
            self.marks.append(marks.tobytes())
            self.marks.counted_tokens += int((marks & COUNTED > 0).sum())
            self.marks.counted_bytes += counted_bytes

    def describe(self) -> dict[str, Any]:
        described = {
            "file": self.name,
            "tokens": self.tokens,
            "bytes": self.text_bytes,
            "documents": self.documents,
            "checksum": checksum_text(self.checksum),
        }
        return described if self.marks is None else described | {"marks": self.marks.describe()}

    def flush_to_disk(self) -> None:
        super().flush_to_disk()
        if self.marks is not None:
            self.marks.flush_to_disk()
