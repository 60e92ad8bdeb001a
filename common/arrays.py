"""Arithmetic on integers that is the same on the int64 arrays of a search's grid."""

import functools
import operator
from collections.abc import Iterable
from typing import Any


def larger(a: Any, b: Any) -> Any:
    """The larger of two integers, or elementwise where there are arrays."""
    return _elementwise("maximum", a, b) if is_array(a) or is_array(b) else max(a, b)


def smaller(a: Any, b: Any) -> Any:
    """The smaller of two integers, or elementwise where there are arrays."""
    return _elementwise("minimum", a, b) if is_array(a) or is_array(b) else min(a, b)


def rounded_down(value: Any) -> Any:
    """A number above 0 as an integer, or elementwise."""
    return value.astype("int64") if is_array(value) else int(value)


def is_array(value: Any) -> bool:
    """Whether a value holds those of many architectures."""
    return hasattr(value, "shape") and value.shape != ()


def _elementwise(name: str, a: Any, b: Any) -> Any:
    import numpy  # only who has arrays needs it: a configuration starts without

    return getattr(numpy, name)(a, b)


def product(factors: Iterable[Any]) -> Any:
    """All of them multiplied."""
    return functools.reduce(operator.mul, factors)
