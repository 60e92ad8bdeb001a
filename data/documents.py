"""Text of any files: which ones an input means, and the documents in them, one at a time.

A document is a paragraph of a text file (or a line, or the file), an object with a text of a JSON file, or a row of a
Parquet file. Only one is in memory at a time, and what compression and Parquet read ahead.
"""

import codecs
import contextlib
import dataclasses
import glob
import gzip
import io
import json
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from common.errors import UserError
from common.files import open_file

VALUES = (".jsonl", ".json", ".parquet")
KINDS = (".txt", *VALUES)
COMPRESSED = (".gz", ".zst")
SPLIT_BY = ("paragraphs", "lines", "files")
WHITE_SPACE = " \t\r\n"
PIECE = 1 << 20  # characters of text, or bytes of a file, that are taken at a time


def find_files(inputs: Sequence[str]) -> list[Path]:
    """The files that inputs mean, each once: the file of this very name; of a folder all in it and below it that are of
    a known kind, by name; else those that a pattern such as `texts/*.jsonl.gz` matches. Raises UserError for an input
    that means none."""
    found: list[Path] = []
    for given in inputs:
        path = Path(given)
        if path.is_dir():
            files = sorted(file for file in path.rglob("*") if is_known(file) and file.is_file())
            if not files:
                raise UserError(f"no file in the folder {given}, or below it, ends in {_known()}")
        elif path.exists():  # also where its name reads like a pattern
            files = [path]
        else:
            matching = map(Path, glob.glob(given, recursive=True))  # noqa: PTH207 (it may be an absolute one)
            files = sorted(path for path in matching if path.is_file())
            if not files:
                raise UserError(f"there is no file {given}, nor a folder, nor a file that it is a pattern of")
        found += files
    return list(dict.fromkeys(found))


def is_known(path: Path) -> bool:
    """Whether a file's name says that documents are in it. Hidden files are not looked at."""
    return not path.name.startswith(".") and _kind(path) in KINDS


def _kind(path: Path) -> str:
    """The suffix that says what is in a file, in lower case, without that of its compression."""
    name = Path(path.name.lower())
    return Path(name.stem).suffix if name.suffix in COMPRESSED else name.suffix


def _known() -> str:
    return f"{', '.join(KINDS)}, or one of these and {' or '.join(COMPRESSED)}"


@dataclasses.dataclass
class Documents:
    """The documents of files, in order; iterated again, they are read again. `split_by` (one of SPLIT_BY) says what is
    a document of a text file, `text_key` where the text is in an object or a row. With `any_is_text` a file whose name
    says nothing is a text file.

    Documents without text, such as blank ones, are left out; `empty` counts those of the last iteration. Iterating
    raises UserError for what cannot be read, is not UTF-8, or holds no text.
    """

    files: list[Path]
    text_key: str = "text"
    split_by: str = "paragraphs"
    any_is_text: bool = False
    empty: int = 0

    def __iter__(self) -> Iterator[str]:
        self.empty = 0
        for path in self.files:
            yield from self._with_text(self._of_file(path))

    def as_one(self) -> Iterator[str]:
        """All text in pieces: text files as they are, one after the other, and each document of other files followed by
        a blank line."""
        self.empty = 0
        for path in self.files:
            if self._kind_of(path) == ".txt":
                yield from _in_pieces(line for _, line in _lines(path))
            else:
                yield from (f"{text}\n\n" for text in self._with_text(self._of_file(path)))

    def _with_text(self, texts: Iterable[str]) -> Iterator[str]:
        for text in texts:
            if text.strip():
                yield text
            else:
                self.empty += 1

    def _kind_of(self, path: Path) -> str:
        kind = _kind(path)
        if kind not in KINDS and not self.any_is_text:
            raise UserError(f"{path}: it is not known how to read this: the name of a file of texts ends in {_known()}")
        return kind if kind in KINDS else ".txt"

    def _of_file(self, path: Path) -> Iterator[str]:
        kind = self._kind_of(path)
        if kind == ".txt":
            yield from {"paragraphs": _paragraphs, "lines": _single_lines, "files": _whole}[self.split_by](path)
        elif kind == ".parquet":
            yield from _parquet(path, self.text_key)
        else:
            values = _json_lines(path) if kind == ".jsonl" else _json_values(path)
            yield from (_text_of(value, self.text_key, where) for where, value in values)


def _in_pieces(lines: Iterable[str]) -> Iterator[str]:
    held: list[str] = []
    length = 0
    for line in lines:
        held.append(line)
        length += len(line)
        if length >= PIECE:
            yield "".join(held)
            held, length = [], 0
    if held:
        yield "".join(held)


# ---------------------------------------------------------------------------------------------------------------------
# Text files


def _paragraphs(path: Path) -> Iterator[str]:
    """Lines without a blank one between them; one of spaces is blank."""
    held: list[str] = []
    for _, line in _lines(path):
        if line.strip():
            held.append(line)
        elif held:
            yield "".join(held).rstrip("\r\n")
            held = []
    if held:
        yield "".join(held).rstrip("\r\n")


def _single_lines(path: Path) -> Iterator[str]:
    for _, line in _lines(path):
        yield line.rstrip("\r\n")


def _whole(path: Path) -> Iterator[str]:
    yield "".join(line for _, line in _lines(path))


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines of a text with their ends, and their numbers from 1; a byte-order mark is no text."""
    position = 0
    with _opened(path) as file:
        for number, line in enumerate(file, start=1):
            read = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
            try:
                yield number, read.decode("utf-8")
            except UnicodeDecodeError as error:
                place = position + len(line) - len(read) + error.start
                raise UserError(
                    f"{path} is not UTF-8 text: byte {place}, in line {number}, does not belong to a character; "
                    "convert it to UTF-8"
                ) from None
            position += len(line)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    """A file's bytes, decompressed. Raises UserError where it cannot be read, or not to its end."""
    suffix = path.suffix.lower()
    try:
        if suffix == ".zst":
            stream = _pyarrow(path).input_stream(str(path), compression="zstd")
            with stream, io.BufferedReader(stream, PIECE) as file:
                yield file
        elif suffix == ".gz":
            with gzip.open(path) as file:
                yield file  # type: ignore[misc]
        else:
            with open_file(path) as file:
                yield file
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise UserError(f"cannot read {path}: {error}: it is damaged or was not copied to its end") from None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from None


def _pyarrow(path: Path) -> Any:
    try:
        import pyarrow
    except ImportError:
        raise UserError(f"{path} needs the pyarrow package: pip install -e '.[datasets]'") from None
    return pyarrow


# ---------------------------------------------------------------------------------------------------------------------
# JSON and Parquet


def read_values(path: Path) -> Iterator[tuple[str, Any]]:
    """The values of a JSON file, or the rows of a Parquet file as objects, each with what says where it stands. Raises
    UserError for what cannot be read."""
    kind = _kind(path)
    if kind not in VALUES:
        raise UserError(
            f"{path}: it is not known how to read this: the name of a file of objects ends in {', '.join(VALUES)}, or "
            f"one of these and {' or '.join(COMPRESSED)}"
        )
    if kind == ".parquet":
        yield from _rows(path)
    else:
        yield from _json_lines(path) if kind == ".jsonl" else _json_values(path)


def check_text(text: str, where: str) -> None:
    """Raises UserError for text that UTF-8 cannot hold."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:  # half of a surrogate pair, which JSON can write and UTF-8 cannot
        half = error.object[error.start]
        raise UserError(f"{where}: {half!r} in its text is half of a character, which UTF-8 cannot hold") from None


def _text_of(value: Any, text_key: str, where: str) -> str:
    text = value.get(text_key) if isinstance(value, dict) else value
    if not isinstance(text, str):
        raise UserError(f'{where} must be an object with a string named "{text_key}"; --text_key gives another name')
    check_text(text, where)
    return text


def _json_lines(path: Path) -> Iterator[tuple[str, Any]]:
    for number, line in _lines(path):
        if line.strip():
            where = f"{path}, line {number}"
            try:
                yield where, json.loads(line)
            except (ValueError, RecursionError) as error:
                raise UserError(f"{where} is not JSON: {_reason(error)}") from None


def _json_values(path: Path) -> Iterator[tuple[str, Any]]:
    """The values of an array, or values that follow one another, as lines or not."""
    text, number = _ReadOn(_in_pieces(line for _, line in _lines(path))), 0
    is_array = text.skip(WHITE_SPACE) == "["
    text.position += is_array
    while (follows := text.skip(WHITE_SPACE + "," * (is_array and number > 0))) and not (is_array and follows == "]"):
        number += 1
        where = f"{path}, value {number}"
        yield where, text.value(where)
    if is_array and not follows:
        raise UserError(f"{path} is not JSON: its array has no end")
    text.position += is_array
    if text.skip(WHITE_SPACE):
        raise UserError(f"{path} is not JSON: something follows its array")


class _ReadOn:
    """A text that comes in pieces, and a position in it."""

    def __init__(self, pieces: Iterator[str]):
        self.text, self.position = "", 0
        self._pieces = pieces
        self._decode = json.JSONDecoder().raw_decode

    def skip(self, characters: str) -> str:
        """Goes on to the first character that is none of these, and returns it; "" at the end."""
        while True:
            while self.position < len(self.text):
                if (character := self.text[self.position]) not in characters:
                    return character
                self.position += 1
            if not self._read_on(1):
                return ""

    def value(self, where: str) -> Any:
        """The JSON value that begins at the position, for which it reads on, ever more at a time."""
        while True:
            try:
                value, self.position = self._decode(self.text, self.position)
                return value
            except (ValueError, RecursionError) as error:
                if isinstance(error, RecursionError) or not self._read_on(len(self.text) - self.position):
                    raise UserError(f"{where} is not JSON: {_reason(error)}") from None

    def _read_on(self, wanted: int) -> bool:
        """At least so many characters more, if there are any; forgets those before the position."""
        held = [self.text[self.position :]]
        while wanted > 0 and (piece := next(self._pieces, "")):
            held.append(piece)
            wanted -= len(piece)
        self.text, self.position = "".join(held), 0
        return len(held) > 1


def _parquet(path: Path, text_key: str) -> Iterator[str]:
    pyarrow = _pyarrow(path)
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            kind = dict(zip(file.schema_arrow.names, file.schema_arrow.types, strict=True)).get(text_key)
            if kind not in (pyarrow.string(), pyarrow.large_string()):
                columns = ", ".join(file.schema_arrow.names)
                raise UserError(
                    f'{path}: there is no column of strings named "{text_key}", but {columns}; --text_key names one'
                )
            row = 0
            for batch in file.iter_batches(batch_size=1000, columns=[text_key]):
                for text in batch.column(0).to_pylist():
                    yield _text_of(text, text_key, f"{path}, row {row}")
                    row += 1
    except (OSError, pyarrow.ArrowException) as error:
        raise UserError(f"cannot read {path}: {_reason(error)}") from None


def _rows(path: Path) -> Iterator[tuple[str, Any]]:
    pyarrow = _pyarrow(path)
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            row = 0
            for batch in file.iter_batches(batch_size=1000):
                for value in batch.to_pylist():
                    yield f"{path}, row {row}", value
                    row += 1
    except (OSError, pyarrow.ArrowException) as error:
        raise UserError(f"cannot read {path}: {_reason(error)}") from None


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
