"""Reads a JSON file that a person may have written: comments are allowed, a key that is given twice is not."""

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

from common.errors import UserError
from common.files import open_text

_STRING = r'"(?:\\.|[^"\\])*"'
_STRING_OR_COMMENT = re.compile(_STRING + r"|//[^\n]*|/\*.*?\*/", re.DOTALL)
_STRING_OR_LAST_COMMA = re.compile(_STRING + r"|,(?=\s*[}\]])", re.DOTALL)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object, with // and /* */ comments and a comma after the last item or without. Raises UserError."""
    try:
        with open_text(path) as file:
            text = file.read()
    except OSError as error:
        raise UserError(f"cannot read it: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UserError("cannot read it: it is not UTF-8 text") from None
    except ValueError:  # a NUL, or half of a surrogate pair, in its path
        raise UserError("cannot read it: no file has such a name") from None

    def blank(match: re.Match) -> str:
        return match[0] if match[0].startswith('"') else re.sub(r"[^\n]", " ", match[0])  # lines keep their numbers

    text = _STRING_OR_LAST_COMMA.sub(blank, _STRING_OR_COMMENT.sub(blank, text))
    try:
        values = json.loads(text, object_pairs_hook=_without_duplicates)
    except json.JSONDecodeError as error:
        raise UserError(f"line {error.lineno}: {error.msg}") from None
    except ValueError:  # Python reads no whole number of more than some thousand digits
        raise UserError("a number in it is too long") from None
    except RecursionError:
        raise UserError("it is nested too deeply") from None
    if not isinstance(values, dict):
        raise UserError("it holds no object of keys and values")
    return values


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    for key, times in Counter(key for key, _ in pairs).items():
        if times > 1:
            raise UserError(f"{key} is given {times} times: keep one")
    return dict(pairs)
