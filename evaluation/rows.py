"""Files of JSON lines, an object each."""

import json
from pathlib import Path
from typing import Any

from common.errors import UserError
from common.files import read_text


def read_rows(path: Path, option: str) -> list[dict[str, Any]]:
    """The objects of a file that the user named, with `option`. Raises UserError, also for one without any."""
    rows = []
    for number, line in enumerate(read_text(path, option).split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if not isinstance(row, dict):
            raise UserError(f"{option}: line {number} of {path} is no JSON object")
        rows.append(row)
    if not rows:
        raise UserError(f"{option}: {path} is empty")
    return rows
