"""Matrices in 8 or 4 bits: which of a model's they are and what they take, without PyTorch.

A matrix W (rows, columns) becomes codes of few bits and scales in float, one for a row or for each group of columns of
a row: W is nearly codes * scales. With `int8_dynamic` what a matrix multiplies takes 8 bits, too, each time. Tables and
heads, in which a small error meets every token, take 8 bits where others take 4. Norms, biases, convolutions, routers
and positions stay as they are.
"""

import dataclasses
from collections.abc import Iterable
from typing import Any

from components.spec import Weights

TABLES = ("embedding.weight", "lm_head.weight")  # full names
GROUP = 32  # columns that share a scale in 4 bits: what PyTorch's product for a CPU takes
CODE_BITS = {"int8": 8, "int8_dynamic": 8, "int4": 4, "fp8": 8}
SCALE_BYTES = {"int8": 4, "int8_dynamic": 4, "int4": 2, "fp8": 4}  # float32, and bfloat16
METHODS = tuple(CODE_BITS)


@dataclasses.dataclass(frozen=True)
class Form:
    """How one matrix is kept: its method, and how many columns of a row share a scale (None: all)."""

    method: str
    group: int | None = None

    def bytes_of(self, shape: tuple[Any, ...]) -> Any:
        """Of a matrix (..., rows, columns): codes and scales."""
        *copies, rows, columns = shape
        count = rows
        for one in copies:
            count = count * one
        scales = 1 if self.group is None else columns // self.group
        return count * (columns * CODE_BITS[self.method] // 8 + scales * SCALE_BYTES[self.method])


def form_of(method: str, name: str, weights: Weights) -> Form | None:
    """That of a parameter, by its full name; None where it stays as it is. What has no whole groups takes 8 bits."""
    if name in TABLES:
        return Form("int8" if method == "int4" else method)
    if not weights.are_matrices or not name.endswith(".weight"):
        return None
    if method == "int4":
        return Form("int4", GROUP) if weights.shape[-1] % GROUP == 0 else Form("int8")
    return Form(method)


def forms_of(method: str, weights: Iterable[Weights]) -> dict[str, Form]:
    """The form of each parameter that has one, by its full name."""
    found = ((name, form_of(method, name, one)) for one in weights for name in one.names)
    return {name: form for name, form in found if form is not None}
