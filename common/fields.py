"""Whether what a file says fits the dataclass that it is read into: the file may be a stranger's, or damaged."""

import dataclasses
import math
import types
import typing
from typing import Any


def check_fields(instance: Any) -> None:
    """Raises TypeError, naming the field, where a dataclass's field is not of the type that it is declared as. A whole
    number is a float, too, and NaN or an infinity is none."""
    hints = typing.get_type_hints(type(instance))
    for field in dataclasses.fields(instance):
        value = getattr(instance, field.name)
        if not _fits(value, hints[field.name]):
            raise TypeError(f"{field.name} is {value!r:.100}")


def _fits(value: Any, hint: Any) -> bool:
    kind, inner = typing.get_origin(hint) or hint, typing.get_args(hint)
    if kind is types.UnionType:
        return any(_fits(value, one) for one in inner)
    if kind is tuple:
        return isinstance(value, tuple) and all(_fits(one, inner[0]) for one in value)
    if kind is dict and inner[1] is not Any:
        return isinstance(value, dict) and all(_fits(one, inner[1]) for one in value.values())
    if kind is float:
        return type(value) is int or (type(value) is float and math.isfinite(value))
    return type(value) is kind
