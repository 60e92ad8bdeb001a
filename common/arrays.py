"""Arithmetic on integers that is the same on the int64 arrays of a search's grid."""

import functools
import operator
from collections.abc import Iterable
from typing import Any

import numpy as np


def larger(a: Any, b: Any) -> Any:
    """The larger of two integers, or elementwise where there are arrays."""
    return np.maximum(a, b) if isinstance(a, np.ndarray) or isinstance(b, np.ndarray) else max(a, b)


def smaller(a: Any, b: Any) -> Any:
    """The smaller of two integers, or elementwise where there are arrays."""
    return np.minimum(a, b) if isinstance(a, np.ndarray) or isinstance(b, np.ndarray) else min(a, b)


def product(factors: Iterable[Any]) -> Any:
    """All of them multiplied."""
    return functools.reduce(operator.mul, factors)
