"""torch.optim.Muon without the rounding of bfloat16."""

import contextlib
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor


@contextlib.contextmanager
def in_float64() -> Iterator[None]:
    """Its iterations in float64 in place of bfloat16, whose rounding makes of gradients that differ by the rounding of
    a float32 updates that differ by per cents of an element: what is compared is the strategy and not that."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim._muon, "_zeropower_via_newtonschulz", _newton_schulz)
        yield


def _newton_schulz(gradient: Tensor, coefficients: tuple[float, float, float], steps: int, eps: float) -> Tensor:
    a, b, c = coefficients
    x = gradient.double() / gradient.double().norm().clamp(min=eps)
    for _ in range(steps):
        square = x @ x.mT
        x = a * x + (b * square + c * square @ square) @ x
    return x.float()
