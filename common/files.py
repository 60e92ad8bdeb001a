"""Files that a command writes: checked before anything is computed, and written whole or not at all."""

import contextlib
import errno
import io
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, TextIO

from common.errors import UserError


def check_target(option: str, path: Path | None, suffix: str = "", force: bool = True) -> None:
    """Raises UserError for a file that cannot be written, whose name does not end in `suffix`, or that exists and is
    not to be overwritten. None is fine."""
    if path is None:
        return
    given = f"--{option}={path}"
    if not path.name.endswith(suffix):
        raise UserError(f"{given}: the file's name must end in {suffix}")
    if not path.parent.is_dir():
        raise UserError(f"{given}: there is no folder {path.parent}")
    if path.is_dir():
        raise UserError(f"{given} is a folder: name a file")
    if path.exists() and not force:
        raise UserError(f"{given}: the file exists; --force overwrites it")
    if not _is_special(path):
        try:
            aside(path).touch()
            aside(path).unlink()
        except OSError as error:
            raise UserError(f"{given}: cannot write to the folder {path.parent}: {error.strerror}") from None


def open_file(path: Path) -> BinaryIO:
    """A file to read. Raises OSError, also for a device, such as /dev/zero: it may have no end."""
    if path.is_char_device():
        raise OSError(errno.EINVAL, "it is a device", str(path))
    return path.open("rb")


def open_text(path: Path, newline: str | None = None) -> TextIO:
    """A file of UTF-8 text, with a byte-order mark or without, likewise."""
    return io.TextIOWrapper(open_file(path), encoding="utf-8-sig", newline=newline)


def read_text(path: Path, option: str = "", newline: str | None = None) -> str:
    """The UTF-8 text of a file that the user named, with `option`. Raises UserError."""
    said = f"{option}: " if option else ""
    try:
        with open_text(path, newline) as file:
            return file.read()
    except OSError as error:
        raise UserError(f"{said}cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UserError(f"{said}cannot read {path}: it is not UTF-8 text") from None


def write_whole(path: Path, content: bytes) -> None:
    """Writes a file that the user named. Raises UserError where that cannot be."""
    try:
        if _is_special(path):
            path.write_bytes(content)
        else:
            replace_file(path, content)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from None


@contextlib.contextmanager
def writing_to(folder: Path) -> Iterator[None]:
    """A full disk or a missing permission is the user's to mend: one line instead of a traceback."""
    try:
        yield
    except BrokenPipeError:  # of the command's output, which nobody reads any more: a file has none
        raise
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {error.strerror or error}") from error


def write_json(path: Path, values: dict[str, Any]) -> None:
    write_whole(path, (json.dumps(values, indent=1) + "\n").encode())


def replace_file(path: Path, content: bytes, on_disk: bool = False) -> None:
    """Writes a file of a few bytes as `written_aside` says. Raises OSError."""
    with written_aside(path, on_disk) as file:
        file.write_bytes(content)


@contextlib.contextmanager
def written_aside(path: Path, on_disk: bool = False) -> Iterator[Path]:
    """A file to write, which gets the name `path` when the block ends: readers see all of it or what was there before.
    With `on_disk` the content has reached the disk by then, so that no power cut leaves the name without it. A block
    that ends by an exception leaves nothing behind. Raises OSError, also where the name is that of a device or a
    folder, which is not replaced."""
    file = aside(path)
    if _is_special(path):
        raise OSError(errno.EINVAL, "it is no file that could be replaced", str(path))
    try:
        yield file
        if on_disk:
            sync(file)
        file.replace(path)
    finally:
        with contextlib.suppress(OSError):  # there is none once it is renamed
            file.unlink()


@contextlib.contextmanager
def folder_written_aside(path: Path) -> Iterator[Path]:
    """A folder to write, which gets the name `path` when the block ends; nothing but an empty folder may have it. A
    block that ends by an exception leaves nothing behind. Raises OSError."""
    folder = aside(path.absolute())
    try:
        folder.mkdir()
        yield folder
        folder.rename(path)
        sync(path.absolute().parent)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def aside(path: Path) -> Path:
    """Where a process writes what is to be `path`: hidden, beside it, and no other process's."""
    return path.with_name(f".{path.name}.{os.getpid()}.partial")


def sync(path: Path) -> None:
    """Brings a file's content, or a folder's names, to the disk: fsync on a file does not cover its name."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _is_special(path: Path) -> bool:
    """Such as /dev/stdout, which is written to and never replaced."""
    return path.exists() and not path.is_file()


def real(path: Path) -> Path:
    """The path without links; Path.resolve has no such answer for links in a circle."""
    return Path(os.path.realpath(path))
