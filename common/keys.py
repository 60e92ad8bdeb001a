"""How a configuration key is declared (type, default, meaning, bounds) and how a value of it is read and checked."""

import ast
import dataclasses
import inspect
import math
import sys
import types
import typing
from collections.abc import Iterable, Sequence
from typing import Any

from common.errors import UserError, did_you_mean, same_name


@dataclasses.dataclass(frozen=True)
class Key:
    """A configuration key. `types` are the plain types that it takes, e.g. (int, NoneType) for `int | None`; the
    bounds hold for numbers, None is exempt where allowed. `group` is the heading of this key and of those after it.

    `changes`: the `function` that the model computes and what that costs; or its `speed` and how it is trained only,
    so that a checkpoint continues under another value; or a `name`: what it is called, where it lies, who is told of
    it, and what is expected of it.
    """

    name: str
    types: tuple[type, ...]
    default: Any
    help: str
    choices: tuple[Any, ...] | None = None
    at_least: float | None = None
    above: float | None = None
    below: float | None = None
    group: str | None = None
    changes: str = "function"
    what: str | None = dataclasses.field(default=None, compare=False)  # the key is of, in words, as its class says

    @property
    def type_name(self) -> str:
        """How the type reads in messages and in the documentation, e.g. `int or None`."""
        return " or ".join("None" if t is types.NoneType else t.__name__ for t in self.types)

    @property
    def type_and_bounds(self) -> str:
        """What the key takes, for the documentation: `int or None, at least 1`, or its choices."""
        if self.choices is not None:
            return ", ".join(str(choice) for choice in self.choices)
        words = {"at least": self.at_least, "above": self.above, "below": self.below}
        return ", ".join([self.type_name, *(f"{word} {bound}" for word, bound in words.items() if bound is not None)])


class Bounds(typing.TypedDict, total=False):
    """What a number is kept within."""

    at_least: float
    above: float
    below: float


def key(
    default: Any,
    help: str,
    *,
    choices: Sequence[Any] | None = None,
    group: str | None = None,
    changes: str = "function",
    **bounds: typing.Unpack[Bounds],
) -> Any:
    """A class attribute, or a dataclass field, that declares a key: `n_layer: int = key(12, "blocks", at_least=1)`."""
    declared = {"help": help, "choices": None if choices is None else tuple(choices), "group": group}
    return dataclasses.field(default=default, metadata={**declared, **bounds, "changes": changes})


_KEYS_OF: dict[type, dict[str, Key]] = {}


def keys_of(declaring: type) -> dict[str, Key]:
    """The keys that a class and those that it inherits from declare, in the order of their declaration."""
    if declaring not in _KEYS_OF:
        _KEYS_OF[declaring] = _declared(declaring)
    return _KEYS_OF[declaring]


def _declared(declaring: type) -> dict[str, Key]:
    found: dict[str, Key] = {}
    for base in reversed(declaring.__mro__):
        own = {name: _field(base, name) for name in inspect.get_annotations(base)}
        declared = {name: field for name, field in own.items() if field is not None}
        hints = inspect.get_annotations(base, eval_str=True) if declared else {}
        for name, field in declared.items():
            what = getattr(base, "what", None)
            found[name] = Key(name, _plain_types(hints[name]), field.default, what=what, **field.metadata)
    return found


def _field(declaring: type, name: str) -> dataclasses.Field | None:
    """What `key` returned: an attribute as it was given, or, of a dataclass, one of its fields."""
    field = getattr(declaring, "__dataclass_fields__", {}).get(name, declaring.__dict__.get(name))
    return field if isinstance(field, dataclasses.Field) and "help" in field.metadata else None


def _plain_types(hint: Any) -> tuple[type, ...]:
    members = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    return tuple(typing.get_origin(member) or member for member in members)


def by_heading(keys: Iterable[Key]) -> dict[str, list[Key]]:
    """The keys by the heading they stand under, in their order."""
    found: dict[str, list[Key]] = {}
    heading = ""
    for one in keys:
        heading = one.group or heading
        found.setdefault(heading, []).append(one)
    return found


def parse_value(key: Key, text: str) -> Any:
    """What `--name=text` means, by the key's type: a key that takes strings keeps the text as it is, except that
    `None`, `True` and `False` (also `true` and `false`) are what they say where the key takes them.

    Text that is no Python literal stays a string, which `check_value` then refuses with the type it expected.
    """
    if types.NoneType in key.types and text == "None":
        return None
    if bool in key.types and text.lower() in ("true", "false"):
        return text.lower() == "true"
    if str in key.types:
        return text
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return text


def check_value(key: Key, value: Any) -> Any:
    """The value as the key's type (1 becomes 1.0 for a float, 1e5 becomes 100000 for an int).

    Raises UserError for a wrong type, a value outside the bounds, or one that is none of the choices.
    """
    value = _as_declared_type(key, value)
    if key.choices is not None and value not in key.choices:
        listed = ", ".join(str(choice) for choice in key.choices)
        nearest = same_name if key.changes == "name" else did_you_mean  # what a network is called
        hint = nearest(value, [c for c in key.choices if isinstance(c, str)]) if isinstance(value, str) else ""
        raise UserError(f"{key.name}={value!r} is none of: {listed}{hint}")
    if isinstance(value, int | float) and not isinstance(value, bool):
        _check_bounds(key, value)
    if value == "":
        raise UserError(f"{key.name}='' is empty: give it a value, or leave it out")
    return value


def _as_declared_type(key: Key, value: Any) -> Any:
    if type(value) is int and abs(value) > sys.float_info.max:
        raise UserError(f"{key.name}: the number is too large")
    if type(value) in key.types:
        return value
    if float in key.types and type(value) is int:
        return float(value)
    if int in key.types and type(value) is float and value.is_integer():
        return int(value)
    if tuple in key.types and type(value) is list:
        return tuple(value)
    raise UserError(f"{key.name}={value!r}: expected {key.type_name}, not {type(value).__name__}")


def _check_bounds(key: Key, value: float) -> None:
    if not math.isfinite(value):
        raise UserError(f"{key.name}={value!r} is not a finite number")
    if isinstance(value, int) and abs(value) >= 2**63:
        raise UserError(f"{key.name}={value!r} does not fit in 64 bits")
    if key.at_least is not None and value < key.at_least:
        raise UserError(f"{key.name}={value!r} must be at least {key.at_least}")
    if key.above is not None and value <= key.above:
        raise UserError(f"{key.name}={value!r} must be above {key.above}")
    if key.below is not None and value >= key.below:
        raise UserError(f"{key.name}={value!r} must be below {key.below}")
