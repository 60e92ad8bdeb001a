"""Reads a TOML file that a person wrote."""

import tomllib
from pathlib import Path
from typing import Any

from common.errors import UserError
from common.files import read_text


def read_toml(path: Path, option: str) -> dict[str, Any]:
    """The values of a file that the user named with `option`. Raises UserError."""
    text = read_text(path, option)
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{option}: {path} is no TOML: {error}") from None
