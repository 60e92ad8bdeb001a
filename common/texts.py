"""Text of strangers, such as the strings of a log or of a config.json, on its way to a terminal, a table or a file."""

import unicodedata
from typing import Any

FORMULA_SIGNS = ("=", "+", "-", "@")  # with which a cell begins that spreadsheets compute
INVISIBLE = ("Cc", "Cf", "Cs", "Zl", "Zp")  # Unicode's categories of control and format characters, and the like


def harmless(text: str) -> str:
    """The text on one line, with every character that a terminal would obey, hide or refuse as Python escapes it."""
    if text.isprintable():  # nearly always
        return text
    return "".join(_escaped(letter) if unicodedata.category(letter) in INVISIBLE else letter for letter in text)


def _escaped(letter: str) -> str:
    return letter.encode("unicode_escape", "surrogatepass").decode()


def all_harmless(value: Any) -> Any:
    """The same for every string in what JSON holds, the names of keys among them."""
    if isinstance(value, str):
        return harmless(value)
    if isinstance(value, dict):
        return {harmless(name): all_harmless(one) for name, one in value.items()}
    return [all_harmless(one) for one in value] if isinstance(value, list) else value


def csv_cell(value: Any) -> Any:
    """A value that no spreadsheet takes for a formula: a text that looks like one gets an apostrophe in front, as one
    types it there. Numbers stay what they are."""
    text = value if value is None or isinstance(value, int | float) else str(value)
    return f"'{text}" if isinstance(text, str) and text.startswith(FORMULA_SIGNS) else text


def markdown_text(text: str) -> str:
    """The text as a line or a cell of Markdown: nothing in it is a cell's end, HTML, a link or a picture."""
    for mark in ("\\", "|", "<", "["):
        text = text.replace(mark, f"\\{mark}")
    return text
