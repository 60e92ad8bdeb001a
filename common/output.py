"""Standard output and error: how wide they are, and that they may break without ending the program that prints: a
reader that goes away, a full disk, a terminal that was closed, letters that it does not have."""

import contextlib
import io
import os
import shutil
import sys
import textwrap
from pathlib import Path
from typing import Any, TextIO


def terminal_width() -> int | None:
    """In characters; None where standard output goes to a file or another program."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def wrapped(text: str, width: int | None, indent: int = 2) -> str:
    """The text with every line that is wider than `width` continued in indented ones; None: as it is."""
    if width is None:
        return text
    lines = (
        textwrap.wrap(
            line,
            max(width, 40),
            subsequent_indent=" " * (len(line) - len(line.lstrip()) + indent),
            break_long_words=False,
            break_on_hyphens=False,
        )
        if len(line) > width
        else [line]
        for line in text.split("\n")
    )
    return "\n".join(part for parts in lines for part in parts)


class LastingOutput:
    """A text stream that drops what it cannot write. The first time, it says so once on standard error."""

    def __init__(self, stream: TextIO, name: str):
        self._stream, self._name, self._has_failed = stream, name, False

    def write(self, text: str) -> int:
        try:
            self._stream.write(text)
        except UnicodeEncodeError as error:
            self.write(text.encode(error.encoding, "replace").decode(error.encoding))
        except (OSError, ValueError) as error:  # a closed file is a ValueError
            self._note(error)
        return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except (OSError, ValueError) as error:
            self._note(error)

    def _note(self, error: Exception) -> None:
        if not self._has_failed:
            self._has_failed = True
            reason = getattr(error, "strerror", None) or error
            say_at_once(f"warning: {self._name} cannot be written ({reason}): the run goes on, its log has everything")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def prepare_output() -> None:
    """Standard output and error are there, also where they were closed when the process began, and take any letter:
    one that they do not have is printed as Python escapes it."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass  # one that was closed, and that a file of ours would get
    os.close(descriptor)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, Path(os.devnull).open("w"))  # noqa: SIM115
        elif isinstance(stream, io.TextIOWrapper):
            with contextlib.suppress(OSError):  # of a file that was exchanged for a pipe since Python opened it
                stream.reconfigure(errors="backslashreplace")


def outlast_output() -> None:
    """From here on, nothing that happens to standard output or error raises an exception in this process."""
    for name, words in (("stdout", "standard output"), ("stderr", "standard error")):
        stream = getattr(sys, name)
        if not isinstance(stream, LastingOutput):
            setattr(sys, name, LastingOutput(stream, words))


def say_at_once(text: str) -> None:
    """A line on standard error, from anywhere: also from a signal's handler, which may have interrupted a print."""
    with contextlib.suppress(OSError):
        os.write(2, f"{text}\n".encode())
