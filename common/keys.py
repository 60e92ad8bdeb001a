"""How a configuration key is declared (type, default, meaning, bounds) and how a value of it is read and checked."""

import ast
import dataclasses
import functools
import math
import sys
import types
import typing
from collections.abc import Sequence
from typing import Any

from common.errors import UserError, did_you_mean


def key(
    default: Any,
    help: str,
    *,
    choices: Sequence[Any] | None = None,
    at_least: float | None = None,
    above: float | None = None,
    below: float | None = None,
    group: str | None = None,
) -> Any:
    """A dataclass field that is a configuration key. The bounds hold for numbers; None is exempt where allowed.

    `group` is the heading of this key and of those after it, up to the next key that has one.
    """
    bounds = {"at_least": at_least, "above": above, "below": below}
    return dataclasses.field(default=default, metadata={"help": help, "choices": choices, "group": group, **bounds})


def groups(config_class: type) -> dict[str, list[dataclasses.Field]]:
    """The keys of a configuration class by the heading they stand under, in their order."""
    by_heading: dict[str, list[dataclasses.Field]] = {}
    heading = ""
    for field in dataclasses.fields(config_class):
        heading = field.metadata["group"] or heading
        by_heading.setdefault(heading, []).append(field)
    return by_heading


@functools.cache
def allowed_types(config_class: type, name: str) -> tuple[type, ...]:
    """The plain types that a key takes, e.g. (int, NoneType) for `int | None`."""
    hint = typing.get_type_hints(config_class)[name]
    members = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    return tuple(typing.get_origin(member) or member for member in members)


def type_name(config_class: type, name: str) -> str:
    """How the type of a key reads in messages and in the documentation, e.g. `int or None`."""
    names = [("None" if t is types.NoneType else t.__name__) for t in allowed_types(config_class, name)]
    return " or ".join(names)


def type_and_bounds(config_class: type, field: dataclasses.Field) -> str:
    """What a key takes, for the documentation: `int or None, at least 1`, or its choices."""
    if field.metadata["choices"] is not None:
        return ", ".join(str(choice) for choice in field.metadata["choices"])
    words = {"at_least": "at least", "above": "above", "below": "below"}
    bounds = [f"{word} {field.metadata[name]}" for name, word in words.items() if field.metadata[name] is not None]
    return ", ".join([type_name(config_class, field.name), *bounds])


def parse_value(config_class: type, name: str, text: str) -> Any:
    """What `--name=text` means, by the key's type: a key that takes strings keeps the text as it is, except that
    `None`, `True` and `False` (also `true` and `false`) are what they say where the key takes them.

    Text that is no Python literal stays a string, which `check_value` then refuses with the type it expected.
    """
    allowed = allowed_types(config_class, name)
    if types.NoneType in allowed and text == "None":
        return None
    if bool in allowed and text.lower() in ("true", "false"):
        return text.lower() == "true"
    if str in allowed:
        return text
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return text


def check_value(config_class: type, name: str, value: Any) -> Any:
    """The value as the key's type (1 becomes 1.0 for a float, 1e5 becomes 100000 for an int).

    Raises UserError for a wrong type, a value outside the bounds, or one that is none of the choices.
    """
    field = next(f for f in dataclasses.fields(config_class) if f.name == name)
    value = _as_declared_type(config_class, name, value)
    choices = field.metadata["choices"]
    if choices is not None and value not in choices:
        listed = ", ".join(str(choice) for choice in choices)
        hint = did_you_mean(value, [c for c in choices if isinstance(c, str)]) if isinstance(value, str) else ""
        raise UserError(f"{name}={value!r} is none of: {listed}{hint}")
    if isinstance(value, int | float) and not isinstance(value, bool):
        _check_bounds(field, value)
    if value == "":
        raise UserError(f"{name}='' is empty: give it a value, or leave it out")
    return value


def _as_declared_type(config_class: type, name: str, value: Any) -> Any:
    allowed = allowed_types(config_class, name)
    if type(value) is int and abs(value) > sys.float_info.max:
        raise UserError(f"{name}: the number is too large")
    if type(value) in allowed:
        return value
    if float in allowed and type(value) is int:
        return float(value)
    if int in allowed and type(value) is float and value.is_integer():
        return int(value)
    if tuple in allowed and type(value) is list:
        return tuple(value)
    given = type(value).__name__
    raise UserError(f"{name}={value!r}: expected {type_name(config_class, name)}, not {given}")


def _check_bounds(field: dataclasses.Field, value: float) -> None:
    at_least, above, below = (field.metadata[bound] for bound in ("at_least", "above", "below"))
    if not math.isfinite(value):
        raise UserError(f"{field.name}={value!r} is not a finite number")
    if isinstance(value, int) and abs(value) >= 2**63:
        raise UserError(f"{field.name}={value!r} does not fit in 64 bits")
    if at_least is not None and value < at_least:
        raise UserError(f"{field.name}={value!r} must be at least {at_least}")
    if above is not None and value <= above:
        raise UserError(f"{field.name}={value!r} must be above {above}")
    if below is not None and value >= below:
        raise UserError(f"{field.name}={value!r} must be below {below}")
