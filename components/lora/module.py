"""Low-rank adapters beside frozen matrices (components/lora/spec.py): what they compute, and how they end in them."""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from common.errors import UserError
from components.lora.spec import LORA, Adapters
from components.precision import wide


class Adapter(nn.Module):
    """What is trained beside a frozen matrix W (rows, columns), or beside a stack of them (E, rows, columns):

        y = W x + scaling B A dropout(x)            (Hu et al. 2021, LoRA, section 4.1)
        y = m / |V| (W x + scaling B A dropout(x))  DoRA, with V = W + scaling B A and |V| of each of its rows, which
                                                    counts as a constant (Liu et al. 2024, DoRA, sections 4.1 and 4.3)

    A begins uniform in 1 / sqrt(columns) around 0, B at 0 and m at |W|, so that y begins as W x.
    """

    def __init__(self, shape: torch.Size, adapters: Adapters):
        super().__init__()
        *copies, rows, columns = shape
        self.A = nn.Parameter(torch.empty(*copies, adapters.r, columns))
        self.B = nn.Parameter(torch.empty(*copies, rows, adapters.r))
        self.magnitude = nn.Parameter(torch.empty(*copies, rows)) if adapters.use_dora else None
        self.scaling, self.dropout = adapters.scaling, adapters.dropout

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """As PEFT draws them. What m begins at is known where W is: `begin`."""
        bound = 1 / math.sqrt(self.A.shape[-1])
        self.A.copy_(torch.empty(self.A.shape).uniform_(-bound, bound))
        self.B.zero_()
        if self.magnitude is not None:
            self.magnitude.fill_(1.0)

    @torch.no_grad()
    def begin(self, weight: Tensor) -> None:
        """For the matrix that it stands beside."""
        if self.magnitude is not None:
            self.magnitude.copy_(_lengths(wide(weight)))

    def forward(self, x: Tensor, y: Tensor, weight: Tensor, bias: Tensor | None = None, index: Any = ...) -> Tensor:
        """x (..., columns) and what W makes of it, y (..., rows), with the bias if there is one -> what the adapted
        matrix makes of it. `index`: which of a stack."""
        A, B = self.A[index], self.B[index]
        narrow = self.scaling * F.linear(F.dropout(x, self.dropout, self.training), A)  # (..., r)
        if self.magnitude is None:
            return _plus(y, narrow, B)
        product = y if bias is None else y - bias.type_as(y)
        whole = _plus(product, narrow, B)
        scaled = (whole * self._factor(weight[index], A, B, self.magnitude[index])).type_as(y)
        return scaled if bias is None else y + (scaled - product)  # y to the bit, before anything is trained

    def _factor(self, weight: Tensor, A: Tensor, B: Tensor, magnitude: Tensor) -> Tensor:
        """(rows,), m / |V|."""
        with torch.no_grad(), torch.autocast(weight.device.type, enabled=False):
            lengths = _lengths(wide(weight) + self.scaling * (wide(B) @ wide(A)))
        return wide(magnitude) / lengths

    @torch.no_grad()
    def merged(self, weight: Tensor) -> Tensor:
        """One matrix, or a stack, that makes of any x what W and the adapter make of it, but for rounding."""
        with torch.autocast(weight.device.type, enabled=False):
            whole = wide(weight) + self.scaling * (wide(self.B) @ wide(self.A))
            if self.magnitude is not None:
                whole *= (wide(self.magnitude) / _lengths(whole))[..., None]
        return whole.type_as(weight)


def _plus(y: Tensor, narrow: Tensor, B: Tensor) -> Tensor:
    """y (..., rows) + B narrow, in one pass over y. Where B lies as it is, (rows, r), a CPU takes several times as long
    for the gradients of both."""
    return torch.addmm(y.flatten(0, -2), narrow.flatten(0, -2), B.T.contiguous()).view_as(y)


def _lengths(matrix: Tensor) -> Tensor:
    """(..., rows, columns) -> (..., rows)."""
    return torch.linalg.vector_norm(matrix, dim=-1)


def adapter_of(layer: nn.Module) -> Adapter | None:
    return getattr(layer, LORA, None)


def adapted(layer: nn.Module, x: Tensor, y: Tensor, bias: Tensor | None = None) -> Tensor:
    """What a layer makes of x, with its adapter if it has one; y is what its matrix makes of it, and its bias."""
    adapter = adapter_of(layer)
    return y if adapter is None else adapter(x, y, layer.weight, bias)


def matrix_of(layer: nn.Module) -> Tensor:
    """The matrix that a layer multiplies by, where it is needed as one."""
    adapter = adapter_of(layer)
    weight: Any = layer.weight
    return weight if adapter is None else adapter.merged(weight)


def attach(name: str, layer: nn.Module, adapters: Adapters) -> None:
    """Puts an adapter beside a layer's matrix. One that is no nn.Linear asks for it itself (`adapted`), and says so by
    `takes_adapters`. Raises UserError."""
    if not isinstance(layer, nn.Linear) and not getattr(layer, "takes_adapters", False):
        raise UserError(f"lora_targets: {name} ({type(layer).__name__}) is no nn.Linear, and takes no adapter")
    weight: Any = layer.weight
    layer.add_module(LORA, Adapter(weight.shape, adapters).to(weight.device))
    if isinstance(layer, nn.Linear):
        layer.register_forward_hook(_after)


def _after(layer: nn.Module, given: tuple[Tensor, ...], y: Tensor) -> Tensor:
    bias: Any = layer.bias
    return adapted(layer, given[0], y, bias)
