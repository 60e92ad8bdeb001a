"""Files that a command writes: checked before anything is computed, and written whole or not at all."""

import contextlib
import json
import os
from pathlib import Path
from typing import Any

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
            _aside(path).touch()
            _aside(path).unlink()
        except OSError as error:
            raise UserError(f"{given}: cannot write to the folder {path.parent}: {error.strerror}") from None


def write_whole(path: Path, content: bytes) -> None:
    try:
        if _is_special(path):
            path.write_bytes(content)
            return
        _aside(path).write_bytes(content)
        _aside(path).replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):  # there may be none
            _aside(path).unlink()
        raise UserError(f"cannot write {path}: {error.strerror}") from None


def write_json(path: Path, values: dict[str, Any]) -> None:
    write_whole(path, (json.dumps(values, indent=1) + "\n").encode())


def _aside(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}")


def _is_special(path: Path) -> bool:
    """Such as /dev/stdout, which is written to and never replaced."""
    return path.exists() and not path.is_file()
