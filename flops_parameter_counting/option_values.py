"""Values on the command line: numbers, sizes and ranges of them, each with a message of its own where it is none."""

import argparse
import math
import re
from collections.abc import Callable
from typing import Any

from common.errors import UserError

MOST = 10**18  # of anything that is counted


def converter(convert: Callable[[str], Any]) -> Callable[[str], Any]:
    """Gives argparse the message of a ValueError instead of its own."""

    def converted(text: str) -> Any:
        try:
            return convert(text)
        except (ValueError, OverflowError) as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return converted


def number(text: str, what: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise ValueError(f"{text!r} is not {what}") from None
    if not 0 < value < math.inf:
        raise ValueError(f"{text!r} is not {what}")
    return value


@converter
def positive(text: str) -> float:
    return number(text, "a number above 0")


def check_signs(argv: list[str]) -> None:
    """Raises UserError for a negative number, which argparse may take for an option."""
    for option, text in zip(["", *argv], argv, strict=False):
        if re.fullmatch(r"-(\d.*|\.\d.*|inf)", text):
            raise UserError(f"{option} {text}".strip() + ": no option takes a number below 0")


def budget(text: str) -> float:
    try:
        return number(text, "a number of FLOPs above 0")
    except ValueError as error:
        raise UserError(f"--grid_search: {error}") from None


@converter
def whole(text: str) -> int:
    value = number(text, "a whole number above 0")
    if value != int(value):
        raise ValueError(f"{text!r} is not a whole number above 0")
    if value > MOST:
        raise ValueError(f"{text!r} is above {MOST:,}")
    return int(value)


@converter
def sizes(text: str) -> tuple[int, ...] | range:
    """`64,128`, `1024:8192:256` (as Python's range, without the end), or both: `64,128:512:128`."""
    parts = [size_range(part) for part in text.split(",")]
    return parts[0] if len(parts) == 1 else tuple(size for part in parts for size in part)


@converter
def counts(text: str) -> tuple[int, ...]:
    """As `sizes`, but 0 is one."""
    return tuple(size for part in text.split(",") for size in ([0] if part.strip() == "0" else size_range(part)))


@converter
def numbers(text: str) -> tuple[float, ...]:
    """`1,2.5,8`."""
    return tuple(number(part, "a number above 0") for part in text.split(","))


def size_range(text: str) -> range:
    bounds = text.split(":")
    if not all(bound.strip().isdecimal() for bound in bounds) or len(bounds) > 3:
        raise ValueError(f"{text!r} is neither a size nor first:end:step")
    first, *rest = map(int, bounds)
    if rest[1:] == [0]:
        raise ValueError(f"{text!r} has a step of 0")
    found = range(first, *rest) if rest else range(first, first + 1)
    if first < 1 or not found:
        raise ValueError(f"{text!r} holds no size of 1 or more")
    return found


@converter
def interval(text: str) -> tuple[float, float]:
    try:
        low, high = map(float, text.split(":"))
    except ValueError:
        raise ValueError(f"{text!r} is not low:high") from None
    if not 0 <= low <= high:
        raise ValueError(f"{text!r} is not low:high, with 0 <= low <= high")
    return low, high


@converter
def boolean(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise ValueError(f"{text!r} is neither True nor False")
    return text.lower() == "true"
